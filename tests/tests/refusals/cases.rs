//! A refused request for each code, or several.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use coze_auth::{
    Algorithm, ApiKey, ApiKeys, Callback, Issuer, Jwt, JwtKey, JwtKeys, Key, KeyFetch, Policy, Routes,
    StandardWebhooks, Webhook, WebhookKeys,
};
use coze_core::{BotId, Error, Kind};
use hmac::{Hmac, KeyInit, Mac};
use http::{Method, Request, Response, header::AUTHORIZATION, request};
use http_body_util::Full;
use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::answer;

pub(crate) const ISSUER: &str = "https://issuer.example";
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW: u64 = 1_700_000_000;
/// An `exp` that is an hour from now.
pub(crate) const LIFE: &str = "1700003600";

type Answered = Pin<Box<dyn Future<Output = (Response<String>, usize)>>>;

/// A request that is refused.
pub(crate) struct Case {
    pub(crate) code: &'static str,
    /// The reason that its caller is told.
    pub(crate) told: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) client: &'static str,
    pub(crate) send: Box<dyn FnOnce() -> Answered>,
}

fn case<P>(codes: [&'static str; 2], at: [&'static str; 2], policy: P, request: Request<Full<Bytes>>) -> Case
where
    P: Policy<Full<Bytes>, Body: Send> + Clone + 'static,
{
    let ([code, told], [resource, client]) = (codes, at);
    Case { code, told, resource, client, send: Box::new(|| Box::pin(answer(policy, request))) }
}

