#![doc = include_str!("../README.md")]

mod context;
mod error;
mod id;
mod redact;
mod refusal;

pub use context::{Context, Principal, Scopes, Slots};
pub use error::{BoxError, Error, Kind, Limit, Platform, Retry};
pub use id::{BotId, ConversationId, InvalidId, RequestId, TenantId, UserId};
pub use redact::redact;
pub use refusal::Refusal;
