use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use crate::redact;

/// Any error: what every layer's service fails with.
pub type BoxError = Box<dyn StdError + Send + Sync>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $reason:literal, $retry:ident;)*) => {
        /// What a caller can do about a failure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Every kind, for tables and for tests that cover them all.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// The kind in snake case: a stable name for logs, metric labels and machines.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $reason,)* }
            }

            /// What [`Error::retry`] answers unless told otherwise.
            #[must_use]
            pub const fn retry(self) -> Retry {
                match self { $(Self::$kind => Retry::$retry,)* }
            }
        }
    };
}

kinds! {
    /// The request is wrong: correct it.
    Invalid = "invalid", Never;
    /// No valid credentials: present others.
    Unauthenticated = "unauthenticated", Never;
    /// Valid credentials that may not do this: ask for permission.
    PermissionDenied = "permission_denied", Never;
    /// There is no such thing: check the id.
    NotFound = "not_found", Never;
    /// It collides with something that is under way or already done: wait for that, or choose another target.
    Conflict = "conflict", Never;
    /// Too many bytes: send fewer.
    TooLarge = "too_large", Never;
    /// The content is refused: say it differently.
    Content = "content", Never;
    /// The account is out of money: pay.
    Billing = "billing", Never;
    /// Too many requests at this moment: slow down.
    RateLimited = "rate_limited", Safe;
    /// The allowance of a longer period is used up: wait for the next period.
    Quota = "quota", Never;
    /// The other side has more to do than it can: come back in a few seconds.
    Overloaded = "overloaded", Safe;
    /// Something must be set up first, such as publishing the bot: configure it.
    Precondition = "precondition", Never;
    /// What we depend on failed or answered nonsense: try again, then report it.
    Upstream = "upstream", IfIdempotent;
    /// Not reachable or not able right now: try again.
    Unavailable = "unavailable", IfIdempotent;
    /// No answer in time: try again if a second run does no harm.
    Timeout = "timeout", IfIdempotent;
    /// The caller went away: nobody is left to tell.
    Cancelled = "cancelled", Never;
    /// Our own fault: report it.
    Internal = "internal", Never;
}

/// May the same request be sent again after this error?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// No: the same request would fail the same way.
    Never,
    /// It may help, but the request may have run: only if running it twice does no harm.
    IfIdempotent,
    /// It may help, and the request certainly did not run.
    Safe,
}

/// The failure every layer speaks of: what to do about it ([`Kind`]), why it happened ([`Error::reason`]), and what the
/// platform said ([`Platform`]).
///
/// It is one pointer wide. Its text never holds what [`redact`] recognises as a credential, and `Display` never shows
/// the source: that is for [`StdError::source`] and the log.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    reason: &'static str,
    message: Cow<'static, str>,
    retry: Retry,
    retry_after: Option<Duration>,
    platform: Option<Platform>,
    is_failed_chat: bool,
    limit: Option<Limit>,
    scope: Option<Box<str>>,
    source: Option<BoxError>,
}

/// The platform's own words about a failure, kept as they came (less credentials).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// The `code` of the envelope, never 0.
    pub code: i64,
    /// The `msg` of the envelope.
    pub msg: String,
    /// The platform's log id, for its support.
    pub logid: Option<String>,
}

/// The limit that refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The limit's name, such as `app`.
    pub name: &'static str,
    /// Requests allowed per window, or at once.
    pub quota: u32,
    /// Requests that are left.
    pub remaining: u32,
    /// Length of the window; zero for a limit on concurrency.
    pub window: Duration,
    /// Time until the full quota is back.
    pub reset: Duration,
}

impl Limit {
    /// The name of the limit that the platform tells of, as opposed to our own.
    pub const PLATFORM: &str = "platform";
}

