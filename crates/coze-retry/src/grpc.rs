//! What gRPC says in headers and trailers (gRPC over HTTP/2, and gRFC A6 on retries).

use std::time::Duration;

use coze_core::Kind;
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
pub(crate) const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub(crate) const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// Is it a call of gRPC? Any content type that begins so.
#[inline]
pub(crate) fn is_call(headers: &HeaderMap) -> bool {
    let start = b"application/grpc";
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.as_bytes().get(..start.len()))
        .is_some_and(|value| value.eq_ignore_ascii_case(start))
}

/// Does it have a status?
pub(crate) fn has_status(fields: &HeaderMap) -> bool {
    fields.contains_key(STATUS)
}

/// Is the status there, and another one than 0?
pub(crate) fn has_failed(fields: &HeaderMap) -> bool {
    fields.get(STATUS).is_some_and(|status| status.as_bytes() != b"0")
}

/// The kind of failure the status tells of, where another try may help: `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED`,
/// `UNAVAILABLE`.
pub(crate) fn kind(fields: &HeaderMap) -> Option<Kind> {
    match fields.get(STATUS)?.as_bytes() {
        b"4" => Some(Kind::Timeout),
        b"8" => Some(Kind::RateLimited),
        b"14" => Some(Kind::Unavailable),
        _ => None,
    }
}

/// When the server wants the call again: not at all if what it says is negative or no number (gRFC A6, pushback).
pub(crate) fn pushback(fields: &HeaderMap) -> Option<Option<Duration>> {
    let value = fields.get(PUSHBACK)?;
    let millis = value.to_str().ok().and_then(|text| text.parse::<i32>().ok());
    Some(millis.and_then(|millis| u64::try_from(millis).ok()).map(Duration::from_millis))
}

/// How long the caller waits, if it says so and is understood: up to eight digits and a unit.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get(TIMEOUT)?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// The same to be sent on, rounded down, in the finest unit that eight digits are enough for.
pub(crate) fn timeout_value(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let (count, unit) = [(left.as_micros(), 'u'), (left.as_millis(), 'm'), (left.as_secs().into(), 'S')]
        .into_iter()
        .find(|(count, _)| *count <= MOST)
        .unwrap_or((MOST, 'S'));
    HeaderValue::try_from(format!("{count}{unit}")).expect("digits and a letter")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(name: HeaderName, value: &'static str) -> HeaderMap {
        [(name, HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn a_call_is_known_by_its_content_type() {
        for is in ["application/grpc", "application/grpc+proto", "Application/gRPC-web"] {
            assert!(is_call(&fields(CONTENT_TYPE, is)), "{is}");
        }
        for other in ["application/json", "application/grp", ""] {
            assert!(!is_call(&fields(CONTENT_TYPE, other)), "{other}");
        }
        assert!(!is_call(&HeaderMap::new()));
    }

    #[test]
    fn a_timeout_is_read_in_each_unit() {
        let read = |text| timeout(&fields(TIMEOUT, text));
        let nanos =
            [("2H", 7200e9), ("3M", 180e9), ("4S", 4e9), ("5m", 5e6), ("6u", 6e3), ("7n", 7.0), ("00000008S", 8e9)];
        for (text, nanos) in nanos {
            assert_eq!(read(text).map(|timeout| timeout.as_nanos() as f64), Some(nanos), "{text}");
        }
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "5", "5 S", "-5S", "+5S", "1.5S", "5s", "5SS", "123456789S"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_timeout_is_written_in_eight_digits_and_never_longer_than_it_is() {
        for (left, written) in [
            (Duration::ZERO, "0u"),
            (Duration::from_nanos(1999), "1u"),
            (Duration::from_micros(99_999_999), "99999999u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "99999999S"),
        ] {
            let value = timeout_value(left);
            assert_eq!(value, written);
            assert!(timeout(&[(TIMEOUT, value)].into_iter().collect()) <= Some(left));
        }
    }

    #[test]
    fn pushback_that_is_negative_or_garbage_means_never() {
        let read = |text| pushback(&fields(PUSHBACK, text));
        assert_eq!(read("0"), Some(Some(Duration::ZERO)));
        assert_eq!(read("250"), Some(Some(Duration::from_millis(250))));
        for never in ["-1", "", "soon", "1.5", "2147483648"] {
            assert_eq!(read(never), Some(None), "{never}");
        }
        assert_eq!(pushback(&HeaderMap::new()), None);
    }
}
