//! A decision: what a request asks of each level, and all or nothing of it.

use std::{
    num::NonZeroU64,
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use coze_core::{Context, Error, Kind, Limit};
use http::request::Parts;

use crate::{
    Level, Plan, Quota,
    cells::Cells,
    line::{Key, Line},
    permit::{Held, Permit},
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
}

/// What a request asks of a level that applies to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) quota: Quota,
    /// Requests that are taken, and those that must fit.
    pub(crate) cost: u32,
    ask: u32,
    pub(crate) hash: NonZeroU64,
}

impl Gate {
    #[inline(always)]
    pub(crate) fn demand(&self, asking: &Asking<'_>) -> Option<Demand> {
        let level = &self.level;
        let key = level.key(asking.parts, asking.context)?;
        let quota = asking.plan.map_or(&level.quota, |plan| plan.quota(level, asking.context, &key));
        let (cost, besides) = level.cost_and_rest(quota, asking.parts, asking.context);
        let ask = cost.saturating_add(besides);
        (cost > 0).then(|| Demand { quota: *quota, cost, ask, hash: self.cells.hash(&key) })
    }

    /// What is waited for by those who wait for room of the key with this hash. A gate does not move: it is shared from the start.
    pub(crate) fn key(&self, hash: NonZeroU64) -> Key {
        (ptr::from_ref(self).addr(), hash)
    }

    /// Wakes who waits for the key with this hash, of which something was given back.
    pub(crate) fn given_back(&self, hash: NonZeroU64) {
        self.line.given_back(|| self.key(hash));
    }

    /// The refusal of a demand behind others that take so much first; `None` if there are none, and it fits now.
    pub(crate) fn behind(&self, demand: &Demand, ahead: Option<u32>, now: u64) -> Option<Box<Refusal>> {
        let Demand { quota, cost, ask, hash } = *demand;
        let (wait, reset) = match cost > quota.most() {
            true => (NEVER, 0),
            false => slot::wait_behind(&quota, self.cells.known(hash), ahead, ask, now),
        };
        (wait > 0).then(|| demand.refusal(&self.level, wait, reset))
    }
}

impl Demand {
    /// Whether there is ever so much; if not it is refused.
    #[inline(always)]
    fn is_affordable(&self, gate: &Gate, outcome: &mut Outcome) -> bool {
        let is_affordable = self.cost <= self.quota.most();
        if !is_affordable {
            refuse(&gate.level, self, (NEVER, 0), outcome);
        }
        is_affordable
    }

    #[inline(always)]
    fn hold(&self, gate: &Arc<Gate>, is_shared: bool, outcome: &mut Outcome) {
        let held = || Held { gate: gate.clone(), hash: self.hash, requests: self.cost, is_shared };
        match self.quota {
            Quota::Concurrency(_) => outcome.permit.hold(held()),
            Quota::Rate(rate) if gate.level.is_settled => outcome.permit.reserve(held(), rate),
            Quota::Rate(_) => {}
        }
    }

    fn refusal(&self, level: &Level, wait: u64, reset: u64) -> Box<Refusal> {
        Box::new(Refusal { name: level.name, quota: self.quota, wait, reset, is_shed: self.ask > self.cost })
    }
}

/// What comes of a request.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Boxed, as all that is here is moved for those that are admitted.
    pub(crate) refusal: Option<Box<Refusal>>,
    pub(crate) permit: Permit,
    /// The level that would have refused, if it did more than report.
    pub(crate) reported: Option<&'static str>,
}

/// A demand, and the one before it. On the stack, so that nothing is allocated, and where it was made: to move it costs more.
pub(crate) struct Involved<'a> {
    gate: &'a Arc<Gate>,
    demand: &'a Demand,
    before: Option<&'a Involved<'a>>,
}

/// Takes what a request asks of each level, or nothing: then there is a refusal. Keys, quotas and costs are found before the first lock
/// is taken: their functions are not ours, so they do not run under our locks.
#[inline(always)]
pub(crate) fn ask(
    gates: &[Arc<Gate>],
    asking: &Asking<'_>,
    now: u64,
    before: Option<&Involved<'_>>,
    outcome: &mut Outcome,
) {
    let mut gates = gates.iter();
    while let Some(gate) = gates.next() {
        let Some(demand) = gate.demand(asking) else { continue };
        if demand.is_affordable(gate, outcome) {
            let involved = Involved { gate, demand: &demand, before };
            return match gates.as_slice() {
                [] => decide(&involved, now, outcome),
                rest => ask_rest(rest, asking, now, &involved, outcome),
            };
        }
    }
    if let Some(last) = before {
        decide_before(last, now, outcome);
    }
}

