use std::time::Instant;

use coze_core::{Context, Error};
use http::request::Parts;

/// Decides whether there is room for a request.
///
/// It decides at once: it never waits. A closure is a policy:
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

    /// Looks at one request that came at `now`, before it goes further.
    ///
    /// # Errors
    /// The refusal: the request then does not reach the inner service.
    fn check(&self, parts: &Parts, context: &Context, now: Instant) -> Result<Self::Permit, Error>;
}

impl<F, T> Policy for F
where
    F: Fn(&Parts, &Context, Instant) -> Result<T, Error>,
{
    type Permit = T;

    fn check(&self, parts: &Parts, context: &Context, now: Instant) -> Result<T, Error> {
        self(parts, context, now)
    }
}
