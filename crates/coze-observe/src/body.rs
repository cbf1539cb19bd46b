use std::{
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::Record;

pin_project! {
    /// The inner body, whose end is the end of the request. Dropped before its end, it counts the request as cancelled.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        // Dropped before the record, as in the future.
        #[pin]
        inner: B,
        // None once the request is over.
        record: Option<Record>,
    }
}

impl<B> ResponseBody<B> {
    pub(crate) fn new(inner: B, record: Option<Record>) -> Self {
        Self { inner, record }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Error: 'static,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = {
            let _entered = this.record.as_ref().map(Record::enter);
            ready!(this.inner.as_mut().poll_frame(task))
        };
        if let Some(mut record) = this.record.take() {
            match &frame {
                None => record.complete(),
                Some(Err(error)) => record.fail(error),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        record.data(data.remaining());
                    }
                    if let Some(trailers) = frame.trailers_ref() {
                        record.trailers(trailers);
                    }
                    // Who was told that this frame is the last one may never poll again.
                    if frame.is_trailers() || this.inner.is_end_stream() {
                        record.complete();
                    } else {
                        *this.record = Some(record);
                    }
                }
            }
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
