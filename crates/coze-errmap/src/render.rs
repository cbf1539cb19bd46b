//! A failure as a response over HTTP: the bodies, and the headers that tell machines when to come back.

use std::time::{Duration, SystemTime};

use coze_core::Limit;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::{
    Mapping,
    challenge::Challenge,
    headers,
    headers::{seconds_up, unix},
    table::Wait,
};

/// All that an answer says about a failure.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: StatusCode,
    pub(crate) mapping: Mapping,
    pub(crate) reason: &'static str,
    pub(crate) message: &'a str,
    pub(crate) logid: Option<&'a str>,
    /// Of a request that authentication or authorisation refused.
    pub(crate) auth_error_code: Option<&'static str>,
    /// The scopes that were needed.
    pub(crate) scope: Option<&'a str>,
    /// Whole seconds, at least one.
    pub(crate) retry_after: Option<u64>,
    pub(crate) limit: Option<Limit>,
}

/// The platform's envelope (coze-platform.md §2.1).
#[derive(Serialize)]
struct Envelope<'a> {
    code: i64,
    msg: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Detail<'a>>,
}

#[derive(Serialize)]
pub(crate) struct Detail<'a> {
    pub(crate) logid: &'a str,
}

/// RFC 9457. The type is "about:blank", so the title is the status in words (§4.2.1); the reason tells causes apart.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: i64,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_error_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

impl Answer<'_> {
    pub(crate) fn envelope(&self) -> Vec<u8> {
        let detail = self.logid.map(|logid| Detail { logid });
        json(&Envelope { code: self.mapping.code, msg: self.message, detail })
    }

    pub(crate) fn problem(&self) -> Vec<u8> {
        json(&Problem {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or(self.mapping.en),
            status: self.status.as_u16(),
            detail: self.message,
            code: self.mapping.code,
            reason: self.reason,
            auth_error_code: self.auth_error_code,
            logid: self.logid,
            retry_after: self.retry_after,
        })
    }

    /// Adds the headers that are not there yet: what another layer said about its own failure stays.
    pub(crate) fn write_headers(&self, headers: &mut HeaderMap, challenge: &Challenge, now: SystemTime) {
        // RFC 6585 demands it for 429, and no other failure is worth keeping either.
        add(headers, header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(challenge) = challenge.header(self.status, self.reason, self.message, self.scope) {
            add(headers, header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(logid) = self.logid {
            add_text(headers, headers::LOGID, logid);
        }
        if let Some(seconds) = self.retry_after {
            add(headers, header::RETRY_AFTER, seconds.into());
        }
        if let Some(Limit { name, quota, remaining, window, reset }) = self.limit {
            add(headers, headers::LIMIT, quota.into());
            add(headers, headers::REMAINING, remaining.into());
            add(headers, headers::RESET, seconds_up(unix(now).saturating_add(reset)).into());
            // draft-ietf-httpapi-ratelimit-headers: strings and integers of RFC 9651.
            let policy = match seconds_up(window) {
                0 => format!(r#""{name}";q={quota};qu="concurrent-requests""#),
                window => format!(r#""{name}";q={quota};w={window}"#),
            };
            add_text(headers, HeaderName::from_static("ratelimit-policy"), &policy);
            let left = format!(r#""{name}";r={remaining};t={}"#, seconds_up(reset));
            add_text(headers, HeaderName::from_static("ratelimit"), &left);
        }
    }
}

pub(crate) fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("text and numbers are JSON")
}

fn add(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, value);
    }
}

/// Text that is no header value is left out.
fn add_text(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        add(headers, name, value);
    }
}

impl Wait {
    /// How long it is from `now`.
    pub(crate) fn from(self, now: SystemTime) -> Option<Duration> {
        const DAY: u64 = 86_400;
        const BEIJING: u64 = 8 * 3600;
        let now = unix(now).as_secs();
        let seconds = match self {
            Self::Unknown => return None,
            Self::Seconds(seconds) => seconds,
            Self::NextMinute => 60 - now % 60,
            Self::NextDay => DAY - (now + BEIJING) % DAY,
        };
        Some(Duration::from_secs(seconds))
    }
}
