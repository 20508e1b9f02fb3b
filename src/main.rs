//! mcp-py: one persistent Python that a coding agent and the person beside it can both use and read.
//!
//! ```text
//!                        ┌─────────────────┐ ── control socket ─▶ python -c … (src/worker.py), one an interpreter,
//! host ───── stdin ────▶ │    the loop,    │ ◀─ fd 1, fd 2 ────── in a session and group of its own; it runs the cells
//! (claude, …)            │ the main thread │                      in its __main__
//!      ◀─── stdout ───── │                 │
//! client ── socket ────▶ │                 │ ◀─ events: closures from other threads, which run here
//!                        └─────────────────┘
//! keeper threads, one a process: spawn it, wait for its exit, post both
//! begin, base check: threads that look around at the start, and whether what is remembered of a Python still holds
//! errand threads, one a call: read what may take its time (ps, lsof, the saved interpreters) and ask the loop
//! installer threads, one an import of what is missing: run uv or pip, post how that went
//! ```
//!
//! The main thread alone owns what changes, and it alone reads and writes, so there are no locks, and nothing happens
//! between two lines of it. Whatever may block is done by a thread that owns nothing and posts what it found. What
//! this costs: output files are written by the loop, so a disk that hangs under the output directory hangs the server.
//!
//! The way of a cell: `take_line`, `tools_call` and `run_tool` (or `attend_peer` and `serve_peer`) bring it to an
//! interpreter, where a `Lane` has others before it in its turn; `submit` queues it, `begin` sends it. `read_pipe` and
//! `take_frame` collect what comes until the frame `done`, or the exit: `cell_ended` or `bury`. From there `conclude`
//! puts the answer together, in the shape that whoever asked wants, for stdout or a peer's outbox.
//!
//! Who closes what: the server closes the control socket to let an idle worker leave. A worker's death is its exit,
//! never an end of file, for its children may hold its pipes open.
//!
//! Invariants, cited where the code upholds them:
//!
//! - I1  Our stdout carries MCP messages and nothing else. What is said to people goes to stderr.
//! - I2  Nothing blocks the reading of stdin: the loop waits for no file of others, no process, no lock, no pipe.
//! - I3  User code is never run twice.
//! - I4  Nothing a cell prints is lost or misplaced. What arrives between cells is shown with the next one.
//! - I5  State is lost only with notice, in the very next answer, with the cause.
//! - I6  User code can't reach the worker protocol through fds 0, 1, 2, sys.std* or child processes.
//! - I7  The worker starts no thread: all draining of pipes happens here.
//! - I8  A worker is signalled only while it is unreaped, as a group, by the loop. Death is noticed without reaping,
//!   then the group is killed, then it is reaped. (Of an interrupt the group gets the first SIGINT only.)
//! - I9  Every queue, buffer, frame, wait and loop has a limit; past it there is a clear error, never a hang.
//! - I10 Only this user reaches the socket, and the client sends code only to a server of this user and this session.
//! - I11 When the server goes, by end of stdin, signal, crash or SIGKILL, its workers go, and its output files do not
//!   stand in the next server's way.
//!
//! Sections: 1 limits and names · 2 main and roles · 3 the server: loop, stdin, stdout, shutdown · 4 MCP methods ·
//! 5 the tools · 6 interpreters · 7 output and its files · 8 the builtin's environment and packages · 9 saved and
//! discovered interpreters · 10 the bridge · 11 the client · 12 install and doctor · 13 the host · 14 mod rpc, mod
//! http, mod sys
//!
//! What the program never does: open a network connection (uv or pip do, for a cell's import), run a shell, write
//! anywhere but in its output directory, its sockets' names in /tmp, `~/.claude-workspace/python_interpreter` and the
//! folder of `install` (but for a file that `doctor` makes and removes in TMPDIR, /tmp and the folder in which the
//! configuration's would be made, and where a link in place of interpreters.json leads), signal a process that it did
//! not start, or run a cell a second time.

use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{mpsc, Arc, LazyLock, OnceLock, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, mem, thread};

// ── 1. Limits and names ──────────────────────────────────────────────────────────────────────────────────────────────
//
// All limits are here (I9), with the reason of those that are not obvious.

const NAME: &str = "python-interpreter"; // serverInfo.name: the original's, so that settings and permissions stay valid
const VERSION: &str = env!("CARGO_PKG_VERSION");
const BUILTIN: &str = "builtin"; // the interpreter that is always there
const WORKER: &str = include_str!("worker.py");
const OUTPUT_DIR: &str = "python-interpreter-mcp-py-"; // and eight characters: see OutputFiles
const SOCKETS: &str = "/tmp/python-interpreter-"; // and `{host pid}-{own pid}.sock`, `{host pid}.sock`

const REQUEST_BYTES_MAX: usize = 16 << 20; // one line on stdin: a cell with data in it
const HTTP_HEAD_BYTES_MAX: usize = 16 << 10;
const PEERS_MAX: usize = 64; // connections to the bridge that are served; as many more are told so
const OUTBOX_BYTES: usize = 1 << 20; // of an answer in memory, for a peer that reads slowly; the rest waits in a file
const PEER_DRAIN_BYTES: usize = 1 << 20; // read away behind a refused request
const STDOUT_WAITING_MAX: usize = 64 << 20; // answers the host has not taken; past it stdin is not read
const CELLS_WAITING_MAX: usize = 1_000; // over all interpreters
const ERRANDS_MAX: usize = 64; // calls that look at files or processes at once; subscriptions, too
const FRAME_BYTES_MAX: usize = 4 << 20; // one line from a worker: it sends results in parts of 256 Ki characters
/// How much is read at a time, and the size of stdout's pipe on Linux: 64 KiB would cost four times the context
/// switches, 1 MiB for each of 50 interpreters would exhaust a user's share of pipe memory.
const PIPE_BYTES: usize = 256 << 10;

const TEXT_CHARS_MAX: usize = 25_000; // of an answer; a longer one shows its ends:
const HEAD_CHARS: usize = 20_000;
const TAIL_CHARS: usize = 5_000;
const NOTE_CHARS_MAX: usize = 10_000; // a note keeps its ends past this
const NOTES_MAX: usize = 128; // of a cell as it goes on, of figures and installs: all together are < 2 MiB
const NOTICES_MAX: usize = 4; // deaths and the like that an answer tells: the last ones
const HEAD_BYTES: usize = 4 * TEXT_CHARS_MAX; // of a stream in memory; from here on there is a file
const TAIL_BYTES: usize = 4 * (TAIL_CHARS + 1); // and a character cut in two
const CELL_FILE_BYTES_MAX: u64 = 1 << 30;
const SESSION_FILE_BYTES_MAX: u64 = 4 << 30; // the oldest files go first
const RESULT_CHARS_HINT: usize = 100_000; // told to Claude Code: an answer at its limit, notes and a traceback
const PROGRESS_MESSAGE_CHARS: usize = 200; // Claude Code shows about as many
const VALUE_SHOWN_CHARS: usize = 80; // of a wrong argument, in the error about it
const SECONDS: std::ops::RangeInclusive<f64> = 0.0..=1e7; // of a time limit: up to four months
const NAME_CHARS_MAX: usize = 64;
const FIGURES_MAX: usize = 100; // of a cell; more are dropped
const IMAGES_MAX: usize = 10; // in an answer; what is over these limits is a file only
const IMAGE_BYTES_MAX: usize = 4 << 20;
const IMAGES_BYTES_MAX: usize = 6 << 20; // together: 8 MiB as base64, where hosts hang up at 10
const IMAGE_SIDE_MAX: u32 = 8_000; // pixels
const PICTURE_BYTES_MAX: usize = 64 << 20; // of one as base64, from the worker; a larger one is not kept
const SNAPSHOT_BYTES_MAX: usize = 8 << 20; // of what ps, lsof or an installer prints
const SAVED_BYTES_MAX: u64 = 8 << 20; // of interpreters.json

const TIMEOUT_DEFAULT: f64 = 600.0; // seconds, MCP_PY_TIMEOUT
const START_LIMIT_DEFAULT: f64 = 30.0; // seconds from spawn to `ready`, MCP_PY_START_TIMEOUT: a cold disk, a large venv
const INTERRUPT_GRACE: Duration = Duration::from_secs(5); // to SIGKILL: some cells catch it to save their work
const INTERRUPT_AGAIN: Duration = Duration::from_millis(200); // libc's system() eats the first one
const STOP_GRACE: Duration = Duration::from_secs(2); // for an idle worker's atexit at stop_interpreter
const HUNG_UP_GRACE: Duration = Duration::from_secs(1); // from the end of the control socket to SIGKILL
const DRAIN_LIMIT: Duration = Duration::from_millis(1_500); // what is in flight at the end of stdin may still end
const EOF_GRACE: Duration = Duration::from_millis(80); // for idle workers at the end of stdin: 100 ms with the rest
const SIGNAL_GRACE: Duration = Duration::from_millis(150); // the same at a signal: hosts kill us 400 ms later
const KILL_LIMIT: Duration = Duration::from_millis(100); // from SIGKILL to the burial
const IDLE_TICK: Duration = Duration::from_secs(60);
const LEASH_TICK: Duration = Duration::from_millis(10); // a thread looks whether what it runs is still wanted
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
const PROGRESS_AT_LEAST: Duration = Duration::from_secs(15); // the promise is 20 s: hosts give up on silence
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(2); // for ps, for lsof
const LOCK_LIMIT: Duration = Duration::from_secs(5); // for another server's save
const ENVIRONMENT_LIMIT: Duration = Duration::from_secs(60); // to make the builtin's environment, or wait for another
const BASE_CHECK_DELAY: Duration = Duration::from_millis(500); // what is remembered of a Python is checked after that
const INSTALL_LIMIT: Duration = Duration::from_secs(120);
const OFFLINE_MEMORY: Duration = Duration::from_secs(60); // no install is tried for so long after there was no network
const REQUEST_LIMIT: Duration = Duration::from_secs(10); // for an HTTP request to arrive
const PEER_PATIENCE: Duration = Duration::from_secs(60); // for a peer to take something
const PEER_DRAIN: Duration = Duration::from_secs(1); // for a peer to hang up after its answer
const ACCEPT_PAUSE: Duration = Duration::from_millis(10); // where there are no descriptors for a connection
const HEALTH_LIMIT: Duration = Duration::from_secs(5); // for a server that the client asks who it is: it runs lsof

/// Exit codes of the client, and `exit_code` of the bridge, beside what a cell exits with.
const EXIT_TIMEOUT: i32 = 124;
const EXIT_FAILED: i32 = 125; // it could not be run
const EXIT_INTERRUPTED: i32 = 130;
const EXIT_DIED: i32 = 137;
const EXIT_UNKNOWN: i32 = -1; // there is no such interpreter: status 404

const _: () = assert!(HEAD_CHARS + TAIL_CHARS <= TEXT_CHARS_MAX && 4 * HEAD_CHARS <= HEAD_BYTES);
const _: () = assert!(EOF_GRACE.as_millis() < SIGNAL_GRACE.as_millis());

/// Newest first. The versions before 2026-07-28 open with `initialize`.
const MODERN: &str = "2026-07-28";
const LEGACY: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
const VERSIONS: [&str; 5] = [MODERN, LEGACY[0], LEGACY[1], LEGACY[2], LEGACY[3]];
const CACHE_MS: u64 = 3_600_000; // how long a modern client may keep our lists: they never vary while we run

// ── 2. Main and roles ────────────────────────────────────────────────────────────────────────────────────────────────

const USAGE: &str = "\
usage: mcp-py server             speak MCP on stdin and stdout (also under the name mcp-py-server)
       mcp-py client …           run code in the session's Python (also as mcp-py-client; client --help says more)
       mcp-py install [--dir D]  copy this program and its two names to D (~/.local/bin), and try them
       mcp-py doctor             say what it finds on this machine, and what to do about it
       mcp-py --version | --help
";

fn main() -> ExitCode {
    let mut words = env::args_os();
    let called = PathBuf::from(words.next().unwrap_or_default());
    let role = called.file_name().and_then(|name| name.to_str()?.strip_prefix("mcp-py-"));
    let role = role.filter(|role| matches!(*role, "server" | "client")); // any other name takes a subcommand
    let words: Vec<OsString> = role.map(OsString::from).into_iter().chain(words).collect();
    let plain: Vec<_> = words.iter().map(|word| word.to_str().unwrap_or("?")).collect();
    let (out, err, code) = match plain[..] {
        ["server"] => serve(),
        ["client", "--help"] => (CLIENT_USAGE.to_owned(), String::new(), 0),
        ["--version"] | ["server" | "client", "--version"] => (format!("mcp-py {VERSION}\n"), String::new(), 0),
        ["--help"] | ["server", "--help"] => (USAGE.to_owned(), String::new(), 0),
        ["client", ..] => return client(&words[1..]).into(),
        ["install"] | ["install", "--dir", _] => install(words.get(2))
            .map_or_else(|why| (String::new(), format!("mcp-py install: {why}\n"), 1), |text| (text, String::new(), 0)),
        ["doctor"] => doctor(),
        _ => (String::new(), USAGE.to_owned(), 2),
    };
    let written = io::stdout().write_all(out.as_bytes()).and_then(|()| io::stderr().write_all(err.as_bytes()));
    ExitCode::from(written.map_or(1, |()| code))
}

/// A line to people, on stderr (I1). One that nobody reads must not hold us up (I2): what it does not take is dropped.
fn say(text: &str) {
    sys::write_ready(2, format!("mcp-py-server: {text}\n").as_bytes());
}

fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let started = thread::Builder::new().name(name.into()).spawn(body);
    started.map(drop).map_err(|error| format!("no thread could be started: {error}"))
}

// ── 3. The server: loop, stdin, stdout, shutdown ─────────────────────────────────────────────────────────────────────

/// All that changes. The main thread owns it.
#[derive(Default)]
struct Server {
    desk: Desk,
    /// By name: the builtin, those that run, and those that ran or are about to.
    interpreters: BTreeMap<String, Interpreter>,
    lanes: BTreeMap<String, Lane>, // by an interpreter's name
    bridge: Option<Bridge>,
    stdin: Option<File>,             // None after its end
    agreed: Option<&'static str>,    // the version that `initialize` agreed on
    begun: bool,                     // a message came that means a session, not a mere question who we are
    drain_by: Option<Instant>,       // stdin has ended: what was asked before may still end until then
    leaving: Option<(i32, Instant)>, // we are going, with this exit code: workers may leave by themselves until then
}

/// What the interpreters need of the server: calls, the way out, the output files.
#[derive(Default)]
struct Desk {
    last_key: u64,
    /// The requests that are not answered yet, by a key of our own, since a client may use an id twice.
    calls: BTreeMap<u64, Call>,
    peers: BTreeMap<u64, Peer>, // connections to the bridge
    listening: Vec<Value>,      // ids of `subscriptions/listen`: open until cancelled or until we go
    errands: usize,
    cells_waiting: usize,
    offline: Option<Instant>, // when an installer found no network
    stdout: Outbox,
    files: OutputFiles,
    buffer: Vec<u8>, // for reading: PIPE_BYTES, with nothing in it between two reads
    closing: bool,
}

/// Calls that concern one interpreter take effect as they arrived, though some look at files first: each has its turn.
#[derive(Default)]
struct Lane {
    others: bool, // than adds, which make no difference to the cells of one that runs
    waiting: VecDeque<Act>,
}

type Act = Box<dyn FnOnce(&mut Server, Turn)>;

/// A turn at an interpreter's name; where it is dropped, the next one comes.
struct Turn(String);

impl Drop for Turn {
    fn drop(&mut self) {
        let name = mem::take(&mut self.0);
        post(move |server| server.next_turn(&name));
    }
}

struct Call {
    to: To,
    progress: Option<Progress>,
    interpreter: Option<String>, // where its cell runs or waits, under the call's key
    notes: Vec<String>,          // of its cell, so far: what was installed, what was drawn
    pictures: Vec<Picture>,
    then: Option<mpsc::Sender<Result<(), String>>>, // for an errand that waits for the end of its cell
}

/// Where a call's answer goes: to stdout, or to a peer in one of three shapes.
enum To {
    Mcp { id: Value, modern: bool },
    Tool(u64),
    Execute(u64),
    Stream(u64, Stream),
}

/// A PNG file, and its base64 where it is small enough for an answer.
struct Picture {
    path: Option<String>, // None where it could not be written
    block: Option<String>,
}

/// A client's wish to hear of progress; when it was told last, and how much output there was then.
struct Progress {
    token: Value,
    since: Instant,
    last: Instant,
    chars: u64,
}

type Event = Box<dyn FnOnce(&mut Server) + Send>;

/// The way into the loop: the events, and a socket that wakes it.
static POST: OnceLock<(mpsc::Sender<Event>, UnixStream)> = OnceLock::new();
static STARTED: LazyLock<(Instant, SystemTime)> = LazyLock::new(|| (Instant::now(), SystemTime::now()));

/// Has the loop run this, soon.
fn post(event: impl FnOnce(&mut Server) + Send + 'static) {
    if let Some((events, wake)) = POST.get() {
        let _ = events.send(Box::new(event)); // the loop lives as long as the process
        let _ = (&*wake).write(&[0]); // where that is full, the loop is awake already
    }
}

const SERVER_ENDS: &str = "the server is ending";

/// Has the loop answer a question, and waits for that. For errands; the loop itself would wait for ever.
fn ask<T: Send + 'static>(question: impl FnOnce(&mut Server) -> T + Send + 'static) -> Result<T, String> {
    let (send, receive) = mpsc::channel();
    post(move |server| drop(send.send(question(server))));
    receive.recv().map_err(|_| SERVER_ENDS.into())
}

fn serve() -> ! {
    LazyLock::force(&STARTED);
    if io::stdin().is_terminal() {
        say("an MCP server: it expects JSON-RPC on stdin, one message a line; Ctrl-D ends it");
    }
    let mut server = Server::default();
    let Err(error) = server.run();
    say(&format!("can't serve: {error}"));
    server.exit(1)
}

impl Server {
    /// The loop. What it waits for is over at the latest when `tick` says.
    fn run(&mut self) -> io::Result<std::convert::Infallible> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let (sender, events) = mpsc::channel();
        let _ = POST.set((sender, waker));
        sys::catch_signals();
        self.stdin = Some(io::stdin().as_fd().try_clone_to_owned()?.into());
        self.desk.buffer = vec![0; PIPE_BYTES];
        let (mut line, mut chunk, mut set) = (Vec::new(), vec![0; 64 << 10], Vec::new());
        loop {
            let until = self.tick();
            let stdin = self.stdin.as_ref().filter(|_| self.desk.stdout.memory.len() < STDOUT_WAITING_MAX);
            let listener = self.bridge.as_ref().filter(|_| self.desk.peers.len() < 2 * PEERS_MAX);
            let peers: Vec<_> = self.desk.peers.keys().copied().collect();
            set.clear();
            set.push(sys::watch(wake.as_raw_fd(), libc::POLLIN));
            set.push(sys::watch(stdin.map_or(-1, File::as_raw_fd), libc::POLLIN));
            set.push(sys::watch(listener.map_or(-1, |bridge| bridge.listener.as_raw_fd()), libc::POLLIN));
            set.push(self.desk.stdout.watch(1, 0));
            set.extend(self.desk.peers.values().map(Peer::watch));
            set.extend(self.interpreters.values().filter_map(Interpreter::watch).flatten());
            sys::poll(&mut set, until);
            let (ours, theirs) = set.split_at(4);
            let (of_peers, theirs) = theirs.split_at(peers.len());
            let running = self.interpreters.values_mut().filter(|one| one.process.is_some());
            running.zip(theirs.chunks(3)).for_each(|(one, ready)| one.attend(ready, &mut self.desk));
            for (id, ready) in peers.into_iter().zip(of_peers).filter(|(_, ready)| ready.revents != 0) {
                self.attend_peer(id, ready.revents);
            }
            if ours[2].revents != 0 {
                self.accept();
            }
            self.desk.stdout.flush(1);
            if ours[3].revents & !libc::POLLOUT != 0 {
                self.desk.stdout = Outbox { gone: true, ..Outbox::default() };
                self.end_stdin(); // nobody reads our answers any more, which comes to the same
            }
            if let (true, Some(stdin)) = (ours[1].revents != 0, &mut self.stdin) {
                match stdin.read(&mut chunk) {
                    Ok(0) => {
                        rpc::feed(&mut line, b"\n", |line| self.take_line(line)); // the last one may lack its end
                        self.end_stdin();
                    }
                    Ok(count) => rpc::feed(&mut line, &chunk[..count], |line| self.take_line(line)),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(error) => return Err(error),
                }
            }
            if ours[0].revents != 0 {
                let mut bytes = [0; 64]; // each wakes; the loop takes the events, and what is not zero is a signal
                let count = (&wake).read(&mut bytes).unwrap_or(0);
                let signals = bytes[..count].iter().filter(|byte| **byte != 0);
                signals.for_each(|signal| self.leave(128 + i32::from(*signal), SIGNAL_GRACE));
                events.try_iter().for_each(|event| event(self));
            }
        }
    }

    /// What the clock asks for; returns when to look again.
    fn tick(&mut self) -> Instant {
        let now = Instant::now();
        let is_late = |peer: &Peer| peer.until.is_some_and(|end| end <= now);
        let late: Vec<_> = self.desk.peers.iter().filter(|(_, peer)| is_late(peer)).map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.attend_peer(id, 0));
        let desk = &mut self.desk;
        self.interpreters.retain(|_, interpreter| !interpreter.has_gone(now, desk));
        let next = self.interpreters.values_mut().map(|one| one.tick(now, desk)).fold(now + IDLE_TICK, Instant::min);
        let next = desk.peers.values().filter_map(|peer| peer.until).fold(next, Instant::min);
        match (self.leaving, self.drain_by) {
            (Some((code, end)), _) => {
                if end + KILL_LIMIT <= now || self.interpreters.values().all(|one| one.process.is_none()) {
                    self.exit(code);
                }
                next.min(end + KILL_LIMIT)
            }
            (None, Some(end)) if end <= now || (desk.calls.is_empty() && desk.stdout.is_empty()) => {
                self.leave(0, EOF_GRACE);
                now
            }
            (None, end) => end.map_or(next, |end| next.min(end)),
        }
    }

    fn end_stdin(&mut self) {
        self.stdin = None;
        self.drain_by.get_or_insert(Instant::now() + DRAIN_LIMIT);
    }

    /// Ends the process (I11): idle workers leave by themselves within `grace`, busy ones are killed at once, at last
    /// every group is. Takes `grace` and two KILL_LIMITs at most.
    fn leave(&mut self, code: i32, grace: Duration) {
        let (_, end) = *self.leaving.get_or_insert((code, Instant::now() + grace));
        self.desk.closing = true;
        self.interpreters.values_mut().for_each(|interpreter| interpreter.leave_by = Some(end));
    }

    fn exit(&mut self, code: i32) -> ! {
        for id in mem::take(&mut self.desk.listening) {
            let mut result = in_era(json!({}), true);
            result["_meta"]["io.modelcontextprotocol/subscriptionId"] = id.clone();
            self.desk.send(&rpc::response(&id, result));
        }
        self.interpreters.values().filter_map(|one| one.process.as_ref()).for_each(Process::kill_group);
        self.interpreters.clear(); // and with them their installers (I11)
        self.desk.files.remove();
        self.bridge = None;
        let end = Instant::now() + KILL_LIMIT;
        while LEASHED.try_write().is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        while !self.desk.stdout.is_empty() && Instant::now() < end {
            sys::poll(&mut [self.desk.stdout.watch(1, 0)], end);
            self.desk.stdout.flush(1);
        }
        std::process::exit(code)
    }

    /// The first message that is not `server/discover`: some hosts start a server just to ask that and kill it.
    fn begin_session(&mut self) {
        if !mem::replace(&mut self.begun, true) {
            let (builtin, desk) = self.interpreter(BUILTIN);
            builtin.launch(desk);
            let look_around = || {
                PUBLISHED.as_ref().map_or_else(|why| say(why), |()| ());
                remove_the_dead();
            };
            start_thread("begin", look_around).unwrap_or_else(|why| say(&why));
        }
    }

    /// Does what may take its time in a thread (I2).
    fn errand(&mut self, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
        ensure(self.desk.errands < ERRANDS_MAX, || format!("{ERRANDS_MAX} calls of this kind are running already"))?;
        start_thread("errand", || {
            work();
            post(|server| server.desk.errands -= 1);
        })?;
        self.desk.errands += 1; // before the loop takes what the thread posts
        Ok(())
    }

    /// Does this when its turn comes.
    fn in_turn(&mut self, name: &str, adds: bool, act: impl FnOnce(&mut Server, Turn) + 'static) {
        let free = !self.lanes.contains_key(name);
        let lane = self.lanes.entry(name.into()).or_default();
        lane.others |= !adds;
        lane.waiting.push_back(Box::new(act));
        if free {
            self.next_turn(name);
        }
    }

    fn next_turn(&mut self, name: &str) {
        match self.lanes.get_mut(name).and_then(|lane| lane.waiting.pop_front()) {
            Some(act) => act(self, Turn(name.into())),
            None => _ = self.lanes.remove(name),
        }
    }

    /// A turn for an errand to wait for.
    fn turn(&mut self, name: &str, adds: bool) -> mpsc::Receiver<Turn> {
        let (send, turn) = mpsc::channel();
        self.in_turn(name, adds, move |_, turn| _ = send.send(turn)); // where nobody waits, this drops it
        turn
    }

    /// MCP's cancellation: of the newest request with this id.
    fn cancel_request(&mut self, id: &Value) {
        self.desk.listening.retain(|listening| listening != id);
        let is_it = |call: &Call| matches!(&call.to, To::Mcp { id: its, .. } if its == id);
        let newest = self.desk.calls.iter().rev().find(|(_, call)| is_it(call)).map(|(key, _)| *key);
        newest.into_iter().for_each(|key| self.cancel(key));
    }

    /// Nobody wants the answer any more.
    fn cancel(&mut self, key: u64) {
        let interpreter = self.desk.calls.remove(&key).and_then(|call| self.interpreters.get_mut(&call.interpreter?));
        interpreter.into_iter().for_each(|interpreter| _ = interpreter.interrupt(Some(key), &mut self.desk));
    }

    /// Runs a tool for an open call; an error is for the caller to pass on.
    fn run_tool(&mut self, key: u64, tool: &Tool, given: Object) -> Result<(), String> {
        let given = tool.check(given)?;
        match tool.run {
            Run::Cell(op) => {
                let timeout = limit_of(given.get("timeout").and_then(Value::as_f64));
                let name = text(&given, "interpreter").unwrap_or(BUILTIN);
                let request = match given.get("code") {
                    Some(code) => json!({"op": op, "code": code}),
                    None => json!({"op": op}),
                };
                let (cell, named) = (Cell { key, request, timeout }, self.interpreters.get(name));
                let now = match self.lanes.get(name) {
                    Some(lane) => !lane.others && lane.waiting.is_empty() && named.is_some_and(|one| one.talk.up),
                    None => named.is_some_and(|one| one.config.is_some()),
                };
                let full = || format!("{CELLS_WAITING_MAX} cells are waiting already: this one was not run");
                ensure(self.desk.cells_waiting < CELLS_WAITING_MAX, full)?;
                if now {
                    self.run_cell(name, cell, None);
                } else {
                    self.desk.cells_waiting += 1;
                    self.in_turn(name, false, move |server, turn| {
                        server.desk.cells_waiting -= 1;
                        if server.desk.calls.contains_key(&key) {
                            server.run_cell(&turn.0.clone(), cell, Some(turn));
                        }
                    });
                }
                Ok(())
            }
            Run::Errand(handler) => self.errand_for(key, move || handler(&given)),
            Run::InTurn(handler, adds) => {
                let turn = self.turn(text(&given, "name").unwrap_or_default(), adds);
                self.errand_for(key, move || handler(key, &given, turn.recv().map_err(|_| SERVER_ENDS)?))
            }
        }
    }

    /// An errand that ends with a call's answer.
    fn errand_for(&mut self, key: u64, work: impl FnOnce() -> Outcome + Send + 'static) -> Result<(), String> {
        self.errand(move || {
            let result = work().unwrap_or_else(|why| refusal(&why));
            post(move |server| server.desk.answer(key, result));
        })
    }
}

