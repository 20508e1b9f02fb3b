//! `mcp-py install` in an empty home, again over itself, and in homes where something is in the way: files that it did
//! not create are reported and never overwritten. `mcp-py uninstall` removes what install and sessions have made, and
//! nothing else. `mcp-py doctor` in good and broken homes, help and version of each role, and the README's client session
//! in a real shell.

use crate::client::{binary, python, remove_sockets, write_executable, Folder, Server, DEADLINE};
use crate::procs;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program in an empty home, with nothing in its environment but PATH, HOME, TMPDIR and MCP_PY_PYTHON.
fn run(folder: &Folder, program: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(words).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", folder.home()).env("TMPDIR", folder.tmp());
    command.env("MCP_PY_PYTHON", python()).current_dir(folder.project());
    let child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("it runs");
    let pid = child.id() as i32;
    let output = child.wait_with_output().expect("its output");
    remove_sockets(&[pid]);
    output
}

#[track_caller]
fn installed(folder: &Folder, program: &Path, words: &[&str]) -> String {
    let output = run(folder, program, words);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn expect_ours(dir: &Path) {
    let program = dir.join("mcp-py");
    assert_eq!(fs::read(&program).unwrap(), fs::read(binary()).unwrap());
    assert_eq!(program.metadata().unwrap().permissions().mode() & 0o111, 0o111);
    for name in ["mcp-py-server", "mcp-py-client"] {
        assert_eq!(fs::read_link(dir.join(name)).unwrap(), PathBuf::from("mcp-py"));
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), 3, "three files and no more");
}

