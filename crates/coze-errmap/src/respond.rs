use std::{convert::Infallible, error::Error as StdError, iter::successors, time::SystemTime};

use bytes::Bytes;
use coze_core::{BoxError, Error, Kind, Refusal, redact};
use http::{HeaderName, HeaderValue, Response, StatusCode, header, request, response};
use tracing::Level;

use crate::{
    Caller, Mapping, Policy, Rest, Verdict,
    accept::{Format, Language},
    challenge::Challenge,
    error::{cut, from_status},
    grpc, headers,
    headers::seconds_up,
    render::Answer,
};

/// The inbound policy: every failure becomes a response that the caller understands (R6.2).
///
/// A gRPC status for a gRPC request, `application/problem+json` (RFC 9457) for who [prefers] it to JSON, else the platform's
/// envelope `{"code":…,"msg":…,"detail":{"logid":…}}`. An answer of 400 or more without a content type or in plain text, as
/// routers and other layers give it, becomes the same: its status and headers stay, its text does not.
///
/// The caller reads what the error says for people; of an [internal](Kind::Internal) error, and of one that is not ours, only
/// that it happened. The cause goes into one event of target `coze::errmap`, less credentials, and kind and reason onto the
/// request's [`Context`](coze_core::Context) if there is one.
///
/// [prefers]: https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1
#[derive(Clone, Debug)]
pub struct Responder {
    challenge: Challenge,
    clock: fn() -> SystemTime,
}

impl Responder {
    /// Challenges for a bearer token, by the system's clock.
    #[must_use]
    pub const fn new() -> Self {
        Self { challenge: Challenge::new(), clock: SystemTime::now }
    }

    /// What `WWW-Authenticate` says on a 401 (RFC 9110 §11.6.1 wants a challenge; default `Bearer`): one challenge. A `Bearer`
    /// challenge gets `error` and `error_description` where a token was refused, and with a 403 the `scope` it lacks
    /// (RFC 6750 §3). Signatures of webhooks have no registered scheme: a service that knows nothing else may name its own, such
    /// as `Signature`.
    #[must_use]
    pub fn challenge(mut self, challenge: HeaderValue) -> Self {
        self.challenge.given = challenge;
        self
    }

    /// The realm that the challenge names: what the credentials are for, in words of your own. There is none unless set.
    ///
    /// # Errors
    /// `challenge_invalid`, [`Kind::Invalid`]: something other than visible ASCII and spaces.
    pub fn realm(mut self, realm: &str) -> Result<Self, Error> {
        self.challenge.realm(realm)?;
        Ok(self)
    }

    /// The URL at which the challenge sends clients to learn how to get a token: that of the protected resource's metadata
    /// (`resource_metadata`, RFC 9728 §5.1). There is none unless set.
    ///
    /// # Errors
    /// `challenge_invalid`, [`Kind::Invalid`]: not an https URL.
    pub fn resource_metadata(mut self, url: &str) -> Result<Self, Error> {
        self.challenge.metadata(url)?;
        Ok(self)
    }

