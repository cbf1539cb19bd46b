use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use coze_core::{Error, Kind};

/// How many keys verify at the same time: the current one, its predecessor and its successor, and one to spare.
pub const MAX_KEYS: usize = 4;

/// A secret that signatures are checked against. It never shows itself.
#[derive(Clone)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// Takes a copy of the secret, byte by byte as the signer has it.
    ///
    /// # Errors
    /// `key_empty`, [`Kind::Invalid`]: anybody could sign with it.
    pub fn new(secret: impl AsRef<[u8]>) -> Result<Self, Error> {
        let secret = secret.as_ref();
        if secret.is_empty() {
            return Err(Error::new(Kind::Invalid, "key_empty").with_message("a key has at least one byte"));
        }
        Ok(Self(secret.into()))
    }

    /// Reads a secret of Standard Webhooks: base64 of 24 to 64 bytes, with `whsec_` in front or not.
    ///
    /// # Errors
    /// `key_invalid`, [`Kind::Invalid`]: it is something else.
    pub fn whsec(text: &str) -> Result<Self, Error> {
        let secret = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(text)).unwrap_or_default();
        if !(24..=64).contains(&secret.len()) {
            return Err(Error::new(Kind::Invalid, "key_invalid")
                .with_message("a secret of standard webhooks is whsec_ and then 24 to 64 bytes in base64"));
        }
        Self::new(secret)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([redacted])")
    }
}

/// The keys, if there are not more than [`MAX_KEYS`].
pub(crate) fn bounded(keys: impl IntoIterator<Item = Key>) -> Result<Vec<Key>, Error> {
    let keys: Vec<_> = keys.into_iter().take(MAX_KEYS + 1).collect();
    if keys.len() > MAX_KEYS {
        return Err(Error::new(Kind::Invalid, "keys_too_many")
            .with_message(format!("at most {MAX_KEYS} keys verify at the same time")));
    }
    Ok(keys)
}
