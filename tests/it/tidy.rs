//! Promises about the source itself, README.md and tests/README.md.
//!
//! For this, commands stand in ```sh blocks in both. In README.md, `Tools and client` and `Troubleshooting` have a
//! table each. In tests/README.md, the session of `By hand` is a heredoc of the command that starts the server, its answers
//! stand in the ```json block after it, one a line; `Limits` has a table, and so has `How to audit it`, with the minutes
//! that each part takes to read.

use crate::client::{Folder, Server, DEADLINE};
use crate::tokens::{self, Size, Token};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The budgets of what a reader has to read: tokens in all, and tokens a line of code on average, so that lines are not
/// packed to look short. The counting rule is in tokens.rs. On 2026-11-27 (commit fc0af27) main.rs had 41,833 and 13.2,
/// worker.py 3,772 and 8.7.
const MAIN_TOKENS_MAX: usize = 60_900;
const MAIN_TOKENS_A_LINE_MAX: f64 = 11.5;
const WORKER_TOKENS_MAX: usize = 9_000;
const WORKER_TOKENS_A_LINE_MAX: f64 = 8.5;
const LINE_CHARS_MAX: usize = 120;
/// From the line of its `fn` to that of its last brace: a function fits on a screen.
const FUNCTION_LINES_MAX: usize = 50;
/// Functions that may be longer, for they are one list that reads better in one piece: the loop is the list of
/// everything that can happen.
const EXEMPT: [&str; 1] = ["run"];

/// What the project consists of, at its top.
const PROJECT: [&str; 9] =
    ["src", "tests", ".ci", "Cargo.toml", "Cargo.lock", "README.md", "LICENSE", ".gitignore", ".rustfmt.toml"];

/// Every command line that the README gives: what starts the product, and what checks it.
const README_COMMANDS: [&str; 6] = [
    "cargo run --release -- install",
    "mkdir .cargo",
    "cargo vendor --locked > .cargo/config.toml",
    "mcp-py-client",
    "mcp-py-client -c 'x + 1'",
    "mcp-py-client --list-vars",
];
/// The README is for people who have twenty minutes.
const README_LINES_MAX: usize = 300;
/// Every command line that tests/README.md gives: what an auditor looks at, and what runs each suite.
const TESTS_COMMANDS: [&str; 17] = [
    "bash .ci/run",
    "cargo run --release -- server",
    "cargo tree --edges normal",
    "grep -n 'unsafe' src/main.rs",
    SEARCH,
    "cargo test --release",
    "cargo test --release --test it -- cells:: interrupts::",
    "cargo test --release --bin mcp-py",
    "bash tests/interop/bridge.sh target/release/mcp-py FOLDER",
    "python3 tests/fuzz/fuzz.py target/release/mcp-py --lines 5000000 --seed 7",
    "bash tests/fuzz/parsers.sh 60 FOLDER",
    "python3 tests/faults/faults.py target/release/mcp-py",
    "python3 tests/faults/ends.py target/release/mcp-py --count 200",
    "python3 tests/schedules/schedules.py target/release/mcp-py --schedules 10000",
    "python3 tests/bench/bench.py --quick",
    "tests/macos/run.sh",
    "tests/macos/run.sh bridge:: shell::",
];
/// The one that finds what starts, signals, removes and renames.
const SEARCH: &str = "grep -n \
    'Command::new\\|libc::kill\\|remove_file\\|remove_dir\\|rename\\|symlink' src/main.rs";

/// The rows of the table of limits in tests/README.md, and the constants that each quotes, in its order.
const LIMITS: [(&str, &[&str]); 11] = [
    ("a request", &["REQUEST_BYTES_MAX"]),
    ("text of an answer", &["TEXT_CHARS_MAX", "HEAD_CHARS", "TAIL_CHARS"]),
    ("a note or a traceback", &["NOTE_CHARS_MAX"]),
    ("output files", &["CELL_FILE_BYTES_MAX", "SESSION_FILE_BYTES_MAX"]),
    ("waiting cells", &["CELLS_WAITING_MAX"]),
    ("connections to the bridge", &["PEERS_MAX"]),
    ("from an interrupt until the caller is told that the cell goes on", &["INTERRUPT_PATIENCE"]),
    ("the history", &["HISTORY_BYTES_MAX"]),
    ("an install", &["INSTALL_LIMIT"]),
    ("pictures of an answer", &["IMAGES_MAX", "IMAGE_BYTES_MAX", "IMAGE_SIDE_MAX", "IMAGES_BYTES_MAX", "FIGURES_MAX"]),
    ("an HTTP request that does not arrive; a peer that takes nothing", &["REQUEST_LIMIT", "PEER_PATIENCE"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Lines with their numbers from 1, without what follows `//`. Strings that hold `//` are cut too: good enough here.
fn code_lines(source: &str) -> impl Iterator<Item = (usize, &str)> {
    source.lines().enumerate().map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default()))
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        !line[..at].chars().next_back().is_some_and(part) && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// The first and the last line of `mod sys`, from 1.
fn mod_sys(main: &str) -> (usize, usize) {
    let start = main.lines().position(|line| line == "mod sys {").expect("mod sys") + 1;
    let end = main.lines().skip(start).position(|line| line == "}").expect("the end of mod sys");
    (start, start + end + 1)
}

// ---- packages and sizes --------------------------------------------------------------------------------------------

#[test]
fn the_packages_are_serde_json_and_libc() {
    let manifest = read("Cargo.toml");
    let mut sections: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut section = "";
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[') {
            Some(name) => section = name.trim_matches(['[', ']']),
            None => sections.entry(section).or_default().push(line),
        }
    }
    let names: Vec<_> =
        sections["dependencies"].iter().map(|line| line.split(['=', '.']).next().unwrap().trim()).collect();
    assert_eq!(names, ["libc", "serde_json"]);
    let others: Vec<_> =
        sections.keys().filter(|name| name.contains("dependencies") && **name != "dependencies").collect();
    assert!(others.is_empty(), "{others:?}");
    let lock = read("Cargo.lock");
    assert!(!lock.lines().any(|line| line.starts_with("source = \"git+")), "a package from elsewhere");
}

#[test]
fn the_packages_that_get_built_are_those_that_the_readme_names() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--edges", "normal", "--prefix", "none", "--offline", "--locked", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let built: BTreeSet<_> =
        text.lines().filter_map(|line| line.split(' ').next()).filter(|name| *name != "mcp-py").collect();
    let readme = read("README.md").replace('\n', " ");
    let brought =
        readme.split("six with what they bring: ").nth(1).expect("what they bring").split(')').next().unwrap();
    let named: BTreeSet<_> = ["serde_json", "libc"].into_iter().chain(brought.split(", ")).collect();
    assert_eq!(built, named);
    assert_eq!(named.len(), 6);
}