    /// Reads the wall clock elsewhere: for `X-RateLimit-Reset`, and for waits until the next minute or day.
    #[must_use]
    pub fn clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    /// Makes the answer to a failure: completes the head, gives the body.
    fn answer(
        &self,
        caller: &Caller,
        error: &Error,
        cause: Option<&(dyn StdError + 'static)>,
        status: Option<StatusCode>,
        head: &mut response::Parts,
    ) -> Bytes {
        let now = (self.clock)();
        let mapping = Mapping::of(error);
        let context = caller.context.as_ref();
        let logid = error.platform().and_then(|platform| platform.logid.as_deref());
        let limit = error.limit();
        let wait = error.retry_after().or_else(|| limit.map(|limit| limit.reset).filter(|reset| !reset.is_zero()));
        let answer = Answer {
            status: status.unwrap_or(mapping.status),
            mapping,
            reason: error.reason(),
            message: message(error, &mapping, caller.language),
            logid: logid.or_else(|| Some(context?.request_id.get()?.as_str())),
            // Of the error, not the refusal: the caller is told no more than it says.
            auth_error_code: context.and_then(|c| c.refusal.get()).and_then(|_| Refusal::from(error).code()),
            scope: error.scope(),
            retry_after: wait.or_else(|| mapping.wait.from(now)).map(|wait| seconds_up(wait).max(1)),
            limit,
        };
        if let Some(context) = context {
            context.failure.get_or_init(|| (mapping.kind, answer.reason));
        }
        log(&answer, cause);

        let (media_type, body) = match caller.format {
            Format::Grpc => {
                head.status = StatusCode::OK;
                grpc::write(&answer, &mut head.headers);
                return Bytes::new();
            }
            Format::Problem => ("application/problem+json", answer.problem()),
            Format::Envelope => ("application/json", answer.envelope()),
        };
        head.status = answer.status;
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        head.headers.insert(header::CONTENT_LENGTH, body.len().into());
        answer.write_headers(&mut head.headers, &self.challenge, now);
        if caller.wants_body { body.into() } else { Bytes::new() }
    }
}

impl Default for Responder {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Responder {
    type Note = Caller;
    type Error = Infallible;

    fn note(&self, request: &request::Parts) -> Caller {
        Caller::of(request)
    }

    fn error(&self, caller: &Caller, error: BoxError) -> Result<Response<Bytes>, Infallible> {
        let (mut head, ()) = Response::new(()).into_parts();
        let body = match Error::find(&*error) {
            Some(ours) => self.answer(caller, ours, ours.source(), None, &mut head),
            None => self.answer(caller, &Error::new(Kind::Internal, "internal"), Some(&*error), None, &mut head),
        };
        Ok(Response::from_parts(head, body))
    }

    fn response(&self, caller: &Caller, head: &mut response::Parts, _: &[u8], _: Rest) -> Verdict<Infallible> {
        let bare = matches!(headers::media_type(&head.headers), "" | "text/plain");
        if head.status.as_u16() < 400 || !bare {
            return Verdict::Pass;
        }
        let error = match head.status {
            // A gateway's 500 may pass; this one is ours.
            StatusCode::INTERNAL_SERVER_ERROR => Error::new(Kind::Internal, "internal"),
            status => from_status(status),
        };
        let error = match headers::retry_after(&head.headers, (self.clock)()) {
            Some(wait) => error.with_retry_after(wait),
            None => error,
        };
        for name in OF_THE_BODY {
            head.headers.remove(name);
        }
        Verdict::Replace(self.answer(caller, &error, None, Some(head.status), head))
    }
}

/// The headers that speak of the body they came with.
const OF_THE_BODY: [HeaderName; 11] = [
    header::ACCEPT_RANGES,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_LOCATION,
    header::CONTENT_RANGE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

/// What the caller reads: what the error says, unless it is internal or says nothing of its own.
fn message<'a>(error: &'a Error, mapping: &Mapping, language: Language) -> &'a str {
    if mapping.kind != Kind::Internal && error.message() != error.reason() {
        return cut(error.message());
    }
    match language {
        Language::English => mapping.en,
        Language::Chinese => mapping.zh,
    }
}

/// One event at the level of the table.
fn log(answer: &Answer<'_>, cause: Option<&(dyn StdError + 'static)>) {
    macro_rules! event {
        ($level:expr) => {
            tracing::event!(
                target: "coze::errmap",
                $level,
                kind = answer.mapping.kind.as_str(),
                reason = answer.reason,
                code = answer.mapping.code,
                logid = answer.logid,
                source = cause.map(causes),
                "request failed"
            )
        };
    }
    match answer.mapping.level {
        Level::ERROR => event!(Level::ERROR),
        Level::WARN => event!(Level::WARN),
        Level::INFO => event!(Level::INFO),
        _ => event!(Level::DEBUG),
    }
}

/// An error and what caused it, at most eight deep, less credentials.
fn causes(error: &(dyn StdError + 'static)) -> String {
    let texts: Vec<String> =
        successors(Some(error), |error| (*error).source()).take(8).map(ToString::to_string).collect();
    cut(&redact(&texts.join(": "))).to_owned()
}
