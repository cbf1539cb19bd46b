use std::{fmt, str::FromStr, time::Duration};

use http::Uri;
use serde::{Deserialize, Deserializer, de::Error as _};

/// An `http` or `https` address without a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl(Uri);

impl BaseUrl {
    /// An address known to be one.
    pub(super) fn from_static(text: &'static str) -> Self {
        Self(Uri::from_static(text))
    }

    /// The address of `path_and_query`, which begins with a slash and is valid in a URL.
    ///
    /// # Errors
    /// When the path is not valid in a URL.
    pub fn join(&self, path_and_query: &str) -> Result<Uri, http::Error> {
        let parts = self.0.clone().into_parts();
        Uri::builder()
            .scheme(parts.scheme.expect("checked by from_str"))
            .authority(parts.authority.expect("checked by from_str"))
            .path_and_query(path_and_query)
            .build()
    }

    /// The host, without scheme and port.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host().expect("checked by from_str")
    }

    /// The port, that of the scheme when none is written.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(if self.0.scheme_str() == Some("https") { 443 } else { 80 })
    }
}

impl FromStr for BaseUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected http:// or https://, a host, and nothing else but a port";
        let uri = Uri::from_str(text).map_err(|_| expected)?;
        let plain = uri.host().is_some_and(|h| !h.is_empty()) && !text.contains('@') && !text.contains('?');
        match uri.scheme_str() {
            Some("http" | "https") if plain && uri.path() == "/" => Ok(Self(uri)),
            _ => Err(expected),
        }
    }
}

/// Whole or broken seconds, more than none and at most a day.
pub(super) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    if seconds > 0.0 && seconds <= 86_400.0 {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(D::Error::custom("expected more than 0 and at most 86400 seconds"))
    }
}

pub(super) fn some_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    seconds(deserializer).map(Some)
}

pub(super) fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

pub(super) fn list_parsed<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

pub(super) fn some_parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    parsed(deserializer).map(Some)
}