#[test]
fn the_manifest_states_the_oldest_rust_and_denies_unsafe_code() {
    let manifest = read("Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")).expect("rust-version");
    let parts: Vec<_> = version.trim_end_matches('"').split('.').map(|part| part.parse::<u32>()).collect();
    assert!(matches!(parts[..], [Ok(1), Ok(_)]), "{version}");
    let lints = manifest.split("[lints.rust]\n").nth(1).expect("[lints.rust]");
    assert!(lints.lines().take_while(|line| !line.starts_with('[')).any(|line| line == "unsafe_code = \"deny\""));
    let profile = manifest.split("[profile.release]\n").nth(1).expect("[profile.release]");
    for setting in ["lto = true", "codegen-units = 1", "panic = \"abort\"", "strip = true"] {
        assert!(profile.lines().any(|line| line == setting), "{setting}");
    }
}

#[test]
fn the_source_can_be_read_in_one_sitting() {
    let main = tokens::size_of_rust(&read("src/main.rs"));
    let worker = tokens::size_of_python(&read("src/worker.py"));
    let mut over = Vec::new();
    for (name, size, tokens_max, tokens_a_line_max) in [
        ("main.rs", main, MAIN_TOKENS_MAX, MAIN_TOKENS_A_LINE_MAX),
        ("worker.py", worker, WORKER_TOKENS_MAX, WORKER_TOKENS_A_LINE_MAX),
    ] {
        let Size { tokens, code_lines } = size;
        let tokens_a_line = size.tokens_a_line();
        if tokens > tokens_max || tokens_a_line > tokens_a_line_max {
            over.push(format!(
                "{name} has {tokens} tokens on {code_lines} lines of code, {tokens_a_line:.2} a line; \
                 allowed are {tokens_max} and {tokens_a_line_max}"
            ));
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

#[test]
fn no_line_of_the_source_is_wider_than_a_screen_or_ends_in_white_space() {
    for name in ["main.rs", "worker.py"] {
        for (at, line) in read(&format!("src/{name}")).lines().enumerate() {
            let width = line.chars().count();
            assert!(width <= LINE_CHARS_MAX, "{name}:{}: {width} characters", at + 1);
            assert!(line.trim_end() == line && !line.contains('\t'), "{name}:{}: stray white space", at + 1);
        }
    }
}

#[test]
fn the_source_is_one_rust_file_and_one_python_file() {
    let entries = fs::read_dir(root().join("src")).unwrap().flatten();
    let names: BTreeSet<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["main.rs", "worker.py"].map(String::from)));
}

/// Every file of the project, by the shape that it has; not what builds and other tools leave beside it.
fn project_files() -> Vec<PathBuf> {
    let mut left: Vec<PathBuf> = PROJECT.iter().map(|name| root().join(name)).collect();
    let mut files = Vec::new();
    while let Some(path) = left.pop() {
        if !path.is_dir() {
            files.push(path);
        } else if !path.ends_with("target") && !path.ends_with("__pycache__") {
            left.extend(fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path()));
        }
    }
    files
}

#[test]
fn no_file_cites_a_page_that_the_project_does_not_have() {
    // In two pieces, for this file is one of those that are looked at.
    let pages = [concat!("DES", "IGN"), concat!("STY", "LE")];
    let files = project_files();
    let mut cited = Vec::new();
    for path in &files {
        let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        for (at, line) in text.lines().enumerate() {
            if pages.iter().any(|page| has_word(line, page)) {
                cited.push(format!("{}:{}: {}", path.display(), at + 1, line.trim()));
            }
        }
    }
    assert!(cited.is_empty(), "say there what the page says:\n{}", cited.join("\n"));
    assert!(files.len() > 40, "{} files: does this still look at the right thing?", files.len());
}

