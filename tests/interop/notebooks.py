"""What people use in notebooks, with the real packages: cells as a coding agent writes them, and the answers to expect.

    python3 notebooks.py SERVER PYTHON FOLDER       PYTHON has the packages of the step in .ci/run

FOLDER must not exist, and is removed at the end. Each check prints a line. The first that fails ends the run with
exit 1, and prints the cell and its answer.
"""
import base64
import glob
import json
import os
import queue
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import typing
import urllib.error
import urllib.request

SERVER, PYTHON, FOLDER = (os.path.abspath(path) for path in sys.argv[1:4])
HOME, TMPDIR = (os.path.join(FOLDER, name) for name in ("h", "t"))
CELL_SECONDS_MAX = 60  # a show that waits for a browser never ends
ANSWER_SECONDS_MAX = 90  # for the start of the interpreter, too
SOON = 20  # seconds: for a server of a cell to listen, a change to be told, processes to end
PAGE = "[mcp-py: HTML page saved: "
FIGURE = "[mcp-py: figure saved: "
BETWEEN = "[mcp-py: output from between the cells, %d chars:\n%s]\n"
passed = 0


class Answer(typing.NamedTuple):
    code: str
    text: str
    pictures: list  # of pairs: MIME type, bytes
    failed: bool


def check(what, good, answer):
    global passed
    print("  %s: %s" % ("ok" if good else "FAILED", what), flush=True)
    if not good:
        kinds = ["%s of %d bytes" % (kind, len(data)) for kind, data in answer.pictures]
        sys.exit("The cell:\n%s\nIts answer (isError: %s, pictures: %s):\n%s"
                 % (answer.code, answer.failed, ", ".join(kinds) or "none", answer.text))
    passed += 1


def check_text(what, answer, expected):
    check(what, not answer.failed and not answer.pictures and answer.text.strip("\n") == expected, answer)


def check_has(what, answer, *parts, failed=False):
    check(what, answer.failed == failed and all(part in answer.text for part in parts), answer)


def check_like(what, answer, pattern):
    check(what, not answer.failed and re.fullmatch(pattern, answer.text.strip("\n"), re.DOTALL), answer)


