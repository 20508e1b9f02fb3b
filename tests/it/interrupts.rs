//! A time-out or a cancellation interrupts the cell, wherever it waits, and keeps the variables; it never hits the next
//! cell. When an interpreter dies, the very next answer says so, with the cause, and exactly once (I5). No cell is ever
//! run twice (I3), and no process is signalled after it was reaped (I8).

use crate::cells::{check, failure, has, lacks, py};
use crate::client::{python, Folder, Server, ToolResult, DEADLINE};
use crate::procs::{self, eventually};
use serde_json::{json, Value};
use std::fs;
use std::time::{Duration, Instant};

/// Until an interrupted cell has ended, where it heeds that: long before its caller would be told that it has not.
const HEEDS_WITHIN: Duration = Duration::from_secs(4);
/// From the interrupt until who waits is told that the cell has not stopped (INTERRUPT_PATIENCE).
const PATIENCE: Duration = Duration::from_secs(10);

fn start_with_timeout(server: &mut Server, timeout: f64, code: &str) -> i64 {
    server.start_call("execute", json!({"code": py(code), "timeout": timeout}))
}

/// Runs a cell that is interrupted by its timeout, and heeds that. Its text.
#[track_caller]
fn interrupted(server: &mut Server, timeout: f64, code: &str) -> String {
    let start = Instant::now();
    let id = start_with_timeout(server, timeout, code);
    let result = server.wait(id);
    let took = start.elapsed();
    if took < Duration::from_secs_f64(timeout) || took > Duration::from_secs_f64(timeout) + HEEDS_WITHIN {
        server.fail(&format!("interrupted after {took:?} with a timeout of {timeout}"));
    }
    if !result.is_error {
        server.fail(&format!("an interrupted cell is an error, not {:?}", result.text));
    }
    has(server, &result.text, &["[mcp-py: ", &format!("timeout of {timeout} s"), "variables are kept"]);
    result.text
}

// ---- programs in front of Python ---------------------------------------------------------------

/// A server whose Python is a script, in which PYTHON stands for the real one.
fn start_behind(script: &str) -> Server {
    let folder = Folder::new();
    let path = folder.script("shim", &script.replace("PYTHON", python()));
    Server::with(|builder| builder.folder(&folder).env("MCP_PY_PYTHON", path.to_str().unwrap()))
}

/// pyenv's shim keeps a shell in front of what it takes for a call of pip.
#[test]
fn a_shim_that_looks_for_pip_in_its_arguments_becomes_python() {
    let shim = "#!/bin/sh\ncase \" $* \" in *[[:space:]]-m[[:space:]]pip[[:space:]]*) PYTHON \"$@\"; exit $?;; esac\n\
                exec PYTHON \"$@\"\n";
    let mut server = start_behind(shim);
    check(&mut server, "6 * 7", "42");
    assert_eq!(procs::parent_of(server.worker_pid()), Some(server.pid()));
}

#[test]
fn a_program_that_stays_in_front_of_python_is_told() {
    let mut server = start_behind("#!/bin/sh\nPYTHON \"$@\"\nexit $?\n");
    let text = server.ok("6 * 7");
    has(
        &mut server,
        &text,
        &["shim is a program that stays in front of Python", "give the path of the Python itself", "\n42"],
    );
    check(&mut server, "6 * 7", "42");
}

// ---- interrupts ----------------------------------------------------------------------------------

#[test]
fn a_busy_loop_is_interrupted_at_its_timeout_with_the_place_and_its_variables() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    let code = "count = 0\nprint('begun')\ndef spin():\n    global count\n    while True: count += 1  # here\nspin()";
    let text = interrupted(&mut server, 1.0, code);
    assert!(text.starts_with("begun\n[mcp-py: "), "{text}");
    has(
        &mut server,
        &text,
        &["timeout of 1 s", "line 6, in <module>\n    spin()", "in spin\n", "# here\n", "\nKeyboardInterrupt"],
    );
    check(&mut server, "count > 1000", "True");
    assert_eq!(server.worker_pid(), pid);
}

