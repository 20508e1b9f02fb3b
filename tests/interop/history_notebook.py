"""The history of a session as a notebook: jupytext converts it, and nbclient runs it.

    python3 history_notebook.py SERVER        needs PyPI `jupytext`, `nbclient` and `ipykernel`
"""
import json
import os
import subprocess
import sys
import tempfile

import jupytext
import nbclient

CELLS = ["import math\nx = 6", "def f(n):\n    return n * x\n\nf(7)", "text = '''a\n# %% no cell\nb'''\nlen(text)",
         "import asyncio\nawait asyncio.sleep(0)\n'awaited'", "# only a comment"]
FAILING = ["1/0", "broken = '''", "print('after'"]  # the middle one must not swallow what follows
LAST = "sum([x, 1])"
passed = 0


def check(what, good, came):
    global passed
    print("  %s: %s" % ("ok" if good else "FAILED", what), flush=True)
    if not good:
        sys.exit("%s" % (came,))
    passed += 1


def session(server, folder, cells):
    """Runs the cells in a server of their own; the text of its history."""
    env = {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder, "MCP_PY_PYTHON": sys.executable,
           "MCP_PY_HISTORY": os.path.join(folder, "history")}
    process = subprocess.Popen([server, "server"], env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    for code in cells:
        params = {"name": "execute", "arguments": {"code": code}}
        process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}) + "\n")
        process.stdin.flush()
        process.stdout.readline()  # its answer; the step in .ci/run has a deadline
    process.stdin.close()
    process.wait(timeout=10)
    (name,) = os.listdir(env["MCP_PY_HISTORY"])
    with open(os.path.join(env["MCP_PY_HISTORY"], name)) as file:
        return file.read()


def main():
    server = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="mcp-py-notebook-") as folder:
        history = session(server, folder, CELLS + FAILING + [LAST])
    notebook = jupytext.reads(history, fmt="py:percent")
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    for given in CELLS + [LAST]:
        check("a cell is there: %r" % given, any(given in source for source in code), history)
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True).execute()
    results = [output["data"]["text/plain"] for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    check("it gives the same values", results == ["42", "16", "'awaited'", "7"], results)
    print("%d notebook checks passed" % passed)


main()
