//! A training loop of three minutes, as rmcp drives it in its three lifecycles at the same time; recorded for validate.py.
//!
//! `training PYTHON RECORD.PY SERVER RECORDINGS FOLDER`; the first check that fails ends the run with exit 1.
//!
//! rmcp has no limit of its own, and the server answers a client of its name after 50 s. Beside each long loop a short one is
//! cancelled in the middle.

use rmcp::model::{CallToolRequest, CallToolRequestParams, CallToolResult, ClientRequest, ProtocolVersion};
use rmcp::service::{PeerRequestOptions, RunningService};
use rmcp::transport::TokioChildProcess;
use rmcp::{ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::{json, Value};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

const EPOCHS: usize = 180; // of the long loop, which prints a line a second
const EPOCHS_SHORT: usize = 10;
const LIMIT: u64 = 50; // seconds of a call, of a client that the server does not know by name
const LATE_SECONDS_MAX: u64 = 8; // for an answer, on a loaded machine
const DEADLINE: Duration = Duration::from_secs(30); // for a line of a loop

static PASSED: AtomicUsize = AtomicUsize::new(0);

type Client = RunningService<RoleClient, ()>;

fn check(what: &str, good: bool, came: &dyn std::fmt::Debug) {
    if !good {
        println!("FAILED: {what}\n{came:?}");
        std::process::exit(1);
    }
    PASSED.fetch_add(1, Relaxed);
    println!("  ok: {what}");
}

/// A cell that prints a line a second. The file MARK-N says that line N is out.
fn training(epochs: usize, mark: &str) -> Value {
    let code = format!(
        "import time\nlosses = []\nfor epoch in range(1, {epochs} + 1):\n    losses.append(1 / (2 * epoch + 1))\n    \
         print('epoch %d loss %.4f' % (epoch, losses[-1]))\n    open('{mark}-%d' % epoch, 'w').close()\n    time.sleep(1)\n\
         'the last loss is %.4f' % losses[-1]"
    );
    json!({ "code": code })
}

fn call_of(tool: &'static str, arguments: Value) -> CallToolRequestParams {
    CallToolRequestParams::new(tool).with_arguments(arguments.as_object().cloned().unwrap_or_default())
}

/// The text of a result that is no error.
async fn text(client: &Client, who: &str, tool: &'static str, arguments: Value) -> String {
    let result: CallToolResult = client.call_tool(call_of(tool, arguments)).await.expect("a result");
    let result = serde_json::to_value(result).expect("JSON");
    check(&format!("{who}: {tool} is no error"), result["isError"] != true, &result);
    result["content"][0]["text"].as_str().unwrap_or_default().to_owned()
}

/// Checks that an answer has the next lines of a loop, and returns how many there are by now and what else it says.
fn hear(who: &str, before: usize, answer: &str) -> (usize, String) {
    let (lines, rest): (Vec<&str>, Vec<&str>) = answer.lines().partition(|line| line.starts_with("epoch "));
    let wanted: Vec<String> = (before + 1..=before + lines.len())
        .map(|epoch| format!("epoch {epoch} loss {:.4}", 1.0 / (2 * epoch + 1) as f64))
        .collect();
    check(&format!("{who}: the next {} lines", lines.len()), lines == wanted, &answer);
    (before + lines.len(), rest.join("\n"))
}

async fn long_loop(client: &Client, who: &str, mark: &str) {
    let began = Instant::now();
    let answer = text(client, who, "execute", training(EPOCHS, mark)).await;
    let seconds = began.elapsed().as_secs();
    check(&format!("{who}: answered after {LIMIT} s"), (LIMIT..LIMIT + LATE_SECONDS_MAX).contains(&seconds), &seconds);
    let (mut lines, mut said) = hear(who, 0, &answer);
    // The time in the note is the cell's, which begins later than the call's.
    let goes_on = said.starts_with("[mcp-py: cell 1 still runs after ")
        && said.ends_with(" s and goes on by itself; wait shows the rest, interrupt stops it]");
    check(&format!("{who}: it says so"), goes_on, &answer);
    let mut waits = 0;
    while lines < EPOCHS {
        let answer = text(client, who, "wait", json!({})).await;
        (lines, said) = hear(who, lines, &answer);
        waits += 1;
    }
    check(&format!("{who}: three waits"), waits == 3, &waits);
    let end = said.starts_with("[mcp-py: cell 1 ended after ") && said.ends_with("]\n'the last loss is 0.0028'");
    check(&format!("{who}: the last has the end and the value"), end, &said);
    let losses = text(client, who, "execute", json!({"code": "len(losses)"})).await;
    check(&format!("{who}: the variables are there, and no more lines"), losses == EPOCHS.to_string(), &losses);
}

async fn cancelled(client: &Client, who: &str, mark: &str) {
    let request =
        ClientRequest::CallToolRequest(CallToolRequest::new(call_of("execute", training(EPOCHS_SHORT, mark))));
    let call = client.send_cancellable_request(request, PeerRequestOptions::no_options()).await.expect("sent");
    let began = Instant::now();
    while !Path::new(&format!("{mark}-2")).exists() {
        if began.elapsed() > DEADLINE {
            check(&format!("{who}: a second line"), false, &DEADLINE);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    call.cancel(Some("enough".into())).await.expect("cancelled");
    let answer = text(client, who, "execute", json!({"code": "len(losses)"})).await;
    // The lines may stand in the note, behind other words of it.
    let lines = answer.matches("epoch ").count();
    let wanted =
        (1..=lines).map(|epoch| answer.find(&format!("epoch {epoch} loss {:.4}", 1.0 / (2 * epoch + 1) as f64)));
    let places: Vec<usize> = wanted.flatten().collect();
    check(
        &format!("{who}: what it had printed is told"),
        lines >= 2 && places.len() == lines && places.is_sorted(),
        &answer,
    );
    check(&format!("{who}: and that it was cancelled"), answer.contains("was cancelled; "), &answer);
    check(&format!("{who}: and the variables are there"), answer.ends_with(&format!("\n{lines}")), &answer);
    let again = text(client, who, "execute", json!({"code": "len(losses)"})).await;
    check(&format!("{who}: nothing is told twice"), again == lines.to_string(), &again);
}

async fn connected(words: &[String], mode: ClientLifecycleMode, recording: &str) -> Client {
    let [python, record, server, recordings, folder] = words else { panic!("see the head of training.rs") };
    let mut command = tokio::process::Command::new(python);
    command.args([record, &format!("{recordings}/training-rmcp-{recording}.jsonl"), server, "server"]);
    command.env("HOME", folder).env("TMPDIR", folder).env("MCP_PY_PYTHON", python);
    ().serve_with_lifecycle(TokioChildProcess::new(command).expect("a server"), mode).await.expect("a connection")
}

async fn lifecycle(words: &[String], name: &str, mode: ClientLifecycleMode) {
    let folder = &words[4];
    let long = async {
        let client = connected(words, mode.clone(), &format!("{name}-long")).await;
        long_loop(&client, &format!("rmcp {name}"), &format!("{folder}/{name}-long")).await;
        client.cancel().await.expect("an end");
    };
    let short = async {
        let client = connected(words, mode.clone(), &format!("{name}-cancelled")).await;
        cancelled(&client, &format!("rmcp {name}, cancelled"), &format!("{folder}/{name}-cancelled")).await;
        client.cancel().await.expect("an end");
    };
    tokio::join!(long, short);
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let modern = vec![ProtocolVersion::V_2026_07_28];
    let auto = ClientLifecycleMode::Auto { preferred_versions: modern.clone(), legacy_version: None };
    tokio::join!(
        lifecycle(&words, "legacy", ClientLifecycleMode::Initialize),
        lifecycle(&words, "modern", ClientLifecycleMode::Discover { preferred_versions: modern }),
        lifecycle(&words, "auto", auto),
    );
    println!("{} training checks passed", PASSED.load(Relaxed));
}