impl Error {
    /// An error of `kind`. The `reason` is a stable snake-case name of the cause, for logs, labels and machines.
    #[must_use]
    pub fn new(kind: Kind, reason: &'static str) -> Self {
        Self(Box::new(Inner {
            kind,
            reason,
            message: Cow::Borrowed(reason),
            retry: kind.retry(),
            retry_after: None,
            platform: None,
            is_failed_chat: false,
            limit: None,
            scope: None,
            source: None,
        }))
    }

    /// Says for people what happened, without a full stop. The caller of our service may read it: no internals.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.0.message = match message.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text),
            Cow::Owned(text) => Cow::Owned(redact(&text).into_owned()),
        };
        self
    }

    /// Says whether sending again is allowed, where the default of the kind is wrong.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Says when another try is worth it.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// Keeps what the platform said.
    #[must_use]
    pub fn with_platform(mut self, platform: Platform) -> Self {
        let msg = redact(&platform.msg).into_owned();
        self.0.platform = Some(Platform { msg, ..platform });
        self
    }

    /// Says that the call itself was answered, and this is how the chat that it is about ended.
    #[must_use]
    pub fn with_failed_chat(mut self) -> Self {
        self.0.is_failed_chat = true;
        self
    }

    /// Names the limit that refused.
    #[must_use]
    pub fn with_limit(mut self, limit: Limit) -> Self {
        self.0.limit = Some(limit);
        self
    }

    /// Names the scopes that the request needs, with a space in between (RFC 6749 §3.3).
    #[must_use]
    pub fn with_scope(mut self, scope: impl Into<Box<str>>) -> Self {
        self.0.scope = Some(scope.into());
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The stable name of the cause.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.0.reason
    }

    /// What happened, for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// May the same request be sent again?
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// When another try is worth it, counted from the failure.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What the platform said.
    #[must_use]
    pub fn platform(&self) -> Option<&Platform> {
        self.0.platform.as_ref()
    }

    /// Whether a chat failed, and not the call that tells so, such as a look at it: what the platform said is about the call that
    /// began the chat.
    #[must_use]
    pub fn is_failed_chat(&self) -> bool {
        self.0.is_failed_chat
    }

    /// The limit that refused.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        self.0.limit
    }

    /// The scopes that the request needs.
    #[must_use]
    pub fn scope(&self) -> Option<&str> {
        self.0.scope.as_deref()
    }

    /// The first `Error` in a chain of sources, `error` itself included.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = self.0.source.as_ref().map(|e| redact(&e.to_string()).into_owned());
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("reason", &self.0.reason)
            .field("message", &self.0.message)
            .field("retry", &self.0.retry)
            .field("retry_after", &self.0.retry_after)
            .field("platform", &self.0.platform)
            .field("is_failed_chat", &self.0.is_failed_chat)
            .field("limit", &self.0.limit)
            .field("scope", &self.0.scope)
            .field("source", &source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_pointer_wide() {
        assert_eq!(size_of::<Result<(), Error>>(), size_of::<usize>());
    }

    #[test]
    fn an_error_is_found_behind_others() {
        #[derive(Debug)]
        struct Outer(Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("outer")
            }
        }
        impl StdError for Outer {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&self.0)
            }
        }
        let outer: BoxError = Outer(Error::new(Kind::Timeout, "no_answer")).into();
        assert_eq!(Error::find(&*outer).map(Error::kind), Some(Kind::Timeout));
        assert!(Error::find(&fmt::Error).is_none());
    }

    #[test]
    fn no_text_of_an_error_shows_a_credential() {
        let token = "pat_0123456789abcdef";
        let error = Error::new(Kind::Upstream, "x")
            .with_message(format!("token {token}"))
            .with_platform(Platform { code: 4100, msg: format!("bad {token}"), logid: None })
            .with_source(format!("header {token}"));
        assert!(!format!("{error} {error:?}").contains(token));
    }

    #[test]
    fn the_name_of_each_kind_is_unique() {
        let names: std::collections::HashSet<_> = Kind::ALL.iter().map(|k| k.as_str()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