impl Desk {
    fn key(&mut self) -> u64 {
        self.last_key += 1;
        self.last_key
    }

    fn open_call(&mut self, to: To, token: Option<Value>) -> u64 {
        let (key, now) = (self.key(), Instant::now());
        let progress = token.map(|token| Progress { token, since: now, last: now, chars: 0 });
        let (notes, pictures) = (Vec::new(), Vec::new());
        self.calls.insert(key, Call { to, progress, interpreter: None, notes, pictures, then: None });
        key
    }

    /// A message to the host. What stdout does not take at once waits, so a slow reader holds up no cell and loses
    /// nothing.
    fn send(&mut self, message: &[u8]) {
        self.stdout.push(1, message, None);
    }

    /// By which door a call came: 0 for MCP, 1 for the bridge.
    fn door(&self, key: u64) -> usize {
        self.calls.get(&key).is_some_and(|call| !matches!(call.to, To::Mcp { .. })).into()
    }

    /// Sends the result of an open call, unless that was cancelled meanwhile.
    fn answer(&mut self, key: u64, result: Value) {
        match self.calls.remove(&key).map(|call| call.to) {
            None => {}
            Some(To::Mcp { id, modern }) => self.send(&rpc::response(&id, in_era(result, modern))),
            Some(To::Tool(id) | To::Execute(id) | To::Stream(id, _)) => self.respond(id, "200 OK", &result),
        }
    }

    /// The answer to a cell that did not run, or had nothing to do.
    fn finish(&mut self, key: u64, error: Option<&str>, exit: i32) {
        let ending = Ending { error: error.map(|why| keep_ends(why, RESULT_CHARS_HINT)), exit, notes: Vec::new() };
        self.conclude(key, &mut Output::default(), ending, Vec::new());
    }

    /// A cell's answer, in the shape that its call wants. False where it was cancelled meanwhile.
    fn conclude(&mut self, key: u64, output: &mut Output, ending: Ending, mut notes: Vec<String>) -> bool {
        let Some(call) = self.calls.get_mut(&key) else { return false };
        if let Some(errand) = call.then.take() {
            return errand.send(ending.error.map_or(Ok(()), Err)).is_ok();
        }
        notes.append(&mut call.notes);
        let (exit, pictures) = (ending.exit, mem::take(&mut call.pictures));
        let is_error = exit != 0 || ending.error.is_some();
        let end = |text: String| json!({"result": text, "is_error": is_error, "exit_code": exit});
        match &mut call.to {
            To::Execute(id) | To::Stream(id, Stream { begun: false, .. }) if exit == EXIT_UNKNOWN => {
                let id = *id;
                self.refuse(id, "404 Not Found", &ending.error.unwrap_or_default());
                self.calls.remove(&key);
            }
            To::Stream(_, stream) => {
                let told = output.tell(ending, notes, stream.full, &mut self.files);
                let last = self.end_stream(key, told, exit, output);
                self.event(key, Some(end(last)), true);
                self.calls.remove(&key);
            }
            To::Execute(_) => {
                let mut answer = end(output.tell(ending, notes, false, &mut self.files).text());
                answer["images"] = pictures.into_iter().filter_map(|picture| picture.path).collect();
                self.answer(key, answer);
            }
            To::Mcp { .. } | To::Tool(_) => {
                let text = output.tell(ending, notes, false, &mut self.files).text();
                let mut result = tool_text(&text, is_error);
                if let Some(content) = result["content"].as_array_mut() {
                    let blocks = pictures.into_iter().filter_map(|picture| picture.block);
                    content.extend(blocks.map(|data| json!({"type": "image", "data": data, "mimeType": "image/png"})));
                }
                self.answer(key, result);
            }
        }
        true
    }

    /// Tells a call that asked for it how its cell gets on; returns when to look again. Progress that the host does
    /// not take at once would only make its queue longer.
    fn report(&mut self, key: u64, now: Instant, chars: u64, line: impl FnOnce() -> String) -> Option<Instant> {
        let progress = self.calls.get_mut(&key)?.progress.as_mut()?;
        let pause = if chars > progress.chars { PROGRESS_EVERY } else { PROGRESS_AT_LEAST };
        if now >= progress.last + pause && self.stdout.is_empty() {
            (progress.last, progress.chars) = (now, chars);
            let elapsed = now - progress.since;
            let message = Some(line()).filter(|line| !line.is_empty());
            let message = message.unwrap_or_else(|| format!("running for {} s", elapsed.as_secs()));
            let seconds = elapsed.as_millis() as f64 / 1000.0;
            let params = json!({"progressToken": progress.token, "progress": seconds, "message": message});
            self.send(&rpc::notification("notifications/progress", params));
        }
        Some(now + PROGRESS_EVERY)
    }
}

/// What waits for a reader who is slow: in memory, and behind that in a file without a name.
#[derive(Default)]
struct Outbox {
    memory: VecDeque<u8>,
    file: Option<(File, u64, u64)>, // and what of it waits: from, to
    gone: bool,                     // nobody reads any more
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.file.is_none()
    }

    /// What poll is to look for; without anything that waits only whether the reader is gone.
    fn watch(&self, fd: i32, events: libc::c_short) -> libc::pollfd {
        sys::watch(if self.gone { -1 } else { fd }, events | if self.is_empty() { 0 } else { libc::POLLOUT })
    }

    /// Writes what the descriptor takes; the rest waits, much of it in a file if there may be one. False where it can't
    /// be kept.
    fn push(&mut self, fd: i32, bytes: &[u8], files: Option<&mut OutputFiles>) -> bool {
        let written = if self.is_empty() { sys::write_ready(fd, bytes) } else { 0 };
        let rest = &bytes[if self.gone { bytes.len() } else { written }..];
        if let (None, Some(files)) = (&self.file, files.filter(|_| self.memory.len() + rest.len() > OUTBOX_BYTES)) {
            let Ok(file) = files.unnamed() else { return false };
            self.file = Some((file, 0, 0));
        }
        let Some((file, from, to)) = &mut self.file else {
            self.memory.extend(rest);
            return true;
        };
        let kept = *to - *from < CELL_FILE_BYTES_MAX && file.write_all_at(rest, *to).is_ok();
        *to += rest.len() as u64;
        kept
    }

    /// Writes on, as much as the descriptor takes. Returns whether that was something.
    fn flush(&mut self, fd: i32) -> bool {
        let mut moved = false;
        while !self.is_empty() {
            if let (true, Some((file, from, _))) = (self.memory.is_empty(), &mut self.file) {
                let mut buffer = vec![0; PIPE_BYTES];
                let count = file.read_at(&mut buffer, *from).unwrap_or(0);
                *from += count as u64;
                self.memory.extend(&buffer[..count]);
                self.file.take_if(|(_, from, to)| count == 0 || from >= to);
            }
            let written = sys::write_ready(fd, self.memory.as_slices().0);
            if written == 0 {
                break;
            }
            self.memory.drain(..written);
            moved = true;
        }
        self.memory.shrink_to(PIPE_BYTES);
        moved
    }
}

// ── 4. MCP methods ───────────────────────────────────────────────────────────────────────────────────────────────────
//
// A request whose `_meta` names 2026-07-28 is served by that version, which has no session; any other by the versions
// before it, whether or not `initialize` came first. Both may mix on one connection.

const INSTRUCTIONS: &str = "\
One persistent Python. `execute` runs a cell in the interpreter `builtin`, or in another by name: variables, imports \
and functions stay until `reset`. Cells of one interpreter run one after the other, interpreters run side by side. A \
cell may run 600 seconds unless `timeout` says otherwise; an interrupted one keeps its variables. Output over 25,000 \
characters is shown with its head and tail, and is whole in the file that the answer names. What a cell of `builtin` \
imports is installed if it is missing. Project environments (`.venv`, `venv`, an active virtualenv or conda) can be \
named as `interpreter` straight away; `list_interpreters` shows them, `add_interpreter` adds any other Python.";

/// A JSON-RPC error: code, message, data (null for none).
type Failure = (i64, String, Value);

fn invalid<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err((rpc::INVALID_PARAMS, why.into(), Value::Null))
}

impl Server {
    fn take_line(&mut self, line: &[u8]) {
        match rpc::parse(line) {
            rpc::Message::Request { id, method, params } => {
                if let Err((code, message, data)) = self.request(&id, &method, &params) {
                    self.desk.send(&rpc::error(Some(&id), code, &keep_ends(&message, NOTE_CHARS_MAX), data));
                }
            }
            rpc::Message::Notification { method, params } => {
                self.begin_session();
                if method == "notifications/cancelled" {
                    self.cancel_request(&params["requestId"]);
                }
            }
            rpc::Message::Nothing => {}
            rpc::Message::Unreadable { why } => say(&format!("ignored: {why}")),
            rpc::Message::Invalid { id, code, why } => {
                say(&format!("refused: {why}"));
                // Schemas before 2025-11-25 require an id in errors: there we keep silent where it is not known.
                if id.is_some() || matches!(self.agreed, None | Some("2025-11-25")) {
                    self.desk.send(&rpc::error(id.as_ref(), code, &why, Value::Null));
                }
            }
        }
    }

    /// Answers a request, or has it answered later.
    fn request(&mut self, id: &Value, method: &str, params: &Value) -> Result<(), Failure> {
        if method != "server/discover" {
            self.begin_session();
        }
        if !(params.is_object() || params.is_null()) {
            return invalid("params must be an object");
        }
        let modern = is_modern(method, &params["_meta"])?;
        let internal = |why| (rpc::INTERNAL_ERROR, why, Value::Null);
        let result = match (method, modern) {
            ("initialize", false) => {
                let version = LEGACY.into_iter().find(|known| params["protocolVersion"] == *known).unwrap_or(LEGACY[0]);
                self.agreed = Some(version);
                json!({"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server_info(),
                       "instructions": INSTRUCTIONS})
            }
            ("ping", false) => json!({}),
            ("server/discover", true) => {
                json!({"supportedVersions": VERSIONS, "capabilities": {"tools": {}}, "instructions": INSTRUCTIONS})
            }
            ("subscriptions/listen", true) if !params["notifications"].is_object() => {
                return invalid("subscriptions/listen: notifications must be an object");
            }
            ("subscriptions/listen", true) => {
                let room = self.desk.listening.len() < ERRANDS_MAX;
                ensure(room, || format!("{ERRANDS_MAX} subscriptions are open already")).map_err(internal)?;
                self.desk.listening.push(id.clone()); // open, but nothing is granted, for nothing here changes
                let params = json!({"notifications": {}, "_meta": {"io.modelcontextprotocol/subscriptionId": id}});
                self.desk.send(&rpc::notification("notifications/subscriptions/acknowledged", params));
                return Ok(());
            }
            ("tools/list", _) if !params["cursor"].is_null() => return invalid("unknown cursor: there is one page"),
            ("tools/list", _) => {
                let key = self.desk.open_call(To::Mcp { id: id.clone(), modern }, None);
                let listed = self.errand_for(key, || Ok(json!({"tools": *TOOL_LIST})));
                return listed.inspect_err(|_| _ = self.desk.calls.remove(&key)).map_err(internal);
            }
            ("tools/call", _) => return self.tools_call(id, params, modern),
            _ => return Err((rpc::METHOD_NOT_FOUND, format!("there is no method {method:?} here"), Value::Null)),
        };
        self.desk.send(&rpc::response(id, in_era(result, modern)));
        Ok(())
    }

    fn tools_call(&mut self, id: &Value, params: &Value, modern: bool) -> Result<(), Failure> {
        let name = &params["name"];
        let tool = find_tool(name.as_str().unwrap_or_default());
        let Some(tool) = tool else { return invalid(format!("tools/call: unknown tool {name}")) };
        let arguments = match &params["arguments"] {
            Value::Null => Map::new(),
            Value::Object(arguments) => arguments.clone(),
            _ => return invalid("tools/call: arguments must be an object"),
        };
        let token = Some(&params["_meta"]["progressToken"]);
        let token = token.filter(|token| token.is_string() || token.is_i64() || token.is_u64()).cloned();
        let key = self.desk.open_call(To::Mcp { id: id.clone(), modern }, token);
        let started = self.run_tool(key, tool, arguments);
        started.unwrap_or_else(|why| self.desk.answer(key, refusal(&why)));
        Ok(())
    }
}

/// Which era serves a request, by its `_meta` (2026-07-28 basic/index, basic/versioning).
fn is_modern(method: &str, meta: &Value) -> Result<bool, Failure> {
    const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
    const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
    let lacks = |key| invalid(format!("{method}: _meta lacks {key:?}, or it is of a wrong type"));
    let must = matches!(method, "server/discover" | "subscriptions/listen") || !meta[CAPABILITIES].is_null();
    match meta[VERSION].as_str() {
        None if must || !meta[VERSION].is_null() => lacks(VERSION),
        None => Ok(false),
        Some(version) if LEGACY.contains(&version) => Ok(false),
        Some(version) if version != MODERN => {
            let data = json!({"supported": VERSIONS, "requested": keep_ends(version, VALUE_SHOWN_CHARS)});
            Err((rpc::UNSUPPORTED_VERSION, format!("protocol version {version:?} is not supported"), data))
        }
        Some(_) if meta[CAPABILITIES].is_object() => Ok(true),
        Some(_) => lacks(CAPABILITIES),
    }
}

fn server_info() -> Value {
    json!({"name": NAME, "title": "Python Interpreter (mcp-py)", "version": VERSION})
}

/// A result as its era wants it. A modern client may keep a list: ours never vary while we run.
fn in_era(mut result: Value, modern: bool) -> Value {
    if modern {
        result["resultType"] = json!("complete");
        result["_meta"] = json!({"io.modelcontextprotocol/serverInfo": server_info()});
        if result.get("tools").or(result.get("supportedVersions")).is_some() {
            (result["ttlMs"], result["cacheScope"]) = (json!(CACHE_MS), json!("private"));
        }
    }
    result
}

// ── 5. The tools ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// One entry serves tools/list, the check of arguments and the call.
struct Tool {
    shown: Value, // as tools/list shows it
    run: Run,
}

#[derive(Clone, Copy)]
enum Run {
    /// In an interpreter, in turn: the `op` that its worker is asked for (worker.py has the protocol).
    Cell(&'static str),
    /// As an errand, for it looks at files or processes; with the arguments.
    Errand(fn(&Object) -> Outcome),
    /// As an errand, too, but in turn with what else concerns that interpreter; with the call's key. Whether it adds.
    InTurn(fn(u64, &Object, Turn) -> Outcome, bool),
}

/// The result of a tool; an error is a text for people.
type Outcome = Result<Value, String>;

type Object = Map<String, Value>;

fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

#[rustfmt::skip] // a table
static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| {
    let typed = |kind, description| json!({"type": kind, "description": description});
    let which = json!({"interpreter": typed("string", "Which one, \"builtin\" if left out; see list_interpreters.")});
    let interpreter = structure(&[
        ("string", "name source state"), ("boolean", "has_startup_script"), ("integer null", "pid"),
        ("string null", "python_path cwd description started_at uptime python_version"),
    ]);
    let session = structure(&[
        ("string null", "session_id project_dir socket_path transcript_path output_dir host"),
        ("integer null", "claude_pid host_pid"), ("integer", "server_pid"), ("boolean", "verified"),
        ("string", "started_at uptime version"),
    ]);
    let list = json!({"type": "array", "items": interpreter});
    let list = json!({"type": "object", "properties": {"result": list}, "required": ["result"]});
    vec![
        tool("execute", "Execute Python Code", "", Run::Cell("run"), &["code"], json!({
            "code": typed("string", "Python source, any number of lines."),
            "interpreter": which["interpreter"],
            "timeout": {"type": "number", "minimum": 0, "maximum": SECONDS.end(), "description":
                "Seconds the cell may run before it is interrupted; 0 = no limit. Default 600."},
        }), "\
Run Python code in a persistent interpreter. Variables, imports and functions stay until `reset`; the value of the \
last expression is part of the answer, so no print is needed. stdout, stderr and tracebacks come back as text, open \
matplotlib figures as images. Top-level `await` works. stdin is empty: input() fails at once. An exception, time-out \
or exit() ends the cell, not the interpreter; if its process dies, the answer says so and the variables are gone. \
Output over 25,000 characters is shown with its head and tail and ends with the path of a file that holds all of it."
        ).with("_meta", json!({"anthropic/maxResultSizeChars": RESULT_CHARS_HINT})),
        tool("reset", "Reset Python Scope", "destructive idempotent", Run::Cell("reset"), &[], which.clone(), "\
Delete all variables, functions and imports of an interpreter. Its process goes on."),
        tool("list_vars", "List Python Variables", "read-only", Run::Cell("list_vars"), &[], which, "\
The names defined in an interpreter, sorted; names that start with two underscores are left out."),
        tool("get_session_info", "Get Session Info", "read-only", Run::Errand(get_session_info), &[], json!({}), "\
This server's session: host process, project, output directory, transcript, uptime.").with("outputSchema", session),
        tool("add_interpreter", "Add External Interpreter", "", Run::InTurn(add_interpreter, true),
            &["name", "python_path"], json!({
            "name": typed("string", "1 to 64 of A-Z a-z 0-9 . _ -"),
            "python_path": typed("string", "The Python executable; may be relative to the project or start with ~."),
            "cwd": typed("string", "Working directory; may be relative to the project or start with ~."),
            "env": {"type": "object", "additionalProperties": {"type": "string"}, "description":
                "Environment variables to add, as an object of strings."},
            "startup_script": typed("string", "Python code to run at each start; if it raises, the start fails."),
            "description": typed("string", "What it is for."),
            "save": typed("boolean", "Keep it for later sessions. Default false."),
        }), "\
Start another Python, such as a project's virtual environment, beside the builtin one; then pass its name as \
`interpreter`. With save it is there in later sessions too. A running one may be added again with the same path. A \
saved one starts with its saved settings; what is given replaces them for this run.").with("outputSchema", interpreter),
        tool("stop_interpreter", "Stop Interpreter", "destructive", Run::InTurn(stop_interpreter, false),
            &["name"], json!({
            "name": typed("string", "Which one."),
            "remove": typed("boolean", "Also delete its saved configuration. Default false."),
        }), "\
End an interpreter's process: its variables are gone. A saved one stays in the list unless remove is true. The builtin \
one can't be stopped; use reset."),
        tool("list_interpreters", "List Interpreters", "read-only", Run::Errand(list_interpreters), &[], json!({}), "\
All interpreters: builtin, saved, added in this session, and those found in the project.").with("outputSchema", list),
    ]
});

/// An entry of the table: `hints` are the annotations that hold, `needs` the arguments that are required.
fn tool(name: &str, title: &str, hints: &str, run: Run, needs: &[&str], takes: Value, description: &str) -> Tool {
    let hint = |word| hints.contains(word);
    let input = json!({"type": "object", "properties": takes, "required": needs, "additionalProperties": false});
    let annotations = json!({"title": title, "readOnlyHint": hint("read-only"), "openWorldHint": false,
        "destructiveHint": hint("destructive"), "idempotentHint": hint("idempotent") || hint("read-only")});
    let shown = json!({"name": name, "title": title, "description": description, "inputSchema": input,
        "annotations": annotations});
    Tool { shown, run }
}

fn find_tool(name: &str) -> Option<&'static Tool> {
    TOOLS.iter().find(|tool| tool.shown["name"] == name)
}

