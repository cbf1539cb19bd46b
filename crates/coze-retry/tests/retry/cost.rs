//! What a request costs that succeeds at once.

use std::{
    future::Ready,
    pin::pin,
    task::{Context as Task, Poll, Waker},
};

use bytes::Bytes;
use coze_core::{BoxError, Context};
use coze_retry::{Policy, Retry};
use http::{Request, Response};
use http_body_util::Full;
use tower::{Service, service_fn};

use crate::support::*;

/// The allocations of a request that meets success at the first attempt.
fn allocations(policy: impl Policy + Clone, request: Request<Script>) -> u64 {
    let mut service = Retry::new(
        service_fn(|_: Req| -> Ready<Result<_, BoxError>> {
            std::future::ready(Ok(Response::new(Full::<Bytes>::default())))
        }),
        policy,
    );
    let task = &mut Task::from_waker(Waker::noop());
    let mut request = Some(request);
    let info = allocation_counter::measure(|| {
        assert!(Service::<Request<Script>>::poll_ready(&mut service, task).is_ready());
        let answer = pin!(service.call(request.take().expect("once")));
        assert!(matches!(answer.poll(task), Poll::Ready(Ok(_))));
    });
    info.count_total
}

fn with_context(mut request: Request<Script>) -> Request<Script> {
    Context::of(request.extensions_mut());
    request.headers_mut().insert("x-tenant-id", http::HeaderValue::from_static("t1"));
    request
}

/// A request with this body, and the allocations of one copy of its head.
fn and_copy(body: Script) -> (Request<Script>, u64) {
    let (parts, _) = with_context(get()).into_parts();
    // The first copy of an address that came as a string makes it shareable.
    drop(parts.clone());
    let copy = allocation_counter::measure(|| drop(parts.clone())).count_total;
    (Request::from_parts(parts, body), copy)
}

#[tokio::test(start_paused = true)]
async fn a_success_at_once_costs_one_copy_of_the_head() {
    let (request, copy) = and_copy(Script::new(true, []));
    assert_eq!(allocations(policy(), request), copy);
}

#[tokio::test(start_paused = true)]
async fn a_body_costs_one_allocation_more() {
    let (request, copy) = and_copy(Script::text("unread"));
    assert_eq!(allocations(policy(), request), copy + 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_sent_again_costs_nothing() {
    assert_eq!(allocations(policy().tries(0), with_context(get())), 0);
    assert_eq!(allocations(policy().tries(0), get()), 0);
}

#[test]
fn the_future_is_small() {
    type Service = Retry<tower_test::mock::Mock<Req, Res>, coze_retry::Standard>;
    let future = size_of::<<Service as tower::Service<Request<Script>>>::Future>();
    assert!(future <= 512, "{future}");
}
