//! The bridge: HTTP/1.1 on the session's Unix socket. A request gets the answer that the same MCP call would get, whole
//! or as a stream of events. What is not clean HTTP is refused with a status and a reason. A client that hangs up
//! interrupts its own cell and no other. Only this user reaches the socket, and no server takes another's name.

use crate::client::{Folder, Server, DEADLINE};
use crate::procs::{self, eventually};
use serde_json::{json, Value};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A server with its own host, hence with a name of its own, and its socket.
fn start() -> (Server, PathBuf) {
    start_in_a_hurry("1")
}

/// The same with its long waits divided by this number.
fn start_in_a_hurry(times: &str) -> (Server, PathBuf) {
    let mut server = Server::with(|builder| builder.under("claude").env("MCP_PY_HURRY", times));
    let socket = socket_of(&mut server);
    (server, socket)
}

fn socket_of(server: &mut Server) -> PathBuf {
    let info = server.call("get_session_info", json!({})).structured;
    PathBuf::from(info["socket_path"].as_str().expect("a socket"))
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// A POST as the original's client sends it.
fn post(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body.as_bytes()].concat()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn of(bytes: &[u8]) -> Answer {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).expect("a head in ASCII");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let answer = Answer { status, body: bytes[end + 4..].to_vec(), head };
        if let Some(length) = answer.header("Content-Length") {
            assert!(answer.body.is_empty() || length.parse() == Ok(answer.body.len()), "{answer:?}");
        }
        assert_eq!(answer.header("Connection"), Some("close"));
        answer
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What a stream carried, chunk by chunk: a JSON line in each.
    fn events(&self) -> Vec<Value> {
        let (mut rest, mut events) = (&self.body[..], vec![]);
        let chunked = self.header("Transfer-Encoding") == Some("chunked");
        if !chunked {
            return rest
                .split_inclusive(|byte| *byte == b'\n')
                .map(|line| serde_json::from_slice(line).unwrap())
                .collect();
        }
        loop {
            let end = rest.windows(2).position(|two| two == b"\r\n").expect("the size of a chunk");
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).expect("a size");
            let chunk = &rest[end + 2..end + 2 + size];
            assert_eq!(&rest[end + 2 + size..end + 4 + size], b"\r\n");
            rest = &rest[end + 4 + size..];
            if size == 0 {
                assert!(rest.is_empty());
                return events;
            }
            assert!(chunk.ends_with(b"\n"));
            events.push(serde_json::from_slice(chunk).expect("an event"));
        }
    }
}

/// All that comes until the server closes.
#[track_caller]
fn rest_of(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(2_000)]);
        panic!("{error} after {} bytes: {shown:?}", bytes.len());
    }
    bytes
}

#[track_caller]
fn ask(socket: &Path, request: &[u8]) -> Answer {
    let mut stream = connect(socket);
    stream.write_all(request).expect("the server reads");
    Answer::of(&rest_of(&mut stream))
}

