use std::{
    hash::{BuildHasher, Hash},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    hash::Secret,
    word::{MOST, Step, Word},
};

/// One retry, in the unit of a [`Word`].
const RETRY: u64 = 1000;
/// One per cent of a retry.
const PERCENT: u64 = RETRY / 100;

/// How many retries there may be for so many requests. Clones share it.
///
/// Each request puts in its percentage of a retry, each retry takes out what it costs: whatever fails, and however often a
/// single request may be sent again, the other side never sees more than that percentage of extra load, and the reserve. All
/// is exact: 60 % are 60 retries for 100 requests.
///
/// ```
/// use coze_retry::Budget;
/// use tokio::time::Instant;
///
/// let budget = Budget::new(60, 1);
/// let now = Instant::now();
/// budget.deposit("api.coze.cn");
/// budget.withdraw("api.coze.cn", 100, now).expect("the reserve").spend();
/// assert!(budget.withdraw("api.coze.cn", 100, now).is_none(), "0.6 are left");
/// ```
#[derive(Clone, Debug)]
pub struct Budget(Arc<Accounts>);

#[derive(Debug)]
struct Accounts {
    percent: u64,
    full: u64,
    /// How many accounts hold less than that. While there is none a request costs one look here.
    ///
    /// It may be late by a moment: then a deposit counts as made before the withdrawal, when there was no room for it.
    short: AtomicUsize,
    /// Thousandths for each millisecond, which are retries for each second.
    rate: u64,
    accounts: Box<[Word]>,
    hasher: Secret,
    start: Instant,
}

/// What one retry costs, out of a [`Budget`]. Dropped unspent, it goes back.
#[must_use = "dropped unspent, it goes back"]
#[derive(Debug)]
pub struct Permit(Option<(Budget, usize, u64)>);

impl Budget {
    /// Retries for `percent` of the requests, and at most `reserve` of them saved up (and never more than 16 776). It begins
    /// with the reserve full, and without a reserve there is no retry.
    #[must_use]
    pub fn new(percent: u32, reserve: u32) -> Self {
        Self::with(percent.into(), (RETRY * u64::from(reserve)).min(MOST + 1 - RETRY), 0, 1)
    }

    /// The same, and so many retries for each second that passes, whatever the number of requests: for callers that ask
    /// seldom. Default 0. It begins anew, with the reserve full.
    #[must_use]
    pub fn per_second(self, retries: u32) -> Self {
        let Accounts { percent, full, accounts, .. } = &*self.0;
        Self::with(*percent, *full, retries.into(), accounts.len())
    }

    /// The same for each of so many accounts, 1 to 65 536; default 1. Each key has one of them, so keys that are not alike may
    /// share one: there are never more retries for that, and memory is bounded, 8 bytes an account. It begins anew, with the
    /// reserves full.
    #[must_use]
    pub fn accounts(self, count: usize) -> Self {
        let Accounts { percent, full, rate, .. } = &*self.0;
        Self::with(*percent, *full, *rate, count)
    }

    fn with(percent: u64, full: u64, rate: u64, accounts: usize) -> Self {
        Self(Arc::new(Accounts {
            percent,
            full,
            short: AtomicUsize::new(0),
            rate,
            accounts: (0..accounts.clamp(1, 1 << 16)).map(|_| Word::new(full)).collect(),
            hasher: Secret::default(),
            start: Instant::now(),
        }))
    }

    /// Counts a request that is sent for the first time, to the account of `key`. One that holds its reserve takes nothing.
    #[inline]
    pub fn deposit(&self, key: impl Hash) {
        if self.0.short.load(Relaxed) > 0 {
            self.0.add(self.account(key), self.0.percent * PERCENT);
        }
    }

    /// Takes one retry out of the account of `key`, if there is one. `cost` is what it costs in per cent of a retry: with 200
    /// it counts as two.
    #[must_use]
    pub fn withdraw(&self, key: impl Hash, cost: u32, now: Instant) -> Option<Permit> {
        let (account, cost) = (self.account(key), u64::from(cost) * PERCENT);
        let now = millis(now.saturating_duration_since(self.0.start));
        let step = self.0.accounts[account].take(cost, self.0.most(), self.0.rate, now)?;
        self.0.count(step);
        Some(Permit(Some((self.clone(), account, cost))))
    }

    fn account(&self, key: impl Hash) -> usize {
        let Accounts { accounts, hasher, .. } = &*self.0;
        match accounts.len() {
            1 => 0,
            // The remainder is less than the length, which is a usize.
            len => usize::try_from(hasher.hash_one(key) % len as u64).unwrap_or(0),
        }
    }
}

impl Accounts {
    /// The fraction above the last whole retry is never cut off: a small reserve is as exact as a large one.
    fn most(&self) -> u64 {
        self.full + RETRY - 1
    }

    fn add(&self, account: usize, amount: u64) {
        if let Some(step) = self.accounts[account].add(amount, self.full, self.most()) {
            self.count(step);
        }
    }

    fn count(&self, step: Step) {
        match (step.before < self.full, step.after < self.full) {
            (false, true) => _ = self.short.fetch_add(1, Relaxed),
            // Before another thread has added its one this is below zero, which wraps around and is not none.
            (true, false) => _ = self.short.fetch_sub(1, Relaxed),
            _ => {}
        }
    }
}