// ---- main.rs -------------------------------------------------------------------------------------------------------

#[test]
fn all_unsafe_code_is_in_mod_sys_and_says_why_it_is_sound() {
    let main = read("src/main.rs");
    let (start, end) = mod_sys(&main);
    for (at, line) in code_lines(&main).filter(|(_, line)| has_word(line, "unsafe")) {
        assert!((start..=end).contains(&at), "main.rs:{at}: unsafe outside mod sys: {line}");
    }
    let allowed: Vec<_> = main.lines().filter(|line| line.contains("unsafe_code")).collect();
    assert_eq!(allowed, ["#[allow(unsafe_code)]"]);
    assert_eq!(main.lines().nth(start - 2), Some("#[allow(unsafe_code)]"), "it belongs to mod sys");
    let lines: Vec<_> = main.lines().collect();
    let mut blocks = 0;
    for (at, _) in code_lines(&main).filter(|(_, line)| has_word(line, "unsafe")) {
        let why = lines[at.saturating_sub(8)..at].iter().any(|line| line.contains("// SAFETY:"));
        assert!(why, "main.rs:{at}: no SAFETY comment above");
        blocks += 1;
    }
    assert!(blocks > 5, "{blocks} blocks: does this still look at the right thing?");
}

#[test]
fn nothing_in_main_rs_panics_or_prints_on_purpose() {
    let main = read("src/main.rs");
    for (at, line) in code_lines(&main) {
        for word in
            ["println!", "print!", "eprint!", "dbg!", ".unwrap()", ".expect(", "panic!", "todo!", "unimplemented!"]
        {
            let bare = word.trim_start_matches('.');
            let found = if word.starts_with('.') { line.contains(word) } else { has_word(line, bare) };
            assert!(!found && !line.contains("eprintln!"), "main.rs:{at}: {word} in {line}");
        }
    }
}

#[test]
fn rpc_and_http_do_no_input_or_output() {
    let main = read("src/main.rs");
    for name in ["rpc", "http"] {
        let body = main.split(&format!("\nmod {name} {{\n")).nth(1).expect(name).split("\n}\n").next().unwrap();
        for word in
            ["std::io", "std::fs", "std::net", "std::process", "std::thread", "File", "stdout", "stdin", "sys::"]
        {
            assert!(!body.contains(word), "{word} in mod {name}");
        }
    }
}

/// A function of main.rs: its name, and the lines of its `fn` and of its last brace.
struct Function<'a> {
    name: &'a str,
    first_line: usize,
    last_line: usize,
}

/// Every function that has a body, also one inside of another.
fn functions<'a>(tokens: &[Token<'a>]) -> Vec<Function<'a>> {
    let mut functions = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        // `fn` without a name is a type; a declaration ends before it has a body.
        let is_named = tokens.get(at + 1).is_some_and(|next| next.text != "(");
        if token.text != "fn" || !is_named {
            continue;
        }
        let Some(close) = body_end(tokens, at) else { continue };
        let name = tokens[at + 1].text;
        functions.push(Function { name, first_line: token.line, last_line: tokens[close].line });
    }
    functions
}

/// Where the body of the function that begins at a token ends; none where it is only declared.
fn body_end(tokens: &[Token], at: usize) -> Option<usize> {
    let mut at = at;
    loop {
        match tokens.get(at)?.text {
            "{" => return closing(tokens, at),
            ";" => return None,
            "(" | "[" => at = closing(tokens, at)? + 1,
            _ => at += 1,
        }
    }
}

