//! The layer over a mock of the inner service, the clock paused.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Pending,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context as Task, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use coze_core::{BotId, BoxError, Context, Error, Kind, UserId};
use coze_ratelimit::{Decision, Level, Limits, Policy, Quota, Rate, RateLimit, RateLimitLayer, ResponseBody};
use http::{HeaderMap, Request, Response, request::Parts};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::time::{self, Instant as Clock};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_test::mock::{self, Handle, Mock};

type Req = Request<&'static str>;
type Res = Response<Script>;

/// A response body that plays these frames. Empty, it is at its end, but says so only if it is `frank`.
#[derive(Debug, Default)]
struct Script {
    frames: VecDeque<Result<Frame<Bytes>, &'static str>>,
    frank: bool,
}

fn data(text: &'static str) -> Result<Frame<Bytes>, &'static str> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn trailers() -> Result<Frame<Bytes>, &'static str> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    Ok(Frame::trailers(trailers))
}

fn response(frank: bool, frames: impl IntoIterator<Item = Result<Frame<Bytes>, &'static str>>) -> Res {
    Response::new(Script { frames: frames.into_iter().collect(), frank })
}

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(self.frames.pop_front())
    }

    fn is_end_stream(&self) -> bool {
        self.frank && self.frames.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.frames.len() as u64)
    }
}

/// A policy whose permits count how often they were taken and given back.
#[derive(Clone, Debug, Default)]
struct Counted(Arc<[AtomicUsize; 2]>);

#[derive(Debug)]
struct Held(Counted);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0[1].fetch_add(1, Ordering::SeqCst);
    }
}

impl Counted {
    /// Taken, given back.
    fn counts(&self) -> (usize, usize) {
        (self.0[0].load(Ordering::SeqCst), self.0[1].load(Ordering::SeqCst))
    }
}

impl Policy for Counted {
    type Permit = Held;
    type Future = Pending<Result<Held, Error>>;

    fn decide(&self, _: &Parts, _: &Context, _: Instant) -> Decision<Held, Self::Future> {
        self.0[0].fetch_add(1, Ordering::SeqCst);
        Decision::Now(Ok(Held(self.clone())))
    }
}

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

/// A request for the bot `b` of the user `u`.
fn request() -> Req {
    let mut request = Request::new("body");
    let context = Context::of(request.extensions_mut());
    context.bot.set(BotId::new("b").expect("valid")).expect("empty");
    context.user.set(UserId::new("u").expect("valid")).expect("empty");
    request
}

