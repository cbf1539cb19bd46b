#![doc = include_str!("../README.md")]

mod body;
mod cell;
mod cells;
mod future;
mod gcra;
mod layer;
mod level;
mod limits;
mod permit;
mod policy;
mod quota;
mod service;
mod window;

pub use body::ResponseBody;
pub use future::ResponseFuture;
pub use layer::RateLimitLayer;
pub use level::Level;
pub use limits::Limits;
pub use permit::Permit;
pub use policy::{Decision, Policy};
pub use quota::{Quota, Rate};
pub use service::RateLimit;
