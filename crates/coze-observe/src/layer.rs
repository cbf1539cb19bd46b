use tower_layer::Layer;

use crate::Observe;

/// Wraps services so that each request is traced, counted and logged once. See the crate docs for an example.
#[must_use = "a layer does nothing until it wraps a service"]
#[derive(Clone, Debug)]
pub struct ObserveLayer<P> {
    policy: P,
}

impl<P> ObserveLayer<P> {
    /// A layer governed by `policy`.
    pub const fn new(policy: P) -> Self {
        Self { policy }
    }
}

impl<S, P: Clone> Layer<S> for ObserveLayer<P> {
    type Service = Observe<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        Observe::new(inner, self.policy.clone())
    }
}
