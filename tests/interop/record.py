"""Runs a server and writes down every line that passes, in both directions.

    python3 record.py FILE COMMAND [ARGUMENT ...]

FILE gets one JSON object a line: {"dir": "in" | "out", "line": TEXT}, "in" being what the server reads. PID in its name
becomes the number of this process, for a server that is started several times. Bytes are passed on as they come, before
any decoding. A line to the server is written down just before it is passed on and a line from it just after, so a
request always stands before its answer. Bytes that are not UTF-8 become lone surrogates (surrogateescape), an
unfinished last line gets "partial": true. Standard library only.
"""
import json
import os
import signal
import subprocess
import sys
import threading


class Log:
    """One file, two writers: a line is written in one piece under the lock."""

    def __init__(self, path):
        self.file = open(path, "w", encoding="ascii")
        self.lock = threading.Lock()

    def line(self, direction, data, **more):
        text = data.decode("utf-8", "surrogateescape")
        with self.lock:
            self.file.write(json.dumps(dict({"dir": direction, "line": text}, **more)) + "\n")
            self.file.flush()


class Lines:
    """Cuts one direction's bytes into lines for the log."""

    def __init__(self, log, direction):
        self.log, self.direction, self.rest = log, direction, []

    def feed(self, data):
        *whole, rest = data.split(b"\n")
        for line in whole:
            self.log.line(self.direction, b"".join(self.rest) + line)
            self.rest = []
        self.rest.append(rest)

    def end(self):
        if b"".join(self.rest):
            self.log.line(self.direction, b"".join(self.rest), partial=True)


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def to_server(log, fd):
    lines = Lines(log, "in")
    try:
        while True:
            data = os.read(0, 1 << 20)
            if not data:
                break
            lines.feed(data)
            write_all(fd, data)
    except OSError:
        pass  # the server has gone: the other direction sees it too
    lines.end()
    os.close(fd)


def main():
    path, command = sys.argv[1].replace("PID", str(os.getpid())), sys.argv[2:]
    log = Log(path)
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _frame: server.send_signal(n))
    # A daemon: when the server has gone, nobody waits for more input.
    threading.Thread(target=to_server, args=(log, os.dup(server.stdin.fileno())), daemon=True).start()
    server.stdin.close()
    lines, reader = Lines(log, "out"), server.stdout.fileno()
    while True:
        data = os.read(reader, 1 << 20)
        if not data:
            break
        try:
            write_all(1, data)
        except OSError:
            break
        lines.feed(data)
    lines.end()
    server.stdout.close()
    code = server.wait()
    sys.stdout = None  # closed or not, nothing of ours is in it
    os._exit(code if code >= 0 else 128 - code)


main()
