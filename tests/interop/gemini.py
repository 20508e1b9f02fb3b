"""A real Gemini CLI, with a model of ours: it is told to answer with tool calls, and what it is sent is looked at.

    python3 gemini.py MODULES SERVER NODE        MODULES is where npm installed @google/gemini-cli, NODE is Node 20 or newer

No account and no network are needed: GOOGLE_GEMINI_BASE_URL leads to this process.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

from hosts import DEADLINE, PICTURE, PICTURE_DATA, Handler, Model, check, check_gone, folder_for, passed

MODULES, SERVER, NODE = (os.path.abspath(path) for path in sys.argv[1:4])
GEMINI = str(Path(MODULES, "node_modules/@google/gemini-cli/bundle/gemini.js"))
TOOL = "mcp_python-interpreter_"
TRUSTED = {"GEMINI_CLI_TRUST_WORKSPACE": "true"}
SETTINGS = {"security": {"auth": {"selectedType": "gemini-api-key"}}, "telemetry": {"enabled": False},
            "general": {"disableAutoUpdate": True}, "privacy": {"usageStatisticsEnabled": False}}


def of_gemini(tool, **given):
    return {"name": TOOL + tool, "args": given}


def shell(command):
    return {"name": "run_shell_command", "args": {"command": command}}


def responses(request):
    """What the calls came to, as it is in a request to the model."""
    parts = [part for content in request["contents"] for part in content.get("parts", ())]
    return [part["functionResponse"] for part in parts if "functionResponse" in part]


def text_of(response):
    """Gemini CLI marks what a server has said as not to be trusted."""
    text = response.get("output") or response["error"]
    return text.partition("<untrusted_context>\n")[2].rpartition("\n</untrusted_context>")[0] or text


class Contents(Handler):
    """The Gemini API, as far as it takes. What is not streamed is asked beside the session: whether anything is left to do."""

    def do_POST(self):
        request = self.asked()
        part = {"text": "done"}
        if "streamGenerateContent" in self.path:
            self.server.requests.append(request)
            done = len(responses(request))
            if done < len(self.server.script):
                part = {"functionCall": self.server.script[done]}
        else:
            part = {"text": json.dumps({"reasoning": "over", "next_speaker": "user"})}
        answer = {"candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
                  "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}}
        self.send_response(200)
        self.end_headers()
        streamed = "alt=sse" in self.path
        self.wfile.write(("data: %s\r\n\r\n" if streamed else "%s").encode() % json.dumps(answer).encode())


class Place:
    """A home, a project, and how Gemini CLI is started there."""

    def __init__(self, folder):
        self.home = Path(folder, "home")
        self.project = Path(folder, "project")
        self.project.mkdir()
        (self.home / ".gemini").mkdir(parents=True)
        (self.home / ".gemini/settings.json").write_text(json.dumps(SETTINGS))
        self.env = {"PATH": "%s/.local/bin:%s:%s" % (self.home, os.path.dirname(NODE), os.environ["PATH"]), "HOME": str(self.home),
                    "TMPDIR": folder, "MCP_PY_PYTHON": sys.executable, "GEMINI_API_KEY": "none", "NO_COLOR": "1"}

    def run(self, *words, **more):
        ran = subprocess.run(words, env={**self.env, **more}, cwd=self.project, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, timeout=2 * DEADLINE)
        return ran.returncode, ran.stdout

    def session(self, *script):
        """What the calls of a script come to, as texts, and the last request to the model."""
        model = Model(script, Contents)
        told = self.run(NODE, GEMINI, "--model", "gemini-2.5-pro", "--approval-mode", "yolo", "-p", "go",
                        GOOGLE_GEMINI_BASE_URL="http://127.0.0.1:%d" % model.server_port, **TRUSTED)
        came = responses(model.requests[-1]) if model.requests else []
        check("a session of %d calls" % len(script), told[0] == 0 and len(came) == len(script), told)
        return [text_of(response["response"]) for response in came], model.requests[-1]


def check_install(place):
    told = place.run(SERVER, "install")
    check("it installs", told[0] == 0, told)
    line = ["mcp", "add", "--scope", "user", "python-interpreter", str(place.home / ".local/bin/mcp-py-server")]
    told = place.run(NODE, GEMINI, *line)
    check("README's line adds the server", told[0] == 0, told)
    told = place.run(NODE, GEMINI, "mcp", "list")
    check("in a folder that is not trusted it is off", "Disabled" in told[1], told)
    told = place.run(NODE, GEMINI, "mcp", "list", **TRUSTED)
    check("in one that is trusted it is connected", "Connected" in told[1], told)


def check_cells(place):
    came, request = place.session(
        of_gemini("execute", code="x = 5\nprint('hi')\nx"),
        of_gemini("execute", code="x * 2"),
        of_gemini("execute", code="[x, None]"),
        of_gemini("execute", code="1/0"),
        of_gemini("execute", code=PICTURE),
        of_gemini("list_interpreters"),
        shell("mcp-py-client -c 'x + 1'"),
    )
    check("a cell's answer", came[0] == "hi\n5", came)
    check("an answer that is a number", came[1] == "10", came)
    check("one that is a list", came[2] == "[5, None]", came)
    check("an exception", "ZeroDivisionError" in came[3], came)
    check("a picture", PICTURE_DATA in json.dumps(request), came)
    check("a structured result", "builtin" in came[5], came)
    check("the client sees the variable", "6" in came[6], came)
    check_gone(str(place.home))


def main():
    print("Gemini CLI %s" % json.loads(Path(MODULES, "node_modules/@google/gemini-cli/package.json").read_text())["version"])
    place = Place(folder_for("gemini"))
    check_install(place)
    check_cells(place)
    print("%d Gemini CLI checks passed" % len(passed))


main()
