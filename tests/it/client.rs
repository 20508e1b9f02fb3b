//! A host for the tests: it starts the real binary, talks JSON lines with it, and keeps what was said.
//!
//! Every wait has a deadline. Every line that the server prints is checked on arrival: UTF-8, one JSON
//! object, no members that strict clients reject, at most 9 MiB. A failure prints the transcript with
//! milliseconds since the start. Each server has its own HOME, TMPDIR and project in one folder; a drop
//! kills whatever the server started, also what it lost sight of, and removes the folder.
//! Where MCP_PY_RECORD names a folder, each server leaves a file of `{"dir", "line"}` there.
#![allow(dead_code)] // a toolbox: not every tool is in use at every time

use crate::procs;
use serde_json::{json, Value};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine before the harness gives up.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const MODERN: &str = "2026-07-28";
pub const LEGACY: &str = "2025-11-25";
/// The longest line that the server may send: common clients hang up at 10 MiB.
const LINE_BYTES_MAX: usize = 9 << 20;
/// What the transcript keeps of a line.
const SHOWN_BYTES: usize = 1500;
/// What a record keeps of a line: all of every line that the server reads.
const RECORDED_BYTES: usize = 17 << 20;

/// The program to test: MCP_PY_TEST_BINARY, else what cargo has just built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    procs::default_signals();
    BINARY.get_or_init(|| {
        let given = std::env::var_os("MCP_PY_TEST_BINARY");
        given.map_or_else(|| env!("CARGO_BIN_EXE_mcp-py").into(), PathBuf::from)
    })
}

/// Whether the program runs in the model of macOS (tests/macos), where it does as it would there.
pub fn is_on_macos() -> bool {
    std::env::var_os("MCP_PY_TEST_BINARY").is_some()
}

/// The real executable of the Python to test with: MCP_PY_PYTHON, else python3. (A pyenv shim would
/// cost 100 ms at every start.) Resolved once.
pub fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let named = std::env::var("MCP_PY_PYTHON").unwrap_or_else(|_| "python3".into());
        let output = Command::new(&named)
            .args(["-c", "import sys; print(sys.executable)"])
            .output()
            .unwrap_or_else(|error| panic!("{named}: {error}"));
        let path = String::from_utf8(output.stdout).expect("a path in UTF-8").trim().to_string();
        assert!(!path.is_empty(), "{named} does not say where it is");
        path
    })
}

/// A number that no other server or folder of this run has.
fn serial() -> usize {
    static SERIAL: AtomicUsize = AtomicUsize::new(0);
    SERIAL.fetch_add(1, Ordering::Relaxed)
}

/// A temporary folder with `home`, `tmp`, `project` and `bin`, removed with its last clone.
#[derive(Clone)]
pub struct Folder(Arc<FolderGuard>);

struct FolderGuard(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        let name = format!("mcp-py-it-{}-{}", std::process::id(), serial());
        let base = fs::canonicalize(std::env::temp_dir()).expect("a temporary directory");
        let path = base.join(name);
        for part in ["home", "tmp", "project", "bin"] {
            fs::create_dir_all(path.join(part)).expect("a folder for a server");
        }
        Folder(Arc::new(FolderGuard(path)))
    }

    pub fn path(&self) -> &Path {
        &self.0 .0
    }

    pub fn home(&self) -> PathBuf {
        self.path().join("home")
    }

    pub fn tmp(&self) -> PathBuf {
        self.path().join("tmp")
    }

    pub fn project(&self) -> PathBuf {
        self.path().join("project")
    }

    pub fn bin(&self) -> PathBuf {
        self.path().join("bin")
    }

    /// The output directories of servers under TMPDIR.
    pub fn output_dirs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.tmp()).into_iter().flatten().flatten();
        let ours = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python-interpreter-"))
        };
        entries.map(|entry| entry.path()).filter(ours).collect()
    }

    /// An executable script in `bin`, for tests that put their own tools on PATH.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.bin().join(name);
        write_executable(&path, text.as_bytes());
        path
    }
}

