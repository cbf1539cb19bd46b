use std::{fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

/// A secret of the configuration: written as text, `{ env = "NAME" }` or `{ file = "path" }`.
///
/// A file's last line end does not belong to the secret. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Takes the text as it is.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The secret itself. Not for logs and errors.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The secret where `source` says it is.
    fn read(source: &str, name: &str) -> Result<Self, String> {
        let text = match source {
            "env" => std::env::var(name).map_err(|_| format!("the environment variable {name} is not set to text"))?,
            "file" => {
                let text = std::fs::read_to_string(name).map_err(|e| format!("cannot read the file {name}: {e}"))?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            other => return Err(format!("unknown field `{other}`, expected `env` or `file`")),
        };
        if text.is_empty() { Err(format!("the {source} {name} is empty")) } else { Ok(Self::new(&text)) }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneSecret)
    }
}

struct OneSecret;

impl<'de> Visitor<'de> for OneSecret {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a text that is not empty, { env = "NAME" } or { file = "path" }"#)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
        if text.is_empty() { Err(E::invalid_length(0, &self)) } else { Ok(Secret::new(text)) }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
        let Some((source, name)) = map.next_entry::<String, String>()? else {
            return Err(A::Error::invalid_length(0, &self));
        };
        if map.next_key::<String>()?.is_some() {
            return Err(A::Error::invalid_length(2, &self));
        }
        Secret::read(&source, &name).map_err(A::Error::custom)
    }
}

/// One secret, or a list of them while they are being exchanged.
pub(super) fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Secret>, D::Error> {
    struct Several;

    impl<'de> Visitor<'de> for Several {
        type Value = Vec<Secret>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            OneSecret.expecting(f)?;
            f.write_str(", or a list of them")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<Secret>, E> {
            OneSecret.visit_str(text).map(|secret| vec![secret])
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<Secret>, A::Error> {
            OneSecret.visit_map(map).map(|secret| vec![secret])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Secret>, A::Error> {
            let mut secrets = Vec::new();
            while let Some(secret) = list.next_element()? {
                secrets.push(secret);
            }
            if secrets.is_empty() { Err(A::Error::invalid_length(0, &self)) } else { Ok(secrets) }
        }
    }

    deserializer.deserialize_any(Several)
}
