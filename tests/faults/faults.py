"""Faults, injected: kills and stops at random moments, full disks, missing resources, names that are taken, torn files.

    python3 faults.py SERVER [--seed N] [--rounds N]

After each fault: the answer says in words what happened, the server goes on (or its successor starts), and nothing is left
behind: no process that carries the mark of the round, no output directory but what a SIGKILL must leave, and that is taken
away by the next server. What needs root (mounts, another user) says that it did not run where there is none, and what needs
libfaketime, for the clock that jumps is not the machine's, likewise.
"""
import argparse
import atexit
import errno
import glob
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

DEADLINE = 60.0  # seconds for anything, on a loaded machine
GONE_SECONDS_MAX = 1.0  # for the workers of a killed server
SWEPT_AFTER = 11.0  # seconds after its birth a dead server's socket is taken away by the next server
NOBODY = 65534
ROOT = os.geteuid() == 0
BINARY = ""
passed = 0


def check(what, good, came=None):
    global passed
    if not good:
        sys.exit("  FAILED: %s\n%s" % (what, str(came)[:3000]))
    passed += 1
    print("  ok: %s" % what, flush=True)


def eventually(what, holds, seconds=DEADLINE):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            sys.exit("  FAILED: not within %g s: %s" % (seconds, what))
        time.sleep(0.005)


def marked(mark):
    """The living processes whose environment has the mark."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and mark.encode() in open("/proc/%s/environ" % name, "rb").read():
                found.append(int(name))
        except OSError:
            pass
    return [pid for pid in found if pid != os.getpid()]


class Server:
    serial = 0

    def __init__(self, folder=None, prefix=(), limits=(), user=None, host=False, **env):
        Server.serial += 1
        self.mark = "FAULT_MARK=%d-%d" % (os.getpid(), Server.serial)
        self.folder = folder or tempfile.mkdtemp(prefix="mcp-py-faults-", dir="/var/tmp")
        for part in ("home", "tmp"):
            os.makedirs(os.path.join(self.folder, part), exist_ok=True)
        if user is not None:
            os.chmod(self.folder, 0o755)
            os.chown(os.path.join(self.folder, "tmp"), user, user)
            env.setdefault("MCP_PY_PYTHON", "/usr/bin/python3")  # one that anybody may run
        env = {"PATH": os.environ["PATH"], "HOME": self.folder + "/home", "TMPDIR": self.folder + "/tmp",
               "MCP_PY_PYTHON": PYTHON, **dict([self.mark.split("=")]), **env}

        def limit():
            for what, value in limits:
                resource.setrlimit(what, (value, value))
            if user is not None:
                os.setgid(user)
                os.setuid(user)

        command = [*prefix, BINARY, "server"]
        if host:  # a host that holds our pipes, as a real one does, and hands on what it is told
            command = [sys.executable, "-c", HOST, *command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
                                        cwd=self.folder, preexec_fn=limit if limits or user is not None else None)
        self.stderr, self.answers, self.arrived, self.last = b"", {}, threading.Condition(), 0
        threading.Thread(target=self.read, daemon=True).start()
        threading.Thread(target=self.read_errors, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            with self.arrived:
                self.answers[message.get("id")] = message
                self.arrived.notify_all()

    def read_errors(self):
        for line in self.process.stderr:
            self.stderr += line

    def start(self, tool, **arguments):
        self.last += 1
        message = {"jsonrpc": "2.0", "id": self.last, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()
        return self.last

    def answer(self, number):
        with self.arrived:
            if not self.arrived.wait_for(lambda: number in self.answers, DEADLINE):
                sys.exit("  FAILED: no answer within %g s\n%s" % (DEADLINE, self.stderr))
            return self.answers.pop(number)

    def wait(self, number):
        return self.answer(number)["result"]

    def call(self, tool, **arguments):
        return self.wait(self.start(tool, **arguments))

    def run(self, code, **arguments):
        return self.call("execute", code=code, **arguments)["content"][0]["text"]

    def socket(self):
        return self.call("get_session_info")["structuredContent"]["socket_path"]

    def pid(self):
        return self.call("get_session_info")["structuredContent"]["server_pid"]

    def outputs(self):
        place = os.path.join(self.folder, "tmp")
        return [name for name in os.listdir(place) if name.startswith("python-interpreter-mcp-py-")]

    def end(self, remove=True):
        self.process.stdin.close()
        self.process.wait(DEADLINE)
        eventually("nothing carries the mark", lambda: not marked(self.mark))
        left = self.outputs()
        if left:
            sys.exit("  FAILED: left behind: %s" % left)
        if remove:
            shutil.rmtree(self.folder)


HOST = """
import subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def hand_on(source, to):
    for line in source:
        to.write(line); to.flush()
    to.close()