#[test]
fn whatever_a_cell_waits_for_is_interrupted() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    server.ok("import os, re, select, signal, socket, subprocess, sys, threading, time");
    for code in [
        "time.sleep(60)",
        "os.system('sleep 60'); time.sleep(60)",
        "os.system('sleep 60')",
        "subprocess.run(['sleep', '60'])",
        "subprocess.check_output('sleep 60; echo', shell=True)",
        "threading.Event().wait()",
        "threading.Lock().acquire() and (lock := threading.Lock()).acquire() and lock.acquire()",
        "select.select([], [], [])",
        "os.read(os.pipe()[0], 1)",
        "pair = socket.socketpair(); pair[0].recv(1)",
        "signal.pause()",
        "re.match('(a+)+$', 'a' * 60 + 'b')",
        "sum(x for x in iter(int, 1))",
        "import ctypes; ctypes.CDLL(None).sleep(60)",
    ] {
        server.remark(code);
        interrupted(&mut server, 0.3, code);
        check(&mut server, "6 * 7", "42");
    }
    // Children were interrupted with it.
    let children = || procs::children_of(pid).into_iter().filter(|&child| procs::is_alive(child)).count();
    eventually(DEADLINE, "the children of interrupted cells end", || children() == 0);
    assert_eq!(server.worker_pid(), pid);
}

#[test]
fn compiling_and_the_repr_are_interrupted_too() {
    let mut server = Server::start();
    let endless = "
        import time
        class R:
            def __repr__(self):
                while True: time.sleep(0.01)  # in the repr
        R()
        ";
    let text = interrupted(&mut server, 0.3, endless);
    has(&mut server, &text, &["# in the repr", "KeyboardInterrupt"]);
    let text =
        interrupted(&mut server, 0.3, "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E");
    has(&mut server, &text, &["E"]);
    check(&mut server, "6 * 7", "42");
}

#[test]
fn a_cell_is_interrupted_once_so_that_it_can_clean_up() {
    let mut server = Server::start();
    let text = interrupted(
        &mut server,
        0.3,
        "
        import time
        saved = 0
        try:
            while True: time.sleep(0.01)
        finally:
            for saved in range(1, 11):  # over a second: longer than it takes until the next SIGINT
                time.sleep(0.12)
            print('saved')
        ",
    );
    has(&mut server, &text, &["saved\n[mcp-py: ", "KeyboardInterrupt"]);
    check(&mut server, "saved", "10");
    // Nor is it while its exception is shown.
    let text = interrupted(
        &mut server,
        0.3,
        "
        class Slow(Exception):
            def __str__(self):
                time.sleep(1)
                return 'shown in the end'
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise Slow
        ",
    );
    has(&mut server, &text, &["Slow: shown in the end"]);
    // A cell that goes on well afterwards was interrupted all the same.
    let text = interrupted(
        &mut server,
        0.3,
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('caught')\n'result'",
    );
    assert!(text.starts_with("caught\n[mcp-py: ") && text.ends_with("]\n'result'"), "{text}");
}

#[test]
fn a_timeout_is_counted_from_the_cells_own_start() {
    let mut server = Server::start();
    let (first, release) = server.start_waiting();
    let queued = start_with_timeout(&mut server, 0.5, "'in time'");
    std::thread::sleep(Duration::from_millis(700));
    fs::write(&release, "").unwrap();
    assert_eq!(server.wait(first).text, "'released'");
    let result = server.wait(queued);
    assert_eq!((result.text.as_str(), result.is_error), ("'in time'", false));
}

#[test]
fn the_default_timeout_is_a_variables_and_0_is_none() {
    let mut server = Server::with(|builder| builder.env("MCP_PY_TIMEOUT", "0.7"));
    let result = server.exec("x = 1\nwhile True: pass");
    assert!(result.is_error, "{}", result.text);
    has(&mut server, &result.text, &["timeout of 0.7 s", "KeyboardInterrupt"]);
    for timeout in [0.0, 60.0] {
        let id = start_with_timeout(&mut server, timeout, "import time; time.sleep(1.5); x");
        let result = server.wait(id);
        assert_eq!((result.text.as_str(), result.is_error), ("1", false));
    }
    let mut server = Server::with(|builder| builder.env("MCP_PY_TIMEOUT", "0"));
    check(&mut server, "import time; time.sleep(0.5); 'no limit'", "'no limit'");
}

const SPIN: &str = "import time\ndef spin(seconds):\n    end = time.perf_counter() + seconds\n    \
                    while time.perf_counter() < end: pass";

