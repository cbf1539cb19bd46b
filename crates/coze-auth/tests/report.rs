//! Policies that only report what they would refuse.

mod support;

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use coze_auth::{Callback, Key, Webhook, WebhookKeys};
use coze_core::{Context, Refusal};
use http::Request;
use http_body_util::BodyExt;
use support::{Script, Step, bot, noted, reason, send};

const BODY: &str = r#"{"text":"hi"}"#;
/// Of the body, by `bot-token`.
const SIGNATURE: &str = "a59566ab6fe628c1fcc5d0bacf757f4300f248ab8ca409af8e757bec2fc546a7";

fn webhook() -> Webhook {
    let keys = WebhookKeys::new();
    keys.set(&bot("b1"), [Key::new("bot-token").expect("not empty")]).expect("one key");
    Webhook::new(keys).report_only()
}

fn message(signature: &str, body: impl Into<Script>) -> Request<Script> {
    Request::post("/").header("x-signature", signature).body(body.into()).expect("a request")
}

/// What was reported, what was refused, and whether a signer is noted.
fn notes(context: &Context) -> (Option<&'static str>, Option<&'static str>, bool) {
    let reason = |refusal: Option<&Refusal>| refusal.map(|refusal| refusal.reason);
    (
        reason(context.reported.get()),
        reason(context.refusal.get()),
        context.principal.get().is_some() && context.bot.get().is_some(),
    )
}

#[tokio::test]
async fn what_is_wrong_with_a_message_is_noted_and_counted_and_the_message_handed_on_whole() {
    let policy = webhook();
    let clone = policy.clone();
    let forged = "00".repeat(32);
    for (signature, expected) in [("zz", Some("parse_error")), (&forged, Some("signature_invalid")), (SIGNATURE, None)]
    {
        let (passed, context) = noted(&clone, message(signature, Script::framed(BODY.as_bytes(), 3))).await;
        let body = passed.expect("handed on").into_body().collect().await.expect("whole").to_bytes();
        assert_eq!(body, BODY);
        assert_eq!(notes(&context), (expected, None, expected.is_none()), "nobody is noted who did not sign");
    }
    assert_eq!((policy.reported(), clone.reported()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_handed_on_is_refused_all_the_same_and_not_counted() {
    let policy = webhook().limit(5).timeout(Duration::from_secs(1));
    let mut declared = Script::from(BODY);
    declared.declared = Some(6);
    let slow = || Script::new([Step::Wait(Duration::from_secs(2)), Step::Data(Bytes::from_static(b"{}"))]);
    for (body, expected) in [
        (declared, "body_too_large"),
        (Script::framed(BODY.as_bytes(), 3), "body_too_large"),
        (slow(), "body_timeout"),
        (Script::new([Step::Fail]), "body_error"),
    ] {
        let (refused, context) = noted(&policy, message("zz", body)).await;
        assert_eq!((reason(refused), notes(&context)), (Some(expected), (None, Some(expected), false)));
    }
    assert_eq!(policy.reported(), 0);
}

#[tokio::test]
async fn a_callback_is_reported_too_and_uses_its_nonce_only_if_it_is_signed() {
    let clock = || UNIX_EPOCH + Duration::from_millis(1_613_427_443_000);
    let tokens = [Key::new("verify_tok").expect("not empty")];
    let policy = Callback::new("app-1", tokens).expect("one token").clock(clock).report_only();
    let sent = |signature: &'static str| {
        Request::post("/callback")
            .header("x-coze-timestamp", "1613427443000")
            .header("x-coze-nonce", "n0nce")
            .header("x-coze-signature", signature)
            // coze-platform.md §5.1
            .body(r#"{"header":{"event_type":"bot.published","event_id":"12345abc"},"event":{}}"#.into())
            .expect("a request")
    };
    let signed = "a1414c14d8f2852e591839f2a8f01eafddf0c68c";
    let forged = "a1414c14d8f2852e591839f2a8f01eafddf0c68d";
    for (signature, expected) in [(forged, Some("signature_invalid")), (signed, None), (signed, Some("replayed"))] {
        let (passed, context) = noted(&policy, sent(signature)).await;
        assert_eq!((reason(passed), context.reported.get().map(|r| r.reason)), (None, expected));
        assert_eq!(context.principal.get().is_some(), expected.is_none());
    }
    assert_eq!(policy.reported(), 2);
}

#[tokio::test]
async fn who_does_not_only_report_counts_nothing() {
    let keys = WebhookKeys::new();
    let policy = Webhook::new(keys);
    assert_eq!(reason(send(&policy, message("zz", BODY)).await), Some("parse_error"));
    assert_eq!(policy.reported(), 0);
}
