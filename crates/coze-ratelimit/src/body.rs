use std::{
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// The inner response body, which holds the permit until it ends, fails or is dropped.
    #[derive(Debug)]
    pub struct ResponseBody<B, T> {
        // The body comes first, so that its work has ended when the permit is given back.
        #[pin]
        inner: B,
        permit: Option<T>,
    }
}

impl<B: Body, T> ResponseBody<B, T> {
    /// A body that is already at its end may never be polled: it gives the permit back here.
    pub(crate) fn new(inner: B, permit: Option<T>) -> Self {
        let permit = permit.filter(|_| !inner.is_end_stream());
        Self { inner, permit }
    }
}

impl<B: Body, T> Body for ResponseBody<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(task));
        // Whoever learns from `is_end_stream` that this was the last frame does not poll again.
        if !matches!(frame, Some(Ok(_))) || this.inner.is_end_stream() {
            *this.permit = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
