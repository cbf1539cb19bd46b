//! What goes wrong on purpose.

use std::{collections::BTreeMap, io::ErrorKind, time::Duration};

use coze_sim::{BOT, CLIENT_ID, CLIENT_SECRET, Fault, FaultKind};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Api, config, io_kind, question, streamed, text};

async fn api(kind: FaultKind) -> Api {
    let api = Api::start(config()).await;
    api.sim.fault(Fault::new("/v3/chat", kind)).expect("possible");
    api
}

#[tokio::test]
async fn a_fault_takes_the_requests_it_is_for() {
    let api = Api::start(config()).await;
    let code = |code| FaultKind::Code { code, msg: "x".into(), status: 200, headers: BTreeMap::new() };
    for fault in [
        Fault { skip: 1, times: 2, ..Fault::new("/v3/chat", code(4009)) },
        Fault { method: Some("get".into()), ..Fault::new("/v1/bots/:bot_id", code(1)) },
        Fault { method: Some("POST".into()), ..Fault::new("/v1/users/me", code(2)) },
        Fault::new("/v1/users/me", code(3)),
        Fault::new("*", code(4)),
        Fault::new("/v3/chat", code(5)),
    ] {
        api.sim.fault(fault).expect("possible");
    }
    // The first chat is let by, and so falls to the fault for any route.
    let mut codes = Vec::new();
    for _ in 0..5 {
        codes.push(api.post("/v3/chat", question("x")).await.code().1);
    }
    assert_eq!(codes, [4, 4009, 4009, 5, 0]);
    assert_eq!(api.get(&format!("/v1/bots/{BOT}")).await.code().1, 1);
    assert_eq!(api.get("/v1/users/me").await.code().1, 3);
    assert_eq!(api.get("/v1/users/me").await.code().1, 0);
    assert_eq!((api.sim.clear_faults(), api.sim.clear_faults()), (1, 0), "nobody posts to users/me");
}

#[tokio::test]
async fn a_gateway_answers_with_a_status_and_headers() {
    let headers = [("X-RateLimit-Remaining", "0"), ("Retry-After", "60")];
    let headers: BTreeMap<_, _> = headers.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let api = api(FaultKind::Status { status: 429, body: Some(json!({})), headers }).await;
    let answer = api.post("/v3/chat", streamed("x")).await;
    assert_eq!((answer.status, answer.text.as_str()), (429, "{}"));
    assert_eq!((answer.header("x-ratelimit-remaining"), answer.header("retry-after")), ("0", "60"));
    let none = FaultKind::Status { status: 502, body: None, headers: BTreeMap::new() };
    api.sim.fault(Fault::new("/v3/chat", none)).expect("possible");
    let answer = api.post("/v3/chat", question("x")).await;
    assert_eq!((answer.status, answer.text.as_str(), answer.header("content-type")), (502, "", ""));
    api.sim.fault(Fault::new("/v3/chat", FaultKind::Html { status: 504 })).expect("possible");
    let answer = api.post("/v3/chat", question("x")).await;
    assert_eq!((answer.status, answer.header("content-type"), answer.header("x-tt-logid")), (504, "text/html", ""));
    assert!(answer.text.contains("504 Gateway Timeout") && answer.text.contains("Tengine"));
    let counts = api.sim.counts();
    assert_eq!(counts.outcomes("POST /v3/chat", "http 429"), 1);
    assert_eq!(counts.running_chats, 0, "no chat began");
}

#[tokio::test]
async fn the_platform_answers_with_a_code_instead_of_a_stream() {
    let msg = "server issues".to_owned();
    let api = api(FaultKind::Code { code: 5000, msg, status: 200, headers: BTreeMap::new() }).await;
    let answer = api.post("/v3/chat", streamed("x")).await;
    assert!(answer.header("content-type").starts_with("application/json"));
    assert_eq!((answer.code(), &answer.json()["msg"]), ((200, 5000), &json!("server issues")));
    assert_eq!(answer.json()["detail"]["logid"], answer.header("x-tt-logid"));
}

#[tokio::test]
async fn a_connection_is_reset_before_a_byte() {
    let api = api(FaultKind::Reset).await;
    let error = api.try_send("POST", "/v3/chat", &[], "{}".into()).await.expect_err("a reset");
    assert_eq!(io_kind(&*error), Some(ErrorKind::ConnectionReset), "{error:?}");
    assert_eq!(api.post("/v3/chat", question("x")).await.code(), (200, 0));
    assert_eq!(api.sim.counts().outcomes("POST /v3/chat", "reset"), 1);
    assert_eq!(api.sim.counts().in_flight, 0);
}