/// Sends one request through the layer: the answer, and what the limiter noted.
async fn send(limits: &Limits, answer: Res) -> (Result<Response<ResponseBody<Script, Limits>>, Error>, &'static str) {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let mut request = request();
    let context = Context::of(request.extensions_mut());
    let outcome = RateLimitLayer::new(limits.clone()).layer(mock).oneshot(request);
    let inner = async {
        let (request, respond) = handle.next_request().await?;
        respond.send_response(answer);
        Some(request)
    };
    let (outcome, inner) = tokio::join!(outcome, inner);
    assert_eq!(inner.map(|r| *r.body()), outcome.is_ok().then_some("body"), "a refused request does not go further");
    let outcome = outcome.map_err(|e| *e.downcast::<Error>().expect("ours"));
    (outcome, context.limit.get().copied().expect("noted"))
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_through_and_the_next_one_waits_its_time() {
    let limits = Limits::platform();
    let (answer, noted) = send(&limits, response(false, [data("hi")])).await;
    assert_eq!(
        (answer.expect("admitted").into_body().collect().await.expect("read").to_bytes(), noted),
        ("hi".into(), "ok")
    );

    let (refused, noted) = send(&limits, response(true, [])).await;
    let wait = refused.err().and_then(|e| e.retry_after()).expect("refused");
    assert_eq!((wait, noted), (Duration::from_secs(1), "user"));

    time::advance(wait - Duration::from_millis(1)).await;
    assert!(send(&limits, response(true, [])).await.0.is_err());
    time::advance(Duration::from_millis(1)).await;
    assert!(send(&limits, response(true, [])).await.0.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_never_reaches_the_inner_service_and_says_what_a_429_needs() {
    let limits = Limits::outbound(n(3));
    for _ in 0..3 {
        assert!(send(&limits, response(true, [])).await.0.is_ok());
    }
    let (refused, noted) = send(&limits, response(true, [])).await;
    let error = refused.expect_err("the fourth");
    let limit = error.limit().expect("its limit");
    assert_eq!((error.kind(), error.reason(), noted), (Kind::RateLimited, "rate_limited", "app"));
    assert_eq!((limit.name, limit.quota, limit.remaining), ("app", 3, 0));
    assert_eq!((limit.reset, error.retry_after()), (Duration::from_secs(1), Some(Duration::from_secs(1))));
}

#[tokio::test(start_paused = true)]
async fn a_bot_has_so_many_answers_under_way_until_their_bodies_end() {
    let limits = Limits::new().level(Level::per_bot("bot", Quota::Concurrency(n(2))));
    let first = send(&limits, response(false, [data("1")])).await.0.expect("admitted");
    let _second = send(&limits, response(false, [data("2")])).await.0.expect("admitted");
    assert_eq!(send(&limits, response(true, [])).await.1, "bot");
    first.into_body().collect().await.expect("read");
    assert_eq!(send(&limits, response(true, [])).await.1, "ok");
    assert_eq!(send(&limits, response(true, [])).await.1, "ok", "an empty answer holds nothing");
}

type InFlight = <RateLimit<Mock<Req, Res>, Counted> as Service<Req>>::Future;

/// A request that was admitted, and the handle that answers it.
async fn in_flight() -> (Counted, Handle<Req, Res>, InFlight) {
    let policy = Counted::default();
    let (mock, handle) = mock::pair::<Req, Res>();
    let mut service = RateLimit::new(mock, policy.clone());
    let future = service.ready().await.expect("ready").call(request());
    assert_eq!(policy.counts(), (1, 0));
    (policy, handle, future)
}

#[tokio::test]
async fn a_request_that_is_dropped_gives_its_permit_back_once() {
    let (policy, mut handle, future) = in_flight().await;
    let mut future = Box::pin(future);
    assert!(future.as_mut().poll(&mut Task::from_waker(Waker::noop())).is_pending());
    let (_, _respond) = handle.next_request().await.expect("forwarded");
    assert_eq!(policy.counts(), (1, 0));
    drop(future);
    assert_eq!(policy.counts(), (1, 1));
}

#[tokio::test]
async fn a_request_that_is_never_polled_gives_its_permit_back_once() {
    let (policy, _handle, future) = in_flight().await;
    drop(future);
    assert_eq!(policy.counts(), (1, 1));
}

#[tokio::test]
async fn a_request_that_fails_gives_its_permit_back_once() {
    let (policy, mut handle, future) = in_flight().await;
    let mut future = Box::pin(future);
    handle.next_request().await.expect("forwarded").1.send_error("broken");
    assert_eq!(future.as_mut().await.expect_err("failed").to_string(), "broken");
    assert_eq!(policy.counts(), (1, 1), "although the future is still there");
    drop(future);
    assert_eq!(policy.counts(), (1, 1));
}

#[tokio::test]
async fn an_inner_service_that_panics_gives_the_permit_back() {
    let policy = Counted::default();
    let panics = service_fn(|_: Req| -> std::future::Ready<Result<Res, Infallible>> {
        std::panic::resume_unwind(Box::new("silent"))
    });
    let service = RateLimit::new(panics, policy.clone());
    assert!(tokio::spawn(service.oneshot(request())).await.expect_err("panicked").is_panic());
    assert_eq!(policy.counts(), (1, 1));
}

/// The body of an answer to an admitted request.
async fn answered(answer: Res) -> (Counted, ResponseBody<Script, Counted>) {
    let (policy, mut handle, future) = in_flight().await;
    handle.next_request().await.expect("forwarded").1.send_response(answer);
    (policy, future.await.expect("answered").into_body())
}

#[tokio::test]
async fn a_body_that_ends_gives_the_permit_back_once() {
    let (policy, mut body) = answered(response(false, [data("1"), trailers()])).await;
    assert_eq!(body.frame().await.expect("a frame").expect("data").into_data().ok().as_deref(), Some(&b"1"[..]));
    assert!(body.frame().await.expect("a frame").expect("trailers").is_trailers());
    assert_eq!(policy.counts(), (1, 0), "it did not say that this was all");
    assert!(body.frame().await.is_none());
    assert_eq!(policy.counts(), (1, 1));
    assert!(body.frame().await.is_none());
    drop(body);
    assert_eq!(policy.counts(), (1, 1));
}

#[tokio::test]
async fn a_body_that_says_it_is_at_its_end_gives_the_permit_back_with_the_last_frame() {
    let (policy, mut body) = answered(response(true, [data("1"), data("2")])).await;
    body.frame().await.expect("a frame").expect("data");
    assert_eq!(policy.counts(), (1, 0));
    body.frame().await.expect("a frame").expect("data");
    assert_eq!(policy.counts(), (1, 1), "nobody polls after that");

    let (policy, mut body) = answered(response(true, [trailers()])).await;
    body.frame().await.expect("a frame").expect("trailers");
    assert_eq!(policy.counts(), (1, 1));
}

#[tokio::test]
async fn a_body_that_is_empty_from_the_start_holds_no_permit() {
    let (policy, body) = answered(response(true, [])).await;
    assert!(body.is_end_stream());
    assert_eq!(policy.counts(), (1, 1));
}

#[tokio::test]
async fn a_body_that_fails_gives_the_permit_back_once() {
    let (policy, mut body) = answered(response(false, [data("1"), Err("cut"), data("2")])).await;
    body.frame().await.expect("a frame").expect("data");
    assert_eq!(body.frame().await.expect("a frame").err(), Some("cut"));
    assert_eq!(policy.counts(), (1, 1));
    drop(body);
    assert_eq!(policy.counts(), (1, 1));
}

#[tokio::test]
async fn a_body_that_is_dropped_unread_or_half_read_gives_the_permit_back_once() {
    let (policy, body) = answered(response(false, [data("1")])).await;
    assert_eq!(policy.counts(), (1, 0));
    drop(body);
    assert_eq!(policy.counts(), (1, 1));

    let (policy, mut body) = answered(response(false, [data("1"), data("2")])).await;
    body.frame().await.expect("a frame").expect("data");
    assert_eq!(policy.counts(), (1, 0));
    drop(body);
    assert_eq!(policy.counts(), (1, 1));
}

#[tokio::test]
async fn a_body_forwards_what_it_knows_of_its_length_and_end() {
    let (_, mut body) = answered(response(true, [data("1"), data("2")])).await;
    for left in [2, 1, 0] {
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(left), left == 0));
        body.frame().await;
    }
}

#[tokio::test(start_paused = true)]
async fn however_many_connections_there_are_they_share_one_limit() {
    // A framework clones the layer or the service for each connection: https://github.com/tokio-rs/axum/issues/2634.
    let layer = RateLimitLayer::new(Limits::outbound(n(5)));
    let handled = Arc::new(AtomicUsize::new(0));
    for _ in 0..500 {
        let handled = handled.clone();
        let inner = service_fn(move |_: Req| {
            handled.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, BoxError>(Response::new(Full::new(Bytes::new()))) }
        });
        let connection = layer.clone().layer(inner);
        for _ in 0..3 {
            let _ = connection.clone().oneshot(request()).await;
        }
    }
    assert_eq!(handled.load(Ordering::SeqCst), 5, "of 1500 requests");
}

