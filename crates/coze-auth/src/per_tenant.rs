use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coze_core::{Context, Error, Kind, TenantId};
use tokio::time::Instant;

use crate::{TokenSource, TokenSources};

/// A source of its own for each tenant, made when the tenant's first request comes: no token ever serves another tenant.
///
/// The tenant is that of the request's context; a request without one is refused with `tenant_missing`, as there is no source
/// that would be right. At most [`PerTenant::limit`] sources are kept. One that was not used for [`PerTenant::idle`] is dropped
/// as new ones come, and where that is not enough, the one that was unused for longest; its tenant's next request makes it
/// anew. Clones share the sources.
///
/// ```
/// use coze_auth::{Bearer, PerTenant, Renewing, Token};
/// use coze_core::{Error, TenantId};
///
/// let sources = PerTenant::new(|tenant: &TenantId| {
///     let session = tenant.to_string();
///     Ok(Renewing::new(move || ask_the_token_endpoint(session.clone())))
/// });
/// let policy = Bearer::new(sources.limit(10_000));
/// # async fn ask_the_token_endpoint(_: String) -> Result<Token, Error> { Token::bearer("czs_token") }
/// # let _ = policy;
/// ```
pub struct PerTenant<F, T> {
    shared: Arc<Shared<F, T>>,
    limit: usize,
    idle: Duration,
}

struct Shared<F, T> {
    make: F,
    began: Instant,
    /// Written only when a tenant is new.
    sources: RwLock<Sources<T>>,
}

struct Sources<T> {
    by_tenant: HashMap<TenantId, Entry<T>>,
    /// When idle ones were last looked for, in milliseconds since the beginning.
    swept: u64,
}

struct Entry<T> {
    source: T,
    /// When it was last used, in milliseconds since the beginning.
    used: AtomicU64,
}

impl<F, T> PerTenant<F, T>
where
    F: Fn(&TenantId) -> Result<T, Error>,
{
    /// Makes sources with `make`, which should not wait. An error of it is the request's.
    #[must_use]
    pub fn new(make: F) -> Self {
        let sources = RwLock::new(Sources { by_tenant: HashMap::new(), swept: 0 });
        let shared = Shared { make, began: Instant::now(), sources };
        Self { shared: Arc::new(shared), limit: 10_000, idle: Duration::from_secs(3600) }
    }

    /// The most sources that are kept, at least one; 10 000 unless set.
    #[must_use]
    pub fn limit(self, limit: usize) -> Self {
        Self { limit: limit.max(1), ..self }
    }

    /// How long a source is kept that nobody uses; an hour unless set.
    #[must_use]
    pub fn idle(self, idle: Duration) -> Self {
        Self { idle, ..self }
    }
}

impl<F, T> TokenSources for PerTenant<F, T>
where
    F: Fn(&TenantId) -> Result<T, Error>,
    T: TokenSource + Clone,
{
    type Source = T;

    fn source(&self, context: Option<&Context>) -> Result<T, Error> {
        let Some(tenant) = context.and_then(|context| context.tenant.get()) else {
            return Err(Error::new(Kind::Internal, "tenant_missing")
                .with_message("the request names no tenant whose token it could bear"));
        };
        let now = u64::try_from(self.shared.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(entry) = self.shared.sources.read().expect(WHOLE).by_tenant.get(tenant) {
            entry.used.fetch_max(now, Ordering::Relaxed);
            return Ok(entry.source.clone());
        }
        // Not under the lock, as it is the user's. Whoever comes second takes the first one's.
        let made = (self.shared.make)(tenant)?;
        let mut sources = self.shared.sources.write().expect(WHOLE);
        if !sources.by_tenant.contains_key(tenant) {
            sources.make_room(self.limit, u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX), now);
        }
        let entry = sources.by_tenant.entry(tenant.clone());
        Ok(entry.or_insert_with(|| Entry { source: made, used: now.into() }).source.clone())
    }
}

const WHOLE: &str = "nobody panics while holding the sources";

impl<T> Sources<T> {
    /// Drops what is idle, now and then, and in any case what is needed for one more.
    fn make_room(&mut self, limit: usize, idle: u64, now: u64) {
        if self.by_tenant.len() >= limit || now.saturating_sub(self.swept) >= idle / 8 {
            self.swept = now;
            self.by_tenant.retain(|_, entry| now.saturating_sub(*entry.used.get_mut()) < idle);
        }
        while self.by_tenant.len() >= limit {
            let unused = self.by_tenant.iter().min_by_key(|(_, entry)| entry.used.load(Ordering::Relaxed));
            let Some(tenant) = unused.map(|(tenant, _)| tenant.clone()) else { return };
            self.by_tenant.remove(&tenant);
        }
    }
}

impl<F, T> Clone for PerTenant<F, T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), limit: self.limit, idle: self.idle }
    }
}

impl<F, T> fmt::Debug for PerTenant<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerTenant").field("limit", &self.limit).field("idle", &self.idle).finish_non_exhaustive()
    }
}
