//! Decides about calls, and wakes those whose turn has come.

use std::time::{Duration, Instant};

use coze_core::{BoxError, Context, Error, Kind, Limit};
use http::{request::Parts, response};
use tokio::{
    sync::oneshot,
    time::{Instant as Clock, sleep_until},
};

use super::{
    Pace, PaceFuture, PacePermit, Shared,
    cell::nanos,
    signal,
    state::{Asked, Places, turn},
    turn::Ticket,
};
use crate::{Decision, Policy};

impl Policy for Pace {
    type Permit = PacePermit;
    type Future = PaceFuture;

    fn decide(&self, parts: &Parts, context: &Context, now: Instant) -> Decision<PacePermit, PaceFuture> {
        let keys = self.keys(parts, context);
        let at = self.shared.nanos(now);
        let latest = now.checked_add(self.max_wait).unwrap_or(now);
        let latest = context.deadline.get().map_or(latest, |deadline| latest.min(*deadline));
        let mut told = None;
        let tell = || {
            let (tell, receiver) = oneshot::channel();
            told = Some(receiver);
            tell
        };

        let mut state = self.state();
        let gone = if state.is_due(at) { state.advance(at) } else { Vec::new() };
        let places = state.places(&keys, at);
        let asked = state.ask(places, at, self.shared.nanos(latest), tell);
        let is_first = told.is_some() && !std::mem::replace(&mut state.is_driven, true);
        drop(state);

        let driving = is_first.then(|| Driving { pace: self.clone(), is_over: false });
        self.tell(gone, at);
        match asked {
            Asked::Go(places) => Decision::Now(Ok(self.permit(places, at))),
            Asked::Wait { ticket, is_next } => {
                let waiting = Ticket { pace: self.clone(), number: ticket };
                let told = told.expect("whoever waits is told");
                // It panics where there is no runtime: then what was begun above ends here.
                let future = PaceFuture::new(waiting, told, sleep_until(latest.into()));
                match driving {
                    Some(driving) => drop(tokio::spawn(drive(driving))),
                    None if is_next => self.shared.wake.notify_one(),
                    None => {}
                }
                Decision::Wait(future)
            }
            Asked::TooLate(places) => Decision::Now(Err(refusal(&places, at, TOO_LATE))),
            Asked::Full(places) => Decision::Now(Err(refusal(&places, at, FULL))),
        }
    }

    fn answered(permit: &mut PacePermit, answer: Result<&response::Parts, &BoxError>) {
        let PacePermit { pace, places, sent } = permit;
        pace.settle(places, *sent, pace.shared.nanos(Clock::now().into_std()), signal::heard(answer));
    }
}

impl Pace {
    fn permit(&self, places: Places, sent: u64) -> PacePermit {
        PacePermit { pace: self.clone(), places, sent }
    }

    /// Tells those whose turn has come. One that has gone meanwhile has taken its turn: that only tightens.
    fn tell(&self, gone: Vec<(oneshot::Sender<PacePermit>, Places)>, now: u64) {
        for (tell, places) in gone {
            let _ = tell.send(self.permit(places, now));
        }
    }

    /// One that waits goes away, because it has waited long enough. None if its turn has come.
    pub(super) fn give_up(&self, ticket: u64) -> Option<Error> {
        let places = self.state().leave(ticket)?;
        Some(refusal(&places, self.shared.nanos(Clock::now().into_std()), TOO_LATE))
    }
}

impl Shared {
    /// Nanoseconds since the beginning; zero for a time before it.
    pub(super) fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(*self.beginning.get_or_init(|| now)))
    }

    fn instant(&self, at: u64) -> Clock {
        let beginning = *self.beginning.get_or_init(|| Clock::now().into_std());
        (beginning + Duration::from_nanos(at)).into()
    }
}

/// That a task drives the pace. Where its runtime ends first, even before it runs, the next call begins anew.
struct Driving {
    pace: Pace,
    /// Nobody waits any more, and the state says so.
    is_over: bool,
}

impl Drop for Driving {
    fn drop(&mut self) {
        if !self.is_over {
            self.pace.state().is_driven = false;
        }
    }
}

/// Runs while somebody waits.
async fn drive(mut driving: Driving) {
    let pace = driving.pace.clone();
    loop {
        let now = pace.shared.nanos(Clock::now().into_std());
        let (gone, due) = {
            let mut state = pace.state();
            let gone = state.advance(now);
            let due = state.due();
            // Under the same lock, so that nobody begins to wait for a task that ends.
            state.is_driven = due.is_some();
            (gone, due)
        };
        pace.tell(gone, now);
        let Some(due) = due else { break driving.is_over = true };
        tokio::select! {
            () = sleep_until(pace.shared.instant(due)) => {}
            () = pace.shared.wake.notified() => {}
        }
    }
}

/// What is said of a call that cannot wait.
type Why = (&'static str, &'static str);
const TOO_LATE: Why = ("pace_too_late", "the call's turn would come too late for it");
const FULL: Why = ("pace_full", "as many calls wait for their turn as may");

/// That there is no turn for a call, and when there would be one.
#[cold]
fn refusal(places: &Places, now: u64, (reason, message): Why) -> Error {
    let (last, at) = turn(places);
    let wait = Duration::from_nanos(at.saturating_sub(now).max(1));
    let Some(last) = last else { return Error::new(Kind::Internal, reason) };
    let cell = *last.cell();
    let error = match cell.is_spent(now) {
        true => Error::new(Kind::Quota, "pace_paused").with_message("the platform said that the quota is used up"),
        false => Error::new(Kind::RateLimited, reason).with_message(message),
    };
    // In whole calls: so many a second, or one in so many seconds.
    let second = Duration::from_secs(1);
    let (quota, window) = match nanos(second).checked_div(cell.interval()) {
        Some(0) => (1, Duration::from_nanos(cell.interval())),
        calls => (calls.and_then(|calls| calls.try_into().ok()).unwrap_or(u32::MAX), second),
    };
    let limit = Limit { name: last.level.name, quota, remaining: 0, window, reset: wait };
    error.with_limit(limit).with_retry_after(wait)
}