#[test]
fn an_interrupt_close_to_the_end_of_a_cell_never_hits_the_next() {
    let mut server = Server::start();
    server.ok(SPIN);
    let mut hits = 0;
    for round in 0..200 {
        let seconds = 0.004 + f64::from(round % 5) * 0.0005;
        let cell = start_with_timeout(&mut server, 0.005, &format!("spin({seconds})\n'done'"));
        let next = server.start_exec(&format!("for _ in range(3_000): pass\n{round}"));
        let result = server.wait(cell);
        hits += usize::from(result.is_error);
        let told = result.text.contains("timeout of 0.005 s");
        assert!(result.is_error == told && (told || result.text == "'done'"), "{}", result.text);
        let result = server.wait(next);
        if result.is_error || result.text != round.to_string() {
            server.fail(&format!("the cell after an interrupt: {:?}", result.text));
        }
    }
    server.remark(&format!("{hits} of 200 were interrupted"));
    assert!(hits > 0, "no cell was interrupted at all");
    check(&mut server, "spin(0.3)\n6 * 7", "42");
}

#[test]
fn a_cancellation_close_to_the_end_of_a_cell_never_hits_the_next() {
    let mut server = Server::start();
    server.ok(SPIN);
    for round in 0..200 {
        let cell = server.start_exec("spin(0.001)\n'done'");
        std::thread::sleep(Duration::from_micros(300 + 10 * (round % 100)));
        server.cancel(cell);
        let next = server.start_exec(&format!("for _ in range(3_000): pass\n{round}"));
        let result = server.wait(next);
        // A cell that had its value when it was cancelled shows that, for nobody was told.
        if result.is_error || result.text.lines().last() != Some(round.to_string().as_str()) {
            server.fail(&format!("the cell after a cancellation: {:?}", result.text));
        }
    }
    check(&mut server, "spin(0.3)\n6 * 7", "42");
}

#[test]
fn a_signal_that_comes_between_cells_is_dropped() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    for round in 0..20 {
        procs::kill(pid, libc::SIGINT);
        check(&mut server, &format!("for _ in range(10_000): pass\n{round}"), &round.to_string());
    }
    assert_eq!(server.worker_pid(), pid);
}

#[test]
fn a_handler_of_the_users_own_holds_during_cells_and_only_then() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    server.ok(
        "import signal\nhits = []\ndef handler(*_): hits.append(1)\nbefore = signal.signal(signal.SIGINT, handler)",
    );
    check(&mut server, "signal.getsignal(signal.SIGINT) is handler", "True");
    let text = interrupted(&mut server, 0.5, "while not hits: pass\n'handled'");
    assert!(text.ends_with("]\n'handled'"), "{text}");
    lacks(&mut server, &text, &["KeyboardInterrupt"]);
    // Between cells it is ours, which drops the signal.
    server.ok("hits.clear()");
    procs::kill(pid, libc::SIGINT);
    check(&mut server, "hits", "[]");
    check(&mut server, "signal.getsignal(signal.SIGINT) is handler, hits", "(True, [])");
    // One that raises is the cell's own affair.
    server.ok("def handler(*_): raise ValueError('from the handler')\nn = signal.signal(signal.SIGINT, handler)");
    let text = interrupted(&mut server, 0.5, "while True: pass");
    has(&mut server, &text, &["ValueError: from the handler"]);
    server.ok("n = signal.signal(signal.SIGINT, signal.default_int_handler)");
    let text = interrupted(&mut server, 0.5, "while True: pass");
    has(&mut server, &text, &["KeyboardInterrupt"]);
    // Taken back, all is as before.
    server.ok("n = signal.signal(signal.SIGINT, before)");
    let text = interrupted(&mut server, 0.5, "while True: pass");
    has(&mut server, &text, &["KeyboardInterrupt"]);
    assert_eq!(server.worker_pid(), pid);
}

