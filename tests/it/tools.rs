//! The seven tools and their contracts: what tools/list says of each, which arguments it takes, what it answers, and
//! what wrong arguments get. Interpreters are added, saved, discovered, started and stopped here; calls that concern
//! one interpreter take effect in their order of arrival, and the file of saved interpreters is never lost or damaged.

use crate::client::{python, write_executable, Builder, Folder, RealHome, Server, ToolResult, DEADLINE};
use crate::procs;
use serde_json::{json, Value};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const TOOLS: [&str; 9] = [
    "execute",
    "wait",
    "interrupt",
    "reset",
    "list_vars",
    "get_session_info",
    "add_interpreter",
    "stop_interpreter",
    "list_interpreters",
];

/// A server whose builtin interpreter has no Python: for tests that do not use it, it costs nothing.
fn start(folder: &Folder) -> Server {
    start_with(folder, |builder| builder)
}

fn start_with(folder: &Folder, configure: impl FnOnce(Builder) -> Builder) -> Server {
    Server::with(|builder| {
        let builder = builder.folder(folder).env("CLAUDE_PROJECT_DIR", folder.project());
        configure(builder.env("MCP_PY_PYTHON", "/bin/false"))
    })
}

#[track_caller]
fn tools_of(server: &mut Server) -> Vec<Value> {
    let response = server.request("tools/list", Value::Null);
    response["result"]["tools"].as_array().expect("a list of tools").clone()
}

#[track_caller]
fn tool(server: &mut Server, name: &str) -> Value {
    let tools = tools_of(server);
    tools.into_iter().find(|tool| tool["name"] == name).expect("the tool")
}

/// The call succeeds; its text.
#[track_caller]
fn done(server: &mut Server, tool: &str, arguments: Value) -> String {
    let result = server.call(tool, arguments.clone());
    if result.is_error {
        server.fail(&format!("{tool} {arguments} failed: {}", result.text));
    }
    result.text
}

/// The call succeeds with a structured result.
#[track_caller]
fn structured(server: &mut Server, tool: &str, arguments: Value) -> Value {
    let result = server.call(tool, arguments.clone());
    if result.is_error || !result.structured.is_object() {
        server.fail(&format!("{tool} {arguments}: no structured result but {}", result.text));
    }
    result.structured
}

#[track_caller]
fn add(server: &mut Server, arguments: Value) -> Value {
    structured(server, "add_interpreter", arguments)
}

/// The result is an error, and its text has all these words; `a|b` means one of the two.
#[track_caller]
fn refused(server: &mut Server, tool: &str, arguments: Value, words: &[&str]) -> String {
    let result = server.call(tool, arguments.clone());
    expect_refusal(server, &result, &format!("{tool} {arguments}"), words);
    result.text
}

#[track_caller]
fn expect_refusal(server: &mut Server, result: &ToolResult, what: &str, words: &[&str]) {
    let missing: Vec<_> = words.iter().filter(|word| !word.split('|').any(|word| result.text.contains(word))).collect();
    if !result.is_error || !missing.is_empty() || !result.structured.is_null() {
        server.fail(&format!("{what}: an error with {words:?} was expected, not {:?}", result.text));
    }
}

/// Runs a cell in an interpreter; it must not fail.
#[track_caller]
fn run_in(server: &mut Server, interpreter: &str, code: &str) -> String {
    done(server, "execute", json!({"code": code, "interpreter": interpreter}))
}

#[track_caller]
fn listed(server: &mut Server) -> Vec<Value> {
    let list = structured(server, "list_interpreters", json!({}));
    list["result"].as_array().expect("a list").clone()
}

#[track_caller]
fn listed_as(server: &mut Server, name: &str) -> Option<Value> {
    listed(server).into_iter().find(|entry| entry["name"] == name)
}

#[track_caller]
fn names_listed(server: &mut Server) -> Vec<String> {
    listed(server).iter().map(|entry| entry["name"].as_str().expect("a name").to_string()).collect()
}

fn pid_of(entry: &Value) -> i32 {
    entry["pid"].as_i64().expect("a pid") as i32
}

/// Of all that was started with the server's environment only the server is left.
#[track_caller]
fn expect_nothing_but_the_server(server: &mut Server) {
    let own = server.pid();
    procs::eventually(DEADLINE, "nothing runs but the server", || server.processes() == [own]);
}

fn saved_dir(folder: &Folder) -> PathBuf {
    folder.home().join(".claude-workspace/python_interpreter")
}

fn saved_file(folder: &Folder) -> PathBuf {
    saved_dir(folder).join("interpreters.json")
}

fn write_saved(folder: &Folder, text: impl AsRef<[u8]>) {
    fs::create_dir_all(saved_dir(folder)).expect("the folder for saved interpreters");
    fs::write(saved_file(folder), text).expect("interpreters.json");
}

fn saved(folder: &Folder) -> Value {
    let text = fs::read(saved_file(folder)).expect("interpreters.json");
    serde_json::from_slice(&text).expect("JSON in interpreters.json")
}

fn is_saved(folder: &Folder, name: &str) -> bool {
    saved_file(folder).exists() && saved(folder)["interpreters"].get(name).is_some()
}

/// A second Python that is another path than `python()`.
fn other_python(folder: &Folder) -> String {
    folder.script("other-python", &format!("#!/bin/sh\nexec {} \"$@\"\n", python())).to_str().unwrap().into()
}

/// A Python that says that it was started, and hangs, with a child that hangs too.
fn hanging_python(folder: &Folder) -> (String, PathBuf) {
    let mark = folder.path().join("hanging-python-runs");
    let text = format!("#!/bin/sh\nsleep 600 &\n: > '{}'\nsleep 600\n", mark.display());
    (folder.script("hanging-python", &text).to_str().unwrap().into(), mark)
}

/// Seconds since 1970 of `2026-01-02T15:04:05Z`; None for any other form.
fn seconds_of(time: &str) -> Option<i64> {
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if shape != "0000-00-00T00:00:00Z" {
        return None;
    }
    let number = |from: usize, to: usize| time[from..to].parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let days = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum::<i64>()
        + lengths.iter().take(month as usize - 1).sum::<i64>()
        + day
        - 1;
    Some(days * 86_400 + number(11, 13)? * 3_600 + number(14, 16)? * 60 + number(17, 19)?)
}

/// The text is a time in UTC, not long ago.
fn is_recent(time: &Value) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    time.as_str().and_then(seconds_of).is_some_and(|seconds| (now - 300..=now + 1).contains(&seconds))
}

/// `1.5 min`: a number with one decimal and s, min, h or d.
fn is_uptime(text: &Value) -> bool {
    let Some((number, unit)) = text.as_str().and_then(|text| text.split_once(' ')) else { return false };
    let Some((whole, part)) = number.split_once('.') else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole) && digits(part) && part.len() == 1 && ["s", "min", "h", "d"].contains(&unit)
}