threading.Thread(target=hand_on, args=(sys.stdin.buffer, server.stdin), daemon=True).start()
hand_on(server.stdout, sys.stdout.buffer)
server.wait()
"""
CELLS = [
    "while True: pass",
    "import time; time.sleep(1000)",
    "while True: print('x' * 1000)",
    "import subprocess; subprocess.run(['sleep', '1000'])",
    "import os, time\nfor n in range(3):\n    if os.fork() == 0: time.sleep(1000); os._exit(0)\ntime.sleep(1000)",
    "try:\n    while True: pass\nexcept KeyboardInterrupt:\n    while True: pass",
]

# -- kills and stops --------------------------------------------------------------------------------------------------


def kills(rng, rounds):
    server, counts = Server(), {}
    path = server.socket()
    for number in range(rounds):
        victim, cell = rng.choice(("worker", "client", "server", "host")), rng.choice(CELLS)
        counts[victim] = counts.get(victim, 0) + 1
        delay = rng.choice((0, 0.001, 0.005, 0.03, 0.1)) * rng.random() * 2
        if number % 25 == 0:
            print("    round %d" % number, flush=True)
        if victim == "worker":
            pid = int(server.run("import os; os.getpid()").splitlines()[-1])
            if rng.random() < 0.5:
                running = server.start("execute", code=cell)
                time.sleep(delay)
                os.kill(pid, signal.SIGKILL)
            else:  # between two cells
                os.kill(pid, signal.SIGKILL)
                time.sleep(delay)
                running = server.start("execute", code="1")
            first = server.wait(running)["content"][0]["text"]
            while is_worker(pid):  # a signal takes a moment; until then a cell may be handed to it
                time.sleep(0.001)
            second = server.run("6 * 7")
            told = [text for text in (first, second) if "was killed by SIGKILL" in text and "its variables are gone" in text]
            if len(told) != 1 or not second.endswith("42"):
                check("round %d: a killed worker is told once" % number, False, (first, second))
        elif victim == "client":
            cell = cell if "except" not in cell else CELLS[0]  # one that ends by an interrupt
            env = {"MCP_PY_SOCKET": path, "PATH": os.environ["PATH"]}
            client = subprocess.Popen([BINARY, "client", "-c", cell], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(delay)
            client.kill()
            client.wait()
            if not server.run("6 * 7").endswith("42"):
                check("round %d: a killed client frees the interpreter" % number, False)
        else:
            other = Server(host=victim == "host")
            other.run("1")
            pid = other.pid()
            other.start("execute", code=cell)
            time.sleep(delay)
            os.kill(pid if victim == "server" else other.process.pid, signal.SIGKILL)
            limit = GONE_SECONDS_MAX if victim == "server" else 3.0
            began = time.monotonic()
            workers = lambda: [pid for pid in marked(other.mark) if is_worker(pid)]
            eventually("round %d: the workers of a killed %s are gone" % (number, victim), lambda: not workers(), limit + 1.0)
            took = time.monotonic() - began
            if took > limit:
                check("round %d: within %g s" % (number, limit), False, took)
            for pid in marked(other.mark):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            other.process.wait()
            eventually("all of it is gone", lambda: not marked(other.mark))
            left = set(other.outputs())
            after = Server(folder=other.folder)
            if not after.run("6 * 7").endswith("42"):
                check("round %d: the next server serves" % number, False)
            eventually("round %d: what it left is taken away" % number, lambda: not left & set(after.outputs()))
            after.end()
    server.end()
    time.sleep(SWEPT_AFTER)
    server = Server()
    server.run("1")
    eventually("no dead server's socket is left", lambda: not dead_sockets())
    server.end()
    check("%d kills at random moments: %s" % (rounds, ", ".join("%d of a %s" % (n, who) for who, n in sorted(counts.items()))), True)


def dead_sockets():
    found = []
    for name in os.listdir("/tmp"):
        if name.startswith("python-interpreter-") and name.endswith(".sock") and os.lstat("/tmp/" + name).st_uid == os.geteuid():
            peer = socket.socket(socket.AF_UNIX)
            if peer.connect_ex("/tmp/" + name) == errno.ECONNREFUSED:
                found.append(name)
            peer.close()
    return found


def is_worker(pid):
    """The worker itself: what its cell forked or started is orphaned by a SIGKILL of the server, and lives on."""
    try:
        return b"mcp-py worker" in open("/proc/%d/cmdline" % pid, "rb").read() and os.getpgid(pid) == pid
    except OSError:
        return False


def stops():
    server = Server()
    pid = int(server.run("import os; os.getpid()"))
    running = server.start("execute", code="while True: pass", timeout=0.5)
    time.sleep(0.1)
    os.kill(pid, signal.SIGSTOP)
    text = server.wait(running)["content"][0]["text"]
    check("a stopped worker is reported, and not killed", "0.5 s, but it has not stopped" in text, text)
    os.kill(pid, signal.SIGCONT)
    text = server.wait(server.start("wait"))["content"][0]["text"]
    check("when it goes on, its cell ends and the variables are kept", "the variables are kept" in text, text)
    os.kill(pid, signal.SIGSTOP)
    text = server.wait(server.start("reset", restart=True))["content"][0]["text"]
    check("a stopped worker is restarted", "restarted" in text, text)
    check("the next cell runs", server.run("6 * 7") == "42")
    # A reader that reads nothing: what is asked meanwhile is answered in the end, each once.
    reader = Server()
    reader.run("1")
    child = subprocess.Popen([BINARY, "server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=reader.folder,
                             env={"HOME": reader.folder, "TMPDIR": reader.folder + "/tmp", "PATH": os.environ["PATH"], "MCP_PY_PYTHON": PYTHON})
    lines = [json.dumps({"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": {"name": "execute", "arguments":
             {"code": "print('y' * 20_000)"}}}) for n in range(400)]
    feeder = threading.Thread(target=lambda: (child.stdin.write(("\n".join(lines) + "\n").encode()), child.stdin.flush()))
    feeder.start()
    time.sleep(1.5)
    got = [json.loads(child.stdout.readline())["id"] for _ in range(400)]
    check("a reader that stops for a while loses no answer", sorted(got) == list(range(400)), got)
    feeder.join()
    child.stdin.close()
    child.wait(DEADLINE)
    reader.end()
    server.end()


# -- what is scarce ---------------------------------------------------------------------------------------------------


def mounted(*commands):
    """A prefix that runs a program in a mount namespace where these commands ran."""
    return ("unshare", "--mount", "sh", "-e", "-c", "; ".join(commands) + '; exec "$0" "$@"')


def full_disks():
    server = Server(prefix=mounted('mount -t tmpfs -o size=200k none "$TMPDIR"'))
    text = server.run("print('z' * 3_000_000)")
    check("output on a full disk: the ends, and that the file is not complete",
          "# OUTPUT TRUNCATED" in text and "the file is not complete: No space left on device" in text, text[-600:])
    check("the next cell runs", server.run("6 * 7") == "42")
    text = server.run("class P:\n    def _repr_png_(self): return b'\\x89PNG\\r\\n\\x1a\\n' + bytes(500_000)\n"
                      "    def __repr__(self): return '<P>'\nP()")
    check("a picture on a full disk says so", "a figure could not be saved: " in text and text.endswith("<P>"), text)
    server.process.stdin.close()
    check("it ends well", server.process.wait(DEADLINE) == 0)
    shutil.rmtree(server.folder)
    server = Server(prefix=mounted("mount -t tmpfs -o size=4k,nr_inodes=1 none /tmp"), TMPDIR="/tmp")
    text = server.run("6 * 7")
    check("with /tmp full cells run", text.endswith("42"), text)
    text = server.run("print('z' * 300_000)")
    check("and long output says that it is in no file", "# Full output: no file" in text and "none could be made: " in text, text[-600:])
    check("that there is no bridge is said", b"no bridge at " in server.stderr, server.stderr)
    server.process.stdin.close()
    server.process.wait(DEADLINE)
    shutil.rmtree(server.folder)
    server = Server(prefix=mounted('mount -t tmpfs -o size=1m none "$HOME"'))
    server.call("add_interpreter", name="kept", python_path=PYTHON, save=True)
    read = "import os; open(os.path.expanduser('~/.claude-workspace/python_interpreter/interpreters.json')).read()"
    before = server.run(read)
    server.run("with open(os.path.expanduser('~/fill'), 'wb', 0) as file:\n    while True: file.write(bytes(512))")
    result = server.call("add_interpreter", name="other", python_path=PYTHON, save=True, description="d" * 9000)
    check("saving on a full disk fails with the reason", result["isError"] and "No space left" in result["content"][0]["text"], result)
    after = server.run(read)
    check("and what was saved is still there", "kept" in before and after == before, (before, after))
    server.process.stdin.close()
    server.process.wait(DEADLINE)
    shutil.rmtree(server.folder)


def resources():
    server = Server(limits=[(resource.RLIMIT_NOFILE, 24)])
    path = server.socket()
    server.run("1")
    texts = [server.call("add_interpreter", name="n%d" % n, python_path=PYTHON) for n in range(8)]
    refused = [result["content"][0]["text"] for result in texts if result["isError"]]
    check("without descriptors a start is refused in words", refused and all("Too many open files" in text for text in refused), texts)
    peers = [socket.socket(socket.AF_UNIX) for _ in range(24)]  # more than it can take
    for peer in peers:
        peer.connect(path)
    time.sleep(0.2)
    spent = lambda: sum(map(int, open("/proc/%d/stat" % server.process.pid).read().rsplit(")", 1)[1].split()[11:13]))
    before = spent()
    time.sleep(1)
    share = (spent() - before) / os.sysconf("SC_CLK_TCK")
    check("connections for which there are none wait, and nothing spins", share < 0.3, share)
    for peer in peers:
        peer.close()
    check("and cells run", server.run("6 * 7") == "42")
    server.end()
    if ROOT:
        server = Server(user=NOBODY, limits=[(resource.RLIMIT_NPROC, 1)])
        answer = server.answer(server.start("execute", code="1"))
        check("without processes a call is refused in words", "no thread could be started" in str(answer.get("error")), answer)
        server.process.stdin.close()
        check("and it ends well", server.process.wait(DEADLINE) == 0)
        shutil.rmtree(server.folder)
        folder = tempfile.mkdtemp(prefix="mcp-py-faults-", dir="/var/tmp")
        os.mkdir(folder + "/home")
        os.chown(folder + "/home", NOBODY, NOBODY)
        server = Server(folder=folder, user=NOBODY, limits=[(resource.RLIMIT_NPROC, 60)])
        server.run("1")
        others = [subprocess.Popen(["sleep", "1000"], preexec_fn=lambda: os.setuid(NOBODY)) for _ in range(60)]
        try:
            text = server.call("execute", code="import zz_none")["content"][0]["text"]
            check("without threads a missing import fails in words", "[mcp-py: no thread could be started: " in text
                  and text.endswith("No module named 'zz_none'"), text)
            check("and cells run", server.run("6 * 7") == "42")
        finally:
            for other in others:
                other.kill()
                other.wait()
        server.end()
    server = Server(limits=[(resource.RLIMIT_AS, 400 << 20)])
    text = server.run("x = bytearray(10 ** 10)")
    check("without memory a cell gets its MemoryError", text.endswith("MemoryError"), text)
    check("and the interpreter lives", server.run("6 * 7") == "42")
    server.end()


def places():
    if ROOT:
        folder = tempfile.mkdtemp(prefix="mcp-py-faults-", dir="/var/tmp")
        server = Server(folder=folder, user=NOBODY)  # its home is root's
        first, second = server.run("1 + 1"), server.run("1 + 1")
        check("a home that can't be written is said once", first.startswith("[mcp-py: missing packages can't be installed: ")
              and first.endswith("]\n2") and second == "2", (first, second))
        result = server.call("add_interpreter", name="x", python_path="/usr/bin/python3", save=True)
        check("and saving fails with the reason", result["isError"] and "Permission denied" in result["content"][0]["text"], result)
        server.end()
    folder = tempfile.mkdtemp(prefix="mcp-py-faults-", dir="/var/tmp")
    gone = os.path.join(folder, "gone")
    os.mkdir(gone)
    server = Server(folder=folder, prefix=("sh", "-c", 'cd "$1"; rmdir "$1"; shift; exec "$@"', "-", gone))
    check("a deleted working directory hinders nothing", server.run("6 * 7").endswith("42"))
    server.end()


def clock():
    libraries = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not libraries:
        return print("  not run: a clock that jumps (needs libfaketime)")
    folder = tempfile.mkdtemp(prefix="mcp-py-faults-", dir="/var/tmp")
    now = os.path.join(folder, "now")

    def jump(by):
        with open(now + ".new", "w") as file:
            file.write(by)
        os.rename(now + ".new", now)

    jump("+0")
    server = Server(folder=folder, LD_PRELOAD=libraries[0], FAKETIME_TIMESTAMP_FILE=now, FAKETIME_NO_CACHE="1", FAKETIME_DONT_FAKE_MONOTONIC="1",
                    DONT_FAKE_MONOTONIC="1")
    year = lambda: int(server.run("import time; time.gmtime().tm_year"))
    before = year()
    running, began = server.start("execute", code="while True: pass", timeout=2), time.monotonic()
    time.sleep(0.5)
    jump("+4000d")
    text, took = server.wait(running)["content"][0]["text"], time.monotonic() - began
    check("a clock that jumps ahead moves no time-out", 1.9 < took < 10 and "its timeout of 2 s; the variables are kept" in text, (took, text))
    check("and it did jump", year() > before + 9)
    running, began = server.start("execute", code="while True: pass", timeout=2), time.monotonic()
    time.sleep(0.5)
    jump("-4000d")
    text, took = server.wait(running)["content"][0]["text"], time.monotonic() - began
    check("nor does one that jumps back", 1.9 < took < 10 and year() < before - 9, (took, text))
    info = server.call("get_session_info")["structuredContent"]
    check("and the uptime is that of a clock that runs", info["uptime"].endswith(" s") and 3 < float(info["uptime"][:-2]) < 60, info)
    text = server.run("print('z' * 100_000)")
    check("files are still written", "# Full output: " in text and "no file" not in text, text[-300:])
    server.end()


def names(rounds):
    for planted in ("another user's file", "another user's symlink", "a directory"):
        if planted.startswith("another") and not ROOT:
            continue
        server = Server()
        shared = "/tmp/python-interpreter-%d.sock" % os.getpid()
        server.end()
        target = tempfile.NamedTemporaryFile()
        target.write(b"precious")
        target.flush()
        if planted.endswith("file"):
            open(shared, "w").write("theirs")
        elif planted.endswith("symlink"):
            os.symlink(target.name, shared)
        else:
            os.mkdir(shared)
        if planted.startswith("another"):
            os.chown(shared, NOBODY, NOBODY, follow_symlinks=False)
        server = Server()
        path = server.socket()
        server.run("1")
        kept = os.path.lexists(shared) and path != shared and open(target.name).read() == "precious"
        check("%s at our name is left alone, and ours is another" % planted, kept and path.startswith(shared[:-5] + "-"), path)
        check("which is said", b"is taken; this session's socket is " in server.stderr, server.stderr)
        server.end()
        (os.rmdir if os.path.isdir(shared) and not os.path.islink(shared) else os.unlink)(shared)
    server = Server()
    path = server.socket()
    server.process.kill()
    server.process.wait()
    after = Server(folder=server.folder)
    check("a killed server's name is the next one's", after.socket() == path == shared, path)
    after.run("1")
    eventually("what it left is taken away", lambda: len(after.outputs()) < 2)
    after.end()
    os.unlink("%s-%d.sock" % (shared[:-5], server.process.pid))  # the name of its own goes some seconds later
    # Two servers at once for one name, over and over: each can be reached by one of its names.
    for number in range(rounds):
        pair = [Server(), Server()]
        paths = [server.socket() for server in pair]
        for server, path in zip(pair, paths):
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(path)
            pid = int.from_bytes(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
            peer.close()
            if pid != server.process.pid:
                check("round %d: the name leads to its own server" % number, False, (paths, pid))
        if len(set(paths)) != 2:
            check("round %d: two names" % number, False, paths)
        for server in pair:
            server.end()
    left = [name for name in os.listdir("/tmp") if name.startswith("python-interpreter-%d" % os.getpid())]
    check("%d races for one name; no name is left" % rounds, not left, left)


def torn():
    server = Server()
    result = server.call("add_interpreter", name="kept", python_path=PYTHON, save=True, env={"A": "ü"}, description="d")
    check("a configuration is saved", not result["isError"], result)
    path = os.path.join(server.folder, "home/.claude-workspace/python_interpreter/interpreters.json")
    whole = open(path, "rb").read()
    for size in range(len(whole)):
        with open(path, "wb") as file:
            file.write(whole[:size])
        listed = server.call("list_interpreters")["structuredContent"]["result"]
        if [one["name"] for one in listed][:1] != ["builtin"]:
            check("torn at %d: the list" % size, False, listed)
        result = server.call("add_interpreter", name="other", python_path=PYTHON, save=True)
        text = result["content"][0]["text"]
        good = size >= len(whole.rstrip())  # but for its last newline it is whole
        if result["isError"] == good or (not good and ("interpreters.json can't be read and is left as it is" not in text
                                                       or open(path, "rb").read() != whole[:size])):
            check("torn at %d: left as it is, and said" % size, False, result)
    check("interpreters.json torn at each of its %d bytes is left as it is, and said to be" % len(whole), True)
    server.end()


def main():
    global BINARY, PYTHON
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    # Not under /tmp, which some rounds hide.
    place = tempfile.mkdtemp(prefix="mcp-py-faults-", dir="/var/tmp")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    os.chmod(place, 0o755)
    BINARY, PYTHON = shutil.copy(given.server, os.path.join(place, "mcp-py")), sys.executable
    print("seed %d" % given.seed, flush=True)
    stops()
    if ROOT:
        full_disks()
    else:
        print("  not run: full disks, another user (needs root)")
    resources()
    places()
    clock()
    names(given.rounds // 4)
    torn()
    kills(random.Random(given.seed), given.rounds)
    print("%d fault checks passed" % passed)


main()
