"""Random schedules of calls against a server, and a model that judges what came of them.

    python3 schedules.py SERVER [--seed N] [--schedules 10000] [--jobs K] [--only K] [--prove]

A schedule is a short random sequence of steps on two doors (MCP and the bridge) and three interpreters: cells, waits,
interrupts, cancellations, hang-ups, resets, restarts, stops. Each cell writes down in a journal what it does, and the
driver writes its own steps into the same file, so there is one order of events. The model knows no exact times: it
allows every order that the server may choose, and checks what must hold in all of them. `Model` has the list.

The seed is printed. Schedule K of it has a random generator of its own: `--seed N --only K` runs that one alone.
`--prove` alters the transcripts of good schedules, one fault at a time, and each altered one must be caught.
"""
import argparse
import collections
import copy
import fcntl
import json
import os
import random
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

DEADLINE = 40.0  # seconds for any answer, on a loaded machine
BLOCK = 200  # schedules that one server serves
SCHEDULES = "schedules"  # among the counts
NAMES = ("builtin", "left", "right")
DEFAULT_WAITS = ("none", "0.15")  # MCP_PY_WAIT of even and of odd blocks
TOKEN = re.compile(r"<(\d+)\.([a-z])(\d+)>")  # the cell's number, the stream, the number within that

KIT = '''"""What the cells of the schedules are made of. A cell writes down in the journal what it does."""
import os
import sys
import time

FOLDER = os.path.dirname(os.path.abspath(__file__))
JOURNAL = os.open(os.path.join(FOLDER, "journal"), os.O_WRONLY | os.O_APPEND)
STREAMS = {"o": "stdout", "e": "stderr"}


class Cell:
    def __init__(self, number, scope):
        self.number = number
        self.last = {}
        life = scope.setdefault("life", number)  # the cell that found the interpreter without variables
        scope["count"] = count = scope.get("count", 0) + 1
        self.log("start", os.getpid(), life, count, "".join(filter(str.isdigit, sys._getframe(1).f_code.co_filename)))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is KeyboardInterrupt:
            self.log("hit")
        self.log("end")

    def log(self, *words):
        os.write(JOURNAL, (" ".join(map(str, (self.number,) + words)) + "\\n").encode())

    def token(self, stream):
        """A text that nothing else prints. What is in the journal as `may` may be told, as `did` it must be."""
        self.last[stream] = self.last.get(stream, 0) + 1
        place = "%d.%s%d" % (self.number, stream, self.last[stream])
        self.log("may", place)
        return place

    def say(self, streams):
        for stream in streams:
            place = self.token(stream)
            print("<%s>" % place, file=getattr(sys, STREAMS[stream]), flush=True)
            self.log("did", place)

    def gate(self):
        self.log("gate")
        until = time.monotonic() + 60
        while not os.path.exists(os.path.join(FOLDER, "gate-%d" % self.number)):
            if time.monotonic() > until:
                raise TimeoutError("nobody opened the gate")
            time.sleep(0.004)

    def stubborn_gate(self):
        try:
            self.gate()
        except KeyboardInterrupt:
            self.log("hit")
            self.say("o")
            time.sleep(0.05)

    def sleep(self, seconds):
        time.sleep(seconds)

    def fail(self):
        raise ValueError("<%s>" % self.token("x"))

    def die(self):
        self.log("died")
        os._exit(3)

    def value(self):
        return "<%s>" % self.token("v")
'''

# -- the model --------------------------------------------------------------------------------------------------------

NEVER = float("inf")
NOT_RUN = re.compile(r"\bnot run: |there is no interpreter|before this cell ran|did not start")
STILL_RUNS = re.compile(r"\[mcp-py: cell (\d+) still runs\b")
GONE = re.compile(r"variables are gone|restarted|was stopped|process was ended")
OF_WAIT = re.compile(r"still runs|ended after|nothing runs|has not stopped|variables are gone|is starting")


class Wrong(Exception):
    pass


def ensure(good, what, *came):
    if not good:
        raise Wrong(" ".join([what] + [str(one) for one in came]))


