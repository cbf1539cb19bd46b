use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use coze_core::Error;
use redis::{FromRedisValue, RedisResult, Script, aio::ConnectionLike};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{Dead, End, Job, Pushed, Queue, Taken, check, full, give_up, unavailable};

/// The consumer group that all workers are in.
const GROUP: &str = "workers";
/// The most jobs that were given up and are kept; Redis removes the oldest, a few later than it might.
const MAX_DEAD: usize = 10_000;

/// A queue in a stream of Redis (7.0 or newer), shared by all processes that name it. Clones share the connection.
///
/// `connection` is whatever connects: a `ConnectionManager` or `MultiplexedConnection`, or the connection to a cluster. All keys of a
/// queue have one hash tag, so they lie on one node: `{NAME}:jobs` is the stream, `{NAME}:known` the ids, `{NAME}:dead` a stream of
/// what was given up. A queue survives what Redis survives: with `appendfsync everysec` a crash may cost the last second.
///
/// A worker that is gone leaves its job to whoever takes one after the lease. Idle workers ask every [`RedisQueue::poll`] for jobs
/// that other processes pushed; for those of their own process they do not wait.
#[derive(Clone)]
pub struct RedisQueue<C> {
    connection: C,
    keys: Arc<[String; 3]>,
    consumer: Arc<str>,
    scripts: Arc<Scripts>,
    arrived: Arc<Notify>,
    capacity: usize,
    lease: Duration,
    tries: u32,
    remember: Duration,
    poll: Duration,
    timeout: Duration,
}

struct Scripts {
    push: Script,
    take: Script,
    finish: Script,
}

impl<C> RedisQueue<C> {
    /// The queue of this name, in which at most `capacity` jobs wait or run. What is set here goes for this process alone: all
    /// should set the same.
    #[must_use]
    pub fn new(connection: C, name: &str, capacity: usize) -> Self {
        Self {
            connection,
            keys: Arc::new(["jobs", "known", "dead"].map(|part| format!("{{{name}}}:{part}"))),
            consumer: format!("{:016x}", fastrand::u64(..)).into(),
            scripts: Arc::new(Scripts {
                push: Script::new(include_str!("push.lua")),
                take: Script::new(include_str!("take.lua")),
                finish: Script::new(include_str!("finish.lua")),
            }),
            arrived: Arc::default(),
            capacity,
            lease: Duration::from_secs(150),
            tries: 5,
            remember: Duration::from_secs(24 * 60 * 60),
            poll: Duration::from_millis(100),
            timeout: Duration::from_millis(500),
        }
    }

    /// How long a worker has for one try; 150 seconds unless set.
    #[must_use]
    pub fn with_lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// How often a job is tried, at least once; 5 times unless set.
    #[must_use]
    pub fn tries(self, tries: u32) -> Self {
        Self { tries: tries.max(1), ..self }
    }

    /// How long the id of a job that was done is known; a day unless set. Each takes about 100 bytes of Redis, and as many more as
    /// the id has.
    #[must_use]
    pub fn remember(self, time: Duration) -> Self {
        Self { remember: time, ..self }
    }

    /// The time between two looks for a job; 100 ms unless set.
    #[must_use]
    pub fn poll(self, time: Duration) -> Self {
        Self { poll: time, ..self }
    }

