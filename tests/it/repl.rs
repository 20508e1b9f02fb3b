//! The client at a terminal. Without code it is a console whose blocks are cells of the session, with editing, history
//! and completion; Ctrl-C interrupts the cell, Ctrl-D leaves. It finds the session of the project that one stands in.
//! And a server that a person starts by hand says what it is.
//!
//! The terminal is a real pseudo-terminal, held by a small Python program that passes on what is typed and shown.

use crate::client::{binary, python, Folder, Server, DEADLINE};
use crate::procs::{self, eventually};
use crate::shell::path_without_the_tests;
use serde_json::json;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// Runs the words behind it at a pseudo-terminal; types there what comes on stdin, and prints what is shown.
const PTY: &str = r"
import os, pty, select, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
sources = [0, terminal]
while True:
    ready = select.select(sources, [], [])[0]
    if 0 in ready:
        typed = os.read(0, 65536)
        if typed:
            os.write(terminal, typed)
        else:
            sources.remove(0)
    if terminal in ready:
        try:
            shown = os.read(terminal, 65536)
        except OSError:
            break
        if not shown:
            break
        os.write(1, shown)
status = os.waitpid(pid, 0)[1]
sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
";

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const LEFT: &str = "\x1b[D";
const UP: &str = "\x1b[A";
const BACKSPACE: &str = "\x7f";

/// A program at a terminal.
struct Terminal {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    /// How much of what was shown has been taken, in bytes without escape sequences.
    taken: usize,
}

