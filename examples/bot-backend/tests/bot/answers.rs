//! A message and its answer, through the platform, over TCP.

use std::time::Duration;

use coze_sim::{Config, Fault, FaultKind};
use serde_json::json;

use crate::support::{BOT, POLLING, World, events, eventually, message};

#[tokio::test]
async fn a_message_is_answered_as_one_envelope() {
    let world = World::start().await;
    for bot in [BOT, POLLING] {
        let sent = message(bot, "hello");
        let answer = world.post(&sent).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let body = answer.json();
        assert_eq!((&body["code"], &body["msg"]), (&json!(0), &json!("")));
        let data = &body["data"];
        assert_eq!(data["content"], "You said: hello");
        assert_eq!((&data["message_id"], &data["conversation_id"]), (&sent["message_id"], &sent["conversation_id"]));
        assert!(data["usage"]["token_count"].as_u64().is_some_and(|tokens| tokens > 0), "{data}");
        assert!(answer.headers.contains_key("x-request-id"));
    }
    let counts = world.sim.counts();
    assert_eq!(counts.requests("POST /v3/chat"), 2);
    assert_eq!(counts.requests("GET /v3/chat/message/list"), 1, "only without a stream");
    assert_eq!(counts.requests("POST /v3/chat/cancel"), 0);
    let tenants: Vec<_> = world.sim.requests().into_iter().map(|request| request.tenant).collect();
    assert_eq!(tenants.first().cloned().flatten().as_deref(), Some("acme"));
    assert_eq!(tenants.last().cloned().flatten().as_deref(), Some("other"));
}

#[tokio::test]
async fn a_caller_may_have_the_answer_as_a_stream() {
    let world = World::start().await;
    for (bot, pieces) in [(BOT, 2..100), (POLLING, 1..2)] {
        let answer = world.stream(bot, "how do you do?").await;
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["content-type"]),
            (200, &"text/event-stream".parse().unwrap())
        );
        let mut events = events(answer.text());
        let (name, done) = events.pop().expect("events");
        assert_eq!((name.as_str(), done["content"].as_str()), ("done", Some("You said: how do you do?")));
        assert!(pieces.contains(&events.len()), "{events:?}");
        assert!(events.iter().all(|(name, _)| name == "delta"));
        let whole: String = events.iter().filter_map(|(_, data)| data["content"].as_str()).collect();
        assert_eq!(whole, "You said: how do you do?");
    }
}

#[tokio::test]
async fn a_conversation_goes_on_where_it_was() {
    let world = World::start().await;
    let mut sent = message(BOT, "one");
    for content in ["one", "two"] {
        sent["content"] = json!(content);
        sent["message_id"] = json!(content);
        assert_eq!(world.post(&sent).await.json()["data"]["content"], format!("You said: {content}"));
    }
    let queries: Vec<_> = world.sim.requests().into_iter().map(|request| request.query).collect();
    assert_eq!(queries[0], "");
    assert!(queries[1].starts_with("conversation_id=7"), "{queries:?}");
}

#[tokio::test]
async fn a_conversation_that_the_platform_forgot_begins_anew() {
    let world = World::start().await;
    let mut sent = message(BOT, "one");
    assert_eq!(world.post(&sent).await.status, 200);
    world.fault("/v3/chat", code(4002));
    sent["message_id"] = json!("again");
    assert_eq!(world.post(&sent).await.json()["data"]["content"], "You said: one");
    assert_eq!(world.sim.requests().last().map(|request| request.query.clone()).as_deref(), Some(""));
}

fn code(code: i64) -> FaultKind {
    FaultKind::Code { code, msg: "no".into(), status: 200, headers: Default::default() }
}

/// What the caller gets in the four ways there are.
async fn failures(route: &str, kind: FaultKind) -> Vec<(u16, i64)> {
    let mut found = Vec::new();
    for bot in [BOT, POLLING] {
        let world = World::start().await;
        world.fault(route, kind.clone());
        let sent = message(bot, "hello");
        let answer = world.post(&sent).await;
        found.push((answer.status.as_u16(), answer.json()["code"].as_i64().expect("a code")));
        let stored = world.stored(&sent).await;
        assert_eq!((stored.status.as_str(), stored.answer.content.as_str()), ("failed", ""), "{bot}");
        assert_eq!(world.sim.counts().requests("POST /v3/chat"), 1, "never sent again");
    }
    found
}

#[tokio::test]
async fn a_refusal_in_an_http_200_is_an_error_with_and_without_a_stream() {
    assert_eq!(failures("/v3/chat", code(4028)).await, [(429, 4028), (429, 4028)]);
    assert_eq!(failures("/v3/chat", code(4015)).await, [(400, 4015), (400, 4015)]);
    // Our token is not the caller's to mend.
    assert_eq!(failures("/v3/chat", code(4100)).await, [(502, 502), (502, 502)]);
}

#[tokio::test]
async fn a_chat_that_failed_is_an_error_in_both_shapes() {
    for bare in [false, true] {
        let kind = FaultKind::Failed { code: 4028, msg: "used up".into(), bare, after: 3 };
        assert_eq!(failures("/v3/chat", kind).await, [(429, 4028), (429, 4028)]);
    }
}

