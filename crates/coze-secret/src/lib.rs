#![doc = include_str!("../README.md")]

mod bytes;
mod env;
mod file;
mod rotor;
mod secret;
#[cfg(feature = "vault")]
mod vault;
mod versions;

pub use bytes::SecretBytes;
pub use file::SecretFile;
pub use rotor::Rotor;
pub use secret::{Secret, Watch};
#[cfg(feature = "vault")]
#[doc(hidden)]
pub use vault::{ANSWERS, read_answer};
#[cfg(feature = "vault")]
pub use vault::{Credentials, Database, Fields, Kv, Login, Vault, VaultSession};
pub use versions::{Health, Versions};
