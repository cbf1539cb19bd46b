//! What this node knows of the keys of one level, in bounded memory.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use indexmap::IndexMap;

use super::holding::Holding;
use crate::level::{Key, KeyRef};

/// Shards, so that the keys do not all wait for one lock.
const SHARDS: usize = 16;
/// Keys that a new one looks at, to forget the idle ones among them.
const SWEEP: usize = 4;

/// What this node knows of one key.
pub(super) struct Entry {
    /// The key in Redis.
    pub(super) name: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Of a rate.
    pub(super) holding: Holding,
    /// Of a level of concurrency: how many requests of this node are under way, and whether Redis has another number.
    pub(super) have: u64,
    pub(super) is_stale: bool,
    /// When Redis was told last, in microseconds.
    pub(super) told: u64,
    /// Whether it is looked at from time to time.
    pub(super) is_watched: bool,
}

impl Entry {
    pub(super) fn new(name: Arc<str>) -> Arc<Self> {
        Arc::new(Self { name, state: Mutex::default() })
    }

    /// A panic elsewhere leaves it as it was or one request ahead: no reason to panic too.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_idle(self: &Arc<Self>, now: u64) -> bool {
        // Nobody else has it, and nobody can get it: the shard is locked.
        Arc::strong_count(self) == 1 && {
            let state = self.lock();
            state.have == 0 && !state.is_stale && state.holding.is_idle(now)
        }
    }
}

type Shard = (IndexMap<Key, Arc<Entry>, RandomState>, usize);

/// See the module.
pub(super) struct Known {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    /// Keys of one shard.
    room: usize,
}

impl Known {
    pub(super) fn new(max_keys: usize) -> Self {
        let hasher = RandomState::new();
        let shards = std::array::from_fn(|_| Mutex::new((IndexMap::with_hasher(hasher.clone()), 0)));
        Self { shards, room: max_keys.div_ceil(SHARDS).max(1), hasher }
    }

    /// What is known of the key; nothing yet is something. None where there is no room for another key.
    pub(super) fn get(&self, key: &KeyRef<'_>, now: u64, name: impl FnOnce() -> Arc<str>) -> Option<Arc<Entry>> {
        // A byte in the middle of the hash: the map inside the shard uses both ends of the same hash.
        let byte = self.hasher.hash_one(key).to_be_bytes()[4];
        let mut shard = self.shards[usize::from(byte) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        let (entries, cursor) = &mut *shard;
        if let Some(entry) = entries.get(key) {
            return Some(entry.clone());
        }
        for _ in 0..SWEEP {
            match entries.get_index(*cursor) {
                // The last one takes its place, and is looked at next.
                Some((_, entry)) if entry.is_idle(now) => {
                    entries.swap_remove_index(*cursor);
                }
                Some(_) => *cursor += 1,
                None => *cursor = 0,
            }
        }
        (entries.len() < self.room).then(|| {
            let entry = Entry::new(name());
            entries.insert(key.into(), entry.clone());
            entry
        })
    }
}

impl fmt::Debug for Entry {
    /// Keys are people's ids: they are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}

impl fmt::Debug for Known {
    /// Keys are people's ids: they are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn get(known: &Known, id: &str, now: u64) -> Option<Arc<Entry>> {
        known.get(&KeyRef { tenant: None, id: Cow::Borrowed(id) }, now, || id.into())
    }

    #[test]
    fn a_flood_of_keys_fills_it_to_its_bound_and_idle_keys_make_room() {
        let known = Known::new(160);
        let over = |id: String, now: u64| {
            get(&known, &id, now).map(|entry| entry.lock().holding.refused(1, now, 1_000_000, 1_000_000)).is_some()
        };
        assert_eq!((0..10_000).filter(|id| over(format!("flood {id}"), 0)).count(), 160, "as long as they are over");
        assert!((0..10_000).filter(|id| over(format!("later {id}"), 2_000_000)).count() >= 160, "their time is over");
        let len: usize = known.shards.iter().map(|shard| shard.lock().expect("sound").0.len()).sum();
        assert_eq!(len, 160);
    }

    #[test]
    fn a_key_that_is_in_use_stays() {
        let known = Known::new(16);
        let place = get(&known, "kept", 0).expect("room");
        place.lock().have = 1;
        drop(place);
        for id in 0..1000 {
            get(&known, &id.to_string(), id);
        }
        assert_eq!(get(&known, "kept", 2000).expect("known").lock().have, 1);
    }
}
