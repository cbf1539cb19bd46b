//! The layer itself, whatever the policy: readiness, cancellation, clones, closures.

mod support;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use coze_auth::{
    Admitted, Auth, AuthLayer, Bearer, Callback, Decision, Key, Policy, Renewing, Static, Token, VerifiedBody, Webhook,
    WebhookKeys, take_request,
};
use coze_core::{BoxError, Context, Error, Kind, Principal};
use http::{Request, Response, request::Parts};
use support::{Script, Step, bot, reason, send};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_test::mock;

/// Signed with `bot-token`.
const SIGNED: &str = r#"{"text":"hi"}"#;
const SIGNATURE: &str = "a59566ab6fe628c1fcc5d0bacf757f4300f248ab8ca409af8e757bec2fc546a7";

fn webhook() -> Webhook {
    let keys = WebhookKeys::new();
    keys.set(&bot("b1"), [Key::new("bot-token").expect("not empty")]).expect("one key");
    Webhook::new(keys)
}

/// A message whose body takes a second.
fn slow(body: &'static str) -> Request<Script> {
    let steps = [Step::Wait(Duration::from_secs(1)), Step::Data(Bytes::from_static(body.as_bytes()))];
    Request::post("/").header("x-signature", SIGNATURE).body(Script::new(steps)).expect("a request")
}

async fn is_pending<F: Future>(future: &mut Pin<Box<F>>) -> bool {
    poll_fn(|task| Poll::Ready(future.as_mut().poll(task).is_pending())).await
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_takes_the_readiness_of_an_inner_limit_with_it_and_gives_it_back() {
    let (mock, mut handle) = mock::pair::<Request<VerifiedBody>, Response<()>>();
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let mut service = mock::Spawn::new(Auth::new(limited, webhook()));
    let mut other = service.clone();

    // Dropped while its body is read.
    assert!(service.poll_ready::<Request<Script>>().is_ready());
    assert!(other.poll_ready::<Request<Script>>().is_pending(), "the only permit is taken");
    let mut answer = Box::pin(service.call(slow(SIGNED)));
    assert!(is_pending(&mut answer).await);
    assert!(service.poll_ready::<Request<Script>>().is_pending(), "what stays behind has no permit");
    assert!(other.poll_ready::<Request<Script>>().is_pending(), "the permit waits with the request");
    drop(answer);
    assert!(other.poll_ready::<Request<Script>>().is_ready(), "a dropped request gives its permit back");

    // Refused after its body was read.
    assert!(other.call(slow("forged")).await.is_err());
    assert!(service.poll_ready::<Request<Script>>().is_ready(), "so does a refused one");

    // Dropped while the inner service works on it.
    let mut answer = Box::pin(service.call(slow(SIGNED)));
    tokio::select! {
        _ = &mut answer => panic!("nobody answered"),
        request = handle.next_request() => assert!(request.is_some()),
    }
    assert!(other.poll_ready::<Request<Script>>().is_pending(), "the request is in flight");
    drop(answer);
    assert!(other.poll_ready::<Request<Script>>().is_ready(), "and one that is in flight");
    assert!(handle.poll_request().is_pending(), "nothing else came through");
}

#[tokio::test]
async fn a_request_decided_at_once_spends_the_readiness_of_an_inner_limit_in_place() {
    let (mock, mut handle) = mock::pair::<Request<()>, Response<()>>();
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let policy = Bearer::new(Static::new("pat_1").expect("valid"));
    let mut service = mock::Spawn::new(Auth::new(limited, policy));
    let mut other = service.clone();

    assert!(service.poll_ready().is_ready());
    let answer = service.call(Request::new(()));
    assert!(handle.next_request().await.is_some());
    assert!(other.poll_ready().is_pending(), "the request is in flight");
    drop(answer);
    assert!(other.poll_ready().is_ready(), "a dropped request gives its permit back");
}

#[derive(Clone)]
struct CloneCounts(Rc<()>);

impl<B> Service<Request<B>> for CloneCounts {
    type Response = Response<usize>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Response<usize>, BoxError>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        std::future::ready(Ok(Response::new(Rc::strong_count(&self.0))))
    }
}

