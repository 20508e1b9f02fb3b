"""The worker: one Python process that runs the cells of one interpreter of mcp-py.

The server starts it as `PYTHON -c BOOTSTRAP`. The bootstrap reads this text from descriptor 0 and runs it in a
namespace of its own, whose builtins are a private copy: whatever user code does to `builtins`, `sys.stdout` or
`json.dumps`, the names used here stay what they were. Cells run in the real `__main__`, where nothing of ours is.

Protocol: one JSON object a line, UTF-8, on the control socket. It arrives as descriptor 0 and is at once moved to a
private close-on-exec descriptor (I6). The server sends a request and waits for `done` before it sends the next.

    server -> worker   {"op": "run", "code": text}         run a cell
                       {"op": "startup", "code": text}     the same for the startup script, which is no numbered cell
                       {"op": "list_vars"}, {"op": "reset"}
                       {"op": "installed", "number": n, "done": bool}    the answer to `install`
    worker -> server   {"op": "ready", "version": text}    once, before anything else
                       {"op": "install", "number": n, "name": text}      a cell imports what nobody finds
                       {"op": "image", "data": base64, "more": bool}     a PNG, in pieces
                       {"op": "part", "text": text}        the beginning of a long result, in pieces of PART_CHARS
                       {"op": "done", "result": text or null, "error": text or null, "exit": code, "notes": [text],
                        "missing": name or null}           a module that was not found, and that was not asked for

Output does not travel here: descriptors 1 and 2 are pipes that the server drains. `done` is sent after everything
the cell wrote has been flushed into them, so what the pipes hold at that moment is the whole of it (I4). End of file
on the control socket means: leave. The worker starts no thread (I7).
"""
import sys  # the bootstrap took '' off sys.path, so that no project file stands in for what is imported here
import os

try:
    PROJECT = os.getcwd()
except OSError:  # it was deleted
    PROJECT = ""
STDLIB = os.path.dirname(os.__file__)

def without_project(path):
    """The import path less the project, which may hold files named like modules of the standard library."""
    return [entry for entry in path if entry == STDLIB or entry not in ("", PROJECT)]

sys.path[:] = without_project(sys.path)
import __future__
import _ast
import _signal
import binascii
import builtins
import io
import json
import linecache
import textwrap
import traceback
from _frozen_importlib_external import PathFinder
from _thread import get_ident
from collections import deque
from itertools import count
from types import ModuleType

# `LAUNCH_PATH` is the bootstrap's: sys.path as the interpreter made it; under PYTHONSAFEPATH it lacks the ''.
sys.path[:] = LAUNCH_PATH if "" in LAUNCH_PATH[:1] else [PROJECT] + LAUNCH_PATH  # noqa: F821

# Our own references: user code may patch the modules later. `_signal`, for `signal` converts to enums, which is slow.
decoder, to_json = json.JSONDecoder(), json.JSONEncoder(ensure_ascii=False).encode
from_json = getattr(decoder, "scan_once", decoder.raw_decode)
if getattr(json.encoder, "c_make_encoder", None) is not None:  # not on PyPy; in C, hence out of reach of patches
    in_c = json.encoder.c_make_encoder(None, None, json.encoder.encode_basestring, None, ":", ",", False, False, True)
    to_json = lambda frame: "".join(in_c(frame, 0))  # noqa: E731
dup2, fstat, getpid, read, write, leave_now = os.dup2, os.fstat, os.getpid, os.read, os.write, os._exit
open_descriptor, close_descriptor, DEVNULL, READ_ONLY = os.open, os.close, os.devnull, os.O_RDONLY
set_handler, get_handler, SIGINT = _signal.signal, _signal.getsignal, _signal.SIGINT
StringIO, TextIOWrapper, TracebackException = io.StringIO, io.TextIOWrapper, traceback.TracebackException
dedent, to_base64, BytesIO, get_frame = textwrap.dedent, binascii.b2a_base64, io.BytesIO, sys._getframe
sources = linecache.cache
sources.pop("<string>", None)  # since 3.13 that is the bootstrap: not what user code runs by `exec`

