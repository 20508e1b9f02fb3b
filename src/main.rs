//! mcp-py: one persistent Python that a coding agent and the person beside it can both use and read.
//!
//! ```text
//!  host (claude, …) ── stdin ──▶ main thread: reads lines, answers at once or hands a cell to an interpreter
//!        ▲                          │ writes the request to an idle worker itself: no hop on the way in
//!        │                          ▼
//!        │                  Interpreter: queue and life ◀── interrupts, orders to leave or die
//!        │                          │
//!        └── stdout ◀── pump thread, one for each interpreter that runs: spawns its Python, polls the control
//!              ▲            │ ▲ ▲   socket, the output pipes and a wake socket, keeps the clock, buries the dead
//!              │            ▼ │ │
//!              │        control fd 1, fd 2
//!              │            │ │ │
//!              │        python -c … (src/worker.py): own session and process group, runs cells in __main__
//!              │
//!        stdout thread: takes over only what stdout would not take at once
//!        signals thread: SIGTERM, SIGINT, SIGHUP end the server; SIGCHLD wakes the pumps
//!        call threads: one for each call that looks at files or processes (add, stop, list, session info)
//! ```
//!
//! Who closes what: the server closes the control socket to let an idle worker leave. A worker's death is its exit,
//! never an end of file, for its children may hold its pipes open. The pump closes its pipes after the burial.
//!
//! Invariants, cited where the code upholds them:
//!
//! - I1  Our stdout carries MCP messages and nothing else. What is said to people goes to stderr.
//! - I2  Nothing blocks the reading of stdin: the thread that reads it waits for no file, process, lock or pipe that
//!   somebody else can hold up.
//! - I3  User code is never run twice.
//! - I4  Nothing a cell prints is lost or misplaced. What arrives between cells is shown with the next one.
//! - I5  State is lost only with notice, in the very next answer, with the cause.
//! - I6  User code can't reach the worker protocol through fds 0, 1, 2, sys.std* or child processes.
//! - I7  The worker starts no thread: all draining of pipes happens here.
//! - I8  A worker is signalled only while it is unreaped, by its pump thread alone. Death is noticed without reaping,
//!   then the group is killed, then it is reaped.
//! - I9  Every queue, buffer, frame, wait and loop has a limit; past it there is a clear error, never a hang.
//! - I11 When the server goes, by end of stdin, signal, crash or SIGKILL, its workers go, and its output files do not
//!   stand in the next server's way. (I10, who may connect, comes with the bridge.)
//!
//! Sections: 1 limits and names · 2 main and roles · 3 the server: stdin, stdout, signals, shutdown · 4 MCP methods ·
//! 5 the tools · 6 interpreters · 7 output and its files · 8 saved and discovered interpreters · 9 the host ·
//! 10 mod rpc, mod sys
//!
//! What the program never does: open a network connection, run a shell, write outside its output directory and
//! `~/.claude-workspace/python_interpreter`, signal a process that it did not start, or run a cell a second time.

use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::{net::UnixStream, process::ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{mpsc, Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, thread};

// ── 1. Limits and names ─────────────────────────────────────────────────────────────────────────────────────────────
//
// All limits are here (I9), with the reason of those that are not obvious.

const NAME: &str = "python-interpreter"; // serverInfo.name: the original's, so that settings and permissions stay valid
const VERSION: &str = env!("CARGO_PKG_VERSION");
const BUILTIN: &str = "builtin"; // the interpreter that is always there
const WORKER: &str = include_str!("worker.py");
const OUTPUT_DIR: &str = "python-interpreter-mcp-py-"; // and six characters: see OutputFiles

const REQUEST_BYTES_MAX: usize = 16 << 20; // one line on stdin: a cell with data in it
const STDOUT_PENDING_MAX: usize = 64 << 20; // answers the host has not taken; past it stdin is not read
const CELLS_WAITING_MAX: usize = 1_000; // over all interpreters
const CALLS_IN_THREADS_MAX: usize = 64; // calls that look at files or processes; subscriptions, too
const FRAME_BYTES_MAX: usize = 4 << 20; // one line from a worker: it sends results in parts of 256 Ki characters
/// How much of a pipe is read at a time, and the size of stdout's pipe on Linux: 64 KiB would cost four times the
/// context switches, 1 MiB for each of 50 interpreters would exhaust a user's share of pipe memory.
const PIPE_BYTES: usize = 256 << 10;
const LAST_OUTPUT_BYTES_MAX: usize = 64 << 20; // read after a worker's death: another process may still be writing

const TEXT_CHARS_MAX: usize = 25_000; // of an answer; a longer one shows its ends:
const HEAD_CHARS: usize = 20_000;
const TAIL_CHARS: usize = 5_000;
const NOTE_CHARS_MAX: usize = 10_000; // a note keeps its ends past this
const HEAD_BYTES: usize = 4 * TEXT_CHARS_MAX; // of a stream in memory; up to this much is not written to a file
const TAIL_BYTES: usize = 4 * (TAIL_CHARS + 1); // and a character cut in two
const CELL_FILE_BYTES_MAX: u64 = 1 << 30;
const SESSION_FILE_BYTES_MAX: u64 = 4 << 30; // the oldest files go first
const RESULT_CHARS_HINT: usize = 100_000; // told to Claude Code: an answer at its limit, notes and a traceback
const PROGRESS_MESSAGE_CHARS: usize = 200; // Claude Code shows about as many
const VALUE_SHOWN_CHARS: usize = 80; // of a wrong argument, in the error about it
const SECONDS: std::ops::RangeInclusive<f64> = 0.0..=1e7; // of a time limit: up to four months
const NAME_CHARS_MAX: usize = 64;
const SNAPSHOT_BYTES_MAX: usize = 8 << 20; // of what ps or lsof prints
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
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
const PROGRESS_AT_LEAST: Duration = Duration::from_secs(15); // the promise is 20 s: hosts give up on silence
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(2); // for ps, for lsof
const LOCK_LIMIT: Duration = Duration::from_secs(5); // for another server's save

const _: () = assert!(HEAD_CHARS + TAIL_CHARS <= TEXT_CHARS_MAX && 4 * HEAD_CHARS <= HEAD_BYTES);
const _: () = assert!(EOF_GRACE.as_millis() < SIGNAL_GRACE.as_millis());

/// Newest first. The versions before 2026-07-28 open with `initialize`.
const MODERN: &str = "2026-07-28";
const LEGACY: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
const CACHE_MS: u64 = 3_600_000; // how long a modern client may keep our lists: they never vary while we run

// ── 2. Main and roles ───────────────────────────────────────────────────────────────────────────────────────────────

const USAGE: &str = "\
usage: mcp-py server     speak MCP on stdin and stdout (also under the name mcp-py-server)
       mcp-py --version
       mcp-py --help
";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let role = arguments.first().and_then(|path| path.rsplit('/').next()?.strip_prefix("mcp-py-"));
    let words: Vec<&str> = role.into_iter().chain(arguments.iter().skip(1).map(String::as_str)).collect();
    let (mut to, text, code): (Box<dyn Write>, _, _) = match words[..] {
        ["server"] => serve(),
        ["--version"] | ["server", "--version"] => (Box::new(io::stdout()), format!("mcp-py {VERSION}\n"), 0),
        ["--help"] | ["server", "--help"] => (Box::new(io::stdout()), USAGE.to_owned(), 0),
        _ => (Box::new(io::stderr()), USAGE.to_owned(), 2),
    };
    ExitCode::from(to.write_all(text.as_bytes()).map_or(1, |()| code))
}

/// A line to people, on stderr (I1). One that nobody reads must not hold us up (I2): what it does not take is dropped.
fn say(text: &str) {
    sys::write_ready(io::stderr().as_fd(), format!("mcp-py-server: {text}\n").as_bytes());
}

/// A mutex whose holder panicked still has the best state that there is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let started = thread::Builder::new().name(name.into()).spawn(body);
    started.map(drop).map_err(|error| format!("no thread could be started: {error}"))
}

// ── 3. The server: stdin, stdout, signals, shutdown ─────────────────────────────────────────────────────────────────

/// One for the process, for the process's life.
#[derive(Default)]
struct Server {
    stdout: Stdout,
    calls: Mutex<Calls>,
    /// Told when a call or a pump thread ends.
    ended: Condvar,
    /// By name: those that run, and those that ran or are about to. Saved and discovered ones enter at first use.
    interpreters: Mutex<BTreeMap<String, Arc<Interpreter>>>,
    cells_waiting: AtomicUsize,
    files: Files,
    started: OnceLock<(Instant, SystemTime)>,
    host: OnceLock<Host>,
    project: OnceLock<Project>,
    /// A message came that means a session, not a mere question who we are.
    begun: AtomicBool,
    closing: AtomicBool,
}

/// The requests that are not answered yet, and the threads that work on them.
#[derive(Default)]
struct Calls {
    last_key: u64,
    /// By a key of our own, since a client may use an id twice. Whoever takes an entry out may answer it.
    open: BTreeMap<u64, Call>,
    /// Ids of `subscriptions/listen`: open until cancelled or until we go.
    listening: Vec<Value>,
    in_threads: usize,
    pumps: usize,
}

struct Call {
    id: Value,
    modern: bool,
    /// Given by the client: then the call reports its progress under it.
    progress_token: Option<Value>,
    /// Where its cell runs or waits, under the call's key.
    interpreter: Option<Arc<Interpreter>>,
}

fn serve() -> ! {
    // Before any thread starts, so that all inherit it: these signals go to the thread that waits for them.
    let signals = sys::block_signals();
    let server: &'static Server = Box::leak(Box::default());
    server.started.get_or_init(|| (Instant::now(), SystemTime::now()));
    if io::stdin().is_terminal() {
        say("an MCP server: it expects JSON-RPC on stdin, one message a line; Ctrl-D ends it");
    }
    let wait_for_signals = move || loop {
        match sys::wait_for_signal(&signals) {
            libc::SIGCHLD => server.each_interpreter(|interpreter| lock(&interpreter.state).wake()),
            // In a thread, so that the exits of the workers are still noticed here.
            signal => {
                let end = move || server.shut_down(128 + signal, SIGNAL_GRACE);
                start_thread("shutdown", end).unwrap_or_else(|_| end());
            }
        }
    };
    let started = start_thread("signals", wait_for_signals)
        .and_then(|()| start_thread("stdout", || server.stdout.write_what_waits()))
        .and_then(|()| server.read_stdin().map_err(|error| format!("stdin can't be read: {error}")));
    if let Err(why) = started {
        say(&why);
        server.shut_down(1, EOF_GRACE);
    }
    // What was asked before the end of stdin is still answered if it does not take longer than this.
    let end = Instant::now() + DRAIN_LIMIT;
    server.wait(DRAIN_LIMIT, |calls| calls.open.is_empty());
    server.stdout.flush(end);
    server.shut_down(0, EOF_GRACE)
}

