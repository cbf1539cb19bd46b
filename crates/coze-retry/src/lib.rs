#![doc = include_str!("../README.md")]

mod backoff;
mod budget;
mod failure;
mod future;
mod headers;
mod idempotent;
mod layer;
mod policy;
mod replay;
mod service;
mod standard;
mod table;

pub use backoff::Backoff;
pub use budget::{Budget, Permit};
pub use future::ResponseFuture;
pub use idempotent::Idempotent;
pub use layer::RetryLayer;
pub use policy::{Attempt, Decision, Outcome, Plan, Policy};
pub use replay::ReplayBody;
pub use service::Retry;
pub use standard::Standard;
pub use table::{Row, Wait, When};
