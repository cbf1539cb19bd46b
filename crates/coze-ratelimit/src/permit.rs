use std::sync::Arc;

use smallvec::SmallVec;

use crate::cells::Cells;

/// What an admitted request holds of the levels that limit concurrency. Dropping it gives everything back.
#[derive(Debug, Default)]
pub struct Permit {
    held: SmallVec<[InFlight; 2]>,
    /// The level that would have refused, if it did more than report.
    pub(crate) reported: Option<&'static str>,
}

impl Permit {
    pub(crate) fn hold(&mut self, request: InFlight) {
        self.held.push(request);
    }
}

/// A request in flight, counted in the cell of its key until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) cells: Arc<Cells>,
    pub(crate) hash: u64,
    pub(crate) requests: u32,
    pub(crate) is_shared: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.cells.end(self.hash, self.requests, self.is_shared);
    }
}
