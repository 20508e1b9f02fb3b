#!/usr/bin/env bash
# The bridge as other programs see it: curl, socat and nc, and our client from another PID namespace (as root).
# usage: bridge.sh PATH-TO-MCP-PY FOLDER
set -euo pipefail
binary=$1 folder=$2
mkdir -p "$folder/home"
unset PYTHONUNBUFFERED # with it `print` writes twice, and a stream has an event for each write
mkfifo "$folder/in" "$folder/in2"
export HOME="$folder/home" TMPDIR="$folder" CLAUDE_CODE_SESSION_ID="bridge-$$"
"$binary" server <"$folder/in" >"$folder/out" &
server=$!
exec 3>"$folder/in"
CLAUDE_CODE_SESSION_ID="other-$$" "$binary" server <"$folder/in2" >"$folder/out2" 2>/dev/null 3>&- &
other=$!
exec 4>"$folder/in2"
trap 'exec 3>&- 4>&-; wait $server $other' EXIT
socket=/tmp/python-interpreter-$$.sock
say() { # to a server: its socket, its answers, the value that x is to have
    echo '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute","arguments":{"code":"x = '"$3"'"}}}'
    for _ in $(seq 500); do [ -S "$1" ] && grep -q isError "$2" && break; sleep 0.02; done
}
say "$socket" "$folder/out" 5 >&3
say "/tmp/python-interpreter-$$-$other.sock" "$folder/out2" 6 >&4

passed=0
expect() { # a name, what is expected somewhere in what came, what came
    case $3 in *"$2"*) passed=$((passed + 1)) ;; *) printf '%s: expected %s, got:\n%s\n' "$1" "$2" "$3"; exit 1 ;; esac
}

request=$'POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: 21\r\n\r\n{"code":"print(x*2)"}'
curled() { curl -sS --max-time 20 --unix-socket "$socket" "$@"; }
# Assigned first, for then the end of an answer that curl finds wrong fails; bytes are not characters.
came=$(curled http://localhost/execute -d '{"code": "print(x*2, \"€ €\")"}')
expect curl '"result":"10 € €"}' "$came"
came=$(curled -N http://localhost/execute -d '{"code": "print(x*2, \"€ €\")", "stream": true}')
expect 'curl, streaming' '{"stdout":"10 € €\n"}' "$came"
expect 'curl, an error' '404' "$(curled -o /dev/null -w '%{http_code}' http://localhost/nothing)"
head -c 2000000 /dev/zero | tr '\0' ' ' >"$folder/blanks"
came=$( (printf '{"code": "print(x*2)"'; cat "$folder/blanks"; printf '}') |
    curled --expect100-timeout 60 http://localhost/execute -H 'Expect: 100-continue' --data-binary @-)
expect 'curl, 100-continue' '"result":"10"' "$came"
expect socat '"result":"10"' "$(printf '%s' "$request" | socat -t 20 - "UNIX-CONNECT:$socket")"
expect nc '"result":"10"' "$(printf '%s' "$request" | nc -w 20 -N -U "$socket")"
expect 'the client' '10' "$("$binary" client -c 'print(x*2)')"
if [ "$(id -u)" = 0 ]; then
    # Its own PIDs tell it nothing of the host: the session's id does.
    expect 'the client in a PID namespace' '10' "$(unshare --fork --pid --mount-proc "$binary" client -c 'print(x*2)')"
    export CLAUDE_CODE_SESSION_ID="other-$$"
    expect 'the client of another session there' '12' "$(unshare --fork --pid --mount-proc "$binary" client -c 'print(x*2)')"
fi
echo "$passed bridge checks passed"
