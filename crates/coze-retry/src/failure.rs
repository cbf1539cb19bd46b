use std::time::{Duration, SystemTime};

use coze_core::{Error, Kind, Limit, Retry};
use http::{HeaderMap, StatusCode};

use crate::{Outcome, details, grpc, headers};

/// What the table looks at: the same for an error and for a response that no layer made an error of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) retry: Retry,
    pub(crate) kind: Option<Kind>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) code: Option<i64>,
    pub(crate) asked: Option<Asked>,
    pub(crate) exhausted: bool,
    pub(crate) unsent: bool,
}

/// When the other side wants to be asked again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Asked {
    /// Not before this time is over.
    After(Duration),
    /// When this time is over: gRPC's pushback replaces the wait of the client.
    At(Duration),
}

impl Failure {
    pub(crate) fn new(outcome: Outcome<'_>, clock: fn() -> SystemTime) -> Self {
        match outcome {
            Outcome::Answered(status, headers) if status.as_u16() < 400 => Self::grpc(headers, clock),
            Outcome::Answered(status, headers) => Self::response(status, headers, clock),
            Outcome::Failed(error) => match Error::find(error) {
                Some(error) => Self::error(error),
                None => Self::foreign(),
            },
            Outcome::Late => Self { kind: None, ..Self::foreign() },
        }
    }

    fn error(error: &Error) -> Self {
        // Our own limiters fill the limit too, and what they refuse did not use up anything of the platform's.
        let exhausted = |limit: Limit| limit.remaining == 0 && limit.name == Limit::PLATFORM;
        let code = error.platform().map(|platform| platform.code);
        Self {
            retry: error.retry(),
            kind: Some(error.kind()),
            code,
            asked: error.retry_after().map(Asked::After),
            exhausted: matches!(error.kind(), Kind::RateLimited | Kind::Overloaded)
                && error.limit().is_some_and(exhausted),
            unsent: error.kind() == Kind::Unavailable && error.retry() == Retry::Safe && code.is_none(),
            status: None,
        }
    }

    fn response(status: StatusCode, headers: &HeaderMap, clock: fn() -> SystemTime) -> Self {
        let limited = status == StatusCode::TOO_MANY_REQUESTS;
        Self {
            // A limit refuses before anything runs; of the rest nobody knows.
            retry: if limited { Retry::Safe } else { Retry::IfIdempotent },
            kind: kind(status),
            status: Some(status),
            asked: headers::retry_after(headers, clock()).map(Asked::After),
            exhausted: limited && headers::is_exhausted(headers),
            ..Self::foreign()
        }
    }

    /// A gRPC status, in the headers of an answer without messages or in its trailers. Even of `RESOURCE_EXHAUSTED` nobody
    /// knows whether the call ran (gRPC, status codes).
    fn grpc(fields: &HeaderMap, clock: fn() -> SystemTime) -> Self {
        let pushback = grpc::pushback(fields);
        let asked = match pushback {
            Some(pushback) => pushback.map(Asked::At),
            None => details::retry_delay(fields).or_else(|| headers::retry_after(fields, clock())).map(Asked::After),
        };
        Self {
            retry: if pushback == Some(None) { Retry::Never } else { Retry::IfIdempotent },
            kind: grpc::kind(fields),
            asked,
            ..Self::foreign()
        }
    }

    /// An error that is none of ours: mostly a connection that broke, and the request may have run before it did.
    fn foreign() -> Self {
        Self {
            retry: Retry::IfIdempotent,
            kind: Some(Kind::Unavailable),
            status: None,
            code: None,
            asked: None,
            exhausted: false,
            unsent: false,
        }
    }
}

/// The kind of failure a status tells of, where another try may help.
pub(crate) fn kind(status: StatusCode) -> Option<Kind> {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Some(Kind::RateLimited),
        StatusCode::BAD_GATEWAY => Some(Kind::Upstream),
        StatusCode::SERVICE_UNAVAILABLE => Some(Kind::Unavailable),
        StatusCode::GATEWAY_TIMEOUT => Some(Kind::Timeout),
        _ => None,
    }
}
