//! Pictures: open figures of pyplot, and values that notebooks show as PNG or JPEG, become images in the answer and
//! files in the output directory. What is too many or too large becomes a file only, and so do SVG and HTML.
//!
//! Stand-ins for matplotlib and plotly have the few functions that matter; the former writes PNG files of the figure's
//! size. tests/interop/packages.py and pages.py use the real ones.

use crate::cells::{check, has};
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
        self.figsize, self.size, self.dpi = figsize, size, 100
    def get_size_inches(self):
        return self.figsize
    def savefig(self, file, format, dpi):
        assert format == "png"
        file.write(png(*(int(side * dpi) for side in self.figsize), self.size))
    def show(self):
        raise AttributeError("Figure.show works only for figures managed by pyplot")
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

/// Of plotly: its repr is a page long, and its show waits for a browser.
const PLOTLY: &str = r#"
import plotly.io
class Figure:
    def _repr_html_(self):
        return "<div>ü</div>"
    def __repr__(self):
        return "Figure({'data': []})"
    def show(self, *args, **kwargs):
        return plotly.io.show(self, *args, **kwargs)
"#;

/// Values that notebooks show, and loaded by the cells that need them.
const SHOWN: &str = r#"
import base64
from pngs import png
def jpeg(width, height):
    head = b"\xff\xe0\0\x04\xff\xff" + b"\xff\xc0\0\x0b\x08"
    return b"\xff\xd8" + head + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\1\1\x11\0\xff\xd9"
class Shown:
    "Has the methods that it is given the values of."
    def __new__(cls, **made):
        methods = {f"_repr_{kind}_": (lambda data: lambda self, **_: data)(data) for kind, data in made.items()}
        return object.__new__(type("Shown", (cls,), methods))
class Says(Shown):
    def __repr__(self):
        return "<P>"
"#;

fn folder() -> Folder {
    let folder = Folder::new();
    let project = folder.project();
    for place in ["matplotlib", "plotly/io"] {
        fs::create_dir_all(project.join(place)).unwrap();
    }
    for (name, text) in [
        ("matplotlib/__init__.py", ""),
        ("matplotlib/figure.py", FIGURE),
        ("matplotlib/pyplot.py", PYPLOT),
        ("plotly/__init__.py", PLOTLY),
        ("plotly/io/__init__.py", "from ._renderers import show"),
        ("plotly/io/_renderers.py", "def show(*args, **kwargs): import time; time.sleep(1000)"),
        ("pngs.py", PNG),
        ("shown.py", SHOWN),
    ] {
        fs::write(project.join(name), text).unwrap();
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
        assert_eq!(block["type"], "image");
        let bytes = decoded(block["data"].as_str().expect("base64"));
        let mime_type = if bytes.starts_with(b"\xff\xd8") { "image/jpeg" } else { "image/png" };
        assert_eq!(block["mimeType"], mime_type);
        bytes
    });
    let blocks = blocks.collect();
    let text = result["content"][0]["text"].as_str().unwrap().to_string();
    let files = text.lines().filter_map(|line| saved(line.strip_prefix("[mcp-py: ")?)).collect();
    (text, blocks, files)
}

/// The path in a note such as `figure saved, not shown (over 4 MiB): PATH]`.
fn saved(note: &str) -> Option<PathBuf> {
    let (what, path) = note.strip_suffix(']')?.split_once(": ")?;
    what.contains(" saved").then(|| PathBuf::from(path))
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
    // Bytes that are no picture are not shown.
    check(&mut server, "P(None)", "<P>");
    check(&mut server, "P(b'GIF')", "<P>");
    check(&mut server, "P", "<class '__main__.P'>");
    check(&mut server, "print(P(png(1, 1)))", "<P>");
}

/// A value is not lost for the sake of its picture.
#[test]
fn a_form_that_fails_or_is_none_leaves_the_repr_and_is_told() {
    let mut server = start();
    server.ok("def make(**methods): return type('Q', (), {**methods, '__repr__': lambda self: '<Q>'})()");
    let failed = "[mcp-py: _repr_png_ of Q failed: ZeroDivisionError: division by zero]\n<Q>";
    check(&mut server, "make(_repr_png_=lambda self: 1/0)", failed);
    // A note is text for the answer, whatever the error says.
    let odd = server.ok("def odd(self): raise ValueError('\\ud800')\nmake(_repr_png_=odd)");
    has(&mut server, &odd, &["failed: ValueError: \\ud800]\n<Q>"]);
    for code in [
        "make(_repr_html_=None, _repr_png_=None, _repr_mimebundle_=None)",
        "make(_repr_mimebundle_=lambda self, **_: ['image/png'])",
        "make(_repr_mimebundle_=lambda self, **_: {'image/png': 5, 'image/svg+xml': b'<svg/>', 7: 8})",
        "make(_repr_png_=lambda self: ())",
        "make(_repr_png_=lambda self: 'é?')",
        "make(_repr_jpeg_=lambda self: 5)",
        "make(_repr_html_=property(lambda self: 1/0))",
    ] {
        check(&mut server, code, "<Q>");
    }
    check(&mut server, "for value in 1, make(_repr_html_=None), 3: display(value)", "1\n<Q>\n3");
}

