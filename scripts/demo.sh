#!/usr/bin/env bash
# make demo: finds or installs what it needs, then runs examples/demo.rs.
#   ONCE=1        end by itself, with 0 if every request was answered
#   CATALOG=file  a catalog file instead of Nomad: takes seconds
set -euo pipefail
cd "$(dirname "$0")/.."

arguments=()
[ -z "${ONCE:-}" ] || arguments+=(--once)
if [ "${CATALOG:-nomad}" = file ]; then
  arguments+=(--catalog-file)
else
  # `|| code=$?` keeps `set -e` from ending the script: 3 means that Nomad cannot be had here.
  code=0; nomad=$(scripts/nomad.sh) || code=$?
  if [ "$code" = 3 ]; then
    echo "Without Nomad: showing the same on a catalog file (make demo CATALOG=file)." >&2
    arguments+=(--catalog-file)
  elif [ "$code" != 0 ]; then
    exit "$code"
  fi
fi

# A HAProxy >= 3.0 on the PATH is used as it is.
haproxy=$(command -v haproxy || true)
if [ -z "$haproxy" ] || ! "$haproxy" -v | head -n 1 | grep -qE 'version [3-9]\.'; then
  haproxy=$(scripts/haproxy.sh 3.2 || scripts/haproxy.sh 3.0)
fi

cargo build --quiet --locked --bins --examples
exec target/debug/examples/demo --haproxy "$haproxy" "${arguments[@]}"
