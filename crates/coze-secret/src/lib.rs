#![doc = include_str!("../README.md")]

mod bytes;
mod env;
mod file;
mod rotor;
mod secret;
mod versions;

pub use bytes::SecretBytes;
pub use file::SecretFile;
pub use rotor::Rotor;
pub use secret::{Secret, Watch};
pub use versions::{Health, Versions};
