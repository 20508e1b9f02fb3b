"""Engines with workers of their own: Dask, Ray and PySpark, as README's recipes start them and as clusters that stand by themselves.

    python3 engines.py SERVER FOLDER PYTHON [README]

FOLDER is made and can be removed afterwards; its path must be short, for Ray has sockets in it. PYTHON has PyPI dask[distributed],
ray and pyspark, and there is a java. Each session runs functions and classes of cells, takes an exception from a worker, has a cell
interrupted by its timeout while all workers are at work, and uses the cluster again. Then its server ends, with work under way, and
nothing may be left of it: no process, no shared memory, no port, no file in /tmp. What was started outside of the server must still
be there. The first check that fails ends the run with exit 1, and shows what was said in its session. It takes about 80 s.
"""
import atexit
import glob
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

DEADLINE = 150.0  # seconds for any answer: a JVM starts in 30 where others take the processor
TIMEOUT = 2  # seconds until a cell is interrupted
ANSWERED_SECONDS_MAX = 12.0  # from its start; Ray looks for signals once a second
EXIT_SECONDS_MAX = 10.0  # of the server, which takes at most 1.6
GONE_SECONDS_MAX = 20.0  # from then; Ray's workers look for their raylet every two seconds or so
TMPDIR_CHARS_MAX = 39  # a socket's path may have 107, and Ray appends 68
TRANSCRIPT_CHARS = 3000  # of each answer
# What the engines make in /tmp, whatever TMPDIR says.
IN_TMP = re.compile(r"ray$|dask|spark-|blockmgr-|artifacts-|liblz4-java")
LISTENS = "0A"  # in /proc/net/tcp
MARK = "ENGINES_MARK=%d" % os.getpid()
SERVER, FOLDER, PYTHON = (os.path.abspath(path) for path in sys.argv[1:4])
README = sys.argv[4] if sys.argv[4:] else os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../README.md")
transcript = []
passed = 0

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with all that is done at an exit


def check(what, good, came=None):
    global passed
    if not good:
        print("\n".join([*transcript, "FAILED: %s\n%s" % (what, came)]), flush=True)
        sys.exit(1)
    passed += 1
    print("  ok: %s" % what, flush=True)


def eventually(what, holds, came=lambda: None, seconds=GONE_SECONDS_MAX):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            check("%s within %g s" % (what, seconds), False, came())
        time.sleep(0.05)
    check(what, True)


# -- processes and what they hold -----------------------------------------------------------------------------------------


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""  # it has ended, or is another user's


def is_alive(pid):
    return read("/proc/%d/stat" % pid).rpartition(b")")[2].split()[:1] not in ([], [b"Z"])


