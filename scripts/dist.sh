#!/usr/bin/env bash
# What a release consists of, under target/dist: an archive with a static executable, completions, man pages, documents
# and job files; a bill of materials (CycloneDX); and checksums.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
target=$(uname -m)-unknown-linux-musl
grep -q "^## $version" CHANGELOG.md || { echo "CHANGELOG.md has no section for $version" >&2; exit 1; }

scripts/system.sh musl-tools
rustup target add "$target" >&2
cargo build --release --locked --target "$target" --bin nomad-haproxy
built=target/$target/release/nomad-haproxy
# A static executable names no interpreter.
if readelf --program-headers --wide "$built" | grep -q INTERP; then
  echo "$built is not static" >&2
  exit 1
fi
[ "$("$built" --version)" = "nomad-haproxy $version" ] || { echo "$built is not version $version" >&2; exit 1; }

name=nomad-haproxy-$version-$target
dist=target/dist
rm -rf "$dist"
mkdir -p "$dist/$name/completions"
install -m 755 --strip "$built" "$dist/$name/nomad-haproxy"
for shell in bash zsh fish; do
  "$built" completions "$shell" > "$dist/$name/completions/nomad-haproxy.$shell"
done
"$built" man "$dist/$name/man"
cp -r README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE docs deploy "$dist/$name/"

# The same sources make the same archive.
changed=$(git log -1 --format=%ct)
tar --create --sort=name --mtime="@$changed" --owner=0 --group=0 --numeric-owner --directory "$dist" "$name" |
  gzip --no-name > "$dist/$name.tar.gz"
rm -r "${dist:?}/$name"

cyclonedx=$(scripts/cargo-tool.sh cargo-cyclonedx 0.5.9)
"$cyclonedx" cyclonedx --quiet --format json --target "$target" --override-filename "$name.cdx"
mv "$name.cdx.json" "$dist/"
(cd "$dist" && sha256sum "$name.tar.gz" "$name.cdx.json" > SHA256SUMS)
ls -l "$dist" >&2
