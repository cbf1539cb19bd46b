use coze_core::{Error, Kind};
use http::{HeaderValue, StatusCode, Uri, uri::Scheme};

/// What `WWW-Authenticate` says (RFC 9110 §11.6.1, RFC 6750 §3, RFC 9728 §5.1).
#[derive(Clone, Debug)]
pub(crate) struct Challenge {
    /// The scheme, perhaps with parameters.
    pub(crate) given: HeaderValue,
    realm: Option<Box<str>>,
    metadata: Option<Box<str>>,
}

impl Challenge {
    pub(crate) const fn new() -> Self {
        Self { given: HeaderValue::from_static("Bearer"), realm: None, metadata: None }
    }

    pub(crate) fn realm(&mut self, realm: &str) -> Result<(), Error> {
        if realm.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
            return Err(invalid("a realm is visible ASCII and spaces"));
        }
        self.realm = Some(realm.replace('\\', r"\\").replace('"', r#"\""#).into());
        Ok(())
    }

    pub(crate) fn metadata(&mut self, url: &str) -> Result<(), Error> {
        // What is a URI has neither quotes nor backslashes in it.
        let is_https = url.parse::<Uri>().is_ok_and(|uri| uri.scheme() == Some(&Scheme::HTTPS));
        if !is_https || !is_quotable(url) {
            return Err(invalid("the URL of resource metadata is an https one"));
        }
        self.metadata = Some(url.into());
        Ok(())
    }

    /// The header of a refusal with this status; `None` where there is nothing to say.
    ///
    /// A bearer token that was refused is told why, a request without one is not (RFC 6750 §3).
    pub(crate) fn header(
        &self,
        status: StatusCode,
        reason: &str,
        message: &str,
        scope: Option<&str>,
    ) -> Option<HeaderValue> {
        let error = bearer_error(reason).filter(|_| self.is_bearer());
        match status {
            StatusCode::UNAUTHORIZED => {}
            StatusCode::FORBIDDEN if error.is_some() => {}
            _ => return None,
        }
        // The caller may not be told in quotes and backslashes, not even escaped ones.
        let description = message.replace('"', "'").replace('\\', "/");
        let parameters = [
            ("realm", self.realm.as_deref()),
            ("error", error),
            ("error_description", error.map(|_| &*description).filter(|text| is_quotable(text))),
            ("scope", scope.filter(|scope| error == Some(INSUFFICIENT) && !scope.is_empty() && is_quotable(scope))),
            ("resource_metadata", self.metadata.as_deref()),
        ];
        let mut text = self.given.as_bytes().to_vec();
        // Parameters begin behind the scheme with a space, and a comma stands between them (RFC 9110 §11.2).
        let mut separator = if text.contains(&b' ') { ", " } else { " " };
        for (name, value) in parameters {
            if let Some(value) = value {
                text.extend_from_slice(format!(r#"{separator}{name}="{value}""#).as_bytes());
                separator = ", ";
            }
        }
        HeaderValue::from_bytes(&text).ok()
    }

    fn is_bearer(&self) -> bool {
        let scheme = self.given.as_bytes().split(|byte| *byte == b' ').next();
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"))
    }
}

const INSUFFICIENT: &str = "insufficient_scope";

/// What a challenge says about a token that was refused for this reason (RFC 6750 §3.1). Of a request without one it says
/// nothing.
fn bearer_error(reason: &str) -> Option<&'static str> {
    match reason {
        "token_expired"
        | "token_not_yet_valid"
        | "signature_invalid"
        | "unknown_key"
        | "audience_mismatch"
        | "issuer_mismatch"
        | "revoked"
        | "parse_error" => Some("invalid_token"),
        "missing_scope" => Some(INSUFFICIENT),
        _ => None,
    }
}

/// The characters that RFC 6750 §3 allows in `error_description`, and with the spaces between its parts in `scope`.
fn is_quotable(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

fn invalid(message: &'static str) -> Error {
    Error::new(Kind::Invalid, "challenge_invalid").with_message(message)
}
