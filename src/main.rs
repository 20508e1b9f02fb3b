//! mcp-py: one persistent Python that a coding agent and the person beside it can both use and read.
//!
//! ```text
//!                        ┌─────────────────┐ ── control socket ─▶ python -c … (src/worker.py): one per interpreter,
//! host ───── stdin ────▶ │    the loop,    │ ◀─ fd 1, fd 2 ────── in a session and group of its own; it runs the cells
//! (claude, …)            │ the main thread │                      in its __main__
//!      ◀─── stdout ───── │                 │
//! client ── socket ────▶ │                 │ ◀─ events: closures from the other threads, which run in the loop
//!                        └─────────────────┘
//! keepers: one thread per process. It spawns the process and waits for its exit.
//! the clerk: one thread. It looks at files and processes (ps, lsof, saved interpreters), one job after the other.
//! installers: one thread per import of a missing package. It runs uv or pip.
//! ```
//!
//! The main thread alone owns what changes, and it alone talks to the host, the clients and the workers. So its data
//! needs no locks, and nothing happens between two lines of it. Whatever may block is done by a thread that owns
//! nothing: it is given what it needs, and posts what it found. What this costs: output files and the history are
//! written by the loop, so a disk that hangs under their directories hangs the server; and a file system that hangs
//! under the home directory hangs the clerk, and with it all calls that need to know what is saved there.
//!
//! The way of a cell: `call_tool` (or `serve_peer`) checks the arguments and opens a call; `line_up` brings it to its
//! interpreter, through the clerk where it is not known yet; `submit` queues it and `start_next` sends it. `read_pipe`
//! and `take_frame` collect what comes, until the frame `done` (`cell_ended`) or the exit (`reap`). From there
//! `answer_cell` sends the answer in the form that its caller wants. What comes while no cell runs is kept in `between`
//! by `read_pipe`, and `answer_with_notes` tells it in the next answer. What a peer does not read piles up to
//! STREAM_BYTES_AHEAD; then `Worker::watch` leaves the cell's output in the pipes, and the cell waits.
//!
//! The way of a cell that outlives its call: `answer_late` finds the calls whose time is over (`Call::answer_by`), and
//! `answer_unfinished` gives the cell's reader what is new, and takes cells that still wait out of the queue. The cell
//! goes on without a reader, until a call of `wait` becomes one (`follow`). What ends without a reader is kept in
//! `unattended` (`tell_end`). It is told by the next `wait`, or ahead of the next answer by the same door.
//!
//! The way of an interrupt: `RunningCell::interrupt` notes that the cell is to end, and why. It is called for a
//! time-out (`RunningCell::tick`), for a call that nobody wants any more (`lose_call`), and for those who ask for it
//! (`interrupt_running`). From then on `RunningCell::tick` sends SIGINT to the worker every INTERRUPT_AGAIN, at which
//! that raises KeyboardInterrupt (worker.py). It cancels the cell's install by dropping `installer`, at which
//! `run_program` kills the installer, unless that copies files already. Processes that the cell has started get the
//! CHILD_SIGNALS, once the clerk has found them (`signal_children`). After INTERRUPT_PATIENCE `give_up` tells those who
//! wait that the cell has not stopped. The process is never killed for it. (`Server::tick` calls `Interpreter::tick`,
//! that `Worker::tick`, and that `RunningCell::tick`.)
//!
//! The way of a start: `line_up` has the clerk look at files for a call of the tool add_interpreter; later calls for
//! the same name queue behind it there. `act` then takes the calls in their order: `Server::add_interpreter` has a
//! keeper thread spawn the process (`launch`), and cells wait. At `ready`, `take_ready` runs the startup script, and
//! `start_next` has the waiting calls of add_interpreter answered (`additions`) and sends the first cell. A call that
//! asks for another start meanwhile is `held` until this one has succeeded or failed (`release_held`).
//!
//! The way of a process's end: `Worker::kill` asks its group to end, by SIGTERM, and `finish_kill` kills it where that
//! does not help. When its keeper thread has seen it exit (`exited`), what is left of the group gets SIGTERM, and time
//! to free shared memory (`group_has_ended`). Then `reap` kills the group and reaps the process.
//!
//! The way of our own end: the end of stdin (`end_stdin`) and signals (`take_signal`) lead to `begin_exit`, which
//! answers the cells that wait and lets idle workers leave by themselves. `Worker::tick` ends busy ones; their cells
//! are answered in `reap`. When no worker is left, or time is over, `exit` kills what is left, removes files and names,
//! and writes what stdout has not taken yet.
//!
//! Two servers side by side: each has a socket of its own; the first one also gets the host's name (`claim`), and the
//! client finds both (`find_session`). Each locks its output directory (`hold_dir`). Other locks are held while the
//! builtin's environment is made (ENVIRONMENT), while a package is installed into it, and while interpreters.json is
//! changed (`lock`).
//!
//! Other users: sockets, directories and files are for their owner alone, `accept` closes the connection of another
//! user unread, and `connect` sends nothing to another user's server.
//!
//! Who closes what: the server shuts the control socket to let an idle worker leave. A worker's death is its exit,
//! never an end of file, for its children may hold its pipes open.
//!
//! Invariants, cited where the code upholds them:
//!
//! - I1  Our stdout carries MCP messages and nothing else. What is said to people goes to stderr.
//! - I2  Nothing blocks the reading of stdin: the loop waits for no file of others, no process, no lock, no pipe.
//! - I3  User code is never run twice.
//! - I4  Nothing a cell prints is lost or misplaced. What arrives between cells, and what a cancelled cell had printed,
//!   is shown with the next answer.
//! - I5  State is lost only with notice, in the very next answer, with the cause. No time-out and no cancellation ends
//!   a process.
//! - I6  User code can't reach the worker protocol through fds 0, 1, 2, sys.std* or child processes.
//! - I7  The worker starts no thread: all draining of pipes happens here.
//! - I8  A worker is signalled only while it is unreaped, by the loop. Death is noticed without reaping, then the group
//!   gets SIGTERM and GROUP_GRACE, then SIGKILL, then the worker is reaped. Of its group, an interrupt reaches only
//!   those that are younger than the cell.
//! - I9  Every queue, buffer, frame, wait and loop has a limit; past it there is a clear error, never a hang.
//! - I10 Only this user reaches the socket, and the client sends code only to a server of this user and this session;
//!   for a person at a terminal also to that of the project in which they stand.
//! - I11 When the server goes, by end of stdin, signal, crash or SIGKILL, its workers go, and its output files do not
//!   stand in the next server's way.
//!
//! Sections: 1 limits and names · 2 main and roles · 3 the server: loop, stdin, stdout, shutdown · 4 MCP methods ·
//! 5 the tools · 6 interpreters · 7 cells and the calls that wait for them · 8 output and its files · 9 the builtin's
//! environment and packages · 10 saved and discovered interpreters · 11 the bridge · 12 the client · 13 install,
//! uninstall and doctor · 14 the host · 15 mod rpc, mod http, mod sys
//!
//! What the program never does: open a network connection (uv or pip do, for a cell's import), run a shell, signal a
//! process outside of the groups that it started, or run a cell a second time. It writes in its output directory,
//! MCP_PY_HISTORY, its sockets' names in /tmp, `~/.claude-workspace/python_interpreter` (with the history of the
//! client's console, and the files of cells for which a library asks) and the folder of `install`, and nowhere else,
//! but for three cases: `doctor` makes and removes a file in TMPDIR, /tmp and the folder for the configuration; where
//! interpreters.json is a link, the file that it leads to is replaced; and what a cell is given as stdin stands in a
//! file without a name in TMPDIR while somebody can read it. `uninstall` removes what it has written there, but for
//! MCP_PY_HISTORY and, without --all, interpreters.json.

use serde_json::{json, Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{parent_id, CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{mpsc, Arc, LazyLock, Once, OnceLock, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, mem, thread};

// ── 1. Limits and names ──────────────────────────────────────────────────────────────────────────────────────────────
//
// All limits are here (I9), with the reason where it is not obvious.

const NAME: &str = "python-interpreter"; // serverInfo.name: the Python original's, which people's settings cite
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Whether this is macOS, or the model of it on Linux (tests/macos).
const IS_MACOS: bool = cfg!(any(target_os = "macos", model_of_macos));
const BUILTIN: &str = "builtin"; // the interpreter that is always there
const WORKER: &str = include_str!("worker.py");
const OUTPUT_DIR: &str = "python-interpreter-mcp-py-"; // and eight characters: see OutputFiles
const REGISTER: &str = "claude mcp add --scope user python-interpreter -- mcp-py-server";
const SOCKETS: &str = "/tmp/python-interpreter-"; // and `{host pid}-{own pid}.sock`, `{host pid}.sock`

const REQUEST_BYTES_MAX: usize = 16 << 20; // one line on stdin: a cell with data in it; the client's stdin
const HTTP_HEAD_BYTES_MAX: usize = 16 << 10;
const PEERS_MAX: usize = 64; // connections to the bridge that are served; as many more are told that it is full
const STREAM_BYTES_AHEAD: usize = 1 << 20; // what a stream may be ahead of its reader, until its cell has to wait
const PEER_DRAIN_BYTES: usize = 1 << 20; // what is read and dropped after a refused request
const STDOUT_WAITING_MAX: usize = 64 << 20; // answers that the host has not taken; past it stdin is not read
const CELLS_WAITING_MAX: usize = 1_000; // over all interpreters
const CALLS_MAX: usize = 2_000; // requests without an answer; each has at most one job with the clerk
const SUBSCRIPTIONS_MAX: usize = 64;
const FRAME_BYTES_MAX: usize = 4 << 20; // one line from a worker, which sends results in parts of 256 Ki characters
/// How much is read at a time, and the size of stdout's pipe on Linux: 64 KiB would cost four times the context
/// switches, 1 MiB for each of 50 interpreters would exhaust a user's share of pipe memory.
const PIPE_BYTES: usize = 256 << 10;

const TEXT_CHARS_MAX: usize = 25_000; // of an answer; a longer one shows its first and its last characters:
const HEAD_CHARS: usize = 20_000;
const TAIL_CHARS: usize = 5_000;
const NOTE_CHARS_MAX: usize = 10_000; // a longer note loses its middle
const NOTES_MAX: usize = 128; // of a cell while it runs, about figures and installs
const NOTICES_MAX: usize = 8; // about earlier cells and processes, in one answer: the last ones
const CODE_SHOWN_CHARS: usize = 80; // of a running cell's first line
const LINE_BYTES_HELD: usize = 64 << 10; // of a line that may yet be written over; more is shown as it is
const ERASE_LINE: &[u8] = b"\x1b[2K"; // ECMA-48, 8.3.41
const HISTORY_BYTES_MAX: u64 = 64 << 20;
const HEAD_BYTES: usize = 4 * TEXT_CHARS_MAX; // of a stream in memory; longer output goes to a file
const TAIL_BYTES: usize = 4 * (TAIL_CHARS + 1); // and a character cut in two
const CELL_FILE_BYTES_MAX: u64 = 1 << 30;
const SESSION_FILE_BYTES_MAX: u64 = 4 << 30; // the oldest files go first
const ANSWER_CHARS_MAX: usize = 100_000; // the longest answer, with notes and a traceback; Claude Code is told it
const PROGRESS_MESSAGE_CHARS: usize = 200; // Claude Code shows about as many
const VALUE_SHOWN_CHARS: usize = 80; // of a wrong argument, in the error about it
const SECONDS: std::ops::RangeInclusive<f64> = 0.0..=1e7; // of a time limit: up to four months
const NAME_CHARS_MAX: usize = 64;
const FIGURES_MAX: usize = 100; // of a cell, with its pages; further ones are dropped
const IMAGES_MAX: usize = 10; // in an answer; what is over one of these limits is only a file
const IMAGE_BYTES_MAX: usize = 4 << 20;
const IMAGES_BYTES_MAX: usize = 6 << 20; // together: 8 MiB as base64, where hosts hang up at 10
const IMAGE_SIDE_MAX: u32 = 8_000; // pixels
const PICTURE_BYTES_MAX: usize = 64 << 20; // of one as base64, from the worker; a larger one is not kept
const SNAPSHOT_BYTES_MAX: usize = 8 << 20; // of what ps, lsof or an installer prints
const DESCRIPTORS_MAX: i32 = 10_240; // macOS's OPEN_MAX: a process has no higher one there unless it asks for that
const SAVED_BYTES_MAX: u64 = 8 << 20; // of interpreters.json

const SCRIPT_PATIENCE: Duration = Duration::from_secs(30); // for a startup script, by calls that wait less for cells
const WAIT_DEFAULT: f64 = 50.0; // seconds until a call is answered though its cell runs on; many hosts give it 60
const INTERRUPT_AGAIN: Duration = Duration::from_millis(200); // libc's system() swallows the first one
const CHILDREN_KILLED_AFTER: Duration = Duration::from_secs(4); // from the interrupt, those that the cell started
const INTERRUPT_PATIENCE: Duration = Duration::from_secs(10); // then who waits is told that the cell has not stopped
const GROUP_GRACE: Duration = Duration::from_millis(200); // from SIGTERM to SIGKILL, to free shared memory
const TURN_NOTED_AFTER: Duration = Duration::from_secs(2); // then a client is told what its cell waits for
const STOP_GRACE: Duration = Duration::from_secs(2); // for an idle worker's atexit at stop_interpreter
const HUNG_UP_GRACE: Duration = Duration::from_secs(1); // from the end of the control socket to SIGKILL
const DRAIN_LIMIT: Duration = Duration::from_millis(1_500); // for what is in flight at the end of stdin, and atexit
const SIGNAL_GRACE: Duration = Duration::from_millis(150); // at a signal: hosts kill us after 400 ms
const KILL_LIMIT: Duration = Duration::from_millis(100); // from SIGKILL to the exit
const IDLE_TICK: Duration = Duration::from_secs(60);
const CANCEL_TICK: Duration = Duration::from_millis(10); // how often a thread asks whether its program is still wanted
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
const PROGRESS_AT_LEAST: Duration = Duration::from_secs(15); // hosts give up on silence
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(2); // for ps, for lsof
const LOCK_LIMIT: Duration = Duration::from_secs(5); // for another server's save
const LOCK_RETRY: Duration = Duration::from_millis(5);
const PROGRAM_LIMIT: Duration = Duration::from_secs(60); // for a Python that doctor asks something
const INSTALL_LIMIT: Duration = Duration::from_secs(120);
const OFFLINE_MEMORY: Duration = Duration::from_secs(60); // no install is tried for so long after there was no network
const SOCKET_AGE_MIN: Duration = Duration::from_secs(1); // a younger socket that refuses is not taken for a dead one
const REQUEST_LIMIT: Duration = Duration::from_secs(10); // for an HTTP request to arrive
const PEER_PATIENCE: Duration = Duration::from_secs(60); // for a peer to take some of an answer that is no stream
const PEER_DRAIN: Duration = Duration::from_secs(1); // for a peer to hang up after its answer
const ACCEPT_PAUSE: Duration = Duration::from_millis(10); // when there are no descriptors for a connection
const CONNECT_PAUSE: Duration = Duration::from_millis(10); // before the next try where a socket refuses, on macOS
const HEALTH_LIMIT: Duration = Duration::from_secs(5); // for a server that the client asks who it is: it runs lsof

/// Exit codes of the client, and `exit_code` of the bridge, beside what a cell exits with.
const EXIT_TIMEOUT: i32 = 124;
const EXIT_FAILED: i32 = 125; // it could not be run
const EXIT_INTERRUPTED: i32 = 130;
const EXIT_DIED: i32 = 137;

const _: () = assert!(HEAD_CHARS + TAIL_CHARS <= TEXT_CHARS_MAX && 4 * HEAD_CHARS <= HEAD_BYTES);

/// Newest first. The versions before 2026-07-28 open with `initialize`.
const MODERN: &str = "2026-07-28";
const LEGACY: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
const VERSIONS: [&str; 5] = [MODERN, LEGACY[0], LEGACY[1], LEGACY[2], LEGACY[3]];
/// How the name of Gemini CLI begins. It parses the text of a result that has no `structuredContent` as JSON, and
/// refuses the result where that is no object, as with `42`. An empty object keeps it from that. No error is JSON.
const GEMINI_CLI: &str = "gemini-cli-mcp-client";
const CACHE_MS: u64 = 3_600_000; // how long a modern client may keep our lists: they never vary while we run

/// What people set by variables of the environment. An empty one is not set.
struct Setting {
    name: &'static str,
    default: &'static str,
    means: &'static str,
    can_be: fn(&str) -> bool,
}

const TIMEOUT: Setting = Setting {
    name: "MCP_PY_TIMEOUT",
    default: "600",
    means: "the seconds a cell may run, such as 300, or 0 for no limit",
    can_be: is_seconds,
};
const WAIT: Setting = Setting {
    name: "MCP_PY_WAIT",
    default: "what the host allows",
    means: "the seconds a call waits for its cell, such as 50, or the word none for no limit",
    can_be: |value| value == "none" || is_seconds(value),
};
const START_TIMEOUT: Setting = Setting {
    name: "MCP_PY_START_TIMEOUT",
    default: "30", // a cold disk, a large venv
    means: "the seconds the start of a Python may take, such as 60",
    can_be: |value| is_seconds(value) && value.parse() != Ok(0.0),
};
const AUTO_INSTALL: Setting = Setting {
    name: "MCP_PY_AUTO_INSTALL",
    default: "on",
    means: "on or off: whether importing a missing package installs it",
    can_be: |value| is_yes(value) || is_word(value, &["0", "off", "no", "false", "never"]),
};
const PYTHON: Setting = Setting {
    name: "MCP_PY_PYTHON",
    default: "python3",
    means: "the Python that the builtin is made from, a path or a name on PATH",
    can_be: |_| true, // `check_config` looks for it
};
const HISTORY_DIR: Setting = Setting {
    name: "MCP_PY_HISTORY",
    default: "the session's directory",
    means: "the folder that keeps the history after the session",
    can_be: |_| true, // `open_history` tries it
};
const SOCKET: Setting = Setting {
    name: "MCP_PY_SOCKET",
    default: "the session's",
    means: "the socket that the client connects to",
    can_be: |_| true, // `connect` tries it
};
const SETTINGS: [Setting; 7] = [TIMEOUT, WAIT, START_TIMEOUT, AUTO_INSTALL, PYTHON, HISTORY_DIR, SOCKET];

impl Setting {
    fn given(&self) -> Option<OsString> {
        env::var_os(self.name).filter(|value| !value.is_empty())
    }

    /// The value in use. One that can't be read counts as not given; a switch, as off: it is there for people who do
    /// not trust what it allows.
    fn value(&self) -> Cow<'static, str> {
        match self.given().map(|value| value.to_string_lossy().into_owned()) {
            Some(value) if (self.can_be)(&value) => value.into(),
            Some(_) if self.default == "on" => "off".into(),
            _ => self.default.into(),
        }
    }

    /// None where what holds is no number.
    fn seconds(&self) -> Option<Duration> {
        self.value().parse().ok().map(Duration::from_secs_f64)
    }

    /// What holds, or that what is given can't be read.
    fn check(&self) -> Finding {
        let Setting { name, means, .. } = self;
        let holds = self.value();
        match self.given().map(|value| value.to_string_lossy().into_owned()) {
            Some(value) if !(self.can_be)(&value) => {
                let holds = if self.default == "on" { "off, to be safe," } else { &holds };
                Err(format!("{name}={value} can't be read: it must be {means}; {holds} is used instead"))
            }
            _ => Ok(format!("{name} is {holds} ({means})")),
        }
    }
}

/// What holds; and of each variable that is called like a setting and is none, that it does nothing.
fn check_settings() -> Vec<Finding> {
    let mut findings: Vec<Finding> = SETTINGS.iter().map(Setting::check).collect();
    let known = SETTINGS.map(|setting| setting.name).join(", ");
    for name in env::vars_os().filter_map(|(name, _)| name.into_string().ok()) {
        let is_known = known.split(", ").chain(["MCP_PY_HURRY", "MCP_PY_INTERPRETER"]).any(|one| one == name);
        if name.starts_with("MCP_PY_") && !is_known {
            findings.push(Err(format!("{name} is no setting, and does nothing; these are: {known}")));
        }
    }
    findings
}

fn is_seconds(value: &str) -> bool {
    value.parse().is_ok_and(|seconds| SECONDS.contains(&seconds))
}

fn is_yes(value: &str) -> bool {
    is_word(value, &["1", "on", "yes", "true"])
}

fn is_word(value: &str, words: &[&str]) -> bool {
    words.contains(&value.trim().to_ascii_lowercase().as_str())
}

// ── 2. Main and roles ────────────────────────────────────────────────────────────────────────────────────────────────

const USAGE: &str = "\
usage: mcp-py server             speak MCP on stdin and stdout
       mcp-py client …           run code in the session's Python
       mcp-py install [--dir D]  copy this program and its two names to D
                                 (~/.local/bin), and try them
       mcp-py uninstall [--dir D] [--all]
                                 remove what install and the sessions have made,
                                 with --all also the saved interpreters
       mcp-py doctor             say what it finds on this machine, and what to
                                 do about it
       mcp-py --version
       mcp-py -h, --help         client --help says more of the client

Under the names mcp-py-server and mcp-py-client it is the server and the client.
";

fn main() -> ExitCode {
    let mut words = env::args_os();
    let called_as = PathBuf::from(words.next().unwrap_or_default());
    let mut words: Vec<OsString> = words.collect();
    match called_as.file_name().and_then(OsStr::to_str) {
        Some("mcp-py-server") => words.insert(0, "server".into()),
        Some("mcp-py-client") => words.insert(0, "client".into()),
        _ => {} // any other name takes a subcommand
    }
    let plain: Vec<&str> = words.iter().map(|word| word.to_str().unwrap_or("?")).collect();
    match plain[..] {
        ["server"] => serve(),
        ["--version"] | ["server", "--version"] => say(io::stdout(), &version_line(), 0),
        ["-h" | "--help"] | ["server" | "install" | "uninstall" | "doctor", "-h" | "--help"] => {
            say(io::stdout(), USAGE, 0)
        }
        ["client", ..] => ExitCode::from(client(&words[1..])),
        ["server", "client", ..] => ExitCode::from(client(&words[2..])), // where only that name was copied
        ["install"] | ["install", "--dir", _] => match install(words.get(2)) {
            Ok(report) => say(io::stdout(), &report, 0),
            Err(why) => say(io::stderr(), &format!("mcp-py install: {why}\n"), 1),
        },
        ["uninstall"] | ["uninstall", "--dir", _] => tell(uninstall(words.get(2), false)),
        ["uninstall", "--all"] | ["uninstall", "--dir", _, "--all"] => tell(uninstall(words.get(2), true)),
        ["uninstall", "--all", "--dir", _] => tell(uninstall(words.get(3), true)),
        ["doctor"] => tell(doctor()),
        [] => say(io::stderr(), USAGE, 2),
        _ => say(io::stderr(), &format!("mcp-py: {:?} is not understood\n{USAGE}", plain.join(" ")), 2),
    }
}

fn version_line() -> String {
    format!("mcp-py {VERSION}\n")
}

/// Writes a text to people; returns the exit code, which is 1 where nobody reads.
fn say(mut to: impl Write, text: &str, code: u8) -> ExitCode {
    match to.write_all(text.as_bytes()) {
        Ok(()) => code.into(),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Writes a line for people to stderr (I1). What stderr does not take at once is dropped, so that a full pipe can't
/// stop the server (I2).
fn log(text: &str) {
    sys::write_ready(2, format!("mcp-py-server: {text}\n").as_bytes());
}

fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let started = thread::Builder::new().name(name.into()).spawn(body);
    started.map(drop).map_err(|error| format!("no thread could be started: {error}"))
}

// ── 3. The server: loop, stdin, stdout, shutdown ─────────────────────────────────────────────────────────────────────

/// Everything that changes. The main thread owns it.
#[derive(Default)]
struct Server {
    front: Frontend,
    /// By name: the builtin, those that run, and those that ran or are about to.
    interpreters: BTreeMap<String, Interpreter>,
    /// By the interpreter's name: calls that wait for its end, or for the end of a start that another call asked for.
    held: BTreeMap<String, Vec<(u64, Action)>>,
    clerk: Option<Clerk>,            // None until the session begins
    tool_list: Option<Value>,        // what tools/list shows; None until the clerk knows the host
    bridge: Option<Bridge>,          // None until the clerk has bound its socket
    stdin: Option<File>,             // None after its end
    agreed: Option<&'static str>,    // the version that `initialize` agreed on
    drain_until: Option<Instant>,    // stdin has ended: what was asked before may still end until then
    exiting: Option<(i32, Instant)>, // we go with this exit code: workers may leave by themselves until then
}

/// The side of the server that its callers see: open calls, connections, stdout, output files. Interpreters get it
/// lent whenever they may have something to answer.
#[derive(Default)]
struct Frontend {
    client: String, // the name that `initialize` gave; empty for none
    last_key: u64,
    /// The requests that are not answered yet, by a key of our own, since a client may use an id twice.
    calls: BTreeMap<u64, Call>,
    peers: BTreeMap<u64, Peer>,     // connections to the bridge
    subscriptions: Vec<Value>,      // ids of `subscriptions/listen`: open until cancelled or until we go
    cells_waiting: usize,           // in the queues of all interpreters
    offline_since: Option<Instant>, // when an installer found no network
    stdout: Outbox,
    files: OutputFiles,
    notices: [Vec<String>; 2],  // what the next answer by each door has to say of the settings
    buffer: Vec<u8>,            // for reading: PIPE_BYTES, with nothing in it between two reads
    closing: bool,              // no process is started any more
    next_tick: Option<Instant>, // when the loop looks again what is due, if nothing wakes it before
}

/// A request that waits for its answer.
struct Call {
    reply_to: ReplyTo,
    progress: Option<Progress>,
    interpreter: Option<String>, // where its cell runs or waits, or which it adds, under the call's key
    answer_by: Option<Instant>,  // it is answered then, though its cell runs on; None: it waits as long as it takes
}

/// Where a call's answer goes: to stdout, or to a peer of the bridge.
enum ReplyTo {
    Mcp { id: Value, modern: bool },
    Bridge { peer: u64, form: Form },
}

/// The form that a peer wants its answer in.
enum Form {
    Tool,
    Execute,
    Stream,
}

/// A picture's file, and its base64 where it is small enough for an answer.
struct Picture {
    kind: Kind,
    path: Option<String>, // None where it could not be written
    block: Option<String>,
}

/// What a worker draws. Models see the first two.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Png,
    Jpeg,
    Svg,
    Html,
}

impl Kind {
    fn parse(name: &str) -> Option<Kind> {
        [Kind::Png, Kind::Jpeg, Kind::Svg, Kind::Html].into_iter().find(|kind| kind.name() == name)
    }

    /// What the worker calls it, and how its files' names end.
    fn name(self) -> &'static str {
        match self {
            Kind::Png => "png",
            Kind::Jpeg => "jpeg",
            Kind::Svg => "svg",
            Kind::Html => "html",
        }
    }

    /// Whether a model sees it.
    fn is_seen(self) -> bool {
        matches!(self, Kind::Png | Kind::Jpeg)
    }

    /// Its sides in pixels, where those count; None for bytes that are of another kind.
    fn sides(self, bytes: &[u8]) -> Option<[u32; 2]> {
        match self {
            Kind::Png => png_sides(bytes),
            Kind::Jpeg => jpeg_sides(bytes),
            Kind::Svg | Kind::Html => Some([0, 0]),
        }
    }
}

/// A client's wish to hear of progress.
struct Progress {
    token: Value,
    since: Instant,
    last: Instant, // when it was told last
    chars: u64,    // how much output there was then
}

type Event = Box<dyn FnOnce(&mut Server) + Send>;

/// The way into the loop: the events, and a socket that wakes it.
struct Post {
    events: mpsc::Sender<Event>,
    waker: UnixStream,
}

static POST: OnceLock<Post> = OnceLock::new();
static SIGNAL: AtomicI32 = AtomicI32::new(0); // the last signal that is to end us; 0 for none
static STARTED: LazyLock<(Instant, SystemTime)> = LazyLock::new(|| (Instant::now(), SystemTime::now()));

/// Has the loop run this, soon.
fn post(event: impl FnOnce(&mut Server) + Send + 'static) {
    if let Some(post) = POST.get() {
        let _ = post.events.send(Box::new(event)); // the loop lives as long as the process
        let _ = (&post.waker).write(&[0]); // if the socket is full, the loop is awake already
    }
}

fn serve() -> ! {
    LazyLock::force(&STARTED);
    if io::stdin().is_terminal() {
        explain_server();
    }
    let mut server = Server::default();
    let Err(error) = server.run();
    log(&format!("can't serve: {error}"));
    server.exit(1)
}

/// For a person who started a server by hand: what it is, once.
fn explain_server() {
    static EXPLAINED: Once = Once::new();
    EXPLAINED.call_once(|| {
        log(&format!(
            "this is an MCP server: a host starts it, and speaks JSON-RPC on its stdin; Ctrl-D ends it\n  \
             `{REGISTER}` has Claude Code start one\n  \
             `mcp-py-client` runs Python in the session of a server that a host has started"
        ));
    });
}

impl Server {
    /// The loop. Whatever it waits for ends at the latest when `tick` says.
    fn run(&mut self) -> io::Result<std::convert::Infallible> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let (sender, events) = mpsc::channel();
        let _ = POST.set(Post { events: sender, waker });
        sys::catch_signals();
        self.stdin = Some(io::stdin().as_fd().try_clone_to_owned()?.into());
        self.front.buffer = vec![0; PIPE_BYTES];
        let mut chunk = vec![0; 64 << 10];
        let mut line = Vec::new();
        let mut set = Vec::new();
        loop {
            self.tick();
            let peers: Vec<u64> = self.front.peers.keys().copied().collect();
            set.clear();
            set.push(sys::watch(wake.as_raw_fd(), libc::POLLIN));
            self.watch(&mut set);
            sys::poll(&mut set, self.front.next_tick.unwrap_or_else(Instant::now));
            let [woken, stdin, listener, stdout] = [0, 1, 2, 3].map(|at| set[at].revents);
            let (of_peers, of_workers) = set[4..].split_at(peers.len());
            let running = self.interpreters.values_mut().filter(|interpreter| interpreter.worker().is_some());
            for (interpreter, ready) in running.zip(of_workers.chunks(3)) {
                interpreter.on_ready(ready, &mut self.front);
            }
            for (peer, entry) in peers.into_iter().zip(of_peers) {
                if entry.revents != 0 {
                    self.on_peer_ready(peer, entry.revents);
                }
            }
            if listener != 0 {
                self.accept();
            }
            self.front.stdout.flush(1);
            if stdout & !libc::POLLOUT != 0 {
                self.front.stdout = Outbox { is_closed: true, ..Outbox::default() };
                self.end_stdin(); // nobody reads our answers any more, which comes to the same
            }
            if stdin != 0 {
                self.read_stdin(&mut line, &mut chunk)?;
            }
            if woken != 0 {
                self.take_signal(&wake);
                for event in events.try_iter() {
                    event(self);
                }
            }
        }
    }

    /// What the loop polls behind its own waking: stdin, the listener, stdout, the peers, three entries a worker.
    fn watch(&self, set: &mut Vec<libc::pollfd>) {
        let stdin = self.stdin.as_ref().filter(|_| self.front.stdout.waiting.len() < STDOUT_WAITING_MAX);
        let listener = self.bridge.as_ref().filter(|_| self.front.peers.len() < 2 * PEERS_MAX);
        set.push(sys::watch(stdin.map_or(-1, File::as_raw_fd), libc::POLLIN));
        set.push(sys::watch(listener.map_or(-1, |bridge| bridge.listener.as_raw_fd()), libc::POLLIN));
        set.push(self.front.stdout.watch(1, 0));
        set.extend(self.front.peers.values().map(Peer::watch));
        for worker in self.interpreters.values().filter_map(Interpreter::worker) {
            set.extend(worker.watch(&self.front));
        }
    }

    fn read_stdin(&mut self, line: &mut Vec<u8>, chunk: &mut [u8]) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        match stdin.read(chunk) {
            Ok(0) => {
                rpc::feed(line, b"\n", |line| self.take_message(rpc::parse(line))); // the last line may lack its end
                self.end_stdin();
            }
            Ok(count) => rpc::feed(line, &chunk[..count], |line| self.take_message(rpc::parse(line))),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads the bytes that woke the loop, and begins our end where a signal asks for that.
    fn take_signal(&mut self, mut wake: &UnixStream) {
        let _ = wake.read(&mut self.front.buffer);
        let signal = SIGNAL.swap(0, Ordering::Relaxed);
        if signal != 0 {
            self.begin_exit(128 + signal, Instant::now() + SIGNAL_GRACE);
        }
    }

    /// Does what is due by now. What is due later has itself looked at then, by `Frontend::tick_at`.
    fn tick(&mut self) {
        let now = Instant::now();
        self.front.next_tick = Some(now + IDLE_TICK);
        let is_late = |peer: &Peer| peer.until.is_some_and(|end| end <= now);
        let late: Vec<u64> = self.front.peers.iter().filter(|(_, peer)| is_late(peer)).map(|(id, _)| *id).collect();
        for id in late {
            self.on_peer_ready(id, 0); // nothing is ready: it sees by itself that its time is over
        }
        for name in self.names_of(|it| it.worker().is_some_and(|worker| worker.group_has_ended(now))) {
            self.reap(&name);
        }
        for name in self.names_of(|it| it.has_ended(now) && !self.is_with_clerk(&it.name)) {
            self.interpreter_ended(name);
        }
        self.release_held();
        for (key, _) in self.held.values().flatten() {
            self.front.report_progress(*key, now, 0, || "waiting for its turn".into());
        }
        for interpreter in self.interpreters.values_mut() {
            interpreter.tick(now, &mut self.front);
        }
        if let Some(until) = self.front.peers.values().filter_map(|peer| peer.until).min() {
            self.front.tick_at(until);
        }
        if let Some((exit_code, until)) = self.exiting {
            if until + KILL_LIMIT <= now || !self.interpreters.values().any(|one| one.worker().is_some()) {
                self.exit(exit_code);
            }
            self.front.tick_at(until + KILL_LIMIT);
        } else if let Some(end) = self.drain_until {
            self.front.tick_at(end);
            if end <= now || (self.front.calls.is_empty() && self.front.stdout.is_empty()) {
                self.begin_exit(0, end.max(now + SIGNAL_GRACE));
                self.front.tick_at(now);
            }
        }
    }

    fn names_of(&self, are_meant: impl Fn(&Interpreter) -> bool) -> Vec<String> {
        let meant = self.interpreters.values().filter(|interpreter| are_meant(interpreter));
        meant.map(|interpreter| interpreter.name.clone()).collect()
    }

    /// Has the held calls of a name go on, when what they waited for is over. Calls that came later may be with the
    /// clerk: they come back first, and are held behind these.
    fn release_held(&mut self) {
        let is_free = |name: &&String| self.is_to_release(name) && !self.is_with_clerk(name);
        let free: Vec<String> = self.held.keys().filter(is_free).cloned().collect();
        for name in free {
            for (key, action) in self.held.remove(&name).into_iter().flatten() {
                self.line_up(key, name.clone(), action);
            }
        }
    }

    /// Whether calls of this name are held, and nothing holds them any more.
    fn is_to_release(&self, name: &str) -> bool {
        let interpreter = self.interpreters.get(name);
        let is_free = interpreter.is_none_or(|it| it.stopping.is_none() && !it.is_starting());
        is_free && self.held.contains_key(name)
    }

    fn end_stdin(&mut self) {
        self.stdin = None;
        self.drain_until.get_or_insert(Instant::now() + DRAIN_LIMIT);
    }

    /// Begins the end of the process (I11). Idle workers may leave by themselves until then, `Worker::tick` ends busy
    /// ones at once, and `exit` kills every group that is left. After that time this takes at most a KILL_LIMIT in
    /// `tick` and one in `exit`.
    fn begin_exit(&mut self, exit_code: i32, until: Instant) {
        let (_, earliest) = self.exiting.get_or_insert((exit_code, until));
        let until = until.min(*earliest);
        *earliest = until;
        self.front.closing = true;
        let why = "not run: the server is shutting down";
        for (key, _) in mem::take(&mut self.held).into_values().flatten() {
            self.front.fail(key, why);
        }
        for interpreter in self.interpreters.values_mut() {
            interpreter.end_by = Some(until);
            interpreter.fail_waiting(why, &mut self.front);
        }
    }

    fn exit(&mut self, code: i32) -> ! {
        for id in mem::take(&mut self.front.subscriptions) {
            let mut result = in_era(json!({}), true);
            result["_meta"]["io.modelcontextprotocol/subscriptionId"] = id.clone();
            self.front.send(&rpc::response(&id, result));
        }
        for worker in self.interpreters.values().filter_map(Interpreter::worker) {
            worker.kill_group();
        }
        self.interpreters.clear(); // which cancels the installers (I11)
        IS_EXITING.store(true, Ordering::Relaxed); // no ps or lsof is wanted any more
        self.front.files.remove();
        self.bridge = None;
        let end = Instant::now() + KILL_LIMIT;
        while !self.front.stdout.is_empty() && Instant::now() < end {
            sys::poll(&mut [self.front.stdout.watch(1, 0)], end);
            self.front.stdout.flush(1);
        }
        // Until each `run_program` has killed its program.
        while PROGRAMS.try_write().is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        std::process::exit(code)
    }

    /// Starts the builtin and the clerk at the first message that is not `server/discover`: some hosts start a server
    /// just to ask that, and kill it.
    fn begin_session(&mut self) {
        if self.clerk.is_some() {
            return;
        }
        match Clerk::start() {
            Ok(clerk) => self.clerk = Some(clerk),
            Err(why) => return log(&why), // the next message tries again
        }
        for why in check_settings().into_iter().filter_map(Result::err) {
            self.front.notice(why);
        }
        let (builtin, front) = self.interpreter(BUILTIN);
        builtin.source = Source::Builtin;
        builtin.launch(front);
    }

    /// MCP's cancellation: of the newest request with this id.
    fn cancel_request(&mut self, id: &Value) {
        self.front.subscriptions.retain(|subscription| subscription != id);
        let is_asked = |call: &Call| matches!(&call.reply_to, ReplyTo::Mcp { id: own, .. } if own == id);
        let newest = self.front.calls.iter().rev().find(|(_, call)| is_asked(call)).map(|(key, _)| *key);
        if let Some(key) = newest {
            self.cancel(key);
        }
    }

    /// Nobody wants the answer any more: the call's own cell is interrupted, or leaves the queue. A call that is still
    /// with the clerk is dropped when it comes back (`act`).
    fn cancel(&mut self, key: u64) {
        let Some(call) = self.front.calls.remove(&key) else { return };
        let Some(interpreter) = call.interpreter.and_then(|name| self.interpreters.get_mut(&name)) else { return };
        let is_stream = matches!(call.reply_to, ReplyTo::Bridge { form: Form::Stream, .. });
        interpreter.lose_call(key, is_stream, &mut self.front);
        let had_additions = !interpreter.additions.is_empty(); // calls of add_interpreter that wait for its start
        interpreter.additions.retain(|addition| addition.key != key);
        let was_last = had_additions && interpreter.additions.is_empty();
        if was_last && !interpreter.is_up() && interpreter.waiting.is_empty() {
            interpreter.begin_stop(None, false); // nobody else waits for its start
        }
    }
}

