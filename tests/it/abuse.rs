//! What user code may do to Python, to its process and to the worker: patch modules, shadow names, close or replace the
//! standard streams, fork. The interpreter goes on all the same, every answer stays complete, and a forked child never
//! speaks for its parent. Cells find stdin empty, and are told so at once.

use crate::cells::{check, failure, has, lacks, py, SOON, WORKERS_WORDS};
use crate::client::Server;
use crate::procs;
use serde_json::json;
use std::time::Instant;

#[test]
fn user_code_may_patch_what_the_worker_uses() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    server.ok(&py("
        import builtins, io, json, json.decoder, json.encoder, linecache
        import os, signal, sys, textwrap, time, traceback, types
        def broken(*_, **__):
            raise RuntimeError('patched')
        "));
    // The patches pile up: none is taken back.
    for target in [
        "json.dumps",
        "json.loads",
        "json.JSONEncoder.default",
        "json.JSONEncoder.__init__",
        "json.JSONEncoder.encode",
        "json.JSONEncoder.iterencode",
        "json.JSONDecoder.decode",
        "json.JSONDecoder.raw_decode",
        "json.encoder.encode_basestring",
        "json.encoder.encode_basestring_ascii",
        "json.encoder.c_make_encoder",
        "json.decoder.WHITESPACE",
        "time.sleep",
        "time.time",
        "os.write",
        "os.read",
        "os.dup2",
        "os.dup",
        "os.fstat",
        "os.getpid",
        "os._exit",
        "os.getcwd",
        "os.open",
        "os.close",
        "signal.signal",
        "signal.getsignal",
        "sys.exit",
        "sys.displayhook",
        "sys.excepthook",
        "linecache.getline",
        "linecache.checkcache",
        "linecache.updatecache",
        "traceback.format_exception",
        "traceback.print_exc",
        "traceback.TracebackException.format",
        "traceback.TracebackException.__init__",
        "textwrap.dedent",
        "types.ModuleType",
        "io.StringIO",
        "io.TextIOWrapper",
        "io.open",
        "builtins.print",
        "builtins.repr",
        "builtins.len",
        "builtins.open",
        "builtins.input",
        "builtins.compile",
        "builtins.eval",
        "builtins.exec",
        "builtins.sorted",
        "builtins.zip",
        "builtins.getattr",
        "builtins.type",
        "builtins.int",
        "builtins.list",
        "builtins.tuple",
        "builtins.str",
        "builtins.isinstance",
        "builtins.BaseException",
        "builtins.KeyboardInterrupt",
        "builtins.SystemExit",
    ] {
        server.remark(target);
        check(&mut server, &format!("{target} = broken"), "");
        check(&mut server, "'lower é ' + 'text'", "'lower é text'");
        let text = failure(&mut server, "1/0");
        has(&mut server, &text, &["ZeroDivisionError"]);
        check(&mut server, "sys.stdout.write('written\\n') and None", "written");
    }
    let text = server.call("list_vars", json!({})).text;
    has(&mut server, &text, &["broken, builtins, io, "]);
    assert_eq!(server.call("reset", json!({})).text, "Scope cleared (12 items removed)");
    assert_eq!(server.call("list_vars", json!({})).text, "No variables defined");
    assert!(procs::is_alive(pid));
}

#[test]
fn user_code_may_shadow_and_delete_names_and_modules() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    for code in [
        "print = len = repr = open = input = exec = eval = compile = None",
        "sys = os = json = scope = send = serve = cells = armed = loop = control = main = None",
        "__name__ = __doc__ = __spec__ = __loader__ = None",
        "globals()[3] = 'no name'",
        "__builtins__ = None",
        "del __builtins__",
        "globals().clear()",
        "import sys; sys.modules['__main__'] = None",
        "for name in ('json', 'traceback', 'linecache', 'io', 'os', 'asyncio'): sys.modules.pop(name, None)",
        "sys.modules['odd'] = None; sys.modules[3] = 4",
        "sys.modules = None",
        "sys.path[:] = []; sys.meta_path[:] = []; sys.path_hooks[:] = []; sys.path = None",
        "sys.modules.clear()",
    ] {
        server.exec(code);
        check(&mut server, "6 * 7", "42");
        let text = failure(&mut server, "1/0");
        has(&mut server, &text, &["ZeroDivisionError"]);
        server.exec("import asyncio, ctypes\nawait asyncio.sleep(0)");
        let listed = server.call("list_vars", json!({}));
        assert!(!listed.is_error, "{}", listed.text);
    }
    // Before anything was imported, too.
    let mut fresh = Server::start();
    fresh.ok("import sys; sys.modules = None");
    check(&mut fresh, "6 * 7", "42");
    server.call("reset", json!({}));
    check(&mut server, "__name__, sorted(print.__class__.__name__)[:1]", "('__main__', ['_'])");
    assert!(procs::is_alive(pid));
}

