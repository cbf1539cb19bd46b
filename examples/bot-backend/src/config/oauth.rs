use std::path::PathBuf;

use coze_auth::{RedisStore, Static};
use serde::Deserialize;

use super::{BaseUrl, Secret, value::parsed};

/// The fewest bytes of a password that nobody guesses over the network.
pub(crate) const MIN_PASSWORD: usize = 16;

/// An OAuth app that acts for the person who consented at `/oauth/start` (coze-platform.md §1.3, §1.4).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OAuth {
    /// The OAuth app's id.
    pub client_id: String,
    /// The app's secret, if it has one.
    pub client_secret: Option<Secret>,
    /// Where browsers reach this service. `/oauth/callback` there is what the platform has to know as a redirect address.
    #[serde(deserialize_with = "parsed")]
    pub public_url: BaseUrl,
    /// Who knows it may begin a consent: else a stranger could have the bot act for themselves. At least 16 bytes.
    pub password: Secret,
    /// The file that keeps the refresh token. It is made, with mode 0600, in a folder that is there. This or `token_redis`.
    pub token_file: Option<PathBuf>,
    /// The Redis that keeps it for several nodes: `redis://…`.
    pub token_redis: Option<Secret>,
}

impl OAuth {
    /// What is wrong, and with which key.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.client_id.is_empty() {
            return Err(("client_id", "expected a text that is not empty"));
        }
        if self.client_secret.as_ref().is_some_and(|secret| !secret.is_open() && Static::new(secret.expose()).is_err())
        {
            return Err(("client_secret", "expected visible ASCII without spaces"));
        }
        if !self.password.is_open() && self.password.expose().len() < MIN_PASSWORD {
            return Err(("password", "expected at least 16 bytes"));
        }
        match (&self.token_file, &self.token_redis) {
            (Some(_), Some(_)) => Err(("token_redis", "there is a token_file too: keep one of them")),
            (None, None) => Err(("token_file", "expected the path of a file, or token_redis for several nodes")),
            (None, Some(url)) if !url.is_open() && RedisStore::new(url.expose(), "").is_err() => {
                Err(("token_redis", "expected redis://host:6379"))
            }
            _ => Ok(()),
        }
    }
}
