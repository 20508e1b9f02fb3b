//! How much there is to read in a source: its tokens, and the lines they stand on.
//!
//! The counting rule, the same for Rust and Python:
//!
//! - A token is what the language's reference calls one: a name or keyword, a number, a string or character with its
//!   prefix and quotes, a lifetime, an operator, a bracket, a comma. The longest operator counts: `..=` is one token, and
//!   so is the `>>` that closes two generics.
//! - Comments (doc comments too) and white space are not tokens, and neither are Python's line ends and indentation.
//!   A docstring is one string, hence one token, and so is an f-string with all that it contains.
//! - A line of code is a line on which a token stands, or a part of one: each line of a long string is a line of code.
//!
//! For calibration: in commit fc0af27 (2026-11-27), src/main.rs has 41,833 tokens on 3,171 lines of code, 13.2 a line,
//! and src/worker.py has 3,772 on 436, 8.7 a line. (The script with which the budgets were chosen counted 41,813 in
//! main.rs.)

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

/// A token, and the line on which it begins, from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token<'a> {
    pub text: &'a str,
    pub line: usize,
}

impl Token<'_> {
    /// The line on which it ends: another one for a string with line breaks in it.
    pub fn last_line(&self) -> usize {
        self.line + self.text.matches('\n').count()
    }
}

#[derive(Debug, PartialEq)]
pub struct Size {
    pub tokens: usize,
    pub code_lines: usize,
}

impl Size {
    pub fn tokens_a_line(&self) -> f64 {
        self.tokens as f64 / self.code_lines as f64
    }
}

// ---- Rust ----------------------------------------------------------------------------------------------------------

/// Rust's operators of several characters, a longer one before each that it begins with.
const OPERATORS: [&str; 24] = [
    "<<=", ">>=", "...", "..=", "::", "->", "=>", "==", "!=", "<=", ">=", "&&", "||", "+=", "-=", "*=", "/=", "%=",
    "^=", "&=", "|=", "<<", ">>", "..",
];

/// The tokens of a Rust source that compiles. Of one that does not, it makes what it can.
pub fn rust(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    let mut line = 1;
    while at < source.len() {
        let rest = &source[at..];
        let blank = blank_length(rest);
        let length = if blank > 0 { blank } else { token_length(rest) };
        let text = &rest[..length];
        if blank == 0 {
            tokens.push(Token { text, line });
        }
        line += text.matches('\n').count();
        at += length;
    }
    tokens
}

pub fn size_of_rust(source: &str) -> Size {
    let tokens = rust(source);
    let lines: BTreeSet<usize> = tokens.iter().flat_map(|token| token.line..=token.last_line()).collect();
    Size { tokens: tokens.len(), code_lines: lines.len() }
}

/// The bytes of white space, or of one comment, at the start of a text.
fn blank_length(text: &str) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment_length(text);
    }
    text.len() - text.trim_start().len()
}

/// Block comments nest.
fn block_comment_length(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += first_char(rest).len_utf8();
        }
    }
    text.len()
}

/// The bytes of the token at the start of a text that starts with one. At least 1.
fn token_length(text: &str) -> usize {
    // The order decides: `r"x"` and `b'x'` begin like names, `'x'` begins like a lifetime.
    let kinds = [raw_string_length, string_length, char_length, lifetime_length, number_length, name_length];
    let known = kinds.iter().find_map(|length| length(text));
    let operator = || OPERATORS.iter().find(|operator| text.starts_with(*operator)).map(|operator| operator.len());
    known.or_else(operator).unwrap_or(first_char(text).len_utf8())
}

/// `r"…"`, `r#"…"#`, `br"…"`, `cr"…"`: up to a quote with as many `#` behind it as there are in front.
fn raw_string_length(text: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        let rest = text.strip_prefix(prefix).unwrap_or_default();
        rest.trim_start_matches('#').starts_with('"')
    })?;
    let rest = &text[prefix.len()..];
    let hashes = rest.find('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let body = prefix.len() + hashes + 1;
    Some(body + text[body..].find(&end)? + end.len())
}