#[test]
fn display_takes_what_ipythons_takes() {
    let mut server = start();
    check(&mut server, "display({'text/html': '<b>x</b>', 'text/plain': 'x'}, raw=True)", "x");
    let text = server.ok("display({'text/html': '<b>x</b>'}, raw=True)");
    has(&mut server, &text, &["[mcp-py: HTML page saved: "]);
    check(&mut server, "handle = display(1, display_id=True); handle.update(2); handle.display(3)", "1\n2\n3");
    check(&mut server, "display(4, clear=True, metadata={})", "4");
}

#[test]
fn a_figure_has_at_most_2000_pixels_a_side() {
    let mut server = start();
    server.ok("import matplotlib.pyplot as plt");
    let (_, blocks, _) = drawn(&mut server, "plt.figure(figsize=(100, 10)); plt.figure(figsize=(20, 20)); None");
    assert_eq!(blocks.iter().map(|png| sides(png)).collect::<Vec<_>>(), [(2_000, 200), (2_000, 2_000)]);
}

#[test]
fn display_shows_pictures_and_prints_what_has_none() {
    let mut server = start();
    server.ok("from shown import *");
    let (text, blocks, files) = drawn(&mut server, "display(Says(png=png(7, 9)), 5, 'x', None)\ndisplay()");
    assert_eq!((sides(&blocks[0]), files.len()), ((7, 9), 1));
    assert!(text.starts_with("5\n'x'\nNone\n[mcp-py: figure saved: ") && !text.contains("<P>"), "{text}");
    check(&mut server, "display.__name__, 'display' in globals()", "('display', False)");
    assert!(!server.ok("None").contains("display") && !server.call("list_vars", json!({})).text.contains("display"));
    // Where the control socket is not ours, there is only text.
    let code =
        "import threading\nt = threading.Thread(target=display, args=[Says(png=png(1, 1))])\nt.start(); t.join()";
    check(&mut server, code, "<P>");
    let code = "import os\nif os.fork() == 0: display(Says(png=png(1, 1))); os._exit(0)\nos.wait()[1]";
    check(&mut server, code, "<P>\n0");
    // A name of the user's goes before it, until it is removed.
    check(&mut server, "display = 5; display", "5");
    server.call("reset", json!({}));
    check(&mut server, "display(6)", "6");
}

#[test]
fn jpeg_and_mime_bundles_are_shown() {
    let mut server = start();
    server.ok("from shown import *");
    let (text, blocks, files) = drawn(&mut server, "Says(jpeg=jpeg(7, 9))");
    assert!(blocks[0].starts_with(b"\xff\xd8") && files[0].extension().unwrap() == "jpeg", "{text}");
    let (_, blocks, _) = drawn(&mut server, "Says(png=None, jpeg=jpeg(7, 9))");
    assert_eq!(blocks.len(), 1);
    let (_, blocks, _) = drawn(&mut server, "Says(mimebundle=({'image/png': png(3, 4), 'text/plain': 'p'}, {}))");
    assert_eq!(sides(&blocks[0]), (3, 4));
    let code = "Says(mimebundle={'image/png': base64.encodebytes(png(3, 4)).decode()})";
    let (text, blocks, _) = drawn(&mut server, code);
    assert_eq!(sides(&blocks[0]), (3, 4));
    assert!(text.ends_with("\n<P>"), "{text}");
    // What there is for text goes before a page; of nothing, nothing comes.
    check(&mut server, "Shown(mimebundle={'text/plain': 'p', 'text/html': 'h'})", "p");
    check(&mut server, "Shown(markdown='# m', html='h')", "# m");
    check(&mut server, "Says(mimebundle=None)", "<P>");
    check(&mut server, "Says(jpeg=b'GIF')", "<P>");
}

