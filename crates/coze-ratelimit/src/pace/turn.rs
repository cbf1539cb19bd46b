use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll},
};

use coze_core::{Error, Kind};
use pin_project_lite::pin_project;
use tokio::{sync::oneshot, time::Sleep};

use super::{Pace, state::Places};

pin_project! {
    /// A call that waits for its turn. Dropped before, it has taken nothing.
    #[must_use = "futures do nothing unless polled"]
    pub struct PaceFuture {
        // None once it waits no more.
        waiting: Option<Ticket>,
        #[pin]
        told: oneshot::Receiver<PacePermit>,
        #[pin]
        latest: Sleep,
    }
}

/// A place in the queue. Dropped, it is left, unless the turn came before.
pub(super) struct Ticket {
    pub(super) pace: Pace,
    pub(super) number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pace.state().leave(self.number);
    }
}

impl PaceFuture {
    pub(super) fn new(waiting: Ticket, told: oneshot::Receiver<PacePermit>, latest: Sleep) -> Self {
        Self { waiting: Some(waiting), told, latest }
    }
}

impl Future for PaceFuture {
    type Output = Result<PacePermit, Error>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(told) = this.told.as_mut().poll(task) {
            *this.waiting = None;
            return Poll::Ready(told.map_err(|_| Error::new(Kind::Internal, "pace_lost")));
        }
        let is_late = this.waiting.is_some() && this.latest.poll(task).is_ready();
        match this.waiting.take_if(|_| is_late).map(|ticket| ticket.pace.give_up(ticket.number)) {
            // It was slowed down meanwhile.
            Some(Some(refusal)) => Poll::Ready(Err(refusal)),
            // Its turn has just come: it is being told.
            Some(None) => this.told.poll(task).map_err(|_| Error::new(Kind::Internal, "pace_lost")),
            None => Poll::Pending,
        }
    }
}

impl fmt::Debug for PaceFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PaceFuture")
    }
}

/// What a call holds while it is on its way: which levels hear its answer.
pub struct PacePermit {
    pub(super) pace: Pace,
    pub(super) places: Places,
    /// When it went.
    pub(super) sent: u64,
}

impl fmt::Debug for PacePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels = self.places.iter().map(|place| place.level.name);
        f.debug_struct("PacePermit").field("levels", &levels.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}
