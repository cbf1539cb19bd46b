use std::{
    num::NonZeroU32,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use coze_core::{Context, Error};
use http::request::Parts;

use crate::{
    Decision, Level, Permit, Plan, Policy, Quota, Rate,
    cells::Cells,
    gate::{self, Asking, Gate, Outcome, Refusal},
    line::{Key, LAST, Line},
    place::LATEST,
    wait::{Demands, LimitsFuture},
};

/// The platform's limits on our calls (requirement R4.1).
const APP: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
const BOT: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
const USER: NonZeroU32 = NonZeroU32::MIN;

/// The policy of levels that a request must all pass, in the memory of this process.
///
/// It is all or nothing: a request that one level refuses takes nothing from any other. The cells of a request are locked
/// together and always in the same order of levels, so that no two requests wait for each other.
///
/// Clones share what is used, and who waits ([`Limits::wait`]). Levels are best added before the first clone: a clone made earlier does
/// not know the new one, and shares the others.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    gates: Vec<Arc<Gate>>,
    /// The time that counts as zero: that of the first request.
    beginning: Arc<OnceLock<Instant>>,
    /// Empty until the first plan comes, so that whoever needs none does not pay for it.
    plan: Arc<OnceLock<ArcSwap<Plan>>>,
    reported: Arc<AtomicU64>,
    line: Arc<Line>,
    patience: Option<Patience>,
}

/// How long requests wait, and how many.
#[derive(Clone, Copy, Debug)]
struct Patience {
    at_most: Duration,
    waiters: usize,
}

impl Limits {
    /// No levels: everything is admitted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The platform's three limits, for the way in: `app`, 50 requests per second; `bot`, 10 requests at once for each bot;
    /// `user`, one request per second for each user, at least a second apart. [`Limits::level`] replaces any of them.
    #[must_use]
    pub fn platform() -> Self {
        Self::outbound(APP)
            .level(Level::per_bot("bot", Quota::Concurrency(BOT)))
            .level(Level::per_user("user", Rate::per_second(USER).burst(USER)))
    }

    /// The one limit that counts for calls to the platform: `app`, so many requests per second.
    #[must_use]
    pub fn outbound(per_second: NonZeroU32) -> Self {
        Self::new().level(Level::global("app", Rate::per_second(per_second)))
    }

    /// Adds a level, in the place of the one that has its name, else after the others.
    #[must_use]
    pub fn level(mut self, level: Level) -> Self {
        let Inner { gates, line, plan, .. } = Arc::make_mut(&mut self.inner);
        let cells = Cells::new(level.is_wide(), level.max_keys);
        if let Some(plan) = plan.get() {
            cells.set_slowest(plan.load().lowest(&level));
        }
        let gate = Arc::new(Gate { level, cells, line: line.clone() });
        match gates.iter_mut().find(|known| known.level.name == gate.level.name) {
            Some(known) => *known = gate,
            None => gates.push(gate),
        }
        self
    }

    /// Lets a request that would be refused wait its turn instead, in this clone: at most so long, and not past the deadline of its
    /// context; and at most so many at a time, of all clones. The layer's policy waits, [`Limits::check`] does not.
    ///
    /// Who comes first is served first, of those that wait for the same key of a level: a request waits behind those that wait for a key
    /// of its own, even if it would fit, and all others pass by. It takes nothing while it waits. When it is its turn it is admitted as
    /// soon as it fits; what it waits for may be time, or the end of a request, or what is given back. If it is refused by another level
    /// then, it waits for that one instead, still before all that came later.
    ///
    /// So it waits for one level at a time: whoever is blocked at one stops nobody at another. The price is that others may overtake it
    /// at a level that has room while it is blocked elsewhere: where two levels are full of requests that have only one of them in
    /// common with it, it may wait longer than its turn at either.
    ///
    /// It is refused at once if so many wait already; and if it would be too late, were all before it admitted and nobody else. The
    /// time to come back is then the one at which it would have been its turn. What a level sheds ([`Level::shed`]) does not wait. A
    /// request that waits keeps to the plan under which it came, and holds nothing of the inner service. The time is that in the line:
    /// what the inner service then takes to be ready comes on top, see [`Decision::Wait`].
    #[must_use]
    pub fn wait(mut self, at_most: Duration, waiters: usize) -> Self {
        Arc::make_mut(&mut self.inner).patience = Some(Patience { at_most, waiters });
        self
    }

