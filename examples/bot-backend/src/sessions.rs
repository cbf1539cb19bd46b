//! Sessions: which conversation of the platform one of ours is, for as long as it is in use.
//!
//! What is lost here is found again in the store of conversations.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use coze_core::{Error, Kind};
use moka::future::Cache;
use redis::{
    AsyncCommands, Client, IntoConnectionInfo, RedisError,
    aio::{ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};

use crate::{config::Secret, message::Message};

/// Sessions in memory. About 300 bytes each.
const MAX_SESSIONS: u64 = 100_000;
/// A session that nobody used for this long is forgotten.
const IDLE: Duration = Duration::from_secs(24 * 60 * 60);
/// Time for one command.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Where sessions are kept. Clones share them.
#[derive(Clone)]
pub(crate) enum Sessions {
    /// In this process: at most 100 000, those not used for longest go first.
    Memory(Cache<String, String>),
    /// In Redis, shared by all nodes. The connection is replaced when the URL changes.
    Redis(Arc<ArcSwap<ConnectionManager>>),
}

impl Sessions {
    /// Opens what the URL names: `memory`, or a Redis. A Redis that is not there yet does not fail this: it is connected to
    /// when it is needed.
    ///
    /// # Errors
    /// `sessions_url` ([`Kind::Invalid`]) when the URL is not one of Redis.
    pub(crate) fn open(url: &Secret) -> Result<Self, Error> {
        if url.expose() == "memory" {
            return Ok(Self::Memory(Cache::builder().max_capacity(MAX_SESSIONS).time_to_idle(IDLE).build()));
        }
        Ok(Self::Redis(Arc::new(ArcSwap::from_pointee(connection(url)?))))
    }

    /// Changes over to another URL of Redis once that answers. What is under way ends where it began.
    ///
    /// # Errors
    /// Those of [`Sessions::open`] and [`Sessions::get`]; then everything stays as it is. So it does in memory.
    pub(crate) async fn change_over(&self, url: &Secret) -> Result<(), Error> {
        if let Self::Redis(redis) = self {
            let mut connection = connection(url)?;
            ping(&mut connection).await?;
            redis.store(Arc::new(connection));
        }
        Ok(())
    }

    /// The platform's conversation of the message's, if it is known here.
    ///
    /// # Errors
    /// `sessions_unavailable` ([`Kind::Unavailable`]).
    pub(crate) async fn get(&self, message: &Message) -> Result<Option<String>, Error> {
        match self {
            Self::Memory(cache) => Ok(cache.get(&key(message)).await),
            Self::Redis(redis) => {
                let expiry = redis::Expiry::EX(IDLE.as_secs());
                current(redis).get_ex(key(message), expiry).await.map_err(unavailable)
            }
        }
    }

    /// Remembers the platform's conversation of the message's.
    ///
    /// # Errors
    /// As [`Sessions::get`].
    pub(crate) async fn put(&self, message: &Message, conversation: &str) -> Result<(), Error> {
        match self {
            Self::Memory(cache) => {
                cache.insert(key(message), conversation.to_owned()).await;
                Ok(())
            }
            Self::Redis(redis) => {
                current(redis).set_ex(key(message), conversation, IDLE.as_secs()).await.map_err(unavailable)
            }
        }
    }

    /// Forgets the message's conversation.
    ///
    /// # Errors
    /// As [`Sessions::get`].
    pub(crate) async fn remove(&self, message: &Message) -> Result<(), Error> {
        match self {
            Self::Memory(cache) => {
                cache.invalidate(&key(message)).await;
                Ok(())
            }
            Self::Redis(redis) => current(redis).del(key(message)).await.map_err(unavailable),
        }
    }

    /// Whether sessions can be kept now.
    ///
    /// # Errors
    /// As [`Sessions::get`].
    pub(crate) async fn check(&self) -> Result<(), Error> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Redis(redis) => ping(&mut current(redis)).await,
        }
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory(_) => "Sessions(memory)",
            Self::Redis(_) => "Sessions(redis)",
        })
    }
}

pub(crate) fn connection(url: &Secret) -> Result<ConnectionManager, Error> {
    let invalid = |e: RedisError| {
        Error::new(Kind::Invalid, "sessions_url").with_message("the sessions URL is not one of redis").with_source(e)
    };
    let info = url.expose().into_connection_info().map_err(invalid)?;
    // Not the default of this client: a command is a few bytes that would wait for more.
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT))
        .set_number_of_retries(1);
    let client = Client::open(info).map_err(invalid)?;
    ConnectionManager::new_lazy_with_config(client, config).map_err(invalid)
}

fn current(redis: &ArcSwap<ConnectionManager>) -> ConnectionManager {
    ConnectionManager::clone(&redis.load())
}

async fn ping(connection: &mut ConnectionManager) -> Result<(), Error> {
    redis::cmd("PING").query_async(connection).await.map_err(unavailable)
}

/// What stands for the message's conversation. Ids have no control characters, so that one separates them.
pub(crate) fn key(message: &Message) -> String {
    format!("bot-backend:session:{}\u{1f}{}\u{1f}{}", message.bot, message.conversation, message.user)
}

fn unavailable(error: RedisError) -> Error {
    Error::new(Kind::Unavailable, "sessions_unavailable")
        .with_message("sessions cannot be reached now")
        .with_retry_after(Duration::from_secs(1))
        .with_source(error)
}
