//! What a permit is told of the end of its request, over a mock of the inner service.

use std::{
    convert::Infallible,
    future::Pending,
    mem,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context as Task, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use coze_core::{BoxError, Context, Error};
use coze_ratelimit::{Decision, Policy, RateLimit, ResponseBody};
use http::{Request, Response, request, response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use tower::{Service, ServiceExt, service_fn};
use tower_test::mock;

type Res = Response<UnsyncBoxBody<Bytes, &'static str>>;

/// A policy that notes what its permits are told, and when they are dropped.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

#[derive(Debug)]
struct Held(Told);

impl Told {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().expect("sound").push(what.into());
    }

    /// What was noted since the last time.
    fn since(&self) -> Vec<String> {
        mem::take(&mut self.0.lock().expect("sound"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.note("dropped");
    }
}

impl Policy for Told {
    type Permit = Held;
    type Future = Pending<Result<Held, Error>>;

    fn decide(&self, _: &request::Parts, _: &Context, _: Instant) -> Decision<Held, Self::Future> {
        Decision::Now(Ok(Held(self.clone())))
    }

    fn answered(permit: &mut Held, answer: Result<&response::Parts, &BoxError>) {
        permit.0.note(answer.map_or_else(ToString::to_string, |head| head.status.as_str().to_owned()));
    }

    fn completed(permit: Held) {
        permit.0.note("completed");
    }
}

/// A body of these frames, the last one first, that does not say by itself that it is at its end.
#[derive(Debug)]
struct Frames(Vec<Result<&'static str, &'static str>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(self.0.pop().map(|frame| frame.map(|text| Frame::data(text.into()))))
    }
}

fn answer(body: impl Body<Data = Bytes, Error = &'static str> + Send + 'static) -> Res {
    Response::new(body.boxed_unsync())
}

/// An admitted request to which the inner service says this.
async fn answered(
    says: Result<Res, &'static str>,
) -> (Told, Result<ResponseBody<impl Body<Error = &'static str> + Unpin, Told>, BoxError>) {
    let (mock, mut handle) = mock::pair::<Request<()>, Res>();
    let told = Told::default();
    let mut service = RateLimit::new(mock, told.clone());
    let future = service.ready().await.expect("ready").call(Request::new(()));
    let respond = handle.next_request().await.expect("forwarded").1;
    assert_eq!(told.since(), [""; 0], "nothing is told before the answer");
    match says {
        Ok(response) => respond.send_response(response),
        Err(error) => respond.send_error(error),
    }
    (told, future.await.map(Response::into_body))
}

#[tokio::test]
async fn a_body_that_is_read_to_its_end_completes_its_request_once() {
    let (told, body) = answered(Ok(answer(Frames(vec![Ok("2"), Ok("1")])))).await;
    let mut body = body.expect("answered");
    assert_eq!(told.since(), ["200"]);
    for _ in 0..2 {
        body.frame().await.expect("a frame").expect("data");
        assert_eq!(told.since(), [""; 0]);
    }
    assert!(body.frame().await.is_none());
    assert_eq!(told.since(), ["completed", "dropped"]);
    assert!(body.frame().await.is_none());
    drop(body);
    assert_eq!(told.since(), [""; 0]);
}

#[tokio::test]
async fn a_body_that_says_that_this_was_all_completes_its_request_with_the_last_frame() {
    let (told, body) = answered(Ok(answer(Full::new("all".into()).map_err(|never| match never {})))).await;
    let mut body = body.expect("answered");
    assert_eq!(told.since(), ["200"]);
    body.frame().await.expect("a frame").expect("data");
    assert_eq!(told.since(), ["completed", "dropped"], "nobody polls after that");
    drop(body);
    assert_eq!(told.since(), [""; 0]);
}

#[tokio::test]
async fn an_answer_without_a_body_completes_its_request() {
    let mut refused = answer(Empty::new().map_err(|never| match never {}));
    *refused.status_mut() = http::StatusCode::TOO_MANY_REQUESTS;
    let (told, body) = answered(Ok(refused)).await;
    assert_eq!(told.since(), ["429", "completed", "dropped"], "whatever its status");
    drop(body);
    assert_eq!(told.since(), [""; 0]);
}

#[tokio::test]
async fn a_body_that_fails_does_not_complete_its_request() {
    let (told, body) = answered(Ok(answer(Frames(vec![Err("cut"), Ok("1")])))).await;
    let mut body = body.expect("answered");
    body.frame().await.expect("a frame").expect("data");
    assert_eq!(told.since(), ["200"]);
    assert_eq!(body.frame().await.expect("a frame").err(), Some("cut"));
    assert_eq!(told.since(), ["dropped"]);
    assert!(body.frame().await.is_none(), "its end");
    assert_eq!(told.since(), [""; 0]);
}

#[tokio::test]
async fn a_body_that_is_dropped_half_read_does_not_complete_its_request() {
    let (told, body) = answered(Ok(answer(Frames(vec![Ok("2"), Ok("1")])))).await;
    let mut body = body.expect("answered");
    body.frame().await.expect("a frame").expect("data");
    drop(body);
    assert_eq!(told.since(), ["200", "dropped"]);
}

#[tokio::test]
async fn a_service_that_fails_is_told_and_its_request_is_not_complete() {
    let (told, failed) = answered(Err("broken")).await;
    assert_eq!(failed.err().map(|error| error.to_string()).as_deref(), Some("broken"));
    assert_eq!(told.since(), ["broken", "dropped"]);
}

#[tokio::test]
async fn a_request_that_is_dropped_before_its_answer_is_told_nothing() {
    let (mock, mut handle) = mock::pair::<Request<()>, Res>();
    let told = Told::default();
    let mut service = RateLimit::new(mock, told.clone());
    let mut future = Box::pin(service.ready().await.expect("ready").call(Request::new(())));
    let _respond = handle.next_request().await.expect("forwarded");
    assert!(future.as_mut().poll(&mut Task::from_waker(Waker::noop())).is_pending());
    drop(future);
    assert_eq!(told.since(), ["dropped"]);
}

#[tokio::test]
async fn a_service_that_panics_is_told_as_nothing() {
    let told = Told::default();
    let panics = service_fn(|_: Request<()>| async {
        std::panic::resume_unwind(Box::new("silent"));
        #[expect(unreachable_code, reason = "what it would answer")]
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let service = RateLimit::new(panics, told.clone());
    assert!(tokio::spawn(service.oneshot(Request::new(()))).await.expect_err("panicked").is_panic());
    assert_eq!(told.since(), ["dropped"]);
}
