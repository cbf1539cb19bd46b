use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use indexmap::IndexMap;

use crate::{
    Permit, Quota,
    cell::Cell,
    level::{Key, KeyRef},
};

/// Shards of a large level, so that its keys do not all wait for one lock.
const MAX_SHARDS: usize = 16;
/// Each shard has an equal share of the level's room. Below so many keys a share would fill unevenly.
const MIN_SHARE: usize = 256;
/// Remembered keys that a new key looks at, to forget the idle ones among them.
const SWEEP: usize = 4;
/// A key that was used within the last minute is forgotten only for lack of room: it is likely to come back.
const KEEP: u64 = 60_000_000_000;
/// Two ids of 128 bytes: what is longer is not remembered, so that a key has a bounded size.
const MAX_KEY: usize = 256;

/// The cells of one level: one for each of a bounded number of keys, and one that all other keys share.
pub(crate) struct Cells {
    quota: Quota,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    shared: Mutex<Cell>,
}

pub(crate) struct Shard {
    cells: IndexMap<Key, Cell, RandomState>,
    /// How many cells there may be.
    room: usize,
    /// Where the next sweep begins.
    cursor: usize,
}

/// The cell of one key, locked until the slot is dropped or its request taken.
pub(crate) enum Slot<'a> {
    Known(MutexGuard<'a, Shard>, usize),
    /// A key that is remembered only once a request of it is taken: a refused one leaves no trace.
    New(MutexGuard<'a, Shard>, &'a KeyRef<'a>, Quota),
    Shared(MutexGuard<'a, Cell>),
}

impl Cells {
    pub(crate) fn new(quota: Quota, max_keys: usize) -> Self {
        let count = if max_keys == 0 { 0 } else { (max_keys / MIN_SHARE).clamp(1, MAX_SHARDS) };
        let hasher = RandomState::new();
        let shard = |index| {
            let room = max_keys / count + usize::from(index < max_keys % count);
            Mutex::new(Shard { cells: IndexMap::with_hasher(hasher.clone()), room, cursor: 0 })
        };
        Self { quota, shards: (0..count).map(shard).collect(), shared: Mutex::new(Cell::new(quota)), hasher }
    }

    /// Locks the cell of `key`: never more than one lock at a time.
    pub(crate) fn lock<'a>(&'a self, key: &'a KeyRef<'a>, now: u64) -> Slot<'a> {
        if !self.shards.is_empty() {
            // A byte in the middle of the hash: the map inside the shard uses both ends of the same hash.
            let byte = self.hasher.hash_one(key).to_be_bytes()[4];
            let mut shard = lock(&self.shards[usize::from(byte) % self.shards.len()]);
            if let Some(index) = shard.cells.get_index_of(key) {
                return Slot::Known(shard, index);
            }
            if key.id.len() <= MAX_KEY && shard.has_room(now) {
                return Slot::New(shard, key, self.quota);
            }
        }
        Slot::Shared(lock(&self.shared))
    }
}

/// A panic elsewhere leaves a cell as it was or one request ahead: no reason to panic too.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    /// Whether a key can be added, after a look at a few that may be idle.
    fn has_room(&mut self, now: u64) -> bool {
        for _ in 0..SWEEP {
            let full = self.cells.len() >= self.room;
            match self.cells.get_index(self.cursor) {
                // The last one takes its place, and is looked at next.
                Some((_, cell)) if cell.is_idle(now) && (full || now.saturating_sub(cell.last()) > KEEP) => {
                    self.cells.swap_remove_index(self.cursor);
                }
                Some(_) => self.cursor += 1,
                None => self.cursor = 0,
            }
        }
        self.cells.len() < self.room
    }
}

