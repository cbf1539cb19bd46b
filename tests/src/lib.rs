//! Real servers, the platform's published SDKs and an HTTP client, for tests.
//!
//! `cargo xtask test` finds or installs the servers and SDKs and writes down where they are. A test that needs one and does
//! not find it fails and says so; none is skipped. Everything here panics with the reason when something is wrong, because
//! only tests call it.

#[cfg(feature = "fuzz")]
pub mod fuzz;
mod http_client;
mod parts;
mod postgres;
mod redis;
mod sdk;
mod server;

pub use http_client::{Answer, Http};
pub use parts::part;
pub use postgres::Postgres;
pub use redis::{Paused, Redis, RedisCluster};
pub use sdk::{Call, Sdk, run_sdk};
pub use server::free_port;

/// The project's README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