/// What tools/list shows. It takes a `ps`: where a Claude on this machine is the host, it may use the client.
static TOOL_LIST: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let mut list: Vec<_> = TOOLS.iter().map(|tool| tool.shown.clone()).collect();
    if let (true, Value::String(text)) = (HOST.is_claude, &mut list[0]["description"]) {
        let own = || format!("{} client", env::current_exe().unwrap_or_default().display());
        let name = find_on_path("mcp-py-client").map_or_else(own, |_| "mcp-py-client".into());
        *text += &format!(" Code of several lines reads better as `{name} <<'PY' … PY` in the shell: the same Python.");
    }
    list
});

/// The schema of an object: its members' names under their types; all are required.
fn structure(members: &[(&str, &str)]) -> Value {
    let mut properties = Map::new();
    for (types, names) in members {
        let schema = json!({"type": types.split(' ').collect::<Vec<_>>()});
        properties.extend(names.split(' ').map(|name| (name.to_owned(), schema.clone())));
    }
    json!({"type": "object", "required": properties.keys().collect::<Vec<_>>(), "properties": properties})
}

impl Tool {
    fn with(mut self, member: &str, value: Value) -> Tool {
        self.shown[member] = value;
        self
    }

    /// The arguments, if they are what the schema says: else a text that names the argument, what was expected and
    /// what came. A null stands for an optional argument left out.
    fn check(&self, given: Object) -> Result<Object, String> {
        let (name, schema) = (self.shown["name"].as_str().unwrap_or_default(), &self.shown["inputSchema"]);
        let Some(properties) = schema["properties"].as_object() else { return Ok(given) };
        if let Some(unknown) = given.keys().find(|argument| !properties.contains_key(*argument)) {
            let known = properties.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(format!("{name}: unknown argument {unknown:?}; it takes: {known}"));
        }
        let variable = |(name, value): (&String, &Value)| {
            let fits = !name.is_empty() && !name.contains(['=', '\0']);
            fits && value.as_str().is_some_and(|value| !value.contains('\0'))
        };
        for (argument, property) in properties {
            let value = given.get(argument).unwrap_or(&Value::Null);
            let (fits, expected) = match property["type"].as_str() {
                Some("string") => (value.is_string(), "a string"),
                Some("boolean") => (value.is_boolean(), "true or false"),
                Some("number") => (value.as_f64().is_some_and(|n| SECONDS.contains(&n)), "a number, 0 to 10000000"),
                _ => (value.as_object().is_some_and(|env| env.iter().all(variable)), "an object of strings"),
            };
            let came = match value {
                Value::Null => "nothing".into(),
                _ if property["type"] == "object" => "something else".into(), // with secrets, perhaps
                value => keep_ends(&value.to_string(), VALUE_SHOWN_CHARS),
            };
            let required = schema["required"].as_array().is_some_and(|needs| needs.contains(&json!(argument)));
            let holds = fits || (value.is_null() && !required);
            ensure(holds, || format!("{name}: argument {argument:?} must be {expected}, got {came}"))?;
        }
        Ok(given)
    }
}

fn ensure(holds: bool, else_why: impl FnOnce() -> String) -> Result<(), String> {
    holds.then_some(()).ok_or_else(else_why)
}

/// What the system said, behind the path or program that it is about: for `map_err`.
fn about(what: impl AsRef<Path>) -> impl Fn(io::Error) -> String {
    move |error| format!("{}: {error}", what.as_ref().display())
}

/// A time limit in seconds from an argument, else from MCP_PY_TIMEOUT, else 600; None for 0: no limit.
fn limit_of(argument: Option<f64>) -> Option<Duration> {
    let seconds = argument.unwrap_or_else(|| seconds_from("MCP_PY_TIMEOUT", TIMEOUT_DEFAULT));
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds))
}

fn seconds_from(variable: &str, default: f64) -> f64 {
    let told = env::var(variable).ok().and_then(|value| value.parse().ok());
    told.filter(|seconds| SECONDS.contains(seconds)).unwrap_or(default)
}

fn start_limit() -> Duration {
    Duration::from_secs_f64(seconds_from("MCP_PY_START_TIMEOUT", START_LIMIT_DEFAULT))
}

/// A limit that waits; MCP_PY_HURRY divides it, so that its test takes no minute.
fn patience(limit: Duration) -> Duration {
    limit.div_f64(seconds_from("MCP_PY_HURRY", 1.0).max(1.0))
}

fn tool_text(text: &str, is_error: bool) -> Value {
    json!({"content": [{"type": "text", "text": text}], "isError": is_error})
}

/// Why there is no result. A client may hang up at a long line, so what a text quotes is not echoed whole.
fn refusal(why: &str) -> Value {
    tool_text(&keep_ends(why, RESULT_CHARS_HINT), true)
}

/// A structured result, and the same as text for clients that show that.
fn tool_structure(structure: Value) -> Outcome {
    let text = structure.to_string();
    Ok(json!({"content": [{"type": "text", "text": text}], "isError": false, "structuredContent": structure}))
}

fn get_session_info(_: &Object) -> Outcome {
    let (id, (since, at), _) = (HOST.session_id(), &*STARTED, &*PUBLISHED);
    let (output, socket) = ask(|server| {
        let output = server.desk.files.open().ok().map(|dir| dir.display().to_string());
        (output, server.bridge.as_ref().map(|bridge| bridge.reached().display().to_string()))
    })?;
    // Claude's name for a project among its transcripts
    let slug = PROJECT.dir.to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let transcript = |id: &String| Some(format!("{}/projects/{slug}/{id}.jsonl", config_dir()?.display()));
    tool_structure(json!({
        "session_id": id, "transcript_path": id.as_ref().and_then(transcript), "socket_path": socket,
        "project_dir": PROJECT.dir.to_string_lossy(), "verified": PROJECT.verified, "output_dir": output,
        "host": HOST.name, "host_pid": HOST.pid, "claude_pid": HOST.pid.filter(|_| HOST.is_claude),
        "server_pid": std::process::id(), "version": VERSION, "started_at": iso_time(*at), "uptime": uptime(*since),
    }))
}

fn list_interpreters(_: &Object) -> Outcome {
    let (known, unread) = known();
    unread.iter().for_each(|why| say(why)); // the rest of the list is still true
    let show = |(name, (source, config)): (String, Known)| (name.clone(), describe(&name, source, &config, None));
    let (running, ended): (Vec<_>, Vec<_>) = live()?.into_iter().partition(|(_, shown)| shown["state"] == "running");
    // Of one name the last counts.
    let mut listed: BTreeMap<_, _> = ended.into_iter().chain(known.into_iter().map(show)).chain(running).collect();
    let builtin = listed.remove(BUILTIN).map(|mut shown| {
        if shown["python_path"].is_null() {
            let python = python_of(&Object::new()); // here, not in the loop, for it looks at PATH (I2)
            shown["python_path"] = json!(python.ok().map(|path| path.display().to_string()));
        }
        shown
    });
    tool_structure(json!({"result": builtin.into_iter().chain(listed.into_values()).collect::<Vec<_>>()}))
}

fn add_interpreter(key: u64, arguments: &Object, turn: Turn) -> Outcome {
    let name = text(arguments, "name").unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(fits) && name != BUILTIN;
    ensure(good, || format!("name must be 1 to 64 of A-Z a-z 0-9 . _ -, not {BUILTIN:?}, got {name:?}"))?;
    let save = arguments.get("save") == Some(&json!(true));
    let (mut known, unread) = known();
    unread.filter(|_| save).map_or(Ok(()), Err)?; // what can't be read can't be written: it is said before the start
    let (known, given) = (known.remove(name), config_of(arguments));
    let named = name.to_owned();
    let (config, ran, changed, up) = ask(move |server| server.add(key, &named, known, given, save))??;
    drop(turn); // a stop, too, may come while it starts
    let take_turn = || {
        let named = name.to_owned();
        ask(move |server| server.turn(&named, true))?.recv().map_err(|_| SERVER_ENDS.to_owned())
    };
    if let Err(why) = up.recv().unwrap_or_else(|_| Err("the call was cancelled".into())) {
        let _turn = take_turn()?;
        stop(name, |one| one.waiting.is_empty() && !one.talk.up)?; // unless others wait for the same start
        return Err(format!("interpreter '{name}' could not be started: {why}"));
    }
    let _turn = save.then(take_turn).transpose()?; // what stopped it meanwhile may have removed it as well
    let named = name.to_owned();
    let shown = ask(move |server| server.interpreters.get(&named).and_then(Interpreter::shown))?;
    let mut shown = shown.ok_or_else(|| format!("interpreter '{name}' was stopped again"))?;
    if save {
        update_saved(|saved| {
            let entry = saved.remove(name).unwrap_or_default();
            let mut entry: Object = serde_json::from_value(entry).unwrap_or_default();
            // The original reads an entry only where it has all five, and `env` is an object.
            entry.extend(CONFIG_MEMBERS.map(|member| (member.to_owned(), json!(config.get(member)))));
            entry["env"] = config.get("env").cloned().unwrap_or_else(|| json!({}));
            saved.insert(name.to_owned(), entry.into());
        })
        .map_err(|why| format!("interpreter '{name}' runs, but was not saved: {why}"))?;
        shown["source"] = json!("saved");
        let named = name.to_owned();
        post(move |server| {
            if let Some(interpreter) = server.interpreters.get_mut(&named) {
                (interpreter.source, interpreter.config) = (Source::Saved, Some(config));
            }
        });
    }
    let became = if ran { "was running already" } else { "started" };
    let saved = if save { ", and is saved" } else { "" };
    let hint = match (ran && changed, save) {
        (false, _) => "",
        (true, true) => "; what is given holds from its next start",
        (true, false) => "; what is given beside its path has no effect",
    };
    shown["message"] = json!(format!("Interpreter '{name}' {became}{saved}{hint}"));
    tool_structure(shown)
}

fn stop_interpreter(_: u64, arguments: &Object, _turn: Turn) -> Outcome {
    let name = text(arguments, "name").unwrap_or_default();
    let remove = arguments.get("remove") == Some(&json!(true));
    ensure(name != BUILTIN, || "the interpreter \"builtin\" can't be stopped; reset clears it".into())?;
    let known = look_up(name).map(|(source, _)| source);
    ensure(!remove || known != Ok(Source::Discovered), || {
        format!("{name:?} is found in the project, not saved: it can be stopped, but not removed here")
    })?;
    let (was, last) = stop(name, |_| true)?;
    let what = if was.is_some_and(|(_, ran)| ran) { "stopped" } else { "was not running" };
    let became = match known.or_else(|why| was.map(|(source, _)| source).ok_or(why))? {
        Source::Saved if remove => {
            let kept = |why| format!("interpreter '{name}' {what}, but its saved configuration is still there: {why}");
            update_saved(|saved| _ = saved.remove(name)).map_err(kept)?;
            "its saved configuration is removed"
        }
        Source::Saved => "its saved configuration is kept",
        Source::Discovered => "it is found in the project and stays in the list",
        Source::Transient | Source::Builtin => "it was not saved, so it is gone from the list",
    };
    let last = last.map_or(String::new(), |last| format!("\n[mcp-py: {last}]"));
    Ok(tool_text(&format!("Interpreter '{name}' {what}; {became}{last}"), false))
}

type Stopped = (Option<(Source, bool)>, Option<String>);

/// Ends an interpreter and waits until it has left the table: STOP_GRACE and a little at most. Returns what it was and
/// whether it ran, None where it was not there or is to go on; and what it printed last. For errands that have a turn.
fn stop(name: &str, may: fn(&Interpreter) -> bool) -> Result<Stopped, String> {
    let (name, (send, gone)) = (name.to_owned(), mpsc::channel());
    let was = ask(move |server| {
        let interpreter = server.interpreters.get_mut(&name).filter(|one| may(one))?;
        let was = (interpreter.source, interpreter.runs());
        interpreter.when_gone.push(send);
        interpreter.leave_by.get_or_insert(Instant::now() + STOP_GRACE);
        interpreter.fail_waiting("the interpreter was stopped before this cell ran", &mut server.desk);
        Some(was)
    })?;
    Ok((was, gone.recv_timeout(2 * STOP_GRACE).ok())) // where it said nothing, its end is dropped
}

// ── 6. Interpreters ──────────────────────────────────────────────────────────────────────────────────────────────────
//
// An interpreter's life: `spawning`, then a `process`, of which `up` says that cells may come and `current` that one
// runs. What changes it: submit, spawned, the frames `ready` and `done`, exited.

/// A Python with a name: its configuration, the cells that wait for it, and its process while there is one.
#[derive(Default)]
struct Interpreter {
    name: String,
    source: Source,
    config: Option<Object>, // None until the first start has looked the name up
    waiting: VecDeque<Cell>,
    turn: Option<Turn>,               // that of the cell for which the name is to be looked up
    spawning: Option<(u64, Arc<()>)>, // the number of the keeper thread that starts a process, and its leash
    process: Option<Process>,
    talk: Talk,
    between: Output, // what came between two cells; outlives a process, like the notices (I4, I5)
    notices: [Vec<String>; 2], // what the next answer by MCP, by the bridge has to say of earlier processes
    suspect: bool,   // its environment's Python did not start: perhaps it does not run any more
    leave_by: Option<Instant>, // it is to end: an idle worker by itself until then, a busy one at once
    /// Not empty: it is to leave the table. These are dropped when it has; the first is told what it printed last.
    when_gone: Vec<mpsc::Sender<String>>,
}

#[rustfmt::skip]
#[derive(Clone, Copy, PartialEq, Debug, Default)]
enum Source { #[default] Builtin, Saved, Transient, Discovered }

/// Something for the worker to do, in turn.
struct Cell {
    key: u64,                  // the call's, by which it is cancelled
    request: Value,            // what the worker is asked; null for nothing, answered once the interpreter is up
    timeout: Option<Duration>, // counted from when it starts; None for no limit
}

const STARTUP: u64 = 0; // no call has this key

/// The cell that runs, or the startup script.
struct Current {
    key: u64,
    timeout: Option<Duration>,
    since: Instant,
    interrupt: Option<(String, Instant, i32)>, // why, since when, and the exit code for it
    again: Option<Instant>,                    // when SIGINT is sent next; None: it was not sent yet
    installer: Option<Arc<()>>,                // its leash
    output: Output,
}

/// An unreaped process (I8).
struct Process {
    child: Child,
    control: UnixStream, // non-blocking on our side
    pipes: [File; 2],    // the read ends of stdout and stderr
    started: (Instant, SystemTime),
    python: PathBuf,
    env: Option<PathBuf>, // the builtin's environment, where packages are installed
    said: Option<String>, // what there is to say of that
}

/// Where the conversation with a process stands.
#[derive(Default)]
struct Talk {
    version: Option<String>, // None until it is ready
    up: bool,                // it is ready and its startup script has run
    current: Option<Current>,
    out: Outbox,                  // what its socket has not taken yet
    frame: Vec<u8>,               // what it sent that is no whole line yet
    picture: String,              // base64, not complete yet
    closed: [bool; 2],            // nobody can write to stdout, stderr any more
    script: Ending,               // how the startup script failed
    hung_up: Option<Instant>,     // when it closed its control socket: it is leaving, or broken
    killed: Option<&'static str>, // why we killed it
}

/// How a cell ended, beside its output.
#[derive(Default)]
struct Ending {
    error: Option<String>,
    exit: i32, // not 0 is an error too
    notes: Vec<String>,
}

impl Server {
    /// The interpreter of this name, new where there was none, and what its methods need.
    fn interpreter(&mut self, name: &str) -> (&mut Interpreter, &mut Desk) {
        let enter = || {
            let config = (name == BUILTIN).then(Object::new);
            Interpreter { name: name.into(), config, ..Interpreter::default() }
        };
        (self.interpreters.entry(name.to_owned()).or_insert_with(enter), &mut self.desk)
    }

    /// Hands a call's cell to its interpreter, where a cancellation will look for it.
    fn run_cell(&mut self, name: &str, cell: Cell, turn: Option<Turn>) {
        let (interpreter, desk) = self.interpreter(name);
        desk.calls.get_mut(&cell.key).into_iter().for_each(|call| call.interpreter = Some(name.into()));
        interpreter.turn = turn;
        interpreter.submit(cell, desk);
        interpreter.turn = None; // what did not take it has no need of it
    }

    /// Starts what add_interpreter is to add, unless it runs. Returns its configuration, whether it ran, whether what
    /// was given changes that, and word of when it is up.
    fn add(&mut self, key: u64, name: &str, known: Option<Known>, given: Object, save: bool) -> Result<Added, String> {
        let (send, up) = mpsc::channel();
        self.desk.calls.get_mut(&key).ok_or("the call was cancelled")?.then = Some(send);
        let live = self.interpreters.get(name);
        let runs = live.is_some_and(Interpreter::runs);
        let live = live.and_then(|one| Some((one.source, one.config.clone()?)));
        // As paths, for these compare without `/./`.
        let path = |config: &Object| text(config, "python_path").map(PathBuf::from);
        // The arguments are laid over what runs under this name, is saved, or stopped in this session.
        let (source, mut config) = match if runs { live.or(known) } else { known.or(live) } {
            Some((source, config)) if path(&config) == path(&given) => (source, config),
            Some((source, config)) if runs || (source == Source::Saved && !save) => {
                let path = text(&config, "python_path").unwrap_or_default();
                let way = if runs { "runs: stop it with stop_interpreter" } else { "is saved: save=true replaces it" };
                return Err(format!("{name:?} is {path} and {way}, give that path, or choose another name"));
            }
            _ => (Source::Transient, Object::new()),
        };
        let changed = given.iter().any(|(member, value)| member != "python_path" && config.get(member) != Some(value));
        config.extend(given);
        if !runs {
            let (interpreter, _) = self.interpreter(name);
            (interpreter.source, interpreter.config) = (source, Some(config.clone()));
        }
        self.run_cell(name, Cell { key, request: Value::Null, timeout: None }, None);
        Ok((config, runs, changed, up))
    }

    /// A keeper thread has a process, or can't have one.
    fn spawned(&mut self, name: &str, number: u64, spawned: Result<(Source, Object, Process), String>) {
        let interpreter =
            self.interpreters.get_mut(name).filter(|one| one.spawning.as_ref().is_some_and(|(its, _)| *its == number));
        match (interpreter, spawned) {
            (Some(interpreter), Ok((source, config, mut process))) => {
                process.said.take().into_iter().for_each(|said| interpreter.notice(said));
                (interpreter.source, interpreter.config, interpreter.talk) = (source, Some(config), Talk::default());
                (interpreter.spawning, interpreter.process) = (None, Some(process));
                interpreter.send(WORKER.as_bytes());
            }
            (Some(interpreter), Err(why)) => {
                interpreter.spawning = None;
                interpreter.fail_waiting(&why, &mut self.desk);
                self.interpreters.retain(|_, one| one.runs() || one.config.is_some());
            }
            (None, Ok((_, _, mut process))) => _ = process.bury(None), // it took so long that nobody waits any more
            (None, Err(_)) => {}
        }
    }

    fn exited(&mut self, name: &str, pid: i32) {
        let interpreter = self.interpreters.get_mut(name);
        if let Some(interpreter) = interpreter.filter(|one| one.process.as_ref().map(Process::pid) == Some(pid)) {
            interpreter.bury(&mut self.desk);
            interpreter.next(&mut self.desk);
        }
    }
}

type Added = (Object, bool, bool, mpsc::Receiver<Result<(), String>>);

impl Interpreter {
    fn runs(&self) -> bool {
        self.process.is_some() || self.spawning.is_some()
    }

    /// As list_interpreters shows it; None while it is being looked up.
    fn shown(&self) -> Option<Value> {
        Some(describe(&self.name, self.source, self.config.as_ref()?, Some(self)))
    }

    /// Queues a cell; one that asks nothing has its answer at once where the worker is up, busy or not.
    fn submit(&mut self, cell: Cell, desk: &mut Desk) {
        if cell.request.is_null() && self.process.is_some() && self.talk.up {
            return desk.finish(cell.key, None, 0);
        }
        desk.cells_waiting += 1;
        self.waiting.push_back(cell);
        self.next(desk);
    }

    /// Starts what can be started: a process where there is none, or the next cell of one that has nothing to do. That
    /// is handed over once and for all (I3); what is in the pipes by now was written before it (I4).
    fn next(&mut self, desk: &mut Desk) {
        while !self.waiting.is_empty() && self.process.is_some() && self.talk.up && self.talk.current.is_none() {
            let Some(Cell { key, request, timeout }) = self.waiting.pop_front() else { return };
            desk.cells_waiting -= 1;
            if request.is_null() {
                desk.finish(key, None, 0);
                continue;
            }
            self.read_what_is_there(desk);
            self.begin(key, &request, timeout);
        }
        if !self.waiting.is_empty() && !self.runs() {
            self.launch(desk);
        }
    }

    fn begin(&mut self, key: u64, request: &Value, timeout: Option<Duration>) {
        self.send(format!("{request}\n").as_bytes());
        let (since, output) = (Instant::now(), Output::default());
        self.talk.current =
            Some(Current { key, timeout, since, interrupt: None, again: None, installer: None, output });
    }

    /// Has a keeper thread start a process: a Python on a dead mount holds up nobody else (I2). The thread stays until
    /// the exit, for on Linux the worker is killed when the thread that spawned it ends (I11).
    fn launch(&mut self, desk: &mut Desk) {
        if self.runs() || desk.closing {
            return;
        }
        let known = self.config.clone().map(|config| (self.source, config));
        let (name, number, suspect, held) = (self.name.clone(), desk.key(), self.suspect, Arc::new(()));
        let (leash, turn) = (Arc::downgrade(&held), self.turn.take());
        let keep = move || {
            let found = known.map_or_else(|| look_up(&name), Ok);
            let _turn = turn.filter(|_| found.is_err()); // who is next finds the same; else it lasts until that is told
            let spawned = found.and_then(|(source, mut config)| {
                let project = env::var("CLAUDE_PROJECT_DIR").ok().filter(|dir| Path::new(dir).is_dir());
                config.extend(project.filter(|_| name == BUILTIN).map(|dir| ("cwd".to_owned(), json!(dir))));
                let process = Process::spawn(&name, &config, suspect, Some(&leash))?;
                Ok((source, config, process))
            });
            let (named, pid) = (name.clone(), spawned.as_ref().ok().map(|(_, _, process)| process.pid()));
            post(move |server| server.spawned(&named, number, spawned));
            if let Some(pid) = pid {
                sys::wait_for_exit(pid);
                post(move |server| server.exited(&name, pid));
            }
        };
        match start_thread("keeper", keep) {
            Ok(()) => self.spawning = Some((number, held)),
            Err(why) => self.fail_waiting(&why, desk),
        }
    }

    /// Answers those that wait with an error.
    fn fail_waiting(&mut self, why: &str, desk: &mut Desk) {
        desk.cells_waiting -= self.waiting.len();
        let exit = if self.config.is_none() { EXIT_UNKNOWN } else { EXIT_FAILED };
        self.waiting.drain(..).for_each(|cell| desk.finish(cell.key, Some(why), exit));
    }

    /// Interrupts the cell with this key, or takes it out of the queue; without a key whichever runs. Returns whether.
    fn interrupt(&mut self, key: Option<u64>, desk: &mut Desk) -> bool {
        if let Some(current) = self.talk.current.as_mut().filter(|current| key.is_none_or(|key| key == current.key)) {
            current.interrupt.get_or_insert_with(|| ("interrupted".into(), Instant::now(), EXIT_INTERRUPTED));
            return true;
        }
        let place = self.waiting.iter().position(|cell| Some(cell.key) == key);
        place.and_then(|place| self.waiting.remove(place)).inspect(|_| desk.cells_waiting -= 1).is_some()
    }

    /// Whether it leaves the table now; a process that is still being spawned is not waited for. What it printed last
    /// is told (I4).
    fn has_gone(&mut self, now: Instant, desk: &mut Desk) -> bool {
        let late = self.leave_by.is_some_and(|end| end + KILL_LIMIT <= now);
        let gone = !self.when_gone.is_empty() && self.process.is_none() && (self.spawning.is_none() || late);
        let last = if gone { self.between.as_note(&mut desk.files) } else { None };
        last.into_iter().for_each(|last| _ = self.when_gone[0].send(last));
        gone
    }

