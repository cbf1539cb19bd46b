//! A body that plays a script.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context as Task, Poll},
};

use bytes::Bytes;
use coze_core::BoxError;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};

/// Plays these frames. Out of frames it ends, or stays pending if it hangs.
#[derive(Debug, Default)]
pub(crate) struct Script {
    frames: VecDeque<Result<Frame<Bytes>, BoxError>>,
    hangs: bool,
    tells_its_end: bool,
}

impl Script {
    /// Frames of data, and an end that is found by polling only.
    pub(crate) fn new(data: &[&'static str]) -> Self {
        let frames = data.iter().map(|data| Ok(Frame::data(Bytes::from_static(data.as_bytes())))).collect();
        Self { frames, ..Self::default() }
    }

    pub(crate) fn trailers(mut self, name: &'static str, value: &'static str) -> Self {
        let fields = HeaderMap::from_iter([(name.parse().expect("valid"), HeaderValue::from_static(value))]);
        self.frames.push_back(Ok(Frame::trailers(fields)));
        self
    }

    pub(crate) fn error(mut self, error: impl Into<BoxError>) -> Self {
        self.frames.push_back(Err(error.into()));
        self
    }

    pub(crate) fn hangs(self) -> Self {
        Self { hangs: true, ..self }
    }

    pub(crate) fn tells_its_end(self) -> Self {
        Self { tells_its_end: true, ..self }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        tracing::info!(target: "body", "polled");
        match self.frames.pop_front() {
            None if self.hangs => Poll::Pending,
            frame => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.tells_its_end && self.frames.is_empty()
    }
}