#[test]
fn install_in_an_empty_home_ends_with_a_python_answer_through_both_doors() {
    let folder = Folder::new();
    let told = installed(&folder, binary(), &["install"]);
    let dir = fs::canonicalize(folder.home()).unwrap().join(".local/bin");
    expect_ours(&dir);
    assert!(told.contains("x = 1 + 1 by MCP, then x by the client: 2"), "{told}");
    let add = format!("claude mcp add --scope user python-interpreter -- {}/mcp-py-server", dir.display());
    assert!(told.contains(&add), "{told}");
    assert!(told.contains("is not on PATH: export PATH="), "{told}");
    assert!(
        told.contains(r#"{"permissions": {"allow": ["mcp__python-interpreter", "Bash(mcp-py-client:*)"]}}"#),
        "{told}"
    );
    assert!(folder.output_dirs().is_empty(), "the trial left something");
    assert!(!told.contains("is not on PATH: run"), "that was said: {told}");
}

#[test]
fn install_tries_what_it_made_whatever_the_settings_are() {
    let folder = Folder::new();
    let mut command = Command::new(binary());
    command.arg("install").env_clear().env("HOME", folder.home()).env("TMPDIR", folder.tmp());
    command.env("PATH", "/usr/bin:/bin").env("MCP_PY_PYTHON", python()).env("MCP_PY_WAIT", "0");
    let output = command.output().unwrap();
    assert!(text(&output.stdout).contains("x = 1 + 1 by MCP, then x by the client: 2"), "{output:?}");
}

#[test]
fn install_may_be_run_again_while_a_server_runs_and_that_server_goes_on() {
    let folder = Folder::new();
    let dir = folder.path().join("a folder/of its own");
    installed(&folder, binary(), &["install", "--dir", dir.to_str().unwrap()]);
    let (program, server) = (dir.join("mcp-py"), dir.join("mcp-py-server"));
    let inode = program.metadata().unwrap().ino();
    let before = folder.path().join("before");
    symlink(&server, &before).unwrap();
    let mut running = Server::with(|builder| builder.folder(&folder));
    running.ok("x = 5");
    installed(&folder, &program, &["install", "--dir", dir.to_str().unwrap()]);
    expect_ours(&dir);
    assert_ne!(program.metadata().unwrap().ino(), inode, "a new file took the place of the old one");
    assert_eq!(running.ok("x"), "5");
}

#[test]
fn what_is_in_the_way_of_install_is_named_and_left() {
    let folder = Folder::new();
    let dir = folder.path().join("there");
    fs::create_dir(&dir).unwrap();
    let theirs = dir.join("mcp-py-client");
    for make in [|path: &Path| write_executable(path, b"#!/bin/sh\n"), |path: &Path| symlink("/bin/sh", path).unwrap()]
    {
        let _ = fs::remove_file(&theirs);
        make(&theirs);
        let before = fs::read(&theirs).unwrap();
        let output = run(&folder, binary(), &["install", "--dir", dir.to_str().unwrap()]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.contains("mcp-py-client exists, and mcp-py did not make it") && told.contains("uv tool uninstall"),
            "{told}"
        );
        assert_eq!(fs::read(&theirs).unwrap(), before);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing else was put there");
    }
}

#[test]
fn a_program_called_like_ours_is_left_unless_it_is_what_runs_or_has_our_names_beside_it() {
    let folder = Folder::new();
    let dir = folder.path().join("there");
    fs::create_dir(&dir).unwrap();
    let program = dir.join("mcp-py");
    write_executable(&program, b"#!/bin/sh\n");
    let output = run(&folder, binary(), &["install", "--dir", dir.to_str().unwrap()]);
    let told = text(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains("/mcp-py exists, and mcp-py did not make it"), "{told}");
    assert_eq!(fs::read(&program).unwrap(), b"#!/bin/sh\n");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing else was put there");
    // Half of an earlier version.
    symlink("mcp-py", dir.join("mcp-py-client")).unwrap();
    installed(&folder, binary(), &["install", "--dir", dir.to_str().unwrap()]);
    expect_ours(&dir);
    // Its names may be written in another way, and its folder.
    let other = folder.path().join("other");
    symlink(&dir, &other).unwrap();
    for (name, to) in [("mcp-py-server", "./mcp-py".into()), ("mcp-py-client", other.join("mcp-py"))] {
        fs::remove_file(dir.join(name)).unwrap();
        symlink(to, dir.join(name)).unwrap();
    }
    installed(&folder, binary(), &["install", "--dir", other.to_str().unwrap()]);
    // The one file that was copied by hand.
    for name in ["mcp-py-server", "mcp-py-client"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    installed(&folder, &program, &["install", "--dir", dir.to_str().unwrap()]);
    expect_ours(&dir);
}

#[test]
fn two_installs_at_once_both_succeed_and_the_line_for_claude_is_one_for_the_shell() {
    let folder = Folder::new();
    let dir = folder.path().join("in st é's");
    let texts = std::thread::scope(|scope| {
        let install = || installed(&folder, binary(), &["install", "--dir", dir.to_str().unwrap()]);
        [scope.spawn(install), scope.spawn(install)].map(|one| one.join().unwrap())
    });
    expect_ours(&dir);
    for told in texts {
        let line = told.lines().find_map(|line| line.trim().strip_prefix("claude mcp add ")).expect("a line");
        let script = format!("printf '%s|' {line}");
        let words = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
        let server = dir.join("mcp-py-server");
        assert_eq!(text(&words.stdout), format!("--scope|user|python-interpreter|--|{}|", server.display()));
    }
}

#[test]
fn a_folder_that_can_not_be_written_and_a_python_that_is_none_are_said() {
    let folder = Folder::new();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let output = run(&folder, binary(), &["install", "--dir", file.join("x").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(file.to_str().unwrap()), "{}", text(&output.stderr));
    let dir = folder.path().join("dir");
    let mut command = Command::new(binary());
    command.args(["install", "--dir"]).arg(&dir).env_clear().env("HOME", folder.home()).env("TMPDIR", folder.tmp());
    let output = command.env("MCP_PY_PYTHON", "/bin/false").env("PATH", "/bin").output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("is installed, but") && told.contains("exited with code 1"), "{told}");
}

#[test]
fn each_role_has_help_and_a_version_and_refuses_what_it_does_not_know() {
    let folder = Folder::new();
    for name in ["mcp-py-server", "mcp-py-client"] {
        symlink(binary(), folder.bin().join(name)).unwrap();
        let program = folder.bin().join(name);
        let version = run(&folder, &program, &["--version"]);
        assert_eq!(text(&version.stdout), format!("mcp-py {}\n", env!("CARGO_PKG_VERSION")), "{name}");
        let unknown = run(&folder, &program, &["--nonsense"]);
        assert_eq!(unknown.status.code(), Some(2), "{name}");
        assert!(text(&unknown.stderr).contains("--nonsense") && unknown.stdout.is_empty(), "{name}");
    }
    for words in [
        &["server", "x"][..],
        &["install", "--dir"],
        &["install", "x"],
        &["uninstall", "--dir"],
        &["uninstall", "x"],
        &["doctor", "x"],
        &["nonsense"],
        &[],
    ] {
        let output = run(&folder, binary(), words);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""), "{words:?}");
        let told = text(&output.stderr);
        assert!(told.contains("usage: mcp-py ") && told.contains(&words.join(" ")), "{words:?}: {told}");
    }
}

