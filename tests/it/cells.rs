//! The world that a cell's code sees: its process, `__main__`, the import path, top-level await, text encodings. It is
//! that of a plain interpreter as far as possible, and names of the worker never show up in it. And how a cell ends:
//! with the value of its last expression, with an exception, with SystemExit.
//!
//! Code in these tests is indented like the Rust around it; `py` takes the indentation off.

use crate::client::{is_on_macos, python, Folder, Server, ToolResult, DEADLINE};
use serde_json::json;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// A wait for what should be immediate: far below the time-out of any cell, far above what a busy machine needs.
pub const SOON: Duration = Duration::from_secs(15);

/// Python code without the indentation that it has in the test.
pub fn py(code: &str) -> String {
    let code = code.strip_prefix('\n').unwrap_or(code).trim_end_matches(' ');
    let margin = |line: &&str| line.len() - line.trim_start_matches(' ').len();
    let common = code.lines().filter(|line| !line.trim().is_empty()).map(|line| margin(&line)).min().unwrap_or(0);
    code.lines().map(|line| line.get(common..).unwrap_or("").to_string() + "\n").collect()
}

/// Every answer of execute without images is one text block, and has no structured content.
#[track_caller]
fn check_form(server: &mut Server, result: &ToolResult) {
    let content = result.raw["content"].as_array().map_or(0, Vec::len);
    if content != 1 || result.raw.get("structuredContent").is_some() || result.raw["content"][0]["type"] != "text" {
        server.fail(&format!("not one text block: {}", result.raw));
    }
}

/// The cell ends well and answers exactly this.
#[track_caller]
pub fn check(server: &mut Server, code: &str, text: &str) {
    let result = server.exec(&py(code));
    check_form(server, &result);
    if result.is_error || result.text != text {
        server.fail(&format!("{code}\nexpected {text:?}, not {:?} (error: {})", result.text, result.is_error));
    }
}

/// The cell ends with an error; its text.
#[track_caller]
pub fn failure(server: &mut Server, code: &str) -> String {
    let result = server.exec(&py(code));
    check_form(server, &result);
    if !result.is_error {
        server.fail(&format!("{code}\nan error was expected, not {:?}", result.text));
    }
    result.text
}

/// The text has all of these words.
#[track_caller]
pub fn has(server: &mut Server, text: &str, words: &[&str]) {
    for word in words {
        if !text.contains(word) {
            server.fail(&format!("{word:?} is missing in {text:?}"));
        }
    }
}

/// The text has none of these words.
#[track_caller]
pub fn lacks(server: &mut Server, text: &str, words: &[&str]) {
    for word in words {
        if text.contains(word) {
            server.fail(&format!("{word:?} should not be in {text:?}"));
        }
    }
}

/// What the worker's own frames would show.
pub const WORKERS_WORDS: [&str; 6] =
    ["mcp-py worker", "mcp_py_worker", "run_steps", "guarded", "run_cell", "eval(step"];

/// What this code prints in a plain interpreter of the tests' Python, in the server's project.
fn plain(server: &Server, code: &str) -> String {
    let mut command = Command::new(python());
    command.args(["-c", &py(code)]).env_clear().current_dir(server.folder().project());
    let output = command.output().expect("the plain Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_string()
}

fn write(server: &Server, name: &str, text: &str) {
    let path = server.folder().project().join(name);
    fs::write(path, py(text)).expect("a file in the project");
}

// ---- the process ---------------------------------------------------------------------------------

#[test]
fn the_process_list_shows_a_readable_line_and_the_disk_nothing() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments: Vec<_> = line.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
    assert_eq!(arguments[1], "-c");
    assert!(arguments[2].len() < 1_000 && !arguments[2].contains('\n'), "{arguments:?}");
    assert!(!arguments[2].contains("import json"), "the source is in the command line: {arguments:?}");
    check(&mut server, "__import__('os').listdir(__import__('os').environ['HOME'])", "['.claude-workspace']");
    let folder = server.folder().clone();
    for output in folder.output_dirs() {
        let files: Vec<_> = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, ["session.py"], "in {}", output.display());
    }
    let others = fs::read_dir(folder.tmp()).unwrap().count() - folder.output_dirs().len();
    assert_eq!(others, 0, "files in TMPDIR");
}

#[test]
fn a_worker_has_its_own_session_and_no_terminal() {
    let mut server = Server::start();
    check(
        &mut server,
        "
        import os
        assert os.getsid(0) == os.getpgrp() == os.getpid()
        try:
            open('/dev/tty')
        except OSError:
            print('no terminal')
        ",
        "no terminal",
    );
}

#[test]
fn a_worker_starts_no_thread_of_its_own() {
    let mut server = Server::start();
    let count = "import os, threading; len(os.listdir('/proc/self/task')), threading.active_count()";
    check(&mut server, count, "(1, 1)");
    check(&mut server, "import asyncio, ctypes\nawait asyncio.sleep(0)\nprint('x')", "x");
    check(&mut server, count, "(1, 1)");
}

#[test]
fn children_inherit_the_three_descriptors_and_no_other() {
    let mut server = Server::start();
    // Descriptors that the tests themselves inherited may be open too. They are not counted.
    let list = "
        import os
        print(*[n for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)])
        ";
    let inherited = if is_on_macos() { "0 1 2".into() } else { plain(&server, list) };
    write(&server, "list.py", list);
    let run = "import subprocess, sys\nsubprocess.run([sys.executable, 'list.py'], close_fds=False).returncode";
    check(&mut server, run, &format!("{inherited}\n0"));
    check(&mut server, "import os; os.readlink('/proc/self/fd/0')", "'/dev/null'");
}

#[test]
fn the_protocol_is_not_reached_through_the_standard_descriptors() {
    let mut server = Server::start();
    let frame = r#"{"op": "done", "result": "forged", "error": null, "exit": 0, "notes": []}"#;
    let code = format!(
        r#"
        import os
        frame = '{frame}\n'
        for descriptor in 0, 1, 2:
            try:
                os.write(descriptor, frame.encode())
            except OSError:
                print('not', descriptor)
        os.system("echo '%s' >&0; cat <&0" % frame.strip())
        'genuine'
        "#
    );
    let text = server.ok(&py(&code));
    assert!(text.starts_with(&format!("not 0\n{frame}\n")) && text.ends_with("\n'genuine'"), "{text}");
    check(&mut server, "'next'", "'next'");
}