/// Where the bracket that opens at a token is closed.
fn closing(tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// Where the tuple that begins at a token ends: parentheses with a comma of their own.
fn tuple_end(tokens: &[Token], open: usize) -> Option<usize> {
    if tokens.get(open)?.text != "(" {
        return None;
    }
    let close = closing(tokens, open)?;
    let mut at = open + 1;
    while at < close {
        match tokens[at].text {
            "," => return Some(close),
            "(" | "[" | "{" => at = closing(tokens, at)? + 1,
            _ => at += 1,
        }
    }
    None
}

/// `main.rs:LINE, in FUNCTION`.
fn place(functions: &[Function], line: usize) -> String {
    // The innermost comes last.
    let around = functions.iter().rfind(|function| (function.first_line..=function.last_line).contains(&line));
    format!("main.rs:{line}, in {}", around.map_or("no function", |function| function.name))
}

/// Where in main.rs one thing or another begins: the places of all tokens for which this holds, given their index.
fn places(source: &str, holds: impl Fn(&[Token], usize) -> bool) -> Vec<String> {
    let tokens = tokens::rust(source);
    let functions = functions(&tokens);
    let found = (0..tokens.len()).filter(|&at| holds(&tokens, at));
    found.map(|at| place(&functions, tokens[at].line)).collect()
}

/// `let (a, b) = (x, y);`, also with a type or an `else`. In `if let` and `while let` a tuple is fine: it is matched.
fn is_let_of_tuples(tokens: &[Token], at: usize) -> bool {
    let is_statement = at == 0 || !matches!(tokens[at - 1].text, "if" | "while" | "&&");
    if tokens[at].text != "let" || !is_statement {
        return false;
    }
    let Some(pattern_end) = tuple_end(tokens, at + 1) else { return false };
    let Some(equals) = (pattern_end..tokens.len()).find(|&at| matches!(tokens[at].text, "=" | ";")) else {
        return false;
    };
    let value_end = tuple_end(tokens, equals + 1);
    value_end.is_some_and(|end| matches!(tokens[end + 1].text, ";" | "else"))
}

/// `(a, b) = (x, y)`, at the start of a statement, of a match arm or of a closure's body.
fn is_assignment_of_tuples(tokens: &[Token], at: usize) -> bool {
    let is_start = at > 0 && matches!(tokens[at - 1].text, ";" | "{" | "}" | "=>" | "|" | "||");
    let Some(end) = tuple_end(tokens, at).filter(|_| is_start) else { return false };
    tokens[end + 1].text == "=" && tuple_end(tokens, end + 2).is_some()
}

fn is_for_each(tokens: &[Token], at: usize) -> bool {
    tokens[at].text == "for_each" && at > 0 && tokens[at - 1].text == "."
}

/// `.into_iter().for_each(`
fn is_into_iter_for_each(tokens: &[Token], at: usize) -> bool {
    let chain = ["into_iter", "(", ")", ".", "for_each"];
    is_for_each(tokens, at) && at >= 4 && tokens[at - 4..=at].iter().map(|token| token.text).eq(chain)
}

#[test]
fn no_function_of_main_rs_is_longer_than_a_screen() {
    let main = read("src/main.rs");
    let tokens = tokens::rust(&main);
    let functions = functions(&tokens);
    let mut long = Vec::new();
    for function in &functions {
        let lines = function.last_line - function.first_line + 1;
        if lines > FUNCTION_LINES_MAX && !EXEMPT.contains(&function.name) {
            long.push(format!("main.rs:{}: fn {} has {lines} lines", function.first_line, function.name));
        }
    }
    assert!(long.is_empty(), "of {FUNCTION_LINES_MAX}:\n{}", long.join("\n"));
    for name in EXEMPT {
        assert!(functions.iter().any(|function| function.name == name), "there is no fn {name} to exempt");
    }
    assert!(functions.len() > 100, "{} functions: does this still look at the right thing?", functions.len());
}

#[test]
fn main_rs_makes_no_iterator_of_an_option_to_act_on_it() {
    let found = places(&read("src/main.rs"), is_into_iter_for_each);
    assert!(found.is_empty(), "{} times .into_iter().for_each(; if let says it:\n{}", found.len(), found.join("\n"));
}

#[test]
fn main_rs_has_loops_where_effects_are_meant_and_no_for_each() {
    let found = places(&read("src/main.rs"), is_for_each);
    assert!(found.is_empty(), "{} times .for_each(:\n{}", found.len(), found.join("\n"));
}

#[test]
fn main_rs_binds_one_thing_in_one_let() {
    let found = places(&read("src/main.rs"), is_let_of_tuples);
    assert!(found.is_empty(), "{} times let (a, b) = (x, y):\n{}", found.len(), found.join("\n"));
}

#[test]
fn main_rs_assigns_one_thing_at_a_time() {
    let found = places(&read("src/main.rs"), is_assignment_of_tuples);
    assert!(found.is_empty(), "{} times (a, b) = (x, y):\n{}", found.len(), found.join("\n"));
}

#[test]
fn what_is_looked_for_in_main_rs_is_found_and_nothing_else() {
    let source = "fn outer() -> fn(u8) {
        let (a, b) = (1, (2, 3));
        let (a, b): (u8, u8) = (f(1, 2), 3);
        let (Some(a), Some(b)) = (x, y) else { return };
        let (a, b) = f(1, 2);
        let (a, b) = (x, y).swapped();
        let (a, b) = (pair);
        if let (Some(a), Some(b)) = (x, y) {}
        fn inner(list: &[u8; 2]) {
            (list[0], b) = (b, a);
            (a, b) = f(x, y);
            f((a, b), (a, b) == (x, y));
        }
        option.into_iter().for_each(|_| (a, b) = (b, a));
        list.iter().for_each(drop);
    }
    trait T { fn declared(&self); }";
    let found = |holds: fn(&[Token], usize) -> bool| places(source, holds);
    let at = |line: usize, function: &str| format!("main.rs:{line}, in {function}");
    assert_eq!(found(is_let_of_tuples), [at(2, "outer"), at(3, "outer"), at(4, "outer")]);
    assert_eq!(found(is_assignment_of_tuples), [at(10, "inner"), at(14, "outer")]);
    assert_eq!(found(is_for_each), [at(14, "outer"), at(15, "outer")]);
    assert_eq!(found(is_into_iter_for_each), [at(14, "outer")]);
    let tokens = tokens::rust(source);
    let functions = functions(&tokens);
    let told: Vec<_> = functions.iter().map(|one| (one.name, one.first_line, one.last_line)).collect();
    assert_eq!(told, [("outer", 1, 16), ("inner", 9, 13)]);
}

