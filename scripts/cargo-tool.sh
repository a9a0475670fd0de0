#!/usr/bin/env bash
# Prints the path of a tool that cargo installs, at this version; builds it under target/tools the first time.
#   scripts/cargo-tool.sh cargo-deny 0.20.2
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
name=$1 version=$2
dir=$root/target/tools/$name-$version
if [ ! -x "$dir/bin/$name" ]; then
  echo "building $name $version" >&2
  # Without optimisation: it runs for a second, and building it otherwise takes minutes more.
  cargo install --quiet --locked --debug --no-track --root "$dir" --target-dir "$root/target/tools/build" "$name@$version" >&2
  rm -rf "$root/target/tools/build"
fi
echo "$dir/bin/$name"
