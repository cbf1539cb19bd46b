use std::{collections::HashMap, num::NonZeroU32};

use coze_core::{BotId, Context, Error, Kind, TenantId};

use crate::{Level, Quota, level::KeyRef};

/// What levels allow, and to whom they allow something else: as data that can change while requests come
/// ([`Limits::set_plan`](crate::Limits::set_plan)).
///
/// What is said of a key counts before what is said of its bot, that before its tenant, that before all. What a plan does not
/// mention stays as the level has it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    levels: HashMap<String, Quotas>,
}

#[derive(Clone, Debug, Default)]
struct Quotas {
    all: Option<Quota>,
    tenants: HashMap<TenantId, Quota>,
    bots: HashMap<BotId, Quota>,
    keys: HashMap<String, Quota>,
}

impl Quotas {
    fn iter(&self) -> impl Iterator<Item = &Quota> {
        let others = self.tenants.values().chain(self.bots.values()).chain(self.keys.values());
        self.all.iter().chain(others)
    }
}

impl Plan {
    /// A plan that changes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The quota of every key of a level.
    #[must_use]
    pub fn all(mut self, level: &str, quota: impl Into<Quota>) -> Self {
        self.quotas(level).all = Some(quota.into());
        self
    }

    /// The quota of every key of a level in the requests of one tenant: of each of its users, where the level is per user.
    #[must_use]
    pub fn tenant(mut self, level: &str, tenant: TenantId, quota: impl Into<Quota>) -> Self {
        self.quotas(level).tenants.insert(tenant, quota.into());
        self
    }

    /// The quota of every key of a level in the requests to one bot.
    #[must_use]
    pub fn bot(mut self, level: &str, bot: BotId, quota: impl Into<Quota>) -> Self {
        self.quotas(level).bots.insert(bot, quota.into());
        self
    }

    /// The quota of one key of a level: of a route, where the level is per route. The id of a user counts under every tenant.
    #[must_use]
    pub fn key(mut self, level: &str, key: impl Into<String>, quota: impl Into<Quota>) -> Self {
        self.quotas(level).keys.insert(key.into(), quota.into());
        self
    }

    fn quotas(&mut self, level: &str) -> &mut Quotas {
        self.levels.entry(level.to_owned()).or_default()
    }

    pub(crate) fn quota<'a>(&'a self, level: &'a Level, context: &Context, key: &KeyRef<'_>) -> &'a Quota {
        let Some(quotas) = self.levels.get(level.name) else { return &level.quota };
        let of_key = quotas.keys.get(&*key.id);
        let of_bot = || context.bot.get().and_then(|bot| quotas.bots.get(bot));
        let of_tenant = || context.tenant.get().and_then(|tenant| quotas.tenants.get(tenant));
        of_key.or_else(of_bot).or_else(of_tenant).or(quotas.all.as_ref()).unwrap_or(&level.quota)
    }

    /// The lowest of the quotas that keys of a level may have.
    pub(crate) fn lowest(&self, level: &Level) -> NonZeroU32 {
        let quotas = self.levels.get(level.name).into_iter().flat_map(Quotas::iter);
        quotas.map(Quota::limit).fold(level.quota.limit(), NonZeroU32::min)
    }

    /// Whether each level that it speaks of is there, and can hold its quotas.
    pub(crate) fn check<'l>(&self, levels: impl Iterator<Item = &'l Level> + Clone) -> Result<(), Error> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, "plan_invalid").with_message(what));
        for (name, quotas) in &self.levels {
            let Some(level) = levels.clone().find(|level| level.name == name) else {
                return invalid(format!("the plan speaks of a level {name:?}, which is not there"));
            };
            for quota in quotas.iter() {
                if !quota.is_like(&level.quota) {
                    return invalid(format!("the level {name:?} is of another kind than the plan has it"));
                }
                if !level.has_room_for(quota) {
                    return invalid(format!("the plan exceeds what the level {name:?} is built for (Level::up_to)"));
                }
            }
        }
        Ok(())
    }
}
