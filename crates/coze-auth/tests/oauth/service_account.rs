use std::{
    collections::HashSet,
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use coze_auth::{Endpoint, Refresher, ServiceAccount};
use coze_core::{Error, Kind, Retry};
use coze_sim::App;
use serde_json::{Value, json};

use crate::scripted::{Scripted, Step, ok, refusal};

const GRANTED: &str = r#"{"access_token":"czs_a","expires_in":1720098900}"#;

fn account(platform: &Scripted) -> ServiceAccount<Scripted> {
    let (_, key) = App::with_key("c1").expect("a key");
    let endpoint = platform.endpoint().clock(|| UNIX_EPOCH + Duration::from_secs(1_720_098_000));
    ServiceAccount::new(endpoint, "c1", "k1", &key).expect("a key")
}

/// Header and claims of an assertion.
fn parts(authorization: Option<String>) -> (Value, Value) {
    let text = authorization.expect("signed");
    let mut parts = text
        .strip_prefix("Bearer ")
        .expect("a bearer token")
        .split('.')
        .map(|part| URL_SAFE_NO_PAD.decode(part).expect("base64url without padding"));
    let mut json = || serde_json::from_slice(&parts.next().expect("a part")).expect("JSON");
    (json(), json())
}

#[tokio::test]
async fn an_assertion_says_what_the_platform_wants_to_know() {
    let platform = Scripted::new([ok(GRANTED), ok(GRANTED), ok(GRANTED)]);
    let plain = account(&platform);
    assert_eq!(plain.refresh().await.expect("granted").lifetime(), Some(Duration::from_secs(900)));
    let whole = plain.session_name("u1").device("d1", "x1").permissions(&["Connector.botChat"]).bots(&["b1"]);
    let whole = whole.duration(Duration::from_secs(86_399)).expect("valid");
    whole.clone().account("a-1").expect("valid").refresh().await.expect("granted");
    whole.enterprise("e_1").expect("valid").refresh().await.expect("granted");

    let [(url, first, body), (account, second, scoped), (enterprise, ..)] = &platform.sent()[..] else {
        panic!("three")
    };
    let grant = "urn:ietf:params:oauth:grant-type:jwt-bearer";
    assert_eq!(url, "https://api.coze.cn/api/permission/oauth2/token");
    assert_eq!(*body, json!({ "grant_type": grant, "duration_seconds": 900 }));
    let (header, mut claims) = parts(first.clone());
    assert_eq!(header, json!({ "alg": "RS256", "typ": "JWT", "kid": "k1" }));
    assert!(claims["jti"].take().as_str().is_some_and(|jti| jti.len() > 32));
    let (iat, exp) = (1_720_098_000, 1_720_098_600);
    assert_eq!(claims, json!({ "iss": "c1", "aud": "api.coze.cn", "iat": iat, "exp": exp, "jti": null }));

    assert_eq!(account, "https://api.coze.cn/api/permission/oauth2/account/a-1/token");
    assert_eq!(enterprise, "https://api.coze.cn/api/permission/oauth2/enterprise_id/e_1/token");
    let (_, claims) = parts(second.clone());
    assert_eq!(claims["session_name"], "u1");
    let device = json!({ "device_id": "d1", "custom_consumer": "x1" });
    assert_eq!(claims["session_context"], json!({ "device_info": device }));
    assert_eq!(scoped["duration_seconds"], 86_399);
    let scope = json!({
        "account_permission": { "permission_list": ["Connector.botChat"] },
        "attribute_constraint": { "connector_bot_chat_attribute": { "bot_id_list": ["b1"] } },
    });
    assert_eq!(scoped["scope"], scope);
}

#[tokio::test]
async fn no_assertion_is_sent_twice_whatever_became_of_the_first() {
    let failures = (0..20).map(|n| match n % 3 {
        0 => refusal("internal_error"),
        1 => Step::Fail("broken".into()),
        _ => Step::Answer(502, String::new()),
    });
    let platform = Scripted::new(failures);
    let account = account(&platform);
    for _ in 0..20 {
        account.clone().refresh().await.expect_err("failed");
    }
    let sent: HashSet<_> =
        platform.sent().into_iter().map(|(_, assertion, _)| parts(assertion).1["jti"].clone()).collect();
    assert_eq!(sent.len(), 20);
}

#[tokio::test]
async fn the_end_of_a_token_is_read_in_whatever_way_it_is_written() {
    let seconds = |seconds: u64| Some(Duration::from_secs(seconds));
    for (expires, life) in [
        ("1720098900", seconds(900)),
        ("1720098900000", seconds(900)),
        ("900", seconds(900)),
        ("1720098900.0", seconds(900)),
        ("1720098900.7", seconds(900)),
        ("1.7200989e9", seconds(900)),
        ("\"1720098900\"", seconds(900)),
        ("\" 900.5 \"", seconds(900)),
        ("1720098000", seconds(0)),
        ("-1", seconds(0)),
        ("\"-5\"", seconds(0)),
        ("null", None),
        ("\"soon\"", None),
        ("\"inf\"", None),
        ("{}", None),
    ] {
        let platform = Scripted::new([ok(&GRANTED.replace("1720098900", expires))]);
        let token = account(&platform).refresh().await.expect("granted");
        assert_eq!(token.lifetime(), life, "{expires}");
    }
    let platform = Scripted::new([ok(&GRANTED.replace("1720098900", &u64::MAX.to_string()))]);
    let far = account(&platform).refresh().await.expect("granted").lifetime();
    assert!(far.is_some_and(|far| far > Duration::from_secs(1 << 40)), "{far:?}");
}

#[tokio::test]
async fn a_failure_says_when_to_come_again_and_which_region_it_may_be_about() {
    let refused = async |step: Step| account(&Scripted::new([step])).refresh().await.expect_err("refused");
    let told = |error: &Error| (error.reason(), error.retry(), error.retry_after().map(|wait| wait.as_secs()));
    let date = "Thu, 04 Jul 2024 13:00:45 GMT";
    for (step, expected) in [
        (Step::Wait(429, "7", "<html>"), ("token_endpoint_busy", Retry::Safe, Some(7))),
        (Step::Wait(503, date, ""), ("token_endpoint_failed", Retry::IfIdempotent, Some(45))),
        (Step::Wait(400, date, r#"{"error":"internal_error"}"#), ("internal_error", Retry::Safe, Some(45))),
        (Step::Wait(502, "soon", ""), ("token_endpoint_failed", Retry::IfIdempotent, None)),
    ] {
        assert_eq!(told(&refused(step).await), expected);
    }
    let error = refused(ok(r#"{"code":4100,"msg":"authentication is invalid"}"#)).await;
    assert_eq!((error.kind(), error.reason(), error.retry()), (Kind::Unauthenticated, "token_refused", Retry::Never));
    assert!(error.message().contains("api.coze.cn refuses a token of another region"), "{error}");
}

#[test]
fn what_cannot_be_right_is_refused_before_anything_is_sent() {
    let platform = Scripted::default();
    for seconds in [0, 899, 86_400, u64::MAX] {
        let error = account(&platform).duration(Duration::from_secs(seconds)).expect_err("refused");
        assert_eq!((error.kind(), error.reason()), (Kind::Precondition, "duration_invalid"));
    }
    for id in ["", "a/b", "a b", "é", "..", "a?b"] {
        assert_eq!(account(&platform).account(id).expect_err("refused").reason(), "account_invalid", "{id}");
        assert_eq!(account(&platform).enterprise(id).expect_err("refused").reason(), "account_invalid", "{id}");
    }
    let (_, key) = App::with_key("c1").expect("a key");
    let cut = &key[..key.len() / 2];
    for pem in ["", "x", cut, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"] {
        let error = ServiceAccount::new(platform.endpoint(), "c1", "k1", pem).expect_err("refused");
        assert_eq!((error.kind(), error.reason()), (Kind::Precondition, "private_key"));
    }
    for base in ["", "api.coze.cn", "ftp://api.coze.cn", "https://api.coze.cn/v3", "https://u:p@api.coze.cn", "/"] {
        assert_eq!(Endpoint::new(base, ()).expect_err("refused").reason(), "endpoint_invalid", "{base}");
    }
    assert_eq!(platform.count(), 0);
}

#[test]
fn nothing_prints_the_key() {
    let platform = Scripted::default();
    let shown = format!("{:?}", account(&platform));
    assert!(shown.contains("c1") && shown.len() < 200, "{shown}");
}
