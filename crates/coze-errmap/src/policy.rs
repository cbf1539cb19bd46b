use bytes::Bytes;
use coze_core::BoxError;
use http::{Response, request, response};

/// Turns failures into responses, or responses into failures.
///
/// On the way in a policy answers every failure and has no error of its own ([`Responder`](crate::Responder)); on the
/// way out it finds the failures in what the platform answers ([`Classifier`](crate::Classifier)). A closure over the
/// failures is a policy that lets every response pass:
///
/// ```
/// use std::convert::Infallible;
///
/// use bytes::Bytes;
/// use coze_core::{BoxError, Error};
/// use coze_errmap::{ErrMapLayer, Mapping};
/// use http::Response;
///
/// let bare = ErrMapLayer::new(|error: BoxError| {
///     let mut response = Response::new(Bytes::new());
///     *response.status_mut() = Error::find(&*error).map_or(http::StatusCode::INTERNAL_SERVER_ERROR, |e| Mapping::of(e).status);
///     Ok::<_, Infallible>(response)
/// });
/// # let _ = bare;
/// ```
pub trait Policy {
    /// What is kept of a request until its answer.
    type Note;
    /// What the service fails with: `Infallible` where every failure becomes a response.
    type Error;

    /// Looks at a request, before it goes further.
    fn note(&self, request: &request::Parts) -> Self::Note;

    /// Decides about a failure of the inner service.
    ///
    /// # Errors
    /// What the service fails with, if this does not become a response.
    fn error(&self, note: &Self::Note, error: BoxError) -> Result<Response<Bytes>, Self::Error>;

    /// Decides about an inner service that failed to become ready: gives the error back to have the next call answered
    /// with it, which is the default.
    ///
    /// # Errors
    /// What readiness fails with at once.
    fn unready(&self, error: BoxError) -> Result<BoxError, Self::Error> {
        Ok(error)
    }

    /// Decides about a response of the inner service: first by its head alone, and again with more of the body after each
    /// [`Verdict::Look`], where `start` is what the body begins with and `rest` says what follows. The default lets pass.
    fn response(
        &self,
        note: &Self::Note,
        head: &mut response::Parts,
        start: &[u8],
        rest: Rest,
    ) -> Verdict<Self::Error> {
        let _ = (note, head, start, rest);
        Verdict::Pass
    }
}

/// What a policy decides about a response.
#[derive(Debug)]
pub enum Verdict<E> {
    /// Hand it on: the body goes out byte for byte, frame for frame, with its trailers.
    Pass,
    /// Ask again with more of the body, of which at most this many bytes are kept. The head waits meanwhile. Where nothing
    /// more can be shown, this lets pass.
    Look(usize),
    /// Hand on the head, with this body instead of its own.
    Replace(Bytes),
    /// Fail. The response is dropped.
    Fail(E),
}

/// What follows the bytes that a policy was shown of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// More, which can be looked at.
    Coming,
    /// Perhaps more, but nobody will see it here: the cap is reached, or the body broke off.
    Unseen,
    /// Nothing: the body is complete.
    Nothing,
}

impl<F, E> Policy for F
where
    F: Fn(BoxError) -> Result<Response<Bytes>, E>,
{
    type Note = ();
    type Error = E;

    fn note(&self, _: &request::Parts) {}

    fn error(&self, (): &(), error: BoxError) -> Result<Response<Bytes>, E> {
        self(error)
    }
}
