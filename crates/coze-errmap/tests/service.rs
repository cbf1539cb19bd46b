//! The layer as a service: readiness, cancellation, logs, and what it is put around.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    task::Poll,
};

use axum::{Json, Router, routing::post};
use bytes::Bytes;
use coze_core::{BoxError, Context, Error, Kind, RequestId};
use coze_errmap::{Classifier, ErrMap, ErrMapLayer, Policy, Responder, from_platform};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_test::mock::{self, Mock};
use tracing_subscriber::fmt::MakeWriter;

type Req = Request<()>;
type Res = Response<Full<Bytes>>;

#[tokio::test]
async fn a_service_that_failed_to_become_ready_answers_the_next_call_with_it() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let mut service = mock::Spawn::new(ErrMap::new(mock, Responder::new()));
    handle.send_error(Error::new(Kind::Overloaded, "buffer_closed"));
    assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));
    assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))), "the failure waits for a call");

    let response = service.call(Request::new(())).await.expect("infallible");
    assert_eq!(response.status(), 429);
    drop(service);
    assert!(handle.next_request().await.is_none(), "nothing reached the inner service");
}

#[tokio::test]
async fn a_clone_does_not_inherit_a_failure_to_become_ready() {
    /// Not ready the first time it is asked.
    #[derive(Clone)]
    struct Flaky(bool);
    impl Service<Req> for Flaky {
        type Response = Res;
        type Error = Error;
        type Future = std::future::Ready<Result<Res, Error>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Error>> {
            let ready = std::mem::replace(&mut self.0, true);
            Poll::Ready(if ready { Ok(()) } else { Err(Error::new(Kind::Unavailable, "not_ready")) })
        }

        fn call(&mut self, _: Req) -> Self::Future {
            std::future::ready(Ok(Response::new(Full::default())))
        }
    }
    let mut service = mock::Spawn::new(ErrMap::new(Flaky(false), Responder::new()));
    assert!(service.poll_ready().is_ready());
    let mut clone = service.clone();
    assert!(clone.poll_ready().is_ready());
    assert_eq!(clone.call(Request::new(())).await.expect("infallible").status(), 200);
    assert_eq!(service.call(Request::new(())).await.expect("infallible").status(), 503);
    assert!(service.poll_ready().is_ready());
    assert_eq!(service.call(Request::new(())).await.expect("infallible").status(), 200, "the failure was answered");
}

#[tokio::test]
async fn on_the_way_out_readiness_fails_at_once() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let mut service = mock::Spawn::new(ErrMap::new(mock, Classifier::new()));
    handle.send_error("connection refused");
    let Poll::Ready(Err(error)) = service.poll_ready() else { panic!("a balancer must learn of it") };
    let error = Error::find(&*error).expect("ours");
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "transport"));
}

async fn keeps_readiness<P: Policy<Error: std::fmt::Debug> + Clone>(policy: P) {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let mut service = mock::Spawn::new(ErrMap::new(limited, policy));
    let mut other = service.clone();

    assert!(service.poll_ready().is_ready());
    assert!(other.poll_ready().is_pending(), "the only permit is taken");
    let answer = service.call(Request::new(()));
    assert!(handle.next_request().await.is_some());
    assert!(other.poll_ready().is_pending(), "the request is in flight");
    drop(answer);
    assert!(matches!(other.poll_ready(), Poll::Ready(Ok(()))), "a dropped request gives its permit back");
}

#[tokio::test]
async fn the_readiness_of_an_inner_limit_is_kept_and_given_back() {
    keeps_readiness(Responder::new()).await;
    keeps_readiness(Classifier::new()).await;
}

#[test]
fn a_service_is_send_sync_and_clone() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    fn check_future<T: Send>(_: T) {}
    check::<ErrMap<(), Responder>>();
    check::<ErrMap<Mock<Req, Res>, Classifier>>();
    check::<ErrMapLayer<Responder>>();
    let (mock, _handle) = mock::pair::<Req, Res>();
    check_future(ErrMap::new(mock, Classifier::new()).oneshot(Request::new(())));
}

