//! Signatures checked and tokens attached.

use bytes::Bytes;
use coze_auth::{AuthLayer, Bearer, Key, Static, Webhook, WebhookKeys};
use coze_benches::{bare, compare, compare_fns, criterion, in_context, sending};
use coze_core::BotId;
use criterion::Criterion;
use hmac::{Hmac, KeyInit, Mac};
use http::Request;
use http_body_util::Full;
use sha2::Sha256;
use tower::Layer;

const KEY: &str = "bot-token-0123456789";

fn keyed() -> Hmac<Sha256> {
    Hmac::new_from_slice(KEY.as_bytes()).expect("any length")
}

/// A message as a caller signs it, and its signature.
fn message(len: usize) -> (Bytes, [u8; 32]) {
    let body = Bytes::from(vec![b'x'; len]);
    let signature = keyed().chain_update(&body).finalize().into_bytes().into();
    (body, signature)
}

/// The whole layer with a message of 1 KiB, against nothing but the MAC over it, keyed beforehand.
fn webhook(c: &mut Criterion) {
    let keys = WebhookKeys::new();
    keys.set(&BotId::new("b1").expect("valid"), [Key::new(KEY).expect("valid")]).expect("not too many");
    let (body, signature) = message(1024);
    let hex = hex::encode(signature);
    let make = || {
        let head = Request::post("/webhook/b1").header("x-signature", &hex);
        in_context(head.body(Full::new(body.clone())).expect("valid"))
    };
    let ours = sending(AuthLayer::new(Webhook::new(keys).path("/webhook")).layer(bare::<_, Full<Bytes>>()));
    let mac = keyed();
    let peer = |request: Request<Full<Bytes>>| {
        mac.clone().chain_update(&body).verify_slice(&signature).expect("signed");
        drop(request);
    };
    compare_fns(c, "auth/webhook_1kib", make, ours, peer);
}

fn bearer(c: &mut Criterion) {
    let token = Static::new("pat_0123456789abcdef").expect("valid");
    let ours = AuthLayer::new(Bearer::new(token)).layer(bare::<_, Full<Bytes>>());
    compare(c, "auth/bearer", ours, bare::<_, Full<Bytes>>(), || in_context(Request::new(Full::<Bytes>::default())));
}

criterion::criterion_group! { name = auth; config = criterion(); targets = webhook, bearer }
criterion::criterion_main!(auth);
