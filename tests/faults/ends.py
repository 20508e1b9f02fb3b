"""How cells, workers and servers end: how soon an interrupt is answered, whom it hits, and what an end leaves behind.

    python3 ends.py SERVER [--count N]

Of interrupts the time until the answer is measured, and what earlier cells started must live on. Each way in which a worker can
end happens N times, idle and busy, to one whose cell made shared memory, semaphores, a pool and a child: nothing of it may stay in
/dev/shm or in the process table. Several servers do that side by side. With 200 of each it takes about five minutes.
"""
import argparse
import collections
import concurrent.futures
import glob
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

DEADLINE = 60.0  # seconds for any answer, on a loaded machine
GONE_SECONDS_MAX = 10.0  # from an end until nothing is left of it, likewise
LANES = 4  # servers side by side
TIMEOUT = 0.05  # seconds until a cell is interrupted whose latency is measured
BUSY_P99 = 0.2  # seconds from its interrupt to the answer: a cell that runs Python code
WAITING_P99 = 0.5  # one that waits, perhaps for a child; children are interrupted after 0.2 s
CHILD_KILLED_AFTER = 4.0  # seconds from the interrupt
AGE_GRAIN = 1.2  # seconds after which a process is older than a new cell for certain: ps tells whole ones
LATE = 1.0  # seconds that an atexit handler takes
ATEXIT_SECONDS_MAX = 1.5  # what it gets
LEAVING_SECONDS_MAX = 0.3  # without handlers
NAME = "mcp-py-ends-%d." % os.getpid()  # begins the names of all that is made in /dev/shm
serials = itertools.count(1)
passed = 0


class Failed(Exception):
    pass


def fail(what, came=None):
    raise Failed("FAILED: %s\n%s" % (what, str(came)[:3000]))


def check(what, good, came=None):
    global passed
    if not good:
        fail(what, came)
    passed += 1
    print("  ok: %s" % what, flush=True)


def eventually(what, holds, seconds=DEADLINE, came=lambda: None):
    """Returns how long it took."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            fail("not within %g s: %s" % (seconds, what), came())
        time.sleep(0.005)
    return time.monotonic() - began


def has_mark(pid, mark):
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return mark.encode() in file.read()
    except OSError:
        return False  # it has ended, or is another user's


def marked(mark):
    """The living processes whose environment has the mark."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in found if pid != os.getpid() and has_mark(pid, mark)]


def shared(name):
    return sorted(entry for entry in os.listdir("/dev/shm") if name in entry)


def children_of(pid):
    found = []
    for path in glob.glob("/proc/%d/task/*/children" % pid):
        with open(path) as file:
            found += [int(word) for word in file.read().split()]
    return found


def ignores_sigterm(pid):
    with open("/proc/%d/status" % pid) as file:
        ignored = next(line.split()[1] for line in file if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)


