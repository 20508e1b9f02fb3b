//! MCP on stdin and stdout: which message gets which answer, in both eras of the protocol (with `initialize` and
//! without). Malformed lines get the error that the agreed version's schema allows, and the next line is read as usual.
//! Progress, cancellation, slow and closed readers, floods. Nothing but messages is ever on stdout (I1).

use crate::client::{binary, modern_params, python, Folder, Server, DEADLINE, LEGACY, MODERN};
use crate::procs;
use serde_json::{json, Value};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

const VERSIONS: [&str; 5] = [MODERN, "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
/// Legacy versions whose schema wants an id in every error: a message without one gets no answer.
const SILENT_VERSIONS: [&str; 3] = ["2025-06-18", "2025-03-26", "2024-11-05"];
const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES_KEY: &str = "io.modelcontextprotocol/clientCapabilities";
const SERVER_INFO_KEY: &str = "io.modelcontextprotocol/serverInfo";
const SUBSCRIPTION_KEY: &str = "io.modelcontextprotocol/subscriptionId";
const REQUEST_BYTES_MAX: usize = 16 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// The response is an error of this code, and says something.
#[track_caller]
fn expect_error(server: &mut Server, response: &Value, code: i64) {
    let text = response["error"]["message"].as_str().unwrap_or_default();
    if response["error"]["code"] != code || text.is_empty() {
        server.fail(&format!("error {code} with a message was expected, not {response}"));
    }
}

/// The next message is an error of this code that has no id.
#[track_caller]
fn expect_error_without_id(server: &mut Server, code: i64) {
    let message = server.recv(DEADLINE);
    if message.get("id").is_some() {
        server.fail(&format!("an error without an id was expected, not {message}"));
    }
    expect_error(server, &message, code);
}

/// What every result of 2026-07-28 has.
#[track_caller]
fn expect_modern_result(server: &mut Server, response: &Value) {
    let result = &response["result"];
    let info = &result["_meta"][SERVER_INFO_KEY];
    if result["resultType"] != "complete" || info["name"] != "python-interpreter" || !info["version"].is_string() {
        server.fail(&format!("a complete modern result was expected, not {response}"));
    }
}

#[track_caller]
fn expect_caching_hints(server: &mut Server, result: &Value) {
    let scope = result["cacheScope"].as_str().unwrap_or_default();
    if result["ttlMs"].as_u64().is_none() || !["public", "private"].contains(&scope) {
        server.fail(&format!("ttlMs and cacheScope were expected in {result}"));
    }
}

/// stderr grows beyond what it was.
#[track_caller]
fn expect_more_stderr(server: &mut Server, before: usize) {
    let start = Instant::now();
    while server.stderr().len() <= before {
        if start.elapsed() > DEADLINE {
            server.fail("a line on stderr was expected");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn tool_names(tools: &Value) -> Vec<String> {
    let tools = tools.as_array().expect("a list of tools");
    tools.iter().map(|tool| tool["name"].as_str().expect("a name").to_string()).collect()
}

// ---- initialize, server/discover, the two eras ---------------------------------------------------------------------

#[test]
fn initialize_answers_the_version_that_was_asked_for() {
    for version in &VERSIONS[1..] {
        let mut server = Server::start();
        let result = server.initialize_as(version);
        assert_eq!(result["protocolVersion"], *version);
        assert_eq!(result["capabilities"], json!({"tools": {}}));
        assert_eq!(result["serverInfo"]["name"], "python-interpreter");
        assert!(result["serverInfo"]["title"].as_str().is_some_and(|title| !title.is_empty()), "{result}");
        assert_eq!(result["serverInfo"]["version"], env!("CARGO_PKG_VERSION"));
        let instructions = result["instructions"].as_str().expect("instructions");
        assert!(!instructions.is_empty() && instructions.chars().count() < 2000, "{instructions}");
    }
}

#[test]
fn initialize_with_a_version_we_do_not_have_answers_the_newest_legacy_one() {
    for version in [MODERN, "2099-01-01", "1.0", ""] {
        let mut server = Server::start();
        assert_eq!(server.initialize_as(version)["protocolVersion"], LEGACY, "asked for {version:?}");
    }
}

#[test]
fn discover_names_every_version_newest_first() {
    let mut server = Server::start();
    let response = server.modern("server/discover", Value::Null);
    expect_modern_result(&mut server, &response);
    let result = &response["result"];
    expect_caching_hints(&mut server, result);
    assert_eq!(result["supportedVersions"], json!(VERSIONS));
    assert_eq!(result["capabilities"], json!({"tools": {}}));
    assert!(result["instructions"].as_str().is_some_and(|text| !text.is_empty()), "{result}");
}

#[test]
fn an_initialize_queued_behind_discover_is_answered_and_eras_mix() {
    let mut server = Server::start();
    let discover = server.start_modern("server/discover", Value::Null);
    let params =
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "it", "version": "1"}});
    let initialize = server.start_request("initialize", params);
    let response = server.response(discover);
    expect_modern_result(&mut server, &response);
    assert_eq!(server.response(initialize)["result"]["protocolVersion"], "2025-06-18");

    assert_eq!(server.ok("x = 20"), "");
    let response = server.modern("tools/call", json!({"name": "execute", "arguments": {"code": "x += 1; x"}}));
    expect_modern_result(&mut server, &response);
    assert_eq!(response["result"]["content"][0]["text"], "21");
    assert_eq!(server.ok("x + 1"), "22");
    let response = server.modern("server/discover", Value::Null);
    expect_modern_result(&mut server, &response);
}

#[test]
fn discover_alone_starts_no_python() {
    let mut server = Server::start();
    let pid = server.pid();
    for _ in 0..3 {
        server.modern("server/discover", Value::Null);
    }
    // A Python that was started in the background would be there by now.
    server.expect_silence(Duration::from_millis(300));
    assert_eq!(procs::children_of(pid), [0; 0], "processes of a server that was only asked what it is");
    server.initialize();
    procs::eventually(Duration::from_secs(20), "a Python after initialize", || !procs::children_of(pid).is_empty());
}

#[test]
fn a_modern_session_needs_no_initialize() {
    let mut server = Server::start();
    let response = server.modern("tools/list", Value::Null);
    expect_modern_result(&mut server, &response);
    expect_caching_hints(&mut server, &response["result"]);
    let response = server.modern("tools/call", json!({"name": "execute", "arguments": {"code": "1 + 1"}}));
    expect_modern_result(&mut server, &response);
    assert_eq!(response["result"]["content"][0]["text"], "2");
    let response = server.modern("tools/call", json!({"name": "execute", "arguments": {"code": "1 / 0"}}));
    expect_modern_result(&mut server, &response);
    assert_eq!(response["result"]["isError"], true);
    let response = server.modern("tools/call", json!({"name": "get_session_info", "arguments": {}}));
    expect_modern_result(&mut server, &response);
    assert!(response["result"]["structuredContent"].is_object(), "{response}");
}

#[test]
fn a_modern_request_without_a_required_meta_field_is_invalid_params() {
    let mut server = Server::start();
    let version_only = json!({"_meta": {VERSION_KEY: MODERN}});
    let capabilities_only = json!({"_meta": {CAPABILITIES_KEY: {}}});
    let call = json!({"name": "execute", "arguments": {"code": "ran = 1"}, "_meta": {VERSION_KEY: MODERN}});
    for (method, params) in [
        ("server/discover", version_only.clone()),
        ("server/discover", capabilities_only.clone()),
        ("server/discover", json!({"_meta": {}})),
        ("server/discover", json!({})),
        ("server/discover", Value::Null),
        ("tools/list", version_only.clone()),
        ("subscriptions/listen", json!({"notifications": {}, "_meta": {VERSION_KEY: MODERN}})),
        ("tools/call", call),
    ] {
        server.remark(&format!("{method} {params}"));
        let response = server.request(method, params);
        expect_error(&mut server, &response, -32602);
    }
    assert_eq!(server.call("list_vars", json!({})).text, "No variables defined");
}

#[test]
fn client_info_may_be_missing_from_a_modern_request() {
    let mut server = Server::start();
    let params = json!({"_meta": {VERSION_KEY: MODERN, CAPABILITIES_KEY: {}}});
    for method in ["server/discover", "tools/list"] {
        let response = server.request(method, params.clone());
        expect_modern_result(&mut server, &response);
    }
}

#[test]
fn an_unknown_modern_version_is_told_which_ones_there_are() {
    let mut server = Server::start();
    let params = json!({"_meta": {VERSION_KEY: "2099-01-01"}});
    for method in ["server/discover", "tools/list", "subscriptions/listen"] {
        let response = server.modern(method, params.clone());
        expect_error(&mut server, &response, -32022);
        let data = &response["error"]["data"];
        assert_eq!(data["requested"], "2099-01-01", "{response}");
        let supported = data["supported"].as_array().expect("a list of versions");
        assert!(supported.contains(&json!(MODERN)), "{response}");
    }
    let mut call = json!({"name": "execute", "arguments": {"code": "ran = 1"}});
    call["_meta"] = params["_meta"].clone();
    let response = server.modern("tools/call", call);
    expect_error(&mut server, &response, -32022);
    assert_eq!(server.call("list_vars", json!({})).text, "No variables defined");
}

// ---- subscriptions/listen ------------------------------------------------------------------------------------------

fn listen(server: &mut Server) -> i64 {
    let wanted = json!({"notifications": {"toolsListChanged": true, "promptsListChanged": true}});
    let id = server.start_modern("subscriptions/listen", wanted);
    let message = server.recv(DEADLINE);
    assert_eq!(message["method"], "notifications/subscriptions/acknowledged", "{message}");
    assert_eq!(message["params"]["notifications"], json!({}), "nothing is granted: {message}");
    assert_eq!(message["params"]["_meta"][SUBSCRIPTION_KEY], id, "{message}");
    id
}

#[test]
fn sixty_four_subscriptions_may_be_open_and_the_next_is_refused() {
    let mut server = Server::start();
    let open: Vec<i64> = (0..64).map(|_| listen(&mut server)).collect();
    let wanted = json!({"notifications": {}});
    let response = server.modern("subscriptions/listen", wanted);
    expect_error(&mut server, &response, -32603);
    server.cancel(open[0]);
    listen(&mut server);
}

#[track_caller]
fn expect_listen_result(server: &mut Server, id: impl Into<Value>) {
    let id = id.into();
    let response = server.response(id.clone());
    expect_modern_result(server, &response);
    assert_eq!(response["result"]["_meta"][SUBSCRIPTION_KEY], id, "{response}");
    let mut members: Vec<&String> = response["result"].as_object().expect("a result").keys().collect();
    members.sort();
    assert_eq!(members, ["_meta", "resultType"], "an empty result");
}

#[test]
fn listen_is_acknowledged_stays_open_and_ends_with_an_empty_result_at_end_of_stdin() {
    let mut server = Server::start();
    let id = listen(&mut server);
    server.expect_no_answer();
    let call = json!({"name": "execute", "arguments": {"code": "1"}});
    let response = server.modern("tools/call", call);
    expect_modern_result(&mut server, &response);
    server.expect_no_answer();
    server.close_stdin();
    expect_listen_result(&mut server, id);
    server.expect_end_of_stdout(5 * SECOND);
    assert_eq!(server.wait_exit(5 * SECOND).code(), Some(0));
}

#[test]
fn listen_ends_with_an_empty_result_when_a_signal_stops_the_server() {
    let mut server = Server::start();
    let params = modern_params(json!({"notifications": {}}));
    server.send(&json!({"jsonrpc": "2.0", "id": "listen:0", "method": "subscriptions/listen", "params": params}));
    let message = server.recv(DEADLINE);
    assert_eq!(message["params"]["_meta"][SUBSCRIPTION_KEY], "listen:0", "{message}");
    server.kill(libc::SIGTERM);
    expect_listen_result(&mut server, "listen:0");
    assert_eq!(server.wait_exit(5 * SECOND).code(), Some(128 + libc::SIGTERM));
}

#[test]
fn a_cancelled_listen_is_never_answered() {
    let mut server = Server::start();
    let cancelled = listen(&mut server);
    let open = listen(&mut server);
    server.cancel(cancelled);
    server.expect_no_answer();
    server.close_stdin();
    expect_listen_result(&mut server, open);
    server.expect_end_of_stdout(5 * SECOND);
}

// ---- ping, tools/list ----------------------------------------------------------------------------------------------

#[test]
fn ping_is_answered_before_initialize() {
    let mut server = Server::start();
    let response = server.request("ping", Value::Null);
    assert_eq!(response["result"], json!({}));
    let response = server.request("ping", json!({}));
    assert_eq!(response["result"], json!({}));
}

#[test]
fn ping_is_answered_while_a_cell_runs() {
    let mut server = Server::start();
    server.initialize();
    let (cell, release) = server.start_waiting();
    for _ in 0..20 {
        assert_eq!(server.request("ping", Value::Null)["result"], json!({}));
    }
    fs::write(release, "").expect("release");
    assert_eq!(server.wait(cell).text, "'released'");
}

#[test]
fn legacy_requests_before_initialize_are_served() {
    let mut server = Server::start();
    assert_eq!(tool_names(&server.request("tools/list", Value::Null)["result"]["tools"]).len(), 9);
    assert_eq!(server.ok("6 * 7"), "42");
    assert_eq!(server.initialize()["protocolVersion"], LEGACY);
}

#[test]
fn the_tool_list_is_one_page_in_an_order_that_never_changes() {
    let mut server = Server::start();
    server.initialize();
    let first = server.request("tools/list", Value::Null)["result"].clone();
    assert!(first.get("nextCursor").is_none(), "one page: {first}");
    let mut names = tool_names(&first["tools"]);
    let added = json!({"name": "other", "python_path": python()});
    assert!(!server.call("add_interpreter", added).is_error);
    server.ok("x = 1");
    assert_eq!(server.request("tools/list", json!({}))["result"], first, "after other requests");
    let modern = server.modern("tools/list", Value::Null);
    assert_eq!(tool_names(&modern["result"]["tools"]), names, "in the other era");
    let mut second = Server::start();
    assert_eq!(tool_names(&second.request("tools/list", Value::Null)["result"]["tools"]), names, "in another server");
    names.sort();
    let nine = [
        "add_interpreter",
        "execute",
        "get_session_info",
        "interrupt",
        "list_interpreters",
        "list_vars",
        "reset",
        "stop_interpreter",
        "wait",
    ];
    assert_eq!(names, nine);
}

#[test]
fn an_unknown_cursor_is_invalid_params() {
    let mut server = Server::start();
    server.initialize();
    for cursor in [json!("2"), json!(""), json!(7)] {
        let response = server.request("tools/list", json!({"cursor": cursor}));
        expect_error(&mut server, &response, -32602);
        let response = server.modern("tools/list", json!({"cursor": cursor}));
        expect_error(&mut server, &response, -32602);
    }
}

// ---- tools/call: progress ------------------------------------------------------------------------------------------

/// Runs a cell with a progress token to its end; its progress notifications, its text, and how long it took.
#[track_caller]
fn with_progress(server: &mut Server, token: &Value, code: &str, modern: bool) -> (Vec<Value>, String, Duration) {
    let start = Instant::now();
    let mut params =
        json!({"name": "execute", "arguments": {"code": code, "timeout": 0}, "_meta": {"progressToken": token}});
    if modern {
        params = modern_params(params);
    }
    let id = server.start_request("tools/call", params);
    let mut progress = vec![];
    loop {
        let message = server.recv(DEADLINE);
        if message["method"] == "notifications/progress" {
            progress.push(message["params"].clone());
        } else if message["id"] == id {
            let text = message["result"]["content"][0]["text"].as_str().expect("a text").to_string();
            return (progress, text, start.elapsed());
        } else {
            server.fail(&format!("neither progress nor the answer: {message}"));
        }
    }
}

#[track_caller]
fn expect_rising(progress: &[Value], token: &Value) {
    assert!(progress.iter().all(|params| params["progressToken"] == *token), "the token {token}: {progress:?}");
    let values: Vec<f64> = progress.iter().map(|params| params["progress"].as_f64().expect("a number")).collect();
    assert!(values.windows(2).all(|pair| pair[0] < pair[1]), "strictly rising: {values:?}");
}

#[test]
fn progress_rises_at_most_once_a_second_with_the_last_line_and_stops_at_the_end() {
    for (token, modern) in [(json!("a token"), false), (json!(0), true)] {
        let mut server = Server::start();
        server.initialize();
        server.ok("import time");
        let code = "for i in range(64):\n    print('line', i)\n    time.sleep(0.05)\n'end'";
        let (progress, text, took) = with_progress(&mut server, &token, code, modern);
        assert!(text.ends_with("line 63\n'end'"), "{text}");
        expect_rising(&progress, &token);
        assert!(progress.len() >= 2, "in {took:?}: {progress:?}");
        assert!(progress.len() <= took.as_secs() as usize + 1, "at most one a second in {took:?}: {progress:?}");
        let lines: Vec<i64> = progress
            .iter()
            .map(|params| {
                let message = params["message"].as_str().expect("a message");
                let number = message.strip_prefix("line ").and_then(|number| number.parse().ok());
                number.unwrap_or_else(|| panic!("a whole line was expected, not {message:?}"))
            })
            .collect();
        assert!(lines.windows(2).all(|pair| pair[0] < pair[1]), "the last line each time: {lines:?}");
        server.expect_silence(Duration::from_millis(1500));
    }
}

#[test]
fn a_silent_cell_shows_progress_within_twenty_seconds() {
    let mut server = Server::start();
    server.initialize();
    server.ok("import time");
    let (progress, text, _) = with_progress(&mut server, &json!("t"), "time.sleep(22); 1", false);
    assert_eq!(text, "1");
    assert!(!progress.is_empty(), "none in 22 s");
    expect_rising(&progress, &json!("t"));
}

#[test]
fn without_a_token_there_is_no_progress() {
    let mut server = Server::start();
    server.initialize();
    let id = server.start_exec("import time\nfor i in range(30):\n    print(i)\n    time.sleep(0.05)");
    let message = server.recv(DEADLINE);
    assert_eq!(message["id"], id, "{message}");
}

#[test]
fn a_queued_cell_has_no_progress_of_the_one_before_it() {
    let mut server = Server::start();
    server.initialize();
    server.ok("import time");
    let code = "for i in range(32):\n    print('first', i)\n    time.sleep(0.05)";
    let first = server.start_exec(code);
    let params = json!({"name": "execute", "arguments": {"code": "'mine'"}, "_meta": {"progressToken": "second"}});
    let second = server.start_request("tools/call", params);
    let mut progress = vec![];
    let text = loop {
        let message = server.recv(DEADLINE);
        if message["id"] == second {
            break message["result"]["content"][0]["text"].clone();
        } else if message["id"] != first {
            progress.push(message["params"]["message"].clone());
        }
    };
    assert_eq!(text, "'mine'");
    let foreign = progress.iter().filter_map(Value::as_str).any(|message| message.contains("first"));
    assert!(!foreign, "{progress:?}");
}

// ---- cancellation --------------------------------------------------------------------------------------------------

#[test]
fn cancelling_a_running_cell_frees_the_interpreter_and_is_not_answered() {
    let mut server = Server::start();
    server.initialize();
    server.ok("kept = 1");
    let cancelled = server.start_spinning();
    server.cancel(cancelled);
    let start = Instant::now();
    let next = server.start_exec("kept + 1");
    // The answer to the next cell is the next message of all.
    let message = server.recv(DEADLINE);
    assert_eq!((&message["id"], &message["result"]["content"][0]["text"]), (&json!(next), &json!("2")), "{message}");
    assert!(start.elapsed() < 4 * SECOND, "freed by the interrupt, not by the grace: {:?}", start.elapsed());
    server.expect_no_answer();
    server.close_stdin();
    server.expect_end_of_stdout(5 * SECOND);
}

#[test]
fn a_cancelled_cell_with_a_progress_token_is_silent_from_then_on() {
    let mut server = Server::start();
    server.initialize();
    server.ok("import time");
    let code = "while True:\n    print('tick')\n    time.sleep(0.02)";
    let params = json!({"name": "execute", "arguments": {"code": code}, "_meta": {"progressToken": "t"}});
    let id = server.start_request("tools/call", params);
    server.recv_until(|message| message["method"] == "notifications/progress");
    server.cancel(id);
    // The ping is behind the cancellation, so whatever comes after its answer was said too late.
    let ping = server.start_request("ping", Value::Null);
    server.response(ping);
    server.pending();
    server.expect_silence(Duration::from_millis(1500));
    let next = server.ok("1 + 1");
    assert!(next.starts_with("[mcp-py: cell 2 was cancelled; its output, ") && next.ends_with("]\n2"), "{next}");
    server.expect_no_answer();
}

#[test]
fn cancelling_a_queued_cell_takes_it_out_of_the_queue() {
    let mut server = Server::start();
    server.initialize();
    let (first, release) = server.start_waiting();
    let second = server.start_exec("second_ran = True");
    let third = server.start_exec("'second_ran' in globals()");
    server.cancel(second);
    server.expect_no_answer();
    fs::write(release, "").expect("release");
    assert_eq!(server.wait(first).text, "'released'");
    assert_eq!(server.wait(third).text, "False");
    server.expect_no_answer();
}

#[test]
fn cancelling_what_is_unknown_finished_or_malformed_is_ignored() {
    let mut server = Server::start();
    server.initialize();
    let finished = server.start_exec("x = 1");
    server.wait(finished);
    let (running, release) = server.start_waiting();
    let running_as_text = json!(running.to_string());
    for params in [
        json!({"requestId": finished}),
        json!({"requestId": 9999}),
        json!({"requestId": running_as_text}),
        json!({"requestId": null}),
        json!({"requestId": [running]}),
        json!({"requestId": {"id": running}}),
        json!({"id": running}),
        json!({}),
        json!([running]),
    ] {
        server.notify("notifications/cancelled", params);
    }
    server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled"}));
    server.expect_no_answer();
    fs::write(release, "").expect("release");
    assert_eq!(server.wait(running).text, "'released'", "none of them meant the running cell");
    assert_eq!(server.ok("x"), "1");
}

#[test]
fn string_ids_are_cancelled_too() {
    let mut server = Server::start();
    server.initialize();
    let (first, release) = server.start_waiting();
    let call = json!({"name": "execute", "arguments": {"code": "ran = 1"}});
    server.send(&json!({"jsonrpc": "2.0", "id": "q", "method": "tools/call", "params": call}));
    server.notify("notifications/cancelled", json!({"requestId": "q", "reason": "changed my mind"}));
    fs::write(release, "").expect("release");
    server.wait(first);
    assert_eq!(server.ok("'ran' in globals()"), "False");
    server.expect_no_answer();
}

#[test]
fn an_id_in_flight_used_again_is_served_and_a_cancellation_means_the_newest() {
    let mut server = Server::start();
    server.initialize();
    let (first, release) = server.start_waiting();
    let again = |code: &str| {
        let call = json!({"name": "execute", "arguments": {"code": code}});
        json!({"jsonrpc": "2.0", "id": first, "method": "tools/call", "params": call})
    };
    server.send(&again("'second'"));
    server.send(&again("third = 1"));
    server.cancel(first);
    server.expect_no_answer();
    fs::write(release, "").expect("release");
    let mut texts = vec![];
    for _ in 0..2 {
        texts.push(server.wait(first).text);
    }
    assert_eq!(texts, ["'released'", "'second'"]);
    assert_eq!(server.ok("'third' in globals()"), "False");
    server.expect_no_answer();
}

// ---- notifications, unknown methods, ids ---------------------------------------------------------------------------

#[test]
fn notifications_are_never_answered_and_run_nothing() {
    let mut server = Server::start();
    server.initialize();
    for (method, params) in [
        ("notifications/initialized", json!({})),
        ("notifications/roots/list_changed", json!({})),
        ("notifications/nobody/knows", json!({"x": 1})),
        ("notifications/progress", json!({"progressToken": 1, "progress": 1})),
        ("nobody/knows", json!([])),
        ("ping", json!({})),
        ("tools/list", json!({})),
        ("tools/call", json!({"name": "execute", "arguments": {"code": "ran = 1"}})),
        ("server/discover", modern_params(json!({}))),
    ] {
        server.notify(method, params);
        server.send(&json!({"jsonrpc": "2.0", "method": method}));
    }
    server.expect_no_answer();
    assert_eq!(server.call("list_vars", json!({})).text, "No variables defined");
}

#[test]
fn unknown_methods_are_not_found() {
    let mut server = Server::start();
    server.initialize();
    let nowhere = ["nobody/knows", "logging/setLevel", "resources/list", "prompts/list", "completion/complete", ""];
    for method in nowhere {
        let response = server.request(method, json!({"level": "info"}));
        expect_error(&mut server, &response, -32601);
    }
    for method in ["nobody/knows", "logging/setLevel", "resources/list", "ping"] {
        let response = server.modern(method, json!({"level": "info"}));
        expect_error(&mut server, &response, -32601);
    }
    // A method is not a prefix of another, nor another spelling of it.
    for method in ["tools/listx", "Ping", "tools/list/", " ping"] {
        let response = server.request(method, Value::Null);
        expect_error(&mut server, &response, -32601);
    }
}

/// Once each of these was echoed whole, in a line longer than clients take. The harness checks every line's length.
#[test]
fn what_an_error_quotes_is_cut() {
    let mut server = Server::with(|builder| builder.env("MCP_PY_PYTHON", "/bin/false"));
    server.initialize();
    let long = "x".repeat(12 << 20);
    let response = server.request(&long, Value::Null);
    expect_error(&mut server, &response, -32601);
    let response = server.request("tools/call", json!({"name": long}));
    expect_error(&mut server, &response, -32602);
    let params = json!({"_meta": {"io.modelcontextprotocol/protocolVersion": long}});
    let response = server.request("ping", params);
    expect_error(&mut server, &response, -32022);
    for (tool, arguments) in [
        ("execute", json!({"code": "1", "interpreter": long})),
        ("execute", json!({"code": "1", long.clone(): 1})),
        ("stop_interpreter", json!({"name": long})),
        ("add_interpreter", json!({"name": long, "python_path": "/bin/false"})),
        ("add_interpreter", json!({"name": "x", "python_path": long})),
        ("add_interpreter", json!({"name": "x", "python_path": "/bin/false", "cwd": long})),
    ] {
        let result = server.call(tool, arguments);
        assert!(result.is_error && result.text.len() < 200_000, "{tool}: {} bytes", result.text.len());
    }
}

/// Once a refused call stayed open, and at the end of stdin an idle server waited for it.
#[test]
fn a_list_that_is_refused_for_too_many_calls_leaves_nothing_open() {
    let folder = Folder::new();
    folder.script("ps", "#!/bin/sh\nexec sleep 600\n"); // until it is given up, the list waits for the host
    let path = format!("{}:{}", folder.bin().display(), std::env::var("PATH").unwrap());
    let mut server = Server::with(|builder| {
        builder.folder(&folder).env("PATH", path).env("MCP_PY_PYTHON", "/bin/false").under("claude")
    });
    server.initialize();
    let ids: Vec<_> = (0..2_000).map(|_| server.start_call("get_session_info", json!({}))).collect();
    let response = server.request("tools/list", Value::Null);
    expect_error(&mut server, &response, -32603);
    for id in ids {
        server.cancel(id);
    }
    let began = Instant::now();
    assert_eq!(server.finish(DEADLINE), Some(0));
    assert!(began.elapsed() < Duration::from_millis(1_200), "{:?}", began.elapsed());
}

#[test]
fn ids_come_back_as_they_were() {
    let mut server = Server::start();
    for id in [
        json!(0),
        json!(-7),
        json!(9_007_199_254_740_993_i64),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("7"),
        json!("a \"quoted\" \\ line\nand é \u{1F600} \u{2028}"),
    ] {
        server.send(&json!({"jsonrpc": "2.0", "id": id, "method": "ping"}));
        assert_eq!(server.recv(DEADLINE), json!({"jsonrpc": "2.0", "id": id, "result": {}}));
        server.send(&json!({"jsonrpc": "2.0", "id": id, "method": "nope"}));
        let response = server.recv(DEADLINE);
        assert_eq!(response["id"], id);
        expect_error(&mut server, &response, -32601);
    }
}

#[test]
fn responses_to_nothing_we_asked_are_ignored() {
    let mut server = Server::start();
    server.initialize();
    server.send(&json!({"jsonrpc": "2.0", "id": 1, "result": {}}));
    server.send(&json!({"jsonrpc": "2.0", "id": "x", "result": {"roots": []}}));
    server.send(&json!({"jsonrpc": "2.0", "id": 2, "error": {"code": -1, "message": "no"}}));
    server.send(&json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "no"}}));
    server.send(&json!({"jsonrpc": "2.0", "error": {"code": -32700, "message": "no"}}));
    server.expect_no_answer();
}

