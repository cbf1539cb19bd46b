//! The clients of librdkafka, which have threads of their own: what they tell is noted, and whoever waits for it is woken.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        mpsc::{Receiver, Sender},
    },
    time::Duration,
};

use bytes::Bytes;
use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
    producer::{DeliveryResult, ProducerContext},
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{super::Job, held::Held};

/// Between two looks of the thread at whether it is still needed.
const POLL: Duration = Duration::from_millis(100);
/// The header with the number of tries at a job that are over.
pub(super) const TRIES: &str = "tries";

/// A partition, and the first offset in it that is not done.
pub(super) type Commit = (i32, i64);

/// What the threads tell.
#[derive(Debug)]
pub(super) struct Told {
    state: Mutex<State>,
    pub(super) changed: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) held: Held,
    /// How many jobs wait or run as far as is known here, and when that was looked up.
    pub(super) backlog: (i64, Option<Instant>),
    /// Commits that failed, and why the last one did.
    pub(super) failures: u64,
    pub(super) failure: Option<KafkaError>,
    pub(super) is_away: bool,
    /// What keeps jobs from coming: told to one `take`, or to each if it stays.
    trouble: Option<KafkaError>,
}

impl State {
    pub(super) fn trouble(&mut self) -> Option<KafkaError> {
        if self.is_away {
            return Some(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown));
        }
        match &self.trouble {
            Some(KafkaError::MessageConsumptionFatal(_)) => self.trouble.clone(),
            _ => self.trouble.take(),
        }
    }
}

impl Told {
    pub(super) fn new(capacity: usize) -> Self {
        let held = Held::new(capacity);
        let state = State { held, backlog: (0, None), failures: 0, failure: None, is_away: false, trouble: None };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding the jobs")
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }
}

/// Hears from the consumer, in the thread that polls it.
#[derive(Debug)]
pub(super) struct Hear(pub(super) Arc<Told>);

impl ClientContext for Hear {}

impl ConsumerContext for Hear {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.0.tell(|state| match rebalance {
            Rebalance::Assign(list) => list.elements().iter().for_each(|e| state.held.assign(e.partition())),
            Rebalance::Revoke(list) => list.elements().iter().for_each(|e| state.held.revoke(e.partition())),
            Rebalance::Error(error) => state.trouble = Some(error.clone()),
        });
    }
}

/// Tells whoever pushed what became of it.
#[derive(Debug)]
pub(super) struct Delivered;

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = Box<oneshot::Sender<KafkaResult<()>>>;

    fn delivery(&self, result: &DeliveryResult<'_>, told: Self::DeliveryOpaque) {
        let _ = told.send(result.as_ref().map(drop).map_err(|(error, _)| error.clone()));
    }
}

/// The settings of the two clients: what the semantics rest on, whatever was said, and what goes unless something else was said.
pub(super) fn settings(config: &ClientConfig, name: &str) -> (ClientConfig, ClientConfig) {
    let with = |unless: &[(&str, &str)], always: &[(&str, &str)]| {
        let mut with = config.clone();
        let unset = unless.iter().filter(|(key, _)| config.get(key).is_none());
        unset.chain(always).for_each(|(key, value)| _ = with.set(*key, *value));
        with
    };
    let both = [("message.max.bytes", "2097152"), ("reconnect.backoff.max.ms", "1000")];
    let producer = [("linger.ms", "0"), ("queue.buffering.max.kbytes", "65536"), ("message.timeout.ms", "5000")];
    let consumer = [("queued.min.messages", "64"), ("queued.max.messages.kbytes", "16384")];
    let consumer = with(
        &[&both[..], &consumer].concat(),
        &[
            ("group.id", &format!("{name}.workers")),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
            // What does not move to another process goes on while the others move.
            ("partition.assignment.strategy", "cooperative-sticky"),
        ],
    );
    (with(&[&both[..], &producer].concat(), &[("enable.idempotence", "true")]), consumer)
}

