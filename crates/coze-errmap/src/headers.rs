//! What the headers of a response say about a failure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coze_core::Limit;
use http::{HeaderMap, HeaderName, header};

pub(crate) const LOGID: HeaderName = HeaderName::from_static("x-tt-logid");
/// The same from coze-studio (coze-platform.md §2.1).
const STUDIO_LOGID: HeaderName = HeaderName::from_static("x-log-id");
/// The platform's hint that another token is due (R2.3).
pub(crate) const REFRESH_TOKEN: HeaderName = HeaderName::from_static("x-refresh-token");
pub(crate) const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
pub(crate) const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
pub(crate) const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// No server's wish is kept beyond this, so that nobody's clock arithmetic overflows.
const MAX_WAIT: u64 = 30 * 86_400;

/// The media type, without its parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

/// Is it gRPC? (gRPC over HTTP/2: any content type that begins so.)
pub(crate) fn is_grpc(media_type: &str) -> bool {
    media_type.get(..16).is_some_and(|start| start.eq_ignore_ascii_case("application/grpc"))
}

/// JSON, and bytes that can be read as they are.
pub(crate) fn is_plain_json(headers: &HeaderMap) -> bool {
    let media_type = media_type(headers);
    let json = media_type.eq_ignore_ascii_case("application/json")
        || media_type
            .len()
            .checked_sub(5)
            .and_then(|at| media_type.get(at..))
            .is_some_and(|s| s.eq_ignore_ascii_case("+json"));
    json && headers
        .get(header::CONTENT_ENCODING)
        .is_none_or(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// The platform's log id.
pub(crate) fn logid(headers: &HeaderMap) -> Option<&str> {
    headers.get(LOGID).or_else(|| headers.get(STUDIO_LOGID))?.to_str().ok()
}

/// `Retry-After`: whole seconds or a date (RFC 9110 §10.2.3), at most 30 days. A date that is over says nothing.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = match digits(text) {
        Some(seconds) => seconds,
        None => seconds_up(httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?),
    };
    Some(Duration::from_secs(seconds.min(MAX_WAIT)))
}

/// The limit of the other side, if it says how much is left. `X-RateLimit-Reset` may be a Unix time or a number of seconds.
pub(crate) fn limit(headers: &HeaderMap, now: SystemTime) -> Option<Limit> {
    let number = |name| digits(headers.get(name)?.to_str().ok()?.trim());
    let count = |name| number(name).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let remaining = count(REMAINING)?;
    let reset = number(RESET).unwrap_or_default();
    let reset = if reset < 1_000_000_000 { reset } else { reset.saturating_sub(unix(now).as_secs()) };
    let reset = Duration::from_secs(reset.min(MAX_WAIT));
    Some(Limit { name: Limit::PLATFORM, quota: count(LIMIT).unwrap_or(remaining), remaining, window: reset, reset })
}

/// A number in digits alone; what is too large for any clock is as large as can be.
fn digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u64::MAX))
}

/// Whole seconds, rounded up: nobody comes back too early.
pub(crate) fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

/// The time since 1970.
pub(crate) fn unix(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}