/// Where a value does not fit a schema. Knows the keywords that our schemas use, and refuses others.
fn misfit(schema: &Value, value: &Value, at: &str) -> Option<String> {
    for (keyword, rule) in schema.as_object().expect("a schema is an object") {
        let fits = match keyword.as_str() {
            "description" => rule.is_string(),
            "type" => {
                let is = |kind: &Value| match kind.as_str().expect("a type") {
                    "null" => value.is_null(),
                    "boolean" => value.is_boolean(),
                    "string" => value.is_string(),
                    "number" => value.is_number(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    other => panic!("there is no type {other}"),
                };
                rule.as_array().map_or_else(|| is(rule), |kinds| kinds.iter().any(is))
            }
            "required" => rule.as_array().unwrap().iter().all(|name| value.get(name.as_str().unwrap()).is_some()),
            "properties" => {
                for (name, schema) in rule.as_object().unwrap() {
                    if let Some(wrong) =
                        value.get(name).and_then(|value| misfit(schema, value, &format!("{at}.{name}")))
                    {
                        return Some(wrong);
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = |name: &String| schema["properties"].get(name).is_some();
                for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| !known(name)) {
                    if rule == false || misfit(rule, value, "").is_some() {
                        return Some(format!("{at}.{name} is not allowed"));
                    }
                }
                true
            }
            "items" => {
                let all = value.as_array().into_iter().flatten().enumerate();
                let mut wrong = all.filter_map(|(index, value)| misfit(rule, value, &format!("{at}[{index}]")));
                return wrong.next();
            }
            "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
            other => panic!("this check does not know the keyword {other}"),
        };
        if !fits {
            return Some(format!("{at} is {value}, against {keyword}: {rule}"));
        }
    }
    None
}

// ---- what tools/list says ------------------------------------------------------------------------------------------

#[test]
fn the_schema_check_refuses_what_does_not_fit() {
    let schema = json!({
        "type": "object",
        "properties": {"a": {"type": ["string", "null"]}, "n": {"type": "number", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": false,
    });
    for good in [json!({"a": "x"}), json!({"a": null, "n": 0.5})] {
        assert_eq!(misfit(&schema, &good, "it"), None);
    }
    for bad in [
        json!([]),
        json!({}),
        json!({"a": 1}),
        json!({"a": "", "b": 1}),
        json!({"a": "", "n": -1}),
        json!({"a": "", "n": 10}),
    ] {
        assert!(misfit(&schema, &bad, "it").is_some(), "{bad} was accepted");
    }
    let list = json!({"type": "array", "items": {"type": "integer"}});
    assert_eq!(misfit(&list, &json!([1, 2]), "it"), None);
    assert!(misfit(&list, &json!([1, 2.5]), "it").is_some());
}

#[test]
fn nine_tools_are_listed_with_the_originals_titles_and_annotations() {
    let mut server = start(&Folder::new());
    let tools = tools_of(&mut server);
    // name, title, readOnlyHint, destructiveHint, idempotentHint
    let expected = [
        ("execute", "Execute Python Code", false, true, false),
        ("wait", "Wait For Python", true, false, true),
        ("interrupt", "Interrupt Python", false, true, false),
        ("reset", "Reset Python Scope", false, true, true),
        ("list_vars", "List Python Variables", true, false, true),
        ("get_session_info", "Get Session Info", true, false, true),
        ("add_interpreter", "Add External Interpreter", false, false, false),
        ("stop_interpreter", "Stop Interpreter", false, true, false),
        ("list_interpreters", "List Interpreters", true, false, true),
    ];
    assert_eq!(tools.len(), expected.len());
    for (tool, (name, title, read_only, destructive, idempotent)) in tools.iter().zip(expected) {
        assert_eq!(tool["name"], name);
        assert_eq!(tool["title"], title, "{name}");
        let hints = &tool["annotations"];
        assert_eq!(hints["title"], title, "{name}");
        assert_eq!(hints["readOnlyHint"], read_only, "{name}");
        assert_eq!(hints["destructiveHint"], destructive, "{name}");
        assert_eq!(hints["idempotentHint"], idempotent, "{name}");
        assert_eq!(hints["openWorldHint"], name == "execute", "{name}"); // arbitrary code
    }
}

#[test]
fn every_argument_is_typed_and_described_and_no_other_is_taken() {
    let mut server = start(&Folder::new());
    let text = || ("string", false);
    let number = || ("number", false);
    let expected = [
        (vec![
            ("code", ("string", true)),
            ("interpreter", text()),
            ("timeout", number()),
            ("wait", number()),
            ("stdin", text()),
        ]),
        (vec![("interpreter", text()), ("seconds", number())]),
        (vec![("interpreter", text())]),
        (vec![("interpreter", text()), ("restart", ("boolean", false))]),
        (vec![("interpreter", text()), ("details", ("boolean", false))]),
        (vec![]),
        (vec![
            ("name", ("string", true)),
            ("python_path", ("string", true)),
            ("cwd", text()),
            ("env", ("object", false)),
            ("startup_script", text()),
            ("description", text()),
            ("save", ("boolean", false)),
        ]),
        (vec![("name", ("string", true)), ("remove", ("boolean", false))]),
        (vec![]),
    ];
    for (tool, arguments) in tools_of(&mut server).iter().zip(expected) {
        let schema = &tool["inputSchema"];
        let name = &tool["name"];
        assert_eq!(schema["type"], "object", "{name}");
        assert_eq!(schema["additionalProperties"], false, "{name}");
        let properties = schema["properties"].as_object().expect("properties");
        let mut names: Vec<_> = arguments.iter().map(|(argument, _)| *argument).collect();
        names.sort();
        assert_eq!(properties.keys().collect::<Vec<_>>(), names, "{name}");
        for (argument, (kind, required)) in arguments {
            assert_eq!(properties[argument]["type"], kind, "{name} {argument}");
            let described = properties[argument]["description"].as_str().unwrap_or_default();
            assert!(described.len() > 8, "{name} {argument}: {described:?}");
            let is_required = schema["required"].as_array().unwrap().contains(&json!(argument));
            assert_eq!(is_required, required, "{name} {argument}");
        }
    }
    let env = &tool(&mut server, "add_interpreter")["inputSchema"]["properties"]["env"];
    assert_eq!(env["additionalProperties"], json!({"type": "string"}));
}

#[test]
fn descriptions_and_instructions_fit_what_hosts_show() {
    let mut server = start(&Folder::new());
    let instructions = server.initialize()["instructions"].as_str().unwrap_or_default().to_string();
    assert!((100..2_000).contains(&instructions.chars().count()), "{instructions}");
    for tool in tools_of(&mut server) {
        let description = tool["description"].as_str().unwrap_or_default();
        assert!((20..2_000).contains(&description.chars().count()), "{}: {description}", tool["name"]);
    }
}

#[test]
fn the_description_of_execute_says_what_a_model_has_to_know() {
    let mut server = start(&Folder::new());
    let description = tool(&mut server, "execute")["description"].as_str().unwrap().to_string();
    for words in ["persistent", "last expression", "25,000", "head and tail", "file", "`wait` shows the rest"] {
        assert!(description.contains(words), "{words} is missing in {description}");
    }
    // Hosts that search for tools go by the first words.
    assert!(description.starts_with("Run Python in a persistent interpreter"), "{description}");
}

/// Claude Code shows a model the names of tools alone, until it searches for one.
#[test]
fn claude_code_always_loads_execute_and_finds_the_others_by_a_phrase() {
    let mut server = start(&Folder::new());
    for tool in tools_of(&mut server) {
        let meta = &tool["_meta"];
        let phrase = meta["anthropic/searchHint"].as_str().unwrap_or_default();
        if tool["name"] == "execute" {
            assert_eq!(meta["anthropic/alwaysLoad"], true, "{tool}");
        } else {
            assert!(meta.get("anthropic/alwaysLoad").is_none(), "{tool}");
            assert!((10..60).contains(&phrase.len()) && phrase.contains("Python"), "{tool}");
        }
    }
}

#[test]
fn the_instructions_tell_of_the_client_where_claude_code_started_the_server() {
    for (variable, is_told) in [("CLAUDECODE", true), ("UNUSED", false)] {
        let mut server = start_with(&Folder::new(), |builder| builder.env(variable, "1"));
        let discovered = server.modern("server/discover", Value::Null)["result"]["instructions"].clone();
        let instructions = server.initialize()["instructions"].clone();
        assert_eq!(discovered, instructions);
        let text = instructions.as_str().unwrap();
        assert_eq!(text.contains("`mcp-py-client` runs code in the same Python"), is_told, "{text}");
        assert!(text.chars().count() < 2_000, "{text}");
    }
}

#[test]
fn only_execute_tells_claude_code_that_its_results_may_be_long() {
    let mut server = start(&Folder::new());
    for tool in tools_of(&mut server) {
        let hint = &tool["_meta"]["anthropic/maxResultSizeChars"];
        if tool["name"] == "execute" {
            // 25,000 characters, a traceback and a note of 10,000 each; Claude Code takes 500,000 at most
            assert!((45_000..=500_000).contains(&hint.as_u64().unwrap_or(0)), "{hint}");
        } else {
            assert!(hint.is_null(), "{tool}");
        }
    }
}

#[test]
fn the_list_of_tools_never_varies_while_the_server_runs() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let first = tools_of(&mut server);
    server.initialize();
    assert_eq!(tools_of(&mut server), first, "after initialize");
    add(&mut server, json!({"name": "x", "python_path": python(), "save": true}));
    run_in(&mut server, "x", "x = 1");
    refused(&mut server, "execute", json!({}), &[]);
    structured(&mut server, "get_session_info", json!({}));
    assert_eq!(tools_of(&mut server), first, "after some work");
    let modern = server.modern("tools/list", Value::Null);
    assert_eq!(modern["result"]["tools"], json!(first), "in the modern era");
    drop(server);
    let mut second = start_with(&folder, |builder| builder.under("claude"));
    structured(&mut second, "get_session_info", json!({}));
    let names: Vec<_> = tools_of(&mut second).iter().map(|tool| tool["name"].clone()).collect();
    assert_eq!(names, TOOLS, "under claude");
}

#[test]
fn structured_results_satisfy_their_schemas_and_are_repeated_as_text() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let session = [
        "session_id",
        "project_dir",
        "socket_path",
        "transcript_path",
        "output_dir",
        "claude_pid",
        "started_at",
        "uptime",
        "host",
        "host_pid",
        "server_pid",
        "version",
        "verified",
        "history_path",
    ];
    let interpreter = [
        "name",
        "source",
        "state",
        "python_path",
        "cwd",
        "has_startup_script",
        "description",
        "pid",
        "started_at",
        "uptime",
        "python_version",
        "busy",
    ];
    let adding = json!({"name": "x", "python_path": python(), "save": true, "description": "of the schemas"});
    let stopped = json!({"name": "y", "python_path": python(), "save": true});
    for (name, arguments, members) in [
        ("get_session_info", json!({}), &session[..]),
        ("add_interpreter", stopped, &interpreter),
        ("stop_interpreter", json!({"name": "y"}), &[]),
        ("list_interpreters", json!({}), &["result"]),
        ("add_interpreter", adding.clone(), &interpreter),
        ("add_interpreter", adding, &interpreter), // it runs already
        ("list_interpreters", json!({}), &["result"]),
    ] {
        let tool = tool(&mut server, name);
        let result = server.call(name, arguments);
        assert!(!result.is_error, "{name}: {}", result.text);
        if members.is_empty() {
            assert!(result.structured.is_null(), "{name}: {}", result.raw);
            continue;
        }
        let schema = &tool["outputSchema"];
        assert_eq!(schema["type"], "object", "{name}");
        assert_eq!(misfit(schema, &result.structured, name), None);
        let mut required: Vec<_> = schema["required"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        required.sort();
        let mut members = members.to_vec();
        members.sort();
        assert_eq!(required, members, "{name}");
        let text: Value = serde_json::from_str(&result.text).expect("the text is JSON");
        assert_eq!(text, result.structured, "{name}");
        assert_eq!(result.raw["content"].as_array().unwrap().len(), 1, "{name}");
    }
    let entry = tool(&mut server, "list_interpreters")["outputSchema"]["properties"]["result"]["items"].clone();
    let mut required: Vec<_> = entry["required"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    required.sort();
    let mut members = interpreter.to_vec();
    members.sort();
    assert_eq!(required, members);
}

#[test]
fn tools_without_structure_promise_none() {
    let mut server = start(&Folder::new());
    for tool in tools_of(&mut server) {
        let structured = ["get_session_info", "add_interpreter", "list_interpreters"];
        let expected = structured.contains(&tool["name"].as_str().unwrap());
        assert_eq!(tool.get("outputSchema").is_some(), expected, "{}", tool["name"]);
    }
    add(&mut server, json!({"name": "x", "python_path": python()}));
    for (tool, arguments) in [
        ("execute", json!({"code": "1", "interpreter": "x"})),
        ("list_vars", json!({"interpreter": "x"})),
        ("reset", json!({"interpreter": "x"})),
        ("stop_interpreter", json!({"name": "x"})),
    ] {
        let result = server.call(tool, arguments);
        assert!(!result.is_error && result.structured.is_null(), "{tool}: {}", result.raw);
    }
}

// ---- arguments -----------------------------------------------------------------------------------------------------

#[test]
fn wrong_arguments_are_named_with_what_was_expected_and_what_came() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let added = |name: &str, value: Value| json!({"name": "a", "python_path": "p", name: value});
    for (tool, arguments, words) in [
        ("execute", json!({}), vec!["\"code\"", "a string", "needs"]),
        ("execute", json!({"code": null}), vec!["\"code\"", "a string", "needs"]),
        ("execute", json!({"code": 5}), vec!["\"code\"", "a string", "5"]),
        ("execute", json!({"code": ["1"]}), vec!["\"code\"", "a string", "[\"1\"]"]),
        ("execute", json!({"code": "1", "interpreter": 7}), vec!["\"interpreter\"", "a string", "7"]),
        ("execute", json!({"code": "1", "timeout": "5"}), vec!["\"timeout\"", "a number", "\"5\""]),
        ("execute", json!({"code": "1", "timeout": true}), vec!["\"timeout\"", "a number", "true"]),
        ("execute", json!({"code": "1", "timeout": -1}), vec!["\"timeout\"", "0 to", "-1"]),
        ("execute", json!({"code": "1", "timeout": 1e300}), vec!["\"timeout\"", "0 to", "e+300|e300"]),
        (
            "execute",
            json!({"code": "1", "cwd": "/"}),
            vec!["unknown", "\"cwd\"", "code, interpreter, stdin, timeout, wait"],
        ),
        ("reset", json!({"interpreter": {}}), vec!["\"interpreter\"", "a string", "{}"]),
        ("list_vars", json!({"all": true}), vec!["unknown", "\"all\"", "interpreter"]),
        ("get_session_info", json!({"all": true}), vec!["unknown", "\"all\""]),
        ("list_interpreters", json!({"all": true}), vec!["unknown", "\"all\""]),
        ("add_interpreter", json!({"name": "a"}), vec!["\"python_path\"", "a string", "needs"]),
        ("add_interpreter", json!({"python_path": "p"}), vec!["\"name\"", "a string", "needs"]),
        ("add_interpreter", added("save", json!("yes")), vec!["\"save\"", "true or false", "\"yes\""]),
        ("add_interpreter", added("cwd", json!(1)), vec!["\"cwd\"", "a string", "1"]),
        ("add_interpreter", added("env", json!(["A=1"])), vec!["\"env\"", "an object", "strings"]),
        ("add_interpreter", added("env", json!({"A": 1})), vec!["\"env\"", "an object", "strings"]),
        ("add_interpreter", added("env", json!({"A=B": "1"})), vec!["\"env\""]),
        ("add_interpreter", added("env", json!({"": "1"})), vec!["\"env\""]),
        ("add_interpreter", added("env", json!({"A": "x\0y"})), vec!["\"env\""]),
        ("add_interpreter", added("python", json!("p")), vec!["unknown", "\"python\"", "python_path"]),
        ("stop_interpreter", json!({}), vec!["\"name\"", "a string", "needs"]),
        ("stop_interpreter", json!({"name": "a", "remove": "yes"}), vec!["\"remove\"", "true or false", "\"yes\""]),
    ] {
        let mut words = words;
        words.push(tool);
        refused(&mut server, tool, arguments, &words);
    }
    assert!(!saved_file(&folder).exists());
}

#[test]
fn a_wrong_value_that_is_long_is_shown_by_its_ends() {
    let mut server = start(&Folder::new());
    let long = format!("first{}last", "x".repeat(100_000));
    let text = refused(&mut server, "execute", json!({"code": "1", "timeout": long}), &["first", "last", "left out"]);
    assert!(text.len() < 1_000, "{} bytes", text.len());
}

#[test]
fn a_null_stands_for_an_optional_argument_left_out() {
    let mut server = Server::start();
    let result = server.call("execute", json!({"code": "1 + 1", "interpreter": null, "timeout": null}));
    assert_eq!((result.text.as_str(), result.is_error), ("2", false));
    assert_eq!(done(&mut server, "list_vars", json!({"interpreter": null})), "No variables defined");
    let nulls = json!({
        "name": "x", "python_path": python(),
        "cwd": null, "env": null, "startup_script": null, "description": null, "save": null,
    });
    let info = add(&mut server, nulls);
    assert_eq!(info["source"], "transient");
    assert_eq!(info["has_startup_script"], false);
    assert_eq!(info["description"], Value::Null);
    done(&mut server, "stop_interpreter", json!({"name": "x", "remove": null}));
    for params in [
        json!({"name": "list_interpreters", "arguments": null}),
        json!({"name": "list_interpreters"}),
        json!({"name": "list_interpreters", "arguments": {}}),
    ] {
        let response = server.request("tools/call", params);
        assert_eq!(response["result"]["isError"], false, "{response}");
    }
}

#[test]
fn an_unknown_tool_is_an_error_of_the_protocol() {
    let mut server = start(&Folder::new());
    for params in [
        json!({"name": "exec", "arguments": {"code": "1"}}),
        json!({"name": "", "arguments": {}}),
        json!({"arguments": {}}),
        json!({"name": 1, "arguments": {}}),
        json!({"name": "list_vars", "arguments": []}),
        json!({"name": "list_vars", "arguments": "x"}),
    ] {
        let response = server.request("tools/call", params.clone());
        assert_eq!(response["error"]["code"], -32602, "{params}: {response}");
    }
    let response = server.request("tools/call", json!({"name": "exec"}));
    assert!(response["error"]["message"].as_str().unwrap().contains("exec"), "{response}");
}

#[test]
fn the_environment_is_never_shown_anywhere() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let secret = "hunter2-never-shown";
    let adding = json!({"name": "x", "python_path": python(), "env": {"TOKEN": secret}, "save": true});
    let calls = [
        ("add_interpreter", adding.clone()),
        ("list_interpreters", json!({})),
        ("add_interpreter", adding),
        ("stop_interpreter", json!({"name": "x"})),
        ("list_interpreters", json!({})),
        ("get_session_info", json!({})),
        // refused, each for another reason
        ("add_interpreter", json!({"name": "x", "python_path": "/nowhere", "env": {"TOKEN": secret}})),
        ("add_interpreter", json!({"name": "y", "python_path": "/bin/true", "env": {"TOKEN": secret}})),
        ("add_interpreter", json!({"name": "y", "python_path": python(), "env": {"TOKEN": secret, "N": 5}})),
        ("add_interpreter", json!({"name": "y", "python_path": python(), "env": [format!("TOKEN={secret}")]})),
        ("add_interpreter", json!({"name": "y", "python_path": python(), "env": format!("TOKEN={secret}")})),
    ];
    for (tool, arguments) in calls {
        let result = server.call(tool, arguments);
        assert!(!result.raw.to_string().contains(secret), "{tool} shows it: {}", result.text);
    }
    assert!(!server.stderr().contains(secret), "stderr shows it");
}

// ---- execute, reset, list_vars -------------------------------------------------------------------------------------

#[test]
fn reset_counts_what_list_vars_shows() {
    let mut server = Server::start();
    assert_eq!(done(&mut server, "list_vars", json!({})), "No variables defined");
    assert_eq!(done(&mut server, "reset", json!({})), "Scope cleared (0 items removed)");
    server.ok("zebra = 1; _low = 2; __hidden = 3\ndef apple(): pass\nimport math");
    assert_eq!(done(&mut server, "list_vars", json!({})), "_low, apple, math, zebra");
    let pid = server.worker_pid();
    assert_eq!(done(&mut server, "reset", json!({})), "Scope cleared (4 items removed)");
    assert_eq!(done(&mut server, "list_vars", json!({})), "No variables defined");
    assert_eq!(server.worker_pid(), pid, "its process goes on");
    assert_eq!(server.ok("'__hidden' in globals(), __name__"), "(False, '__main__')");
    server.ok("x: int = 1");
    assert_eq!(done(&mut server, "reset", json!({})), "Scope cleared (1 items removed)");
    assert_eq!(server.ok("import sys; y: str = ''\nsys.modules['__main__'].__annotations__"), "{'y': <class 'str'>}");
}

#[test]
fn reset_and_list_vars_mean_the_interpreter_that_is_named() {
    let mut server = Server::start();
    add(&mut server, json!({"name": "x", "python_path": python()}));
    server.ok("here = 1");
    run_in(&mut server, "x", "there = 2");
    assert_eq!(done(&mut server, "list_vars", json!({"interpreter": "x"})), "there");
    assert_eq!(done(&mut server, "list_vars", json!({"interpreter": "builtin"})), "here");
    assert_eq!(done(&mut server, "reset", json!({"interpreter": "x"})), "Scope cleared (1 items removed)");
    assert_eq!(done(&mut server, "list_vars", json!({"interpreter": "x"})), "No variables defined");
    assert_eq!(done(&mut server, "list_vars", json!({})), "here");
}

#[test]
fn list_vars_and_reset_wait_behind_the_running_cell() {
    let mut server = Server::start();
    let (cell, release) = server.start_waiting();
    let list = server.start_call("list_vars", json!({}));
    let reset = server.start_call("reset", json!({}));
    let after = server.start_exec("'still here'");
    server.expect_no_answer();
    File::create(&release).unwrap();
    let order: Vec<_> = (0..4).map(|_| server.recv(DEADLINE)).collect();
    let ids: Vec<_> = order.iter().map(|answer| answer["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, [cell, list, reset, after]);
    assert_eq!(order[1]["result"]["content"][0]["text"], "os, time");
    assert_eq!(order[2]["result"]["content"][0]["text"], "Scope cleared (2 items removed)");
}

#[test]
fn an_interpreter_that_nobody_knows_is_an_error_that_lists_the_known_ones() {
    let folder = Folder::new();
    let mut server = start(&folder);
    write_saved(&folder, json!({"interpreters": {"of-a-file": {"python_path": "/nowhere/python"}}}).to_string());
    fs::create_dir_all(folder.project().join(".venv/bin")).unwrap();
    fs::write(folder.project().join(".venv/bin/python"), "").unwrap();
    add(&mut server, json!({"name": "of-this-run", "python_path": python()}));
    let known = ["nobody", "of-a-file", "of-this-run", ".venv", "builtin"];
    for (tool, arguments) in [
        ("execute", json!({"code": "1", "interpreter": "nobody"})),
        ("execute", json!({"code": "1", "interpreter": ""})),
        ("reset", json!({"interpreter": "nobody"})),
        ("list_vars", json!({"interpreter": "nobody"})),
        ("stop_interpreter", json!({"name": "nobody"})),
        ("stop_interpreter", json!({"name": "nobody", "remove": true})),
    ] {
        let words = if arguments["interpreter"] == "" { &known[1..] } else { &known };
        refused(&mut server, tool, arguments, words);
    }
    assert_eq!(names_listed(&mut server), ["builtin", ".venv", "of-a-file", "of-this-run"]);
}

#[test]
fn interpreters_run_side_by_side_while_a_ping_is_answered() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let meeting = folder.path().join("meeting");
    fs::create_dir(&meeting).unwrap();
    let names = ["a", "b", "c", "d"];
    for name in names {
        add(&mut server, json!({"name": name, "python_path": python()}));
    }
    // Each waits until it has seen all four: one after the other they would wait for ever.
    let code = |name: &str| {
        format!(
            "import os, time\nopen(os.path.join({meeting:?}, {name:?}), 'w').close()\n\
             while len(os.listdir({meeting:?})) < 4: time.sleep(0.005)\ntime.sleep(0.5)\n{name:?}"
        )
    };
    let began = Instant::now();
    let ids = names.map(|name| server.start_call("execute", json!({"code": code(name), "interpreter": name})));
    server.expect_no_answer(); // but that of the ping
    for (name, id) in names.iter().zip(ids) {
        assert_eq!(server.wait(id).text, format!("'{name}'"));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

// ---- add_interpreter -----------------------------------------------------------------------------------------------

#[test]
fn an_added_interpreter_runs_beside_the_builtin_one() {
    let mut server = Server::start();
    let info = add(&mut server, json!({"name": "x", "python_path": python(), "description": "beside"}));
    assert_eq!(info["name"], "x");
    assert_eq!(info["source"], "transient");
    assert_eq!(info["state"], "running");
    assert_eq!(info["python_path"], python());
    assert_eq!(info["has_startup_script"], false);
    assert_eq!(info["description"], "beside");
    assert!(is_recent(&info["started_at"]) && is_uptime(&info["uptime"]), "{info}");
    let pid = pid_of(&info);
    assert!(procs::is_alive(pid));
    assert_eq!(run_in(&mut server, "x", "import os; os.getpid()"), pid.to_string());
    let version = run_in(&mut server, "x", "import sys; print('%d.%d.%d' % sys.version_info[:3])");
    assert_eq!(info["python_version"], version.as_str());
    assert_eq!(info["cwd"], run_in(&mut server, "x", "print(os.getcwd())").as_str());
    server.ok("mine = 1");
    run_in(&mut server, "x", "theirs = 1");
    assert_eq!(server.ok("'theirs' in globals()"), "False");
    assert_eq!(run_in(&mut server, "x", "'mine' in globals()"), "False");
}

#[test]
fn environment_directory_and_startup_script_hold_for_the_interpreter() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let cwd = folder.path().join("working here");
    fs::create_dir(&cwd).unwrap();
    let info = add(
        &mut server,
        json!({
            "name": "x", "python_path": python(), "cwd": cwd, "env": {"COLOUR": "blue = green", "EMPTY": ""},
            "startup_script": "import os\ndef twice(n):\n    return 2 * n\nprint('started in', os.getcwd())",
        }),
    );
    assert_eq!(info["cwd"], json!(cwd));
    assert_eq!(info["has_startup_script"], true);
    let first = run_in(&mut server, "x", "os.environ['COLOUR'], os.environ['EMPTY'], os.getcwd(), twice(21)");
    let values = format!("('blue = green', '', '{}', 42)", cwd.display());
    assert!(first.ends_with(&values), "{first}");
    // What the script printed came before the first cell, and is said to.
    assert!(first.starts_with("[mcp-py: output from between") && first.contains("started in"), "{first}");
    assert_eq!(run_in(&mut server, "x", "twice(4)"), "8");
    let result = server.call("execute", json!({"code": "1/0", "interpreter": "x"}));
    assert!(result.text.contains("<cell 3>"), "the script is no numbered cell: {}", result.text);
}

#[test]
fn paths_may_be_relative_to_the_project_and_start_with_a_tilde() {
    let folder = Folder::new();
    for place in [folder.project().join("env/bin"), folder.home().join("env/bin")] {
        fs::create_dir_all(&place).unwrap();
        symlink(python(), place.join("python")).unwrap();
    }
    fs::create_dir(folder.project().join("sub")).unwrap();
    fs::create_dir(folder.home().join("sub")).unwrap();
    // The server itself works elsewhere.
    let mut server = start_with(&folder, |builder| builder.cwd(folder.tmp()));
    for (name, path, cwd, base) in [
        ("r", "env/bin/python", "sub", folder.project()),
        ("d", "./env/bin/python", "./sub", folder.project()),
        ("h", "~/env/bin/python", "~/sub", folder.home()),
    ] {
        let info = add(&mut server, json!({"name": name, "python_path": path, "cwd": cwd}));
        let shown = PathBuf::from(info["python_path"].as_str().unwrap());
        assert!(shown.is_absolute(), "{info}");
        assert_eq!(fs::canonicalize(shown).unwrap(), fs::canonicalize(base.join("env/bin/python")).unwrap());
        let cwd = run_in(&mut server, name, "import os; print(os.getcwd())");
        assert_eq!(cwd, base.join("sub").to_str().unwrap());
    }
    let info = add(&mut server, json!({"name": "home", "python_path": python(), "cwd": "~"}));
    assert_eq!(Path::new(info["cwd"].as_str().unwrap()), folder.home());
    assert!(!folder.project().join("~").exists());
}

#[test]
fn a_bare_name_is_looked_for_on_path() {
    let folder = Folder::new();
    let path = other_python(&folder);
    let mut server = start_with(&folder, |builder| builder.env("PATH", folder.bin()));
    let info = add(&mut server, json!({"name": "x", "python_path": "other-python"}));
    assert_eq!(info["python_path"], path.as_str());
    refused(&mut server, "add_interpreter", json!({"name": "y", "python_path": "no-such-python"}), &["no-such-python"]);
}

#[test]
fn adding_a_running_one_again_with_the_same_path_is_fine_and_says_so() {
    let mut server = start(&Folder::new());
    let adding = json!({"name": "x", "python_path": python()});
    let first = add(&mut server, adding.clone());
    run_in(&mut server, "x", "kept = 1");
    let result = server.call("add_interpreter", adding);
    assert!(!result.is_error && result.text.contains("already"), "{}", result.text);
    assert_eq!(result.structured["pid"], first["pid"]);
    assert_eq!(run_in(&mut server, "x", "kept"), "1");
}

/// Occupies an interpreter until the returned file exists; returns when its cell runs.
#[track_caller]
fn start_waiting_in(server: &mut Server, interpreter: &str) -> (i64, PathBuf) {
    let (flag, release) = (server.flag(), server.flag());
    let code = format!(
        "import os, time\nopen({flag:?}, 'w').close()\nwhile not os.path.exists({release:?}): time.sleep(0.01)\n'released'"
    );
    let id = server.start_call("execute", json!({"code": code, "interpreter": interpreter}));
    server.expect_file(&flag);
    (id, release)
}

#[test]
fn adding_a_busy_one_again_does_not_wait_for_its_cell() {
    let mut server = start(&Folder::new());
    let adding = json!({"name": "x", "python_path": python()});
    add(&mut server, adding.clone());
    let (cell, release) = start_waiting_in(&mut server, "x");
    let again = server.start_call("add_interpreter", adding);
    let result = server.wait_within(again, Duration::from_secs(10));
    assert!(!result.is_error && result.text.contains("already"), "{}", result.text);
    File::create(&release).unwrap();
    assert_eq!(server.wait(cell).text, "'released'");
}

#[test]
fn cancelling_a_second_add_leaves_the_running_one_alone() {
    let mut server = start(&Folder::new());
    let adding = json!({"name": "x", "python_path": python()});
    add(&mut server, adding.clone());
    run_in(&mut server, "x", "kept = 1");
    for _ in 0..5 {
        let (cell, release) = start_waiting_in(&mut server, "x");
        let again = server.start_call("add_interpreter", adding.clone());
        server.cancel(again);
        File::create(&release).unwrap();
        assert_eq!(server.wait(cell).text, "'released'");
        assert_eq!(run_in(&mut server, "x", "kept"), "1");
    }
}

#[test]
fn a_full_queue_refuses_a_second_add_and_leaves_the_running_one_alone() {
    let mut server = start(&Folder::new());
    let adding = json!({"name": "x", "python_path": python()});
    add(&mut server, adding.clone());
    run_in(&mut server, "x", "kept = 1");
    let (cell, release) = start_waiting_in(&mut server, "x");
    let waiting: Vec<_> =
        (0..1_000).map(|_| server.start_call("execute", json!({"code": "pass", "interpreter": "x"}))).collect();
    server.call("add_interpreter", adding); // it may be refused or not
    File::create(&release).unwrap();
    assert_eq!(server.wait(cell).text, "'released'");
    for id in waiting {
        let result = server.wait(id);
        assert!(!result.is_error, "{}", result.text);
    }
    assert_eq!(run_in(&mut server, "x", "kept"), "1");
}

#[test]
fn cancelling_one_of_two_adds_leaves_the_other_alone() {
    let mut server = start(&Folder::new());
    let flag = server.flag();
    let script = format!("import time; open({flag:?}, 'w').close(); time.sleep(0.5)");
    let adding = json!({"name": "x", "python_path": python(), "startup_script": script});
    let first = server.start_call("add_interpreter", adding.clone());
    server.expect_file(&flag);
    let second = server.start_call("add_interpreter", adding);
    server.expect_no_answer(); // but that of the ping: the second has been taken
    server.cancel(second);
    let result = server.wait(first);
    assert!(!result.is_error, "{}", result.text);
    assert_eq!(run_in(&mut server, "x", "1 + 1"), "2");
}

/// Once the start was cancelled with the first call, even though other calls waited for it.
#[test]
fn cancelling_the_first_of_those_that_wait_for_a_start_leaves_it_to_the_others() {
    let mut server = start(&Folder::new());
    let (flag, release) = (server.flag(), server.flag());
    let script = format!(
        "import os, time\nopen({flag:?}, 'w').close()\nwhile not os.path.exists({release:?}): time.sleep(0.01)"
    );
    let adding = json!({"name": "x", "python_path": python(), "startup_script": script});
    let first = server.start_call("add_interpreter", adding.clone());
    server.expect_file(&flag);
    let second = server.start_call("add_interpreter", adding);
    let cell = server.start_call("execute", json!({"code": "1 + 1", "interpreter": "x"}));
    server.cancel(first);
    server.expect_no_answer();
    File::create(&release).unwrap();
    let result = server.wait(second);
    assert!(!result.is_error, "{}", result.text);
    assert_eq!(server.wait(cell).text, "2");
}

#[test]
fn adding_a_running_one_with_another_path_is_an_error_that_says_what_to_do() {
    let folder = Folder::new();
    let mut server = start(&folder);
    add(&mut server, json!({"name": "x", "python_path": python()}));
    run_in(&mut server, "x", "kept = 1");
    let other = other_python(&folder);
    for save in [false, true] {
        let adding = json!({"name": "x", "python_path": other, "save": save});
        refused(&mut server, "add_interpreter", adding, &["running|runs", python(), "stop_interpreter"]);
    }
    assert_eq!(run_in(&mut server, "x", "kept"), "1");
    assert!(!is_saved(&folder, "x"));
}

#[test]
fn a_stopped_saved_one_is_started_with_its_saved_settings() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let cwd = folder.path().join("saved-cwd");
    fs::create_dir(&cwd).unwrap();
    let all = json!({
        "name": "x", "python_path": python(), "cwd": cwd, "env": {"COLOUR": "blue"},
        "startup_script": "word = 'saved'", "description": "as saved", "save": true,
    });
    let info = add(&mut server, all);
    assert_eq!(info["source"], "saved");
    done(&mut server, "stop_interpreter", json!({"name": "x"}));
    let before = fs::read(saved_file(&folder)).unwrap();
    // No arguments are given: all comes from the file.
    let info = add(&mut server, json!({"name": "x", "python_path": python()}));
    assert_eq!((&info["source"], &info["description"]), (&json!("saved"), &json!("as saved")));
    let look = "import os; print(os.getcwd(), os.environ.get('COLOUR'), word)";
    assert_eq!(run_in(&mut server, "x", look), format!("{} blue saved", cwd.display()));
    done(&mut server, "stop_interpreter", json!({"name": "x"}));
    // What is given holds for this run and is not written.
    let given = json!({
        "name": "x", "python_path": python(), "env": {"COLOUR": "red"}, "description": "as given",
        "startup_script": "word = 'given'",
    });
    let info = add(&mut server, given.clone());
    assert_eq!(info["description"], "as given");
    assert_eq!(run_in(&mut server, "x", look), format!("{} red given", cwd.display()));
    assert_eq!(fs::read(saved_file(&folder)).unwrap(), before, "the file is as it was");
    done(&mut server, "stop_interpreter", json!({"name": "x"}));
    add(&mut server, json!({"name": "x", "python_path": python()}));
    assert_eq!(run_in(&mut server, "x", look), format!("{} blue saved", cwd.display()));
    done(&mut server, "stop_interpreter", json!({"name": "x"}));
    // With save=true it is written, over what was there.
    let mut given = given;
    given["save"] = json!(true);
    add(&mut server, given);
    let entry = &saved(&folder)["interpreters"]["x"];
    assert_eq!(entry["env"], json!({"COLOUR": "red"}));
    assert_eq!(entry["startup_script"], "word = 'given'");
    assert_eq!(entry["description"], "as given");
    assert_eq!(entry["cwd"], json!(cwd), "what was not given stays");
}

#[test]
fn another_path_for_a_stopped_saved_one_needs_save() {
    let folder = Folder::new();
    let mut server = start(&folder);
    add(&mut server, json!({"name": "x", "python_path": python(), "startup_script": "old = 1", "save": true}));
    done(&mut server, "stop_interpreter", json!({"name": "x"}));
    let before = fs::read(saved_file(&folder)).unwrap();
    let other = other_python(&folder);
    let adding = json!({"name": "x", "python_path": other});
    refused(&mut server, "add_interpreter", adding, &["saved", python(), "save=true"]);
    assert_eq!(fs::read(saved_file(&folder)).unwrap(), before);
    expect_nothing_but_the_server(&mut server);
    let info = add(&mut server, json!({"name": "x", "python_path": other, "save": true}));
    assert_eq!((&info["python_path"], &info["source"]), (&json!(other), &json!("saved")));
    assert_eq!(run_in(&mut server, "x", "'old' in globals()"), "False", "it is another one now");
    let entry = &saved(&folder)["interpreters"]["x"];
    assert_eq!((&entry["python_path"], &entry["startup_script"]), (&json!(other), &Value::Null));
}

#[test]
fn a_running_one_can_be_saved_without_a_new_start() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let first = add(&mut server, json!({"name": "x", "python_path": python(), "env": {"A": "1"}}));
    run_in(&mut server, "x", "kept = 1");
    assert!(!is_saved(&folder, "x"));
    let info = add(&mut server, json!({"name": "x", "python_path": python(), "save": true}));
    assert_eq!((&info["source"], &info["pid"]), (&json!("saved"), &first["pid"]));
    assert_eq!(run_in(&mut server, "x", "kept"), "1");
    assert_eq!(saved(&folder)["interpreters"]["x"]["env"], json!({"A": "1"}));
    done(&mut server, "stop_interpreter", json!({"name": "x"}));
    assert_eq!(listed_as(&mut server, "x").expect("it stays")["state"], "stopped");
}

/// Once they seemed to hold at once, but a restart after a crash used the old ones.
#[test]
fn settings_saved_for_a_running_one_hold_from_its_next_start() {
    let mut server = start(&Folder::new());
    let adding = json!({"name": "x", "python_path": python(), "startup_script": "word = 'old'"});
    let pid = pid_of(&add(&mut server, adding));
    let mut given = json!({"name": "x", "python_path": python(), "startup_script": "word = 'new'"});
    let text = add(&mut server, given.clone())["message"].to_string();
    assert!(text.contains("already") && text.contains("settings stay as they were"), "{text}");
    given["save"] = json!(true);
    let text = add(&mut server, given)["message"].to_string();
    assert!(text.contains("is saved") && text.contains("next start"), "{text}");
    assert_eq!(run_in(&mut server, "x", "word"), "'old'");
    server.call("execute", json!({"code": "import os; os._exit(1)", "interpreter": "x"}));
    procs::eventually(DEADLINE, "it has ended", || !procs::is_alive(pid));
    let again = server.call("execute", json!({"code": "print(word)", "interpreter": "x"}));
    assert!(again.text.contains("new"), "{}", again.text);
}

#[test]
fn a_path_is_compared_as_a_path_and_the_hint_at_a_directory_is_one() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let other = other_python(&folder);
    add(&mut server, json!({"name": "x", "python_path": other}));
    let same = other.replace("/bin/", "/./bin//");
    assert!(add(&mut server, json!({"name": "x", "python_path": same}))["message"].to_string().contains("already"));
    let hint = format!("try {}/bin/python", folder.home().display());
    refused(&mut server, "add_interpreter", json!({"name": "y", "python_path": "~"}), &[&hint]);
}

#[test]
fn a_name_is_1_to_64_letters_digits_dots_underlines_and_hyphens() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let (longest, too_long) = ("n".repeat(64), "n".repeat(65));
    for name in ["", &too_long, "a b", "a/b", "ü", "a\n", "a\0", "$x", "a:b"] {
        let adding = json!({"name": name, "python_path": python(), "save": true});
        refused(&mut server, "add_interpreter", adding, &["name", "1 to 64"]);
    }
    for name in ["a", &longest, "A.b_c-9", "-", "_", ".x"] {
        // The name is fine; the path is refused.
        refused(&mut server, "add_interpreter", json!({"name": name, "python_path": "/no/python"}), &["/no/python"]);
    }
    let info = add(&mut server, json!({"name": longest, "python_path": python()}));
    assert_eq!(info["name"], longest.as_str());
    assert!(!saved_file(&folder).exists());
}

