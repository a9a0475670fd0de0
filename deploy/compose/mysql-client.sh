#!/bin/sh
# One connection to the database through HAProxy, with a query each second. If the connection breaks, this ends with the
# client's error.
set -eu
client() {
    mariadb --host=127.0.0.1 --port=13306 --user=playground --skip-ssl --skip-reconnect --batch --skip-column-names --unbuffered "$@"
}

# The backend comes with the first pass of the controller.
until client --execute='SELECT 1' >/dev/null 2>&1; do sleep 1; done
while echo 'SELECT CONNECTION_ID(), NOW();'; do sleep 1; done | client
