//! What every service of a stack may rely on: readiness, cancellation, clones.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use bytes::Bytes;
use coze_core::{BoxError, Error, Kind};
use coze_retry::{Budget, Retry, RetryLayer, Standard};
use http::Response;
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_test::mock::{self, Handle, Mock, SendResponse};

use crate::support::*;

fn refuse(respond: SendResponse<Res>) {
    respond.send_error(Error::new(Kind::Unavailable, "busy"));
}

#[tokio::test(start_paused = true)]
async fn each_attempt_waits_for_readiness() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    handle.allow(1);
    let mut answer = Box::pin(RetryLayer::new(policy()).layer(mock).oneshot(get()));
    assert!(poll(&mut answer).await.is_pending());
    refuse(handle.next_request().await.expect("the first attempt").1);
    assert!(poll(&mut answer).await.is_pending(), "it waits for its time");
    advance(seconds(1.6)).await;
    assert!(poll(&mut answer).await.is_pending(), "it waits for readiness");
    assert!(handle.poll_request().is_pending());
    handle.allow(1);
    assert!(poll(&mut answer).await.is_pending());
    handle.next_request().await.expect("the second attempt").1.send_response(ok().expect("an answer"));
    assert_eq!(outcome(&answer.await), "200");
}

#[tokio::test(start_paused = true)]
async fn an_inner_service_that_breaks_ends_it() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let mut answer = Box::pin(RetryLayer::new(policy()).layer(mock).oneshot(get()));
    assert!(poll(&mut answer).await.is_pending());
    refuse(handle.next_request().await.expect("the first attempt").1);
    assert!(poll(&mut answer).await.is_pending());
    handle.send_error("the pool is closed");
    assert_eq!(outcome(&answer.await), "the pool is closed");
}

#[tokio::test(start_paused = true)]
async fn the_readiness_of_an_inner_limit_is_kept_and_given_back() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let mut service = mock::Spawn::new(Retry::new(limited, policy()));
    let mut other = service.clone();

    assert!(service.poll_ready().is_ready());
    assert!(other.poll_ready().is_pending(), "the only permit is taken");
    let mut answer = Box::pin(service.call(get()));
    assert!(poll(&mut answer).await.is_pending());
    let (_, respond) = handle.next_request().await.expect("the first attempt");
    assert!(other.poll_ready().is_pending(), "the request is in flight");
    refuse(respond);
    assert!(poll(&mut answer).await.is_pending());
    assert!(matches!(other.poll_ready(), Poll::Ready(Ok(()))), "who waits holds no permit");

    advance(seconds(1.6)).await;
    assert!(poll(&mut answer).await.is_pending(), "the other one has the permit");
    assert!(handle.poll_request().is_pending());
    drop(other);
    assert!(poll(&mut answer).await.is_pending());
    handle.next_request().await.expect("the second attempt").1.send_response(ok().expect("an answer"));
    assert_eq!(outcome(&answer.await), "200");
}

/// How far a request is before its future is dropped.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Until {
    Unpolled,
    Calling,
    Waiting,
    Readying,
    CallingAgain,
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_leaves_nothing_behind() {
    use Until::*;
    for until in [Unpolled, Calling, Waiting, Readying, CallingAgain] {
        let (mock, mut handle): (_, Handle<Req, Res>) = mock::pair();
        let limited = ConcurrencyLimitLayer::new(1).layer(mock);
        let mut other = mock::Spawn::new(limited.clone());
        let budget = Budget::new(0, 1);
        let mut service = RetryLayer::new(policy().budget(budget.clone())).layer(limited);
        let mut answer = Box::pin(service.ready().await.expect("ready").call(get()));
        let (_, respond) = handle.next_request().await.expect("the first attempt");
        if until >= Calling {
            assert!(poll(&mut answer).await.is_pending());
        }
        if until >= Waiting {
            refuse(respond);
            assert!(poll(&mut answer).await.is_pending());
            assert!(budget.withdraw((), 100, Instant::now()).is_none(), "the retry has been taken");
        }
        if until >= Readying {
            assert!(other.poll_ready().is_ready());
            advance(seconds(1.6)).await;
            assert!(poll(&mut answer).await.is_pending());
        }
        if until >= CallingAgain {
            other = mock::Spawn::new(other.into_inner().clone());
            assert!(poll(&mut answer).await.is_pending());
            assert!(handle.next_request().await.is_some());
        }
        drop(answer);
        assert!(matches!(other.poll_ready(), Poll::Ready(Ok(()))), "{until:?}: the permit is free");
        assert_eq!(
            budget.withdraw((), 100, Instant::now()).is_some(),
            until < CallingAgain,
            "{until:?}: only what was sent costs"
        );
        advance(seconds(100.0)).await;
        assert!(handle.poll_request().is_pending(), "{until:?}: nothing more is sent");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_response_is_dropped_before_the_wait() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let dropped = Arc::<AtomicBool>::default();
    let inner = service_fn(|_: Req| {
        let flag = Flag(dropped.clone());
        let body = Full::<Bytes>::default().map_frame(move |frame| {
            let _ = &flag;
            frame
        });
        std::future::ready(Response::builder().status(503).body(body).map_err(BoxError::from))
    });
    let mut answer = Box::pin(RetryLayer::new(policy()).layer(inner).oneshot(get()));
    assert!(poll(&mut answer).await.is_pending());
    assert!(dropped.load(Ordering::Relaxed));
}

#[test]
fn a_service_and_its_future_are_as_mobile_as_their_parts() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    check::<Retry<(), Standard>>();
    check::<Retry<Mock<Req, Res>, Standard>>();
    check::<RetryLayer<Standard>>();
    fn future<S: Service<http::Request<Script>>>(_: &S)
    where
        S::Future: Send + std::fmt::Debug,
    {
    }
    future(&Retry::new(mock::pair::<Req, Res>().0, policy()));
}

#[tokio::test(start_paused = true)]
async fn nothing_that_is_printed_shows_the_request() {
    let mut request = chat().map(|_| Script::text("the-body-is-secret"));
    request.headers_mut().insert("x-key", http::HeaderValue::from_static("the-header-is-secret"));
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let answer = RetryLayer::new(policy()).layer(mock).ready().await.expect("ready").call(request);
    let (sent, _respond) = handle.next_request().await.expect("the first attempt");
    assert!(!format!("{answer:?} {:?}", sent.body()).contains("secret"));
}
