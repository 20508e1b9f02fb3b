//! What people are used to from notebooks: a `;` hides the value, progress bars take one line, modules that were edited
//! are named, and what Python refuses gets a sentence.

use crate::cells::{check, failure, has, lacks, py};
use crate::client::{Folder, Server};
use serde_json::json;
use std::fs;

#[test]
fn a_semicolon_behind_the_last_expression_hides_its_value() {
    let mut server = Server::start();
    for code in ["1;", "1 ;  # why", "x = 5; x;", "'é' * 3;", "(1 +\n 2);", "print; (\n3\n)  ;"] {
        check(&mut server, code, "");
    }
    for (code, text) in [("1; 2", "2"), ("x", "5"), ("'a;'", "'a;'"), ("x  # ;", "5")] {
        check(&mut server, code, text);
    }
}

#[test]
fn lines_that_are_written_over_are_shown_as_they_stood_last() {
    let mut server = Server::start();
    server.ok(&py("
        import sys
        def show(text, stream=None):
            (stream or sys.stdout).write(text)
    "));
    for (code, text) in [
        ("for n in range(6000): show('\\r%3d%%' % (n / 59.99))", "100%"),
        ("for n in range(6000): show('%d\\r' % n)", "5999"),
        ("show('a\\r\\nb\\r\\n')", "a\r\nb\r"),
        ("show('long line\\rshort\\nnext')", "short\nnext"),
        ("show('\\x1b[31mred\\r\\x1b[0m')", "\u{1b}[31mred\u{1b}[0m"),
        ("show('é' * 9 + '\\r' + 'ü')", "ü"),
        ("show('1%\\r2%', sys.stderr)", "2%"),
        ("show('\\r'); show('\\r\\r'); show('x\\r'); show('\\n'); 'end'", "x\r\n'end'"),
    ] {
        check(&mut server, code, text);
    }
}

#[test]
fn what_was_written_over_is_in_the_file_and_does_not_count_as_shown() {
    let mut server = Server::start();
    check(&mut server, "for n in range(30_000): print(n, end='\\r')", "29999");
    let text = server.ok("for n in range(30_000): print(n, end='\\r')\nprint()\nprint('y' * 26_000)");
    has(&mut server, &text, &["29999\r\nyyy", "OUTPUT TRUNCATED", "1,00", " characters left out"]);
    let file = text.lines().find_map(|line| line.strip_prefix("# Full output: ")).expect("a file");
    let whole = fs::read_to_string(file).unwrap();
    assert!(whole.starts_with("0\r1\r2\r") && whole.len() > 190_000, "{}", whole.len());
}

#[test]
fn habits_of_notebooks_and_shells_get_a_sentence() {
    let mut server = Server::start();
    for (code, hint) in [
        ("!ls", "subprocess.run"),
        ("x = 1\n!pip install y", "subprocess.run"),
        ("%timeit x", "without magics"),
        ("%%time\nx", "without magics"),
        ("len?", "help(x)"),
        ("?len", "help(x)"),
        ("files = !ls", "subprocess.run"),
        ("pip install numpy", "a cell is no shell"),
        ("t = %timeit -o 1", "without magics"),
        ("Out[1]", "give a value a name"),
        (">>> x = 1", "prompts"),
        ("In [1]: x = 1", "prompts"),
        ("```python\nx = 1\n```", "fences"),
        ("get_ipython()", "no IPython"),
        ("if 1 \\!= 2: pass", "put a backslash before"),
        ("import asyncio; asyncio.current_task()", "await at its top level"),
        ("import asyncio\nawait asyncio.sleep(0)\nasyncio.run(asyncio.sleep(0))", "await at its top level"),
    ] {
        let text = failure(&mut server, code);
        has(&mut server, &text, &["[mcp-py: ", hint]);
    }
    for code in [
        "1 +",
        "undefined",
        "x = 'a?'\ny = 1 +",
        "raise RuntimeError('other')",
        "d = {'!': 1}; d[2]",
        "x = 'what?",
        "foo( # why?",
        "eval('!x')",
        "raise Exception('>>> hi')",
        "import ast; ast.literal_eval('%d')",
    ] {
        let text = failure(&mut server, code);
        lacks(&mut server, &text, &["[mcp-py: "]);
    }
}

#[test]
fn a_cell_that_ends_by_exit_says_so() {
    let mut server = Server::start();
    for code in ["exit()\n1", "import sys  # cache=True\nif 1:\n    sys.exit(0)\nprint(2)", "def f(): exit()\nf()\n1"] {
        let text = server.ok(code);
        has(&mut server, &text, &["[mcp-py: SystemExit ended the cell in line ", ": what follows was not run]"]);
    }
    check(&mut server, "def main(): return 0\nif __name__ == '__main__':\n    sys.exit(main())\n", "");
}

/// What is kept of cells has a limit; a cell that is run again is kept for its last run.
#[test]
fn a_long_cell_that_ends_by_exit_says_so_however_often_it_is_run() {
    let mut server = Server::start();
    let code = format!("import sys  # cache=True {}\nif 1:\n    sys.exit(0)\nprint(2)", "x".repeat(1_000_000));
    for _ in 0..20 {
        let text = server.ok(&code);
        has(&mut server, &text, &["[mcp-py: SystemExit ended the cell in line 3: what follows was not run]"]);
    }
}

fn start_with_modules(folder: &Folder) -> Server {
    fs::write(folder.project().join("inner.py"), "def value(): return 1\n").unwrap();
    fs::write(folder.project().join("outer.py"), "import inner\ndef value(): return inner.value()\n").unwrap();
    let mut server = Server::with(|builder| builder.folder(folder).cwd(folder.project()));
    check(&mut server, "import outer, importlib; outer.value()", "1");
    server
}

#[test]
fn a_module_of_the_project_that_changed_is_named_once_with_who_imports_it() {
    let folder = Folder::new();
    let mut server = start_with_modules(&folder);
    server.ok("1"); // the modules are known by the end of a cell
    fs::write(folder.project().join("inner.py"), "def value(): return 20\n").unwrap();
    let text = told_of_change(&mut server);
    has(
        &mut server,
        &text,
        &["[mcp-py: changed on disk since import: inner, used by outer. Reload them, in this order,"],
    );
    check(&mut server, "outer.value()", "1");
    check(&mut server, "importlib.reload(outer.inner); outer.value()", "20");
    std::thread::sleep(std::time::Duration::from_millis(100));
    check(&mut server, "outer.value()", "20");
}

#[test]
fn a_test_that_was_edited_is_named_in_the_answer_of_the_cell_that_runs_it() {
    let folder = Folder::new();
    let test = folder.project().join("test_it.py");
    let text = "import unittest\nclass It(unittest.TestCase):\n    def test_it(self): self.assertEqual(1, ";
    fs::write(&test, format!("{text}2)\n")).unwrap();
    let mut server = Server::with(|builder| builder.folder(&folder).cwd(folder.project()));
    let run = "import unittest; unittest.main('test_it', argv=['it'], exit=False).result.wasSuccessful()";
    let first = server.ok(run);
    assert!(first.ends_with("\nFalse"), "{first}");
    fs::write(&test, format!("{text}1)  # longer: a .pyc goes by seconds and size\n")).unwrap();
    let start = std::time::Instant::now();
    let mut told = server.ok(run);
    while !told.contains("changed on disk") && start.elapsed() < crate::client::DEADLINE {
        told = server.ok(run); // looking is left out for a moment after each look
    }
    assert!(told.ends_with("\nFalse"), "{told}");
    has(&mut server, &told, &["[mcp-py: changed on disk since import: test_it. Reload them"]);
    server.ok("import importlib, test_it; importlib.reload(test_it)");
    let reloaded = server.ok(run);
    assert!(reloaded.ends_with("\nTrue"), "{reloaded}");
}

/// The training runs, and somebody edits the module meanwhile.
#[test]
fn an_edit_during_the_cell_that_imports_or_reloads_a_module_is_told() {
    let folder = Folder::new();
    let mut server = start_with_modules(&folder);
    fs::write(folder.project().join("late.py"), "V = 1\n").unwrap();
    for (first, text) in [("import late", "V = 22\n"), ("importlib.reload(late)", "V = 333\n")] {
        let code = format!("{first}\nimport time; time.sleep(0.02)\nn = open('late.py', 'w').write({text:?}); late.V");
        let mut told = server.ok(&code);
        let start = std::time::Instant::now();
        while !told.contains("changed on disk since import: late. ") && start.elapsed() < crate::client::DEADLINE {
            told = server.ok("1");
        }
        has(&mut server, &told, &["changed on disk since import: late. "]);
    }
}

/// Each of them would run code for the asking, or would have hidden what others are told of.
#[test]
fn looking_for_changes_runs_no_code_and_no_odd_module_hides_the_change_of_another() {
    let folder = Folder::new();
    let mut server = start_with_modules(&folder);
    let odd =
        "class Odd:\n    def __getattribute__(self, name): print('asked'); raise RuntimeError(name)\nodd = Odd()\n";
    fs::write(folder.project().join("odd.py"), odd).unwrap();
    fs::write(folder.project().join("gone.py"), "").unwrap();
    server.ok("import odd, gone, sys; sys.modules['fake'] = odd.odd; del sys.modules['gone']");
    fs::write(folder.project().join("gone.py"), "V = 1\n").unwrap();
    fs::write(folder.project().join("inner.py"), "def value(): return 20\n").unwrap();
    let text = told_of_change(&mut server);
    has(&mut server, &text, &["since import: inner, used by outer. "]);
    lacks(&mut server, &text, &["asked", "gone"]);
}

#[test]
fn many_changed_modules_make_one_short_note() {
    let folder = Folder::new();
    let mut server = start_with_modules(&folder);
    let write = |text: &str| {
        for number in 0..300 {
            fs::write(folder.project().join(format!("m{number}.py")), text).unwrap();
        }
    };
    write("");
    server.ok("for n in range(300): __import__(f'm{n}')");
    write("V = 1\n");
    let text = told_of_change(&mut server);
    has(&mut server, &text, &["changed on disk since import: m0, m1, ", " and 290 more. Reload"]);
    assert!(text.len() < 500, "{text}");
}

/// Looking is left out for a moment after each look, so that it costs little: cells are run until one tells.
fn told_of_change(server: &mut Server) -> String {
    let start = std::time::Instant::now();
    loop {
        let text = server.ok("outer.value()");
        if text.contains("changed on disk") {
            return text;
        }
        if start.elapsed() > crate::client::DEADLINE {
            server.fail("no cell told of the change");
        }
    }
}

#[test]
fn list_vars_tells_types_shapes_lengths_and_short_values() {
    let mut server = Server::start();
    server.ok(&py("
        class Hangs:
            def __len__(self):
                while True: pass
            shape = property(__len__)
            __repr__ = __len__
        class Liar(list):
            __len__ = Hangs.__len__
        x, y, text, long, items = 5, 2.5, 'abc', 'a' * 10_000, [1, 2, 3]
        big, none, hangs, liar = 10 ** 5000, None, Hangs(), Liar()
        far = complex(1.7e308, 1.7e308)
        import os
        def f(): pass
    "));
    let told = server.call("list_vars", json!({"details": true})).text;
    for line in [
        "x: int 5",
        "y: float 2.5",
        "text: str 'abc'",
        "long: str of length 10000",
        "items: list of length 3",
        "big: int",
        "far: complex (1.7e+308+1.7e+308j)",
        "none: None",
        "hangs: Hangs",
        "liar: Liar",
        "os: module os",
        "f: function",
        "Hangs: type",
    ] {
        assert!(told.lines().any(|one| one == line), "{line}\n{told}");
    }
    assert_eq!(server.call("list_vars", json!({})).text.split(", ").count(), told.lines().count());
    server.call("reset", json!({}));
    assert_eq!(server.call("list_vars", json!({"details": true})).text, "No variables defined");
}

// ---- names that libraries can work with -----------------------------------------------------------------------------

/// As line_profiler does. On 3.8 that makes another dict.
#[test]
fn the_lines_of_cells_are_there_though_linecache_was_cleared() {
    let mut server = Server::start();
    server.ok("def f():\n    return 1/0  # of cell 1");
    server.ok("import linecache; linecache.clearcache()");
    let text = failure(&mut server, "f()");
    has(&mut server, &text, &["File \"<cell 1>\", line 2, in f\n    return 1/0  # of cell 1"]);
    server.ok("import inspect\ndef g(): return 1\nlinecache.clearcache()");
    check(&mut server, "inspect.getsource(g)", "'def g(): return 1\\n'");
    let text = failure(&mut server, "def h():\n    return 1/0  # late\nh()");
    has(&mut server, &text, &["return 1/0  # late"]);
}

/// numba's cache, joblib.Memory, line_profiler and memory_profiler ask for one.
#[test]
fn a_cell_that_names_a_cache_or_a_profiler_has_a_file_that_is_the_same_for_the_same_text() {
    let mut server = Server::start();
    let read = "# cache=True\nimport os\ndef f(): return 1\nopen(f.__code__.co_filename).read()";
    let text = server.ok(read);
    assert!(text.starts_with("'# cache=True\\nimport os"), "{text}");
    let place = "os.path.realpath(f.__code__.co_filename), os.stat(f.__code__.co_filename).st_mtime_ns";
    let first = server.ok(place);
    server.ok(read);
    check(&mut server, place, &first);
    server.ok("def f(): return 2  # cache=True");
    assert_ne!(server.ok(place), first);
    let text = failure(&mut server, "x = 0  # cache=True\n1/x");
    has(&mut server, &text, &["File \"<cell 7>\", line 2, in <module>\n    1/x"]);
    let text = failure(&mut server, "1/0");
    has(&mut server, &text, &["File \"<cell 8>\", line 1, in <module>"]);
}

#[test]
fn a_cell_whose_file_can_not_be_written_runs_without_one() {
    let folder = Folder::new();
    let mut server = Server::with(|builder| builder.folder(&folder));
    server.ok("1");
    fs::write(folder.home().join(".claude-workspace/python_interpreter/cells"), "").unwrap();
    check(&mut server, "def f(): return 1  # cache=True\nf.__code__.co_filename", "'<cell 2>'");
}

#[test]
fn files_of_cells_that_are_old_are_removed() {
    let folder = Folder::new();
    let mut server = Server::with(|builder| builder.folder(&folder));
    server.ok("1  # cache=True");
    let cells = folder.home().join(".claude-workspace/python_interpreter/cells");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(31 * 24 * 3600);
    for name in ["old.py", "__pycache__/old.nbi"] {
        let path = cells.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).unwrap().set_modified(old).unwrap();
    }
    server.ok("2  # cache=True");
    let left: Vec<_> = fs::read_dir(&cells).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}"); // two cells, and the folder
    assert_eq!(fs::read_dir(cells.join("__pycache__")).unwrap().count(), 0);
}