#[track_caller]
fn execute(socket: &Path, code: &str) -> Value {
    let answer = ask(socket, &post("/execute", &json!({"code": code, "interpreter": "builtin"})));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// All text of one kind, and the last event.
fn texts(events: &[Value], kind: &str) -> String {
    events.iter().filter_map(|event| event[kind].as_str()).collect()
}

/// Starts a cell through the bridge. The cell makes a file to show that it runs, and then spins.
fn spin(server: &Server, socket: &Path, name: &str) -> (UnixStream, PathBuf) {
    let flag = server.folder().path().join(name);
    let code = format!("open({flag:?}, 'w').close()\nwhile True: pass");
    let mut stream = connect(socket);
    stream.write_all(&post("/execute", &json!({ "code": code }))).unwrap();
    eventually(DEADLINE, "the cell runs", || flag.exists());
    (stream, flag)
}

// ---- requests and answers ------------------------------------------------------------------------------------------

#[test]
fn what_the_originals_client_posts_runs_in_the_agents_interpreter() {
    let (mut server, socket) = start();
    assert_eq!(socket, PathBuf::from(format!("/tmp/python-interpreter-{}.sock", server.outer_pid())));
    server.ok("x = 5");
    assert_eq!(
        execute(&socket, "print(x * 2)"),
        json!({"result": "10", "is_error": false, "exit_code": 0, "images": []})
    );
    assert_eq!(execute(&socket, "y = 1")["result"], "");
    assert_eq!(server.ok("y"), "1");
}

#[test]
fn a_cell_that_fails_says_how_in_its_exit_code() {
    let (_server, socket) = start();
    for (code, exit, text) in [
        ("1/0", 1, "ZeroDivisionError: division by zero"),
        ("exit(7)", 7, "SystemExit: 7"),
        ("import os; os._exit(3)", 137, "exited with code 3; its variables are gone"),
        ("exit('words')", 1, "words"),
    ] {
        let told = execute(&socket, code);
        assert_eq!((&told["exit_code"], &told["is_error"]), (&json!(exit), &json!(true)), "{told}");
        assert!(told["result"].as_str().unwrap().contains(text), "{told}");
    }
    let late = ask(&socket, &post("/execute", &json!({"code": "while True: pass", "timeout": 0.2}))).json();
    assert_eq!((&late["exit_code"], &late["is_error"]), (&json!(124), &json!(true)), "{late}");
    assert_eq!(execute(&socket, "exit(0)"), json!({"result": "", "is_error": false, "exit_code": 0, "images": []}));
}

#[test]
fn a_cell_can_be_given_its_stdin_and_its_arguments() {
    let (mut server, socket) = start();
    let tell = |body: Value| ask(&socket, &post("/execute", &body));
    let code = "import sys; sys.argv, input(), globals().get('__file__')";
    let told = tell(json!({"code": code, "stdin": "a\nb", "argv": ["/p/x.py", "y"]})).json();
    assert_eq!(told["result"], "(['/p/x.py', 'y'], 'a', '/p/x.py')");
    let told = tell(json!({"code": code, "stdin": "a", "argv": null})).json();
    assert_eq!(told["result"], "(['-c'], 'a', None)");
    for (member, value) in [("stdin", json!(5)), ("argv", json!("x")), ("argv", json!([1]))] {
        let refused = tell(json!({"code": "ran = 1", member: value}));
        assert_eq!(refused.status, 400);
        assert!(refused.json()["detail"].as_str().unwrap().contains(&format!("\"{member}\"")), "{refused:?}");
    }
    assert_eq!(server.call("list_vars", json!({})).text, "sys");
}

#[test]
fn every_tool_is_served_and_answers_as_in_mcp() {
    let (mut server, socket) = start();
    server.ok("x = 5");
    let tool = |name: &str, arguments: Value| ask(&socket, &post(&format!("/tools/{name}"), &arguments)).json();
    assert_eq!(tool("execute", json!({"code": "x"}))["content"][0]["text"], "5");
    assert_eq!(tool("list_vars", json!({}))["content"][0]["text"], "x");
    assert_eq!(tool("get_session_info", json!({}))["structuredContent"]["socket_path"], socket.to_str().unwrap());
    let added = tool("add_interpreter", json!({"name": "other", "python_path": crate::client::python()}));
    assert_eq!(added["structuredContent"]["state"], "running", "{added}");
    assert_eq!(tool("execute", json!({"code": "1+1", "interpreter": "other"}))["content"][0]["text"], "2");
    assert_eq!(tool("list_interpreters", json!({}))["structuredContent"]["result"][1]["name"], "other");
    assert_eq!(tool("stop_interpreter", json!({"name": "other"}))["isError"], false);
    assert_eq!(tool("reset", json!({}))["content"][0]["text"], "Scope cleared (1 items removed)");
    let wrong = tool("stop_interpreter", json!({"name": 5}));
    assert!(
        wrong["isError"] == true && wrong["content"][0]["text"].as_str().unwrap().contains("\"name\" must be a string")
    );
}

#[test]
fn health_says_who_serves() {
    let (mut server, socket) = start();
    let health = ask(&socket, &get("/health")).json();
    assert_eq!(health["name"], "python-interpreter");
    assert_eq!(health["pid"], server.pid());
    assert_eq!(health["host"], "claude");
    assert_eq!(health["project_dir"], server.folder().project().to_str().unwrap());
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    let configuration = server.folder().home().join(".claude-workspace/python_interpreter");
    assert_eq!(health["configuration"], configuration.to_str().unwrap());
    assert!(health["session_id"].is_null() && health["uptime"].as_str().unwrap().ends_with(" s"), "{health}");
}

#[test]
fn what_http_allows_is_understood() {
    let (_server, socket) = start();
    let whole = ask(&socket, &get("/health")).body.len();
    for (request, status) in [
        ("GET /health?verbose=1 HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("GET http://localhost/health HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("GET /health HTTP/1.1\r\nhost:x\r\nX-Empty:\r\nX:\ta b \r\n\r\n", 200),
        ("GET /health HTTP/1.0\r\n\r\n", 200),
        ("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 200),
        ("POST /tools/list_vars HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 200),
        ("POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{\"code\":\"2+2\"}GET /more HTTP/1.1\r\n\r\n", 200),
    ] {
        assert_eq!(ask(&socket, request.as_bytes()).status, status, "{request}");
    }
    let head = ask(&socket, b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n");
    let length: usize = head.header("Content-Length").unwrap().parse().unwrap();
    assert!(head.status == 200 && head.body.is_empty() && length.abs_diff(whole) < 3, "{head:?}");
}

#[test]
fn what_is_not_clean_http_is_refused_and_the_next_request_is_served() {
    let (_server, socket) = start();
    let long = format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(20_000));
    let post = |headers: &str| format!("POST /execute HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n");
    for (request, status) in [
        ("GET /health HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n".to_string(), 400),
        ("GET /health HTTP/1.1\r\nHost : x\r\n\r\n".into(), 400),
        ("GET /health HTTP/1.1\r\nHost: x\ry\r\n\r\n".into(), 400),
        ("GET /health HTTP/1.1\nHost: x\n\n".into(), 400),
        ("GET /health HTTP/1.1\r\nHost: x\0\r\n\r\n".into(), 400),
        ("GET /health HTTP/1.1\r\nno colon\r\n\r\n".into(), 400),
        ("GET /health HTTP/1.1\r\n\r\n".into(), 400),
        ("GET /health HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n".into(), 400),
        ("GET /health HTTP/2.0\r\nHost: x\r\n\r\n".into(), 400),
        ("GET  /health HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("GET /health\r\n\r\n".into(), 400),
        ("nonsense\r\n\r\n".into(), 400),
        (post("Content-Length: +5"), 400),
        (post("Content-Length: -5"), 400),
        (post("Content-Length: 0x5"), 400),
        (post("Content-Length: "), 400),
        (post("Content-Length: 5, 5"), 400),
        (post("Content-Length: 5\r\nContent-Length: 6"), 400),
        (post("Content-Length: 2") + "[]", 400),
        (post("Content-Length: 1") + "{", 400),
        (post("Content-Length: 2") + "{}", 400),
        (post("Content-Length: 10") + "{\"code\":5}", 400),
        (post("Content-Length: 27") + "{\"code\":\"1\",\"stream\":\"yes\"}", 400),
        (post("Content-Length: 26") + "{\"code\":\"1\",\"timeout\":\"5\"}", 400),
        ("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".into(), 404),
        ("POST /tools/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}".into(), 404),
        (post("Content-Length: 35") + "{\"code\":\"1\",\"interpreter\":\"nobody\"}", 404),
        ("POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".into(), 405),
        ("GET /execute HTTP/1.1\r\nHost: x\r\n\r\n".into(), 405),
        ("PUT /tools/reset HTTP/1.1\r\nHost: x\r\n\r\n".into(), 405),
        (post("Accept: x"), 411),
        (post("Transfer-Encoding: chunked"), 411),
        (post("Content-Length: 16777217"), 413),
        (post("Content-Length: 99999999999999999999999999"), 413),
        (post("Content-Length: 1\r\nExpect: something"), 417),
        (long, 431),
        (post("Transfer-Encoding: gzip"), 501),
    ] {
        let answer = ask(&socket, request.as_bytes());
        assert_eq!(answer.status, status, "{request:?}: {answer:?}");
        assert!(!answer.json()["detail"].as_str().expect("a detail").is_empty());
        match (status, request.starts_with("POST /health")) {
            (405, true) => assert_eq!(answer.header("Allow"), Some("GET, HEAD")),
            (405, false) => assert_eq!(answer.header("Allow"), Some("POST")),
            _ => assert_eq!(answer.header("Allow"), None),
        }
        assert_eq!(execute(&socket, "6 * 7")["result"], "42", "after {request:?}");
    }
}

#[test]
fn what_is_refused_to_head_has_no_body_either() {
    let (_server, socket) = start();
    for refused in ["HEAD /nope HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD /health HTTP/1.1\r\n\r\n"] {
        let told = ask(&socket, refused.as_bytes());
        assert!(told.status >= 400 && told.body.is_empty(), "HEAD has no body: {told:?}");
    }
}

#[test]
fn a_request_may_come_byte_by_byte_and_with_expect() {
    let (_server, socket) = start();
    let mut stream = connect(&socket);
    for byte in post("/execute", &json!({"code": "2 + 2"})) {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(Answer::of(&rest_of(&mut stream)).json()["result"], "4");
    let mut stream = connect(&socket);
    stream
        .write_all(b"POST /execute HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n")
        .unwrap();
    let mut first = [0; 25];
    stream.read_exact(&mut first).expect("an answer before the body");
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{\"code\":\"2+2\"}").unwrap();
    assert_eq!(Answer::of(&rest_of(&mut stream)).json()["result"], "4");
}

#[test]
fn a_request_that_does_not_arrive_within_ten_seconds_gets_its_status() {
    let (_server, socket) = start();
    let begin = Instant::now();
    let mut streams: Vec<_> =
        [&b""[..], b"GET /hea", b"POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{"]
            .into_iter()
            .map(|part| {
                let mut stream = connect(&socket);
                stream.write_all(part).unwrap();
                stream
            })
            .collect();
    for stream in &mut streams {
        assert_eq!(Answer::of(&rest_of(stream)).status, 408);
    }
    assert!(begin.elapsed() >= Duration::from_secs(9), "{:?}", begin.elapsed());
    assert_eq!(execute(&socket, "1")["result"], "1");
}

#[test]
fn a_body_that_is_refused_early_is_read_away_so_that_the_answer_arrives() {
    let (_server, socket) = start();
    let mut stream = connect(&socket);
    stream.write_all(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n").unwrap();
    stream.write_all(&vec![b'x'; 900_000]).expect("the body is read away");
    assert_eq!(Answer::of(&rest_of(&mut stream)).status, 404);
    // Up to 1 MiB is read away; a peer that sends more is cut off.
    let mut stream = connect(&socket);
    stream.write_all(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n").unwrap();
    stream.write_all(&vec![b'x'; 9_000_000]).expect_err("it is hung up");
}

// ---- streaming -----------------------------------------------------------------------------------------------------

#[test]
fn a_stream_carries_events_while_the_cell_runs() {
    let (server, socket) = start();
    let go = server.folder().path().join("go");
    let code = format!(
        "import os, sys, time\nprint('é one')\nwhile not os.path.exists({go:?}): time.sleep(0.01)\n\
                        print('two', file=sys.stderr)\nprint('three', end='')\n6 * 7"
    );
    let mut stream = connect(&socket);
    stream.write_all(&post("/execute", &json!({"code": code, "stream": true}))).unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("é one") {
        let mut bytes = [0; 1000];
        let count = stream.read(&mut bytes).expect("an event before the end");
        assert!(count > 0, "{:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&bytes[..count]);
    }
    File::create(&go).unwrap();
    seen.extend(rest_of(&mut stream));
    let answer = Answer::of(&seen);
    let events = answer.events();
    assert_eq!((texts(&events, "stdout").as_str(), texts(&events, "stderr").as_str()), ("é one\nthree", "two\n"));
    assert_eq!(events.last(), Some(&json!({"result": "42", "is_error": false, "exit_code": 0})));
}

#[test]
fn a_character_that_comes_in_two_halves_is_one_in_the_stream() {
    let (server, socket) = start();
    let go = server.folder().path().join("go");
    let code = format!(
        "import os, time\nos.write(1, b'one \\xc3')\nwhile not os.path.exists({go:?}): time.sleep(0.01)\n\
                        _ = os.write(1, b'\\xa9 \\xff \\xe2\\x82')"
    );
    let mut stream = connect(&socket);
    stream.write_all(&post("/execute", &json!({"code": code, "stream": true}))).unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("one ") {
        let mut bytes = [0; 1000];
        let count = stream.read(&mut bytes).expect("an event before the end");
        seen.extend_from_slice(&bytes[..count]);
    }
    File::create(&go).unwrap();
    seen.extend(rest_of(&mut stream));
    assert_eq!(texts(&Answer::of(&seen).events(), "stdout"), "one é \\xff \\xe2\\x82", "what is no text is escaped");
}

#[test]
fn a_stream_to_http_1_0_has_no_chunks_and_a_failed_cell_ends_with_its_traceback() {
    let (_server, socket) = start();
    let body = "{\"code\":\"print(1); 1/0\",\"stream\":true}";
    let answer =
        ask(&socket, format!("POST /execute HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    assert!(answer.header("Transfer-Encoding").is_none());
    let events = answer.events();
    assert_eq!(events[0], json!({"stdout": "1\n"}));
    let last = events.last().unwrap();
    assert!(last["result"].as_str().unwrap().ends_with("ZeroDivisionError: division by zero"), "{last}");
    assert_eq!((&last["is_error"], &last["exit_code"]), (&json!(true), &json!(1)));
}

#[test]
fn a_stream_is_whole_and_names_the_file_of_what_is_long() {
    let (_server, socket) = start();
    let code = "print('a' * 30_000 + 'z' * 30_000)\n'r' * 700_000";
    let events = ask(&socket, &post("/execute", &json!({"code": code, "stream": true}))).events();
    let whole = format!("{}{}\n'{}'\n", "a".repeat(30_000), "z".repeat(30_000), "r".repeat(700_000));
    assert!(texts(&events, "stdout") == whole, "a long result comes as lines of stdout");
    let last = events.last().unwrap();
    assert_eq!((&last["result"], &last["output_chars"]), (&json!(""), &json!(760_003)));
    let file = std::fs::read_to_string(last["output_file"].as_str().expect("a path")).unwrap();
    assert!(file == whole[..whole.len() - 1], "the file holds what the cell printed, then the result's repr");
    assert!(texts(&events, "note").is_empty(), "who shows it cuts it, and says so");
    let just = ask(&socket, &post("/execute", &json!({"code": "print('b' * 24_000)", "stream": true}))).events();
    assert_eq!(texts(&just, "stdout"), "b".repeat(24_000) + "\n");
    assert!(just.last().unwrap().get("output_file").is_none(), "{just:?}");
}

#[test]
fn a_slow_reader_gets_all_of_it_and_holds_up_its_own_interpreter_alone() {
    let (mut server, socket) = start_in_a_hurry("30"); // who must take something has two seconds
    let mut stream = connect(&socket);
    let running = server.folder().path().join("running");
    let code = format!("open({running:?}, 'w').close()\nfor _ in range(50): print('z' * 999_999)");
    stream.write_all(&post("/execute", &json!({"code": code, "stream": true}))).unwrap();
    eventually(DEADLINE, "it runs", || running.exists());
    let behind = server.start_exec("'free'");
    server.call("add_interpreter", json!({"name": "x", "python_path": crate::client::python()}));
    let other = server.call("execute", json!({"code": "'other'", "interpreter": "x"}));
    assert_eq!(other.text, "'other'");
    std::thread::sleep(Duration::from_secs(3)); // longer than anyone else has
    server.expect_no_answer(); // it waits for its turn, behind the cell that waits for its reader
    let pid = server.pid();
    assert!(procs::peak_rss_kb(pid) < 12_000, "{} KiB", procs::peak_rss_kb(pid));
    let events = Answer::of(&rest_of(&mut stream)).events();
    assert_eq!(texts(&events, "stdout").matches('z').count(), 50 * 999_999);
    assert_eq!(events.last().unwrap()["exit_code"], 0);
    assert_eq!(server.wait(behind).text, "'free'");
    assert!(procs::peak_rss_kb(pid) < 12_000, "{} KiB", procs::peak_rss_kb(pid));
}

/// The first part of a long result once overtook what was still in the pipes while the reader was behind.
#[test]
fn a_long_result_comes_behind_what_was_printed_also_to_a_slow_reader() {
    let (server, socket) = start();
    for printed in [1_200_000, 1_300_000, 1_400_000, 1_500_000] {
        let mut stream = connect(&socket);
        let done = server.folder().path().join(format!("printed-{printed}"));
        let code = format!("print('z' * {printed}, flush=True)\nopen({done:?}, 'w').close()\n'r' * 300_000");
        stream.write_all(&post("/execute", &json!({"code": code, "stream": true}))).unwrap();
        // The reader begins when the cell has printed all, or waits for it.
        let began = std::time::Instant::now();
        while !done.exists() && began.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(200));
        let events = Answer::of(&rest_of(&mut stream)).events();
        let expected = format!("{}\n'{}'\n", "z".repeat(printed), "r".repeat(300_000));
        assert!(texts(&events, "stdout") == expected, "{printed}: the result stands within the output");
    }
}

#[test]
fn a_cell_that_waits_for_its_reader_can_be_interrupted_and_keeps_its_variables() {
    let (mut server, socket) = start();
    for (end, exit) in [("a time-out", 124), ("an interrupt", 130)] {
        let mut stream = connect(&socket);
        let timeout = if exit == 124 { 1 } else { 600 };
        let running = server.folder().path().join(format!("running-{exit}"));
        let code = format!(
            "kept = {exit}\nfor _ in range(10): print('z' * 99_999)\nopen({running:?}, 'w').close()\nwhile True: print('z' * 99_999)"
        );
        let request = json!({"code": code, "stream": true, "timeout": timeout});
        stream.write_all(&post("/execute", &request)).unwrap();
        eventually(DEADLINE, "it runs", || running.exists());
        if exit == 130 {
            ask(&socket, &post("/interrupt", &json!({})));
        }
        assert_eq!(server.ok("kept"), exit.to_string(), "{end}: the interpreter is free, though nobody has read");
        let events = Answer::of(&rest_of(&mut stream)).events();
        let last = events.last().unwrap();
        assert_eq!(last["exit_code"], exit, "{last}");
        let file = std::fs::read_to_string(last["output_file"].as_str().expect("a file has all of it")).unwrap();
        let whole = file.matches('z').count();
        let shown = texts(&events, "stdout").matches('z').count();
        assert!(shown <= whole && shown > 99_999, "{shown} of {whole}");
        let note = texts(&events, "note");
        assert!(shown == whole || note.contains(" bytes of output came too fast for their reader"), "{end}: {note}");
    }
}

#[test]
fn a_hang_up_of_a_slow_reader_interrupts_its_cell() {
    let (mut server, socket) = start();
    let mut stream = connect(&socket);
    let running = server.folder().path().join("running");
    let code = format!("kept = 1\nopen({running:?}, 'w').close()\nwhile True: print('z' * 99_999)");
    stream.write_all(&post("/execute", &json!({"code": code, "stream": true, "timeout": 0}))).unwrap();
    eventually(DEADLINE, "it runs", || running.exists());
    drop(stream);
    assert_eq!(server.ok("kept"), "1");
}

#[test]
fn a_peer_that_takes_nothing_of_an_answer_for_a_minute_is_dropped() {
    let (mut server, socket) = start_in_a_hurry("30");
    let mut stream = connect(&socket);
    let code = "class Picture:\n    def _repr_png_(self): return b'\\x89PNG' + bytes(3_000_000)\nPicture()";
    stream.write_all(&post("/tools/execute", &json!({"code": code}))).unwrap();
    assert_eq!(server.ok("'free'"), "'free'");
    std::thread::sleep(Duration::from_secs(3)); // a minute is two seconds here
    let came = rest_of(&mut stream);
    assert!(came.starts_with(b"HTTP/1.1 200 OK") && came.len() < 3_000_000, "{} bytes", came.len());
}

#[test]
fn a_peer_that_takes_a_little_now_and_then_gets_all_of_it() {
    let (_server, socket) = start_in_a_hurry("40"); // a second and a half
    let mut stream = connect(&socket);
    let code = "print('z' * 1_999_999)";
    stream.write_all(&post("/execute", &json!({"code": code, "stream": true}))).unwrap();
    let mut bytes = Vec::new();
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(300));
        bytes.resize(bytes.len() + 200_000, 0);
        let from = bytes.len() - 200_000;
        stream.read_exact(&mut bytes[from..]).unwrap();
    }
    bytes.extend(rest_of(&mut stream));
    assert_eq!(texts(&Answer::of(&bytes).events(), "stdout").matches('z').count(), 1_999_999);
}

#[test]
fn a_body_that_never_comes_is_given_up_also_after_100_continue() {
    let (_server, socket) = start_in_a_hurry("30"); // ten seconds are a third of one here
    let mut stream = connect(&socket);
    let head = "POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let came = rest_of(&mut stream);
    let refusal = came.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n").expect("the body is asked for");
    assert_eq!(Answer::of(refusal).status, 408);
}

#[test]
fn a_long_result_of_an_interrupted_cell_is_not_kept_for_a_reader_who_does_not_keep_up() {
    let (mut server, socket) = start();
    let mut stream = connect(&socket);
    let running = server.folder().path().join("running");
    let code = format!(
        "try:\n    open({running:?}, 'w').close()\n    while True: print('z' * 99_999)\n\
         except KeyboardInterrupt: pass\n'r' * 60_000_000"
    );
    stream.write_all(&post("/execute", &json!({"code": code, "stream": true, "timeout": 1}))).unwrap();
    eventually(DEADLINE, "it runs", || running.exists());
    assert_eq!(server.ok("'free'"), "'free'");
    let bytes = rest_of(&mut stream);
    assert!(bytes.len() < 20_000_000, "{} bytes were kept", bytes.len());
    let events = Answer::of(&bytes).events();
    assert_eq!(events.last().unwrap()["exit_code"], 124);
    let file = events.last().unwrap()["output_file"].as_str().expect("a file has all of it").to_owned();
    assert!(fs::read_to_string(file).unwrap().matches('r').count() >= 60_000_000);
    let note = texts(&events, "note");
    assert!(note.contains(" bytes of output came too fast for their reader"), "{note}");
}

#[test]
fn a_stream_says_why_a_pool_never_returns_while_it_runs() {
    let (mut server, socket) = start();
    let code = "import multiprocessing\ndef f(n): return n\n\
                with multiprocessing.get_context('spawn').Pool(1) as pool: pool.map(f, [1])";
    let mut stream = connect(&socket);
    stream.write_all(&post("/execute", &json!({"code": code, "stream": true, "timeout": 0}))).unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(&stream)).map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("{\"note\":") && line.contains("starts a new Python")));
    drop(stream);
    assert_eq!(execute(&socket, "'the pool has ended'")["exit_code"], 0);
    crate::cells::end_and_free(&mut server);
}

// ---- interrupts and hang-ups ---------------------------------------------------------------------------------------

#[test]
fn interrupt_ends_what_runs_and_says_whether_anything_did() {
    let (mut server, socket) = start();
    assert_eq!(ask(&socket, &post("/interrupt", &json!({}))).json(), json!({"interrupted": false}));
    let (mut stream, _) = spin(&server, &socket, "running");
    assert_eq!(
        ask(&socket, &post("/interrupt", &json!({"interpreter": "builtin"}))).json(),
        json!({"interrupted": true})
    );
    let told = Answer::of(&rest_of(&mut stream)).json();
    assert_eq!((&told["exit_code"], &told["is_error"]), (&json!(130), &json!(true)));
    assert!(told["result"].as_str().unwrap().contains("KeyboardInterrupt"));
    let told = ask(&socket, &post("/interrupt", &json!({"interpreter": "nobody"})));
    assert_eq!(told.status, 404);
    assert!(told.json()["detail"].as_str().unwrap().contains("no interpreter \"nobody\""));
    assert_eq!(server.ok("'on'"), "'on'");
}

#[test]
fn a_hang_up_interrupts_its_own_cell_and_takes_a_waiting_one_out_of_the_queue() {
    let (mut server, socket) = start();
    let (first, _) = spin(&server, &socket, "first");
    let never = server.folder().path().join("never");
    let mut second = connect(&socket);
    second.write_all(&post("/execute", &json!({"code": format!("open({never:?}, 'w').close()")}))).unwrap();
    drop(second);
    let third = server.start_exec("'mine'");
    drop(first);
    assert_eq!(server.wait(third).text, "'mine'", "the hang-up reached no other cell");
    assert!(!never.exists(), "a cell ran that nobody waited for");
}

#[test]
fn a_half_closed_connection_gets_its_answer() {
    let (_server, socket) = start();
    let mut stream = connect(&socket);
    stream.write_all(&post("/execute", &json!({"code": "import time; time.sleep(0.2); 'late'"}))).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Answer::of(&rest_of(&mut stream)).json()["result"], "'late'");
}

#[test]
fn an_interpreter_that_does_not_start_and_one_that_is_stopped_are_said() {
    let server = Server::with(|builder| builder.under("claude").env("MCP_PY_PYTHON", "/bin/false"));
    let mut server = server;
    let socket = socket_of(&mut server);
    let told = execute(&socket, "1");
    assert_eq!((&told["exit_code"], &told["is_error"]), (&json!(125), &json!(true)), "{told}");
    assert!(told["result"].as_str().unwrap().contains("exited with code 1"), "{told}");
}

// ---- many ----------------------------------------------------------------------------------------------------------

#[test]
fn sixty_four_connections_are_served_at_once_and_one_more_is_told() {
    let (_server, socket) = start();
    let mut streams: Vec<_> = (0..64).map(|_| connect(&socket)).collect();
    let mut more = connect(&socket);
    let told = Answer::of(&rest_of(&mut more));
    assert_eq!(told.status, 503, "{told:?}");
    drop(more);
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&post("/execute", &json!({"code": format!("{number} + 1")}))).unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        assert_eq!(Answer::of(&rest_of(stream)).json()["result"], (number + 1).to_string());
    }
}

#[test]
fn five_hundred_calls_leave_nothing_behind() {
    let (mut server, socket) = start();
    let pid = server.pid();
    execute(&socket, "1");
    let now = || (procs::fd_count(pid), procs::thread_count(pid));
    let (before, memory) = (now(), procs::rss_kb(pid));
    for number in 0..500 {
        assert_eq!(execute(&socket, &format!("{number}"))["result"], number.to_string());
    }
    eventually(DEADLINE, "descriptors and threads as before", || now() <= before);
    assert!(procs::rss_kb(pid) < memory + 1_000, "{memory} KiB, then {} KiB", procs::rss_kb(pid));
}

// ---- the socket's names --------------------------------------------------------------------------------------------

fn names_of(server: &mut Server) -> (PathBuf, PathBuf) {
    let (host, own) = (server.outer_pid(), server.pid());
    let shared = PathBuf::from(format!("/tmp/python-interpreter-{host}.sock"));
    (shared, PathBuf::from(format!("/tmp/python-interpreter-{host}-{own}.sock")))
}

#[test]
fn the_socket_is_this_users_alone_and_has_two_names_that_go_with_the_server() {
    for signal in [None, Some(libc::SIGTERM), Some(libc::SIGINT)] {
        let (mut server, socket) = start();
        let (shared, own) = names_of(&mut server);
        assert_eq!(socket, shared);
        for name in [&shared, &own] {
            let is = fs::metadata(name).unwrap();
            assert_eq!((is.permissions().mode() & 0o777, is.ino()), (0o600, fs::metadata(&own).unwrap().ino()));
        }
        match signal {
            None => assert_eq!(server.finish(DEADLINE), Some(0)),
            Some(signal) => {
                server.kill(signal);
                server.wait_exit(DEADLINE);
            }
        }
        assert!(!shared.exists() && !own.exists(), "{signal:?}");
    }
}

#[test]
fn a_connection_of_another_user_is_closed_unread() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return; // only root can be another user
    }
    let (_server, socket) = start();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap(); // so that the mode is not what keeps it out
    let script = "import os, socket, sys\nos.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\ns.settimeout(30)\ns.connect(sys.argv[1])\n\
                  try: s.sendall(b'GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); print(s.recv(1000))\nexcept OSError: print(b'')";
    let output =
        std::process::Command::new(crate::client::python()).args(["-c", script]).arg(&socket).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(told, "b''\n");
    assert_eq!(ask(&socket, &get("/health")).status, 200);
}

