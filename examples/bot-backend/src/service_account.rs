//! Tokens of a JWT service account (coze-platform.md §1.6).

use std::time::Duration;

use coze_core::Error;

use crate::{
    config::{Config, ServiceAccount},
    secrets::{Secrets, text},
    transport::{Transport, endpoint},
};

/// How long a token is asked for.
const DURATION: Duration = Duration::from_secs(3600);
/// How long a source may take to give what is new, once it is looked at.
const READ: Duration = Duration::from_secs(10);

/// What gets tokens, with an assertion signed anew each time, with the key that there is then.
///
/// # Errors
/// `config` ([`coze_core::Kind::Precondition`]) when the key is no RSA key.
pub(crate) fn open(
    config: &Config,
    account: &ServiceAccount,
    secrets: &mut Secrets,
) -> Result<coze_auth::ServiceAccount<Transport>, Error> {
    let (key_id, key) = (&account.key_id, &account.private_key);
    let open =
        coze_auth::ServiceAccount::new(endpoint(&config.platform)?, &account.client_id, key_id.expose(), key.expose());
    let open = open.map_err(|error| config.refused("platform.service_account.private_key", error))?;
    // A key without its id would be refused.
    secrets.follow_both([key_id, key], config.secrets.poll * 2 + READ, {
        let open = open.clone();
        move |key_id, key| open.set_key(text(key_id)?, text(key)?)
    })?;
    open.duration(DURATION)
}
