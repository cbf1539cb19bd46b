//! The webhook policy: who signed a message, and what becomes of the body.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use coze_auth::{Key, MAX_KEYS, Webhook, WebhookKeys};
use coze_core::{Kind, UserId};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue, Request, request::Builder};
use http_body::Body;
use http_body_util::BodyExt;
use proptest::prelude::*;
use support::{Script, Step, bot, noted, reason, send};

const MIB: usize = 1024 * 1024;

fn key(secret: &str) -> Key {
    Key::new(secret).expect("not empty")
}

/// The keys of b1, and of b2.
fn keys() -> WebhookKeys {
    let keys = WebhookKeys::new();
    keys.set(&bot("b1"), [key("one")]).expect("one key");
    keys.set(&bot("b2"), [key("two")]).expect("one key");
    keys
}

fn webhook() -> Webhook {
    Webhook::new(keys()).path("/webhook")
}

fn sign(key: &str, body: &[u8]) -> String {
    let mac = Hmac::<sha2::Sha256>::new_from_slice(key.as_bytes()).expect("any length").chain_update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// A message to b1 with this body, signed by it.
fn signed(body: &[u8]) -> Builder {
    Request::post("/webhook/b1").header("x-signature", sign("one", body))
}

fn from_b1(body: &'static str) -> Request<Script> {
    signed(body.as_bytes()).body(body.into()).expect("a request")
}

#[tokio::test]
async fn a_signed_message_is_handed_on_and_its_signer_noted() {
    let (sent, context) = noted(&webhook(), from_b1("hello")).await;
    let sent = sent.expect("accepted");
    assert_eq!(sent.uri().path(), "/webhook/b1");
    assert_eq!((sent.body().size_hint().exact(), sent.body().is_end_stream()), (Some(5), false));
    assert_eq!(sent.into_body().collect().await.expect("a body").to_bytes(), "hello");
    assert_eq!(context.bot.get(), Some(&bot("b1")));
    let principal = context.principal.get().expect("noted");
    assert_eq!((principal.scheme, &*principal.subject), ("webhook", "b1"));
    assert_eq!((context.auth(), context.user.get()), (Some("ok"), None));
}

#[tokio::test]
async fn the_digits_of_a_signature_may_be_upper_or_lower_case() {
    let lower = sign("one", b"hello");
    let mixed = lower.char_indices().map(|(i, c)| if i % 2 == 0 { c.to_ascii_uppercase() } else { c }).collect();
    for signature in [lower.to_uppercase(), mixed, lower] {
        let request = Request::post("/webhook/b1").header("x-signature", signature).body(Script::from("hello"));
        assert_eq!(reason(send(&webhook(), request.expect("a request")).await), None);
    }
}

#[tokio::test]
async fn a_malformed_signature_is_refused_before_the_body_is_read() {
    let good = sign("one", b"hello");
    let malformed = [
        String::new(),
        good[..63].to_owned(),
        good[..62].to_owned(),
        format!("{good}0"),
        format!("{good}00"),
        format!("0x{}", &good[2..]),
        format!("sha256={good}"),
        format!("{} {}", &good[..32], &good[33..]),
        "é".repeat(32),
    ];
    let mut cases = vec![(vec![], "missing_credentials"), (vec![good.clone(), good], "parse_error")];
    cases.extend(malformed.map(|value| (vec![value], "parse_error")));
    for (values, expected) in cases {
        let body = Script::from("hello");
        let polled = body.polled.clone();
        let mut request = Request::post("/webhook/b1").body(body).expect("a request");
        for value in &values {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a header value");
            request.headers_mut().append("x-signature", value);
        }
        let (refused, context) = noted(&webhook(), request).await;
        let refused = refused.expect_err("refused");
        assert_eq!((refused.kind(), refused.reason()), (Kind::Unauthenticated, expected), "{values:?}");
        assert_eq!((context.auth(), polled.load(Ordering::Relaxed)), (Some(expected), 0));
    }
}

#[tokio::test]
async fn what_another_key_or_body_was_signed_for_is_refused() {
    for signature in [sign("two", b"hello"), sign("one", b"hello!"), sign("one", b""), "00".repeat(32)] {
        let request = Request::post("/webhook/b1").header("x-signature", signature).body(Script::from("hello"));
        let (refused, context) = noted(&webhook(), request.expect("a request")).await;
        assert_eq!(reason(refused), Some("signature_invalid"));
        assert_eq!(context.auth(), Some("signature_invalid"));
        assert_eq!((context.bot.get(), context.principal.get()), (None, None));
    }
}

#[tokio::test]
async fn an_unknown_bot_is_answered_like_a_wrong_signature_after_the_same_work() {
    let mut told = Vec::new();
    for path in ["/webhook/b1", "/webhook/nobody"] {
        // Signed with a key of another bot, and with the one that stands in for no key.
        for key in ["two", "decoy"] {
            let body = Script::framed(b"hello", 1);
            let polled = body.polled.clone();
            let request = Request::post(path).header("x-signature", sign(key, b"hello")).body(body).expect("a request");
            let (refused, context) = noted(&webhook(), request).await;
            let refused = refused.expect_err("refused");
            told.push((refused.kind(), refused.to_string(), polled.load(Ordering::Relaxed)));
            let noted = if path.ends_with("b1") { "signature_invalid" } else { "unknown_key" };
            assert_eq!((refused.reason(), context.auth()), ("signature_invalid", Some(noted)));
        }
    }
    assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "{told:?}");
}

