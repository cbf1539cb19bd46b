use std::{
    task::{Context as Task, Poll},
    time::Instant,
};

use coze_core::Context;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{Policy, Record, ResponseBody, ResponseFuture};

/// A service that keeps a record of each request, from its arrival to the end of its answer's body.
///
/// It adds no failure, so its error is the inner service's: around `coze-errmap` that is `Infallible`, as routers ask for.
#[derive(Clone, Debug)]
pub struct Observe<S, P> {
    inner: S,
    policy: P,
}

impl<S, P> Observe<S, P> {
    /// Wraps `inner`.
    pub const fn new(inner: S, policy: P) -> Self {
        Self { inner, policy }
    }
}

impl<S, P, B, R> Service<Request<B>> for Observe<S, P>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: 'static,
    P: Policy,
    R: Body,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let context = Context::of(&mut parts.extensions);
        let now = now();
        context.start.get_or_init(|| now);
        let record = self.policy.begin(&mut parts, &context, now);
        let called = {
            // Inner layers decide, and log, in `call` already.
            let _entered = record.as_ref().map(Record::enter);
            self.inner.call(Request::from_parts(parts, body))
        };
        ResponseFuture::new(called, record)
    }
}

/// The one place that reads the clock.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