/// Two servers that are children of one process called `claude`; their sockets as each tells them. Each begins with its
/// first message: both at once, or the second when the first has its name.
fn two_under_one_host(folder: &Folder, at_once: bool) -> (Server, Vec<PathBuf>) {
    let fifo = folder.path().join("second");
    let script = format!(
        "#!/bin/sh\nmkfifo '{0}.in' '{0}.out'\n'{1}' server <'{0}.in' >'{0}.out' 2>/dev/null &\nexec '{1}' server\n",
        fifo.display(),
        crate::client::binary().display()
    );
    folder.script("launch", &script);
    let mut server = Server::with(|builder| builder.folder(folder).under("claude").arg0("launch"));
    let mut to =
        fs::OpenOptions::new().write(true).read(true).open(format!("{}.in", wait_for(&fifo).display())).unwrap();
    let mut from = fs::OpenOptions::new().write(true).read(true).open(format!("{}.out", fifo.display())).unwrap();
    let line = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "get_session_info"}});
    let mut first = (!at_once).then(|| socket_of(&mut server));
    to.write_all(format!("{line}\n").as_bytes()).unwrap();
    let first = first.take().unwrap_or_else(|| socket_of(&mut server));
    let (mut text, mut byte) = (Vec::new(), [0]);
    while byte != [b'\n'] {
        from.read_exact(&mut byte).unwrap();
        text.extend(byte);
    }
    std::mem::forget((to, from)); // their end would end the second server; the drop of the first kills both
    let answer: Value = serde_json::from_slice(&text).unwrap();
    let second = answer["result"]["structuredContent"]["socket_path"].as_str().expect("a socket");
    (server, vec![first, PathBuf::from(second)])
}

