//! The control endpoints, counts and recorded requests.

use bytes::Bytes;
use coze_sim::{CLIENT_ID, Config, TOKEN, fingerprint};
use serde_json::{Value, json};

use crate::support::{Api, config, question, streamed, text};

#[tokio::test]
async fn requests_are_counted_by_route_and_outcome() {
    let api = Api::start(config()).await;
    api.post("/v3/chat", streamed("x")).await;
    api.post("/v3/chat", json!({})).await;
    api.get("/v1/bots/1").await;
    api.get("/v1/bots/2").await;
    api.get("/nowhere").await;
    let counts = api.get("/_sim/counts").await.json();
    assert_eq!(counts["routes"]["POST /v3/chat"], json!({ "requests": 2, "outcomes": { "0": 1, "4000": 1 } }));
    assert_eq!(counts["routes"]["GET /v1/bots/:bot_id"], json!({ "requests": 2, "outcomes": { "4200": 2 } }));
    assert_eq!(counts["routes"]["unknown"]["requests"], 1);
    assert_eq!((&counts["max_running_chats"], &counts["running_chats"]), (&json!(1), &json!(0)));
    assert_eq!((&counts["max_in_flight"], &counts["in_flight"]), (&json!(1), &json!(0)), "control is not counted");
    assert_eq!(serde_json::to_value(api.sim.counts()).expect("json"), counts);
    assert_eq!(api.call("DELETE", "/_sim/counts", Value::Null).await.json(), json!({ "cleared": true }));
    assert!(api.sim.counts().routes.is_empty() && api.sim.requests().is_empty());
}

#[tokio::test]
async fn a_request_is_recorded_without_its_token() {
    let api = Api::start(config()).await;
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str()), ("x-tenant-id", "acme")];
    let body = question(&"long ".repeat(100)).to_string();
    let answer = api.try_send("POST", "/v3/chat?a=b", &headers, body.clone().into()).await.expect("an answer");
    let secret = "code_0000000000000000";
    api.post("/api/permission/oauth2/token", json!({ "client_id": CLIENT_ID, "code": secret })).await;
    let list = api.get("/_sim/requests").await.json();
    let (chat, oauth) = (&list[0], &list[1]);
    assert_eq!(
        (&chat["number"], &chat["method"], &chat["route"]),
        (&json!(0), &json!("POST"), &json!("POST /v3/chat"))
    );
    assert_eq!((&chat["path"], &chat["query"]), (&json!("/v3/chat"), &json!("a=b")));
    assert_eq!((&chat["token"], &chat["tenant"]), (&json!(fingerprint(TOKEN)), &json!("acme")));
    assert_eq!((&chat["body"], &chat["body_bytes"]), (&json!(body[..64]), &json!(body.len())));
    assert_eq!(chat["body_sha256"].as_str().map(str::len), Some(64));
    assert_eq!((&chat["status"], &chat["outcome"]), (&json!(200), &json!("0")));
    assert_eq!(chat["logid"], answer.header("x-tt-logid"));
    assert!(chat["at_ms"].is_u64());
    assert_eq!((&oauth["body"], &oauth["outcome"]), (&json!(""), &json!("invalid_request")));
    let all = format!("{list} {:?}", api.sim.requests());
    assert!(!all.contains(TOKEN) && !all.contains(secret));
}

#[tokio::test]
async fn no_secret_is_in_the_debug_text_of_a_configuration() {
    let shown = format!("{:?}", Config::default());
    assert!(!shown.contains(TOKEN) && !shown.contains(coze_sim::CLIENT_SECRET), "{shown}");
    assert!(shown.contains(&fingerprint(TOKEN)));
}

#[tokio::test]
async fn faults_are_scripted_from_outside() {
    let api = Api::start(config()).await;
    let script = json!([
        { "route": "/v3/chat", "times": 2, "kind": { "code": { "code": 4009 } } },
        { "method": "POST", "delay_ms": 1, "kind": { "status": { "status": 429, "body": {}, "headers": { "Retry-After": "1" } } } },
        { "kind": "invalid_json" },
    ]);
    assert_eq!(api.post("/_sim/faults", script).await.json(), json!({ "waiting": 3 }));
    assert_eq!(api.post("/_sim/faults", json!({ "kind": { "html": {} } })).await.json(), json!({ "waiting": 4 }));
    assert_eq!(api.post("/v3/chat", question("x")).await.code(), (200, 4009));
    let waiting = api.get("/_sim/faults").await.json();
    assert_eq!((waiting.as_array().map(Vec::len), &waiting[0]["times"]), (Some(4), &json!(1)));
    assert_eq!(api.call("DELETE", "/_sim/faults", Value::Null).await.json(), json!({ "removed": 4 }));
    assert_eq!(api.post("/v3/chat", question("x")).await.code(), (200, 0));
}

