//! Pictures: open figures of pyplot, and a last expression with `_repr_png_`, become images in the answer and files in
//! the output directory. What is too many or too large becomes a file only.
//!
//! A stand-in for matplotlib has the few functions that matter, and writes PNG files of the figure's size.
//! tests/interop/packages.py uses the real one.

use crate::cells::{check, failure, has};
use crate::client::{binary, Folder, Server};
use serde_json::{json, Value};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Loaded by the cells as `png(width, height, size)`: a PNG of these sides, filled up with a chunk of noise.
const PNG: &str = r#"
import os, struct, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
def png(width, height, size=0):
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes((width + 7) // 8)) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"noIs", os.urandom(size)) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
"#;

const FIGURE: &str = r#"
from pngs import png
class Figure:
    def __init__(self, figsize=(6.4, 4.8), size=0):
        self.sides, self.size = (int(figsize[0] * 100), int(figsize[1] * 100)), size
    def savefig(self, file, format):
        assert format == "png"
        file.write(png(*self.sides, self.size))
    def __repr__(self):
        return "<Figure>"
"#;

const PYPLOT: &str = r#"
import os, warnings
from matplotlib.figure import Figure
backend = os.environ["MPLBACKEND"]
figures = {}
def figure(num=None, **options):
    if num is None:
        num = max(figures, default=0) + 1
    return figures.setdefault(num, None) or figures.update({num: Figure(**options)}) or figures[num]
def get_fignums():
    return sorted(figures)
def close(figure):
    for num in [num for num in figures if figure in (figures[num], "all")]:
        del figures[num]
def show(*args, **kwargs):
    warnings.warn("FigureCanvasAgg is non-interactive, and thus cannot be shown")
"#;

fn folder() -> Folder {
    let folder = Folder::new();
    let place = folder.project().join("matplotlib");
    fs::create_dir(&place).unwrap();
    for (name, text) in [("__init__.py", ""), ("figure.py", FIGURE), ("pyplot.py", PYPLOT), ("../pngs.py", PNG)] {
        fs::write(place.join(name), text).unwrap();
    }
    folder
}

fn start() -> Server {
    let mut server = Server::with(|builder| builder.folder(&folder()).under("claude"));
    server.initialize();
    server
}

/// A cell's answer, taken apart: its text, its image blocks, the files that the text names.
fn drawn(server: &mut Server, code: &str) -> (String, Vec<Vec<u8>>, Vec<PathBuf>) {
    let id = server.start_exec(code);
    let result = server.response(id)["result"].clone();
    let blocks = result["content"].as_array().unwrap()[1..].iter().map(|block| {
        assert_eq!((&block["type"], &block["mimeType"]), (&json!("image"), &json!("image/png")));
        decoded(block["data"].as_str().expect("base64"))
    });
    let blocks = blocks.collect();
    let text = result["content"][0]["text"].as_str().unwrap().to_string();
    let files = text.lines().filter_map(|line| line.strip_prefix("[mcp-py: figure saved: ")?.strip_suffix(']'));
    let files = files.map(PathBuf::from).collect();
    (text, blocks, files)
}

fn decoded(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 4, 0, "not padded");
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let value = |byte: &u8| digits.iter().position(|digit| digit == byte).expect("a digit of base64") as u32;
    let body = text.trim_end_matches('=').as_bytes();
    let chunks = body.chunks(4).flat_map(|four| {
        let bits = four.iter().fold(0, |bits, byte| bits << 6 | value(byte)) << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len()].to_vec()
    });
    chunks.collect()
}

fn sides(png: &[u8]) -> (u32, u32) {
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (side(16), side(20))
}

#[test]
fn open_figures_are_shown_at_the_end_of_the_cell_and_closed() {
    let mut server = start();
    let code =
        "import matplotlib.pyplot as plt\nplt.figure(figsize=(3, 2)); plt.figure(figsize=(1, 4)); print('drawn')";
    let (text, blocks, files) = drawn(&mut server, code);
    assert_eq!(blocks.iter().map(|png| sides(png)).collect::<Vec<_>>(), [(300, 200), (100, 400)]);
    assert_eq!(files.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>(), blocks);
    let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["figure_001.png", "figure_002.png"]);
    assert!(text.starts_with("drawn\n[mcp-py: figure saved: "), "{text}");
    check(&mut server, "plt.get_fignums(), plt.backend", "([], 'agg')");
}

#[test]
fn show_sends_what_is_open_and_no_figure_comes_twice() {
    let mut server = start();
    check(&mut server, "import matplotlib.pyplot as plt, warnings; warnings.simplefilter('error')", "");
    let (text, blocks, _) =
        drawn(&mut server, "plt.figure(figsize=(1, 1)); plt.show(block=False); plt.figure(figsize=(2, 2)); plt.show()");
    assert_eq!(blocks.iter().map(|png| sides(png)).collect::<Vec<_>>(), [(100, 100), (200, 200)]);
    assert!(!text.contains("Warning"), "{text}");
    let (text, blocks, _) = drawn(&mut server, "f = plt.figure(figsize=(1, 1)); f");
    assert_eq!(blocks.len(), 1);
    assert!(text.ends_with("\n<Figure>"), "{text}");
    let (_, blocks, _) = drawn(&mut server, "from matplotlib.figure import Figure; Figure((5, 5))");
    assert_eq!(sides(&blocks[0]), (500, 500));
    let (text, blocks, _) = drawn(&mut server, "plt.figure(); 1/0");
    assert!(blocks.len() == 1 && text.ends_with("ZeroDivisionError: division by zero"), "{text}");
}

