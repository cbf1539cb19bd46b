use std::fmt;

use bytes::Bytes;
use coze_core::{Error, Kind};
use http::{Uri, uri::Scheme};
use serde_json::{Map, Value};

/// Where the document of a resource at the root of its host is found (RFC 9728 §3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// What clients may read of a service, to find out how to get a token for it: protected resource metadata (RFC 9728).
///
/// It is a document of JSON that anybody may `GET` at [`path`](Self::path), as `application/json`. A challenge names it by its
/// [`url`](Self::url), and then the resource has to be the URL that the client asked, letter by letter (§3.3). Tokens are
/// taken from the header `authorization` alone, as [`Jwt`](crate::Jwt) takes them.
///
/// ```
/// use coze_auth::ResourceMetadata;
///
/// let metadata = ResourceMetadata::new("https://bot.example/v1")?
///     .authorization_servers(["https://issuer.example"])?
///     .scopes(["bot:read", "bot:write"])?
///     .name("The bot");
/// assert_eq!(metadata.path(), "/.well-known/oauth-protected-resource/v1");
/// assert_eq!(metadata.url(), "https://bot.example/.well-known/oauth-protected-resource/v1");
/// assert!(metadata.json().starts_with(br#"{"authorization_servers":["https://issuer.example"],"#));
/// # Ok::<(), coze_core::Error>(())
/// ```
#[derive(Clone)]
pub struct ResourceMetadata {
    origin: Box<str>,
    /// What follows the host in the resource's identifier, unless it is a slash alone.
    rest: Box<str>,
    members: Map<String, Value>,
}

impl ResourceMetadata {
    /// The metadata of the resource with this identifier: an https URL without a fragment, best also without a query (§1.2).
    ///
    /// # Errors
    /// `metadata_invalid`, [`Kind::Invalid`]: something else. The same for all other URLs and scopes here.
    pub fn new(resource: &str) -> Result<Self, Error> {
        let valid = secure(resource)?;
        let host = valid.authority().map_or("", |authority| authority.as_str());
        let (origin, rest) = resource.split_at("https://".len() + host.len());
        // A slash that ends the host is not part of what follows it (§3.1).
        let rest = match rest.strip_prefix('/') {
            Some(end) if end.is_empty() || end.starts_with('?') => end,
            _ => rest,
        };
        let members = Map::from_iter([("resource".to_owned(), resource.into())]);
        Ok(Self { origin: origin.into(), rest: rest.into(), members }.list("bearer_methods_supported", ["header"]))
    }

    /// The issuers whose tokens are taken, by their identifiers: https URLs without query and fragment (RFC 8414 §2).
    ///
    /// # Errors
    /// As [`ResourceMetadata::new`].
    pub fn authorization_servers<'i>(self, issuers: impl IntoIterator<Item = &'i str>) -> Result<Self, Error> {
        let issuers: Vec<_> = issuers.into_iter().collect();
        for issuer in &issuers {
            if secure(issuer)?.query().is_some() {
                return Err(invalid(format!("the issuer {issuer} has a query")));
            }
        }
        Ok(self.list("authorization_servers", issuers))
    }

    /// The scopes that a client may ask for.
    ///
    /// # Errors
    /// As [`ResourceMetadata::new`]: one that is no `scope-token` (RFC 6749 §3.3).
    pub fn scopes<'s>(self, scopes: impl IntoIterator<Item = &'s str>) -> Result<Self, Error> {
        let scopes: Vec<_> = scopes.into_iter().collect();
        let is_token =
            |scope: &&str| !scope.is_empty() && scope.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\".contains(&b));
        match scopes.iter().find(|scope| !is_token(scope)) {
            Some(wrong) => Err(invalid(format!("{wrong:?} is no scope"))),
            None => Ok(self.list("scopes_supported", scopes)),
        }
    }

    /// Where the resource's own public keys are, by which clients verify what it signs. Not the issuer's keys.
    ///
    /// # Errors
    /// As [`ResourceMetadata::new`].
    pub fn jwks(self, url: &str) -> Result<Self, Error> {
        secure(url)?;
        Ok(self.text("jwks_uri", url))
    }

    /// The resource's name, for people.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.text("resource_name", name)
    }

    /// A page for developers about how to use it.
    ///
    /// # Errors
    /// As [`ResourceMetadata::new`], but http will do.
    pub fn documentation(self, url: &str) -> Result<Self, Error> {
        page(url)?;
        Ok(self.text("resource_documentation", url))
    }

    /// A page about what clients may do with the data.
    ///
    /// # Errors
    /// As [`ResourceMetadata::documentation`].
    pub fn policy(self, url: &str) -> Result<Self, Error> {
        page(url)?;
        Ok(self.text("resource_policy_uri", url))
    }

    /// A page with the terms of service.
    ///
    /// # Errors
    /// As [`ResourceMetadata::documentation`].
    pub fn terms(self, url: &str) -> Result<Self, Error> {
        page(url)?;
        Ok(self.text("resource_tos_uri", url))
    }

    /// The path at which the document is to be found, on the resource's host (§3.1).
    #[must_use]
    pub fn path(&self) -> String {
        let path = self.rest.split('?').next().unwrap_or_default();
        format!("{WELL_KNOWN}{path}")
    }

    /// The whole URL, with the query if the resource has one.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}{WELL_KNOWN}{}", self.origin, self.rest)
    }

    /// The document.
    #[must_use]
    pub fn json(&self) -> Bytes {
        serde_json::to_vec(&self.members).expect("texts and lists are JSON").into()
    }

    fn text(mut self, name: &str, text: &str) -> Self {
        self.members.insert(name.to_owned(), text.into());
        self
    }

    /// A list without elements is left out (§3.2).
    fn list<'t>(mut self, name: &str, texts: impl IntoIterator<Item = &'t str>) -> Self {
        let texts: Vec<_> = texts.into_iter().collect();
        match texts.is_empty() {
            true => self.members.remove(name),
            false => self.members.insert(name.to_owned(), texts.into()),
        };
        self
    }
}

impl fmt::Debug for ResourceMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ResourceMetadata").field(&self.members).finish()
    }
}

fn secure(url: &str) -> Result<Uri, Error> {
    page(url).and_then(|uri| match uri.scheme() == Some(&Scheme::HTTPS) {
        true => Ok(uri),
        false => Err(invalid(format!("{url} is not an https URL"))),
    })
}

/// A URL of the web without a fragment, in the characters of RFC 3986, that names nobody's password.
fn page(url: &str) -> Result<Uri, Error> {
    let is_allowed = |byte: u8| byte.is_ascii_graphic() && !br##""#<>\^`{|}"##.contains(&byte);
    let uri = url.parse::<Uri>().ok().filter(|uri| {
        let is_web = uri.scheme() == Some(&Scheme::HTTPS) || uri.scheme() == Some(&Scheme::HTTP);
        is_web
            && uri
                .authority()
                .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))
    });
    uri.filter(|_| url.bytes().all(is_allowed))
        .ok_or_else(|| invalid("this is not a URL of the web without a fragment".to_owned()))
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, "metadata_invalid").with_message(message)
}