#[test]
fn a_deleted_working_directory_hinders_nothing() {
    let folder = Folder::new();
    let gone = folder.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let mut server = Server::with(|builder| builder.folder(&folder).cwd(&gone));
    server.request("ping", json!({}));
    fs::remove_dir(&gone).unwrap();
    check(&mut server, "6 * 7", "42");
    let text = failure(&mut server, "def f():\n    1/0  # here\nf()");
    has(&mut server, &text, &["# here"]);
}

// ---- __main__ ------------------------------------------------------------------------------------

#[test]
fn cells_run_in_the_real_main_module_as_a_plain_interpreter_has_it() {
    let mut server = Server::start();
    let real = "__import__('sys').modules['__main__'].__dict__ is globals() is locals(), __name__";
    check(&mut server, real, "(True, '__main__')");
    for code in [
        "print(sorted(globals()))",
        "print(sorted({*__builtins__.__dict__} - {'display'}))",
        "__import__('builtins').print(type(__builtins__), __spec__, __doc__)",
        "print(__import__('sys').argv, __import__('sys').flags)",
        // The environment's own site-packages come before the base's.
        "print([p for p in __import__('sys').path if '/env-' not in p], __import__('sys').getrecursionlimit())",
        "print([__import__('sys').excepthook, __import__('sys').displayhook])",
        "print(__import__('gc').isenabled(), __import__('gc').get_threshold())",
        "print(__import__('threading').current_thread().name)",
    ] {
        let expected = plain(&server, code);
        check(&mut server, code, &expected);
    }
}

#[test]
fn names_of_the_worker_never_show_up() {
    let mut server = Server::start();
    check(&mut server, "[name for name in dir() if not name.startswith('__')]", "[]");
    check(&mut server, "import sys; [name for name in [*sys.modules, *vars(sys)] if 'mcp' in name]", "[]");
    for code in [
        "1/0",
        "def f(): raise ValueError('here')\nf()",
        "raise KeyboardInterrupt",
        "import asyncio\nasync def g(): 1/0\nawait g()",
        "await asyncio.gather(g(), g())",
        "class R:\n    def __repr__(self): 1/0\nR()",
        "try:\n    1/0\nexcept ZeroDivisionError as error:\n    raise ValueError('second') from error",
        "try:\n    await g()\nfinally:\n    undefined_name",
        "x = = 1",
        "x = (",
        "input()",
        "raise SystemExit('bye')",
        "def deep(): deep()\ndeep()",
    ] {
        let text = failure(&mut server, code);
        lacks(&mut server, &text, &WORKERS_WORDS);
    }
}