#[tokio::test]
async fn a_stream_is_cut_with_and_without_a_broken_connection() {
    for abort in [true, false] {
        let api = api(FaultKind::Cut { after: 3, abort }).await;
        let answer = api.post("/v3/chat", streamed("hello")).await;
        assert_eq!(answer.broken, abort);
        let names = answer.names();
        assert_eq!(names.len(), 3);
        assert_eq!(names[2], "conversation.message.delta");
        assert_eq!(api.sim.counts().outcomes("POST /v3/chat", "cut"), 1);
        assert_eq!(api.sim.counts().running_chats, 0);
        api.sim.fault(Fault::new("/v3/chat", FaultKind::Cut { after: 0, abort })).expect("possible");
        let answer = api.post("/v3/chat", streamed("hello")).await;
        assert_eq!((answer.status, answer.text.as_str(), answer.broken), (200, "", abort));
    }
    let api = api(FaultKind::Cut { after: 3, abort: false }).await;
    let answer = api.post("/v3/chat", question("hello")).await;
    assert!(answer.broken && answer.text.starts_with('{'), "half of what was announced");
}

#[tokio::test]
async fn a_stream_fails_in_both_shapes() {
    let failed = |bare, after| FaultKind::Failed { code: 4028, msg: "no credits".into(), bare, after };
    let api = api(failed(false, 2)).await;
    let events = api.post("/v3/chat", streamed("hello")).await.events();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = ["conversation.chat.created", "conversation.chat.in_progress", "conversation.chat.failed", "done"];
    assert_eq!(names, expected);
    let chat = &events[2].1;
    assert_eq!(chat["last_error"], json!({ "code": 4028, "msg": "no credits" }));
    assert_eq!((&chat["status"], &chat["id"]), (&json!("failed"), &events[0].1["id"]));
    let ids = (text(&chat["conversation_id"]), text(&chat["id"]));
    let chat = api.retrieve(&ids).await;
    assert_eq!(chat.code(), (200, 0), "the failure is inside");
    assert_eq!(chat.data()["last_error"]["code"], 4028);

    api.sim.fault(Fault::new("/v3/chat", failed(true, 4))).expect("possible");
    let events = api.post("/v3/chat", streamed("hello")).await.events();
    assert_eq!(events[3].0, "conversation.message.delta");
    assert_eq!(events[4], ("conversation.chat.failed".into(), json!({ "code": 4028, "msg": "no credits" })));
    assert_eq!(api.sim.counts().outcomes("POST /v3/chat", "failed"), 2);
}

#[tokio::test]
async fn a_stream_has_an_error_event() {
    let error = || FaultKind::Error { code: 5000, msg: "oops".into(), after: 1 };
    let api = api(error()).await;
    let events = api.post("/v3/chat", streamed("hello")).await.events();
    assert_eq!(events[1], ("error".into(), json!({ "code": 5000, "msg": "oops" })));
    assert_eq!((events.len(), events[2].0.as_str()), (3, "done"));
    api.sim.fault(Fault::new("/v1/workflow/stream_run", error())).expect("possible");
    let body = json!({ "workflow_id": coze_sim::WORKFLOW, "parameters": { "input": "hello" } });
    let answer = api.post("/v1/workflow/stream_run", body).await;
    assert!(answer.text.contains("id:1\nevent:Error\n"), "{}", answer.text);
    let (_, data) = answer.events().pop().expect("an event");
    assert_eq!(data, json!({ "error_code": 5000, "error_message": "oops" }));
}

#[tokio::test]
async fn a_chat_without_a_stream_fails_in_its_retrieval() {
    let failed = || FaultKind::Failed { code: 4028, msg: "no credits".into(), bare: false, after: 0 };
    let api = api(failed()).await;
    let ids = api.chat("hello").await;
    assert_eq!(api.retrieve(&ids).await.data()["status"], "in_progress");
    let chat = api.retrieve(&ids).await.data();
    assert_eq!((&chat["status"], &chat["last_error"]["code"]), (&json!("failed"), &json!(4028)));
    assert!(chat["failed_at"].is_u64());

    let ids = api.chat("hello").await;
    api.sim.fault(Fault::new("/v3/chat/retrieve", failed())).expect("possible");
    assert_eq!(api.retrieve(&ids).await.data()["status"], "failed");
    assert_eq!(api.retrieve(&ids).await.data()["status"], "failed");
    let list = format!("/v3/chat/message/list?conversation_id={}&chat_id={}", ids.0, ids.1);
    assert_eq!(api.get(&list).await.data(), json!([]));
}

