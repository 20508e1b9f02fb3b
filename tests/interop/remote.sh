#!/usr/bin/env bash
# The README's recipe for a server over ssh, against an sshd on loopback with a throwaway key.
# usage: remote.sh PATH-TO-MCP-PY FOLDER
set -euo pipefail
binary=$(realpath "$1") folder=$2 port=$((20000 + $$ % 20000))
mkdir -p "$folder"
ssh-keygen -q -t ed25519 -N '' -f "$folder/host"
ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
mkdir -p /run/sshd
cat >"$folder/sshd_config" <<CONFIG
ListenAddress 127.0.0.1:$port
HostKey $folder/host
AuthorizedKeysFile $folder/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
CONFIG
"$(command -v sshd || echo /usr/sbin/sshd)" -D -e -f "$folder/sshd_config" 2>"$folder/log" &
sshd=$!
trap 'kill $sshd; wait $sshd 2>/dev/null || true' EXIT
for _ in $(seq 200); do grep -q 'Server listening' "$folder/log" && break; sleep 0.05; done
mkdir -p "$folder/bin" "$folder/home"
ln -sf "$binary" "$folder/bin/mcp-py-server"
passed=0
expect() { # a name, what is expected somewhere in what came, what came
    case $3 in *"$2"*) passed=$((passed + 1)) ;; *) printf '%s: expected %s, got:\n%s\n' "$1" "$2" "$3"; cat "$folder/log"; exit 1 ;; esac
}
box() {
    timeout 60 ssh -q -T -p "$port" -i "$folder/key" -o BatchMode=yes -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes 127.0.0.1 "$@"
}
answer=$(printf '%s\n' \
    '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"remote","version":"1"}}}' \
    '{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"execute","arguments":{"code":"import os; os.environ[\"SSH_CONNECTION\"].split()[2], 6 * 7"}}}' \
    '{"jsonrpc":"2.0","id":3,"method":"tools/list"}' | box HOME="$folder/home" MCP_PY_PYTHON="${MCP_PY_PYTHON:-}" "$folder/bin/mcp-py-server")
expect 'an answer from there' "('127.0.0.1', 42)" "$answer"
expect 'all the tools' 'list_interpreters' "$answer"
case $answer in *'<<'*) echo "the model here was sent to the client there"; exit 1 ;; *) passed=$((passed + 1)) ;; esac
# The end of the connection is the end of the server there.
mark="remote-$$-mark" began=$SECONDS
{ printf '%s\n' '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute","arguments":{"code":"while True: pass"}}}'; sleep 1; } |
    box MARK="$mark" HOME="$folder/home" MCP_PY_PYTHON="${MCP_PY_PYTHON:-}" "$folder/bin/mcp-py-server" >/dev/null || true
[ $((SECONDS - began)) -lt 15 ] || { echo "the server stayed for $((SECONDS - began)) s"; exit 1; }
# What is printed counts: processes that go meanwhile make grep fail.
left() { grep -lsz "MARK=$mark" /proc/[0-9]*/environ || true; }
for _ in $(seq 100); do [ -n "$(left)" ] || break; sleep 0.05; done
if [ -n "$(left)" ]; then printf 'left running: %s\n' "$(left)"; exit 1; fi
passed=$((passed + 1))
echo "$passed remote checks passed"
