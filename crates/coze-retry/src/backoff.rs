use std::time::Duration;

/// How long to wait before another try: `base`·2ⁿ plus a random share of it, capped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first wait. Default 100 ms.
    pub base: Duration,
    /// The largest share that chance adds, 0 to 1; anything else counts as the nearer of the two. Default 0.3.
    pub jitter: f64,
    /// No wait is longer. Default 16 s.
    pub cap: Duration,
}

impl Backoff {
    pub(crate) const DEFAULT: Self =
        Self { base: Duration::from_millis(100), jitter: 0.3, cap: Duration::from_secs(16) };

    /// The wait before another try, when there were `n` before it, and `random` is from \[0, 1).
    ///
    /// It depends on nothing else, never falls as `n` or `random` grow, and is never longer than the cap.
    #[must_use]
    pub fn delay(&self, n: u32, random: f64) -> Duration {
        // 2^1023 is the last power of two that a float can hold. `max` answers zero for what is not a number.
        let power = 2f64.powi(i32::try_from(n).map_or(1023, |n| n.min(1023)));
        let share = (self.jitter.clamp(0.0, 1.0) * random.clamp(0.0, 1.0)).max(0.0);
        let seconds = self.base.as_secs_f64() * power * (1.0 + share);
        Duration::try_from_secs_f64(seconds).unwrap_or(self.cap).min(self.cap)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use proptest::{num::f64::ANY, prelude::*};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn each_wait_is_twice_the_one_before_it_up_to_the_cap() {
        let waits = |random| (0..10).map(|n| Backoff::default().delay(n, random).as_millis()).collect::<Vec<_>>();
        assert_eq!(waits(0.0), [100, 200, 400, 800, 1600, 3200, 6400, 12800, 16000, 16000]);
        assert_eq!(waits(0.5), [115, 230, 460, 920, 1840, 3680, 7360, 14720, 16000, 16000]);
    }

    #[test]
    fn nothing_overflows() {
        let longest = Backoff { base: Duration::MAX, jitter: 1.0, cap: Duration::MAX };
        assert_eq!(longest.delay(u32::MAX, 1.0), Duration::MAX);
        let none = Backoff { base: Duration::ZERO, ..longest };
        assert_eq!(none.delay(u32::MAX, 1.0), Duration::ZERO);
    }

    #[test]
    fn what_is_not_a_share_adds_nothing_strange() {
        for jitter in [f64::NAN, f64::NEG_INFINITY, -1.0] {
            assert_eq!(Backoff { jitter, ..Backoff::default() }.delay(0, 0.9), 100 * MS, "{jitter}");
        }
        assert_eq!(Backoff { jitter: f64::INFINITY, ..Backoff::default() }.delay(0, 0.5), 150 * MS);
        assert_eq!(Backoff::default().delay(0, f64::NAN), 100 * MS);
        assert_eq!(Backoff::default().delay(0, 7.0), 130 * MS);
    }

    proptest! {
        #[test]
        fn a_wait_is_between_the_base_and_the_cap(base: Duration, cap: Duration, jitter in ANY, n: u32, random in ANY) {
            let wait = Backoff { base, jitter, cap }.delay(n, random);
            prop_assert!(wait <= cap);
            // A float has 53 bits: longer bases than some years are rounded.
            let least = base.min(cap);
            prop_assert!(wait.as_secs_f64() >= least.as_secs_f64() * 0.999_999, "{wait:?} < {least:?}");
        }

        #[test]
        fn a_wait_never_falls(base: Duration, jitter in 0.0..1.0, n in 0u32..2000, random in 0.0..1.0, more in 0.0..1.0) {
            let backoff = Backoff { base, jitter, cap: Duration::MAX };
            prop_assert!(backoff.delay(n, random) <= backoff.delay(n + 1, random));
            prop_assert!(backoff.delay(n, random) <= backoff.delay(n, f64::max(random, more)));
            prop_assert!(backoff.delay(n, 0.0) <= backoff.delay(n, random));
        }
    }
}
