use std::{
    mem,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use coze_core::{Error, Kind};
use sqlx::{AnyPool, Executor, any::AnyPoolOptions};
use tokio::time::timeout;

use super::{Store, TIMEOUT};
use crate::config::Secret;

/// What brings a database from one version to the next, oldest first. Never changed, only added to.
const MIGRATIONS: [&str; 1] = [include_str!("../../migrations/1_start.sql")];

/// Time for what is under way when the pool is replaced; a statement takes no longer.
const DRAIN: Duration = TIMEOUT.saturating_add(Duration::from_secs(1));
/// Time for a connection with other credentials, for which nobody waits.
const CHANGE: Duration = Duration::from_secs(10);

impl Store {
    /// Connects to the URL's database and brings its tables up to date; a file of SQLite is created if it is missing.
    ///
    /// # Errors
    /// `conversations_open` ([`Kind::Precondition`]) when that cannot be done. The message does not show the URL.
    pub async fn open(url: &Secret) -> Result<Self, Error> {
        let pool = connect(url, TIMEOUT).await.map_err(cannot)?;
        for attempt in 1.. {
            match migrate(&pool).await {
                Ok(()) => break,
                // Two nodes that start at the same time may both want to create the first table.
                Err(_) if attempt < 3 => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(error) => return Err(cannot(error)),
            }
        }
        Ok(Self { pool: Arc::new(RwLock::new(pool)) })
    }

    /// Changes over to other credentials for the same database, and no statement fails for it: the new connections are tried
    /// out on a table before others get them, and what is under way on the old ones ends first, within 3 s. Then nobody uses the
    /// old credentials any more. Meanwhile there may be twice as many connections.
    ///
    /// # Errors
    /// As [`Store::open`]; then everything stays as it is.
    pub async fn change_over(&self, url: &Secret) -> Result<(), Error> {
        let pool = connect(url, CHANGE).await.map_err(cannot)?;
        let mut first = pool.acquire().await.map_err(cannot)?;
        let proof = timeout(CHANGE, first.fetch_optional("SELECT version FROM migrations LIMIT 1")).await;
        proof.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(cannot)?;
        // As many as there were, so that who comes then does not wait for one, which on a busy machine takes longer than a statement
        // may. If the database has no room for them, fewer do.
        let mut ready = vec![first];
        let more = async {
            while ready.len() < self.pool().size() as usize {
                ready.push(pool.acquire().await?);
            }
            Ok::<_, sqlx::Error>(())
        };
        let _ = timeout(CHANGE, more).await;
        drop(ready);
        let last = mem::replace(&mut *self.pool.write().unwrap_or_else(PoisonError::into_inner), pool);
        if last.is_closed() {
            // The store was closed meanwhile, and stays so.
            self.close().await;
        } else if timeout(DRAIN, last.close()).await.is_err() {
            tracing::warn!("a statement is still under way with the credentials that were replaced");
        }
        Ok(())
    }
}

async fn connect(url: &Secret, time: Duration) -> sqlx::Result<AnyPool> {
    sqlx::any::install_default_drivers();
    let url = url.expose();
    let in_memory = url.contains(":memory:") || url.contains("mode=memory");
    let is_sqlite = url.starts_with("sqlite:");
    let url = match is_sqlite && !in_memory && !url.contains("mode=") {
        true => format!("{url}{}mode=rwc", if url.contains('?') { "&" } else { "?" }),
        false => url.to_owned(),
    };
    let mut options = AnyPoolOptions::new().acquire_timeout(time);
    if in_memory {
        // Such a database lives and dies with its connection.
        options = options.max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None);
    }
    if is_sqlite {
        options = options.after_connect(|connection, _| {
            Box::pin(async move {
                // Readers and the writer do not wait for each other; a power cut may cost the last commits, not the file.
                let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 2000";
                connection.execute(sqlx::raw_sql(pragmas)).await.map(|_| ())
            })
        });
    }
    options.connect(&url).await
}

async fn migrate(pool: &AnyPool) -> sqlx::Result<()> {
    pool.execute("CREATE TABLE IF NOT EXISTS migrations (version BIGINT PRIMARY KEY)").await?;
    for (version, sql) in (1_i64..).zip(MIGRATIONS) {
        let mut transaction = pool.begin().await?;
        // Of two nodes the second waits here for the first.
        let insert = "INSERT INTO migrations (version) VALUES ($1) ON CONFLICT (version) DO NOTHING";
        let inserted = sqlx::query(insert).bind(version).execute(&mut *transaction).await?;
        if inserted.rows_affected() == 1 {
            transaction.execute(sqlx::raw_sql(sql)).await?;
        }
        transaction.commit().await?;
    }
    Ok(())
}

fn cannot(error: sqlx::Error) -> Error {
    Error::new(Kind::Precondition, "conversations_open")
        .with_message("the database of the conversations cannot be opened")
        .with_source(error)
}