#[test]
fn the_builtin_one_can_be_neither_added_nor_stopped() {
    let folder = Folder::new();
    let mut server = Server::with(|builder| builder.folder(&folder));
    server.ok("kept = 1");
    for (tool, arguments) in [
        ("add_interpreter", json!({"name": "builtin", "python_path": python()})),
        ("add_interpreter", json!({"name": "builtin", "python_path": python(), "save": true})),
        ("stop_interpreter", json!({"name": "builtin"})),
        ("stop_interpreter", json!({"name": "builtin", "remove": true})),
    ] {
        refused(&mut server, tool, arguments, &["builtin"]);
    }
    assert_eq!(server.ok("kept"), "1");
    assert!(!saved_file(&folder).exists());
    let entry = listed_as(&mut server, "builtin").unwrap();
    assert_eq!((&entry["source"], &entry["state"]), (&json!("builtin"), &json!("running")));
}

#[test]
fn what_is_no_python_is_an_error_with_its_output_and_leaves_nothing() {
    let folder = Folder::new();
    let mut server = start_with(&folder, |builder| builder.env("MCP_PY_START_TIMEOUT", "1"));
    let path = |name: &str| folder.bin().join(name).to_str().unwrap().to_string();
    fs::write(folder.bin().join("text"), "print('hello')\n").unwrap();
    folder.script("no-format", "print('hello')\n");
    folder.script("garbage", "#!/bin/sh\necho '{\"op\": \"nonsense\"}' >&0\nsleep 600\n");
    folder.script("no-json", "#!/bin/sh\necho 'hello' >&0\nsleep 600\n");
    folder.script("endless", "#!/bin/sh\nhead -c 8388608 /dev/zero >&0\nsleep 600\n");
    folder.script("loud", "#!/bin/sh\necho this goes out\necho this goes wrong >&2\nexit 7\n");
    folder.script("killed", "#!/bin/sh\nkill -KILL $$\n");
    folder.script("done-at-once", "#!/bin/sh\necho '{\"op\":\"done\",\"result\":null,\"exit\":0}' >&0\nsleep 600\n");
    fs::create_dir_all(folder.path().join("venv/bin")).unwrap();
    symlink(python(), folder.path().join("venv/bin/python")).unwrap();
    let venv = folder.path().join("venv").to_str().unwrap().to_string();
    let venv_python = format!("{venv}/bin/python");
    for (python_path, words) in [
        ("/bin/true".to_string(), vec!["code 0"]),
        ("/bin/false".to_string(), vec!["code 1"]),
        ("/bin/cat".to_string(), vec!["cat:"]), // what cat says of the option -c
        (path("text"), vec!["/bin/text", "no program|Permission denied"]),
        (path("no-format"), vec!["no-format"]),
        (path("garbage"), vec!["broke the protocol"]),
        (path("no-json"), vec!["broke the protocol"]),
        (path("done-at-once"), vec!["broke the protocol"]),
        (path("endless"), vec!["broke the protocol"]), // a frame has 4 MiB at most
        (path("loud"), vec!["code 7", "this goes out", "this goes wrong"]),
        (path("killed"), vec!["SIGKILL"]),
        (path("missing"), vec!["missing", "No such file"]),
        (path(""), vec!["directory"]),
        (venv, vec!["directory", &venv_python]),
    ] {
        let adding = json!({"name": "x", "python_path": python_path, "save": true});
        refused(&mut server, "add_interpreter", adding, &words);
        expect_nothing_but_the_server(&mut server);
        assert_eq!(names_listed(&mut server), ["builtin"], "{python_path}");
    }
    assert!(!saved_file(&folder).exists());
    // The name is free all the same.
    add(&mut server, json!({"name": "x", "python_path": python()}));
}

