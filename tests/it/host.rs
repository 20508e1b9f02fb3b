//! What the server learns about the process that started it. The host is the nearest ancestor called `claude`, else the
//! parent; launchers and init are never hosts. Project, session and transcript follow from it. `ps` and `lsof` may be
//! missing, hang or print nonsense: that delays or harms nothing else.
//!
//! The tests may themselves run under a Claude. Where that matters, a `ps` of our own on PATH shows the process tree as
//! if init had started the tests.

use crate::client::{binary, is_on_macos, python, write_executable, Folder, RealHome, Server, DEADLINE};
use crate::procs;
use serde_json::{json, Value};
use std::fs::{self, File};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[track_caller]
fn info(server: &mut Server) -> Value {
    let result = server.call("get_session_info", json!({}));
    if result.is_error || !result.structured.is_object() {
        server.fail(&format!("no session info but {}", result.text));
    }
    result.structured
}

/// The host that get_session_info tells; `claude` for one that is Claude.
#[track_caller]
fn expect_host(server: &mut Server, name: &str, pid: i32, claude: bool) {
    let info = info(server);
    let expected = json!({"host": name, "host_pid": pid, "claude_pid": if claude { json!(pid) } else { Value::Null }});
    let told = json!({"host": info["host"], "host_pid": info["host_pid"], "claude_pid": info["claude_pid"]});
    if told != expected {
        server.fail(&format!("the host is {expected}, not {told}"));
    }
}

/// A `ps` that tells our own ancestors up to the tests, whose parent it says is init; and where it counts its runs.
fn ps_of_the_tests(folder: &Folder) -> PathBuf {
    let count = folder.path().join("ps-runs");
    let text = format!(
        "#!/bin/sh\necho run >> '{}'\npid=$PPID\nwhile [ \"$pid\" -gt 1 ]; do\n\
         read -r line < /proc/$pid/stat\nset -- ${{line##*) }}\nparent=$2\n\
         read -r name < /proc/$pid/comm\n[ $pid = {} ] && parent=1\n\
         printf '%s %s %s\\n' $pid $parent \"{}\"\npid=$parent\ndone\n",
        count.display(),
        std::process::id(),
        if is_on_macos() { "$name" } else { "$name $name" }, // the columns that are asked for
    );
    folder.script("ps", &text);
    count
}

/// PATH with the folder's own programs before the system's.
fn path_with(folder: &Folder) -> String {
    format!("{}:/usr/bin:/bin", folder.bin().display())
}

/// Processes of these names between the one that `under` starts and the server, outermost first: to be started as
/// `arg0("launch")`.
fn launched_through(folder: &Folder, names: &[&str]) {
    let mut line = "exec".to_string();
    for name in names {
        let copy = folder.bin().join(name);
        if !copy.exists() {
            write_executable(&copy, &fs::read("/bin/sh").expect("a shell"));
        }
        line.push_str(&format!(" '{}' -c '\"$0\" \"$@\"; exit $?'", copy.display()));
    }
    folder.script("launch", &format!("#!/bin/sh\n{line} '{}' server\n", binary().display()));
}

/// The ancestors of the server, nearest first.
fn ancestors(pid: i32) -> Vec<i32> {
    std::iter::successors(procs::parent_of(pid), |&pid| procs::parent_of(pid)).take_while(|&pid| pid > 1).collect()
}

fn server_pid(server: &mut Server) -> i32 {
    info(server)["server_pid"].as_i64().expect("server_pid") as i32
}

// ---- who the host is -----------------------------------------------------------------------------------------------

#[test]
fn a_parent_called_claude_is_the_host() {
    for name in ["claude", "Claude", "CLAUDE"] {
        let mut server = Server::with(|builder| builder.under(name));
        let outer = server.outer_pid();
        if is_on_macos() && name != "claude" {
            expect_host(&mut server, name, outer, false); // there it is the app
            continue;
        }
        expect_host(&mut server, "claude", outer, true);
        let pid = server.pid();
        assert_eq!(server_pid(&mut server), pid);
    }
}

