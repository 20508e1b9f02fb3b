//! The loop of top-level await between cells: tasks and servers go on, their output and their failures are told, and the
//! next cell starts at once all the same.

use crate::cells::{check, failure, has, lacks, py, SOON};
use crate::client::{Server, DEADLINE};
use crate::procs::eventually;
use serde_json::json;
use std::io::Read;
use std::net::TcpStream;

/// A server whose loop runs. `mark` makes a file.
fn start() -> Server {
    let mut server = Server::start();
    server.ok(&py("
        import asyncio, os, sys, time
        def mark(path):
            open(path, 'w').close()
        await asyncio.sleep(0)
        None
    "));
    server
}

#[test]
fn a_task_goes_on_between_cells_and_what_it_prints_is_told_with_the_next_answer() {
    let mut server = start();
    let done = server.flag();
    server.ok(&py(&format!(
        "
        async def tick():
            for number in range(3):
                await asyncio.sleep(0.01)
                print('tick', number)
            mark({done:?})
        await asyncio.sleep(0)
        task = asyncio.create_task(tick()); None
        "
    )));
    server.expect_file(&done);
    let text = server.ok("task.done()");
    has(&mut server, &text, &["output from between the cells", "tick 0\ntick 1\ntick 2\n"]);
    assert!(text.ends_with("\nTrue"), "{text}");
}

#[test]
fn a_task_can_be_made_in_a_cell_that_does_not_await() {
    let mut server = Server::start();
    for make in ["asyncio.create_task(", "asyncio.get_event_loop().create_task(", "asyncio.ensure_future("] {
        let done = server.flag();
        server.ok(&py(&format!(
            "
            import asyncio
            async def work():
                await asyncio.sleep(0.01)
                open({done:?}, 'w').close()
                return 5
            task = {make}work())
            "
        )));
        server.expect_file(&done);
        check(&mut server, "await task", "5");
    }
    let own_loop = "async def f(): return await asyncio.create_task(asyncio.sleep(0, 7))\nasyncio.run(f())";
    check(&mut server, own_loop, "7");
    let text = failure(&mut server, "def f(): asyncio.create_task(1)\nf()");
    has(&mut server, &text, &["File \"<cell 8>\", line 2, in <module>", "TypeError"]);
    lacks(&mut server, &text, &["run_in_loop"]);
}

#[test]
fn a_server_that_a_cell_started_answers_between_cells() {
    let mut server = start();
    let port = server.ok(&py("
        async def greet(reader, writer):
            writer.write(b'hello')
            writer.close()
        listener = await asyncio.start_server(greet, '127.0.0.1', 0)
        listener.sockets[0].getsockname()[1]
    "));
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("it answers");
        assert_eq!(said, "hello");
    }
    check(&mut server, "listener.close(); await listener.wait_closed(); 'closed'", "'closed'");
}

#[test]
fn a_task_that_fails_is_told_once_and_one_that_is_waited_for_is_not() {
    let mut server = start();
    let done = server.flag();
    server.ok(&py(&format!(
        "
        async def fail(words):
            await asyncio.sleep(0.01)
            raise ValueError(words)
        async def wait_for_it():
            try:
                await asyncio.create_task(fail('taken up'))
            except ValueError:
                pass
            await asyncio.gather(fail('gathered'), return_exceptions=True)
            await asyncio.sleep(0.05)
            mark({done:?})
        await asyncio.sleep(0)
        tasks = [asyncio.create_task(fail('alone')), asyncio.create_task(wait_for_it())]; None
        "
    )));
    server.expect_file(&done);
    let text = server.ok("1");
    has(&mut server, &text, &["a task failed, and nothing waits for it", "ValueError: alone", "in fail"]);
    lacks(&mut server, &text, &["taken up", "gathered", "mcp-py worker"]);
    check(&mut server, "del tasks; import gc; gc.collect(); 2", "2");
}

#[test]
fn a_task_that_spins_between_cells_is_ended_by_the_interrupt_of_the_next_cell() {
    let mut server = start();
    let begun = server.flag();
    server.ok(&py(&format!(
        "
        async def spin():
            mark({begun:?})
            while True: pass
        async def later():
            await asyncio.sleep(0.01)
            await spin()
        await asyncio.sleep(0)
        task = asyncio.create_task(later()); kept = 5; None
        "
    )));
    server.expect_file(&begun);
    let told = server.call("execute", json!({"code": "print('behind it')", "timeout": 0.5}));
    has(&mut server, &told.text, &["in spin", "KeyboardInterrupt"]);
    lacks(&mut server, &told.text, &["behind it"]);
    check(&mut server, "kept, task.done()", "(5, True)");
}

#[test]
fn a_child_that_a_task_forks_between_cells_ends_and_the_interpreter_goes_on() {
    let mut server = start();
    for child in ["pass", "sys.exit(3)", "print('the child')"] {
        let done = server.flag();
        server.ok(&py(&format!(
            "
            async def fork():
                await asyncio.sleep(0.01)
                pid = os.fork()
                if pid == 0:
                    {child}
                else:
                    await asyncio.to_thread(os.waitpid, pid, 0) if hasattr(asyncio, 'to_thread') else os.waitpid(pid, 0)
                    mark({done:?})
            task = asyncio.create_task(fork())
            "
        )));
        server.expect_file(&done);
        server.ok("1");
        check(&mut server, "await asyncio.sleep(0.01, 'awaits')", "'awaits'");
    }
}

#[test]
fn a_cell_that_is_cancelled_behind_a_spinning_task_is_never_run() {
    let mut server = start();
    let (begun, ran) = (server.flag(), server.flag());
    server.ok(&py(&format!(
        "
        async def spin():
            await asyncio.sleep(0.01)
            mark({begun:?})
            while True: pass
        task = asyncio.create_task(spin())
        "
    )));
    server.expect_file(&begun);
    let told = server.call("execute", json!({"code": format!("mark({ran:?}); 'nx'"), "timeout": 0.2}));
    has(&mut server, &told.text, &["KeyboardInterrupt", "the cell was not run: a task held up the event loop"]);
    lacks(&mut server, &told.text, &["'nx'"]);
    check(&mut server, &format!("os.path.exists({ran:?}), task.done()"), "(False, True)");
}

#[test]
fn an_interrupt_of_a_cell_that_awaits_spares_a_task_that_blocks_the_loop_for_a_moment() {
    let mut server = start();
    server.ok(&py("
        async def slow():
            while True:
                time.sleep(0.3)
                await asyncio.sleep(0)
        task = asyncio.create_task(slow())
    "));
    let told = server.call("execute", json!({"code": "await asyncio.sleep(60)", "timeout": 0.1}));
    has(&mut server, &told.text, &["KeyboardInterrupt"]);
    check(&mut server, "done = task.done(); task.cancel(); done", "False");
}

/// hypercorn's and aiohttp's way. asyncio gets the signal by a descriptor.
#[test]
fn a_handler_that_the_loop_was_given_takes_no_interrupt_of_a_later_cell() {
    let mut server = start();
    server.ok("import signal\nstop = asyncio.Event()");
    server.ok("asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set); await asyncio.sleep(0)");
    for code in ["while True: pass", "await asyncio.sleep(60)"] {
        let told = server.call("execute", json!({"code": code, "timeout": 0.1}));
        has(&mut server, &told.text, &["KeyboardInterrupt"]);
    }
    check(&mut server, "await asyncio.sleep(0.01); stop.is_set()", "False");
}

#[test]
fn a_failure_that_the_cell_itself_takes_up_is_not_told() {
    let mut server = start();
    server.ok("async def bad(): raise ValueError('taken up')\nasync def good(): await asyncio.sleep(0.05)");
    for code in [
        "len(await asyncio.gather(bad(), good(), return_exceptions=True))",
        "ends, _ = await asyncio.wait([asyncio.create_task(bad()), asyncio.create_task(good())]); len({t.exception() for t in ends})",
        "t = asyncio.create_task(bad()); await good(); 2 if t.exception() else 0",
    ] {
        check(&mut server, code, "2");
    }
    check(&mut server, "None", "");
    // What a task says at once may come before the answer.
    let mut told = server.ok(
        "class Own(BaseException): pass\nasync def own(): raise Own('not taken up')\nt = asyncio.create_task(own())",
    );
    let start = std::time::Instant::now();
    while !told.contains("Own: not taken up") && start.elapsed() < DEADLINE {
        told = server.ok("1");
    }
    has(&mut server, &told, &["a task failed, and nothing waits for it", "Own: not taken up"]);
}

#[test]
fn context_variables_that_a_cell_sets_hold_in_later_cells_though_it_awaits() {
    let mut server = start();
    server.ok("import contextvars, decimal\nv = contextvars.ContextVar('v', default=0)");
    server.ok("v.set(5); decimal.getcontext().prec = 7; await asyncio.sleep(0)");
    check(&mut server, "v.get(), decimal.getcontext().prec", "(5, 7)");
    check(&mut server, "await asyncio.sleep(0); v.get()", "5");
}

#[test]
fn a_loop_that_runs_in_a_thread_of_the_users_is_left_to_it() {
    let mut server = start();
    server.ok(&py("
        import threading
        own = asyncio.get_event_loop()
        thread = threading.Thread(target=own.run_forever, daemon=True)
        thread.start()
    "));
    check(&mut server, "1", "1");
    check(&mut server, "asyncio.run_coroutine_threadsafe(asyncio.sleep(0, 3), own).result(60)", "3");
    check(&mut server, "await asyncio.sleep(0, 4)", "4");
    check(&mut server, "thread.is_alive()", "True");
}

#[test]
fn a_task_that_stops_the_loop_stops_nothing() {
    let mut server = start();
    let done = server.flag();
    server.ok(&py(&format!(
        "
        async def stop():
            await asyncio.sleep(0.01)
            asyncio.get_event_loop().stop()
            await asyncio.sleep(0.01)
            mark({done:?})
        task = asyncio.create_task(stop())
        "
    )));
    server.expect_file(&done);
    check(&mut server, "task.done()", "True");
}

#[test]
fn what_a_cell_that_waits_for_its_own_server_should_do_is_said_when_it_is_interrupted() {
    let mut server = start();
    server.ok("listener = await asyncio.start_server(lambda r, w: None, '127.0.0.1', 0)");
    let hint = "stand still while a cell runs that does not await; `await asyncio.to_thread(f)`";
    let asks = "import urllib.request\nport = listener.sockets[0].getsockname()[1]\n\
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f'http://127.0.0.1:{port}')";
    let told = server.call("execute", json!({"code": asks, "timeout": 0.5}));
    has(&mut server, &told.text, &[hint]);
    let told = server.call("execute", json!({"code": "time.sleep(60)", "timeout": 0.1}));
    lacks(&mut server, &told.text, &["stand still"]);
    server.ok("listener.close()");
    server.ok("task = asyncio.create_task(asyncio.sleep(600))");
    let told = server.call("reset", json!({})).text;
    has(&mut server, &told, &["1 tasks of the event loop go on; reset(restart=true) ends them"]);
}

/// The interrupt comes while a task holds up the cell that it is meant for.
#[test]
fn an_interrupt_of_a_cell_ends_no_task_that_goes_on() {
    let mut server = start();
    server.ok(&py("
        async def work():
            while True:
                time.sleep(0.02)
                await asyncio.sleep(0)
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
    "));
    for _ in 0..10 {
        let told = server.call("execute", json!({"code": "while True: pass", "timeout": 0.001}));
        has(&mut server, &told.text, &["KeyboardInterrupt", "interrupted after its timeout"]);
    }
    check(&mut server, "task.done()", "False");
}

/// uvicorn, Spark and others set one; it would be told of the interrupts of all later cells.
#[test]
fn a_handler_that_a_library_sets_takes_no_interrupt_of_a_later_cell() {
    let mut server = start();
    check(
        &mut server,
        &py("
            import signal, types
            library = types.ModuleType('library')
            exec('''
            hits = []
            class Server:
                def handle_exit(self, *_): hits.append(1)
            def handler(*_): hits.append(1)
            ''', vars(library))
            for handler in library.Server().handle_exit, library.handler:
                before = signal.signal(signal.SIGINT, handler)
            signal.raise_signal(signal.SIGINT)
            library.hits
        "),
        "[1]",
    );
    let told = server.call("execute", json!({"code": "while True: pass", "timeout": 0.1}));
    has(&mut server, &told.text, &["KeyboardInterrupt", "interrupted after its timeout"]);
    check(&mut server, "library.hits", "[1]");
}

#[test]
fn system_exit_in_a_task_ends_neither_the_loop_nor_the_interpreter() {
    let mut server = start();
    let done = server.flag();
    server.ok(&py(&format!(
        "
        async def leave():
            await asyncio.sleep(0.01)
            sys.exit(4)
        async def stay():
            await asyncio.sleep(0.05)
            mark({done:?})
        await asyncio.sleep(0)
        tasks = [asyncio.create_task(leave()), asyncio.create_task(stay())]; pid = os.getpid(); None
        "
    )));
    server.expect_file(&done);
    let text = server.ok("pid == os.getpid()");
    has(&mut server, &text, &["SystemExit: 4"]);
    assert!(text.ends_with("\nTrue"), "{text}");
}

#[test]
fn a_thousand_tasks_hold_up_no_cell() {
    let mut server = start();
    server.ok(&py("
        async def turn():
            while True: await asyncio.sleep(0)
        tasks = [asyncio.create_task(turn()) for _ in range(1000)]
        await asyncio.sleep(0)
    "));
    let start = std::time::Instant::now();
    for number in 0..20 {
        check(&mut server, &number.to_string(), &number.to_string());
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    check(&mut server, "for task in tasks: task.cancel()", "");
}

#[test]
fn what_a_task_imports_or_draws_between_cells_asks_the_server_nothing() {
    let mut server = start();
    let done = server.flag();
    server.ok(&py(&format!(
        "
        class Picture:
            def _repr_png_(self):
                return b'\\x89PNG'
        async def use():
            await asyncio.sleep(0.01)
            try:
                import zz_nowhere
            except ImportError:
                print('no such module')
            mark({done:?})
        await asyncio.sleep(0)
        task = asyncio.create_task(use()); pid = os.getpid(); None
        "
    )));
    server.expect_file(&done);
    let text = server.ok("pid == os.getpid()");
    has(&mut server, &text, &["no such module"]);
    assert!(text.ends_with("\nTrue"), "{text}");
}

/// As Playwright leaves it: its loop waits in a greenlet, and counts as running.
#[test]
fn another_loop_that_counts_as_running_hinders_no_await() {
    let mut server = start();
    check(&mut server, "other = asyncio.new_event_loop(); asyncio._set_running_loop(other)", "");
    check(&mut server, "await asyncio.sleep(0.01, 'slept')", "'slept'");
    check(&mut server, "asyncio._get_running_loop() is other", "True");
    let text = failure(&mut server, "await asyncio.sleep(0); 1/0");
    has(&mut server, &text, &["ZeroDivisionError"]);
    lacks(&mut server, &text, &["RuntimeError"]);
}

#[test]
fn a_loop_that_was_closed_is_replaced_and_the_interpreter_goes_on() {
    let mut server = start();
    check(&mut server, "asyncio.get_event_loop().close()", "");
    check(&mut server, "1 + 1", "2");
    check(&mut server, "await asyncio.sleep(0, 'again')", "'again'");
}

#[test]
fn the_interpreter_ends_with_its_server_though_tasks_run() {
    let mut server = start();
    let pid = server.worker_pid();
    server.ok(&py("
        async def turn():
            while True: await asyncio.sleep(0)
        task = asyncio.create_task(turn())
        await asyncio.sleep(0)
    "));
    server.close_stdin();
    assert!(server.wait_exit(DEADLINE).success());
    eventually(DEADLINE, "the worker is gone", || !crate::procs::is_alive(pid));
}
