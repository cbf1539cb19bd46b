use std::{
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll},
};

use http::{Response, StatusCode};
use pin_project_lite::pin_project;

use crate::circuit::Probe;

/// A second attempt beside the first.
pub(crate) enum Second<F> {
    No,
    /// If there is no answer so many milliseconds after the first one began.
    After(u32),
    /// As soon as the inner service is ready for it.
    Readying,
    // In a box, because hardly any request has one.
    Running(Pin<Box<Running<F>>>),
}

pin_project! {
    pub(crate) struct Running<F> {
        #[pin]
        attempt: F,
        probe: Option<Probe>,
    }
}

impl<F> Second<F> {
    pub(crate) fn run(attempt: F, probe: Option<Probe>) -> Self {
        Self::Running(Box::pin(Running { attempt, probe }))
    }

    /// The answer of the first attempt or of this one: the first that is no failure wins, and the other attempt is dropped at
    /// once. A failure only counts when there is nothing left to wait for.
    ///
    /// `probe` is that of the first attempt, and afterwards that of the attempt the answer is from; `aside` gets what fails
    /// while the other attempt goes on.
    #[inline]
    pub(crate) fn race<R, E>(
        &mut self,
        mut first: Pin<&mut Option<F>>,
        task: &mut Task<'_>,
        probe: &mut Option<Probe>,
        aside: impl Fn(Result<Response<R>, E>, &mut Option<Probe>),
    ) -> Poll<Result<Response<R>, E>>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        let Self::Running(second) = self else {
            return first.as_pin_mut().expect("there is an attempt").poll(task);
        };
        if let Some(running) = first.as_mut().as_pin_mut()
            && let Poll::Ready(answer) = running.poll(task)
        {
            first.set(None);
            if !has_failed(&answer) {
                *self = Self::No;
                return Poll::Ready(answer);
            }
            aside(answer, probe);
            *probe = second.as_mut().project().probe.take();
        }
        let Poll::Ready(answer) = second.as_mut().project().attempt.poll(task) else { return Poll::Pending };
        let mut own = second.as_mut().project().probe.take();
        *self = Self::No;
        if first.is_none() {
            return Poll::Ready(answer);
        }
        if !has_failed(&answer) {
            first.set(None);
            *probe = own;
            return Poll::Ready(answer);
        }
        aside(answer, &mut own);
        Poll::Pending
    }
}

fn has_failed<R, E>(answer: &Result<Response<R>, E>) -> bool {
    answer.as_ref().map_or(true, |response| response.status() >= StatusCode::BAD_REQUEST)
}