class Server:
    def __init__(self, folder):
        self.folder = folder
        self.mark = "ENDS_MARK=%s%d." % (NAME, next(serials))
        env = {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder, "MCP_PY_PYTHON": PYTHON, "MCP_PY_AUTO_INSTALL": "off",
               **dict([self.mark.split("=")])}
        self.process = subprocess.Popen([BINARY, "server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        env=env, cwd=folder)
        self.answers = {}  # by id: when it came, and what
        self.arrived = threading.Condition()
        self.last = 0
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            came = time.monotonic(), json.loads(line)
            with self.arrived:
                self.answers[came[1].get("id")] = came
                self.arrived.notify_all()

    def start(self, tool, **arguments):
        self.last += 1
        message = {"jsonrpc": "2.0", "id": self.last, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()
        return self.last

    def wait(self, number):
        """When the answer came, and its text."""
        with self.arrived:
            if not self.arrived.wait_for(lambda: number in self.answers, DEADLINE):
                fail("no answer within %g s" % DEADLINE)
            when, message = self.answers.pop(number)
        if "result" not in message:
            fail("a tool is answered", message)
        return when, message["result"]["content"][0]["text"]

    def call(self, tool, **arguments):
        return self.wait(self.start(tool, **arguments))[1]

    def run(self, code, **arguments):
        return self.call("execute", code=code, **arguments)

    def announced(self, code, **arguments):
        """Starts a cell, and returns its request's number once it runs."""
        path = os.path.join(self.folder, "began-%d" % next(serials))
        number = self.start("execute", code="open(%r, 'w').close()\n%s" % (path, code), **arguments)
        eventually("a cell starts", lambda: os.path.exists(path))
        os.unlink(path)
        return number

    def end(self):
        """Closes stdin. Returns how long the server took to leave."""
        began = time.monotonic()
        self.process.stdin.close()
        self.process.wait(DEADLINE)
        return time.monotonic() - began

    def kill_all(self):
        for pid in marked(self.mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended meanwhile
        self.process.wait(DEADLINE)


def side_by_side(work, inputs):
    """Runs it for each input in a thread of its own; the first failure is raised here."""
    inputs = list(inputs)
    with concurrent.futures.ThreadPoolExecutor(len(inputs)) as threads:
        return list(threads.map(work, inputs))


# -- interrupts -------------------------------------------------------------------------------------------------------


def latencies(code, rounds, folder):
    """Seconds from each interrupt to its answer, sorted."""
    server = Server(folder)
    server.run("import os, subprocess, time")
    found = []
    for _ in range(rounds):
        sent = time.monotonic()
        when, text = server.wait(server.start("execute", code=code, timeout=TIMEOUT))
        if "interrupted after its timeout of %g s; the variables are kept" % TIMEOUT not in text:
            fail("an interrupted cell's answer says so", text)
        found.append(when - sent - TIMEOUT)
    server.end()
    return sorted(found)


def tell_latencies(code, found, limit):
    p99 = found[int(len(found) * 0.99) - 1]
    figures = "median %.3f s, p99 %.3f s, at most %.3f s" % (found[len(found) // 2], p99, found[-1])
    check("%d interrupts of %s: %s" % (len(found), code, figures), p99 < limit, found[-10:])


def interrupts(rounds, folder):
    tell_latencies("while True: pass", latencies("while True: pass", rounds, folder), BUSY_P99)
    waiting = ["time.sleep(60)", "subprocess.run(['sleep', '60'])", "os.system('sleep 60')"]
    for code, found in zip(waiting, side_by_side(lambda code: latencies(code, rounds, folder), waiting)):
        tell_latencies(code, found, WAITING_P99)


def whom_it_hits(folder):
    server = Server(folder)
    kept = int(server.run("import os, subprocess, time\nkept = subprocess.Popen(['sleep', '1000'])\nkept.pid"))
    time.sleep(AGE_GRAIN)
    text = server.run("os.system('sleep 60')", timeout=0.3)
    check("a cell that waits for a child is interrupted", "its timeout of 0.3 s; the variables are kept" in text, text)
    check("what an earlier cell started lives on", server.run("kept.poll()") == "" and has_mark(kept, server.mark), kept)
    path = os.path.join(folder, "stubborn")
    code = "os.system(\"trap '' INT; echo $$ > %s; sleep 60; true\")" % path
    sent = time.monotonic()
    number = server.start("execute", code=code, timeout=1)
    eventually("the child starts", lambda: os.path.exists(path) and open(path).read())
    child = int(open(path).read())
    eventually("a child that ignores the interrupt is gone", lambda: not has_mark(child, server.mark))
    took = time.monotonic() - sent - 1
    check("a cell's own child that ignores the interrupt is gone %.1f s after it" % took, 3.5 < took < 6.0)
    when, text = server.wait(number)
    check("then the cell has ended, with its variables", "its timeout of 1 s; the variables are kept" in text, text)
    check("%.1f s after the interrupt" % (when - sent - 1), when - sent - 1 < 6.0, text)
    check("what an earlier cell started lives on after that too", server.run("kept.poll()") == "" and has_mark(kept, server.mark))
    server.end()
    eventually("nothing is left", lambda: not marked(server.mark))


# -- what an end leaves -----------------------------------------------------------------------------------------------

MAKE = """
import ctypes, json, multiprocessing, os, subprocess, threading, time
from multiprocessing import resource_tracker, shared_memory
multiprocessing.current_process()._config['semprefix'] = '/%(name)s'
memory = shared_memory.SharedMemory('%(name)s', True, 4096)
queue = multiprocessing.get_context('spawn').Queue()  # where processes are forked, semaphores have no names
pool = multiprocessing.get_context('fork').Pool(1)
child = subprocess.Popen(['sleep', '1000'])
print(json.dumps({'worker': os.getpid(), 'tracker': resource_tracker._resource_tracker._pid, 'pool': pool._pool[0].pid,
                  'child': child.pid}))
"""
MADE = 4  # entries in /dev/shm: the memory, and three semaphores of the queue


class Victim:
    """An interpreter whose cell made something to leave behind."""

    def __init__(self, server, busy, interpreter="builtin"):
        self.server = server
        self.interpreter = interpreter
        self.name = "%s%d." % (NAME, next(serials))
        told = server.run(MAKE % {"name": self.name}, interpreter=interpreter)
        lines = [line for line in told.splitlines() if line.startswith("{")]  # notes may stand behind it
        if len(lines) != 1:
            fail("a cell makes shared memory, semaphores, a pool and a child", told)
        self.pids = json.loads(lines[0])
        if len(shared(self.name)) != MADE:
            fail("the cell made them", (shared(self.name), told))
        # Python's resource tracker frees them, once it is up: what ends before 200 ms of its start have passed may leave them.
        eventually("the tracker is up", lambda: ignores_sigterm(self.pids["tracker"]))
        self.number = server.announced("time.sleep(1000)", interpreter=interpreter) if busy else None

    def crash(self, busy):
        """By a cell, or between two."""
        code = "ctypes.string_at(0)" if busy else "threading.Timer(0.02, ctypes.string_at, [0]).start()"
        self.server.run(code, interpreter=self.interpreter)

    def await_call(self):
        """The cell that ran is answered."""
        if self.number is not None:
            self.server.wait(self.number)

    def left(self, but=()):
        pids = ["%s %d" % (role, pid) for role, pid in self.pids.items() if role not in but and has_mark(pid, self.server.mark)]
        return pids + shared(self.name)

    def is_gone(self, but=()):
        """Returns how long that took."""
        return eventually("nothing of it is left", lambda: not self.left(but), GONE_SECONDS_MAX, lambda: self.left(but))


def stop(server, busy):
    server.call("add_interpreter", name="other", python_path=PYTHON)
    victim = Victim(server, busy, "other")
    text = server.call("stop_interpreter", name="other")
    if 'Interpreter "other" stopped' not in text:
        fail("stop_interpreter says so", text)
    victim.await_call()
    return victim.is_gone()


def restart(server, busy):
    victim = Victim(server, busy)
    text = server.call("reset", restart=True)
    if 'Interpreter "builtin" restarted' not in text:
        fail("reset with restart says so", text)
    victim.await_call()
    return victim.is_gone()


def killed_worker(server, busy):
    victim = Victim(server, busy)
    os.kill(victim.pids["worker"], signal.SIGKILL)
    victim.await_call()
    return victim.is_gone()


def crashed_worker(server, busy):
    victim = Victim(server, False)
    victim.crash(busy)
    return victim.is_gone()


def end_of_stdin(server, busy):
    victim = Victim(server, busy)
    server.end()
    return victim.is_gone()


def signalled(number):
    def end(server, busy):
        victim = Victim(server, busy)
        server.process.send_signal(number)
        server.process.wait(DEADLINE)
        took = victim.is_gone(but=("child",) if number == signal.SIGKILL else ())
        if number == signal.SIGKILL:
            server.kill_all()  # the child: nobody is there to end it
        return took
    return end


WORKER_ENDS = [("stop_interpreter", stop), ("reset with restart", restart), ("SIGKILL of the worker", killed_worker),
               ("a crash of the worker", crashed_worker)]
SERVER_ENDS = [("the end of stdin", end_of_stdin), ("SIGTERM of the server", signalled(signal.SIGTERM)),
               ("SIGKILL of the server", signalled(signal.SIGKILL))]


def worker_ends(end, rounds, folder):
    """All with one server, which must stay, and have no child but its worker then."""
    server = Server(folder)
    took = [end(server, busy=number % 2 == 1) for number in range(rounds)]
    worker = int(server.run("import os\nos.getpid()").splitlines()[-1])
    eventually("the server has no child but its worker", lambda: children_of(server.process.pid) == [worker], GONE_SECONDS_MAX,
               lambda: (worker, children_of(server.process.pid)))
    server.end()
    eventually("nothing is left of the server", lambda: not marked(server.mark), GONE_SECONDS_MAX, lambda: marked(server.mark))
    return took


def server_ends(end, rounds, folder):
    took = []
    for number in range(rounds):
        server = Server(folder)
        took.append(end(server, busy=number % 2 == 1))
        eventually("nothing is left of the server", lambda: not marked(server.mark), GONE_SECONDS_MAX, lambda: marked(server.mark))
    return took


def ends(count, folders):
    each = max(2, count // LANES)
    for kinds, work in ((WORKER_ENDS, worker_ends), (SERVER_ENDS, server_ends)):
        for what, end in kinds:
            began = time.monotonic()
            try:
                lanes = side_by_side(lambda folder: work(end, each, folder), folders)
            except Failed as failed:
                fail("%d times %s" % (each * LANES, what), failed)
            took = sorted(itertools.chain(*lanes))
            left = shared(NAME) + marked("ENDS_MARK=" + NAME)
            figures = "gone %.2f s later, at most %.2f" % (took[len(took) // 2], took[-1])
            check("%d times %s: nothing is left; %s (%.0f s)" % (len(took), what, figures, time.monotonic() - began), not left, left)


# -- leaving ----------------------------------------------------------------------------------------------------------


def leaving(folder):
    took = []
    for _ in range(5):
        server = Server(folder)
        server.run("1")
        took.append(server.end())
    took.sort()
    check("without atexit handlers a server leaves within %.2f s" % took[2], took[2] < LEAVING_SECONDS_MAX, took)
    for seconds in (LATE, DEADLINE):
        path = os.path.join(folder, "atexit-%g" % seconds)
        server = Server(folder)
        server.run("import atexit, time\n@atexit.register\ndef late():\n    time.sleep(%g)\n    open(%r, 'w').close()" % (seconds, path))
        left = server.end()
        if seconds == LATE:
            check("an atexit handler of %g s completes; the server left after %.2f s" % (seconds, left), os.path.exists(path), left)
            check("and it was waited for no longer than that", LATE <= left < ATEXIT_SECONDS_MAX + 0.5, left)
        else:
            check("one that takes too long is ended; the server left after %.2f s" % left, not os.path.exists(path)
                  and ATEXIT_SECONDS_MAX <= left < ATEXIT_SECONDS_MAX + 1, left)


def crash(folder):
    server = Server(folder)
    text = server.run("import ctypes\ndef deep():\n    ctypes.string_at(0)\ndeep()")
    check("a segfault's answer names its cause", "SIGSEGV" in text and "its variables are gone" in text, text)
    check("and the lines of the cell", 'File "<cell 1>", line 3 in deep' in text and 'File "<cell 1>", line 4 in <module>' in text, text)
    check("and the next cell runs", server.run("6 * 7") == "42")
    server.end()


def main():
    global BINARY, PYTHON
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("--count", type=int, default=200)
    given = parser.parse_args()
    BINARY = os.path.abspath(given.server)
    PYTHON = sys.executable
    began = time.monotonic()
    folders = [tempfile.mkdtemp(prefix="mcp-py-ends-") for _ in range(LANES)]
    try:
        leaving(folders[0])
        crash(folders[0])
        interrupts(max(10, given.count // 2), folders[0])
        whom_it_hits(folders[0])
        ends(given.count, folders)
    except Failed as failed:
        sys.exit(str(failed))
    finally:
        clean_up(folders)
    print("%.0f s" % (time.monotonic() - began))
    print("%d end checks passed" % passed)


def clean_up(folders):
    for pid in marked("ENDS_MARK=" + NAME):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for entry in shared(NAME):
        os.unlink(os.path.join("/dev/shm", entry))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


main()