#[test]
fn user_code_may_trace_and_profile_and_limit_itself() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    server.ok("import sys\ndef broken(*_): raise ValueError('from the tracer')\nplain = sys.getrecursionlimit()");
    for code in ["sys.settrace(broken)", "sys.setprofile(broken)", "sys.setprofile(None)", "sys.setrecursionlimit(40)"]
    {
        server.remark(code);
        server.exec(code);
        server.exec("def f(): return 1/0\nf()");
        server.exec("x = [");
        server.exec("sys.settrace(None); sys.setprofile(None)");
        check(&mut server, "6 * 7", "42");
    }
    check(&mut server, "sys.setrecursionlimit(plain)", "");
    check(
        &mut server,
        "
        lines = []
        def tracer(frame, event, argument):
            lines.append((frame.f_code.co_name, event, frame.f_lineno))
            return tracer
        def traced():
            a = 1
            return a
        sys.settrace(tracer)
        traced()
        sys.settrace(None)
        lines
        ",
        "[('traced', 'call', 5), ('traced', 'line', 6), ('traced', 'line', 7), ('traced', 'return', 7)]",
    );
    assert!(procs::is_alive(pid));
}

// ---- streams and descriptors ---------------------------------------------------------------------

#[test]
fn a_cell_may_close_or_replace_the_standard_streams() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    server.ok("import io, os, sys");
    for code in [
        "sys.stdout.close()",
        "sys.stderr.close()",
        "sys.stdin.close()",
        "sys.stdout = None",
        "sys.stderr = None",
        "sys.stdin = None",
        "del sys.stdout",
        "del sys.stderr, sys.stdin",
        "sys.stdout.buffer.close()",
        "sys.stdout.detach()",
        "sys.stdout.buffer.detach()",
        "os.close(1)",
        "os.close(2)",
        "os.close(0)",
        "os.closerange(0, 3)",
        "os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
        "os.dup2(os.open('other.txt', os.O_WRONLY | os.O_CREAT), 2)",
        "os.dup2(1, 2)",
        "os.dup2(2, 1)",
        "sys.__stdout__.close()",
        "sys.__stdout__ = sys.__stderr__ = sys.__stdin__ = None",
    ] {
        server.remark(code);
        server.exec(code);
        check(&mut server, "print('out')\nprint('err', file=sys.stderr)\n6 * 7", "out\nerr\n42");
        check(&mut server, "os.system('echo child; echo child error >&2')", "child\nchild error\n0");
        let text = failure(&mut server, "input()");
        has(&mut server, &text, &["EOFError"]);
    }
    assert!(procs::is_alive(pid));
}

