use std::{borrow::Cow, fmt, sync::Arc};

use coze_core::{Context, TenantId};
use http::request::Parts;

use crate::{Quota, cell::Usage};

/// One limit among those that a request must all pass: its name, whose requests count together, and their quota.
///
/// The name goes into errors, the context and metrics; give each level its own.
#[derive(Clone, Debug)]
pub struct Level {
    pub(crate) name: &'static str,
    pub(crate) quota: Quota,
    pub(crate) max_keys: usize,
    /// The largest quota that a plan may set.
    pub(crate) up_to: Option<Quota>,
    pub(crate) is_reported: bool,
    /// Whether the cost is known only at the end.
    pub(crate) is_settled: bool,
    keys: Keys,
    cost: Option<Function<u32>>,
    class: Option<Function<Class>>,
}

/// What a function says of a request.
#[derive(Clone)]
struct Function<T>(Arc<Says<T>>);

type Says<T> = dyn Fn(&Parts, &Context) -> T + Send + Sync;

impl<T> fmt::Debug for Function<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Function")
    }
}

/// How much a request matters, where a level is nearly used up ([`Level::shed`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Goes first: may use half of the quota.
    Low,
    /// May use nine tenths of the quota.
    Normal,
    /// May use all of it.
    High,
}

/// Whose requests count together.
#[derive(Clone)]
enum Keys {
    Everybody,
    Bot,
    Tenant,
    User,
    Custom(Arc<Extract>),
}

type Extract = dyn for<'a> Fn(&'a Parts, &'a Context) -> Option<Cow<'a, str>> + Send + Sync;

impl Level {
    /// One quota for all requests together.
    #[must_use]
    pub fn global(name: &'static str, quota: impl Into<Quota>) -> Self {
        Self { max_keys: 0, ..Self::new(name, quota, Keys::Everybody) }
    }

    /// A quota for each bot of the context. Does not apply to a request without a bot.
    #[must_use]
    pub fn per_bot(name: &'static str, quota: impl Into<Quota>) -> Self {
        Self::new(name, quota, Keys::Bot)
    }

    /// A quota for each tenant of the context. Does not apply to a request without a tenant.
    #[must_use]
    pub fn per_tenant(name: &'static str, quota: impl Into<Quota>) -> Self {
        Self::new(name, quota, Keys::Tenant)
    }

    /// A quota for each user of the context. Does not apply to a request without a user.
    ///
    /// Callers choose the ids of users, so the same id under two tenants means two users.
    #[must_use]
    pub fn per_user(name: &'static str, quota: impl Into<Quota>) -> Self {
        Self::new(name, quota, Keys::User)
    }

    /// A quota for each key that `key` finds in a request. Does not apply where it finds none: a caller who leaves out what
    /// the key is made of is then not limited here.
    ///
    /// A borrowed key costs no allocation.
    #[must_use]
    pub fn per_key(
        name: &'static str,
        quota: impl Into<Quota>,
        key: impl for<'a> Fn(&'a Parts, &'a Context) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, quota, Keys::Custom(Arc::new(key)))
    }

    /// How many keys have a cell of their own at most, default 65 536; a key takes 48 bytes, or 96 where the rate is above 255 or per
    /// minute (less than one in 100 finds no place before all are taken).
    ///
    /// A key whose quota is full again gives its place to the next key that needs one. While there is none, a key shares its
    /// cells with others, in a sketch of fixed size (128 KiB, or 256): it never gets more than its quota, but may be
    /// refused because of the others. If they took a times a quota in the last second, that happens with a probability of at most
    /// (a / 1024)⁴. At 0 all requests share one quota.
    #[must_use]
    pub fn max_keys(self, max_keys: usize) -> Self {
        Self { max_keys, ..self }
    }

    /// What a request costs, default 1: so many requests of the quota. At 0 the level does not apply to it. A request that costs
    /// more than the whole quota is refused for good, with the reason `cost_above_quota`.
    ///
    /// In `RedisLimits`, a leased level leaves what costs more than a quarter of what fits at once to Redis.
    #[must_use]
    pub fn cost(self, cost: impl Fn(&Parts, &Context) -> u32 + Send + Sync + 'static) -> Self {
        Self { cost: Some(Function(Arc::new(cost))), ..self }
    }

    /// Takes [`Level::cost`] for an estimate, and settles it when the request ends with what it cost in the end, which somebody who
    /// knows notes before: `Context::cost`, such as the tokens of a model, which the end of a stream tells.
    ///
    /// What was noted counts, however the request ended: more than the estimate is taken even if there is not so much, as a debt that
    /// later requests wait for (at most an hour's worth); of less the rest is given back. If nothing was noted, a request whose
    /// response body came to its end cost the estimate, and one that failed or was dropped before nothing.
    ///
    /// All that is booked, estimates when they are taken and differences when they are settled, keeps to the quota: the sum of any t
    /// seconds is at most burst + rate × t, but for debts. What is given back after it has left the window, or drained from the
    /// bucket, is worth nothing: t seconds after the estimate was taken, at most burst - rate × t of it is left there. A key takes 96 bytes. Of a quota of requests at once there is nothing to settle. A key in
    /// the sketch ([`Level::max_keys`]) gets nothing back, as others may have used it, and owes no more than its quota.
    ///
    /// In memory: for `RedisLimits` the estimate is the cost.
    #[must_use]
    pub fn settle(self) -> Self {
        Self { is_settled: true, ..self }
    }

