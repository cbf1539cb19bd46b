use tower_layer::Layer;

use crate::ErrMap;

/// Wraps services so that errors become responses, or responses become errors. See the crate docs for an example.
#[must_use = "a layer does nothing until it wraps a service"]
#[derive(Clone, Debug)]
pub struct ErrMapLayer<P> {
    policy: P,
}

impl<P> ErrMapLayer<P> {
    /// A layer governed by `policy`.
    pub const fn new(policy: P) -> Self {
        Self { policy }
    }
}

impl<S, P: Clone> Layer<S> for ErrMapLayer<P> {
    type Service = ErrMap<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        ErrMap::new(inner, self.policy.clone())
    }
}