    /// What the clock asks for; returns when to look again. Every SIGINT is sent here, and what time asks for (I8).
    fn tick(&mut self, now: Instant, desk: &mut Desk) -> Instant {
        let told =
            self.waiting.iter().filter_map(|cell| desk.report(cell.key, now, 0, || "waiting for its turn".into()));
        let mut next = told.fold(now + IDLE_TICK, Instant::min);
        let Talk { version, up, current, hung_up, killed, .. } = &mut self.talk;
        let Some(process) = &self.process else {
            let late = self.leave_by.filter(|_| self.spawning.is_some()).map(|end| end + KILL_LIMIT);
            return late.map_or(next, |end| next.min(end));
        };
        if killed.is_some() {
            return next; // its exit wakes us
        }
        let busy = !*up || current.is_some();
        if let Some(Current { key, timeout, since, interrupt, again, installer, output }) = current {
            let told = desk.report(*key, now, output.chars(), || output.last_line());
            let end = timeout.filter(|_| interrupt.is_none()).map(|timeout| *since + timeout);
            if let (Some(timeout), true) = (timeout, end.is_some_and(|end| end <= now)) {
                let why = format!("interrupted after its timeout of {} s", timeout.as_secs_f64());
                *interrupt = Some((why, now, EXIT_TIMEOUT));
            }
            if interrupt.is_some() && again.is_none_or(|again| again <= now) {
                // Once to the group; then to the worker alone, for its children have had theirs.
                sys::signal(process.pid(), libc::SIGINT, again.is_none());
                (*again, *installer) = (Some(now + INTERRUPT_AGAIN), None);
            }
            next = [told, end.filter(|end| *end > now), *again].into_iter().flatten().fold(next, Instant::min);
        }
        if self.leave_by.is_some() {
            let _ = process.control.shutdown(std::net::Shutdown::Write); // a second time it has no effect
        }
        let starts_until = version.is_none().then(|| process.started.0 + start_limit());
        let interrupted = current.as_ref().and_then(|current| current.interrupt.as_ref());
        let ends = [
            (self.leave_by.map(|end| if busy { now } else { end }), "it was stopped"),
            (hung_up.map(|since| since + HUNG_UP_GRACE), "its control socket was closed"),
            (interrupted.map(|(_, at, _)| *at + INTERRUPT_GRACE), "the cell did not end within 5 s of its interrupt"),
            (starts_until, "it took too long to start (MCP_PY_START_TIMEOUT)"),
        ];
        for (end, why) in ends.into_iter().filter_map(|(end, why)| Some((end?, why))) {
            next = next.min(end);
            if end <= now {
                self.kill(why);
            }
        }
        next
    }

    fn kill(&mut self, why: &'static str) {
        self.process.iter().for_each(Process::kill_group);
        self.talk.killed.get_or_insert(why);
    }

    /// What poll is to look at: control socket, stdout, stderr.
    fn watch(&self) -> Option<[libc::pollfd; 3]> {
        let (process, talk) = (self.process.as_ref()?, &self.talk);
        let pipe =
            |at: usize| sys::watch(if talk.closed[at] { -1 } else { process.pipes[at].as_raw_fd() }, libc::POLLIN);
        let control = if talk.hung_up.is_some() { -1 } else { process.control.as_raw_fd() };
        Some([talk.out.watch(control, libc::POLLIN), pipe(0), pipe(1)])
    }

    /// Poll has something. The pipes first: reading a result reads them empty, and then this would wait for more.
    fn attend(&mut self, ready: &[libc::pollfd], desk: &mut Desk) {
        for stream in (0..2).filter(|stream| ready[stream + 1].revents != 0) {
            self.read_pipe(stream, PIPE_BYTES, desk);
        }
        if ready[0].revents != 0 {
            self.send(&[]);
            self.read_control(desk);
        }
    }

    /// Sends as much as the socket takes; the rest when there is room (I2).
    fn send(&mut self, bytes: &[u8]) {
        if let Some(process) = &self.process {
            self.talk.out.flush(process.control.as_raw_fd());
            self.talk.out.push(process.control.as_raw_fd(), bytes, None);
        }
    }

    fn read_control(&mut self, desk: &mut Desk) {
        let (Some(process), talk) = (&mut self.process, &mut self.talk) else { return };
        match process.control.read(&mut desk.buffer) {
            Ok(count @ 1..) => talk.frame.extend_from_slice(&desk.buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => talk.hung_up = talk.hung_up.or(Some(Instant::now())),
        }
        let mut good = talk.frame.len() <= FRAME_BYTES_MAX;
        while let (true, Some(end)) = (good, self.talk.frame.iter().position(|byte| *byte == b'\n')) {
            let rest = self.talk.frame.split_off(end + 1);
            let line = mem::replace(&mut self.talk.frame, rest);
            good = serde_json::from_slice(&line).is_ok_and(|frame| self.take_frame(&frame, desk));
        }
        if !good {
            self.kill("its control socket carried what no worker sends");
        }
    }

    /// False for a frame that our worker never sends.
    fn take_frame(&mut self, frame: &Value, desk: &mut Desk) -> bool {
        let text = |name: &str| frame[name].as_str().map(str::to_owned);
        match frame["op"].as_str() {
            Some("ready") if self.talk.version.is_none() => {
                (self.talk.version, self.suspect) = (text("version").or(Some(String::new())), false);
                let config = self.config.as_ref();
                match config.and_then(|config| config.get("startup_script")).filter(|script| script.is_string()) {
                    Some(script) => self.begin(STARTUP, &json!({"op": "startup", "code": script}), limit_of(None)),
                    None => self.talk.up = true,
                }
            }
            Some("part") => self.take_result(&text("text").unwrap_or_default(), false, desk),
            Some("image") => {
                if self.talk.picture.len() <= PICTURE_BYTES_MAX {
                    self.talk.picture += frame["data"].as_str().unwrap_or_default();
                }
                if frame["more"] != true {
                    self.read_what_is_there(desk); // the notes come behind what was printed before
                    self.take_picture(desk);
                }
            }
            Some("install") => {
                let name = text("name").unwrap_or_default();
                if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                    return false; // an installer may take it for an option
                }
                self.read_what_is_there(desk);
                self.install(frame["number"].clone(), name, desk);
            }
            Some("done") => return self.cell_ended(text("result"), text("error"), frame, desk),
            _ => return false,
        }
        self.next(desk);
        true
    }

    fn cell_ended(&mut self, result: Option<String>, error: Option<String>, frame: &Value, desk: &mut Desk) -> bool {
        // Everything that the cell wrote is in the pipes by now (I4); what comes later is not its own.
        self.read_what_is_there(desk);
        self.take_result(&result.unwrap_or_default(), true, desk);
        let Some(Current { key, interrupt, output, .. }) = self.talk.current.take() else { return false };
        let notes = frame["notes"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let notes = notes.chain(frame["missing"].as_str().map(|module| self.by_hand(module)));
        let (exit, interrupted) = match interrupt {
            Some((why, _, exit)) => (exit, Some(why + "; the variables are kept")),
            None => (frame["exit"].as_i64().unwrap_or(1) as i32, None),
        };
        let ending = Ending { error, exit, notes: notes.chain(interrupted).collect() };
        self.talk.picture.clear();
        if key == STARTUP && (exit != 0 || ending.error.is_some()) {
            self.talk.script = ending;
            self.kill("its startup script failed");
            return true;
        }
        self.talk.up = true;
        self.next(desk); // first: it runs while we write
        if key != STARTUP {
            self.answer(key, output, ending, desk);
        }
        true
    }

    /// Gives a cell its answer, with what there is to say of the time before it. False: nobody wanted it any more, so
    /// the next answer has to say that.
    fn answer(&mut self, key: u64, mut output: Output, ending: Ending, desk: &mut Desk) -> bool {
        let door = desk.door(key);
        let mut notes = self.notices[door].clone();
        notes.extend(self.between.as_note(&mut desk.files));
        let delivered = desk.conclude(key, &mut output, ending, notes);
        if delivered {
            (self.notices[door], self.between) = Default::default();
        }
        delivered
    }

    /// Something to say in the next answer by each of the two doors (I5): who comes by one may not know of the other.
    fn notice(&mut self, text: String) {
        for notices in &mut self.notices {
            notices.drain(..(notices.len() + 1).saturating_sub(NOTICES_MAX));
            notices.push(text.clone());
        }
    }

    /// A result, or a piece of one that is long: that is sent on at once, for only its ends are kept.
    fn take_result(&mut self, text: &str, whole: bool, desk: &mut Desk) {
        let Some(Current { key, output, .. }) = &mut self.talk.current else { return };
        let short = whole && output.streams[RESULT].chars == 0 && text.len() <= HEAD_BYTES;
        output.take(RESULT, text.as_bytes(), &mut desk.files);
        if !short {
            output.sent_result = true;
            desk.stream(*key, 0, mem::take(&mut output.lead).as_bytes());
            desk.stream(*key, RESULT, text.as_bytes());
        }
    }

    /// Reads once from a pipe, up to `limit` bytes, into the output that they belong to; 0 at the pipe's end.
    fn read_pipe(&mut self, stream: usize, limit: usize, desk: &mut Desk) -> usize {
        let Some(process) = &mut self.process else { return 0 };
        let mut buffer = mem::take(&mut desk.buffer);
        let count = process.pipes[stream].read(&mut buffer[..limit.min(PIPE_BYTES)]).unwrap_or(0);
        self.talk.closed[stream] = count == 0;
        match &mut self.talk.current {
            Some(current) if self.talk.up => {
                current.output.take(stream, &buffer[..count], &mut desk.files);
                desk.stream(current.key, stream, &buffer[..count]);
            }
            _ => self.between.take(stream, &buffer[..count], &mut desk.files),
        }
        desk.buffer = buffer;
        count
    }

    /// Reads what the pipes hold now, and no more: another process may go on writing.
    fn read_what_is_there(&mut self, desk: &mut Desk) {
        for stream in 0..2 {
            let pipe = self.process.as_ref().map(|process| &process.pipes[stream]);
            let mut left = pipe.map_or(0, sys::bytes_readable);
            while left > 0 {
                let count = self.read_pipe(stream, left, desk);
                left = if count == 0 { 0 } else { left - count };
            }
        }
    }

    /// After the exit: its last words are read, it is reaped, and everyone concerned is told (I5).
    fn bury(&mut self, desk: &mut Desk) {
        (0..FRAME_BYTES_MAX / PIPE_BYTES).for_each(|_| self.read_control(desk)); // a result it sent just before counts
        self.process.iter().for_each(Process::kill_group);
        self.read_what_is_there(desk);
        let (Some(mut process), talk) = (self.process.take(), mem::take(&mut self.talk)) else { return };
        let (cause, name) = (process.bury(talk.killed), &self.name);
        let failed = process.env.is_some() && talk.version.is_none() && talk.killed.is_none();
        if failed && !mem::replace(&mut self.suspect, true) {
            self.between = Output::default();
            return; // the caller starts another, which looks at the environment first
        }
        if !talk.up {
            // For those who wait there is nothing to run on.
            let printed = mem::take(&mut self.between).tell(talk.script, Vec::new(), false, &mut desk.files).text();
            let why = format!("interpreter '{name}' did not start: it {cause}\n{printed}");
            return self.fail_waiting(why.trim_end(), desk);
        }
        let died = format!("interpreter '{name}' {cause}; its variables are gone");
        let Some(Current { key, interrupt, output, .. }) = talk.current else {
            if self.leave_by.is_none() {
                self.notice(format!("before this cell, {died}; this is a new process"));
            }
            return;
        };
        let (exit, note) = match interrupt {
            Some((why, _, EXIT_TIMEOUT)) => (EXIT_TIMEOUT, format!("{why}; {died}")),
            Some((why, ..)) => (EXIT_DIED, format!("{why}; {died}")),
            None => (EXIT_DIED, died.clone()),
        };
        let ending = Ending { error: None, exit, notes: vec![note] };
        let (door, told) = (desk.door(key), self.answer(key, output, ending, desk));
        self.notice(format!("before this cell, {died}; this is a new process"));
        if told {
            self.notices[door].clear(); // it knows by now
        }
    }
}

impl Process {
    /// May take its time.
    fn spawn(name: &str, config: &Object, suspect: bool, leash: Option<&Leash>) -> Result<Process, String> {
        let base = check_config(config)?;
        let private = match text(config, "python_path") {
            None => environment(&base, text(config, "cwd"), suspect, leash).map(Some),
            Some(_) => Ok(None),
        };
        static SAID: OnceLock<()> = OnceLock::new();
        let (python, env, said) = match private {
            Ok(Some((env, said))) => (env.join("bin/python"), Some(env), said),
            Ok(None) => (base, None, None),
            Err(why) => (base, None, SAID.set(()).ok().map(|()| format!("missing packages can't be installed: {why}"))),
        };
        let failed = |error: io::Error| format!("{} could not be started: {error}", python.display());
        let (control, workers_end) = UnixStream::pair().map_err(failed)?;
        control.set_nonblocking(true).map_err(failed)?;
        let given = config.get("env").and_then(Value::as_object).into_iter().flatten();
        let mut command = Command::new(&python);
        command.arg("-c").arg(bootstrap()).envs(given.filter_map(|(name, value)| Some((name, value.as_str()?))));
        command.env("MCP_PY_INTERPRETER", format!("{}:{name}", std::process::id()));
        command.stdin(OwnedFd::from(workers_end)).stdout(Stdio::piped()).stderr(Stdio::piped());
        text(config, "cwd").into_iter().for_each(|cwd| _ = command.current_dir(cwd));
        sys::own_session(&mut command);
        let mut child = match command.spawn() {
            // Like one that dies at its start: it is looked at first, and once.
            Err(_) if env.is_some() && !suspect => return Process::spawn(name, config, true, leash),
            spawned => spawned.map_err(failed)?,
        };
        let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else { return Err("no pipes".into()) };
        sys::widen_pipe(&out, PIPE_BYTES);
        let pipes = [OwnedFd::from(out).into(), OwnedFd::from(err).into()];
        Ok(Process { child, control, pipes, started: (Instant::now(), SystemTime::now()), python, env, said })
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn kill_group(&self) {
        sys::signal(self.pid(), libc::SIGKILL, true);
    }

    /// Kills the group while its leader still holds the name, then reaps the leader (I8). Returns how it ended.
    fn bury(&mut self, killed: Option<&str>) -> String {
        self.kill_group();
        match (killed, self.child.wait()) {
            (Some(why), _) => format!("was killed: {why}"),
            (None, Ok(status)) => describe_exit(status),
            (None, Err(error)) => format!("ended; how is not known: {error}"),
        }
    }
}

/// What the worker's process is told to do first, in one line that `ps` shows: take the project off the import path,
/// then read the worker's source from descriptor 0, exactly as many bytes as it has, and run it with a namespace and
/// builtins of its own. A buffer of 1 keeps `read` from taking more than it was asked for.
fn bootstrap() -> String {
    format!(
        "import sys; path = sys.path[:]; sys.path[:] = [entry for entry in path if entry]; \
         sys.version_info < (3, 8) and sys.exit('mcp-py needs Python 3.8 or newer, not ' + sys.version.split()[0]); \
         import io, builtins; exec(compile(io.BufferedReader(io.FileIO(0, closefd=False), 1).read({}), \
         '<mcp-py worker>', 'exec'), {{'__name__': 'mcp_py_worker', '__builtins__': dict(vars(builtins)), \
         'LAUNCH_PATH': path}})",
        WORKER.len()
    )
}

fn describe_exit(status: ExitStatus) -> String {
    let Some(number) = status.signal() else {
        return format!("exited with code {}", status.code().unwrap_or_default());
    };
    let told = status.to_string(); // signal: 9 (SIGKILL)
    let name = told.split(['(', ')']).find(|word| word.starts_with("SIG"));
    let name = name.map_or_else(|| format!("signal {number}"), str::to_owned);
    let hint = if number == libc::SIGKILL { " (by hand, or by the kernel for lack of memory)" } else { "" };
    format!("was killed by {name}{hint}")
}

// ── 7. Output and its files ──────────────────────────────────────────────────────────────────────────────────────────

const RESULT: usize = 2; // the stream after stdout and stderr: the result's repr

/// What a cell printed: its ends in memory, the whole in a file once it is longer than an answer can be.
#[derive(Default)]
struct Output {
    streams: [Ends; 3], // stdout, stderr, result
    log: Vec<u8>,       // everything in the order of arrival, until there is a file
    spool: Option<Spool>,
    last: (usize, bool), // the stream that was written last, and whether it ended within a line
    lead: &'static str,  // what stdout needs before the result
    sent_result: bool,   // it is long, and went out to a stream as it came
}

/// A file of output.
struct Spool {
    path: PathBuf,
    file: Option<File>,      // open until writing failed or the limit was reached
    size: u64,               // bytes
    trouble: Option<String>, // what to say of it besides its path
}

/// A stream without its middle.
#[derive(Default)]
struct Ends {
    kept: Vec<u8>, // the first HEAD_BYTES and at least the last TAIL_BYTES
    chars: u64,    // Unicode scalar values of the whole
}

impl Ends {
    fn take(&mut self, bytes: &[u8]) {
        // All bytes but the continuation bytes of UTF-8; chunks short enough for a u8 count make this run on vectors.
        let count = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(byte & 0xc0 != 0x80)).sum::<u8>();
        self.chars += bytes.chunks(128).map(|chunk| u64::from(count(chunk))).sum::<u64>();
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > HEAD_BYTES + 4 * TAIL_BYTES {
            self.kept.drain(HEAD_BYTES..self.kept.len() - TAIL_BYTES);
        }
    }

    /// What is kept, without its last newline.
    fn text(&self) -> Option<String> {
        (!self.kept.is_empty()).then(|| escaped(self.kept.strip_suffix(b"\n").unwrap_or(&self.kept)))
    }
}

/// Bytes as text: those that are not UTF-8 become escapes.
fn escaped(bytes: &[u8]) -> String {
    bytes.utf8_chunks().map(|chunk| format!("{}{}", chunk.valid(), chunk.invalid().escape_ascii())).collect()
}

/// How many bytes at the end begin a character that is not complete.
fn cut_character(bytes: &[u8]) -> usize {
    let is_begun = |end: &[u8]| {
        let error = std::str::from_utf8(end).err();
        error.is_some_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=bytes.len().min(3)).find(|count| is_begun(&bytes[bytes.len() - count..])).unwrap_or(0)
}

/// `text` itself, or its two ends and between them how much is left out.
fn keep_ends(text: &str, chars_max: usize) -> String {
    match text.chars().count() {
        chars if chars <= chars_max => text.to_owned(),
        chars => cut_middle(text, chars_max / 2, chars as u64),
    }
}

/// Two ends of `text`, which has `chars` characters, or had them before its middle was dropped.
fn cut_middle(text: &str, end: usize, chars: u64) -> String {
    let left_out = grouped(chars.saturating_sub(2 * end as u64));
    format!("{} … {left_out} characters left out … {}", first_chars(text, end), last_chars(text, end))
}

fn first_chars(text: &str, count: usize) -> &str {
    text.char_indices().nth(count).map_or(text, |(end, _)| &text[..end])
}

fn last_chars(text: &str, count: usize) -> &str {
    let last = |before: usize| text.char_indices().rev().nth(before).map_or(text, |(start, _)| &text[start..]);
    count.checked_sub(1).map_or("", last)
}

/// A number with commas between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}

impl Output {
    fn take(&mut self, stream: usize, bytes: &[u8], files: &mut OutputFiles) {
        let Some(last_byte) = bytes.last() else { return };
        if stream == RESULT && self.last.0 != RESULT {
            let within_line = self.streams[0].kept.last().is_some_and(|byte| *byte != b'\n');
            self.lead = if within_line { "\n" } else { "" };
            if self.last.1 {
                self.take(self.last.0, b"\n", files); // in the answer the result has lines of its own, in the file too
            }
        }
        self.streams[stream].take(bytes);
        self.last = (stream, *last_byte != b'\n');
        match &mut self.spool {
            Some(spool) => spool.write(bytes, files),
            None => self.log.extend_from_slice(bytes),
        }
        if self.log.len() > HEAD_BYTES {
            self.spool(files);
        }
    }

    fn chars(&self) -> u64 {
        self.streams.iter().map(|stream| stream.chars).sum()
    }

    /// The file, now if not before, where the log moves to then.
    fn spool(&mut self, files: &mut OutputFiles) -> &mut Spool {
        let log = mem::take(&mut self.log);
        self.spool.get_or_insert_with(|| {
            let time = iso_time(SystemTime::now()).replace(['-', ':', 'Z'], "").replace('T', "_");
            let mut spool = Spool { path: "none".into(), file: None, size: 0, trouble: None };
            match files.create(|count| format!("output_{time}_{count:03}.txt")) {
                Ok((path, file)) => (spool.path, spool.file) = (path, Some(file)),
                Err(why) => spool.trouble = Some(format!("the full output is in no file: {why}")),
            }
            spool.write(&log, files);
            spool
        })
    }

    /// The last line that was printed, for progress.
    fn last_line(&self) -> String {
        let kept = &self.streams[self.last.0].kept;
        let text = String::from_utf8_lossy(&kept[kept.len().saturating_sub(4 * PROGRESS_MESSAGE_CHARS)..]);
        let line = text.rsplit(['\n', '\r']).map(str::trim).find(|line| !line.is_empty());
        last_chars(line.unwrap_or_default(), PROGRESS_MESSAGE_CHARS).to_owned()
    }

    /// What there is to tell of a cell; `full`: nothing is cut.
    fn tell(&mut self, ending: Ending, mut notes: Vec<String>, full: bool, files: &mut OutputFiles) -> Told {
        let [stdout, stderr, result] = self.streams.each_ref().map(Ends::text);
        let spawned = |text: &String| {
            ["Can't get attribute", "__main__", "multiprocessing"].iter().all(|sign| text.contains(sign))
        };
        let hint = stderr.iter().chain(&ending.error).any(spawned).then(|| SPAWN_HINT.to_owned());
        notes.extend(ending.notes.into_iter().chain(hint));
        let mut printed: Vec<_> = stdout.into_iter().chain(stderr).collect();
        let all = printed.iter().chain(&result).map(String::as_str).collect::<Vec<_>>().join("\n");
        let (shown, mut cut) = (all.chars().count(), None);
        if shown > TEXT_CHARS_MAX && !full {
            // A stream that lost its middle has more than the ends need on both sides of it. Bytes that are no text are
            // counted as what they are shown as.
            let (rule, chars, spool) = ("=".repeat(50), self.chars().max(shown as u64), self.spool(files));
            let (size, left_out) = (grouped(chars), grouped(chars - TEXT_CHARS_MAX as u64));
            notes.extend(spool.trouble.take());
            let (head, tail) = (first_chars(&all, HEAD_CHARS), last_chars(&all, TAIL_CHARS));
            printed = vec![format!("{head}\n[mcp-py: … {left_out} characters left out …]\n{tail}\n")];
            let path = spool.path.display();
            let facts = format!("# OUTPUT TRUNCATED\n# Original size: {size} chars\n# Full output: {path}");
            cut = Some(format!("{rule}\n{facts}\n{rule}"));
        }
        let notes = notes.iter().map(|note| format!("[mcp-py: {}]", keep_ends(note, NOTE_CHARS_MAX))).collect();
        Told { printed, cut, notes, result, error: ending.error }
    }

