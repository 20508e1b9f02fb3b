#!/usr/bin/env python3
"""Two hundred starts of server, added interpreter and install at once, where CLOEXEC is set late: none may hang.

Usage: starts.py PROGRAM FOLDER. Eight servers at a time, each of which starts its builtin, adds an interpreter and
installs a package by an installer of ours, while it is asked for its tools and its session.
"""
import concurrent.futures
import json
import os
import subprocess
import sys
import threading

program, folder = sys.argv[1:]
SERVERS, AT_ONCE, SECONDS_MAX = 200, 8, 60
bin_folder = os.path.join(folder, "bin")
os.makedirs(bin_folder)
with open(os.path.join(bin_folder, "uv"), "w") as file:
    file.write("#!/bin/sh\nsleep 0.1\necho 'error: zz_absent is in no index' >&2\nexit 1\n")
os.chmod(file.name, 0o755)

CALLS = [
    ("tools/list", {}),
    ("tools/call", {"name": "add_interpreter", "arguments": {"name": "other", "python_path": sys.executable}}),
    ("tools/call", {"name": "execute", "arguments": {"code": "import zz_absent"}}),
    ("tools/call", {"name": "execute", "arguments": {"code": "6 * 7", "interpreter": "other"}}),
    ("tools/call", {"name": "get_session_info", "arguments": {}}),
]


def start(number):
    """Returns what was wrong, if anything was."""
    home = os.path.join(folder, "home%d" % (number % AT_ONCE))  # environments are made once each
    os.makedirs(home, exist_ok=True)
    environment = {"HOME": home, "PATH": bin_folder + ":/usr/bin:/bin", "MCP_PY_PYTHON": sys.executable}
    server = subprocess.Popen([program, "server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, env=environment)
    too_late = threading.Timer(SECONDS_MAX, server.kill)
    too_late.start()
    try:
        for number, (method, params) in enumerate(CALLS):
            request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            server.stdin.write((json.dumps(request) + "\n").encode())
        server.stdin.flush()
        answers = {}
        while len(answers) < len(CALLS):
            line = server.stdout.readline()
            if not line:
                return "it was killed after %d s, with answers to %s" % (SECONDS_MAX, sorted(answers))
            answer = json.loads(line)
            answers[answer["id"]] = json.dumps(answer)
        server.stdin.close()
        code = server.wait()
    finally:
        too_late.cancel()
        server.stdout.close()
    signs = ["inputSchema", '"name": "other"', "zz_absent could not be installed", '"text": "42"', "socket_path"]
    missing = [sign for number, sign in enumerate(signs) if sign not in answers[number]]
    return "%s is missing, exit code %d: %s" % (missing, code, answers) if missing or code else None


with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
    wrong = [trouble for trouble in pool.map(start, range(SERVERS)) if trouble]
for trouble in wrong[:5]:
    print("FAILED:", trouble)
print("%d starts passed" % (SERVERS - len(wrong)))
sys.exit(bool(wrong))
