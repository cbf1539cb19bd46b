use std::{
    fmt, io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use coze_core::{Error, Kind};
use redis::{
    Client, Cmd, FromRedisValue, IntoConnectionInfo, RedisError,
    aio::{ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};
use tokio::time::timeout;

/// For a connection to be there, in the background of whatever waits for less.
const CONNECT: Duration = Duration::from_secs(1);

/// One connection to a Redis, shared by all that is asked at a time. It is made when it is first needed, and made again after it
/// broke. Clones share it.
#[derive(Clone)]
pub(crate) struct Remote {
    line: Arc<Line>,
    /// For one question, connecting included.
    timeout: Duration,
}

struct Line {
    client: Client,
    /// Not earlier than in the runtime that asks.
    manager: OnceLock<ConnectionManager>,
}

impl Remote {
    /// # Errors
    /// `redis_url`, [`Kind::Invalid`]: the URL is not one of Redis.
    pub(crate) fn new(url: &str, timeout: Duration) -> Result<Self, Error> {
        // The text of the error may quote the URL, and that a password.
        let invalid = |_: RedisError| {
            Error::new(Kind::Invalid, "redis_url").with_message("the url is not one of redis: redis://host:6379")
        };
        let info = url.into_connection_info().map_err(invalid)?;
        // Not the default of this client: a question is a few bytes that would wait for more.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).map_err(invalid)?;
        Ok(Self { line: Arc::new(Line { client, manager: OnceLock::new() }), timeout })
    }

    pub(crate) fn within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Asks once, and waits no longer than the timeout. After a failure nobody knows whether it was done.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let asked = async { command.query_async(&mut self.line.manager()?).await };
        timeout(self.timeout, asked).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }
}

impl Line {
    fn manager(&self) -> Result<ConnectionManager, RedisError> {
        if let Some(manager) = self.manager.get() {
            return Ok(manager.clone());
        }
        // Who asks next tries again: nobody who asks waits while it is tried over and over.
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(CONNECT))
            .set_number_of_retries(0);
        let manager = ConnectionManager::new_lazy_with_config(self.client.clone(), config)?;
        Ok(self.manager.get_or_init(|| manager).clone())
    }
}

impl fmt::Debug for Remote {
    /// Not where it is: a URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
