//! What `WWW-Authenticate` says to who is refused (RFC 9110 §11.6.1, RFC 6750 §3, RFC 9728 §5.1).

use coze_core::{Error, Kind};
use coze_errmap::{ErrMapLayer, Responder};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use proptest::prelude::*;
use tower::{Layer, ServiceExt, service_fn};

type Res = Response<Full<bytes::Bytes>>;

/// The header of the answer to a request that fails so, and its status.
async fn challenged(policy: Responder, outcome: impl Fn() -> Result<Res, Error>) -> (StatusCode, Option<String>) {
    let service = service_fn(|_: Request<()>| std::future::ready(outcome()));
    let answer = ErrMapLayer::new(policy).layer(service).oneshot(Request::new(())).await.expect("infallible");
    let mut values = answer.headers().get_all("www-authenticate").iter();
    let value = values.next().map(|value| value.to_str().expect("ASCII").to_owned());
    assert_eq!(values.next(), None, "one challenge");
    (answer.status(), value)
}

async fn refused(policy: Responder, error: impl Fn() -> Error) -> Option<String> {
    challenged(policy, || Err(error())).await.1
}

fn expired() -> Error {
    Error::new(Kind::Unauthenticated, "token_expired").with_message("the token has expired")
}

fn scopeless(scope: &str) -> Error {
    Error::new(Kind::PermissionDenied, "missing_scope").with_message("the scope b is required").with_scope(scope)
}

fn scheme(challenge: &'static str) -> Responder {
    Responder::new().challenge(HeaderValue::from_static(challenge))
}

