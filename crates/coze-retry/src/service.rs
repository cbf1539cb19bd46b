use std::{
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
    Hedge, Plan, Policy, ReplayBody, ResponseBody, ResponseFuture,
    future::Setup,
    grpc,
    judge::{enter, no_answer},
    replay::Replay,
    session::Session,
    standard::destination,
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

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Plan { replay, deadline: total, attempts } = self.policy.plan(&request);
        let headers = request.headers();
        let grpc = grpc::is_call(headers);
        let header = attempts.as_ref().and_then(|attempts| attempts.deadline_header.as_ref());
        let own = total.into_iter().chain(said(headers, grpc, header)).min();
        let breaker = self.policy.breaker();
        let destination = breaker.map_or(0, |breaker| breaker.destination(destination(request.uri(), headers)));
        let mut inserted = None;
        let context = match request.extensions().get() {
            // The attempts share what is noted about the request.
            None if replay.is_some() => Some(&*inserted.insert(Context::insert(request.extensions_mut()))),
            context => context,
        };
        let now = now();
        let given = context.and_then(|context| context.deadline.get()).copied().map(Instant::from_std);
        let deadline = own.and_then(|own| now.checked_add(own)).into_iter().chain(given).min();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return ResponseFuture::refused(no_answer());
        }
        let probe = match enter(&self.policy, destination, now) {
            Ok(probe) => probe,
            Err(error) => {
                tracing::debug!(target: "coze::retry", why = "circuit_open", "the request is not sent");
                return ResponseFuture::refused(error.into());
            }
        };
        let number = context.map_or(1, |context| context.attempts.fetch_add(1, Ordering::Relaxed) + 1);
        Start { attempts: attempts.as_deref(), grpc, deadline }.prepare(request.headers_mut(), number, now);
        let policy = self.policy.clone();
        let Some(cap) = replay else {
            let attempt = self.inner.call(request.map(ReplayBody::once));
            let setup = Setup { policy, deadline, destination, probe, attempts, grpc, session: None };
            return ResponseFuture::calling(attempt, now, None, setup);
        };
        let (parts, body) = request.into_parts();
        let (replay, body) = Replay::new(body, cap);
        // A second attempt beside the first cannot share a body with it.
        let hedge = attempts.as_ref().and_then(|attempts| attempts.hedge.as_ref()).filter(|_| replay.is_empty());
        let late = hedge.and_then(Hedge::delay).map(|delay| u32::try_from(delay.as_millis()).unwrap_or(u32::MAX));
        // The copy is kept and the original sent: layers inside find the room for their headers that it had.
        let head = parts.clone();
        let attempt = self.inner.call(Request::from_parts(parts, body));
        let session = Some(Session { service: self.inner.clone(), head, body: replay, history: None });
        let setup = Setup { policy, deadline, destination, probe, attempts, grpc, session };
        ResponseFuture::calling(attempt, now, late, setup)
    }
}

/// The layer's only clock.
pub(crate) fn now() -> Instant {
    Instant::now()
}
