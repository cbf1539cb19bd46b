//! What the service is told: a TOML file, and what the command line and the environment override.

mod api;
mod later;
mod load;
mod oauth;
mod pace;
mod place;
mod plugin;
mod retry;
mod secret;
mod value;
mod vault;

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use coze_core::{BotId, TenantId};
use serde::Deserialize;

pub use api::{Api, Issuer};
pub use later::{Keeper, Later};
pub use load::ConfigError;
pub(crate) use oauth::MIN_PASSWORD;
pub use oauth::OAuth;
pub use pace::Pace;
pub use place::Places;
pub use plugin::PluginKey;
pub use retry::{Retry, Row};
pub use secret::Secret;
pub(crate) use secret::Source;
pub use value::BaseUrl;
pub use vault::{AppRole, DatabaseRole, Kubernetes, Vault};

use value::{parsed, seconds, some_parsed};

/// The whole configuration. Every table and key but `bots` has a default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen; port 0 takes a free one. Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// How log lines look. Default `text`.
    pub log: LogFormat,
    /// What one caller may take of the server.
    pub http: Http,
    /// The platform's three limits, kept on our side.
    pub limits: Limits,
    /// What becomes of messages that they refuse.
    pub later: Later,
    /// Where the answers come from.
    pub platform: Platform,
    /// How fast it is called.
    pub pace: Pace,
    /// How calls to it that failed are sent again.
    pub retry: Retry,
    /// What programs may read with JSON web tokens.
    pub api: Api,
    /// Where conversations and sessions are kept.
    pub storage: Storage,
    /// How secrets that change are followed.
    pub secrets: Secrets,
    /// Where secrets may be. Default nowhere.
    pub vault: Option<Vault>,
    /// Who answers. At least one.
    pub bots: Vec<Bot>,
    /// Who may call this service as a plugin. Default nobody.
    pub plugin_keys: Vec<PluginKey>,
    /// Where all of this stands in its file.
    #[serde(skip)]
    pub places: Places,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What one caller may take of the server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Bytes of a request body. Default 256 KiB. Anybody can have one held for each connection, until it proves unsigned.
    pub body_limit: NonZeroUsize,
    /// Connections at once; further ones wait to be accepted. Default 2000.
    pub connections: NonZeroUsize,
    /// Time for the head of a request. Default 10 s.
    #[serde(rename = "header_timeout_seconds", deserialize_with = "seconds")]
    pub header_timeout: Duration,
    /// Time for the body of a request. Default 10 s.
    #[serde(rename = "body_timeout_seconds", deserialize_with = "seconds")]
    pub body_timeout: Duration,
    /// Time for a whole request, from its head to the end of its answer. Default 120 s.
    #[serde(rename = "request_timeout_seconds", deserialize_with = "seconds")]
    pub request_timeout: Duration,
    /// Time a connection may stay open without a byte in either direction; longer than a request. Default 150 s.
    #[serde(rename = "idle_timeout_seconds", deserialize_with = "seconds")]
    pub idle_timeout: Duration,
    /// Time a shutdown waits for what was accepted. Default 30 s.
    #[serde(rename = "drain_timeout_seconds", deserialize_with = "seconds")]
    pub drain_timeout: Duration,
}

/// The platform's three limits.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Messages a second, all bots together, and calls a second to the platform. Default 50.
    pub app_qps: NonZeroU32,
    /// Messages a bot answers at once. Default 10.
    pub bot_concurrency: NonZeroU32,
    /// Messages a second of one user. Default 1.
    pub user_per_second: NonZeroU32,
    /// Where they are kept for all nodes together: `redis://…`, or `memory` for each node by itself. Default: where the sessions are.
    pub redis: Option<Secret>,
    /// How many nodes there are: each keeps its part of a limit while Redis is away, and of the platform's plan. Default 1.
    pub nodes: NonZeroU32,
}

/// Where the answers come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Platform {
    /// The API's address. Default `https://api.coze.cn`.
    #[serde(deserialize_with = "parsed")]
    pub url: BaseUrl,
    /// A personal or service access token. One of this, `service_account` and `oauth`.
    pub token: Option<Secret>,
    /// A JWT service account.
    pub service_account: Option<ServiceAccount>,
    /// The account of a person who consents in a browser.
    pub oauth: Option<OAuth>,
    /// Time for a connection to be there. Default 5 s.
    #[serde(rename = "connect_timeout_seconds", deserialize_with = "seconds")]
    pub connect_timeout: Duration,
    /// Time for the head of an answer, and between two pieces of a stream. Default 60 s.
    #[serde(rename = "silence_timeout_seconds", deserialize_with = "seconds")]
    pub silence_timeout: Duration,
}

