//! The ways a server ends: end of stdin, signals, SIGKILL, idle and busy. Its interpreters and their children end with
//! it (I11), idle interpreters run their atexit functions, and nothing is left behind.
//!
//! The bounds below are looser than the promises beside them, because the machine may be busy.

use crate::client::{is_on_macos, python, Folder, Server, DEADLINE};
use crate::procs;
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
const SECOND: Duration = Duration::from_secs(1);
/// End of stdin with nothing in flight: 100 ms.
const IDLE_EXIT_MAX: Duration = Duration::from_secs(1);
/// End of stdin with something in flight: 2 s, of which the cells have 1.5.
const BUSY_EXIT_MAX: Duration = Duration::from_secs(5);
/// A signal: 300 ms.
const SIGNAL_EXIT_MAX: Duration = Duration::from_secs(3);

/// A server whose builtin interpreter has run a cell; and that interpreter's pid.
fn started() -> (Server, i32) {
    let mut server = Server::start();
    server.initialize();
    let worker = server.worker_pid();
    (server, worker)
}

/// Makes the server have an output directory with a file in it.
fn spill(server: &mut Server) -> PathBuf {
    let text = server.ok("print('x' * 30_000)");
    let line = text.lines().find_map(|line| line.strip_prefix("# Full output: "));
    let file = PathBuf::from(line.unwrap_or_else(|| panic!("a file was expected: {}", &text[text.len() - 300..])));
    assert!(file.exists(), "{}", file.display());
    file
}

/// Neither running nor left unreaped.
#[track_caller]
fn expect_gone(pids: &[i32]) {
    procs::eventually(5 * SECOND, &format!("processes {pids:?} are gone"), || {
        pids.iter().all(|&pid| !procs::is_alive(pid) && !procs::is_zombie(pid))
    });
}

/// No process carries the server's environment any more, and its output directories are away.
#[track_caller]
fn expect_nothing_left(server: &Server) {
    let mut left = vec![];
    let start = Instant::now();
    while start.elapsed() < SECOND {
        left = server.processes();
        if left.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let names: Vec<String> = left.iter().map(|&pid| procs::name_of(pid)).collect();
    assert!(left.is_empty(), "left running: {left:?} {names:?}");
    let directories = server.folder().output_dirs();
    assert!(directories.is_empty(), "left under TMPDIR: {directories:?}");
}

// ---- end of stdin --------------------------------------------------------------------------------------------------

#[test]
fn end_of_stdin_ends_an_idle_server() {
    let (mut server, worker) = started();
    spill(&mut server);
    assert_eq!(server.finish(IDLE_EXIT_MAX), Some(0));
    server.expect_end_of_stdout(SECOND);
    expect_gone(&[worker]);
    expect_nothing_left(&server);
}

#[test]
fn end_of_stdin_ends_a_server_that_was_never_asked_anything() {
    let mut server = Server::start();
    assert_eq!(server.finish(IDLE_EXIT_MAX), Some(0));
    expect_nothing_left(&server);
}

#[test]
fn end_of_stdin_ends_a_server_whose_python_is_still_starting() {
    let folder = Folder::new();
    let slow = folder.script("python3", "#!/bin/sh\nexec sleep 1000\n");
    let mut server = Server::with(|b| b.folder(&folder).env("MCP_PY_PYTHON", &slow));
    server.initialize();
    assert_eq!(server.finish(BUSY_EXIT_MAX), Some(0));
    expect_nothing_left(&server);
}

#[test]
fn what_was_asked_is_answered_after_end_of_stdin() {
    let mut server = Server::start();
    let initialize = server.start_request(
        "initialize",
        json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "it", "version": "1"}}),
    );
    let cells = [server.start_exec("x = 20"), server.start_exec("x + 1"), server.start_exec("print(x)")];
    let list = server.start_request("tools/list", json!({}));
    server.close_stdin();
    assert!(server.response(initialize)["result"].is_object());
    assert!(server.response(list)["result"].is_object());
    for (cell, text) in cells.iter().zip(["", "21", "20"]) {
        assert_eq!(server.wait(*cell).text, text);
    }
    assert_eq!(server.wait_exit(BUSY_EXIT_MAX).code(), Some(0));
    expect_nothing_left(&server);
}

