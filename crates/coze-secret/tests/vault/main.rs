//! Secrets from Vault, over TCP.
//!
//! Most tests drive the simulated Vault under the paused clock. Those in `either` run against a real one where `VAULT_ADDR` and
//! `VAULT_TOKEN` are set, and say which it was.

mod either;
mod hostile;
mod kv;
mod lease;
mod real;
mod session;
mod support;
mod tls;
