"""A model that says what a script says, for the real hosts, and what their scripts share.

Shared by claude.py, codex.py, training_loop.py, training_claude.py and training_codex.py. A host is led to a Model instead of its
own. That streams the next call of a script as the model's answer until the script is over, and keeps what it was asked. The host runs
each call, and sends its result with the next request.
"""
import atexit
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DEADLINE = 60.0  # seconds, of whatever is waited for
CLAUDE_TOOL = "mcp__python-interpreter__"
CODEX_NAMESPACE = "mcp__python_interpreter"
PICTURE_DATA = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PICTURE = """import base64
class Picture:
    def _repr_png_(self):
        return base64.b64decode(%r)
Picture()""" % PICTURE_DATA
passed = []
failed = []

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with all that is done at an exit


def check(what, good, came=None):
    if not good:
        failed.append(what)
        print("FAILED: %s\n%s" % (what, came), flush=True)
        sys.exit(1)
    passed.append(what)
    print("  ok: %s" % what, flush=True)


def eventually(what, holds, came=lambda: None):
    """Checks that something holds within the deadline; `came` says what there is instead."""
    end = time.monotonic() + DEADLINE
    while not holds():
        if time.monotonic() > end:
            check(what, False, "not within %g s\n%s" % (DEADLINE, came()))
        time.sleep(0.05)
    check(what, True)


def processes_with(text):
    """The living processes that have a text in their environment, without this one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid() and text.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass  # it has ended, or is another user's
    return found


def check_gone(folder):
    """Checks that nothing runs which was started for a folder."""
    eventually("nothing is left running", lambda: not processes_with(folder), lambda: processes_with(folder))


def folder_for(name):
    """A new folder. At the end of this process it goes, with what still runs that was started for it."""
    folder = tempfile.mkdtemp(prefix="mcp-py-%s-" % name)
    atexit.register(remove, folder)
    return folder


def remove(folder):
    for pid in processes_with(folder):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def answers_in(recording):
    entries = [json.loads(line) for line in recording.read_text().splitlines()]
    return [json.loads(entry["line"]).get("result", {}) for entry in entries if entry["dir"] == "out"]


def told_in(recordings, pattern):
    """The instructions of a server, and its tools by name, as the newest recording of this pattern has them."""
    answers = answers_in(max(Path(recordings).glob(pattern), key=os.path.getmtime))
    instructions = next(answer["instructions"] for answer in answers if "instructions" in answer)
    tools = next(answer["tools"] for answer in answers if "tools" in answer)
    return instructions, {tool["name"]: tool for tool in tools}


class Terminal:
    """A program in a terminal, which is tmux's, with a person who types."""

    def __init__(self, folder, command, cwd, env):
        self.env = {**env, "TERM": "xterm-256color", "LANG": "C.UTF-8", "TMUX_TMPDIR": folder}
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "60", "-c", str(cwd), command)
        atexit.register(self.close)

    def tmux(self, *words):
        return subprocess.run(["tmux", "-L", "terminal", *words], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=DEADLINE)

    def screen(self):
        return self.tmux("capture-pane", "-p").stdout

    def sees(self, what, *lines):
        """Checks that lines come to stand on the screen in this order."""
        def holds():
            rest = self.screen()
            for line in lines:
                _, found, rest = rest.partition(line)
                if not found:
                    return False
            return True

        eventually("in a terminal: " + what, holds, self.screen)

    def press(self, key):
        self.tmux("send-keys", key)

    def press_until(self, key, what, holds):
        """Presses a key once a second until something holds: a dialog may take none just after it has come."""
        pressed = 0.0

        def is_so():
            nonlocal pressed
            if not holds() and time.monotonic() > pressed + 1:
                self.press(key)
                pressed = time.monotonic()
            return holds()

        eventually("in a terminal: " + what, is_so, self.screen)

    def say(self, text):
        """Types a line, and enters it once it is there: what comes at once would be taken for a paste."""
        self.tmux("send-keys", "-l", text)
        self.sees("what is typed", text.lstrip("! "))
        self.press("Enter")

    def close(self):
        self.tmux("kill-server")