#[test]
fn a_python_that_hangs_is_given_up_and_leaves_nothing() {
    let folder = Folder::new();
    let (hanging, mark) = hanging_python(&folder);
    let mut server = start_with(&folder, |builder| builder.env("MCP_PY_START_TIMEOUT", "1"));
    let adding = json!({"name": "x", "python_path": hanging, "save": true});
    refused(
        &mut server,
        "add_interpreter",
        adding,
        &["it took longer than 1 s to start; MCP_PY_START_TIMEOUT of the server can give it more"],
    );
    assert!(mark.exists());
    expect_nothing_but_the_server(&mut server);
    assert_eq!(names_listed(&mut server), ["builtin"]);
    assert!(!saved_file(&folder).exists());
}

#[test]
fn a_python_before_3_8_is_refused_in_words() {
    let folder = Folder::new();
    let old = folder.script(
        "old-python",
        &format!(
            "#!/bin/sh\nexec {} -c 'import sys; sys.version_info = (3, 7, 17, \"final\", 0); \
             sys.version = \"3.7.17 (simulated)\"; exec(sys.argv[1])' \"$2\"\n",
            python()
        ),
    );
    let mut server = start(&folder);
    let adding = json!({"name": "x", "python_path": old, "save": true});
    refused(&mut server, "add_interpreter", adding, &["3.8 or newer", "3.7.17"]);
    expect_nothing_but_the_server(&mut server);
    assert!(!saved_file(&folder).exists());
}

