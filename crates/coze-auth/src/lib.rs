#![doc = include_str!("../README.md")]

mod access;
mod api_keys;
mod bearer;
mod body;
mod callback;
mod either;
mod future;
#[cfg(feature = "jwt")]
mod jwt;
mod key;
mod layer;
mod mac;
#[cfg(feature = "oauth")]
mod oauth;
mod per_tenant;
mod policy;
mod refused;
#[cfg(feature = "redis")]
mod remote;
mod renewing;
mod replay;
mod report;
mod service;
mod standard_webhooks;
mod token;
mod verify;
mod webhook;

pub use access::{Access, Routes};
pub use api_keys::{ApiKey, ApiKeys, MAX_API_KEYS};
pub use bearer::{Bearer, Sent};
pub use body::VerifiedBody;
pub use callback::Callback;
pub use either::Either;
pub use future::ResponseFuture;
#[cfg(feature = "jwt")]
pub use jwt::{Algorithm, FetchedKeys, Issuer, Jwt, JwtKey, JwtKeys, KeyFetch, ResourceMetadata};
pub use key::{Key, MAX_KEYS};
pub use layer::AuthLayer;
#[cfg(all(feature = "oauth", feature = "redis"))]
pub use oauth::RedisStore;
#[cfg(feature = "oauth")]
pub use oauth::{
    Device, Endpoint, FileStore, Granted, MemoryStore, OAuthApp, Pkce, Refresh, RefreshToken, ServiceAccount,
    TokenStore,
};
pub use per_tenant::PerTenant;
pub use policy::{Admitted, Decision, Policy, take_request};
pub use renewing::Renewing;
#[cfg(feature = "redis")]
pub use replay::RedisReplay;
pub use replay::{MemoryReplay, ReplayStore};
pub use service::Auth;
pub use standard_webhooks::StandardWebhooks;
pub use token::{Refresher, Static, Token, TokenSource, TokenSources, lifetime};
pub use webhook::{Webhook, WebhookKeys};
