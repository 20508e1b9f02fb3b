//! What can be checked without a process: parsers, texts, calendars. Pulled in by main.rs when it is built for tests.

use super::rpc::Message;
use super::*;

// ---- what installers say -------------------------------------------------------------------------------------------

#[test]
fn of_a_build_that_failed_the_cause_is_shown_and_not_what_pip_says_around_it() {
    let said = "  error: subprocess-exited-with-error\n  \n  × Getting requirements to build wheel did not run successfully.\n  \
                │ exit code: 1\n  ╰─> [3 lines of output]\n      running egg_info\n      Could not find gdal-config.\n      \
                [end of output]\n  \n  note: This error originates from a subprocess, and is likely not a problem with \
                pip.\nerror: subprocess-exited-with-error\n\n× Getting requirements to build wheel did not run \
                successfully.\n│ exit code: 1\n╰─> See above for output.\n\nnote: This error originates from a \
                subprocess, and is likely not a problem with pip.\n";
    assert!(last_lines(said).ends_with("running egg_info; Could not find gdal-config."), "{}", last_lines(said));
}

// ---- mod rpc: messages ---------------------------------------------------------------------------------------------

/// A message in one line, to compare with.
fn told(text: &[u8]) -> String {
    match rpc::parse(text) {
        Message::Request { id, method, params } => format!("request {id} {method} {params}"),
        Message::Notification { method, params } => format!("notification {method} {params}"),
        Message::Ignored => "nothing".into(),
        Message::BadNotification { .. } => "unreadable".into(),
        Message::Invalid { id: Some(id), code, .. } => format!("invalid {code} {id}"),
        Message::Invalid { id: None, code, .. } => format!("invalid {code}"),
        Message::Batch { members, .. } => format!("array of {}", members.len()),
    }
}

