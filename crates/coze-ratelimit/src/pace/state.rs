//! Who may go when, without a clock and without a runtime. Times are nanoseconds.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use smallvec::SmallVec;

use super::cell::Cell;
use crate::{PaceLevel, PaceRate};

/// Where all keys are busy, the least time between two looks for idle ones.
const SWEEP: u64 = 1_000_000_000;

/// One key of one level. Shared by the level, those that wait, and those that are on their way.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) level: Arc<PaceLevel>,
    pub(crate) key: Box<str>,
    cell: Mutex<Cell>,
}

/// What a call passes, in the order of the levels.
pub(crate) type Places = SmallVec<[Arc<Place>; 6]>;

/// In which of its places one that waits is counted among those that wait.
type Counts = SmallVec<[bool; 6]>;

/// The levels, and those that wait. `T` is how one of them is told.
#[derive(Debug)]
pub(crate) struct State<T> {
    levels: Vec<Keys>,
    /// In the order in which they came.
    queue: VecDeque<Waiting<T>>,
    /// When the first of them might go; `u64::MAX` where nobody waits.
    due: u64,
    tickets: u64,
    pub(crate) max_waiting: usize,
    /// Does a task tell those whose turn has come?
    pub(crate) is_driven: bool,
}

#[derive(Debug)]
struct Keys {
    level: Arc<PaceLevel>,
    /// What holds now, as the other side said.
    rate: Option<PaceRate>,
    keys: HashMap<Box<str>, Arc<Place>>,
    /// So many keys are worth a sweep, and before this time there is none.
    sweep_at: usize,
    sweep_after: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    ticket: u64,
    places: Places,
    counts: Counts,
    tell: T,
}

/// What becomes of a call.
#[derive(Debug)]
pub(crate) enum Asked {
    Go(Places),
    /// It is told when its turn has come, which may be before that of all others.
    Wait {
        ticket: u64,
        is_next: bool,
    },
    /// Its turn would come later than it may.
    TooLate(Places),
    /// As many wait as may.
    Full(Places),
}

impl Place {
    pub(crate) fn cell(&self) -> MutexGuard<'_, Cell> {
        self.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    pub(crate) fn new() -> Self {
        let (levels, queue) = (Vec::new(), VecDeque::new());
        Self { levels, queue, due: u64::MAX, tickets: 0, max_waiting: 1000, is_driven: false }
    }

    /// Adds a level, in the place of the one that has its name, else after the others.
    pub(crate) fn add(&mut self, level: PaceLevel) {
        let rate = level.rate;
        let level = Keys { rate, level: Arc::new(level), keys: HashMap::new(), sweep_at: 64, sweep_after: 0 };
        match self.levels.iter_mut().find(|known| known.level.name == level.level.name) {
            Some(known) => *known = level,
            None => self.levels.push(level),
        }
    }

    pub(crate) fn levels(&self) -> Vec<Arc<PaceLevel>> {
        self.levels.iter().map(|keys| keys.level.clone()).collect()
    }

    /// Changes the rate of a level; says whether it is there.
    pub(crate) fn set(&mut self, name: &str, rate: Option<PaceRate>, now: u64) -> bool {
        let Some(keys) = self.levels.iter_mut().find(|keys| keys.level.name == name) else { return false };
        keys.rate = rate;
        keys.keys.values().for_each(|place| place.cell().change(rate.into(), now));
        self.due = 0;
        true
    }

    /// Calls a second of the slowest key of a level; infinitely many where nothing is known to limit them.
    pub(crate) fn slowest(&self, name: &str) -> Option<f64> {
        let keys = self.levels.iter().find(|keys| keys.level.name == name)?;
        let best = Cell::new(keys.rate.into()).per_second();
        Some(keys.keys.values().map(|place| place.cell().per_second()).fold(best, f64::min))
    }