    /// How many requests wait, over all clones.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.line.len()
    }

    /// Changes what the levels allow, for all clones, from the next request on. It takes the place of the plan before.
    ///
    /// What keys have used stays used, in requests: a key whose rate is lowered may have used more than it has now, and waits
    /// accordingly longer; one whose rate is raised has the difference at once. Requests in flight stay in flight.
    ///
    /// # Errors
    /// [`Kind::Invalid`](coze_core::Kind::Invalid) with the reason `plan_invalid`, and nothing changes, if it names a level that is not there or gives it a
    /// quota that it cannot keep.
    pub fn set_plan(&self, plan: Plan) -> Result<(), Error> {
        plan.check(self.inner.gates.iter().map(|gate| &gate.level))?;
        self.inner.gates.iter().for_each(|gate| gate.cells.set_slowest(plan.lowest(&gate.level)));
        let plan = Arc::new(plan);
        self.inner.plan.get_or_init(|| ArcSwap::new(plan.clone())).store(plan);
        Ok(())
    }

    /// How many requests levels that only report would have refused, over all clones.
    #[must_use]
    pub fn reported(&self) -> u64 {
        self.inner.reported.load(Ordering::Relaxed)
    }

    /// Decides about a request that came at `now`, without a layer, and without regard to those that wait.
    ///
    /// # Errors
    /// [`Kind::RateLimited`](coze_core::Kind::RateLimited) with the reason `rate_limited` or `concurrency_limited`. Where several levels refuse, it is the one
    /// with the longest wait, the first among equals. [`Error::retry_after`] is the time after which this request is admitted if
    /// nobody else comes, never zero; for concurrency it is one second, because nobody knows.
    pub fn check(&self, parts: &Parts, context: &Context, now: Instant) -> Result<Permit, Error> {
        self.ask(parts, context, now).map_err(|refusal| Error::from(*refusal))
    }

    #[inline(always)]
    fn ask(&self, parts: &Parts, context: &Context, now: Instant) -> Result<Permit, Box<Refusal>> {
        let (plan, now) = (self.plan(), nanos(&self.inner.beginning, now));
        let asking = Asking { parts, context, plan: plan.as_ref().map(|plan| &***plan) };
        let mut outcome = Outcome::default();
        gate::ask(&self.inner.gates, &asking, now, None, &mut outcome);
        self.end(outcome, context, now)
    }

    /// Asks again for what a request asked for before.
    pub(crate) fn ask_again(&self, demands: &Demands, context: &Context, now: Instant) -> Result<Permit, Box<Refusal>> {
        let (mut outcome, now) = (Outcome::default(), nanos(&self.inner.beginning, now));
        gate::ask_again(demands, now, None, &mut outcome);
        self.end(outcome, context, now)
    }

    #[inline(always)]
    fn plan(&self) -> Option<Guard<Arc<Plan>>> {
        self.inner.plan.get().map(ArcSwap::load)
    }

    #[inline(always)]
    fn end(&self, outcome: Outcome, context: &Context, now: u64) -> Result<Permit, Box<Refusal>> {
        let Outcome { refusal, mut permit, reported } = outcome;
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        if let Some(name) = reported {
            self.inner.reported.fetch_add(1, Ordering::Relaxed);
            context.limit.get_or_init(|| name);
        }
        permit.settle_by(context, &self.inner.beginning, now);
        Ok(permit)
    }

    /// Finds the place of a request that was refused, or came while others wait.
    #[cold]
    fn line_up(
        &self,
        Patience { at_most, waiters }: Patience,
        refusal: Option<Box<Refusal>>,
        parts: &Parts,
        context: &Context,
        now: Instant,
    ) -> Result<Decision<Permit, LimitsFuture>, Box<Refusal>> {
        let plan = self.plan();
        let plan = plan.as_ref().map(|plan| &***plan);
        let asking = Asking { parts, context, plan };
        let gates = self.inner.gates.iter();
        let demands: Demands = gates.filter_map(|gate| Some((gate.clone(), gate.demand(&asking)?))).collect();
        let refusal = match refusal.or_else(|| self.behind(&demands, LAST, now)) {
            Some(refusal) => refusal,
            // Nobody waits for a key of this one.
            None => match self.ask_again(&demands, context, now) {
                Ok(permit) => return Ok(Decision::Now(Ok(permit))),
                Err(refusal) => refusal,
            },
        };
        let latest = now.checked_add(at_most).unwrap_or(now);
        let until = context.deadline.get().map_or(latest, |deadline| latest.min(*deadline));
        if refusal.until(now, until).is_none() {
            return Err(refusal);
        }
        let Some(ticket) = self.inner.line.enter(waiters) else { return Err(refusal) };
        Ok(Decision::Wait(LimitsFuture::new(self.clone(), demands, context.clone(), ticket, until, &refusal)))
    }

    /// The refusal of a request behind those who came before; `None` if nobody waits for what it asks for. It may be that of a level at
    /// which nobody is before it: there is no use in waiting where it would be refused in the end.
    pub(crate) fn behind(&self, demands: &Demands, ticket: u64, now: Instant) -> Option<Box<Refusal>> {
        let now = nanos(&self.inner.beginning, now);
        let mut is_behind = false;
        let refusing = demands.iter().filter(|(gate, _)| !gate.level.is_reported);
        let refusals = refusing.filter_map(|(gate, demand)| {
            let ahead = self.inner.line.ahead(ticket, gate.key(demand.hash));
            is_behind |= ahead.is_some();
            gate.behind(demand, ahead, now)
        });
        // The first among equals.
        let longest = refusals.reduce(|longest, next| if next.wait > longest.wait { next } else { longest });
        longest.filter(|_| is_behind)
    }

    /// The refusal of a request by the level of this key, were it the only one.
    pub(crate) fn refusal(&self, demands: &Demands, of: Key, now: Instant) -> Option<Box<Refusal>> {
        let (gate, demand) = demands.iter().find(|(gate, demand)| gate.key(demand.hash) == of)?;
        gate.behind(demand, None, nanos(&self.inner.beginning, now))
    }

    pub(crate) fn line(&self) -> &Line {
        &self.inner.line
    }
}

