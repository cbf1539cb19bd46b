use std::{
    future::Pending,
    num::NonZeroU32,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use coze_core::{Context, Error, Kind, Limit};
use http::request::Parts;

use crate::{Decision, Level, Permit, Policy, Quota, Rate, cells::Cells, permit::InFlight, place::LATEST, slot};

/// The platform's limits on our calls (requirement R4.1).
const APP: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
const BOT: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
const USER: NonZeroU32 = NonZeroU32::MIN;

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
        let gate = Arc::new(Gate { cells: Arc::new(Cells::new([level.quota], level.max_keys)), level });
        match gates.iter_mut().find(|known| known.level.name == gate.level.name) {
            Some(known) => *known = gate,
            None => gates.push(gate),
        }
        self
    }

    /// Decides about a request that came at `now`, without a layer.
    ///
    /// # Errors
    /// [`Kind::RateLimited`] with the reason `rate_limited` or `concurrency_limited`. Where several levels refuse, it is the one
    /// with the longest wait, the first among equals. [`Error::retry_after`] is the time after which this request is admitted if
    /// nobody else comes, never zero; for concurrency it is one second, because nobody knows.
    pub fn check(&self, parts: &Parts, context: &Context, now: Instant) -> Result<Permit, Error> {
        let now = self.nanos(now);
        let mut permit = Permit::default();
        match involve(&self.inner.gates, parts, context, now, None, &mut permit) {
            None => Ok(permit),
            Some(refusal) => Err(refusal.into()),
        }
    }

    /// Nanoseconds since the beginning; zero for a time before it.
    fn nanos(&self, now: Instant) -> u64 {
        let beginning = *self.inner.beginning.get_or_init(|| now);
        let elapsed = now.saturating_duration_since(beginning);
        elapsed.as_secs().saturating_mul(1_000_000_000).saturating_add(elapsed.subsec_nanos().into()).min(LATEST)
    }
}

impl Policy for Limits {
    type Permit = Permit;
    type Future = Pending<Result<Permit, Error>>;

    fn decide(&self, parts: &Parts, context: &Context, now: Instant) -> Decision<Permit, Self::Future> {
        Decision::Now(self.check(parts, context, now))
    }
}

/// A level that applies to the request, and the one before it. On the stack, so that nothing is allocated.
struct Involved<'a> {
    gate: &'a Gate,
    hash: u64,
    before: Option<&'a Involved<'a>>,
}

/// Finds all keys before the first lock is taken: a key function is not ours, so it does not run under our locks.
fn involve(
    gates: &[Arc<Gate>],
    parts: &Parts,
    context: &Context,
    now: u64,
    before: Option<&Involved<'_>>,
    permit: &mut Permit,
) -> Option<Refusal> {
    let Some((gate, rest)) = gates.split_first() else { return decide(before, now, None, permit) };
    match gate.level.key(parts, context).map(|key| gate.cells.hash(&key)) {
        Some(hash) => involve(rest, parts, context, now, Some(&Involved { gate, hash, before }), permit),
        None => involve(rest, parts, context, now, before, permit),
    }
}

/// Locks and asks each level on the way in, the last one first, so that the cells that many requests share are locked for the
/// shortest time; takes from each on the way back, when all have agreed.
fn decide(involved: Option<&Involved<'_>>, now: u64, refusal: Option<Refusal>, permit: &mut Permit) -> Option<Refusal> {
    let Some(involved) = involved else { return refusal };
    let (Involved { gate, hash, before }, quota) = (involved, &involved.gate.level.quota);
    let Some(locked) = gate.cells.known(*hash) else { return decide_new(involved, now, refusal, permit) };
    let refusal = if slot::fits(quota, &locked, 1, now) {
        refusal
    } else {
        longest(gate, slot::wait(quota, &locked, 1, now), refusal)
    };
    let refusal = decide(*before, now, refusal, permit);
    if refusal.is_none() {
        slot::take(quota, locked, 1, now);
        gate.hold(*hash, false, permit);
    }
    refusal
}

/// The same for a key that has no cell of its own yet.
#[cold]
fn decide_new(involved: &Involved<'_>, now: u64, refusal: Option<Refusal>, permit: &mut Permit) -> Option<Refusal> {
    let (Involved { gate, hash, before }, quota) = (involved, &involved.gate.level.quota);
    let slot = gate.cells.add(quota, *hash, now);
    let refusal = if slot.fits(quota, 1, now) { refusal } else { longest(gate, slot.wait(quota, 1, now), refusal) };
    let refusal = decide(*before, now, refusal, permit);
    if refusal.is_none() {
        let is_shared = slot.take(quota, 1, now);
        gate.hold(*hash, is_shared, permit);
    }
    refusal
}

/// Why a level has no room; times in nanoseconds.
pub(crate) struct Refusal {
    pub(crate) name: &'static str,
    pub(crate) quota: Quota,
    pub(crate) wait: u64,
    pub(crate) reset: u64,
}

impl Gate {
    fn hold(&self, hash: u64, is_shared: bool, permit: &mut Permit) {
        if let Quota::Concurrency(_) = self.level.quota {
            permit.hold(InFlight { cells: self.cells.clone(), hash, requests: 1, is_shared });
        }
    }
}

/// The refusal of this level, or that of a later one if it waits longer.
#[cold]
fn longest(gate: &Gate, (wait, reset): (u64, u64), later: Option<Refusal>) -> Option<Refusal> {
    let Level { name, quota, .. } = gate.level;
    later.filter(|later| later.wait > wait).or(Some(Refusal { name, quota, wait, reset }))
}

impl From<Refusal> for Error {
    #[cold]
    fn from(refusal: Refusal) -> Self {
        let (reason, quota, window, unit) = match refusal.quota {
            Quota::Rate(rate) => ("rate_limited", rate.per_second.get(), Duration::from_secs(1), "per 1s"),
            Quota::Concurrency(limit) => ("concurrency_limited", limit.get(), Duration::ZERO, "at once"),
        };
        let Refusal { name, wait, reset, .. } = refusal;
        let requests = if quota == 1 { "request" } else { "requests" };
        Self::new(Kind::RateLimited, reason)
            .with_message(format!("the limit {name:?} allows {quota} {requests} {unit}"))
            .with_limit(Limit { name, quota, remaining: 0, window, reset: Duration::from_nanos(reset) })
            .with_retry_after(Duration::from_nanos(wait))
    }
}
