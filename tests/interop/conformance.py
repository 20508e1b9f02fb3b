"""The official conformance suite's server scenarios that fit a server of tools, through a pass-through from HTTP to stdio.

    python3 conformance.py MODULES SERVER        MODULES is where npm installed node@22 and @modelcontextprotocol/conformance

The suite speaks Streamable HTTP; each POST here becomes a line on the server's stdin, and what comes back for it the answer: a
stream of events where the request asks for progress or listens, else one object, with the status that the transport wants for
its error. Where a scenario calls a tool of its own, the call becomes an `execute` of a cell that does what that tool does. One
server for each scenario. A check that fails fails the run unless it is in NOT_OURS; so does one that is there and passes.
"""
import http.server
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MODULES, SERVER = (os.path.abspath(path) for path in sys.argv[1:3])
MODERN = "2026-07-28"
SCENARIOS = [
    (name, version)
    for version, names in (
        ("2025-06-18", "server-initialize ping tools-list tools-call-simple-text tools-call-error tools-call-image tools-call-with-progress"),
        ("2025-11-25", "server-initialize ping tools-list tools-call-simple-text tools-call-error tools-call-image tools-call-with-progress"),
        (MODERN, "server-stateless caching tools-list tools-call-simple-text tools-call-error tools-call-image tools-call-with-progress"),
    )
    for name in names.split()
]
# Checks of what a server of tools does not have, or of the HTTP transport alone, by a word that their names have.
NOT_OURS = {
    "server-stateless": {
        "header-mismatch": "the transport's: stdio has no headers",
        "undeclared-capability": "asks for a tool that needs a client's capability: ours need none",
        "missing-capability-http": "the same",
        "no-independent-requests": "asks for a tool that elicits",
        "no-log-without-loglevel": "asks for a tool that logs",
    },
    "caching": {
        "prompts-list": "no prompts",
        "resources-list": "no resources",
        "resources-templates": "no resources",
    },
}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CELLS = {
    "test_simple_text": "print('This is a simple text response for testing.')",
    "test_error_handling": "raise RuntimeError('This tool intentionally returns an error for testing')",
    "test_image_content": "import base64\nclass Picture:\n    def _repr_png_(self):\n        return base64.b64decode('%s')\nPicture()" % PNG,
    "test_tool_with_progress": "import time\nfor step in range(4):\n    print('step', step, flush=True)\n    time.sleep(1.1)",
}
STATUS = {-32601: 404, -32602: 400, -32022: 400}
ANSWER_SECONDS_MAX = 30.0


class PassThrough(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        modern = self.headers.get("MCP-Protocol-Version") not in (None, "2025-06-18", "2025-11-25")
        params = message.get("params") or {}
        if params.get("name") in CELLS:
            params.update(name="execute", arguments={"code": CELLS[params["name"]]})
        if message.get("method") == "subscriptions/listen" or "progressToken" in params.get("_meta", {}):
            return self.stream(message)
        answer = self.server.pass_on(message)
        code = (answer or {}).get("error", {}).get("code")
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(202 if answer is None else STATUS.get(code, 200) if modern else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, message):
        """Server-sent events until the answer has come or the client hangs up."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.server.write(message)
        sent, end = 0, time.monotonic() + ANSWER_SECONDS_MAX
        while time.monotonic() < end:
            with self.server.arrived:
                self.server.arrived.wait(0.05)
                news = self.server.told.get(self.server.owner(message), [])[sent:]
                answer = self.server.answers.pop(message["id"], None)
            for one in news + ([answer] if answer else []):
                self.wfile.write(b"data: %s\n\n" % json.dumps(one).encode())
            self.wfile.flush()
            sent += len(news)
            if answer:
                return
            if select.select([self.connection], [], [], 0)[0]:  # it hangs up: over stdio that is a cancellation
                self.server.write({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": message["id"]}})
                return

    def do_GET(self):
        self.send_response(405)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_DELETE = do_GET

    def log_message(self, *_):
        pass


class Bridge(http.server.ThreadingHTTPServer):
    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), PassThrough)
        env = {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder, "MCP_PY_PYTHON": sys.executable}
        self.process = subprocess.Popen([SERVER, "server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=folder)
        self.answers, self.told, self.arrived = {}, {}, threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    @staticmethod
    def owner(message):
        """By what the notifications of a request are known: its progress token, else its id."""
        return str((message["params"].get("_meta") or {}).get("progressToken", message["id"]))

    def read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            with self.arrived:
                if "method" in message:
                    params = message["params"]
                    owner = params.get("progressToken", params.get("_meta", {}).get("io.modelcontextprotocol/subscriptionId"))
                    self.told.setdefault(str(owner), []).append(message)
                else:
                    self.answers[message.get("id")] = message
                self.arrived.notify_all()

    def write(self, message):
        with self.arrived:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def pass_on(self, message):
        self.write(message)
        if "id" not in message or "method" not in message:
            return None
        with self.arrived:
            if not self.arrived.wait_for(lambda: message["id"] in self.answers, ANSWER_SECONDS_MAX):
                raise RuntimeError("no answer to %s" % message)
            return self.answers.pop(message["id"])

    def handle_error(self, request, address):
        """A client that hangs up while it is answered is no error here."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, address)


passed = 0
for scenario, version in SCENARIOS:
    with tempfile.TemporaryDirectory(prefix="mcp-py-conformance-") as folder:
        bridge = Bridge(folder)
        threading.Thread(target=bridge.serve_forever, daemon=True).start()
        command = [MODULES + "/node_modules/.bin/node", MODULES + "/node_modules/.bin/conformance", "server", "--url",
                   "http://127.0.0.1:%d/mcp" % bridge.server_port, "--scenario", scenario, "--spec-version", version, "-o", "results"]
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, timeout=120)
        bridge.shutdown()
        bridge.process.stdin.close()
        bridge.process.wait(10)
        checks = [check for file in Path(folder).glob("results/**/checks.json") for check in json.loads(file.read_text())]
    allowed = NOT_OURS.get(scenario, {})
    failed = [check["id"] for check in checks if check["status"] not in ("SUCCESS", "SKIPPED", "INFO")]
    wrong = [one for one in failed if not any(word in one for word in allowed)]
    stale = [word for word in allowed if not any(word in one for one in failed)]
    good = sum(check["status"] == "SUCCESS" for check in checks)
    fine = good and not wrong and not stale
    print("  %s: %s %s, %d checks passed, %d not ours" % ("ok" if fine else "FAILED", version, scenario, good, len(failed)), flush=True)
    if not fine:
        sys.exit("failed: %s; no longer failing: %s\n%s" % (wrong, stale, ran.stdout))
    passed += good
print("%d conformance checks passed" % passed)
