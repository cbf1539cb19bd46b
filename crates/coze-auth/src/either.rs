use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll},
};

use http::{HeaderMap, request::Parts};
use pin_project_lite::pin_project;

use crate::{Decision, Policy};

/// Either of two inbound policies, as the headers of a request say: such as a bearer token, or else an API key.
///
/// Only the policy that is chosen looks at the request: what it refuses is refused, so that a caller with bad credentials of one
/// kind is told so. Three are an either of an either. Both of two policies are two layers.
///
/// ```
/// use coze_auth::{ApiKey, ApiKeys, AuthLayer, Either, Key};
/// use coze_core::{Context, Error};
/// use http::{HeaderMap, HeaderName, header::AUTHORIZATION, request::Parts};
///
/// # fn main() -> Result<(), Error> {
/// let keys = ApiKeys::new([ApiKey::new("ci", &Key::new("0123456789abcdef0123456789abcdef")?)?])?;
/// let keys = keys.header(HeaderName::from_static("x-api-key"));
/// let token = |parts: &mut Parts, context: &Context| verify(parts, context);
/// let layer = AuthLayer::new(Either::new(token, keys, |headers: &HeaderMap| headers.contains_key(AUTHORIZATION)));
/// # fn verify(_: &mut Parts, _: &Context) -> Result<(), Error> { Ok(()) }
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Either<A, B, F> {
    first: A,
    second: B,
    is_for_first: F,
}

impl<A, B, F> Either<A, B, F> {
    /// The first policy for requests whose headers it is meant for, and the second for all others.
    pub const fn new(first: A, second: B, is_for_first: F) -> Self
    where
        F: Fn(&HeaderMap) -> bool,
    {
        Self { first, second, is_for_first }
    }
}

impl<A, B, F, T> Policy<T> for Either<A, B, F>
where
    A: Policy<T, Ticket = ()>,
    B: Policy<T, Body = A::Body, Ticket = ()>,
    F: Fn(&HeaderMap) -> bool,
{
    type Body = A::Body;
    type Ticket = ();
    type Future = EitherFuture<A::Future, B::Future>;

    fn authorize(&self, head: &mut Parts, body: T) -> Decision<(Self::Body, ()), Self::Future> {
        match (self.is_for_first)(&head.headers) {
            true => match self.first.authorize(head, body) {
                Decision::Now(verdict) => Decision::Now(verdict),
                Decision::Later(future) => Decision::Later(EitherFuture::First { future }),
            },
            false => match self.second.authorize(head, body) {
                Decision::Now(verdict) => Decision::Now(verdict),
                Decision::Later(future) => Decision::Later(EitherFuture::Second { future }),
            },
        }
    }
}

impl<A: fmt::Debug, B: fmt::Debug, F> fmt::Debug for Either<A, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Either").field("first", &self.first).field("second", &self.second).finish_non_exhaustive()
    }
}

pin_project! {
    /// A decision of one of two policies.
    #[project = EitherProj]
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub enum EitherFuture<A, B> {
        First { #[pin] future: A },
        Second { #[pin] future: B },
    }
}

impl<A, B> Future for EitherFuture<A, B>
where
    A: Future,
    B: Future<Output = A::Output>,
{
    type Output = A::Output;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<A::Output> {
        match self.project() {
            EitherProj::First { future } => future.poll(task),
            EitherProj::Second { future } => future.poll(task),
        }
    }
}
