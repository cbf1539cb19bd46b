//! The account of a budget in one atomic word, so that neither a lock nor two steps lie between refill and spending.
//!
//! `tests/loom.rs` includes this file with the atomics of loom.

use super::sync::{AtomicU64, Ordering::Relaxed};

/// The most a word can hold, in thousandths of a retry.
pub(crate) const MOST: u64 = (1 << BALANCE) - 1;

/// The bits of the balance. The other 40 are milliseconds, which last for 34 years.
const BALANCE: u32 = 24;

/// Thousandths of a retry in the low bits, and in the high ones the millisecond until which time has been paid for.
///
/// Thousandths, because then a percentage is whole, and so is what a millisecond brings at so many retries a second: nothing is
/// ever rounded.
#[derive(Debug)]
pub(crate) struct Word(AtomicU64);

impl Word {
    pub(crate) fn new(balance: u64) -> Self {
        Self(AtomicU64::new(balance.min(MOST)))
    }

    /// Adds so many thousandths where there are fewer than `full`, but never above `most`.
    pub(crate) fn add(&self, amount: u64, full: u64, most: u64) -> Option<Step> {
        self.step(|time, balance| (balance < full).then(|| (time, balance.saturating_add(amount).min(most))))
    }

    /// Takes `cost` thousandths out, if there are as many, after adding what time has brought since it was last paid for:
    /// `rate` thousandths for each millisecond until `now`, and never above `most`.
    pub(crate) fn take(&self, cost: u64, most: u64, rate: u64, now: u64) -> Option<Step> {
        self.step(|time, balance| {
            // Another thread may have read a later clock before.
            let brought = now.saturating_sub(time).saturating_mul(rate);
            let balance = balance.saturating_add(brought).min(most).max(balance);
            Some((time.max(now), balance.checked_sub(cost)?))
        })
    }

    fn step(&self, change: impl Fn(u64, u64) -> Option<(u64, u64)>) -> Option<Step> {
        let mut after = 0;
        // Relaxed: the word is all there is, no other memory is read because of what it says. Where nothing changes nothing is
        // written, so that it stays in the caches of all cores.
        let before = self.0.fetch_update(Relaxed, Relaxed, |word| {
            let (time, balance) = change(word >> BALANCE, word & MOST)?;
            after = balance;
            Some(time << BALANCE | balance)
        });
        Some(Step { before: before.ok()? & MOST, after })
    }
}

/// A balance before and after a change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) before: u64,
    pub(crate) after: u64,
}
