"""A real Codex, with a model of ours: it is told to answer with tool calls, and what it is sent is looked at.

    python3 codex.py MODULES SERVER RECORDINGS        MODULES is where npm installed @openai/codex

No account and no network are needed: the provider in config.toml leads to this process. What Codex shows a model goes by the model's
name: DEFERS has to search for our tools, any unknown one has them all in its prompt. Esc is pressed in a terminal, which is tmux's.
Every line is recorded for validate.py.
"""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from hosts import (CODEX_NAMESPACE, DEADLINE, PICTURE, PICTURE_DATA, Model, Responses, Terminal, check, check_gone, codex_outputs,
                   codex_texts, eventually, folder_for, of_codex, passed, processes_with, told_in)

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES, SERVER, RECORDINGS = (os.path.abspath(path) for path in sys.argv[1:4])
CODEX = str(next(Path(MODULES).glob("node_modules/@openai/codex-linux-*/vendor/*/bin/codex")))
LIMIT = 8  # seconds of a call, of Codex, where that is tried; it is 300 usually
DEFERS = "gpt-5.5"
SCRIPTED = "scripted"
PROVIDER = """model = "%s"
model_provider = "ours"
%s

[model_providers.ours]
name = "ours"
base_url = "http://127.0.0.1:%d/v1"
wire_api = "responses"

"""
# As README has them, but for `env`.
SETTINGS = """required = true
startup_timeout_sec = 60
env = { MCP_PY_PYTHON = %s }
""" % json.dumps(sys.executable)
APPROVED = 'default_tools_approval_mode = "approve"\n'
NETWORK = 'sandbox_mode = "workspace-write"\nsandbox_workspace_write.network_access = true'  # as README has it
NO_DAEMON = "features.daemon_auto_start = false"  # likewise
UNCONFINED = 'sandbox_mode = "danger-full-access"'


def search(query):
    return {"type": "tool_search_call", "execution": "client", "status": "completed", "arguments": {"query": query}}


def shell(command):
    return {"type": "function_call", "name": "exec_command", "arguments": json.dumps({"cmd": command})}


def spins(mark):
    """A cell that ends only when it is interrupted. The file says that it runs."""
    return "x = 7\nprint('begun')\nopen(%r, 'w').close()\nwhile True: pass" % str(mark)


def structured(text):
    return json.loads(text.partition("Output:\n")[2])


def ours_in(namespaces):
    """The descriptions of our tools, and that of them all, in what Codex shows a model."""
    for namespace in namespaces:
        if namespace.get("name") == CODEX_NAMESPACE:
            return {tool["name"]: tool["description"] for tool in namespace["tools"]}, namespace["description"]
    return {}, None


class Place:
    """A home, a project, and how Codex is started there."""

    def __init__(self, folder):
        self.folder = folder
        self.home = Path(folder, "home")
        self.project = Path(folder, "project")
        self.config = self.home / ".codex/config.toml"
        for path in self.home / ".codex", self.project, Path(folder, "tmp"):  # where TMPDIR has its home, its sandbox does not work
            path.mkdir(parents=True)
        self.client = str(self.home / ".local/bin/mcp-py-client")  # a login shell has a PATH of its own
        self.env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": folder + "/tmp", "MCP_PY_PYTHON": sys.executable}

    def run(self, *words):
        ran = subprocess.run(words, env=self.env, cwd=self.project, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, timeout=DEADLINE)
        return ran.returncode, ran.stdout, ran.stderr

    def configure(self, script, added=None, model=SCRIPTED, more="", limit=None, approved=APPROVED):
        """Has config.toml lead to a model, and to the server as `codex mcp add` has written it, with a recorder unless said."""
        led_to = Model(script, Responses)
        limited = "tool_timeout_sec = %d\n" % limit if limit else ""
        trusted = '\n[projects.%s]\ntrust_level = "trusted"\n' % json.dumps(str(self.project))
        self.config.write_text(PROVIDER % (model, more, led_to.server_port) + (added or self.recorded) + SETTINGS + approved + limited + trusted)
        return led_to

    def session(self, *script, **more):
        """What the calls of a script come to, and the requests to the model."""
        model = self.configure(script, **more)
        told = self.run(CODEX, "exec", "--skip-git-repo-check", "go")
        good = told[0] == 0 and model.requests and len(codex_outputs(model.requests[-1])) == len(script)
        check("a session of %d calls" % len(script), good, told)
        return codex_texts(model.requests[-1]), model.requests


