use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hash},
    sync::OnceLock,
};

use metrics::Counter;

/// Counters labelled by a key that only traffic tells: the first keys that come get their own, all later ones share one.
///
/// The key is looked up without a lock: a slot never changes once it is filled.
#[derive(Clone)]
pub(crate) struct Family<K> {
    keys: Box<[OnceLock<K>]>,
    hasher: RandomState,
    /// For each key `width` counters, and as many for the keys that came too late.
    counters: Box<[OnceLock<Counter>]>,
    width: usize,
}

impl<K: Clone + Eq + Hash> Family<K> {
    /// At most `max` keys of their own, each with `width` counters.
    pub(crate) fn new(max: usize, width: usize) -> Self {
        Self {
            keys: (0..max).map(|_| OnceLock::new()).collect(),
            hasher: RandomState::new(),
            counters: (0..(max + 1) * width).map(|_| OnceLock::new()).collect(),
            width,
        }
    }

    /// With this key among those that have their own, whatever keys come.
    pub(crate) fn with(self, key: &K) -> Self {
        self.row(key);
        self
    }

    /// The counter in this column of the key. `register` makes it at its first use, of the key if that has its own.
    pub(crate) fn counter(&self, key: &K, column: usize, register: impl FnOnce(Option<&K>) -> Counter) -> &Counter {
        let row = self.row(key);
        let key = self.keys.get(row).and(Some(key));
        self.counters[row * self.width + column].get_or_init(|| register(key))
    }

    /// The key's slot, which it takes if that is free; the row after the last one when others have taken all.
    fn row(&self, key: &K) -> usize {
        let max = self.keys.len();
        if max == 0 {
            return 0;
        }
        let first = usize::try_from(self.hasher.hash_one(key) % max as u64).expect("less than max");
        (first..max).chain(0..first).find(|&row| self.keys[row].get_or_init(|| key.clone()) == key).unwrap_or(max)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_room_all_keys_share_one_row() {
        let family = Family::new(0, 1);
        assert_eq!((family.row(&"a"), family.row(&"b")), (0, 0));
        let mut named = false;
        let _ = family.counter(&"a", 0, |key| {
            named = key.is_some();
            Counter::noop()
        });
        assert!(!named);
    }

    #[test]
    fn threads_that_meet_a_key_at_once_agree_on_its_row() {
        let family = Family::new(8, 1);
        let rows: Vec<HashSet<usize>> = std::thread::scope(|scope| {
            let run = || (0..8).map(|key| family.row(&key)).collect();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(rows.iter().all(|rows| *rows == (0..8).collect()), "{rows:?}");
    }

    proptest! {
        #[test]
        fn a_row_is_stable_and_one_keys_own_until_all_are_taken(
            keys in proptest::collection::vec(0..20_u8, 0..60),
            max in 0..12_usize,
        ) {
            let family = Family::new(max, 1);
            let mut rows = std::collections::HashMap::new();
            for key in keys {
                let row = family.row(&key);
                let known = rows.len();
                let expected = *rows.entry(key).or_insert(row);
                prop_assert_eq!(row, expected);
                prop_assert_eq!(row == max, known >= max && expected == max);
            }
            let own: Vec<_> = rows.values().filter(|row| **row < max).collect();
            prop_assert_eq!(own.len(), own.iter().collect::<HashSet<_>>().len());
            prop_assert_eq!(own.len(), rows.len().min(max));
        }
    }
}
