//! Which of the platform's events were accepted.

use std::{pin::Pin, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use coze_auth::{Decision, MemoryReplay, RedisReplay, ReplayStore};
use coze_core::Error;

use crate::{
    config::Config,
    secrets::{Secrets, text},
};

/// Time for one question to Redis.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Remembers the events that were accepted: in the Redis that the nodes share, so that each of them refuses a copy; and in this
/// process where there is none, or while it is away. Nobody is refused then, because an event is stored once in any case, by its
/// id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replays {
    memory: MemoryReplay,
    /// Replaced when the URL changes.
    redis: Arc<ArcSwapOption<RedisReplay>>,
}

impl Replays {
    /// In the Redis of the sessions, or else in that of the limits, if there is one.
    ///
    /// # Errors
    /// `redis_url` ([`coze_core::Kind::Invalid`]) when the URL is not one of Redis.
    pub(crate) fn open(config: &Config, secrets: &mut Secrets) -> Result<Self, Error> {
        let replays = Self::default();
        let mut places = [Some(&config.storage.sessions), config.limits.redis.as_ref()].into_iter().flatten();
        if let Some(url) = places.find(|place| place.expose() != "memory") {
            let redis = replays.redis.clone();
            secrets.follow(url, move |url| {
                let replay = RedisReplay::new(text(url)?)?.prefix("bot-backend:event:").timeout(TIMEOUT);
                redis.store(Some(Arc::new(replay)));
                Ok(())
            })?;
        }
        Ok(replays)
    }

    /// The same with a memory of its own: who sends one bot too many events fills no other bot's.
    pub(crate) fn of_one_bot(&self) -> Self {
        Self { memory: MemoryReplay::default(), redis: self.redis.clone() }
    }
}

impl ReplayStore for Replays {
    type Future = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

    fn take(&self, id: &str, now: Duration, life: Duration) -> Decision<(), Self::Future> {
        let redis = self.redis.load_full().map(|redis| RedisReplay::clone(&redis).fallback(self.memory.clone()));
        match redis {
            Some(redis) => later(redis.take(id, now, life)),
            None => later(self.memory.take(id, now, life)),
        }
    }
}

fn later<F>(decision: Decision<(), F>) -> Decision<(), <Replays as ReplayStore>::Future>
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    match decision {
        Decision::Now(taken) => Decision::Now(taken),
        Decision::Later(taken) => Decision::Later(Box::pin(taken)),
    }
}
