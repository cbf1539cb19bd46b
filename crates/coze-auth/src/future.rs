use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use coze_core::{BoxError, Error};
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::Policy;

pin_project! {
    /// The answer of the inner service, once the policy has decided, or the refusal.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, P, B>
    where
        S: Service<Request<P::Body>>,
        P: Policy<B>,
    {
        #[pin]
        state: State<S, S::Future, P::Future, P::Ticket>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, F, D, T> {
        Deciding { #[pin] decision: D, inner: S },
        Called { #[pin] future: F, ticket: Option<T> },
        Refused { error: Option<Error> },
    }
}

impl<S, P, B> ResponseFuture<S, P, B>
where
    S: Service<Request<P::Body>>,
    P: Policy<B>,
{
    pub(crate) fn deciding(decision: P::Future, inner: S) -> Self {
        Self { state: State::Deciding { decision, inner } }
    }

    pub(crate) fn called(future: S::Future, ticket: P::Ticket) -> Self {
        Self { state: State::Called { future, ticket: Some(ticket) } }
    }

    pub(crate) fn refused(error: Error) -> Self {
        Self { state: State::Refused { error: Some(error) } }
    }
}

impl<S, P, B, R> Future for ResponseFuture<S, P, B>
where
    S: Service<Request<P::Body>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    P: Policy<B>,
{
    type Output = Result<Response<R>, BoxError>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Deciding { decision, inner } => match ready!(decision.poll(task)) {
                    Ok((request, ticket)) => {
                        let future = inner.call(request);
                        state.set(State::Called { future, ticket: Some(ticket) });
                    }
                    Err(error) => return Poll::Ready(Err(error.into())),
                },
                StateProj::Called { future, ticket } => {
                    let outcome = ready!(future.poll(task));
                    let ticket = ticket.take().expect("a future is not polled after it is ready");
                    return Poll::Ready(settled::<P, B, _, _>(ticket, outcome));
                }
                StateProj::Refused { error } => {
                    let error = error.take().expect("a future is not polled after it is ready");
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }
}

/// Not inlined, so that the answer is written where the caller wants it, and not moved once more.
#[inline(never)]
fn settled<P: Policy<B>, B, R, E: Into<BoxError>>(
    ticket: P::Ticket,
    outcome: Result<Response<R>, E>,
) -> Result<Response<R>, BoxError> {
    let mut outcome = outcome.map_err(Into::into);
    P::settle(ticket, &mut outcome);
    outcome
}

impl<S, P, B> fmt::Debug for ResponseFuture<S, P, B>
where
    S: Service<Request<P::Body>>,
    P: Policy<B>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Deciding { .. } => "ResponseFuture::Deciding",
            State::Called { .. } => "ResponseFuture::Called",
            State::Refused { .. } => "ResponseFuture::Refused",
        })
    }
}