    /// The last TAIL_CHARS that a stream has not sent, as events, each under its own name and behind a mark where more
    /// is left out.
    fn tails(&self, sent: [u64; 3]) -> Vec<Value> {
        let mut room = TAIL_CHARS as u64;
        let tail = |stream: usize| {
            let text = escaped(&self.streams[stream].kept);
            let unsent = self.streams[stream].chars.max(text.chars().count() as u64).saturating_sub(sent[stream]);
            let shown = unsent.min(room);
            room -= shown;
            let left_out = grouped(unsent - shown);
            let mark = format!("\n[mcp-py: … {left_out} characters left out …]\n");
            let mark = if unsent > shown { &mark } else { "" };
            let tail = || json!({ STREAMS[stream]: format!("{mark}{}", last_chars(&text, shown as usize)) });
            (unsent > 0).then(tail)
        };
        let [result, stderr, stdout] = [RESULT, 1, 0].map(tail);
        [stdout, stderr, result].into_iter().flatten().collect()
    }

    /// What was printed between cells, as a note in the next one's answer.
    fn as_note(&mut self, files: &mut OutputFiles) -> Option<String> {
        let mut text = self.streams.iter().filter_map(Ends::text).collect::<Vec<_>>().join("\n");
        let (chars, most) = (self.chars().max(text.chars().count() as u64), NOTE_CHARS_MAX / 2);
        let mut whole = String::new();
        if chars > most as u64 {
            text = cut_middle(&text, most / 2, chars);
            whole = format!(", whole in {}", self.spool(files).path.display());
        }
        let size = grouped(chars);
        (chars > 0).then(|| format!("output from between the cells, {size} chars{whole}:\n{text}\n"))
    }
}

impl Spool {
    fn write(&mut self, bytes: &[u8], files: &mut OutputFiles) {
        let Some(file) = &mut self.file else { return };
        let room = (CELL_FILE_BYTES_MAX - self.size).min(bytes.len() as u64);
        self.size += room;
        if files.grow(&self.path, room) {
            self.trouble = Some("older output files were removed: a session keeps 4 GiB of them".into());
        }
        let over = match file.write_all(&bytes[..room as usize]) {
            Err(error) => format!("the file is not complete: {error}"),
            Ok(()) if room < bytes.len() as u64 => "the file holds the first 1 GiB only".into(),
            Ok(()) => return,
        };
        (self.file, self.trouble) = (None, Some(over));
    }
}

/// The parts of an answer.
struct Told {
    printed: Vec<String>, // stdout and stderr; of a long answer, with its result, the ends
    cut: Option<String>,  // the block about a long one
    notes: Vec<String>,
    result: Option<String>,
    error: Option<String>,
}

impl Told {
    fn text(self) -> String {
        let result = self.result.filter(|_| self.cut.is_none());
        let parts = self.printed.into_iter().chain(self.cut).chain(self.notes).chain(result).chain(self.error);
        parts.collect::<Vec<_>>().join("\n")
    }
}

const SPAWN_HINT: &str =
    "multiprocessing by spawn or forkserver starts a new Python, which does not see what cells define: \
put the function into a module file, or use multiprocessing.get_context('fork')";

/// The session's output files, in a directory of our own.
///
/// The directory is held by flock(2) for as long as we live: whoever gets the lock may remove it, for its server is
/// dead. A pid in its name would lie as soon as pids repeat, across reboots or containers that share /tmp.
#[derive(Default)]
struct OutputFiles {
    dir: Option<(PathBuf, File)>,
    count: u32,
    kept: VecDeque<(PathBuf, u64)>, // with their sizes, oldest first
}

impl OutputFiles {
    /// The directory, made now if it is not there (any more).
    fn open(&mut self) -> Result<PathBuf, String> {
        if let Some((path, held)) = self.dir.take_if(|(path, held)| is_same_file(path, held)) {
            return Ok(self.dir.insert((path, held)).0.clone());
        }
        let (parent, mut why) = (temp_dir(), ErrorKind::ResourceBusy.into());
        // Another server may take the directory for a dead one's before we hold it: then the next try.
        for attempt in 0..16u32 {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
            let unique = time ^ std::process::id().rotate_left(12) ^ attempt << 28;
            let path = parent.join(format!("{OUTPUT_DIR}{unique:08x}"));
            match DirBuilder::new().mode(0o700).create(&path).map(|()| hold_dir(&path)) {
                Err(error) => why = error,
                Ok(None) => drop(fs::remove_dir(&path)),
                Ok(Some(held)) => return Ok(self.dir.insert((path, held)).0.clone()),
            }
        }
        Err(format!("no output directory in {}: {why}", parent.display()))
    }

    /// A file that is gone when it is closed.
    fn unnamed(&mut self) -> io::Result<File> {
        let path = self.open().map_err(io::Error::other)?.join("stream");
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        Ok(file)
    }

    /// A new file; its name is made of its number.
    fn create(&mut self, name: impl FnOnce(u32) -> String) -> Result<(PathBuf, File), String> {
        let dir = self.open()?;
        self.count += 1;
        let path = dir.join(name(self.count));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
        self.kept.push_back((path.clone(), 0));
        Ok((path, file))
    }

    /// Counts bytes that are about to be written; true where older files had to go for them.
    fn grow(&mut self, path: &Path, bytes: u64) -> bool {
        self.kept.iter_mut().filter(|(kept, _)| kept == path).for_each(|(_, size)| *size += bytes);
        let mut removed = false;
        while self.kept.iter().map(|(_, size)| size).sum::<u64>() > SESSION_FILE_BYTES_MAX {
            let oldest = self.kept.iter().position(|(kept, _)| kept != path);
            let Some((old, _)) = oldest.and_then(|oldest| self.kept.remove(oldest)) else { break };
            removed |= fs::remove_file(old).is_ok();
        }
        removed
    }

    fn remove(&mut self) {
        self.dir.take().map(|(path, _held)| fs::remove_dir_all(path));
    }
}

/// TMPDIR, or /tmp where that does not exist (any more).
fn temp_dir() -> PathBuf {
    Some(env::temp_dir()).filter(|dir| dir.exists()).unwrap_or_else(|| "/tmp".into())
}

/// Opens and locks a directory of ours that nobody holds and that is still the one of this name.
fn hold_dir(path: &Path) -> Option<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let held = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let ours = held.metadata().ok()?.uid() == sys::user_id();
    (ours && sys::try_lock(&held) && is_same_file(path, &held)).then_some(held)
}

fn is_same_file(path: &Path, open: &File) -> bool {
    let (Ok(named), Ok(open)) = (fs::symlink_metadata(path), open.metadata()) else { return false };
    (named.dev(), named.ino()) == (open.dev(), open.ino())
}

/// Takes away what servers of this user left that were killed: output directories, sockets. A socket that was bound a
/// moment ago may refuse only because nobody listens yet.
fn remove_the_dead() {
    for path in sockets() {
        let old = |is: &fs::Metadata| is.modified().ok()?.elapsed().ok().filter(|age| *age > REQUEST_LIMIT);
        let ours = |is: fs::Metadata| is.uid() == sys::user_id() && old(&is).is_some();
        if fs::symlink_metadata(&path).is_ok_and(ours) && is_dead(&path) {
            let _ = fs::remove_file(&path);
        }
    }
    for entry in fs::read_dir(temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(OUTPUT_DIR.as_bytes()) && hold_dir(&entry.path()).is_some() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

// ── 8. The builtin's environment and packages ────────────────────────────────────────────────────────────────────────
//
// The builtin runs in a venv of its own, made once from the base Python: what that has is there, and what is installed
// leaves it as it is. A cell's import of what nobody finds is asked of us (worker.py decides which), and uv or pip
// installs it. What a base says of itself is remembered, for a pyenv shim takes 100 ms to say it.

/// `BASE -I -c MAKE HOW FOLDER` has a base make its environment, unless there is one in the folder that is complete and
/// runs, or HOW is `look`. It prints what there is to say of that, the environment's name and what the base is, a NUL
/// before each.
const MAKE: &str = r#"
import fcntl, hashlib, os, pathlib, shutil, site, sys, venv
if sys.version_info < (3, 8):
    sys.exit('it is older than 3.8: name a newer Python in MCP_PY_PYTHON')
how, folder = sys.argv[1], pathlib.Path(sys.argv[2])
version, real = '%d.%d.%d' % sys.version_info[:3], os.path.realpath(sys.executable)
places = site.getsitepackages() if sys.prefix != sys.base_prefix else []
key = os.fsencode('\0'.join([real, sys.prefix, version, *places]))
env = folder / ('env-%s-%s' % (version, hashlib.sha256(key).hexdigest()[:16]))
python, made, note = env / 'bin/python', env / 'mcp-py', ''
if how == 'make':
    folder.mkdir(0o700, parents=True, exist_ok=True)
    lock = open(folder / 'environments.lock', 'a')
    fcntl.flock(lock, fcntl.LOCK_EX)
    complete, is_one = made.exists(), 'import sys; sys.exit(sys.prefix == sys.base_prefix)'
    if not complete or os.spawnl(os.P_WAIT, python, python, '-I', '-c', is_one) != 0:
        shutil.rmtree(env, ignore_errors=True)  # what stays in the way, venv tells
        # What it is made of stays: not a name that will be another Python's after an upgrade.
        sys._base_executable = os.path.realpath(sys._base_executable)
        venv.create(env, system_site_packages=sys.base_prefix in site.PREFIXES, symlinks=True)
        # A venv that is made from a venv does not see its packages.
        lines = ['import site; site.addsitedir(%a)\n' % place for place in places]
        next(env.glob('lib/*/site-packages')).joinpath('mcp_py_base.pth').write_text(''.join(lines))
        made.touch()
        if complete:
            note = "the builtin's environment was damaged: it was made anew, without what was installed there"
os.write(1, os.fsencode('\0'.join(['', note, env.name, 'Python %s, %s' % (version, real)])))
"#;
const MADE: &str = "mcp-py"; // the file in an environment that says it is complete

/// Packages that are not called as what is imported.
const PACKAGES: &str = "PIL=pillow cv2=opencv-python-headless sklearn=scikit-learn skimage=scikit-image yaml=PyYAML \
    bs4=beautifulsoup4 dateutil=python-dateutil OpenSSL=pyOpenSSL psycopg2=psycopg2-binary aws_cdk=aws-cdk-lib \
    attr=attrs serial=pyserial usb=pyusb dotenv=python-dotenv docx=python-docx pptx=python-pptx fitz=PyMuPDF \
    git=GitPython jwt=PyJWT Crypto=pycryptodome Bio=biopython magic=python-magic MySQLdb=mysqlclient zmq=pyzmq \
    pkg_resources=setuptools<81 faiss=faiss-cpu umap=umap-learn dns=dnspython websocket=websocket-client \
    slugify=python-slugify imblearn=imbalanced-learn googleapiclient=google-api-python-client github=PyGithub \
    nacl=PyNaCl pywt=PyWavelets";

/// How installers say that there is no network.
const OFFLINE: &str = "dns error|name resolution|Name or service not known|NewConnectionError|Network is unreachable|\
    tcp connect error|timed out";
const NO_NETWORK: &str = "there is no network: ";
/// How Python, pyenv and asdf say that there is no pip, no uv.
const ABSENT: &str = "No module named pip|uv: command not found|No version is set for command uv";

/// Settings of installers: what would install elsewhere is not for us, and unless somebody chose that, nobody waits
/// long for a network. With no retry pip would not say that there is none.
const ELSEWHERE: [&str; 4] = ["PIP_PYTHON", "UV_TARGET", "UV_PREFIX", "UV_SYSTEM_PYTHON"];
const UNREADABLE: [&str; 4] = ["FORCE_COLOR", "CLICOLOR_FORCE", "PIP_QUIET", "UV_QUIET"]; // what they say then
const UNLESS_SET: &str = "UV_HTTP_TIMEOUT=5;UV_HTTP_RETRIES=0;PIP_DEFAULT_TIMEOUT=5;PIP_RETRIES=1;\
    RES_OPTIONS=timeout:2 attempts:1";

/// Where to look for packages, for either of them; how names of such settings start.
const FOR_PIP: [&str; 5] =
    ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"];
const FOR_UV: [&str; 7] =
    ["UV_INDEX", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX", "UV_FIND_LINKS", "UV_NO_INDEX", "UV_OFFLINE", "UV_CONFIG_FILE"];

/// By this a thread sees whether what it runs is still wanted: the loop holds the `Arc` for as long.
type Leash = Weak<()>;

/// Taken while a program runs on a leash, so that the end of the server waits for the program's (I11).
static LEASHED: RwLock<()> = RwLock::new(());

/// Runs a program in a group of its own: whether it succeeded, and what it printed. An error where it could not be
/// started, took longer than `limit`, printed too much or is not wanted any more.
fn run_program(mut command: Command, limit: Duration, leash: Option<&Leash>) -> Result<(bool, String), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = about(&name);
    let (mut output, theirs) = UnixStream::pair().map_err(&failed)?;
    let errors = theirs.try_clone().map_err(&failed)?;
    command.stdin(Stdio::null()).stdout(OwnedFd::from(theirs)).stderr(OwnedFd::from(errors));
    sys::own_session(&mut command);
    let (is_wanted, _leashed) = (|| leash.is_none_or(|leash| leash.strong_count() > 0), leash.map(|_| LEASHED.read()));
    let mut child = command.spawn().map_err(&failed)?;
    drop(command); // with our copies of its ends
    let (end, mut text, mut chunk, mut open) = (Instant::now() + patience(limit), Vec::new(), vec![0; 64 << 10], true);
    let mut copies = false; // then it is let finish: half a package would be found by every later import
    while open && (copies || is_wanted()) && text.len() < SNAPSHOT_BYTES_MAX && Instant::now() < end {
        let mut set = [sys::watch(output.as_raw_fd(), libc::POLLIN)];
        sys::poll(&mut set, end.min(Instant::now() + LEASH_TICK));
        if set[0].revents != 0 {
            let count = output.read(&mut chunk).unwrap_or(0);
            text.extend_from_slice(&chunk[..count]);
            open = count != 0;
            let says = |sign| leash.is_some() && String::from_utf8_lossy(&text).contains(sign);
            copies = copies || says("Installing collected packages"); // as pip does
        }
    }
    sys::signal(child.id() as i32, libc::SIGKILL, true); // it has closed its output, is late, or is not wanted (I8)
    let status = child.wait().map_err(&failed)?;
    ensure(!open, || format!("{name} took longer than {:.0} s, or printed too much", limit.as_secs_f64()))?;
    Ok((status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// Runs MAKE, in the directory that the interpreter will start in, for pyenv's answer differs by that.
fn ask_base(base: &Path, cwd: Option<&Path>, how: &str, leash: Option<&Leash>) -> Result<[String; 3], String> {
    let mut command = Command::new(base);
    command.args(["-I", "-c", MAKE, how]).arg(saved_dir()?);
    cwd.into_iter().for_each(|cwd| _ = command.current_dir(cwd));
    let (_, text) = run_program(command, ENVIRONMENT_LIMIT.min(start_limit()), leash)?;
    let told: Vec<_> = text.split('\0').skip(1).map(str::to_owned).collect();
    told.try_into().map_err(|_| format!("{} makes no environment: {}", base.display(), last_lines(&text)))
}

/// The builtin's environment for a base, made now if need be, and what there is to say of it. May take its time.
/// `suspect`: that it runs is not taken for granted. Its name is remembered; where that is torn or lost, we ask again.
fn environment(
    base: &Path,
    cwd: Option<&str>,
    suspect: bool,
    leash: Option<&Leash>,
) -> Result<(PathBuf, Option<String>), String> {
    let (base, here) = (base.to_owned(), env::current_dir().ok());
    let deleted = here.is_none().then(|| "/".into()); // there pyenv would not know where it is
    let cwd = cwd.map(PathBuf::from).or(deleted);
    let key = BuildHasherDefault::<DefaultHasher>::default().hash_one((&base, cwd.as_ref().or(here.as_ref())));
    let remembered = saved_dir()?.join(format!("base-{key:016x}"));
    let name = fs::read_to_string(&remembered).unwrap_or_default();
    let env = remembered.with_file_name(&name);
    if suspect || ![MADE, "bin/python", "pyvenv.cfg"].iter().all(|file| env.join(file).is_file()) {
        let [note, name, _] = ask_base(&base, cwd.as_deref(), "make", leash)?;
        let _ = fs::write(&remembered, &name);
        return Ok((remembered.with_file_name(name), Some(note).filter(|note| !note.is_empty())));
    }
    let check = move || {
        thread::sleep(BASE_CHECK_DELAY); // the first cell comes first
        let is_new = |[_, now, _]: &[String; 3]| *now != name && fs::write(&remembered, now).is_ok();
        if let Some([_, _, is]) = ask_base(&base, cwd.as_deref(), "look", None).ok().filter(is_new) {
            let note = format!("python3 is now {is}: the builtin runs on it from its next start");
            post(move |server| server.interpreter(BUILTIN).0.notice(note));
        }
    };
    start_thread("base check", check).unwrap_or_else(|why| say(&why));
    Ok((env, None))
}

/// The end of what a program printed, in one line.
fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    last_chars(&lines[lines.len().saturating_sub(3)..].join("; "), VALUE_SHOWN_CHARS * 5).to_owned()
}

fn package_of(module: &str) -> &str {
    PACKAGES.split(' ').find_map(|pair| pair.strip_prefix(module)?.strip_prefix('=')).unwrap_or(module)
}

/// Installs a package into the environment, by uv or else by the pip that the environment sees; returns its name and
/// version, and those of what came with it. Another server's install is waited for.
fn install_package(env: &Path, package: &str, leash: Option<&Leash>) -> Result<String, String> {
    let (end, python) = (Instant::now() + INSTALL_LIMIT, env.join("bin/python"));
    let _held = lock(&env.join("install.lock"), INSTALL_LIMIT)?;
    let told = |start: &&str| env::vars_os().any(|(name, _)| name.as_bytes().starts_with(start.as_bytes()));
    // Where to look is told in settings that only pip knows: then it is asked first, if there is one.
    let pip_first = FOR_PIP.iter().any(told) && !FOR_UV.iter().any(told);
    let ways = if pip_first { [None, find_on_path("uv")] } else { [find_on_path("uv"), None] };
    for uv in ways {
        let mut command = Command::new(uv.as_ref().unwrap_or(&python));
        match uv {
            Some(_) => command.args(["pip", "install", "--python"]).arg(&python),
            // The last three are against a pip.conf that installs elsewhere; an empty prefix or root would be relative.
            None => command
                .args(["-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"])
                .args(["--target=", "--root=/", "--prefix"])
                .arg(env),
        };
        ELSEWHERE.iter().chain(&UNREADABLE).for_each(|name| _ = command.env_remove(name));
        if env::current_dir().is_err() {
            command.current_dir(env); // ours is deleted, and neither starts there
        }
        let defaults = UNLESS_SET
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .filter(|(name, _)| env::var_os(name).is_none());
        command.envs(defaults).envs([("PIP_USER", "0"), ("PIP_DRY_RUN", "0")]).arg(package);
        let (done, text) = run_program(command, end.saturating_duration_since(Instant::now()), leash)?;
        if done {
            // uv says ` + name==version`, pip `Successfully installed name-version …`, each in its own spelling.
            let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '.'], "_");
            let lines = text.lines().map(str::trim_start);
            let lines =
                lines.filter_map(|line| line.strip_prefix("+ ").or(line.strip_prefix("Successfully installed ")));
            let said =
                lines.flat_map(|line| line.split(' ')).filter_map(|it| it.split_once("==").or(it.rsplit_once('-')));
            let package = package.split('<').next().unwrap_or_default();
            let ours = |name| if plain(name) == plain(package) { package } else { name };
            let mut said: Vec<_> = said.map(|(name, version)| format!("{} {version}", ours(name))).collect();
            said.sort_by_key(|it| it.split(' ').next() != Some(package));
            return Ok(if said.is_empty() { package.to_owned() } else { said.join(", ") });
        }
        let lead = if OFFLINE.split('|').any(|sign| text.contains(sign)) { NO_NETWORK } else { "" };
        ensure(ABSENT.split('|').any(|sign| text.contains(sign)), || format!("{lead}{}", last_lines(&text)))?;
    }
    Err("there is neither uv nor pip: install one of them".into())
}

impl Interpreter {
    /// Where a missing package is installed; None where none is.
    fn installs_into(&self) -> Option<&PathBuf> {
        // Only a yes is one: the switch is there for people who do not trust this.
        let yes = |told: &str| ["", "1", "on", "yes", "true"].contains(&told.trim().to_ascii_lowercase().as_str());
        let on = env::var_os("MCP_PY_AUTO_INSTALL").is_none_or(|told| yes(&told.to_string_lossy()));
        self.process.as_ref()?.env.as_ref().filter(|_| on)
    }

    /// The running cell imports what nobody finds: has a thread install it, unless there is a reason not to.
    fn install(&mut self, number: Value, module: String, desk: &mut Desk) {
        let Some(env) = self.installs_into().cloned() else {
            return self.installed(number, false, self.by_hand(&module), desk);
        };
        let package = package_of(&module).to_owned();
        if let Some(since) = desk.offline.map(|at| at.elapsed()).filter(|since| *since < patience(OFFLINE_MEMORY)) {
            let why = format!("{package} was not installed: {} s ago there was no network", since.as_secs());
            return self.installed(number, false, why, desk);
        }
        let Some(current) = &mut self.talk.current else { return };
        desk.tell(current.key, "installing", format!("installing {package} for {module} …"));
        let (key, name, asked) = (current.key, self.name.clone(), number.clone());
        let leash = Arc::downgrade(current.installer.insert(Arc::new(())));
        let work = move || {
            let (done, text) = match install_package(&env, &package, Some(&leash)) {
                Ok(what) => (true, format!("installed {what} for {module}")),
                Err(why) => (false, format!("{package} could not be installed: {why}")),
            };
            post(move |server| {
                let (interpreter, desk) = server.interpreter(&name);
                if interpreter.talk.current.as_ref().is_some_and(|current| current.key == key) {
                    interpreter.installed(number, done, text, desk);
                }
            });
        };
        start_thread("installer", work).unwrap_or_else(|why| self.installed(asked, false, why, desk));
    }

    /// Tells the worker, which takes no stale answer, and whoever waits for the cell.
    fn installed(&mut self, number: Value, done: bool, text: String, desk: &mut Desk) {
        if !done && text.contains(NO_NETWORK) {
            desk.offline = Some(Instant::now());
        }
        if let Some(current) = self.talk.current.as_ref().filter(|current| current.interrupt.is_none()) {
            desk.tell(current.key, "note", text);
        }
        self.send(format!("{}\n", json!({"op": "installed", "number": number, "done": done})).as_bytes());
    }

    /// How a module gets here that was not found.
    fn by_hand(&self, module: &str) -> String {
        if self.installs_into().is_some() {
            return format!("{module} is not installed; `import {module}` in a cell installs it");
        }
        let python = self.process.as_ref().map(|process| quoted(&process.python)).unwrap_or_default();
        format!("{module} is not installed; to install it: uv pip install --python {python} {}", package_of(module))
    }

    /// The cell drew a picture: it becomes a file, and goes into the answer if it fits.
    fn take_picture(&mut self, desk: &mut Desk) {
        let block = mem::take(&mut self.talk.picture);
        let Some(key) = self.talk.current.as_ref().map(|current| current.key) else { return };
        let Some(call) = desk.calls.get_mut(&key) else { return };
        if block.len() > PICTURE_BYTES_MAX || call.pictures.len() >= FIGURES_MAX {
            let why = "figures of over 64 MiB, or over 100 in a cell, were dropped";
            if call.notes.last().is_none_or(|last| last != why) {
                desk.tell(key, "note", why.into());
            }
            return;
        }
        let bytes = from_base64(block.as_bytes());
        let saved = desk.files.create(|count| format!("figure_{count:03}.png")).and_then(|(path, mut file)| {
            desk.files.grow(&path, bytes.len() as u64);
            file.write_all(&bytes).map_err(about(&path))?;
            Ok(path.to_string_lossy().into_owned())
        });
        // The header chunk comes first, with the sides, big-endian, at 16 and 20 (PNG specification, 11.2.1).
        let mut sides = bytes.get(16..24).unwrap_or_default().chunks(4);
        let small = bytes.len() <= IMAGE_BYTES_MAX && sides.all(|side| side <= &IMAGE_SIDE_MAX.to_be_bytes()[..]);
        let shown = call.pictures.iter().filter_map(|picture| Some(picture.block.as_ref()?.len()));
        let room = shown.clone().count() < IMAGES_MAX && shown.sum::<usize>() + block.len() <= IMAGES_BYTES_MAX / 3 * 4;
        call.pictures.push(Picture { path: saved.clone().ok(), block: Some(block).filter(|_| small && room) });
        match saved {
            Ok(path) => desk.tell(key, "image", path),
            Err(why) => desk.tell(key, "note", format!("a figure could not be saved: {why}")),
        }
    }
}

/// RFC 4648, 4; what is not of its alphabet is passed over.
fn from_base64(text: &[u8]) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut values = [None; 256];
    digits.iter().zip(0u8..).for_each(|(digit, value)| values[usize::from(*digit)] = Some(value));
    let values: Vec<u8> = text.iter().filter_map(|digit| values[usize::from(*digit)]).collect();
    let mut bytes = Vec::with_capacity(values.len());
    for four in values.chunks(4) {
        let bits = four.iter().fold(0, |bits, value| bits << 6 | u32::from(*value)) << (6 * (4 - four.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    bytes
}

// ── 9. Saved and discovered interpreters ─────────────────────────────────────────────────────────────────────────────
//
// A configuration is an object as interpreters.json has it: python_path, cwd, env, startup_script, description. The
// builtin's has no python_path. `~/.claude-workspace/python_interpreter/interpreters.json` is the original's file, in
// its format: {"discover_jetbrains": true, "interpreters": {name: configuration}}. What we do not know in it is kept.

const CONFIG_MEMBERS: [&str; 5] = ["python_path", "cwd", "env", "startup_script", "description"];

/// Where a configuration is from, and what it is.
type Known = (Source, Object);

/// An interpreter as list_interpreters shows it; the environment is never shown. `live` has its process, if any.
fn describe(name: &str, source: Source, config: &Object, live: Option<&Interpreter>) -> Value {
    let process = live.and_then(|live| live.process.as_ref());
    // No file is looked at for a live one: the loop asks (I2). So a Python on PATH is not known.
    let looked_for = || if live.is_some() { None } else { python_of(config).ok() };
    let python = process.map(|process| process.python.clone()).or_else(|| Some(text(config, "python_path")?.into()));
    let python = python.or_else(looked_for);
    let version = |python: &PathBuf| live.map_or_else(|| version_in_venv(python), |live| live.talk.version.clone());
    let here = || Some(env::current_dir().ok()?.display().to_string());
    json!({
        "name": name, "source": format!("{source:?}").to_lowercase(),
        "description": text(config, "description").map(|text| keep_ends(text, NOTE_CHARS_MAX)),
        "state": if live.is_some_and(Interpreter::runs) { "running" } else { "stopped" },
        "python_path": python.as_ref().map(|path| path.display().to_string()),
        "python_version": python.as_ref().and_then(version),
        "cwd": text(config, "cwd").map(str::to_owned).or_else(here),
        "has_startup_script": text(config, "startup_script").is_some(),
        "pid": process.map(Process::pid),
        "started_at": process.map(|process| iso_time(process.started.1)),
        "uptime": process.map(|process| uptime(process.started.0)),
    })
}

/// The Python of a configuration; for the builtin MCP_PY_PYTHON, else the first `python3` on PATH.
fn python_of(config: &Object) -> Result<PathBuf, String> {
    let here = env::current_dir().unwrap_or_else(|_| "/".into());
    let told = env::var_os("MCP_PY_PYTHON").filter(|path| !path.is_empty());
    let told = || Some(whole_path(Path::new(&told?), &here, true));
    let found = text(config, "python_path").map(PathBuf::from).or_else(told).or_else(|| find_on_path("python3"));
    found.ok_or_else(|| "there is no python3 on PATH: install Python 3.8 or newer, or name one in MCP_PY_PYTHON".into())
}

/// The Python to start, and whether there is a place to start it in; what else may be wrong, its start will tell.
fn check_config(config: &Object) -> Result<PathBuf, String> {
    let (python, of_builtin) = (python_of(config)?, text(config, "python_path").is_none());
    let named = format!("{} {}", if of_builtin { "MCP_PY_PYTHON" } else { "python_path" }, python.display());
    let within = || format!("{named} is a directory: try {}", python.join("bin/python").display());
    ensure(!python.is_dir(), within)?;
    ensure(!of_builtin || python.exists(), || format!("{named} does not exist"))?;
    let cwd = text(config, "cwd").unwrap_or("/");
    ensure(Path::new(cwd).is_dir(), || format!("cwd {cwd} is no directory"))?;
    Ok(python)
}

/// From pyvenv.cfg, without running anything.
fn version_in_venv(python: &Path) -> Option<String> {
    let text = fs::read_to_string(python.parent()?.parent()?.join("pyvenv.cfg")).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once('='));
    let (_, version) = lines.find(|(key, _)| matches!(key.trim(), "version" | "version_info"))?;
    Some(version.trim().splitn(4, '.').take(3).collect::<Vec<_>>().join("."))
}

/// What can be started by its name alone: environments in the project and in our own environment, without running
/// them, and the saved ones with a python_path; or why these are missing.
fn known() -> (BTreeMap<String, Known>, Option<String>) {
    let places = [(".venv", ""), ("venv", ""), ("virtualenv", "VIRTUAL_ENV"), ("conda", "CONDA_PREFIX")];
    let found = |(name, variable): (&str, &str)| {
        let place = if variable.is_empty() { name.into() } else { env::var_os(variable)? };
        let python = PROJECT.dir.join(&place).join("bin/python");
        let config = Object::from_iter([("python_path".to_owned(), json!(python.display().to_string()))]);
        (!place.is_empty() && python.is_file()).then(|| (name.to_owned(), (Source::Discovered, config)))
    };
    let saved = |(name, config): (String, Value)| {
        let config = config_of(config.as_object()?);
        let usable = text(&config, "python_path").is_some() && name != BUILTIN;
        usable.then_some((name, (Source::Saved, config)))
    };
    let mut known: BTreeMap<_, _> = places.into_iter().filter_map(found).collect();
    let unread = load_saved().map(|(list, _)| known.extend(list.into_iter().filter_map(saved))).err();
    (known, unread)
}

/// A configuration from add_interpreter's arguments or from the file. Paths become absolute; they start at the project.
fn config_of(told: &Object) -> Object {
    let mut config = told.clone();
    config.retain(|member, value| CONFIG_MEMBERS.contains(&member.as_str()) && !value.is_null());
    for (member, value) in &mut config {
        let (true, Value::String(path)) = (member == "python_path" || member == "cwd", value) else { continue };
        *path = whole_path(Path::new(path), &PROJECT.dir, member == "python_path").display().to_string();
    }
    config
}

/// An absolute path: `~` is the home directory, a relative one starts at `dir`; a Python that is a bare name is looked
/// for on PATH first.
fn whole_path(path: &Path, dir: &Path, is_python: bool) -> PathBuf {
    let at_home = path.strip_prefix("~").ok().and_then(|rest| Some(home_dir()?.join(rest)));
    let bare = path.to_str().filter(|path| is_python && !path.contains('/'));
    bare.and_then(find_on_path).or(at_home).unwrap_or_else(|| dir.join(path))
}

/// Those in the table, as list_interpreters shows them, but for what is just being looked up.
fn live() -> Result<BTreeMap<String, Value>, String> {
    let shown = |one: &Interpreter| Some((one.name.clone(), one.shown()?));
    ask(move |server| server.interpreters.values().filter_map(shown).collect())
}

/// What is known of an interpreter that is not in the table.
fn look_up(name: &str) -> Result<Known, String> {
    let (mut known, unread) = known();
    if let Some(found) = known.remove(name) {
        return Ok(found);
    }
    unread.map_or(Ok(()), Err)?; // perhaps it is there, in a file that can't be read
    let names: BTreeSet<_> = known.into_keys().chain(live()?.into_keys()).collect();
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    Err(format!("there is no interpreter {name:?}; there are: {names}. add_interpreter adds one"))
}

fn saved_dir() -> Result<PathBuf, String> {
    let home = home_dir().ok_or("there is no home directory to keep configurations in")?;
    Ok(home.join(".claude-workspace/python_interpreter"))
}

/// The list of saved interpreters, and what else is in its file. No file is an empty list; one that does not parse is
/// an error, and is left alone.
fn load_saved() -> Result<(Object, Object), String> {
    let path = saved_dir()?.join("interpreters.json");
    let left = |why: &dyn std::fmt::Display| format!("{} can't be read and is left as it is: {why}", path.display());
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path); // not to wait at a FIFO
    match file.and_then(|file| file.take(SAVED_BYTES_MAX).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == ErrorKind::NotFound => bytes = br#"{"discover_jetbrains": true}"#.into(),
        Err(error) => return Err(left(&error)),
        Ok(_) if bytes.len() as u64 == SAVED_BYTES_MAX => return Err(left(&"it has 8 MiB or more")),
        Ok(_) => {}
    }
    let mut root: Object = serde_json::from_slice(&bytes).map_err(|error| left(&error))?;
    match root.remove("interpreters").unwrap_or_else(|| json!({})) {
        Value::Object(list) => Ok((list, root)),
        _ => Err(left(&"its \"interpreters\" is no object")),
    }
}

/// Changes the saved interpreters, under the lock that all servers share: read, change, write beside, fsync, rename.
fn update_saved(change: impl FnOnce(&mut Object)) -> Result<(), String> {
    let path = saved_dir()?.join("interpreters.json");
    let _held = lock(&path.with_extension("lock"), LOCK_LIMIT)?;
    let (mut list, mut root) = load_saved()?;
    change(&mut list);
    root.insert("interpreters".into(), list.into());
    let path = fs::canonicalize(&path).unwrap_or(path); // where it is a link, its target is what is replaced
    let beside = path.with_extension("new");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside);
    let text = format!("{:#}\n", Value::Object(root));
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.and_then(|()| fs::rename(&beside, &path)).map_err(about(&path))
}

/// Holds a lock that all servers of this user share, for as long as the file is open.
fn lock(path: &Path, limit: Duration) -> Result<File, String> {
    let dir = path.parent().unwrap_or(path);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(about(dir))?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let held = file.map_err(about(path))?;
    let end = Instant::now() + patience(limit);
    while !sys::try_lock(&held) {
        ensure(Instant::now() < end, || format!("{} is held by another process", path.display()))?;
        thread::sleep(Duration::from_millis(5));
    }
    Ok(held)
}

#[allow(deprecated)] // until Rust 1.87, for its ways on Windows
fn home_dir() -> Option<PathBuf> {
    env::home_dir().filter(|home| home.is_absolute())
}

fn find_on_path(program: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| fs::metadata(path).is_ok_and(|is| is.is_file() && is.mode() & 0o111 != 0);
    let in_dir = |dir: PathBuf| Some(dir.join(program)).filter(|path| path.is_absolute() && is_program(path));
    env::split_paths(&env::var_os("PATH")?).find_map(in_dir)
}

// ── 10. The bridge ───────────────────────────────────────────────────────────────────────────────────────────────────
//
// HTTP/1.1 on a Unix socket, one request a connection, served by the loop. The socket has a name of its own, and
// where nobody else has it the name of the host, by which the client finds it.

/// Where we are reached.
struct Bridge {
    listener: UnixListener,
    own: PathBuf,
    shared: Option<PathBuf>,   // None without a host
    inode: Option<(u64, u64)>, // of the socket, by which our names are known
}

/// A connection.
struct Peer {
    stream: UnixStream,
    input: Vec<u8>, // a request that is not complete; while draining, what is read away
    out: Outbox,
    phase: Phase,
    until: Option<Instant>, // when it is dropped, unless it moves before
    without_body: bool,     // HEAD
    call: Option<u64>,      // what its hang-up interrupts
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Reading,
    Serving,  // what it sends now is ignored
    Ending,   // the answer is complete: it is written, then our end is shut
    Draining, // what it still sends is read away, for closing would cut off our answer
}

/// Our names, bound and published by the first thread that asks. Err says why the host's is not ours.
static PUBLISHED: LazyLock<Result<(), String>> = LazyLock::new(|| {
    let (host, own) = (HOST.pid, std::process::id());
    let name = |of: String| PathBuf::from(format!("{SOCKETS}{of}.sock"));
    let shared = host.map(|host| name(host.to_string()));
    let path = name(host.map_or(own.to_string(), |host| format!("{host}-{own}")));
    let _ = fs::remove_file(&path); // of a dead process that had our pid
    let listener = UnixListener::bind(&path).and_then(|listener| {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true).map(|()| listener)
    });
    let listener = listener.map_err(|error| format!("no bridge at {}: {error}", path.display()))?;
    let bridge = Bridge { listener, own: path.clone(), shared: shared.clone(), inode: inode(&path) };
    ask(|server| server.bridge = Some(bridge))?;
    shared.map_or(Ok(()), |shared| publish(&path, &shared))
});

/// Links the host's name to our socket, if nobody lives there. A dead socket is moved away first, so that of two who
/// find it dead only one moves it; who moved a living one by that puts it back.
fn publish(own: &Path, shared: &Path) -> Result<(), String> {
    let beside = own.with_extension("old");
    for _ in 0..3 {
        let linked = fs::hard_link(own, shared).or_else(|error| match error.kind() {
            ErrorKind::AlreadyExists => Err(error),
            _ => std::os::unix::fs::symlink(own, shared), // where sockets can't be linked
        });
        let (Err(_), there) = (linked, inode(shared)) else { return Ok(()) };
        let is = fs::symlink_metadata(shared).ok().filter(|is| is.uid() == sys::user_id()).map(|is| is.file_type());
        let ours = is.is_some_and(|kind| kind.is_socket() || kind.is_symlink());
        let refused = |error: io::Error| matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound);
        if !ours || !UnixStream::connect(shared).is_err_and(refused) {
            break;
        }
        if fs::rename(shared, &beside).is_ok() && inode(&beside) != there {
            let _ = fs::hard_link(&beside, shared);
        }
        let _ = fs::remove_file(&beside);
    }
    Err(format!("{} is taken; this session's socket is {}", shared.display(), own.display()))
}