impl Terminal {
    /// The environment has nothing but what is given, and TERM.
    fn run(dir: &Path, env: &[(&str, &str)], words: &[&str]) -> Terminal {
        let mut command = Command::new(python());
        command.args(["-c", PTY]).arg(binary()).args(words).current_dir(dir);
        command.env_clear().env("TERM", "xterm").env("PATH", "/usr/bin:/bin").envs(env.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a terminal");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let mut stdout = child.stdout.take().unwrap();
        let sink = shown.clone();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut chunk) {
                sink.lock().unwrap().extend_from_slice(&chunk[..count]);
            }
        });
        Terminal { child, shown, taken: 0 }
    }

    /// The console, at its first prompt.
    fn console(folder: &Folder, socket: &str, words: &[&str]) -> Terminal {
        let home = folder.home();
        let env = [("MCP_PY_SOCKET", socket), ("HOME", home.to_str().unwrap())];
        let words = [&["client"], words].concat();
        let mut terminal = Terminal::run(&folder.project(), &env, &words);
        terminal.expect("ends nothing\n>>> ");
        terminal
    }

    fn press(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).expect("the terminal lives");
    }

    /// What is shown and was not taken yet, without escape sequences and carriage returns.
    fn rest(&self) -> String {
        let shown = String::from_utf8_lossy(&self.shown.lock().unwrap()).replace('\r', "");
        let mut plain = String::new();
        let mut pieces = shown.split("\x1b[");
        plain.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            let end = piece.find(|c: char| ('@'..='~').contains(&c)).map_or(piece.len(), |end| end + 1);
            plain.push_str(&piece[end..]);
        }
        plain.get(self.taken..).unwrap_or_default().to_string()
    }

    /// Waits until a text is shown; returns what came before it.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let start = std::time::Instant::now();
        loop {
            let rest = self.rest();
            if let Some(at) = rest.find(text) {
                self.taken += at + text.len();
                return rest[..at].to_string();
            }
            assert!(start.elapsed() < DEADLINE, "{text:?} was never shown, but {rest:?}");
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Types a line; returns what is shown from there to the next prompt. (What is typed is shown, too, in pieces.)
    #[track_caller]
    fn enter(&mut self, line: &str) -> String {
        self.press(&format!("{line}\n"));
        self.expect("\n");
        self.expect(">>> ")
    }

    #[track_caller]
    fn exit_code(&mut self) -> i32 {
        let mut code = None;
        eventually(DEADLINE, "the terminal's program ends", || {
            code = self.child.try_wait().unwrap().and_then(|status| status.code());
            code.is_some()
        });
        code.unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("shown: {:?}", String::from_utf8_lossy(&self.shown.lock().unwrap()));
        }
        // Until it is waited for, its pid is its own. Its program gets SIGHUP.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server with a host of its own, and its socket.
fn start() -> (Server, String) {
    let mut server = Server::with(|builder| builder.under("claude"));
    let socket = socket_of(&mut server);
    (server, socket)
}

fn socket_of(server: &mut Server) -> String {
    server.call("get_session_info", json!({})).structured["socket_path"].as_str().expect("a socket").to_string()
}

/// A server and the console in its session.
fn start_console() -> (Server, Terminal) {
    let (server, socket) = start();
    let terminal = Terminal::console(&server.folder().clone(), &socket, &[]);
    (server, terminal)
}

// ---- the console ---------------------------------------------------------------------------------------------------

#[test]
fn a_terminal_without_code_is_a_console_in_the_session() {
    let (mut server, socket) = start();
    server.ok("x = 5");
    let folder = server.folder().clone();
    let home = folder.home();
    let env = [("MCP_PY_SOCKET", socket.as_str()), ("HOME", home.to_str().unwrap())];
    let mut terminal = Terminal::run(&folder.project(), &env, &["client"]);
    let banner = terminal.expect("\n>>> ");
    let project = format!("in the session of {}", folder.project().display());
    for part in ["interpreter \"builtin\" (Python 3.", &project, "; Ctrl-D leaves, and ends nothing"] {
        assert!(banner.contains(part) && banner.lines().count() == 1, "{banner}");
    }
    assert_eq!(terminal.enter("x * 2"), "10\n");
    assert_eq!(terminal.enter("y = x"), "");
    assert_eq!(terminal.enter(""), "");
    assert!(terminal.enter("1/0").ends_with("ZeroDivisionError: division by zero\n"));
    assert!(terminal.enter("def f(:").contains("SyntaxError: "));
    assert!(terminal.enter("import os; os._exit(3)").contains("exited with code 3"));
    assert_eq!(terminal.enter("z = 'mine'"), "");
    terminal.press(CTRL_D);
    assert_eq!(terminal.exit_code(), 0);
    assert!(server.exec("z").text.ends_with("'mine'"));
}

#[test]
fn a_line_is_edited_recalled_and_completed() {
    let (mut server, mut terminal) = start_console();
    server.ok("long_variable = 20\nlong_list = []");
    assert_eq!(terminal.enter(&format!("1 * 9{LEFT}{LEFT}{BACKSPACE}+")), "10\n");
    assert_eq!(terminal.enter(&format!("{UP}0")), "91\n");
    assert_eq!(terminal.enter("long_v\t + 1"), "21\n");
    assert_eq!(terminal.enter("is\tinstance(1, int)"), "True\n"); // of several, the line is left as it is
    assert_eq!(terminal.enter("len(rang\t(7))"), "7\n");
    // Names are looked up in the session each time, by who does not wait for a busy interpreter.
    server.ok("long_variable_2 = 30");
    assert_eq!(terminal.enter("long_variable_\t"), "30\n");
    let (id, release) = server.start_waiting();
    terminal.press("1 if Non\t");
    terminal.expect("1 if None");
    File::create(&release).unwrap();
    server.wait(id);
    assert!(terminal.enter(" else 'no'").ends_with("'no'\n"));
}

#[test]
fn a_block_runs_once_it_is_complete() {
    let (_server, mut terminal) = start_console();
    terminal.press("for n in range(2):\n");
    terminal.expect("... ");
    terminal.press("\tprint(n, n)\n"); // Tab indents
    terminal.expect("... ");
    assert_eq!(terminal.enter(""), "0 0\n1 1\n");
    terminal.press("sum([1,\n");
    terminal.expect("... ");
    assert_eq!(terminal.enter("2])"), "3\n");
    assert_eq!(terminal.enter("import asyncio"), "");
    assert_eq!(terminal.enter("await asyncio.sleep(0, 'awaited')"), "'awaited'\n");
    terminal.press("async with asyncio.Lock() as lock:\n");
    terminal.expect("... ");
    terminal.press("    lock is None\n");
    terminal.expect("... ");
    assert_eq!(terminal.enter(""), "");
    assert_eq!(terminal.enter("# nothing"), "");
    let warned = terminal.enter("'a\\d'"); // by newer Pythons; the console has compiled it, too
    assert!(warned.ends_with("'a\\\\d'\n") && warned.matches("Warning").count() <= 1, "{warned}");
}

#[test]
fn a_pasted_text_is_one_cell_with_its_empty_lines() {
    let (mut server, mut terminal) = start_console();
    let paste = |text: &str| format!("\x1b[200~{text}\x1b[201~");
    assert!(terminal.enter(&paste("def f():\n    a = 1\n\n    return a\n\nb = f() + 1\nb")).ends_with("\n2\n"));
    assert_eq!(server.ok("f() + b"), "3");
}

#[test]
fn what_a_cell_prints_is_shown_while_it_runs() {
    let (server, mut terminal) = start_console();
    let go = server.flag();
    terminal.press("import os, sys, time\n");
    terminal.expect(">>> ");
    let code = format!(
        "print('o' + 'ne')\nwhile not os.path.exists({go:?}): time.sleep(0.01)\nprint('t' + 'wo', file=sys.stderr)"
    );
    terminal.press(&format!("exec({code:?})\n"));
    terminal.expect("\none\n");
    File::create(&go).unwrap();
    terminal.expect("two\n>>> ");
}

#[test]
fn a_person_is_told_where_long_output_is_not_shown_as_it_comes() {
    let (server, socket) = start();
    let go = server.flag();
    let code = format!("import os, time; print('x' * 30_000)\nwhile not os.path.exists({go:?}): time.sleep(0.01)");
    let env = [("MCP_PY_SOCKET", socket.as_str())];
    let mut terminal = Terminal::run(&server.folder().project(), &env, &["client", "-c", &code]);
    terminal.expect("\n[mcp-py: the end of its output is shown when it ends; --full shows all as it comes]\n");
    fs::write(&go, "").unwrap();
    terminal.expect("OUTPUT TRUNCATED");
    assert_eq!(terminal.exit_code(), 0);
}

#[test]
fn ctrl_c_interrupts_the_cell_and_not_the_console() {
    let (mut server, mut terminal) = start_console();
    terminal.press("x = (\n");
    terminal.expect("... ");
    terminal.press(CTRL_C);
    terminal.expect("KeyboardInterrupt\n>>> ");
    assert_eq!(terminal.enter("kept = 'kept'"), "");
    terminal.press("try:\n    while True: print('o' + 'n') or __import__('time').sleep(0.01)\n");
    terminal.press("finally: print('cleaned' + ' up')\n\n");
    terminal.expect("on\non\n");
    terminal.press(CTRL_C);
    terminal.expect("cleaned up\n[mcp-py: interrupted; the variables are kept]\nTraceback (most recent call last):\n");
    terminal.expect("line 2, in <module>\n");
    terminal.expect("KeyboardInterrupt\n>>> ");
    assert_eq!(terminal.enter("kept"), "'kept'\n");
    // The second one does not wait for code that goes on.
    terminal.press("while True:\n    try: print('o' + 'n') or __import__('time').sleep(600)\n");
    terminal.press("    except KeyboardInterrupt: print('no' + 't yet')\n\n");
    terminal.expect("on\n");
    terminal.press(CTRL_C);
    terminal.expect("not yet\non\n");
    terminal.press(CTRL_C);
    terminal.expect("KeyboardInterrupt\n>>> ");
    assert!(!server.call("reset", json!({"restart": true})).is_error);
}

#[test]
fn ctrl_c_takes_a_waiting_cell_back_and_leaves_the_agents_alone() {
    let (mut server, mut terminal) = start_console();
    let (id, release) = server.start_waiting();
    terminal.press("ran = 1\n");
    terminal.expect("[mcp-py: waiting for its turn: cell 1 runs"); // after 2 s
    terminal.press(CTRL_C);
    terminal.expect("KeyboardInterrupt\n>>> ");
    File::create(&release).unwrap();
    assert_eq!(server.wait(id).text, "'released'");
    assert!(server.exec("ran").text.contains("NameError"));
}

#[test]
fn exit_leaves_the_console_and_not_the_interpreter() {
    let (mut server, socket) = start();
    server.ok("x = 5");
    for word in ["exit()", "quit()", "exit", "quit", " exit() "] {
        let mut terminal = Terminal::console(&server.folder().clone(), &socket, &[]);
        terminal.press(&format!("{word}\n"));
        assert_eq!(terminal.exit_code(), 0, "{word}");
    }
    assert_eq!(server.ok("x"), "5");
}

#[test]
fn the_consoles_words_hold_for_each_of_its_cells() {
    let (mut server, socket) = start();
    assert!(!server.call("add_interpreter", json!({"name": "other", "python_path": python()})).is_error);
    server.call("execute", json!({"code": "here = 'other'", "interpreter": "other"}));
    let folder = server.folder().clone();
    let mut terminal = Terminal::console(&folder, "", &["-i", "other", "-t", "0.3", "--socket", &socket]);
    assert_eq!(terminal.enter("he\tre"), "'other'\n");
    terminal.press("while True: pass\n");
    terminal.expect("... ");
    assert!(terminal.enter("").contains("interrupted after its timeout of 0.3 s"));
    assert_eq!(terminal.enter("here"), "'other'\n");
    // Who is not there is said at once.
    let env = [("MCP_PY_SOCKET", socket.as_str())];
    let mut terminal = Terminal::run(&folder.project(), &env, &["client", "-i", "nobody"]);
    terminal.expect("mcp-py-client: there is no interpreter \"nobody\"");
    assert_eq!(terminal.exit_code(), 125);
}

#[test]
fn the_console_leaves_when_its_session_has_ended() {
    let (mut server, mut terminal) = start_console();
    server.kill(libc::SIGTERM);
    server.wait_exit(DEADLINE);
    terminal.press("1\n");
    let shown = terminal.expect("the session has ended\n");
    assert!(!shown.contains("MCP_PY_SOCKET"), "nobody has set it: {shown}");
    assert_eq!(terminal.exit_code(), 125);
}

#[test]
fn the_history_is_kept_for_the_user_alone() {
    let (server, socket) = start();
    let folder = server.folder().clone();
    let mut terminal = Terminal::console(&folder, &socket, &[]);
    assert_eq!(terminal.enter("40 + 2"), "42\n");
    terminal.press(CTRL_D);
    assert_eq!(terminal.exit_code(), 0);
    let file = folder.home().join(".claude-workspace/python_interpreter/console_history");
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let mut terminal = Terminal::console(&folder, &socket, &[]);
    assert_eq!(terminal.enter(&format!("{UP}0")), "60\n");
}

/// The console has the working directory of the person, and its files must not be taken for Python's own.
#[test]
fn the_console_runs_nothing_of_the_project() {
    let (server, socket) = start();
    let folder = server.folder().clone();
    for name in ["code", "readline", "subprocess", "sitecustomize"] {
        fs::write(folder.project().join(format!("{name}.py")), "print('not this')").unwrap();
    }
    let mut terminal = Terminal::console(&folder, &socket, &[]);
    assert_eq!(terminal.enter("6 * 7"), "42\n");
    assert!(!String::from_utf8_lossy(&terminal.shown.lock().unwrap()).contains("not this"));
}

/// Tab asks the interpreter for its names, and the answer begins with what there is to tell.
#[test]
fn a_death_between_two_cells_is_told_at_a_tab_too() {
    let (mut server, mut terminal) = start_console();
    let pid = server.worker_pid();
    assert_eq!(terminal.enter("kept = 1"), "");
    procs::kill(pid, libc::SIGKILL);
    eventually(DEADLINE, "it dies", || !procs::is_alive(pid));
    terminal.press("abs\t");
    terminal.expect("[mcp-py: before this cell, interpreter \"builtin\" was killed by SIGKILL");
    terminal.expect("\n>>> abs");
    assert_eq!(terminal.enter("(-1)"), "1\n");
}

// ---- the session of the project that one stands in -----------------------------------------------------------------

/// The client in a folder, at a terminal under no host that has a server; returns its exit code and what is shown.
fn run_in(dir: &Path, path: &str) -> (i32, String) {
    let mut terminal = Terminal::run(dir, &[("PATH", path)], &["client", "-c", "where"]);
    let code = terminal.exit_code();
    terminal.expect("\n");
    terminal.taken = 0;
    (code, terminal.rest())
}

#[test]
fn at_a_terminal_the_session_is_that_of_the_innermost_project_around() {
    let folder = Folder::new();
    let path = path_without_the_tests(&folder);
    let inner = folder.project().join("inner");
    let below = inner.join("src/deep");
    fs::create_dir_all(&below).unwrap();
    let serve = |dir: &Path, host: &str| {
        let mut server = Server::with(|builder| builder.folder(&folder).under(host).cwd(dir));
        server.ok(&format!("where = {:?}", dir.display().to_string()));
        socket_of(&mut server);
        server
    };
    let _outer = serve(&folder.project(), "outer");
    let told = |dir: &Path| format!("mcp-py-client: this is the session of {} (", dir.display());
    let (code, shown) = run_in(&below, &path);
    assert!(code == 0 && shown.contains(&told(&folder.project())) && shown.contains("project'\n"), "{shown}");
    let _inner = serve(&inner, "inner");
    let (code, shown) = run_in(&below, &path);
    assert!(code == 0 && shown.contains(&told(&inner)) && shown.contains("inner'\n"), "{shown}");
    let (code, shown) = run_in(&folder.project(), &path);
    assert!(code == 0 && shown.contains("project'\n"), "{shown}");
    // Where stderr is no terminal, it may be an agent of another session.
    let mut command = Command::new(binary());
    let output = command.args(["client", "-c", "where"]).env_clear().env("PATH", &path).current_dir(&inner).output();
    let output = output.unwrap();
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(125), true));
    // Of two it is not clear which is meant, and neither is that around both.
    let second = serve(&inner, "second");
    let (code, shown) = run_in(&inner, &path);
    let why = "mcp-py-client: no session for this shell: this project has more than one";
    assert!(code == 125 && shown.starts_with(why), "{shown}");
    let listed = shown.lines().filter(|line| line.contains(&format!("  {} (", inner.display())));
    assert_eq!(listed.count(), 2, "{shown}");
    drop(second);
    let outside = folder.path();
    let (code, shown) = run_in(outside, &path);
    assert!(code == 125 && shown.contains("yours are:\n"), "{shown}");
}

