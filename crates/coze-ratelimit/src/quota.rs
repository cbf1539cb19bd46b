use std::num::NonZeroU32;

use crate::window::SECOND;

/// A bucket has 64 bits (53 in Redis), and a request of a rate per minute fills it sixty times as much.
const MOST_PER_MINUTE: NonZeroU32 = NonZeroU32::new(100_000_000).expect("not zero");

/// How much one key of a level may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quota {
    /// So many requests per second, or per minute.
    Rate(Rate),
    /// So many requests at once: each counts from its admission to the end of its response body.
    Concurrency(NonZeroU32),
}

impl Quota {
    /// Requests per second or minute, or at once.
    pub(crate) fn limit(&self) -> NonZeroU32 {
        match self {
            Self::Rate(rate) => rate.requests,
            Self::Concurrency(limit) => *limit,
        }
    }

    /// The same at this rate, if it is lower.
    pub(crate) fn at_most(self, per_period: u32) -> Self {
        match self {
            Self::Rate(rate) => {
                let requests = NonZeroU32::new(per_period).map_or(rate.requests, |most| most.min(rate.requests));
                Self::Rate(Rate { requests, ..rate })
            }
            Self::Concurrency(_) => self,
        }
    }

    /// Whether what is used of the one counts alike for the other.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Rate(rate), Self::Rate(other)) => rate.period == other.period,
            (Self::Concurrency(_), Self::Concurrency(_)) => true,
            _ => false,
        }
    }

    /// The most that one request may cost.
    pub(crate) fn most(&self) -> u32 {
        match self {
            Self::Rate(rate) => rate.window().min(rate.burst.get()),
            Self::Concurrency(limit) => limit.get(),
        }
    }
}

impl From<Rate> for Quota {
    fn from(rate: Rate) -> Self {
        Self::Rate(rate)
    }
}

/// Requests per second, kept in two stages that must both have room (requirement R4.2), or per minute, kept in the second of them.
///
/// The **window** holds at most the rate in the current slice of 100 ms and the nine before it: so many requests, and no
/// more, in any ten consecutive slices, hence in any 900 ms wherever they begin. The **bucket** holds at most `burst` + rate
/// × t requests in any stretch of t seconds, exactly, however long it is.
///
/// With the default burst the window is the stricter stage. A burst below the rate spreads the requests: a burst of 1 lets
/// them through one by one, a full interval apart.
/// A rate **per minute** has no window, so that a single request may cost a good part of it, such as the tokens of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Per period.
    pub(crate) requests: NonZeroU32,
    pub(crate) burst: NonZeroU32,
    pub(crate) period: Period,
}

/// What a rate counts by. As wide as the numbers of the rate: with bytes that mean nothing in it, a rate takes longer to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Period {
    Second,
    Minute,
}

impl Rate {
    /// `requests` per second, with a burst of twice that.
    #[must_use]
    pub const fn per_second(requests: NonZeroU32) -> Self {
        Self { requests, burst: requests.saturating_add(requests.get()), period: Period::Second }
    }

    /// `requests` per minute, with a burst of as many: at most `requests` at the same moment, and twice that in the minute that
    /// begins with it. There is no window. More than 100 000 000 count as so many.
    #[must_use]
    pub const fn per_minute(requests: NonZeroU32) -> Self {
        let requests = if requests.get() > MOST_PER_MINUTE.get() { MOST_PER_MINUTE } else { requests };
        Self { requests, burst: requests, period: Period::Minute }
    }

    /// The capacity of the bucket, in requests: how many it takes at the same moment. Default: twice the rate per second, or the
    /// rate per minute; of the latter at most 100 000 000.
    #[must_use]
    pub const fn burst(self, requests: NonZeroU32) -> Self {
        match self.period {
            Period::Minute if requests.get() > MOST_PER_MINUTE.get() => Self { burst: MOST_PER_MINUTE, ..self },
            _ => Self { burst: requests, ..self },
        }
    }

    /// The most in the window: without one, more than there ever is.
    #[inline]
    pub(crate) const fn window(&self) -> u32 {
        match self.period {
            Period::Second => self.requests.get(),
            Period::Minute => u32::MAX,
        }
    }

    /// The period in nanoseconds. As many units a request pours into the bucket, of which `requests` drain in each nanosecond.
    #[inline]
    pub(crate) const fn period(&self) -> u64 {
        match self.period {
            Period::Second => SECOND,
            Period::Minute => 60 * SECOND,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_is_twice_the_rate_unless_set() {
        let n = |n| NonZeroU32::new(n).expect("not zero");
        assert_eq!(Rate::per_second(n(50)).burst, n(100));
        assert_eq!(Rate::per_second(n(u32::MAX)).burst, n(u32::MAX), "or as much as there is");
        let slow = Rate { requests: n(50), burst: n(7), period: Period::Second };
        assert_eq!(Rate::per_second(n(50)).burst(n(7)), slow);
    }

    #[test]
    fn a_rate_per_minute_has_no_window_and_its_largest_bucket_does_not_overflow() {
        let n = |n| NonZeroU32::new(n).expect("not zero");
        let rate = Rate::per_minute(n(100_000));
        assert_eq!((rate.burst, Quota::from(rate).most(), rate.window()), (n(100_000), 100_000, u32::MAX));
        let largest = Rate::per_minute(n(u32::MAX));
        assert_eq!((largest.requests, largest.burst(n(u32::MAX)).burst), (MOST_PER_MINUTE, MOST_PER_MINUTE));
        assert!(u64::from(largest.burst.get()).checked_mul(largest.period()).is_some());
    }
}
