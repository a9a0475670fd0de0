#!/usr/bin/env bash
# Prints the path of a `nomad` executable: the one on the PATH, or the one built (once, about four
# minutes) from tools/nomad, a Go module that pins Nomad as a tool. Exit 3: neither nomad nor Go is installed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if command -v nomad >/dev/null; then command -v nomad; exit 0; fi
bin=$root/target/tools/bin/nomad
if [ -x "$bin" ]; then echo "$bin"; exit 0; fi
command -v go >/dev/null || { echo "neither nomad nor go is on the PATH: install one of them" >&2; exit 3; }
echo "building Nomad from tools/nomad (once; about four minutes on two cores)" >&2
mkdir -p "$(dirname "$bin")"
# Nomad links cgo code for its drivers; a C compiler comes with Rust's linker already.
(cd "$root/tools/nomad" && CGO_ENABLED=1 GOFLAGS=-mod=readonly go build -o "$bin.new" github.com/hashicorp/nomad >&2)
mv "$bin.new" "$bin"
echo "$bin"
