"""A training loop of three minutes, as the official Python SDK's clients drive it.

    python3 training.py SERVER RECORDINGS        needs PyPI `mcp` 2.3.0 or 1.30.0

The SDK calls itself `mcp`, and for that the server's own limit of a call holds: 50 s. So `execute` is answered before its cell
ends, and `wait` has the rest. The SDK from 2.0 is driven in its two modes. Beside each long loop, short ones in a server whose
limit is 3 s are cancelled, interrupted, timed out and left behind. All of it runs at the same time. Every line is recorded for
validate.py. Each check prints a line; the first that fails ends the run with exit 1.
"""
import asyncio
import contextlib
import importlib.metadata
import os
import re
import sys
import tempfile
import time

from hosts import check, failed, passed
from mcp.client.stdio import StdioServerParameters, stdio_client
from training_loop import (CANCELLED, ENDED_ELSEWHERE, EPOCHS, INTERRUPTED, LATE_SECONDS_MAX, RUNS_ON, STILL_RUNS, TIMED_OUT, Account,
                           check_gone, ended, is_out, loop)

VERSION = importlib.metadata.version("mcp")
OLD = VERSION.startswith("1.")
if OLD:
    from mcp import ClientSession, types
else:
    from mcp.client.client import Client

HERE = os.path.dirname(os.path.abspath(__file__))
MODES = ["initialize"] if OLD else ["auto", "legacy"]
EPOCHS_SHORT = 10
RUN_SECONDS_MAX = EPOCHS + 60
DEADLINE = 30  # seconds for anything that a short loop does
LIMIT = 50  # seconds of a call, of a client that the server does not know by name
LIMIT_SHORT = 3


@contextlib.asynccontextmanager
async def connected(mode, parameters):
    if OLD:
        async with stdio_client(parameters) as (incoming, outgoing), ClientSession(incoming, outgoing) as client:
            await client.initialize()
            yield client
    else:
        async with Client(stdio_client(parameters), mode=mode) as client:
            yield client


class Session:
    """A client, its server, and a folder for both."""

    def __init__(self, client, who, folder):
        self.client = client
        self.who = who
        self.folder = folder

    def mark(self, name):
        return os.path.join(self.folder, name)

    async def call(self, tool, **arguments):
        """The text of a result, and whether it is an error."""
        result = await self.client.call_tool(tool, arguments)
        text = "".join(block.text for block in result.content if block.type == "text")
        return text, result.model_dump(by_alias=True)["isError"]

    async def begin(self, tool, **arguments):
        call = asyncio.ensure_future(self.call(tool, **arguments))
        await asyncio.sleep(0)
        return call

    async def cancel(self, call):
        """By a cancelled task. Before 2.0 that told the server nothing, so hosts send the notification themselves."""
        if OLD:
            told = types.CancelledNotificationParams(requestId=self.client._request_id - 1)
            cancelled = types.CancelledNotification(method="notifications/cancelled", params=told)
            await self.client.send_notification(types.ClientNotification(cancelled))
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call

    async def printed(self, name, epoch):
        end = time.monotonic() + DEADLINE
        while not is_out(self.mark(name), epoch):
            if time.monotonic() > end:
                check("%s: line %d of the loop that is %s" % (self.who, epoch, name), False, "not within %g s" % DEADLINE)
            await asyncio.sleep(0.05)

    async def check_losses(self, account):
        """The variables are those of a loop that printed just these lines, and nothing is told again."""
        came = await self.call("execute", code="len(losses)")
        check("%s: the variables are there, and no more lines" % account.who, came == (str(account.lines), False), came)


async def long_loop(session):
    account = Account(session.who)
    begin = time.monotonic()
    text, error = await session.call("execute", code=loop(EPOCHS, session.mark("long")))
    seconds = time.monotonic() - begin
    in_time = LIMIT <= seconds < LIMIT + LATE_SECONDS_MAX
    check("%s: answered after %d s" % (session.who, LIMIT), in_time and not error, (seconds, text))
    account.hear("execute", text, STILL_RUNS)
    check("%s: what was printed by then" % session.who, account.lines >= LIMIT - LATE_SECONDS_MAX, text)
    waits = 0
    while account.lines < EPOCHS:
        waits += 1
        begin = time.monotonic()
        text, error = await session.call("wait")
        in_time = time.monotonic() < begin + LIMIT + LATE_SECONDS_MAX
        check("%s: wait %d is no error, and in time" % (session.who, waits), not error and in_time, text)
        account.hear("wait %d" % waits, text, "%s|%s" % (RUNS_ON, ended(EPOCHS)))
    check("%s: the last answer has the value" % session.who, re.search(ended(EPOCHS), text), text)
    check("%s: three waits" % session.who, waits == 3, waits)
    account.close(EPOCHS)
    await session.check_losses(account)
    text, error = await session.call("wait")
    check("%s: one more wait has nothing to wait for" % session.who, text.startswith("[mcp-py: nothing runs") and not error, text)


