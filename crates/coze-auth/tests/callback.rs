//! The callback policy: the platform's signature, its clock, and its nonces.

mod support;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use coze_auth::{Callback, Key};
use coze_core::{Kind, Retry};
use http::{HeaderValue, Request};
use sha1::{Digest, Sha1};
use support::{Script, Step, noted, reason, send};

const NOW: u64 = 1_613_427_443_000;
const WINDOW: u64 = 5 * 60 * 1000;

fn keys(tokens: &[&str]) -> Vec<Key> {
    tokens.iter().map(|token| Key::new(token).expect("not empty")).collect()
}

fn callback() -> Callback {
    let clock = || UNIX_EPOCH + Duration::from_millis(NOW);
    Callback::new("app-1", keys(&["verify_tok"])).expect("one token").clock(clock)
}

fn sign(timestamp: &str, nonce: &str, token: &str, body: &str) -> String {
    hex::encode(Sha1::digest(format!("{timestamp}{nonce}{token}{body}")))
}

fn headed(timestamp: &str, nonce: &str, signature: &str, body: Script) -> Request<Script> {
    Request::post("/callback")
        .header("x-coze-timestamp", timestamp)
        .header("x-coze-nonce", nonce)
        .header("x-coze-signature", signature)
        .body(body)
        .expect("a request")
}

/// A callback of this time, signed.
fn sent_at(timestamp: u64, nonce: &str) -> Request<Script> {
    let timestamp = timestamp.to_string();
    headed(&timestamp, nonce, &sign(&timestamp, nonce, "verify_tok", "{}"), "{}".into())
}

#[tokio::test]
async fn the_platforms_own_signature_is_accepted_and_its_signer_noted() {
    // coze-platform.md §5.1
    let body = r#"{"header":{"event_type":"bot.published","event_id":"12345abc"},"event":{}}"#;
    let signature = "a1414c14d8f2852e591839f2a8f01eafddf0c68c";
    let request = headed("1613427443000", "n0nce", signature, body.into());
    let (sent, context) = noted(&callback(), request).await;
    assert_eq!(reason(sent), None);
    let principal = context.principal.get().expect("noted");
    assert_eq!((principal.scheme, &*principal.subject), ("callback", "app-1"));
    assert_eq!((context.auth(), context.bot.get()), (Some("ok"), None));
}

#[tokio::test]
async fn what_was_not_signed_is_refused() {
    let signature = sign(&NOW.to_string(), "n", "verify_tok", "{}");
    let (now, later) = (NOW.to_string(), (NOW + 1).to_string());
    let hmac_like = sign("", "", "verify_tok", "{}");
    let cases = [
        (&now, "n", signature.as_str(), "{ }"),
        (&now, "m", &signature, "{}"),
        (&later, "n", &signature, "{}"),
        (&now, "n", &hmac_like, "{}"),
        (&now, "n", &sign(&now, "n", "another", "{}"), "{}"),
    ];
    for (timestamp, nonce, signature, body) in cases {
        let (refused, context) = noted(&callback(), headed(timestamp, nonce, signature, body.into())).await;
        let refused = refused.expect_err("refused");
        assert_eq!((refused.kind(), refused.reason()), (Kind::Unauthenticated, "signature_invalid"));
        assert_eq!((context.auth(), context.principal.get()), (Some("signature_invalid"), None));
    }
}

