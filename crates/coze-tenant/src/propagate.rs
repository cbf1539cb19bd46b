use coze_core::{Context, Error, Kind};
use http::{HeaderName, HeaderValue, request::Parts};

use crate::{Policy, TENANT_HEADER};

/// The outbound policy: puts the context's tenant on the request.
///
/// The header is ours alone: what the request already carried there is replaced, or removed where the context has no
/// tenant, so that nobody's forged header travels on in our name.
#[derive(Clone, Debug)]
pub struct Propagate {
    header: HeaderName,
}

impl Propagate {
    /// Carries the tenant in [`TENANT_HEADER`].
    #[must_use]
    pub const fn new() -> Self {
        Self { header: TENANT_HEADER }
    }

    /// Carries the tenant in another header.
    #[must_use]
    pub fn header(self, header: HeaderName) -> Self {
        Self { header }
    }
}

impl Default for Propagate {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Propagate {
    fn apply(&self, parts: &mut Parts, context: &Context) -> Result<(), Error> {
        parts.headers.remove(&self.header);
        if let Some(tenant) = context.tenant.get() {
            let value = HeaderValue::from_str(tenant.as_str())
                .map_err(|e| Error::new(Kind::Internal, "tenant_header").with_source(e))?;
            parts.headers.insert(self.header.clone(), value);
        }
        Ok(())
    }
}
