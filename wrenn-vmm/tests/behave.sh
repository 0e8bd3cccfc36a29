#!/bin/sh
# A process in a monitor's place. It is called as a monitor is (--api-sock PATH --id ID) and behaves as the fifth
# argument says: what is tested with it is the handling of processes, not the REST API.
case "$5" in
    wait) exec sleep 1000 ;;
    fail) echo "first line"; echo "cannot go on: no reason" >&2; exit 3 ;;
    exit) exit "$6" ;;
    # An ignored signal stays ignored in the program that is run next.
    stubborn) trap '' TERM; echo ready; exec sleep 1000 ;;
    disk) cat /run/wrenn/vm/root.disk; echo; pwd; exec sleep 1000 ;;
    *) echo "unknown behaviour: $5" >&2; exit 64 ;;
esac
