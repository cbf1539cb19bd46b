#![doc = include_str!("../README.md")]

mod accept;
mod accepted;
mod body;
mod challenge;
mod classify;
mod envelope;
mod error;
mod future;
mod grpc;
mod headers;
mod layer;
mod look;
mod policy;
mod render;
mod respond;
mod service;
mod table;

pub use accept::Caller;
pub use accepted::accepted;
pub use body::ResponseBody;
pub use classify::Classifier;
pub use error::{from_platform, from_status};
pub use future::ResponseFuture;
pub use layer::ErrMapLayer;
pub use policy::{Policy, Rest, Verdict};
pub use respond::Responder;
pub use service::ErrMap;
pub use table::Mapping;
