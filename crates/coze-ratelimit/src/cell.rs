use std::num::NonZeroU32;

use crate::{Permit, Quota, Rate, gcra::Bucket, permit::InFlight, window::Window};

/// Nobody knows when a request in flight will end: another try is worth it in a second.
const ANOTHER_TRY: u64 = 1_000_000_000;

/// The quota of one key, and what is used of it. Times are nanoseconds since a common beginning.
#[derive(Debug)]
pub(crate) enum Cell {
    Rate { rate: Rate, bucket: Bucket, window: Window },
    Concurrency { limit: NonZeroU32, in_flight: InFlight, last: u64 },
}

impl Cell {
    /// Nothing is used yet.
    pub(crate) fn new(quota: Quota) -> Self {
        match quota {
            Quota::Rate(rate) => Self::Rate { rate, bucket: Bucket::default(), window: Window::default() },
            Quota::Concurrency(limit) => Self::Concurrency { limit, in_flight: InFlight::default(), last: 0 },
        }
    }

    /// Time until one request fits, if nobody else comes: zero if it fits now.
    pub(crate) fn wait(&self, now: u64) -> u64 {
        match self {
            Self::Rate { rate, bucket, window } => {
                bucket.wait(*rate, 1, now).max(window.wait(rate.per_second.get(), 1, now))
            }
            Self::Concurrency { limit, in_flight, .. } if in_flight.count() >= limit.get() as usize => ANOTHER_TRY,
            Self::Concurrency { .. } => 0,
        }
    }

    /// Time until the full quota fits: a second's worth, or as much of it as the burst allows at the same moment.
    pub(crate) fn reset(&self, now: u64) -> u64 {
        match self {
            Self::Rate { rate, bucket, window } => {
                let full = rate.per_second.get();
                bucket.wait(*rate, full.min(rate.burst.get()), now).max(window.wait(full, full, now))
            }
            Self::Concurrency { .. } => ANOTHER_TRY,
        }
    }

    /// Takes one request, for which [`Cell::wait`] was zero.
    pub(crate) fn take(&mut self, now: u64, permit: &mut Permit) {
        match self {
            Self::Rate { rate, bucket, window } => {
                bucket.take(*rate, now);
                window.take(now);
            }
            Self::Concurrency { in_flight, last, .. } => {
                permit.hold(in_flight.clone());
                *last = now.max(*last);
            }
        }
    }

    /// Whether it is as good as new.
    pub(crate) fn is_idle(&self, now: u64) -> bool {
        match self {
            Self::Rate { rate, bucket, window } => {
                let limit = rate.per_second.get();
                window.wait(limit, limit, now) == 0 && bucket.wait(*rate, rate.burst.get(), now) == 0
            }
            Self::Concurrency { in_flight, .. } => in_flight.count() == 0,
        }
    }

    /// When the last request was taken.
    pub(crate) fn last(&self) -> u64 {
        match self {
            Self::Rate { bucket, .. } => bucket.last(),
            Self::Concurrency { last, .. } => *last,
        }
    }
}