#[tokio::test]
async fn the_bot_is_the_one_in_the_path_or_in_the_header() {
    let cases: [(&str, &[&[u8]], _); 12] = [
        ("/webhook/b1", &[], None),
        ("/webhook/b1?x=/b2", &[], None),
        ("/webhook/b1", &[b"b1"], None),
        ("/webhook/b1", &[b"b2"], Some("parse_error")),
        ("/webhook/b2", &[b"b1"], Some("parse_error")),
        ("/elsewhere", &[b"b1"], None),
        ("/webhook/", &[b"b1"], None),
        ("/webhookb1", &[], Some("missing_credentials")),
        ("/webhook", &[], Some("missing_credentials")),
        ("/webhook/b1", &[b"b1", b"b1"], Some("parse_error")),
        ("/webhook", &[b"\xff"], Some("parse_error")),
        ("/webhook/b1/", &[], Some("signature_invalid")),
    ];
    for (path, ids, expected) in cases {
        let mut request = from_b1("hello");
        *request.uri_mut() = path.parse().expect("a path");
        for id in ids {
            request.headers_mut().append("x-bot-id", HeaderValue::from_bytes(id).expect("a header value"));
        }
        let (outcome, context) = noted(&webhook(), request).await;
        assert_eq!(reason(outcome), expected, "{path} {ids:?}");
        assert_eq!(context.bot.get(), expected.is_none().then(|| bot("b1")).as_ref());
    }
}

#[tokio::test]
async fn the_only_bot_need_not_be_named() {
    let keys = WebhookKeys::new();
    let webhook = Webhook::new(keys.clone());
    assert_eq!(reason(send(&webhook, from_b1("hello")).await), Some("missing_credentials"), "there is no bot");
    keys.set(&bot("b1"), [key("one")]).expect("one key");
    assert_eq!(reason(send(&webhook, from_b1("hello")).await), None);
    let mut other = from_b1("hello");
    other.headers_mut().insert("x-bot-id", HeaderValue::from_static("b2"));
    assert_eq!(reason(send(&webhook, other).await), Some("signature_invalid"), "it is not the one that is named");
}

#[tokio::test]
async fn any_of_a_bots_keys_verifies_and_replaced_ones_do_not() {
    let keys = keys();
    let webhook = Webhook::new(keys.clone()).path("/webhook/");
    let names = ["k1", "k2", "k3", "k4", "k5"];
    assert_eq!(names.len(), MAX_KEYS + 1);
    let accepts = async |key: &str| {
        let request = Request::post("/webhook/b1").header("x-signature", sign(key, b"hello"));
        send(&webhook, request.body(Script::from("hello")).expect("a request")).await.is_ok()
    };
    keys.set(&bot("b1"), names[..4].iter().map(|name| key(name))).expect("as many as there may be");
    for name in &names[..4] {
        assert!(accepts(name).await, "{name}");
    }
    assert!(!accepts("one").await, "it was replaced");

    let refused = keys.set(&bot("b1"), names.map(key)).expect_err("one too many");
    assert_eq!((refused.kind(), refused.reason()), (Kind::Invalid, "keys_too_many"));
    assert!(accepts("k1").await, "the keys stay as they were");

    keys.set(&bot("b1"), []).expect("no keys");
    assert!(!accepts("k1").await, "the bot was taken out");
    assert_eq!(Key::new("").expect_err("anybody has it").reason(), "key_empty");
}

