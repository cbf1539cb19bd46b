//! A request that succeeds at once.

use bytes::Bytes;
use coze_benches::{bare, compare_fns, criterion, in_context, sending};
use coze_retry::{RetryLayer, Standard};
use criterion::Criterion;
use http::Request;
use http_body_util::Full;
use tower::Layer;

/// A read, which may be sent again, so that its body is wrapped to be kept.
fn first_attempt(c: &mut Criterion) {
    let ours = sending(RetryLayer::new(Standard::new()).layer(bare::<_, Full<Bytes>>()));
    let peer = sending(bare::<_, Full<Bytes>>());
    let make = || in_context(Request::post("/v3/chat/retrieve").body(Full::<Bytes>::from("{}")).expect("valid"));
    compare_fns(c, "retry/first_attempt", make, ours, peer);
}

criterion::criterion_group! { name = retry; config = criterion(); targets = first_attempt }
criterion::criterion_main!(retry);