// ---- what can't be read --------------------------------------------------------------------------------------------

/// Lines that are not JSON. The nested ones are one level too deep, with a request inside.
fn unreadable_lines() -> Vec<Vec<u8>> {
    let deep = |depth: usize| {
        let (open, close) = ("[".repeat(depth - 2), "]".repeat(depth - 2));
        format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{{\"x\":{open}{close}}}}}").into_bytes()
    };
    vec![
        b"{".to_vec(),
        b"hello".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"} {}".to_vec(),
        b"{'jsonrpc':'2.0','id':1,'method':'ping'}".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":NaN,\"method\":\"ping\"}".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pi\tng\"}".to_vec(),
        b"\0".to_vec(),
        b"\xff\xfe".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"x\":\"\xff\"}}".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"x\":\"\xed\xa0\x80\"}}".to_vec(),
        deep(129),
        deep(5000),
        vec![b'['; 200_000],
    ]
}

fn with_newline(mut line: Vec<u8>) -> Vec<u8> {
    line.push(b'\n');
    line
}

#[test]
fn unreadable_lines_get_a_parse_error_where_an_error_may_lack_an_id() {
    for era in ["nothing agreed", LEGACY, MODERN] {
        let mut server = Server::start();
        match era {
            LEGACY => drop(server.initialize()),
            MODERN => drop(server.modern("tools/list", Value::Null)),
            _ => {}
        }
        for line in unreadable_lines() {
            let before = server.stderr().len();
            server.send_raw(&with_newline(line));
            expect_error_without_id(&mut server, -32700);
            expect_more_stderr(&mut server, before);
            server.expect_no_answer();
        }
    }
}

#[test]
fn unreadable_lines_get_silence_in_older_sessions_and_a_line_on_stderr() {
    for version in SILENT_VERSIONS {
        let mut server = Server::start();
        server.initialize_as(version);
        for line in unreadable_lines() {
            let before = server.stderr().len();
            server.send_raw(&with_newline(line));
            server.expect_no_answer();
            expect_more_stderr(&mut server, before);
        }
        assert_eq!(server.ok("1 + 1"), "2");
    }
}

#[test]
fn nesting_of_127_levels_is_read() {
    let mut server = Server::start();
    let (open, close) = ("[".repeat(125), "]".repeat(125));
    let line = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{{\"x\":{open}{close}}}}}\n");
    server.send_raw(line.as_bytes());
    assert_eq!(server.recv(DEADLINE)["result"], json!({}));
}

#[test]
fn brackets_within_strings_are_no_nesting() {
    let mut server = Server::start();
    let text = "[{".repeat(400);
    assert_eq!(server.ok(&format!("len('''\\\"{text}''')")), "801");
}

#[test]
fn a_request_with_lone_surrogates_is_answered_with_an_error_that_names_them() {
    let mut server = Server::start();
    server.initialize();
    for text in ["\\ud800", "a\\udfffb", "\\udc00\\ud800", "\\ud83d\\u0041", "\\ud83d\\\\ude00"] {
        for id in ["77", "\"text\"", "\"\\ud83d\\ude00\""] {
            server.send_raw(
                format!(
                    "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"tools/call\",\"params\":{{\"name\":\"execute\",\
                     \"arguments\":{{\"code\":\"ran = '{text}'\"}}}}}}\n"
                )
                .as_bytes(),
            );
            let message = server.recv(DEADLINE);
            assert_eq!(message["id"], serde_json::from_str::<Value>(id).unwrap(), "{message}");
            let said = message["error"]["message"].as_str().unwrap_or_default();
            assert!(said.contains("surrogate"), "{message}");
        }
    }
    let notification = b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/x\",\"params\":{\"x\":\"\\ud800\"}}\n";
    server.send_raw(notification);
    server.expect_no_answer();
    assert_eq!(server.call("list_vars", json!({})).text, "No variables defined");
}

#[test]
fn surrogate_pairs_are_one_character() {
    let mut server = Server::start();
    let line = "{\"jsonrpc\":\"2.0\",\"id\":\"p\",\"method\":\"tools/call\",\"params\":{\"name\":\"execute\",\
                \"arguments\":{\"code\":\"x = '\\ud83d\\ude00'; (len(x), ascii(x))\"}}}\n";
    server.send_raw(line.as_bytes());
    let message = server.response("p");
    assert_eq!(message["result"]["content"][0]["text"], r#"(1, "'\\U0001f600'")"#, "{message}");
}

/// JSON texts that are no request and name no id to answer to.
const NO_REQUEST_WITHOUT_ID: [&str; 15] = [
    "42",
    "\"ping\"",
    "null",
    "true",
    "[]",
    "[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}]",
    "[{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}]",
    "{}",
    "{\"jsonrpc\":\"2.0\"}",
    "{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"ping\"}",
    "{\"jsonrpc\":\"2.0\",\"id\":1.5,\"method\":\"ping\"}",
    "{\"jsonrpc\":\"2.0\",\"id\":true,\"method\":\"ping\"}",
    "{\"jsonrpc\":\"2.0\",\"id\":[1],\"method\":\"ping\"}",
    "{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"ping\"}",
    "{\"jsonrpc\":\"2.0\",\"id\":null}",
];

/// The same with an id that can be answered.
const NO_REQUEST_WITH_ID: [(&str, &str); 8] = [
    ("{\"jsonrpc\":\"2.0\",\"id\":7}", "7"),
    ("{\"jsonrpc\":\"2.0\",\"id\":\"t\",\"params\":{}}", "\"t\""),
    ("{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":5}", "7"),
    ("{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":null}", "7"),
    ("{\"id\":7,\"method\":\"ping\"}", "7"),
    ("{\"jsonrpc\":\"1.0\",\"id\":7,\"method\":\"ping\"}", "7"),
    ("{\"jsonrpc\":2.0,\"id\":\"t\",\"method\":\"ping\"}", "\"t\""),
    ("{\"jsonrpc\":null,\"id\":0,\"method\":\"ping\"}", "0"),
];

#[test]
fn json_that_is_no_request_is_an_invalid_request() {
    for era in ["nothing agreed", LEGACY, MODERN] {
        let mut server = Server::start();
        match era {
            LEGACY => drop(server.initialize()),
            MODERN => drop(server.modern("tools/list", Value::Null)),
            _ => {}
        }
        for line in NO_REQUEST_WITHOUT_ID {
            server.send_raw(format!("{line}\n").as_bytes());
            expect_error_without_id(&mut server, -32600);
            server.expect_no_answer();
        }
        for (line, id) in NO_REQUEST_WITH_ID {
            server.send_raw(format!("{line}\n").as_bytes());
            let message = server.recv(DEADLINE);
            assert_eq!(message["id"].to_string(), id, "{line}: {message}");
            expect_error(&mut server, &message, -32600);
            server.expect_no_answer();
        }
    }
}

#[test]
fn json_that_is_no_request_gets_silence_in_older_sessions_unless_it_has_an_id() {
    for version in SILENT_VERSIONS {
        let mut server = Server::start();
        server.initialize_as(version);
        let is_served = |line: &str| version == WITH_ARRAYS && line.starts_with("[{");
        for line in NO_REQUEST_WITHOUT_ID.into_iter().filter(|line| !is_served(line)) {
            server.send_raw(format!("{line}\n").as_bytes());
            server.expect_no_answer();
        }
        for (line, id) in NO_REQUEST_WITH_ID {
            server.send_raw(format!("{line}\n").as_bytes());
            let message = server.recv(DEADLINE);
            assert_eq!(message["id"].to_string(), id, "{line}: {message}");
            expect_error(&mut server, &message, -32600);
        }
    }
}

// ---- arrays of messages, which 2025-03-26 alone has -----------------------------------------------------------------

const WITH_ARRAYS: &str = "2025-03-26";

fn server_with_arrays() -> Server {
    let mut server = Server::start();
    server.initialize_as(WITH_ARRAYS);
    server
}

fn a_call(id: Value, code: &str) -> Value {
    let params = json!({"name": "execute", "arguments": {"code": code}});
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})
}

#[test]
fn each_message_of_an_array_is_served_by_itself_and_answered_by_itself() {
    let mut server = server_with_arrays();
    server.send(&json!([
        a_call(json!("a"), "import time; time.sleep(0.3); x = 20"),
        a_call(json!("b"), "x + 1"),
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 9, "result": {}},
        {"jsonrpc": "2.0", "id": "p", "method": "ping"},
        {"jsonrpc": "2.0", "id": "u", "method": "no/such"},
    ]));
    let first = [server.recv(DEADLINE), server.recv(DEADLINE)];
    assert_eq!(first[0], json!({"jsonrpc": "2.0", "id": "p", "result": {}}));
    assert_eq!(first[1]["id"], "u");
    expect_error(&mut server, &first[1], -32601);
    let told = server.response("b");
    assert_eq!(told["result"]["content"][0]["text"], "21", "{told}");
    server.response("a");
    server.expect_no_answer();
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "long"}});
    server.send(&json!([a_call(json!("long"), "while True: pass"), cancelled]));
    assert_eq!(server.ok("x"), "20");
}

