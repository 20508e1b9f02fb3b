"""The worker: one Python process that runs the cells of one interpreter of mcp-py.

The server starts it as `PYTHON -c BOOTSTRAP`. The bootstrap reads this text from descriptor 0 and runs it in a
namespace of its own, whose builtins are a private copy: whatever user code does to `builtins`, `sys.stdout` or
`os.write`, the names used here stay what they were. Cells run in the real `__main__`, where nothing of ours is.

Protocol: one JSON object a line, UTF-8, on the control socket. It arrives as descriptor 0 and is at once moved to a
private close-on-exec descriptor (I6). The server sends a request and waits for `done` before it sends the next.

    server -> worker   {"op": "run", "number": n, "code": text}       a cell, perhaps with
                       "argv": [text], "stdin": text or null          as a script its file's path comes first in argv
                       {"op": "startup", "code": text}                the startup script
                       {"op": "list_vars", "details": bool}, {"op": "reset"}
                       {"op": "looked", "number": n, "project": path, "environments": [[name, path]], "uv": bool,
                        "installs": bool}          the answer to `look`: `installs` says whether we may ask for them
                       {"op": "installed", "number": n, "done": bool}    the answer to `install`
    worker -> server   {"op": "ready", "version": text, "environment": path or null, "note": text or null,
                        "pid": n}
                       once, first: where packages may be installed, what there is to say of that, and who we are
                       {"op": "look", "number": n}           where the project is, and what environments it has
                       {"op": "install", "number": n, "name": text, "package": text}
                                                          a cell imports what nobody finds
                       {"op": "image", "kind": "png", "jpeg", "svg" or "html", "data": base64, "more": bool}
                                                          a picture or a page, in pieces
                       {"op": "part", "text": text}        the beginning of a long result, in pieces of PART_CHARS
                       {"op": "done", "result": text, "error": text or null, "exit": code, "notes": [text]}

Output travels in the pipes that descriptors 1 and 2 are. `done` is sent after all that the cell wrote was flushed into
them: they hold the whole of it (I4). End of file on the control socket means: leave. The worker starts no thread (I7).
"""
import sys  # the bootstrap took '' off sys.path, so that no project file stands in for what is imported here
import os

STDLIB = os.path.dirname(os.__file__)
# Entries before STDLIB come from PYTHONPATH, and may hold project files named like its modules.
OUR_PATH = sys.path[sys.path.index(STDLIB) :] if STDLIB in sys.path else sys.path[:]
sys.path[:] = OUR_PATH
import _ast
import builtins
import faulthandler
import json
import linecache
from _frozen_importlib_external import PathFinder
# Those of `signal` convert to enums, which is slow.
from _signal import SIG_DFL, SIGALRM, SIGINT, SIGIO, SIGKILL, alarm, getsignal, signal
from _thread import get_ident
from io import BufferedReader, BytesIO, FileIO, StringIO, TextIOWrapper
from itertools import count, islice, repeat
from os import _exit, dup2, fstat, getpid, read, write  # by name: user code may patch the module later
from select import POLLHUP, POLLIN, poll
from time import monotonic, time, time_ns
from traceback import TracebackException, walk_stack, walk_tb

environment, note = (sys.argv[1:] + [None, None])[:2]  # given by ENVIRONMENT (main.rs), which runs the builtin's Python
del sys.argv[1:]
# `LAUNCH_PATH` is the bootstrap's: sys.path as the interpreter made it. Where that lacks the '' (PYTHONSAFEPATH), the
# working directory itself is put first: cells may import project files, and a later chdir changes nothing.
sys.path[:] = LAUNCH_PATH if "" in LAUNCH_PATH[:1] else [os.getcwd()] + LAUNCH_PATH  # noqa: F821

to_json = json.JSONEncoder(ensure_ascii=False).encode
from_json = json.JSONDecoder().raw_decode
if getattr(json.encoder, "c_make_encoder", None) is not None:  # not on PyPy; in C, hence out of reach of patches
    encode_in_c = json.encoder.c_make_encoder(
        None, None, json.encoder.encode_basestring, None, ":", ",", False, False, True)

    def to_json(frame):
        return "".join(encode_in_c(frame, 0))

sources = {}  # by name, the entries of cells in linecache
linecache.cache.pop("<string>", None)  # since 3.13 that is the bootstrap: not what user code runs by `exec`
getattr(linecache, "_interactive_cache", {}).clear()  # since 3.14 it is here

PART_CHARS = 256 * 1024  # of a result or a picture in one frame; the server refuses frames over 4 MiB
ERROR_CHARS = 10_000  # of a traceback: its first and its last half are kept
SOURCES_CHARS_MAX = 16 * 1024 * 1024  # of cells whose lines are kept for tracebacks; the oldest go first
ALLOW_AWAIT, ONLY_AST = 0x2000, 0x400  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, ast.PyCF_ONLY_AST
LOOKS_MAX = 100  # causes of an error, folders of a possible package, and missing modules of a cell, that are looked at
LOOK_SECONDS_MAX = 10  # for the server to say where a module may be: its clerk may be held up
SIDE_MAX = 2_000  # pixels of a figure: a larger one is drawn with fewer dots per inch
PICTURE_BYTES_MAX = 4 << 20  # of a picture that an answer shows
PROFILERS = "line_profiler", "memory_profiler"  # these look for a function's file, and so do numba and joblib:
NEEDS_FILE = r"\bcache *= *True\b|@(?!functools)\w+\.cache\b|\bmemory\.cache\b|" + "|".join(PROFILERS)
FILES = os.path.expanduser("~/.claude-workspace/python_interpreter/cells")
FILES_SECONDS_MAX = 30 * 24 * 3600  # until a cell's file, and what numba keeps for it, is removed
# Words of a cell that wants a loop though it does not await, and of one that runs a loop of its own.
MAKE_TASKS = "create_task(", "ensure_future(", "asyncio.get_running_loop("
RUN_A_LOOP = "asyncio.run(", "run_until_complete(", "run_forever("
RESULT = "__<result>"  # in `__main__`, for a moment, what the last expression gives: no identifier, so not a user's

WIDE = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}  # whoever catches these expects a failure
# Modules of other versions and systems: no index has them under that name.
NO_PACKAGE = """aifc annotationlib asynchat asyncore audioop binhex cgi cgitb chunk compression crypt
    distutils formatter graphlib imghdr imp lib2to3 macpath mailcap msilib msvcrt nis nntplib nt ossaudiodev
    parser pipes smtpd sndhdr spwd sunau symbol telnetlib tomllib uu winreg winsound xdrlib zoneinfo""".split()
# Names under which an index has a stranger's package, or none, and why they are not installed.
REFUSED = (
    ("many projects have a module of their own of this name; add its folder to sys.path",
     """agent api app application apps backend base bot cli client common conf config configs configuration conftest
     constants controllers core crud data database dataloader db demo dependencies example examples exceptions
     experiments extensions foo forms frontend game handlers helper helpers inference layers lib libs loader
     local_settings logger losses main middleware misc model models my_module mymodule mypackage network networks
     params plotting predict preprocessing project routers routes run sample schemas scripts server service services
     settings setup shared solution src tasks test tests tool tools train trainer urls util utilities utility utils
     version views worker"""),
    ("many packages share this namespace; name the one that you need, such as google-cloud-storage",
     "azure backports databricks google jaraco nvidia sphinxcontrib zope"),
    ("an index has another package, or none, under this name; the project's own pages say how to get it",
     "apex arcpy clip detectron2 graph_tool pcl ROOT"),
)

def pairs(text):
    return dict(pair.split("=") for pair in text.split())

