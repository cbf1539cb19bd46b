//! A second attempt beside one that is late.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU32, Ordering},
    },
    task::Poll,
};

use coze_retry::{Budget, Hedge, RetryLayer, Standard};
use http::Request;
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_test::mock;

use crate::support::*;

/// A read that says that it has no body.
fn read() -> Request<Script> {
    get().map(|_| Script::new(true, []))
}

fn hedged() -> Standard {
    policy().hedge(Hedge::after(seconds(1.0)))
}

/// How many attempts run now, and how many were begun.
type Counts = Arc<(AtomicI32, AtomicU32)>;

/// An attempt, as long as it is not dropped.
struct Running(Counts);

impl Running {
    /// Begins an attempt; how many were before it.
    fn begin(counts: &Counts) -> (Self, usize) {
        counts.0.fetch_add(1, Ordering::Relaxed);
        (Self(counts.clone()), counts.1.fetch_add(1, Ordering::Relaxed) as usize)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends a request to an inner service whose attempts take so many seconds and answer this status: what came out, when, and
/// how many attempts there were.
async fn race(policy: Standard, request: Request<Script>, attempts: &[(f64, u16)]) -> (String, f64, u32) {
    let counts = Counts::default();
    let inner = service_fn(|_: Req| {
        let (running, number) = Running::begin(&counts);
        let (takes, answer) = *attempts.get(number).expect("not so often");
        async move {
            let _running = running;
            sleep(seconds(takes)).await;
            status(answer, &[])
        }
    });
    let start = Instant::now();
    let mut service = RetryLayer::new(policy).layer(inner);
    let mut answer = Box::pin(service.ready().await.expect("ready").call(request));
    let out = (&mut answer).await;
    assert_eq!(counts.0.load(Ordering::Relaxed), 0, "the loser is dropped at once");
    let over = u32::try_from(start.elapsed().as_millis() / 10 * 10).expect("short");
    (outcome(&out), f64::from(over) / 1000.0, counts.1.load(Ordering::Relaxed))
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_raced_and_the_first_one_wins() {
    assert_eq!(race(hedged(), read(), &[(0.9, 200)]).await, ("200".into(), 0.9, 1), "it is in time");
    assert_eq!(race(hedged(), read(), &[(9.0, 200), (0.5, 201)]).await, ("201".into(), 1.5, 2));
    assert_eq!(race(hedged(), read(), &[(2.0, 200), (9.0, 201)]).await, ("200".into(), 2.0, 2));
    assert_eq!(race(policy(), read(), &[(9.0, 200)]).await, ("200".into(), 9.0, 1), "off by default");
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_one_does_not_end_the_other() {
    assert_eq!(race(hedged(), read(), &[(2.0, 503), (4.0, 200)]).await, ("200".into(), 5.0, 2));
    assert_eq!(race(hedged(), read(), &[(5.0, 200), (1.0, 503)]).await, ("200".into(), 5.0, 2));
    // When both have failed the table decides, and a third attempt has no companion.
    let (answer, over, attempts) = race(hedged(), read(), &[(2.0, 503), (4.0, 503), (3.0, 200)]).await;
    assert_eq!((answer.as_str(), over, attempts), ("200", 9.5, 3));
}

#[tokio::test(start_paused = true)]
async fn only_what_reads_and_has_no_body_is_raced() {
    for (request, raced) in [
        (request("HEAD", "/v1/bots"), true),
        (request("POST", "/v3/chat/retrieve?chat_id=1"), true),
        (request("POST", "/v3/chat"), false),
        (request("PUT", "/v1/bots"), false),
        (request("DELETE", "/v1/bots"), false),
        (get().map(|_| Script::text("body")), false),
    ] {
        let request = request.map(|body| if body.steps.is_empty() { Script::new(true, []) } else { body });
        let name = format!("{} {}", request.method(), request.uri());
        let attempts = race(hedged(), request, &[(3.0, 200), (0.5, 200)]).await.2;
        assert_eq!(attempts == 2, raced, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_attempt_costs_a_retry() {
    let budget = Budget::new(0, 2);
    let policy = hedged().budget(budget.clone());
    for attempts in [2, 2, 1] {
        assert_eq!(race(policy.clone(), read(), &[(3.0, 200), (3.0, 200)]).await.2, attempts);
    }
    assert!(budget.withdraw((), 1, Instant::now()).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_late_is_learnt() {
    let policy = policy().hedge(Hedge::percentile(0.9));
    for n in 0..100 {
        let takes = if n < 95 { 0.1 } else { 5.0 };
        assert_eq!(race(policy.clone(), read(), &[(takes, 200)]).await.2, 1, "nobody knows yet");
    }
    let (_, over, attempts) = race(policy, read(), &[(9.0, 200), (0.1, 200)]).await;
    assert_eq!(attempts, 2);
    assert!((0.2..0.24).contains(&over), "late is after 0.1 s, or a little more: {over}");
}

#[tokio::test(start_paused = true)]
async fn a_second_attempt_waits_for_readiness_and_keeps_nothing() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let mut other = mock::Spawn::new(limited.clone());
    let mut answer = Box::pin(RetryLayer::new(hedged()).layer(limited).oneshot(read()));
    assert!(poll(&mut answer).await.is_pending());
    let (_, respond) = handle.next_request().await.expect("the first attempt");
    advance(seconds(1.5)).await;
    assert!(poll(&mut answer).await.is_pending(), "there is no permit for the second one");
    assert!(handle.poll_request().is_pending());
    respond.send_error("the connection broke");
    assert!(poll(&mut answer).await.is_pending(), "the first one failed, and waits for its time");
    assert!(matches!(other.poll_ready(), Poll::Ready(Ok(()))), "who waits holds no permit");
}
