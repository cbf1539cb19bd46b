use std::{
    future::{Future, Pending},
    mem,
};

use coze_core::{BoxError, Context, Error, Refusal};
use http::{Request, Response, request::Parts};

/// Decides whether a request may go further, and with which credentials.
///
/// On the way in a policy checks who calls and notes it on the context; on the way out it attaches a token and looks at the
/// outcome. A closure that needs only the head of the request is a policy, and why it refused is noted on the context:
///
/// ```
/// use coze_auth::AuthLayer;
/// use coze_core::{Context, Error, Kind, Principal};
/// use http::request::Parts;
///
/// let service_token = AuthLayer::new(|parts: &mut Parts, context: &Context| {
///     let Some(token) = parts.headers.remove("x-service-token") else {
///         return Err(Error::new(Kind::Unauthenticated, "missing_credentials"));
///     };
///     let plugin = find(&token).ok_or_else(|| Error::new(Kind::Unauthenticated, "unknown_key"))?;
///     context.principal.get_or_init(|| Principal::new("service_token", plugin));
///     Ok(())
/// });
/// # fn find(_: &http::HeaderValue) -> Option<&'static str> { None }
/// # let _ = service_token;
/// ```
///
/// A policy that knows more than it tells its caller, or that knows whose request it refuses, notes a [`Refusal`] itself.
pub trait Policy<B> {
    /// The body of the request that goes further.
    type Body;
    /// What the policy keeps of a request until its outcome is known; `()` where it does not look at the outcome.
    type Ticket;
    /// A decision that has to wait. It has the request with it ([`take_request`]).
    type Future: Future<Output = Result<Admitted<Self::Body, Self::Ticket>, Error>>;

    /// Looks at one request, before it goes further. A refused request does not reach the inner service.
    ///
    /// Where the answer is there at once the request goes further with this head, and the body that comes back.
    fn authorize(&self, head: &mut Parts, body: B) -> Decision<(Self::Body, Self::Ticket), Self::Future>;

    /// Looks at what became of a request that went further. A failure may have another answer to [`Error::retry`] afterwards.
    fn settle<R>(ticket: Self::Ticket, outcome: &mut Result<Response<R>, BoxError>) {
        let _ = (ticket, outcome);
    }
}

/// A request that may go further after all, and what the policy keeps of it.
pub type Admitted<B, T = ()> = (Request<B>, T);

/// The whole request, for a decision that has to wait. An empty head stays behind.
pub fn take_request<B>(head: &mut Parts, body: B) -> Request<B> {
    let (empty, ()) = Request::default().into_parts();
    Request::from_parts(mem::replace(head, empty), body)
}

/// An answer that is there already, or a future of it. Only the latter costs a clone of the inner service.
#[derive(Debug)]
pub enum Decision<T, F> {
    /// The answer.
    Now(Result<T, Error>),
    /// The answer has to be waited for.
    Later(F),
}

impl<F, B> Policy<B> for F
where
    F: Fn(&mut Parts, &Context) -> Result<(), Error>,
{
    type Body = B;
    type Ticket = ();
    type Future = Pending<Result<Admitted<B>, Error>>;

    fn authorize(&self, head: &mut Parts, body: B) -> Decision<(B, ()), Self::Future> {
        let context = Context::of(&mut head.extensions);
        let verdict = self(head, &context);
        if let Err(error) = &verdict {
            context.refusal.get_or_init(|| Refusal::from(error));
        }
        Decision::Now(verdict.map(|()| (body, ())))
    }
}
