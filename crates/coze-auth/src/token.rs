use std::{
    future::{Future, Pending},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coze_core::{Context, Error, Kind, Retry};
use http::HeaderValue;

use crate::Decision;

/// An access token, ready to go into `authorization`. It never shows itself; cloning shares the text.
#[derive(Clone, Debug)]
pub struct Token {
    header: HeaderValue,
    lifetime: Option<Duration>,
    generation: u64,
}

impl Token {
    /// A token that is valid until the platform refuses it.
    ///
    /// # Errors
    /// `token_malformed`, [`Kind::Internal`]: it is empty, or not of visible ASCII, such as with the line end of a file.
    pub fn bearer(secret: &str) -> Result<Self, Error> {
        let header = Some(secret).filter(|secret| !secret.is_empty() && secret.bytes().all(|b| b.is_ascii_graphic()));
        let header = header.and_then(|secret| HeaderValue::try_from(format!("Bearer {secret}")).ok());
        let Some(mut header) = header else {
            return Err(Error::new(Kind::Internal, "token_malformed")
                .with_message("an access token is visible ascii without spaces and line ends"));
        };
        header.set_sensitive(true);
        Ok(Self { header, lifetime: None, generation: 0 })
    }

    /// Says how long it is valid, counted from when it was asked for. See [`lifetime`].
    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime: Some(lifetime), ..self }
    }

    /// Numbers the tokens of one source, upwards, so that a refusal can say which one it means.
    #[must_use]
    pub fn with_generation(self, generation: u64) -> Self {
        Self { generation, ..self }
    }

    /// The value of the `authorization` header, marked as sensitive.
    #[must_use]
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// The same, for the one request that the token was taken for.
    pub(crate) fn into_header(self) -> HeaderValue {
        self.header
    }

    /// How long it is valid, counted from when it was asked for; `None` if that is not known.
    #[must_use]
    pub fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// Its number among the tokens of its source.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// Gets a new access token, in one attempt: what a [`Renewing`](crate::Renewing) source asks when it needs one.
///
/// A closure is a refresher, and so are the platform's grants. [`Error::retry`] of a failure tells what passes
/// ([`Retry::Safe`], [`Retry::IfIdempotent`]) from what is final ([`Retry::Never`]).
pub trait Refresher: Send + Sync + 'static {
    /// One attempt. What must not be sent twice, such as a signed assertion, is made anew for each.
    fn refresh(&self) -> impl Future<Output = Result<Token, Error>> + Send;
}

impl<F, R> Refresher for F
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Result<Token, Error>> + Send,
{
    fn refresh(&self) -> impl Future<Output = Result<Token, Error>> + Send {
        self()
    }
}

/// Where the tokens for calls out come from.
pub trait TokenSource {
    /// A token that has to be waited for.
    type Future: Future<Output = Result<Token, Error>>;

    /// The current token; without waiting and without a lock if there is one.
    fn token(&self) -> Decision<Token, Self::Future>;

    /// The platform refused the token of this generation: the source forgets it, if it is still the current one.
    ///
    /// `None` if there will be no other token, so that the refusal is final; else whether the request may be sent again,
    /// which will take another token: [`Retry::Safe`], as a refused request did not run.
    fn reject(&self, generation: u64) -> Option<Retry>;

    /// The platform wants the token of this generation renewed, which it still accepts: the source gets another one, and may go
    /// on with this one where that fails. Unless it says otherwise it forgets the token, as with [`TokenSource::reject`].
    fn renew(&self, generation: u64) {
        self.reject(generation);
    }

    /// The platform accepted the token of this generation: a later refusal is another one. Called for each answer, so it has to be
    /// quick. Unless it says otherwise the source does not care.
    fn accept(&self, generation: u64) {
        let _ = generation;
    }
}

/// Which source a request's token comes from. Every source is one for all requests; [`PerTenant`](crate::PerTenant) is not.
///
/// A token that is refused goes back to the very source it came from.
pub trait TokenSources {
    /// The source of one request's token.
    type Source: TokenSource + Clone;

