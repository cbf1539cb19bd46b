//! The whole stacks, in the order of the README.

use std::num::NonZeroU32;

use bytes::Bytes;
use coze_auth::{AuthLayer, Bearer, Key, Static, Webhook, WebhookKeys};
use coze_benches::{bare, compare_fns, criterion, sending};
use coze_core::{BotId, TenantId, UserId};
use coze_errmap::{Classifier, ErrMapLayer, Responder};
use coze_observe::{Inbound, ObserveLayer, Outbound};
use coze_ratelimit::{Level, Limits, Quota, Rate, RateLimitLayer};
use coze_retry::{RetryLayer, Standard};
use coze_tenant::{Propagate, Registry, TenantLayer};
use criterion::Criterion;
use hmac::{Hmac, KeyInit, Mac};
use http::Request;
use http_body_util::Full;
use sha2::Sha256;
use tower::ServiceBuilder;

const KEY: &str = "bot-token-0123456789";
const MESSAGE: &str = r#"{"bot_id":"b1","conversation_id":"c1","user_id":"u1","content":"How is the weather?"}"#;
const PLENTY: NonZeroU32 = NonZeroU32::new(100_000_000).expect("not zero");

fn inbound(c: &mut Criterion) {
    let bot = BotId::new("b1").expect("valid");
    let keys = WebhookKeys::new();
    keys.set(&bot, [Key::new(KEY).expect("valid")]).expect("not too many");
    let webhook = Webhook::new(keys).path("/webhook").user(|_| UserId::new("u1").ok());
    let limits = Limits::platform()
        .level(Level::global("app", Rate::per_second(PLENTY)))
        .level(Level::per_bot("bot", Quota::Concurrency(PLENTY)))
        .level(Level::per_user("user", Rate::per_second(PLENTY)));
    let ours = ServiceBuilder::new()
        .layer(ObserveLayer::new(Inbound::new(["/webhook/{bot_id}"]).expect("valid")))
        .layer(ErrMapLayer::new(Responder::new()))
        .layer(AuthLayer::new(webhook))
        .layer(TenantLayer::new(Registry::new([]).bot(bot, TenantId::new("acme").expect("valid"))))
        .layer(RateLimitLayer::new(limits))
        .service(bare::<_, Full<Bytes>>());
    let mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).expect("any length").chain_update(MESSAGE).finalize();
    let signature = hex::encode(mac.into_bytes());
    let make = || {
        let head =
            Request::post("/webhook/b1").header("x-signature", &signature).header("x-request-id", "req-0123456789");
        head.body(Full::<Bytes>::from(MESSAGE)).expect("valid")
    };
    compare_fns(c, "stack/inbound", make, sending(ours), sending(bare::<_, Full<Bytes>>()));
}

fn outbound(c: &mut Criterion) {
    let ours = ServiceBuilder::new()
        .layer(ObserveLayer::new(Outbound::new(["/v3/chat"]).expect("valid")))
        .layer(TenantLayer::new(Propagate::new()))
        .layer(RetryLayer::new(Standard::new()))
        .layer(RateLimitLayer::new(Limits::outbound(PLENTY)))
        .layer(AuthLayer::new(Bearer::new(Static::new("pat_0123456789abcdef").expect("valid"))))
        .layer(ErrMapLayer::new(Classifier::new()))
        .service(bare::<_, Full<Bytes>>());
    let make = || Request::post("/v3/chat").body(Full::<Bytes>::from(MESSAGE)).expect("valid");
    compare_fns(c, "stack/outbound", make, sending(ours), sending(bare::<_, Full<Bytes>>()));
}

criterion::criterion_group! { name = stack; config = criterion(); targets = inbound, outbound }
criterion::criterion_main!(stack);
