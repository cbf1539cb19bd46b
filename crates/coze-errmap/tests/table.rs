//! The table against the documents it comes from.

use coze_core::{Error, Kind, Retry};
use coze_errmap::{Mapping, from_platform, from_status};
use http::StatusCode;

fn kind_of(class: &str) -> Kind {
    match class {
        "invalid" => Kind::Invalid,
        "not_found" => Kind::NotFound,
        "quota" => Kind::Quota,
        "overload" => Kind::Overloaded,
        "rate_limit" => Kind::RateLimited,
        "billing" => Kind::Billing,
        "config" | "session" => Kind::Precondition,
        "upstream" | "unknown" => Kind::Upstream,
        "server" => Kind::Unavailable,
        "content" => Kind::Content,
        "conflict" => Kind::Conflict,
        "auth" => Kind::Unauthenticated,
        "permission" | "risk" => Kind::PermissionDenied,
        "too_large" => Kind::TooLarge,
        "timeout" => Kind::Timeout,
        other => panic!("{other} is no class"),
    }
}

fn retry_of(word: &str) -> Retry {
    match word {
        "never" => Retry::Never,
        "idempotent" => Retry::IfIdempotent,
        "safe" => Retry::Safe,
        other => panic!("{other} says nothing about retries"),
    }
}

#[test]
fn every_code_of_the_document_means_what_it_says() {
    let lines = include_str!("codes.txt").lines().filter(|line| !line.starts_with('#'));
    let mut count = 0;
    for line in lines {
        let [code, class, retry] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let error = from_platform(code.parse().expect("a number"), "what it says", Some("log-1"));
        assert_eq!((error.kind(), error.retry()), (kind_of(class), retry_of(retry)), "{line}");
        assert_eq!(error.message(), "what it says", "{line}");
        let platform = error.platform().expect("the platform said it");
        assert_eq!((platform.code.to_string().as_str(), platform.logid.as_deref()), (code, Some("log-1")), "{line}");
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(error.reason().chars().all(is_name), "{line}: {}", error.reason());
        assert_eq!(error.reason() == "risk_control", class == "risk", "{line}");
        count += 1;
    }
    assert_eq!(count, 106, "the document has so many");
}

#[test]
fn an_unknown_code_is_the_platforms_fault_and_is_not_sent_again() {
    for code in [1, -1, 4017, 103_000_001, 109_000_009, i64::MAX, i64::MIN, 399, 600] {
        let error = from_platform(code, "", None);
        assert_eq!((error.kind(), error.reason()), (Kind::Upstream, "platform_error"), "{code}");
        assert_eq!(error.retry(), Retry::Never, "{code}");
        assert_eq!(error.platform().map(|platform| platform.code), Some(code));
        assert_eq!(error.message(), error.reason(), "nothing was said for people");
    }
    // Self-hosted platforms use HTTP statuses as codes.
    assert_eq!(from_platform(401, "", None).kind(), Kind::Unauthenticated);
    assert_eq!(from_platform(500, "internal server error", None).kind(), Kind::Unavailable);
    assert_eq!(from_platform(0, "", Some("log-1")).platform(), None, "0 is no error of the platform");
}

#[test]
fn what_the_platform_says_is_kept_within_bounds_and_without_credentials() {
    let long = from_platform(4000, &"忙".repeat(1000), Some(&"l".repeat(129)));
    assert_eq!(long.message(), "忙".repeat(341), "1024 bytes, whole characters");
    assert_eq!(long.platform().map(|p| (p.msg.len(), p.logid.clone())), Some((1023, None)));

    let at_the_bound = format!("{} pat_0123456789abcdef", "x".repeat(1010));
    for msg in ["bad pat_0123456789abcdef", &at_the_bound] {
        let error = from_platform(4100, msg, Some("a\r\nb"));
        assert!(!format!("{error} {error:?}").contains("pat_0"), "{error:?}");
        assert_eq!(error.platform().and_then(|p| p.logid.as_deref()), None, "no log id has control characters");
    }
}

#[test]
fn a_status_alone_says_what_a_gateway_means() {
    for (status, kind, retry) in [
        (400, Kind::Invalid, Retry::Never),
        (401, Kind::Unauthenticated, Retry::Never),
        (402, Kind::Billing, Retry::Never),
        (403, Kind::PermissionDenied, Retry::Never),
        (404, Kind::NotFound, Retry::Never),
        (405, Kind::Invalid, Retry::Never),
        (408, Kind::Timeout, Retry::IfIdempotent),
        (409, Kind::Conflict, Retry::Never),
        (413, Kind::TooLarge, Retry::Never),
        (415, Kind::Invalid, Retry::Never),
        (418, Kind::Invalid, Retry::Never),
        (422, Kind::Invalid, Retry::Never),
        (429, Kind::RateLimited, Retry::Safe),
        (431, Kind::TooLarge, Retry::Never),
        (499, Kind::Cancelled, Retry::Never),
        (500, Kind::Unavailable, Retry::IfIdempotent),
        (501, Kind::Upstream, Retry::IfIdempotent),
        (502, Kind::Upstream, Retry::IfIdempotent),
        (503, Kind::Unavailable, Retry::IfIdempotent),
        (504, Kind::Timeout, Retry::IfIdempotent),
        (999, Kind::Upstream, Retry::IfIdempotent),
    ] {
        let error = from_status(StatusCode::from_u16(status).expect("valid"));
        assert_eq!((error.kind(), error.retry()), (kind, retry), "{status}");
        assert_eq!(error.platform(), None, "{status}");
    }
}

#[test]
fn every_kind_has_one_row_and_its_code_leads_back_to_it() {
    let kinds: Vec<Kind> = Mapping::ALL.iter().map(|row| row.kind).collect();
    assert_eq!(kinds, Kind::ALL);
    for row in Mapping::ALL {
        assert_eq!(Mapping::of(&Error::new(row.kind, "x")).kind, row.kind);
        assert!((1..=16).contains(&row.grpc) && row.status.as_u16() >= 400, "{row:?}");
        // Nobody but us and the caller can be at fault for these: the platform has no code for them.
        if !matches!(row.kind, Kind::Cancelled | Kind::Internal) {
            assert_eq!(from_platform(row.code, "", None).kind(), row.kind, "{row:?}");
        }
        for text in [row.en, row.zh] {
            assert!(!text.is_empty() && !text.ends_with(['.', '。']), "{row:?}");
        }
    }
    assert_eq!(Mapping::of(&from_platform(702_112_103, "", None)).code, 702_112_103, "the platform's own code stays");
    for kind in [Kind::RateLimited, Kind::Overloaded] {
        assert_eq!(Mapping::of(&Error::new(kind, "x")).zh, "服务繁忙,请稍后重试");
    }
}

#[test]
fn the_readme_shows_the_table() {
    for Mapping { kind, status, grpc, code, level, .. } in Mapping::ALL {
        let level = level.as_str().to_lowercase();
        let row = format!("| `{}` | {} | {grpc} | {code} | {level} |", kind.as_str(), status.as_u16());
        assert!(include_str!("../README.md").contains(&row), "{row}");
    }
}
