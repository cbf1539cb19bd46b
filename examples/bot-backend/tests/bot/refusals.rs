//! What is wrong with a request, and what its caller is told.

use std::time::Duration;

use coze_sim::{Callback, Config, FaultKind, Tamper, sign_webhook};
use coze_tests::Answer;
use http::HeaderValue;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{BOT, KEY, POLLING, VERIFY, World, eventually, message};

/// Status and code of a refusal in the platform's envelope, and what it says.
fn refusal(answer: &Answer) -> (u16, i64, String) {
    let body = answer.json();
    assert_eq!(&answer.headers["content-type"], "application/json");
    assert_eq!(body["detail"]["logid"].as_str(), answer.headers["x-request-id"].to_str().ok(), "{body}");
    (answer.status.as_u16(), body["code"].as_i64().expect("a code"), body["msg"].as_str().expect("text").to_owned())
}

fn untouched(world: &World) {
    assert_eq!(world.sim.counts().requests("POST /v3/chat"), 0, "the platform was not asked");
}

#[tokio::test]
async fn a_signature_that_is_not_right_is_refused_at_once() {
    let world = World::start().await;
    let body = message(BOT, "hello").to_string();
    let path = format!("/webhook/{BOT}");
    let good = sign_webhook(KEY, body.as_bytes());
    for (signatures, expected) in [
        (
            vec![sign_webhook("another key", body.as_bytes())],
            "the signature is not that of the body under a current key",
        ),
        (vec![], "the header x-signature is missing"),
        (vec![good.clone(), good.clone()], "the header x-signature is given more than once"),
        (vec!["nonsense".into()], "the header x-signature is not 64 hex digits"),
    ] {
        let mut request = world.request(&path, body.as_bytes());
        request.headers_mut().remove("x-signature");
        for signature in &signatures {
            request.headers_mut().append("x-signature", signature.parse().expect("valid"));
        }
        let answer = world.http.send(request).await;
        assert_eq!(refusal(&answer), (401, 4100, expected.to_owned()), "{signatures:?}");
        assert_eq!(&answer.headers["www-authenticate"], "Signature");
    }
    untouched(&world);

    let mut request = world.request(&path, body.as_bytes());
    request.headers_mut().insert("x-signature", good.to_uppercase().parse().expect("valid"));
    assert_eq!(world.http.send(request).await.status, 200, "either case");
}

#[tokio::test]
async fn why_requests_were_refused_is_in_the_metrics_and_nothing_that_a_caller_made_up() {
    let world = World::start().await;
    let mut forged = world.signed(&message(BOT, "hello"));
    forged.headers_mut().insert("x-signature", "00".repeat(32).parse().expect("valid"));
    assert_eq!(world.http.send(forged).await.status, 401);
    assert_eq!(world.http.send(world.request("/webhook/made-up", b"{}")).await.status, 401);
    let url = format!("{}/callback/{POLLING}", world.bot.url());
    let stale =
        Callback { url, verify_token: VERIFY.into(), attempts: 1, tamper: Tamper::Stale, ..Callback::default() };
    assert_eq!(world.sim.push_callback(&stale).await.expect("sent").status, 401);
    world.send(BOT, "hello").await;

    let url = format!("{}/metrics", world.bot.url());
    eventually("counted", async || {
        let metrics = world.http.get(&url).await;
        let metrics = metrics.text();
        assert!(!metrics.contains("made-up"), "{metrics}");
        [("SIGNATURE_INVALID", BOT), ("UNKNOWN_KEY", "_unknown"), ("TOKEN_EXPIRED", POLLING)].iter().all(
            |(reason, client)| {
                metrics.contains(&format!("auth_failure_total{{reason=\"{reason}\",client=\"{client}\"}} "))
            },
        )
    })
    .await;
}

