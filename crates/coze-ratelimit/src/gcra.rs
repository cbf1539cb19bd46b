//! The first stage of a rate: a token bucket.
//!
//! It is the generic cell rate algorithm in its form of a continuous-state leaky bucket (ITU-T I.371, annex A), counted in
//! whole units: a request pours in as many units as a second has nanoseconds, and as many as there are requests per second
//! drain in each nanosecond (or per minute, where it is a rate per minute). So no rate has a remainder to lose, and nothing drifts.

use crate::{Rate, window::SECOND};

/// The longest debt, in nanoseconds: an hour. What is charged beyond it is forgotten, so that nobody waits for days.
const MAX_DEBT: u64 = 3600 * SECOND;

/// What is in the bucket of one key. The empty bucket is the default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    /// When `level` was true, in nanoseconds. It never goes back.
    pub(crate) at: u64,
    /// Units in the bucket: at most the burst, less than 2⁶³ for the largest, unless it was settled for more than there was.
    pub(crate) level: u64,
}

impl Bucket {
    /// Whether `requests` fit now. At most the burst ever fits.
    #[inline]
    pub(crate) fn fits(&self, rate: &Rate, requests: u32, now: u64) -> bool {
        self.drained(rate, now) <= room(rate, requests)
    }

    /// Nanoseconds from `now` until `requests` fit, if nobody else comes: zero if they fit now. At most the burst ever fits.
    pub(crate) fn wait(&self, rate: &Rate, requests: u32, now: u64) -> u64 {
        match self.drained(rate, now).saturating_sub(room(rate, requests)) {
            0 => 0,
            excess => self.at.saturating_sub(now).saturating_add(excess.div_ceil(u64::from(rate.requests.get()))),
        }
    }

    /// Pours in requests, which fitted or are owed.
    #[inline]
    pub(crate) fn take(&mut self, rate: &Rate, requests: u32, now: u64) {
        self.level = self.drained(rate, now).saturating_add(units(rate, requests));
        self.at = self.at.max(now);
    }

    /// Pours in requests, whether they fit or not, up to a debt of [`MAX_DEBT`].
    pub(crate) fn charge(&mut self, rate: &Rate, requests: u32, now: u64) {
        let brim = room(rate, 0).saturating_add(MAX_DEBT.saturating_mul(rate.requests.get().into()));
        let most = self.drained(rate, now).max(brim);
        self.take(rate, requests, now);
        self.level = self.level.min(most);
    }

    /// Takes out requests that were poured in at `then`, or what is left of them. They fitted, so the bucket was full up to the brim
    /// at most, and what was in it drains before what was poured in later: else they would take out what others used since.
    pub(crate) fn refund(&mut self, rate: &Rate, requests: u32, then: u64, now: u64) {
        let drained = now.max(self.at).saturating_sub(then).saturating_mul(rate.requests.get().into());
        let left = room(rate, 0).saturating_sub(drained);
        // The same as if it had drained until now first.
        self.level = self.level.saturating_sub(units(rate, requests).min(left));
    }

    /// Forgets what is above the brim.
    pub(crate) fn skim(&mut self, rate: &Rate) {
        self.level = self.level.min(room(rate, 0));
    }

    /// Units in the bucket at `now`; a time before the last one counts as the last one.
    #[inline]
    fn drained(&self, rate: &Rate, now: u64) -> u64 {
        self.level.saturating_sub(now.saturating_sub(self.at).saturating_mul(u64::from(rate.requests.get())))
    }
}

/// The level up to which `requests` have room. Cannot overflow: less than 2⁶³ for the largest burst.
#[inline]
fn room(rate: &Rate, requests: u32) -> u64 {
    u64::from(rate.burst.get().saturating_sub(requests)) * rate.period()
}

