//! The builtin runs in an environment of its own, made once from its Python. A cell's import of a missing package
//! installs it there and then goes on; imports that are guarded, or made by libraries, install nothing, and other
//! interpreters are never changed. Without uv, pip or a network the answer says what to do.
//!
//! `uv` is a script here. It copies the package that it is asked for into the environment, and keeps a list.
//! tests/interop/packages.py uses the real uv and pip.

use crate::cells::{check, failure, has, lacks};
use crate::client::{binary, python, Builder, Folder, Server, DEADLINE};
use crate::procs::{self, eventually};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{symlink, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// `uv pip install --python ENV/bin/python PACKAGE`. The module has the package's name. `zz_broken` is in no index,
/// `zz_offline` finds no network, `zz_nothing` holds no module, `zz_linked` has its module where a .pth file says,
/// `zz_newer` brings a newer `zz_old`, `zz_slow` writes down the pid of a child of its own and waits for it.
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
    zz_nothing) mkdir "$site/$5-1.5.dist-info"; exit ;;
    zz_linked) mkdir "$site/zz_far"; echo "value = 42" >"$site/zz_far/zz_linked.py"; echo zz_far >"$site/zz_linked.pth"
        exit ;;
    zz_newer) mkdir "$site/zz_old-2.0.dist-info"; echo "zz_old.py,," >"$site/zz_old-2.0.dist-info/RECORD"
        echo " + zz-old==2.0" ;;
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
    assert_eq!(text, "[mcp-py: installed zz_demo 1.5]\n(42, [1])");
    check(&mut server, "import zz_demo; zz_demo.value", "42");
    let text = server.ok("import zz_family");
    assert_eq!(text, "[mcp-py: installed zz_family 1.5, zz-cousin 2.0]");
    assert_eq!(asked(&server), ["zz_demo", "zz_family"]);
}

#[test]
fn an_import_in_a_function_of_an_earlier_cell_or_by_import_module_installs_too() {
    let mut server = start();
    check(&mut server, "def f():\n    from zz_late import value\n    return value", "");
    assert!(asked(&server).is_empty());
    assert_eq!(server.ok("f()"), "[mcp-py: installed zz_late 1.5]\n42");
    check(&mut server, "import importlib", "");
    let text = server.ok("importlib.import_module('zz_module').value");
    assert_eq!(text, "[mcp-py: installed zz_module 1.5]\n42");
    let text = server.ok("class C:\n    import zz_class as one\nC.one.value");
    assert_eq!(text, "[mcp-py: installed zz_class 1.5]\n42");
    let text = server.ok("async def g():\n    import zz_async\n    return zz_async.value\nawait g()");
    assert_eq!(text, "[mcp-py: installed zz_async 1.5]\n42");
    // So many names come before this one that its index needs an extended argument in the byte code.
    let names: String = (0..300).map(|n| format!("n{n} = {n}\n")).collect();
    let text = server.ok(&format!("{names}import zz_far; zz_far.value"));
    assert_eq!(text, "[mcp-py: installed zz_far 1.5]\n42");
}

