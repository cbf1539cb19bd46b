use coze_core::{Error, Kind};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    http::{Call, Client, path},
    wire::{self, Granted},
};
use crate::{Secret, SecretBytes};

/// How a session gets its token. What it takes for that is a [`Secret`], so it may itself rotate, such as in a file.
#[derive(Clone, Debug)]
pub struct Login {
    mount: Option<String>,
    method: Method,
}

#[derive(Clone, Debug)]
enum Method {
    Token(Secret),
    AppRole { role_id: String, secret_id: Secret },
    Kubernetes { role: String, jwt: Secret },
}

#[derive(Serialize)]
struct AppRole<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Serialize)]
struct Kubernetes<'a> {
    role: &'a str,
    jwt: &'a str,
}

impl Login {
    /// Uses a token, such as the one that Vault Agent keeps in a file. It is renewed where it may be, and never revoked.
    #[must_use]
    pub fn token(token: Secret) -> Self {
        Self { mount: None, method: Method::Token(token) }
    }

    /// Logs in with a role id and a secret id; mounted at `approle` unless set. The secret id has to be good for more than one
    /// login, unless the token may be renewed for ever: a token whose renewals end is replaced by another login.
    #[must_use]
    pub fn app_role(role_id: impl Into<String>, secret_id: Secret) -> Self {
        Self { mount: None, method: Method::AppRole { role_id: role_id.into(), secret_id } }
    }

    /// Logs in with the JWT of a Kubernetes service account, which a pod finds in
    /// `/var/run/secrets/kubernetes.io/serviceaccount/token`; mounted at `kubernetes` unless set.
    #[must_use]
    pub fn kubernetes(role: impl Into<String>, jwt: Secret) -> Self {
        Self { mount: None, method: Method::Kubernetes { role: role.into(), jwt } }
    }

    /// Where the auth method is mounted, without `auth/`.
    #[must_use]
    pub fn mount(self, mount: impl Into<String>) -> Self {
        Self { mount: Some(mount.into()), ..self }
    }

    /// The token, where it is given and not made: a new version of it is a login.
    pub(crate) fn given(&self) -> Option<&Secret> {
        match &self.method {
            Method::Token(token) => Some(token),
            _ => None,
        }
    }

    /// Logs in once.
    pub(crate) async fn run(&self, client: &Client) -> Result<Granted, Error> {
        let (mount, body) = match &self.method {
            Method::Token(token) => return look_up(client, &*token.current()?).await,
            Method::AppRole { role_id, secret_id } => {
                let secret_id = secret_id.current()?;
                ("approle", json(&AppRole { role_id, secret_id: text(&secret_id)? })?)
            }
            Method::Kubernetes { role, jwt } => {
                let jwt = jwt.current()?;
                ("kubernetes", json(&Kubernetes { role, jwt: text(&jwt)? })?)
            }
        };
        let path = path(&["auth", self.mount.as_deref().unwrap_or(mount), "login"])?;
        wire::granted(&client.send(Call::post(&path).body(body)).await?)
    }
}

/// How a token that was given fares.
pub(crate) async fn look_up(client: &Client, token: &SecretBytes) -> Result<Granted, Error> {
    let answer = client.send(Call::get("auth/token/lookup-self").token(token)).await?;
    let (life, renewable) = wire::looked_up(&answer)?;
    if life.is_some_and(|life| life.is_zero()) {
        return Err(Error::new(Kind::PermissionDenied, "vault_denied").with_message("the token for vault is over"));
    }
    Ok(Granted { token: SecretBytes::copy(token.expose()), life, renewable })
}

pub(super) fn text(secret: &SecretBytes) -> Result<&str, Error> {
    let refused =
        || Error::new(Kind::Invalid, "vault_login").with_message("what vault is logged in to with is not utf-8");
    secret.expose_str().ok_or_else(refused)
}

/// JSON in a buffer that does not grow, unless a secret is beyond all measure, so that it leaves no part of one behind.
pub(crate) fn json(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut buffer = Zeroizing::new(Vec::with_capacity(64 << 10));
    serde_json::to_writer(&mut *buffer, value)
        .map_err(|error| Error::new(Kind::Internal, "vault_login").with_source(error))?;
    Ok(buffer)
}
