use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use coze_core::{BoxError, Context, Error};
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{Degrade, Policy, ResponseBody};

pin_project! {
    /// The answer of the inner service, whose body then holds the permit; or what is given instead; or the refusal.
    ///
    /// Dropping it gives the permit back.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, P, B, D, I>
    where
        S: Service<Request<B>>,
        P: Policy,
    {
        #[pin]
        state: State<S::Future, P::Future, P::Permit, (S, Request<B>, D), I>,
    }
}

const ONCE: &str = "a future is not polled after it is ready";

pin_project! {
    #[project = StateProj]
    enum State<F, C, T, W, I> {
        // What waits is boxed, so that those who do not wait are not as large.
        Deciding { #[pin] decision: C, waiting: Option<Box<W>> },
        // It is ready already, unless it gave back what was reserved while it waited.
        Admitted { waiting: Option<Box<W>>, permit: Option<T> },
        // The future comes first, so that its work has ended when the permit is given back.
        Called { #[pin] future: F, permit: Option<T> },
        Instead { #[pin] future: I },
        Refused { error: Option<Error> },
    }
}

impl<S, P, B, D, I> ResponseFuture<S, P, B, D, I>
where
    S: Service<Request<B>>,
    P: Policy,
{
    pub(crate) fn deciding(decision: P::Future, inner: S, request: Request<B>, degrade: D) -> Self {
        Self { state: State::Deciding { decision, waiting: Some(Box::new((inner, request, degrade))) } }
    }

    pub(crate) fn called(future: S::Future, permit: P::Permit) -> Self {
        Self { state: State::Called { future, permit: Some(permit) } }
    }

    pub(crate) fn refused<R>(error: Error, context: &Context, request: Request<B>, degrade: &D) -> Self
    where
        D: Degrade<B, R, Future = I>,
    {
        context.limit.get_or_init(|| error.limit().map_or(error.reason(), |limit| limit.name));
        let state = match degrade.instead(request, error) {
            Ok(future) => State::Instead { future },
            Err(error) => State::Refused { error: Some(error) },
        };
        Self { state }
    }
}

impl<S, P, B, D, I, R> Future for ResponseFuture<S, P, B, D, I>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    P: Policy,
    D: Degrade<B, R, Future = I>,
    I: Future<Output = Result<Response<R>, BoxError>>,
    R: Body,
{
    type Output = Result<Response<ResponseBody<R, P>>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            match this.state.as_mut().project() {
                StateProj::Deciding { decision, waiting } => {
                    let decided = ready!(decision.poll(task));
                    let mut waiting = waiting.take().expect("a decision is made once");
                    let context = Context::of(waiting.1.extensions_mut());
                    let next = match decided {
                        Ok(permit) => {
                            context.limit.get_or_init(|| "ok");
                            Self { state: State::Admitted { waiting: Some(waiting), permit: Some(permit) } }
                        }
                        Err(error) => {
                            let (_, request, degrade) = *waiting;
                            Self::refused(error, &context, request, &degrade)
                        }
                    };
                    self.set(next);
                }
                StateProj::Admitted { waiting, permit } => {
                    let (inner, ..) = &mut **waiting.as_mut().expect(ONCE);
                    let is_ready = ready!(inner.poll_ready(task)).map_err(Into::into);
                    let (waiting, mut permit) = (waiting.take().expect(ONCE), permit.take().expect(ONCE));
                    if let Err(error) = is_ready {
                        P::answered(&mut permit, Err(&error));
                        return Poll::Ready(Err(error));
                    }
                    let (mut inner, request, _) = *waiting;
                    let next = Self::called(inner.call(request), permit);
                    self.set(next);
                }
                StateProj::Called { future, permit } => {
                    let answer = ready!(future.poll(task)).map(Response::into_parts).map_err(Into::into);
                    let mut permit = permit.take();
                    if let Some(permit) = &mut permit {
                        P::answered(permit, answer.as_ref().map(|(head, _)| head));
                    }
                    return Poll::Ready(
                        answer.map(|(head, body)| Response::from_parts(head, ResponseBody::new(body, permit))),
                    );
                }
                StateProj::Instead { future } => {
                    let answer = ready!(future.poll(task));
                    return Poll::Ready(answer.map(|r| r.map(|body| ResponseBody::new(body, None))));
                }
                StateProj::Refused { error } => {
                    let error = error.take().expect(ONCE);
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }
}

impl<S, P, B, D, I> fmt::Debug for ResponseFuture<S, P, B, D, I>
where
    S: Service<Request<B>>,
    P: Policy,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Deciding { .. } => "ResponseFuture::Deciding",
            State::Admitted { .. } => "ResponseFuture::Admitted",
            State::Called { .. } => "ResponseFuture::Called",
            State::Instead { .. } => "ResponseFuture::Instead",
            State::Refused { .. } => "ResponseFuture::Refused",
        })
    }
}
