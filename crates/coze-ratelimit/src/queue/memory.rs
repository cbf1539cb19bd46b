use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use coze_core::Error;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{Dead, End, Job, Pushed, Queue, Taken, check, full, give_up};

/// Jobs that were done or given up, and are remembered.
const MAX_DEAD: usize = 1000;

/// A queue in the memory of this process, which ends with it. Clones share the jobs.
#[derive(Clone)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
    capacity: usize,
    lease: Duration,
    tries: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Somebody who waits for a job should look again.
    arrived: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Job, u32)>,
    /// By number: the job, which try it is, and when its lease is over.
    running: HashMap<u64, (Job, u32, Instant)>,
    next: u64,
    /// The ids of all that waits, runs, or was done lately.
    known: HashSet<String>,
    /// The ids of what was done, in that order: the oldest are forgotten.
    done: VecDeque<String>,
    dead: VecDeque<Dead>,
}

impl MemoryQueue {
    /// A queue in which at most `capacity` jobs wait or run; as many that are done are remembered by their ids.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { shared: Arc::default(), capacity, lease: Duration::from_secs(150), tries: 5 }
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

    /// How many jobs wait or run.
    #[must_use]
    pub fn len(&self) -> usize {
        let state = self.state();
        state.waiting.len() + state.running.len()
    }

    /// Whether no job waits or runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was given up, at most the latest 1000, the oldest first.
    #[must_use]
    pub fn dead(&self) -> Vec<Dead> {
        self.state().dead.iter().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("nobody panics while holding the jobs")
    }
}

impl State {
    /// The next job, or when the next lease is over.
    fn next(&mut self, now: Instant, lease: Duration, tries: u32) -> Result<Taken, Option<Instant>> {
        let over = |running: &HashMap<_, (Job, u32, Instant)>| {
            running.iter().map(|(number, (_, _, end))| (*end, *number)).min().filter(|(end, _)| *end <= now)
        };
        while let Some((_, number)) = over(&self.running) {
            let (job, attempt, _) = self.running.remove(&number).expect("just seen");
            match attempt >= tries {
                true => self.bury(job, attempt, "job_lost"),
                false => return Ok(self.run(job, attempt + 1, now + lease)),
            }
        }
        match self.waiting.pop_front() {
            Some((job, attempt)) => Ok(self.run(job, attempt, now + lease)),
            None => Err(self.running.values().map(|(_, _, end)| *end).min()),
        }
    }

    fn run(&mut self, job: Job, attempt: u32, end: Instant) -> Taken {
        self.next += 1;
        self.running.insert(self.next, (job.clone(), attempt, end));
        Taken { job, attempt, entry: self.next.to_string() }
    }

    fn bury(&mut self, job: Job, attempt: u32, reason: &str) {
        give_up(&job.id, attempt, reason);
        // Whoever sends it again wants it tried again.
        self.known.remove(&job.id);
        if self.dead.len() == MAX_DEAD {
            self.dead.pop_front();
        }
        self.dead.push_back(Dead { job, reason: reason.to_owned() });
    }
}

impl Queue for MemoryQueue {
    fn lease(&self) -> Duration {
        self.lease
    }

    async fn push(&self, job: Job) -> Result<Pushed, Error> {
        check(&job)?;
        let mut state = self.state();
        if state.known.contains(&job.id) {
            return Ok(Pushed::Known);
        }
        if state.waiting.len() + state.running.len() >= self.capacity {
            return Err(full(self.capacity));
        }
        state.known.insert(job.id.clone());
        state.waiting.push_back((job, 1));
        drop(state);
        self.shared.arrived.notify_one();
        Ok(Pushed::Queued)
    }

    async fn take(&self) -> Result<Taken, Error> {
        loop {
            let arrived = self.shared.arrived.notified();
            let taken = self.state().next(Instant::now(), self.lease, self.tries);
            match taken {
                Ok(taken) => {
                    // What was notified may have been more than one job.
                    self.shared.arrived.notify_one();
                    return Ok(taken);
                }
                Err(None) => arrived.await,
                Err(Some(end)) => tokio::select! {
                    () = arrived => {}
                    () = sleep_until(end) => {}
                },
            }
        }
    }

    async fn finish(&self, taken: &Taken, end: End) -> Result<(), Error> {
        let mut state = self.state();
        let number = taken.entry.parse().unwrap_or_default();
        let Some((job, attempt, _)) = state.running.remove(&number) else { return Ok(()) };
        match end {
            End::Done => {
                if state.done.len() >= self.capacity.max(1)
                    && let Some(oldest) = state.done.pop_front()
                {
                    state.known.remove(&oldest);
                }
                state.done.push_back(job.id);
            }
            End::Again(reason) if attempt >= self.tries => state.bury(job, attempt, reason),
            End::Again(_) => state.waiting.push_back((job, attempt + 1)),
            End::Dead(reason) => state.bury(job, attempt, reason),
        }
        drop(state);
        self.shared.arrived.notify_one();
        Ok(())
    }
}

impl fmt::Debug for MemoryQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryQueue")
            .field("capacity", &self.capacity)
            .field("lease", &self.lease)
            .field("tries", &self.tries)
            .finish_non_exhaustive()
    }
}