#[test]
fn a_descriptor_that_is_mended_is_told() {
    let mut server = Server::start();
    let text = server.ok("import os\nprint('before')\nos.close(1)");
    has(&mut server, &text, &["before\n[mcp-py: ", "descriptor 1"]);
    check(&mut server, "print('heard')", "heard");
    // A file that the cell opened under the free number keeps it until the cell ends.
    let text =
        server.ok("os.close(2)\nfile = open('taken.txt', 'w')\nprint(file.fileno(), file.write('x'))\nfile.flush()");
    has(&mut server, &text, &["2 1\n[mcp-py: ", "descriptor 2"]);
    check(&mut server, "import sys; print('heard', file=sys.stderr)\nopen('taken.txt').read()", "heard\n'x'");
}

#[test]
fn a_stream_of_the_users_own_stays_until_the_user_takes_it_back() {
    let mut server = Server::start();
    check(&mut server, "import io, sys\nreal = sys.stdout\nsys.stdout = io.StringIO()\nprint('caught')", "");
    check(&mut server, "print('too')\nsys.stdout.getvalue()", "'caught\\ntoo\\n'");
    check(&mut server, "sys.stdout = real\nprint('back')", "back");
    for flush in ["raise ValueError", "raise KeyboardInterrupt", "raise SystemExit(2)", "print('flushed', file=real)"] {
        server.ok(&format!(
            "class W:\n    def write(self, text): real.write(text.upper())\n    \
             def flush(self): {flush}\nsys.stdout = W()"
        ));
        let text = server.ok("print('loud')");
        assert!(text.starts_with("LOUD"), "{text}");
        server.ok("sys.stdout = real");
    }
    // Text that such a stream still buffers belongs to the cell.
    let code = "sys.stdout = io.TextIOWrapper(io.FileIO(1, 'w', closefd=False))\nprint('buffered')\n1/0";
    let text = failure(&mut server, code);
    assert!(text.starts_with("buffered\nTraceback"), "{text}");
    check(&mut server, "sys.stdout = object()", "");
    check(&mut server, "6 * 7", "42");
    check(&mut server, "sys.stdout = real\nimport contextlib", "");
    let redirect = "with contextlib.redirect_stdout(io.StringIO()) as text:\n    print('in')";
    check(&mut server, redirect, "");
    check(&mut server, "print('normal')\ntext.getvalue()", "normal\n'in\\n'");
    // How a cell ended is told even where nothing can be written to stderr.
    let broken =
        "class W:\n    def write(self, text): 1/0\n    flush = write\nsys.stderr = W()\nsys.exit('the reason')";
    let text = failure(&mut server, broken);
    has(&mut server, &text, &["SystemExit: the reason\n[mcp-py: its traceback can't be shown]"]);
}

#[test]
fn closing_every_descriptor_is_a_death_that_is_told() {
    let mut server = Server::start();
    let text = failure(&mut server, "import os\nprint('before')\nos.closerange(3, 1024)");
    has(&mut server, &text, &["before\na cell closed descriptor ", "[mcp-py: ", "variables are gone"]);
    // Once the worker complained about this in a loop, until it was killed a second later.
    assert_eq!(text.lines().count(), 3, "{text}");
    let text = failure(&mut server, "import os\nos.closerange(0, 1024)");
    has(&mut server, &text, &["[mcp-py: ", "variables are gone"]);
    check(&mut server, "6 * 7", "42");
}

// ---- forked children -----------------------------------------------------------------------------

