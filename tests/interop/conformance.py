"""The official conformance suite's server scenarios that fit a server of tools, through a pass-through from HTTP to stdio.

    python3 conformance.py MODULES SERVER        MODULES is where npm installed node@22 and @modelcontextprotocol/conformance

The suite speaks Streamable HTTP; each POST here becomes a line on the server's stdin, and the line with its id the answer. The
other scenarios want a server made for them, with tools, resources and prompts of given names. One server for each scenario.
"""
import http.server
import json
import os
import re
import subprocess
import sys
import tempfile
import threading

MODULES, SERVER = (os.path.abspath(path) for path in sys.argv[1:3])
SCENARIOS = ("server-initialize", "ping", "tools-list")
ANSWER_SECONDS_MAX = 30.0


class PassThrough(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.server.pass_on(json.loads(body))
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(202 if answer is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.send_error(405)

    do_DELETE = do_GET

    def log_message(self, *_):
        pass


class Bridge(http.server.ThreadingHTTPServer):
    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), PassThrough)
        env = {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder, "MCP_PY_PYTHON": sys.executable}
        self.process = subprocess.Popen([SERVER, "server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=folder)
        self.answers, self.arrived = {}, threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            with self.arrived:
                self.answers[message.get("id")] = message
                self.arrived.notify_all()

    def pass_on(self, message):
        with self.arrived:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            if "id" not in message or "method" not in message:
                return None
            if not self.arrived.wait_for(lambda: message["id"] in self.answers, ANSWER_SECONDS_MAX):
                raise RuntimeError("no answer to %s" % message)
            return self.answers.pop(message["id"])


passed = 0
for scenario in SCENARIOS:
    with tempfile.TemporaryDirectory(prefix="mcp-py-conformance-") as folder:
        bridge = Bridge(folder)
        threading.Thread(target=bridge.serve_forever, daemon=True).start()
        command = [MODULES + "/node_modules/.bin/node", MODULES + "/node_modules/.bin/conformance", "server", "--url",
                   "http://127.0.0.1:%d/mcp" % bridge.server_port, "--scenario", scenario]
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, timeout=120)
        bridge.shutdown()
        bridge.process.stdin.close()
        bridge.process.wait(10)
    counts = re.search(r"Passed: (\d+)/(\d+)", ran.stdout)
    good = ran.returncode == 0 and counts and counts.group(1) == counts.group(2) != "0"
    print("  %s: %s%s" % ("ok" if good else "FAILED", scenario, ", %s of %s checks" % counts.groups() if counts else ""), flush=True)
    if not good:
        sys.exit(ran.stdout)
    passed += 1
print("%d conformance checks passed" % passed)
