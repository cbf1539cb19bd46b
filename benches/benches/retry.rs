//! A request that succeeds at once.

use std::hint::black_box;

use bytes::Bytes;
use coze_benches::{bare, compare_fns, criterion, in_context, sending};
use coze_retry::{ReplayBody, RetryLayer, Standard};
use criterion::Criterion;
use http::{Request, header};
use http_body_util::Full;
use tower::Layer;

type Body = Full<Bytes>;

/// A request as it comes to the layer: with a context and some headers.
fn request(body: &'static str) -> Request<Body> {
    let head =
        Request::post("https://api.coze.cn/v3/chat/retrieve?chat_id=1").header(header::ACCEPT, "application/json");
    in_context(head.header("x-tenant-id", "acme").body(Full::from(body)).expect("valid"))
}

/// The bare service behind a copy of the request's head, which is let go when the answer is there: what it takes at least to
/// be able to send the request again.
fn copying(mut send: impl FnMut(Request<Body>)) -> impl FnMut(Request<Body>) {
    move |request| {
        let (head, body) = request.into_parts();
        let copy = black_box(head.clone());
        send(Request::from_parts(head, body));
        drop(copy);
    }
}

fn ours(policy: Standard) -> impl FnMut(Request<Body>) {
    sending(RetryLayer::new(policy).layer(bare::<ReplayBody<Body>, Body>()))
}

fn bare_sending() -> impl FnMut(Request<Body>) {
    sending::<_, Body, Body>(bare())
}

/// A read, which may be sent again.
fn first_attempt(c: &mut Criterion) {
    compare_fns(c, "retry/first_attempt", || request(""), ours(Standard::new()), copying(bare_sending()));
}

/// The same with a body, which is wrapped to be kept.
fn with_body(c: &mut Criterion) {
    compare_fns(c, "retry/with_body", || request("{}"), ours(Standard::new()), copying(bare_sending()));
}

/// A request that is never sent again.
fn never(c: &mut Criterion) {
    compare_fns(c, "retry/never", || request(""), ours(Standard::new().tries(0)), bare_sending());
}

criterion::criterion_group! { name = retry; config = criterion(); targets = first_attempt, with_body, never }
criterion::criterion_main!(retry);
