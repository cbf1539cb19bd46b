//! The deadline rules everything.

use std::{task::Poll, time::Duration};

use coze_core::{Context, Error, Kind};
use coze_retry::{RetryLayer, Standard};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_test::mock;

use crate::support::*;

fn until(total: f64) -> Standard {
    policy().deadline(seconds(total))
}

/// Sends a request to an inner service that answers 503 after `slow`: what came out, how often it was sent, when it was over.
async fn slow(policy: Standard, slow: f64) -> (String, u32, f64) {
    let sent = std::sync::atomic::AtomicU32::new(0);
    let inner = service_fn(|_: Req| async {
        sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        sleep(seconds(slow)).await;
        status(503, &[])
    });
    let start = Instant::now();
    let answer = RetryLayer::new(policy).layer(inner).oneshot(get()).await;
    let over = u32::try_from(start.elapsed().as_millis() / 10 * 10).expect("short");
    (outcome(&answer), sent.into_inner(), f64::from(over) / 1000.0)
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_dropped_at_the_deadline() {
    assert_eq!(slow(until(2.0), 5.0).await, ("deadline_passed".into(), 1, 2.0));
    let mut request = get();
    Context::of(request.extensions_mut()).deadline.set((Instant::now() + seconds(2.0)).into_std()).expect("empty");
    let (mock, mut handle) = mock::pair::<Req, Res>();
    // Also where the request is never sent again.
    let answer = RetryLayer::new(policy().tries(0).deadline(None)).layer(mock).oneshot(request);
    let (answer, sent) = tokio::join!(answer, handle.next_request());
    assert_eq!(outcome(&answer), "deadline_passed");
    assert_eq!(Error::find(&*answer.expect_err("too late")).map(Error::kind), Some(Kind::Timeout));
    drop(sent);
}

#[tokio::test(start_paused = true)]
async fn the_last_error_is_returned_where_there_is_one() {
    // 1 s for the answer, 1.5 s of waiting, and the second attempt has half a second left.
    assert_eq!(slow(until(3.0), 1.0).await, ("failed_response".into(), 2, 3.0));
    let failure = || fail(Error::new(Kind::Unavailable, "the_first_one"));
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let answer = RetryLayer::new(until(2.0)).layer(mock).oneshot(get());
    let inner = async {
        let (_, respond) = handle.next_request().await.expect("the first attempt");
        respond.send_error(failure().expect_err("an error"));
        handle.next_request().await.expect("the second attempt")
    };
    let (answer, unanswered) = tokio::join!(answer, inner);
    assert_eq!(outcome(&answer), "the_first_one");
    drop(unanswered);
}

#[tokio::test(start_paused = true)]
async fn an_answer_at_the_deadline_wins() {
    assert_eq!(slow(until(2.0), 2.0).await, ("503".into(), 1, 2.0));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_an_attempt_that_cannot_begin_in_time() {
    // 1 s for the answer and 1.5 s of waiting.
    assert_eq!(slow(until(2.5), 1.0).await, ("503".into(), 1, 1.0), "it would begin at the deadline");
    assert_eq!(slow(until(2.51), 1.0).await, ("failed_response".into(), 2, 2.51));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_ready_too_late_is_not_sent() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    handle.allow(1);
    let mut answer = Box::pin(RetryLayer::new(until(2.0)).layer(mock).oneshot(get()));
    assert!(poll(&mut answer).await.is_pending());
    let (_, respond) = handle.next_request().await.expect("the first attempt");
    respond.send_error(Error::new(Kind::Unavailable, "the_first_one"));
    assert!(poll(&mut answer).await.is_pending());
    advance(seconds(2.0)).await;
    handle.allow(1);
    assert_eq!(outcome(&answer.await), "the_first_one");
    assert!(handle.next_request().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_over_holds_nothing() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let mut answer = {
        let mut service = RetryLayer::new(until(2.0)).layer(mock);
        Box::pin(service.ready().await.expect("ready").call(get()))
    };
    let (request, respond) = handle.next_request().await.expect("the first attempt");
    advance(seconds(2.0)).await;
    assert_eq!(poll(&mut answer).await.map(|answer| outcome(&answer)), Poll::Ready("deadline_passed".into()));
    drop((request, respond));
    assert!(handle.next_request().await.is_none(), "the inner service is gone");
    drop(answer);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_too_late_is_not_sent() {
    let start = Instant::now();
    let (answer, arrived) = send(until(0.0), get(), vec![]).await;
    assert_eq!((outcome(&answer).as_str(), arrived.len()), ("deadline_passed", 0));
    let mut late = get();
    Context::of(late.extensions_mut()).deadline.set(start.into_std()).expect("empty");
    sleep(seconds(1.0)).await;
    let (answer, arrived) = send(policy(), late, vec![]).await;
    assert_eq!((outcome(&answer).as_str(), arrived.len()), ("deadline_passed", 0));
}

#[tokio::test(start_paused = true)]
async fn the_earlier_deadline_counts() {
    for (own, context) in
        [(Some(seconds(2.0)), 50.0), (Some(seconds(50.0)), 2.0), (None, 2.0), (Some(Duration::MAX), 2.0)]
    {
        let mut request = get();
        Context::of(request.extensions_mut())
            .deadline
            .set((Instant::now() + seconds(context)).into_std())
            .expect("empty");
        let start = Instant::now();
        // The second wait would be too long.
        let (answer, _) = send(policy().deadline(own), request, vec![status(503, &[]), status(503, &[])]).await;
        assert_eq!(outcome(&answer), "503");
        assert!(start.elapsed() < seconds(2.0), "{own:?} {context}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_deadline_there_is_none() {
    let far = Duration::from_secs(40 * 86_400);
    let inner = service_fn(|_: Req| async move {
        sleep(far).await;
        ok()
    });
    let answer = RetryLayer::new(policy().deadline(None)).layer(inner).oneshot(get()).await;
    assert_eq!(outcome(&answer), "200");
    assert_eq!(slow(policy(), 500.0).await, ("deadline_passed".into(), 1, 120.0), "the default");
}

#[tokio::test(start_paused = true)]
async fn readiness_is_waited_for_until_the_deadline() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let mut other = limited.clone();
    let answer = RetryLayer::new(until(4.0)).layer(limited).oneshot(get());
    let inner = async {
        let (_, respond) = handle.next_request().await.expect("the first attempt");
        respond.send_error(Error::new(Kind::Unavailable, "the_first_one"));
        // Somebody else takes the permit during the wait and keeps it.
        other.ready().await.expect("the permit is given back");
        handle.next_request().await
    };
    let (answer, more) = tokio::join!(answer, async { tokio::time::timeout(seconds(10.0), inner).await });
    assert_eq!(outcome(&answer), "the_first_one");
    assert!(more.is_err(), "nothing more is sent");
}