# Packages that are not called as what is imported.
PACKAGES = pairs("""
    PIL=pillow cv2=opencv-python-headless sklearn=scikit-learn skimage=scikit-image skopt=scikit-optimize yaml=PyYAML
    bs4=beautifulsoup4 dateutil=python-dateutil OpenSSL=pyOpenSSL psycopg2=psycopg2-binary psycopg=psycopg[binary]
    aws_cdk=aws-cdk-lib attr=attrs serial=pyserial usb=pyusb dotenv=python-dotenv docx=python-docx pptx=python-pptx
    fitz=PyMuPDF git=GitPython jwt=PyJWT Crypto=pycryptodome Cryptodome=pycryptodomex Bio=biopython magic=python-magic
    MySQLdb=mysqlclient zmq=pyzmq pkg_resources=setuptools<81 faiss=faiss-cpu umap=umap-learn dns=dnspython
    websocket=websocket-client slugify=python-slugify imblearn=imbalanced-learn
    googleapiclient=google-api-python-client github=PyGithub nacl=PyNaCl pywt=PyWavelets hydra=hydra-core grpc=grpcio
    grpc_tools=grpcio-tools kafka=kafka-python socks=PySocks jose=python-jose decouple=python-decouple tree=dm-tree
    snappy=python-snappy osgeo=GDAL ldap=python-ldap telegram=python-telegram-bot socketio=python-socketio
    engineio=python-engineio community=python-louvain stl=numpy-stl barcode=python-barcode whisper=openai-whisper
    ffmpeg=ffmpeg-python pdfminer=pdfminer.six absl=absl-py talib=TA-Lib shapefile=pyshp
    rest_framework=djangorestframework nmap=python-nmap cpuinfo=py-cpuinfo vl_convert=vl-convert-python
    dask=dask[distributed] pyximport=Cython mpl_toolkits=matplotlib ruamel=ruamel.yaml pylab=matplotlib bson=pymongo
    gridfs=pymongo mysql=mysql-connector-python playhouse=peewee cassandra=cassandra-driver memcache=python-memcached
    consul=python-consul pulsar=pulsar-client nats=nats-py stomp=stomp.py paho=paho-mqtt airflow=apache-airflow
    pyflink=apache-flink snowflake=snowflake-connector-python impala=impyla prestodb=presto-python-client
    ibis=ibis-framework delta=delta-spark rapidjson=python-rapidjson pythonjsonlogger=python-json-logger capnp=pycapnp
    antlr4=antlr4-python3-runtime markdown_it=markdown-it-py linkify_it=linkify-it-py frontmatter=python-frontmatter
    readability=readability-lxml newspaper=newspaper3k odf=odfpy camelot=camelot-py tabula=tabula-py Stemmer=PyStemmer
    MeCab=mecab-python3 llama_cpp=llama-cpp-python agents=openai-agents vertexai=google-cloud-aiplatform
    weaviate=weaviate-client pynvml=nvidia-ml-py cuda=cuda-python tlz=toolz bayes_opt=bayesian-optimization
    sko=scikit-opt skfuzzy=scikit-fuzzy sksurv=scikit-survival skbio=scikit-bio skrf=scikit-rf skvideo=scikit-video
    sklearn_extra=scikit-learn-extra scikitplot=scikit-plot skmultilearn=scikit-multilearn pycrfsuite=python-crfsuite
    autosklearn=auto-sklearn modAL=modAL-python stan=pystan vcf=PyVCF3 scvi=scvi-tools openbabel=openbabel-wheel
    iris=scitools-iris wrf=wrf-python ee=earthengine-api flint=python-flint pinocchio=pin Box2D=box2d-py
    OpenGL=PyOpenGL vtkmodules=vtk solid=solidpython skia=skia-python freetype=freetype-py cairo=pycairo gi=PyGObject
    wx=wxPython webview=pywebview Xlib=python-xlib dbus=dbus-python bluetooth=PyBluez usb1=libusb1 hid=hidapi
    can=python-can snap7=python-snap7 rtmidi=python-rtmidi vlc=python-vlc mpd=python-mpd2
    speech_recognition=SpeechRecognition discord=discord.py telebot=pyTelegramBotAPI slack=slackclient
    twitter=python-twitter mastodon=Mastodon.py facebook=facebook-sdk trello=py-trello github3=github3.py
    gitlab=python-gitlab hglib=python-hglib jenkins=python-jenkins openstack=openstacksdk novaclient=python-novaclient
    keystoneclient=python-keystoneclient swiftclient=python-swiftclient binance=python-binance alpaca=alpaca-py
    zipline=zipline-reloaded sdmx=sdmx1 wikipediaapi=Wikipedia-API qbittorrentapi=qbittorrent-api miio=python-miio
    kasa=python-kasa vcr=vcrpy factory=factory_boy robot=robotframework appium=Appium-Python-Client gnupg=python-gnupg
    jks=pyjks pam=python-pam crontab=python-crontab daemon=python-daemon systemd=systemd-python whois=python-whois
    lzo=python-lzo fuse=fusepy progressbar=progressbar2 editor=python-editor mimeparse=python-mimeparse
    corsheaders=django-cors-headers debug_toolbar=django-debug-toolbar crispy_forms=django-crispy-forms
    django_filters=django-filter environ=django-environ storages=django-storages taggit=django-taggit
    allauth=django-allauth rest_framework_simplejwt=djangorestframework-simplejwt import_export=django-import-export
    guardian=django-guardian mptt=django-mptt oauth2_provider=django-oauth-toolkit
    social_django=social-auth-app-django win32api=pywin32 win32con=pywin32 win32com=pywin32 win32gui=pywin32
    pythoncom=pywin32 pywintypes=pywin32 objc=pyobjc-core AppKit=pyobjc-framework-Cocoa
    Foundation=pyobjc-framework-Cocoa Quartz=pyobjc-framework-Quartz RPi=RPi.GPIO""")
# What notebooks show of a value, the best first, and its type.
FORMS = pairs("""png=image/png jpeg=image/jpeg svg=image/svg+xml plain=text/plain
    markdown=text/markdown latex=text/latex html=text/html""")
PAGES = "altair great_tables plotly pydeck".split()  # their charts are pages, though they have a repr of some kind
# What looks for a window or a browser, by its module: ours takes its place. (Some wait for the browser for ever.)
SHOWS = pairs("""
    matplotlib.pyplot=show matplotlib.figure=Figure.show PIL.Image=Image.show plotly.io._renderers=show
    altair.vegalite.v5.api=TopLevelMixin.show altair.vegalite.v6.api=TopLevelMixin.show
    folium.folium=Map.show_in_browser great_tables.gt=GT.show IPython.core.display_functions=display""")
PID, MAIN_THREAD = getpid(), get_ident()
MODULE, FUNCTION, METHOD = type(sys), type(json.dumps), type(json.JSONEncoder().encode)
# What would wait for a person does not: an editor does nothing, so git refuses an empty message. Tables get room.
# Instead of a browser, bokeh has its file named.
DEFAULTS = {"MPLBACKEND": "agg", "GIT_EDITOR": "true", "GIT_SEQUENCE_EDITOR": "true", "EDITOR": "true",
            "GIT_TERMINAL_PROMPT": "0", "PAGER": "cat", "COLUMNS": "160", "BOKEH_BROWSER": "echo %s"}
for variable, value in DEFAULTS.items():
    os.environ.setdefault(variable, value)
# As `activate` does: `python`, `pip` and `pytest` in a shell of a cell are this interpreter's.
os.environ.pop("VIRTUAL_ENV", None)
if sys.prefix != sys.base_prefix:
    os.environ["VIRTUAL_ENV"] = sys.prefix
if sys.executable:
    os.environ["PATH"] = os.path.dirname(sys.executable) + ":" + os.environ.get("PATH", os.defpath)
modules, scope = sys.modules, sys.modules["__main__"].__dict__

own_requests = count(1)  # numbers of what we ask the server
received = []  # from the control socket, beyond the last line
unanswered = False  # whether a request is being served
asked = set()  # modules that this cell wanted to have installed
cell_notes = []  # what there is to say of this cell besides how it ended
asking = False  # whether the server is asked something: not again, by a handler or a __del__ of the user's
siblings = {}  # by name, the modules beside a script that it has loaded
lent = []  # what undoes `lend`: may be called twice, and is dropped when it is through
may_fail = {}  # by cell, or by the file that it is: the lines in which an import may fail
named_files = {}  # by file, which cell it holds: see file_with
kept = [(0, "", None)]  # cells whose lines are kept, oldest first: a running total of characters, its name and entry
asyncio = None  # once a cell has awaited
loop = None  # of top-level await: one for the interpreter's life
cell_awaits = False  # whether this cell has run the loop
failed_tasks = []  # that are to be told
is_refused = False  # whether an interrupt came for the cell that waits to begin
tending = False  # whether the loop runs between two cells

# -- descriptors and streams ----------------------------------------------------------------------------------------

class EmptyStdin(FileIO):
    """Below sys.stdin: whoever reads is told at once why there is nothing."""

    def refuse(self, *_):
        raise EOFError("stdin is empty: read a file, write the value into the code, or give the cell its stdin (an "
                       "argument of execute; of mcp-py-client, --stdin before FILE or -c)")
    read = readall = readinto = refuse

