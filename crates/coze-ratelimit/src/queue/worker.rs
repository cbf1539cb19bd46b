use std::{future::Future, sync::Arc, time::Duration};

use coze_core::{Error, Kind, Retry};
use tokio::{
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};

use super::{End, Job, Queue, Taken};

/// The first and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How often it is said how a try ended, before that is left to the end of the lease.
const FINISHES: u32 = 5;

/// Works a queue off. See the crate docs for what is done how often.
///
/// ```
/// use bytes::Bytes;
/// use coze_core::Error;
/// use coze_ratelimit::{Job, MemoryQueue, Queue, Worker};
/// use tokio::sync::oneshot;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let queue = MemoryQueue::new(1000);
/// queue.push(Job { id: "m1".to_owned(), payload: Bytes::from_static(b"hello") }).await?;
///
/// let (done, stop) = oneshot::channel();
/// let done = std::sync::Mutex::new(Some(done));
/// let answer = move |job: Job| {
///     assert_eq!(job.payload, "hello");
///     let done = done.lock().ok().and_then(|mut done| done.take());
///     async move {
///         let _ = done.map(|done| done.send(()));
///         Ok(())
///     }
/// };
/// Worker::new(queue.clone()).run(answer, async { _ = stop.await }).await;
/// assert!(queue.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Worker<Q> {
    queue: Arc<Q>,
    lanes: usize,
}

impl<Q: Queue> Worker<Q> {
    /// Does one job after the other.
    #[must_use]
    pub fn new(queue: Q) -> Self {
        Self { queue: Arc::new(queue), lanes: 1 }
    }

    /// How many jobs are done at the same time, at least one; one unless set.
    #[must_use]
    pub fn lanes(self, lanes: usize) -> Self {
        Self { lanes: lanes.max(1), ..self }
    }

    /// Hands each job to `handler`, in a task of its own, until `stop` ends; then what was begun is finished. Dropping the future
    /// gives up at once: another worker gets the jobs when their leases are over.
    ///
    /// An error of the handler that [may pass](Error::retry) has the job tried again, after [`Error::retry_after`] or a growing pause of
    /// this lane; so has a panic, and a try that takes longer than the lease. Any other error is final.
    pub async fn run<H, F>(self, handler: H, stop: impl Future<Output = ()>)
    where
        H: Fn(Job) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let (stopping, stopped) = tokio::sync::watch::channel(());
        let handler = Arc::new(handler);
        let mut lanes: JoinSet<()> = JoinSet::new();
        for _ in 0..self.lanes {
            let (queue, handler, mut stopped) = (self.queue.clone(), handler.clone(), stopped.clone());
            lanes.spawn(async move {
                let stopped = async move { while stopped.changed().await.is_ok() {} };
                lane(&*queue, &*handler, stopped).await;
            });
        }
        drop(stopped);
        stop.await;
        drop(stopping);
        while lanes.join_next().await.is_some() {}
    }
}

/// One job after the other, until `stopped`.
async fn lane<Q, H, F>(queue: &Q, handler: &H, stopped: impl Future<Output = ()>)
where
    Q: Queue,
    H: Fn(Job) -> F,
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let mut stopped = std::pin::pin!(stopped);
    let mut failures = 0;
    loop {
        let taken = tokio::select! {
            biased;
            () = &mut stopped => return,
            taken = queue.take() => taken,
        };
        let wait = match taken {
            Ok(taken) => {
                failures = 0;
                attempt(queue, handler, taken).await
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(error = ?error, "no jobs can be taken from the queue");
                }
                failures += 1;
                Some(pause(failures))
            }
        };
        if let Some(wait) = wait {
            tokio::select! {
                () = &mut stopped => return,
                () = sleep(wait) => {}
            }
        }
    }
}

/// One try at a job; how long to wait then before the next one.
async fn attempt<Q, H, F>(queue: &Q, handler: &H, taken: Taken) -> Option<Duration>
where
    Q: Queue,
    H: Fn(Job) -> F,
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    // In a set of its own: a panic ends no more than the try, and so does dropping this future.
    let mut tries = JoinSet::new();
    tries.spawn(handler(taken.job.clone()));
    let ended = timeout(queue.lease(), tries.join_next()).await;
    drop(tries);
    let (end, wait) = match ended.map(|ended| flat(ended.expect("one was spawned"))) {
        Ok(Ok(())) => (End::Done, None),
        Ok(Err(error)) => {
            tracing::warn!(job = taken.job.id, attempt = taken.attempt, error = ?error, "a queued job failed");
            match error.retry() {
                Retry::Never => (End::Dead(error.reason()), None),
                _ => (End::Again(error.reason()), Some(error.retry_after().unwrap_or_else(|| pause(taken.attempt)))),
            }
        }
        Err(_) => {
            tracing::warn!(job = taken.job.id, attempt = taken.attempt, "a queued job took longer than its lease");
            (End::Again("job_timeout"), Some(pause(taken.attempt)))
        }
    };
    for failures in 1..=FINISHES {
        match queue.finish(&taken, end).await {
            Ok(()) => break,
            Err(error) if failures == FINISHES => {
                tracing::error!(job = taken.job.id, error = ?error, "how a queued job ended could not be stored");
            }
            Err(_) => sleep(pause(failures)).await,
        }
    }
    wait
}

fn flat(ended: Result<Result<(), Error>, JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "job_panicked").with_retry(Retry::IfIdempotent)))
}

/// Doubles with each failure.
fn pause(failures: u32) -> Duration {
    PAUSE.0.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE.1)
}
