use std::{
    fmt,
    future::poll_fn,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use coze_core::{BoxError, Error, Kind, Retry};
use http::{HeaderValue, Request, Response, Uri, header, uri::PathAndQuery};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use serde_json::{Map, Value};
use tower_service::Service;

use super::answer;
use crate::bearer::{OF_THE_TOKEN, copy, of_the_region};

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 10;

/// A host of the platform, and the way to it. Tokens that are got here are good at this host only.
///
/// `transport` is an HTTP client as a Tower service, bare: not one that makes errors of refusals, as these are read here. What
/// it fails with is taken for a request that may have arrived, unless it is a [`coze_core::Error`] with [`Retry::Safe`], as
/// it should be where no connection could be had.
#[derive(Clone)]
pub struct Endpoint<S> {
    transport: S,
    base: Uri,
    timeout: Duration,
    clock: fn() -> SystemTime,
}

impl<S> Endpoint<S> {
    /// The host at `base`, such as `https://api.coze.cn`.
    ///
    /// # Errors
    /// `endpoint_invalid`, [`Kind::Precondition`]: `base` is not an absolute `http` or `https` address, or has a path.
    pub fn new(base: &str, transport: S) -> Result<Self, Error> {
        let is_base = |base: &Uri| {
            matches!(base.scheme_str(), Some("http" | "https"))
                && base.authority().is_some_and(|authority| !authority.as_str().contains('@'))
                && base.path_and_query().is_none_or(|path| path == "/")
        };
        let base = base.parse().ok().filter(is_base).ok_or_else(|| {
            Error::new(Kind::Precondition, "endpoint_invalid")
                .with_message("the platform's address is a scheme and a host, such as https://api.coze.cn")
        })?;
        Ok(Self { transport, base, timeout: Duration::from_secs(10), clock: SystemTime::now })
    }

    /// How long one request may take; 10 seconds unless set. Then it fails with `token_timeout`, [`Kind::Timeout`].
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The wall clock that assertions are dated by; [`SystemTime::now`] unless set.
    #[must_use]
    pub fn clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    /// The host without scheme and port: the audience of assertions (coze-platform.md §1.6).
    #[must_use]
    pub fn host(&self) -> &str {
        self.base.host().unwrap_or_default()
    }

    pub(super) fn base(&self) -> &Uri {
        &self.base
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.clock)()
    }
}

impl<S, B> Endpoint<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
{
    /// Asks once. See [`answer::read`] for what a failure says about the request.
    pub(super) async fn ask(
        &self,
        path: &str,
        authorization: Option<HeaderValue>,
        body: &Value,
    ) -> Result<Map<String, Value>, Error> {
        let request = self.request(path, authorization, body)?;
        tokio::time::timeout(self.timeout, self.send(request)).await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Timeout, "token_timeout")
                .with_message(format!("the token endpoint did not answer within {:?}", self.timeout)))
        })
    }

    fn request(
        &self,
        path: &str,
        authorization: Option<HeaderValue>,
        body: &Value,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let unsendable = |error: http::Error| Error::new(Kind::Internal, "token_request").with_source(error);
        let mut uri = self.base.clone().into_parts();
        uri.path_and_query = Some(PathAndQuery::try_from(path).map_err(|error| unsendable(error.into()))?);
        let uri = Uri::from_parts(uri).map_err(|error| unsendable(error.into()))?;
        let mut request = Request::post(uri).header(header::CONTENT_TYPE, "application/json");
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request.body(Full::from(body.to_string())).map_err(unsendable)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Map<String, Value>, Error> {
        let mut transport = self.transport.clone();
        poll_fn(|task| transport.poll_ready(task)).await.map_err(|e| unreachable(e.into()).with_retry(Retry::Safe))?;
        let response = transport.call(request).await.map_err(|e| unreachable(e.into()))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
            answer::nonsense("the answer of the token endpoint broke off or is too long").with_source(error)
        })?;
        answer::read(head.status, &body.to_bytes()).map_err(|error| {
            let error = match error.platform().is_some_and(|platform| OF_THE_TOKEN.contains(&platform.code)) {
                true => of_the_region(error, self.host()),
                false => error,
            };
            answer::retry_after(&head.headers, self.now()).into_iter().fold(error, Error::with_retry_after)
        })
    }
}

/// Did it arrive? Only who carried it may know.
fn unreachable(error: BoxError) -> Error {
    match Error::find(&*error).map(copy) {
        // That the transport refuses for good says nothing about the credentials.
        Some(known) if known.retry() == Retry::Never => known.with_retry(Retry::IfIdempotent).with_source(error),
        Some(known) => known.with_source(error),
        None => Error::new(Kind::Unavailable, "token_endpoint_unreachable")
            .with_message("the token endpoint cannot be reached")
            .with_source(error),
    }
}

impl<S> fmt::Debug for Endpoint<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("base", &self.base).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
