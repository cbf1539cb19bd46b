//! What is sent again and what is not, and what a retry costs.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use coze_core::{Context, Error, Kind, RequestId, Retry as MayRetry};
use coze_retry::{Attempt, Budget, Decision, Idempotent, Outcome, Plan, Policy, RetryLayer};
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_failure_is_handed_on_at_once() {
    for code in [200, 202, 304, 399] {
        let (answer, _) = send(|_: &Attempt<'_>| panic!("nobody asks"), get(), vec![status(code, &[])]).await;
        assert_eq!(outcome(&answer), code.to_string());
        assert_eq!(text(answer.expect("an answer").into_body()).await, "answer");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_not_worth_a_retry_is_handed_on_as_it_is() {
    let (answer, _) = send(policy(), get(), vec![status(404, &[("x-tt-logid", "l1")])]).await;
    assert_eq!(answer.expect("a response").headers()["x-tt-logid"], "l1");
    let (answer, _) = send(policy(), get(), vec![fail(Error::new(Kind::Invalid, "bad_parameter"))]).await;
    assert_eq!(outcome(&answer), "bad_parameter");
    let (answer, _) = send(policy(), get(), vec![status(504, &[]), status(504, &[("x-tt-logid", "l2")])]).await;
    assert_eq!(answer.expect("the last response").headers()["x-tt-logid"], "l2");
}

#[tokio::test(start_paused = true)]
async fn what_may_have_run_is_sent_again_only_if_it_may_run_twice() {
    let failures: [fn() -> Answer; 3] =
        [|| status(503, &[]), || fail(Error::new(Kind::Unavailable, "x")), || Err("the connection broke".into())];
    for failure in failures {
        for again in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
            let (answer, _) = send(policy(), request(again, "/v3/chat"), vec![failure(), ok()]).await;
            assert_eq!(outcome(&answer), "200", "{again}");
        }
        for once in ["POST", "PATCH"] {
            let (answer, _) = send(policy(), request(once, "/v3/chat"), vec![failure()]).await;
            assert_eq!(outcome(&answer), outcome(&failure()), "{once}");
        }
        let (answer, _) = send(policy(), request("POST", "/v3/chat/retrieve?chat_id=1"), vec![failure(), ok()]).await;
        assert_eq!(outcome(&answer), "200", "it only reads");
    }
}

#[tokio::test(start_paused = true)]
async fn what_did_not_run_is_sent_again_whatever_it_is() {
    let safe = Error::new(Kind::Unavailable, "x").with_retry(MayRetry::Safe);
    assert_eq!(outcome(&send(policy(), chat(), vec![fail(safe), ok()]).await.0), "200");
    assert_eq!(outcome(&send(policy(), chat(), vec![status(429, &[]), ok()]).await.0), "200");
}

#[tokio::test(start_paused = true)]
async fn a_caller_may_say_that_a_request_may_run_twice() {
    let mut marked = chat();
    marked.extensions_mut().insert(Idempotent);
    assert_eq!(outcome(&send(policy(), marked, vec![status(503, &[]), ok()]).await.0), "200");

    let by_key = policy().idempotent(|request| request.headers.contains_key("idempotency-key"));
    let mut keyed = chat();
    keyed.headers_mut().insert("idempotency-key", http::HeaderValue::from_static("k1"));
    assert_eq!(outcome(&send(by_key.clone(), keyed, vec![status(503, &[]), ok()]).await.0), "200");
    assert_eq!(outcome(&send(by_key, chat(), vec![status(503, &[])]).await.0), "503");
}

#[tokio::test(start_paused = true)]
async fn every_attempt_gets_the_same_head_and_is_counted() {
    let mut original = get();
    original.headers_mut().insert("x-tenant-id", http::HeaderValue::from_static("t1"));
    let context = Context::of(original.extensions_mut());
    let inner = service_fn(|mut request: Req| async move {
        assert_eq!(
            (request.method(), request.uri().path(), &request.headers()["x-tenant-id"]),
            (&http::Method::GET, "/v1/bots", &http::HeaderValue::from_static("t1"))
        );
        let attempts = Context::of(request.extensions_mut()).attempts.load(Ordering::Relaxed);
        Ok::<_, tower::BoxError>(
            Response::builder().status(if attempts < 3 { 503 } else { 200 }).body(Full::<Bytes>::default())?,
        )
    });
    let answer = RetryLayer::new(policy()).layer(inner).oneshot(original).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), context.attempts.load(Ordering::Relaxed)), (200, 3));
}

#[tokio::test(start_paused = true)]
async fn all_requests_together_are_sent_again_as_often_as_the_budget_allows() {
    let layer = RetryLayer::new(policy().budget(Budget::new(60, 1)).tries(1));
    let sent = std::sync::atomic::AtomicU32::new(0);
    let inner = || {
        service_fn(|_: Req| {
            sent.fetch_add(1, Ordering::Relaxed);
            std::future::ready(status(503, &[]))
        })
    };
    // Each through a service and a clone of its own: what they share is the layer's.
    for _ in 0..1001 {
        let answer = layer.clone().layer(inner()).clone().oneshot(get()).await;
        assert_eq!(outcome(&answer), "503");
    }
    assert_eq!(sent.load(Ordering::Relaxed), 1001 + 1 + 600);
}