/// The same for the levels after the first one.
fn ask_rest(gates: &[Arc<Gate>], asking: &Asking<'_>, now: u64, before: &Involved<'_>, outcome: &mut Outcome) {
    ask(gates, asking, now, Some(before), outcome);
}

/// The same for what is known already.
pub(crate) fn ask_again(
    demands: &[(Arc<Gate>, Demand)],
    now: u64,
    before: Option<&Involved<'_>>,
    outcome: &mut Outcome,
) {
    match (demands, before) {
        ([(gate, demand), rest @ ..], _) if demand.is_affordable(gate, outcome) => {
            ask_again(rest, now, Some(&Involved { gate, demand, before }), outcome);
        }
        ([_, rest @ ..], _) => ask_again(rest, now, before, outcome),
        ([], Some(last)) => decide_before(last, now, outcome),
        ([], None) => {}
    }
}

/// Locks and asks each level on the way in, the last one first, so that the cells that many requests share are locked for the
/// shortest time; takes from each on the way back, when all have agreed.
#[inline(always)]
fn decide(involved: &Involved<'_>, now: u64, outcome: &mut Outcome) {
    let Involved { gate, demand, before } = involved;
    let Demand { quota, cost, ask, hash } = demand;
    let Some(mut locked) = gate.cells.known(*hash) else { return decide_new(involved, now, outcome) };
    let next = slot::next(quota, &locked, *ask, *cost, now);
    if next.is_none() {
        refuse(&gate.level, demand, slot::wait(quota, &locked, *ask, now), outcome);
    }
    if let Some(before) = before {
        decide_before(before, now, outcome);
    }
    if let (Some(next), None) = (next, &outcome.refusal) {
        slot::take(next, quota, &mut locked, *cost, now);
        demand.hold(gate, false, outcome);
    }
}

/// The same for the levels before the last one, which is decided where it is found: a request of one level calls nothing.
fn decide_before(involved: &Involved<'_>, now: u64, outcome: &mut Outcome) {
    decide(involved, now, outcome);
}

/// The same for a key that has no cell of its own yet.
#[cold]
fn decide_new(involved: &Involved<'_>, now: u64, outcome: &mut Outcome) {
    let Involved { gate, demand, before } = involved;
    let Demand { quota, cost, ask, hash } = demand;
    let slot = gate.cells.add(quota, *hash, now);
    let fits = slot.fits(quota, *ask, now);
    if !fits {
        refuse(&gate.level, demand, slot.wait(quota, *ask, now), outcome);
    }
    if let Some(before) = before {
        decide_before(before, now, outcome);
    }
    if fits && outcome.refusal.is_none() {
        let is_shared = slot.take(quota, *cost, now);
        demand.hold(gate, is_shared, outcome);
    }
}

/// Notes the refusal of this level, unless that of a later one waits longer; one that only reports does no more than that.
#[cold]
fn refuse(level: &Level, demand: &Demand, (wait, reset): (u64, u64), outcome: &mut Outcome) {
    if level.is_reported {
        outcome.reported = Some(level.name);
    } else if outcome.refusal.as_ref().is_none_or(|later| later.wait <= wait) {
        outcome.refusal = Some(demand.refusal(level, wait, reset));
    }
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
    /// When to ask again, of one that waits until a time at most: when it fits, or, where nobody knows, when another try is worth it, as
    /// in the sketch it hears nothing of the keys that it shares its cells with. `None` if that is too late, or the request is shed.
    pub(crate) fn until(&self, now: Instant, until: Instant) -> Option<Instant> {
        if self.is_shed {
            return None;
        }
        let then = now.checked_add(Duration::from_nanos(self.wait))?;
        match self.quota {
            Quota::Rate(_) => (then <= until).then_some(then),
            Quota::Concurrency(_) => (self.wait < NEVER && now < until).then_some(then.min(until)),
        }
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