#[test]
fn a_program_in_a_folder_of_claude_versions_is_claude() {
    let folder = Folder::new();
    fs::create_dir_all(folder.bin().join("claude/versions")).unwrap();
    let mut server = Server::with(|builder| builder.folder(&folder).under("claude/versions/2.1.330"));
    let outer = server.outer_pid();
    expect_host(&mut server, "claude", outer, true);
}

#[test]
fn another_parent_is_the_host_but_no_claude() {
    for name in ["codex", "claudette", "my-claude", "node"] {
        let folder = Folder::new();
        ps_of_the_tests(&folder);
        let mut server = Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)).under(name));
        let outer = server.outer_pid();
        expect_host(&mut server, name, outer, false);
    }
}

#[test]
fn the_parent_is_the_host_for_the_systems_own_ps_too() {
    let mut server = Server::with(|builder| builder.under("codex"));
    let outer = server.outer_pid();
    let claude = |pid: &i32| procs::name_of(*pid).eq_ignore_ascii_case("claude");
    match ancestors(outer).into_iter().find(claude) {
        None => expect_host(&mut server, "codex", outer, false),
        Some(above) => expect_host(&mut server, &procs::name_of(above), above, true), // the tests run under one
    }
}

#[test]
fn launchers_are_no_hosts() {
    for launchers in [&["uv"][..], &["uvx"], &["npx"], &["npm"], &["npm", "uvx", "uv"]] {
        let folder = Folder::new();
        ps_of_the_tests(&folder);
        launched_through(&folder, launchers);
        let mut server = Server::with(|builder| {
            builder.folder(&folder).env("PATH", path_with(&folder)).under("codex").arg0("launch")
        });
        let outer = server.outer_pid();
        expect_host(&mut server, "codex", outer, false);
        let own = server_pid(&mut server);
        assert_eq!(ancestors(own)[launchers.len()], outer, "{launchers:?} are in between");
    }
}

#[test]
fn a_launcher_that_renames_itself_is_skipped_with_and_without_ps() {
    // npx does: its process is called `npm exec …`.
    for with_ps in [true, false] {
        let folder = Folder::new();
        let path = if with_ps { path_with(&folder) } else { folder.bin().to_str().unwrap().to_string() };
        launched_through(&folder, &["npm exec x"]);
        let mut server =
            Server::with(|builder| builder.folder(&folder).env("PATH", path).under("claude-like").arg0("launch"));
        let info = info(&mut server);
        let host = info["host"].as_str().unwrap_or_default();
        assert!(!host.starts_with("npm"), "ps: {with_ps}, host: {host}");
    }
}

#[test]
fn claude_is_the_host_also_with_others_in_between() {
    for between in [&["bash"][..], &["codex", "bash"], &["npx", "node"]] {
        let folder = Folder::new();
        launched_through(&folder, between);
        let mut server = Server::with(|builder| builder.folder(&folder).under("claude").arg0("launch"));
        let outer = server.outer_pid();
        expect_host(&mut server, "claude", outer, true);
    }
}

#[test]
fn of_two_claudes_the_nearer_one_is_the_host() {
    let folder = Folder::new();
    launched_through(&folder, &["claude", "bash"]);
    let mut server = Server::with(|builder| builder.folder(&folder).under("claude").arg0("launch"));
    let outer = server.outer_pid();
    let own = server_pid(&mut server);
    let chain = ancestors(own);
    assert_eq!(chain[2], outer);
    expect_host(&mut server, "claude", chain[1], true);
}

#[test]
fn init_is_nobodys_host() {
    for parent in ["1", "0"] {
        let folder = Folder::new();
        folder
            .script("ps", &format!("#!/bin/sh\necho 1 0 init /sbin/init\necho $PPID {parent} mcp-py mcp-py server\n"));
        let mut server = Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)));
        let info = info(&mut server);
        for unknown in ["host", "host_pid", "claude_pid", "session_id", "transcript_path"] {
            assert_eq!(info[unknown], Value::Null, "{unknown}");
        }
        assert_eq!(info["verified"], false);
        assert_eq!(info["project_dir"], json!(folder.project()), "its own working directory is all there is");
        assert_eq!(server.ok("1 + 1"), "2");
    }
}

