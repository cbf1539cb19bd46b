use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
};

use coze_core::{Context, Error};
use smallvec::SmallVec;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    Limits, Permit,
    gate::{Demand, Gate, Refusal},
    line::Turn,
};

/// What a request asks for.
pub(crate) type Demands = SmallVec<[(Arc<Gate>, Demand); 3]>;

/// The wait of a request until it is its turn and there is room ([`Limits::wait`]). It has to be polled in a tokio runtime.
///
/// Dropping it leaves the line.
#[must_use = "futures do nothing unless polled"]
pub struct LimitsFuture(Box<Waiting>);

struct Waiting {
    limits: Limits,
    demands: Demands,
    context: Context,
    /// `None` when it is over.
    ticket: Option<u64>,
    until: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl LimitsFuture {
    pub(crate) fn new(
        limits: Limits,
        demands: Demands,
        context: Context,
        ticket: u64,
        until: std::time::Instant,
        refusal: &Refusal,
    ) -> Self {
        let waiting = Waiting { limits, demands, context, ticket: Some(ticket), until: until.into(), timer: None };
        waiting.join(ticket, refusal);
        Self(Box::new(waiting))
    }
}

impl Waiting {
    /// Waits for what refused it. Says whether it did not yet.
    fn join(&self, ticket: u64, refusal: &Refusal) -> bool {
        let refuser = self.demands.iter().find(|(gate, _)| gate.level.name == refusal.name);
        refuser.is_some_and(|(gate, demand)| self.limits.line().join(ticket, gate.key(demand.hash), demand.cost))
    }

    fn poll(&mut self, task: &mut Task<'_>) -> Poll<Result<Permit, Error>> {
        let ticket = self.ticket.expect("a future is not polled after it is ready");
        loop {
            let now = Instant::now();
            let keys = self.demands.iter().map(|(gate, demand)| (gate.key(demand.hash), demand.cost));
            let refusal = match self.limits.line().turn(ticket, keys, task.waker()) {
                Turn::Now => match self.limits.ask_again(&self.demands, &self.context, now.into_std()) {
                    Ok(permit) => return Poll::Ready(Ok(permit)),
                    Err(refusal) => Some(refusal),
                },
                Turn::Behind if now < self.until => None,
                Turn::Behind => self.limits.behind(&self.demands, ticket, now.into_std()),
                Turn::Elsewhere { here, there: (key, cost) } => {
                    let refusal = self.limits.refusal(&self.demands, here, now.into_std());
                    // As long as it is refused here it stays, so that it counts here for those that come later.
                    if refusal.is_none() {
                        self.limits.line().join(ticket, key, cost);
                        continue;
                    }
                    refusal
                }
            };
            let mut then = self.until;
            if let Some(refusal) = refusal {
                let Some(next) = refusal.until(now.into_std(), self.until.into_std()) else {
                    return Poll::Ready(Err((*refusal).into()));
                };
                // There may be room since it was refused; only from now on it hears of that.
                if self.join(ticket, &refusal) {
                    continue;
                }
                then = next.into();
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(then)));
            timer.as_mut().reset(then);
            ready!(timer.as_mut().poll(task));
        }
    }

    fn leave(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.limits.line().leave(ticket);
        }
    }
}

impl Future for LimitsFuture {
    type Output = Result<Permit, Error>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let outcome = ready!(self.0.poll(task));
        self.0.leave();
        Poll::Ready(outcome)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for LimitsFuture {
    /// Keys are people's ids: they are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LimitsFuture")
    }
}