PART_CHARS = 256 * 1024  # of a result in one frame; the server refuses frames over 4 MiB
IMAGE_PART = 192 * 1024  # bytes, which base64 makes 256 KiB
ERROR_CHARS = 10_000  # of a traceback: its first and its last half are kept
SOURCES_CHARS_MAX = 16 * 1024 * 1024  # of cells whose lines are kept for tracebacks; the oldest go first
ALLOW_AWAIT, ONLY_AST = 0x2000, 0x400  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, ast.PyCF_ONLY_AST
CO_COROUTINE = 0x80  # inspect.CO_COROUTINE
FUTURES = __future__.annotations.compiler_flag  # the one that is not in force anyway
OURS = without_project.__code__.co_filename  # how frames of this file are known in a traceback

WIDE = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}  # whoever takes these expects a failure
# Modules of other versions and systems, and namespaces that many packages share: no index has them under that name.
NO_PACKAGE = """asynchat asyncore cgi cgitb crypt distutils imp msvcrt nntplib pipes smtpd telnetlib winreg winsound
    azure google mpl_toolkits ruamel zope""".split()
PID, MAIN_THREAD = getpid(), get_ident()
os.environ.setdefault("MPLBACKEND", "agg")
modules = sys.modules
scope = modules["__main__"].__dict__
cells = 0  # how many have run: the next is `<cell N>`
kept_sources, kept_chars = deque(), 0
guards = {}  # by cell: the lines in which a failing import is expected
asked, numbers = {}, count(1)  # names that a cell missed: whether they were installed; numbers of requests
received = []  # from the control socket, beyond the last line

# -- descriptors and streams ----------------------------------------------------------------------------------------

class EmptyStdin(io.TextIOBase):
    """sys.stdin: whoever reads it is told at once why there is nothing, instead of waiting for ever."""

    encoding, errors, name, mode = "utf-8", "strict", "<stdin>", "r"

    def refuse(self, *_):
        raise EOFError("stdin is empty: cells have no input, pass the value in code instead of asking for it")

    read = readline = readlines = readinto = read1 = peek = __iter__ = __next__ = refuse
    buffer = property(lambda self: self)

    def fileno(self):
        return 0

    def readable(self):
        return True

    def close(self):
        """`exit()` closes stdin before it raises SystemExit; the interpreter lives on."""

def open_null_as_stdin():
    null = open_descriptor(DEVNULL, READ_ONLY)
    if null != 0:
        dup2(null, 0)
        close_descriptor(null)

def leads_to(descriptor):
    """What a descriptor is open to, by device and inode; None where it is closed."""
    try:
        status = fstat(descriptor)
        return status.st_dev, status.st_ino
    except OSError:
        return None

control = os.dup(0)
open_null_as_stdin()
spares = os.dup(1), os.dup(2)  # close-on-exec, as the control descriptor: os.dup makes them so (PEP 446)
server, pipes = leads_to(control), [leads_to(spare) for spare in spares]
own_streams = sys.stdout, sys.stderr
for stream in own_streams:
    stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
sys.stdin = EmptyStdin()

def flush_streams():
    """User code may have put anything in place of the streams: what flushing that raises is not the cell's affair."""
    for stream in own_streams + (getattr(sys, "stdout", None), getattr(sys, "stderr", None)):
        try:
            stream.flush()
        except BaseException:
            pass

def mend_streams(notes):
    """Puts back what the cell closed or redirected for good, so that the next cell is heard (I4)."""
    for descriptor, (spare, pipe) in enumerate(zip(spares, pipes), 1):
        if leads_to(descriptor) != pipe:
            dup2(spare, descriptor)
            notes.append("descriptor %d was closed or redirected by the cell; it leads here again" % descriptor)
    if leads_to(0) is None:
        open_null_as_stdin()
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name, None)
        try:
            broken = stream is None or (type(stream) is TextIOWrapper and stream.closed)
        except ValueError:  # it was detached
            broken = True
        if broken:
            raw = open(descriptor, "wb", closefd=False)
            setattr(sys, name, TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True))
    if getattr(sys, "stdin", None) is None:
        sys.stdin = EmptyStdin()

modules_seen, flush_c = 0, None