#[test]
fn a_cell_of_half_a_second_is_answered_after_end_of_stdin() {
    let (mut server, worker) = started();
    let cell = server.start_exec("import time; time.sleep(0.5); 'slept'");
    server.close_stdin();
    assert_eq!(server.wait(cell).text, "'slept'");
    // After that answer nothing is in flight any more.
    assert_eq!(server.wait_exit(IDLE_EXIT_MAX).code(), Some(0));
    expect_gone(&[worker]);
    expect_nothing_left(&server);
}

#[test]
fn a_cell_that_does_not_end_is_killed_after_end_of_stdin() {
    let (mut server, worker) = started();
    spill(&mut server);
    server.start_spinning();
    server.start_exec("'waiting behind it'");
    assert_eq!(server.finish(BUSY_EXIT_MAX), Some(0));
    expect_gone(&[worker]);
    expect_nothing_left(&server);
}

#[test]
fn a_cell_that_swallows_interrupts_is_killed_after_end_of_stdin() {
    let (mut server, worker) = started();
    let flag = server.flag();
    server.start_exec(&format!(
        "open({flag:?}, 'w').close()\nwhile True:\n    try:\n        while True: pass\n    \
         except BaseException: pass"
    ));
    server.expect_file(&flag);
    assert_eq!(server.finish(BUSY_EXIT_MAX), Some(0));
    expect_gone(&[worker]);
    expect_nothing_left(&server);
}

// ---- signals -------------------------------------------------------------------------------------------------------

#[test]
fn a_signal_ends_an_idle_server_with_128_plus_its_number() {
    for signal in SIGNALS {
        let (mut server, worker) = started();
        spill(&mut server);
        server.kill(signal);
        assert_eq!(server.wait_exit(SIGNAL_EXIT_MAX).code(), Some(128 + signal));
        expect_gone(&[worker]);
        expect_nothing_left(&server);
    }
}

#[test]
fn a_signal_ends_a_busy_server_with_128_plus_its_number() {
    for signal in SIGNALS {
        let (mut server, worker) = started();
        spill(&mut server);
        server.start_spinning();
        server.start_exec("'waiting behind it'");
        server.kill(signal);
        assert_eq!(server.wait_exit(SIGNAL_EXIT_MAX).code(), Some(128 + signal));
        expect_gone(&[worker]);
        expect_nothing_left(&server);
    }
}

/// The exit of a worker is what ends the wait, not a clock: 100 ms were spent where it went unnoticed, and the worker
/// was sometimes left unreaped. The fastest of five, so that a busy machine does not matter.
#[test]
fn a_signal_is_not_waited_out() {
    for busy in [false, true] {
        let mut fastest = DEADLINE;
        for _ in 0..5 {
            let (mut server, worker) = started();
            if busy {
                server.start_spinning();
            }
            let start = Instant::now();
            server.kill(libc::SIGTERM);
            assert_eq!(server.wait_exit(SIGNAL_EXIT_MAX).code(), Some(128 + libc::SIGTERM));
            fastest = fastest.min(start.elapsed());
            expect_gone(&[worker]);
        }
        assert!(fastest < Duration::from_millis(80), "busy: {busy}, the fastest exit of five took {fastest:?}");
    }
}

#[test]
fn a_signal_ends_a_server_that_was_never_asked_anything() {
    for signal in SIGNALS {
        let mut server = Server::start();
        // It says that it is there before the signal goes: until then, dying of it is right too.
        server.expect_no_answer();
        server.kill(signal);
        assert_eq!(server.wait_exit(SIGNAL_EXIT_MAX).code(), Some(128 + signal));
        expect_nothing_left(&server);
    }
}

