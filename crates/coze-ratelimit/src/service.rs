use std::task::{Context as Task, Poll};

use coze_core::{BoxError, Context};
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use crate::{Policy, ResponseBody, ResponseFuture};

/// A service that asks its policy whether there is room for a request, and lets through what the policy admits.
#[derive(Clone, Debug)]
pub struct RateLimit<S, P> {
    inner: S,
    policy: P,
}

impl<S, P> RateLimit<S, P> {
    /// Wraps `inner`.
    pub const fn new(inner: S, policy: P) -> Self {
        Self { inner, policy }
    }
}

impl<S, P, B, R> Service<Request<B>> for RateLimit<S, P>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    P: Policy,
    R: Body,
{
    type Response = Response<ResponseBody<R, P::Permit>>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future, P::Permit>;

    /// Forwards: whose quota a request takes is known only in `call`.
    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(task).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let context = Context::of(&mut parts.extensions);
        match self.policy.check(&parts, &context, Instant::now().into_std()) {
            Ok(permit) => {
                context.limit.get_or_init(|| "ok");
                ResponseFuture::called(self.inner.call(Request::from_parts(parts, body)), permit)
            }
            Err(error) => {
                context.limit.get_or_init(|| error.limit().map_or(error.reason(), |limit| limit.name));
                ResponseFuture::refused(error)
            }
        }
    }
}
