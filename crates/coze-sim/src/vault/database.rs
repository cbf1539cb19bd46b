use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::{Mutex, MutexGuard};

type Run = dyn Fn(RoleChange) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync;

/// What the database engine tells its database, which a test may then do to a real one.
///
/// Changes come one after the other, and whoever asked is answered when they are made. A lease whose time is over is noticed
/// at the next request, as is one that [`Vault::revoke_lease`](super::Vault::revoke_lease) and the like end.
#[derive(Clone)]
pub struct Database {
    run: Arc<Run>,
    turn: Arc<Mutex<()>>,
}

/// A change of the database's roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleChange {
    /// Make a role that may log in for so long: what the engine calls creation statements.
    Create {
        /// The role.
        username: String,
        /// Its password.
        password: String,
        /// How long from now on.
        ttl: Duration,
    },
    /// Let it log in for so long: renew statements.
    Extend {
        /// The role.
        username: String,
        /// How long from now on.
        ttl: Duration,
    },
    /// Remove it: revocation statements.
    Drop {
        /// The role.
        username: String,
    },
}

impl Database {
    /// Makes each change by `run`. What that fails with is answered with the status 500.
    pub fn new<F>(run: impl Fn(RoleChange) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self { run: Arc::new(move |change| Box::pin(run(change))), turn: Arc::default() }
    }

    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    pub(super) async fn run(&self, change: RoleChange) -> Result<(), String> {
        (self.run)(change).await
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}
