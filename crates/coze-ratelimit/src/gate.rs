//! A decision: what a request asks of each level, and all or nothing of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use coze_core::{Context, Error, Kind, Limit};
use http::request::Parts;

use crate::{
    Level, Plan, Quota,
    cells::Cells,
    line::Line,
    permit::{Held, Taken},
    slot,
};

/// The wait of a request that costs more than there ever is.
pub(crate) const NEVER: u64 = u64::MAX;

/// A level, what is used of it, and who waits for it.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) level: Level,
    pub(crate) cells: Cells,
    pub(crate) line: Arc<Line>,
}

/// A request, and what is in force when it comes.
pub(crate) struct Asking<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) context: &'a Context,
    pub(crate) plan: Option<&'a Plan>,
    pub(crate) now: u64,
}

/// What a request asks of a level that applies to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) quota: Quota,
    /// Requests that are taken, and those that must fit.
    pub(crate) cost: u32,
    ask: u32,
    pub(crate) hash: u64,
}

impl Gate {
    #[expect(clippy::inline_always, reason = "it is most of a decision that only few of them make a second time")]
    #[inline(always)]
    pub(crate) fn demand(&self, asking: &Asking<'_>) -> Option<Demand> {
        let level = &self.level;
        let key = level.key(asking.parts, asking.context)?;
        let quota = asking.plan.map_or(level.quota, |plan| plan.quota(level, asking.context, &key));
        let (cost, besides) = level.cost_and_rest(&quota, asking.parts, asking.context);
        let ask = cost.saturating_add(besides);
        (cost > 0).then(|| Demand { quota, cost, ask, hash: self.cells.hash(&key) })
    }

    /// The refusal of a demand behind others that take so much first.
    pub(crate) fn behind(&self, demand: &Demand, ahead: u32, now: u64) -> Refusal {
        let Demand { quota, cost, ask, hash } = *demand;
        let (wait, reset) = match cost > quota.most() {
            true => (NEVER, 0),
            false => slot::wait_behind(&quota, self.cells.known(hash), ahead, ask, now),
        };
        demand.refusal(&self.level, wait, reset)
    }
}

impl Demand {
    fn refusal(&self, level: &Level, wait: u64, reset: u64) -> Refusal {
        Refusal { name: level.name, quota: self.quota, wait, reset, is_shed: self.ask > self.cost }
    }
}

/// A demand, and the one before it. On the stack, so that nothing is allocated.
struct Involved<'a> {
    gate: &'a Arc<Gate>,
    demand: Demand,
    before: Option<&'a Involved<'a>>,
}

/// Takes what is asked of each level, or nothing: then it returns the refusal. Keys, quotas and costs are found before the first lock
/// is taken: their functions are not ours, so they do not run under our locks.
#[inline]
pub(crate) fn ask<'a>(
    demands: impl Iterator<Item = (&'a Arc<Gate>, Demand)>,
    now: u64,
    taken: &mut Taken,
) -> Option<Refusal> {
    involve(demands, now, None, None, taken)
}

fn involve<'a>(
    mut demands: impl Iterator<Item = (&'a Arc<Gate>, Demand)>,
    now: u64,
    before: Option<&Involved<'_>>,
    refusal: Option<Refusal>,
    taken: &mut Taken,
) -> Option<Refusal> {
    let Some((gate, demand)) = demands.next() else { return decide(before, now, refusal, taken) };
    if demand.cost > demand.quota.most() {
        let refusal = refuse(&gate.level, &demand, (NEVER, 0), refusal, taken);
        return involve(demands, now, before, refusal, taken);
    }
    involve(demands, now, Some(&Involved { gate, demand, before }), refusal, taken)
}

/// Locks and asks each level on the way in, the last one first, so that the cells that many requests share are locked for the
/// shortest time; takes from each on the way back, when all have agreed.
fn decide(involved: Option<&Involved<'_>>, now: u64, refusal: Option<Refusal>, taken: &mut Taken) -> Option<Refusal> {
    let Some(involved) = involved else { return refusal };
    let Involved { gate, demand: Demand { quota, cost, ask, hash }, before } = involved;
    let Some(locked) = gate.cells.known(*hash) else { return decide_new(involved, now, refusal, taken) };
    if !slot::fits(quota, &locked, *ask, now) {
        let wait = slot::wait(quota, &locked, *ask, now);
        return decide(*before, now, refuse(&gate.level, &involved.demand, wait, refusal, taken), taken);
    }
    let refusal = decide(*before, now, refusal, taken);
    if refusal.is_none() {
        slot::take(quota, locked, *cost, now);
        involved.hold(false, taken);
    }
    refusal
}

