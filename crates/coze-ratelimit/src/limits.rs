use std::{
    future::Pending,
    num::NonZeroU32,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use coze_core::{Context, Error, Kind, Limit};
use http::request::Parts;

use crate::{Decision, Level, Permit, Plan, Policy, Quota, Rate, cells::Cells, permit::Held, place::LATEST, slot};

/// The platform's limits on our calls (requirement R4.1).
const APP: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
const BOT: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
const USER: NonZeroU32 = NonZeroU32::MIN;

/// The wait of a request that costs more than there ever is.
const NEVER: u64 = u64::MAX;

/// The policy of levels that a request must all pass, in the memory of this process.
///
/// It is all or nothing: a request that one level refuses takes nothing from any other. The cells of a request are locked
/// together and always in the same order of levels, so that no two requests wait for each other.
///
/// Clones share what is used. Levels are best added before the first clone: a clone made earlier does not know the new
/// one, and shares the others.
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
}

/// A level and what is used of it.
#[derive(Debug)]
struct Gate {
    level: Level,
    cells: Arc<Cells>,
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
        let gates = &mut Arc::make_mut(&mut self.inner).gates;
        let gate = Arc::new(Gate { cells: Arc::new(Cells::new(level.is_wide(), level.max_keys)), level });
        match gates.iter_mut().find(|known| known.level.name == gate.level.name) {
            Some(known) => *known = gate,
            None => gates.push(gate),
        }
        self
    }

    /// Changes what the levels allow, for all clones, from the next request on. It takes the place of the plan before.
    ///
    /// What keys have used stays used, in requests: a key whose rate is lowered may have used more than it has now, and waits
    /// accordingly longer; one whose rate is raised has the difference at once. Requests in flight stay in flight.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with the reason `plan_invalid`, and nothing changes, if it names a level that is not there or gives it a
    /// quota that it cannot keep.
    pub fn set_plan(&self, plan: Plan) -> Result<(), Error> {
        plan.check(self.inner.gates.iter().map(|gate| &gate.level))?;
        let plan = Arc::new(plan);
        self.inner.plan.get_or_init(|| ArcSwap::new(plan.clone())).store(plan);
        Ok(())
    }

    /// How many requests levels that only report would have refused, over all clones.
    #[must_use]
    pub fn reported(&self) -> u64 {
        self.inner.reported.load(Ordering::Relaxed)
    }

    /// Decides about a request that came at `now`, without a layer.
    ///
    /// # Errors
    /// [`Kind::RateLimited`] with the reason `rate_limited` or `concurrency_limited`. Where several levels refuse, it is the one
    /// with the longest wait, the first among equals. [`Error::retry_after`] is the time after which this request is admitted if
    /// nobody else comes, never zero; for concurrency it is one second, because nobody knows.
    pub fn check(&self, parts: &Parts, context: &Context, now: Instant) -> Result<Permit, Error> {
        let plan = self.inner.plan.get().map(ArcSwap::load);
        let now = nanos(&self.inner.beginning, now);
        let asking = Asking { parts, context, plan: plan.as_deref().map(|plan| &**plan), now };
        let mut permit = Permit::default();
        if let Some(refusal) = involve(&self.inner.gates, &asking, None, None, &mut permit) {
            return Err(refusal.into());
        }
        if let Some(name) = permit.reported {
            self.inner.reported.fetch_add(1, Ordering::Relaxed);
            context.limit.get_or_init(|| name);
        }
        permit.settle_by(context, &self.inner.beginning);
        Ok(permit)
    }
}

/// Nanoseconds since the beginning, which is `now` if there is none yet; zero for a time before it.
pub(crate) fn nanos(beginning: &OnceLock<Instant>, now: Instant) -> u64 {
    let elapsed = now.saturating_duration_since(*beginning.get_or_init(|| now));
    elapsed.as_secs().saturating_mul(1_000_000_000).saturating_add(elapsed.subsec_nanos().into()).min(LATEST)
}

impl Policy for Limits {
    type Permit = Permit;
    type Future = Pending<Result<Permit, Error>>;

    fn decide(&self, parts: &Parts, context: &Context, now: Instant) -> Decision<Permit, Self::Future> {
        Decision::Now(self.check(parts, context, now))
    }

    /// Settles what the request cost, as noted, or as it was taken for.
    fn completed(permit: Permit) {
        permit.complete();
    }
}

/// A request, and what is in force when it comes.
struct Asking<'a> {
    parts: &'a Parts,
    context: &'a Context,
    plan: Option<&'a Plan>,
    now: u64,
}

