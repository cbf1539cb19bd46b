//! What the layer costs in allocations, once its handles are resolved.

use std::{
    future::{Future, Ready, ready},
    pin::pin,
    task::{Context as Task, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use coze_core::{BoxError, Context, Kind, RequestId, TenantId};
use coze_observe::{Inbound, ObserveLayer, Outbound, Policy, REQUEST_ID_HEADER};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::Full;
use metrics_util::debugging::DebuggingRecorder;
use tower::{Layer, Service, service_fn};

type Res = Response<Full<&'static [u8]>>;

/// The allocations of a request, after another one like it resolved the handles.
fn allocations(policy: impl Policy + Clone, request: impl Fn() -> Request<()>) -> u64 {
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || {
        let mut service = ObserveLayer::new(policy).layer(service_fn(answer));
        let mut send = || {
            let request = request();
            measure(|| {
                let Poll::Ready(Ok(answer)) = poll(service.call(request)) else { panic!("answered at once") };
                let mut body = pin!(answer.into_body());
                while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut Task::from_waker(Waker::noop())) {
                    frame.expect("no error");
                }
            })
        };
        send();
        send().count_total
    })
}

fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Task::from_waker(Waker::noop()))
}

/// An answer that has room for a header.
fn answer(request: Request<()>) -> Ready<Result<Res, BoxError>> {
    let mut answer = Response::new(Full::new(&b"hello"[..]));
    *answer.headers_mut() = request.into_parts().0.headers;
    ready(Ok(answer))
}

/// A request whose context exists already, and whose headers have room.
fn request() -> Request<()> {
    let mut request = Request::builder().uri("/bots/7").body(()).expect("valid");
    let context = Context::of(request.extensions_mut());
    context.tenant.set(TenantId::new("acme").expect("valid")).expect("empty");
    context.failure.set((Kind::Content, "refused")).expect("empty");
    context.token_life.set(Duration::from_secs(9)).expect("empty");
    *request.headers_mut() = HeaderMap::with_capacity(8);
    request.headers_mut().insert(REQUEST_ID_HEADER, HeaderValue::from_static("req-1"));
    request
}

#[test]
fn a_request_that_has_its_id_costs_the_value_of_the_header() {
    let with_id = || {
        let mut request = request();
        let id = RequestId::new("req-1").expect("valid");
        Context::of(request.extensions_mut()).request_id.set(id).expect("empty");
        request
    };
    let (inbound, outbound) = (Inbound::new(["/bots/{id}"]), Outbound::new(["/bots/{id}"]));
    assert_eq!(allocations(outbound.expect("valid"), with_id), 1);
    assert_eq!(allocations(inbound.expect("valid"), with_id), 2, "the answer's header too");
}

#[test]
fn a_new_request_costs_its_id_and_two_headers() {
    let inbound = Inbound::new(["/bots/{id}"]).expect("valid");
    assert_eq!(allocations(inbound.clone(), request), 3, "the caller's id");
    let without_id = || {
        let mut request = request();
        request.headers_mut().remove(REQUEST_ID_HEADER);
        request
    };
    assert_eq!(allocations(inbound, without_id), 3, "an id of ours");
}