#[test]
fn a_forked_child_that_falls_through_leaves_quietly_and_never_answers() {
    let mut server = Server::start();
    server.ok("import os, sys");
    for (end, told, status) in [
        ("print('child')", "child", 0),
        ("1/0", "ZeroDivisionError: division by zero", 1),
        ("sys.exit(7)", "", 7),
        ("sys.exit('a text')", "a text", 1),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", 1),
        ("sys.stdout.write('unflushed')", "unflushed", 0),
    ] {
        let code = format!(
            "child = os.fork()\nif child == 0:\n    {end}\nelse:\n    status = os.waitpid(child, 0)[1]\n    \
             print('parent', os.WEXITSTATUS(status), status & 127)"
        );
        let text = server.ok(&code);
        has(&mut server, &text, &[told, &format!("parent {status} 0")]);
        assert_eq!(text.matches("parent").count(), 1, "{text}");
        lacks(&mut server, &text, &WORKERS_WORDS);
        lacks(&mut server, &text, &["SystemExit"]); // a script says no more of it than its code
        check(&mut server, "6 * 7", "42");
    }
    // The result is the parent's; also where the child comes from a repr, or the parent does not wait.
    check(&mut server, "child = os.fork()\nif child: os.waitpid(child, 0)\n'parent' if child else 'child'", "'parent'");
    check(
        &mut server,
        "
        class R:
            def __repr__(self):
                child = os.fork()
                child and os.waitpid(child, 0)
                return 'parent' if child else 'child'
        R()
        ",
        "parent",
    );
    check(
        &mut server,
        "import asyncio\nchild = os.fork()\nawait asyncio.sleep(0)\nchild and os.waitpid(child, 0)[1]",
        "0",
    );
    for round in 0..30 {
        check(&mut server, &format!("child = os.fork()\n{round}"), &round.to_string());
        check(&mut server, "child and os.waitpid(child, 0)[1]", "0");
    }
}

#[test]
fn what_a_forked_child_has_not_flushed_yet_is_not_doubled() {
    let mut server = Server::start();
    let code = "import os, sys\nsys.stdout.write('once')\nchild = os.fork()\nif child: os.waitpid(child, 0)";
    // As in a plain interpreter, parent and child each flush what was in the buffer.
    check(&mut server, code, "onceonce");
    check(&mut server, "6 * 7", "42");
}

// ---- stdin ---------------------------------------------------------------------------------------