#[test]
fn the_sections_come_in_the_order_that_the_head_lists() {
    let main = read("src/main.rs");
    let head: String = main.lines().map_while(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join("");
    let list = head.split("Sections: ").nth(1).expect("a list of sections").split(". What the program").next().unwrap();
    let plain = |text: &str| text.replace('`', "").trim().trim_end_matches('.').to_lowercase();
    let listed: Vec<_> = list.split('·').map(plain).collect();
    let banner = |line: &str| Some(line.strip_prefix("// ── ")?.trim_end_matches('─').trim().to_string());
    let banners: Vec<_> = main.lines().filter_map(banner).collect();
    let numbers = |list: &[String]| -> Vec<String> {
        list.iter().map(|entry| entry.split([' ', '.']).next().unwrap_or_default().to_string()).collect()
    };
    assert_eq!(numbers(&banners), numbers(&listed), "{banners:?} against {listed:?}");
    assert!(banners.len() >= 8, "{banners:?}");
    for (at, (banner, entry)) in banners.iter().zip(&listed).enumerate() {
        let (number, title) = banner.split_once(". ").expect("a number and a title");
        assert_eq!(number, (at + 1).to_string(), "{banner}");
        let entry = entry.split_once(' ').expect("a number and a title").1;
        let title = title.to_lowercase();
        assert!(title.starts_with(entry) || entry.starts_with(&title), "{title:?} against {entry:?}");
    }
    for banner in main.lines().filter(|line| line.starts_with("// ── ")) {
        assert!((110..=LINE_CHARS_MAX).contains(&banner.chars().count()), "{banner}");
    }
}

#[test]
fn every_invariant_of_the_head_is_cited_where_it_is_upheld() {
    let main = read("src/main.rs");
    let worker = read("src/worker.py");
    let (head, body): (Vec<_>, Vec<_>) = main.lines().partition(|line| line.starts_with("//!"));
    let stated: Vec<_> = head.iter().filter_map(|line| line.strip_prefix("//! - I")?.split(' ').next()).collect();
    assert_eq!(stated, ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]);
    let missing: Vec<_> = stated
        .iter()
        .map(|number| format!("I{number}"))
        .filter(|name| !body.iter().copied().chain(worker.lines()).any(|line| has_word(line, name)))
        .collect();
    assert!(missing.is_empty(), "not cited in code: {missing:?}");
}

// ---- worker.py -----------------------------------------------------------------------------------------------------

#[test]
fn the_worker_imports_the_standard_library_alone_and_starts_no_thread() {
    let worker = read("src/worker.py");
    let known = [
        "__future__",
        "_ast",
        "_frozen_importlib_external",
        "_signal",
        "_thread",
        "asyncio",
        "binascii",
        "contextvars",
        "builtins",
        "collections",
        "ctypes",
        "fcntl",
        "io",
        "itertools",
        "faulthandler",
        "hashlib",
        "importlib",
        "json",
        "linecache",
        "opcode",
        "os",
        "re",
        "select",
        "shlex",
        "signal",
        "site",
        "sys",
        "tempfile",
        "textwrap",
        "time",
        "traceback",
        "types",
    ];
    let mut imports = 0;
    for (at, line) in worker.lines().enumerate() {
        let line = line.trim();
        let names = match (line.strip_prefix("import "), line.strip_prefix("from ")) {
            (Some(names), _) => names.split('#').next().unwrap(),
            (_, Some(rest)) if rest.contains(" import ") => rest.split(" import ").next().unwrap(),
            _ => match line.split_once("late_import(\"") {
                Some((_, rest)) => rest.split('"').next().unwrap(),
                None => continue,
            },
        };
        for name in names.split(',') {
            let name = name.trim().split([' ', '.']).next().unwrap();
            assert!(known.contains(&name), "worker.py:{}: {name} is not known to this test", at + 1);
            imports += 1;
        }
    }
    assert!(imports > 8, "{imports} imports: does this still look at the right thing?");
    for word in ["threading", "start_new_thread", "start_joinable_thread", "Thread", "ThreadPool", "concurrent"] {
        assert!(!worker.contains(word), "{word} in worker.py");
    }
}

#[test]
fn the_worker_begins_with_the_protocol() {
    let worker = read("src/worker.py");
    let head = worker.strip_prefix("\"\"\"").expect("a docstring").split("\"\"\"").next().unwrap();
    assert!(head.contains("Protocol:"), "{head}");
    let code = &worker[head.len() + 6..];
    for operation in ["run", "startup", "list_vars", "reset", "look", "install", "ready", "part", "done"] {
        assert!(head.contains(&format!("\"op\": \"{operation}\"")), "{operation} is not explained");
        let used = code.contains(&format!("\"{operation}\"")) || code.contains(&format!("def {operation}("));
        assert!(used, "{operation} is explained, but not used");
    }
}

// ---- README --------------------------------------------------------------------------------------------------------

/// A fenced block: what stands behind the fence, and its lines.
struct Block {
    language: String,
    lines: Vec<String>,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        match (line.strip_prefix("```"), open) {
            (Some(language), false) => blocks.push(Block { language: language.into(), lines: Vec::new() }),
            (None, true) => blocks.last_mut().unwrap().lines.push(line.into()),
            _ => {}
        }
        open ^= line.starts_with("```");
    }
    assert!(!open, "a fence is not closed");
    blocks
}