def check_install(place):
    told = place.run(SERVER, "install")
    check("it installs", told[0] == 0 and os.path.exists(place.client), told)
    told = place.run(CODEX, "mcp", "add", "python-interpreter", "--", str(place.home / ".local/bin/mcp-py-server"))
    check("README's line adds the server", told[0] == 0, told)
    told = place.run(CODEX, "mcp", "list")
    check("codex mcp list: enabled", "python-interpreter" in told[1] and "enabled" in told[1], told)
    place.direct = place.config.read_text()
    came = place.session(of_codex("execute", code="x = 5\nx"), of_codex("get_session_info"), added=place.direct)[0]
    check("a cell's answer", came[0] == "5", came)
    ours = structured(came[1])
    check("the session is Codex's", ours["host"] == "codex" and Path(ours["project_dir"]) == place.project, ours)
    told = place.run(CODEX, "mcp", "remove", "python-interpreter")
    check("it can be removed", told[0] == 0 and "python-interpreter" not in place.run(CODEX, "mcp", "list")[1], told)
    place.config.write_text("")
    recorded = [sys.executable, os.path.join(HERE, "record.py"), RECORDINGS + "/codex-PID.jsonl", SERVER, "server"]
    told = place.run(CODEX, "mcp", "add", "python-interpreter", "--", *recorded)
    check("and added again", told[0] == 0, told)
    place.recorded = place.config.read_text()


def check_tools(place):
    """What of our tools a model is shown: all of them, or those that it finds."""
    request = place.session()[1][0]
    instructions, tools = told_in(RECORDINGS, "codex-*.jsonl")
    whole = {name: tool["description"] for name, tool in tools.items()}
    shown, heading = ours_in(request["tools"])
    check("all tools are in the prompt, with their whole descriptions", shown == whole, (shown, whole))
    check("and the whole instructions", heading == instructions, heading)

    queries = {"run python code": "execute", "virtual environment interpreter": "add_interpreter", "interrupt": "interrupt"}
    requests = place.session(*map(search, queries), of_codex("execute", code="6 * 7"), model=DEFERS)[1]
    check("a model with tool search is shown none", ours_in(requests[0]["tools"]) == ({}, None), requests[0]["tools"])
    *found, last = codex_outputs(requests[-1])
    for (query, name), came in zip(queries.items(), found):
        shown, heading = ours_in(came["tools"])
        check("%s finds %s first" % (query, name), next(iter(shown), None) == name, list(shown))
        check("with its whole description, and the instructions", (shown[name], heading) == (whole[name], instructions), came)
    check("what is found works", last["output"][-1]["text"] == "42", last)


def check_cells(place):
    came, requests = place.session(
        of_codex("execute", code="x = 5\nprint('hi')\nx"),
        of_codex("execute", code=PICTURE),
        of_codex("execute", code="1/0"),
        of_codex("execute", code="while True: pass", timeout=0.5),
        of_codex("execute", code="x", interpreter="nobody"),
        of_codex("execute", code="print('a' * 30_000)"),
        of_codex("list_interpreters"),
        of_codex("add_interpreter", name="two", python_path=sys.executable),
        of_codex("execute", code="'x' in globals()", interpreter="two"),
        of_codex("get_session_info"),
    )
    first, _, failed, late, unknown, long, listed, _, other, info = came
    check("a cell's answer", first == "hi\n5", first)
    picture = codex_outputs(requests[-1])[1]["output"]
    images = [part["image_url"] for part in picture if part["type"] == "input_image"]
    check("a picture arrives as one", images == ["data:image/png;base64," + PICTURE_DATA], picture)
    check("an exception is told", "ZeroDivisionError" in failed, failed)
    check("a time-out is told", "timeout of 0.5 s" in late, late)
    check("an unknown interpreter is told", "nobody" in unknown and "add_interpreter" in unknown, unknown)
    check("of long output both ends arrive", "a" * 1_000 in long and "chars" in long, long)
    check("a structured list of interpreters", structured(listed)["result"][0]["name"] == "builtin", listed)
    check("another interpreter has its own variables", other == "False", other)
    ours = structured(info)
    check_gone(place.folder)
    check("nor in /tmp", not os.path.exists(ours["socket_path"]) and not os.path.exists(ours["output_dir"]), ours)


def check_approval(place):
    """What `codex exec` asks a person about, it refuses."""
    came = place.session(of_codex("execute", code="x = 5"), of_codex("list_vars"), approved="")[0]
    check("without README's last line a cell needs approval", "requires approval" in came[0], came)
    check("and a look does not", came[1] == "No variables defined", came)


