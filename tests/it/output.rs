//! What a cell answers: stdout, stderr, notes, then the value or the traceback. Everything that was printed is in the
//! answer, in order, whoever printed it (I4). A text of more than 25,000 characters shows its first 20,000 and its last
//! 5,000, and names a file that has every byte.

use crate::cells::{check, failure, has, lacks, py};
use crate::client::{python, Server, DEADLINE};
use crate::procs;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const RULE: &str = "==================================================";

/// A long answer, taken apart.
struct Cut {
    head: String,
    /// The line that counts what is left out.
    line: String,
    tail: String,
    /// The number after `# Original size: `.
    size: String,
    path: PathBuf,
    /// What follows the block, with its first newline.
    rest: String,
}

/// Takes an answer apart that must be cut, and whose block must have the promised form.
#[track_caller]
fn cut(server: &mut Server, text: &str) -> Cut {
    let apart = || {
        let (shown, block) = text.split_once(&format!("\n\n{RULE}\n# OUTPUT TRUNCATED\n# Original size: "))?;
        let (size, block) = block.split_once(" chars\n# Full output: ")?;
        let (path, rest) = block.split_once(&format!("\n{RULE}"))?;
        let chars: Vec<char> = shown.chars().collect();
        let middle: String = chars.get(20_000..chars.len().checked_sub(5_000)?)?.iter().collect();
        Some(Cut {
            head: chars[..20_000].iter().collect(),
            line: middle.strip_prefix('\n')?.strip_suffix('\n')?.to_string(),
            tail: chars[chars.len() - 5_000..].iter().collect(),
            size: size.to_string(),
            path: path.into(),
            rest: rest.to_string(),
        })
    };
    let Some(cut) = apart() else { server.fail(&format!("not cut as promised: {text:?}")) };
    if cut.line.contains('\n') || !cut.path.is_file() {
        server.fail(&format!("not one line, or no file: {:?} {:?}", cut.line, cut.path));
    }
    cut
}

fn with_commas(number: usize) -> String {
    let digits = number.to_string();
    let place = |at: usize| if at > 0 && (digits.len() - at) % 3 == 0 { "," } else { "" };
    digits.char_indices().map(|(at, digit)| format!("{}{digit}", place(at))).collect()
}

/// The answer is cut, and what was printed is exactly this; the file holds it.
#[track_caller]
fn check_cut(server: &mut Server, text: &str, whole: &str) {
    let cut = cut(server, text);
    let chars: Vec<char> = whole.chars().collect();
    let part = |range: std::ops::Range<usize>| chars[range].iter().collect::<String>();
    assert_eq!(cut.head, part(0..20_000));
    assert_eq!(cut.tail, part(chars.len() - 5_000..chars.len()));
    has(server, &cut.line, &["[mcp-py: ", &with_commas(chars.len() - 25_000), "left out"]);
    assert_eq!(cut.size, with_commas(chars.len()));
    assert_eq!(cut.rest, "");
    assert!(fs::read(&cut.path).unwrap() == whole.as_bytes(), "the file differs");
}

/// Lines of ten characters, all different.
fn lines(count: usize) -> String {
    (0..count).map(|n| format!("{n:09}\n")).collect()
}

// ---- order and completeness ----------------------------------------------------------------------

#[test]
fn output_of_all_kinds_arrives_in_order_and_whole() {
    let mut server = Server::start();
    check(
        &mut server,
        "
        import os, subprocess, sys
        print('1 print')
        os.system('echo 2 system')
        sys.stdout.write('3 write\\n')
        subprocess.run(['echo', '4 subprocess'])
        os.write(1, b'5 os.write\\n')
        child = subprocess.Popen(['sh', '-c', 'echo 6 popen'])
        child.wait()
        print('7 print', flush=True)
        if os.fork() == 0:
            print('8 fork')
            os._exit(0)
        os.wait()
        sys.stdout.buffer.write(b'9 buffer\\n')
        sys.stdout.flush()
        print('10 no newline', end='')
        ",
        "1 print\n2 system\n3 write\n4 subprocess\n5 os.write\n6 popen\n7 print\n8 fork\n9 buffer\n10 no newline",
    );
    check(
        &mut server,
        "sys.stderr.write('err\\n'); print('out', end='')\nos.system('echo child >&2')",
        "out\nerr\nchild\n0",
    );
}

