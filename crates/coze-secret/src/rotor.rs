use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use coze_core::Error;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{Health, Versions};

/// How long the version before stays, unless a source is told another time.
pub(crate) const OVERLAP: Duration = Duration::from_secs(3600);

/// The writing end of a [`Secret`](crate::Secret): what a source tells its versions to. There is one per secret.
pub struct Rotor<T> {
    name: String,
    versions: Arc<ArcSwap<Versions<T>>>,
    changes: watch::Sender<u64>,
    overlap: Duration,
    /// When the previous version goes.
    retire: Option<Instant>,
}

impl<T> Rotor<T> {
    pub(crate) fn new(name: String, versions: Arc<ArcSwap<Versions<T>>>, changes: watch::Sender<u64>) -> Self {
        Self { name, versions, changes, overlap: OVERLAP, retire: None }
    }

    /// How long the sources of this crate leave the previous version beside the new one. Without one of them
    /// [`Rotor::retire`] says when.
    pub(crate) fn overlap(self, overlap: Duration) -> Self {
        Self { overlap, ..self }
    }

    /// The current version; `None` after [`Rotor::expire`].
    #[must_use]
    pub fn current(&self) -> Option<Arc<T>> {
        self.versions.load().current.clone()
    }

    /// Makes `value` the current version and the one so far the previous version; the one before that goes.
    pub fn publish(&mut self, value: T) {
        let last = self.versions.load_full();
        let number = last.number + 1;
        let current = Some(Arc::new(value));
        self.store(Versions { current, previous: last.current.clone(), number, health: Health::Good });
        self.retire = Instant::now().checked_add(self.overlap);
        self.changes.send_replace(number);
        tracing::info!(secret = self.name, version = number, "a secret has a new version");
    }

    /// Says that the source answered and has no new version.
    pub fn confirm(&mut self) {
        let last = self.versions.load_full();
        if matches!(last.health, Health::Stale(_)) {
            self.store(Versions { health: Health::Good, ..Versions::clone(&last) });
            tracing::info!(secret = self.name, "the source of a secret answers again");
        }
    }

    /// Says that the source failed. What was read before serves.
    pub fn fail(&mut self, error: &Error) {
        let last = self.versions.load_full();
        let health = match last.health {
            Health::Expired(_) => Health::Expired(error.reason()),
            Health::Good | Health::Stale(_) => Health::Stale(error.reason()),
        };
        // A source that keeps failing in the same way is told of once.
        if last.health != health {
            self.store(Versions { health, ..Versions::clone(&last) });
            tracing::warn!(secret = self.name, reason = error.reason(), %error, "the source of a secret fails");
        }
    }

    /// Takes the previous version away before its time.
    pub fn retire(&mut self) {
        self.retire = None;
        let last = self.versions.load_full();
        if last.previous.is_some() {
            self.store(Versions { previous: None, ..Versions::clone(&last) });
            self.changes.send_replace(last.number);
        }
    }

    /// Takes all versions away: the lease of the current one is over.
    pub fn expire(&mut self) {
        self.retire = None;
        let last = self.versions.load_full();
        if last.current.is_none() {
            return;
        }
        let reason = match last.health {
            Health::Good => "secret_expired",
            Health::Stale(reason) | Health::Expired(reason) => reason,
        };
        self.store(Versions { current: None, previous: None, health: Health::Expired(reason), number: last.number });
        self.changes.send_replace(last.number);
        tracing::error!(secret = self.name, reason, "the lease of a secret is over");
    }

    /// Takes all versions away, where that is what was wanted.
    #[cfg(feature = "vault")]
    pub(crate) fn end(&mut self, why: &Error) {
        self.retire = None;
        let number = self.versions.load().number;
        self.store(Versions { current: None, previous: None, number, health: Health::Expired(why.reason()) });
        self.changes.send_replace(number);
    }

    /// Says that nobody looks for new versions any more, if there is somebody to tell and something left.
    #[cfg(feature = "vault")]
    pub(crate) fn orphan(&mut self, why: &Error) {
        if !self.changes.is_closed() && self.current().is_some() {
            self.fail(why);
        }
    }

    /// Waits until nobody holds the secret or a watch of it any more.
    pub async fn closed(&self) {
        self.changes.closed().await;
    }

    /// Rests until `wake`, and takes the previous version away when its time has come. `false` once [`Rotor::closed`].
    pub(crate) async fn rest(&mut self, wake: Instant) -> bool {
        loop {
            let until = self.retire.map_or(wake, |retire| retire.min(wake));
            if timeout_at(until, self.changes.closed()).await.is_ok() {
                return false;
            }
            if self.retire.is_some_and(|retire| retire <= until) {
                self.retire();
            }
            if until == wake {
                return true;
            }
        }
    }

    fn store(&self, versions: Versions<T>) {
        self.versions.store(Arc::new(versions));
    }
}

impl<T> fmt::Debug for Rotor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotor")
            .field("name", &self.name)
            .field("versions", &self.versions.load())
            .finish_non_exhaustive()
    }
}
