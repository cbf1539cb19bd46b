use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::state::Shared;

/// How long what was sent has for its way before the connection breaks: what is still buffered then is lost.
const BREAK_PAUSE: Duration = Duration::from_millis(5);

/// The body of every answer: frames, perhaps with time between them, perhaps broken off.
#[derive(Debug)]
pub(crate) struct Script {
    frames: VecDeque<Piece>,
    delay: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Does the connection break after the last frame?
    broken: bool,
    /// The length that is announced, if one is.
    length: Option<u64>,
    /// Nothing for the control endpoints, which are not counted.
    on_air: Option<OnAir>,
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// Is the chat over with this frame? It must be before the client reads it, for it may act on it at once.
    ends_chat: bool,
}

impl Script {
    /// One frame of known length.
    pub(crate) fn whole(bytes: impl Into<Bytes>, on_air: Option<OnAir>) -> Self {
        let bytes = bytes.into();
        let length = Some(bytes.len() as u64);
        let frames = Some(Piece { bytes, ends_chat: false }).filter(|piece| !piece.bytes.is_empty());
        let frames = frames.into_iter().collect();
        Self { frames, delay: Duration::ZERO, timer: None, broken: false, length, on_air }
    }

    /// Frames one after the other, each with whether the chat is over with it.
    pub(crate) fn stream(frames: impl Iterator<Item = (Bytes, bool)>, delay: Duration, on_air: OnAir) -> Self {
        let frames = frames.map(|(bytes, ends_chat)| Piece { bytes, ends_chat }).collect();
        Self { frames, delay, timer: None, broken: false, length: None, on_air: Some(on_air) }
    }

    /// Sends the bytes in pieces of 16, with `delay` between them.
    pub(crate) fn slow(mut self, delay: Duration) -> Self {
        let pieces = self.frames.drain(..).flat_map(|piece| {
            let cut = piece.bytes.len().saturating_sub(1) / 16;
            (0..=cut).map(move |n| Piece {
                bytes: piece.bytes.slice(n * 16..piece.bytes.len().min(n * 16 + 16)),
                ends_chat: piece.ends_chat && n == cut,
            })
        });
        self.frames = pieces.collect();
        self.delay = delay;
        self
    }

    /// Sends `frames` frames at most, of a single frame the first half, and then breaks the connection or, for a stream,
    /// ends as if all were well.
    pub(crate) fn cut(mut self, frames: usize, abort: bool) -> Self {
        if let (Some(_), Some(only)) = (self.length, self.frames.front_mut()) {
            only.bytes.truncate(only.bytes.len() / 2);
            self.broken = true;
        } else {
            self.frames.truncate(frames);
            self.broken = abort;
        }
        if self.frames.is_empty() && self.broken {
            self.timer = Some(Box::pin(sleep(BREAK_PAUSE)));
        }
        self
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(task));
            self.timer = None;
        }
        let Some(piece) = self.frames.pop_front() else {
            let broken = std::mem::take(&mut self.broken);
            let error = || Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut on purpose"));
            return Poll::Ready(broken.then(error));
        };
        let pause = match self.frames.is_empty() {
            false => self.delay,
            true if self.broken => self.delay.max(BREAK_PAUSE),
            true => Duration::ZERO,
        };
        self.timer = (!pause.is_zero()).then(|| Box::pin(sleep(pause)));
        if let Some(on_air) = self.on_air.as_mut().filter(|_| piece.ends_chat) {
            on_air.end_chat();
        }
        Poll::Ready(Some(Ok(Frame::data(piece.bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && !self.broken
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Held while an answer is under way. Dropped with the body, however that ends: the request is then no longer in flight
/// and its chat no longer running (the platform finishes a chat whose reader went away).
pub(crate) struct OnAir {
    shared: Arc<Shared>,
    chat: Option<String>,
}

impl OnAir {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        shared.lock().record.arrived();
        Self { shared, chat: None }
    }

    /// The chat ends with this answer.
    pub(crate) fn with_chat(mut self, chat: Option<String>) -> Self {
        self.chat = chat;
        self
    }

    fn end_chat(&mut self) {
        if let Some(chat) = self.chat.take() {
            let unix = self.shared.unix();
            self.shared.lock().end_chat(&chat, unix);
        }
    }
}

impl Drop for OnAir {
    fn drop(&mut self) {
        self.end_chat();
        self.shared.lock().record.left();
    }
}

impl fmt::Debug for OnAir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnAir").field("chat", &self.chat).finish_non_exhaustive()
    }
}