impl Drop for FolderGuard {
    fn drop(&mut self) {
        // Something that was killed a moment ago may still be writing: try for a while.
        for _ in 0..50 {
            match fs::remove_dir_all(&self.0) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
        eprintln!("left behind: {}", self.0.display());
    }
}

/// How a server is started.
pub struct Builder {
    env: Vec<(OsString, Option<OsString>)>,
    arg0: Option<String>,
    args: Option<Vec<String>>,
    under: Option<String>,
    cwd: Option<PathBuf>,
    folder: Option<Folder>,
    stderr: Option<Stdio>,
}

impl Builder {
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Builder {
        self.env.push((name.as_ref().into(), Some(value.as_ref().into())));
        self
    }

    /// Takes out what the harness would set: PATH, HOME, TMPDIR or MCP_PY_PYTHON.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Builder {
        self.env.push((name.as_ref().into(), None));
        self
    }

    /// Starts the binary through a symlink of this name, and without the argument `server`.
    pub fn arg0(mut self, name: &str) -> Builder {
        self.arg0 = Some(name.into());
        self
    }

    pub fn args(mut self, args: &[&str]) -> Builder {
        self.args = Some(args.iter().map(|arg| arg.to_string()).collect());
        self
    }

    /// Runs the server as the direct child of a process that is really called `name` (a copy of a
    /// shell), which passes its descriptors on and ends with the server's exit code.
    pub fn under(mut self, name: &str) -> Builder {
        self.under = Some(name.into());
        self
    }

    /// The working directory; else the folder's `project`.
    pub fn cwd(mut self, path: impl AsRef<Path>) -> Builder {
        self.cwd = Some(path.as_ref().into());
        self
    }

    /// Shares HOME, TMPDIR and the project with whoever else has this folder.
    pub fn folder(mut self, folder: &Folder) -> Builder {
        self.folder = Some(folder.clone());
        self
    }

    /// Where stderr goes; else the harness collects it.
    pub fn stderr(mut self, stderr: Stdio) -> Builder {
        self.stderr = Some(stderr);
        self
    }

    fn command(&self, folder: &Folder, mark: &str) -> Command {
        let mut program = binary().to_path_buf();
        if let Some(name) = &self.arg0 {
            program = folder.bin().join(name);
            if !program.exists() {
                std::os::unix::fs::symlink(binary(), &program).expect("a symlink to the binary");
            }
        }
        let implied = if self.arg0.is_some() { vec![] } else { vec!["server".to_string()] };
        let args = self.args.clone().unwrap_or(implied);
        let mut command = match &self.under {
            None => Command::new(program),
            Some(name) => {
                let mut shell = Command::new(shell_called(name, folder));
                // The exit at the end keeps the shell from replacing itself by the server.
                shell.args(["-c", "\"$0\" \"$@\"; exit $?"]).arg(program);
                shell
            }
        };
        command.args(args).env_clear();
        for name in ["PATH", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("HOME", folder.home()).env("TMPDIR", folder.tmp());
        command.env("MCP_PY_PYTHON", python());
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let (name, value) = mark.split_once('=').expect("a mark NAME=value");
        command.env(name, value);
        command.current_dir(self.cwd.clone().unwrap_or_else(|| folder.project()));
        // A group of its own, so that a signal to the server never reaches the tests.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }
}

/// A copy of a shell under another name: a real process of that name, not a script.
fn shell_called(name: &str, folder: &Folder) -> PathBuf {
    let path = folder.bin().join(name);
    if !path.exists() {
        let shells = ["/bin/dash", "/bin/bash", "/bin/sh"].map(Path::new);
        let shell = shells.iter().find(|shell| shell.exists()).expect("a shell in /bin");
        write_executable(&path, &fs::read(shell).expect("a shell"));
    }
    path
}

/// Writes a program by way of another process. Were the file open for writing in this one, a child that another test
/// forks at that moment would hold it open until its exec, and running the program would fail with ETXTBSY.
pub fn write_executable(path: &Path, bytes: &[u8]) {
    let script = "rm -f \"$0\" && cat > \"$0\" && chmod 755 \"$0\"";
    let mut shell = Command::new("/bin/sh");
    let mut child = shell.args(["-c", script]).arg(path).stdin(Stdio::piped()).spawn().expect("a shell");
    child.stdin.take().expect("its stdin").write_all(bytes).expect("a shell that reads");
    assert!(child.wait().expect("a shell").success(), "{} can't be written", path.display());
}

/// What a tool answered.
#[derive(Debug, Clone)]
pub struct ToolResult {
    /// The first content block, which is text in all our answers.
    pub text: String,
    pub is_error: bool,
    /// `structuredContent`, null where there is none.
    pub structured: Value,
    /// The whole `result`.
    pub raw: Value,
}

impl ToolResult {
    fn of(result: &Value) -> Option<ToolResult> {
        Some(ToolResult {
            text: result["content"].get(0)?["text"].as_str()?.to_string(),
            is_error: result.get("isError").is_some_and(|value| value == true),
            structured: result.get("structuredContent").cloned().unwrap_or(Value::Null),
            raw: result.clone(),
        })
    }
}

/// Everything that was said, by whom and when.
struct Log {
    start: Instant,
    lines: Mutex<Vec<String>>,
    record: Option<Mutex<Record>>,
}

/// What MCP_PY_RECORD asks for.
struct Record {
    file: File,
    /// Of a line to the server whose end was not written yet, at most RECORDED_BYTES.
    partial: Vec<u8>,
}

impl Record {
    fn add(&mut self, who: &str, bytes: &[u8]) {
        if who == "out" {
            return self.put(who, bytes);
        }
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = RECORDED_BYTES.saturating_sub(self.partial.len());
            let end = piece.len().min(room);
            self.partial.extend_from_slice(&piece[..end]);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                self.put(who, &line);
            }
        }
    }

