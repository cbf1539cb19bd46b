use std::sync::{
    RwLock,
    atomic::{AtomicBool, Ordering},
};

use coze_core::{Error, Kind};

use super::cache::{Entry, Hash, Table};

/// What was revoked, until when, in seconds of the Unix clock. When it is full it takes no more: to forget one early would
/// let it in again.
pub(super) struct Revoked {
    ends: RwLock<Table<f64>>,
    /// Spares the lock where nothing ever was revoked.
    is_used: AtomicBool,
    capacity: usize,
}

impl Revoked {
    pub(super) fn new(capacity: usize) -> Self {
        Self { ends: RwLock::default(), is_used: AtomicBool::new(false), capacity }
    }

    /// What ended before `over` may be forgotten.
    pub(super) fn add(&self, hash: Hash, end: f64, over: f64) -> Result<(), Error> {
        let mut ends = self.ends.write().expect("nobody panics while holding the list");
        if !ends.contains_key(&hash) && ends.len() >= self.capacity {
            ends.retain(|_, end| over < *end);
            if ends.len() >= self.capacity {
                return Err(Error::new(Kind::Overloaded, "revocations_full")
                    .with_message(format!("more than {} tokens are revoked at the same time", self.capacity)));
            }
        }
        let kept = ends.entry(hash).or_insert(end);
        *kept = kept.max(end);
        // Under the lock: whoever sees it sees the entry.
        self.is_used.store(true, Ordering::Release);
        Ok(())
    }

    pub(super) fn has(&self, entry: &Entry, now: f64) -> bool {
        if !self.is_used.load(Ordering::Acquire) {
            return false;
        }
        let ends = self.ends.read().expect("nobody panics while holding the list");
        // Who is let in after the end is so by the leeway alone.
        let hits = |hash| ends.get(hash).is_some_and(|end| now < *end || entry.accepted.end <= *end);
        hits(&entry.signed) || entry.id.as_ref().is_some_and(hits)
    }
}
