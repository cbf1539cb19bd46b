//! The inbound policy over a mock of the inner service: what the caller gets for a failure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use coze_core::{BoxError, Context, Error, Kind, Limit, Refusal, RequestId};
use coze_errmap::{ErrMapLayer, Responder, accepted, from_platform};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt};
use tower_test::mock;

type Req = Request<()>;
type Res = Response<Full<Bytes>>;

/// 22:13:20.25 UTC: 40 s before the next minute, 64000 s before midnight in Beijing.
fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_700_000_000_250)
}

fn request(headers: &[(&'static str, &str)]) -> Req {
    let mut request = Request::new(());
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().expect("valid"));
    }
    request
}

/// What the caller gets when the inner service, which must be asked once, ends like this.
async fn answer(request: Req, outcome: Result<Res, BoxError>) -> (u16, HeaderMap, Bytes) {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let service = ErrMapLayer::new(Responder::new().clock(clock)).layer(mock);
    let inner = async {
        let (_, respond) = handle.next_request().await.expect("the inner service is asked");
        match outcome {
            Ok(response) => respond.send_response(response),
            Err(error) => respond.send_error(error),
        }
        assert!(handle.next_request().await.is_none(), "once");
    };
    let (response, ()) = tokio::join!(service.oneshot(request), inner);
    let (head, body) = response.expect("infallible").into_parts();
    (head.status.as_u16(), head.headers, body.collect().await.expect("a body").to_bytes())
}