def leads_to(descriptor):
    """What a descriptor is open to, by inode and device; None where it is closed."""
    try:
        return fstat(descriptor)[1:3]
    except OSError:
        return None

control = os.dup(0)
spares = os.open(os.devnull, os.O_RDONLY), os.dup(1), os.dup(2)  # close-on-exec as control is (PEP 446)
dup2(spares[0], 0)
faulthandler.enable(spares[2])  # a crash says in which line, whatever became of sys.stderr
control_place = leads_to(control)
places = [leads_to(spare) for spare in spares]
own_streams = sys.stdin, sys.stdout, sys.stderr = None, None, None  # settle_streams makes ours below

def flush(stream):
    """Returns what flushing raised, for user code may have put anything in place of the streams; None for nothing."""
    try:
        stream.flush()
    except BaseException as error:
        return error

def settle_streams():
    """Flushes what was printed into the pipes, and puts back what was closed or redirected for good (I4). Returns
    notes."""
    notes = []
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        own = own_streams[descriptor]
        stream = getattr(sys, name, None)
        flush(own)
        failed = flush(stream)
        if leads_to(descriptor) != places[descriptor]:
            dup2(spares[descriptor], descriptor)
            notes.append(f"the cell closed or redirected descriptor {descriptor} ({name}): it was put back")
            flush(own)  # again, with what could not be written before
            flush(stream)
        if stream is None or (type(stream) is TextIOWrapper and type(failed) is ValueError):  # closed, or detached
            raw = open(descriptor, "wb", closefd=False) if descriptor else BufferedReader(EmptyStdin(0, closefd=False))
            setattr(sys, name, text_stream(raw, name, "w" if descriptor else "r"))
    return notes

def text_stream(buffer, name, mode):
    buffer.raw.name = f"<{name}>"  # and `mode`: as Python's own
    stream = TextIOWrapper(buffer, "utf-8", "backslashreplace", line_buffering=True)
    stream.mode = mode
    return stream

def open_stdin(text):
    """Makes descriptor 0 an unnamed file with this text, for child processes too; returns a stream that reads it."""
    with late_import("tempfile").TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        dup2(file.fileno(), 0)
    return text_stream(BufferedReader(FileIO(0, closefd=False)), "stdin", "r")

modules_seen = 0  # by the last look for C code
flush_c = None  # a function, once there is C code

def flush_libc():
    """Flushes libc's stdout, once a module is loaded whose C code may write there. (ctypes takes 5 ms to load.)
    Never fflush(NULL), which waits for any stream that a thread is blocked on."""
    global modules_seen, flush_c
    if flush_c is None and len(modules) != modules_seen:
        modules_seen = len(modules)
        if c_code_is_loaded():
            try:
                flush_c = make_flush()
            except Exception:  # no libffi: such output is left to libc's own habits
                pass
    if flush_c is not None:
        flush_c()

def c_code_is_loaded():
    if "_ctypes" in modules:
        return True
    # Names first, then modules one by one: to make pairs could start a garbage collection, whose finalizers could
    # import, and so change the dict meanwhile.
    for module in map(modules.get, list(modules)):
        file = file_of_module(module)
        if file.endswith(".so") and "/lib-dynload/" not in file:
            return True
    return False

def file_of_module(module):
    """That of a plain module, "" for none. Nothing else is asked: that could run code of the user's."""
    file = module.__dict__.get("__file__") if type(module) is MODULE else ""
    return file if type(file) is str else ""

def make_flush():
    ctypes = late_import("ctypes")
    libc = ctypes.CDLL(None)
    symbol = "__stdoutp" if sys.platform == "darwin" else "stdout"
    stdout = ctypes.c_void_p.in_dll(libc, symbol)
    fflush = libc.fflush
    return lambda: fflush(stdout)

def with_our_path(action, *arguments):
    """Runs an action that may import, with the standard library first on sys.path: its modules import others late."""
    before = getattr(sys, "path", None)
    path = sys.path = before if type(before) is list else []
    path[:0] = OUR_PATH  # the rest stays behind it: threads of cells may import meanwhile
    try:
        return action(*arguments)
    finally:
        del path[: len(OUR_PATH)]
        sys.path = before

def late_import(name):
    """Imports what is too dear for the start, from the standard library: asyncio takes longer than all the rest."""
    return with_our_path(__import__, name)

# -- the control socket ---------------------------------------------------------------------------------------------

def has_request(patience=0):
    """Whether one has arrived, or the end of file, or does so within some milliseconds; None: as long as it takes."""
    arrivals = poll()
    arrivals.register(control, POLLIN)
    return b"\n" in b"".join(received) or bool(arrivals.poll(patience))

def receive():
    """The next request, or None at end of file. Reading goes on after a signal (PEP 475).
    A handler or a thread of the user's may raise here. Between `read` and `append` that would lose what was read;
    `extend` of a `map` does both in C."""
    while not received or b"\n" not in received[-1]:
        received.extend(map(read, [control], [65536]))
        if not received[-1]:
            return None
    line, _, rest = b"".join(received).partition(b"\n")
    received[:] = [rest] if rest else []
    return from_json(line.decode())[0]

def send(frames):
    """An interrupt waits until all are sent (see on_sigint): it would tear one, or leave a picture without its end."""
    global instead_of_raising
    late = []
    before = instead_of_raising

    def keep_for_later():
        late.append(True)
    instead_of_raising = keep_for_later
    try:
        for frame in frames:
            data = (to_json(frame) + "\n").encode()
            while data:
                data = data[write(control, data) :]
    finally:
        instead_of_raising = before
        if late:
            on_sigint(SIGINT, None)

def plain(text):
    """`text` as valid Unicode: a lone surrogate becomes its escape, a subclass of str its plain value."""
    return str.encode(text, "utf-8", "backslashreplace").decode()

# -- interrupts -----------------------------------------------------------------------------------------------------

RAISE_AGAIN = 3  # seconds, in which `finally` and `with` can clean up
TASK_PATIENCE = 1  # seconds until an interrupt ends a task that holds up the loop
TASK_ERRORS_MAX = 1000  # between two cells
armed = False  # whether SIGINT raises: only while user code runs
raises_from = 0.0  # by `monotonic`: not before this
interrupted = False  # whether it has raised, in this cell
instead_of_raising = None  # what SIGINT does where KeyboardInterrupt would tear something

def on_sigint(_signal, _frame):
    """Installed for life. A late signal is dropped here. (SIG_IGN between cells would not do: CPython delivers a signal
    that it has noted already to whatever handler is set by then.) The server repeats SIGINT while the cell runs."""
    global raises_from, interrupted
    if not armed or monotonic() < raises_from:
        return
    if instead_of_raising is not None and getpid() == PID:
        return instead_of_raising()
    raises_from, interrupted = monotonic() + RAISE_AGAIN, True
    raise KeyboardInterrupt

users_handler = on_sigint  # what a cell put in place of ours: it holds during cells

def is_of_library(handler):
    """Whether a handler is no function of a cell. That of uvicorn or Spark would take the interrupts of later cells."""
    function = getattr(handler, "__func__", None) if type(handler) is METHOD else handler
    return type(function) is FUNCTION and function.__globals__ is not scope

def guarded(action):
    """Runs user code: the only place where SIGINT raises. Returns (value, None) or ("", what was raised).
    An interrupt between any two of these lines is caught by the outer `except`. After that on_sigint does not raise
    for a while, so nothing but a handler of the user's can raise here."""
    global armed, instead_of_raising, users_handler
    try:
        try:
            signal(SIGINT, users_handler)
            armed, instead_of_raising = True, None
            outcome = action(), None
        finally:
            armed = False
    except BaseException as error:
        armed, outcome = False, ("", error)
    while True:
        try:
            handler = getsignal(SIGINT)
            users_handler = on_sigint if is_of_library(handler) else handler
            signal(SIGINT, on_sigint)
            return outcome
        except BaseException:  # by the user's own handler, right here
            continue

signal(SIGINT, on_sigint)

