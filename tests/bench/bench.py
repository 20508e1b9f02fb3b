"""The figures of mcp-py beside their floors, measured in one run. What each row means: README.md beside this file.

    python3 bench.py [--server PATH] [--quick] [--json FILE] [--strict]

Standard library only, Python 3.8 and newer, Linux. Exit 1 when a target of memory, instructions or service is missed; of time
only with --strict.
"""
import argparse
import contextlib
import glob
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROW_SECONDS_MAX = 300  # for the rows of one function; past it the run fails
MB = 1e6
WARM_BLOCK = 50  # calls to one subject before the next has its turn

# The floors of a warm call: the least that Python can do over two pipes.
JSON_LOOP = r"""
import json, sys
for line in sys.stdin.buffer:
    asked = json.loads(line)
    text = repr(eval(asked["params"]["arguments"]["code"]))
    answer = {"jsonrpc": "2.0", "id": asked["id"], "result": {"content": [{"type": "text", "text": text}]}}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()
"""
RAW_LOOP = r"""
import os
while True:
    data = os.read(0, 65536)
    if not data: break
    os.write(1, data)
"""
BIG_WRITES = r"""
import sys
block = "x" * 999999 + "\n"
for _ in range(200):
    sys.stdout.write(block)
sys.stdout.flush()
"""
MANY_LINES = r"""
for n in range({count}):
    print("line", n)
"""


class Process:
    """A child on two unbuffered pipes. The same for the server and for every floor."""

    def __init__(self, argv, env=None, stdin=True, stdout=True):
        ours_in = ours_out = theirs_in = theirs_out = None
        actions = []
        if stdin:
            theirs_in, ours_in = os.pipe()
            actions.append((os.POSIX_SPAWN_DUP2, theirs_in, 0))
        else:
            actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
        if stdout:
            ours_out, theirs_out = os.pipe()
            actions.append((os.POSIX_SPAWN_DUP2, theirs_out, 1))
        else:
            actions.append((os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0))
        self.pid = os.posix_spawnp(argv[0], argv, env if env is not None else BARE_ENV, file_actions=actions)
        self.stdin, self.stdout, self.status = ours_in, ours_out, None
        for fd in (theirs_in, theirs_out):
            if fd is not None:
                os.close(fd)

    def ask(self, data):
        """Writes one line, reads one line. Nothing else may be in flight."""
        os.write(self.stdin, data)
        answer = os.read(self.stdout, 65536)
        while not answer.endswith(b"\n"):
            answer += self.more()
        return answer

    def more(self):
        data = os.read(self.stdout, 65536)
        if not data:
            raise RuntimeError("the process %d closed its stdout" % self.pid)
        return data

    def answers(self, count):
        """Reads that many lines."""
        data = b""
        while data.count(b"\n") < count:
            data += self.more()
        return data.splitlines()

    def drain(self):
        """A plain reader: reads until the end, keeps nothing."""
        while os.read(self.stdout, 131072):
            pass

    def close(self):
        """End of input, then its exit."""
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None
        self.wait()

    def wait(self):
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]
            ALIVE.discard(self)
        if self.stdout is not None:
            os.close(self.stdout)
            self.stdout = None

    def kill(self):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
        self.close()


class Server(Process):
    """The subject."""

    def __init__(self, command=None):
        super().__init__(command or [OPTIONS.server, "server"], SERVER_ENV)
        ALIVE.add(self)
        self.id = 0

    def initialize(self):
        answer = self.ask(INITIALIZE)
        assert b'"protocolVersion"' in answer, answer
        os.write(self.stdin, INITIALIZED)

    def call_line(self, tool, **arguments):
        self.id += 1
        params = {"name": tool, "arguments": arguments}
        return json.dumps({"jsonrpc": "2.0", "id": self.id, "method": "tools/call", "params": params}).encode() + b"\n"

    def call(self, tool, **arguments):
        return checked(self.ask(self.call_line(tool, **arguments)))

    def call_many(self, calls):
        """All at once; the answers in any order."""
        os.write(self.stdin, b"".join(self.call_line(tool, **arguments) for tool, arguments in calls))
        return [checked(line) for line in self.answers(len(calls))]

    def memory(self):
        """Resident bytes now, and the most they have been."""
        with open("/proc/%d/status" % self.pid) as file:
            fields = dict(line.split(":", 1) for line in file)
        with open("/proc/%d/smaps_rollup" % self.pid) as file:  # exact; VmRSS lags by some pages
            now = [line for line in file if line.startswith("Rss:")][0].split()[1]
        return int(now) * 1024, int(fields["VmHWM"].split()[0]) * 1024


