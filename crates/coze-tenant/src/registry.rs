use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use coze_core::{BotId, Context, Error, Kind, TenantId};
use http::{HeaderMap, HeaderName, request::Parts};

use crate::{Policy, TENANT_HEADER};

/// The inbound policy: the tenant of the authenticated bot, or the one the caller names, if it is a configured one.
///
/// A bot that belongs to a tenant decides: the header may be absent then, and must not say otherwise, because no
/// signature covers it. Clones share the tables.
#[derive(Clone, Debug)]
pub struct Registry {
    header: HeaderName,
    tables: Arc<Tables>,
}

#[derive(Clone, Debug, Default)]
struct Tables {
    tenants: HashSet<TenantId>,
    bots: HashMap<BotId, TenantId>,
}

impl Registry {
    /// Accepts these tenants, named in [`TENANT_HEADER`].
    #[must_use]
    pub fn new(tenants: impl IntoIterator<Item = TenantId>) -> Self {
        let tables = Tables { tenants: tenants.into_iter().collect(), bots: HashMap::new() };
        Self { header: TENANT_HEADER, tables: Arc::new(tables) }
    }

    /// Reads the tenant from another header.
    #[must_use]
    pub fn header(self, header: HeaderName) -> Self {
        Self { header, ..self }
    }

    /// Says that `bot` belongs to `tenant`, which is accepted from now on.
    #[must_use]
    pub fn bot(mut self, bot: BotId, tenant: TenantId) -> Self {
        let tables = Arc::make_mut(&mut self.tables);
        tables.tenants.insert(tenant.clone());
        tables.bots.insert(bot, tenant);
        self
    }

    /// The configured tenant the caller names. Taken from our table, so that no text is copied.
    fn named(&self, headers: &HeaderMap) -> Result<Option<&TenantId>, Error> {
        let mut values = headers.get_all(&self.header).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Error::new(Kind::Invalid, "tenant_ambiguous")
                .with_message(format!("the header {} is given more than once", self.header)));
        }
        match value.to_str().ok().and_then(|name| self.tables.tenants.get(name)) {
            Some(tenant) => Ok(Some(tenant)),
            None => Err(Error::new(Kind::PermissionDenied, "tenant_unknown")
                .with_message(format!("the tenant in the header {} is not known here", self.header))),
        }
    }
}

impl Policy for Registry {
    /// # Errors
    /// `tenant_missing` (nobody says it) and `tenant_ambiguous` (the header twice) are [`Kind::Invalid`]; `tenant_unknown`
    /// and `tenant_mismatch` (the header contradicts the bot) are [`Kind::PermissionDenied`].
    fn apply(&self, parts: &mut Parts, context: &Context) -> Result<(), Error> {
        let named = self.named(&parts.headers)?;
        let owner = context.tenant.get().or_else(|| self.tables.bots.get(context.bot.get()?));
        let tenant = match (owner, named) {
            (Some(owner), Some(named)) if owner != named => {
                return Err(Error::new(Kind::PermissionDenied, "tenant_mismatch")
                    .with_message(format!("the tenant in the header {} is not the caller's", self.header)));
            }
            (Some(tenant), _) | (None, Some(tenant)) => tenant.clone(),
            (None, None) => {
                return Err(Error::new(Kind::Invalid, "tenant_missing")
                    .with_message(format!("the header {} is missing", self.header)));
            }
        };
        context.tenant.get_or_init(|| tenant);
        Ok(())
    }
}