/// The same for a key that has no cell of its own yet.
#[cold]
fn decide_new(involved: &Involved<'_>, now: u64, refusal: Option<Refusal>, taken: &mut Taken) -> Option<Refusal> {
    let Involved { gate, demand: Demand { quota, cost, ask, hash }, before } = involved;
    let slot = gate.cells.add(quota, *hash, now);
    if !slot.fits(quota, *ask, now) {
        let wait = slot.wait(quota, *ask, now);
        return decide(*before, now, refuse(&gate.level, &involved.demand, wait, refusal, taken), taken);
    }
    let refusal = decide(*before, now, refusal, taken);
    if refusal.is_none() {
        let is_shared = slot.take(quota, *cost, now);
        involved.hold(is_shared, taken);
    }
    refusal
}

impl Involved<'_> {
    fn hold(&self, is_shared: bool, taken: &mut Taken) {
        let Demand { quota, cost, hash, .. } = self.demand;
        let held = || Held { gate: self.gate.clone(), hash, requests: cost, is_shared };
        match quota {
            Quota::Concurrency(_) => taken.hold(held()),
            Quota::Rate(rate) if self.gate.level.is_settled => taken.reserve(held(), rate),
            Quota::Rate(_) => {}
        }
    }
}

/// The refusal of this level, or that of a later one if it waits longer; or none, where it is only reported.
#[cold]
fn refuse(
    level: &Level,
    demand: &Demand,
    (wait, reset): (u64, u64),
    later: Option<Refusal>,
    taken: &mut Taken,
) -> Option<Refusal> {
    if level.is_reported {
        taken.reported = Some(level.name);
        return later;
    }
    later.filter(|later| later.wait > wait).or(Some(demand.refusal(level, wait, reset)))
}

/// Why a level has no room; times in nanoseconds.
pub(crate) struct Refusal {
    pub(crate) name: &'static str,
    pub(crate) quota: Quota,
    pub(crate) wait: u64,
    pub(crate) reset: u64,
    /// Whether there had to be more room than for the request alone.
    pub(crate) is_shed: bool,
}

impl Refusal {
    /// When to ask again, of one that waits until a time at most: when it fits, or, where nobody knows, when it hears. `None` if that is
    /// too late, or the request is shed.
    pub(crate) fn until(&self, now: Instant, until: Instant) -> Option<Instant> {
        if self.is_shed {
            return None;
        }
        let then = match self.quota {
            Quota::Rate(_) => now.checked_add(Duration::from_nanos(self.wait))?,
            Quota::Concurrency(_) if self.wait == NEVER || now >= until => return None,
            Quota::Concurrency(_) => until,
        };
        (then <= until).then_some(then)
    }
}

impl From<Refusal> for Error {
    #[cold]
    fn from(refusal: Refusal) -> Self {
        let (reason, quota, window) = match refusal.quota {
            Quota::Rate(rate) => ("rate_limited", rate.requests.get(), Duration::from_nanos(rate.period())),
            Quota::Concurrency(limit) => ("concurrency_limited", limit.get(), Duration::ZERO),
        };
        let Refusal { name, wait, reset, .. } = refusal;
        let requests = if quota == 1 { "request" } else { "requests" };
        let allows = match window.as_secs() {
            0 => format!("the limit {name:?} allows {quota} {requests} at once"),
            seconds => format!("the limit {name:?} allows {quota} {requests} per {seconds}s"),
        };
        if wait == NEVER {
            return Self::new(Kind::Quota, "cost_above_quota")
                .with_message(format!("{allows}, and this one costs more"));
        }
        Self::new(Kind::RateLimited, reason)
            .with_message(allows)
            .with_limit(Limit { name, quota, remaining: 0, window, reset: Duration::from_nanos(reset) })
            .with_retry_after(Duration::from_nanos(wait))
    }
}