#[tokio::test]
async fn every_kind_of_fault_can_be_written_in_json() {
    let api = Api::start(config()).await;
    let readme = include_str!("../../README.md");
    let table = readme.split_once("| `kind` |").expect("the table").1;
    let kinds: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")).collect();
    assert_eq!(kinds.len(), 13);
    for (kind, _) in kinds {
        let body = format!("{{\"kind\":{kind}}}");
        let answer = api.try_send("POST", "/_sim/faults", &[], body.into()).await.expect("an answer");
        assert_eq!(answer.status, 200, "{kind}: {}", answer.text);
    }
}

#[tokio::test]
async fn bad_control_input_is_told_what_is_wrong() {
    let api = Api::start(config()).await;
    for (path, body, status, why) in [
        ("/_sim/faults", "{", 400, "EOF"),
        ("/_sim/faults", "7", 400, "invalid type"),
        ("/_sim/faults", r#"{"route":"/v3/chat","kind":"explode"}"#, 400, "explode"),
        ("/_sim/faults", r#"{"path":"/v3/chat"}"#, 400, "path"),
        ("/_sim/faults", r#"{"kind":{"code":{}}}"#, 400, "code"),
        ("/_sim/faults", r#"{"kind":{"cut":{"after":-1}}}"#, 400, "-1"),
        ("/_sim/faults", r#"[{"times":1},{"times":0}]"#, 400, "times"),
        ("/_sim/device/approve", r#"{"user_code":"x"}"#, 404, "user_code"),
        ("/_sim/device/approve", r#"{}"#, 400, "user_code"),
        ("/_sim/push", r#"{"webhook":{"url":"ftp://x"}}"#, 400, "http://"),
        ("/_sim/push", r#"{"webhook":{"url":"no url"}}"#, 400, "no url"),
        ("/_sim/push", r#"{"webhook":{"url":"http://x","headers":{"a b":"c"}}}"#, 400, "header"),
        ("/_sim/push", r#"{"letter":{}}"#, 400, "letter"),
        ("/_sim/nothing", "{}", 404, "/_sim/nothing"),
    ] {
        let answer = api.try_send("POST", path, &[], body.into()).await.expect("an answer");
        let error = text(&answer.json()["error"]);
        assert!(answer.status == status && error.contains(why), "{path} {body}: {} {error}", answer.status);
    }
    let answer = api.try_send("POST", "/_sim/faults", &[], Bytes::from(vec![b' '; (1 << 20) + 1])).await;
    assert_eq!(answer.expect("an answer").status, 400);
    assert_eq!(api.get("/_sim/faults").await.json(), json!([]), "a list is taken whole or not at all");
}

#[tokio::test]
async fn a_device_is_approved_and_tokens_expire_from_outside() {
    let mut api = Api::start(config()).await;
    let device = api.post("/api/permission/oauth2/device/code", json!({ "client_id": CLIENT_ID })).await.json();
    let body = json!({
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code", "client_id": CLIENT_ID,
        "device_code": device["device_code"],
    });
    let approved = api.post("/_sim/device/approve", json!({ "user_code": device["user_code"] })).await.json();
    assert_eq!(approved, json!({ "user_code": device["user_code"], "approved": true }));
    let token = text(&api.post("/api/permission/oauth2/token", body).await.json()["access_token"]);
    api.token = token;
    assert_eq!(api.get("/v1/users/me").await.status, 200);
    assert_eq!(api.post("/_sim/tokens/expire", Value::Null).await.json(), json!({ "expired": true }));
    assert_eq!(api.get("/v1/users/me").await.status, 401);
}

#[tokio::test]
async fn control_can_be_switched_off() {
    let api = Api::start(Config { control: false, ..config() }).await;
    assert_eq!(api.get("/_sim/counts").await.code(), (404, 4000));
}