/// The thread that looks at files and processes, so that the loop need not wait for them (I2). It does its jobs one
/// after the other, in the order in which they came. A job is a function from what it needs to what it found; it never
/// waits for the loop.
struct Clerk {
    jobs: mpsc::Sender<Job>,
    /// How many jobs concern the interpreter of a name, until the loop has taken what they found.
    names: BTreeMap<String, usize>,
}

type Job = Box<dyn FnOnce(&Surroundings) + Send>;

impl Clerk {
    fn start() -> Result<Clerk, String> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let work = move || {
            let host = find_host(std::process::id() as i32, &processes());
            let tools = tool_list(host.is_claude);
            post(move |server| server.tool_list = Some(tools));
            match Bridge::bind(host.pid) {
                Ok(bridge) => post(move |server| server.bridge = Some(bridge)),
                Err(why) => log(&why),
            }
            let surroundings = Surroundings::of(host); // this may take its time: lsof
            remove_the_dead();
            for job in queue {
                job(&surroundings);
            }
        };
        start_thread("clerk", work)?;
        Ok(Clerk { jobs, names: BTreeMap::new() })
    }
}

impl Server {
    /// Has the clerk do a job, and then the loop take what it found. A `name` says that the job concerns this
    /// interpreter: later calls for it line up behind.
    fn ask_clerk<T: Send + 'static>(
        &mut self,
        name: Option<String>,
        job: impl FnOnce(&Surroundings) -> T + Send + 'static,
        then: impl FnOnce(&mut Server, T) + Send + 'static,
    ) {
        let Some(clerk) = &mut self.clerk else { return }; // there is one since the session's first message
        if let Some(name) = &name {
            *clerk.names.entry(name.clone()).or_default() += 1;
        }
        let work = move |surroundings: &Surroundings| {
            let found = job(surroundings);
            post(move |server| {
                if let (Some(clerk), Some(name)) = (&mut server.clerk, name) {
                    clerk.names.entry(name).and_modify(|count| *count -= 1);
                    clerk.names.retain(|_, count| *count > 0);
                }
                then(server, found);
            });
        };
        let _ = clerk.jobs.send(Box::new(work)); // it lives as long as the process
    }
}

impl Frontend {
    fn key(&mut self) -> u64 {
        self.last_key += 1;
        self.last_key
    }

    fn open_call(&mut self, reply_to: ReplyTo, token: Option<Value>) -> u64 {
        let key = self.key();
        let now = Instant::now();
        let progress = token.map(|token| Progress { token, since: now, last: now, chars: 0 });
        let call = Call { reply_to, progress, interpreter: None, answer_by: None };
        self.calls.insert(key, call);
        key
    }

    /// A message to the host. What stdout does not take at once waits, so a slow reader holds up no cell and loses
    /// nothing.
    fn send(&mut self, message: &[u8]) {
        self.stdout.push(1, message);
    }

    /// Sets how long a call, which has just come, waits for its cell; None: as long as it takes.
    fn limit_wait(&mut self, key: u64, wait: Option<Duration>) {
        if let Some(call) = self.calls.get_mut(&key) {
            call.answer_by = wait.map(|wait| Instant::now() + wait);
        }
    }

    /// By which door a call came: 0 for MCP, 1 for the bridge. Notices are kept per door, for a caller at one has
    /// perhaps not seen what was told at the other.
    fn door(&self, key: u64) -> usize {
        let call = self.calls.get(&key);
        call.is_some_and(|call| matches!(call.reply_to, ReplyTo::Bridge { .. })).into()
    }

    /// Something to say on stderr, and in the next answer by each door.
    fn notice(&mut self, text: String) {
        log(&text);
        for notices in &mut self.notices {
            notices.push(text.clone());
        }
    }

    /// Sends the result of an open call, unless that was cancelled meanwhile.
    fn answer(&mut self, key: u64, result: Value) {
        if let Some(call) = self.calls.remove(&key) {
            self.reply(call.reply_to, result);
        }
    }

    fn reply(&mut self, to: ReplyTo, result: Value) {
        match to {
            ReplyTo::Mcp { id, modern } => self.send(&rpc::response(&id, in_era(result, modern))),
            ReplyTo::Bridge { peer, .. } => self.respond(peer, "200 OK", &result),
        }
    }

    /// Answers that a call could not be served, and why.
    fn fail(&mut self, key: u64, why: &str) {
        let error = truncate_middle(why, ANSWER_CHARS_MAX);
        let end = CellEnd { error: Some(error), exit: EXIT_FAILED, notes: Vec::new() };
        self.answer_cell(key, Output::default(), end);
    }

    /// Answers that there is no such interpreter: `POST /execute` has a status for that.
    fn fail_unknown(&mut self, key: u64, why: &str) {
        match self.calls.get(&key).map(|call| &call.reply_to) {
            Some(ReplyTo::Bridge { peer, form: Form::Execute | Form::Stream }) => {
                let peer = *peer;
                self.calls.remove(&key);
                self.refuse(peer, "404 Not Found", why);
            }
            _ => self.fail(key, why),
        }
    }

    /// Sends a cell's answer in the form that its call wants, unless that was cancelled meanwhile.
    fn answer_cell(&mut self, key: u64, mut output: Output, end: CellEnd) {
        let Some(call) = self.calls.remove(&key) else { return };
        let answer = output.make_answer(end, &mut self.files);
        let is_error = answer.is_error();
        match call.reply_to {
            ReplyTo::Bridge { peer, form: Form::Stream } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.end_events(answer);
                }
            }
            ReplyTo::Bridge { peer, form: Form::Execute } => {
                let images: Vec<_> = output.pictures.into_iter().filter_map(|picture| picture.path).collect();
                let exit = answer.exit;
                let text = answer.text();
                let result = json!({"result": text, "is_error": is_error, "exit_code": exit, "images": images});
                self.respond(peer, "200 OK", &result);
            }
            reply_to @ (ReplyTo::Mcp { .. } | ReplyTo::Bridge { form: Form::Tool, .. }) => {
                let mut content = vec![json!({"type": "text", "text": answer.text()})];
                for picture in output.pictures {
                    let Some(block) = picture.block else { continue };
                    let mime_type = format!("image/{}", picture.kind.name());
                    content.push(json!({"type": "image", "data": block, "mimeType": mime_type}));
                }
                let mut result = json!({"content": content, "isError": is_error});
                if !is_error && matches!(reply_to, ReplyTo::Mcp { .. }) && self.client.starts_with(GEMINI_CLI) {
                    result["structuredContent"] = json!({});
                }
                self.reply(reply_to, result);
            }
        }
    }

    /// Has the loop look at what is due at the latest then.
    fn tick_at(&mut self, at: Instant) {
        self.next_tick = self.next_tick.map(|next| next.min(at));
    }

    /// Whether this time has come. Where it has not, the loop looks again then.
    fn is_due(&mut self, at: Instant, now: Instant) -> bool {
        if at > now {
            self.tick_at(at);
        }
        at <= now
    }

    /// Tells a call that asked for it how its cell gets on. Progress that the host does not take at once is left out,
    /// for it would only make its queue longer.
    fn report_progress(&mut self, key: u64, now: Instant, chars: u64, line: impl FnOnce() -> String) {
        let asked = self.calls.get_mut(&key).and_then(|call| call.progress.as_mut());
        let Some(progress) = asked else { return };
        let pause = if chars > progress.chars { PROGRESS_EVERY } else { PROGRESS_AT_LEAST };
        if now >= progress.last + pause && self.stdout.is_empty() {
            progress.last = now;
            progress.chars = chars;
            let elapsed = now - progress.since;
            let mut message = line();
            if message.is_empty() {
                message = format!("running for {} s", elapsed.as_secs());
            }
            let seconds = elapsed.as_secs_f64();
            let params = json!({"progressToken": progress.token, "progress": seconds, "message": message});
            self.send(&rpc::notification("notifications/progress", params));
        }
        self.tick_at(now + PROGRESS_EVERY);
    }
}

/// What waits for a slow reader.
#[derive(Default)]
struct Outbox {
    waiting: VecDeque<u8>,
    is_closed: bool, // nobody reads any more
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What poll is to look for. Where nothing waits, that is only whether the reader has gone.
    fn watch(&self, fd: i32, events: libc::c_short) -> libc::pollfd {
        let writable = if self.is_empty() { 0 } else { libc::POLLOUT };
        sys::watch(if self.is_closed { -1 } else { fd }, events | writable)
    }

    /// Writes what the descriptor takes; the rest waits.
    fn push(&mut self, fd: i32, bytes: &[u8]) {
        if self.is_closed {
            return;
        }
        let written = if self.is_empty() { sys::write_ready(fd, bytes) } else { 0 };
        self.waiting.extend(&bytes[written..]);
    }

    /// Writes on, as much as the descriptor takes. Returns whether anything was written.
    fn flush(&mut self, fd: i32) -> bool {
        let mut moved = false;
        while !self.is_empty() {
            let written = sys::write_ready(fd, self.waiting.as_slices().0);
            if written == 0 {
                break;
            }
            self.waiting.drain(..written);
            moved = true;
        }
        self.waiting.shrink_to(PIPE_BYTES);
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
cell may run {timeout} unless `timeout` says otherwise; an interrupted one keeps its variables. Output over 25,000 \
characters is shown with its head and tail, and is whole in the file that the answer names. Where a cell outlives its \
call, `wait` shows the rest. What a cell of `builtin` \
imports is {installed} if it is missing. Project environments (`.venv`, `venv`, an active virtualenv or conda) can be \
named as `interpreter` straight away; `list_interpreters` shows them, `add_interpreter` adds any other Python.";

/// Under Claude Code they tell of the client. It sets CLAUDECODE for what it starts on its own machine: who the host is
/// (`find_host`) is not known yet when this is asked.
fn instructions() -> String {
    let mut text = in_force(INSTRUCTIONS);
    if env::var_os("CLAUDECODE").is_some() {
        text +=
            " In the shell, `mcp-py-client` runs code in the same Python: `execute` says how, and where it is better.";
    }
    text
}

/// A text for the model, with the settings that hold.
fn in_force(text: &str) -> String {
    let timeout =
        time_limit(None).map_or("as long as it takes".into(), |limit| format!("{} seconds", limit.as_secs_f64()));
    let installed = if is_yes(&AUTO_INSTALL.value()) { "installed" } else { "not installed" };
    text.replace("{timeout}", &timeout).replace("{installed}", installed)
}

/// A JSON-RPC error.
struct Failure {
    code: i64,
    message: String,
    data: Value, // null for none
}

fn failure<T>(code: i64, message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure { code, message: message.into(), data: Value::Null })
}

impl Server {
    fn take_message(&mut self, message: rpc::Message) {
        let has_arrays = self.agreed == Some("2025-03-26"); // no other version has
        match message {
            rpc::Message::Batch { members, read } if has_arrays && (1..=CALLS_MAX).contains(&members.len()) => {
                for member in members {
                    self.take_message(read(member));
                }
            }
            rpc::Message::Batch { .. } => self.take_message(rpc::no_object()),
            rpc::Message::Request { id, method, params } => {
                if let Err(Failure { code, message, data }) = self.request(&id, &method, &params) {
                    let message = truncate_middle(&message, NOTE_CHARS_MAX);
                    self.front.send(&rpc::error(Some(&id), code, &message, data));
                }
            }
            rpc::Message::Notification { method, params } => {
                self.begin_session();
                if method == "notifications/cancelled" {
                    self.cancel_request(&params["requestId"]);
                }
            }
            rpc::Message::Ignored => {}
            rpc::Message::BadNotification { why } => log(&format!("ignored: {why}")),
            rpc::Message::Invalid { id, code, why } => {
                log(&format!("refused: {why}"));
                if self.clerk.is_none() {
                    explain_server(); // nobody has spoken MCP yet
                }
                // Schemas before 2025-11-25 require an id in errors: there we keep silent where it is not known.
                if id.is_some() || matches!(self.agreed, None | Some("2025-11-25")) {
                    self.front.send(&rpc::error(id.as_ref(), code, &why, Value::Null));
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
            return failure(rpc::INVALID_PARAMS, "params must be an object");
        }
        let modern = is_modern(method, &params["_meta"])?;
        let takes_work = method.starts_with("tools/");
        if takes_work && self.clerk.is_none() {
            return failure(rpc::INTERNAL_ERROR, "no thread could be started: the next request tries again");
        }
        if takes_work && self.front.calls.len() >= CALLS_MAX {
            return failure(
                rpc::INTERNAL_ERROR,
                "too many requests wait for their answers: try again when some have got theirs",
            );
        }
        let result = match (method, modern) {
            ("initialize", false) => {
                let asked = params["protocolVersion"].as_str();
                let version = LEGACY.into_iter().find(|version| asked == Some(version)).unwrap_or(LEGACY[0]);
                self.agreed = Some(version);
                self.front.client = params["clientInfo"]["name"].as_str().unwrap_or_default().to_owned();
                json!({"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server_info(),
                       "instructions": instructions()})
            }
            ("ping", false) => json!({}),
            ("server/discover", true) => {
                json!({"supportedVersions": VERSIONS, "capabilities": {"tools": {}}, "instructions": instructions()})
            }
            ("subscriptions/listen", true) => return self.subscribe(id, params),
            ("tools/list", _) => return self.list_tools(id, params, modern),
            ("tools/call", _) => return self.call_tool(id, params, modern),
            _ => {
                return failure(
                    rpc::METHOD_NOT_FOUND,
                    format!("there is no method {method:?}: this server has tools, but no resources or prompts"),
                )
            }
        };
        self.front.send(&rpc::response(id, in_era(result, modern)));
        Ok(())
    }

    /// Acknowledges a subscription and keeps it open. Nothing is granted, for nothing here changes.
    fn subscribe(&mut self, id: &Value, params: &Value) -> Result<(), Failure> {
        if !params["notifications"].is_object() {
            return failure(rpc::INVALID_PARAMS, "subscriptions/listen: notifications must be an object");
        }
        if self.front.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            let why = format!("{SUBSCRIPTIONS_MAX} subscriptions are open already: cancel one");
            return failure(rpc::INTERNAL_ERROR, why);
        }
        self.front.subscriptions.push(id.clone());
        let params = json!({"notifications": {}, "_meta": {"io.modelcontextprotocol/subscriptionId": id}});
        self.front.send(&rpc::notification("notifications/subscriptions/acknowledged", params));
        Ok(())
    }

    /// The list depends on the host. Until the clerk knows that, an empty job waits for it: the clerk's first work is
    /// to find the host.
    fn list_tools(&mut self, id: &Value, params: &Value, modern: bool) -> Result<(), Failure> {
        if !params["cursor"].is_null() {
            return failure(rpc::INVALID_PARAMS, "tools/list gives all tools at once: call it without a cursor");
        }
        let key = self.front.open_call(ReplyTo::Mcp { id: id.clone(), modern }, None);
        if self.tool_list.is_some() {
            self.answer_tool_list(key);
        } else {
            self.ask_clerk(None, |_| (), move |server, ()| server.answer_tool_list(key));
        }
        Ok(())
    }

    fn answer_tool_list(&mut self, key: u64) {
        self.front.answer(key, json!({"tools": self.tool_list}));
    }

    fn call_tool(&mut self, id: &Value, params: &Value, modern: bool) -> Result<(), Failure> {
        let name = &params["name"];
        let Some(tool) = find_tool(name.as_str().unwrap_or_default()) else {
            return failure(
                rpc::INVALID_PARAMS,
                format!("tools/call: there is no tool {name}; tools/list names those there are"),
            );
        };
        let arguments = match &params["arguments"] {
            Value::Null => &Map::new(),
            Value::Object(arguments) => arguments,
            _ => return failure(rpc::INVALID_PARAMS, "tools/call: \"arguments\" must be a JSON object"),
        };
        let token = Some(&params["_meta"]["progressToken"]);
        let token = token.filter(|token| token.is_string() || token.is_i64() || token.is_u64()).cloned();
        let client =
            params["_meta"]["io.modelcontextprotocol/clientInfo"]["name"].as_str().unwrap_or(&self.front.client);
        let wait = usual_wait(client);
        let key = self.front.open_call(ReplyTo::Mcp { id: id.clone(), modern }, token);
        self.front.limit_wait(key, wait);
        self.run_tool(key, tool, arguments);
        Ok(())
    }
}

/// Which era serves a request, by its `_meta` (2026-07-28 basic/index, basic/versioning).
fn is_modern(method: &str, meta: &Value) -> Result<bool, Failure> {
    const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
    const CAPABILITIES_KEY: &str = "io.modelcontextprotocol/clientCapabilities";
    let lacks = |key| failure(rpc::INVALID_PARAMS, format!("{method}: _meta lacks {key:?}, or it is of a wrong type"));
    let must_name_version =
        matches!(method, "server/discover" | "subscriptions/listen") || !meta[CAPABILITIES_KEY].is_null();
    match meta[VERSION_KEY].as_str() {
        None if must_name_version || !meta[VERSION_KEY].is_null() => lacks(VERSION_KEY),
        None => Ok(false),
        Some(version) if LEGACY.contains(&version) => Ok(false),
        Some(version) if version != MODERN => Err(Failure {
            code: rpc::UNSUPPORTED_VERSION,
            message: format!("protocol version {version:?} is not supported; these are: {}", VERSIONS.join(", ")),
            data: json!({"supported": VERSIONS, "requested": truncate_middle(version, VALUE_SHOWN_CHARS)}),
        }),
        Some(_) if meta[CAPABILITIES_KEY].is_object() => Ok(true),
        Some(_) => lacks(CAPABILITIES_KEY),
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
            result["ttlMs"] = json!(CACHE_MS);
            result["cacheScope"] = json!("private");
        }
    }
    result
}

// ── 5. The tools ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// One entry serves tools/list, the check of arguments and the call.
struct Tool {
    shown: Value,                       // as tools/list shows it
    run: fn(&mut Server, u64, &Object), // for an open call, with arguments that have been checked
}

/// What a call asks of an interpreter.
enum Action {
    Use(Use),
    Add { given: Config, save: bool },
    Stop { remove: bool },
}

/// What a call asks of an interpreter that there is.
enum Use {
    Run(Request, Option<Duration>),
    /// Wait for what runs.
    Follow {
        interrupts: bool,
    },
    Restart,
}

/// What a worker is asked (worker.py has the protocol).
enum Request {
    Run {
        code: String,
        argv: Vec<String>, // sys.argv for its time; as a script its file's path comes first. Empty: as it was
        stdin: Option<String>,
    },
    Startup {
        code: String,
    },
    ListVars {
        details: bool,
    },
    Reset,
    /// Nothing: the call is answered when its turn comes in the new process.
    Restarted,
}

type Object = Map<String, Value>;

fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

fn owned(object: &Object, name: &str) -> String {
    text(object, name).unwrap_or_default().to_owned()
}

fn flag(object: &Object, name: &str) -> bool {
    object.get(name) == Some(&Value::Bool(true))
}

fn seconds(object: &Object, name: &str) -> Option<Duration> {
    object.get(name).and_then(Value::as_f64).map(Duration::from_secs_f64)
}

fn interpreter_in(given: &Object) -> String {
    text(given, "interpreter").unwrap_or(BUILTIN).to_owned()
}

#[rustfmt::skip] // a table
static TOOLS: LazyLock<[Tool; 9]> = LazyLock::new(|| [
    tool("execute", "Execute Python Code", "destructive open-world", "",
        |server, key, given| server.run_cell(key, given, Vec::new()), &["code"], r#"{
            "code": {"type": "string", "description": "Python source, any number of lines."},
            "interpreter": {"type": "string", "description":
                "Name of the interpreter, \"builtin\" if left out; list_interpreters shows them."},
            "timeout": {"type": "number", "minimum": 0, "maximum": 10000000.0, "description":
                "Seconds the cell may run before it is interrupted; 0 = no limit. Default: {timeout}."},
            "wait": {"type": "number", "minimum": 0, "maximum": 10000000.0, "description":
                "Seconds to wait for the cell, which then goes on by itself; 0 = only start it. Default: by host."},
            "stdin": {"type": "string", "description":
                "What the cell and its child processes read from stdin, as by input()."}
        }"#, "\
Run Python in a persistent interpreter, as in a notebook: for data, plots, calculations and scripts. Variables, \
imports and functions stay until `reset`; the value of the last expression is part of the answer, so no print is \
needed. stdout, stderr and tracebacks come back as text, open matplotlib figures as images, charts of plotly and the \
like as HTML files. Top-level `await` works, and servers and tasks go on between cells. \
stdin is empty unless given: input() fails at once. An exception, time-out or exit() ends the cell, not the \
interpreter; if its process dies, the answer says so and the variables are gone. A call may end before a long cell \
does: the answer shows the output so far, the cell goes on by itself, and the tool `wait` shows the rest. Output over \
25,000 characters is shown with its head and tail and ends with the path of a file that holds all of it."
    ).with("_meta", json!({"anthropic/maxResultSizeChars": ANSWER_CHARS_MAX, "anthropic/alwaysLoad": true})),
    tool("wait", "Wait For Python", "read-only", "output of a long Python cell that still runs",
        Server::wait, &[], r#"{
            "interpreter": {"type": "string", "description":
                "Name of the interpreter, \"builtin\" if left out; list_interpreters shows them."},
            "seconds": {"type": "number", "minimum": 0, "maximum": 10000000.0, "description":
                "How long to wait at most; 0 = only look. Default as for `wait` of execute."}
        }"#, "\
Wait for a cell that goes on by itself after its call of execute ended. Returns what is new as soon as the cell has \
ended, and at the latest after `seconds`; call it again for the rest."),
    tool("interrupt", "Interrupt Python", "destructive", "interrupt or stop a running Python cell",
        Server::interrupt, &[], INTERPRETER_ARGUMENT, "\
Interrupt what an interpreter runs, as Ctrl-C does, and return what is new once it has ended. Variables are kept. Code \
that does not heed interrupts, such as a long call into C, is reported after 10 seconds and goes on."),
    tool("reset", "Reset Python Scope", "destructive idempotent", "clear Python variables, restart Python",
        Server::reset, &[], r#"{
            "interpreter": {"type": "string", "description":
                "Name of the interpreter, \"builtin\" if left out; list_interpreters shows them."},
            "restart": {"type": "boolean", "description":
                "Start a new process instead, even while a cell runs. Default false."}
        }"#, "\
Delete all variables, functions and imports of an interpreter. Its process goes on, unless restart is true."),
    tool("list_vars", "List Python Variables", "read-only", "which Python variables are defined",
        |server, key, given| server.run_in(key, given, Request::ListVars { details: flag(given, "details") }), &[], r#"{
            "interpreter": {"type": "string", "description":
                "Name of the interpreter, \"builtin\" if left out; list_interpreters shows them."},
            "details": {"type": "boolean", "description":
                "A line a name: its type, with shape, length or value, as `df: DataFrame (1000, 3)`. Default false."}
        }"#, "\
The names defined in an interpreter, sorted; names that start with two underscores are left out."),
    tool("get_session_info", "Get Session Info", "read-only", "Python session: history of cells, output files, socket",
        Server::tell_session, &[], "{}", "\
This server's session: host process, project, output directory, file with the history of cells, transcript, uptime."
    ).with("outputSchema", structure(&[
        ("string null", "session_id project_dir socket_path transcript_path output_dir host"),
        ("string null", "history_path"), ("integer null", "claude_pid host_pid"), ("integer", "server_pid"),
        ("boolean", "verified"),
        ("string", "started_at uptime version"),
    ])),
    tool("add_interpreter", "Add External Interpreter", "", "use another Python or virtual environment",
        Server::add, &["name", "python_path"], r#"{
            "name": {"type": "string", "description": "Name to call it by: 1 to 64 of A-Z a-z 0-9 . _ -"},
            "python_path": {"type": "string", "description":
                "The Python executable; may be relative to the project or start with ~."},
            "cwd": {"type": "string", "description":
                "Working directory; may be relative to the project or start with ~."},
            "env": {"type": "object", "additionalProperties": {"type": "string"}, "description":
                "Environment variables to add, as an object of strings."},
            "startup_script": {"type": "string", "description":
                "Python code to run at each start; if it raises, the start fails."},
            "description": {"type": "string", "description": "What it is for."},
            "save": {"type": "boolean", "description": "Keep it for later sessions. Default false."}
        }"#, "\
Start another Python, such as a project's virtual environment, beside the builtin one; then pass its name as \
`interpreter`. With save it is there in later sessions too. A running one may be added again with the same path. A \
saved one starts with its saved settings; what is given replaces them for this run."
    ).with("outputSchema", shown_interpreter()),
    tool("stop_interpreter", "Stop Interpreter", "destructive", "end a Python interpreter that was added",
        Server::stop, &["name"], r#"{
            "name": {"type": "string", "description": "Name of the interpreter."},
            "remove": {"type": "boolean", "description": "Also delete its saved configuration. Default false."}
        }"#, "\
End an interpreter's process: its variables are gone. A saved one stays in the list unless remove is true. The builtin \
one can't be stopped; use reset."),
    tool("list_interpreters", "List Interpreters", "read-only", "which Pythons and virtual environments there are",
        Server::list_interpreters, &[], "{}", "\
All interpreters: builtin, saved, added in this session, and those found in the project.").with("outputSchema", json!({
        "type": "object", "required": ["result"],
        "properties": {"result": {"type": "array", "items": shown_interpreter()}},
    })),
]);

const INTERPRETER_ARGUMENT: &str = r#"{"interpreter": {"type": "string", "description":
    "Name of the interpreter, \"builtin\" if left out; list_interpreters shows them."}}"#;

/// The schema of an interpreter as list_interpreters shows it.
fn shown_interpreter() -> Value {
    structure(&[
        ("string", "name source state"),
        ("boolean", "has_startup_script"),
        ("integer null", "pid"),
        ("object null", "busy"),
        ("string null", "python_path cwd description started_at uptime python_version"),
    ])
}

/// An entry of the table: `hints` are the annotations that hold, `search` is a phrase by which Claude Code finds the
/// tool, `required` the arguments that must be given, `properties` the JSON Schemas of all arguments.
#[allow(clippy::too_many_arguments)] // they are the columns of a table
fn tool(
    name: &str,
    title: &str,
    hints: &str,
    search: &str,
    run: fn(&mut Server, u64, &Object),
    required: &[&str],
    properties: &str,
    description: &str,
) -> Tool {
    let hint = |word| hints.contains(word);
    let properties = in_force(properties);
    let properties: Value = serde_json::from_str(&properties).unwrap_or_default(); // the tests read each of them
    let input =
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    let annotations = json!({"title": title, "readOnlyHint": hint("read-only"), "openWorldHint": hint("open-world"),
        "destructiveHint": hint("destructive"), "idempotentHint": hint("idempotent") || hint("read-only")});
    let shown = json!({"name": name, "title": title, "description": description, "inputSchema": input,
        "annotations": annotations, "_meta": {"anthropic/searchHint": search}});
    Tool { shown, run }
}

/// The schema of an object: its members' names under their types; all are required.
fn structure(members: &[(&str, &str)]) -> Value {
    let mut properties = Map::new();
    for (types, names) in members {
        let types: Vec<_> = types.split(' ').collect();
        for name in names.split(' ') {
            properties.insert(name.into(), json!({ "type": types }));
        }
    }
    json!({"type": "object", "required": properties.keys().collect::<Vec<_>>(), "properties": properties})
}

fn find_tool(name: &str) -> Option<&'static Tool> {
    TOOLS.iter().find(|tool| tool.shown["name"] == name)
}

/// What tools/list shows. Where Claude is the host, the description of execute also tells of the client.
fn tool_list(host_is_claude: bool) -> Value {
    let mut list: Vec<_> = TOOLS.iter().map(|tool| tool.shown.clone()).collect();
    if let (true, Value::String(text)) = (host_is_claude, &mut list[0]["description"]) {
        let client = match find_on_path("mcp-py-client") {
            Some(_) => "mcp-py-client".to_owned(),
            None => format!("{} client", quoted(&own_path().unwrap_or_default())),
        };
        *text += &format!(
            " The shell reaches the same interpreter by `{client} <<'PY' … PY` or `{client} -c CODE`: better where the \
             output goes through a pipe, in a background shell, and where a person is to see output live. A person \
             types `! {client} -c CODE`."
        );
    }
    list.into()
}

impl Server {
    fn run_tool(&mut self, key: u64, tool: &Tool, given: &Object) {
        match tool.check(given) {
            Ok(()) => (tool.run)(self, key, given),
            Err(why) => self.front.fail(key, &why),
        }
    }

    fn run_cell(&mut self, key: u64, given: &Object, argv: Vec<String>) {
        if let Some(wait) = seconds(given, "wait") {
            self.front.limit_wait(key, Some(wait));
        }
        let stdin = text(given, "stdin").map(str::to_owned);
        self.run_in(key, given, Request::Run { code: owned(given, "code"), argv, stdin });
    }

    fn run_in(&mut self, key: u64, given: &Object, request: Request) {
        let timeout = time_limit(seconds(given, "timeout"));
        self.line_up(key, interpreter_in(given), Action::Use(Use::Run(request, timeout)));
    }

    fn wait(&mut self, key: u64, given: &Object) {
        if let Some(limit) = seconds(given, "seconds") {
            self.front.limit_wait(key, Some(limit));
        }
        self.line_up(key, interpreter_in(given), Action::Use(Use::Follow { interrupts: false }));
    }

    fn interrupt(&mut self, key: u64, given: &Object) {
        self.front.limit_wait(key, None); // it is answered INTERRUPT_PATIENCE later at the latest
        self.line_up(key, interpreter_in(given), Action::Use(Use::Follow { interrupts: true }));
    }

    fn reset(&mut self, key: u64, given: &Object) {
        if flag(given, "restart") {
            self.line_up(key, interpreter_in(given), Action::Use(Use::Restart));
        } else {
            self.run_in(key, given, Request::Reset);
        }
    }

    fn add(&mut self, key: u64, given: &Object) {
        let action = Action::Add { given: Config::from_json(given), save: flag(given, "save") };
        self.line_up(key, owned(given, "name"), action);
    }

    fn stop(&mut self, key: u64, given: &Object) {
        let action = Action::Stop { remove: flag(given, "remove") };
        self.line_up(key, owned(given, "name"), action);
    }

    fn tell_session(&mut self, key: u64, _: &Object) {
        self.ask_clerk(None, session_info, move |server, mut facts| {
            let files = &mut server.front.files;
            let history = files.history.file.as_ref(); // None before the first cell
            facts["history_path"] = json!(history.map(|(path, _)| shown(path)));
            facts["output_dir"] = json!(files.open().ok().map(shown));
            facts["socket_path"] = json!(server.bridge.as_ref().map(|bridge| shown(bridge.reached())));
            server.front.answer(key, structured_result(facts));
        });
    }

    fn list_interpreters(&mut self, key: u64, _: &Object) {
        self.ask_clerk(None, known_interpreters, move |server, known| server.answer_list(key, known));
    }

    /// Lists each name once, the builtin first. A running one is shown as it runs, any other as it is saved or found,
    /// or else as it last was.
    fn answer_list(&mut self, key: u64, known: KnownInterpreters) {
        if let Some(why) = known.unreadable {
            log(&why); // the rest of the list is still true
        }
        let mut listed = BTreeMap::new();
        for (name, interpreter) in &self.interpreters {
            listed.insert(name.clone(), interpreter.describe(None));
        }
        for (name, Known { source, config, version }) in known.by_name {
            if !self.interpreters.get(&name).is_some_and(Interpreter::runs) {
                let interpreter = Interpreter { name: name.clone(), source, config, ..Interpreter::default() };
                listed.insert(name, interpreter.describe(version));
            }
        }
        let mut list: Vec<_> = listed.remove(BUILTIN).into_iter().collect();
        list.extend(listed.into_values());
        self.front.answer(key, structured_result(json!({ "result": list })));
    }
}

impl Tool {
    fn with(mut self, member: &str, value: Value) -> Tool {
        self.shown[member] = value;
        self
    }

    /// Whether the arguments are what the schema says; else a text that names the argument, what was expected and what
    /// came. A null stands for an optional argument that is left out.
    fn check(&self, given: &Object) -> Result<(), String> {
        let tool = self.shown["name"].as_str().unwrap_or_default();
        let schema = &self.shown["inputSchema"];
        let Some(properties) = schema["properties"].as_object() else { return Ok(()) };
        if let Some(unknown) = given.keys().find(|argument| !properties.contains_key(*argument)) {
            let known = properties.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "no arguments" } else { &known };
            return Err(format!("{tool}: unknown argument {unknown:?}; it takes {known}"));
        }
        for (argument, property) in properties {
            let value = given.get(argument).unwrap_or(&Value::Null);
            let is_required = schema["required"].as_array().is_some_and(|names| names.contains(&json!(argument)));
            if value.is_null() && !is_required {
                continue;
            }
            let (fits, expected) = match property["type"].as_str() {
                Some("string") => (value.is_string(), "a string"),
                Some("boolean") => (value.is_boolean(), "true or false"),
                Some("number") => {
                    (value.as_f64().is_some_and(|n| SECONDS.contains(&n)), "a number of seconds, 0 to 10000000")
                }
                _ => (is_environment(value), r#"an object of strings, such as {"NAME": "value"}"#),
            };
            ensure(!value.is_null(), || format!("{tool} needs {argument:?}, {expected}"))?;
            let came = match value {
                _ if property["type"] == "object" => "one that is not shown, for it may hold secrets".into(),
                value => truncate_middle(&value.to_string(), VALUE_SHOWN_CHARS),
            };
            ensure(fits, || format!("{tool}: argument {argument:?} must be {expected}, got {came}"))?;
        }
        Ok(())
    }
}

/// Whether this is an object of environment variables, as exec(3) takes them.
fn is_environment(value: &Value) -> bool {
    let Some(variables) = value.as_object() else { return false };
    variables.iter().all(|(name, value)| {
        let is_name = !name.is_empty() && !name.contains(['=', '\0']);
        is_name && value.as_str().is_some_and(|value| !value.contains('\0'))
    })
}

fn ensure(holds: bool, else_why: impl FnOnce() -> String) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(else_why())
    }
}

/// What the system said, after the path or program that it is about: for `map_err`.
fn with_path(path: impl AsRef<Path>) -> impl Fn(io::Error) -> String {
    move |error| format!("{}: {error}", path.as_ref().display())
}

fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}

/// A time limit from an argument, else from the setting; None for 0: no limit.
fn time_limit(argument: Option<Duration>) -> Option<Duration> {
    static SETTING: OnceLock<Option<Duration>> = OnceLock::new();
    let limit = argument.or_else(|| *SETTING.get_or_init(|| TIMEOUT.seconds()));
    limit.filter(|limit| !limit.is_zero())
}

/// How long a call waits for its cell where it does not say so itself: what MCP_PY_WAIT says, else what the host is
/// known to allow, by the beginning of its name. None: as long as it takes.
fn usual_wait(client: &str) -> Option<Duration> {
    const KNOWN: [(&str, Option<f64>); 4] = [
        ("claude-code", None),             // it moves long calls to the background
        ("codex-mcp-client", Some(240.0)), // of 300
        (GEMINI_CLI, Some(540.0)),         // of 600
        ("Visual Studio Code", Some(540.0)),
    ];
    if WAIT.value() != WAIT.default {
        return WAIT.seconds(); // None for `none`
    }
    let known = KNOWN.iter().find(|(name, _)| client.starts_with(name)).map(|(_, limit)| *limit);
    known.unwrap_or(Some(WAIT_DEFAULT)).map(Duration::from_secs_f64)
}

/// A limit on waiting for others. Tests shorten it by MCP_PY_HURRY, a divisor.
fn scaled(limit: Duration) -> Duration {
    let times: Option<f64> = env::var("MCP_PY_HURRY").ok().and_then(|times| times.parse().ok());
    limit.div_f64(times.unwrap_or(1.0).max(1.0))
}

/// A structured result, and the same as text for clients that show that.
fn structured_result(structure: Value) -> Value {
    let text = structure.to_string();
    json!({"content": [{"type": "text", "text": text}], "isError": false, "structuredContent": structure})
}

/// What get_session_info says, but for what the loop knows: the socket and the output directory.
fn session_info(surroundings: &Surroundings) -> Value {
    let Surroundings { host, project, verified } = surroundings;
    let session_id = host.session_id();
    let (since, at) = &*STARTED;
    json!({
        "session_id": session_id, "transcript_path": session_id.and_then(|id| transcript_path(project, &id)),
        "project_dir": project.to_string_lossy(), "verified": verified,
        "host": host.name, "host_pid": host.pid, "claude_pid": host.pid.filter(|_| host.is_claude),
        "server_pid": std::process::id(), "version": VERSION, "started_at": iso_time(*at), "uptime": uptime(*since),
    })
}

// ── 6. Interpreters ──────────────────────────────────────────────────────────────────────────────────────────────────
//
// Calls that concern one interpreter take effect in their order of arrival: `line_up` sends them through the clerk
// where one of them has to look at files, and `act` holds them back (`Server::held`) while the interpreter is being
// stopped or started otherwise.

/// A Python with a name: its configuration, the cells that wait for it, and its process while there is one.
#[derive(Default)]
struct Interpreter {
    name: String,
    source: Source,
    config: Config,
    waiting: VecDeque<Cell>,
    additions: Vec<Addition>, // calls that are answered when it is up
    life: Life,
    cells: u64,                                    // how many were run: the number of the last one
    last: Option<(String, Instant, &'static str)>, // what ended last, when, and what became of its answer
    between: Output, // what came between two cells; outlives a process, like the notices (I4, I5)
    notices: [Vec<String>; 2], // what the next answer by each door has to say of earlier cells and processes
    unattended: [Option<EndedCell>; 2], // by door, a cell that ended when no call waited for it: not told yet (I4)
    has_noted_start: bool, // the note that came with `ready` is told once, not at each start
    end_by: Option<Instant>, // its process is to end: an idle worker by itself until then, a busy one at once
    stopping: Option<Stopping>, // it leaves the table when its process has ended
}

#[derive(Default)]
enum Life {
    #[default]
    Stopped,
    /// A keeper thread starts a process. The number tells it from an earlier one that took too long.
    Spawning(u64),
    Running(Box<Worker>),
}

#[derive(Clone, Copy, Default, PartialEq, Debug)]
enum Source {
    Builtin,
    Saved,
    #[default]
    Transient,
    Discovered,
}

/// Something for the worker to do, in turn.
struct Cell {
    key: u64, // the call's, by which it is cancelled
    request: Request,
    timeout: Option<Duration>, // counted from when it starts; None for no limit
    queued: Instant,
    is_noted: bool, // its client was told what it waits for
}

impl Cell {
    fn new(key: u64, request: Request, timeout: Option<Duration>) -> Cell {
        Cell { key, request, timeout, queued: Instant::now(), is_noted: false }
    }
}

/// A call of add_interpreter.
struct Addition {
    key: u64,
    name: String,
    config: Config,
    save: bool,
    ran: bool,     // it was running already
    changed: bool, // what was given differs from the configuration that it runs with
}

/// An interpreter is being stopped: its process ends, then its saved configuration goes if that is wanted, then it
/// leaves the table.
struct Stopping {
    call: Option<StopCall>, // None where `cancel` began this, for nobody waits for its start any more
    removes_saved: bool,    // its saved configuration is to be removed
}

/// A call of stop_interpreter, with the words of its answer.
struct StopCall {
    key: u64,
    process: &'static str,       // what happened to the process
    configuration: &'static str, // what becomes of the configuration
}

impl Server {
    /// The interpreter of this name, new where there was none, and the front end, which its methods are lent.
    fn interpreter(&mut self, name: &str) -> (&mut Interpreter, &mut Frontend) {
        let new = || Interpreter { name: name.to_owned(), ..Interpreter::default() };
        (self.interpreters.entry(name.to_owned()).or_insert_with(new), &mut self.front)
    }