def watch_server():
    """macOS has no signal for the death of a parent. There the control socket sends SIGIO, and where its other end is
    closed while a cell runs, the server was killed: the group ends too (I11), but for C code that never returns."""
    import fcntl
    control_poll = poll()
    control_poll.register(control, POLLHUP)
    look, killpg = control_poll.poll, os.killpg

    def on_sigio(_signal, _frame):
        if (unanswered or tending) and getpid() == PID and any(events & POLLHUP for _, events in look(0)):
            killpg(0, SIGKILL)
    signal(SIGIO, on_sigio)
    fcntl.fcntl(control, fcntl.F_SETOWN, PID)
    fcntl.fcntl(control, fcntl.F_SETFL, fcntl.fcntl(control, fcntl.F_GETFL) | os.O_ASYNC)

if ON_MACOS:  # noqa: F821  # the bootstrap's
    watch_server()

# -- cells ----------------------------------------------------------------------------------------------------------

def remember_source(code, name):
    """Registers a cell's lines with linecache: each ends with a newline, none is checked (no modification time)."""
    sources[name] = (len(code), None, list(StringIO(code.rstrip("\r\n") + "\n", newline=None)), name)
    was_cleared = kept[-1][1] not in linecache.cache  # as line_profiler does
    linecache.cache.update(sources if was_cleared else {name: sources[name]})
    kept.append((kept[-1][0] + len(code) + 500, name, sources[name]))  # about what the rest takes
    while kept[-1][0] - kept[0][0] > SOURCES_CHARS_MAX:
        _, oldest, entry = kept.pop(0)
        if sources.get(oldest) is entry:  # else it was run again since
            sources.pop(oldest, None)
            linecache.cache.pop(oldest, None)
            may_fail.pop(oldest, None)

def needs_file(code):
    if any(map(modules.__contains__, PROFILERS)):
        return True
    may_need_one = "cache" in code or "profiler" in code
    return may_need_one and late_import("re").search(NEEDS_FILE, code) is not None

def file_with(code, name):
    """A file that holds a cell, for libraries that know a function by its file (numba, joblib, profilers): the same for
    the same text, in later sessions too. Tracebacks name the cell. Where none can be written it is `name`."""
    data = code.encode("utf-8", "backslashreplace")
    file = f"{FILES}/{late_import('hashlib').sha256(data).hexdigest()[:16]}.py"
    try:
        if not os.path.exists(file):  # else it is left alone: some go by its time
            os.makedirs(FILES, 0o700, True)
            remove_old_files()
            with FileIO(f"{file}.{PID}", "w") as copy:
                copy.write(data)
            os.replace(f"{file}.{PID}", file)
    except OSError:
        return name
    named_files[file] = name
    return file

def remove_old_files():
    for folder in (FILES, f"{FILES}/__pycache__"):
        for entry in entries(folder):
            path = f"{folder}/{entry}"
            if os.path.isfile(path) and os.path.getmtime(path) < time() - FILES_SECONDS_MAX:
                os.remove(path)

def compile_cell(code, name):
    """The whole cell, so that nothing runs when this raises. A last expression becomes an assignment to RESULT."""
    if "\n" not in code:
        try:
            return compile(code, name, "eval", ALLOW_AWAIT, True)  # the way below takes thrice as long
        except (SyntaxError, ValueError):
            pass
    try:
        tree = compile(code, name, "exec", ALLOW_AWAIT | ONLY_AST, True)
    except IndentationError:
        code = late_import("textwrap").dedent(code.replace("\r\n", "\n"))
        remember_source(code, name)
        tree = compile(code, name, "exec", ALLOW_AWAIT | ONLY_AST, True)
    if "except" in code or "with" in code:
        may_fail[name] = lines_that_may_fail(tree)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, _ast.Expr) and not hides_value(code, last):
        place = {field: getattr(last, field) for field in last._attributes}
        tree.body[-1] = _ast.Assign([_ast.Name(RESULT, _ast.Store(), **place)], last.value, **place)
    return compile(tree, name, "exec", ALLOW_AWAIT, True)

def hides_value(code, last):
    """Whether a `;` follows the last expression, as in notebooks."""
    line = StringIO(code, newline=None).read().split("\n")[last.end_lineno - 1]
    return line.encode()[last.end_col_offset :].lstrip().startswith(b";")

def lines_that_may_fail(tree):
    """Where a failing import is expected: under `try` with a handler for one of WIDE, `with suppress(…)`, …."""
    nodes, lines = [tree], set()
    for node in nodes:  # which grows meanwhile
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            nodes += getattr(node, field, ())
        caught = [handler.type for handler in getattr(node, "handlers", ())]
        caught += [one for item in getattr(node, "items", ()) for one in getattr(item.context_expr, "args", ())]
        caught += [one for kind in caught for one in getattr(kind, "elts", ())]
        if any(kind is None or getattr(kind, "attr", getattr(kind, "id", None)) in WIDE for kind in caught):
            lines.update(range(node.body[0].lineno, node.body[-1].end_lineno + 1))
    return lines

def file_of(request):
    """The file that a cell is, where it runs as a script."""
    argv = request.get("argv") or [""]
    return argv[0] if argv[0].startswith("/") else None

def run_cell(request):
    """Runs a cell or the startup script. Returns the repr of its last expression's value, nothing for None."""
    name = f"<cell {request['number']}>" if request["op"] == "run" else "<startup script>"
    code = request["code"][request["code"].startswith("\ufeff") :]
    if needs_file(code):
        name = file_with(code, name)
    name = file_of(request) or name
    remember_source(code, name)
    may_fail.setdefault(name, ())  # until it is compiled, what was defined by an earlier run of a file has its own
    compiled = compile_cell(code, name)
    scope.setdefault("__builtins__", builtins)
    scope.pop(RESULT, None)  # of a cell that was interrupted at its very end
    scope.pop("__warningregistry__", None)  # what earlier cells warned of
    if compiled.co_flags & 0x80:  # inspect.CO_COROUTINE
        value = run_task(lambda: eval(compiled, scope))
    elif any(map(code.__contains__, MAKE_TASKS)) and not any(map(code.__contains__, RUN_A_LOOP)):
        value = run_task(lambda: run_in_loop(compiled))
    else:
        value = eval(compiled, scope)
    value = scope.pop(RESULT, value)
    return "" if value is None else show_value(value)[0]

async def run_in_loop(compiled):
    return eval(compiled, scope)

def run_task(make):
    """Runs the coroutine of a top-level await. If that fails or is interrupted, its own task is ended; others stay."""
    global asyncio, loop, cell_awaits, instead_of_raising
    asyncio = late_import("asyncio")
    cell_awaits = True
    if loop is None or loop.is_closed() or loop.is_running():  # the latter in a thread of the user's
        loop = make_loop()
    asyncio.set_event_loop(loop)  # `asyncio.run` in a cell sets it to None
    contexts = []
    asked_at = 0.0

    def raise_in_loop():
        if not task.done():
            on_sigint(SIGINT, None)

    def ask_loop():
        """Has the loop raise between two callbacks, where nothing is torn. The server repeats SIGINT after 200 ms."""
        global instead_of_raising
        nonlocal asked_at
        asked_at = monotonic()
        instead_of_raising = insist
        loop.call_soon_threadsafe(raise_in_loop)

    def insist():
        """Raises at once, but gives another task that holds up the loop some time."""
        global instead_of_raising
        current = asyncio.current_task(loop)
        if current in (task, None) or monotonic() > asked_at + TASK_PATIENCE:
            instead_of_raising = None
            if current not in (task, None):
                cell_notes.append(f"the interrupt ended the task {current.get_name()}, which held up the event loop")
            on_sigint(SIGINT, None)
    instead_of_raising = ask_loop  # before create_task: an interrupt there could leave a task that never ran
    task = loop.create_task(keep_context(make(), contexts))
    try:
        return run_loop(loop.run_until_complete, task)
    except BaseException as raised:
        error = raised
    finally:
        instead_of_raising = None
        drop_loops_handler()
        for context in contexts:
            take_over(context)
    if not task.done():  # the interrupt hit the loop: end the task, and show where it was waiting
        task.cancel()
        try:
            run_loop(loop.run_until_complete, task)
        except BaseException as ending:
            error.__traceback__ = ending.__traceback__
    if task.done() and not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it again
    raise error

async def keep_context(coroutine, contexts):
    try:
        return await coroutine
    finally:
        contexts.append(late_import("contextvars").copy_context())

def take_over(context):
    """Context variables that a task has set hold in later cells, such as those of decimal and numpy."""
    for variable, value in context.items():
        if variable.get(None) is not value:
            variable.set(value)

