use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher},
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use coze_core::{Error, Kind, Retry};
use tokio::time::Instant;

use crate::hash::Secret;

/// A circuit breaker for each destination: while one hangs, requests to it are refused at once. Clones share it.
///
/// It is closed until [`marks`](Breaker::marks) attempts in a row were marked, with none in between that went well. Then it is
/// open, and refuses everything for [`pause`](Breaker::pause). After that it is half-open: so many requests at once as there
/// are [`probes`](Breaker::probes) go through, and when as many went well it is closed; one that fails opens it anew.
///
/// Only destinations in trouble are kept, the latest 64 of them, so one in good health costs nothing.
#[derive(Clone, Debug)]
pub struct Breaker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    marks: u32,
    pause: Duration,
    probes: u32,
    troubled: Troubled,
}

/// The destinations that are not in good health.
#[derive(Debug, Default)]
struct Troubled {
    /// How many there are, to be read without the lock. It is written under the lock, and nothing else depends on it.
    count: AtomicUsize,
    states: Mutex<HashMap<u64, State>>,
    /// Tells one half-open phase from all others, so that a late probe is not taken for one of a later phase.
    turns: AtomicU64,
    hasher: Secret,
}

/// More destinations are not kept.
const MOST: usize = 64;

#[derive(Clone, Copy, Debug)]
struct State {
    since: Instant,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed { marks: u32 },
    Open,
    HalfOpen { turn: NonZeroU64, running: u32, good: u32 },
}

/// An attempt that finds out whether its destination is back. Dropped, it makes room for another one.
///
/// In a box, because hardly any attempt is one.
#[derive(Debug)]
pub(crate) struct Probe(Box<Place>);

#[derive(Debug)]
struct Place {
    breaker: Breaker,
    destination: u64,
    /// The half-open phase that it belongs to.
    turn: NonZeroU64,
}

/// What an attempt says about the health of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It answers, if only to refuse.
    Good,
    /// It hangs, or is not there.
    Bad,
    /// Neither is certain. A probe that ends so is none, and another one takes its place.
    Unclear,
}

/// What became of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Opened,
    Closed,
}

