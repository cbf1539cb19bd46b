use std::{
    future::{Future, Pending},
    time::Instant,
};

use coze_core::{BoxError, Context, Error};
use http::{request::Parts, response};

/// Decides whether there is room for a request.
///
/// A closure that decides at once is a policy:
///
/// ```
/// use std::{sync::Arc, time::Instant};
///
/// use coze_core::{Context, Error, Kind};
/// use coze_ratelimit::RateLimitLayer;
/// use http::request::Parts;
/// use tokio::sync::Semaphore;
///
/// let room = Arc::new(Semaphore::new(100));
/// let at_most_100 = RateLimitLayer::new(move |_: &Parts, _: &Context, _: Instant| {
///     room.clone().try_acquire_owned().map_err(|_| Error::new(Kind::Overloaded, "too_many_requests"))
/// });
/// # let _ = at_most_100;
/// ```
pub trait Policy {
    /// What an admitted request holds until its response body ends, fails or is dropped, or the request itself fails or is
    /// dropped. Dropping it gives back what was taken; `()` where nothing is held.
    type Permit;
    /// A decision that has to wait, for an answer of somebody else.
    type Future: Future<Output = Result<Self::Permit, Error>>;

    /// Looks at one request that came at `now`, before it goes further. A refused one does not reach the inner service.
    fn decide(&self, parts: &Parts, context: &Context, now: Instant) -> Decision<Self::Permit, Self::Future>;

    /// The inner service answered an admitted request, or failed it; called once, by default for nothing. After a failure the permit
    /// is dropped, after an answer the body holds it. Without this call the request was dropped before, or the service panicked.
    fn answered(permit: &mut Self::Permit, answer: Result<&response::Parts, &BoxError>) {
        let _ = (permit, answer);
    }

    /// The response body came to its end, as far as its frames tell; by default the permit is dropped. A permit that is dropped
    /// without this call belongs to a request that failed or was dropped, or to a body that failed or was dropped half read.
    fn completed(permit: Self::Permit) {
        drop(permit);
    }
}

/// An answer that is there already, or a future of it. Only the latter costs clones of the inner service and an allocation.
#[derive(Debug)]
pub enum Decision<T, F> {
    /// The answer.
    Now(Result<T, Error>),
    /// The answer has to be waited for, a moment: the request keeps what `poll_ready` reserved of the inner service.
    Later(F),
    /// The answer may have to be waited for for long: the request gives back what `poll_ready` reserved, so that others have it, and
    /// waits for the inner service again when it is admitted. It holds its permit then, for as long as that takes: whoever needs a bound
    /// has a timeout outside.
    Wait(F),
}

impl<F, T> Policy for F
where
    F: Fn(&Parts, &Context, Instant) -> Result<T, Error>,
{
    type Permit = T;
    type Future = Pending<Result<T, Error>>;

    fn decide(&self, parts: &Parts, context: &Context, now: Instant) -> Decision<T, Self::Future> {
        Decision::Now(self(parts, context, now))
    }
}
