//! A call may end before its cell. `execute` waits as long as its caller or its host allows; then the cell goes on
//! unattended, and `wait` has the rest. Nothing is lost, nothing is told twice, and code whose caller was told "not
//! run" never runs. An interrupt climbs a ladder that never ends the process; `reset` with restart does that. What was
//! run stands in the history.
//!
//! Hours pass at once here: some servers have a clock that the test sets forward.

use crate::cells::{check, has, lacks, py, SOON};
use crate::client::{binary, is_on_macos, python, Folder, Server, ToolResult, DEADLINE};
use crate::procs::{self, eventually};
use serde_json::{json, Value};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// A value with a picture, which is passed on as it is.
const PICTURE: &str = "class Picture:\n    def _repr_png_(self): return b'\\x89PNG picture'\n";
const GOES_ON: &str = "goes on by itself; wait shows the rest, interrupt stops it]";
const NOT_STOPPED: &str = "but it has not stopped: it is in code that does not heed interrupts, such as a long call \
    into C or an `except` that takes KeyboardInterrupt. Its variables are there when it ends; reset with restart=true \
    (in a shell, --reset --restart) ends the process and loses them";

// ---- tools for the tests -------------------------------------------------------------------------------------------

/// The first cell of most servers here. `until` waits for a file, `mark` makes one, and after `deafen` an
/// interrupt does not reach the cell.
const HELPERS: &str = "
    import os, signal, subprocess, sys, time
    def until(path):
        while not os.path.exists(path): time.sleep(0.01)
    def mark(path):
        open(path, 'w').close()
    def deafen(*signals):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, *signals])
    ";

fn start() -> Server {
    with_helpers(Server::start())
}

fn start_with(variable: &str, value: &str) -> Server {
    with_helpers(Server::with(|builder| builder.env(variable, value)))
}

fn with_helpers(mut server: Server) -> Server {
    server.initialize();
    help(&mut server);
    server
}

#[track_caller]
fn help(server: &mut Server) {
    let told = server.call("execute", json!({"code": py(HELPERS), "wait": 50}));
    assert!(!told.is_error, "{}", told.text);
}

/// A server with a host of its own, hence with a name of its own, and its socket.
fn start_with_bridge() -> (Server, PathBuf) {
    let mut server = with_helpers(Server::with(|builder| builder.under("claude")));
    let info = server.call("get_session_info", json!({})).structured;
    (server, PathBuf::from(info["socket_path"].as_str().expect("a socket")))
}

/// Starts a cell that nobody attends; it is released by the file that is returned, and then runs the code.
#[track_caller]
fn detach(server: &mut Server, code: &str) -> PathBuf {
    detach_in(server, "builtin", code)
}

#[track_caller]
fn detach_in(server: &mut Server, interpreter: &str, code: &str) -> PathBuf {
    let begun = server.flag();
    let go = server.flag();
    let code = format!("mark({begun:?})\nuntil({go:?})\n{}", py(code));
    let told = server.call("execute", json!({"code": code, "interpreter": interpreter, "wait": 0}));
    if told.is_error || !told.text.ends_with(GOES_ON) {
        server.fail(&format!("the cell was to go on by itself, not {:?}", told.text));
    }
    server.expect_file(&begun);
    go
}

/// The same, where the cell has done its first part already, of which nobody was told.
#[track_caller]
fn detach_amid(server: &mut Server, first: &str, then: &str) -> PathBuf {
    let done = server.flag();
    let end = server.flag();
    let go = detach(server, &format!("{first}\nmark({done:?})\nuntil({end:?})\n{then}"));
    release(&go);
    server.expect_file(&done);
    end
}

fn release(go: &Path) {
    File::create(go).expect("a file in the test's folder");
}

#[track_caller]
fn listed(server: &mut Server, name: &str) -> Value {
    let listed = server.call("list_interpreters", json!({})).structured;
    let entries = listed["result"].as_array().expect("a list");
    entries.iter().find(|entry| entry["name"] == name).expect("it is listed").clone()
}

/// Returns when the builtin interpreter runs nothing.
#[track_caller]
fn until_idle(server: &mut Server) {
    let start = Instant::now();
    while !listed(server, "builtin")["busy"].is_null() {
        if start.elapsed() > DEADLINE {
            server.fail("the cell never ended");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn wait(server: &mut Server) -> ToolResult {
    server.call("wait", json!({}))
}

/// `0.081 s`, `4.2 s`, `95 s`, `3 min 20 s`, `2 h 5 min`; or `2026-11-27T14:03:22Z`.
fn is_time(text: &str) -> bool {
    let digits_become_0: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let words: Vec<_> = text.split(' ').collect();
    let is_span = |pair: &[&str]| pair.len() == 2 && pair[0].parse::<f64>().is_ok() && is_unit(pair[1]);
    digits_become_0 == "0000-00-00T00:00:00Z" || words.chunks(2).all(is_span)
}

fn is_unit(word: &str) -> bool {
    ["s", "min", "h"].contains(&word)
}

/// Whether a text is like a form, in which TIME stands for some time.
fn fits(text: &str, form: &str) -> bool {
    let mut pieces = form.split("TIME");
    let Some(mut rest) = text.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    for piece in pieces {
        let end = if piece.is_empty() { Some(rest.len()) } else { rest.find(piece) };
        let Some(end) = end.filter(|end| is_time(&rest[..*end])) else { return false };
        rest = &rest[end + piece.len()..];
    }
    rest.is_empty()
}

/// The answer is no error, and like this form.
#[track_caller]
fn expect(server: &mut Server, told: &ToolResult, form: &str) {
    if told.is_error || !fits(&told.text, form) {
        server.fail(&format!("expected {form:?}, not {:?} (error: {})", told.text, told.is_error));
    }
}

/// The answer is an error with these words; its text.
#[track_caller]
fn expect_error(server: &mut Server, told: &ToolResult, words: &[&str]) {
    if !told.is_error {
        server.fail(&format!("an error was expected, not {:?}", told.text));
    }
    has(server, &told.text, words);
}

#[test]
fn a_form_fits_what_it_should_and_nothing_else() {
    for text in ["it took 0.081 s!", "it took 95 s!", "it took 3 min 20 s!", "it took 2026-11-27T14:03:22Z!"] {
        assert!(fits(text, "it took TIME!"), "{text}");
    }
    for text in ["it took !", "it took 95!", "it took 95 s", "it took long!", "it took 95 s! And", "it took 3 s 4!"] {
        assert!(!fits(text, "it took TIME!"), "{text}");
    }
    assert!(fits("1 s, 2 s", "TIME, TIME") && !fits("1 s, 2", "TIME, TIME"));
}

/// CLOCK_MONOTONIC as servers have it that it starts, and what they start not: the test sets it forward.
struct Clock {
    library: PathBuf,
    ahead: File,
    ahead_path: PathBuf,
    seconds: u64,
    folder: Folder,
}

const CLOCK: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long long *ahead;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY | O_CLOEXEC);
    ahead = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    unsetenv("LD_PRELOAD");
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_MONOTONIC) now->tv_sec += *ahead;
    return result;
}
"#;

impl Clock {
    fn new() -> Clock {
        let folder = Folder::new();
        let library = folder.path().join("clock.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-x", "c", "-", "-o"]).arg(&library).stdin(Stdio::piped());
        let mut child = compiler.spawn().expect("a C compiler");
        child.stdin.take().unwrap().write_all(CLOCK.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        let ahead_path = folder.path().join("ahead");
        let ahead = File::create(&ahead_path).unwrap();
        ahead.write_all_at(&[0; 8], 0).unwrap();
        Clock { library, ahead, ahead_path, seconds: 0, folder }
    }

    fn server(&self) -> Server {
        with_helpers(self.server_without_helpers())
    }

    fn server_without_helpers(&self) -> Server {
        Server::with(|builder| {
            let builder = builder.folder(&self.folder).env("LD_PRELOAD", &self.library);
            builder.env("CLOCK_AHEAD", &self.ahead_path)
        })
    }

    /// Returns when the server has looked at the clock: it does so between two messages at the latest.
    #[track_caller]
    fn forward(&mut self, server: &mut Server, seconds: u64) {
        self.seconds += seconds;
        self.ahead.write_all_at(&self.seconds.to_ne_bytes(), 0).unwrap();
        server.request("ping", Value::Null);
        server.request("ping", Value::Null);
    }
}

// ---- the bridge and the client -------------------------------------------------------------------------------------

fn connect(socket: &Path, path: &str, body: &Value) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).expect("the server reads");
    stream
}

/// The status of an answer, and its JSON.
#[track_caller]
fn answer_of(mut stream: UnixStream) -> (u16, Value) {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}")))
}

#[track_caller]
fn ask(socket: &Path, path: &str, body: &Value) -> Value {
    let (status, answer) = answer_of(connect(socket, path, body));
    assert_eq!(status, 200, "{answer}");
    answer
}

#[track_caller]
fn expect_answer(answer: &Value, exit: i32, form: &str) {
    let text = answer["result"].as_str().expect("a result");
    assert!(answer["exit_code"] == exit && fits(text, form), "expected {exit} and {form:?}, not {answer}");
    assert_eq!(answer["is_error"], exit != 0, "{answer}");
}

/// The events of a stream as they come. A drop hangs up.
struct Events(Lines<BufReader<UnixStream>>);

impl Events {
    fn of(stream: UnixStream) -> Events {
        Events(BufReader::new(stream).lines())
    }

    /// Reads on until a text has come, in one or more events of this kind.
    #[track_caller]
    fn until(&mut self, kind: &str, wanted: &str) {
        let mut text = String::new();
        while !text.contains(wanted) {
            let event = self.next().unwrap_or_else(|| panic!("the stream ended; {kind} had {text:?}"));
            text += event[kind].as_str().unwrap_or_default();
        }
    }
}

impl Iterator for Events {
    type Item = Value;

    /// The lines between events are of the head and of chunks.
    fn next(&mut self) -> Option<Value> {
        loop {
            let line = self.0.next()?.expect("the stream goes on");
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).expect("an event"));
            }
        }
    }
}

fn texts(events: &[Value], kind: &str) -> String {
    events.iter().filter_map(|event| event[kind].as_str()).collect()
}