async def cancelled(session):
    account = Account(session.who + ", cancelled")
    call = await session.begin("execute", code=loop(EPOCHS_SHORT, session.mark("cancelled")), wait=DEADLINE)
    await session.printed("cancelled", 2)
    await session.cancel(call)
    text, error = await session.call("execute", code="len(losses)")
    account.hear("the next answer", text, CANCELLED)
    check("%s: what it had printed, and the variable" % account.who, text.endswith("\n%d" % account.lines) and account.lines >= 2, text)
    await session.check_losses(account)


async def wait_cancelled(session):
    account = Account(session.who + ", its wait cancelled")
    text, _ = await session.call("execute", code=loop(EPOCHS_SHORT, session.mark("waited for")))
    account.hear("execute", text, STILL_RUNS)
    call = await session.begin("wait", seconds=DEADLINE)
    await session.printed("waited for", account.lines + 2)
    await session.cancel(call)
    text, error = await session.call("wait", seconds=DEADLINE)
    account.hear("the next wait", text, ended(EPOCHS_SHORT))
    account.close(EPOCHS_SHORT)
    await session.check_losses(account)


async def interrupted(session):
    account = Account(session.who + ", interrupted")
    text, _ = await session.call("execute", code=loop(EPOCHS_SHORT, session.mark("interrupted")))
    account.hear("execute", text, STILL_RUNS)
    await session.printed("interrupted", account.lines + 1)
    text, error = await session.call("interrupt")
    account.hear("interrupt", text, INTERRUPTED)
    check("%s: in the middle" % account.who, 3 <= account.lines < EPOCHS_SHORT, text)
    check("%s: an error" % account.who, error, text)
    await session.check_losses(account)


async def interrupted_beside_wait(session):
    account = Account(session.who + ", interrupted beside a wait")
    text, _ = await session.call("execute", code=loop(EPOCHS_SHORT, session.mark("waited for beside")))
    account.hear("execute", text, STILL_RUNS)
    call = await session.begin("wait", seconds=DEADLINE)
    await session.printed("waited for beside", account.lines + 1)
    told, _ = await session.call("interrupt")
    text, error = await call
    account.hear("the wait", text, INTERRUPTED)
    check("%s: an error" % account.who, error, text)
    check("%s: interrupt says so" % account.who, re.fullmatch(ENDED_ELSEWHERE, told), told)
    await session.check_losses(account)


async def timed_out(session):
    account = Account(session.who + ", timed out")
    text, error = await session.call("execute", code=loop(EPOCHS_SHORT, session.mark("timed out")), timeout=4)
    account.hear("execute", text, STILL_RUNS)
    text, error = await session.call("wait")
    account.hear("wait", text, TIMED_OUT)
    check("%s: in the middle" % account.who, 2 <= account.lines <= 5 and error, text)
    await session.check_losses(account)


async def left_behind(session):
    """Leaves a loop that goes on by itself."""
    text, error = await session.call("execute", code=loop(EPOCHS_SHORT, session.mark("left behind")), wait=1)
    check("%s, left behind: the loop goes on" % session.who, "goes on by itself" in text and not error, text)
    await session.printed("left behind", 2)


async def run(mode, kind, server, recordings, scenarios, **env):
    who = "mcp %s %s, %s" % (VERSION, mode, kind)
    with tempfile.TemporaryDirectory(prefix="mcp-py-training-") as folder:
        record = os.path.join(recordings, "training-python-%s-%s.jsonl" % (mode, kind))
        parameters = StdioServerParameters(
            command=sys.executable, args=[os.path.join(HERE, "record.py"), record, server, "server"], cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "MCP_PY_PYTHON": sys.executable, **env})
        async with connected(mode, parameters) as client:
            session = Session(client, who, folder)
            for scenario in scenarios:
                await scenario(session)
            told_to_go = time.monotonic()
        check_gone(who, folder, told_to_go)


async def everything(server, recordings):
    short = [cancelled, wait_cancelled, interrupted, interrupted_beside_wait, timed_out, left_behind]
    await asyncio.gather(*[
        one for mode in MODES for one in (
            run(mode, "long", server, recordings, [long_loop]),
            run(mode, "short", server, recordings, short, MCP_PY_WAIT=str(LIMIT_SHORT)))])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    server, recordings = (os.path.abspath(path) for path in sys.argv[1:3])
    os.makedirs(recordings, exist_ok=True)
    try:
        asyncio.run(asyncio.wait_for(everything(server, recordings), RUN_SECONDS_MAX))
    except BaseException:
        if not failed:
            raise
        sys.exit(1)  # said above
    print("%d training checks passed" % len(passed))


main()