    /// Whether a job about this interpreter is with the clerk.
    fn is_with_clerk(&self, name: &str) -> bool {
        self.clerk.as_ref().is_some_and(|clerk| clerk.names.contains_key(name))
    }

    /// Brings a call to its interpreter, behind all earlier calls that concern the same one.
    fn line_up(&mut self, key: u64, name: String, action: Action) {
        let has_earlier = self.is_with_clerk(&name) || self.is_to_release(&name);
        let entry = self.interpreters.get_mut(&name);
        let entry = entry.filter(|entry| entry.stopping.is_none() && !has_earlier); // None: through the clerk
        let is_up = entry.as_ref().is_some_and(|entry| entry.is_up());
        let action = match (entry, action) {
            (Some(entry), Action::Use(what)) => return entry.be_used(key, what, &mut self.front),
            (_, action) => action,
        };
        // Adding one that is up changes nothing for its cells, so later cells need not line up behind that.
        let adds_what_is_up = is_up && matches!(action, Action::Add { .. });
        let concerned = if adds_what_is_up { None } else { Some(name.clone()) };
        let look = move |surroundings: &Surroundings| look_up(action, surroundings);
        self.ask_clerk(concerned, look, move |server, (action, known)| server.act(key, name, action, known));
    }

    /// Does what a call asks of an interpreter, now that it is known what is saved and found in the project.
    fn act(&mut self, key: u64, name: String, action: Action, known: KnownInterpreters) {
        let Some(call) = self.front.calls.get_mut(&key) else { return }; // it was cancelled
        call.interpreter = Some(name.clone()); // by which `cancel` finds it
        let is_held = self.interpreters.get(&name).is_some_and(|interpreter| interpreter.holds(&action));
        if is_held || self.is_to_release(&name) {
            return self.held.entry(name).or_default().push((key, action));
        }
        let done = match action {
            Action::Use(what) => return self.use_known(key, &name, what, known),
            Action::Add { given, save } => self.add_interpreter(key, name, given, save, known),
            Action::Stop { remove } => self.stop_interpreter(key, name, remove, known),
        };
        if let Err(why) = done {
            self.front.fail(key, &why);
        }
    }

    /// Does what a call asks of an interpreter that has run before, is saved, or is found in the project.
    fn use_known(&mut self, key: u64, name: &str, what: Use, mut known: KnownInterpreters) {
        if !self.interpreters.contains_key(name) {
            let Some(found) = known.by_name.remove(name) else {
                let why = self.unknown_interpreter(name, known);
                return self.front.fail_unknown(key, &why);
            };
            let (interpreter, _) = self.interpreter(name);
            interpreter.source = found.source;
            interpreter.config = found.config;
        }
        let (interpreter, front) = self.interpreter(name);
        interpreter.be_used(key, what, front);
        self.forget_unused(name);
    }

    fn unknown_interpreter(&self, name: &str, known: KnownInterpreters) -> String {
        if let Some(why) = known.unreadable {
            return why; // perhaps it is there, in a file that can't be read
        }
        let mut names: BTreeSet<_> = known.by_name.into_keys().collect();
        names.extend(self.interpreters.keys().cloned());
        let names = Vec::from_iter(names).join(", ");
        format!("there is no interpreter {name:?}; there are: {names}. add_interpreter adds one (in a shell, --add)")
    }

    /// Starts an interpreter unless it runs. The arguments are laid over the configuration of what runs under this
    /// name, is saved, or ended by itself in this session. The path decides: with the same one the configuration is
    /// kept; another one is refused while that runs or is saved, else it begins anew.
    fn add_interpreter(
        &mut self,
        key: u64,
        name: String,
        given: Config,
        save: bool,
        mut known: KnownInterpreters,
    ) -> Result<(), String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let is_name = (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(fits) && name != BUILTIN;
        let rule = "an interpreter's name has 1 to 64 characters of A-Z a-z 0-9 . _ -";
        ensure(is_name, || format!("{rule}, and is not {BUILTIN:?}: got {name:?}"))?;
        if let (true, Some(why)) = (save, known.unreadable.take()) {
            // What can't be read can't be written: that is said before the start.
            return Err(format!("interpreter {name:?} was not added: {why}"));
        }
        let live = self.interpreters.get(&name);
        let ran = live.is_some_and(Interpreter::runs);
        let as_it_was = live.map(|interpreter| (interpreter.source, interpreter.config.clone()));
        let as_known = known.by_name.remove(&name).map(|known| (known.source, known.config));
        let base = if ran { as_it_was.or(as_known) } else { as_known.or(as_it_was) };
        let (source, config) = match base {
            Some((source, config)) if config.python_path == given.python_path => (source, config),
            Some((source, config)) if ran || (source == Source::Saved && !save) => {
                let path = config.python_path.unwrap_or_default();
                let is = if ran { "runs" } else { "is saved" };
                let way = if ran { "stop it with stop_interpreter" } else { "replace it with save=true" };
                return Err(format!(
                    "interpreter {name:?} {is} with {}: {way}, give that path, or choose another name",
                    path.display()
                ));
            }
            _ => (Source::Transient, Config::default()),
        };
        let before = config.clone();
        let config = config.overlaid_with(given);
        let changed = config != before;
        let addition = Addition { key, name: name.clone(), config: config.clone(), save, ran, changed };
        let (interpreter, front) = self.interpreter(&name);
        if !ran {
            interpreter.source = source;
            interpreter.config = config;
        }
        interpreter.additions.push(addition);
        interpreter.start_next(front);
        Ok(())
    }

    /// The interpreter that was added did not start. It leaves the table, unless others wait for a new start already.
    fn addition_failed(&mut self, addition: Addition, why: &str) {
        let name = &addition.name;
        if self.interpreters.get(name).is_some_and(Interpreter::is_unused) {
            self.interpreters.remove(name);
        }
        self.front.fail(addition.key, why);
    }

    /// The interpreter that was added is up: saves it, if that is wanted, and answers.
    fn save_addition(&mut self, addition: Addition) {
        if !addition.save {
            return self.answer_addition(addition, Ok(()));
        }
        let save = move |_: &Surroundings| {
            let saved = update_saved(|list| addition.config.save_as(&addition.name, list));
            (addition, saved)
        };
        self.ask_clerk(None, save, |server, (addition, saved)| server.answer_addition(addition, saved));
    }

    fn answer_addition(&mut self, addition: Addition, saved: Result<(), String>) {
        let Addition { key, name, config, save, ran, changed } = addition;
        let Some(interpreter) = self.interpreters.get_mut(&name) else {
            return self.front.fail(key, &format!("interpreter {name:?} started, and was stopped by another call"));
        };
        if let Err(why) = saved {
            return self.front.fail(key, &format!("interpreter {name:?} runs, but was not saved: {why}"));
        }
        if save {
            interpreter.source = Source::Saved;
            interpreter.config = config;
        }
        let became = if ran { "was running already" } else { "started" };
        let saved = if save { ", and is saved" } else { "" };
        let hint = match (ran && changed, save) {
            (false, _) => "",
            (true, true) => "; what is given holds from its next start",
            (true, false) => {
                "; its settings stay as they were: stop it and add it again, or save new ones for its next start"
            }
        };
        let mut shown = interpreter.describe(None);
        shown["message"] = json!(format!("Interpreter {name:?} {became}{saved}{hint}"));
        self.front.answer(key, structured_result(shown));
    }

    /// Ends an interpreter's process and takes it out of the table; `interpreter_ended` goes on when that has happened.
    fn stop_interpreter(
        &mut self,
        key: u64,
        name: String,
        remove: bool,
        mut known: KnownInterpreters,
    ) -> Result<(), String> {
        ensure(name != BUILTIN, || {
            "interpreter \"builtin\" can't be stopped: reset clears it, and with restart=true \
             (in a shell, --reset --restart) gives it a new process"
                .into()
        })?;
        let found = known.by_name.remove(&name);
        let live = self.interpreters.get(&name);
        let ran = live.is_some_and(Interpreter::runs);
        let source = match (&found, live) {
            (Some(found), _) => found.source,
            (None, Some(live)) => live.source,
            (None, None) => return Err(self.unknown_interpreter(&name, known)),
        };
        ensure(!remove || source != Source::Discovered, || {
            format!(
                "interpreter {name:?} is not saved but found, in the project or as active: there is nothing to remove"
            )
        })?;
        let what = if ran { "stopped" } else { "was not running" };
        let became = match source {
            Source::Saved if remove => "its saved configuration is removed",
            Source::Saved => "its saved configuration is kept",
            Source::Discovered => "it is found in the project and stays in the list",
            Source::Transient | Source::Builtin => "it was not saved, so it is gone from the list",
        };
        let (interpreter, front) = self.interpreter(&name);
        interpreter.begin_stop(
            Some(StopCall { key, process: what, configuration: became }),
            remove && source == Source::Saved,
        );
        let why = format!("not run: interpreter {name:?} was stopped before this had its turn");
        interpreter.fail_waiting(&why, front);
        for (key, _) in self.held.remove(&name).into_iter().flatten() {
            self.front.fail(key, &why);
        }
        Ok(())
    }

    /// An interpreter that is to leave has no process any more. If its saved configuration is to go too, that is first.
    fn interpreter_ended(&mut self, name: String) {
        let stopping = self.interpreters.get(&name).and_then(|interpreter| interpreter.stopping.as_ref());
        if !stopping.is_some_and(|stopping| stopping.removes_saved) {
            return self.finish_stopping(name, Ok(()));
        }
        let saved_as = name.clone();
        let remove = move |_: &Surroundings| update_saved(|list| _ = list.remove(&saved_as));
        self.ask_clerk(Some(name.clone()), remove, move |server, removed| server.finish_stopping(name, removed));
    }

    /// Takes an interpreter out of the table, and answers the call that stopped it. What it printed last is told (I4).
    fn finish_stopping(&mut self, name: String, removed: Result<(), String>) {
        let Some(mut interpreter) = self.interpreters.remove(&name) else { return };
        let mut notes = interpreter.take_untold(0, &mut self.front.files);
        for note in interpreter.take_untold(1, &mut self.front.files) {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        let Some(stopping) = interpreter.stopping else { return };
        if let Some(StopCall { key, process, configuration }) = stopping.call {
            let exit = if removed.is_err() { EXIT_FAILED } else { 0 };
            let configuration = match removed {
                Ok(()) => configuration.to_owned(),
                Err(why) => format!("its saved configuration is still there: {why}"),
            };
            let text = format!("Interpreter {name:?} {process}; {configuration}");
            let mut output = Output { notes, ..Output::default() };
            output.take(STDOUT, text.as_bytes(), &mut self.front.files);
            self.front.answer_cell(key, output, CellEnd { exit, ..CellEnd::default() });
        }
    }

    /// A keeper thread has a process, or can't have one.
    fn spawned(&mut self, name: &str, number: u64, spawned: Result<Worker, String>) {
        let interpreter = self.interpreters.get_mut(name);
        let interpreter = interpreter.filter(|it| matches!(it.life, Life::Spawning(own) if own == number));
        match (interpreter, spawned) {
            (Some(interpreter), Ok(mut worker)) => {
                worker.send(WORKER.as_bytes()); // the bootstrap reads exactly as many bytes
                interpreter.life = Life::Running(Box::new(worker));
            }
            (Some(interpreter), Err(why)) => {
                interpreter.life = Life::Stopped;
                let why = format!("interpreter {name:?} did not start: {why}");
                log(&why);
                interpreter.fail_waiting(&why, &mut self.front);
                self.forget_unused(name);
            }
            (None, Ok(mut worker)) => {
                worker.reap(); // which kills it: it took so long that nobody waits for it any more
            }
            (None, Err(_)) => {}
        }
    }

    /// Where a saved or discovered interpreter does not run, its configuration is looked up anew by the next call. It
    /// stays while it has something to tell.
    fn forget_unused(&mut self, name: &str) {
        let Some(interpreter) = self.interpreters.get(name) else { return };
        let is_known = matches!(interpreter.source, Source::Saved | Source::Discovered);
        if is_known && interpreter.is_unused() {
            self.interpreters.remove(name);
        }
    }

    /// A keeper thread saw its process exit. What is left of its group is asked to end; `tick` has it reaped then.
    fn exited(&mut self, name: &str, pid: i32) {
        let Some(worker) = self.interpreters.get_mut(name).and_then(Interpreter::worker_mut) else { return };
        if worker.pid() == pid {
            worker.exited = Some(Instant::now());
            worker.hung_up.get_or_insert_with(Instant::now); // it takes no more cells
            sys::kill(-pid, libc::SIGTERM);
        }
    }

    /// The process has exited (`exited`), and its group has ended too, or had its time (`group_has_ended`).
    fn reap(&mut self, name: &str) {
        let Some(interpreter) = self.interpreters.get_mut(name) else { return };
        interpreter.reap(&mut self.front);
        interpreter.start_next(&mut self.front);
        self.forget_unused(name);
    }

    /// Has the clerk find the processes that a cell started, and signals them where it still runs (I8).
    fn signal_children(&mut self, name: String, group: i32, cell_key: u64, since: Instant, signal: i32) {
        self.ask_clerk(
            None,
            move |_| younger_members(group, since),
            move |server, children| {
                let running = server.interpreters.get(&name).and_then(Interpreter::running);
                if running.is_some_and(|cell| cell.key == cell_key) {
                    for child in children {
                        sys::kill_member(child, group, signal);
                    }
                }
            },
        );
    }
}

impl Interpreter {
    fn worker(&self) -> Option<&Worker> {
        if let Life::Running(worker) = &self.life {
            Some(worker)
        } else {
            None
        }
    }

    fn worker_mut(&mut self) -> Option<&mut Worker> {
        if let Life::Running(worker) = &mut self.life {
            Some(worker)
        } else {
            None
        }
    }

    /// Whether there is a process, or will be.
    fn runs(&self) -> bool {
        !matches!(self.life, Life::Stopped)
    }

    /// Whether nobody waits for it, and it has nothing to tell (I5).
    fn is_unused(&self) -> bool {
        let is_wanted = self.runs() || !self.waiting.is_empty() || !self.additions.is_empty();
        let has_told = self.notices.iter().all(Vec::is_empty) && self.unattended.iter().all(Option::is_none);
        !is_wanted && self.stopping.is_none() && has_told
    }

    /// What its worker runs, be it the startup script.
    fn busy_with(&self) -> Option<&RunningCell> {
        self.worker()?.stage.cell()
    }

    fn busy_with_mut(&mut self) -> Option<&mut RunningCell> {
        self.worker_mut()?.stage.cell_mut()
    }

    /// The cell that runs, or list_vars or reset.
    fn running(&self) -> Option<&RunningCell> {
        self.busy_with().filter(|cell| cell.key != STARTUP_SCRIPT)
    }

    fn running_mut(&mut self) -> Option<&mut RunningCell> {
        self.busy_with_mut().filter(|cell| cell.key != STARTUP_SCRIPT)
    }

    /// Whether its process takes cells; it may be busy with one.
    fn is_up(&self) -> bool {
        self.worker().is_some_and(|worker| match &worker.stage {
            Stage::Idle => true,
            Stage::Busy(cell) => cell.key != STARTUP_SCRIPT,
            Stage::Starting | Stage::ScriptFailed(_) => false,
        })
    }

    fn is_starting(&self) -> bool {
        self.runs() && !self.is_up()
    }

    /// Whether a call has to wait: for the end of the process or, if it adds another configuration, for the end of the
    /// start that is under way.
    fn holds(&self, action: &Action) -> bool {
        let differs = matches!(action, Action::Add { given, .. } if *given != self.config);
        self.stopping.is_some() || (self.is_starting() && differs)
    }

    /// As list_interpreters shows it; the environment's variables are never shown. No file is looked at, for the loop
    /// asks (I2): where it does not run, `version` says what is known of that.
    fn describe(&self, version: Option<String>) -> Value {
        let Interpreter { name, source, config, .. } = self;
        let worker = self.worker();
        let version = worker.and_then(|worker| worker.version.clone()).or(version);
        let python = worker.map(|worker| &worker.python).or(config.python_path.as_ref());
        let cwd = worker.and_then(|worker| worker.cwd.as_ref()).or(config.cwd.as_ref());
        let cwd = cwd.cloned().or_else(|| env::current_dir().ok());
        json!({
            "name": name, "source": format!("{source:?}").to_lowercase(),
            "state": if self.runs() { "running" } else { "stopped" },
            "description": config.description.as_ref().map(|text| truncate_middle(text, NOTE_CHARS_MAX)),
            "python_path": python.map(shown), "python_version": version,
            "cwd": cwd.map(shown), "has_startup_script": config.startup_script.is_some(),
            "pid": worker.map(Worker::pid), "busy": worker.and_then(|worker| worker.stage.cell()?.describe()),
            "started_at": worker.map(|worker| iso_time(worker.started.1)),
            "uptime": worker.map(|worker| uptime(worker.started.0)),
        })
    }

    fn be_used(&mut self, key: u64, what: Use, front: &mut Frontend) {
        let Some(call) = front.calls.get_mut(&key) else { return }; // it was cancelled
        call.interpreter = Some(self.name.clone()); // by which `cancel` finds it
        match what {
            Use::Run(request, timeout) => self.submit(Cell::new(key, request, timeout), front),
            Use::Follow { interrupts } => self.follow(key, interrupts, front),
            Use::Restart => self.restart(key, front),
        }
    }

    /// Queues a cell.
    fn submit(&mut self, cell: Cell, front: &mut Frontend) {
        if front.closing {
            return front.fail(cell.key, "not run: the server is shutting down");
        }
        if let Some(why) = self.running().and_then(RunningCell::why_stuck) {
            return front.fail(cell.key, &why);
        }
        if front.cells_waiting >= CELLS_WAITING_MAX {
            let why = format!("not run: {CELLS_WAITING_MAX} cells are waiting already; try again when some have ended");
            return front.fail(cell.key, &why);
        }
        if let Some(reader) = front.reader_of_events(Some(cell.key)) {
            reader.begin_events();
        }
        front.cells_waiting += 1;
        self.waiting.push_back(cell);
        self.start_next(front);
    }

    /// Starts what can be started: a process where there is none, or the next cell of a worker that is idle. A cell is
    /// handed over once and for all (I3); what is in the pipes by now was written before it (I4).
    fn start_next(&mut self, front: &mut Frontend) {
        if self.is_up() {
            for addition in mem::take(&mut self.additions) {
                post(|server| server.save_addition(addition)); // an event, for it needs the whole server
            }
        }
        while self.end_by.is_none() && self.worker().is_some_and(Worker::takes_cells) {
            let Some(cell) = self.waiting.pop_front() else { return };
            front.cells_waiting -= 1;
            self.read_what_is_there(front);
            match cell.request {
                Request::Restarted => self.answer_restarted(cell.key, front),
                _ => self.start(cell, front),
            }
        }
        if !self.waiting.is_empty() || !self.additions.is_empty() {
            self.launch(front);
        }
    }

    /// Has a keeper thread start a process, unless there is one: a Python on a dead mount holds up nobody else (I2).
    /// The thread stays until the exit, for on Linux the worker is killed when the thread that spawned it ends (I11).
    fn launch(&mut self, front: &mut Frontend) {
        if self.runs() || front.closing {
            return;
        }
        let number = front.key();
        let name = self.name.clone();
        let config = self.config.clone();
        let keep = move || {
            let spawned = Worker::spawn(&name, &config);
            let pid = spawned.as_ref().ok().map(Worker::pid);
            let of = name.clone();
            post(move |server| server.spawned(&of, number, spawned));
            if let Some(pid) = pid {
                sys::wait_for_exit(pid);
                post(move |server| server.exited(&name, pid));
            }
        };
        match start_thread("keeper", keep) {
            Ok(()) => self.life = Life::Spawning(number),
            Err(why) => self.fail_waiting(&why, front),
        }
    }

    /// Answers those that wait with an error.
    fn fail_waiting(&mut self, why: &str, front: &mut Frontend) {
        for cell in mem::take(&mut self.waiting) {
            front.cells_waiting -= 1;
            front.fail(cell.key, why);
        }
        for addition in mem::take(&mut self.additions) {
            let why = why.to_owned();
            post(move |server| server.addition_failed(addition, &why));
        }
    }

    /// Ends the process, and takes the interpreter out of the table when that has happened.
    fn begin_stop(&mut self, call: Option<StopCall>, removes_saved: bool) {
        self.end_by.get_or_insert(Instant::now() + STOP_GRACE);
        self.stopping = Some(Stopping { call, removes_saved });
    }

    /// Whether it may leave the table now. A process that is still being spawned is not waited for.
    fn has_ended(&self, now: Instant) -> bool {
        let is_late = self.end_by.is_some_and(|end| end + KILL_LIMIT <= now);
        let has_process = match self.life {
            Life::Stopped => false,
            Life::Spawning(_) => !is_late,
            Life::Running(_) => true,
        };
        !has_process && self.stopping.is_some()
    }

    /// Does what is due by now.
    fn tick(&mut self, now: Instant, front: &mut Frontend) {
        self.answer_late(now, front);
        self.tell_who_waits(now, front);
        for addition in &self.additions {
            front.report_progress(addition.key, now, 0, || "starting".into());
        }
        let end_by = self.end_by;
        match &mut self.life {
            Life::Stopped => {}
            Life::Spawning(_) => {
                if let Some(gives_up_at) = end_by.map(|end| end + KILL_LIMIT).filter(|at| *at > now) {
                    front.tick_at(gives_up_at); // then `has_ended` holds
                }
            }
            Life::Running(worker) => {
                let why_ended = match (front.closing, &self.stopping) {
                    (true, _) => "the server shut down",
                    (false, Some(_)) => "stop_interpreter stopped it",
                    (false, None) => "reset with restart=true restarted it",
                };
                worker.tick(&self.name, end_by.map(|end| (end, why_ended)), now, front);
            }
        }
    }

    /// Poll has something. The pipes come first: taking a result reads them empty, and a read after that would block.
    fn on_ready(&mut self, ready: &[libc::pollfd], front: &mut Frontend) {
        for stream in [STDOUT, STDERR] {
            if ready[stream + 1].revents != 0 {
                // behind the control socket's (Worker::watch)
                self.read_pipe(stream, PIPE_BYTES, front);
            }
        }
        if ready[0].revents != 0 {
            if let Some(worker) = self.worker_mut() {
                worker.flush();
            }
            self.read_control(front);
        }
    }

    fn read_control(&mut self, front: &mut Frontend) {
        let Some(worker) = self.worker_mut() else { return };
        match worker.control.read(&mut front.buffer) {
            Ok(count @ 1..) => worker.partial_frame.extend_from_slice(&front.buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => _ = worker.hung_up.get_or_insert_with(Instant::now), // its end of file
        }
        let mut is_sound = true;
        while is_sound {
            let Some(line) = self.worker_mut().and_then(Worker::take_line) else { break };
            is_sound = Frame::parse(&line).is_some_and(|frame| self.take_frame(frame, front));
        }
        let Some(worker) = self.worker_mut() else { return };
        if !is_sound || worker.partial_frame.len() > FRAME_BYTES_MAX {
            worker.partial_frame.clear();
            let _ = worker.control.shutdown(std::net::Shutdown::Both); // nothing more is believed
            worker.kill(NOT_OURS);
        }
    }

    /// False for a frame that our worker never sends at this stage.
    fn take_frame(&mut self, frame: Frame, front: &mut Frontend) -> bool {
        match frame {
            Frame::Ready { version, environment, note, pid } => {
                self.check_pid(pid);
                return self.take_ready(version, environment, note, front);
            }
            Frame::Part(text) => {
                self.read_what_is_there(front); // all that the cell printed comes before its result
                self.take_result(&text, false, front);
            }
            Frame::Image { kind, data, more } => {
                let Some(worker) = self.worker_mut() else { return false };
                if worker.partial_picture.len() <= PICTURE_BYTES_MAX {
                    worker.partial_picture += &data;
                }
                if !more {
                    self.read_what_is_there(front); // the notes come behind what was printed before
                    self.take_picture(kind, front);
                }
            }
            Frame::Look { number } => self.look_around(number),
            Frame::Install { number, name, package } => {
                if !package.starts_with(|first: char| first.is_ascii_alphanumeric()) {
                    return false; // an installer may take it for an option
                }
                self.read_what_is_there(front);
                self.install(number, name, package, front);
            }
            Frame::Done { result, end } => return self.cell_ended(&result, end, front),
        }
        self.start_next(front);
        true
    }

    /// Says where a script is our child in Python's place: signals reach that one only.
    fn check_pid(&mut self, pid: Option<u64>) {
        let Some(worker) = self.worker() else { return };
        if Some(worker.pid() as u64) != pid {
            let path = worker.python.display();
            self.notice(format!(
                "{path} is a program that stays in front of Python: interrupts and time-outs do not reach the cells; \
                 give the path of the Python itself"
            ));
        }
    }

    /// The worker runs: its startup script comes first. False where it was ready already.
    fn take_ready(
        &mut self,
        version: String,
        environment: Option<PathBuf>,
        note: Option<String>,
        front: &mut Frontend,
    ) -> bool {
        let Some(worker) = self.worker_mut() else { return false };
        if !matches!(worker.stage, Stage::Starting) {
            return false;
        }
        worker.stage = Stage::Idle;
        worker.version = Some(version);
        if let Some(environment) = environment {
            worker.python = environment.join("bin/python");
            worker.environment = Some(environment);
        }
        if let Some(code) = self.config.startup_script.clone() {
            self.start(Cell::new(STARTUP_SCRIPT, Request::Startup { code }, time_limit(None)), front);
        }
        if let Some(note) = note {
            if !mem::replace(&mut self.has_noted_start, true) {
                self.notice(note);
            }
        }
        self.start_next(front);
        true
    }

    /// Hands something to the worker, which is idle.
    fn start(&mut self, cell: Cell, front: &mut Frontend) {
        let mut number = None;
        let (title, request) = match &cell.request {
            Request::Run { code, argv, stdin } => {
                self.cells += 1;
                number = Some(self.cells);
                let mut lent = String::new();
                if !argv.is_empty() || stdin.is_some() {
                    lent = format!(",\"argv\":{},\"stdin\":{}", json!(argv), json!(stdin));
                }
                let code = Value::from(code.as_str());
                let request = format!("{{\"op\":\"run\",\"number\":{},\"code\":{code}{lent}}}", self.cells);
                (format!("cell {}", self.cells), request)
            }
            Request::Startup { code } => {
                ("the startup script".into(), json!({"op": "startup", "code": code}).to_string())
            }
            Request::ListVars { details } => {
                ("list_vars".into(), json!({"op": "list_vars", "details": details}).to_string())
            }
            Request::Reset | Request::Restarted => ("reset".into(), json!({"op": "reset"}).to_string()),
        };
        let door = front.door(cell.key);
        if let Request::Run { code, .. } = &cell.request {
            let whose = if door == 0 { "execute" } else { "client" };
            front.files.record_start(&title, &self.name, whose, code);
            if let Some(why) = front.files.history.trouble.take() {
                front.notice(format!("the history can't be written: {why}"));
            }
        }
        let running = RunningCell::new(cell, number, title, door);
        if let Some(worker) = self.worker_mut() {
            worker.send(format!("{request}\n").as_bytes());
            worker.stage = Stage::Busy(running);
        }
    }

    /// False where no cell runs.
    fn cell_ended(&mut self, result: &str, mut end: CellEnd, front: &mut Frontend) -> bool {
        // Everything that the cell wrote is in the pipes by now (I4); what comes later is not its own.
        self.read_what_is_there(front);
        self.take_result(result, true, front);
        let Some(worker) = self.worker_mut() else { return false };
        let Some(cell) = worker.take_cell() else { return false };
        worker.partial_picture.clear();
        let is_script = cell.key == STARTUP_SCRIPT;
        if let Some(interrupt) = &cell.interrupt {
            end.exit = interrupt.exit;
            let kept = if cell.number.is_some() { "; the variables are kept" } else { "" }; // reset had begun, perhaps
            end.notes.push(format!("{}{kept}", interrupt.why));
        }
        if is_script && (end.exit != 0 || end.error.is_some()) {
            worker.stage = Stage::ScriptFailed(end);
            worker.kill("its startup script failed");
            return true;
        }
        if !is_script {
            self.tell_end(cell, end, front);
        }
        self.start_next(front);
        true
    }

    /// Something to say in the next answer by each door (I5).
    fn notice(&mut self, text: String) {
        for door in [0, 1] {
            self.notice_at(door, text.clone());
        }
    }

    fn notice_at(&mut self, door: usize, text: String) {
        let notices = &mut self.notices[door];
        if notices.len() == NOTICES_MAX {
            notices.remove(0);
        }
        notices.push(text);
    }

    /// Takes a result, or a part of a long one. A reader of events gets a long one part by part, because only its head
    /// and tail are kept here; a short one is in the last event.
    fn take_result(&mut self, text: &str, is_last: bool, front: &mut Frontend) {
        let Some(cell) = self.busy_with_mut() else { return };
        let is_short = is_last && cell.output.streams[RESULT].is_empty() && text.len() <= HEAD_BYTES;
        cell.output.take(RESULT, text.as_bytes(), &mut front.files);
        if is_short {
            return;
        }
        if let Some(reader) = cell.live_reader(text.len(), front) {
            reader.send_result(text);
        }
    }

    /// Reads once from a pipe, up to `limit` bytes, into the output that they belong to; 0 at the pipe's end.
    fn read_pipe(&mut self, stream: usize, limit: usize, front: &mut Frontend) -> usize {
        let Life::Running(worker) = &mut self.life else { return 0 };
        let mut buffer = mem::take(&mut front.buffer);
        let count = worker.pipes[stream].read(&mut buffer[..limit.min(PIPE_BYTES)]).unwrap_or(0);
        let bytes = &buffer[..count];
        worker.closed[stream] = count == 0;
        // What a startup script prints is told with the first cell, as what comes between cells.
        match worker.stage.cell_mut().filter(|cell| cell.key != STARTUP_SCRIPT) {
            None => self.between.take(stream, bytes, &mut front.files),
            Some(cell) => {
                cell.output.take(stream, bytes, &mut front.files);
                cell.new_at = Instant::now();
                if let Some(reader) = cell.live_reader(count, front) {
                    reader.send_output(stream, bytes);
                }
                if stream == STDERR && cell.output.needs_hint() {
                    cell.note(SPAWN_HINT.to_owned(), front);
                }
            }
        }
        front.buffer = buffer;
        count
    }

    /// Reads what the pipes hold now, and no more: another process may go on writing.
    fn read_what_is_there(&mut self, front: &mut Frontend) {
        for stream in [STDOUT, STDERR] {
            let mut left = self.worker().map_or(0, |worker| sys::bytes_readable(&worker.pipes[stream]));
            while left > 0 {
                let count = self.read_pipe(stream, left, front);
                left = if count == 0 { 0 } else { left - count };
            }
        }
    }

    /// After the exit: what it wrote last is read, it is reaped, and everyone concerned is told (I5).
    fn reap(&mut self, front: &mut Frontend) {
        // A result that it sent just before its end counts. So many reads hold the longest frame.
        for _ in 0..FRAME_BYTES_MAX / PIPE_BYTES {
            self.read_control(front);
        }
        if let Some(worker) = self.worker() {
            worker.kill_group();
        }
        self.read_what_is_there(front);
        let Life::Running(mut worker) = mem::replace(&mut self.life, Life::Stopped) else { return };
        let was_to_end = self.end_by.is_some();
        let was_restarted = was_to_end && self.stopping.is_none() && !front.closing;
        if was_restarted {
            self.end_by = None;
        }
        let cause = worker.reap();
        let name = &self.name;
        let died = format!("interpreter {name:?} {cause}; its variables are gone");
        let notice = format!("before this cell, {died}; this is a new process");
        let failed = worker.killed.take().unwrap_or_else(|| format!("{} {cause}", worker.python.display()));
        match worker.stage {
            Stage::Starting | Stage::ScriptFailed(_) if was_restarted => {}
            Stage::Busy(cell) if was_restarted && cell.key == STARTUP_SCRIPT => {}
            Stage::Starting => {
                let hint = if cause.starts_with("exited") { "; is it a Python?" } else { "" };
                self.start_failed(&failed, hint, CellEnd::default(), front);
            }
            Stage::Busy(cell) if cell.key == STARTUP_SCRIPT => {
                self.start_failed(&failed, " in its startup script", CellEnd::default(), front);
            }
            Stage::ScriptFailed(end) => self.start_failed(&failed, "", end, front),
            Stage::Idle => {
                if !was_to_end {
                    self.notice(notice);
                }
            }
            Stage::Busy(cell) => self.tell_death(cell, died, notice, was_to_end, front),
        }
    }

    /// Tells of a process that ended amid a cell: with the cell's end, and at the other door.
    fn tell_death(&mut self, cell: RunningCell, died: String, notice: String, was_to_end: bool, front: &mut Frontend) {
        let told_at = cell.reader().map(|key| front.door(key));
        let kept_at = if told_at.is_none() && !cell.is_cancelled { Some(cell.door) } else { None };
        if let Some(door) = told_at {
            self.drop_restart_notice(door);
        }
        let next = if was_to_end { "" } else { "; the next cell starts a new process" };
        self.tell_end(cell, CellEnd { error: None, exit: EXIT_DIED, notes: vec![died + next] }, front);
        for door in [0, 1] {
            if was_to_end || told_at == Some(door) {
                continue; // that was announced, or has just been told
            }
            match &mut self.unattended[door] {
                Some(ended) if kept_at == Some(door) => ended.notice = Some(notice.clone()),
                _ => self.notice_at(door, notice.clone()),
            }
        }
    }

    /// The process did not come up: fails the cells and the additions that wait for it. The hint is for one that has
    /// said nothing.
    fn start_failed(&mut self, cause: &str, hint: &str, end: CellEnd, front: &mut Frontend) {
        let printed = mem::take(&mut self.between).make_answer(end, &mut front.files).text();
        let hint = if printed.is_empty() { hint } else { ":" };
        let why = format!("interpreter {:?} did not start: {cause}{hint}\n{printed}", self.name);
        self.fail_waiting(why.trim_end(), front);
    }
}

/// An unreaped process (I8), and where the conversation with it stands.
struct Worker {
    child: Child,
    control: UnixStream, // non-blocking on our side
    pipes: [File; 2],    // the read ends of stdout and stderr
    started: (Instant, SystemTime),
    cwd: Option<PathBuf>, // None: ours
    python: PathBuf,
    environment: Option<PathBuf>, // the builtin's, where packages are installed; known when it is ready
    version: Option<String>,      // None until it is ready
    stage: Stage,
    outbox: Outbox,           // what its socket has not taken yet
    partial_frame: Vec<u8>,   // what it sent that is no whole line yet
    partial_picture: String,  // base64
    closed: [bool; 2],        // nobody can write to stdout, stderr any more
    hung_up: Option<Instant>, // when it closed its control socket: it is leaving, or broken
    killed: Option<String>,   // why we ended it
    kill_at: Option<Instant>, // when it gets SIGKILL, unless it has exited by then
    exited: Option<Instant>,  // its process has exited; others of its group may still run
}

#[allow(clippy::large_enum_variant)] // there is one for each process
enum Stage {
    /// Until `ready`.
    Starting,
    /// How the startup script ended; the process is being killed.
    ScriptFailed(CellEnd),
    Idle,
    /// With a cell, or with the startup script.
    Busy(RunningCell),
}

impl Stage {
    fn cell(&self) -> Option<&RunningCell> {
        if let Stage::Busy(cell) = self {
            Some(cell)
        } else {
            None
        }
    }

    fn cell_mut(&mut self) -> Option<&mut RunningCell> {
        if let Stage::Busy(cell) = self {
            Some(cell)
        } else {
            None
        }
    }
}

const STARTUP_SCRIPT: u64 = 0; // its key: no call has it

/// The cell that runs, or the startup script.
struct RunningCell {
    key: u64,               // of the call that asked for it
    number: Option<u64>,    // None for list_vars, reset and the startup script
    title: String,          // what it is called in notes: `cell 12`
    code: String,           // its first line, for those who ask what runs
    door: usize,            // by which it came (Frontend::door)
    readers: VecDeque<u64>, // the calls that wait for it; the first one gets its output and its end
    is_cancelled: bool,     // the call that asked for it is not wanted any more
    timeout: Option<Duration>,
    since: Instant,
    new_at: Instant, // when output came last
    interrupt: Option<Interrupt>,
    installer: Option<Arc<()>>, // an installer is wanted for as long as this is held
    output: Output,             // what nobody was told yet; all of it where the reader is a stream
    unsent: u64,                // bytes that its reader does not get (live_reader)
    figures: usize,             // how many were drawn
    has_dropped_figures: bool,
}

/// A cell is to end.
struct Interrupt {
    why: String,
    exit: i32, // the exit code that says it
    since: Instant,
    next_signal: Instant, // to the worker
    child_signals: usize, // how many of CHILD_SIGNALS have been sent
    is_given_up: bool,    // who waited was told that it has not stopped
}

/// What the processes get that an interrupted cell has started, and when.
const CHILD_SIGNALS: [(Duration, i32); 2] = [(INTERRUPT_AGAIN, libc::SIGINT), (CHILDREN_KILLED_AFTER, libc::SIGKILL)];

/// What is said of a cell that does not heed its interrupt, after why it was interrupted.
const NOT_STOPPED: &str = "but it has not stopped: it is in code that does not heed interrupts, such as a long call \
    into C or an `except` that takes KeyboardInterrupt. Its variables are there when it ends; reset with restart=true \
    (in a shell, --reset --restart) ends the process and loses them";

/// Why a process is ended that sends what our worker does not.
const NOT_OURS: &str = "what runs there broke the protocol between mcp-py and its worker: is it a Python, or did code \
    write to a descriptor that it had not opened?";

impl RunningCell {
    fn new(cell: Cell, number: Option<u64>, title: String, door: usize) -> RunningCell {
        let code = match &cell.request {
            Request::Run { code, .. } => code.lines().find(|line| !line.trim().is_empty()).unwrap_or_default(),
            _ => "",
        };
        let readers = if cell.key == STARTUP_SCRIPT { VecDeque::new() } else { VecDeque::from([cell.key]) };
        RunningCell {
            key: cell.key,
            number,
            title,
            code: truncate_middle(code, CODE_SHOWN_CHARS),
            door,
            readers,
            is_cancelled: false,
            timeout: cell.timeout,
            since: Instant::now(),
            new_at: Instant::now(),
            interrupt: None,
            installer: None,
            output: Output::default(),
            unsent: 0,
            figures: 0,
            has_dropped_figures: false,
        }
    }

