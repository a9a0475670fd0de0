#!/usr/bin/env bash
# Puts one HAProxy under target/tools/haproxy-<series>/ without touching this machine's apt state, and
# prints the path of its executable.
#
#   scripts/haproxy.sh 3.0|3.2|3.4|2.6
#
# Debian has one series per suite: 2.6 in bookworm, 3.0 in trixie, 3.2 in sid, 3.4 in experimental.
# The packages of another suite link against that suite's libc, so each comes with the libraries it
# needs, and patchelf points the executable at them: the master re-executes itself, which a start
# through ld.so would not survive. Exit 3: this series is not available (its suite moved on).
set -euo pipefail
series=${1:?usage: haproxy.sh 3.0|3.2|3.4|2.6}
root=$(cd "$(dirname "$0")/.." && pwd)
dir=$root/target/tools/haproxy-$series
bin=$dir/sbin/haproxy
say() { printf '%s\n' "$*" >&2; }

case $series in
  2.6) suites=(bookworm) ;;
  3.0) suites=(trixie) ;;
  3.2) suites=(sid) ;;
  3.4) suites=(sid experimental) ;;
  *) say "haproxy.sh: no HAProxy $series in any suite; one of 2.6, 3.0, 3.2, 3.4"; exit 2 ;;
esac
if [ -x "$bin" ]; then echo "$bin"; exit 0; fi

"$root/scripts/system.sh" patchelf debian-archive-keyring
apt=$root/target/tools/apt-$series
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
: > "$apt/status"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# The mirror that this machine uses already: the security archive has no other suites.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1 || true)
[ -n "$mirror" ] || { say "haproxy.sh: apt has no package source here; run apt-get update"; exit 3; }
for suite in "${suites[@]}"; do echo "deb [signed-by=$keyring] $mirror $suite main"; done > "$apt/sources.list"
options=(-q -o "Dir::Etc::SourceList=$apt/sources.list" -o "Dir::Etc::SourceParts=$apt/parts"
  -o "Dir::State=$apt" -o "Dir::State::Lists=$apt/lists" -o "Dir::State::status=$apt/status"
  -o "Dir::Cache=$apt/cache" -o APT::Get::List-Cleanup=false -o "APT::Sandbox::User=root"
  -o Acquire::Languages=none)
say "haproxy $series: reading the package lists of ${suites[*]}"
apt-get "${options[@]}" update >&2

wanted=$(apt-cache "${options[@]}" madison haproxy | awk -v s="$series." '{print $3}' | grep -E "^${series//./\\.}\." | head -n 1 || true)
if [ -z "$wanted" ]; then say "haproxy $series is not in ${suites[*]} today"; exit 3; fi

# Only what the executable links, from its Depends and their Depends, never the libraries of this machine.
closure() {
  apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances "$1" 2>/dev/null | grep -E '^[a-z0-9]' | grep -E '^(lib(c6|crypt1|jemalloc2|lua5\.[34]-0|opentracing|pcre2-8-0|ssl3|zstd1|stdc\+\+6|gcc-s1|yaml-cpp|systemd0|cap2|lz4|lzma5|gcrypt20|gpg-error0)|zlib1g)' | sort -u
}
mapfile -t libraries < <(closure haproxy)
say "haproxy $series: $wanted with ${#libraries[@]} libraries"
mkdir -p "$apt/debs" "$dir.new"
(cd "$apt/debs" && apt-get "${options[@]}" download "haproxy=$wanted" "${libraries[@]}" >&2)
for deb in "$apt"/debs/*.deb; do dpkg -x "$deb" "$dir.new"; done

found=$(find "$dir.new" -path '*sbin/haproxy' -type f | head -n 1)
loader=$(find "$dir.new" -name 'ld-linux*.so.*' | head -n 1)
mkdir -p "$dir.new/sbin"
[ "$found" = "$dir.new/sbin/haproxy" ] || mv "$found" "$dir.new/sbin/haproxy"
rpath=$(find "$dir.new" -name '*.so*' -printf '%h\n' | sort -u | sed "s#^$dir.new#$dir#" | paste -sd:)
patchelf --set-interpreter "$dir${loader#"$dir.new"}" --force-rpath --set-rpath "$rpath" "$dir.new/sbin/haproxy"
mv "$dir.new" "$dir"
rm -rf "$apt"
"$bin" -v >&2
echo "$bin"
