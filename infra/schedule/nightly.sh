#!/bin/sh
# One scheduled run: extract whatever shards are new, then check the store. For cron and Kubernetes alike.
#
#   nightly.sh SPEC STORE
#
# STORE takes the place of the spec's. The exit code is that of `gatehouse extract`, but for these: 0 where another
# driver is still at work, as when the night before was long; 1 where `gatehouse verify` found a fault; 124 where the
# night was over, and 137 where the driver had to be killed then. Verify compares sizes only: from time to time run it without --fast, which reads every byte.
set -u
if [ $# -ne 2 ]; then
    echo "usage: nightly.sh SPEC STORE" >&2
    exit 2
fi
# A driver that hangs would hold the store for ever, and every later night would leave it alone. It has a session of its
# own, since a signal that reaches it twice, once from a terminal or a group and once from here, ends it at once.
limit="setsid timeout --foreground --kill-after=10m 22h"
if [ -n "${RAY_JOB_CONFIG_JSON_ENV_VAR-}" ]; then
    limit="" # a job of Ray's: that signals every process itself, and has a deadline of its own
fi
$limit gatehouse extract "$1" --set "store=$2" &
driver=$!
if [ -n "$limit" ]; then # who stops a night knows this script only
    trap 'again=1; kill -TERM "$driver"' TERM INT HUP
fi
again=1
while [ -n "$again" ]; do # a signal ends `wait`, not the driver
    again=""
    wait "$driver"
    code=$?
done
case $code in
    0 | 3 | 4) ;; # done, though some shards or samples may be bad: what is stored must be sound all the same
    6) exit 0 ;;
    *) exit $code ;;
esac
trap - TERM INT HUP
gatehouse verify --fast "$2" || exit 1
exit $code
