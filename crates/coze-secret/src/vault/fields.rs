use std::{collections::BTreeMap, fmt};

use crate::SecretBytes;

/// The fields of one secret in Vault: they change together.
pub struct Fields(pub(crate) BTreeMap<String, SecretBytes>);

impl Fields {
    /// A field. A value that is not text is its JSON.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&SecretBytes> {
        self.0.get(name)
    }

    /// Takes a field out.
    pub fn take(&mut self, name: &str) -> Option<SecretBytes> {
        self.0.remove(name)
    }

    /// The names of the fields, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Shows the names of the fields only.
impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A user of a database and its password: they change together.
#[derive(Debug)]
pub struct Credentials {
    pub(crate) username: String,
    pub(crate) password: SecretBytes,
}

impl Credentials {
    /// The user, which is no secret.
    #[must_use]
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The password.
    #[must_use]
    pub fn password(&self) -> &SecretBytes {
        &self.password
    }
}
