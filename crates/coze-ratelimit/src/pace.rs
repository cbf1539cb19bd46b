//! Pacing: calls go out as fast as the other side takes them, in their order, and no faster.

mod benefits;
mod cell;
mod drive;
mod level;
#[cfg(test)]
mod model;
mod plan;
mod signal;
mod state;
mod turn;

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use coze_core::{Context, Error, Kind};
use http::request::Parts;
use smallvec::SmallVec;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant as Clock,
};

pub use benefits::Benefits;
pub use level::{PaceLevel, PaceRate};
pub use plan::PlatformPlan;
pub use turn::{PaceFuture, PacePermit};

use plan::CALL_CODES;
use signal::Answer;
use state::{Place, Places, State};

/// The outbound policy: paces calls, so that the platform does not refuse them, and listens to it when it does.
///
/// Calls of each level follow each other at its rate. One that may not go at once waits for its turn: those that wait for the same
/// go in the order in which they came, and nobody waits for a level that is not theirs. A call whose turn would come too
/// late is refused at once. One that is cancelled while it waits has taken nothing.
///
/// A refusal of the platform takes half of the rate, on the level it is about; each second in which calls succeed gives a sixtieth of
/// the whole back. `Retry-After` pauses the level for that time, an hour at most, and the end of a quota (4008, 4028) for ten
/// minutes unless the platform says how long; then one call finds out. Answers to calls that were sent before the last of this
/// say nothing any more, so that many refusals of one moment count once.
///
/// Clones share it all. Waiting needs a runtime of tokio, in which a task wakes those whose turn has come; where that ends with its
/// runtime, the next call that waits begins another.
///
/// ```
/// use std::num::NonZeroU32;
///
/// use coze_ratelimit::{Pace, PaceRate, PlatformPlan, RateLimitLayer};
///
/// // What the plan allows, and never more than 50 calls a second of any kind.
/// # fn main() -> Result<(), coze_core::Error> {
/// let pace = Pace::platform(PlatformPlan::Team);
/// pace.set("app", Some(PaceRate::per_second(const { NonZeroU32::new(50).unwrap() })))?;
/// let layer = RateLimitLayer::new(pace.clone());
/// # let _ = layer;
/// // Nine tenths of them, so that they do not arrive as more.
/// assert!(pace.per_second("app").is_some_and(|calls| (calls - 45.0).abs() < 0.01));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Pace {
    shared: Arc<Shared>,
    /// Those of the state, to find keys without its lock: their functions are not ours.
    levels: Arc<[Arc<PaceLevel>]>,
    max_wait: Duration,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State<oneshot::Sender<PacePermit>>>,
    /// The time that counts as zero: that of the first call.
    beginning: OnceLock<Instant>,
    /// Wakes the task that wakes the others, earlier than it meant to.
    wake: Notify,
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

