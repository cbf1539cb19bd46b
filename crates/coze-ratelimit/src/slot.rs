use crate::{
    Quota, Rate,
    cell::{self, Next, Usage},
    cells::ROWS,
    place::Locked,
    sync::MutexGuard,
};

/// The cells of one key, locked until the slot is dropped or its request taken.
#[derive(Debug)]
pub(crate) enum Slot<'a> {
    Known(Locked<'a>),
    /// A key that is remembered only once a request of it is taken: a refused one leaves no trace.
    New(Locked<'a>, u64, MutexGuard<'a, ()>),
    Shared([Locked<'a>; ROWS]),
}

impl Slot<'_> {
    /// Whether so many requests fit, for which nobody waits.
    pub(crate) fn fits(&self, quota: &Quota, requests: u32, now: u64) -> bool {
        match self {
            Self::Known(locked) => next(quota, locked, requests, 0, now).is_some(),
            Self::New(..) => true,
            Self::Shared(row) => row.iter().any(|locked| next(quota, locked, requests, 0, now).is_some()),
        }
    }

    /// Time until so many requests fit, and until the full quota fits ([`Usage::reset`]), if nobody else comes.
    pub(crate) fn wait(&self, quota: &Quota, requests: u32, now: u64) -> (u64, u64) {
        match self {
            Self::Known(locked) => wait(quota, locked, requests, now),
            Self::New(..) => (0, 0),
            Self::Shared(row) => row.iter().map(|locked| wait(quota, locked, requests, now)).min().unwrap_or_default(),
        }
    }

    /// Takes requests, which fitted. Says whether the sketch has them.
    pub(crate) fn take(self, quota: &Quota, requests: u32, now: u64) -> bool {
        match (self, quota) {
            (Self::Known(mut locked), quota) => change(quota, &mut locked, requests, now),
            (Self::New(mut locked, tag, _adding), quota) => {
                locked.give(tag);
                // What is left there of another key's cell is as good as nothing.
                change(quota, &mut locked, requests, now);
            }
            (Self::Shared(mut row), quota) => {
                row.iter_mut().for_each(|locked| change(quota, locked, requests, now));
                return true;
            }
        }
        false
    }

    /// Takes requests whether they fit or not. In the sketch nobody owes more than the quota.
    pub(crate) fn charge(self, rate: &Rate, requests: u32, now: u64) {
        match self {
            Self::Known(mut locked) => charge(rate, &mut locked, requests, now),
            Self::New(mut locked, tag, _adding) => {
                locked.give(tag);
                charge(rate, &mut locked, requests, now);
            }
            Self::Shared(mut row) => {
                row.iter_mut().for_each(|locked| change(&Quota::Rate(*rate), locked, requests, now));
            }
        }
    }
}

/// [`Slot::fits`] of one cell, with `ask` of it, and what becomes of it by `cost`.
#[inline(always)]
pub(crate) fn next(quota: &Quota, locked: &Locked<'_>, ask: u32, cost: u32, now: u64) -> Option<Next> {
    match quota {
        Quota::Rate(rate) => cell::next(rate, locked.at, locked.words(), ask, cost, now),
        Quota::Concurrency(limit) => cell::fits_in_flight(*limit, ask, locked.words()).then_some(Next::Later),
    }
}

/// [`Slot::wait`] of one cell.
#[cold]
pub(crate) fn wait(quota: &Quota, locked: &Locked<'_>, requests: u32, now: u64) -> (u64, u64) {
    match quota {
        Quota::Rate(rate) => {
            let usage = Usage::load(locked.at, locked.words());
            // Another may have read the clock later and come first. So late it is by now, and from then on it is waited: a
            // nanosecond more than a second would be told as two.
            let now = now.max(locked.at);
            (usage.wait(rate, requests, now), usage.reset(rate, now))
        }
        // Nobody knows when a request in flight will end: another try is worth it in a second.
        Quota::Concurrency(_) => (cell::ANOTHER_TRY, cell::ANOTHER_TRY),
    }
}

/// [`Slot::wait`] behind others, if there are any, that take so many first. A key that is not known has used nothing, or is in the sketch;
/// then it is too short, and who waits by it asks again.
#[cold]
pub(crate) fn wait_behind(
    quota: &Quota,
    locked: Option<Locked<'_>>,
    ahead: Option<u32>,
    requests: u32,
    now: u64,
) -> (u64, u64) {
    if ahead.is_none() && locked.as_ref().is_none_or(|locked| next(quota, locked, requests, 0, now).is_some()) {
        return (0, 0);
    }
    let Quota::Rate(rate) = quota else { return (cell::ANOTHER_TRY, cell::ANOTHER_TRY) };
    let usage = locked.map_or_else(Usage::default, |locked| Usage::load(locked.at, locked.words()));
    // Never zero: those ahead have not taken it yet.
    (usage.wait_behind(rate, ahead.unwrap_or(0), requests, now).max(1), usage.reset(rate, now).max(1))
}

/// [`Slot::take`] of one cell that no other key shares, after [`next`].
#[inline]
pub(crate) fn take(next: Next, quota: &Quota, locked: &mut Locked<'_>, requests: u32, now: u64) {
    match quota {
        Quota::Rate(rate) => cell::take(next, rate, locked, requests, now),
        Quota::Concurrency(_) => cell::hold(locked, requests, now),
    }
}

/// [`Slot::take`] of one cell that may have more in it than fits.
fn change(quota: &Quota, locked: &mut Locked<'_>, requests: u32, now: u64) {
    match quota {
        Quota::Rate(rate) => {
            let mut usage = Usage::load(locked.at, locked.words());
            usage.take(rate, requests, now);
            // A cell that is used up has no more to give; no key of it has used more than its quota.
            usage.skim(rate);
            usage.store(locked);
        }
        Quota::Concurrency(_) => cell::hold(locked, requests, now),
    }
}

fn charge(rate: &Rate, locked: &mut Locked<'_>, requests: u32, now: u64) {
    let mut usage = Usage::load(locked.at, locked.words());
    usage.charge(rate, requests, now);
    usage.store(locked);
}

/// Gives back requests of one cell that no other key shares, taken at `then`.
pub(crate) fn refund(rate: &Rate, mut locked: Locked<'_>, requests: u32, then: u64, now: u64) {
    let mut usage = Usage::load(locked.at, locked.words());
    usage.refund(rate, requests, then, now);
    usage.store(&mut locked);
}
