"""The official Python SDK before 2.0 against the server, over stdio: `initialize`, and no other way.

    python3 sdk1.py SERVER RECORDINGS        needs PyPI `mcp` 1.30.0

Recorded through record.py, for validate.py. Each check prints a line; the first that fails ends the run with exit 1.
"""
import asyncio
import datetime
import os
import shutil
import sys
import tempfile

from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import McpError

HERE = os.path.dirname(os.path.abspath(__file__))
PICTURE = ("import base64\nclass P:\n    def _repr_png_(self): return base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAf"
           "FcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')\nP()")
passed = 0


def check(what, good, came=None):
    global passed
    print("  %s: %s" % ("ok" if good else "FAILED", what), flush=True)
    if not good:
        print(came)
        os._exit(1)
    passed += 1


def text(result):
    return "".join(block.text for block in result.content if block.type == "text")


async def run(server, record, folder):
    parameters = StdioServerParameters(
        command=sys.executable, args=[os.path.join(HERE, "record.py"), record, server, "server"], cwd=folder,
        env={"HOME": folder, "TMPDIR": folder, "MCP_PY_PYTHON": sys.executable, "MCP_PY_TIMEOUT": "3"})
    async with stdio_client(parameters) as (incoming, outgoing), ClientSession(incoming, outgoing) as client:
        hello = await client.initialize()
        check("the newest legacy version", hello.protocolVersion == types.LATEST_PROTOCOL_VERSION, hello)
        execute = lambda code, **given: client.call_tool("execute", dict(given, code=code))
        tools = (await client.list_tools()).tools
        check("nine tools", len(tools) == 9, tools)
        check("1 + 1 is 2", text(await execute("1 + 1")) == "2")
        await execute("x = 5")
        check("variables persist", text(await execute("x * 2")) == "10")
        failed = await execute("print('before')\n1/0")
        check("an exception is an error with its output", failed.isError and text(failed).startswith("before\nTraceback"), failed)
        picture = await execute(PICTURE)
        check("a picture is an image block", [block.mimeType for block in picture.content if block.type == "image"] == ["image/png"], picture)
        info = await client.call_tool("get_session_info", {})
        check("structured results fit their schema", info.structuredContent["server_pid"] > 0, info)
        seen = []

        async def on_progress(progress, total, message):
            seen.append((progress, message))

        await client.call_tool("execute", {"code": "import time\nfor n in range(24):\n    print('step', n)\n    time.sleep(0.1)"},
                               progress_callback=on_progress)
        check("progress rises and tells the last line", seen and seen == sorted(seen) and "step" in seen[-1][1], seen)
        late = await execute("z = 7\nwhile True: pass", timeout=0.5)
        check("a time-out says where", late.isError and "timeout of 0.5 s" in text(late) and "line 2" in text(late), late)
        check("and keeps the variables", text(await execute("z")) == "7")
        try:
            await client.call_tool("execute", {"code": "while True: pass"}, read_timeout_seconds=datetime.timedelta(seconds=0.5))
            check("the client's own time-out is raised", False)
        except McpError:
            check("the client's own time-out is raised", True)
        interrupt = await client.call_tool("reset", {})  # waits for the cell that nobody waits for; this SDK sends no cancellation
        check("what waits behind it is not lost", "Scope cleared" in text(interrupt) or interrupt.isError, interrupt)
        await client.send_ping()
        check("ping is answered", True)


def main():
    server, recordings = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    os.makedirs(recordings, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="mcp-py-sdk-")
    asyncio.run(asyncio.wait_for(run(server, os.path.join(recordings, "python-1.jsonl"), folder), 120))
    left = [name for name in os.listdir(folder) if name.startswith("python-interpreter-mcp-py-")]
    check("nothing is left behind", not left, left)
    shutil.rmtree(folder, ignore_errors=True)
    print("%d checks passed" % passed)


main()