class Model(http.server.ThreadingHTTPServer):
    """How the model says what, is for the handler to know."""

    def __init__(self, script, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.script = script
        self.requests = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def asked(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def stream(self, events):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for event in events:
            self.wfile.write(("event: %s\ndata: %s\n\n" % (event["type"], json.dumps(event))).encode())

    def log_message(self, *_):
        pass


# ---- Claude Code ----------------------------------------------------------------------------------------------------------------


def of_claude(tool, **given):
    """A call of one of our tools, in a script for Claude Code. Its own tools stand there as (name, arguments)."""
    return CLAUDE_TOOL + tool, given


class Messages(Handler):
    """The Messages API, as far as it takes."""

    def do_POST(self):
        request = self.asked()
        done = len(claude_blocks(request))
        of_the_agent = bool(request.get("tools"))  # Claude Code also has the model write titles
        if of_the_agent:
            self.server.requests.append(request)
        start = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": "done"}
        stop = {"stop_reason": "end_turn"}
        if of_the_agent and done < len(self.server.script):
            name, given = self.server.script[done]
            start = {"type": "tool_use", "id": "toolu_%03d" % done, "name": name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(given)}
            stop = {"stop_reason": "tool_use"}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
                   "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
        self.stream([
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": start},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 1}},
            {"type": "message_stop"}])

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    do_GET = do_HEAD


def claude_blocks(request):
    """The results of the tool calls, as they are in a request to the model."""
    contents = [message["content"] for message in request.get("messages", ()) if isinstance(message["content"], list)]
    return [block for content in contents for block in content if block["type"] == "tool_result"]


def claude_parts(block):
    """The content of such a result, as a list."""
    content = block["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def claude_texts(request):
    """Their texts. To an error of a tool that the model has not searched for, Claude Code adds its schema."""
    texts = ["".join(part.get("text", "") for part in claude_parts(block)) for block in claude_blocks(request)]
    return [text.split("\n\nThis tool's input schema was not in your prompt")[0] for text in texts]


# ---- Codex ----------------------------------------------------------------------------------------------------------------------


def of_codex(tool, **given):
    """A call of one of our tools, in a script for Codex. There may also be functions, from what the calls before came to."""
    return {"type": "function_call", "namespace": CODEX_NAMESPACE, "name": tool, "arguments": json.dumps(given)}


class Responses(Handler):
    """The Responses API, as far as it takes."""

    def do_POST(self):
        request = self.asked()
        done = len(codex_outputs(request))
        of_the_agent = bool(request.get("tools"))  # in a terminal, Codex also has the model write titles
        if of_the_agent:
            self.server.requests.append(request)
        item = {"type": "message", "role": "assistant", "id": "msg", "content": [{"type": "output_text", "text": "done"}]}
        if of_the_agent and done < len(self.server.script):
            call = self.server.script[done]
            item = {**(call(codex_texts(request)) if callable(call) else call), "call_id": "call_%d" % done}
        usage = {"input_tokens": 1, "input_tokens_details": None, "output_tokens": 1, "output_tokens_details": None, "total_tokens": 2}
        self.stream([
            {"type": "response.created", "response": {"id": "response_%d" % done}},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": {"id": "response_%d" % done, "usage": usage}}])


def codex_outputs(request):
    """What the calls came to, as it is in a request to the model."""
    return [item for item in request["input"] if item["type"].endswith("_output")]


def codex_texts(request):
    """The texts of it; the first part of each says how long it took."""
    outputs = [item["output"] for item in codex_outputs(request) if item["type"] == "function_call_output"]
    return [output if isinstance(output, str) else "\n".join(part.get("text", "") for part in output[1:]) for output in outputs]
