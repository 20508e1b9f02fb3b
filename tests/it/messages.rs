//! What the program says to people and models when something is wrong, word by word. Each message is provoked in the real
//! program. `messages.txt` has them all, to be read aloud: each must say what was tried, on what, what happened, and what to
//! do next. `MCP_PY_MESSAGES=FILE` writes there what is said now.

use crate::client::{binary, python, Folder, Server, DEADLINE};
use crate::procs::eventually;
use serde_json::{json, Value};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// What was said so far.
struct Said {
    folder: Folder,
    text: String,
}

impl Said {
    /// Paths and times differ from run to run: they are replaced.
    fn note(&mut self, what: &str, said: &str) {
        let mut said = said.trim_end().replace(self.folder.path().to_str().unwrap(), "FOLDER");
        for (path, name) in [(python(), "PYTHON"), (binary().to_str().unwrap(), "MCP-PY")] {
            said = said.replace(path, name);
        }
        let words: Vec<&str> = said.split(' ').collect();
        let is_seconds =
            |unit: &&str| unit.strip_prefix('s').is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
        let is_time = |at: usize| words.get(at + 1).is_some_and(is_seconds) && words[at].parse::<f64>().is_ok();
        let words: Vec<&str> = (0..words.len()).map(|at| if is_time(at) { "N" } else { words[at] }).collect();
        self.text += &format!("## {what}\n{}\n\n", words.join(" "));
    }

    #[track_caller]
    fn tool(&mut self, server: &mut Server, what: &str, tool: &str, arguments: Value) {
        let told = server.call(tool, arguments);
        self.note(what, told.structured["message"].as_str().unwrap_or(&told.text));
    }

    #[track_caller]
    fn cell(&mut self, server: &mut Server, what: &str, code: &str) {
        self.tool(server, what, "execute", json!({ "code": code }));
    }

    #[track_caller]
    fn request(&mut self, server: &mut Server, what: &str, method: &str, params: Value) {
        let answer = server.request(method, params);
        self.note(what, answer["error"]["message"].as_str().expect("an error"));
    }

    #[track_caller]
    fn line(&mut self, server: &mut Server, what: &str, line: &str) {
        server.send_raw(format!("{line}\n").as_bytes());
        let answer = server.recv(DEADLINE);
        self.note(what, answer["error"]["message"].as_str().expect("an error"));
    }

    /// Runs the program, and takes what it says on stderr.
    fn program(&mut self, what: &str, words: &[&str], variables: &[(&str, &str)]) {
        let mut command = Command::new(binary());
        command.args(words).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.folder.home());
        command.env("TMPDIR", self.folder.tmp()).envs(variables.iter().copied());
        let output = command.current_dir(self.folder.project()).stdin(Stdio::null()).output().expect("it runs");
        self.note(what, &String::from_utf8_lossy(&output.stderr));
    }

    /// Sends a request to the bridge, and takes the detail of its answer.
    fn bridge(&mut self, socket: &str, what: &str, line: &str, body: &str) {
        let mut stream = UnixStream::connect(socket).expect("the bridge");
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        self.note(what, body["detail"].as_str().expect("a detail"));
    }
}

#[test]
fn each_message_says_what_was_tried_what_happened_and_what_to_do_next() {
    let mut said = Said { folder: Folder::new(), text: String::new() };
    arguments(&mut said);
    protocol(&mut said);
    starts(&mut said);
    cells(&mut said);
    ends(&mut said);
    settings(&mut said);
    client_and_bridge(&mut said);
    install_and_doctor(&mut said);
    if let Some(file) = std::env::var_os("MCP_PY_MESSAGES") {
        fs::write(file, &said.text).unwrap();
    }
    let expected = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/messages.txt")).unwrap();
    let blocks = |text: &str| text.split("## ").skip(1).map(|block| block.trim_end().to_owned()).collect::<Vec<_>>();
    let now = blocks(&said.text);
    let expected = blocks(&expected);
    assert!(now.len() >= 40);
    for (now, expected) in now.iter().zip(&expected) {
        assert_eq!(now, expected);
    }
    assert_eq!(now.len(), expected.len());
}

