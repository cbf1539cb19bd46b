//! What the platform sends to a bot.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use coze_sim::{Callback, Challenge, Config, Tamper, Webhook, sign_callback, sign_webhook};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Api, config};

type Received = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

/// A bot that answers with these statuses, one after the other (0 is no answer at all), and echoes what it got. Gives its
/// URL and what it received.
async fn bot(statuses: impl IntoIterator<Item = u16>) -> (String, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/hook", listener.local_addr().expect("bound"));
    let (received, statuses) =
        (Received::default(), Arc::new(Mutex::new(statuses.into_iter().collect::<VecDeque<_>>())));
    let log = received.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (log, statuses) = (log.clone(), statuses.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (log, statuses) = (log.clone(), statuses.clone());
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    log.lock().expect("no panic").push((parts.headers, body.clone()));
                    let status = statuses.lock().expect("no panic").pop_front().unwrap_or(200);
                    if status == 0 {
                        std::future::pending::<()>().await;
                    }
                    let mut response = Response::new(Full::new(body));
                    *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
                    Ok::<_, hyper::Error>(response)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, received)
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map_or_else(String::new, |value| value.to_str().expect("ascii").to_owned())
}

#[tokio::test]
async fn a_webhook_is_signed_over_the_raw_body() {
    let (url, received) = bot([]).await;
    let api = Api::start(config()).await;
    let webhook = Webhook {
        url,
        bot_token: "secret".into(),
        body: "{ \"message\": \"你好\" }".into(),
        headers: [("x-bot-id".to_owned(), "7".to_owned())].into(),
        ..Webhook::default()
    };
    let pushed = api.sim.push_webhook(&webhook).await.expect("a valid URL");
    assert!(pushed.accepted && pushed.status == 200 && pushed.body == webhook.body && pushed.attempts == 1);
    for tamper in [Tamper::Signature, Tamper::Unsigned, Tamper::Body] {
        api.sim.push_webhook(&Webhook { tamper, ..webhook.clone() }).await.expect("a valid URL");
    }
    api.sim.push_webhook(&Webhook { uppercase: true, ..webhook.clone() }).await.expect("a valid URL");
    let received = received.lock().expect("no panic").clone();
    let good = sign_webhook("secret", webhook.body.as_bytes());
    let signed: Vec<_> = received
        .iter()
        .map(|(headers, body)| (header(headers, "x-signature"), sign_webhook("secret", body)))
        .map(|(sent, right)| (sent == right, sent.to_lowercase() == good, sent.is_empty()))
        .collect();
    let expected =
        [(true, true, false), (false, false, false), (false, false, true), (false, true, false), (false, true, false)];
    assert_eq!(signed, expected);
    assert_eq!(header(&received[0].0, "x-bot-id"), "7");
}

#[tokio::test]
async fn a_callback_is_sent_again_with_the_same_event_id() {
    let (url, received) = bot([500, 0]).await;
    let api = Api::start(config()).await;
    let callback = Callback {
        url,
        verify_token: "verify".into(),
        event_type: "bot.deleted".into(),
        event: json!({ "bot_id_str": 7 }),
        patience: Duration::from_millis(20),
        ..Callback::default()
    };
    let pushed = api.sim.push_callback(&callback).await.expect("a valid URL");
    assert!(pushed.accepted && pushed.attempts == 3);
    let received = received.lock().expect("no panic").clone();
    let mut nonces = Vec::new();
    for (headers, body) in &received {
        let (timestamp, nonce) = (header(headers, "x-coze-timestamp"), header(headers, "x-coze-nonce"));
        assert_eq!(header(headers, "x-coze-signature"), sign_callback(&timestamp, &nonce, "verify", body));
        assert_eq!(timestamp.len(), 13, "milliseconds");
        let body: Value = serde_json::from_slice(body).expect("json");
        assert_eq!(body["header"]["event_id"], pushed.event_id);
        assert_eq!((&body["header"]["event_type"], &body["event"]), (&json!("bot.deleted"), &callback.event));
        assert_eq!(body["header"]["created_at"].to_string(), timestamp);
        nonces.push(nonce);
    }
    nonces.dedup();
    assert_eq!(nonces.len(), 3);

    let replay = Callback {
        event_id: Some(pushed.event_id.clone()),
        timestamp: Some(pushed.timestamp.clone()),
        nonce: Some(pushed.nonce.clone()),
        ..callback
    };
    let again = api.sim.push_callback(&replay).await.expect("a valid URL");
    assert_eq!((again.signature, again.attempts), (pushed.signature, 1), "the same to the last bit");
}