/// Device and number of what a path names, links followed.
fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|is| (is.dev(), is.ino()))
}

impl Bridge {
    /// The name to reach us by.
    fn reached(&self) -> PathBuf {
        self.shared.as_ref().filter(|shared| inode(shared) == self.inode).unwrap_or(&self.own).clone()
    }
}

impl Drop for Bridge {
    /// Takes our names back, as far as they are ours.
    fn drop(&mut self) {
        for name in self.shared.iter().chain([&self.own]).filter(|name| inode(name) == self.inode) {
            let _ = fs::remove_file(name);
        }
    }
}

/// The tool that a request asks for: none for /health; /interrupt takes what list_vars does.
fn route(head: &http::Head) -> Result<Option<&'static Tool>, http::Refusal> {
    let path = head.path.as_str();
    let tool = match path {
        "/interrupt" => find_tool("list_vars"),
        "/execute" => find_tool("execute"),
        _ => path.strip_prefix("/tools/").and_then(find_tool),
    };
    match (path, head.method.as_str()) {
        ("/health", "GET" | "HEAD") => Ok(None),
        ("/health", _) => Err(("405 Method Not Allowed\r\nAllow: GET, HEAD", format!("{path} takes GET"))),
        _ if tool.is_none() => Err(("404 Not Found", format!("there is no {path} here"))),
        (_, "POST") => Ok(tool),
        _ => Err(("405 Method Not Allowed\r\nAllow: POST", format!("{path} takes POST"))),
    }
}

impl Server {
    fn accept(&mut self) {
        let Some(Ok((stream, _))) = self.bridge.as_ref().map(|bridge| bridge.listener.accept()) else {
            return thread::sleep(ACCEPT_PAUSE); // there are no descriptors: not at once again
        };
        let ours = sys::peer(&stream).is_some_and(|(_, uid)| uid == sys::user_id());
        if !ours || stream.set_nonblocking(true).is_err() {
            return; // not a byte for others (I10)
        }
        let (id, full) = (self.desk.key(), self.desk.peers.len() >= PEERS_MAX);
        let (input, out, until) = (Vec::new(), Outbox::default(), Some(Instant::now() + patience(REQUEST_LIMIT)));
        let peer = Peer { stream, input, out, phase: Phase::Reading, until, without_body: false, call: None };
        self.desk.peers.insert(id, peer);
        if full {
            self.desk.refuse(id, "503 Service Unavailable", &format!("{PEERS_MAX} connections are open already"));
        }
    }

    /// Poll has something for a peer, or its time is over.
    fn attend_peer(&mut self, id: u64, ready: libc::c_short) {
        let Some(peer) = self.desk.peers.get_mut(&id) else { return };
        let late = peer.until.is_some_and(|end| end <= Instant::now());
        let arriving = peer.phase == Phase::Reading;
        if (late && !arriving) || peer.attend(ready, &mut self.desk.buffer).is_err() {
            let call = self.desk.peers.remove(&id).and_then(|peer| peer.call);
            return call.into_iter().for_each(|key| self.cancel(key));
        }
        if arriving {
            self.take_request(id, late).unwrap_or_else(|(status, why)| self.desk.refuse(id, status, &why));
        }
    }

    /// Serves a request that is complete; an error is for the caller to answer.
    fn take_request(&mut self, id: u64, late: bool) -> Result<(), http::Refusal> {
        let Some(peer) = self.desk.peers.get_mut(&id) else { return Ok(()) };
        peer.without_body = peer.input.starts_with(b"HEAD ");
        let in_time = || ensure(!late, || "the request did not arrive within 10 s".into());
        let in_time = || in_time().map_err(|why| ("408 Request Timeout", why));
        let Some(head) = http::head(&peer.input) else { return in_time() };
        let head = head?;
        let tool = route(&head)?;
        if let Some(body) = peer.input.get(head.size..head.size + head.length) {
            let body = if body.is_empty() || head.method != "POST" { b"{}" } else { body };
            let given = serde_json::from_slice(body);
            (peer.phase, peer.input, peer.until) = (Phase::Serving, Vec::new(), None);
            let given = given.map_err(|why| ("400 Bad Request", format!("the body is no JSON object: {why}")))?;
            return self.serve_peer(id, &head, tool, given).map_err(|why| ("400 Bad Request", why));
        }
        if head.expects && peer.input.len() == head.size && !late {
            peer.push(b"HTTP/1.1 100 Continue\r\n\r\n", &mut self.desk.files);
        }
        in_time()
    }

    /// An error says what is wrong with what was given.
    fn serve_peer(&mut self, id: u64, head: &http::Head, tool: Option<&Tool>, mut given: Object) -> Result<(), String> {
        let flag = |name: &str| match given.get(name).unwrap_or(&Value::Null) {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            other => Err(format!("{name:?} must be true or false, got {other}")),
        };
        let mut to = To::Tool(id);
        if let ("/execute" | "/interrupt", Some(tool)) = (&*head.path, tool) {
            let (stream, full) = (flag("stream")?, flag("full")?);
            given.retain(|member, _| matches!(member.as_str(), "code" | "interpreter" | "timeout"));
            given = tool.check(given)?;
            to = if stream { To::Stream(id, Stream::new(full, !head.old)) } else { To::Execute(id) };
        }
        let name = text(&given, "interpreter").unwrap_or(BUILTIN).to_owned();
        if head.path == "/interrupt" {
            let interrupted = self.interpreters.get_mut(&name).map(|one| one.interrupt(None, &mut self.desk));
            let respond = move |desk: &mut Desk, found: Result<bool, String>| match found {
                Ok(interrupted) => desk.respond(id, "200 OK", &json!({ "interrupted": interrupted })),
                Err(why) => desk.refuse(id, "404 Not Found", &why),
            };
            let Some(interrupted) = interrupted else {
                return self.errand(move || {
                    let found = look_up(&name).map(|_| false);
                    post(move |server| respond(&mut server.desk, found));
                });
            };
            respond(&mut self.desk, Ok(interrupted));
            return Ok(());
        }
        let key = self.desk.open_call(to, None);
        self.desk.peers.get_mut(&id).into_iter().for_each(|peer| peer.call = Some(key));
        let started = match tool {
            Some(tool) => self.run_tool(key, tool, given),
            None => self.errand_for(key, || {
                let (session_id, since) = (HOST.session_id(), uptime(STARTED.0));
                Ok(json!({"name": NAME, "version": VERSION, "pid": std::process::id(), "uptime": since,
                    "session_id": session_id, "project_dir": PROJECT.dir.to_string_lossy(), "host": HOST.name}))
            }),
        };
        match started {
            Err(why) => self.desk.finish(key, Some(&why), EXIT_FAILED),
            Ok(()) if !self.lanes.contains_key(&name) => {
                self.desk.event(key, None, false); // a stream's head; else there may be none of that name
            }
            Ok(()) => {}
        }
        Ok(())
    }
}

impl Peer {
    fn watch(&self) -> libc::pollfd {
        let deaf = matches!(self.phase, Phase::Serving | Phase::Ending);
        self.out.watch(self.stream.as_raw_fd(), if deaf { 0 } else { libc::POLLIN })
    }