fn client(socket: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("client").args(words).env_clear().env("MCP_PY_SOCKET", socket).env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a client said: exit code, stdout, stderr.
type Said = (i32, String, String);

fn said(child: Child) -> Said {
    let output = child.wait_with_output().expect("the client ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn run(socket: &Path, words: &[&str]) -> Said {
    said(client(socket, words).spawn().unwrap())
}

#[track_caller]
fn expect_said(said: &Said, exit: i32, out: &str, err: &str) {
    let is_so = said.0 == exit && said.1 == out && fits(&said.2, err);
    assert!(is_so, "expected {exit} {out:?} {err:?}, not {said:?}");
}

// ---- how long a call waits -----------------------------------------------------------------------------------------

#[test]
fn with_wait_0_a_call_starts_its_cell_and_is_answered() {
    let mut server = Server::start();
    let go = server.flag();
    let code = format!("import os, time\nwhile not os.path.exists({go:?}): time.sleep(0.01)\n'end'");
    let told = server.call("execute", json!({"code": code, "wait": 0}));
    expect(&mut server, &told, &format!("[mcp-py: cell 1 still runs after TIME and {GOES_ON}"));
    release(&go);
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: cell 1 ended after TIME]\n'end'");
}

#[test]
fn when_its_time_is_over_a_call_has_what_was_printed_and_wait_has_the_rest() {
    let mut server = start();
    let go = server.flag();
    let code = format!("print('one')\nuntil({go:?})\nprint('two')\n'end'");
    let start = Instant::now();
    let told = server.call("execute", json!({"code": code, "wait": 1.5}));
    assert!(start.elapsed() >= Duration::from_millis(1_500), "{:?}", start.elapsed());
    expect(&mut server, &told, &format!("one\n[mcp-py: cell 2 still runs after TIME and {GOES_ON}"));
    release(&go);
    let told = wait(&mut server);
    expect(&mut server, &told, "two\n[mcp-py: cell 2 ended after TIME]\n'end'");
    check(&mut server, "'next'", "'next'");
}

#[test]
fn a_call_that_waits_longer_than_its_cell_takes_is_answered_at_its_end() {
    let mut server = start();
    let begun = Instant::now();
    let told = server.call("execute", json!({"code": "time.sleep(0.3); 'soon'", "wait": 40}));
    expect(&mut server, &told, "'soon'");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let told = server.call("execute", json!({"code": "1/0", "wait": 40}));
    expect_error(&mut server, &told, &["ZeroDivisionError"]);
    lacks(&mut server, &told.text, &["[mcp-py"]);
}

#[test]
fn the_time_of_a_call_counts_from_its_arrival() {
    if is_on_macos() {
        return; // the clock is Linux's
    }
    let mut clock = Clock::new();
    let mut server = clock.server();
    let go_first = server.flag();
    let begun = server.flag();
    let code = format!("mark({begun:?})\nuntil({go_first:?})\n'first'");
    let first = server.start_call("execute", json!({"code": code, "wait": 1000}));
    server.expect_file(&begun);
    let go = server.flag();
    let queued = server.start_call("execute", json!({"code": format!("until({go:?})"), "wait": 100}));
    server.expect_no_answer();
    clock.forward(&mut server, 60); // in the queue
    release(&go_first);
    assert_eq!(server.wait(first).text, "'first'");
    server.expect_no_answer();
    clock.forward(&mut server, 30); // 90 in all
    server.expect_no_answer();
    clock.forward(&mut server, 11);
    let told = server.wait(queued);
    expect(&mut server, &told, &format!("[mcp-py: cell 3 still runs after TIME and {GOES_ON}"));
    has(&mut server, &told.text, &["after 4"]); // seconds, 41 or more
    release(&go);
    wait(&mut server);
}

/// A cell of this server, whose call does not say how long it waits, is answered after so many seconds; None: only at
/// its end. `client` is what a modern request says of the host.
#[track_caller]
fn expect_wait(clock: &mut Clock, server: &mut Server, client: Option<&str>, seconds: Option<u64>) {
    let begun = server.flag();
    let go = server.flag();
    let code = format!("mark({begun:?})\nuntil({go:?})\n'end'");
    let params = json!({"name": "execute", "arguments": {"code": code, "timeout": 0}});
    let id = match client {
        None => server.start_request("tools/call", params),
        Some(name) => {
            let mut params = params;
            params["_meta"] = json!({"io.modelcontextprotocol/clientInfo": {"name": name, "version": "1"}});
            server.start_modern("tools/call", params)
        }
    };
    server.expect_file(&begun);
    clock.forward(server, seconds.map_or(1_000_000, |seconds| seconds - 10));
    server.expect_no_answer();
    if seconds.is_none() {
        release(&go);
        return assert_eq!(server.wait(id).text, "'end'");
    }
    clock.forward(server, 11);
    let told = server.wait_within(id, SECOND);
    has(server, &told.text, &["still runs after "]);
    release(&go);
    assert!(wait(server).text.ends_with("]\n'end'"));
}

const HOSTS: [(&str, Option<u64>); 7] = [
    ("claude-code", None),
    ("codex-mcp-client", Some(240)),
    ("gemini-cli-mcp-client", Some(540)),
    ("gemini-cli-mcp-client-python", Some(540)),
    ("Visual Studio Code", Some(540)),
    ("Visual Studio Code - Insiders", Some(540)),
    ("some other host", Some(50)),
];

#[test]
fn a_host_that_says_its_name_in_initialize_gets_the_wait_that_it_can_take() {
    if is_on_macos() {
        return;
    }
    let mut clock = Clock::new();
    for (name, seconds) in HOSTS {
        let mut server = clock.server_without_helpers();
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {},
                            "clientInfo": {"name": name, "version": "1"}});
        server.request("initialize", params);
        help(&mut server);
        server.remark(name);
        expect_wait(&mut clock, &mut server, None, seconds);
    }
    let mut server = clock.server_without_helpers();
    help(&mut server);
    server.remark("no initialize");
    expect_wait(&mut clock, &mut server, None, Some(50));
}

#[test]
fn a_host_that_says_its_name_in_each_request_gets_the_wait_that_it_can_take() {
    if is_on_macos() {
        return;
    }
    let mut clock = Clock::new();
    let mut server = clock.server_without_helpers();
    help(&mut server);
    for (name, seconds) in HOSTS {
        server.remark(name);
        expect_wait(&mut clock, &mut server, Some(name), seconds);
    }
}

#[test]
fn mcp_py_wait_goes_over_what_is_known_of_the_host_and_a_call_over_both() {
    let mut server = Server::with(|builder| builder.env("MCP_PY_WAIT", "0.4"));
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": {},
                        "clientInfo": {"name": "claude-code", "version": "1"}});
    server.request("initialize", params);
    help(&mut server);
    let go = server.flag();
    let start = Instant::now();
    let told = server.exec(&format!("until({go:?})\n'end'"));
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    expect(&mut server, &told, &format!("[mcp-py: cell 2 still runs after TIME and {GOES_ON}"));
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: cell 2 still runs: TIME]");
    let follower = server.start_call("wait", json!({"seconds": 50}));
    server.expect_silence(Duration::from_millis(800));
    release(&go);
    let told = server.wait(follower);
    expect(&mut server, &told, "[mcp-py: cell 2 ended after TIME]\n'end'");
    let told = server.call("execute", json!({"code": "time.sleep(0.8); 'mine'", "wait": 50}));
    expect(&mut server, &told, "'mine'");
}

#[test]
fn mcp_py_wait_may_be_none() {
    if is_on_macos() {
        return;
    }
    let mut clock = Clock::new();
    let mut server = Server::with(|builder| {
        let builder = builder.folder(&clock.folder).env("LD_PRELOAD", &clock.library);
        builder.env("CLOCK_AHEAD", &clock.ahead_path).env("MCP_PY_WAIT", "none")
    });
    help(&mut server);
    expect_wait(&mut clock, &mut server, None, None);
    expect_wait(&mut clock, &mut server, Some("codex-mcp-client"), None);
}

#[test]
fn calls_of_the_bridge_wait_as_long_as_it_takes() {
    if is_on_macos() {
        return;
    }
    let mut clock = Clock::new();
    let mut server = clock.server();
    let info = server.call("get_session_info", json!({})).structured;
    let socket = PathBuf::from(info["socket_path"].as_str().expect("a socket"));
    let begun = server.flag();
    let go = server.flag();
    let code = format!("mark({begun:?})\nuntil({go:?})\n'end'");
    let mut cell = connect(&socket, "/execute", &json!({"code": code, "timeout": 0}));
    server.expect_file(&begun);
    let queued = connect(&socket, "/tools/execute", &json!({"code": "'queued'", "timeout": 0}));
    let follower = connect(&socket, "/wait", &json!({}));
    ask(&socket, "/tools/list_interpreters", &json!({})); // by then the others have been read
    clock.forward(&mut server, 1_000_000);
    server.expect_no_answer();
    cell.set_nonblocking(true).unwrap();
    let nothing = cell.read(&mut [0]).expect_err("the cell was answered before its end");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    cell.set_nonblocking(false).unwrap();
    release(&go);
    expect_answer(&answer_of(cell).1, 0, "'end'");
    assert_eq!(answer_of(queued).1["content"][0]["text"], "'queued'");
    assert_eq!(answer_of(follower).0, 200);
}

#[test]
fn a_wait_that_is_no_number_of_seconds_is_refused_and_nothing_runs() {
    let mut server = start();
    for wrong in [json!(-1), json!("soon"), json!(true), json!(1e9)] {
        let told = server.call("execute", json!({"code": "ran = 1", "wait": wrong}));
        expect_error(&mut server, &told, &["\"wait\""]);
        let told = server.call("wait", json!({"seconds": wrong}));
        expect_error(&mut server, &told, &["\"seconds\""]);
    }
    let told = server.call("reset", json!({"restart": "yes"}));
    expect_error(&mut server, &told, &["\"restart\""]);
    check(&mut server, "'ran' in dir(), 'until' in dir()", "(False, True)");
}

// ---- not run -------------------------------------------------------------------------------------------------------

#[test]
fn a_cell_whose_turn_does_not_come_in_time_leaves_the_queue_and_never_runs() {
    let mut server = start();
    let go = detach(&mut server, "'end'");
    let ran = server.flag();
    let start = Instant::now();
    let told = server.call("execute", json!({"code": format!("mark({ran:?})"), "wait": 0.5}));
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
    expect_error(&mut server, &told, &["cell 2", " s"]);
    assert!(told.text.starts_with("not run: "), "{}", told.text);
    let told = server.call("execute", json!({"code": format!("mark({ran:?})"), "wait": 0}));
    assert!(told.is_error && told.text.starts_with("not run: "), "{told:?}");
    release(&go);
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: cell 2 ended after TIME]\n'end'");
    // Neither was it numbered: cells are numbered when they start.
    let go = detach(&mut server, "");
    release(&go);
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: cell 3 ended after TIME]");
    assert!(!ran.exists(), "a cell ran whose caller was told that it did not");
}

#[test]
fn list_vars_and_reset_wait_as_long_as_is_usual_and_do_nothing_afterwards() {
    let mut server = start_with("MCP_PY_WAIT", "0.4");
    let go = detach(&mut server, "kept = 1");
    for tool in ["list_vars", "reset"] {
        let start = Instant::now();
        let told = server.call(tool, json!({}));
        assert!(told.is_error && told.text.starts_with("not run: cell 2"), "{tool}: {told:?}");
        assert!(start.elapsed() >= Duration::from_millis(400), "{tool}: {:?}", start.elapsed());
    }
    release(&go);
    server.call("wait", json!({"seconds": 50}));
    check(&mut server, "kept", "1");
}

#[test]
fn a_call_waits_for_an_interpreter_that_is_only_starting() {
    let folder = Folder::new();
    let go = folder.path().join("go");
    let script =
        format!("#!/bin/sh\nwhile [ ! -e '{}' ]; do sleep 0.02; done\nexec {} \"$@\"\n", go.display(), python());
    let slow = folder.script("python3", &script);
    let mut server = Server::with(|builder| builder.folder(&folder).env("MCP_PY_PYTHON", &slow));
    let end = folder.path().join("end");
    let code = format!("import os, time\nwhile not os.path.exists({end:?}): time.sleep(0.01)");
    let first = server.start_call("execute", json!({"code": code, "wait": 0}));
    server.expect_silence(SECOND / 2);
    release(&go);
    let told = server.wait(first);
    expect(&mut server, &told, &format!("[mcp-py: cell 1 still runs after TIME and {GOES_ON}"));
    release(&end);
    wait(&mut server);
}

#[test]
fn a_startup_script_that_runs_is_a_start_too() {
    let mut server = start();
    let begun = server.flag();
    let go = server.flag();
    let script = format!("{}\nmark({begun:?})\nuntil({go:?})", py(HELPERS));
    let adding = json!({"name": "x", "python_path": python(), "startup_script": script});
    let added = server.start_call("add_interpreter", adding);
    server.expect_file(&begun);
    let cell = server.start_call("execute", json!({"code": "'ran'", "interpreter": "x", "wait": 0}));
    server.expect_no_answer();
    server.expect_no_answer();
    release(&go);
    assert!(!server.wait(added).is_error);
    let told = server.wait(cell);
    assert!(!told.is_error, "{}", told.text);
    assert!(told.text.starts_with("[mcp-py: cell 1 still runs") || told.text == "'ran'", "{}", told.text);
}