/// `"…"`, `b"…"`, `c"…"`.
fn string_length(text: &str) -> Option<usize> {
    let prefix = if text.starts_with(['b', 'c']) { 1 } else { 0 };
    let literal = &text[prefix..];
    if !literal.starts_with('"') {
        return None;
    }
    quoted_length(literal, '"').map(|length| prefix + length)
}

/// `'x'`, `'\n'`, `'\''`, `b'x'`. Without a backslash the closing quote must come right behind one character:
/// the `'a` in `<'a, 'b>` is a lifetime.
fn char_length(text: &str) -> Option<usize> {
    let prefix = if text.starts_with("b'") { 1 } else { 0 };
    let literal = &text[prefix..];
    let mut chars = literal.strip_prefix('\'')?.chars();
    let character = chars.next()?;
    let is_char = character == '\\' || chars.next() == Some('\'');
    if !is_char {
        return None;
    }
    quoted_length(literal, '\'').map(|length| prefix + length)
}

/// From one quote to the next that has no backslash before it.
fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, character)) = chars.next() {
        if character == '\\' {
            chars.next();
        } else if character == quote {
            return Some(at + 1);
        }
    }
    None
}

fn lifetime_length(text: &str) -> Option<usize> {
    let name = text.strip_prefix('\'')?;
    name_length(name).map(|length| 1 + length)
}

/// `7`, `0xff`, `1_000u64`, `2.5`, `1e-3`, `1.`: a dot belongs to a number unless a second dot (`0..9`), a method or
/// a field (`1.max(2)`) follows it. So the `0.1` in `pair.0.1` is one token, as it is for rustc.
fn number_length(text: &str) -> Option<usize> {
    if !first_char(text).is_ascii_digit() {
        return None;
    }
    let mut end = word_length(text);
    let fraction = text[end..].strip_prefix('.').map(first_char);
    if fraction.is_some_and(|next| next.is_ascii_digit()) {
        end += 1 + word_length(&text[end + 1..]);
    } else if fraction.is_some_and(|next| next != '.' && !is_word(next)) {
        end += 1;
    }
    let has_exponent = text[..end].ends_with(['e', 'E']) && !text.starts_with("0x");
    if has_exponent && text[end..].starts_with(['+', '-']) {
        end += 1 + word_length(&text[end + 1..]);
    }
    Some(end)
}

/// A name or a keyword; `r#type` is a name, too.
fn name_length(text: &str) -> Option<usize> {
    let raw = if text.starts_with("r#") { 2 } else { 0 };
    let length = word_length(&text[raw..]);
    (length > 0).then_some(raw + length)
}

