//! Standard Webhooks, by the specification and the vector that its libraries share.

mod support;

use std::{
    sync::atomic::Ordering,
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use coze_auth::{Key, MemoryReplay, StandardWebhooks};
use coze_core::Kind;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderName, HeaderValue, Request};
use proptest::prelude::*;
use sha2::Sha256;
use support::{Script, noted, reason, send};

/// The vector of the reference libraries.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const NOW: u64 = 1_614_265_330;
const BODY: &str = r#"{"test": 2432232314}"#;
const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const WINDOW: u64 = 5 * 60;

fn secrets(texts: &[&str]) -> Vec<Key> {
    texts.iter().map(|text| Key::whsec(text).expect("a secret")).collect()
}

fn policy() -> StandardWebhooks {
    let clock = || UNIX_EPOCH + Duration::from_secs(NOW);
    StandardWebhooks::new("billing", secrets(&[SECRET])).expect("one secret").clock(clock)
}

fn sign(secret: &str, id: &str, timestamp: impl ToString, body: &[u8]) -> String {
    let secret = STANDARD.decode(secret.trim_start_matches("whsec_")).expect("base64");
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret).expect("any length");
    mac.update(format!("{id}.{}.", timestamp.to_string()).as_bytes());
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

fn headed(id: &str, timestamp: impl ToString, signature: &str, body: impl Into<Script>) -> Request<Script> {
    Request::post("/")
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp.to_string())
        .header("webhook-signature", signature)
        .body(body.into())
        .expect("a request")
}

/// A request of this time, signed.
fn sent_at(timestamp: u64, id: &str) -> Request<Script> {
    headed(id, timestamp, &sign(SECRET, id, timestamp, b"{}"), "{}")
}

#[tokio::test]
async fn the_vector_of_the_specification_is_accepted_and_its_sender_noted() {
    assert_eq!(sign(SECRET, ID, NOW, BODY.as_bytes()), SIGNATURE);
    let (passed, context) = noted(&policy(), headed(ID, NOW, SIGNATURE, BODY)).await;
    assert_eq!(reason(passed), None);
    let principal = context.principal.get().expect("noted");
    assert_eq!((principal.scheme, &*principal.subject), ("standard_webhooks", "billing"));
}

