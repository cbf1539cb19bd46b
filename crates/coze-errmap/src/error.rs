use coze_core::{Error, Kind, Platform, Retry, redact};
use http::StatusCode;

use crate::table;

/// The most bytes of a message that are kept or shown: what goes into a header must stay small.
pub(crate) const MAX_MESSAGE: usize = 1024;

/// The error that the platform means by `code` and `msg`, wherever they stood: an envelope, an event of a stream, a
/// `last_error`.
///
/// An unknown code is an [`Kind::Upstream`] error of reason `platform_error` that is not sent again, unless it is an HTTP
/// status, which self-hosted platforms use as codes. The first 1024 bytes of `msg` are kept, and a `logid` of 1 to 128
/// visible ASCII characters; a `code` of 0 is no error, so it is not kept.
#[must_use]
pub fn from_platform(code: i64, msg: &str, logid: Option<&str>) -> Error {
    from_envelope(code, None, msg, logid)
}

/// The error that an HTTP status of 400 or more means by itself, as a gateway's does.
#[must_use]
pub fn from_status(status: StatusCode) -> Error {
    let (kind, reason) = table::status(status);
    Error::new(kind, reason)
}

/// The same as [`from_platform`], where an unknown code leaves the word to the `status`.
pub(crate) fn from_envelope(code: i64, status: Option<StatusCode>, msg: &str, logid: Option<&str>) -> Error {
    let as_status = || u16::try_from(code).ok().filter(|code| (400..600).contains(code));
    let error = if let Some(row) = table::platform(code) {
        Error::new(row.kind, row.reason).with_retry(row.retry)
    } else if let Some(status) = status.or_else(|| StatusCode::from_u16(as_status()?).ok()) {
        from_status(status)
    } else {
        Error::new(Kind::Upstream, "platform_error").with_retry(Retry::Never)
    };
    say(error, code, msg, logid)
}

/// Keeps what the platform said.
pub(crate) fn say(error: Error, code: i64, msg: &str, logid: Option<&str>) -> Error {
    // Redacted before it is cut: half a credential is not recognised.
    let msg = cut(&redact(msg)).trim().to_owned();
    let logid = logid.filter(|id| id.len() <= 128 && !id.is_empty() && id.bytes().all(|b| b.is_ascii_graphic()));
    let error = if msg.is_empty() { error } else { error.with_message(msg.clone()) };
    if code == 0 { error } else { error.with_platform(Platform { code, msg, logid: logid.map(str::to_owned) }) }
}

/// At most [`MAX_MESSAGE`] bytes of the text, whole characters.
pub(crate) fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