// ---- wait ----------------------------------------------------------------------------------------------------------

#[test]
fn wait_without_anything_that_runs_says_so() {
    let mut server = Server::start();
    let told = wait(&mut server);
    assert!(!told.is_error && told.text.starts_with("[mcp-py: "), "{told:?}");
    let mut server = start();
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: nothing runs; cell 1 ended TIME ago, its answer was given]");
    server.call("add_interpreter", json!({"name": "x", "python_path": python()}));
    for tool in ["wait", "interrupt"] {
        let told = server.call(tool, json!({"interpreter": "x"}));
        expect(&mut server, &told, "[mcp-py: nothing runs]");
        let told = server.call(tool, json!({"interpreter": "nobody"}));
        expect_error(&mut server, &told, &["no interpreter \"nobody\""]);
    }
}

#[test]
fn wait_tells_an_error_as_execute_does() {
    let mut server = start();
    let go = detach(&mut server, "print('so far')\ndef f(): return 1/0  # here\nf()");
    release(&go);
    let told = wait(&mut server);
    assert!(told.text.starts_with("so far\n[mcp-py: cell 2 ended after "), "{}", told.text);
    let words =
        ["]\nTraceback (most recent call last):\n", "<cell 2>", "# here\n", "ZeroDivisionError: division by zero"];
    expect_error(&mut server, &told, &words);
    check(&mut server, "'next'", "'next'");
}

#[test]
fn wait_shows_the_figures_of_its_cell() {
    let mut server = start();
    server.ok(PICTURE);
    for tool in ["wait", "interrupt"] {
        let go = detach(&mut server, "Picture()");
        release(&go);
        until_idle(&mut server);
        let told = server.call(tool, json!({}));
        let content = told.raw["content"].as_array().unwrap();
        assert_eq!(content.len(), 2, "{}", told.raw);
        assert_eq!(content[1], json!({"type": "image", "mimeType": "image/png", "data": "iVBORyBwaWN0dXJl"}));
        has(&mut server, &told.text, &["[mcp-py: figure saved: ", "ended after "]);
        assert_eq!(wait(&mut server).raw["content"].as_array().map(Vec::len), Some(1), "it came twice");
    }
}

#[test]
fn a_figure_that_was_drawn_before_its_call_ended_comes_once() {
    let mut server = start();
    let folder = server.folder().project().join("matplotlib");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("__init__.py"), "").unwrap();
    let figure = "class Figure:\n    dpi = 100\n    def get_size_inches(self): return 1, 1\n\
                  \x20   def savefig(self, file, format, dpi): file.write(b'\\x89PNG picture')\n";
    fs::write(folder.join("figure.py"), figure).unwrap();
    let pyplot = "from matplotlib.figure import Figure\nopen_ones = {}\n\
                  def figure(_=None): return open_ones.setdefault(1, Figure())\n\
                  def get_fignums(): return list(open_ones)\ndef close(_): open_ones.clear()\n";
    fs::write(folder.join("pyplot.py"), pyplot).unwrap();
    let first = "import matplotlib.pyplot as plt\n_ = plt.figure(); plt.show()";
    let end = detach_amid(&mut server, first, "_ = plt.figure()\n'end'");
    let count = |told: &ToolResult| told.raw["content"].as_array().map_or(0, Vec::len) - 1;
    let told = server.call("wait", json!({"seconds": 0}));
    assert!(!told.is_error && count(&told) == 1, "{}", told.raw);
    has(&mut server, &told.text, &["figure_001.png", "cell 2 still runs"]);
    release(&end);
    let told = wait(&mut server);
    assert!(!told.is_error && count(&told) == 1, "{}", told.raw);
    has(&mut server, &told.text, &["figure_002.png", "cell 2 ended after ", "]\n'end'"]);
}

#[test]
fn wait_says_how_long_its_cell_has_run_and_been_silent() {
    if is_on_macos() {
        return;
    }
    let mut clock = Clock::new();
    let mut server = clock.server();
    let printed = server.flag();
    let more = server.flag();
    let code = format!("mark({printed:?})\nuntil({more:?})\nprint('more')\nmark({printed:?} + '2')");
    let go = server.flag();
    server.call("execute", json!({"code": format!("{code}\nuntil({go:?})\n'end'"), "wait": 0}));
    server.expect_file(&printed);
    clock.forward(&mut server, 200);
    let told = server.call("wait", json!({"seconds": 0}));
    expect(&mut server, &told, "[mcp-py: cell 2 still runs: TIME, nothing new for TIME]");
    has(&mut server, &told.text, &["runs: 3 min 2", "new for 3 min 2"]);
    release(&more);
    server.expect_file(&PathBuf::from(format!("{}2", printed.display())));
    let told = server.call("wait", json!({"seconds": 0}));
    expect(&mut server, &told, "more\n[mcp-py: cell 2 still runs: TIME]");
    let follower = server.start_call("wait", json!({"seconds": 95}));
    server.expect_no_answer();
    clock.forward(&mut server, 96);
    let told = server.wait(follower);
    expect(&mut server, &told, "[mcp-py: cell 2 still runs: TIME, nothing new for TIME]");
    has(&mut server, &told.text, &["runs: 4 min 5", "new for 9"]);
    release(&go);
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: cell 2 ended after TIME]\n'end'");
    has(&mut server, &told.text, &["after 4 min 5"]);
    clock.forward(&mut server, 30);
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: nothing runs; cell 2 ended TIME ago, its answer was given]");
    has(&mut server, &told.text, &["ended 3"]); // 30 s, or a little more
}

#[test]
fn of_several_waits_the_first_gets_the_output_and_the_others_are_told() {
    let mut server = start();
    let go = detach(&mut server, "print('two')\n'end'");
    let followers: Vec<_> = (0..3).map(|_| server.start_call("wait", json!({}))).collect();
    server.expect_no_answer();
    release(&go);
    let told = server.wait(followers[0]);
    expect(&mut server, &told, "two\n[mcp-py: cell 2 ended after TIME]\n'end'");
    for follower in &followers[1..] {
        let told = server.wait(*follower);
        expect(&mut server, &told, "[mcp-py: cell 2 ended after TIME; its answer went to another call]");
    }
}

#[test]
fn a_wait_beside_the_cells_own_call_leaves_the_answer_to_that() {
    let mut server = start();
    let (cell, go) = server.start_waiting();
    let follower = server.start_call("wait", json!({}));
    server.expect_no_answer();
    release(&go);
    assert_eq!(server.wait(cell).text, "'released'");
    let told = server.wait(follower);
    expect(&mut server, &told, "[mcp-py: cell 2 ended after TIME; its answer went to another call]");
}

#[test]
fn a_wait_that_came_second_gets_the_rest_when_the_first_call_has_ended() {
    let mut server = start();
    let begun = server.flag();
    let go = server.flag();
    let code = format!("print('one')\nmark({begun:?})\nuntil({go:?})\nprint('two')\n'end'");
    let cell = server.start_call("execute", json!({"code": code, "wait": 2}));
    server.expect_file(&begun);
    let follower = server.start_call("wait", json!({}));
    let told = server.wait(cell);
    expect(&mut server, &told, &format!("one\n[mcp-py: cell 2 still runs after TIME and {GOES_ON}"));
    server.expect_no_answer();
    release(&go);
    let told = server.wait(follower);
    expect(&mut server, &told, "two\n[mcp-py: cell 2 ended after TIME]\n'end'");
}

#[test]
fn a_call_is_told_where_the_client_got_the_answer_of_its_cell() {
    let (mut server, socket) = start_with_bridge();
    for has_ended in [false, true] {
        let go = detach(&mut server, "print('all of it')");
        if has_ended {
            release(&go);
            until_idle(&mut server);
        }
        let follower = client(&socket, &["--wait"]).spawn().unwrap();
        release(&go);
        let (exit, out, err) = said(follower);
        assert!(exit == 0 && out == "all of it\n", "{exit} {out:?} {err:?}");
        let told = wait(&mut server);
        let number = if has_ended { 3 } else { 2 };
        let gone = format!("cell {number} ended TIME ago, its answer went to mcp-py-client");
        expect(&mut server, &told, &format!("[mcp-py: nothing runs; {gone}]"));
    }
}

#[test]
fn a_client_that_waits_beside_the_cells_own_call_is_told_so_at_once() {
    let (mut server, socket) = start_with_bridge();
    let (begun, go) = (server.flag(), server.flag());
    let cell = server.start_exec(&format!("mark({begun:?})\nuntil({go:?})\n'mine'"));
    server.expect_file(&begun);
    let mut follower = BufReader::new(connect(&socket, "/wait", &json!({"stream": true})));
    let mut line = String::new();
    while !line.contains("note") {
        line.clear();
        assert_ne!(follower.read_line(&mut line).expect("an event within the deadline"), 0, "no note came");
    }
    for words in ["[mcp-py: cell 2 runs, for ", "its output goes to another call]"] {
        assert!(line.contains(words), "{line}");
    }
    release(&go);
    let told = server.wait(cell);
    expect(&mut server, &told, "'mine'");
}

#[test]
fn a_wait_that_is_cancelled_ends_alone_and_loses_nothing() {
    let mut server = start();
    let go = detach(&mut server, "print('two')\n'end'");
    let first = server.start_call("wait", json!({}));
    let second = server.start_call("wait", json!({}));
    server.expect_no_answer();
    server.cancel(first);
    server.expect_no_answer();
    release(&go);
    let told = server.wait(second);
    expect(&mut server, &told, "two\n[mcp-py: cell 2 ended after TIME]\n'end'");
    // What came while it waited is kept too.
    let printed = server.flag();
    let end = server.flag();
    let go = detach(&mut server, &format!("print('three')\nmark({printed:?})\nuntil({end:?})\n'end'"));
    let first = server.start_call("wait", json!({}));
    server.expect_no_answer();
    release(&go);
    server.expect_file(&printed);
    server.cancel(first);
    server.expect_no_answer();
    assert_eq!(listed(&mut server, "builtin")["busy"]["number"], 3, "the cell goes on");
    release(&end);
    let told = wait(&mut server);
    expect(&mut server, &told, "three\n[mcp-py: cell 3 ended after TIME]\n'end'");
}

#[test]
fn a_wait_beside_a_call_that_is_cancelled_has_the_end_of_its_cell() {
    let mut server = start();
    let begun = server.flag();
    let cell = server.start_exec(&format!("print('half')\nmark({begun:?})\nwhile True: pass"));
    server.expect_file(&begun);
    let follower = server.start_call("wait", json!({}));
    server.expect_no_answer();
    server.cancel(cell);
    let told = server.wait(follower);
    assert!(told.text.starts_with("half\n[mcp-py: "), "{}", told.text);
    expect_error(&mut server, &told, &["interrupted", "cell 2 ended after ", "KeyboardInterrupt"]);
    check(&mut server, "'mine'", "'mine'");
}

#[test]
fn the_cancellation_of_a_call_that_was_answered_does_not_reach_its_cell() {
    let mut server = start();
    let begun = server.flag();
    let go = server.flag();
    let code = format!("mark({begun:?})\nuntil({go:?})\n'end'");
    let cell = server.start_call("execute", json!({"code": code, "wait": 0}));
    server.wait(cell);
    server.expect_file(&begun);
    server.cancel(cell);
    server.expect_no_answer();
    release(&go);
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: cell 2 ended after TIME]\n'end'");
}

