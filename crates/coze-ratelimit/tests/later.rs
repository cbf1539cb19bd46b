//! A policy that has to ask somebody else: the request waits for the decision, and the inner service stays ready for it.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context as Task, Poll, Waker},
    time::Instant,
};

use coze_core::{Context, Error, Kind};
use coze_ratelimit::{Decision, Policy, RateLimit};
use http::request::Parts;
use http_body_util::Empty;
use tokio::sync::oneshot;
use tower::{Layer, limit::ConcurrencyLimitLayer};
use tower_test::mock::{self, Handle, SendResponse};

type Answer = Result<Arc<()>, Error>;

/// A policy whose decisions the test makes.
#[derive(Clone, Debug, Default)]
struct Asked(Arc<Mutex<Vec<oneshot::Sender<Answer>>>>);

impl Asked {
    fn decide(&self, answer: Answer) {
        let _ = self.0.lock().expect("sound").pop().expect("asked").send(answer);
    }
}

impl Policy for Asked {
    type Permit = Arc<()>;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn decide(&self, _: &Parts, _: &Context, _: Instant) -> Decision<Arc<()>, Self::Future> {
        let (sender, receiver) = oneshot::channel();
        self.0.lock().expect("sound").push(sender);
        Decision::Later(Box::pin(async { receiver.await.expect("decided") }))
    }
}

type Request = http::Request<&'static str>;
type Response = http::Response<Empty<&'static [u8]>>;

/// What has reached the inner service.
fn forwarded(handle: &mut Handle<Request, Response>) -> Option<(Request, SendResponse<Response>)> {
    match handle.poll_request() {
        Poll::Ready(request) => request,
        Poll::Pending => None,
    }
}

fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Task::from_waker(Waker::noop()))
}

fn request() -> (Request, Context) {
    let mut request = Request::new("body");
    let context = Context::of(request.extensions_mut());
    (request, context)
}

#[tokio::test]
async fn a_request_goes_on_when_it_is_admitted_and_its_body_holds_the_permit() {
    let (mock, mut handle) = mock::pair::<Request, Response>();
    let policy = Asked::default();
    let mut service = mock::Spawn::new(RateLimit::new(ConcurrencyLimitLayer::new(1).layer(mock), policy.clone()));
    let mut other = service.clone();
    assert!(service.poll_ready().is_ready());
    let (asked, context) = request();
    let mut call = Box::pin(service.call(asked));
    assert!(poll(&mut call).is_pending());
    assert!(forwarded(&mut handle).is_none(), "nothing goes further before the decision");
    assert!(other.poll_ready().is_pending(), "the request keeps the place that it was promised");

    let permit = Arc::new(());
    policy.decide(Ok(permit.clone()));
    assert!(poll(&mut call).is_pending());
    let (sent, respond) = forwarded(&mut handle).expect("forwarded");
    assert_eq!((*sent.body(), context.limit.get()), ("body", Some(&"ok")));
    respond.send_response(Response::new(Empty::new()));
    let Poll::Ready(Ok(answer)) = poll(&mut call) else { panic!("answered") };
    assert_eq!(Arc::strong_count(&permit), 1, "an empty answer holds nothing");
    drop((call, answer));
    assert!(other.poll_ready().is_ready());
}

#[tokio::test]
async fn a_request_that_is_refused_later_never_reaches_the_inner_service() {
    let (mock, mut handle) = mock::pair::<Request, Response>();
    let policy = Asked::default();
    let mut service = mock::Spawn::new(RateLimit::new(ConcurrencyLimitLayer::new(1).layer(mock), policy.clone()));
    let mut other = service.clone();
    assert!(service.poll_ready().is_ready());
    let (asked, context) = request();
    let mut answer = Box::pin(service.call(asked));
    assert!(poll(&mut answer).is_pending());
    policy.decide(Err(Error::new(Kind::RateLimited, "later")));
    let Poll::Ready(Err(error)) = poll(&mut answer) else { panic!("refused") };
    assert_eq!((Error::find(&*error).map(Error::reason), context.limit.get()), (Some("later"), Some(&"later")));
    assert!(forwarded(&mut handle).is_none());
    assert!(other.poll_ready().is_ready(), "the place is free again, although the future is still there");
}

#[tokio::test]
async fn a_request_that_is_dropped_while_it_waits_frees_its_place_and_is_never_sent() {
    let (mock, mut handle) = mock::pair::<Request, Response>();
    let policy = Asked::default();
    let mut service = mock::Spawn::new(RateLimit::new(ConcurrencyLimitLayer::new(1).layer(mock), policy.clone()));
    let mut other = service.clone();
    assert!(service.poll_ready().is_ready());
    let mut answer = Box::pin(service.call(request().0));
    assert!(poll(&mut answer).is_pending());
    drop(answer);
    policy.decide(Ok(Arc::default()));
    assert!(forwarded(&mut handle).is_none());
    assert!(other.poll_ready().is_ready());
}
