"""A real Claude Code, with a model of ours: it is told to answer with tool calls, and what it is sent is looked at.

    python3 claude.py MODULES SERVER RECORDINGS        MODULES is where npm installed @anthropic-ai/claude-code

No account and no network are needed: ANTHROPIC_BASE_URL leads to this process. Some sessions are in a terminal, which is tmux's:
what a person sees is looked at there, and Claude Code gives no call to the background without one. It does so after 120 s, and here
after 4 s. Needs tmux, and bubblewrap and socat for Claude Code's sandbox. Every line is recorded for validate.py.
"""
import atexit
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from hosts import (CLAUDE_TOOL, DEADLINE, PICTURE, PICTURE_DATA, Messages, Model, Terminal, answers_in, check, check_gone,
                   claude_blocks, claude_parts, claude_texts, eventually, folder_for, of_claude, passed, told_in)

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES, SERVER, RECORDINGS = (os.path.abspath(path) for path in sys.argv[1:4])
CLAUDE = str(next(Path(MODULES).glob("node_modules/@anthropic-ai/claude-code-linux-*/claude")))
VERSION = json.loads(Path(MODULES, "node_modules/@anthropic-ai/claude-code/package.json").read_text())["version"]
IS_OLD = VERSION == "2.1.197"  # shows code in one line, and gives no call to the background
ALLOW_TOOLS = ["--allowedTools", "mcp__python-interpreter"]  # the rule that README has for all of them
ALLOW = {"permissions": {"allow": ["Bash(mcp-py-client:*)"]}}  # as README has it
SANDBOX = {"sandbox": {"enabled": True}}
OPEN_SANDBOX = {"sandbox": {"enabled": True, "network": {"allowAllUnixSockets": True}}}  # likewise
BACKGROUND_SECONDS = 4
# Claude Code parses a command before a rule can allow it, and asks about one that it has not parsed within 50 ms. On a busy machine
# that happens now and then, so a session whose commands are all allowed is tried again.
TRIES = 4


def heredoc(code):
    return "Bash", {"command": "mcp-py-client <<'PY'\n%s\nPY" % code}


def spins(mark):
    """A cell that ends only when it is interrupted. The file says that it runs."""
    return "open(%r, 'w').close()\nwhile True: pass" % str(mark)


def texts_of(value):
    """All strings in a request to the model."""
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for inner in values for text in texts_of(inner)]


class Place:
    """A home, a project, and how Claude Code is started there."""

    def __init__(self, folder):
        self.folder = folder
        self.home = Path(folder, "home")
        self.project = Path(folder, "project_1.0")  # a name that Claude Code writes otherwise
        self.settings = self.project / ".claude/settings.json"
        self.settings.parent.mkdir(parents=True)
        self.home.mkdir()
        self.allow(ALLOW)
        self.env = {
            "PATH": "%s/.local/bin:%s" % (self.home, os.environ["PATH"]), "HOME": str(self.home), "TMPDIR": folder,
            "MCP_PY_PYTHON": sys.executable, "ANTHROPIC_API_KEY": "none", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
            "DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "IS_SANDBOX": "1",
            "MCP_CONNECTION_NONBLOCKING": "0"}  # on a loaded machine the model is asked before it has our tools, otherwise

    def allow(self, *settings):
        self.settings.write_text(json.dumps({key: value for one in settings for key, value in one.items()}))

    def run(self, *words, **more):
        ran = subprocess.run(words, env={**self.env, **more}, cwd=self.project, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, timeout=DEADLINE)
        return ran.returncode, ran.stdout, ran.stderr

    def start(self, model, *words, **pipes):
        """A Claude Code that this process ends at the latest."""
        env = {**self.env, **led_to(model)}
        started = subprocess.Popen([CLAUDE, "-p", *words, *ALLOW_TOOLS], cwd=self.project, env=env, text=True, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, **pipes)
        atexit.register(started.kill)
        return started

    def allowed_session(self, *script):
        """A session, tried again where Claude Code asks about one of its commands."""
        for _ in range(TRIES):
            came = self.session(*script)
            if not was_asked(came[0]):
                break
        return came

    def session(self, *script, **more):
        """What the calls of a script come to, what Claude Code printed, and the requests to the model."""
        model = Model(script, Messages)
        told = self.run(CLAUDE, "-p", "go", *ALLOW_TOOLS, "--output-format", "json", **led_to(model), **more)
        good = told[0] == 0 and model.requests and len(claude_blocks(model.requests[-1])) == len(script)
        check("a session of %d calls" % len(script), good, told)
        return results(model), json.loads(told[1]), model.requests

    def trust(self):
        """What the dialogs ask at the first start in a terminal."""
        file = self.home / ".claude.json"
        known = json.loads(file.read_text())
        of_project = known.setdefault("projects", {}).setdefault(str(self.project.resolve()), {})
        of_project["hasTrustDialogAccepted"] = True
        known.update(hasCompletedOnboarding=True, theme="dark", customApiKeyResponses={"approved": ["none"], "rejected": []})
        file.write_text(json.dumps(known))


