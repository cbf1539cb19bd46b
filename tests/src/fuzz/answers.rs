use std::{
    convert::Infallible,
    future::ready,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use coze_auth::{Endpoint, OAuthApp};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::{Service, service_fn};

use super::is_discreet;

const STATUSES: [u16; 8] = [200, 201, 302, 400, 401, 429, 500, 503];
const APP_SECRET: &str = "secret-of-the-app-0123456789";
const CODE: &str = "code-of-a-person-0123456789";

/// What each secret in the seeds of [`vault`] begins with.
const MARK: &str = "hvs.MARK";

thread_local! {
    /// For timeouts, which never come about.
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

/// An answer of the token endpoint: a byte that says which status, and then the body. A code is exchanged for it, and a device
/// flow begun with it.
pub fn oauth(data: &[u8]) -> bool {
    let Some((status, body)) = data.split_first() else { return false };
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    let endpoint = Endpoint::new("https://api.coze.cn", answering(status, body)).expect("valid");
    let clock = || UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let app = OAuthApp::new(endpoint.clock(clock as fn() -> SystemTime), "app").secret(APP_SECRET).expect("ascii");
    let object: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| object[name].as_str();
    // What the endpoint says in so many words is quoted.
    let words = ["error", "error_code", "error_message", "error_description"].map(text);
    let is_quoted = |secret: &str| words.iter().flatten().any(|words| words.contains(secret));
    let tokens = ["access_token", "refresh_token", "device_code"].into_iter().filter_map(text);
    let secrets = tokens.filter(|token| token.len() >= 16 && !is_quoted(token)).chain([APP_SECRET, CODE]);
    let secrets: Vec<_> = secrets.filter(|secret| !is_quoted(secret)).collect();
    let is_success = (200..300).contains(&status);

    let granted = RUNTIME.with(|runtime| runtime.block_on(app.exchange(CODE, "https://bot.example/callback", None)));
    let is_granted = granted.is_ok();
    match granted {
        Ok(granted) => {
            assert!(is_success, "a refusal grants nothing");
            let header = granted.token.header();
            let token = text("access_token").expect("it was given one");
            assert_eq!(header.to_str().ok().and_then(|header| header.strip_prefix("Bearer ")), Some(token));
            assert!(header.is_sensitive());
            assert_eq!(Some(granted.refresh_token.expose()), text("refresh_token"));
            let shown = format!("{granted:?}");
            secrets.iter().for_each(|secret| assert!(!shown.contains(secret), "a token is shown"));
        }
        Err(error) => is_discreet(&error, secrets.iter().copied()),
    }
    let device = RUNTIME.with(|runtime| runtime.block_on(app.device()));
    let is_begun = device.is_ok();
    match device {
        Ok(device) => {
            assert!(is_success, "a refusal begins nothing");
            assert_eq!(Some(device.user_code()), text("user_code"));
        }
        Err(error) => is_discreet(&error, secrets),
    }
    is_granted || is_begun
}

/// An answer of Vault, read as each of the kinds there are.
pub fn vault(data: &[u8]) -> bool {
    let errors = coze_secret::read_answer(data);
    errors.iter().for_each(|error| is_discreet(error, [MARK]));
    errors.len() < coze_secret::ANSWERS
}

/// A platform that has one answer.
fn answering(
    status: u16,
    body: &[u8],
) -> impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = Infallible> + Clone + use<> {
    let body = Bytes::copy_from_slice(body);
    service_fn(move |_| {
        let mut answer = Response::new(Full::new(body.clone()));
        *answer.status_mut() = StatusCode::from_u16(status).expect("valid");
        ready(Ok(answer))
    })
}
