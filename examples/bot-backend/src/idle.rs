//! A connection that ends when nothing happens on it. hyper bounds the time for the head of a request only: not the time
//! between two requests, nor that for a caller who does not take the answer.

use std::{
    io,
    pin::Pin,
    task::{Context as Task, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// A stream that fails with [`io::ErrorKind::TimedOut`] when no byte went either way for some time.
#[derive(Debug)]
pub(crate) struct Idle<S> {
    stream: S,
    time: Duration,
    timer: Pin<Box<Sleep>>,
}

impl<S> Idle<S> {
    pub(crate) fn new(stream: S, time: Duration) -> Self {
        Self { stream, time, timer: Box::pin(sleep(time)) }
    }

    /// Takes note of progress, or fails a wait that lasts too long.
    fn watch<T>(&mut self, task: &mut Task<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.timer.as_mut().reset(Instant::now() + self.time);
            return poll;
        }
        match self.timer.as_mut().poll(task) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Idle<S> {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Task<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_read(task, buf);
        self.watch(task, poll)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Idle<S> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Task<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(task, buf);
        self.watch(task, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(task, bufs);
        self.watch(task, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(task);
        self.watch(task, poll)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_silent_ends() {
        let (ours, _theirs) = duplex(8);
        let error = Idle::new(ours, TIME).read_u8().await.expect_err("silent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_does_not_take_the_answer_is_left() {
        let (ours, _theirs) = duplex(8);
        let error = Idle::new(ours, TIME).write_all(&[0; 9]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn each_byte_buys_time() {
        let (ours, mut theirs) = duplex(8);
        let mut ours = Idle::new(ours, TIME);
        for _ in 0..3 {
            let slow = async {
                tokio::time::sleep(TIME - Duration::from_secs(1)).await;
                theirs.write_u8(7).await
            };
            let (read, wrote) = tokio::join!(ours.read_u8(), slow);
            assert_eq!((read.expect("in time"), wrote.is_ok()), (7, true));
        }
    }
}
