"""Packages and pictures with the real tools: uv and pip, wheels from a folder and from the index, matplotlib.

    python3 packages.py SERVER FOLDER UV        UV is the program; FOLDER is made and can be removed afterwards

Each check prints a line; the first that fails ends the run with exit 1 and says what came. As root it also makes a network
namespace without a network, where nobody answers a name server's port either.
"""
import base64
import fcntl
import glob
import hashlib
import json
import os
import select
import struct
import subprocess
import sys
import time
import venv
import zipfile

SERVER, FOLDER, UV = (os.path.abspath(path) for path in sys.argv[1:4])
ANSWER_SECONDS_MAX = 170.0
OFFLINE_SECONDS_MAX = 15.0  # the promise: a failed import without a network
passed = 0


def check(what, good, came=None):
    global passed
    print("  %s: %s" % ("ok" if good else "FAILED", what), flush=True)
    if not good:
        sys.exit("%s" % (came,))
    passed += 1


class Server:
    """One server in a HOME of its own, given line by line what it is asked."""

    def __init__(self, name, path, prefix=(), **env):
        home = os.path.join(FOLDER, name)
        os.makedirs(os.path.join(home, "tmp"), exist_ok=True)
        keep = {key: os.environ[key] for key in ("PIP_CERT", "SSL_CERT_FILE", "PIP_INDEX_URL") if key in os.environ}
        env = {**keep, "HOME": home, "TMPDIR": os.path.join(home, "tmp"), "PATH": path + ":/usr/bin:/bin:/usr/sbin:/sbin", **env}
        command = [*prefix, SERVER, "server"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=home, text=True)
        self.last = 0

    def start(self, code):
        self.last += 1
        arguments = {"name": "execute", "arguments": {"code": code, "timeout": ANSWER_SECONDS_MAX}}
        message = {"jsonrpc": "2.0", "id": self.last, "method": "tools/call", "params": arguments}
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def answer(self):
        content = json.loads(self.process.stdout.readline())["result"]["content"]
        return content[0]["text"], [base64.b64decode(block["data"]) for block in content[1:]]

    def run(self, code):
        self.start(code)
        return self.answer()[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(10)


def make_wheel(folder, name, version="1.0", requires=""):
    info, module = "%s-%s.dist-info" % (name, version), "x = 41 + 1\n"
    files = {
        name + ".py": module,
        info + "/METADATA": "Metadata-Version: 2.1\nName: %s\nVersion: %s\n%s" % (name, version, requires),
        info + "/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digest = lambda text: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    rows = ["%s,sha256=%s,%d" % (path, digest(text), len(text)) for path, text in files.items()]
    files[info + "/RECORD"] = "\n".join([*rows, info + "/RECORD,,", ""])
    with zipfile.ZipFile(os.path.join(folder, "%s-%s-py3-none-any.whl" % (name, version)), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def wheelhouse(kind, path, base):
    """Installs by cells, from wheels in a folder and without an index. Settings that would install elsewhere are not heeded."""
    wheels = os.path.join(FOLDER, "wheels")
    settings = {"MCP_PY_PYTHON": base, "UV_OFFLINE": "1", "UV_FIND_LINKS": wheels, "UV_NO_INDEX": "1"}
    if kind != "uv":
        settings = {"MCP_PY_PYTHON": base, "PIP_FIND_LINKS": wheels, "PIP_NO_INDEX": "1"}
    # What would put it elsewhere is not heeded.
    conf = os.path.join(FOLDER, "pip.conf")
    with open(conf, "w") as file:
        file.write("[install]\ntarget = /nowhere\nprefix = /nowhere\nroot = /nowhere\ndry-run = true\n")
    settings.update(PIP_CONFIG_FILE=conf, PIP_TARGET="/nowhere", PIP_USER="1", PIP_PYTHON=sys.executable, PIP_DRY_RUN="1",
                    UV_SYSTEM_PYTHON="1")
    with Server("wheels-" + kind, path, **settings) as one, Server("wheels-" + kind, path, **settings) as other:
        text = one.run("log = []\nlog.append(1); import zz_demo\nzz_demo.x, log")
        check("%s installs a wheel and the cell goes on" % kind, text == "[mcp-py: installed zz_demo 1.0]\n(42, [1])", text)
        for server in (one, other):
            server.run("import json")
        locks = glob.glob(os.path.join(FOLDER, "wheels-" + kind, ".claude-workspace/python_interpreter/env-*/install.lock"))
        with open(locks[0]) as held:  # as a server that installs something
            fcntl.flock(held, fcntl.LOCK_EX)
            for server in (one, other):
                server.start("import zz_both; zz_both.x")
            early = select.select([server.process.stdout for server in (one, other)], [], [], 2.0)[0]
        check("%s: an install waits for another server's" % kind, not early, early)
        texts = [server.answer()[0] for server in (one, other)]
        check("%s: two servers that need one package both get it" % kind, all(text.endswith("42") for text in texts), texts)
        one.run("import zz_older; import zz_old")
        text = one.run("import zz_newer")
        check("%s: what replaces a loaded package says so" % kind, "zz_newer 1.0, zz" in text and "\n[mcp-py: zz_old was loaded "
              "before the install brought another one: " in text and "zz_newer was" not in text, text)
        text = one.run("import zz_no_such_wheel")
        check("%s: what no wheel has is an import error" % kind, "zz_no_such_wheel could not be installed: " in text
              and text.endswith("ModuleNotFoundError: No module named 'zz_no_such_wheel'"), text)


def index(kind, path, base):
    """The real index, with one retry."""
    for module, package in (("cowsay", "cowsay"), ("PIL", "pillow")):
        for last in (False, True):
            with Server("index-%s-%s-%s" % (kind, module, last), path, MCP_PY_PYTHON=base, PIP_DEFAULT_TIMEOUT="60",
                        UV_HTTP_TIMEOUT="60") as server:
                began = time.monotonic()
                text = server.run("import %s; %s.__name__" % (module, module))
                good = text.startswith("[mcp-py: installed %s " % package) and text.endswith("]\n'%s'" % module)
                if good or last:
                    break
        check("%s installs %s from the index, %.1f s" % (kind, package, time.monotonic() - began), good, text)


SAMPLE = "dotenv slugify socks absl cpuinfo shapefile decouple barcode nmap usb serial jwt markdown_it pythonjsonlogger"


def names(base):
    """Some rows of the worker's table, held against what the index serves: the packages have these modules."""
    worker = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../src/worker.py"), encoding="utf-8").read()
    table = dict(row.split("=", 1) for row in worker.split("PACKAGES = ")[1].split('"""')[1].split())
    target = os.path.join(FOLDER, "names")
    packages = [table[module] for module in SAMPLE.split()]
    command = [base, "-m", "pip", "install", "-q", "--no-deps", "--target", target, "--retries", "3", *packages]
    ended = subprocess.run(command, capture_output=True, text=True)
    there = {entry.split(".")[0] for entry in os.listdir(target)} if ended.returncode == 0 else set()
    missing = [module for module in SAMPLE.split() if module not in there]
    check("%d packages of the table have the modules that it says" % len(packages), not missing, (missing, ended.stderr))


def sides(png):
    return struct.unpack(">II", png[16:24]) if png[:8] == b"\x89PNG\r\n\x1a\n" else None


def pictures(path, base):
    with Server("pictures", path, MCP_PY_PYTHON=base) as server:
        server.start("import matplotlib.pyplot as plt\nplt.figure(figsize=(3, 2)); plt.plot([1, 2])\n"
                     "plt.figure(figsize=(4, 5), dpi=50); plt.plot([2, 1]); None")
        text, blocks = server.answer()
        check("two figures of matplotlib are two pictures", [sides(png) for png in blocks] == [(300, 200), (200, 250)], text)
        check("nothing is said but where they are", all(line.startswith("[mcp-py: figure saved: ") for line in text.splitlines()), text)
        server.start("import warnings; warnings.simplefilter('error'); plt.plot([1]); plt.show(); plt.get_fignums()")
        text, blocks = server.answer()
        check("show shows, closes and does not warn", len(blocks) == 1 and text.endswith("\n[]"), text)
        server.start("for n in range(12): plt.figure(figsize=(1, 1)); plt.plot([n])")
        text, blocks = server.answer()
        check("of 12 figures there are 10 pictures and 12 files", (len(blocks), text.count("figure saved")) == (10, 12), text)


OFFLINE = """
import ctypes, os, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x40000000 | 0x20000) == 0, "no namespaces"  # CLONE_NEWNET | CLONE_NEWNS
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
subprocess.run([sys.executable, "-c", "import fcntl, socket, struct; s = socket.socket(); "
                "fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 0x41))"], check=True)  # SIOCSIFFLAGS: up
mute = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mute.bind(("127.0.0.1", 53))  # takes questions, gives no answer
mute.set_inheritable(True)
os.execv(sys.argv[2], sys.argv[2:])
"""


def offline(kind, path, base):
    resolv = os.path.join(FOLDER, "resolv.conf")
    with open(resolv, "w") as file:
        file.write("nameserver 127.0.0.1\n")
    with Server("offline-" + kind, path, (sys.executable, "-c", OFFLINE, resolv), MCP_PY_PYTHON=base) as server:
        server.run("1")
        began = time.monotonic()
        text = server.run("import nosuchmodule_4711")
        took = time.monotonic() - began
        check("%s: without a network an import fails in %.1f s" % (kind, took), took < OFFLINE_SECONDS_MAX, text)
        lines = text.splitlines()
        check("%s: with the traceback and one line" % kind, lines[0].startswith("[mcp-py: nosuchmodule_4711 could not be installed: ")
              and lines[1].startswith("Traceback") and lines[-1].startswith("ModuleNotFoundError"), text)
        text = server.run("import nosuchmodule_4712")
        check("%s: that there is no network is remembered" % kind, "ago there was no network]" in text, text)


def main():
    os.makedirs(os.path.join(FOLDER, "wheels"))
    for name in ("zz_demo", "zz_both"):
        make_wheel(os.path.join(FOLDER, "wheels"), name)
    for name, version, requires in (("zz_old", "1.0", ""), ("zz_old", "2.0", ""), ("zz_older", "1.0", "Requires-Dist: zz_old<2\n"),
                                    ("zz_newer", "1.0", "Requires-Dist: zz_old>=2\n")):
        make_wheel(os.path.join(FOLDER, "wheels"), name, version, requires)
    base = os.path.join(FOLDER, "base")  # as Debian's python3 with python3-pip has it, and matplotlib beside it
    venv.create(base, with_pip=True)
    python = os.path.join(base, "bin/python")
    before = sorted(os.listdir(next(iter(entry.path for entry in os.scandir(base + "/lib"))) + "/site-packages"))
    tools = {"uv": os.path.dirname(UV), "pip": "/nowhere"}
    # Where pip's settings alone say where to look, uv would not find it.
    for kind, path in [*tools.items(), ("pip-beside-uv", tools["uv"])]:
        wheelhouse(kind, path, python)
    for kind, path in tools.items():
        index(kind, path, python)
    names(python)
    if os.geteuid() == 0:
        for kind, path in tools.items():
            offline(kind, path, python)
    else:
        print("  not run: without a network (needs root)")
    after = sorted(os.listdir(next(iter(entry.path for entry in os.scandir(base + "/lib"))) + "/site-packages"))
    check("the base has what it had", before == after, (before, after))
    subprocess.run([python, "-m", "pip", "install", "-q", "matplotlib"], check=True)
    pictures("/nowhere", python)
    print("%d package checks passed" % passed)


main()