#[test]
fn an_array_is_refused_in_any_other_session() {
    for version in SILENT_VERSIONS.into_iter().chain([LEGACY]).filter(|version| *version != WITH_ARRAYS) {
        let mut server = Server::start();
        server.initialize_as(version);
        let before = server.stderr().len();
        server.send(&json!([a_call(json!("a"), "ran = 1")]));
        if version == LEGACY {
            expect_error_without_id(&mut server, -32600);
        }
        server.expect_no_answer();
        expect_more_stderr(&mut server, before);
        assert_eq!(server.call("list_vars", json!({})).text, "No variables defined");
    }
}

/// Gemini CLI takes a text that is JSON for the structure of a result that has none, and refuses it if that is no object.
#[test]
fn gemini_cli_gets_an_empty_structure_and_other_hosts_none() {
    for (name, structure) in [("gemini-cli-mcp-client-python", json!({})), ("it", Value::Null)] {
        let mut server = Server::start();
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {},
                            "clientInfo": {"name": name, "version": "1"}});
        server.request("initialize", params);
        for (tool, arguments, structure) in [
            ("execute", json!({"code": "6 * 7"}), &structure),
            ("list_vars", json!({}), &structure),
            // An error is no JSON. Where its tool has a schema, an empty object would not be of it.
            ("execute", json!({"code": "1 / 0"}), &Value::Null),
            ("add_interpreter", json!({"name": "x", "python_path": "/nowhere"}), &Value::Null),
        ] {
            let result = server.request("tools/call", json!({"name": tool, "arguments": arguments}))["result"].clone();
            assert_eq!(&result["structuredContent"], structure, "{name}, {tool}: {result}");
        }
        let told = server.call("get_session_info", json!({})).structured;
        let socket = told["socket_path"].as_str().expect("a socket");
        // The client shows the text.
        crate::procs::eventually(DEADLINE, "the socket is there", || std::path::Path::new(socket).exists());
        server.ok("x = 5");
        let mut client = std::process::Command::new(crate::client::binary());
        let output = client.args(["client", "--socket", socket, "--list-vars"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "x\n", "{output:?}");
    }
}