fn wait_for(fifo: &Path) -> PathBuf {
    eventually(DEADLINE, "the second server's pipes", || Path::new(&format!("{}.out", fifo.display())).exists());
    fifo.to_path_buf()
}

#[test]
fn of_two_servers_under_one_host_each_is_reached_and_neither_takes_the_others_name() {
    for _ in 0..5 {
        let folder = Folder::new();
        let (server, mut sockets) = two_under_one_host(&folder, true);
        sockets.sort();
        let host = server.outer_pid();
        assert_eq!(sockets[1], PathBuf::from(format!("/tmp/python-interpreter-{host}.sock")), "{sockets:?}");
        assert!(sockets[0].to_str().unwrap().starts_with(&format!("/tmp/python-interpreter-{host}-")), "{sockets:?}");
        let pids: Vec<_> = sockets.iter().map(|socket| ask(socket, &get("/health")).json()["pid"].clone()).collect();
        assert_ne!(pids[0], pids[1]);
        drop(server);
    }
    let folder = Folder::new();
    let (mut server, sockets) = two_under_one_host(&folder, false);
    let (shared, _) = names_of(&mut server);
    assert!(sockets[0] == shared && sockets[1] != shared, "{sockets:?}");
    assert_eq!(ask(&shared, &get("/health")).json()["pid"], server.pid(), "a live server's name was taken");
}

