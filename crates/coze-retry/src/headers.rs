//! What the headers of an answer say about coming back.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, header::RETRY_AFTER};

/// Requests that are left: with `0` none for now.
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");

/// `Retry-After`: seconds or a date (RFC 9110 §10.2.3), rounded up to seconds, also where it breaks the rule that they are whole.
/// A date that is over means zero, more than one value means the longest, and what is neither is as if it were not there.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let values = headers.get_all(RETRY_AFTER).iter();
    values.filter_map(|value| wait(value.to_str().ok()?.trim(), now)).max()
}

fn wait(text: &str, now: SystemTime) -> Option<Duration> {
    if let Some(seconds) = digits(text) {
        return Some(Duration::from_secs(seconds));
    }
    if let Some((whole, fraction)) = text.split_once('.') {
        let up = digits(fraction)? > 0;
        return Some(Duration::from_secs(digits(whole)?.saturating_add(up.into())));
    }
    let until = httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default();
    Some(Duration::from_secs(until.as_secs() + u64::from(until.subsec_nanos() > 0)))
}

/// Does it say that no request is left?
pub(crate) fn is_exhausted(headers: &HeaderMap) -> bool {
    headers.get_all(REMAINING).iter().any(|value| value.to_str().ok().and_then(|text| digits(text.trim())) == Some(0))
}

/// A number in digits alone; what is too large is as large as can be, so that nobody comes back early.
fn digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const NOON: &str = "Mon, 23 Nov 2026 12:00:00 GMT";

    /// The wait for these values, half a second past noon.
    fn seconds(values: &[&str]) -> Option<u64> {
        let now = httpdate::parse_http_date(NOON).expect("a date") + Duration::from_millis(500);
        let values = values.iter().map(|value| (RETRY_AFTER, HeaderValue::from_str(value).expect("a value")));
        retry_after(&values.collect(), now).map(|wait| wait.as_secs())
    }

    #[test]
    fn seconds_and_dates_are_read() {
        assert_eq!(seconds(&["0"]), Some(0));
        assert_eq!(seconds(&[" 120 "]), Some(120));
        assert_eq!(seconds(&["Mon, 23 Nov 2026 12:00:02 GMT"]), Some(2), "1.5 s, rounded up");
        assert_eq!(seconds(&["Monday, 23-Nov-26 12:00:02 GMT"]), Some(2), "RFC 850");
        assert_eq!(seconds(&["Mon Nov 23 12:00:02 2026"]), Some(2), "asctime");
        assert_eq!(seconds(&[NOON]), Some(0), "it is over");
        assert_eq!(seconds(&["Thu, 01 Jan 1970 00:00:00 GMT"]), Some(0));
    }

    #[test]
    fn a_part_of_a_second_is_a_second() {
        assert_eq!(seconds(&["0.5"]), Some(1));
        assert_eq!(seconds(&["0.001"]), Some(1));
        assert_eq!(seconds(&["1.5"]), Some(2));
        assert_eq!(seconds(&["7.0"]), Some(7));
        assert_eq!(seconds(&["0.0"]), Some(0));
        assert_eq!(seconds(&["99999999999999999999.5"]), Some(u64::MAX));
    }

    #[test]
    fn too_long_is_as_long_as_can_be() {
        assert_eq!(seconds(&["99999999999999999999"]), Some(u64::MAX));
        assert!(seconds(&["Fri, 31 Dec 9999 23:59:59 GMT"]) > Some(200_000_000_000));
    }

    #[test]
    fn garbage_says_nothing_and_the_longest_value_counts() {
        for garbage in
            ["", "soon", "-1", "+1", ".5", "1.", "1.5.5", "1,5", "1s", "0x10", "Mon, 99 Nov 2026 12:00:00 GMT"]
        {
            assert_eq!(seconds(&[garbage]), None, "{garbage}");
        }
        assert_eq!(seconds(&[]), None);
        assert_eq!(seconds(&["2", "soon", "7", "0"]), Some(7));
    }

    #[test]
    fn only_a_plain_zero_means_that_nothing_is_left() {
        let left = |text| is_exhausted(&[(REMAINING, HeaderValue::from_static(text))].into_iter().collect());
        assert!(left("0") && left(" 0 ") && left("00"));
        assert!(!left("1") && !left("") && !left("zero") && !left("-0"));
        assert!(!is_exhausted(&HeaderMap::new()));
    }
}