impl Pace {
    /// No levels: everything goes at once.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared { state: Mutex::new(State::new()), beginning: OnceLock::new(), wake: Notify::new() };
        Self { shared: Arc::new(shared), levels: Arc::default(), max_wait: Duration::from_secs(10) }
    }

    /// The limits of a plan of the platform ([`PlatformPlan::levels`]), and `app`: all calls, without a limit unless [`Pace::set`]
    /// gives it one, and paused where a call of no other level is refused (429, 4009).
    #[must_use]
    pub fn platform(plan: PlatformPlan) -> Self {
        plan.levels().into_iter().fold(Self::new(), Self::level).level(PaceLevel::new("app", None).hears(CALL_CODES))
    }

    /// Adds a level, in the place of the one that has its name, else after the others. Best done before the first clone, which does
    /// not know of it.
    #[must_use]
    pub fn level(mut self, level: PaceLevel) -> Self {
        let mut state = self.state();
        state.add(level);
        let levels = state.levels();
        drop(state);
        self.levels = levels.into();
        self
    }

    /// How long a call may wait for its turn, default 10 s, at most a day; never beyond the deadline of its context.
    #[must_use]
    pub fn max_wait(self, wait: Duration) -> Self {
        Self { max_wait: wait.min(Duration::from_secs(86_400)), ..self }
    }

    /// How many calls may wait at once, default 1000.
    #[must_use]
    pub fn max_waiting(self, calls: usize) -> Self {
        self.state().max_waiting = calls;
        self
    }

    /// Changes the rate of a level from now on, also for those that wait; `None` is no limit. What refusals took of it stays taken;
    /// a rate above the one before ends a pause.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with the reason `pace_invalid` if there is no such level.
    pub fn set(&self, level: &str, rate: Option<PaceRate>) -> Result<(), Error> {
        let now = self.shared.nanos(Clock::now().into_std());
        if !self.state().set(level, rate, now) {
            return Err(Error::new(Kind::Invalid, "pace_invalid").with_message(format!("there is no level {level:?}")));
        }
        self.shared.wake.notify_one();
        self.show(level);
        Ok(())
    }

    /// Takes over what the platform says of its limits ([`Benefits::rates`]).
    pub fn learn(&self, benefits: &Benefits) {
        // A level that is not there is not paced.
        benefits.rates().into_iter().for_each(|(level, rate)| _ = self.set(level, rate));
    }

    /// Calls a second of a level now, of that of its keys which is slowed down most; `None` without such a level, infinitely many
    /// without a limit. The gauge `coze_ratelimit_pace_per_second` (label `level`) has the same where it is finite.
    #[must_use]
    pub fn per_second(&self, level: &str) -> Option<f64> {
        self.state().slowest(level)
    }

    /// Hears of a refusal that came later than the head of the answer, as in an event of a stream, or when a chat that was begun
    /// earlier was looked at: `parts` and `context` are those of the call that began it at `sent`.
    pub fn heard(&self, parts: &Parts, context: &Context, sent: Instant, error: &Error) {
        let keys = self.keys(parts, context);
        let now = self.shared.nanos(Clock::now().into_std());
        let places = self.state().places(&keys, now);
        self.settle(&places, self.shared.nanos(sent), now, signal::refusal(error));
    }

    fn state(&self) -> MutexGuard<'_, State<oneshot::Sender<PacePermit>>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The levels that apply, and whose pace the call is of there.
    fn keys<'a>(&'a self, parts: &'a Parts, context: &'a Context) -> SmallVec<[(usize, Cow<'a, str>); 6]> {
        let keys = self.levels.iter().map(|level| level.key(parts, context)).enumerate();
        keys.filter_map(|(index, key)| Some((index, key?))).collect()
    }

    fn settle(&self, places: &Places, sent: u64, now: u64, answer: Answer) {
        match answer {
            Answer::Nothing => {}
            Answer::Accepted => {
                for place in places {
                    let mut cell = place.cell();
                    if cell.accepted(sent, now) {
                        let is_whole = !cell.is_slow();
                        drop(cell);
                        self.show(place.level.name);
                        if is_whole {
                            let Place { level, key, .. } = &**place;
                            tracing::info!(level = level.name, key, "calls go at their whole rate again");
                        }
                    }
                }
            }
            Answer::Refused(code, signal) => {
                let Some(place) = places.iter().find(|place| place.level.is_about(code)) else { return };
                let mut cell = place.cell();
                if cell.refused(signal, sent, now) {
                    let (per_second, free_at) = (cell.per_second(), cell.free_at());
                    drop(cell);
                    self.show(place.level.name);
                    let pause = Duration::from_nanos(free_at.saturating_sub(now));
                    let Place { level, key, .. } = &**place;
                    tracing::warn!(level = level.name, key, code, per_second, ?pause, "calls go more slowly");
                }
            }
        }
    }

    fn show(&self, level: &str) {
        if let Some(calls) = self.per_second(level).filter(|calls| calls.is_finite()) {
            metrics::gauge!("coze_ratelimit_pace_per_second", "level" => level.to_owned()).set(calls);
        }
    }
}
