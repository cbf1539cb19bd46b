use std::task::{Context as Task, Poll};

use coze_core::{BoxError, Context};
use http::{Request, Response};
use tower_service::Service;

use crate::{Policy, ResponseFuture};

/// A service that asks its policy whose request it is, and lets through what the policy accepts.
#[derive(Clone, Debug)]
pub struct Tenant<S, P> {
    inner: S,
    policy: P,
}

impl<S, P> Tenant<S, P> {
    /// Wraps `inner`.
    pub const fn new(inner: S, policy: P) -> Self {
        Self { inner, policy }
    }
}

impl<S, P, B, R> Service<Request<B>> for Tenant<S, P>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    P: Policy,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(task).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let context = Context::of(&mut parts.extensions);
        match self.policy.apply(&mut parts, &context) {
            Ok(()) => ResponseFuture::called(self.inner.call(Request::from_parts(parts, body))),
            Err(error) => ResponseFuture::refused(error),
        }
    }
}