def marked(mark):
    """The living processes that were started with this variable in their environment, without this one."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in pids if mark.encode() in read("/proc/%d/environ" % pid).split(b"\0") and is_alive(pid)]


def described(pids):
    commands = {pid: read("/proc/%d/cmdline" % pid).replace(b"\0", b" ").decode("utf-8", "replace") for pid in pids}
    return "\n".join("%d %s" % (pid, command[:150]) for pid, command in commands.items())


def listening():
    """The sockets that listen, by inode, with their ports."""
    rows = [line.split() for family in ("tcp", "tcp6") for line in read("/proc/net/" + family).decode().splitlines()[1:]]
    return {row[9]: int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENS}


class Held:
    """What processes hold that could outlast them."""

    def __init__(self, pids):
        self.pids = pids
        self.shared = set()
        inodes = set()
        for pid in pids:
            opened = [line.split(None, 5)[5:] for line in read("/proc/%d/maps" % pid).decode("utf-8", "replace").splitlines()]
            paths = [path[0] for path in opened if path]
            try:
                paths += [os.readlink("/proc/%d/fd/%s" % (pid, name)) for name in os.listdir("/proc/%d/fd" % pid)]
            except OSError:
                pass  # it has ended, or has closed one
            self.shared.update(path for path in paths if path.startswith("/dev/shm/") and not path.endswith(" (deleted)"))
            inodes.update(path[8:-1] for path in paths if path.startswith("socket:["))
        self.ports = {inode: port for inode, port in listening().items() if inode in inodes}

    def left(self):
        ports = listening()
        return {
            "processes": described(pid for pid in self.pids if is_alive(pid)),
            "shared memory": [path for path in self.shared if os.path.exists(path)],
            "ports": [port for inode, port in self.ports.items() if inode in ports],
            "Java's performance data": [path for pid in self.pids for path in glob.glob("/tmp/hsperfdata_*/%d" % pid)],
        }


def in_tmp():
    return {name for name in os.listdir("/tmp") if IN_TMP.match(name)}


def kill_marked():
    """Ends what is left of this run, whoever started it, and removes what that shared."""
    held = Held(marked(MARK))
    for pid in held.pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass  # it has ended
    for path in held.shared:
        try:
            os.unlink(path)
        except OSError:
            pass


# -- sessions -------------------------------------------------------------------------------------------------------------


def environment(home):
    tmpdir = os.path.join(home, "t")
    os.makedirs(tmpdir, exist_ok=True)
    if len(tmpdir) > TMPDIR_CHARS_MAX:
        check("Ray's sockets have paths that are short enough", False, tmpdir)
    path = os.path.dirname(PYTHON) + ":" + os.environ["PATH"]
    keep = {name: os.environ[name] for name in ("JAVA_HOME",) if name in os.environ}
    return {**keep, "HOME": home, "TMPDIR": tmpdir, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0",
            "SPARK_LOCAL_IP": "127.0.0.1", **dict([MARK.split("=")])}


class Session:
    """A server with one interpreter, which is PYTHON."""

    def __init__(self, name, home):
        self.name = name
        self.in_tmp = in_tmp()
        self.env = environment(home)
        # Its own, beside the one of all: so its processes are told from those that were started elsewhere.
        self.mark = "ENGINES_SESSION=%d-%s" % (os.getpid(), name)
        env = {**self.env, "MCP_PY_PYTHON": PYTHON, "MCP_PY_AUTO_INSTALL": "off", **dict([self.mark.split("=")])}
        self.process = subprocess.Popen([SERVER, "server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=home)
        self.answers = queue.Queue()
        self.last = 0
        threading.Thread(target=self.read, daemon=True).start()
        transcript[:] = ["session: %s" % name]
        text, failed = self.call("add_interpreter", name="engine", python_path=PYTHON)
        if failed:
            check("%s: the interpreter is added" % name, False, text)
        self.pid = self.interpreter()["pid"]

    def read(self):
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put(None)

    def call(self, tool, **arguments):
        """The text of a tool's answer, and whether it is an error."""
        self.last += 1
        message = {"jsonrpc": "2.0", "id": self.last, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        transcript.append(">>> %s" % arguments.get("code", "%s %s" % (tool, arguments)))
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()
        try:
            answer = self.answers.get(timeout=DEADLINE)
        except queue.Empty:
            answer = "no answer within %g s" % DEADLINE
        if not isinstance(answer, dict) or answer.get("id") != self.last or "result" not in answer:
            check("%s: a call is answered" % self.name, False, answer)
        text = "".join(block.get("text", "") for block in answer["result"]["content"])
        half = TRANSCRIPT_CHARS // 2
        transcript.append(text if len(text) <= 2 * half else text[:half] + "\n…\n" + text[-half:])
        return text, answer["result"]["isError"]

    def interpreter(self):
        listed = json.loads(self.call("list_interpreters")[0])["result"]
        return next(entry for entry in listed if entry["name"] == "engine")

    def run(self, code, timeout=DEADLINE - 20):
        return self.call("execute", interpreter="engine", code=code, timeout=timeout, wait=DEADLINE)

    def gives(self, what, code, value):
        """Checks what a cell comes to; what else it prints, the engines log."""
        text, failed = self.run(code)
        check("%s: %s" % (self.name, what), not failed and text.splitlines()[-1:] == [repr(value)], text)

    def fails(self, what, code, *parts):
        text, failed = self.run(code)
        check("%s: %s" % (self.name, what), failed and all(part in text for part in parts), text)

    def is_interrupted(self, code):
        """Has a cell interrupted whose workers are all at work."""
        began = time.monotonic()
        text, failed = self.run(code, timeout=TIMEOUT)
        took = time.monotonic() - began
        told = "[mcp-py: interrupted after its timeout of %d s; the variables are kept]" % TIMEOUT
        ends = failed and told in text and took < ANSWERED_SECONDS_MAX
        check("%s: a time-out ends the cell, in %.1f s" % (self.name, took), ends, text)
        check("%s: in the same process" % self.name, self.interpreter()["pid"] == self.pid, self.pid)

    def end(self, stays=()):
        """Ends the server. Of what it has started nothing may be left; `stays` are processes that must be."""
        held = Held(marked(self.mark))
        began = time.monotonic()
        self.process.stdin.close()
        try:
            self.process.wait(EXIT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            check("%s: the server exits" % self.name, False, described(held.pids))
        transcript.append("the server exited with %d after %.2f s" % (self.process.returncode, time.monotonic() - began))
        check("%s: the server exits in %.1f s, with 0" % (self.name, time.monotonic() - began), self.process.returncode == 0)
        counts = self.name, len(held.pids), len(held.ports), len(held.shared)
        what = "%s: none of %d processes, %d ports and %d pieces of shared memory is left" % counts
        eventually(what, lambda: not any(held.left().values()) and not marked(self.mark),
                   lambda: "%s\n%s" % (held.left(), described(marked(self.mark))))
        eventually("%s: nothing is left in /tmp" % self.name, lambda: in_tmp() <= self.in_tmp, lambda: in_tmp() - self.in_tmp)
        if stays:
            check("%s: what was started elsewhere is still there" % self.name, all(map(is_alive, stays)), described(stays))


class Outside:
    """A cluster that no server has started."""

    def __init__(self, home, *commands):
        env = environment(home)
        with open(os.path.join(home, "cluster.log"), "wb") as log:
            to = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self.processes = [subprocess.Popen([PYTHON, *command], env=env, cwd=home, **to) for command in commands]
        self.pids = [process.pid for process in self.processes]

    def end(self):
        kill_marked()  # for SIGTERM, `ray start --block` takes more than 20 s
        eventually("a cluster that was started elsewhere ends", lambda: not marked(MARK), lambda: described(marked(MARK)))
        for process in self.processes:
            process.wait()


def recipe(engine):
    """The lines of README's recipe."""
    with open(README, encoding="utf-8") as file:
        blocks = re.findall(r"^```python\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
    found = [block.splitlines() for block in blocks if re.search(r"^(import|from) %s\b" % engine, block, re.MULTILINE)]
    check("README has a recipe for %s, in six lines" % engine, len(found) == 1 and len(found[0]) == 6, found)
    return found[0]


def free_port():
    """One that Ray takes as well, which wants those from 10002 to 19999 for its workers."""
    for port in range(21000, 32000):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def folder(name):
    home = os.path.join(FOLDER, name)
    os.makedirs(home)
    return home


def wait_for_port(port, process):
    def answers():
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0
    eventually("a cluster that was started elsewhere is there", lambda: answers() or process.poll() is not None, seconds=DEADLINE)


SQUARES = [0, 1, 4, 9, 16]
CELL = """
factor = 3
class Point:
    def __init__(self, x): self.x = x
    def scaled(self): return Point(self.x * factor)
class Mistake(Exception): pass
def scaled(n): return Point(n).scaled()
def fail(n): raise Mistake(f"at {n}")
def divide(n): return 1 // n
def sleep(n):
    import time
    time.sleep(600)"""
# `factor = 10` alone would not do: where an instance has come back from a worker, cloudpickle has given its class methods with the
# globals of then; and Ray pickles a function once.
ANEW = CELL.replace("factor = 3", "factor = 10")
CAUGHT = """
try: %s
except Mistake as error: caught = "at 7" in str(error)
caught"""


# -- Dask -----------------------------------------------------------------------------------------------------------------

SCALED_BY_DASK = "[isinstance(point, Point) and point.x for point in client.gather(client.map(scaled, range(5), pure=False))]"
SLEEP_BY_DASK = "futures = client.map(sleep, range(4), pure=False)"
DASK_WORKERS = "client.wait_for_workers(2, timeout=100); len(client.scheduler_info()['workers'])"


def dask_checks(session):
    session.gives("classes of cells there and back", CELL + "\n" + SCALED_BY_DASK, [0, 3, 6, 9, 12])
    session.fails("a worker's exception", "client.submit(divide, 0).result()", "in divide\n", "\nZeroDivisionError: ")
    session.gives("a cell's own exception", CAUGHT % "client.submit(fail, 7).result()", True)
    session.is_interrupted(SLEEP_BY_DASK + "\nclient.gather(futures)")


def dask_here():
    *start, restart = recipe("dask")
    session = Session("dask", folder("d"))
    session.gives("README's recipe", "\n".join(start), SQUARES)
    dask_checks(session)
    again = "\n".join([restart, ANEW, SCALED_BY_DASK])
    session.gives("it is used again, with what a later cell defines", again, [0, 10, 20, 30, 40])
    session.gives("with the same workers", DASK_WORKERS, 2)
    session.gives("they are at work", SLEEP_BY_DASK + "\nlen(futures)", 4)
    session.end()


def dask_commands(port):
    address = "tcp://127.0.0.1:%d" % port
    return address, (("-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"),
                     ("-m", "dask", "worker", address, "--nworkers", "2", "--nthreads", "1", "--no-dashboard"))


def dask_of_a_cell():
    address, commands = dask_commands(free_port())
    session = Session("dask, of a cell", folder("dc"))
    start = ["subprocess.Popen([sys.executable, *%r], stderr=subprocess.DEVNULL)" % (command,) for command in commands]
    session.gives("a scheduler and workers as its processes", "\n".join([
        "import subprocess, sys", "started = [%s]" % ", ".join(start), "from dask.distributed import Client",
        "client = Client(%r, timeout=100)" % address, DASK_WORKERS]), 2)
    session.is_interrupted("\n".join([CELL, SLEEP_BY_DASK, "client.gather(futures)"]))
    session.gives("they are used again", "client.restart()\n" + SCALED_BY_DASK, [0, 3, 6, 9, 12])
    session.end()


def dask_outside():
    home = folder("do")
    address, commands = dask_commands(free_port())
    cluster = Outside(home, *commands)
    connect = "from dask.distributed import Client\nclient = Client(%r, timeout=100)\n%s" % (address, DASK_WORKERS)
    first = Session("dask, started elsewhere", home)
    first.gives("connected", connect, 2)
    dask_checks(first)
    first.gives("it is used again", "client.restart()\n" + SCALED_BY_DASK, [0, 3, 6, 9, 12])
    first.end(stays=cluster.pids)
    second = Session("dask, by a second server", home)
    second.gives("connected", connect, 2)
    second.gives("used", CELL + "\n" + SCALED_BY_DASK, [0, 3, 6, 9, 12])
    second.end(stays=cluster.pids)
    cluster.end()


# -- Ray ------------------------------------------------------------------------------------------------------------------

SCALED_BY_RAY = "[isinstance(point, Point) and point.x for point in ray.get([ray.remote(scaled).remote(n) for n in range(5)])]"
COUNTER = """
@ray.remote
class Counter:
    def __init__(self): self.count = 0
    def add(self, n):
        self.count += n
        return self.count
counter = Counter.options(num_cpus=0).remote()
ray.get(counter.add.remote(5))"""
SLEEP_BY_RAY = "refs = [ray.remote(sleep).remote(n) for n in range(4)]"


def ray_checks(session, cancel):
    session.gives("classes of cells there and back", CELL + "\n" + SCALED_BY_RAY, [0, 3, 6, 9, 12])
    session.gives("a cell's class as an actor", COUNTER, 5)
    session.fails("a worker's exception", "ray.get(ray.remote(divide).remote(0))",
                  'File "<cell ', "in divide\n", "\nZeroDivisionError: ")
    session.gives("a cell's own exception", CAUGHT % "ray.get(ray.remote(fail).remote(7))", True)
    session.is_interrupted(SLEEP_BY_RAY + "\nray.get(refs)")
    again = "\n".join([cancel, ANEW, SCALED_BY_RAY])
    session.gives("it is used again, with what a later cell defines", again, [0, 10, 20, 30, 40])
    session.gives("the actor has its state", "ray.get(counter.add.remote(2))", 7)
    session.gives("it is at work", SLEEP_BY_RAY + "\nlen(ray.wait(refs, timeout=1)[1])", 4)


def ray_here(home):
    *start, cancel = recipe("ray")
    session = Session("ray", home)
    session.gives("README's recipe", "\n".join(start), SQUARES)
    ray_checks(session, cancel)
    session.end()
    return cancel


def ray_command(port):
    return ["start", "--head", "--port=%d" % port, "--num-cpus=2", "--include-dashboard=false"]


def ray_of_a_cell(home, cancel):
    session = Session("ray, of a cell", home)
    session.gives("a head as its process", "import subprocess\nstarted = subprocess.run(['ray', *%r], stdout=subprocess.DEVNULL)\n"
                  "import ray\nray.init('auto', log_to_driver=False)\nstarted.returncode" % ray_command(free_port()), 0)
    session.is_interrupted("\n".join([CELL, SLEEP_BY_RAY, "ray.get(refs)"]))
    session.gives("it is used again", cancel + "\n" + SCALED_BY_RAY, [0, 3, 6, 9, 12])
    session.end()


def ray_outside(home, cancel):
    port = free_port()
    cluster = Outside(home, ["-m", "ray.scripts.scripts", *ray_command(port), "--block"])
    wait_for_port(port, cluster.processes[0])
    session = Session("ray, started elsewhere", home)
    connect = "import ray\nray.init('auto', log_to_driver=False).address_info['gcs_address'].endswith(':%d')" % port
    session.gives("connected", connect, True)
    ray_checks(session, cancel)
    session.end(stays=cluster.pids)
    cluster.end()


# -- PySpark --------------------------------------------------------------------------------------------------------------

SCALED_BY_SPARK = """
points = spark.sparkContext.parallelize(range(5), 2).map(scaled)
[isinstance(point, Point) and point.x for point in points.collect()]"""
BY_UDF = """
from pyspark.sql.functions import udf
@udf("int")
def tripled(n): return scaled(n).x
[row[0] for row in spark.range(5).select(tripled("id")).collect()]"""


def spark_here():
    *start, cancel = recipe("pyspark")
    home = folder("s")
    session = Session("pyspark", home)
    session.gives("README's recipe", "\n".join(start), SQUARES)
    session.gives("classes of cells there and back", CELL + "\n" + SCALED_BY_SPARK, [0, 3, 6, 9, 12])
    session.gives("a cell's function in a query", BY_UDF, [0, 3, 6, 9, 12])
    session.fails("a worker's exception", "spark.sparkContext.parallelize(range(2), 2).map(divide).collect()",
                  'File "<cell ', "in divide\n", "\nZeroDivisionError: ")
    session.is_interrupted("spark.sparkContext.parallelize(range(4), 4).map(sleep).collect()")
    session.gives("its jobs end", "\n".join([
        cancel, "import time", "tracker, end = spark.sparkContext.statusTracker(), time.monotonic() + 30",
        "while tracker.getActiveJobsIds() and time.monotonic() < end: time.sleep(0.1)", "len(tracker.getActiveJobsIds())"]), 0)
    session.gives("it is used again, with what a later cell defines", ANEW + "\n" + SCALED_BY_SPARK, [0, 10, 20, 30, 40])
    session.gives("it is at work", "\n".join([
        "import threading", "job = lambda: spark.sparkContext.parallelize(range(4), 4).map(sleep).collect()",
        "threading.Thread(target=job, daemon=True).start(); time.sleep(1); len(tracker.getActiveJobsIds())"]), 1)
    session.end()
    left = os.listdir(os.path.join(home, "t"))
    check("pyspark: nothing is left in TMPDIR", not left, left)


def main():
    began = time.monotonic()
    os.makedirs(FOLDER)
    atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
    atexit.register(kill_marked)  # runs before that
    versions = "import dask, ray, pyspark; print(*((one.__name__, one.__version__) for one in (dask, ray, pyspark)))"
    subprocess.run([PYTHON, "-c", versions], check=True, timeout=DEADLINE)
    dask_here()
    dask_of_a_cell()
    dask_outside()
    home = folder("r")  # one: Ray keeps a token there, which what is started later goes by
    cancel = ray_here(home)
    ray_of_a_cell(home, cancel)
    ray_outside(home, cancel)
    spark_here()
    check("nothing runs any more", not marked(MARK), described(marked(MARK)))
    print("%.0f s" % (time.monotonic() - began))
    print("%d engine checks passed" % passed)


main()
