use std::{fmt, time::Duration};

use coze_core::{Error, Kind};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError, RedisResult,
    aio::MultiplexedConnection,
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType},
};

use super::call::{Batch, Reply};

/// Time for a decision, unless set.
const TIMEOUT: Duration = Duration::from_millis(50);
/// Time for a new connection after Redis was away: nobody waits for it.
pub(super) const CONNECT: Duration = Duration::from_secs(1);

/// Where the Redis is that keeps [`RedisLimits`](crate::RedisLimits), and how long it is waited for. Nothing is connected yet.
///
/// It must be Redis 5, or Valkey, or newer: scripts are replicated by what they write.
#[derive(Clone)]
pub struct RedisServer {
    place: Place,
    pub(super) timeout: Duration,
}

#[derive(Clone)]
enum Place {
    Single(Client),
    Sentinel { sentinels: Vec<ConnectionInfo>, master: String, node: SentinelNodeConnectionInfo },
    Cluster(ClusterClient),
}

impl RedisServer {
    /// One server: `redis://user:password@host:port/database`.
    ///
    /// # Errors
    /// `redis_url` ([`Kind::Invalid`]) for what is not such a URL.
    pub fn open(url: &str) -> Result<Self, Error> {
        Ok(Self::at(Place::Single(Client::open(info(url)?).map_err(invalid)?)))
    }

    /// The master that these sentinels name. Its URL has its name instead of a host: `redis://user:password@mymaster/database`.
    ///
    /// # Errors
    /// As [`RedisServer::open`]; also without a sentinel.
    pub fn sentinel<'u>(sentinels: impl IntoIterator<Item = &'u str>, master: &str) -> Result<Self, Error> {
        let sentinels: Vec<_> = sentinels.into_iter().map(info).collect::<Result<_, _>>()?;
        let master = info(master)?;
        let name = match master.addr() {
            ConnectionAddr::Tcp(name, _) if !sentinels.is_empty() => name.clone(),
            _ => return Err(wrong("expected at least one sentinel, and the name of a master")),
        };
        let node = SentinelNodeConnectionInfo::default()
            .set_tcp_settings(tcp())
            .set_redis_connection_info(master.redis_settings().clone());
        Ok(Self::at(Place::Sentinel { sentinels, master: name, node }))
    }

    /// A cluster, of which these are some nodes, with the same user and password.
    ///
    /// # Errors
    /// As [`RedisServer::open`]; also without a node.
    pub fn cluster<'u>(nodes: impl IntoIterator<Item = &'u str>) -> Result<Self, Error> {
        let nodes: Vec<_> = nodes.into_iter().map(info).collect::<Result<_, _>>()?;
        // A redirection and one more try; what takes longer is answered without Redis.
        let client = ClusterClient::builder(nodes).tcp_settings(tcp()).connection_timeout(CONNECT).retries(3);
        Ok(Self::at(Place::Cluster(client.max_retry_wait(10).build().map_err(invalid)?)))
    }

    /// Time for a decision, default 50 ms: behind the call that is under way, and in its own. After that it is made without
    /// Redis, see [`Away`](crate::Away).
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    fn at(place: Place) -> Self {
        Self { place, timeout: TIMEOUT }
    }

    pub(super) async fn connect(&self) -> RedisResult<Connection> {
        let config = || {
            AsyncConnectionConfig::new()
                .set_connection_timeout(Some(CONNECT))
                .set_response_timeout(Some(self.timeout.max(Duration::from_millis(1))))
        };
        match &self.place {
            Place::Single(client) => {
                client.get_multiplexed_async_connection_with_config(&config()).await.map(Connection::One)
            }
            Place::Sentinel { sentinels, master, node } => {
                let kind = SentinelServerType::Master;
                let mut client = SentinelClient::build(sentinels.clone(), master.clone(), Some(node.clone()), kind)?;
                client.get_async_connection_with_config(&config()).await.map(Connection::One)
            }
            Place::Cluster(client) => client.get_async_connection().await.map(Connection::Many),
        }
    }
}

/// A connection to wherever the keys are.
pub(super) enum Connection {
    One(MultiplexedConnection),
    Many(ClusterConnection),
}

impl Connection {
    /// Lets the server decide. Only an answer says whether it did.
    pub(super) async fn call(&mut self, batch: &Batch) -> RedisResult<Reply> {
        match self {
            Self::One(connection) => batch.run(connection).await,
            Self::Many(connection) => batch.run(connection).await,
        }
    }
}

fn info(url: &str) -> Result<ConnectionInfo, Error> {
    // Not the default of this client: a command is a few bytes that would wait for more.
    url.into_connection_info().map(|info| info.set_tcp_settings(tcp())).map_err(invalid)
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn wrong(message: &'static str) -> Error {
    Error::new(Kind::Invalid, "redis_url").with_message(message)
}

fn invalid(error: RedisError) -> Error {
    wrong("expected a URL of Redis, such as redis://host:6379").with_source(error)
}

impl fmt::Debug for RedisServer {
    /// Without the address, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.place {
            Place::Single(_) => "single",
            Place::Sentinel { .. } => "sentinel",
            Place::Cluster(_) => "cluster",
        };
        f.debug_tuple("RedisServer").field(&kind).field(&self.timeout).finish()
    }
}
