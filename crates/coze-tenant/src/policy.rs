use coze_core::{Context, Error};
use http::request::Parts;

/// Decides whose request it is.
///
/// On the way in a policy reads the request and notes the tenant on the context; on the way out it reads the context and
/// puts the tenant on the request. A closure is a policy:
///
/// ```
/// use coze_core::{Context, Error, Kind, TenantId};
/// use coze_tenant::TenantLayer;
/// use http::request::Parts;
///
/// let by_host = TenantLayer::new(|parts: &mut Parts, context: &Context| {
///     let host = parts.uri.host().unwrap_or_default();
///     let tenant = TenantId::new(host).map_err(|e| Error::new(Kind::Invalid, "tenant_missing").with_source(e))?;
///     context.tenant.get_or_init(|| tenant);
///     Ok::<_, Error>(())
/// });
/// # let _ = by_host;
/// ```
pub trait Policy {
    /// Looks at one request, before it goes further.
    ///
    /// # Errors
    /// The refusal: the request then does not reach the inner service.
    fn apply(&self, parts: &mut Parts, context: &Context) -> Result<(), Error>;
}

impl<F> Policy for F
where
    F: Fn(&mut Parts, &Context) -> Result<(), Error>,
{
    fn apply(&self, parts: &mut Parts, context: &Context) -> Result<(), Error> {
        self(parts, context)
    }
}
