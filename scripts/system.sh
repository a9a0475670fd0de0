#!/usr/bin/env bash
# Installs the Debian packages named, where one is missing. As root or through sudo; names what is missing.
set -euo pipefail
missing=()
for package in "$@"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "needs root or sudo to install: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "installing ${missing[*]}" >&2
# The lists of a fresh machine are often older than its mirror: refresh them only when an install fails.
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy "${missing[@]}" >&2 ||
  { "${as_root[@]}" apt-get -q update >&2; "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy "${missing[@]}" >&2; }