#[test]
fn a_startup_script_that_fails_is_an_error_with_its_output_and_leaves_nothing() {
    let folder = Folder::new();
    let mut server = start_with(&folder, |builder| builder.env("MCP_PY_TIMEOUT", "1"));
    let child = "import subprocess; subprocess.Popen(['sleep', '600'])\n";
    for (script, words) in [
        ("print('so far')\nraise ValueError('not here')", vec!["so far", "ValueError: not here", "Traceback"]),
        ("def f(:", vec!["SyntaxError"]),
        ("import no_such_module", vec!["ModuleNotFoundError", "no_such_module"]),
        ("exit(3)", vec!["SystemExit: 3"]),
        ("import sys; sys.exit('in words')", vec!["in words"]),
        ("import os; print('last words', flush=True); os._exit(7)", vec!["code 7", "last words"]),
        ("print('going on')\nwhile True: pass", vec!["going on", "KeyboardInterrupt", "timeout"]),
        ("import signal, os; os.kill(os.getpid(), signal.SIGSEGV)", vec!["SIGSEGV"]),
    ] {
        let adding =
            json!({"name": "x", "python_path": python(), "startup_script": format!("{child}{script}"), "save": true});
        refused(&mut server, "add_interpreter", adding, &words);
        expect_nothing_but_the_server(&mut server);
        assert_eq!(names_listed(&mut server), ["builtin"], "{script}");
    }
    assert!(!saved_file(&folder).exists());
}

#[test]
fn a_directory_that_is_none_is_refused() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let file = folder.path().join("a-file");
    fs::write(&file, "").unwrap();
    for cwd in [folder.path().join("nowhere"), file] {
        let adding = json!({"name": "x", "python_path": python(), "cwd": cwd, "save": true});
        refused(&mut server, "add_interpreter", adding, &["cwd", cwd.to_str().unwrap()]);
    }
    expect_nothing_but_the_server(&mut server);
    assert!(!saved_file(&folder).exists());
}

#[test]
fn the_startup_script_runs_again_after_a_death_and_the_answer_says_so() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let count = folder.path().join("starts");
    let script = format!("with open({count:?}, 'a') as f: f.write('x')\nword = 'ready'");
    let info = add(
        &mut server,
        json!({"name": "x", "python_path": python(), "startup_script": script, "env": {"COLOUR": "blue"}}),
    );
    let result = server.call("execute", json!({"code": "import os; os._exit(3)", "interpreter": "x"}));
    assert!(result.is_error && result.text.contains("code 3"), "{}", result.text);
    // Listed at once, it may still be being buried; then it is stopped.
    procs::eventually(DEADLINE, "it is stopped", || {
        let entry = listed_as(&mut server, "x").expect("a transient one that died stays in the list");
        entry["state"] == "stopped" && entry["pid"].is_null()
    });
    let next = run_in(&mut server, "x", "import os; print(word, os.environ['COLOUR'], os.getpid())");
    assert!(next.starts_with("ready blue") && !next.contains(&pid_of(&info).to_string()), "{next}");
    assert_eq!(fs::read_to_string(&count).unwrap(), "xx");
    // A death between two cells: the same, with notice.
    let pid = pid_of(&listed_as(&mut server, "x").unwrap());
    procs::kill(pid, libc::SIGKILL);
    // Not before the server knows: a cell that is sent to a process that has just died shares its fate.
    procs::eventually(DEADLINE, "its death is known", || listed_as(&mut server, "x").unwrap()["state"] == "stopped");
    let next = run_in(&mut server, "x", "word");
    assert!(next.ends_with("'ready'") && next.contains("SIGKILL") && next.contains("variables are gone"), "{next}");
    assert_eq!(fs::read_to_string(&count).unwrap(), "xxx");
}

#[test]
fn a_cancelled_add_leaves_nothing() {
    let folder = Folder::new();
    let (hanging, mark) = hanging_python(&folder);
    let mut server = start(&folder);
    let flag = server.flag();
    let spin = format!("open({flag:?}, 'w').close()\nwhile True: pass");
    for (adding, announced) in [
        (json!({"name": "x", "python_path": hanging, "save": true}), &mark),
        (json!({"name": "x", "python_path": python(), "startup_script": spin, "save": true}), &flag),
    ] {
        let id = server.start_call("add_interpreter", adding);
        server.expect_file(announced);
        server.cancel(id);
        server.expect_no_answer();
        expect_nothing_but_the_server(&mut server);
        procs::eventually(DEADLINE, "it is gone from the list", || names_listed(&mut server) == ["builtin"]);
    }
    assert!(!saved_file(&folder).exists());
    server.expect_no_answer();
}

#[test]
fn adds_of_one_name_at_the_same_time_start_one() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let count = folder.path().join("starts");
    let script = format!("import time; time.sleep(0.2)\nwith open({count:?}, 'a') as f: f.write('x')");
    let adding = json!({"name": "x", "python_path": python(), "startup_script": script, "save": true});
    let ids: Vec<_> = (0..6).map(|_| server.start_call("add_interpreter", adding.clone())).collect();
    let results: Vec<_> = ids.into_iter().map(|id| server.wait(id)).collect();
    assert!(results.iter().any(|result| !result.is_error), "{results:?}");
    let pid = run_in(&mut server, "x", "import os; os.getpid()");
    assert_eq!(fs::read_to_string(&count).unwrap(), "x", "{results:?}");
    let running: Vec<_> = server.processes();
    assert_eq!(running.len(), 2, "the server and one Python, not {running:?}");
    for result in results.iter().filter(|result| !result.is_error) {
        assert_eq!(result.structured["name"], "x");
        let told = &result.structured["pid"];
        assert!(told.is_null() || told.as_i64() == pid.parse().ok(), "{}", result.text);
    }
    assert_eq!(saved(&folder)["interpreters"].as_object().unwrap().len(), 1);
}

#[test]
fn adds_of_one_name_at_the_same_time_fail_together() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let flag = server.flag();
    let script = format!("import time; open({flag:?}, 'w').close(); time.sleep(0.5); raise ValueError('never up')");
    let adding = json!({"name": "x", "python_path": python(), "startup_script": script});
    let first = server.start_call("add_interpreter", adding.clone());
    server.expect_file(&flag);
    let second = server.start_call("add_interpreter", adding);
    for id in [first, second] {
        let result = server.wait(id);
        assert!(result.is_error, "it never ran, but: {}", result.text);
    }
    expect_nothing_but_the_server(&mut server);
    assert_eq!(names_listed(&mut server), ["builtin"]);
}

/// A startup script that announces itself and waits for a file; returns both files.
fn waiting_script(server: &mut Server, then: &str) -> (String, PathBuf, PathBuf) {
    let (flag, release) = (server.flag(), server.flag());
    let script = format!(
        "import os, time\nopen({flag:?}, 'w').close()\nwhile not os.path.exists({release:?}): time.sleep(0.01)\n{then}"
    );
    (script, flag, release)
}

/// Once all of them were told why the first one had failed.
#[test]
fn adds_of_one_name_at_the_same_time_with_different_settings_have_an_outcome_each() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let (script, flag, release) = waiting_script(&mut server, "raise ValueError('of the first')");
    let adding = |script: &str| json!({"name": "x", "python_path": python(), "startup_script": script});
    let first = server.start_call("add_interpreter", adding(&script));
    server.expect_file(&flag);
    let same = server.start_call("add_interpreter", adding(&script));
    let bad = server.start_call("add_interpreter", adding("raise ValueError('of the second')"));
    let nowhere = |number| json!({"name": "x", "python_path": format!("/no/such/python{number}")});
    let nowhere: Vec<_> = (0..20).map(|number| server.start_call("add_interpreter", nowhere(number))).collect();
    let good = server.start_call("add_interpreter", adding("started = 'by the third'"));
    let late = server.start_call("add_interpreter", adding("raise ValueError('of the last')"));
    server.expect_no_answer();
    File::create(&release).unwrap();
    let failures = [(first, "of the first"), (same, "of the first"), (bad, "of the second")];
    let failures = failures.into_iter().chain(nowhere.into_iter().map(|id| (id, "/no/such")));
    for (id, word) in failures {
        let result = server.wait(id);
        expect_refusal(&mut server, &result, word, &[word]);
    }
    let result = server.wait(good);
    assert!(!result.is_error && result.structured["message"] == "Interpreter \"x\" started", "{}", result.text);
    let result = server.wait(late);
    assert!(!result.is_error && result.text.contains("was running already"), "{}", result.text);
    assert_eq!(run_in(&mut server, "x", "started"), "'by the third'");
}

#[test]
fn an_add_that_waits_for_a_start_that_fails_has_nothing_of_that() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let (script, flag, release) = waiting_script(&mut server, "raise ValueError('of the first')");
    let first = json!({"name": "x", "python_path": python(), "startup_script": script, "env": {"OF_FIRST": "1"}});
    let first = server.start_call("add_interpreter", first);
    server.expect_file(&flag);
    let second = server.start_call("add_interpreter", json!({"name": "x", "python_path": python()}));
    server.expect_no_answer();
    File::create(&release).unwrap();
    let result = server.wait(first);
    expect_refusal(&mut server, &result, "the first", &["of the first"]);
    assert_eq!(server.wait(second).structured["message"], "Interpreter \"x\" started");
    assert_eq!(run_in(&mut server, "x", "import os; os.environ.get('OF_FIRST', 'none of it')"), "'none of it'");
}

#[test]
fn an_add_that_waits_for_a_start_that_fails_and_is_refused_leaves_nothing_in_the_list() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let (script, flag, release) = waiting_script(&mut server, "raise ValueError('of the first')");
    let first = json!({"name": "x", "python_path": python(), "startup_script": script});
    let first = server.start_call("add_interpreter", first);
    server.expect_file(&flag);
    let adding = json!({"name": "x", "python_path": python(), "save": true});
    let second = server.start_call("add_interpreter", adding);
    server.expect_no_answer();
    write_saved(&folder, "no JSON");
    File::create(&release).unwrap();
    for (id, word) in [(first, "of the first"), (second, "interpreters.json")] {
        let result = server.wait(id);
        expect_refusal(&mut server, &result, word, &[word]);
    }
    assert!(!names_listed(&mut server).contains(&"x".into()));
}

#[test]
fn an_add_with_another_path_waits_whether_the_first_one_starts() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let other = other_python(&folder);
    let (script, flag, release) = waiting_script(&mut server, "");
    let adding = json!({"name": "x", "python_path": python(), "startup_script": script});
    let first = server.start_call("add_interpreter", adding);
    server.expect_file(&flag);
    let second = server.start_call("add_interpreter", json!({"name": "x", "python_path": other}));
    server.expect_no_answer();
    File::create(&release).unwrap();
    let result = server.wait(first);
    assert!(!result.is_error, "{}", result.text);
    let result = server.wait(second);
    expect_refusal(&mut server, &result, "the second", &["runs with", "stop it with stop_interpreter"]);
    assert_eq!(run_in(&mut server, "x", "1 + 1"), "2");
}

#[test]
fn an_add_goes_on_where_the_one_it_waits_for_is_cancelled_or_is_cancelled_itself() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let (hanging, mark) = hanging_python(&folder);
    let first = server.start_call("add_interpreter", json!({"name": "x", "python_path": hanging}));
    server.expect_file(&mark);
    let adding = json!({"name": "x", "python_path": python(), "startup_script": "x = 2"});
    let second = server.start_call("add_interpreter", adding.clone());
    let third = server.start_call("add_interpreter", adding);
    server.expect_no_answer();
    server.cancel(second);
    server.cancel(first);
    let result = server.wait(third);
    assert!(!result.is_error && result.structured["message"] == "Interpreter \"x\" started", "{}", result.text);
    assert_eq!(run_in(&mut server, "x", "x"), "2");
    server.expect_no_answer();
}

#[test]
fn a_stop_ends_the_adds_that_came_before_it_too() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let (hanging, mark) = hanging_python(&folder);
    let first = server.start_call("add_interpreter", json!({"name": "x", "python_path": hanging}));
    server.expect_file(&mark);
    let second = server.start_call("add_interpreter", json!({"name": "x", "python_path": python()}));
    let stop = server.start_call("stop_interpreter", json!({"name": "x"}));
    let third = server.start_call("add_interpreter", json!({"name": "x", "python_path": python()}));
    for id in [first, second] {
        let result = server.wait(id);
        expect_refusal(&mut server, &result, "an add before the stop", &["was stopped"]);
    }
    assert!(!server.wait(stop).is_error);
    let result = server.wait(third);
    assert!(!result.is_error && result.structured["message"] == "Interpreter \"x\" started", "{}", result.text);
}

// ---- the order of calls that concern one interpreter ---------------------------------------------------------------

/// Sends calls at once; returns their answers in this order.
#[track_caller]
fn at_once(server: &mut Server, calls: &[(&str, Value)]) -> Vec<ToolResult> {
    let ids: Vec<_> = calls.iter().map(|(tool, arguments)| server.start_call(tool, arguments.clone())).collect();
    ids.into_iter().map(|id| server.wait(id)).collect()
}