#[test]
fn a_character_that_an_answer_would_cut_in_two_comes_whole_in_the_next() {
    let mut server = start();
    let first = "_ = os.write(1, b'out \\xf0\\x9f\\x98'), os.write(2, b'err \\xc3')";
    let end = detach_amid(&mut server, first, "_ = os.write(1, b'\\x80 end'), os.write(2, b'\\xa9 \\xff')");
    let told = server.call("wait", json!({"seconds": 0}));
    expect(&mut server, &told, "out \nerr \n[mcp-py: cell 2 still runs: TIME]");
    release(&end);
    let told = wait(&mut server);
    expect(&mut server, &told, "\u{1f600} end\né \\xff\n[mcp-py: cell 2 ended after TIME]");
}

/// The file that an answer names, and what is in it.
#[track_caller]
fn full_output(text: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix("# Full output: "));
    fs::read_to_string(line.unwrap_or_else(|| panic!("no file in {} bytes", text.len()))).expect("the whole output")
}

#[test]
fn what_is_long_is_cut_and_whole_in_a_file_though_nobody_attended_it() {
    let mut server = start();
    let go = detach(&mut server, "print('a' * 40_000 + 'z' * 40_000)\n'r' * 10");
    release(&go);
    until_idle(&mut server);
    let told = wait(&mut server);
    assert!(told.text.starts_with(&"a".repeat(20_000)) && told.text.len() < 27_000, "{} bytes", told.text.len());
    has(&mut server, &told.text, &["ended after ", "# OUTPUT TRUNCATED"]);
    let whole = full_output(&told.text);
    assert!(whole.contains(&format!("{}{}", "a".repeat(40_000), "z".repeat(40_000))), "{} bytes", whole.len());
    assert!(whole.contains("'rrrrrrrrrr'"), "the value is there too");
}

#[test]
fn what_was_told_before_its_cell_ended_does_not_come_again() {
    let mut server = start();
    let end = detach_amid(&mut server, "print('a' * 30_000)", "print('b' * 40_000)");
    let told = server.call("wait", json!({"seconds": 0}));
    assert!(told.text.starts_with(&"a".repeat(20_000)), "{} bytes", told.text.len());
    has(&mut server, &told.text, &["[mcp-py: cell 2 still runs", "# OUTPUT TRUNCATED"]);
    assert!(full_output(&told.text).contains(&"a".repeat(30_000)));
    release(&end);
    let told = wait(&mut server);
    assert!(told.text.starts_with(&"b".repeat(20_000)) && !told.text.contains("aaa"), "it came again");
    assert!(full_output(&told.text).contains(&"b".repeat(40_000)));
}

// ---- what ended unattended -----------------------------------------------------------------------------------------

/// The file that a note names.
#[track_caller]
fn file_in_note(text: &str) -> PathBuf {
    let start = text.find(" /").unwrap_or_else(|| panic!("no file in {text:?}")) + 1;
    let path = text[start..].split([':', ']', ';', '\n', ' ']).next().expect("a path");
    PathBuf::from(path)
}

#[test]
fn what_ended_unattended_is_told_once_ahead_of_the_next_cell_with_its_file() {
    let mut server = start();
    let go = detach(&mut server, "print('two')\n'end'");
    release(&go);
    until_idle(&mut server);
    let text = server.ok("'mine'");
    assert!(text.starts_with("[mcp-py: cell 2 ended after ") && text.ends_with("]\n'mine'"), "{text}");
    has(&mut server, &text, &["two\n", "'end'"]);
    let file = file_in_note(&text);
    assert!(file.starts_with(server.folder().tmp()), "{}", file.display());
    let whole = fs::read_to_string(&file).unwrap();
    assert!(whole.contains("two\n") && whole.contains("'end'"), "{whole:?}");
    check(&mut server, "'mine'", "'mine'");
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: nothing runs; cell 4 ended TIME ago, its answer was given]");
}

#[test]
fn a_cell_that_failed_unattended_is_told_with_its_traceback() {
    let mut server = start();
    let go = detach(&mut server, "1/0  # here");
    release(&go);
    until_idle(&mut server);
    // A call that does not wait tells it too.
    let go = server.flag();
    let told = server.call("execute", json!({"code": format!("until({go:?})"), "wait": 0}));
    assert!(!told.is_error && told.text.starts_with("[mcp-py: cell 2 ended after "), "{told:?}");
    has(&mut server, &told.text, &["# here", "ZeroDivisionError: division by zero", "[mcp-py: cell 3 still runs"]);
    release(&go);
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: cell 3 ended after TIME]");
}

#[test]
fn what_ended_unattended_is_told_at_the_door_by_which_it_came() {
    let (mut server, socket) = start_with_bridge();
    let go = detach(&mut server, "print('by mcp')");
    release(&go);
    until_idle(&mut server);
    expect_answer(&ask(&socket, "/execute", &json!({"code": "'theirs'"})), 0, "'theirs'");
    let text = server.ok("'mine'");
    assert!(text.starts_with("[mcp-py: cell 2 ended after ") && text.ends_with("by mcp\n]\n'mine'"), "{text}");
    // And the other way round.
    ask(&socket, "/execute", &json!({"code": "time.sleep(0.2); print('by the bridge')", "wait": 0}));
    until_idle(&mut server);
    check(&mut server, "'mine'", "'mine'");
    let answer = ask(&socket, "/execute", &json!({"code": "'theirs'"}));
    let text = answer["result"].as_str().unwrap();
    assert!(text.starts_with("[mcp-py: cell 5 ended after ") && text.ends_with("by the bridge\n]\n'theirs'"), "{text}");
    expect_answer(&ask(&socket, "/execute", &json!({"code": "'theirs'"})), 0, "'theirs'");
}

#[test]
fn wait_shows_what_came_by_the_other_door() {
    let (mut server, socket) = start_with_bridge();
    let go = server.flag();
    ask(&socket, "/execute", &json!({"code": format!("until({go:?})\n'by the bridge'"), "wait": 0}));
    let follower = server.start_call("wait", json!({}));
    server.expect_no_answer();
    release(&go);
    let told = server.wait(follower);
    expect(&mut server, &told, "[mcp-py: cell 2 ended after TIME]\n'by the bridge'");
    expect_answer(&ask(&socket, "/execute", &json!({"code": "'theirs'"})), 0, "'theirs'");
}

#[test]
fn an_interpreter_that_dies_unattended_is_told_once() {
    let mut server = start();
    let go = detach(&mut server, "print('last words'); os._exit(3)");
    let follower = server.start_call("wait", json!({}));
    server.expect_no_answer();
    release(&go);
    let told = server.wait(follower);
    expect_error(&mut server, &told, &["last words\n", "exited with code 3; its variables are gone"]);
    check(&mut server, "'until' in dir()", "False");
    // And where nobody waits for it, by the next cell.
    help(&mut server);
    let go = detach(&mut server, "print('last words'); os._exit(3)");
    release(&go);
    until_idle(&mut server);
    let text = server.ok("'until' in dir()");
    has(&mut server, &text, &["cell 5 ended after ", "last words", "exited with code 3; its variables are gone"]);
    assert!(text.ends_with("]\nFalse") && text.matches("exited with code 3").count() == 1, "{text}");
    check(&mut server, "'on'", "'on'");
}

#[test]
fn stop_interpreter_tells_what_ended_unattended() {
    let mut server = start();
    server.call("add_interpreter", json!({"name": "x", "python_path": python(), "startup_script": py(HELPERS)}));
    let go = detach_in(&mut server, "x", "print('two')");
    release(&go);
    let start = Instant::now();
    while !listed(&mut server, "x")["busy"].is_null() {
        assert!(start.elapsed() < DEADLINE, "the cell never ended");
        thread::sleep(Duration::from_millis(5));
    }
    let told = server.call("stop_interpreter", json!({"name": "x"}));
    has(&mut server, &told.text, &["Interpreter \"x\" stopped", "cell 1 ended after ", "two"]);
}

// ---- cancelled cells -----------------------------------------------------------------------------------------------

#[test]
fn what_a_cancelled_cell_had_printed_is_told_once_at_its_door() {
    let (mut server, socket) = start_with_bridge();
    let begun = server.flag();
    let cell = server.start_exec(&format!("print('half')\nmark({begun:?})\nwhile True: pass"));
    server.expect_file(&begun);
    server.cancel(cell);
    until_idle(&mut server);
    expect_answer(&ask(&socket, "/execute", &json!({"code": "'theirs'"})), 0, "'theirs'");
    let text = server.ok("'mine'");
    assert!(text.starts_with("[mcp-py: cell 2 was cancelled; ") && text.ends_with("]\n'mine'"), "{text}");
    has(&mut server, &text, &["half\n"]);
    check(&mut server, "'mine'", "'mine'");
}

#[test]
fn a_cancelled_cell_that_printed_nothing_leaves_no_note() {
    let mut server = start();
    let cell = server.start_spinning();
    server.cancel(cell);
    check(&mut server, "'mine'", "'mine'");
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: nothing runs; cell 3 ended TIME ago, its answer was given]");
}

#[test]
fn what_the_cell_of_a_client_that_hung_up_had_printed_is_told_at_the_bridge() {
    let (mut server, socket) = start_with_bridge();
    let begun = server.flag();
    let code = format!("print('half')\nmark({begun:?})\nwhile True: pass");
    let stream = connect(&socket, "/execute", &json!({ "code": code }));
    server.expect_file(&begun);
    drop(stream);
    until_idle(&mut server);
    check(&mut server, "'mine'", "'mine'");
    let answer = ask(&socket, "/execute", &json!({"code": "'theirs'"}));
    let text = answer["result"].as_str().unwrap();
    assert!(text.starts_with("[mcp-py: cell 2 was cancelled; ") && text.ends_with("half\n]\n'theirs'"), "{text}");
    expect_answer(&ask(&socket, "/execute", &json!({"code": "'theirs'"})), 0, "'theirs'");
}

// ---- interrupt -----------------------------------------------------------------------------------------------------

#[test]
fn the_tool_interrupt_ends_what_runs_and_has_its_answer() {
    let mut server = start();
    let pid = listed(&mut server, "builtin")["pid"].clone();
    let go = detach(&mut server, "print('begun')\nwhile True: pass");
    release(&go);
    let start = Instant::now();
    let told = server.call("interrupt", json!({}));
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    expect_error(&mut server, &told, &["KeyboardInterrupt", "cell 2 ended after "]);
    assert!(!told.text.contains("not stopped"), "{}", told.text);
    assert_eq!(listed(&mut server, "builtin")["pid"], pid);
    check(&mut server, "'until' in dir()", "True");
    let told = server.call("interrupt", json!({}));
    expect(&mut server, &told, "[mcp-py: nothing runs; cell 3 ended TIME ago, its answer was given]");
}

#[test]
fn where_a_call_waits_for_the_cell_that_has_the_answer_of_an_interrupt() {
    let mut server = start();
    let cell = server.start_spinning();
    let interrupt = server.start_call("interrupt", json!({}));
    let told = server.wait(cell);
    expect_error(&mut server, &told, &["KeyboardInterrupt", "interrupted"]);
    let told = server.wait(interrupt);
    expect(&mut server, &told, "[mcp-py: cell 2 ended after TIME; its answer went to another call]");
    check(&mut server, "'next'", "'next'");
}