    /// Writes and reads what can be; an error where it is gone, which it is not when it shut its end only.
    fn attend(&mut self, ready: libc::c_short, buffer: &mut [u8]) -> io::Result<()> {
        if ready & (libc::POLLHUP | libc::POLLERR) != 0 {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if self.out.flush(self.stream.as_raw_fd()) {
            self.until = Some(Instant::now() + patience(PEER_PATIENCE)).filter(|_| !self.out.is_empty());
        }
        if self.out.is_empty() && self.phase == Phase::Ending {
            self.stream.shutdown(std::net::Shutdown::Write)?;
            (self.phase, self.until) = (Phase::Draining, Some(Instant::now() + PEER_DRAIN));
        }
        if ready & libc::POLLIN != 0 {
            let count = self.stream.read(buffer)?;
            self.input.extend_from_slice(&buffer[..count]);
            let enough = self.phase == Phase::Draining && self.input.len() > PEER_DRAIN_BYTES;
            ensure(count > 0 && !enough, || "it is gone".into()).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Sends something; what the peer does not take waits for it. What fails here drops the peer.
    fn push(&mut self, bytes: &[u8], files: &mut OutputFiles) {
        let waited = !self.out.is_empty();
        let kept = self.out.push(self.stream.as_raw_fd(), bytes, Some(files));
        if !waited && !self.out.is_empty() {
            self.until = Some(Instant::now() + patience(PEER_PATIENCE));
        }
        if !kept || self.attend(0, &mut []).is_err() {
            self.until = Some(Instant::now());
        }
    }
}

const STREAMS: [&str; 3] = ["stdout", "stderr", "stdout"]; // a result that is sent on is, for people, on stdout

/// What a streaming call has sent, and what it holds back until it is known whether its output has to be cut.
struct Stream {
    full: bool, // nothing is cut
    chunked: bool,
    begun: bool,  // its head is sent
    left: usize,  // characters that may still go out at once
    spare: usize, // characters that may still be held back
    held: Vec<Value>,
    nudged: Instant,       // when it was told last that there is more, which is not shown
    sent: [u64; 3],        // characters, of each stream
    partial: [Vec<u8>; 3], // bytes of a character that is not complete
}

impl Stream {
    fn new(full: bool, chunked: bool) -> Self {
        let (left, spare) = (if full { usize::MAX } else { HEAD_CHARS }, TEXT_CHARS_MAX);
        let (held, nudged, partial) = (Vec::new(), Instant::now(), Default::default());
        Stream { full, chunked, begun: false, left, spare, held, nudged, sent: [0; 3], partial }
    }
}

impl Desk {
    fn refuse(&mut self, id: u64, status: &str, why: &str) {
        self.respond(id, status, &json!({ "detail": why }));
    }

    fn respond(&mut self, id: u64, status: &str, body: &Value) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let body = format!("{body}\n");
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        (peer.phase, peer.call, peer.input) = (Phase::Ending, None, Vec::new());
        let body = if peer.without_body { "" } else { &body };
        peer.push(format!("{head}Connection: close\r\n\r\n{body}").as_bytes(), &mut self.files);
    }

    /// Sends an event of a streaming call, before the first one the head; the last one ends the answer.
    fn event(&mut self, key: u64, event: Option<Value>, last: bool) {
        let Some(Call { to: To::Stream(id, stream), .. }) = self.calls.get_mut(&key) else { return };
        let Some(peer) = self.peers.get_mut(id) else { return };
        let mut bytes = String::new();
        if !mem::replace(&mut stream.begun, true) {
            let coding = if stream.chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
            bytes =
                format!("HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n{coding}Connection: close\r\n\r\n");
        }
        let line = event.map_or(String::new(), |event| format!("{event}\n"));
        bytes += &match stream.chunked && !line.is_empty() {
            true => format!("{:x}\r\n{line}\r\n{}", line.len(), if last { "0\r\n\r\n" } else { "" }),
            false => line,
        };
        if last {
            (peer.phase, peer.call) = (Phase::Ending, None);
        }
        peer.push(bytes.as_bytes(), &mut self.files);
    }

    /// What there is to tell of a cell before its end: at once to a stream, else with the answer.
    fn tell(&mut self, key: u64, kind: &str, text: String) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        let note = if kind == "image" { format!("figure saved: {text}") } else { text.clone() };
        match (&call.to, kind) {
            (To::Stream(..), "image") => self.event(key, Some(json!({ "image": text })), false),
            (To::Stream(..), _) => self.event(key, Some(json!({ "note": format!("[mcp-py: {note}]") })), false),
            (_, "installing") => {}
            _ if call.notes.len() < NOTES_MAX => call.notes.push(note),
            _ if call.notes.len() == NOTES_MAX => call.notes.push("further notes are left out".into()),
            _ => {}
        }
    }

    /// Sends on what a streaming call's cell printed; no bytes: what is left of a character that never got complete.
    fn stream(&mut self, key: u64, stream: usize, bytes: &[u8]) {
        let Some(Call { to: To::Stream(_, state), .. }) = self.calls.get_mut(&key) else { return };
        let mut all = mem::take(&mut state.partial[stream]);
        all.extend_from_slice(bytes);
        if !bytes.is_empty() {
            state.partial[stream] = all.split_off(all.len() - cut_character(&all));
        }
        let text = escaped(&all);
        let (now, later) = text.split_at(first_chars(&text, state.left).len());
        let later = first_chars(later, state.spare);
        let count = now.chars().count();
        (state.left, state.spare) = (state.left - count, state.spare - later.chars().count());
        state.sent[stream] += count as u64;
        if !later.is_empty() {
            state.held.push(json!({ STREAMS[stream]: later }));
        }
        let nudge = stream == 0 && now.len() < text.len() && state.nudged.elapsed() > PROGRESS_EVERY;
        if nudge {
            state.nudged = Instant::now(); // an empty event, for a client whose reader is gone would not notice else
        }
        if nudge || !now.is_empty() {
            self.event(key, Some(json!({ STREAMS[stream]: now })), false);
        }
    }

    /// Sends what a streaming call's cell has left to tell but for its last word, which is returned.
    fn end_stream(&mut self, key: u64, told: Told, exit: i32, output: &Output) -> String {
        let mut sent_result = output.sent_result;
        if let (true, Some(result)) = (!sent_result && (told.cut.is_some() || exit != 0), &told.result) {
            self.stream(key, 0, output.lead.as_bytes());
            self.stream(key, RESULT, result.as_bytes());
            sent_result = true;
        }
        (0..STREAMS.len()).for_each(|stream| self.stream(key, stream, b""));
        let Some(Call { to: To::Stream(_, state), .. }) = self.calls.get_mut(&key) else { return String::new() };
        let mut rest = mem::take(&mut state.held);
        if told.cut.is_some() {
            rest = output.tails(state.sent);
        }
        rest.extend(sent_result.then(|| json!({ "stdout": "\n" })));
        let notes = told.cut.into_iter().chain(told.notes).map(|note| json!({ "note": note }));
        rest.into_iter().chain(notes).for_each(|event| self.event(key, Some(event), false));
        told.result.filter(|_| !sent_result).into_iter().chain(told.error).collect::<Vec<_>>().join("\n")
    }
}

// ── 11. The client ───────────────────────────────────────────────────────────────────────────────────────────────────

const CLIENT_USAGE: &str = "\
usage: mcp-py-client [options] [FILE | -c CODE]    code from stdin when neither is given (mcp-py-client <<'PY' … PY)
  -i, --interpreter NAME   which one, \"builtin\" unless said
  -t, --timeout SECONDS    interrupt the cell after that; 0 = never
  --full                   nothing is cut (the default where stdout is a file)
  --socket PATH            instead of looking for the session (MCP_PY_SOCKET)
instead of code:  --reset  --list-vars  --interpreters  --info  --interrupt
                  --add NAME PYTHON [--save]  --stop NAME [--remove]  --help  --version
";

/// Options with the request that they stand for, if they do, and its members whose values follow them.
const OPTIONS: [(&str, &str, &[&str]); 11] = [
    ("-i, --interpreter", "", &["interpreter"]),
    ("-t, --timeout", "", &["timeout"]),
    ("--socket", "", &["socket"]),
    ("-c", "/execute", &["code"]),
    ("--reset", "/tools/reset", &[]),
    ("--list-vars", "/tools/list_vars", &[]),
    ("--interpreters", "/tools/list_interpreters", &[]),
    ("--info", "/tools/get_session_info", &[]),
    ("--interrupt", "/interrupt", &[]),
    ("--add", "/tools/add_interpreter", &["name", "python_path"]),
    ("--stop", "/tools/stop_interpreter", &["name"]),
];

fn client(words: &[OsString]) -> u8 {
    let done = read_order(words).and_then(|(path, given)| run_order(path, given).map_err(|why| (EXIT_FAILED, why)));
    done.unwrap_or_else(|(code, why)| {
        let _ = writeln!(io::stderr(), "mcp-py-client: {why}");
        code
    }) as u8
}

/// The path and the members of the request that the command line asks for; `socket` among them is for us. An error is
/// an exit code and the line about it.
fn read_order(words: &[OsString]) -> Result<(&'static str, Object), (i32, String)> {
    let usage = |why: String| (2, format!("{why}\n{CLIENT_USAGE}"));
    let (mut paths, mut given, mut options, mut words) = (Vec::new(), Object::new(), true, words.iter());
    while let Some(word) = words.next() {
        match &*word.to_string_lossy() {
            "-" => paths.push("/execute"),
            "--" if options => options = false,
            flag @ ("--full" | "--save" | "--remove") if options => _ = given.insert(flag[2..].into(), json!(true)),
            option if options && option.starts_with('-') => {
                let found = OPTIONS.iter().find(|(names, ..)| names.split(", ").any(|name| name == option));
                let (_, path, members) = found.ok_or_else(|| usage(format!("unknown option {option}")))?;
                paths.extend((!path.is_empty()).then_some(*path));
                for member in members.iter().copied() {
                    let value = words.next().ok_or_else(|| usage(format!("{option} needs its {member}")))?;
                    given.insert(member.into(), utf8(member, value.as_bytes().to_vec())?);
                }
            }
            file => {
                let code = fs::read(word).map_err(|error| (EXIT_FAILED, format!("{file}: {error}")))?;
                given.insert("code".into(), utf8("code", code)?);
                paths.push("/execute");
            }
        }
    }
    let path = paths.pop().unwrap_or("/execute");
    let stray = |flag, of| given.contains_key(flag) && path != of;
    let strays = stray("save", "/tools/add_interpreter") || stray("remove", "/tools/stop_interpreter");
    if strays || !paths.is_empty() {
        return Err(usage("at most one of FILE, -c and an action; --save is --add's, --remove is --stop's".into()));
    }
    if let Some(seconds) = given.get_mut("timeout") {
        let number = seconds.as_str().and_then(|text| text.parse().ok()).filter(|number| SECONDS.contains(number));
        *seconds = json!(number.ok_or_else(|| usage(format!("{seconds} is no time")))?);
    }
    let (out, err) = (Path::new("/dev/fd/1"), Path::new("/dev/fd/2"));
    let full = given.remove("full").is_some() || (out.is_file() && inode(out) != inode(err));
    if path == "/execute" {
        if !given.contains_key("code") {
            let (mut stdin, mut code) = (io::stdin(), Vec::new());
            let hint = "code comes from stdin: mcp-py-client <<'PY' … PY, or -c CODE, or a FILE (--help says more)";
            ensure(!stdin.is_terminal(), || hint.into()).map_err(|why| (2, why))?;
            stdin.read_to_end(&mut code).map_err(|error| (EXIT_FAILED, format!("stdin: {error}")))?;
            given.insert("code".into(), utf8("code", code)?);
        }
        let blank = text(&given, "code").is_none_or(|code| code.trim().is_empty());
        ensure(!blank, || "no code".into()).map_err(|why| (2, why))?;
        given.extend([("stream".into(), json!(true)), ("full".into(), json!(full))]);
    }
    Ok((path, given))
}

fn utf8(what: &str, bytes: Vec<u8>) -> Result<Value, (i32, String)> {
    String::from_utf8(bytes).map(Value::from).map_err(|error| (2, format!("the {what} is not UTF-8: {error}")))
}

/// Has the session's server do it, and prints the answer; returns the exit code.
fn run_order(path: &str, mut given: Object) -> Result<i32, String> {
    let socket = given.remove("socket").or_else(|| env::var("MCP_PY_SOCKET").ok().map(Value::from));
    let socket = socket.as_ref().and_then(Value::as_str).filter(|path| !path.is_empty());
    let (stream, pid) = socket.map_or_else(find_session, connect)?;
    let name = text(&given, "interpreter").unwrap_or(BUILTIN);
    let waits = matches!(path, "/execute" | "/tools/reset" | "/tools/list_vars");
    let own = waits && env::var("MCP_PY_INTERPRETER").is_ok_and(|own| own == format!("{pid}:{name}"));
    ensure(!own, || format!("this runs in a cell of {name:?}: it would wait for itself; name another with -i"))?;
    let (mut fresh, events) = ([true; 2], request(&stream, "POST", path, &Value::Object(given)));
    sys::default_sigpipe(); // `| head` ends us, and our hang-up ends the cell; not before: it may be refused
    for event in events {
        event["detail"].as_str().map_or(Ok(()), |why| Err(why.to_owned()))?;
        if let Some(code) = show(&event, &mut fresh).map_err(|error| format!("it could not be printed: {error}"))? {
            return Ok(code);
        }
    }
    Err("the connection ended before the answer was complete".into())
}

/// Prints an event or an answer; returns the exit code if that is the last of them. `fresh`: where, of stdout and
/// stderr, a line has not begun yet.
fn show(event: &Value, fresh: &mut [bool; 2]) -> io::Result<Option<i32>> {
    let text = |name: &str| event[name].as_str();
    let is_error = event["is_error"] == true || event["isError"] == true;
    let saved = text("image").map(|path| format!("[mcp-py: figure saved: {path}]"));
    let told = [&event["result"], &event["structuredContent"]["message"], &event["content"][0]["text"]];
    let did = event["interrupted"].as_bool().map(|did| if did { "interrupted" } else { "nothing was running" });
    let told = told.into_iter().find_map(Value::as_str).or(did).unwrap_or_default();
    let code = event["exit_code"].as_i64().unwrap_or(is_error.into()) as i32;
    let ours = code == EXIT_FAILED && !told.starts_with("SystemExit"); // a failure of our own, not a cell's
    let told = &format!("{}{told}", if ours { "mcp-py-client: " } else { "" });
    let (to, text, whole, code) = match (text("stdout"), text("stderr"), text("note").or(saved.as_deref())) {
        (Some(text), ..) => (0, text, false, None),
        (_, Some(text), _) => (1, text, false, None),
        (.., Some(note)) => (1, note, true, None),
        _ => (is_error.into(), &told[..], true, Some(code)),
    };
    // Nothing to show though there is more: a reader who is gone would have ended us by it.
    let gone = text.is_empty() && code.is_none() && sys::poll(&mut [sys::watch(1, 0)], Instant::now());
    let text = if gone { "\n" } else { text };
    if !text.is_empty() {
        let (start, end) = (if whole && !fresh[to] { "\n" } else { "" }, if whole { "\n" } else { "" });
        let text = format!("{start}{text}{end}");
        fresh[to] = text.ends_with('\n');
        let mut out: Box<dyn Write> = if to == 0 { Box::new(io::stdout()) } else { Box::new(io::stderr()) };
        out.write_all(text.as_bytes()).and_then(|()| out.flush())?;
    }
    Ok(code)
}

/// One request to the bridge, by HTTP/1.0, whose answers have no chunks: the JSON lines of its answer, as they come.
fn request<'a>(mut to: &'a UnixStream, method: &str, path: &str, body: &Value) -> impl Iterator<Item = Value> + 'a {
    let body = body.to_string();
    let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    // Where this fails, there may be an early answer that says why.
    let _ = to.write_all(head.as_bytes()).and_then(|()| to.write_all(body.as_bytes()));
    let lines = BufReader::new(to).lines().map_while(Result::ok).skip_while(|line| !line.is_empty()).skip(1);
    lines.map_while(|line| serde_json::from_str(&line).ok())
}

const FORBIDDEN: &str = ": a sandbox or another user may forbid it";

/// Connects to a socket of this user, whose server is this user's too (I10); returns the server's pid.
fn connect(path: &str) -> Result<(UnixStream, i32), String> {
    let failed = |error: io::Error| {
        let why = if error.kind() == ErrorKind::PermissionDenied { FORBIDDEN } else { "" };
        format!("{path}: {error}{why}")
    };
    let own = sys::user_id();
    let check = |uid: u32| ensure(uid == own, || format!("{path} belongs to uid {uid}, you are {own}"));
    check(fs::symlink_metadata(path).map_err(failed)?.uid())?;
    let stream = UnixStream::connect(path).map_err(failed)?;
    let (pid, uid) = sys::peer(&stream).ok_or_else(|| format!("{path}: who listens there can't be told"))?;
    check(uid).map(|()| (stream, pid))
}

