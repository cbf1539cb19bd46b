use std::{
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use bytes::Bytes;
use coze_core::BoxError;
use http::{Response, response};
use http_body::Body;
use pin_project_lite::pin_project;

use crate::{Policy, ResponseBody, Rest, Verdict, look::Look};

pin_project! {
    /// The answer of the inner service, or what the policy makes of it.
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct ResponseFuture<F, P, B>
    where
        P: Policy,
    {
        policy: P,
        note: P::Note,
        #[pin]
        state: State<F, B, P::Error>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F, B, E> {
        Called { #[pin] future: F },
        Looking { look: Option<Look<B>> },
        Answered { answer: Option<Result<Response<Bytes>, E>> },
    }
}

impl<F, P: Policy, B> ResponseFuture<F, P, B> {
    pub(crate) fn called(future: F, policy: P, note: P::Note) -> Self {
        Self { policy, note, state: State::Called { future } }
    }

    pub(crate) fn answered(answer: Result<Response<Bytes>, P::Error>, policy: P, note: P::Note) -> Self {
        Self { policy, note, state: State::Answered { answer: Some(answer) } }
    }
}

impl<F, P, B, E> Future for ResponseFuture<F, P, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    P: Policy,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody<B>>, P::Error>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let (policy, note) = (&*this.policy, &*this.note);
        loop {
            match this.state.as_mut().project() {
                StateProj::Called { future } => {
                    let (mut head, body) = match ready!(future.poll(task)) {
                        Ok(response) => response.into_parts(),
                        Err(error) => return Poll::Ready(ours(policy.error(note, error.into()))),
                    };
                    match policy.response(note, &mut head, &[], Rest::Coming) {
                        Verdict::Look(cap) => {
                            let look = Some(Look::new(head, body, cap));
                            this.state.set(State::Looking { look });
                        }
                        verdict => return Poll::Ready(decided(verdict, (head, ResponseBody::untouched(body)))),
                    }
                }
                StateProj::Looking { look: slot } => {
                    let look = slot.as_mut().expect("a future is not polled after it is ready");
                    let more = ready!(look.poll_more(task));
                    let rest = *more.as_ref().unwrap_or(&Rest::Unseen);
                    let verdict = policy.response(note, &mut look.head, &look.start, rest);
                    match (verdict, more) {
                        (Verdict::Look(cap), Ok(Rest::Coming)) => look.cap = cap,
                        // The body broke off, and what came of it says nothing worse.
                        (Verdict::Pass | Verdict::Look(_), Err(error)) => {
                            *slot = None;
                            return Poll::Ready(ours(policy.error(note, error.into())));
                        }
                        (verdict, _) => {
                            let look = slot.take().expect("it was there a moment ago");
                            return Poll::Ready(decided(verdict, look.put_back()));
                        }
                    }
                }
                StateProj::Answered { answer } => {
                    return Poll::Ready(ours(answer.take().expect("a future is not polled after it is ready")));
                }
            }
        }
    }
}

fn ours<B, E>(answer: Result<Response<Bytes>, E>) -> Result<Response<ResponseBody<B>>, E> {
    answer.map(|response| response.map(ResponseBody::ours))
}

fn decided<B, E>(
    verdict: Verdict<E>,
    (head, body): (response::Parts, ResponseBody<B>),
) -> Result<Response<ResponseBody<B>>, E> {
    match verdict {
        Verdict::Pass | Verdict::Look(_) => Ok(Response::from_parts(head, body)),
        Verdict::Replace(bytes) => Ok(Response::from_parts(head, ResponseBody::ours(bytes))),
        Verdict::Fail(error) => Err(error),
    }
}