#[test]
fn a_cell_that_does_not_heed_its_timeout_is_reported_and_goes_on() {
    let (mut server, socket) = start_with_bridge();
    let pid = listed(&mut server, "builtin")["pid"].clone();
    let begun = server.flag();
    let go = server.flag();
    let code = format!("deafen()\nprint('before')\nmark({begun:?})\nuntil({go:?})\nprint('after')\n'end'");
    let start = Instant::now();
    let cell = server.start_call("execute", json!({"code": code, "timeout": 1}));
    server.expect_file(&begun);
    let queued = server.start_exec("ran = 1");
    let told = server.wait(cell);
    let took = start.elapsed();
    assert!(took >= 10 * SECOND && took < 10 * SECOND + SOON, "{took:?}");
    let why = format!("interrupted after its timeout of 1 s, {NOT_STOPPED}");
    assert_eq!((told.text.as_str(), told.is_error), (format!("before\n[mcp-py: {why}]").as_str(), true));
    for id in [queued, server.start_exec("ran = 1"), server.start_call("list_vars", json!({}))] {
        let told = server.wait_within(id, SOON);
        assert_eq!((told.text.as_str(), told.is_error), (format!("not run: cell 2 was {why}").as_str(), true));
    }
    let told = server.call("wait", json!({"seconds": 0}));
    assert!(told.text.starts_with("[mcp-py: cell 2 still runs: "), "{told:?}");
    assert_eq!(ask(&socket, "/interrupt", &json!({})), json!({"interrupted": true}));
    release(&go);
    let told = wait(&mut server);
    has(&mut server, &told.text, &["after\n[mcp-py: ", "cell 2 ended after ", "'end'"]);
    lacks(&mut server, &told.text, &["before"]);
    let text = server.ok("'ran' in dir()");
    assert!(text.ends_with("False"), "{text}");
    assert_eq!(listed(&mut server, "builtin")["pid"], pid);
}

#[test]
fn an_interrupt_that_is_not_heeded_is_answered_after_ten_seconds() {
    if is_on_macos() {
        return;
    }
    let mut clock = Clock::new();
    let mut server = clock.server();
    let end = detach_amid(&mut server, "deafen()", "print('late')");
    let interrupt = server.start_call("interrupt", json!({}));
    server.expect_no_answer();
    clock.forward(&mut server, 9);
    server.expect_no_answer();
    clock.forward(&mut server, 2);
    let told = server.wait(interrupt);
    expect_error(&mut server, &told, &[&format!("[mcp-py: interrupted, {NOT_STOPPED}]")]);
    let told = server.exec("1");
    expect_error(&mut server, &told, &["not run: cell 2 was interrupted, but it has not stopped: "]);
    let again = server.start_call("interrupt", json!({}));
    clock.forward(&mut server, 11);
    let told = server.wait(again);
    expect_error(&mut server, &told, &["but it has not stopped: "]);
    release(&end);
    until_idle(&mut server);
    // Its rest is told like that of any unattended cell.
    let text = server.ok("'mine'");
    has(&mut server, &text, &["cell 2 ended after ", "late\n"]);
    assert!(text.ends_with("]\n'mine'"), "{text}");
}

#[test]
fn an_interrupt_waits_for_what_its_cell_does_at_its_end() {
    let mut server = start_with("MCP_PY_WAIT", "0.1");
    let begun = server.flag();
    let code = format!(
        "try:\n    mark({begun:?})\n    while True: time.sleep(0.01)\nfinally:\n    time.sleep(1)\n    print('saved')"
    );
    server.call("execute", json!({"code": code, "wait": 0}));
    server.expect_file(&begun);
    let told = server.call("interrupt", json!({}));
    assert!(told.text.starts_with("saved\n[mcp-py: "), "{}", told.text);
    expect_error(&mut server, &told, &["KeyboardInterrupt", "cell 2 ended after "]);
}

#[test]
fn a_cancelled_cell_that_does_not_heed_it_lets_no_other_wait_in_vain() {
    if is_on_macos() {
        return;
    }
    let mut clock = Clock::new();
    let mut server = clock.server();
    let begun = server.flag();
    let go = server.flag();
    let cell = server.start_exec(&format!("deafen()\nprint('half')\nmark({begun:?})\nuntil({go:?})\nprint('late')"));
    server.expect_file(&begun);
    server.cancel(cell);
    let queued = server.start_call("execute", json!({"code": "1", "wait": 40}));
    server.expect_no_answer();
    clock.forward(&mut server, 11);
    let told = server.wait(queued);
    expect_error(&mut server, &told, &["not run: cell 2 was interrupted, but it has not stopped: "]);
    release(&go);
    until_idle(&mut server);
    let text = server.ok("'mine'");
    has(&mut server, &text, &["cell 2 ", "half\n", "late\n"]);
    assert!(text.ends_with("]\n'mine'"), "{text}");
    check(&mut server, "'mine'", "'mine'");
}

#[test]
fn a_cell_that_swallows_its_interrupt_is_interrupted_again_three_seconds_later() {
    let mut server = start();
    let code = "
        times = []
        while len(times) < 2:
            try:
                while True: time.sleep(0.01)
            except KeyboardInterrupt:
                times.append(time.monotonic())
        times[1] - times[0]
        ";
    let told = server.call("execute", json!({"code": py(code), "timeout": 0.5}));
    let between: f64 = told.text.lines().last().and_then(|line| line.parse().ok()).unwrap_or_default();
    assert!((2.9..8.0).contains(&between), "{}", told.text);
    check(&mut server, "len(times)", "2");
}

#[test]
fn a_child_of_the_cell_gets_the_interrupt_too() {
    let mut server = start();
    let begun = server.flag();
    let told_child = server.flag();
    // libc's system() ignores SIGINT meanwhile, so the cell waits for the child.
    let child = format!(
        "trap \"touch '{}'; exit\" INT; touch '{}'; while :; do sleep 0.05; done",
        told_child.display(),
        begun.display()
    );
    let cell = server.start_exec(&format!("os.system({child:?})"));
    server.expect_file(&begun);
    let start = Instant::now();
    server.start_call("interrupt", json!({}));
    server.expect_file(&told_child);
    let told = server.wait(cell);
    assert!(start.elapsed() < 3 * SECOND, "it was killed, not interrupted: {:?}", start.elapsed());
    expect_error(&mut server, &told, &["[mcp-py: interrupted"]);
}

#[test]
fn a_child_that_ignores_the_interrupt_is_killed_after_four_seconds_and_an_older_one_lives() {
    let mut server = start();
    let pid = server.worker_pid();
    let older: i32 = server.ok("older = subprocess.Popen(['sleep', '1000']); older.pid").parse().expect("a pid");
    // Ages are told in whole seconds. Had the older child come later, it might count as the cell's.
    thread::sleep(Duration::from_millis(1_200));
    let begun = server.flag();
    let code = format!(
        "apart = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n\
         os.system(\"trap '' INT; touch '{}'; sleep 1000; sleep 1000\")",
        begun.display()
    );
    let cell = server.start_exec(&code);
    server.expect_file(&begun);
    let start = Instant::now();
    server.start_call("interrupt", json!({}));
    let told = server.wait(cell);
    let took = start.elapsed();
    expect_error(&mut server, &told, &["[mcp-py: interrupted"]);
    assert!(took > Duration::from_millis(3_900) && took < 9 * SECOND, "{took:?}");
    assert!(procs::is_alive(older), "it is another cell's");
    check(&mut server, "older.poll(), apart.poll()", "(None, None)");
    server.ok("older.kill(); apart.kill()");
    assert_eq!(server.worker_pid(), pid);
}

// ---- restart -------------------------------------------------------------------------------------------------------

#[track_caller]
fn restart(server: &mut Server) -> ToolResult {
    let told = server.call("reset", json!({"restart": true}));
    if told.is_error || !told.text.contains("Interpreter \"builtin\" restarted") {
        server.fail(&format!("a restart was expected, not {:?}", told.text));
    }
    told
}

#[test]
fn reset_with_restart_gives_an_idle_interpreter_a_new_process() {
    let (mut server, socket) = start_with_bridge();
    let pid = server.worker_pid();
    restart(&mut server);
    assert!(!procs::is_alive(pid), "the old process still runs");
    check(&mut server, "'until' in dir()", "False");
    assert_ne!(server.worker_pid(), pid);
    let answer = ask(&socket, "/execute", &json!({"code": "'theirs'"}));
    let text = answer["result"].as_str().unwrap();
    let notice = "[mcp-py: before this cell, interpreter \"builtin\" was restarted; its variables are gone";
    assert!(text.starts_with(notice) && text.ends_with("]\n'theirs'"), "{text}");
    expect_answer(&ask(&socket, "/execute", &json!({"code": "'theirs'"})), 0, "'theirs'");
    // Without restart the process goes on.
    let pid = server.worker_pid();
    server.call("reset", json!({"restart": false}));
    assert_eq!(server.worker_pid(), pid);
}

#[test]
fn a_restart_ends_what_runs_and_fails_what_waits_and_what_comes_behind_it_runs() {
    let (mut server, socket) = start_with_bridge();
    let ran = server.flag();
    let begun = server.flag();
    let cell = server.start_exec(&format!("print('so far')\nmark({begun:?})\nwhile True: pass"));
    let queued = server.start_exec(&format!("mark({ran:?})"));
    let theirs = connect(&socket, "/execute", &json!({"code": format!("mark({ran:?})")}));
    server.expect_file(&begun);
    server.expect_no_answer();
    let start = Instant::now();
    let restart = server.start_call("reset", json!({"restart": true}));
    let behind = server.start_call("execute", json!({"code": "'new'"}));
    let told = server.wait(cell);
    assert!(told.text.starts_with("so far\n[mcp-py: "), "{}", told.text);
    expect_error(&mut server, &told, &["variables are gone"]);
    assert!(!told.text.contains("before this cell"), "told twice: {}", told.text);
    let told = server.wait(queued);
    assert!(told.is_error && told.text.starts_with("not run: "), "{told:?}");
    let answer = answer_of(theirs).1;
    let text = answer["result"].as_str().or(answer["detail"].as_str()).unwrap_or_default();
    assert!(text.starts_with("not run: "), "{answer}");
    let told = server.wait(restart);
    assert!(!told.is_error && told.text.contains("Interpreter \"builtin\" restarted"), "{told:?}");
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    let told = server.wait(behind);
    expect(&mut server, &told, "'new'");
    assert!(!ran.exists(), "a cell ran whose caller was told that it did not");
}

#[test]
fn the_numbers_of_cells_go_on_over_a_restart_and_a_death() {
    let mut server = start();
    restart(&mut server);
    help(&mut server);
    let go = detach(&mut server, "");
    release(&go);
    let told = wait(&mut server);
    expect(&mut server, &told, "[mcp-py: cell 3 ended after TIME]");
    server.exec("os._exit(1)");
    let told = server.exec("1/0");
    expect_error(&mut server, &told, &["<cell 5>"]);
}

#[test]
fn a_restart_works_before_the_first_cell_and_knows_no_unknown_name() {
    let mut server = Server::start();
    restart(&mut server);
    check(&mut server, "6 * 7", "42");
    let told = server.call("reset", json!({"restart": true, "interpreter": "nobody"}));
    expect_error(&mut server, &told, &["no interpreter \"nobody\""]);
}

#[test]
fn a_restart_runs_the_startup_script_again() {
    let mut server = start();
    let script = "import os\nmine = os.getpid()";
    server.call("add_interpreter", json!({"name": "x", "python_path": python(), "startup_script": script}));
    let first = server.call("execute", json!({"code": "y = 1; mine", "interpreter": "x"})).text;
    let told = server.call("reset", json!({"restart": true, "interpreter": "x"}));
    assert!(!told.is_error && told.text.contains("Interpreter \"x\" restarted"), "{told:?}");
    let second = server.call("execute", json!({"code": "mine == os.getpid(), 'y' in dir()", "interpreter": "x"}));
    expect(&mut server, &second, "(True, False)");
    assert_ne!(server.call("execute", json!({"code": "mine", "interpreter": "x"})).text, first);
}

