use tower_layer::Layer;

use crate::RateLimit;

/// Wraps services so that they get no more than is allowed. See the crate docs for an example.
///
/// All services it makes share the policy's state: the limit holds for them together.
#[must_use = "a layer does nothing until it wraps a service"]
#[derive(Clone, Debug)]
pub struct RateLimitLayer<P> {
    policy: P,
}

impl<P> RateLimitLayer<P> {
    /// A layer governed by `policy`.
    pub const fn new(policy: P) -> Self {
        Self { policy }
    }
}

impl<S, P: Clone> Layer<S> for RateLimitLayer<P> {
    type Service = RateLimit<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, self.policy.clone())
    }
}
