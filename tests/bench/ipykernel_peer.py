"""ipykernel behind the same protocol, to stand beside ours: bench.py --peer ipykernel='PYTHON /…/tests/bench/ipykernel_peer.py'.

PYTHON needs PyPI `ipykernel`. As little as bench.py asks: initialize, tools/list, and one tool that runs code through
jupyter_client and answers with what the kernel printed and its result.
"""
import json
import subprocess
import sys

from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(kernel_name="python3", stdout=subprocess.DEVNULL)  # ours carries the protocol
TOOL = {"name": "execute", "inputSchema": {"type": "object", "properties": {"code": {"type": "string"}}}}


def run(code):
    parts = []

    def take(message):
        content = message["content"]
        parts.append(content.get("text") or content.get("data", {}).get("text/plain", ""))

    client.execute_interactive(code, output_hook=take, store_history=False)
    return "".join(parts)


for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "ipykernel", "version": "0"}}
    if request["method"] == "tools/list":
        result = {"tools": [TOOL]}
    elif request["method"] == "tools/call":
        result = {"content": [{"type": "text", "text": run(request["params"]["arguments"]["code"])}], "isError": False}
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
manager.shutdown_kernel(now=True)