#[test]
fn a_signal_ends_a_server_whose_python_is_still_starting() {
    let folder = Folder::new();
    let slow = folder.script("python3", "#!/bin/sh\nexec sleep 1000\n");
    let mut server = Server::with(|b| b.folder(&folder).env("MCP_PY_PYTHON", &slow));
    server.initialize();
    server.start_exec("1");
    let pid = server.pid();
    procs::eventually(DEADLINE, "the slow Python", || !procs::children_of(pid).is_empty());
    server.kill(libc::SIGTERM);
    assert_eq!(server.wait_exit(SIGNAL_EXIT_MAX).code(), Some(128 + libc::SIGTERM));
    expect_nothing_left(&server);
}

#[test]
fn all_interpreters_end_with_the_server() {
    let (mut server, builtin) = started();
    let mut workers = vec![builtin];
    for name in ["one", "two", "three"] {
        let result = server.call("add_interpreter", json!({"name": name, "python_path": python()}));
        assert!(!result.is_error, "{}", result.text);
        let pid = server.call("execute", json!({"code": "import os; os.getpid()", "interpreter": name})).text;
        workers.push(pid.parse().expect("a pid"));
    }
    let flag = server.flag();
    let code = format!("open({flag:?}, 'w').close()\nwhile True: pass");
    server.start_call("execute", json!({"code": code, "interpreter": "two"}));
    server.expect_file(&flag);
    server.kill(libc::SIGINT);
    assert_eq!(server.wait_exit(SIGNAL_EXIT_MAX).code(), Some(128 + libc::SIGINT));
    expect_gone(&workers);
    expect_nothing_left(&server);
}

#[test]
fn claude_stops_its_server_with_sigint_and_then_sigterm_alone() {
    for busy in [false, true] {
        let mut server = Server::with(|b| b.arg0("mcp-py-server").under("claude"));
        server.initialize();
        let worker = server.worker_pid();
        spill(&mut server);
        if busy {
            server.start_spinning();
        }
        let (outer, pid) = (server.outer_pid(), server.pid());
        assert_eq!(procs::name_of(outer), "claude");
        assert_eq!(procs::parent_of(pid), Some(outer));
        // Only the direct child gets them; stdin stays open.
        server.kill(libc::SIGINT);
        server.kill(libc::SIGTERM);
        let code = server.wait_exit(SIGNAL_EXIT_MAX).code();
        assert!([Some(130), Some(143)].contains(&code), "{code:?}");
        expect_gone(&[worker, pid]);
        expect_nothing_left(&server);
    }
}

#[test]
fn sigint_to_the_server_alone_ends_it_beneath_a_claude() {
    let mut server = Server::with(|b| b.under("claude"));
    server.initialize();
    let worker = server.worker_pid();
    server.start_spinning();
    server.kill(libc::SIGINT);
    assert_eq!(server.wait_exit(SIGNAL_EXIT_MAX).code(), Some(128 + libc::SIGINT));
    expect_gone(&[worker]);
    expect_nothing_left(&server);
}

#[test]
fn a_signal_during_the_wait_after_end_of_stdin_ends_the_server() {
    let (mut server, worker) = started();
    server.start_spinning();
    server.close_stdin();
    server.kill(libc::SIGTERM);
    let code = server.wait_exit(SIGNAL_EXIT_MAX).code();
    assert!([Some(0), Some(143)].contains(&code), "{code:?}");
    expect_gone(&[worker]);
    expect_nothing_left(&server);
}

// ---- what workers do at their end ----------------------------------------------------------------------------------

/// Has the builtin interpreter write a file from atexit.
fn announce_exit(server: &mut Server) -> PathBuf {
    let flag = server.flag();
    server.ok(&format!("import atexit\n@atexit.register\ndef leave():\n    open({flag:?}, 'w').write('left')"));
    flag
}

#[test]
fn the_atexit_of_an_idle_interpreter_runs_at_end_of_stdin() {
    let (mut server, _) = started();
    let flag = announce_exit(&mut server);
    assert_eq!(server.finish(IDLE_EXIT_MAX), Some(0));
    assert_eq!(fs::read_to_string(flag).expect("atexit ran"), "left");
}

#[test]
fn the_atexit_of_an_idle_interpreter_runs_at_a_signal() {
    for signal in SIGNALS {
        let (mut server, _) = started();
        let flag = announce_exit(&mut server);
        server.kill(signal);
        assert_eq!(server.wait_exit(SIGNAL_EXIT_MAX).code(), Some(128 + signal));
        assert_eq!(fs::read_to_string(flag).expect("atexit ran"), "left");
    }
}

