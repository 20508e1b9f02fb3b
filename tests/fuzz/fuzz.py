"""Random input, seeded and bounded, on three ways in: lines on stdin, bytes on the socket, frames of a lying worker. And
random cells, whose answers must say the same in each of their three shapes.

    python3 fuzz.py SERVER [--seed N] [--lines N] [--requests N] [--frames N] [--cells N]

The seed is printed; the same seed gives the same input. After each batch the server must answer a good request, every
line of its stdout must be a JSON-RPC message, every request is answered once, every answer on the socket a whole HTTP
response; at the end memory, threads, descriptors and children are what they were. More is one number away: --lines 5000000.
"""
import argparse
import collections
import json
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time

DEADLINE = 60.0  # seconds for any answer, on a loaded machine
RSS_KIB_MAX = 20 << 10
PEAK_KIB_MAX = 40 << 10  # a line, a request or a frame at its limit beside that
BATCH = 500
HEAD_BYTES_MAX = 16 << 10
STATUSES = {200, 400, 404, 405, 408, 411, 413, 417, 431, 501, 503}
passed = 0


def fail(what, came=None):
    sys.exit("FAILED: %s\n%s" % (what, "" if came is None else repr(came)[:4000]))


class Server:
    def __init__(self, binary, **env):
        self.folder = tempfile.mkdtemp(prefix="mcp-py-fuzz-")
        env = {"PATH": os.environ["PATH"], "HOME": self.folder, "TMPDIR": self.folder, "MCP_PY_PYTHON": sys.executable,
               "MCP_PY_TIMEOUT": "5", "MCP_PY_AUTO_INSTALL": "off", **env}
        self.process = subprocess.Popen([binary, "server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, env=env, cwd=self.folder)
        self.answers, self.arrived, self.last, self.trouble = {}, threading.Condition(), 0, None
        self.told = collections.Counter()  # answers to random requests, by id as JSON
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            try:
                message = json.loads(line)
                good = message.get("jsonrpc") == "2.0" and (
                    ("method" in message and set(message) <= {"jsonrpc", "method", "params"})
                    or (("result" in message) != ("error" in message) and set(message) <= {"jsonrpc", "id", "result", "error"}))
            except ValueError:
                message, good = {}, False
            with self.arrived:
                self.trouble = self.trouble or (None if good else line)
                if message.get("id") is not None and not str(message["id"]).startswith("good-"):
                    self.told[json.dumps(message["id"])] += 1
                if isinstance(message.get("id"), str):
                    self.answers[message["id"]] = message
                self.arrived.notify_all()

    def send(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def request(self, method, params=None, seconds=DEADLINE):
        self.last += 1
        name = "good-%d" % self.last
        message = {"jsonrpc": "2.0", "id": name, "method": method}
        self.send((json.dumps(dict(message, params=params) if params else message) + "\n").encode())
        with self.arrived:
            if not self.arrived.wait_for(lambda: name in self.answers or self.trouble, seconds):
                fail("%s is not answered within %g s" % (method, seconds), params)
            if self.trouble:
                fail("not a JSON-RPC message", self.trouble)
            answer = self.answers.pop(name)
            self.answers.clear()  # of the random ones
            return answer

    def call(self, tool, **arguments):
        return self.request("tools/call", {"name": tool, "arguments": arguments})["result"]

    def facts(self):
        place = "/proc/%d" % self.process.pid
        status = dict(line.split(":", 1) for line in open(place + "/status").read().splitlines())
        children = []
        for task in os.listdir(place + "/task"):
            try:
                children += open("%s/task/%s/children" % (place, task)).read().split()  # zombies, too
            except OSError:
                pass  # it has just ended
        self.peak = int(status["VmHWM"].split()[0])
        return int(status["VmRSS"].split()[0]), int(status["Threads"]), len(os.listdir(place + "/fd")), len(children)

    def at_rest(self, before):
        end = time.monotonic() + DEADLINE
        while True:
            now = self.facts()
            if now[0] < RSS_KIB_MAX and all(is_now <= was for is_now, was in zip(now[1:], before[1:])):
                if self.peak > PEAK_KIB_MAX:
                    fail("it took more memory than its limits allow: KiB", self.peak)
                return now[0]
            if time.monotonic() > end:
                fail("it does not come to rest: KiB, threads, descriptors, children", (now, before))
            time.sleep(0.05)

    def end(self):
        self.process.stdin.close()
        if self.process.wait(10) != 0:
            fail("its exit code", self.process.returncode)
        shutil.rmtree(self.folder, ignore_errors=True)


# -- what is random ---------------------------------------------------------------------------------------------------

ODD = [b"\x00", b"\xff\xfe", b"\r", b"\n", b"\r\n\r\n", b'"', b"\\", b"\\ud800", b"{", b"}", b"[" * 200, b"]" * 200, b"{\"a\":" * 130,
       b"9" * 400, b"-", b"1e999", b"\xc3", b"\xed\xa0\x80", b"null", b"true", b"\t", b" " * 300, b":", b",", b"%s%n", b"A" * 5000]
VALUES = [None, True, 0, -1, 1.5, 1e300, 2**64, "", "x", "\ud800", [], {}, [[]], {"a": {}}, "A" * 3000, ["1"] * 50, "\U0001f600é" * 500]


def mutated(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data[at:at] = rng.choice(ODD)
        elif kind == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.choice((1, 3, 20, 400))]
        elif kind == 3:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[other : other + rng.choice((1, 8, 60))]
        else:
            del data[at:]
    return bytes(data)


def message(rng):
    """A JSON-RPC message, good or nearly."""
    codes = ["1", "x = 1", "print('a' * 100)", "1/0", "x", "raise SystemExit(2)", "é", "def f(:", "", "await 1"]
    arguments = {"code": rng.choice(codes), "timeout": rng.choice([1, 0.5, None]), "interpreter": rng.choice(["builtin", "no", None])}
    given = {name: value for name, value in arguments.items() if rng.random() < 0.7}
    if rng.random() < 0.3:
        given[rng.choice(["code", "name", "timeout", "other"])] = rng.choice(VALUES)
    tool = rng.choice(["execute", "execute", "list_vars", "reset", "no_such_tool", "stop_interpreter", 5])
    params = rng.choice([None, {}, {"name": tool, "arguments": given}, {"name": tool, "arguments": rng.choice(VALUES)},
                         {"requestId": rng.randrange(50)}, rng.choice(VALUES)])
    meta = {"io.modelcontextprotocol/protocolVersion": rng.choice(["2026-07-28", "2025-11-25", "1", 5]),
            "io.modelcontextprotocol/clientCapabilities": rng.choice([{}, None, 1]),
            "io.modelcontextprotocol/clientInfo": rng.choice([{"name": "f", "version": "1"}, None])}
    if isinstance(params, dict) and rng.random() < 0.3:
        params["_meta"] = {key: value for key, value in meta.items() if rng.random() < 0.8}
    method = rng.choice(["tools/call"] * 6 + ["ping", "tools/list", "initialize", "server/discover", "notifications/cancelled",
                        "notifications/initialized", "logging/setLevel", "subscriptions/listen", "", 5, None])
    whole = {"jsonrpc": rng.choice(["2.0"] * 9 + ["1.0"]), "id": rng.choice([rng.randrange(50), "s%d" % rng.randrange(1 << 40), None, 1.5, []]),
             "method": method, "params": params}
    left = {key: value for key, value in whole.items() if rng.random() < 0.95}
    return json.dumps(left).encode("utf-8", "surrogatepass")


def http_request(rng):
    body = json.dumps(rng.choice([{"code": "1"}, {"code": "print(2)", "stream": True}, {"code": 5}, {}, {"interpreter": "no", "code": "1"},
                                  {"code": "1", "timeout": rng.choice(VALUES[:9])}, rng.choice(VALUES)])).encode()
    target = rng.choice(["/execute"] * 4 + ["/health", "/interrupt", "/tools/list_vars", "/tools/execute", "/tools/no", "/", "*",
                        "http://localhost/health?x=1", "/execute?a=b", "/%00"])
    lines = ["%s %s HTTP/%s" % (rng.choice(["POST"] * 5 + ["GET", "HEAD", "PUT", "BREW"]), target, rng.choice(["1.1"] * 5 + ["1.0", "2", ""]))]
    lines += ["Host: localhost"] * rng.choice((1, 1, 1, 1, 0, 2))
    lines += ["Content-Length: %s" % rng.choice([len(body)] * 6 + [0, 5, len(body) + 9, "+1", "-1", "9" * 30, "1, 1", 20 << 20])] * rng.choice((1, 1, 1, 0, 2))
    lines += rng.choice([[]] * 8 + [["Transfer-Encoding: chunked"], ["Transfer-Encoding: gzip"], ["Expect: 100-continue"], ["Expect: tea"],
                         ["X: " + "y" * 17000], ["A : b"], [" folded"], ["Connection: keep-alive"], ["N:\x00"]])
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# -- the four targets ------------------------------------------------------------------------------------------------

def stdin_lines(binary, rng, count):
    server = Server(binary)
    server.call("execute", code="1")
    before = server.facts()
    must, may = collections.Counter(), collections.Counter()
    for start in range(0, count, BATCH):
        if start == 0:
            server.send(b"[" * (64 << 20) + b"\n")  # one over the limit
        for _ in range(min(BATCH, count - start)):
            good = message(rng)
            line = mutated(rng, good)
            for piece in line.split(b"\n"):
                name = id_of(piece)
                may[name] += 1
                must[name] += line == good and name.startswith('"')  # nobody cancels those
            server.send(line + b"\n")
        if server.request("ping").get("result") != {}:
            fail("ping", server.answers)
    result = server.call("execute", code="6 * 7", timeout=DEADLINE)
    if not result["content"][0]["text"].endswith("42"):
        fail("the last good cell", result)
    with server.arrived:
        server.arrived.wait_for(lambda: not must - server.told, DEADLINE)
        if must - server.told or server.told - may:
            fail("requests that are not answered, answers too many, by id", (must - server.told, server.told - may))
    if "server_pid" not in server.call("get_session_info").get("structuredContent", {}):
        fail("the last errand")
    rss = server.at_rest((0, before[1] + 1, before[2] + 6, before[3]))
    server.end()
    return rss


def id_of(line):
    """As JSON; an empty text where it has none."""
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return ""
    name = found.get("id") if isinstance(found, dict) else None
    name = re.sub("[\ud800-\udfff]", "\ufffd", name) if isinstance(name, str) else name
    return json.dumps(name) if isinstance(name, (str, int)) else ""


def answer_of(path, data, rng, pieces=1, half_close=True):
    """What comes for these bytes: None where nothing does."""
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(DEADLINE)
    peer.connect(path)
    came = b""
    try:
        step = max(1, len(data) // pieces)
        for at in range(0, len(data), step):
            peer.sendall(data[at : at + step])
        if half_close:
            peer.shutdown(socket.SHUT_WR)
        while True:
            more = peer.recv(1 << 16)
            if not more:
                break
            came += more
    except (BrokenPipeError, ConnectionResetError):
        pass  # it was refused before it was read
    except socket.timeout:
        fail("no answer", data)
    peer.close()
    return came


def check_response(data, came, whole):
    came = came.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"", 1)
    if not came:
        return whole and fail("a whole request is not answered", data)
    head, end, body = came.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if not end or words[0] != b"HTTP/1.1" or int(words[1]) not in STATUSES:
        fail("not a response", (data, came))
    if len(data.split(b"\r\n\r\n")[0]) > HEAD_BYTES_MAX and words[1] not in (b"400", b"431"):
        fail("a head over the limit is served", (data, came))
    length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    if length and len(body) != int(length[0].split(b":")[1]) and (body or not data.startswith(b"HEAD ")):
        fail("a response of another length", (data, came))
    while b"\r\nTransfer-Encoding: chunked" in head and body != b"0\r\n\r\n":
        size, _, rest = body.partition(b"\r\n")
        size = int(size or b"0", 16)
        if size == 0 or rest[size : size + 2] != b"\r\n":
            fail("a stream that is not whole", (data, came))
        body = rest[size + 2 :]


def late_requests(binary, request):
    """Every prefix of a request, whose end never comes: each gets its 408, sixty at a time."""
    server = Server(binary, MCP_PY_HURRY="20")
    path = server.call("get_session_info")["structuredContent"]["socket_path"]
    for start in range(0, len(request), 60):
        peers = []
        for end in range(start, min(start + 60, len(request))):
            peers.append(socket.socket(socket.AF_UNIX))
            peers[-1].settimeout(DEADLINE)
            peers[-1].connect(path)
            peers[-1].sendall(request[:end])
        for peer in peers:
            came = peer.recv(1 << 16)
            if not came.startswith(b"HTTP/1.1 408 "):
                fail("a request that does not arrive", came)
            peer.close()
    server.end()


# Ahead of it may stand what the call of somebody who went away had printed.
GOOD_ANSWER = rb'"result":"(\[mcp-py: [^"\]]* was cancelled; [^"]*\]\\n)*42"'


def socket_bytes(binary, rng, count):
    server = Server(binary)
    server.call("execute", code="1")
    path = server.call("get_session_info")["structuredContent"]["socket_path"]
    before = server.facts()
    good = b'POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: 17\r\n\r\n{"code": "6 * 7"}'
    late_requests(binary, good)
    whole = [good[:at] for at in range(len(good))]  # every prefix, and then a half-close
    for number in range(count):
        request = http_request(rng)
        data = whole[number] if number < len(whole) else mutated(rng, request)
        body = request.partition(b"\r\n\r\n")[2]
        awaited = any(len(body) < int(length) < 1 << 20 for length in re.findall(rb"Content-Length: (\d+)\r\n", request))
        complete = data == request and not awaited
        if rng.random() < 0.05:
            data += mutated(rng, http_request(rng))  # pipelined: ignored
        if number % 10 == 9:  # one that goes away at once, its answer unread
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(path)
            try:
                peer.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
            peer.close()
            continue
        check_response(data, answer_of(path, data, rng, rng.choice((1, 1, 1, 2, 7))), complete)
        if number % BATCH == 0:
            came = answer_of(path, good, rng, half_close=False)
            if not re.search(GOOD_ANSWER, came):
                fail("the next good request", came)
    if not re.search(GOOD_ANSWER, answer_of(path, good, rng)):
        fail("the last good request")
    rss = server.at_rest((0, before[1] + 1, before[2] + 2, before[3]))
    server.end()
    return rss


LIAR = r'''#!%s
import os, random, socket, sys, time
rng = random.Random(int(os.environ["LIAR_SEED"]) + int(open(os.environ["LIAR_COUNT"]).read() or 0))
control = socket.socket(fileno=0)
control.settimeout(20)
size = int(sys.argv[2].split(".read(")[1].split(")")[0])
while size > 0:
    size -= len(control.recv(min(size, 65536)))
frames = [b'{"op": "ready", "version": "3", "pid": ' + str(os.getpid()).encode() + b'}', b'{"op": "ready"}', b'{"op": "done", "result": "1", "error": null, "exit": 0, "notes": []}',
    b'{"op": "done"}', b'{"op": "part", "text": "abc"}', b'{"op": "image", "kind": "png", "data": "iVBORw0KGgo=", "more": false}',
    b'{"op": "image", "kind": "jpeg", "data": "/9j/wAAL", "more": false}', b'{"op": "image", "kind": "html", "data": 5, "more": true}', b'{"op": "look", "number": 1}', b'{"op": "install", "number": 1, "name": "zz", "package": "zz"}',
    b'{"op": "install", "number": [], "name": "zz", "package": "--x"}', b'{"op": "look", "number": []}',
    b'{"op": "done", "result": 5, "error": [], "exit": 1e99, "notes": [1, "n"]}', b'{}', b'[]', b'5', b'not json', b'\xff\xff',
    b'{"op": "done", "result": "' + b"a" * 300000 + b'", "error": null, "exit": 0, "notes": []}', b'{"op": 5}', b'{"op": "part", "text": null}']
def say(frame):
    frame = bytearray(frame)
    if rng.random() < 0.2 and frame:
        frame[rng.randrange(len(frame))] = rng.randrange(256)
    control.sendall(frame + (b"\n" if rng.random() < 0.95 else b""))
if "LIE" in os.environ:
    control.sendall(frames[0] + b"\n")
    control.recv(1 << 16)
    control.sendall(eval(os.environ["LIE"]))
    time.sleep(20)
if rng.random() < 0.9:
    control.sendall(frames[0] + b"\n")
while True:
    if rng.random() < 0.3:
        os.write(rng.choice((1, 2)), b"printed\n" * rng.randrange(1, 2000))
    if control.recv(1 << 16) == b"":
        break
    for _ in range(rng.randrange(1, 6)):
        say(rng.choice(frames))
    if rng.random() < 0.1:
        os._exit(rng.randrange(4))
'''


# What ends a worker, for ours never sends it.
LIES = [r"b'not json\n'", r"""b'{"op": 5}\n'""", r"""b'{"op": "ready"}\n'""", r"""b'{"op": "done"}\n' * 2""",
        r"""b'{"op": "install", "number": 1, "name": "zz", "package": "--x"}\n'""", r"""b'{"op": "part", "text": "%s"}\n' % (b"a" * (5 << 20))""",
        r"b'a' * (64 << 20)"]


def lying_worker(binary, rng, count):
    seed = str(rng.randrange(1 << 30))
    server = Server(binary, MCP_PY_START_TIMEOUT="1", LIAR_SEED=seed)
    liar, counter = os.path.join(server.folder, "liar"), os.path.join(server.folder, "count")
    with open(liar, "w") as file:
        file.write(LIAR % sys.executable)
    os.chmod(liar, stat.S_IRWXU)
    server.call("execute", code="1")
    before = server.facts()
    config = {"name": "liar", "python_path": liar, "env": {"LIAR_SEED": seed, "LIAR_COUNT": counter}}
    for lie in LIES:
        server.call("add_interpreter", name="liar", python_path=liar, env={"LIE": lie, "LIAR_SEED": seed, "LIAR_COUNT": os.devnull})
        results = [server.call("execute", code="1", interpreter="liar", timeout=1) for _ in range(2)]
        if "broke the protocol" not in str(results):
            fail("a lie is believed", (lie, results))
    for number in range(count // 3):  # three frames a call, on average
        with open(counter, "w") as file:
            file.write(str(number))
        server.call("add_interpreter", **config)
        result = server.call("execute", code="1", interpreter="liar", timeout=1)
        if not result["content"] or result["content"][0]["type"] != "text":
            fail("no text", result)
        if number % 50 == 0 and server.call("execute", code="6 * 7")["content"][0]["text"] != "42":
            fail("another interpreter was disturbed")
    server.call("stop_interpreter", name="liar")
    rss = server.at_rest((0, before[1] + 1, before[2] + 6, before[3]))
    server.end()
    return rss


LENGTHS = [0, 0, 1, 100, 4999, 5000, 15000, 19999, 20000, 20001, 24998, 24999, 25000, 25001, 30000, 99990, 100010, 180020,
           262140, 262150, 600000]
CUT = re.compile(r"\n?\[mcp-py: … [\d,]+ characters left out …\]\n")


def only_ascii(text):
    """A text without the escapes of bytes that are no text, and without other characters than ASCII's."""
    return re.sub(r"\\x[0-9a-f]{2}|[^\x00-\x7f]", "", text)


def random_cell(rng):
    lines = ["import os, sys"]
    for _ in range(rng.randrange(3)):
        name, number = rng.choice([("stdout", 1), ("stdout", 1), ("stderr", 2)])
        bytes_of_none = "os.write(%d, b'\\xff\\xe2' * %d)" % (number, rng.randrange(20000))
        text = "sys.%s.write(%r * %d)" % (name, rng.choice(["a", "é", "\U0001f600", "aé", "\n", "x\n"]), rng.choice(LENGTHS))
        lines.append("sys.%s.flush(); None" % name if rng.random() < 0.1 else bytes_of_none if rng.random() < 0.2 else text)
    lines.append("%r * %d" % (rng.choice(["r", "é"]), rng.choice(LENGTHS)) if rng.random() < 0.7 else rng.choice(["1/0", "None"]))
    return "\n".join(lines)


def three_shapes(binary, rng, count):
    """A cell's answer by MCP, as a stream, and as the client shows it, cut and in full."""
    server = Server(binary)
    path = server.call("get_session_info")["structuredContent"]["socket_path"]

    def without_number(text):
        return re.sub(r"<cell \d+>", "<cell>", text)

    def streamed(code):
        body = json.dumps({"code": code, "stream": True}).encode()
        came = answer_of(path, b"POST /execute HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body, rng)
        events = [json.loads(line) for line in came.decode().split("\r\n\r\n", 1)[1].split("\n") if line]
        texts = ["".join(event.get(kind, "") for event in events) for kind in ("stdout", "stderr", "result")]
        return [without_number(text) for text in texts], events[-1].get("output_file")

    def by_client(code, *options):
        ended = subprocess.run([binary, "client", "--socket", path, *options, "-c", code], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=DEADLINE)
        return ended.returncode, without_number(ended.stdout.decode()), without_number(ended.stderr.decode())

    def joined(out, err, last):
        return "\n".join([text.removesuffix("\n") for text in (out, err) if text] + [last] * (last != ""))

    def with_line(text, line):
        """What a terminal has when a line of its own is printed behind a text."""
        return text + "\n" * (text != "" and not text.endswith("\n")) + line + "\n" if line else text

    for _ in range(count):
        code = random_cell(rng)
        raised = "1/0" in code
        text = without_number(server.call("execute", code=code)["content"][0]["text"])
        (out, err, last), its_file = streamed(code)
        expected = (1, out, with_line(err, last)) if raised else (0, with_line(out, last), err)
        exit, shown_out, shown_err = by_client(code)
        if by_client(code, "--full") != expected:
            fail("the client in full does not show what the stream has", code)
        file = re.search(r"\n# Full output: (\S+)\n", text)
        if (file is None) != (its_file is None):
            fail("the tool and the stream do not agree what is long", (code, file, its_file))
        if file is None:
            if joined(out, err, last) != text:
                fail("the stream and the tool's answer differ", (code, text[-200:], joined(out, err, last)[-200:]))
            if (exit, shown_out, shown_err) != expected:
                fail("the client cuts what is short", (code, shown_out[-200:], shown_err[-200:]))
            continue
        with open(file[1], "rb") as whole:
            whole = whole.read().decode("utf-8", "backslashreplace")
        result = "" if raised else last
        shown = out + result + err
        if "\\xff" in code or not code.isascii():  # there a piece of one stream may stand amid a character of the other
            shown, whole = only_ascii(shown), only_ascii(whole)
        if sorted(shown.replace("\n", "")) != sorted(whole.replace("\n", "")):
            fail("the file of a long answer and its stream do not agree", code)
        before, notice, after = re.split(r"(={50}\n# OUTPUT TRUNCATED\n(?:.*\n){2}={50}\n)", shown_err)
        if after != (last + "\n" if raised else ""):
            fail("what follows the notice of a long answer", (code, after[:200]))
        sizes = [int(re.search("# Original size: (.*) chars", where)[1].replace(",", "")) for where in (notice, text)]
        if abs(sizes[0] - sizes[1]) > 1:  # the result begins a line behind whichever stream came last, by chance
            fail("the client and the tool do not agree how long it is", (code, sizes))
        wholes, cuts = [(out + result).replace("\n", ""), err.replace("\n", "")], [CUT.split(shown_out), CUT.split(before)]
        ends = [(pieces[0].replace("\n", ""), pieces[-1].replace("\n", "")) for pieces in cuts]
        fit = [whole.startswith(head) and whole.endswith(tail) for whole, (head, tail) in zip(wholes, ends)]
        length = sum(map(len, sum(cuts, [])))
        if not all(fit) or not 25000 - 8 <= length <= 25000 + 8 or exit != raised:  # lines that begin anew have a newline
            fail("the client shows other ends", (code, fit, length, [list(map(len, pieces)) for pieces in cuts]))
        os.remove(file[1])
    rss = server.at_rest((0, 99, 99, 9))
    server.end()
    return rss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--frames", type=int, default=2_000)
    parser.add_argument("--cells", type=int, default=300)
    given = parser.parse_args()
    print("seed %d" % given.seed, flush=True)
    targets = [("lines on stdin", stdin_lines, given.lines), ("requests on the socket", socket_bytes, given.requests),
               ("frames of a lying worker", lying_worker, given.frames), ("cells in three shapes", three_shapes, given.cells)]
    for name, target, count in targets:
        began = time.monotonic()
        rss = target(os.path.abspath(given.server), random.Random("%d %s" % (given.seed, name)), count)
        print("  ok: %d %s, %.0f s, %.1f MB at rest" % (count, name, time.monotonic() - began, rss / 1024), flush=True)
    print("%d fuzz checks passed" % len(targets))


main()
