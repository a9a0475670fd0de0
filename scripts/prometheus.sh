#!/usr/bin/env bash
# Prints the folder with a `prometheus` and a `promtool` executable: the ones on the PATH, or Debian's, which
# are unpacked under target/tools/prometheus. Unpacked, not installed: the package would start a server.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then dirname "$(command -v promtool)"; exit 0; fi
dir=$root/target/tools/prometheus
if [ -x "$dir/usr/bin/promtool" ]; then echo "$dir/usr/bin"; exit 0; fi
rm -rf "$dir.new"
mkdir -p "$dir.new/deb"
# The lists of a fresh machine are often older than its mirror: refresh them only when a download fails.
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
get() { (cd "$dir.new/deb" && apt-get -q -o APT::Sandbox::User=root download prometheus >&2); }
get || { "${as_root[@]}" apt-get -q update >&2; get; }
# Both executables are linked with libc only, so nothing else is needed.
dpkg -x "$dir.new"/deb/*.deb "$dir.new"
rm -rf "$dir.new/deb"
mv "$dir.new" "$dir"
"$dir/usr/bin/promtool" --version >&2
echo "$dir/usr/bin"