#[test]
fn a_restart_ends_a_startup_script_that_hangs() {
    let mut server = start();
    let hangs = server.flag();
    let begun = server.flag();
    let script = format!(
        "import os, time\nif os.path.exists({hangs:?}):\n    open({begun:?}, 'w').close()\n    time.sleep(1000)"
    );
    server.call("add_interpreter", json!({"name": "x", "python_path": python(), "startup_script": script}));
    release(&hangs);
    let first = server.start_call("reset", json!({"restart": true, "interpreter": "x"}));
    server.expect_file(&begun);
    fs::remove_file(&hangs).unwrap();
    let told = server.call("reset", json!({"restart": true, "interpreter": "x"}));
    assert!(!told.is_error && told.text.contains("Interpreter \"x\" restarted"), "{told:?}");
    server.wait(first);
    let told = server.call("execute", json!({"code": "6 * 7", "interpreter": "x"}));
    assert!(told.text.ends_with("42"), "{told:?}");
}

#[test]
fn what_ran_unattended_when_its_process_was_restarted_is_told() {
    let mut server = start();
    detach_amid(&mut server, "print('so far')", "");
    let mut text = restart(&mut server).text;
    text += &server.ok("'mine'");
    has(&mut server, &text, &["cell 2 ended after ", "so far\n", "variables are gone", "'mine'"]);
    assert_eq!(text.matches("so far").count(), 1, "{text}");
    check(&mut server, "'mine'", "'mine'");
    // One who waits for it is told at once.
    help(&mut server);
    detach(&mut server, "");
    let follower = server.start_call("wait", json!({}));
    server.expect_no_answer();
    restart(&mut server);
    let told = server.wait(follower);
    expect_error(&mut server, &told, &["variables are gone"]);
}

#[test]
fn a_restart_ends_a_process_whatever_it_does_about_signals() {
    let mut server = Server::start();
    for prepare in [
        "",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "signal.signal(signal.SIGTERM, lambda *_: None)",
        "signal.signal(signal.SIGTERM, lambda *_: time.sleep(60))",
        "deafen(signal.SIGTERM, signal.SIGHUP)",
    ] {
        for is_busy in [false, true] {
            server.remark(&format!("{prepare} {is_busy}"));
            help(&mut server);
            let pid = server.worker_pid();
            server.ok(&format!("kept = 1\n_ = {}", if prepare.is_empty() { "0" } else { prepare }));
            let cell = is_busy.then(|| server.start_spinning());
            let start = Instant::now();
            restart(&mut server);
            assert!(start.elapsed() < SOON, "{prepare}: {:?}", start.elapsed());
            assert!(!procs::is_alive(pid), "{prepare}: the old process still runs");
            if let Some(cell) = cell {
                let told = server.wait(cell);
                expect_error(&mut server, &told, &["variables are gone"]);
            }
            check(&mut server, "'kept' in dir()", "False");
        }
    }
}

#[test]
fn a_restart_ends_a_cell_that_does_not_heed_its_interrupt() {
    if is_on_macos() {
        return;
    }
    let mut clock = Clock::new();
    let mut server = clock.server();
    let pid = server.worker_pid();
    let begun = server.flag();
    let code = format!("deafen(signal.SIGTERM)\nmark({begun:?})\nwhile True: pass");
    let cell = server.start_call("execute", json!({"code": code, "timeout": 1000, "wait": 5000}));
    server.expect_file(&begun);
    clock.forward(&mut server, 1001);
    server.expect_no_answer();
    clock.forward(&mut server, 11);
    let told = server.wait(cell);
    expect_error(&mut server, &told, &["interrupted after its timeout of 1000 s, but it has not stopped: "]);
    restart(&mut server);
    assert!(!procs::is_alive(pid), "the old process still runs");
    let text = server.ok("'new'");
    assert!(text.ends_with("'new'"), "{text}");
}

// ---- what list_interpreters says -----------------------------------------------------------------------------------

#[test]
fn list_interpreters_says_what_each_is_busy_with() {
    let mut server = start();
    server.call("add_interpreter", json!({"name": "x", "python_path": python()}));
    assert_eq!(listed(&mut server, "builtin")["busy"], Value::Null);
    let begun = server.flag();
    let go = server.flag();
    let code = format!("mark({begun:?}); until({go:?})  # first line\n'end'");
    server.call("execute", json!({"code": code, "wait": 0}));
    server.expect_file(&begun);
    let busy = listed(&mut server, "builtin")["busy"].clone();
    assert_eq!(busy["number"], 2, "{busy}");
    let code = busy["code"].as_str().expect("its code");
    assert!(code.starts_with("mark(") && code.ends_with("# first line"), "{code:?}");
    let first = busy["seconds"].as_f64().expect("a number");
    assert!((0.0..60.0).contains(&first), "{busy}");
    assert_eq!(busy.as_object().unwrap().len(), 3, "{busy}");
    assert_eq!(listed(&mut server, "x")["busy"], Value::Null);
    let grows = |server: &mut Server| listed(server, "builtin")["busy"]["seconds"].as_f64() > Some(first);
    eventually(DEADLINE, "the seconds grow", || grows(&mut server));
    release(&go);
    wait(&mut server);
    assert_eq!(listed(&mut server, "builtin")["busy"], Value::Null);
}

// ---- the bridge ----------------------------------------------------------------------------------------------------

#[test]
fn execute_of_the_bridge_takes_wait_and_its_wait_answers_as_execute_does() {
    let (server, socket) = start_with_bridge();
    let go = server.flag();
    let begin = |code: &str| ask(&socket, "/execute", &json!({"code": format!("until({go:?})\n{code}"), "wait": 0}));
    let answer = begin("print('two')\n'end'");
    assert_eq!((&answer["exit_code"], &answer["images"]), (&json!(0), &json!([])), "{answer}");
    has_note(&answer, "cell 2 still runs after ");
    let answer = ask(&socket, "/wait", &json!({"seconds": 0}));
    expect_answer(&answer, 0, "[mcp-py: cell 2 still runs: TIME]");
    release(&go);
    let answer = ask(&socket, "/wait", &json!({"interpreter": "builtin"}));
    expect_answer(&answer, 0, "two\n[mcp-py: cell 2 ended after TIME]\n'end'");
    expect_answer(
        &ask(&socket, "/wait", &json!({})),
        0,
        "[mcp-py: nothing runs; cell 2 ended TIME ago, its answer went to mcp-py-client]",
    );
    for (number, (code, exit, word)) in
        [("1/0", 1, "ZeroDivisionError"), ("exit(7)", 7, "SystemExit: 7"), ("os._exit(1)", 137, "exited with code 1")]
            .into_iter()
            .enumerate()
    {
        fs::remove_file(&go).unwrap();
        has_note(&begin(code), &format!("cell {} still runs after ", number + 3));
        release(&go);
        let answer = ask(&socket, "/wait", &json!({}));
        assert_eq!((&answer["exit_code"], &answer["is_error"]), (&json!(exit), &json!(true)), "{answer}");
        has_note(&answer, word);
    }
}

#[track_caller]
fn has_note(answer: &Value, words: &str) {
    assert!(answer["result"].as_str().is_some_and(|text| text.contains(words)), "{words:?} is missing in {answer}");
}

#[test]
fn wait_of_the_bridge_names_the_files_of_figures_and_refuses_what_is_wrong() {
    let (mut server, socket) = start_with_bridge();
    server.ok(PICTURE);
    let go = detach(&mut server, "Picture()");
    release(&go);
    let answer = ask(&socket, "/wait", &json!({}));
    let image = answer["images"][0].as_str().expect("a path");
    assert_eq!(fs::read(image).unwrap(), b"\x89PNG picture");
    for (body, status) in [
        (json!({"interpreter": "nobody"}), 404),
        (json!({"interpreter": 5}), 400),
        (json!({"seconds": "5"}), 400),
        (json!({"seconds": -5}), 400),
        (json!({"stream": "yes"}), 400),
    ] {
        let (came, answer) = answer_of(connect(&socket, "/wait", &body));
        assert!(came == status && answer["detail"].is_string(), "{body}: {came} {answer}");
    }
    let (came, answer) = answer_of(connect(&socket, "/execute", &json!({"code": "1", "wait": "5"})));
    assert_eq!(came, 400, "{answer}");
}

#[test]
fn a_stream_of_wait_begins_with_what_nobody_was_told() {
    let (mut server, socket) = start_with_bridge();
    let end = detach_amid(&mut server, "print('one')", "print('two', file=sys.stderr)\n6 * 7");
    let mut events = Events::of(connect(&socket, "/wait", &json!({"stream": true})));
    events.until("stdout", "one\n");
    release(&end);
    let rest: Vec<_> = events.collect();
    assert_eq!((texts(&rest, "stdout").as_str(), texts(&rest, "stderr").as_str()), ("", "two\n"));
    assert!(texts(&rest, "note").contains("cell 2 ended after "), "{rest:?}");
    assert_eq!(rest.last(), Some(&json!({"result": "42", "is_error": false, "exit_code": 0})));
    // Where nothing runs, too, and for what ended before.
    let events: Vec<_> = Events::of(connect(&socket, "/wait", &json!({"stream": true}))).collect();
    assert!(texts(&events, "note").contains("nothing runs"), "{events:?}");
    assert_eq!(events.last(), Some(&json!({"result": "", "is_error": false, "exit_code": 0})));
    let go = detach(&mut server, "print('three')\n1/0");
    release(&go);
    until_idle(&mut server);
    let events: Vec<_> = Events::of(connect(&socket, "/wait", &json!({"stream": true}))).collect();
    assert_eq!(texts(&events, "stdout"), "three\n", "{events:?}");
    let last = events.last().unwrap();
    assert!(last["exit_code"] == 1 && last["result"].as_str().unwrap().contains("ZeroDivisionError"), "{last}");
}

#[test]
fn a_stream_of_execute_ends_when_its_time_is_over_and_the_cell_goes_on() {
    let (server, socket) = start_with_bridge();
    let go = server.flag();
    let code = format!("print('one')\nuntil({go:?})\nprint('two')\n'end'");
    let body = json!({"code": code, "wait": 1.5, "stream": true});
    let events: Vec<_> = Events::of(connect(&socket, "/execute", &body)).collect();
    assert_eq!(texts(&events, "stdout"), "one\n", "{events:?}");
    assert!(texts(&events, "note").contains("cell 2 still runs after "), "{events:?}");
    assert_eq!(events.last(), Some(&json!({"result": "", "is_error": false, "exit_code": 0})));
    release(&go);
    expect_answer(&ask(&socket, "/wait", &json!({})), 0, "two\n[mcp-py: cell 2 ended after TIME]\n'end'");
}

#[test]
fn who_hangs_up_on_wait_ends_the_following_alone() {
    let (mut server, socket) = start_with_bridge();
    for is_stream in [true, false] {
        let end = detach_amid(&mut server, "print('one')", "print('two')\n'end'");
        let stream = connect(&socket, "/wait", &json!({"stream": is_stream}));
        if is_stream {
            let mut events = Events::of(stream);
            events.until("stdout", "one\n");
        } else {
            server.expect_no_answer();
            drop(stream);
        }
        assert_eq!(ask(&socket, "/tools/list_interpreters", &json!({}))["isError"], false); // it has noticed
        assert!(listed(&mut server, "builtin")["busy"].is_object(), "the cell was interrupted");
        release(&end);
        let told = wait(&mut server);
        assert!(!told.is_error, "{}", told.text);
        has(&mut server, &told.text, &["two\n[mcp-py: cell ", " ended after ", "]\n'end'"]);
        assert!(is_stream || told.text.starts_with("one\n"), "{}", told.text);
    }
}