#[tokio::test]
async fn a_callback_can_be_wrong_in_every_way() {
    let (url, received) = bot([]).await;
    let api = Api::start(config()).await;
    for tamper in [Tamper::Signature, Tamper::Unsigned, Tamper::Body, Tamper::Stale] {
        let callback = Callback { url: url.clone(), verify_token: "v".into(), tamper, ..Callback::default() };
        api.sim.push_callback(&callback).await.expect("a valid URL");
    }
    let received = received.lock().expect("no panic").clone();
    let verdicts: Vec<_> = received
        .iter()
        .map(|(headers, body)| {
            let (timestamp, nonce) = (header(headers, "x-coze-timestamp"), header(headers, "x-coze-nonce"));
            header(headers, "x-coze-signature") == sign_callback(&timestamp, &nonce, "v", body)
        })
        .collect();
    assert_eq!(verdicts, [false, false, false, true], "stale, but signed");
    let at = |n: usize| header(&received[n].0, "x-coze-timestamp").parse::<u64>().expect("a number");
    assert!(at(0) - at(3) >= 3_590_000);
}

#[tokio::test]
async fn a_challenge_must_be_echoed() {
    let (url, received) = bot([200, 403]).await;
    let api = Api::start(config()).await;
    let challenge = Challenge { url, verify_token: "v".into(), ..Challenge::default() };
    assert!(api.sim.push_challenge(&challenge).await.expect("a valid URL").accepted);
    let refused = api.sim.push_challenge(&challenge).await.expect("a valid URL");
    assert_eq!((refused.accepted, refused.status), (false, 403));
    let (headers, body) = received.lock().expect("no panic")[0].clone();
    assert!(header(&headers, "x-coze-signature").len() == 40);
    assert!(serde_json::from_slice::<Value>(&body).expect("json")["challenge"].is_string());
}

#[tokio::test]
async fn a_bot_that_does_not_answer_is_told_of_not_failed_with() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", nobody.local_addr().expect("bound"));
    drop(nobody);
    let api = Api::start(config()).await;
    let callback = Callback { url: url.clone(), attempts: 99, ..Callback::default() };
    let pushed = api.sim.push_callback(&callback).await.expect("a valid URL");
    assert_eq!((pushed.status, pushed.accepted, pushed.attempts), (0, false, 10), "attempts are bounded");
    assert!(pushed.error.is_some());
    for url in ["https://example.com", "/path", ""] {
        assert!(api.sim.push_webhook(&Webhook { url: url.into(), ..Webhook::default() }).await.is_err(), "{url}");
    }
}

#[tokio::test]
async fn pushes_are_made_from_outside() {
    let (url, received) = bot([]).await;
    let api = Api::start(Config::default()).await;
    for (name, mut body) in [
        ("webhook", json!({ "bot_token": "t", "body": "{}" })),
        ("callback", json!({ "verify_token": "t", "event_type": "benefit.usage", "event": {}, "tamper": "none" })),
        ("challenge", json!({ "verify_token": "t" })),
    ] {
        body["url"] = url.clone().into();
        let pushed = api.post("/_sim/push", json!({ name: body })).await.json();
        assert_eq!(
            (&pushed["accepted"], &pushed["status"], &pushed["attempts"]),
            (&json!(true), &json!(200), &json!(1))
        );
        assert!(pushed["elapsed_ms"].is_u64() && pushed["signature"].is_string());
    }
    assert_eq!(received.lock().expect("no panic").len(), 3);
}