fn is_dead(socket: &str) -> bool {
    UnixStream::connect(socket).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// What looks like sockets of servers, anyone's.
fn sockets() -> BTreeSet<String> {
    let entries = fs::read_dir("/tmp").into_iter().flatten().flatten();
    let paths = entries.filter_map(|entry| entry.path().into_os_string().into_string().ok());
    paths.filter(|path| path.starts_with(SOCKETS) && path.ends_with(".sock")).collect()
}

/// The server of this session: under the nearest ancestor that has one; else the one whose session_id is ours.
fn find_session() -> Result<(UnixStream, i32), String> {
    let (seen, mut refused, mut live) = (processes(), String::new(), BTreeMap::new());
    let above: Vec<_> = ancestors(std::process::id() as i32, &seen).map(|(pid, _)| pid).collect();
    let distance = |path: &String| {
        let host = path[SOCKETS.len()..].split(['-', '.']).next().and_then(|host| host.parse().ok());
        above.iter().position(|pid| Some(*pid) == host).unwrap_or(above.len())
    };
    let mut sockets: Vec<_> = sockets().into_iter().rev().collect(); // `…-P.sock` before `…-P-*.sock`
    sockets.sort_by_key(distance);
    for path in sockets {
        let host = above.get(distance(&path));
        match connect(&path) {
            Ok((stream, pid)) if ancestors(pid, &seen).any(|(above, _)| Some(&above) == host) => {
                return Ok((stream, pid));
            }
            Ok((stream, pid)) => {
                refused.extend(host.map(|host| format!("  {path}: its process {pid} is not under {host}\n")));
                let _ = stream.set_read_timeout(Some(HEALTH_LIMIT));
                if let Some(health) = request(&stream, "GET", "/health", &Value::Null).next() {
                    live.entry(inode(path.as_ref())).or_insert((path, health)); // which has two names
                }
            }
            Err(why) if host.is_some() || why.ends_with(FORBIDDEN) => refused += &format!("  {why}\n"),
            Err(_) => {}
        }
    }
    let session = env::var("CLAUDE_CODE_SESSION_ID").ok().map(Value::from);
    if let Some((path, _)) = live.values().find(|(_, health)| session.as_ref() == Some(&health["session_id"])) {
        return connect(path);
    }
    let shown = |(path, health): &(String, Value)| {
        let text = |name: &str| health[name].as_str().unwrap_or("?").to_owned();
        format!("\n  {} ({}): --socket {path}", text("project_dir"), text("host"))
    };
    let list: String = live.values().map(shown).collect();
    let none = "`claude mcp add` starts one; in a sandbox see README, Security, or use the tool `execute`";
    let others = if live.is_empty() { none } else { "yours are:" };
    let looked_for = format!("no {SOCKETS}PID.sock of a process above this one answers");
    Err(format!("no server of this session: {looked_for}\n{refused}{others}{list}"))
}

// ── 12. Install and doctor ───────────────────────────────────────────────────────────────────────────────────────────

/// Copies this program to a folder, makes its two names there, and tries both doors. Safe while an old one runs.
fn install(dir: Option<&OsString>) -> Result<String, String> {
    let dir = dir.map(PathBuf::from).or_else(|| Some(home_dir()?.join(".local/bin")));
    let dir = dir.ok_or("there is no home directory: give --dir")?;
    let dir = fs::create_dir_all(&dir).and_then(|()| fs::canonicalize(&dir)).map_err(about(&dir))?;
    let [program, server, client] = ["mcp-py", "mcp-py-server", "mcp-py-client"].map(|name| dir.join(name));
    let beside = dir.join(format!(".mcp-py.new-{}", std::process::id()));
    let is_dir = |one: &Path| fs::canonicalize(one).is_ok_and(|one| one == dir);
    let to_program = |to: &Path| to.file_name() == program.file_name() && to.parent().is_some_and(is_dir);
    let linked = |link: &Path| fs::read_link(link).is_ok_and(|to| to_program(&dir.join(to)));
    let own = env::current_exe().and_then(fs::canonicalize).map_err(about("our own file"))?;
    // A program is ours where one of its names is a link to it, and where it is what runs here.
    let is_ours = linked(&server) || linked(&client) || fs::canonicalize(&program).is_ok_and(|path| path == own);
    for (path, ours) in [(&program, is_ours), (&server, linked(&server)), (&client, linked(&client))] {
        let way = "the Python original goes by `uv tool uninstall python-interpreter-mcp`, anything else by hand";
        ensure(ours || fs::symlink_metadata(path).is_err(), || {
            format!("{} is in the way and not ours; {way}", path.display())
        })?;
    }
    let put = || {
        fs::copy(own, &beside)?;
        File::open(&beside)?.sync_all()?;
        for link in [&server, &client] {
            let made = std::os::unix::fs::symlink("mcp-py", link);
            made.or_else(|why| linked(link).then_some(()).ok_or(why))?; // it may have been there
        }
        fs::rename(&beside, &program) // last: the names beside it say that it is ours
    };
    put().inspect_err(|_| _ = fs::remove_file(&beside)).map_err(about(&dir))?;
    let failed = |why: io::Error| format!("{} is installed, but its trial failed: {why}", program.display());
    try_both_doors(&server, &client).map_err(failed)?;
    let (program, server) = (program.display(), quoted(&server));
    let on_path = env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|one| is_dir(&one)));
    let dir = dir.display();
    let hint = if on_path { String::new() } else { format!("\n{dir} is not on PATH: export PATH=\"{dir}:$PATH\"\n") };
    Ok(format!(
        "\
installed {program} {VERSION}, and beside it mcp-py-server and mcp-py-client
tried it: x = 1 + 1 by MCP, then x by the client: 2
{hint}
next, for Claude Code:
  claude mcp add python-interpreter -- {server}
and so that the client needs no approval, in .claude/settings.json:
  {{\"permissions\": {{\"allow\": [\"Bash(mcp-py-client:*)\"]}}}}
"
    ))
}

/// A path as a word for the shell.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = path.chars().all(|c| c.is_alphanumeric() || "/._-+,:@%".contains(c));
    if plain {
        path
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

/// Whether a session with the new server knows 1 + 1, and the new client has that out of it.
fn try_both_doors(server: &Path, client: &Path) -> io::Result<()> {
    let mut child = Command::new(server).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let answers = BufReader::new(child.stdout.take().ok_or(ErrorKind::BrokenPipe)?);
    let mut answers = serde_json::Deserializer::from_reader(answers).into_iter::<Value>();
    let mut ask = |method: &str, params: Value| {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        writeln!(child.stdin.as_ref().ok_or(ErrorKind::BrokenPipe)?, "{request}")?;
        answers.next().ok_or(ErrorKind::UnexpectedEof)?.map_err(io::Error::from)
    };
    let expect = |door: &str, told: &str| match told.trim_end().lines().last() {
        Some("2") => Ok(()), // there may be notes before it
        _ => Err(io::Error::other(format!("{door} answers {told}"))),
    };
    ask("initialize", json!({"protocolVersion": LEGACY[0], "capabilities": {}, "clientInfo": {}}))?;
    let by_mcp = ask("tools/call", json!({"name": "execute", "arguments": {"code": "x = 1 + 1; x"}}))?;
    expect("MCP", by_mcp["result"]["content"][0]["text"].as_str().unwrap_or_default())?;
    let info = ask("tools/call", json!({"name": "get_session_info"}))?;
    let socket = info["result"]["structuredContent"]["socket_path"].as_str().unwrap_or_default();
    let by_client = Command::new(client).args(["--socket", socket, "-c", "x"]).output()?;
    child.wait()?; // which closes its stdin first
    expect("the client", &String::from_utf8_lossy(&[by_client.stderr, by_client.stdout].concat()))
}

/// What this machine has of what we need, a line each for stdout: what is found, or what is wrong and what to do. The
/// exit code says whether all of it is good.
fn doctor() -> (String, String, u8) {
    let own = env::current_exe().and_then(fs::canonicalize).unwrap_or_default();
    let shown = |path: &Path| path.display().to_string();
    let role = |name: &str| match find_on_path(name) {
        Some(path) if fs::canonicalize(&path).is_ok_and(|path| path == own) => Ok(shown(&path)),
        Some(path) => Err(format!("{} is another program: remove it, or put our folder before it", path.display())),
        None => Err(format!("{name} is not on PATH: run `mcp-py install`, and do what it says about PATH")),
    };
    let program = |name| Ok(find_on_path(name).map_or("missing: /proc is read instead".into(), |path| shown(&path)));
    let writable = |dir: &Path| {
        let file = dir.join(format!(".mcp-py-doctor-{}", std::process::id()));
        let made = File::create_new(&file).inspect(|_| _ = fs::remove_file(&file));
        made.map(|_| shown(dir)).map_err(|error| format!("{}: {error}: make it writable", dir.display()))
    };
    let base = check_config(&Object::new());
    let found = base.clone().and_then(|base| {
        let [_, name, is] = ask_base(&base, None, "look", None)?;
        let env = saved_dir()?.join(name);
        let state = if env.join(MADE).is_file() { "" } else { " (will be made at the first start)" };
        Ok((format!("{} is {is}", base.display()), shown(&env) + state))
    });
    let pip = || {
        let text = output_of(base.unwrap_or_default(), &["-I", "-m", "pip", "--version"], ENVIRONMENT_LIMIT);
        let none = "neither uv nor pip: a missing package can't be installed; install uv or python3-pip";
        text.starts_with("pip ").then_some(text).ok_or(none.to_owned())
    };
    let (stale, live): (Vec<_>, Vec<_>) = sockets().into_iter().partition(|path| is_dead(path));
    let host = HOST.pid.map_or("none".into(), |pid| format!("{} ({pid})", HOST.name.as_deref().unwrap_or("?")));
    let session = find_session().map_or("none above this shell".into(), |(_, pid)| format!("server {pid} answers"));
    let configuration = saved_dir().and_then(|dir| {
        let there = dir.ancestors().find(|place| place.exists()).unwrap_or(&dir); // the rest is made when it is needed
        writable(there).map(|_| shown(&dir))
    });
    let facts = [
        ("version", Ok(format!("{VERSION}, {}", own.display()))),
        ("server", role("mcp-py-server")),
        ("client", role("mcp-py-client")),
        ("python", found.clone().map(|(python, _)| python)),
        ("environment", found.map(|(_, environment)| environment)),
        ("installer", find_on_path("uv").map_or_else(pip, |path| Ok(shown(&path)))),
        ("ps", program("ps")),
        ("lsof", program("lsof")),
        ("host", Ok(host)),
        ("session", Ok(session)),
        ("live", Ok(format!("{} sockets answer {}", live.len(), live.join(" ")))),
        ("stale", Ok(format!("{} sockets of dead servers, which the next server removes", stale.len()))),
        ("saved", load_saved().map(|(list, _)| format!("{} saved interpreters", list.len()))),
        ("configuration", configuration),
        ("output", writable(&env::temp_dir())),
        ("sockets", writable(Path::new("/tmp"))),
    ];
    let line = |(fact, found): &(&str, Result<String, String>)| match found {
        Ok(text) => format!("ok   {fact:<13} {}\n", text.trim_end()),
        Err(why) => format!("BAD  {fact:<13} {why}\n"),
    };
    (facts.iter().map(line).collect(), String::new(), facts.iter().any(|(_, found)| found.is_err()).into())
}

// ── 13. The host ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// Who started us.
struct Host {
    pid: Option<i32>,
    name: Option<String>,
    is_claude: bool,
}

/// Where the host works.
struct Project {
    dir: PathBuf,
    verified: bool, // the host holds files of Claude's configuration open: a fact to report, never a gate
}

/// A process in a snapshot.
struct Seen {
    parent: i32,
    name: String,    // the base name of its program, as ps tells it
    program: String, // the first word of its command line
}

/// It takes a `ps`: for threads, never for the loop (I2), as PROJECT and PUBLISHED are.
static HOST: LazyLock<Host> = LazyLock::new(|| find_host(std::process::id() as i32, &processes()));

/// It takes an `lsof`.
static PROJECT: LazyLock<Project> = LazyLock::new(|| {
    let mut files = HOST.pid.map(open_files).unwrap_or_default();
    let cwd = files.remove("cwd").filter(|cwd| cwd.is_dir());
    let told = env::var_os("CLAUDE_PROJECT_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let dir = told.or(cwd).or_else(|| env::current_dir().ok()).unwrap_or_else(|| "/".into());
    let places = [config_dir(), Some(dir.join(".claude"))];
    let verified = files.values().any(|file| places.iter().flatten().any(|place| file.starts_with(place)));
    Project { dir, verified }
});

/// Nearest first; never init or the kernel, and no more than a real chain has.
fn ancestors(of: i32, seen: &BTreeMap<i32, Seen>) -> impl Iterator<Item = (i32, &Seen)> + Clone {
    let parent = |pid: i32| seen.get(&pid).map(|one| one.parent).filter(|parent| *parent > 1);
    let above = move |pid: i32| parent(pid).and_then(|parent| Some((parent, seen.get(&parent)?)));
    std::iter::successors(above(of), move |(pid, _)| above(*pid)).take(64)
}

/// The nearest ancestor that is Claude; else the parent, or who started that, where it is a mere launcher of servers.
fn find_host(own: i32, seen: &BTreeMap<i32, Seen>) -> Host {
    let mut chain = ancestors(own, seen);
    let is_claude = |one: &Seen| one.name.eq_ignore_ascii_case("claude") || one.program.contains("/claude/versions/");
    let claude = chain.clone().find(|(_, one)| is_claude(one));
    let other = chain.find(|(_, one)| !["uv", "uvx", "npx", "npm"].contains(&one.name.as_str()));
    let named = claude.map(|_| "claude").or(other.map(|(_, one)| &*one.name)); // its own may be that of a version
    Host { pid: claude.or(other).map(|(pid, _)| pid), name: named.map(str::to_owned), is_claude: claude.is_some() }
}

/// All processes, from one `ps`; where there is none that we understand, from /proc.
fn processes() -> BTreeMap<i32, Seen> {
    let parse = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (pid, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let name = words.next()?.rsplit('/').next()?.trim_start_matches('-').to_owned();
        Some((pid, Seen { parent, name, program: words.next().unwrap_or_default().to_owned() }))
    };
    let told = output_of("ps", &["-A", "-ww", "-o", "pid=,ppid=,comm=,args="], SNAPSHOT_LIMIT);
    let seen: BTreeMap<_, _> = told.lines().filter_map(parse).collect();
    if seen.contains_key(&(std::process::id() as i32)) {
        return seen;
    }
    let from_proc = |entry: fs::DirEntry| {
        let read = |name: &str| Some(String::from_utf8_lossy(&fs::read(entry.path().join(name)).ok()?).into_owned());
        let (status, command) = (read("status")?, read("cmdline")?);
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let (pid, parent, name) = (field("Pid:")?, field("PPid:")?, field("Name:")?);
        parse(&format!("{pid} {parent} {name} {}", command.replace('\0', " ")))
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(from_proc).collect()
}

/// The open files of a process by descriptor, with its working directory as `cwd`: from one `lsof`, else from /proc.
fn open_files(pid: i32) -> BTreeMap<String, PathBuf> {
    let told = output_of("lsof", &["-w", "-n", "-P", "-F", "fn", "-p", &pid.to_string()], SNAPSHOT_LIMIT);
    let named = told.split("\nf").filter_map(|file| file.split_once("\nn"));
    let files: BTreeMap<_, _> = named.map(|(fd, path)| (fd.to_owned(), PathBuf::from(path.trim_end()))).collect();
    if files.get("cwd").is_some_and(|cwd| cwd.is_absolute() && cwd.is_dir()) {
        return files;
    }
    let place = PathBuf::from(format!("/proc/{pid}"));
    let links = fs::read_dir(place.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let file = |link: PathBuf| Some((link.file_name()?.to_str()?.to_owned(), fs::read_link(&link).ok()?));
    links.chain([place.join("cwd")]).filter_map(file).collect()
}

/// What a program prints; nothing where it is missing, takes longer than `limit` or prints too much.
fn output_of(program: impl AsRef<OsStr>, arguments: &[&str], limit: Duration) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    run_program(command, limit, None).map(|(_, text)| text).unwrap_or_default()
}

impl Host {
    /// Read when asked for, so that a hook which writes late is no race: from sessions.json the one active session of
    /// this Claude, else what Claude gave our environment.
    fn session_id(&self) -> Option<String> {
        let text = saved_dir().ok().and_then(|dir| fs::read(dir.with_file_name("sessions.json")).ok());
        let root: Value = serde_json::from_slice(&text.unwrap_or_default()).unwrap_or_default();
        let sessions = root["sessions"].as_array().into_iter().flatten();
        let is_ours = |one: &&Value| self.is_claude && one["claude_pid"] == json!(self.pid) && one["state"] == "active";
        let ids: Vec<_> = sessions.filter(is_ours).filter_map(|session| session["session_id"].as_str()).collect();
        match ids[..] {
            [id] => Some(id.to_owned()),
            _ => env::var("CLAUDE_CODE_SESSION_ID").ok().filter(|id| !id.is_empty()),
        }
    }
}

/// Claude's configuration directory.
fn config_dir() -> Option<PathBuf> {
    let told = env::var_os("CLAUDE_CONFIG_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    told.or_else(|| Some(home_dir()?.join(".claude")))
}

/// ISO 8601, UTC, whole seconds. Days are counted in eras of 400 years from a 1 March, so that a leap day is last.
fn iso_time(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // from March
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + 400 * era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

fn uptime(since: Instant) -> String {
    let seconds = since.elapsed().as_secs_f64();
    let units = [(86_400.0, "d"), (3_600.0, "h"), (60.0, "min")];
    let (length, unit) = units.into_iter().find(|(length, _)| seconds >= *length).unwrap_or((1.0, "s"));
    format!("{:.1} {unit}", seconds / length)
}

// ── 14. mod rpc, mod http, mod sys ───────────────────────────────────────────────────────────────────────────────────

/// JSON-RPC 2.0 as MCP uses it: lines and messages. No I/O.
mod rpc {
    use super::{json, Value, REQUEST_BYTES_MAX};

    pub const PARSE_ERROR: i64 = -32700;
    pub const INVALID_REQUEST: i64 = -32600;
    pub const METHOD_NOT_FOUND: i64 = -32601;
    pub const INVALID_PARAMS: i64 = -32602;
    pub const INTERNAL_ERROR: i64 = -32603;
    pub const UNSUPPORTED_VERSION: i64 = -32022; // MCP 2026-07-28

    /// Takes the lines of a stream, without their ends, and keeps in `partial` what is none yet; of one over the limit
    /// a byte too much, by which `parse` knows it.
    pub fn feed(partial: &mut Vec<u8>, bytes: &[u8], mut take: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = REQUEST_BYTES_MAX + 1 - partial.len();
            partial.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                take(&std::mem::take(partial));
            }
        }
    }

    pub enum Message {
        Request { id: Value, method: String, params: Value },
        Notification { method: String, params: Value },
        Nothing,                    // a blank line, or a response: we never ask
        Unreadable { why: String }, // a notification that can't be read: never answered
        Invalid { id: Option<Value>, code: i64, why: String },
    }

    fn invalid(id: Option<Value>, why: &str) -> Message {
        Message::Invalid { id, code: INVALID_REQUEST, why: why.into() }
    }

    pub fn parse(line: &[u8]) -> Message {
        if line.len() > REQUEST_BYTES_MAX {
            return invalid(None, &format!("the line is longer than {REQUEST_BYTES_MAX} bytes"));
        } else if line.trim_ascii().is_empty() {
            return Message::Nothing;
        }
        let why = match serde_json::from_slice(line) {
            Ok(value) => return classify(value),
            Err(error) => format!("not JSON: {error}"),
        };
        // serde_json refuses escapes of lone surrogates: read again without, to find the id.
        match without_lone_surrogates(line).and_then(|line| serde_json::from_slice(&line).ok()).map(classify) {
            Some(Message::Request { id, .. }) => {
                invalid(Some(id), "a string holds the escape of a lone surrogate, which is no Unicode text")
            }
            Some(Message::Notification { .. } | Message::Nothing) => Message::Unreadable { why },
            Some(other) => other,
            None => Message::Invalid { id: None, code: PARSE_ERROR, why },
        }
    }

    fn classify(mut value: Value) -> Message {
        let is_answer = value.get("result").or(value.get("error")).is_some();
        let mut member = |name| value.get_mut(name).map(Value::take);
        let (version, id, method) = (member("jsonrpc"), member("id"), member("method"));
        let params = member("params").unwrap_or_default();
        let good_id = id.clone().filter(|id| id.is_string() || id.is_i64() || id.is_u64());
        match (method, good_id) {
            _ if !value.is_object() => invalid(None, "a message must be an object; batches are not offered"),
            (_, good_id) if version != Some("2.0".into()) => invalid(good_id, "\"jsonrpc\" must be \"2.0\""),
            (None, _) if is_answer => Message::Nothing,
            (Some(Value::String(method)), Some(id)) => Message::Request { id, method, params },
            (Some(Value::String(method)), None) if id.is_none() => Message::Notification { method, params },
            (Some(Value::String(_)), None) => invalid(None, "\"id\" must be a string or an integer of 64 bits"),
            (_, good_id) => invalid(good_id, "\"method\" must be a string"),
        }
    }

    /// The text with U+FFFD for each `\ud800`…`\udfff` that is no half of a pair; None where there is none.
    pub fn without_lone_surrogates(text: &[u8]) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(text).ok()?;
        let unit = |at: usize| u16::from_str_radix(text.get(at..at + 6)?.strip_prefix("\\u")?, 16).ok();
        let (mut clean, mut at) = (text.as_bytes().to_vec(), 0);
        while at < clean.len() {
            at += match (clean[at], unit(at)) {
                (b'\\', Some(0xd800..=0xdbff)) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => 12,
                (b'\\', Some(0xd800..=0xdfff)) => {
                    clean[at..at + 6].copy_from_slice(b"\\ufffd");
                    6
                }
                (b'\\', _) => 2, // the next one may be a backslash, too
                _ => 1,
            };
        }
        (clean != text.as_bytes()).then_some(clean)
    }

    fn line(message: Value) -> Vec<u8> {
        format!("{message}\n").into_bytes()
    }

    pub fn response(id: &Value, result: Value) -> Vec<u8> {
        line(json!({"jsonrpc": "2.0", "id": id, "result": result}))
    }

    /// `data` is left out where it is null, `id` where there is none.
    pub fn error(id: Option<&Value>, code: i64, message: &str, data: Value) -> Vec<u8> {
        let mut response = json!({"jsonrpc": "2.0", "error": {"code": code, "message": message}});
        if !data.is_null() {
            response["error"]["data"] = data;
        }
        id.into_iter().for_each(|id| response["id"] = id.clone());
        line(response)
    }

    pub fn notification(method: &str, params: Value) -> Vec<u8> {
        line(json!({"jsonrpc": "2.0", "method": method, "params": params}))
    }
}

/// The head of an HTTP/1.1 request (RFC 9112), strictly: what is ambiguous is refused. No I/O.
mod http {
    use super::{HTTP_HEAD_BYTES_MAX, REQUEST_BYTES_MAX};

    pub struct Head {
        pub method: String,
        pub path: String,  // without scheme, authority and query
        pub size: usize,   // of the head
        pub length: usize, // of the body
        pub expects: bool, // 100 Continue
        pub old: bool,     // HTTP/1.0
    }

    /// Status line after the version, with further header lines if need be, and what is said to people.
    pub type Refusal = (&'static str, String);

    /// None where it is not complete.
    pub fn head(bytes: &[u8]) -> Option<Result<Head, Refusal>> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        let seen = &bytes[..end.unwrap_or(bytes.len()).min(HTTP_HEAD_BYTES_MAX + 1)];
        let text = String::from_utf8_lossy(seen);
        let mut lines = text.strip_suffix('\r').unwrap_or(&text).split("\r\n"); // a last CR's LF may still come
        if lines.any(|line| line.contains(['\r', '\n', '\0'])) {
            return Some(Err(("400 Bad Request", "the head has a bare CR, a bare LF or a NUL".into())));
        }
        if seen.len() > HTTP_HEAD_BYTES_MAX {
            let why = format!("the head is longer than {HTTP_HEAD_BYTES_MAX} bytes");
            return Some(Err(("431 Request Header Fields Too Large", why)));
        }
        end.map(|size| parse(text.trim_end_matches("\r\n"), size))
    }

    fn parse(head: &str, size: usize) -> Result<Head, Refusal> {
        let (line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
        let words: Vec<_> = line.split(' ').collect();
        let [method, target, version @ ("HTTP/1.1" | "HTTP/1.0")] = words[..] else {
            return Err(("400 Bad Request", "the request line is not METHOD TARGET HTTP/1.1".into()));
        };
        let headers = headers.to_ascii_lowercase();
        let headers: Vec<_> = headers.lines().map(|line| line.split_once(':').unwrap_or_default()).collect();
        let values = |of: &str| -> Vec<&str> {
            headers.iter().filter(|(name, _)| *name == of).map(|(_, value)| value.trim_matches([' ', '\t'])).collect()
        };
        let (hosts, lengths) = (values("host"), values("content-length"));
        let (codings, expected) = (values("transfer-encoding"), values("expect"));
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        let is_number = |digits: &&str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let length = lengths.first().map_or(0, |digits| digits.parse().unwrap_or(usize::MAX));
        let too_long = format!("the body is longer than {REQUEST_BYTES_MAX} bytes");
        let (old, is_sized) = (version == "HTTP/1.0", method != "POST" || !lengths.is_empty());
        let rules = [
            (headers.iter().all(|(name, _)| is_name(name)), "400 Bad Request", "a header line is not NAME: VALUE"),
            (hosts.len() == 1 || (hosts.is_empty() && old), "400 Bad Request", "there must be one Host"),
            (codings.iter().all(|one| *one == "chunked"), "501 Not Implemented", "the Transfer-Encoding is unknown"),
            (codings.is_empty() && is_sized, "411 Length Required", "send a Content-Length, not chunks"),
            (expected.iter().all(|one| *one == "100-continue"), "417 Expectation Failed", "expect 100-continue only"),
            (lengths.len() < 2 && lengths.iter().all(is_number), "400 Bad Request", "Content-Length is not one number"),
            (length <= REQUEST_BYTES_MAX, "413 Content Too Large", &too_long),
        ];
        if let Some((_, status, why)) = rules.into_iter().find(|(is_kept, ..)| !is_kept) {
            return Err((status, why.into()));
        }
        let target = target.split('?').next().unwrap_or_default();
        let absolute = target.split_once("://").filter(|_| !target.starts_with('/'));
        let path = absolute.map_or(target, |(_, rest)| rest.find('/').map_or("/", |at| &rest[at..]));
        Ok(Head { method: method.into(), path: path.into(), size, length, expects: !expected.is_empty(), old })
    }
}

/// What the standard library does not offer of POSIX. All `unsafe` of the program is here.
#[allow(unsafe_code)]
mod sys {
    use super::{io, AsRawFd, Command, ErrorKind, File, Instant, UnixStream};
    use std::os::unix::process::CommandExt;

    /// Has the signals that end us wake the loop, as a byte on its socket. SIGHUP stays ignored under nohup. SIGCHLD
    /// gets its default: ignored, as some hosts leave it, it would reap our children.
    pub fn catch_signals() {
        extern "C" fn wake(signal: libc::c_int) {
            if let Some((_, socket)) = super::POST.get() {
                // SAFETY: write(2) may be called in a handler, and reads one byte of this frame.
                unsafe { libc::write(socket.as_raw_fd(), [signal as u8].as_ptr().cast(), 1) };
            }
        }
        // SAFETY: the handler only loads a pointer and writes.
        unsafe {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                if libc::signal(signal, wake as *const () as usize) == libc::SIG_IGN && signal == libc::SIGHUP {
                    libc::signal(signal, libc::SIG_IGN);
                }
            }
        }
    }

    /// Makes the command's process the leader of a session, hence of a group, without a terminal; on Linux it is killed
    /// when the thread that spawns it ends (prctl(2), PR_SET_PDEATHSIG).
    pub fn own_session(command: &mut Command) {
        let parent = std::process::id() as i32;
        // SAFETY: between fork and exec only plain system calls are made, nothing is allocated and no lock taken.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                #[cfg(target_os = "linux")]
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // Where we died before the prctl, nobody would kill it.
                (libc::getppid() == parent).then_some(()).ok_or_else(|| ErrorKind::NotFound.into())
            })
        };
    }

    /// Waits until a child of ours has exited; it stays unreaped (waitid(2), WNOWAIT). Signals do not cut it short, for
    /// signal(3) installs handlers with SA_RESTART.
    pub fn wait_for_exit(pid: i32) {
        // SAFETY: all-zero bytes are a valid siginfo_t, which waitid fills.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, libc::WEXITED | libc::WNOWAIT);
        }
    }

    /// kill(2), of an unreaped child of ours or of the group that it leads.
    pub fn signal(pid: i32, signal: i32, group: bool) {
        // SAFETY: a plain system call.
        unsafe { libc::kill(if group { -pid } else { pid }, signal) };
    }

    /// An entry for `poll`, a new one each time; -1 for no descriptor.
    pub fn watch(fd: i32, events: libc::c_short) -> libc::pollfd {
        libc::pollfd { fd, events, revents: 0 }
    }

    /// poll(2): waits until something is ready, or the time has come; false where nothing is.
    pub fn poll(set: &mut [libc::pollfd], until: Instant) -> bool {
        let time = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1_000).min(i32::MAX as u128);
        // SAFETY: the pointer and the length are those of one slice; poll(2) writes `revents` only.
        let ready = unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, time as i32) };
        if ready < 0 {
            std::thread::sleep(std::time::Duration::from_millis(10)); // ENOMEM, EINVAL; a signal can wait as long
        }
        ready > 0
    }

    /// Writes as much as the descriptor takes without blocking, and returns how much that was; all of it where writing
    /// fails, for then there is nobody to write to. O_NONBLOCK would also change the descriptor for whoever shares it:
    /// a pipe that polls writable takes PIPE_BUF bytes (poll(2), pipe(7)), at least 4096 on what we run on.
    pub fn write_ready(fd: i32, bytes: &[u8]) -> usize {
        let (mut written, now) = (0, Instant::now());
        while written < bytes.len() && poll(&mut [watch(fd, libc::POLLOUT)], now) {
            let most = if fd > 2 { bytes.len() } else { 4096 }; // our own sockets are non-blocking
            let piece = &bytes[written..bytes.len().min(written + most)];
            // SAFETY: write(2) reads the slice's length from it.
            match unsafe { libc::write(fd, piece.as_ptr().cast(), piece.len()) } {
                count @ 0.. => written += count as usize,
                _ if io::Error::last_os_error().kind() == ErrorKind::WouldBlock => break,
                _ => return bytes.len(),
            }
        }
        written
    }

    /// Bytes that can be read without blocking (FIONREAD).
    pub fn bytes_readable(fd: &File) -> usize {
        let mut count: libc::c_int = 0;
        // SAFETY: this request writes one int.
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD as _, &mut count) };
        count.max(0) as usize
    }

    /// Asks for a larger pipe where that can be asked; it works without.
    pub fn widen_pipe(_fd: &impl AsRawFd, _bytes: usize) {
        // SAFETY: a plain system call.
        #[cfg(target_os = "linux")]
        let _ = unsafe { libc::fcntl(_fd.as_raw_fd(), libc::F_SETPIPE_SZ, _bytes as libc::c_int) };
    }

    /// flock(2), exclusive, without waiting.
    pub fn try_lock(fd: &File) -> bool {
        // SAFETY: a plain system call.
        unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
    }

    /// SIGPIPE ends us, as it ends programs that are not Rust's.
    pub fn default_sigpipe() {
        // SAFETY: the default action is no function.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }

    /// getsockopt(2), of an option whose value is integers.
    fn option<T>(stream: &UnixStream, level: libc::c_int, name: libc::c_int) -> Option<T> {
        let mut size = size_of::<T>() as libc::socklen_t;
        // SAFETY: all-zero bytes are valid integers, of which at most `size` bytes are filled.
        unsafe {
            let mut value: T = std::mem::zeroed();
            let got = libc::getsockopt(stream.as_raw_fd(), level, name, (&raw mut value).cast(), &mut size);
            (got == 0).then_some(value)
        }
    }

    /// Process and user at the other end of a Unix socket (unix(7), unix(4)): of who connected, or who listens.
    pub fn peer(stream: &UnixStream) -> Option<(i32, u32)> {
        #[cfg(target_os = "linux")]
        return option::<libc::ucred>(stream, libc::SOL_SOCKET, libc::SO_PEERCRED).map(|peer| (peer.pid, peer.uid));
        #[cfg(target_os = "macos")]
        {
            let peer: libc::xucred = option(stream, libc::SOL_LOCAL, libc::LOCAL_PEERCRED)?;
            Some((option(stream, libc::SOL_LOCAL, libc::LOCAL_PEERPID)?, peer.cr_uid))
        }
    }

    pub fn user_id() -> u32 {
        // SAFETY: a plain system call that can't fail.
        unsafe { libc::geteuid() }
    }
}

#[cfg(test)]
#[path = "../tests/unit/mod.rs"]
mod unit;
