//! A simulated Vault, for tests of what takes its secrets from one.
//!
//! It follows the public HTTP API for: `sys/health`, `auth/token/lookup`, `lookup-self`, `renew-self` and `revoke-self`, `AppRole`
//! and Kubernetes login, KV version 2 at `secret/`, `database/creds/<role>`, `sys/leases/renew` and `revoke`, `cubbyhole/`,
//! `sys/wrapping/lookup` and `unwrap`, and the header `X-Vault-Wrap-TTL` on all of them. Tokens and leases end as they do there, a lease with
//! its token; it can be sealed, stand by, and refuse where a test tells it to. Any token may do anything.
//!
//! ```
//! use coze_sim::vault::{Config, ROOT_TOKEN, Vault};
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::{BodyExt, Full};
//! use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vault = Vault::start(Config::default()).await?;
//! vault.put("bot/keys", &serde_json::json!({ "webhook": "s3cret" }));
//! let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
//! let request = Request::get(format!("{}/v1/secret/data/bot/keys", vault.url()))
//!     .header("x-vault-token", ROOT_TOKEN)
//!     .body(Full::default())?;
//! let answer = client.request(request).await?.into_body().collect().await?.to_bytes();
//! let answer: serde_json::Value = serde_json::from_slice(&answer)?;
//! assert_eq!(answer["data"]["data"]["webhook"], "s3cret");
//! # Ok(())
//! # }
//! ```

mod answer;
mod api;
mod database;
mod login;
mod server;
mod store;

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};

pub use database::{Database, RoleChange};
use store::Store;
pub use store::{Fault, Lease, LeaseState, Request};

/// A token that never ends.
pub const ROOT_TOKEN: &str = "root";
/// The role id that `AppRole` login accepts.
pub const ROLE_ID: &str = "4f1c0a9e-role";
/// The secret id that `AppRole` login accepts.
pub const SECRET_ID: &str = "9b2d7c55-secret";
/// The role that Kubernetes login accepts.
pub const KUBERNETES_ROLE: &str = "bot";
/// The service account's JWT that Kubernetes login accepts.
pub const KUBERNETES_JWT: &str = "header.bot-service-account.signature";
/// The role of the database that gives credentials.
pub const DATABASE_ROLE: &str = "bot";

/// How long things live, to the second.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens. Default a free port of the loopback interface.
    pub listen: SocketAddr,
    /// Where its ids begin. Default 1.
    pub seed: u64,
    /// How long a token of a login lives unless it is renewed. Default 1 hour.
    pub token_ttl: Duration,
    /// How long a token of a login lives at most. Default 32 days.
    pub token_max_ttl: Duration,
    /// How long the credentials of a database live unless they are renewed. Default 1 hour.
    pub lease_ttl: Duration,
    /// How long the credentials of a database live at most. Default 24 hours.
    pub lease_max_ttl: Duration,
    /// May the credentials of a database be renewed? Default true.
    pub leases_renewable: bool,
    /// What makes the roles of the database. Default nothing, and so there are none.
    pub database: Option<Database>,
}

impl Default for Config {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            seed: 1,
            token_ttl: hours(1),
            token_max_ttl: hours(32 * 24),
            lease_ttl: hours(1),
            lease_max_ttl: hours(24),
            leases_renewable: true,
            database: None,
        }
    }
}

/// A simulated Vault that runs in a task. It stops when it is dropped.
pub struct Vault {
    store: Arc<Mutex<Store>>,
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Vault {
    /// Starts one on [`Config::listen`].
    ///
    /// # Errors
    /// If it cannot listen there.
    pub async fn start(config: Config) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let addr = listener.local_addr()?;
        let store = Arc::new(Mutex::new(Store::new(config)));
        let task = tokio::spawn(server::serve(store.clone(), listener));
        Ok(Self { store, addr, task })
    }

    /// Where it is reached, `http://host:port` without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Writes a version of a KV secret, the fields of an object; says its number. The last 10 versions are kept.
    pub fn put(&self, path: &str, data: &Value) -> u64 {
        self.store().put(path, data.clone())
    }

    /// Deletes the last version of a KV secret, as the API does: it stays, without its data.
    pub fn delete(&self, path: &str) {
        self.store().delete(path);
    }

    /// Destroys the last version of a KV secret, as the API does: its data is gone for ever.
    pub fn destroy(&self, path: &str) {
        self.store().destroy(path);
    }

    /// Forgets all versions of a KV secret, as the deletion of its metadata does: the next version is number 1.
    pub fn forget(&self, path: &str) {
        self.store().forget(path);
    }

    /// Makes a token as a login would.
    #[must_use]
    pub fn token(&self) -> String {
        self.store().login(Instant::now())
    }

    /// Makes a token that gives `data` once.
    #[must_use]
    pub fn wrap(&self, data: &Value, ttl: Duration) -> String {
        let mut store = self.store();
        let answer = store.answer(data.clone());
        store.wrap(&answer, ttl, Instant::now(), "sys/wrapping/wrap")
    }

    /// Makes a token that gives a token of a login once.
    #[must_use]
    pub fn wrap_token(&self, ttl: Duration) -> String {
        let (mut store, now) = (self.store(), Instant::now());
        let answer = login::logged_in(&mut store, now);
        store.wrap(&answer, ttl, now, "auth/approle/login")
    }

    /// Ends a token, and with it its leases.
    pub fn revoke_token(&self, token: &str) {
        self.store().revoke_token(token, LeaseState::Revoked);
    }

    /// Ends all tokens but root, and their leases.
    pub fn revoke_logins(&self) {
        let mut store = self.store();
        let tokens: Vec<String> = store.tokens.iter().map(|token| token.id.clone()).collect();
        tokens.iter().filter(|id| *id != ROOT_TOKEN).for_each(|id| store.revoke_token(id, LeaseState::Revoked));
    }

    /// Ends a lease, as an operator may.
    pub fn revoke_lease(&self, id: &str) {
        self.store().revoke_lease(id);
    }

    /// Seals it, or unseals it: a sealed one answers 503.
    pub fn seal(&self, sealed: bool) {
        self.store().sealed = sealed;
    }

    /// Makes it stand by for the one at this URL, to which it then redirects; `None` makes it active.
    pub fn stand_by(&self, active: Option<String>) {
        self.store().active = active;
    }

    /// Lets something go wrong. At most 1,000 wait, further ones are not taken.
    pub fn fault(&self, fault: Fault) {
        self.store().add(fault);
    }

    /// Forgets the faults that wait.
    pub fn clear_faults(&self) {
        self.store().faults.clear();
    }

    /// The last 10,000 leases, the oldest first.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        let mut store = self.store();
        store.settle(Instant::now());
        store.leases.iter().cloned().collect()
    }

    /// The last 10,000 requests, the oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.store().requests.iter().cloned().collect()
    }

    /// A panic under the lock leaves nothing half done that matters to a simulation, so poison is ignored.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("addr", &self.addr).finish_non_exhaustive()
    }
}