#[test]
fn a_failure_that_is_kept_is_not_shown() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let mut service = mock::Spawn::new(ErrMap::new(mock, Responder::new()));
    handle.send_error("postgres://bot:hunter2@db/x");
    assert!(service.poll_ready().is_ready());
    assert!(!format!("{service:?} {:?}", service.call(Request::new(()))).contains("hunter2"));
}

#[tokio::test]
async fn an_axum_router_speaks_one_format() {
    let app = Router::new()
        .route("/chat", post(async |Json(text): Json<String>| text))
        .layer(ErrMapLayer::new(Responder::new()));
    let send = async |method: &str, path: &str, media_type: &str, body: &'static str| {
        let request = Request::builder().method(method).uri(path).header("content-type", media_type);
        let request = request.body(axum::body::Body::from(body)).expect("valid");
        let response = app.clone().oneshot(request).await.expect("infallible");
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let allow = head.headers.get("allow").map(|allow| allow.to_str().expect("text").to_owned());
        (head.status.as_u16(), String::from_utf8(body.to_vec()).expect("text"), allow)
    };
    let refused = |code: i64, msg: &str| format!(r#"{{"code":{code},"msg":"{msg}"}}"#);
    let invalid = refused(4000, "the request is not valid");
    assert_eq!(send("POST", "/chat", "application/json", "\"hi\"").await, (200, "hi".into(), None));
    assert_eq!(send("GET", "/nope", "", "").await, (404, refused(4200, "there is no such thing"), None));
    assert_eq!(send("GET", "/chat", "", "").await, (405, invalid.clone(), Some("POST".into())));
    assert_eq!(send("POST", "/chat", "text/plain", "hi").await, (415, invalid.clone(), None));
    assert_eq!(send("POST", "/chat", "application/json", "7").await, (422, invalid.clone(), None));
    assert_eq!(send("POST", "/chat", "application/json", "\"hi").await, (400, invalid, None));
}

/// What was logged, one JSON object a line.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panics").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The only line that a failure logs.
async fn logged(failure: BoxError) -> serde_json::Value {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().json().with_max_level(tracing::Level::TRACE).with_writer(log.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let mut request = Request::new(());
    Context::of(request.extensions_mut()).request_id.set(RequestId::new("req-7").expect("valid")).expect("empty");
    let failure = Mutex::new(Some(failure));
    let inner = service_fn(|_: Req| {
        let failure = failure.lock().expect("no panics").take().expect("called once");
        async { Err::<Res, _>(failure) }
    });
    ErrMapLayer::new(Responder::new()).layer(inner).oneshot(request).await.expect("infallible");
    let text = log.0.lock().expect("no panics").clone();
    serde_json::from_slice(&text).expect("one line")
}

#[tokio::test]
async fn a_failure_is_logged_once_with_its_cause_less_credentials() {
    let cause = Error::new(Kind::Upstream, "inner").with_source("token pat_0123456789abcdef");
    let line = logged(from_platform(4027, "pay", None).with_source(cause).into()).await;
    assert_eq!((&line["level"], &line["target"]), (&"ERROR".into(), &"coze::errmap".into()));
    let expected = serde_json::json!({
        "message": "request failed",
        "kind": "billing",
        "reason": "account_overdue",
        "code": 4027,
        "logid": "req-7",
        "source": "inner: token [redacted]",
    });
    assert_eq!(line["fields"], expected);

    let line = logged("disk full".into()).await;
    assert_eq!((&line["level"], &line["fields"]["source"]), (&"ERROR".into(), &"disk full".into()));
    for (kind, level) in [(Kind::Invalid, "DEBUG"), (Kind::RateLimited, "INFO"), (Kind::Timeout, "WARN")] {
        let line = logged(Error::new(kind, "x").into()).await;
        assert_eq!((&line["level"], line["fields"].get("source")), (&level.into(), None));
    }
}