#[tokio::test]
async fn an_error_event_is_an_error() {
    let kind = FaultKind::Error { code: 4013, msg: "the model".into(), after: 2 };
    assert_eq!(failures("/v3/chat", kind).await, [(502, 4013), (502, 4013)]);
}

#[tokio::test]
async fn a_gateway_that_gives_up_is_an_error() {
    assert_eq!(failures("/v3/chat", FaultKind::Html { status: 504 }).await, [(504, 504), (504, 504)]);
}

#[tokio::test]
async fn a_stream_that_is_cut_is_an_error_and_not_an_answer() {
    for abort in [false, true] {
        let world = World::start().await;
        world.fault("/v3/chat", FaultKind::Cut { after: 4, abort });
        let sent = message(BOT, "a long story");
        let answer = world.post(&sent).await;
        assert_eq!(answer.status, 502, "{}", answer.text());
        assert_eq!(world.stored(&sent).await.reason, "stream_cut");
        assert_eq!(world.sim.counts().requests("POST /v3/chat"), 1, "never sent again");
    }
}

#[tokio::test]
async fn a_caller_who_has_read_a_piece_is_told_of_a_cut_in_the_stream() {
    let world = World::start().await;
    world.fault("/v3/chat", FaultKind::Cut { after: 4, abort: false });
    let answer = world.stream(BOT, "a long story").await;
    assert_eq!(answer.status, 200, "it was sent already");
    let events = events(answer.text());
    let (name, error) = events.last().expect("events");
    assert_eq!((name.as_str(), error["code"].as_i64()), ("error", Some(502)));
    assert_eq!(error["msg"], "the platform's stream ended before the answer was complete");
    assert_eq!(error["detail"]["logid"], answer.headers["x-request-id"].to_str().expect("text"));
}

#[tokio::test]
async fn a_failure_before_the_first_piece_has_its_status_also_where_a_stream_was_asked_for() {
    let world = World::start().await;
    world.fault("/v3/chat", code(4028));
    let answer = world.stream(BOT, "hello").await;
    assert_eq!((answer.status.as_u16(), answer.json()["code"].as_i64()), (429, Some(4028)));
    assert_eq!(&answer.headers["content-type"], "application/json");
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn what_certainly_did_not_run_is_sent_again() {
    let world = World::start().await;
    world.fault("/v3/chat", code(4009));
    let answer = world.send(BOT, "hello").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!((world.chats("4009"), world.chats("0")), (1, 1));
}

#[tokio::test]
async fn the_looks_at_a_chat_are_a_second_apart() {
    let platform = Config { pace: coze_sim::Pace { polls: 2, ..Default::default() }, ..Config::default() };
    let world = World::with(platform, |_| {}).await;
    assert_eq!(world.send(POLLING, "hello").await.status, 200);
    let looks: Vec<_> =
        world.sim.requests().into_iter().filter(|r| r.path == "/v3/chat/retrieve").map(|r| r.at.as_millis()).collect();
    assert!(looks.len() >= 2, "{looks:?}");
    assert!(looks.windows(2).all(|two| two[1] - two[0] >= 990), "{looks:?}");
}

#[tokio::test]
async fn a_platform_that_is_silent_ends_the_wait() {
    for kind in [FaultKind::Pass, FaultKind::DelayEvents { delay: Duration::from_secs(20) }] {
        let world =
            World::with(Config::default(), |config| config.platform.silence_timeout = Duration::from_millis(300)).await;
        let delay = if kind == FaultKind::Pass { Duration::from_secs(20) } else { Default::default() };
        world.sim.fault(Fault { delay, ..Fault::new("/v3/chat", kind) }).expect("possible");
        let sent = message(BOT, "hello");
        assert_eq!(world.post(&sent).await.status, 504);
        assert_eq!(world.stored(&sent).await.reason, "platform_silent");
    }
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_the_chat() {
    let world = World::with(Config::default(), |config| config.http.request_timeout = Duration::from_millis(500)).await;
    world.fault("/v3/chat", FaultKind::DelayEvents { delay: Duration::from_millis(300) });
    let sent = message(BOT, "hello");
    assert_eq!(world.post(&sent).await.status, 504);
    assert_eq!(world.stored(&sent).await.reason, "answer_timeout");
    eventually("cancelled", async || world.sim.counts().requests("POST /v3/chat/cancel") == 1).await;
}

#[tokio::test]
async fn a_platform_without_the_promised_tls_is_not_talked_to() {
    let world = World::start().await;
    let url = world.sim.url().replace("http://", "https://").parse().expect("a URL");
    let world = World::with(Config::default(), |config| config.platform.url = url).await;
    let answer = world.send(BOT, "hello").await;
    assert_eq!((answer.status.as_u16(), answer.json()["msg"].as_str()), (503, Some("the platform cannot be reached")));
}

#[tokio::test]
async fn nobody_there_is_an_error_that_says_so() {
    let world =
        World::with(Config::default(), |config| config.platform.url = "http://127.0.0.1:1".parse().unwrap()).await;
    let answer = world.send(BOT, "hello").await;
    assert_eq!((answer.status.as_u16(), answer.json()["msg"].as_str()), (503, Some("the platform cannot be reached")));
}
