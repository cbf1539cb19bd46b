mod fields;
mod http;
mod kv;
mod lease;
mod login;
mod pace;
mod session;
mod token;
mod wire;

use std::{future::Future, sync::Arc, time::Duration};

use ::http::Uri;
use coze_core::{Error, Kind, Retry};
use serde::Serialize;
use tokio::time::sleep;

pub use fields::{Credentials, Fields};
pub use kv::Kv;
pub use lease::Database;
pub use login::Login;
pub use session::VaultSession;

use crate::SecretBytes;
use http::{Call, Client};

/// How often something is tried before [`Vault::connect`] and the like give up.
const TRIES: u32 = 5;

/// Where a Vault is and how it is spoken to.
///
/// [`Vault::connect`] logs in and makes a session, from which secrets come.
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before it connects"]
pub struct Vault {
    uri: Uri,
    namespace: Option<::http::HeaderValue>,
    timeout: Duration,
    /// `None` are the public authorities.
    roots: Option<Arc<rustls::RootCertStore>>,
}

impl Vault {
    /// A Vault at `url`, such as `https://vault.example.com:8200`. Over `http` a token is readable on its way: for a sidecar
    /// on the same host, and for tests.
    ///
    /// # Errors
    /// `vault_url`, [`Kind::Invalid`]: it is not an `http` or `https` URL of a host, without path and query.
    pub fn new(url: &str) -> Result<Self, Error> {
        let refused = || {
            Error::new(Kind::Invalid, "vault_url")
                .with_message("the address of vault is http(s)://host:port and no more")
        };
        let uri: Uri = url.parse().map_err(|_| refused())?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if !is_http || has_user || uri.host().is_none() || uri.query().is_some() || uri.path() != "/" {
            return Err(refused());
        }
        Ok(Self { uri, namespace: None, timeout: Duration::from_secs(10), roots: None })
    }

    /// The namespace that all requests are in, for Vault Enterprise.
    ///
    /// # Errors
    /// `vault_namespace`, [`Kind::Invalid`]: it is not visible ASCII.
    pub fn namespace(self, namespace: &str) -> Result<Self, Error> {
        let value = ::http::HeaderValue::from_str(namespace);
        let value = value.map_err(|_| Error::new(Kind::Invalid, "vault_namespace"))?;
        Ok(Self { namespace: Some(value), ..self })
    }

    /// How long one request may take, from connecting to the last byte; 10 seconds unless set.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Trusts the certificates in this PEM text, and only these, instead of the public authorities.
    ///
    /// # Errors
    /// `vault_certificate`, [`Kind::Invalid`]: there is none in it, or one that is malformed.
    pub fn certificate_authority(self, pem: &[u8]) -> Result<Self, Error> {
        Ok(Self { roots: Some(Arc::new(http::roots_of(pem)?)), ..self })
    }

    /// Opens what a single-use token wraps, such as the secret id of an `AppRole` login. The token is spent then.
    ///
    /// Tried again only while it is certain that the token was not spent.
    ///
    /// # Errors
    /// `vault_refused`, [`Kind::Invalid`]: the token was spent, perhaps by a thief, or is over; and those of any request,
    /// which the crate docs list.
    pub async fn unwrap(&self, token: &SecretBytes) -> Result<Fields, Error> {
        let client = self.client()?;
        let open = || async {
            let answer = client.send(Call::post("sys/wrapping/unwrap").token(token)).await?;
            wire::fields(&answer)
        };
        persist(open, |error| error.retry() == Retry::Safe).await
    }

    /// The same, if the token wraps an answer to this path, such as `auth/approle/role/bot/secret-id`. Whoever opens a token on its
    /// way can wrap something else and pass that on, but not as what this path answered.
    ///
    /// # Errors
    /// `vault_tampered`, [`Kind::PermissionDenied`]: it wraps another path's answer; it is not spent then. And those of
    /// [`Vault::unwrap`].
    pub async fn unwrap_from(&self, token: &SecretBytes, path: &str) -> Result<Fields, Error> {
        let client = self.client()?;
        let text = login::text(token)?;
        let look_up = || async {
            let call = Call::post("sys/wrapping/lookup").body(login::json(&Lookup { token: text })?);
            wire::wrapped_at(&client.send(call).await?)
        };
        match persist(look_up, is_passing).await?.trim_matches('/') == path.trim_matches('/') {
            true => self.unwrap(token).await,
            false => Err(Error::new(Kind::PermissionDenied, "vault_tampered")
                .with_message(format!("what the token wraps is not of {path}: somebody may have exchanged it"))),
        }
    }

    /// Logs in, and keeps the token alive in a task of the session.
    ///
    /// # Errors
    /// `vault_denied` or `vault_refused` where the login is; and those of any request, which the crate docs list, after 5
    /// tries.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(self, login: Login) -> Result<VaultSession, Error> {
        VaultSession::start(Arc::new(self.client()?), login).await
    }

    fn client(&self) -> Result<Client, Error> {
        Client::new(&self.uri, self.namespace.clone(), self.timeout, self.roots.clone())
    }
}

#[derive(Serialize)]
struct Lookup<'a> {
    token: &'a str,
}

/// Tries until it works, `again` says no, or the tries are used up.
async fn persist<T, F>(attempt: impl Fn() -> F, again: impl Fn(&Error) -> bool) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt().await {
            Err(error) if tries < TRIES && again(&error) => sleep(pace::pause(tries, &error, fastrand::f64())).await,
            outcome => return outcome,
        }
    }
}

/// In how many ways [`read_answer`] reads.
#[doc(hidden)]
pub const ANSWERS: usize = 8;

/// Reads an answer as everything that Vault may answer, for fuzzing: whatever it is, that makes values or these errors.
#[doc(hidden)]
pub fn read_answer(answer: &[u8]) -> Vec<Error> {
    let read: [Option<Error>; ANSWERS] = [
        wire::granted(answer).err(),
        wire::renewed(answer).err(),
        wire::looked_up(answer).err(),
        wire::credentials(answer).err(),
        wire::leased(answer).err(),
        wire::fields(answer).err(),
        wire::version(answer).err(),
        wire::wrapped_at(answer).err(),
    ];
    let words = wire::words(answer).map(|words| Error::new(Kind::Upstream, "vault_answer").with_message(words));
    read.into_iter().chain([words]).flatten().collect()
}

/// May it work when tried again?
fn is_passing(error: &Error) -> bool {
    error.retry() != Retry::Never
}