def led_to(model):
    return {"ANTHROPIC_BASE_URL": "http://127.0.0.1:%d" % model.server_port}


def results(model):
    """The results of the calls in the last request, as (text, is an error)."""
    if not model.requests:
        return []
    errors = [bool(block.get("is_error")) for block in claude_blocks(model.requests[-1])]
    return list(zip(claude_texts(model.requests[-1]), errors))


def was_asked(came):
    return ("This command requires approval", True) in came


def recordings():
    return set(Path(RECORDINGS).glob("claude-%s-*.jsonl" % VERSION))


class ClaudeTerminal(Terminal):
    def __init__(self, place, model, **more):
        self.model = model
        before = recordings()
        command = "'%s' --permission-mode default" % CLAUDE
        super().__init__(place.folder, command, place.project, {**place.env, **led_to(model), **more})
        self.sees("its prompt", "❯")
        eventually("in a terminal: it knows our tools", lambda: any("tools" in answer for path in recordings() - before
                                                                    for answer in answers_in(path)), self.screen)

    def approve(self, what, holds):
        self.sees("it asks", "Do you want to proceed?")
        self.press_until("Enter", what, holds)

    def has_results(self, count):
        eventually("in a terminal: %d answers" % count, lambda: len(results(self.model)) >= count, self.screen)
        return results(self.model)[count - 1]

    def is_notified(self, what, text):
        """Checks that a notification of a task comes to the model."""
        def holds():
            return any("<task-notification>" in told and text in told for told in texts_of(self.model.requests[-1]))

        eventually("in a terminal: " + what, holds, self.screen)


def check_install(place):
    told = place.run(SERVER, "install")
    line = next(line.split() for line in told[1].splitlines() if line.strip().startswith("claude mcp add"))
    told = place.run(CLAUDE, *line[1:])
    check("the line that install prints adds the server", told[0] == 0, told)
    told = place.run(CLAUDE, "mcp", "list")
    check("claude mcp list: connected", "Connected" in told[1], told)
    place.trust()
    came = place.session(of_claude("execute", code="x = 5\nx"))[0]
    check("a cell's answer", came == [("5", False)], came)
    told = place.run(CLAUDE, "mcp", "remove", "python-interpreter")
    check("it can be removed", told[0] == 0, told)
    recorded = [sys.executable, os.path.join(HERE, "record.py"), "%s/claude-%s-PID.jsonl" % (RECORDINGS, VERSION), SERVER, "server"]
    told = place.run(CLAUDE, "mcp", "add", "--scope", "user", "python-interpreter", "--", *recorded)
    check("README's line adds it for all projects", told[0] == 0, told)
    place.trust()


def check_tools(place):
    """What of our tools is in the prompt: all of them, or few and the rest by a search."""
    request = place.session(ENABLE_TOOL_SEARCH="false")[2][0]
    instructions, tools = told_in(RECORDINGS, "claude-%s-*.jsonl" % VERSION)
    shown = {tool["name"]: tool for tool in request["tools"] if tool["name"].startswith(CLAUDE_TOOL)}
    check("without tool search all tools are in the prompt", set(shown) == {CLAUDE_TOOL + name for name in tools}, sorted(shown))
    told = {name: shown[CLAUDE_TOOL + name]["description"] for name in tools}
    whole = {name: tool["description"].replace("…", "...") for name, tool in tools.items()}  # which Claude Code does
    check("with their whole descriptions", told == whole, (told, whole))
    check("and the whole instructions", any(instructions in text for text in texts_of(request)), instructions)

    hints = {name: tool["_meta"]["anthropic/searchHint"] for name, tool in tools.items() if name != "execute"}
    searches = [("ToolSearch", {"query": hint}) for hint in hints.values()]
    came, _, requests = place.session(of_claude("execute", code="6 * 7"), *searches,
                                      of_claude("add_interpreter", name="two", python_path=sys.executable),
                                      of_claude("execute", code="'in two'", interpreter="two"), ENABLE_TOOL_SEARCH="true")
    shown = {tool["name"]: tool for tool in requests[0]["tools"] if tool["name"].startswith(CLAUDE_TOOL) and not tool.get("defer_loading")}
    check("with tool search only execute is in the prompt", list(shown) == [CLAUDE_TOOL + "execute"], list(shown))
    of_execute = shown[CLAUDE_TOOL + "execute"]
    check("with its whole description", of_execute["description"] == whole["execute"], of_execute)
    check("and its arguments", set(of_execute["input_schema"]["properties"]) == set(tools["execute"]["inputSchema"]["properties"]), of_execute)
    check("it works without a search", came[0] == ("42", False), came[0])
    texts = "\n".join(texts_of(requests[0]))
    missing = [name for name in hints if CLAUDE_TOOL + name not in texts]
    check("the others are named", not missing, missing)
    check("and the whole instructions are there", instructions in texts, instructions)
    check("which tell of the client", "`mcp-py-client`" in instructions and "mcp-py-client <<'PY'" in whole["execute"], instructions)
    for (name, hint), block in zip(hints.items(), claude_blocks(requests[-1])[1:]):
        found = [part.get("tool_name") for part in claude_parts(block)]
        check("a search for %s finds %s" % (hint, name), CLAUDE_TOOL + name in found, found)
    check("what is found works", not came[-2][1] and came[-1] == ("'in two'", False), came)


