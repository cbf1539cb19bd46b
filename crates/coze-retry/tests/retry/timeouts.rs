//! The bounds on single attempts and on the waits within an answer, and what is told to the next hop.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use coze_core::{BoxError, Context, Error, Kind};
use coze_retry::{ResponseBody, RetryLayer, Standard, time_left};
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::{Body, Frame};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::*;

const NUMBER: HeaderName = HeaderName::from_static("x-attempt");
const LEFT: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// Sends a request to an inner service whose attempts take so many seconds: what came out, when, and the headers of each attempt.
async fn timed(policy: Standard, request: Request<Script>, takes: &[f64]) -> (String, f64, Vec<HeaderMap>) {
    let seen = Mutex::new(Vec::new());
    let inner = service_fn(|request: Req| {
        let mut seen = seen.lock().expect("not poisoned");
        seen.push(request.headers().clone());
        let takes = takes.get(seen.len() - 1).copied().expect("not so often");
        async move {
            sleep(seconds(takes)).await;
            ok()
        }
    });
    let start = Instant::now();
    let answer = RetryLayer::new(policy).layer(inner).oneshot(request).await;
    let over = u32::try_from(start.elapsed().as_millis() / 10 * 10).expect("short");
    (outcome(&answer), f64::from(over) / 1000.0, seen.into_inner().expect("not poisoned"))
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_dropped_and_made_again() {
    let policy = policy().attempt_timeout(seconds(2.0));
    let (answer, over, seen) = timed(policy.clone(), get(), &[9.0, 1.0]).await;
    assert_eq!((answer.as_str(), over, seen.len()), ("200", 6.0, 2), "2 s, the row's 3 s, and 1 s");
    let (answer, over, _) = timed(policy.clone(), get(), &[9.0, 9.0]).await;
    assert_eq!((answer.as_str(), over), ("attempt_timeout", 7.0));
    let (answer, _, seen) = timed(policy.clone(), chat(), &[9.0]).await;
    assert_eq!((answer.as_str(), seen.len()), ("attempt_timeout", 1), "it may have run");
    let (answer, over, _) = timed(policy.clone().tries(0), get(), &[9.0]).await;
    assert_eq!((answer.as_str(), over), ("attempt_timeout", 2.0), "also where nothing is ever sent again");
    let (answer, over, _) = timed(policy.deadline(seconds(1.0)), get(), &[9.0]).await;
    assert_eq!((answer.as_str(), over), ("deadline_passed", 1.0), "the deadline is nearer");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_cannot_end_in_time_is_not_begun() {
    // 1 s for the first attempt, then 3 s of waiting.
    for (shortest, attempts) in [(0.0, 2), (0.4, 2), (0.6, 1)] {
        let policy = policy().deadline(seconds(4.5)).attempt_timeout(seconds(1.0)).shortest_attempt(seconds(shortest));
        assert_eq!(timed(policy, get(), &[9.0, 9.0]).await.2.len(), attempts, "{shortest}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_hop_is_told_the_number_of_the_attempt_and_the_time_it_has() {
    let told = |seen: &[HeaderMap], name: &HeaderName| -> Vec<String> {
        let text =
            |headers: &HeaderMap| headers.get(name).map_or("-", |value| value.to_str().expect("ASCII")).to_owned();
        seen.iter().map(text).collect()
    };
    let (_, _, seen) = timed(policy().attempt_timeout(seconds(1.0)), get(), &[9.0, 0.0]).await;
    assert_eq!(
        (told(&seen, &NUMBER), told(&seen, &LEFT)),
        (vec!["-".into(); 2], vec!["-".into(); 2]),
        "if it is wanted"
    );

    let policy = policy().number_header(NUMBER).deadline_header(LEFT).deadline(seconds(10.0));
    let (_, _, seen) = timed(policy.clone().attempt_timeout(seconds(7.0)), get(), &[9.0]).await;
    assert_eq!((told(&seen, &NUMBER), told(&seen, &LEFT)), (vec!["1".into()], vec!["7000".into()]));
    let (_, _, seen) = timed(policy.clone().attempt_timeout(seconds(4.0)), get(), &[9.0, 0.0]).await;
    assert_eq!(told(&seen, &NUMBER), ["1", "2"]);
    let left = told(&seen, &LEFT);
    assert!(left[0] == "4000" && ["3000", "2999", "2998"].contains(&&*left[1]), "4 s and 3 s are gone: {left:?}");

    // The request itself may say how long its caller waits.
    let mut request = get();
    request.headers_mut().insert(LEFT, 1500.into());
    let (answer, over, seen) = timed(policy, request, &[9.0]).await;
    assert_eq!((answer.as_str(), over, told(&seen, &LEFT)), ("deadline_passed", 1.5, vec!["1500".into()]));
}

#[tokio::test(start_paused = true)]
async fn calls_of_grpc_carry_their_timeout() {
    let call = |timeout: Option<&'static str>| {
        let mut call = request("POST", "/coze.Bots/Get");
        call.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc+proto"));
        call.headers_mut()
            .extend(timeout.map(|t| (HeaderName::from_static("grpc-timeout"), http::HeaderValue::from_static(t))));
        call.extensions_mut().insert(coze_retry::Idempotent);
        call
    };
    let read = |seen: &[HeaderMap]| seen.iter().map(|headers| time_left(headers, None)).collect::<Vec<_>>();
    let (answer, over, seen) = timed(policy(), call(Some("1500m")), &[9.0]).await;
    assert_eq!((answer.as_str(), over, read(&seen)), ("deadline_passed", 1.5, vec![Some(seconds(1.5))]));
    let policy = policy().attempt_timeout(seconds(2.0)).deadline(seconds(6.0));
    let (_, _, seen) = timed(policy.clone(), call(Some("90S")), &[9.0, 0.0]).await;
    assert_eq!(read(&seen)[0], Some(seconds(2.0)));
    assert!(read(&seen)[1].is_some_and(|left| left <= seconds(1.0) && left > seconds(0.99)), "5 s of 6 are gone");
    assert!(!seen[0].contains_key("grpc-previous-rpc-attempts"));
    assert_eq!(seen[1]["grpc-previous-rpc-attempts"], "1");
    let (_, _, seen) = timed(policy.deadline(None).attempt_timeout(None), call(None), &[0.0]).await;
    assert_eq!(read(&seen), [None]);
}

/// A body whose frames come after so many seconds each, and then its end. It tells when it is dropped.
struct Slow(Vec<f64>, Option<Pin<Box<tokio::time::Sleep>>>, Arc<AtomicBool>);

impl Body for Slow {
    type Data = bytes::Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(wait) = this.0.first().copied() else { return Poll::Ready(None) };
        let timer = this.1.get_or_insert_with(|| Box::pin(sleep(seconds(wait))));
        timer.as_mut().poll(task).map(|()| {
            this.0.remove(0);
            this.1 = None;
            Some(Ok(Frame::data("event".into())))
        })
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.2.store(true, Ordering::Relaxed);
    }
}

async fn frames(policy: Standard, waits: &[f64]) -> (usize, String) {
    let dropped = Arc::<AtomicBool>::default();
    let slow = Mutex::new(Some(Slow(waits.to_vec(), None, dropped.clone())));
    let inner = service_fn(|_: Req| {
        let body = slow.lock().expect("not poisoned").take().expect("asked once");
        std::future::ready(Ok::<_, BoxError>(Response::new(body)))
    });
    let answer = RetryLayer::new(policy).layer(inner).oneshot(get()).await.expect("a head");
    let mut body: Pin<Box<ResponseBody<Slow>>> = Box::pin(answer.into_body());
    for count in 0.. {
        match std::future::poll_fn(|task| body.as_mut().poll_frame(task)).await {
            Some(Ok(_)) => {}
            None => return (count, "end".into()),
            Some(Err(error)) => {
                let error = Error::find(&*error).expect("ours");
                assert_eq!(error.kind(), Kind::Timeout);
                assert!(dropped.load(Ordering::Relaxed), "the connection is free");
                assert!(body.is_end_stream());
                assert!(
                    std::future::poll_fn(|task| body.as_mut().poll_frame(task)).await.is_none(),
                    "an end is an end"
                );
                return (count, error.reason().into());
            }
        }
    }
    unreachable!("it ends")
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stops_is_ended() {
    let waits = [3.0, 0.5, 1.5, 0.5];
    assert_eq!(frames(policy(), &waits).await, (4, "end".into()), "if it is wanted");
    assert_eq!(frames(policy().first_byte_timeout(seconds(2.0)), &waits).await, (0, "first_byte_timeout".into()));
    assert_eq!(frames(policy().idle_timeout(seconds(1.0)), &waits).await, (2, "idle_timeout".into()));
    let both = policy().first_byte_timeout(seconds(4.0)).idle_timeout(seconds(2.0));
    assert_eq!(frames(both, &waits).await, (4, "end".into()));
    assert_eq!(frames(policy().idle_timeout(seconds(2.0)).tries(0), &[0.0, 9.0]).await, (1, "idle_timeout".into()));
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_is_not_cut_off() {
    let inner = service_fn(|_: Req| {
        std::future::ready(Ok::<_, BoxError>(Response::new(Slow(vec![0.5; 3], None, Arc::default()))))
    });
    let policy = policy().idle_timeout(seconds(1.0)).first_byte_timeout(seconds(1.0));
    let answer = RetryLayer::new(policy).layer(inner).oneshot(get()).await.expect("a head");
    let mut body = Box::pin(answer.into_body());
    for _ in 0..3 {
        sleep(seconds(60.0)).await;
        let frame = std::future::poll_fn(|task| body.as_mut().poll_frame(task)).await;
        assert!(frame.is_some_and(|frame| frame.is_ok()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_attempt_is_counted_on_the_context() {
    let mut request = get();
    let context = Context::of(request.extensions_mut());
    timed(policy().attempt_timeout(seconds(2.0)), request, &[9.0, 0.0]).await;
    assert_eq!(context.attempts.load(Ordering::Relaxed), 2);
}