#[test]
fn messages_are_told_apart() {
    for (text, expected) in [
        // requests
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, "request 1 ping null"),
        (r#"{"jsonrpc":"2.0","id":0,"method":"m","params":null}"#, "request 0 m null"),
        (r#"{"jsonrpc":"2.0","id":-3,"method":"m","params":{"a":[1]}}"#, r#"request -3 m {"a":[1]}"#),
        (r#"{"jsonrpc":"2.0","id":"a b","method":"m","params":[]}"#, r#"request "a b" m []"#),
        (r#"{"jsonrpc":"2.0","id":"","method":""}"#, r#"request ""  null"#),
        (r#"{"jsonrpc":"2.0","id":18446744073709551615,"method":"m"}"#, "request 18446744073709551615 m null"),
        ("  {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\"}\r\n", "request 1 m null"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m","result":{}}"#, "request 1 m null"),
        (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"m"}"#, "request 2 m null"),
        // notifications
        (r#"{"jsonrpc":"2.0","method":"n","params":{"x":1}}"#, r#"notification n {"x":1}"#),
        // nothing to do
        ("", "nothing"),
        (" \t\r\n", "nothing"),
        (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, "nothing"),
        (r#"{"jsonrpc":"2.0","id":null,"error":{}}"#, "nothing"),
        // JSON that is no request
        ("[]", "array of 0"), // the server knows whether it may be one
        (r#"[{"jsonrpc":"2.0","id":1,"method":"m"}]"#, "array of 1"),
        ("null", "invalid -32600"),
        ("5", "invalid -32600"),
        ("\"text\"", "invalid -32600"),
        ("{}", "invalid -32600"),
        (r#"{"jsonrpc":"2.0","id":1}"#, "invalid -32600 1"),
        (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, "invalid -32600 1"),
        (r#"{"jsonrpc":"2.0","id":1,"method":null}"#, "invalid -32600 1"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#, "invalid -32600"),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"m"}"#, "invalid -32600"),
        (r#"{"jsonrpc":"2.0","id":1.0,"method":"m"}"#, "invalid -32600"),
        (r#"{"jsonrpc":"2.0","id":1e2,"method":"m"}"#, "invalid -32600"),
        (r#"{"jsonrpc":"2.0","id":18446744073709551616,"method":"m"}"#, "invalid -32600"),
        (r#"{"jsonrpc":"2.0","id":true,"method":"m"}"#, "invalid -32600"),
        (r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, "invalid -32600"),
        (r#"{"jsonrpc":"2.0","id":[1],"method":"m"}"#, "invalid -32600"),
        (r#"{"id":"x","method":"m"}"#, r#"invalid -32600 "x""#),
        (r#"{"jsonrpc":"1.0","id":7,"method":"m"}"#, "invalid -32600 7"),
        (r#"{"jsonrpc":2.0,"id":7,"method":"m"}"#, "invalid -32600 7"),
        // no JSON
        ("x", "invalid -32700"),
        ("{", "invalid -32700"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m"}}"#, "invalid -32700"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m"} {"#, "invalid -32700"),
        (r#"{'jsonrpc':'2.0'}"#, "invalid -32700"),
        (r#"{"jsonrpc":"2.0","id":NaN,"method":"m"}"#, "invalid -32700"),
        ("\u{feff}{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\"}", "invalid -32700"),
        // escapes of lone surrogates
        (r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\ud800"}}"#, "invalid -32600 1"),
        (r#"{"jsonrpc":"2.0","id":"\udc00","method":"m"}"#, "invalid -32600 \"\u{fffd}\""),
        (r#"{"jsonrpc":"2.0","id":"\ud83d\ude00","method":"\ud800"}"#, "invalid -32600 \"😀\""),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m","params":"\ud83d\ude00"}"#, "request 1 m \"😀\""),
        (r#"{"jsonrpc":"2.0","method":"n","params":"\ud800"}"#, "unreadable"),
        (r#"{"jsonrpc":"2.0","id":1,"result":"\ud800"}"#, "unreadable"),
        (r#"["\ud800"]"#, "array of 1"),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"\ud800"}"#, "invalid -32600"),
        (r#"{"a":"\ud800"#, "invalid -32700"),
    ] {
        assert_eq!(told(text.as_bytes()), expected, "{text}");
    }
    assert_eq!(told(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}"), "invalid -32700", "not UTF-8");
    let nested = |depth: usize| {
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":{}{}}}",
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    assert!(told(nested(100).as_bytes()).starts_with("request 1 m [["));
    assert_eq!(told(nested(200).as_bytes()), "invalid -32700", "nesting over 128");
    assert_eq!(told(nested(200_000).as_bytes()), "invalid -32700");
}

#[test]
fn a_line_that_is_too_long_is_an_invalid_request() {
    match rpc::parse(&vec![b' '; REQUEST_BYTES_MAX + 1]) {
        Message::Invalid { id: None, code: -32600, why } => assert!(why.contains(&REQUEST_BYTES_MAX.to_string())),
        _ => panic!("something else"),
    }
}

#[test]
fn escapes_of_lone_surrogates_are_replaced_and_nothing_else() {
    for (text, expected) in [
        (r#""\ud800""#, r#""\ufffd""#),
        (r#""\uDFFF""#, r#""\ufffd""#),
        (r#""a\udc00\ud800b""#, r#""a\ufffd\ufffdb""#),
        (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
        (r#""\ud83d\ude00\ude00""#, r#""\ud83d\ude00\ufffd""#),
        (r#""\ud83d\\ude00""#, r#""\ufffd\\ude00""#),
        (r#""\uD83Dx\uDE00""#, r#""\ufffdx\ufffd""#),
        (r#""\\\ud800""#, r#""\\\ufffd""#),
        (r#"\ud800"#, r#"\ufffd"#),
    ] {
        assert_eq!(String::from_utf8(rpc::replace_lone_surrogates(text.as_bytes())).unwrap(), expected, "{text}");
    }
    for text in [
        r#""\\ud800""#, // a backslash, then text
        r#""\\\\ud800""#,
        r#""\u00e9\ufffd\ud7ff\ue000""#,
        r#""\ud83d\ude00\uD83D\uDE00""#,
        r#""\ud8"#,
        r#""\"#,
        r#""\n\t\"""#,
        "\"😀 é\"",
        "",
    ] {
        assert_eq!(rpc::replace_lone_surrogates(text.as_bytes()), text.as_bytes(), "{text}");
    }
    // What is no escape stays, or a line that is not UTF-8 would look like one that is.
    for text in [&b"\"\\ud8\xb9z\""[..], b"\"\\ud8z0\""] {
        assert_eq!(rpc::replace_lone_surrogates(text), text);
    }
}

#[test]
fn what_we_write_is_one_line_of_json() {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let id = json!("a\nb");
    assert_eq!(text(rpc::response(&id, json!({"x": "\n\u{2028}"}))).matches('\n').count(), 1);
    assert_eq!(text(rpc::response(&json!(1), json!({}))), "{\"id\":1,\"jsonrpc\":\"2.0\",\"result\":{}}\n");
    let error = text(rpc::error(None, -32700, "no", Value::Null));
    assert_eq!(error, "{\"error\":{\"code\":-32700,\"message\":\"no\"},\"jsonrpc\":\"2.0\"}\n");
    let error = text(rpc::error(Some(&json!(5)), -1, "no", json!({"a": 1})));
    assert_eq!(error, "{\"error\":{\"code\":-1,\"data\":{\"a\":1},\"message\":\"no\"},\"id\":5,\"jsonrpc\":\"2.0\"}\n");
    let note = text(rpc::notification("n", json!({"a": 1})));
    assert_eq!(note, "{\"jsonrpc\":\"2.0\",\"method\":\"n\",\"params\":{\"a\":1}}\n");
}

// ---- mod rpc: lines ------------------------------------------------------------------------------------------------

/// The lines that come of a stream which arrives in these pieces; blank ones left out, as parse does nothing with them.
fn lines_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let mut partial = Vec::new();
    let mut found = Vec::new();
    let mut take = |line: &[u8]| {
        assert!(line.len() <= REQUEST_BYTES_MAX + 1, "{} bytes are kept", line.len());
        match line {
            _ if line.trim_ascii().is_empty() => {}
            _ if line.len() > REQUEST_BYTES_MAX => found.push("too long".into()),
            _ => found.push(String::from_utf8_lossy(line).into_owned()),
        }
    };
    for piece in pieces {
        rpc::feed(&mut partial, piece, &mut take);
    }
    rpc::feed(&mut partial, b"\n", &mut take);
    found
}

#[test]
fn lines_are_the_same_wherever_the_stream_is_split() {
    let stream = "{\"a\":1}\n\n \r\nsecond é😀\r\n\nthird\nlast without an end".as_bytes();
    let expected = ["{\"a\":1}", "second é😀\r", "third", "last without an end"];
    assert_eq!(lines_of([stream]), expected);
    for first in 0..=stream.len() {
        for second in first..=stream.len() {
            let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
            assert_eq!(lines_of(pieces), expected, "split at {first} and {second}");
        }
    }
    assert_eq!(lines_of(stream.chunks(1)), expected);
    assert!(lines_of([]).is_empty());
    assert_eq!(lines_of([&b"a\n"[..]]), ["a"]);
}

#[test]
fn a_line_over_the_limit_is_told_once_and_skipped() {
    let (longest, chunk) = ("x".repeat(REQUEST_BYTES_MAX), 64 << 10);
    for (stream, expected) in [
        (format!("{longest}\nnext"), vec![longest.as_str(), "next"]),
        (format!("{longest}x\nnext"), vec!["too long", "next"]),
        (format!("{longest}x"), vec!["too long"]),
        (longest.clone(), vec![longest.as_str()]),
        (format!("{longest}{longest}{longest}\nnext\n"), vec!["too long", "next"]),
        (format!("{longest}x\n{longest}x\nnext"), vec!["too long", "too long", "next"]),
        (format!("before\n{longest}xyz\n\nafter\n"), vec!["before", "too long", "after"]),
    ] {
        let bytes = stream.as_bytes();
        assert!(lines_of([bytes]) == expected, "in one piece, {} bytes", bytes.len());
        assert!(lines_of(bytes.chunks(chunk)) == expected, "in chunks, {} bytes", bytes.len());
        let at = REQUEST_BYTES_MAX.min(bytes.len());
        for at in [at - 1, at, (at + 1).min(bytes.len())] {
            assert!(lines_of([&bytes[..at], &bytes[at..]]) == expected, "split at {at} of {}", bytes.len());
        }
    }
}

// ---- times and numbers ---------------------------------------------------------------------------------------------

fn time_at(seconds: u64) -> String {
    iso_time(UNIX_EPOCH + Duration::from_secs(seconds))
}

#[test]
fn times_are_iso_8601_in_utc() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00Z"),
        (59, "1970-01-01T00:00:59Z"),
        (86_399, "1970-01-01T23:59:59Z"),
        (86_400, "1970-01-02T00:00:00Z"),
        (68_169_599, "1972-02-28T23:59:59Z"),
        (68_169_600, "1972-02-29T00:00:00Z"),
        (68_256_000, "1972-03-01T00:00:00Z"),
        (946_684_799, "1999-12-31T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (951_868_800, "2000-03-01T00:00:00Z"),
        (1_709_208_000, "2024-02-29T12:00:00Z"),
        (1_735_689_599, "2024-12-31T23:59:59Z"),
        (1_767_366_245, "2026-01-02T15:04:05Z"),
        (4_102_444_800, "2100-01-01T00:00:00Z"),
        (4_107_542_399, "2100-02-28T23:59:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"), // no leap year
    ] {
        assert_eq!(time_at(seconds), expected);
    }
    assert_eq!(iso_time(UNIX_EPOCH - Duration::from_secs(5)), "1970-01-01T00:00:00Z", "a clock that is far off");
    assert_eq!(iso_time(UNIX_EPOCH + Duration::from_millis(1_999)), "1970-01-01T00:00:01Z");
}

#[test]
fn every_day_of_five_centuries_has_its_date() {
    let leap = |year: u64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut day = 0;
    for year in 1970..2470 {
        let february = if leap(year) { 29 } else { 28 };
        for (month, length) in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].into_iter().enumerate() {
            for date in 1..=length {
                let expected = format!("{year:04}-{:02}-{date:02}T06:07:08Z", month + 1);
                assert_eq!(time_at(86_400 * day + 6 * 3_600 + 7 * 60 + 8), expected);
                day += 1;
            }
        }
    }
}

#[test]
fn uptime_is_a_number_with_a_unit() {
    for (seconds, expected) in [
        (1.5, "1.5 s"),
        (59.0, "59.0 s"),
        (90.0, "1.5 min"),
        (3_540.0, "59.0 min"),
        (5_400.0, "1.5 h"),
        (82_800.0, "23.0 h"),
        (129_600.0, "1.5 d"),
        (8_640_000.0, "100.0 d"),
    ] {
        let Some(since) = Instant::now().checked_sub(Duration::from_secs_f64(seconds)) else {
            panic!("this clock begins less than {seconds} s ago");
        };
        assert_eq!(uptime(since), expected);
    }
}

#[test]
fn numbers_are_grouped_by_three_digits() {
    for (number, expected) in [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1_000, "1,000"),
        (30_001, "30,001"),
        (123_456, "123,456"),
        (1_000_000, "1,000,000"),
        (u64::MAX, "18,446,744,073,709,551,615"),
    ] {
        assert_eq!(grouped(number), expected);
    }
}

// ---- texts ---------------------------------------------------------------------------------------------------------

#[test]
fn the_ends_of_a_text_are_counted_in_characters() {
    for (text, count, first, last) in [
        ("abcdef", 2, "ab", "ef"),
        ("abcdef", 6, "abcdef", "abcdef"),
        ("abcdef", 9, "abcdef", "abcdef"),
        ("aé😀", 1, "a", "😀"),
        ("aé😀", 2, "aé", "é😀"),
        ("", 3, "", ""),
    ] {
        assert_eq!((first_chars(text, count), last_chars(text, count)), (first, last), "{count} of {text:?}");
    }
}

#[test]
fn a_text_that_is_too_long_keeps_its_ends() {
    assert_eq!(truncate_middle("0123456789", 10), "0123456789");
    assert_eq!(truncate_middle("", 10), "");
    assert_eq!(truncate_middle("0123456789x", 10), "01234 … 1 characters left out … 6789x");
    assert_eq!(truncate_middle(&"é".repeat(2_000), 4), "éé … 1,996 characters left out … éé");
    assert_eq!(truncate_middle("éé😀😀", 4), "éé😀😀");
}

// ---- what a cell answers -------------------------------------------------------------------------------------------

/// Output files of a check, removed with it.
#[derive(Default)]
struct Kept(std::cell::RefCell<OutputFiles>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.borrow_mut().remove();
    }
}

/// How a cell ended, with these notes and this error.
fn cell_end(notes: &[&str], error: Option<&str>) -> CellEnd {
    CellEnd {
        notes: notes.iter().map(|note| (*note).to_owned()).collect(),
        error: error.map(str::to_owned),
        ..CellEnd::default()
    }
}

/// The answer to a cell whose streams got these pieces.
fn answer(files: &Kept, pieces: &[(usize, &[u8])], notes: &[&str], error: Option<&str>) -> String {
    let mut output = Output::default();
    for (stream, bytes) in pieces {
        output.take(*stream, bytes, &mut files.0.borrow_mut());
    }
    output.make_answer(cell_end(notes, error), &mut files.0.borrow_mut()).text()
}

const OUT: usize = 0;
const ERR: usize = 1;

#[test]
fn an_answer_is_output_then_notes_then_result_or_error() {
    let files = Kept::default();
    type Case<'a> = (&'a [(usize, &'a [u8])], &'a [&'a str], Option<&'a str>, &'a str);
    let cases: &[Case] = &[
        (&[], &[], None, ""),
        (&[(OUT, b"a\n")], &[], None, "a"),
        (&[(OUT, b"a\n\n")], &[], None, "a\n"),
        (&[(OUT, b"a")], &[], None, "a"),
        (&[(OUT, b"")], &[], None, ""),
        (&[(RESULT, b"42")], &[], None, "42"),
        (&[(OUT, b"a\n"), (RESULT, b"42")], &[], None, "a\n42"),
        (&[(OUT, b"a"), (RESULT, b"42")], &[], None, "a\n42"),
        (&[(ERR, b"e\n"), (OUT, b"o\n"), (ERR, b"f\n")], &[], None, "o\ne\nf"),
        (&[(OUT, b"o\n"), (ERR, b"e\n"), (RESULT, b"1")], &["n", "m"], None, "o\ne\n[mcp-py: n]\n[mcp-py: m]\n1"),
        (&[(OUT, b"o\n")], &["n"], Some("Traceback\nE: x"), "o\n[mcp-py: n]\nTraceback\nE: x"),
        (&[], &[], Some("SystemExit: 3"), "SystemExit: 3"),
        (&[(OUT, b"\x1b[1mbold\x1b[0m\x00\n")], &[], None, "\x1b[1mbold\x1b[0m\0"),
        (&[(OUT, b"a\xff\xfez\n")], &[], None, "a\\xff\\xfez"),
        (&[(OUT, b"\xc3"), (OUT, b"\xa9\n")], &[], None, "é"),
        (&[(OUT, b"\xf0\x9f"), (ERR, b"e"), (OUT, b"\x98\x80")], &[], None, "😀\ne"),
        (&[(OUT, b"a\r\nb\r\n")], &[], None, "a\r\nb\r"),
    ];
    for (pieces, notes, error, expected) in cases {
        assert_eq!(answer(&files, pieces, notes, *error), *expected, "{pieces:?}");
    }
}

/// The parts of a truncated answer: head, what is said of the middle, tail, size, path, and what follows.
fn parts_of(answer: &str) -> (String, String, String, String, String, String) {
    let rule = "=".repeat(50);
    let (shown, rest) =
        answer.split_once(&format!("\n\n{rule}\n# OUTPUT TRUNCATED\n# Original size: ")).expect("a notice");
    let (size, rest) = rest.split_once(" chars\n# Full output: ").expect("a size");
    let (path, after) = rest.split_once(&format!("\n{rule}")).expect("a path");
    let (head, rest) = shown.split_once("\n[mcp-py: … ").expect("a mark in the middle");
    let (left_out, tail) = rest.split_once(" characters left out …]\n").expect("a count");
    [head, left_out, tail, size, path, after].map(str::to_owned).into()
}

#[test]
fn up_to_25_000_characters_an_answer_is_whole() {
    let files = Kept::default();
    for character in ["x", "é", "😀"] {
        let whole = character.repeat(TEXT_CHARS_MAX);
        assert!(answer(&files, &[(OUT, whole.as_bytes())], &[], None) == whole);
        assert!(answer(&files, &[(OUT, format!("{whole}\n").as_bytes())], &["n"], None).starts_with(&whole));
        let more = format!("{whole}{character}");
        let cut = answer(&files, &[(OUT, more.as_bytes())], &[], None);
        assert!(cut.contains("# Original size: 25,001 chars"));
    }
}

#[test]
fn a_longer_one_shows_its_ends_and_names_a_file_with_all_of_it() {
    let files = Kept::default();
    for (character, count, end) in [
        ("x", 30_001, ""),
        ("é", 30_001, "\n"),
        ("😀", 30_001, ""),
        ("😀", 50_000, "\n"),
        ("x", 1_000_000, "\n"),
        ("😀", 1_000_003, "\n"),
    ] {
        let whole = format!("{}{end}", character.repeat(count));
        let answer = answer(&files, &[(OUT, whole.as_bytes())], &["note"], Some("error"));
        let (head, left_out, tail, size, path, after) = parts_of(&answer);
        let what = format!("{count} {character} and {end:?}");
        assert!(head == character.repeat(HEAD_CHARS), "the head of {what}");
        assert!(tail == character.repeat(TAIL_CHARS), "the tail of {what}: {}", first_chars(&tail, 20));
        assert_eq!(size, grouped((count + end.len()) as u64), "{what}");
        let number: usize = left_out.replace(',', "").parse().unwrap();
        assert!(
            (count - HEAD_CHARS - TAIL_CHARS..=count + 1 - HEAD_CHARS - TAIL_CHARS).contains(&number),
            "{left_out}"
        );
        assert!(fs::read(path).unwrap() == whole.as_bytes(), "the file of {what}");
        assert_eq!(after, "\n[mcp-py: note]\nerror", "{what}");
    }
}

#[test]
fn the_ends_of_a_long_answer_are_the_same_however_it_arrived() {
    let files = Kept::default();
    let lines: String = (0..40_000).map(|n| format!("line {n} é😀\n")).collect();
    let bytes = lines.as_bytes();
    let (head, _, tail, size, ..) = parts_of(&answer(&files, &[(OUT, bytes)], &[], None));
    assert_eq!(head, first_chars(&lines, HEAD_CHARS));
    assert_eq!(tail, last_chars(lines.trim_end(), TAIL_CHARS));
    assert_eq!(size, grouped(lines.chars().count() as u64));
    for length in [1_000, 4_096, 65_536, 262_144, bytes.len() - 1] {
        let pieces: Vec<_> = bytes.chunks(length).map(|piece| (OUT, piece)).collect();
        let parts = parts_of(&answer(&files, &pieces, &[], None));
        assert!((&parts.0, &parts.2, &parts.3) == (&head, &tail, &size), "in pieces of {length}");
        assert!(fs::read(&parts.4).unwrap() == bytes, "in pieces of {length}");
    }
}

#[test]
fn the_file_has_the_result_on_a_line_of_its_own() {
    let files = Kept::default();
    let result = "r".repeat(40_000);
    let text = answer(&files, &[(OUT, b"out"), (ERR, b"err"), (RESULT, result.as_bytes())], &[], None);
    let (head, _, tail, _, path, after) = parts_of(&text);
    assert!(head.starts_with("out\nerr\nrrr") && tail == "r".repeat(TAIL_CHARS) && after.is_empty());
    assert!(fs::read_to_string(path).unwrap() == format!("outerr\n{result}"));
}

#[test]
fn output_that_is_no_text_is_counted_without_nonsense() {
    let files = Kept::default();
    for byte in [0xff, 0x80] {
        let bytes = vec![byte; 10_000]; // 40,000 characters as escapes
        let (head, left_out, tail, _, path, _) = parts_of(&answer(&files, &[(OUT, &bytes)], &[], None));
        assert!(head.starts_with(&format!("\\x{byte:02x}")) && tail.len() == TAIL_CHARS);
        let number: u64 = left_out.replace(',', "").parse().unwrap();
        assert!(number <= 40_000, "{left_out} characters are left out");
        assert!(fs::read(path).unwrap() == bytes);
    }
}

#[test]
fn a_long_note_keeps_its_ends_and_output_never_cuts_it_away() {
    let files = Kept::default();
    let (note, flood) = ("n".repeat(50_000), vec![b'x'; 100_000]);
    let text = answer(&files, &[(OUT, &flood)], &[&note, "second"], Some("the error"));
    let after = parts_of(&text).5;
    assert!(after.ends_with("[mcp-py: second]\nthe error"));
    assert!(after.len() < NOTE_CHARS_MAX + 200 && after.starts_with("\n[mcp-py: nnn"), "{}", after.len());
}

#[test]
fn output_from_between_the_cells_is_a_note() {
    let files = Kept::default();
    let note = |pieces: &[(usize, &[u8])]| {
        let mut output = Output::default();
        pieces.iter().for_each(|(stream, bytes)| output.take(*stream, bytes, &mut files.0.borrow_mut()));
        output.as_note(BETWEEN_CELLS, false, &mut files.0.borrow_mut())
    };
    assert_eq!(note(&[]), None);
    let short = note(&[(OUT, b"late\n"), (ERR, b"worse\n")]).unwrap();
    assert!(short.contains("11 chars") && short.contains("\nlate\nworse\n"), "{short}");
    for count in [20_000, 300_000] {
        let long = note(&[(OUT, &vec![b'x'; count])]).unwrap();
        assert!(long.chars().count() <= NOTE_CHARS_MAX, "a note's own limit must not cut it again");
        let path = long.split_once("whole in ").expect("a file").1.split_once(":\n").unwrap().0;
        assert_eq!(fs::metadata(path).unwrap().len(), count as u64);
        assert!(long.contains(&grouped(count as u64)));
        let left_out = long.split_once(" … ").unwrap().1.split_once(" characters left out").unwrap().0;
        let shown = long.split_once(":\n").unwrap().1.matches('x').count();
        let left_out: usize = left_out.replace(',', "").parse().unwrap();
        assert!(left_out + shown >= count && left_out + shown < count + 10, "{left_out} left out and {shown} shown");
    }
}

#[test]
fn progress_tells_the_last_line() {
    let files = Kept::default();
    for (pieces, expected) in [
        (&[][..], ""),
        (&[(OUT, &b"one\ntwo"[..])], "two"),
        (&[(OUT, b"one\n\n  \n")], "one"),
        (&[(OUT, b"one\n"), (ERR, b"  50% \n")], "50%"),
        (&[(OUT, b"\xf0\x9f\x98\x80")], "😀"),
    ] {
        let mut output = Output::default();
        pieces.iter().for_each(|(stream, bytes)| output.take(*stream, bytes, &mut files.0.borrow_mut()));
        assert_eq!(output.last_line(), expected, "{pieces:?}");
    }
    let mut output = Output::default();
    output.take(OUT, format!("start {}", "é".repeat(1_000)).as_bytes(), &mut files.0.borrow_mut());
    assert_eq!(output.last_line(), "é".repeat(PROGRESS_MESSAGE_CHARS));
}

// ---- the host ------------------------------------------------------------------------------------------------------

/// A snapshot from lines of pid, parent, name and, if it matters, program.
fn snapshot(lines: &str) -> Processes {
    lines.split(';').filter_map(|line| parse_process(line, false)).collect()
}

#[test]
fn the_host_is_found_in_a_snapshot() {
    for (lines, expected) in [
        // the parent, whatever it is
        ("1 0 init; 50 1 codex; 99 50 mcp-py", Some((50, "codex", false))),
        ("1 0 init; 40 1 login; 50 40 bash; 99 50 mcp-py", Some((50, "bash", false))),
        // Claude, by its name or its place, near or far
        ("50 1 claude; 99 50 mcp-py", Some((50, "claude", true))),
        ("50 1 Claude; 99 50 mcp-py", Some((50, "claude", true))),
        ("50 1 2.1.330 /home/u/.local/share/claude/versions/2.1.330; 99 50 mcp-py", Some((50, "claude", true))),
        ("40 1 claude; 50 40 bash; 60 50 uv; 99 60 mcp-py", Some((40, "claude", true))),
        ("30 1 claude; 40 30 bash; 50 40 claude; 60 50 sh; 99 60 mcp-py", Some((50, "claude", true))),
        ("50 1 claudette; 99 50 mcp-py", Some((50, "claudette", false))),
        ("50 1 node /opt/claude/cli.js; 99 50 mcp-py", Some((50, "node", false))),
        ("40 1 zsh; 50 1 claude; 99 40 mcp-py", Some((40, "zsh", false))), // not above us
        // launchers
        ("40 1 code; 50 40 uv; 99 50 mcp-py", Some((40, "code", false))),
        ("30 1 code; 40 30 npm; 50 40 npx; 60 50 uvx; 99 60 mcp-py", Some((30, "code", false))),
        ("40 1 uv; 50 40 zed; 99 50 mcp-py", Some((50, "zed", false))),
        ("50 1 uv; 99 50 mcp-py", None),
        // init and the kernel are nobody's host
        ("1 0 init; 99 1 mcp-py", None),
        ("1 0 claude; 99 1 mcp-py", None),
        ("0 0 sched; 99 0 mcp-py", None),
        // snapshots that lack something, or make no sense
        ("50 1 claude", None),
        ("99 50 mcp-py", None),
        ("60 50 zed; 99 60 mcp-py", Some((60, "zed", false))),
        ("99 99 uv", None),
        ("50 60 uv; 60 50 npx; 99 50 mcp-py", None),
        ("50 60 uv; 60 50 loop; 99 50 mcp-py", Some((60, "loop", false))),
        ("99 -5 mcp-py; -5 1 claude", None),
    ] {
        let host = find_host(99, &snapshot(lines));
        let found = host.pid.map(|pid| (pid, host.name.as_deref().unwrap_or_default(), host.is_claude));
        assert_eq!(found, expected, "{lines}");
        assert!(host.pid.is_some() || (host.name.is_none() && !host.is_claude), "{lines}");
    }
    // Where nothing can be listed, the parent is all that is known.
    let host = find_host(99, &Processes::new());
    assert_eq!((host.pid, host.name, host.is_claude), (Some(parent_id() as i32), None, false));
    // Longer than any real chain: an end is found all the same.
    let long: String = (100..10_000).map(|pid| format!("{pid} {} uv;", pid + 1)).collect();
    assert!(find_host(100, &snapshot(&long)).pid.is_none());
}

/// Lines of `ps -o pid=,ppid=,comm=` on macOS.
#[test]
fn claude_is_found_by_what_ps_prints_on_macos() {
    for (comm, name, is_claude) in [
        ("claude", "claude", true),
        ("/Users/me/.local/bin/claude", "claude", true),
        ("/Users/me/.local/share/claude/versions/2.1.330", "2.1.330", true),
        ("/opt/homebrew/lib/node_modules/@anthropic-ai/claude-code/bin/claude.exe", "claude.exe", true),
        (
            "/Users/me/.vscode/extensions/anthropic.claude-code-2.1.330-darwin-arm64/resources/native-binary/claude",
            "claude",
            true,
        ),
        (
            "/Users/me/Library/Application Support/Claude/claude-code/2.1.330/claude.app/Contents/MacOS/claude",
            "claude",
            true,
        ),
        ("/Applications/Claude.app/Contents/MacOS/Claude", "Claude", false),
        (
            "/Applications/Claude.app/Contents/Frameworks/Claude Helper.app/Contents/MacOS/Claude Helper",
            "Claude Helper",
            false,
        ),
        ("-zsh", "zsh", false),
        ("/Applications/Visual Studio Code.app/Contents/MacOS/Electron", "Electron", false),
        ("node", "node", false),
    ] {
        let (pid, process) = parse_process(&format!("  812     1 {comm}"), true).expect("a process");
        assert_eq!((pid, process.parent), (812, 1));
        assert_eq!((process.name.as_str(), process.is_claude), (name, is_claude), "{comm}");
    }
    assert!(parse_process("", true).is_none() && parse_process("812", true).is_none());
}

// ---- mod http ------------------------------------------------------------------------------------------------------

/// What comes of a head: status of the refusal, or method, path, size, length, expectation and age.
fn head_of(text: &str) -> Option<String> {
    http::head(text.as_bytes()).map(|head| match head {
        Err((status, _)) => status.split(' ').next().unwrap().to_owned(),
        Ok(http::Head { method, path, size, length, expects, is_http_1_0 }) => {
            format!("{method} {path} {size} {length} {expects} {is_http_1_0}")
        }
    })
}

#[test]
fn a_good_head_is_incomplete_at_every_prefix_and_the_same_whatever_follows() {
    for (text, expected) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / 27 0 false false"),
        ("GET /a?b=c HTTP/1.0\r\n\r\n", "GET /a 23 0 false true"),
        ("HEAD http://localhost/a HTTP/1.1\r\nhOST:\t x \r\n\r\n", "HEAD /a 47 0 false false"),
        ("GET http://localhost HTTP/1.1\r\nHost: x\r\n\r\n", "GET / 42 0 false false"),
        (
            "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 007\r\nExpect: 100-Continue\r\n\r\n",
            "POST /a 72 7 true false",
        ),
        ("POST /a HTTP/1.0\r\nContent-Length: 16777216\r\n\r\n", "POST /a 46 16777216 false true"),
    ] {
        for end in 0..text.len() {
            assert_eq!(head_of(&text[..end]), None, "{:?}", &text[..end]);
        }
        for more in ["", "{}", "\0\r", "GET / HTTP/1.1\r\n\r\n"] {
            assert_eq!(head_of(&format!("{text}{more}")).as_deref(), Some(expected), "{text:?} and {more:?}");
        }
    }
}

#[test]
fn what_is_not_a_clean_head_is_refused_as_soon_as_that_is_known() {
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "y".repeat(HTTP_HEAD_BYTES_MAX));
    for (text, expected) in [
        ("GET /\rx", Some("400")),
        ("\n", Some("400")),
        ("G\0", Some("400")),
        (&long, Some("431")),
        (&long[..HTTP_HEAD_BYTES_MAX], None),
        (&format!("{}\r\n\r\n", &long[..HTTP_HEAD_BYTES_MAX - 4]), Some("GET / 16384 0 false false")),
        ("\r\n\r\n", Some("400")),
        ("GET / HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n", Some("400")),
        ("GET / HTTP/1.1\r\nHost: x\r\n: z\r\n\r\n", Some("400")),
        ("G T / HTTP/1.1\r\nHost: x\r\n\r\n", Some("400")),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", Some("400")),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 16777217\r\n\r\n", Some("413")),
    ] {
        assert_eq!(head_of(text).as_deref(), expected, "{:?}", first_chars(text, 80));
    }
}

#[test]
fn a_character_that_is_cut_is_kept_back_and_nothing_else() {
    for text in ["a", "é", "€", "😀", "a€", "€a", "é😀"] {
        for end in 0..=text.len() {
            let cut = cut_character(&text.as_bytes()[..end]);
            assert!(text.is_char_boundary(end - cut), "{text} up to {end}: {cut}");
            assert_eq!(cut == 0, text.is_char_boundary(end), "{text} up to {end}: {cut}");
        }
    }
    for bytes in [&b"\xff"[..], b"\x80\x80\x80", b"a\x80", b"\xe2\x82\xac\x80", b"caf\xe9\n", b"\xffab", b"\xed\xa0"] {
        assert_eq!(cut_character(bytes), 0, "{bytes:?} is no text");
    }
}

// ---- random bytes --------------------------------------------------------------------------------------------------

/// xorshift64*: the same seed, the same bytes.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }

    /// Pieces of a grammar, with bytes from anywhere in between.
    fn text(&mut self, pieces: &[&str]) -> Vec<u8> {
        let mut text = Vec::new();
        for _ in 0..self.next(24) {
            match self.next(6) {
                0 => text.push(self.next(256) as u8),
                _ => text.extend_from_slice(pieces[self.next(pieces.len())].as_bytes()),
            }
        }
        text
    }
}

/// Calls `one` with random input until a second has passed, or MCP_PY_FUZZ_SECONDS; a failure shows the seed.
fn for_a_while(seed: u64, mut one: impl FnMut(&mut Random)) {
    let seconds = std::env::var("MCP_PY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let (end, mut rounds) = (Instant::now() + Duration::from_secs_f64(seconds), 0u64);
    while Instant::now() < end || rounds < 1_000 {
        let seed = seed + rounds;
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            one(&mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
        }));
        assert!(told.is_ok(), "with seed {seed}");
        rounds += 1;
    }
}

#[test]
fn random_lines_are_messages_or_refused_and_never_split_otherwise_for_how_they_arrive() {
    let pieces = [
        "{",
        "}",
        "[",
        "]",
        "\"jsonrpc\":\"2.0\"",
        "\"id\":1",
        "\"id\":\"x\"",
        "\"method\":\"m\"",
        "\"params\":{}",
        ",",
        ":",
        "\n",
        "\r",
        "\\ud800",
        "\\udc00",
        "\\u0041",
        "\"",
        "\\",
        "null",
        "1e5",
        "é",
        "\u{1f600}",
        " ",
    ];
    for_a_while(1, |random| {
        let text = random.text(&pieces);
        told(&text);
        let clean = rpc::replace_lone_surrogates(&text);
        assert_eq!(rpc::replace_lone_surrogates(&clean), clean, "{text:?}");
        let at = random.next(text.len() + 1);
        assert_eq!(lines_of([&text[..at], &text[at..]]), lines_of([&text[..]]), "{text:?} at {at}");
    });
}

#[test]
fn random_heads_are_incomplete_good_or_refused_and_more_bytes_change_no_verdict() {
    let pieces = [
        "GET",
        "POST",
        " ",
        "/execute",
        "/a?b=c",
        "HTTP/1.1",
        "HTTP/1.0",
        "\r\n",
        "\r\n\r\n",
        "Host: x\r\n",
        "Content-Length: 5\r\n",
        "Content-Length:",
        "Transfer-Encoding: chunked\r\n",
        "Expect: 100-continue\r\n",
        ":",
        "\r",
        "\n",
        "\0",
        " folded",
        "http://h/p",
    ];
    for_a_while(2, |random| {
        let mut text = b"POST /execute HTTP/1.1\r\nHost: x\r\n".to_vec();
        text.truncate(random.next(60));
        text.extend(random.text(&pieces));
        let verdict = |bytes: &[u8]| match http::head(bytes) {
            None => None,
            Some(Ok(head)) => Some(format!("{} {} {} {}", head.method, head.path, head.size, head.length)),
            Some(Err((status, _))) => Some(status.to_owned()),
        };
        let whole = verdict(&text);
        if let Some(Ok(head)) = http::head(&text) {
            assert!(head.size <= text.len() && head.length <= REQUEST_BYTES_MAX, "{text:?}");
        }
        // What is known of a prefix stays known.
        let at = random.next(text.len() + 1);
        if let Some(early) = verdict(&text[..at]) {
            assert_eq!(Some(early), whole, "{:?} at {at}", String::from_utf8_lossy(&text));
        }
    });
}

#[test]
fn random_bytes_are_shown_as_text_with_their_ends_kept() {
    let pieces = ["abc", "é", "\u{1f600}", "\n", "\u{0}", "x".repeat(50).leak()];
    for_a_while(3, |random| {
        let bytes = random.text(&pieces);
        let text = escaped(&bytes);
        assert_eq!(std::str::from_utf8(&bytes).is_ok(), text.as_bytes() == bytes, "{bytes:?}");
        let cut = cut_character(&bytes);
        assert!(cut <= 3 && cut <= bytes.len(), "{bytes:?}");
        let most = 2 + random.next(40);
        let kept = truncate_middle(&text, most);
        assert!(kept == text || text.chars().count() > most, "{text:?} {most}");
        assert!(
            kept.starts_with(first_chars(&text, most / 2)) && kept.ends_with(last_chars(&text, most / 2)),
            "{text:?} {most}"
        );
        from_base64(&bytes);
    });
}

#[test]
fn base64_is_decoded_as_rfc_4648_shows() {
    for (text, bytes) in
        [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar"), ("Zm9v\nYmE=", "fooba")]
    {
        assert_eq!(from_base64(text.as_bytes()), bytes.as_bytes(), "{text}");
    }
    assert_eq!(from_base64(b"+/+/"), [0xfb, 0xff, 0xbf]);
}

// ---- the tools -----------------------------------------------------------------------------------------------------

#[test]
fn every_tool_has_properties_and_the_limit_of_a_time_is_the_one_that_is_checked() {
    for tool in TOOLS.iter() {
        assert!(tool.shown["inputSchema"]["properties"].is_object(), "{}", tool.shown["name"]);
    }
    let execute = find_tool("execute").expect("a tool");
    let timeout = &execute.shown["inputSchema"]["properties"]["timeout"];
    assert_eq!(timeout["maximum"].as_f64(), Some(*SECONDS.end()));
}

// ---- lines that are written over -----------------------------------------------------------------------------------

/// What is given out of pieces, by a type that was made for this.
fn given_out<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut lines = Overwritten::default();
    let mut shown = Vec::new();
    for piece in pieces {
        lines.take(piece, &mut shown);
        assert!(lines.line.len() <= LINE_BYTES_HELD + piece.len(), "it keeps {} bytes", lines.line.len());
    }
    assert_eq!(lines.chars_given_out, count_chars(&shown));
    shown.extend(lines.end());
    String::from_utf8(shown).expect("UTF-8, as it came")
}

#[test]
fn escape_sequences_between_returns_are_not_kept_without_end() {
    for repeated in ["\x1b[0m\r", "\x1b[0m\x1b[1A"] {
        let text = format!("a\r{}", repeated.repeat(LINE_BYTES_HELD));
        given_out(text.as_bytes().chunks(4096)); // which looks at what is kept
    }
}

#[test]
fn of_lines_that_are_written_over_the_last_stands_however_the_text_is_cut() {
    for (text, expected) in [
        ("", ""),
        ("a", "a"),
        ("a\nb", "a\nb"),
        ("a\rb", "b"),
        ("\r0%\r10%\r100%\ndone\n", "100%\ndone\n"),
        ("0%\r10%\r", "10%"),
        ("\ra\r\n\r\n\rb\n", "a\r\n\r\nb\n"),
        ("a\r\r\rb\r\n", "b\r\n"),
        ("long\r\r\n", "long\r\n"),
        ("é…\ré\n\u{2028}\r✓\n", "é\n✓\n"),
        ("bar 100%\r\x1b[0m\x1b[?25h", "bar 100%\x1b[0m\x1b[?25h"),
        ("50%\r\x1b[0m\x1b[31m100%", "\x1b[0m\x1b[31m100%"),
        ("a\r\x1b[0", "a\x1b[0"),
        ("a\r\x1b[0\0b", "\x1b[0\0b"),
        ("a\r\x1bb", "\x1bb"),
        // Bars below each other, as tqdm moves between them.
        ("\ra 0\n\rb 0\x1b[A\n\rb 1\x1b[A\ra 1\n\rb 0\x1b[A\n\n", "a 1\nb 0\n"),
        ("\ra\n\rb\x1b[A\n\r  \r\x1b[A\ra 9", "a 9"),
        ("é\nb\nc\x1b[2A\rx\n\n", "x\nb\nc"),
        ("a\nb\n\x1b[9A\rx", "x\nb"),
        ("\x1b[Aa A\x1b[12", "a A\x1b[12"),
        ("a\nb\r\x1b[2K\x1b[1A\x1b[2Kc\n", "c\n"),
        ("\x1b[31mA\x1b[0m\x1b[3xA", "\x1b[31mA\x1b[0m\x1b[3xA"),
    ] {
        let text = text.as_bytes();
        assert_eq!(given_out([text]), expected, "{text:?}");
        for at in 0..text.len() {
            let (one, rest) = text.split_at(at);
            assert_eq!(given_out([one, rest]), expected, "{one:?} {rest:?}");
        }
        assert_eq!(given_out(text.chunks(1)), expected, "{text:?} by bytes");
    }
}

#[test]
fn a_line_without_an_end_is_given_out_before_it_is_too_long_to_keep() {
    let piece = "x".repeat(1_000);
    assert_eq!(given_out([piece.as_bytes(); 1_000]).len(), 1_000_000);
    let bar = format!("{piece}\r");
    assert_eq!(given_out([bar.as_bytes(); 1_000]), piece);
    let long = "x".repeat(LINE_BYTES_HELD + 1);
    assert_eq!(given_out([long.as_bytes(), b"\r", b"y\n"]).lines().last(), Some("y"));
}