class Model:
    """Judges one schedule. Each method whose name begins with `check_` is a group of invariants."""

    def __init__(self, record, counts):
        self.calls = record.calls
        self.lives = record.lives
        self.counts = counts
        self.place = {}  # (number, event): where that is in the journal
        self.starts = {}  # number: pid, life, count of cells, and the server's number of a cell
        self.tokens = {"may": set(), "did": set()}
        self.journal = record.journal
        for index, (number, event, *rest) in enumerate(record.journal):
            ensure(number in self.calls, "a cell of another schedule is at work:", number, event)
            ensure(event != "start" or number not in self.starts, "it ran twice:", number)
            self.place.setdefault((number, event), index)
            if event == "start":
                self.starts[number] = [int(word) for word in rest]
            if event in self.tokens:
                self.tokens[event].add(rest[0])
        self.cells = [call for call in self.calls.values() if call.tool == "execute"]

    def judge(self):
        """Raises Wrong with what each of the checks has found."""
        found = []
        for name in sorted(dir(self)):
            try:
                if name.startswith("check_"):
                    getattr(self, name)()
            except Wrong as wrong:
                found.append(str(wrong))
        ensure(not found, "\n".join(found))

    def at(self, call, event):
        return self.place.get((call.number, event), NEVER)

    def on(self, interpreter):
        """The calls that concern an interpreter."""
        return [call for call in self.calls.values() if call.interpreter == interpreter]

    def started(self, interpreter):
        cells = [cell for cell in self.cells if cell.interpreter == interpreter and cell.number in self.starts]
        return sorted(cells, key=lambda cell: self.at(cell, "start"))

    def is_quiet(self, cell):
        """Whether nothing but its own code ends this cell, and its caller stays."""
        disturbed = any(other.disturbs for other in self.on(cell.interpreter))
        return not (disturbed or cell.cancelled or cell.hung_up or cell.given.get("timeout"))

    def is_exempt(self, cell):
        """Whether lines of this cell may have been on their way to a peer when that hung up."""
        others = [other for other in self.on(cell.interpreter) if other is not cell]
        if any(other.hung_up and self.at(other, "settled") > self.at(cell, "start") for other in others):
            return True
        disturbed = cell.given.get("timeout") or any(other.disturbs for other in others)
        seen = self.at(cell, "hang") < self.at(cell, "hit") < NEVER and not disturbed  # so the server knew that nobody reads
        return cell.hung_up and (cell.given.get("stream") or not seen)

    def came_before(self, call, later):
        """Whether the server certainly sent one answer before the other: between the doors there is no common order."""
        moment = "answered" if call.door == later.door == "mcp" else "sent"
        return self.at(call, "answered") < self.at(later, moment) < NEVER

    def check_answers(self):
        """Each call is answered once; a cancelled one at most once."""
        for call in self.calls.values():
            least = 0 if call.cancelled or call.hung_up else 1
            ensure(least <= len(call.answers) <= 1, "it has %d answers:" % len(call.answers), call)
            self.counts["calls were answered once"] += len(call.answers)

    def check_lines(self):
        """Each line is told once, in its order, at the door of its cell or by a wait."""
        told = {}  # token: the calls whose answers have it
        parts = collections.defaultdict(list)  # by cell and stream: each answer's numbers, with its call
        for call in self.calls.values():
            here = collections.defaultdict(list)
            for number, stream, index in TOKEN.findall(call.text):
                told.setdefault("%s.%s%s" % (number, stream, index), []).append(call)
                here[int(number), stream].append(int(index))
            for key, indexes in here.items():
                parts[key].append((indexes, call))
        for token, callers in told.items():
            ensure(len(callers) == 1, "a line is told twice:", token, *callers)
            ensure(token in self.tokens["may"], "a line that no cell of this schedule printed:", token, *callers)
            cell = self.calls[int(token.split(".")[0])]
            other_door = callers[0].tool == "execute" and callers[0].door != cell.door
            ensure(not other_door, "a line went to an execute at the other door:", token, callers[0])
        for token in self.tokens["did"] - set(told):
            ensure(self.is_exempt(self.calls[int(token.split(".")[0])]), "a line is lost:", token)
        for (number, stream), pieces in parts.items():
            whole = sorted(index for indexes, _ in pieces for index in indexes)
            for indexes, call in pieces:
                first = whole.index(indexes[0])
                ensure(indexes == whole[first : first + len(indexes)], "lines of a cell are out of order:", number, stream, call)
                for others, later in pieces:
                    is_late = self.came_before(call, later) and indexes[0] > others[0]
                    ensure(not is_late, "an earlier answer has later lines:", number, call, later)
        self.counts["lines were told once and in order"] += len(told)

    def check_runs(self):
        """What was refused never runs; what nobody disturbs runs to its end, and its answer has its value."""
        for cell in self.cells:
            ran = cell.number in self.starts
            refused = cell.failed and NOT_RUN.search(cell.text) is not None
            ensure(not (refused and ran), "it ran, and its caller was told that it did not:", cell)
            self.counts["cells were refused, and none ran"] += refused
            if refused and self.is_quiet(cell):
                ensure(cell.limit is not None and cell.took >= cell.limit, "it was refused before its wait was over:", cell)
            elif self.is_quiet(cell):
                self.counts["undisturbed cells ran to their end"] += 1
                ensure(ran and self.at(cell, "end") < NEVER, "it did not run to its end:", cell)
                ending = "<%d.x1>" if cell.given["kind"] == "fails" else "<%d.v1>"
                told = "".join(call.text for call in self.on(cell.interpreter))
                ensure(self.is_exempt(cell) or ending % cell.number in told, "its value or error is lost:", cell)
            if cell.answers and not cell.failed and not STILL_RUNS.search(cell.text):
                ensure(self.at(cell, "end") < self.at(cell, "answered"), "it was answered before it ended:", cell)
                ensure("<%d.v1>" % cell.number in cell.text, "its own value is not in its answer:", cell)
            for other in self.started(cell.interpreter) if cell.cancelled and ran else ():
                ensure(not self.was_held(cell, other), "it was cancelled while it waited, and ran all the same:", cell, other)

    def was_held(self, cell, other):
        """Whether a cell was cancelled while it waited behind another."""
        return self.at(other, "start") < self.at(cell, "sent") and self.at(cell, "settled") < self.at(other, "end") < NEVER

    def explains(self, call, since, cell):
        """Whether a call's answer says why the cell found the interpreter without the variables of a cell before."""
        clears = call.tool in ("reset", "stop_interpreter") and call.answers
        if clears and (not call.failed or "Scope cleared" in call.text) and self.at(call, "sent") < self.at(cell, "start"):
            return self.at(call, "answered") > since
        until = self.at(cell, "answered")
        return GONE.search(call.text) is not None and since < self.at(call, "answered") <= until

    def check_state(self):
        """Variables are lost only with notice, and a reset leaves none."""
        for name in NAMES:
            life, count = self.lives.get(name, (None, 0))
            since = -1
            for cell in self.started(name):
                _, its_life, its_count, _ = self.starts[cell.number]
                if life is not None and its_life != life:
                    told = any(self.explains(call, since, cell) for call in self.on(name))
                    ensure(told, "the variables are gone, and nobody said so:", cell)
                    self.counts["losses of variables were told"] += 1
                elif life is not None:
                    ensure(its_count > count, "the counter went back:", cell)
                    self.counts["cells found the variables"] += 1
                life = its_life
                count = its_count
                since = self.at(cell, "start")
            self.lives[name] = (life, count)
            for call in self.on(name):
                before = {self.starts[cell.number][1] for cell in self.started(name) if self.at(cell, "start") < self.at(call, "sent")}
                after = {self.starts[cell.number][1] for cell in self.started(name) if self.at(cell, "start") > self.at(call, "answered")}
                cleared = call.tool == "reset" and call.answers and not call.failed
                ensure(not (cleared and before & after), "variables outlived a reset:", call)

    def check_deaths(self):
        """Each door is told that a process died, with the first cell that it runs after that."""
        for cell in self.cells:
            died = self.at(cell, "died")
            ended_by_call = any(call.tool in ("reset", "stop_interpreter") for call in self.on(cell.interpreter))
            for door in ("mcp", "bridge") if died < NEVER and not ended_by_call else ():
                here = [call for call in self.on(cell.interpreter) if call.door == door and call.answers]
                ran = [call for call in here if call.is_cell() and not NOT_RUN.search(call.text)]
                nexts = [self.at(call, "answered") for call in ran if self.at(call, "sent") > died]
                told = [self.at(call, "answered") for call in here if GONE.search(call.text) and self.at(call, "answered") > died]
                ensure(not nexts or (told and min(told) <= min(nexts)), "a door was not told at once that it died:", door, cell)
                self.counts["doors were told of a death"] += len(nexts) > 0

    def check_order(self):
        """Cells of an interpreter run one at a time, in their order of arrival, and are numbered in that order."""
        for name in NAMES:
            cells = self.started(name)
            current = None
            for number, event, *_ in self.journal:
                if self.calls[number] in cells and event not in DRIVERS_EVENTS:
                    current = number if event == "start" else current
                    ensure(number == current, "a cell goes on after the next has begun:", number, current)
            for place, later in enumerate(cells):
                for earlier in cells[:place]:
                    by_mcp = earlier.door == later.door == "mcp" and self.at(later, "sent") < self.at(earlier, "sent")
                    ensure(not by_mcp and self.at(later, "known") > self.at(earlier, "sent"), "an earlier call ran later:", later, earlier)
                    self.counts["pairs of cells ran in their order"] += 1
            given = [self.starts[cell.number][3] for cell in cells]
            if not any(call.tool == "stop_interpreter" for call in self.on(name)):
                ensure(given == sorted(set(given)), "the server's numbers of cells do not rise:", given)
            for cell in cells:
                said = STILL_RUNS.search(cell.text)
                ensure(not said or int(said[1]) == self.starts[cell.number][3], "a note has another cell's number:", cell)

    def check_truth(self):
        """No answer says what is not so, and none comes before its time."""
        for call in self.calls.values():
            if STILL_RUNS.search(call.text) and call.tool in ("execute", "wait"):
                ensure(call.limit is not None, "it was told that its cell still runs, and did not ask:", call)
                ensure(call.took >= call.limit, "it was answered before its wait was over:", call)
            tells = call.tool == "wait" or (call.tool == "interrupt" and call.door == "mcp")
            if not tells or not call.answers or NOT_RUN.search(call.text):
                continue
            ensure(OF_WAIT.search(call.text), "an answer of wait without a word of the cell:", call)
            for cell in self.started(call.interpreter) if "nothing runs" in call.text else ():
                runs = self.at(cell, "start") < self.at(call, "sent") and self.at(call, "answered") < self.at(cell, "end") < NEVER
                ensure(not runs, "it was told that nothing runs:", call, cell)

    def check_interrupts(self):
        """An interrupt hits the cell that it is meant for."""
        for name in NAMES:
            free_since = -1  # where the interpreter was last certainly not with this cell yet
            for cell in self.started(name):
                hit = self.at(cell, "hit")
                begun = max(free_since, self.at(cell, "sent"))
                own = cell.cancelled or cell.hung_up or cell.given.get("timeout")
                aimed = [call for call in self.on(name) if call.tool == "interrupt" and self.at(call, "sent") < hit]
                by_call = any(self.at(call, "answered") > begun for call in aimed)
                ensure(hit == NEVER or own or by_call, "it was interrupted, and nobody asked for that:", cell)
                self.counts["interrupts hit their own cell"] += hit < NEVER
                ends = self.at(cell, "end")
                free_since = ends if ends < NEVER else self.at(cell, "start")


