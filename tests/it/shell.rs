//! The client in a shell. It takes code from stdin, a file or `-c`, streams the output, and its exit code says how the
//! cell ended. When it is killed or its reader goes, its cell is interrupted and no other. It finds the session of its
//! own host, sends code to no other, and where it finds none it says what it looked for and what to do.

use crate::client::{binary, is_on_macos, python, Folder, Server, DEADLINE};
use crate::procs::{self, eventually};
use serde_json::{json, Value};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
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

/// The client, not started yet; it knows its server by the socket.
fn client(socket: &str, words: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("client").args(words).env_clear().env("MCP_PY_SOCKET", socket).env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What it said: exit code, stdout, stderr.
type Said = (i32, String, String);

fn said(child: Child) -> Said {
    let output = child.wait_with_output().expect("the client ends");
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn run(socket: &str, words: &[&str]) -> Said {
    said(client(socket, words).spawn().unwrap())
}

/// With the code on stdin, as a heredoc gives it.
fn feed(socket: &str, words: &[&str], code: &[u8]) -> Said {
    let mut child = client(socket, words).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(code).expect("the client reads");
    said(child)
}

#[track_caller]
fn expect(said: Said, code: i32, out: &str, err: &str) {
    assert_eq!((said.0, said.1.as_str(), said.2.as_str()), (code, out, err));
}

// ---- code and output -----------------------------------------------------------------------------------------------

#[test]
fn a_heredoc_runs_in_the_agents_python_and_prints_what_python_would() {
    let (mut server, socket) = start();
    server.ok("x = 5");
    expect(feed(&socket, &[], b"print(x * 2)\n"), 0, "10\n", "");
    expect(feed(&socket, &["-"], b"x + 1"), 0, "6\n", "");
    expect(feed(&socket, &[], b"y = 1\n"), 0, "", "");
    expect(feed(&socket, &[], b"print('no end', end='')\ny"), 0, "no end\n1\n", "");
    expect(feed(&socket, &[], b"print('no end', end='')"), 0, "no end", "");
    expect(feed(&socket, &[], b"import sys; print('e', file=sys.stderr); 'o'"), 0, "'o'\n", "e\n");
    assert_eq!(server.ok("y"), "1");
}

#[test]
fn code_comes_from_a_file_or_the_command_line_too() {
    let (server, socket) = start();
    let file = server.folder().path().join("-cell.py");
    fs::write(&file, "x = 5\n__name__, x").unwrap();
    expect(run(&socket, &[file.to_str().unwrap()]), 0, "('__main__', 5)\n", "");
    let mut command = client(&socket, &["--", "-cell.py"]);
    expect(said(command.current_dir(server.folder().path()).spawn().unwrap()), 0, "('__main__', 5)\n", "");
    expect(run(&socket, &["-c", "x + 1"]), 0, "6\n", "");
    let (code, out, err) = run(&socket, &["/nowhere/x.py"]);
    assert_eq!((code, out.as_str()), (125, ""));
    assert!(err.starts_with("mcp-py-client: /nowhere/x.py: No such file"), "{err}");
}

#[test]
fn output_comes_as_it_is_made() {
    let (server, socket) = start();
    let go = server.folder().path().join("go");
    let code = format!("import os, time\nprint('one')\nwhile not os.path.exists({go:?}): time.sleep(0.01)\n'two'");
    let mut child = client(&socket, &["-c", &code]).spawn().unwrap();
    let mut first = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut first).expect("a line before the end");
    assert_eq!(&first, b"one\n");
    File::create(&go).unwrap();
    expect(said(child), 0, "'two'\n", "");
}

#[test]
fn long_output_is_cut_unless_it_goes_to_a_file_of_its_own_or_full_is_said() {
    let (server, socket) = start();
    let code = "print('a' * 60_000)\n'r' * 600_000";
    let (exit, out, err) = run(&socket, &["-c", code]);
    assert!(exit == 0 && out.starts_with(&"a".repeat(20_000)) && out.len() < 26_000, "{} bytes", out.len());
    assert!(out.contains(" characters left out …]\n") && out.ends_with("rrr'\n"), "{}", &out[out.len() - 50..]);
    assert!(err.contains("# OUTPUT TRUNCATED") && err.contains("# Full output: /"), "{err}");
    let whole = format!("{}\n'{}'\n", "a".repeat(60_000), "r".repeat(600_000));
    let full = run(&socket, &["--full", "-c", code]);
    assert!(full.0 == 0 && full.1 == whole && full.2.is_empty(), "{} bytes, {}", full.1.len(), full.2);
    // Once a result that came in one piece lost its middle, and of a cut one the head was not shown.
    for (count, print) in [(150_000, "a\n"), (170_000, "a"), (200_000, ""), (262_142, "a")] {
        let code = format!("print({print:?}, end='')\n'é' * {count}");
        let lead = if print == "a" { "a\n" } else { print };
        let full = run(&socket, &["--full", "-c", &code]);
        assert!(full.1 == format!("{lead}'{}'\n", "é".repeat(count)), "{count}: {} bytes", full.1.len());
    }
    for (print, count) in [("", 30_000), ("p", 30_000), ("p\n", 200_000), ("p", 300_000)] {
        let (_, out, _) = run(&socket, &["-c", &format!("print({print:?} * 4_000, end='')\n'r' * {count}")]);
        assert!(out.len() < 25_100, "{print:?} {count}: its result came again, {} bytes", out.len());
        let (head, tail) = out.split_once("\n[mcp-py: … ").expect("it is cut");
        let printed = print.repeat(4_000) + if print == "p" { "\n" } else { "" };
        let start = head.strip_prefix(&printed).and_then(|start| start.strip_prefix("'r")).unwrap_or_default();
        assert!(start.len() > 11_900 && start.bytes().all(|byte| byte == b'r'), "{print:?} {count}: {}", head.len());
        assert!(
            tail.split_once("…]\n").is_some_and(|(_, tail)| tail.len() > 4_990 && tail.ends_with("rr'\n")),
            "{count}"
        );
    }
    let path = server.folder().path().join("out");
    let mut command = client(&socket, &["-c", code]);
    assert!(command.stdout(File::create(&path).unwrap()).status().unwrap().success());
    assert!(fs::read_to_string(&path).unwrap() == whole);
    let both = File::create(&path).unwrap();
    let mut command = client(&socket, &["-c", code]);
    assert!(command.stdout(both.try_clone().unwrap()).stderr(both).status().unwrap().success());
    assert!(fs::read_to_string(&path).unwrap().contains("# OUTPUT TRUNCATED"), "stderr goes to the same file");
}

#[test]
fn what_is_cut_keeps_each_stream_to_itself_with_the_end_of_both() {
    let (_server, socket) = start();
    let print = |code: &str| run(&socket, &["-c", &format!("import sys, time\n{code}")]);
    let late = "print('x' * 30_000, flush=True); time.sleep(0.1); print('ERR', file=sys.stderr)";
    let (_, out, err) = print(late);
    assert!(out.ends_with("x\n") && !out.contains("ERR"), "{}", &out[out.len() - 100..]);
    assert!(out.contains(" 5,005 characters left out …]\n"), "{}", &out[out.len() - 5_200..]);
    assert_eq!((err.starts_with("ERR\n===="), err.matches("ERR").count()), (true, 1), "{err}");
    for count in [1, 800] {
        let early = format!("sys.stderr.write('WARN\\n' * {count}); sys.stderr.flush(); time.sleep(0.1)");
        let (_, out, err) = print(&format!("{early}\nfor n in range(6_000): print('line', n)"));
        assert!(out.ends_with("line 5998\nline 5999\n") && !out.contains("WARN"), "{}", &out[out.len() - 100..]);
        assert_eq!(err.matches("WARN\n").count(), count);
    }
    // The result begins a line of its own, whichever stream was written last.
    for (first, last) in [("stdout", "stderr"), ("stderr", "stdout")] {
        let code = format!("sys.{first}.write('a'); sys.{first}.flush(); time.sleep(0.1); print('b', file=sys.{last})");
        let code = format!("import sys, time\n{code}; time.sleep(0.1)\n'r' * 120_000");
        let (_, out, _) = run(&socket, &["--full", "-c", &code]);
        let lead = if first == "stdout" { "a\n'rrr" } else { "b\n'rrr" };
        assert!(out.starts_with(lead), "{}", &out[..20]);
    }
}

#[test]
fn what_has_25_000_characters_is_whole_and_one_more_is_cut() {
    let (_server, socket) = start();
    for (code, whole) in [
        ("print('a' * 25_000)", Some("a".repeat(25_000) + "\n")),
        ("print('a' * 25_001)", None),
        ("print('a' * 24_000)\n'r' * 997", Some(format!("{}\n'{}'\n", "a".repeat(24_000), "r".repeat(997)))),
        ("print('a' * 24_000)\n'r' * 998", None),
        ("'r' * 24_998", Some(format!("'{}'\n", "r".repeat(24_998)))),
        ("'r' * 24_999", None),
    ] {
        let (exit, out, err) = run(&socket, &["-c", code]);
        match whole {
            Some(whole) => assert!(exit == 0 && out == whole && err.is_empty(), "{code}: {} bytes, {err}", out.len()),
            None => assert!(out.contains("\n[mcp-py: … ") && err.contains("# OUTPUT TRUNCATED"), "{code}: {err}"),
        }
    }
}

#[test]
fn a_traceback_behind_long_output_is_whole_and_comes_last() {
    let (_server, socket) = start();
    let (exit, out, err) = run(&socket, &["-c", "print('a' * 30_000, end='')\nprint('b' * 3)\n1/0"]);
    assert!(exit == 1 && out.starts_with(&"a".repeat(20_000)) && out.ends_with("abbb\n"), "{} bytes", out.len());
    let (notice, traceback) = err.split_once("Traceback (most recent call last):\n").expect("a traceback");
    assert!(notice.starts_with("=====") && notice.ends_with("=====\n"), "{err}");
    assert!(traceback.ends_with("ZeroDivisionError: division by zero\n"), "{err}");
}

/// It holds back what it does not show, and has to look by itself whether somebody still reads.
#[test]
fn head_ends_the_client_also_where_it_shows_nothing_more() {
    let (mut server, socket) = start();
    let code = "kept = 1\nwhile True: print('line', flush=True)";
    let mut child = client(&socket, &["-t", "0", "-c", code]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut head = vec![0; 20_000];
    out.read_exact(&mut head).expect("all that is shown at once");
    drop(out);
    eventually(DEADLINE, "the client ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGPIPE));
    assert_eq!(server.ok("kept"), "1");
}

#[test]
fn notes_and_tracebacks_are_on_stderr() {
    let (_server, socket) = start();
    let (code, out, err) = run(&socket, &["-c", "print('so far')\n1/0"]);
    assert_eq!((code, out.as_str()), (1, "so far\n"));
    assert!(
        err.starts_with("Traceback (most recent call last):\n")
            && err.ends_with("ZeroDivisionError: division by zero\n"),
        "{err}"
    );
    let (code, out, err) = run(&socket, &["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]);
    assert_eq!((code, out.as_str()), (137, ""));
    assert!(err.starts_with("[mcp-py: interpreter \"builtin\" was killed by SIGKILL"), "{err}");
}

// ---- scripts -------------------------------------------------------------------------------------------------------

const SCRIPT: &str = "\
'Says what it was given.'
import sys
import beside

def fail():
    raise ValueError(sys.argv[1])

if __name__ == '__main__':
    print(__doc__, sys.argv[1:], sys.argv[0] == __file__, __file__, beside.x)
    if '-x' in sys.argv:
        fail()
    if 'exit' in sys.argv:
        sys.exit(4)
    while 'spin' in sys.argv:
        pass
";

/// A session, and a folder that is not the interpreter's, with a script and a module.
fn start_with_script() -> (Server, String, PathBuf) {
    let (mut server, socket) = start();
    let folder = server.folder().path().join("elsewhere");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("script.py"), SCRIPT).unwrap();
    fs::write(folder.join("beside.py"), "x = 'found'").unwrap();
    assert!(!server.ok("import os; os.getcwd()").contains("elsewhere"));
    (server, socket, folder)
}

fn run_in(folder: &Path, socket: &str, words: &[&str]) -> Said {
    said(client(socket, words).current_dir(folder).spawn().unwrap())
}

/// What a script finds changed for its time.
const AROUND: &str = "import sys; sys.argv, globals().get('__file__'), any('elsewhere' in entry for entry in sys.path)";

#[test]
fn a_file_runs_as_a_script_with_its_arguments_its_name_and_the_modules_beside_it() {
    let (mut server, socket, folder) = start_with_script();
    let path = folder.join("script.py").display().to_string();
    let told = |arguments: &str| format!("Says what it was given. {arguments} True {path} found\n");
    let before = server.ok(AROUND);
    assert_eq!(before, "(['-c'], None, False)");
    // What stands behind FILE is the script's, whatever it looks like.
    expect(run_in(&folder, &socket, &["script.py", "a b", "-t", "--help"]), 0, &told("['a b', '-t', '--help']"), "");
    expect(run_in(&folder, &socket, &["-t60", "--", "./script.py"]), 0, &told("[]"), "");
    expect(run_in(&folder, &socket, &["script.py", "exit"]), 4, &told("['exit']"), "SystemExit: 4\n");
    assert_eq!(server.ok(AROUND), before);
    // What cells have set is there again afterwards. What the script has defined stays.
    server.ok("__file__ = 'mine'; sys.argv = ['my', 'own']");
    let (code, out, err) = run_in(&folder, &socket, &["script.py", "-x"]);
    assert_eq!((code, out), (1, told("['-x']")), "{err}");
    for line in [
        &format!("  File \"{path}\", line 11, in <module>\n    fail()\n"),
        &format!("  File \"{path}\", line 6, in fail\n    raise ValueError(sys.argv[1])\n"),
        "ValueError: -x\n",
    ] {
        assert!(err.contains(line), "{line}{err}");
    }
    assert!(!err.contains("<cell") && !err.contains("worker"), "{err}");
    assert_eq!(server.ok(AROUND), "(['my', 'own'], 'mine', False)");
    let later = server.exec("fail()").text;
    assert!(later.contains(&format!("  File \"{path}\", line 6, in fail\n    raise ValueError")), "{later}");
}

#[test]
fn a_script_that_is_interrupted_or_does_not_compile_says_where_and_leaves_nothing_behind() {
    let (mut server, socket, folder) = start_with_script();
    let path = folder.join("script.py").display().to_string();
    let (code, _, err) = run_in(&folder, &socket, &["-t", "0.3", "script.py", "spin"]);
    assert!(code == 124 && err.contains(&format!("  File \"{path}\", line 1")), "{code} {err}");
    assert_eq!(server.ok(AROUND), "(['-c'], None, False)");
    // A traceback shows the lines that ran, whatever the file has become meanwhile.
    fs::write(folder.join("script.py"), "import os, sys\nos.remove(__file__)\n1/0\n").unwrap();
    let (_, _, err) = run_in(&folder, &socket, &["script.py"]);
    assert!(err.contains(&format!("  File \"{path}\", line 3, in <module>\n    1/0\n")), "{err}");
    fs::write(folder.join("script.py"), "x = 1\ndef f(:\n").unwrap();
    let (code, _, err) = run_in(&folder, &socket, &["script.py"]);
    assert!(code == 1 && err.contains(&format!("  File \"{path}\", line 2\n    def f(:\n")), "{code} {err}");
    assert_eq!(server.ok(AROUND), "(['-c'], None, False)");
}

#[test]
fn code_from_the_command_line_and_from_stdin_can_have_arguments_too() {
    let (mut server, socket) = start();
    let code = "import sys; sys.argv";
    expect(run(&socket, &["-c", code, "a", "-t", "b"]), 0, "['-c', 'a', '-t', 'b']\n", "");
    expect(run(&socket, &["-c", code, "--", "-x"]), 0, "['-c', '-x']\n", "");
    expect(run(&socket, &["-c", code, "-i", "builtin", "--timeout=60"]), 0, "['-c']\n", "");
    expect(feed(&socket, &["-", "a"], code.as_bytes()), 0, "['-', 'a']\n", "");
    assert_eq!(server.ok("sys.argv"), "['-c']");
}

/// Else the second would silently run with the first one's modules, and a stranger's package be taken for a third's.
#[test]
fn each_script_has_the_modules_beside_it_as_they_are_and_nobody_elses() {
    let (_server, socket, folder) = start_with_script();
    for name in ["one", "two"] {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("zz_helper.py"), format!("NAME = {name:?}\n")).unwrap();
        fs::write(folder.join(name).join("run.py"), "import zz_helper\nprint(zz_helper.NAME)\n").unwrap();
    }
    expect(run_in(&folder, &socket, &["one/run.py"]), 0, "one\n", "");
    expect(run_in(&folder, &socket, &["two/run.py"]), 0, "two\n", "");
    fs::write(folder.join("one/zz_helper.py"), "NAME = 'changed'\n").unwrap();
    std::os::unix::fs::symlink(folder.join("one/run.py"), folder.join("link.py")).unwrap();
    expect(run_in(&folder, &socket, &["link.py"]), 0, "changed\n", "");
    fs::write(folder.join("one/late.py"), "def late():\n    import zz_late\n").unwrap();
    fs::write(folder.join("one/zz_late.py"), "").unwrap();
    expect(run_in(&folder, &socket, &["one/late.py"]), 0, "", "");
    let (code, _, err) = run_in(&folder, &socket, &["-c", "late()"]);
    let told = format!("zz_late is the project's own, in {}", folder.join("one").display());
    assert!(code == 1 && err.contains(&told), "{code} {err}");
}

#[test]
fn a_script_that_redirects_its_output_leaves_the_next_cells_theirs() {
    let (_server, socket, folder) = start_with_script();
    fs::write(folder.join("mute.py"), "import sys\nsys.stdout = sys.stderr = open('log', 'w')\nprint('kept')\n")
        .unwrap();
    expect(run_in(&folder, &socket, &["mute.py"]), 0, "", "");
    expect(run_in(&folder, &socket, &["-c", "print('heard'); open('log').read()"]), 0, "heard\n'kept\\n'\n", "");
}

/// Where new Pythons are started instead of forks, they find a script's functions by its `__file__`.
#[test]
fn a_script_can_use_multiprocessing_by_spawn() {
    let (mut server, socket, folder) = start_with_script();
    let script = "import multiprocessing as m\ndef double(n):\n    return 2 * n\nif __name__ == '__main__':\n    \
                  with m.get_context('spawn').Pool(1) as pool:\n        print(pool.map(double, [1, 2]))\n";
    fs::write(folder.join("pool.py"), script).unwrap();
    expect(run_in(&folder, &socket, &["pool.py"]), 0, "[2, 4]\n", "");
    crate::cells::end_and_free(&mut server);
}

// ---- stdin ---------------------------------------------------------------------------------------------------------

#[test]
fn with_stdin_a_cell_and_its_child_processes_read_what_stands_on_the_clients_stdin() {
    let (mut server, socket) = start();
    let code = "import sys\nprint(input(), sys.stdin.readline(), list(sys.stdin), repr(sys.stdin.read()))\ninput()";
    let (exit, out, err) = feed(&socket, &["--stdin", "-c", code], "a\nb\nc\né".as_bytes());
    assert_eq!((exit, out.as_str()), (1, "a b\n ['c\\n', 'é'] ''\n"), "{err}");
    assert!(err.contains("\nEOFError"), "{err}");
    let children = "import os, subprocess\nos.system('cat'); subprocess.run(['wc', '-c']).returncode";
    expect(feed(&socket, &["-c", children, "--stdin"], b"one\ntwo"), 0, "one\ntwo0\n0\n", "");
    expect(feed(&socket, &["--stdin", "-c", "open(0, closefd=False).read()"], b"x"), 0, "'x'\n", "");
    let file = server.folder().path().join("cell.py");
    fs::write(&file, "import sys; sys.argv[1:], len(sys.stdin.buffer.read())").unwrap();
    let much = "0123456789abcde\n".repeat(300_000);
    let words = ["--stdin", file.to_str().unwrap(), "a"];
    expect(feed(&socket, &words, much.as_bytes()), 0, "(['a'], 4800000)\n", "");
    expect(run(&socket, &["--stdin", "-c", "sys.stdin.read()"]), 0, "''\n", "");
    let err = feed(&socket, &["--stdin", "-c", "ran = 1"], b"\xff").2;
    assert!(err.starts_with("mcp-py-client: the stdin is not UTF-8"), "{err}");
    assert_eq!(server.ok("'ran' in globals()"), "False");
}

#[test]
fn more_than_16_mib_on_stdin_is_refused_in_words() {
    let (_server, socket) = start();
    for words in [&["--stdin", "-c", "1"][..], &[]] {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "yes | \"$@\"", "sh"]).arg(binary()).arg("client").args(words);
        let output = shell.env("MCP_PY_SOCKET", &socket).output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{err}");
        assert!(err.contains("mcp-py-client: stdin has more than 16 MiB: put it in a file"), "{err}");
    }
}

// ---- lines that are written over -----------------------------------------------------------------------------------

#[test]
fn of_a_line_that_is_written_over_only_the_last_is_shown_unless_full_is_said() {
    let (server, socket) = start();
    let show = "import sys, time\ndef show(text, to=sys.stdout):\n    to.write(text); to.flush(); time.sleep(0.01)\n";
    let run = |words: &[&str], code: &str| run(&socket, &[words, &["-c", &format!("{show}{code}")]].concat());
    for (code, out, err) in [
        // As tqdm writes, with an end and without one.
        ("for n in range(9): show(f'\\r{n}%|##', sys.stderr)\nprint('', file=sys.stderr)", "", "8%|##\n"),
        ("for n in range(9): show(f'\\r{n}%')\n42", "8%\n42\n", ""),
        // The carriage return behind the text.
        ("print('first')\nfor n in range(9): show(f'{n}%\\r')\nprint('last')", "first\nlast\n", ""),
        ("for n in range(9): show(f'{n}%\\r')", "8%", ""),
        ("print('a\\rb\\rc', end='')", "c", ""),
        // An end of a line.
        ("print('a\\r\\nb\\r\\n', end='')", "a\r\nb\r\n", ""),
        ("show('a\\r'); show('\\nb')", "a\r\nb", ""),
        // What was shown already is not taken back.
        ("show('loading '); show('\\r1%'); show('\\r2%\\n')", "loading \n2%\n", ""),
        // What is written over does not count for the length of the output.
        ("for n in range(20_000): print(f'\\r{n:9}', end='')", "    19999", ""),
    ] {
        expect(run(&[], code), 0, out, err);
    }
    // Notes and tracebacks come behind what stands there, on lines of their own.
    let bar = "show('\\r1%', sys.stderr); show('\\r2%', sys.stderr)\n";
    let err = run(&[], &format!("{bar}1/0")).2;
    assert!(err.starts_with("2%\nTraceback (most"), "{err}");
    let err = run(&["-t", "0.3"], &format!("{bar}while True: pass")).2;
    assert!(err.starts_with("2%\n[mcp-py: interrupted"), "{err}");
    expect(run(&["--full"], "print('a\\rb\\n\\rc', end='')"), 0, "a\rb\n\rc", "");
    // A file gets every byte of what is sent there; what is not sent there is folded all the same.
    let path = server.folder().path().join("out");
    let code = format!("{show}show('\\r1%\\r2%')\n{bar}");
    let child = client(&socket, &["-c", &code]).stdout(File::create(&path).unwrap()).spawn().unwrap();
    expect(said(child), 0, "", "2%");
    assert_eq!(fs::read_to_string(&path).unwrap(), "\r1%\r2%");
}

#[test]
fn text_without_an_end_is_shown_at_once_and_a_terminal_gets_every_byte() {
    let (server, socket) = start();
    let go = server.folder().path().join("go");
    let wait = format!("import os, time\nwhile not os.path.exists({go:?}): time.sleep(0.01)");
    let code = format!("print('Loading ... ', end='', flush=True)\n{wait}\nprint('done')");
    let mut child = client(&socket, &["-c", &code]).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 12]).expect("what is printed before the end of its line");
    File::create(&go).unwrap();
    expect(said(child), 0, "done\n", "");
    let script = "import os, pty, signal, subprocess, sys\nours, theirs = pty.openpty()\nsignal.alarm(60)\n\
                  subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=theirs)\nshown = b''\n\
                  while not shown.endswith(b'\\n'): shown += os.read(ours, 99)\nprint(shown)";
    let mut command = Command::new(python());
    command.args(["-c", script]).arg(binary()).args(["client", "--socket", &socket, "-c", "print('a\\rb\\rc')"]);
    assert_eq!(text(&command.output().unwrap().stdout), "b'a\\rb\\rc\\r\\n'\n");
}