#[test]
fn help_comes_by_either_name_in_every_role_and_fits_a_terminal() {
    let folder = Folder::new();
    for role in [&[][..], &["server"], &["client"], &["client", "-t", "5"], &["install"], &["uninstall"], &["doctor"]] {
        for option in ["-h", "--help"] {
            let help = run(&folder, binary(), &[role, &[option]].concat());
            let page = text(&help.stdout);
            assert!(help.status.success() && help.stderr.is_empty(), "{role:?} {option}: {page}");
            assert!(page.lines().all(|line| line.chars().count() <= 80), "{role:?}: {page}");
            let start = if role.contains(&"client") { "usage: mcp-py-client " } else { "usage: mcp-py server " };
            assert!(page.starts_with(start), "{role:?} {option}: {page}");
        }
    }
    let page = text(&run(&folder, binary(), &["client", "-h"]).stdout);
    for word in ["FILE", "--stdin", "124", "125", "130", "137", "MCP_PY_SOCKET", "CLAUDE_CODE_SESSION_ID", "<<'PY'"] {
        assert!(page.contains(word), "{word}: {page}");
    }
}

/// The README's client session, in a shell under the host that started the server.
#[test]
fn the_client_session_of_the_readme_prints_what_one_expects() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let blocks = readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let script = blocks.into_iter().find(|block| block.starts_with("mcp-py-client")).expect("a session of the client");
    let folder = Folder::new();
    symlink(binary(), folder.bin().join("mcp-py-client")).unwrap();
    let mut server = Server::with(|builder| builder.folder(&folder));
    server.ok("x = 5");
    let info = server.call("get_session_info", json!({})).structured;
    let socket = info["socket_path"].as_str().expect("a socket");
    procs::eventually(DEADLINE, "the socket is there", || Path::new(socket).exists());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-ec", script]).env_clear().env("MCP_PY_SOCKET", socket);
    let output = shell.env("PATH", format!("{}:/usr/bin:/bin", folder.bin().display())).output().unwrap();
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("10\n6\nx\n", ""));
}

#[test]
fn where_no_environment_can_be_made_install_ends_with_an_answer_all_the_same() {
    let folder = Folder::new();
    let dir = folder.path().join("there");
    let home = folder.path().join("a-file");
    fs::write(&home, "").unwrap();
    let mut command = Command::new(binary());
    command.args(["install", "--dir"]).arg(&dir).env_clear().env("HOME", &home).env("TMPDIR", folder.tmp());
    let output = command.env("PATH", "/usr/bin:/bin").env("MCP_PY_PYTHON", python()).output().unwrap();
    assert!(text(&output.stdout).contains("x = 1 + 1 by MCP, then x by the client: 2"), "{output:?}");
}

// ---- uninstall -----------------------------------------------------------------------------------------------------

/// The lines of a report by doctor or uninstall that are about this; `BAD ` stands before those that are bad.
fn about(output: &Output, what: &str) -> Vec<String> {
    let text = text(&output.stdout);
    let lines = text.lines().filter(|line| line[5..18].trim_end() == what);
    lines.map(|line| format!("{}{}", if line.starts_with("ok ") { "" } else { &line[..4] }, &line[19..])).collect()
}

/// What uninstall says that it has removed. It must have succeeded.
#[track_caller]
fn uninstalled(folder: &Folder, program: &Path, words: &[&str]) -> Vec<String> {
    let output = run(folder, program, words);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    // Other tests kill servers meanwhile, and these have the same user.
    let removed = about(&output, "removed").into_iter();
    removed.filter(|path| path.starts_with("nothing") || path.contains(folder.path().to_str().unwrap())).collect()
}

fn state(folder: &Folder) -> PathBuf {
    folder.home().join(".claude-workspace/python_interpreter")
}

#[track_caller]
fn expect_nothing_left(folder: &Folder) {
    assert!(!folder.home().join(".claude-workspace").exists());
    assert_eq!(fs::read_dir(folder.home().join(".local/bin")).unwrap().count(), 0);
    assert!(folder.output_dirs().is_empty());
}