impl Breaker {
    /// A breaker of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::with(5, Duration::from_secs(10), 1)
    }

    fn with(marks: u32, pause: Duration, probes: u32) -> Self {
        let (marks, probes) = (marks.max(1), probes.max(1));
        Self(Arc::new(Inner { marks, pause, probes, troubled: Troubled::default() }))
    }

    /// How many marked attempts in a row open it, at least 1. Default 5. It begins anew.
    #[must_use]
    pub fn marks(self, marks: u32) -> Self {
        Self::with(marks, self.0.pause, self.0.probes)
    }

    /// For how long it is open. Default 10 s. It begins anew.
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        Self::with(self.0.marks, pause, self.0.probes)
    }

    /// How many requests at once find out whether the destination is back, and how many have to go well, at least 1. Default 1.
    /// It begins anew.
    #[must_use]
    pub fn probes(self, probes: u32) -> Self {
        Self::with(self.0.marks, self.0.pause, probes)
    }

    /// What this destination is called here.
    #[inline]
    pub(crate) fn destination(&self, name: &[u8]) -> u64 {
        let mut hasher = self.0.troubled.hasher.build_hasher();
        hasher.write(name);
        hasher.finish()
    }

    /// Begins an attempt.
    ///
    /// # Errors
    /// `circuit_open`, with the time until the next probe, unless one is running.
    #[inline]
    pub(crate) fn enter(&self, destination: u64, now: Instant) -> Result<Option<Probe>, Error> {
        if self.0.troubled.is_empty() { Ok(None) } else { self.enter_troubled(destination, now) }
    }

    #[cold]
    fn enter_troubled(&self, destination: u64, now: Instant) -> Result<Option<Probe>, Error> {
        let Inner { pause, probes, troubled, .. } = &*self.0;
        let mut states = troubled.lock();
        let Some(state) = states.get_mut(&destination) else { return Ok(None) };
        if matches!(state.phase, Phase::Open) {
            let left = state.left(*pause, now);
            if !left.is_zero() {
                return Err(refused().with_retry_after(left));
            }
            let turn = NonZeroU64::MIN.saturating_add(troubled.turns.fetch_add(1, Relaxed));
            *state = State { since: now, phase: Phase::HalfOpen { turn, running: 0, good: 0 } };
        }
        let Phase::HalfOpen { turn, running, .. } = &mut state.phase else { return Ok(None) };
        if *running >= *probes {
            return Err(refused());
        }
        *running += 1;
        Ok(Some(Probe(Box::new(Place { breaker: self.clone(), destination, turn: *turn }))))
    }

    /// Will it still be open when this time is over?
    pub(crate) fn is_open_after(&self, destination: u64, wait: Duration, now: Instant) -> bool {
        let Inner { pause, troubled, .. } = &*self.0;
        let open = |state: &State| matches!(state.phase, Phase::Open) && state.left(*pause, now) > wait;
        !troubled.is_empty() && troubled.lock().get(&destination).is_some_and(open)
    }

    /// Ends an attempt. The clock is only asked where there is trouble.
    #[inline]
    pub(crate) fn settle(
        &self,
        destination: u64,
        probe: &mut Option<Probe>,
        mark: Mark,
        now: impl FnOnce() -> Instant,
    ) -> Option<Turn> {
        if mark == Mark::Good && self.0.troubled.is_empty() {
            return None;
        }
        // Dropped at the end of this, whatever the mark, so after the lock is free.
        let probe = probe.take();
        if mark == Mark::Unclear { None } else { self.settle_troubled(destination, probe.as_ref(), mark, now()) }
    }

    #[cold]
    fn settle_troubled(&self, destination: u64, probe: Option<&Probe>, mark: Mark, now: Instant) -> Option<Turn> {
        let own = probe.map(|probe| probe.0.turn);
        let Inner { marks: most, probes, troubled, .. } = &*self.0;
        let mut states = troubled.lock();
        if mark == Mark::Bad && !states.contains_key(&destination) {
            make_room(&mut states);
            states.insert(destination, State { since: now, phase: Phase::Closed { marks: 0 } });
        }
        let state = states.get_mut(&destination)?;
        let turn = match (&mut state.phase, mark) {
            (Phase::Closed { marks }, Mark::Bad) => {
                *marks += 1;
                let full = *marks >= *most;
                state.since = now;
                full.then_some(Turn::Opened)
            }
            (Phase::Closed { .. }, Mark::Good) => {
                states.remove(&destination);
                None
            }
            (Phase::HalfOpen { turn, .. }, Mark::Bad) if own == Some(*turn) => Some(Turn::Opened),
            (Phase::HalfOpen { turn, good, .. }, Mark::Good) if own == Some(*turn) => {
                *good += 1;
                (*good >= *probes).then_some(Turn::Closed)
            }
            // Attempts that began before it opened say nothing new.
            _ => None,
        };
        match turn {
            Some(Turn::Opened) => _ = states.insert(destination, State { since: now, phase: Phase::Open }),
            Some(Turn::Closed) => _ = states.remove(&destination),
            None => {}
        }
        troubled.count.store(states.len(), Relaxed);
        turn
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(State { phase: Phase::HalfOpen { turn, running, .. }, .. }) =
            self.breaker.0.troubled.lock().get_mut(&self.destination)
            && *turn == self.turn
        {
            *running -= 1;
        }
    }
}

impl State {
    /// What is left of the pause.
    fn left(&self, pause: Duration, now: Instant) -> Duration {
        pause.saturating_sub(now.saturating_duration_since(self.since))
    }
}