fn word_length(text: &str) -> usize {
    text.find(|character| !is_word(character)).unwrap_or(text.len())
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// NUL at the end of the text.
fn first_char(text: &str) -> char {
    text.chars().next().unwrap_or('\0')
}

// ---- Python --------------------------------------------------------------------------------------------------------

/// Python brings its own lexer. From 3.12 on it takes f-strings apart, before that it does not: here they stay whole.
const COUNT_PYTHON: &str = r#"
import sys, tokenize
LAYOUT = {"ENCODING", "COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER"}
tokens, lines, depth = 0, set(), 0
for token in tokenize.tokenize(sys.stdin.buffer.readline):
    kind = tokenize.tok_name[token.type]
    if kind in LAYOUT:
        continue
    lines.update(range(token.start[0], token.end[0] + 1))
    if kind in ("FSTRING_END", "TSTRING_END"):
        depth -= 1
    elif depth == 0:
        tokens += 1
    if kind in ("FSTRING_START", "TSTRING_START"):
        depth += 1
print(tokens, len(lines))
"#;

pub fn size_of_python(source: &str) -> Size {
    let mut command = Command::new("python3");
    command.args(["-I", "-c", COUNT_PYTHON]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("python3");
    child.stdin.take().unwrap().write_all(source.as_bytes()).expect("python3 reads");
    let output = child.wait_with_output().expect("python3 ends");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<usize> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(output.status.success() && numbers.len() == 2, "python3 printed {text:?}");
    Size { tokens: numbers[0], code_lines: numbers[1] }
}

// ---- what they must get right --------------------------------------------------------------------------------------

#[track_caller]
fn check(source: &str, expected: &[&str]) {
    let texts: Vec<&str> = rust(source).iter().map(|token| token.text).collect();
    assert_eq!(texts, expected, "{source}");
}

#[test]
fn rust_is_taken_apart_as_rustc_does_it() {
    check("let x: u8=1;", &["let", "x", ":", "u8", "=", "1", ";"]);
    // comments: nested ones, one in a string, a quote in a comment
    check("a /* /* ' */ \" */ b // \"c\n/// d\n//! e\nf", &["a", "b", "f"]);
    check(r#""// no \" comment" /* */ x"#, &[r#""// no \" comment""#, "x"]);
    check("/**/x/y", &["x", "/", "y"]);
    // strings: raw ones, bytes, line breaks
    check(
        r##"r#"a " // b"# r"\" br"c" b"d\\" c"e" rust"##,
        &[r##"r#"a " // b"#"##, r#"r"\""#, r#"br"c""#, r#"b"d\\""#, r#"c"e""#, "rust"],
    );
    check("f(\"a\\\n b\")", &["f", "(", "\"a\\\n b\"", ")"]);
    check("r#type r", &["r#type", "r"]);
    // characters against lifetimes
    check(
        r"'a' 'a '\'' b'\\' '\u{1F600}' 'é' b'x",
        &["'a'", "'a", r"'\''", r"b'\\'", r"'\u{1F600}'", "'é'", "b", "'x"],
    );
    check("<'a,'b>&'static str", &["<", "'a", ",", "'b", ">", "&", "'static", "str"]);
    check("'outer: loop { break 'outer; }", &["'outer", ":", "loop", "{", "break", "'outer", ";", "}"]);
    check("['(', ')']", &["[", "'('", ",", "')'", "]"]);
    // numbers
    check(
        "0..=9 1.5e-3 0xfe-1 1_000u64 1.max(2) 2. a.0.1",
        &[
            "0", "..=", "9", "1.5e-3", "0xfe", "-", "1", "1_000u64", "1", ".", "max", "(", "2", ")", "2.", "a", ".",
            "0.1",
        ],
    );
    // operators: the longest first
    check(
        "a<<=b>>c&&d||!e=>f->g::h..i...",
        &["a", "<<=", "b", ">>", "c", "&&", "d", "||", "!", "e", "=>", "f", "->", "g", "::", "h", "..", "i", "..."],
    );
    check("Vec<Vec<u8>>", &["Vec", "<", "Vec", "<", "u8", ">>"]);
    check("#![a] |_| x?", &["#", "!", "[", "a", "]", "|", "_", "|", "x", "?"]);
}

#[test]
fn lines_of_code_are_those_with_a_token_on_them() {
    let source =
        "// a comment\n\nfn f() { // and code\n    \"three\n    lines,\n    // no comment\"\n}\n/* one\nmore */ x\n";
    assert_eq!(size_of_rust(source), Size { tokens: 8, code_lines: 6 });
    let lines: Vec<usize> = rust(source).iter().map(|token| token.line).collect();
    assert_eq!(lines, [3, 3, 3, 3, 3, 4, 7, 9]);
    let text = rust(source)[5];
    assert_eq!((text.line, text.last_line()), (4, 6));
}

#[test]
fn python_is_counted_by_the_same_rule_whatever_its_version() {
    let source = "'''doc\n\nstring'''\n# comment\nif x:  # more\n    y = f'{x + 1!r} {\"a\"}'\n\n    z **= 1e-3\n";
    // '''…''' | if x : | y = f'…' | z **= 1e-3
    assert_eq!(size_of_python(source), Size { tokens: 10, code_lines: 6 });
}
