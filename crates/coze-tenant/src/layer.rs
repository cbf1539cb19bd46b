use tower_layer::Layer;

use crate::Tenant;

/// Wraps services so that each request has a tenant before it goes further. See the crate docs for an example.
#[must_use = "a layer does nothing until it wraps a service"]
#[derive(Clone, Debug)]
pub struct TenantLayer<P> {
    policy: P,
}

impl<P> TenantLayer<P> {
    /// A layer governed by `policy`.
    pub const fn new(policy: P) -> Self {
        Self { policy }
    }
}

impl<S, P: Clone> Layer<S> for TenantLayer<P> {
    type Service = Tenant<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        Tenant::new(inner, self.policy.clone())
    }
}