/// Once each call looked at files first, by itself, and their order was left to chance.
#[test]
fn calls_that_concern_one_interpreter_take_effect_in_their_order_of_arrival() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let adding = ("add_interpreter", json!({"name": "x", "python_path": python()}));
    let saving = ("add_interpreter", json!({"name": "x", "python_path": python(), "save": true}));
    let stop = ("stop_interpreter", json!({"name": "x"}));
    let remove = ("stop_interpreter", json!({"name": "x", "remove": true}));
    let cell = |code: &str| ("execute", json!({"code": code, "interpreter": "x"}));
    let (set, get) = (cell("n = globals().get('n', 0) + 1"), cell("n"));
    for (calls, texts) in [
        (vec![&set, &adding, &set, &set, &get], vec!["there is no interpreter", "started", "", "", "2"]),
        (vec![&stop, &adding, &set, &get], vec!["stopped", "started", "", "1"]),
        (vec![&stop, &get, &saving, &set], vec!["stopped", "there is no interpreter", "is saved", ""]),
        (vec![&stop, &set, &adding, &get], vec!["kept", "", "already", "1"]),
        (vec![&set, &adding, &set, &get], vec!["", "already", "", "3"]),
        (vec![&remove, &set, &stop, &adding, &set], vec!["removed", "there is no", "there is no", "started", ""]),
        (vec![&remove, &remove, &get, &adding], vec!["not saved", "there is no", "there is no", "started"]),
    ] {
        let calls: Vec<_> = calls.into_iter().cloned().collect();
        let results = at_once(&mut server, &calls);
        let fits = |(result, text): (&ToolResult, &&str)| {
            result.text.contains(*text) && result.is_error == text.starts_with("there is no")
        };
        if !results.iter().zip(&texts).all(fits) {
            server.fail(&format!("{calls:?}: {texts:?} was expected, not {results:?}"));
        }
    }
    let waiting = [("stop_interpreter", "name"), ("execute", "interpreter")].map(|(tool, name)| {
        server.start_call(tool, if tool == "execute" { json!({"code": "1", name: "x"}) } else { json!({name: "x"}) })
    });
    server.cancel(waiting[1]);
    assert!(!server.wait(waiting[0]).is_error);
    server.expect_no_answer();
}

/// The clerk once removed the configuration for a call that was then held back, and which was told that there was none.
#[test]
fn a_remove_right_behind_a_stop_says_that_it_removed() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let saving = ("add_interpreter", json!({"name": "x", "python_path": python(), "save": true}));
    let stop = ("stop_interpreter", json!({"name": "x"}));
    let remove = ("stop_interpreter", json!({"name": "x", "remove": true}));
    for (calls, texts) in [
        (vec![&saving], vec!["is saved"]),
        (
            vec![&stop, &remove],
            vec!["\"x\" stopped; its saved configuration is kept", "not running; its saved configuration is removed"],
        ),
        (vec![&saving], vec!["is saved"]),
        (vec![&stop, &stop, &remove], vec!["kept", "not running", "its saved configuration is removed"]),
    ] {
        let calls: Vec<_> = calls.into_iter().cloned().collect();
        let results = at_once(&mut server, &calls);
        for (result, text) in results.iter().zip(&texts) {
            assert!(!result.is_error && result.text.contains(text), "{text:?} was expected, not {:?}", result.text);
        }
    }
    assert!(!is_saved(&folder, "x"));
    assert_eq!(names_listed(&mut server), ["builtin"]);
}

#[test]
#[allow(unsafe_code)]
fn a_save_that_waits_for_its_lock_holds_up_no_cell() {
    let folder = Folder::new();
    let mut server = start(&folder);
    for name in ["x", "y"] {
        add(&mut server, json!({"name": name, "python_path": python(), "save": true}));
    }
    let held = File::open(saved_dir(&folder).join("interpreters.lock")).unwrap();
    // SAFETY: flock(2) takes two integers and touches no memory of ours.
    assert_eq!(unsafe { libc::flock(held.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }, 0);
    let saving = server.start_call("add_interpreter", json!({"name": "x", "python_path": python(), "save": true}));
    server.expect_no_answer();
    for name in ["x", "y"] {
        assert_eq!(run_in(&mut server, name, "1 + 1"), "2");
    }
    drop(held);
    assert!(!server.wait(saving).is_error);
    done(&mut server, "stop_interpreter", json!({"name": "y"}));
}

// ---- stop_interpreter ----------------------------------------------------------------------------------------------

#[test]
fn a_transient_one_is_gone_after_its_stop() {
    let mut server = start(&Folder::new());
    let pid = pid_of(&add(&mut server, json!({"name": "x", "python_path": python()})));
    let text = done(&mut server, "stop_interpreter", json!({"name": "x"}));
    assert!(text.starts_with("Interpreter \"x\" stopped") && text.contains("not saved"), "{text}");
    assert!(!procs::is_alive(pid));
    assert_eq!(names_listed(&mut server), ["builtin"]);
    refused(&mut server, "stop_interpreter", json!({"name": "x"}), &["\"x\"", "builtin"]);
    refused(&mut server, "execute", json!({"code": "1", "interpreter": "x"}), &["\"x\""]);
}

#[test]
fn a_saved_one_stays_in_the_list_after_its_stop() {
    let folder = Folder::new();
    let mut server = start(&folder);
    let adding = json!({"name": "x", "python_path": python(), "description": "stays", "save": true});
    let pid = pid_of(&add(&mut server, adding));
    let text = done(&mut server, "stop_interpreter", json!({"name": "x"}));
    assert!(text.starts_with("Interpreter \"x\" stopped") && text.contains("kept"), "{text}");
    assert!(!procs::is_alive(pid));
    let entry = listed_as(&mut server, "x").expect("it stays");
    assert_eq!((&entry["source"], &entry["state"]), (&json!("saved"), &json!("stopped")));
    assert_eq!(entry["description"], "stays");
    for unknown in ["pid", "started_at", "uptime"] {
        assert_eq!(entry[unknown], Value::Null, "{unknown}");
    }
    // Once more is no error, and says so; the file is as it was.
    let before = fs::read(saved_file(&folder)).unwrap();
    let text = done(&mut server, "stop_interpreter", json!({"name": "x"}));
    assert!(text.contains("not running") && text.contains("kept"), "{text}");
    assert_eq!(fs::read(saved_file(&folder)).unwrap(), before);
}

#[test]
fn remove_deletes_the_saved_configuration_running_or_not() {
    let folder = Folder::new();
    let mut server = start(&folder);
    add(&mut server, json!({"name": "other", "python_path": python(), "save": true}));
    for running in [true, false] {
        let info = add(&mut server, json!({"name": "x", "python_path": python(), "save": true}));
        if !running {
            done(&mut server, "stop_interpreter", json!({"name": "x"}));
        }
        let text = done(&mut server, "stop_interpreter", json!({"name": "x", "remove": true}));
        assert!(text.contains("removed"), "{text}");
        assert_eq!(text.contains("not running"), !running, "{text}");
        assert!(!procs::is_alive(pid_of(&info)));
        assert!(!is_saved(&folder, "x") && is_saved(&folder, "other"));
        assert_eq!(names_listed(&mut server), ["builtin", "other"]);
        refused(&mut server, "stop_interpreter", json!({"name": "x", "remove": true}), &["\"x\""]);
    }
    add(&mut server, json!({"name": "x", "python_path": python()}));
    let text = done(&mut server, "stop_interpreter", json!({"name": "x", "remove": true}));
    assert!(text.starts_with("Interpreter \"x\" stopped") && text.contains("not saved"), "{text}");
    assert_eq!(names_listed(&mut server), ["builtin", "other"]);
}

#[test]
fn stopping_a_busy_one_answers_its_cells_with_errors() {
    let folder = Folder::new();
    let mut server = start(&folder);
    for save in [false, true] {
        let pid = pid_of(&add(&mut server, json!({"name": "x", "python_path": python(), "save": save})));
        let flag = server.flag();
        let code = format!("print('so far')\nopen({flag:?}, 'w').close()\nwhile True: pass");
        let running = server.start_call("execute", json!({"code": code, "interpreter": "x"}));
        let waiting = server.start_call("execute", json!({"code": "1", "interpreter": "x"}));
        let listing = server.start_call("list_vars", json!({"interpreter": "x"}));
        server.expect_file(&flag);
        let stop = server.start_call("stop_interpreter", json!({"name": "x"}));
        let cell = server.wait(running);
        expect_refusal(&mut server, &cell, "the running cell", &["so far", "\"x\"", "stopped"]);
        assert!(!cell.text.contains("next cell starts"), "there is none: {}", cell.text);
        for id in [waiting, listing] {
            let result = server.wait(id);
            expect_refusal(&mut server, &result, "a waiting cell", &["stopped"]);
        }
        let stopped = server.wait(stop);
        assert!(!stopped.is_error && stopped.text.starts_with("Interpreter \"x\" stopped"), "{}", stopped.text);
        assert!(!procs::is_alive(pid));
        expect_nothing_but_the_server(&mut server);
    }
}

#[test]
fn stopping_one_that_is_starting_ends_both_calls() {
    let folder = Folder::new();
    let (hanging, mark) = hanging_python(&folder);
    let mut server = start(&folder);
    let adding = server.start_call("add_interpreter", json!({"name": "x", "python_path": hanging, "save": true}));
    server.expect_file(&mark);
    done(&mut server, "stop_interpreter", json!({"name": "x"}));
    let result = server.wait(adding);
    expect_refusal(&mut server, &result, "the add", &["\"x\"", "stopped"]);
    expect_nothing_but_the_server(&mut server);
    assert_eq!(names_listed(&mut server), ["builtin"]);
    assert!(!saved_file(&folder).exists());
}

#[test]
fn a_stop_right_behind_the_cell_that_starts_an_interpreter_stops_it() {
    for round in 0..5 {
        let folder = Folder::new();
        write_saved(&folder, json!({"interpreters": {"x": {"python_path": python()}}}).to_string());
        let mut server = start(&folder);
        let cell = server.start_call("execute", json!({"code": "1 + 1", "interpreter": "x"}));
        let stop = server.start_call("stop_interpreter", json!({"name": "x"}));
        let (cell, stop) = (server.wait(cell), server.wait(stop));
        assert!(!stop.is_error, "{}", stop.text);
        let entry = listed_as(&mut server, "x").unwrap();
        if entry["state"] != "stopped" {
            server.fail(&format!("round {round}: {:?}, but {}; the cell: {}", stop.text, entry["state"], cell.text));
        }
        expect_nothing_but_the_server(&mut server);
    }
}

#[test]
fn an_idle_one_that_is_stopped_runs_its_atexit() {
    let folder = Folder::new();
    let mut server = start(&folder);
    add(&mut server, json!({"name": "x", "python_path": python()}));
    let mark = server.flag();
    run_in(&mut server, "x", &format!("import atexit; atexit.register(lambda: open({mark:?}, 'w').close())"));
    run_in(&mut server, "x", "atexit.register(print, 'bye')");
    let text = done(&mut server, "stop_interpreter", json!({"name": "x"}));
    assert!(mark.exists());
    assert!(text.ends_with("\n[mcp-py: output from between the cells, 4 chars:\nbye\n]"), "what it said last: {text}");
}

#[test]
fn a_discovered_one_is_not_ours_to_remove() {
    let folder = Folder::new();
    venv_at(&folder.project().join(".venv"), "");
    let mut server = start(&folder);
    refused(&mut server, "stop_interpreter", json!({"name": ".venv", "remove": true}), &[".venv", "project"]);
    run_in(&mut server, ".venv", "x = 1");
    refused(&mut server, "stop_interpreter", json!({"name": ".venv", "remove": true}), &[".venv", "project"]);
    assert_eq!(run_in(&mut server, ".venv", "x"), "1");
    let text = done(&mut server, "stop_interpreter", json!({"name": ".venv"}));
    assert!(text.starts_with("Interpreter \".venv\" stopped") && text.contains("stays"), "{text}");
    let text = done(&mut server, "stop_interpreter", json!({"name": ".venv"}));
    assert!(text.contains("not running"), "{text}");
    let entry = listed_as(&mut server, ".venv").expect("it is still there");
    assert_eq!((&entry["source"], &entry["state"]), (&json!("discovered"), &json!("stopped")));
    assert!(folder.project().join(".venv/bin/python").exists());
}

// ---- saved and discovered ones: started by execute ----------------------------------------------------------------

/// What a virtual environment is made of, as far as starting it goes.
fn venv_at(place: &Path, settings: &str) {
    fs::create_dir_all(place.join("bin")).unwrap();
    symlink(python(), place.join("bin/python")).unwrap();
    let home = Path::new(python()).parent().unwrap();
    fs::write(place.join("pyvenv.cfg"), format!("home = {}\n{settings}", home.display())).unwrap();
}

/// An environment whose Python leaves a mark when it is run, and is a Python all the same.
fn marking_venv_at(place: &Path, settings: &str) -> PathBuf {
    let mark = place.join("was-run");
    fs::create_dir_all(place.join("bin")).unwrap();
    let program = place.join("bin/python");
    let script = format!("#!/bin/sh\n: > '{}'\nexec {} \"$@\"\n", mark.display(), python());
    write_executable(&program, script.as_bytes());
    if !settings.is_empty() {
        fs::write(place.join("pyvenv.cfg"), settings).unwrap();
    }
    mark
}

#[test]
fn execute_starts_a_saved_one_and_keeps_the_order_of_cells_sent_at_once() {
    let folder = Folder::new();
    let entry = json!({
        "python_path": python(), "cwd": folder.home(), "env": {"COLOUR": "blue"}, "startup_script": "order = []",
        "description": "of the file",
    });
    write_saved(&folder, json!({"discover_jetbrains": true, "interpreters": {"x": entry}}).to_string());
    let mut server = start(&folder);
    let ids = [1, 2, 3].map(|n| {
        server.start_call("execute", json!({"code": format!("order.append({n}); order"), "interpreter": "x"}))
    });
    for (id, expected) in ids.into_iter().zip(["[1]", "[1, 2]", "[1, 2, 3]"]) {
        let answer = server.recv(DEADLINE);
        assert_eq!((&answer["id"], &answer["result"]["content"][0]["text"]), (&json!(id), &json!(expected)));
    }
    let look = "import os; print(os.getcwd(), os.environ['COLOUR'])";
    assert_eq!(run_in(&mut server, "x", look), format!("{} blue", folder.home().display()));
    let entry = listed_as(&mut server, "x").unwrap();
    assert_eq!((&entry["source"], &entry["state"]), (&json!("saved"), &json!("running")));
    assert_eq!(entry["description"], "of the file");
}

#[test]
fn execute_starts_a_discovered_one_and_keeps_the_order_of_cells_sent_at_once() {
    let folder = Folder::new();
    venv_at(&folder.project().join(".venv"), "");
    let mut server = start(&folder);
    let ids = ["order = [1]; order", "order.append(2); order", "order.append(3); order"]
        .map(|code| server.start_call("execute", json!({"code": code, "interpreter": ".venv"})));
    for (id, expected) in ids.into_iter().zip(["[1]", "[1, 2]", "[1, 2, 3]"]) {
        let answer = server.recv(DEADLINE);
        assert_eq!((&answer["id"], &answer["result"]["content"][0]["text"]), (&json!(id), &json!(expected)));
    }
    let prefix = run_in(&mut server, ".venv", "import sys; print(sys.prefix)");
    assert_eq!(prefix, folder.project().join(".venv").to_str().unwrap());
    let entry = listed_as(&mut server, ".venv").unwrap();
    assert_eq!((&entry["source"], &entry["state"]), (&json!("discovered"), &json!("running")));
}

#[test]
fn paths_in_the_file_mean_the_same_as_in_the_call() {
    let folder = Folder::new();
    venv_at(&folder.project().join("env"), "");
    symlink(python(), folder.home().join("python")).unwrap();
    for place in [folder.project(), folder.home()] {
        fs::create_dir(place.join("sub")).unwrap();
    }
    // The original writes a path as it was given: relative to the project.
    let relative = json!({"python_path": "env/bin/python", "cwd": "sub"});
    let tilde = json!({"python_path": "~/python", "cwd": "~/sub"});
    write_saved(&folder, json!({"interpreters": {"relative": relative, "tilde": tilde}}).to_string());
    let mut server = start_with(&folder, |builder| builder.cwd(folder.tmp()));
    for (name, place) in [("relative", folder.project()), ("tilde", folder.home())] {
        let cwd = run_in(&mut server, name, "import os; print(os.getcwd())");
        assert_eq!(cwd, place.join("sub").to_str().unwrap());
        let path = listed_as(&mut server, name).unwrap()["python_path"].as_str().unwrap().to_string();
        assert!(path.starts_with(place.to_str().unwrap()), "{path}");
    }
}

#[test]
fn nonsense_in_the_file_harms_nobody_else() {
    let folder = Folder::new();
    let odd = json!({
        "python_path": python(), "cwd": 5, "env": {"A": 1, "B": "b", "C=D": "e"}, "startup_script": [], "description": {},
    });
    let entries =
        json!({"odd": odd, "none": null, "list": [], "number": {"python_path": 7}, "b a d": {"python_path": "/x"}});
    write_saved(&folder, json!({"interpreters": entries}).to_string());
    let mut server = start(&folder);
    assert!(names_listed(&mut server).contains(&"odd".to_string()));
    server.call("execute", json!({"code": "1", "interpreter": "odd"})); // whatever it says
    refused(&mut server, "execute", json!({"code": "1", "interpreter": "number"}), &["number"]);
    add(&mut server, json!({"name": "good", "python_path": python(), "save": true}));
    assert_eq!(saved(&folder)["interpreters"]["odd"]["cwd"], 5);
    assert_eq!(run_in(&mut server, "good", "1 + 1"), "2");
    // Where the file has no entry to keep, saving puts one there. Once this ended the server.
    add(&mut server, json!({"name": "list", "python_path": python(), "save": true}));
    assert_eq!(saved(&folder)["interpreters"]["list"]["python_path"], python());
}

#[test]
fn a_saved_one_whose_python_has_gone_is_an_error_that_names_it() {
    let folder = Folder::new();
    write_saved(&folder, json!({"interpreters": {"x": {"python_path": "/gone/bin/python"}}}).to_string());
    let mut server = start(&folder);
    for _ in 0..2 {
        refused(&mut server, "execute", json!({"code": "1", "interpreter": "x"}), &["/gone/bin/python"]);
    }
    assert_eq!(listed_as(&mut server, "x").unwrap()["state"], "stopped");
}

#[test]
fn environments_are_discovered_without_running_them() {
    let folder = Folder::new();
    let (active, conda) = (folder.path().join("active"), folder.path().join("conda"));
    let marks = [
        marking_venv_at(&folder.project().join(".venv"), "home = /x\nversion = 3.11.4\n"),
        marking_venv_at(&folder.project().join("venv"), "home = /x\nversion_info = 3.12.1.final.0\n"),
        marking_venv_at(&active, "home = /x\n"),
        marking_venv_at(&conda, ""),
    ];
    symlink("/dev/zero", conda.join("pyvenv.cfg")).unwrap(); // a cloned project may have such a link: it has no end
    let mut server = start_with(&folder, |builder| {
        builder.env("VIRTUAL_ENV", &active).env("CONDA_PREFIX", &conda).cwd(folder.tmp())
    });
    server.initialize();
    let list = listed(&mut server);
    let expected = [
        (".venv", folder.project().join(".venv"), json!("3.11.4")),
        ("conda", conda, Value::Null),
        ("venv", folder.project().join("venv"), json!("3.12.1")),
        ("virtualenv", active, Value::Null),
    ];
    assert_eq!(list.len(), 1 + expected.len(), "{list:?}");
    for (entry, (name, place, version)) in list[1..].iter().zip(expected) {
        assert_eq!(entry["name"], name);
        assert_eq!(entry["source"], "discovered", "{name}");
        assert_eq!(entry["state"], "stopped", "{name}");
        assert_eq!(entry["python_path"], json!(place.join("bin/python")), "{name}");
        assert_eq!(entry["python_version"], version, "{name}");
        assert_eq!(entry["has_startup_script"], false, "{name}");
        for unknown in ["pid", "started_at", "uptime", "description"] {
            assert_eq!(entry[unknown], Value::Null, "{name} {unknown}");
        }
    }
    refused(&mut server, "stop_interpreter", json!({"name": "nobody"}), &["virtualenv"]);
    for mark in &marks {
        assert!(!mark.exists(), "{} was made", mark.display());
    }
    // The marks work: running a cell does leave one.
    for (name, mark) in [".venv", "venv", "virtualenv", "conda"].iter().zip(&marks) {
        assert_eq!(run_in(&mut server, name, "1 + 1"), "2");
        assert!(mark.exists(), "{name}");
    }
    let entry = listed_as(&mut server, "conda").unwrap();
    assert!(entry["python_version"].is_string() && entry["state"] == "running", "{entry}");
}

#[test]
fn variables_that_lead_nowhere_discover_nothing() {
    let folder = Folder::new();
    fs::create_dir_all(folder.project().join(".venv/bin/python")).unwrap(); // a directory, no program
    let mut server = start_with(&folder, |builder| {
        builder.env("VIRTUAL_ENV", "").env("CONDA_PREFIX", folder.path().join("no-conda"))
    });
    assert_eq!(names_listed(&mut server), ["builtin"]);
}

#[test]
fn the_list_starts_with_the_builtin_one_before_it_has_ever_run() {
    let folder = Folder::new();
    write_saved(&folder, json!({"interpreters": {"Z": {"python_path": "/z"}, "a": {"python_path": "/a"}}}).to_string());
    let mut server = start(&folder);
    let list = listed(&mut server);
    let names: Vec<_> = list.iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["builtin", "Z", "a"]);
    assert_eq!(list[0]["source"], "builtin");
    assert_eq!(list[0]["python_path"], "/bin/false");
    assert!(list[1..].iter().all(|entry| entry["source"] == "saved" && entry["state"] == "stopped"), "{list:?}");
}

