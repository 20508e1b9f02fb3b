"""A real Claude Code, with a model of ours: it is told to answer with tool calls, and what it is sent is looked at.

    python3 claude.py MODULES SERVER RECORDINGS        MODULES is where npm installed @anthropic-ai/claude-code

No account and no network are needed: ANTHROPIC_BASE_URL leads to this process, which streams the next call of a script as the
model's answer until the script is over. Claude Code runs each, and sends its result with the next request.
"""
import atexit
import http.server
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MODULES, SERVER, RECORDINGS = (os.path.abspath(path) for path in sys.argv[1:4])
CLAUDE = next(Path(MODULES).glob("node_modules/@anthropic-ai/claude-code-linux-*/claude"))
DEADLINE = 60.0  # seconds, of a whole session
TOOL = "mcp__python-interpreter__"
ALLOW = {"permissions": {"allow": ["Bash(mcp-py-client:*)"]}}  # as README has it
SANDBOX = {"sandbox": {"enabled": True}}
EXCLUDED = {"sandbox": {"enabled": True, "excludedCommands": ["mcp-py-client:*"]}}  # likewise
PICTURE = """import base64
class Picture:
    def _repr_png_(self):
        return base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')
Picture()"""


class Model(http.server.ThreadingHTTPServer):
    """The Messages API, as far as it takes."""

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Answer)
        self.script, self.requests = script, []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        blocks = [block for message in request.get("messages", ()) if isinstance(message["content"], list) for block in message["content"]]
        done = sum(block["type"] == "tool_result" for block in blocks)
        ours = any(tool["name"].startswith(TOOL) for tool in request.get("tools", ()))
        if ours:
            self.server.requests.append(request)
        calls = ours and done < len(self.server.script)
        name, given = self.server.script[done] if calls else ("", {})
        start = {"type": "tool_use", "id": "toolu_%03d" % done, "name": name, "input": {}} if calls else {"type": "text", "text": ""}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(given)} if calls else {"type": "text_delta", "text": "done"}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None, "stop_sequence": None,
                   "usage": {"input_tokens": 1, "output_tokens": 1}}
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for event in ({"type": "message_start", "message": message}, {"type": "content_block_start", "index": 0, "content_block": start},
                      {"type": "content_block_delta", "index": 0, "delta": delta}, {"type": "content_block_stop", "index": 0},
                      {"type": "message_delta", "delta": {"stop_reason": "tool_use" if calls else "end_turn"}, "usage": {"output_tokens": 1}},
                      {"type": "message_stop"}):
            self.wfile.write(("event: %s\ndata: %s\n\n" % (event["type"], json.dumps(event))).encode())

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


passed = 0


def check(what, good, came):
    global passed
    print("  %s: %s" % ("ok" if good else "FAILED", what), flush=True)
    if not good:
        sys.exit("%s" % (came,))
    passed += 1


def eventually(what, holds):
    end = time.monotonic() + DEADLINE
    while not holds():
        if time.monotonic() > end:
            check(what, False, "not within %g s" % DEADLINE)
        time.sleep(0.02)
    check(what, True, "")


def processes_with(text):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass  # it has ended, or is another user's
    return found


def results(request):
    """What the tool calls came to, as (text, is an error, kinds of blocks)."""
    told = []
    for message in request["messages"]:
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] == "tool_result":
                content = block["content"]
                content = [{"type": "text", "text": content}] if isinstance(content, str) else content
                text = "".join(part.get("text", "") for part in content)
                told.append((text, bool(block.get("is_error")), [part["type"] for part in content]))
    return told


