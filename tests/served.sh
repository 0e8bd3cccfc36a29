#!/bin/bash
# The server as whoever hosts it meets it: the script behind `make serve` starts it with a database and a host of its own, and
# curl, E2B's library, a browser and a tester of OpenAPI descriptions go against it, one after the other.
#
# Usage: served.sh PROGRAM. Where guests need the lab, the lab is up, booted with WRENN_LAB_FORWARD=PORT.
set -euo pipefail
cd "$(dirname "$0")/.."

program=$1
port=${WRENN_LAB_FORWARD:-18461}
url=http://127.0.0.1:$port
work=$(mktemp -d)
log=$work/log

say() { echo "served: $*"; }

fail() {
    say "$*" >&2
    cat "$log" >&2
    exit 1
}

if lab/own-kvm; then
    scripts/serve-here "$program" "127.0.0.1:$port" "$work/serve" --at-end destroy >"$log" 2>&1 &
else
    lab/lab exec -- scripts/serve-here "$program" "0.0.0.0:$port" "/scratch/served-$$" --at-end destroy >"$log" 2>&1 &
fi
server=$!

# In good order, so that it destroys the sandboxes that are left.
stop() {
    kill -TERM $server 2>/dev/null || true
    wait $server || true
    rm -rf "$work"
}
trap stop EXIT

for ((second = 0; ; second++)); do
    ! grep -q '^API key' "$log" || break
    kill -0 $server 2>/dev/null || fail "the server ended"
    [ $second -lt 240 ] || fail "the server is not ready after $second s"
    sleep 1
done
read -r _ password < <(grep '^password' "$log")
read -r _ _ key < <(grep '^API key' "$log")

say "curl: an account, a key, and one sandbox's whole life"
examples/curl.sh "$url" >"$work/curl" 2>&1 || { cat "$work/curl" >&2; fail "examples/curl.sh failed"; }

say "E2B's library"
E2B_API_URL=$url E2B_SANDBOX_URL=$url E2B_API_KEY=$key PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    .wrenn/tools/e2b/bin/python3 wrenn-server/tests/e2b/drive.py || fail "E2B's library met with a failure"

say "a browser"
export WRENN_WEB_MODULES=${CARGO_TARGET_DIR:-target}/tmp/web-test
node wrenn-server/tests/web/run.mjs "$url/" --shots "${CARGO_TARGET_DIR:-target}/tmp/web-shots-served" ||
    fail "the page does not do what it is for"

# A sandbox that is made is used by what follows. Not the stream, which is a WebSocket, nor the end of the session itself. Input
# that the description allows may still be refused: that a path is a directory's, say, no schema tells.
say "schemathesis: what the API's description promises"
session=$(printf '{"email":"first@wrenn.example","password":"%s"}' "$password" |
    curl --silent --show-error --fail --header 'Content-Type: application/json' --data @- "$url/v1/auth/login")
token=$(grep -o '"access_token":"[^"]*"' <<<"$session" | cut -d '"' -f 4)
root=$PWD
(cd "$work" && "$root/.wrenn/tools/schemathesis/bin/schemathesis" run "$url/openapi.json" --header "Authorization: Bearer $token" \
    --phases examples,coverage,fuzzing --max-examples 5 --seed 1 --request-timeout 60 --no-color \
    --exclude-checks positive_data_acceptance --exclude-path-regex '/stream$|/logout$') >"$work/schemathesis" 2>&1 ||
    { sed '/WARNINGS/,$d' "$work/schemathesis" >&2; fail "the API does not do what its description promises"; }
grep 'generated' "$work/schemathesis"
say "all of it"
