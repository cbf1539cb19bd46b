use std::{borrow::Cow, fmt, num::NonZeroU32, sync::Arc, time::Duration};

use coze_core::Context;
use http::{Method, request::Parts};

/// How many calls the other side takes in any stretch of a second or a minute.
///
/// A [`Pace`](crate::Pace) sends nine tenths of them evenly, and up to nine hundredths of those of a minute in a burst. What is
/// left is for the way: as many as are allowed arrive in each stretch even where calls take up to 95 ms longer than others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceRate {
    pub(crate) calls: NonZeroU32,
    pub(crate) per: Duration,
}

impl PaceRate {
    /// So many calls a second.
    #[must_use]
    pub const fn per_second(calls: NonZeroU32) -> Self {
        Self { calls, per: Duration::from_secs(1) }
    }

    /// So many calls a minute.
    #[must_use]
    pub const fn per_minute(calls: NonZeroU32) -> Self {
        Self { calls, per: Duration::from_secs(60) }
    }

    /// The part that each of so many nodes has, at least one call.
    #[must_use]
    pub const fn shared_by(self, nodes: NonZeroU32) -> Self {
        match NonZeroU32::new(self.calls.get() / nodes.get()) {
            Some(calls) => Self { calls, ..self },
            None => Self { calls: NonZeroU32::MIN, ..self },
        }
    }
}

/// What calls are paced together: its name, which calls those are, their rate, and the refusals that are about it.
///
/// The name goes into errors, events and the gauge; give each level its own.
#[derive(Clone)]
pub struct PaceLevel {
    pub(crate) name: &'static str,
    pub(crate) rate: Option<PaceRate>,
    pub(crate) max_keys: usize,
    routes: &'static [&'static str],
    codes: &'static [i64],
    key: Option<Arc<Extract>>,
}

type Extract = dyn for<'a> Fn(&'a Parts, &'a Context) -> Option<Cow<'a, str>> + Send + Sync;

impl PaceLevel {
    /// The codes that a level hears unless told otherwise: the platform's refusals because of too many calls, and the HTTP
    /// status 429, which stands for all others of the kind (coze-platform.md §3, §4).
    pub const CODES: &[i64] = &[429, 4008, 4009, 4020, 4028, 702_093_018, 702_112_103];

    /// All calls together, at this rate; `None` is as fast as they come, until a refusal is heard.
    #[must_use]
    pub fn new(name: &'static str, rate: impl Into<Option<PaceRate>>) -> Self {
        Self { name, rate: rate.into(), max_keys: 1024, routes: &[], codes: Self::CODES, key: None }
    }

    /// Each bot of the context by itself. A call without a bot is not of this level.
    #[must_use]
    pub fn per_bot(self) -> Self {
        self.per_key(|_, context| Some(context.bot.get()?.as_str().into()))
    }

    /// Each tenant of the context by itself, where each has an account of its own on the platform. A call without a tenant is not
    /// of this level.
    #[must_use]
    pub fn per_tenant(self) -> Self {
        self.per_key(|_, context| Some(context.tenant.get()?.as_str().into()))
    }

    /// Each key that this finds by itself. A call in which it finds none is not of this level.
    #[must_use]
    pub fn per_key(
        self,
        key: impl for<'a> Fn(&'a Parts, &'a Context) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    ) -> Self {
        Self { key: Some(Arc::new(key)), ..self }
    }

    /// Only calls to these, such as `POST /v3/chat`; a segment that begins with a colon stands for any. Default: all calls.
    #[must_use]
    pub fn routes(self, routes: &'static [&'static str]) -> Self {
        Self { routes, ..self }
    }

    /// The codes that are about this level, unless one before it hears them too. Default [`PaceLevel::CODES`].
    #[must_use]
    pub fn hears(self, codes: &'static [i64]) -> Self {
        Self { codes, ..self }
    }

    /// How many keys have a pace of their own at most, default 1024; further ones share one. A key that was not used lately, and
    /// is not slowed down, gives its place to another within a second.
    #[must_use]
    pub fn max_keys(self, max_keys: usize) -> Self {
        Self { max_keys, ..self }
    }

    /// Whose pace the call is of; `None` where the level does not apply.
    pub(crate) fn key<'a>(&'a self, parts: &'a Parts, context: &'a Context) -> Option<Cow<'a, str>> {
        if !self.routes.is_empty() && !self.routes.iter().any(|route| matches(route, &parts.method, parts.uri.path())) {
            return None;
        }
        self.key.as_ref().map_or(Some(Cow::Borrowed("")), |key| key(parts, context))
    }

    pub(crate) fn is_about(&self, code: i64) -> bool {
        self.codes.contains(&code)
    }
}

impl fmt::Debug for PaceLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, rate, max_keys, routes, codes, .. } = self;
        f.debug_struct("PaceLevel")
            .field("name", name)
            .field("rate", rate)
            .field("max_keys", max_keys)
            .field("routes", routes)
            .field("codes", codes)
            .finish_non_exhaustive()
    }
}

fn matches(route: &str, method: &Method, path: &str) -> bool {
    let Some((wanted, pattern)) = route.split_once(' ') else { return false };
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    wanted == method.as_str()
        && loop {
            match (pattern.next(), path.next()) {
                (None, None) => break true,
                (Some(place), Some(text)) if place == text || place.starts_with(':') && !text.is_empty() => {}
                _ => break false,
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_never_nothing() {
        let n = |n| NonZeroU32::new(n).expect("not zero");
        assert_eq!(PaceRate::per_second(n(20)).shared_by(n(3)), PaceRate::per_second(n(6)));
        assert_eq!(PaceRate::per_minute(n(2)).shared_by(n(3)), PaceRate::per_minute(n(1)));
    }

    #[test]
    fn a_route_is_a_method_and_a_path_with_places() {
        let history = "GET /v1/workflows/:workflow_id/run_histories/:execute_id";
        assert!(matches("POST /v3/chat", &Method::POST, "/v3/chat"));
        assert!(matches(history, &Method::GET, "/v1/workflows/1/run_histories/2"));
        for (route, method, path) in [
            ("POST /v3/chat", Method::GET, "/v3/chat"),
            ("POST /v3/chat", Method::POST, "/v3/chat/cancel"),
            ("POST /v3/chat", Method::POST, "/v3"),
            ("/v3/chat", Method::POST, "/v3/chat"),
            (history, Method::GET, "/v1/workflows/1/run_histories/"),
        ] {
            assert!(!matches(route, &method, path), "{route} {method} {path}");
        }
    }
}