with tempfile.TemporaryDirectory(prefix="mcp-py-claude-") as folder:
    project, home = Path(folder, "project_1.0"), Path(folder, "home")  # a name that Claude Code writes otherwise
    (project / ".claude").mkdir(parents=True)
    home.mkdir()
    settings = project / ".claude/settings.json"
    settings.write_text(json.dumps(ALLOW))
    env = {"PATH": "%s/.local/bin:%s" % (home, os.environ["PATH"]), "HOME": str(home), "TMPDIR": folder, "MCP_PY_PYTHON": sys.executable,
           "ANTHROPIC_API_KEY": "none", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "IS_SANDBOX": "1"}

    def run(*words, **more):
        ran = subprocess.run(words, env=dict(env, **more), cwd=project, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, timeout=DEADLINE)
        return ran.returncode, ran.stdout, ran.stderr

    told = run(SERVER, "install")
    line = next(line.split() for line in told[1].splitlines() if line.strip().startswith("claude mcp add"))
    told = run(CLAUDE, *line[1:])
    check("the line that install prints adds the server", told[0] == 0, told)
    told = run(CLAUDE, "mcp", "list")
    check("claude mcp list: connected", "Connected" in told[1], told)
    file = home / ".claude.json"
    known = json.loads(file.read_text())
    known["projects"][str(project.resolve())]["hasTrustDialogAccepted"] = True
    file.write_text(json.dumps(known))

    def session(script):
        """What the calls of a script come to, what Claude Code printed, and the last request to the model."""
        model = Model(script)
        told = run(CLAUDE, "-p", "go", "--allowedTools", "mcp__python-interpreter", "--output-format", "json",
                   ANTHROPIC_BASE_URL="http://127.0.0.1:%d" % model.server_port)
        check("a session ends well", told[0] == 0 and len(results(model.requests[-1])) == len(script), told)
        return results(model.requests[-1]), json.loads(told[1]), json.dumps(model.requests[-1])

    came, told, whole = session([
        (TOOL + "execute", {"code": "x = 5\nprint('hi')\nx"}),
        ("Bash", {"command": "mcp-py-client <<'PY'\nprint(x * 2)  # it's `the` same $x\nPY"}),
        (TOOL + "execute", {"code": PICTURE}),
        (TOOL + "execute", {"code": "print('a' * 30_000)"}),
        (TOOL + "execute", {"code": "1/0"}),
        (TOOL + "execute", {"code": "while True: pass", "timeout": 0.5}),
        (TOOL + "get_session_info", {}),
        (TOOL + "list_interpreters", {}),
        ("Bash", {"command": "mcp-py-client -c 'raise SystemExit(3)'"}),
    ])
    first, heredoc, picture, long, failed, late, info, listed, left = came
    check("a cell's answer", first == ("hi\n5", False, ["text"]), first)
    check("the client's heredoc needs no approval and sees the variable", heredoc[:2] == ("10", False), heredoc)
    check("a picture arrives as one", picture[2] == ["text", "image"], picture)
    check("25,000 characters arrive whole", len(long[0]) > 25_000 and "a" * 20_000 in long[0] and "# Original size: 30,001 chars" in long[0], long[0][-300:])
    check("an exception is an error", failed[1] and "ZeroDivisionError" in failed[0], failed)
    check("a time-out is told", late[1] and "timeout of 0.5 s" in late[0], late)
    ours = json.loads(info[0])
    check("the session is Claude's", ours["session_id"] == told["session_id"] and ours["host"] == "claude", (info, told))
    check("its transcript is there", Path(ours["transcript_path"]).is_file(), info)
    check("a structured result", json.loads(listed[0])["result"][0]["name"] == "builtin", listed)
    check("the client's exit code", left[0].startswith("Exit code 3"), left)
    check("the model reads our instructions", "One persistent Python." in whole and "add_interpreter` adds any other Python." in whole, whole[:8000])
    check("and of the client", "reaches the same interpreter by `mcp-py-client <<'PY'" in whole, whole[:8000])
    eventually("nothing is left running", lambda: not processes_with(folder))
    check("nor in /tmp", not os.path.exists(ours["socket_path"]) and not os.path.exists(ours["output_dir"]), ours)

    # A dict in a heredoc is taken for brace expansion, and the person is asked; README says so.
    heredoc = ("Bash", {"command": "mcp-py-client <<'PY'\nprint({'a': 1})\nPY"})
    plain = ("Bash", {"command": "mcp-py-client <<'PY'\nprint(dict(a=1))\nPY"})
    told = session([heredoc])[0][0]
    check("braces and quotes are asked about", told[1] and "brace" in told[0], told)
    settings.write_text(json.dumps({**ALLOW, **SANDBOX}))
    told = session([plain])[0][0]
    check("in its sandbox the client says that it is forbidden", told[1] and "a sandbox or another user may forbid it" in told[0], told)
    settings.write_text(json.dumps({**ALLOW, **EXCLUDED}))
    told = session([plain])[0][0]
    check("outside of it the client works", told[:2] == ("{'a': 1}", False), told)
    settings.write_text(json.dumps(ALLOW))

    # Esc: what it sends for that is the same as of a program that drives it.
    for name, spin in (("execute", lambda code: (TOOL + "execute", {"code": code})),
                       ("the client", lambda code: ("Bash", {"command": "mcp-py-client <<'PY'\n%s\nPY" % code}))):
        started = project / ("spins-" + name.replace(" ", "-"))
        model = Model([spin("x = 1\nopen(%r, 'w').close()\nwhile True: pass" % str(started)), (TOOL + "execute", {"code": "x + 1"})])
        driven = subprocess.Popen([CLAUDE, "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose", "--allowedTools",
                                   "mcp__python-interpreter"], cwd=project, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
                                  env=dict(env, ANTHROPIC_BASE_URL="http://127.0.0.1:%d" % model.server_port))
        atexit.register(driven.kill)

        def say(message):
            driven.stdin.write(json.dumps(message) + "\n")
            driven.stdin.flush()

        say({"type": "user", "message": {"role": "user", "content": "go"}})
        eventually("a cell of %s spins" % name, started.exists)
        say({"type": "control_request", "request_id": "1", "request": {"subtype": "interrupt"}})
        say({"type": "user", "message": {"role": "user", "content": "on"}})
        eventually("after Esc there is an answer", lambda: len(results(model.requests[-1])) == 2)
        told = results(model.requests[-1])[1]
        check("which has the variables", told[:2] == ("2", False), told)
        driven.stdin.close()
        driven.wait(DEADLINE)

    for number in signal.SIGINT, signal.SIGTERM, signal.SIGKILL:
        started = project / ("started-%d" % number)
        model = Model([(TOOL + "execute", {"code": "open(%r, 'w').close()\nwhile True: pass" % str(started)})])
        busy = subprocess.Popen([CLAUDE, "-p", "go", "--allowedTools", "mcp__python-interpreter"], cwd=project, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                env=dict(env, ANTHROPIC_BASE_URL="http://127.0.0.1:%d" % model.server_port))
        atexit.register(busy.kill)
        eventually("a cell runs", started.exists)
        busy.send_signal(number)
        busy.wait(DEADLINE)
        eventually("after signal %d to a busy Claude nothing is left running" % number, lambda: not processes_with(folder))
    told = run(CLAUDE, "mcp", "remove", "python-interpreter")
    check("it can be removed", told[0] == 0, told)
    recorder = [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "record.py"), RECORDINGS + "/claude.jsonl"]
    told = run(CLAUDE, "mcp", "add", "python-interpreter", "--", *recorder, SERVER, "server")
    check("it can be added again", told[0] == 0, told)
    came = session([(TOOL + "execute", {"code": "x = 1"}), (TOOL + "execute", {"code": "x"}), (TOOL + "reset", {}), (TOOL + "list_vars", {})])[0]
    check("a new session has its own variables", [text for text, *_ in came[1:]] == ["1", "Scope cleared (1 items removed)", "No variables defined"], came)
print("%d Claude Code checks passed" % passed)