// ---- exit codes ----------------------------------------------------------------------------------------------------

#[test]
fn the_exit_code_says_how_the_cell_ended() {
    let (_server, socket) = start();
    for (words, code) in [
        (&["-c", "1"][..], 0),
        (&["-c", "1/0"], 1),
        (&["-c", "def f(:"], 1),
        (&["-c", "exit()"], 0),
        (&["-c", "exit(3)"], 3),
        (&["-c", "exit(259)"], 3),
        (&["-c", "exit('words')"], 1),
        (&["-t", "0.2", "-c", "while True: pass"], 124),
        (&["-c", "import os; os._exit(0)"], 137),
        (&["-i", "nobody", "-c", "1"], 125),
        (&["--interrupt", "-i", "nobody"], 125),
    ] {
        let (exit, _, err) = run(&socket, words);
        assert_eq!(exit, code, "{words:?}: {err}");
    }
    // A failure of ours has its own beginning, a cell that ends with our code has not.
    let mut broken = Server::with(|builder| builder.under("claude").env("MCP_PY_PYTHON", "/bin/false"));
    let (code, _, err) = run(&socket_of(&mut broken), &["-c", "1"]);
    assert!(code == 125 && err.starts_with("mcp-py-client: interpreter \"builtin\" did not start: "), "{code} {err}");
    expect(run(&socket, &["-c", "exit(125)"]), 125, "", "SystemExit: 125\n");
    // The cell ended by its own choice, with a value: there is no traceback.
    let saves = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: pass\n'partial'";
    let (code, out, err) = run(&socket, &["-t", "0.2", "-c", saves]);
    assert_eq!((code, out.as_str(), err.contains("Traceback")), (124, "'partial'\n", false), "{err}");
    let spinning = client(&socket, &["-c", "print('on', flush=True)\nwhile True: pass"]).spawn().unwrap();
    let mut spinning = spinning;
    spinning.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    expect(run(&socket, &["--interrupt"]), 0, "an interrupt was sent\n", "");
    assert_eq!(said(spinning).0, 130);
    expect(run(&socket, &["--interrupt"]), 0, "nothing was running\n", "");
}

