use std::{
    fmt,
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::Policy;

pin_project! {
    /// The inner response body, which holds the permit until it ends, fails or is dropped.
    pub struct ResponseBody<B, P: Policy> {
        // The body comes first, so that its work has ended when the permit is given back.
        #[pin]
        inner: B,
        permit: Option<P::Permit>,
    }
}

impl<B: Body, P: Policy> ResponseBody<B, P> {
    /// A body that is already at its end may never be polled: it is complete here.
    pub(crate) fn new(inner: B, mut permit: Option<P::Permit>) -> Self {
        if inner.is_end_stream() {
            complete::<P>(&mut permit);
        }
        Self { inner, permit }
    }
}

fn complete<P: Policy>(permit: &mut Option<P::Permit>) {
    if let Some(permit) = permit.take() {
        P::completed(permit);
    }
}

impl<B: Body, P: Policy> Body for ResponseBody<B, P> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(task));
        match frame {
            Some(Err(_)) => *this.permit = None,
            // Whoever learns from `is_end_stream` that this was the last frame does not poll again.
            Some(Ok(_)) if !this.inner.is_end_stream() => {}
            _ => complete::<P>(this.permit),
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

impl<B: fmt::Debug, P: Policy> fmt::Debug for ResponseBody<B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}