def check_cells(place):
    came, told, requests = place.allowed_session(
        of_claude("execute", code="x = 5\nprint('hi')\nx"),
        heredoc("print(x * 2)  # it's `the` same $x"),
        of_claude("execute", code=PICTURE),
        of_claude("execute", code="print('a' * 30_000)"),
        of_claude("execute", code="1/0"),
        of_claude("execute", code="while True: pass", timeout=0.5),
        of_claude("get_session_info"),
        of_claude("list_interpreters"),
        ("Bash", {"command": "mcp-py-client -c 'raise SystemExit(3)'"}),
    )
    first, by_client, _, long, failed, late, info, listed, left = came
    check("a cell's answer", first == ("hi\n5", False), first)
    check("the client's heredoc needs no approval and sees the variable", by_client == ("10", False), by_client)
    picture = claude_parts(claude_blocks(requests[-1])[2])
    images = [part["source"]["data"] for part in picture if part["type"] == "image"]
    check("a picture arrives as one", images == [PICTURE_DATA], picture)
    whole = len(long[0]) > 25_000 and "a" * 20_000 in long[0] and "# Original size: 30,001 chars" in long[0]
    check("25,000 characters arrive whole", whole, long[0][-300:])
    check("an exception is an error", failed[1] and "ZeroDivisionError" in failed[0], failed)
    check("a time-out is told", late[1] and "timeout of 0.5 s" in late[0], late)
    ours = json.loads(info[0])
    check("the session is Claude's", ours["session_id"] == told["session_id"] and ours["host"] == "claude", (info, told))
    check("its transcript is there", Path(ours["transcript_path"]).is_file(), info)
    check("a structured result", json.loads(listed[0])["result"][0]["name"] == "builtin", listed)
    check("the client's exit code", left[0].startswith("Exit code 3"), left)
    check_gone(place.folder)
    check("nor in /tmp", not os.path.exists(ours["socket_path"]) and not os.path.exists(ours["output_dir"]), ours)
    came = place.session(of_claude("execute", code="'x' in globals()"))[0]
    check("a new session has its own variables", came == [("False", False)], came)


def check_client(place):
    """README says what is asked about, and what the sandbox needs."""
    dictionary = heredoc("print({'a': 1})")
    piped = "Bash", {"command": "mcp-py-client <<'PY' | cat\nprint(2)\nPY"}
    unquoted = "Bash", {"command": "mcp-py-client <<PY\nprint(3)\nPY"}
    told = place.session(dictionary, piped, unquoted)[0]
    check("braces and quotes are asked about", told[0][1] and "brace" in told[0][0], told)
    check("so are a pipe behind a heredoc, and an end without quotes", told[1][1] and told[2][1], told)
    told = place.allowed_session(("Bash", {"command": "mcp-py-client -c 'print({\"a\": 4})'"}))[0]
    check("but nothing after -c", told == [("{'a': 4}", False)], told)
    place.allow(ALLOW, SANDBOX)
    plain = heredoc("print(dict(a=1))")
    told = place.allowed_session(plain)[0][0]
    forbidden = told[1] and told[0].startswith("Exit code 125") and "sandbox" in told[0]
    check("in its sandbox the client says that it is forbidden", forbidden, told)
    place.allow(ALLOW, OPEN_SANDBOX)
    came = place.allowed_session(plain, ("Bash", {"command": "mcp-py-client -c 'print(2)' | cat"}))[0]
    check("where that allows Unix sockets the client works", came == [("{'a': 1}", False), ("2", False)], came)
    place.allow(ALLOW)


