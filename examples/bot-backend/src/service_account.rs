//! Tokens of a JWT service account (coze-platform.md §1.6).

use std::time::Duration;

use coze_core::{BoxError, Error, Kind};

use crate::{
    config::{Platform, ServiceAccount},
    transport::{Transport, endpoint},
};

/// How long a token is asked for.
const DURATION: Duration = Duration::from_secs(3600);

/// What gets tokens, with an assertion signed anew each time.
///
/// # Errors
/// `private_key` ([`Kind::Precondition`]) when the file cannot be read or holds no RSA key.
pub(crate) fn open(
    platform: &Platform,
    account: &ServiceAccount,
) -> Result<coze_auth::ServiceAccount<Transport>, Error> {
    let wrong = |what: &str, error: BoxError| {
        let file = account.private_key_file.display();
        Error::new(Kind::Precondition, "private_key")
            .with_message(format!("the private key file {file} {what}"))
            .with_source(error)
    };
    let pem = std::fs::read(&account.private_key_file).map_err(|e| wrong("cannot be read", e.into()))?;
    let pem = String::from_utf8_lossy(&pem);
    coze_auth::ServiceAccount::new(endpoint(platform)?, &account.client_id, &account.key_id, &pem)
        .map_err(|e| wrong("holds no RSA key in PEM", e.into()))?
        .duration(DURATION)
}
