use std::{
    mem,
    task::{Context as Task, Poll},
};

use coze_core::BoxError;
use http::{Request, Response};
use tower_service::Service;

use crate::{Decision, Policy, ResponseFuture};

/// A service that asks its policy about each request, and lets through what the policy accepts.
///
/// While a policy waits (for a body, for a token) the request holds what `poll_ready` reserved of the inner service, so a
/// limit on concurrency belongs outside of this layer.
#[derive(Clone, Debug)]
pub struct Auth<S, P> {
    inner: S,
    policy: P,
}

impl<S, P> Auth<S, P> {
    /// Wraps `inner`.
    pub const fn new(inner: S, policy: P) -> Self {
        Self { inner, policy }
    }
}

impl<S, P, B, R> Service<Request<B>> for Auth<S, P>
where
    S: Service<Request<P::Body>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    P: Policy<B>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, P, B>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(task).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        match self.policy.authorize(&mut head, body) {
            Decision::Now(Ok((body, ticket))) => {
                ResponseFuture::called(self.inner.call(Request::from_parts(head, body)), ticket)
            }
            Decision::Now(Err(error)) => ResponseFuture::refused(error),
            Decision::Later(decision) => {
                // The service that is ready goes with the request, the clone, which is not, stays.
                let clone = self.inner.clone();
                ResponseFuture::deciding(decision, mem::replace(&mut self.inner, clone))
            }
        }
    }
}