#[test]
fn an_interpreter_that_does_not_leave_by_itself_is_killed() {
    for stay in [
        "import atexit, time; atexit.register(time.sleep, 1000); None",
        "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()",
        "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(os.getpid(), 0)",
    ] {
        for by_signal in [false, true] {
            let (mut server, worker) = started();
            server.ok(stay);
            let (code, most) = if by_signal {
                server.kill(libc::SIGTERM);
                (143, SIGNAL_EXIT_MAX)
            } else {
                server.close_stdin();
                (0, BUSY_EXIT_MAX)
            };
            assert_eq!(server.wait_exit(most).code(), Some(code), "{stay}");
            expect_gone(&[worker]);
            expect_nothing_left(&server);
        }
    }
}

#[test]
fn a_stopped_interpreter_is_killed_too() {
    let (mut server, worker) = started();
    assert!(procs::kill(worker, libc::SIGSTOP));
    server.kill(libc::SIGTERM);
    assert_eq!(server.wait_exit(SIGNAL_EXIT_MAX).code(), Some(143));
    expect_gone(&[worker]);
    expect_nothing_left(&server);
}

#[test]
fn background_children_of_cells_end_with_the_server() {
    for end in [0, libc::SIGTERM, libc::SIGINT] {
        let (mut server, worker) = started();
        let pid = server.ok("import subprocess; p = subprocess.Popen(['sleep', '1000']); p.pid");
        let child: i32 = pid.parse().expect("a pid");
        assert!(procs::is_alive(child));
        let code = if end == 0 {
            server.finish(BUSY_EXIT_MAX)
        } else {
            server.kill(end);
            server.wait_exit(SIGNAL_EXIT_MAX).code()
        };
        assert_eq!(code, Some(if end == 0 { 0 } else { 128 + end }));
        procs::eventually(SECOND, "no child of a cell", || !procs::is_alive(child));
        expect_gone(&[worker]);
        expect_nothing_left(&server);
    }
}

#[test]
fn background_children_of_cells_end_with_their_interpreter() {
    let (mut server, _) = started();
    let added = server.call("add_interpreter", json!({"name": "x", "python_path": python()}));
    assert!(!added.is_error, "{}", added.text);
    let code = "import subprocess, os; p = subprocess.Popen(['sleep', '1000']); os.getpid(), p.pid";
    let text = server.call("execute", json!({"code": code, "interpreter": "x"})).text;
    let pids: Vec<i32> = text.trim_matches(['(', ')']).split(", ").map(|pid| pid.parse().expect("a pid")).collect();
    let stopped = server.call("stop_interpreter", json!({"name": "x"}));
    assert!(!stopped.is_error, "{}", stopped.text);
    procs::eventually(SECOND, "no child of a cell", || !procs::is_alive(pids[1]));
    expect_gone(&pids[..1]);
}

#[test]
fn a_daemon_that_holds_the_output_open_delays_no_end() {
    for end in [0, libc::SIGTERM] {
        let (mut server, worker) = started();
        let code = "import subprocess; p = subprocess.Popen(['sleep', '1000'], start_new_session=True); p.pid";
        // It has left the group on purpose, so it may stay; the harness ends it.
        let daemon: i32 = server.ok(code).parse().expect("a pid");
        assert!(procs::is_alive(daemon));
        let code = if end == 0 {
            server.finish(IDLE_EXIT_MAX)
        } else {
            server.kill(end);
            server.wait_exit(SIGNAL_EXIT_MAX).code()
        };
        assert_eq!(code, Some(if end == 0 { 0 } else { 128 + end }));
        expect_gone(&[worker]);
    }
}

