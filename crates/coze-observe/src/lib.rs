#![doc = include_str!("../README.md")]

mod access;
mod auth;
mod body;
mod family;
mod future;
mod inbound;
mod labels;
mod layer;
mod meter;
mod outbound;
mod policy;
mod record;
mod request_id;
mod service;
mod side;

pub use body::ResponseBody;
pub use future::ResponseFuture;
pub use inbound::Inbound;
pub use layer::ObserveLayer;
pub use outbound::Outbound;
pub use policy::Policy;
pub use record::Record;
pub use service::Observe;

use http::HeaderName;

/// The header that carries a request's id, both ways.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");
