use coze_core::{Error, Kind, Retry};
use http::StatusCode;
use serde_json::{Map, Value};

/// Characters of the platform's words that an error keeps.
const MAX_WORDS: usize = 256;

/// The names of the platform's refusals (coze-platform.md §1.5, §1.8) and of RFC 6749 §5.2, what each is, and what it says
/// about another try. They are the reasons of our errors.
const REFUSALS: [(&str, Kind, Retry); 13] = [
    ("invalid_request", Kind::Invalid, Retry::Never),
    ("invalid_client", Kind::Unauthenticated, Retry::Never),
    ("invalid_grant", Kind::Unauthenticated, Retry::Never),
    ("invalid_scope", Kind::Invalid, Retry::Never),
    ("unauthorized_client", Kind::PermissionDenied, Retry::Never),
    ("unsupported_grant_type", Kind::Invalid, Retry::Never),
    ("access_deny", Kind::PermissionDenied, Retry::Never),
    ("access_denied", Kind::PermissionDenied, Retry::Never),
    ("expired_token", Kind::Unauthenticated, Retry::Never),
    ("authorization_pending", Kind::Precondition, Retry::Never),
    ("slow_down", Kind::RateLimited, Retry::Safe),
    // The endpoint says itself that nothing was given out.
    ("internal_error", Kind::Unavailable, Retry::Safe),
    ("temporarily_unavailable", Kind::Unavailable, Retry::Safe),
];

/// What the endpoint granted: an object without an error in it.
///
/// A refusal says in [`Error::retry`] what became of the request: `Never`, it is refused for good; `Safe`, nothing was given
/// out; `IfIdempotent`, nobody knows.
pub(crate) fn read(status: StatusCode, body: &[u8]) -> Result<Map<String, Value>, Error> {
    let object: Option<Map<String, Value>> = serde_json::from_slice(body).ok();
    let error = object.as_ref().and_then(|object| {
        // Documents and SDKs spell it differently, and an empty one is none.
        let text = |names: [&str; 2]| {
            names.into_iter().filter_map(|name| object.get(name)?.as_str()).find(|text| !text.is_empty())
        };
        Some(refused(status, text(["error_code", "error"])?, text(["error_message", "error_description"])))
    });
    match (object, error) {
        (_, Some(error)) => Err(error),
        (Some(object), None) if status.is_success() => Ok(object),
        (_, None) => Err(bare(status)),
    }
}

/// An answer that is not in the endpoint's words.
pub(crate) fn nonsense(why: &'static str) -> Error {
    Error::new(Kind::Upstream, "token_nonsense").with_message(why)
}

fn refused(status: StatusCode, name: &str, words: Option<&str>) -> Error {
    let short = |text: &str| text.chars().take(MAX_WORDS).collect::<String>();
    let message = match words {
        Some(words) => format!("the token endpoint refused: {}: {}", short(name), short(words)),
        None => format!("the token endpoint refused: {}", short(name)),
    };
    let (reason, kind, retry) = match REFUSALS.iter().find(|(known, ..)| *known == name) {
        Some(known) => *known,
        None if status.is_server_error() => ("token_endpoint_failed", Kind::Unavailable, Retry::IfIdempotent),
        None => ("token_refused", Kind::Upstream, Retry::Never),
    };
    Error::new(kind, reason).with_message(message).with_retry(retry)
}

fn bare(status: StatusCode) -> Error {
    if status.is_success() {
        return nonsense("the answer of the token endpoint is not a JSON object");
    }
    let (kind, reason, retry) = match status {
        StatusCode::TOO_MANY_REQUESTS => (Kind::RateLimited, "token_endpoint_busy", Retry::Safe),
        _ if status.is_server_error() => (Kind::Unavailable, "token_endpoint_failed", Retry::IfIdempotent),
        _ => (Kind::Upstream, "token_refused", Retry::Never),
    };
    Error::new(kind, reason).with_message(format!("the token endpoint answered {}", status.as_u16())).with_retry(retry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(status: u16, body: &str) -> (Kind, &'static str, Retry) {
        let status = StatusCode::from_u16(status).expect("valid");
        let error = read(status, body.as_bytes()).expect_err("refused");
        (error.kind(), error.reason(), error.retry())
    }

    #[test]
    fn every_refusal_is_understood_in_every_spelling_and_with_any_status() {
        for (name, kind, retry) in REFUSALS {
            for status in [200, 400, 401, 500] {
                for body in [
                    format!(r#"{{"error":"{name}","error_description":"x"}}"#),
                    format!(r#"{{"error_code":"{name}","error_message":"x"}}"#),
                    format!(r#"{{"error_code":"{name}"}}"#),
                    format!(r#"{{"error":"{name}","error_code":"","error_message":null}}"#),
                    format!(r#"{{"access_token":"t","error":"{name}"}}"#),
                ] {
                    assert_eq!(outcome(status, &body), (kind, name, retry), "{status} {body}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_in_the_endpoints_words_is_told_apart_by_its_status() {
        let nonsense = (Kind::Upstream, "token_nonsense", Retry::IfIdempotent);
        for body in ["", "[]", "null", "<html>", r#"{"access_token":"#] {
            assert_eq!(outcome(200, body), nonsense);
            assert_eq!(outcome(502, body), (Kind::Unavailable, "token_endpoint_failed", Retry::IfIdempotent));
            assert_eq!(outcome(429, body), (Kind::RateLimited, "token_endpoint_busy", Retry::Safe));
            assert_eq!(outcome(404, body), (Kind::Upstream, "token_refused", Retry::Never));
        }
        assert_eq!(outcome(400, r#"{"error":"new_one"}"#), (Kind::Upstream, "token_refused", Retry::Never));
        let unknown = outcome(503, r#"{"error":"new_one"}"#);
        assert_eq!(unknown, (Kind::Unavailable, "token_endpoint_failed", Retry::IfIdempotent));
    }

    #[test]
    fn the_words_of_a_refusal_are_kept_short_and_without_credentials() {
        let body = format!(
            r#"{{"error":"invalid_client","error_message":"{} czs_0123456789abcdef {}"}}"#,
            "bad",
            "é".repeat(10_000)
        );
        let error = read(StatusCode::OK, body.as_bytes()).expect_err("refused");
        assert!(error.message().contains("bad [redacted]") && error.message().len() < 600, "{error}");
    }

    proptest! {
        #[test]
        fn no_answer_is_too_odd(status in 100u16..600, body in ".{0,200}", bytes: Vec<u8>) {
            let status = StatusCode::from_u16(status).expect("valid");
            let _ = (read(status, body.as_bytes()), read(status, &bytes));
        }
    }
}
