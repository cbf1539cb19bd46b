use std::{
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll},
};

use http::{Response, StatusCode};
use pin_project_lite::pin_project;

use crate::Circuit;

pin_project! {
    /// An attempt, and perhaps a second one beside it: the first answer that is no failure wins, and the other attempt is
    /// dropped at once. A failure only counts when there is nothing left to wait for.
    pub(crate) struct Race<F> {
        #[pin]
        first: Option<F>,
        // In a box, because hardly any request has one.
        second: Option<Pin<Box<Second<F>>>>,
    }
}

pin_project! {
    struct Second<F> {
        #[pin]
        attempt: F,
        circuit: Option<Circuit>,
    }
}

impl<F> Race<F> {
    #[inline]
    pub(crate) fn new(attempt: F) -> Self {
        Self { first: Some(attempt), second: None }
    }

    pub(crate) fn join(self: Pin<&mut Self>, attempt: F, circuit: Option<Circuit>) {
        *self.project().second = Some(Box::pin(Second { attempt, circuit }));
    }

    /// The answer. `circuit` is that of the first attempt, and afterwards that of the attempt the answer is from; `aside` gets
    /// what fails while the other attempt goes on.
    #[inline]
    pub(crate) fn poll<R, E>(
        self: Pin<&mut Self>,
        task: &mut Task<'_>,
        circuit: &mut Option<Circuit>,
        aside: impl Fn(Result<Response<R>, E>, &mut Option<Circuit>),
    ) -> Poll<Result<Response<R>, E>>
    where
        F: Future<Output = Result<Response<R>, E>>,
    {
        let mut this = self.project();
        if let Some(first) = this.first.as_mut().as_pin_mut()
            && let Poll::Ready(answer) = first.poll(task)
        {
            this.first.set(None);
            let Some(second) = this.second.as_mut().filter(|_| has_failed(&answer)) else {
                *this.second = None;
                return Poll::Ready(answer);
            };
            aside(answer, circuit);
            *circuit = second.as_mut().project().circuit.take();
        }
        if let Some(second) = this.second.as_mut()
            && let Poll::Ready(answer) = second.as_mut().project().attempt.poll(task)
        {
            let mut own = second.as_mut().project().circuit.take();
            *this.second = None;
            if this.first.is_none() {
                return Poll::Ready(answer);
            }
            if !has_failed(&answer) {
                this.first.set(None);
                *circuit = own;
                return Poll::Ready(answer);
            }
            aside(answer, &mut own);
        }
        Poll::Pending
    }
}

fn has_failed<R, E>(answer: &Result<Response<R>, E>) -> bool {
    answer.as_ref().map_or(true, |response| response.status() >= StatusCode::BAD_REQUEST)
}