#[test]
fn initialize_is_never_part_of_an_array() {
    let mut server = server_with_arrays();
    let params = json!({"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}});
    server.send(&json!([
        {"jsonrpc": "2.0", "id": "i", "method": "initialize", "params": params},
        {"jsonrpc": "2.0", "id": "p", "method": "ping"},
    ]));
    let refused = server.recv(DEADLINE);
    assert_eq!(refused["id"], "i");
    expect_error(&mut server, &refused, -32600);
    assert_eq!(server.recv(DEADLINE)["id"], "p");
    server.send(&json!([{"jsonrpc": "2.0", "id": "q", "method": "ping"}])); // arrays are still taken
    assert_eq!(server.recv(DEADLINE)["id"], "q");
}

#[test]
fn what_is_no_message_in_an_array_is_refused_by_itself() {
    let mut server = server_with_arrays();
    for (line, id) in NO_REQUEST_WITH_ID {
        let ping = "{\"jsonrpc\":\"2.0\",\"id\":\"p\",\"method\":\"ping\"}";
        server.send_raw(format!("[1,{line},[{ping}],null,{ping}]\n").as_bytes());
        let message = server.recv(DEADLINE);
        assert_eq!(message["id"].to_string(), id, "{line}: {message}");
        expect_error(&mut server, &message, -32600);
        assert_eq!(server.recv(DEADLINE), json!({"jsonrpc": "2.0", "id": "p", "result": {}}));
        server.expect_no_answer(); // that schema has no error without an id
    }
    server.send_raw(b"[{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"x\",\"params\":{\"y\":\"\\ud800\"}}]\n");
    let message = server.recv(DEADLINE);
    assert_eq!(message["id"], 5);
    assert!(message["error"]["message"].as_str().unwrap().contains("surrogate"), "{message}");
}

#[test]
fn the_limits_on_requests_hold_for_those_of_arrays() {
    let mut server = server_with_arrays();
    let pings =
        |count: usize| Value::from_iter((0..count).map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "ping"})));
    server.send(&pings(2_001));
    server.expect_no_answer();
    server.send(&pings(2_000));
    for id in 0..2_000 {
        assert_eq!(server.recv(DEADLINE)["id"], id);
    }
    let (flag, release) = (server.flag(), server.flag());
    let code = format!(
        "open({flag:?}, 'w').close()\nimport os, time\nwhile not os.path.exists({release:?}): time.sleep(0.01)"
    );
    let first = server.start_exec(&code);
    server.expect_file(&flag);
    server.send(&Value::from_iter((0..1_010).map(|number| a_call(json!(format!("c{number}")), "1"))));
    for number in 1_000..1_010 {
        let told = server.response(format!("c{number}"));
        let text = told["result"]["content"][0]["text"].as_str().unwrap_or_default();
        assert!(text.contains("1000 cells are waiting already"), "{told}");
    }
    std::fs::write(&release, "").unwrap();
    server.wait(first);
    for number in 0..1_000 {
        server.response(format!("c{number}"));
    }
}