/// It is a cell while the client runs it, and a library where a cell imports it.
#[test]
fn what_a_script_imports_is_installed_but_not_where_its_failure_is_expected_or_it_is_imported() {
    let mut server = start();
    let info = server.call("get_session_info", json!({})).structured;
    let file = server.folder().project().join("script.py");
    let code =
        "import zz_one\ndef later():\n    import zz_two\ntry: import zz_three\nexcept ImportError: print('none')\n";
    fs::write(&file, code).unwrap();
    let mut client = Command::new(binary());
    client.arg("client").arg(&file).env("MCP_PY_SOCKET", info["socket_path"].as_str().unwrap());
    let output = client.output().unwrap();
    assert_eq!(output.stdout, b"none\n", "{}", String::from_utf8_lossy(&output.stderr));
    let text = server.ok("later()");
    has(&mut server, &text, &["zz_two"]);
    fs::write(&file, "try: import zz_four\nexcept ImportError: pass\n\nimport zz_five").unwrap();
    let text = failure(&mut server, "import script");
    has(&mut server, &text, &["ModuleNotFoundError", "zz_five"]);
    assert_eq!(asked(&server), ["zz_one", "zz_two"]);
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
    for name in ["_nothing", "winreg", "msvcrt", "json.nope", "os.nope", "json.nope.deeper"] {
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
    let text = failure(&mut server, "import PIL"); // what the script installs is called pillow
    has(
        &mut server,
        &text,
        &["[mcp-py: installed pillow 1.5 for PIL]\n", "this process finds no module PIL in what was"],
    );
    failure(&mut server, "import sklearn");
    failure(&mut server, "import cv2");
    let text = server.exec("import dask").text;
    has(&mut server, &text, &["[mcp-py: installed dask"]);
    lacks(&mut server, &text, &[" for dask]"]);
    failure(&mut server, "import pyximport"); // it comes with Cython
    let packages = ["pillow", "scikit-learn", "opencv-python-headless", "dask[distributed]", "Cython"];
    assert_eq!(asked(&server), packages);
}

#[test]
fn a_client_is_told_what_is_being_installed_and_for_what_where_the_names_differ() {
    let mut server = start();
    let socket = server.call("get_session_info", json!({})).structured["socket_path"].clone();
    let code = "import zz_demo; import PIL";
    let mut client = Command::new(crate::client::binary());
    let output = client.args(["client", "--socket", socket.as_str().unwrap(), "-c", code]).output().unwrap();
    let told =
        "[mcp-py: installing zz_demo …]\n[mcp-py: installed zz_demo 1.5]\n[mcp-py: installing pillow for PIL …]\n\
        [mcp-py: installed pillow 1.5 for PIL]\n";
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with(told), "{text}");
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
        &["\"builtin\" did not start: it took longer than 1 s to start; MCP_PY_START_TIMEOUT of the server can give it more"],
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
    has(&mut server, &text, &["it took longer than 1 s to start; MCP_PY_START_TIMEOUT of the server can give it more"]);
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
            &[
                "[mcp-py: PIL is not installed (MCP_PY_AUTO_INSTALL is off); to install it: uv pip install --python ",
                "/bin/python pillow]",
            ],
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

// ---- the shells of cells -------------------------------------------------------------------------------------------

#[test]
fn pip_in_a_shell_of_a_cell_is_the_bases_and_installs_into_the_environment() {
    let folder = Folder::new();
    let base = base_with_pip(&folder);
    let start = || {
        Server::with(|builder| {
            let builder = with_uv(&folder, builder).env("MCP_PY_PYTHON", &base);
            builder.env("PIP_USER", "1").env("PIP_TARGET", "elsewhere").env("PIP_CERT", "here")
        })
    };
    let mut server = start();
    for pip in ["pip", "pip3"] {
        let code = format!("import os; os.popen('{pip} install one two three zz_demo 2>&1').read()");
        check(&mut server, &code, r"'pip PIP_CERT=here PIP_USER=0 three zz_demo\n'");
    }
    server.finish(DEADLINE);
    // Environments that earlier versions made lack it.
    let env = environments(&folder).remove(0);
    fs::remove_file(env.join("bin/pip")).unwrap();
    let mut server = start();
    let pip = format!("'{}\\n'", env.join("bin/pip").display());
    check(&mut server, "import os; os.popen('command -v pip').read()", &pip);
    assert_eq!(server.ok("import zz_demo; zz_demo.value"), "[mcp-py: installed zz_demo 1.5]\n42");
}

#[test]
fn where_the_base_has_no_pip_the_shell_of_a_cell_gets_one_or_says_why_not() {
    let folder = Folder::new();
    let base = venv(&folder, "base", &[]).join("bin/python");
    let mut server = Server::with(|builder| with_uv(&folder, builder).env("MCP_PY_PYTHON", &base));
    let text = server.ok("import os; print(os.popen('pip --version 2>&1').read())");
    let env = environments(&folder).remove(0);
    let is_own = text.contains(&format!("from {}/lib/", env.display()));
    assert!(is_own || text.contains("ensurepip"), "{text}");
}

#[test]
fn python_in_a_shell_of_a_cell_is_the_interpreters_own() {
    let folder = Folder::new();
    let mine = venv(&folder, "mine", &[]);
    let mut server = Server::with(|builder| with_uv(&folder, builder).env("VIRTUAL_ENV", "/nowhere"));
    let plain = Command::new(python()).args(["-c", "import sys; print(sys._base_executable)"]).output().unwrap();
    let plain = PathBuf::from(String::from_utf8(plain.stdout).unwrap().trim());
    for (name, path) in [("mine", &mine.join("bin/python")), ("plain", &plain)] {
        server.call("add_interpreter", json!({"name": name, "python_path": path}));
    }
    let env = environments_when_made(&mut server);
    let plains = plain.parent().unwrap().to_path_buf();
    let expected =
        [("builtin", env.join("bin"), Some(&env)), ("mine", mine.join("bin"), Some(&mine)), ("plain", plains, None)];
    for (interpreter, bin, environment) in expected {
        let code = "import os, shutil, sys; print(os.environ['PATH'].split(':')[0], os.environ.get('VIRTUAL_ENV'), \
                    os.popen(os.path.basename(sys.executable) + ' -c \"import sys; print(sys.prefix)\"').read().strip() == sys.prefix)";
        let result = server.call("execute", json!({"code": code, "interpreter": interpreter}));
        let environment = environment.map_or("None".into(), |path| path.display().to_string());
        assert_eq!(result.text, format!("{} {environment} True", bin.display()), "{interpreter}");
    }
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
    assert_eq!(server.ok("import zz_demo; zz_demo.value"), "[mcp-py: installed zz_demo 1.5]\n42");
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
    assert_eq!(server.ok("import zz_next; zz_next.value"), "[mcp-py: installed zz_next 1.5]\n42");
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
    let told = "[mcp-py: installed zz_both 1.5]\n42";
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
    has(
        &mut server,
        &text,
        &["[mcp-py: zz_demo could not be installed: there is neither uv nor pip: install uv, or pip for"],
    );
}

// ---- what is not installed -----------------------------------------------------------------------------------------

/// Writes a file and the folders above it.
fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A folder that looks like an environment of another Python.
fn environment_of_another_python(root: &Path) -> PathBuf {
    write(root.join("bin/python"), "");
    root.join("lib/python3.7/site-packages")
}

#[test]
fn nothing_that_the_project_or_its_environments_have_is_ever_asked_for() {
    let folder = Folder::new();
    let project = folder.project();
    let made = venv(&folder, "project/.venv", &[]);
    let lib = fs::read_dir(made.join("lib")).unwrap().next().unwrap().unwrap().path();
    let site = lib.join("site-packages");
    write(site.join("acme_tools/__init__.py"), "value = 'of .venv'");
    write(site.join("acme_module.py"), "");
    write(site.join("acme_space/part/code.py"), "");
    write(site.join("acme_c.cpython-37m-x86_64-linux-gnu.so"), "");
    write(folder.path().join("work/acme_linked/__init__.py"), "");
    write(site.join("acme_linked.pth"), &format!("# comment\n{}\n", folder.path().join("work").display()));
    write(site.join("__editable___acme_1_0_finder.py"), "MAPPING = {'acme_x': '/x', 'acme_edited': '/elsewhere'}\n");
    let virtualenv = folder.path().join("active");
    write(environment_of_another_python(&virtualenv).join("acme_active.py"), "");
    let conda = folder.path().join("conda");
    write(environment_of_another_python(&conda).join("acme_conda.py"), "");
    write(project.join("acme_top.py"), "");
    write(project.join("src/utils.py"), "value = 'of src'");
    write(project.join("src/acme_package/__init__.py"), "");
    write(project.join("src/acme_parts/one/code.py"), "");
    write(project.join("src/acme_built.abi3.so"), "");
    let mut server = Server::with(|builder| {
        let builder = with_uv(&folder, builder).env("CLAUDE_PROJECT_DIR", &project);
        builder.env("VIRTUAL_ENV", &virtualenv).env("CONDA_PREFIX", &conda)
    });
    server.ok("import os; os.chdir('/')");
    let src = format!("to import it: sys.path.insert(0, '{}/src')]\n", project.display());
    let top = format!("to import it: sys.path.insert(0, '{}')]\n", project.display());
    for (place, names) in [
        ("to use that one: interpreter=\".venv\" (in a shell, -i .venv)]\n", "tools module space c linked edited x"),
        ("to use that one: interpreter=\"virtualenv\" (in a shell, -i virtualenv)]\n", "active"),
        ("to use that one: interpreter=\"conda\" (in a shell, -i conda)]\n", "conda"),
        (&src, "package parts built"),
        (&top, "top"),
    ] {
        for name in names.split(' ') {
            let text = failure(&mut server, &format!("import acme_{name}"));
            has(&mut server, &text, &[&format!("[mcp-py: acme_{name} is "), place, "No module named"]);
            let text = failure(&mut server, &format!("exec('import acme_{name}')"));
            has(&mut server, &text, &[&format!("[mcp-py: acme_{name} is "), place]);
        }
    }
    let text = failure(&mut server, "from utils import value");
    has(&mut server, &text, &["[mcp-py: utils is the project's own, in ", &src]);
    assert!(asked(&server).is_empty(), "{:?}", asked(&server));
    // What the notes say helps.
    let call = json!({"code": "import acme_tools; acme_tools.value", "interpreter": ".venv"});
    assert_eq!(server.call("execute", call).text, "'of .venv'");
    let code = format!("import sys; sys.path.insert(0, '{}/src')\nfrom utils import value; value", project.display());
    check(&mut server, &code, "'of src'");
}

#[test]
fn a_folder_without_code_another_project_and_another_case_are_no_module_of_the_project() {
    let folder = Folder::new();
    let project = folder.project();
    write(project.join("src/zz_data/table.csv"), "");
    write(project.join("src/zz_checkout/pyproject.toml"), "");
    write(project.join("src/zz_checkout/docs/conf.py"), "");
    write(project.join("src/ZZ_Case.py"), "");
    write(project.join("src/zz_text.txt"), "");
    write(project.join("contenteditable.js"), "'zz_file'"); // no table of a builder
    let mut server = Server::with(|builder| with_uv(&folder, builder).env("CLAUDE_PROJECT_DIR", &project));
    for name in ["zz_data", "zz_checkout", "zz_case", "zz_text", "zz_file"] {
        let text = server.ok(&format!("import {name}; {name}.value"));
        assert_eq!(text, format!("[mcp-py: installed {name} 1.5]\n42"));
    }
}

#[test]
fn names_that_projects_use_or_packages_share_are_refused_in_words() {
    let folder = Folder::new();
    let project = folder.project();
    let mut server = Server::with(|builder| with_uv(&folder, builder).env("CLAUDE_PROJECT_DIR", &project));
    for name in "utils config helpers common tests src app main models settings lib core data local_settings".split(' ')
    {
        let text = failure(&mut server, &format!("import {name}"));
        let why = format!("[mcp-py: {name} was not installed: many projects have a module of their own of this name; ");
        has(&mut server, &text, &[&why, "add its folder to sys.path", "/bin/python PACKAGE]\n"]);
    }
    for name in ["google.cloud", "azure", "zope.interface"] {
        let text = failure(&mut server, &format!("import {name}"));
        has(
            &mut server,
            &text,
            &[" was not installed: many packages share this namespace; name the one that you need"],
        );
    }
    let text = failure(&mut server, "import apex");
    has(
        &mut server,
        &text,
        &["[mcp-py: apex was not installed: an index has another package, or none, under this name"],
    );
    failure(&mut server, "import test.zz_nothing"); // of the standard library, where that is installed whole
    assert!(asked(&server).is_empty(), "{:?}", asked(&server));
}

#[test]
fn every_other_finder_comes_first_also_one_that_a_cell_appends() {
    let mut server = start();
    let finder = "import sys, importlib.util, importlib.machinery\nclass Finder:\n    \
        def find_spec(self, name, path=None, target=None):\n        if name == 'zz_virtual':\n            \
        return importlib.machinery.ModuleSpec(name, self)\n    def create_module(self, spec): return None\n    \
        def exec_module(self, module): module.value = 'virtual'\nsys.meta_path.append(Finder())";
    server.ok(finder);
    check(&mut server, "import zz_virtual; zz_virtual.value", "'virtual'");
    assert_eq!(server.ok("import zz_demo; zz_demo.value"), "[mcp-py: installed zz_demo 1.5]\n42");
    assert_eq!(asked(&server), ["zz_demo"]);
}

#[test]
fn a_missing_module_that_led_to_the_error_is_named_too() {
    let mut server = start();
    let code = "def chained():\n    try:\n        import zz_engine\n    except ImportError as error:\n        \
        raise RuntimeError('no engine') from error\ndef during():\n    try:\n        import zz_engine\n    \
        except ImportError:\n        raise ValueError('no engine')\ndef hidden():\n    try:\n        \
        import zz_engine\n    except ImportError:\n        raise ImportError('get zz_engine') from None\n";
    fs::write(server.folder().project().join("needy.py"), code).unwrap();
    for call in ["chained", "during", "hidden"] {
        let text = failure(&mut server, &format!("import needy; needy.{call}()"));
        has(&mut server, &text, &["[mcp-py: zz_engine is not installed; `import zz_engine` in a cell installs it]\n"]);
    }
    // Errors whose causes lead in a circle.
    let code = "a, b = ValueError(1), ValueError(2)\na.__cause__, b.__cause__ = b, a\nraise a";
    let text = failure(&mut server, code);
    lacks(&mut server, &text, &["[mcp-py"]);
    assert!(asked(&server).is_empty(), "{:?}", asked(&server));
}

#[test]
fn pth_files_of_an_install_are_taken_up_and_what_needs_a_new_process_is_said() {
    let mut server = start();
    assert_eq!(server.ok("import zz_linked; zz_linked.value"), "[mcp-py: installed zz_linked]\n42");
    let text = failure(&mut server, "import zz_nothing");
    has(
        &mut server,
        &text,
        &["[mcp-py: installed zz_nothing]\n[mcp-py: this process finds no module zz_nothing in what "],
    );
    has(&mut server, &text, &["or start anew with reset(restart=true)]\n"]);
    let newer = "[mcp-py: installed zz_newer 1.5, zz-old 2.0]";
    server.ok("import zz_old");
    let old =
        "[mcp-py: zz_old was loaded before the install brought another one: this process goes on with the old one, \
        reset(restart=true) starts anew with the new one]";
    assert_eq!(server.ok("import zz_newer"), format!("{newer}\n{old}"));
    assert_eq!(server.ok("import zz_next"), "[mcp-py: installed zz_next 1.5]");
}

#[test]
fn a_hint_names_an_installer_that_is_there() {
    let folder = Folder::new();
    let with_pip = base_with_pip(&folder);
    let without = venv(&folder, "bare", &[]).join("bin/python");
    for (base, how) in
        [(with_pip, "/bin/python -m pip install pillow]\n"), (without, " get uv, or pip for this Python")]
    {
        let mut server = Server::with(|builder| {
            let builder = builder.folder(&folder).env("PATH", "/usr/bin:/bin").env("MCP_PY_PYTHON", &base);
            builder.env("MCP_PY_AUTO_INSTALL", "no")
        });
        let text = failure(&mut server, "import PIL");
        has(&mut server, &text, &["[mcp-py: PIL is not installed (MCP_PY_AUTO_INSTALL is off); to install it: ", how]);
        let text = failure(&mut server, "import dask");
        let how = how.replace("pillow", "'dask[distributed]'");
        has(
            &mut server,
            &text,
            &["[mcp-py: dask is not installed (MCP_PY_AUTO_INSTALL is off); to install it: ", &how],
        );
    }
}

// ---- the table of names --------------------------------------------------------------------------------------------

/// What an index serves, by the wheels of 2026: a package, and modules that it has at its top.
const SERVED: &str = "\
    absl-py:absl alpaca-py:alpaca antlr4-python3-runtime:antlr4 apache-airflow:airflow apache-flink:pyflink \
    Appium-Python-Client:appium attrs:attr,attrs auto-sklearn:autosklearn aws-cdk-lib:aws_cdk \
    bayesian-optimization:bayes_opt beautifulsoup4:bs4 biopython:Bio box2d-py:Box2D camelot-py:camelot \
    cassandra-driver:cassandra cuda-python:cuda Cython:Cython,cython,pyximport dask:dask dbus-python:dbus \
    delta-spark:delta discord.py:discord django-allauth:allauth django-cors-headers:corsheaders \
    django-crispy-forms:crispy_forms django-debug-toolbar:debug_toolbar django-environ:environ \
    django-filter:django_filters django-guardian:guardian django-import-export:import_export django-mptt:mptt \
    django-oauth-toolkit:oauth2_provider django-storages:storages django-taggit:taggit \
    djangorestframework:rest_framework djangorestframework-simplejwt:rest_framework_simplejwt dm-tree:tree \
    dnspython:dns earthengine-api:ee facebook-sdk:facebook factory_boy:factory faiss-cpu:faiss ffmpeg-python:ffmpeg \
    freetype-py:freetype fusepy:fuse GDAL:osgeo github3.py:github3 GitPython:git \
    google-api-python-client:googleapiclient google-cloud-aiplatform:vertexai grpcio:grpc grpcio-tools:grpc_tools \
    hidapi:hid hydra-core:hydra ibis-framework:ibis imbalanced-learn:imblearn impyla:impala kafka-python:kafka \
    libusb1:usb1 linkify-it-py:linkify_it llama-cpp-python:llama_cpp markdown-it-py:markdown_it Mastodon.py:mastodon \
    matplotlib:matplotlib,mpl_toolkits,pylab mecab-python3:MeCab modAL-python:modAL mysql-connector-python:mysql \
    mysqlclient:MySQLdb nats-py:nats newspaper3k:newspaper numpy-stl:stl nvidia-ml-py:pynvml odfpy:odf \
    openai-agents:agents openai-whisper:whisper openbabel-wheel:openbabel opencv-python-headless:cv2 \
    openstacksdk:openstack paho-mqtt:paho pdfminer.six:pdfminer peewee:peewee,playhouse pillow:PIL pin:pinocchio \
    presto-python-client:prestodb progressbar2:progressbar psycopg:psycopg psycopg2-binary:psycopg2 \
    pulsar-client:pulsar py-cpuinfo:cpuinfo py-trello:trello PyBluez:bluetooth pycairo:cairo pycapnp:capnp \
    pycryptodome:Crypto pycryptodomex:Cryptodome PyGithub:github PyGObject:gi pyjks:jks PyJWT:jwt \
    pymongo:bson,gridfs,pymongo PyMuPDF:fitz,pymupdf PyNaCl:nacl pyobjc-core:objc \
    pyobjc-framework-Cocoa:AppKit,Foundation pyobjc-framework-Quartz:Quartz PyOpenGL:OpenGL pyOpenSSL:OpenSSL \
    pyserial:serial pyshp:shapefile PySocks:socks pystan:stan PyStemmer:Stemmer pyTelegramBotAPI:telebot \
    python-barcode:barcode python-binance:binance python-can:can python-consul:consul python-crfsuite:pycrfsuite \
    python-crontab:crontab python-daemon:daemon python-dateutil:dateutil python-decouple:decouple python-docx:docx \
    python-dotenv:dotenv python-editor:editor python-engineio:engineio python-flint:flint \
    python-frontmatter:frontmatter python-gitlab:gitlab python-gnupg:gnupg python-hglib:hglib python-jenkins:jenkins \
    python-jose:jose python-json-logger:pythonjsonlogger python-kasa:kasa python-keystoneclient:keystoneclient \
    python-ldap:ldap python-louvain:community python-lzo:lzo python-magic:magic python-memcached:memcache \
    python-miio:miio python-mimeparse:mimeparse python-mpd2:mpd python-nmap:nmap python-novaclient:novaclient \
    python-pam:pam python-pptx:pptx python-rapidjson:rapidjson python-rtmidi:rtmidi python-slugify:slugify \
    python-snap7:snap7 python-snappy:snappy python-socketio:socketio python-swiftclient:swiftclient \
    python-telegram-bot:telegram python-twitter:twitter python-vlc:vlc python-whois:whois python-xlib:Xlib pyusb:usb \
    PyVCF3:vcf PyWavelets:pywt pywebview:webview \
    pywin32:pythoncom,pywintypes,win32api,win32com,win32con,win32file,win32gui PyYAML:yaml pyzmq:zmq \
    qbittorrent-api:qbittorrentapi readability-lxml:readability robotframework:robot RPi.GPIO:RPi ruamel.yaml:ruamel \
    scikit-bio:skbio scikit-fuzzy:skfuzzy scikit-image:skimage scikit-learn:sklearn scikit-learn-extra:sklearn_extra \
    scikit-multilearn:skmultilearn scikit-opt:sko scikit-optimize:skopt scikit-plot:scikitplot scikit-rf:skrf \
    scikit-survival:sksurv scikit-video:skvideo scitools-iris:iris scvi-tools:scvi sdmx1:sdmx \
    setuptools:pkg_resources,setuptools skia-python:skia slackclient:slack snowflake-connector-python:snowflake \
    social-auth-app-django:social_django solidpython:solid SpeechRecognition:speech_recognition stomp.py:stomp \
    systemd-python:systemd TA-Lib:talib tabula-py:tabula toolz:tlz,toolz umap-learn:umap vcrpy:vcr \
    vl-convert-python:vl_convert vtk:vtkmodules weaviate-client:weaviate websocket-client:websocket \
    Wikipedia-API:wikipediaapi wrf-python:wrf wxPython:wx zipline-reloaded:zipline";
/// Names that are most often looked for under another package, or none.
const COMMONEST: &str = "PIL cv2 sklearn yaml bs4 dateutil dotenv docx fitz jwt Crypto git serial magic hydra grpc \
    kafka socks jose decouple tree snappy osgeo ldap telegram socketio community stl barcode whisper ffmpeg pdfminer \
    absl skopt talib shapefile rest_framework nmap cpuinfo vl_convert dask pyximport";

/// The text in three quotes behind a word of worker.py.
fn list_in_worker(start: &str) -> Vec<&'static str> {
    let worker = include_str!("../../src/worker.py");
    let text = worker.split(start).nth(1).expect(start).split("\"\"\"").nth(1).unwrap();
    text.split_whitespace().collect()
}

