#![doc = include_str!("../README.md")]

mod bearer;
mod body;
mod callback;
mod future;
#[cfg(feature = "jwt")]
mod jwt;
mod key;
mod layer;
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
mod token;
mod verify;
mod webhook;

pub use bearer::{Bearer, Sent};
pub use body::VerifiedBody;
pub use callback::Callback;
pub use future::ResponseFuture;
#[cfg(feature = "jwt")]
pub use jwt::{Access, Algorithm, FetchedKeys, Issuer, Jwt, JwtKey, JwtKeys, KeyFetch, ResourceMetadata, Routes};
pub use key::{Key, MAX_KEYS};
pub use layer::AuthLayer;
#[cfg(feature = "oauth")]
pub use oauth::{
    Device, Endpoint, FileStore, Granted, MemoryStore, OAuthApp, Pkce, Refresh, RefreshToken, ServiceAccount,
    TokenStore,
};
pub use per_tenant::PerTenant;
pub use policy::{Admitted, Decision, Policy};
pub use renewing::Renewing;
#[cfg(feature = "redis")]
pub use replay::RedisReplay;
pub use replay::{MemoryReplay, ReplayStore};
pub use service::Auth;
pub use token::{Refresher, Static, Token, TokenSource, TokenSources, lifetime};
pub use webhook::{Webhook, WebhookKeys};
