#!/bin/bash
# The HTTP API with nothing but curl: an account, a key, and one sandbox's whole life. Usage: curl.sh [URL]
set -euo pipefail

url=${1:-http://127.0.0.1:8080}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

call() { curl --silent --show-error --fail-with-body "$@"; }
json() { call --header 'Content-Type: application/json' --header "X-API-Key: ${key:-}" "$@"; }
# The first value of a field: enough for answers this simple.
field() { grep -o "\"$1\":\"[^\"]*\"" | head -1 | cut -d '"' -f 4; }
step() { echo "== $*"; }

step "sign up, log in"
account="{\"email\":\"curl-$$-$RANDOM@example.org\",\"password\":\"correct horse $RANDOM\"}"
call --header 'Content-Type: application/json' --data "$account" "$url/v1/auth/signup" >/dev/null
token=$(call --header 'Content-Type: application/json' --data "$account" "$url/v1/auth/login" | field access_token)

step "make a key"
key=$(call --header "Authorization: Bearer $token" --header 'Content-Type: application/json' \
    --data '{"name":"curl"}' "$url/v1/keys" | field key)
echo "${key:0:10}…"

step "create a sandbox"
id=$(json --data '{"template":"debian","memory_mib":128}' "$url/v1/sandboxes" | field id)
sandbox=$url/v1/sandboxes/$id
echo "$id"

step "run a command"
json --data '{"command":"echo hello from $(uname -sr)"}' "$sandbox/exec"
echo

step "follow a command"
json --no-buffer --data '{"command":"for n in 1 2 3; do echo line $n; sleep 0.2; done"}' "$sandbox/exec/stream" | tee "$dir/events"
grep -q '"exit_code":0' "$dir/events"

step "upload and download"
head -c 1000000 /dev/urandom >"$dir/sent"
json --upload-file "$dir/sent" --header 'Content-Type: application/octet-stream' "$sandbox/files?path=/root/file" >/dev/null
json "$sandbox/files?path=/root/file" >"$dir/received"
cmp "$dir/sent" "$dir/received"
echo "1000000 bytes, the same"

step "pause, resume"
json --request POST "$sandbox/pause" | field state
json --request POST "$sandbox/resume" | field state
json --data '{"command":"ls -l /root/file"}' "$sandbox/exec" | grep -q '"exit_code":0'

step "branch"
child=$(json --data '{"count":1}' "$sandbox/branch" | field id)
json --data '{"command":"wc -c </root/file"}' "$url/v1/sandboxes/$child/exec"
echo

step "delete"
json --request DELETE "$url/v1/sandboxes/$child"
json --request DELETE "$sandbox"
[ "$(curl --silent --output /dev/null --write-out '%{http_code}' --header "X-API-Key: $key" "$sandbox")" = 404 ]
echo "gone"
