use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::pin,
    task::{Context as Task, Poll, Waker},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use coze_auth::{AuthLayer, Callback, Key, Policy, StandardWebhooks, VerifiedBody, Webhook, WebhookKeys};
use coze_core::{BotId, BoxError, Context, Error, Kind};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use tower::{Layer, Service, service_fn};

use super::{is_discreet, lines};

/// 2023-11-14, in seconds of the Unix clock.
const NOW: u64 = 1_700_000_000;
const WINDOW: Duration = Duration::from_secs(300);
const BOTS: [(&str, &[&str]); 2] =
    [("b1", &["token-of-b1-0123456789", "next-token-of-b1-98765"]), ("b2", &["token-of-b2-abcdefghij"])];
const TOKENS: [&str; 2] = ["verify-token-0123456789", "verify-token-9876543210"];

/// A message to a bot, as `X-Signature`, `X-Bot-Id` (if it is not empty) and path, each a line, and then the body. Accepted
/// exactly if the signature is that of the body under a key of the bot.
pub fn webhook(data: &[u8]) -> bool {
    let Some(([signature, header, path], body)) = lines(data) else { return false };
    let Some(mut request) = request(path, &[("x-signature", signature)], body) else { return false };
    if !header.is_empty() {
        let Ok(value) = HeaderValue::from_bytes(header) else { return false };
        request.headers_mut().insert("x-bot-id", value);
    }

    let in_path = request.uri().path().strip_prefix("/webhook/").filter(|id| !id.is_empty()).map(str::as_bytes);
    let in_header = Some(header).filter(|id| !id.is_empty());
    let bot = match (in_path, in_header) {
        (Some(path), Some(header)) if path != header => None,
        (path, header) => BOTS.iter().find(|(id, _)| path.or(header) == Some(id.as_bytes())),
    };
    let is_of = |key: &&str| {
        let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any length").chain_update(body).finalize();
        signature.eq_ignore_ascii_case(hex::encode(mac.into_bytes()).as_bytes())
    };
    let expected = bot.filter(|(_, keys)| keys.iter().any(is_of));

    let keys = WebhookKeys::new();
    for (id, secrets) in BOTS {
        let secrets = secrets.iter().map(|secret| Key::new(secret).expect("not empty"));
        keys.set(&BotId::new(id).expect("valid"), secrets).expect("not too many");
    }
    let verdict = ask(Webhook::new(keys).path("/webhook"), request);
    if let Ok((context, _)) = &verdict {
        assert_eq!(
            context.bot.get().map(BotId::as_str),
            expected.map(|(id, _)| *id),
            "it is noted whose message it is"
        );
    }
    judge(verdict, expected.is_some(), body, BOTS.iter().flat_map(|(_, keys)| *keys).copied())
}

/// A callback of the platform, as `X-Coze-Signature`, `X-Coze-Timestamp` and `X-Coze-Nonce`, each a line, and then the body.
/// Accepted exactly if all of it is signed with one of our tokens now, and once.
pub fn callback(data: &[u8]) -> bool {
    let Some(([signature, timestamp, nonce], body)) = lines(data) else { return false };
    let headers = [("x-coze-signature", signature), ("x-coze-timestamp", timestamp), ("x-coze-nonce", nonce)];
    let Some(request) = request(b"/callback", &headers, body) else { return false };

    let is_of = |token: &&str| {
        let hash =
            [timestamp, nonce, token.as_bytes(), body].iter().fold(Sha1::new(), |hash, part| hash.chain_update(part));
        signature.eq_ignore_ascii_case(hex::encode(hash.finalize()).as_bytes())
    };
    let is_digits = timestamp.len() == 13 && timestamp.iter().all(u8::is_ascii_digit);
    let sent = str::from_utf8(timestamp).ok().filter(|_| is_digits).and_then(|digits| digits.parse::<u64>().ok());
    let is_now = sent.is_some_and(|sent| sent.abs_diff(NOW * 1000) <= 300_000);
    let is_nonce = (1..=128).contains(&nonce.len()) && nonce.iter().all(|c| *c == b'\t' || (b' '..=b'~').contains(c));
    let expected = is_now && is_nonce && TOKENS.iter().any(is_of);

    let keys = TOKENS.map(|token| Key::new(token).expect("not empty"));
    let clock = || UNIX_EPOCH + Duration::from_secs(NOW);
    let policy = Callback::new("app", keys).expect("two tokens").window(WINDOW).clock(clock as fn() -> SystemTime);
    let is_accepted = judge(ask(policy.clone(), request.clone()), expected, body, TOKENS);
    if is_accepted {
        let error = ask(policy, request).expect_err("a copy is refused");
        assert_eq!(Error::find(&*error).map(Error::reason), Some("replayed"));
    }
    is_accepted
}

