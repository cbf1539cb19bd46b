mod client;
mod held;

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard,
        mpsc::{self, Sender},
    },
    thread,
    time::Duration,
};

use coze_core::{Error, Kind};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, ThreadedProducer},
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use self::{
    client::{Commit, Delivered, Hear, TRIES, Told},
    held::Next,
};
use super::{End, Job, Pushed, Queue, Taken, check, full, give_up, unavailable};

/// How long it is believed how many jobs there are, as far as others push and do them.
const BELIEVED: Duration = Duration::from_secs(1);

/// A queue in a topic of Kafka (2.4 or newer), shared by all processes that name it. Clones share the connections.
///
/// The topics `NAME.jobs` and `NAME.dead` are to be there, both with a `max.message.bytes` of at least 1 100 000; the second keeps
/// what was given up, with the headers `tries` and `reason`, for as long as its retention says. The workers are the consumer group
/// `NAME.workers`: at most as many processes work as `NAME.jobs` has partitions, and jobs begin in order in each partition. How many
/// partitions it has is not to change while jobs wait, as copies of a job would no longer meet.
///
/// A job is stored as done (its offset is committed) when it and all before it in its partition are done, given up, or pushed once
/// more for their next try. Kafka looks up no id, so what is known is what **this process** pushed within the last
/// [lease](Queue::lease), has in hand, or has done, each for at most as many ids as the capacity. Copies of a job that different
/// processes pushed meet in one partition, so at one worker, which does them once: unless it did as many others in between, or the
/// partition went to another process. That one also does again what was not stored yet, and does not know how often it was tried.
#[derive(Clone)]
pub struct KafkaQueue {
    shared: Arc<Shared>,
    lease: Duration,
    tries: u32,
}

struct Shared {
    told: Arc<Told>,
    producer: ThreadedProducer<Delivered>,
    consumer: Arc<BaseConsumer<Hear>>,
    /// Where the jobs are, and where what was given up.
    topics: [String; 2],
    capacity: usize,
    timeout: Duration,
    looking: tokio::sync::Mutex<()>,
    begun: Mutex<Option<Begun>>,
}

/// What ends the threads when it goes.
struct Begun {
    _needed: Arc<()>,
    commits: Sender<Commit>,
}

