//! What an answer says about the pace.

use std::time::Duration;

use coze_core::{BoxError, Error, Kind, Limit};
use http::{StatusCode, header::RETRY_AFTER, response};

use super::cell::{Signal, nanos};
use crate::PaceLevel;

/// The code of those that have none: the HTTP status.
const TOO_MANY: i64 = 429;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// There was room.
    Accepted,
    /// There was none, as this code says.
    Refused(i64, Signal),
    /// It failed for another reason, which says nothing of that.
    Nothing,
}

pub(crate) fn heard(answer: Result<&response::Parts, &BoxError>) -> Answer {
    match answer {
        // Where no layer made an error of it.
        Ok(head) if head.status == StatusCode::TOO_MANY_REQUESTS => {
            let seconds = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Answer::Refused(TOO_MANY, Signal::Slow(seconds.map(|seconds| nanos(Duration::from_secs(seconds)))))
        }
        Ok(head) if head.status.as_u16() < 400 => Answer::Accepted,
        Ok(_) => Answer::Nothing,
        // How a chat ended says nothing of this call: whoever began the chat tells it of that one.
        Err(error) => Error::find(&**error).filter(|error| !error.is_failed_chat()).map_or(Answer::Nothing, refusal),
    }
}

/// Whether an error is a refusal because of too many calls: coze-errmap has said so by its kind.
pub(crate) fn refusal(error: &Error) -> Answer {
    let code = error.platform().map(|platform| platform.code);
    let limit = error.limit();
    let is_ours = code.is_none() && limit.is_some_and(|limit| limit.name != Limit::PLATFORM);
    // What the platform's headers say of a limit counts where it does not say when to come back.
    let reset = limit.filter(|limit| limit.name == Limit::PLATFORM && limit.remaining == 0).map(|limit| limit.reset);
    let wait = error.retry_after().or(reset.filter(|reset| !reset.is_zero())).map(nanos);
    match error.kind() {
        // A limit of our own, further in, says nothing of the platform's.
        _ if is_ours => Answer::Nothing,
        Kind::RateLimited => {
            let known = code.filter(|code| PaceLevel::CODES.contains(code));
            Answer::Refused(known.unwrap_or(TOO_MANY), Signal::Slow(wait))
        }
        Kind::Overloaded => code.map_or(Answer::Nothing, |code| Answer::Refused(code, Signal::Slow(wait))),
        Kind::Quota => code.map_or(Answer::Nothing, |code| Answer::Refused(code, Signal::Stop(wait))),
        _ => Answer::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use coze_core::Platform;
    use http::Response;

    use super::*;

    fn says(kind: Kind, code: Option<i64>) -> Error {
        let error = Error::new(kind, "x");
        code.map_or(Error::new(kind, "x"), |code| {
            error.with_platform(Platform { code, msg: String::new(), logid: None })
        })
    }

    #[test]
    fn refusals_are_told_from_other_failures() {
        let slow = |code| Answer::Refused(code, Signal::Slow(None));
        for (kind, code, expected) in [
            (Kind::RateLimited, Some(429), slow(429)),
            (Kind::RateLimited, Some(4020), slow(4020)),
            (Kind::RateLimited, Some(12345), slow(429)),
            (Kind::RateLimited, None, slow(429)),
            (Kind::Overloaded, Some(4009), slow(4009)),
            (Kind::Overloaded, None, Answer::Nothing),
            (Kind::Quota, Some(4008), Answer::Refused(4008, Signal::Stop(None))),
            (Kind::Quota, None, Answer::Nothing),
            (Kind::Unavailable, Some(5000), Answer::Nothing),
            (Kind::Upstream, Some(4013), Answer::Nothing),
            (Kind::Conflict, Some(4016), Answer::Nothing),
        ] {
            let error: BoxError = says(kind, code).into();
            assert_eq!(heard(Err(&error)), expected, "{kind:?} {code:?}");
        }
        let waits: BoxError = says(Kind::RateLimited, Some(429)).with_retry_after(Duration::from_secs(7)).into();
        assert_eq!(heard(Err(&waits)), Answer::Refused(429, Signal::Slow(Some(7_000_000_000))));
        let foreign: BoxError = "no error of ours".into();
        assert_eq!(heard(Err(&foreign)), Answer::Nothing);
    }

    #[test]
    fn a_chat_that_failed_is_no_refusal_of_the_call_that_tells_so() {
        let failed = || says(Kind::Overloaded, Some(4009)).with_failed_chat();
        assert_eq!(heard(Err(&failed().into())), Answer::Nothing);
        assert_eq!(refusal(&failed()), Answer::Refused(4009, Signal::Slow(None)), "but of the call that began it");
    }

    #[test]
    fn a_limit_of_our_own_further_in_is_not_the_platforms() {
        let limit =
            |name| Limit { name, quota: 1, remaining: 0, window: Duration::from_secs(1), reset: Duration::ZERO };
        let error: BoxError = says(Kind::RateLimited, None).with_limit(limit("app")).into();
        assert_eq!(heard(Err(&error)), Answer::Nothing);
        let error: BoxError = says(Kind::RateLimited, None).with_limit(limit(Limit::PLATFORM)).into();
        assert_eq!(heard(Err(&error)), Answer::Refused(429, Signal::Slow(None)));
        // Unless it says when to come back, its headers say when there is room again.
        let full = Limit { reset: Duration::from_secs(9), ..limit(Limit::PLATFORM) };
        let some = Limit { remaining: 1, ..full };
        for (limit, wait, expected) in [(full, None, Some(9)), (full, Some(2), Some(2)), (some, None, None)] {
            let error = says(Kind::RateLimited, Some(429)).with_limit(limit);
            let error = wait.into_iter().fold(error, |error, wait| error.with_retry_after(Duration::from_secs(wait)));
            let expected = Signal::Slow(expected.map(|seconds: u64| seconds * 1_000_000_000));
            assert_eq!(heard(Err(&error.into())), Answer::Refused(429, expected));
        }
    }

    #[test]
    fn a_response_says_it_by_its_status() {
        let head = |status: u16, wait: &'static str| {
            let response = Response::builder().status(status).header("retry-after", wait).body(()).expect("valid");
            response.into_parts().0
        };
        assert_eq!(heard(Ok(&head(200, ""))), Answer::Accepted);
        assert_eq!(heard(Ok(&head(500, "3"))), Answer::Nothing);
        assert_eq!(heard(Ok(&head(429, "3"))), Answer::Refused(429, Signal::Slow(Some(3_000_000_000))));
        for nonsense in ["", "-1", "soon", "99999999999999999999999"] {
            assert_eq!(heard(Ok(&head(429, nonsense))), Answer::Refused(429, Signal::Slow(None)));
        }
    }
}