#[tokio::test]
async fn each_header_is_there_once_and_well_formed() {
    let long = "n".repeat(129);
    let cases: [(&str, &[&str]); 3] = [
        ("x-coze-signature", &["", "a1414c14", "zz414c14d8f2852e591839f2a8f01eafddf0c68c"]),
        // The same time in other words, and where a digit moved from the nonce or to it.
        (
            "x-coze-timestamp",
            &["", "1613427443", "+1613427443000", "01613427443000", "161342744300", "16134274430001", "١٦"],
        ),
        ("x-coze-nonce", &["", &long, "é"]),
    ];
    for (name, malformed) in cases {
        let mut request = sent_at(NOW, "n");
        request.headers_mut().remove(name);
        assert_eq!(reason(send(&callback(), request).await), Some("missing_credentials"), "{name}");

        let mut request = sent_at(NOW, "n");
        let value = request.headers()[name].clone();
        request.headers_mut().append(name, value);
        assert_eq!(reason(send(&callback(), request).await), Some("parse_error"), "{name} twice");

        for value in malformed {
            let mut request = sent_at(NOW, "n");
            request.headers_mut().insert(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
            let polled = request.body().polled.clone();
            assert_eq!(reason(send(&callback(), request).await), Some("parse_error"), "{name}: {value:?}");
            assert_eq!(polled.load(Ordering::Relaxed), 0, "the body was not read");
        }
    }
    assert_eq!(reason(send(&callback(), sent_at(NOW, &long[..128])).await), None);
}

#[tokio::test]
async fn a_copy_that_moves_a_digit_between_timestamp_and_nonce_is_refused() {
    let callback = callback().window(Duration::MAX);
    let original = sent_at(NOW, "7abc");
    let signature = original.headers()["x-coze-signature"].to_str().expect("digits").to_owned();
    assert_eq!(reason(send(&callback, original).await), None);
    for (timestamp, nonce) in [(format!("{NOW}7"), "abc"), (NOW.to_string()[..12].to_owned(), "07abc")] {
        let moved = headed(&timestamp, nonce, &signature, "{}".into());
        assert_eq!(reason(send(&callback, moved).await), Some("parse_error"));
    }
}

#[tokio::test]
async fn the_window_ends_exactly_five_minutes_from_now() {
    let cases = [
        (NOW - WINDOW - 1, Some("token_expired")),
        (NOW - WINDOW, None),
        (NOW + WINDOW, None),
        (NOW + WINDOW + 1, Some("token_not_yet_valid")),
        (1_000_000_000_000, Some("token_expired")),
        (9_999_999_999_999, Some("token_not_yet_valid")),
    ];
    for (timestamp, expected) in cases {
        let (outcome, context) = noted(&callback(), sent_at(timestamp, "n")).await;
        assert_eq!(reason(outcome), expected, "{timestamp}");
        assert_eq!(context.auth(), Some(expected.unwrap_or("ok")));
    }
    let narrow = callback().window(Duration::ZERO);
    assert_eq!(reason(send(&narrow, sent_at(NOW, "n")).await), None);
    assert_eq!(reason(send(&narrow, sent_at(NOW - 1, "n")).await), Some("token_expired"));
    let broken_clock = callback().clock(|| UNIX_EPOCH - Duration::from_secs(1));
    assert_eq!(reason(send(&broken_clock, sent_at(NOW, "n")).await), Some("token_not_yet_valid"));
}

#[tokio::test]
async fn a_nonce_is_good_for_one_request_whatever_else_changes() {
    let callback = callback();
    assert_eq!(reason(send(&callback, sent_at(NOW, "n")).await), None);
    for again in [sent_at(NOW, "n"), sent_at(NOW + 1, "n")] {
        let (refused, context) = noted(&callback.clone(), again).await;
        let refused = refused.expect_err("refused");
        assert_eq!((refused.kind(), refused.reason()), (Kind::Unauthenticated, "replayed"));
        assert_eq!((context.auth(), context.principal.get()), (Some("replayed"), None));
    }
    assert_eq!(reason(send(&callback, sent_at(NOW, "m")).await), None, "the event sent again under another nonce");
}

#[tokio::test]
async fn a_forged_request_does_not_use_up_a_nonce() {
    let callback = callback();
    let forged = headed(&NOW.to_string(), "n", &"00".repeat(20), "{}".into());
    assert_eq!(reason(send(&callback, forged).await), Some("signature_invalid"));
    assert_eq!(reason(send(&callback, sent_at(NOW, "n")).await), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_copies_at_once_exactly_one_passes() {
    let callback = callback();
    for round in 0..50 {
        let nonce = format!("n{round}");
        let copies: Vec<_> = (0..16)
            .map(|_| {
                let (callback, copy) = (callback.clone(), sent_at(NOW, &nonce));
                tokio::spawn(async move { reason(send(&callback, copy).await) })
            })
            .collect();
        let mut passed = 0;
        for copy in copies {
            match copy.await.expect("no panic") {
                None => passed += 1,
                Some(reason) => assert_eq!(reason, "replayed"),
            }
        }
        assert_eq!(passed, 1);
    }
}

#[tokio::test]
async fn a_full_store_refuses_new_nonces_until_one_leaves_the_window() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW);
    fn clock() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(CLOCK.load(Ordering::Relaxed))
    }
    let callback = callback().clock(clock).nonces(2);
    assert_eq!(reason(send(&callback, sent_at(NOW + 1, "a")).await), None);
    assert_eq!(reason(send(&callback, sent_at(NOW, "b")).await), None);
    let refused = send(&callback, sent_at(NOW, "c")).await.expect_err("full");
    assert_eq!((refused.kind(), refused.reason(), refused.retry()), (Kind::Overloaded, "nonces_full", Retry::Safe));
    assert_eq!(reason(send(&callback, sent_at(NOW, "b")).await), Some("replayed"), "none is forgotten");

    CLOCK.store(NOW + WINDOW, Ordering::Relaxed);
    assert_eq!(reason(send(&callback, sent_at(NOW, "b")).await), Some("replayed"), "it still counts");
    CLOCK.store(NOW + WINDOW + 1, Ordering::Relaxed);
    assert_eq!(reason(send(&callback, sent_at(NOW, "b")).await), Some("token_expired"));
    assert_eq!(reason(send(&callback, sent_at(NOW + 1, "c")).await), None, "b made room");
    assert_eq!(reason(send(&callback, sent_at(NOW + 1, "a")).await), Some("replayed"));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_ends_after_the_window_is_too_late() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW);
    let callback = callback().clock(|| UNIX_EPOCH + Duration::from_millis(CLOCK.load(Ordering::Relaxed)));
    let timestamp = (NOW - WINDOW).to_string();
    let body = Script::new([Step::Wait(Duration::from_secs(1)), Step::Data(Bytes::from_static(b"{}"))]);
    let slow = headed(&timestamp, "n", &sign(&timestamp, "n", "verify_tok", "{}"), body);
    let time_passes = async { CLOCK.store(NOW + 1, Ordering::Relaxed) };
    let (outcome, ()) = tokio::join!(send(&callback, slow), time_passes);
    assert_eq!(reason(outcome), Some("token_expired"), "its nonce might be forgotten already");
}

