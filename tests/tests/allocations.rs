//! What a request costs in allocations, warm: per layer, and through the whole stacks. A number that changes here is a decision.

use std::{
    convert::Infallible,
    future::{Future, ready},
    num::NonZeroU32,
    pin::{Pin, pin},
    task::{Context as Task, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use coze_auth::{
    Algorithm, AuthLayer, Bearer, Issuer, Jwt, JwtKey, JwtKeys, Key, PerTenant, Renewing, Static, Token, Webhook,
    WebhookKeys,
};
use coze_core::{BotId, Context, TenantId, UserId};
use coze_errmap::{Classifier, ErrMapLayer, Responder};
use coze_observe::{Inbound, ObserveLayer, Outbound};
use coze_ratelimit::{Level, Limits, Pace, PaceLevel, PaceRate, Quota, Rate, RateLimitLayer};
use coze_retry::{RetryLayer, Standard};
use coze_tenant::{Propagate, Registry, TenantLayer};
use hmac::{Hmac, KeyInit, Mac};
use http::{
    HeaderValue, Request, Response,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use http_body::Body;
use http_body_util::Full;
use sha2::Sha256;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const MESSAGE: &str = r#"{"bot_id":"b1","user_id":"u1","content":"How is the weather?"}"#;
const MANY: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");

/// A service that allocates nothing.
fn bare<B>() -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible> + Clone {
    service_fn(|_| ready(Ok(Response::new(Full::from("ok")))))
}

/// The platform, as short as can be.
fn json<B>() -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible> + Clone {
    service_fn(|_| {
        let mut answer = Response::new(Full::from(r#"{"code":0,"msg":"","data":{"id":"1"}}"#));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        ready(Ok(answer))
    })
}

/// How often one request allocates, from the call to the end of the answer's body, after others went the same way.
fn cost<S, R>(mut service: S, request: impl Fn() -> Request<Full<Bytes>>) -> u64
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>>,
    R: Body,
{
    let mut send = |request| {
        let mut task = Task::from_waker(Waker::noop());
        assert!(matches!(service.poll_ready(&mut task), Poll::Ready(Ok(()))), "nothing is busy");
        let Poll::Ready(Ok(answer)) = pin!(service.call(request)).poll(&mut task) else {
            panic!("nothing waits, nothing refuses");
        };
        assert!(answer.status().is_success());
        let mut body = pin!(answer.into_body());
        while let Poll::Ready(Some(Ok(_))) = Pin::as_mut(&mut body).poll_frame(&mut task) {}
    };
    for _ in 0..3 {
        send(request());
    }
    let request = request();
    measure(|| send(request)).count_total
}

fn bot() -> BotId {
    BotId::new("b1").expect("valid")
}

fn user() -> UserId {
    UserId::new("u1").expect("valid")
}

/// A message as a caller sends it.
fn message() -> Request<Full<Bytes>> {
    let mac = Hmac::<Sha256>::new_from_slice(b"bot-token").expect("any length").chain_update(MESSAGE).finalize();
    let head = Request::post("/webhook/b1").header("x-signature", hex::encode(mac.into_bytes()));
    head.header("x-request-id", "req-1").body(Full::from(MESSAGE)).expect("valid")
}

/// A question to the platform.
fn question() -> Request<Full<Bytes>> {
    let head = Request::post("/v3/chat").header(CONTENT_TYPE, "application/json");
    head.body(Full::from(MESSAGE)).expect("valid")
}

/// The request as it comes to a layer inside: with a context, and what layers outside noted on it.
fn inside<B>(mut request: Request<B>, note: impl Fn(&Context)) -> Request<B> {
    note(&Context::of(request.extensions_mut()));
    request
}

#[test]
fn a_cost_in_two_levels_is_reserved_and_settled_with_one_allocation() {
    let level = |name| Level::per_user(name, Rate::per_minute(MANY)).cost(|_, _| 2).settle();
    let limit = RateLimitLayer::new(Limits::new().level(level("tokens")).level(level("images")));
    let known = || {
        inside(message(), |context| {
            context.user.set(user()).expect("empty");
            context.cost.set(1).expect("empty");
        })
    };
    // Of what was reserved: a permit that settles nothing does not carry it along.
    assert_eq!(cost(limit.layer(bare()), known), 1);
}

#[test]
fn a_request_in_flight_at_one_level_allocates_nothing_and_at_two_levels_once() {
    let level = |name| Level::per_user(name, Quota::Concurrency(MANY));
    let known = || inside(message(), |context| context.user.set(user()).expect("empty"));
    let one = Limits::new().level(level("one"));
    assert_eq!(cost(RateLimitLayer::new(one.clone()).layer(bare()), known), 0);
    assert_eq!(cost(RateLimitLayer::new(one.level(level("two"))).layer(bare()), known), 1);
}

#[test]
fn a_call_whose_turn_is_at_once_allocates_nothing_at_any_level() {
    let level = |name| PaceLevel::new(name, PaceRate::per_minute(MANY));
    let pace =
        Pace::new().level(level("chat").routes(&["POST /v3/chat"])).level(level("bot").per_bot()).level(level("app"));
    let known = || inside(question(), |context| context.bot.set(bot()).expect("empty"));
    assert_eq!(cost(RateLimitLayer::new(pace).layer(bare()), known), 0);
}

#[test]
fn a_message_on_its_way_in_allocates_so_often_in_each_layer() {
    let keys = WebhookKeys::new();
    keys.set(&bot(), [Key::new("bot-token").expect("valid")]).expect("not too many");
    let observe = ObserveLayer::new(Inbound::new(["/webhook/{bot_id}"]).expect("valid"));
    let errmap = ErrMapLayer::new(Responder::new());
    let auth = AuthLayer::new(Webhook::new(keys).path("/webhook").user(|_| UserId::new("u1").ok()));
    let tenant = TenantLayer::new(Registry::new([]).bot(bot(), TenantId::new("acme").expect("valid")));
    let limit = RateLimitLayer::new(Limits::platform().level(Level::per_user("user", Rate::per_second(MANY))));

    let known = || {
        inside(message(), |context| {
            context.bot.set(bot()).expect("empty");
            context.user.set(user()).expect("empty");
        })
    };
    let of_each = [
        ("observe", cost(observe.layer(bare()), message)),
        ("errmap", cost(errmap.layer(bare()), || inside(message(), |_| {}))),
        ("auth", cost(auth.layer(bare()), || inside(message(), |_| {}))),
        ("tenant", cost(tenant.layer(bare()), known)),
        ("ratelimit", cost(limit.layer(bare()), known)),
    ];
    // observe: 4 for the context (3 of them by `Extensions`), the text of the id, its value in the request's headers, and in the
    // answer's, which had none, so a map for them too. auth: the text of the user's id.
    assert_eq!(of_each, [("observe", 9), ("errmap", 0), ("auth", 1), ("tenant", 0), ("ratelimit", 0)]);
    let stack = ServiceBuilder::new().layer(observe).layer(errmap).layer(auth).layer(tenant).layer(limit);
    assert_eq!(cost(stack.service(bare()), message), 10, "through all of them");
}

#[test]
fn a_request_that_may_be_sent_again_allocates_a_copy_of_its_head_and_one_that_is_never_sent_again_nothing() {
    let read = || inside(Request::get("https://api.coze.cn/v1/bots").body(Full::default()).expect("valid"), |_| {});
    let copying = service_fn(|request: Request<Full<Bytes>>| {
        let (head, body) = request.into_parts();
        let copy = head.clone();
        let answer = bare().call(Request::from_parts(head, body));
        drop(copy);
        answer
    });
    let copy = cost(copying, read);
    assert!(copy > 0);
    assert_eq!(cost(RetryLayer::new(Standard::new()).layer(bare()), read), copy);
    let ask = || inside(question(), |_| {});
    let never = RetryLayer::new(Standard::new().tries(0));
    assert_eq!((cost(never.layer(bare()), read), cost(never.layer(bare()), ask)), (0, 0));
}

#[test]
fn a_token_that_was_verified_before_allocates_nothing() {
    let secret = "0123456789abcdef0123456789abcdef";
    let claims = r#"{"iss":"issuer","sub":"a","exp":253402300799,"scope":"read"}"#;
    let signed = [r#"{"alg":"HS256"}"#, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length").chain_update(&signed).finalize();
    let token = format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(mac.into_bytes()));

    let key = JwtKey::new(Algorithm::Hs256, secret).expect("32 bytes");
    let jwt = Jwt::new([Issuer::new("issuer", JwtKeys::new([key]).expect("one key"))]).expect("one issuer");
    let request = || {
        let request = Request::get("/").header(AUTHORIZATION, &token).body(Full::default()).expect("valid");
        inside(request, |_| {})
    };
    assert_eq!(cost(AuthLayer::new(jwt).layer(bare()), request), 0);
}

#[tokio::test]
async fn an_access_token_that_is_there_allocates_nothing_whoever_its_source_is() {
    let token = || Token::bearer("czs_token").expect("valid").with_lifetime(Duration::from_secs(900));
    let fetch = move || Renewing::new(move || ready(Ok(token())));
    let renewing = AuthLayer::new(Bearer::new(fetch())).layer(bare());
    let per_tenant = AuthLayer::new(Bearer::new(PerTenant::new(move |_| Ok(fetch())))).layer(bare());
    let acme = TenantId::new("acme").expect("valid");
    let question = || inside(question(), |context| context.tenant.set(acme.clone()).expect("empty"));
    // The first request of all waits for the token.
    renewing.clone().oneshot(question()).await.expect("a token is fetched");
    per_tenant.clone().oneshot(question()).await.expect("a token is fetched");
    assert_eq!((cost(renewing, question), cost(per_tenant, question)), (0, 0));
}

#[test]
fn a_question_on_its_way_out_allocates_so_often_in_each_layer() {
    let observe = ObserveLayer::new(Outbound::new(["/v3/chat"]).expect("valid"));
    let tenant = TenantLayer::new(Propagate::new());
    let retry = RetryLayer::new(Standard::new());
    let limit = RateLimitLayer::new(Limits::outbound(MANY));
    let auth = AuthLayer::new(Bearer::new(Static::new("pat_0123456789abcdef").expect("valid")));
    let errmap = ErrMapLayer::new(Classifier::new());

    let acme = TenantId::new("acme").expect("valid");
    let question = || inside(question(), |context| context.tenant.set(acme.clone()).expect("empty"));
    let of_each = [
        ("observe", cost(observe.layer(bare()), question)),
        ("tenant", cost(tenant.layer(bare()), question)),
        ("retry", cost(retry.layer(bare()), question)),
        ("ratelimit", cost(limit.layer(bare()), question)),
        ("auth", cost(auth.layer(bare()), question)),
        ("errmap", cost(errmap.layer(json()), question)),
    ];
    // observe: the text of the id, and its value in the headers. tenant: its value in the headers. retry: a copy of the head (2
    // for the headers, 3 for the extensions, 1 for each text that was not shared before), and the record of the body. errmap:
    // what it reads of the answer.
    assert_eq!(of_each, [("observe", 2), ("tenant", 1), ("retry", 8), ("ratelimit", 0), ("auth", 0), ("errmap", 6)]);
    // Two more than the sum: retry's copy also shares the texts that observe and tenant put into the headers.
    let stack = ServiceBuilder::new().layer(observe).layer(tenant).layer(retry).layer(limit).layer(auth).layer(errmap);
    assert_eq!(cost(stack.service(json()), question), 19, "through all of them");
}
