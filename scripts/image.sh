#!/usr/bin/env bash
# Builds the image of deploy/Dockerfile without a container engine, and starts it: the file's own steps, in their order,
# in roots under target/image-root. `rust:1-trixie` is Debian with what its Dockerfile installs, and this machine's
# toolchain (github.com/rust-lang/docker-rust: RUSTUP_HOME and CARGO_HOME are below /usr/local).
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "needs root: it changes the root of its steps" >&2; exit 1; }
# What is mounted here ends with this process.
[ "${IMAGE_MOUNTS:-}" = own ] || IMAGE_MOUNTS=own exec unshare --mount --fork --pid --kill-child "$0" "$@"
roots=$PWD/target/image-root
declare -A stages=()
root='' name='' workdir=/ user=0:0 entrypoint='' command='' variables=()

base() {
  scripts/system.sh mmdebstrap curl
  if [ ! -e "$roots/base/etc/debian_version" ]; then
    rm -rf "$roots/base"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,gcc,libc6-dev,make trixie "$roots/base.new" http://deb.debian.org/debian >&2
    mv "$roots/base.new" "$roots/base"
  fi
  cp -a "$roots/base" "$root"
  # Of this machine: how it resolves names, and whom it trusts.
  cp -L /etc/resolv.conf "$root/etc/resolv.conf"
  mkdir -p "$root/usr/local/share/ca-certificates" "$root/usr/local/cargo/bin" "$root/usr/local/rustup"
  find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$root/usr/local/share/ca-certificates/" \;
  chroot "$root" update-ca-certificates >&2
  local toolchain
  toolchain=$(dirname "$(dirname "$(rustup which rustc)")")
  cp "${CARGO_HOME:-$HOME/.cargo}"/bin/{rustup,cargo,rustc} "$root/usr/local/cargo/bin/"
  mkdir -p "$root/usr/local/rustup/toolchains"
  cp -a "$toolchain" "$root/usr/local/rustup/toolchains/"
  cp "${RUSTUP_HOME:-$HOME/.rustup}/settings.toml" "$root/usr/local/rustup/"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  variables=(RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo
    PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
}

inside() { env --ignore-environment "${variables[@]}" HOME=/root chroot --userspec="$user" "$root" /usr/bin/env --chdir="$workdir" "$@"; }

from() {
  name=${3:-image} root=$roots/$name workdir=/ user=0:0 variables=(PATH=/usr/local/bin:/usr/bin:/bin)
  rm -rf --one-file-system "$root"
  mkdir -p "$roots"
  case $1 in
    rust:1-trixie) base ;;
    scratch) mkdir -p "$root" ;;
    *) echo "deploy/Dockerfile begins with $1, which scripts/image.sh does not know" >&2; exit 1 ;;
  esac
  stages[$name]=$root
}

# COPY [--from=STAGE] SOURCE... DESTINATION
copy() {
  local source=$PWD
  case $1 in --from=*) source=${stages[${1#--from=}]}; shift ;; esac
  local to=${*: -1}
  case $to in /*) ;; *) to=$workdir/$to ;; esac
  case $to in */) mkdir -p "$root$to" ;; *) mkdir -p "$root$(dirname "$to")" ;; esac
  while [ $# -gt 1 ]; do
    cp -aT "$source/$1" "$root$to$(case $to in */) basename "$1" ;; esac)"
    shift
  done
}

while read -r instruction arguments; do
  echo "$instruction $arguments" >&2
  case $instruction in
    FROM) from $arguments ;;
    RUN) inside /bin/sh -c "$arguments" >&2 ;;
    WORKDIR) workdir=$arguments && mkdir -p "$root$workdir" ;;
    COPY) copy $arguments ;;
    ENV) variables+=("$arguments") ;;
    USER) user=$arguments ;;
    EXPOSE) ;;
    ENTRYPOINT) entrypoint=$arguments ;;
    CMD) command=$arguments ;;
    *) echo "scripts/image.sh does not know $instruction" >&2; exit 1 ;;
  esac
done < <(grep -vE '^(#|$)' deploy/Dockerfile)

# The program itself, as an engine would start it, with what compose sets: it lives although nobody answers.
words() { sed 's/[][",]/ /g' <<< "$1"; }
# In the place of the shell that runs this, so that its process ID is the program's.
start() { exec env --ignore-environment "${variables[@]}" "$(command -v "$1")" "${@:2}"; }
port=$(perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1")->sockport')
variables+=(NOMAD_ADDR=http://127.0.0.1:1 HAPROXY_DATAPLANE_URL=http://127.0.0.1:1 HAPROXY_PASSWORD=secret
  "NOMAD_HAPROXY_HTTP_LISTEN=127.0.0.1:$port")
start chroot --userspec="$user" "$root" $(words "$entrypoint") $(words "$command") >&2 &
program=$!
for _ in $(seq 100); do
  [ "$(curl -s "http://127.0.0.1:$port/healthz")" = ok ] && break
  kill -0 "$program"
  sleep 0.1
done
[ "$(curl -s "http://127.0.0.1:$port/healthz")" = ok ]
[ "$(stat -c %u:%g "/proc/$program")" = "$user" ]
kill "$program"
wait "$program"
echo "the image of $(du -sh --apparent-size "$root" | cut -f1) starts as $user, answers and ends"
