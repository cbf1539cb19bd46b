//! Limits that all nodes keep together, in Redis. README.md says what the three ways of sharing guarantee.
//!
//! Pure are the account of a key (`account`, of which `script.lua` is the copy) and what a node holds of it (`holding`); `driver` is
//! the one task that talks to Redis, `call` its words, `limits` the policy.

mod account;
mod away;
mod call;
mod common;
mod driver;
mod holding;
mod known;
mod limits;
#[cfg(test)]
mod model;
mod server;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod twin;
#[cfg(test)]
mod witness;

pub use away::Away;
pub use common::RedisPermit;
pub use limits::{Deciding, RedisLimits, Sharing};
pub use server::RedisServer;