impl KafkaQueue {
    /// The queue of this name, in which at most `capacity` jobs wait or run, up to what several processes push within a second.
    ///
    /// `config` says where the brokers are (`bootstrap.servers`) and all else that librdkafka knows, except what the queue rests on
    /// (such as the group, and who commits). Each call has its `message.timeout.ms`, 5 seconds unless set. Nothing is sent before
    /// the first call, and nothing fetched before the first [`take`](Queue::take).
    ///
    /// # Errors
    /// `queue_config` ([`Kind::Invalid`]): librdkafka does not accept a setting.
    pub fn new(config: &ClientConfig, name: &str, capacity: usize) -> Result<Self, Error> {
        let (producing, consuming) = client::settings(config, name);
        let told = Arc::new(Told::new(capacity));
        let timeout = producing.get("message.timeout.ms").and_then(|time| time.parse().ok()).unwrap_or(5000);
        let shared = Shared {
            producer: producing.create_with_context(Delivered).map_err(|error| invalid(&error))?,
            consumer: Arc::new(consuming.create_with_context(Hear(told.clone())).map_err(|error| invalid(&error))?),
            told,
            topics: ["jobs", "dead"].map(|part| format!("{name}.{part}")),
            capacity,
            timeout: Duration::from_millis(timeout),
            looking: tokio::sync::Mutex::default(),
            begun: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), lease: Duration::from_secs(150), tries: 5 })
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

    /// How many jobs wait or run, by how far the partitions are stored as done.
    ///
    /// # Errors
    /// `queue_unavailable`.
    pub async fn len(&self) -> Result<usize, Error> {
        let shared = self.shared.clone();
        let look =
            tokio::task::spawn_blocking(move || client::backlog(&shared.consumer, &shared.topics[0], shared.timeout));
        let count = match timeout(self.shared.timeout, look).await {
            Ok(Ok(count)) => count.map_err(unavailable)?,
            Ok(Err(stopped)) => return Err(unavailable(stopped)),
            Err(late) => return Err(unavailable(late)),
        };
        self.shared.told.state().backlog = (count, Some(Instant::now()));
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Whether no job waits or runs.
    ///
    /// # Errors
    /// `queue_unavailable`.
    pub async fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len().await? == 0)
    }

    /// Whether one more fits, as far as is known here, and since when; what is not known is looked up by one at a time.
    async fn has_room(&self) -> Result<bool, Error> {
        let began = Instant::now();
        let capacity = i64::try_from(self.shared.capacity).unwrap_or(i64::MAX);
        let has_room = |believed: Instant| {
            let (count, looked) = self.shared.told.state().backlog;
            match looked {
                // That it is full is believed to nobody who looked before: others may have done something.
                Some(looked) if count >= capacity => (looked >= began).then_some(false),
                Some(looked) => (looked >= believed).then_some(true),
                None => None,
            }
        };
        let believed = began.checked_sub(BELIEVED).unwrap_or(began);
        if let Some(known) = has_room(believed) {
            return Ok(known);
        }
        let _one = self.shared.looking.lock().await;
        match has_room(believed) {
            Some(known) => Ok(known),
            None => Ok(self.len().await? < self.shared.capacity),
        }
    }

    async fn produce(&self, topic: &str, job: &Job, tries: u32, reason: Option<&str>) -> Result<(), Error> {
        let tries = tries.to_string();
        let mut headers = OwnedHeaders::new().insert(Header { key: TRIES, value: Some(&tries) });
        if reason.is_some() {
            headers = headers.insert(Header { key: "reason", value: reason });
        }
        let (told, delivered) = oneshot::channel();
        let record = BaseRecord::with_opaque_to(topic, Box::new(told));
        let record = record.key(job.id.as_bytes()).payload(&job.payload[..]).headers(headers);
        self.shared.producer.send(record).map_err(|(error, _)| unavailable(error))?;
        // The producer gives up after the same time.
        match timeout(self.shared.timeout, delivered).await {
            Ok(Ok(outcome)) => outcome.map_err(unavailable),
            Ok(Err(_)) => Err(unavailable(KafkaError::Canceled)),
            Err(late) => Err(unavailable(late)),
        }
    }

    /// Stores how far a partition is done, if that is new and nobody else has it.
    async fn store(&self, partition: i32) -> Result<(), Error> {
        let shared = &*self.shared;
        let end = Instant::now() + shared.timeout;
        let (position, failures) = {
            let state = shared.told.state();
            let Some(position) = state.held.to_store(partition) else { return Ok(()) };
            (position, state.failures)
        };
        if let Some(begun) = &*shared.begun() {
            begun.commits.send((partition, position)).map_err(unavailable)?;
        }
        loop {
            let mut changed = pin!(shared.told.changed.notified());
            changed.as_mut().enable();
            {
                let state = shared.told.state();
                if state.held.is_stored(partition, position) {
                    return Ok(());
                }
                if state.failures > failures {
                    return Err(unavailable(state.failure.clone().unwrap_or(KafkaError::Canceled)));
                }
            }
            timeout_at(end, changed).await.map_err(unavailable)?;
        }
    }

    /// Fetches from now on, in threads that end with the queue.
    fn begin(&self) -> Result<(), Error> {
        let shared = &*self.shared;
        let mut begun = shared.begun();
        if begun.is_some() {
            return Ok(());
        }
        let (needed, (commits, committed)) = (Arc::new(()), mpsc::channel());
        let spawn = |what: Box<dyn FnOnce() + Send>| thread::Builder::new().name("kafka-queue".to_owned()).spawn(what);
        let (consumer, topic) = (shared.consumer.clone(), shared.topics[0].clone());
        spawn(Box::new(move || client::commit(&consumer, &committed, &topic))).map_err(unavailable)?;
        let (consumer, topic, time) = (shared.consumer.clone(), shared.topics[0].clone(), shared.timeout);
        let (watched, also) = (Arc::downgrade(&needed), commits.clone());
        spawn(Box::new(move || client::poll(&consumer, &watched, &also, &topic, time))).map_err(unavailable)?;
        *begun = Some(Begun { _needed: needed, commits });
        Ok(())
    }
}