#[test]
fn interpreters_that_end_while_the_server_runs_leave_no_zombie() {
    let (mut server, worker) = started();
    let pid = server.pid();
    let died = server.exec("import os; os._exit(3)");
    assert!(died.is_error, "{}", died.text);
    expect_gone(&[worker]);
    let second = server.worker_pid();
    assert!(procs::kill(second, libc::SIGKILL));
    // Also where nobody asks for it: it died between two cells.
    expect_gone(&[second]);
    server.call("add_interpreter", json!({"name": "x", "python_path": python()}));
    server.call("stop_interpreter", json!({"name": "x"}));
    procs::eventually(SECOND, "no zombie child", || {
        !procs::children_of(pid).iter().any(|&child| procs::is_zombie(child))
    });
}

// ---- SIGKILL, and the next server ----------------------------------------------------------------------------------

#[test]
fn workers_are_gone_a_second_after_their_server_was_killed() {
    for cell in [
        "",
        "while True: pass",
        "import time; time.sleep(600)",
        "import subprocess; subprocess.run(['sleep', '600'])",
        "import threading; threading.Event().wait()",
    ] {
        let (mut server, worker) = started();
        if !cell.is_empty() {
            let flag = server.flag();
            server.start_exec(&format!("open({flag:?}, 'w').close()\n{cell}"));
            server.expect_file(&flag);
        }
        server.kill(libc::SIGKILL);
        server.wait_exit(DEADLINE);
        procs::eventually(SECOND, "no worker", || !procs::is_alive(worker));
        // On Linux the kernel kills the worker, and has no hold on its children.
        if is_on_macos() || !cell.contains("subprocess") {
            procs::eventually(SECOND, "no process of the server", || server.processes().is_empty());
        }
    }
}

#[test]
fn the_next_server_removes_what_a_killed_one_left_and_nothing_else() {
    let folder = Folder::new();
    let mut live = Server::with(|b| b.folder(&folder));
    live.initialize();
    let live_file = spill(&mut live);
    let mut dead = Server::with(|b| b.folder(&folder));
    dead.initialize();
    let dead_file = spill(&mut dead);
    assert_ne!(live_file.parent(), dead_file.parent(), "a directory for each server");
    // Names that only look alike are not ours to remove.
    let foreign = folder.tmp().join("python-interpreter-notes");
    fs::create_dir(&foreign).expect("a directory");
    let file = folder.tmp().join("python-interpreter-mcp-py-note.txt");
    fs::write(&file, "mine").expect("a file");
    let unpacked = folder.tmp().join("python-interpreter-mcp-py-main");
    fs::create_dir(&unpacked).expect("a directory");

    dead.kill(libc::SIGKILL);
    dead.wait_exit(DEADLINE);
    assert!(dead_file.exists(), "SIGKILL leaves it");
    // The flock of a server may live on in a process that inherited it, until that has gone too.
    procs::eventually(SECOND, "no process of the dead server", || dead.processes().is_empty());

    let mut next = Server::with(|b| b.folder(&folder));
    next.initialize();
    spill(&mut next);
    let directory = dead_file.parent().expect("a directory").to_path_buf();
    procs::eventually(DEADLINE, "the dead server's directory is removed", || !directory.exists());
    assert!(live_file.exists(), "the live server keeps its files");
    assert!(foreign.exists() && file.exists() && unpacked.exists(), "what is not ours stays");
    assert_eq!(live.ok("1 + 1"), "2");
    spill(&mut live);
}

#[test]
fn an_output_directory_that_a_cleaner_took_is_made_again() {
    let (mut server, _) = started();
    let file = spill(&mut server);
    fs::remove_dir_all(file.parent().expect("a directory")).expect("removed");
    let again = spill(&mut server);
    assert!(fs::metadata(&again).expect("a file").len() >= 30_000);
    assert_eq!(server.finish(IDLE_EXIT_MAX), Some(0));
    expect_nothing_left(&server);
}

#[test]
fn a_signal_answers_the_cells_that_wait_too() {
    let mut server = Server::start();
    let running = server.start_spinning();
    let waiting = server.start_exec("1 + 1");
    server.kill(libc::SIGTERM);
    let told = server.wait(waiting);
    assert_eq!((told.text.as_str(), told.is_error), ("not run: the server is shutting down", true));
    assert!(server.wait(running).text.contains("interpreter \"builtin\" was killed: the server shut down"));
    server.wait_exit(DEADLINE);
}