impl Slot<'_> {
    fn cell(&self) -> Option<&Cell> {
        match self {
            Self::Known(shard, index) => shard.cells.get_index(*index).map(|(_, cell)| cell),
            Self::New(..) => None,
            Self::Shared(cell) => Some(cell),
        }
    }

    /// See [`Cell::wait`].
    pub(crate) fn wait(&self, now: u64) -> u64 {
        self.cell().map_or(0, |cell| cell.wait(now))
    }

    /// See [`Cell::reset`].
    pub(crate) fn reset(&self, now: u64) -> u64 {
        self.cell().map_or(0, |cell| cell.reset(now))
    }

    /// See [`Cell::take`].
    pub(crate) fn take(self, now: u64, permit: &mut Permit) {
        match self {
            Self::Known(mut shard, index) => shard.cells[index].take(now, permit),
            Self::New(mut shard, key, quota) => {
                let mut cell = Cell::new(quota);
                cell.take(now, permit);
                shard.cells.insert(key.into(), cell);
            }
            Self::Shared(mut cell) => cell.take(now, permit),
        }
    }
}

impl fmt::Debug for Cells {
    /// Keys are people's ids: they are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cells").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, num::NonZeroU32, panic, sync::Arc};

    use super::*;
    use crate::Rate;

    const SECOND: u64 = 1_000_000_000;

    fn rate(per_second: u32) -> Quota {
        Rate::per_second(NonZeroU32::new(per_second).expect("not zero")).into()
    }