fn arguments(said: &mut Said) {
    let folder = said.folder.clone();
    let mut server = Server::with(|builder| builder.folder(&folder).env("CLAUDE_PROJECT_DIR", folder.project()));
    let one = &mut server;
    said.tool(one, "execute without code", "execute", json!({}));
    said.tool(one, "code that is no text", "execute", json!({"code": 5}));
    said.tool(one, "a timeout in words", "execute", json!({"code": "1", "timeout": "5m"}));
    said.tool(one, "a misspelt argument", "execute", json!({"code": "1", "timout": 5}));
    said.tool(one, "an argument where there is none", "get_session_info", json!({"verbose": true}));
    said.tool(one, "reset with a word", "reset", json!({"restart": "yes"}));
    said.tool(one, "an interpreter that is not there", "execute", json!({"code": "1", "interpreter": "nobody"}));
    said.tool(one, "add_interpreter without a path", "add_interpreter", json!({"name": "x"}));
    said.tool(one, "a bad name", "add_interpreter", json!({"name": "x y", "python_path": python()}));
    let secret = json!({"name": "x", "python_path": python(), "env": {"KEY": 1}});
    said.tool(one, "an environment of numbers", "add_interpreter", secret);
    said.tool(one, "stopping the builtin", "stop_interpreter", json!({"name": "builtin"}));
    said.tool(one, "stopping what is not there", "stop_interpreter", json!({"name": "nobody"}));
    fs::create_dir_all(folder.project().join(".venv/bin")).unwrap();
    symlink(python(), folder.project().join(".venv/bin/python")).unwrap();
    let found = json!({"name": ".venv", "remove": true});
    said.tool(one, "removing what is found in the project", "stop_interpreter", found);
    fs::remove_dir_all(folder.project().join(".venv")).unwrap();
}

