use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What one retry costs. Counted in hundredths, so that percentages are exact.
const RETRY: u64 = 100;

/// How many retries there may be for so many requests. Clones share it.
///
/// Each request puts in its percentage of a retry, each retry takes one out: whatever fails, and however often a single
/// request may be sent again, the other side never sees more than that percentage of extra load, and the reserve.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    percent: u64,
    most: u64,
    balance: Mutex<u64>,
}

/// One retry out of a [`Budget`]. Dropped unspent, it goes back.
#[must_use = "dropped unspent, it goes back"]
#[derive(Debug)]
pub struct Permit(Option<Budget>);

impl Budget {
    /// Retries for `percent` of the requests, and at most `reserve` of them saved up. It begins with the reserve full, and
    /// without a reserve there is no retry.
    #[must_use]
    pub fn new(percent: u32, reserve: u32) -> Self {
        let full = RETRY * u64::from(reserve);
        // The fraction above the last whole retry is never cut off: a small reserve is as exact as a large one.
        Self(Arc::new(Account { percent: percent.into(), most: full + RETRY - 1, balance: Mutex::new(full) }))
    }

    /// Counts a request that is sent for the first time.
    pub fn deposit(&self) {
        self.add(self.0.percent);
    }

    /// Takes one retry out, if there is one.
    #[must_use]
    pub fn withdraw(&self) -> Option<Permit> {
        let mut balance = self.balance();
        *balance = balance.checked_sub(RETRY)?;
        Some(Permit(Some(self.clone())))
    }

    fn add(&self, amount: u64) {
        let mut balance = self.balance();
        *balance = (*balance + amount).min(self.0.most);
    }

    fn balance(&self) -> MutexGuard<'_, u64> {
        self.0.balance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Budget {
    /// Retries for 20 % of the requests, 10 of them saved up.
    fn default() -> Self {
        Self::new(20, 10)
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
        if let Some(budget) = self.0.take() {
            budget.add(RETRY);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spend(budget: &Budget) -> bool {
        budget.withdraw().map(Permit::spend).is_some()
    }

    fn drained(percent: u32, reserve: u32) -> Budget {
        let budget = Budget::new(percent, reserve);
        assert_eq!((0..reserve + 1).filter(|_| spend(&budget)).count(), reserve as usize);
        budget
    }

    /// github.com/tower-rs/tower/issues/857: fractions were rounded up to a whole retry per request.
    #[test]
    fn sixty_per_cent_are_sixty_of_a_hundred() {
        for reserve in [1, 2, 10] {
            let budget = drained(60, reserve);
            let sent = (0..1000).filter(|_| {
                budget.deposit();
                spend(&budget)
            });
            assert_eq!(sent.count(), 600);
        }
    }

    #[test]
    fn no_more_is_saved_up_than_the_reserve() {
        let budget = Budget::new(100, 2);
        (0..50).for_each(|_| budget.deposit());
        assert_eq!((0..50).filter(|_| spend(&budget)).count(), 2);
        assert!(!spend(&Budget::new(u32::MAX, 0)));
        Budget::new(u32::MAX, u32::MAX).deposit();
    }

    #[test]
    fn a_permit_that_is_not_spent_goes_back() {
        let budget = Budget::new(0, 1);
        let permit = budget.withdraw();
        assert!(budget.withdraw().is_none());
        drop(permit);
        let clone = budget.clone();
        assert!(spend(&budget));
        assert!(clone.withdraw().is_none(), "clones share the account");
    }

    proptest! {
        #[test]
        fn retries_never_exceed_the_percentage_and_the_reserve(
            percent in 0u32..300, reserve in 0u32..20, steps in prop::collection::vec(0u8..3, 0..500)
        ) {
            let budget = Budget::new(percent, reserve);
            let (mut requests, mut retries) = (0u64, 0u64);
            for step in steps {
                match step {
                    0 => { budget.deposit(); requests += 1; }
                    1 => retries += u64::from(spend(&budget)),
                    _ => drop(budget.withdraw()),
                }
                prop_assert!(retries * 100 <= requests * u64::from(percent) + u64::from(reserve) * 100);
            }
        }
    }
}