#[tokio::test(start_paused = true)]
async fn a_request_is_checked_against_the_keys_of_its_arrival() {
    let keys = keys();
    let webhook = Webhook::new(keys.clone()).path("/webhook");
    let slow = || {
        let steps = [Step::Wait(Duration::from_secs(1)), Step::Data(Bytes::from_static(b"hello"))];
        signed(b"hello").body(Script::new(steps)).expect("a request")
    };
    let rotate = async { keys.set(&bot("b1"), [key("new")]) };
    let (arrived_before, _) = tokio::join!(send(&webhook, slow()), rotate);
    assert_eq!(reason(arrived_before), None);
    assert_eq!(reason(send(&webhook, slow()).await), Some("signature_invalid"));
}

#[tokio::test]
async fn a_body_may_have_exactly_as_many_bytes_as_the_limit() {
    let default = webhook();
    let small = webhook().limit(5);
    for (webhook, limit) in [(&default, MIB), (&small, 5), (&webhook().limit(0), 0)] {
        for (len, expected) in [(limit, None), (limit + 1, Some("body_too_large"))] {
            let body = vec![b'x'; len];
            // In frames, in one frame, declared by the body, declared by the header.
            let undeclared = signed(&body).body(Script::framed(&body, 1000)).expect("a request");
            let single = signed(&body).body(Script::framed(&body, MIB * 2)).expect("a request");
            let mut exact = Script::framed(&body, 1000);
            exact.declared = Some(len as u64);
            let exact = signed(&body).body(exact).expect("a request");
            let header =
                signed(&body).header("content-length", len).body(Script::framed(&body, 1000)).expect("a request");
            let is_declared = [false, false, true, true];
            for (request, is_declared) in [undeclared, single, exact, header].into_iter().zip(is_declared) {
                let polled = request.body().polled.clone();
                let (outcome, context) = noted(webhook, request).await;
                assert_eq!(outcome.as_ref().err().map(|e| e.kind()), expected.map(|_| Kind::TooLarge));
                assert_eq!(reason(outcome), expected, "{len} of {limit}");
                assert_eq!(context.auth(), Some(expected.unwrap_or("ok")));
                assert_eq!(polled.load(Ordering::Relaxed) == 0, is_declared && expected.is_some());
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_grows_too_large_is_not_read_further() {
    let body = Script::new(vec![Step::Data(Bytes::from_static(b"xxxx")); 1000]);
    let polled = body.polled.clone();
    let request = signed(b"").header("content-length", "4").body(body).expect("a request");
    assert_eq!(reason(send(&webhook().limit(10), request).await), Some("body_too_large"));
    assert_eq!(polled.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_body_has_to_arrive_in_time() {
    let hello = || Step::Data(Bytes::from_static(b"hello"));
    let cases = [
        (webhook(), Duration::from_millis(9_999), None),
        (webhook(), Duration::from_millis(10_001), Some("body_timeout")),
        (webhook().timeout(Duration::from_millis(20)), Duration::from_millis(19), None),
        (webhook().timeout(Duration::from_millis(20)), Duration::from_millis(21), Some("body_timeout")),
        (webhook().timeout(Duration::MAX), Duration::from_secs(100_000), None),
    ];
    for (webhook, time, expected) in cases {
        // The pauses count together.
        let body = Script::new([Step::Wait(time / 2), hello(), Step::Wait(time / 2)]);
        let (outcome, context) = noted(&webhook, signed(b"hello").body(body).expect("a request")).await;
        assert_eq!(outcome.as_ref().err().map(|e| e.kind()), expected.map(|_| Kind::Timeout));
        assert_eq!(reason(outcome), expected, "{time:?}");
        assert_eq!(context.auth(), Some(expected.unwrap_or("ok")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_endless_empty_frames_neither_blocks_the_worker_nor_outruns_the_timer() {
    let request = signed(b"").body(Script::new([Step::Endless])).expect("a request");
    let time_passes = async {
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(11)).await;
    };
    let policy = webhook();
    let (outcome, ()) = tokio::join!(send(&policy, request), time_passes);
    assert_eq!(reason(outcome), Some("body_timeout"));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_invalid() {
    let body = Script::new([Step::Data(Bytes::from_static(b"hello")), Step::Fail]);
    let (refused, context) = noted(&webhook(), signed(b"hello").body(body).expect("a request")).await;
    let refused = refused.expect_err("refused");
    assert_eq!((refused.kind(), refused.reason()), (Kind::Invalid, "body_error"));
    assert_eq!(std::error::Error::source(&refused).expect("the cause").to_string(), "the connection broke");
    assert_eq!(context.auth(), Some("body_error"));
}

#[tokio::test]
async fn an_empty_body_and_trailers_are_handed_on() {
    let sent = send(&webhook(), signed(b"").body(Script::default()).expect("a request")).await.expect("accepted");
    assert!(sent.body().is_end_stream());

    let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("t"))]);
    let body = Script::new([Step::Data(Bytes::from_static(b"hello")), Step::Trailers(trailers.clone())]);
    let sent = send(&webhook(), signed(b"hello").body(body).expect("a request")).await.expect("accepted");
    let collected = sent.into_body().collect().await.expect("a body");
    assert_eq!(collected.trailers(), Some(&trailers));
}

#[tokio::test]
async fn frames_are_handed_on_without_a_copy() {
    let data = Bytes::from(b"hello".to_vec());
    let request = signed(b"hello").body(Script::new([Step::Data(data.clone())])).expect("a request");
    let sent = send(&webhook().user(|_| None), request).await.expect("accepted");
    let frame = sent.into_body().frame().await.expect("a frame").expect("no error").into_data().expect("data");
    assert_eq!(frame.as_ptr(), data.as_ptr());
}

#[tokio::test]
async fn the_user_is_read_from_a_verified_body_only() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let webhook = webhook().user(move |body| {
        count.fetch_add(1, Ordering::Relaxed);
        UserId::new(std::str::from_utf8(body).ok()?).ok()
    });
    let framed = signed(b"user-7").body(Script::framed(b"user-7", 1)).expect("a request");
    let (sent, context) = noted(&webhook, framed).await;
    assert_eq!(context.user.get().map(UserId::as_str), Some("user-7"), "of all frames together");
    assert_eq!(sent.expect("accepted").into_body().collect().await.expect("a body").to_bytes(), "user-7");

    let (sent, context) = noted(&webhook, from_b1("not\na user")).await;
    assert_eq!((sent.is_ok(), context.user.get()), (true, None));

    let forged = signed(b"other").body(Script::from("user-7")).expect("a request");
    let (refused, context) = noted(&webhook, forged).await;
    assert_eq!((refused.is_ok(), context.user.get()), (false, None));
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[test]
fn nothing_prints_a_key() {
    let keys = WebhookKeys::new();
    keys.set(&bot("b1"), [key("tell-nobody")]).expect("one key");
    let shown = format!("{:?} {:?} {:?}", key("tell-nobody"), keys, Webhook::new(keys.clone()));
    assert!(shown.contains("b1") && !shown.contains("tell-nobody"), "{shown}");
    assert!(!shown.contains(&format!("{:?}", b"tell-nobody")[1..20]), "{shown}");
}

proptest! {
    #[test]
    fn exactly_what_was_signed_is_accepted(
        body in prop::collection::vec(any::<u8>(), 0..300),
        size in 1usize..100,
        flip in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut signature = sign("one", &body).into_bytes();
        let mut sent = body.clone();
        if let Some(index) = flip {
            // One bit of the body, or one digit of the signature.
            match index.index(body.len() + 64).checked_sub(64) {
                Some(at) => sent[at] ^= 1,
                None => {
                    let at = index.index(64);
                    signature[at] = if signature[at] == b'0' { b'1' } else { b'0' };
                }
            }
        }
        let request = Request::post("/webhook/b1").header("x-signature", signature);
        let request = request.body(Script::framed(&sent, size)).expect("a request");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let outcome = runtime.block_on(send(&webhook(), request));
        prop_assert_eq!(outcome.is_ok(), flip.is_none());
    }
}
