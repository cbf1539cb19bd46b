use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    sync::Arc,
};

/// The nonces that were used and whose time has not passed. Times are in milliseconds of one clock.
///
/// When it is full it takes no new ones: to forget one early would let its request in a second time.
#[derive(Debug)]
pub(crate) struct Nonces {
    used: HashSet<Arc<str>>,
    by_end: BinaryHeap<Reverse<(u64, Arc<str>)>>,
    capacity: usize,
}

/// Why a nonce is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Used,
    Full,
}

impl Nonces {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { used: HashSet::new(), by_end: BinaryHeap::new(), capacity }
    }

    /// Takes a nonce, and keeps it while `now` is not past `end`.
    pub(crate) fn take(&mut self, nonce: &str, end: u64, now: u64) -> Result<(), Refused> {
        while let Some(Reverse((end, nonce))) = self.by_end.peek()
            && *end < now
        {
            self.used.remove(nonce);
            self.by_end.pop();
        }
        if self.used.contains(nonce) {
            return Err(Refused::Used);
        }
        if self.used.len() >= self.capacity {
            return Err(Refused::Full);
        }
        let nonce: Arc<str> = nonce.into();
        self.used.insert(nonce.clone());
        self.by_end.push(Reverse((end, nonce)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_nonce_is_free_again_when_its_time_has_passed() {
        let mut nonces = Nonces::new(8);
        assert_eq!(nonces.take("a", 10, 0), Ok(()));
        assert_eq!(nonces.take("a", 20, 10), Err(Refused::Used));
        assert_eq!(nonces.take("a", 20, 11), Ok(()));
    }

    #[test]
    fn a_full_store_refuses_new_nonces_and_forgets_none() {
        let mut nonces = Nonces::new(2);
        assert_eq!(nonces.take("a", 20, 0), Ok(()));
        assert_eq!(nonces.take("b", 10, 0), Ok(()));
        assert_eq!(nonces.take("c", 20, 10), Err(Refused::Full));
        assert_eq!(nonces.take("a", 20, 10), Err(Refused::Used));
        assert_eq!(nonces.take("c", 20, 11), Ok(()), "the one that ended first made room");
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_table_of_ends(
            capacity in 0usize..6,
            steps in prop::collection::vec(("[a-h]", 0u64..30, 0u64..10), 0..60),
        ) {
            let (mut nonces, mut model, mut now) = (Nonces::new(capacity), HashMap::<String, u64>::new(), 0);
            for (nonce, life, pause) in steps {
                now += pause;
                model.retain(|_, end| *end >= now);
                let expected = match (model.contains_key(&nonce), model.len() < capacity) {
                    (true, _) => Err(Refused::Used),
                    (false, false) => Err(Refused::Full),
                    (false, true) => Ok(()),
                };
                let taken = nonces.take(&nonce, now + life, now);
                prop_assert_eq!(&taken, &expected);
                if taken.is_ok() {
                    model.insert(nonce, now + life);
                }
                prop_assert_eq!((nonces.used.len(), nonces.by_end.len()), (model.len(), model.len()));
            }
        }
    }
}
