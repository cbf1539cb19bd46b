//! What a process has in hand of a topic, without a broker: what waits, what runs, what is known, and how far each partition is done.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::super::{End, Job, Taken};

/// As many jobs are in hand before no more are fetched, and they are fetched again from half as many on.
const HELD: usize = 64;

/// A partition, and an offset in it.
pub(super) type Place = (i32, i64);

#[derive(Debug)]
pub(super) struct Held {
    waiting: VecDeque<(Place, Job, u32)>,
    running: HashMap<u64, Running>,
    next: u64,
    partitions: HashMap<i32, Partition>,
    known: HashMap<String, Known>,
    /// The ids of what was done, and of what was pushed, each in that order: the oldest are forgotten.
    done: VecDeque<String>,
    pushed: VecDeque<(Instant, String)>,
    capacity: usize,
    is_paused: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) place: Place,
    pub(super) job: Job,
    pub(super) attempt: u32,
    /// It is said how it ended; that it is done is not stored yet.
    pub(super) is_over: bool,
    lease: Instant,
}

#[derive(Debug, Default)]
struct Partition {
    /// The offsets that came and are not done.
    open: BTreeSet<i64>,
    /// Behind the last one that came.
    end: i64,
    /// What Kafka has as the first that is not done.
    stored: i64,
    has_begun: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Known {
    /// From here, and it did not come here yet.
    Pushed,
    /// It waits or runs here, with so many tries behind it, or waits in this partition for its next.
    Open(u32, i32),
    Done,
}

/// What is to be done now.
#[derive(Debug)]
pub(super) enum Next {
    Do(Taken),
    /// The lease of this try is over: it is to be handed on.
    HandOn(Taken),
    /// Nothing, until something comes or until this time.
    Wait(Option<Instant>),
}

impl Held {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: HashMap::new(),
            next: 0,
            partitions: HashMap::new(),
            known: HashMap::new(),
            done: VecDeque::new(),
            pushed: VecDeque::new(),
            capacity: capacity.max(1),
            is_paused: false,
        }
    }

    pub(super) fn is_known(&self, id: &str) -> bool {
        self.known.contains_key(id)
    }

    /// What is pushed from here is known for a lease, in which it comes to somebody, or until it comes here.
    pub(super) fn push(&mut self, id: &str, now: Instant, lease: Duration) {
        while self.pushed.front().is_some_and(|(at, _)| *at + lease <= now) || self.pushed.len() >= self.capacity {
            let Some((_, id)) = self.pushed.pop_front() else { break };
            self.forget_push(&id);
        }
        self.known.insert(id.to_owned(), Known::Pushed);
        self.pushed.push_back((now, id.to_owned()));
    }

    pub(super) fn forget_push(&mut self, id: &str) {
        if self.known.get(id) == Some(&Known::Pushed) {
            self.known.remove(id);
        }
    }

    pub(super) fn assign(&mut self, partition: i32) {
        self.partitions.entry(partition).or_default();
    }

    /// Forgets what waits of a partition that is somebody else's now. What runs goes on: that it was done is remembered.
    pub(super) fn revoke(&mut self, partition: i32) {
        self.partitions.remove(&partition);
        self.waiting.retain(|(place, ..)| place.0 != partition);
        let running: BTreeSet<&str> = self.running.values().map(|running| running.job.id.as_str()).collect();
        self.known
            .retain(|id, known| !matches!(known, Known::Open(_, p) if *p == partition) || running.contains(&**id));
    }

    /// A job that came. Answers whether it is one to do; a second copy is not, and counts as done.
    pub(super) fn arrive(&mut self, place: Place, job: Job, tries: u32) -> bool {
        let Some(partition) = self.partitions.get_mut(&place.0) else { return false };
        if !partition.has_begun {
            (partition.has_begun, partition.stored) = (true, place.1);
        }
        partition.end = place.1 + 1;
        if self.running.values().any(|running| running.place == place && !running.is_over) {
            // Its partition went away and came back while it ran.
            partition.open.insert(place.1);
            return true;
        }
        let is_copy = match self.known.get(&job.id) {
            Some(Known::Done) => true,
            Some(Known::Open(known, _)) => tries <= *known,
            Some(Known::Pushed) | None => false,
        };
        if is_copy {
            return false;
        }
        partition.open.insert(place.1);
        self.known.insert(job.id.clone(), Known::Open(tries, place.0));
        self.waiting.push_back((place, job, tries));
        true
    }

    /// Whether so much is in hand that no more is to be fetched; true each time that something came in spite of it.
    pub(super) fn pause(&mut self) -> bool {
        self.is_paused |= self.waiting.len() >= HELD;
        self.is_paused
    }

    /// Whether to fetch again, which is said once.
    pub(super) fn resume(&mut self) -> bool {
        let again = self.is_paused && self.waiting.len() <= HELD / 2;
        self.is_paused &= !again;
        again
    }

    pub(super) fn next(&mut self, now: Instant, lease: Duration) -> Next {
        loop {
            let first = self.running.iter().map(|(number, running)| (running.lease, *number)).min();
            let Some((_, number)) = first.filter(|(end, _)| *end <= now) else {
                let Some((place, job, tries)) = self.waiting.pop_front() else {
                    return Next::Wait(first.map(|(end, _)| end));
                };
                return Next::Do(self.run(Running {
                    place,
                    job,
                    attempt: tries + 1,
                    is_over: false,
                    lease: now + lease,
                }));
            };
            let mut running = self.running.remove(&number).expect("just seen");
            if running.is_over {
                continue;
            }
            if self.is_open(running.place) {
                // Under another number, so that what its worker says too late is nobody's.
                running.lease = now + lease;
                return Next::HandOn(self.run(running));
            }
            self.known.remove(&running.job.id);
        }
    }

    fn run(&mut self, running: Running) -> Taken {
        self.next += 1;
        let taken = Taken { job: running.job.clone(), attempt: running.attempt, entry: self.next.to_string() };
        self.running.insert(self.next, running);
        taken
    }

    pub(super) fn running(&self, number: u64) -> Option<Running> {
        self.running.get(&number).cloned()
    }

    /// Whether this place is ours, and not done.
    pub(super) fn is_open(&self, place: Place) -> bool {
        self.partitions.get(&place.0).is_some_and(|partition| partition.open.contains(&place.1))
    }

    /// Notes how a try ended. What is to be tried again was pushed before as a copy of its own.
    pub(super) fn end(&mut self, number: u64, end: End, is_last: bool) {
        let Some(running) = self.running.get_mut(&number) else { return };
        running.is_over = true;
        let (place, id) = (running.place, running.job.id.clone());
        let was_open = self.partitions.get_mut(&place.0).is_some_and(|partition| partition.open.remove(&place.1));
        match end {
            End::Done => {
                if self.done.len() >= self.capacity
                    && let Some(oldest) = self.done.pop_front()
                {
                    self.known.remove(&oldest);
                }
                self.known.insert(id.clone(), Known::Done);
                self.done.push_back(id);
            }
            End::Again(_) if !is_last && was_open => {}
            // Whoever sends it again wants it tried again.
            End::Again(_) | End::Dead(_) => _ = self.known.remove(&id),
        }
    }

    pub(super) fn forget(&mut self, number: u64) {
        self.running.remove(&number);
    }

    /// The first offset of a partition that is not done, if it is ours and Kafka does not have it.
    pub(super) fn to_store(&self, partition: i32) -> Option<i64> {
        let partition = self.partitions.get(&partition)?;
        let position = partition.open.first().copied().unwrap_or(partition.end);
        (position > partition.stored).then_some(position)
    }

    pub(super) fn is_stored(&self, partition: i32, position: i64) -> bool {
        self.partitions.get(&partition).is_none_or(|partition| partition.stored >= position)
    }

    /// Kafka has it. Answers by how many jobs fewer wait.
    pub(super) fn stored(&mut self, partition: i32, position: i64) -> i64 {
        let Some(partition) = self.partitions.get_mut(&partition) else { return 0 };
        let before = partition.stored;
        partition.stored = before.max(position);
        partition.stored - before
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn job(id: &str) -> Job {
        Job { id: id.to_owned(), payload: bytes::Bytes::new() }
    }

    fn held(ids: &[&str]) -> Held {
        let mut held = Held::new(4);
        held.assign(0);
        for (offset, id) in (0..).zip(ids) {
            held.arrive((0, offset), job(id), 0);
        }
        held
    }

    fn take(held: &mut Held) -> (String, u32, u64) {
        match held.next(Instant::now(), LEASE) {
            Next::Do(taken) => (taken.job.id, taken.attempt, taken.entry.parse().expect("a number")),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_has_nothing_open_before_it_is_stored() {
        let mut held = held(&["a", "b", "c"]);
        let (a, b, c) = (take(&mut held).2, take(&mut held).2, take(&mut held).2);
        held.end(b, End::Done, false);
        assert_eq!(held.to_store(0), None);
        held.end(a, End::Done, false);
        assert_eq!(held.to_store(0), Some(2));
        assert_eq!((held.stored(0, 2), held.stored(0, 1)), (2, 0), "an older answer changes nothing");
        assert_eq!(held.to_store(0), None);
        held.end(c, End::Again("bad_day"), false);
        assert_eq!(held.to_store(0), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_is_none_of_its_own_and_a_further_try_is() {
        let mut held = held(&["a", "a"]);
        let (_, attempt, first) = take(&mut held);
        assert_eq!(attempt, 1);
        assert!(matches!(held.next(Instant::now(), LEASE), Next::Wait(Some(_))), "the copy is not done beside it");
        assert!(held.arrive((0, 2), job("a"), 1), "its next try may come before it is said how this one ended");
        held.end(first, End::Again("bad_day"), false);
        assert_eq!(held.to_store(0), Some(2));
        let (_, attempt, second) = take(&mut held);
        assert_eq!(attempt, 2);
        held.end(second, End::Done, false);
        assert!(!held.arrive((0, 3), job("a"), 0), "done");
        assert_eq!(held.to_store(0), Some(4));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_goes_with_its_partition_and_what_runs_is_not_begun_a_second_time() {
        let mut held = held(&["a", "b"]);
        let (_, _, a) = take(&mut held);
        held.revoke(0);
        assert!(matches!(held.next(Instant::now(), LEASE), Next::Wait(Some(_))));
        held.assign(0);
        held.arrive((0, 0), job("a"), 0);
        held.arrive((0, 1), job("b"), 0);
        let (id, _, b) = take(&mut held);
        assert_eq!(id, "b");
        held.end(b, End::Done, false);
        assert_eq!(held.to_store(0), None, "a is open");
        held.end(a, End::Done, false);
        assert_eq!(held.to_store(0), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_after_its_partition_went_is_not_done_again_when_it_comes_back() {
        let mut held = held(&["a"]);
        let (_, _, a) = take(&mut held);
        held.revoke(0);
        held.end(a, End::Done, false);
        held.forget(a);
        held.assign(0);
        assert!(!held.arrive((0, 0), job("a"), 0));
        assert_eq!(held.to_store(0), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn ids_are_forgotten_when_as_many_as_the_capacity_came_after_them() {
        let mut held = Held::new(4);
        held.assign(0);
        let now = Instant::now();
        for n in 0..9 {
            held.push(&n.to_string(), now, LEASE);
        }
        let known: Vec<_> = (0..9).filter(|n| held.is_known(&n.to_string())).collect();
        assert_eq!(known, [5, 6, 7, 8], "pushed");
        held.push("9", now + LEASE, LEASE);
        assert!(!held.is_known("8"), "a lease later");
        for n in 10..19 {
            held.arrive((0, n), job(&n.to_string()), 0);
            let (_, _, number) = take(&mut held);
            held.end(number, End::Done, false);
            held.forget(number);
        }
        let known: Vec<_> = (0..19).filter(|n| held.is_known(&n.to_string())).collect();
        assert_eq!(known, [9, 15, 16, 17, 18], "done");
    }

    #[tokio::test(start_paused = true)]
    async fn fetching_stops_at_the_bound_and_begins_again_at_half_of_it() {
        let mut held = Held::new(1000);
        held.assign(0);
        for n in 0..64 {
            assert!(!held.pause());
            held.arrive((0, n), job(&n.to_string()), 0);
        }
        assert!(held.pause() && held.pause(), "as often as asked");
        for _ in 0..31 {
            take(&mut held);
            assert!(!held.resume());
        }
        take(&mut held);
        assert!(held.resume() && !held.resume() && !held.pause());
    }

    proptest! {
        /// In whatever order jobs end, what is stored is the first that is not done.
        #[test]
        fn it_stores_what_a_slow_model_would(order in Just((0..40_i64).collect::<Vec<_>>()).prop_shuffle()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            let _guard = runtime.enter();
            let ids: Vec<String> = (0..40).map(|n| n.to_string()).collect();
            let mut held = held(&ids.iter().map(String::as_str).collect::<Vec<_>>());
            let numbers: Vec<u64> = (0..40).map(|_| take(&mut held).2).collect();
            let mut open: BTreeSet<i64> = (0..40).collect();
            for offset in order {
                held.end(numbers[usize::try_from(offset).expect("small")], End::Done, false);
                open.remove(&offset);
                let first = open.first().copied().unwrap_or(40);
                let stored = held.to_store(0).unwrap_or(0);
                prop_assert_eq!(stored, first);
            }
        }
    }
}
