use std::time::Duration;

use coze_auth::{Granted, OAuthApp};
use coze_core::Error;
use serde_json::json;
use tokio::time::Instant;

use crate::scripted::{Scripted, Step, ok, refusal};

const SECOND: Duration = Duration::from_secs(1);
const CODE: &str =
    r#"{"device_code":"d1","user_code":"AB CD","verification_uri":"https://www.coze.cn/d","expires_in":300}"#;
const GRANTED: &str = r#"{"access_token":"czu_a","expires_in":900,"refresh_token":"r1"}"#;

/// What came of it, and how long it took from the code on.
async fn run(platform: &Scripted) -> (Result<Granted, Error>, Duration) {
    let device = OAuthApp::new(platform.endpoint(), "c1").device().await.expect("a code");
    let begun = Instant::now();
    (device.granted().await, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_device_shows_its_code_and_waits_for_the_person() {
    let platform = Scripted::new([ok(CODE), refusal("authorization_pending"), ok(GRANTED)]);
    let device = OAuthApp::new(platform.endpoint(), "c1").device().await.expect("a code");
    assert_eq!((device.user_code(), device.verification_uri()), ("AB CD", "https://www.coze.cn/d"));
    assert_eq!(device.verification_url(), "https://www.coze.cn/d?user_code=AB%20CD");
    assert!(!format!("{device:?}").contains("d1"));
    let begun = Instant::now();
    let granted = device.granted().await.expect("granted");
    assert_eq!((begun.elapsed(), granted.refresh_token.expose()), (10 * SECOND, "r1"));
    let sent = platform.sent();
    assert!(sent[0].0.ends_with("/api/permission/oauth2/device/code"));
    assert_eq!((&sent[0].1, &sent[0].2), (&None, &json!({ "client_id": "c1" })));
    let grant = "urn:ietf:params:oauth:grant-type:device_code";
    assert_eq!(sent[2].2, json!({ "grant_type": grant, "client_id": "c1", "device_code": "d1" }));
}

#[tokio::test(start_paused = true)]
async fn slow_down_adds_five_seconds_up_to_thirty() {
    let slow = (0..7).map(|_| refusal("slow_down"));
    let platform = Scripted::new([ok(CODE)].into_iter().chain(slow).chain([ok(GRANTED)]));
    let (granted, took) = run(&platform).await;
    granted.expect("granted");
    assert_eq!(took, (5 + 10 + 15 + 20 + 25 + 30 + 30 + 30) * SECOND);
}

#[tokio::test(start_paused = true)]
async fn an_interval_of_the_platforms_is_kept_even_where_it_is_long() {
    let code = CODE.replace("}", r#","interval":60}"#);
    let platform = Scripted::new([ok(&code), refusal("slow_down"), ok(GRANTED)]);
    assert_eq!(run(&platform).await.1, 120 * SECOND);
    let code = CODE.replace("}", r#","interval":-1}"#);
    let platform = Scripted::new([ok(&code), refusal("authorization_pending"), ok(GRANTED)]);
    assert_eq!(run(&platform).await.1, 2 * SECOND, "never at once");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_longer_than_the_code_lives() {
    for (expires, polls, life) in [(12, 2, 12), (300, 59, 300), (86_400, 719, 3600)] {
        let code = CODE.replace("300", &expires.to_string());
        let platform =
            Scripted::new([ok(&code)].into_iter().chain((0..polls).map(|_| refusal("authorization_pending"))));
        let (outcome, took) = run(&platform).await;
        assert_eq!(outcome.expect_err("over").reason(), "expired_token");
        assert_eq!((took, platform.count()), (life * SECOND, polls + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_hangs_ends_with_the_code() {
    let code = CODE.replace("300", "8");
    let platform = Scripted::new([ok(&code), Step::Silence]);
    let (outcome, took) = run(&platform).await;
    assert_eq!((outcome.expect_err("over").reason(), took), ("expired_token", 8 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn what_is_final_ends_the_wait_and_what_passes_does_not() {
    for last in ["access_denied", "expired_token", "invalid_request", "invalid_client", "access_deny"] {
        let platform = Scripted::new([
            ok(CODE),
            Step::Answer(502, "<html>".into()),
            refusal("internal_error"),
            Step::Fail("broken".into()),
            refusal(last),
        ]);
        assert_eq!(run(&platform).await.0.expect_err("final").reason(), last);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_endpoint_asks_for_is_kept_once() {
    let pending = r#"{"error":"authorization_pending"}"#;
    let platform = Scripted::new([
        ok(CODE),
        Step::Wait(429, "60", ""),
        refusal("authorization_pending"),
        Step::Wait(400, "20", pending),
        ok(GRANTED),
    ]);
    let (granted, took) = run(&platform).await;
    granted.expect("granted");
    assert_eq!(took, (5 + 60 + 10 + 20) * SECOND);
}

#[tokio::test(start_paused = true)]
async fn times_that_are_text_or_have_a_fraction_are_times() {
    let code = CODE.replace("300", "\"20\"").replace("}", r#","interval":7.0}"#);
    let platform = Scripted::new([ok(&code), refusal("authorization_pending"), refusal("authorization_pending")]);
    let (outcome, took) = run(&platform).await;
    assert_eq!((outcome.expect_err("over").reason(), took), ("expired_token", 20 * SECOND));
    let code = CODE.replace("/d", "/d?x=1");
    let device = OAuthApp::new(Scripted::new([ok(&code)]).endpoint(), "c1").device().await.expect("a code");
    assert_eq!(device.verification_url(), "https://www.coze.cn/d?x=1&user_code=AB%20CD");
}

#[tokio::test]
async fn an_answer_without_a_code_is_nonsense() {
    for missing in ["device_code", "user_code", "verification_uri"] {
        let platform = Scripted::new([ok(&CODE.replace(missing, "other"))]);
        let error = OAuthApp::new(platform.endpoint(), "c1").device().await.expect_err("nonsense");
        assert_eq!(error.reason(), "token_nonsense");
    }
}