/// A ping of exactly so many bytes, without a newline.
fn ping_of(bytes: usize) -> Vec<u8> {
    let head = "{\"jsonrpc\":\"2.0\",\"id\":\"big\",\"method\":\"ping\",\"params\":{\"x\":\"";
    let tail = "\"}}";
    let mut line = head.as_bytes().to_vec();
    line.resize(bytes - tail.len(), b'a');
    line.extend_from_slice(tail.as_bytes());
    line
}

#[test]
fn a_line_of_almost_16_mib_is_served() {
    let mut server = Server::start();
    server.send_raw(&with_newline(ping_of(REQUEST_BYTES_MAX - 1)));
    assert_eq!(server.response("big")["result"], json!({}));
    let length = 15 << 20;
    let text = server.ok(&format!("x = '{}'\nlen(x)", "a".repeat(length)));
    assert_eq!(text, length.to_string());
}

#[test]
fn a_line_over_16_mib_is_refused_and_the_next_one_is_read() {
    let mut server = Server::start();
    server.send_raw(&with_newline(ping_of(REQUEST_BYTES_MAX + 1)));
    expect_error_without_id(&mut server, -32600);
    server.expect_no_answer();
    assert_eq!(server.ok("1 + 1"), "2");
}

#[test]
fn the_rest_of_a_line_over_16_mib_never_gets_into_memory() {
    let mut server = Server::start();
    server.initialize();
    let chunk = vec![b'['; 1 << 20];
    for _ in 0..160 {
        server.send_raw(&chunk);
    }
    server.send_raw(b"\n");
    expect_error_without_id(&mut server, -32600);
    server.expect_no_answer();
    let pid = server.pid();
    let (now, peak) = (procs::rss_kb(pid), procs::peak_rss_kb(pid));
    assert!(peak < 48 << 10, "{peak} KiB at most for a line of 160 MiB");
    assert!(now < 10 << 10, "{now} KiB kept");
}