def find_c_code():
    """Gives `flush_c` its value once a module is loaded whose C code may write to libc's stdout: ctypes takes 5 ms.

    fflush(stdout), never fflush(NULL), which waits for any stream that a thread is blocked on.
    """
    global modules_seen, flush_c
    if flush_c is not None or len(modules) == modules_seen:
        return
    modules_seen = len(modules)
    for name in list(modules):  # names alone: making pairs may collect garbage, which may import
        module = modules.get(name)
        file = module.__dict__.get("__file__") if type(module) is ModuleType else None
        foreign = type(file) is str and file.endswith((".so", ".dylib")) and not file.startswith(STDLIB)
        if name == "_ctypes" or foreign:
            flush_c = int  # does nothing
            try:
                ctypes = late_import("ctypes")
                libc, symbol = ctypes.CDLL(None), "__stdoutp" if sys.platform == "darwin" else "stdout"
                stdout, fflush = ctypes.c_void_p.in_dll(libc, symbol), libc.fflush
                flush_c = lambda: fflush(stdout)  # noqa: E731
            except Exception:  # no libffi: such output is left to libc's own habits
                pass
            return

def out_of_project(action, *arguments):
    """Does what imports, or may: Python's own modules import others when they need them."""
    path = getattr(sys, "path", None)
    sys.path = without_project(path if type(path) is list else [])
    try:
        return action(*arguments)
    finally:
        sys.path = path

def late_import(name):
    """Imports what is too dear for the start, from the standard library: asyncio takes longer than all the rest."""
    return out_of_project(__import__, name)

# -- the control socket ---------------------------------------------------------------------------------------------

def receive():
    """The next request, or None at end of file. Reading goes on after a signal (PEP 475).

    A handler or a thread of the user's may raise here; `map` keeps that from coming between a read and its result.
    """
    while not received or b"\n" not in received[-1]:
        received.extend(map(read, [control], [65536]))
        if not received[-1]:
            return None
    line, _, rest = b"".join(received).partition(b"\n")
    received[:] = [rest] if rest else []
    return from_json(line.decode(), 0)[0]

def send(frame):
    data = (to_json(frame) + "\n").encode()
    while data:
        data = data[write(control, data) :]

def plain(text, to_bytes=str.encode, to_text=bytes.decode):
    """`text` as valid Unicode: a lone surrogate becomes its escape, a subclass of str its plain value."""
    return to_text(to_bytes(text, "utf-8", "backslashreplace"), "utf-8")

def keep_ends(text):
    half, left_out = ERROR_CHARS // 2, len(text) - ERROR_CHARS
    mark = "\n[mcp-py: … %d characters left out …]\n" % left_out
    return text if left_out <= 0 else text[:half] + mark + text[-half:]

# -- interrupts -----------------------------------------------------------------------------------------------------

armed = False  # whether SIGINT raises: only while user code runs, and once a cell
interrupted = False  # whether it has, in this cell
sending = deferred = False  # whether a frame is on its way, and whether SIGINT came meanwhile
ask_loop = None  # has the event loop that runs a cell interrupt it between two callbacks
users_handler = None  # what user code put in place of ours: it holds during cells

def on_sigint(_signal, _frame):
    """Installed for life. A late signal is dropped; toggling SIG_IGN instead would leak it to the next cell.
    In an event loop the first one waits for a place where it tears nothing; the next, 200 ms later, does not."""
    global armed, interrupted, deferred, ask_loop
    if armed and sending:
        deferred = True
    elif armed and ask_loop is not None and getpid() == PID:
        ask, ask_loop = ask_loop, None
        ask()
    elif armed:
        armed, interrupted = False, True
        raise KeyboardInterrupt

def send_in_cell(frames):
    """Sends while a cell runs: an interrupt waits for the end of that, for it would tear a frame."""
    global sending, deferred
    sending, deferred = True, False
    try:
        for frame in frames:
            send(frame)
    finally:
        sending = False
        if deferred:
            on_sigint(SIGINT, None)

def take_sigint_back():
    global users_handler
    while True:  # the user's own handler may raise right here
        try:
            handler = get_handler(SIGINT)
            if handler is not on_sigint:
                set_handler(SIGINT, on_sigint)
                users_handler = handler
            return
        except BaseException:
            continue

