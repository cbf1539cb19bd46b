use std::{
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use coze_core::{BoxError, Error};
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use crate::ResponseBody;

pin_project! {
    /// The answer of the inner service, whose body then holds the permit; or the refusal.
    ///
    /// Dropping it gives the permit back.
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct ResponseFuture<F, T> {
        #[pin]
        state: State<F, T>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F, T> {
        // The future comes first, so that its work has ended when the permit is given back.
        Called { #[pin] future: F, permit: Option<T> },
        Refused { error: Option<Error> },
    }
}

impl<F, T> ResponseFuture<F, T> {
    pub(crate) fn called(future: F, permit: T) -> Self {
        Self { state: State::Called { future, permit: Some(permit) } }
    }

    pub(crate) fn refused(error: Error) -> Self {
        Self { state: State::Refused { error: Some(error) } }
    }
}

impl<F, T, B, E> Future for ResponseFuture<F, T>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody<B, T>>, BoxError>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Called { future, permit } => {
                let answer = ready!(future.poll(task));
                let permit = permit.take();
                Poll::Ready(answer.map(|r| r.map(|body| ResponseBody::new(body, permit))).map_err(Into::into))
            }
            StateProj::Refused { error } => {
                let error = error.take().expect("a future is not polled after it is ready");
                Poll::Ready(Err(error.into()))
            }
        }
    }
}
