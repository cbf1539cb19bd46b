use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
};

use coze_core::{BoxError, Context, Error, Kind};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header::AUTHORIZATION, request::Parts};
use pin_project_lite::pin_project;

use crate::{Admitted, Decision, Policy, Token, TokenSource, TokenSources, take_request};

/// The platform's hint that another token is due, on an answer to a token it still accepted.
const REFRESH: HeaderName = HeaderName::from_static("x-refresh-token");

/// The codes with which the platform refuses a token, or that a token of the other region gets (coze-platform.md §1.1).
pub(crate) const OF_THE_TOKEN: [i64; 3] = [4100, 4101, 700_012_006];

/// The outbound policy: puts the source's token on the request, and tells the source when the platform refused it.
///
/// What the request carried in `authorization` is replaced. A token that the platform refused, by an error of
/// [`Kind::Unauthenticated`] or a bare 401, is forgotten, and one that it wants renewed (`X-Refresh-Token`) is renewed, unless the
/// source has a newer one already. If another one can be had the error says [`Retry::Safe`](coze_core::Retry::Safe): a retry layer outside
/// sends again, with the new token. A bare 401 is handed on as it came; without `coze-errmap` inside nothing tells the retry
/// layer.
///
/// The token goes to whatever host the request names, unless [`Bearer::host`] binds it to one.
#[derive(Clone, Debug)]
pub struct Bearer<T> {
    sources: T,
    host: Option<Arc<str>>,
}

impl<T> Bearer<T> {
    /// Takes tokens from a source, or from one per tenant.
    pub const fn new(sources: T) -> Self {
        Self { sources, host: None }
    }

    /// The host that the tokens are good at, such as `api.coze.cn`, without a port.
    ///
    /// A request to another one is refused with `host_mismatch` before it has a token. And as the platform refuses a token of
    /// its other region like any wrong one (coze-platform.md §1.1), an error with the code 4100, 4101 or 700012006 says so.
    #[must_use]
    pub fn host(self, host: &str) -> Self {
        Self { host: Some(host.into()), ..self }
    }
}

/// What is kept of a request that was sent with a token.
#[derive(Debug)]
pub struct Sent<T> {
    source: T,
    generation: u64,
    host: Option<Arc<str>>,
}

impl<T, B> Policy<B> for Bearer<T>
where
    T: TokenSources,
{
    type Body = B;
    type Ticket = Sent<T::Source>;
    type Future = Attach<T::Source, <T::Source as TokenSource>::Future, B>;

    fn authorize(&self, head: &mut Parts, body: B) -> Decision<(B, Self::Ticket), Self::Future> {
        let host = self.host.clone();
        if let Some(bound) = &host
            && !head.uri.host().is_some_and(|host| host.eq_ignore_ascii_case(bound))
        {
            return Decision::Now(Err(Error::new(Kind::Internal, "host_mismatch")
                .with_message(format!("the token is for {bound} and goes to no other host"))));
        }
        let source = match self.sources.source(head.extensions.get::<Context>()) {
            Ok(source) => source,
            Err(error) => return Decision::Now(Err(error)),
        };
        match source.token() {
            Decision::Now(token) => {
                Decision::Now(token.map(|token| (body, attach(token, &mut head.headers, source, host))))
            }
            Decision::Later(token) => {
                Decision::Later(Attach { token, held: Some((take_request(head, body), source, host)) })
            }
        }
    }

    fn settle<R>(sent: Self::Ticket, outcome: &mut Result<Response<R>, BoxError>) {
        let Sent { source, generation, host } = sent;
        let error = match outcome {
            Ok(response) => {
                if response.status() == StatusCode::UNAUTHORIZED {
                    source.reject(generation);
                } else if response.headers().contains_key(REFRESH) {
                    source.renew(generation);
                } else {
                    source.accept(generation);
                }
                return;
            }
            Err(error) => error,
        };
        let Some(found) = Error::find(&**error) else { return };
        let retry = match found.kind() {
            Kind::Unauthenticated => source.reject(generation),
            _ => None,
        };
        let is_of_the_token = found.platform().is_some_and(|platform| OF_THE_TOKEN.contains(&platform.code));
        let hint = host.filter(|_| is_of_the_token);
        if retry.is_some() || hint.is_some() {
            // Nobody sees what stands in for it meanwhile.
            *error = changed(mem::replace(error, Box::new(fmt::Error)), |error| {
                let error = retry.into_iter().fold(error, Error::with_retry);
                hint.into_iter().fold(error, |error, host| of_the_region(error, &host))
            });
        }
    }
}

fn attach<T>(token: Token, headers: &mut HeaderMap, source: T, host: Option<Arc<str>>) -> Sent<T> {
    let generation = token.generation();
    headers.insert(AUTHORIZATION, token.into_header());
    Sent { source, generation, host }
}

/// The same error, which may have another cause than it says.
pub(crate) fn of_the_region(error: Error, host: &str) -> Error {
    let message = format!("{}; {host} refuses a token of another region like this too", error.message());
    error.with_message(message)
}

/// The same error, except for what `change` says.
fn changed(error: BoxError, change: impl FnOnce(Error) -> Error) -> BoxError {
    match error.downcast::<Error>() {
        Ok(error) => change(*error).into(),
        // It stands behind an error of another make: a copy in front is what the retry layer finds.
        Err(error) => match Error::find(&*error).map(copy) {
            Some(copy) => change(copy).with_source(error).into(),
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
    if let Some(scope) = error.scope() {
        copy = copy.with_scope(scope);
    }
    copy
}

pin_project! {
    /// Waits for a token and puts it on the request.
    #[must_use = "futures do nothing unless polled"]
    pub struct Attach<T, F, B> {
        #[pin]
        token: F,
        held: Option<(Request<B>, T, Option<Arc<str>>)>,
    }
}

impl<T, F, B> Future for Attach<T, F, B>
where
    F: Future<Output = Result<Token, Error>>,
{
    type Output = Result<Admitted<B, Sent<T>>, Error>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let token = ready!(this.token.poll(task))?;
        let (mut request, source, host) = this.held.take().expect("a future is not polled after it is ready");
        let sent = attach(token, request.headers_mut(), source, host);
        Poll::Ready(Ok((request, sent)))
    }
}

impl<T, F, B> fmt::Debug for Attach<T, F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attach").finish_non_exhaustive()
    }
}