#[tokio::test]
async fn a_bot_is_found_and_not_guessed() {
    let world = World::start().await;
    let body = message(BOT, "hello").to_string();
    let unknown = world.http.send(world.request("/webhook/nobody", body.as_bytes())).await;
    assert_eq!(refusal(&unknown).0, 401);
    let wrong = world.http.send(world.request(&format!("/webhook/{POLLING}"), body.as_bytes())).await;
    assert_eq!(refusal(&wrong), (403, 4101, "the field bot_id is not the bot whose key signed the body".to_owned()));
    let nobody = world.http.send(world.request("/webhook", body.as_bytes())).await;
    assert_eq!(refusal(&nobody).2, "neither the path nor the header x-bot-id names a bot");
    for (header, expected) in [
        (HeaderValue::from_static(POLLING), "the bot in the header x-bot-id is not the one in the path"),
        (HeaderValue::from_bytes(b"\xff\xfe").expect("valid"), "the header x-bot-id is not ascii"),
    ] {
        let mut request = world.request(&format!("/webhook/{BOT}"), body.as_bytes());
        request.headers_mut().insert("x-bot-id", header);
        assert_eq!(refusal(&world.http.send(request).await), (401, 4100, expected.to_owned()));
    }
    untouched(&world);

    let mut request = world.request("/webhook", body.as_bytes());
    request.headers_mut().insert("x-bot-id", BOT.parse().expect("valid"));
    assert_eq!(world.http.send(request).await.status, 200);
}

#[tokio::test]
async fn a_tenant_may_be_named_but_not_chosen() {
    let world = World::start().await;
    for (tenant, status) in [(&b"acme"[..], 200), (b"other", 403), (b"evil", 403), (b"\xff", 403)] {
        let mut request = world.signed(&message(BOT, "hello"));
        request.headers_mut().insert("x-tenant-id", HeaderValue::from_bytes(tenant).expect("valid"));
        assert_eq!(world.http.send(request).await.status.as_u16(), status, "{tenant:?}");
    }
    let mut request = world.signed(&message(BOT, "hello"));
    for _ in 0..2 {
        request.headers_mut().append("x-tenant-id", "acme".parse().expect("valid"));
    }
    assert_eq!(refusal(&world.http.send(request).await).0, 400);
}

#[tokio::test]
async fn a_field_that_is_missing_or_of_another_type_is_named() {
    let world = World::start().await;
    for field in ["bot_id", "conversation_id", "user_id", "content"] {
        let mut sent = message(BOT, "hello");
        sent.as_object_mut().expect("an object").remove(field);
        let path = format!("/webhook/{BOT}");
        let answer = world.http.send(world.request(&path, sent.to_string().as_bytes())).await;
        assert_eq!(refusal(&answer), (400, 4000, format!("the field {field} is missing")));
        sent = message(BOT, "hello");
        sent[field] = json!(7);
        let answer = world.http.send(world.request(&path, sent.to_string().as_bytes())).await;
        assert_eq!(refusal(&answer), (400, 4000, format!("the field {field}: must be a string, not a number")));
    }
    untouched(&world);
}

