use std::time::Duration;

use coze_core::{Error, Retry};

/// The first pause, and the longest one.
const BASE: Duration = Duration::from_millis(500);
const CAP: Duration = Duration::from_secs(30);
/// The longest `Retry-After` that is obeyed.
const MAX_ASKED: Duration = Duration::from_secs(300);
/// The least pause after an answer that is final, until somebody changes something.
const FINAL: Duration = Duration::from_secs(60);
/// Nothing is looked at less often.
const MAX_POLL: Duration = Duration::from_secs(86_400);
/// Nothing is looked at more often.
const FLOOR: Duration = Duration::from_secs(1);
/// Nothing is renewed more often; less than the share of the shortest life there is, a second.
const MIN_RENEWAL: Duration = Duration::from_millis(500);

/// How long after it was given something with this life is renewed: 60 to 75 % of it, at least half a second. `random` is in
/// 0..1.
pub(crate) fn renewal(life: Duration, random: f64) -> Duration {
    life.mul_f64(0.15f64.mul_add(random, 0.6)).max(MIN_RENEWAL)
}

/// The time between two looks: 90 to 110 % of what was asked for. `random` is in 0..1.
pub(crate) fn poll(interval: Duration, random: f64) -> Duration {
    interval.min(MAX_POLL).mul_f64(0.2f64.mul_add(random, 0.9)).max(FLOOR)
}

/// The pause after this many failures in a row: it doubles, up to half of it is random, and what the server asked for is the
/// least; a minute where nothing will change by itself. `random` is in 0..1.
pub(crate) fn pause(failures: u32, error: &Error, random: f64) -> Duration {
    let pause = BASE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(CAP);
    let asked = match error.retry() {
        Retry::Never => FINAL,
        _ => error.retry_after().unwrap_or_default().min(MAX_ASKED),
    };
    pause.mul_f64(0.5f64.mul_add(-random, 1.0)).max(asked)
}

#[cfg(test)]
mod tests {
    use coze_core::Kind;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_renewal_leaves_a_quarter_of_the_life(seconds in 1_u64..100_000_000, random in 0.0..1.0_f64) {
            let life = Duration::from_secs(seconds);
            let at = renewal(life, random);
            prop_assert!(at >= life.mul_f64(0.59) && at <= life.mul_f64(0.76), "{at:?}");
        }

        #[test]
        fn no_time_is_too_short_or_too_long(seconds: u64, failures: u32, asked: u32, random in 0.0..1.0_f64) {
            let time = Duration::from_secs(seconds);
            prop_assert!((FLOOR..=MAX_POLL * 2).contains(&poll(time, random)));
            prop_assert!(renewal(time / 2, random) >= MIN_RENEWAL);
            let error = Error::new(Kind::Unavailable, "x").with_retry_after(Duration::from_secs(asked.into()));
            let wait = pause(failures, &error, random);
            prop_assert!(wait >= BASE / 2 && wait <= MAX_ASKED);
            prop_assert!(wait >= error.retry_after().expect("set").min(MAX_ASKED));
        }
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        let error = Error::new(Kind::Unavailable, "x");
        let pauses: Vec<_> = (1..=8).map(|failures| pause(failures, &error, 0.0).as_millis()).collect();
        let refused = Error::new(Kind::Invalid, "x");
        assert_eq!(pause(1, &refused, 0.0), FINAL);
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    }
}