impl Server {
    /// Returns at the end of stdin, or when nobody reads our stdout any more, which comes to the same.
    fn read_stdin(&'static self) -> io::Result<()> {
        let (mut lines, mut agreed, mut chunk) = (rpc::Lines::default(), None, vec![0; 64 << 10]);
        let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        loop {
            match sys::poll_stdio(self.stdout.pending() < STDOUT_PENDING_MAX) {
                None => break,
                Some(false) => continue,
                Some(true) => {}
            }
            match stdin.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => lines.feed(&chunk[..count], |line| self.take_line(line, &mut agreed)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        lines.finish(|line| self.take_line(line, &mut agreed));
        Ok(())
    }

    /// Ends the process (I11): idle workers leave by themselves within `grace`, busy ones are killed at once, at last
    /// every group is. Takes `grace` and two KILL_LIMITs at most. A second caller waits for the first to end it.
    fn shut_down(&self, code: i32, grace: Duration) -> ! {
        if self.closing.swap(true, SeqCst) {
            loop {
                thread::park();
            }
        }
        let end = Instant::now() + grace;
        self.each_interpreter(|interpreter| interpreter.leave_by(end));
        self.wait(grace + KILL_LIMIT, |calls| calls.pumps == 0);
        for id in std::mem::take(&mut lock(&self.calls).listening) {
            let mut result = in_era(json!({}), true);
            result["_meta"]["io.modelcontextprotocol/subscriptionId"] = id.clone();
            self.stdout.send(&rpc::response(&id, result));
        }
        lock(&self.files).remove();
        self.stdout.flush(Instant::now() + KILL_LIMIT);
        std::process::exit(code)
    }

    /// Waits until it is so, at most `limit`; returns whether it is.
    fn wait(&self, limit: Duration, so: impl Fn(&Calls) -> bool) -> bool {
        let waited = self.ended.wait_timeout_while(lock(&self.calls), limit, |calls| !so(calls));
        so(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    fn each_interpreter(&self, mut action: impl FnMut(&Arc<Interpreter>)) {
        let all: Vec<_> = lock(&self.interpreters).values().cloned().collect();
        all.iter().for_each(&mut action);
    }

    /// The first message that is not `server/discover`: some hosts start a server just to ask that and kill it.
    fn begin(&'static self) {
        if self.begun.swap(true, SeqCst) {
            return;
        }
        let started = start_thread("begin", || {
            let builtin = self.interpreter(BUILTIN);
            builtin.launch(lock(&builtin.state));
            self.host();
            lock(&self.files).open().map_or_else(|why| say(&why), drop);
        });
        started.unwrap_or_else(|why| say(&why));
    }

    /// Runs a call that may take its time beside the reading of stdin (I2).
    fn in_thread(&'static self, key: u64, body: impl FnOnce() -> Value + Send + 'static) {
        let run = move || {
            let result = body();
            lock(&self.calls).in_threads -= 1;
            self.answer(key, result);
        };
        let mut calls = lock(&self.calls);
        calls.in_threads += 1;
        let free = calls.in_threads <= CALLS_IN_THREADS_MAX;
        drop(calls);
        let busy = || Err(format!("{CALLS_IN_THREADS_MAX} calls of this kind are running already"));
        if let Err(why) = if free { start_thread("call", run) } else { busy() } {
            lock(&self.calls).in_threads -= 1;
            self.answer(key, tool_text(&why, true));
        }
    }

    /// Sends the result of an open call; false where it was cancelled meanwhile, then nothing is sent.
    fn answer(&self, key: u64, result: Value) -> bool {
        let mut calls = lock(&self.calls);
        let Some(call) = calls.open.remove(&key) else { return false };
        self.stdout.send(&rpc::response(&call.id, in_era(result, call.modern)));
        drop(calls);
        self.ended.notify_all();
        true
    }

    /// Sends progress of an open call, under the lock that `answer` takes: never after the answer. Progress that the
    /// host does not take at once would only make its queue longer.
    fn progress(&self, key: u64, elapsed: Duration, message: &str) {
        let calls = lock(&self.calls);
        let Some(token) = calls.open.get(&key).and_then(|call| call.progress_token.as_ref()) else { return };
        if self.stdout.pending() == 0 {
            let progress = elapsed.as_millis() as f64 / 1000.0;
            let params = json!({"progressToken": token, "progress": progress, "message": message});
            self.stdout.send(&rpc::notification("notifications/progress", params));
        }
    }

    fn cancel(&self, id: &Value) {
        let mut calls = lock(&self.calls);
        calls.listening.retain(|listening| listening != id);
        let newest = calls.open.iter().rev().find(|(_, call)| call.id == *id).map(|(key, _)| *key);
        let Some((key, call)) = newest.and_then(|key| calls.open.remove_entry(&key)) else { return };
        drop(calls);
        self.ended.notify_all();
        if let Some(interpreter) = call.interpreter {
            interpreter.interrupt(key);
        }
    }
}

/// The way out. The thread that has an answer writes it itself: a hop to another thread costs 30 to 60 µs. Only what
/// stdout does not take at once is left to the stdout thread, so a slow reader blocks no cell and loses nothing.
#[derive(Default)]
struct Stdout {
    /// The first message stays while it is being written, so that nobody overtakes it.
    waiting: Mutex<VecDeque<Vec<u8>>>,
    pending: AtomicUsize,
    more: Condvar,
}

impl Stdout {
    fn send(&self, message: &[u8]) {
        let mut waiting = lock(&self.waiting);
        let written = if waiting.is_empty() { sys::write_ready(io::stdout().as_fd(), message) } else { 0 };
        if written < message.len() {
            self.pending.fetch_add(message.len() - written, SeqCst);
            waiting.push_back(message[written..].to_vec());
            self.more.notify_one();
        }
    }

    /// Bytes that wait.
    fn pending(&self) -> usize {
        self.pending.load(SeqCst)
    }

    fn flush(&self, end: Instant) {
        while self.pending() > 0 && Instant::now() < end {
            thread::sleep(Duration::from_millis(2)); // only for a slow reader, at the end
        }
    }

    /// The stdout thread. When stdout breaks, the main thread sees it too and ends the server.
    fn write_what_waits(&self) {
        let mut waiting = lock(&self.waiting);
        loop {
            let Some(front) = waiting.front_mut() else {
                waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let message = std::mem::take(front);
            drop(waiting);
            let mut written = 0;
            while written < message.len() {
                sys::poll([(io::stdout().as_fd(), false, true)], IDLE_TICK);
                written += sys::write_ready(io::stdout().as_fd(), &message[written..]);
            }
            waiting = lock(&self.waiting);
            self.pending.fetch_sub(message.len(), SeqCst);
            waiting.pop_front();
        }
    }
}

// ── 4. MCP methods ──────────────────────────────────────────────────────────────────────────────────────────────────
//
// A request whose `_meta` names 2026-07-28 is served by that version, which has no session; any other by the versions
// before it, whether or not `initialize` came first. Both may mix on one connection.

const INSTRUCTIONS: &str = "\
One persistent Python. `execute` runs a cell in the interpreter `builtin` (or another, by name): variables, imports \
and functions stay until `reset`, and the last expression is the answer. Cells of one interpreter run one after the \
other, interpreters run side by side. A cell may run 600 seconds unless `timeout` says otherwise; an interrupted cell \
keeps its variables. Output over 25,000 characters is shown with its head and tail, and is whole in the file that the \
answer names. Project environments (`.venv`, `venv`, an active virtualenv or conda) can be named as `interpreter` \
straight away; `list_interpreters` shows them, `add_interpreter` adds any other Python.";

/// The version that `initialize` agreed on; owned by the thread that reads stdin.
type Agreed = Option<&'static str>;

/// A JSON-RPC error: code, message, data (null for none).
type Failure = (i64, String, Value);

fn refuse<T>(code: i64, message: impl Into<String>) -> Result<T, Failure> {
    Err((code, message.into(), Value::Null))
}

impl Server {
    fn take_line(&'static self, line: rpc::Line, agreed: &mut Agreed) {
        match rpc::parse(line) {
            rpc::Message::Request { id, method, params } => match self.request(&id, &method, &params, agreed) {
                Ok(()) => {}
                Err((code, message, data)) => self.stdout.send(&rpc::error(Some(&id), code, &message, data)),
            },
            rpc::Message::Notification { method, params } => {
                self.begin();
                if method == "notifications/cancelled" {
                    self.cancel(&params["requestId"]);
                }
            }
            rpc::Message::Nothing => {}
            rpc::Message::Unreadable { why } => say(&format!("ignored: {why}")),
            rpc::Message::Invalid { id, code, why } => {
                say(&format!("refused: {why}"));
                // Schemas before 2025-11-25 require an id in errors: there we keep silent where it is not known.
                if id.is_some() || matches!(agreed, None | Some("2025-11-25")) {
                    self.stdout.send(&rpc::error(id.as_ref(), code, &why, Value::Null));
                }
            }
        }
    }

    fn request(&'static self, id: &Value, method: &str, params: &Value, agreed: &mut Agreed) -> Result<(), Failure> {
        if method != "server/discover" {
            self.begin();
        }
        if !(params.is_object() || params.is_null()) {
            return refuse(rpc::INVALID_PARAMS, "params must be an object");
        }
        let modern = is_modern(method, &params["_meta"])?;
        let mut result = match (method, modern) {
            ("initialize", false) => {
                let asked = &params["protocolVersion"];
                let version = LEGACY.into_iter().find(|known| asked == *known).unwrap_or(LEGACY[0]);
                *agreed = Some(version);
                let (capabilities, info) = (json!({"tools": {}}), server_info());
                json!({"protocolVersion": version, "capabilities": capabilities, "serverInfo": info,
                       "instructions": INSTRUCTIONS})
            }
            ("ping", false) => json!({}),
            ("server/discover", true) => {
                json!({"supportedVersions": versions(), "capabilities": {"tools": {}}, "instructions": INSTRUCTIONS})
            }
            ("subscriptions/listen", true) => return self.listen(id, params),
            ("tools/list", _) if !params["cursor"].is_null() => {
                return refuse(rpc::INVALID_PARAMS, "unknown cursor: all tools are on one page");
            }
            ("tools/list", _) => json!({"tools": tools().iter().map(|tool| &tool.shown).collect::<Vec<_>>()}),
            ("tools/call", _) => return self.tools_call(id, params, modern),
            _ => return refuse(rpc::METHOD_NOT_FOUND, format!("there is no method {method:?} here")),
        };
        if modern {
            result["ttlMs"] = json!(CACHE_MS);
            result["cacheScope"] = json!("private");
        }
        self.stdout.send(&rpc::response(id, in_era(result, modern)));
        Ok(())
    }

    /// Nothing here changes while we run, so nothing is granted; the stream stays open as the client wants it.
    fn listen(&self, id: &Value, params: &Value) -> Result<(), Failure> {
        if !params["notifications"].is_object() {
            return refuse(rpc::INVALID_PARAMS, "subscriptions/listen: notifications must be an object");
        }
        let mut calls = lock(&self.calls);
        if calls.listening.len() >= CALLS_IN_THREADS_MAX {
            return refuse(rpc::INTERNAL_ERROR, format!("{CALLS_IN_THREADS_MAX} subscriptions are open already"));
        }
        calls.listening.push(id.clone());
        let params = json!({"notifications": {}, "_meta": {"io.modelcontextprotocol/subscriptionId": id}});
        self.stdout.send(&rpc::notification("notifications/subscriptions/acknowledged", params));
        Ok(())
    }

    fn tools_call(&'static self, id: &Value, params: &Value, modern: bool) -> Result<(), Failure> {
        let Some(tool) = tools().iter().find(|tool| tool.shown["name"] == params["name"]) else {
            return refuse(rpc::INVALID_PARAMS, format!("tools/call: unknown tool {}", params["name"]));
        };
        let arguments = match &params["arguments"] {
            Value::Null => Map::new(),
            Value::Object(arguments) => arguments.clone(),
            _ => return refuse(rpc::INVALID_PARAMS, "tools/call: arguments must be an object"),
        };
        let token = &params["_meta"]["progressToken"];
        let token = (token.is_string() || token.is_i64() || token.is_u64()).then(|| token.clone());
        let now = Instant::now();
        let progress = token.is_some().then_some(Progress { since: now, last: now, chars: 0 });
        let key = {
            let mut calls = lock(&self.calls);
            calls.last_key += 1;
            let key = calls.last_key;
            calls.open.insert(key, Call { id: id.clone(), modern, progress_token: token, interpreter: None });
            key
        };
        match (tool.check(arguments), &tool.run) {
            (Err(why), _) => drop(self.answer(key, tool_text(&why, true))),
            (Ok(given), Run::Cell(request)) => {
                // From the thread that reads stdin: so cells run in the order they came.
                let interpreter = self.interpreter(text(&given, "interpreter").unwrap_or(BUILTIN));
                let timeout = limit_of(given.get("timeout").and_then(Value::as_f64));
                let reply = Box::new(move |text: &str, is_error| self.answer(key, tool_text(text, is_error)));
                self.run_cell(&interpreter, Cell { key, request: request(&given), timeout, progress, reply });
            }
            (Ok(arguments), Run::Thread(handler)) => {
                let call = ToolCall { key, progress, arguments };
                self.in_thread(key, move || handler(self, call).unwrap_or_else(|why| tool_text(&why, true)));
            }
        }
        Ok(())
    }

    /// Hands a call's cell to its interpreter, where a cancellation will look for it.
    fn run_cell(&self, interpreter: &Arc<Interpreter>, cell: Cell) {
        if let Some(call) = lock(&self.calls).open.get_mut(&cell.key) {
            call.interpreter = Some(interpreter.clone());
        }
        interpreter.submit(cell);
    }
}

/// Which era serves a request, by its `_meta` (2026-07-28 basic/index, basic/versioning).
fn is_modern(method: &str, meta: &Value) -> Result<bool, Failure> {
    const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
    const CAPABILITIES_KEY: &str = "io.modelcontextprotocol/clientCapabilities";
    let needs = |key| refuse(rpc::INVALID_PARAMS, format!("{method}: _meta lacks {key:?}, or it is of a wrong type"));
    let only_modern = matches!(method, "server/discover" | "subscriptions/listen") || !meta[CAPABILITIES_KEY].is_null();
    match &meta[VERSION_KEY] {
        Value::Null if !only_modern => Ok(false),
        Value::String(version) if LEGACY.contains(&version.as_str()) => Ok(false),
        Value::String(version) if version != MODERN => {
            let data = json!({"supported": versions(), "requested": version});
            Err((rpc::UNSUPPORTED_VERSION, format!("protocol version {version:?} is not supported"), data))
        }
        Value::String(_) if meta[CAPABILITIES_KEY].is_object() => Ok(true),
        Value::String(_) => needs(CAPABILITIES_KEY),
        _ => needs(VERSION_KEY),
    }
}

fn versions() -> Vec<&'static str> {
    [MODERN].into_iter().chain(LEGACY).collect()
}

fn server_info() -> Value {
    json!({"name": NAME, "title": "Python Interpreter (mcp-py)", "version": VERSION})
}

/// A result as its era wants it.
fn in_era(mut result: Value, modern: bool) -> Value {
    if modern {
        result["resultType"] = json!("complete");
        result["_meta"] = json!({"io.modelcontextprotocol/serverInfo": server_info()});
    }
    result
}

// ── 5. The tools ────────────────────────────────────────────────────────────────────────────────────────────────────

/// One entry serves tools/list, the check of arguments and the call.
struct Tool {
    /// The tool as tools/list shows it.
    shown: Value,
    run: Run,
}

enum Run {
    /// In an interpreter, in turn: what its worker is asked (worker.py has the protocol).
    Cell(fn(&Object) -> Value),
    /// In a thread of its own: it looks at files or processes. An error is a text for people.
    Thread(fn(&'static Server, ToolCall) -> Result<Value, String>),
}

/// A call that runs in a thread.
struct ToolCall {
    key: u64,
    progress: Option<Progress>,
    arguments: Object,
}

type Object = Map<String, Value>;

fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

#[rustfmt::skip] // a table
fn tools() -> &'static [Tool] {
    static TOOLS: OnceLock<Vec<Tool>> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let string = |description| json!({"type": "string", "description": description});
        let flag = |description| json!({"type": "boolean", "description": description});
        let interpreter = string("Which interpreter; \"builtin\" when left out. list_interpreters names them.");
        vec![
            tool("execute", "Execute Python Code", "",
                Run::Cell(|given| json!({"op": "run", "code": given["code"]})), &["code"], json!({
                "code": string("Python source, any number of lines."),
                "interpreter": interpreter,
                "timeout": {"type": "number", "minimum": 0, "maximum": SECONDS.end(), "description":
                    "Seconds the cell may run before it is interrupted; 0 = no limit. Default 600."},
            }), Value::Null, "\
Run Python code in a persistent interpreter. Variables, imports, functions stay for later calls (until `reset`); the \
value of the last expression is part of the answer, so no print is needed. stdout, stderr and tracebacks come back as \
text. Top-level `await` works. stdin is empty: input() fails at once. An exception, time-out or exit() ends the cell, \
not the interpreter; if the process itself dies, the answer says so and the variables are gone. Output over 25,000 \
characters is shown with its head and tail and ends with the path of a file that holds all of it."),
            tool("reset", "Reset Python Scope", "destructive idempotent", Run::Cell(|_| json!({"op": "reset"})), &[],
                json!({"interpreter": interpreter}), Value::Null, "\
Delete all variables, functions and imports of an interpreter. Its process goes on."),
            tool("list_vars", "List Python Variables", "read-only idempotent",
                Run::Cell(|_| json!({"op": "list_vars"})), &[], json!({"interpreter": interpreter}), Value::Null, "\
The names defined in an interpreter, sorted; names that start with two underscores are left out."),
            tool("get_session_info", "Get Session Info", "read-only idempotent", Run::Thread(get_session_info), &[],
                json!({}), structure(&[
                    ("string null", "session_id project_dir socket_path transcript_path output_dir host"),
                    ("integer null", "claude_pid host_pid"),
                    ("integer", "server_pid"),
                    ("string", "started_at uptime version"),
                    ("boolean", "verified"),
                ]), "\
What this server knows of its session: host process, project, output directory, transcript, uptime."),
            tool("add_interpreter", "Add External Interpreter", "", Run::Thread(add_interpreter),
                &["name", "python_path"], json!({
                "name": string("1 to 64 of A-Z a-z 0-9 . _ -"),
                "python_path": string("The Python executable; may be relative to the project, and start with ~."),
                "cwd": string("Working directory; may be relative to the project, and start with ~."),
                "env": {"type": "object", "additionalProperties": {"type": "string"}, "description":
                    "Environment variables to add, as an object of strings."},
                "startup_script": string("Python code to run at each start; if it raises, the start fails."),
                "description": string("What it is for."),
                "save": flag("Keep it for later sessions. Default false."),
            }), interpreter_structure(), "\
Start another Python, such as a project's virtual environment, as a process beside the builtin one; then pass its \
name as `interpreter`. With save it is there in later sessions too. Adding a running one again with the same path is \
fine; a saved one is started with its saved settings, and what is given here replaces them for this run."),
            tool("stop_interpreter", "Stop Interpreter", "destructive", Run::Thread(stop_interpreter),
                &["name"], json!({
                "name": string("Which one."),
                "remove": flag("Also delete its saved configuration. Default false."),
            }), Value::Null, "\
End an interpreter's process: its variables are gone. A saved one stays in the list unless remove is true. The builtin \
one can't be stopped; use reset."),
            tool("list_interpreters", "List Interpreters", "read-only idempotent", Run::Thread(list_interpreters),
                &[], json!({}), json!({
                "type": "object", "required": ["result"],
                "properties": {"result": {"type": "array", "items": interpreter_structure()}},
            }), "\
All interpreters: builtin, saved, added in this session, and those found in the project."),
        ]
    })
}

/// `hints` are the annotations that hold. `output` is the schema of the structured result, null where there is none.
#[rustfmt::skip]
#[allow(clippy::too_many_arguments)] // they are the columns of the table above
fn tool(
    name: &str, title: &str, hints: &str, run: Run, required: &[&str], properties: Value, output: Value, text: &str,
) -> Tool {
    let hint = |word| hints.contains(word);
    let mut shown = json!({
        "name": name, "title": title, "description": text,
        "inputSchema": {
            "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        },
        "annotations": {
            "title": title, "readOnlyHint": hint("read-only"), "destructiveHint": hint("destructive"),
            "idempotentHint": hint("idempotent"), "openWorldHint": false,
        },
    });
    if !output.is_null() {
        shown["outputSchema"] = output;
    }
    if name == "execute" {
        shown["_meta"] = json!({"anthropic/maxResultSizeChars": RESULT_CHARS_HINT});
    }
    Tool { shown, run }
}

/// The schema of an object: its members' names under their types; all are required.
fn structure(members: &[(&str, &str)]) -> Value {
    let mut properties = Map::new();
    for (types, names) in members {
        let types: Vec<_> = types.split(' ').collect();
        properties.extend(names.split(' ').map(|name| (name.to_owned(), json!({ "type": types }))));
    }
    let required: Vec<_> = properties.keys().cloned().collect();
    json!({"type": "object", "properties": properties, "required": required})
}

fn interpreter_structure() -> Value {
    structure(&[
        ("string", "name source state"),
        ("string null", "python_path cwd description started_at uptime python_version"),
        ("boolean", "has_startup_script"),
        ("integer null", "pid"),
    ])
}

impl Tool {
    /// The arguments, if they are what the schema says: else a text that names the argument, what was expected and
    /// what came. A null stands for an optional argument left out.
    fn check(&self, mut given: Object) -> Result<Object, String> {
        let (name, schema) = (self.shown["name"].as_str().unwrap_or_default(), &self.shown["inputSchema"]);
        let Some(properties) = schema["properties"].as_object() else { return Ok(given) };
        if let Some(unknown) = given.keys().find(|argument| !properties.contains_key(*argument)) {
            let known = properties.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(format!("{name}: unknown argument {unknown:?}; it takes: {known}"));
        }
        for (argument, property) in properties {
            let required = schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == argument));
            let value = match given.get(argument) {
                None | Some(Value::Null) if !required => {
                    given.remove(argument);
                    continue;
                }
                value => value.unwrap_or(&Value::Null),
            };
            let variable = |(name, value): (&String, &Value)| {
                !name.is_empty()
                    && !name.contains(['=', '\0'])
                    && value.as_str().is_some_and(|value| !value.contains('\0'))
            };
            let (fits, expected) = match property["type"].as_str() {
                Some("string") => (value.is_string(), "a string"),
                Some("boolean") => (value.is_boolean(), "true or false"),
                Some("number") => (value.as_f64().is_some_and(|n| SECONDS.contains(&n)), "a number, 0 to 10000000"),
                _ => (value.as_object().is_some_and(|env| env.iter().all(variable)), "an object of strings"),
            };
            if !fits {
                let came = match value {
                    Value::Null => "nothing".into(),
                    _ if property["type"] == "object" => "something else".into(), // with secrets, perhaps
                    value => keep_ends(&value.to_string(), VALUE_SHOWN_CHARS),
                };
                return Err(format!("{name}: argument {argument:?} must be {expected}, got {came}"));
            }
        }
        Ok(given)
    }
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

fn tool_text(text: &str, is_error: bool) -> Value {
    json!({"content": [{"type": "text", "text": text}], "isError": is_error})
}

/// A structured result, and the same as text for clients that show that.
fn tool_structure(structure: Value) -> Result<Value, String> {
    let mut result = tool_text(&structure.to_string(), false);
    result["structuredContent"] = structure;
    Ok(result)
}

fn get_session_info(server: &'static Server, _: ToolCall) -> Result<Value, String> {
    let (host, project) = (server.host(), server.project());
    let (since, started_at) = server.started.get().copied().unwrap_or((Instant::now(), SystemTime::now()));
    let session_id = host.session_id();
    // Claude's name for a project among its transcripts
    let slug: String = project.dir.to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let transcript =
        session_id.as_ref().and_then(|id| Some(config_dir()?.join("projects").join(slug).join(format!("{id}.jsonl"))));
    tool_structure(json!({
        "session_id": session_id,
        "project_dir": project.dir.to_string_lossy(),
        "socket_path": null,
        "transcript_path": transcript,
        "output_dir": lock(&server.files).open().ok(),
        "claude_pid": if host.is_claude { host.pid } else { None },
        "started_at": iso_time(started_at),
        "uptime": uptime(since),
        "host": host.name,
        "host_pid": host.pid,
        "server_pid": std::process::id(),
        "version": VERSION,
        "verified": project.verified,
    }))
}

fn list_interpreters(server: &'static Server, _: ToolCall) -> Result<Value, String> {
    let mut listed: BTreeMap<String, View> = BTreeMap::new();
    let stopped = |source| move |(name, config)| (name, View { source, config, running: false, process: None });
    listed.extend(server.discovered().into_iter().map(stopped(Source::Discovered)));
    match server.saved_configs() {
        Ok(saved) => listed.extend(saved.into_iter().map(stopped(Source::Saved))),
        Err(why) => say(&why), // the rest of the list is still true
    }
    server.interpreter(BUILTIN); // it is listed before its first start too
    server.each_interpreter(|interpreter| {
        listed.extend(interpreter.view().map(|view| (interpreter.name.clone(), view)));
    });
    let mut result: Vec<_> = listed.iter().map(|(name, view)| view.describe(name)).collect();
    result.sort_by_key(|entry| entry["name"] != BUILTIN); // stable: the builtin first, then by name
    tool_structure(json!({ "result": result }))
}

fn add_interpreter(server: &'static Server, call: ToolCall) -> Result<Value, String> {
    let name = text(&call.arguments, "name").unwrap_or_default().to_owned();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(fits) || name == BUILTIN {
        return Err(format!(
            "add_interpreter: name must be 1 to 64 of A-Z a-z 0-9 . _ -, not \"builtin\", got {name:?}"
        ));
    }
    let save = call.arguments.get("save") == Some(&json!(true));
    let given = server.config_of(&call.arguments);
    let live = server.known_interpreter(&name);
    let view = live.as_ref().and_then(|interpreter| interpreter.view());
    let running = view.as_ref().is_some_and(|view| view.running);
    let saved = server.saved_configs().map(|mut saved| saved.remove(&name));
    if save {
        saved.as_ref().map_err(Clone::clone)?; // what can't be read can't be written: say so before anything starts
    }
    // What the arguments are laid over: what runs under this name, what is saved, or what stopped in this session.
    let base = match (view, saved) {
        (_, Ok(Some(config))) if !running => Some((Source::Saved, config)),
        (view, _) => view.map(|view| (view.source, view.config)),
    };
    let (source, mut config) = match base {
        Some((source, config)) if config.get("python_path") == given.get("python_path") => (source, config),
        Some((source, config)) if running || (source == Source::Saved && !save) => {
            let path = text(&config, "python_path").unwrap_or_default();
            let (is, way) = match running {
                true => ("runs", "stop it first with stop_interpreter"),
                false => ("is saved", "give that path, pass save=true to replace it"),
            };
            return Err(format!("{name:?} {is} with {path}: {way}, or choose another name"));
        }
        _ => (Source::Transient, Object::new()),
    };
    config.extend(given);
    let interpreter = match live {
        Some(live) if running => live,
        live => server.replace_interpreter(&name, source, config.clone(), live)?,
    };
    if let Err(why) = server.start_and_wait(&interpreter, call) {
        if !running {
            server.forget_interpreter(&interpreter);
        }
        return Err(format!("interpreter '{name}' could not be started: {why}"));
    }
    if save {
        let put = |saved: &mut Object| {
            let entry = saved.entry(&name).or_insert(json!({}));
            for (member, default) in CONFIG_MEMBERS {
                entry[member] = config.get(member).cloned().or(serde_json::from_str(default).ok()).unwrap_or_default();
            }
        };
        update_saved(put).map_err(|why| format!("interpreter '{name}' runs, but was not saved: {why}"))?;
        lock(&interpreter.state).source = Source::Saved;
    }
    let mut description = interpreter.view().ok_or("it was stopped again")?.describe(&name);
    let what = if running { "was running already" } else { "started" };
    description["message"] = json!(format!("Interpreter '{name}' {what}{}", if save { ", and is saved" } else { "" }));
    tool_structure(description)
}

fn stop_interpreter(server: &'static Server, call: ToolCall) -> Result<Value, String> {
    let name = text(&call.arguments, "name").unwrap_or_default();
    let remove = call.arguments.get("remove") == Some(&json!(true));
    if name == BUILTIN {
        return Err("stop_interpreter: the interpreter \"builtin\" can't be stopped; reset clears it".into());
    }
    let live = server.known_interpreter(name);
    let view = live.as_ref().and_then(|interpreter| interpreter.view());
    let saved = server.saved_configs().map(|saved| saved.contains_key(name));
    let source = match (&saved, &view) {
        (Ok(true), _) => Source::Saved,
        (_, Some(view)) => view.source,
        _ if server.discovered().contains_key(name) => Source::Discovered,
        _ => {
            saved?; // perhaps it is there, in a file that can't be read
            return Err(server.unknown_interpreter(name));
        }
    };
    if remove && source == Source::Discovered {
        return Err(format!("{name:?} is found in the project, not saved: it can be stopped, but not removed here"));
    }
    if let Some(interpreter) = live {
        server.forget_interpreter(&interpreter);
    }
    let what = if view.is_some_and(|view| view.running) { "stopped" } else { "was not running" };
    let became = match source {
        Source::Saved if remove => {
            update_saved(|saved| drop(saved.remove(name))).map_err(|why| {
                format!("interpreter '{name}' {what}, but its saved configuration is still there: {why}")
            })?;
            "its saved configuration is removed"
        }
        Source::Saved => "its saved configuration is kept",
        Source::Discovered => "it is found in the project and stays in the list",
        Source::Transient | Source::Builtin => "it was not saved, so it is gone from the list",
    };
    Ok(tool_text(&format!("Interpreter '{name}' {what}; {became}"), false))
}

// ── 6. Interpreters ─────────────────────────────────────────────────────────────────────────────────────────────────

/// A Python with a name: its configuration, the cells that wait for it, and its process while there is one.
struct Interpreter {
    name: String,
    server: &'static Server,
    state: Mutex<State>,
    /// Told when the life becomes Stopped.
    stopped: Condvar,
    /// What the pump thread alone works on. It holds the lock for its whole life, so there is one pump at a time.
    talk: Mutex<Talk>,
}

#[derive(Default)]
struct State {
    life: Life,
    source: Source,
    /// None until the first start has looked the name up.
    config: Option<Object>,
    waiting: VecDeque<Cell>,
    current: Option<Current>,
    process: Option<Arc<Process>>,
    /// Bytes for the worker that its socket has not taken yet.
    unsent: VecDeque<u8>,
    /// When the pump wakes by itself: whoever sets an earlier deadline has to wake it.
    sleeps_until: Option<Instant>,
    /// It is to end: an idle worker by itself (its atexit runs) until then, a busy one at once.
    leave_by: Option<Instant>,
    /// Out of the table for good: takes no more cells.
    retired: bool,
}

/// Stopped ─submit→ Starting ─ready→ Idle ─begin→ Busy ─done→ Idle; any ─exit→ Stopped, or Starting if cells wait.
#[derive(Clone, Copy, PartialEq, Default)]
enum Life {
    /// No pump thread, no process.
    #[default]
    Stopped,
    /// The pump thread is spawning the process, waiting for `ready`, or running the startup script.
    Starting,
    Idle,
    Busy,
}

#[derive(Clone, Copy, PartialEq, Debug, Default)]
enum Source {
    #[default]
    Builtin,
    Saved,
    Transient,
    Discovered,
}

/// Something for the worker to do, in turn.
struct Cell {
    /// The call's, by which it is cancelled; STARTUP for the startup script.
    key: u64,
    /// What the worker is asked; null for nothing, answered once the interpreter is up.
    request: Value,
    /// Counted from when it starts; None for no limit.
    timeout: Option<Duration>,
    progress: Option<Progress>,
    reply: Reply,
}

/// Takes an answer's text and whether it is an error. False: nobody wanted it any more.
type Reply = Box<dyn FnOnce(&str, bool) -> bool + Send>;

const STARTUP: u64 = 0; // no call has this key

/// When progress was told, and how much output there was then.
struct Progress {
    since: Instant,
    last: Instant,
    chars: u64,
}

/// The cell that runs.
struct Current {
    cell: Cell,
    deadline: Option<Instant>,
    interrupt: Option<Interrupt>,
    /// Bytes that were in the pipes of stdout and stderr when it started: they are not its own.
    stale: [usize; 2],
}

struct Interrupt {
    why: String,
    since: Instant,
    /// When SIGINT is sent next; None: it was not sent yet.
    next: Option<Instant>,
}

impl Interrupt {
    fn new(why: String) -> Self {
        Interrupt { why, since: Instant::now(), next: None }
    }
}

/// A worker's descriptors. Its Child is with the pump thread, which alone signals and reaps it (I8).
struct Process {
    pid: i32,
    started: (Instant, SystemTime),
    version: OnceLock<String>,
    /// Non-blocking on our side.
    control: UnixStream,
    /// The read ends of stdout and stderr.
    pipes: [File; 2],
    /// A byte through here makes the pump look at the state.
    wake: (UnixStream, UnixStream),
}

/// What the pump thread works on; output and notices outlive a process, so that nothing is lost between two (I4, I5).
#[derive(Default)]
struct Talk {
    cell: Output,
    between: Output,
    /// What the next answer has to say about earlier processes.
    notices: Vec<String>,
    buffer: Vec<u8>,
    /// Control bytes that are no whole line yet.
    frame: Vec<u8>,
    /// The worker is ready and its startup script has run: cells may come.
    up: bool,
    /// How the startup script failed.
    script: Ending,
    /// When it closed its control socket: it is leaving, or broken.
    hung_up: Option<Instant>,
    /// Why we killed it.
    killed: Option<&'static str>,
}

/// How a cell ended, beside its output.
#[derive(Default)]
struct Ending {
    error: Option<String>,
    is_error: bool,
    notes: Vec<String>,
}

impl State {
    /// Hands a cell to the idle worker, once and for all (I3). What is in the pipes by now was written before it.
    fn begin(&mut self, cell: Cell, process: &Process) {
        let stale = process.pipes.each_ref().map(|pipe| sys::bytes_readable(pipe.as_fd()));
        let deadline = cell.timeout.map(|timeout| Instant::now() + timeout);
        let progress = cell.progress.as_ref().map(|_| Instant::now() + PROGRESS_EVERY);
        self.send(format!("{}\n", cell.request).as_bytes());
        self.current = Some(Current { cell, deadline, interrupt: None, stale });
        deadline.into_iter().chain(progress).for_each(|moment| self.wake_by(moment));
    }

    /// Sends to the worker as much as its socket takes; the pump sends the rest when there is room (I2).
    fn send(&mut self, bytes: &[u8]) {
        let Some(process) = &self.process else { return };
        self.unsent.extend(bytes);
        while !self.unsent.is_empty() {
            match (&process.control).write(self.unsent.as_slices().0) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.wake(),
                Err(_) => self.unsent.clear(), // it is gone: its exit says the rest
            }
        }
        self.unsent.shrink_to(PIPE_BYTES);
    }

    fn wake(&self) {
        if let Some(process) = &self.process {
            let _ = (&process.wake.1).write(&[0]); // where that is full, the pump is awake already
        }
    }

    fn wake_by(&self, moment: Instant) {
        if self.sleeps_until.is_none_or(|until| moment < until) {
            self.wake();
        }
    }
}

impl Interpreter {
    fn new(server: &'static Server, name: &str, source: Source, config: Option<Object>) -> Arc<Self> {
        let state = State { source, config, ..State::default() };
        let (state, stopped, talk) = (Mutex::new(state), Condvar::new(), Mutex::default());
        Arc::new(Interpreter { name: name.into(), server, state, stopped, talk })
    }

    /// Queues a cell, starting the process if there is none.
    fn submit(self: &Arc<Self>, cell: Cell) {
        let mut state = lock(&self.state);
        let full = self.server.cells_waiting.load(SeqCst) >= CELLS_WAITING_MAX;
        if state.retired || full {
            drop(state);
            let stopping = format!("interpreter '{}' is being stopped", self.name);
            let why = if full { format!("{CELLS_WAITING_MAX} cells are waiting already") } else { stopping };
            (cell.reply)(&format!("{why}: this one was not run"), true);
            return;
        }
        self.server.cells_waiting.fetch_add(1, SeqCst);
        state.waiting.push_back(cell);
        match state.life {
            Life::Stopped => self.launch(state),
            Life::Idle => self.start_next(state),
            Life::Starting | Life::Busy => state.wake_by(Instant::now() + PROGRESS_EVERY),
        }
    }

    /// Starts the pump thread of a stopped interpreter.
    fn launch(self: &Arc<Self>, mut state: MutexGuard<State>) {
        if state.life == Life::Stopped && !state.retired {
            state.life = Life::Starting;
            drop(state);
            lock(&self.server.calls).pumps += 1;
            let interpreter = self.clone();
            if let Err(why) = start_thread("pump", move || interpreter.pump()) {
                self.stop(lock(&self.state), &why);
            }
        }
    }

    /// Interrupts the cell with this key, or takes it out of the queue.
    fn interrupt(&self, key: u64) {
        let mut state = lock(&self.state);
        if let Some(current) = state.current.as_mut().filter(|current| current.cell.key == key) {
            current.interrupt.get_or_insert_with(|| Interrupt::new("interrupted".into()));
            state.wake();
        } else if let Some(place) = state.waiting.iter().position(|cell| cell.key == key) {
            let cell = state.waiting.remove(place);
            self.server.cells_waiting.fetch_sub(1, SeqCst);
            drop(state);
            drop(cell); // with it the channel that its caller may be waiting on
        }
    }

    fn leave_by(&self, end: Instant) {
        let mut state = lock(&self.state);
        state.leave_by = Some(end);
        state.wake();
    }

    /// What others may see of it; None for a name that is still being looked up.
    fn view(&self) -> Option<View> {
        let state = lock(&self.state);
        // Not while a pump buries the last process and nobody waits for the next.
        let running = state.life != Life::Stopped && (state.process.is_some() || !state.waiting.is_empty());
        let config = state.config.clone()?;
        Some(View { source: state.source, config, running, process: state.process.clone() })
    }

    /// The pump thread: starts a process, attends to it until it exits, buries it; again where cells wait.
    fn pump(self: &Arc<Self>) {
        let mut talk = lock(&self.talk);
        talk.buffer = vec![0; PIPE_BYTES];
        loop {
            match self.spawn() {
                Ok((child, process)) => {
                    (talk.up, talk.hung_up, talk.killed) = (false, None, None);
                    talk.frame.clear();
                    self.attend(&process, &mut talk);
                    self.bury(child, &process, &mut talk);
                }
                Err(why) => self.fail_waiting(lock(&self.state), &why),
            }
            let mut state = lock(&self.state);
            if state.retired || self.server.closing.load(SeqCst) || state.waiting.is_empty() {
                talk.buffer = Vec::new();
                return self.stop(state, "the interpreter was stopped before this cell ran");
            }
            state.life = Life::Starting;
        }
    }

    /// The pump thread ends, or could not be started.
    fn stop(&self, mut state: MutexGuard<State>, why: &str) {
        state.life = Life::Stopped;
        self.fail_waiting(state, why);
        self.stopped.notify_all();
        lock(&self.server.calls).pumps -= 1;
        self.server.ended.notify_all();
    }

    /// Answers those that wait with an error.
    fn fail_waiting(&self, mut state: MutexGuard<State>, why: &str) {
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.server.cells_waiting.fetch_sub(waiting.len(), SeqCst);
        for cell in waiting {
            (cell.reply)(why, true);
        }
    }

    /// Starts the process, in this thread: on Linux the worker is killed when the thread that spawned it ends (I11).
    fn spawn(&self) -> Result<(Child, Arc<Process>), String> {
        let config = self.resolve()?;
        let python = python_of(&config)?;
        check_config(&config)?;
        let failed = |error: io::Error| format!("{} could not be started: {error}", python.display());
        let (control, workers_end) = UnixStream::pair().map_err(failed)?;
        let wake = UnixStream::pair().map_err(failed)?;
        for stream in [&control, &wake.0, &wake.1] {
            stream.set_nonblocking(true).map_err(failed)?;
        }
        let env = config.get("env").and_then(Value::as_object).into_iter().flatten();
        let mut command = Command::new(&python);
        command.arg("-c").arg(bootstrap()).envs(env.filter_map(|(name, value)| Some((name, value.as_str()?))));
        command.stdin(OwnedFd::from(workers_end)).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(cwd) = text(&config, "cwd") {
            command.current_dir(cwd);
        }
        sys::own_session(&mut command);
        let mut child = command.spawn().map_err(failed)?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed(ErrorKind::BrokenPipe.into()));
        };
        sys::widen_pipe(stdout.as_fd(), PIPE_BYTES);
        let process = Arc::new(Process {
            pid: child.id() as i32,
            started: (Instant::now(), SystemTime::now()),
            version: OnceLock::new(),
            control,
            pipes: [OwnedFd::from(stdout).into(), OwnedFd::from(stderr).into()],
            wake,
        });
        let mut state = lock(&self.state);
        state.process = Some(process.clone());
        state.unsent.clear();
        state.send(WORKER.as_bytes());
        Ok((child, process))
    }