#[test]
fn uninstall_removes_what_install_and_a_killed_session_made_and_says_what_is_left() {
    let folder = Folder::new();
    installed(&folder, binary(), &["install"]);
    let dir = folder.home().join(".local/bin");
    let mut server = Server::with(|builder| builder.folder(&folder).under("claude"));
    server.ok("# cache=True makes a file of this cell\nx = 5");
    let info = server.call("get_session_info", json!({})).structured;
    let own = format!("/tmp/python-interpreter-{}-{}.sock", server.outer_pid(), server.pid());
    let sockets = [PathBuf::from(info["socket_path"].as_str().expect("a socket")), PathBuf::from(own)];
    fs::write(state(&folder).join("console_history"), "x\n").unwrap(); // as the console does
    assert!(sockets[0].is_symlink() && sockets[1].exists() && state(&folder).join("cells").exists());
    assert_eq!(folder.output_dirs().len(), 1);
    procs::kill(server.pid(), libc::SIGKILL);
    server.wait_exit(DEADLINE);
    assert!(sockets.iter().all(|socket| socket.is_symlink() || socket.exists()), "a killed server removes nothing");
    let age = |socket: &PathBuf| {
        fs::symlink_metadata(socket).map_or(Duration::MAX, |is| is.modified().unwrap().elapsed().unwrap())
    };
    procs::eventually(DEADLINE, "older sockets", || sockets.iter().all(|socket| age(socket) > Duration::from_secs(1)));

    let output = run(&folder, &dir.join("mcp-py"), &["uninstall"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}{}", text(&output.stdout), text(&output.stderr));
    let removed = about(&output, "removed");
    for name in ["mcp-py", "mcp-py-server", "mcp-py-client"] {
        assert!(removed.contains(&dir.join(name).display().to_string()), "{name}: {removed:?}");
    }
    for part in ["/cells", "/console_history", "/env-3.", "/tmp/python-interpreter-mcp-py-"] {
        assert!(removed.iter().any(|path| path.contains(part)), "{part}: {removed:?}");
    }
    assert!(sockets.iter().all(|socket| !socket.is_symlink() && !socket.exists()), "{removed:?}");
    expect_nothing_left(&folder);
    let left = about(&output, "left").join("\n");
    for told in
        ["`claude mcp remove --scope user python-interpreter`", "mcp__python-interpreter and Bash(mcp-py-client:*)"]
    {
        assert!(left.contains(told), "{left}");
    }

    assert_eq!(uninstalled(&folder, binary(), &["uninstall"]), ["nothing: there is nothing to remove"]);
}

#[test]
fn uninstall_removes_nothing_while_a_session_of_this_home_runs_and_names_it() {
    let folder = Folder::new();
    installed(&folder, binary(), &["install"]);
    let mut server = Server::with(|builder| builder.folder(&folder).under("claude"));
    server.ok("x = 5");
    let environments = || fs::read_dir(state(&folder)).unwrap().count();
    let before = environments();
    let other = Folder::new();
    fs::remove_dir(other.home()).unwrap();
    symlink(folder.home(), other.home()).unwrap(); // the same home by another name
    for home in [&folder, &other] {
        let output = run(home, binary(), &["uninstall", "--all"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        let told = about(&output, "running");
        let who = format!("BAD {} (claude, server pid {}, up ", folder.project().display(), server.pid());
        assert!(told.len() == 1 && told[0].starts_with(&who), "{told:?}");
        assert!(told[0].ends_with("): end its host first; nothing was removed"), "{told:?}");
        assert_eq!(text(&output.stdout).lines().count(), 1);
    }
    expect_ours(&fs::canonicalize(folder.home()).unwrap().join(".local/bin"));
    assert_eq!(environments(), before);
    assert_eq!(server.ok("x"), "5");
    server.finish(DEADLINE);
    uninstalled(&folder, binary(), &["uninstall"]);
    expect_nothing_left(&folder);
}

#[test]
fn sessions_of_other_homes_and_what_does_not_tell_its_home_do_not_stop_uninstall() {
    let mut elsewhere = Server::start();
    elsewhere.ok("x = 5");
    let socket = elsewhere.call("get_session_info", json!({})).structured["socket_path"].as_str().unwrap().to_owned();
    // The Python original says this much.
    let original = format!("/tmp/python-interpreter-{}-original.sock", std::process::id());
    let listener = UnixListener::bind(&original).unwrap();
    let answers = std::thread::spawn(move || {
        for mut peer in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 1000];
            let count = peer.read(&mut request).unwrap_or(0);
            if request[..count].starts_with(b"stop") {
                return;
            }
            let _ = peer.write_all(b"HTTP/1.0 200 OK\r\n\r\n{\"project_dir\": \"/original\", \"pid\": 1}\n");
        }
    });
    let folder = Folder::new();
    installed(&folder, binary(), &["install"]);
    let removed = uninstalled(&folder, binary(), &["uninstall"]);
    let doctor = run(&folder, binary(), &["doctor"]);
    std::os::unix::net::UnixStream::connect(&original).unwrap().write_all(b"stop").unwrap();
    answers.join().unwrap();
    fs::remove_file(&original).unwrap();
    assert!(removed.len() >= 4, "{removed:?}");
    assert!(about(&doctor, "live").is_empty(), "{}", text(&doctor.stdout));
    expect_nothing_left(&folder);
    assert!(Path::new(&socket).exists() && elsewhere.ok("x") == "5");
}

#[test]
fn uninstall_leaves_and_names_what_mcp_py_did_not_make() {
    let folder = Folder::new();
    let dir = folder.path().join("there");
    let words = ["uninstall", "--dir", dir.to_str().unwrap()];
    installed(&folder, binary(), &["install", "--dir", dir.to_str().unwrap()]);
    // A file of another program, a link that leads elsewhere, a folder.
    for name in ["mcp-py", "mcp-py-server", "mcp-py-client"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    fs::create_dir_all(dir.join("mcp-py/mine")).unwrap();
    write_executable(&dir.join("mcp-py-server"), b"#!/bin/sh\n");
    symlink(binary(), dir.join("mcp-py-client")).unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "mine").unwrap();
    let state = state(&folder);
    let environment = paths(&state).into_iter().find(|path| path.to_string_lossy().contains("/env-3.")).unwrap();
    symlink(&outside, environment.join("outside")).unwrap();
    symlink(&outside, state.join("cells")).unwrap();
    fs::write(state.join("notes.txt"), "mine").unwrap();
    fs::create_dir(state.join("env-mine")).unwrap();
    fs::create_dir(state.join("console_history")).unwrap();
    fs::write(state.join("interpreters.json"), "{}").unwrap();
    fs::write(folder.home().join(".claude-workspace/sessions.json"), "{}").unwrap();
    let mine: Vec<_> = ["mcp-py", "mcp-py-server", "mcp-py-client"].map(|name| dir.join(name)).into_iter().collect();
    let mine =
        [mine, ["cells", "notes.txt", "env-mine", "console_history"].map(|name| state.join(name)).into()].concat();

    let output = run(&folder, binary(), &words);
    let left = about(&output, "left");
    assert!(output.status.success() && about(&output, "not removed").is_empty(), "{}", text(&output.stdout));
    for path in &mine {
        assert!(left.contains(&format!("{}: mcp-py did not make it", path.display())), "{path:?}: {left:#?}");
        assert!(fs::symlink_metadata(path).is_ok(), "{path:?}");
    }
    let saved = state.join("interpreters.json");
    assert!(
        left.contains(&format!("{}: the saved interpreters (--all removes them, too)", saved.display())),
        "{left:#?}"
    );
    assert!(!environment.exists() && saved.exists());

    let removed = uninstalled(&folder, binary(), &[&words[..], &["--all"]].concat());
    assert_eq!(removed, [saved.display().to_string()]);
    assert_eq!(paths(&state).len(), 4);
    assert_eq!(paths(&outside), [outside.join("kept")]);
    assert!(dir.join("mcp-py/mine").exists() && folder.home().join(".claude-workspace/sessions.json").exists());
}

fn paths(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_can_not_be_removed_is_said_and_the_rest_goes() {
    let folder = Folder::new();
    let dir = folder.path().join("there");
    installed(&folder, binary(), &["install", "--dir", dir.to_str().unwrap()]);
    let mut command = Command::new(dir.join("mcp-py"));
    command.arg("uninstall").env_clear().env("HOME", folder.home()).env("TMPDIR", folder.tmp());
    if fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        let owned = Command::new("chown").args(["-R", "65534"]).arg(folder.path()).status().unwrap();
        assert!(owned.success());
        command.uid(65534); // nothing is read-only to root
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
    let output = command.output().unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}{}", text(&output.stdout), text(&output.stderr));
    let failed = about(&output, "not removed");
    for name in ["mcp-py", "mcp-py-server", "mcp-py-client"] {
        let line = format!("BAD {}: Permission denied", dir.join(name).display());
        assert!(failed.iter().any(|told| told.starts_with(&line)), "{failed:?}");
        assert!(fs::symlink_metadata(dir.join(name)).is_ok());
    }
    assert!(!folder.home().join(".claude-workspace").exists(), "{}", text(&output.stdout));
}

#[test]
fn without_a_home_uninstall_says_so_and_removes_the_program_all_the_same() {
    let folder = Folder::new();
    let dir = folder.path().join("there");
    installed(&folder, binary(), &["install", "--dir", dir.to_str().unwrap()]);
    let mut command = Command::new(dir.join("mcp-py")); // it knows where it is installed
                                                        // No home: without HOME it would be that of whoever runs the tests.
    command.arg("uninstall").env_clear().env("HOME", "relative").env("TMPDIR", folder.tmp());
    command.current_dir(folder.project());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let why = "BAD what sessions have kept: there is no home directory to keep configurations in";
    assert_eq!(about(&output, "not removed"), [why], "{}", text(&output.stdout));
    assert!(paths(&dir).is_empty() && state(&folder).exists());
}

// ---- doctor --------------------------------------------------------------------------------------------------------

/// What doctor says of each fact: whether it is good, and the rest of the line.
fn facts(output: &Output) -> std::collections::BTreeMap<String, (bool, String)> {
    let text = text(&output.stdout);
    let fact = |line: &str| {
        let (verdict, rest) = line.split_at(5);
        assert!(matches!(verdict, "ok   " | "WARN " | "BAD  "), "{line}");
        let (name, rest) = rest.split_at(14);
        (name.trim().to_string(), (verdict == "ok   ", rest.to_string()))
    };
    text.lines().map(fact).collect()
}

#[test]
fn doctor_in_an_empty_home_names_what_is_missing_and_what_to_do() {
    let folder = Folder::new();
    let output = run(&folder, binary(), &["doctor"]);
    assert_eq!(output.status.code(), Some(1), "{}{}", text(&output.stdout), text(&output.stderr));
    let said = facts(&output);
    assert_eq!(
        said["server"],
        (false, "mcp-py-server is not on PATH: run `mcp-py install`, and do what it says about PATH".into())
    );
    assert!(said["python"].0 && said["python"].1.starts_with(&format!("{} is Python 3.", python())), "{said:?}");
    assert!(said["environment"].0 && said["environment"].1.ends_with("(will be made at the first start)"), "{said:?}");
    assert_eq!(said["saved"], (true, "saved interpreters: 0".into()));
    for good in ["version", "configuration", "ps", "lsof", "output", "sockets", "host", "session", "stale"] {
        assert!(said[good].0, "{good}: {said:?}");
    }
    assert!(fs::read_dir(folder.tmp()).unwrap().count() == 0, "it left something");
    assert!(fs::read_dir(folder.home()).unwrap().count() == 0, "it made what it should report on");
    fs::remove_dir(folder.tmp()).unwrap();
    let output = run(&folder, binary(), &["doctor"]);
    let said = facts(&output);
    assert!(!said["output"].0 && said["output"].1.contains("No such file"), "{said:?}");
    assert!(!folder.tmp().exists(), "it made what it should report on");
}

#[test]
fn doctor_is_content_after_an_install() {
    let folder = Folder::new();
    installed(&folder, binary(), &["install"]);
    let dir = fs::canonicalize(folder.home()).unwrap().join(".local/bin");
    let mut command = Command::new(dir.join("mcp-py"));
    command.arg("doctor").env_clear().env("HOME", folder.home()).env("TMPDIR", folder.tmp());
    folder.script("uv", "#!/bin/sh\n");
    command
        .env("MCP_PY_PYTHON", python())
        .env("PATH", format!("{}:{}:/usr/bin:/bin", dir.display(), folder.bin().display()));
    let output = command.output().unwrap();
    let said = facts(&output);
    assert_eq!(output.status.code(), Some(0), "{said:?}");
    assert_eq!(said["client"], (true, dir.join("mcp-py-client").display().to_string()));
    assert_eq!(said["installer"], (true, folder.bin().join("uv").display().to_string()));
    assert!(said["environment"].1.contains("/env-3."), "{said:?}");
    assert!(!said["environment"].1.contains("will be made"), "the trial made it: {said:?}");
    // Without uv the pip of the environment counts: a shell of a cell may have put it there.
    fs::remove_file(folder.bin().join("uv")).unwrap();
    let environment = said["environment"].1.split_once(" MB in ").expect("its size").1;
    let lib = Path::new(environment).join("lib");
    let of_version = fs::read_dir(lib).unwrap().next().expect("that of its version").unwrap().path();
    let pip = of_version.join("site-packages/pip");
    fs::create_dir(&pip).unwrap();
    fs::write(pip.join("__init__.py"), "").unwrap();
    fs::write(pip.join("__main__.py"), "print('pip 99 of the environment')").unwrap();
    let said = facts(&command.output().unwrap());
    assert_eq!(said["installer"], (true, "pip 99 of the environment".into()));
}

#[test]
fn doctor_lists_the_sessions_of_this_home_by_project_and_tells_the_size_of_the_environment() {
    let folder = Folder::new();
    let start = |name: &str| {
        let project = folder.path().join(name);
        fs::create_dir(&project).unwrap();
        let mut server = Server::with(|builder| builder.folder(&folder).env("CLAUDE_PROJECT_DIR", project));
        server.ok("x = 5");
        server
    };
    let (mut second, mut first) = (start("project b"), start("project a"));
    let mut elsewhere = Server::start();
    elsewhere.ok("x = 5");
    let output = run(&folder, binary(), &["doctor"]);
    let live = about(&output, "live");
    let expected = [("project a", &mut first), ("project b", &mut second)];
    assert_eq!(live.len(), expected.len(), "{live:?}");
    for ((name, server), line) in expected.into_iter().zip(&live) {
        let who = format!("{} (", folder.path().join(name).display());
        assert!(line.starts_with(&who) && line.contains(&format!(", server pid {}, up ", server.pid())), "{live:?}");
    }
    let size = |output: &Output| {
        let line = about(output, "environment").concat();
        let (size, path) = line.split_once(" MB in ").unwrap_or_else(|| panic!("no size: {line}"));
        (size.parse::<u64>().unwrap(), PathBuf::from(path))
    };
    let (before, environment) = size(&output);
    fs::write(environment.join("large"), vec![0; 3_000_000]).unwrap();
    symlink("/", environment.join("all")).unwrap(); // which does not count
    assert_eq!(size(&run(&folder, binary(), &["doctor"])), (before + 3, environment));
}

/// What doctor says of the settings, a line each, in an environment that has these.
fn settings_with(variables: &[(&str, &str)]) -> Vec<String> {
    let folder = Folder::new();
    let mut command = Command::new(binary());
    command
        .arg("doctor")
        .env_clear()
        .env("HOME", folder.home())
        .env("TMPDIR", folder.tmp())
        .env("PATH", "/usr/bin:/bin");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    text(&output.stdout).lines().filter(|line| line[5..].starts_with("setting ")).map(str::to_owned).collect()
}

#[test]
fn the_settings_of_the_readme_are_those_that_doctor_shows_with_their_defaults() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section =
        readme.split("\n## Settings\n").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a section");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    let told: Vec<String> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split(" | ").collect();
            format!("ok   setting       {} is {} ({})", cells[0].trim_end_matches('`'), cells[1], cells[2])
        })
        .collect();
    assert_eq!(settings_with(&[]), told);
    // And the program reads no others but the one that tests set, and the one that it sets for its cells.
    let main = include_str!("../../src/main.rs").split("#[cfg(test)]").next().unwrap();
    let mut others: Vec<&str> =
        main.split('"').filter(|text| text.starts_with("MCP_PY_") && !text.contains(' ')).collect();
    others.retain(|name| !told.iter().any(|line| line.contains(&format!(" {name} is "))));
    others.sort_unstable();
    others.dedup();
    assert_eq!(others, ["MCP_PY_", "MCP_PY_HURRY", "MCP_PY_INTERPRETER"]);
}