def drop_loops_handler():
    """One that `loop.add_signal_handler` has set holds to the end of its cell, like that of any library."""
    if loop.remove_signal_handler(SIGINT):  # which sets Python's own
        signal(SIGINT, on_sigint)

def make_loop():
    made = asyncio.new_event_loop()
    create = made.create_task

    def create_task(*arguments, **options):
        task = create(*arguments, **options)
        task.add_done_callback(tell_if_it_failed)
        return task
    try:
        made.create_task = create_task
    except AttributeError:  # uvloop's: asyncio tells of such a failure when the task goes
        pass
    return made

def run_loop(run, *arguments):
    """Runs our loop. Another one may count as running in this thread though it does not: that of Playwright, which
    waits in a greenlet."""
    other = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        return run(*arguments)
    finally:
        asyncio._set_running_loop(other)

def tell_if_it_failed(task):
    """A failure is told between the cells, once nobody has taken it up, and not when the task's last reference goes."""
    if task.cancelled() or not task._log_traceback:
        return
    failed_tasks.append(task)
    if tending:
        # Who waits for it is woken by the next turn of the loop, and who waits for that one by the turn after it.
        loop.call_soon(loop.call_soon, loop.call_soon, tell_failures)

def tell_failures():
    while failed_tasks:
        task = failed_tasks.pop(0)
        is_open = task._log_traceback  # until somebody asks for its exception
        task._log_traceback = False
        if is_open and not isinstance(task.exception(), (KeyboardInterrupt, SystemExit)):  # those have ended the run
            loop.call_exception_handler({"message": "a task failed, and nothing waits for it", "task": task,
                                         "exception": task.exception()})

def tend():
    """Between two cells: the loop of top-level await runs, with its servers and tasks, until the next request. What
    they raise there is told on stderr."""
    global tending, is_refused
    is_refused = False
    held_since = 0.0

    def spare_tasks():
        """What SIGINT does: it is meant for the cell that waits, which is not begun then. A task ends by it only if it
        goes on to hold up the loop."""
        global is_refused, instead_of_raising
        nonlocal held_since
        if not has_request():
            return
        is_refused = True
        held_since = held_since or monotonic()
        if monotonic() > held_since + TASK_PATIENCE:
            instead_of_raising = None
            on_sigint(SIGINT, None)

    def run_until_request():
        global instead_of_raising
        instead_of_raising = spare_tasks
        tell_failures()
        wake = loop.create_future()
        loop.add_reader(control, wake_up, wake)
        try:
            run_loop(loop.run_until_complete, wake)
        finally:
            if getpid() == PID:  # a child shares what the loop waits with
                loop.remove_reader(control)

    def wake_up(wake):
        loop.remove_reader(control)
        if not wake.done():
            wake.set_result(None)
    tending = True
    try:
        for _ in range(TASK_ERRORS_MAX):
            if loop.is_closed() or loop.is_running() or has_request():  # it may run in a thread of the user's
                break
            _, error = guarded(run_until_request)
            was_stopped = type(error) is RuntimeError and not loop.is_closed()  # by `loop.stop()`
            if getpid() != PID:  # a fork in a task: see stop_in_child
                leave_child(None if was_stopped else error)
            if error is not None and not was_stopped:
                tell(report(error)[0])
                if not isinstance(error, (KeyboardInterrupt, SystemExit)):
                    break  # the loop can't run
        guarded(drop_loops_handler)
    finally:
        tending = False
        flush(getattr(sys, "stdout", None))

def stop_in_child():
    """A child that a task has forked between two cells runs to the end of the task's step."""
    if tending:
        loop.stop()

os.register_at_fork(after_in_child=stop_in_child)

def leave_child(error):
    """A child of os.fork reached the end of its cell or task: it exits as at a script's end, and sends nothing."""
    text, code = report(error)
    tell(text)
    settle_streams()
    _exit(code)

# -- imports and pictures -------------------------------------------------------------------------------------------

def find_package(name, path=None, target=None):
    """The last resort for a missing import, wherever this finder stands: it asks the others, then has the server
    install the package."""
    wanted = armed and unanswered and not interrupted and not asking and name not in asked and len(asked) < LOOKS_MAX
    wanted = wanted and get_ident() == MAIN_THREAD and getpid() == PID
    if not wanted or not is_package(name) or not is_cells_own(sys._getframe(1)):
        return None
    asked.add(name)  # from here on this finder passes, so `find_spec` asks the others
    find = late_import("importlib.util").util.find_spec
    spec = find(name)
    if spec is not None:
        return spec
    why_not = why_not_installed(name)
    if why_not:
        cell_notes.append(why_not)
    elif install(name):
        spec = find(name)
        if spec is None:
            cell_notes.append(f"this process finds no module {name} in what was installed: look up by which name it "
                                 "is imported, or start anew with reset(restart=true)")
    return spec

def ask(request, seconds=None):
    """Asks the server something, and returns its answer; None where it has gone, or the time is over."""
    global asking
    number = request["number"] = next(own_requests)
    asking = True
    try:
        send([request])
        while has_request(seconds and seconds * 1000):
            reply = receive()
            if reply is None or reply["number"] == number:  # else a late one, to a request that was interrupted
                return reply
        return None
    finally:
        asking = False

def install(name):
    """Has the server install the package of a module, and takes up its .pth files. Returns whether that went well."""
    folders = package_folders(environment)
    before = sum(map(entries, folders), [])
    reply = ask({"op": "install", "name": name, "package": PACKAGES.get(name, name)})
    if reply is None or not reply["done"]:
        return False
    PathFinder.invalidate_caches()
    for folder in folders:
        for entry in set(entries(folder)).difference(before):
            if entry.endswith(".pth"):
                late_import("site").addpackage(folder, entry, None)
            elif entry.endswith(".dist-info"):
                note_what_was_replaced(f"{folder}/{entry}")
    return True

def note_what_was_replaced(dist_info):
    """Says which modules of a package, just installed, had been loaded from elsewhere or in another version."""
    files = {line.split(",")[0] for line in lines_of(f"{dist_info}/RECORD")}
    for name in list(modules):
        is_in_it = f"{name}.py" in files or f"{name}/__init__.py" in files
        version = getattr(modules.get(name), "__dict__", {}).get("__version__")
        if is_in_it and name[0] != "_" and not dist_info.endswith(f"-{version}.dist-info"):
            cell_notes.append(f"{name} was loaded before the install brought another one: this process goes on with "
                                 "the old one, reset(restart=true) starts anew with the new one")

def why_not_installed(name):
    """Where a missing module is, or why none is installed, and what to do; "" where one may be installed."""
    looked = ask({"op": "look"}, LOOK_SECONDS_MAX)
    if looked is None:
        return f"{name} was not installed: it is not known yet whether the project has it; try again"
    project, has_uv = looked["project"], looked["uv"]
    beside_scripts = sorted(os.path.dirname(file) for file in may_fail if file[0] == "/")
    for folder in (project, f"{project}/src", "src", *beside_scripts):
        if find_module(name, folder):
            return (f"{name} is the project's own, in {folder}, and no package is installed for it; to import it: "
                    f"sys.path.insert(0, {folder!r})")
    for interpreter, root in looked["environments"]:
        for folder in package_folders(root):
            if root != sys.prefix and find_module(name, folder):
                return (f"{name} is in the interpreter {interpreter}, in {folder}, and is not installed here; to use "
                        f"that one: interpreter={to_json(interpreter)} (in a shell, -i {interpreter})")
    for why, names in REFUSED:
        if name in names.split():
            return f"{name} was not installed: {why}; to install one by hand: {install_command('PACKAGE', has_uv)}"
    if looked["installs"]:
        return ""
    switch = " (MCP_PY_AUTO_INSTALL is off)" if environment else ""
    return f"{name} is not installed{switch}; to install it: {install_command(PACKAGES.get(name, name), has_uv)}"

def install_command(package, has_uv):
    quoted = late_import("shlex").quote
    if has_uv:
        return f"uv pip install --python {quoted(sys.executable)} {quoted(package)}"
    if PathFinder.find_spec("pip"):
        return f"{quoted(sys.executable)} -m pip install {quoted(package)}"
    return f"get uv, or pip for this Python ({quoted(sys.executable)} -m ensurepip, or Debian's python3-pip)"

def entries(folder):
    try:
        return os.listdir(folder)
    except Exception:  # there is none, this is no path, or user code has patched `os`
        return []