def check_client(place):
    """README says what its sandbox needs. The recorder would stand between Codex and the server, where the client looks."""
    cell = of_codex("execute", code="x = 5")
    heredoc = shell("%s <<'PY'\nprint({'x': x})\nPY" % place.client)
    told = place.session(cell, heredoc, added=place.direct)[0][1]
    check("in its sandbox the client says that it is forbidden", "exited with code 125" in told and "sandbox" in told, told)

    def by_socket(told):
        return shell("%s --socket %s -c x" % (place.client, structured(told[1])["socket_path"]))

    script = cell, of_codex("get_session_info"), by_socket, heredoc
    *_, told, lost = place.session(*script, added=place.direct, more=NETWORK)[0]
    check("with its network, the client works by --socket", told.endswith("Output:\n5\n"), told)
    check("and names that otherwise", "exited with code 125" in lost and "--socket" in lost, lost)
    told = place.session(cell, heredoc, added=place.direct, more=UNCONFINED)[0][1]
    check("without its sandbox the client works", told.endswith("Output:\n{'x': 5}\n"), told)


def check_limit(place):
    """Codex gives a call up when its limit is over, and sends notifications/cancelled."""
    started = place.project / "spins-at-the-limit"
    late, after, last = place.session(of_codex("execute", code=spins(started)), of_codex("execute", code="x + 1"),
                                      of_codex("execute", code="x + 2"), limit=LIMIT)[0]
    check("Codex's own limit", started.exists() and "timed out" in late, late)
    check("ends the cell; the next answer has what it printed, and the variables", "begun" in after and after.endswith("\n8"), after)
    check("which is told once", last == "9", last)


def check_terminal(place):
    """A person presses Esc, and looks at a variable."""
    started = place.project / "spins-in-a-terminal"
    model = place.configure([of_codex("execute", code=spins(started)), of_codex("execute", code="x + 1")], added=place.direct, more=NO_DAEMON)
    terminal = Terminal(place.folder, "'%s'" % CODEX, place.project, place.env)
    terminal.sees("its prompt", "Ask Codex to do anything")
    terminal.say("begin, please")
    eventually("in a terminal: a cell spins", started.exists, terminal.screen)
    terminal.press("Escape")
    terminal.sees("it was interrupted", "interrupted")
    terminal.say("and then?")

    def texts():
        return codex_texts(model.requests[-1])

    eventually("in a terminal: an answer after Esc", lambda: len(texts()) == 2, terminal.screen)
    told = texts()[1]
    check("it ends the cell; the next answer has what it printed, and the variables", "begun" in told and told.endswith("\n8"), told)
    terminal.say("! %s -c 'x * 1001'" % place.client)
    terminal.sees("the person sees the variable", "-c 'x * 1001'", "7007")
    terminal.say("/quit")
    check_gone(str(place.project))
    terminal.close()


def check_daemon(place):
    """Codex usually starts servers from a daemon in a terminal, and both stay when the person leaves."""
    started = place.project / "runs-in-the-daemon"
    place.configure([of_codex("execute", code="open(%r, 'w').close()" % str(started))], approved="")
    terminal = Terminal(place.folder, "'%s'" % CODEX, place.project, place.env)
    terminal.sees("its prompt", "Ask Codex to do anything")
    terminal.say("begin, please")
    terminal.sees("it asks about a cell, in one line", 'to run tool "execute"?', "code: open(")
    terminal.press_until("Enter", "a cell of the daemon runs", started.exists)
    terminal.say("/quit")
    terminal.close()
    check("the daemon stays", processes_with(place.folder))
    place.run(CODEX, "app-server", "daemon", "stop")

    def servers():
        return [pid for pid in processes_with(place.folder) if SERVER.encode() in Path("/proc/%d/cmdline" % pid).read_bytes()]

    eventually("when it is stopped, the server ends", lambda: not servers(), servers)


def check_signal(place):
    """Ctrl-C to a busy Codex. What other signals do is in training_codex.py."""
    started = place.project / "spins-until-a-signal"
    place.configure([of_codex("execute", code=spins(started))])
    busy = subprocess.Popen([CODEX, "exec", "--skip-git-repo-check", "go"], env=place.env, cwd=place.project, stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually("a cell runs", started.exists)
    busy.send_signal(signal.SIGINT)
    busy.wait(DEADLINE)
    check_gone(place.folder)


def main():
    print(subprocess.run([CODEX, "--version"], stdout=subprocess.PIPE, text=True).stdout.strip())
    os.makedirs(RECORDINGS, exist_ok=True)
    place = Place(folder_for("codex"))
    check_install(place)
    check_tools(place)
    check_cells(place)
    check_approval(place)
    check_client(place)
    check_limit(place)
    check_signal(place)
    check_terminal(place)
    check_daemon(place)
    print("%d Codex checks passed" % len(passed))


main()
