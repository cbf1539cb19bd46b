use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use coze_core::{Error, Kind, Platform, Retry};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value};

use crate::bearer::OF_THE_TOKEN;

/// Characters of the platform's words that an error keeps.
const MAX_WORDS: usize = 256;
/// The longest wait that the endpoint may ask for.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

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

/// Too many requests, of which none is carried out, and a failure of the platform's own (coze-platform.md §3).
const BUSY: [i64; 4] = [4008, 4009, 4020, 702_112_103];
const FAILED: i64 = 5000;

/// What the endpoint granted: an object without an error in it.
///
/// A refusal says in [`Error::retry`] what became of the request: `Never`, it is refused for good; `Safe`, nothing was given
/// out; `IfIdempotent`, nobody knows.
pub(crate) fn read(status: StatusCode, body: &[u8]) -> Result<Map<String, Value>, Error> {
    let object: Option<Map<String, Value>> = serde_json::from_slice(body).ok();
    let error = object.as_ref().and_then(|object| {
        // Documents and SDKs spell it differently, and an empty one is none.
        let words = |names: &[&str]| names.iter().filter_map(|name| object.get(*name)).find_map(text);
        let message = words(&["error_message", "error_description", "msg"]);
        match words(&["error_code", "error"]) {
            Some(name) => Some(refused(status, &name, message.as_deref())),
            // As the other routes of the platform say it.
            None => {
                object.get("code").and_then(number).filter(|code| *code != 0).map(|code| coded(status, code, message))
            }
        }
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

/// `Retry-After`: whole seconds or a date (RFC 9110 §10.2.3). A date that is over says nothing.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?,
    };
    Some(wait.min(MAX_WAIT))
}

/// A whole number, also where it came as text or with a fraction.
pub(crate) fn number(value: &Value) -> Option<i64> {
    // A cast to an integer takes the nearest there is.
    #[expect(clippy::cast_possible_truncation, reason = "what is beyond an integer is beyond all times")]
    let whole = |number: f64| number.is_finite().then_some(number as i64);
    match value {
        Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
        Value::String(text) => text.trim().parse().ok().or_else(|| whole(text.trim().parse().ok()?)),
        _ => None,
    }
}

/// Words, also where they came as a number. None where they say that all is well.
fn text(value: &Value) -> Option<Cow<'_, str>> {
    let text = match value {
        Value::String(text) => Cow::from(text.as_str()),
        Value::Number(number) => number.to_string().into(),
        // Something is wrong, whatever it is.
        Value::Object(_) | Value::Array(_) | Value::Bool(true) => "an error in no words".into(),
        Value::Bool(false) | Value::Null => return None,
    };
    (!matches!(&*text, "" | "0")).then_some(text)
}

/// A refusal by a number of the platform's.
fn coded(status: StatusCode, code: i64, message: Option<Cow<'_, str>>) -> Error {
    let (kind, reason, retry) = match code {
        _ if BUSY.contains(&code) => (Kind::RateLimited, "token_endpoint_busy", Retry::Safe),
        _ if OF_THE_TOKEN.contains(&code) => (Kind::Unauthenticated, "token_refused", Retry::Never),
        FAILED => (Kind::Unavailable, "token_endpoint_failed", Retry::IfIdempotent),
        _ => unknown(status),
    };
    let msg: String = message.unwrap_or_default().chars().take(MAX_WORDS).collect();
    Error::new(kind, reason)
        .with_message(format!("the token endpoint refused: {code}: {msg}"))
        .with_retry(retry)
        .with_platform(Platform { code, msg, logid: None })
}

/// A refusal for which only its status speaks.
fn unknown(status: StatusCode) -> (Kind, &'static str, Retry) {
    match status {
        StatusCode::TOO_MANY_REQUESTS => (Kind::RateLimited, "token_endpoint_busy", Retry::Safe),
        _ if status.is_server_error() => (Kind::Unavailable, "token_endpoint_failed", Retry::IfIdempotent),
        _ => (Kind::Upstream, "token_refused", Retry::Never),
    }
}

fn refused(status: StatusCode, name: &str, words: Option<&str>) -> Error {
    let short = |text: &str| text.chars().take(MAX_WORDS).collect::<String>();
    let message = match words {
        Some(words) => format!("the token endpoint refused: {}: {}", short(name), short(words)),
        None => format!("the token endpoint refused: {}", short(name)),
    };
    let (kind, reason, retry) = match REFUSALS.iter().find(|(known, ..)| *known == name) {
        Some((reason, kind, retry)) => (*kind, *reason, *retry),
        None => unknown(status),
    };
    Error::new(kind, reason).with_message(message).with_retry(retry)
}

fn bare(status: StatusCode) -> Error {
    if status.is_success() {
        return nonsense("the answer of the token endpoint is not a JSON object");
    }
    let (kind, reason, retry) = unknown(status);
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

    #[test]
    fn a_refusal_in_the_platforms_other_words_is_one_too() {
        let never = |kind| (kind, "token_refused", Retry::Never);
        for (code, expected) in [
            ("4100", never(Kind::Unauthenticated)),
            ("\"4101\"", never(Kind::Unauthenticated)),
            ("700012006.0", never(Kind::Unauthenticated)),
            ("4000", never(Kind::Upstream)),
            ("-1", never(Kind::Upstream)),
            ("4020", (Kind::RateLimited, "token_endpoint_busy", Retry::Safe)),
            ("5000", (Kind::Unavailable, "token_endpoint_failed", Retry::IfIdempotent)),
        ] {
            for rest in ["", r#","msg":"no""#, r#","msg":7,"data":null"#] {
                for status in [200, 400, 401] {
                    assert_eq!(outcome(status, &format!(r#"{{"code":{code}{rest}}}"#)), expected, "{code}");
                }
            }
        }
        let error = read(StatusCode::OK, br#"{"code":4100,"msg":"pat_0123456789abcdef is bad"}"#).expect_err("refused");
        assert_eq!(error.platform().map(|p| (p.code, p.msg.as_str())), Some((4100, "[redacted] is bad")));
        assert_eq!(outcome(503, r#"{"code":1}"#).1, "token_endpoint_failed");
    }

    #[test]
    fn odd_words_of_a_refusal_are_a_refusal_and_those_of_a_grant_are_none() {
        for error in ["7", "true", "{\"code\":1}", "[\"x\"]"] {
            for name in ["error", "error_code"] {
                let body = format!(r#"{{"access_token":"t","{name}":{error},"error_message":{error}}}"#);
                assert_eq!(outcome(200, &body), (Kind::Upstream, "token_refused", Retry::Never), "{body}");
            }
        }
        for fine in ["null", "0", "\"0\"", "\"\"", "false"] {
            let body = format!(r#"{{"access_token":"t","error":{fine},"error_code":{fine},"code":{fine},"msg":""}}"#);
            assert!(read(StatusCode::OK, body.as_bytes()).is_ok(), "{body}");
        }
    }

    #[test]
    fn a_wait_is_seconds_or_a_date_that_is_to_come() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, seconds) in [
            ("7", Some(7)),
            ("0", Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(86_400)),
            ("18446744073709551615", Some(86_400)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().expect("valid"))]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_is_too_odd(status in 100u16..600, body in ".{0,200}", bytes: Vec<u8>) {
            let status = StatusCode::from_u16(status).expect("valid");
            let _ = (read(status, body.as_bytes()), read(status, &bytes));
        }
    }
}
