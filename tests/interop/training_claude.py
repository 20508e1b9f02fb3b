"""A training loop of three minutes in a real Claude Code, with a model of ours.

    python3 training_claude.py MODULES SERVER RECORDINGS        MODULES is where npm installed @anthropic-ai/claude-code

Claude Code waits for a call as long as it takes, and so does the server where it is asked by `claude-code`. One session has the
loop of 180 s in one call, another in pieces of 20 s and the rest. Beside them shorter loops are interrupted, timed out, given up
with Esc and left behind. ANTHROPIC_BASE_URL leads to this process, which streams the next call of a script as the model's answer
until the script is over. So no account and no network are needed. Every line is recorded for validate.py.
"""
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from training_loop import (EPOCHS, EPOCHS_STOPPED, LOSSES, SESSION_SECONDS_MAX, Account, Agent, Handler, check, check_cancelled,
                           check_in_pieces, check_interrupts, check_left_behind, check_losses, check_stopped, in_pieces, interrupts,
                           left_behind, loop, passed, stopped, value)

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES, SERVER, RECORDINGS = (os.path.abspath(path) for path in sys.argv[1:4])
CLAUDE = str(next(Path(MODULES).glob("node_modules/@anthropic-ai/claude-code-linux-*/claude")))
VERSION = json.loads(Path(MODULES, "node_modules/@anthropic-ai/claude-code/package.json").read_text())["version"]
TOOL = "mcp__python-interpreter__"
DRIVEN = ["--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
PIECE = 20  # seconds


class Answer(Handler):
    """The Messages API, as far as it takes."""

    def do_POST(self):
        request = self.asked()
        done = len(results(request))
        of_the_agent = bool(request.get("tools"))  # Claude Code also has the model write titles
        if of_the_agent:
            self.server.requests.append(request)
        start = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": "done"}
        stop = {"stop_reason": "end_turn"}
        if of_the_agent and done < len(self.server.script):
            tool, given = self.server.script[done]
            start = {"type": "tool_use", "id": "toolu_%03d" % done, "name": TOOL + tool, "input": {}}
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


def blocks(request):
    """The results of the tool calls, as they are in a request to the model."""
    contents = [message["content"] for message in request.get("messages", ()) if isinstance(message["content"], list)]
    return [block for content in contents for block in content if block["type"] == "tool_result"]


def results(request):
    """Their texts. To an error of a tool that the model has not searched for, Claude Code adds its schema."""
    contents = [block["content"] for block in blocks(request)]
    texts = [content if isinstance(content, str) else "".join(part.get("text", "") for part in content) for content in contents]
    return [text.split("\n\nThis tool's input schema was not in your prompt")[0] for text in texts]


class Claude(Agent):
    def __init__(self, name, script_of, driven=False, **server_env):
        super().__init__("Claude Code %s, %s" % (VERSION, name), script_of, Answer, results)
        record = os.path.join(RECORDINGS, "training-claude-%s-%s.jsonl" % (VERSION, name.replace(" ", "-")))
        server = {"command": sys.executable, "args": [os.path.join(HERE, "record.py"), record, SERVER, "server"], "env": server_env}
        config = json.dumps({"mcpServers": {"python-interpreter": server}})
        env = {"MCP_PY_PYTHON": sys.executable, "ANTHROPIC_API_KEY": "none", "IS_SANDBOX": "1", "DISABLE_AUTOUPDATER": "1",
               "ANTHROPIC_BASE_URL": "http://127.0.0.1:%d" % self.model.server_port, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
               "MCP_CONNECTION_NONBLOCKING": "0"}  # on a loaded machine the model is asked before it has our tools, otherwise
        command = [CLAUDE, "-p", *(DRIVEN if driven else ["go"]), "--mcp-config", config, "--strict-mcp-config",
                   "--allowedTools", "mcp__python-interpreter"]
        self.start(command, env, stdin=subprocess.PIPE if driven else subprocess.DEVNULL)

    def say(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def errors(self):
        return [bool(block.get("is_error")) for block in blocks(self.model.requests[-1])]


def check_one_call(claude):
    whole, losses = claude.finish(EPOCHS + SESSION_SECONDS_MAX)
    account = Account(claude.name)
    account.hear("execute", whole, re.escape(value(EPOCHS)))
    account.close(EPOCHS)
    check_losses(account, losses)
    check("%s: no error" % claude.name, not any(claude.errors()), claude.errors())


def check_escape(claude):
    """Esc: what it sends for that is the same as of a program that drives it."""
    claude.say({"type": "user", "message": {"role": "user", "content": "go"}})
    claude.printed("escaped", 2)
    claude.say({"type": "control_request", "request_id": "1", "request": {"subtype": "interrupt"}})
    claude.say({"type": "user", "message": {"role": "user", "content": "on"}})
    claude.eventually("two answers after Esc", lambda: len(claude.results()) == 3)
    check_cancelled(claude, *claude.finish()[1:])


def main():
    os.makedirs(RECORDINGS, exist_ok=True)
    one_call = Claude("one call", lambda mark: [("execute", {"code": loop(EPOCHS, mark("long"))}), LOSSES])
    pieces = Claude("pieces", lambda mark: in_pieces(mark, PIECE, 3))
    interrupted = Claude("interrupts", interrupts, MCP_PY_WAIT="3")
    check_interrupts(interrupted)
    errors = interrupted.errors()
    check("%s: errors are errors" % interrupted.name, errors == [False, True, False, False, True, False], errors)
    check_escape(Claude("Esc", lambda mark: [("execute", {"code": loop(EPOCHS_STOPPED, mark("escaped"))}), LOSSES, LOSSES], driven=True))
    check_left_behind(Claude("left behind", left_behind))
    for number in signal.SIGTERM, signal.SIGKILL:
        check_stopped(Claude("signal %d" % number, stopped), number)
    check_in_pieces(pieces, PIECE)
    check_one_call(one_call)
    print("%d training checks passed" % len(passed))


main()