def check_escape(place):
    """Esc: what it sends for that is the same as of a program that drives it."""
    def say(message):
        driven.stdin.write(json.dumps(message) + "\n")
        driven.stdin.flush()

    for name, call in ("execute", lambda code: of_claude("execute", code=code)), ("the client", heredoc):
        started = place.project / ("spins-" + name.replace(" ", "-"))
        for _ in range(TRIES):
            model = Model([call("x = 1\n" + spins(started)), of_claude("execute", code="x + 1")], Messages)
            driven = place.start(model, "--input-format", "stream-json", "--output-format", "stream-json", "--verbose",
                                 stdin=subprocess.PIPE)
            say({"type": "user", "message": {"role": "user", "content": "go"}})
            eventually("a cell of %s spins" % name, lambda: started.exists() or was_asked(results(model)), lambda: results(model))
            if started.exists():
                break
            driven.kill()
        say({"type": "control_request", "request_id": "1", "request": {"subtype": "interrupt"}})
        say({"type": "user", "message": {"role": "user", "content": "on"}})
        eventually("after Esc there is an answer", lambda: len(results(model)) == 2)
        check("which has the variables", results(model)[1] == ("2", False), results(model))
        driven.stdin.close()
        driven.wait(DEADLINE)


def check_terminal(place):
    """A person approves a cell, looks at its variables, and presses Esc."""
    place.allow({})
    started = place.project / "spins-in-a-terminal"
    lines = "for i in range(3):\n    x = 1000 + i\nx"
    model = Model([of_claude("execute", code=lines), of_claude("execute", code=spins(started))], Messages)
    terminal = ClaudeTerminal(place, model)
    terminal.say("begin, please")
    if not IS_OLD:
        terminal.sees("the approval prompt has the lines of the cell", "│ for i in range(3):\n", "│     x = 1000 + i\n", "│ x\n")
    terminal.approve("an approved cell", lambda: results(model) == [("1002", False)])
    terminal.sees("the next one", "while True: pass")
    terminal.approve("an approved cell spins", started.exists)
    terminal.press("Escape")
    terminal.say("! mcp-py-client -c 'x * 7'")
    terminal.sees("the person sees the variable", "mcp-py-client -c 'x * 7'", "7014")
    terminal.say("/exit")
    check_gone(str(place.project))
    terminal.close()
    place.allow(ALLOW)


def check_background(place):
    """A call that lasts goes to the background: its answer comes later, by itself, and what comes after it waits or interrupts."""
    place.allow({"permissions": {"allow": ["mcp__python-interpreter"]}})
    started = place.project / "spins-in-the-background"
    loop = "import time\nfor i in range(%d):\n    print('line', i)\n    time.sleep(1)\n'over'" % (BACKGROUND_SECONDS + 2)
    model = Model([of_claude("execute", code=spins(started)), of_claude("interrupt"), of_claude("execute", code=loop)], Messages)
    terminal = ClaudeTerminal(place, model, CLAUDE_CODE_MCP_AUTO_BACKGROUND_MS=str(BACKGROUND_SECONDS * 1000))
    terminal.say("begin, please")
    first = terminal.has_results(1)
    check("a call goes to the background", "moved to the background" in first[0], first)
    told = terminal.has_results(2)
    check("interrupt ends its cell", "cell 1 ended" in told[0] and "another call" in told[0], told)
    terminal.is_notified("its answer comes by itself", "KeyboardInterrupt")
    told = terminal.has_results(3)
    check("a loop that prints goes there, too", "moved to the background" in told[0], told)
    lines = ["line %d" % i for i in range(BACKGROUND_SECONDS + 2)]
    terminal.is_notified("its whole answer comes by itself", "<result>\n%s\n'over'\n</result>" % "\n".join(lines))
    terminal.say("/exit")
    check_gone(str(place.project))
    terminal.close()
    place.allow(ALLOW)


def check_signals(place):
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGKILL:
        started = place.project / ("started-%d" % number)
        busy = place.start(Model([of_claude("execute", code=spins(started))], Messages), "go", stdin=subprocess.DEVNULL)
        eventually("a cell runs", started.exists)
        busy.send_signal(number)
        busy.wait(DEADLINE)
        print("  after signal %d to a busy Claude:" % number)
        check_gone(place.folder)


def main():
    os.makedirs(RECORDINGS, exist_ok=True)
    print("Claude Code %s" % VERSION)
    place = Place(folder_for("claude"))
    check_install(place)
    check_tools(place)
    check_cells(place)
    check_client(place)
    check_escape(place)
    check_signals(place)
    check_terminal(place)
    if not IS_OLD:
        check_background(place)
    print("%d Claude Code checks passed" % len(passed))


main()
