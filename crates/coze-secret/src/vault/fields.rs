use std::{collections::BTreeMap, fmt};

use coze_core::{Error, Kind};
use tokio::task;

use crate::{Rotor, Secret, SecretBytes, Watch};

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

impl Secret<Fields> {
    /// One of the fields as a secret of its own: it gets a new version when the field gets another value, and its previous
    /// version stays as long as that of the fields. A task does that, which ends once nobody holds it any more.
    ///
    /// A new version without this field changes nothing but the health. A source that fails shows in the health of the fields
    /// only.
    ///
    /// # Errors
    /// `vault_no_field`, [`Kind::NotFound`]: there is no such field; and those of [`Secret::current`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn field(&self, name: &str) -> Result<Secret, Error> {
        // Before the value is read, so that no version is missed.
        let watch = self.watch();
        let current = self.current()?;
        let value = current.get(name).ok_or_else(|| missing(name))?;
        let (rotor, secret) = Secret::rotating(format!("the field {name}"), SecretBytes::copy(value.expose()));
        task::spawn(follow(watch, rotor, name.to_owned()));
        Ok(secret)
    }
}

async fn follow(mut watch: Watch<Fields>, mut rotor: Rotor<SecretBytes>, name: String) {
    loop {
        let changed = tokio::select! {
            changed = watch.versions() => changed,
            () = rotor.closed() => return,
        };
        let Some(versions) = changed else { return };
        match versions.current().map(|fields| fields.get(&name)) {
            Ok(Some(value)) if rotor.current().is_some_and(|current| current.matches(value.expose())) => {
                rotor.confirm();
            }
            Ok(Some(value)) => rotor.publish(SecretBytes::copy(value.expose())),
            Ok(None) => rotor.fail(&missing(&name)),
            Err(error) => rotor.fail(&error),
        }
        if versions.previous().is_none() {
            rotor.retire();
        }
    }
}

fn missing(name: &str) -> Error {
    Error::new(Kind::NotFound, "vault_no_field").with_message(format!("the secret in vault has no field {name}"))
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
    /// A user and its password: for sources of one's own.
    #[must_use]
    pub fn new(username: impl Into<String>, password: SecretBytes) -> Self {
        Self { username: username.into(), password }
    }

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