    /// Whether [`State::advance`] has something to do.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        now >= self.due
    }

    /// When that is.
    pub(crate) fn due(&self) -> Option<u64> {
        (!self.queue.is_empty()).then_some(self.due)
    }

    /// Lets go whose turn has come: who came first goes first, but nobody waits for one who waits for another level.
    pub(crate) fn advance(&mut self, now: u64) -> Vec<(T, Places)> {
        let mut gone = Vec::new();
        self.due = u64::MAX;
        // What holds them up may be another place by now.
        self.queue.iter().for_each(Waiting::leave);
        for _ in 0..self.queue.len() {
            let mut waiting = self.queue.pop_front().expect("as many as were counted");
            match free_at(&waiting.places) {
                free if free <= now => {
                    take(&waiting.places, now);
                    gone.push((waiting.tell, waiting.places));
                }
                free => {
                    self.due = self.due.min(free);
                    waiting.counts = count(&waiting.places, turn(&waiting.places).1);
                    self.queue.push_back(waiting);
                }
            }
        }
        gone
    }

    /// What a call passes, by the index of each level that applies, and the key there.
    pub(crate) fn places(&mut self, keys: &[(usize, Cow<'_, str>)], now: u64) -> Places {
        keys.iter().map(|(level, key)| self.levels[*level].place(key, now)).collect()
    }

    /// Asks for a turn at `latest` at the latest. What is due was let go before.
    pub(crate) fn ask(&mut self, places: Places, now: u64, latest: u64, tell: impl FnOnce() -> T) -> Asked {
        if free_at(&places) <= now {
            take(&places, now);
            return Asked::Go(places);
        }
        if self.queue.len() >= self.max_waiting {
            return Asked::Full(places);
        }
        let at = turn(&places).1;
        if at > latest {
            return Asked::TooLate(places);
        }
        let free = free_at(&places);
        let is_next = free < self.due;
        self.due = self.due.min(free);
        self.tickets += 1;
        let (ticket, counts) = (self.tickets, count(&places, at));
        self.queue.push_back(Waiting { ticket, places, counts, tell: tell() });
        Asked::Wait { ticket, is_next }
    }

    /// One that waits goes away. It has taken nothing. None if it does not wait any more.
    pub(crate) fn leave(&mut self, ticket: u64) -> Option<Places> {
        let index = self.queue.binary_search_by_key(&ticket, |waiting| waiting.ticket).ok()?;
        let waiting = self.queue.remove(index)?;
        waiting.leave();
        Some(waiting.places)
    }

    #[cfg(test)]
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.queue.len(), self.levels.iter().map(|keys| keys.keys.len()).sum())
    }
}

impl<T> Waiting<T> {
    /// It is counted no more.
    fn leave(&self) {
        self.places.iter().zip(&self.counts).for_each(|(place, counts)| place.cell().waiting -= u32::from(*counts));
    }
}

impl Keys {
    fn place(&mut self, key: &str, now: u64) -> Arc<Place> {
        if let Some(place) = self.keys.get(key) {
            return place.clone();
        }
        if self.keys.len() >= self.sweep_at.min(self.level.max_keys) && now >= self.sweep_after {
            self.keys.retain(|_, place| Arc::strong_count(place) > 1 || !place.cell().is_new(now));
            self.sweep_at = (2 * self.keys.len()).max(64);
            self.sweep_after = now.saturating_add(SWEEP);
        }
        // Beyond the bound all share one.
        let key = if self.keys.len() < self.level.max_keys { key } else { "" };
        let new = || {
            Arc::new(Place {
                level: self.level.clone(),
                key: key.into(),
                cell: Mutex::new(Cell::new(self.rate.into())),
            })
        };
        self.keys.entry(key.into()).or_insert_with(new).clone()
    }
}

/// When one more than those that wait may go, if nothing changes, and which level is the last to let it.
pub(crate) fn turn(places: &Places) -> (Option<&Arc<Place>>, u64) {
    let turns = places.iter().map(|place| (Some(place), place.cell().free_after_all()));
    turns.max_by_key(|(_, at)| *at).unwrap_or((None, 0))
}

fn free_at(places: &Places) -> u64 {
    places.iter().map(|place| place.cell().free_at()).max().unwrap_or(0)
}

fn take(places: &Places, now: u64) {
    places.iter().for_each(|place| place.cell().take(now));
}

/// Counts one whose turn comes at `at` where others wait for it: not where one more has its turn before, as that goes first.
fn count(places: &Places, at: u64) -> Counts {
    let counts = places.iter().map(|place| {
        let mut cell = place.cell();
        let counts = cell.free_after_all().saturating_add(cell.interval()) >= at;
        cell.waiting += u32::from(counts);
        counts
    });
    counts.collect()
}
