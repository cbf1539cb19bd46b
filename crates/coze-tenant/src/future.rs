use std::{
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use coze_core::{BoxError, Error};
use pin_project_lite::pin_project;

pin_project! {
    /// The answer of the inner service, or the refusal.
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Called { #[pin] future: F },
        Refused { error: Option<Error> },
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn called(future: F) -> Self {
        Self { state: State::Called { future } }
    }

    pub(crate) fn refused(error: Error) -> Self {
        Self { state: State::Refused { error: Some(error) } }
    }
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Called { future } => Poll::Ready(ready!(future.poll(task)).map_err(Into::into)),
            StateProj::Refused { error } => {
                let error = error.take().expect("a future is not polled after it is ready");
                Poll::Ready(Err(error.into()))
            }
        }
    }
}
