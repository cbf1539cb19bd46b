use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    fmt,
    future::Pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use coze_core::{Error, Kind};

use super::{ReplayStore, replayed};
use crate::Decision;

/// Remembers accepted requests in this process, and answers at once. Clones share the memory.
///
/// When it is full it refuses new requests (`nonces_full`) instead of forgetting one, which would let that one in again. Only
/// requests whose signature is right are remembered, so nobody but the signers can fill it.
#[derive(Clone)]
pub struct MemoryReplay(Arc<Mutex<Nonces>>);

impl MemoryReplay {
    /// A memory for so many requests. With 65 536, and a clock window of 5 minutes, 218 a second are remembered, or half as many
    /// of signers whose clock is ahead of ours by the whole window. One costs about 150 bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(Nonces::new(capacity))))
    }
}

impl Default for MemoryReplay {
    /// A memory for 65 536 requests.
    fn default() -> Self {
        Self::new(65_536)
    }
}

impl ReplayStore for MemoryReplay {
    type Future = Pending<Result<(), Error>>;

    fn take(&self, id: &str, now: Duration, life: Duration) -> Decision<(), Self::Future> {
        let mut nonces = self.0.lock().expect("nobody panics while holding the nonces");
        Decision::Now(nonces.take(id, now.saturating_add(life), now).map_err(|refused| {
            match refused {
                Refused::Used => replayed(),
                Refused::Full => Error::new(Kind::Overloaded, "nonces_full")
                    .with_message("more requests than can be told apart arrived within the clock window"),
            }
        }))
    }
}

impl fmt::Debug for MemoryReplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryReplay").finish_non_exhaustive()
    }
}

/// The nonces that were used and whose time has not passed, by one clock.
#[derive(Debug)]
struct Nonces {
    used: HashSet<Arc<str>>,
    by_end: BinaryHeap<Reverse<(Duration, Arc<str>)>>,
    /// No nonce that ends later was forgotten.
    forgotten: Option<Duration>,
    capacity: usize,
}

/// Why a nonce is not taken.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Used,
    Full,
}

impl Nonces {
    fn new(capacity: usize) -> Self {
        Self { used: HashSet::new(), by_end: BinaryHeap::new(), forgotten: None, capacity }
    }

    /// Takes a nonce, and keeps it while `now` is not past `end`.
    ///
    /// When the clock is set back, the time of what was forgotten comes again: what ends then may have been taken.
    fn take(&mut self, nonce: &str, end: Duration, now: Duration) -> Result<(), Refused> {
        while let Some(Reverse((end, nonce))) = self.by_end.peek()
            && *end < now
        {
            self.forgotten = Some(*end);
            self.used.remove(nonce);
            self.by_end.pop();
        }
        if self.used.contains(nonce) || Some(end) <= self.forgotten {
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

    fn take(nonces: &mut Nonces, nonce: &str, end: u64, now: u64) -> Result<(), Refused> {
        nonces.take(nonce, Duration::from_secs(end), Duration::from_secs(now))
    }

    #[test]
    fn a_nonce_is_free_again_when_its_time_has_passed() {
        let mut nonces = Nonces::new(8);
        assert_eq!(take(&mut nonces, "a", 10, 0), Ok(()));
        assert_eq!(take(&mut nonces, "a", 20, 10), Err(Refused::Used));
        assert_eq!(take(&mut nonces, "a", 20, 11), Ok(()));
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_free_what_was_taken() {
        let mut nonces = Nonces::new(8);
        assert_eq!(take(&mut nonces, "a", 10, 0), Ok(()));
        assert_eq!(take(&mut nonces, "b", 30, 20), Ok(()), "a is forgotten");
        assert_eq!(take(&mut nonces, "a", 10, 5), Err(Refused::Used));
        assert_eq!(take(&mut nonces, "c", 11, 5), Ok(()), "one of its time was never forgotten");
    }

    #[test]
    fn a_full_store_refuses_new_nonces_and_forgets_none() {
        let mut nonces = Nonces::new(2);
        assert_eq!(take(&mut nonces, "a", 20, 0), Ok(()));
        assert_eq!(take(&mut nonces, "b", 10, 0), Ok(()));
        assert_eq!(take(&mut nonces, "c", 20, 10), Err(Refused::Full));
        assert_eq!(take(&mut nonces, "a", 20, 10), Err(Refused::Used));
        assert_eq!(take(&mut nonces, "c", 20, 11), Ok(()), "the one that ended first made room");
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
                let taken = take(&mut nonces, &nonce, now + life, now);
                prop_assert_eq!(&taken, &expected);
                if taken.is_ok() {
                    model.insert(nonce, now + life);
                }
                prop_assert_eq!((nonces.used.len(), nonces.by_end.len()), (model.len(), model.len()));
            }
        }
    }
}
