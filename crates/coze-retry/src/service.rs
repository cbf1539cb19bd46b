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

use crate::{
    Plan, Policy, ReplayBody, ResponseBody, ResponseFuture,
    future::Setup,
    grpc,
    judge::no_answer,
    replay::Replay,
    session::Session,
    start::{Start, said},
};

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
    R: Body,
    R::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = BoxError;
    type Future = ResponseFuture<S, P, B, S::Future, R>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(task).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let Plan { replay, deadline: total, mut circuit, attempts } = self.policy.plan(&parts);
        let context = match replay {
            // The attempts share what is noted about the request.
            Some(_) => Some(Context::of(&mut parts.extensions)),
            None => parts.extensions.get::<Context>().cloned(),
        };
        let now = now();
        let given = context.as_ref().and_then(|context| context.deadline.get()).copied().map(Instant::from_std);
        let grpc = grpc::is_call(&parts.headers);
        let header = attempts.as_ref().and_then(|attempts| attempts.deadline_header.as_ref());
        let own = total.into_iter().chain(said(&parts.headers, grpc, header)).min();
        let deadline = own.and_then(|own| now.checked_add(own)).into_iter().chain(given).min();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return ResponseFuture::refused(no_answer(), self.policy.clone());
        }
        if let Some(Err(error)) = circuit.as_mut().map(|circuit| circuit.enter(now)) {
            tracing::debug!(target: "coze::retry", why = "circuit_open", "the request is not sent");
            return ResponseFuture::refused(error.into(), self.policy.clone());
        }
        let number = context.as_ref().map_or(1, |context| context.attempts.fetch_add(1, Ordering::Relaxed) + 1);
        Start { attempts: attempts.as_deref(), grpc, deadline }.prepare(&mut parts.headers, number, now);
        let policy = self.policy.clone();
        let (Some(cap), Some(context)) = (replay, context) else {
            let attempt = self.inner.call(Request::from_parts(parts, ReplayBody::once(body)));
            let setup = Setup { policy, deadline, circuit, attempts, grpc, session: None };
            return ResponseFuture::calling(attempt, now, setup);
        };
        let (replay, body) = Replay::new(body, cap);
        let clone = self.inner.clone();
        let mut ready = mem::replace(&mut self.inner, clone);
        // The copy is kept and the original sent: layers inside find the room for their headers that it had.
        let head = parts.clone();
        let attempt = ready.call(Request::from_parts(parts, body));
        let session = Some(Session::new(ready, head, replay, context));
        ResponseFuture::calling(attempt, now, Setup { policy, deadline, circuit, attempts, grpc, session })
    }
}

/// The layer's only clock.
pub(crate) fn now() -> Instant {
    Instant::now()
}
