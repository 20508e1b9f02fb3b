"""The official Python SDK's client against the server, over stdio, in both of its modes.

    python3 sdk.py SERVER RECORDINGS        needs PyPI `mcp` 2.3.0; RECORDINGS is a folder, made if missing

The SDK's `Client` chooses its era by `mode`: "auto" asks `server/discover` first and stays at 2026-07-28 where that is
answered; "legacy" sends `initialize` and nothing else. Every line of both is recorded through record.py, for
validate.py. Each check prints a line; the first that fails ends the run with exit 1 and says what came.
"""
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
import warnings

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError

HERE = os.path.dirname(os.path.abspath(__file__))
TOOLS = ["execute", "wait", "interrupt", "reset", "list_vars", "get_session_info", "add_interpreter", "stop_interpreter",
         "list_interpreters"]
VERSIONS = {"auto": "2026-07-28", "legacy": "2025-11-25"}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
RUN_SECONDS_MAX = 120  # one mode, start to end
FREE_SECONDS_MAX = 3.0  # from a cancellation to the answer of the next cell, on a loaded machine
CLOSE_SECONDS_MAX = 2.5  # from closing stdin until the server has gone

passed, failed = [], []


def check(what, good, came=None):
    if not good:
        failed.append(what)
        print("FAILED: %s\n%s" % (what, "" if came is None else came), flush=True)
        raise AssertionError(what)
    passed.append(what)
    print("  ok: %s" % what, flush=True)


def text(result):
    return "".join(block.text for block in result.content if block.type == "text")


