//! What keeps a copy of a request from being taken for another one.

mod memory;
#[cfg(feature = "redis")]
mod redis;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coze_core::{Context, Error, Kind, Principal};
use pin_project_lite::pin_project;

pub use self::memory::MemoryReplay;
#[cfg(feature = "redis")]
pub use self::redis::RedisReplay;
use crate::{Decision, refused::Refused};

/// Remembers which requests were accepted, so that a copy of one is refused.
///
/// [`MemoryReplay`] serves one process and answers at once. Where several take in the same requests, only a store that they
/// share refuses the copy that goes to another one: `RedisReplay`, with the feature `redis`.
pub trait ReplayStore {
    /// A decision that has to be waited for.
    type Future: Future<Output = Result<(), Error>>;

    /// Takes `id` if nobody did, and keeps it for at least `life`. `now` is the time of the Unix clock the caller goes by, for
    /// stores without a clock of their own.
    ///
    /// # Errors
    /// `replayed`, [`Kind::Unauthenticated`]: the id is taken. Any other: it is not known whether it is.
    fn take(&self, id: &str, now: Duration, life: Duration) -> Decision<(), Self::Future>;
}

fn replayed() -> Error {
    Error::new(Kind::Unauthenticated, "replayed").with_message("a request with this id was accepted before")
}

/// What the schemes have in common whose requests carry a time and an id: each is good once, and only for a while.
#[derive(Clone)]
pub(crate) struct Once<R> {
    pub(crate) principal: Principal,
    pub(crate) window: Duration,
    pub(crate) clock: fn() -> SystemTime,
    pub(crate) store: R,
}

impl<R> Once<R> {
    pub(crate) fn new(principal: Principal, store: R) -> Self {
        Self { principal, window: Duration::from_secs(5 * 60), clock: SystemTime::now, store }
    }

    /// The same, remembered elsewhere.
    pub(crate) fn stored_in<T>(self, store: T) -> Once<T> {
        Once { principal: self.principal, window: self.window, clock: self.clock, store }
    }

    /// The time of the Unix clock, if a request of the time `sent` still counts.
    pub(crate) fn now(&self, sent: Duration) -> Result<Duration, Error> {
        let now = (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
        let reason = match self.window {
            window if sent < now.saturating_sub(window) => "token_expired",
            window if sent > now.saturating_add(window) => "token_not_yet_valid",
            _ => return Ok(now),
        };
        Err(Error::new(Kind::Unauthenticated, reason)
            .with_message(format!("the request was not signed within {:?} of our clock", self.window)))
    }

    /// How an id of this signer is stored: the ids of two signers are two, also where they share a store. No header value
    /// has the character in between.
    pub(crate) fn id(&self, id: &str) -> String {
        [self.principal.scheme, &self.principal.subject, id].join("\u{1f}")
    }

    /// A refusal under the signer's name.
    pub(crate) fn refused(&self, error: Error) -> Refused {
        Refused::from(error).of(Some(&self.principal.subject))
    }

    /// Notes the signer on the context, if the request still counts.
    ///
    /// The store was asked first. A store forgets an id when its time is over, maybe since the head of the request was looked
    /// at; but then the time is over here too.
    fn note(&self, context: &Context, sent: Duration) -> Result<(), Refused> {
        self.now(sent).map_err(|error| self.refused(error))?;
        context.principal.get_or_init(|| self.principal.clone());
        Ok(())
    }
}

impl<R: ReplayStore + Clone> Once<R> {
    /// Accepts a request whose signature is right, if it is the first with this id.
    pub(crate) fn accept(&self, context: &Context, id: &str, sent: Duration) -> Result<Option<Accept<R>>, Refused> {
        let now = self.now(sent).map_err(|error| self.refused(error))?;
        let life = sent.saturating_add(self.window).saturating_sub(now);
        match self.store.take(id, now, life) {
            Decision::Now(taken) => {
                taken.map_err(|error| self.refused(error))?;
                self.note(context, sent).map(|()| None)
            }
            Decision::Later(taken) => Ok(Some(Accept { taken, rest: Some((self.clone(), context.clone(), sent)) })),
        }
    }
}

pin_project! {
    /// Waits for the store.
    #[must_use = "futures do nothing unless polled"]
    pub struct Accept<R>
    where
        R: ReplayStore,
    {
        #[pin]
        taken: R::Future,
        rest: Option<(Once<R>, Context, Duration)>,
    }
}

impl<R: ReplayStore> Future for Accept<R> {
    type Output = Result<(), Refused>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let taken = ready!(this.taken.poll(task));
        let (once, context, sent) = this.rest.take().expect("a future is not polled after it is ready");
        Poll::Ready(taken.map_err(|error| once.refused(error)).and_then(|()| once.note(&context, sent)))
    }
}

impl<R: ReplayStore> fmt::Debug for Accept<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accept").finish_non_exhaustive()
    }
}
