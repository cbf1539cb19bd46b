use tower_layer::Layer;

use crate::Auth;

/// Wraps services so that each request is authenticated before it goes further. See the crate docs for examples.
#[must_use = "a layer does nothing until it wraps a service"]
#[derive(Clone, Debug)]
pub struct AuthLayer<P> {
    policy: P,
}

impl<P> AuthLayer<P> {
    /// A layer governed by `policy`.
    pub const fn new(policy: P) -> Self {
        Self { policy }
    }
}

impl<S, P: Clone> Layer<S> for AuthLayer<P> {
    type Service = Auth<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        Auth::new(inner, self.policy.clone())
    }
}