#[test]
fn list_vars_and_reset_say_that_they_wait_behind_a_busy_cell() {
    let (mut server, socket) = start();
    server.ok("x = 5");
    let running = server.start_spinning();
    let mut waiting = client(&socket, &["--list-vars"]).spawn().unwrap();
    let mut told = [0; 29];
    waiting.stderr.as_mut().unwrap().read_exact(&mut told).expect("a note");
    assert_eq!(text(&told), "[mcp-py: waiting for its turn");
    expect(run(&socket, &["--interrupt"]), 0, "an interrupt was sent\n", "");
    assert!(server.wait(running).is_error);
    let (exit, out, _) = said(waiting);
    assert!(exit == 0 && out.contains('x'), "{exit} {out}");
    expect(run(&socket, &["--list-vars"]), 0, &out, "");
}

#[test]
fn wrong_usage_is_exit_2_and_a_line_that_names_the_word_and_nothing_runs() {
    let (mut server, socket) = start();
    let file = server.folder().path().join("x.py");
    fs::write(&file, "ran = 1").unwrap();
    let file = file.to_str().unwrap();
    let file_and_reset = format!("--reset and {file} are two things to do: give one of them");
    for (words, why) in [
        (&["--nonsense"][..], "unknown option --nonsense"),
        (&["--timout", "5", "-c", "ran = 1"], "unknown option --timout; did you mean --timeout?"),
        (&["--list_vars"], "unknown option --list_vars; did you mean --list-vars?"),
        (&["-x", "-c", "ran = 1"], "unknown option -x"),
        (&["-é", "-c", "ran = 1"], "unknown option -é"),
        (&["-c", "ran = 1", "--nonsense"], "unknown option --nonsense"),
        (&["-i"], "-i needs its interpreter"),
        (&["-c"], "-c needs its code"),
        (&["--add", "x"], "--add needs its name and python_path"),
        (&["--stop"], "--stop needs its name"),
        (&["--socket"], "--socket needs its socket"),
        (&["--full=yes", "-c", "ran = 1"], "--full takes no value"),
        (&["-t", "5m", "-c", "ran = 1"], "-t takes seconds, such as 300, not \"5m\""),
        (&["-t", "-1", "-c", "ran = 1"], "-t takes seconds, such as 300, not \"-1\""),
        (&["--timeout=", "-c", "ran = 1"], "-t takes seconds, such as 300, not \"\""),
        (&["-c", "ran = 1", "-c", "ran = 1"], "-c and -c are two things to do: give one of them"),
        (&["--reset", "--list-vars"], "--reset and --list-vars are two things to do: give one of them"),
        (&["--reset", "-c", "ran = 1"], "--reset and -c are two things to do: give one of them"),
        (&["--reset", file], &file_and_reset),
        (&["--save", "-c", "ran = 1"], "--save goes with --add, not with -c"),
        (&["-c", "ran = 1", "--remove"], "--remove goes with --stop, not with -c"),
        (&["--restart"], "--restart goes with --reset, not with code from stdin"),
        (&["--wait", "-t", "5"], "-t goes with -c or FILE, not with --wait"),
        (&["--wait", "--detach"], "--detach goes with -c or FILE, not with --wait"),
        (
            &["--info", "-i", "v"],
            "-i goes with -c or FILE or --wait or --interrupt or --reset or --list-vars, not with --info",
        ),
        (
            &["--history", "--interpreter=v"],
            "--interpreter goes with -c or FILE or --wait or --interrupt or --reset or --list-vars, not with --history",
        ),
        (&["--interpreters", "--stdin"], "--stdin goes with -c or FILE, not with --interpreters"),
        (&["--stdin"], "--stdin goes with FILE or -c: without these stdin is the code"),
        (&["--stdin", "-"], "--stdin goes with FILE or -c: without these stdin is the code"),
        (&["-c", " "], "no code: -c is blank"),
        (&["/dev/null"], "no code: /dev/null is blank"),
    ] {
        expect(run(&socket, words), 2, "", &format!("mcp-py-client: {why} (try --help)\n"));
    }
    expect(feed(&socket, &[], b" \n\t\n"), 2, "", "mcp-py-client: no code: stdin is blank (try --help)\n");
    let (code, _, err) = feed(&socket, &[], b"x = '\xff'");
    assert!(code == 2 && err.contains("the code is not UTF-8"), "{code} {err}");
    assert_eq!(server.call("list_vars", json!({})).text, "No variables defined");
}