/// A command line of a block, and the heredoc that feeds it.
fn commands(block: &Block) -> Vec<(String, Vec<String>)> {
    let mut commands = Vec::new();
    let mut lines = block.lines.iter();
    while let Some(line) = lines.next() {
        let line = line.split(" # ").next().unwrap().trim();
        let Some((command, end)) = line.split_once(" <<") else {
            if !line.is_empty() && !line.starts_with('#') {
                commands.push((line.to_string(), vec![]));
            }
            continue;
        };
        let end = end.trim().trim_matches('\'');
        let body: Vec<_> = lines.by_ref().take_while(|line| *line != end).cloned().collect();
        commands.push((command.to_string(), body));
    }
    commands
}

/// The lines of a section, from its heading to the next one.
fn section(readme: &str, title: &str) -> Vec<String> {
    let heading = |line: &&str| line.starts_with('#') && line.trim_start_matches('#').trim() == title;
    let mut lines = readme.lines().skip_while(|line| !heading(line));
    assert!(lines.next().is_some(), "README has no section {title}");
    lines.take_while(|line| !line.starts_with('#')).map(str::to_string).collect()
}

/// The cells of a table's rows, without its head.
fn table(lines: &[String]) -> Vec<Vec<String>> {
    let rows = lines.iter().filter(|line| line.starts_with('|'));
    let cells = |line: &String| line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect();
    rows.skip(2).map(cells).collect()
}

/// An answer less what differs between versions of Python: the marks below a line of a traceback.
fn without_marks(answer: &Value) -> String {
    let text = answer.to_string();
    let is_mark = |line: &&str| !line.is_empty() && line.chars().all(|c| " ^~".contains(c));
    text.split("\\n").filter(|line| !is_mark(line)).collect::<Vec<_>>().join("\\n")
}

/// The command lines of all ```sh blocks of a page.
fn commands_of(page: &str) -> BTreeSet<String> {
    let blocks = blocks(&read(page));
    let given = blocks.iter().filter(|block| block.language == "sh").flat_map(commands);
    given.map(|(command, _)| command).collect()
}

#[test]
fn every_command_of_the_readme_is_known_here() {
    assert_eq!(commands_of("README.md"), BTreeSet::from(README_COMMANDS.map(String::from)));
}

#[test]
fn every_command_of_the_tests_readme_is_known_here_and_every_file_it_names_is_there() {
    assert_eq!(commands_of("tests/README.md"), BTreeSet::from(TESTS_COMMANDS.map(String::from)));
    let page = read("tests/README.md");
    let words = page.split(|c: char| c.is_whitespace() || "`|;,:()".contains(c));
    let paths: BTreeSet<_> = words.filter(|word| word.starts_with("tests/")).collect();
    for path in paths {
        assert!(root().join(path.trim_end_matches('.')).exists(), "tests/README.md names {path}, which is not there");
    }
}

#[test]
fn every_suite_has_its_paragraph_in_the_tests_readme() {
    let page = read("tests/README.md");
    let named: BTreeSet<_> = page.lines().filter_map(|line| line.strip_prefix("### ")).map(String::from).collect();
    let entries = fs::read_dir(root().join("tests")).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let folders: BTreeSet<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(named, folders);
}

#[test]
fn the_audit_s_search_finds_what_starts_signals_removes_and_renames() {
    let patterns: Vec<_> = SEARCH.split('\'').nth(1).unwrap().split("\\|").collect();
    let main = read("src/main.rs");
    for (at, line) in code_lines(&main) {
        let touches = ["Command::new(", "libc::kill(", "fs::remove_", "fs::rename(", "::symlink("];
        if touches.iter().any(|call| line.contains(call)) {
            assert!(patterns.iter().any(|pattern| line.contains(pattern)), "main.rs:{at} is not found: {line}");
        }
        for call in
            ["posix_spawn", "libc::exec", "libc::system", "libc::unlink", "libc::rmdir", "libc::fork", "TcpStream"]
        {
            assert!(!line.contains(call), "main.rs:{at}: {call}");
        }
    }
    for pattern in patterns {
        assert!(main.contains(pattern), "nothing to find: {pattern}");
    }
}

#[test]
fn the_session_by_hand_prints_the_answers_that_the_page_shows() {
    let blocks = blocks(&read("tests/README.md"));
    let fed = |block: &Block| commands(block).into_iter().find(|(_, session)| !session.is_empty());
    let is_server = |block: &Block| fed(block).is_some_and(|(command, _)| command.contains("server"));
    let at = blocks.iter().position(|block| block.language == "sh" && is_server(block)).expect("a session");
    let (command, session) = fed(&blocks[at]).unwrap();
    assert_eq!(command, "cargo run --release -- server");
    let shown = &blocks[at + 1];
    assert_eq!((shown.language.as_str(), shown.lines.len()), ("json", session.len()));
    let mut server = Server::start();
    for line in &session {
        server.send_raw(format!("{line}\n").as_bytes());
    }
    for line in &shown.lines {
        let shown: Value = serde_json::from_str(line).expect("an answer is JSON");
        assert_eq!(shown.to_string(), *line, "as the server writes it");
        let answer = server.recv(DEADLINE);
        if without_marks(&answer) != without_marks(&shown) {
            server.fail(&format!("the page shows {shown}"));
        }
    }
    server.expect_no_answer();
}

