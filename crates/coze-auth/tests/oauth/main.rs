//! The platform's OAuth flows: over a scripted transport, and over TCP against the simulated platform.

mod device;
mod platform;
mod refresh;
mod scripted;
mod service_account;
#[cfg(feature = "redis")]
mod shared;
mod store;