#[test]
fn what_cells_define_can_be_pickled_inspected_and_typed() {
    let mut server = Server::start();
    server.ok(&py("
        import dataclasses, inspect, pickle, typing

        @dataclasses.dataclass
        class Point:
            x: int
            y: 'typing.Optional[Point]' = None

        def area(point: Point) -> int:
            return point.x  # of the first cell
        "));
    check(&mut server, "pickle.loads(pickle.dumps(Point(1, Point(2)))) == Point(1, Point(2))", "True");
    check(&mut server, "pickle.loads(pickle.dumps(area)) is area, area.__module__", "(True, '__main__')");
    check(&mut server, "typing.get_type_hints(Point)['y'] == typing.Optional[Point]", "True");
    check(&mut server, "old = area\ndef area(point): return 'new'", "");
    check(
        &mut server,
        "print(inspect.getsource(old) + inspect.getsource(area), end='')",
        "def area(point: Point) -> int:\n    return point.x  # of the first cell\ndef area(point): return 'new'",
    );
}

#[test]
fn multiprocessing_works_by_fork_and_says_why_it_cannot_by_spawn() {
    let mut server = Server::start();
    check(
        &mut server,
        "
        import multiprocessing
        def square(n):
            return n * n
        with multiprocessing.get_context('fork').Pool(2) as pool:
            squares = pool.map(square, range(5))
        squares
        ",
        "[0, 1, 4, 9, 16]",
    );
    check(
        &mut server,
        "
        from concurrent.futures import ProcessPoolExecutor
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('fork')) as pool:
            squares = list(pool.map(square, range(3)))
        squares
        ",
        "[0, 1, 4]",
    );
    let text = server.ok(&py("
        process = multiprocessing.get_context('spawn').Process(target=square, args=(3,))
        process.start()
        process.join()
        process.exitcode
        "));
    has(&mut server, &text, &["attribute 'square'", "[mcp-py: multiprocessing ", "starts a new Python", "module"]);
    assert_eq!(text.contains("get_context('fork')"), !is_on_macos(), "forking is not safe there: {text}");
    // An error that only looks similar gets no note.
    let text = failure(
        &mut server,
        &py("
        import pickle
        class Gone: pass
        pickled = pickle.dumps(Gone())
        del Gone
        pickle.loads(pickled)
        "),
    );
    lacks(&mut server, &text, &["multiprocessing"]);
    // Functions of modules that can be imported work by spawn too, and without a note.
    write(&server, "helper.py", "def double(n):\n    return 2 * n\n");
    check(
        &mut server,
        "
        import helper
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            doubles = pool.map(helper.double, range(3))
        doubles
        ",
        "[0, 2, 4]",
    );
    end_and_free(&mut server);
}

/// The end of a session in which multiprocessing has semaphores: a killed one would leave them in /dev/shm.
pub fn end_and_free(server: &mut Server) {
    server.close_stdin();
    assert!(server.wait_exit(DEADLINE).success());
}

#[test]
fn the_project_is_first_on_the_import_path_as_in_a_plain_interpreter() {
    let mut server = Server::start();
    write(&server, "mine.py", "value = 'of the project'\n");
    check(&mut server, "import sys; sys.path[0]", "''");
    check(&mut server, "import mine; mine.value", "'of the project'");
    // It follows the working directory.
    server
        .ok("import os; os.mkdir('sub')\nwith open('sub/deeper.py', 'w') as f: f.write('value = 2')\nos.chdir('sub')");
    check(&mut server, "import deeper; deeper.value", "2");
    // It stays there when the worker has imported modules of its own.
    check(&mut server, "import asyncio; await asyncio.sleep(0); sys.path[0], sys.path.count('')", "('', 1)");
    check(&mut server, "import ctypes; kept = sys.path", "");
    check(&mut server, "sys.path is kept", "True");
}

#[test]
fn under_pythonsafepath_the_project_itself_is_first_on_the_import_path() {
    let mut server = Server::with(|builder| builder.env("PYTHONSAFEPATH", "1"));
    write(&server, "mine.py", "value = 'of the project'\n");
    check(&mut server, "import mine; mine.value", "'of the project'");
    let project = server.folder().project();
    let expected = format!("'{}'", project.display());
    // Pythons before 3.11 do not know the variable.
    check(&mut server, &format!("import sys; sys.path[0] if sys.version_info >= (3, 11) else {expected}"), &expected);
}

#[test]
fn programs_that_would_wait_for_a_person_do_not() {
    const NAMES: &str = "GIT_EDITOR GIT_SEQUENCE_EDITOR EDITOR GIT_TERMINAL_PROMPT PAGER COLUMNS";
    let code = format!("import os; ' '.join(os.environ[name] for name in '{NAMES}'.split())");
    check(&mut Server::start(), &code, "'true true true 0 cat 160'");
    let mut server = Server::with(|builder| NAMES.split(' ').fold(builder, |builder, name| builder.env(name, "mine")));
    check(&mut server, &code, "'mine mine mine mine mine mine'");
}

#[test]
fn git_commits_nothing_without_a_message_and_asks_nobody() {
    if Command::new("git").arg("--version").output().is_err() {
        return;
    }
    let mut server = Server::start();
    let code = "
        import os, subprocess
        os.environ.update(GIT_CONFIG_NOSYSTEM='1', GIT_AUTHOR_NAME='a', GIT_AUTHOR_EMAIL='a@b', GIT_COMMITTER_NAME='a')
        os.environ['GIT_COMMITTER_EMAIL'] = 'a@b'
        def git(*words): return subprocess.run(['git', *words], stdout=-1, stderr=-2, text=True)
        done = git('init'), open('f', 'w').close(), git('add', 'f')
        ";
    check(&mut server, code, "");
    check(&mut server, "git('commit').returncode, 'empty commit message' in git('commit').stdout", "(1, True)");
    check(&mut server, "git('commit', '-m', 'one').returncode, git('commit', '--amend').returncode", "(0, 0)");
    check(&mut server, "git('commit', '--allow-empty', '-m', 'two').returncode", "0");
    check(
        &mut server,
        "git('rebase', '-i', 'HEAD~1').returncode, git('log', '--format=%s').stdout",
        r"(0, 'two\none\n')",
    );
}

/// Modules of the standard library whose namesakes in a project are likely, or would do harm.
#[rustfmt::skip]
const NAMESAKES: [&str; 34] = [
    "ast", "asyncio", "calendar", "collections", "concurrent", "contextlib", "copy", "ctypes", "dis", "enum",
    "functools", "heapq", "inspect", "json", "keyword", "linecache", "logging", "operator", "queue", "random", "re",
    "reprlib", "selectors", "signal", "socket", "string", "struct", "textwrap", "threading", "token", "tokenize", "traceback",
    "types", "weakref",
];

#[test]
fn project_files_named_like_modules_of_python_do_no_harm() {
    // Since 3.13 Python imports one of them itself for `-c`, from the project, before it runs a line of ours.
    let newer =
        Command::new(python()).args(["-c", "import sys; sys.exit(sys.version_info >= (3, 13))"]).status().unwrap();
    for variable in ["UNUSED", "PYTHONPATH", "PYTHONSAFEPATH"] {
        let mut server = Server::with(|builder| builder.env(variable, "."));
        for name in NAMESAKES.into_iter().filter(|name| newer.success() || *name != "linecache") {
            write(&server, &format!("{name}.py"), "raise RuntimeError('a file of the project was imported')\n");
        }
        check(&mut server, "6 * 7", "42");
        let text = failure(&mut server, "def f():\n    return 1/0\nf()");
        has(&mut server, &text, &["line 2, in f", "    return 1/0", "ZeroDivisionError"]);
        check(&mut server, "async def answer(): return 'awaited'\nawait answer()", "'awaited'");
        let text = failure(&mut server, "async def bad(): 1/0\nawait bad()");
        has(&mut server, &text, &["in bad", "ZeroDivisionError"]);
        // What the worker has not loaded is the project's, as in a plain interpreter.
        let text = failure(&mut server, "import calendar");
        has(&mut server, &text, &["a file of the project was imported"]);
        check(&mut server, "6 * 7", "42");
    }
}

/// Once a thread's import failed while the worker imported a module of its own or wrote a traceback.
#[test]
fn the_project_stays_on_the_import_path_of_threads_and_of_exceptions() {
    let mut server = Server::start();
    write(&server, "words.py", "text = 'its own words'\n");
    check(&mut server, "import sys; len(sys.meta_path) == len(set(sys.meta_path))", "True");
    let code = "class E(Exception):\n    def __str__(self):\n        sys.path.append('/added')\n        import words\n        \
        return words.text\nbefore = list(sys.path)\nraise E";
    let text = failure(&mut server, code);
    has(&mut server, &text, &["E: its own words"]);
    check(&mut server, "set(sys.path) == {*before, '/added'}, sys.path[: len(before)] == before", "(True, True)");
}

#[test]
fn a_project_that_replaces_asyncio_and_ctypes_hurts_only_itself() {
    let mut server = Server::start();
    write(&server, "asyncio.py", "mine = True\n");
    write(&server, "ctypes.py", "import _ctypes\nmine = True\n");
    check(&mut server, "import asyncio, ctypes; asyncio.mine, ctypes.mine", "(True, True)");
    server.exec("async def f(): return 1\nawait f()");
    check(&mut server, "6 * 7", "42");
}

// ---- compiling -----------------------------------------------------------------------------------

#[test]
fn the_last_expression_is_the_answer() {
    let mut server = Server::start();
    for (code, text) in [
        ("x = 5", ""),
        ("print(f'x = {x}')", "x = 5"),
        ("x", "5"),
        ("x; x + 1", "6"),
        ("'one'\n'two'", "'two'"),
        ("None", ""),
        ("if x: x", ""),
        ("for i in range(3): i", ""),
        ("", ""),
        ("   \n\n", ""),
        ("# a comment", ""),
        ("'a docstring'", "'a docstring'"),
        ("x  # and a comment", "5"),
        ("(x,\n x)", "(5, 5)"),
        ("x = 1\n\n\nx + 1\n\n", "2"),
        ("def f(): return 3", ""),
        ("f()", "3"),
        ("(y := 4)", "4"),
        ("y", "4"),
        ("print('a')\nprint('b')", "a\nb"),
        ("print('a')\n3", "a\n3"),
    ] {
        let result = server.exec(code);
        assert_eq!((result.text.as_str(), result.is_error), (text, false), "{code:?}");
    }
}

#[test]
fn a_syntax_error_runs_nothing_and_shows_the_place() {
    let mut server = Server::start();
    check(&mut server, "ran = []", "");
    for line in ["x = = 2", "return 2", "await = 3", "print('a'", "  y", "f(**", "def f(:", "nonlocal x", "x = '"] {
        let text = failure(&mut server, &format!("ran.append(1)\n{line}"));
        has(&mut server, &text, &["File \"<cell ", "Error: "]);
        lacks(&mut server, &text, &["Traceback"]);
    }
    check(&mut server, "ran", "[]");
    let text = failure(&mut server, "a = 1\nx = = 2");
    has(&mut server, &text, &["  File \"<cell 12>\", line 2\n    x = = 2\n", "^\nSyntaxError: invalid syntax"]);
    // Also where Python finds it only after parsing.
    let text = failure(&mut server, "a = 1\nreturn a  # nowhere to");
    has(&mut server, &text, &["  File \"<cell 13>\", line 2\n    return a  # nowhere to\n", "outside function"]);
}

/// `compile` leaves the source line out of a cell's own SyntaxError, so the worker fills it in. Once it did so for
/// other SyntaxErrors too, and failed or showed the wrong line.
#[test]
fn a_syntax_error_that_running_code_raises_has_its_traceback_and_its_own_place() {
    let mut server = Server::start();
    for (code, start, end) in [
        (
            "print('out', end=''); exec('\\n\\n\\nreturn')",
            "out\n",
            "\"<string>\", line 4\nSyntaxError: 'return' outside function",
        ),
        ("a = 'first'\nexec('return 5')", "", "\"<string>\", line 1\nSyntaxError: 'return' outside function"),
        (
            "compile('\\nreturn', '<cell 2>', 'exec')",
            "",
            "\"<cell 2>\", line 2\nSyntaxError: 'return' outside function",
        ),
        ("raise SyntaxError('own', ('f.py', 'z', 1, None))", "", "\"f.py\", line z\nSyntaxError: own"),
        ("raise SyntaxError('own', ('<cell 1>', 99, 1, None))", "", "\"<cell 1>\", line 99\nSyntaxError: own"),
        ("import linecache; linecache.cache.clear()\nexec('return')", "", "SyntaxError: 'return' outside function"),
    ] {
        // PyPy words it without the quotes, and has a line of the text.
        let plain = |text: &str| text.replace("'return'", "return").replace("\n    return", "").replace(" 5\n", "\n");
        let text = plain(&failure(&mut server, code));
        let start = format!("{start}Traceback (most recent call last):\n  File \"<cell ");
        assert!(text.starts_with(&start) && text.ends_with(&plain(end)), "{code}: {text}");
    }
    check(&mut server, "'next'", "'next'");
}

#[test]
fn future_imports_hold_for_their_cell_only() {
    let mut server = Server::start();
    check(
        &mut server,
        "
        'a docstring'
        from __future__ import annotations
        def f(x: undefined_name): pass
        f.__annotations__
        ",
        "{'x': 'undefined_name'}",
    );
    check(&mut server, "def g(x: int): pass\ng.__annotations__['x'] is int", "True");
    let text = failure(&mut server, "def h(x: undefined_name): pass\nh.__annotations__");
    has(&mut server, &text, &["NameError"]);
    // It holds for the last expression too, which is compiled separately.
    let inherit = "exec(compile('def h(x: undefined_name): pass', 'h', 'exec')) or h.__annotations__";
    check(&mut server, &format!("from __future__ import annotations\n{inherit}"), "{'x': 'undefined_name'}");
    failure(&mut server, inherit);
}

#[test]
fn every_way_to_write_a_cell_is_understood() {
    let mut server = Server::start();
    for (code, text) in [
        ("\u{feff}1 + 1", "2"),
        ("\u{feff}# coding: latin-1\n'é✓'", "'é✓'"),
        ("    a = 3\n    a + 1", "4"),
        ("\n    if a:\n        b = 1\n    b\n", "1"),
        ("\tif a:\n\t\tb = 2\n\tb", "2"),
        ("    # comment\n    def f():\n        return 1\n\n    f()", "1"),
        ("\u{feff}    a = 4\n    a", "4"),
        ("a = 5\r\nif a:\r\n    a = 6\r\na", "6"),
        ("    a = 5\r\n    a", "5"),
        ("    a = 5\r\n\r\n    a", "5"),
        ("s = '''x\r\ny'''\r\ns", "'x\\ny'"),
        ("a = 7\rif a:\r    a = 8\ra", "8"),
        ("if a:\n\ta = 9\na", "9"),
        ("\u{c}a = 10\n\u{c}\na", "10"),
        ("a = '''\n  kept\n'''\na", "'\\n  kept\\n'"),
        ("名前 = 'ü'; 名前", "'ü'"),
        ("'\u{2028}\u{85}'", "'\\u2028\\x85'"),
        ("a = 1 + \\\n  2\na", "3"),
        ("'🐍'", "'🐍'"),
        ("a = 4;", ""),
    ] {
        let result = server.exec(code);
        assert_eq!((result.text.as_str(), result.is_error), (text, false), "{code:?}");
    }
    for (code, words) in [
        ("a = 'nul \0 inside'", "null bytes"),
        ("if True:\n        a\n    b", "IndentationError"),
        ("if a:\n\tb = 1\n        c = 1", "TabError"),
        ("    a = 1\n  b = 2", "IndentationError"),
    ] {
        let result = server.exec(code);
        assert!(result.is_error && result.text.contains(words), "{code:?}: {}", result.text);
    }
    check(&mut server, "a", "4");
}

#[test]
fn cells_of_one_and_of_fifteen_megabytes_run() {
    let mut server = Server::start();
    let line = "total = 1  # padding padding padding padding padding padding padding\n";
    let code = format!("{}total", line.repeat((1 << 20) / line.len()));
    assert_eq!(server.ok(&code), "1");
    for size in [1 << 20, 15 << 20] {
        let code = format!("text = '{}é'\nlen(text), text[-2:]", "x".repeat(size - 1));
        assert_eq!(server.ok(&code), format!("({size}, 'xé')"));
    }
    check(&mut server, "6 * 7", "42");
}

#[test]
fn code_that_python_cannot_compile_is_an_error_and_no_end() {
    let mut server = Server::start();
    check(&mut server, "kept = 1", "");
    failure(&mut server, &format!("{}1{}", "(".repeat(5_000), ")".repeat(5_000)));
    failure(&mut server, &((0..120).map(|n| format!("{}if 1:\n", " ".repeat(n))).collect::<String>() + "pass"));
    failure(&mut server, "'\\N{no such character}'");
    failure(&mut server, "x = 1__0");
    check(&mut server, "kept", "1");
}

#[test]
fn functions_keep_the_lines_of_their_own_cell_in_tracebacks() {
    let mut server = Server::start();
    server.ok("def f(x):\n    return g(x)  # line of the first cell\n");
    server.ok("def g(x):\n    return 1 / x  # line of the second cell\n");
    server.ok("old_f, old_g = f, g\ndef g(x): return 'new'\ndef f(x): return 'new'");
    let text = failure(&mut server, "g = old_g\nold_f(0)");
    has(
        &mut server,
        &text,
        &[
            "File \"<cell 4>\", line 2, in <module>\n    old_f(0)",
            "File \"<cell 1>\", line 2, in f\n    return g(x)  # line of the first cell",
            "File \"<cell 2>\", line 2, in g\n    return 1 / x  # line of the second cell",
            "ZeroDivisionError: division by zero",
        ],
    );
    assert!(text.starts_with("Traceback (most recent call last):\n  File \"<cell 4>\", line 2, in <module>"), "{text}");
    // Also when linecache looks for changed files, and for whatever else of an earlier cell can raise.
    server.ok("import linecache; linecache.checkcache()");
    server.ok("def gen():\n    yield 1\n    yield 1/0  # in a generator\nit = gen(); next(it)");
    let text = failure(&mut server, "next(it)");
    has(&mut server, &text, &["yield 1/0  # in a generator"]);
    server.ok("late = [lambda: 1/0][0]  # in a lambda");
    let text = failure(&mut server, "late()");
    has(&mut server, &text, &["# in a lambda"]);
    server.ok("class C:\n    @property\n    def p(self):\n        return 1/0  # in a method");
    let text = failure(&mut server, "C().p");
    has(&mut server, &text, &["return 1/0  # in a method"]);
    server.ok("try:\n    1/0  # of a kept exception\nexcept ZeroDivisionError as e: kept = e");
    let text = failure(&mut server, "raise kept");
    has(&mut server, &text, &["raise kept", "1/0  # of a kept exception"]);
}

#[test]
fn the_lines_of_a_cell_are_shown_as_python_counts_them() {
    let mut server = Server::start();
    for (code, shown) in [
        ("a = 1\r\nb = '''\r\n'''\r\n1/0  # line four\r\n", "line 4, in <module>\n    1/0  # line four"),
        ("\u{feff}a = 1\n1/0  # line two", "line 2, in <module>\n    1/0  # line two"),
        ("    a = 1\n    1/0  # indented", "line 2, in <module>\n    1/0  # indented"),
        ("a = '\u{2028}\u{c}\u{85}'\n1/0  # after others", "line 2, in <module>\n    1/0  # after others"),
        ("a = 1\r1/0  # line two", "line 2, in <module>\n    1/0  # line two"),
    ] {
        let result = server.exec(code);
        has(&mut server, &result.text, &[shown]);
    }
}

#[test]
fn carets_stand_under_the_code_that_they_mean() {
    let mut server = Server::start();
    let newer = server.ok("import sys; sys.version_info >= (3, 11)") == "True";
    let pypy = server.ok("sys.implementation.name") == "'pypy'"; // has no carets there
                                                                 // Whether the last line has a newline or not (they stood a column too far), and where the cell was dedented.
    for code in ["1/0", "1/0\n", "a = 1\r\n1/0", "    a = 1\n    1/0"] {
        let text = server.exec(code).text;
        has(&mut server, &text, &[if newer { "\n    1/0\n    ~^~\nZero" } else { "\n    1/0\nZero" }]);
    }
    let text = server.exec("    a = 1\n    return 5").text;
    has(&mut server, &text, &[if pypy { "line 2\n    return 5\nSyntax" } else { "line 2\n    return 5\n    ^" }]);
}

#[test]
fn warnings_name_the_cell_and_its_line() {
    let mut server = Server::start();
    let warn = "import warnings\nwarnings.warn('careful')  # here";
    check(&mut server, warn, "<cell 1>:2: UserWarning: careful\n  warnings.warn('careful')  # here");
    let text = server.ok("def f():\n    warnings.warn('old', DeprecationWarning)\nf()");
    has(&mut server, &text, &["<cell 2>:2: DeprecationWarning: old"]);
    // Once in each cell, as a script is warned once in each run.
    for cell in 3..6 {
        let told = format!("<cell {cell}>:1: UserWarning: again\n  for _ in range(3): warnings.warn('again')");
        check(&mut server, "for _ in range(3): warnings.warn('again')", &told);
    }
    assert_eq!(server.call("list_vars", json!({})).text, "_, f, warnings");
    server.ok("warnings.simplefilter('error')");
    let text = failure(&mut server, "warnings.warn('now an error')");
    has(&mut server, &text, &["UserWarning: now an error"]);
}

// ---- await ---------------------------------------------------------------------------------------

#[test]
fn await_works_at_top_level_on_one_loop_for_life() {
    let mut server = Server::start();
    server.ok(&py("
        import asyncio
        loops = {}
        async def here():
            loop = asyncio.get_running_loop()
            loops[id(loop)] = loop
            return len(loops)
        "));
    check(&mut server, "await here()", "1");
    check(&mut server, "x = await here()\nx", "1");
    check(&mut server, "asyncio.run(here())", "2");
    check(&mut server, "y = await here()\nawait here()", "2");
    check(
        &mut server,
        "
        class Context:
            async def __aenter__(self):
                await here()
                return 'entered'
            async def __aexit__(self, *_):
                print('left', await here())
        async def numbers():
            for n in range(3):
                await asyncio.sleep(0)
                yield n
        async with Context() as what:
            print(what)
        async for n in numbers():
            print(n)
        [n * 2 async for n in numbers()]
        ",
        "entered\nleft 2\n0\n1\n2\n[0, 2, 4]",
    );
    // The loop is the current one for cells without await, too.
    check(&mut server, "asyncio.get_event_loop().run_until_complete(here())", "2");
    let text = failure(&mut server, "await here()\nx = asyncio.run(here())");
    has(&mut server, &text, &["RuntimeError: asyncio.run() cannot be called from a running event loop"]);
    check(&mut server, "await here()", "2");
    check(&mut server, "asyncio.get_event_loop().close()", "");
    check(&mut server, "await here()", "3");
}

#[test]
fn await_stays_what_it_is_elsewhere() {
    let mut server = Server::start();
    check(&mut server, "def f():\n    async def g(): return 'inner'\n    return g()\nawait f()", "'inner'");
    let text = failure(&mut server, "def f(): await g()");
    has(&mut server, &text, &["SyntaxError", "'await' outside async function"]);
    check(&mut server, "import asyncio\nasyncio.run(asyncio.sleep(0, 'run'))", "'run'");
    let text = server.ok("asyncio.sleep(0)");
    has(&mut server, &text, &["<coroutine object sleep at"]);
}

#[test]
fn a_cell_that_awaits_runs_in_the_loop_from_its_first_line_to_its_last() {
    let mut server = Server::start();
    server.ok("import asyncio, contextvars\nvariable = contextvars.ContextVar('variable', default='unset')");
    check(&mut server, "task = asyncio.create_task(asyncio.sleep(0, 'first'))\nawait task", "'first'");
    check(&mut server, "await asyncio.sleep(0)\ntype(asyncio.create_task(asyncio.sleep(0))).__name__", "'Task'");
    check(&mut server, "variable.set('set')\nawait asyncio.sleep(0)\nvariable.get()", "'set'");
    check(&mut server, "variable.set('again')\nawait asyncio.sleep(0, variable.get())", "'again'");
}

#[test]
fn background_tasks_survive_their_cell() {
    let mut server = Server::start();
    check(
        &mut server,
        "
        import asyncio
        ticks = 0
        async def tick():
            global ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1
        task = asyncio.ensure_future(tick())
        await asyncio.sleep(0.05)
        before = ticks
        before > 0
        ",
        "True",
    );
    let moves = "await asyncio.sleep(0.05)\nmoved, before = ticks > before, ticks\nmoved, task.done()";
    check(&mut server, moves, "(True, False)");
    let text = failure(&mut server, "await asyncio.sleep(0)\n1/0");
    has(&mut server, &text, &["line 2, in <module>", "ZeroDivisionError"]);
    check(&mut server, moves, "(True, False)");
    check(&mut server, "task.cancel(); await asyncio.sleep(0); task.cancelled()", "True");
}

#[test]
fn a_failed_await_is_told_once_and_ends_its_own_task_only() {
    let mut server = Server::start();
    server.ok("import asyncio, gc\nother = asyncio.ensure_future(asyncio.sleep(3600))\nawait asyncio.sleep(0)");
    let text = failure(
        &mut server,
        "
        async def bad():
            raise ValueError('mine')
        print('first')
        await bad()
        ",
    );
    let start =
        "first\nTraceback (most recent call last):\n  File \"<cell 2>\", line 4, in <module>\n    await bad()\n";
    assert!(text.starts_with(start) && text.ends_with("\nValueError: mine"), "{text}");
    let quiet = "gc.collect(); await asyncio.sleep(0); gc.collect(); other.done()";
    check(&mut server, quiet, "False");
    for (code, word) in [
        ("raise SystemExit(await asyncio.sleep(0, 3))", "SystemExit: 3"),
        ("await asyncio.sleep(0)\nraise KeyboardInterrupt", "KeyboardInterrupt"),
        ("await asyncio.wait_for(asyncio.sleep(60), 0.01)", "TimeoutError"),
        ("await asyncio.sleep(0)\nraise asyncio.CancelledError('mine')", "CancelledError"),
        ("asyncio.current_task().cancel()\nawait asyncio.sleep(60)", "CancelledError"),
        ("await asyncio.gather(bad(), asyncio.sleep(0))", "ValueError: mine"),
    ] {
        let text = failure(&mut server, code);
        has(&mut server, &text, &[word]);
        check(&mut server, quiet, "False");
    }
}

// ---- the end of a cell by exception --------------------------------------------------------------

#[test]
fn output_before_an_exception_is_kept() {
    let mut server = Server::start();
    let text = failure(&mut server, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n1/0");
    assert!(text.starts_with("out\nerr\nTraceback (most recent call last):\n"), "{text}");
    assert!(text.ends_with("\nZeroDivisionError: division by zero"), "{text}");
}

#[test]
fn system_exit_ends_the_cell_and_not_the_interpreter() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    server.ok("import os, sys");
    for code in ["sys.exit()", "sys.exit(0)", "sys.exit(False)", "raise SystemExit", "exit()", "quit()"] {
        check(&mut server, code, "");
    }
    let ended = "x\n[mcp-py: SystemExit ended the cell in line 1: what follows was not run]";
    check(&mut server, "print('x'); exit()\nprint('never')", ended);
    for (code, text) in [
        ("exit(3)", "SystemExit: 3"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("sys.exit(-1)", "SystemExit: -1"),
        ("sys.exit(True)", "SystemExit: 1"),
        ("sys.exit('a text')", "a text"),
        ("print('out')\nsys.exit('a text')", "out\na text"),
        ("sys.exit((1, 2))", "(1, 2)"),
        ("print('x'); sys.exit(3)", "x\nSystemExit: 3"),
        (
            "def f():\n    try:\n        sys.exit(4)\n    finally:\n        print('finally')\nf()",
            "finally\nSystemExit: 4",
        ),
        ("import asyncio\nawait asyncio.sleep(0)\nsys.exit(5)", "SystemExit: 5"),
        ("async def f(): sys.exit(5)\nawait f()", "SystemExit: 5"),
        ("class E(SystemExit): pass\nraise E(6)", "SystemExit: 6"),
    ] {
        let got = failure(&mut server, code);
        assert_eq!(got, text, "{code}");
    }
    // Values that can't be shown, or are no exit code.
    failure(&mut server, "class Odd:\n    def __str__(self): 1/0\nsys.exit(Odd())");
    failure(&mut server, "class Odd(int):\n    def __int__(self): 1/0\n    __bool__ = __int__\nsys.exit(Odd(3))");
    server.exec("class E(SystemExit):\n    @property\n    def code(self): 1/0\nraise E");
    failure(&mut server, "sys.exit(10**400)");
    failure(&mut server, "sys.exit(10**5000)");
    let text = failure(&mut server, "input()");
    has(&mut server, &text, &["EOFError", "stdin is empty"]);
    assert_eq!(server.worker_pid(), pid);
}

#[test]
fn every_exception_is_reported_and_none_ends_the_worker() {
    let mut server = Server::start();
    let pid = server.worker_pid();
    for (code, word) in [
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("class B(BaseException): pass\nraise B('mine')", "B: mine"),
        ("class S(Exception):\n    def __str__(self): raise ValueError('no text')\nraise S", "S"),
        ("class S(Exception):\n    def __str__(self): raise KeyboardInterrupt\nraise S", "S"),
        ("class S(Exception):\n    def __str__(self): raise SystemExit(9)\nraise S", "S"),
        ("class S(Exception):\n    __module__ = 3\nraise S('odd')", "S"),
        ("class S(Exception):\n    def __getattribute__(self, name): 1/0\nraise S('odd')", "S"),
        (
            "class M(type):\n    def __getattribute__(self, name): 1/0\nclass S(Exception, metaclass=M): pass\nraise S",
            "S",
        ),
        ("raise Exception('\\ud800 lone')", "Exception: \\ud800 lone"),
        ("raise Exception", "Exception"),
        ("raise 'text'", "TypeError: exceptions must derive from BaseException"),
        ("assert False, 'reason'", "AssertionError: reason"),
        ("def f(): f()\nf()", "RecursionError"),
        ("e = Exception('cycle'); e.__cause__ = e\nraise e", "Exception: cycle"),
        ("try:\n    1/0\nexcept Exception as e:\n    raise KeyError('second') from e", "direct cause"),
        ("try:\n    1/0\nexcept Exception:\n    raise KeyError('second')", "During handling of the above exception"),
        ("bytearray(1 << 60)", "Error"),
        ("raise MemoryError", "MemoryError"),
        ("raise StopIteration(1)", "StopIteration"),
        ("import sys; sys.excepthook = None; 1/0", "ZeroDivisionError"),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("exec('1/0')", "File \"<string>\", line 1"),
        (
            "import builtins\nraise getattr(builtins, 'ExceptionGroup', lambda _, all: all[0])('many', [KeyError(1)])",
            "KeyError: 1",
        ),
    ] {
        let text = failure(&mut server, code);
        has(&mut server, &text, &[word]);
        lacks(&mut server, &text, &WORKERS_WORDS);
    }
    assert_eq!(server.worker_pid(), pid);
}

#[test]
fn a_failed_cell_keeps_its_variables_for_a_look_until_the_next_failure_or_reset() {
    let mut server = Server::start();
    server.ok(&py("
        import gc, weakref
        class Big: pass
        def f():
            global alive
            big = Big()
            alive = weakref.ref(big)
            1/0
        "));
    failure(&mut server, "f()");
    check(&mut server, "import sys; sys.last_traceback.tb_next.tb_frame.f_locals['big'] is alive()", "True");
    check(&mut server, "(sys.last_type is ZeroDivisionError, sys.last_value is sys.last_exc)", "(True, True)");
    failure(&mut server, "1/0");
    check(&mut server, "gc.collect(); alive() is None", "True");
    server.call("reset", json!({}));
    check(&mut server, "import sys; hasattr(sys, 'last_value')", "False");
}

// ---- the repr of the result ----------------------------------------------------------------------

#[test]
fn a_repr_may_raise_print_or_be_odd() {
    let mut server = Server::start();
    let class = |body: &str| format!("class R:\n    def __repr__(self):\n        {body}\nR()");
    check(&mut server, &class("print('printing'); return 'the repr'"), "printing\nthe repr");
    check(&mut server, &class("return '\\ud800 and \\udfff'"), "\\ud800 and \\udfff");
    check(&mut server, &class("return 'a\\nb\\n'"), "a\nb");
    check(&mut server, &class("import os; os.system('echo child'); return 'r'"), "child\nr");
    for (body, word) in [
        ("1/0", "ZeroDivisionError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("return 5", "TypeError: __repr__ returned non-string"),
        ("return self.missing", "AttributeError"),
        ("return repr(self)", "RecursionError"),
    ] {
        let text = failure(&mut server, &class(body));
        has(&mut server, &text, &[word]);
        lacks(&mut server, &text, &WORKERS_WORDS);
    }
    check(
        &mut server,
        "
        class S(str):
            def __str__(self): 1/0
            def __len__(self): 1/0
            def __getitem__(self, key): 1/0
            def encode(self, *_): 1/0
            __repr__ = __eq__ = __str__
            __hash__ = None
        class R:
            def __repr__(self): return S('plain')
        R()
        ",
        "plain",
    );
    check(
        &mut server,
        "class E:\n    def __eq__(self, other): 1/0\n    __bool__ = __eq__\n    def __repr__(self): return 'E'\nE()",
        "E",
    );
    let hostile = "class B:\n    def __getattribute__(self, name): 1/0\n    def __repr__(self): return 'B'\nB()";
    check(&mut server, hostile, "B");
    // A repr of a library: its traceback has no frame of the cell.
    write(&server, "library.py", "class R:\n    def __repr__(self):\n        return str(1/0)  # there\n");
    let text = failure(&mut server, "import library; library.R()");
    has(&mut server, &text, &["Traceback (most recent call last):\n  File ", "line 3, in __repr__\n", "# there\n"]);
    lacks(&mut server, &text, &WORKERS_WORDS);
    check(&mut server, "6 * 7", "42");
}

// ---- text ----------------------------------------------------------------------------------------

#[test]
fn text_of_every_kind_arrives_whatever_the_locale_says() {
    for (name, value) in [
        ("LC_ALL", "C"),
        ("PYTHONIOENCODING", "ascii:strict"),
        ("PYTHONUTF8", "1"),
        ("PYTHONUTF8", "0"),
        ("PYTHONUNBUFFERED", "1"),
    ] {
        let mut server = Server::with(|builder| builder.env("PYTHONCOERCECLOCALE", "0").env(name, value));
        let code = "import os, sys\nprint('é✓🐍')\nprint('ü', file=sys.stderr)\n'ñ'";
        check(&mut server, code, "é✓🐍\nü\n'ñ'");
        let lone = "print('lone \\ud800', file=sys.stderr)\nprint('lone \\udcff')";
        check(&mut server, lone, "lone \\udcff\nlone \\ud800");
        let kind = "[(s.encoding, s.errors, s.line_buffering) for s in (sys.stdout, sys.stderr)]";
        check(&mut server, kind, "[('utf-8', 'backslashreplace', True), ('utf-8', 'backslashreplace', True)]");
        // Once PYTHONUNBUFFERED tore each print into its parts.
        let own = "[(s.name, s.mode, s.write_through, type(s.buffer).__name__) for s in (sys.stdout, sys.__stderr__)]";
        let (out, err) = ("('<stdout>', 'w', False, 'BufferedWriter')", "('<stderr>', 'w', False, 'BufferedWriter')");
        check(&mut server, own, &format!("[{out}, {err}]"));
        check(&mut server, "sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__", "(True, True)");
        check(&mut server, "print('second', end='')\nos.write(1, b'first ') and None", "first second");
        let text = failure(&mut server, "raise ValueError('ü \\udcff')");
        has(&mut server, &text, &["ValueError: ü \\udcff", "raise ValueError('ü \\udcff')"]);
    }
}

#[test]
fn bytes_that_are_no_utf8_become_escapes() {
    let mut server = Server::start();
    check(&mut server, r#"import os; os.system(r"printf 'a\377\376b\303'")"#, "a\\xff\\xfeb\\xc3\n0");
    check(
        &mut server,
        r"os.write(1, b'\xed\xa0\x80 and \xc0\x80 and \xf5'); None",
        r"\xed\xa0\x80 and \xc0\x80 and \xf5",
    );
    let in_two = r"import time; os.write(1, b'\xf0\x9f'); time.sleep(0.05); os.write(1, b'\x90\x8d'); None";
    check(&mut server, in_two, "🐍");
    check(&mut server, r"os.write(2, b'\xff\n'); None", r"\xff");
}

#[test]
fn escape_sequences_and_nuls_pass_through() {
    let mut server = Server::start();
    let code = r"print('\x1b[31mred\x1b[0m\x00\x07\b end')";
    check(&mut server, code, "\u{1b}[31mred\u{1b}[0m\0\u{7}\u{8} end");
}

// ---- from cell to cell ---------------------------------------------------------------------------

#[test]
fn logging_set_up_in_one_cell_is_used_in_another() {
    let mut server = Server::start();
    check(&mut server, "import logging\nlogging.basicConfig(level=logging.INFO)\nlog = logging.getLogger('mine')", "");
    check(&mut server, "log.info('from the second cell')", "INFO:mine:from the second cell");
    failure(&mut server, "log.warning('before')\n1/0");
    check(&mut server, "def f(): log.error('from a function')\nf()", "ERROR:mine:from a function");
    let text = server.ok("try:\n    1/0\nexcept ZeroDivisionError:\n    log.exception('caught')");
    has(&mut server, &text, &["ERROR:mine:caught\nTraceback", "line 2, in <module>\n    1/0", "ZeroDivisionError"]);
    check(&mut server, "import os; os.system('true')\nlog.info('after a child')", "INFO:mine:after a child");
}

#[test]
fn cells_of_one_interpreter_run_in_the_order_they_came() {
    let mut server = Server::start();
    server.ok("seen = []");
    let ids: Vec<_> =
        (0..50).map(|n| server.start_exec(&format!("seen.append({n})\nprint('cell {n}')\n{n}"))).collect();
    for (n, id) in ids.into_iter().enumerate() {
        assert_eq!(server.wait(id).text, format!("cell {n}\n{n}"));
    }
    check(&mut server, "seen == list(range(50))", "True");
}

/// Its Pool starts one new Python after another, and never returns.
#[test]
fn a_pool_that_never_returns_says_why_while_it_runs() {
    let mut server = Server::start();
    let code = py("
        import multiprocessing
        def square(n):
            return n * n
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            squares = pool.map(square, range(5))
        ");
    let params = json!({"name": "execute", "arguments": {"code": code}, "_meta": {"progressToken": "p"}});
    let call = server.start_request("tools/call", params);
    let says_why = |message: &serde_json::Value| {
        let line = message["params"]["message"].as_str().unwrap_or_default();
        line.starts_with("multiprocessing ") && line.contains("starts a new Python")
    };
    server.recv_until(says_why);
    server.cancel(call);
    assert_eq!(server.ok("'free'").lines().last(), Some("'free'"));
    end_and_free(&mut server);
}