/// A JWT service account (coze-platform.md §1.6).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccount {
    /// The OAuth app's id.
    pub client_id: String,
    /// The fingerprint of the public key, as the platform shows it.
    pub key_id: Secret,
    /// The RSA private key in PEM, PKCS#8 or PKCS#1. A new one has a new `key_id`.
    pub private_key: Secret,
    /// Does each tenant have tokens of its own, so that on the platform no tenant's calls see another one's conversations
    /// (coze-platform.md §1.10)? Default: yes.
    #[serde(default = "yes")]
    pub session_per_tenant: bool,
}

/// Where conversations and sessions are kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// `sqlite://path`, `sqlite::memory:` or `postgres://…`. Default `sqlite://bot-backend.db`.
    pub conversations: Secret,
    /// `memory` or `redis://…`. Default `memory`.
    pub sessions: Secret,
    /// The user and password for `conversations` from Vault, instead of those in the URL. Default none.
    pub credentials: Option<DatabaseRole>,
}

/// How secrets in files and in Vault are followed.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// Time between two looks at the source; in Vault at least a second. Default 30 s.
    #[serde(rename = "poll_seconds", deserialize_with = "seconds")]
    pub poll: Duration,
    /// How long the previous version of a key is accepted beside the new one. Default an hour.
    #[serde(rename = "overlap_seconds", deserialize_with = "seconds")]
    pub overlap: Duration,
}

/// One bot.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bot {
    /// What callers name it by.
    #[serde(deserialize_with = "parsed")]
    pub id: BotId,
    /// Whose it is.
    #[serde(deserialize_with = "parsed")]
    pub tenant: TenantId,
    /// The keys that sign its messages; several while they are being exchanged.
    #[serde(deserialize_with = "secret::one_or_more")]
    pub webhook_keys: Vec<Secret>,
    /// The tokens that sign the platform's events; without one the bot has no callback.
    #[serde(default, deserialize_with = "secret::one_or_more")]
    pub verify_tokens: Vec<Secret>,
    /// The bot's id on the platform. Default: `id`.
    #[serde(default, deserialize_with = "some_parsed")]
    pub platform_bot_id: Option<BotId>,
    /// Whether the platform is asked for a stream. Default: yes.
    #[serde(default = "yes")]
    pub stream: bool,
    /// Messages this bot answers at once. Default: `limits.bot_concurrency`.
    pub concurrency: Option<NonZeroU32>,
    /// Messages a second of one user of this bot. Default: `limits.user_per_second`.
    pub user_per_second: Option<NonZeroU32>,
}

impl Bot {
    /// The bot's id on the platform.
    #[must_use]
    pub fn platform_id(&self) -> &BotId {
        self.platform_bot_id.as_ref().unwrap_or(&self.id)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            log: LogFormat::Text,
            http: Http::default(),
            limits: Limits::default(),
            later: Later::default(),
            platform: Platform::default(),
            pace: Pace::default(),
            retry: Retry::default(),
            api: Api::default(),
            storage: Storage::default(),
            secrets: Secrets::default(),
            vault: None,
            bots: Vec::new(),
            plugin_keys: Vec::new(),
            places: Places::default(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            body_limit: NonZeroUsize::new(256 << 10).expect("not zero"),
            connections: NonZeroUsize::new(2000).expect("not zero"),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(150),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let limit = |n| NonZeroU32::new(n).expect("not zero");
        Self { app_qps: limit(50), bot_concurrency: limit(10), user_per_second: limit(1), redis: None, nodes: limit(1) }
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self {
            url: BaseUrl::from_static("https://api.coze.cn"),
            token: None,
            service_account: None,
            oauth: None,
            connect_timeout: Duration::from_secs(5),
            silence_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        let (conversations, sessions) = (Secret::new("sqlite://bot-backend.db"), Secret::new("memory"));
        Self { conversations, sessions, credentials: None }
    }
}

impl Default for Secrets {
    fn default() -> Self {
        Self { poll: Duration::from_secs(30), overlap: Duration::from_secs(3600) }
    }
}

fn yes() -> bool {
    true
}
