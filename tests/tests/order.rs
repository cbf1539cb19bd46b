//! Why the layers stand in the documented order: each test holds the right order against one wrong one, and shows what a user
//! would suffer.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use coze_auth::{AuthLayer, Bearer, Key, Renewing, Token, VerifiedBody, Webhook, WebhookKeys};
use coze_core::{BotId, BoxError, Error, Kind, TenantId};
use coze_errmap::{Classifier, ErrMapLayer, Responder};
use coze_observe::{Inbound, ObserveLayer};
use coze_ratelimit::{Level, Limits, Rate, RateLimitLayer};
use coze_retry::{RetryLayer, Row, Standard, Wait};
use coze_tenant::{Registry, TenantLayer};
use hmac::{Hmac, KeyInit, Mac};
use http::{Request, Response, header::AUTHORIZATION};
use http_body_util::Full;
use sha2::Sha256;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

const KEY: &str = "key of b1";

type Body = Full<Bytes>;

fn tenant(text: &str) -> TenantId {
    TenantId::new(text).expect("valid")
}

fn auth() -> AuthLayer<Webhook> {
    let keys = WebhookKeys::new();
    let bot = BotId::new("b1").expect("valid");
    keys.set(&bot, [Key::new(KEY).expect("not empty")]).expect("one key");
    AuthLayer::new(Webhook::new(keys))
}

fn tenants() -> TenantLayer<Registry> {
    let bot = BotId::new("b1").expect("valid");
    TenantLayer::new(Registry::new([tenant("t1"), tenant("t2")]).bot(bot, tenant("t1")))
}

fn message(key: &str) -> Request<Body> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any length");
    mac.update(b"hi");
    let signature = hex::encode(mac.finalize().into_bytes());
    Request::post("/webhook").header("x-signature", signature).body(Full::from("hi")).expect("valid")
}

/// A handler that counts what reaches it.
fn handler<B>(
    reached: &Arc<AtomicUsize>,
) -> impl Service<
    Request<B>,
    Response = Response<Body>,
    Error = Infallible,
    Future = Ready<Result<Response<Body>, Infallible>>,
> + Clone {
    let reached = reached.clone();
    service_fn(move |_| {
        reached.fetch_add(1, Ordering::SeqCst);
        ready(Ok(Response::new(Full::default())))
    })
}

fn reason(error: &BoxError) -> &'static str {
    Error::find(&**error).expect("ours").reason()
}