#[inline]
fn units(rate: &Rate, requests: u32) -> u64 {
    u64::from(requests).saturating_mul(rate.period())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    const REQUEST: u64 = 1_000_000_000;

    fn rate(per_second: u32, burst: u32) -> Rate {
        let n = |n| NonZeroU32::new(n).expect("not zero");
        Rate::per_second(n(per_second)).burst(n(burst))
    }

    fn admit(bucket: &mut Bucket, rate: Rate, now: u64) -> bool {
        let admitted = bucket.fits(&rate, 1, now);
        assert_eq!(bucket.wait(&rate, 1, now) == 0, admitted);
        if admitted {
            bucket.take(&rate, 1, now);
        }
        admitted
    }

    /// The promise itself: since each earlier admission, this one included, no more than burst + rate × t.
    fn allowed(admitted: &[u64], rate: Rate, now: u64) -> bool {
        (0..=admitted.len()).all(|first| {
            let count = (admitted.len() - first + 1) as u128;
            let elapsed = now - admitted.get(first).copied().unwrap_or(now);
            let allowed =
                u128::from(rate.burst.get()) * 1_000_000_000 + u128::from(elapsed) * u128::from(rate.requests.get());
            count * 1_000_000_000 <= allowed
        })
    }

    #[test]
    fn nothing_drifts_however_odd_the_rate() {
        for per_second in [1, 3, 7, 49, 999_999_937, u32::MAX] {
            // A burst above what drains in a nanosecond at the largest rate.
            let rate = rate(per_second, 10);
            let (mut bucket, mut now, mut admitted) = (Bucket::default(), 0, 0_u128);
            for _ in 0..100_000 {
                now += bucket.wait(&rate, 1, now);
                assert!(admit(&mut bucket, rate, now));
                admitted += 1;
                let exact = 10 + u128::from(now) * u128::from(per_second) / 1_000_000_000;
                assert!(admitted <= exact, "{admitted} of {exact} at {per_second} per second");
            }
            // As early as whole nanoseconds allow: not one request of the rate is lost either.
            let before = 10 + u128::from(now - 1) * u128::from(per_second) / 1_000_000_000;
            assert!(admitted >= before, "{admitted} of {before} at {per_second} per second");
        }
    }

    #[test]
    fn the_largest_rate_and_burst_fit() {
        let rate = rate(u32::MAX, u32::MAX);
        let mut bucket = Bucket { at: 7, level: u64::from(u32::MAX - 1) * REQUEST };
        assert!(admit(&mut bucket, rate, 7));
        assert!(!admit(&mut bucket, rate, 7));
        assert_eq!(bucket.wait(&rate, u32::MAX, 7), 1_000_000_000);
    }

    proptest! {
        #[test]
        fn it_admits_what_the_definition_of_a_token_bucket_admits(
            per_second in 1_u32..2000, burst in 1_u32..20, steps in prop::collection::vec(0_u64..20_000_000, 1..200),
        ) {
            let rate = rate(per_second, burst);
            let (mut bucket, mut now, mut admitted) = (Bucket::default(), 0, Vec::new());
            for step in steps {
                now += step;
                let expected = allowed(&admitted, rate, now);
                prop_assert_eq!(admit(&mut bucket, rate, now), expected);
                if expected {
                    admitted.push(now);
                }
            }
        }

        #[test]
        fn a_wait_is_exact(
            per_second in 1_u32.., burst in 1_u32..1000, at in any::<u64>(), filled in 0_u64..=1000, ask in 1_u32..1000,
            back in 0_u64..5_000_000_000,
        ) {
            let rate = rate(per_second, burst);
            let bucket = Bucket { at, level: filled.min(burst.into()) * REQUEST };
            let ask = ask.min(burst);
            let now = at.saturating_sub(back);
            let wait = bucket.wait(&rate, ask, now);
            if let Some(then) = now.checked_add(wait) {
                prop_assert_eq!(bucket.wait(&rate, ask, then), 0);
                prop_assert!(wait == 0 || bucket.wait(&rate, ask, then - 1) == 1);
            }
        }

        #[test]
        fn no_time_overflows_and_time_that_goes_back_counts_as_the_last(
            per_second in prop_oneof![1_u32..50, 1_u32..], burst in prop_oneof![1_u32..10, 1_u32..],
            times in prop::collection::vec(prop_oneof![any::<u64>(), 0_u64..3_000_000_000], 1..50),
            near in any::<bool>(),
        ) {
            let rate = rate(per_second, burst);
            let (mut bucket, mut monotonic, mut last) = (Bucket::default(), Bucket::default(), 0);
            for now in times.into_iter().map(|now| if near { now % 3_000_000_000 } else { now }) {
                // A refusal leaves no trace, so only an admission moves the clock.
                let admitted = admit(&mut bucket, rate, now);
                prop_assert_eq!(admitted, admit(&mut monotonic, rate, now.max(last)));
                last = if admitted { now.max(last) } else { last };
            }
        }
    }
}
