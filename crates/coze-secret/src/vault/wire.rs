//! What Vault answers (HTTP API docs). Whatever it is, it makes a value or an error, and no copy of a secret that is not wiped,
//! unless the JSON text has escapes.

use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use coze_core::{Error, Kind, Retry};
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use super::{Credentials, Fields};
use crate::SecretBytes;

/// Fields of one secret: each takes pages of its own.
const MAX_FIELDS: usize = 128;
/// Warnings of one answer that are told.
const MAX_WARNINGS: usize = 4;
/// No life is longer: about ten years.
const MAX_LIFE: u64 = 10 * 366 * 86_400;

/// A token as a login or a renewal gives it.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) token: SecretBytes,
    /// `None` if it does not end.
    pub(crate) life: Option<Duration>,
    pub(crate) renewable: bool,
}

/// A lease as it is given or renewed.
#[derive(Debug)]
pub(crate) struct Leased {
    pub(crate) id: String,
    pub(crate) life: Duration,
    pub(crate) renewable: bool,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default)]
    lease_id: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    auth: Option<Auth>,
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Auth {
    client_token: Option<Text>,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct Version<'a> {
    #[serde(borrow)]
    data: Option<BTreeMap<String, &'a RawValue>>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    version: u64,
    #[serde(default)]
    created_time: String,
}

#[derive(Deserialize)]
struct User {
    username: String,
    password: Text,
}

#[derive(Deserialize)]
struct Lookup {
    /// `null` for a token that does not end; its `ttl` is 0, as is that of a token in its last second.
    #[serde(default)]
    expire_time: Option<String>,
    ttl: u64,
    /// Not there for a token that does not end.
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct Wrapping {
    creation_path: String,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<String>,
}

/// Text that goes from the answer into memory that is wiped.
struct Text(SecretBytes);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(SecretBytes::copy(text.as_bytes())))
            }
        }
        from.deserialize_str(Visitor)
    }
}

/// A login.
pub(crate) fn granted(answer: &[u8]) -> Result<Granted, Error> {
    let auth = auth(answer)?;
    let (life, renewable) = (auth.life(), auth.renewable);
    Ok(Granted { token: auth.token()?, life, renewable })
}

/// The renewal of a token: its life from now on, `None` if it does not end, and whether it may be renewed again.
pub(crate) fn renewed(answer: &[u8]) -> Result<(Option<Duration>, bool), Error> {
    let auth = auth(answer)?;
    Ok((auth.life(), auth.renewable))
}

fn auth(answer: &[u8]) -> Result<Auth, Error> {
    envelope(answer)?.auth.ok_or_else(|| unexpected("has no token"))
}

impl Auth {
    fn life(&self) -> Option<Duration> {
        Some(self.lease_duration).filter(|seconds| *seconds > 0).map(life)
    }

    /// It is empty where a second factor is asked for first.
    fn token(self) -> Result<SecretBytes, Error> {
        let token = self.client_token.map(|token| token.0).filter(|token| !token.expose().is_empty());
        token.ok_or_else(|| unexpected("has no token").with_retry(Retry::Never))
    }
}

/// What is left of a token's life, `None` if it does not end, and whether it may be renewed.
pub(crate) fn looked_up(answer: &[u8]) -> Result<(Option<Duration>, bool), Error> {
    let Lookup { expire_time, ttl, renewable } = parse(data(&envelope(answer)?)?.get().as_bytes())?;
    Ok(((expire_time.is_some() || ttl > 0).then(|| life(ttl)), renewable))
}

/// Credentials of a database with their lease.
pub(crate) fn credentials(answer: &[u8]) -> Result<(Leased, Credentials), Error> {
    let envelope = envelope(answer)?;
    let user: User = parse(data(&envelope)?.get().as_bytes())?;
    let lease = lease(envelope)?;
    if lease.life.is_zero() {
        return Err(unexpected("has a lease that is over"));
    }
    Ok((lease, Credentials { username: user.username, password: user.password.0 }))
}

/// The renewal of a lease.
pub(crate) fn leased(answer: &[u8]) -> Result<Leased, Error> {
    lease(envelope(answer)?)
}

/// The fields of whatever was wrapped. Of a login that is its token alone, as `client_token`.
pub(crate) fn fields(answer: &[u8]) -> Result<Fields, Error> {
    let mut envelope = envelope(answer)?;
    match envelope.auth.take() {
        Some(auth) => Ok(Fields(BTreeMap::from([("client_token".to_owned(), auth.token()?)]))),
        None => collect(parse(data(&envelope)?.get().as_bytes())?),
    }
}