#[test]
fn tasks_that_keep_the_loop_busy_survive_the_interrupt_of_another() {
    let mut server = Server::start();
    server.ok(&py("
        import asyncio
        counts = [0] * 20
        async def count(which):
            while True:
                await asyncio.sleep(0.0001 * which)
                counts[which] += 1
        tasks = [asyncio.ensure_future(count(which)) for which in range(20)]
        await asyncio.sleep(0)
        "));
    for _ in 0..20 {
        let text = interrupted(&mut server, 0.1, "await asyncio.sleep(60)");
        has(&mut server, &text, &["KeyboardInterrupt"]);
    }
    let moves = "before = counts[:]; await asyncio.sleep(0.5); [a < b for a, b in zip(before, counts)].count(True)";
    check(&mut server, moves, "20");
    check(&mut server, "[task.done() for task in tasks].count(True)", "0");
}

#[test]
fn an_interrupt_of_an_await_that_goes_on_reaches_the_children_that_it_forked() {
    let mut server = Server::start();
    let text = interrupted(
        &mut server,
        0.5,
        "
        import asyncio, os, time
        pid = os.fork()
        if pid == 0: time.sleep(1000)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(2)
        ",
    );
    has(&mut server, &text, &["KeyboardInterrupt"]);
    let result = server.call("execute", json!({"code": "os.waitpid(pid, 0)[0] == pid", "timeout": 5}));
    assert!(result.text.ends_with("True"), "{}", result.text);
}

#[test]
fn an_interrupted_await_ends_its_own_task_and_no_other() {
    let mut server = Server::start();
    server.ok(&py("
        import asyncio
        ticks = 0
        async def tick():
            global ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1
        async def wait():
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                print('cleaned up')
        task = asyncio.ensure_future(tick())
        await asyncio.sleep(0)
        "));
    let text = interrupted(&mut server, 0.5, "await wait()  # here");
    has(&mut server, &text, &["cleaned up\n[mcp-py: ", "KeyboardInterrupt"]);
    if server.ok("import sys; sys.version_info >= (3, 11)") == "True" {
        has(&mut server, &text, &["await wait()  # here"]); // before, a cancelled task forgets where it was
    }
    let moves =
        "before = ticks; await asyncio.sleep(0.05); n = len(asyncio.all_tasks()); ticks > before, task.done(), n";
    check(&mut server, moves, "(True, False, 2)");
    let text = interrupted(&mut server, 0.5, "async def spin():\n    while True: pass  # busy\nawait spin()");
    has(&mut server, &text, &["# busy", "KeyboardInterrupt"]);
    check(&mut server, moves, "(True, False, 2)");
    // The interrupt may hit another task while this one waits.
    server.ok("async def busy():\n    await asyncio.sleep(0.1)\n    while True: pass");
    server.ok("other = asyncio.ensure_future(busy())\nawait asyncio.sleep(0)");
    let text = interrupted(&mut server, 0.5, "await wait()");
    has(&mut server, &text, &["cleaned up", "KeyboardInterrupt"]);
    check(&mut server, moves, "(True, False, 2)");
    let text = interrupted(&mut server, 0.5, "asyncio.run(wait())");
    has(&mut server, &text, &["KeyboardInterrupt"]);
    check(&mut server, "await asyncio.sleep(0, 'fine')", "'fine'");
}

#[test]
fn what_does_not_heed_its_interrupt_is_told_and_its_process_is_kept() {
    let mut server = Server::start();
    let cells = [
        (
            "swallows",
            "
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    print('swallowed')
            ",
        ),
        (
            "blocks",
            "
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            ctypes.CDLL(None).sleep(12)
            ",
        ),
        ("ignores", "signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"),
        (
            "flushes",
            "
            class W:
                def write(self, text): pass
                def flush(self): time.sleep(60)
            sys.stdout = W()
            ",
        ),
    ];
    let before = "import ctypes, os, signal, sys, time\nkept = 1\nos.getpid()";
    let pids = cells.map(|(name, _)| {
        server.call("add_interpreter", json!({"name": name, "python_path": python()}));
        server.call("execute", json!({"interpreter": name, "code": before})).text
    });
    let start = Instant::now();
    let ids = cells
        .map(|(name, code)| server.start_call("execute", json!({"interpreter": name, "code": py(code), "timeout": 1})));
    let not_stopped = "after its timeout of 1 s, but it has not stopped: it is in code that does not heed interrupts";
    for ((name, _), id) in cells.into_iter().zip(ids) {
        let result = server.wait(id);
        let took = start.elapsed();
        assert!(result.is_error && result.text.contains(not_stopped), "{name}: {}", result.text);
        assert!(took > PATIENCE && took < 2 * PATIENCE, "{name} took {took:?}");
        if name == "swallows" {
            let times = result.text.matches("swallowed").count();
            assert!((3..=5).contains(&times), "one every three seconds: {}", result.text);
        }
    }
    let result = server.call("wait", json!({"interpreter": "blocks"}));
    has(&mut server, &result.text, &["cell 2 ended after 1", "the variables are kept"]);
    let kept = server.call("execute", json!({"interpreter": "blocks", "code": "(kept, os.getpid())"}));
    assert_eq!(kept.text, format!("(1, {})", pids[1]));
    for name in ["swallows", "ignores", "flushes"] {
        let refused = server.call("execute", json!({"interpreter": name, "code": "1"}));
        let words = format!("not run: cell 2 was interrupted {not_stopped}");
        assert!(refused.is_error && refused.text.starts_with(&words), "{}", refused.text);
        assert!(!server.call("reset", json!({"interpreter": name, "restart": true})).is_error);
        let next = server.call("execute", json!({"interpreter": name, "code": "'kept' in dir()"}));
        assert!(next.text.ends_with("False") && !next.is_error, "{}", next.text);
    }
}

#[test]
fn an_await_that_swallows_its_cancellation_is_left_behind() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    let text = interrupted(
        &mut server,
        1.0,
        "
        import asyncio
        kept = 1
        async def f():
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError: pass
        await f()
        ",
    );
    has(&mut server, &text, &["KeyboardInterrupt"]);
    check(&mut server, "kept", "1");
    assert_eq!(server.worker_pid(), pid);
}

// ---- deaths --------------------------------------------------------------------------------------

#[test]
fn a_death_during_a_cell_is_told_at_once_with_its_cause_and_only_once() {
    let mut server = Server::start();
    for (code, words) in [
        ("os._exit(3)", &["exited with code 3"][..]),
        ("os._exit(0)", &["exited with code 0"]),
        ("ctypes.string_at(0)", &["SIGSEGV"]),
        (
            "import faulthandler; faulthandler.enable(); ctypes.string_at(0)",
            &["SIGSEGV", "Fatal Python error: Segmentation fault"],
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", &["SIGKILL"]),
        ("os.kill(os.getpid(), signal.SIGTERM)", &["SIGTERM"]),
        ("os.killpg(0, signal.SIGKILL)", &["SIGKILL"]),
        ("os.abort()", &["SIGABRT"]),
        ("os.execv('/bin/sh', ['sh', '-c', 'echo other program; exit 9'])", &["other program", "exited with code 9"]),
        ("signal.signal(signal.SIGALRM, signal.SIG_DFL); signal.alarm(1); time.sleep(60)", &["SIGALRM"]),
        ("threading.Timer(0.05, os._exit, [4]).start(); time.sleep(60)", &["exited with code 4"]),
        ("resource.setrlimit(resource.RLIMIT_CPU, (1, 3))\nwhile True: pass", &["SIGXCPU"]),
        ("class R:\n    def __repr__(self): os._exit(5)\nR()", &["exited with code 5"]),
    ] {
        server.ok("import ctypes, os, resource, signal, sys, threading, time\nkept = 1");
        let text = failure(&mut server, &format!("print('out')\nprint('err', file=sys.stderr)\n{code}"));
        assert!(text.starts_with("out\n") && text.contains("\nerr\n"), "{text}");
        has(&mut server, &text, words);
        has(&mut server, &text, &["[mcp-py: ", "variables are gone"]);
        lacks(&mut server, &text, &["before this cell"]);
        check(&mut server, "'kept' in dir()", "False");
    }
}

#[test]
fn lack_of_memory_is_an_error_that_the_interpreter_survives() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    server.ok("import resource\nkept = 1\nlimit = 400 << 20\nresource.setrlimit(resource.RLIMIT_AS, (limit, limit))");
    for code in ["big = bytearray(1 << 30)", "big = []\nwhile True: big.append(bytearray(1 << 20))", "'x' * (1 << 30)"]
    {
        let text = failure(&mut server, code);
        has(&mut server, &text, &["MemoryError"]);
        check(&mut server, "big = None; kept", "1");
    }
    assert_eq!(server.worker_pid(), pid);
}

#[test]
fn a_death_between_cells_is_told_by_the_next_answer_with_its_cause_and_only_once() {
    let mut server = Server::start();
    for (death, cause) in [
        ("os._exit(7)", "exited with code 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("ctypes.string_at(0)", "SIGSEGV"),
    ] {
        let (start, pid) = (server.flag(), server.worker_pid());
        server.ok(&py(&format!(
            "
            import ctypes, os, signal, sys, threading, time
            kept = 1
            def die():
                while not os.path.exists({start:?}): time.sleep(0.005)
                print('last words', file=sys.stderr)
                {death}
            threading.Thread(target=die).start()
            "
        )));
        fs::write(&start, "").unwrap();
        eventually(DEADLINE, "the interpreter dies and is buried", || !procs::all().contains(&pid));
        let text = server.ok("print('own words')\n'kept' in dir()");
        assert!(text.starts_with("own words\n[mcp-py: ") && text.ends_with("]\nFalse"), "{text}");
        has(&mut server, &text, &[cause, "variables are gone"]);
        assert_eq!(text.matches("last words").count(), 1, "{text}");
        check(&mut server, "'kept' in dir()", "False");
    }
}

#[test]
fn a_death_at_any_moment_is_told_exactly_once() {
    let mut server = Server::start();
    for round in 0..30 {
        let pid = server.worker_pid();
        // Killed from outside: the cell may reach the dying process, or find it dead.
        procs::kill(pid, libc::SIGKILL);
        if round % 3 > 0 {
            std::thread::sleep(Duration::from_micros(400 * (round % 7)));
        }
        let results = [server.exec("6 * 7"), server.exec("6 * 7"), server.exec("6 * 7")];
        let told: usize = results.iter().map(|result| result.text.matches("SIGKILL").count()).sum();
        let first = &results[0];
        let fits = |result: &ToolResult| {
            if result.is_error {
                !result.text.ends_with("42")
            } else {
                result.text.ends_with("42")
            }
        };
        if told != 1 || !first.text.contains("SIGKILL") || !results.iter().all(fits) || results[2].text != "42" {
            server.fail(&format!("round {round}: {results:?}"));
        }
    }
}

#[test]
fn a_cell_is_never_run_twice() {
    let mut server = Server::start();
    let file = server.flag();
    for round in 1..=5 {
        let dies = format!("import os\nwith open({file:?}, 'a') as f: f.write('x')\nos._exit(1)");
        let counts = format!("with open({file:?}, 'a') as f: f.write('y')\nopen({file:?}).read()");
        let (first, second) = (server.start_exec(&dies), server.start_exec(&counts));
        assert!(server.wait(first).is_error);
        assert_eq!(server.wait(second).text, format!("'{}'", "xy".repeat(round)));
    }
}

#[test]
fn a_death_of_one_interpreter_is_no_affair_of_the_others() {
    let mut server = Server::start();
    server.call("add_interpreter", json!({"name": "other", "python_path": python()}));
    server.ok("kept = 1");
    let text = server.call("execute", json!({"interpreter": "other", "code": "import os; os._exit(2)"})).text;
    has(&mut server, &text, &["\"other\"", "exited with code 2"]);
    check(&mut server, "kept", "1");
    let next = server.call("execute", json!({"interpreter": "other", "code": "6 * 7"}));
    assert_eq!((next.text.as_str(), next.is_error), ("42", false));
}

// ---- nothing grows -------------------------------------------------------------------------------

/// Resident KiB, threads and descriptors of the server.
fn size(pid: i32) -> (u64, u64, usize) {
    (procs::rss_kb(pid), procs::thread_count(pid), procs::fd_count(pid))
}

#[test]
fn ten_thousand_cells_leave_the_server_as_it_was() {
    let mut server = Server::start();
    let pid = server.pid();
    let mut run = |count: usize| {
        // Ten at a time, of all kinds.
        for round in 0..count / 10 {
            let ids: Vec<i64> = (0..10)
                .map(|n| match n {
                    0 => server.start_exec("1/0"),
                    1 => server.start_exec("print('x' * 30_000)"),
                    2 => server.start_call("list_vars", Value::Null),
                    3 => server.start_exec("def f(): pass"),
                    _ => server.start_exec(&format!("x = {round}\nx + {n}")),
                })
                .collect();
            for id in ids {
                server.wait(id);
            }
        }
        (size(pid), procs::rss_kb(server.worker_pid()))
    };
    let before = run(1_000);
    let after = run(9_000);
    assert!(after.0 .0 < before.0 .0 + 1_024, "memory of the server: {before:?} before, {after:?} after");
    assert_eq!((after.0 .1, after.0 .2), (before.0 .1, before.0 .2), "threads or descriptors of the server");
    // The worker keeps the lines of cells that may show up in a traceback: 10,000 of them at most.
    assert!(after.1 < before.1 + 16_384, "memory of the worker: {before:?} before, {after:?} after");
}

#[test]
fn two_hundred_starts_and_stops_leave_the_server_as_it_was() {
    let mut server = Server::start();
    let pid = server.pid();
    check(&mut server, "6 * 7", "42");
    let mut run = |count: usize| {
        for round in 0..count {
            let name = format!("x{}", round % 4);
            let added = server.call("add_interpreter", json!({"name": name, "python_path": python()}));
            assert!(!added.is_error, "{}", added.text);
            // Every fourth ends by itself, the others are stopped.
            let code = if round % 4 == 3 { "import os; os._exit(1)" } else { "6 * 7" };
            server.call("execute", json!({"interpreter": name, "code": code}));
            let stopped = server.call("stop_interpreter", json!({"name": name}));
            assert!(!stopped.is_error, "{}", stopped.text);
        }
    };
    run(20);
    let settled = |before: Option<(u64, u64, usize)>| {
        let start = Instant::now();
        loop {
            let now = size(pid);
            if before.is_none_or(|(_, threads, descriptors)| now.1 <= threads && now.2 <= descriptors)
                || start.elapsed() > Duration::from_secs(10)
            {
                return now;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    std::thread::sleep(Duration::from_millis(200)); // threads that have answered take a moment to end
    let before = settled(None);
    run(180);
    let after = settled(Some(before));
    assert!(after.0 < before.0 + 1_024, "memory: {before:?} before, {after:?} after");
    assert!(after.1 <= before.1 && after.2 <= before.2, "threads or descriptors: {before:?} before, {after:?} after");
    assert_eq!(procs::children_of(pid).len(), 1, "the builtin interpreter alone is left");
}

/// Once, such an exception met the worker's own code, and ended it.
#[test]
fn what_a_handler_of_the_users_own_raises_between_cells_is_told_and_ends_nothing() {
    let mut server = Server::start();
    server.exec("import signal\nkept = 1\ndef handler(*_): raise RuntimeError('between')");
    server.exec("signal.signal(signal.SIGUSR1, handler)");
    let pid = server.worker_pid();
    for _ in 0..20 {
        procs::kill(pid, libc::SIGUSR1);
        let text = server.exec("kept").text;
        assert!(text.contains("RuntimeError: between") && text.ends_with("\n1"), "{text}");
    }
    // From a thread, it comes when the next request does.
    server.exec(
        "import ctypes, threading, time\n\
         def throw():\n\
         \x20   main = ctypes.c_ulong(threading.main_thread().ident)\n\
         \x20   time.sleep(0.05)\n\
         \x20   ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(ValueError))\n\
         thread = threading.Thread(target=throw)\n\
         thread.start()",
    );
    procs::eventually(DEADLINE, "the thread has ended", || procs::thread_count(pid) == 1);
    let text = server.exec("kept").text;
    assert!(text.starts_with("ValueError\n") && text.ends_with("\n1"), "{text}");
    assert_eq!(server.ok("kept"), "1");
    assert_eq!(server.worker_pid(), pid);
}

/// The server sees the result and the death at once, for it is stopped meanwhile.
#[test]
fn a_cell_behind_one_after_which_the_process_dies_runs_in_the_next_process() {
    let mut server = Server::start();
    server.ok("import os, threading, time");
    let worker = server.worker_pid();
    let (flag, go) = (server.flag(), server.flag());
    let code = format!(
        "def die():\n    while not os.path.exists({go:?}): time.sleep(0.01)\n    time.sleep(0.3); os._exit(7)\n\
         threading.Thread(target=die).start(); open({flag:?}, 'w').close()\n\
         while not os.path.exists({go:?}): time.sleep(0.01)\n'first'"
    );
    let first = server.start_exec(&code);
    let second = server.start_exec("'second'");
    server.expect_file(&flag);
    let pid = server.pid();
    procs::kill(pid, libc::SIGSTOP);
    std::fs::File::create(&go).unwrap();
    eventually(DEADLINE, "the worker dies", || procs::is_zombie(worker));
    procs::kill(pid, libc::SIGCONT);
    assert_eq!(server.wait(first).text, "'first'");
    let second = server.wait(second);
    assert!(!second.is_error && second.text.ends_with("'second'"), "{second:?}");
    assert!(second.text.contains("interpreter \"builtin\" exited with code 7; its variables are gone"), "{second:?}");
}