    /// Polls everything that concerns the worker, until it has exited. It is not reaped yet then.
    fn attend(&self, process: &Process, talk: &mut Talk) {
        let mut open = [true; 2];
        loop {
            let (until, unsent) = self.tick(process, talk);
            let descriptors = [
                (process.wake.0.as_fd(), true, false),
                (process.control.as_fd(), talk.hung_up.is_none(), unsent),
                (process.pipes[0].as_fd(), open[0], false),
                (process.pipes[1].as_fd(), open[1], false),
            ];
            let ready = sys::poll(descriptors, until.saturating_duration_since(Instant::now()));
            if ready[0] {
                while matches!((&process.wake.0).read(&mut [0; 64]), Ok(1..)) {}
            }
            // The pipes first: reading a result reads them empty, and then this would wait for more.
            for stream in 0..2 {
                if ready[stream + 2] {
                    open[stream] = self.read_pipe(process, stream, PIPE_BYTES, talk) > 0;
                }
            }
            if ready[1] {
                lock(&self.state).send(&[]);
                self.read_control(process, talk);
            }
            if (ready[0] || talk.hung_up.is_some() || until <= Instant::now()) && sys::has_exited(process.pid) {
                return self.read_control(process, talk); // a result that it sent just before counts
            }
        }
    }

