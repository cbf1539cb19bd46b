use tower_layer::Layer;

use crate::{RateLimit, Refuse};

/// Wraps services so that they get no more than is allowed. See the crate docs for an example.
///
/// All services it makes share the policy's state: the limit holds for them together.
#[must_use = "a layer does nothing until it wraps a service"]
#[derive(Clone, Debug)]
pub struct RateLimitLayer<P, D = Refuse> {
    policy: P,
    degrade: D,
}

impl<P> RateLimitLayer<P> {
    /// A layer governed by `policy`.
    pub const fn new(policy: P) -> Self {
        Self { policy, degrade: Refuse }
    }
}

impl<P, D> RateLimitLayer<P, D> {
    /// What refused requests get instead; unless set nothing, but the refusal. See [`Degrade`](crate::Degrade).
    pub fn degrade<E>(self, degrade: E) -> RateLimitLayer<P, E> {
        RateLimitLayer { policy: self.policy, degrade }
    }
}

impl<S, P: Clone, D: Clone> Layer<S> for RateLimitLayer<P, D> {
    type Service = RateLimit<S, P, D>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, policy: self.policy.clone(), degrade: self.degrade.clone() }
    }
}