def lines_of(path):
    if not os.path.isfile(path):  # to read a device or a pipe might never end
        return []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []

def package_folders(root):
    """Where an environment has its modules, of any Python: also the folders that its .pth files name, as for editable
    installs."""
    folders = [f"{root}/lib/{version}/site-packages" for version in entries(f"{root}/lib")]
    for folder in folders[:]:
        for entry in entries(folder):
            if entry.endswith(".pth"):
                for line in map(str.strip, lines_of(f"{folder}/{entry}")):
                    if line and not line.startswith(("import", "#")):
                        folders.append(os.path.join(folder, line))
    return folders

def find_module(name, folder):
    """Whether a module of exactly this name is in a folder, whatever the file system makes of its case."""
    for entry in entries(folder):
        stem, _, kind = entry.partition(".")
        path = f"{folder}/{entry}"
        if stem == name and (kind == "py" or entry.endswith((".so", ".pyd")) or not kind and has_code(path)):
            return True
        is_table = entry.startswith("_") and "editable" in entry and kind.endswith(("py", "pth"))  # of a builder
        if is_table and any(repr(name) in line for line in lines_of(path)):
            return True
    return False

def has_code(folder):
    """Whether a folder is a package, be it a namespace: not one for other files, and not a whole other project."""
    files = entries(folder)
    if not {"__init__.py", "pyproject.toml", "setup.py"}.isdisjoint(files):
        return "__init__.py" in files
    walk = islice(os.walk(folder), LOOKS_MAX)
    return any(file.endswith((".py", ".so", ".pyd")) for _, _, files in walk for file in files)

def is_package(name):
    """Whether this may be the name of a package: a plain one, and none of the standard library."""
    known = getattr(sys, "stdlib_module_names", None) or [entry.split(".")[0] for entry in os.listdir(STDLIB)]
    plain_name = type(name) is str and name.isascii() and name.isidentifier() and name[0] != "_" and len(name) <= 100
    return plain_name and name not in known and name not in NO_PACKAGE

def is_cells_own(frame):
    """Whether a cell's import statement, or its call of import_module, led here, and nothing expects a failure."""
    while "importlib._bootstrap" in frame.f_code.co_filename:
        frame = frame.f_back
    by_call = frame.f_code.co_name == "import_module" and frame.f_globals.get("__name__") == "importlib"
    frame = frame.f_back if by_call else frame
    if not is_cell(frame) or any(line in may_fail.get(one.f_code.co_filename, ()) for one, line in walk_stack(frame)):
        return False
    if by_call:
        return True
    opname = late_import("opcode").opname
    for step in frame.f_code.co_code[frame.f_lasti :: 2]:
        if opname[step] != "EXTENDED_ARG":  # which stands before an instruction with a large argument
            return opname[step] == "IMPORT_NAME"
    return False

def is_cell(frame):
    name = frame.f_code.co_filename
    return name in may_fail and (name[0] == "<" or frame.f_globals is scope)  # not one whose lines were forgotten

def find_shows(name, path=None, target=None):
    """The first finder: what can't show anything here becomes ours (SHOWS). It notes the time of each import."""
    imported[name] = time_ns()
    spec = PathFinder.find_spec(name, path) if name in SHOWS else None
    if spec is not None:
        load = spec.loader.exec_module

        def load_with_our_show(module):
            load(module)
            holder, _, function = SHOWS[name].rpartition(".")
            setattr(getattr(module, holder, module), function, OURS.get(name, show))
        spec.loader.exec_module = load_with_our_show
    return spec

class ShowsFinder:
    find_spec = find_shows

class PackageFinder:
    find_spec = find_package

sys.meta_path.insert(0, ShowsFinder)
sys.meta_path.append(PackageFinder)

def show_figures(*_, **__):
    """plt.show, also at a cell's end: sends the open figures and closes them, those too that can't be drawn."""
    pyplot = modules.get("matplotlib.pyplot")
    if get_ident() != MAIN_THREAD or not hasattr(pyplot, "get_fignums"):
        return
    failed = []
    for number in pyplot.get_fignums():
        try:
            show_value(pyplot.figure(number))
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]

def display(*values, raw=False, display_id=None, **_):
    """As IPython's: shows each value as a last expression is shown. A raw one is a dict of forms."""
    for value in values:
        text, is_shown = show_value(Forms(value) if raw else value)
        if not is_shown:
            print(text)
    return Forms({}) if display_id else None

def show(value, *_, **__):
    """In place of a chart's own."""
    display(value)

class Forms:
    """What `display` is given raw; also its handle, by which something else is shown."""

    def __init__(self, forms):
        self.forms = forms

    def _repr_mimebundle_(self, **_):
        return self.forms

    def display(self, *values, **options):
        display(*values, **options)
    update = display

OURS = {"matplotlib.pyplot": show_figures, "IPython.core.display_functions": display}  # elsewhere `show`
if not hasattr(builtins, "display"):
    builtins.display = display

def show_value(value):
    """Sends the picture or the page that a value has. Returns the text for it as a last expression, and whether
    anything was sent."""
    text = plain(repr(value))
    if type(value).__module__ == "builtins" or not unanswered or get_ident() != MAIN_THREAD or getpid() != PID:
        return text, False  # nothing else to show; or between two cells, in a thread, in a child process
    kind, data = form_of(value, text)
    if kind in ("plain", "markdown", "latex"):
        return plain(data), False
    data = late_import("binascii").b2a_base64(data, newline=False).decode()
    send({"op": "image", "kind": kind, "data": data[at : at + PART_CHARS], "more": at + PART_CHARS < len(data)}
         for at in range(0, len(data), PART_CHARS))
    return "" if kind == "html" else text, True

def form_of(value, text):
    """The best form of a value, and its data: a text, or bytes. A repr that says something goes before all but
    pictures: tables and models have pages too."""
    if isinstance(value, getattr(modules.get("matplotlib.figure"), "Figure", ())):
        return "png", draw(value)
    if "bokeh.embed" in modules and isinstance(value, getattr(modules.get("bokeh.models"), "LayoutDOM", ())):
        page = modules["bokeh.embed"].file_html(value, modules["bokeh.resources"].CDN, _always_new=True)
        return "html", plain(page).encode()
    bundle = made_by(value, "mimebundle", include=None, exclude=None)
    bundle = bundle if isinstance(bundle, dict) else {}
    says_nothing = type(value).__repr__ is object.__repr__ or text.endswith(" object>")
    for kind, mime in FORMS.items():
        if kind == "markdown" and not says_nothing and str(type(value).__module__).split(".")[0] not in PAGES:
            break
        data = as_form(kind, bundle.get(mime) or made_by(value, kind))
        if kind == "png" and data and len(data) > PICTURE_BYTES_MAX:  # a photograph is smaller as a JPEG
            smaller = as_form("jpeg", made_by(value, "jpeg"))
            return ("jpeg", smaller) if smaller else (kind, data)
        if data:
            return kind, data
    return "plain", text

def as_form(kind, data):
    """What a value gives for a form: the text of one that is a text, else bytes; None where it is something else."""
    if kind in ("png", "jpeg"):
        try:
            return late_import("binascii").a2b_base64(data) if isinstance(data, str) else bytes(memoryview(data))
        except (TypeError, ValueError):
            return None
    if not isinstance(data, str):
        return None
    return plain(data).encode() if kind in ("svg", "html") else data

def made_by(value, kind, **options):
    """What a value's method for notebooks makes, without its metadata; None where it has none, or where that fails."""
    method = f"_repr_{kind}_"
    if not callable(getattr(type(value), method, None)):
        return None
    try:
        data = getattr(value, method)(**options)
    except Exception as error:
        cell_notes.append(f"{method} of {type(value).__name__} failed: {type(error).__name__}: {error}")
        return None
    return data[0] if isinstance(data, tuple) and data else data

def draw(figure):
    """A figure as a PNG. It is closed."""
    buffer = BytesIO()
    pyplot = modules.get("matplotlib.pyplot")
    try:
        dpi = min(figure.dpi, SIDE_MAX / max(figure.get_size_inches()))
        figure.savefig(buffer, format="png", dpi=dpi)
    finally:
        if hasattr(pyplot, "close"):
            pyplot.close(figure)
    return buffer.getvalue()

# -- habits and changed modules -------------------------------------------------------------------------------------