impl Troubled {
    #[inline]
    fn is_empty(&self) -> bool {
        self.count.load(Relaxed) == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the destination that nothing was heard of for the longest time, where there is no room for another one.
fn make_room(states: &mut HashMap<u64, State>) {
    if states.len() >= MOST
        && let Some(oldest) = states.iter().min_by_key(|(_, state)| state.since).map(|(key, _)| *key)
    {
        states.remove(&oldest);
    }
}

fn refused() -> Error {
    Error::new(Kind::Unavailable, "circuit_open")
        .with_message("the other side did not answer of late, so it is left alone for a while")
        .with_retry(Retry::Safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// Two destinations.
    const A: u64 = 1;
    const B: u64 = 2;

    fn breaker() -> Breaker {
        Breaker::new().marks(2).pause(10 * SECOND)
    }

    /// Begins and ends an attempt.
    fn attempt(breaker: &Breaker, mark: Mark, now: Instant) -> Result<Option<Turn>, Option<Duration>> {
        let mut probe = breaker.enter(A, now).map_err(|error| error.retry_after())?;
        Ok(breaker.settle(A, &mut probe, mark, || now))
    }

    #[test]
    fn it_opens_after_marks_in_a_row_and_says_until_when() {
        let (breaker, now) = (breaker(), Instant::now());
        assert_eq!(attempt(&breaker, Mark::Bad, now), Ok(None));
        assert_eq!(attempt(&breaker, Mark::Good, now), Ok(None), "the row is broken");
        assert_eq!(attempt(&breaker, Mark::Bad, now), Ok(None));
        assert_eq!(attempt(&breaker, Mark::Unclear, now), Ok(None), "this one breaks no row and is no mark");
        assert_eq!(attempt(&breaker, Mark::Bad, now), Ok(Some(Turn::Opened)));
        let clone = breaker.clone();
        assert_eq!(attempt(&clone, Mark::Good, now + 4 * SECOND), Err(Some(6 * SECOND)), "clones share it");
        assert!(breaker.enter(B, now).is_ok(), "another destination");
        assert!(breaker.is_open_after(A, 9 * SECOND, now) && !breaker.is_open_after(A, 10 * SECOND, now));
    }

    #[test]
    fn a_probe_that_goes_well_closes_it_and_one_that_does_not_opens_it_anew() {
        let (breaker, now) = (breaker().marks(0), Instant::now());
        assert_eq!(attempt(&breaker, Mark::Bad, now), Ok(Some(Turn::Opened)));
        assert_eq!(attempt(&breaker, Mark::Bad, now + 10 * SECOND), Ok(Some(Turn::Opened)));
        assert_eq!(attempt(&breaker, Mark::Good, now + 19 * SECOND), Err(Some(SECOND)));
        let later = now + 20 * SECOND;
        assert_eq!(
            attempt(&breaker, Mark::Unclear, later),
            Ok(None),
            "nobody is wiser, so the next one is a probe too"
        );
        assert_eq!(attempt(&breaker, Mark::Good, later), Ok(Some(Turn::Closed)));
        assert_eq!(attempt(&breaker, Mark::Good, later), Ok(None));
        assert!(breaker.0.troubled.is_empty(), "nothing is kept of one in good health");
    }

    #[test]
    fn only_so_many_probes_run_at_once_and_one_that_is_given_up_makes_room() {
        let (breaker, now) = (breaker().marks(1).probes(2), Instant::now());
        assert_eq!(attempt(&breaker, Mark::Bad, now), Ok(Some(Turn::Opened)));
        let later = now + 10 * SECOND;
        let [mut first, second] = [0; 2].map(|_| breaker.enter(A, later).expect("half-open"));
        assert!(first.is_some() && second.is_some());
        assert_eq!(attempt(&breaker, Mark::Good, later), Err(None), "nobody knows for how long");
        drop(second);
        assert_eq!(breaker.settle(A, &mut first, Mark::Good, || later), None, "one of two");
        assert_eq!(attempt(&breaker, Mark::Good, later), Ok(Some(Turn::Closed)));
    }

    #[test]
    fn late_answers_of_an_earlier_phase_change_nothing() {
        let (breaker, now) = (breaker().marks(1).probes(2), Instant::now());
        let mut early = breaker.enter(A, now).expect("closed");
        assert_eq!(attempt(&breaker, Mark::Bad, now), Ok(Some(Turn::Opened)));
        assert_eq!(breaker.settle(A, &mut early, Mark::Good, || now), None);
        let at = |s| now + s * SECOND;
        let probes = |s| [0; 2].map(|_| breaker.enter(A, at(s)).expect("a probe"));
        let [late, mut failing] = probes(10);
        assert_eq!(breaker.settle(A, &mut failing, Mark::Bad, || at(10)), Some(Turn::Opened));
        let _running = probes(20);
        drop(late);
        assert_eq!(attempt(&breaker, Mark::Good, at(20)), Err(None), "it was no probe of this phase");
    }

    #[test]
    fn of_many_destinations_the_latest_64_are_kept() {
        let (breaker, now) = (breaker().marks(1), Instant::now());
        for n in 0..1000 {
            let at = now + n * Duration::from_millis(1);
            assert_eq!(breaker.settle(n.into(), &mut None, Mark::Bad, || at), Some(Turn::Opened));
        }
        assert_eq!(breaker.0.troubled.lock().len(), 64);
        assert!((936..1000).all(|n| breaker.enter(n, now + SECOND).is_err()));
        assert!((0..936).all(|n| breaker.enter(n, now + SECOND).is_ok()));
    }

    #[test]
    fn no_pause_is_too_long() {
        let (breaker, now) = (breaker().marks(1).pause(Duration::MAX), Instant::now());
        assert_eq!(attempt(&breaker, Mark::Bad, now), Ok(Some(Turn::Opened)));
        assert_eq!(attempt(&breaker, Mark::Bad, now), Err(Some(Duration::MAX)));
    }
}
