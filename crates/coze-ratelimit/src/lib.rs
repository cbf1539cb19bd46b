#![doc = include_str!("../README.md")]

mod body;
mod cell;
mod cells;
mod client;
mod conversations;
mod degrade;
mod future;
mod gate;
mod gcra;
mod hash;
mod layer;
mod level;
mod limits;
mod line;
mod pace;
mod permit;
mod place;
mod plan;
mod policy;
mod queue;
mod quota;
#[cfg(feature = "redis")]
mod redis;
mod service;
mod slot;
mod sync;
mod wait;
mod window;

pub use body::ResponseBody;
pub use client::Proxies;
pub use conversations::{Conversations, Turn};
pub use degrade::{Degrade, Refuse};
pub use future::ResponseFuture;
pub use layer::RateLimitLayer;
pub use level::{Class, Level};
pub use limits::Limits;
pub use pace::{Benefits, Pace, PaceFuture, PaceLevel, PacePermit, PaceRate, PlatformPlan};
pub use permit::Permit;
pub use plan::Plan;
pub use policy::{Decision, Policy};
#[cfg(feature = "kafka")]
pub use queue::KafkaQueue;
#[cfg(feature = "redis")]
pub use queue::RedisQueue;
pub use queue::{Dead, End, Job, MAX_ID, MAX_PAYLOAD, MemoryQueue, Pushed, Queue, Taken, Worker};
pub use quota::{Quota, Rate};
#[cfg(feature = "redis")]
pub use redis::{Away, Deciding, RedisLimits, RedisPermit, RedisServer, Sharing};
pub use service::RateLimit;
pub use wait::LimitsFuture;