# What people write out of habit and Python refuses: the type of the error, a pattern for the line that it names and its
# message, and what to write instead.
HABITS = (
    (SyntaxError, r"^\s*([\w, ]+=\s*)?!", "`!` is of IPython: subprocess.run('…', shell=True) runs a command"),
    (SyntaxError, r"^\s*([\w, ]+=\s*)?%", "`%` is of IPython: here is plain Python, without magics"),
    (SyntaxError, r"^\s*(\?{1,2}[\w.]+|[\w.]+\?{1,2})\s*\n", "`?` is of IPython: help(x) says what x is"),
    (SyntaxError, r"^\s*(>>> |\.\.\. |In \[\d+\])", "prompts are no part of the code: leave them out"),
    (NameError, r"name 'In' is not defined", "prompts are no part of the code: leave them out"),
    (NameError, r"name 'Out' is not defined", "answers are not kept: give a value a name"),
    (SyntaxError, r"^\s*(```|~~~)", "the fences of a code block are no part of the code: leave them out"),
    (SyntaxError, r"\\!", "a shell or a host has put a backslash before the `!`: write it without"),
    (SyntaxError, r"^\s*(pip3?|uv|conda) ", "a cell is no shell: an import installs what is missing, and "
     "subprocess.run('…', shell=True) runs a command"),
    (NameError, r"get_ipython", "this is no IPython: there are no magics, and nothing of get_ipython()"),
    (RuntimeError, r"no running event loop|cannot be called from a running event loop|no current event loop",
     "a cell may await at its top level, `await f()`, without asyncio.run"),
)

def hint_at_habit(error):
    """What to write instead, where the error is that of a habit; "" for none."""
    if isinstance(error, SyntaxError) and error.filename not in sources:
        return ""  # of a text that the cell has compiled
    shown = f"{getattr(error, 'text', None) or ''!s}\n{error!s}"
    search = late_import("re").search
    for kind, pattern, hint in HABITS:
        if isinstance(error, kind) and search(pattern, shown):
            return hint
    return ""

def hint_at_loop(error):
    """Where a cell was interrupted in an HTTP request: it may have waited for the session's own server."""
    names = {frame.f_globals.get("__name__") for frame, _ in walk_tb(error.__traceback__)}
    watched_files = getattr(loop, "_selector", None)  # one is the loop's own; there are none once it is closed
    if cell_awaits or names.isdisjoint(HTTP_CLIENTS) or not watched_files or len(watched_files.get_map()) < 2:
        return ""
    return "servers and tasks stand still while a cell runs that does not await; " \
        "`await asyncio.to_thread(f)` calls f beside them"

HTTP_CLIENTS = "http.client", "httpcore._backends.sync"  # modules in which urllib, requests and httpx wait

imported = {}  # by name, when a module was looked for last, in nanoseconds: for its import, or to be reloaded
watched = {}  # by name, the project's modules: the file, and the time of its last change that is known
modules_watched = 0  # how many modules there were at the last look for new ones
next_look = 0.0  # by `monotonic`: so that looking takes 1 % of the time at most
PAUSE_MAX = 5  # seconds between two looks
LISTED_MAX = 10  # names of modules in a note

def note_changed_modules():
    """Says which modules of the project have changed on disk since they were imported, each change once. No attribute
    of a module is asked for: that could run code of the user's."""
    global modules_watched, next_look
    begin = monotonic()
    if begin < next_look:
        return []
    if len(modules) != modules_watched:
        modules_watched = len(modules)
        watch_new_modules()
    changed = []
    for name, (file, known) in list(watched.items()):
        now = time_changed(file)
        if now != known:
            watched[name] = file, now
            if name in modules and now > imported.get(name, 0):
                changed.append(name)
    end = monotonic()
    next_look = end + min(100 * (end - begin), PAUSE_MAX)
    if not changed:
        return []
    users = users_of(changed) if len(changed) <= LISTED_MAX else []
    used = f", used by {listed(users)}" if users else ""
    return [f"changed on disk since import: {listed(changed)}{used}. Reload them, in this order, with importlib.reload "
            "and import again what was taken from them, or start anew with reset(restart=true)"]

def watch_new_modules():
    here = os.getcwd() + "/"
    for name in list(modules):
        file = file_of_module(modules.get(name))
        if name in watched or not file or "-packages/" in file or file.startswith(STDLIB):
            continue
        if os.path.realpath(file).startswith(here):  # one that was imported before us is taken for what is there
            watched[name] = file, None if name in imported else time_changed(file)

def users_of(names):
    """The modules of the project that have some of these, or something that was defined there, directly or not."""
    used = {name: modules_used(modules.get(name)) for name in watched}
    found = list(names)
    for name in found:  # which grows meanwhile
        users = [user for user in watched if name in used[user] and not name.startswith(user + ".")]
        found += [user for user in users if user not in found]
    return found[len(names) :]

def modules_used(module):
    names = set()
    for value in list(module.__dict__.values()) if type(module) is MODULE else ():
        if type(value) is MODULE:
            names.add(value.__dict__.get("__name__"))
        elif type(value) in (FUNCTION, type):
            names.add(value.__module__)
    return names

def listed(names):
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more

def time_changed(file):
    """When a file was written, renamed or replaced, in nanoseconds; 0 where it is gone."""
    try:
        return os.stat(file).st_ctime_ns
    except OSError:
        return 0

# -- requests and their answers -------------------------------------------------------------------------------------

def report(error):
    """(text, exit code) of how a cell ended; without an error the text is None."""
    if error is None:
        return None, 0
    told, failed = guarded(lambda: describe(error))
    if failed is None:
        return told
    text, _ = guarded(lambda: plain(str(error))[:ERROR_CHARS])  # its __str__ raised, `traceback` was patched, …
    name = type.__dict__["__name__"].__get__(type(error))  # whatever its class says of itself
    return f"{name}: {text}\n[mcp-py: its traceback can't be shown]", 1

def tell(text):
    """Says on stderr how something ended that is not the cell; nothing where there is nothing to say."""
    guarded(lambda: sys.stderr.write(f"{text}\n" if text else ""))

def describe(error):
    """SystemExit ends the cell only, with the code it would have had; a text instead of a code goes to stderr."""
    if not issubclass(type(error), SystemExit):
        text = plain(with_our_path(format_error, error))
        if len(text) > ERROR_CHARS:
            half = ERROR_CHARS // 2
            left_out = len(text) - ERROR_CHARS
            text = f"{text[:half]}\n[mcp-py: … {left_out} characters left out …]\n{text[-half:]}"
        return text, 1
    code = error.code
    if code is None or isinstance(code, int):
        code = int(code or 0)
        place = own_part(error.__traceback__)
        lines = sources[place.tb_frame.f_code.co_filename][2] if place else ()
        if not code and place and place.tb_lineno < len(lines):
            cell_notes.append(f"SystemExit ended the cell in line {place.tb_lineno}: what follows was not run")
        return (f"SystemExit: {code}" if code and getpid() == PID else None), code & 255
    sys.stderr.write(f"{code!s}\n")
    return None, 1

def own_part(place):
    """What of a traceback is the cell's: the frames before are ours, and the event loop's."""
    while place is not None and not is_cell(place.tb_frame):
        place = place.tb_next
    return place

def format_error(error):
    """The traceback as Python prints it, without the frames of this file."""
    ours, first = is_cell.__code__.co_filename, own_part(error.__traceback__)
    sys.last_type, sys.last_traceback = type(error), first  # as the REPL does, for post-mortem looks
    sys.last_value = sys.last_exc = error
    linecache.cache.update(sources)
    shown = TracebackException(type(error), error, first or error.__traceback__)
    is_compile_error = all(frame.filename == ours for frame in shown.stack)  # of our `compile` of a tree
    if is_compile_error and type(error) is SyntaxError and error.text is None and error.filename in sources:
        shown.text = sources[error.filename][2][error.lineno - 1]
    parts = shown.format_exception_only() if is_compile_error else shown.format()
    text = "".join(part for part in parts if not part.lstrip(" |").startswith(f'File "{ours}", line ')).rstrip("\n")
    for file, name in named_files.items():
        text = text.replace(f'File "{file}", line ', f'File "{name}", line ')
    return text

def visible_names():
    return sorted(name for name in list(scope) if type(name) is str and not name.startswith("__"))

