use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context as Task, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// The body of the inner service, with what was looked at put back in front; or the body that replaces it.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        frames: VecDeque<Bytes>,
        // The bytes in the frames.
        len: u64,
        #[pin]
        rest: After<B>,
    }
}

pin_project! {
    /// What comes after the frames.
    #[project = AfterProj]
    #[derive(Debug)]
    enum After<B> {
        Nothing { trailers: Option<Box<HeaderMap>> },
        Untouched { #[pin] body: B },
        LookedAt { body: Pin<Box<B>> },
    }
}

impl<B> ResponseBody<B> {
    fn new(frames: VecDeque<Bytes>, rest: After<B>) -> Self {
        let len = frames.iter().map(|data| data.len() as u64).sum();
        Self { frames, len, rest }
    }

    pub(crate) fn untouched(body: B) -> Self {
        Self::new(VecDeque::new(), After::Untouched { body })
    }

    pub(crate) fn looked_at(frames: VecDeque<Bytes>, body: Pin<Box<B>>) -> Self {
        Self::new(frames, After::LookedAt { body })
    }

    pub(crate) fn complete(frames: VecDeque<Bytes>, trailers: Option<Box<HeaderMap>>) -> Self {
        Self::new(frames, After::Nothing { trailers })
    }

    /// A body of our own: one frame, or none.
    pub(crate) fn ours(bytes: Bytes) -> Self {
        Self::complete(Some(bytes).filter(|bytes| !bytes.is_empty()).into_iter().collect(), None)
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        if let Some(data) = this.frames.pop_front() {
            *this.len -= data.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match this.rest.project() {
            AfterProj::Nothing { trailers } => {
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))))
            }
            AfterProj::Untouched { body } => body.poll_frame(task),
            AfterProj::LookedAt { body } => body.as_mut().poll_frame(task),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty()
            && match &self.rest {
                After::Nothing { trailers } => trailers.is_none(),
                After::Untouched { body } => body.is_end_stream(),
                After::LookedAt { body } => body.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            After::Nothing { .. } => SizeHint::with_exact(0),
            After::Untouched { body } => body.size_hint(),
            After::LookedAt { body } => body.size_hint(),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(self.len));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(self.len)) {
            hint.set_upper(upper);
        }
        hint
    }
}
