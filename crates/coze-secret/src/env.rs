use std::env;

use coze_core::{Error, Kind};

use crate::{Secret, SecretBytes};

impl Secret {
    /// The value of an environment variable. Nobody can change that from outside while the process runs, so it is fixed.
    ///
    /// The environment itself keeps its copy, which every child process inherits and the system shows to the process's
    /// user: a file is the safer source.
    ///
    /// # Errors
    /// `secret_missing` or `secret_empty`, [`Kind::Precondition`]: the variable is not set, or to nothing.
    pub fn from_env(name: &str) -> Result<Self, Error> {
        let refused = |reason, what| {
            Error::new(Kind::Precondition, reason).with_message(format!("the environment variable {name} is {what}"))
        };
        let value = env::var_os(name).ok_or_else(|| refused("secret_missing", "not set"))?;
        let value = SecretBytes::new(value.into_encoded_bytes());
        match value.expose() {
            [] => Err(refused("secret_empty", "empty")),
            _ => Ok(Self::fixed(value)),
        }
    }
}