#[test]
fn an_option_and_its_value_may_be_one_word() {
    let (_server, socket) = start();
    expect(run("", &["--socket", &socket, "-ibuiltin", "-t60", "-c1 + 1"]), 0, "2\n", "");
    let socket = format!("--socket={socket}");
    expect(run("", &[&socket, "--interpreter=builtin", "--timeout=60.5", "-c", "1 + 1"]), 0, "2\n", "");
    let (code, _, err) = run("", &[&socket, "-inobody", "-c", "1"]);
    assert!(code == 125 && err.contains("nobody"), "{code} {err}");
    let (code, _, err) = run("", &[&socket, "-t0.2", "-c", "while True: pass"]);
    assert!(code == 124 && err.contains("timeout of 0.2 s"), "{code} {err}");
}

// ---- actions -------------------------------------------------------------------------------------------------------

#[test]
fn the_tools_are_options() {
    let (mut server, socket) = start();
    server.ok("x = 5");
    expect(run(&socket, &["--list-vars"]), 0, "x\n", "");
    expect(run(&socket, &["--reset"]), 0, "Scope cleared (1 items removed)\n", "");
    let shown = run(&socket, &["--info"]).1;
    assert!(shown.starts_with("{\n  \"") && shown.ends_with("\n}\n"), "it is indented: {shown}");
    let info: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(info["socket_path"], socket);
    expect(
        run(&socket, &["--add", "other", python(), "--save"]),
        0,
        "Interpreter \"other\" started, and is saved\n",
        "",
    );
    expect(run(&socket, &["-i", "other", "-c", "1 + 1"]), 0, "2\n", "");
    let list: Value = serde_json::from_str(&run(&socket, &["--interpreters"]).1).expect("JSON");
    assert_eq!((&list["result"][1]["name"], &list["result"][1]["source"]), (&json!("other"), &json!("saved")));
    let stopped = "Interpreter \"other\" stopped; its saved configuration is removed\n";
    expect(run(&socket, &["--stop", "other", "--remove"]), 0, stopped, "");
    let (code, out, err) = run(&socket, &["--stop", "other"]);
    assert!(code == 1 && out.is_empty() && err.starts_with("there is no interpreter \"other\""), "{code} {out} {err}");
}

