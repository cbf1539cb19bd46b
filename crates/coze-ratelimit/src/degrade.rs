use std::future::{Future, Pending};

use coze_core::{BoxError, Error};
use http::{Request, Response};

/// What becomes of a request that there is no room for (requirement R4.4): an answer of another kind, such as one that was given
/// before, or the word that it will be done later.
///
/// A closure is one. This one keeps writes in a [`Queue`](crate::Queue):
///
/// ```
/// use std::num::NonZeroU32;
///
/// use bytes::Bytes;
/// use coze_core::{BoxError, Error};
/// use coze_ratelimit::{Job, Level, Limits, MemoryQueue, Queue, Rate, RateLimitLayer};
/// use http::{Method, Request, Response, StatusCode};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let queue = MemoryQueue::new(1000);
/// let later = {
///     let queue = queue.clone();
///     move |request: Request<Bytes>, refusal: Error| {
///         let queue = queue.clone();
///         // Reads are refused.
///         let write = (*request.method() == Method::POST).then(|| request.into_body()).ok_or(refusal);
///         write.map(|payload| async move {
///             queue.push(Job { id: "m1".to_owned(), payload }).await?;
///             let mut accepted = Response::new("later".to_owned());
///             *accepted.status_mut() = StatusCode::ACCEPTED;
///             Ok(accepted)
///         })
///     }
/// };
/// let one = Level::global("app", Rate::per_second(NonZeroU32::MIN));
/// let service = RateLimitLayer::new(Limits::new().level(one))
///     .degrade(later)
///     .layer(service_fn(|_: Request<Bytes>| async { Ok::<_, BoxError>(Response::new("now".to_owned())) }));
/// let write = || Request::post("/").body(Bytes::from_static(b"hello"));
/// assert_eq!(service.clone().oneshot(write()?).await?.status(), 200);
/// assert_eq!(service.oneshot(write()?).await?.status(), 202);
/// assert_eq!(queue.take().await?.job.payload, "hello");
/// # Ok(())
/// # }
/// ```
pub trait Degrade<B, R> {
    /// The other answer.
    type Future: Future<Output = Result<Response<R>, BoxError>>;

    /// Looks at a request that was refused. It holds no room.
    ///
    /// # Errors
    /// The refusal that the caller gets after all.
    fn instead(&self, request: Request<B>, refusal: Error) -> Result<Self::Future, Error>;
}

/// Nothing instead: whoever is refused is told so. What a [`RateLimitLayer`](crate::RateLimitLayer) does unless told otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refuse;

impl<B, R> Degrade<B, R> for Refuse {
    type Future = Pending<Result<Response<R>, BoxError>>;

    fn instead(&self, _: Request<B>, refusal: Error) -> Result<Self::Future, Error> {
        Err(refusal)
    }
}

impl<G, B, R, F> Degrade<B, R> for G
where
    G: Fn(Request<B>, Error) -> Result<F, Error>,
    F: Future<Output = Result<Response<R>, BoxError>>,
{
    type Future = F;

    fn instead(&self, request: Request<B>, refusal: Error) -> Result<F, Error> {
        self(request, refusal)
    }
}