#[tokio::test]
async fn a_body_that_is_no_message_is_refused() {
    let world =
        World::with(Config::default(), |config| config.http.body_limit = 1000.try_into().expect("not zero")).await;
    let path = format!("/webhook/{BOT}");
    let whole = message(BOT, "hello").to_string();
    for (body, expected) in [
        (&b""[..], "the body is not JSON: line 1, column 0"),
        (&whole.as_bytes()[..20], "the body is not JSON: line 1, column 20"),
        (b"[1]", "the body is not a JSON object"),
        (b"{\"content\":\"\xff\"}", "the body is not JSON: line 1, column 13"),
        (b"\"", "the body is not JSON: line 1, column 1"),
    ] {
        let answer = world.http.send(world.request(&path, body)).await;
        assert_eq!(refusal(&answer), (400, 4000, expected.to_owned()));
    }
    let answer = world.http.send(world.request(&path, &[b'x'; 1001])).await;
    assert_eq!(refusal(&answer), (413, 4302, "the body has more than 1000 bytes".to_owned()));
    let deep = "[".repeat(900);
    assert_eq!(world.http.send(world.request(&path, deep.as_bytes())).await.status, 400);
    untouched(&world);
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_same_format() {
    let world = World::start().await;
    let answer = world.http.get(&format!("{}/nothing", world.bot.url())).await;
    assert_eq!((refusal(&answer).0, refusal(&answer).1), (404, 4200));
    let answer = world.http.get(&format!("{}/webhook", world.bot.url())).await;
    assert_eq!((refusal(&answer).0, &answer.headers["allow"]), (405, &HeaderValue::from_static("POST")));
    let mut request = world.request("/webhook/nobody", b"{}");
    request.headers_mut().insert("accept", "application/problem+json".parse().expect("valid"));
    let answer = world.http.send(request).await;
    assert_eq!(
        (&answer.headers["content-type"], answer.json()["reason"].as_str()),
        (&HeaderValue::from_static("application/problem+json"), Some("signature_invalid"))
    );
}

/// Status and policy of a refusal by a limit.
fn limit(answer: &Answer) -> (u16, &str) {
    assert_eq!(answer.status, 429, "{}", answer.text());
    (answer.status.as_u16(), answer.headers["ratelimit-policy"].to_str().expect("text"))
}

#[tokio::test]
async fn a_user_who_writes_too_fast_is_told_when_to_come_back() {
    let world = World::with(Config::default(), |config| config.bots[0].user_per_second = 1.try_into().ok()).await;
    let mut sent = message(BOT, "hello");
    assert_eq!(world.post(&sent).await.status, 200);
    sent["message_id"] = json!("another");
    let refused = world.post(&sent).await;
    assert_eq!(limit(&refused), (429, "\"user\";q=1;w=1"));
    let (wait, quota) = (&refused.headers["retry-after"], &refused.headers["x-ratelimit-limit"]);
    assert_eq!((wait, quota), (&HeaderValue::from(1), &HeaderValue::from(1)));
    assert_eq!(world.send(BOT, "hello").await.status, 200, "somebody else");
}

#[tokio::test]
async fn a_bot_answers_so_many_at_once() {
    let world = World::with(Config::default(), |config| config.bots[0].concurrency = 1.try_into().ok()).await;
    world.fault("/v3/chat", FaultKind::DelayEvents { delay: Duration::from_millis(100) });
    let second = async {
        eventually("the first one runs", async || world.sim.counts().running_chats == 1).await;
        tokio::join!(world.send(BOT, "hello"), world.send(POLLING, "hello"))
    };
    let (first, (second, other)) = tokio::join!(world.send(BOT, "hello"), second);
    assert_eq!(limit(&second), (429, "\"bot\";q=1;qu=\"concurrent-requests\""));
    assert_eq!((first.status.as_u16(), other.status.as_u16()), (200, 200), "another bot has slots of its own");
    assert_eq!(world.send(BOT, "hello").await.status, 200, "the slot is free again");
}

#[tokio::test]
async fn all_bots_together_take_so_many_a_second() {
    let world = World::with(Config::default(), |config| {
        config.limits.app_qps = 3.try_into().expect("not zero");
        // What is its own does not take the bot out of what is shared.
        config.bots[0].concurrency = 7.try_into().ok();
    })
    .await;
    let sends = [BOT, POLLING, BOT, POLLING].map(|bot| world.send(bot, "hello"));
    let [one, two, three, four] = sends;
    let (one, two, three, four) = tokio::join!(one, two, three, four);
    let refused: Vec<_> = [&one, &two, &three, &four].into_iter().filter(|answer| answer.status != 200).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(limit(refused[0]), (429, "\"app\";q=3;w=1"));
}

/// What comes back for these bytes, until the connection ends.
async fn raw(world: &World, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.bot.url().trim_start_matches("http://")).await.expect("connected");
    // Who has heard enough may end the connection before it has heard all.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    timeout(Duration::from_secs(5), stream.read_to_end(&mut answer))
        .await
        .expect("the connection ends")
        // A connection that is reset instead has said what it said.
        .unwrap_or_default();
    String::from_utf8_lossy(&answer).into_owned()
}

fn hasty(config: &mut bot_backend::config::Config) {
    config.http.header_timeout = Duration::from_millis(200);
    config.http.body_timeout = Duration::from_millis(200);
    config.http.request_timeout = Duration::from_millis(400);
    config.http.idle_timeout = Duration::from_millis(500);
}

#[tokio::test]
async fn who_does_not_speak_to_the_end_is_not_waited_for() {
    let world = World::with(Config::default(), hasty).await;
    assert_eq!(raw(&world, b"").await, "", "no head");
    raw(&world, b"POST /webhook HTTP/1.1\r\nhost: x\r\n").await;
    let slow = format!(
        "POST /webhook/{BOT} HTTP/1.1\r\nhost: x\r\nx-signature: {}\r\ncontent-length: 99\r\n\r\n{{",
        "0".repeat(64)
    );
    let answer = raw(&world, slow.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("the body did not arrive within 200ms"), "{answer}");
    let idle = raw(&world, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(idle.starts_with("HTTP/1.1 200"), "{idle}");
    untouched(&world);
}

#[tokio::test]
async fn what_is_no_http_is_refused_and_the_service_goes_on() {
    let world = World::with(Config::default(), hasty).await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        b"POST /webhook HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
    ] {
        let answer = raw(&world, bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(1_000_000));
    let answer = raw(&world, long.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(world.send(BOT, "hello").await.status, 200);
}
