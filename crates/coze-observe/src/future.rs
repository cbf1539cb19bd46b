use std::{
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use crate::{Record, ResponseBody};

pin_project! {
    /// The answer of the inner service. Dropped before it is ready, it counts the request as cancelled.
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        // Declared, and so dropped, before the record, which then sees what inner layers note when they are dropped.
        #[pin]
        inner: F,
        record: Option<Record>,
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn new(inner: F, record: Option<Record>) -> Self {
        Self { inner, record }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: 'static,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = {
            let _entered = this.record.as_ref().map(Record::enter);
            ready!(this.inner.poll(task))
        };
        let record = this.record.take();
        Poll::Ready(match answer {
            Ok(mut response) => {
                let record = record.and_then(|record| record.head(&mut response));
                Ok(response.map(|body| ResponseBody::new(body, record)))
            }
            Err(error) => {
                if let Some(record) = record {
                    record.fail(&error);
                }
                Err(error)
            }
        })
    }
}
