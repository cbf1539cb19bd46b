//! Tokens of a JWT service account (coze-platform.md §1.6).

use std::time::Duration;

use coze_auth::{Endpoint, Renewing, TokenSource};
use coze_core::{BoxError, Error, Kind};

use crate::{
    config::{Platform, ServiceAccount},
    transport::transport,
};

/// How long a token is asked for.
const DURATION: Duration = Duration::from_secs(3600);

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
    let pem = String::from_utf8_lossy(&pem);
    let base = platform.url.join("/").map_err(|e| Error::new(Kind::Internal, "platform_url").with_source(e))?;
    let transport = transport(platform.connect_timeout, platform.silence_timeout);
    let endpoint = Endpoint::new(&base.to_string(), transport)?;
    let account = coze_auth::ServiceAccount::new(endpoint, &account.client_id, &account.key_id, &pem)
        .map_err(|e| wrong("holds no RSA key in PEM", e.into()))?;
    Ok(Renewing::new(account.duration(DURATION)?))
}