// ---- the file of saved ones ----------------------------------------------------------------------------------------

#[test]
fn the_saved_file_has_the_originals_format_and_is_for_its_owner_alone() {
    let folder = Folder::new();
    let mut server = start(&folder);
    add(
        &mut server,
        json!({
            "name": "full", "python_path": python(), "cwd": folder.home(), "env": {"A": "1"},
            "startup_script": "x = 1", "description": "all of it", "save": true,
        }),
    );
    add(&mut server, json!({"name": "bare", "python_path": python(), "save": true}));
    let full = json!({
        "python_path": python(), "cwd": folder.home(), "env": {"A": "1"}, "startup_script": "x = 1",
        "description": "all of it",
    });
    // The original reads an entry only where it has all five, null or not.
    let mut bare = json!({"python_path": python(), "cwd": null, "startup_script": null, "description": null});
    let mut after = saved(&folder);
    bare["env"] = after["interpreters"]["bare"]["env"].take();
    assert!(bare["env"].is_null() || bare["env"] == json!({}), "{bare}");
    assert!(fs::read_to_string(saved_file(&folder)).unwrap().matches("\"env\"").count() == 2);
    after["interpreters"]["bare"]["env"] = bare["env"].clone();
    let expected = json!({"discover_jetbrains": true, "interpreters": {"full": full, "bare": bare}});
    assert_eq!(after, expected);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&saved_file(&folder)), 0o600);
    assert_eq!(mode(&saved_dir(&folder)), 0o700);
    let mut left: Vec<_> = fs::read_dir(saved_dir(&folder)).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["interpreters.json", "interpreters.lock"], "no temporary file is left");
    // Another server, later, has them.
    drop(server);
    let mut later = start(&folder);
    assert_eq!(names_listed(&mut later), ["builtin", "bare", "full"]);
    assert_eq!(run_in(&mut later, "full", "x"), "1");
}

#[test]
fn fields_that_we_do_not_know_are_kept() {
    let folder = Folder::new();
    let before = json!({
        "discover_jetbrains": false,
        "theme": {"dark": [1, 2.5, null]},
        "interpreters": {
            "x": {"python_path": python(), "icon": "snake", "tags": ["a"]},
            "untouched": {"python_path": "/u", "later": {"deep": true}},
            "strange": {"kernel": "julia"},
            "text": "not even an object",
        },
    });
    write_saved(&folder, before.to_string());
    let mut server = start(&folder);
    assert_eq!(names_listed(&mut server), ["builtin", "untouched", "x"]);
    add(&mut server, json!({"name": "x", "python_path": python(), "description": "new", "save": true}));
    add(&mut server, json!({"name": "y", "python_path": python(), "save": true}));
    done(&mut server, "stop_interpreter", json!({"name": "y", "remove": true}));
    let mut expected = before;
    expected["interpreters"]["x"]["description"] = json!("new");
    let mut after = saved(&folder);
    for field in ["cwd", "env", "startup_script"] {
        after["interpreters"]["x"].as_object_mut().unwrap().remove(field);
    }
    assert_eq!(after, expected);
}

#[test]
fn a_file_of_8_mib_is_left_alone_and_the_reason_is_its_size() {
    let folder = Folder::new();
    let name = "x".repeat(8 << 20);
    write_saved(&folder, format!("{{\"interpreters\": {{\"{name}\": {{}}}}}}").as_bytes());
    let mut server = start(&folder);
    let adding = json!({"name": "y", "python_path": python(), "save": true});
    refused(&mut server, "add_interpreter", adding, &["left as it is", "8 MiB or more"]);
    assert!(fs::metadata(saved_file(&folder)).unwrap().len() > 8 << 20);
}

#[test]
fn a_file_that_does_not_parse_is_left_alone_and_the_rest_works() {
    for text in [
        &b"{\"interpreters\": {\"x\": {\"python_path\": \"/x\"}"[..],
        b"",
        b"[]",
        b"null",
        b"{\"interpreters\": []}",
        b"{\"interpreters\": {\"x\": {\"python_path\": \"\xff\"}}}",
    ] {
        let folder = Folder::new();
        write_saved(&folder, text);
        let path = saved_file(&folder);
        let mut server = start(&folder);
        let adding = json!({"name": "y", "python_path": python(), "save": true});
        let why = refused(&mut server, "add_interpreter", adding, &[path.to_str().unwrap(), "left as it is"]);
        assert!(why.len() > path.to_str().unwrap().len() + 60, "a reason is missing: {why}");
        expect_nothing_but_the_server(&mut server);
        refused(&mut server, "stop_interpreter", json!({"name": "x", "remove": true}), &[path.to_str().unwrap()]);
        refused(&mut server, "execute", json!({"code": "1", "interpreter": "x"}), &[path.to_str().unwrap()]);
        // The rest of the server works.
        assert_eq!(names_listed(&mut server), ["builtin"]);
        add(&mut server, json!({"name": "y", "python_path": python()}));
        assert_eq!(run_in(&mut server, "y", "1 + 1"), "2");
        refused(&mut server, "add_interpreter", json!({"name": "y", "python_path": python(), "save": true}), &[]);
        assert_eq!(run_in(&mut server, "y", "2 + 2"), "4");
        done(&mut server, "stop_interpreter", json!({"name": "y"}));
        assert_eq!(fs::read(&path).unwrap(), text, "not a byte has changed");
    }
}

