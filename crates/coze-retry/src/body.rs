use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll},
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
        // In boxes, because most answers have neither, and all of them are moved.
        peeked: Option<Box<Frame<R::Data>>>,
        watch: Option<Pin<Box<Watch>>>,
    }
}

pin_project! {
    #[project = InnerProj]
    enum Inner<R> {
        Whole { #[pin] body: R },
        // One that was polled before it came here, and so cannot be moved any more.
        Peeked { body: Pin<Box<R>> },
        // It took too long, and was dropped.
        Over,
    }
}

pin_project! {
    /// Ends a wait that is too long.
    struct Watch {
        attempts: Arc<Attempts>,
        begun: bool,
        #[pin]
        timer: Option<Sleep>,
    }
}

impl<R: Body> ResponseBody<R> {
    #[inline]
    pub(crate) fn new(body: R, attempts: Option<&Arc<Attempts>>) -> Self {
        Self { inner: Inner::Whole { body }, peeked: None, watch: Watch::new(attempts, false) }
    }

    /// A body of which one frame was looked at.
    pub(crate) fn peeked(body: Pin<Box<R>>, peeked: Option<Frame<R::Data>>, attempts: Option<&Arc<Attempts>>) -> Self {
        let watch = Watch::new(attempts, peeked.is_some());
        Self { inner: Inner::Peeked { body }, peeked: peeked.map(Box::new), watch }
    }

    /// The trailers, where nothing came before them and they were looked at.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.peeked.as_ref()?.trailers_ref()
    }
}

impl Watch {
    #[inline]
    fn new(attempts: Option<&Arc<Attempts>>, begun: bool) -> Option<Pin<Box<Self>>> {
        let attempts = attempts.filter(|attempts| attempts.first_byte.is_some() || attempts.idle.is_some())?;
        Some(Box::pin(Self { attempts: attempts.clone(), begun, timer: None }))
    }

    /// A frame came.
    fn rest(self: Pin<&mut Self>) {
        let mut this = self.project();
        *this.begun = true;
        this.timer.set(None);
    }

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Error> {
        let mut this = self.project();
        let Attempts { first_byte, idle, .. } = &**this.attempts;
        let (limit, reason, message) = match this.begun {
            false => (first_byte, "first_byte_timeout", "the first byte of the answer did not come in time"),
            true => (idle, "idle_timeout", "the answer stopped half way"),
        };
        let Some(limit) = *limit else { return Poll::Pending };
        if this.timer.is_none() {
            this.timer.set(Some(sleep(limit)));
        }
        let timer = this.timer.as_pin_mut().expect("it was made a moment ago");
        timer.poll(task).map(|()| Error::new(Kind::Timeout, reason).with_message(message))
    }
}

impl<R> Body for ResponseBody<R>
where
    R: Body,
    R::Error: Into<BoxError>,
{
    type Data = R::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<R::Data>, BoxError>>> {
        let mut this = self.project();
        if let Some(frame) = this.peeked.take() {
            return Poll::Ready(Some(Ok(*frame)));
        }
        let polled = match this.inner.as_mut().project() {
            InnerProj::Whole { body } => body.poll_frame(task),
            InnerProj::Peeked { body } => body.as_mut().poll_frame(task),
            InnerProj::Over => return Poll::Ready(None),
        };
        match (polled, this.watch) {
            (Poll::Ready(frame), watch) => {
                if let Some(watch) = watch {
                    watch.as_mut().rest();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            (Poll::Pending, None) => Poll::Pending,
            (Poll::Pending, Some(watch)) => watch.as_mut().poll(task).map(|error| {
                // Dropped now, so that the connection is free before the caller is done with the error.
                this.inner.set(Inner::Over);
                Some(Err(error.into()))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.peeked.is_none()
            && match &self.inner {
                Inner::Whole { body } => body.is_end_stream(),
                Inner::Peeked { body } => body.is_end_stream(),
                Inner::Over => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.inner {
            Inner::Whole { body } => body.size_hint(),
            Inner::Peeked { body } => body.size_hint(),
            Inner::Over => SizeHint::with_exact(0),
        };
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

impl<R: Body> fmt::Debug for ResponseBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