def guarded(action):
    """Runs user code: the only place where SIGINT raises. Returns (value, None) or (None, what was raised).

    An interrupt between any two of these lines ends up in the outer handler, which is disarmed by then.
    """
    global armed, users_handler
    try:
        try:
            if users_handler is not None:
                set_handler(SIGINT, users_handler)
                users_handler = None
            armed = not interrupted
            return action(), None
        finally:
            armed = False
            take_sigint_back()
    except BaseException as error:
        armed = False
        take_sigint_back()
        return None, error

set_handler(SIGINT, on_sigint)

# -- cells ----------------------------------------------------------------------------------------------------------

def compile_cell(code, name):
    """The cell as code objects to run in turn, the last of which gives its value; nothing runs when this raises."""
    flags = ALLOW_AWAIT
    if "\n" not in code:
        try:
            return [compile(code, name, "eval", flags, True)]  # the way below takes thrice as long
        except (SyntaxError, ValueError):
            pass
    try:
        tree = compile(code, name, "exec", flags | ONLY_AST, True)
    except IndentationError:
        flush_left = dedent(code)
        if flush_left == code:
            raise
        tree = compile(flush_left, name, "exec", flags | ONLY_AST, True)
    guards[name] = guarded_lines(tree) if "except" in code or "suppress" in code else ()
    value = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
    steps = [compile(tree, name, "exec", flags, True)] if tree.body or value is None else []
    if value is not None:
        flags |= steps[0].co_flags & FUTURES if steps else 0
        steps.append(compile(_ast.Expression(value.value), name, "eval", flags, True))
    return steps

def guarded_lines(tree):
    """Where a failing import is expected: bodies of `try` with a handler that wide, and of `with suppress(...)`."""
    ranges, pending = [], [tree]
    while pending:
        node = pending.pop()
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            pending += getattr(node, field, ())
        caught = [handler.type for handler in getattr(node, "handlers", ())]
        for call in [item.context_expr for item in getattr(node, "items", ())]:
            if isinstance(call, _ast.Call) and name_of(call.func) == "suppress":
                caught += call.args
        caught += [one for kind in caught if isinstance(kind, _ast.Tuple) for one in kind.elts]
        if any(kind is None or name_of(kind) in WIDE for kind in caught):
            ranges.append((node.body[0].lineno, node.body[-1].end_lineno))
    return ranges

def name_of(node):
    return getattr(node, "attr", None) or getattr(node, "id", None)

def run_steps(steps):
    """Returns the repr of the last step's value, None for None. With an `await` anywhere all of it runs in the loop."""
    value = None
    if any(step.co_flags & CO_COROUTINE for step in steps):
        value = run_task(steps)
    else:
        for step in steps:
            value = eval(step, scope)
    text = None if value is None else plain(repr(value))
    show_value(value)
    return text

async def in_turn(steps):
    value = None
    for step in steps:
        value = eval(step, scope)
        if step.co_flags & CO_COROUTINE:
            value = await value
    return value

loop = None  # of top-level await: one for the interpreter's life

def run_task(steps):
    """Runs a top-level await. When that fails or is interrupted, its own task is ended; other tasks stay."""
    global loop, ask_loop
    asyncio = modules.get("asyncio") or late_import("asyncio")
    if loop is None or loop.is_closed():
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # `asyncio.run` in a cell sets it to None
    task = loop.create_task(in_turn(steps))
    ask_loop = lambda: loop.call_soon_threadsafe(lambda: task.done() or on_sigint(SIGINT, None))  # noqa: E731
    try:
        return loop.run_until_complete(task)
    except BaseException as raised:
        error, place = raised, raised.__traceback__
    finally:
        ask_loop = None
    if not task.done():  # interrupted, somewhere in the loop: where the task was waiting is what matters
        task.cancel()
        try:
            loop.run_until_complete(task)
        except BaseException as ending:
            place = ending.__traceback__
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it again
    raise error.with_traceback(place)

def remember_source(code, name):
    """Registers a cell's lines with linecache, under no file's modification time, so that they are never checked."""
    global kept_chars
    sources[name] = (len(code), None, list(StringIO(code, newline=None)), name)
    kept_sources.append((name, len(code) + 500))  # about what the rest takes
    kept_chars += kept_sources[-1][1]
    while kept_chars > SOURCES_CHARS_MAX and len(kept_sources) > 1:
        oldest, chars = kept_sources.popleft()
        sources.pop(oldest, None)
        guards.pop(oldest, None)
        kept_chars -= chars