/// The path whose answer a single-use token wraps.
pub(crate) fn wrapped_at(answer: &[u8]) -> Result<String, Error> {
    Ok(parse::<Wrapping>(data(&envelope(answer)?)?.get().as_bytes())?.creation_path)
}

/// A KV secret of version 2: which version it is, and its fields.
///
/// The time belongs to the number: who deletes all versions and writes a secret again begins at 1 again.
pub(crate) fn version(answer: &[u8]) -> Result<((u64, String), Fields), Error> {
    let envelope = envelope(answer)?;
    let version: Version<'_> = parse(data(&envelope)?.get().as_bytes())?;
    let fields = version.data.ok_or_else(|| unexpected("has no data"))?;
    Ok(((version.metadata.version, version.metadata.created_time), collect(fields)?))
}

/// Vault's own words about a failure, short and without tokens.
pub(crate) fn words(answer: &[u8]) -> Option<String> {
    let errors = serde_json::from_slice::<Errors>(answer).ok()?.errors;
    (!errors.is_empty()).then(|| plain(&errors.join("; ")))
}

/// Text of Vault's for a log: one line of at most 200 characters, without what looks like a token.
fn plain(text: &str) -> String {
    let words = text.split_whitespace().map(|word| if has_token(word) { Cow::from("[redacted]") } else { word.into() });
    words.collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// Tokens have a prefix and at least 24 characters after it (docs: tokens, token prefixes).
fn has_token(word: &str) -> bool {
    ["hvs.", "hvb.", "hvr.", "s.", "b.", "r."].iter().any(|prefix| {
        word.match_indices(prefix).any(|(at, _)| {
            let is_start = !word[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
            let rest = &word[at + prefix.len()..];
            prefix.len() > 2 || is_start && rest.bytes().take_while(u8::is_ascii_alphanumeric).count() >= 20
        })
    })
}

fn collect(raw: BTreeMap<String, &RawValue>) -> Result<Fields, Error> {
    if raw.len() > MAX_FIELDS {
        return Err(unexpected("has too many fields").with_retry(Retry::Never));
    }
    let value = |raw: &RawValue| match raw.get().as_bytes() {
        [b'"', ..] => Ok(parse::<Text>(raw.get().as_bytes())?.0),
        json => Ok(SecretBytes::copy(json)),
    };
    let fields = raw.into_iter().map(|(name, raw)| Ok((name, value(raw)?)));
    fields.collect::<Result<_, Error>>().map(Fields)
}

fn lease(envelope: Envelope<'_>) -> Result<Leased, Error> {
    match envelope.lease_id.is_empty() {
        true => Err(unexpected("has no lease")),
        false => {
            Ok(Leased { id: envelope.lease_id, life: life(envelope.lease_duration), renewable: envelope.renewable })
        }
    }
}

fn data<'a>(envelope: &Envelope<'a>) -> Result<&'a RawValue, Error> {
    envelope.data.filter(|data| data.get() != "null").ok_or_else(|| unexpected("has no data"))
}

fn life(seconds: u64) -> Duration {
    Duration::from_secs(seconds.min(MAX_LIFE))
}

/// What every answer is in. What Vault warns of, such as a life that it has cut short, is an event.
fn envelope(answer: &[u8]) -> Result<Envelope<'_>, Error> {
    let envelope: Envelope<'_> = parse(answer)?;
    for warning in envelope.warnings.iter().flatten().take(MAX_WARNINGS) {
        tracing::info!(reason = "vault_warning", warning = plain(warning), "vault warns");
    }
    Ok(envelope)
}

/// The parser's words are not kept: they may quote the answer.
fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|_| unexpected("is not what its api docs say"))
}

