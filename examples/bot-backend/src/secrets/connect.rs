use std::time::Duration;

use coze_core::{Error, Kind};
use coze_secret::{Login, Secret, SecretBytes, SecretFile, Vault, VaultSession};

use crate::config::{self, Source};

/// Logs in to the configuration's Vault. What is in a file for that is looked at in the time `poll`.
///
/// # Errors
/// When it is configured wrongly, cannot be reached, or refuses the login.
pub(super) async fn session(config: &config::Vault, poll: Duration) -> Result<VaultSession, Error> {
    let mut vault = Vault::new(&config.address)?;
    if let Some(namespace) = &config.namespace {
        vault = vault.namespace(namespace)?;
    }
    if let Some(file) = &config.ca_file {
        let pem = std::fs::read(file).map_err(|error| {
            let message = format!("cannot read the file {}: {error}", file.display());
            Error::new(Kind::Precondition, "vault_certificate").with_message(message)
        })?;
        vault = vault.certificate_authority(&pem)?;
    }
    let (login, mount) = match (&config.token, &config.app_role, &config.kubernetes) {
        (Some(token), ..) => (Login::token(open(token, poll).await?), &None),
        (None, Some(role), _) => {
            let mut secret_id = open(&role.secret_id, poll).await?;
            if role.wrapped {
                secret_id = unwrapped(&vault, &*secret_id.current()?).await?;
            }
            (Login::app_role(&role.role_id, secret_id), &role.mount)
        }
        (None, None, Some(account)) => {
            let jwt = SecretFile::new(&account.jwt_file).poll(poll).open().await?;
            (Login::kubernetes(&account.role, jwt), &account.mount)
        }
        (None, None, None) => {
            return Err(Error::new(Kind::Precondition, "vault_login").with_message("there is no login for vault"));
        }
    };
    vault.connect(mount.iter().fold(login, |login, mount| login.mount(mount))).await
}

async fn open(secret: &config::Secret, poll: Duration) -> Result<Secret, Error> {
    match secret.source() {
        Source::File(path) => SecretFile::new(path).poll(poll).open().await,
        _ => Ok(Secret::fixed(SecretBytes::new(secret.expose()))),
    }
}

/// The secret id that a single-use token wraps.
async fn unwrapped(vault: &Vault, token: &SecretBytes) -> Result<Secret, Error> {
    let secret_id = vault.unwrap(token).await?.take("secret_id");
    secret_id
        .map(Secret::fixed)
        .ok_or_else(|| Error::new(Kind::Invalid, "vault_answer").with_message("the wrapping token holds no secret_id"))
}