#[test]
fn a_line_over_16_mib_gets_silence_in_older_sessions() {
    let mut server = Server::start();
    server.initialize_as("2025-06-18");
    let before = server.stderr().len();
    server.send_raw(&with_newline(ping_of(REQUEST_BYTES_MAX + 1)));
    server.expect_no_answer();
    expect_more_stderr(&mut server, before);
}

#[test]
fn blank_lines_are_nothing() {
    let mut server = Server::start();
    server.initialize();
    server.send_raw(b"\n\n   \n\t\n\r\n \r\n");
    server.expect_no_answer();
}

#[test]
fn lines_may_end_in_crlf_and_come_in_pieces() {
    let mut server = Server::start();
    server.send_raw(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\r\n");
    assert_eq!(server.recv(DEADLINE), json!({"jsonrpc": "2.0", "id": 1, "result": {}}));
    for byte in b" {\"jsonrpc\":\"2.0\",\"id\":\"\xc3\xa9\",\"method\":\"ping\"} \r\n" {
        server.send_raw(&[*byte]);
    }
    assert_eq!(server.recv(DEADLINE), json!({"jsonrpc": "2.0", "id": "é", "result": {}}));
}

#[test]
fn several_messages_in_one_write_are_all_read() {
    let mut server = Server::start();
    let mut bytes = vec![];
    for id in 0..500 {
        bytes.extend_from_slice(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"ping\"}}\n").as_bytes());
    }
    server.send_raw(&bytes);
    for id in 0..500 {
        assert_eq!(server.recv(DEADLINE)["id"], id, "in the order of the questions");
    }
}