    fn put(&mut self, who: &str, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let _ = writeln!(self.file, "{}", json!({"dir": who, "line": line.trim_end_matches('\n')}));
    }
}

impl Log {
    fn new() -> Log {
        let record = std::env::var_os("MCP_PY_RECORD").map(|folder| {
            fs::create_dir_all(&folder).expect("the folder for records");
            let name = format!("{}-{}.jsonl", std::process::id(), serial());
            let file = File::create(Path::new(&folder).join(name)).expect("a record");
            Mutex::new(Record { file, partial: Vec::new() })
        });
        Log { start: Instant::now(), lines: Mutex::default(), record }
    }

    fn add(&self, who: &str, bytes: &[u8]) {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES)]).into_owned();
        let cut = match bytes.len() {
            0..=SHOWN_BYTES => String::new(),
            more => format!(" … {more} bytes"),
        };
        let at = self.start.elapsed().as_millis();
        let mut lines = self.lines.lock().unwrap();
        lines.push(format!("{at:>7} {who} {}{cut}", shown.trim_end()));
        if let (Some(record), "in" | "out") = (&self.record, who) {
            record.lock().unwrap().add(who, bytes);
        }
    }

    fn text(&self) -> String {
        let lines = self.lines.lock().unwrap();
        let skip = lines.len().saturating_sub(400);
        let head = if skip > 0 { format!("… {skip} earlier lines\n") } else { String::new() };
        format!("--- transcript (ms) ---\n{head}{}\n-----------------------", lines[skip..].join("\n"))
    }
}

/// What the thread that reads stdout does next.
#[derive(Clone, Copy, PartialEq)]
enum Gate {
    Read,
    Hold,
    Close,
}

type SharedGate = Arc<(Mutex<Gate>, Condvar)>;
type Write1 = (Vec<u8>, Sender<io::Result<()>>);

/// A running server and the host's side of its pipes.
pub struct Server {
    child: Child,
    folder: Option<Folder>,
    mark: String,
    log: Arc<Log>,
    /// Lines of stdout without their newline; the sender goes at the end of the stream.
    lines: Receiver<Vec<u8>>,
    /// Messages that arrived while something else was waited for, oldest first.
    kept: VecDeque<Value>,
    gate: SharedGate,
    to_stdin: Option<Sender<Write1>>,
    stdin_thread: Option<JoinHandle<()>>,
    err: Arc<Mutex<Vec<u8>>>,
    next_id: i64,
    pid: Option<i32>,
    under: bool,
    status: Option<ExitStatus>,
    told: bool,
}

