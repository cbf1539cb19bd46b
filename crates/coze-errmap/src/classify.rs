use std::time::SystemTime;

use bytes::Bytes;
use coze_core::{BoxError, Error, Kind, Retry};
use http::{Response, request, response};

use crate::{
    Policy, Rest, Verdict,
    envelope::Envelope,
    error::{from_envelope, from_status, say},
    headers, table,
};

/// The outbound policy: finds the failures in what the platform answers, whatever their shape (R6.3).
///
/// A failure is an envelope whose `code` is not 0 whatever the HTTP status, a chat that failed (`data.last_error`), an error
/// of an OAuth endpoint, or any other answer with a status of 400 or more, such as a gateway's HTML. It keeps the platform's
/// code, message and log id; where the body has no code, the HTTP status stands for it.
///
/// To find it, the beginning of JSON bodies is read before the response is handed on, so the head of a JSON answer waits
/// until the envelope is understood, complete, or longer than the [cap](Self::cap); a body that stalls stalls the answer, so
/// a timeout belongs outside. All other bodies stay unread: event streams above all, but also compressed and gRPC ones.
#[derive(Clone, Debug)]
pub struct Classifier {
    cap: usize,
    clock: fn() -> SystemTime,
}

impl Classifier {
    /// Looks at 64 KiB, by the system's clock.
    #[must_use]
    pub const fn new() -> Self {
        Self { cap: 64 * 1024, clock: SystemTime::now }
    }

    /// The most bytes of a JSON body that are looked at (default 64 KiB). An envelope that says nothing within them is none.
    ///
    /// While a body is looked at it is held in memory twice over, up to this much and one frame more, and 32 bytes a frame
    /// besides: at worst 2 MiB by default, for a body in frames of one byte.
    #[must_use]
    pub const fn cap(self, bytes: usize) -> Self {
        Self { cap: bytes, ..self }
    }

    /// Reads the wall clock elsewhere: for `Retry-After` dates.
    #[must_use]
    pub const fn clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    /// The failure that this response is, if it is one.
    fn failure(&self, head: &response::Parts, envelope: &Envelope) -> Option<Error> {
        let failed = head.status.as_u16() >= 400;
        let logid = envelope.logid.as_deref().or_else(|| headers::logid(&head.headers));
        let status_code = i64::from(head.status.as_u16());
        let description = envelope.description.as_deref().unwrap_or_default();
        let oauth = envelope.oauth.as_deref().filter(|_| envelope.code.is_none()).and_then(table::oauth);

        let error = if let Some(code) = envelope.code.filter(|code| *code != 0) {
            from_envelope(
                code,
                Some(head.status).filter(|_| failed),
                envelope.msg.as_deref().unwrap_or_default(),
                logid,
            )
        } else if let Some((kind, reason)) = oauth {
            say(Error::new(kind, reason).with_retry(Retry::Never), status_code, description, logid)
        } else if failed {
            say(from_status(head.status), status_code, description, logid)
        } else {
            let (code, msg) = envelope.failed_chat()?;
            // The chat failed, not the question how it is: asking again gives the same answer.
            from_envelope(code, None, msg, logid).with_retry(Retry::Never).with_failed_chat()
        };

        // Of a refusal with the platform's hint another token is the cure, whatever its code: auth takes one, retry sends again.
        let error = match error.kind() {
            Kind::PermissionDenied if head.headers.contains_key(headers::REFRESH_TOKEN) => {
                let (code, msg) = error.platform().map_or((status_code, ""), |said| (said.code, said.msg.as_str()));
                say(Error::new(Kind::Unauthenticated, "token_invalid"), code, msg, logid)
            }
            _ => error,
        };

        let now = (self.clock)();
        let error = match headers::retry_after(&head.headers, now) {
            Some(wait) => error.with_retry_after(wait),
            None => error,
        };
        let limited = matches!(error.kind(), Kind::RateLimited | Kind::Overloaded | Kind::Quota);
        Some(match headers::limit(&head.headers, now).filter(|_| limited) {
            Some(limit) => error.with_limit(limit),
            None => error,
        })
    }
}

impl Default for Classifier {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Classifier {
    type Note = ();
    type Error = BoxError;

    fn note(&self, _: &request::Parts) {}

    /// Errors that are ours pass. Others are the transport's: the request may have run.
    fn error(&self, (): &(), error: BoxError) -> Result<Response<Bytes>, BoxError> {
        Err(typed(error))
    }

    /// Fails at once, so that a balancer outside learns of it.
    fn unready(&self, error: BoxError) -> Result<BoxError, BoxError> {
        Err(typed(error))
    }

    fn response(&self, (): &(), head: &mut response::Parts, start: &[u8], rest: Rest) -> Verdict<BoxError> {
        let failed = head.status.as_u16() >= 400;
        if headers::is_grpc(headers::media_type(&head.headers)) || !(failed || head.status.is_success()) {
            return Verdict::Pass;
        }
        let envelope =
            if headers::is_plain_json(&head.headers) { Envelope::read(start, rest) } else { Envelope::default() };
        if envelope.open {
            return Verdict::Look(self.cap);
        }
        match self.failure(head, &envelope) {
            Some(error) => Verdict::Fail(error.into()),
            None => Verdict::Pass,
        }
    }
}

fn typed(error: BoxError) -> BoxError {
    if Error::find(&*error).is_some() {
        return error;
    }
    Error::new(Kind::Unavailable, "transport").with_source(error).into()
}
