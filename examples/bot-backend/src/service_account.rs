//! Tokens of a JWT service account (coze-platform.md §1.6).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use coze_auth::{Renewing, Token, TokenSource, lifetime};
use coze_core::{BoxError, Error, Kind};
use coze_errmap::{Classifier, ErrMapLayer};
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::{Deserialize, Serialize};
use tower::{ServiceBuilder, ServiceExt};

use crate::{
    config::{Platform, ServiceAccount},
    transport::transport,
};

/// How long an assertion serves. It is used at once, and once.
const ASSERTION: Duration = Duration::from_secs(600);
/// How long a token is asked for.
const DURATION: u32 = 3600;
/// Bytes of the endpoint's answer.
const MAX_ANSWER: usize = 64 << 10;

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    jti: String,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: i64,
}

/// Tokens that are fetched when they are needed, with an assertion signed anew each time.
///
/// # Errors
/// `private_key` ([`Kind::Precondition`]) when the file cannot be read or holds no RSA key.
pub(crate) fn tokens(
    platform: &Platform,
    account: &ServiceAccount,
) -> Result<impl TokenSource<Future: Send + 'static> + Clone + Send + Sync + 'static, Error> {
    let wrong = |what: &str, error: BoxError| {
        let file = account.private_key_file.display();
        Error::new(Kind::Precondition, "private_key")
            .with_message(format!("the private key file {file} {what}"))
            .with_source(error)
    };
    let pem = std::fs::read(&account.private_key_file).map_err(|e| wrong("cannot be read", e.into()))?;
    let key = EncodingKey::from_rsa_pem(&pem).map_err(|e| wrong("holds no RSA key in PEM", e.into()))?;
    let uri = platform.url.join("/api/permission/oauth2/token").map_err(|e| wrong("has no endpoint", e.into()))?;
    let endpoint = ServiceBuilder::new()
        .layer(ErrMapLayer::new(Classifier::new()))
        .service(transport(platform.connect_timeout, platform.silence_timeout));
    let (account, audience) = (account.clone(), platform.url.host().to_owned());

    Ok(Renewing::new(move || {
        let assertion = sign(&key, &account, &audience);
        let (endpoint, uri) = (endpoint.clone(), uri.clone());
        async move {
            let internal = |error: BoxError| Error::new(Kind::Internal, "token_request").with_source(error);
            let body = serde_json::json!({
                "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                "duration_seconds": DURATION,
            });
            let mut authorization =
                http::HeaderValue::try_from(format!("Bearer {}", assertion?)).map_err(|e| internal(e.into()))?;
            authorization.set_sensitive(true);
            let request = Request::post(uri)
                .header(header::AUTHORIZATION, authorization)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(body.to_string())))
                .map_err(|e| internal(e.into()))?;
            let response = endpoint.oneshot(request).await.map_err(typed)?;
            let nonsense = |error: BoxError| {
                Error::new(Kind::Upstream, "token_nonsense")
                    .with_message("the token endpoint's answer cannot be read")
                    .with_source(error)
            };
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(nonsense)?.to_bytes();
            // The text of a JSON error may quote what it could not read.
            let granted: Granted =
                serde_json::from_slice(&body).map_err(|e| nonsense(format!("{:?}", e.classify()).into()))?;
            Ok(Token::bearer(&granted.access_token)?.with_lifetime(lifetime(granted.expires_in, SystemTime::now())))
        }
    }))
}

fn sign(key: &EncodingKey, account: &ServiceAccount, audience: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let claims = Claims {
        iss: &account.client_id,
        aud: audience,
        iat: now,
        exp: now + ASSERTION.as_secs(),
        jti: format!("{:032x}{:032x}", fastrand::u128(..), fastrand::u128(..)),
    };
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(account.key_id.clone());
    encode(&header, &claims, key).map_err(|e| Error::new(Kind::Internal, "token_signing").with_source(e))
}

fn typed(error: BoxError) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::new(Kind::Unavailable, "platform_unreachable").with_source(error),
    }
}