#[test]
fn doctor_shows_the_settings_in_force_and_warns_of_those_that_can_not_be_read() {
    let given = [("MCP_PY_TIMEOUT", "10m"), ("MCP_PY_WAIT", "none"), ("MCP_PY_AUTO_INSTALL", "fasle")];
    let said = settings_with(&given);
    let warning = "can't be read: it must be";
    let expected = [
        format!(
            "WARN setting       MCP_PY_TIMEOUT=10m {warning} the seconds a cell may run, such as 300, or 0 for no limit; \
             600 is used instead"
        ),
        format!(
            "WARN setting       MCP_PY_AUTO_INSTALL=fasle {warning} on or off: whether importing a missing package \
             installs it; off, to be safe, is used instead"
        ),
    ];
    for line in expected {
        assert!(said.contains(&line), "{line}\n{said:#?}");
    }
    assert!(said.iter().any(|line| line.starts_with("ok   setting       MCP_PY_WAIT is none (")), "{said:#?}");
}

#[test]
fn a_misspelt_setting_is_told_by_doctor_and_by_the_server() {
    let is_told = |line: &String| {
        line.ends_with(
            "MCP_PY_TIMOUT is no setting, and does nothing; these are: MCP_PY_TIMEOUT, MCP_PY_WAIT, \
             MCP_PY_START_TIMEOUT, MCP_PY_AUTO_INSTALL, MCP_PY_PYTHON, MCP_PY_HISTORY, MCP_PY_SOCKET",
        )
    };
    let given = [("MCP_PY_TIMOUT", "300"), ("MCP_PY_INTERPRETER", "1:builtin"), ("MCP_PY_HURRY", "20")];
    let mut said = settings_with(&given);
    said.retain(|line| line.starts_with("WARN "));
    assert!(said.len() == 1 && is_told(&said[0]), "{said:#?}");
    let mut server = Server::with(|builder| builder.env("MCP_PY_TIMOUT", "300"));
    let first = server.ok("1 + 1");
    let mut notes = first.lines().filter_map(|line| line.strip_prefix("[mcp-py: ")?.strip_suffix(']'));
    assert!(notes.next().is_some_and(|note| is_told(&note.to_owned())), "{first}");
    assert_eq!(server.ok("1 + 1"), "2");
    assert!(server.stderr().lines().any(|line| is_told(&line.to_owned())), "{}", server.stderr());
}

