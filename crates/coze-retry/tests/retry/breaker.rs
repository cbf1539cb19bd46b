//! A destination that hangs is left alone, and tried again.

use std::sync::atomic::{AtomicU32, Ordering};

use coze_core::{Error, Kind, Retry as MayRetry};
use coze_retry::{Breaker, RetryLayer, Standard};
use http::Request;
use tokio::time::{advance, sleep};
use tower::{Layer, ServiceExt, service_fn};
use tower_test::mock;

use crate::support::*;

/// Opens after two marks, for 10 s.
fn breaking() -> Standard {
    policy().tries(0).breaker(Breaker::new().marks(2))
}

fn to(host: &str) -> Request<Script> {
    request("GET", &format!("https://{host}/v1/bots"))
}

/// What a request to this host meets, where the other side would answer so; and how often it was asked.
async fn ask(layer: &RetryLayer<Standard>, host: &str, answer: fn() -> Answer) -> (String, u32) {
    let asked = AtomicU32::new(0);
    let inner = service_fn(|_: Req| {
        asked.fetch_add(1, Ordering::Relaxed);
        std::future::ready(answer())
    });
    let out = layer.clone().layer(inner).oneshot(to(host)).await;
    (outcome(&out), asked.into_inner())
}

fn hangs() -> Answer {
    status(504, &[])
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_hangs_is_left_alone_and_no_other_one() {
    let events = Events::record();
    let layer = RetryLayer::new(breaking());
    for _ in 0..2 {
        assert_eq!(ask(&layer, "a", hangs).await, ("504".into(), 1));
    }
    assert_eq!(ask(&layer, "a", ok).await, ("circuit_open".into(), 0));
    assert_eq!(ask(&layer, "b", ok).await, ("200".into(), 1));
    let alerts: Vec<_> = events.take().into_iter().filter(|line| line.contains("coze::alert")).collect();
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert!(alerts[0].contains("alert=\"circuit_open\""), "{alerts:?}");

    advance(seconds(4.0)).await;
    let refused = RetryLayer::new(breaking());
    let service = layer.layer(service_fn(|_: Req| std::future::ready(ok())));
    let error = service.oneshot(to("a")).await.expect_err("it is open");
    let error = Error::find(&*error).expect("ours");
    assert_eq!(
        (error.kind(), error.retry(), error.retry_after()),
        (Kind::Unavailable, MayRetry::Safe, Some(seconds(6.0)))
    );
    assert_eq!(ask(&refused, "a", ok).await.1, 1, "another layer, another breaker");
}

#[tokio::test(start_paused = true)]
async fn one_request_finds_out_whether_it_is_back() {
    let layer = RetryLayer::new(breaking());
    for _ in 0..2 {
        ask(&layer, "a", hangs).await;
    }
    advance(seconds(10.0)).await;
    assert_eq!(ask(&layer, "a", hangs).await, ("504".into(), 1), "it is not");
    assert_eq!(ask(&layer, "a", ok).await, ("circuit_open".into(), 0));
    advance(seconds(10.0)).await;

    // While the probe runs nobody else gets through; when it is given up, another one takes its place.
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let mut probe = Box::pin(layer.layer(mock).oneshot(to("a")));
    assert!(poll(&mut probe).await.is_pending());
    assert!(handle.next_request().await.is_some());
    assert_eq!(ask(&layer, "a", ok).await, ("circuit_open".into(), 0));
    drop(probe);
    assert_eq!(ask(&layer, "a", ok).await, ("200".into(), 1));
    for _ in 0..3 {
        assert_eq!(ask(&layer, "a", ok).await, ("200".into(), 1), "it is closed");
    }
}

#[tokio::test(start_paused = true)]
async fn what_speaks_against_a_destination_is_said_by_the_table() {
    let failures: [(fn() -> Answer, bool); 9] = [
        (hangs, true),
        (|| fail(Error::new(Kind::Timeout, "platform_silent")), true),
        (|| fail(Error::new(Kind::Unavailable, "platform_unreachable").with_retry(MayRetry::Safe)), true),
        (|| status(503, &[]), false),
        (|| status(502, &[]), false),
        (|| status(429, &[]), false),
        (|| status(404, &[]), false),
        (|| fail(code(Error::new(Kind::Overloaded, "system_limit"), 4009)), false),
        (|| Err("the connection broke".into()), false),
    ];
    for (failure, opens) in failures {
        let layer = RetryLayer::new(breaking());
        for _ in 0..5 {
            ask(&layer, "a", failure).await;
        }
        assert_eq!(ask(&layer, "a", ok).await.1 == 0, opens, "{}", outcome(&failure()));
    }
    let layer = RetryLayer::new(breaking().breaker(None));
    for _ in 0..100 {
        assert_eq!(ask(&layer, "a", hangs).await.1, 1, "there is none");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_between_starts_the_count_anew() {
    // What it answers does not matter, if it is an answer; what our own layers refuse is none.
    let answers: [(fn() -> Answer, bool); 5] = [
        (ok, false),
        (|| status(404, &[]), false),
        (|| fail(code(Error::new(Kind::Invalid, "bad_parameter"), 4000)), false),
        (|| fail(Error::new(Kind::RateLimited, "app")), true),
        (|| status(500, &[]), true),
    ];
    for (answer, opens) in answers {
        let layer = RetryLayer::new(breaking());
        for failure in [hangs, answer, hangs] {
            ask(&layer, "a", failure).await;
        }
        assert_eq!(ask(&layer, "a", ok).await.1 == 0, opens, "{}", outcome(&answer()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_does_not_wait_for_a_destination_that_is_left_alone() {
    let events = Events::record();
    let policy = policy().breaker(Breaker::new().marks(1));
    let (answer, arrived) = send(policy.clone(), to("a"), vec![hangs()]).await;
    assert_eq!((outcome(&answer).as_str(), arrived.len()), ("504", 1), "the wait is 3 s, and it is open for 10 s");
    assert!(events.take().iter().any(|line| line.contains("row=\"timeout\" why=\"circuit_open\"")));

    // Another request opens it during the wait of this one.
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let waiting = RetryLayer::new(policy.clone()).layer(mock).oneshot(to("b"));
    let other = async {
        handle.next_request().await.expect("the first attempt").1.send_response(status(503, &[]).expect("a response"));
        sleep(seconds(1.0)).await;
        assert_eq!(outcome(&send(policy, to("b"), vec![hangs()]).await.0), "504");
        assert!(handle.next_request().await.is_none(), "nothing more is sent");
    };
    let (answer, ()) = tokio::join!(waiting, other);
    assert_eq!(outcome(&answer), "failed_response");
}