#[tokio::test]
async fn all_tokens_expire_until_another_is_fetched() {
    let mut api = Api::start(config()).await;
    let fetch = async |api: &Api| {
        let path =
            format!("/api/permission/oauth2/authorize?response_type=code&client_id={CLIENT_ID}&redirect_uri=http://me");
        let answer = api.get(&path).await;
        let code = answer.header("location").split_once("code=").expect("a code").1;
        let body = json!({
            "grant_type": "authorization_code", "client_id": CLIENT_ID, "redirect_uri": "http://me", "code": code,
        });
        let bearer = format!("Bearer {CLIENT_SECRET}");
        let headers = [("authorization", bearer.as_str())];
        let answer = api.try_send("POST", "/api/permission/oauth2/token", &headers, body.to_string().into()).await;
        text(&answer.expect("an answer").json()["access_token"])
    };
    api.token = fetch(&api).await;
    api.sim.fault(Fault { skip: 1, ..Fault::new("/v3/chat", FaultKind::ExpireTokens) }).expect("possible");
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(api.post("/v3/chat", question("x")).await.code());
    }
    codes.push(api.get("/v1/users/me").await.code());
    assert_eq!(codes, [(200, 0), (200, 4100), (200, 4100), (401, 700_012_006)]);
    api.token = fetch(&api).await;
    assert_eq!(api.post("/v3/chat", question("x")).await.code(), (200, 0));
}

#[tokio::test]
async fn json_is_cut_off() {
    let api = api(FaultKind::InvalidJson).await;
    let answer = api.post("/v3/chat", question("x")).await;
    assert!(answer.status == 200 && !answer.broken);
    assert!(serde_json::from_str::<Value>(&answer.text).is_err(), "{}", answer.text);
    api.sim.fault(Fault::new("/v3/chat", FaultKind::InvalidJson)).expect("possible");
    let answer = api.post("/v3/chat", streamed("x")).await;
    let data: Vec<_> = answer.text.lines().filter_map(|line| line.strip_prefix("data:")).collect();
    let wrong = data.iter().filter(|data| serde_json::from_str::<Value>(data).is_err()).count();
    assert_eq!(wrong, 1);
}

#[tokio::test]
async fn answers_and_their_parts_come_late() {
    let delay = Duration::from_millis(10);
    let api = Api::start(config()).await;
    let late = Fault { delay, ..Fault::new("/v3/chat", FaultKind::Pass) };
    for fault in [
        late,
        Fault::new("/v3/chat", FaultKind::SlowBody { delay: Duration::from_millis(1) }),
        Fault::new("/v3/chat", FaultKind::DelayEvents { delay }),
    ] {
        api.sim.fault(fault).expect("possible");
    }
    let start = Instant::now();
    assert_eq!(api.post("/v3/chat", question("x")).await.code(), (200, 0));
    assert!(start.elapsed() >= delay);
    let start = Instant::now();
    let answer = api.post("/v3/chat", question("x")).await;
    assert_eq!(answer.code(), (200, 0));
    assert!(start.elapsed() >= Duration::from_millis((answer.text.len() / 16) as u64));
    let start = Instant::now();
    let events = api.post("/v3/chat", streamed("x")).await.events();
    assert!(start.elapsed() >= delay * u32::try_from(events.len() - 1).expect("few"));
}

#[tokio::test]
async fn impossible_faults_are_refused() {
    let api = Api::start(config()).await;
    let status = |status, headers: &[(&str, &str)]| {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Fault::new("*", FaultKind::Status { status, body: None, headers })
    };
    for (fault, why) in [
        (Fault { times: 0, ..Fault::default() }, "times"),
        (status(100, &[]), "100"),
        (status(600, &[]), "600"),
        (status(200, &[("a b", "x")]), "a b"),
        (status(200, &[("a", "x\n")]), "\"a\""),
    ] {
        let error = api.sim.fault(fault).expect_err("impossible").to_string();
        assert!(error.contains(why), "{error}");
    }
    for _ in 0..1000 {
        api.sim.fault(Fault::default()).expect("possible");
    }
    let error = api.sim.fault(Fault::default()).expect_err("too many").to_string();
    assert_eq!(error, "at most 1000 faults can wait");
}
