use std::{
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock, atomic::AtomicU32},
    time::{Duration, Instant},
};

use http::Extensions;

use crate::{BotId, Kind, Refusal, RequestId, TenantId, UserId};

/// What the layers know of one request: a cheap handle to slots that are written once.
///
/// The outermost layer inserts it into the request's extensions, the others find it there ([`Context::of`]).
/// Clones share the slots, so an outer layer that keeps a clone reads after the answer what inner layers noted.
/// One extension for all layers, because every further one costs an allocation per request and a deep copy per clone.
#[derive(Clone, Debug, Default)]
pub struct Context(Arc<Slots>);

/// The slots of a [`Context`]. The first value written to a slot stays.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Slots {
    /// The request's id, from the caller or our own.
    pub request_id: OnceLock<RequestId>,
    /// When the request arrived.
    pub start: OnceLock<Instant>,
    /// When the answer is of no more use: layers that wait or repeat do not go past it.
    pub deadline: OnceLock<Instant>,
    /// Who was authenticated.
    pub principal: OnceLock<Principal>,
    /// Whose request it is.
    pub tenant: OnceLock<TenantId>,
    /// The bot it is for.
    pub bot: OnceLock<BotId>,
    /// The person it comes from.
    pub user: OnceLock<UserId>,
    /// Why authentication or authorisation refused the request.
    pub refusal: OnceLock<Refusal>,
    /// Why a policy that only reports would have refused it.
    pub reported: OnceLock<Refusal>,
    /// How long the accepted token had left to its expiry; zero within the leeway for clocks.
    pub token_life: OnceLock<Duration>,
    /// How the limiter decided: `ok`, or the name of the limit that refused.
    pub limit: OnceLock<&'static str>,
    /// What the request cost in the end, for limits that settle it: such as the tokens of a model, known at the end of its answer.
    pub cost: OnceLock<u32>,
    /// Why the request failed, where a layer turned an error into a response.
    pub failure: OnceLock<(Kind, &'static str)>,
    /// How often the request was sent, retries included.
    pub attempts: AtomicU32,
}

impl Context {
    /// A context with empty slots.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The request's context; inserts an empty one if there is none yet.
    pub fn of(extensions: &mut Extensions) -> Self {
        extensions.get().cloned().unwrap_or_else(|| Self::insert(extensions))
    }

    /// Gives a request that has no context an empty one. For whoever looked, and needs no handle of its own of one that is there:
    /// a clone costs two atomic exchanges.
    #[cold]
    pub fn insert(extensions: &mut Extensions) -> Self {
        let context = Self::new();
        extensions.insert(context.clone());
        context
    }

    /// A context for a call made on behalf of this request: the same request id, deadline, tenant, bot and user, nothing
    /// noted about the outcome yet.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(Arc::new(Slots {
            request_id: self.request_id.clone(),
            deadline: self.deadline.clone(),
            tenant: self.tenant.clone(),
            bot: self.bot.clone(),
            user: self.user.clone(),
            ..Slots::default()
        }))
    }

    /// How authentication ended: the reason of the refusal, or `ok` where somebody was authenticated.
    #[must_use]
    pub fn auth(&self) -> Option<&'static str> {
        let refused = self.refusal.get().map(|refusal| refusal.reason);
        refused.or_else(|| self.principal.get().map(|_| "ok"))
    }
}

impl Deref for Context {
    type Target = Slots;

    fn deref(&self) -> &Slots {
        &self.0
    }
}

/// Who was authenticated, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Principal {
    /// The scheme that vouches for it, such as `webhook` or `callback`.
    pub scheme: &'static str,
    /// The authenticated party in the scheme's own terms: a bot id, an app id, a subject.
    pub subject: Arc<str>,
    /// What it may do, in the scheme's own terms: names with a space in between, as in an OAuth `scope` (RFC 6749 §3.3).
    pub scopes: Scopes,
}

/// Names of scopes with a space in between; none is the empty text. Cloning none is free, where an `Arc` of an empty text is one
/// counter for all threads.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Scopes(Option<Arc<str>>);

impl Deref for Scopes {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Principal {
    /// A principal authenticated by `scheme`, without scopes.
    #[must_use]
    pub fn new(scheme: &'static str, subject: impl Into<Arc<str>>) -> Self {
        Self { scheme, subject: subject.into(), scopes: Scopes::default() }
    }

    /// The same principal with these scopes. One that is empty or has white space in it is not a scope, and never found.
    #[must_use]
    pub fn with_scopes<'s>(self, scopes: impl IntoIterator<Item = &'s str>) -> Self {
        let scopes: Vec<_> = scopes.into_iter().filter(|scope| is_scope(scope)).collect();
        Self { scopes: Scopes((!scopes.is_empty()).then(|| scopes.join(" ").into())), ..self }
    }

    /// Has it this scope, letter by letter?
    #[must_use]
    pub fn has_scope(&self, scope: &str) -> bool {
        is_scope(scope) && self.scopes.split(' ').any(|own| own == scope)
    }
}

fn is_scope(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    fn tenant(text: &str) -> TenantId {
        TenantId::new(text).expect("valid")
    }

    #[test]
    fn the_first_layer_inserts_and_the_others_share() {
        let mut extensions = Extensions::new();
        let outer = Context::of(&mut extensions);
        let inner = Context::of(&mut extensions.clone());
        inner.tenant.set(tenant("t1")).expect("empty");
        inner.attempts.fetch_add(1, Ordering::Relaxed);
        assert_eq!(outer.tenant.get(), Some(&tenant("t1")));
        assert_eq!(outer.attempts.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_slot_keeps_its_first_value() {
        let context = Context::new();
        context.tenant.set(tenant("t1")).expect("empty");
        assert!(context.tenant.set(tenant("t2")).is_err());
        assert_eq!(context.tenant.get(), Some(&tenant("t1")));
    }

    #[test]
    fn a_principal_has_the_scopes_it_was_given_and_no_part_of_one() {
        let bare = Principal::new("jwt", "a");
        assert!(!bare.has_scope("") && !bare.has_scope("read"));
        let scoped = bare.clone().with_scopes(["chat:read", "", "a b", "chat"]);
        assert_eq!(&*scoped.scopes, "chat:read chat");
        assert!(scoped.has_scope("chat:read") && scoped.has_scope("chat"));
        for other in ["", " ", "chat:", "read", "chat:read chat", "Chat", "a", "b"] {
            assert!(!scoped.has_scope(other), "{other:?}");
        }
        assert_eq!(scoped.with_scopes([]), bare);
    }

    #[test]
    fn who_is_authenticated_can_be_refused_all_the_same() {
        let context = Context::new();
        assert_eq!(context.auth(), None);
        context.principal.set(Principal::new("jwt", "a")).expect("empty");
        assert_eq!(context.auth(), Some("ok"));
        let refusal = Refusal { kind: Kind::PermissionDenied, reason: "missing_scope", client: None };
        context.refusal.set(refusal).expect("empty");
        assert_eq!(context.auth(), Some("missing_scope"));
    }

    #[test]
    fn a_child_carries_identity_and_forgets_outcomes() {
        let parent = Context::new();
        parent.tenant.set(tenant("t1")).expect("empty");
        parent.principal.set(Principal::new("webhook", "b1")).expect("empty");
        parent.attempts.fetch_add(1, Ordering::Relaxed);
        let child = parent.child();
        assert_eq!(child.tenant.get(), Some(&tenant("t1")));
        assert_eq!((parent.auth(), child.auth()), (Some("ok"), None));
        assert_eq!(child.attempts.load(Ordering::Relaxed), 0);
    }
}
