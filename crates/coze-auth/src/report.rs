use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use coze_core::{Context, Error};

use crate::refused::Refused;

/// How many requests went through that would have been refused, where that is all that happens to them; else nothing.
/// Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Report(Option<Arc<AtomicU64>>);

impl Report {
    /// Refuses nobody.
    pub(crate) fn only() -> Self {
        Self(Some(Arc::default()))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Notes a refusal, and lets the request through where it is only reported.
    pub(crate) fn settle(&self, context: &Context, verdict: Result<(), Refused>) -> Result<(), Error> {
        match (verdict, &self.0) {
            (Ok(()), _) => Ok(()),
            (Err(refused), None) => Err(refused.note(context)),
            (Err(refused), Some(count)) => {
                count.fetch_add(1, Ordering::Relaxed);
                refused.report(context);
                Ok(())
            }
        }
    }
}