    /// What the clock and the others ask for now; returns when to look again, and whether bytes wait for the worker.
    /// Every signal to a living worker is sent here or in `kill` (I8).
    fn tick(&self, process: &Process, talk: &mut Talk) -> (Instant, bool) {
        let now = Instant::now();
        let (mut next, mut kill) = (now + IDLE_TICK, None);
        let mut state = lock(&self.state);
        let mut bound = |end: Option<Instant>, why| match end {
            Some(end) if end <= now => kill = kill.or(Some(why)),
            Some(end) => next = next.min(end),
            None => {}
        };
        if let Some(end) = state.leave_by {
            let _ = process.control.shutdown(std::net::Shutdown::Write); // a second time it has no effect
            let at_once = !talk.up || state.current.is_some();
            bound(Some(if at_once { now } else { end }), "it was stopped");
        }
        bound(talk.hung_up.map(|since| since + HUNG_UP_GRACE), "its control socket was closed");
        if process.version.get().is_none() {
            let limit = Duration::from_secs_f64(seconds_from("MCP_PY_START_TIMEOUT", START_LIMIT_DEFAULT));
            bound(Some(process.started.0 + limit), "it took too long to start (MCP_PY_START_TIMEOUT)");
        }
        if let Some(Current { cell, deadline, interrupt, .. }) = &mut state.current {
            if interrupt.is_none() && deadline.is_some_and(|deadline| deadline <= now) {
                let seconds = cell.timeout.unwrap_or_default().as_secs_f64();
                *interrupt = Some(Interrupt::new(format!("interrupted after its timeout of {seconds} s")));
            }
            match interrupt {
                None => bound(*deadline, ""), // it is not over, see above
                Some(interrupt) => {
                    bound(Some(interrupt.since + INTERRUPT_GRACE), "the cell did not end within 5 s of its interrupt");
                    if interrupt.next.is_none_or(|next| next <= now) {
                        // Once to the group; then to the worker alone, for its children have had theirs.
                        sys::signal(process.pid, libc::SIGINT, interrupt.next.is_none());
                        interrupt.next = Some(now + INTERRUPT_AGAIN);
                    }
                    next = next.min(now + INTERRUPT_AGAIN);
                }
            }
        }
        if let (Some(why), None) = (kill, talk.killed) {
            self.kill(process, talk, why);
        }
        if talk.killed.is_some() {
            next = now + KILL_LIMIT; // its exit wakes us; this is for a SIGCHLD that came too early to be seen
        }
        let State { current, waiting, .. } = &mut *state;
        let running = current.as_ref().map(|current| current.cell.key);
        for cell in current.iter_mut().map(|current| &mut current.cell).chain(waiting) {
            let Some(Progress { since, last, chars: told }) = &mut cell.progress else { continue };
            let (chars, line) = match running == Some(cell.key) {
                true => (talk.cell.chars(), talk.cell.last_line()),
                false => (0, "waiting for its turn".into()),
            };
            if now >= *last + if chars > *told { PROGRESS_EVERY } else { PROGRESS_AT_LEAST } {
                let message =
                    if line.is_empty() { format!("running for {} s", since.elapsed().as_secs()) } else { line };
                self.server.progress(cell.key, since.elapsed(), &message);
                (*last, *told) = (now, chars);
            }
            next = next.min(now + PROGRESS_EVERY);
        }
        state.sleeps_until = Some(next);
        (next, !state.unsent.is_empty())
    }

