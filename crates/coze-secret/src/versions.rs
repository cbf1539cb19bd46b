use std::{fmt, sync::Arc};

use coze_core::{Error, Kind, Retry};

/// The versions of a secret at one moment, and how its source fares.
pub struct Versions<T> {
    pub(crate) current: Option<Arc<T>>,
    pub(crate) previous: Option<Arc<T>>,
    pub(crate) number: u64,
    pub(crate) health: Health,
}

/// How the source of a secret fares: for readiness checks and alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It answered when it was last asked.
    Good,
    /// It fails, for this reason, a stable name in snake case. The last version serves.
    Stale(&'static str),
    /// The last version's lease is over and there is no other one, for this reason. Nothing serves.
    Expired(&'static str),
}

impl<T> Versions<T> {
    /// The version to use.
    ///
    /// # Errors
    /// `secret_expired`, [`Kind::Unavailable`]: its lease is over and its source gives no other one.
    pub fn current(&self) -> Result<&Arc<T>, Error> {
        self.current.as_ref().ok_or_else(|| {
            Error::new(Kind::Unavailable, "secret_expired")
                .with_message("the lease of a secret is over and there is no other one yet")
                .with_retry(Retry::Safe)
        })
    }

    /// The version before, while it is still accepted.
    #[must_use]
    pub fn previous(&self) -> Option<&Arc<T>> {
        self.previous.as_ref()
    }

    /// All that is accepted, the current version first: none, one or two.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.current.iter().chain(&self.previous)
    }

    /// Counts the versions of this handle, from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How the source fares.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }
}

impl<T> Clone for Versions<T> {
    fn clone(&self) -> Self {
        let Self { current, previous, number, health } = self;
        Self { current: current.clone(), previous: previous.clone(), number: *number, health: *health }
    }
}

impl<T> fmt::Debug for Versions<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Versions")
            .field("number", &self.number)
            .field("accepted", &self.iter().count())
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}
