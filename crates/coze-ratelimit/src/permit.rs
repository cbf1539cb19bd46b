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
    held: SmallVec<[Held; 2]>,
    /// Where the cost is noted, and the time that counts as zero.
    settling: Option<(Context, Arc<OnceLock<Instant>>)>,
    is_complete: bool,
    /// The level that would have refused, if it did more than report.
    pub(crate) reported: Option<&'static str>,
}

/// What a request holds in the cell of a key.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) gate: Arc<Gate>,
    pub(crate) hash: u64,
    pub(crate) requests: u32,
    pub(crate) is_shared: bool,
    /// Of a rate that is settled: which, and when it was taken. Otherwise it counts as in flight.
    pub(crate) reserved: Option<(Rate, u64)>,
}

impl Permit {
    pub(crate) fn hold(&mut self, held: Held) {
        self.held.push(held);
    }

    /// Says where the cost will be noted, if any level settles it.
    #[inline]
    pub(crate) fn settle_by(&mut self, context: &Context, beginning: &Arc<OnceLock<Instant>>) {
        if self.held.iter().any(|held| held.reserved.is_some()) {
            self.settling = Some((context.clone(), beginning.clone()));
        }
    }

    pub(crate) fn complete(mut self) {
        self.is_complete = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let settling = self.settling.as_ref().map(|(context, beginning)| {
            (context.cost.get().copied(), nanos(beginning, tokio::time::Instant::now().into_std()))
        });
        for held in &self.held {
            match (held.reserved, settling) {
                (Some((rate, then)), Some((cost, now))) => {
                    let unless_noted = if self.is_complete { held.requests } else { 0 };
                    held.settle(rate, then, cost.unwrap_or(unless_noted), now);
                }
                _ => held.gate.cells.end(held.hash, held.requests, held.is_shared),
            }
        }
        // Who waits is told when all is given back.
        self.held.iter().for_each(|held| held.gate.line.given_back(|| (Arc::as_ptr(&held.gate) as usize, held.hash)));
    }
}

impl Held {
    fn settle(&self, rate: Rate, then: u64, cost: u32, now: u64) {
        let known = self.gate.cells.known(self.hash);
        if cost > self.requests {
            let slot = known.map_or_else(|| self.gate.cells.add(&rate.into(), self.hash, now), Slot::Known);
            slot.charge(&rate, cost - self.requests, now);
        } else if let Some(locked) = known.filter(|_| !self.is_shared && cost < self.requests) {
            // In the sketch it may be what others used, and a key that is not known any more has used nothing since.
            slot::refund(&rate, locked, self.requests - cost, then);
        }
    }
}