#[tokio::test(start_paused = true)]
async fn the_body_has_the_same_limits_as_a_webhooks() {
    let request = |body| headed(&NOW.to_string(), "n", &sign(&NOW.to_string(), "n", "verify_tok", "12345"), body);
    assert_eq!(reason(send(&callback().limit(5), request("12345".into())).await), None);
    assert_eq!(reason(send(&callback().limit(4), request("12345".into())).await), Some("body_too_large"));
    let mut slow = Script::new([Step::Wait(Duration::from_secs(2)), Step::Data(Bytes::from_static(b"12345"))]);
    slow.declared = Some(5);
    let patient = callback().timeout(Duration::from_secs(1));
    assert_eq!(reason(send(&patient, request(slow)).await), Some("body_timeout"));
}

#[tokio::test]
async fn any_of_the_tokens_verifies() {
    let clock = || UNIX_EPOCH + Duration::from_millis(NOW);
    let callback = Callback::new("app-1", keys(&["new", "other", "more", "verify_tok"])).expect("four").clock(clock);
    assert_eq!(reason(send(&callback, sent_at(NOW, "n")).await), None);
    for (tokens, expected) in [(&["t"; 5][..], "keys_too_many"), (&[], "keys_missing")] {
        let refused = Callback::new("app-1", keys(tokens)).expect_err("refused");
        assert_eq!((refused.kind(), refused.reason()), (Kind::Invalid, expected));
    }
}

#[tokio::test]
async fn tokens_are_exchanged_and_no_nonce_is_forgotten_for_it() {
    let first = callback();
    assert_eq!(reason(send(&first, sent_at(NOW, "n")).await), None);
    let both = first.clone().tokens(keys(&["another", "verify_tok"])).expect("valid");
    assert_eq!(reason(send(&both, sent_at(NOW, "n")).await), Some("replayed"));
    assert_eq!(reason(send(&both, sent_at(NOW, "m")).await), None);
    let other = both.tokens(keys(&["another"])).expect("valid");
    assert_eq!(reason(send(&other, sent_at(NOW, "o")).await), Some("signature_invalid"));
    assert_eq!(reason(send(&first, sent_at(NOW, "m")).await), Some("replayed"), "both ways");
    assert_eq!(other.clone().tokens([]).expect_err("none").reason(), "keys_missing");
    assert_eq!(other.tokens(keys(&["1", "2", "3", "4", "5"])).expect_err("five").reason(), "keys_too_many");
}

#[test]
fn nothing_prints_a_token_or_a_nonce() {
    let shown = format!("{:?}", callback());
    assert!(shown.contains("app-1") && !shown.contains("verify_tok") && !shown.contains("nonces"), "{shown}");
}