impl Server {
    pub fn start() -> Server {
        Server::with(|builder| builder)
    }

    pub fn with(configure: impl FnOnce(Builder) -> Builder) -> Server {
        let mut builder = configure(Builder {
            env: vec![],
            arg0: None,
            args: None,
            under: None,
            cwd: None,
            folder: None,
            stderr: None,
        });
        let folder = builder.folder.clone().unwrap_or_else(Folder::new);
        let mark = format!("IT_MARK={}-{}", std::process::id(), serial());
        let mut command = builder.command(&folder, &mark);
        let collect = builder.stderr.is_none();
        command.stderr(builder.stderr.take().unwrap_or_else(Stdio::piped));
        let log = Arc::new(Log::new());
        let mut child = command.spawn().expect("the server starts");
        let stdin = child.stdin.take().expect("stdin");
        let stdout = child.stdout.take().expect("stdout");
        let err = Arc::new(Mutex::new(Vec::new()));
        if collect {
            let stderr = child.stderr.take().expect("stderr");
            let (log, err) = (log.clone(), err.clone());
            thread::spawn(move || read_stderr(stderr, &log, &err));
        }
        let gate: SharedGate = Arc::new((Mutex::new(Gate::Read), Condvar::new()));
        let (line_sender, lines) = mpsc::channel();
        {
            let (log, gate) = (log.clone(), gate.clone());
            thread::spawn(move || read_stdout(stdout, &log, &gate, &line_sender));
        }
        let (to_stdin, from_us) = mpsc::channel::<Write1>();
        let stdin_thread = thread::spawn(move || write_stdin(stdin, &from_us));
        Server {
            child,
            folder: Some(folder),
            mark,
            log,
            lines,
            kept: VecDeque::new(),
            gate,
            to_stdin: Some(to_stdin),
            stdin_thread: Some(stdin_thread),
            err,
            next_id: 0,
            pid: None,
            under: builder.under.is_some(),
            status: None,
            told: false,
        }
    }

    // ---- what it is ------------------------------------------------------------------------------

    pub fn folder(&self) -> &Folder {
        self.folder.as_ref().expect("the folder stays until the drop")
    }