    /// Keeps the last part of the quota for what matters more: when half of it is used (in the bucket or in the window, or of the
    /// requests at once), requests of the class [`Class::Low`] are refused, and when nine tenths are used, those of
    /// [`Class::Normal`]. Of a quota that is too small to have such a part, every class may use the first request. In `RedisLimits`,
    /// a leased level leaves the decision about these two classes to Redis.
    #[must_use]
    pub fn shed(self, class: impl Fn(&Parts, &Context) -> Class + Send + Sync + 'static) -> Self {
        Self { class: Some(Function(Arc::new(class))), ..self }
    }

    /// Refuses nothing: a request that would have been refused here goes on, is counted ([`Limits::reported`](crate::Limits::reported)),
    /// and has the name of the level in its `Context::limit`. It takes nothing of this level. In memory: `RedisLimits` refuses.
    #[must_use]
    pub fn report_only(self) -> Self {
        Self { is_reported: true, ..self }
    }

    /// The largest quota that a [`Plan`](crate::Plan) will set, where it is a rate above 255 and that of the level is not: then a
    /// key takes 96 bytes.
    #[must_use]
    pub fn up_to(self, quota: impl Into<Quota>) -> Self {
        Self { up_to: Some(quota.into()), ..self }
    }

    fn new(name: &'static str, quota: impl Into<Quota>, keys: Keys) -> Self {
        let (quota, max_keys) = (quota.into(), 65_536);
        Self {
            name,
            quota,
            max_keys,
            up_to: None,
            is_reported: false,
            is_settled: false,
            keys,
            cost: None,
            class: None,
        }
    }

    /// Whether a cell can hold what is used of a quota.
    pub(crate) fn has_room_for(&self, quota: &Quota) -> bool {
        self.is_wide() || !is_wide(quota)
    }

    pub(crate) fn is_wide(&self) -> bool {
        self.is_settled || is_wide(&self.quota) || self.up_to.as_ref().is_some_and(is_wide)
    }

    /// What the request costs, and how much must be left of the quota besides.
    #[inline]
    pub(crate) fn cost_and_rest(&self, quota: &Quota, parts: &Parts, context: &Context) -> (u32, u32) {
        let cost = self.cost.as_ref().map_or(1, |cost| cost.0(parts, context));
        let rest = self.class.as_ref().map_or(0, |class| match class.0(parts, context) {
            Class::Low => quota.limit().get().div_ceil(2),
            Class::Normal => quota.limit().get() / 10,
            Class::High => 0,
        });
        (cost, rest)
    }

    /// Whose quota the request takes; `None` where the level does not apply.
    #[inline]
    pub(crate) fn key<'a>(&'a self, parts: &'a Parts, context: &'a Context) -> Option<KeyRef<'a>> {
        let id = match &self.keys {
            Keys::Everybody => Cow::Borrowed(""),
            Keys::Bot => Cow::Borrowed(context.bot.get()?.as_str()),
            Keys::Tenant => Cow::Borrowed(context.tenant.get()?.as_str()),
            Keys::User => {
                return Some(KeyRef { tenant: context.tenant.get(), id: Cow::Borrowed(context.user.get()?.as_str()) });
            }
            Keys::Custom(extract) => extract(parts, context)?,
        };
        Some(KeyRef { tenant: None, id })
    }
}

fn is_wide(quota: &Quota) -> bool {
    matches!(quota, Quota::Rate(rate) if !Usage::is_narrow(rate))
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Everybody => "Everybody",
            Self::Bot => "Bot",
            Self::Tenant => "Tenant",
            Self::User => "User",
            Self::Custom(_) => "Custom",
        })
    }
}

/// A key as found in a request: borrowed, so that looking up a known one copies nothing.
#[derive(Clone, Debug, Hash)]
pub(crate) struct KeyRef<'a> {
    pub(crate) tenant: Option<&'a TenantId>,
    pub(crate) id: Cow<'a, str>,
}

/// A key that is remembered. Fields and their order are those of [`KeyRef`], so that both hash alike.
#[cfg(feature = "redis")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Key {
    tenant: Option<TenantId>,
    id: Box<str>,
}

#[cfg(feature = "redis")]
impl From<&KeyRef<'_>> for Key {
    fn from(key: &KeyRef<'_>) -> Self {
        Self { tenant: key.tenant.cloned(), id: (*key.id).into() }
    }
}

#[cfg(feature = "redis")]
impl indexmap::Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.id == *key.id && self.tenant == key.tenant.as_ref()
    }
}