#[test]
fn a_cell_that_calls_the_client_on_its_own_interpreter_is_refused_at_once() {
    let (mut server, socket) = start();
    let call = |words: &str| {
        format!("import subprocess\nsubprocess.run([{:?}, 'client', '--socket', {socket:?}, {words}], capture_output=True, text=True)", binary())
    };
    let told = server.ok(&call("'-c', '1'"));
    assert!(told.contains("returncode=125") && told.contains("it would wait for itself"), "{told}");
    let told = server.ok(&call("'--info'"));
    assert!(told.contains("returncode=0"), "{told}");
}

// ---- ends ----------------------------------------------------------------------------------------------------------

/// A client whose cell prints that it runs, and then spins.
fn spinning(socket: &str) -> Child {
    let mut child =
        client(socket, &["-c", "print('on', flush=True)\nwhile True: pass"]).process_group(0).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    child
}

#[test]
fn ctrl_c_and_a_kill_interrupt_the_clients_cell_and_no_other() {
    let (mut server, socket) = start();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let mut child = spinning(&socket);
        let behind = server.start_exec("'mine'");
        procs::kill(child.id() as i32, signal);
        eventually(DEADLINE, "the client dies", || child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().signal(), Some(signal), "it dies of the signal");
        let result = server.wait(behind);
        assert_eq!((result.text.as_str(), result.is_error), ("'mine'", false));
    }
}

