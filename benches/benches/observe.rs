//! A request observed, without anybody who listens and with a subscriber that formats every event.

use bytes::Bytes;
use coze_benches::{bare, compare, criterion};
use coze_observe::{Inbound, ObserveLayer};
use criterion::Criterion;
use http::Request;
use http_body_util::Full;
use tower::Layer;
use tower_http::trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer};
use tracing::Level;

fn make() -> Request<Full<Bytes>> {
    Request::post("/webhook/b1").header("x-request-id", "req-0123456789").body(Full::default()).expect("valid")
}

fn ours() -> ObserveLayer<Inbound> {
    ObserveLayer::new(Inbound::new(["/webhook/{bot_id}"]).expect("valid"))
}

fn silent(c: &mut Criterion) {
    compare(c, "observe/silent", ours().layer(bare::<_, Full<Bytes>>()), bare::<_, Full<Bytes>>(), make);
}

/// Both make one span and one event of the level that the subscriber wants. Ours also counts, and resolves the request's id.
fn traced(c: &mut Criterion) {
    let peer = TraceLayer::new_for_http()
        .make_span_with(DefaultMakeSpan::new().level(Level::INFO))
        .on_response(DefaultOnResponse::new().level(Level::INFO));
    let subscriber =
        tracing_subscriber::fmt().with_max_level(Level::INFO).with_ansi(false).with_writer(std::io::sink).finish();
    tracing::subscriber::with_default(subscriber, || {
        compare(
            c,
            "observe/traced",
            ours().layer(bare::<_, Full<Bytes>>()),
            peer.layer(bare::<_, Full<Bytes>>()),
            make,
        );
    });
}

criterion::criterion_group! { name = observe; config = criterion(); targets = silent, traced }
criterion::criterion_main!(observe);