#[test]
fn a_dead_sockets_name_is_taken_and_what_is_no_socket_is_left_and_said() {
    // The names are made for a pid that the next host has: this process's own child runs under it.
    let folder = Folder::new();
    let prepare = |what: &str| {
        let script = match what {
            "dead" => "import os, socket; s = socket.socket(socket.AF_UNIX); s.bind('/tmp/python-interpreter-%d.sock' % os.getppid())",
            _ => "import os; open('/tmp/python-interpreter-%d.sock' % os.getppid(), 'w').write('mine')",
        };
        let line = format!(
            "#!/bin/sh\n'{}' -c \"{script}\"\nexec '{}' server\n",
            crate::client::python(),
            crate::client::binary().display()
        );
        // Its parent is the host; so is the parent of the python that it runs first, for `exec` keeps no shell between.
        folder.script("launch", &line.replace("os.getppid()", "int(os.environ['HOST_PID'])"));
        let wrapper = format!("#!/bin/sh\nHOST_PID=$PPID exec '{}'\n", folder.bin().join("launch").display());
        folder.script("start", &wrapper);
    };
    prepare("dead");
    let mut server = Server::with(|builder| builder.folder(&folder).under("claude").arg0("start"));
    let (shared, _) = names_of(&mut server);
    assert_eq!(socket_of(&mut server), shared);
    assert_eq!(execute(&shared, "1")["result"], "1");
    drop(server);
    prepare("file");
    let mut server = Server::with(|builder| builder.folder(&folder).under("claude").arg0("start"));
    let (shared, own) = names_of(&mut server);
    assert_eq!(socket_of(&mut server), own);
    server.expect_stderr(&format!("{} is taken", shared.display()));
    assert_eq!(fs::read_to_string(&shared).unwrap(), "mine");
    assert_eq!(execute(&own, "1")["result"], "1");
    drop(server);
    let _ = fs::remove_file(shared);
}

#[test]
fn a_name_that_another_has_taken_meanwhile_is_not_removed_at_exit() {
    let (mut server, socket) = start();
    fs::remove_file(&socket).unwrap();
    let theirs = UnixListener::bind(&socket).unwrap();
    assert_eq!(server.finish(DEADLINE), Some(0));
    assert!(UnixStream::connect(&socket).is_ok(), "somebody else's name is gone");
    drop(theirs);
    fs::remove_file(&socket).unwrap();
}
