//! The policy for JSON web tokens.

mod access;
mod cache;
mod claims;
mod fetched;
mod hostile;
mod keys;
mod metadata;
mod places;
mod rfc;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod token;
mod vectors;
mod wycheproof;
