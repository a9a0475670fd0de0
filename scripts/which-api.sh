#!/usr/bin/env bash
# Prints which Data Plane API the end-to-end suite ran on.
if [ -n "${DATAPLANEAPI_BIN:-}" ] || command -v dataplaneapi >/dev/null; then
  echo "end to end: ran on the real Data Plane API (${DATAPLANEAPI_BIN:-$(command -v dataplaneapi)})"
else
  echo "end to end: ran on the tests' fake Data Plane API, as there is no dataplaneapi on the PATH"
fi
for series in 3.0 3.2 3.4; do
  if [ -x "$(dirname "$0")/../target/tools/haproxy-$series/sbin/haproxy" ]; then echo "end to end: ran on HAProxy $series"
  else echo "end to end: did NOT run on HAProxy $series, which could not be had"; fi
done