def list_vars(request):
    names = visible_names()
    told = [f"{name}: {details(scope[name])}" for name in names if name in scope] if request["details"] else names
    return plain(("\n" if request["details"] else ", ").join(told)) or "No variables defined"

def details(value):
    """The type of a value, and its shape, length or short value. No code of the user's runs for that: the types are the
    standard library's own, or those of a package that holds arrays and tables."""
    kind = type(value)
    name = type.__dict__["__name__"].__get__(kind)
    home = str(type.__dict__["__module__"].__get__(kind))
    is_of_home = getattr(modules.get(home), "__dict__", {}).get(name) is kind
    if value is None:
        return "None"
    if kind is MODULE:
        return f"module {value.__dict__.get('__name__')}"
    is_short = kind is complex or kind in (str, bytes) and len(value) <= 60
    if is_short or kind in (int, float, bool) and not abs(value) >= 1e100:
        return f"{name} {value!r}"
    if is_of_home and home in ("builtins", "collections", "array") and name in SIZED:
        return f"{name} of length {len(value)}"
    if is_of_home and home.partition(".")[0] in SHAPED:
        shape = getattr(value, "shape", None)
        if shape == () and getattr(value, "dtype", None) != object:  # whose object would format itself
            return f"{name} {value}"
        return f"{name} {tuple(shape)}" if isinstance(shape, tuple) else name
    return name

SIZED = "str bytes bytearray list tuple dict set frozenset range OrderedDict defaultdict Counter deque array".split()
SHAPED = "numpy pandas polars torch xarray scipy jax jaxlib pyarrow".split()

def pass_over():
    """In place of a KeyboardInterrupt that comes too late."""

def reset(_request):
    """Once something is removed an interrupt ends only what user code does then: the answer says what was removed."""
    global instead_of_raising
    removed = len(visible_names())
    names = set(scope) - set(first_scope)
    instead_of_raising = pass_over
    values = list(map(scope.pop, names, repeat(None)))  # in C, so that no interrupt comes amid it
    scope.update(first_scope)
    for name in ("last_type", "last_value", "last_exc", "last_traceback"):  # they keep a failed cell's variables
        vars(sys).pop(name, None)
    tasks = asyncio.all_tasks(loop) if loop is not None else ()
    if tasks:
        cell_notes.append(f"{len(tasks)} tasks of the event loop go on; reset(restart=true) ends them")
    if "__annotations__" in first_scope:  # until 3.13; then they are made where they are asked for
        scope["__annotations__"] = {}
    try:
        instead_of_raising = None
        values.clear()  # which may run code of the user's
        instead_of_raising = pass_over
    except KeyboardInterrupt:
        instead_of_raising = pass_over
    return f"Scope cleared ({removed} items removed)"

OPERATIONS = {"run": run_cell, "startup": run_cell, "reset": reset, "list_vars": list_vars}

def serve(request):
    global interrupted, raises_from, unanswered, cell_awaits
    interrupted, raises_from, unanswered, cell_awaits = False, 0.0, True, False
    asked.clear()
    cell_notes.clear()
    take_back()  # where a handler of the user's kept `answer` from it
    lend(request)
    result, error = guarded(lambda: refuse() if is_refused else OPERATIONS[request["op"]](request))
    if "matplotlib" in modules and "code" in request:  # a cell, or the startup script
        if error is None or not interrupted:
            _, failed = guarded(show_figures)
            error = failed if error is None else error
        if error is not None and interrupted:  # who interrupts wants no drawing, which may take long
            guarded(lambda: modules["matplotlib.pyplot"].close("all"))
    answer(result, error)

def refuse():
    """In place of a cell that was interrupted before it began."""
    cell_notes.append("the cell was not run: a task held up the event loop, until the interrupt")
    raise KeyboardInterrupt

def lend(request):
    """Sets what holds for one cell only: its stdin, sys.argv, and for a script `__file__` and its folder on sys.path.
    `take_back` undoes it."""
    file, argv, text = file_of(request), request.get("argv"), request.get("stdin")
    argv_before, stdin_before = getattr(sys, "argv", None), getattr(sys, "stdin", None)
    file_before, path = scope.get("__file__"), getattr(sys, "path", None)
    folder = file and os.path.dirname(os.path.realpath(file))
    printers = getattr(sys, "stdout", None), getattr(sys, "stderr", None)
    if file:
        forget_siblings()
    loaded = set(modules) if file else ()

    def undo():
        if argv:
            sys.argv = argv_before
        if text is not None:
            dup2(spares[0], 0)
            sys.stdin = stdin_before
        if file:
            scope["__file__"] = file_before
            if file_before is None:
                del scope["__file__"]
            for stream in (getattr(sys, "stdout", None), getattr(sys, "stderr", None)):
                flush(stream)
            sys.stdout, sys.stderr = printers
            for folders in (path, getattr(sys, "path", None)):
                if type(folders) is list:
                    folders[:] = [entry for entry in folders if entry is not folder]  # an equal one is the user's
            for name in set(modules).difference(loaded):
                if stands_beside(modules[name], name, folder):
                    siblings[name] = modules[name]

    lent.append(undo)  # before anything is set: whatever is raised from here on, all of it is undone
    if text is not None:
        sys.stdin = open_stdin(text)
    if argv:
        sys.argv = argv
    if file:
        scope["__file__"] = file
        if type(path) is list:
            path.insert(0, folder)

def stands_beside(module, name, folder):
    """Whether a module is of a file or a package in a folder."""
    top = f"{folder}/{name.partition('.')[0]}"
    return file_of_module(module).startswith((f"{top}.", f"{top}/"))

def forget_siblings():
    """The modules that a script found beside itself are loaded anew by the next one, which may have others."""
    for name, module in siblings.items():
        if modules.get(name) is module:
            del modules[name]
    siblings.clear()

def take_back():
    while lent:
        lent[-1]()
        lent.pop()

def hint_at_missing(error):
    """The advice for a ModuleNotFoundError, be it the error or a cause of it; "" for none."""
    for _ in range(LOOKS_MAX):
        if type(error) is ModuleNotFoundError and is_package(error.name) and error.name not in {*asked, *modules}:
            name = error.name
            return why_not_installed(name) or f"{name} is not installed; `import {name}` in a cell installs it"
        error = error.__context__ if error.__cause__ is None else error.__cause__
        if error is None:
            break
    return ""

def answer(result, error):
    global unanswered
    take_back()
    if getpid() != PID:
        leave_child(error)
    text, code = report(error)
    notes = settle_streams()
    flush_libc()
    notes += cell_notes
    if error is not None:
        hint, _ = guarded(lambda: hint_at_loop(error) if interrupted else
                          hint_at_missing(error) or hint_at_habit(error))
        notes += [hint] if hint else []
    if watched or len(modules) != modules_watched:
        changed, _ = guarded(note_changed_modules)
        notes += changed or []
    notes = list(map(plain, notes))  # an error's words may stand in them
    starts = range(0, len(result) - PART_CHARS, PART_CHARS)  # of the pieces before the last
    for at in starts:
        send([{"op": "part", "text": result[at : at + PART_CHARS]}])
    unanswered = False  # before the frame: what is raised behind it must not be answered again
    send([{"op": "done", "result": result[len(starts) * PART_CHARS :], "error": text, "exit": code, "notes": notes}])

def next_request():
    if loop is not None:
        tend()
    return receive()

def main():
    send([{"op": "ready", "version": "%d.%d.%d" % sys.version_info[:3],
           "environment": plain(environment) if environment else None, "note": plain(note) if note else None,
           "pid": PID}])
    while True:
        try:
            for request in iter(next_request, None):
                if request["op"] in OPERATIONS:  # a late `looked` or `installed` is passed over
                    serve(request)
            if ON_MACOS:  # noqa: F821  # a server that was killed can't kill a worker that does not leave by itself
                signal(SIGALRM, SIG_DFL)
                alarm(3)
            return
        except BaseException as error:  # by a handler or a thread of the user's, while no cell's code ran
            if leads_to(control) != control_place:
                raise SystemExit(f"a cell closed descriptor {control}, by which the interpreter is reached")
            if unanswered:
                answer("", error)
            else:
                tell(report(error)[0])

settle_streams()
own_streams = sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
sys.ps1 = ">>> "  # by which libraries know that somebody works interactively
first_scope = {name: value for name, value in scope.items() if name.startswith("__")}
reset(None)  # removes what the bootstrap left there
main()
