use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context as Task, Poll},
    time::Duration,
};

use coze_core::{Error, Kind, Retry};
use redis::{RedisError, cmd};

use super::{MemoryReplay, ReplayStore, replayed};
use crate::{Decision, remote::Remote};

/// How far the clocks of the processes that share a Redis may be apart: what one of them takes for over still counts for
/// another one.
const SKEW: Duration = Duration::from_secs(60);

/// Remembers accepted requests in a Redis, so that of all processes that share it exactly one accepts a request. Clones share
/// the connection, and what is known of its state.
///
/// One command decides (`SET NX PX`): it costs one round trip, and what it stores ends by itself, a minute after the request
/// left the clock window, so the clocks of the processes may be a minute apart. A Redis that evicts keys before their time
/// (`maxmemory-policy` other than `noeviction`) or fails over to a replica that lags may forget one, and let its request in again.
///
/// When the Redis cannot be reached, or does not answer in time, the request is refused: `replay_store_unavailable`, and may be
/// sent again. [`RedisReplay::fallback`] lets it pass instead. An event tells when that begins, and when it ends.
///
/// ```
/// use coze_auth::{AuthLayer, Callback, Key, RedisReplay};
///
/// # fn main() -> Result<(), coze_core::Error> {
/// let store = RedisReplay::new("redis://127.0.0.1:6379")?;
/// let layer = AuthLayer::new(Callback::new("app", [Key::new("verify-token")?])?.store(store));
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisReplay {
    remote: Remote,
    prefix: Arc<str>,
    fallback: Option<MemoryReplay>,
    is_away: Arc<AtomicBool>,
}

impl RedisReplay {
    /// The Redis at this URL, `redis://user:password@host:6379/0`. It is connected to when it is first needed. For `rediss://`
    /// the crate `redis` needs one of its TLS features.
    ///
    /// # Errors
    /// `redis_url`, [`Kind::Invalid`]: the URL is not one of Redis.
    pub fn new(url: &str) -> Result<Self, Error> {
        Ok(Self {
            remote: Remote::new(url, Duration::from_millis(50))?,
            prefix: "coze-auth:replay:".into(),
            fallback: None,
            is_away: Arc::default(),
        })
    }

    /// What keys begin with; `coze-auth:replay:` unless set. Processes that share requests share it.
    #[must_use]
    pub fn prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// How long a decision may take, connecting included; 50 ms unless set.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { remote: self.remote.within(timeout), ..self }
    }

    /// Decides by this memory while the Redis cannot be asked, instead of refusing: a request then passes once in each process,
    /// and once more if it was accepted before the Redis was away or comes again after. It still waits for the timeout.
    #[must_use]
    pub fn fallback(self, memory: MemoryReplay) -> Self {
        Self { fallback: Some(memory), ..self }
    }

    /// Is it the first with this id?
    async fn ask(&self, id: &str, life: Duration) -> Result<bool, RedisError> {
        // Redis adds its own time to it.
        let end = u64::try_from(life.saturating_add(SKEW).as_millis()).unwrap_or(u64::MAX).min(u64::MAX / 8);
        let mut command = cmd("SET");
        command.arg(format!("{}{id}", self.prefix)).arg(1).arg("NX").arg("PX").arg(end);
        let taken: Option<String> = self.remote.ask(&command).await?;
        Ok(taken.is_some())
    }

    fn is_back(&self) {
        if self.is_away.load(Ordering::Relaxed) && self.is_away.swap(false, Ordering::Relaxed) {
            tracing::info!("the replay store answers again");
        }
    }

    fn is_gone(&self, error: &RedisError) {
        if !self.is_away.swap(true, Ordering::Relaxed) {
            let instead =
                if self.fallback.is_some() { "requests pass once in each process" } else { "requests are refused" };
            tracing::warn!(reason = UNAVAILABLE, %error, "the replay store cannot be asked: {instead}");
        }
    }
}

const UNAVAILABLE: &str = "replay_store_unavailable";

impl ReplayStore for RedisReplay {
    type Future = Taking;

    fn take(&self, id: &str, now: Duration, life: Duration) -> Decision<(), Taking> {
        let (store, id) = (self.clone(), id.to_owned());
        Decision::Later(Taking(Box::pin(async move {
            let asked = store.ask(&id, life).await;
            match (asked, &store.fallback) {
                (Ok(is_first), _) => {
                    store.is_back();
                    if is_first { Ok(()) } else { Err(replayed()) }
                }
                (Err(error), Some(memory)) => {
                    store.is_gone(&error);
                    match memory.take(&id, now, life) {
                        Decision::Now(taken) => taken,
                        Decision::Later(never) => never.await,
                    }
                }
                (Err(error), None) => {
                    store.is_gone(&error);
                    Err(Error::new(Kind::Unavailable, UNAVAILABLE)
                        .with_message("it cannot be told now whether this request was accepted before")
                        .with_retry(Retry::Safe)
                        .with_source(error))
                }
            }
        })))
    }
}

impl fmt::Debug for RedisReplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisReplay")
            .field("remote", &self.remote)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Waits for the answer of the Redis.
#[must_use = "futures do nothing unless polled"]
pub struct Taking(Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>);

impl Future for Taking {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(task)
    }
}

impl fmt::Debug for Taking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taking").finish_non_exhaustive()
    }
}