fn protocol(said: &mut Said) {
    let folder = said.folder.clone();
    let mut server = Server::with(|builder| builder.folder(&folder));
    let one = &mut server;
    said.request(one, "a tool that is not there", "tools/call", json!({"name": "run"}));
    said.request(one, "arguments that are none", "tools/call", json!({"name": "execute", "arguments": 5}));
    said.request(one, "a method that is not there", "prompts/list", json!({}));
    said.request(one, "parameters that are none", "tools/list", json!([1]));
    said.request(one, "a cursor", "tools/list", json!({"cursor": "2"}));
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "1999-01-01"});
    said.request(one, "a version that is not there", "tools/list", json!({ "_meta": meta }));
    said.line(one, "a batch", "[]");
    said.line(one, "another JSON-RPC", r#"{"jsonrpc": "1.0", "id": 1, "method": "ping"}"#);
    said.line(one, "no method", r#"{"jsonrpc": "2.0", "id": 1}"#);
}

fn starts(said: &mut Said) {
    let folder = said.folder.clone();
    let mut server = Server::with(|builder| builder.folder(&folder));
    let one = &mut server;
    let add = |path: &str| json!({"name": "v", "python_path": path});
    said.tool(one, "what is no Python", "add_interpreter", add("/bin/true"));
    let killed = folder.script("killed", "#!/bin/sh\nkill -KILL $$\n");
    said.tool(one, "a Python that is killed", "add_interpreter", add(killed.to_str().unwrap()));
    let loud = folder.script("loud", "#!/bin/sh\necho no library >&2\nexit 7\n");
    said.tool(one, "a Python that says why it fails", "add_interpreter", add(loud.to_str().unwrap()));
    let garbage = folder.script("garbage", "#!/bin/sh\necho hello >&0\nexec sleep 600\n");
    said.tool(one, "a program that answers for itself", "add_interpreter", add(garbage.to_str().unwrap()));
    said.tool(one, "a path that is not there", "add_interpreter", add("/nowhere/python"));
    said.tool(one, "a name that is not there", "add_interpreter", add("python9"));
    said.tool(one, "a folder", "add_interpreter", add(folder.home().to_str().unwrap()));
    let with = |member: &str, value: &str| json!({"name": "v", "python_path": python(), member: value});
    said.tool(one, "a working directory that is none", "add_interpreter", with("cwd", "/bin/sh"));
    said.tool(one, "a startup script that fails", "add_interpreter", with("startup_script", "exit('no data')"));
    said.tool(one, "an interpreter that starts", "add_interpreter", with("description", "one"));
    said.tool(one, "the same again, with more", "add_interpreter", with("description", "two"));
    said.tool(one, "the same name for another", "add_interpreter", add("/bin/true"));
    said.tool(one, "it is stopped", "stop_interpreter", json!({"name": "v"}));
    let saved = folder.home().join(".claude-workspace/python_interpreter/interpreters.json");
    fs::write(&saved, "{").unwrap();
    let saves = json!({"name": "v", "python_path": python(), "save": true});
    said.tool(one, "saving where the file is broken", "add_interpreter", saves);
    fs::remove_file(saved).unwrap();
    let hangs = folder.script("hangs", "#!/bin/sh\nexec sleep 600\n");
    let mut slow =
        Server::with(|builder| builder.folder(&folder).env("MCP_PY_PYTHON", &hangs).env("MCP_PY_START_TIMEOUT", "0.5"));
    said.cell(&mut slow, "a Python that hangs", "1");
}

fn cells(said: &mut Said) {
    let folder = said.folder.clone();
    let mut server = Server::with(|builder| builder.folder(&folder));
    let one = &mut server;
    said.tool(one, "wait before anything", "wait", json!({}));
    let busy = json!({"code": "import time\nwhile True: time.sleep(0.01)", "wait": 0});
    one.ok("1");
    said.tool(one, "a cell that outlives its call", "execute", busy);
    let still = one.call("wait", json!({"seconds": 0})).text;
    said.note("wait while it runs", &format!("{}]", still.split([',', ']']).next().unwrap())); // under load
    said.tool(one, "a cell behind it", "execute", json!({"code": "2", "wait": 0}));
    said.tool(one, "reset with restart", "reset", json!({"restart": true}));
    said.tool(one, "wait after that", "wait", json!({}));
    let late = one.call("execute", json!({"code": "while True: pass", "timeout": 0.2}));
    said.note("a time-out", late.text.lines().next().unwrap());
    said.cell(one, "a closed stdout", "import os; os.close(1)");
    said.cell(one, "exit with a code", "exit(3)");
    said.cell(one, "a crash", "os._exit(7)");
    said.cell(one, "a kill", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)");
}

fn ends(said: &mut Said) {
    let folder = said.folder.clone();
    let mut server = Server::with(|builder| builder.folder(&folder));
    let running = server.start_spinning();
    let waiting = server.start_exec("1");
    server.kill(libc::SIGTERM);
    let waited = server.wait(waiting).text;
    said.note("a cell that waits while the server shuts down", &waited);
    let ended = server.wait(running).text;
    said.note("a cell that runs then", ended.lines().last().unwrap());
}

fn settings(said: &mut Said) {
    let folder = said.folder.clone();
    let mut with = |what: &str, variables: &[(&str, &str)]| {
        let all = |builder| {
            variables.iter().fold(builder, |builder: crate::client::Builder, (name, value)| builder.env(name, value))
        };
        let mut server = Server::with(|builder| all(builder.folder(&folder)));
        said.cell(&mut server, what, "1 + 1");
        if what == "settings that can't be read" {
            let stderr = server.stderr();
            let lines: Vec<&str> = stderr.lines().filter(|line| line.contains(": MCP_PY_")).collect();
            said.note("the same on stderr", &lines.join("\n"));
            said.cell(&mut server, "the next answer", "1 + 1");
        }
    };
    let words = [
        ("MCP_PY_TIMEOUT", "10m"),
        ("MCP_PY_WAIT", "a minute"),
        ("MCP_PY_START_TIMEOUT", "-1"),
        ("MCP_PY_AUTO_INSTALL", "fasle"),
        ("MCP_PY_TIMOUT", "300"),
    ];
    with("settings that can't be read", &words);
    with("a folder for the history that can't be", &[("MCP_PY_HISTORY", "/dev/null/here")]);
    with("MCP_PY_PYTHON is a name that is not there", &[("MCP_PY_PYTHON", "python9")]);
    with("MCP_PY_PYTHON is a path that is not there", &[("MCP_PY_PYTHON", "/nowhere/python")]);
    with("no Python at all", &[("MCP_PY_PYTHON", ""), ("PATH", "/nowhere")]);
    with("a home that is no folder", &[("HOME", "/dev/null")]);
}

fn client_and_bridge(said: &mut Said) {
    let folder = said.folder.clone();
    let mut server = Server::with(|builder| builder.folder(&folder));
    let info = server.call("get_session_info", json!({})).structured;
    let socket = info["socket_path"].as_str().expect("a socket").to_owned();
    eventually(DEADLINE, "the socket is there", || Path::new(&socket).exists());
    said.program("no history", &["client", "--socket", &socket, "--history"], &[]);
    said.program("a file that is not there", &["client", "--socket", &socket, "nowhere.py"], &[]);
    said.program("a socket of a setting that is not there", &["client", "-c", "1"], &[("MCP_PY_SOCKET", "/nowhere")]);
    said.program("no code", &["client"], &[]);
    said.program("an option that goes with another one", &["client", "--restart"], &[]);
    said.program("two things at once", &["client", "--reset", "-c", "1"], &[]);
    said.program("a misspelt option", &["client", "--timout", "5"], &[]);
    said.program("a time limit in words", &["client", "-t", "5m", "-c", "1"], &[]);
    said.cell(&mut server, "reading stdin that is not given", "input()");
    let own = format!(
        "import os, subprocess\nprint(subprocess.run([{:?}, 'client', '-c', '1'], stdin=subprocess.DEVNULL, \
         stderr=subprocess.PIPE, env=dict(os.environ, MCP_PY_SOCKET={socket:?})).stderr.decode())",
        binary().to_str().unwrap()
    );
    said.cell(&mut server, "a cell that calls the client on its own interpreter", &own);
    server.exec("os._exit(9)");
    said.program("the other door after a crash", &["client", "--socket", &socket, "-c", "pass"], &[]);
    said.bridge(&socket, "a path that is not there", "GET /nowhere", "");
    said.bridge(&socket, "GET for POST", "GET /execute", "");
    said.bridge(&socket, "a body that is no JSON", "POST /execute", "code");
    said.bridge(&socket, "a stream in words", "POST /execute", r#"{"code": "1", "stream": "yes"}"#);
}

fn install_and_doctor(said: &mut Said) {
    let folder = said.folder.clone();
    folder.script("mcp-py-client", "#!/bin/sh\n");
    let bin = folder.bin();
    let bin = bin.to_str().unwrap();
    said.program("install where a stranger's file is", &["install", "--dir", bin], &[]);
    said.program("install into a file", &["install", "--dir", "/dev/null/bin"], &[]);
    let uninstall = |home: &Path, words: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("uninstall").args(words).env_clear().env("HOME", home).env("TMPDIR", folder.tmp());
        let output = command.current_dir(folder.project()).output().expect("it runs");
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        // Other tests kill servers meanwhile.
        let lines = report.lines().filter(|line| !line.contains("removed       /"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let mut server = Server::with(|builder| builder.folder(&folder).env("CLAUDE_PROJECT_DIR", folder.project()));
    server.ok("1");
    let report = uninstall(&folder.home(), &[]);
    let (start, rest) = report.split_once(" (").expect("a host");
    let (_, end) = rest.split_once(", server pid ").expect("a pid");
    let (_, end) = end.split_once(", ").expect("a time");
    said.note("uninstall while a session runs", &format!("{start} (HOST, server pid PID, {end}"));
    server.finish(DEADLINE);
    fs::write(folder.home().join(".claude-workspace/python_interpreter/interpreters.json"), "{}").unwrap();
    said.note("uninstall where a stranger's file is", &uninstall(&folder.home(), &["--dir", bin]));
    said.note("uninstall without a home", &uninstall(Path::new("relative"), &[]));
    let mut command = Command::new(binary());
    command.arg("doctor").env_clear().env("PATH", bin).env("HOME", "/dev/null").env("TMPDIR", "/nowhere");
    let output = command.env("MCP_PY_PYTHON", "/bin/true").env("MCP_PY_TIMEOUT", "10m").output().expect("it runs");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let bad: Vec<&str> = report.lines().filter(|line| !line.starts_with("ok")).collect();
    said.note("doctor where much is wrong", &bad.join("\n"));
}