#[tokio::test]
async fn in_errmap_outside_auth_answers_a_refusal_that_would_break_the_connection() {
    let reached = Arc::new(AtomicUsize::new(0));
    let right = ServiceBuilder::new()
        .layer(ErrMapLayer::new(Responder::new()))
        .layer(auth())
        .service(handler::<VerifiedBody>(&reached));
    assert_eq!(right.oneshot(message("forged")).await.expect("infallible").status(), 401);

    let wrong = ServiceBuilder::new()
        .layer(auth())
        .layer(ErrMapLayer::new(Responder::new()))
        .service(handler::<VerifiedBody>(&reached));
    assert_eq!(reason(&wrong.oneshot(message("forged")).await.expect_err("nobody answers")), "signature_invalid");
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn in_observe_outside_errmap_gives_a_refusal_its_request_id() {
    let observe = || ObserveLayer::new(Inbound::new(["/webhook"]).expect("valid"));
    let reached = Arc::new(AtomicUsize::new(0));
    let right = ServiceBuilder::new()
        .layer(observe())
        .layer(ErrMapLayer::new(Responder::new()))
        .layer(auth())
        .service(handler::<VerifiedBody>(&reached));
    let refused = right.oneshot(message("forged")).await.expect("infallible");
    assert!(refused.headers().contains_key("x-request-id"));

    let wrong = ServiceBuilder::new()
        .layer(ErrMapLayer::new(Responder::new()))
        .layer(auth())
        .layer(observe())
        .service(handler::<VerifiedBody>(&reached));
    let refused = wrong.oneshot(message("forged")).await.expect("infallible");
    assert!(!refused.headers().contains_key("x-request-id"), "and nobody logged or counted it");
}

#[tokio::test]
async fn in_auth_outside_tenant_keeps_a_bot_from_speaking_for_another_tenant() {
    let reached = Arc::new(AtomicUsize::new(0));
    let forged = || {
        let mut request = message(KEY);
        request.headers_mut().insert("x-tenant-id", "t2".parse().expect("valid"));
        request
    };
    let right = ServiceBuilder::new().layer(auth()).layer(tenants()).service(handler::<VerifiedBody>(&reached));
    assert_eq!(reason(&right.oneshot(forged()).await.expect_err("another's")), "tenant_mismatch");
    assert_eq!(reached.load(Ordering::SeqCst), 0);

    let wrong = ServiceBuilder::new().layer(tenants()).layer(auth()).service(handler::<VerifiedBody>(&reached));
    assert!(wrong.oneshot(forged()).await.is_ok(), "the tenant was believed before the bot was known");
}

#[tokio::test(start_paused = true)]
async fn in_auth_outside_ratelimit_keeps_forged_messages_from_using_up_the_quota() {
    let one = || RateLimitLayer::new(Limits::new().level(Level::global("app", Rate::per_second(NonZeroU32::MIN))));
    let reached = Arc::new(AtomicUsize::new(0));
    let right = ServiceBuilder::new().layer(auth()).layer(one()).service(handler::<VerifiedBody>(&reached));
    for _ in 0..10 {
        assert_eq!(reason(&right.clone().oneshot(message("forged")).await.expect_err("forged")), "signature_invalid");
    }
    assert!(right.oneshot(message(KEY)).await.is_ok());

    let wrong = ServiceBuilder::new().layer(one()).layer(auth()).service(handler::<VerifiedBody>(&reached));
    for _ in 0..10 {
        wrong.clone().oneshot(message("forged")).await.expect_err("forged");
    }
    let error = wrong.oneshot(message(KEY)).await.expect_err("the quota is gone");
    assert_eq!(Error::find(&*error).map(Error::kind), Some(Kind::RateLimited));
}

/// A platform that says in a 200 what `answers` holds, one after the other, and notes the tokens it is shown.
type Seen = Arc<Mutex<Vec<String>>>;

fn platform<B>(
    answers: &'static [&'static str],
    seen: &Seen,
) -> impl Service<Request<B>, Response = Response<Body>, Error = BoxError, Future = Ready<Result<Response<Body>, BoxError>>>
+ Clone {
    let seen = seen.clone();
    service_fn(move |request: Request<B>| {
        let token = request.headers().get(AUTHORIZATION).map_or("", |token| token.to_str().expect("ASCII"));
        let mut seen = seen.lock().expect("nobody panicked");
        let answer = Full::from(*answers.get(seen.len()).unwrap_or(&r#"{"code":0}"#));
        seen.push(token.to_owned());
        ready(Response::builder().header("content-type", "application/json").body(answer).map_err(Into::into))
    })
}

fn call() -> Request<Body> {
    Request::get("https://api.example/v1/bots").body(Full::default()).expect("valid")
}

#[tokio::test(start_paused = true)]
async fn out_errmap_inside_retry_shows_it_the_failure_in_a_200() {
    const BUSY: &[&str] = &[r#"{"code":4009,"msg":"busy"}"#];
    let (retry, errmap) = (RetryLayer::new(Standard::new()), ErrMapLayer::new(Classifier::new()));
    let seen = Seen::default();
    let right = ServiceBuilder::new().layer(retry.clone()).layer(errmap.clone()).service(platform(BUSY, &seen));
    assert!(right.oneshot(call()).await.is_ok());
    assert_eq!(seen.lock().expect("nobody panicked").len(), 2);

    let seen = Seen::default();
    let wrong = ServiceBuilder::new().layer(errmap).layer(retry).service(platform(BUSY, &seen));
    assert_eq!(reason(&wrong.oneshot(call()).await.expect_err("taken for a success")), "system_limit");
    assert_eq!(seen.lock().expect("nobody panicked").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn out_auth_inside_retry_takes_a_fresh_token_for_each_attempt() {
    const EXPIRED: &[&str] = &[r#"{"code":700012006,"msg":"access token invalid"}"#];
    let tokens = || {
        let fetched = AtomicUsize::new(0);
        let fetch = move || ready(Token::bearer(&format!("t{}", fetched.fetch_add(1, Ordering::SeqCst))));
        AuthLayer::new(Bearer::new(Renewing::new(fetch)))
    };
    let (retry, errmap) = (RetryLayer::new(Standard::new()), ErrMapLayer::new(Classifier::new()));
    let seen = Seen::default();
    let right = ServiceBuilder::new()
        .layer(retry.clone())
        .layer(tokens())
        .layer(errmap.clone())
        .service(platform(EXPIRED, &seen));
    assert!(right.oneshot(call()).await.is_ok());
    assert_eq!(*seen.lock().expect("nobody panicked"), ["Bearer t0", "Bearer t1"]);

    let seen = Seen::default();
    let wrong = ServiceBuilder::new().layer(tokens()).layer(retry).layer(errmap).service(platform(EXPIRED, &seen));
    let error = wrong.oneshot(call()).await.expect_err("the retry was over before the token was known to be stale");
    assert_eq!(Error::find(&*error).map(Error::kind), Some(Kind::Unauthenticated));
    assert_eq!(*seen.lock().expect("nobody panicked"), ["Bearer t0"]);
}

#[tokio::test(start_paused = true)]
async fn out_ratelimit_inside_retry_counts_each_attempt() {
    const BUSY: &[&str] = &[r#"{"code":4009,"msg":"busy"}"#];
    let three = NonZeroU32::new(3).expect("not zero");
    let limit = || RateLimitLayer::new(Limits::new().level(Level::global("app", Rate::per_second(three))));
    // A retry that does not wait, so that all falls into one second.
    let at_once = Row::DEFAULTS.iter().map(|row| Row { wait: Wait::Fixed(Duration::ZERO), ..*row });
    let (retry, errmap) = (RetryLayer::new(Standard::new().rows(at_once)), ErrMapLayer::new(Classifier::new()));
    // One call that is sent twice, then calls until the limit refuses, all at one moment.
    async fn sent<S>(mut service: S, seen: &Seen) -> usize
    where
        S: Service<Request<Body>, Error = BoxError>,
    {
        for _ in 0..3 {
            // Whether it waits or is refused: the quota of this second is what counts.
            let answer = service.ready().await.expect("ready").call(call());
            let _ = tokio::time::timeout(Duration::from_millis(1), answer).await;
        }
        seen.lock().expect("nobody panicked").len()
    }
    let seen = Seen::default();
    let right =
        ServiceBuilder::new().layer(retry.clone()).layer(limit()).layer(errmap.clone()).service(platform(BUSY, &seen));
    assert_eq!(sent(right, &seen).await, 3);

    let seen = Seen::default();
    let wrong = ServiceBuilder::new().layer(limit()).layer(retry).layer(errmap).service(platform(BUSY, &seen));
    assert_eq!(sent(wrong, &seen).await, 4, "more than the platform allows");
}