    /// The call that gets its output and its end.
    fn reader(&self) -> Option<u64> {
        self.readers.front().copied()
    }

    /// Where it is read as a stream, who is to get these bytes. A reader that does not keep up with an interrupted
    /// cell, which must be able to end, gets no more of it.
    fn live_reader<'a>(&mut self, bytes: usize, front: &'a mut Frontend) -> Option<&'a mut Peer> {
        if self.interrupt.is_some() && front.is_far_behind(self.reader()) {
            self.unsent += bytes as u64;
            return None;
        }
        front.reader_of_events(self.reader())
    }

    /// Something to say of it before its end: a stream gets it at once, others with the answer.
    fn note(&mut self, text: String, front: &mut Frontend) {
        match front.reader_of_events(self.reader()) {
            Some(reader) => reader.send_note(&text),
            None => self.output.note(text),
        }
    }

    /// `tick` sends the signal. A second interrupt changes nothing.
    fn interrupt(&mut self, why: String, exit: i32) {
        let now = Instant::now();
        let interrupt = Interrupt { why, exit, since: now, next_signal: now, child_signals: 0, is_given_up: false };
        self.interrupt.get_or_insert(interrupt);
    }

    /// Reports progress, interrupts a cell whose time is over, and sends SIGINT when that is due (I8).
    fn tick(&mut self, name: &str, pid: i32, now: Instant, front: &mut Frontend) {
        for reader in &self.readers {
            front.report_progress(*reader, now, self.output.chars(), || self.output.last_line());
        }
        if let (None, Some(timeout)) = (&self.interrupt, self.timeout) {
            if front.is_due(self.since + timeout, now) {
                let why = format!("interrupted after its timeout of {} s", timeout.as_secs_f64());
                self.interrupt(why, EXIT_TIMEOUT);
            }
        }
        let Some(interrupt) = &mut self.interrupt else { return };
        if interrupt.next_signal <= now {
            sys::kill(pid, libc::SIGINT);
            interrupt.next_signal = now + INTERRUPT_AGAIN;
            self.installer = None;
        }
        front.tick_at(interrupt.next_signal);
        let Some((after, signal)) = CHILD_SIGNALS.get(interrupt.child_signals) else { return };
        if !front.is_due(interrupt.since + *after, now) {
            return;
        }
        interrupt.child_signals += 1;
        let name = name.to_owned();
        let key = self.key;
        let since = self.since;
        // An event, for it needs the whole server.
        post(move |server| server.signal_children(name, pid, key, since, *signal));
    }

    /// As list_interpreters shows what runs; None for what is no cell.
    fn describe(&self) -> Option<Value> {
        let seconds = (self.since.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        Some(json!({"number": self.number?, "code": self.code, "seconds": seconds}))
    }

    /// Why a cell behind this one is refused, where this one did not heed its interrupt.
    fn why_stuck(&self) -> Option<String> {
        let interrupt = self.interrupt.as_ref().filter(|interrupt| interrupt.is_given_up)?;
        Some(format!("not run: {} was {}, {NOT_STOPPED}", self.title, interrupt.why))
    }

    /// Notes how much of its output a reader did not get that does not keep up.
    fn note_unsent(&mut self, files: &mut OutputFiles) {
        let bytes = mem::take(&mut self.unsent);
        if bytes > 0 {
            let whole = self.output.spool(files).where_it_is_whole();
            self.output.note(format!("{} bytes of output came too fast for their reader; {whole}", grouped(bytes)));
        }
    }

    /// What there is to say of it while it runs.
    fn how_it_runs(&self, now: Instant) -> String {
        let silence = now - self.new_at;
        let is_silent = self.output.is_empty() && silence >= PROGRESS_EVERY;
        let silent = if is_silent { format!(", nothing new for {}", span(silence)) } else { String::new() };
        format!("{} still runs: {}{silent}", self.title, span(now - self.since))
    }
}

impl Worker {
    /// Starts a Python; `ready` will tell that it runs. This may take its time.
    fn spawn(name: &str, config: &Config) -> Result<Worker, String> {
        let python = check_config(config)?;
        let mut command = Command::new(&python);
        let mut cwd = config.cwd.clone();
        if config.python_path.is_some() {
            command.arg("-c").arg(bootstrap());
        } else {
            command.args(["-I", "-S", "-c", ENVIRONMENT]).arg(saved_dir().unwrap_or_default()).arg(bootstrap());
            command.arg(env::var_os("LC_CTYPE").unwrap_or_default()); // Python may change it before ENVIRONMENT runs
            cwd = env::var_os("CLAUDE_PROJECT_DIR").map(PathBuf::from).filter(|project| project.is_dir());
        }
        if let Some(cwd) = &cwd {
            command.current_dir(cwd);
        }
        command.envs(config.env.iter().flatten());
        command.env("MCP_PY_INTERPRETER", format!("{}:{name}", std::process::id()));
        let failed = with_path(python.clone());
        let (control, workers_end) = UnixStream::pair().map_err(&failed)?;
        control.set_nonblocking(true).map_err(&failed)?;
        command.stdin(OwnedFd::from(workers_end)).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::own_session(&mut command);
        let mut child = command.spawn().map_err(&failed)?;
        let stdout = child.stdout.take().ok_or("a child without stdout")?;
        let stderr = child.stderr.take().ok_or("a child without stderr")?;
        sys::widen_pipe(&stdout, PIPE_BYTES);
        Ok(Worker {
            child,
            control,
            pipes: [OwnedFd::from(stdout).into(), OwnedFd::from(stderr).into()],
            started: (Instant::now(), SystemTime::now()),
            cwd,
            python,
            environment: None,
            version: None,
            stage: Stage::Starting,
            outbox: Outbox::default(),
            partial_frame: Vec::new(),
            partial_picture: String::new(),
            closed: [false; 2],
            hung_up: None,
            killed: None,
            kill_at: None,
            exited: None,
        })
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends as much as the socket takes; the rest when there is room (I2).
    fn send(&mut self, bytes: &[u8]) {
        self.flush();
        self.outbox.push(self.control.as_raw_fd(), bytes);
    }

    fn flush(&mut self) {
        self.outbox.flush(self.control.as_raw_fd());
    }

    /// The next whole line that it has sent.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.partial_frame.iter().position(|byte| *byte == b'\n')?;
        let rest = self.partial_frame.split_off(end + 1);
        Some(mem::replace(&mut self.partial_frame, rest))
    }

    /// The cell that ran; the worker is idle from now on. None, and nothing has changed, where no cell runs.
    fn take_cell(&mut self) -> Option<RunningCell> {
        match mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Busy(cell) => Some(cell),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Whether it can be handed a cell: idle, not killed, and not hung up, for a worker that dies takes its cell along.
    fn takes_cells(&self) -> bool {
        if !matches!(self.stage, Stage::Idle) || self.killed.is_some() || self.hung_up.is_some() {
            return false;
        }
        let mut control = [sys::watch(self.control.as_raw_fd(), libc::POLLHUP)];
        sys::poll(&mut control, Instant::now());
        control[0].revents & libc::POLLHUP == 0
    }

    /// What poll is to look at: control socket, stdout, stderr. While the reader of events is far behind, its cell's
    /// output is not read, nor is the control socket amid a long result, which comes by that. An interrupted cell must
    /// be able to end.
    fn watch(&self, front: &Frontend) -> [libc::pollfd; 3] {
        let waits = |cell: &RunningCell| cell.interrupt.is_none() && front.is_far_behind(cell.reader());
        let is_paused = self.exited.is_none() && self.stage.cell().is_some_and(waits);
        let is_amid_result = self.stage.cell().is_some_and(|cell| !cell.output.streams[RESULT].is_empty());
        let pipe = |stream: usize| {
            let is_watched = !self.closed[stream] && !is_paused;
            sys::watch(if is_watched { self.pipes[stream].as_raw_fd() } else { -1 }, libc::POLLIN)
        };
        let is_control_watched = self.hung_up.is_none() && !(is_paused && is_amid_result);
        let control = if is_control_watched { self.control.as_raw_fd() } else { -1 };
        [self.outbox.watch(control, libc::POLLIN), pipe(STDOUT), pipe(STDERR)]
    }

    /// Does what is due by now. `end_by` says until when it may leave by itself, and why. Signals that are due are sent
    /// here and in the cell's tick (I8).
    fn tick(&mut self, name: &str, end_by: Option<(Instant, &'static str)>, now: Instant, front: &mut Frontend) {
        if let Some(exited) = self.exited {
            return front.tick_at(exited + GROUP_GRACE);
        }
        if self.killed.is_some() {
            return self.finish_kill(now, front);
        }
        let pid = self.pid();
        if let Some(cell) = self.stage.cell_mut() {
            cell.tick(name, pid, now, front);
        }
        if end_by.is_some() {
            let _ = self.control.shutdown(std::net::Shutdown::Write); // an idle worker leaves at that
        }
        let is_idle = matches!(self.stage, Stage::Idle);
        let is_starting = matches!(self.stage, Stage::Starting);
        let start_limit = if is_starting { START_TIMEOUT.seconds() } else { None };
        let starts_by = start_limit.map(|limit| self.started.0 + limit);
        let slow = start_limit.map(|limit| {
            let limit = limit.as_secs_f64();
            format!("it took longer than {limit} s to start; MCP_PY_START_TIMEOUT of the server can give it more")
        });
        // A startup script has no state yet that could be lost.
        let script = self.stage.cell().filter(|cell| cell.key == STARTUP_SCRIPT);
        let script_ends_by = script.and_then(|cell| Some(cell.interrupt.as_ref()?.since + INTERRUPT_PATIENCE));
        let kills = [
            (end_by.map(|(end, _)| if is_idle { end } else { now }), end_by.map_or("", |(_, why)| why)),
            (self.hung_up.map(|since| since + HUNG_UP_GRACE), "it closed the socket by which mcp-py speaks with it"),
            (script_ends_by, "its startup script did not end when it was interrupted"),
            (starts_by, slow.as_deref().unwrap_or_default()),
        ];
        for (end, why) in kills {
            let Some(end) = end else { continue };
            front.tick_at(end);
            if end <= now {
                self.kill(why);
            }
        }
    }

    /// Ends the process: SIGTERM for its group, and SIGKILL for itself where it has not exited after GROUP_GRACE.
    /// `Server::exited` goes on.
    fn kill(&mut self, why: &str) {
        if self.killed.is_none() {
            self.killed = Some(why.to_owned());
            self.kill_at = Some(Instant::now() + GROUP_GRACE);
            sys::kill(-self.pid(), libc::SIGTERM);
        }
    }

    /// Sends SIGKILL where that is due.
    fn finish_kill(&mut self, now: Instant, front: &mut Frontend) {
        let Some(at) = self.kill_at else { return }; // its exit wakes us
        if front.is_due(at, now) {
            self.kill_at = None;
            sys::kill(self.pid(), libc::SIGKILL);
        }
    }

    /// Whether the process has exited, and others of its group have ended or had their time: those that free shared
    /// memory for multiprocessing and joblib do so when they see it gone. All that hold its pipes count.
    fn group_has_ended(&self, now: Instant) -> bool {
        self.exited.is_some_and(|exited| self.closed == [true; 2] || exited + GROUP_GRACE <= now)
    }

    fn kill_group(&self) {
        sys::kill(-self.pid(), libc::SIGKILL);
    }

    /// Kills the group while its leader still holds the number, then reaps the leader (I8). Returns how it ended.
    fn reap(&mut self) -> String {
        self.kill_group();
        match (&self.killed, self.child.wait()) {
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
         'LAUNCH_PATH': path, 'ON_MACOS': {}}})",
        WORKER.len(),
        if IS_MACOS { "True" } else { "False" }
    )
}

fn describe_exit(status: ExitStatus) -> String {
    let Some(number) = status.signal() else {
        return format!("exited with code {}", status.code().unwrap_or_default());
    };
    let words = status.to_string(); // signal: 9 (SIGKILL)
    let name = words.split(['(', ')']).find(|word| word.starts_with("SIG"));
    let name = name.map_or_else(|| format!("signal {number}"), str::to_owned);
    let hint = if number == libc::SIGKILL { " (by hand, or by the kernel for lack of memory)" } else { "" };
    format!("was killed by {name}{hint}")
}

/// A message from a worker (worker.py has the protocol).
enum Frame {
    Ready { version: String, environment: Option<PathBuf>, note: Option<String>, pid: Option<u64> },
    Part(String),
    Image { kind: Kind, data: String, more: bool },
    Look { number: u64 },
    Install { number: u64, name: String, package: String },
    Done { result: String, end: CellEnd }, // with the last part of the result
}

impl Frame {
    /// None for what no worker sends.
    fn parse(line: &[u8]) -> Option<Frame> {
        let frame: Object = serde_json::from_slice(line).ok()?;
        let owned = |name: &str| text(&frame, name).map(str::to_owned);
        let number = frame.get("number").and_then(Value::as_u64);
        Some(match text(&frame, "op")? {
            "ready" => Frame::Ready {
                version: owned("version")?,
                environment: owned("environment").map(PathBuf::from),
                note: owned("note"),
                pid: frame.get("pid").and_then(Value::as_u64),
            },
            "part" => Frame::Part(owned("text")?),
            "image" => {
                let kind = Kind::parse(text(&frame, "kind")?)?;
                Frame::Image { kind, data: owned("data")?, more: flag(&frame, "more") }
            }
            "look" => Frame::Look { number: number? },
            "install" => Frame::Install { number: number?, name: owned("name")?, package: owned("package")? },
            "done" => {
                let notes = frame.get("notes").and_then(Value::as_array).into_iter().flatten();
                let end = CellEnd {
                    error: owned("error"),
                    exit: frame.get("exit").and_then(Value::as_i64).unwrap_or(1) as i32,
                    notes: notes.filter_map(Value::as_str).map(str::to_owned).collect(),
                };
                Frame::Done { result: owned("result").unwrap_or_default(), end }
            }
            _ => return None,
        })
    }
}

// ── 7. Cells and the calls that wait for them ────────────────────────────────────────────────────────────────────────
//
// A call may end before its cell: when its time is over, or when its cell does not heed an interrupt. The cell then
// goes on unattended, until a call of `wait` becomes its reader. Its output is kept for whoever is told next.

/// What makes the name of a tool the client's option of that name, for who came by the bridge.
fn dashes(door: usize) -> &'static str {
    ["", "--"][door]
}

/// What became of the answer of a cell that the client followed, perhaps that of a call of the tools.
const GIVEN_TO_CLIENT: &str = ", its answer went to mcp-py-client";

/// A cell that ended when no call waited for it.
struct EndedCell {
    title: String, // `cell 12 ended after 4 min 2 s`
    output: Output,
    end: CellEnd,
    notice: Option<String>, // where its process died: for its own door, if the other one is told of this end
}

impl EndedCell {
    /// As a note of an answer that is another cell's.
    fn into_note(mut self, files: &mut OutputFiles) -> String {
        let printed = self.output.as_note(&self.title, true, files);
        let mut parts = vec![printed.unwrap_or(self.title)];
        parts.extend(self.end.notes);
        parts.extend(self.end.error);
        parts.join("\n")
    }
}

impl Interpreter {
    /// Gives a call its answer, with what there is to say of the time before it.
    fn answer_with_notes(&mut self, key: u64, mut output: Output, end: CellEnd, front: &mut Frontend) {
        let door = front.door(key);
        if let Some(mut ended) = self.unattended[door].take() {
            output.pictures.splice(0..0, mem::take(&mut ended.output.pictures));
            output.ahead = Some(ended.into_note(&mut front.files));
        }
        output.notes.splice(0..0, self.take_untold(door, &mut front.files));
        output.notes.splice(0..0, mem::take(&mut front.notices[door]));
        front.answer_cell(key, output, end);
    }

    /// What the next answer by a door has to tell (I4, I5).
    fn take_untold(&mut self, door: usize, files: &mut OutputFiles) -> Vec<String> {
        let mut notes = mem::take(&mut self.notices[door]);
        notes.extend(self.unattended[door].take().map(|ended| ended.into_note(files)));
        notes.extend(mem::take(&mut self.between).as_note(BETWEEN_CELLS, false, files));
        notes
    }

    fn restart_notice(&self) -> String {
        format!("before this cell, interpreter {:?} was restarted; its variables are gone", self.name)
    }

    /// For an answer by this door that tells of the restart itself.
    fn drop_restart_notice(&mut self, door: usize) {
        let notice = self.restart_notice();
        self.notices[door].retain(|other| *other != notice);
    }

    fn answer_restarted(&mut self, key: u64, front: &mut Frontend) {
        self.drop_restart_notice(front.door(key));
        let text = format!("Interpreter {:?} restarted: its variables are gone", self.name);
        let mut output = Output::default();
        output.take(RESULT, text.as_bytes(), &mut front.files);
        self.answer_with_notes(key, output, CellEnd::default(), front);
    }

    /// Tells the end of a cell: to the first call that waits for it, or later where there is none.
    fn tell_end(&mut self, mut cell: RunningCell, mut end: CellEnd, front: &mut Frontend) {
        let took = cell.since.elapsed();
        if cell.number.is_some() {
            // The text of such an error has no traceback.
            let was_compiled = !end.error.as_ref().is_some_and(|error| error.starts_with("  File \""));
            front.files.record_end(&cell.title, &self.name, &end.in_history(took), was_compiled);
        }
        let exit = end.exit;
        let is_of_client = cell.reader().is_some_and(|key| front.door(key) == 1);
        let given = if is_of_client { GIVEN_TO_CLIENT } else { ", its answer was given" };
        let given = if cell.is_cancelled { "" } else { given };
        self.last = Some((cell.title.clone(), Instant::now(), given));
        cell.note_unsent(&mut front.files);
        let title = || format!("{} ended after {}", cell.title, span(took));
        let mut readers = cell.readers.into_iter();
        if let Some(key) = readers.next() {
            if key != cell.key {
                end.notes.push(title());
            }
            self.answer_with_notes(key, cell.output, end, front);
        } else if cell.is_cancelled {
            let title = format!("{} was cancelled; its output", cell.title);
            if let Some(note) = cell.output.as_note(&title, true, &mut front.files) {
                self.notice_at(cell.door, note);
            }
        } else {
            let ended = EndedCell { title: title(), output: cell.output, end, notice: None };
            if let Some(earlier) = self.unattended[cell.door].replace(ended) {
                self.notice_at(cell.door, earlier.into_note(&mut front.files));
            }
        }
        for key in readers {
            let note = format!("{}; its answer went to another call", title());
            let exit = if front.door(key) == 1 { exit } else { 0 }; // `mcp-py-client --wait` ends with it
            self.answer_with_notes(key, Output::default(), CellEnd { exit, notes: vec![note], error: None }, front);
        }
    }

    /// A call of `wait` or `interrupt`: it becomes a reader of what runs, unless there is something to tell already.
    fn follow(&mut self, key: u64, interrupts: bool, front: &mut Frontend) {
        let is_interrupted = interrupts && self.interrupt_running();
        if !is_interrupted {
            let door = front.door(key);
            for from in [door, 1 - door] {
                let Some(ended) = self.unattended[from].take() else { continue };
                let EndedCell { title, mut output, mut end, notice } = ended;
                if let Some(notice) = notice.filter(|_| from != door) {
                    self.notice_at(from, notice);
                }
                if let (Some((_, _, given)), 1) = (&mut self.last, door) {
                    *given = GIVEN_TO_CLIENT;
                }
                end.notes.push(title);
                front.send_backlog(Some(key), &mut output);
                return self.answer_with_notes(key, output, end, front);
            }
        }
        let Some(cell) = self.running_mut() else {
            let end = CellEnd { notes: vec![self.why_nothing_runs()], ..CellEnd::default() };
            return self.answer_with_notes(key, Output::default(), end, front);
        };
        cell.readers.push_back(key);
        let is_stuck = cell.why_stuck().is_some();
        if cell.readers.len() == 1 {
            self.send_backlog_to_reader(front);
        } else if let Some(reader) = front.reader_of_events(Some(key)) {
            let runs_for = span(cell.since.elapsed());
            reader.send_note(&format!("{} runs, for {runs_for} so far; its output goes to another call", cell.title));
        }
        if is_interrupted && is_stuck {
            self.answer_not_stopped(key, front);
        }
    }

    /// Interrupts what runs, be it the startup script. False where nothing does.
    fn interrupt_running(&mut self) -> bool {
        let Some(cell) = self.busy_with_mut() else { return false };
        cell.interrupt("interrupted".into(), EXIT_INTERRUPTED);
        true
    }

    fn why_nothing_runs(&self) -> String {
        match &self.last {
            _ if self.is_starting() => "the interpreter is starting; no cell runs yet".into(),
            Some((title, at, given)) => format!("nothing runs; {title} ended {} ago{given}", span(at.elapsed())),
            None => "nothing runs".into(),
        }
    }

    /// Where there is a new reader, and it is a stream, it is sent what was kept.
    fn send_backlog_to_reader(&mut self, front: &mut Frontend) {
        if let Some(cell) = self.running_mut() {
            front.send_backlog(cell.reader(), &mut cell.output);
        }
    }

    /// A call is over, for nobody wants its answer. Its own cell is interrupted, or leaves the queue.
    fn lose_call(&mut self, key: u64, is_stream: bool, front: &mut Frontend) {
        if let Some(place) = self.waiting.iter().position(|cell| cell.key == key) {
            self.waiting.remove(place);
            front.cells_waiting -= 1;
        }
        let Some(cell) = self.running_mut() else { return };
        let Some(place) = cell.readers.iter().position(|reader| *reader == key) else { return };
        cell.readers.remove(place);
        if key == cell.key {
            cell.is_cancelled = true;
            cell.interrupt("interrupted".into(), EXIT_INTERRUPTED);
        }
        if place == 0 {
            if is_stream {
                cell.output.take_part(&mut front.files); // it was sent all of that
            }
            self.send_backlog_to_reader(front);
        }
    }

    /// Answers the calls whose time is over though their cells are not. Where no cell runs, those that wait do so for
    /// the process to start, which has a limit of its own. The startup script belongs to the start, for as long as that
    /// may take.
    fn answer_late(&mut self, now: Instant, front: &mut Frontend) {
        let Some(cell) = self.busy_with() else { return };
        let is_script = cell.key == STARTUP_SCRIPT; // which Worker::tick ends
        let least = if is_script { SCRIPT_PATIENCE } else { Duration::ZERO };
        let waiting = self.waiting.iter().map(|cell| (cell.key, cell.queued + least));
        let mut late = Vec::new();
        for (key, from) in cell.readers.iter().map(|key| (*key, now)).chain(waiting) {
            let answer_by = front.calls.get(&key).and_then(|call| call.answer_by);
            if answer_by.is_some_and(|by| front.is_due(by.max(from), now)) {
                late.push(key);
            }
        }
        let interrupt = cell.interrupt.as_ref().filter(|interrupt| !interrupt.is_given_up && !is_script);
        let give_up_at = interrupt.map(|interrupt| interrupt.since + INTERRUPT_PATIENCE);
        for key in late {
            self.answer_unfinished(key, now, front);
        }
        if give_up_at.is_some_and(|at| front.is_due(at, now)) {
            self.give_up(front);
        }
    }

    /// Answers a call whose time is over: with what is new of its cell, which goes on, or that its cell was not run.
    fn answer_unfinished(&mut self, key: u64, now: Instant, front: &mut Frontend) {
        self.read_what_is_there(front);
        let Some(cell) = self.busy_with() else { return };
        let title = &cell.title;
        let runs_for = span(now - cell.since);
        if let Some(place) = self.waiting.iter().position(|cell| cell.key == key) {
            let code = if cell.code.is_empty() { String::new() } else { format!(" (`{}`)", cell.code) };
            let is_restart = matches!(self.waiting[place].request, Request::Restarted);
            let what = if is_restart { "restarted, but not ready yet" } else { "not run" };
            let dashes = dashes(front.door(key));
            let why = format!(
                "{what}: {title}{code} has been running for {runs_for}. {dashes}wait follows it, {dashes}interrupt \
                 stops it, and another interpreter runs cells beside it"
            );
            self.waiting.remove(place);
            front.cells_waiting -= 1;
            return front.fail(key, &why);
        }
        let is_first = cell.reader() == Some(key);
        let note = if key == cell.key {
            let dashes = dashes(cell.door);
            format!(
                "{title} still runs after {runs_for} and goes on by itself; {dashes}wait shows the rest, \
                 {dashes}interrupt stops it"
            )
        } else if is_first {
            cell.how_it_runs(now)
        } else {
            format!("{title} still runs: {runs_for}; its output goes to another call")
        };
        self.answer_reader(key, CellEnd { notes: vec![note], ..CellEnd::default() }, front);
    }

    /// Answers a reader of a cell that goes on. The first one gets what is new.
    fn answer_reader(&mut self, key: u64, end: CellEnd, front: &mut Frontend) {
        let Some(cell) = self.running_mut() else { return };
        let mut output = Output::default();
        let is_first = cell.reader() == Some(key);
        if is_first {
            cell.note_unsent(&mut front.files);
            output = cell.output.take_part(&mut front.files);
            if let Some(reader) = front.reader_of_events(Some(key)) {
                reader.events.partial = Default::default(); // it is kept for the next reader
            }
        }
        cell.readers.retain(|reader| *reader != key);
        self.answer_with_notes(key, output, end, front);
        if is_first {
            self.send_backlog_to_reader(front);
        }
    }

    /// The cell has not heeded its interrupt: who waits for it is told, and who waits behind it is refused.
    fn give_up(&mut self, front: &mut Frontend) {
        self.read_what_is_there(front);
        let Some(cell) = self.running_mut() else { return };
        let Some(interrupt) = &mut cell.interrupt else { return };
        interrupt.is_given_up = true;
        let refusal = cell.why_stuck().unwrap_or_default();
        for key in cell.readers.clone() {
            self.answer_not_stopped(key, front);
        }
        self.fail_waiting(&refusal, front);
    }

    /// Answers a reader that the cell was interrupted, but goes on.
    fn answer_not_stopped(&mut self, key: u64, front: &mut Frontend) {
        let Some(interrupt) = self.running().and_then(|cell| cell.interrupt.as_ref()) else { return };
        let note = format!("{}, {NOT_STOPPED}", interrupt.why);
        let end = CellEnd { exit: interrupt.exit, notes: vec![note], ..CellEnd::default() };
        self.answer_reader(key, end, front);
    }

    /// Tells the calls whose cells wait what they wait for.
    fn tell_who_waits(&mut self, now: Instant, front: &mut Frontend) {
        if self.waiting.is_empty() {
            return;
        }
        let what = match self.busy_with() {
            Some(cell) => format!("waiting for its turn: {} runs, for {} so far", cell.title, span(now - cell.since)),
            None => "waiting for its turn: the interpreter is starting".into(),
        };
        for cell in &mut self.waiting {
            front.report_progress(cell.key, now, 0, || what.clone());
            if cell.is_noted || !front.is_due(cell.queued + TURN_NOTED_AFTER, now) {
                continue;
            }
            cell.is_noted = true;
            if let Some(reader) = front.reader_of_events(Some(cell.key)) {
                reader.send_note(&what);
            }
        }
    }

    /// Ends the process, whatever it runs; the call is answered when a new one is up.
    fn restart(&mut self, key: u64, front: &mut Frontend) {
        if front.closing {
            return front.fail(key, "not restarted: the server is shutting down");
        }
        let is_restart = |cell: &Cell| matches!(cell.request, Request::Restarted);
        let (restarts, others) = mem::take(&mut self.waiting).into_iter().partition(is_restart);
        self.waiting = others;
        self.fail_waiting("not run: the interpreter was restarted before this had its turn", front);
        self.waiting = restarts;
        if self.is_up() && self.end_by.is_none() {
            self.notice(self.restart_notice()); // its own door too, for the call may be cancelled before its answer
        }
        if self.worker().is_some() {
            self.end_by.get_or_insert(Instant::now() + STOP_GRACE);
        }
        front.cells_waiting += 1;
        self.waiting.push_back(Cell::new(key, Request::Restarted, None));
        self.start_next(front);
    }
}

// ── 8. Output and its files ──────────────────────────────────────────────────────────────────────────────────────────

/// The streams of a cell. The result's repr counts as one.
const STDOUT: usize = 0;
const STDERR: usize = 1;
const RESULT: usize = 2;
const BETWEEN_CELLS: &str = "output from between the cells";

/// What a cell printed: its two ends in memory, the whole in a file once it is longer than an answer can be.
#[derive(Default)]
struct Output {
    streams: [HeadAndTail; 3], // stdout, stderr, result
    ahead: Option<String>,     // a note about an earlier cell
    notes: Vec<String>,        // what was installed, what was drawn
    pictures: Vec<Picture>,
    log: Vec<u8>, // everything in the order of arrival, until there is a file
    spool: Option<Spool>,
    last: usize,            // the stream that was written last
    ends_within_line: bool, // that stream's last byte was no newline
    has_hint: bool,         // SPAWN_HINT has been given
}

/// How a cell ended, beside its output.
#[derive(Default)]
struct CellEnd {
    error: Option<String>,
    exit: i32, // not 0 is an error too
    notes: Vec<String>,
}

impl CellEnd {
    /// How the cell ended, for the history: one line.
    fn in_history(&self, took: Duration) -> String {
        if self.exit == 0 && self.error.is_none() {
            return format!("ended after {}", span(took));
        }
        let why = self.error.as_ref().or(self.notes.last()).map_or("", |text| text.trim_end());
        let why = why.rsplit(['\n', '\r']).next().unwrap_or_default(); // which both end a line for Python
        let colon = if why.is_empty() { "" } else { ": " }; // what exit("…") says is in the output
        format!("failed after {}{colon}{}", span(took), truncate_middle(why, PROGRESS_MESSAGE_CHARS))
    }
}

/// A file of output.
struct Spool {
    path: PathBuf,
    file: Option<File>,      // open until writing failed or the limit was reached
    size: u64,               // bytes
    trouble: Option<String>, // what to say of it besides its path
}

/// What came on one of the three and is to be shown, without its middle.
#[derive(Default)]
struct HeadAndTail {
    kept: Vec<u8>,     // the first HEAD_BYTES and at least the last TAIL_BYTES of the lines that are complete
    line: Overwritten, // the last one
    chars: u64,        // Unicode scalar values of all that came
    has_gap: bool,     // between the two
}

impl HeadAndTail {
    fn take(&mut self, bytes: &[u8]) {
        self.chars += count_chars(bytes);
        self.line.take(bytes, &mut self.kept);
        if self.kept.len() > HEAD_BYTES + 4 * TAIL_BYTES {
            self.kept.drain(HEAD_BYTES..self.kept.len() - TAIL_BYTES);
            self.has_gap = true;
        }
    }

    fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.line.is_empty()
    }

    /// How many characters there are to show, with those in the gap.
    fn shown_chars(&self) -> u64 {
        self.line.chars_given_out + count_chars(&self.shown()) - count_chars(&self.kept)
    }

    /// Takes out the bytes at the end that begin a character which is not complete.
    fn split_cut_character(&mut self) -> Vec<u8> {
        let end = if self.line.line.is_empty() { &mut self.kept } else { &mut self.line.line };
        let cut = end.split_off(end.len() - cut_character(end));
        self.chars -= u64::from(!cut.is_empty());
        cut
    }

    /// The end of it as text: so many bytes and the last line.
    fn end(&self, bytes: usize) -> String {
        let mut end = self.kept[self.kept.len().saturating_sub(bytes)..].to_vec();
        self.line.add_rest(&mut end);
        String::from_utf8_lossy(&end).into_owned()
    }

    /// What is to be shown, without the middle.
    fn shown(&self) -> Vec<u8> {
        let mut shown = self.kept.clone();
        self.line.add_rest(&mut shown);
        shown
    }

    /// The same as text, without its last newline.
    fn text(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let shown = self.shown();
        Some(escaped(shown.strip_suffix(b"\n").unwrap_or(&shown)))
    }
}

/// How many Unicode scalar values begin in these bytes of UTF-8.
fn count_chars(bytes: &[u8]) -> u64 {
    let is_continuation = |byte: u8| byte & 0xc0 == 0x80; // the second byte of a character, or a later one
    bytes.iter().filter(|byte| !is_continuation(**byte)).count() as u64
}

/// What a terminal would show of lines that are written over, as progress bars do, behind carriage returns or by moving
/// the cursor up: only what stood last. Text comes in pieces of any size. A line that is not there any more to be taken
/// back stays; what replaces it goes on a new line.
#[derive(Default)]
struct Overwritten {
    line: Vec<u8>,        // what stands on the cursor's line and was not given out
    below: Vec<u8>,       // the lines below the cursor, each with its newline
    is_given_out: bool,   // the beginning of the line was
    has_returned: bool,   // the cursor is at the line's beginning: what follows is written over it
    returned_at: usize,   // how long the line was then; what stands behind that are escape sequences
    has_moved: bool,      // it came there from another line, and not by a carriage return
    is_rewritten: bool,   // it was there before
    chars_given_out: u64, // in all, without those that were taken back
}

impl Overwritten {
    /// Takes a piece; gives out the lines that it completes, and may take back those at the end of `shown`.
    fn take(&mut self, text: &[u8], shown: &mut Vec<u8>) {
        let mut counted = shown.len(); // the characters of what stands before this are in `chars_given_out`
        for part in text.split_inclusive(|byte| matches!(byte, b'\n' | b'\r' | b'A' | b'K')) {
            let written = part.strip_suffix(b"\n").or(part.strip_suffix(b"\r")).unwrap_or(part);
            self.line.extend_from_slice(written);
            let start = self.returned_at.min(self.line.len());
            if self.has_returned && !is_sequence(&self.line[start..]) {
                self.has_returned = false;
                self.line.drain(..start);
                if mem::take(&mut self.is_given_out) {
                    shown.push(b'\n');
                }
            }
            if self.has_returned && self.line.len() > LINE_BYTES_HELD {
                self.line.truncate(start); // escape sequences, of which a cell may write without end
            }
            if part.ends_with(b"\r") {
                self.return_to_beginning(false);
            } else if part.ends_with(b"\n") {
                self.end_line(shown);
            } else if self.line.ends_with(ERASE_LINE) {
                self.line.clear();
            } else if let Some((rows, start)) = cursor_up(&self.line) {
                self.line.truncate(start);
                self.go_up(rows, shown, &mut counted);
            } else if self.line.len() > LINE_BYTES_HELD {
                shown.append(&mut self.line);
                self.is_given_out = true;
                self.returned_at = 0;
            }
        }
        self.chars_given_out += count_chars(&shown[counted..]);
    }

    fn return_to_beginning(&mut self, has_moved: bool) {
        self.has_moved = has_moved;
        self.has_returned = true;
        self.returned_at = self.line.len();
        self.is_rewritten = true;
    }

    /// Gives out the line; the next one below becomes the cursor's.
    fn end_line(&mut self, shown: &mut Vec<u8>) {
        shown.append(&mut self.line);
        shown.extend_from_slice(if self.has_returned && !self.has_moved { b"\r\n" } else { b"\n" });
        self.is_given_out = false;
        self.has_returned = false;
        self.is_rewritten = false;
        if let Some(end) = self.below.iter().position(|byte| *byte == b'\n') {
            let rest = self.below.split_off(end + 1);
            self.line = mem::replace(&mut self.below, rest);
            self.line.pop();
            self.return_to_beginning(true);
        }
    }

    /// Takes back so many lines, as far as they are there and can be held.
    fn go_up(&mut self, rows: usize, shown: &mut Vec<u8>, counted: &mut usize) {
        for _ in 0..rows {
            let Some(lines) = shown.strip_suffix(b"\n") else { break };
            if self.below.len() > LINE_BYTES_HELD {
                break;
            }
            let start = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            if start < *counted {
                self.chars_given_out -= count_chars(&shown[start..*counted]);
                *counted = start;
            }
            self.line.push(b'\n');
            self.below.splice(..0, mem::replace(&mut self.line, shown.split_off(start)));
            self.line.pop();
        }
        self.return_to_beginning(true);
    }

    /// Gives out the beginning of a line in which nothing was written over yet, for who watches.
    fn take_open_line(&mut self) -> Vec<u8> {
        if self.is_rewritten || self.line.is_empty() {
            return Vec::new();
        }
        self.is_given_out = true;
        mem::take(&mut self.line)
    }

    fn is_empty(&self) -> bool {
        self.line.is_empty() && self.below.trim_ascii_end().is_empty()
    }

    /// Adds the cursor's line and those below it. (Bars that were removed leave empty ones.)
    fn add_rest(&self, shown: &mut Vec<u8>) {
        shown.extend_from_slice(&self.line);
        let below = self.below.trim_ascii_end();
        if !below.is_empty() {
            shown.push(b'\n');
            shown.extend_from_slice(below);
        }
    }

    /// Gives out what stands there, where no more text comes.
    fn end(&mut self) -> Vec<u8> {
        let mut shown = Vec::new();
        mem::take(self).add_rest(&mut shown);
        shown
    }
}

/// How many lines up the cursor goes by the escape sequence at the end of a text, and where that begins (ECMA-48,
/// 8.3.22).
fn cursor_up(text: &[u8]) -> Option<(usize, usize)> {
    let number = text.strip_suffix(b"A")?;
    let start = number.iter().rposition(|byte| !byte.is_ascii_digit())?.checked_sub(1)?;
    let rows = std::str::from_utf8(number[start..].strip_prefix(b"\x1b[")?).ok()?;
    Some((rows.parse().unwrap_or(1), start))
}

/// Whether this is nothing but escape sequences that erase nothing, such as a reset of colours, or may become that with
/// what follows (ECMA-48, 5.4).
fn is_sequence(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some(sequence) = rest.strip_prefix(b"\x1b[") {
        let end = sequence.iter().position(|byte| !matches!(byte, 0x20..=0x3f)); // the byte that says what it does
        match end.map(|end| (sequence[end], &sequence[end + 1..])) {
            Some((b'J' | b'K', _)) => return false,
            Some((byte, behind)) if byte.is_ascii_alphabetic() => rest = behind,
            Some(_) => return false,
            None => return true,
        }
    }
    matches!(rest, b"" | b"\x1b")
}