#[test]
fn doctor_in_a_broken_home_says_the_truth() {
    let folder = Folder::new();
    let state = folder.home().join(".claude-workspace/python_interpreter");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("interpreters.json"), "{\"interpreters\": [").unwrap();
    fs::remove_dir(folder.tmp()).unwrap();
    fs::write(folder.tmp(), "a file where a directory should be").unwrap();
    // A socket whose server is dead.
    let stale = PathBuf::from(format!("/tmp/python-interpreter-{}-1.sock", std::process::id()));
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let mut command = Command::new(binary());
    command.arg("doctor").env_clear().env("HOME", folder.home()).env("TMPDIR", folder.tmp());
    folder.script("mcp-py-client", "#!/bin/sh\n"); // what is called like our client
    let output = command.env("PATH", folder.bin()).output().unwrap();
    let _ = fs::remove_file(&stale); // a server that starts may have done that
    fs::remove_file(folder.tmp()).unwrap();
    let said = facts(&output);
    assert_eq!(output.status.code(), Some(1), "{said:?}");
    let client = format!(
        "{} is another program, or another copy of mcp-py: remove it, or put the folder of this one before it on PATH",
        folder.bin().join("mcp-py-client").display()
    );
    assert_eq!(said["client"], (false, client));
    let missing = "there is no python3 on PATH: install Python 3.8 or newer, or name one in MCP_PY_PYTHON";
    assert_eq!(said["python"], (false, missing.into()));
    assert_eq!(said["environment"], (false, "not looked for without a Python that works".into()));
    assert!(
        !said["saved"].0 && said["saved"].1.contains("interpreters.json can't be read and is left as it is: "),
        "{said:?}"
    );
    assert!(!said["output"].0, "{said:?}");
    let not_looked_for = "there is no uv, and pip is not looked for without a Python that works";
    assert_eq!(said["installer"], (false, not_looked_for.into()));
    assert!(said["ps"] == (true, "not needed: /proc is read instead".into()), "{said:?}");
    let stale: usize = said["stale"].1.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(stale >= 1, "{said:?}");
    assert_eq!(fs::read(state.join("interpreters.json")).unwrap(), b"{\"interpreters\": [");
}
