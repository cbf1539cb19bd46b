use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

/// A secret of the configuration: written as text, `{ env = "NAME" }`, `{ file = "path" }` or, in the table `vault`'s Vault,
/// `{ vault = "path", field = "name" }`.
///
/// A file's last line end does not belong to the secret. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    text: Arc<str>,
    source: Source,
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// The configuration itself or the environment, which nobody changes while the service runs.
    Fixed,
    File(PathBuf),
    /// A field of a KV secret.
    Vault {
        mount: Option<String>,
        path: String,
        field: String,
    },
}

impl Secret {
    /// Takes the text as it is.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { text: text.into(), source: Source::Fixed }
    }

    /// The secret in a file that is followed; read when the service starts.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { text: "".into(), source: Source::File(path.into()) }
    }

    /// A field of a secret in Vault that is followed; read when the service starts.
    #[must_use]
    pub fn vault(path: &str, field: &str) -> Self {
        let source = Source::Vault { mount: None, path: path.into(), field: field.into() };
        Self { text: "".into(), source }
    }

    /// The secret itself, as it was when it was read. Empty before that. Not for logs and errors.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Is it read only when the service starts?
    pub(crate) fn is_open(&self) -> bool {
        self.text.is_empty()
    }

    pub(crate) fn fill(&mut self, text: &str) {
        self.text = text.into();
    }
}

fn of_env(name: &str) -> Result<Secret, String> {
    match std::env::var(name) {
        Ok(text) if text.is_empty() => Err(format!("the env {name} is empty")),
        Ok(text) => Ok(Secret::new(&text)),
        Err(_) => Err(format!("the environment variable {name} is not set to text")),
    }
}

/// It is read here too, so that what is wrong with it is said together with all else that is wrong with the configuration.
fn of_file(name: &str) -> Result<Secret, String> {
    let text = std::fs::read_to_string(name).map_err(|e| format!("cannot read the file {name}: {e}"))?;
    let text = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
    match text {
        "" => Err(format!("the file {name} is empty")),
        text => Ok(Secret { text: text.into(), source: Source::File(Path::new(name).into()) }),
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
        f.write_str(
            r#"a text that is not empty, { env = "NAME" }, { file = "path" } or { vault = "path", field = "name" }"#,
        )
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
        if text.is_empty() { Err(E::invalid_length(0, &self)) } else { Ok(Secret::new(text)) }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
        let (mut source, mut field, mut mount) = (None, None, None);
        let mut count = 0;
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            count += 1;
            match &*name {
                "env" | "file" | "vault" if source.is_none() => source = Some((name, value)),
                "env" | "file" | "vault" => return Err(A::Error::invalid_length(count, &self)),
                "field" => field = Some(value),
                "mount" => mount = Some(value),
                _ => {
                    let expected = "expected `env`, `file`, or `vault` with `field` and maybe `mount`";
                    return Err(A::Error::custom(format!("unknown field `{name}`, {expected}")));
                }
            }
        }
        let Some((source, name)) = source else { return Err(A::Error::invalid_length(0, &self)) };
        match (&*source, field, mount) {
            ("env", None, None) => of_env(&name).map_err(A::Error::custom),
            ("file", None, None) => of_file(&name).map_err(A::Error::custom),
            ("vault", Some(field), mount) if !name.is_empty() && !field.is_empty() => {
                Ok(Secret { text: "".into(), source: Source::Vault { mount, path: name, field } })
            }
            ("vault", ..) => Err(A::Error::custom("which field of the secret in vault? expected field = \"name\"")),
            _ => Err(A::Error::invalid_length(count, &self)),
        }
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