/// Bytes as text: those that are not UTF-8 become escapes.
fn escaped(bytes: &[u8]) -> String {
    bytes.utf8_chunks().map(|chunk| format!("{}{}", chunk.valid(), chunk.invalid().escape_ascii())).collect()
}

/// How many bytes at the end begin a character that is not complete.
fn cut_character(bytes: &[u8]) -> usize {
    for count in 1..=bytes.len().min(3) {
        if let Err(error) = std::str::from_utf8(&bytes[bytes.len() - count..]) {
            if error.valid_up_to() == 0 && error.error_len().is_none() {
                return count;
            }
        }
    }
    0
}

/// `text` itself, or its two ends and between them how much is left out.
fn truncate_middle(text: &str, chars_max: usize) -> String {
    let chars = text.chars().count();
    if chars <= chars_max {
        text.to_owned()
    } else {
        join_ends(text, chars_max / 2, chars as u64)
    }
}

/// Two ends of `text`, which has `chars` characters, or had them before its middle was dropped.
fn join_ends(text: &str, end: usize, chars: u64) -> String {
    let left_out = grouped(chars.saturating_sub(2 * end as u64));
    format!("{} … {left_out} characters left out … {}", first_chars(text, end), last_chars(text, end))
}

fn first_chars(text: &str, count: usize) -> &str {
    match text.char_indices().nth(count) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

fn last_chars(text: &str, count: usize) -> &str {
    if count == 0 {
        return "";
    }
    match text.char_indices().rev().nth(count - 1) {
        Some((start, _)) => &text[start..],
        None => text,
    }
}

/// A number with commas between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}

impl Output {
    fn take(&mut self, stream: usize, bytes: &[u8], files: &mut OutputFiles) {
        let Some(last_byte) = bytes.last() else { return };
        if stream == RESULT && self.last != RESULT && self.ends_within_line {
            self.take(self.last, b"\n", files); // the result has lines of its own, in the file as in the answer
        }
        self.streams[stream].take(bytes);
        self.last = stream;
        self.ends_within_line = *last_byte != b'\n';
        match &mut self.spool {
            Some(spool) => spool.write(bytes, files),
            None => self.log.extend_from_slice(bytes),
        }
        if self.log.len() > HEAD_BYTES {
            self.spool(files);
        }
    }

    /// Whether its stderr has now, for the first time, what needs SPAWN_HINT.
    fn needs_hint(&mut self) -> bool {
        if self.has_hint {
            return false;
        }
        self.has_hint = is_spawn_error(&self.streams[STDERR].end(NOTE_CHARS_MAX));
        self.has_hint
    }

    fn chars(&self) -> u64 {
        self.streams.iter().map(|stream| stream.chars).sum()
    }

    fn shown_chars(&self) -> u64 {
        self.streams.iter().map(HeadAndTail::shown_chars).sum()
    }

    fn is_empty(&self) -> bool {
        self.streams.iter().all(HeadAndTail::is_empty) && self.notes.is_empty()
    }

    fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text);
        } else if self.notes.len() == NOTES_MAX {
            self.notes.push("further notes are left out".into());
        }
    }

    /// Takes out what is there, but for bytes at the ends of its streams that are no whole character yet.
    fn take_part(&mut self, files: &mut OutputFiles) -> Output {
        let mut part = mem::take(self);
        for stream in [STDOUT, STDERR] {
            let cut = part.streams[stream].split_cut_character();
            self.take(stream, &cut, files);
        }
        part
    }

    /// The file. It is made now if it was not before, and the log moves into it.
    fn spool(&mut self, files: &mut OutputFiles) -> &mut Spool {
        let log = mem::take(&mut self.log);
        self.spool.get_or_insert_with(|| {
            let mut spool = Spool::create(files);
            spool.write(&log, files);
            spool
        })
    }

    /// The last line that was printed, for progress, or what is more useful.
    fn last_line(&self) -> String {
        if self.has_hint {
            return SPAWN_HINT.to_owned();
        }
        let text = self.streams[self.last].end(4 * PROGRESS_MESSAGE_CHARS);
        let line = text.rsplit(['\n', '\r']).map(str::trim).find(|line| !line.is_empty());
        last_chars(line.unwrap_or_default(), PROGRESS_MESSAGE_CHARS).to_owned()
    }

    /// What there is to tell of a cell, beside its pictures.
    fn make_answer(&mut self, end: CellEnd, files: &mut OutputFiles) -> Answer {
        let [stdout, stderr, result] = self.streams.each_ref().map(HeadAndTail::text);
        let mut notes = mem::take(&mut self.notes);
        notes.extend(end.notes);
        if !self.has_hint && end.error.as_ref().is_some_and(|error| is_spawn_error(error)) {
            notes.push(SPAWN_HINT.to_owned());
        }
        let mut printed: Vec<_> = stdout.into_iter().chain(stderr).collect();
        let all = printed.iter().chain(&result).map(String::as_str).collect::<Vec<_>>().join("\n");
        let mut truncation = None;
        let shown = all.chars().count();
        if shown > TEXT_CHARS_MAX {
            // A stream that has lost its middle has kept more than HEAD_CHARS and TAIL_CHARS, so what was
            // dropped lies within what is cut out here. Bytes that are not UTF-8 count as their escapes.
            let left_out = self.shown_chars().max(shown as u64) - TEXT_CHARS_MAX as u64;
            let left_out = grouped(left_out);
            let chars = self.chars().max(shown as u64);
            let head = first_chars(&all, HEAD_CHARS);
            let tail = last_chars(&all, TAIL_CHARS);
            printed = vec![format!("{head}\n[mcp-py: … {left_out} characters left out …]\n{tail}\n")];
            let spool = self.spool(files);
            notes.extend(spool.trouble.take());
            truncation = Some(Truncation { chars, path: spool.path.clone() });
        }
        let shown = |note: &String| format!("[mcp-py: {}]", truncate_middle(note, NOTE_CHARS_MAX));
        let ahead = self.ahead.as_ref().map(shown);
        let notes = notes.iter().map(shown).collect();
        Answer { ahead, printed, truncation, notes, result, error: end.error, exit: end.exit }
    }

    /// What was printed and noted, as a note of a later answer, behind a title; None where there is nothing. With its
    /// file, where it is long or `has_file`.
    fn as_note(&mut self, title: &str, has_file: bool, files: &mut OutputFiles) -> Option<String> {
        let mut text = self.streams.iter().filter_map(HeadAndTail::text).collect::<Vec<_>>().join("\n");
        let chars = self.shown_chars().max(text.chars().count() as u64);
        let chars_max = NOTE_CHARS_MAX / 2;
        let is_long = chars > chars_max as u64;
        let mut lead = title.to_owned();
        if chars > 0 {
            lead += &format!(", {} chars", grouped(chars));
        }
        if is_long || (has_file && chars > 0) {
            lead += &format!(", {}", self.spool(files).where_it_is_whole());
        }
        if is_long {
            text = join_ends(&text, chars_max / 2, chars);
        }
        let mut parts = mem::take(&mut self.notes);
        if chars > 0 {
            parts.insert(0, text);
        }
        if parts.is_empty() {
            return None;
        }
        Some(format!("{lead}:\n{}\n", parts.join("\n")))
    }
}

impl Spool {
    fn create(files: &mut OutputFiles) -> Spool {
        let time = iso_time(SystemTime::now()).replace(['-', ':', 'Z'], "").replace('T', "_");
        match files.create(|count| format!("output_{time}_{count:03}.txt")) {
            Ok((path, file)) => Spool { path, file: Some(file), size: 0, trouble: None },
            Err(why) => {
                let trouble = Some(format!("none could be made: {why}"));
                Spool { path: "no file".into(), file: None, size: 0, trouble }
            }
        }
    }

    /// Words for a note: where the whole is, and what there is to say of that.
    fn where_it_is_whole(&mut self) -> String {
        let trouble = self.trouble.take().map_or(String::new(), |trouble| format!("; {trouble}"));
        format!("whole in {}{trouble}", self.path.display())
    }

    fn write(&mut self, bytes: &[u8], files: &mut OutputFiles) {
        let Some(file) = &mut self.file else { return };
        let room = (CELL_FILE_BYTES_MAX - self.size).min(bytes.len() as u64);
        self.size += room;
        if files.grow(&self.path, room) {
            self.trouble = Some("older output files were removed: a session keeps 4 GiB of them".into());
        }
        let trouble = match file.write_all(&bytes[..room as usize]) {
            Err(error) => format!("the file is not complete: {error}"),
            Ok(()) if room < bytes.len() as u64 => "the file holds the first 1 GiB only".into(),
            Ok(()) => return,
        };
        self.file = None;
        self.trouble = Some(trouble);
    }
}

/// The parts of an answer.
struct Answer {
    ahead: Option<String>, // a note
    printed: Vec<String>,  // stdout and stderr; where the answer is long, the two ends of these and of the result
    truncation: Option<Truncation>,
    notes: Vec<String>,
    result: Option<String>, // also where its ends are in `printed`: EventStream::end needs it
    error: Option<String>,
    exit: i32,
}

/// What was cut out of an answer.
struct Truncation {
    chars: u64, // of the whole
    path: PathBuf,
}

impl Truncation {
    fn notice(&self) -> String {
        let rule = "=".repeat(50);
        let size = grouped(self.chars);
        let path = self.path.display();
        format!("{rule}\n# OUTPUT TRUNCATED\n# Original size: {size} chars\n# Full output: {path}\n{rule}")
    }
}

impl Answer {
    fn is_error(&self) -> bool {
        self.exit != 0 || self.error.is_some()
    }

    fn text(self) -> String {
        let mut parts: Vec<_> = self.ahead.into_iter().chain(self.printed).collect();
        let result = if self.truncation.is_none() { self.result } else { None };
        parts.extend(self.truncation.map(|truncation| truncation.notice()));
        parts.extend(self.notes);
        parts.extend(result);
        parts.extend(self.error);
        parts.join("\n")
    }
}

/// What helps where multiprocessing starts new Pythons: by default on macOS, and on Linux since CPython 3.14. A Pool
/// then starts them over and over, and never returns.
const SPAWN_HINT: &str = if IS_MACOS {
    "multiprocessing starts a new Python here, which does not see what cells define: put the function into a module"
} else {
    "multiprocessing by spawn or forkserver starts a new Python, which does not see what cells define: \
     put the function into a module file, or use multiprocessing.get_context('fork')"
};

fn is_spawn_error(text: &str) -> bool {
    let signs = ["Can't get attribute", "module '__main__' has no attribute"]; // the second one since CPython 3.14
    says_one_of(text, &signs) && text.contains("__main__") && text.contains("multiprocessing")
}

/// The session's output files, in a directory of our own.
///
/// The directory is held by flock(2) for as long as we live: whoever gets the lock may remove it, for its server is
/// dead. A pid in its name would lie as soon as pids repeat, across reboots or containers that share /tmp.
#[derive(Default)]
struct OutputFiles {
    dir: Option<(PathBuf, File)>, // and its lock
    count: u32,
    kept: VecDeque<(PathBuf, u64)>, // with their sizes, oldest first
    history: History,
}

/// What was run in this session: cells in the percent format, which editors open as a notebook.
#[derive(Default)]
struct History {
    file: Option<(PathBuf, File)>,
    time: (u64, String),                // a second, and how it is written
    last: (String, String),             // the interpreter and the cell whose text was written last
    last_header: Option<(u64, String)>, // where that begins, and how
    has_failed: bool,
    trouble: Option<String>, // why, until that is said with the next cell
}

impl OutputFiles {
    /// The directory. It is made now if it is not there, or not there any more.
    fn open(&mut self) -> Result<PathBuf, String> {
        if let Some((path, held)) = &self.dir {
            if is_same_file(path, held) {
                return Ok(path.clone());
            }
        }
        let parent = temp_dir();
        let mut why: io::Error = ErrorKind::ResourceBusy.into();
        // Another server may take the directory for a dead one's before we hold it: then the next try.
        for attempt in 0..16u32 {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
            let unique = time ^ std::process::id().rotate_left(12) ^ attempt << 28;
            let path = parent.join(format!("{OUTPUT_DIR}{unique:08x}"));
            if let Err(error) = DirBuilder::new().mode(0o700).create(&path) {
                why = error;
                continue;
            }
            match hold_dir(&path) {
                Some(held) => {
                    self.dir = Some((path.clone(), held));
                    return Ok(path);
                }
                None => _ = fs::remove_dir(&path),
            }
        }
        Err(format!("no output directory in {}: {why}", parent.display()))
    }

    /// A new file; its name is made of its number.
    fn create(&mut self, name: impl FnOnce(u32) -> String) -> Result<(PathBuf, File), String> {
        let dir = self.open()?;
        self.count += 1;
        let path = dir.join(name(self.count));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(with_path(&path))?;
        self.kept.push_back((path.clone(), 0));
        Ok((path, file))
    }

    /// Counts bytes that are about to be written. Returns whether older files had to go for them.
    fn grow(&mut self, path: &Path, bytes: u64) -> bool {
        for (kept, size) in &mut self.kept {
            if kept == path {
                *size += bytes;
            }
        }
        let mut has_removed = false;
        while self.kept.iter().map(|(_, size)| size).sum::<u64>() > SESSION_FILE_BYTES_MAX {
            let oldest = self.kept.iter().position(|(kept, _)| kept != path);
            let Some((old, _)) = oldest.and_then(|oldest| self.kept.remove(oldest)) else { break };
            has_removed |= fs::remove_file(old).is_ok();
        }
        has_removed
    }

    fn remove(&mut self) {
        if let Some((path, _held)) = self.dir.take() {
            let _ = fs::remove_dir_all(path);
        }
    }

    /// Writes down a cell that starts, and by whom: `execute` or `client`.
    fn record_start(&mut self, cell: &str, interpreter: &str, whose: &str, code: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.history.time.0 != now {
            self.history.time = (now, iso_time(SystemTime::now()));
        }
        let time = &self.history.time.1;
        let header = format!("# %% {cell} · {interpreter} · {time} · {whose}\n");
        let code = code.trim_end_matches('\n');
        let is_there = self.history.file.as_ref().is_some_and(|(path, file)| is_same_file(path, file));
        if !is_there {
            self.history.file = None;
        }
        let at = self.record(&format!("{header}{code}\n"));
        self.history.last = (interpreter.to_owned(), cell.to_owned());
        self.history.last_header = at.map(|at| (at, header));
    }

    /// Writes down how a cell ended. It is named where another one's text has come between.
    fn record_end(&mut self, cell: &str, interpreter: &str, how: &str, was_compiled: bool) {
        let (last_interpreter, last_cell) = &self.history.last;
        if last_interpreter != interpreter || last_cell != cell {
            self.record(&format!("# {cell} of {interpreter} {how}\n\n"));
            return;
        }
        if !was_compiled {
            let _ = self.comment_out_last(); // what can't be written is said by `record`
        }
        self.record(&format!("# {how}\n\n"));
    }

    /// Turns the last cell, which was not run, into comments: an open quote of it would swallow the cells behind.
    /// Nothing changes where somebody has edited the file.
    fn comment_out_last(&mut self) -> io::Result<()> {
        let Some((path, file)) = &mut self.history.file else { return Ok(()) };
        let Some((at, header)) = &self.history.last_header else { return Ok(()) };
        let mut reader = File::open(path)?;
        reader.seek(SeekFrom::Start(*at))?;
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        let Some(code) = text.strip_prefix(header) else { return Ok(()) };
        let code = code.replace("\r\n", "\n").replace('\r', "\n"); // which end a line for Python as well
        let comments: String = code.lines().map(|line| format!("# {line}\n")).collect();
        file.set_len(*at)?;
        file.write_all(format!("{header}{comments}").as_bytes())
    }

    /// Appends to the history; returns where that begins. Where it fails cells go on, and it is said once (`trouble`).
    fn record(&mut self, text: &str) -> Option<u64> {
        let appended = self.append_to_history(text);
        if let Err(why) = &appended {
            if !mem::replace(&mut self.history.has_failed, true) {
                self.history.trouble = Some(why.clone());
            }
        }
        appended.ok()
    }

    fn append_to_history(&mut self, text: &str) -> Result<u64, String> {
        let open = match self.history.file.take() {
            Some(open) => open,
            None => self.open_history()?,
        };
        let (path, file) = self.history.file.insert(open);
        let at = file.metadata().map_err(with_path(&*path))?.len();
        ensure(at + text.len() as u64 <= HISTORY_BYTES_MAX, || "the history holds its first 64 MiB".into())?;
        file.write_all(text.as_bytes()).map_err(with_path(&*path))?;
        Ok(at)
    }

    /// session.py in the output directory, or a file of its own where MCP_PY_HISTORY says.
    fn open_history(&mut self) -> Result<(PathBuf, File), String> {
        let path = match HISTORY_DIR.given() {
            Some(dir) => {
                let dir = whole_path(Path::new(&dir), &env::current_dir().map_err(with_path("."))?, false);
                fs::create_dir_all(&dir).map_err(|error| {
                    format!("MCP_PY_HISTORY must be a folder that you can write to: {}: {error}", dir.display())
                })?;
                let time = iso_time(STARTED.1).replace([':', 'Z'], "");
                dir.join(format!("session_{time}_{}.py", std::process::id()))
            }
            None => self.open()?.join("session.py"),
        };
        let options = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let file = options.map_err(with_path(&path))?;
        Ok((path, file))
    }
}

/// TMPDIR, or /tmp where that does not exist.
fn temp_dir() -> PathBuf {
    let dir = env::temp_dir();
    if dir.exists() {
        dir
    } else {
        "/tmp".into()
    }
}

/// Whether a directory has the name of one of ours. That of a user may begin in the same way.
fn is_called_as_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let unique = name.strip_prefix(OUTPUT_DIR).unwrap_or_default();
    unique.len() == 8 && unique.chars().all(|c| c.is_ascii_hexdigit())
}

/// Opens and locks this directory. None where it is not ours, somebody holds it, or the name leads elsewhere by now.
fn hold_dir(path: &Path) -> Option<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let dir = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let is_ours = dir.metadata().ok()?.uid() == sys::user_id();
    if is_ours && sys::try_lock(&dir) && is_same_file(path, &dir) {
        Some(dir)
    } else {
        None
    }
}

fn is_same_file(path: &Path, open: &File) -> bool {
    let inode = |file: fs::Metadata| (file.dev(), file.ino());
    let named = fs::symlink_metadata(path).map(inode);
    named.is_ok_and(|named| open.metadata().map(inode).is_ok_and(|open| open == named))
}

/// Removes what servers of this user left that were killed: sockets and output directories.
fn remove_the_dead() -> Vec<Fact> {
    let mut removed = Vec::new();
    for path in sockets() {
        let Ok(socket) = fs::symlink_metadata(&path) else { continue };
        // A socket that was bound a moment ago may refuse only because nobody listens yet.
        let is_old = socket.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > SOCKET_AGE_MIN));
        let is_other = socket.is_file() || socket.is_dir();
        if socket.uid() == sys::user_id() && !is_other && is_old && is_dead(&path) {
            removed.push(remove(path.into()));
        }
    }
    for path in paths_in(temp_dir()).into_iter().filter(|path| is_called_as_ours(path)) {
        if let Some(_held) = hold_dir(&path) {
            removed.push(remove(path));
        }
    }
    removed
}

/// Removes a file, or a folder with all that is in it. Of links only the links go. What another process has removed
/// meanwhile is removed as well.
fn remove(path: PathBuf) -> Fact {
    match if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) } {
        Err(why) if why.kind() != ErrorKind::NotFound => ("not removed", Err(with_path(path)(why))),
        _ => ("removed", Ok(path.display().to_string())),
    }
}

// ── 9. The builtin's environment and packages ────────────────────────────────────────────────────────────────────────
//
// The builtin runs in a venv of its own, made once from the base Python. The base's packages are visible in it, and
// installs do not touch the base. When a cell imports a module that no finder finds, the worker asks where the project
// and its environments are, looks there, and may then ask for an install: uv or pip makes it. worker.py decides which
// modules are installed, and has the names of their packages.

/// `BASE -I -S -c ENVIRONMENT FOLDER BOOTSTRAP LC_CTYPE`: the base Python finds its environment in the folder, makes or
/// mends it if need be, and becomes the environment's Python by exec(3). That Python runs the bootstrap with two
/// arguments: the environment's path (empty where there is none: then the base itself goes on), and a note for the user
/// (empty for none). Nothing reads descriptor 0 before the bootstrap. Where all is well, nothing but `os` is imported,
/// and no `site`. With an empty bootstrap it only prints what the base is and where its environment is, a NUL between
/// them.
const ENVIRONMENT: &str = r#"
import os, sys
if sys.version_info < (3, 8):
    sys.exit('mcp-py needs Python 3.8 or newer, not ' + sys.version.split()[0])
try:
    from _sha256 import sha256  # hashlib would load OpenSSL
except ImportError:
    try:
        from _sha2 import sha256
    except ImportError:
        from hashlib import sha256
folder, bootstrap, lc_ctype = sys.argv[1:]
if not lc_ctype:
    os.environ.pop('LC_CTYPE', None)  # the server has none: this Python set it in the C locale (PEP 538)
base = sys.executable
real = os.path.realpath(base)
version = '%d.%d.%d' % sys.version_info[:3]

def has_settings(place):
    return os.path.exists(os.path.join(place, 'pyvenv.cfg'))

places = []  # of packages, where the base is a venv itself: only `site` knows them
if has_settings(os.path.dirname(base)) or has_settings(os.path.dirname(os.path.dirname(base))):
    import site
    site.main()
    if sys.prefix != sys.base_prefix:
        places = site.getsitepackages()
key = os.fsencode('\0'.join([real, sys.prefix, version] + places))
env = os.path.join(folder, 'env-%s-%s' % (version, sha256(key).hexdigest()[:16]))
python = os.path.join(env, 'bin', 'python')
marker = os.path.join(env, 'mcp-py')  # says that the environment is complete, and which Python it was made of

def is_good():
    if not (os.path.exists(marker) and has_settings(env) and os.access(python, os.X_OK)):
        return False
    with open(marker) as file:
        return os.path.realpath(python) == (file.read() or real)  # an early version left the marker empty

def make():
    import fcntl, shutil, site, venv
    os.makedirs(folder, 0o700, exist_ok=True)
    with open(os.path.join(folder, 'environments.lock'), 'a') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_good():
            return ''  # another server has made it
        was_complete = os.path.exists(marker)
        shutil.rmtree(env, ignore_errors=True)  # venv says what can't be removed
        # The link leads to the Python itself, not to a name that will be another Python's after an upgrade.
        sys._base_executable = os.path.realpath(sys._base_executable)
        venv.create(env, system_site_packages=sys.base_prefix in site.PREFIXES, symlinks=True)
        # A venv that is made from a venv does not see its packages.
        lib = os.path.join(env, 'lib', os.listdir(os.path.join(env, 'lib'))[0], 'site-packages')
        with open(os.path.join(lib, 'mcp_py_base.pth'), 'w') as file:
            file.writelines('import site; site.addsitedir(%a)\n' % place for place in places)
        with open(marker, 'w') as file:
            file.write(os.path.realpath(python))
    if was_complete:
        return "the builtin's environment was damaged: it was made anew, without what was installed there"
    return ''

# In the shell of a cell `pip` is the base's, run by this environment's Python; where the base has none, ensurepip's.
# What would have it install elsewhere is taken away. (pyenv's shim takes `-m pip` in its arguments, which this is one
# of, for a call of pip, and stays in front of Python.)
PIP = '''#!/bin/sh
python=${0%/*}/python
unset PIP_PREFIX PIP_PYTHON PIP_ROOT PIP_TARGET
export PIP_USER=0
"$python" -I -c 'import pip' 2>/dev/null || "$python" -I -m ensurepip --default-pip >&2
exec "$python" -I -mpip "$@"
'''

def add_pip():
    for name in ('pip', 'pip3'):
        path = os.path.join(env, 'bin', name)
        if not os.path.exists(path):  # an early version made none, and pip may have put its own there
            draft = '%s.%d' % (path, os.getpid())
            with open(draft, 'w') as file:
                file.write(PIP)
            os.chmod(draft, 0o755)
            os.rename(draft, path)

if not bootstrap:
    state = '' if is_good() else ' (will be made at the first start)'
    os.write(1, os.fsencode('Python %s, %s\0%s%s' % (version, real, env, state)))
    sys.exit()
try:
    if not folder:
        raise OSError('there is no home directory to make an environment in')
    note = '' if is_good() else make()
    for name in os.listdir(folder):
        try:
            if name.startswith('base-'):  # earlier versions remembered there what a base was
                os.remove(os.path.join(folder, name))
        except OSError:
            pass  # another server has removed it, perhaps
    try:
        add_pip()
    except OSError:
        pass  # the environment can't be written: all but `pip` works
    os.execv(python, [python, '-c', bootstrap, env, note])
except Exception as error:
    note = "missing packages can't be installed: no environment could be made: %s: %s; `mcp-py doctor` says more"
    note %= (type(error).__name__, error)
    os.execv(base, [base, '-c', bootstrap, '', note])
"#;

/// How installers say that there is no network.
const OFFLINE_SIGNS: [&str; 9] = [
    "dns error",
    "name resolution",
    "Name or service not known",
    "NewConnectionError",
    "Network is unreachable",
    "tcp connect error",
    "timed out",
    "Failed to resolve",
    "nodename nor servname provided",
];
/// How lines of pip begin that tell nothing of a build that failed; what tells stands above them.
const PIP_TALK: [&str; 7] = [
    "[end of output]",
    "note: This ",
    "hint: See above",
    "╰─> See above",
    "× ",
    "│ exit code",
    "error: subprocess-exited",
];
const NO_NETWORK: &str = "there is no network: ";
/// How Python, pyenv and asdf say that there is no pip, no uv.
const ABSENT_SIGNS: [&str; 3] = ["No module named pip", "uv: command not found", "No version is set for command uv"];

/// Settings that are taken away from installers: the first four would install elsewhere, with the others they say
/// nothing that can be read.
const REMOVED_SETTINGS: [&str; 8] = [
    "PIP_PYTHON",
    "UV_TARGET",
    "UV_PREFIX",
    "UV_SYSTEM_PYTHON",
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
    "PIP_QUIET",
    "UV_QUIET",
];
/// Nobody waits long for a network, unless somebody chose that. Without a retry pip would not print that there is no
/// network.
const DEFAULT_SETTINGS: [(&str, &str); 5] = [
    ("UV_HTTP_TIMEOUT", "5"),
    ("UV_HTTP_RETRIES", "0"),
    ("PIP_DEFAULT_TIMEOUT", "5"),
    ("PIP_RETRIES", "1"),
    ("RES_OPTIONS", "timeout:2 attempts:1"),
];
/// Prefixes of the settings that say where packages come from, per installer.
const PIP_SOURCES: [&str; 5] =
    ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"];
const UV_SOURCES: [&str; 7] =
    ["UV_INDEX", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX", "UV_FIND_LINKS", "UV_NO_INDEX", "UV_OFFLINE", "UV_CONFIG_FILE"];

/// Held for reading while a program runs (an installer, ps, lsof), so that `exit` can wait until all have ended (I11).
static PROGRAMS: RwLock<()> = RwLock::new(());
/// We are about to exit: ps and lsof are not wanted any more (`listing`).
static IS_EXITING: AtomicBool = AtomicBool::new(false);

/// A program that has ended by itself.
struct Finished {
    success: bool,
    output: String, // stdout and stderr
}

/// Runs a program in a group of its own until it closes its output, `limit` is over, or `is_wanted` says no.
/// `is_wanted` is given what was printed so far. An error where it could not be started, or did not end by itself.
fn run_program(mut command: Command, limit: Duration, is_wanted: impl Fn(&[u8]) -> bool) -> Result<Finished, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = with_path(&name);
    let (mut output, theirs) = UnixStream::pair().map_err(&failed)?;
    let errors = theirs.try_clone().map_err(&failed)?;
    command.stdin(Stdio::null()).stdout(OwnedFd::from(theirs)).stderr(OwnedFd::from(errors));
    sys::own_session(&mut command);
    let _running = PROGRAMS.read();
    let mut child = command.spawn().map_err(&failed)?;
    drop(command); // with our copies of its ends
    let end = Instant::now() + scaled(limit);
    let mut text = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    let mut is_open = true;
    while is_open && text.len() < SNAPSHOT_BYTES_MAX && Instant::now() < end && is_wanted(&text) {
        let mut set = [sys::watch(output.as_raw_fd(), libc::POLLIN)];
        sys::poll(&mut set, end.min(Instant::now() + CANCEL_TICK));
        if set[0].revents != 0 {
            let count = output.read(&mut chunk).unwrap_or(0);
            text.extend_from_slice(&chunk[..count]);
            is_open = count != 0;
        }
    }
    sys::kill(-(child.id() as i32), libc::SIGKILL); // it has closed its output, is late, or is not wanted (I8)
    let status = child.wait().map_err(&failed)?;
    ensure(!is_open, || format!("{name} took longer than {:.0} s, or printed too much", limit.as_secs_f64()))?;
    Ok(Finished { success: status.success(), output: String::from_utf8_lossy(&text).into_owned() })
}

/// What a program prints; nothing where it is missing, takes longer than PROGRAM_LIMIT or prints too much.
fn output_of(program: impl AsRef<OsStr>, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    run_program(command, PROGRAM_LIMIT, |_| true).map(|finished| finished.output).unwrap_or_default()
}

/// The end of what a program printed, in one line.
fn last_lines(text: &str) -> String {
    let is_empty_talk = |line: &str| line.is_empty() || PIP_TALK.iter().any(|start| line.starts_with(start));
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !is_empty_talk(line)).collect();
    last_chars(&lines[lines.len().saturating_sub(3)..].join("; "), VALUE_SHOWN_CHARS * 5).to_owned()
}

fn says_one_of(text: &str, signs: &[&str]) -> bool {
    signs.iter().any(|sign| text.contains(sign))
}

/// Installs a package into the environment, by uv or else by the pip that the environment sees. Returns its name and
/// version, and those of what came with it. Another server's install is waited for.
fn install_package(environment: &Path, package: &str, wish: &Weak<()>) -> Result<String, String> {
    let is_wished = || wish.strong_count() > 0;
    let end = Instant::now() + INSTALL_LIMIT;
    let _held = lock(&environment.join("install.lock"), INSTALL_LIMIT, is_wished)?;
    // An installer that copies files already is let finish, unless the server exits: half a package would be found by
    // every later import.
    let is_wanted = |output: &[u8]| {
        let is_copying = says_one_of(&String::from_utf8_lossy(output), &["Installing collected packages", "Prepared "]);
        is_copying || is_wished()
    };
    let uv = find_program("uv");
    // pip comes first where only pip has been told an index.
    let pip_is_first = is_set(&PIP_SOURCES) && !is_set(&UV_SOURCES);
    for installer in if pip_is_first { [None, uv] } else { [uv, None] } {
        let command = installer_command(installer, environment, package);
        let finished = run_program(command, end.saturating_duration_since(Instant::now()), is_wanted)?;
        if finished.success {
            return Ok(what_was_installed(&finished.output, package));
        }
        if !says_one_of(&finished.output, &ABSENT_SIGNS) {
            let said = finished.output.lines().rfind(|line| says_one_of(line, &OFFLINE_SIGNS));
            return Err(match said {
                Some(line) => format!("{NO_NETWORK}{}", last_lines(line)),
                None => last_lines(&finished.output),
            });
        }
    }
    Err("there is neither uv nor pip: install uv, or pip for this Python (Debian: apt install python3-pip; without \
         root, os.system('pip --version') in a cell gets it from ensurepip, where Python has that)"
        .into())
}

/// Whether a setting is in our environment whose name starts with one of these.
fn is_set(starts: &[&str]) -> bool {
    env::vars_os().any(|(name, _)| starts.iter().any(|start| name.as_bytes().starts_with(start.as_bytes())))
}

/// The command of uv, or of pip where there is no `uv`.
fn installer_command(uv: Option<PathBuf>, environment: &Path, package: &str) -> Command {
    let python = environment.join("bin/python");
    let mut command = Command::new(uv.as_ref().unwrap_or(&python));
    if uv.is_some() {
        command.args(["pip", "install", "--python"]).arg(&python);
    } else {
        command.args(["-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]);
        // Against a pip.conf that installs elsewhere. `--target=` undoes one that is set there; an empty prefix would
        // be the working directory.
        command.args(["--target=", "--root=/", "--prefix"]).arg(environment);
    }
    for name in REMOVED_SETTINGS {
        command.env_remove(name);
    }
    for (name, value) in DEFAULT_SETTINGS {
        if env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    if env::current_dir().is_err() {
        command.current_dir(environment); // ours is deleted, and neither starts there
    }
    command.envs([("PIP_USER", "0"), ("PIP_DRY_RUN", "0")]).arg(package);
    command
}

/// uv says ` + name==version`, pip `Successfully installed name-version …`, each in its own spelling of the name.
fn what_was_installed(output: &str, package: &str) -> String {
    let package = package.split(['<', '[']).next().unwrap_or_default();
    let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '.'], "_");
    let mut installed = Vec::new();
    for line in output.lines().map(str::trim_start) {
        let Some(words) = line.strip_prefix("+ ").or(line.strip_prefix("Successfully installed ")) else { continue };
        for word in words.split(' ') {
            match word.split_once("==").or(word.rsplit_once('-')) {
                Some((name, version)) if plain(name) == plain(package) => {
                    installed.insert(0, format!("{package} {version}"));
                }
                Some((name, version)) => installed.push(format!("{name} {version}")),
                None => {}
            }
        }
    }
    if installed.is_empty() {
        package.to_owned()
    } else {
        installed.join(", ")
    }
}

impl Interpreter {
    /// Where a missing package is installed; None where none is.
    fn installs_into(&self) -> Option<&PathBuf> {
        let environment = self.worker()?.environment.as_ref()?;
        if is_yes(&AUTO_INSTALL.value()) {
            Some(environment)
        } else {
            None
        }
    }

    /// The worker misses a module: tells it where that may be, which the clerk knows, and what can be done.
    fn look_around(&self, number: u64) {
        let name = self.name.clone();
        let pid = self.worker().map(Worker::pid);
        let installs = self.installs_into().is_some();
        let look = move |surroundings: &Surroundings| {
            let project = &surroundings.project;
            let roots = environments(project).into_iter();
            let roots: Vec<_> = roots.map(|(name, root)| json!([name, root.to_string_lossy()])).collect();
            json!({
                "op": "looked", "number": number, "project": project.to_string_lossy(), "environments": roots,
                "uv": find_program("uv").is_some(), "installs": installs,
            })
        };
        let answer = move |server: &mut Server, looked: Value| {
            let worker = server.interpreters.get_mut(&name).and_then(Interpreter::worker_mut);
            if let Some(worker) = worker.filter(|worker| Some(worker.pid()) == pid) {
                worker.send(format!("{looked}\n").as_bytes());
            }
        };
        post(move |server| server.ask_clerk(None, look, answer));
    }

    /// The running cell imports what nobody finds: has a thread install it, unless there is a reason not to.
    fn install(&mut self, number: u64, module: String, package: String, front: &mut Frontend) {
        let Some(environment) = self.installs_into().cloned() else {
            return self.installed(number, Err("installs are off".into()), front);
            // as it was told (look_around)
        };
        let offline_for = front.offline_since.map(|at| at.elapsed());
        if let Some(since) = offline_for.filter(|since| *since < scaled(OFFLINE_MEMORY)) {
            let why = format!("{package} was not installed: {} s ago there was no network", since.as_secs());
            return self.installed(number, Err(why), front);
        }
        let name = self.name.clone();
        let what_for =
            if package.split('[').next() == Some(&*module) { String::new() } else { format!(" for {module}") };
        let Some(cell) = self.busy_with_mut() else { return };
        if let Some(reader) = front.reader_of_events(cell.reader()) {
            reader.send_note(&format!("installing {package}{what_for} …"));
        }
        let key = cell.key;
        let wish = cell.installer.insert(Arc::new(()));
        let wish = Arc::downgrade(wish);
        let work = move || {
            let outcome = match install_package(&environment, &package, &wish) {
                Ok(installed) => Ok(format!("installed {installed}{what_for}")),
                Err(why) => Err(format!("{package} could not be installed: {why}")),
            };
            post(move |server| server.installer_ended(&name, key, number, outcome));
        };
        if let Err(why) = start_thread("installer", work) {
            self.installed(number, Err(why), front);
        }
    }

    /// Tells the worker, and whoever waits for the cell. By the number the worker knows a stale answer, which it
    /// ignores.
    fn installed(&mut self, number: u64, outcome: Result<String, String>, front: &mut Frontend) {
        let done = outcome.is_ok();
        let (Ok(text) | Err(text)) = outcome;
        if !done && text.contains(NO_NETWORK) {
            front.offline_since = Some(Instant::now());
        }
        let Some(worker) = self.worker_mut() else { return };
        if let Some(cell) = worker.stage.cell_mut().filter(|cell| cell.interrupt.is_none()) {
            cell.note(text, front);
        }
        worker.send(format!("{}\n", json!({"op": "installed", "number": number, "done": done})).as_bytes());
    }

    /// The cell drew a picture or a page: it becomes a file, and a picture goes into the answer if it fits.
    fn take_picture(&mut self, kind: Kind, front: &mut Frontend) {
        let Some(worker) = self.worker_mut() else { return };
        let block = mem::take(&mut worker.partial_picture);
        let Some(cell) = worker.stage.cell_mut() else { return };
        if block.len() > PICTURE_BYTES_MAX || cell.figures >= FIGURES_MAX {
            let why = "figures of over 64 MiB, or over 100 in a cell, were dropped";
            if !mem::replace(&mut cell.has_dropped_figures, true) {
                cell.note(why.into(), front);
            }
            return;
        }
        let mut bytes = from_base64(block.as_bytes());
        let Some(sides) = kind.sides(&bytes) else { return }; // its class calls it a picture, and it is none
        if kind == Kind::Html && !bytes.windows(5).any(|five| five == b"<html") {
            bytes.splice(0..0, *b"<!DOCTYPE html>\n<meta charset=\"utf-8\">\n");
        }
        cell.figures += 1;
        let saved = front.files.create(|count| format!("figure_{count:03}.{}", kind.name()));
        let saved = saved.and_then(|(path, mut file)| {
            front.files.grow(&path, bytes.len() as u64);
            file.write_all(&bytes).map_err(with_path(&path))?;
            Ok(path.to_string_lossy().into_owned())
        });
        let mut not_shown = String::new();
        if kind.is_seen() {
            let pictures = &mut cell.output.pictures;
            let why = why_not_shown(pictures, sides, bytes.len(), block.len());
            let block = if why.is_none() { Some(block) } else { None };
            pictures.push(Picture { kind, path: saved.clone().ok(), block });
            not_shown = why.map_or(String::new(), |why| format!(", not shown ({why})"));
        }
        match (saved, front.reader_of_events(cell.reader())) {
            (Ok(path), Some(reader)) if kind.is_seen() => reader.send_event(json!({ "image": path })),
            (Ok(path), _) if kind == Kind::Html => cell.note(format!("HTML page saved: {path}"), front),
            (Ok(path), _) => cell.note(format!("figure saved{not_shown}: {path}"), front),
            (Err(why), _) => cell.note(format!("a figure could not be saved: {why}"), front),
        }
    }
}

/// Which limit keeps a picture out of an answer that has these already.
fn why_not_shown(pictures: &[Picture], sides: [u32; 2], bytes: usize, chars: usize) -> Option<&'static str> {
    let shown: Vec<usize> = pictures.iter().filter_map(|it| Some(it.block.as_ref()?.len())).collect();
    if bytes > IMAGE_BYTES_MAX {
        Some("over 4 MiB")
    } else if sides.iter().any(|side| *side > IMAGE_SIDE_MAX) {
        Some("over 8,000 pixels a side")
    } else if shown.len() >= IMAGES_MAX {
        Some("over 10 in an answer")
    } else if shown.iter().sum::<usize>() + chars > IMAGES_BYTES_MAX / 3 * 4 {
        Some("over 6 MiB in an answer")
    } else {
        None
    }
}