/// In the order of the codes.
pub(crate) fn cases() -> Vec<Case> {
    let same = |code: &'static str| [code, &*code.to_ascii_lowercase().leak()];
    let (hook, back, bots) = ("POST /webhook/{bot_id}", "POST /callback", "GET /bots/{bot}");
    let by_token = |code, client, token: &str| case(same(code), [bots, client], jwt(issuer()), bearing(token));
    let by_routes = |code, request: request::Builder| {
        let bearer = format!("Bearer {}", token("a", LIFE, ""));
        let request = request.header(AUTHORIZATION, bearer).header("accept", "application/problem+json");
        case(same(code), [bots, ISSUER], jwt(issuer()).access(routes()), request.body(Full::default()).expect("valid"))
    };
    let unsigned = |path| Request::post(path).header("accept", "application/problem+json");

    let revoking = jwt(issuer());
    revoking.revoke_id(ISSUER, "j1", UNIX_EPOCH + Duration::from_secs(NOW + 9)).expect("room");
    let down = KeyFetch::new(|_| async { Err(Error::new(Kind::Unavailable, "down")) });
    let keyless = Issuer::new(ISSUER, JwtKeys::fetched(down));
    let used = callback();
    let replay = Case {
        code: "REPLAYED",
        told: "replayed",
        resource: back,
        client: "app-1",
        send: Box::new(|| {
            Box::pin(async {
                let (first, reached) = answer(used.clone(), event(NOW, SECRET)).await;
                assert_eq!((first.status().as_u16(), reached), (200, 1));
                answer(used, event(NOW, SECRET)).await
            })
        }),
    };
    vec![
        by_token("TOKEN_EXPIRED", ISSUER, &token("a", "1", "")),
        case(same("TOKEN_EXPIRED"), [back, "app-1"], callback(), event(NOW - 301, SECRET)),
        by_token("TOKEN_NOT_YET_VALID", ISSUER, &token("a", LIFE, &format!(r#","nbf":{LIFE}"#))),
        case(same("TOKEN_NOT_YET_VALID"), [back, "app-1"], callback(), event(NOW + 301, SECRET)),
        case(same("SIGNATURE_INVALID"), [hook, "b1"], webhook(), of_another("/webhook/b1")),
        case(same("SIGNATURE_INVALID"), [back, "app-1"], callback(), event(NOW, "another")),
        by_token("SIGNATURE_INVALID", ISSUER, &forged()),
        case(same("SIGNATURE_INVALID"), [hook, "billing"], standard(), {
            let head = unsigned("/webhook/b1").header("webhook-id", "m1").header("webhook-timestamp", NOW);
            let head = head.header("webhook-signature", format!("v1,{}=", "A".repeat(43)));
            head.body(Full::default()).expect("valid")
        }),
        by_token("PARSE_ERROR", "_unknown", "nonsense"),
        case(
            same("PARSE_ERROR"),
            [hook, "b1"],
            webhook(),
            unsigned("/webhook/b1").header("x-signature", "00").body(Full::default()).expect("valid"),
        ),
        case(["UNKNOWN_KEY", "signature_invalid"], [hook, "_unknown"], webhook(), signed("/webhook/b2", "hi")),
        case(same("UNKNOWN_KEY"), [bots, ISSUER], jwt(named()), bearing(&token("a", LIFE, ""))),
        case(same("UNKNOWN_KEY"), [bots, "_unknown"], api_keys(), bearing(&"x".repeat(32))),
        by_token("AUDIENCE_MISMATCH", ISSUER, &token("a", LIFE, r#","aud":"others""#)),
        by_token("ISSUER_MISMATCH", "_unknown", &token_of("https://evil.example", "a", LIFE, "")),
        by_routes("MISSING_SCOPE", Request::get("/bots/b1?secret=1")),
        case(same("MISSING_SCOPE"), [bots, "ci"], api_keys().access(routes()), bearing(SECRET)),
        by_routes("POLICY_DENIED", Request::get("/bots/b1/").uri("/bots/denied")),
        replay,
        case(same("MISSING_CREDENTIALS"), [hook, "b1"], webhook(), {
            unsigned("/webhook/b1").body(Full::default()).expect("valid")
        }),
        case(same("MISSING_CREDENTIALS"), [bots, "_unknown"], jwt(issuer()), {
            Request::get("/bots/b1").header("accept", "application/problem+json").body(Full::default()).expect("valid")
        }),
        case(same("REVOKED"), [bots, ISSUER], revoking, bearing(&token("a", LIFE, r#","jti":"j1""#))),
        case(same("KEYS_UNAVAILABLE"), [bots, ISSUER], jwt(keyless), bearing(&token("a", LIFE, ""))),
    ]
}

pub(crate) fn webhook() -> Webhook {
    let keys = WebhookKeys::new();
    keys.set(&BotId::new("b1").expect("valid"), [Key::new(SECRET).expect("not empty")]).expect("one key");
    Webhook::new(keys).path("/webhook")
}

fn hmac(key: &str, message: &str) -> impl AsRef<[u8]> {
    let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any length").chain_update(message);
    mac.finalize().into_bytes()
}

/// A message to this path, signed by the bot `b1`.
pub(crate) fn signed(path: &str, body: &'static str) -> Request<Full<Bytes>> {
    let head = Request::post(path).header("x-signature", hex::encode(hmac(SECRET, body)));
    head.header("accept", "application/problem+json").body(Full::from(body)).expect("valid")
}

fn of_another(path: &str) -> Request<Full<Bytes>> {
    let head = Request::post(path).header("x-signature", hex::encode(hmac("another", "hi")));
    head.header("accept", "application/problem+json").body(Full::from("hi")).expect("valid")
}

fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn callback() -> Callback {
    Callback::new("app-1", [Key::new(SECRET).expect("not empty")]).expect("one token").clock(clock)
}

/// A callback of this time in seconds, signed with this token.
fn event(at: u64, token: &str) -> Request<Full<Bytes>> {
    let (at, nonce, body) = (format!("{at}000"), "n", "{}");
    let signature = hex::encode(Sha1::digest(format!("{at}{nonce}{token}{body}")));
    let head = Request::post("/callback").header("x-coze-timestamp", &at).header("x-coze-nonce", nonce);
    let head = head.header("x-coze-signature", signature).header("accept", "application/problem+json");
    head.body(Full::from(body)).expect("valid")
}

fn standard() -> StandardWebhooks {
    StandardWebhooks::new("billing", [Key::new(SECRET).expect("not empty")]).expect("one secret").clock(clock)
}

fn api_keys() -> ApiKeys {
    ApiKeys::new([ApiKey::new("ci", &Key::new(SECRET).expect("not empty")).expect("32 characters")]).expect("one key")
}

fn key() -> JwtKey {
    JwtKey::new(Algorithm::Hs256, SECRET).expect("32 bytes")
}

pub(crate) fn issuer() -> Issuer {
    Issuer::new(ISSUER, JwtKeys::new([key()]).expect("one key"))
}

/// An issuer with several keys, which a token has to name.
fn named() -> Issuer {
    Issuer::new(ISSUER, JwtKeys::new([key().named("k1"), key().named("k2")]).expect("two keys"))
}

pub(crate) fn jwt(issuer: Issuer) -> Jwt {
    Jwt::new([issuer]).expect("one issuer").clock(clock)
}

pub(crate) fn routes() -> Routes {
    Routes::new().require(Method::GET, "/bots/b1", ["read"])
}

/// A token of our issuer.
pub(crate) fn token(subject: &str, exp: &str, claims: &str) -> String {
    token_of(ISSUER, subject, exp, claims)
}

pub(crate) fn token_of(issuer: &str, subject: &str, exp: &str, claims: &str) -> String {
    let claims = format!(r#"{{"iss":"{issuer}","sub":"{subject}","exp":{exp}{claims}}}"#);
    let signed = [r#"{"alg":"HS256"}"#, &claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac(SECRET, &signed)))
}

fn forged() -> String {
    let token = token("a", LIFE, "");
    let (signed, _) = token.rsplit_once('.').expect("three parts");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac("another", signed)))
}

pub(crate) fn bearing(token: &str) -> Request<Full<Bytes>> {
    let head = Request::get("/bots/b1").header(AUTHORIZATION, format!("Bearer {token}"));
    head.header("accept", "application/problem+json").body(Full::default()).expect("valid")
}
