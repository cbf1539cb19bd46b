use std::num::NonZeroU32;

/// How much one key of a level may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quota {
    /// So many requests per second.
    Rate(Rate),
    /// So many requests at once: each counts from its admission to the end of its response body.
    Concurrency(NonZeroU32),
}

impl Quota {
    /// Requests per second, or at once.
    pub(crate) fn limit(&self) -> NonZeroU32 {
        match self {
            Self::Rate(rate) => rate.per_second,
            Self::Concurrency(limit) => *limit,
        }
    }

    /// The most that one request may cost.
    pub(crate) fn most(&self) -> u32 {
        match self {
            Self::Rate(rate) => rate.per_second.min(rate.burst).get(),
            Self::Concurrency(limit) => limit.get(),
        }
    }
}

impl From<Rate> for Quota {
    fn from(rate: Rate) -> Self {
        Self::Rate(rate)
    }
}

/// Requests per second, kept in two stages that must both have room (requirement R4.2).
///
/// The **window** holds at most the rate in the current slice of 100 ms and the nine before it: so many requests, and no
/// more, in any ten consecutive slices, hence in any 900 ms wherever they begin. The **bucket** holds at most `burst` + rate
/// × t requests in any stretch of t seconds, exactly, however long it is.
///
/// With the default burst the window is the stricter stage. A burst below the rate spreads the requests: a burst of 1 lets
/// them through one by one, a full interval apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub(crate) per_second: NonZeroU32,
    pub(crate) burst: NonZeroU32,
}

impl Rate {
    /// `requests` per second, with a burst of twice that.
    #[must_use]
    pub const fn per_second(requests: NonZeroU32) -> Self {
        Self { per_second: requests, burst: requests.saturating_add(requests.get()) }
    }

    /// The capacity of the bucket, in requests: how many it takes at the same moment. Default: twice the rate.
    #[must_use]
    pub const fn burst(self, requests: NonZeroU32) -> Self {
        Self { burst: requests, ..self }
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
        assert_eq!(Rate::per_second(n(50)).burst(n(7)), Rate { per_second: n(50), burst: n(7) });
    }
}