#[test]
fn the_tools_of_the_readme_are_those_of_the_server() {
    let named: Vec<_> = table(&section(&read("README.md"), "Tools and client"))
        .iter()
        .map(|row| row[0].split('`').nth(1).unwrap_or(&row[0]).to_string())
        .collect();
    let folder = Folder::new();
    let mut server = Server::with(|builder| builder.folder(&folder).env("MCP_PY_PYTHON", "/bin/false"));
    let tools = server.request("tools/list", Value::Null)["result"]["tools"].clone();
    let tools: Vec<_> = tools.as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(named, tools);
}

/// Bytes, milliseconds or a count: what `600 s`, `16 MiB`, `25,000 characters` and the constants come down to.
fn quantity(text: &str) -> Option<f64> {
    let text = text.replace([',', '_'], "");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let unit: String = text[end..].trim_start().chars().take_while(|c| c.is_alphabetic()).collect();
    let factor = match unit.as_str() {
        "s" => 1e3,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        _ => 1.0,
    };
    Some(number * factor)
}

/// All quantities that a text names.
fn quantities(text: &str) -> Vec<f64> {
    let starts = |at: &usize| {
        let digit = |at: usize| text.as_bytes()[at].is_ascii_digit();
        digit(*at) && (*at == 0 || !digit(*at - 1) && !matches!(text.as_bytes()[*at - 1], b',' | b'.' | b'_'))
    };
    (0..text.len()).filter(starts).filter_map(|at| quantity(&text[at..])).collect()
}

/// The constants of main.rs, evaluated as far as the README quotes such.
fn constants(main: &str) -> BTreeMap<String, f64> {
    let mut known: BTreeMap<String, f64> = BTreeMap::new();
    for line in main.lines().filter_map(|line| line.strip_prefix("const ")) {
        let Some((name, rest)) = line.split_once(": ") else { continue };
        let Some((kind, rest)) = rest.split_once(" = ") else { continue };
        let value = rest.split(';').next().unwrap_or_default();
        let argument = |call: &str| value.strip_prefix(call).and_then(|rest| quantity(rest.strip_suffix(')')?));
        let evaluated = match kind {
            "Duration" => argument("Duration::from_secs(")
                .map(|seconds| seconds * 1e3)
                .or_else(|| argument("Duration::from_millis(")),
            _ => value
                .split(" * ")
                .map(|factor| match factor.split_once(" << ") {
                    Some((number, shift)) => Some(quantity(number)? * 2f64.powf(quantity(shift)?)),
                    None => known.get(factor).copied().or_else(|| factor.replace('_', "").parse().ok()),
                })
                .product(),
        };
        if let Some(evaluated) = evaluated {
            known.insert(name.to_string(), evaluated);
        }
    }
    known
}

#[test]
fn the_limits_of_the_pages_are_those_of_the_source() {
    let text = "16 MiB, then 25,000 characters; 600 s";
    assert_eq!(quantities(text), [16_777_216.0, 25_000.0, 6e5]);
    let constants = constants(&read("src/main.rs"));
    let constant = |name: &str| *constants.get(name).unwrap_or_else(|| panic!("{name} is no constant of main.rs"));
    let rows = table(&section(&read("tests/README.md"), "Limits"));
    assert_eq!(rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), LIMITS.map(|(what, _)| what));
    for (row, (what, names)) in rows.iter().zip(LIMITS) {
        let expected: Vec<_> = names.iter().map(|name| constant(name)).collect();
        let quoted = quantities(&row[1]);
        // A constant in plain seconds has no type to tell.
        let fits = |(quoted, expected): (&f64, &f64)| quoted == expected || *quoted == expected * 1e3;
        let all = quoted.len() == expected.len() && quoted.iter().zip(&expected).all(fits);
        assert!(all, "{what}: {names:?} are {expected:?}, the page says {:?}", row[1]);
    }
    // What README repeats of them.
    let readme = read("README.md").replace('\n', " ");
    let all_of_it = "An answer over 25,000 characters keeps the first 20,000 and the last 5,000, and names a file \
                     with all of it, up to 1 GiB a cell. A request may have 16 MiB, an install 120 s.";
    assert!(readme.contains(all_of_it), "{all_of_it}");
    let names =
        ["TEXT_CHARS_MAX", "HEAD_CHARS", "TAIL_CHARS", "CELL_FILE_BYTES_MAX", "REQUEST_BYTES_MAX", "INSTALL_LIMIT"];
    assert_eq!(quantities(all_of_it), names.map(constant));
    assert_eq!(constant("INTERRUPT_AGAIN"), 200.0);
    assert!(readme.contains("then every 200 ms"));
}

#[test]
fn the_limits_that_models_are_told_are_those_of_the_source() {
    let constants = constants(&read("src/main.rs"));
    let folder = Folder::new();
    let mut server = Server::with(|builder| builder.folder(&folder).env("MCP_PY_PYTHON", "/bin/false"));
    let instructions = server.initialize()["instructions"].to_string();
    let execute = server.request("tools/list", Value::Null)["result"]["tools"][0].to_string();
    for text in [instructions, execute] {
        let told = quantities(&text);
        assert!(told.contains(&constants["TEXT_CHARS_MAX"]), "{text}");
        assert!(text.contains("600 seconds"), "{text}");
    }
}