/// A level that applies to the request, and the one before it. On the stack, so that nothing is allocated.
struct Involved<'a> {
    gate: &'a Gate,
    quota: Quota,
    /// Requests that are taken, and those that must fit.
    cost: u32,
    ask: u32,
    hash: u64,
    before: Option<&'a Involved<'a>>,
}

/// Finds all keys, quotas and costs before the first lock is taken: their functions are not ours, so they do not run under our
/// locks.
fn involve(
    gates: &[Arc<Gate>],
    asking: &Asking<'_>,
    before: Option<&Involved<'_>>,
    refusal: Option<Refusal>,
    permit: &mut Permit,
) -> Option<Refusal> {
    let Some((gate, rest)) = gates.split_first() else { return decide(before, asking.now, refusal, permit) };
    let level = &gate.level;
    let Some(key) = level.key(asking.parts, asking.context) else {
        return involve(rest, asking, before, refusal, permit);
    };
    let quota = asking.plan.map_or(level.quota, |plan| plan.quota(level, asking.context, &key));
    let (cost, besides) = level.cost_and_rest(&quota, asking.parts, asking.context);
    if cost == 0 {
        return involve(rest, asking, before, refusal, permit);
    }
    if cost > quota.most() {
        let refusal = refuse(level, quota, (NEVER, 0), refusal, permit);
        return involve(rest, asking, before, refusal, permit);
    }
    let (ask, hash) = (cost.saturating_add(besides), gate.cells.hash(&key));
    involve(rest, asking, Some(&Involved { gate, quota, cost, ask, hash, before }), refusal, permit)
}

/// Locks and asks each level on the way in, the last one first, so that the cells that many requests share are locked for the
/// shortest time; takes from each on the way back, when all have agreed.
fn decide(involved: Option<&Involved<'_>>, now: u64, refusal: Option<Refusal>, permit: &mut Permit) -> Option<Refusal> {
    let Some(involved) = involved else { return refusal };
    let Involved { gate, quota, cost, ask, hash, before } = involved;
    let Some(locked) = gate.cells.known(*hash) else { return decide_new(involved, now, refusal, permit) };
    if !slot::fits(quota, &locked, *ask, now) {
        let wait = slot::wait(quota, &locked, *ask, now);
        return decide(*before, now, refuse(&gate.level, *quota, wait, refusal, permit), permit);
    }
    let refusal = decide(*before, now, refusal, permit);
    if refusal.is_none() {
        slot::take(quota, locked, *cost, now);
        involved.hold(false, now, permit);
    }
    refusal
}

/// The same for a key that has no cell of its own yet.
#[cold]
fn decide_new(involved: &Involved<'_>, now: u64, refusal: Option<Refusal>, permit: &mut Permit) -> Option<Refusal> {
    let Involved { gate, quota, cost, ask, hash, before } = involved;
    let slot = gate.cells.add(quota, *hash, now);
    if !slot.fits(quota, *ask, now) {
        let wait = slot.wait(quota, *ask, now);
        return decide(*before, now, refuse(&gate.level, *quota, wait, refusal, permit), permit);
    }
    let refusal = decide(*before, now, refusal, permit);
    if refusal.is_none() {
        let is_shared = slot.take(quota, *cost, now);
        involved.hold(is_shared, now, permit);
    }
    refusal
}

impl Involved<'_> {
    fn hold(&self, is_shared: bool, now: u64, permit: &mut Permit) {
        let reserved = match self.quota {
            Quota::Concurrency(_) => None,
            Quota::Rate(rate) if self.gate.level.is_settled => Some((rate, now)),
            Quota::Rate(_) => return,
        };
        let (cells, hash, requests) = (self.gate.cells.clone(), self.hash, self.cost);
        permit.hold(Held { cells, hash, requests, is_shared, reserved });
    }
}

/// The refusal of this level, or that of a later one if it waits longer; or none, where it is only reported.
#[cold]
fn refuse(
    level: &Level,
    quota: Quota,
    (wait, reset): (u64, u64),
    later: Option<Refusal>,
    permit: &mut Permit,
) -> Option<Refusal> {
    if level.is_reported {
        permit.reported = Some(level.name);
        return later;
    }
    later.filter(|later| later.wait > wait).or(Some(Refusal { name: level.name, quota, wait, reset }))
}

/// Why a level has no room; times in nanoseconds.
pub(crate) struct Refusal {
    pub(crate) name: &'static str,
    pub(crate) quota: Quota,
    pub(crate) wait: u64,
    pub(crate) reset: u64,
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