#[test]
fn head_ends_the_client_and_its_cell() {
    let (mut server, socket) = start();
    let line = "\"$0\" client -c 'while True: print(\"line\")' | head -1";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", line]).arg(binary()).env_clear().env("MCP_PY_SOCKET", &socket).env("PATH", "/usr/bin:/bin");
    let output = shell.output().unwrap();
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("line\n", ""));
    assert_eq!(server.ok("'free'"), "'free'");
    // Everything was printed before the reader went. Once the cell then went on until its time-out.
    let mut child = client(&socket, &["-c", "while True: print('x' * 99)"]).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 20_000]).unwrap();
    assert_eq!(server.ok("'free'"), "'free'");
    eventually(DEADLINE, "the client ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGPIPE));
}

#[test]
fn who_comes_by_the_other_door_is_told_of_a_death_too() {
    let (mut server, socket) = start();
    let note = "[mcp-py: before this cell, interpreter \"builtin\" exited with code 9; its variables are gone";
    server.ok("data = 1");
    assert_eq!(run(&socket, &["-c", "import os; os._exit(9)"]).0, 137);
    let result = server.exec("data");
    assert!(result.is_error && result.text.starts_with(note) && result.text.contains("NameError"), "{result:?}");
    expect(run(&socket, &["-c", "1"]), 0, "1\n", "");
    assert!(server.exec("import os; os._exit(9)").text.contains("exited with code 9"));
    assert_eq!(server.ok("2"), "2");
    let (code, out, err) = run(&socket, &["-c", "3"]);
    assert_eq!((code, out.as_str(), err.starts_with(note)), (0, "3\n", true), "{err}");
    expect(run(&socket, &["-c", "4"]), 0, "4\n", "");
}

#[test]
fn a_full_disk_and_a_server_that_dies_are_failures_in_words() {
    let (mut server, socket) = start();
    let mut command = client(&socket, &["-c", "print('x' * 100_000)"]);
    if let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") {
        let (code, _, err) = said(command.stdout(full).spawn().unwrap());
        assert!(code == 125 && err.contains("the answer could not be printed: No space left"), "{code} {err}");
    }
    let child = spinning(&socket);
    server.kill(libc::SIGKILL);
    let (code, _, err) = said(child);
    assert!(code == 125 && err.starts_with("mcp-py-client: the connection ended"), "{code} {err}");
    server.wait_exit(DEADLINE); // until then its listener may still be open
    let (code, _, err) = run(&socket, &["-c", "1"]);
    assert!(code == 125 && err.starts_with(&format!("mcp-py-client: MCP_PY_SOCKET {socket}: ")), "{code} {err}");
}

#[test]
fn two_hundred_calls_in_a_row_are_all_answered() {
    let (_server, socket) = start();
    for number in 0..200 {
        expect(run(&socket, &["-c", &number.to_string()]), 0, &format!("{number}\n"), "");
    }
}