#[test]
fn host_and_project_are_looked_up_once() {
    let folder = Folder::new();
    let ps_runs = ps_of_the_tests(&folder);
    let lsof_runs = folder.path().join("lsof-runs");
    folder.script("lsof", &format!("#!/bin/sh\necho run >> '{}'\n", lsof_runs.display()));
    let mut server = Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)).under("codex"));
    server.initialize();
    let ids: Vec<_> = (0..3).map(|_| server.start_call("get_session_info", json!({}))).collect();
    let infos: Vec<_> = ids.into_iter().map(|id| server.wait(id).structured["host_pid"].clone()).collect();
    assert_eq!(infos, vec![json!(server.outer_pid()); 3]);
    server.call("list_interpreters", json!({}));
    server.ok("1");
    info(&mut server);
    for runs in [ps_runs, lsof_runs] {
        assert_eq!(fs::read_to_string(&runs).unwrap_or_default(), "run\n", "{}", runs.display());
    }
}

// ---- ps and lsof that fail -----------------------------------------------------------------------------------------

#[test]
fn without_ps_and_lsof_the_kernel_is_asked() {
    let folder = Folder::new();
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    folder
        .script("launch", &format!("#!/bin/sh\ncd '{}'\nexec '{}' server\n", elsewhere.display(), binary().display()));
    let mut server =
        Server::with(|builder| builder.folder(&folder).env("PATH", folder.bin()).under("claude").arg0("launch"));
    let outer = server.outer_pid();
    expect_host(&mut server, "claude", outer, true);
    assert_eq!(info(&mut server)["project_dir"], json!(folder.project()), "the host's directory, not the server's");
    assert_eq!(server.ok("1 + 1"), "2");
}

#[test]
fn a_ps_that_prints_nonsense_is_not_believed() {
    let own_line_missing = "#!/bin/sh\necho 1 0 init init\necho 2 1 claude claude\n";
    for script in [
        "#!/bin/sh\nexit 1\n",
        "#!/bin/sh\necho 'ps: unknown option -- A' >&2\necho 'usage: ps [options]'\nexit 1\n",
        "#!/bin/sh\nprintf '\\377\\376\\000 1 2 3\\n\\n\\n   \\n'\n",
        "#!/bin/sh\necho 99999999999999999999 -1 x y\necho - - - -\necho 5\n",
        "#!/bin/sh\nexec yes 'no process at all'\n",
        "#!/bin/sh\nkill -KILL $$\n",
        own_line_missing,
        "no program",
    ] {
        let folder = Folder::new();
        folder.script("ps", script);
        let mut server =
            Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)).under("claude"));
        let outer = server.outer_pid();
        if is_on_macos() {
            let told = info(&mut server); // there is no /proc: the parent is all that is known
            assert_eq!((&told["host"], &told["host_pid"]), (&Value::Null, &json!(outer)));
        } else {
            expect_host(&mut server, "claude", outer, true);
        }
        assert_eq!(server.ok("1 + 1"), "2");
    }
}

/// A program of this name that announces itself and then hangs, as does its child.
fn hanging(folder: &Folder, name: &str) -> PathBuf {
    let mark = folder.path().join(format!("{name}-runs"));
    folder.script(name, &format!("#!/bin/sh\nsleep 600 &\n: > '{}'\nsleep 600\n", mark.display()));
    mark
}

#[test]
fn a_ps_that_hangs_delays_only_who_asks_for_the_host() {
    let folder = Folder::new();
    let mark = hanging(&folder, "ps");
    let mut server = Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)).under("claude"));
    server.initialize();
    let asked = server.start_call("get_session_info", json!({}));
    server.expect_file(&mark);
    server.expect_no_answer(); // but that of the ping
    assert_eq!(server.ok("1 + 1"), "2");
    let answer = server.wait(asked);
    let outer = server.outer_pid();
    assert_eq!(answer.structured["host_pid"], outer, "found without ps");
}