#[test]
fn output_of_c_code_is_not_left_in_its_buffer() {
    let mut server = Server::start();
    check(&mut server, "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.printf(b'from C %d', 3)", "from C 3\n8");
    check(&mut server, "print('py')\nn = libc.puts(b'C')\nn = libc.fflush(None)\nprint('py again')", "py\nC\npy again");
    check(&mut server, "n = libc.puts(b'the end')", "the end");
    let text = failure(&mut server, "n = libc.puts(b'before the error')\n1/0");
    has(&mut server, &text, &["before the error\nTraceback"]);
    check(&mut server, "'next'", "'next'");
}

#[test]
fn a_thread_that_is_blocked_on_a_c_stream_holds_up_no_cell() {
    let mut server = Server::start();
    server.ok(&py("
        import ctypes, os, threading
        libc = ctypes.CDLL(None)
        libc.fdopen.restype = ctypes.c_void_p
        reading, writing = os.pipe()
        stream = libc.fdopen(reading, b'r')
        got = []
        thread = threading.Thread(target=lambda: got.append(libc.fgetc(ctypes.c_void_p(stream))))
        thread.start()
        "));
    check(&mut server, "n = libc.puts(b'still heard')", "still heard");
    check(&mut server, "os.write(writing, b'A'); thread.join(); got", "[65]");
}

#[test]
fn no_byte_is_late_or_early_however_a_cell_ends() {
    let mut server = Server::start();
    server.ok("import os, subprocess, sys");
    let sizes = [0, 1, 4_095, 4_096, 4_097, 16_000, 24_900];
    for round in 0..200 {
        let size = sizes[round % sizes.len()];
        let write = match round % 4 {
            0 => format!("os.write(1, b'x' * {size})"),
            1 => format!("sys.stdout.write('x' * {size})"),
            2 => format!("subprocess.call(['printf', 'x' * {size}])"),
            _ => format!("sys.stderr.write('x' * {size})"),
        };
        let expected = "x".repeat(size);
        let (end, expected) = match round % 3 {
            0 => ("None", expected),
            1 => ("print(end='')", expected),
            _ => (
                "'end'",
                [expected, "'end'".into()]
                    .iter()
                    .filter(|part| !part.is_empty())
                    .cloned()
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
        };
        check(&mut server, &format!("n = {write}\n{end}"), &expected);
    }
}

#[test]
fn what_is_printed_between_cells_is_shown_once_with_the_next_and_said_to_be_so() {
    let mut server = Server::start();
    let (start, flag) = (server.flag(), server.flag());
    server.ok(&format!("import os, subprocess, threading, time\nstart, flag = {start:?}, {flag:?}"));
    let by_thread = "
        def late():
            while not os.path.exists(start): time.sleep(0.005)
            print('late words')
            open(flag, 'w').close()
        threading.Thread(target=late).start()
        ";
    let by_child = "
        child = subprocess.Popen(['sh', '-c', '''
            while ! [ -e \"$0\" ]; do sleep 0.01; done; echo late words; echo late error >&2; touch \"$1\"
        ''', start, flag])
        ";
    for code in [by_thread, by_child] {
        let _ = (fs::remove_file(&start), fs::remove_file(&flag));
        check(&mut server, code, "");
        fs::write(&start, "").unwrap();
        server.expect_file(&flag);
        let text = server.ok("print('own words')\n6 * 7");
        assert!(
            text.starts_with("own words\n[mcp-py: output from between the cells") && text.ends_with("]\n42"),
            "{text}"
        );
        assert_eq!(text.matches("late words").count(), 1, "{text}");
        assert_eq!(text.contains("late error"), code == by_child, "{text}");
        check(&mut server, "print('own words')\n6 * 7", "own words\n42");
    }
}

#[test]
fn what_a_child_of_an_earlier_cell_prints_during_a_cell_belongs_to_that() {
    let mut server = Server::start();
    let (start, flag) = (server.flag(), server.flag());
    server.ok(&format!(
        "import os, subprocess, time\nchild = subprocess.Popen(['sh', '-c', \
         'while ! [ -e \"$0\" ]; do sleep 0.01; done; echo from the child; touch \"$1\"', {start:?}, {flag:?}])"
    ));
    let code =
        format!("open({start:?}, 'w').close()\nwhile not os.path.exists({flag:?}): time.sleep(0.01)\nprint('own')");
    check(&mut server, &code, "from the child\nown");
}

#[test]
fn what_is_in_the_pipes_when_a_cell_begins_is_not_its_own() {
    let mut server = Server::start();
    let lines: String = (1..=3_000).map(|n| format!("{n}\n")).collect(); // any system's pipe holds that
    server.ok("import subprocess");
    for _ in 0..20 {
        let (start, flag) = (server.flag(), server.flag());
        server.ok(&format!(
            "child = subprocess.Popen(['sh', '-c', \
             'while ! [ -e \"$0\" ]; do sleep 0.01; done; seq 1 3000; touch \"$1\"', {start:?}, {flag:?}])"
        ));
        // The server sleeps until the output is there and the next cell is asked for: then it finds both at once.
        let pid = server.pid();
        procs::kill(pid, libc::SIGSTOP);
        fs::write(&start, "").unwrap();
        server.expect_file(&flag);
        let id = server.start_exec("print('own')\n5");
        procs::kill(pid, libc::SIGCONT);
        let text = server.wait(id).text;
        let size = with_commas(lines.len());
        assert!(text.starts_with("own\n[mcp-py: output from between the cells") && text.ends_with("]\n5"), "{text}");
        has(&mut server, &text, &[&size, ":\n1\n2\n3\n", "\n2999\n3000\n"]);
    }
}

#[test]
fn much_output_from_between_cells_is_shown_by_its_ends_and_whole_in_a_file() {
    let mut server = Server::start();
    let whole: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    server.ok("import subprocess");
    // Several times: the server may be in the middle of reading it when the next cell comes.
    for _ in 0..15 {
        let (start, flag) = (server.flag(), server.flag());
        server.ok(&format!(
            "child = subprocess.Popen(['sh', '-c', \
             'while ! [ -e \"$0\" ]; do sleep 0.01; done; seq 1 100000; touch \"$1\"', {start:?}, {flag:?}])"
        ));
        fs::write(&start, "").unwrap();
        server.expect_file(&flag);
        let text = server.ok("print('own')\n5");
        assert!(text.starts_with("own\n[mcp-py: output from between the cells") && text.ends_with("]\n5"), "{text}");
        assert!(text.chars().count() < 11_000, "{} characters", text.chars().count());
        has(&mut server, &text, &[":\n1\n2\n3\n", "\n99999\n100000\n", "left out", &with_commas(whole.len())]);
        let path = text.split_once("whole in ").and_then(|(_, rest)| rest.split_once(":\n")).expect("a path").0;
        assert!(fs::read_to_string(path).unwrap() == whole, "the file differs");
        check(&mut server, "5", "5");
    }
}

// ---- how the text is put together ----------------------------------------------------------------

#[test]
fn the_text_is_stdout_stderr_notes_and_then_the_result_or_the_traceback() {
    let mut server = Server::start();
    server.ok("import os, sys\ndef err(text): sys.stderr.write(text)");
    for (code, text) in [
        ("err('err\\n'); print('out')\n5", "out\nerr\n5"),
        ("err('err'); print('out')\n5", "out\nerr\n5"),
        ("err('err\\n')\n5", "err\n5"),
        ("print('out')\nerr('err\\n')", "out\nerr"),
        // One trailing newline of each is trimmed, and only one.
        ("print('out\\n')", "out\n"),
        ("print('out\\n\\n')\nerr('err\\n\\n')\n5", "out\n\n\nerr\n\n5"),
        ("print()\n5", "\n5"),
        ("print('  out  ')", "  out  "),
        ("print('\\n out')", "\n out"),
        ("print('out\\r\\n', end='')", "out\r"),
        ("print('')", ""),
        ("''", "''"),
    ] {
        check(&mut server, code, text);
    }
    // A note (here: of a descriptor that was mended) stands between the output and the result or the traceback.
    for (end, last) in [("6 * 7", "]\n42"), ("1/0", "\nZeroDivisionError: division by zero")] {
        let text = server.exec(&format!("print('out')\nerr('err')\nos.close(1)\n{end}")).text;
        assert!(text.starts_with("out\nerr\n[mcp-py: ") && text.ends_with(last), "{text}");
        let notes = text.lines().filter(|line| line.starts_with("[mcp-py: ") && line.ends_with(']')).count();
        assert_eq!(notes, 1, "{text}");
    }
}

// ---- truncation ----------------------------------------------------------------------------------

#[test]
fn twenty_five_thousand_characters_are_whole_and_one_more_is_cut() {
    let mut server = Server::start();
    server.ok("import sys");
    for character in ["x", "é", "🐍", "\0"] {
        let whole = character.repeat(25_000);
        let literal = if character == "\0" { "\\0" } else { character };
        check(&mut server, &format!("print('{literal}' * 25_000)"), &whole);
        let text = server.ok(&format!("print('{literal}' * 25_001, end='')"));
        check_cut(&mut server, &text, &character.repeat(25_001));
    }
    // The newlines between the parts count, a trailing one does not, the traceback does not.
    let both = |out: usize, err: usize| format!("print('o' * {out})\nprint('e' * {err}, file=sys.stderr)");
    check(&mut server, &both(12_500, 12_499), &format!("{}\n{}", "o".repeat(12_500), "e".repeat(12_499)));
    let text = server.ok(&both(12_500, 12_500));
    assert_eq!(cut(&mut server, &text).size, "25,002");
    check(&mut server, "class R:\n    def __repr__(self): return 'r' * 25_000\nR()", &"r".repeat(25_000));
    let text = server.ok("print('o')\nR()");
    cut(&mut server, &text);
    let text = failure(&mut server, "print('o' * 25_000)\n1/0");
    assert!(text.starts_with(&format!("{}\nTraceback", "o".repeat(25_000))), "{text}");
    lacks(&mut server, &text, &["TRUNCATED"]);
}

#[test]
fn long_output_shows_its_ends_and_a_block_that_says_where_the_whole_is() {
    let mut server = Server::start();
    let whole = lines(3_000) + "the end";
    let text = server.ok("text = ''.join('%09d\\n' % n for n in range(3_000)) + 'the end'\nprint(text, end='')");
    check_cut(&mut server, &text, &whole);
    let path = cut(&mut server, &text).path;
    let block = format!(
        "\n\n{RULE}\n# OUTPUT TRUNCATED\n# Original size: 30,007 chars\n# Full output: {}\n{RULE}",
        path.display()
    );
    assert!(text.ends_with(&block), "{}", &text[text.len() - 400..]);
    // In several writes, by a child, and where a character is cut in two by a boundary.
    let text = server.ok("for n in range(3_000): print('%09d' % n)\nprint('the end', end='')");
    check_cut(&mut server, &text, &whole);
    let text = server.ok("import os; os.system('seq 1 200000; printf end'); None");
    check_cut(&mut server, &text, &((1..=200_000).map(|n| format!("{n}\n")).collect::<String>() + "end"));
    for shift in 0..4 {
        let text = server.ok(&format!("print('x' * {shift} + 'é🐍✓' * 300_000, end='')"));
        check_cut(&mut server, &text, &("x".repeat(shift) + &"é🐍✓".repeat(300_000)));
    }
}

#[test]
fn the_file_holds_every_byte_also_of_stderr_and_the_result() {
    let mut server = Server::start();
    let text = server.ok(&py("
        import os, sys
        every = bytes(range(256)) * 400
        n = os.write(1, every)
        print('e' * 100, file=sys.stderr)
        "));
    let path = cut_path(&text);
    let bytes = fs::read(&path).unwrap();
    let every: Vec<u8> = (0..400).flat_map(|_| 0..=255).collect();
    let errors = format!("{}\n", "e".repeat(100));
    // Between the streams it is as the server saw it; within each it is exact.
    let at = bytes.windows(errors.len()).position(|window| window == errors.as_bytes()).expect("stderr in the file");
    assert!([&bytes[..at], &bytes[at + errors.len()..]].concat() == every, "the bytes of stdout differ");

    let text = server.ok("print('o' * 30_000)\nprint('e' * 10, file=sys.stderr)\n'the result'");
    let cut = cut(&mut server, &text);
    let file = fs::read_to_string(&cut.path).unwrap();
    assert!(
        file.ends_with("\n'the result'") && file.contains(&"o".repeat(30_000)) && file.contains("eeeeeeeeee"),
        "{file}"
    );
    assert_eq!(cut.size, with_commas(file.chars().count()));
    assert!(cut.tail.ends_with("\neeeeeeeeee\n'the result'"), "{}", cut.tail);
}

fn cut_path(text: &str) -> PathBuf {
    let path = text.split_once("# Full output: ").and_then(|(_, rest)| rest.lines().next());
    path.expect("an answer that names its file").into()
}

#[test]
fn a_huge_repr_is_cut_like_output() {
    let mut server = Server::start();
    for size in [30_000, 262_144, 262_145, 10_000_000] {
        let text = server.ok(&format!("'é' * {size}"));
        check_cut(&mut server, &text, &format!("'{}'", "é".repeat(size)));
    }
    let text = server.ok("print('first')\n'x' * 10_000_000");
    let cut = cut(&mut server, &text);
    assert!(cut.head.starts_with("first\n'xxx") && cut.tail.ends_with("xxx'"));
    assert!(fs::read_to_string(&cut.path).unwrap() == format!("first\n'{}'", "x".repeat(10_000_000)));
    check(&mut server, "6 * 7", "42");
}

#[test]
fn output_never_cuts_away_a_traceback_or_a_note() {
    let mut server = Server::start();
    let text = failure(&mut server, "import os\nprint('x' * 100_000)\nos.close(2)\n1/0  # here");
    let rest = cut(&mut server, &text).rest;
    assert!(rest.starts_with("\n[mcp-py: ") && rest.ends_with("\nZeroDivisionError: division by zero"), "{rest}");
    has(&mut server, &rest, &["]\nTraceback (most recent call last):\n", "1/0  # here"]);
}

#[test]
fn a_traceback_has_a_limit_of_its_own_and_keeps_its_ends() {
    let mut server = Server::start();
    for output in ["", "print('x' * 30_000)\n"] {
        let code = format!("{output}raise ValueError('a' * 30_000 + ' THE END')");
        let text = failure(&mut server, &code);
        let trace = &text[text.find("Traceback (most recent call last):").expect("its beginning")..];
        assert!(trace.ends_with("aaa THE END") && trace.contains("left out"), "{trace}");
        assert!((9_900..10_200).contains(&trace.chars().count()), "{} characters", trace.chars().count());
    }
    let text = failure(&mut server, "raise ValueError('é' * 9_000)");
    assert!(text.ends_with(&"é".repeat(9_000)), "less than 10,000 characters are whole: {text}");
    failure(&mut server, "raise ValueError('x' * 50_000_000)");
    check(&mut server, "6 * 7", "42");
}

// ---- files ---------------------------------------------------------------------------------------

#[test]
fn output_files_are_their_owners_alone_and_their_names_never_collide() {
    let mut server = Server::start();
    let mut paths: Vec<PathBuf> = (0..20).map(|_| cut_path(&server.ok("print('x' * 30_000)"))).collect();
    let dir = paths[0].parent().unwrap().to_path_buf();
    assert_eq!(dir.parent(), Some(server.folder().tmp().as_path()), "under TMPDIR");
    assert!(dir.file_name().unwrap().to_string_lossy().starts_with("python-interpreter-"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&dir), 0o700);
    for path in &paths {
        assert_eq!(mode(path), 0o600);
        assert_eq!(path.parent(), Some(dir.as_path()));
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let shape: String = name.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "output_00000000_000000_000.txt", "{name}");
    }
    // Interpreters share the directory.
    server.call("add_interpreter", json!({"name": "other", "python_path": python()}));
    let text = server.call("execute", json!({"interpreter": "other", "code": "print('x' * 30_000)"})).text;
    paths.push(cut_path(&text));
    assert_eq!(paths[20].parent(), Some(dir.as_path()));
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 21);
    server.finish(DEADLINE);
    assert!(!dir.exists(), "it is removed at the end");
}

#[test]
fn output_that_fits_makes_no_file() {
    let mut server = Server::start();
    server.ok("print('x' * 25_000)");
    let folder = server.folder().clone();
    let files: usize = folder.output_dirs().iter().map(|dir| fs::read_dir(dir).unwrap().count()).sum();
    assert_eq!(files, 1, "session.py alone");
}

#[test]
fn where_no_file_can_be_written_the_answer_says_so_and_has_the_ends() {
    let mut server = Server::start();
    let folder = server.folder().clone();
    check(&mut server, "1", "1");
    for dir in folder.output_dirs() {
        fs::remove_dir_all(dir).unwrap();
    }
    fs::remove_dir(folder.tmp()).unwrap();
    fs::write(folder.tmp(), "no directory").unwrap();
    let text = server.ok("print('x' * 300_000)\n'the result'");
    assert!(text.starts_with(&"x".repeat(20_000)) && text.contains("300,0"), "{text}");
    has(&mut server, &text, &["# OUTPUT TRUNCATED", "\n[mcp-py: ", "file"]);
    fs::remove_file(folder.tmp()).unwrap();
    fs::create_dir(folder.tmp()).unwrap();
    let text = server.ok("print('x' * 30_000, end='')");
    check_cut(&mut server, &text, &"x".repeat(30_000));
}

#[test]
fn where_tmpdir_does_not_exist_tmp_has_the_files() {
    let mut server = Server::with(|builder| builder.env("TMPDIR", "/nowhere/at/all"));
    let text = server.ok("print('x' * 30_000, end='')");
    check_cut(&mut server, &text, &"x".repeat(30_000));
    assert!(cut_path(&text).starts_with("/tmp"), "{text}");
    assert_eq!(server.finish(DEADLINE), Some(0)); // by itself: the harness removes nothing there
}

/// Writes this many bytes and tells how many.
fn flood(bytes: u64) -> String {
    format!(
        "import os\nline = b'0123456789abcde\\n'\nleft = {bytes}\nwhile left:\n    \
         left -= os.write(1, (line * 65_536)[:min(left, 1 << 20)])"
    )
}

#[test]
fn a_gigabyte_of_output_is_kept_whole_in_little_memory_and_more_than_that_is_said() {
    let mut server = Server::with(|builder| builder.env("MCP_PY_WAIT", "none"));
    let patience = Duration::from_secs(180);
    let run = |server: &mut Server, bytes: u64| {
        let id = server.start_exec(&flood(bytes));
        let text = server.wait_within(id, patience).text;
        let cut = cut(server, &text);
        assert!(cut.head.starts_with("0123456789abcde\n0123456789abcde\n"));
        assert_eq!(cut.size, with_commas(bytes as usize));
        cut
    };
    let first = run(&mut server, 30_000);

    let billion = run(&mut server, 1_000_000_000);
    assert!(billion.tail.ends_with("\n0123456789abcde") && billion.rest.is_empty(), "{}", billion.rest);
    let mut file = fs::File::open(&billion.path).unwrap();
    let mut chunk = vec![0; 1 << 20];
    let expected = b"0123456789abcde\n".repeat(65_536);
    let mut size = 0;
    loop {
        let count = read_full(&mut file, &mut chunk);
        assert!(chunk[..count] == expected[..count], "the file differs after {size} bytes");
        size += count;
        if count < chunk.len() {
            break;
        }
    }
    assert_eq!(size, 1_000_000_000);
    let pid = server.pid();
    let peak = procs::peak_rss_kb(pid);
    assert!(peak < 10 * 1024, "the server had {peak} KiB");
    fs::remove_file(&billion.path).unwrap();

    // A gibibyte is what a file holds, four what a session keeps; then the oldest go, and it is said.
    for _ in 0..3 {
        let cut = run(&mut server, (1 << 30) + 1_000_000);
        assert_eq!(fs::metadata(&cut.path).unwrap().len(), 1 << 30);
        has(&mut server, &cut.rest, &["\n[mcp-py: ", "1 GiB"]);
        fs::remove_file(&cut.path).unwrap();
    }
    assert!(first.path.exists());
    let last = run(&mut server, 200_000_000);
    has(&mut server, &last.rest, &["\n[mcp-py: ", "4 GiB"]);
    assert!(!first.path.exists() && fs::metadata(&last.path).unwrap().len() == 200_000_000);
    let peak = procs::peak_rss_kb(pid);
    assert!(peak < 10 * 1024, "the server had {peak} KiB");
}

fn read_full(file: &mut fs::File, chunk: &mut [u8]) -> usize {
    use std::io::Read;
    let mut count = 0;
    while count < chunk.len() {
        match file.read(&mut chunk[count..]).unwrap() {
            0 => break,
            more => count += more,
        }
    }
    count
}