# -- the driver -------------------------------------------------------------------------------------------------------

DRIVERS_EVENTS = {"sent", "known", "answered", "cancel", "settled", "hang"}


class Record:
    """The transcript of a schedule."""

    def __init__(self, lives):
        self.calls = {}
        self.journal = []  # of (number, event, words…)
        self.lives = lives  # by interpreter: the life of its variables, and the counter in them


class Call:
    def __init__(self, number, door, tool, interpreter, given, limit):
        self.number = number
        self.door = door
        self.tool = tool
        self.interpreter = interpreter
        self.given = given
        self.limit = limit  # seconds that it waits; None for as long as it takes
        self.answers = []  # pairs of a text and whether it is an error
        self.partial = ""  # what a stream had told before the hang-up
        self.cancelled = False
        self.hung_up = False
        self.sent = time.monotonic()
        self.took = None

    def __str__(self):
        gone = " cancelled" * self.cancelled + " hung up" * self.hung_up
        took = "" if self.took is None else " after %.3f s" % self.took
        return "\n  %d %s %s %s %s%s%s: %s" % (self.number, self.door, self.tool, self.interpreter, json.dumps(self.given), gone, took,
                                            self.answers or self.partial or "nothing")

    @property
    def text(self):
        return self.partial + "".join(text for text, _ in self.answers)

    @property
    def failed(self):
        return any(is_error for _, is_error in self.answers)

    def is_cell(self):
        return self.tool == "execute"

    def can_be_cancelled(self):
        return self.is_open() and self.door == "mcp" and self.tool in ("execute", "wait", "interrupt", "list_vars")

    def can_hang_up(self):
        return self.is_open() and self.door == "bridge" and self.tool in ("execute", "wait")

    def is_open(self):
        return not (self.answers or self.cancelled or self.hung_up)

    @property
    def disturbs(self):
        """Whether it ends other cells than its own."""
        return self.tool in ("interrupt", "stop_interpreter") or self.given.get("restart") or self.given.get("kind") == "dies"