#[test]
fn a_character_that_is_cut_in_two_is_whole_in_the_stream_that_follows() {
    let (server, socket) = start_with_bridge();
    let begun = server.flag();
    let go = server.flag();
    let code = format!(
        "_ = os.write(1, b'one \\xf0\\x9f')\nmark({begun:?})\nuntil({go:?})\n_ = os.write(1, b'\\x98\\x80 two')"
    );
    let body = json!({"code": code, "wait": 1.5, "stream": true});
    let mut events: Vec<_> = Events::of(connect(&socket, "/execute", &body)).collect();
    let following = connect(&socket, "/wait", &json!({"stream": true}));
    release(&go);
    events.extend(Events::of(following));
    assert_eq!(texts(&events, "stdout"), "one \u{1f600} two", "{events:?}");
}

// ---- the client ----------------------------------------------------------------------------------------------------

#[test]
fn the_client_starts_a_cell_leaves_it_and_follows_it_later() {
    let (server, socket) = start_with_bridge();
    for (number, (code, exit, out, err)) in [
        ("'end'", 0, "two\n'end'\n", ""),
        ("exit(3)", 3, "two\n", "SystemExit: 3\n"),
        ("raise ValueError('no')", 1, "two\n", "ValueError: no\n"),
        ("os._exit(9)", 137, "two\n", "exited with code 9; its variables are gone"),
    ]
    .into_iter()
    .enumerate()
    {
        let go = server.flag();
        let code = format!("until({go:?})\nprint('two')\n{code}");
        let left = run(&socket, &["--detach", "-c", &code]);
        assert!(left.0 == 0 && left.1.is_empty(), "{left:?}");
        assert!(left.2.starts_with(&format!("[mcp-py: cell {} ", number + 2)), "{left:?}");
        release(&go);
        let followed = run(&socket, &["--wait"]);
        assert_eq!((followed.0, followed.1.as_str()), (exit, out), "{followed:?}");
        assert!(followed.2.contains(err), "{followed:?}");
    }
    let (exit, out, err) = run(&socket, &["--wait"]);
    assert!(exit == 0 && out.is_empty() && err.contains("nothing runs"), "{exit} {out:?} {err:?}");
}

#[test]
fn the_client_shows_what_ended_before_it_came() {
    let (mut server, socket) = start_with_bridge();
    for (code, exit, out, err) in [
        ("print('one')\nprint('two', file=sys.stderr)\n'end'", 0, "one\n'end'\n", "two\n"),
        ("print('one')\nexit(3)", 3, "one\n", "SystemExit: 3\n"),
        ("print('a' * 30_000)", 0, &"a".repeat(20_000), "# OUTPUT TRUNCATED"),
    ] {
        assert_eq!(run(&socket, &["--detach", "-c", &format!("time.sleep(0.2)\n{code}")]).0, 0);
        until_idle(&mut server);
        let followed = run(&socket, &["--wait"]);
        assert!(followed.0 == exit && followed.1.starts_with(out), "{code}: {followed:?}");
        assert!(followed.2.contains(err) && followed.2.contains(" ended after "), "{code}: {followed:?}");
    }
}

#[test]
fn the_client_that_detaches_behind_another_cell_is_told_that_its_own_was_not_run() {
    let (mut server, socket) = start_with_bridge();
    let ran = server.flag();
    let go = detach(&mut server, "");
    let (exit, out, err) = run(&socket, &["--detach", "-c", &format!("mark({ran:?})")]);
    assert!(exit != 0 && out.is_empty() && err.contains("not run: cell 2"), "{exit} {out:?} {err:?}");
    release(&go);
    wait(&mut server);
    check(&mut server, "'next'", "'next'");
    assert!(!ran.exists());
}

#[test]
fn a_client_that_only_follows_may_be_killed() {
    let (mut server, socket) = start_with_bridge();
    let end = detach_amid(&mut server, "print('one')", "'end'");
    let mut following = client(&socket, &["--wait"]).spawn().unwrap();
    following.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).expect("what it printed so far");
    procs::kill(following.id() as i32, libc::SIGINT);
    following.wait().unwrap();
    assert_eq!(ask(&socket, "/tools/list_interpreters", &json!({}))["isError"], false);
    release(&end);
    let (exit, out, err) = run(&socket, &["--wait"]);
    assert!(exit == 0 && out.ends_with("'end'\n") && err.contains("cell 2 ended after "), "{exit} {out:?} {err:?}");
}

#[test]
fn a_detached_cell_can_be_interrupted_and_its_process_restarted() {
    let (mut server, socket) = start_with_bridge();
    let begun = server.flag();
    assert_eq!(run(&socket, &["--detach", "-c", &format!("mark({begun:?})\nwhile True: pass")]).0, 0);
    server.expect_file(&begun);
    expect_said(&run(&socket, &["--interrupt"]), 0, "an interrupt was sent\n", "");
    let (exit, _, err) = run(&socket, &["--wait"]);
    assert!(exit == 130 && err.contains("KeyboardInterrupt"), "{exit} {err}");
    let pid = server.worker_pid();
    let (exit, out, err) = run(&socket, &["--reset", "--restart"]);
    assert!(exit == 0 && out.starts_with("Interpreter \"builtin\" restarted"), "{exit} {out:?} {err:?}");
    assert!(!procs::is_alive(pid));
    let text = server.ok("'mine'");
    assert!(text.contains("was restarted; its variables are gone") && text.ends_with("]\n'mine'"), "{text}");
}

#[test]
fn wrong_usage_of_the_new_options_is_exit_2_and_nothing_runs() {
    let (mut server, socket) = start_with_bridge();
    for words in [
        &["--restart"][..],
        &["--restart", "-c", "ran = 1"],
        &["--detach", "--wait"],
        &["--detach", "--reset"],
        &["--wait", "-c", "ran = 1"],
        &["--wait", "--history"],
        &["--detach"],
    ] {
        let (exit, out, err) = run(&socket, words);
        assert!(exit == 2 && out.is_empty() && err.starts_with("mcp-py-client: "), "{words:?}: {exit} {err}");
    }
    check(&mut server, "'ran' in dir(), 'until' in dir()", "(False, True)");
}

#[test]
fn a_client_says_after_two_seconds_what_its_cell_waits_for() {
    let (mut server, socket) = start_with_bridge();
    let (cell, go) = server.start_waiting();
    let start = Instant::now();
    let mut waiting = client(&socket, &["-c", "'mine'"]).spawn().unwrap();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let note = lines.next().expect("a note").unwrap();
    assert!(start.elapsed() > Duration::from_millis(1_900), "{:?}", start.elapsed());
    assert!(note.starts_with("[mcp-py: ") && note.contains("cell 2"), "{note}");
    release(&go);
    server.wait(cell);
    expect_said(&said(waiting), 0, "'mine'\n", "");
    // One whose turn comes sooner says nothing.
    let (cell, go) = server.start_waiting();
    let waiting = client(&socket, &["-c", "'mine'"]).spawn().unwrap();
    release(&go);
    server.wait(cell);
    expect_said(&said(waiting), 0, "'mine'\n", "");
}

// ---- the history ---------------------------------------------------------------------------------------------------

#[track_caller]
fn history_path(server: &mut Server) -> Option<PathBuf> {
    let info = server.call("get_session_info", json!({})).structured;
    assert!(info.get("history_path").is_some(), "{info}");
    info["history_path"].as_str().map(PathBuf::from)
}