    /// The source for a request with this context, if it has one.
    ///
    /// # Errors
    /// If there is no token for such a request.
    fn source(&self, context: Option<&Context>) -> Result<Self::Source, Error>;
}

impl<T: TokenSource + Clone> TokenSources for T {
    type Source = Self;

    fn source(&self, _: Option<&Context>) -> Result<Self, Error> {
        Ok(self.clone())
    }
}

/// A token that stays as it is, such as a personal access token. A refusal of it is final.
#[derive(Clone, Debug)]
pub struct Static(Token);

impl Static {
    /// Always this token.
    ///
    /// # Errors
    /// Those of [`Token::bearer`].
    pub fn new(secret: &str) -> Result<Self, Error> {
        Token::bearer(secret).map(Self)
    }
}

impl TokenSource for Static {
    type Future = Pending<Result<Token, Error>>;

    fn token(&self) -> Decision<Token, Self::Future> {
        Decision::Now(Ok(self.0.clone()))
    }

    fn reject(&self, _: u64) -> Option<Retry> {
        None
    }
}

/// The time a token has left, from the `expires_in` of the platform's token answers.
///
/// The platform gives a point in time, Unix seconds, where the standard (RFC 6749 §5.1) has a duration in seconds, and its
/// device flow a duration too (coze-platform.md §1.5, §1.7). So the size decides: from 10¹² on it is a time in milliseconds,
/// from 10⁹ on a time in seconds, below that a duration in seconds. Zero if it is over.
#[must_use]
pub fn lifetime(expires_in: i64, now: SystemTime) -> Duration {
    let value = u64::try_from(expires_in).unwrap_or(0);
    let end = match value {
        1_000_000_000_000.. => Duration::from_millis(value),
        1_000_000_000.. => Duration::from_secs(value),
        _ => return Duration::from_secs(value),
    };
    end.saturating_sub(now.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_720_098_000;

    fn at(expires_in: i64) -> Duration {
        lifetime(expires_in, UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn the_size_tells_a_duration_from_a_time() {
        assert_eq!(at(900), Duration::from_secs(900));
        assert_eq!(at(1_720_098_388), Duration::from_secs(388));
        assert_eq!(at(1_720_098_388_500), Duration::from_millis(388_500));
    }

    #[test]
    fn the_edges_belong_to_the_larger_unit() {
        assert_eq!(at(999_999_999), Duration::from_secs(999_999_999));
        assert_eq!(at(1_000_000_000), Duration::ZERO, "a time in 2001");
        assert_eq!(at(999_999_999_999), Duration::from_secs(999_999_999_999 - NOW));
        assert_eq!(at(1_000_000_000_000), Duration::ZERO, "a time in 2001");
    }

    #[test]
    fn what_is_over_or_nonsense_leaves_no_time() {
        for over in [i64::MIN, -1, 0, 1_720_097_999, 1_720_098_000] {
            assert_eq!(at(over), Duration::ZERO, "{over}");
        }
        assert_eq!(lifetime(1_720_098_388, UNIX_EPOCH - Duration::from_secs(1)), Duration::from_secs(1_720_098_388));
    }

    #[test]
    fn a_token_is_visible_ascii_and_never_shown() {
        let long = "x".repeat(100_000);
        for good in ["pat_abc", "a", &long] {
            let token = Token::bearer(good).expect("valid");
            assert!(token.header().is_sensitive());
            assert_eq!(token.header().as_bytes(), format!("Bearer {good}").as_bytes());
        }
        for bad in ["", " ", "pat_abc\n", "pat abc", "Bearer pat_abc", "令牌", "a\u{7f}", "a\r\nx: y"] {
            assert_eq!(Token::bearer(bad).expect_err("malformed").reason(), "token_malformed", "{bad:?}");
        }
        let shown = format!("{:?} {:?}", Token::bearer("pat_abc"), Static::new("pat_abc"));
        assert!(!shown.contains("pat_abc"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_number_is_too_much(expires_in: i64, now: u32) {
            let now = UNIX_EPOCH + Duration::from_secs(now.into());
            prop_assert!(lifetime(expires_in, now) <= Duration::from_millis(i64::MAX as u64));
        }
    }
}
