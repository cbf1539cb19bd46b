use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
};

use bytes::Buf;
use coze_core::{BoxError, Error, Kind};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use crate::Attempts;

pin_project! {
    /// The body of an answer: frame by frame as it comes, with a bound on each wait for the next one.
    pub struct ResponseBody<R: Body> {
        #[pin]
        inner: Inner<R>,
    }
}

pin_project! {
    #[project = InnerProj]
    enum Inner<R: Body> {
        Plain { #[pin] body: R },
        // In a box, because most answers are not, and all of them are moved.
        Watched { body: Pin<Box<Watched<R>>> },
    }
}

pin_project! {
    /// A body whose waits are bounded, or of which one frame was looked at.
    pub(crate) struct Watched<R: Body> {
        // None when it took too long.
        #[pin]
        body: Option<R>,
        peeked: Option<Frame<R::Data>>,
        begun: bool,
        attempts: Option<Arc<Attempts>>,
        #[pin]
        timer: Option<Sleep>,
    }
}

impl<R: Body> ResponseBody<R> {
    #[inline]
    pub(crate) fn new(body: R, attempts: Option<&Arc<Attempts>>) -> Self {
        let bounded = attempts.is_some_and(|attempts| attempts.first_byte.is_some() || attempts.idle.is_some());
        let inner = match bounded {
            false => Inner::Plain { body },
            true => Inner::Watched { body: Watched::new(body, attempts.cloned()) },
        };
        Self { inner }
    }

    pub(crate) fn watched(body: Pin<Box<Watched<R>>>) -> Self {
        Self { inner: Inner::Watched { body } }
    }

    /// The trailers, where nothing came before them and they were looked at.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        match &self.inner {
            Inner::Plain { .. } => None,
            Inner::Watched { body } => body.peeked.as_ref()?.trailers_ref(),
        }
    }
}

impl<R: Body> Watched<R> {
    pub(crate) fn new(body: R, attempts: Option<Arc<Attempts>>) -> Pin<Box<Self>> {
        Box::pin(Self { body: Some(body), peeked: None, begun: false, attempts, timer: None })
    }

    /// Waits for the first frame, and keeps it.
    pub(crate) fn peek(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Result<(), R::Error>> {
        let this = self.project();
        let body = this.body.as_pin_mut().expect("nothing took too long yet");
        *this.peeked = ready!(body.poll_frame(task)).transpose()?;
        *this.begun = this.peeked.is_some();
        Poll::Ready(Ok(()))
    }
}

impl<R> Watched<R>
where
    R: Body,
    R::Error: Into<BoxError>,
{
    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<R::Data>, BoxError>>> {
        let mut this = self.project();
        if let Some(frame) = this.peeked.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = body.poll_frame(task) {
            *this.begun = true;
            this.timer.set(None);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let Some(Attempts { first_byte, idle, .. }) = this.attempts.as_deref() else { return Poll::Pending };
        let (limit, reason, message) = match this.begun {
            false => (first_byte, "first_byte_timeout", "the first byte of the answer did not come in time"),
            true => (idle, "idle_timeout", "the answer stopped half way"),
        };
        let Some(limit) = *limit else { return Poll::Pending };
        if this.timer.is_none() {
            this.timer.set(Some(sleep(limit)));
        }
        ready!(this.timer.as_pin_mut().expect("it was made a moment ago").poll(task));
        // Dropped now, so that the connection is free before the caller is done with the error.
        this.body.set(None);
        Poll::Ready(Some(Err(Error::new(Kind::Timeout, reason).with_message(message).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.peeked.is_none() && self.body.as_ref().is_none_or(R::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.as_ref().map_or(SizeHint::with_exact(0), R::size_hint);
        let Some(peeked) = self.peeked.as_ref().and_then(|frame| frame.data_ref()) else { return rest };
        let peeked = peeked.remaining() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(peeked));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(peeked));
        }
        hint
    }
}

impl<R> Body for ResponseBody<R>
where
    R: Body,
    R::Error: Into<BoxError>,
{
    type Data = R::Data;
    type Error = BoxError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<R::Data>, BoxError>>> {
        match self.project().inner.project() {
            InnerProj::Plain { body } => body.poll_frame(task).map_err(Into::into),
            InnerProj::Watched { body } => body.as_mut().poll_frame(task),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Plain { body } => body.is_end_stream(),
            Inner::Watched { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Plain { body } => body.size_hint(),
            Inner::Watched { body } => body.size_hint(),
        }
    }
}

impl<R: Body> fmt::Debug for ResponseBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
