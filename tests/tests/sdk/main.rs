//! The platform's published SDKs against the simulated platform: they parse every answer (coze-platform.md §7.2), and fail on
//! bad ones as they do on the platform's (§7.3, which is the table `sdk/bad_answers.json`). Then through a gateway made of the
//! layers (§7.4, which is the table `sdk/gateway.json`).

mod gateway;

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Router,
    http::{Uri, header::CONTENT_TYPE},
};
use coze_sim::{App, BOT, CLIENT_ID, CLIENT_SECRET, Config, Limits, OAuth, Sim, TOKEN, WORKFLOW, WORKSPACE};
use coze_tests::{Sdk, free_port, run_sdk};
use gateway::{Account, assert_no_token_crosses, gateway, keys};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const BAD_ANSWERS: &str = include_str!("../../sdk/bad_answers.json");

/// What came of the calls, by name: `true` and what the SDK returned, or `false` and what it raised.
type Report = BTreeMap<String, (bool, Value)>;

/// What both SDKs make of right answers.
fn right_answers() -> Vec<(&'static str, Value)> {
    let chat = |status| json!({ "status": status, "has_ids": true });
    let messages = json!(["assistant/answer", "assistant/verbose"]);
    vec![
        ("chat.create", chat("in_progress")),
        ("chat.retrieve", chat("in_progress")),
        ("chat.messages.list", messages.clone()),
        ("chat.cancel", chat("canceled")),
        ("chat.create_and_poll", json!({"status": "completed", "has_ids": true, "messages": messages, "tokens": true})),
        ("chat.submit_tool_outputs", chat("in_progress")),
        ("bots.retrieve", json!({ "bot_id": BOT })),
        ("bots.retrieve.new", json!({ "bot_id": BOT })),
        ("conversations.create", json!({ "has_id": true })),
        ("conversations.retrieve", json!({ "has_id": true })),
        ("conversations.list", json!({ "found": true })),
        ("conversations.messages", json!({ "found": true, "has_more": false })),
        ("files.upload", json!({ "file_name": "bad_answers.json", "whole": true })),
        ("workflows.runs.create", json!({ "is_json": true, "has_debug_url": true })),
        ("workspaces.list", json!({ "some": true })),
        ("users.me", json!({ "has_id": true })),
        ("oauth.jwt", json!({ "has_token": true, "absolute": true })),
        ("oauth.web", json!({ "has_token": true, "absolute": true, "rotated": true })),
        ("oauth.pkce", json!({ "has_token": true, "absolute": true })),
        ("oauth.sessions", json!({ "own": true, "other": 4002 })),
        ("oauth.expired", json!({ "codes": [4100, 700_012_006], "renewed": true })),
        ("templates.duplicate", json!({ "type": "agent", "name": "Copy" })),
        ("variables", json!({ "own": { "color": "red", "size": "" }, "other": 0 })),
        ("conversations.messages.life", json!({ "content": "ho", "meta_data": { "a": "b" }, "gone": 4005 })),
        ("workflows.runs.run_histories", json!({ "status": "Success", "output": r#"{"output":"hi"}"# })),
        ("oauth.device", json!({ "has_token": true, "absolute": true, "has_url": true })),
    ]
}

/// A stream as an SDK shows it.
fn stream(events: &[&str], text: &str) -> Value {
    json!({ "events": events, "text": text })
}

const CHAT: [&str; 5] = [
    "conversation.chat.created",
    "conversation.chat.in_progress",
    "conversation.message.delta",
    "conversation.message.completed",
    "conversation.chat.completed",
];
/// After a tool: the chat is there already, and the first message is the tool's.
const AFTER_TOOL: [&str; 4] = [
    "conversation.chat.in_progress",
    "conversation.message.completed",
    "conversation.message.delta",
    "conversation.chat.completed",
];
/// A workflow that asked back and goes on.
fn resumed(events: &[&str]) -> Value {
    json!({ "asked": "Interrupt", "events": events, "text": r#"Paris{"output":"Paris"}"# })
}

/// A bot is listed, and chats, while it is published; not every SDK can end that.
fn bot_life(unpublished: Option<Value>) -> Value {
    let mut life = json!({
        "said": ["Sale", "sells", "Sell.", "Hello!"], "draft": [false, 4015], "published": [true, "in_progress"],
    });
    if let Some(unpublished) = unpublished {
        life["unpublished"] = unpublished;
    }
    life
}

const WORKFLOW_TEXT: &str = r#"hi{"output":"hi"}"#;

/// Runs a driver against a simulated platform, and a server of those bad answers that no platform gives.
async fn drive(sdk: Sdk) -> Report {
    let (app, key) = App::with_key("20000000000000000000000000000002.app.coze").expect("there is randomness");
    let jwt = json!({ "client_id": app.client_id, "key_id": app.keys[0].0, "key": key });
    let mut config = Config {
        limits: Limits { chat_qps: 0, workflow_qps: 0, upload_qps: 0, ..Limits::default() },
        oauth: OAuth { device_interval: Duration::ZERO, ..OAuth::default() },
        ..Config::default()
    };
    let account = Account { client_id: app.client_id.clone(), key_id: app.keys[0].0.clone(), private_key: key };
    config.apps.push(app);
    let sim = Sim::start(config).await.expect("a free port");
    let stranger = Account { key_id: "another".into(), ..account.clone() };
    let down = format!("http://127.0.0.1:{}", free_port());
    let long = Duration::from_secs(60);
    let gateways = json!({
        "gateway": gateway(sim.url(), &account, long).await,
        "slow": gateway(sim.url(), &account, Duration::from_millis(200)).await,
        "down": gateway(&down, &account, long).await,
        "stranger": gateway(sim.url(), &stranger, long).await,
    });
    let settings = json!({
        "bot": BOT, "token": TOKEN, "workflow": WORKFLOW, "workspace": WORKSPACE, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET,
        "jwt": jwt, "canned": canned().await, "gateways": gateways, "keys": keys(),
    });
    let calls = run_sdk(sdk, "drive", sim.url(), &settings).await;
    assert_no_token_crosses(&sim);
    calls.into_iter().map(|call| (call.name, (call.ok, call.got))).collect()
}

/// A server that answers `/NUMBER/…` with the event stream in that row of the table.
async fn canned() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let answer = |uri: Uri| async move {
        let number: usize = uri.path().split('/').nth(1).and_then(|n| n.parse().ok()).expect("a number");
        ([(CONTENT_TYPE, "text/event-stream")], bad_answers()[number]["raw"].as_str().expect("a stream").to_owned())
    };
    tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
    url
}

fn bad_answers() -> Vec<Value> {
    serde_json::from_str(BAD_ANSWERS).expect("it is an array")
}

/// Takes what is expected out of the report; returns what is not so.
fn compare(report: &mut Report, name: &str, expected: (bool, Value)) -> Option<String> {
    let got = report.remove(name);
    (got.as_ref() != Some(&expected)).then(|| format!("{name}\n  expected {expected:?}\n  got      {got:?}"))
}

/// Each call came out as it should, and there were no others.
async fn assert_drives(sdk: Sdk, name: &str, of_its_own: Vec<(&str, (bool, Value))>) {
    let mut report = drive(sdk).await;
    let right = right_answers().into_iter().map(|(name, got)| (name, (true, got)));
    let mut wrong: Vec<String> =
        right.chain(of_its_own).filter_map(|(name, expected)| compare(&mut report, name, expected)).collect();
    for row in bad_answers().into_iter().chain(gateway::rows()) {
        // An SDK that raises says what; an answer that it mistakes for a right one has no type.
        let expected = row[name].clone();
        let expected = (expected.get("type").is_none(), expected);
        wrong.extend(compare(&mut report, row["name"].as_str().expect("a name"), expected));
    }
    wrong.extend(report.iter().map(|(name, got)| format!("{name}: nobody expects it\n  got      {got:?}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn cozepy_understands_the_simulated_platform() {
    let asynchronous = json!({ "users": 8, "text": "You said: hello", "file_name": "bad_answers.json", "pages": true });
    let of_its_own = vec![
        // It swallows `done`, and what it does not know is `unknown`.
        ("chat.stream", (true, stream(&CHAT, "You said: hello"))),
        ("chat.submit_tool_outputs.stream", (true, stream(&AFTER_TOOL, "The tool said: 42"))),
        ("workflows.runs.stream", (true, stream(&["Message"], WORKFLOW_TEXT))),
        ("workflows.runs.resume", (true, resumed(&["Message"]))),
        ("workflows.chat.stream", (true, stream(&CHAT, "You said: hello"))),
        ("workflows.list", (true, json!({ "listed": ["Echo"], "name": "Echo" }))),
        ("bots.life", (true, bot_life(Some(json!([false, 4015]))))),
        ("conversations.life", (true, json!({ "name": "trip", "section": true, "gone": 4002 }))),
        ("conversations.messages.pages", (true, json!({ "asc": "abcde", "desc": "edcba" }))),
        ("conversations.messages.feedback", (true, json!({ "unknown": 4005 }))),
        ("files.retrieve", (true, json!({ "name": "报告; 1.txt", "bytes": 5 }))),
        ("async", (true, asynchronous)),
        ("oauth.device.pending", (false, json!({ "type": "CozePKCEAuthError" }))),
        ("oauth.device.refused", (false, json!({ "type": "CozePKCEAuthError" }))),
        ("oauth.refreshed_twice", (false, json!({ "type": "CozeAPIError", "code": null, "logid": true }))),
    ];
    assert_drives(Sdk::Python, "cozepy", of_its_own).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coze_api_understands_the_simulated_platform() {
    let bad_request = json!({ "type": "BadRequestError", "status": 400, "logid": true });
    let with_done = |events: &[&'static str]| [events, &["done"]].concat();
    let of_its_own = vec![
        ("chat.stream", (true, stream(&with_done(&CHAT), "You said: hello"))),
        ("chat.submit_tool_outputs.stream", (true, stream(&with_done(&AFTER_TOOL), "The tool said: 42"))),
        ("workflows.runs.stream", (true, stream(&["Message", "Done"], WORKFLOW_TEXT))),
        ("workflows.runs.resume", (true, resumed(&["Message", "Done"]))),
        ("workflows.chat.stream", (true, stream(&with_done(&CHAT), "You said: hello"))),
        ("bots.life", (true, bot_life(None))),
        ("conversations.clear", (true, json!({ "section": true }))),
        ("oauth.device.pending", (false, bad_request.clone())),
        ("oauth.device.refused", (false, bad_request.clone())),
        ("oauth.refreshed_twice", (false, bad_request)),
    ];
    assert_drives(Sdk::Js, "@coze/api", of_its_own).await;
}
