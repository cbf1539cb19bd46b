use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt, mem,
    pin::Pin,
    task::{Context as Task, Poll},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// How many frames are kept as they came; what follows is copied into one, so that a body of tiny frames costs little more
/// memory than its bytes.
const MAX_FRAMES: usize = 1024;

/// A request body that was read and verified, and is handed on without a copy, trailers included.
///
/// No signature covers the trailers.
#[derive(Clone, Default)]
pub struct VerifiedBody {
    first: Option<Bytes>,
    len: usize,
    /// What follows the first frame. In a box, because most bodies are one frame, and a request is moved about a lot.
    more: Option<Box<More>>,
}

#[derive(Clone, Default)]
struct More {
    frames: VecDeque<Bytes>,
    tail: BytesMut,
    trailers: Option<HeaderMap>,
}

impl VerifiedBody {
    /// How many bytes are left.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            // Counts towards no limit, so it must not be kept.
            return;
        }
        self.len += data.len();
        if self.first.is_none() {
            self.first = Some(data);
            return;
        }
        let more = self.more.get_or_insert_default();
        if more.frames.len() < MAX_FRAMES - 1 {
            more.frames.push_back(data);
        } else {
            more.tail.extend_from_slice(&data);
        }
    }

    pub(crate) fn set_trailers(&mut self, trailers: HeaderMap) {
        self.more.get_or_insert_default().trailers = Some(trailers);
    }

    /// What is left, frame by frame.
    pub(crate) fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let more = self.more.iter().flat_map(|more| more.frames.iter().map(|frame| &frame[..]).chain([&more.tail[..]]));
        self.first.as_deref().into_iter().chain(more)
    }

    /// The whole as one slice; copied only if it came in several frames.
    pub(crate) fn contiguous(&mut self) -> &[u8] {
        if self.first.as_ref().is_some_and(|first| first.len() < self.len) {
            let mut whole = BytesMut::with_capacity(self.len);
            while let Some(data) = self.pop() {
                whole.extend_from_slice(&data);
            }
            self.push(whole.freeze());
        }
        self.first.as_deref().unwrap_or_default()
    }

    fn pop(&mut self) -> Option<Bytes> {
        let data = self.first.take().or_else(|| self.more.as_mut()?.pop())?;
        self.len -= data.len();
        Some(data)
    }
}

impl More {
    fn pop(&mut self) -> Option<Bytes> {
        let tail = || Some(mem::take(&mut self.tail).freeze()).filter(|tail| !tail.is_empty());
        self.frames.pop_front().or_else(tail)
    }
}

impl Body for VerifiedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.pop().map(Frame::data);
        Poll::Ready(data.or_else(|| self.more.as_mut()?.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.len == 0 && self.more.as_ref().is_none_or(|more| more.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len as u64)
    }
}

impl fmt::Debug for VerifiedBody {
    /// How much there is, not what: it is what a person wrote.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedBody").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    fn body(frames: &[Vec<u8>]) -> VerifiedBody {
        let mut body = VerifiedBody::default();
        frames.iter().for_each(|frame| body.push(Bytes::copy_from_slice(frame)));
        body
    }

    #[tokio::test]
    async fn frames_are_handed_on_without_a_copy() {
        let (one, two) = (Bytes::from(vec![1; 10]), Bytes::from(vec![2; 10]));
        let mut body = VerifiedBody::default();
        body.push(one.clone());
        body.push(two.clone());
        for sent in [one, two] {
            let frame = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
            assert_eq!(frame.as_ptr(), sent.as_ptr());
        }
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn what_exceeds_the_number_of_frames_is_one_more_frame() {
        let mut body = body(&vec![vec![7]; MAX_FRAMES + 500]);
        let mut lens = Vec::new();
        while let Some(frame) = body.frame().await {
            lens.push(frame.expect("no error").into_data().expect("data").len());
        }
        assert_eq!((lens.len(), lens[MAX_FRAMES - 1], lens[MAX_FRAMES]), (MAX_FRAMES + 1, 1, 500));
    }

    #[test]
    fn empty_frames_take_no_memory() {
        let body = body(&vec![Vec::new(); MAX_FRAMES * 2]);
        assert!(body.is_end_stream() && body.first.is_none() && body.more.is_none());
    }

    #[test]
    fn an_empty_body_with_trailers_has_not_ended() {
        let mut body = VerifiedBody::default();
        body.set_trailers(HeaderMap::new());
        assert_eq!((body.is_end_stream(), body.size_hint().exact()), (false, Some(0)));
    }

    #[test]
    fn the_content_is_not_printed() {
        assert_eq!(format!("{:?}", body(&[b"secret".to_vec()])), "VerifiedBody { len: 6, .. }");
    }

    proptest! {
        #[test]
        fn any_frames_come_out_as_they_went_in(frames: Vec<Vec<u8>>, trailers: bool, joined: bool) {
            let whole = frames.concat();
            let mut body = body(&frames);
            if trailers {
                body.set_trailers(HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("t"))]));
            }
            prop_assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
            if joined {
                prop_assert_eq!(body.contiguous(), &whole[..]);
            }
            prop_assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
            prop_assert_eq!(body.is_end_stream(), whole.is_empty() && !trailers);
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let collected = runtime.block_on(body.collect()).expect("no error");
            prop_assert_eq!(collected.trailers().is_some(), trailers);
            prop_assert_eq!(collected.to_bytes(), whole);
        }
    }
}
