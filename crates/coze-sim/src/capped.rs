use std::collections::{HashMap, VecDeque};

/// A map that holds at most so many entries: the oldest goes when another comes.
#[derive(Debug)]
pub(crate) struct Capped<V> {
    map: HashMap<String, V>,
    /// Keys by age. A removed key stays here until its turn, so this too is bounded by `cap`.
    order: VecDeque<String>,
    cap: usize,
}

impl<V> Capped<V> {
    pub(crate) fn new(cap: usize) -> Self {
        Self { map: HashMap::new(), order: VecDeque::new(), cap: cap.max(1) }
    }

    /// Adds an entry under a key that was not used before; gives the one that had to go.
    pub(crate) fn insert(&mut self, key: impl Into<String>, value: V) -> Option<V> {
        let key = key.into();
        let oldest = (self.order.len() >= self.cap).then(|| self.order.pop_front()).flatten();
        self.order.push_back(key.clone());
        self.map.insert(key, value);
        oldest.and_then(|oldest| self.map.remove(&oldest))
    }

    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        self.map.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.map.get_mut(key)
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<V> {
        self.map.remove(key)
    }

    /// From the oldest to the newest.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.order.iter().filter_map(|key| self.map.get(key))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.map.values_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_removed_keys_are_bounded_too() {
        let mut map = Capped::new(3);
        let gone: Vec<_> = ["a", "b", "c", "d"].into_iter().map(|key| map.insert(key, key)).collect();
        assert_eq!(gone, [None, None, None, Some("a")]);
        assert!(map.get("a").is_none());
        assert_eq!(map.iter().copied().collect::<Vec<_>>(), ["b", "c", "d"]);
        for n in 0..100 {
            map.insert(n.to_string(), "x");
            map.remove(&n.to_string());
        }
        assert!(map.order.len() <= 3 && map.map.is_empty());
    }
}