/// Once such a figure failed every later cell, and hid the figures behind it.
#[test]
fn a_figure_that_can_not_be_drawn_fails_its_own_cell_only_and_hides_no_other() {
    let mut server = start();
    server.ok("import matplotlib.pyplot as plt");
    server.ok("class Bad(plt.Figure):\n    def savefig(self, *a, **k): raise ValueError('undrawable')");
    let (text, blocks, _) = drawn(&mut server, "plt.figures[1] = Bad(); plt.figure(num=2, figsize=(1, 2))");
    assert!(text.contains("ValueError: undrawable"), "{text}");
    assert_eq!(blocks.iter().map(|png| sides(png)).collect::<Vec<_>>(), [(100, 200)]);
    check(&mut server, "plt.get_fignums()", "[]");
    let code = "plt.figures[1] = Bad()\ntry:\n    plt.show()\nexcept ValueError as error:\n    print(error)";
    check(&mut server, code, "undrawable");
}

#[test]
fn a_picture_of_the_last_expression_is_shown() {
    let mut server = start();
    server.ok("from pngs import png\nclass P:\n    def __init__(self, data): self.data = data\n    def _repr_png_(self): return self.data\n    def __repr__(self): return '<P>'");
    let (text, blocks, files) = drawn(&mut server, "P(png(7, 9))");
    assert_eq!((sides(&blocks[0]), files.len()), ((7, 9), 1));
    assert!(text.ends_with("\n<P>"), "{text}");
    let (_, blocks, _) = drawn(&mut server, "P((png(7, 9), {'width': 7}))");
    assert_eq!(sides(&blocks[0]), (7, 9));
    // Bytes that are no picture are not shown, and a picture that fails says so.
    check(&mut server, "P(None)", "<P>");
    check(&mut server, "P(b'GIF')", "<P>");
    check(&mut server, "P", "<class '__main__.P'>");
    let text = failure(&mut server, "class Q:\n    def _repr_png_(self): 1/0\nQ()");
    has(&mut server, &text, &["in _repr_png_", "ZeroDivisionError"]);
    check(&mut server, "print(P(png(1, 1)))", "<P>");
}

#[test]
fn of_many_or_large_pictures_only_the_files_are_given() {
    let mut server = start();
    server.ok("import matplotlib.pyplot as plt");
    let (_, blocks, files) = drawn(&mut server, "for n in range(12): plt.figure(figsize=(1, 1))");
    assert_eq!((blocks.len(), files.len()), (10, 12));
    assert!(files.iter().all(|path| sides(&fs::read(path).unwrap()) == (100, 100)));
    let (text, _, files) = drawn(&mut server, "for n in range(103): plt.figure(figsize=(1, 1))");
    assert_eq!(files.len(), 100);
    assert!(text.ends_with("]\n[mcp-py: figures of over 64 MiB, or over 100 in a cell, were dropped]"), "{text}");
    // Over 4 MiB; the rest still fits.
    let (_, blocks, files) = drawn(&mut server, "plt.figure(size=4 << 20); plt.figure(figsize=(2, 2)); None");
    assert_eq!((blocks.len(), files.len(), sides(&blocks[0])), (1, 2, (200, 200)));
    assert!(fs::metadata(&files[0]).unwrap().len() > 4 << 20);
    // Over 8,000 pixels a side.
    let (_, blocks, files) = drawn(&mut server, "plt.figure(figsize=(80.01, 1)); plt.figure(figsize=(1, 80)); None");
    assert_eq!((blocks.len(), files.len(), sides(&blocks[0])), (1, 2, (100, 8_000)));
    // Over 6 MiB together: no message is longer than 9 MiB.
    let code = "print('\\x00' * 30_000)\nfor n in range(5): plt.figure(size=(2 << 20) - 4096)\nNone";
    let id = server.start_exec(code);
    let message = server.response(id);
    let size = message.to_string().len();
    assert_eq!(message["result"]["content"].as_array().unwrap().len(), 1 + 3);
    assert!(size > 8 << 20 && size <= 9 << 20, "{size}");
}

#[test]
fn one_that_is_larger_than_64_mib_is_dropped_and_said_to_be() {
    let mut server = start();
    server.ok("import matplotlib.pyplot as plt");
    let (text, blocks, files) = drawn(&mut server, "plt.figure(size=50 << 20); print('then')");
    assert_eq!((blocks.len(), files.len()), (0, 0));
    assert!(text.starts_with("then\n[mcp-py: figures of over 64 MiB, or over 100 in a cell, were dropped]"), "{text}");
    check(&mut server, "'goes on'", "'goes on'");
}