    fn key(id: &str) -> KeyRef<'_> {
        KeyRef { tenant: None, id: Cow::Borrowed(id) }
    }

    fn admit(cells: &Cells, id: &str, now: u64, permit: &mut Permit) -> bool {
        let key = key(id);
        let slot = cells.lock(&key, now);
        let admitted = slot.wait(now) == 0;
        if admitted {
            slot.take(now, permit);
        }
        admitted
    }

    fn len(cells: &Cells) -> usize {
        cells.shards.iter().map(|shard| lock(shard).cells.len()).sum()
    }

    #[test]
    fn all_of_the_room_is_shared_out() {
        for max_keys in [0, 1, 255, 256, 1000, 1003, 4096, 65_536, 1_000_001] {
            let cells = Cells::new(rate(1), max_keys);
            assert_eq!(cells.shards.iter().map(|shard| lock(shard).room).sum::<usize>(), max_keys);
            assert!(cells.shards.len() <= MAX_SHARDS);
        }
    }

    #[test]
    fn a_flood_of_keys_fills_the_map_to_its_bound_and_a_known_key_stays_exact() {
        let cells = Cells::new(rate(5), 1000);
        let (mut permit, mut hot, mut invented) = (Permit::default(), 0, 0);
        for flood in 0..1_000_000_u64 {
            // A million keys within a slice of 100 ms, so that none of them is ever idle.
            let now = flood * 100;
            if flood % 1000 == 0 {
                hot += u32::from(admit(&cells, "hot", now, &mut permit));
            }
            invented += u32::from(admit(&cells, &flood.to_string(), now, &mut permit));
            assert!(flood % 10_000 != 0 || len(&cells) <= 1000);
        }
        assert_eq!(len(&cells), 1000);
        assert_eq!(hot, 5, "the known key gets its quota, no more and no less");
        assert_eq!(invented, 999 + 5, "one for each key that had room, and one quota for all others together");
    }

    #[test]
    fn idle_keys_make_room_for_new_ones() {
        let cells = Cells::new(rate(1), 10);
        let mut permit = Permit::default();
        for id in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            assert!(admit(&cells, id, 0, &mut permit));
        }
        assert!(admit(&cells, "k", 0, &mut permit), "the first without room has the shared quota");
        assert!(!admit(&cells, "l", 0, &mut permit), "the second finds it used");
        assert_eq!(len(&cells), 10);
        for id in ["l", "m", "n", "o", "p", "q", "r", "s", "t", "u"] {
            assert!(admit(&cells, id, SECOND, &mut permit), "{id} has the place of an idle one");
            assert_eq!(len(&cells), 10);
        }
        assert!(admit(&cells, "v", SECOND, &mut permit) && !admit(&cells, "w", SECOND, &mut permit), "nobody is idle");
    }

    #[test]
    fn idle_keys_are_kept_for_a_minute_and_then_forgotten_a_few_at_a_time() {
        for quota in [rate(1), Quota::Concurrency(NonZeroU32::MIN)] {
            let cells = Cells::new(quota, 255);
            for id in 0..100 {
                assert!(admit(&cells, &id.to_string(), id, &mut Permit::default()));
            }
            assert!(admit(&cells, "soon", KEEP, &mut Permit::default()));
            assert_eq!(len(&cells), 101);
            for (new, id) in (100..140).enumerate() {
                assert!(admit(&cells, &id.to_string(), KEEP + 100, &mut Permit::default()));
                assert!(len(&cells) + SWEEP * (new + 1) >= 102 + new);
            }
            assert_eq!(len(&cells), 41, "what was used within the minute stays");
        }
    }

    #[test]
    fn a_key_is_idle_when_both_stages_are() {
        let (cells, ms) = (Cells::new(rate(10), 1), 1_000_000);
        for at in [[99 * ms; 10], [1000 * ms; 10]].concat() {
            assert!(admit(&cells, "a", at, &mut Permit::default()));
        }
        let is_idle = |now| cells.lock(&key("a"), now).cell().is_some_and(|cell| cell.is_idle(now));
        assert!(!is_idle(1999 * ms), "the window still counts the second ten");
        assert!(!is_idle(2098 * ms), "the bucket has still to drain what came early");
        assert!(is_idle(2099 * ms));
    }

    #[test]
    fn a_key_with_a_request_in_flight_is_not_forgotten() {
        let cells = Cells::new(Quota::Concurrency(NonZeroU32::MIN), 1);
        let (mut first, mut second) = (Permit::default(), Permit::default());
        assert!(admit(&cells, "a", 0, &mut first));
        assert!(admit(&cells, "b", 100 * SECOND, &mut second), "shared");
        assert!(!admit(&cells, "c", 100 * SECOND, &mut second), "shared and used");
        assert!(!admit(&cells, "a", 100 * SECOND, &mut second), "still known");
        drop(first);
        assert!(admit(&cells, "c", 100 * SECOND, &mut second), "in the place of a");
        assert_eq!(len(&cells), 1);
    }

    #[test]
    fn what_is_not_taken_leaves_no_trace() {
        let cells = Cells::new(rate(1), 1000);
        for id in 0..1000 {
            assert_eq!(cells.lock(&key(&id.to_string()), 0).wait(0), 0);
        }
        assert_eq!(len(&cells), 0);
    }

    #[test]
    fn a_key_of_more_than_256_bytes_is_not_remembered() {
        let cells = Cells::new(rate(1), 1000);
        let mut permit = Permit::default();
        assert!(admit(&cells, &"k".repeat(MAX_KEY), 0, &mut permit));
        assert_eq!(len(&cells), 1);
        assert!(admit(&cells, &"k".repeat(MAX_KEY + 1), 0, &mut permit));
        assert!(!admit(&cells, &"k".repeat(1 << 20), 0, &mut permit), "they share one quota");
        assert_eq!(len(&cells), 1);
    }

    #[test]
    fn a_panic_under_the_lock_does_not_spread() {
        let cells = Arc::new(Cells::new(rate(1), 1));
        let poisoned = Arc::clone(&cells);
        let panicked = std::thread::spawn(move || {
            let key = key("a");
            let _slots = (poisoned.lock(&key, 0), lock(&poisoned.shared));
            panic::resume_unwind(Box::new("silent"));
        });
        assert!(panicked.join().is_err());
        let mut permit = Permit::default();
        assert!(admit(&cells, "a", 0, &mut permit) && admit(&cells, "b", 0, &mut permit));
    }
}