#[test]
fn stdin_is_empty_and_says_so_at_once() {
    let mut server = Server::start();
    server.ok("import getpass, os, subprocess, sys");
    let start = Instant::now();
    for code in [
        "input()",
        "input('name? ')",
        "sys.stdin.read()",
        "sys.stdin.read(1)",
        "sys.stdin.readline()",
        "sys.stdin.readlines()",
        "for line in sys.stdin: pass",
        "next(sys.stdin)",
        "list(sys.stdin)",
        "sys.stdin.buffer.read()",
        "getpass.getpass()",
        "import fileinput\nfor line in fileinput.input('-'): pass",
    ] {
        let text = failure(&mut server, code);
        has(&mut server, &text, &["EOFError: ", "stdin is empty"]);
    }
    check(&mut server, "os.system('cat')", "0");
    check(&mut server, "os.read(0, 10), subprocess.run(['cat'], stdout=subprocess.PIPE).stdout", "(b'', b'')");
    check(
        &mut server,
        "os.system('read x; echo $?; cat /dev/tty 2>/dev/null || echo no terminal')",
        "1\nno terminal\n0",
    );
    check(
        &mut server,
        "sys.stdin.isatty(), sys.stdin.fileno(), sys.stdin.readable(), sys.stdin.closed",
        "(False, 0, True, False)",
    );
    for code in ["breakpoint()", "import pdb; pdb.set_trace()", "import code; code.interact()", "help()"] {
        server.exec(code);
        check(&mut server, "6 * 7", "42");
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[test]
fn what_is_given_as_stdin_is_read_by_its_cell_and_its_children_and_by_no_other() {
    let mut server = Server::start();
    server.ok("import io, os, subprocess, sys");
    let own = server.ok("id(sys.stdin)");
    let text = "1\ntwo\r\nthrée\u{0}\nleft";
    let give = |server: &mut Server, code: &str, stdin: &str| {
        server.call("execute", json!({"code": code, "stdin": stdin})).text
    };
    for (code, expected) in [
        ("input(), input()", "('1', 'two')"),
        ("sys.stdin.read()", r"'1\ntwo\nthrée\x00\nleft'"),
        (
            "sys.stdin.read(3), sys.stdin.readline(), sys.stdin.read(), sys.stdin.read()",
            r"('1\nt', 'wo\n', 'thrée\x00\nleft', '')",
        ),
        ("[len(line) for line in sys.stdin]", "[2, 4, 7, 4]"),
        ("list(map(len, sys.stdin.readlines())), sys.stdin.readline()", "([2, 4, 7, 4], '')"),
        ("len(sys.stdin.buffer.read())", "19"),
        ("len(os.read(0, 99)), os.read(0, 99)", "(19, b'')"),
        ("os.system('cat | wc -c')", "19\n0"),
        ("subprocess.run(['head', '-1'], stdout=subprocess.PIPE).stdout", r"b'1\n'"),
        (
            "sys.stdin.isatty(), sys.stdin.fileno(), sys.stdin.name, sys.stdin.mode, sys.stdin.encoding",
            "(False, 0, '<stdin>', 'r', 'utf-8')",
        ),
        // However a cell leaves it, the next one finds what is always there.
        ("input(); 1", "1"),
        ("sys.stdin.close()", ""),
        ("os.close(0)", ""),
        ("sys.stdin = io.StringIO('mine')", ""),
        ("del sys.stdin", ""),
        ("sys.exit(0)", ""),
    ] {
        let told = give(&mut server, code, text);
        assert_eq!(told, expected, "{code}");
        check(&mut server, "os.read(0, 9), id(sys.stdin)", &format!("(b'', {own})"));
        let text = failure(&mut server, "input()");
        has(&mut server, &text, &["EOFError: ", "stdin is empty: read a file, ", "give the cell its stdin"]);
    }
    let told = give(&mut server, "input()\ninput()", "one line");
    has(&mut server, &told, &["EOFError"]);
    assert!(!told.contains("stdin is empty"), "{told}");
    assert_eq!(give(&mut server, "sys.stdin.read()", ""), "''");
    // What cells have put in its place is there again behind such a cell.
    server.ok("sys.stdin = io.StringIO('mine')");
    assert_eq!(give(&mut server, "input()", "given"), "'given'");
    check(&mut server, "input()", "'mine'");
    server.ok("sys.stdin = sys.__stdin__");
    // An interrupt, a child that goes on, the end of the process.
    let late = server.call("execute", json!({"code": "input()\nwhile True: pass", "stdin": "x", "timeout": 0.2}));
    assert!(late.is_error && late.text.contains("KeyboardInterrupt"), "{late:?}");
    let child = "child = os.fork()\nif child: os.waitpid(child, 0)\nelse: print(input(), flush=True)";
    assert_eq!(give(&mut server, child, "to the child"), "to the child");
    check(&mut server, "os.read(0, 9)", "b''");
    assert!(give(&mut server, "os._exit(0)", "x").contains("exited with code 0"));
    let text = failure(&mut server, "input()");
    has(&mut server, &text, &["stdin is empty"]);
    let wrong = server.call("execute", json!({"code": "ran = 1", "stdin": 5}));
    assert!(wrong.is_error && wrong.text.contains("argument \"stdin\" must be a string, got 5"), "{wrong:?}");
}

#[test]
fn where_no_file_for_stdin_can_be_made_the_cell_is_not_run_and_says_why() {
    let mut server = Server::start();
    server.ok("import os, sys, tempfile\ndef refuse(*_, **__): raise OSError(28, 'No space left on device')");
    server.ok("kept, tempfile.TemporaryFile = tempfile.TemporaryFile, refuse");
    let told = server.call("execute", json!({"code": "ran = 1", "stdin": "x"}));
    assert!(told.is_error && told.text.contains("No space left on device"), "{told:?}");
    check(&mut server, "'ran' in globals(), os.read(0, 9)", "(False, b'')");
    server.ok("tempfile.TemporaryFile = kept");
    assert_eq!(server.call("execute", json!({"code": "input()", "stdin": "x"})).text, "'x'");
}