#[test]
fn what_only_a_fork_or_a_thread_draws_disturbs_nothing() {
    let mut server = start();
    server.ok("import matplotlib.pyplot as plt, os, threading");
    let code = "if os.fork() == 0:\n    plt.figure(); plt.show(); os._exit(0)\nos.wait()[1]";
    check(&mut server, code, "0");
    // A child that falls through draws nothing either.
    let code = "class P:\n    def _repr_png_(self): return open('one.png', 'rb').read()\n    def __repr__(self): return '<P>'\n\
        if pid := os.fork(): os.waitpid(pid, 0)\nP()";
    server.ok("from pngs import png\nwith open('one.png', 'wb') as f: f.write(png(1, 1))");
    assert_eq!(drawn(&mut server, code).1.len(), 1);
    let code = "t = threading.Thread(target=lambda: (plt.figure(figsize=(1, 1)), plt.show()))\nt.start(); t.join()";
    let (_, blocks, _) = drawn(&mut server, code);
    assert_eq!(blocks.len(), 1, "at the cell's end");
}

#[test]
fn an_interrupt_while_a_figure_is_drawn_ends_the_cell_and_tears_nothing() {
    let mut server = start();
    server.ok("import matplotlib.pyplot as plt, time");
    let slow = "class S(plt.Figure):\n    def savefig(self, *a, **k): time.sleep(1000)\nplt.figures[1] = S()";
    let result = server.call("execute", json!({"code": slow, "timeout": 0.3}));
    has(&mut server, &result.text, &["interrupted after its timeout of 0.3 s", "KeyboardInterrupt"]);
    check(&mut server, "plt.get_fignums()", "[]");
    // Once an interrupted figure was drawn again at the cell's end, where nothing could interrupt it.
    let result = server.call("execute", json!({"code": "plt.figures[1] = S(); plt.show()", "timeout": 0.3}));
    has(&mut server, &result.text, &["the variables are kept", "KeyboardInterrupt"]);
    let id = server.start_call("execute", json!({"code": "plt.figures[1] = S(); time.sleep(1000)", "timeout": 0.3}));
    let text = server.wait(id).text;
    has(&mut server, &text, &["the variables are kept", "time.sleep(1000)"]);
    // A cell that catches the interrupt may still show how far it came.
    let code = "try:\n    time.sleep(1000)\nexcept KeyboardInterrupt:\n    plt.figure(figsize=(1, 1))";
    let result = server.call("execute", json!({"code": code, "timeout": 0.3}));
    has(&mut server, &result.text, &["figure saved: "]);
    check(&mut server, "plt.get_fignums()", "[]");
    // A large picture is sent in many frames. Whenever the interrupt comes, the next answer is right.
    for timeout in 1..12 {
        let code = "for n in range(1000): plt.figure(size=1 << 20); plt.show()";
        let result = server.call("execute", json!({"code": code, "timeout": 0.01 * f64::from(timeout)}));
        has(&mut server, &result.text, &["interrupted after its timeout", "KeyboardInterrupt"]);
        server.ok("plt.figures.clear()");
        check(&mut server, "'next'", "'next'");
    }
}

#[test]
fn the_shell_gets_files_the_stream_events_and_the_bridge_a_list() {
    let mut server = start();
    let socket = server.call("get_session_info", json!({})).structured["socket_path"].as_str().unwrap().to_string();
    let code = "import matplotlib.pyplot as plt; plt.figure(figsize=(1, 1)); print('a'); plt.show(); print('b'); 5";
    let mut command = Command::new(binary());
    command.args(["client", "-c", code]).env("MCP_PY_SOCKET", &socket).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"a\nb\n5\n"[..]));
    let told = String::from_utf8(output.stderr).unwrap();
    let path = told.strip_prefix("[mcp-py: figure saved: ").and_then(|rest| rest.strip_suffix("]\n")).expect("a note");
    assert_eq!(sides(&fs::read(path).unwrap()), (100, 100));
    let events = posted(&socket, &json!({"code": code, "stream": true}));
    let kinds: Vec<_> = events.iter().map(|event| event.as_object().unwrap().keys().next().unwrap().as_str()).collect();
    // Output from before the picture arrives before it; output from after it may overtake it.
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("stdout", "exit_code"), "{events:?}");
    let pictures: Vec<_> = events.iter().filter_map(|event| event["image"].as_str()).collect();
    assert_eq!(pictures.len(), 1, "{events:?}");
    assert_eq!(sides(&fs::read(pictures[0]).unwrap()), (100, 100));
    let answer = posted(&socket, &json!({"code": code})).remove(0);
    let images: Vec<_> = answer["images"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert_eq!(images.len(), 1);
    assert!(Path::new(images[0]).is_file() && answer["result"].as_str().unwrap().contains(images[0]), "{answer}");
}

/// The lines of an answer to `POST /execute`, by HTTP/1.0.
fn posted(socket: &str, body: &Value) -> Vec<Value> {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(crate::client::DEADLINE)).unwrap();
    let body = body.to_string();
    write!(stream, "POST /execute HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (_, lines) = text.split_once("\r\n\r\n").expect("a head");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}
