//! rmcp as a client of the server, over stdio, in its three lifecycles; recorded through record.py, for validate.py.
//!
//! `interop-rmcp PYTHON RECORD.PY SERVER RECORDINGS FOLDER`; the first check that fails ends the run with exit 1.

use rmcp::model::{CallToolRequestParams, CallToolResult, ProtocolVersion};
use rmcp::service::{PeerRequestOptions, RunningService};
use rmcp::transport::TokioChildProcess;
use rmcp::{ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::{json, Value};
use std::time::{Duration, Instant};

const PICTURE: &str = "import base64\nclass P:\n    def _repr_png_(self): return base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAA\
AfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')\nP()";

type Client = RunningService<RoleClient, ()>;

fn check(passed: &mut u32, what: &str, good: bool, came: &dyn std::fmt::Debug) {
    if !good {
        println!("FAILED: {what}\n{came:?}");
        std::process::exit(1);
    }
    *passed += 1;
    println!("  ok: {what}");
}

fn call_of(tool: &'static str, arguments: Value) -> CallToolRequestParams {
    CallToolRequestParams::new(tool).with_arguments(arguments.as_object().cloned().unwrap_or_default())
}

async fn call(client: &Client, tool: &'static str, arguments: Value) -> Value {
    let result: CallToolResult = client.call_tool(call_of(tool, arguments)).await.expect("a result");
    serde_json::to_value(result).expect("JSON")
}

async fn text(client: &Client, code: &str) -> String {
    let result = call(client, "execute", json!({"code": code})).await;
    result["content"][0]["text"].as_str().unwrap_or_default().to_owned()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [python, record, server, recordings, folder] = &words[..] else { panic!("see the head of main.rs") };
    let modern = vec![ProtocolVersion::V_2026_07_28];
    let modes = [
        ("legacy", ClientLifecycleMode::Initialize),
        ("modern", ClientLifecycleMode::Discover { preferred_versions: modern.clone() }),
        ("auto", ClientLifecycleMode::Auto { preferred_versions: modern, legacy_version: None }),
    ];
    let mut passed = 0;
    for (name, mode) in modes {
        let connected = async |mode: ClientLifecycleMode, recording: &str| -> Client {
            let mut command = tokio::process::Command::new(python);
            command.args([record, &format!("{recordings}/rmcp-{name}{recording}.jsonl"), server, "server"]);
            command.env("HOME", folder).env("TMPDIR", folder).env("MCP_PY_PYTHON", python);
            let transport = TokioChildProcess::new(command).expect("a server");
            ().serve_with_lifecycle(transport, mode).await.expect("a connection")
        };
        let client = connected(mode.clone(), "").await;
        let mut check = |what: &str, good: bool, came: &dyn std::fmt::Debug| check(&mut passed, &format!("rmcp {name}: {what}"), good, came);
        let tools = client.list_all_tools().await.expect("tools");
        check("seven tools", tools.len() == 7, &tools);
        let two = text(&client, "x = 5\n1 + 1").await;
        check("1 + 1 is 2", two == "2", &two);
        let ten = text(&client, "x * 2").await;
        check("variables persist", ten == "10", &ten);
        let failed = call(&client, "execute", json!({"code": "print('before')\n1/0"})).await;
        check("an exception is an error with its output", failed["isError"] == true && failed.to_string().contains("before\\nTraceback"), &failed);
        let picture = call(&client, "execute", json!({"code": PICTURE})).await;
        check("a picture is an image block", picture["content"][1]["mimeType"] == "image/png", &picture);
        let info = call(&client, "get_session_info", json!({})).await;
        check("a structured result", info["structuredContent"]["server_pid"].is_u64(), &info);
        let late = call(&client, "execute", json!({"code": "while True: pass", "timeout": 0.5})).await;
        check("a time-out says so", late["isError"] == true && late.to_string().contains("timeout of 0.5 s"), &late);
        let unknown = client.call_tool(call_of("no_such_tool", json!({}))).await;
        check("an unknown tool is an error", unknown.is_err(), &unknown);
        // Dropped by the client: the cell is cancelled, and the interpreter is free.
        let request = rmcp::model::ClientRequest::CallToolRequest(rmcp::model::CallToolRequest::new(call_of("execute", json!({"code": "while True: pass"}))));
        let handle = client.send_cancellable_request(request, PeerRequestOptions::no_options()).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let began = Instant::now();
        handle.cancel(Some("enough".into())).await.expect("cancelled");
        let free = text(&client, "x + 1").await;
        check("a cancelled call frees the interpreter", free.ends_with('6') && began.elapsed().as_secs() < 4, &free);
        client.cancel().await.expect("an end");
        let again = connected(mode, "-again").await;
        let fresh = text(&again, "'x' in globals()").await;
        check("a new connection is a new session", fresh == "False", &fresh);
        again.cancel().await.expect("an end");
    }
    println!("{passed} rmcp checks passed");
}