// ---- finding the session -------------------------------------------------------------------------------------------

/// A `ps` that leaves out these tests, under which other tests' servers run; returns a PATH that has it.
pub fn path_without_the_tests(folder: &Folder) -> String {
    let script = format!(
        "#!{}\nimport os\nfor pid in filter(str.isdigit, os.listdir('/proc')):\n    try: text = open('/proc/' + pid + '/stat').read()\n    \
         except OSError: continue\n    name, rest = text.split('(', 1)[1].rsplit(')', 1)\n    \
         if pid != '{}': print(pid, rest.split()[1], {})\n",
        python(),
        std::process::id(),
        if is_on_macos() { "name" } else { "name.split()[0], name.split()[0]" } // the columns that are asked for
    );
    folder.script("ps", &script);
    format!("{}:/usr/bin:/bin", folder.bin().display())
}

#[test]
fn only_a_claude_is_told_of_the_client_and_by_a_name_that_works() {
    for (host, on_path) in [("claude", true), ("claude", false), ("codex", true)] {
        let folder = Folder::new();
        let path = path_without_the_tests(&folder);
        if on_path {
            symlink(binary(), folder.bin().join("mcp-py-client")).unwrap();
        }
        // As it is installed: by a link, which the program's own path is on macOS.
        let mut server = Server::with(|builder| {
            builder.folder(&folder).under(host).env("PATH", &path).arg0("mcp-py-server").args(&[])
        });
        let execute = server.request("tools/list", Value::Null)["result"]["tools"][0].clone();
        let description = execute["description"].as_str().unwrap();
        let name = if on_path { "mcp-py-client".into() } else { format!("{} client", binary().display()) };
        let told = description.contains(&format!("`{name} <<'PY' … PY`"));
        assert_eq!(told, host == "claude", "{host}: {description}");
        assert_eq!(description.contains(&format!("`! {name} -c CODE`")), told, "{host}: {description}");
        assert!(description.chars().count() < 2_000);
        assert_eq!(server.request("tools/list", Value::Null)["result"]["tools"][0], execute, "it varies");
    }
}

/// A host of this name that starts a server, and beside it runs what we give it, each in a shell of its own.
struct Host {
    server: Server,
    folder: Folder,
    count: usize,
}

impl Host {
    fn new(name: &str) -> Host {
        Host::with(name, |builder| builder)
    }

    fn with(name: &str, configure: impl FnOnce(crate::client::Builder) -> crate::client::Builder) -> Host {
        let folder = Folder::new();
        symlink(binary(), folder.bin().join("mcp-py-client")).unwrap();
        let at = folder.path().display();
        folder.script(
            "launch",
            &format!(
                "#!/bin/sh\n(n=0; while :; do n=$((n+1)); while [ ! -e '{at}/run'$n ]; do sleep 0.02; done\n\
                 PATH='{at}/bin:/usr/bin:/bin' sh '{at}/run'$n >'{at}/out'$n 2>'{at}/err'$n </dev/null\n\
                 echo $? >'{at}/tmp'$n; mv '{at}/tmp'$n '{at}/code'$n; done) </dev/null >/dev/null 2>&1 &\n\
                 exec '{}' server\n",
                binary().display()
            ),
        );
        let mut server = Server::with(|builder| configure(builder.folder(&folder).under(name).arg0("launch")));
        socket_of(&mut server); // it is published
        Host { server, folder, count: 0 }
    }

    fn run(&mut self, script: &str) -> Said {
        self.count += 1;
        let file = |name: &str| self.folder.path().join(format!("{name}{}", self.count));
        fs::write(file("new"), script).unwrap();
        fs::rename(file("new"), file("run")).unwrap();
        eventually(DEADLINE, "the shell under the host ends", || file("code").exists());
        let read = |name: &str| fs::read_to_string(file(name)).unwrap();
        (read("code").trim().parse().unwrap(), read("out"), read("err"))
    }
}

/// Runs the words after it where no Unix socket can be made (seccomp(2)), as in the sandbox of Claude Code.
#[cfg(target_os = "linux")]
const SANDBOX: &str = r"
import ctypes, os, struct, sys
number = {'x86_64': 41, 'aarch64': 198}[os.uname().machine]  # socket(2)
step = lambda code, yes, no, value: struct.pack('HBBI', code, yes, no, value)
steps = b''.join([step(0x20, 0, 0, 0), step(0x15, 0, 3, number), step(0x20, 0, 0, 16), step(0x15, 0, 1, 1),
                  step(0x06, 0, 0, 0x00050001), step(0x06, 0, 0, 0x7fff0000)])  # AF_UNIX: EPERM
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_char_p)]
libc, program = ctypes.CDLL(None), Program(6, steps)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program)) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
#[cfg(target_os = "linux")]
fn where_a_sandbox_forbids_sockets_the_client_says_so() {
    let (_server, socket) = start();
    let mut command = Command::new(python());
    command.args(["-c", SANDBOX]).arg(binary()).args(["client", "-c", "1"]).stdin(Stdio::null());
    let output = command.env_remove("MCP_PY_SOCKET").output().unwrap();
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{err}");
    assert!(err.contains(&format!("  {socket}: Operation not permitted")), "{err}");
    assert!(err.contains(": a sandbox or another user may forbid it\n") && err.contains("README, Security"), "{err}");
    assert_eq!(err.matches("may forbid it").count(), 1, "it is said once: {err}");
}

const HEREDOC: &str = "mcp-py-client <<'PY'\nprint(x * 2)\nPY\n";

#[test]
fn a_shell_under_the_same_host_finds_the_agents_python() {
    for name in ["claude", "codex"] {
        let mut host = Host::new(name);
        host.server.ok("x = 5");
        expect(host.run(HEREDOC), 0, "10\n", "");
        expect(host.run("bash -c 'sh -c \"mcp-py-client -c x; exit \\$?\"; exit $?'"), 0, "5\n", "");
    }
}