async fn refused(headers: &[(&'static str, &str)], error: Error) -> (u16, HeaderMap, String) {
    let (status, headers, body) = answer(request(headers), Err(error.into())).await;
    (status, headers, String::from_utf8(body.to_vec()).expect("text"))
}

const PROBLEM: (&str, &str) = ("accept", "application/problem+json");
const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");
const CHINESE: (&str, &str) = ("accept-language", "zh-CN,zh;q=0.9,en;q=0.8");

/// A kind with its HTTP status and title, gRPC code, platform code, English, Chinese and the seconds to wait.
type Row = (Kind, u16, &'static str, i32, i64, &'static str, &'static str, &'static str);

const BUSY: &str = "the service is busy, please try again later";
const BUSY_ZH: &str = "服务繁忙,请稍后重试";

#[rustfmt::skip]
const EVERY_KIND: [Row; 17] = [
    (Kind::Invalid, 400, "Bad Request", 3, 4000, "the request is not valid", "请求参数有误", ""),
    (Kind::Unauthenticated, 401, "Unauthorized", 16, 4100, "authentication failed", "身份验证失败", ""),
    (Kind::PermissionDenied, 403, "Forbidden", 7, 4101, "permission denied", "没有权限", ""),
    (Kind::NotFound, 404, "Not Found", 5, 4200, "there is no such thing", "资源不存在", ""),
    (Kind::Conflict, 409, "Conflict", 10, 4016, "it collides with another request", "请求与其他操作冲突", ""),
    (Kind::TooLarge, 413, "Payload Too Large", 8, 4302, "the request is too large", "请求内容过大", ""),
    (Kind::Content, 422, "Unprocessable Entity", 3, 4014, "the content is not accepted", "内容不符合要求,请修改后重试", ""),
    (Kind::Billing, 402, "Payment Required", 9, 4027, "the account is out of money", "账户余额不足", ""),
    (Kind::RateLimited, 429, "Too Many Requests", 8, 4020, BUSY, BUSY_ZH, "40"),
    (Kind::Quota, 429, "Too Many Requests", 8, 4008, "the quota is used up", "额度已用完", "64000"),
    (Kind::Overloaded, 429, "Too Many Requests", 8, 4009, BUSY, BUSY_ZH, "3"),
    (Kind::Precondition, 400, "Bad Request", 9, 4015, "something must be set up first", "尚未完成相应配置", ""),
    (Kind::Upstream, 502, "Bad Gateway", 14, 502, "a service this one needs failed", "依赖的服务出错", ""),
    (Kind::Unavailable, 503, "Service Unavailable", 14, 5000, "the service is not available now", "服务暂不可用,请稍后重试", ""),
    (Kind::Timeout, 504, "Gateway Timeout", 4, 6023, "there was no answer in time", "请求超时", ""),
    (Kind::Cancelled, 499, "the request was cancelled", 1, 5000, "the request was cancelled", "请求已取消", ""),
    (Kind::Internal, 500, "Internal Server Error", 13, 5000, "internal error", "服务内部错误", ""),
];

#[tokio::test]
async fn every_kind_becomes_an_envelope_a_problem_and_a_grpc_status() {
    assert_eq!(EVERY_KIND.map(|row| row.0), Kind::ALL);
    for (kind, status, title, grpc, code, en, zh, wait) in EVERY_KIND {
        let error = || Error::new(kind, "the_reason");
        let retry_after = (!wait.is_empty()).then_some(wait);

        for (language, msg) in [(("accept-language", "en"), en), (CHINESE, zh)] {
            let (got, headers, body) = refused(&[language], error()).await;
            assert_eq!((got, body), (status, format!(r#"{{"code":{code},"msg":"{msg}"}}"#)));
            assert_eq!(headers["content-type"], "application/json");
            assert_eq!(headers.get("retry-after").map(|v| v.to_str().expect("text")), retry_after, "{kind:?}");
            assert_eq!(headers.contains_key("www-authenticate"), status == 401);
            assert_eq!(headers["cache-control"], "no-store");
        }

        let (got, headers, body) = refused(&[PROBLEM], error()).await;
        let wait = retry_after.map(|wait| format!(r#","retry_after":{wait}"#)).unwrap_or_default();
        let expected = format!(
            r#"{{"type":"about:blank","title":"{title}","status":{status},"detail":"{en}","code":{code},"reason":"the_reason"{wait}}}"#
        );
        assert_eq!((got, body), (status, expected));
        assert_eq!(headers["content-type"], "application/problem+json");

        let (got, headers, body) = refused(&[GRPC, PROBLEM], error()).await;
        assert_eq!((got, body.as_str()), (200, ""), "{kind:?}");
        assert_eq!(
            (&headers["content-type"], headers.contains_key("content-length")),
            (&"application/grpc".parse().expect("valid"), false)
        );
        let seen = tonic::Status::from_header_map(&headers).expect("a status");
        assert_eq!((seen.code() as i32, seen.message()), (grpc, en), "{kind:?}");
    }
}

#[tokio::test]
async fn the_platforms_own_words_reach_the_caller() {
    let error = || from_platform(4016, "会话 \"busy\"", Some("20241210152726467C"));
    let (status, headers, body) = refused(&[], error()).await;
    assert_eq!(status, 409);
    assert_eq!(body, r#"{"code":4016,"msg":"会话 \"busy\"","detail":{"logid":"20241210152726467C"}}"#);
    assert_eq!(headers["content-length"], body.len().to_string().as_str());
    assert_eq!(headers["x-tt-logid"], "20241210152726467C");

    let (_, _, body) = refused(&[PROBLEM], error()).await;
    let problem = r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"会话 \"busy\"","code":4016,"#;
    assert_eq!(body, format!(r#"{problem}"reason":"chat_running","logid":"20241210152726467C"}}"#));

    let (_, headers, _) = refused(&[GRPC], error().with_retry_after(Duration::from_millis(1200))).await;
    assert_eq!(headers["grpc-message"], "%E4%BC%9A%E8%AF%9D \"busy\"");
    assert_eq!(tonic::Status::from_header_map(&headers).expect("a status").message(), "会话 \"busy\"");
    // google.rpc.Status with ErrorInfo and RetryInfo, as Google's own library writes it.
    assert_eq!(
        headers["grpc-status-details-bin"],
        concat!(
            "CAoSDeS8muivnSAiYnVzeSIacQoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLkVycm9ySW5mbxJFCgxDSEFUX1JVTk5JTkcSCmNv",
            "emUtdG93ZXIaDAoEY29kZRIENDAxNhobCgVsb2dpZBISMjAyNDEyMTAxNTI3MjY0NjdDGjAKKHR5cGUuZ29vZ2xlYXBpcy5jb20vZ29vZ2xl",
            "LnJwYy5SZXRyeUluZm8SBAoCCAI"
        )
    );
}

#[tokio::test]
async fn a_code_that_sdks_take_for_success_is_not_handed_on() {
    for code in [-1, i64::MIN] {
        let (status, _, body) = refused(&[], from_platform(code, "no", None)).await;
        assert_eq!((status, body.as_str()), (502, r#"{"code":502,"msg":"no"}"#), "{code}");
    }
}

#[tokio::test]
async fn nothing_internal_leaks() {
    let secrets = "postgres://bot:hunter2@db/x and /etc/coze/key.pem and pat_0123456789abcdef";
    let internal = || Error::new(Kind::Internal, "internal").with_message(secrets).with_source(secrets);
    let failures: [&dyn Fn() -> BoxError; 4] =
        [&|| secrets.into(), &|| std::io::Error::other(secrets).into(), &|| internal().into(), &|| {
            Error::new(Kind::Upstream, "upstream").with_source(internal()).into()
        }];
    for failure in failures {
        for format in [CHINESE, PROBLEM, GRPC] {
            let (_, headers, body) = answer(request(&[format]), Err(failure())).await;
            let shown = format!("{headers:?} {body:?}");
            for secret in ["hunter2", "key.pem", "0123456789", "postgres"] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
    }
    let text = Response::builder().status(500).body(Full::from(secrets)).expect("valid");
    let (status, _, body) = answer(request(&[]), Ok(text)).await;
    assert_eq!((status, body), (500, r#"{"code":5000,"msg":"internal error"}"#.into()));
}

#[tokio::test]
async fn waits_are_whole_seconds_rounded_up_and_never_zero() {
    for (wait, seconds) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (59_999, "60")] {
        let error = Error::new(Kind::Unavailable, "x").with_retry_after(Duration::from_millis(wait));
        let (_, headers, _) = refused(&[], error).await;
        assert_eq!(headers["retry-after"], seconds, "{wait} ms");
    }
    let forever = Error::new(Kind::Quota, "x").with_retry_after(Duration::MAX);
    assert_eq!(refused(&[GRPC], forever).await.0, 200);
}

#[tokio::test]
async fn a_limit_is_told_in_both_dialects() {
    let second = Duration::from_secs(1);
    let limit = Limit { name: "app", quota: 50, remaining: 0, window: second, reset: second / 2 };
    let refusal = |limit| Error::new(Kind::RateLimited, "app_qps").with_limit(limit);

    let (_, headers, _) = refused(&[], refusal(limit)).await;
    assert_eq!(headers["x-ratelimit-limit"], "50");
    assert_eq!(headers["x-ratelimit-remaining"], "0");
    assert_eq!(headers["x-ratelimit-reset"], "1700000001");
    assert_eq!(headers["ratelimit-policy"], r#""app";q=50;w=1"#);
    assert_eq!(headers["ratelimit"], r#""app";r=0;t=1"#);
    assert_eq!(headers["retry-after"], "1", "the limit says when, where the error does not");

    let at_once = Limit { name: "bot", window: Duration::ZERO, reset: Duration::ZERO, quota: 10, ..limit };
    let (_, headers, _) = refused(&[], refusal(at_once).with_retry_after(second)).await;
    assert_eq!(headers["ratelimit-policy"], r#""bot";q=10;qu="concurrent-requests""#);

    let broken = Limit { name: "a\nb", reset: Duration::MAX, window: Duration::MAX, ..limit };
    let (status, headers, _) = refused(&[], refusal(broken)).await;
    assert_eq!((status, headers.contains_key("ratelimit")), (429, false), "a name that is no header is left out");
}

#[tokio::test]
async fn a_head_request_gets_the_head_alone() {
    let mut head = request(&[]);
    *head.method_mut() = http::Method::HEAD;
    let (status, headers, body) = answer(head, Err(Error::new(Kind::NotFound, "x").into())).await;
    let (_, _, full) = refused(&[], Error::new(Kind::NotFound, "x")).await;
    assert_eq!((status, body.len()), (404, 0));
    assert_eq!(headers["content-length"], full.len().to_string().as_str());
}

#[tokio::test]
async fn the_request_id_is_the_log_id_where_the_platform_gave_none_and_the_context_learns_why() {
    let mut request = request(&[]);
    let context = Context::of(request.extensions_mut());
    context.request_id.set(RequestId::new("req-7").expect("valid")).expect("empty");
    let (_, headers, body) = answer(request.clone(), Err(Error::new(Kind::NotFound, "no_bot").into())).await;
    assert_eq!(body, r#"{"code":4200,"msg":"there is no such thing","detail":{"logid":"req-7"}}"#);
    assert_eq!(headers["x-tt-logid"], "req-7");
    assert_eq!(context.failure.get(), Some(&(Kind::NotFound, "no_bot")));

    let (_, headers, _) = answer(request, Err(from_platform(4000, "", Some("platform-1")).into())).await;
    assert_eq!(headers["x-tt-logid"], "platform-1");
}

#[tokio::test]
async fn who_was_refused_finds_the_code_in_the_problem_and_no_more_than_they_are_told() {
    let mut request = request(&[PROBLEM]);
    let context = Context::of(request.extensions_mut());
    let error = || Err(Error::new(Kind::Unauthenticated, "signature_invalid").into());
    let (_, _, body) = answer(request.clone(), error()).await;
    assert!(!std::str::from_utf8(&body).expect("text").contains("auth_error_code"), "no policy refused it");

    context.refusal.set(Refusal { kind: Kind::Unauthenticated, reason: "unknown_key", client: None }).expect("empty");
    let (_, _, body) = answer(request, error()).await;
    let body = std::str::from_utf8(&body).expect("text");
    assert!(body.contains(r#""reason":"signature_invalid","auth_error_code":"SIGNATURE_INVALID""#), "{body}");
    assert!(!body.to_lowercase().contains("unknown_key"), "{body}");
}

#[tokio::test]
async fn a_long_message_is_cut() {
    let (_, headers, _) = refused(&[GRPC], Error::new(Kind::Invalid, "x").with_message("忙".repeat(9000))).await;
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    assert!(size < 8 * 1024, "{size} bytes of headers");
}

#[tokio::test]
async fn a_refusal_in_plain_text_is_rewrapped_and_keeps_its_status_and_headers() {
    for (status, media_type, code) in [
        (404, None, 4200),
        (405, None, 4000),
        (413, Some("text/plain"), 4302),
        (415, Some("text/plain; charset=utf-8"), 4000),
        (422, Some("text/plain; charset=utf-8"), 4000),
        (408, None, 6023),
        (503, None, 5000),
    ] {
        let mut response = Response::builder().status(status);
        if let Some(media_type) = media_type {
            response = response.header("content-type", media_type);
        }
        let response = response
            .header("allow", "GET, POST")
            .header("retry-after", "Fri, 31 Dec 2100 23:59:59 GMT")
            .header("content-length", "8")
            .header("etag", "\"x\"")
            .header("x-other", "stays")
            .body(Full::from("internal"));
        let (got, headers, body) = answer(request(&[CHINESE]), Ok(response.expect("valid"))).await;
        assert_eq!(got, status);
        assert!(body.starts_with(format!(r#"{{"code":{code},"msg":""#).as_bytes()), "{body:?}");
        assert!(!body.windows(8).any(|text| text == b"internal"));
        assert_eq!(
            (&headers["allow"], &headers["x-other"]),
            (&"GET, POST".parse().expect("valid"), &"stays".parse().expect("valid"))
        );
        assert_eq!(headers["retry-after"], "Fri, 31 Dec 2100 23:59:59 GMT");
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["content-length"], body.len().to_string().as_str());
        assert!(!headers.contains_key("etag"));
    }
    let empty = Response::builder().status(404).body(Full::default()).expect("valid");
    let (status, headers, _) = answer(request(&[GRPC]), Ok(empty)).await;
    assert_eq!((status, &headers["grpc-status"]), (200, &"5".parse().expect("valid")));
}

#[tokio::test]
async fn what_a_handler_answers_in_a_format_of_its_own_stays_as_it_is() {
    for (status, media_type) in [
        (200, "text/plain"),
        (304, ""),
        (399, "text/plain"),
        (400, "application/json"),
        (404, "text/html; charset=utf-8"),
        (409, "application/problem+json"),
        (500, "application/grpc"),
        (502, "image/png"),
    ] {
        let mut response = Response::builder().status(status);
        if !media_type.is_empty() {
            response = response.header("content-type", media_type);
        }
        let response = response.header("etag", "\"x\"").body(Full::from("as it is")).expect("valid");
        let before = response.headers().clone();
        let got = answer(request(&[PROBLEM]), Ok(response)).await;
        assert_eq!(got, (status, before, "as it is".into()), "{status} {media_type}");
    }
}

#[test]
fn what_is_done_later_is_accepted_in_the_callers_language_with_its_receipt() {
    let (mut head, ()) = request(&[CHINESE]).into_parts();
    let id = RequestId::new("r-1").expect("valid");
    Context::of(&mut head.extensions).request_id.set(id).expect("empty");
    let answer = accepted(&head, "m \"1\"");
    assert_eq!(answer.status(), 202);
    for (name, value) in [("x-tt-logid", "r-1"), ("content-type", "application/json"), ("cache-control", "no-store")] {
        assert_eq!(answer.headers()[name], value);
    }
    let zh = r#"{"code":0,"msg":"请求已接收,结果将异步通知","data":{"receipt":"m \"1\""},"detail":{"logid":"r-1"}}"#;
    assert_eq!(*answer.body(), zh);

    let en = r#"{"code":0,"msg":"the request is accepted, its result follows","data":{"receipt":"m1"}}"#;
    assert_eq!(*accepted(&request(&[]).into_parts().0, "m1").body(), en);
}
