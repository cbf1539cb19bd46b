use std::sync::Arc;

use smallvec::SmallVec;

/// What an admitted request holds of the levels that limit concurrency. Dropping it gives everything back.
#[derive(Debug, Default)]
pub struct Permit {
    held: SmallVec<[InFlight; 2]>,
}

impl Permit {
    pub(crate) fn hold(&mut self, request: InFlight) {
        self.held.push(request);
    }
}

/// The requests in flight of one key: the cell has one, each request has a clone, and the number of clones is the count.
/// So a request is given back exactly once, without a lock, however it ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight(Arc<()>);

impl InFlight {
    /// Clones are made under the lock of the cell, so there: at least the requests that are in flight.
    pub(crate) fn count(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}
