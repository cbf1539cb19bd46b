//! What is not done now is done later: jobs, who keeps them, and who works them off (requirement R4.4).

#[cfg(feature = "kafka")]
mod kafka;
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod worker;

use std::{fmt, future::Future, time::Duration};

use bytes::Bytes;
use coze_core::Error;

#[cfg(feature = "kafka")]
pub use self::kafka::KafkaQueue;
#[cfg(feature = "redis")]
pub use self::redis::RedisQueue;
pub use self::{memory::MemoryQueue, worker::Worker};

/// The longest id of a job in bytes.
pub const MAX_ID: usize = 512;
/// The largest payload of a job in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Work that is to be done later. What it is about is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Job {
    /// What it is known by: a job that comes again under an id that is known is not taken a second time.
    pub id: String,
    /// What its worker needs.
    pub payload: Bytes,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("id", &self.id).field("bytes", &self.payload.len()).finish()
    }
}

/// A job that a worker has, until its lease is over.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The job.
    pub job: Job,
    /// Which try at it this is, from 1.
    pub attempt: u32,
    /// What its queue finds it by.
    entry: String,
}

/// Whether a queue took a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits now.
    Queued,
    /// A job of this id waits, is being done, or was done not long ago.
    Known,
}

/// How a try at a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is done.
    Done,
    /// It failed for this reason, and is to be tried again unless that was the last try.
    Again(&'static str),
    /// It failed for this reason, and would always.
    Dead(&'static str),
}

/// A job that was given up. It stays where it is until somebody looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// The job.
    pub job: Job,
    /// Why its last try failed; `job_lost` if its worker never said.
    pub reason: String,
}

/// Keeps jobs until they are done.
///
/// A job is done **at least once**: it goes to one worker at a time, and to the next one when that worker did not say within the
/// [lease](Queue::lease) how it ended. A worker that is only late may so do it at the same time as its successor. Whoever must not
/// do a thing twice looks at [`Job::id`], which is the same in every try.
///
/// Jobs begin in the order in which they came. A job that failed goes behind those that wait.
pub trait Queue: Send + Sync + 'static {
    /// How long a worker has for one try.
    fn lease(&self) -> Duration;

    /// Takes a job in. When this returns it survives whatever the queue survives.
    ///
    /// # Errors
    /// `queue_full` ([`Kind::Overloaded`](coze_core::Kind::Overloaded)), `queue_unavailable`
    /// ([`Kind::Unavailable`](coze_core::Kind::Unavailable)), or `job_invalid` ([`Kind::Invalid`](coze_core::Kind::Invalid)): the id
    /// is empty or longer than [`MAX_ID`], or the payload larger than [`MAX_PAYLOAD`].
    fn push(&self, job: Job) -> impl Future<Output = Result<Pushed, Error>> + Send;

    /// Waits for a job. Nothing is lost if the future is dropped: at worst the job waits for the end of its lease.
    ///
    /// # Errors
    /// `queue_unavailable`.
    fn take(&self) -> impl Future<Output = Result<Taken, Error>> + Send;

    /// Says how a try ended. Of a job whose lease is over and that somebody else has this changes nothing.
    ///
    /// # Errors
    /// `queue_unavailable`. Then it may be said again.
    fn finish(&self, taken: &Taken, end: End) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Refuses what no queue takes.
fn check(job: &Job) -> Result<(), Error> {
    if (1..=MAX_ID).contains(&job.id.len()) && job.payload.len() <= MAX_PAYLOAD {
        return Ok(());
    }
    Err(Error::new(coze_core::Kind::Invalid, "job_invalid")
        .with_message(format!("a job has an id of 1 to {MAX_ID} bytes and a payload of at most {MAX_PAYLOAD} bytes")))
}

fn full(capacity: usize) -> Error {
    Error::new(coze_core::Kind::Overloaded, "queue_full")
        .with_message(format!("{capacity} jobs wait already"))
        .with_retry_after(Duration::from_secs(1))
}

#[cfg(any(feature = "kafka", feature = "redis"))]
fn unavailable(source: impl Into<coze_core::BoxError>) -> Error {
    Error::new(coze_core::Kind::Unavailable, "queue_unavailable")
        .with_message("the queue cannot be reached")
        .with_source(source)
}

/// Tells of a job that is given up, wherever that is decided.
fn give_up(id: &str, attempt: u32, reason: &str) {
    tracing::error!(job = id, attempt, reason, "a queued job is given up");
}