#[tokio::test]
async fn a_decision_at_once_clones_no_inner_service_which_need_not_be_send() {
    let mut service = Auth::new(CloneCounts(Rc::default()), Bearer::new(Static::new("pat_1").expect("valid")));
    poll_fn(|task| Service::<Request<()>>::poll_ready(&mut service, task)).await.expect("ready");
    assert_eq!(*service.call(Request::new(())).await.expect("answered").body(), 1);
}

#[tokio::test]
async fn a_body_that_is_there_is_judged_at_once() {
    let request = Request::post("/").header("x-signature", SIGNATURE).body(Script::from(SIGNED)).expect("a request");
    let mut service = Auth::new(CloneCounts(Rc::default()), webhook());
    poll_fn(|task| Service::<Request<Script>>::poll_ready(&mut service, task)).await.expect("ready");
    assert_eq!(*service.call(request).await.expect("answered").body(), 1);
}

/// A policy that waits, and holds what cannot leave its thread.
#[derive(Clone)]
struct Waits(Rc<()>);

impl Policy<()> for Waits {
    type Body = ();
    type Ticket = Rc<()>;
    type Future = Pin<Box<dyn Future<Output = Result<Admitted<(), Rc<()>>, Error>>>>;

    fn authorize(&self, head: &mut Parts, body: ()) -> Decision<((), Rc<()>), Self::Future> {
        let (request, ticket) = (take_request(head, body), self.0.clone());
        Decision::Later(Box::pin(async {
            tokio::task::yield_now().await;
            Ok((request, ticket))
        }))
    }

    fn settle<R>(ticket: Rc<()>, outcome: &mut Result<Response<R>, BoxError>) {
        if let Ok(response) = outcome {
            response.headers_mut().insert("held", Rc::strong_count(&ticket).into());
        }
    }
}

#[tokio::test]
async fn a_ticket_is_kept_until_the_outcome() {
    let policy = Waits(Rc::default());
    let service = AuthLayer::new(policy.clone()).layer(CloneCounts(Rc::default()));
    let response = service.oneshot(Request::new(())).await.expect("answered");
    assert_eq!(response.headers()["held"], "2", "ours and the ticket");
    assert_eq!(Rc::strong_count(&policy.0), 1);
}

#[tokio::test]
async fn a_closure_decides_by_the_head_and_the_context_tells_how() {
    let policy = |parts: &mut Parts, context: &Context| match parts.headers.contains_key("x-service-token") {
        true => {
            context.principal.get_or_init(|| Principal::new("service_token", "plugin"));
            Ok(())
        }
        false => Err(Error::new(Kind::Unauthenticated, "missing_credentials")),
    };
    let mut request = Request::builder().header("x-service-token", "t").body("body").expect("a request");
    let context = Context::of(request.extensions_mut());
    assert_eq!(*send(&policy, request).await.expect("accepted").body(), "body");
    assert_eq!(context.auth(), Some("ok"));

    let mut request = Request::new("body");
    let context = Context::of(request.extensions_mut());
    assert_eq!(reason(send(&policy, request).await), Some("missing_credentials"));
    assert_eq!(context.auth(), Some("missing_credentials"));
}

#[tokio::test]
async fn a_failure_of_the_inner_service_is_handed_out_as_it_is() {
    let inner = service_fn(|_: Request<VerifiedBody>| async { Err::<Response<()>, _>("broken") });
    let request = Request::post("/").header("x-signature", SIGNATURE).body(Script::from(SIGNED)).expect("a request");
    let error = AuthLayer::new(webhook()).layer(inner).oneshot(request).await.expect_err("broken");
    assert_eq!(error.to_string(), "broken");
}

#[tokio::test(start_paused = true)]
async fn a_service_is_send_sync_and_clone() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>(_: &T) {}
    fn sends<F: Send>(_: F) {}
    let mut service =
        Auth::new(service_fn(async |_: Request<VerifiedBody>| Ok::<_, BoxError>(Response::new(()))), webhook());
    sends(service.call(slow(SIGNED)));
    let callback = Callback::new("a", [Key::new("t").expect("not empty")]).expect("one token");
    check(&Auth::new((), webhook()));
    check(&AuthLayer::new(callback));
    check(&Auth::new((), Bearer::new(Static::new("t").expect("valid"))));
    check(&Auth::new((), Bearer::new(Renewing::new(|| async { Token::bearer("t") }))));
}