impl Shared {
    fn begun(&self) -> MutexGuard<'_, Option<Begun>> {
        self.begun.lock().expect("nobody panics while beginning")
    }
}

impl Queue for KafkaQueue {
    fn lease(&self) -> Duration {
        self.lease
    }

    async fn push(&self, job: Job) -> Result<Pushed, Error> {
        check(&job)?;
        let told = &self.shared.told;
        if told.state().held.is_known(&job.id) {
            return Ok(Pushed::Known);
        }
        if !self.has_room().await? {
            return Err(full(self.shared.capacity));
        }
        {
            let mut state = told.state();
            if state.held.is_known(&job.id) {
                return Ok(Pushed::Known);
            }
            state.held.push(&job.id, Instant::now(), self.lease);
            state.backlog.0 += 1;
        }
        let mut undo = Undo { told, id: Some(&job.id) };
        self.produce(&self.shared.topics[0], &job, 0, None).await?;
        undo.id = None;
        Ok(Pushed::Queued)
    }

    async fn take(&self) -> Result<Taken, Error> {
        self.begin()?;
        let shared = &*self.shared;
        loop {
            let mut changed = pin!(shared.told.changed.notified());
            changed.as_mut().enable();
            let next = {
                let mut state = shared.told.state();
                if let Some(error) = state.trouble() {
                    return Err(unavailable(error));
                }
                let next = state.held.next(Instant::now(), self.lease);
                if state.held.resume()
                    && let Ok(all) = shared.consumer.assignment()
                {
                    let _ = shared.consumer.resume(&all);
                }
                next
            };
            match next {
                Next::Do(taken) => return Ok(taken),
                Next::HandOn(taken) => self.finish(&taken, End::Again("job_lost")).await?,
                Next::Wait(None) => changed.await,
                Next::Wait(Some(end)) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(end) => {}
                },
            }
        }
    }

    async fn finish(&self, taken: &Taken, end: End) -> Result<(), Error> {
        let (shared, number) = (&*self.shared, taken.entry.parse().unwrap_or_default());
        let (running, is_ours) = {
            let state = shared.told.state();
            let Some(running) = state.held.running(number) else { return Ok(()) };
            let is_ours = state.held.is_open(running.place);
            (running, is_ours)
        };
        let is_last = running.attempt >= self.tries;
        if !running.is_over {
            match end {
                End::Done => {}
                _ if !is_ours => {}
                End::Again(_) if !is_last => {
                    self.produce(&shared.topics[0], &running.job, running.attempt, None).await?;
                    shared.told.state().backlog.0 += 1;
                }
                End::Again(reason) | End::Dead(reason) => {
                    self.produce(&shared.topics[1], &running.job, running.attempt, Some(reason)).await?;
                    give_up(&running.job.id, running.attempt, reason);
                }
            }
            shared.told.state().held.end(number, end, is_last);
        }
        self.store(running.place.0).await?;
        shared.told.state().held.forget(number);
        Ok(())
    }
}

/// Forgets what was to be pushed, if that failed or nobody waited for it: whoever sends it again wants it done.
struct Undo<'a> {
    told: &'a Told,
    id: Option<&'a str>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut state = self.told.state();
            state.held.forget_push(id);
            state.backlog.0 -= 1;
        }
    }
}

impl fmt::Debug for KafkaQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaQueue")
            .field("topics", &self.shared.topics)
            .field("capacity", &self.shared.capacity)
            .field("lease", &self.lease)
            .field("tries", &self.tries)
            .finish_non_exhaustive()
    }
}

/// Not the error itself, which repeats the value: that may be a password.
fn invalid(error: &KafkaError) -> Error {
    let message = match error {
        KafkaError::ClientConfig(_, _, key, _) => format!("the setting {key} is not accepted"),
        _ => "the settings do not make a client".to_owned(),
    };
    Error::new(Kind::Invalid, "queue_config").with_message(message)
}