/// Fetches jobs until nobody needs them.
pub(super) fn poll(
    consumer: &BaseConsumer<Hear>,
    needed: &Weak<()>,
    commits: &Sender<Commit>,
    topic: &str,
    timeout: Duration,
) {
    let told = &consumer.context().0;
    if let Err(error) = consumer.subscribe(&[topic]) {
        told.tell(|state| state.trouble = Some(error));
    }
    while needed.strong_count() > 0 {
        match consumer.poll(POLL) {
            None => {}
            Some(Ok(message)) => arrive(consumer, commits, &message),
            Some(Err(error)) => told.tell(|state| match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::AllBrokersDown) => state.is_away = true,
                // What it gets over by itself: a broker that is gone while others are there.
                Some(
                    RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::Resolve
                    | RDKafkaErrorCode::OperationTimedOut,
                ) => {}
                _ => state.trouble = Some(error),
            }),
        }
        let is_away = told.state().is_away;
        if is_away && consumer.fetch_metadata(Some(topic), timeout).is_ok() {
            told.tell(|state| state.is_away = false);
        }
    }
}

fn arrive(consumer: &BaseConsumer<Hear>, commits: &Sender<Commit>, message: &BorrowedMessage<'_>) {
    let told = &consumer.context().0;
    let (partition, id) = (message.partition(), message.key().unwrap_or_default());
    let job = Job {
        id: String::from_utf8_lossy(id).into_owned(),
        payload: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
    };
    told.tell(|state| {
        // Nobody waits for either: what fails is made good by the next one.
        if !state.held.arrive((partition, message.offset()), job, tries(message))
            && let Some(position) = state.held.to_store(partition)
        {
            let _ = commits.send((partition, position));
        }
        // While nobody can say otherwise: what is said here and what librdkafka does are not to part.
        if state.held.pause()
            && let Ok(all) = consumer.assignment()
        {
            let _ = consumer.pause(&all);
        }
    });
}

/// Stores how far partitions are done, as long as somebody may ask for it: of what was asked for meanwhile the furthest.
///
/// In a thread of its own, because librdkafka tells the outcome of a commit only to whoever blocks.
pub(super) fn commit(consumer: &BaseConsumer<Hear>, commits: &Receiver<Commit>, topic: &str) {
    while let Ok(first) = commits.recv() {
        let mut furthest = HashMap::from([first]);
        for (partition, position) in commits.try_iter() {
            let known = furthest.entry(partition).or_insert(position);
            *known = position.max(*known);
        }
        for (partition, position) in furthest {
            let mut list = TopicPartitionList::new();
            let outcome = list
                .add_partition_offset(topic, partition, Offset::Offset(position))
                .and_then(|()| consumer.commit(&list, CommitMode::Sync));
            consumer.context().0.tell(|state| match outcome {
                Ok(()) => state.backlog.0 -= state.held.stored(partition, position),
                Err(error) => (state.failures, state.failure) = (state.failures + 1, Some(error)),
            });
        }
    }
}

fn tries(message: &BorrowedMessage<'_>) -> u32 {
    let value = message.headers().and_then(|headers| headers.iter().find(|header| header.key == TRIES)?.value);
    value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0)
}

/// How many jobs of the topic wait or run. Blocks for as long as the time.
pub(super) fn backlog(consumer: &BaseConsumer<Hear>, topic: &str, time: Duration) -> KafkaResult<i64> {
    let began = Instant::now();
    let left = || time.saturating_sub(began.elapsed());
    let metadata = consumer.fetch_metadata(Some(topic), left())?;
    let mut list = TopicPartitionList::new();
    for found in metadata.topics() {
        if let Some(error) = found.error() {
            return Err(KafkaError::MetadataFetch(error.into()));
        }
        found.partitions().iter().for_each(|partition| _ = list.add_partition(topic, partition.id()));
    }
    let mut count = 0;
    for element in consumer.committed_offsets(list, left())?.elements() {
        let (low, high) = consumer.fetch_watermarks(topic, element.partition(), left())?;
        count += high - element.offset().to_raw().unwrap_or(low).clamp(low, high);
    }
    Ok(count)
}