impl Default for Budget {
    /// Retries for 20 % of the requests, 10 of them saved up, in each of 256 accounts.
    fn default() -> Self {
        Self::new(20, 10).accounts(256)
    }
}

impl Permit {
    /// The retry is sent: nothing goes back.
    pub fn spend(mut self) {
        self.0 = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((budget, account, cost)) = self.0.take() {
            budget.0.add(account, cost);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spend(budget: &Budget) -> bool {
        budget.withdraw(0, 100, budget.0.start).map(Permit::spend).is_some()
    }

    fn drained(percent: u32, reserve: u32) -> Budget {
        let budget = Budget::new(percent, reserve);
        assert_eq!((0..reserve + 1).filter(|_| spend(&budget)).count(), reserve as usize);
        budget
    }

    /// github.com/tower-rs/tower/issues/857: fractions were rounded up to a whole retry per request.
    #[test]
    fn sixty_per_cent_are_sixty_of_a_hundred() {
        for (percent, reserve) in [(60, 1), (60, 2), (60, 10), (1, 3), (99, 1), (250, 4)] {
            let budget = drained(percent, reserve);
            let sent = (0..1000).map(|_| {
                budget.deposit(0);
                (0..4).filter(|_| spend(&budget)).count()
            });
            assert_eq!(sent.sum::<usize>(), percent as usize * 10);
        }
    }

    #[test]
    fn no_more_is_saved_up_than_the_reserve() {
        let budget = Budget::new(100, 2);
        (0..50).for_each(|_| budget.deposit(0));
        assert_eq!((0..50).filter(|_| spend(&budget)).count(), 2);
        assert!(!spend(&Budget::new(u32::MAX, 0)));
        let largest = Budget::new(u32::MAX, u32::MAX).per_second(u32::MAX);
        largest.deposit(0);
        assert_eq!((0..20_000).filter(|_| spend(&largest)).count(), 16_776);
    }

    #[test]
    fn a_permit_that_is_not_spent_goes_back() {
        let budget = Budget::new(0, 1);
        let permit = budget.withdraw(0, 100, budget.0.start);
        assert!(budget.withdraw(0, 100, budget.0.start).is_none());
        drop(permit);
        let clone = budget.clone();
        assert!(spend(&budget));
        assert!(clone.withdraw(0, 100, budget.0.start).is_none(), "clones share the account");
    }

    #[test]
    fn a_dear_retry_counts_for_more() {
        let budget = Budget::new(0, 5);
        let take = |cost| budget.withdraw(0, cost, budget.0.start).map(Permit::spend).is_some();
        assert!(take(200) && take(200) && !take(200) && take(50) && take(50) && !take(1) && take(0));
    }

    #[test]
    fn time_brings_so_many_a_second_and_no_more_than_the_reserve() {
        let budget = Budget::new(0, 2).per_second(3);
        let at = |ms| budget.0.start + Duration::from_millis(ms);
        let taken = |ms| (0..9).filter(|_| budget.withdraw(0, 100, at(ms)).map(Permit::spend).is_some()).count();
        assert_eq!(
            [0, 333, 334, 600, 1000, 9000, 5000].map(taken),
            [2, 0, 1, 0, 2, 2, 0],
            "a clock that goes back adds nothing"
        );
    }

    #[test]
    fn each_key_has_its_account_and_there_are_never_more_than_that() {
        let budget = Budget::new(0, 1).accounts(64);
        let taken = (0..10_000).filter(|key| budget.withdraw(key, 100, budget.0.start).map(Permit::spend).is_some());
        assert_eq!(taken.count(), 64);
        assert_eq!(Budget::new(0, 1).accounts(usize::MAX).0.accounts.len(), 1 << 16);
    }

    proptest! {
        /// The obvious model counts whole numbers and has all the time in the world.
        #[test]
        fn it_is_the_obvious_account(
            percent in 0u32..300, reserve in 0u32..20, rate in 0u32..5,
            steps in prop::collection::vec((0u8..4, 0u32..300, 0u64..2000), 0..300)
        ) {
            let budget = Budget::new(percent, reserve).per_second(rate);
            let (mut model, mut kept, mut now) = (u64::from(reserve) * 1000, Vec::new(), 0);
            let mut paid = 0;
            let (full, most) = (model, model + 999);
            for (step, cost, pause) in steps {
                now += pause;
                let thousandths = u64::from(cost) * 10;
                match step {
                    0 => { budget.deposit(0); if model < full { model = (model + u64::from(percent) * 10).min(most); } }
                    1 | 2 => {
                        let permit = budget.withdraw(0, cost, budget.0.start + Duration::from_millis(now));
                        // What time brings is there when somebody asks for it.
                        let there = (model + (now - paid) * u64::from(rate)).min(most);
                        prop_assert_eq!(permit.is_some(), there >= thousandths);
                        let Some(permit) = permit else { continue };
                        (model, paid) = (there - thousandths, now);
                        if step == 1 { permit.spend(); } else { kept.push((permit, thousandths)); }
                    }
                    _ => if let Some((permit, thousandths)) = kept.pop() {
                        drop(permit);
                        if model < full { model = (model + thousandths).min(most); }
                    }
                }
            }
        }
    }
}
