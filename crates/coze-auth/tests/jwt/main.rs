//! The policy for JSON web tokens.

mod access;
mod cache;
mod claims;
mod fetched;
mod hostile;
mod keys;
mod rfc;
#[path = "../support/mod.rs"]
mod support;
mod token;
mod wycheproof;
