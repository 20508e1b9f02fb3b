#!/usr/bin/env bash
# The MCP Inspector's command line against the server.
# usage: inspector.sh MODULES PATH-TO-MCP-PY FOLDER      MODULES is where npm installed @modelcontextprotocol/inspector
set -euo pipefail
modules=$1 binary=$(realpath "$2") folder=$3
mkdir -p "$folder"
export HOME="$folder" TMPDIR="$folder"
inspect() {
    (cd "$modules" && timeout 60 node_modules/.bin/mcp-inspector --cli -e MCP_PY_PYTHON="${MCP_PY_PYTHON:-python3}" -e HOME="$folder" \
        "$binary" server "$@" </dev/null)
}
passed=0
expect() { # a name, what is expected somewhere in what came, what came
    case $3 in *"$2"*) passed=$((passed + 1)) ;; *) printf '%s: expected %s, got:\n%s\n' "$1" "$2" "$3"; exit 1 ;; esac
}
tools=$(inspect --method tools/list)
for name in execute reset list_vars get_session_info add_interpreter stop_interpreter list_interpreters; do
    expect "$name is listed" "\"name\": \"$name\"" "$tools"
done
expect 'a cell' '"text": "42"' "$(inspect --method tools/call --tool-name execute --tool-arg 'code=print(6*7)')"
expect 'an error' '"isError": true' "$(inspect --method tools/call --tool-name execute --tool-arg 'code=1/0' || true)"
expect 'a structured result' '"structuredContent"' "$(inspect --method tools/call --tool-name get_session_info)"
expect 'a wrong argument' 'must be a string' "$(inspect --method tools/call --tool-name execute --tool-arg 'code=5' 2>&1 || true)"
echo "$passed Inspector checks passed"
