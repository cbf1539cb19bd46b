use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use coze_core::Context;
use smallvec::SmallVec;

use crate::{
    Rate,
    gate::Gate,
    limits::nanos,
    slot::{self, Slot},
};

/// What an admitted request holds: its places in the levels that limit concurrency, and what it took of those that settle its cost.
///
/// Dropping it ends the request before its end: everything that was taken is given back, but for the cost that the context names.
/// [`Limits::completed`](crate::Policy::completed) ends it well.
#[derive(Debug, Default)]
pub struct Permit {
    in_flight: SmallVec<[Held; 2]>,
    /// Boxed, so that whoever settles nothing does not carry it along.
    costs: Option<Box<Costs>>,
}

/// What is taken for a request while it is decided about, and the level that would have refused, if it did more than report.
#[derive(Default)]
pub(crate) struct Taken {
    permit: Permit,
    pub(crate) reported: Option<&'static str>,
}

/// Requests that are counted in the cell of a key.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) gate: Arc<Gate>,
    pub(crate) hash: u64,
    pub(crate) requests: u32,
    pub(crate) is_shared: bool,
}

/// What was taken before the cost was known.
#[derive(Debug, Default)]
struct Costs {
    reserved: SmallVec<[(Held, Rate); 2]>,
    /// When it was taken.
    then: u64,
    /// Where the cost is noted, and the time that counts as zero.
    settling: Option<(Context, Arc<OnceLock<Instant>>)>,
    is_complete: bool,
}

impl Taken {
    /// Has it count as in flight.
    pub(crate) fn hold(&mut self, held: Held) {
        self.permit.in_flight.push(held);
    }

    /// Has it be settled when the request ends.
    #[cold]
    pub(crate) fn reserve(&mut self, held: Held, rate: Rate) {
        self.permit.costs.get_or_insert_default().reserved.push((held, rate));
    }

    #[inline(always)]
    pub(crate) fn permit(self, context: &Context, beginning: &Arc<OnceLock<Instant>>, then: u64) -> Permit {
        let mut permit = self.permit;
        if let Some(costs) = &mut permit.costs {
            (costs.then, costs.settling) = (then, Some((context.clone(), beginning.clone())));
        }
        permit
    }
}

impl Permit {
    pub(crate) fn complete(mut self) {
        if let Some(costs) = &mut self.costs {
            costs.is_complete = true;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.iter().for_each(|held| held.gate.cells.end(held.hash, held.requests, held.is_shared));
        // Who waits is told when all is given back.
        self.in_flight.iter().for_each(Held::tell);
    }
}

impl Drop for Costs {
    fn drop(&mut self) {
        let Some((context, beginning)) = &self.settling else { return };
        let (cost, now) = (context.cost.get(), nanos(beginning, tokio::time::Instant::now().into_std()));
        for (held, rate) in &self.reserved {
            let unless_noted = if self.is_complete { held.requests } else { 0 };
            held.settle(rate, self.then, cost.copied().unwrap_or(unless_noted), now);
        }
        self.reserved.iter().for_each(|(held, _)| held.tell());
    }
}

impl Held {
    fn settle(&self, rate: &Rate, then: u64, cost: u32, now: u64) {
        let cells = &self.gate.cells;
        let known = cells.known(self.hash);
        if cost > self.requests {
            let slot = known.map_or_else(|| cells.add(&(*rate).into(), self.hash, now), Slot::Known);
            slot.charge(rate, cost - self.requests, now);
        } else if let Some(locked) = known.filter(|_| !self.is_shared && cost < self.requests) {
            // In the sketch it may be what others used, and a key that is not known any more has used nothing since.
            slot::refund(rate, locked, self.requests - cost, then, now);
        }
    }

    fn tell(&self) {
        self.gate.line.given_back(|| self.gate.key(self.hash));
    }
}
