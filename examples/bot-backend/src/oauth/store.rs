use std::sync::Arc;

use arc_swap::ArcSwap;
use coze_auth::{FileStore, RedisStore, RefreshToken, TokenStore};
use coze_core::Error;

use crate::{
    config::OAuth,
    secrets::{Secrets, text},
};

/// Where the refresh token is kept. Clones share it.
#[derive(Clone, Debug)]
pub(super) enum Store {
    /// For this machine.
    File(FileStore),
    /// For all nodes. Replaced when the URL changes.
    Redis(Arc<ArcSwap<RedisStore>>),
}

impl Store {
    /// Opens the one that is configured, and the key that says so.
    ///
    /// # Errors
    /// `redis_url` ([`coze_core::Kind::Invalid`]) when the URL is not one of Redis.
    pub(super) fn open(oauth: &OAuth, secrets: &mut Secrets) -> Result<(Self, &'static str), Error> {
        let Some(url) = &oauth.token_redis else {
            let file = FileStore::new(oauth.token_file.clone().unwrap_or_default());
            return Ok((Self::File(file), "platform.oauth.token_file"));
        };
        // Each app acts for a person of its own.
        let key = format!("bot-backend:oauth:{}", oauth.client_id);
        let redis = Arc::new(ArcSwap::from_pointee(RedisStore::new(url.expose(), &key)?));
        secrets.follow(url, {
            let redis = redis.clone();
            move |url| {
                redis.store(Arc::new(RedisStore::new(text(url)?, &key)?));
                Ok(())
            }
        })?;
        Ok((Self::Redis(redis), "platform.oauth.token_redis"))
    }
}

impl TokenStore for Store {
    type Lease = Box<dyn Send + Sync>;

    async fn lease(&self) -> Result<Self::Lease, Error> {
        Ok(match self {
            Self::File(file) => Box::new(file.lease().await?),
            Self::Redis(redis) => Box::new(redis.load_full().lease().await?),
        })
    }

    async fn load(&self) -> Result<Option<RefreshToken>, Error> {
        match self {
            Self::File(file) => file.load().await,
            Self::Redis(redis) => redis.load_full().load().await,
        }
    }

    async fn save(&self, token: &RefreshToken) -> Result<(), Error> {
        match self {
            Self::File(file) => file.save(token).await,
            Self::Redis(redis) => redis.load_full().save(token).await,
        }
    }

    async fn replace(&self, known: &RefreshToken, next: &RefreshToken) -> Result<bool, Error> {
        match self {
            Self::File(file) => file.replace(known, next).await,
            Self::Redis(redis) => redis.load_full().replace(known, next).await,
        }
    }
}
