use std::sync::Arc;

use crate::{Error, Kind};

/// Why authentication or authorisation let a request go no further, or would not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the caller can do about it.
    pub kind: Kind,
    /// The true reason in snake case; the caller may have been told less.
    pub reason: &'static str,
    /// The party that the request is of, or claims to be of, by the name it has in our own configuration. It becomes the label
    /// of a metric, so it is never a text that a caller made up.
    pub client: Option<Arc<str>>,
}

impl Refusal {
    /// Every code. Each is a reason in upper case.
    pub const CODES: [&str; 13] = [
        "TOKEN_EXPIRED",
        "TOKEN_NOT_YET_VALID",
        "SIGNATURE_INVALID",
        "PARSE_ERROR",
        "UNKNOWN_KEY",
        "AUDIENCE_MISMATCH",
        "ISSUER_MISMATCH",
        "MISSING_SCOPE",
        "POLICY_DENIED",
        "REPLAYED",
        "MISSING_CREDENTIALS",
        "REVOKED",
        "KEYS_UNAVAILABLE",
    ];

    /// The `auth_error_code`: the reason's, or `POLICY_DENIED` of a policy that has a reason of its own. What was not refused
    /// for the credentials or what they permit, such as a body that is too large, has none.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        let known = Self::CODES.into_iter().find(|code| code.eq_ignore_ascii_case(self.reason));
        let is_denied = matches!(self.kind, Kind::Unauthenticated | Kind::PermissionDenied);
        known.or(is_denied.then_some("POLICY_DENIED"))
    }
}

impl From<&Error> for Refusal {
    /// What the caller is told is the true reason, and who it is is not known.
    fn from(error: &Error) -> Self {
        Self { kind: error.kind(), reason: error.reason(), client: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(kind: Kind, reason: &'static str) -> Option<&'static str> {
        Refusal::from(&Error::new(kind, reason)).code()
    }

    #[test]
    fn a_reason_in_upper_case_is_the_code() {
        assert_eq!(code(Kind::Unauthenticated, "token_expired"), Some("TOKEN_EXPIRED"));
        assert_eq!(code(Kind::Unavailable, "keys_unavailable"), Some("KEYS_UNAVAILABLE"));
    }

    #[test]
    fn who_refuses_for_a_reason_of_their_own_has_a_policy() {
        assert_eq!(code(Kind::PermissionDenied, "office_closed"), Some("POLICY_DENIED"));
        assert_eq!(code(Kind::Unauthenticated, "no_badge"), Some("POLICY_DENIED"));
    }

    #[test]
    fn what_has_to_do_with_no_credentials_has_no_code() {
        for (kind, reason) in [
            (Kind::TooLarge, "body_too_large"),
            (Kind::Timeout, "body_timeout"),
            (Kind::Overloaded, "nonces_full"),
            (Kind::Internal, "broken"),
        ] {
            assert_eq!(code(kind, reason), None, "{reason}");
        }
    }
}
