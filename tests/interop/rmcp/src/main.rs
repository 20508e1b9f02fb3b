//! rmcp as a client of the server, over stdio, in its three lifecycles; recorded through record.py, for validate.py.
//!
//! `interop-rmcp PYTHON RECORD.PY SERVER RECORDINGS FOLDER`; the first check that fails ends the run with exit 1.

use rmcp::model::{CallToolRequest, CallToolRequestParams, CallToolResult, ClientRequest, ProgressNotificationParam, ProtocolVersion};
use rmcp::service::{NotificationContext, PeerRequestOptions, RequestHandle, RunningService};
use rmcp::transport::TokioChildProcess;
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::{json, Value};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PICTURE: &str = "import base64\nclass P:\n    def _repr_png_(self): return base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAA\
AfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')\nP()";

const STEPS: &str = "import time\nfor step in range(4):\n    print('step', step)\n    time.sleep(1.1)";

type Client = RunningService<RoleClient, Host>;

/// Keeps what it is told of progress.
#[derive(Clone, Default)]
struct Host(Arc<Mutex<Vec<ProgressNotificationParam>>>);

impl ClientHandler for Host {
    async fn on_progress(&self, params: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        self.0.lock().expect("a lock").push(params);
    }
}

/// A call that can be cancelled; rmcp gives each a progress token.
async fn begin(client: &Client, code: &str, options: PeerRequestOptions) -> RequestHandle<RoleClient> {
    let request = ClientRequest::CallToolRequest(CallToolRequest::new(call_of("execute", json!({"code": code}))));
    client.send_cancellable_request(request, options).await.expect("sent")
}

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
            Host::default().serve_with_lifecycle(transport, mode).await.expect("a connection")
        };
        let client = connected(mode.clone(), "").await;
        let mut check = |what: &str, good: bool, came: &dyn std::fmt::Debug| check(&mut passed, &format!("rmcp {name}: {what}"), good, came);
        let tools = client.list_all_tools().await.expect("tools");
        check("nine tools", tools.len() == 9, &tools);
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
        // Of 4.4 s, with a time-out of 3 s that each progress puts off.
        let options = PeerRequestOptions::with_timeout(Duration::from_secs(3)).reset_timeout_on_progress();
        client.service().0.lock().expect("a lock").clear();
        let handle = begin(&client, STEPS, options).await;
        let (token, answer) = (handle.progress_token.clone(), handle.await_response().await);
        check("progress keeps a long call alive", answer.is_ok(), &answer);
        let told = client.service().0.lock().expect("a lock").clone();
        let rising = told.windows(2).all(|pair| pair[0].progress < pair[1].progress);
        let ours = told.iter().all(|one| one.progress_token == token && one.message.as_ref().is_some_and(|text| text.starts_with("step ")));
        check("progress rises, with the last line printed", told.len() >= 2 && rising && ours, &told);
        // Dropped by the client: the cell is cancelled, and the interpreter is free.
        let handle = begin(&client, "while True: pass", PeerRequestOptions::no_options()).await;
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