def code_of(number, given):
    bodies = {"gated": "cell.gate()", "stubborn": "cell.stubborn_gate()", "sleeps": "cell.sleep(%g)" % given.get("sleep", 0)}
    ends = {"fails": "cell.fail()", "dies": "cell.die()"}
    body = bodies.get(given["kind"], "pass")
    end = ends.get(given["kind"], "pass")
    lines = ["cell.say(%r)" % given["before"], body, "cell.say(%r)" % given["after"], end]
    head = "import cell_kit\nwith cell_kit.Cell(%d, globals()) as cell:\n" % number
    return head + "".join("    %s\n" % line for line in lines) + "cell.value()"


class Server:
    def __init__(self, binary, default_wait):
        self.folder = tempfile.mkdtemp(prefix="mcp-py-schedules-")
        self.default_limit = None if default_wait == "none" else float(default_wait)
        with open(os.path.join(self.folder, "cell_kit.py"), "w") as file:
            file.write(KIT)
        self.journal = open(os.path.join(self.folder, "journal"), "a+b", 0)
        env = {"PATH": os.environ["PATH"], "HOME": self.folder, "TMPDIR": self.folder, "MCP_PY_PYTHON": sys.executable,
               "MCP_PY_AUTO_INSTALL": "off", "MCP_PY_WAIT": default_wait}
        self.process = subprocess.Popen([binary, "server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, env=env, cwd=self.folder)
        self.last = 0
        self.pings = 0
        self.read_up_to = 0  # in the journal
        self.missing = {"left", "right"}
        self.partial_line = b""
        self.pongs = set()
        self.strays = []
        self.peers = {}  # by number of the call: its socket and what has come
        self.record = Record({})
        self.socket_path = None
        self.socket_path = self.ask("get_session_info")["socket_path"]

    def log(self, number, event):
        self.journal.write(b"%d %s\n" % (number, event.encode()))

    # what goes out

    def open_call(self, door, tool, interpreter, **given):
        self.last += 1
        limit = given.get("seconds" if tool == "wait" else "wait", self.default_limit if door == "mcp" else None)
        call = Call(self.last, door, tool, interpreter, given, limit)
        self.record.calls[call.number] = call
        arguments = {name: value for name, value in given.items() if name in ("wait", "timeout", "seconds", "restart", "python_path")}
        if tool == "execute":
            arguments["code"] = code_of(call.number, given)
        if interpreter:
            arguments["name" if tool in ("add_interpreter", "stop_interpreter") else "interpreter"] = interpreter
        self.log(call.number, "sent")
        if door == "mcp":
            self.send({"id": call.number, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
        else:
            self.connect(call, tool, arguments)
        return call

    def send(self, message):
        self.process.stdin.write(json.dumps(dict(message, jsonrpc="2.0")).encode() + b"\n")
        self.process.stdin.flush()

    def connect(self, call, tool, arguments):
        if call.given.get("stream"):
            arguments["stream"] = True
        body = json.dumps(arguments).encode()
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(self.socket_path)
        peer.sendall(b"POST /%s HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (tool.encode(), len(body)) + body)
        self.peers[call.number] = [peer, b""]

    def settle(self, call=None):
        """Returns when the server has taken up all that was sent by MCP, and this call."""
        if call is not None and call.number in self.peers:
            peer = self.peers[call.number][0]
            end = time.monotonic() + DEADLINE
            while struct.unpack("i", fcntl.ioctl(peer, termios.TIOCOUTQ, b"\0" * 4))[0]:
                ensure(time.monotonic() < end, "the server does not read a request:", call)
                time.sleep(0.0005)
        self.pings += 1
        name = "ping-%d" % self.pings
        self.send({"id": name, "method": "ping"})
        ensure(self.pump(DEADLINE, lambda: name in self.pongs), "a ping is not answered")

    def cancel(self, call):
        call.cancelled = True
        self.log(call.number, "cancel")
        self.send({"method": "notifications/cancelled", "params": {"requestId": call.number}})

    def hang_up(self, call):
        call.hung_up = True
        peer, came = self.peers.pop(call.number)
        head, _, body = came.partition(b"\r\n\r\n")
        if call.given.get("stream"):
            call.partial = text_of_events(body.rpartition(b"\n")[0])[0]
        self.log(call.number, "hang")
        peer.close()

    def open_gate(self, call):
        open(os.path.join(self.folder, "gate-%d" % call.number), "w").close()

    # what comes in

    def pump(self, seconds, until=lambda: False):
        """Takes what comes until something holds, or the time is over. Returns whether it holds."""
        end = time.monotonic() + seconds
        while not until():
            poll = select.poll()
            stdout = self.process.stdout.fileno()
            poll.register(stdout, select.POLLIN)
            places = {peer.fileno(): number for number, (peer, _) in self.peers.items()}
            for place in places:
                poll.register(place, select.POLLIN)
            left = end - time.monotonic()
            ready = poll.poll(max(0, left) * 1000)
            for place, _ in ready:
                if place == stdout:
                    self.read_stdout()
                else:
                    self.read_peer(places[place])
            if left <= 0 and not ready:
                return until()
        return True

    def read_stdout(self):
        came = os.read(self.process.stdout.fileno(), 1 << 16)
        ensure(came, "the server has ended")
        *lines, self.partial_line = (self.partial_line + came).split(b"\n")
        for line in lines:
            message = json.loads(line.decode())
            if str(message.get("id")).startswith("ping-"):
                self.pongs.add(message["id"])
            elif "id" in message:
                self.answered(message["id"], *text_of_message(message))

    def read_peer(self, number):
        peer = self.peers[number][0]
        try:
            came = peer.recv(1 << 16)
        except ConnectionResetError:
            came = b""
        self.peers[number][1] += came
        if not came:
            _, whole = self.peers.pop(number)
            peer.close()
            self.answered(number, *text_of_response(whole, self.record.calls[number]))

    def answered(self, number, text, is_error):
        call = self.record.calls.get(number)
        if call is None:
            self.strays.append((number, text))
            return
        call.took = time.monotonic() - call.sent
        call.answers.append((text, is_error))
        self.log(number, "answered")

    def wait_for(self, calls, seconds=DEADLINE):
        return self.pump(seconds, lambda: not any(call.is_open() for call in calls))

    def ask(self, tool, **given):
        """A call that no model judges. Returns its structured result."""
        call = self.open_call("mcp", tool, given.pop("name", None), **given)
        ensure(self.wait_for([call]), "it is not answered:", call)
        ensure(not call.failed, "it failed:", call)
        return json.loads(call.text)

    # schedules

    def run(self, steps):
        """Runs a schedule and brings the server to rest. Returns the record."""
        for name in sorted(self.missing):
            self.ask("add_interpreter", name=name, python_path=sys.executable)
            self.record.lives.pop(name, None)
        self.record = Record(self.record.lives)
        self.read_journal()
        self.missing = set()
        rng = random.Random(str(steps))
        for step in steps:
            self.do(step)
            self.pump(0)
        calls = list(self.record.calls.values())
        for call in calls:
            self.open_gate(call)
        self.wait_for(calls)
        for name in rng.sample(NAMES, len(NAMES)):
            self.collect_rest(name, rng)
        self.settle()
        for call in calls:
            os.remove(os.path.join(self.folder, "gate-%d" % call.number))
        self.record.journal = self.read_journal()
        ensure(not self.strays, "an answer to a call of an earlier schedule:", self.strays)
        return self.record

    def collect_rest(self, name, rng):
        """Has each door tell what is left of an interpreter's cells."""
        ways = [("mcp", "execute"), ("bridge", "execute"), ("mcp", "wait"), ("bridge", "wait")]
        for door, tool in rng.sample(ways, len(ways)):
            given = {"seconds": 0.0} if tool == "wait" else {"kind": "quick", "before": "o", "after": "", "wait": DEADLINE}
            call = self.open_call(door, tool, name, **given)
            self.wait_for([call])
            if "there is no interpreter" in call.text:
                self.missing.add(name)
                return

    def check_rest(self):
        listed = self.ask("list_interpreters")["result"]
        busy = {entry["name"]: entry["busy"] for entry in listed if entry["name"] in NAMES}
        ensure(not any(busy.values()), "an interpreter is busy after all its calls were answered:", busy)
        ensure(set(busy) == set(NAMES) - self.missing, "not the interpreters that there should be:", busy)

    def read_journal(self):
        self.journal.seek(self.read_up_to)
        came = self.journal.read()
        self.read_up_to += len(came)
        entries = [line.split() for line in came.decode().splitlines()]
        return [(int(number), event, *rest) for number, event, *rest in entries]

    def do(self, step):
        what, given = step
        if what == "call":
            given = dict(given)
            is_settled = given.pop("settled")
            call = self.open_call(given.pop("door"), given.pop("tool"), given.pop("interpreter"), **given)
            if is_settled:
                self.settle(call)
                self.log(call.number, "known")
        elif what == "pause":
            self.pump(given)
        else:
            fits = {"open": Call.is_cell, "cancel": Call.can_be_cancelled, "hang up": Call.can_hang_up}[what]
            act = {"open": self.open_gate, "cancel": self.cancel, "hang up": self.hang_up}[what]
            calls = [call for call in self.record.calls.values() if fits(call)]
            if calls:
                call = calls[-min(given["back"], len(calls))]
                act(call)
                if given["settled"] and what != "open":
                    self.settle()
                    self.log(call.number, "settled")

    def end(self):
        for peer, _ in self.peers.values():
            peer.close()
        self.process.stdin.close()
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        code = self.process.returncode
        self.process.stdout.close()
        self.journal.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        ensure(code == 0, "the server's exit code:", code)


def text_of_message(message):
    if "error" in message:
        return message["error"]["message"], True
    result = message["result"]
    return "\n".join(item.get("text", "") for item in result["content"]), result["isError"]


def text_of_response(came, call):
    """What an HTTP response says: the whole of it is one answer."""
    head, end, body = came.partition(b"\r\n\r\n")
    ensure(end and head.startswith(b"HTTP/1.1 "), "not a response: %r" % came[:300], call)
    if b" 200 " not in head.split(b"\r\n")[0]:
        return json.loads(body.decode())["detail"], True
    if call.given.get("stream"):
        text, lasts = text_of_events(body)
        ensure(len(lasts) == 1, "a stream with %d ends: %r" % (len(lasts), body), call)
        return text, lasts[0]
    answer = json.loads(body.decode())
    return str(answer.get("result", answer)), answer.get("is_error", False)


def text_of_events(body):
    """The text of a stream's events, and of each last event whether it is an error."""
    events = [json.loads(line.decode()) for line in body.split(b"\n") if line]
    text = "\n".join("".join(event.get(kind, "") for event in events) for kind in ("note", "stdout", "stderr", "result"))
    return text, [event["is_error"] for event in events if "is_error" in event]


# -- what is random ---------------------------------------------------------------------------------------------------

KINDS = {"quick": 30, "gated": 30, "sleeps": 16, "stubborn": 12, "fails": 8, "dies": 0.7}
STEPS = {"execute": 50, "wait": 14, "interrupt": 7, "cancel": 9, "hang up": 7, "open": 9, "list_vars": 2, "reset": 3,
         "restart": 0.7, "stop_interpreter": 0.7, "add_interpreter": 1.5}


def one_of(rng, weights):
    return rng.choices(list(weights), list(weights.values()))[0]


def with_a_favourite(rng, weights):
    favourite = rng.choice(list(weights))
    return dict(weights, **{favourite: 4 * weights[favourite]})


def schedule(seed, number):
    """The steps of one schedule, as (what, given)."""
    rng = random.Random("%d %d" % (seed, number))
    busiest = rng.choice(NAMES)
    kinds = with_a_favourite(rng, KINDS)
    weights = with_a_favourite(rng, STEPS)
    steps = []
    for _ in range(rng.randint(4, 12)):
        interpreter = busiest if rng.random() < 0.7 else rng.choice(NAMES)
        steps.append(random_step(rng, one_of(rng, weights), kinds, interpreter))
        if rng.random() < 0.5:
            steps.append(("pause", rng.choice((0.001, 0.01, 0.03, 0.08))))
    return steps


def random_step(rng, what, kinds, interpreter):
    if what in ("cancel", "hang up", "open"):
        return what, {"back": rng.randint(1, 3), "settled": rng.random() < 0.5}  # counted from the last call that fits
    if what in ("stop_interpreter", "add_interpreter") and interpreter == "builtin":
        interpreter = rng.choice(NAMES[1:])
    given = {"tool": what, "door": "mcp", "interpreter": interpreter, "settled": rng.random() < 0.5}
    if what in ("execute", "wait", "interrupt") and rng.random() < 0.4:
        given["door"] = "bridge"
        given["stream"] = what != "interrupt" and rng.random() < 0.5
    if what == "execute":
        given.update(random_cell(rng, kinds))
    elif what == "wait" and rng.random() < 0.8:
        given["seconds"] = rng.choice((0.0, 0.05, 0.2))
    elif what == "restart":
        given.update(tool="reset", restart=True)
    elif what == "add_interpreter":
        given["python_path"] = sys.executable
    return "call", given


def random_cell(rng, kinds):
    given = {"kind": one_of(rng, kinds)}
    for part in ("before", "after"):
        given[part] = "".join(rng.choice("oooe") for _ in range(rng.randint(0, 3)))
    if given["kind"] == "sleeps":
        given["sleep"] = rng.choice((0.005, 0.03, 0.1))
    if rng.random() < 0.5:
        given["wait"] = rng.choice((0.0, 0.0, 0.05, 0.1, 0.3))
    if rng.random() < 0.2:
        given["timeout"] = rng.choice((0.05, 0.1, 0.3))
    return given


# -- that the model can fail ------------------------------------------------------------------------------------------
#
# Each fault alters a good record, and returns whether it found a place to do so. The model must then object.


def answered_calls(record, model):
    return [call for call in record.calls.values() if call.answers]


def replace_text(call, alter):
    text, is_error = call.answers[0]
    call.answers[0] = (alter(text), is_error)


def token_to_spoil(record, model):
    """A line that must be told, and the call that tells it."""
    for call in answered_calls(record, model):
        for found in TOKEN.finditer(call.text):
            if found[0][1:-1] in model.tokens["did"] and not model.is_exempt(record.calls[int(found[1])]):
                return found[0], call
    return None, None


def drop_line(record, model):
    token, call = token_to_spoil(record, model)
    if call:
        replace_text(call, lambda text: text.replace(token, ""))
    return call


def tell_line_twice(record, model):
    token, call = token_to_spoil(record, model)
    if call:
        replace_text(call, lambda text: text + token)
    return call


def tell_line_elsewhere(record, model):
    token, call = token_to_spoil(record, model)
    others = [other for other in answered_calls(record, model) if other is not call]
    if call and others:
        replace_text(others[-1], lambda text: text + token)
    return call and others


def swap_lines(record, model):
    for call in answered_calls(record, model):
        for number, stream, index in TOKEN.findall(call.text):
            first = "<%s.%s%s>" % (number, stream, index)
            second = "<%s.%s%d>" % (number, stream, int(index) + 1)
            if second in call.text:
                replace_text(call, lambda text: text.replace(first, "…").replace(second, first).replace("…", second))
                return True
    return False


def invent_line(record, model):
    for call in answered_calls(record, model):
        replace_text(call, lambda text: text + "<%d.o99>" % call.number)
        return True
    return False


def answer_twice(record, model):
    for call in answered_calls(record, model):
        call.answers *= 2
        return True
    return False


def answer_never(record, model):
    for call in answered_calls(record, model):
        if not (call.cancelled or call.hung_up or TOKEN.search(call.text)):
            call.answers.clear()
            return True
    return False


def refuse_what_ran(record, model):
    for cell in answered_calls(record, model):
        if cell.number in model.starts and not TOKEN.search(cell.text):
            cell.answers[0] = ("not run: cell 1 has run for 3 s", True)
            return True
    return False


def run_what_was_refused(record, model):
    for cell in answered_calls(record, model):
        if cell.tool == "execute" and cell.failed and NOT_RUN.search(cell.text) and model.started(cell.interpreter):
            last = model.starts[model.started(cell.interpreter)[-1].number]
            record.journal.append((cell.number, "start", *map(str, last[:2] + [last[2] + 1, last[3] + 1])))
            return True
    return False


def run_twice(record, model):
    for number in model.starts:
        record.journal.append((number, "start", *map(str, model.starts[number])))
        return True
    return False


def run_what_was_cancelled(record, model):
    """A cell that was cancelled while another held its interpreter runs after that."""
    for cell in model.cells:
        for other in model.started(cell.interpreter) if cell.cancelled and cell.number not in model.starts else ():
            if model.was_held(cell, other):
                place = model.at(other, "end") + 1
                _, life, count, given = model.starts[other.number]
                record.journal.insert(place, (cell.number, "start", "1", str(life), str(count), str(given)))
                return True
    return False


def lose_state(record, model):
    """The last cell of an interpreter that nobody reset found no variables."""
    for name in NAMES:
        cells = model.started(name)
        is_calm = not any(call.tool in ("reset", "stop_interpreter") or GONE.search(call.text) for call in model.on(name))
        if len(cells) > 1 and is_calm:
            place = model.at(cells[-1], "start")
            number, event, pid, _, _, given = record.journal[place]
            record.journal[place] = (number, event, pid, str(number), "1", given)
            return True
    return False


def keep_state(record, model):
    """The variables outlive a reset."""
    for call in answered_calls(record, model):
        cells = model.started(call.interpreter)
        before = [cell for cell in cells if model.at(cell, "start") < model.at(call, "sent")]
        after = [cell for cell in cells if model.at(cell, "start") > model.at(call, "answered")]
        if call.tool == "reset" and not call.failed and before and after:
            for cell in after:
                place = model.at(cell, "start")
                number, event, pid, _, _, given = record.journal[place]
                record.journal[place] = (number, event, pid, str(model.starts[before[-1].number][1]), str(10_000 + place), given)
            return True
    return False


def overlap(record, model):
    for name in NAMES:
        cells = model.started(name)
        if len(cells) > 1 and model.at(cells[0], "end") < NEVER:
            record.journal.append(record.journal.pop(model.at(cells[0], "end")))
            return True
    return False


def run_out_of_order(record, model):
    """Of two calls that came by MCP, the first is the later one."""
    for name in NAMES:
        cells = [cell for cell in model.started(name) if cell.door == "mcp"]
        if len(cells) > 1:
            sent = [model.at(cell, "sent") for cell in cells[:2]]
            entries = [record.journal[place] for place in sent]
            record.journal[sent[0]], record.journal[sent[1]] = entries[1], entries[0]
            return True
    return False


def interrupt_another(record, model):
    for cell in model.cells:
        if cell.number in model.starts and model.is_quiet(cell):
            record.journal.insert(model.at(cell, "start") + 1, (cell.number, "hit"))
            return True
    return False


def answer_early(record, model):
    for call in answered_calls(record, model):
        if call.tool in ("execute", "wait") and STILL_RUNS.search(call.text) and call.limit:
            call.took = call.limit / 2
            return True
    return False


def lie_that_nothing_runs(record, model):
    for call in answered_calls(record, model):
        for cell in model.started(call.interpreter) if call.tool == "wait" and not TOKEN.search(call.text) else ():
            if model.at(cell, "start") < model.at(call, "sent") and model.at(call, "answered") < model.at(cell, "end") < NEVER:
                call.answers[0] = ("[mcp-py: nothing runs]", False)
                return True
    return False


FAULTS = {  # with what the model must say
    drop_line: "a line is lost", tell_line_twice: "told twice", tell_line_elsewhere: "told twice", swap_lines: "out of order",
    invent_line: "no cell of this schedule printed", answer_twice: "has 2 answers", answer_never: "has 0 answers",
    refuse_what_ran: "told that it did not", run_what_was_refused: "told that it did not", run_twice: "it ran twice",
    run_what_was_cancelled: "cancelled while it waited", lose_state: "the variables are gone", keep_state: "outlived a reset",
    overlap: "after the next has begun", run_out_of_order: "an earlier call ran later", interrupt_another: "nobody asked for that",
    answer_early: "before its wait was over", lie_that_nothing_runs: "told that nothing runs"}


def prove(record, lives, tally):
    """Alters copies of a good record, and has the model judge them."""
    for fault, expected in FAULTS.items():
        altered = copy.deepcopy(record)
        altered.lives = dict(lives)
        if not fault(altered, Model(altered, collections.Counter())):
            continue
        said = "nothing"
        try:
            Model(altered, collections.Counter()).judge()
        except Wrong as wrong:
            said = str(wrong)
        name = fault.__name__.replace("_", " ")
        ensure(expected in said, "the fault %r is not seen; the model says:" % name, said)
        tally["altered transcripts were caught: %s" % name] += 1


# -- all of them ------------------------------------------------------------------------------------------------------


class Failure:
    """The first thing that went wrong, in any job."""

    def __init__(self):
        self.lock = threading.Lock()
        self.text = None

    def tell(self, text):
        with self.lock:
            self.text = self.text or text


def shown(record, steps):
    lines = ["steps:"] + ["  %s %s" % (what, json.dumps(given)) for what, given in steps]
    lines += ["calls and answers:"] + [str(call)[1:] for call in record.calls.values()]
    lines += ["journal:"] + ["  " + " ".join(map(str, entry)) for entry in record.journal]
    return "\n".join(lines)


def run_block(given, block, failure, counts):
    """Runs the schedules of a block, one after the other, on one server."""
    last = min((block + 1) * BLOCK, given.schedules)
    numbers = range(block * BLOCK, last) if given.only is None else [given.only]
    server = Server(os.path.abspath(given.server), DEFAULT_WAITS[block % 2])
    try:
        for number in numbers:
            if failure.text is not None:
                return
            run_one(given, server, number, failure, counts)
    finally:
        server.end()
    if failure.text is None:
        print("  ok: schedules %d to %d" % (numbers[0], numbers[-1]), flush=True)


def run_one(given, server, number, failure, counts):
    steps = schedule(given.seed, number)
    try:
        record = server.run(steps)
        lives = dict(record.lives)
        Model(record, counts).judge()
        server.check_rest()
        if given.prove:
            prove(record, lives, counts)
        counts[SCHEDULES] += 1
    except (Wrong, OSError, ValueError, KeyError) as error:
        if not server.record.journal:
            server.record.journal = server.read_journal()
        again = "schedule %d; again: --seed %d --only %d" % (number, given.seed, number)
        failure.tell("%s: %s\n%s\n(%s)" % (type(error).__name__, error, shown(server.record, steps), again))


def run_all(given, failure):
    """Shares the blocks among the jobs. Returns what was counted."""
    whole = range((given.schedules + BLOCK - 1) // BLOCK)
    blocks = iter(whole if given.only is None else [given.only // BLOCK])
    counts = [collections.Counter() for _ in range(given.jobs)]

    def work(own_counts):
        for block in blocks:
            try:
                run_block(given, block, failure, own_counts)
            except Exception as error:
                failure.tell(repr(error))

    threads = [threading.Thread(target=work, args=(own_counts,)) for own_counts in counts]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        failure.tell("interrupted")
    return sum(counts, collections.Counter())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--only", type=int)
    parser.add_argument("--prove", action="store_true")
    given = parser.parse_args()
    if not os.access(given.server, os.X_OK):
        parser.error("no program: %s" % given.server)
    print("seed %d" % given.seed, flush=True)
    failure = Failure()
    total = run_all(given, failure)
    if failure.text is not None:
        sys.exit("FAILED: %s" % failure.text)
    judged = total.pop(SCHEDULES, 0)
    for what, count in sorted(total.items()):
        print("  ok: %d %s" % (count, what))
    if given.prove and given.only is None:
        untried = len(FAULTS) - sum(what.startswith("altered") for what in total)
        if untried:
            sys.exit("FAILED: %d faults found no place in any transcript; more --schedules may help" % untried)
    print("%d schedule checks passed" % judged)


main()