    fn kill(&self, process: &Process, talk: &mut Talk, why: &'static str) {
        sys::signal(process.pid, libc::SIGKILL, true);
        talk.killed = talk.killed.or(Some(why));
    }

    fn read_control(&self, process: &Process, talk: &mut Talk) {
        loop {
            match (&process.control).read(&mut talk.buffer) {
                Ok(count @ 1..) => talk.frame.extend_from_slice(&talk.buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {
                    talk.hung_up = talk.hung_up.or(Some(Instant::now()));
                    return;
                }
            }
            let mut good = talk.frame.len() <= FRAME_BYTES_MAX;
            while let (true, Some(end)) = (good, talk.frame.iter().position(|byte| *byte == b'\n')) {
                let rest = talk.frame.split_off(end + 1);
                let line = std::mem::replace(&mut talk.frame, rest);
                good = serde_json::from_slice(&line).is_ok_and(|frame| self.take_frame(&frame, process, talk));
            }
            if !good {
                talk.frame.clear();
                return self.kill(process, talk, "its control socket carried what no worker sends");
            }
        }
    }

    /// False for a frame that our worker never sends.
    fn take_frame(&self, frame: &Value, process: &Process, talk: &mut Talk) -> bool {
        let (text, files) = (|name: &str| frame[name].as_str().map(str::to_owned), &self.server.files);
        match frame["op"].as_str() {
            Some("ready") if process.version.set(text("version").unwrap_or_default()).is_ok() => {
                let mut state = lock(&self.state);
                let script = state.config.as_ref().and_then(|config| config.get("startup_script")).cloned();
                if let Some(script @ Value::String(_)) = script {
                    let request = json!({"op": "startup", "code": script});
                    let (timeout, reply) = (limit_of(None), Box::new(|_: &str, _| true));
                    state.begin(Cell { key: STARTUP, request, timeout, progress: None, reply }, process);
                } else {
                    talk.up = true;
                    self.start_next(state);
                }
            }
            Some("part") => talk.cell.take(RESULT, text("text").unwrap_or_default().as_bytes(), files),
            Some("done") => {
                // Everything that the cell wrote is in the pipes by now (I4); what comes later is not its own.
                self.read_what_is_there(process, usize::MAX, talk);
                let Some(current) = lock(&self.state).current.take() else { return false };
                talk.cell.take(RESULT, text("result").unwrap_or_default().as_bytes(), files);
                let notes = frame["notes"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let mut ending = Ending {
                    error: text("error"),
                    is_error: frame["error"].is_string() || frame["exit"] != 0 || current.interrupt.is_some(),
                    notes: notes.map(str::to_owned).collect(),
                };
                ending.notes.extend(current.interrupt.map(|interrupt| interrupt.why + "; the variables are kept"));
                if current.cell.key == STARTUP && ending.is_error {
                    talk.script = ending;
                    self.kill(process, talk, "its startup script failed");
                } else {
                    talk.up = true;
                    let output = std::mem::take(&mut talk.cell);
                    self.start_next(lock(&self.state)); // first: whoever takes the answer may take a while
                    if current.cell.key != STARTUP {
                        self.answer(current.cell, output, ending, talk);
                    }
                }
            }
            _ => return false,
        }
        true
    }

    /// Gives a cell its answer, with what there is to say of the time before it. False: nobody wanted it any more, so
    /// the next answer has to say that.
    fn answer(&self, cell: Cell, mut output: Output, ending: Ending, talk: &mut Talk) -> bool {
        let mut notes = talk.notices.clone();
        notes.extend(talk.between.as_note(&self.server.files));
        let is_error = ending.is_error;
        let delivered = (cell.reply)(&output.text(ending, notes, &self.server.files), is_error);
        if delivered {
            talk.notices.clear();
            talk.between = Output::default();
        }
        delivered
    }

    /// Starts the next cell of a worker that has nothing to do. Also called by the thread that reads stdin: nothing
    /// here blocks (I2).
    fn start_next(&self, mut state: MutexGuard<State>) {
        let mut up = Vec::new();
        state.life = Life::Idle;
        while state.life == Life::Idle {
            let Some(cell) = state.waiting.pop_front() else { break };
            self.server.cells_waiting.fetch_sub(1, SeqCst);
            match state.process.clone() {
                Some(process) if !cell.request.is_null() => {
                    state.life = Life::Busy;
                    state.begin(cell, &process);
                }
                _ => up.push(cell.reply),
            }
        }
        drop(state);
        for reply in up {
            reply("", false);
        }
    }

    /// Reads once from a pipe, up to `limit` bytes, into the output that they belong to; 0 at the pipe's end.
    fn read_pipe(&self, process: &Process, stream: usize, limit: usize, talk: &mut Talk) -> usize {
        let limit = limit.min(talk.buffer.len());
        let mut state = lock(&self.state); // before the read, or a cell could begin between it and what follows
        let count = (&process.pipes[stream]).read(&mut talk.buffer[..limit]).unwrap_or(0);
        let stale = match &mut state.current {
            Some(current) if current.cell.key != STARTUP => {
                let stale = current.stale[stream].min(count);
                current.stale[stream] -= stale;
                stale
            }
            _ => count,
        };
        drop(state);
        talk.between.take(stream, &talk.buffer[..stale], &self.server.files);
        talk.cell.take(stream, &talk.buffer[stale..count], &self.server.files);
        count
    }

    /// Reads what the pipes hold now, at most `most` bytes of each.
    fn read_what_is_there(&self, process: &Process, most: usize, talk: &mut Talk) {
        for stream in 0..2 {
            let mut left = sys::bytes_readable(process.pipes[stream].as_fd()).min(most);
            while left > 0 {
                match self.read_pipe(process, stream, left, talk) {
                    0 => break,
                    count => left -= count,
                }
            }
        }
    }

    /// After the exit: the group is killed while its leader still holds the name, then the leader is reaped (I8), then
    /// everyone concerned is told (I5).
    fn bury(&self, mut child: Child, process: &Process, talk: &mut Talk) {
        sys::signal(process.pid, libc::SIGKILL, true);
        self.read_what_is_there(process, LAST_OUTPUT_BYTES_MAX, talk);
        let cause = match (talk.killed, child.wait()) {
            (Some(why), _) => format!("was killed: {why}"),
            (None, Ok(status)) => describe_exit(status),
            (None, Err(error)) => format!("ended; how is not known: {error}"),
        };
        let mut state = lock(&self.state);
        (state.process, state.life) = (None, Life::Starting); // until the pump has decided
        let (current, ordered, name) = (state.current.take(), state.leave_by.take().is_some(), &self.name);
        if !talk.up {
            // For those who wait there is nothing to run on.
            let (mut printed, ending) = (std::mem::take(&mut talk.between), std::mem::take(&mut talk.script));
            let printed = printed.text(ending, Vec::new(), &self.server.files);
            return self
                .fail_waiting(state, format!("interpreter '{name}' did not start: it {cause}\n{printed}").trim_end());
        }
        drop(state);
        let died = format!("interpreter '{name}' {cause}; its variables are gone");
        let Some(current) = current else {
            if !ordered {
                talk.notices.push(format!("before this cell, {died}; this is a new process"));
            }
            return;
        };
        let output = std::mem::take(&mut talk.cell);
        let why = current.interrupt.map_or(String::new(), |interrupt| interrupt.why + "; ");
        let ending = Ending { error: None, is_error: true, notes: vec![format!("{why}{died}")] };
        if !self.answer(current.cell, output, ending, talk) {
            talk.notices.push(format!("before this cell, {died}"));
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
    const SIGNALS: &str =
        "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP \
                           TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"; // signal(7), from 1
    let Some(number) = status.signal() else {
        return format!("exited with code {}", status.code().unwrap_or_default());
    };
    let name = SIGNALS.split(' ').nth(number as usize - 1).filter(|_| cfg!(target_os = "linux"));
    let name = name.map_or_else(|| format!("signal {number}"), |name| format!("SIG{name}"));
    let hint = if number == libc::SIGKILL { " (by hand, or by the kernel for lack of memory)" } else { "" };
    format!("was killed by {name}{hint}")
}

// ── 7. Output and its files ─────────────────────────────────────────────────────────────────────────────────────────

type Files = Mutex<OutputFiles>;

const RESULT: usize = 2; // the stream after stdout and stderr: the result's repr

/// What a cell printed: its ends in memory, the whole in a file once it is longer than an answer can be.
#[derive(Default)]
struct Output {
    /// stdout, stderr, result.
    streams: [Ends; 3],
    /// Everything in the order of arrival, until there is a file.
    log: Vec<u8>,
    file: Option<OutputFile>,
    /// What to say of the file besides its path.
    trouble: Option<String>,
    /// The stream that was written last, and whether it ended within a line.
    last: usize,
    in_line: bool,
}

/// A stream without its middle.
#[derive(Default)]
struct Ends {
    /// The first HEAD_BYTES and at least the last TAIL_BYTES.
    kept: Vec<u8>,
    /// Unicode scalar values of the whole.
    chars: u64,
}

struct OutputFile {
    path: PathBuf,
    /// None once writing failed or the limit was reached.
    file: Option<File>,
    bytes: u64,
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

    /// What is kept, as text without its last newline: bytes that are not UTF-8 become escapes.
    fn text(&self) -> Option<String> {
        let mut text = String::with_capacity(self.kept.len());
        for chunk in self.kept.strip_suffix(b"\n").unwrap_or(&self.kept).utf8_chunks() {
            text.push_str(chunk.valid());
            chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
        }
        (!self.kept.is_empty()).then_some(text)
    }
}

/// `text` itself, or its two ends and between them how much is left out.
fn keep_ends(text: &str, chars_max: usize) -> String {
    match text.chars().count() {
        chars if chars <= chars_max => text.to_owned(),
        chars => cut_middle(text, chars_max / 2, chars_max / 2, chars as u64, [" … "; 2]),
    }
}

/// The ends of `text`, which has `chars` characters, or had them before its middle was dropped, and marks around how
/// many are left out.
fn cut_middle(text: &str, head: usize, tail: usize, chars: u64, [before, after]: [&str; 2]) -> String {
    let left_out = grouped(chars.saturating_sub((head + tail) as u64));
    let (head, tail) = (first_chars(text, head), last_chars(text, tail));
    format!("{head}{before}{left_out} characters left out{after}{tail}")
}

fn first_chars(text: &str, count: usize) -> &str {
    text.char_indices().nth(count).map_or(text, |(end, _)| &text[..end])
}

fn last_chars(text: &str, count: usize) -> &str {
    text.char_indices().rev().nth(count - 1).map_or(text, |(start, _)| &text[start..])
}

/// A number with commas between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}

impl Output {
    fn take(&mut self, stream: usize, bytes: &[u8], files: &Files) {
        let Some(last_byte) = bytes.last() else { return };
        if stream == RESULT && self.last != RESULT && self.in_line {
            self.take(self.last, b"\n", files); // in the answer the result stands on a line of its own, in the file too
        }
        self.streams[stream].take(bytes);
        (self.last, self.in_line) = (stream, *last_byte != b'\n');
        if self.file.is_some() {
            return self.write(bytes, files);
        }
        self.log.extend_from_slice(bytes);
        if self.log.len() > HEAD_BYTES {
            self.spool(files);
        }
    }

    fn chars(&self) -> u64 {
        self.streams.iter().map(|stream| stream.chars).sum()
    }

    /// Opens the file, unless that is done, and moves the log there. Returns its path.
    fn spool(&mut self, files: &Files) -> String {
        if self.file.is_none() {
            let (path, file) = match lock(files).create() {
                Ok((path, file)) => (path, Some(file)),
                Err(why) => {
                    self.trouble = Some(format!("the full output is in no file: {why}"));
                    (PathBuf::from("none"), None)
                }
            };
            self.file = Some(OutputFile { path, file, bytes: 0 });
            let log = std::mem::take(&mut self.log);
            self.write(&log, files);
        }
        self.file.as_ref().map_or(String::new(), |file| file.path.to_string_lossy().into_owned())
    }

    fn write(&mut self, bytes: &[u8], files: &Files) {
        let Some(OutputFile { path, file: slot @ Some(_), bytes: written }) = &mut self.file else { return };
        let room = (CELL_FILE_BYTES_MAX - *written).min(bytes.len() as u64);
        if lock(files).grow(path, room) {
            self.trouble = Some("older output files were removed: a session keeps 4 GiB of them".into());
        }
        *written += room;
        let result = slot.as_mut().map_or(Ok(()), |file| file.write_all(&bytes[..room as usize]));
        if let Err(error) = result {
            (*slot, self.trouble) = (None, Some(format!("the file is not complete: {error}")));
        } else if room < bytes.len() as u64 {
            (*slot, self.trouble) = (None, Some("the file holds the first 1 GiB only".into()));
        }
    }

    /// The last line that was printed, for progress.
    fn last_line(&self) -> String {
        let kept = &self.streams[self.last].kept;
        let text = String::from_utf8_lossy(&kept[kept.len().saturating_sub(4 * PROGRESS_MESSAGE_CHARS)..]).into_owned();
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
        line.map_or(String::new(), |line| last_chars(line, PROGRESS_MESSAGE_CHARS).to_owned())
    }

    /// The answer's text: output, notes, result or error.
    fn text(&mut self, ending: Ending, mut notes: Vec<String>, files: &Files) -> String {
        let [stdout, stderr, mut result] = self.streams.each_ref().map(Ends::text);
        notes.extend(ending.notes);
        if stderr
            .iter()
            .chain(&ending.error)
            .any(|text| text.contains("Can't get attribute") && text.contains("__main__"))
        {
            notes.push(SPAWN_HINT.into());
        }
        let mut parts: Vec<_> = [stdout, stderr].into_iter().flatten().collect();
        let body = parts.iter().chain(&result).map(String::as_str).collect::<Vec<_>>().join("\n");
        let shown = body.chars().count();
        if shown > TEXT_CHARS_MAX {
            // A stream that lost its middle has more than the ends need on both sides of it. Bytes that are no text are
            // counted as what they are shown as.
            let (path, rule, chars) = (self.spool(files), "=".repeat(50), self.chars().max(shown as u64));
            let size = grouped(chars);
            parts = vec![
                cut_middle(&body, HEAD_CHARS, TAIL_CHARS, chars, ["\n[mcp-py: … ", " …]\n"]) + "\n",
                format!("{rule}\n# OUTPUT TRUNCATED\n# Original size: {size} chars\n# Full output: {path}\n{rule}"),
            ];
            result = None;
            notes.extend(self.trouble.take());
        }
        parts.extend(notes.iter().map(|note| format!("[mcp-py: {}]", keep_ends(note, NOTE_CHARS_MAX))));
        parts.extend(result.into_iter().chain(ending.error));
        parts.join("\n")
    }

    /// What was printed between cells, as a note in the next one's answer.
    fn as_note(&mut self, files: &Files) -> Option<String> {
        let text = self.streams.each_ref().map(Ends::text).into_iter().flatten().collect::<Vec<_>>().join("\n");
        if text.is_empty() {
            return None;
        }
        let (chars, most) = (self.chars().max(text.chars().count() as u64), NOTE_CHARS_MAX / 2);
        let size = grouped(chars);
        if chars <= most as u64 {
            return Some(format!("output from between the cells, {size} chars:\n{text}\n"));
        }
        let (path, text) = (self.spool(files), cut_middle(&text, most / 2, most / 2, chars, [" … "; 2]));
        Some(format!("output from between the cells, {size} chars, whole in {path}:\n{text}\n"))
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
    /// With their sizes, oldest first.
    kept: VecDeque<(PathBuf, u64)>,
    closed: bool,
}

impl OutputFiles {
    /// The directory, made now if it is not there (any more).
    fn open(&mut self) -> Result<PathBuf, String> {
        match &self.dir {
            Some((path, held)) if is_same_file(path, held) => return Ok(path.clone()),
            _ if self.closed => return Err("the server is ending".into()),
            _ => self.dir = None, // the first time, or a cleaner took it
        }
        let parent = env::temp_dir();
        if self.count == 0 {
            remove_dead_dirs(&parent);
        }
        let mut why = ErrorKind::ResourceBusy.into();
        // Another server may take the directory for a dead one's before we hold it: then the next try.
        for attempt in 0..16u32 {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
            let unique = time ^ std::process::id().rotate_left(12) ^ attempt << 28;
            let path = parent.join(format!("{OUTPUT_DIR}{unique:08x}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) => why = error,
                Ok(()) => match hold_dir(&path) {
                    Some(held) => {
                        self.dir = Some((path.clone(), held));
                        return Ok(path);
                    }
                    None => drop(fs::remove_dir(&path)),
                },
            }
        }
        Err(format!("no output directory in {}: {why}", parent.display()))
    }

    fn create(&mut self) -> Result<(PathBuf, File), String> {
        let dir = self.open()?;
        self.count += 1;
        let time = iso_time(SystemTime::now()).replace(['-', ':', 'Z'], "").replace('T', "_");
        let path = dir.join(format!("output_{time}_{:03}.txt", self.count));
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
        self.closed = true;
        if let Some((path, _held)) = self.dir.take() {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Opens and locks a directory of ours that nobody holds and that is still the one of this name.
fn hold_dir(path: &Path) -> Option<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let held = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let ours = held.metadata().ok()?.uid() == sys::user_id();
    (ours && sys::try_lock(held.as_fd()) && is_same_file(path, &held)).then_some(held)
}

fn is_same_file(path: &Path, open: &File) -> bool {
    let (Ok(named), Ok(open)) = (fs::symlink_metadata(path), open.metadata()) else { return false };
    (named.dev(), named.ino()) == (open.dev(), open.ino())
}

fn remove_dead_dirs(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(OUTPUT_DIR.as_bytes()) && hold_dir(&entry.path()).is_some() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

// ── 8. Saved and discovered interpreters ────────────────────────────────────────────────────────────────────────────
//
// A configuration is an object as interpreters.json has it: python_path, cwd, env, startup_script, description. The
// builtin's has no python_path. `~/.claude-workspace/python_interpreter/interpreters.json` is the original's file, in
// its format: {"discover_jetbrains": true, "interpreters": {name: configuration}}. What we do not know in it is kept.

/// The members of a configuration, and what stands for one that was not given.
const CONFIG_MEMBERS: [(&str, &str); 5] =
    [("python_path", "null"), ("cwd", "null"), ("env", "{}"), ("startup_script", "null"), ("description", "null")];

/// What others may see of an interpreter.
struct View {
    source: Source,
    config: Object,
    running: bool,
    /// None while it is stopped or being spawned.
    process: Option<Arc<Process>>,
}

impl View {
    /// As list_interpreters shows it; the environment is never shown.
    fn describe(&self, name: &str) -> Value {
        let (process, python) = (self.process.as_ref(), python_of(&self.config).ok());
        let here = || env::current_dir().ok().map(|dir| dir.to_string_lossy().into_owned());
        let version = match process {
            Some(process) => process.version.get().cloned(),
            None => python.as_deref().and_then(version_in_venv),
        };
        json!({
            "name": name,
            "source": format!("{:?}", self.source).to_lowercase(),
            "state": if self.running { "running" } else { "stopped" },
            "python_path": python.map(|path| path.to_string_lossy().into_owned()),
            "cwd": text(&self.config, "cwd").map(str::to_owned).or_else(here),
            "has_startup_script": text(&self.config, "startup_script").is_some(),
            "description": text(&self.config, "description"),
            "pid": process.map(|process| process.pid),
            "started_at": process.map(|process| iso_time(process.started.1)),
            "uptime": process.map(|process| uptime(process.started.0)),
            "python_version": version,
        })
    }
}

/// The Python of a configuration; for the builtin MCP_PY_PYTHON, else the first `python3` on PATH.
fn python_of(config: &Object) -> Result<PathBuf, String> {
    let told = || env::var_os("MCP_PY_PYTHON").filter(|path| !path.is_empty()).map(PathBuf::from);
    let found = text(config, "python_path").map(expand_home).or_else(told).or_else(|| find_on_path("python3"));
    found.ok_or_else(|| "there is no python3 on PATH: install Python 3.8 or newer, or name one in MCP_PY_PYTHON".into())
}

/// Whether there is something to start, and where.
fn check_config(config: &Object) -> Result<(), String> {
    let python = python_of(config)?;
    match (fs::metadata(&python), text(config, "cwd")) {
        (Err(error), _) => Err(format!("python_path {}: {error}", python.display())),
        (Ok(is), _) if is.is_dir() => {
            Err(format!("python_path {0} is a directory: try {0}/bin/python", python.display()))
        }
        (Ok(is), _) if is.permissions().mode() & 0o111 == 0 => {
            Err(format!("python_path {} is no program", python.display()))
        }
        (_, Some(cwd)) if !Path::new(cwd).is_dir() => Err(format!("cwd {cwd} is no directory")),
        _ => Ok(()),
    }
}

/// From pyvenv.cfg, without running anything.
fn version_in_venv(python: &Path) -> Option<String> {
    let text = fs::read_to_string(python.parent()?.parent()?.join("pyvenv.cfg")).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once('='));
    let (_, version) = lines.find(|(key, _)| matches!(key.trim(), "version" | "version_info"))?;
    Some(version.trim().splitn(4, '.').take(3).collect::<Vec<_>>().join("."))
}

impl Server {
    /// The interpreter of this name. One that is not in the table enters it here; its first start looks it up.
    fn interpreter(&'static self, name: &str) -> Arc<Interpreter> {
        let enter = || {
            if name != BUILTIN {
                return Interpreter::new(self, name, Source::Saved, None);
            }
            let project = env::var("CLAUDE_PROJECT_DIR").ok().filter(|dir| Path::new(dir).is_dir());
            let config = project.map(|dir| ("cwd".to_owned(), json!(dir))).into_iter().collect();
            Interpreter::new(self, name, Source::Builtin, Some(config))
        };
        lock(&self.interpreters).entry(name.to_owned()).or_insert_with(enter).clone()
    }

    /// The one in the table, once its name has been looked up: its pump is reading two small files.
    fn known_interpreter(&self, name: &str) -> Option<Arc<Interpreter>> {
        let end = Instant::now() + LOCK_LIMIT;
        loop {
            let interpreter = lock(&self.interpreters).get(name).cloned()?;
            if interpreter.view().is_some() || Instant::now() > end {
                return Some(interpreter);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Puts a new interpreter in the place of a stopped one, or of none.
    fn replace_interpreter(
        &'static self,
        name: &str,
        source: Source,
        config: Object,
        old: Option<Arc<Interpreter>>,
    ) -> Result<Arc<Interpreter>, String> {
        let mut table = lock(&self.interpreters);
        if table.get(name).is_some_and(|there| old.as_ref().is_none_or(|old| !Arc::ptr_eq(there, old))) {
            return Err(format!("interpreter {name:?} is being started by another call"));
        }
        old.iter().for_each(|old| lock(&old.state).retired = true);
        let interpreter = Interpreter::new(self, name, source, Some(config));
        table.insert(name.to_owned(), interpreter.clone());
        Ok(interpreter)
    }

    /// Stops an interpreter, whose cells are answered with an error, and takes it out of the table: STOP_GRACE and a
    /// little at most.
    fn forget_interpreter(&self, interpreter: &Arc<Interpreter>) {
        lock(&interpreter.state).retired = true;
        interpreter.leave_by(Instant::now() + STOP_GRACE);
        let alive = |state: &mut State| state.life != Life::Stopped;
        drop(interpreter.stopped.wait_timeout_while(lock(&interpreter.state), STOP_GRACE + KILL_LIMIT, alive));
        let mut table = lock(&self.interpreters);
        if table.get(&interpreter.name).is_some_and(|there| Arc::ptr_eq(there, interpreter)) {
            table.remove(&interpreter.name);
        }
    }

    /// Starts an interpreter, for a call that waits for it.
    fn start_and_wait(&self, interpreter: &Arc<Interpreter>, call: ToolCall) -> Result<(), String> {
        if matches!(lock(&interpreter.state).life, Life::Idle | Life::Busy) {
            return Ok(());
        }
        let (send, receive) = mpsc::channel();
        let reply = Box::new(move |text: &str, is_error| send.send((text.to_owned(), is_error)).is_ok());
        let (key, progress) = (call.key, call.progress);
        self.run_cell(interpreter, Cell { key, request: Value::Null, timeout: None, progress, reply });
        if !lock(&self.calls).open.contains_key(&key) {
            interpreter.interrupt(key); // it was cancelled before it had a cell to cancel
        }
        match receive.recv() {
            Ok((why, true)) => Err(why),
            Ok((_, false)) => Ok(()),
            Err(_) => Err("the call was cancelled".into()),
        }
    }

    /// Environments in the project and in our environment, by name; nothing is run for it.
    fn discovered(&self) -> BTreeMap<String, Object> {
        let project = &self.project().dir;
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let places = [
            (".venv", Some(project.join(".venv"))),
            ("venv", Some(project.join("venv"))),
            ("virtualenv", variable("VIRTUAL_ENV")),
            ("conda", variable("CONDA_PREFIX")),
        ];
        let python = |(name, dir): (&str, Option<PathBuf>)| {
            let path = dir?.join("bin/python");
            let config = Object::from_iter([("python_path".to_owned(), json!(path.to_str()?))]);
            path.is_file().then(|| (name.to_owned(), config))
        };
        places.into_iter().filter_map(python).collect()
    }

    fn unknown_interpreter(&self, name: &str) -> String {
        let mut names: Vec<_> = self.discovered().into_keys().collect();
        names.extend(self.saved_configs().unwrap_or_default().into_keys());
        self.each_interpreter(|interpreter| names.extend(interpreter.view().map(|_| interpreter.name.clone())));
        names.push(BUILTIN.into());
        names.sort();
        names.dedup();
        format!("there is no interpreter {name:?}; there are: {}. add_interpreter adds one", names.join(", "))
    }

    /// A configuration from add_interpreter's arguments or from the file. Paths become absolute: `~` is the home
    /// directory, a relative one starts at the project; a Python that is a bare name and no file there is looked for on
    /// PATH.
    fn config_of(&self, told: &Object) -> Object {
        let absolute = |path: &str| match expand_home(path) {
            path if path.is_absolute() => path,
            path => self.project().dir.join(path),
        };
        let mut config = Object::new();
        for (member, _) in CONFIG_MEMBERS {
            let value = match (member, told.get(member)) {
                (_, None | Some(Value::Null)) => continue,
                ("python_path", Some(Value::String(path))) => {
                    let place = absolute(path);
                    let bare = !path.contains('/') && !place.is_file();
                    json!(find_on_path(path).filter(|_| bare).unwrap_or(place))
                }
                ("cwd", Some(Value::String(path))) => json!(absolute(path)),
                (_, Some(value)) => value.clone(),
            };
            config.insert(member.to_owned(), value);
        }
        config
    }

    /// Those in the file that can be started: with a python_path.
    fn saved_configs(&self) -> Result<BTreeMap<String, Object>, String> {
        let root = load_saved()?;
        let usable = |(name, config): (&String, &Value)| {
            let usable = config["python_path"].is_string() && name != BUILTIN;
            Some((name.clone(), self.config_of(config.as_object().filter(|_| usable)?)))
        };
        Ok(root["interpreters"].as_object().into_iter().flatten().filter_map(usable).collect())
    }
}

impl Interpreter {
    /// The configuration, looked up among the saved and the discovered ones at the first start.
    fn resolve(&self) -> Result<Object, String> {
        if let Some(config) = &lock(&self.state).config {
            return Ok(config.clone());
        }
        let saved = self.server.saved_configs().map(|mut saved| saved.remove(&self.name));
        let discovered = || self.server.discovered().remove(&self.name).map(|config| (Source::Discovered, config));
        let found = match &saved {
            Ok(Some(config)) => Some((Source::Saved, config.clone())),
            _ => discovered(),
        };
        let Some((source, config)) = found else {
            lock(&self.state).retired = true;
            lock(&self.server.interpreters).remove(&self.name);
            return Err(saved.err().unwrap_or_else(|| self.server.unknown_interpreter(&self.name)));
        };
        let mut state = lock(&self.state);
        (state.source, state.config) = (source, Some(config.clone()));
        Ok(config)
    }
}

fn saved_dir() -> Result<PathBuf, String> {
    let home = home_dir().ok_or("there is no home directory to keep configurations in")?;
    Ok(home.join(".claude-workspace/python_interpreter"))
}

/// The whole file. Its absence is an empty one; one that does not parse is an error, and is left alone.
fn load_saved() -> Result<Value, String> {
    let path = saved_dir()?.join("interpreters.json");
    let failed = |why: &dyn std::fmt::Display| format!("{} can't be read and is left as it is: {why}", path.display());
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(SAVED_BYTES_MAX).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(json!({"discover_jetbrains": true, "interpreters": {}}));
        }
        Err(error) => return Err(failed(&error)),
        Ok(_) => {}
    }
    let mut root: Value = serde_json::from_slice(&bytes).map_err(|error| failed(&error))?;
    if root.is_object() && root["interpreters"].is_null() {
        root["interpreters"] = json!({});
    }
    if root["interpreters"].is_object() {
        Ok(root)
    } else {
        Err(failed(&"it has no object \"interpreters\""))
    }
}

/// Changes the saved interpreters, under the lock that all servers share: read, change, write beside, fsync, rename.
fn update_saved(change: impl FnOnce(&mut Object)) -> Result<(), String> {
    let dir = saved_dir()?;
    let failed = |error: io::Error| format!("{}: {error}", dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    let held = options.clone().create(true).open(dir.join("interpreters.lock")).map_err(failed)?;
    let end = Instant::now() + LOCK_LIMIT;
    while !sys::try_lock(held.as_fd()) {
        if Instant::now() > end {
            return Err(format!("{}/interpreters.lock is held by another process", dir.display()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let mut root = load_saved()?;
    change(root["interpreters"].as_object_mut().ok_or("no interpreters")?);
    let path = dir.join("interpreters.json");
    let path = fs::canonicalize(&path).unwrap_or(path); // where it is a link, its target is what is replaced
    let beside = path.with_file_name(".interpreters.json.new"); // the lock is ours: nobody else writes it
    let written = options.clone().create(true).truncate(true).open(&beside).and_then(|mut file| {
        file.write_all(format!("{root:#}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&beside);
        format!("{} could not be written: {error}", path.display())
    })
}

#[allow(deprecated)] // until Rust 1.87, for its ways on Windows
fn home_dir() -> Option<PathBuf> {
    env::home_dir().filter(|home| home.is_absolute())
}

fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), home_dir()) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

fn find_on_path(program: &str) -> Option<PathBuf> {
    let is_program =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|is| is.is_file() && is.permissions().mode() & 0o111 != 0);
    let path = env::var_os("PATH")?;
    let found = env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(program)).find(is_program);
    found
}

// ── 9. The host ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// Who started us. Computed once.
#[derive(Default)]
struct Host {
    pid: Option<i32>,
    name: Option<String>,
    is_claude: bool,
}

/// Where the host works. Computed when first asked for: it takes an `lsof`.
struct Project {
    dir: PathBuf,
    /// The host holds files of Claude's configuration open: a fact to report, never a gate.
    verified: bool,
}

/// A process in a snapshot.
struct Seen {
    parent: i32,
    /// Base name of its program, as ps tells it.
    name: String,
    /// The first word of its command line.
    program: String,
}

const LAUNCHERS: [&str; 4] = ["uv", "uvx", "npx", "npm"]; // they start servers for hosts

impl Server {
    fn host(&self) -> &Host {
        self.host.get_or_init(|| find_host(std::process::id() as i32, &processes()))
    }

    fn project(&self) -> &Project {
        self.project.get_or_init(|| {
            let (cwd, files) = self.host().pid.map(open_files).unwrap_or_default();
            let told = env::var_os("CLAUDE_PROJECT_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
            let dir = told.or(cwd).or_else(|| env::current_dir().ok()).unwrap_or_else(|| PathBuf::from("/"));
            let places = [config_dir(), Some(dir.join(".claude"))];
            let verified = files.iter().any(|file| places.iter().flatten().any(|place| file.starts_with(place)));
            Project { dir, verified }
        })
    }
}

/// The nearest ancestor that is Claude; else the parent, or who started that, where it is a mere launcher.
fn find_host(own: i32, seen: &BTreeMap<i32, Seen>) -> Host {
    let parent = |process: &Seen| seen.get_key_value(&process.parent).filter(|(pid, _)| **pid > 1);
    let chain = std::iter::successors(seen.get(&own).and_then(parent), |(_, process)| parent(process)).take(64);
    let is_claude = |(_, process): &(&i32, &Seen)| {
        process.name.eq_ignore_ascii_case("claude") || process.program.contains("/claude/versions/")
    };
    let other = chain.clone().find(|(_, process)| !LAUNCHERS.contains(&process.name.as_str()));
    let Some(found) = chain.clone().find(is_claude).or(other) else { return Host::default() };
    Host { pid: Some(*found.0), name: Some(found.1.name.clone()), is_claude: is_claude(&found) }
}

/// All processes, from one `ps`; where there is none that we understand, from /proc.
fn processes() -> BTreeMap<i32, Seen> {
    let base = |name: &str| name.rsplit('/').next().unwrap_or_default().trim_start_matches('-').to_owned();
    let parse = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (pid, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((pid, Seen { parent, name: base(words.next()?), program: words.next().unwrap_or_default().to_owned() }))
    };
    let told = output_of("ps", &["-A", "-ww", "-o", "pid=,ppid=,comm=,args="]);
    let seen: BTreeMap<_, _> = String::from_utf8_lossy(&told).lines().filter_map(parse).collect();
    if seen.contains_key(&(std::process::id() as i32)) {
        return seen;
    }
    let from_proc = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // "PID (name) state ppid …": the name may hold anything, also parentheses
        let text = String::from_utf8_lossy(&fs::read(entry.path().join("stat")).ok()?).into_owned();
        let ((_, name), rest) = (text.rsplit_once(')')?.0.split_once('(')?, text.rsplit_once(')')?.1);
        let parent = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let program = String::from_utf8_lossy(line.split(|byte| *byte == 0).next()?).into_owned();
        Some((pid, Seen { parent, name: base(name.split_ascii_whitespace().next()?), program }))
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(from_proc).collect()
}

/// The working directory and the open files of a process, from one `lsof`; else from /proc.
fn open_files(pid: i32) -> (Option<PathBuf>, Vec<PathBuf>) {
    let told = output_of("lsof", &["-w", "-n", "-P", "-F", "fn", "-p", &pid.to_string()]);
    let (mut cwd, mut files, mut is_cwd) = (None, Vec::new(), false);
    for line in told.split(|byte| *byte == b'\n') {
        match line.split_first() {
            Some((b'f', descriptor)) => is_cwd = descriptor == b"cwd",
            Some((b'n', path)) if is_cwd => cwd = Some(PathBuf::from(OsStr::from_bytes(path))),
            Some((b'n', path)) => files.push(PathBuf::from(OsStr::from_bytes(path))),
            _ => {}
        }
    }
    let is_good = |path: &PathBuf| path.is_absolute() && path.is_dir();
    cwd = cwd.filter(is_good);
    if cwd.is_none() {
        let place = PathBuf::from(format!("/proc/{pid}"));
        cwd = fs::read_link(place.join("cwd")).ok().filter(is_good);
        let links = fs::read_dir(place.join("fd")).into_iter().flatten().flatten();
        files = links.filter_map(|link| fs::read_link(link.path()).ok()).collect();
    }
    (cwd, files)
}

/// What a program prints within SNAPSHOT_LIMIT; nothing where it is missing, takes longer or prints too much.
fn output_of(program: &str, arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    sys::own_session(&mut command);
    let Ok(mut child) = command.spawn() else { return Vec::new() };
    let (end, mut text, mut chunk) = (Instant::now() + SNAPSHOT_LIMIT, Vec::new(), vec![0; 64 << 10]);
    let mut complete = false;
    if let Some(mut stdout) = child.stdout.take() {
        while !complete && text.len() < SNAPSHOT_BYTES_MAX && Instant::now() < end {
            if sys::poll([(stdout.as_fd(), true, false)], end.saturating_duration_since(Instant::now()))[0] {
                let count = stdout.read(&mut chunk).unwrap_or(0);
                text.extend_from_slice(&chunk[..count]);
                complete = count == 0;
            }
        }
    }
    sys::signal(child.id() as i32, libc::SIGKILL, true); // it has closed its stdout, or is late: it has no more to say
    let _ = child.wait();
    if complete {
        text
    } else {
        Vec::new()
    }
}

impl Host {
    /// Read when asked for, so that a hook which writes late is no race: from sessions.json the one active session of
    /// this Claude, else what Claude gave our environment.
    fn session_id(&self) -> Option<String> {
        let path = home_dir().map(|home| home.join(".claude-workspace/sessions.json"));
        let bytes = path.and_then(|path| fs::read(path).ok()).unwrap_or_default();
        let root: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let sessions = root["sessions"].as_array().into_iter().flatten();
        let ours =
            sessions.filter(|one| self.is_claude && one["claude_pid"] == json!(self.pid) && one["state"] == "active");
        let ids: Vec<_> = ours.filter_map(|session| session["session_id"].as_str()).collect();
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
    match since.elapsed().as_secs_f64() {
        seconds @ ..60.0 => format!("{seconds:.1} s"),
        seconds @ ..3_600.0 => format!("{:.1} min", seconds / 60.0),
        seconds @ ..86_400.0 => format!("{:.1} h", seconds / 3_600.0),
        seconds => format!("{:.1} d", seconds / 86_400.0),
    }
}

// ── 10. mod rpc, mod sys ────────────────────────────────────────────────────────────────────────────────────────────

/// JSON-RPC 2.0 as MCP uses it: lines and messages. No I/O.
mod rpc {
    use super::{json, Value, REQUEST_BYTES_MAX};

    pub const PARSE_ERROR: i64 = -32700;
    pub const INVALID_REQUEST: i64 = -32600;
    pub const METHOD_NOT_FOUND: i64 = -32601;
    pub const INVALID_PARAMS: i64 = -32602;
    pub const INTERNAL_ERROR: i64 = -32603;
    pub const UNSUPPORTED_VERSION: i64 = -32022; // MCP 2026-07-28

    /// Splits a stream into lines. What is over the limit is not kept.
    #[derive(Default)]
    pub struct Lines {
        partial: Vec<u8>,
        skipping: bool,
    }

    pub enum Line<'a> {
        Whole(&'a [u8]),
        /// Told once, when the limit is passed; the rest of the line is skipped.
        TooLong,
    }

    impl Lines {
        pub fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(Line)) {
            for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                let ends = piece.ends_with(b"\n");
                if self.skipping {
                    self.skipping = !ends;
                } else if self.partial.len() + piece.len() > REQUEST_BYTES_MAX + usize::from(ends) {
                    (self.partial, self.skipping) = (Vec::new(), !ends);
                    take(Line::TooLong);
                } else if ends && self.partial.is_empty() {
                    take(Line::Whole(piece));
                } else {
                    self.partial.extend_from_slice(piece);
                    if ends {
                        take(Line::Whole(&std::mem::take(&mut self.partial)));
                    }
                }
            }
        }

        /// At the end of the stream: a last line may lack its newline.
        pub fn finish(self, mut take: impl FnMut(Line)) {
            take(Line::Whole(&self.partial));
        }
    }

    pub enum Message {
        Request {
            id: Value,
            method: String,
            params: Value,
        },
        Notification {
            method: String,
            params: Value,
        },
        /// A blank line, or a response: we never ask.
        Nothing,
        /// A notification that can't be read: never answered.
        Unreadable {
            why: String,
        },
        Invalid {
            id: Option<Value>,
            code: i64,
            why: String,
        },
    }

    fn invalid(id: Option<Value>, why: &str) -> Message {
        Message::Invalid { id, code: INVALID_REQUEST, why: why.into() }
    }

    pub fn parse(line: Line) -> Message {
        let line = match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => return Message::Nothing,
            Line::Whole(line) => line,
            Line::TooLong => return invalid(None, &format!("the line is longer than {REQUEST_BYTES_MAX} bytes")),
        };
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
        let Some(object) = value.as_object_mut() else {
            return invalid(
                None,
                if value.is_array() { "batches are not offered" } else { "a message must be an object" },
            );
        };
        let id = object.remove("id");
        let good_id = id.clone().filter(|id| id.is_string() || id.is_i64() || id.is_u64());
        if object.get("jsonrpc").is_none_or(|version| version != "2.0") {
            return invalid(good_id, "\"jsonrpc\" must be \"2.0\"");
        }
        let method = match object.remove("method") {
            Some(Value::String(method)) => method,
            None if object.contains_key("result") || object.contains_key("error") => return Message::Nothing,
            _ => return invalid(good_id, "\"method\" must be a string"),
        };
        let params = object.remove("params").unwrap_or(Value::Null);
        match (id, good_id) {
            (None, _) => Message::Notification { method, params },
            (Some(_), Some(id)) => Message::Request { id, method, params },
            (Some(_), None) => invalid(None, "\"id\" must be a string or an integer"),
        }
    }

    /// The text with U+FFFD for each `\ud800`…`\udfff` that is no half of a pair; None where there is none.
    pub fn without_lone_surrogates(text: &[u8]) -> Option<Vec<u8>> {
        let unit = |at: usize| {
            let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
            u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (mut clean, mut at, mut found) = (Vec::with_capacity(text.len()), 0, false);
        while at < text.len() {
            let (length, lone) = match (text[at], unit(at)) {
                (b'\\', Some(0xd800..=0xdbff)) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => (12, false),
                (b'\\', Some(0xd800..=0xdfff)) => (6, true),
                (b'\\', _) => (2, false),
                _ => (1, false),
            };
            let end = text.len().min(at + length);
            clean.extend_from_slice(if lone { b"\\ufffd" } else { &text[at..end] });
            (at, found) = (end, found || lone);
        }
        found.then_some(clean)
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
        if let Some(id) = id {
            response["id"] = id.clone();
        }
        line(response)
    }

    pub fn notification(method: &str, params: Value) -> Vec<u8> {
        line(json!({"jsonrpc": "2.0", "method": method, "params": params}))
    }
}

/// What the standard library does not offer of POSIX. All `unsafe` of the program is here.
#[allow(unsafe_code)]
mod sys {
    use super::{io, AsRawFd, BorrowedFd, Command, Duration, ErrorKind};
    use std::os::unix::process::CommandExt;

    /// Blocks the signals that end us, and SIGCHLD, in this thread and all that it starts. SIGCHLD gets a handler that
    /// does nothing: ignored, as some hosts leave it, it would reap our children. SIGHUP stays ignored under nohup.
    pub fn block_signals() -> libc::sigset_t {
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: sigemptyset(3) makes the set valid before it is read; sigaction(2) with a null action only fills
        // `old`, for which all-zero bytes are valid; the handler does nothing, hence nothing that is unsafe in one.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            let mut old: libc::sigaction = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut old);
            let hangup = if old.sa_sigaction == libc::SIG_IGN { libc::SIGTERM } else { libc::SIGHUP };
            for signal in [libc::SIGTERM, libc::SIGINT, hangup, libc::SIGCHLD] {
                libc::sigaddset(&mut set, signal);
            }
            libc::signal(libc::SIGCHLD, nothing as *const () as libc::sighandler_t);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            set
        }
    }

    /// The next of these signals.
    pub fn wait_for_signal(set: &libc::sigset_t) -> i32 {
        let mut signal = 0;
        // SAFETY: sigwait(3) reads a valid set and writes one int.
        while unsafe { libc::sigwait(set, &mut signal) } != 0 {}
        signal
    }

    /// Makes the command's process the leader of a session, hence of a group, without a terminal and with no signal
    /// blocked; on Linux it is killed when the thread that spawns it ends (prctl(2), PR_SET_PDEATHSIG).
    pub fn own_session(command: &mut Command) {
        let parent = std::process::id() as i32;
        // SAFETY: between fork and exec only plain system calls are made, nothing is allocated and no lock taken.
        unsafe {
            command.pre_exec(move || {
                let mut none: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&mut none);
                libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
                libc::setsid();
                #[cfg(target_os = "linux")]
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // Where we died before the prctl, nobody would kill it.
                if libc::getppid() == parent {
                    Ok(())
                } else {
                    Err(ErrorKind::NotFound.into())
                }
            })
        };
    }

    /// Whether a child of ours has exited; it stays unreaped (waitid(2), WNOWAIT).
    pub fn has_exited(pid: i32) -> bool {
        // SAFETY: all-zero bytes are a valid siginfo_t, which waitid fills; with WNOHANG si_pid stays 0 while it lives.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) != 0 || info.si_pid() != 0
        }
    }

    /// kill(2), of an unreaped child of ours or of the group that it leads.
    pub fn signal(pid: i32, signal: i32, group: bool) {
        // SAFETY: a plain system call.
        unsafe { libc::kill(if group { -pid } else { pid }, signal) };
    }

    fn poll_set(set: &mut [libc::pollfd], milliseconds: libc::c_int) {
        // SAFETY: the pointer and the length are those of one slice; poll(2) writes `revents` only.
        if unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, milliseconds) } < 0 {
            set.iter_mut().for_each(|entry| entry.revents = 0); // EINTR, ENOMEM: nothing is known to be ready
        }
    }

    /// poll(2): waits until something is ready or the time is over. Each entry is a descriptor, whether to wait until
    /// it is readable, and whether until it is writable; with neither it is left out.
    pub fn poll<const N: usize>(descriptors: [(BorrowedFd, bool, bool); N], time: Duration) -> [bool; N] {
        let mut set = descriptors.map(|(fd, read, write)| libc::pollfd {
            fd: if read || write { fd.as_raw_fd() } else { -1 },
            events: if read { libc::POLLIN } else { 0 } | if write { libc::POLLOUT } else { 0 },
            revents: 0,
        });
        poll_set(&mut set, time.as_micros().div_ceil(1_000).min(i32::MAX as u128) as libc::c_int);
        set.map(|entry| entry.revents != 0)
    }

    /// Waits for stdin or, without `input`, a moment for somebody to take from stdout. None: nobody reads stdout any
    /// more. Else whether stdin can be read.
    pub fn poll_stdio(input: bool) -> Option<bool> {
        let stdin = libc::pollfd { fd: if input { 0 } else { -1 }, events: libc::POLLIN, revents: 0 };
        let mut set = [stdin, libc::pollfd { fd: 1, events: 0, revents: 0 }];
        poll_set(&mut set, if input { -1 } else { 50 });
        (set[1].revents == 0).then_some(set[0].revents != 0)
    }

    /// Writes as much as the descriptor takes without blocking, and returns how much that was; all of it where writing
    /// fails, for then there is nobody to write to. O_NONBLOCK would also change the descriptor for whoever shares it:
    /// a pipe that polls writable takes PIPE_BUF bytes (poll(2), pipe(7)), at least 4096 on what we run on.
    pub fn write_ready(fd: BorrowedFd, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() && poll([(fd, false, true)], Duration::ZERO)[0] {
            let piece = &bytes[written..bytes.len().min(written + 4096)];
            // SAFETY: write(2) reads the slice's length from it.
            match unsafe { libc::write(fd.as_raw_fd(), piece.as_ptr().cast(), piece.len()) } {
                count @ 0.. => written += count as usize,
                _ if io::Error::last_os_error().kind() == ErrorKind::WouldBlock => break,
                _ => return bytes.len(),
            }
        }
        written
    }

    /// Bytes that can be read without blocking (FIONREAD).
    pub fn bytes_readable(fd: BorrowedFd) -> usize {
        let mut count: libc::c_int = 0;
        // SAFETY: this request writes one int.
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD as _, &mut count) };
        count.max(0) as usize
    }

    /// Asks for a larger pipe where that can be asked; it works without.
    pub fn widen_pipe(_fd: BorrowedFd, _bytes: usize) {
        // SAFETY: a plain system call.
        #[cfg(target_os = "linux")]
        unsafe {
            libc::fcntl(_fd.as_raw_fd(), libc::F_SETPIPE_SZ, _bytes as libc::c_int);
        }
    }

    /// flock(2), exclusive, without waiting.
    pub fn try_lock(fd: BorrowedFd) -> bool {
        // SAFETY: a plain system call.
        unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
    }

    pub fn user_id() -> u32 {
        // SAFETY: a plain system call that can't fail.
        unsafe { libc::geteuid() }
    }
}

#[cfg(test)]
#[path = "../tests/unit/mod.rs"]
mod unit;