impl Server {
    fn installer_ended(&mut self, name: &str, key: u64, number: u64, outcome: Result<String, String>) {
        let Some(interpreter) = self.interpreters.get_mut(name) else { return };
        let cell = interpreter.busy_with();
        if cell.is_some_and(|cell| cell.key == key) {
            interpreter.installed(number, outcome, &mut self.front);
        }
    }
}

/// Width and height in pixels; None for what is no PNG. The header chunk comes first, with both, big-endian, at 16 and
/// 20 (PNG specification, 11.2.1).
fn png_sides(bytes: &[u8]) -> Option<[u32; 2]> {
    if !bytes.starts_with(b"\x89PNG") {
        return None;
    }
    let side = |at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes);
    Some([side(16), side(20)])
}

/// Height and width in pixels; None for what is no JPEG. They stand, big-endian, in the frame header, which is one of
/// the marker segments before the data (ITU T.81, B.1.1.4 and B.2.2).
fn jpeg_sides(bytes: &[u8]) -> Option<[u32; 2]> {
    let mut rest = bytes.strip_prefix(b"\xff\xd8")?;
    while let [0xff, marker, high, low, segment @ ..] = rest {
        let is_frame = (0xc0..=0xcf).contains(marker) && ![0xc4, 0xc8, 0xcc].contains(marker);
        if let (true, [_, a, b, c, d, ..]) = (is_frame, segment) {
            return Some([u16::from_be_bytes([*a, *b]).into(), u16::from_be_bytes([*c, *d]).into()]);
        }
        let length = usize::from(u16::from_be_bytes([*high, *low])); // with its own two bytes
        rest = rest.get(2 + length..).unwrap_or_default();
    }
    Some([0, 0]) // damaged: a host may still show it
}

/// RFC 4648, 4; what is not of its alphabet is passed over.
fn from_base64(text: &[u8]) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut values = [None; 256];
    for (digit, value) in digits.iter().zip(0u8..) {
        values[usize::from(*digit)] = Some(value);
    }
    let values: Vec<u8> = text.iter().filter_map(|digit| values[usize::from(*digit)]).collect();
    let mut bytes = Vec::with_capacity(values.len());
    for four in values.chunks(4) {
        let bits = four.iter().fold(0, |bits, value| bits << 6 | u32::from(*value)) << (6 * (4 - four.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    bytes
}

// ── 10. Saved and discovered interpreters ────────────────────────────────────────────────────────────────────────────
//
// `~/.claude-workspace/python_interpreter/interpreters.json` is the original's file, in its format:
// {"discover_jetbrains": true, "interpreters": {name: {python_path, cwd, env, startup_script, description}}}. What we
// do not know in it is kept. All here looks at files: it is for the clerk and for doctor, never for the loop (I2).

/// How to start an interpreter. What is None is left out; the builtin has nothing at all.
#[derive(Clone, Default, PartialEq)]
struct Config {
    python_path: Option<PathBuf>,
    cwd: Option<PathBuf>,
    env: Option<BTreeMap<String, String>>,
    startup_script: Option<String>,
    description: Option<String>,
}

impl Config {
    /// From an entry of the file, or from add_interpreter's arguments.
    fn from_json(entry: &Object) -> Config {
        let owned = |name: &str| text(entry, name).map(str::to_owned);
        let variables = entry.get("env").and_then(Value::as_object);
        let env = variables.map(|variables| {
            let strings = variables.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
            strings.collect()
        });
        Config {
            python_path: owned("python_path").map(PathBuf::from),
            cwd: owned("cwd").map(PathBuf::from),
            env,
            startup_script: owned("startup_script"),
            description: owned("description"),
        }
    }

    /// With absolute paths; they start at the project.
    fn with_whole_paths(mut self, project: &Path) -> Config {
        self.python_path = self.python_path.map(|path| whole_path(&path, project, true));
        self.cwd = self.cwd.map(|path| whole_path(&path, project, false));
        self
    }

    /// What is given counts, the rest stays.
    fn overlaid_with(self, given: Config) -> Config {
        Config {
            python_path: given.python_path.or(self.python_path),
            cwd: given.cwd.or(self.cwd),
            env: given.env.or(self.env),
            startup_script: given.startup_script.or(self.startup_script),
            description: given.description.or(self.description),
        }
    }

    /// Writes an entry of the file. The original reads one only where it has all five members, and `env` is an object.
    fn save_as(&self, name: &str, list: &mut Object) {
        let mut entry = match list.remove(name) {
            Some(Value::Object(entry)) => entry,
            _ => Object::new(),
        };
        let text = |path: &Option<PathBuf>| path.as_ref().map(shown);
        let members = json!({
            "python_path": text(&self.python_path), "cwd": text(&self.cwd), "env": self.env.clone().unwrap_or_default(),
            "startup_script": self.startup_script, "description": self.description,
        });
        entry.extend(members.as_object().cloned().unwrap_or_default());
        list.insert(name.to_owned(), entry.into());
    }
}

/// What can be started by its name alone.
struct Known {
    source: Source,
    config: Config,
    version: Option<String>, // of Python, where pyvenv.cfg tells
}

impl Known {
    fn new(source: Source, config: Config) -> Known {
        let version = config.python_path.as_deref().and_then(version_in_venv);
        Known { source, config, version }
    }
}

/// The builtin, the environments in the project, those that VIRTUAL_ENV and CONDA_PREFIX name, and the saved ones.
#[derive(Default)]
struct KnownInterpreters {
    by_name: BTreeMap<String, Known>,
    unreadable: Option<String>, // why the saved ones are missing
}

/// What the clerk does for a call that concerns an interpreter: it looks what is known, and makes given paths absolute.
fn look_up(action: Action, surroundings: &Surroundings) -> (Action, KnownInterpreters) {
    let action = match action {
        Action::Add { given, save } => Action::Add { given: given.with_whole_paths(&surroundings.project), save },
        other => other,
    };
    (action, known_interpreters(surroundings))
}

/// The environments in the project and those that are active: how they are called here, and their folders.
fn environments(project: &Path) -> Vec<(&'static str, PathBuf)> {
    let variable = |name: &str| env::var_os(name).unwrap_or_default();
    let places = [
        (".venv", OsString::from(".venv")),
        ("venv", OsString::from("venv")),
        ("virtualenv", variable("VIRTUAL_ENV")),
        ("conda", variable("CONDA_PREFIX")),
    ];
    let places = places.into_iter().filter(|(_, place)| !place.is_empty());
    let roots = places.map(|(name, place)| (name, project.join(place)));
    roots.filter(|(_, root)| root.join("bin/python").is_file()).collect()
}

/// Looks for what can be started by its name. Nothing is run for that.
fn known_interpreters(surroundings: &Surroundings) -> KnownInterpreters {
    let project = &surroundings.project;
    let mut known = KnownInterpreters::default();
    let builtin = Config { python_path: base_python().ok(), ..Config::default() };
    known.by_name.insert(BUILTIN.to_owned(), Known::new(Source::Builtin, builtin));
    for (name, root) in environments(project) {
        let config = Config { python_path: Some(root.join("bin/python")), ..Config::default() };
        known.by_name.insert(name.to_owned(), Known::new(Source::Discovered, config));
    }
    let saved = match load_saved() {
        Ok(saved) => saved.list,
        Err(why) => {
            known.unreadable = Some(why);
            return known;
        }
    };
    for (name, entry) in saved {
        let Value::Object(entry) = entry else { continue };
        let config = Config::from_json(&entry).with_whole_paths(project);
        if config.python_path.is_some() && name != BUILTIN {
            known.by_name.insert(name, Known::new(Source::Saved, config));
        }
    }
    known
}

/// The builtin's base: MCP_PY_PYTHON, else the first `python3` on PATH.
fn base_python() -> Result<PathBuf, String> {
    if let Some(path) = PYTHON.given() {
        let here = env::current_dir().unwrap_or_else(|_| "/".into());
        return Ok(whole_path(Path::new(&path), &here, true));
    }
    let missing = "there is no python3 on PATH: install Python 3.8 or newer, or name one in MCP_PY_PYTHON";
    find_program("python3").ok_or_else(|| missing.into())
}

/// The Python to start, if it and its working directory can be used. What else may be wrong, its start will tell.
fn check_config(config: &Config) -> Result<PathBuf, String> {
    let (python, setting) = match &config.python_path {
        Some(path) => (path.clone(), "python_path"),
        None => (base_python()?, "MCP_PY_PYTHON"),
    };
    let named = format!("{setting} {}", python.display());
    // A bare name that `whole_path` has found nowhere.
    ensure(python.is_absolute(), || format!("{named} is neither on PATH nor in the working directory"))?;
    let is_dir = || format!("{named} is a directory: try {}", python.join("bin/python").display());
    ensure(!python.is_dir(), is_dir)?;
    // A python_path that does not exist fails when it is started, in words of the system.
    ensure(config.python_path.is_some() || python.exists(), || format!("{named} does not exist"))?;
    if let Some(cwd) = &config.cwd {
        ensure(cwd.is_dir(), || format!("cwd {} is not a directory", cwd.display()))?;
    }
    Ok(python)
}

/// From pyvenv.cfg, without running anything.
fn version_in_venv(python: &Path) -> Option<String> {
    let file = python.parent()?.parent()?.join("pyvenv.cfg");
    let text = Some(file).filter(|file| file.is_file()).and_then(|file| read_limited(&file).ok())?;
    let text = String::from_utf8_lossy(&text);
    let mut settings = text.lines().filter_map(|line| line.split_once('='));
    let (_, version) = settings.find(|(key, _)| matches!(key.trim(), "version" | "version_info"))?;
    Some(version.trim().splitn(4, '.').take(3).collect::<Vec<_>>().join("."))
}

/// An absolute path: `~` is the home directory, a relative one starts at `dir`; a Python that is a bare name is looked
/// for on PATH first, and stays a bare name where it is nowhere.
fn whole_path(path: &Path, dir: &Path, is_python: bool) -> PathBuf {
    let is_bare = path.to_str().is_some_and(|text| !text.contains('/'));
    if is_python && is_bare {
        if let Some(found) = find_program(path) {
            return found;
        }
    }
    match (path.strip_prefix("~"), home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ if is_python && is_bare && !dir.join(path).exists() => path.into(),
        _ => dir.join(path),
    }
}

fn saved_dir() -> Result<PathBuf, String> {
    let home = home_dir().ok_or("there is no home directory to keep configurations in")?;
    Ok(home.join(".claude-workspace/python_interpreter"))
}

/// The folder by which servers and commands of one home know each other.
fn configuration() -> Option<String> {
    let dir = saved_dir().ok()?;
    Some(fs::canonicalize(&dir).unwrap_or(dir).display().to_string())
}

/// What is in interpreters.json.
struct SavedFile {
    list: Object, // the configurations by name
    rest: Object, // what else is in it
}

/// Reads the first SAVED_BYTES_MAX of a file. Nobody waits at a FIFO (I9).
fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    file.take(SAVED_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// No file is an empty list. A file that does not parse is an error, and is left alone.
fn load_saved() -> Result<SavedFile, String> {
    let path = saved_dir()?.join("interpreters.json");
    let unreadable = |why: &dyn std::fmt::Display| {
        format!("{} can't be read and is left as it is: {why}; correct it, or move it away", path.display())
    };
    let bytes = match read_limited(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => br#"{"discover_jetbrains": true}"#.into(),
        Err(error) => {
            let path = path.display();
            return Err(format!("{path} can't be read and is left as it is: {error}; HOME names its folder"));
        }
        Ok(bytes) if bytes.len() as u64 == SAVED_BYTES_MAX => return Err(unreadable(&"it has 8 MiB or more")),
        Ok(bytes) => bytes,
    };
    let mut rest: Object = serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
    match rest.remove("interpreters").unwrap_or_else(|| json!({})) {
        Value::Object(list) => Ok(SavedFile { list, rest }),
        _ => Err(unreadable(&"its \"interpreters\" is no object")),
    }
}

/// Changes the saved interpreters, under the lock that all servers share: read, change, write beside, sync, rename.
fn update_saved(change: impl FnOnce(&mut Object)) -> Result<(), String> {
    let path = saved_dir()?.join("interpreters.json");
    let _held = lock(&path.with_extension("lock"), LOCK_LIMIT, || true)?;
    let SavedFile { mut list, mut rest } = load_saved()?;
    change(&mut list);
    rest.insert("interpreters".into(), list.into());
    let path = fs::canonicalize(&path).unwrap_or(path); // where it is a link, its target is what is replaced
    let beside = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(format!("{:#}\n", Value::Object(rest)).as_bytes())?;
        sync(&file)?;
        fs::rename(&beside, &path)
    };
    write().map_err(with_path(&path))
}

/// Waits for a lock that all servers of this user share, up to `limit` and as long as it is wanted. It is held for as
/// long as the file is open.
fn lock(path: &Path, limit: Duration, is_wanted: impl Fn() -> bool) -> Result<File, String> {
    let dir = path.parent().unwrap_or(path);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(with_path(dir))?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(with_path(path))?;
    let end = Instant::now() + scaled(limit);
    while !sys::try_lock(&file) {
        let waits = Instant::now() < end && is_wanted();
        ensure(waits, || format!("{} is held by another process: try again", path.display()))?;
        thread::sleep(LOCK_RETRY);
    }
    Ok(file)
}

/// Flushes a file to the disk. Some network file systems do not support that on macOS (F_FULLFSYNC): there it is done
/// as far as it can be.
fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(()),
        synced => synced,
    }
}

#[allow(deprecated)] // until Rust 1.87, for its ways on Windows
fn home_dir() -> Option<PathBuf> {
    env::home_dir().filter(|home| home.is_absolute())
}

fn find_on_path(program: impl AsRef<Path>) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(&program)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.is_absolute() && fs::metadata(path).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
}

/// On PATH; on macOS also where a shell would find it, for the apps of the desktop pass a short PATH. Apple's stub of
/// python3 comes last, and only where it leads to a Python: else it opens a dialog.
fn find_program(program: impl AsRef<Path>) -> Option<PathBuf> {
    if !IS_MACOS {
        return find_on_path(program);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let home = home_dir().map(|home| home.join(".local/bin"));
    let others = ["/opt/homebrew/bin", "/usr/local/bin", "/bin", "/usr/bin", "/usr/sbin"].map(PathBuf::from);
    let dirs = env::split_paths(&path).chain(home).chain(others);
    let mut found: Vec<PathBuf> = dirs.map(|dir| dir.join(&program)).filter(|path| is_program(path)).collect();
    let stub = fs::canonicalize(APPLE_STUB).unwrap_or_default();
    let is_stub = |path: &PathBuf| resolves_to(path, &stub);
    found.sort_by_key(is_stub);
    found.into_iter().find(|path| !is_stub(path) || APPLE_PYTHONS.iter().any(|python| Path::new(python).exists()))
}

const APPLE_STUB: &str = "/usr/bin/python3";
const APPLE_PYTHONS: [&str; 2] = [
    "/Library/Developer/CommandLineTools/usr/bin/python3",
    "/Applications/Xcode.app/Contents/Developer/usr/bin/python3",
];

// ── 11. The bridge ───────────────────────────────────────────────────────────────────────────────────────────────────
//
// HTTP/1.1 on a Unix socket, one request per connection, served by the loop. The socket is bound under a name of its
// own, with our pid in it. The shared name, made of the host's pid, is a link to it, unless another live server of that
// host has it. The client looks there first.

/// Where we are reached.
struct Bridge {
    listener: UnixListener,
    own: PathBuf,
    shared: Option<PathBuf>, // the name made of the host's pid, perhaps another server's; None without a host
    inode: Option<(u64, u64)>, // of the socket, by which our names are known
}

/// A connection.
struct Peer {
    stream: UnixStream,
    input: Vec<u8>, // a request that is not complete; while draining, what is read and dropped
    out: Outbox,
    phase: Phase,
    until: Option<Instant>, // when it is dropped, unless it moves before
    is_head: bool,          // it asked by HEAD: its answer has no body
    is_stream: bool,        // it reads events; its cell waits where it is slow
    events: EventStream,
    call: Option<u64>, // is cancelled when it hangs up
}

#[derive(PartialEq)]
enum Phase {
    Reading,
    Serving,  // what it sends now is ignored
    Ending,   // the answer is complete: it is written, then our end is shut
    Draining, // what it still sends is read and dropped, for closing would cut off our answer
}

/// The answer of a streaming call: events, a JSON object per line.
#[derive(Default)]
struct EventStream {
    is_chunked: bool,      // for a peer that speaks HTTP/1.1
    has_begun: bool,       // its head is sent
    is_within_line: bool,  // stdout, as far as it was sent
    has_result: bool,      // a long result, which is sent as it comes
    partial: [Vec<u8>; 2], // of stdout and stderr, bytes of a character that is not complete
}

impl Bridge {
    /// Binds our own name, and the host's unless somebody lives there. For the clerk.
    fn bind(host: Option<i32>) -> Result<Bridge, String> {
        let own_pid = std::process::id();
        let name = |of: String| PathBuf::from(format!("{SOCKETS}{of}.sock"));
        let shared = host.map(|host| name(host.to_string()));
        let own = match host {
            Some(host) => name(format!("{host}-{own_pid}")),
            None => name(own_pid.to_string()),
        };
        if is_dead(&own) {
            let _ = fs::remove_file(&own); // of a process that had our pid
        }
        let listen = || {
            let listener = UnixListener::bind(&own)?;
            fs::set_permissions(&own, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = listen().map_err(|error: io::Error| {
            format!("no bridge at {}, so the client can't reach this server: {error}", own.display())
        })?;
        if let Some(shared) = &shared {
            if !claim(shared, &own) {
                log(&format!("{} is taken; this session's socket is {}", shared.display(), own.display()));
            }
        }
        let inode = inode(&own);
        Ok(Bridge { listener, own, shared, inode })
    }

    /// The name to reach us by.
    fn reached(&self) -> &Path {
        match &self.shared {
            Some(shared) if inode(shared) == self.inode => shared,
            _ => &self.own,
        }
    }
}

/// Links the host's name to our socket, after removing a dead server's link. Where two servers find that dead at once,
/// the later one may remove the link that the earlier one has just made; each is still found by its own name.
fn claim(shared: &Path, own: &Path) -> bool {
    if let Ok(there) = fs::symlink_metadata(shared) {
        let kind = there.file_type();
        let is_ours = there.uid() == sys::user_id() && (kind.is_socket() || kind.is_symlink());
        if is_ours && is_dead(shared) {
            let _ = fs::remove_file(shared);
        }
    }
    symlink(own, shared).is_ok()
}

/// Device and number of what a path names, links followed.
fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl Drop for Bridge {
    /// Removes our names, as far as they are ours.
    fn drop(&mut self) {
        for name in self.shared.iter().chain([&self.own]) {
            if inode(name) == self.inode {
                let _ = fs::remove_file(name);
            }
        }
    }
}

/// What a path asks for.
enum Endpoint {
    Health,
    Interrupt,
    Execute,
    Wait,
    Tool(&'static Tool),
}

impl Endpoint {
    fn of(head: &http::Head) -> Result<Endpoint, http::Refusal> {
        let http::Head { path, method, .. } = head;
        let endpoint = match path.as_str() {
            "/health" => Some(Endpoint::Health),
            "/interrupt" => Some(Endpoint::Interrupt),
            "/execute" => Some(Endpoint::Execute),
            "/wait" => Some(Endpoint::Wait),
            _ => path.strip_prefix("/tools/").and_then(find_tool).map(Endpoint::Tool),
        };
        match (endpoint, method.as_str()) {
            (None, _) => Err((
                "404 Not Found",
                format!("there is no {path} here, only /execute, /wait, /interrupt, /health and /tools/NAME"),
            )),
            (Some(Endpoint::Health), "GET" | "HEAD") => Ok(Endpoint::Health),
            (Some(Endpoint::Health), _) => {
                Err(("405 Method Not Allowed\r\nAllow: GET, HEAD", format!("{path} takes GET, not {method}")))
            }
            (Some(endpoint), "POST") => Ok(endpoint),
            (Some(_), _) => Err(("405 Method Not Allowed\r\nAllow: POST", format!("{path} takes POST, not {method}"))),
        }
    }
}

impl Server {
    fn accept(&mut self) {
        let Some(bridge) = &self.bridge else { return };
        let Ok((stream, _)) = bridge.listener.accept() else {
            return thread::sleep(ACCEPT_PAUSE); // there are no descriptors: not again at once
        };
        let is_ours = sys::peer(&stream).is_some_and(|(_, uid)| uid == sys::user_id());
        if !is_ours || stream.set_nonblocking(true).is_err() {
            return; // not a byte for others (I10)
        }
        let id = self.front.key();
        let is_full = self.front.peers.len() >= PEERS_MAX;
        let peer = Peer {
            stream,
            input: Vec::new(),
            out: Outbox::default(),
            phase: Phase::Reading,
            until: Some(Instant::now() + scaled(REQUEST_LIMIT)),
            is_head: false,
            is_stream: false,
            events: EventStream::default(),
            call: None,
        };
        self.front.peers.insert(id, peer);
        if is_full {
            self.front.refuse(id, "503 Service Unavailable", &format!("{PEERS_MAX} connections are open already"));
        }
    }

    /// Poll has something for a peer, or its time is over.
    fn on_peer_ready(&mut self, id: u64, ready: libc::c_short) {
        let Some(peer) = self.front.peers.get_mut(&id) else { return };
        let is_late = peer.until.is_some_and(|end| end <= Instant::now());
        let is_arriving = peer.phase == Phase::Reading;
        // A request that is late is refused by take_request, what else is late is dropped.
        let is_gone = (is_late && !is_arriving) || peer.on_ready(ready, &mut self.front.buffer).is_err();
        if is_gone {
            let call = self.front.peers.remove(&id).and_then(|peer| peer.call);
            if let Some(key) = call {
                self.cancel(key);
            }
        } else if is_arriving {
            if let Err((status, why)) = self.take_request(id, is_late) {
                self.front.refuse(id, status, &why);
            }
        }
    }

    /// Serves a request that is complete; an error is for the caller to answer.
    fn take_request(&mut self, id: u64, is_late: bool) -> Result<(), http::Refusal> {
        let Some(peer) = self.front.peers.get_mut(&id) else { return Ok(()) };
        peer.is_head = peer.input.starts_with(b"HEAD ");
        let too_late = ("408 Request Timeout", "the request did not arrive within 10 s".to_owned());
        let Some(head) = http::head(&peer.input) else {
            return if is_late { Err(too_late) } else { Ok(()) };
        };
        let head = head?;
        let endpoint = Endpoint::of(&head)?;
        let Some(body) = peer.input.get(head.size..head.size + head.length) else {
            if is_late {
                return Err(too_late);
            }
            if head.expects && peer.input.len() == head.size {
                peer.push(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            return Ok(());
        };
        let has_body = !body.is_empty() && head.method == "POST";
        let given = serde_json::from_slice::<Object>(if has_body { body } else { b"{}" });
        peer.phase = Phase::Serving;
        peer.input = Vec::new();
        peer.until = None;
        peer.events.is_chunked = !head.is_http_1_0;
        let given = given.map_err(|why| ("400 Bad Request", format!("the body is not a JSON object: {why}")))?;
        self.serve_peer(id, endpoint, given).map_err(|why| ("400 Bad Request", why))
    }

    /// Serves a request. An error says what is wrong with what was given.
    fn serve_peer(&mut self, peer: u64, endpoint: Endpoint, given: Object) -> Result<(), String> {
        match endpoint {
            Endpoint::Health => {
                let key = self.open_peer_call(peer, Form::Tool);
                self.ask_clerk(None, health, move |server, health| server.front.answer(key, health));
            }
            Endpoint::Interrupt => {
                let client = text(&given, "client").map(str::to_owned);
                let given = checked("list_vars", given, &["interpreter"])?; // a tool with the same argument
                self.interrupt_for_peer(peer, interpreter_in(&given), client);
            }
            Endpoint::Execute => {
                let form = form_of(&given)?;
                let argv =
                    serde_json::from_value::<Option<Vec<String>>>(given.get("argv").cloned().unwrap_or_default());
                let argv = argv.map_err(|why| format!("\"argv\": {why}"))?;
                let given = checked("execute", given, &["code", "interpreter", "timeout", "wait", "stdin"])?;
                let key = self.open_peer_call(peer, form);
                self.run_cell(key, &given, argv.unwrap_or_default());
            }
            Endpoint::Wait => {
                let form = form_of(&given)?;
                let given = checked("wait", given, &["interpreter", "seconds"])?;
                let key = self.open_peer_call(peer, form);
                self.wait(key, &given);
            }
            Endpoint::Tool(tool) => {
                let key = self.open_peer_call(peer, Form::Tool);
                self.run_tool(key, tool, &given);
            }
        }
        Ok(())
    }

    fn open_peer_call(&mut self, id: u64, form: Form) -> u64 {
        let is_stream = matches!(form, Form::Stream);
        let key = self.front.open_call(ReplyTo::Bridge { peer: id, form }, None);
        if let Some(peer) = self.front.peers.get_mut(&id) {
            peer.call = Some(key);
            peer.is_stream = is_stream;
        }
        key
    }

    /// With the pid of a client, only that one's cell.
    fn interrupt_for_peer(&mut self, peer: u64, name: String, client: Option<String>) {
        if let Some(interpreter) = self.interpreters.get_mut(&name) {
            let is_client = |peer: &&Peer| sys::peer(&peer.stream).map(|(pid, _)| pid.to_string()) == client;
            let call = self.front.peers.values().find(is_client).and_then(|peer| peer.call);
            let is_meant = client.is_none() || interpreter.running_mut().is_some_and(|cell| Some(cell.key) == call);
            let interrupted = is_meant && interpreter.interrupt_running();
            return self.front.respond(peer, "200 OK", &json!({ "interrupted": interrupted }));
        }
        self.ask_clerk(None, known_interpreters, move |server, known| {
            if known.by_name.contains_key(&name) {
                return server.front.respond(peer, "200 OK", &json!({"interrupted": false}));
            }
            let why = server.unknown_interpreter(&name, known);
            server.front.refuse(peer, "404 Not Found", &why);
        });
    }
}

/// The form of an answer that may be a stream; an error where what was given says neither.
fn form_of(given: &Object) -> Result<Form, String> {
    match given.get("stream") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(Form::Execute),
        Some(Value::Bool(true)) => Ok(Form::Stream),
        Some(other) => Err(format!("\"stream\" must be true or false, got {other}")),
    }
}

/// The members that an endpoint takes, checked as a tool's arguments; others are ignored.
fn checked(tool: &str, mut given: Object, members: &[&str]) -> Result<Object, String> {
    given.retain(|member, _| members.contains(&member.as_str()));
    if let Some(tool) = find_tool(tool) {
        tool.check(&given)?;
    }
    Ok(given)
}

fn health(surroundings: &Surroundings) -> Value {
    let Surroundings { host, project, .. } = surroundings;
    json!({"name": NAME, "version": VERSION, "pid": std::process::id(), "uptime": uptime(STARTED.0),
        "session_id": host.session_id(), "project_dir": project.to_string_lossy(), "host": host.name,
        "configuration": configuration()})
}

impl Peer {
    fn watch(&self) -> libc::pollfd {
        let events = match self.phase {
            Phase::Reading | Phase::Draining => libc::POLLIN,
            Phase::Serving | Phase::Ending => libc::POLLHUP, // which macOS reports only where it is asked for
        };
        self.out.watch(self.stream.as_raw_fd(), events)
    }

    /// Writes and reads what can be; an error where the peer has gone. One that only shut its sending half is still
    /// there.
    fn on_ready(&mut self, ready: libc::c_short, buffer: &mut [u8]) -> io::Result<()> {
        if ready & (libc::POLLHUP | libc::POLLERR) != 0 {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if self.out.flush(self.stream.as_raw_fd()) {
            self.until = self.takes_until();
        }
        if self.out.is_empty() && self.phase == Phase::Ending {
            self.stream.shutdown(std::net::Shutdown::Write)?;
            self.phase = Phase::Draining;
            self.until = Some(Instant::now() + PEER_DRAIN);
        }
        if ready & libc::POLLIN != 0 {
            let count = self.stream.read(buffer)?;
            self.input.extend_from_slice(&buffer[..count]);
            let is_too_much = self.phase == Phase::Draining && self.input.len() > PEER_DRAIN_BYTES;
            if count == 0 || is_too_much {
                return Err(ErrorKind::BrokenPipe.into());
            }
        }
        Ok(())
    }

    /// By when it has to take some of what waits. A reader of events may take its time, as `less` does.
    fn takes_until(&self) -> Option<Instant> {
        if self.out.is_empty() || self.is_stream {
            None
        } else {
            Some(Instant::now() + scaled(PEER_PATIENCE))
        }
    }

    /// Sends something; what the peer does not take waits for it. A failure drops the peer at the next tick.
    fn push(&mut self, bytes: &[u8]) {
        self.out.push(self.stream.as_raw_fd(), bytes);
        self.until = self.until.or(self.takes_until()); // the time runs from the first bytes that wait
        if self.on_ready(0, &mut []).is_err() {
            self.until = Some(Instant::now());
        }
    }
}

impl Frontend {
    fn refuse(&mut self, peer: u64, status: &str, why: &str) {
        self.respond(peer, status, &json!({ "detail": why }));
    }

    fn respond(&mut self, peer: u64, status: &str, body: &Value) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        let body = format!("{body}\n");
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        peer.phase = Phase::Ending;
        peer.call = None;
        peer.input = Vec::new();
        let body = if peer.is_head { "" } else { &body };
        peer.push(format!("{head}Connection: close\r\n\r\n{body}").as_bytes());
    }

    /// Whether this call is a stream whose reader is so far behind that its cell has to wait.
    fn is_far_behind(&self, key: Option<u64>) -> bool {
        let reader = self.peer_of_stream(key).and_then(|peer| self.peers.get(&peer));
        reader.is_some_and(|peer| peer.out.waiting.len() > STREAM_BYTES_AHEAD)
    }

    /// Where a call is answered by a stream, sends it what was kept for it. A short result is left for the last event.
    fn send_backlog(&mut self, key: Option<u64>, output: &mut Output) {
        if self.reader_of_events(key).is_none() {
            return;
        }
        let mut notes = mem::take(&mut output.notes);
        if output.streams.iter().any(|stream| stream.has_gap) {
            let whole = output.spool(&mut self.files).where_it_is_whole();
            notes.push(format!("the middle of its output is left out here, {whole}"));
        }
        let Some(reader) = self.reader_of_events(key) else { return };
        reader.begin_events();
        for stream in [STDOUT, STDERR] {
            reader.send_output(stream, &output.streams[stream].shown());
        }
        for note in notes {
            reader.send_note(&note);
        }
        let result = &output.streams[RESULT].shown();
        if result.len() > HEAD_BYTES {
            reader.send_result(&String::from_utf8_lossy(result));
        }
    }

    /// Who reads the stream by which a call is answered.
    fn reader_of_events(&mut self, key: Option<u64>) -> Option<&mut Peer> {
        let peer = self.peer_of_stream(key)?;
        self.peers.get_mut(&peer)
    }

    fn peer_of_stream(&self, key: Option<u64>) -> Option<u64> {
        match self.calls.get(&key?)?.reply_to {
            ReplyTo::Bridge { peer, form: Form::Stream } => Some(peer),
            _ => None,
        }
    }
}

/// The events of a stream.
impl Peer {
    /// Sends the head. Until then the request may still be refused with a status.
    fn begin_events(&mut self) {
        if mem::replace(&mut self.events.has_begun, true) {
            return;
        }
        let coding = if self.events.is_chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n";
        self.push(format!("{head}{coding}Connection: close\r\n\r\n").as_bytes());
    }

    /// Sends an event.
    fn send_event(&mut self, event: Value) {
        self.begin_events();
        let mut line = format!("{event}\n");
        if self.events.is_chunked {
            line = format!("{:x}\r\n{line}\r\n", line.len());
        }
        self.push(line.as_bytes());
    }

    fn send_note(&mut self, text: &str) {
        self.send_event(json!({ "note": format!("[mcp-py: {text}]") }));
    }

    fn send_text(&mut self, stream: usize, text: &str) {
        if !text.is_empty() {
            let name = if stream == STDERR { "stderr" } else { "stdout" };
            self.events.is_within_line =
                if stream == STDERR { self.events.is_within_line } else { !text.ends_with('\n') };
            self.send_event(json!({ name: text }));
        }
    }

    /// Sends on what the cell printed, but for bytes at the end that are no whole character yet.
    fn send_output(&mut self, stream: usize, bytes: &[u8]) {
        let mut all = mem::take(&mut self.events.partial[stream]);
        all.extend_from_slice(bytes);
        self.events.partial[stream] = all.split_off(all.len() - cut_character(&all));
        self.send_text(stream, &escaped(&all));
    }

    /// Sends a result, or a part of one, on lines of stdout.
    fn send_result(&mut self, text: &str) {
        let is_first = !mem::replace(&mut self.events.has_result, true);
        if is_first && self.events.is_within_line {
            self.send_text(STDOUT, "\n");
        }
        self.send_text(STDOUT, text);
    }

    /// Sends what there is left to tell. The last event has the error, else the result. A long result has gone out as
    /// output already, and the last event has none. Where there are both an error and a short result (a figure could
    /// not be drawn after the value was there), the result goes out as output here.
    fn end_events(&mut self, answer: Answer) {
        let is_error = answer.is_error();
        for stream in [STDOUT, STDERR] {
            let rest = mem::take(&mut self.events.partial[stream]); // of a character that never got complete
            self.send_text(stream, &escaped(&rest));
        }
        if let (true, false, Some(result)) = (is_error, self.events.has_result, &answer.result) {
            self.send_result(result);
        }
        let mut last = answer.error;
        if self.events.has_result {
            self.send_text(STDOUT, "\n");
        } else {
            last = last.or(answer.result);
        }
        for note in answer.ahead.into_iter().chain(answer.notes) {
            self.send_event(json!({ "note": note }));
        }
        let mut event = json!({"result": last.unwrap_or_default(), "is_error": is_error, "exit_code": answer.exit});
        if let Some(truncation) = answer.truncation {
            event["output_file"] = json!(shown(truncation.path));
            event["output_chars"] = json!(truncation.chars);
        }
        self.send_event(event);
        self.phase = Phase::Ending;
        self.call = None;
        self.push(if self.events.is_chunked { b"0\r\n\r\n" } else { b"" }); // which also moves the phase on
    }
}

// ── 12. The client ───────────────────────────────────────────────────────────────────────────────────────────────────

const CLIENT_USAGE: &str = "\
usage: mcp-py-client [options] [FILE [ARG…] | -c CODE [ARG…]]

Runs code in this session's Python. Without FILE and -c the code comes from
stdin; where that is a terminal, this is a console, whose blocks are cells of
the session. Options stand before FILE and its arguments.

  -i, --interpreter NAME    which one, \"builtin\" unless said
  -t, --timeout SECONDS     interrupt the cell after that; 0 = never
  --stdin                   with FILE or -c: the cell reads what is on stdin
  --detach                  start the cell and leave; it goes on by itself
  --full                    print all, and all that progress bars write (the
                            default where stdout is a file of its own)
  --socket PATH             the server's, instead of looking for the session

Instead of code:
  --wait                    follow the cell that goes on by itself
  --interrupt               interrupt what runs
  --reset [--restart]       delete all variables [by a new process]
  --list-vars [--details]   the names of the variables [with their types]
  --interpreters, --info    the Pythons, the session; as JSON
  --history                 what was run in this session
  --add NAME PYTHON [--save], --stop NAME [--remove]
  -h, --help, --version

Exit code: 0; 1 the cell raised; that of its exit(); 2 usage; 124 time-out;
125 no server, or a failure of ours; 130 interrupted; 137 its Python died.
Environment: MCP_PY_SOCKET stands for --socket, CLAUDE_CODE_SESSION_ID for the
session where none is found above this process.

  mcp-py-client -t 60 train.py --epochs 3
  mcp-py-client <<'PY'
  import sys
  print(sys.version)
  PY
";

/// The options: names; members of the request's body that the words behind the option fill; path of the request, empty
/// where the option is no action; the paths that it goes with, empty where these are all. With neither members nor a
/// path it is a flag. FILE is no option, but goes with others likewise. `help` and `version` are no paths: the client
/// answers itself.
#[rustfmt::skip] // a table
const OPTIONS: [[&str; 4]; 24] = [
    ["-i, --interpreter", "interpreter", "", "/execute /wait /interrupt /tools/reset /tools/list_vars"],
    ["-t, --timeout", "timeout", "", "/execute"],
    ["--stdin", "", "", "/execute"],
    ["--detach", "", "", "/execute"],
    ["--full", "", "", ""],
    ["--socket", "socket", "", ""],
    ["--client", "client", "", "/interrupt"], // by the console: the pid of the client whose cell is meant
    ["-c", "code", "/execute", ""],
    ["FILE", "", "/execute", ""],
    ["--wait", "", "/wait", ""],
    ["--interrupt", "", "/interrupt", ""],
    ["--reset", "", "/tools/reset", ""],
    ["--restart", "", "", "/tools/reset"],
    ["--list-vars", "", "/tools/list_vars", ""],
    ["--details", "", "", "/tools/list_vars"],
    ["--interpreters", "", "/tools/list_interpreters", ""],
    ["--info", "", "/tools/get_session_info", ""],
    ["--history", "", HISTORY, ""],
    ["--add", "name python_path", "/tools/add_interpreter", ""],
    ["--save", "", "", "/tools/add_interpreter"],
    ["--stop", "name", "/tools/stop_interpreter", ""],
    ["--remove", "", "", "/tools/stop_interpreter"],
    ["-h, --help", "", "help", ""],
    ["--version", "", "version", ""],
];

/// For --history: the answer names the file, which the client prints. Servers ignore what is behind the `?`.
const HISTORY: &str = "/tools/get_session_info?history";

/// What the command line asks for.
struct Order {
    path: &'static str, // of the bridge
    body: Object,       // of the request
    argv: Vec<String>,  // FILE and its arguments, or those of -c
    socket: Option<String>,
    is_full: bool, // every byte is printed
}

/// Why the client ends without an answer: a line for people, and the exit code. With 0 it is what they asked for.
struct ClientError {
    why: String,
    exit: i32,
}

fn failed(why: impl Into<String>) -> ClientError {
    ClientError { why: why.into(), exit: EXIT_FAILED }
}

fn wrong_usage(why: impl Into<String>) -> ClientError {
    ClientError { why: why.into(), exit: 2 }
}

fn client(words: &[OsString]) -> u8 {
    let ClientError { why, exit } = match read_order(words).and_then(|order| run_order(order, words)) {
        Ok(exit) => return exit as u8,
        Err(error) => error,
    };
    let _ = match exit {
        0 => write!(io::stdout(), "{why}"),
        _ => writeln!(io::stderr(), "mcp-py-client: {why}"),
    };
    exit as u8
}

fn read_order(words: &[OsString]) -> Result<Order, ClientError> {
    let mut order = read_words(words)?;
    if order.path == "/execute" {
        read_code(&mut order)?;
    }
    let body = &mut order.body;
    if let Some(text) = body.get("timeout").and_then(Value::as_str) {
        let seconds = text.parse().ok().filter(|seconds| SECONDS.contains(seconds));
        let seconds = seconds.ok_or_else(|| usage(format!("-t takes seconds, such as 300, not {text:?}")))?;
        body.insert("timeout".into(), json!(seconds));
    }
    if body.remove("detach").is_some() {
        body.insert("wait".into(), json!(0));
    }
    if matches!(order.path, "/execute" | "/wait") {
        body.insert("stream".into(), json!(true));
    }
    Ok(order)
}

/// What the words stand for; the values of options are not looked at yet. Options end at the first plain word: that is
/// FILE or, behind -c CODE, the first argument of the cell.
fn read_words(words: &[OsString]) -> Result<Order, ClientError> {
    let mut body = Object::new();
    let mut given = Vec::new();
    let mut argv = Vec::new();
    let mut words = words.iter().map(|word| utf8("argument", word.as_bytes().to_vec()));
    while let Some(word) = words.next().transpose()? {
        if word == "-" || !word.starts_with('-') {
            argv.push(word);
            break;
        }
        if word == "--" {
            break;
        }
        let (name, mut value) = split_option(&word);
        let option = find_option(name)?;
        let [_, members, path, _] = *option;
        match path {
            "help" => return Err(ClientError { why: CLIENT_USAGE.into(), exit: 0 }),
            "version" => return Err(ClientError { why: version_line(), exit: 0 }),
            _ => given.push((name.to_owned(), option)),
        }
        for member in members.split_whitespace() {
            let next = value.take().map(|value| Ok(value.to_owned())).or_else(|| words.next());
            let needs = || usage(format!("{name} needs its {}", members.replace(' ', " and ")));
            body.insert(member.into(), next.ok_or_else(needs)??.into());
        }
        if value.is_some() {
            return Err(usage(format!("{name} takes no value")));
        }
        if members.is_empty() && path.is_empty() {
            body.insert(name[2..].into(), json!(true));
        }
    }
    for word in words {
        argv.push(word?);
    }
    if let (false, Some(file)) = (body.contains_key("code"), argv.first()) {
        given.push((file.clone(), find_option("FILE")?));
    }
    let path = path_of(&given)?;
    // These two are for the client itself; the rest of the body goes to the server.
    let is_full = body.remove("full").is_some();
    let socket = body.remove("socket").and_then(|path| path.as_str().map(str::to_owned));
    Ok(Order { path, body, argv, socket, is_full })
}

/// An option, and the value that is written in one word with it: `-t5`, `--timeout=5`.
fn split_option(word: &str) -> (&str, Option<&str>) {
    if word.starts_with("--") {
        return word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    }
    let name = first_chars(word, 2);
    let value = &word[name.len()..];
    (name, if value.is_empty() { None } else { Some(value) })
}

fn find_option(name: &str) -> Result<&'static [&'static str; 4], ClientError> {
    if let Some(option) = OPTIONS.iter().find(|[names, ..]| names.split(", ").any(|one| one == name)) {
        return Ok(option);
    }
    // A typo leaves the beginning and the end of a word as they were.
    let likeness = |known: &&str| {
        let at_start = known.bytes().zip(name.bytes()).take_while(|(one, other)| one == other).count();
        let at_end = known.bytes().rev().zip(name.bytes().rev()).take_while(|(one, other)| one == other).count();
        at_start + at_end
    };
    let nearest = OPTIONS.iter().flat_map(|[names, ..]| names.split(", ")).max_by_key(likeness);
    let hint = match nearest {
        Some(known) if likeness(&known) > 4 => format!("; did you mean {known}?"),
        _ => String::new(),
    };
    Err(usage(format!("unknown option {name}{hint}")))
}

/// The path of what is to be done, which is one thing; all options must go with it.
fn path_of(given: &[(String, &'static [&'static str; 4])]) -> Result<&'static str, ClientError> {
    let mut actions = given.iter().filter(|(_, [_, _, path, _])| !path.is_empty());
    let (action, path) = match actions.next() {
        Some((name, [_, _, path, _])) => (name.as_str(), *path),
        None => ("code from stdin", "/execute"),
    };
    let is_stray = |paths: &str| !paths.is_empty() && !paths.split(' ').any(|one| one == path);
    let stray = given.iter().find(|(_, [.., paths])| is_stray(paths));
    match (actions.next(), stray) {
        (Some((name, _)), _) => Err(usage(format!("{action} and {name} are two things to do: give one of them"))),
        (None, Some((name, [.., paths]))) => {
            let goes_with = |[_, _, path, _]: &&[&str; 4]| paths.split(' ').any(|one| one == *path);
            let names: Vec<&str> = OPTIONS.iter().filter(goes_with).map(|[names, ..]| *names).collect();
            Err(usage(format!("{name} goes with {}, not with {action}", names.join(" or "))))
        }
        (None, None) => Ok(path),
    }
}

fn usage(why: String) -> ClientError {
    wrong_usage(why + " (try --help)")
}

/// Puts the code into the body, with its arguments and what it reads from stdin. Where it is to be typed at a terminal,
/// the body has none.
fn read_code(order: &mut Order) -> Result<(), ClientError> {
    let Order { body, argv, .. } = order;
    let takes_stdin = body.remove("stdin").is_some();
    let file = argv.first_mut().filter(|file| *file != "-");
    let mut from = "-c".to_owned();
    if body.contains_key("code") {
        if !argv.is_empty() {
            argv.insert(0, from.clone());
        }
    } else if let Some(file) = file {
        from = file.clone();
        let failed = |error: io::Error| failed(format!("{from}: {error} (to run code itself, put it behind -c)"));
        body.insert("code".into(), utf8("code", fs::read(&from).map_err(failed)?)?.into());
        *file = std::path::absolute(&from).map_err(failed)?.display().to_string();
    } else if takes_stdin {
        return Err(usage("--stdin goes with FILE or -c: without these stdin is the code".into()));
    } else if io::stdin().is_terminal() {
        return Ok(()); // it will be typed
    } else {
        from = "stdin".into();
        body.insert("code".into(), read_stdin("code")?.into());
    }
    if text(body, "code").is_none_or(|code| code.trim().is_empty()) {
        return Err(usage(format!("no code: {from} is blank")));
    }
    if takes_stdin {
        body.insert("stdin".into(), read_stdin("stdin")?.into());
    }
    body.insert("argv".into(), json!(argv));
    Ok(())
}

/// Whether somebody keeps the output, as by `> FILE`. With `&> FILE` it may be an agent that reads it back.
fn stdout_is_a_file_of_its_own() -> bool {
    let stdout = Path::new("/dev/fd/1");
    stdout.is_file() && inode(stdout) != inode(Path::new("/dev/fd/2"))
}

fn read_stdin(what: &str) -> Result<String, ClientError> {
    let mut bytes = Vec::new();
    let read = io::stdin().take(REQUEST_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed(format!("stdin: {error}")))?;
    if bytes.len() > REQUEST_BYTES_MAX {
        return Err(wrong_usage("stdin has more than 16 MiB: put it in a file that the cell reads"));
    }
    utf8(what, bytes)
}

fn utf8(what: &str, bytes: Vec<u8>) -> Result<String, ClientError> {
    String::from_utf8(bytes).map_err(|error| wrong_usage(format!("the {what} is not UTF-8: {error}")))
}

/// Has the session's server do it, and prints the answer; returns the exit code. `words` are those of the order.
fn run_order(order: Order, words: &[OsString]) -> Result<i32, ClientError> {
    let given = SOCKET.given().and_then(|path| path.into_string().ok());
    let found = match (order.socket.filter(|path| !path.is_empty()), given) {
        (Some(path), _) => connect(&path),
        (None, Some(path)) => {
            connect(&path).map_err(|why| format!("MCP_PY_SOCKET {why} (unset it to use the session of this shell)"))
        }
        (None, None) => find_session(),
    };
    let Session { path, server, pid } = found.map_err(failed)?;
    let name = text(&order.body, "interpreter").unwrap_or(BUILTIN);
    let waits = matches!(order.path, "/execute" | "/wait" | "/tools/reset" | "/tools/list_vars");
    if waits && env::var("MCP_PY_INTERPRETER").is_ok_and(|own| own == format!("{pid}:{name}")) {
        let why = format!("this runs in a cell of {name:?}: it would wait for itself; name another with -i");
        return Err(failed(why));
    }
    if order.path == "/execute" && !order.body.contains_key("code") {
        return open_console(&server, &path, name, words);
    }
    let lines = request(&server, "POST", order.path, &Value::Object(order.body));
    // `| head` ends us, and our hang-up ends the cell. While the request was sent, EPIPE must not end us: the server
    // may have refused it early, and has said why.
    sys::default_sigpipe();
    let is_kept = order.is_full || stdout_is_a_file_of_its_own();
    let fold = |is_needed: bool| if is_needed { Some(Overwritten::default()) } else { None };
    let of_stdout = fold(!is_kept && !io::stdout().is_terminal());
    let of_stderr = fold(!order.is_full && !io::stderr().is_terminal());
    let mut printer = Printer { is_full: is_kept, folds: [of_stdout, of_stderr], ..Printer::default() };
    note_silence(&server, order.path);
    for line in lines {
        if order.path == HISTORY {
            return print_history(&line);
        }
        let printed = match Reply::from_json(&line) {
            Reply::Output(to, text) => printer.output(to, &text),
            Reply::Note(text) => printer.note(&text),
            Reply::Refused(why) => return Err(failed(why)),
            Reply::End(end) => {
                let exit = end.exit;
                printer.end(end).map_err(unprintable)?;
                return Ok(exit);
            }
        };
        printed.map_err(unprintable)?;
    }
    printer.end(End::default()).map_err(unprintable)?; // what was held back
    Err(failed("the connection ended before the answer was complete: the server is gone, with all variables"))
}

/// Says so where the answer of a tool takes long: the server sends no notes ahead of it.
fn note_silence(server: &UnixStream, path: &str) {
    let until = Instant::now() + TURN_NOTED_AFTER;
    let is_brief = matches!(path, "/tools/reset" | "/tools/list_vars");
    if is_brief && !sys::poll(&mut [sys::watch(server.as_raw_fd(), libc::POLLIN)], until) {
        let note = "[mcp-py: waiting for its turn; --interpreters shows what runs, --interrupt stops it]\n";
        let _ = io::stderr().write_all(note.as_bytes());
    }
}

fn unprintable(error: io::Error) -> ClientError {
    failed(format!("the answer could not be printed: {error}"))
}

/// Prints what was run in the session, whose facts the server has told.
fn print_history(facts: &Value) -> Result<i32, ClientError> {
    if facts["isError"] == true {
        return Err(failed(facts["content"][0]["text"].as_str().unwrap_or_default()));
    }
    let Some(path) = facts["structuredContent"]["history_path"].as_str() else {
        return Err(failed(
            "there is no history: nothing was run yet, or it can't be written (the server's stderr says why)",
        ));
    };
    let mut file = File::open(path).map_err(|error| failed(format!("{path}: {error}")))?;
    io::copy(&mut file, &mut io::stdout()).map_err(unprintable)?;
    Ok(0)
}

/// A line of the bridge's answer: an event of a stream, or all of another answer.
enum Reply {
    Output(usize, String), // to stdout or stderr
    Note(String),
    End(End),
    Refused(String),
}

/// The end of an answer.
#[derive(Default)]
struct End {
    text: String, // the result, or the error
    exit: i32,
    is_error: bool,
    truncation: Option<Truncation>, // where the output was long
}

impl Reply {
    fn from_json(line: &Value) -> Reply {
        let member = |name: &str| line[name].as_str().map(str::to_owned);
        for kind in ["stdout", "stderr", "note", "image", "detail"] {
            let Some(text) = member(kind) else { continue };
            return match kind {
                "stdout" => Reply::Output(STDOUT, text),
                "stderr" => Reply::Output(STDERR, text),
                "note" => Reply::Note(text),
                "image" => Reply::Note(format!("[mcp-py: figure saved: {text}]")),
                _ => Reply::Refused(text),
            };
        }
        let interrupted =
            line["interrupted"].as_bool().map(|was| if was { "an interrupt was sent" } else { "nothing was running" });
        let structure = &line["structuredContent"];
        let facts = structure.as_object().and_then(|facts| serde_json::to_string_pretty(facts).ok());
        let message = structure["message"].as_str().map(str::to_owned).or(facts);
        let words = line["content"][0]["text"].as_str().or(interrupted);
        let text = member("result").or(message).or(words.map(str::to_owned));
        let Some(mut text) = text else { return Reply::Note(String::new()) }; // an event of a newer server: ignored
        let is_error = line["is_error"] == true || line["isError"] == true;
        let exit = line["exit_code"].as_i64().unwrap_or(is_error.into()) as i32;
        if exit == EXIT_FAILED && !text.starts_with("SystemExit") {
            text.insert_str(0, "mcp-py-client: "); // a failure of our own, not a cell's exit(125)
        }
        let chars = line["output_chars"].as_u64().unwrap_or_default();
        let truncation = member("output_file").map(|path| Truncation { chars, path: path.into() });
        Reply::End(End { text, exit, is_error, truncation })
    }
}

/// Prints what comes. Of long output the first HEAD_CHARS are printed at once; of the rest the last TAIL_CHARS are
/// held back until the end, when it is known whether there is more.
#[derive(Default)]
struct Printer {
    is_full: bool,                   // nothing is cut
    folds: [Option<Overwritten>; 2], // of stdout, of stderr; None where all is printed as it comes
    is_within_line: [bool; 2],       // on stdout, on stderr
    printed: usize,                  // characters of output
    held: VecDeque<(usize, String)>, // with the stream of each piece
    left_out: [u64; 2],              // characters, of stdout, of stderr
    held_chars: usize,
}

impl Printer {
    /// Prints text as it is.
    fn print(&mut self, to: usize, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.is_within_line[to] = !text.ends_with('\n');
        if to == STDERR {
            return io::stderr().write_all(text.as_bytes());
        }
        let mut stdout = io::stdout();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Prints text on lines of its own.
    fn line(&mut self, to: usize, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let start = if self.is_within_line[to] { "\n" } else { "" };
        self.print(to, &format!("{start}{text}\n"))
    }

    /// Prints output, but for what may yet be written over.
    fn output(&mut self, to: usize, text: &str) -> io::Result<()> {
        let Some(fold) = &mut self.folds[to] else { return self.print_or_hold(to, text) };
        let mut shown = Vec::new();
        fold.take(text.as_bytes(), &mut shown);
        shown.extend(fold.take_open_line());
        self.print_or_hold(to, &String::from_utf8_lossy(&shown))
    }

    /// Prints what stands at the end of a stream's output.
    fn end_output(&mut self, to: usize) -> io::Result<()> {
        let rest = self.folds[to].as_mut().map(Overwritten::end).unwrap_or_default();
        self.print_or_hold(to, &String::from_utf8_lossy(&rest))
    }

    fn note(&mut self, text: &str) -> io::Result<()> {
        self.end_output(STDERR)?;
        self.line(STDERR, text)
    }

    fn print_or_hold(&mut self, to: usize, text: &str) -> io::Result<()> {
        if self.is_full {
            return self.print(to, text);
        }
        let head = first_chars(text, HEAD_CHARS - self.printed);
        self.printed += head.chars().count();
        self.print(to, head)?;
        let rest = &text[head.len()..];
        if !rest.is_empty() {
            if self.held.is_empty() && io::stderr().is_terminal() {
                let note = "the end of its output is shown when it ends; --full shows all as it comes";
                self.print(STDERR, &format!("\n[mcp-py: {note}]\n"))?;
            }
            self.held_chars += rest.chars().count();
            self.held.push_back((to, rest.to_owned()));
            self.keep_held(TAIL_CHARS + 8); // to spare: the server counts neither the last newlines nor those it adds
        }
        let has_printed = to == STDERR || !head.is_empty();
        if !has_printed && sys::poll(&mut [sys::watch(1, libc::POLLHUP)], Instant::now()) {
            return self.print(STDOUT, "\n"); // nobody reads any more: this ends us, by SIGPIPE
        }
        Ok(())
    }

    /// Drops the beginning of what is held back, but for the last `chars` characters.
    fn keep_held(&mut self, chars: usize) {
        while self.held_chars > chars {
            let Some((to, text)) = self.held.pop_front() else { return };
            let count = text.chars().count();
            let dropped = count.min(self.held_chars - chars);
            self.held_chars -= dropped;
            self.left_out[to] += dropped as u64;
            if dropped < count {
                self.held.push_front((to, last_chars(&text, count - dropped).to_owned()));
            }
        }
    }

    /// Prints what was held back, and the end of the answer.
    fn end(&mut self, end: End) -> io::Result<()> {
        for to in [STDOUT, STDERR] {
            self.end_output(to)?;
        }
        let is_result = !end.is_error && end.exit == 0;
        if is_result && !end.text.is_empty() {
            let start = if self.output_is_within_line() { "\n" } else { "" };
            self.print_or_hold(STDOUT, &format!("{start}{}\n", end.text))?;
        }
        let truncation = end.truncation.filter(|_| !self.is_full);
        if truncation.is_some() {
            self.keep_held(TAIL_CHARS);
        }
        for to in [STDOUT, STDERR] {
            if self.left_out[to] > 0 {
                self.line(to, &format!("[mcp-py: … {} characters left out …]", grouped(self.left_out[to])))?;
            }
        }
        for (to, text) in mem::take(&mut self.held) {
            self.print(to, &text)?;
        }
        if let Some(truncation) = truncation.filter(|_| self.left_out != [0, 0]) {
            self.line(STDERR, &truncation.notice())?;
        }
        if is_result {
            return Ok(());
        }
        self.line(STDERR, &end.text)
    }

    /// Whether the output to stdout, with what is held back of it, ended within a line.
    fn output_is_within_line(&self) -> bool {
        match self.held.iter().rev().find(|(to, _)| *to == STDOUT) {
            Some((_, text)) => !text.ends_with('\n'),
            None => self.is_within_line[STDOUT],
        }
    }
}

/// One request to the bridge, by HTTP/1.0, whose answers have no chunks: the JSON lines of its answer, as they come.
fn request<'a>(mut server: &'a UnixStream, method: &str, path: &str, body: &Value) -> impl Iterator<Item = Value> + 'a {
    let body = body.to_string();
    let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    // Where this fails, there may be an early answer that says why.
    let _ = server.write_all(head.as_bytes()).and_then(|()| server.write_all(body.as_bytes()));
    let lines = BufReader::new(server).lines().map_while(Result::ok).skip_while(|line| !line.is_empty()).skip(1);
    lines.map_while(|line| serde_json::from_str(&line).ok())
}

/// A server that was found.
struct Session {
    path: String, // of its socket
    server: UnixStream,
    pid: i32,
}

const FORBIDDEN: &str = ": a sandbox or another user may forbid it";

/// Connects to a socket of this user, whose server is this user's too (I10).
fn connect(path: &str) -> Result<Session, String> {
    let failed = |error: io::Error| {
        let hint = if error.kind() == ErrorKind::PermissionDenied { FORBIDDEN } else { "" };
        format!("{path}: {error}{hint}")
    };
    let own = sys::user_id();
    let check = |uid: u32| ensure(uid == own, || format!("{path} belongs to uid {uid}, you are {own}"));
    check(fs::symlink_metadata(path).map_err(failed)?.uid())?;
    let server = connect_to(path).map_err(failed)?;
    let (pid, uid) = sys::peer(&server).ok_or_else(|| format!("{path}: who listens there can't be told"))?;
    check(uid)?;
    Ok(Session { path: path.to_owned(), server, pid })
}

/// connect(2). macOS refuses where the backlog is full, too, which may be over in a moment.
fn connect_to(socket: impl AsRef<Path>) -> io::Result<UnixStream> {
    let mut tries_left = if IS_MACOS { 5 } else { 0 };
    loop {
        match UnixStream::connect(&socket) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && tries_left > 0 => {
                tries_left -= 1;
                thread::sleep(CONNECT_PAUSE);
            }
            connected => return connected,
        }
    }
}