#[test]
fn a_raw_line_separator_is_no_end_of_line() {
    let mut server = Server::start();
    server.initialize();
    let line = "{\"jsonrpc\":\"2.0\",\"id\":\"u\",\"method\":\"tools/call\",\"params\":{\"name\":\"execute\",\
                \"arguments\":{\"code\":\"x = 'a\u{2028}b\u{2029}c\u{85}d'; print(x); len(x)\"}}}\n";
    server.send_raw(line.as_bytes());
    let message = server.response("u");
    assert_eq!(message["result"]["content"][0]["text"], "a\u{2028}b\u{2029}c\u{85}d\n7", "{message}");
}

// ---- tools/call: what is malformed ---------------------------------------------------------------------------------

#[test]
fn an_unknown_tool_is_invalid_params() {
    let mut server = Server::start();
    server.initialize();
    for params in [
        json!({"name": "nobody", "arguments": {}}),
        json!({"name": "", "arguments": {}}),
        json!({"name": "Execute", "arguments": {"code": "1"}}),
        json!({"name": 5, "arguments": {"code": "1"}}),
        json!({"arguments": {"code": "1"}}),
        json!({}),
    ] {
        let response = server.request("tools/call", params.clone());
        expect_error(&mut server, &response, -32602);
        let response = server.modern("tools/call", params);
        expect_error(&mut server, &response, -32602);
    }
}

#[test]
fn params_that_are_no_object_are_invalid() {
    let mut server = Server::start();
    server.initialize();
    for method in ["tools/call", "tools/list", "ping", "initialize"] {
        for params in [json!([]), json!(["execute"]), json!("x"), json!(3)] {
            let response = server.request(method, params);
            expect_error(&mut server, &response, -32602);
        }
    }
}

#[test]
fn arguments_null_or_absent_are_none() {
    let mut server = Server::start();
    server.initialize();
    for params in [json!({"name": "list_vars", "arguments": null}), json!({"name": "list_vars"})] {
        let id = server.start_request("tools/call", params);
        let result = server.wait(id);
        assert_eq!((result.text.as_str(), result.is_error), ("No variables defined", false));
    }
    for params in [json!({"name": "execute", "arguments": null}), json!({"name": "execute"})] {
        let id = server.start_request("tools/call", params);
        let result = server.wait(id);
        assert!(result.is_error && result.text.contains("code"), "names the missing argument: {}", result.text);
    }
}

// ---- order, floods, slow and closed readers ------------------------------------------------------------------------

#[test]
fn three_cells_sent_at_once_come_back_in_order_each_with_its_own_answer() {
    let mut server = Server::start();
    server.initialize();
    server.ok("import time\nlog = []");
    let cells: Vec<i64> = [("one", 0.4), ("two", 0.1), ("three", 0.0)]
        .iter()
        .map(|(name, sleep)| {
            server.start_exec(&format!("time.sleep({sleep}); log.append('{name}'); print('{name}'); log"))
        })
        .collect();
    let ping = server.start_request("ping", Value::Null);
    let order: Vec<Value> = (0..4).map(|_| server.recv(DEADLINE)).collect();
    assert_eq!(order[0]["id"], ping, "the ping waits for no cell");
    let texts = ["one\n['one']", "two\n['one', 'two']", "three\n['one', 'two', 'three']"];
    for (at, text) in texts.iter().enumerate() {
        assert_eq!(order[at + 1]["id"], cells[at], "{order:?}");
        assert_eq!(order[at + 1]["result"]["content"][0]["text"], *text);
    }
}

#[test]
fn cells_of_one_interpreter_do_not_hold_up_another() {
    let mut server = Server::start();
    server.initialize();
    let other = json!({"name": "other", "python_path": python()});
    assert!(!server.call("add_interpreter", other).is_error);
    let (cell, release) = server.start_waiting();
    let result = server.call("execute", json!({"code": "1 + 1", "interpreter": "other"}));
    assert_eq!(result.text, "2");
    fs::write(release, "").expect("release");
    assert_eq!(server.wait(cell).text, "'released'");
}