fn unexpected(what: &str) -> Error {
    Error::new(Kind::Upstream, "vault_answer").with_message(format!("an answer of vault {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_text_or_the_json_of_anything_else() {
        let answer = br#"{"data":{"a":"x","b":"l1\nl2","c":7,"d":{"e":[1, "f"]},"g":null,"h":""}}"#;
        let fields = fields(answer).expect("fields");
        let shown: Vec<_> = fields.names().map(|n| (n, fields.get(n).and_then(|v| v.expose_str()))).collect();
        let expected = [("a", "x"), ("b", "l1\nl2"), ("c", "7"), ("d", r#"{"e":[1, "f"]}"#), ("g", "null"), ("h", "")];
        assert_eq!(shown, expected.map(|(name, value)| (name, Some(value))));
        assert_eq!(format!("{fields:?}"), r#"{"a", "b", "c", "d", "g", "h"}"#);
    }

    #[test]
    fn an_answer_that_lacks_what_it_must_have_is_an_error() {
        let refused = |error: Error| assert_eq!(error.reason(), "vault_answer", "{error}");
        for answer in ["", "{", "[]", "null", "{}", r#"{"data":null}"#, r#"{"data":7}"#, r#"{"data":{"data":null}}"#] {
            let answer = answer.as_bytes();
            refused(granted(answer).expect_err("refused"));
            refused(renewed(answer).expect_err("refused"));
            refused(looked_up(answer).expect_err("refused"));
            refused(credentials(answer).expect_err("refused"));
            refused(leased(answer).expect_err("refused"));
            refused(version(answer).expect_err("refused"));
        }
        refused(leased(br#"{"lease_id":"x","lease_duration":-1}"#).expect_err("refused"));
        let no_token = br#"{"auth":{"client_token":"","mfa_requirement":{"mfa_request_id":"x"}}}"#;
        refused(granted(no_token).expect_err("a second factor is asked for"));
        refused(fields(no_token).expect_err("refused"));
    }

    #[test]
    fn fields_are_bounded() {
        let answer = |count: usize| {
            let fields: Vec<_> = (0..count).map(|n| format!("\"{n}\":\"\"")).collect();
            format!("{{\"data\":{{{}}}}}", fields.join(","))
        };
        assert!(fields(answer(MAX_FIELDS).as_bytes()).is_ok());
        let error = fields(answer(MAX_FIELDS + 1).as_bytes()).expect_err("too many");
        assert_eq!(error.retry(), Retry::Never);
    }

    #[test]
    fn a_life_without_end_is_bounded_and_none_is_none() {
        let token =
            |seconds| format!(r#"{{"auth":{{"client_token":"t","lease_duration":{seconds},"renewable":true}}}}"#);
        assert_eq!(granted(token(0).as_bytes()).expect("token").life, None);
        let long = granted(token(u64::MAX).as_bytes()).expect("token").life;
        assert_eq!(long, Some(Duration::from_secs(MAX_LIFE)));
    }

    #[test]
    fn what_is_over_is_told_from_what_does_not_end() {
        let lookup = |expire: &str, ttl: u64| {
            looked_up(format!(r#"{{"data":{{"expire_time":{expire},"ttl":{ttl},"renewable":true}}}}"#).as_bytes())
        };
        assert_eq!(lookup("null", 0).expect("root"), (None, true));
        assert_eq!(lookup("null", 60).expect("of an old vault"), (Some(Duration::from_secs(60)), true));
        let root = br#"{"data":{"expire_time":null,"path":"auth/token/root","ttl":0,"type":"service"}}"#;
        assert_eq!(looked_up(root).expect("root as vault tells of it"), (None, false));
        assert_eq!(lookup("\"2026\"", 0).expect("in its last second"), (Some(Duration::ZERO), true));
        let lease = |seconds: u64| {
            let data = r#"{"username":"u","password":"p"}"#;
            let answer = format!(r#"{{"lease_id":"l","lease_duration":{seconds},"renewable":true,"data":{data}}}"#);
            credentials(answer.as_bytes()).map(|(lease, _)| lease.life)
        };
        assert_eq!(lease(1).expect("a second"), Duration::from_secs(1));
        assert_eq!(lease(0).expect_err("it would be asked for again and again").reason(), "vault_answer");
    }

    #[test]
    fn the_words_of_a_failure_are_short_and_show_no_token() {
        let words = |errors: &str| words(format!("{{\"errors\":[{errors}]}}").as_bytes());
        assert_eq!(words("\"permission denied\""), Some("permission denied".into()));
        assert_eq!(words("\"token hvs.CAESIabc is\\n bad\""), Some("token [redacted] is bad".into()));
        assert_eq!(words("\"tokenhvs.CAESIabc\""), Some("[redacted]".into()));
        let old = format!("\"1 error occurred:\\n\\t* token=s.{} in the docs.\", \"no\"", "aB3".repeat(8));
        assert_eq!(words(&old), Some("1 error occurred: * [redacted] in the docs.; no".into()));
        assert_eq!(words(""), None);
        assert_eq!(words(&format!("\"{}\"", "é".repeat(999))).map(|text| text.chars().count()), Some(200));
        assert_eq!(super::words(b"<html>"), None);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(answer: Vec<u8>, json in "[\\[\\]{}\",:a-z0-9 \\\\]{0,80}") {
            super::super::read_answer(&answer);
            super::super::read_answer(json.as_bytes());
        }
    }
}