/// Whether nobody listens at a socket, or a link leads to none.
fn is_dead(socket: impl AsRef<Path>) -> bool {
    let connected = connect_to(socket);
    connected.is_err_and(|error| matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound))
}

/// What looks like sockets of servers, anyone's.
fn sockets() -> BTreeSet<String> {
    let paths = paths_in("/tmp").into_iter().filter_map(|path| path.into_os_string().into_string().ok());
    paths.filter(|path| path.starts_with(SOCKETS) && path.ends_with(".sock")).collect()
}

/// The pid of the host that a socket's name tells.
fn host_of(socket: &str) -> Option<i32> {
    socket[SOCKETS.len()..].split(['-', '.']).next()?.parse().ok()
}

/// The server of this session: under the nearest ancestor that has one; else the one whose session_id is ours; else,
/// for a person at a terminal, that of the project in which they stand.
fn find_session() -> Result<Session, String> {
    let processes = processes();
    let above: Vec<i32> = ancestors(std::process::id() as i32, &processes).map(|(pid, _)| pid).collect();
    let distance = |path: &String| above.iter().position(|pid| Some(*pid) == host_of(path)).unwrap_or(above.len());
    let mut sockets: Vec<_> = sockets().into_iter().rev().collect(); // reversed: `…-P.sock`, then `…-P-*.sock`
    sockets.sort_by_key(distance);
    let mut refused = String::new();
    let mut advice = format!("a host starts one: `{REGISTER}` has Claude Code do so, from its next start on");
    let mut others = BTreeMap::new(); // by socket, for a server may have two names: that of its host comes first
    for path in sockets {
        let host = host_of(&path).filter(|host| above.contains(host));
        let session = match connect(&path) {
            Ok(session) => session,
            Err(why) => {
                if why.ends_with(FORBIDDEN) {
                    advice = format!("can't connect{FORBIDDEN}\nthe tool `execute` works there; see README, Security");
                }
                if host.is_some() || why.ends_with(FORBIDDEN) {
                    refused += &format!("  {}\n", why.trim_end_matches(FORBIDDEN));
                }
                continue;
            }
        };
        match host {
            Some(host) if ancestors(session.pid, &processes).any(|(above, _)| above == host) => return Ok(session),
            Some(host) => refused += &format!("  {path}: its process {} is not under {host}\n", session.pid),
            None => {}
        }
        others.entry(inode(path.as_ref())).or_insert(session);
    }
    let live = ask_who_they_are(others.into_values());
    let own_id = env::var("CLAUDE_CODE_SESSION_ID").ok().map(Value::from);
    if let Some((path, _)) = live.iter().find(|(_, health)| own_id.as_ref() == Some(&health["session_id"])) {
        return connect(path);
    }
    let around = sessions_around(&live);
    if let [(path, health)] = around[..] {
        let _ = writeln!(io::stderr(), "mcp-py-client: this is the session of {}", introduced(health));
        return connect(path);
    }
    if !live.is_empty() {
        advice = "yours are:".into();
    }
    for (path, health) in &live {
        advice += &format!("\n  {}: --socket {path}", introduced(health));
    }
    let is_one_of_many = "this project has more than one, and no program above the shell has started any";
    let why = if around.is_empty() { "no program above it has started a server" } else { is_one_of_many };
    Err(format!("no session for this shell: {why}\n{refused}{advice}"))
}

/// The servers of this user and this home, for people, by their projects. One that does not tell its configuration's
/// folder does not count. It is the Python original, which has no environment there, or an early mcp-py. That makes its
/// environment anew when it next starts a Python.
fn sessions_of_this_home() -> BTreeSet<String> {
    let own_names = sockets().into_iter().filter(|path| !Path::new(path).is_symlink()); // links are the hosts' names
    let mut live = ask_who_they_are(own_names.filter_map(|path| connect(&path).ok()));
    live.retain(|_, health| configuration().is_some_and(|own| health["configuration"] == own));
    live.values().map(introduced).collect()
}

/// A server for people.
fn introduced(health: &Value) -> String {
    let member = |name: &str| health[name].as_str().unwrap_or("?");
    let pid = &health["pid"];
    format!("{} ({}, server pid {pid}, up {})", member("project_dir"), member("host"), member("uptime"))
}

/// The sockets of the servers that say in time who they are, and what they say. All are asked at once.
fn ask_who_they_are(sessions: impl Iterator<Item = Session>) -> BTreeMap<String, Value> {
    let (sender, answers) = mpsc::channel();
    for Session { path, server, .. } in sessions {
        let _ = server.set_read_timeout(Some(HEALTH_LIMIT));
        let sender = sender.clone();
        let ask = move || {
            if let Some(health) = request(&server, "GET", "/health", &Value::Null).next() {
                let _ = sender.send((path, health));
            }
        };
        let _ = start_thread("asker", ask); // else that server stays unknown
    }
    drop(sender); // the last of them ends the answers
    let until = Instant::now() + HEALTH_LIMIT;
    let mut live = BTreeMap::new();
    while let Ok((path, health)) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
        live.insert(path, health);
    }
    live
}

/// Where stderr is a terminal: the sessions of the innermost project that holds the working directory.
fn sessions_around(live: &BTreeMap<String, Value>) -> Vec<(&String, &Value)> {
    let Ok(here) = env::current_dir() else { return Vec::new() };
    if !io::stderr().is_terminal() {
        return Vec::new();
    }
    let works_in = |health: &Value, dir: &Path| {
        let project = health["project_dir"].as_str().unwrap_or_default();
        fs::canonicalize(project).is_ok_and(|project| project == dir)
    };
    let in_dir = |dir| live.iter().filter(|(_, health)| works_in(health, dir)).collect::<Vec<_>>();
    here.ancestors().map(in_dir).find(|found| !found.is_empty()).unwrap_or_default()
}

/// Becomes a console at the terminal: the standard library's, run by the interpreter's own Python, which knows when a
/// block of its language is complete. Each block is run by a client with these words. Returns only where it can't.
fn open_console(server: &UnixStream, socket: &str, name: &str, words: &[OsString]) -> Result<i32, ClientError> {
    let _ = server.set_read_timeout(Some(HEALTH_LIMIT));
    let answer = request(server, "POST", "/tools/list_interpreters", &json!({})).next();
    let answer = answer.ok_or_else(|| failed(format!("{socket}: the server does not answer")))?;
    let mut entries = answer["structuredContent"]["result"].as_array().into_iter().flatten();
    let entry = entries.find(|entry| entry["name"] == name);
    let entry = entry.ok_or_else(|| failed(format!("there is no interpreter {name:?}; --interpreters shows them")))?;
    let python = entry["python_path"].as_str().unwrap_or("python3");
    let mut console = Command::new(python);
    // -I and -S: it runs nothing of the project, and nothing of site-packages.
    console.args(["-IS", "-W", "ignore", "-c", CONSOLE]).arg(own_path().unwrap_or_default());
    let error = console.args([socket, name]).args(words).exec();
    Err(failed(format!("{python}: {error}")))
}

/// It is given this program, the session's socket, the interpreter's name, and the words for the client of a block.
const CONSOLE: &str = r##"
import builtins, code, json, keyword, os, subprocess, sys
from signal import SIG_IGN, SIGINT, default_int_handler, signal
from subprocess import DEVNULL, PIPE
try:
    import readline
except ImportError:
    readline = None  # then without editing, history and completion

PROGRAM, SOCKET, NAME = sys.argv[1:4]
CLIENT = [PROGRAM, "client", "--socket", SOCKET]
WORDS = sys.argv[4:]
HISTORY = os.path.expanduser("~/.claude-workspace/python_interpreter/console_history")
ALLOW_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

class Console(code.InteractiveConsole):
    def runsource(self, source, *_, **__):
        """Runs a block that is complete; true where it is not. What can't be compiled is for the cell to tell."""
        if source.strip() in ("exit", "exit()", "quit", "quit()"):
            sys.exit()
        try:
            is_complete = self.compile(source, "<cell>", "single") is not None
        except Exception:
            is_complete = True
        if is_complete and source.strip():
            self.run_cell(source)
        return not is_complete

    def run_cell(self, source):
        """Runs it by a client. Ctrl-C interrupts the cell, and what it then gives is shown. Where the cell waits behind
        another one, or at a second Ctrl-C, the client is ended, and its cell with it."""
        signal(SIGINT, SIG_IGN)  # the client, too, is to leave Ctrl-C to us
        cell = subprocess.Popen(CLIENT + WORDS, stdin=PIPE)
        signal(SIGINT, default_int_handler)
        try:
            try:
                cell.communicate(source.encode("utf-8", "surrogateescape"))
            except KeyboardInterrupt:
                if call("-i", NAME, "--interrupt", "--client", str(cell.pid))[1] != "an interrupt was sent\n":
                    raise
                cell.communicate()
        except KeyboardInterrupt:
            cell.kill()
            raise
        finally:
            cell.wait()
        if cell.returncode == 125 and call("--info")[0] == 125:
            self.write("the session has ended\n")
            sys.exit(125)

    def complete(self, text, state):
        if state == 0:
            self.matches = [name for name in names() if name.startswith(text)] if text else ["    "]
        return self.matches[state] if state < len(self.matches) else None

def call(*options):
    """The exit code of the client with these, and what it says; None and nothing where it takes long."""
    try:
        done = subprocess.run(CLIENT + list(options), stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, timeout=1)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout.decode()

def names():
    """Those of the interpreter, unless it is busy, and Python's own. An answer begins with the notes that are new."""
    said = call("-i", NAME, "--list-vars")[1].splitlines()
    notes, listed = said[:-1], "".join(said[-1:]).split(", ")
    if notes:
        prompt = sys.ps2 if console.buffer else sys.ps1
        print("", *notes, prompt + readline.get_line_buffer(), sep="\n", end="", flush=True)
    known = set(filter(str.isidentifier, listed))
    return sorted(known.union(keyword.kwlist, dir(builtins)))

console = Console()
console.compile.compiler.flags |= ALLOW_AWAIT
os.umask(0o077)
if readline:
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    readline.parse_and_bind("set enable-bracketed-paste on")  # a pasted text is one block, empty lines and all
    readline.set_completer(console.complete)
    readline.set_history_length(1000)
    try:
        readline.read_history_file(HISTORY)
    except OSError:
        pass
project = json.loads(call("--info")[1] or "{}").get("project_dir", "?")
python = 'interpreter "%s" (Python %d.%d.%d)' % ((NAME,) + sys.version_info[:3])
try:
    console.interact("%s in the session of %s; Ctrl-D leaves, and ends nothing" % (python, project), "")
finally:
    try:
        readline and readline.write_history_file(HISTORY)
    except OSError:
        pass
"##;

// ── 13. Install, uninstall and doctor ────────────────────────────────────────────────────────────────────────────────

/// The files that `install` makes: the program, and links to it.
const NAMES: [&str; 3] = ["mcp-py", "mcp-py-server", "mcp-py-client"];

/// Copies this program to a folder (~/.local/bin where none is given), links its two names to it there, and tries both.
/// An older version may be running: its file is replaced by a rename. Returns what the user reads next, with what is
/// missing.
fn install(dir: Option<&OsString>) -> Result<String, String> {
    let dir = install_dir(dir)?;
    fs::create_dir_all(&dir).map_err(|why| format!("{}: {why} (--dir takes another folder)", dir.display()))?;
    let dir = fs::canonicalize(&dir).map_err(with_path(&dir))?;
    let own = own_path().map_err(with_path("the file of this program"))?;
    refuse_foreign_files(&dir, &own)?;
    let copy = dir.join(format!(".mcp-py.new-{}", std::process::id()));
    if let Err(why) = put_in_place(&own, &copy, &dir) {
        let _ = fs::remove_file(&copy);
        return Err(with_path(&dir)(why));
    }
    let tried = try_both_roles(&dir);
    tried.map_err(|why| format!("{}/mcp-py is installed, but its trial failed: {why}", dir.display()))?;
    Ok(next_steps(&dir) + &what_is_missing(&dir))
}

fn install_dir(given: Option<&OsString>) -> Result<PathBuf, String> {
    match given {
        Some(dir) => Ok(dir.into()),
        None => Ok(home_dir().ok_or("there is no home directory: give --dir")?.join(".local/bin")),
    }
}

/// Removes what `install` has made (in the given folder, else where this program is installed, else in ~/.local/bin),
/// and what servers and clients of this home have made; the saved interpreters only if `is_all`. A session that runs
/// would lose its environment: then nothing is removed.
fn uninstall(dir: Option<&OsString>, is_all: bool) -> Vec<Fact> {
    let sessions = sessions_of_this_home();
    if !sessions.is_empty() {
        let refusal = |session| ("running", Err(format!("{session}: end its host first; nothing was removed")));
        return sessions.into_iter().map(refusal).collect();
    }
    let folder = saved_dir().unwrap_or_default();
    if fs::metadata(&folder).is_ok_and(|folder| folder.uid() != sys::user_id()) {
        return vec![(
            "not removed",
            Err(format!("{}: it is another user's; run this as that user", folder.display())),
        )];
    }
    let own = own_path().unwrap_or_default();
    let dir = match own.parent() {
        Some(own_dir) if dir.is_none() && is_made_by_us(&own, false) => Some(own_dir.into()),
        _ => install_dir(dir).ok().map(|given| fs::canonicalize(&given).unwrap_or(given)),
    };
    // The program goes before its links, by which it is known: what is cut short can be run again.
    let programs = dir.iter().flat_map(|dir| NAMES.map(|name| dir.join(name)));
    let places = paths_in(&folder).into_iter().chain(programs);
    let places = places.filter(|path| fs::symlink_metadata(path).is_ok());
    let (made, others): (Vec<_>, Vec<_>) = places.partition(|path| is_made_by_us(path, is_all));
    let mut facts: Vec<Fact> = made.into_iter().map(remove).chain(remove_the_dead()).collect();
    for folder in folder.ancestors().take(2) {
        let _ = fs::remove_dir(folder); // which only an empty one lets happen
    }
    if facts.is_empty() {
        facts.push(("removed", Ok("nothing: there is nothing to remove".into())));
    }
    facts.extend(saved_dir().err().map(|why| ("not removed", Err(format!("what sessions have kept: {why}")))));
    for path in others {
        let is_saved = path.ends_with("interpreters.json");
        let what = if is_saved { "the saved interpreters (--all removes them, too)" } else { "mcp-py did not make it" };
        facts.push(("left", Ok(format!("{}: {what}", path.display()))));
    }
    facts.extend(LEFT_TO_DO.map(|what| ("left", Ok(what.into()))));
    facts
}

const LEFT_TO_DO: [&str; 3] = [
    "Claude Code's entry: `claude mcp remove --scope user python-interpreter` removes it",
    "the rules for it in .claude/settings.json: mcp__python-interpreter and Bash(mcp-py-client:*)",
    "what was run, if MCP_PY_HISTORY named a folder for that",
];

/// Whether a file is as `install` makes it, or as servers and clients make it beside the saved interpreters.
fn is_made_by_us(path: &Path, is_all: bool) -> bool {
    let Ok(file) = fs::symlink_metadata(path) else { return false };
    let dir = path.parent().unwrap_or(path);
    match path.file_name().and_then(OsStr::to_str).unwrap_or_default() {
        "mcp-py" => file.is_file() && NAMES.iter().any(|name| leads_to_program(&dir.join(name), dir)),
        "mcp-py-server" | "mcp-py-client" => leads_to_program(path, dir),
        "interpreters.json" => is_all && !file.is_dir(),
        "console_history" | "environments.lock" | "interpreters.lock" | "interpreters.new" => file.is_file(),
        name => file.is_dir() && (name == "cells" || name.starts_with("env-3.")),
    }
}

/// The file of this program, without links.
fn own_path() -> io::Result<PathBuf> {
    env::current_exe().and_then(fs::canonicalize)
}

/// A file that `install` did not make is reported and never overwritten. A program is ours where it is the one that
/// runs here, or where one of our links leads to it.
fn refuse_foreign_files(dir: &Path, own: &Path) -> Result<(), String> {
    for name in NAMES {
        let path = dir.join(name);
        let is_own = name == NAMES[0] && resolves_to(&path, own);
        let is_free = is_own || is_made_by_us(&path, false) || fs::symlink_metadata(&path).is_err();
        let advice =
            "remove it (if it is the Python package python-interpreter-mcp, by `uv tool uninstall`) and install again";
        ensure(is_free, || format!("{} exists, and mcp-py did not make it: {advice}", path.display()))?;
    }
    Ok(())
}

/// Whether a link leads to the `mcp-py` of this folder. That need not exist.
fn leads_to_program(link: &Path, dir: &Path) -> bool {
    let Ok(target) = fs::read_link(link) else { return false };
    let target = dir.join(target);
    let is_here = target.parent().is_some_and(|parent| resolves_to(parent, dir));
    is_here && target.file_name() == Some(OsStr::new("mcp-py"))
}

fn resolves_to(path: &Path, target: &Path) -> bool {
    fs::canonicalize(path).is_ok_and(|path| path == target)
}

/// The program comes last. An install that was cut short leaves links, by which the next install knows the folder as
/// its own.
fn put_in_place(own: &Path, copy: &Path, dir: &Path) -> io::Result<()> {
    fs::copy(own, copy)?;
    sync(&File::open(copy)?)?;
    for name in &NAMES[1..] {
        let link = dir.join(name);
        match symlink("mcp-py", &link) {
            Err(why) if !leads_to_program(&link, dir) => return Err(why),
            Err(_) | Ok(()) => {} // it leads to the program: made now or by another install
        }
    }
    fs::rename(copy, dir.join("mcp-py"))
}

