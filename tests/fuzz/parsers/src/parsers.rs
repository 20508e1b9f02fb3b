//! One round: the first byte chooses the parser, the rest is its input. A panic is a finding.

use super::*;

pub fn one(bytes: &[u8]) {
    let Some((kind, input)) = bytes.split_first() else { return };
    match kind % 5 {
        0 => lines(input),
        1 => head(input),
        2 => text(input),
        3 => arguments(input),
        _ => base64(input),
    }
}

fn named(message: rpc::Message) -> String {
    match message {
        rpc::Message::Request { id, method, params } => format!("request {id} {method} {params}"),
        rpc::Message::Notification { method, params } => format!("notification {method} {params}"),
        rpc::Message::Ignored => "nothing".into(),
        rpc::Message::BadNotification { why } => format!("unreadable {why}"),
        rpc::Message::Invalid { id, code, why } => format!("invalid {id:?} {code} {why}"),
        // Its members are no arrays: `read` refuses these.
        rpc::Message::Batch { members, read } => members.into_iter().map(read).map(named).collect(),
    }
}

/// What the lines of a stream are taken for.
fn taken<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let (mut partial, mut told) = (Vec::new(), Vec::new());
    let mut take = |line: &[u8]| told.push(named(rpc::parse(line)));
    pieces.into_iter().for_each(|piece| rpc::feed(&mut partial, piece, &mut take));
    rpc::feed(&mut partial, b"\n", &mut take);
    told
}

/// However a stream arrives, its lines are the same, and a request can be answered.
fn lines(input: &[u8]) {
    let whole = taken([input]);
    let half = input.len() / 2;
    assert_eq!(taken([&input[..half], &input[half..]]), whole);
    assert_eq!(taken(input.chunks(1)), whole);
    let clean = rpc::replace_lone_surrogates(input);
    assert_eq!(rpc::replace_lone_surrogates(&clean), clean);
}

/// What is known of a request's beginning stays known when more of it arrives.
fn head(input: &[u8]) {
    let verdict = |bytes: &[u8]| match http::head(bytes) {
        None => None,
        Some(Ok(head)) => {
            assert!(head.size <= bytes.len() && head.length <= REQUEST_BYTES_MAX);
            let _ = Endpoint::of(&head);
            Some(format!("{} {} {} {}", head.method, head.path, head.size, head.length))
        }
        Some(Err((status, _))) => Some(status.to_owned()),
    };
    let whole = verdict(input);
    for at in 0..input.len() {
        if let Some(early) = verdict(&input[..at]) {
            assert_eq!(Some(early), whole, "at {at}");
        }
    }
}

/// Bytes as text, however they arrive: nothing is lost before the limit, and the ends stay.
fn text(input: &[u8]) {
    let shown = escaped(input);
    let (mut held, mut sent) = (Vec::new(), String::new());
    for piece in input.chunks(3) {
        held.extend_from_slice(piece);
        let rest = held.split_off(held.len() - cut_character(&held));
        sent += &escaped(&mem::replace(&mut held, rest));
    }
    assert_eq!(sent + &escaped(&held), shown);
    let (mut whole, mut pieces) = (HeadAndTail::default(), HeadAndTail::default());
    whole.take(input);
    input.chunks(3).for_each(|piece| pieces.take(piece));
    assert_eq!((whole.chars, whole.text()), (pieces.chars, pieces.text()));
    for most in [2, 10, 80] {
        assert!(truncate_middle(&shown, most).chars().count() <= most + 60);
    }
}

/// Four digits are three bytes, two or three at the end one or two; what is no digit changes nothing.
fn base64(input: &[u8]) {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let digits: Vec<u8> = input.iter().copied().filter(|byte| digit(byte)).collect();
    let bytes = from_base64(input);
    assert_eq!(bytes.len(), digits.len() * 3 / 4);
    let (first, rest) = digits.split_at(digits.len() / 8 * 4);
    assert_eq!(bytes, [from_base64(first), from_base64(rest)].concat());
}

/// Arguments of any shape are taken or refused in words; what is no object is tried as an argument of a wrong type.
fn arguments(input: &[u8]) {
    let given = serde_json::from_slice(input).unwrap_or_else(|_| json!({"code": "1", "timeout": escaped(input)}));
    let Value::Object(given) = given else { return };
    for tool in TOOLS.iter() {
        match tool.check(&given) {
            // The names of arguments are shown whole, what they hold is not.
            Err(why) => {
                assert!(!why.is_empty() && why.len() < if why.contains("unknown argument") { 10_000 } else { 500 })
            }
            Ok(_) => {
                let needs = tool.shown["inputSchema"]["required"].as_array().into_iter().flatten();
                assert!(needs
                    .filter_map(Value::as_str)
                    .all(|name| given.get(name).is_some_and(|value| !value.is_null())));
            }
        }
    }
}