async def eventually(what, condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    check(what, condition(), "not within %g s" % seconds)


class Session:
    """What the checks of one mode share: the client, and a folder that cells announce themselves in."""

    def __init__(self, client, mode, folder):
        self.client, self.mode, self.folder = client, mode, folder

    async def execute(self, code, **arguments):
        return await self.client.call_tool("execute", dict(arguments, code=code))

    def announcing(self, name):
        """A line of code that makes a file when the cell runs, and how to see it."""
        path = os.path.join(self.folder, name)
        return "open(%r, 'w').close()\n" % path, lambda: os.path.exists(path)

    async def handshake(self):
        check("the version is %s" % VERSIONS[self.mode], self.client.protocol_version == VERSIONS[self.mode],
              self.client.protocol_version)
        check("the server names itself", self.client.server_info.name == "python-interpreter", self.client.server_info)
        check("instructions come along", self.client.instructions, self.client.instructions)

    async def list_tools(self):
        listed = await self.client.list_tools()
        check("nine tools, in order", [tool.name for tool in listed.tools] == TOOLS, [t.name for t in listed.tools])
        check("each has a title and a description", all(t.title and t.description for t in listed.tools), listed)

    async def cells(self):
        result = await self.execute("1+1")
        check("1+1 is 2", (text(result), result.is_error) == ("2", False), result)
        check("execute has no structured content", result.structured_content is None, result)
        await self.execute("x = 5")
        check("variables persist", text(await self.execute("print(f'x = {x}')")) == "x = 5")
        check("list_vars lists it", text(await self.client.call_tool("list_vars", {})) == "x")
        picture = await self.execute("import base64\nclass P:\n    def _repr_png_(self): return base64.b64decode(%r)\nP()" % PNG)
        images = [(block.mime_type, block.data) for block in picture.content if block.type == "image"]
        check("a picture is an image block", images == [("image/png", PNG)], picture)

    async def errors(self):
        result = await self.execute("print('before')\n1/0")
        check("an exception is an error", result.is_error, result)
        check("it keeps its output and names its line",
              text(result).startswith("before") and "ZeroDivisionError" in text(result) and "line 2" in text(result),
              text(result))
        check("wrong arguments are an error result", (await self.client.call_tool("execute", {"code": 1})).is_error)
        try:
            result = await self.client.call_tool("no_such_tool", {})
            check("an unknown tool is -32602", False, result)
        except MCPError as error:
            check("an unknown tool is -32602", error.code == -32602, error)

    async def at_once(self):
        results = await asyncio.gather(*[self.execute("print(%d)" % n) for n in range(3)])
        check("three cells at once, each its own answer", [text(r) for r in results] == ["0", "1", "2"], results)

    async def cancel(self):
        code, started = self.announcing("cancelled")
        call = asyncio.ensure_future(self.execute(code + "y = 6\nwhile True: pass"))
        await eventually("the cell to be cancelled starts", started)
        begin = time.monotonic()
        call.cancel()
        try:
            await call
        except asyncio.CancelledError:
            pass
        answer = text(await self.execute("print(y)"))
        seconds = time.monotonic() - begin
        check("a cancelled task frees the interpreter at once", seconds < FREE_SECONDS_MAX, "%.3f s" % seconds)
        check("and the variables are kept", answer.rstrip().endswith("6"), answer)
        print("      from cancel to the next answer: %.0f ms" % (seconds * 1000))

    async def time_outs(self):
        result = await self.execute("z = 7\nwhile True: pass", timeout=1)
        check("a time-out is an error that says so", result.is_error and "[mcp-py: " in text(result), text(result))
        check("and says where", "line 2" in text(result), text(result))
        check("and keeps the variables", text(await self.execute("z")).rstrip().endswith("7"))
        code, started = self.announcing("given up")
        try:
            await self.client.call_tool("execute", {"code": code + "while True: pass"}, read_timeout_seconds=1.0)
            check("the client's own time-out is raised", False)
        except MCPError as error:
            check("the client's own time-out is raised", started(), error)
        begin = time.monotonic()
        await self.execute("z")
        seconds = time.monotonic() - begin
        check("and frees the interpreter", seconds < FREE_SECONDS_MAX, "%.3f s" % seconds)

    async def progress(self):
        seen = []

        async def on_progress(progress, total, message):
            seen.append((progress, total, message))

        code = "import time\nfor n in range(24):\n    print('step', n)\n    time.sleep(0.1)\n"
        await self.client.call_tool("execute", {"code": code}, progress_callback=on_progress)
        check("progress arrives", 1 <= len(seen) <= 4, seen)
        check("it rises", all(a[0] < b[0] for a, b in zip(seen, seen[1:])), seen)
        check("it tells the last line of output", any("step" in (message or "") for _p, _t, message in seen), seen)

    async def structured(self):
        info = (await self.client.call_tool("get_session_info", {})).structured_content
        check("get_session_info is structured", info and info["server_pid"] > 0 and "uptime" in info, info)
        added = await self.client.call_tool("add_interpreter", {"name": "second", "python_path": sys.executable})
        check("add_interpreter is structured", not added.is_error and added.structured_content["name"] == "second", added)
        check("it executes", text(await self.execute("6*7", interpreter="second")) == "42")
        listed = (await self.client.call_tool("list_interpreters", {})).structured_content["result"]
        running = [entry["name"] for entry in listed if entry["state"] == "running"]
        check("list_interpreters shows both", {"builtin", "second"} <= set(running), listed)
        stopped = await self.client.call_tool("stop_interpreter", {"name": "second"})
        check("it stops", "stopped" in text(stopped), stopped)
        reset = await self.client.call_tool("reset", {})
        check("reset counts", text(reset).startswith("Scope cleared ("), reset)

    async def of_the_era(self):
        if self.mode == "legacy":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                await self.client.send_ping()
            check("ping is answered", True)
        else:
            async with self.client.listen(tools_list_changed=True) as subscription:
                granted = subscription.honored.model_dump(exclude_none=True)
                check("a subscription is acknowledged, with nothing granted", not granted, granted)
                check("cells run beside it", text(await self.execute("2+2")) == "4")
            check("and after it", text(await self.execute("3+3")) == "6")


def cancelled_and_answered(record):
    """The ids of the recorded requests that were cancelled, and of those that were answered all the same."""
    with open(record, encoding="ascii") as file:
        entries = [json.loads(line) for line in file]
    told = {way: [json.loads(entry["line"]) for entry in entries if entry["dir"] == way] for way in ("in", "out")}
    cancelled = [one["params"]["requestId"] for one in told["in"] if one.get("method") == "notifications/cancelled"]
    return cancelled, [one["id"] for one in told["out"] if one.get("id") in cancelled]


async def run(mode, server, record, folder):
    home = os.path.join(folder, "home")
    os.makedirs(home)
    parameters = StdioServerParameters(
        command=sys.executable,
        args=[os.path.join(HERE, "record.py"), record, server, "server"],
        env={"HOME": home, "TMPDIR": folder, "MCP_PY_PYTHON": sys.executable},
        cwd=home,
    )
    async with Client(stdio_client(parameters), mode=mode, read_timeout_seconds=30) as client:
        session = Session(client, mode, folder)
        await session.handshake()
        await session.list_tools()
        await session.cells()
        await session.errors()
        await session.at_once()
        await session.cancel()
        await session.time_outs()
        await session.progress()
        await session.structured()
        await session.of_the_era()
        begin = time.monotonic()
    seconds = time.monotonic() - begin
    check("the server goes when its stdin closes", seconds < CLOSE_SECONDS_MAX, "%.3f s" % seconds)
    cancelled, answered = cancelled_and_answered(record)
    check("what was cancelled is not answered", len(cancelled) >= 2 and not answered, (cancelled, answered))
    # The next server would take it away.
    left = [name for name in os.listdir(folder) if name.startswith("python-interpreter-mcp-py-")]
    check("and leaves no folder behind", not left, left)
    parameters.args[1] = record + ".again.jsonl"
    async with Client(stdio_client(parameters), mode=mode, read_timeout_seconds=30) as client:
        check("a new connection is a new session", text(await Session(client, mode, folder).execute("'x' in globals()")) == "False")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    server, recordings = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    os.makedirs(recordings, exist_ok=True)
    for mode in VERSIONS:
        print("mode %s" % mode, flush=True)
        folder = tempfile.mkdtemp(prefix="mcp-py-sdk-")
        try:
            asyncio.run(asyncio.wait_for(
                run(mode, server, os.path.join(recordings, "sdk-%s.jsonl" % mode), folder), RUN_SECONDS_MAX))
        except Exception:
            if not failed:
                raise
            sys.exit(1)  # said above
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print("%d checks passed" % len(passed))


main()