/// Nanoseconds since the beginning, which is `now` if there is none yet; zero for a time before it.
pub(crate) fn nanos(beginning: &OnceLock<Instant>, now: Instant) -> u64 {
    let elapsed = now.saturating_duration_since(*beginning.get_or_init(|| now));
    elapsed.as_secs().saturating_mul(1_000_000_000).saturating_add(elapsed.subsec_nanos().into()).min(LATEST)
}

impl Policy for Limits {
    type Permit = Permit;
    type Future = LimitsFuture;

    /// As [`Limits::check`] does; after [`Limits::wait`] it may have to wait.
    fn decide(&self, parts: &Parts, context: &Context, now: Instant) -> Decision<Permit, LimitsFuture> {
        let Some(patience) = self.inner.patience else { return Decision::Now(self.check(parts, context, now)) };
        let refusal = match (self.inner.line.len() == 0).then(|| self.ask(parts, context, now)) {
            Some(Ok(permit)) => return Decision::Now(Ok(permit)),
            refused => refused.and_then(Result::err),
        };
        self.line_up(patience, refusal, parts, context, now)
            .unwrap_or_else(|refusal| Decision::Now(Err((*refusal).into())))
    }

    /// Settles what the request cost, as noted, or as it was taken for.
    fn completed(permit: Permit) {
        permit.complete();
    }
}