    /// The server's own pid, also where it runs under another process.
    pub fn pid(&mut self) -> i32 {
        if let Some(pid) = self.pid {
            return pid;
        }
        let direct = self.child.id() as i32;
        let mut pid = direct;
        if self.under {
            let start = Instant::now();
            loop {
                if let Some(&child) = procs::children_of(direct).first() {
                    pid = child;
                    break;
                }
                if start.elapsed() > DEADLINE {
                    self.fail("the shell above the server has no child");
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        self.pid = Some(pid);
        pid
    }

    /// The pid of the process that the harness started: the server, or what it runs under.
    pub fn outer_pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The living processes that were started with this server's environment, by it or by its cells.
    pub fn processes(&self) -> Vec<i32> {
        procs::with_environment(&self.mark)
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.err.lock().unwrap()).into_owned()
    }

    /// Waits until stderr holds the text.
    #[track_caller]
    pub fn expect_stderr(&mut self, text: &str) {
        let start = Instant::now();
        while !self.stderr().contains(text) {
            if start.elapsed() > DEADLINE {
                self.fail(&format!("stderr never said {text:?}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Panics with the transcript.
    #[track_caller]
    pub fn fail(&mut self, what: &str) -> ! {
        self.told = true;
        panic!("{what}\n{}", self.log.text())
    }

    /// Puts a remark of the test into the transcript.
    pub fn remark(&self, text: &str) {
        self.log.add("--", text.as_bytes());
    }

    // ---- sending ---------------------------------------------------------------------------------

    #[track_caller]
    pub fn send(&mut self, message: &Value) {
        let mut line = message.to_string();
        line.push('\n');
        self.send_raw(line.as_bytes());
    }

    /// Writes the bytes as they are. Fails where the server does not take them.
    #[track_caller]
    pub fn send_raw(&mut self, bytes: &[u8]) {
        if let Err(error) = self.try_send_raw(bytes) {
            self.fail(&format!("stdin of the server: {error}"));
        }
    }

    /// Like `send_raw`, but a server that has closed its stdin is an error to look at.
    #[track_caller]
    pub fn try_send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.log.add("in", bytes);
        let (done, written) = mpsc::channel();
        let to_stdin = self.to_stdin.as_ref().expect("stdin was closed by the test");
        to_stdin.send((bytes.to_vec(), done)).expect("the thread that writes");
        match written.recv_timeout(DEADLINE) {
            Ok(result) => result,
            Err(_) => self.fail("the server does not read its stdin"),
        }
    }

    #[track_caller]
    pub fn notify(&mut self, method: &str, params: Value) {
        self.send(&json!({"jsonrpc": "2.0", "method": method, "params": params}));
    }

    /// Sends a request with the next free id, and returns that.
    #[track_caller]
    pub fn start_request(&mut self, method: &str, params: Value) -> i64 {
        self.next_id += 1;
        let id = self.next_id;
        let mut message = json!({"jsonrpc": "2.0", "id": id, "method": method});
        if !params.is_null() {
            message["params"] = params;
        }
        self.send(&message);
        id
    }

    /// Starts a tool; `wait` or `response` has its answer.
    #[track_caller]
    pub fn start_call(&mut self, tool: &str, arguments: Value) -> i64 {
        self.start_request("tools/call", json!({"name": tool, "arguments": arguments}))
    }

    /// Starts a cell in the builtin interpreter.
    #[track_caller]
    pub fn start_exec(&mut self, code: &str) -> i64 {
        self.start_call("execute", json!({"code": code}))
    }

    #[track_caller]
    pub fn cancel(&mut self, id: impl Into<Value>) {
        self.notify("notifications/cancelled", json!({"requestId": id.into()}));
    }

    /// End of input for the server. What was sent before has been taken by then.
    pub fn close_stdin(&mut self) {
        self.remark("stdin closed");
        self.to_stdin = None;
        if let Some(thread) = self.stdin_thread.take() {
            let _ = thread.join();
        }
    }

    // ---- receiving -------------------------------------------------------------------------------

    /// Stops reading the server's stdout (after what a read that has begun brings).
    pub fn hold_stdout(&self) {
        self.set_gate(Gate::Hold);
    }

    pub fn release_stdout(&self) {
        self.set_gate(Gate::Read);
    }

    /// Closes the reading end of the server's stdout as soon as one more read has returned.
    pub fn close_stdout(&self) {
        self.set_gate(Gate::Close);
    }

    fn set_gate(&self, gate: Gate) {
        *self.gate.0.lock().unwrap() = gate;
        self.gate.1.notify_all();
    }

    /// The next line as a message. None at the end of stdout; Err where the deadline passed.
    fn next_message(&mut self, deadline: Instant) -> Result<Option<Value>, ()> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => Ok(Some(self.checked(&line))),
            Err(RecvTimeoutError::Timeout) => Err(()),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
        }
    }

    /// Every line on stdout must be one JSON-RPC message (I1). A response must have no members but `jsonrpc`, `id` and
    /// `result` or `error`: strict clients reject others.
    fn checked(&mut self, line: &[u8]) -> Value {
        if line.len() > LINE_BYTES_MAX {
            self.fail(&format!("a line of {} bytes", line.len()));
        }
        let Ok(text) = std::str::from_utf8(line) else { self.fail("stdout is not UTF-8") };
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            self.fail(&format!("stdout is not JSON: {:?}", &text[..text.len().min(200)]))
        };
        let Some(members) = message.as_object() else { self.fail("a message that is no object") };
        let mut names: Vec<&str> = members.keys().map(String::as_str).collect();
        names.sort_unstable();
        let notification = members.contains_key("method");
        let fits = match names.as_slice() {
            ["id", "jsonrpc", "result"] | ["error", "id", "jsonrpc"] | ["error", "jsonrpc"] => {
                !message["id"].is_null() || !members.contains_key("id")
            }
            ["jsonrpc", "method"] | ["jsonrpc", "method", "params"] => notification,
            _ => false,
        };
        if !fits || message["jsonrpc"] != "2.0" {
            self.fail(&format!("a message with the members {names:?}"));
        }
        message
    }

    /// The oldest message that was not taken yet.
    #[track_caller]
    pub fn recv(&mut self, deadline: Duration) -> Value {
        self.recv_until_within(deadline, |_| true)
    }

    /// The first message that fits; the others are kept in their order.
    #[track_caller]
    pub fn recv_until(&mut self, fits: impl FnMut(&Value) -> bool) -> Value {
        self.recv_until_within(DEADLINE, fits)
    }

    #[track_caller]
    pub fn recv_until_within(&mut self, deadline: Duration, mut fits: impl FnMut(&Value) -> bool) -> Value {
        if let Some(at) = self.kept.iter().position(&mut fits) {
            return self.kept.remove(at).expect("just found");
        }
        let end = Instant::now() + deadline;
        loop {
            match self.next_message(end) {
                Ok(Some(message)) if fits(&message) => return message,
                Ok(Some(message)) => self.kept.push_back(message),
                Ok(None) => self.fail("the server's stdout ended while a message was awaited"),
                Err(()) => self.fail(&format!("no such message within {deadline:?}")),
            }
        }
    }

    /// The whole response with this id.
    #[track_caller]
    pub fn response(&mut self, id: impl Into<Value>) -> Value {
        self.response_within(id, DEADLINE)
    }

    #[track_caller]
    pub fn response_within(&mut self, id: impl Into<Value>, deadline: Duration) -> Value {
        let id = id.into();
        self.recv_until_within(deadline, |message| message.get("method").is_none() && message.get("id") == Some(&id))
    }

    /// What arrived so far and was not taken, without waiting.
    pub fn pending(&mut self) -> Vec<Value> {
        while let Ok(line) = self.lines.try_recv() {
            let message = self.checked(&line);
            self.kept.push_back(message);
        }
        self.kept.drain(..).collect()
    }

    /// Nothing is said for so long, and nothing was said before that no one has taken.
    #[track_caller]
    pub fn expect_silence(&mut self, duration: Duration) {
        let end = Instant::now() + duration;
        let said = match self.kept.pop_front() {
            Some(message) => Some(message),
            None => self.next_message(end).unwrap_or(None),
        };
        if let Some(message) = said {
            self.fail(&format!("silence was expected, not {message}"));
        }
    }

    /// Nothing was said to what has been sent so far: the answer to a ping is the next message.
    #[track_caller]
    pub fn expect_no_answer(&mut self) {
        let id = self.start_request("ping", Value::Null);
        let message = self.recv(DEADLINE);
        if message != json!({"jsonrpc": "2.0", "id": id, "result": {}}) {
            self.fail(&format!("no answer was expected, not {message}"));
        }
    }

    /// The server closes stdout without another message.
    #[track_caller]
    pub fn expect_end_of_stdout(&mut self, deadline: Duration) {
        if let Some(message) = self.kept.pop_front() {
            self.fail(&format!("the end of stdout was expected, not {message}"));
        }
        match self.next_message(Instant::now() + deadline) {
            Ok(None) => {}
            Ok(Some(message)) => self.fail(&format!("the end was expected, not {message}")),
            Err(()) => self.fail(&format!("stdout still open after {deadline:?}")),
        }
    }

    /// Throws messages away until stdout ends (true) or the time is over.
    pub fn drain_for(&mut self, duration: Duration) -> bool {
        let end = Instant::now() + duration;
        loop {
            match self.next_message(end) {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(()) => return false,
            }
        }
    }

    // ---- requests --------------------------------------------------------------------------------

    /// A request and its whole response, `result` or `error`. Other messages are kept.
    #[track_caller]
    pub fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.start_request(method, params);
        self.response(id)
    }

    /// A request of 2026-07-28: the `_meta` that this version wants is added. The whole response.
    #[track_caller]
    pub fn modern(&mut self, method: &str, params: Value) -> Value {
        let id = self.start_modern(method, params);
        self.response(id)
    }

    #[track_caller]
    pub fn start_modern(&mut self, method: &str, params: Value) -> i64 {
        self.start_request(method, modern_params(params))
    }

    /// The newest legacy version; returns the `result`.
    #[track_caller]
    pub fn initialize(&mut self) -> Value {
        self.initialize_as(LEGACY)
    }

    #[track_caller]
    pub fn initialize_as(&mut self, version: &str) -> Value {
        let response = self.request(
            "initialize",
            json!({
                "protocolVersion": version,
                "capabilities": {},
                "clientInfo": {"name": "it", "version": "1"},
            }),
        );
        if response.get("result").is_none() {
            self.fail(&format!("initialize: {response}"));
        }
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        response["result"].clone()
    }

    #[track_caller]
    pub fn call(&mut self, tool: &str, arguments: Value) -> ToolResult {
        let id = self.start_call(tool, arguments);
        self.wait(id)
    }

    /// Runs a cell in the builtin interpreter.
    #[track_caller]
    pub fn exec(&mut self, code: &str) -> ToolResult {
        let id = self.start_exec(code);
        self.wait(id)
    }

    /// Runs a cell that must not fail, and returns its text.
    #[track_caller]
    pub fn ok(&mut self, code: &str) -> String {
        let result = self.exec(code);
        if result.is_error {
            self.fail(&format!("the cell failed: {}", result.text));
        }
        result.text
    }

    /// The answer of a tool that was started.
    #[track_caller]
    pub fn wait(&mut self, id: i64) -> ToolResult {
        self.wait_within(id, DEADLINE)
    }

    #[track_caller]
    pub fn wait_within(&mut self, id: i64, deadline: Duration) -> ToolResult {
        let response = self.response_within(id, deadline);
        match response.get("result").and_then(ToolResult::of) {
            Some(result) => result,
            None => self.fail(&format!("no tool result: {response}")),
        }
    }

    /// The pid of the builtin interpreter.
    #[track_caller]
    pub fn worker_pid(&mut self) -> i32 {
        let text = self.ok("__import__('os').getpid()");
        text.parse().unwrap_or_else(|_| self.fail("a pid was expected"))
    }

    /// Starts a busy loop in the builtin interpreter and returns when it runs.
    #[track_caller]
    pub fn start_spinning(&mut self) -> i64 {
        let flag = self.flag();
        let id = self.start_exec(&format!("open({flag:?}, 'w').close()\nwhile True: pass"));
        self.expect_file(&flag);
        id
    }

    /// Occupies the builtin interpreter until the returned file exists; returns when its cell runs.
    /// The cell answers `'released'`.
    #[track_caller]
    pub fn start_waiting(&mut self) -> (i64, PathBuf) {
        let (flag, release) = (self.flag(), self.flag());
        let code = format!(
            "import os, time\nopen({flag:?}, 'w').close()\n\
             while not os.path.exists({release:?}): time.sleep(0.01)\n'released'"
        );
        let id = self.start_exec(&code);
        self.expect_file(&flag);
        (id, release)
    }

    /// A path that no one has used, for cells to announce something with.
    pub fn flag(&self) -> PathBuf {
        self.folder().path().join(format!("flag-{}", serial()))
    }

    /// Waits until a file is there.
    #[track_caller]
    pub fn expect_file(&mut self, path: &Path) {
        let start = Instant::now();
        while !path.exists() {
            if start.elapsed() > DEADLINE {
                self.fail(&format!("{} never appeared", path.display()));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    // ---- the end ---------------------------------------------------------------------------------

    /// Sends a signal to the server itself, and to nothing else.
    pub fn kill(&mut self, signal: i32) {
        let pid = self.pid();
        self.remark(&format!("signal {signal} to the server"));
        procs::kill(pid, signal);
    }

    pub fn has_exited(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("the child can be waited for");
        }
        self.status.is_some()
    }

    /// Waits for the process that the harness started.
    #[track_caller]
    pub fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let start = Instant::now();
        while !self.has_exited() {
            if start.elapsed() > deadline {
                self.fail(&format!("the server still runs after {deadline:?}"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        let status = self.status.expect("it has exited");
        self.remark(&format!("exited: {status}"));
        status
    }

    /// End of stdin, and the exit code that follows within the deadline.
    #[track_caller]
    pub fn finish(&mut self, deadline: Duration) -> Option<i32> {
        self.close_stdin();
        self.wait_exit(deadline).code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() && !self.told {
            eprintln!("{}", self.log.text());
        }
        self.set_gate(Gate::Close);
        // Until the harness has waited for it, its pid is its own.
        let mut pids = vec![self.child.id() as i32];
        pids.extend(self.pid);
        if !self.has_exited() {
            pids.extend(procs::tree_of(self.child.id() as i32));
            for pid in &pids[..] {
                procs::kill(*pid, libc::SIGKILL);
            }
            let _ = self.child.wait();
        }
        remove_sockets(&pids);
        // What the server lost sight of still has its environment.
        for _ in 0..200 {
            let left = procs::with_environment(&self.mark);
            if left.is_empty() {
                break;
            }
            for pid in left {
                procs::kill(pid, libc::SIGKILL);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.folder = None;
    }
}

/// Removes what a killed server left in /tmp: the sockets named after it, and the host's name where nobody listens.
pub fn remove_sockets(dead: &[i32]) {
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pids) = name.strip_prefix("python-interpreter-").and_then(|name| name.strip_suffix(".sock")) else {
            continue;
        };
        let refused = || std::os::unix::net::UnixStream::connect(entry.path()).is_err();
        let last = pids.rsplit('-').next().and_then(|pid| pid.parse().ok()).unwrap_or(0);
        let shared = !pids.contains('-') && (last == std::process::id() as i32 || dead.contains(&last));
        if dead.contains(&last) || (shared && refused()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// For tests whose server finds the home of whoever runs them: one at a time, and what was not there before is taken away
/// again, once the server has gone.
pub struct RealHome {
    made: Option<PathBuf>,
    _turn: std::sync::MutexGuard<'static, ()>,
}

impl RealHome {
    pub fn borrow() -> RealHome {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        #[allow(deprecated)] // until Rust 1.87, for its ways on Windows
        let state = std::env::home_dir().expect("a home").join(".claude-workspace");
        RealHome { made: Some(state).filter(|state| !state.exists()), _turn: turn }
    }
}

impl Drop for RealHome {
    fn drop(&mut self) {
        self.made.iter().for_each(|state| _ = fs::remove_dir_all(state));
    }
}

/// Adds the `_meta` of a modern request, except for members that the test gives itself.
pub fn modern_params(params: Value) -> Value {
    let mut params = if params.is_null() { json!({}) } else { params };
    let given = params.get("_meta").cloned().unwrap_or_else(|| json!({}));
    let mut meta = json!({
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "it", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    for (name, value) in given.as_object().into_iter().flatten() {
        meta[name] = value.clone();
    }
    params["_meta"] = meta;
    params
}

fn write_stdin(mut stdin: ChildStdin, from_us: &Receiver<Write1>) {
    while let Ok((bytes, done)) = from_us.recv() {
        let _ = done.send(stdin.write_all(&bytes).and_then(|()| stdin.flush()));
    }
}

/// Reads whole lines; a last one without a newline is passed on too, so that it gets noticed.
fn read_stdout(mut stdout: ChildStdout, log: &Log, gate: &SharedGate, lines: &Sender<Vec<u8>>) {
    let mut chunk = vec![0; 1 << 16];
    let mut line = Vec::new();
    loop {
        let mut state = gate.0.lock().unwrap();
        while *state == Gate::Hold {
            state = gate.1.wait(state).unwrap();
        }
        let close = *state == Gate::Close;
        drop(state);
        let count = if close { 0 } else { stdout.read(&mut chunk).unwrap_or(0) };
        if count == 0 {
            break;
        }
        for &byte in &chunk[..count] {
            if byte == b'\n' {
                log.add("out", &line);
                let _ = lines.send(std::mem::take(&mut line));
            } else {
                line.push(byte);
            }
        }
    }
    if !line.is_empty() {
        log.add("out", &line);
        let _ = lines.send(line);
    }
}

fn read_stderr(stderr: impl Read, log: &Log, err: &Mutex<Vec<u8>>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        log.add("err", &line);
        err.lock().unwrap().append(&mut line);
    }
}