/// A standard webhook, as `webhook-signature`, `webhook-timestamp` and `webhook-id`, each a line, and then the body. Accepted exactly
/// if one of at most 16 signatures is that of all of it by one of our secrets now, and once.
pub fn standard_webhooks(data: &[u8]) -> bool {
    let Some(([signatures, timestamp, id], body)) = lines(data) else { return false };
    let headers = [("webhook-signature", signatures), ("webhook-timestamp", timestamp), ("webhook-id", id)];
    let Some(request) = request(b"/", &headers, body) else { return false };

    let is_by = |secret: &&str| {
        let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
        let mac = [id, b".", timestamp, b".", body].iter().fold(mac, |mac, part| mac.chain_update(part));
        let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        signatures.split(|byte| *byte == b' ').any(|signature| signature == expected.as_bytes())
    };
    let is_digits = (1..=12).contains(&timestamp.len()) && timestamp.iter().all(u8::is_ascii_digit);
    let sent = str::from_utf8(timestamp).ok().filter(|_| is_digits).and_then(|digits| digits.parse::<u64>().ok());
    let is_now = sent.is_some_and(|sent| sent.abs_diff(NOW) <= 300);
    let is_id =
        (1..=256).contains(&id.len()) && id.iter().all(|c| *c != b'.' && (*c == b'\t' || (b' '..=b'~').contains(c)));
    let are_few = signatures.split(|byte| *byte == b' ').count() <= 16;
    let expected = is_now && is_id && are_few && TOKENS.iter().any(is_by);

    let keys = TOKENS.map(|secret| Key::new(secret).expect("not empty"));
    let clock = || UNIX_EPOCH + Duration::from_secs(NOW);
    let policy = StandardWebhooks::new("sender", keys).expect("two secrets").window(WINDOW);
    let policy = policy.clock(clock as fn() -> SystemTime);
    let is_accepted = judge(ask(policy.clone(), request.clone()), expected, body, TOKENS);
    if is_accepted {
        let error = ask(policy, request).expect_err("a copy is refused");
        assert_eq!(Error::find(&*error).map(Error::reason), Some("replayed"));
    }
    is_accepted
}

/// A request with one value for each of these headers, if that can be.
fn request(path: &[u8], headers: &[(&'static str, &[u8])], body: &[u8]) -> Option<Request<Full<Bytes>>> {
    let mut request = Request::new(Full::from(body.to_vec()));
    *request.uri_mut() = Uri::try_from(path).ok()?;
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(request)
}

/// What reaches the inner service: its context and body.
type Reached = (Context, Bytes);

fn ask<P>(policy: P, mut request: Request<Full<Bytes>>) -> Result<Reached, BoxError>
where
    P: Policy<Full<Bytes>, Body = VerifiedBody> + Clone,
{
    let context = Context::of(request.extensions_mut());
    let echo = |request: Request<VerifiedBody>| ready(Ok::<_, Infallible>(Response::new(request.into_body())));
    let mut service = AuthLayer::new(policy).layer(service_fn(echo));
    Ok((context, at_once(at_once(service.call(request))?.into_body().collect())?.to_bytes()))
}

/// Panics if the verdict is not the expected one.
fn judge<'s>(
    verdict: Result<Reached, BoxError>,
    expected: bool,
    body: &[u8],
    secrets: impl IntoIterator<Item = &'s str>,
) -> bool {
    assert_eq!(verdict.is_ok(), expected, "the verdict is that of a second reading");
    match verdict {
        Ok((context, reached)) => {
            assert_eq!(reached, body, "the body is handed on as it was signed");
            assert!(context.principal.get().is_some() && context.refusal.get().is_none());
        }
        Err(error) => {
            is_discreet(&*error, secrets);
            assert_eq!(Error::find(&*error).map(Error::kind), Some(Kind::Unauthenticated));
        }
    }
    expected
}

pub(super) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Task::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("what is there already need not be waited for"),
    }
}
