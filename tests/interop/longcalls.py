"""Calls that take long, interrupted after 2 s: what is answered and when, what is kept, and what ipykernel does beside it.

    python3 longcalls.py SERVER PYTHON        PYTHON has PyPI numpy, pandas, scikit-learn, ipykernel and jupyter_client

Each cell runs with a timeout of 2 s. The answer must say what happened, must come soon, and must not cost the process or a
variable. Where the cell goes on, in C code that does not heed interrupts, it is waited for; the one that never ends must be refused
company and end by a restart. Then the same cell runs in ipykernel, driven by jupyter_client, which interrupts it after 2 s too.
The sizes are measured first, so that the long calls take about LONG_SECONDS on any machine. It takes about six minutes.
"""
import atexit
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

TIMEOUT = 2  # seconds until each cell is interrupted
ANSWERED_SECONDS_MAX = 14.0  # the timeout, 10 s in which the cell may stop, and a loaded machine
LONG_SECONDS = 22.0  # what a call that heeds no interrupt is to take
ENDED_SECONDS_MAX = 180.0  # of such a call, from its interrupt
KERNEL_SECONDS_MAX = 40.0  # what ipykernel gets for a cell
DEADLINE = 90.0  # seconds for any other answer
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
NOT_STOPPED = "but it has not stopped"
KEPT = "the variables are kept"


class Cell:
    """A cell, what is done before it, and what is known of it."""

    def __init__(self, name, code, setup="", probe=None, power=1, endless=False, in_kernel=None):
        self.name = name
        self.code = code
        self.setup = setup
        self.probe = probe  # a size that takes a moment; then `code` has %d for one that takes long
        self.power = power  # of the size, to which the time grows
        self.endless = endless
        self.in_kernel = in_kernel  # where ipykernel's cell has to differ


MERGE = """
import numpy, pandas
random = numpy.random.default_rng(0)
def frame(column):
    keys = random.integers(0, 1_500_000, 3_000_000).astype(str)
    return pandas.DataFrame({"key": keys, column: random.random(3_000_000)})
left = frame("left")
right = frame("right")"""
SAMPLES = """
import numpy
from sklearn.svm import SVC
random = numpy.random.default_rng(0)
samples = random.random((30_000, 20))
labels = random.integers(0, 2, 30_000)"""
COUNT = "SELECT 1 UNION ALL SELECT number + 1 FROM numbers LIMIT %d"
SWALLOW = """
import time
while True:
    try: time.sleep(0.1)
    except BaseException: pass"""
POOL = "with %s(4) as executor: list(executor.map(time.sleep, [12] * 4))"
POOLS = "import time\nfrom concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor"
CELLS = [
    Cell("numpy: linalg.svd", "parts = numpy.linalg.svd(numpy.random.default_rng(0).random((%d,) * 2))", "import numpy", 1200, 3),
    Cell("pandas: many-to-many merge", "merged = left.merge(right, on='key', sort=True)", MERGE),
    Cell("sklearn: SVC.fit", "model = SVC()\nfitted = model.fit(samples[:%d], labels[:%d])", SAMPLES, 4000, 2.3),
    Cell("sum(range(n))", "total = sum(range(%d))", probe=20_000_000),
    Cell("sqlite: recursive query", "found = base.execute('WITH RECURSIVE numbers(number) AS (" + COUNT + ") SELECT count(*) FROM numbers')"
         ".fetchall()", "import sqlite3\nbase = sqlite3.connect(':memory:')", 2_000_000),
    Cell("ThreadPoolExecutor", POOL % "ThreadPoolExecutor", POOLS),
    Cell("ProcessPoolExecutor", POOL % "ProcessPoolExecutor", POOLS),
    Cell("os.system, trap '' INT", "os.system(\"trap '' INT; sleep 20\")", "import os"),
    Cell("except BaseException, for ever", SWALLOW, endless=True),
    # A kernel runs its cells in a loop, where asyncio.run is refused.
    Cell("asyncio.run(to_thread(…))", "asyncio.run(asyncio.to_thread(time.sleep, 12))", "import asyncio, time",
         in_kernel="await asyncio.to_thread(time.sleep, 12)"),
]
passed = 0


def check(what, good, came=None):
    global passed
    if not good:
        sys.exit("FAILED: %s\n%s" % (what, str(came)[:3000]))
    passed += 1
    print("  ok: %s" % what, flush=True)