#[test]
fn a_stopped_reader_of_stdout_loses_nothing_and_stops_no_cell() {
    let mut server = Server::start();
    server.initialize();
    server.ok("1");
    server.hold_stdout();
    // 40 answers of 20 kB are far more than the pipe and the harness's one last read take.
    let cells: Vec<i64> =
        (0..40).map(|at| server.start_exec(&format!("print('{}'); {at}", "x".repeat(20_000)))).collect();
    let pings: Vec<i64> = (0..2000).map(|_| server.start_request("ping", Value::Null)).collect();
    let flag = server.flag();
    let last = server.start_exec(&format!("open({flag:?}, 'w').close(); 'last'"));
    server.expect_file(&flag);
    server.release_stdout();
    for (at, cell) in cells.iter().enumerate() {
        let text = server.wait(*cell).text;
        assert!(text.len() > 20_000 && text.ends_with(&format!("x\n{at}")), "cell {at}");
    }
    for ping in pings {
        assert_eq!(server.response(ping)["result"], json!({}));
    }
    assert_eq!(server.wait(last).text, "'last'");
    assert_eq!(server.pending(), [] as [Value; 0]);
}

#[test]
fn a_stopped_reader_does_not_stop_the_reading_of_stdin() {
    let mut server = Server::start();
    server.initialize();
    server.ok("1");
    server.hold_stdout();
    for at in 0..40 {
        server.start_exec(&format!("print('{}'); {at}", "x".repeat(20_000)));
    }
    let spinning = server.start_spinning();
    server.cancel(spinning);
    let flag = server.flag();
    let after = server.start_exec(&format!("open({flag:?}, 'w').close()"));
    server.expect_file(&flag);
    server.release_stdout();
    server.wait(after);
}

#[test]
fn past_64_mib_of_answers_that_nobody_takes_stdin_rests() {
    let mut child = Command::new(binary())
        .arg("server")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a server");
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let sent = Arc::new(AtomicUsize::new(0));
    let writer = std::thread::spawn({
        let (sent, id) = (sent.clone(), "x".repeat(8 << 20));
        move || {
            for _ in 0..24 {
                let ping = format!("{{\"jsonrpc\":\"2.0\",\"id\":\"{id}\",\"method\":\"ping\"}}\n");
                stdin.write_all(ping.as_bytes()).expect("stdin");
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    procs::eventually(DEADLINE, "64 MiB are answered", || sent.load(Ordering::Relaxed) >= 8);
    std::thread::sleep(SECOND); // the rest takes a quarter of that where it is read
    let read = sent.load(Ordering::Relaxed);
    let lines = BufReader::new(stdout).lines().map(|line| line.expect("an answer").len());
    assert_eq!(lines.filter(|length| *length > 8 << 20).count(), 24, "nothing is lost");
    assert!((8..=10).contains(&read), "{read}");
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_closed_stdout_ends_the_server_like_end_of_stdin() {
    for busy in [false, true] {
        let mut server = Server::start();
        server.initialize();
        let worker = server.worker_pid();
        if busy {
            server.start_spinning();
        }
        server.close_stdout();
        // The reader takes the answer to the first ping and closes; a later answer finds nobody.
        for _ in 0..2 {
            let _ = server.try_send_raw(b"{\"jsonrpc\":\"2.0\",\"id\":\"p\",\"method\":\"ping\"}\n");
            server.drain_for(Duration::from_millis(500));
        }
        assert_eq!(server.wait_exit(5 * SECOND).code(), Some(0), "busy: {busy}");
        procs::eventually(SECOND, "no worker", || !procs::is_alive(worker));
    }
}

#[test]
fn a_thousand_cells_may_wait_and_the_next_is_refused() {
    let mut server = Server::start();
    server.initialize();
    server.ok("done = 0");
    let (running, release) = server.start_waiting();
    let waiting: Vec<i64> = (0..1000).map(|_| server.start_exec("done += 1")).collect();
    server.expect_no_answer();
    let refused = server.start_exec("done += 1000");
    let response = server.response(refused);
    let error = response.get("error").is_some() || response["result"]["isError"] == true;
    assert!(
        error && response.to_string().replace("1,000", "1000").contains("1000 cells"),
        "names the limit: {response}"
    );
    fs::write(release, "").expect("release");
    server.wait(running);
    for id in waiting {
        assert!(!server.wait(id).is_error);
    }
    assert_eq!(server.ok("done"), "1000");
}

// ---- I1, I6: who may write where -----------------------------------------------------------------------------------

#[test]
fn only_messages_are_on_stdout_whoever_prints() {
    let mut server = Server::start();
    server.initialize();
    // The harness checks every line on its way in; the texts show that nothing was dropped either.
    for (code, text) in [
        ("import os, sys, subprocess, ctypes\nos.system('echo from a child')", "from a child\n0"),
        ("subprocess.call(['sh', '-c', 'echo out; echo err >&2'])", ""),
        ("os.write(1, b'raw bytes\\n'); None", "raw bytes"),
        ("ctypes.CDLL(None).printf(b'from C\\n'); None", "from C"),
        ("ctypes.CDLL(None).puts(b'and C again'); None", "and C again"),
        ("sys.__stdout__.write('{\"jsonrpc\": \"2.0\"}\\n'); None", "{\"jsonrpc\": \"2.0\"}"),
        ("print('\\n\\n'); os.write(1, b'\\x00'); None", ""),
        ("subprocess.call('echo one; sleep 0.05; echo two', shell=True)", "one\ntwo\n0"),
        ("with open('/dev/stdout', 'w') as f: f.write('by name\\n')", "by name"),
    ] {
        let result = server.ok(code);
        if !text.is_empty() {
            assert_eq!(result, text, "{code}");
        }
    }
    server.expect_no_answer();
}

#[test]
fn children_of_cells_reach_neither_the_protocol_nor_stdout() {
    let mut server = Server::start();
    server.initialize();
    let code = "import subprocess, sys\n\
                child = '''\nimport os\nfor fd in range(3, 256):\n\
                \x20   try: os.write(fd, b'{\"op\": \"done\"}\\\\n')\n    except OSError: pass\n'''\n\
                subprocess.call([sys.executable, '-c', child], close_fds=False)";
    assert_eq!(server.ok(code), "0");
    server.expect_no_answer();
    assert_eq!(server.ok("1 + 1"), "2");
    let code = "import os\nfor fd in (0, 1, 2):\n    try: os.write(fd, b'{\"op\": \"done\"}\\n')\n    \
                except OSError: pass";
    server.exec(code);
    assert_eq!(server.ok("2 + 2"), "4");
}

#[test]
fn what_clients_choke_on_is_never_sent() {
    let mut server = Server::start();
    server.initialize();
    // Lone surrogates, bytes that are not UTF-8, NULs, in every place where a text goes.
    for code in [
        "print('\\ud800 \\udcff')",
        "'\\ud800'",
        "import os; os.write(1, b'\\xff\\xfe\\x00\\xed\\xa0\\x80'); None",
        "os.write(2, b'\\xc3'); None",
        "raise ValueError('\\udfff')",
        "class R:\n    def __repr__(self): return '\\ud83d'\nR()",
        "globals()['\\udc80 name'] = 1",
        "raise SystemExit('\\ud800')",
        "\\ud800",
    ] {
        server.exec(code);
        server.expect_no_answer();
    }
    server.call("list_vars", json!({}));
    server.call("execute", json!({"code": "1", "interpreter": "\u{0}\u{7f}"}));
    server.expect_no_answer();
    assert_eq!(server.ok("1 + 1"), "2");
}
