use std::{
    mem,
    num::NonZeroU64,
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
#[derive(Debug)]
pub struct Permit(Holds);

/// Two words, because each layer outside moves them about.
#[derive(Debug)]
enum Holds {
    /// All that most hold of concurrency.
    One(InFlight),
    More(Option<Box<More>>),
}

/// One request in flight at one level, in the cell of the key with this hash.
#[derive(Debug)]
struct InFlight {
    gate: Arc<Gate>,
    hash: NonZeroU64,
}

/// What few requests hold.
#[derive(Debug, Default)]
struct More {
    /// What it held before.
    first: Option<InFlight>,
    in_flight: SmallVec<[Held; 2]>,
    /// What was taken before the cost was known.
    reserved: SmallVec<[(Held, Rate); 2]>,
    /// When it was taken.
    then: u64,
    /// Where the cost is noted, and the time that counts as zero.
    settling: Option<(Context, Arc<OnceLock<Instant>>)>,
    is_complete: bool,
}

/// Requests that are counted in the cell of a key.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) gate: Arc<Gate>,
    pub(crate) hash: NonZeroU64,
    pub(crate) requests: u32,
    pub(crate) is_shared: bool,
}

impl Default for Permit {
    #[inline]
    fn default() -> Self {
        Self(Holds::More(None))
    }
}

impl Permit {
    /// Has it count as in flight.
    #[inline]
    pub(crate) fn hold(&mut self, held: Held) {
        match self.0 {
            Holds::More(None) if held.requests == 1 && !held.is_shared => {
                self.0 = Holds::One(InFlight { gate: held.gate, hash: held.hash });
            }
            _ => self.add(|more| more.in_flight.push(held)),
        }
    }

    /// Has it be settled when the request ends.
    #[cold]
    pub(crate) fn reserve(&mut self, held: Held, rate: Rate) {
        self.add(|more| more.reserved.push((held, rate)));
    }

    /// Notes how it will be settled.
    #[inline]
    pub(crate) fn settle_by(&mut self, context: &Context, beginning: &Arc<OnceLock<Instant>>, then: u64) {
        if let Holds::More(Some(more)) = &mut self.0 {
            (more.then, more.settling) = (then, Some((context.clone(), beginning.clone())));
        }
    }

    pub(crate) fn complete(mut self) {
        if let Holds::More(Some(more)) = &mut self.0 {
            more.is_complete = true;
        }
    }

    /// Adds what does not fit into two words.
    #[cold]
    fn add(&mut self, add: impl FnOnce(&mut More)) {
        let mut more = match mem::replace(&mut self.0, Holds::More(None)) {
            Holds::More(more) => more.unwrap_or_default(),
            Holds::One(first) => {
                let mut more = Box::<More>::default();
                more.first = Some(first);
                more
            }
        };
        add(&mut more);
        self.0 = Holds::More(Some(more));
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gate.cells.end(self.hash, 1, false);
        self.gate.given_back(self.hash);
    }
}

impl Drop for More {
    fn drop(&mut self) {
        self.in_flight.iter().for_each(|held| held.gate.cells.end(held.hash, held.requests, held.is_shared));
        // Who waits is told when all is given back.
        self.in_flight.iter().for_each(|held| held.gate.given_back(held.hash));
        let Some((context, beginning)) = &self.settling else { return };
        let (cost, now) = (context.cost.get(), nanos(beginning, tokio::time::Instant::now().into_std()));
        for (held, rate) in &self.reserved {
            let unless_noted = if self.is_complete { held.requests } else { 0 };
            held.settle(rate, self.then, cost.copied().unwrap_or(unless_noted), now);
        }
        self.reserved.iter().for_each(|(held, _)| held.gate.given_back(held.hash));
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
}