class Lines:
    """A program that answers each JSON line with one."""

    def __init__(self, command, env, folder):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=folder)
        self.answers = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put(None)

    def ask(self, message, seconds=DEADLINE):
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()
        try:
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            sys.exit("FAILED: no answer within %g s\n%s" % (seconds, message))
        if answer is None:
            sys.exit("FAILED: it ended instead of answering\n%s" % message)
        return answer

    def end(self):
        self.process.stdin.close()
        self.process.wait(DEADLINE)


class Server(Lines):
    last = 0

    def call(self, tool, **arguments):
        """The text of a tool's answer, and whether it is an error."""
        self.last += 1
        message = {"jsonrpc": "2.0", "id": self.last, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        answer = self.ask(message)
        if answer.get("id") != self.last or "result" not in answer:
            sys.exit("FAILED: a tool is answered\n%s" % answer)
        result = answer["result"]
        return result["content"][0]["text"], result["isError"]

    def run(self, code, **arguments):
        return self.call("execute", interpreter="long", code=code, **arguments)

    def value(self, code):
        """What a cell that must succeed comes to."""
        text, failed = self.run(code)
        if failed:
            sys.exit("FAILED: %s\n%s" % (code, text))
        return text.splitlines()[-1] if text else ""

    def pid(self):
        listed = json.loads(self.call("list_interpreters")[0])["result"]
        return next(entry["pid"] for entry in listed if entry["name"] == "long")


# -- ours -------------------------------------------------------------------------------------------------------------


def sized(server, cell):
    """The cell's code, with a size that takes about LONG_SECONDS here, or more where others take the processor."""
    if cell.probe is None:
        return cell.code
    places = cell.code.count("%d")
    probe = cell.code % ((cell.probe,) * places)
    server.value("import time\nbegan = time.process_time()\n%s\nprobed = time.process_time() - began" % probe)
    size = int(cell.probe * (LONG_SECONDS / float(server.value("probed"))) ** (1 / cell.power))
    print("  %s: a size of %d" % (cell.name, size), flush=True)
    return cell.code % ((size,) * places)


def interrupted(server, cell, code):
    """Runs a cell in ours. The row's figures: seconds until the answer, until the end, and what was kept."""
    before = server.pid()
    server.value("kept = %r" % cell.name)
    began = time.monotonic()
    text, failed = server.run(code, timeout=TIMEOUT)
    answered = time.monotonic() - began
    check("%s: answered after %.1f s" % (cell.name, answered), TIMEOUT <= answered < ANSWERED_SECONDS_MAX, text)
    check("that says why, and is an error", failed and "interrupted after its timeout of %d s" % TIMEOUT in text, text)
    check("and says what became of it", (KEPT in text) != (NOT_STOPPED in text), text)
    check("the process is the same", server.pid() == before, text)
    if cell.endless:
        check("it has not stopped", NOT_STOPPED in text, text)
        return answered, restarted(server, before), "nothing: restarted"
    if NOT_STOPPED in text:
        wait_for_end(server)
        ended = time.monotonic() - began
    else:
        ended = answered
    check("a variable set before is kept", server.value("kept") == repr(cell.name))
    check("in the same process", server.pid() == before)
    return answered, ended, "process, variables"


def wait_for_end(server):
    began = time.monotonic()
    while True:
        text, _ = server.call("wait", interpreter="long", seconds=20)
        if " still runs" not in text:
            break
        if time.monotonic() - began > ENDED_SECONDS_MAX:
            check("it ends within %g s" % ENDED_SECONDS_MAX, False, text)
    check("it ends, which `wait` tells", re.search(r"\bcell \d+ ended after ", text), text)


def restarted(server, before):
    """The ways on from a cell that never ends."""
    text, failed = server.run("kept")
    refused = re.search(r"not run: cell \d+ was interrupted", text) and NOT_STOPPED in text
    check("a further cell is refused, with the reason", failed and refused, text)
    text, failed = server.call("reset", interpreter="long", restart=True)
    check("reset with restart ends it", not failed and 'Interpreter "long" restarted' in text, text)
    check("there is a new process", server.pid() not in (before, None))
    text, failed = server.run("kept")
    check("without the variables", failed and text.endswith("NameError: name 'kept' is not defined"), text)


# -- ipykernel --------------------------------------------------------------------------------------------------------


def kernel():
    """Runs cells in ipykernel: a line each, with `setup` and `code`, answered with the seconds until the end and whether `kept` is."""
    from jupyter_client.manager import KernelManager  # of PYTHON, which runs this

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a cell's processes print is none of ours
    manager = KernelManager(kernel_name="python3", transport="ipc")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(DEADLINE)
    for line in sys.stdin:
        cell = json.loads(line)
        await_reply(client, client.execute(cell["setup"] + "\nkept = 'kept'"), DEADLINE)
        began = time.monotonic()
        request = client.execute(cell["code"], stop_on_error=False)  # else the next one may be dropped
        time.sleep(TIMEOUT)
        manager.interrupt_kernel()
        reply = await_reply(client, request, KERNEL_SECONDS_MAX - TIMEOUT)
        ended = time.monotonic() - began
        if reply is None:
            manager.restart_kernel(now=True)
            client.wait_for_ready(DEADLINE)
            found = {"ended": None, "kept": False}
        else:
            asked = client.execute("", user_expressions={"kept": "kept"})
            known = await_reply(client, asked, DEADLINE)["content"]["user_expressions"]["kept"]
            found = {"ended": ended, "kept": known["status"] == "ok"}
        print(json.dumps(found), file=answers, flush=True)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def await_reply(client, request, seconds):
    """The reply to a request; None if it does not come in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            reply = client.get_shell_msg(timeout=max(0.01, end - time.monotonic()))
        except queue.Empty:
            return None
        if reply["parent_header"].get("msg_id") == request:
            return reply
    return None


# -- both -------------------------------------------------------------------------------------------------------------


def kill_marked(mark):
    """Ends what is left of this run, whoever started it."""
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and int(name) != os.getpid() and mark in open("/proc/%s/environ" % name, "rb").read():
                os.kill(int(name), signal.SIGKILL)
        except OSError:
            pass  # it has ended, or is another user's


def table(rows):
    line = "%-32s %9s %9s  %-20s %9s  %s"
    print("\ntimeout or interrupt after %d s" % TIMEOUT)
    print(line % ("cell", "answer s", "ended s", "kept", "ipykernel", "kept"))
    for name, answered, ended, kept, peer in rows:
        ended_text = "never" if ended is None else "%.1f" % ended
        peer_text = ">%.0f" % KERNEL_SECONDS_MAX if peer["ended"] is None else "%.1f" % peer["ended"]
        print(line % (name, "%.1f" % answered, ended_text, kept, peer_text, "process, variables" if peer["kept"] else "nothing: restarted"))
    print("ipykernel: seconds until the cell ended\n", flush=True)


def main():
    binary = os.path.abspath(sys.argv[1])
    python = os.path.abspath(sys.argv[2])
    began = time.monotonic()
    folder = tempfile.mkdtemp(prefix="mcp-py-longcalls-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    mark = "LONGCALLS_MARK=%d" % os.getpid()
    atexit.register(kill_marked, mark.encode() + b"\0")
    env = {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder, "MCP_PY_PYTHON": python, "MCP_PY_AUTO_INSTALL": "off",
           **THREADS, **dict([mark.split("=")])}
    server = Server([binary, "server"], env, folder)
    peer = Lines([python, os.path.abspath(__file__), "--kernel"], env, folder)
    text, failed = server.call("add_interpreter", name="long", python_path=python, env=THREADS)
    check("the interpreter is added", not failed, text)
    rows = []
    for cell in CELLS:
        server.value(cell.setup)
        code = sized(server, cell)
        ours = interrupted(server, cell, code)
        server.value("globals().update({name: None for name in ('parts', 'merged', 'fitted')})")  # these are large
        told = peer.ask({"setup": cell.setup, "code": cell.in_kernel or code}, 4 * DEADLINE)
        rows.append((cell.name, *ours, told))
    server.end()
    peer.end()
    table(rows)
    outlasted = [row[0] for row in rows if row[2] is not None and row[2] > row[1]]
    check("%d calls outlasted their answer, and were waited for" % len(outlasted), outlasted, rows)
    print("%.0f s" % (time.monotonic() - began))
    print("%d long call checks passed" % passed)


if sys.argv[1:] == ["--kernel"]:
    kernel()
else:
    main()