#[test]
fn an_lsof_that_hangs_delays_only_the_answer_that_needs_it() {
    let folder = Folder::new();
    let mark = hanging(&folder, "lsof");
    let mut server = Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)).under("claude"));
    server.initialize();
    assert_eq!(server.ok("x = 20"), "");
    let asked = server.start_call("get_session_info", json!({}));
    server.expect_file(&mark);
    server.expect_no_answer(); // but that of the ping
    let cell = server.start_exec("x + 1");
    let first = server.recv(DEADLINE);
    assert_eq!((&first["id"], &first["result"]["content"][0]["text"]), (&json!(cell), &json!("21")));
    let began = Instant::now();
    let answer = server.wait(asked);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(answer.structured["project_dir"], json!(folder.project()), "found without lsof");
}

#[test]
fn two_thousand_calls_may_wait_for_files_and_the_next_is_refused() {
    let folder = Folder::new();
    let mark = hanging(&folder, "lsof");
    let mut server = Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)).under("claude"));
    server.initialize();
    let asked: Vec<i64> = (0..2_000).map(|_| server.start_call("get_session_info", json!({}))).collect();
    server.expect_file(&mark);
    let refused = server.request("tools/call", json!({"name": "list_interpreters"}));
    let why = &refused["error"]["message"];
    assert_eq!(
        (&refused["error"]["code"], why),
        (&json!(-32603), &json!("too many requests wait for their answers: try again when some have got theirs"))
    );
    for id in asked {
        assert!(!server.wait(id).is_error);
    }
    assert_eq!(server.ok("6 * 7"), "42");
    assert!(!server.call("list_interpreters", json!({})).is_error);
}

#[test]
fn a_ps_that_never_ends_to_print_is_cut_off() {
    let folder = Folder::new();
    folder.script("ps", "#!/bin/sh\nexec yes 123456789 1 claude claude\n"); // in the columns of either system
    let mut server = Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)).under("claude"));
    let began = Instant::now();
    let told = info(&mut server);
    assert_eq!(told["host_pid"], server.outer_pid(), "found without ps");
    let peak = procs::peak_rss_kb(server.pid());
    assert!(peak < 40 << 10, "8 MiB were enough, not {peak} KiB in {:?}", began.elapsed());
}

#[test]
fn a_ps_or_lsof_that_was_given_up_is_not_left_running() {
    let folder = Folder::new();
    let marks = [hanging(&folder, "ps"), hanging(&folder, "lsof")];
    let mut server = Server::with(|builder| {
        builder.folder(&folder).env("PATH", path_with(&folder)).env("MCP_PY_PYTHON", "/bin/false")
    });
    info(&mut server);
    assert!(marks.iter().all(|mark| mark.exists()));
    let own = server.pid();
    procs::eventually(Duration::from_secs(10), "nothing runs but the server", || server.processes() == [own]);
}

#[test]
fn a_server_whose_ps_hangs_ends_as_promptly_as_others() {
    let folder = Folder::new();
    let mark = folder.path().join("ps-runs");
    folder.script("ps", &format!("#!/bin/sh\n: > '{}'\nexec sleep 600\n", mark.display()));
    let mut server = Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)));
    server.initialize();
    server.expect_file(&mark);
    assert_eq!(server.finish(Duration::from_secs(10)), Some(0));
    procs::eventually(Duration::from_secs(10), "nothing is left", || server.processes().is_empty());
}

#[test]
fn an_lsof_that_prints_nonsense_is_not_believed() {
    for script in [
        "#!/bin/sh\nexit 1\n".to_string(),
        "#!/bin/sh\necho 'lsof: no such option'\necho 'usage: lsof'\n".into(),
        "#!/bin/sh\nprintf '\\377\\000\\nn\\nf\\n'\n".into(),
        "#!/bin/sh\nprintf 'p1\\nfcwd\\nn\\n'\n".into(),
        "#!/bin/sh\nprintf 'p1\\nfcwd\\nn/proc/1/cwd (readlink: Permission denied)\\n'\n".into(),
        "#!/bin/sh\nprintf 'p1\\nfcwd\\nnrelative/path\\n'\n".into(),
        "#!/bin/sh\nexec yes fcwd\n".into(),
    ] {
        let folder = Folder::new();
        folder.script("lsof", &script);
        let mut server =
            Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)).under("claude"));
        let info = info(&mut server);
        if info["project_dir"] != json!(folder.project()) {
            server.fail(&format!("{script:?}: the project is {}", info["project_dir"]));
        }
        assert_eq!(info["verified"], false);
    }
}

