use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, response};
use http_body::Body;

use crate::{ResponseBody, Rest};

/// A response whose body is looked at. Everything read is kept, to be put back.
#[derive(Debug)]
pub(crate) struct Look<B> {
    pub(crate) head: response::Parts,
    /// What the body begins with, in one piece: at most `cap` bytes.
    pub(crate) start: Vec<u8>,
    pub(crate) cap: usize,
    /// In a box, because it is polled here and moved afterwards.
    body: Pin<Box<B>>,
    frames: VecDeque<Bytes>,
    trailers: Option<Box<HeaderMap>>,
    /// The length of `start` at which the policy is asked again. It doubles, so that a body in small frames is not looked at
    /// from its first byte for every one of them.
    next: usize,
    /// The bytes read, where an empty frame counts as one: so the frames are bounded too.
    weight: usize,
    ended: bool,
}

impl<B: Body<Data = Bytes>> Look<B> {
    pub(crate) fn new(head: response::Parts, body: B, cap: usize) -> Self {
        Self {
            head,
            start: Vec::new(),
            cap,
            body: Box::pin(body),
            frames: VecDeque::new(),
            trailers: None,
            next: 1,
            weight: 0,
            ended: false,
        }
    }

    /// Reads until there is something new to show, and says what follows it.
    pub(crate) fn poll_more(&mut self, task: &mut Task<'_>) -> Poll<Result<Rest, B::Error>> {
        loop {
            let Some(frame) = ready!(self.body.as_mut().poll_frame(task)?) else {
                self.ended = true;
                return Poll::Ready(Ok(Rest::Nothing));
            };
            match frame.into_data() {
                Ok(data) => {
                    let room = self.cap.saturating_sub(self.start.len());
                    self.start.extend_from_slice(&data[..data.len().min(room)]);
                    self.weight += data.len().max(1);
                    self.frames.push_back(data);
                }
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok().map(Box::new);
                    self.ended = true;
                }
            }
            self.ended |= self.body.is_end_stream();
            if self.ended && self.weight <= self.cap {
                return Poll::Ready(Ok(Rest::Nothing));
            } else if self.ended || self.weight >= self.cap {
                return Poll::Ready(Ok(Rest::Unseen));
            } else if self.start.len() >= self.next {
                self.next = self.start.len() * 2;
                return Poll::Ready(Ok(Rest::Coming));
            }
        }
    }

    /// The response as it came.
    pub(crate) fn put_back(self) -> (response::Parts, ResponseBody<B>) {
        let body = if self.ended {
            ResponseBody::complete(self.frames, self.trailers)
        } else {
            ResponseBody::looked_at(self.frames, self.body)
        };
        (self.head, body)
    }
}
