//! The builtin runs in an environment of its own, made once from its Python. A cell's import of a missing package
//! installs it there and then goes on; imports that are guarded, or made by libraries, install nothing, and other
//! interpreters are never changed. Without uv, pip or a network the answer says what to do.
//!
//! `uv` is a script here. It copies the package that it is asked for into the environment, and keeps a list.
//! tests/interop/packages.py uses the real uv and pip.

use crate::cells::{check, failure, has, lacks};
use crate::client::{python, Builder, Folder, Server, DEADLINE};
use crate::procs::{self, eventually};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{symlink, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// `uv pip install --python ENV/bin/python PACKAGE`. The module has the package's name. `zz_broken` is in no index,
/// `zz_offline` finds no network, `zz_slow` writes down the pid of a child of its own and waits for it.
const UV: &str = r#"#!/bin/sh
[ "$1 $2 $3" = "pip install --python" ] || exit 9
site=$(echo "${4%/bin/python}"/lib/*/site-packages)
echo "$5" >>"$UV_LIST"
case $5 in
    zz_broken) echo "  x No solution found" >&2; echo "zz_broken was not found in the index" >&2; exit 1 ;;
    zz_offline) echo "error: client error (Connect): dns error: failed to look it up" >&2; exit 2 ;;
    zz_resolve) echo "Failed to resolve 'index' ([Errno 8] some words of the system)" >&2; exit 2 ;;
    zz_nodename) echo "[Errno 8] nodename nor servname provided, or not known" >&2; exit 2 ;;
    zz_family) echo " + zz-cousin==2.0" ;;
    zz_slow) sleep 1000 & echo $! >"$UV_LIST.child"; wait ;;
esac
mkdir -p "$site/$5-1.5.dist-info"
echo "value = 42" >"$site/$5.py"
echo " + $(echo "$5" | tr _ -)==1.5"
"#;

/// Puts the script on PATH, with its list.
fn with_uv(folder: &Folder, builder: Builder) -> Builder {
    folder.script("uv", UV);
    let path = format!("{}:{}", folder.bin().display(), std::env::var("PATH").unwrap());
    // An index set for uv, so that settings for pip of whoever runs these tests are not used.
    builder.folder(folder).env("PATH", path).env("UV_LIST", list_of(folder)).env("UV_DEFAULT_INDEX", "its own")
}

fn list_of(folder: &Folder) -> PathBuf {
    folder.path().join("asked")
}

fn start() -> Server {
    start_with("MCP_PY_HURRY", "1")
}

fn start_with(name: &str, value: &str) -> Server {
    let folder = Folder::new();
    Server::with(|builder| with_uv(&folder, builder).env(name, value))
}

/// What uv was asked for.
fn asked(server: &Server) -> Vec<String> {
    let list = fs::read_to_string(list_of(server.folder())).unwrap_or_default();
    list.lines().map(str::to_string).collect()
}

fn state_of(folder: &Folder) -> PathBuf {
    folder.home().join(".claude-workspace/python_interpreter")
}

fn environments(folder: &Folder) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_of(folder)).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("env-")).collect()
}

// ---- installs ------------------------------------------------------------------------------------------------------

#[test]
fn a_missing_import_is_installed_and_the_cell_goes_on_where_it_was() {
    let mut server = start();
    let text = server.ok("log = []\nlog.append(1); import zz_demo\nzz_demo.value, log");
    assert_eq!(text, "[mcp-py: installed zz_demo 1.5 for zz_demo]\n(42, [1])");
    check(&mut server, "import zz_demo; zz_demo.value", "42");
    let text = server.ok("import zz_family");
    assert_eq!(text, "[mcp-py: installed zz_family 1.5, zz-cousin 2.0 for zz_family]");
    assert_eq!(asked(&server), ["zz_demo", "zz_family"]);
}

#[test]
fn an_import_in_a_function_of_an_earlier_cell_or_by_import_module_installs_too() {
    let mut server = start();
    check(&mut server, "def f():\n    from zz_late import value\n    return value", "");
    assert!(asked(&server).is_empty());
    assert_eq!(server.ok("f()"), "[mcp-py: installed zz_late 1.5 for zz_late]\n42");
    check(&mut server, "import importlib", "");
    let text = server.ok("importlib.import_module('zz_module').value");
    assert_eq!(text, "[mcp-py: installed zz_module 1.5 for zz_module]\n42");
    let text = server.ok("class C:\n    import zz_class as one\nC.one.value");
    assert_eq!(text, "[mcp-py: installed zz_class 1.5 for zz_class]\n42");
    let text = server.ok("async def g():\n    import zz_async\n    return zz_async.value\nawait g()");
    assert_eq!(text, "[mcp-py: installed zz_async 1.5 for zz_async]\n42");
    // So many names come before this one that its index needs an extended argument in the byte code.
    let names: String = (0..300).map(|n| format!("n{n} = {n}\n")).collect();
    let text = server.ok(&format!("{names}import zz_far; zz_far.value"));
    assert_eq!(text, "[mcp-py: installed zz_far 1.5 for zz_far]\n42");
}

#[test]
fn an_import_whose_failure_is_expected_installs_nothing() {
    let mut server = start();
    for code in [
        "try:\n    import zz_a\nexcept ImportError:\n    print('none')",
        "try:\n    if True:\n        from zz_a import b\nexcept (KeyError, ModuleNotFoundError):\n    print('none')",
        "try:\n    import zz_a\nexcept Exception as e:\n    print('none')",
        "try:\n    import zz_a\nexcept:\n    print('none')",
        "import contextlib\nwith contextlib.suppress(ImportError):\n    import zz_a\nprint('none')",
        "from contextlib import suppress\nwith suppress(KeyError, Exception):\n    import zz_a\nprint('none')",
        "def f():\n    try:\n        import zz_a\n    except ImportError:\n        print('none')\nf()",
        "def load():\n    import zz_a\ntry:\n    load()\nexcept ImportError:\n    print('none')",
    ] {
        check(&mut server, code, "none");
    }
    // A guard in another cell's frame counts.
    check(&mut server, "def load():\n    import zz_a", "");
    check(&mut server, "try:\n    load()\nexcept ImportError:\n    print('none')", "none");
    assert!(asked(&server).is_empty(), "{:?}", asked(&server));
    // A `try` that takes another exception is no guard, and neither is the `else` of one.
    server.ok("try:\n    import zz_b\nexcept KeyError:\n    pass");
    server.ok("try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    import zz_c");
    assert_eq!(asked(&server), ["zz_b", "zz_c"]);
}

#[test]
fn only_statements_of_cells_install_never_what_libraries_probe() {
    let mut server = start();
    let project = server.folder().project();
    fs::write(project.join("prober.py"), "def probe():\n    import zz_probed\n").unwrap();
    fs::write(project.join("guarded.py"), "try:\n    import zz_probed\nexcept ImportError:\n    zz_probed = None\n")
        .unwrap();
    check(&mut server, "import guarded; guarded.zz_probed", "");
    check(&mut server, "import importlib.util; importlib.util.find_spec('zz_probed')", "");
    for code in [
        "import prober; prober.probe()",
        "__import__('zz_probed')",
        "exec('import zz_probed')",
        "eval(compile('import zz_probed', 'x', 'exec'))",
        "import pickle; pickle.loads(b'czz_probed\\nx\\n.')",
    ] {
        let text = failure(&mut server, code);
        has(&mut server, &text, &["ModuleNotFoundError: No module named 'zz_probed'"]);
        has(&mut server, &text, &["[mcp-py: zz_probed is not installed; `import zz_probed` in a cell installs it]\n"]);
    }
    let thread =
        "import threading\nwent = []\ndef f():\n    try: g()\n    except BaseException as e: went.append(repr(e))\n\
        def g():\n    import zz_probed\nt = threading.Thread(target=g, daemon=True)\nthreading.excepthook = print\n\
        t.start(); t.join()";
    let text = server.ok(thread);
    has(&mut server, &text, &["zz_probed"]);
    assert!(asked(&server).is_empty(), "{:?}", asked(&server));
}

#[test]
fn names_of_the_standard_library_and_of_no_package_are_never_asked_for() {
    let mut server = start();
    for name in ["_nothing", "winreg", "msvcrt", "google.cloud", "json.nope", "os.nope", "json.nope.deeper"] {
        let text = failure(&mut server, &format!("import {name}"));
        has(&mut server, &text, &["ModuleNotFoundError"]);
        lacks(&mut server, &text, &["[mcp-py"]);
    }
    // Modules that the standard library of another version has.
    for name in "aifc annotationlib asynchat asyncore audioop binhex cgi cgitb chunk compression crypt distutils \
        formatter graphlib imghdr imp lib2to3 macpath mailcap msilib nis nntplib nt ossaudiodev parser \
        pipes smtpd sndhdr spwd sunau symbol telnetlib tomllib uu xdrlib zoneinfo"
        .split_whitespace()
    {
        let text = server.exec(&format!("import {name}")).text;
        lacks(&mut server, &text, &["[mcp-py"]);
    }
    failure(&mut server, "import importlib; importlib.import_module('--version')");
    failure(&mut server, "import importlib; importlib.import_module('zz-dash')");
    assert!(asked(&server).is_empty(), "{:?}", asked(&server));
}

#[test]
fn packages_are_asked_for_by_their_own_names() {
    let mut server = start();
    failure(&mut server, "import PIL"); // what the script installs is called pillow
    failure(&mut server, "import sklearn");
    failure(&mut server, "import cv2");
    assert_eq!(asked(&server), ["pillow", "scikit-learn", "opencv-python-headless"]);
}

#[test]
fn a_failed_install_is_the_import_error_with_the_installers_last_lines() {
    let mut server = start();
    let text = failure(&mut server, "import zz_broken");
    let why = "[mcp-py: zz_broken could not be installed: x No solution found; zz_broken was not found in the index]\n";
    assert!(text.starts_with(why), "{text}");
    assert!(text.ends_with("import zz_broken\nModuleNotFoundError: No module named 'zz_broken'"), "{text}");
    // It is asked for once in each cell, however often the cell tries.
    failure(&mut server, "def f():\n    import zz_broken\nfor _ in range(9):\n    try: f()\n    except KeyError: pass");
    assert_eq!(asked(&server).len(), 2);
    check(&mut server, "'next'", "'next'");
}

#[test]
fn no_network_is_remembered_for_a_while() {
    let mut server = start();
    let text = failure(&mut server, "import zz_offline");
    has(&mut server, &text, &["[mcp-py: zz_offline could not be installed: ", "dns error"]);
    let text = failure(&mut server, "import zz_other");
    has(&mut server, &text, &["[mcp-py: zz_other was not installed: 0 s ago there was no network]\n"]);
    assert_eq!(asked(&server), ["zz_offline"]);
}

#[test]
fn after_a_minute_the_network_is_tried_again() {
    let mut server = start_with("MCP_PY_HURRY", "20");
    failure(&mut server, "import zz_offline");
    failure(&mut server, "import zz_other");
    eventually(DEADLINE, "it is asked for", || !server.exec("import zz_other").is_error);
    assert_eq!(asked(&server), ["zz_offline", "zz_other"]);
}

#[test]
fn an_installer_that_does_not_end_is_ended() {
    let mut server = start_with("MCP_PY_HURRY", "20");
    let text = failure(&mut server, "import zz_slow");
    has(
        &mut server,
        &text,
        &["[mcp-py: zz_slow could not be installed: ", "uv took longer than 120 s", "No module named"],
    );
    let child = fs::read_to_string(list_of(server.folder()).with_extension("child")).unwrap();
    eventually(DEADLINE, "its child is gone", || !procs::is_alive(child.trim().parse().unwrap()));
    check(&mut server, "'free'", "'free'");
}

#[test]
fn a_base_that_hangs_is_given_up_in_words() {
    let folder = Folder::new();
    let hangs = folder.script("hangs", "#!/bin/sh\nexec sleep 1000\n");
    let mut server =
        Server::with(|builder| builder.folder(&folder).env("MCP_PY_PYTHON", &hangs).env("MCP_PY_START_TIMEOUT", "1"));
    let text = failure(&mut server, "1 + 1");
    has(
        &mut server,
        &text,
        &["\"builtin\" did not start: it took longer than 1 s to start; MCP_PY_START_TIMEOUT allows more"],
    );
    let own = server.pid();
    eventually(DEADLINE, "nothing is left of it", || server.processes() == [own]);
}

#[test]
fn a_python_that_hangs_costs_the_start_limit_and_its_children_end_with_the_server() {
    let folder = Folder::new();
    let list = folder.path().join("children");
    let code = format!("#!/bin/sh\nsleep 1000 &\necho $! >>'{}'\nwait\n", list.display());
    let hangs = folder.script("hangs", &code);
    let start = |limit| {
        Server::with(|builder| builder.folder(&folder).env("MCP_PY_PYTHON", &hangs).env("MCP_PY_START_TIMEOUT", limit))
    };
    let mut server = start("1");
    let began = Instant::now();
    let text = failure(&mut server, "1 + 1");
    has(&mut server, &text, &["it took longer than 1 s to start; MCP_PY_START_TIMEOUT allows more"]);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    drop(server);
    fs::remove_file(&list).unwrap();
    let mut server = start("1000");
    server.start_exec("1 + 1");
    eventually(DEADLINE, "it hangs", || fs::read_to_string(&list).is_ok_and(|text| text.ends_with('\n')));
    let child = fs::read_to_string(&list).unwrap().trim().parse().unwrap();
    server.kill(libc::SIGTERM);
    server.wait_exit(DEADLINE);
    eventually(DEADLINE, "its child is gone", || !procs::is_alive(child));
}

#[test]
fn installs_can_be_turned_off() {
    let folder = Folder::new();
    for no in ["off", "OFF", " off", "0", "no", "false", "never"] {
        let mut server = Server::with(|builder| with_uv(&folder, builder).env("MCP_PY_AUTO_INSTALL", no));
        let text = failure(&mut server, "import PIL");
        has(
            &mut server,
            &text,
            &["[mcp-py: PIL is not installed; to install it: uv pip install --python ", "/bin/python pillow]"],
        );
        assert!(asked(&server).is_empty());
    }
    for yes in ["", "1", "on", "Yes", "true"] {
        let mut server = Server::with(|builder| with_uv(&folder, builder).env("MCP_PY_AUTO_INSTALL", yes));
        failure(&mut server, "import zz_broken");
    }
    assert_eq!(fs::read_to_string(list_of(&folder)).unwrap().lines().count(), 5);
}

/// A venv without the system's packages, and in it a `pip` that fails and prints what it was told.
fn base_with_pip(folder: &Folder) -> PathBuf {
    let base = venv(folder, "base", &[]);
    let lib = fs::read_dir(base.join("lib")).unwrap().next().unwrap().unwrap().path();
    fs::create_dir(lib.join("site-packages/pip")).unwrap();
    let code =
        "import os, sys\ntold = [f'{name}={os.environ[name]}' for name in sorted(os.environ) if name[:4] == 'PIP_']\n\
        sys.exit(' '.join(['pip', *told, *sys.argv[4:]]))\n";
    fs::write(lib.join("site-packages/pip/__main__.py"), code).unwrap();
    base.join("bin/python")
}

fn venv(folder: &Folder, name: &str, options: &[&str]) -> PathBuf {
    let path = folder.path().join(name);
    let mut command = Command::new(python());
    let made = command.args(["-m", "venv", "--without-pip"]).args(options).arg(&path).status().unwrap();
    assert!(made.success());
    path
}

#[test]
fn settings_of_where_to_look_hold_and_those_of_where_to_put_it_do_not() {
    let folder = Folder::new();
    let base = base_with_pip(&folder);
    let said = |settings: &[(&str, &str)]| {
        let set = |builder: Builder| settings.iter().fold(builder, |builder, (name, value)| builder.env(name, value));
        let mut server = Server::with(|builder| {
            set(with_uv(&folder, builder).env_remove("UV_DEFAULT_INDEX").env("MCP_PY_PYTHON", &base))
        });
        failure(&mut server, "import zz_broken")
    };
    let (by_uv, by_pip) = ("zz_broken was not found in the index", "could not be installed: pip PIP_");
    for name in ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE", "PIP_FIND_LINKS", "PIP_NO_INDEX"] {
        for (also, by) in [("UV_CACHE_DIR", by_pip), ("UV_INDEX", by_uv), ("UV_EXTRA_INDEX_URL", by_uv)] {
            let text = said(&[(name, "here"), (also, "there")]);
            assert!(text.contains(by), "{name} {also}: {text}");
        }
    }
    assert!(said(&[("PIP_CERT", "here")]).contains(by_uv));
    let elsewhere = ["PIP_PYTHON", "PIP_DRY_RUN", "PIP_USER"].map(|name| (name, "elsewhere"));
    let text = said(&[&elsewhere[..], &[("PIP_INDEX_URL", "here")]].concat());
    let env = environments(&folder).remove(0);
    let told = format!("PIP_USER=0 --target= --root=/ --prefix {} zz_broken]", env.display());
    assert!(text.contains("pip PIP_DEFAULT_TIMEOUT=5 PIP_DRY_RUN=0 PIP_INDEX_URL=here "), "{text}");
    assert!(text.contains(&told) && !text.contains("elsewhere"), "{text}");
}

/// Otherwise half a package would stay, and every later import would find it.
#[test]
fn a_pip_that_has_begun_to_copy_files_is_let_finish() {
    let folder = Folder::new();
    let base = base_with_pip(&folder);
    let (copying, done) = (folder.path().join("copying"), folder.path().join("done"));
    let code = format!(
        "import os, time\nprint('Installing collected packages: zz_half', flush=True)\nopen({copying:?}, 'w').close()\n\
        time.sleep(1)\nopen({done:?}, 'w').close()"
    );
    let pip = fs::read_dir(folder.path().join("base/lib")).unwrap().next().unwrap().unwrap().path();
    fs::write(pip.join("site-packages/pip/__main__.py"), code).unwrap();
    let mut server = Server::with(|builder| {
        with_uv(&folder, builder).env_remove("UV_DEFAULT_INDEX").env("PIP_NO_INDEX", "1").env("MCP_PY_PYTHON", &base)
    });
    let id = server.start_exec("import zz_half");
    eventually(DEADLINE, "pip copies", || copying.exists());
    server.cancel(id);
    check(&mut server, "'free'", "'free'");
    eventually(DEADLINE, "pip has copied all of it", || done.exists());
}

#[test]
fn a_uv_that_does_not_run_is_none() {
    let folder = Folder::new();
    let base = base_with_pip(&folder);
    let mut server =
        Server::with(|builder| with_uv(&folder, builder).env_remove("UV_DEFAULT_INDEX").env("MCP_PY_PYTHON", &base));
    folder.script("uv", "#!/bin/sh\necho 'pyenv: uv: command not found' >&2\nexit 127\n");
    let text = failure(&mut server, "import zz_demo");
    has(&mut server, &text, &["could not be installed: pip PIP_"]);
}

#[test]
fn an_install_starts_where_the_servers_directory_is_deleted_too() {
    let folder = Folder::new();
    let gone = folder.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let mut server = Server::with(|builder| with_uv(&folder, builder).cwd(&gone));
    server.ok("1");
    fs::remove_dir(&gone).unwrap();
    folder.script("uv", &UV.replace("echo \"$5\"", "cd . && [ -d \"$(pwd -P)\" ] || exit 8; echo \"$5\""));
    assert_eq!(server.ok("import zz_demo; zz_demo.value"), "[mcp-py: installed zz_demo 1.5 for zz_demo]\n42");
}

#[test]
fn into_other_interpreters_nothing_is_installed() {
    let mut server = start();
    server.call("add_interpreter", json!({"name": "other", "python_path": python()}));
    let result = server.call("execute", json!({"code": "import zz_demo", "interpreter": "other"}));
    let hint =
        format!("[mcp-py: zz_demo is not installed; to install it: uv pip install --python {} zz_demo]\n", python());
    assert!(result.is_error && result.text.starts_with(&hint), "{}", result.text);
    assert!(asked(&server).is_empty());
}

#[test]
fn an_interrupt_ends_the_installer_and_its_children() {
    let mut server = start();
    let id = server.start_exec("import zz_slow");
    let child = list_of(server.folder()).with_extension("child");
    eventually(DEADLINE, "the installer runs", || fs::read_to_string(&child).is_ok_and(|text| text.ends_with('\n')));
    let pid = fs::read_to_string(&child).unwrap().trim().parse().unwrap();
    server.cancel(id);
    check(&mut server, "'free'", "'free'");
    eventually(DEADLINE, "its child is gone", || !procs::is_alive(pid));
    // An answer that comes too late is not taken for that of the next cell.
    assert_eq!(server.ok("import zz_next; zz_next.value"), "[mcp-py: installed zz_next 1.5 for zz_next]\n42");
}

#[test]
fn an_interrupt_ends_the_installer_also_where_the_cell_catches_it_and_goes_on() {
    let mut server = start();
    server.ok("import os, time");
    let (child, go) = (list_of(server.folder()).with_extension("child"), server.folder().path().join("go"));
    let code = format!(
        "try:\n    import zz_slow\nexcept KeyboardInterrupt:\n    while not os.path.exists({go:?}): time.sleep(0.01)\n'caught'"
    );
    let id = server.start_call("execute", json!({"code": code, "timeout": 0.5}));
    eventually(DEADLINE, "the installer runs", || fs::read_to_string(&child).is_ok_and(|text| text.ends_with('\n')));
    let pid = fs::read_to_string(&child).unwrap().trim().parse().unwrap();
    eventually(DEADLINE, "its child is gone", || !procs::is_alive(pid));
    fs::write(&go, "").unwrap();
    let text = server.wait(id).text;
    assert!(text.ends_with("\n'caught'"), "{text}");
}

#[test]
fn a_timeout_during_an_install_says_where_and_the_end_of_the_server_ends_it() {
    let mut server = start();
    server.ok("1");
    let result = server.call("execute", json!({"code": "import zz_slow", "timeout": 0.3}));
    has(
        &mut server,
        &result.text,
        &["interrupted after its timeout of 0.3 s", "    import zz_slow\n", "KeyboardInterrupt"],
    );
    server.start_exec("import zz_slow");
    let list = list_of(server.folder());
    eventually(DEADLINE, "two installs", || fs::read_to_string(&list).is_ok_and(|text| text.lines().count() == 2));
    let child = list.with_extension("child");
    eventually(DEADLINE, "the installer runs", || fs::read_to_string(&child).is_ok_and(|text| text.ends_with('\n')));
    let pid = fs::read_to_string(&child).unwrap().trim().parse().unwrap();
    server.kill(libc::SIGTERM);
    server.wait_exit(DEADLINE);
    eventually(DEADLINE, "its child is gone", || !procs::is_alive(pid));
}

#[test]
fn two_servers_that_need_the_same_package_both_get_it() {
    let folder = Folder::new();
    let mut servers = [(); 2].map(|()| Server::with(|builder| with_uv(&folder, builder)));
    servers.iter_mut().for_each(|server| _ = server.ok("import json"));
    let ids = [0, 1].map(|at: usize| servers[at].start_exec("import zz_both; zz_both.value"));
    let texts = [0, 1].map(|at: usize| servers[at].wait(ids[at]).text);
    let told = "[mcp-py: installed zz_both 1.5 for zz_both]\n42";
    // The later one finds it there, or has it installed again without effect.
    assert!(texts.iter().all(|text| text == told || text == "42"), "{texts:?}");
    assert!(texts.iter().any(|text| text == told), "{texts:?}");
    assert_eq!(environments(&folder).len(), 1);
}

#[test]
fn without_uv_and_pip_the_answer_says_how_to_get_one() {
    let folder = Folder::new();
    // A base whose site-packages hold no pip: a venv without it, and without the system's.
    let base = venv(&folder, "base", &[]);
    let mut server = Server::with(|builder| {
        builder.folder(&folder).env("PATH", "/usr/bin:/bin").env("MCP_PY_PYTHON", base.join("bin/python"))
    });
    let text = failure(&mut server, "import zz_demo");
    has(&mut server, &text, &["[mcp-py: zz_demo could not be installed: there is neither uv nor pip: install one"]);
}

// ---- the environment -----------------------------------------------------------------------------------------------

#[test]
fn the_builtin_runs_in_an_environment_of_its_own_that_is_made_once() {
    let folder = Folder::new();
    let mut first = Server::with(|builder| with_uv(&folder, builder));
    let env = environments_when_made(&mut first);
    first.ok("import zz_demo");
    let made = fs::metadata(env.join("mcp-py")).unwrap();
    let prefix = format!("'{}'", env.display());
    check(&mut first, "import sys; sys.prefix", &prefix);
    assert_eq!(first.ok("sys.base_prefix != sys.prefix"), "True");
    first.finish(DEADLINE);
    let mut second = Server::with(|builder| with_uv(&folder, builder));
    assert_eq!(second.ok("import zz_demo, sys; sys.prefix, zz_demo.value"), format!("({prefix}, 42)"));
    let again = fs::metadata(env.join("mcp-py")).unwrap();
    assert_eq!((made.ino(), made.mtime_nsec()), (again.ino(), again.mtime_nsec()), "it was made twice");
    let listed = second.call("list_interpreters", json!({})).structured;
    assert_eq!(listed["result"][0]["python_path"], json!(env.join("bin/python")));
    // The base is as it was.
    let found = Command::new(python()).args(["-c", "import zz_demo"]).output().unwrap();
    assert!(!found.status.success());
}

fn environments_when_made(server: &mut Server) -> PathBuf {
    server.ok("1");
    let found = environments(server.folder());
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

#[test]
fn what_the_base_has_is_there_also_where_the_base_is_a_venv() {
    let folder = Folder::new();
    let base = venv(&folder, "a base", &[]);
    let lib = fs::read_dir(base.join("lib")).unwrap().next().unwrap().unwrap().path();
    fs::write(lib.join("site-packages/zz_base.py"), "value = 'of the base'").unwrap();
    let mut server = Server::with(|builder| with_uv(&folder, builder).env("MCP_PY_PYTHON", base.join("bin/python")));
    check(&mut server, "import zz_base; zz_base.value", "'of the base'");
    let before = fs::read_dir(lib.join("site-packages")).unwrap().count();
    server.ok("import zz_new");
    assert_eq!(fs::read_dir(lib.join("site-packages")).unwrap().count(), before, "the base was touched");
}

#[test]
fn what_a_venv_does_not_see_the_builtin_does_not_see_either() {
    const SYSTEMS: &str =
        "import sys; sorted(p for p in sys.path if p.startswith(sys.base_prefix) and 'packages' in p)";
    let folder = Folder::new();
    for (name, options, sees) in [("alone", &[][..], false), ("with", &["--system-site-packages"], true)] {
        let base = venv(&folder, name, options).join("bin/python");
        let mut server = Server::with(|builder| with_uv(&folder, builder).env("MCP_PY_PYTHON", &base));
        assert_eq!(server.ok(SYSTEMS) != "[]", sees, "{name}");
    }
}

#[test]
fn an_environment_stays_with_its_python_when_the_name_leads_to_another() {
    let folder = Folder::new();
    let link = folder.path().join("python3");
    let real = Command::new(python()).args(["-c", "import sys; print(sys._base_executable)"]).output().unwrap();
    let real = fs::canonicalize(String::from_utf8(real.stdout).unwrap().trim()).unwrap();
    let start = || Server::with(|builder| with_uv(&folder, builder).env("MCP_PY_PYTHON", &link));
    symlink(&real, &link).unwrap();
    start().ok("import zz_demo");
    fs::remove_file(&link).unwrap();
    symlink("/bin/false", &link).unwrap();
    let text = failure(&mut start(), "1");
    let told = format!("interpreter \"builtin\" did not start: {} exited with code 1; is it a Python?", link.display());
    assert_eq!(text, told);
    fs::remove_file(&link).unwrap();
    symlink(&real, &link).unwrap();
    assert_eq!(start().ok("import zz_demo; zz_demo.value"), "42");
}

#[test]
fn mcp_py_python_may_be_a_bare_name_start_with_a_tilde_or_be_relative_to_the_server() {
    let folder = Folder::new();
    for place in [folder.home().join("mine"), folder.project().join("mine"), folder.bin().join("my-python")] {
        let real = Command::new(python()).args(["-c", "import sys; print(sys._base_executable)"]).output().unwrap();
        symlink(String::from_utf8(real.stdout).unwrap().trim(), place).unwrap();
    }
    fs::write(folder.project().join("my-python"), "not this").unwrap();
    for path in ["~/mine", "./mine", "mine", "my-python"] {
        let mut server = Server::with(|builder| with_uv(&folder, builder).env("MCP_PY_PYTHON", path));
        check(&mut server, "1 + 1", "2");
    }
    for (path, why) in [
        ("no-such", "no-such is neither on PATH nor in the working directory"),
        ("./no-such", "/no-such does not exist"),
        ("~", " is a directory: try "),
    ] {
        let mut server = Server::with(|builder| with_uv(&folder, builder).env("MCP_PY_PYTHON", path));
        let text = failure(&mut server, "1 + 1");
        assert!(text.contains("MCP_PY_PYTHON ") && text.contains(why), "{text}");
    }
}

#[test]
fn servers_that_start_at_once_make_one_environment() {
    let folder = Folder::new();
    let mut servers: Vec<_> = (0..6).map(|_| Server::with(|builder| with_uv(&folder, builder))).collect();
    let ids: Vec<_> = servers.iter_mut().map(|server| server.start_exec("import sys; sys.prefix")).collect();
    let texts: Vec<_> = servers.iter_mut().zip(ids).map(|(server, id)| server.wait(id).text).collect();
    let env = environments(&folder);
    assert_eq!(env.len(), 1);
    assert!(texts.iter().all(|text| *text == format!("'{}'", env[0].display())), "{texts:?}");
}

#[test]
fn an_environment_that_does_not_run_any_more_is_made_anew_with_a_note() {
    const NOTE: &str =
        "[mcp-py: the builtin's environment was damaged: it was made anew, without what was installed there]\n2";
    let folder = Folder::new();
    let env = {
        let mut server = Server::with(|builder| with_uv(&folder, builder));
        let env = environments_when_made(&mut server);
        server.ok("import zz_demo");
        env
    };
    // The environment's Python is gone, as after an upgrade of the base.
    fs::remove_file(env.join("bin/python")).unwrap();
    symlink("/nowhere/python", env.join("bin/python")).unwrap();
    let mut server = Server::with(|builder| with_uv(&folder, builder));
    assert_eq!(server.ok("1 + 1"), NOTE);
    assert_eq!(server.ok("import zz_demo; zz_demo.value"), "[mcp-py: installed zz_demo 1.5 for zz_demo]\n42");
    drop(server);
    // The Python is there, and fails.
    fs::remove_file(env.join("bin/python")).unwrap();
    crate::client::write_executable(&env.join("bin/python"), b"#!/bin/sh\necho no library >&2\nexit 127\n");
    let mut server = Server::with(|builder| with_uv(&folder, builder));
    assert_eq!(server.ok("1 + 1"), NOTE);
    drop(server);
    // The Python is there, and nobody may run it.
    fs::remove_file(env.join("bin/python")).unwrap();
    fs::write(env.join("bin/python"), "").unwrap();
    let mut server = Server::with(|builder| with_uv(&folder, builder));
    assert_eq!(server.ok("1 + 1"), NOTE);
    drop(server);
    // The Python runs, but as that of the base.
    fs::remove_file(env.join("pyvenv.cfg")).unwrap();
    let mut server = Server::with(|builder| with_uv(&folder, builder));
    assert_eq!(server.ok("1 + 1"), NOTE);
    drop(server);
    // An environment that was only half made is made again without a note.
    fs::remove_file(env.join("mcp-py")).unwrap();
    fs::remove_file(env.join("bin/python")).unwrap();
    let mut server = Server::with(|builder| with_uv(&folder, builder));
    assert_eq!(server.ok("1 + 1"), "2");
}

#[test]
fn a_worker_that_dies_at_its_start_costs_no_installed_package() {
    let folder = Folder::new();
    let mut server = Server::with(|builder| with_uv(&folder, builder));
    server.ok("import zz_demo");
    server.finish(DEADLINE);
    let once = folder.path().join("once");
    fs::write(&once, "").unwrap();
    // A Python that fails once, as for a lack of memory or descriptors.
    let env = environments(&folder).remove(0);
    let lib = fs::read_dir(env.join("lib")).unwrap().next().unwrap().unwrap().path();
    let trap = format!("import os; os.path.exists({once:?}) and (os.remove({once:?}), os._exit(9))\n");
    fs::write(lib.join("site-packages/trap.pth"), trap).unwrap();
    let mut server = Server::with(|builder| with_uv(&folder, builder));
    server.initialize();
    eventually(DEADLINE, "it has failed once", || !once.exists());
    let text = server.exec("import zz_demo; zz_demo.value").text;
    let died = "exited with code 9; is it a Python?";
    assert!(text == "42" || text.ends_with(died), "{text}"); // whether the cell came before the death
    check(&mut server, "import zz_demo; zz_demo.value", "42");
}

#[test]
fn another_python_behind_the_same_name_holds_from_the_next_start() {
    let folder = Folder::new();
    let other = venv(&folder, "other", &[]);
    // A shim like pyenv's, which looks in a file for the Python that it stands for.
    let choice = folder.path().join("choice");
    fs::write(&choice, python()).unwrap();
    let shim = folder.script("shim", &format!("#!/bin/sh\nexec \"$(cat '{}')\" \"$@\"\n", choice.display()));
    let mut server = Server::with(|builder| with_uv(&folder, builder).env("MCP_PY_PYTHON", &shim));
    let first = environments_when_made(&mut server);
    fs::write(&choice, other.join("bin/python").to_str().unwrap()).unwrap();
    check(&mut server, "import sys; sys.prefix", &format!("'{}'", first.display()));
    failure(&mut server, "import os; os._exit(1)"); // the next process is a new start
    let now = server.ok("import sys; sys.prefix");
    assert!(now.contains("/env-") && !now.contains(first.to_str().unwrap()), "{now}");
    assert_eq!(environments(&folder).len(), 2);
}

/// Its base finds the environment and becomes its Python: no second process is started for that.
#[test]
fn the_builtin_is_one_process_that_sees_nothing_of_how_it_was_started() {
    let folder = Folder::new();
    let pids = folder.path().join("pids");
    let base =
        folder.script("base", &format!("#!/bin/sh\necho $$ >>'{}'\nexec '{}' \"$@\"\n", pids.display(), python()));
    fs::create_dir_all(state_of(&folder)).unwrap();
    fs::write(state_of(&folder).join("base-0123456789abcdef"), "env-of-old").unwrap();
    for _ in 0..2 {
        let mut server = Server::with(|builder| with_uv(&folder, builder).env("MCP_PY_PYTHON", &base));
        let pid = server.ok("import os, sys; os.getpid()");
        let started = fs::read_to_string(&pids).unwrap();
        assert_eq!(started.lines().last(), Some(pid.as_str()), "{started}");
        check(&mut server, "sys.argv, sys.flags.isolated, sys.flags.no_site", "(['-c'], 0, 0)");
        let added = "sorted(n for n in os.environ if 'MCP' in n or 'ENV' in n.upper() or 'BOOT' in n)";
        let text = server.ok(added);
        assert!(text.contains("'MCP_PY_INTERPRETER'") && !text.contains("BOOT"), "{text}");
        check(&mut server, "[n for n in os.environ if 'python_interpreter/env-' in os.environ[n]]", "[]");
        server.finish(DEADLINE);
    }
    assert_eq!(fs::read_to_string(&pids).unwrap().lines().count(), 2);
    assert!(!state_of(&folder).join("base-0123456789abcdef").exists(), "what earlier versions kept there is removed");
}

#[test]
fn where_no_environment_can_be_made_the_builtin_runs_on_the_base_and_says_so_once() {
    let folder = Folder::new();
    let home = folder.path().join("no-home");
    fs::write(&home, "a file").unwrap();
    let mut server = Server::with(|builder| with_uv(&folder, builder).env("HOME", &home));
    let first = server.ok("1 + 1");
    assert!(first.starts_with("[mcp-py: missing packages can't be installed: ") && first.ends_with("]\n2"), "{first}");
    check(&mut server, "1 + 1", "2");
    failure(&mut server, "import os; os._exit(1)");
    check(&mut server, "import sys; sys.executable", &format!("'{}'", python()));
    let text = failure(&mut server, "import zz_demo");
    has(&mut server, &text, &["[mcp-py: zz_demo is not installed; to install it: uv pip install --python "]);
    assert!(asked(&server).is_empty());
}

#[test]
fn initialize_waits_for_no_environment() {
    let folder = Folder::new();
    let slow = folder.script("slow", &format!("#!/bin/sh\nsleep 2\nexec '{}' \"$@\"\n", python()));
    let mut server = Server::with(|builder| builder.folder(&folder).env("MCP_PY_PYTHON", &slow));
    let began = Instant::now();
    server.initialize();
    server.request("ping", json!({}));
    assert!(began.elapsed().as_millis() < 1_500, "{:?}", began.elapsed());
    assert_eq!(server.ok("1 + 1"), "2");
    assert!(Path::new(&state_of(&folder)).is_dir());
}

#[test]
fn the_words_of_macos_and_of_todays_pip_for_no_network_are_known() {
    for module in ["zz_resolve", "zz_nodename"] {
        let mut server = start();
        let text = failure(&mut server, &format!("import {module}"));
        has(&mut server, &text, &[&format!("[mcp-py: {module} could not be installed: there is no network: ")]);
        let text = failure(&mut server, "import zz_other");
        has(&mut server, &text, &["zz_other was not installed: 0 s ago there was no network"]);
    }
}
