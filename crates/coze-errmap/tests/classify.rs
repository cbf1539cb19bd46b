//! The outbound policy over a mock of the platform: which answers are failures, and which.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use coze_core::{BoxError, Error, Kind, Limit, Retry};
use coze_errmap::{Classifier, ErrMapLayer};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt};
use tower_test::mock;

type Req = Request<()>;
type Res = Response<Full<Bytes>>;

fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_700_000_000_250)
}

/// What the caller of the platform gets: the body, or the error.
async fn asked(response: Res) -> Result<Bytes, Error> {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let service = ErrMapLayer::new(Classifier::new().clock(clock)).layer(mock);
    let platform = async {
        let (_, respond) = handle.next_request().await.expect("the platform is asked");
        respond.send_response(response);
        assert!(handle.next_request().await.is_none(), "once");
    };
    match tokio::join!(service.oneshot(Request::new(())), platform).0 {
        Ok(response) => Ok(response.into_body().collect().await.expect("a body").to_bytes()),
        Err(error) => Err(*error.downcast().expect("ours")),
    }
}

fn response(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Res {
    let builder =
        headers.iter().fold(Response::builder().status(status), |builder, (name, value)| builder.header(*name, *value));
    builder.body(Full::new(body.into())).expect("valid")
}

const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

async fn json(status: u16, body: impl Into<Bytes>) -> Result<Bytes, Error> {
    asked(response(status, &[JSON], body)).await
}

async fn failure(response: Res) -> Error {
    asked(response).await.expect_err("a failure")
}

/// Kind, reason, retry, and the platform's code.
fn essence(error: &Error) -> (Kind, &'static str, Retry, Option<i64>) {
    (error.kind(), error.reason(), error.retry(), error.platform().map(|platform| platform.code))
}

#[tokio::test]
async fn a_code_other_than_0_is_a_failure_whatever_the_status() {
    let body = r#"{"code":4016,"msg":"busy","detail":{"logid":"log-1"}}"#;
    for status in [200, 400, 401, 429, 500] {
        let error = json(status, body).await.expect_err("4016");
        assert_eq!(essence(&error), (Kind::Conflict, "chat_running", Retry::Never, Some(4016)), "{status}");
        let platform = error.platform().expect("it spoke");
        assert_eq!((platform.msg.as_str(), platform.logid.as_deref()), ("busy", Some("log-1")));
        assert_eq!(error.to_string(), "busy");
    }
}

#[tokio::test]
async fn an_unknown_code_leaves_the_word_to_the_status() {
    for (status, kind, reason, retry) in [
        (200, Kind::Upstream, "platform_error", Retry::Never),
        (403, Kind::PermissionDenied, "forbidden", Retry::Never),
        (429, Kind::RateLimited, "too_many_requests", Retry::Safe),
        (503, Kind::Unavailable, "service_unavailable", Retry::IfIdempotent),
    ] {
        let error = json(status, r#"{"code":103000001,"msg":"unauthorized access : agent not match"}"#).await;
        assert_eq!(essence(&error.expect_err("a code")), (kind, reason, retry, Some(103_000_001)), "{status}");
    }
}

#[tokio::test]
async fn the_code_may_be_written_in_many_ways() {
    for (written, code) in [
        ("4013", Some(4013)),
        ("\"4013\"", Some(4013)),
        ("\" 4013 \"", Some(4013)),
        ("4013.0", Some(4013)),
        ("4.013e3", Some(4013)),
        ("-1", Some(-1)),
        ("\"-1\"", Some(-1)),
        ("9223372036854775807", Some(i64::MAX)),
        ("0", None),
        ("\"0\"", None),
        ("-0", None),
        ("null", None),
        ("true", None),
        ("\"\"", None),
        ("\"ok\"", None),
        ("0.5", None),
        ("4013.5", None),
        ("[4013]", None),
        ("{\"code\":4013}", None),
        ("9223372036854775808", None),
        ("1e300", None),
        ("1e999", None),
    ] {
        let body = format!(r#"{{"msg":"m","code":{written},"data":{{}}}}"#);
        let passed = json(200, body.clone()).await;
        assert_eq!(passed.as_ref().err().and_then(|error| error.platform()).map(|p| p.code), code, "{written}");
        assert_eq!(passed.is_ok(), code.is_none(), "{written}");
        // With an error status it is a failure all the same, by the status where there is no code.
        let failed = json(503, body).await.expect_err("503");
        assert_eq!(failed.platform().map(|p| p.code), Some(code.unwrap_or(503)), "{written}");
    }
}

#[tokio::test]
async fn a_chat_that_failed_is_a_failure_and_asking_again_does_not_help() {
    let chat = |status: &str, last_error: &str| {
        format!(
            r#"{{"data":{{"id":"1","last_error":{last_error},"status":"{status}"}},"code":0,"msg":"","detail":{{"logid":"l"}}}}"#
        )
    };
    let error = json(200, chat("failed", r#"{"code":5000,"msg":"event interval error"}"#)).await.expect_err("failed");
    assert_eq!(essence(&error), (Kind::Unavailable, "server_error", Retry::Never, Some(5000)));
    assert_eq!(error.platform().and_then(|p| p.logid.as_deref()), Some("l"));
    assert_eq!(error.message(), "event interval error");
    assert!(error.is_failed_chat());
    let refused = json(200, r#"{"code":5000,"msg":"m","data":{"status":"failed"}}"#).await.expect_err("a code");
    assert!(!refused.is_failed_chat(), "the call itself was");
    let error = json(200, chat("failed", r#"{"msg":"no credit","code":"4028"}"#)).await.expect_err("failed");
    assert_eq!(essence(&error), (Kind::Quota, "credits_used_up", Retry::Never, Some(4028)));
    let error = json(200, chat("failed", "{}")).await.expect_err("failed");
    assert_eq!(essence(&error), (Kind::Upstream, "platform_error", Retry::Never, None));

    for (status, last_error) in [
        ("completed", r#"{"code":0,"msg":""}"#),
        ("in_progress", r#"{"code":5000,"msg":""}"#),
        ("canceled", "null"),
        ("failed", "null"),
        ("failed", "5000"),
    ] {
        assert!(json(200, chat(status, last_error)).await.is_ok(), "{status} {last_error}");
    }
    let deeper = r#"{"code":0,"data":{"x":{"status":"failed","last_error":{"code":5000}}}}"#;
    assert!(json(200, deeper).await.is_ok());
}

#[tokio::test]
async fn an_answer_without_a_code_is_judged_by_its_status() {
    for (status, kind, reason) in [
        (400, Kind::Invalid, "bad_request"),
        (401, Kind::Unauthenticated, "unauthorized"),
        (429, Kind::RateLimited, "too_many_requests"),
        (502, Kind::Upstream, "bad_gateway"),
        (503, Kind::Unavailable, "service_unavailable"),
        (504, Kind::Timeout, "gateway_timeout"),
    ] {
        for (headers, body) in [
            (&[("content-type", "text/html")][..], "<html><h1>504 pat_0123456789abcdef</h1>"),
            (&[("content-type", "text/event-stream")], "event:error\n\n"),
            (&[], ""),
            (&[JSON], ""),
            (&[JSON], "{}"),
            (&[JSON], r#"{"code":0,"msg":"Success"}"#),
            (&[JSON], "[1]"),
            (&[JSON], "null"),
            (&[JSON], "<html>"),
            (&[JSON], r#"{"message":"no"}"#),
            (&[JSON, ("content-encoding", "gzip")], "\u{1f}\u{8b}"),
        ] {
            let error = failure(response(status, headers, body)).await;
            assert_eq!((error.kind(), error.reason()), (kind, reason), "{status} {body}");
            let platform = error.platform().expect("somebody answered");
            assert_eq!((platform.code, platform.msg.as_str(), &platform.logid), (i64::from(status), "", &None));
            assert_eq!(error.message(), reason, "no word of the body is kept");
        }
    }
}

#[tokio::test]
async fn success_passes_whatever_it_looks_like() {
    let gzip = ("content-encoding", "gzip");
    for (status, headers, body) in [
        (200, &[JSON][..], r#"{"code":0,"msg":"","data":[{"code":4000}]}"#),
        (200, &[JSON], r#"{"access_token":"x","expires_in":1720098388}"#),
        (200, &[JSON], r#"{"code":"print(1)","error":"none"}"#),
        (200, &[JSON], "[{\"code\":4000}]"),
        (200, &[JSON], "\"code\""),
        (200, &[JSON], "4000"),
        (200, &[JSON], ""),
        (200, &[JSON], "{\"co"),
        (204, &[JSON], ""),
        (200, &[JSON, gzip], r#"{"code":4000}"#),
        (200, &[("content-type", "text/event-stream")], r#"{"code":4000}"#),
        (200, &[("content-type", "text/plain")], r#"{"code":4000}"#),
        (200, &[("content-type", "json")], r#"{"code":4000}"#),
        (200, &[("content-type", "application/grpc+json")], r#"{"code":4000}"#),
        (500, &[("content-type", "application/grpc")], "x"),
        (302, &[JSON], r#"{"code":4000}"#),
        (101, &[JSON], r#"{"code":4000}"#),
        (200, &[], r#"{"code":4000}"#),
    ] {
        assert_eq!(asked(response(status, headers, body)).await.expect("it passes"), body, "{status} {headers:?}");
    }
    for media_type in ["application/problem+json", "APPLICATION/JSON", "application/vnd.api+JSON ; x=y"] {
        let headers = [("content-type", media_type), ("content-encoding", "identity")];
        assert!(asked(response(200, &headers, r#"{"code":4000}"#)).await.is_err(), "{media_type}");
    }
}

#[tokio::test]
async fn an_oauth_error_is_read_in_both_spellings_and_at_any_status() {
    for (name, kind) in [
        ("invalid_request", Kind::Invalid),
        ("invalid_client", Kind::Unauthenticated),
        ("unsupported_grant_type", Kind::Invalid),
        ("access_deny", Kind::PermissionDenied),
        ("access_denied", Kind::PermissionDenied),
        ("internal_error", Kind::Unavailable),
        ("authorization_pending", Kind::Precondition),
        ("slow_down", Kind::RateLimited),
        ("expired_token", Kind::Unauthenticated),
    ] {
        for status in [200, 400, 401] {
            for (error, description) in [("error_code", "error_message"), ("error", "error_description")] {
                let body = format!(r#"{{"{error}":"{name}","{description}":"why"}}"#);
                let error = json(status, body).await.expect_err(name);
                assert_eq!((error.kind(), error.reason(), error.retry()), (kind, name, Retry::Never));
                assert_eq!(error.message(), "why");
            }
        }
    }
    let error = json(400, r#"{"error":"made_up","error_description":"why"}"#).await.expect_err("400");
    assert_eq!((error.reason(), error.message()), ("bad_request", "why"));
    assert!(json(200, r#"{"error":"made_up"}"#).await.is_ok(), "not an OAuth error, and no failure by status");
    assert!(json(200, r#"{"error":"invalid_client","code":0}"#).await.is_ok(), "an envelope");
}

#[tokio::test]
async fn the_log_id_is_found_in_the_body_and_in_the_header() {
    let logid = async |headers: &[(&str, &str)], body: &'static str| {
        let headers = [&[JSON], headers].concat();
        failure(response(504, &headers, body)).await.platform().and_then(|platform| platform.logid.clone())
    };
    let in_body = r#"{"code":4000,"detail":{"logid":"body"}}"#;
    assert_eq!(logid(&[("x-tt-logid", "header")], in_body).await.as_deref(), Some("body"));
    assert_eq!(logid(&[("X-Tt-Logid", "header")], r#"{"code":4000,"detail":null}"#).await.as_deref(), Some("header"));
    assert_eq!(logid(&[("x-log-id", "studio")], "<html>").await.as_deref(), Some("studio"));
    assert_eq!(logid(&[("x-log-id", "with space")], "").await, None);
}

#[tokio::test]
async fn when_to_come_back_is_read_from_the_headers() {
    for (value, seconds) in [
        ("0", Some(0)),
        ("7", Some(7)),
        (" 7 ", Some(7)),
        ("99999999999999999999999", Some(30 * 86_400)),
        ("Tue, 14 Nov 2023 22:13:30 GMT", Some(10)),
        ("Tue, 14 Nov 2023 22:13:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", Some(30 * 86_400)),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
    ] {
        let error = failure(response(503, &[("retry-after", value)], "")).await;
        assert_eq!(error.retry_after(), seconds.map(Duration::from_secs), "{value}");
    }
}

#[tokio::test]
async fn the_platforms_limit_is_read_from_the_headers() {
    let limit = async |status: u16, headers: &[(&str, &str)]| failure(response(status, headers, "")).await.limit();
    let (remaining, quota) = (("x-ratelimit-remaining", "0"), ("x-ratelimit-limit", "50"));
    for (reset, seconds) in [("60", 60), ("1700000030", 30), ("1600000000", 0), ("18446744073709551616", 30 * 86_400)] {
        let limit = limit(429, &[remaining, quota, ("x-ratelimit-reset", reset)]).await.expect("a limit");
        assert_eq!((limit.remaining, limit.quota, limit.reset), (0, 50, Duration::from_secs(seconds)), "{reset}");
        assert_eq!(limit.name, Limit::PLATFORM);
    }
    assert_eq!(limit(429, &[remaining]).await.map(|limit| limit.quota), Some(0));
    assert_eq!(limit(429, &[quota]).await, None);
    assert_eq!(limit(429, &[("x-ratelimit-remaining", "none")]).await, None);
    assert_eq!(limit(503, &[remaining]).await, None, "no limit refused this");
}

#[tokio::test]
async fn an_error_of_the_transport_becomes_ours_and_ours_passes() {
    let service = |make: fn() -> BoxError| {
        let inner = tower::service_fn(move |_: Req| async move { Err::<Res, _>(make()) });
        ErrMapLayer::new(Classifier::new()).layer(inner).oneshot(Request::new(()))
    };
    let error = service(|| "connection reset by pat_0123456789abcdef".into()).await.expect_err("reset");
    let error = Error::find(&*error).expect("ours");
    assert_eq!(essence(error), (Kind::Unavailable, "transport", Retry::IfIdempotent, None));
    assert!(!format!("{error} {error:?}").contains("pat_0"), "{error:?}");

    let error = service(|| Error::new(Kind::Timeout, "deadline").into()).await.expect_err("a timeout");
    assert_eq!(Error::find(&*error).map(Error::reason), Some("deadline"));
}

#[tokio::test]
async fn hostile_json_is_no_failure_and_no_panic() {
    let deep = |open: &str| format!("{{\"data\":{},\"code\":4000}}", open.repeat(20_000));
    for body in [
        deep("[").into_bytes(),
        deep("{\"a\":").into_bytes(),
        deep("{\"data\":").into_bytes(),
        vec![b'['; 1 << 20],
        vec![b'9'; 1 << 20],
        b"\xff\xfe\xfd".to_vec(),
        b"{\"code\":".to_vec(),
        b"{\"code\" 4000}".to_vec(),
        b"{\"code\":4000".iter().chain(&[b' '; 70_000]).chain(b"1}").copied().collect(),
        b"{\"msg\":\"\\ud800\",\"code\":4000}".to_vec(),
    ] {
        let passed = json(200, body.clone()).await;
        match passed {
            Ok(bytes) => assert_eq!(bytes, body),
            Err(error) => assert_eq!(error.platform().map(|p| p.code), Some(4000), "{error:?}"),
        }
        assert!(json(500, body).await.is_err());
    }
    let error = json(200, b"{\"code\":4000,\"msg\":\"caf\xe9\"}".to_vec()).await.expect_err("4000");
    assert_eq!(error.message(), "caf\u{fffd}");
    let error = json(200, r#"{"c\u006fde":4000,"msg":"\u670d"}"#).await.expect_err("4000");
    assert_eq!(error.message(), "服");
    // Of two, the first counts, for nobody can wait for the last.
    assert!(json(200, r#"{"code":0,"code":4000}"#).await.is_ok());
    assert_eq!(json(200, r#"{"code":4000,"code":0}"#).await.expect_err("4000").platform().map(|p| p.code), Some(4000));
    let error = json(200, r#"{"code":4000,"msg":"token pat_0123456789abcdef"}"#).await.expect_err("4000");
    assert!(!format!("{error} {error:?}").contains("pat_0"), "{error:?}");
}

#[tokio::test]
async fn a_refusal_with_the_hint_that_another_token_is_due_is_one_of_the_token() {
    let body = r#"{"code":4101,"msg":"no permission","detail":{"logid":"log-1"}}"#;
    for status in [200, 403] {
        let hinted = failure(response(status, &[JSON, ("x-refresh-token", "1")], body)).await;
        assert_eq!(essence(&hinted), (Kind::Unauthenticated, "token_invalid", Retry::Never, Some(4101)));
        assert_eq!(hinted.message(), "no permission");
        assert_eq!(failure(response(status, &[JSON], body)).await.kind(), Kind::PermissionDenied, "without it");
    }
    let bare = failure(response(403, &[("x-refresh-token", "1")], "")).await;
    assert_eq!(essence(&bare), (Kind::Unauthenticated, "token_invalid", Retry::Never, Some(403)));
}

#[tokio::test]
async fn a_failure_that_no_token_cures_keeps_its_kind_beside_the_hint() {
    for (status, kind) in [(400, Kind::Invalid), (429, Kind::RateLimited), (503, Kind::Unavailable)] {
        assert_eq!(failure(response(status, &[("x-refresh-token", "1")], "")).await.kind(), kind);
    }
    assert!(
        asked(response(200, &[JSON, ("x-refresh-token", "1")], r#"{"code":0}"#)).await.is_ok(),
        "no failure at all"
    );
}
