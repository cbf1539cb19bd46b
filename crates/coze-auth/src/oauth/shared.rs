use std::{fmt, sync::Arc, time::Duration};

use coze_core::Error;
use redis::{Cmd, RedisError, cmd};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use super::{
    RefreshToken, TokenStore, random,
    store::{PACE, broken},
};
use crate::remote::Remote;

/// Lets go of a lease, if it is still this one.
const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Replaces a token, if it is this one with this mark.
const REPLACE: &str = "
    local stored = redis.call('GET', KEYS[1])
    if not stored then return 0 end
    stored = cjson.decode(stored)
    if stored.refresh_token ~= ARGV[1] or (stored.sent or 0) ~= tonumber(ARGV[2]) then return 0 end
    redis.call('SET', KEYS[1], ARGV[3])
    return 1";

/// Keeps the token under a key of a Redis, for several processes. Clones share the connection.
///
/// What is guaranteed: of all processes whose stores have the same key, one at a time uses the token, from before it is marked
/// until its successor is stored, because it holds a lease (`SET NX PX`); the others wait, and go on with the successor. A holder
/// that dies, or stands still, loses the lease when its time is over. It cannot overwrite then what others stored since, because a
/// token is replaced only if it is the one that is known (compare and set, in one step at the Redis). So two processes
/// send the same token only if one of them stands still for the rest of its lease between marking it and sending it, or while
/// it waits for the platform's answer; then the platform refuses one of them, and the successor that the other one got is stored,
/// whichever of them it was.
///
/// What is stored is as durable, and as secret, as the Redis is: a write that it forgets after it said it was done, in a
/// crash without `appendfsync always` or in a failover, loses the token, and a person has to consent again.
#[derive(Clone, Debug)]
pub struct RedisStore {
    remote: Remote,
    key: Arc<str>,
    lease: Duration,
}

impl RedisStore {
    /// The token under `key` (and its lease under `key` with `:lease` behind) in the Redis at this URL, which is connected to
    /// when it is first needed. One person's token has a key of its own.
    ///
    /// # Errors
    /// `redis_url`, [`Kind::Invalid`](coze_core::Kind::Invalid): the URL is not one of Redis.
    pub fn new(url: &str, key: &str) -> Result<Self, Error> {
        let remote = Remote::new(url, Duration::from_secs(1))?;
        Ok(Self { remote, key: key.into(), lease: Duration::from_secs(60) })
    }

    /// How long one question to the Redis may take, connecting included; 1 second unless set.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { remote: self.remote.within(timeout), ..self }
    }

    /// After which time who holds the token is taken for dead; 60 seconds unless set. Others wait twice as long at most. It is more
    /// than a refresh can take: the timeout of the [`Endpoint`](crate::Endpoint), and three questions to the Redis.
    #[must_use]
    pub fn lease_time(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }
}

impl TokenStore for RedisStore {
    type Lease = Lease;

    /// # Errors
    /// `token_store`, [`Kind::Precondition`](coze_core::Kind::Precondition): the Redis cannot be asked, or others hold the token
    /// for longer than a lease.
    async fn lease(&self) -> Result<Lease, Error> {
        let (key, owner) = (format!("{}:lease", self.key), random::<16>()?);
        let life = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX).clamp(1, u64::MAX / 8);
        let mut take = cmd("SET");
        take.arg(&key).arg(&owner).arg("NX").arg("PX").arg(life);
        // Made before it is asked for: what is asked for is let go of, also where nobody waits for the answer any more.
        let lease = Lease { remote: self.remote.clone(), key, owner };
        let start = Instant::now();
        loop {
            let taken: Option<String> = self.remote.ask(&take).await.map_err(away)?;
            if taken.is_some() {
                return Ok(lease);
            }
            if start.elapsed() > self.lease.saturating_mul(2) {
                return Err(broken("other processes use the refresh token for longer than they may"));
            }
            sleep(PACE.mul_f64(fastrand::f64())).await;
        }
    }

    /// # Errors
    /// `token_store`, [`Kind::Precondition`](coze_core::Kind::Precondition): the Redis cannot be asked, or holds something else.
    async fn load(&self) -> Result<Option<RefreshToken>, Error> {
        let stored: Option<String> = self.remote.ask(cmd("GET").arg(&*self.key)).await.map_err(away)?;
        stored.map(|text| RefreshToken::decode(&text)).transpose()
    }

    /// # Errors
    /// `token_store`, [`Kind::Precondition`](coze_core::Kind::Precondition): the Redis cannot be asked. It may be done all the same.
    async fn save(&self, token: &RefreshToken) -> Result<(), Error> {
        self.remote.ask(cmd("SET").arg(&*self.key).arg(token.encode())).await.map_err(away)
    }

    /// # Errors
    /// As [`RedisStore::save`].
    async fn replace(&self, known: &RefreshToken, next: &RefreshToken) -> Result<bool, Error> {
        let mut replace = script(REPLACE, &self.key);
        replace.arg(known.expose()).arg(known.sent()).arg(next.encode());
        self.remote.ask(&replace).await.map_err(away)
    }
}

/// The right to use a token of a [`RedisStore`], given back in the background when this is dropped.
pub struct Lease {
    remote: Remote,
    key: String,
    owner: String,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut release = script(RELEASE, &self.key);
        release.arg(&self.owner);
        let remote = self.remote.clone();
        // Where there is no runtime any more, or no Redis, it ends by itself.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { remote.ask::<()>(&release).await });
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("key", &self.key).finish_non_exhaustive()
    }
}

fn script(text: &str, key: &str) -> Cmd {
    let mut script = cmd("EVAL");
    script.arg(text).arg(1).arg(key);
    script
}

fn away(error: RedisError) -> Error {
    broken("the redis of the refresh token cannot be asked").with_source(error)
}
