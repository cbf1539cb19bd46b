use std::{
    mem,
    task::{Context as Task, Poll},
};

use coze_core::{BoxError, Context};
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use crate::{Decision, Degrade, Policy, Refuse, ResponseBody, ResponseFuture};

/// A service that asks its policy whether there is room for a request, and lets through what the policy admits.
///
/// While a policy waits for somebody else's answer, the request holds what `poll_ready` reserved of the inner service, unless that may
/// take long ([`Decision::Wait`]).
#[derive(Clone, Debug)]
pub struct RateLimit<S, P, D = Refuse> {
    pub(crate) inner: S,
    pub(crate) policy: P,
    pub(crate) degrade: D,
}

impl<S, P> RateLimit<S, P> {
    /// Wraps `inner`.
    pub const fn new(inner: S, policy: P) -> Self {
        Self { inner, policy, degrade: Refuse }
    }
}

impl<S, P, D, B, R> Service<Request<B>> for RateLimit<S, P, D>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    P: Policy,
    D: Degrade<B, R> + Clone,
    R: Body,
{
    type Response = Response<ResponseBody<R, P>>;
    type Error = BoxError;
    type Future = ResponseFuture<S, P, B, D, D::Future>;

    /// Forwards: whose quota a request takes is known only in `call`.
    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(task).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let mut inserted = None;
        let context = match parts.extensions.get() {
            Some(context) => context,
            None => &*inserted.insert(Context::insert(&mut parts.extensions)),
        };
        match self.policy.decide(&parts, context, Instant::now().into_std()) {
            Decision::Now(Ok(permit)) => {
                context.limit.get_or_init(|| "ok");
                ResponseFuture::called(self.inner.call(Request::from_parts(parts, body)), permit)
            }
            Decision::Now(Err(error)) => {
                let context = context.clone();
                ResponseFuture::refused(error, &context, Request::from_parts(parts, body), &self.degrade)
            }
            Decision::Later(decision) => {
                // The service that is ready goes with the request, the clone, which is not, stays.
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                ResponseFuture::deciding(decision, ready, Request::from_parts(parts, body), self.degrade.clone())
            }
            Decision::Wait(decision) => {
                // Neither the one that goes with the request nor the one that stays keeps what was reserved.
                let clone = self.inner.clone();
                self.inner = clone.clone();
                ResponseFuture::deciding(decision, clone, Request::from_parts(parts, body), self.degrade.clone())
            }
        }
    }
}