/// A number as the README writes it: 43,000.
fn with_commas(number: usize) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", with_commas(number / 1000), number % 1000),
    }
}

/// The quantity after `from` in a page must be right by 15 %: code changes, and the README need not follow each commit.
#[track_caller]
fn expect_about(page: &str, from: &str, unit: &str, actual: usize) {
    let text = page.split(from).nth(1).unwrap_or_else(|| panic!("{from:?} is expected"));
    let told = text.split(unit).next().and_then(|text| quantity(text.rsplit(' ').find(|word| !word.is_empty())?));
    let told = told.unwrap_or_else(|| panic!("a number is expected between {from:?} and {unit:?}"));
    let off = (actual as f64 / told - 1.0).abs();
    assert!(off <= 0.15, "the README says {told}{unit} after {from:?}, it is {actual}");
}

#[test]
fn the_readme_tells_what_there_is_to_read_in_tokens_lines_and_minutes() {
    let readme = read("README.md").replace('\n', " ");
    let (main, worker) = (read("src/main.rs"), read("src/worker.py"));
    expect_about(&readme, "`src/main.rs`", " tokens", tokens::size_of_rust(&main).tokens);
    expect_about(&readme, "`src/main.rs`", " lines", main.lines().count());
    expect_about(&readme, "`src/worker.py`", " tokens", tokens::size_of_python(&worker).tokens);
    expect_about(&readme, "`src/worker.py`", " lines", worker.lines().count());
    let rows = table(&section(&read("tests/README.md"), "How to audit it"));
    let minutes: usize = rows.iter().map(|row| row[1].parse::<usize>().unwrap()).sum();
    let told = format!("{minutes} minutes of reading");
    assert!(readme.contains(&told), "README is expected to say {told}");
}

#[test]
fn the_readme_is_no_longer_than_people_read() {
    let lines = read("README.md").lines().count();
    assert!(lines <= README_LINES_MAX, "README has {lines} lines");
}

/// What stands in backticks in the first column is a part of what the program says, provoked by a test that expects it.
#[test]
fn every_sentence_that_the_readme_troubleshoots_is_provoked_by_a_test() {
    let mut tests = read("tests/it/messages.txt");
    for entry in fs::read_dir(root().join("tests/it")).unwrap().flatten() {
        if entry.path().extension().is_some_and(|kind| kind == "rs") && !entry.path().ends_with("tidy.rs") {
            tests += &fs::read_to_string(entry.path()).unwrap();
        }
    }
    let rows = table(&section(&read("README.md"), "Troubleshooting"));
    let quoted: Vec<_> = rows.iter().filter_map(|row| row[0].split('`').nth(1)).collect();
    assert!(quoted.len() >= 8, "{quoted:?}");
    for sentence in quoted {
        assert!(tests.contains(sentence), "no test provokes {sentence:?}");
    }
}

/// Pages, and the headings in them.
#[test]
fn every_link_of_the_two_pages_leads_somewhere() {
    let mut seen = 0;
    for (page, folder) in [("README.md", ""), ("tests/README.md", "tests/")] {
        let text = read(page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { text.clone() } else { read(&format!("{folder}{path}")) };
            let headings = target.lines().filter(|line| line.starts_with('#'));
            let mut anchors = headings.map(|line| line.trim_matches(['#', ' ']).to_lowercase().replace(' ', "-"));
            assert!(anchor.is_empty() || anchors.any(|name| name == anchor), "{page}: {link} leads nowhere");
            seen += 1;
        }
    }
    assert!(seen > 5, "{seen} links: does this still look at the right thing?");
}

#[test]
fn the_tests_readme_tells_the_budgets() {
    assert_eq!(with_commas(1_043_000), "1,043,000");
    let audit = section(&read("tests/README.md"), "How to audit it").join(" ");
    let tokens = [with_commas(MAIN_TOKENS_MAX), with_commas(WORKER_TOKENS_MAX)];
    for sentence in [
        format!("`main.rs` has at most {} tokens and `worker.py` at most {}", tokens[0], tokens[1]),
        format!("at most {MAIN_TOKENS_A_LINE_MAX} and {WORKER_TOKENS_A_LINE_MAX} tokens on an average line of code"),
    ] {
        assert!(audit.contains(&sentence), "{sentence} is expected in {audit}");
    }
}

#[test]
fn what_the_audit_names_is_there_to_be_found() {
    let audit = section(&read("tests/README.md"), "How to audit it").join(" ");
    let main = read("src/main.rs");
    for name in ["accept", "connect", "find_session"] {
        assert!(audit.contains(&format!("`{name}`")), "{name} is expected in the audit's section");
        assert!(main.contains(&format!("fn {name}(")), "main.rs has no fn {name}");
    }
}

#[test]
fn the_license_is_there() {
    assert!(read("LICENSE").starts_with("MIT License"));
    assert!(read("Cargo.toml").contains("license = \"MIT\""));
}