def run_cell(code, name):
    code = code[1:] if code[:1] == "\ufeff" else code
    remember_source(code, name)
    scope.setdefault("__builtins__", builtins)
    result, error = guarded(lambda: run_steps(compile_cell(code, name)))
    if getpid() != PID:
        leave_child(error)
    if "matplotlib" in modules:
        _, failed = guarded(show_figures)
        error = failed if error is None else error
    if type(error) is SyntaxError and error.text is None and error.lineno:
        error.text = sources[name][2][error.lineno - 1]  # `compile` has no text where it compiles a tree
    return result, error

def leave_child(error):
    """A child of os.fork fell through the cell's end: as at a script's end, and no word on the control socket."""
    text, code = (None, 0) if error is None else report(error)
    guarded(lambda: sys.stderr.write(text + "\n" if text else ""))
    flush_streams()
    leave_now(code)

# -- imports and pictures -------------------------------------------------------------------------------------------

class Installer:
    """The last finder: has the server install what a cell's statement imports and nobody found."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        wanted = armed and name not in asked and get_ident() == MAIN_THREAD and getpid() == PID
        if not wanted or not is_package(name) or not is_cells_own(get_frame(1)):
            return None
        asked[name] = False
        number, reply = next(numbers), {}
        send_in_cell([{"op": "install", "number": number, "name": name}])
        while reply is not None and reply.get("number") != number:
            reply = receive()
        if not reply or not reply["done"]:
            return None
        asked[name] = True
        PathFinder.invalidate_caches()
        return PathFinder.find_spec(name)

def is_package(name):
    """Whether a package index may be asked for this: a plain name, and none that means something else there."""
    known = getattr(sys, "stdlib_module_names", None) or [entry.split(".")[0] for entry in os.listdir(STDLIB)]
    return name.isascii() and name.isidentifier() and name[0] != "_" and name not in known and name not in NO_PACKAGE

def is_cells_own(frame):
    """Whether a cell's import statement, or its call of import_module, led here, and nothing expects a failure."""
    while frame is not None and "importlib._bootstrap" in frame.f_code.co_filename:
        frame = frame.f_back
    called = frame is not None and frame.f_globals.get("__name__") == "importlib"
    if called and frame.f_code.co_name == "import_module":
        frame = frame.f_back
    elif frame is None or late_import("opcode").opname[frame.f_code.co_code[frame.f_lasti]] != "IMPORT_NAME":
        return False
    if frame is None or not is_cell(frame.f_code):
        return False
    while frame is not None:
        ranges = guards.get(frame.f_code.co_filename, ()) if is_cell(frame.f_code) else ()
        if any(first <= frame.f_lineno <= last for first, last in ranges):
            return False
        frame = frame.f_back
    return True

def is_cell(code):
    return code.co_filename.startswith(("<cell ", "<startup script>"))

class PyplotFinder:
    """The first finder: pyplot's `show`, which can't show anything here, becomes ours."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name == "matplotlib.pyplot" else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module
            def load_and_replace(module):
                load(module)
                module.show = show_figures
            spec.loader.exec_module = load_and_replace
        return spec

def show_figures(*_, **__):
    """plt.show, also at a cell's end: sends the open figures and closes them."""
    pyplot = modules.get("matplotlib.pyplot")
    if get_ident() == MAIN_THREAD and getpid() == PID:
        for number in getattr(pyplot, "get_fignums", list)():
            show_value(pyplot.figure(number))

def show_value(value):
    """Sends the picture of a figure, which is closed, or of what has one for notebooks."""
    figures, pyplot, data = modules.get("matplotlib.figure"), modules.get("matplotlib.pyplot"), None
    if getpid() != PID:
        return
    if figures is not None and isinstance(value, getattr(figures, "Figure", ())):
        buffer = BytesIO()
        value.savefig(buffer, format="png")
        data = buffer.getvalue()
        if pyplot is not None:
            pyplot.close(value)
    elif hasattr(type(value), "_repr_png_"):
        data = value._repr_png_()
        data = data[0] if isinstance(data, tuple) else data
    if isinstance(data, (bytes, bytearray)) and data[:4] == b"\x89PNG":
        pieces = [to_base64(data[at : at + IMAGE_PART], newline=False) for at in range(0, len(data), IMAGE_PART)]
        more = [True] * (len(pieces) - 1) + [False]
        send_in_cell({"op": "image", "data": piece.decode(), "more": left} for piece, left in zip(pieces, more))