#[test]
fn html_and_svg_become_files_that_a_note_names() {
    let mut server = start();
    server.ok("from shown import *");
    let (text, blocks, files) = drawn(&mut server, "Shown(html='<div>ü</div>')");
    assert_eq!((blocks.len(), files.len()), (0, 1));
    assert_eq!(text, format!("[mcp-py: HTML page saved: {}]", files[0].display()));
    let page = "<!DOCTYPE html>\n<meta charset=\"utf-8\">\n<div>ü</div>";
    assert_eq!(
        (fs::read_to_string(&files[0]).unwrap(), files[0].extension().unwrap().to_str()),
        (page.into(), Some("html"))
    );
    let (_, _, files) = drawn(&mut server, "display(Shown(html='<html>whole</html>'))");
    assert_eq!(fs::read_to_string(&files[0]).unwrap(), "<html>whole</html>");
    let (text, _, files) = drawn(&mut server, "Says(svg='<svg/>')");
    assert_eq!(text, format!("[mcp-py: figure saved: {}]\n<P>", files[0].display()));
    assert_eq!(fs::read_to_string(&files[0]).unwrap(), "<svg/>");
    // As pandas' tables: what says something stays.
    check(&mut server, "Says(html='<table>')", "<P>");
    check(&mut server, "display(Says(html='<table>'))", "<P>");
}

#[test]
fn the_show_of_a_chart_waits_for_no_browser() {
    let mut server = start();
    server.ok("import plotly");
    for code in [
        "plotly.Figure()",
        "plotly.Figure().show()",
        "plotly.Figure().show('browser', width=3)",
        "display(plotly.Figure())",
    ] {
        let (text, _, files) = drawn(&mut server, code);
        assert_eq!(text, format!("[mcp-py: HTML page saved: {}]", files[0].display()), "{code}");
    }
    let (text, blocks, _) = drawn(&mut server, "from matplotlib.figure import Figure; Figure((1, 2)).show()");
    assert_eq!(sides(&blocks[0]), (100, 200), "{text}");
    check(&mut server, "import os; os.environ['BOKEH_BROWSER']", "'echo %s'");
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
    let (text, ..) = drawn(&mut server, "for n in range(11): plt.figure(figsize=(1, 1))");
    assert_eq!(text.matches("figure saved, not shown (over 10 in an answer): /").count(), 1, "{text}");
    // Over 4 MiB; the rest still fits.
    let (text, blocks, files) = drawn(&mut server, "plt.figure(size=4 << 20); plt.figure(figsize=(2, 2)); None");
    assert!(text.starts_with("[mcp-py: figure saved, not shown (over 4 MiB): /"), "{text}");
    assert_eq!((blocks.len(), files.len(), sides(&blocks[0])), (1, 2, (200, 200)));
    assert!(fs::metadata(&files[0]).unwrap().len() > 4 << 20);
    // Over 8,000 pixels a side.
    let code =
        "from shown import *\ndisplay(Shown(png=png(8001, 1)), Shown(jpeg=jpeg(1, 8001)), Shown(png=png(1, 8000)))";
    let (text, blocks, files) = drawn(&mut server, code);
    assert_eq!((blocks.len(), files.len(), sides(&blocks[0])), (1, 3, (1, 8_000)));
    assert_eq!(text.matches("not shown (over 8,000 pixels a side)").count(), 2, "{text}");
    // Over 6 MiB together: no message is longer than 9 MiB.
    let code = "print('\\x00' * 30_000)\nfor n in range(5): plt.figure(size=(2 << 20) - 4096)\nNone";
    let id = server.start_exec(code);
    let message = server.response(id);
    let size = message.to_string().len();
    assert_eq!(message["result"]["content"].as_array().unwrap().len(), 1 + 3);
    assert!(message.to_string().contains("not shown (over 6 MiB in an answer): "));
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

#[test]
fn pages_are_notes_of_the_stream_and_no_images_of_the_bridge() {
    let mut server = start();
    let socket = server.call("get_session_info", json!({})).structured["socket_path"].as_str().unwrap().to_string();
    let code = "from shown import *; display(Shown(html='h')); Shown(jpeg=jpeg(1, 1))";
    let events = posted(&socket, &json!({"code": code, "stream": true}));
    let notes: Vec<_> = events.iter().filter_map(|event| event["note"].as_str()).collect();
    let pictures: Vec<_> = events.iter().filter_map(|event| event["image"].as_str()).collect();
    assert!(notes.len() == 1 && notes[0].contains("HTML page saved: /"), "{events:?}");
    assert!(pictures.len() == 1 && pictures[0].ends_with(".jpeg"), "{events:?}");
    let answer = posted(&socket, &json!({"code": code})).remove(0);
    assert_eq!(answer["images"].as_array().unwrap().len(), 1, "{answer}");
    assert!(answer["result"].as_str().unwrap().contains("[mcp-py: HTML page saved: /"), "{answer}");
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
