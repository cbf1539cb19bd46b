use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context as Task, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// A body in more frames is not kept either: each costs some bytes besides its own.
const MAX_FRAMES: usize = 1024;

/// The request body that reaches the inner service: the original one, kept while it is read, or kept frames again and then
/// the rest of the original.
///
/// What is kept are references to the frames, no copies. Where there is too much of it, it goes on as it comes.
pub struct ReplayBody<B>(Inner<B>);

enum Inner<B> {
    /// Nothing to send, so nothing to keep.
    Empty,
    /// Sent once, as it is.
    Once(B),
    Kept(Reader<B>),
}

/// What the retry keeps of the request body, to make another one when the attempt before gave it back. `None` is the empty body.
pub(crate) struct Replay<B>(Option<Home<B>>);

/// The record, shared with the body of the attempt that reads it. There is never more than one: the next one is made when the
/// one before was dropped, and only then the record is looked at from here. So nobody ever waits for the lock.
type Home<B> = Arc<Mutex<Record<B>>>;

/// What was read of the original body, and what is left of it.
struct Record<B> {
    frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// The original, until its end.
    rest: Option<B>,
    /// How many bytes may still be kept.
    room: u64,
    /// Something was read and not kept: this is no longer the whole body.
    lost: bool,
}

/// Reads a record from its beginning, and goes on with the rest of the original.
struct Reader<B> {
    home: Home<B>,
    /// The next frame to repeat.
    next: usize,
    /// The bytes in the frames to repeat.
    bytes: u64,
    /// The trailers were sent.
    done: bool,
}

impl<B> Replay<B> {
    /// Is there nothing in it at all?
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Replay<B> {
    /// Keeps at most `cap` bytes of `body` while it is read.
    #[inline]
    pub(crate) fn new(body: B, cap: u64) -> (Self, ReplayBody<B>) {
        if body.is_end_stream() {
            return (Self(None), ReplayBody(Inner::Empty));
        }
        // Of a body that is too large for sure not even the beginning is kept. It can still be sent again unread.
        let room = if body.size_hint().lower() > cap { 0 } else { cap };
        let record = Record { frames: Vec::new(), trailers: None, rest: Some(body), room, lost: false };
        let home = Arc::new(Mutex::new(record));
        (Self(Some(home.clone())), ReplayBody(Inner::Kept(Reader { home, next: 0, bytes: 0, done: false })))
    }

    /// Is it clear already that there is no other body to be had?
    pub(crate) fn is_lost(&self) -> bool {
        self.0.as_ref().is_some_and(|home| given_back(home).is_some_and(|record| record.lost))
    }

    /// Was it read to its end, and given back?
    pub(crate) fn is_complete(&self) -> bool {
        self.0.as_ref().is_none_or(|home| given_back(home).is_some_and(|record| record.rest.is_none()))
    }

    /// The body once more, if it is complete and the attempt before has given it back.
    pub(crate) fn again(&self) -> Option<ReplayBody<B>> {
        let Some(home) = &self.0 else { return Some(ReplayBody(Inner::Empty)) };
        let record = given_back(home).filter(|record| !record.lost)?;
        let bytes = record.frames.iter().map(|frame| frame.len() as u64).sum();
        Some(ReplayBody(Inner::Kept(Reader { home: home.clone(), next: 0, bytes, done: false })))
    }
}

impl<B> ReplayBody<B> {
    pub(crate) fn once(body: B) -> Self {
        Self(Inner::Once(body))
    }
}

impl<B> Record<B> {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if self.lost {
            return;
        }
        let size = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => data.len(),
            (_, Some(trailers)) => trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum(),
            _ => return self.lose(),
        };
        let room = self.room.checked_sub(size as u64);
        match (room, frame.data_ref()) {
            (Some(_), Some(data)) if data.is_empty() => {}
            (Some(room), Some(data)) if self.frames.len() < MAX_FRAMES => {
                self.room = room;
                self.frames.push(data.clone());
            }
            (Some(_), None) => self.trailers = frame.trailers_ref().cloned(),
            _ => self.lose(),
        }
    }

    fn lose(&mut self) {
        self.frames = Vec::new();
        self.lost = true;
    }
}

impl<B: Body<Data = Bytes> + Unpin> Reader<B> {
    fn poll_frame(&mut self, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let record = &mut *lock(&self.home);
        if let Some(frame) = record.frames.get(self.next) {
            self.next += 1;
            self.bytes -= frame.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
        }
        let Some(rest) = &mut record.rest else {
            let trailers = record.trailers.as_ref().filter(|_| !self.done);
            self.done = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers.clone()))));
        };
        let frame = ready!(Pin::new(&mut *rest).poll_frame(task));
        match &frame {
            Some(Ok(frame)) => {
                // Nothing follows the trailers.
                if frame.is_trailers() {
                    record.rest = None;
                    self.done = true;
                }
                // An answer that was handed on is final: what came of the body until then need not be kept.
                if Arc::strong_count(&self.home) == 1 {
                    record.lose();
                }
                record.keep(frame);
                self.next = record.frames.len();
            }
            Some(Err(_)) => record.lose(),
            None => record.rest = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let record = lock(&self.home);
        self.next == record.frames.len()
            && match &record.rest {
                Some(rest) => rest.is_end_stream(),
                None => self.done || record.trailers.is_none(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = lock(&self.home).rest.as_ref().map_or(SizeHint::with_exact(0), B::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(self.bytes));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(self.bytes));
        }
        hint
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for ReplayBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.get_mut().0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Once(body) => Pin::new(body).poll_frame(task),
            Inner::Kept(reader) => reader.poll_frame(task),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Once(body) => body.is_end_stream(),
            Inner::Kept(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Once(body) => body.size_hint(),
            Inner::Kept(reader) => reader.size_hint(),
        }
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody").finish_non_exhaustive()
    }
}

/// The record, when no attempt has it.
fn given_back<B>(home: &Home<B>) -> Option<MutexGuard<'_, Record<B>>> {
    (Arc::strong_count(home) == 1).then(|| lock(home))
}

fn lock<B>(home: &Home<B>) -> MutexGuard<'_, Record<B>> {
    home.lock().unwrap_or_else(PoisonError::into_inner)
}