sys.meta_path.insert(0, PyplotFinder)
sys.meta_path.append(Installer)

# -- what is told of an exception -----------------------------------------------------------------------------------

def report(error):
    """(text, exit code) of what a cell raised."""
    answer, failed = guarded(lambda: describe(error))
    if failed is None:
        return answer
    name = type.__dict__["__name__"].__get__(type(error))  # whatever its class says of itself
    return "%s: its traceback can't be shown" % name, 1  # its __str__ raised, `traceback` was patched, …

def describe(error):
    """SystemExit ends the cell only, with the code it would have had; a text instead of a code goes to stderr."""
    if not issubclass(type(error), SystemExit):
        return keep_ends(plain(out_of_project(format_error, error))), 1
    code = error.code
    if code is None or isinstance(code, int):
        code = int(code or 0)
        return ("SystemExit: %d" % code if code else None), code & 255
    sys.stderr.write("%s\n" % (code,))
    return None, 1

def format_error(error):
    """The traceback as Python prints it, without the frames of this file."""
    first = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename[:6] not in ("<cell ", "<start"):
        first = first.tb_next  # ours, and the event loop's
    shown = TracebackException(type(error), error, first)
    pending, seen = [shown], set()
    while pending:
        part = pending.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = [frame for frame in part.stack if frame.filename != OURS]
        pending += [part.__cause__, part.__context__] + list(getattr(part, "exceptions", None) or ())
    lines = shown.format() if shown.stack else shown.format_exception_only()  # a SyntaxError of the cell's own
    return "".join(lines).rstrip("\n")

# -- requests -------------------------------------------------------------------------------------------------------

def visible_names():
    return sorted(name for name in list(scope) if type(name) is str and not name.startswith("__"))

def list_vars():
    return plain(", ".join(visible_names())) or "No variables defined"

def reset():
    count = len(visible_names())
    for name in list(scope):
        if name not in first_scope:
            scope.pop(name, None)
    scope.update(first_scope)
    return "Scope cleared (%d items removed)" % count

unanswered = False  # a request is being served

def serve(request):
    global cells, interrupted, unanswered
    interrupted, unanswered = False, True
    operation, notes = request["op"], []
    for name in [name for name in asked if not asked[name]]:
        del asked[name]
    if "code" in request:
        cells += operation == "run"
        result, error = run_cell(request["code"], "<startup script>" if operation == "startup" else "<cell %d>" % cells)
    else:
        result, error = guarded({"list_vars": list_vars, "reset": reset}[operation])
    text, code = (None, 0) if error is None else report(error)
    flush_streams()
    mend_streams(notes)
    if notes:
        flush_streams()  # what could not be written before
    find_c_code()
    if flush_c is not None:
        flush_c()
    missing = error.name if type(error) is ModuleNotFoundError else None
    if type(missing) is not str or missing in asked or not is_package(missing):
        missing = None
    answer(result, text, code, notes, missing)

def answer(result, error, code, notes, missing=None):
    global unanswered
    sent = 0
    while result is not None and len(result) - sent > PART_CHARS:
        send({"op": "part", "text": result[sent : sent + PART_CHARS]})
        sent += PART_CHARS
    unanswered = False
    send({"op": "done", "result": result and result[sent:], "error": error, "exit": code, "notes": notes,
          "missing": missing})

def main():
    send({"op": "ready", "version": "%d.%d.%d" % sys.version_info[:3]})
    while True:
        try:
            request = receive()
            if request is None:
                return
            if request["op"] != "installed":  # a late one: its cell was interrupted
                serve(request)
        except BaseException as error:  # by a handler or a thread of the user's, while no cell's code ran
            text, code = report(error)
            if leads_to(control) != server:
                raise SystemExit("a cell closed descriptor %d, by which the interpreter is reached" % control)
            if unanswered:
                answer(None, text, code, [])
            else:
                guarded(lambda: sys.stderr.write("%s\n" % text))

for name in [name for name in scope if not name.startswith("__")]:
    del scope[name]  # the bootstrap's own
first_scope = dict(scope)
main()