#[tokio::test]
async fn a_closure_is_a_policy_and_a_refusal_without_a_limit_is_noted_by_its_reason() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let closed = |_: &Parts, _: &Context, _: Instant| Err::<(), _>(Error::new(Kind::Overloaded, "closed"));
    let mut request = request();
    let context = Context::of(request.extensions_mut());
    handle.allow(1);
    assert!(RateLimit::new(mock, closed).oneshot(request).await.is_err());
    assert_eq!(context.limit.get(), Some(&"closed"));
    assert!(handle.next_request().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_policy_is_told_the_paused_time_and_the_request() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let start = Clock::now().into_std();
    time::advance(Duration::from_secs(7)).await;
    let policy = move |parts: &Parts, context: &Context, now: Instant| {
        assert_eq!((parts.uri.path(), now - start), ("/", Duration::from_secs(7)));
        assert_eq!(context.bot.get().map(BotId::as_str), Some("b"));
        Ok::<_, Error>(())
    };
    let answer = tokio::spawn(RateLimit::new(mock, policy).oneshot(request()));
    handle.next_request().await.expect("forwarded").1.send_response(response(true, []));
    assert!(answer.await.expect("no panic").is_ok());
}

#[tokio::test]
async fn the_readiness_of_an_inner_limit_is_kept_and_given_back() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let mut service = mock::Spawn::new(RateLimit::new(limited, Limits::new()));
    let mut other = service.clone();

    assert!(service.poll_ready().is_ready());
    assert!(other.poll_ready().is_pending(), "the only permit is taken");
    let answer = service.call(request());
    assert!(handle.next_request().await.is_some());
    assert!(other.poll_ready().is_pending(), "the request is in flight");
    drop(answer);
    assert!(matches!(other.poll_ready(), Poll::Ready(Ok(()))), "a dropped request gives its permit back");
}

#[test]
fn a_service_is_send_sync_and_clone() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    check::<RateLimitLayer<Limits>>();
    check::<RateLimit<(), Limits>>();
    check::<RateLimit<Mock<Req, Res>, Limits>>();
}

#[test]
fn what_is_shown_of_limits_names_no_key() {
    let limits = Limits::new().level(Level::per_user("user", Rate::per_second(n(1))));
    let context = Context::new();
    context.user.set(UserId::new("alice").expect("valid")).expect("empty");
    let parts = request().into_parts().0;
    limits.check(&parts, &context, Clock::now().into_std()).expect("admitted");
    let shown = format!("{limits:?}");
    assert!(shown.contains("\"user\"") && !shown.contains("alice"), "{shown}");
}