class Session:
    """A server without a browser and without installs, for a few cells that belong together."""

    def __init__(self, folder=HOME):
        env = {"HOME": HOME, "TMPDIR": TMPDIR, "PATH": "/usr/bin:/bin", "MCP_PY_PYTHON": PYTHON,
               "MCP_PY_AUTO_INSTALL": "off"}
        self.process = subprocess.Popen([SERVER, "server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
                                        cwd=folder, encoding="utf-8")
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()
        self.last, self.code = 0, ""

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def call(self, tool, **arguments):
        self.start_call(tool, arguments)
        return self.end_call()

    def start_call(self, tool, arguments):
        self.last += 1
        message = {"jsonrpc": "2.0", "id": self.last, "method": "tools/call",
                   "params": {"name": tool, "arguments": arguments}}
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def end_call(self):
        end = time.monotonic() + ANSWER_SECONDS_MAX
        while True:
            try:
                line = self.lines.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                sys.exit("No answer within %d s. The last cell:\n%s" % (ANSWER_SECONDS_MAX, self.code))
            if not line:
                sys.exit("The server has ended. The last cell:\n%s" % self.code)
            message = json.loads(line)
            if message.get("id") == self.last:
                return message["result"]

    def start(self, code, timeout=CELL_SECONDS_MAX):
        self.code = code
        self.start_call("execute", {"code": code, "timeout": timeout, "wait": ANSWER_SECONDS_MAX})

    def end(self):
        result = self.end_call()
        pictures = [(block["mimeType"], base64.b64decode(block["data"])) for block in result["content"][1:]]
        return Answer(self.code, result["content"][0]["text"], pictures, result["isError"])

    def run(self, code, timeout=CELL_SECONDS_MAX):
        self.start(code, timeout)
        return self.end()

    def run_until(self, code, wanted, seconds=SOON):
        """The first answer that has what is wanted, or the last in this time."""
        end = time.monotonic() + seconds
        while True:
            answer = self.run(code)
            if wanted in answer.text or time.monotonic() > end:
                return answer
            time.sleep(0.02)

    def output_folder(self):
        return self.call("get_session_info")["structuredContent"]["output_dir"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(SOON)


# ---- pages, texts and pictures --------------------------------------------------------------------------------------

# What the page must hold. The answer is its note alone.
PAGES = [
    ("a plotly figure", "import plotly.express as px\nfig = px.bar(x=list('abc'), y=[1, 3, 2])\nfig", "cdn.plot.ly"),
    ("its show", "fig.show()", "cdn.plot.ly"),
    ("its show with a renderer", "fig.show('browser')", "cdn.plot.ly"),
    ("pio.show", "import plotly.io as pio\npio.show(fig)", "cdn.plot.ly"),
    ("an altair chart", "import altair as alt, pandas as pd\ndf = pd.DataFrame({'a': [1, 2], 'b': [3, 4]})\n"
     "chart = alt.Chart(df).mark_bar().encode(x='a', y='b')\nchart", "vega"),
    ("its show", "chart.show()", "vega"),
    ("two charts side by side", "chart | chart", "vega"),
    ("a bokeh figure", "from bokeh.plotting import figure, show\np = figure(title='Umsatz')\np.line([1, 2], [3, 4])\np",
     "Umsatz"),
    ("a bokeh layout with it", "from bokeh.layouts import row\nq = figure()\nq.line([1], [2])\nrow(p, q)", "Umsatz"),
    ("a folium map", "import folium\nm = folium.Map(location=[52.5, 13.4])\nm", "leaflet"),
    ("its show_in_browser", "m.show_in_browser()", "leaflet"),
    ("a styled table", "df.style.highlight_max()", "<table"),
    ("IPython's HTML", "from IPython.display import HTML, display\nHTML('<b>Größe</b>')", "Größe"),
    ("display of it", "display(HTML('<b>one</b>'))", "one"),
]
# What says something as text stays text.
TEXTS = [
    ("a DataFrame", "df", "   a  b\n0  1  3\n1  2  4"),
    ("display of a DataFrame", "display(df)", "   a  b\n0  1  3\n1  2  4"),
    ("display without an import", "del display; display(1, 'x')", "1\n'x'"),
    ("an estimator", "from sklearn.linear_model import LinearRegression\nLinearRegression()", "LinearRegression()"),
    ("IPython's Markdown", "from IPython.display import Markdown\ndisplay(Markdown('# a'))", "# a"),
]
# What models see, and as what.
PICTURES = [
    ("a PIL image", "from PIL import Image\nimage = Image.new('RGB', (20, 10), 'red')\nimage", "image/png"),
    ("its show", "image.show()", "image/png"),
    ("display of it", "display(image)", "image/png"),
    ("one that PNG doesn't have", "Image.new('CMYK', (20, 10))", "image/jpeg"),
    ("a JPEG by IPython", "import io, IPython.display\nfile = io.BytesIO()\nimage.save(file, 'jpeg')\n"
     "IPython.display.Image(data=file.getvalue())", "image/jpeg"),
    ("a bare figure's show", "from matplotlib.figure import Figure\nfigure = Figure()\nfigure.subplots().plot([1, 2])\n"
     "figure.show()", "image/png"),
]


def paths(text, lead):
    return [line[len(lead):-1] for line in text.splitlines() if line.startswith(lead) and line.endswith("]")]


def pages():
    with Session() as session:
        for what, code, held in PAGES:
            answer = session.run(code)
            files = paths(answer.text, PAGE)
            check("%s is a page" % what, not answer.failed and not answer.pictures and len(files) == 1
                  and answer.text == PAGE + files[0] + "]", answer)
            with open(files[0], encoding="utf-8") as file:
                page = file.read()
            check("  it is whole", held in page and page.lower().startswith(("<!doctype html>", "<html")), answer)
        answer = session.run("show(p)")
        file = answer.text[len("file://"):].strip()
        check("bokeh's show writes its file and names it", answer.text.startswith("file:///")
              and os.path.isfile(file), answer)
        answer = session.run("from bokeh.plotting import output_file\noutput_file('p.html')\nshow(p)")
        check("also where output_file says", not answer.failed and answer.text.endswith("/p.html"), answer)
        for what, code, expected in TEXTS:
            check_text("%s is text" % what, session.run(code), expected)
        for what, code, kind in PICTURES:
            answer = session.run(code)
            check("%s is a picture" % what, not answer.failed and [one[0] for one in answer.pictures] == [kind]
                  and paths(answer.text, FIGURE), answer)
        answer = session.run("Image.new('1', (9000, 1))")
        check("over a limit the note says which", not answer.pictures
              and "not shown (over 8,000 pixels a side): /" in answer.text, answer)


# ---- matplotlib and pandas ------------------------------------------------------------------------------------------

def sides(png):
    return struct.unpack(">II", png[16:24]) if png[:8] == b"\x89PNG\r\n\x1a\n" else None


def check_figures(what, answer, *expected, behind=""):
    """The pictures have these sides; the text is a note for each, and what stands behind them."""
    files = paths(answer.text, FIGURE)
    notes = "".join("%s%s]\n" % (FIGURE, file) for file in files)
    check(what, not answer.failed and [sides(data) for _, data in answer.pictures] == list(expected)
          and all(map(os.path.isfile, files)) and answer.text.strip() == (notes + behind).strip(), answer)


def figures():
    with Session() as session:
        answer = session.run("import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(5, 4))\n"
                             "ax.plot([1, 3, 2]); ax.set_title('Umsatz');")
        check_figures("a figure is shown as it is", answer, (500, 400))
        answer = session.run("plt.figure(figsize=(60, 6))\nplt.plot([1, 2])\nNone")
        check_figures("one of 6,000 pixels is 2,000 wide", answer, (2000, 200))
        answer = session.run("plt.figure(figsize=(4, 10), dpi=300)\nplt.plot([1, 2])\nplt.show()")
        check_figures("one of 3,000 pixels is 2,000 high", answer, (800, 2000))
        answer = session.run("for column in 'ab':\n    plt.figure(figsize=(3, 2))\n    plt.title(column)\n"
                             "    plt.show()")
        check_figures("a figure for each show in a loop", answer, (300, 200), (300, 200))
        answer = session.run("fig, axes = plt.subplots(1, 2, figsize=(4, 2))\naxes[0].plot([1, 2])\n"
                             "fig.savefig('plot.png', dpi=800)\nplt.close(fig)")
        check_text("a figure that was saved and closed isn't shown", answer, "")
        with open(os.path.join(HOME, "plot.png"), "rb") as file:
            check("  it was saved as it was asked to be", sides(file.read(24)) == (3200, 1600), answer)
        session.run("import pandas as pd\ndf = pd.DataFrame({'a': [1, 2, 2], 'b': [3, 4, 5]})")
        check_figures("df.plot()", session.run("df.plot(figsize=(3, 2))"), (300, 200), behind="<Axes: >")
        check_figures("a histogram, behind which a ; stands", session.run("df['a'].hist(figsize=(3, 2));"), (300, 200))


def tables():
    with Session() as session:
        answer = session.run("import os, shutil\nos.environ['COLUMNS'], shutil.get_terminal_size().columns")
        check_text("a terminal would have 160 columns", answer, "('160', 160)")
        answer = session.run("import numpy as np, pandas as pd\npd.DataFrame(np.arange(60).reshape(2, 30))")
        check_like("a table of 30 columns isn't wrapped", answer, r"   0   1 [^\n]* 29\n0 [^\n]* 29\n1 [^\n]* 59")
        answer = session.run("pd.DataFrame(np.arange(120).reshape(2, 60))")
        check_has("one of 60 columns is cut", answer, " ... ", "[2 rows x 60 columns]")
        check("  its lines have at most 160 characters", max(map(len, answer.text.splitlines())) <= 160, answer)
        answer = session.run("df = pd.DataFrame({'city': list('abca'), 'n': [1, 2, 3, 4]})\n"
                             "df.groupby('city')['n'].sum()")
        check_text("a Series", answer, "city\na    5\nb    2\nc    3\nName: n, dtype: int64")
        answer = session.run("df.info()")
        check_has("df.info()", answer, "RangeIndex: 4 entries, 0 to 3", "Data columns (total 2 columns):")
        answer = session.run("print(df.head(1))\ndf.n.mean()")
        check_text("a table and a number", answer, "  city  n\n0    a  1\nnp.float64(2.5)")
        answer = session.run("pd.DataFrame({'a': range(100)})")
        check_has("a long table is cut", answer, "..  ..", "[100 rows x 1 columns]")


# ---- progress bars and rich -----------------------------------------------------------------------------------------

BAR = r"%s\|█+\| %s \[\d\d:\d\d<00:00, [^\n\r]*it/s\]"
# As pip draws the progress of a download.
PIP = r"""
import subprocess, sys
child = '''
import sys, time
for done in range(0, 2049, 64):
    sys.stdout.write("\\r     %s %.1f/2.0 MB" % ("━" * (done // 64), done / 1024))
    sys.stdout.flush()
    time.sleep(0.002)
print()
print("Successfully installed demo-1.0")
'''
subprocess.run([sys.executable, "-c", child]).returncode
"""


def count_in(path, what):
    with open(path, "rb") as file:
        return file.read().count(what)


def bars():
    with Session() as session:
        answer = session.run("from tqdm import tqdm\nfor n in tqdm(range(6000), mininterval=0, miniters=1):\n    pass")
        check_like("6,000 frames of tqdm are one line", answer, BAR % ("100%", "6000/6000"))
        files = glob.glob(os.path.join(glob.escape(session.output_folder()), "output_*.txt"))
        check("  the file has every frame", len(files) == 1 and count_in(files[0], b"\r") >= 6000, answer)
        answer = session.run("import time\nfrom tqdm.auto import tqdm, trange\nfor n in trange(6000, desc='Rows'):\n"
                             "    if n % 100 == 0: time.sleep(0.005)\nn")
        check_like("tqdm.auto", answer, BAR % ("Rows: 100%", "6000/6000") + "\n5999")
        answer = session.run("for n in tqdm(range(3)):\n    print('row', n)")
        check_like("what the loop prints", answer, "row 0\nrow 1\nrow 2\n" + BAR % ("100%", "3/3"))
        answer = session.run("for n in tqdm(range(10), mininterval=0):\n    if n == 5: raise ValueError('row %d' % n)")
        check_has("a loop that fails", answer, "50%|█████     | 5/10 [", "\nValueError: row 5", failed=True)
        check("  its bar is one line", answer.text.count("it/s]") == 1, answer)
        answer = session.run("import pandas as pd\ntqdm.pandas(desc='apply')\n"
                             "pd.Series(range(1000)).progress_apply(lambda n: n + 1).sum()")
        check_like("tqdm.pandas", answer, BAR % ("apply: 100%", "1000/1000") + r"\nnp\.int64\(500500\)")
        answer = session.run("for epoch in tqdm(range(2), desc='epoch'):\n"
                             "    for batch in tqdm(range(50), desc='batch', leave=False, mininterval=0): pass")
        check("a bar within a bar is one line, too", answer.text.count("batch:") <= 2, answer)
        answer = session.run(PIP)
        check_text("a download as pip draws it", answer,
                   "     %s 2.0/2.0 MB\nSuccessfully installed demo-1.0\n0" % ("━" * 32))


TABLE = """
from rich.table import Table
table = Table(title="Prices")
table.add_column("fruit")
table.add_column("price", justify="right")
table.add_row("apple", "1.20")
table
"""
DRAWN = """
     Prices
┏━━━━━━━┳━━━━━━━┓
┃ fruit ┃ price ┃
┡━━━━━━━╇━━━━━━━┩
│ apple │  1.20 │
└───────┴───────┘
"""
SHARE = """
from rich.console import Console
console = Console()
def share(a, b):
    return a / b
try:
    share(1, 0)
except ZeroDivisionError:
    console.print_exception()
"""


def rich():
    full = "━" * 40 + " 100% 0:00:00"
    with Session() as session:
        answer = session.run("from rich import print\nprint('[bold red]alarm[/]', {'a': 1})")
        check_text("rich.print prints no colours", answer, "alarm\n{'a': 1}")
        answer = session.run("import time\nfrom rich.progress import Progress, track\ntotal = 0\n"
                             "for n in track(range(200), description='Rows'):\n    time.sleep(0.002)\n    total += n\n"
                             "total")
        check_text("track", answer, "Rows %s\n19900" % full)
        answer = session.run("with Progress() as progress:\n    load = progress.add_task('load', total=50)\n"
                             "    train = progress.add_task('train', total=50)\n    for _ in range(50):\n"
                             "        time.sleep(0.002)\n        progress.advance(load); progress.advance(train)")
        check_text("two bars", answer, "load  %s\ntrain %s" % (full, full))
        for what, code in (("a table as last expression", TABLE), ("display of it", "display(table)"),
                           ("print of it", "print(table)")):
            answer = session.run(code)
            lines = [line.rstrip() for line in answer.text.strip("\n").splitlines()]
            check("%s is drawn" % what, not answer.failed and lines == DRAWN.strip("\n").splitlines(), answer)
        answer = session.run("from rich.tree import Tree\ntree = Tree('root')\ntree.add('leaf')\ntree")
        check_text("a tree", answer, "root\n└── leaf")
        answer = session.run(SHARE)
        check_has("a traceback that rich prints", answer, "in <module>:7", "in share:5",
                  "ZeroDivisionError: division by zero")
        answer = session.run("from rich import pretty, traceback\npretty.install()\n"
                             "traceback.install(show_locals=True)\nshare(2, 0)")
        check_has("rich.traceback's install changes no answer", answer, '", line 4, in <module>',
                  "in share\n    return a / b", "ZeroDivisionError: division by zero", failed=True)
        check("  nothing is drawn", "─" not in answer.text, answer)
        answer = session.run("import logging\nfrom rich.logging import RichHandler\n"
                             "logging.basicConfig(level='INFO', format='%(message)s', "
                             "handlers=[RichHandler(show_time=False)])\nlogging.info('loaded')")
        check_like("rich's log", answer, r"INFO     loaded +<cell \d+>:4")


# ---- names that libraries can work with -----------------------------------------------------------------------------

COMPILED = """
import numba

@numba.njit
def total(n):
    s = 0
    for i in range(n):
        s += i
    return s

print(total(5), sum(total.stats.cache_hits.values()))
"""
CACHED = COMPILED.replace("njit", "njit(cache=True)")
MEMORY = """
import joblib
memory = joblib.Memory("memo", verbose=0)

@memory.cache
def load(n):
    print("computing")
    return n * 2

load(4)
"""


def caches():
    with Session() as session:
        check_text("numba compiles", session.run(COMPILED), "10 0")
        check_text("numba's cache: first", session.run(CACHED), "10 0")
        check_text("  the same cell again", session.run(CACHED), "10 1")
        check_text("  a changed one", session.run(CACHED.replace("s += i", "s += 2 * i")), "20 0")
        check_text("  the first again", session.run(CACHED), "10 1")
        answer = session.run("total.py_func.__code__.co_filename")
        check("  it has a file", os.path.isfile(answer.text.strip().strip("'")), answer)
        answer = session.run("@numba.njit\ndef wrong(x):\n    return x + 'a'  # no number\nwrong(1)")
        check_has("numba shows the line that has no type", answer, "TypingError", "return x + 'a'", failed=True)
        check_text("joblib.Memory: first", session.run(MEMORY), "computing\n8")
        check_text("  the same cell again", session.run(MEMORY), "8")
        check_text("  a changed one", session.run(MEMORY.replace("n * 2", "n * 3")), "computing\n12")
        check_text("  the first again", session.run(MEMORY), "8")
        check_has("a traceback names the cell", session.run("1/0  # cache=True"), 'File "<cell ', failed=True)
        other = MEMORY.replace("memory", "mem")
        check_text("as `mem`", session.run(other), "computing\n8")
        check_text("  the same cell again", session.run(other), "8")
        answer = session.run("def square(n): return n * n\n"
                             "joblib.Parallel(n_jobs=2)(joblib.delayed(square)(n) for n in range(4))")
        check_text("joblib.Parallel runs a function of a cell", answer, "[0, 1, 4, 9]")
    with Session() as session:
        check_text("numba's cache in a later session", session.run(CACHED), "10 1")
        check_text("joblib.Memory in a later session", session.run(MEMORY), "8")


EARLY = "def early(x):\n    return 1 / x  # of an early cell\n\ntwice = lambda x: 2 * x  # in one line"
PROFILED = """
from line_profiler import LineProfiler

def work(n):
    rows = [i * i for i in range(n)]  # squares
    return sum(rows)  # summed

profiler = LineProfiler(work)
profiler.runcall(work, 100)
profiler.print_stats()
"""
DECORATED = """
from memory_profiler import profile

@profile
def heavy():
    rows = [1] * 100_000  # filled
    return len(rows)

heavy()
"""


def profilers():
    with Session() as session:
        session.run(EARLY)
        answer = session.run("import inspect\nprint(inspect.getsource(early) + inspect.getsource(twice))")
        check_text("inspect.getsource of functions", answer, EARLY.replace("\n\n", "\n"))
        answer = session.run(PROFILED)
        check_has("line_profiler prints the lines", answer, "Function: work at line 4", "  # squares\n", "  # summed\n")
        answer = session.run("@profiler\ndef shown():\n    return 5  # decorated\nshown()\nprofiler.print_stats()")
        check_has("it does so as a decorator", answer, "return 5  # decorated")
        answer = session.run("import json\nother = LineProfiler(json.dumps)\nother.runcall(json.dumps, [1])\n"
                             "other.print_stats()")
        check_has("it profiles a library's function", answer, "Function: dumps at line ")
        answer = session.run("early(0)")
        check_has("the lines of early cells are there after it", answer,
                  "in early\n    return 1 / x  # of an early cell", failed=True)
        answer = session.run("print(inspect.getsource(early) + inspect.getsource(work))")
        check_has("  for inspect.getsource, too", answer, "# of an early cell\n", "# squares\n")
        answer = session.run(DECORATED)
        check_has("memory_profiler prints the lines", answer, "Mem usage", "rows = [1] * 100_000  # filled", "\n100000")
        answer = session.run("def early(x):\n    return 3 / x  # anew\nprint(inspect.getsource(early))")
        check_text("a function that was defined anew", answer, "def early(x):\n    return 3 / x  # anew")


# ---- servers in cells -----------------------------------------------------------------------------------------------

SOCKETS = """
import asyncio, websockets

async def echo(socket):
    async for message in socket:
        print("got", message)
        await socket.send("echo " + message)

listener = await websockets.serve(echo, "127.0.0.1", %d)
"""
CLIENT = """
import asyncio, sys, websockets

async def main():
    async with websockets.connect("ws://127.0.0.1:" + sys.argv[1]) as socket:
        for message in sys.argv[2:]:
            await socket.send(message)
            print(await socket.recv())

asyncio.run(main())
"""
APP = """
import asyncio, threading, time
import uvicorn
from fastapi import FastAPI

app = FastAPI()
asked = threading.Event()

@app.get("/items/{number}")
def item(number: int):
    print("asked for", number)
    asked.set()
    return {"number": number}

server = uvicorn.Server(uvicorn.Config(app, port=%d, log_level="warning"))
"""
IN_LOOP = "task = asyncio.create_task(server.serve())\nawait asyncio.sleep(0)"
IN_THREAD = "thread = threading.Thread(target=server.run, daemon=True)\nthread.start()"
BEGIN = "asked.clear()\nopen('begun', 'w').close()\n"
INTERRUPTED = "[mcp-py: interrupted after its timeout of 1 s; the variables are kept]\nTraceback "


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(port, path):
    """The body of the answer, from a server that may not listen yet."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + SOON
    while True:
        try:
            with opener.open("http://127.0.0.1:%d%s" % (port, path), timeout=SOON) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            return str(error.code)
        except OSError as error:
            if time.monotonic() > end:
                return "no answer: %s" % error
            time.sleep(0.02)


def ask_within(session, code, port, path):
    """Asks when the cell has begun: the body, and the cell's answer."""
    begun = os.path.join(HOME, "begun")
    session.start(BEGIN + code)
    end = time.monotonic() + SOON
    while not os.path.exists(begun) and time.monotonic() < end:
        time.sleep(0.01)
    body = ask(port, path)
    answer = session.end()
    check("  the cell has begun", os.path.exists(begun), answer)
    os.remove(begun)
    return body, answer


def listens(port):
    with socket.socket() as one:
        one.settimeout(SOON)
        return one.connect_ex(("127.0.0.1", port)) == 0


def sockets():
    port = free_port()
    with Session() as session:
        served = session.run(SOCKETS % port)
        check_text("websockets.serve in a cell", served, "")
        for words in (["one", "two"], ["three"]):
            client = [PYTHON, "-c", CLIENT, str(port), *words]
            ended = subprocess.run(client, capture_output=True, text=True, timeout=SOON)
            check("  it answers while no cell runs", ended.stdout == "".join("echo %s\n" % word for word in words),
                  served._replace(text=ended.stdout + ended.stderr))
            printed = "".join("got %s\n" % word for word in words)
            answer = session.run("1 + 1")
            check("  what it printed comes with the next answer",
                  answer.text == BETWEEN % (len(printed), printed) + "2", answer)
        check_text("  it closes", session.run("listener.close()\nawait listener.wait_closed()\n'closed'"), "'closed'")
        check("  nobody listens then", not listens(port), answer)


def web_in_loop():
    port = free_port()
    with Session() as session:
        answer = session.run(APP % port + IN_LOOP)
        check_text("uvicorn as a task", answer, "")
        check("  it answers between the cells", ask(port, "/items/7") == '{"number":7}', answer)
        check("  what is no number is refused", ask(port, "/items/x") == "422", answer)
        answer = session.run("while True: pass", timeout=1)
        check("a cell that spins beside it is interrupted", answer.failed
              and answer.text.startswith(BETWEEN % (12, "asked for 7\n")) and "stand still" not in answer.text
              and INTERRUPTED in answer.text
              and answer.text.endswith("\nKeyboardInterrupt"), answer)
        check("  uvicorn lives on", ask(port, "/items/8") == '{"number":8}', answer)
        answer = session.run("server.started, task.done()")
        check("  says the cell", answer.text == BETWEEN % (12, "asked for 8\n") + "(True, False)", answer)
        answer = session.run("@app.get('/more')\nasync def more():\n    return {'done': task.done()}")
        check("a route of a later cell", ask(port, "/more") == '{"done":false}', answer)
        code = "while not asked.is_set(): await asyncio.sleep(0.01)\n'seen'"
        body, answer = ask_within(session, code, port, "/items/9")
        check("it answers while a cell awaits", body == '{"number":9}' and answer.text == "asked for 9\n'seen'", answer)
        check_text("it ends by should_exit", session.run("server.should_exit = True\nawait task\ntask.done()"), "True")
        check("  nobody listens then", not listens(port), answer)


def web_in_thread():
    port = free_port()
    with Session() as session:
        answer = session.run(APP % port + IN_THREAD)
        check_text("uvicorn in a thread", answer, "")
        check("  it answers between the cells", ask(port, "/items/1") == '{"number":1}', answer)
        body, answer = ask_within(session, "while not asked.is_set(): pass\n'seen'", port, "/items/2")
        check("  it answers while a cell computes", body == '{"number":2}'
              and answer.text == "asked for 2\n" + BETWEEN % (12, "asked for 1\n") + "'seen'", answer)
        answer = session.run("while True: pass", timeout=1)
        check("  a cell that spins is interrupted", answer.failed and answer.text.startswith(INTERRUPTED)
              and answer.text.endswith("\nKeyboardInterrupt"), answer)
        check("  uvicorn lives on", ask(port, "/items/3") == '{"number":3}', answer)
        answer = session.run("server.should_exit = True\nthread.join(10)\nthread.is_alive()")
        check("  it ends by should_exit", answer.text == BETWEEN % (12, "asked for 3\n") + "False", answer)


TICK = """
import asyncio

async def tick():
    for n in range(3):
        await asyncio.sleep(0.01)
        print("tick", n)

"""


def tasks():
    with Session() as session:
        session.run(TICK + "task = asyncio.get_event_loop().create_task(tick())")
        time.sleep(0.5)
        answer = session.run("task.done()")
        check("a task of get_event_loop() goes on between the cells", "tick 2" in answer.text, answer)
        answer = session.run("task = asyncio.create_task(tick())")
        check("a task can be made in a cell that doesn't await", not answer.failed, answer)
        answer = session.run_until("task", "tick 2")
        check_has("  it goes on between the cells", answer, BETWEEN.split("%")[0], "tick 2\n]\n<Task ")


# ---- tests of a project ---------------------------------------------------------------------------------------------

RUN = 'import pytest\npytest.main(["-q", "--no-header"])'
RELOAD = "import importlib, calc, test_calc\nimportlib.reload(calc)\nimportlib.reload(test_calc)\n"
TEST = "from calc import add\n\ndef test_add():\n    assert add(2, 3) == 5\n"


def write(folder, name, text):
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)


def told_of_edit(session, folder, name, text):
    """The answer of the first run that tells of it. The server leaves out looking for a moment after each look. An edit
    before its first look at what was reloaded isn't noticed. So the file is written again now and then."""
    for _ in range(5):
        write(folder, name, text)
        answer = session.run_until(RUN, "changed on disk", seconds=SOON / 5)
        if "changed on disk" in answer.text:
            break
    return answer


def project():
    folder = os.path.join(FOLDER, "p")
    os.mkdir(folder)
    write(folder, "calc.py", "def add(a, b):\n    return a - b  # a slip\n")
    write(folder, "test_calc.py", TEST)
    with Session(folder) as session:
        answer = session.run(RUN)
        check_has("pytest.main in a cell", answer, "assert -1 == 5", "1 failed", "<ExitCode.TESTS_FAILED: 1>")
        check("  nothing has changed", "changed on disk" not in answer.text, answer)
        answer = told_of_edit(session, folder, "calc.py", "def add(a, b):\n    return a + b\n")
        check_has("a module that was mended is named in the answer of the run", answer, "1 failed",
                  "[mcp-py: changed on disk since import: calc, used by test_calc. Reload them, in this order,")
        answer = session.run(RELOAD + RUN)
        check_has("  reloaded, the test passes", answer, "1 passed", "<ExitCode.OK: 0>")
        answer = told_of_edit(session, folder, "test_calc.py", TEST + "\ndef test_more():\n    assert add(0, 0) == 0\n")
        check_has("a test file that was edited is named, too", answer, "1 passed", "[mcp-py: changed on disk since import: test_calc. ")
        answer = session.run(RELOAD + RUN)
        check_has("  reloaded, both tests pass", answer, "2 passed")
        check("  it is named once", "changed on disk" not in answer.text, answer)


# ---- the end --------------------------------------------------------------------------------------------------------

def processes():
    """The ids of those with our HOME (so of Linux): the servers, and all that they have started."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/environ" % pid, "rb") as file:
                if b"HOME=" + os.fsencode(HOME) in file.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            pass  # it has ended, or it is another user's
    return found


def check_nothing_is_left():
    end = time.monotonic() + SOON
    while processes() and time.monotonic() < end:
        time.sleep(0.05)
    left = "%s %s" % (processes(), glob.glob(os.path.join(TMPDIR, "python-interpreter-*")))
    check("no process and no output is left", left == "[] []", Answer("all", left, [], False))


def clean():
    end = time.monotonic() + SOON
    while (left := processes()) and time.monotonic() < end:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)
    shutil.rmtree(FOLDER, ignore_errors=True)


PARTS = (pages, figures, tables, bars, rich, caches, profilers, sockets, web_in_loop, web_in_thread, tasks, project)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # of `timeout`: so that `clean` runs
    os.makedirs(FOLDER)
    try:
        for folder in (HOME, TMPDIR):
            os.mkdir(folder)
        for part in PARTS:
            print("%s:" % part.__name__.replace("_", " "))
            part()
        check_nothing_is_left()
    finally:
        clean()
    print("%d notebook cell checks passed" % passed)


main()