fn next_steps(dir: &Path) -> String {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_on_path = env::split_paths(&path).any(|entry| resolves_to(&entry, dir));
    let server = quoted(&dir.join("mcp-py-server"));
    let dir = dir.display();
    let hint = format!("\n{dir} is not on PATH: export PATH=\"{dir}:$PATH\"\n");
    let hint = if is_on_path { "" } else { &hint };
    format!(
        "\
installed {dir}/mcp-py {VERSION}, and beside it mcp-py-server and mcp-py-client
tried it: x = 1 + 1 by MCP, then x by the client: 2
{hint}
next, for Claude Code:
  claude mcp add --scope user python-interpreter -- {server}
and so that neither the tools nor the client need approval, in .claude/settings.json:
  {{\"permissions\": {{\"allow\": [\"mcp__python-interpreter\", \"Bash(mcp-py-client:*)\"]}}}}
"
    )
}

/// What the doctor of the new program finds, but for what is good, and for PATH, of which `next_steps` has told.
fn what_is_missing(dir: &Path) -> String {
    let report = output_of(dir.join("mcp-py"), &["doctor"]);
    let is_missing = |line: &&str| !line.starts_with("ok") && !line.contains("is not on PATH");
    report.lines().filter(is_missing).map(|line| format!("\n{line}\n")).collect()
}

/// A path as a word for the shell.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    if path.chars().all(|c| c.is_alphanumeric() || "/._-+,:@%".contains(c)) {
        return path;
    }
    format!("'{}'", path.replace('\'', r"'\''"))
}

/// Computes 1 + 1 in a session of the new server, and reads the result out of that session with the new client.
fn try_both_roles(dir: &Path) -> io::Result<()> {
    let mut server = Command::new(dir.join("mcp-py-server")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let hello = json!({"protocolVersion": LEGACY[0], "capabilities": {}, "clientInfo": {}});
    ask_server(&mut server, "initialize", hello)?;
    let cell = json!({"name": "execute", "arguments": {"code": "x = 1 + 1; x", "wait": 60, "timeout": 60}});
    let answer = ask_server(&mut server, "tools/call", cell)?;
    expect_two("MCP", answer["result"]["content"][0]["text"].as_str().unwrap_or_default())?;
    let info = ask_server(&mut server, "tools/call", json!({"name": "get_session_info"}))?;
    let socket = info["result"]["structuredContent"]["socket_path"].as_str().unwrap_or_default();
    let client = Command::new(dir.join("mcp-py-client")).args(["--socket", socket, "-c", "x"]).output()?;
    server.wait()?; // which closes its stdin first
    expect_two("the client", &String::from_utf8_lossy(&[client.stderr, client.stdout].concat()))
}

/// Sends a request and reads the answer. No other request may be under way.
fn ask_server(server: &mut Child, method: &str, params: Value) -> io::Result<Value> {
    let stdin = server.stdin.as_mut().ok_or(ErrorKind::BrokenPipe)?;
    writeln!(stdin, "{}", json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))?;
    let stdout = server.stdout.as_mut().ok_or(ErrorKind::BrokenPipe)?;
    let mut answers = serde_json::Deserializer::from_reader(stdout).into_iter(); // reads no further than one value
    Ok(answers.next().ok_or(ErrorKind::UnexpectedEof)??)
}

/// Notes may stand before the result.
fn expect_two(role: &str, answer: &str) -> io::Result<()> {
    match answer.trim_end().lines().last() {
        Some("2") => Ok(()),
        _ => Err(io::Error::other(format!("{role} was to answer 2, and said {answer}"))),
    }
}

/// What was found of one thing, or what is wrong and what to do about it.
type Finding = Result<String, String>;

/// Of what a finding is, and the finding: a line of doctor or uninstall.
type Fact = (&'static str, Finding);

/// Prints facts, a line each; returns the exit code, which tells whether all that must be good is.
fn tell(facts: Vec<Fact>) -> ExitCode {
    let is_optional = |fact| matches!(fact, "installer" | "output" | "setting");
    let mut report = String::new();
    let mut is_good = true;
    for (fact, finding) in facts {
        report += &match finding {
            Ok(found) => format!("ok   {fact:<13} {}\n", found.trim_end()),
            Err(why) if is_optional(fact) => format!("WARN {fact:<13} {why}\n"),
            Err(why) => {
                is_good = false;
                format!("BAD  {fact:<13} {why}\n")
            }
        };
    }
    say(io::stdout(), &report, if is_good { 0 } else { 1 })
}

/// What this machine has of what we need.
fn doctor() -> Vec<Fact> {
    let own = own_path().unwrap_or_default();
    let base = check_config(&Config::default());
    let builtin = base.clone().and_then(|base| find_environment(&base));
    let builtin_python = builtin.as_ref().ok().map(|(_, environment)| Path::new(environment).join("bin/python"));
    let stale = sockets().iter().filter(|path| is_dead(path)).count();
    let processes = processes();
    let host = find_host(std::process::id() as i32, &processes);
    let host = host.pid.map(|pid| format!("{} ({pid})", host.name.as_deref().unwrap_or("?")));
    let session = find_session().map(|found| format!("server {} answers", found.pid));
    let session = session.unwrap_or("none above this shell".into());
    let mut facts = vec![
        ("version", Ok(format!("{VERSION}, {}", own.display()))),
        ("server", find_role("mcp-py-server", &own)),
        ("client", find_role("mcp-py-client", &own)),
        ("python", builtin.clone().map(|(python, _)| python)),
        (
            "environment",
            builtin
                .map(|(_, environment)| {
                    format!("{} MB in {environment}", size_of((&environment).into()).div_ceil(1_000_000))
                })
                .map_err(|_| "not looked for without a Python that works".into()),
        ),
        ("installer", find_installer([builtin_python, base.ok()])),
        ("ps", find_ps(&processes)),
        ("lsof", Ok(find_optional("lsof"))),
        ("host", Ok(host.unwrap_or("none".into()))),
        ("session", Ok(session)),
        ("stale", Ok(format!("sockets of dead servers, which the next server removes: {stale}"))),
        ("saved", load_saved().map(|saved| format!("saved interpreters: {}", saved.list.len()))),
        ("configuration", check_saved_dir()),
        ("output", check_writable(&env::temp_dir()).map_err(|why| why + " (TMPDIR names it; /tmp is used instead)")),
        ("sockets", check_writable(Path::new("/tmp"))),
    ];
    facts.extend(sessions_of_this_home().into_iter().map(|session| ("live", Ok(session))));
    facts.extend(check_settings().into_iter().map(|finding| ("setting", finding)));
    facts
}

/// The bytes of a file, or of all that is in a folder. Links are not followed.
fn size_of(path: PathBuf) -> u64 {
    match fs::symlink_metadata(&path) {
        Ok(file) if file.is_dir() => paths_in(path).into_iter().map(size_of).sum(),
        Ok(file) => file.len(),
        Err(_) => 0,
    }
}

fn find_role(name: &str, own: &Path) -> Finding {
    match find_on_path(name) {
        Some(path) if resolves_to(&path, own) => Ok(path.display().to_string()),
        Some(path) => Err(format!(
            "{} is another program, or another copy of mcp-py: remove it, or put the folder of this one before it on \
             PATH",
            path.display()
        )),
        None => Err(format!("{name} is not on PATH: run `mcp-py install`, and do what it says about PATH")),
    }
}

/// What the base Python is, and where its environment is.
fn find_environment(base: &Path) -> Result<(String, String), String> {
    let folder = saved_dir()?;
    let text = output_of(base, &["-I", "-S", "-c", ENVIRONMENT, &folder.to_string_lossy(), "", ""]);
    match text.split_once('\0') {
        Some((is, environment)) => Ok((format!("{} is {is}", base.display()), environment.to_owned())),
        None => Err(format!(
            "{} does not work as a Python: it printed {:?}; MCP_PY_PYTHON, else PATH, names it",
            base.display(),
            last_lines(&text)
        )),
    }
}

/// uv, else a pip of these Pythons.
fn find_installer(pythons: [Option<PathBuf>; 2]) -> Finding {
    if let Some(uv) = find_program("uv") {
        return Ok(uv.display().to_string());
    }
    if pythons.iter().all(Option::is_none) {
        return Err("there is no uv, and pip is not looked for without a Python that works".into());
    }
    let pip_of = |python| output_of(python, &["-I", "-m", "pip", "--version"]);
    if let Some(version) = pythons.into_iter().flatten().map(pip_of).find(|version| version.starts_with("pip ")) {
        return Ok(version);
    }
    Err("neither uv nor pip: a missing package can't be installed; install uv or python3-pip".into())
}

fn find_optional(program: &str) -> String {
    let none = if Path::new("/proc/self").exists() { "not needed: /proc is read instead" } else { "missing" };
    find_program(program).map_or(none.into(), |path| path.display().to_string())
}

fn find_ps(processes: &Processes) -> Finding {
    let why = "no process can be listed; does a sandbox forbid ps? The host is taken to be the parent process";
    ensure(!processes.is_empty(), || why.into())?;
    Ok(find_optional("ps"))
}

/// The folder is made when it is needed. Until then the nearest folder above it must be writable.
fn check_saved_dir() -> Finding {
    let dir = saved_dir()?;
    let existing = dir.ancestors().find(|place| place.exists()).unwrap_or(&dir);
    check_writable(existing).map_err(|why| why + " (HOME names it)")?;
    Ok(dir.display().to_string())
}

/// Makes a file in a folder, and removes it.
fn check_writable(dir: &Path) -> Finding {
    let file = dir.join(format!(".mcp-py-doctor-{}", std::process::id()));
    File::create_new(&file)
        .map_err(|error| format!("{} must be a folder that you can write to: {error}", dir.display()))?;
    let _ = fs::remove_file(&file);
    Ok(dir.display().to_string())
}

// ── 14. The host ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// What the server learns about the process that started it.
struct Surroundings {
    host: Host,
    project: PathBuf, // where the host works
    verified: bool,   // the host holds files of Claude's configuration open: a fact to report, never a gate
}

/// Who started us. Nothing is known where no process above us is listed.
#[derive(Default)]
struct Host {
    pid: Option<i32>,
    name: Option<String>,
    is_claude: bool,
}

/// A process, as ps shows it.
struct ProcessEntry {
    parent: i32,
    name: String, // the base name of its program
    is_claude: bool,
}

/// Processes by pid.
type Processes = BTreeMap<i32, ProcessEntry>;

/// What a process holds open.
#[derive(Default)]
struct OpenFiles {
    cwd: Option<PathBuf>, // None where it can't be told, or is no directory any more
    paths: Vec<PathBuf>,
}

/// The nearest ancestor that is Claude; else the nearest that is no mere launcher of servers (uv, npx). Where no
/// process can be listed it is the parent, without a name.
fn find_host(own: i32, processes: &Processes) -> Host {
    if let Some((pid, _)) = ancestors(own, processes).find(|(_, process)| process.is_claude) {
        // The process may be named after its version.
        return Host { pid: Some(pid), name: Some("claude".into()), is_claude: true };
    }
    let launchers = ["uv", "uvx", "npx", "npm"];
    // npm calls itself `npm exec NAME`, which macOS shows whole.
    let is_launcher =
        |process: &ProcessEntry| process.name.split(' ').next().is_some_and(|name| launchers.contains(&name));
    match ancestors(own, processes).find(|(_, process)| !is_launcher(process)) {
        Some((pid, process)) => Host { pid: Some(pid), name: Some(process.name.clone()), is_claude: false },
        None if processes.is_empty() => {
            Host { pid: Some(parent_id() as i32).filter(|pid| *pid > 1), ..Host::default() }
        }
        None => Host::default(),
    }
}

/// The processes above one, nearest first, without init and the kernel. At most 64: a snapshot may hold a loop (I9).
fn ancestors(of: i32, processes: &Processes) -> impl Iterator<Item = (i32, &ProcessEntry)> {
    std::iter::successors(parent_of(of, processes), |(pid, _)| parent_of(*pid, processes)).take(64)
}

fn parent_of(pid: i32, processes: &Processes) -> Option<(i32, &ProcessEntry)> {
    let parent = processes.get(&pid)?.parent;
    if parent <= 1 {
        return None;
    }
    Some((parent, processes.get(&parent)?))
}

/// All processes, from one `ps`. Where that is missing or makes no sense, they are read from /proc. An empty map
/// where neither works, as in a sandbox of macOS, which forbids ps.
fn processes() -> Processes {
    let columns = if IS_MACOS { "pid=,ppid=,comm=" } else { "pid=,ppid=,comm=,args=" };
    let text = listing("ps", &["-A", "-ww", "-o", columns]);
    let listed: Processes = text.lines().filter_map(|line| parse_process(line, IS_MACOS)).collect();
    if listed.contains_key(&(std::process::id() as i32)) {
        return listed;
    }
    paths_in("/proc").iter().filter_map(|folder| process_in(folder)).collect()
}

/// What `ps` or `lsof` prints.
fn listing(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(find_program(program).unwrap_or(program.into()));
    command.args(arguments);
    if IS_MACOS {
        command.env_remove("LC_ALL").env("LC_CTYPE", "UTF-8"); // else names that are not ASCII are escaped there
    }
    let is_wanted = |_: &[u8]| !IS_EXITING.load(Ordering::Relaxed);
    run_program(command, SNAPSHOT_LIMIT, is_wanted).map(|finished| finished.output).unwrap_or_default()
}

/// A line of ps: pid, parent, name, command line. On macOS the name is the rest of the line: the program as it was
/// called, a path perhaps, with spaces perhaps (`comm` of adv_cmds). That of a login shell begins with `-`.
///
/// Claude Code is called `claude`, or it is in a folder of its versions. On macOS `Claude` is the desktop app, so there
/// the case of the name counts.
fn parse_process(line: &str, is_macos: bool) -> Option<(i32, ProcessEntry)> {
    let (pid, rest) = line.trim().split_once(' ')?;
    let (parent, rest) = rest.trim_start().split_once(' ')?;
    let mut words = rest.split_ascii_whitespace();
    let (name, program) =
        if is_macos { (rest.trim(), rest) } else { (words.next()?, words.next().unwrap_or_default()) };
    let name = name.rsplit('/').next()?.trim_start_matches('-');
    let is_named_claude = if is_macos { name == "claude" } else { name.eq_ignore_ascii_case("claude") };
    let is_claude = is_named_claude || name == "claude.exe" || program.contains("/claude/versions/");
    Some((pid.parse().ok()?, ProcessEntry { parent: parent.parse().ok()?, name: name.to_owned(), is_claude }))
}

/// The same from a folder of /proc (proc(5)); None where it is not that of a process.
fn process_in(folder: &Path) -> Option<(i32, ProcessEntry)> {
    let status = text_in(folder, "status")?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let command = text_in(folder, "cmdline")?.replace('\0', " ");
    parse_process(&format!("{} {} {} {command}", field("Pid:")?, field("PPid:")?, field("Name:")?), false)
}

/// The processes of a group that are younger than something which began then, from one `ps`; where that makes no sense,
/// from /proc. Both tell ages in whole seconds, so what began up to a second before may be among them. The group's
/// leader is not, nor what frees shared memory for multiprocessing and joblib, which ends by itself.
fn younger_members(group: i32, since: Instant) -> Vec<i32> {
    let mut lines = listing("ps", &["-A", "-ww", "-o", "pid=,pgid=,etime=,args="]);
    let own = std::process::id().to_string();
    if !lines.split_ascii_whitespace().any(|word| word == own) {
        lines = paths_in("/proc").iter().filter_map(|folder| member_in(folder)).collect();
    }
    let age_max = since.elapsed().as_secs();
    let member = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let pid = words.next()?.parse().ok()?;
        let is_member = words.next()?.parse() == Ok(group) && pid != group;
        let is_young = age_in_seconds(words.next()?)? <= age_max;
        let is_tracker = line.contains("resource_tracker");
        if is_member && is_young && !is_tracker {
            Some(pid)
        } else {
            None
        }
    };
    lines.lines().filter_map(member).collect()
}

/// ps's etime: `[[days-]hours:]minutes:seconds` (POSIX, ps).
fn age_in_seconds(etime: &str) -> Option<u64> {
    let (days, time) = etime.split_once('-').unwrap_or(("0", etime));
    let mut seconds = 0;
    for part in time.split(':') {
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    Some(seconds + 86_400 * days.parse::<u64>().ok()?)
}

/// A line of pid, group, seconds and command, from a folder of /proc (proc(5)); None where it is not that of a process.
fn member_in(folder: &Path) -> Option<String> {
    const TICKS: f64 = 100.0; // a second, in what /proc shows
    let status = text_in(folder, "stat")?;
    let pid = folder.file_name()?.to_str()?;
    let fields: Vec<&str> = status.rsplit(')').next()?.split_ascii_whitespace().collect(); // behind the name
    let uptime = text_in(Path::new("/proc"), "uptime")?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let started = fields.get(19)?.parse::<f64>().ok()? / TICKS;
    let command = text_in(folder, "cmdline")?.replace(['\0', '\n'], " ");
    Some(format!("{pid} {} {} {command}\n", fields.get(2)?, (uptime - started).max(0.0) as u64))
}

fn text_in(folder: &Path, name: &str) -> Option<String> {
    let bytes = fs::read(folder.join(name)).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is in a folder; nothing where it can't be read.
fn paths_in(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

impl Surroundings {
    /// The project is what CLAUDE_PROJECT_DIR says, else where the host works, else where we do.
    fn of(host: Host) -> Surroundings {
        let open = host.pid.map(open_files).unwrap_or_default();
        let named = env::var_os("CLAUDE_PROJECT_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
        let project = named.or(open.cwd).or_else(|| env::current_dir().ok()).unwrap_or_else(|| "/".into());
        let places = [config_dir(), Some(project.join(".claude"))];
        let is_config = |file: &PathBuf| places.iter().flatten().any(|place| file.starts_with(place));
        let verified = open.paths.iter().any(is_config);
        Surroundings { host, project, verified }
    }
}

/// From one `lsof`. Where that is missing or makes no sense, /proc is read.
fn open_files(pid: i32) -> OpenFiles {
    let text = listing("lsof", &["-w", "-n", "-P", "-F", "fn", "-p", &pid.to_string()]);
    let mut listed = OpenFiles::default();
    // Each file has a line `fDESCRIPTOR`, then a line `nPATH`.
    for file in text.split("\nf") {
        match file.split_once("\nn") {
            Some(("cwd", path)) => listed.cwd = Some(PathBuf::from(path.trim_end())),
            Some((_, path)) => listed.paths.push(PathBuf::from(path.trim_end())),
            None => {}
        }
    }
    if listed.cwd.as_ref().is_some_and(|cwd| cwd.is_absolute() && cwd.is_dir()) {
        return listed;
    }
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = paths_in(folder.join("fd"));
    OpenFiles {
        cwd: fs::read_link(folder.join("cwd")).ok().filter(|cwd| cwd.is_dir()),
        paths: descriptors.iter().filter_map(|link| fs::read_link(link).ok()).collect(),
    }
}

impl Host {
    /// From sessions.json, else from what Claude put into our environment. It is read whenever it is asked for, so a
    /// hook may write it late.
    fn session_id(&self) -> Option<String> {
        let given = || env::var("CLAUDE_CODE_SESSION_ID").ok().filter(|id| !id.is_empty());
        self.listed_session().or_else(given)
    }

    /// The active session of this Claude, by sessions.json; None where there are several.
    fn listed_session(&self) -> Option<String> {
        let path = saved_dir().ok()?.with_file_name("sessions.json");
        let root: Value = serde_json::from_slice(&read_limited(&path).ok()?).ok()?;
        let mut ids = Vec::new();
        for session in root["sessions"].as_array()? {
            if self.is_claude && session["claude_pid"] == json!(self.pid) && session["state"] == "active" {
                ids.extend(session["session_id"].as_str());
            }
        }
        match ids[..] {
            [id] => Some(id.to_owned()),
            _ => None,
        }
    }
}

/// Where Claude keeps the transcript of a session, under its name for the project.
fn transcript_path(project: &Path, session_id: &str) -> Option<String> {
    let slug = project.to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    Some(format!("{}/projects/{slug}/{session_id}.jsonl", config_dir()?.display()))
}

/// Claude's configuration directory.
fn config_dir() -> Option<PathBuf> {
    match env::var_os("CLAUDE_CONFIG_DIR") {
        Some(dir) if !dir.is_empty() => Some(dir.into()),
        _ => Some(home_dir()?.join(".claude")),
    }
}

/// ISO 8601 in UTC, to the second. A time before 1970 is shown as its beginning.
fn iso_time(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let at = sys::utc(seconds);
    let year = at.tm_year + 1900;
    let month = at.tm_mon + 1;
    format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z", at.tm_mday, at.tm_hour, at.tm_min, at.tm_sec)
}

/// A time for people: `0.081 s`, `4.2 s`, `95 s`, `3 min 20 s`, `2 h 5 min`.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} s", time.as_millis() as f64 / 1_000.0),
        1..10 => format!("{} s", (time.as_secs_f64() * 10.0).floor() / 10.0),
        10..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}

/// The time since then in its largest unit, such as `1.5 min`.
fn uptime(since: Instant) -> String {
    let seconds = since.elapsed().as_secs_f64();
    let (length, unit) = match seconds {
        86_400.0.. => (86_400.0, "d"),
        3_600.0.. => (3_600.0, "h"),
        60.0.. => (60.0, "min"),
        _ => (1.0, "s"),
    };
    format!("{:.1} {unit}", seconds / length)
}

// ── 15. mod rpc, mod http, mod sys ───────────────────────────────────────────────────────────────────────────────────

/// JSON-RPC 2.0 as MCP uses it: lines and messages. No I/O.
mod rpc {
    use super::{json, Value, REQUEST_BYTES_MAX};

    pub const PARSE_ERROR: i64 = -32700;
    pub const INVALID_REQUEST: i64 = -32600;
    pub const METHOD_NOT_FOUND: i64 = -32601;
    pub const INVALID_PARAMS: i64 = -32602;
    pub const INTERNAL_ERROR: i64 = -32603;
    pub const UNSUPPORTED_VERSION: i64 = -32022; // MCP 2026-07-28

    pub enum Message {
        Request { id: Value, method: String, params: Value },
        Notification { method: String, params: Value },
        Ignored,                                                   // a blank line, or a response: we never ask
        BadNotification { why: String },                           // it gets no answer, as no notification does
        Batch { members: Vec<Value>, read: fn(Value) -> Message }, // an array; `read` tells what each of them is
        Invalid { id: Option<Value>, code: i64, why: String },
    }

    /// Calls `take` for each complete line, without its newline, and keeps the incomplete rest in `partial`. Of a line
    /// over REQUEST_BYTES_MAX it keeps one byte more than that, by which `parse` sees that it was too long.
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

    /// A line over REQUEST_BYTES_MAX is refused unread.
    pub fn parse(line: &[u8]) -> Message {
        if line.len() > REQUEST_BYTES_MAX {
            return invalid(None, &format!("the line is longer than {REQUEST_BYTES_MAX} bytes"));
        }
        if line.trim_ascii().is_empty() {
            return Message::Ignored;
        }
        match serde_json::from_slice(line) {
            Ok(Value::Array(members)) => Message::Batch { members, read: classify_member },
            Ok(value) => classify(value),
            Err(error) => refuse_line(line, format!("not JSON: {error}")),
        }
    }

    pub fn no_object() -> Message {
        let why =
            "a message must be a JSON object (or, in protocol version 2025-03-26, an array of 1 to 2,000 of them)";
        invalid(None, why)
    }

    fn classify_member(value: Value) -> Message {
        match classify(value) {
            Message::Request { id, method, .. } if method == "initialize" => {
                invalid(Some(id), "initialize must come by itself, not in an array")
            }
            message => message,
        }
    }

    fn classify(value: Value) -> Message {
        let Value::Object(mut members) = value else { return no_object() };
        let has_id = members.contains_key("id");
        let id = members.remove("id").filter(|id| id.is_string() || id.is_i64() || id.is_u64());
        if members.remove("jsonrpc") != Some(json!("2.0")) {
            return invalid(id, "\"jsonrpc\" must be \"2.0\"");
        }
        let params = members.remove("params").unwrap_or_default();
        match (members.remove("method"), id) {
            (Some(Value::String(method)), Some(id)) => Message::Request { id, method, params },
            (Some(Value::String(_)), None) if has_id => {
                invalid(None, "\"id\" must be a string or an integer of 64 bits")
            }
            (Some(Value::String(method)), None) => Message::Notification { method, params },
            (None, _) if members.contains_key("result") || members.contains_key("error") => Message::Ignored,
            (_, id) => invalid(id, "\"method\" must be a string"),
        }
    }

    fn invalid(id: Option<Value>, why: &str) -> Message {
        Message::Invalid { id, code: INVALID_REQUEST, why: why.into() }
    }

    /// serde_json refuses the escapes of lone surrogates, which JSON allows. The line is read once more with those
    /// replaced, to find out whether somebody waits for an answer, and by which id.
    fn refuse_line(line: &[u8], why: String) -> Message {
        match serde_json::from_slice(&replace_lone_surrogates(line)) {
            Ok(Value::Array(members)) => Message::Batch { members, read: refuse_surrogates },
            Ok(value) => refuse_surrogates(value),
            Err(_) => Message::Invalid { id: None, code: PARSE_ERROR, why },
        }
    }

    fn refuse_surrogates(value: Value) -> Message {
        let why = "a string holds the escape of a lone surrogate, which is no Unicode text";
        match classify(value) {
            Message::Request { id, .. } => invalid(Some(id), why),
            Message::Notification { .. } | Message::Ignored => Message::BadNotification { why: why.into() },
            refused => refused,
        }
    }

    /// The text with `\ufffd` for each escape of a lone surrogate. Two that make a pair are one character, and stay.
    pub fn replace_lone_surrogates(text: &[u8]) -> Vec<u8> {
        let mut clean = text.to_vec();
        let mut at = 0;
        while at < text.len() {
            let next = text.get(at + 6..).and_then(escaped_unit);
            match (escaped_unit(&text[at..]), next) {
                (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => at += 12,
                (Some(0xD800..=0xDFFF), _) => {
                    clean[at..at + 6].copy_from_slice(b"\\ufffd");
                    at += 6;
                }
                _ if text[at] == b'\\' => at += 2, // what is escaped may be a backslash
                _ => at += 1,
            }
        }
        clean
    }

    /// The UTF-16 code unit for which the text begins with an escape, as `\ud83d`.
    fn escaped_unit(text: &[u8]) -> Option<u32> {
        let digits = text.strip_prefix(b"\\u")?.get(..4)?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }

    pub fn response(id: &Value, result: Value) -> Vec<u8> {
        line(json!({"jsonrpc": "2.0", "id": id, "result": result}))
    }

    /// `data` is left out where it is null, `id` where the request has none that could be read.
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

    fn line(message: Value) -> Vec<u8> {
        format!("{message}\n").into_bytes()
    }
}

/// The head of an HTTP/1.1 request (RFC 9112), strictly: what is ambiguous is refused. No I/O.
mod http {
    use super::{HTTP_HEAD_BYTES_MAX, REQUEST_BYTES_MAX};

    pub struct Head {
        pub method: String,
        pub path: String,  // without scheme, authority and query
        pub size: usize,   // of the head, in bytes
        pub length: usize, // of the body, in bytes
        pub expects: bool, // 100 Continue
        pub is_http_1_0: bool,
    }

    /// Why a request is refused: status code and reason phrase, with header lines behind them if need be (`Allow`); and
    /// what is said to people.
    pub type Refusal = (&'static str, String);

    const BAD_REQUEST: &str = "400 Bad Request";

    /// The head of a request that begins with these bytes. None where they are no whole head, and may become one.
    pub fn head(bytes: &[u8]) -> Option<Result<Head, Refusal>> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let size = end.map_or(bytes.len(), |end| end + 4);
        let text = String::from_utf8_lossy(&bytes[..size.min(HTTP_HEAD_BYTES_MAX)]);
        // A head that is not complete may end in the CR of a CRLF.
        let whole_lines = text.strip_suffix('\r').unwrap_or(&text);
        if whole_lines.replace("\r\n", "").contains(['\r', '\n', '\0']) {
            return Some(refuse(BAD_REQUEST, "the head has a bare CR, a bare LF or a NUL"));
        }
        if size > HTTP_HEAD_BYTES_MAX {
            let why = format!("the head is longer than {HTTP_HEAD_BYTES_MAX} bytes");
            return Some(refuse("431 Request Header Fields Too Large", &why));
        }
        let lines = text.strip_suffix("\r\n\r\n")?;
        Some(parse(lines, size))
    }

    fn refuse<T>(status: &'static str, why: &str) -> Result<T, Refusal> {
        Err((status, why.into()))
    }

    /// A field's name has no white space (RFC 9112, 5): this refuses folded lines, and spaces before the colon.
    fn parse(lines: &str, size: usize) -> Result<Head, Refusal> {
        let (request_line, field_lines) = lines.split_once("\r\n").unwrap_or((lines, ""));
        let words: Vec<_> = request_line.split(' ').collect();
        let [method, target, version @ ("HTTP/1.1" | "HTTP/1.0")] = words[..] else {
            return refuse(BAD_REQUEST, "the request line is not METHOD TARGET HTTP/1.1");
        };
        let is_http_1_0 = version == "HTTP/1.0";
        let mut hosts = 0;
        let mut lengths = Vec::new(); // the values of Content-Length
        let mut is_chunked = false;
        let mut expects = false;
        let field_lines = field_lines.to_ascii_lowercase();
        for line in field_lines.lines() {
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return refuse(BAD_REQUEST, "a header line is not NAME: VALUE");
            }
            match (name, value.trim_matches([' ', '\t'])) {
                ("host", _) => hosts += 1,
                ("content-length", digits) => lengths.push(digits),
                ("transfer-encoding", "chunked") => is_chunked = true,
                ("transfer-encoding", _) => return refuse("501 Not Implemented", "the Transfer-Encoding is unknown"),
                ("expect", "100-continue") => expects = true,
                ("expect", _) => return refuse("417 Expectation Failed", "expect 100-continue only"),
                _ => {}
            }
        }
        // RFC 9112, 3.2
        if hosts > 1 || (hosts == 0 && !is_http_1_0) {
            return refuse(BAD_REQUEST, "there must be one Host");
        }
        if is_chunked || (method == "POST" && lengths.is_empty()) {
            return refuse("411 Length Required", "send a Content-Length, not chunks");
        }
        let length = body_length(&lengths)?;
        Ok(Head { method: method.into(), path: path_of(target).into(), size, length, expects, is_http_1_0 })
    }

    /// The size of the body in bytes (RFC 9112, 6.3).
    fn body_length(lengths: &[&str]) -> Result<usize, Refusal> {
        let digits = match lengths {
            [] => return Ok(0),
            [digits] if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => digits,
            _ => return refuse(BAD_REQUEST, "Content-Length is not one number"),
        };
        match digits.parse() {
            Ok(length @ ..=REQUEST_BYTES_MAX) => Ok(length),
            _ => refuse("413 Content Too Large", &format!("the body is longer than {REQUEST_BYTES_MAX} bytes")),
        }
    }

    /// The path of a target in origin form or absolute form (RFC 9112, 3.2).
    fn path_of(target: &str) -> &str {
        let target = target.split('?').next().unwrap_or_default();
        match target.split_once("://") {
            Some((_, rest)) if !target.starts_with('/') => rest.find('/').map_or("/", |at| &rest[at..]),
            _ => target,
        }
    }
}

/// What the standard library does not offer of POSIX. All `unsafe` of the program is here.
#[allow(unsafe_code)]
mod sys {
    use super::{io, AsRawFd, Command, ErrorKind, File, Instant, Ordering, UnixStream, DESCRIPTORS_MAX, IS_MACOS};
    use std::os::unix::process::CommandExt;

    /// Lets the signals that end us wake the loop, by a byte on its socket: where that is full, the loop is awake.
    /// SIGHUP stays ignored under nohup. SIGCHLD gets its default: were it ignored, as some hosts leave it, the kernel
    /// would reap our children.
    pub fn catch_signals() {
        extern "C" fn wake(signal: libc::c_int) {
            super::SIGNAL.store(signal, Ordering::Relaxed);
            if let Some(post) = super::POST.get() {
                // SAFETY: write(2) may be called in a handler (signal-safety(7)). It reads one byte, which outlives it.
                unsafe { libc::write(post.waker.as_raw_fd(), [0u8].as_ptr().cast(), 1) };
            }
        }
        // SAFETY: signal(3) takes SIG_DFL, SIG_IGN or a function of one int. This one loads a pointer and writes.
        unsafe {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                let before = libc::signal(signal, wake as *const () as usize);
                if before == libc::SIG_IGN && signal == libc::SIGHUP {
                    libc::signal(signal, libc::SIG_IGN);
                }
            }
        }
    }

    /// Makes the command's process the leader of a session, hence of a group, without a terminal. On Linux it is killed
    /// when the thread that spawns it ends (prctl(2), PR_SET_PDEATHSIG; I11). On macOS it marks all descriptors but 0
    /// to 2 close-on-exec: pipe, socketpair and accept can't do that in one step there, so it may have inherited one
    /// that another thread had just made.
    pub fn own_session(command: &mut Command) {
        let parent = std::process::id() as i32;
        // SAFETY: between fork(2) and exec this makes plain system calls only. It allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                let inherited = if IS_MACOS { 3..libc::getdtablesize().min(DESCRIPTORS_MAX) } else { 0..0 };
                for fd in inherited {
                    libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                }
                #[cfg(target_os = "linux")]
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() != parent {
                    return Err(ErrorKind::NotFound.into()); // we died before the prctl: nobody would kill it
                }
                Ok(())
            })
        };
    }

    /// Waits until a child of ours has exited; it stays unreaped (waitid(2), WNOWAIT; I8). No signal cuts this short,
    /// for signal(3) installs handlers with SA_RESTART.
    pub fn wait_for_exit(pid: i32) {
        // SAFETY: all-zero bytes are a valid siginfo_t, and waitid(2) writes no more than that.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, libc::WEXITED | libc::WNOWAIT);
        }
    }

    /// kill(2), of an unreaped child of ours or, by a negative pid, of the group that it leads (I8).
    pub fn kill(pid: i32, signal: i32) {
        // SAFETY: kill(2) takes two integers.
        unsafe { libc::kill(pid, signal) };
    }

    /// kill(2), of a process that is still in that group of ours.
    pub fn kill_member(pid: i32, group: i32, signal: i32) {
        // SAFETY: getpgid(2) and kill(2) take integers.
        unsafe {
            if libc::getpgid(pid) == group {
                libc::kill(pid, signal);
            }
        }
    }

    /// An entry for `poll`, a new one each time; -1 for no descriptor.
    pub fn watch(fd: i32, events: libc::c_short) -> libc::pollfd {
        libc::pollfd { fd, events, revents: 0 }
    }

    /// poll(2): waits until something is ready, or the time has come; false where nothing is.
    pub fn poll(set: &mut [libc::pollfd], until: Instant) -> bool {
        let time = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1_000).min(i32::MAX as u128);
        // SAFETY: the pointer and the length are those of one slice, of which poll(2) writes the `revents`.
        let ready = unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, time as i32) };
        if ready < 0 {
            std::thread::sleep(std::time::Duration::from_millis(10)); // ENOMEM, EINVAL; a signal can wait as long
        }
        ready > 0
    }

    /// Writes as much as the descriptor takes without blocking, and returns how many bytes that were; all of them where
    /// writing fails, for then nobody reads. O_NONBLOCK is not set on 0 to 2, which others share. There at most
    /// PIPE_BUF bytes are written at a time, which a pipe that polls writable takes without blocking (poll(2),
    /// pipe(7)).
    pub fn write_ready(fd: i32, bytes: &[u8]) -> usize {
        let now = Instant::now();
        let most = if fd > 2 { bytes.len() } else { libc::PIPE_BUF }; // our own sockets are non-blocking
        let mut written = 0;
        while written < bytes.len() && poll(&mut [watch(fd, libc::POLLOUT)], now) {
            let piece = &bytes[written..bytes.len().min(written + most)];
            // SAFETY: write(2) reads as many bytes as the slice has.
            match unsafe { libc::write(fd, piece.as_ptr().cast(), piece.len()) } {
                count @ 0.. => written += count as usize,
                _ if io::Error::last_os_error().kind() == ErrorKind::WouldBlock => break,
                _ => return bytes.len(),
            }
        }
        written
    }

    /// The bytes that can be read without blocking (FIONREAD).
    pub fn bytes_readable(fd: &File) -> usize {
        let mut count: libc::c_int = 0;
        // SAFETY: ioctl(2) writes one int for this request.
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD as _, &mut count) };
        count.max(0) as usize
    }

    /// Asks Linux for a larger pipe (fcntl(2), F_SETPIPE_SZ). It works without.
    pub fn widen_pipe(_fd: &impl AsRawFd, _bytes: usize) {
        // SAFETY: fcntl(2) takes integers for this command.
        #[cfg(target_os = "linux")]
        let _ = unsafe { libc::fcntl(_fd.as_raw_fd(), libc::F_SETPIPE_SZ, _bytes as libc::c_int) };
    }

    /// flock(2), exclusive, without waiting.
    pub fn try_lock(fd: &File) -> bool {
        // SAFETY: flock(2) takes two integers.
        unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
    }

    /// Lets SIGPIPE end us, as it ends programs that are not Rust's.
    pub fn default_sigpipe() {
        // SAFETY: signal(3) takes SIG_DFL, which is no function.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }

    /// getsockopt(2), of an option whose value is made of integers.
    fn option<T>(stream: &UnixStream, level: libc::c_int, name: libc::c_int) -> Option<T> {
        let mut size = size_of::<T>() as libc::socklen_t;
        // SAFETY: all-zero bytes are valid integers, of which getsockopt(2) writes at most `size` bytes.
        unsafe {
            let mut value: T = std::mem::zeroed();
            match libc::getsockopt(stream.as_raw_fd(), level, name, (&raw mut value).cast(), &mut size) {
                0 => Some(value),
                _ => None,
            }
        }
    }

    /// Process and user at the other end of a Unix socket (unix(7), unix(4)): who connected, or who listens (I10).
    pub fn peer(stream: &UnixStream) -> Option<(i32, u32)> {
        #[cfg(target_os = "linux")]
        return option::<libc::ucred>(stream, libc::SOL_SOCKET, libc::SO_PEERCRED).map(|peer| (peer.pid, peer.uid));
        #[cfg(target_os = "macos")]
        {
            let peer: libc::xucred = option(stream, libc::SOL_LOCAL, libc::LOCAL_PEERCRED)?;
            Some((option(stream, libc::SOL_LOCAL, libc::LOCAL_PEERPID)?, peer.cr_uid))
        }
    }

    /// The date and time of day in UTC, `seconds` after 1970 began (gmtime_r(3)).
    pub fn utc(seconds: u64) -> libc::tm {
        // SAFETY: all-zero bytes are a valid tm, the only thing that gmtime_r(3) writes.
        unsafe {
            let mut parts: libc::tm = std::mem::zeroed();
            libc::gmtime_r(&(seconds as libc::time_t), &mut parts);
            parts
        }
    }

    pub fn user_id() -> u32 {
        // SAFETY: geteuid(2) takes nothing and can't fail.
        unsafe { libc::geteuid() }
    }
}

#[cfg(test)]
#[path = "../tests/unit/mod.rs"]
mod unit;
