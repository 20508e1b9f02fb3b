"""A training loop of three minutes in a real Codex, with a model of ours.

    python3 training_codex.py MODULES SERVER RECORDINGS [--default]        MODULES is where npm installed @openai/codex

Codex ends a call after 300 s, progress or not, and the server answers `codex-mcp-client` after 240 s. One session has the loop of
180 s in pieces of 60 s and the rest. With --default another has a loop of 250 s and asks for no time, which takes so long. Beside
them shorter loops are interrupted, timed out, given up at a limit of Codex and left behind. The provider in config.toml leads to
this process, which streams the next call of a script as the model's answer until the script is over. So no account and no network
are needed. Every line is recorded for validate.py. The server is `required`, for Codex waits only a second for any other before it
asks the model.
"""
import json
import os
import signal
import sys
from pathlib import Path

from hosts import Responses, check, codex_texts, of_codex, passed
from training_loop import (EPOCHS_STOPPED, LATE_SECONDS_MAX, LOSSES, SESSION_SECONDS_MAX, STILL_RUNS, Account, Agent, check_cancelled,
                           check_in_pieces, check_interrupts, check_left_behind, check_losses, check_stopped, ended, in_pieces,
                           interrupts, left_behind, loop, stopped)

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES, SERVER, RECORDINGS = (os.path.abspath(path) for path in sys.argv[1:4])
CODEX = str(next(Path(MODULES).glob("node_modules/@openai/codex-linux-*/vendor/*/bin/codex")))
PIECE = 60  # seconds
LIMIT = 240  # seconds of a call, of the server for Codex
EPOCHS_DEFAULT = 250
CONFIG = """model = "scripted"
model_provider = "ours"

[model_providers.ours]
name = "ours"
base_url = "http://127.0.0.1:%d/v1"
wire_api = "responses"

[mcp_servers.python-interpreter]
required = true
startup_timeout_sec = 60
command = %s
args = %s
env = { %s }
default_tools_approval_mode = "approve"
"""


class Codex(Agent):
    def __init__(self, name, script_of, limit=None, **server_env):
        def script(mark):
            return [of_codex(tool, **given) for tool, given in script_of(mark)]

        super().__init__("Codex, %s" % name, script, Responses, codex_texts)
        record = os.path.join(RECORDINGS, "training-codex-%s.jsonl" % name.replace(" ", "-"))
        words = [os.path.join(HERE, "record.py"), record, SERVER, "server"]
        server_env["MCP_PY_PYTHON"] = sys.executable  # here, for Codex hands on little of its own environment
        pairs = ", ".join("%s = %s" % (key, json.dumps(value)) for key, value in server_env.items())
        config = CONFIG % (self.model.server_port, json.dumps(sys.executable), json.dumps(words), pairs)
        if limit:
            config += "tool_timeout_sec = %d\n" % limit
        Path(self.folder, "config.toml").write_text(config)
        self.start([CODEX, "exec", "--skip-git-repo-check", "go"], {"CODEX_HOME": self.folder})


def check_default(codex):
    first, rest, losses = codex.finish(EPOCHS_DEFAULT + SESSION_SECONDS_MAX)
    account = Account(codex.name)
    account.hear("execute", first, STILL_RUNS)
    check("%s: what was printed by then" % codex.name, account.lines >= LIMIT - LATE_SECONDS_MAX, first)
    account.hear("wait", rest, ended(EPOCHS_DEFAULT))
    account.close(EPOCHS_DEFAULT)
    check_losses(account, losses)


def check_given_up(codex):
    """Codex sends notifications/cancelled when its own limit of a call is over."""
    late, *others = codex.finish()
    check("%s: Codex's own limit" % codex.name, "timed out" in late, late)
    check_cancelled(codex, *others)


def main():
    os.makedirs(RECORDINGS, exist_ok=True)
    pieces = Codex("pieces", lambda mark: in_pieces(mark, PIECE, 2))
    default = None
    if "--default" in sys.argv:
        default = Codex("default", lambda mark: [("execute", {"code": loop(EPOCHS_DEFAULT, mark("long"))}), ("wait", {}), LOSSES])
    check_interrupts(Codex("interrupts", interrupts, MCP_PY_WAIT="3"))
    check_given_up(Codex("given up", lambda mark: [("execute", {"code": loop(EPOCHS_STOPPED, mark("given up"))}), LOSSES, LOSSES], limit=8))
    check_left_behind(Codex("left behind", left_behind))
    for number in signal.SIGTERM, signal.SIGKILL:
        check_stopped(Codex("signal %d" % number, stopped), number)
    check_in_pieces(pieces, PIECE)
    if default:
        check_default(default)
    print("%d training checks passed" % len(passed))


main()