#[test]
fn of_nested_hosts_the_nearer_one_has_the_session() {
    let mut outer = Host::new("claude");
    outer.server.ok("x = 'outer'");
    let inner = outer.folder.path().join("inner");
    // Another claude below the first, with a server of its own.
    let claude = outer.folder.bin().join("claude");
    let script = format!(
        "mkfifo '{0}.in'\n'{1}' -c \"'{2}' server <'{0}.in' >'{0}.out' & \
         exec 3>'{0}.in'; echo '{3}' >&3; while [ ! -s '{0}.out' ]; do sleep 0.02; done; mcp-py-client -c x; exec 3>&-; wait\"\n",
        inner.display(),
        claude.display(),
        binary().display(),
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "execute", "arguments": {"code": "x = 4711"}}})
            .to_string()
            .replace('"', "\\\""),
    );
    let (code, out, err) = outer.run(&script);
    assert_eq!((code, out.as_str()), (0, "4711\n"), "{err}");
    expect(outer.run("mcp-py-client -c x"), 0, "'outer'\n", "");
}

#[test]
fn an_unrelated_process_is_told_the_sessions_and_the_socket_to_give() {
    let (mut server, socket) = start();
    let mut command = Command::new(binary());
    command.args(["client", "-c", "1"]).env_clear().env("PATH", path_without_the_tests(server.folder()));
    let output = command.output().unwrap();
    let err = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(125), ""), "{err}");
    assert!(err.starts_with("mcp-py-client: no session for this shell: "), "{err}");
    let project = server.folder().project();
    let line = err.lines().find(|line| line.ends_with(&format!(" s): --socket {socket}"))).unwrap_or_default();
    assert!(line.starts_with(&format!("  {} (claude, server pid {}, up ", project.display(), server.pid())), "{err}");
}

#[test]
fn the_session_id_finds_a_server_that_is_no_ancestors() {
    let id = format!("session-{}", std::process::id());
    let mut server = Server::with(|builder| builder.under("claude").env("CLAUDE_CODE_SESSION_ID", &id));
    server.ok("x = 'found'");
    socket_of(&mut server);
    let mut command = Command::new(binary());
    command.args(["client", "-c", "x"]).env_clear().env("PATH", path_without_the_tests(server.folder()));
    command.env("CLAUDE_CODE_SESSION_ID", &id);
    let output = command.output().unwrap();
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("'found'\n", Some(0)),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn when_the_published_name_is_dead_the_other_server_of_the_host_is_found() {
    let mut host = Host::new("claude");
    host.server.ok("x = 5");
    let shared = PathBuf::from(socket_of(&mut host.server));
    fs::remove_file(&shared).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&shared).unwrap()); // dead now
    expect(host.run(HEREDOC), 0, "10\n", "");
}

/// A listener in a process of its own; it writes what it gets into a file.
fn fake_server(folder: &Folder, socket: &Path, uid: Option<u32>) -> (Child, PathBuf) {
    let got = folder.path().join("got");
    fs::write(&got, "").unwrap();
    let script = format!(
        "import os, socket, sys\nuid = {}\ngot = open({got:?}, 'ab', 0)\nos.setuid(uid) if uid else None\n\
         s = socket.socket(socket.AF_UNIX)\ns.bind({socket:?})\ns.listen()\nprint('on', flush=True)\n\
         while True:\n    c, _ = s.accept()\n    c.settimeout(1)\n    try: got.write(c.recv(1000))\n    except OSError: pass\n    c.close()",
        uid.map_or("None".into(), |uid| uid.to_string())
    );
    let mut child = Command::new(python()).args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).expect("it listens");
    (child, got)
}

#[test]
fn a_server_under_another_host_and_one_of_another_user_get_not_a_byte() {
    let root = fs::metadata("/proc/self").is_ok_and(|is| std::os::unix::fs::MetadataExt::uid(&is) == 0);
    for uid in [None, Some(65534)] {
        if uid.is_some() && !root {
            continue; // only root can be another user
        }
        let mut host = Host::new("claude");
        let socket = PathBuf::from(socket_of(&mut host.server));
        let own = format!("{}-{}.sock", socket.display().to_string().trim_end_matches(".sock"), host.server.pid());
        for name in [&socket, Path::new(&own)] {
            fs::remove_file(name).unwrap();
        }
        path_without_the_tests(&host.folder); // its shell has that folder on PATH
        let (mut fake, got) = fake_server(&host.folder, &socket, uid);
        let (code, out, err) = host.run("mcp-py-client -c 'secret = 1'");
        fake.kill().unwrap();
        fake.wait().unwrap();
        fs::remove_file(&socket).unwrap();
        assert_eq!((code, out.as_str()), (125, ""), "{err}");
        let why = match uid {
            None => format!("{}: its process {} is not under {}", socket.display(), fake.id(), host.server.outer_pid()),
            Some(uid) => format!("{} belongs to uid {uid}, you are 0", socket.display()),
        };
        assert!(err.contains(&why), "{err}");
        let bytes = fs::read(&got).unwrap();
        assert!(!text(&bytes).contains("secret"), "{}", text(&bytes));
        assert!(uid.is_none() || bytes.is_empty(), "{}", text(&bytes));
    }
}

#[test]
fn a_server_that_never_answers_holds_up_the_search_for_seconds_only() {
    let silent = format!("/tmp/python-interpreter-{}-silent.sock", std::process::id());
    let _ = fs::remove_file(&silent);
    let listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let folder = Folder::new();
    let mut command = Command::new(binary());
    command.args(["client", "-c", "1"]).env_clear().env("PATH", path_without_the_tests(&folder));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let in_time = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually(DEADLINE, "the client gives up", || child.try_wait().unwrap().is_some());
    }));
    fs::remove_file(&silent).unwrap();
    drop(listener); // and with it the client's wait
    let (code, _, err) = said(child);
    assert!(in_time.is_ok() && code == 125 && err.contains("no session for this shell"), "{code} {err}");
}

#[test]
fn what_is_given_as_socket_and_is_none_is_said() {
    let folder = Folder::new();
    let (file, nowhere) = (folder.path().join("file"), folder.path().join("nowhere"));
    fs::write(&file, "").unwrap();
    for path in [&file, &nowhere] {
        let (code, out, err) = run("", &["--socket", path.to_str().unwrap(), "-c", "1"]);
        assert_eq!((code, out.as_str()), (125, ""));
        assert!(err.starts_with(&format!("mcp-py-client: {}: ", path.display())), "{err}");
    }
}

/// A full backlog refuses on macOS, for a moment. The model refuses the first three connections.
#[test]
fn a_server_that_is_busy_for_a_moment_is_reached() {
    let (_server, socket) = start();
    let mut command = client(&socket, &["-c", "6 * 7"]);
    expect(said(command.env("MODEL_BUSY", "3").spawn().unwrap()), 0, "42\n", "");
}
