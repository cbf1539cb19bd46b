use std::time::{Duration, SystemTime};

use coze_core::{Error, Kind, Limit, Retry};
use http::{HeaderMap, StatusCode};

use crate::{Outcome, headers};

/// What the table looks at: the same for an error and for a response that no layer made an error of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) retry: Retry,
    pub(crate) kind: Option<Kind>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) code: Option<i64>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) exhausted: bool,
}

impl Failure {
    pub(crate) fn new(outcome: Outcome<'_>, clock: fn() -> SystemTime) -> Self {
        match outcome {
            Outcome::Answered(status, headers) => Self::response(status, headers, clock),
            Outcome::Failed(error) => match Error::find(error) {
                Some(error) => Self::error(error),
                None => Self::foreign(),
            },
        }
    }

    fn error(error: &Error) -> Self {
        // Our own limiters fill the limit too, and what they refuse did not use up anything of the platform's.
        let exhausted = |limit: Limit| limit.remaining == 0 && limit.name == Limit::PLATFORM;
        Self {
            retry: error.retry(),
            kind: Some(error.kind()),
            status: None,
            code: error.platform().map(|platform| platform.code),
            retry_after: error.retry_after(),
            exhausted: matches!(error.kind(), Kind::RateLimited | Kind::Overloaded)
                && error.limit().is_some_and(exhausted),
        }
    }

    fn response(status: StatusCode, headers: &HeaderMap, clock: fn() -> SystemTime) -> Self {
        let limited = status == StatusCode::TOO_MANY_REQUESTS;
        Self {
            // A limit refuses before anything runs; of the rest nobody knows.
            retry: if limited { Retry::Safe } else { Retry::IfIdempotent },
            kind: kind(status),
            status: Some(status),
            code: None,
            retry_after: headers::retry_after(headers, clock()),
            exhausted: limited && headers::is_exhausted(headers),
        }
    }

    /// An error that is none of ours: mostly a connection that broke, and the request may have run before it did.
    fn foreign() -> Self {
        Self {
            retry: Retry::IfIdempotent,
            kind: Some(Kind::Unavailable),
            status: None,
            code: None,
            retry_after: None,
            exhausted: false,
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