#[tokio::test]
async fn a_challenge_says_what_is_wrong_with_a_token_and_nothing_where_there_was_none() {
    let invalid = r#"Bearer error="invalid_token", error_description="authentication failed""#;
    for (kind, reason, expected) in [
        (Kind::Unauthenticated, "missing_credentials", Some("Bearer")),
        (Kind::Unauthenticated, "x", Some("Bearer")),
        (Kind::Unauthenticated, "token_expired", Some(invalid)),
        (Kind::Unauthenticated, "token_not_yet_valid", Some(invalid)),
        (Kind::Unauthenticated, "signature_invalid", Some(invalid)),
        (Kind::Unauthenticated, "unknown_key", Some(invalid)),
        (Kind::Unauthenticated, "audience_mismatch", Some(invalid)),
        (Kind::Unauthenticated, "issuer_mismatch", Some(invalid)),
        (Kind::Unauthenticated, "revoked", Some(invalid)),
        (Kind::Unauthenticated, "parse_error", Some(invalid)),
        (
            Kind::PermissionDenied,
            "missing_scope",
            Some(r#"Bearer error="insufficient_scope", error_description="permission denied""#),
        ),
        (Kind::PermissionDenied, "policy_denied", None),
        (Kind::Unavailable, "keys_unavailable", None),
        (Kind::Invalid, "parse_error", None),
    ] {
        let got = refused(Responder::new(), || Error::new(kind, reason)).await;
        assert_eq!(got.as_deref(), expected, "{reason}");
    }
}

#[tokio::test]
async fn who_lacks_a_scope_is_told_which_are_needed() {
    let told = refused(Responder::new(), || scopeless("a b")).await;
    let expected = r#"Bearer error="insufficient_scope", error_description="the scope b is required""#;
    assert_eq!(told, Some(format!(r#"{expected}, scope="a b""#)));
    for wrong in ["", "a\"b", "a\\b", "读", "a\nb"] {
        assert_eq!(refused(Responder::new(), || scopeless(wrong)).await.as_deref(), Some(expected), "{wrong:?}");
    }
    let not_asked = refused(Responder::new(), || expired().with_scope("a")).await;
    assert!(!not_asked.expect("a challenge").contains("scope="), "another token of the same scope would do");
}

#[tokio::test]
async fn the_realm_is_quoted_and_the_metadata_is_named_to_everybody() {
    let url = "https://bot.example/.well-known/oauth-protected-resource/v1?x=1";
    let policy = || Responder::new().realm(r#"my "bots" \o/"#).expect("visible").resource_metadata(url).expect("https");
    let realm = r#"Bearer realm="my \"bots\" \\o/""#;
    let metadata = format!(r#"resource_metadata="{url}""#);
    let bare = refused(policy(), || Error::new(Kind::Unauthenticated, "missing_credentials")).await;
    assert_eq!(bare, Some(format!("{realm}, {metadata}")));
    let told = r#"error="invalid_token", error_description="the token has expired""#;
    assert_eq!(refused(policy(), expired).await, Some(format!("{realm}, {told}, {metadata}")));
    let (status, scopeless) = challenged(policy(), || Err(scopeless("b"))).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(scopeless.is_some_and(|told| told.ends_with(&format!(r#"scope="b", {metadata}"#))));
    let again = policy().realm("other").expect("visible");
    assert_eq!(
        refused(again, || Error::new(Kind::Unauthenticated, "x")).await,
        Some(format!(r#"Bearer realm="other", {metadata}"#)),
        "a realm is named once"
    );
}

#[tokio::test]
async fn a_scheme_of_another_name_is_no_bearer_and_one_in_another_case_is() {
    let told = r#"error="invalid_token", error_description="the token has expired""#;
    for (given, expected) in [
        ("Signature", "Signature".to_owned()),
        ("BearerX realm=\"a\"", "BearerX realm=\"a\"".to_owned()),
        ("bearer", format!("bearer {told}")),
        (r#"Bearer realm="bots""#, format!(r#"Bearer realm="bots", {told}"#)),
    ] {
        assert_eq!(refused(scheme(given), expired).await, Some(expected));
        assert_eq!(refused(scheme(given), || Error::new(Kind::Unauthenticated, "x")).await.as_deref(), Some(given));
    }
    assert_eq!(refused(scheme("Signature"), || scopeless("a")).await, None);
    let named = scheme("Signature").realm("bots").expect("visible");
    assert_eq!(refused(named, expired).await.as_deref(), Some(r#"Signature realm="bots""#));
}

#[tokio::test]
async fn what_cannot_be_quoted_is_said_in_another_way_or_not_at_all() {
    for (message, expected) in [
        (r#"a "b" \c"#, r#", error_description="a 'b' /c""#),
        ("令牌已过期", ""),
        ("a\r\nset-cookie: x", ""),
        ("\u{7f}", ""),
    ] {
        let told = refused(Responder::new(), || expired().with_message(message)).await;
        assert_eq!(told, Some(format!(r#"Bearer error="invalid_token"{expected}"#)));
    }
}

#[tokio::test]
async fn a_challenge_that_is_there_stays() {
    let foreign = || {
        Ok(Response::builder().status(401).header("www-authenticate", "Basic").body(Full::default()).expect("valid"))
    };
    assert_eq!(challenged(Responder::new(), foreign).await.1.as_deref(), Some("Basic"));
    let bare = || Ok(Response::builder().status(401).body(Full::default()).expect("valid"));
    assert_eq!(challenged(Responder::new(), bare).await.1.as_deref(), Some("Bearer"));
}

#[test]
fn what_cannot_be_in_a_challenge_is_refused_when_it_is_configured() {
    let reason = |outcome: Result<Responder, Error>| outcome.err().map(|e| (e.kind(), e.reason()));
    let invalid = Some((Kind::Invalid, "challenge_invalid"));
    for realm in ["a\nb", "域", "\u{7f}", "\t"] {
        assert_eq!(reason(Responder::new().realm(realm)), invalid, "{realm:?}");
    }
    for url in ["", "/x", "http://a.example/x", "https:", "https://a.example/\"", "https://a.example/a b", "ftp://a/x"]
    {
        assert_eq!(reason(Responder::new().resource_metadata(url)), invalid, "{url:?}");
    }
}

/// The parameters of one challenge: tokens, and quoted strings without their quotes (RFC 9110 §5.6.4).
fn parsed(header: &str) -> Vec<(String, String)> {
    let mut rest = header.strip_prefix("Bearer ").expect("a scheme");
    let mut parameters = Vec::new();
    loop {
        let (name, quoted) = rest.split_once("=\"").expect("a quoted string");
        let (mut value, mut bytes) = (String::new(), quoted.char_indices());
        let end = loop {
            match bytes.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => value.push(bytes.next().expect("something is escaped").1),
                (_, other) => value.push(other),
            }
        };
        parameters.push((name.to_owned(), value));
        match quoted[end + 1..].strip_prefix(", ") {
            Some(more) => rest = more,
            None => break,
        }
        assert!(!rest.is_empty());
    }
    parameters
}

proptest! {
    #[test]
    fn whatever_is_said_a_challenge_can_be_read(realm in "[ -~]{0,20}", message: String, scope in ".{0,20}") {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let policy = Responder::new().realm(&realm).expect("visible");
        let told = runtime.block_on(refused(policy, || scopeless(&scope).with_message(message.clone())));
        let parameters = parsed(&told.expect("a challenge"));
        prop_assert_eq!(&parameters[..2], [("realm".to_owned(), realm), ("error".to_owned(), "insufficient_scope".to_owned())]);
        let is_scope = |(name, value): &(String, String)| name == "scope" && *value == scope;
        prop_assert!(parameters[2..].iter().all(|p| p.0 == "error_description" || is_scope(p)), "{:?}", parameters);
    }
}
