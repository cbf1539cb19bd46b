use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use coze_core::Error;
use tokio::sync::watch;

use crate::{Health, Rotor, SecretBytes, Versions};

/// A secret that may be replaced while it is in use. Clones are handles to the same versions.
///
/// Reading takes no lock and never waits. After a rotation the version before stays beside the current one for a time, so
/// that what others made with it, such as a signature, is still recognised; then it is wiped, as soon as no reader holds it.
///
/// `T` is what rotates as one: bytes, or several values that belong together, such as a user and its password.
pub struct Secret<T = SecretBytes> {
    versions: Arc<ArcSwap<Versions<T>>>,
    /// Holds the number of the current version; is written to as well when a version goes.
    changes: watch::Receiver<u64>,
}

/// Waits for new versions of a [`Secret`].
pub struct Watch<T = SecretBytes> {
    secret: Secret<T>,
    /// The number of the last version that was told of.
    seen: u64,
}

impl<T> Secret<T> {
    /// A secret that stays as it is.
    #[must_use]
    pub fn fixed(value: T) -> Self {
        Self::rotating("fixed", value).1
    }

    /// A secret that its [`Rotor`] replaces: for sources of one's own. Its events carry `name`, which is not secret.
    #[must_use]
    pub fn rotating(name: impl Into<String>, value: T) -> (Rotor<T>, Self) {
        let versions = Versions { current: Some(Arc::new(value)), previous: None, number: 1, health: Health::Good };
        let versions = Arc::new(ArcSwap::from_pointee(versions));
        let (sender, changes) = watch::channel(1);
        (Rotor::new(name.into(), versions.clone(), sender), Self { versions, changes })
    }

    /// The version to use now.
    ///
    /// # Errors
    /// Those of [`Versions::current`]: never, unless the secret is a lease.
    pub fn current(&self) -> Result<Arc<T>, Error> {
        self.versions.load().current().cloned()
    }

    /// Reads all versions as they are at one moment. Cheaper than [`Secret::current`], as nothing is counted.
    pub fn read<R>(&self, read: impl FnOnce(&Versions<T>) -> R) -> R {
        read(&self.versions.load())
    }

    /// How its source fares.
    #[must_use]
    pub fn health(&self) -> Health {
        self.versions.load().health
    }

    /// Tells of the versions that come from now on. Make it before you read the version that you then replace.
    #[must_use]
    pub fn watch(&self) -> Watch<T> {
        let mut secret = self.clone();
        let seen = *secret.changes.borrow_and_update();
        Watch { secret, seen }
    }
}

impl<T> Watch<T> {
    /// Waits for a new version. Of several that came meanwhile it gives the last; `None` if none can come any more.
    ///
    /// Dropping the future loses no version.
    pub async fn changed(&mut self) -> Option<Arc<T>> {
        loop {
            self.secret.changes.changed().await.ok()?;
            let number = *self.secret.changes.borrow_and_update();
            // A lease that has ended since is no version to change to.
            if let Ok(current) = self.secret.current()
                && number != self.seen
            {
                self.seen = number;
                return Some(current);
            }
        }
    }

    /// Waits until another version counts, or one no longer does, and gives all that are accepted then: for whoever prepares
    /// something from each of them. `None` if nothing can change any more.
    ///
    /// Dropping the future loses no change.
    pub async fn versions(&mut self) -> Option<Versions<T>> {
        self.secret.changes.changed().await.ok()?;
        self.seen = *self.secret.changes.borrow_and_update();
        Some(self.secret.read(Versions::clone))
    }
}

impl<T> Clone for Secret<T> {
    fn clone(&self) -> Self {
        Self { versions: self.versions.clone(), changes: self.changes.clone() }
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secret").field(&self.versions.load()).finish()
    }
}

impl<T> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.secret).finish()
    }
}
