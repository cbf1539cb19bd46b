use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    mem,
    sync::{Arc, Mutex, MutexGuard},
};

use siphasher::sip128::{Hasher128, SipHasher13};

use super::claims::Accepted;

/// So many locks, so that requests on different threads seldom wait for each other.
const SHARDS: usize = 16;

/// Nobody who lacks the key finds two texts that share it, and no token is kept.
pub(super) type Hash = u128;

/// What makes hashes, with a key that is drawn anew and never shown.
#[derive(Clone, Copy)]
pub(super) struct Hashing(u64, u64);

impl Hashing {
    pub(super) fn new() -> Self {
        // The key of a random state comes from the operating system.
        Self(RandomState::new().hash_one(0), RandomState::new().hash_one(1))
    }

    pub(super) fn hash(self, parts: &[&[u8]]) -> Hash {
        let mut hash = SipHasher13::new_with_keys(self.0, self.1);
        parts.iter().for_each(|part| hash.write(part));
        hash.finish128().as_u128()
    }
}

/// A table by hashes: they are as good as random, so hashing them again would be work for nothing.
pub(super) type Table<T> = HashMap<Hash, T, BuildHasherDefault<AsItIs>>;

#[derive(Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write_u128(&mut self, hash: u128) {
        let bytes = hash.to_ne_bytes();
        self.0 = u64::from_ne_bytes(*bytes.first_chunk().expect("8 of 16 bytes"));
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys of a table are hashes")
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A token that was verified.
pub(super) struct Entry {
    pub(super) accepted: Accepted,
    /// The place of its issuer in the list, and the generation of the keys that verified it.
    pub(super) issuer: usize,
    pub(super) generation: u64,
    /// By which it may be revoked.
    pub(super) signed: Hash,
    pub(super) id: Option<Hash>,
}

/// The tokens that were verified, so that they need not be again. When the newer half is full, the older half goes: whatever
/// comes in, nothing is searched for room.
pub(super) struct Cache {
    shards: Box<[Mutex<Shard>]>,
    half: usize,
    capacity: usize,
}

#[derive(Default)]
struct Shard {
    newer: Table<Arc<Entry>>,
    older: Table<Arc<Entry>>,
}

impl Cache {
    /// A cache of at most `capacity` tokens, but at least 2.
    pub(super) fn new(capacity: usize) -> Self {
        let shards = (capacity / 2).clamp(1, SHARDS);
        Self { shards: (0..shards).map(|_| Mutex::default()).collect(), half: (capacity / 2 / shards).max(1), capacity }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The token of this hash, if it is there and still counts; one that does not is dropped.
    pub(super) fn get(&self, hash: Hash, counts: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        let mut shard = self.shard(hash);
        if let Some(entry) = shard.newer.get(&hash) {
            if counts(entry) {
                return Some(entry.clone());
            }
            shard.newer.remove(&hash);
            return None;
        }
        let entry = shard.older.remove(&hash).filter(|entry| counts(entry))?;
        shard.put(hash, entry.clone(), self.half);
        Some(entry)
    }

    pub(super) fn put(&self, hash: Hash, entry: Arc<Entry>) {
        self.shard(hash).put(hash, entry, self.half);
    }

    fn shard(&self, hash: Hash) -> MutexGuard<'_, Shard> {
        let shard = usize::from(hash.to_ne_bytes()[15]) % self.shards.len();
        self.shards[shard].lock().expect("nobody panics while holding a shard")
    }
}

impl Shard {
    fn put(&mut self, hash: Hash, entry: Arc<Entry>, half: usize) {
        if self.newer.len() >= half && !self.newer.contains_key(&hash) {
            self.older = mem::take(&mut self.newer);
        }
        self.newer.insert(hash, entry);
    }
}

#[cfg(test)]
mod tests {
    use coze_core::Principal;

    use super::*;

    fn entry(end: f64) -> Arc<Entry> {
        let accepted = Accepted { principal: Principal::new("jwt", "a"), tenant: None, end };
        Arc::new(Entry { accepted, issuer: 0, generation: 0, signed: 0, id: None })
    }

    fn of(text: &[u8]) -> Hash {
        Hashing(1, 2).hash(&[text])
    }

    fn held(cache: &Cache) -> usize {
        cache
            .shards
            .iter()
            .map(|shard| shard.lock().expect("not poisoned"))
            .map(|s| s.newer.len() + s.older.len())
            .sum()
    }

    #[test]
    fn it_never_holds_more_than_its_capacity() {
        for capacity in [0, 1, 2, 3, 31, 32, 100] {
            let cache = Cache::new(capacity);
            for i in 0..1000_u64 {
                cache.put(of(&i.to_le_bytes()), entry(1.0));
                assert!(held(&cache) <= capacity.max(2), "{capacity}");
            }
            assert!(cache.get(of(&999_u64.to_le_bytes()), |_| true).is_some(), "the last one in is there");
        }
    }

    #[test]
    fn a_token_in_use_survives_those_that_are_not() {
        let cache = Cache::new(2);
        let used = of(b"used");
        cache.put(used, entry(1.0));
        for i in 0..100_u64 {
            cache.put(of(&i.to_le_bytes()), entry(1.0));
            assert!(cache.get(used, |_| true).is_some());
        }
    }

    #[test]
    fn what_no_longer_counts_is_dropped_from_both_halves() {
        let cache = Cache::new(2);
        let (first, second) = (of(b"1"), of(b"2"));
        cache.put(first, entry(1.0));
        cache.put(second, entry(1.0));
        assert!(cache.get(first, |_| false).is_none() && cache.get(second, |_| false).is_none());
        assert_eq!(held(&cache), 0);
    }
}
