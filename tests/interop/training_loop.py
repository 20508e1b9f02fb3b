"""The loop that the training scripts run in a cell, how the answers about it are read, and what agents do with it.

Shared by training.py, training_claude.py and training_codex.py.
"""
import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from hosts import Model, check, processes_with

EPOCHS = 180  # of the long loop, which prints a line a second
EPOCHS_STOPPED = 30  # of a loop of an agent that never comes to its end
LATE_SECONDS_MAX = 8  # for an answer, on a loaded machine
GONE_SECONDS_MAX = 2.5  # from the end of a session until nothing of it runs
SESSION_SECONDS_MAX = 90.0  # for an agent with short loops
LINE = re.compile(r"epoch \d+ loss \d\.\d{4}")


def loop(epochs, mark):
    """A cell that prints a line a second. The file MARK-N says that line N is out."""
    return """import time
losses = []
for epoch in range(1, %d):
    losses.append(1 / (2 * epoch + 1))
    print('epoch %%d loss %%.4f' %% (epoch, losses[-1]))
    open('%s-%%d' %% epoch, 'w').close()
    time.sleep(1)
'the last loss is %%.4f' %% losses[-1]""" % (epochs + 1, mark)


def value(epochs):
    return "'the last loss is %.4f'" % (1 / (2 * epochs + 1))


def is_out(mark, epoch):
    return os.path.exists("%s-%d" % (mark, epoch))


def lines(first, last):
    return ["epoch %d loss %.4f" % (epoch, 1 / (2 * epoch + 1)) for epoch in range(first, last + 1)]


def note(text):
    """A pattern of a whole line."""
    return r"\[mcp-py: %s\]" % text


# The time in the first is the cell's, which begins later than the call's.
STILL_RUNS = note(r"cell \d+ still runs after [^\]]+ and goes on by itself; wait shows the rest, interrupt stops it")
RUNS_ON = note(r"cell \d+ still runs: [^\]]+")  # what `wait` says when its own time is over
CANCELLED = note(r"cell \d+ was cancelled; [^\]]*") + r"\n\d+"  # and the value of the next cell
ENDED_ELSEWHERE = note(r"cell \d+ ended after [^\]]+; its answer went to another call")
KEYBOARD_INTERRUPT = note(r"cell \d+ ended after [^\]]+") + r"\nTraceback (.*\n)+KeyboardInterrupt"
INTERRUPTED = note("interrupted; the variables are kept") + "\n" + KEYBOARD_INTERRUPT
TIMED_OUT = note("interrupted after its timeout of 4 s; the variables are kept") + "\n" + KEYBOARD_INTERRUPT


def ended(epochs):
    return note(r"cell \d+ ended after [^\]]+") + "\n" + re.escape(value(epochs))


class Account:
    """The answers about one loop in the order that they came. No line may be missing, and none may come twice."""

    def __init__(self, who):
        self.who = who
        self.lines = 0
        self.cells = set()

    def hear(self, what, text, rest):
        """Checks the lines of an answer, and that what else it says matches a pattern and is about one cell."""
        came = LINE.findall(text)
        check("%s: %s: the next %d lines" % (self.who, what, len(came)), came == lines(self.lines + 1, self.lines + len(came)), text)
        self.lines += len(came)
        said = "\n".join(line for line in LINE.sub("", text).splitlines() if line)
        self.cells.update(re.findall(r"\bcell (\d+)", said))
        check("%s: %s: its other lines" % (self.who, what), re.fullmatch(rest, said) and len(self.cells) <= 1, text)

    def close(self, epochs):
        check("%s: %d lines in all" % (self.who, epochs), self.lines == epochs, self.lines)


def left_in(folder):
    """What a session leaves behind that had this folder as its TMPDIR."""
    return processes_with(folder) + [name for name in os.listdir(folder) if name.startswith("python-interpreter-mcp-py-")]


def check_gone(who, folder, since):
    """The session that was told to go at a time leaves nothing."""
    while left_in(folder) and time.monotonic() < since + GONE_SECONDS_MAX:
        time.sleep(0.02)
    check("%s: nothing is left after %.1f s" % (who, time.monotonic() - since), not left_in(folder), left_in(folder))