def checked(line):
    answer = json.loads(line)
    if "result" not in answer or answer["result"].get("isError"):
        raise RuntimeError("an error came back: %s" % line[:500])
    return answer["result"]


def text(result):
    return "".join(block.get("text", "") for block in result["content"])


INITIALIZE = (
    b'{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"bench","version":"1"}}}\n'
)
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n'
CELL = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"execute","arguments":{"code":"1+1"}}}\n'

BARE_ENV = {"PATH": os.environ.get("PATH", os.defpath)}
SERVER_ENV, OPTIONS, ALIVE, ROWS = {}, None, set(), []


def timed(action, *arguments):
    begin = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - begin


def middle(samples):
    ordered = sorted(samples)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def p99(samples):
    """None below 100 samples, where it would be the worst of a few."""
    return sorted(samples)[len(samples) * 99 // 100] if len(samples) >= 100 else None


def quick(whole, short):
    return short if OPTIONS.quick else whole


def row(what, value, unit, n, tail=None, floor=None, floor_name="", target="", met=None):
    """Takes a row in, in seconds or bytes; `met` is None where there is no target, `firm` what no busy machine moves."""
    ROWS.append({
        "what": what, "median": value, "p99": tail, "unit": {"MB": "bytes", "ins": "instructions"}.get(unit, "s"), "shown_in": unit, "n": n,
        "floor": floor, "floor_name": floor_name, "ratio": value / floor if floor else None, "target": target, "met": met,
        "firm": unit in ("MB", "ins") or target == "all served",
    })
    print(".", end="", file=sys.stderr, flush=True)


def interleaved(rounds, *actions):
    """Every action once a round, in an order that turns, so that drift of the machine falls on all of them alike."""
    samples = [[] for _ in actions]
    for number in range(rounds):
        for step in range(len(actions)):
            index = (number + step) % len(actions)
            samples[index].append(actions[index]())
    return samples


# -- the rows


def start_and_stop():
    """Spawn to initialize, spawn to the first 1+1, end of stdin to exit, each beside what a bare process takes."""

    def spawn_initialize():
        begin = time.perf_counter()
        server = Server()
        server.initialize()
        seconds = time.perf_counter() - begin
        server.close()
        return seconds

    def spawn_first_cell():
        begin = time.perf_counter()
        server = Server()
        server.initialize()
        result = server.call("execute", code="1+1")
        seconds = time.perf_counter() - begin
        assert text(result) == "2", result
        exits.append(timed(server.close))
        assert server.status == 0, "the server's exit status is %d" % server.status
        return seconds

    def run_to_exit(argv):
        return lambda: timed(lambda: Process(argv, stdin=False, stdout=False).wait())

    def cat_exit():
        process = Process([shutil.which("cat")])
        process.ask(b"x\n")
        return timed(process.close)

    exits, n = [], quick(50, 12)
    first, cell, true, python, cat = interleaved(
        n, spawn_initialize, spawn_first_cell, run_to_exit([shutil.which("true")]),
        run_to_exit([sys.executable, "-c", "pass"]), cat_exit)
    value, floor = middle(first), middle(true)
    row("spawn → initialize answered", value, "ms", n, p99(first), floor, "true", "≤ 5 ms", value <= 0.005)
    value, floor = middle(cell), middle(python)
    limit = 2 * floor + 0.020
    row("spawn → first 1+1", value, "ms", n, p99(cell), floor, "python3 -c pass",
        "≤ 2 × floor + 20 ms", value <= limit)
    value = middle(exits)
    row("end of stdin → exit, idle", value, "ms", n, p99(exits), middle(cat), "cat", "≤ 100 ms", value <= 0.1)


def warm_calls():
    """The same driver writes the same line and reads one line, from the server, a JSON-RPC loop and an echo in turn."""
    server = Server()
    server.initialize()
    loop = Process([sys.executable, "-c", JSON_LOOP])
    echo = Process([sys.executable, "-c", RAW_LOOP])
    subjects = [(server, b'"2"', []), (loop, b'"2"', []), (echo, b'"1+1"', [])]
    clock, number = time.perf_counter, 0
    for block in range(-2, quick(60, 10)):  # two blocks to warm up
        for step in range(3):
            process, expected, samples = subjects[(block + step) % 3]
            ask = process.ask
            for _ in range(WARM_BLOCK):
                number += 1
                line = CELL % number
                begin = clock()
                answer = ask(line)
                end = clock()
                assert expected in answer and b"%d" % number in answer, answer
                if block >= 0:
                    samples.append(end - begin)
    for process, _expected, _samples in subjects:
        process.close()
    (warm, floor, raw), n = [s for _p, _e, s in subjects], len(subjects[0][2])
    value, tail = middle(warm), p99(warm)
    row("warm execute(1+1)", value, "ms", n, tail, middle(floor), "JSON-RPC loop", "≤ 2 × floor", value <= 2 * middle(floor))
    row("  its p99", tail, "ms", n, None, p99(floor), "JSON-RPC loop", "≤ 0.5 ms", tail <= 0.0005)
    row("  beside a pipe echo", value, "ms", n, tail, middle(raw), "pipe echo")


def memory():
    server, cells = Server(), quick(2000, 300)
    server.initialize()
    server.call("execute", code="1+1")
    time.sleep(0.2)
    before = server.memory()[0]
    for number in range(cells):
        server.ask(CELL % number)
    time.sleep(0.2)
    after = server.memory()[0]
    server.close()
    row("server memory, idle", before, "MB", 1, target="≤ 4 MB", met=before <= 4 * MB)
    row("  after %s cells" % format(cells, ","), after, "MB", 1, None, before, "idle", "≤ 4 MB, no growth",
        after <= 4 * MB and after - before <= 0.2 * MB)


def output(name, program, n, factor, *floors):
    """A cell that prints much, in a server of its own, beside the same program as a file. Floors: (name, action)."""
    path = os.path.join(SERVER_ENV["HOME"], "program.py")
    with open(path, "w") as file:
        file.write(program)
    peaks = []

    def cell():
        server = Server()
        server.initialize()
        server.call("execute", code="1+1")
        begin = time.perf_counter()
        result = server.call("execute", code=program)
        seconds = time.perf_counter() - begin
        assert "OUTPUT TRUNCATED" in text(result), text(result)[-300:]
        peaks.append(server.memory()[1])
        server.close()
        return seconds

    actions = [lambda action=action: timed(action, path) for _name, action in floors]
    samples, *beside = interleaved(n, cell, *actions)
    value, floor, peak = middle(samples), middle(beside[0]), max(peaks)
    row(name, value, "s", n, None, floor, floors[0][0], "≤ %.1f × floor" % factor, value <= factor * floor)
    for (floor_name, _action), times in zip(floors[1:], beside[1:]):
        row("  the same", value, "s", n, None, middle(times), floor_name)
    row("  server memory, peak", peak, "MB", n, target="≤ 10 MB", met=peak <= 10 * MB)


def big_writes():
    def to_null(path):
        Process([sys.executable, path], stdin=False, stdout=False).wait()

    def through_a_pipe(path):
        line = '"$0" "$1" | cat > "$1".out'
        Process([shutil.which("sh"), "-c", line, sys.executable, path], stdin=False, stdout=False).wait()

    def dropped(path):
        process = Process([sys.executable, path], stdin=False)
        process.drain()
        process.wait()

    output("a cell printing 200 MB, 1 MB a write", BIG_WRITES, quick(7, 3), 1.5,
           ("python3 FILE > /dev/null", to_null), ("python3 FILE | a reader that drops it", dropped),
           ("python3 FILE | cat > OUT", through_a_pipe))


def many_lines():
    def to_reader(path):
        line_buffered = "import sys; sys.stdout.reconfigure(line_buffering=True); exec(open(%r).read())" % path
        process = Process([sys.executable, "-c", line_buffered], stdin=False)
        process.drain()
        process.wait()

    count = quick(2000000, 300000)
    output("a cell printing %s lines" % format(count, ","), MANY_LINES.format(count=count), quick(5, 3), 1.2,
           ("line-buffered into a pipe", to_reader))


def in_parallel():
    server, names = Server(), ["p%d" % number for number in range(4)]
    server.initialize()
    server.call_many([("add_interpreter", {"name": name, "python_path": sys.executable}) for name in names])
    sleeping = [("execute", {"code": "import time; time.sleep(0.5)", "interpreter": name}) for name in names]
    n = quick(5, 2)
    samples = [timed(server.call_many, sleeping) for _ in range(n)]
    server.close()
    value = middle(samples)
    row("4 interpreters sleeping 0.5 s", value, "s", n, None, 0.5, "one of them", "≤ 0.75 s", value <= 0.75)


def fifty():
    """Fifty started at once, then fifty cells at once."""
    names = ["n%d" % number for number in range(50)]

    def pythons():
        def run():
            for process in [Process([sys.executable, "-c", "pass"], stdin=False, stdout=False) for _ in names]:
                process.wait()

        return timed(run)

    floor = pythons()
    server = Server()
    server.initialize()
    begin = time.perf_counter()
    server.call_many([("add_interpreter", {"name": name, "python_path": sys.executable}) for name in names])
    cells = [("execute", {"code": "print(%r)" % name, "interpreter": name}) for name in names]
    results = server.call_many(cells)
    seconds = time.perf_counter() - begin
    served = len({text(result) for result in results} & set(names))
    floor = (floor + pythons()) / 2
    now = server.memory()[0]
    running = sum(entry["state"] == "running" for entry in
                  server.call("list_interpreters")["structuredContent"]["result"])
    server.close()
    row("50 interpreters at once, a cell each", seconds, "s", 1, None, floor, "50 × python3 -c pass",
        "all served", served == 50 and running >= 50)
    row("  server memory", now, "MB", 1, target="≤ 10 MB", met=now <= 10 * MB)


def client_calls():
    """The client, spawn to exit, code on its stdin as from a heredoc; it finds the session by itself."""
    server = Server()
    server.initialize()
    server.call("get_session_info")  # its socket is there

    def client():
        begin = time.perf_counter()
        process = Process([OPTIONS.server, "client"])
        os.write(process.stdin, b"1+1\n")
        os.close(process.stdin)
        process.stdin = None
        answer = process.more()
        process.wait()
        assert answer == b"2\n" and process.status == 0, (answer, process.status)
        return time.perf_counter() - begin

    def run(*argv):
        return lambda: timed(lambda: Process([shutil.which(argv[0])] + list(argv[1:]), stdin=False, stdout=False).wait())

    n = quick(200, 30)
    samples, true, ps = interleaved(n, client, run("true"), run("ps", "-A", "-ww", "-o", "pid=,ppid=,comm=,args="))
    server.close()
    value = middle(samples)
    row("client, heredoc to exit", value, "ms", n, p99(samples), middle(true), "true", "≤ 10 ms", value <= 0.010)
    row("  beside a ps", value, "ms", n, p99(samples), middle(ps), "ps")


def sixty_four():
    """Sixty-four connections to the bridge, each with a cell, at once."""
    server = Server()
    server.initialize()
    path = server.call("get_session_info")["structuredContent"]["socket_path"]

    def at_once():
        peers = []
        for number in range(64):
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(path)
            peers.append(peer)
        begin = time.perf_counter()
        for number, peer in enumerate(peers):
            body = b'{"code": "%d"}' % number
            peer.sendall(b"POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        for number, peer in enumerate(peers):
            answer = b""
            while True:
                data = peer.recv(65536)
                if not data:
                    break
                answer += data
            assert b'"result":"%d"' % number in answer, answer
            peer.close()
        return time.perf_counter() - begin

    n = quick(20, 4)
    samples = [at_once() for _ in range(n)]
    peak = server.memory()[1]
    server.close()
    row("64 bridge clients at once, a cell each", middle(samples), "ms", n, target="all served", met=True)
    row("  server memory, peak", peak, "MB", n, target="≤ 10 MB", met=peak <= 10 * MB)


def instructions():
    """User instructions of the server alone, and of a worker alone, by callgrind: they don't wander as time does."""
    valgrind, calls = shutil.which("valgrind"), quick(2000, 400)
    if valgrind is None:
        print("\nnot counted: instructions, there is no valgrind", file=sys.stderr)
        return
    log = os.path.join(SERVER_ENV["TMPDIR"], "callgrind")
    count = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", "--log-file=" + log]

    def collected():
        with open(log) as file:
            return int(re.search(r"Collected : (\d+)", file.read()).group(1))

    def by_server(cells):
        server = Server([*count, OPTIONS.server, "server"])
        server.initialize()
        for number in range(cells):
            assert b'"2"' in server.ask(CELL % number)
        server.close()
        return collected()

    def by_worker(cells):
        counted = os.path.join(SERVER_ENV["TMPDIR"], "counted")
        with open(counted, "w") as script:
            os.fchmod(script.fileno(), 0o700)
            print("#!/bin/sh\nexec %s \"$@\"" % shlex.join([*count, sys.executable]), file=script)
        server = Server()
        server.call("add_interpreter", name="counted", python_path=counted, env={"PYTHONHASHSEED": "0"})
        for _ in range(cells):
            assert server.call("execute", interpreter="counted", code="1+1")["content"][0]["text"] == "2"
        server.ask(server.call_line("execute", interpreter="counted", code="__import__('os')._exit(0)"))
        server.close()
        return collected()

    few = 100
    server = (by_server(few + calls) - by_server(few)) / calls
    row("instructions of a warm execute", server, "ins", calls, target="≤ 60,000", met=server <= 60_000)
    row("  of the worker for it", (by_worker(few + calls) - by_worker(few)) / calls, "ins", calls)


def children(pid):
    found = []
    for path in glob.glob("/proc/%d/task/*/children" % pid):
        with open(path) as file:
            found += [int(child) for child in file.read().split()]
    return found


def peer_call(server):
    """Calls the peer's tool that takes code; None where it has none."""
    tools = json.loads(server.ask(b'{"jsonrpc":"2.0","id":"t","method":"tools/list"}\n'))["result"]["tools"]
    words = ("code", "python_code", "source", "cell", "input")
    found = [(tool["name"], word) for tool in tools for word in words if word in tool["inputSchema"].get("properties", {})]
    if not found:
        return None
    if "start_kernel" in [tool["name"] for tool in tools]:
        server.call("start_kernel")
    tool, word = found[0]
    return lambda code: server.call_line(tool, **{word: code})


def peers():
    """What other stdio MCP servers take for the same: those given as --peer NAME=COMMAND."""
    for name, _, command in (peer.partition("=") for peer in OPTIONS.peer):
        signal.alarm(ROW_SECONDS_MAX)
        starts, calls, peak = [], [], None
        for _ in range(quick(10, 3)):
            begin = time.perf_counter()
            server = Server(shlex.split(command))
            server.initialize()
            starts.append(time.perf_counter() - begin)
            line = peer_call(server)

            def one():
                answer = text(checked(server.ask(line("1+1"))))
                assert answer.rstrip().endswith("2"), answer  # a peer may say what went wrong in a good answer

            if line:
                one()
                calls += [timed(one) for _ in range(quick(100, 20))]
            used = server.memory()[0]
            if line and len(starts) == 1:
                os.write(server.stdin, line(BIG_WRITES))
                while not server.more().endswith(b"\n"):
                    pass
                peak = server.memory()[1]
            left = children(server.pid)
            server.close()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # a kernel may outlive its server
        row("%s: spawn → initialize answered" % name, middle(starts), "ms", len(starts))
        if calls:
            row("%s: a warm 1+1" % name, middle(calls), "ms", len(calls), p99(calls))
        row("%s: memory" % name, used, "MB", 1)
        if peak:
            row("%s: memory, peak, 200 MB printed" % name, peak, "MB", 1)


# -- the table


def shown(value, unit):
    if value is None:
        return ""
    if unit == "MB":
        return "%.1f MB" % (value / MB)
    if unit == "ins":
        return "{:,.0f}".format(value)
    if unit == "s":
        return "%.2f s" % value
    return "%.3f ms" % (value * 1e3) if value < 0.001 else "%.1f ms" % (value * 1e3)


def table():
    head = ("what", "median", "p99", "N", "floor", "", "ratio", "target", "")
    lines = [head]
    for r in ROWS:
        lines.append((
            r["what"], shown(r["median"], r["shown_in"]), shown(r["p99"], r["shown_in"]), str(r["n"]),
            shown(r["floor"], r["shown_in"]), r["floor_name"], "%.2f" % r["ratio"] if r["ratio"] else "",
            r["target"], "" if r["met"] is None else "ok" if r["met"] else "MISSED",
        ))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = (0, 5, 7, 8)
    for line in lines:
        print("  ".join(cell.ljust(width) if column in left else cell.rjust(width)
                        for column, (cell, width) in enumerate(zip(line, widths))).rstrip())


def too_long(_number, _frame):
    raise RuntimeError("not done within %d s" % ROW_SECONDS_MAX)


def main():
    global OPTIONS
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = os.path.join(HERE, "..", "..", "target", "release", "mcp-py")
    parser.add_argument("--server", default=default, metavar="PATH", help="default: target/release/mcp-py")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and fewer lines and cells")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="another stdio MCP server, beside ours; whole paths")
    parser.add_argument("--strict", action="store_true", help="exit 1 where a target is missed")
    OPTIONS = parser.parse_args()
    OPTIONS.server = os.path.abspath(OPTIONS.server)
    if not os.access(OPTIONS.server, os.X_OK):
        parser.error("no server at %s: cargo build --release makes it" % OPTIONS.server)
    folder = tempfile.mkdtemp(prefix="mcp-py-bench-")
    SERVER_ENV.update(BARE_ENV, HOME=folder, TMPDIR=folder, MCP_PY_PYTHON=sys.executable)
    os.chdir(folder)
    machine = {"python": sys.version.split()[0], "cores": len(os.sched_getaffinity(0)), "quick": OPTIONS.quick}
    signal.signal(signal.SIGALRM, too_long)
    begin = time.perf_counter()
    try:
        for rows in (start_and_stop, warm_calls, client_calls, memory, big_writes, many_lines, in_parallel, fifty,
                     sixty_four, instructions, peers):
            signal.alarm(ROW_SECONDS_MAX)
            rows()
        signal.alarm(0)
    finally:
        for server in list(ALIVE):
            server.kill()
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.perf_counter() - begin
    print(file=sys.stderr)
    print("Python %(python)s, %(cores)d cores" % machine + (", quick" if OPTIONS.quick else "") + ", %.0f s" % seconds)
    table()
    missed = [r["what"].strip() for r in ROWS if r["met"] is False]
    print("%d targets met, %d missed" % (sum(r["met"] is True for r in ROWS), len(missed)))
    if OPTIONS.json:
        with open(OPTIONS.json, "w") as file:
            json.dump({"machine": machine, "rows": ROWS}, file, indent=1, ensure_ascii=False)
    firm = any(r["met"] is False and r["firm"] for r in ROWS)
    sys.exit(1 if firm or (missed and OPTIONS.strict) else 0)


main()