// ---- the project ---------------------------------------------------------------------------------------------------

#[test]
fn the_project_is_where_the_host_works() {
    let folder = Folder::new();
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    folder
        .script("launch", &format!("#!/bin/sh\ncd '{}'\nexec '{}' server\n", elsewhere.display(), binary().display()));
    // By the system's lsof, if there is one.
    let mut server = Server::with(|builder| builder.folder(&folder).under("claude").arg0("launch"));
    assert_eq!(info(&mut server)["project_dir"], json!(folder.project()));
    drop(server);
    // And by one whose answer nobody else could give.
    let told = folder.path().join("told by lsof");
    fs::create_dir(&told).unwrap();
    folder.script("lsof", &format!("#!/bin/sh\nprintf 'p1\\nfcwd\\nn{}\\nf0\\nn/dev/null\\n'\n", told.display()));
    let mut server =
        Server::with(|builder| builder.folder(&folder).env("PATH", path_with(&folder)).under("claude").arg0("launch"));
    assert_eq!(info(&mut server)["project_dir"], json!(told));
}

#[test]
fn claude_project_dir_says_what_the_project_is() {
    let folder = Folder::new();
    let project = folder.path().join("the project");
    fs::create_dir(&project).unwrap();
    let mut server =
        Server::with(|builder| builder.folder(&folder).under("claude").env("CLAUDE_PROJECT_DIR", &project));
    assert_eq!(info(&mut server)["project_dir"], json!(project));
    drop(server);
    for nonsense in ["", "relative/path"] {
        let mut server =
            Server::with(|builder| builder.folder(&folder).under("claude").env("CLAUDE_PROJECT_DIR", nonsense));
        assert_eq!(info(&mut server)["project_dir"], json!(folder.project()), "{nonsense:?}");
    }
}

#[test]
fn open_files_of_claudes_configuration_are_reported() {
    // The host's stderr is the file that it holds open.
    for tools in [true, false] {
        let folder = Folder::new();
        let path = if tools { std::env::var("PATH").unwrap() } else { folder.bin().to_str().unwrap().into() };
        let config = folder.path().join("config");
        for (place, variable, verified) in [
            (folder.home().join(".claude"), None, true),
            (folder.project().join(".claude"), None, true),
            (config.clone(), Some(&config), true),
            (folder.home().join(".claude"), Some(&config), false), // the variable moves it
            (folder.home().join(".claude-workspace"), None, false),
            (folder.path().join("anywhere"), None, false),
        ] {
            fs::create_dir_all(place.join("deep")).unwrap();
            let file = File::create(place.join("deep/debug.log")).unwrap();
            let mut server = Server::with(|builder| {
                let builder = builder.folder(&folder).env("PATH", &path).under("claude").stderr(file.into());
                match variable {
                    Some(config) => builder.env("CLAUDE_CONFIG_DIR", config),
                    None => builder,
                }
            });
            assert_eq!(info(&mut server)["verified"], verified, "lsof: {tools}, {}, {variable:?}", place.display());
        }
    }
}

// ---- the session ---------------------------------------------------------------------------------------------------

fn write_sessions(folder: &Folder, text: &str) {
    fs::create_dir_all(folder.home().join(".claude-workspace")).unwrap();
    fs::write(folder.home().join(".claude-workspace/sessions.json"), text).unwrap();
}

fn session(id: &str, state: &str, claude: Value) -> Value {
    json!({"session_id": id, "state": state, "project_dir": "/p", "claude_pid": claude, "started_at": "2026-01-02T15:04:05Z"})
}

