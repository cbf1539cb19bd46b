//! What refused requests get instead, over a mock of the inner service.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use coze_core::{BoxError, Context, Error, Kind};
use coze_ratelimit::{Decision, Level, Limits, Policy, Quota, RateLimitLayer};
use http::{Method, Request, Response, request::Parts};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt};
use tower_test::mock;

type Body = Full<bytes::Bytes>;
type Res = Response<Body>;

/// One at once.
fn one() -> Limits {
    Limits::new().level(Level::global("app", Quota::Concurrency(NonZeroU32::MIN)))
}

/// The same, as a policy that takes its time.
#[derive(Clone)]
struct Slow(Limits);

impl Policy for Slow {
    type Permit = <Limits as Policy>::Permit;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Permit, Error>>>>;

    fn decide(&self, parts: &Parts, context: &Context, now: Instant) -> Decision<Self::Permit, Self::Future> {
        let Decision::Now(decided) = self.0.decide(parts, context, now) else { unreachable!("it decides at once") };
        Decision::Later(Box::pin(async {
            tokio::task::yield_now().await;
            decided
        }))
    }
}

fn request(method: Method) -> Request<&'static str> {
    let mut request = Request::new("what is asked");
    *request.method_mut() = method;
    request
}

/// Holds the only place, and sends one request more.
async fn refused<P>(policy: P, method: Method) -> (Result<Res, BoxError>, Context, u32)
where
    P: Policy + Clone,
    P::Permit: Send + 'static,
{
    let (mock, mut inner) = mock::pair::<Request<&'static str>, Res>();
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let layer = RateLimitLayer::new(policy).degrade(move |request: Request<&'static str>, refusal: Error| {
        count.fetch_add(1, Ordering::SeqCst);
        assert_eq!((*request.body(), refusal.reason()), ("what is asked", "concurrency_limited"));
        match *request.method() == Method::POST {
            true => Ok(async move {
                tokio::task::yield_now().await;
                Ok::<_, BoxError>(Response::new(Body::from("instead")))
            }),
            false => Err(refusal),
        }
    });
    let mut service = layer.layer(mock);
    let mut first = by_hand(service.ready().await.expect("ready").call(request(Method::POST)));
    assert!(first.poll_once().is_none());
    let (_held, _respond) = inner.next_request().await.expect("the first is let through");

    let mut second = request(method);
    let context = Context::of(second.extensions_mut());
    let answer = service.ready().await.expect("ready").call(second).await;
    drop(service);
    assert!(first.poll_once().is_none(), "it goes on");
    drop(first);
    assert!(inner.next_request().await.is_none(), "the second never came here");
    let answer = match answer {
        Ok(answer) => {
            let (head, body) = answer.into_parts();
            Ok(Response::from_parts(head, Full::from(body.collect().await.expect("a body").to_bytes())))
        }
        Err(error) => Err(error),
    };
    (answer, context, asked.load(Ordering::SeqCst))
}

/// A future that is polled by hand.
struct ByHand<F>(std::pin::Pin<Box<F>>);

fn by_hand<F: Future>(future: F) -> ByHand<F> {
    ByHand(Box::pin(future))
}

impl<F: Future> ByHand<F> {
    fn poll_once(&mut self) -> Option<F::Output> {
        // Twice, as a slow decision is there at the second look.
        let mut task = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..2 {
            if let std::task::Poll::Ready(output) = self.0.as_mut().poll(&mut task) {
                return Some(output);
            }
        }
        None
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_gets_the_other_answer_and_never_reaches_the_inner_service() {
    for slow in [false, true] {
        let (answer, context, asked) = match slow {
            false => refused(one(), Method::POST).await,
            true => refused(Slow(one()), Method::POST).await,
        };
        let body = answer.expect("instead").into_body().collect().await.expect("a body").to_bytes();
        assert_eq!((&body[..], asked), (&b"instead"[..], 1));
        assert_eq!(context.limit.get(), Some(&"app"), "it was refused all the same");
    }
}

#[tokio::test(start_paused = true)]
async fn what_there_is_no_other_answer_for_is_refused() {
    for slow in [false, true] {
        let (answer, context, asked) = match slow {
            false => refused(one(), Method::GET).await,
            true => refused(Slow(one()), Method::GET).await,
        };
        let error = answer.expect_err("refused");
        assert_eq!(Error::find(&*error).map(Error::kind), Some(Kind::RateLimited));
        assert_eq!((context.limit.get(), asked), (Some(&"app"), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_admitted_request_is_none_of_its_business() {
    let (mock, mut inner) = mock::pair::<Request<&'static str>, Res>();
    let layer = RateLimitLayer::new(one()).degrade(|_: Request<&'static str>, _: Error| {
        assert!(std::hint::black_box(false), "nobody is refused");
        Ok::<_, Error>(std::future::pending::<Result<Res, BoxError>>())
    });
    let service = layer.layer(mock);
    let answers = async {
        for _ in 0..3 {
            let (_, respond) = inner.next_request().await.expect("let through");
            respond.send_response(Response::new(Body::from("now")));
        }
    };
    let calls = async {
        for _ in 0..3 {
            let answer = service.clone().oneshot(request(Method::POST)).await.expect("answered");
            assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "now");
        }
    };
    tokio::join!(calls, answers);
}
