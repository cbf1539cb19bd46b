use std::{
    mem,
    sync::atomic::Ordering,
    task::{Context as Task, Poll},
};

use bytes::Bytes;
use coze_core::{BoxError, Context};
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use crate::{Policy, ReplayBody, ResponseFuture, future::Session, replay::Replay};

/// A service that sends a request again when it failed, as its policy says.
///
/// The inner service gets a body of its own type, and the errors are boxed. Each further attempt waits for readiness anew.
#[derive(Clone, Debug)]
pub struct Retry<S, P> {
    inner: S,
    policy: P,
}

impl<S, P> Retry<S, P> {
    /// Wraps `inner`.
    pub const fn new(inner: S, policy: P) -> Self {
        Self { inner, policy }
    }
}

impl<S, P, B, R> Service<Request<B>> for Retry<S, P>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    P: Policy + Clone,
    B: Body<Data = Bytes> + Unpin,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, P, B, S::Future>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(task).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let plan = self.policy.plan(&parts);
        let context = match plan.replay {
            // The attempts share what is noted about the request.
            Some(_) => Some(Context::of(&mut parts.extensions)),
            None => parts.extensions.get::<Context>().cloned(),
        };
        let given = context.as_ref().and_then(|context| context.deadline.get()).copied().map(Instant::from_std);
        let deadline = if plan.deadline.is_some() || given.is_some() {
            let now = now();
            let own = plan.deadline.and_then(|total| now.checked_add(total));
            let deadline = own.into_iter().chain(given).min();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return ResponseFuture::expired();
            }
            deadline
        } else {
            None
        };
        if let Some(context) = &context {
            context.attempts.fetch_add(1, Ordering::Relaxed);
        }
        let (Some(cap), Some(context)) = (plan.replay, context) else {
            let request = Request::from_parts(parts, ReplayBody::once(body));
            return ResponseFuture::calling(self.inner.call(request), deadline, None);
        };
        let (replay, body) = Replay::new(body, cap);
        let head = parts.clone();
        let clone = self.inner.clone();
        let mut ready = mem::replace(&mut self.inner, clone);
        let attempt = ready.call(Request::from_parts(parts, body));
        let session = Session::new(ready, self.policy.clone(), head, replay, context);
        ResponseFuture::calling(attempt, deadline, Some(session))
    }
}

/// The layer's only clock.
pub(crate) fn now() -> Instant {
    Instant::now()
}
