//! How fast the calls of one key may follow each other on one level, as arithmetic. Times are nanoseconds.

use std::time::Duration;

use crate::PaceRate;

/// How much later than they were sent calls may arrive, for a window of the other side not to overflow; and how much of a
/// window bursts may take besides, at least: timers are late by so much.
const JITTER: u64 = 95_000_000;
const LATE: u64 = 5_000_000;
/// However often a key was slowed down, it has a call in this time.
pub(crate) const SLOWEST: u64 = 10_000_000_000;
/// The time from nothing to the whole rate.
pub(crate) const RECOVERY: u64 = 60_000_000_000;
/// A whole share.
const WHOLE: u64 = 1 << 32;
/// The wait after a refusal, where nothing can be slowed down.
const WAIT: u64 = 1_000_000_000;
/// The longest pause, whatever the other side says; and that after the end of a quota, where it says nothing.
const LONGEST: u64 = 3_600_000_000_000;
const QUOTA: u64 = 600_000_000_000;

/// What a key may do at its best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Speed {
    /// Between two calls; 0 where there is no limit.
    interval: u64,
    /// By how much of that calls may be early.
    tolerance: u64,
}

/// What the other side says of its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// There is no room at this moment.
    Slow(Option<u64>),
    /// What there was for a long time is used up.
    Stop(Option<u64>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) speed: Speed,
    /// Those who wait for it, and not for longer elsewhere.
    pub(crate) waiting: u32,
    /// When the next call was due if none came early: the theoretical arrival time of the generic cell rate algorithm.
    next: u64,
    /// What is left of the speed, up to all of it, and never nothing.
    share: u64,
    /// When it was last slowed down, and last recovered.
    slowed: Option<u64>,
    recovered: u64,
    /// No call before this.
    paused: u64,
    /// A quota is used up, and the pause is for that.
    is_spent: bool,
}

impl From<Option<PaceRate>> for Speed {
    fn from(rate: Option<PaceRate>) -> Self {
        let Some(PaceRate { calls, per }) = rate else { return Self { interval: 0, tolerance: LATE } };
        let per = nanos(per).max(1);
        let interval = per.saturating_mul(10).div_ceil(u64::from(calls.get()).saturating_mul(9));
        Self { interval, tolerance: (per / 10).saturating_sub(JITTER).max(LATE) }
    }
}

impl Cell {
    pub(crate) fn new(speed: Speed) -> Self {
        Self { speed, waiting: 0, next: 0, share: WHOLE, slowed: None, recovered: 0, paused: 0, is_spent: false }
    }

    /// When the next call may go.
    pub(crate) fn free_at(&self) -> u64 {
        self.next.saturating_sub(self.speed.tolerance).max(self.paused)
    }

    /// When one more may go than those that wait, if nothing changes.
    pub(crate) fn free_after_all(&self) -> u64 {
        self.free_at().saturating_add(self.interval().saturating_mul(self.waiting.into()))
    }

    /// A call goes.
    pub(crate) fn take(&mut self, now: u64) {
        self.next = self.next.max(now).saturating_add(self.interval());
    }

    /// Calls a second.
    pub(crate) fn per_second(&self) -> f64 {
        1e9 / self.interval() as f64
    }

    /// Has it less than its speed?
    pub(crate) fn is_slow(&self) -> bool {
        self.share < WHOLE
    }

    /// Is a quota used up?
    pub(crate) fn is_spent(&self, now: u64) -> bool {
        self.is_spent && now < self.paused
    }

    /// Is it as good as one that was never used?
    pub(crate) fn is_new(&self, now: u64) -> bool {
        !self.is_slow() && self.waiting == 0 && self.next.max(self.paused) <= now
    }

    /// What the answer to a call that was sent at `sent` says. Whether that is news.
    ///
    /// A refusal takes half of the speed, once for all calls that were sent before it came: that is what the answers to those say
    /// together, and none of them says anything of the speed since. What they say of a pause counts all the same.
    pub(crate) fn refused(&mut self, signal: Signal, sent: u64, now: u64) -> bool {
        let is_late = self.slowed.is_some_and(|slowed| sent <= slowed);
        let (share, pause, is_news) = match signal {
            Signal::Slow(_) if is_late => (self.share, 0, false),
            Signal::Slow(_) if self.speed.interval == 0 => (self.share, WAIT, true),
            Signal::Slow(_) => (self.share / 2, 0, true),
            Signal::Stop(_) => (0, QUOTA, !self.is_spent(now)),
        };
        let (Signal::Slow(said) | Signal::Stop(said)) = signal;
        self.is_spent = self.is_spent(now) || matches!(signal, Signal::Stop(_));
        self.share = share.max(self.floor());
        self.paused = self.paused.max(now.saturating_add(said.unwrap_or(pause).min(LONGEST)));
        if is_news {
            self.slowed = Some(now);
        }
        is_news
    }

    /// A call that was sent at `sent` found room. Whether that changed the speed.
    pub(crate) fn accepted(&mut self, sent: u64, now: u64) -> bool {
        if !self.is_slow() || self.slowed.is_some_and(|slowed| sent <= slowed) {
            return false;
        }
        // A pause is no recovery: only calls find out.
        let since = self.recovered.max(self.paused).max(self.slowed.unwrap_or(0));
        let back = part(now.saturating_sub(since), WHOLE, RECOVERY);
        self.share = self.share.saturating_add(back).min(WHOLE);
        self.recovered = self.recovered.max(now);
        true
    }

    /// The other side's limit is another one. Where it is higher, no pause is kept: what was used up was the old one.
    pub(crate) fn change(&mut self, speed: Speed, now: u64) {
        if speed.interval < self.speed.interval {
            self.paused = 0;
        }
        self.speed = speed;
        self.share = self.share.max(self.floor());
        self.next = self.next.min(now.saturating_add(speed.tolerance).saturating_add(self.interval()));
    }

    /// Between two calls, as it is now.
    pub(crate) fn interval(&self) -> u64 {
        part(self.speed.interval, WHOLE, self.share)
    }

    /// The least share. Nothing cannot be halved.
    fn floor(&self) -> u64 {
        match self.speed.interval {
            0 => WHOLE,
            interval => part(interval, WHOLE, SLOWEST).min(WHOLE),
        }
    }
}

/// `value` × `numerator` / `denominator`, rounded up.
fn part(value: u64, numerator: u64, denominator: u64) -> u64 {
    let product = u128::from(value) * u128::from(numerator);
    u64::try_from(product.div_ceil(denominator.into())).unwrap_or(u64::MAX)
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