#[test]
fn servers_that_hang_are_waited_for_together() {
    let folder = Folder::new();
    let path = path_without_the_tests(&folder);
    let mut listeners = Vec::new();
    let mut sockets = Vec::new();
    for number in 0..8 {
        let socket = format!("/tmp/python-interpreter-{}-hangs{number}.sock", std::process::id());
        let _ = fs::remove_file(&socket);
        listeners.push(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        sockets.push(socket);
    }
    let mut server = Server::with(|builder| builder.folder(&folder).under("claude"));
    server.ok("where = 'found'");
    socket_of(&mut server);
    let start = std::time::Instant::now();
    let (code, shown) = run_in(&folder.project(), &path);
    let took = start.elapsed();
    for socket in &sockets {
        fs::remove_file(socket).unwrap();
    }
    assert!(code == 0 && shown.contains("'found'\n"), "{shown}");
    assert!(took.as_secs() < 20, "{took:?}, where one takes 5 s");
}

// ---- a server that a person starts ---------------------------------------------------------------------------------

#[test]
fn a_server_at_a_terminal_says_what_it_is_and_how_to_run_code() {
    let folder = Folder::new();
    let home = folder.home();
    let mut terminal = Terminal::run(&folder.project(), &[("HOME", home.to_str().unwrap())], &["server"]);
    terminal.expect("mcp-py-server: this is an MCP server: a host starts it");
    terminal.expect("claude mcp add ");
    terminal.expect("`mcp-py-client` runs Python");
    terminal.press("1 + 1\n");
    terminal.expect("refused: not JSON");
    terminal.press("x\n");
    terminal.expect("refused: not JSON");
    assert!(!terminal.rest().contains("this is an MCP server"), "it is said once");
    terminal.press(CTRL_D);
    assert_eq!(terminal.exit_code(), 0);
}

#[test]
fn a_server_that_is_given_code_says_how_to_run_code_once() {
    let mut server = Server::start();
    server.send_raw(b"print(1)\nprint(2)\n");
    server.recv_until(|message| message.get("error").is_some());
    server.recv_until(|message| message.get("error").is_some());
    server.expect_stderr("`mcp-py-client` runs Python");
    assert_eq!(server.stderr().matches("this is an MCP server").count(), 1);
    server.initialize();
    // Where MCP is spoken, a bad line is a fault of the host.
    let mut server = Server::start();
    server.initialize();
    server.send_raw(b"print(1)\n");
    server.recv_until(|message| message.get("error").is_some());
    server.expect_stderr("refused: not JSON");
    server.ok("1");
    assert!(!server.stderr().contains("this is an MCP server"));
}
