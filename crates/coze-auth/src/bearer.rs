use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

use coze_core::{BoxError, Error, Kind, Retry};
use http::{HeaderName, Request, Response, StatusCode, header::AUTHORIZATION};
use pin_project_lite::pin_project;

use crate::{Admitted, Decision, Policy, Token, TokenSource};

/// The platform's hint that another token is due, on an answer to a token it still accepted.
const REFRESH: HeaderName = HeaderName::from_static("x-refresh-token");

/// The outbound policy: puts the source's token on the request, and tells the source when the platform refused it.
///
/// What the request carried in `authorization` is replaced. A token that the platform refused, by an error of
/// [`Kind::Unauthenticated`] or a bare 401, or that it wants renewed (`X-Refresh-Token`) is forgotten, unless the source has
/// a newer one already. If another one can be had the error says [`Retry::Safe`]: a retry layer outside sends again, with
/// the new token. A bare 401 is handed on as it came; without `coze-errmap` inside nothing tells the retry layer.
///
/// The token goes to whatever host the request names: it is the caller who keeps it to the platform's.
#[derive(Clone, Debug)]
pub struct Bearer<T> {
    source: T,
}

impl<T> Bearer<T> {
    /// Takes tokens from `source`.
    pub const fn new(source: T) -> Self {
        Self { source }
    }
}

impl<T, B> Policy<B> for Bearer<T>
where
    T: TokenSource + Clone,
{
    type Body = B;
    type Ticket = (T, u64);
    type Future = Attach<T, T::Future, B>;

    fn authorize(&self, request: Request<B>) -> Decision<Admitted<B, Self::Ticket>, Self::Future> {
        let source = self.source.clone();
        match self.source.token() {
            Decision::Now(token) => Decision::Now(token.map(|token| attach(&token, request, source))),
            Decision::Later(token) => Decision::Later(Attach { token, held: Some((request, source)) }),
        }
    }

    fn settle<R>(ticket: Self::Ticket, outcome: Result<Response<R>, BoxError>) -> Result<Response<R>, BoxError> {
        let (source, generation) = ticket;
        match outcome {
            Ok(response) => {
                if response.status() == StatusCode::UNAUTHORIZED || response.headers().contains_key(REFRESH) {
                    source.reject(generation);
                }
                Ok(response)
            }
            Err(error) if Error::find(&*error).is_some_and(|e| e.kind() == Kind::Unauthenticated) => {
                match source.reject(generation) {
                    Some(retry) => Err(with_retry(error, retry)),
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }
}

fn attach<T, B>(token: &Token, mut request: Request<B>, source: T) -> Admitted<B, (T, u64)> {
    request.headers_mut().insert(AUTHORIZATION, token.header().clone());
    (request, (source, token.generation()))
}

/// The same error with another answer to [`Error::retry`].
fn with_retry(error: BoxError, retry: Retry) -> BoxError {
    match error.downcast::<Error>() {
        Ok(error) => error.with_retry(retry).into(),
        // It stands behind an error of another make: a copy in front is what the retry layer finds.
        Err(error) => match Error::find(&*error).map(copy) {
            Some(copy) => copy.with_retry(retry).with_source(error).into(),
            None => error,
        },
    }
}

/// What an error says, without its source.
pub(crate) fn copy(error: &Error) -> Error {
    let mut copy =
        Error::new(error.kind(), error.reason()).with_message(error.message().to_owned()).with_retry(error.retry());
    if let Some(wait) = error.retry_after() {
        copy = copy.with_retry_after(wait);
    }
    if let Some(platform) = error.platform() {
        copy = copy.with_platform(platform.clone());
    }
    if let Some(limit) = error.limit() {
        copy = copy.with_limit(limit);
    }
    copy
}

pin_project! {
    /// Waits for a token and puts it on the request.
    #[must_use = "futures do nothing unless polled"]
    pub struct Attach<T, F, B> {
        #[pin]
        token: F,
        held: Option<(Request<B>, T)>,
    }
}

impl<T, F, B> Future for Attach<T, F, B>
where
    F: Future<Output = Result<Token, Error>>,
{
    type Output = Result<Admitted<B, (T, u64)>, Error>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let token = ready!(this.token.poll(task))?;
        let (request, source) = this.held.take().expect("a future is not polled after it is ready");
        Poll::Ready(Ok(attach(&token, request, source)))
    }
}

impl<T, F, B> fmt::Debug for Attach<T, F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attach").finish_non_exhaustive()
    }
}
