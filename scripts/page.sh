#!/usr/bin/env bash
# Gets what the tests of the page need: Chromium and Node from the system, and the packages of tests/page from npm, at
# the versions of its lock file, under target/tools/page. No package runs a script of its own, or brings a browser.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/system.sh chromium
command -v npm >/dev/null || scripts/system.sh nodejs npm
folder=target/tools/page
cmp -s tests/page/package-lock.json "$folder/installed.json" && exit 0
mkdir -p "$folder"
cp tests/page/package.json tests/page/package-lock.json "$folder/"
# Not with `--prefix`, which does not take a link for a folder.
(cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund) >&2
# Last, so that an installation that was cut is made again.
cp tests/page/package-lock.json "$folder/installed.json"