class Agent:
    """A program that works through a script of tool calls as its model tells it, and a folder for it."""

    def __init__(self, name, script_of, handler, results):
        self.name = name
        self.folder = tempfile.mkdtemp(prefix="mcp-py-training-")
        self.results_of = results  # the texts that the calls came to, from a request to the model
        self.model = Model(script_of(self.mark), handler)
        self.output = tempfile.TemporaryFile("w+")

    def start(self, command, env, stdin=subprocess.DEVNULL):
        env = {"PATH": os.environ["PATH"], "HOME": self.folder, "TMPDIR": self.folder, **env}
        self.process = subprocess.Popen(command, env=env, cwd=self.folder, stdin=stdin, stdout=self.output, stderr=subprocess.STDOUT,
                                        text=True)
        atexit.register(self.remove)

    def remove(self):
        self.process.kill()
        self.process.wait()
        end = time.monotonic() + GONE_SECONDS_MAX
        while processes_with(self.folder) and time.monotonic() < end:
            time.sleep(0.02)
        shutil.rmtree(self.folder, ignore_errors=True)

    def mark(self, name):
        return os.path.join(self.folder, name)

    def results(self):
        return self.results_of(self.model.requests[-1]) if self.model.requests else []

    def said(self):
        self.output.seek(0)
        return self.output.read()

    def eventually(self, what, holds):
        end = time.monotonic() + SESSION_SECONDS_MAX
        while not holds():
            if time.monotonic() > end:
                check("%s: %s" % (self.name, what), False, "not within %g s\n%s" % (SESSION_SECONDS_MAX, self.said()))
            time.sleep(0.05)

    def printed(self, name, epoch):
        self.eventually("line %d of the loop that is %s" % (epoch, name), lambda: is_out(self.mark(name), epoch))

    def finish(self, seconds=SESSION_SECONDS_MAX):
        """The results of the whole script, when the program has gone."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = "still running"
        finished = time.monotonic()
        check("%s: a session ends well" % self.name, code == 0 and len(self.results()) == len(self.model.script), (code, self.said()))
        check_gone(self.name, self.folder, finished)
        return self.results()


LOSSES = ("execute", {"code": "len(losses)"})


def check_losses(account, text):
    """The variables are those of a loop that printed just these lines, and nothing is told again."""
    check("%s: the variables are there, and no more lines" % account.who, text == str(account.lines), text)


def in_pieces(mark, seconds, count):
    """A script: the long loop, `count` answers of it with some seconds each, and one with the rest."""
    waits = [("wait", {"seconds": seconds})] * (count - 1)
    return [("execute", {"code": loop(EPOCHS, mark("in pieces")), "wait": seconds}), *waits, ("wait", {}), LOSSES]


def check_in_pieces(agent, seconds):
    *pieces, rest, losses = agent.finish(EPOCHS + SESSION_SECONDS_MAX)
    account = Account(agent.name)
    for number, text in enumerate(pieces):
        account.hear("piece %d" % (number + 1), text, RUNS_ON if number else STILL_RUNS)
        check("%s: piece %d has its seconds" % (agent.name, number + 1), account.lines >= (number + 1) * seconds - LATE_SECONDS_MAX, text)
    account.hear("the rest", rest, ended(EPOCHS))
    account.close(EPOCHS)
    check_losses(account, losses)


def interrupts(mark):
    """A script: a loop that `interrupt` ends, and one that ends by its timeout. The server's limit of a call is 3 s."""
    return [("execute", {"code": loop(EPOCHS_STOPPED, mark("interrupted"))}), ("interrupt", {}), LOSSES,
            ("execute", {"code": loop(EPOCHS_STOPPED, mark("timed out")), "timeout": 4}), ("wait", {}), LOSSES]


def check_interrupts(agent):
    first, stopped, losses, late, late_rest, late_losses = agent.finish()
    account = Account(agent.name + ", interrupted")
    account.hear("execute", first, STILL_RUNS)
    account.hear("interrupt", stopped, INTERRUPTED)
    check("%s: in the middle" % account.who, 1 <= account.lines < EPOCHS_STOPPED, stopped)
    check_losses(account, losses)
    account = Account(agent.name + ", timed out")
    account.hear("execute", late, STILL_RUNS)
    account.hear("wait", late_rest, TIMED_OUT)
    check("%s: in the middle" % account.who, 2 <= account.lines <= 5, late_rest)
    check_losses(account, late_losses)


def check_cancelled(agent, after, losses):
    """The answers after a call that its client gave up: what that had printed is in the first of them only."""
    account = Account(agent.name)
    account.hear("the next answer", after, CANCELLED)
    check("%s: what it had printed, and the variable" % agent.name, after.endswith("\n%d" % account.lines) and account.lines >= 2, after)
    check_losses(account, losses)


def left_behind(mark):
    """A script that is over while its loop goes on by itself."""
    return [("execute", {"code": loop(EPOCHS_STOPPED, mark("left behind")), "wait": 1})]


def check_left_behind(agent):
    text = agent.finish()[0]
    check("%s: the loop goes on" % agent.name, "goes on by itself" in text, text)


def stopped(mark):
    return [("execute", {"code": loop(EPOCHS_STOPPED, mark("stopped"))})]


def check_stopped(agent, number):
    agent.printed("stopped", 2)
    told_to_go = time.monotonic()
    agent.process.send_signal(number)
    agent.process.wait(SESSION_SECONDS_MAX)
    check_gone(agent.name, agent.folder, told_to_go)
