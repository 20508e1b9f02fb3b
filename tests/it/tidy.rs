//! Promises about the source itself and the README.
//!
//! What the README looks like for this: commands stand in ```sh blocks; the session is a heredoc of the command that
//! starts the server, and its answers stand in the ```json block after it, one a line; the sections `Tools` and `Limits`
//! have a table each.

use crate::client::{Folder, Server, DEADLINE};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Physical lines, comments and blank lines included: what a reader has to read.
const MAIN_LINES_MAX: usize = 3_850;
const WORKER_LINES_MAX: usize = 500;
const LINE_CHARS_MAX: usize = 120;

/// Every command line that the README gives: what starts the product, what checks it, what an auditor looks at.
const COMMANDS: [&str; 11] = [
    "cargo run --release -- install",
    "mkdir .cargo",
    "cargo vendor --locked > .cargo/config.toml",
    "RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target x86_64-unknown-linux-gnu",
    "mcp-py-client",
    "mcp-py-client -c 'x + 1'",
    "mcp-py-client --list-vars",
    "cargo run --release -- server",
    "cargo test --release",
    "cargo tree --edges normal",
    "grep -n 'unsafe' src/main.rs",
];
/// And one that finds what starts, signals, removes and renames.
const SEARCH: &str = "grep -n 'Command::new";

/// The rows of the README's table of limits, and the constants that each quotes, in its order.
const LIMITS: [(&str, &[&str]); 12] = [
    ("a request", &["REQUEST_BYTES_MAX"]),
    ("text of an answer", &["TEXT_CHARS_MAX", "HEAD_CHARS", "TAIL_CHARS"]),
    ("a note or a traceback", &["NOTE_CHARS_MAX"]),
    ("output files", &["CELL_FILE_BYTES_MAX", "SESSION_FILE_BYTES_MAX"]),
    ("waiting cells", &["CELLS_WAITING_MAX"]),
    ("connections to the bridge", &["PEERS_MAX"]),
    ("from interrupt to kill", &["INTERRUPT_GRACE"]),
    ("an install", &["INSTALL_LIMIT"]),
    ("pictures of an answer", &["IMAGES_MAX", "IMAGE_BYTES_MAX", "IMAGE_SIDE_MAX", "IMAGES_BYTES_MAX", "FIGURES_MAX"]),
    ("start of a Python", &["START_LIMIT_DEFAULT"]),
    ("a cell", &["TIMEOUT_DEFAULT"]),
    ("an HTTP request that does not arrive; a peer that takes nothing", &["REQUEST_LIMIT", "PEER_PATIENCE"]),
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
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
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
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
    let (main, worker) = (read("src/main.rs"), read("src/worker.py"));
    for (name, source, max) in [("main.rs", &main, MAIN_LINES_MAX), ("worker.py", &worker, WORKER_LINES_MAX)] {
        let lines = source.lines().count();
        assert!(lines <= max, "{name} has {lines} lines, of {max}");
        for (at, line) in source.lines().enumerate() {
            let width = line.chars().count();
            assert!(width <= LINE_CHARS_MAX, "{name}:{}: {width} characters", at + 1);
            assert!(line.trim_end() == line && !line.contains('\t'), "{name}:{}: stray white space", at + 1);
        }
    }
    let sources: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap().flatten().collect();
    assert_eq!(sources.len(), 2, "{sources:?}");
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
        "builtins",
        "collections",
        "ctypes",
        "io",
        "itertools",
        "json",
        "linecache",
        "opcode",
        "os",
        "signal",
        "sys",
        "textwrap",
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
    for operation in ["run", "startup", "list_vars", "reset", "ready", "part", "done"] {
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

#[test]
fn every_command_of_the_readme_is_known_here() {
    let given: Vec<_> =
        blocks(&read("README.md")).iter().filter(|block| block.language == "sh").flat_map(commands).collect();
    let (searches, others): (Vec<_>, Vec<_>) =
        given.iter().map(|(command, _)| command.as_str()).partition(|command| command.starts_with(SEARCH));
    assert_eq!(searches.len(), 1);
    assert_eq!(BTreeSet::from_iter(others), BTreeSet::from(COMMANDS));
}

#[test]
fn the_search_of_the_readme_finds_what_starts_signals_removes_and_renames() {
    let readme = read("README.md");
    let blocks = blocks(&readme);
    let search = blocks.iter().flat_map(|block| &block.lines).find(|line| line.starts_with(SEARCH)).expect("a search");
    let patterns: Vec<_> = search.split('\'').nth(1).unwrap().split("\\|").collect();
    let main = read("src/main.rs");
    for (at, line) in code_lines(&main) {
        let touches = ["Command::new(", "libc::kill(", "fs::remove_", "fs::rename(", "fs::hard_link(", "::symlink("];
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
fn the_session_of_the_readme_prints_the_answers_that_it_shows() {
    let readme = read("README.md");
    let blocks = blocks(&readme);
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
            server.fail(&format!("the README shows {shown}"));
        }
    }
    server.expect_no_answer();
}

#[test]
fn the_tools_of_the_readme_are_those_of_the_server() {
    let named: Vec<_> = table(&section(&read("README.md"), "Tools"))
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
fn the_limits_of_the_readme_are_those_of_the_source() {
    let text = "16 MiB, then 25,000 characters; 600 s";
    assert_eq!(quantities(text), [16_777_216.0, 25_000.0, 6e5]);
    let constants = constants(&read("src/main.rs"));
    let constant = |name: &str| *constants.get(name).unwrap_or_else(|| panic!("{name} is no constant of main.rs"));
    let readme = read("README.md");
    let rows = table(&section(&readme, "Limits"));
    assert_eq!(rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), LIMITS.map(|(what, _)| what));
    for (row, (what, names)) in rows.iter().zip(LIMITS) {
        let expected: Vec<_> = names.iter().map(|name| constant(name)).collect();
        let quoted = quantities(&row[1]);
        // A constant in plain seconds has no type to tell.
        let fits = |(quoted, expected): (&f64, &f64)| quoted == expected || *quoted == expected * 1e3;
        let all = quoted.len() == expected.len() && quoted.iter().zip(&expected).all(fits);
        assert!(all, "{what}: {names:?} are {expected:?}, the README says {:?}", row[1]);
    }
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
        let timeout = constants["TIMEOUT_DEFAULT"];
        assert!(told.contains(&timeout) || told.contains(&(timeout / 1e3)), "{text}");
    }
}

#[test]
fn the_readme_tells_the_budgets_and_the_license_is_there() {
    let readme = read("README.md");
    assert_eq!((MAIN_LINES_MAX, WORKER_LINES_MAX), (3_850, 500));
    assert!(readme.contains("(3,850 and 500 lines)"));
    assert!(read("LICENSE").starts_with("MIT License"));
    assert!(read("Cargo.toml").contains("license = \"MIT\""));
}