#[test]
fn the_session_is_the_one_active_of_this_claude() {
    for told in [None, Some("of-the-environment")] {
        let folder = Folder::new();
        let mut server = Server::with(|builder| {
            let builder = builder.folder(&folder).under("claude");
            told.iter().fold(builder, |builder, id| builder.env("CLAUDE_CODE_SESSION_ID", id))
        });
        let pid = server.outer_pid();
        let ours = |id, state| session(id, state, json!(pid));
        let other = session("of-another", "active", json!(pid + 1));
        let fallback = json!(told);
        assert_eq!(info(&mut server)["session_id"], fallback, "no file yet");
        // Each is read when it is asked for.
        for (sessions, expected) in [
            (json!([ours("one", "active")]), json!("one")),
            (json!([other, ours("two", "active"), ours("old", "exited")]), json!("two")),
            (json!([ours("one", "active"), ours("two", "active")]), fallback.clone()),
            (json!([ours("one", "exited")]), fallback.clone()),
            (json!([other]), fallback.clone()),
            (json!([]), fallback.clone()),
            (json!([session("as-text", "active", json!(pid.to_string()))]), fallback.clone()),
            (json!([session("null", "active", Value::Null)]), fallback.clone()),
            (json!([5, null, "x", {"state": "active", "claude_pid": pid}, ours("three", "active")]), json!("three")),
            (json!({"x": 1}), fallback.clone()),
        ] {
            write_sessions(&folder, &json!({"sessions": sessions, "version": 3}).to_string());
            let told = info(&mut server)["session_id"].clone();
            if told != expected {
                server.fail(&format!("with {sessions} the session is {expected}, not {told}"));
            }
        }
        for corrupt in ["", "{\"sessions\": [", "[]", "null", "\"x\"", "{\"sessions\": 5}"] {
            write_sessions(&folder, corrupt);
            assert_eq!(info(&mut server)["session_id"], fallback, "{corrupt:?}");
        }
        fs::remove_file(folder.home().join(".claude-workspace/sessions.json")).unwrap();
        fs::create_dir(folder.home().join(".claude-workspace/sessions.json")).unwrap();
        assert_eq!(info(&mut server)["session_id"], fallback, "a directory");
    }
}

#[test]
fn a_host_that_is_not_claude_has_no_session_in_the_file() {
    let folder = Folder::new();
    ps_of_the_tests(&folder);
    let mut server = Server::with(|builder| {
        let builder = builder.folder(&folder).env("PATH", path_with(&folder));
        builder.under("codex").env("CLAUDE_CODE_SESSION_ID", "of-the-environment")
    });
    let pid = server.outer_pid();
    write_sessions(&folder, &json!({"sessions": [session("of-the-file", "active", json!(pid))]}).to_string());
    assert_eq!(info(&mut server)["session_id"], "of-the-environment");
}

#[test]
fn the_transcript_is_named_by_project_and_session() {
    let folder = Folder::new();
    let project = folder.path().join("My project_1.0 ü");
    fs::create_dir(&project).unwrap();
    let slug = |path: &Path| -> String {
        let text = path.to_str().unwrap();
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
    };
    assert!(slug(&project).ends_with("-My-project-1-0--"), "{}", slug(&project));
    let config = folder.path().join("config dir");
    for (variable, place) in [(None, folder.home().join(".claude")), (Some(&config), config.clone())] {
        let mut server = Server::with(|builder| {
            let builder = builder.folder(&folder).under("claude").env("CLAUDE_PROJECT_DIR", &project);
            variable.iter().fold(builder, |builder, dir| builder.env("CLAUDE_CONFIG_DIR", dir))
        });
        assert_eq!(info(&mut server)["transcript_path"], Value::Null, "no session is known yet");
        let pid = server.outer_pid();
        write_sessions(&folder, &json!({"sessions": [session("a-b-c", "active", json!(pid))]}).to_string());
        let expected = place.join("projects").join(slug(&project)).join("a-b-c.jsonl");
        assert_eq!(info(&mut server)["transcript_path"], json!(expected));
    }
}

#[test]
fn what_the_server_tells_of_itself_is_true() {
    let folder = Folder::new();
    let mut server = Server::with(|builder| builder.folder(&folder).under("claude"));
    let info = info(&mut server);
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["server_pid"], server.pid());
    let output = PathBuf::from(info["output_dir"].as_str().expect("output_dir"));
    assert_eq!(output.parent(), Some(&*folder.tmp()));
    assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o700);
    let text = server.ok("print('x' * 30_000)");
    assert!(text.contains(output.to_str().unwrap()), "the full output is there");
}