#[tokio::test]
async fn what_was_not_signed_is_refused() {
    for (id, timestamp, signature, body) in [
        (ID, NOW, SIGNATURE, r#"{"test":2432232314}"#),
        (ID, NOW + 1, SIGNATURE, BODY),
        ("msg_other", NOW, SIGNATURE, BODY),
        (ID, NOW, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLawdd=", BODY),
        (ID, NOW, &sign(OTHER, ID, NOW, BODY.as_bytes()), BODY),
    ] {
        let (refused, context) = noted(&policy(), headed(id, timestamp, signature, body)).await;
        let refused = refused.expect_err("refused");
        assert_eq!((refused.kind(), refused.reason()), (Kind::Unauthenticated, "signature_invalid"));
        assert_eq!((context.auth(), context.principal.get()), (Some("signature_invalid"), None));
    }
}

#[tokio::test]
async fn one_good_signature_among_others_is_enough_and_other_versions_are_passed_over() {
    let bare = SIGNATURE.strip_prefix("v1,").expect("a version");
    let other = sign(OTHER, ID, NOW, BODY.as_bytes());
    let v1a = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";
    let many = |count: usize| format!("{}{SIGNATURE}", "v2,x ".repeat(count - 1));
    for (signatures, expected) in [
        (format!("{other} {SIGNATURE}"), None),
        (format!("{SIGNATURE} {other}"), None),
        (format!("{v1a} v1,  {SIGNATURE} nonsense"), None),
        (many(16), None),
        (many(17), Some("parse_error")),
        (v1a.to_owned(), Some("signature_invalid")),
        (format!("v1a,{bare} v2,{bare} V1,{bare} v1 {bare} {bare} ,{bare}"), Some("signature_invalid")),
        (format!("{SIGNATURE},{other}"), Some("signature_invalid")),
        // The same bytes in other letters.
        (SIGNATURE.trim_end_matches('=').to_owned(), Some("signature_invalid")),
        (SIGNATURE.replace("E=", "F="), Some("signature_invalid")),
        (SIGNATURE.replace('+', "-").replace('/', "_"), Some("signature_invalid")),
        (SIGNATURE[..20].to_owned(), Some("signature_invalid")),
        ("v1,".to_owned(), Some("signature_invalid")),
        (String::new(), Some("signature_invalid")),
    ] {
        assert_eq!(reason(send(&policy(), headed(ID, NOW, &signatures, BODY)).await), expected, "{signatures}");
    }
}

#[tokio::test]
async fn any_of_the_secrets_verifies() {
    let clock = || UNIX_EPOCH + Duration::from_secs(NOW);
    let both = StandardWebhooks::new("billing", secrets(&[OTHER, SECRET])).expect("two").clock(clock);
    assert_eq!(reason(send(&both, headed(ID, NOW, SIGNATURE, BODY)).await), None);
    for (count, expected) in [(0, "keys_missing"), (5, "keys_too_many")] {
        let refused = StandardWebhooks::new("billing", secrets(&[SECRET; 5][..count])).expect_err("refused");
        assert_eq!((refused.kind(), refused.reason()), (Kind::Invalid, expected));
    }
}

#[test]
fn a_secret_is_24_to_64_bytes_in_base64() {
    for length in [24, 64] {
        assert!(Key::whsec(&format!("whsec_{}", STANDARD.encode(vec![7; length]))).is_ok());
    }
    assert!(Key::whsec(SECRET.trim_start_matches("whsec_")).is_ok(), "the prefix is only for people");
    let [short, long] = [23, 65].map(|length| format!("whsec_{}", STANDARD.encode(vec![7; length])));
    for text in ["", "whsec_", "whsec_tell nobody", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &short, &long] {
        let refused = Key::whsec(text).expect_err("refused");
        assert_eq!((refused.kind(), refused.reason()), (Kind::Invalid, "key_invalid"), "{text}");
        assert!(!format!("{refused:?}").contains("tell nobody"));
    }
}

#[tokio::test]
async fn each_header_is_there_once_and_well_formed_and_no_other_name_will_do() {
    let long = "m".repeat(257);
    let cases: [(&str, &[&str]); 3] = [
        ("webhook-signature", &[]),
        ("webhook-timestamp", &["", "+1614265330", "-1", "1614265330.5", "1 614265330", "1614265330000", "١٦"]),
        ("webhook-id", &["", &long, "é", "msg_1.1614265330", "."]),
    ];
    for (name, malformed) in cases {
        let mut request = sent_at(NOW, "m");
        let value = request.headers_mut().remove(name).expect("there");
        let branded = HeaderName::try_from(name.replace("webhook", "svix")).expect("a name");
        request.headers_mut().insert(branded, value.clone());
        assert_eq!(reason(send(&policy(), request).await), Some("missing_credentials"), "{name}");

        let mut request = sent_at(NOW, "m");
        request.headers_mut().append(name, value);
        assert_eq!(reason(send(&policy(), request).await), Some("parse_error"), "{name} twice");

        for value in malformed {
            let mut request = sent_at(NOW, "m");
            request.headers_mut().insert(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
            let polled = request.body().polled.clone();
            assert_eq!(reason(send(&policy(), request).await), Some("parse_error"), "{name}: {value:?}");
            assert_eq!(polled.load(Ordering::Relaxed), 0, "the body was not read");
        }
    }
    assert_eq!(reason(send(&policy(), sent_at(NOW, &long[..256])).await), None);
}

#[tokio::test]
async fn a_copy_that_moves_the_full_stop_is_refused() {
    // What is signed is the same: m.NOW.1614265330.5
    let (body, moved) = (format!("{NOW}.5"), format!("m.{NOW}"));
    let signature = sign(SECRET, "m", NOW, body.as_bytes());
    assert_eq!(signature, sign(SECRET, &moved, NOW, b"5"));
    let policy = policy();
    let original = headed("m", NOW, &signature, Script::framed(body.as_bytes(), 4));
    assert_eq!(reason(send(&policy, original).await), None);
    assert_eq!(reason(send(&policy, headed(&moved, NOW, &signature, "5")).await), Some("parse_error"));
}

#[tokio::test]
async fn the_window_ends_exactly_five_minutes_from_now() {
    for (timestamp, expected) in [
        (0, Some("token_expired")),
        (NOW - WINDOW - 1, Some("token_expired")),
        (NOW - WINDOW, None),
        (NOW + WINDOW, None),
        (NOW + WINDOW + 1, Some("token_not_yet_valid")),
        (999_999_999_999, Some("token_not_yet_valid")),
    ] {
        assert_eq!(reason(send(&policy(), sent_at(timestamp, "m")).await), expected, "{timestamp}");
    }
    let narrow = policy().window(Duration::ZERO);
    assert_eq!(reason(send(&narrow, sent_at(NOW, "m")).await), None);
    assert_eq!(reason(send(&narrow, sent_at(NOW - 1, "m")).await), Some("token_expired"));
}

#[tokio::test]
async fn a_copy_is_refused_and_the_event_sent_again_later_is_not() {
    let store = MemoryReplay::new(3);
    let policy = policy().store(store.clone());
    assert_eq!(reason(send(&policy, sent_at(NOW, "m")).await), None);
    assert_eq!(reason(send(&policy.clone(), sent_at(NOW, "m")).await), Some("replayed"));
    assert_eq!(reason(send(&policy, sent_at(NOW + 5, "m")).await), None, "the sender tries again");
    assert_eq!(reason(send(&policy, sent_at(NOW + 5, "m")).await), Some("replayed"));
    let clock = || UNIX_EPOCH + Duration::from_secs(NOW);
    let other = StandardWebhooks::new("other", secrets(&[SECRET])).expect("one").clock(clock).store(store);
    assert_eq!(reason(send(&other, sent_at(NOW, "m")).await), None, "the ids of another sender are others");
    assert_eq!(reason(send(&other, sent_at(NOW, "n")).await), Some("nonces_full"));
}

#[tokio::test]
async fn exchanged_secrets_forget_no_request() {
    let policy = policy();
    assert_eq!(reason(send(&policy, sent_at(NOW, "m")).await), None);
    let policy = policy.secrets(secrets(&[OTHER, SECRET])).expect("two");
    assert_eq!(reason(send(&policy, sent_at(NOW, "m")).await), Some("replayed"));
    let policy = policy.secrets(secrets(&[OTHER])).expect("one");
    assert_eq!(reason(send(&policy, sent_at(NOW, "n")).await), Some("signature_invalid"));
    assert_eq!(policy.secrets([]).expect_err("none").reason(), "keys_missing");
}

#[tokio::test]
async fn a_forged_request_does_not_use_up_an_id() {
    let policy = policy();
    let forged = headed("m", NOW, &sign(OTHER, "m", NOW, b"{}"), "{}");
    assert_eq!(reason(send(&policy, forged).await), Some("signature_invalid"));
    assert_eq!(reason(send(&policy, sent_at(NOW, "m")).await), None);
}

#[tokio::test]
async fn the_limits_of_a_body_and_the_reporting_are_those_of_a_webhook() {
    assert_eq!(reason(send(&policy().limit(1), sent_at(NOW, "m")).await), Some("body_too_large"));
    let reporting = policy().report_only();
    let (passed, context) = noted(&reporting, headed("m", NOW, "v1,x", "{}")).await;
    assert_eq!((reason(passed), reporting.reported()), (None, 1));
    assert_eq!((context.reported.get().map(|r| r.reason), context.principal.get()), (Some("signature_invalid"), None));
}

#[test]
fn nothing_prints_a_secret() {
    let shown = format!("{:?} {:?}", policy(), Key::whsec(SECRET));
    assert!(shown.contains("billing") && !shown.contains("MfKQ") && !shown.contains("49, 242"), "{shown}");
}

proptest! {
    #[test]
    fn any_bytes_in_any_frames_are_verified_as_they_came(
        body in prop::collection::vec(any::<u8>(), 0..200), size in 1usize..64, broken: Option<prop::sample::Index>,
    ) {
        let mut sent = body.clone();
        let is_broken = broken.is_some() && !sent.is_empty();
        if let Some(index) = broken.filter(|_| is_broken) {
            let place = index.index(sent.len());
            sent[place] ^= 1;
        }
        let request = headed("m", NOW, &sign(SECRET, "m", NOW, &body), Script::framed(&sent, size));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let outcome = runtime.block_on(send(&policy(), request));
        prop_assert_eq!(reason(outcome), is_broken.then_some("signature_invalid"));
    }

    #[test]
    fn no_header_whatsoever_makes_it_panic(id in any::<Vec<u8>>(), timestamp in any::<Vec<u8>>(), signature in any::<Vec<u8>>()) {
        let mut request = Request::new(Script::from("{}"));
        for (name, value) in [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)] {
            if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
                request.headers_mut().insert(name, value);
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        prop_assert!(runtime.block_on(send(&policy(), request)).is_err());
    }
}
