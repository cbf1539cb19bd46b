use std::{
    fmt,
    task::{Context as Task, Poll},
};

use bytes::Bytes;
use coze_core::BoxError;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{Policy, ResponseBody, ResponseFuture};

/// A service that lets its policy turn failures into responses, or responses into failures.
pub struct ErrMap<S, P> {
    inner: S,
    policy: P,
    /// Why the inner service is not ready, if the policy answers that by a response.
    unready: Option<BoxError>,
}

impl<S, P> ErrMap<S, P> {
    /// Wraps `inner`.
    pub const fn new(inner: S, policy: P) -> Self {
        Self { inner, policy, unready: None }
    }
}

impl<S, P, B, R> Service<Request<B>> for ErrMap<S, P>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    P: Policy + Clone,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = P::Error;
    type Future = ResponseFuture<S::Future, P, R>;

    /// Forwards. Where the policy turns failures into responses there must be a request to answer, so this is ready then,
    /// and the next call gets the failure for its answer without reaching the inner service.
    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), P::Error>> {
        if self.unready.is_some() {
            return Poll::Ready(Ok(()));
        }
        self.inner.poll_ready(task).map(|ready| match ready {
            Ok(()) => Ok(()),
            Err(error) => {
                self.unready = Some(self.policy.unready(error.into())?);
                Ok(())
            }
        })
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let note = self.policy.note(&parts);
        match self.unready.take() {
            None => {
                let future = self.inner.call(Request::from_parts(parts, body));
                ResponseFuture::called(future, self.policy.clone(), note)
            }
            Some(error) => {
                let answer = self.policy.error(&note, error);
                ResponseFuture::answered(answer, self.policy.clone(), note)
            }
        }
    }
}

/// The clone asks the inner service itself whether it is ready: a failure answers one call, not one per clone.
impl<S: Clone, P: Clone> Clone for ErrMap<S, P> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.policy.clone())
    }
}

/// Without the failure that is kept: a foreign error may hold anything.
impl<S: fmt::Debug, P: fmt::Debug> fmt::Debug for ErrMap<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrMap").field("inner", &self.inner).field("policy", &self.policy).finish_non_exhaustive()
    }
}