/// Once the attempt to read it waited for ever.
#[test]
fn a_saved_file_that_is_a_fifo_is_left_alone_and_nothing_waits_for_it() {
    let folder = Folder::new();
    fs::create_dir_all(saved_dir(&folder)).unwrap();
    assert!(Command::new("mkfifo").arg(saved_file(&folder)).status().unwrap().success());
    let mut server = start(&folder);
    assert_eq!(names_listed(&mut server), ["builtin"]);
    refused(&mut server, "execute", json!({"code": "1", "interpreter": "x"}), &["left as it is"]);
    let adding = json!({"name": "x", "python_path": python(), "save": true});
    refused(&mut server, "add_interpreter", adding, &["left as it is"]);
}

#[test]
fn twenty_servers_that_save_at_once_lose_nothing() {
    let folder = Folder::new();
    let old = |n: usize| (format!("old-{n}"), json!({"python_path": "/old"}));
    let before: serde_json::Map<_, _> = (0..20).map(old).collect();
    write_saved(&folder, json!({"note": "kept", "interpreters": before}).to_string());
    let barrier = Arc::new(Barrier::new(20));
    let threads: Vec<_> = (0..20)
        .map(|n| {
            let (folder, barrier) = (folder.clone(), barrier.clone());
            thread::spawn(move || {
                let mut server = start(&folder);
                server.initialize();
                barrier.wait();
                let removing =
                    server.start_call("stop_interpreter", json!({"name": format!("old-{n}"), "remove": true}));
                add(&mut server, json!({"name": format!("new-{n}"), "python_path": python(), "save": true}));
                let removed = server.wait(removing);
                assert!(!removed.is_error, "{}", removed.text);
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a server saves");
    }
    let after = saved(&folder);
    let mut names: Vec<_> = after["interpreters"].as_object().unwrap().keys().cloned().collect();
    let mut expected: Vec<_> = (0..20).map(|n| format!("new-{n}")).collect();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    assert_eq!(after["note"], "kept");
}

#[test]
fn what_one_server_saves_another_sees_at_once() {
    let folder = Folder::new();
    let (mut first, mut second) = (start(&folder), start(&folder));
    assert_eq!(names_listed(&mut second), ["builtin"]);
    refused(&mut second, "execute", json!({"code": "1", "interpreter": "x"}), &["\"x\""]);
    add(&mut first, json!({"name": "x", "python_path": python(), "startup_script": "n = 7", "save": true}));
    assert_eq!(names_listed(&mut second), ["builtin", "x"]);
    assert_eq!(run_in(&mut second, "x", "n"), "7");
    done(&mut first, "stop_interpreter", json!({"name": "x", "remove": true}));
    assert_eq!(names_listed(&mut first), ["builtin"]);
}

#[test]
fn a_saved_file_that_is_a_symlink_stays_one() {
    let folder = Folder::new();
    let target = folder.path().join("dotfiles.json");
    fs::write(&target, "{\"interpreters\": {}, \"mine\": 1}").unwrap();
    fs::create_dir_all(saved_dir(&folder)).unwrap();
    symlink(&target, saved_file(&folder)).unwrap();
    let mut server = start(&folder);
    add(&mut server, json!({"name": "x", "python_path": python(), "save": true}));
    assert_eq!(fs::read_link(saved_file(&folder)).expect("still a symlink"), target);
    let after: Value = serde_json::from_slice(&fs::read(&target).unwrap()).unwrap();
    assert_eq!(after["mine"], 1);
    assert!(after["interpreters"]["x"].is_object(), "{after}");
}

#[test]
#[allow(unsafe_code)]
fn a_lock_that_another_process_holds_is_an_error_in_a_few_seconds() {
    let folder = Folder::new();
    write_saved(&folder, "{\"interpreters\": {}}");
    let before = fs::read(saved_file(&folder)).unwrap();
    let path = saved_dir(&folder).join("interpreters.lock");
    let held = OpenOptions::new().create(true).truncate(false).write(true).open(&path).unwrap();
    // SAFETY: flock(2) takes two integers and touches no memory of ours.
    assert_eq!(unsafe { libc::flock(held.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }, 0);
    let mut server = start(&folder);
    let began = Instant::now();
    let id = server.start_call("add_interpreter", json!({"name": "x", "python_path": python(), "save": true}));
    server.expect_no_answer(); // but that of the ping, while it waits
    let result = server.wait(id);
    let took = began.elapsed();
    expect_refusal(&mut server, &result, "the add", &["interpreters.lock", "held by another process"]);
    assert!((Duration::from_secs(2)..Duration::from_secs(50)).contains(&took), "{took:?}");
    assert_eq!(fs::read(saved_file(&folder)).unwrap(), before);
    drop(held);
    add(&mut server, json!({"name": "x", "python_path": python(), "save": true}));
    assert!(is_saved(&folder, "x"));
}

#[test]
fn a_home_that_cant_be_written_hinders_saving_alone() {
    let folder = Folder::new();
    let file = folder.path().join("a-file");
    fs::write(&file, "").unwrap();
    for home in [Path::new("/proc"), &file] {
        let mut server = Server::with(|builder| builder.folder(&folder).env("HOME", home));
        server.initialize();
        let first = server.ok("1 + 1");
        assert!(
            first.starts_with("[mcp-py: missing packages can't be installed: ") && first.ends_with("]\n2"),
            "{first}"
        );
        assert_eq!(server.ok("1 + 1"), "2");
        assert!(names_listed(&mut server).contains(&"builtin".to_string()));
        let adding = json!({"name": "x", "python_path": python(), "save": true});
        refused(&mut server, "add_interpreter", adding, &[home.to_str().unwrap(), ".claude-workspace"]);
        done(&mut server, "add_interpreter", json!({"name": "y", "python_path": python()}));
        assert_eq!(run_in(&mut server, "y", "2 + 2"), "4");
        done(&mut server, "stop_interpreter", json!({"name": "y"}));
        structured(&mut server, "get_session_info", json!({}));
    }
}

#[test]
fn without_home_the_user_database_knows_one() {
    // Nothing is saved here: it would go to the home of whoever runs this, as the builtin's environment does.
    let (_home, folder) = (RealHome::borrow(), Folder::new());
    let mut server = Server::with(|builder| builder.folder(&folder).env_remove("HOME"));
    server.initialize();
    assert_eq!(server.ok("1 + 1"), "2");
    assert_eq!(listed_as(&mut server, "builtin").unwrap()["state"], "running");
    add(&mut server, json!({"name": "x-of-a-check", "python_path": python()}));
    assert_eq!(run_in(&mut server, "x-of-a-check", "2 + 2"), "4");
    done(&mut server, "stop_interpreter", json!({"name": "x-of-a-check"}));
}

// ---- times ---------------------------------------------------------------------------------------------------------

/// Once a path that is not valid text ended the server.
#[test]
fn paths_that_are_not_utf_8_are_used_as_they_are_and_shown_as_text() {
    let folder = Folder::new();
    let place = |name: &str| {
        let name = OsString::from_vec([name.as_bytes(), b"-caf\xe9"].concat());
        let path = folder.path().join(name);
        fs::create_dir_all(path.join(".venv/bin")).unwrap();
        symlink(python(), path.join("pyth")).unwrap();
        symlink(python(), path.join(".venv/bin/python")).unwrap();
        path
    };
    let (home, project) = (place("home"), place("project"));
    let mut server = Server::with(|builder| {
        let builder = builder.folder(&folder).env("HOME", &home).env("TMPDIR", place("tmp")).cwd(&project);
        builder.env("CLAUDE_PROJECT_DIR", &project).env("CLAUDE_CONFIG_DIR", &home).env("PATH", &home)
    });
    assert!(server.ok("1 + 1").ends_with('2')); // venv makes no environment in such a home, which is said before it
    let info = structured(&mut server, "get_session_info", json!({}));
    assert!(info["output_dir"].as_str().unwrap().contains("tmp-caf"), "{info}");
    assert!(info["project_dir"].as_str().unwrap().contains("project-caf"), "{info}");
    for path in ["./pyth", "pyth", "~/pyth"] {
        add(&mut server, json!({"name": "x", "python_path": path}));
        assert_eq!(run_in(&mut server, "x", "1 + 1"), "2");
        done(&mut server, "stop_interpreter", json!({"name": "x"}));
    }
    add(&mut server, json!({"name": "x", "python_path": python(), "save": true}));
    let saved = home.join(".claude-workspace/python_interpreter/interpreters.json");
    fs::write(&saved, json!({"interpreters": {"z": {"python_path": "pyth", "cwd": "."}}}).to_string()).unwrap();
    assert_eq!(names_listed(&mut server), ["builtin", ".venv", "x", "z"]);
    assert_eq!(run_in(&mut server, "z", "1 + 1"), "2");
    server.expect_no_answer();
}

#[test]
fn times_are_iso_8601_in_utc_and_uptimes_are_text() {
    // The clock of the test itself first: 2024 was a leap year.
    assert_eq!(seconds_of("1970-01-01T00:00:00Z"), Some(0));
    assert_eq!(seconds_of("2024-03-01T12:30:05Z"), Some(1_709_296_205));
    assert_eq!(seconds_of("2024-03-01 12:30:05"), None);
    let folder = Folder::new();
    // A local time would be hours off.
    let mut server = start_with(&folder, |builder| builder.env("TZ", "Pacific/Kiritimati"));
    let info = structured(&mut server, "get_session_info", json!({}));
    let added = add(&mut server, json!({"name": "x", "python_path": python()}));
    let entry = listed_as(&mut server, "x").unwrap();
    for info in [info, added, entry] {
        assert!(is_recent(&info["started_at"]), "{info}");
        assert!(is_uptime(&info["uptime"]), "{info}");
        assert!(info["uptime"].as_str().unwrap().ends_with(" s"), "{info}");
    }
}

#[test]
fn a_saved_interpreter_that_did_not_start_is_looked_up_anew() {
    let folder = Folder::new();
    let entry = |script: &str| {
        let saved =
            json!({"python_path": python(), "cwd": null, "env": {}, "startup_script": script, "description": null});
        write_saved(&folder, json!({"interpreters": {"kept": saved}}).to_string());
    };
    entry("1/0");
    let mut server = Server::with(|builder| builder.folder(&folder));
    let told = server.call("execute", json!({"code": "x", "interpreter": "kept"}));
    assert!(told.is_error && told.text.contains("ZeroDivisionError"), "{told:?}");
    entry("x = 5");
    assert_eq!(server.call("execute", json!({"code": "x", "interpreter": "kept"})).text, "5");
}

/// As a volume of the network on macOS: the model refuses to sync there.
#[test]
fn what_cannot_be_synced_to_the_disk_is_saved_all_the_same() {
    let folder = Folder::new();
    let mut server = Server::with(|builder| builder.folder(&folder).env("MODEL_NO_FULLFSYNC", "1"));
    let given = json!({"name": "kept", "python_path": python(), "save": true});
    assert!(!server.call("add_interpreter", given).is_error);
    assert_eq!(saved(&folder)["interpreters"]["kept"]["python_path"], python());
}

/// Once it was: the calls that were held lined up behind one that was looking at files when the stop ended.
#[test]
#[allow(unsafe_code)]
fn a_call_that_looks_at_files_when_a_stop_ends_does_not_overtake_those_that_were_held() {
    let folder = Folder::new();
    let mut server = start(&folder);
    for (name, save) in [("x", false), ("z", true)] {
        add(&mut server, json!({"name": name, "python_path": python(), "save": save}));
    }
    let pid = run_in(&mut server, "x", "import atexit, os, time; atexit.register(time.sleep, 1); os.getpid()");
    let stop = server.start_call("stop_interpreter", json!({"name": "x"}));
    let again = server.start_call("add_interpreter", json!({"name": "x", "python_path": python()}));
    names_listed(&mut server); // the add has been looked up, and is held
    let lock = saved_dir(&folder).join("interpreters.lock");
    let held = OpenOptions::new().write(true).open(&lock).unwrap();
    // SAFETY: flock(2) takes two integers and touches no memory of ours.
    assert_eq!(unsafe { libc::flock(held.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }, 0);
    let remove = server.start_call("stop_interpreter", json!({"name": "z", "remove": true}));
    let own = server.pid();
    let waits_for_lock = || {
        let descriptors = fs::read_dir(format!("/proc/{own}/fd")).unwrap().flatten();
        descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path == lock)
    };
    procs::eventually(DEADLINE, "the removal waits for the lock", waits_for_lock);
    let cell = server.start_call("execute", json!({"code": "6 * 7", "interpreter": "x"}));
    procs::eventually(DEADLINE, "x ends", || !procs::is_alive(pid.parse().unwrap()));
    server.request("ping", json!({})); // the loop knows
    drop(held);
    assert!(server.wait(stop).text.contains("\"x\" stopped"));
    assert!(server.wait(remove).text.contains("is removed"));
    assert_eq!(server.wait(again).structured["message"], "Interpreter \"x\" started");
    assert_eq!(server.wait(cell).text, "42");
}
