//! The error layer on requests that do not fail.

use bytes::Bytes;
use coze_benches::{bare, compare, criterion, in_context};
use coze_errmap::{Classifier, ErrMapLayer, Responder};
use criterion::Criterion;
use http::Request;
use http_body_util::Full;
use tower::Layer;

fn responder(c: &mut Criterion) {
    let ours = ErrMapLayer::new(Responder::new()).layer(bare::<_, Full<Bytes>>());
    compare(c, "errmap/responder", ours, bare::<_, Full<Bytes>>(), || {
        in_context(Request::new(Full::<Bytes>::default()))
    });
}

fn classifier(c: &mut Criterion) {
    let ours = ErrMapLayer::new(Classifier::new()).layer(bare::<_, Full<Bytes>>());
    compare(c, "errmap/classifier", ours, bare::<_, Full<Bytes>>(), || {
        in_context(Request::new(Full::<Bytes>::default()))
    });
}

criterion::criterion_group! { name = errmap; config = criterion(); targets = responder, classifier }
criterion::criterion_main!(errmap);