/// What was run, without empty lines.
#[track_caller]
fn history(server: &mut Server) -> String {
    let text = fs::read_to_string(history_path(server).expect("a path")).expect("the history");
    text.lines().filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

#[track_caller]
fn expect_history(server: &mut Server, form: &str) {
    let text = history(server);
    if !fits(&text, form) {
        server.fail(&format!("expected {form}\nnot {text}"));
    }
}

#[test]
fn the_history_has_what_was_run_by_whom_when_and_how_it_ended() {
    let (mut server, socket) = {
        let mut server = Server::with(|builder| builder.under("claude"));
        let info = server.call("get_session_info", json!({})).structured;
        assert_eq!(info["history_path"], Value::Null);
        (server, PathBuf::from(info["socket_path"].as_str().expect("a socket")))
    };
    server.ok("x = 5\n\ny = x\n");
    server.exec("1/0");
    run(&socket, &["-c", "print('é')  # é"]);
    server.exec("def f(:");
    server.call("list_vars", json!({}));
    let path = history_path(&mut server).expect("a path");
    let folder = server.call("get_session_info", json!({})).structured["output_dir"].clone();
    assert_eq!(path, Path::new(folder.as_str().unwrap()).join("session.py"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = history(&mut server);
    let form = "\
# %% cell 1 · builtin · TIME · execute\nx = 5\ny = x\n# ended after TIME\n\
# %% cell 2 · builtin · TIME · execute\n1/0\n# failed after TIME: ZeroDivisionError: division by zero\n\
# %% cell 3 · builtin · TIME · client\nprint('é')  # é\n# ended after TIME\n\
# %% cell 4 · builtin · TIME · execute\n# def f(:\n# failed after TIME: SyntaxError: ";
    assert!(fits(text.split_inclusive("SyntaxError: ").next().unwrap(), form), "{text}");
    assert_eq!(text.matches("# %%").count(), 4, "{text}");
    let (exit, out, err) = run(&socket, &["--history"]);
    assert_eq!((exit, out.as_str(), err.as_str()), (0, fs::read_to_string(&path).unwrap().as_str(), ""));
    server.finish(DEADLINE);
    assert!(!path.exists(), "it goes with the output directory");
}

#[test]
fn the_history_is_python_also_after_cells_that_are_not() {
    let (mut server, socket) = start_with_bridge();
    for code in [
        "x = '''never closed",
        "def f(:",
        "if True:\n  1\n 2",
        "\n\n(",
        "raise ValueError(\"a\\r'''\")",
        "(  # a\rb = '''",
        "print('fine')  # ''' fine",
    ] {
        server.exec(code);
        run(&socket, &["-c", code]);
    }
    let text = history(&mut server);
    assert_eq!(text.matches("# %% cell ").count(), 15, "{text}");
    assert_eq!(text.matches("# failed after ").count(), 12, "{text}");
    has(&mut server, &text, &["# x = '''never closed\n", "\nprint('fine')  # ''' fine\n"]);
    let path = history_path(&mut server).expect("a path");
    check(&mut server, &format!("_ = compile(open({path:?}).read(), 'session.py', 'exec')"), "");
}

#[test]
fn the_client_says_where_there_is_no_history_yet() {
    let mut server = Server::with(|builder| builder.under("claude"));
    let info = server.call("get_session_info", json!({})).structured;
    let socket = PathBuf::from(info["socket_path"].as_str().expect("a socket"));
    let (exit, out, err) = run(&socket, &["--history"]);
    assert!(exit != 0 && out.is_empty() && err.starts_with("mcp-py-client: "), "{exit} {out:?} {err:?}");
}

#[test]
fn the_end_of_a_cell_is_named_where_another_ones_text_came_between() {
    let mut server = start();
    server.call("add_interpreter", json!({"name": "x", "python_path": python()}));
    let (cell, go) = server.start_waiting();
    server.call("execute", json!({"code": "6 * 7", "interpreter": "x"}));
    release(&go);
    server.wait(cell);
    let go = detach(&mut server, "exit(3)");
    let told = server.call("execute", json!({"code": "'never'", "wait": 0}));
    assert!(told.is_error, "{}", told.text);
    release(&go);
    wait(&mut server);
    let text = history(&mut server);
    let from = text.find("# %% cell 2 ").expect("cell 2");
    let ends: Vec<_> = text[from..].lines().filter(|line| line.starts_with("# ")).collect();
    let forms = [
        "# %% cell 2 · builtin · TIME · execute",
        "# %% cell 1 · x · TIME · execute",
        "# ended after TIME",
        "# cell 2 of builtin ended after TIME",
        "# %% cell 3 · builtin · TIME · execute",
        "# failed after TIME: SystemExit: 3",
    ];
    assert!(ends.len() == forms.len() && ends.iter().zip(forms).all(|(end, form)| fits(end, form)), "{text}");
    assert!(!text.contains("never"), "{text}");
}

#[test]
fn the_history_says_of_cells_that_were_interrupted_or_died_how_they_ended() {
    let mut server = start();
    let told = server.call("execute", json!({"code": "while True: pass", "timeout": 0.3}));
    expect_error(&mut server, &told, &["KeyboardInterrupt"]);
    server.exec("os._exit(3)");
    let text = history(&mut server);
    let ends: Vec<_> = text.lines().filter(|line| line.starts_with("# failed after ")).collect();
    assert_eq!(ends.len(), 2, "{text}");
    assert!(ends[0].contains("KeyboardInterrupt") || ends[0].contains("timeout of 0.3 s"), "{text}");
    assert!(ends[1].contains("exited with code 3"), "{text}");
}

#[test]
fn with_mcp_py_history_each_session_leaves_a_file_of_its_own() {
    let folder = Folder::new();
    let kept = folder.path().join("kept/here");
    let mut paths = Vec::new();
    for number in 1..=2 {
        let mut server = Server::with(|builder| builder.folder(&folder).env("MCP_PY_HISTORY", &kept));
        server.ok(&format!("number = {number}"));
        let path = history_path(&mut server).expect("a path");
        assert_eq!(path.parent(), Some(kept.as_path()));
        expect_history(
            &mut server,
            &format!("# %% cell 1 · builtin · TIME · execute\nnumber = {number}\n# ended after TIME\n"),
        );
        assert_eq!(server.finish(DEADLINE), Some(0));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        paths.push(path);
    }
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 2, "{paths:?}");
    assert!(fs::read_to_string(&paths[0]).unwrap().contains("number = 1\n"));
}

#[test]
fn a_history_that_can_not_be_written_is_said_once_and_cells_go_on() {
    let mut server = Server::with(|builder| builder.env("MCP_PY_HISTORY", "/dev/null/history"));
    let why =
        "the history can't be written: MCP_PY_HISTORY must be a folder that you can write to: /dev/null/history: \
               Not a directory (os error 20)";
    check(&mut server, "0 + 1", &format!("[mcp-py: {why}]\n1"));
    check(&mut server, "1 + 1", "2");
    server.expect_stderr("/dev/null/history");
    assert_eq!(server.stderr().matches("/dev/null/history").count(), 1, "{}", server.stderr());
    assert_eq!(history_path(&mut server), None);
}

#[test]
fn the_history_keeps_at_most_64_mib() {
    let mut server = Server::start();
    let long = format!("#{}\n'ran'", "x".repeat(15 << 20));
    for _ in 0..4 {
        assert_eq!(server.ok(&long), "'ran'");
    }
    let full = "[mcp-py: the history can't be written: the history holds its first 64 MiB]\n'ran'";
    assert_eq!(server.ok(&long), full);
    assert_eq!(server.ok(&long), "'ran'");
    let size = fs::metadata(history_path(&mut server).expect("a path")).unwrap().len();
    assert!((40 << 20..=64 << 20).contains(&size), "{size} bytes");
    server.expect_stderr("64 MiB");
    check(&mut server, "'on'", "'on'");
}

// ---- what a failed cell leaves in sys, and what a crash says -------------------------------------------------------

#[test]
fn sys_has_the_last_error_and_the_prompt_of_interactive_work() {
    let mut server = start();
    check(&mut server, "hasattr(sys, 'ps1'), hasattr(sys, 'last_value')", "(True, False)");
    server.exec("def f(): raise KeyError('first')\nf()");
    let code = "sys.last_type.__name__, sys.last_value.args, sys.last_traceback.tb_frame.f_code.co_filename";
    check(&mut server, code, "('KeyError', ('first',), '<cell 3>')");
    check(&mut server, "sys.last_traceback.tb_next.tb_frame.f_code.co_name", "'f'");
    server.exec("1/0");
    check(&mut server, "type(sys.last_value).__name__", "'ZeroDivisionError'");
}

#[test]
fn the_answer_to_a_crash_shows_its_line() {
    let mut server = Server::start();
    for before in ["", "sys.stderr = None", "os.close(2)", "sys.stderr = sys.__stderr__ = open(os.devnull, 'w')"] {
        let told = server.exec(&format!("import ctypes, os, sys\n{before}\nctypes.string_at(0)  # here"));
        expect_error(&mut server, &told, &["Segmentation fault", ", line 3 in <module>", "SIGSEGV"]);
    }
}

// ---- the end of a process ------------------------------------------------------------------------------------------

/// Makes a block of shared memory in an interpreter; its file. Returns when the process is up that frees it.
#[track_caller]
fn share_memory(server: &mut Server, interpreter: &str) -> PathBuf {
    let code = py("
        import ctypes, os, signal, time
        from multiprocessing import resource_tracker, shared_memory
        block = shared_memory.SharedMemory(create=True, size=1000)
        def ignores_sigterm(pid):
            with open('/proc/%d/status' % pid) as status:
                return int(status.read().split('SigIgn:')[1].split()[0], 16) >> signal.SIGTERM - 1 & 1
        while not ignores_sigterm(resource_tracker._resource_tracker._pid): time.sleep(0.01)
        print(block.name)
        ");
    let told = server.call("execute", json!({"code": code, "interpreter": interpreter}));
    let path = Path::new("/dev/shm").join(told.text.trim_start_matches('/'));
    if told.is_error || !path.is_file() {
        server.fail(&format!("shared memory was expected, not {:?}", told.text));
    }
    path
}

/// The memory gets freed. What is left behind is removed.
#[track_caller]
fn expect_freed(path: &Path, what: &str) {
    let start = Instant::now();
    while path.exists() && start.elapsed() < 2 * SECOND {
        thread::sleep(Duration::from_millis(5));
    }
    let is_left = fs::remove_file(path).is_ok();
    assert!(!is_left, "{what} left {} behind", path.display());
}

#[test]
#[cfg(target_os = "linux")]
fn shared_memory_is_freed_however_an_interpreter_ends() {
    let mut server = Server::start();
    for code in
        ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)", "ctypes.string_at(0)", "os.kill(os.getpid(), 15)"]
    {
        let path = share_memory(&mut server, "builtin");
        server.exec(code);
        expect_freed(&path, code);
    }
    let path = share_memory(&mut server, "builtin");
    restart(&mut server);
    expect_freed(&path, "a restart");
    let path = share_memory(&mut server, "builtin");
    let cell = server.start_spinning();
    restart(&mut server);
    expect_freed(&path, "a restart of a busy one");
    server.wait(cell);
    server.call("add_interpreter", json!({"name": "x", "python_path": python()}));
    let path = share_memory(&mut server, "x");
    server.call("execute", json!({"code": "while True: pass", "wait": 0, "interpreter": "x"}));
    server.call("stop_interpreter", json!({"name": "x"}));
    expect_freed(&path, "stop_interpreter");
}

#[test]
#[cfg(target_os = "linux")]
fn shared_memory_is_freed_when_the_server_ends() {
    for is_busy in [false, true] {
        for signal in [None, Some(libc::SIGTERM), Some(libc::SIGINT)] {
            let mut server = Server::start();
            let path = share_memory(&mut server, "builtin");
            if is_busy {
                server.start_spinning();
            }
            match signal {
                None => server.close_stdin(),
                Some(signal) => server.kill(signal),
            }
            server.wait_exit(DEADLINE);
            expect_freed(&path, &format!("the server ({signal:?}, busy: {is_busy})"));
        }
    }
}

#[test]
fn at_the_end_of_stdin_atexit_has_a_second_and_not_a_minute() {
    for (seconds, is_done) in [(1, true), (60, false)] {
        let mut server = Server::start();
        let done = server.flag();
        let last = format!("time.sleep({seconds})\n    open({done:?}, 'w').close()");
        server.ok(&format!("import atexit, time\n@atexit.register\ndef last():\n    {last}"));
        let pid = server.worker_pid();
        let start = Instant::now();
        assert_eq!(server.finish(DEADLINE), Some(0));
        let took = start.elapsed();
        assert_eq!(done.exists(), is_done, "{seconds} s, took {took:?}");
        assert!(took < 6 * SECOND, "{took:?}");
        eventually(SOON, "the worker ends", || !procs::is_alive(pid));
    }
}

/// What a cell that draws and notes gives is not only its output.
#[test]
fn pictures_of_an_unattended_cell_come_with_the_next_answer_of_its_door() {
    let mut server = start();
    server.ok(PICTURE);
    let go = detach(&mut server, "Picture()");
    release(&go);
    until_idle(&mut server);
    let told = server.call("execute", json!({"code": "'mine'"}));
    has(&mut server, &told.text, &["cell 3 ended after ", "figure saved: "]);
    let kinds: Vec<_> = told.raw["content"].as_array().unwrap().iter().map(|block| block["type"].clone()).collect();
    assert_eq!(kinds, ["text", "image"], "{}", told.raw);
    check(&mut server, "'next'", "'next'");
}

#[test]
fn a_death_behind_an_unattended_cell_is_told_at_its_own_door_too() {
    let mut server = start();
    let go = detach(&mut server, "print('rest')");
    release(&go);
    until_idle(&mut server);
    let begun = server.flag();
    let cell = server.start_exec(&format!("mark({begun:?})\ntry:\n    time.sleep(60)\nfinally:\n    os._exit(4)"));
    server.expect_file(&begun);
    server.cancel(cell);
    let text = server.ok("'until' in dir()");
    has(
        &mut server,
        &text,
        &["cell 2 ended after ", "rest", "before this cell, interpreter \"builtin\" exited with code 4"],
    );
    assert!(text.ends_with("\nFalse"), "{text}");
}

#[test]
fn a_restart_whose_call_is_cancelled_is_told() {
    let mut server = start();
    let go = detach(&mut server, "");
    let restart = server.start_call("reset", json!({"restart": true}));
    server.cancel(restart);
    let text = server.ok("'until' in dir()");
    has(&mut server, &text, &["before this cell, interpreter \"builtin\" was restarted; its variables are gone"]);
    drop(go);
}

#[test]
fn of_two_restarts_at_once_both_are_answered() {
    let mut server = start();
    let calls = [(), ()].map(|()| server.start_call("reset", json!({"restart": true})));
    for call in calls {
        let told = server.wait(call);
        assert!(!told.is_error && told.text.contains("restarted"), "{}", told.text);
    }
}

#[test]
fn a_cell_that_can_not_be_compiled_changes_no_other_text_of_an_edited_history() {
    let mut server = start();
    let info = server.call("get_session_info", json!({})).structured;
    let path = PathBuf::from(info["history_path"].as_str().expect("a history"));
    server.ok("x = 1");
    let edited = format!("# a word\n{}", fs::read_to_string(&path).unwrap());
    fs::remove_file(&path).unwrap();
    fs::write(&path, &edited).unwrap();
    assert!(server.call("execute", json!({"code": "if :"})).is_error);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(&edited) && text[edited.len()..].contains("\n# if :\n# failed after "), "{text}");
}