    /// The time for one command; 500 ms unless set. Then it fails with `queue_unavailable`.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    async fn within<T>(&self, command: impl Future<Output = RedisResult<T>>) -> Result<T, Error> {
        match timeout(self.timeout, command).await {
            Ok(answer) => answer.map_err(unavailable),
            Err(late) => Err(unavailable(late)),
        }
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisQueue<C> {
    /// How many jobs wait or run.
    ///
    /// # Errors
    /// `queue_unavailable`.
    pub async fn len(&self) -> Result<usize, Error> {
        self.ask(redis::cmd("XLEN").arg(&self.keys[0])).await
    }

    /// Whether no job waits or runs.
    ///
    /// # Errors
    /// `queue_unavailable`.
    pub async fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len().await? == 0)
    }

    /// What was given up, at most `count`, the oldest first.
    ///
    /// # Errors
    /// `queue_unavailable`.
    pub async fn dead(&self, count: usize) -> Result<Vec<Dead>, Error> {
        type Entry = (String, Vec<(String, Vec<u8>)>);
        let command = redis::cmd("XRANGE").arg(&self.keys[2]).arg("-").arg("+").arg("COUNT").arg(count).to_owned();
        let entries: Vec<Entry> = self.ask(&command).await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(entries
            .into_iter()
            .map(|(_, fields)| {
                let mut dead = Dead { job: Job { id: String::new(), payload: Bytes::new() }, reason: String::new() };
                for (name, value) in fields {
                    match name.as_str() {
                        "id" => dead.job.id = text(value),
                        "payload" => dead.job.payload = value.into(),
                        "reason" => dead.reason = text(value),
                        _ => {}
                    }
                }
                dead
            })
            .collect())
    }

    async fn ask<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, Error> {
        let mut connection = self.connection.clone();
        self.within(command.query_async(&mut connection)).await
    }

    /// A job, if there is one.
    async fn look(&self) -> Result<Option<Taken>, Error> {
        let mut connection = self.connection.clone();
        let mut call = self.scripts.take.prepare_invoke();
        self.keys.iter().for_each(|key| _ = call.key(key));
        call.arg(GROUP).arg(&*self.consumer).arg(millis(self.lease)).arg(self.tries).arg(MAX_DEAD);
        let answer: Vec<Vec<u8>> = self.within(call.invoke_async(&mut connection)).await?;
        let mut parts = answer.into_iter();
        let mut next = || parts.next().unwrap_or_default();
        let (entry, id, payload, attempt) = (next(), next(), next(), next());
        parts.for_each(|id| give_up(&String::from_utf8_lossy(&id), self.tries, "job_lost"));
        if entry.is_empty() {
            return Ok(None);
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let attempt = text(attempt).parse().unwrap_or(u32::MAX);
        Ok(Some(Taken { job: Job { id: text(id), payload: payload.into() }, attempt, entry: text(entry) }))
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Queue for RedisQueue<C> {
    fn lease(&self) -> Duration {
        self.lease
    }

    async fn push(&self, job: Job) -> Result<Pushed, Error> {
        check(&job)?;
        let mut connection = self.connection.clone();
        let mut call = self.scripts.push.prepare_invoke();
        call.key(&self.keys[0]).key(&self.keys[1]).arg(&job.id).arg(&job.payload[..]).arg(self.capacity);
        match self.within(call.invoke_async(&mut connection)).await? {
            1_i64 => {
                self.arrived.notify_one();
                Ok(Pushed::Queued)
            }
            0 => Ok(Pushed::Known),
            _ => Err(full(self.capacity)),
        }
    }

    async fn take(&self) -> Result<Taken, Error> {
        loop {
            let arrived = self.arrived.notified();
            if let Some(taken) = self.look().await? {
                return Ok(taken);
            }
            tokio::select! {
                () = arrived => {}
                () = sleep(self.poll) => {}
            }
        }
    }

    async fn finish(&self, taken: &Taken, end: End) -> Result<(), Error> {
        let (how, reason) = match end {
            End::Done => ("done", ""),
            End::Again(reason) => ("again", reason),
            End::Dead(reason) => ("dead", reason),
        };
        let mut connection = self.connection.clone();
        let mut call = self.scripts.finish.prepare_invoke();
        self.keys.iter().for_each(|key| _ = call.key(key));
        call.arg(GROUP).arg(&*self.consumer).arg(&taken.entry).arg(how).arg(reason).arg(taken.attempt).arg(self.tries);
        call.arg(millis(self.remember)).arg(MAX_DEAD);
        let dead: i64 = self.within(call.invoke_async(&mut connection)).await?;
        if dead == 1 {
            give_up(&taken.job.id, taken.attempt, reason);
        }
        Ok(())
    }
}

impl<C> fmt::Debug for RedisQueue<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQueue")
            .field("keys", &self.keys)
            .field("capacity", &self.capacity)
            .field("lease", &self.lease)
            .field("tries", &self.tries)
            .finish_non_exhaustive()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