#[test]
fn with_no_variable_but_path_all_works() {
    let (_home, folder) = (RealHome::borrow(), Folder::new());
    symlink(python(), folder.bin().join("python3")).unwrap();
    let mut server = Server::with(|builder| {
        let builder = builder.folder(&folder).under("claude").env("PATH", path_with(&folder));
        builder.env_remove("HOME").env_remove("TMPDIR").env_remove("MCP_PY_PYTHON")
    });
    server.initialize();
    let outer = server.outer_pid();
    expect_host(&mut server, "claude", outer, true);
    let info = info(&mut server);
    assert_eq!(info["project_dir"], json!(folder.project()));
    assert!(info["output_dir"].is_string());
    assert_eq!(server.ok("1 + 1"), "2");
    let list = server.call("list_interpreters", json!({}));
    assert_eq!(list.structured["result"][0]["name"], "builtin");
    // It leaves by itself: without TMPDIR its output directory is not in a folder that the harness removes.
    assert_eq!(server.finish(Duration::from_secs(30)), Some(0));
    assert!(!Path::new(info["output_dir"].as_str().unwrap()).exists());
}

/// One thread looks at all files: what it waited for there, every call that needs files would wait for.
#[test]
fn a_fifo_in_place_of_the_sessions_holds_up_nobody() {
    let folder = Folder::new();
    let place = folder.home().join(".claude-workspace");
    fs::create_dir_all(&place).unwrap();
    let made = std::process::Command::new("mkfifo").arg(place.join("sessions.json")).status().unwrap();
    assert!(made.success());
    let mut server = Server::with(|builder| builder.folder(&folder).under("claude"));
    let asked = server.start_call("get_session_info", json!({}));
    assert!(server.wait_within(asked, Duration::from_secs(20)).structured["session_id"].is_null());
    let asked = server.start_call("list_interpreters", json!({}));
    assert!(!server.wait_within(asked, Duration::from_secs(20)).is_error);
}

/// The apps of macOS's desktop start servers with a PATH that lacks what a shell has.
#[test]
fn with_the_path_of_a_desktop_app_python_is_found_on_macos() {
    let folder = Folder::new();
    let bin = folder.home().join(".local/bin");
    fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(python(), bin.join("python3")).unwrap();
    let mut server = Server::with(|builder| {
        builder.folder(&folder).env_remove("MCP_PY_PYTHON").env("PATH", "/nowhere").env("HOME", folder.home())
    });
    let told = server.exec("6 * 7");
    if is_on_macos() {
        assert_eq!(told.text, "42");
    } else {
        assert!(told.text.contains("there is no python3 on PATH"), "{told:?}");
    }
}

/// It opens a dialog where the Command Line Tools are missing. In the model the system's python3 stands for it.
#[test]
fn apples_stub_of_python_is_not_started_without_the_tools_that_it_leads_to() {
    let mut server = Server::with(|builder| builder.env_remove("MCP_PY_PYTHON").env("PATH", "/usr/bin:/bin"));
    let told = server.exec("6 * 7");
    let is_there = fs::metadata("/usr/bin/python3").is_ok() && !is_on_macos();
    assert_eq!(told.text == "42", is_there, "{told:?}");
    assert!(is_there || told.text.contains("there is no python3 on PATH"), "{told:?}");
}

#[test]
fn ps_and_lsof_are_asked_for_names_in_utf_8_on_macos() {
    let folder = Folder::new();
    let seen = folder.path().join("seen");
    folder.script("lsof", &format!("#!/bin/sh\necho \"$LC_ALL $LC_CTYPE\" > '{}'\n", seen.display()));
    let mut server = Server::with(|builder| {
        builder.folder(&folder).env("PATH", path_with(&folder)).env("LC_ALL", "C").env("LC_CTYPE", "C")
    });
    info(&mut server);
    let expected = if is_on_macos() { " UTF-8\n" } else { "C C\n" };
    assert_eq!(fs::read_to_string(seen).unwrap(), expected);
}