#[test]
fn every_row_of_the_table_names_a_package_that_has_the_module() {
    let rows = list_in_worker("PACKAGES = ");
    let refused = list_in_worker("REFUSED = ");
    let mut names = std::collections::BTreeSet::new();
    for row in &rows {
        let (module, package) = row.split_once('=').expect(row);
        let served = SERVED.split(' ').filter_map(|fact| fact.split_once(':'));
        let mut served = served.filter(|(name, _)| *name == package.split(['[', '<']).next().unwrap());
        let (_, modules) = served.next().unwrap_or_else(|| panic!("{package} is not known here"));
        assert!(modules.split(',').any(|it| it == module), "{package} has {modules}, not {module}");
        assert!(names.insert(module) && !refused.contains(&module), "{module} is there twice");
    }
    assert!(rows.len() >= 80, "{}", rows.len());
    let absent: Vec<_> = COMMONEST.split_whitespace().filter(|name| !names.contains(name)).collect();
    assert!(absent.is_empty(), "{absent:?}");
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
    assert_eq!(server.ok("import zz_demo; zz_demo.value"), "[mcp-py: installed zz_demo 1.5]\n42");
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
        let text = server.ok("sorted(n for n in os.environ if 'python_interpreter/env-' in os.environ[n])");
        assert_eq!(text, "['PATH', 'VIRTUAL_ENV']", "for the shells of cells");
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
