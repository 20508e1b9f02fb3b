#!/usr/bin/env bash
# The training loop of three minutes in all clients at the same time, which takes as long as the slowest of them.
#
#     bash training.sh SERVER RECORDINGS PLACE PYTHON RMCP
#
# PLACE has what README.md has installed for the single scripts: venv, venv1, npm, claude, claude-now, codex. PYTHON runs the cells
# where a client is no Python, and RMCP is the program `training` of the crate rmcp. Ends with exit 1 where one of them failed.
set -euo pipefail
here=$(dirname "$0")
server=$1
recordings=$2
place=$3
python=$4
rmcp=$5
mkdir -p "$recordings"
tmp=$(mktemp -d)
names=()
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; rm -rf "$tmp"' EXIT
mkdir "$tmp/said" "$tmp/rmcp"

part() { # NAME COMMAND [WORD ...]
    names+=("$1")
    timeout -k 10 300 "${@:2}" >"$tmp/said/$1" 2>&1 &
    pids+=($!)
}

part python "$place/venv/bin/python" "$here/training.py" "$server" "$recordings"
part python-1 "$place/venv1/bin/python" "$here/training.py" "$server" "$recordings"
part typescript node "$here/training.mjs" "$place/npm" "$python" "$server" "$recordings"
part rmcp "$rmcp" "$python" "$here/record.py" "$server" "$recordings" "$tmp/rmcp"
part claude "$python" "$here/training_claude.py" "$place/claude" "$server" "$recordings"
part claude-now "$python" "$here/training_claude.py" "$place/claude-now" "$server" "$recordings"
part codex "$python" "$here/training_codex.py" "$place/codex" "$server" "$recordings"

failed=()
for number in "${!pids[@]}"; do
    printf '%s\n' "${names[number]}"
    wait "${pids[number]}" || failed+=("${names[number]}")
    cat "$tmp/said/${names[number]}"
done
pids=()
[ "${#failed[@]}" = 0 ] || { printf 'FAILED: %s\n' "${failed[*]}"; exit 1; }
awk '/ training checks passed$/ { n += $1 } END { print n " checks passed in all" }' "$tmp"/said/*
