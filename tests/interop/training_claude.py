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

from hosts import Messages, check, claude_blocks, claude_texts, of_claude, passed
from training_loop import (EPOCHS, EPOCHS_STOPPED, LOSSES, SESSION_SECONDS_MAX, Account, Agent, check_cancelled, check_in_pieces,
                           check_interrupts, check_left_behind, check_losses, check_stopped, in_pieces, interrupts, left_behind, loop,
                           stopped, value)

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES, SERVER, RECORDINGS = (os.path.abspath(path) for path in sys.argv[1:4])
CLAUDE = str(next(Path(MODULES).glob("node_modules/@anthropic-ai/claude-code-linux-*/claude")))
VERSION = json.loads(Path(MODULES, "node_modules/@anthropic-ai/claude-code/package.json").read_text())["version"]
DRIVEN = ["--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
PIECE = 20  # seconds


class Claude(Agent):
    def __init__(self, name, script_of, driven=False, **server_env):
        def script(mark):
            return [of_claude(tool, **given) for tool, given in script_of(mark)]

        super().__init__("Claude Code %s, %s" % (VERSION, name), script, Messages, claude_texts)
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
        return [bool(block.get("is_error")) for block in claude_blocks(self.model.requests[-1])]


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