#[tokio::test(start_paused = true)]
async fn decisions_are_events_without_secrets() {
    let events = Events::record();
    let mut original = chat();
    let context = Context::of(original.extensions_mut());
    context.request_id.set(RequestId::new("r1").expect("valid")).expect("empty");
    let _ = send(policy(), original, vec![status(429, &[]), status(503, &[])]).await;
    let lines = events.take();
    assert_eq!(
        lines,
        [
            "INFO coze::retry: the request is sent again row=\"rate_limited\" attempt=1 wait_ms=1000 request_id=\"r1\"",
            "INFO coze::retry: the request is not sent again row=\"gateway_error\" why=\"not_idempotent\" attempt=2 request_id=\"r1\"",
        ]
    );

    for (policy, answers, why) in [
        (policy(), vec![status(504, &[]), status(504, &[])], "row=\"timeout\" why=\"tries\""),
        (policy().budget(Budget::new(0, 0)), vec![status(504, &[])], "row=\"timeout\" why=\"budget\""),
        (policy().deadline(seconds(3.0)), vec![status(504, &[])], "row=\"timeout\" why=\"deadline\""),
        (policy(), vec![status(503, &[("retry-after", "61")])], "row=\"gateway_error\" why=\"retry_after\""),
        (policy(), vec![status(500, &[])], "DEBUG coze::retry: the request is not sent again why=\"no_row\""),
        (policy(), vec![fail(Error::new(Kind::Billing, "x"))], "why=\"never\""),
    ] {
        let _ = send(policy, get(), answers).await;
        let lines = events.take();
        assert!(lines.last().is_some_and(|line| line.contains(why)), "{why}: {lines:?}");
    }
}

/// A value that counts how often it is copied.
#[derive(Debug, Default)]
struct Copied(std::sync::Arc<std::sync::atomic::AtomicU32>);

impl Clone for Copied {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_request_that_is_never_sent_again_nothing_is_kept() {
    for (policy, copies) in [(policy().tries(0), 0), (policy(), 1)] {
        let copied = Copied::default();
        let mut original = get();
        original.extensions_mut().insert(copied.clone());
        copied.0.store(0, Ordering::Relaxed);
        let _ = send(policy, original, vec![ok()]).await;
        assert_eq!(copied.0.load(Ordering::Relaxed), copies);
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_of_ones_own_decides() {
    #[derive(Clone)]
    struct Twice;
    impl Policy for Twice {
        fn plan<B>(&self, request: &Request<B>) -> Plan {
            let replay = Some(8).filter(|_| request.method() == "GET");
            Plan { deadline: Some(Duration::from_secs(9)), replay, ..Plan::default() }
        }
        fn decide(&self, attempt: &Attempt<'_>) -> Decision {
            match attempt.outcome {
                Outcome::Answered(status, headers)
                    if status == 404 && headers.is_empty() && attempt.earlier != ["a", "a"] =>
                {
                    assert_eq!(attempt.request.uri.path(), "/v1/bots");
                    Decision::Again { row: "a", wait: Duration::from_secs(4), permit: None }
                }
                _ => Decision::Stop { row: None, why: "enough" },
            }
        }
    }
    let (answer, arrived) = send(Twice, get(), vec![status(404, &[]), status(404, &[]), status(404, &[])]).await;
    assert_eq!((outcome(&answer).as_str(), waits(&arrived)), ("404", vec![seconds(4.0); 2]));
    assert_eq!(outcome(&send(Twice, chat(), vec![status(404, &[])]).await.0), "404", "this one is never sent again");

    // Nobody waits until the deadline, whatever the policy says.
    for wait in [Duration::from_secs(1), Duration::MAX] {
        let forever = move |_: &Attempt<'_>| Decision::Again { row: "a", wait, permit: None };
        let mut original = get();
        let start = tokio::time::Instant::now();
        let deadline = start + Duration::from_secs(1);
        Context::of(original.extensions_mut()).deadline.set(deadline.into_std()).expect("empty");
        assert_eq!(outcome(&send(forever, original, vec![status(404, &[])]).await.0), "404");
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}

#[test]
fn the_plain_path_needs_no_timer() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without timers");
    runtime.block_on(async {
        let inner = service_fn(|_: Req| async {
            tokio::task::yield_now().await;
            ok()
        });
        let mut service = RetryLayer::new(policy().deadline(None)).layer(inner);
        let answer = service.ready().await.expect("ready").call(Request::new(Script::default())).await;
        assert_eq!(outcome(&answer), "200");
    });
}
