use std::{
    collections::HashMap,
    fmt,
    future::Pending,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arc_swap::ArcSwap;
use coze_core::{BotId, Context, Error, Kind, Principal, TenantId, UserId};
use http::{HeaderMap, HeaderName, Uri, header::AUTHORIZATION, request::Parts, uri::PathAndQuery};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    Access, Admitted, Decision, Key, Policy,
    access::Rules,
    refused::Refused,
    report::Report,
    verify::{self, malformed, missing},
};

/// How many keys there are at most.
pub const MAX_API_KEYS: usize = 10_000;

/// A key has so many characters: 32 hex digits are 128 random bits, which nobody guesses.
const LENGTHS: std::ops::RangeInclusive<usize> = 32..=512;

/// What the platform says about the call of a plugin (coze-platform.md §5.3).
static USER: HeaderName = HeaderName::from_static("x-aiplugin-connector-identifier");
static BOT: HeaderName = HeaderName::from_static("x-aiplugin-bot-id");

/// Whose a static key is, and what may be done with it. The key itself is not kept, only its SHA-256.
///
/// A fast hash is right for keys that were drawn at random: there is nothing to guess, with however many tries. It would not be for
/// what people choose, and so what is shorter than 32 characters is refused. Draw 32 bytes: `openssl rand -hex 32`.
#[derive(Clone)]
pub struct ApiKey {
    digest: Digest,
    owner: Owner,
}

#[derive(Clone)]
struct Owner {
    principal: Principal,
    tenant: Option<TenantId>,
}

impl ApiKey {
    /// The key of `name`, which is what is noted on the context. Several keys may have one name while they are exchanged.
    ///
    /// # Errors
    /// `key_invalid`, [`Kind::Invalid`]: the key is not 32 to 512 characters of visible ASCII.
    pub fn new(name: &str, key: &Key) -> Result<Self, Error> {
        let key = key.bytes();
        if !LENGTHS.contains(&key.len()) || !key.iter().all(u8::is_ascii_graphic) {
            let (least, most) = (LENGTHS.start(), LENGTHS.end());
            return Err(invalid(format!("a key is {least} to {most} characters of visible ascii, drawn at random")));
        }
        Ok(Self::with(name, Digest::of(key)))
    }

    /// A key of which only the SHA-256 is known, in 64 hex digits. What it was made of is the caller's responsibility.
    ///
    /// # Errors
    /// `key_invalid`, [`Kind::Invalid`]: it is something else.
    pub fn hashed(name: &str, sha256: &str) -> Result<Self, Error> {
        match verify::bytes_of_hex(sha256.as_bytes()) {
            Some(digest) => Ok(Self::with(name, Digest(digest))),
            None => Err(invalid("the sha-256 of a key is 64 hex digits".to_owned())),
        }
    }

    fn with(name: &str, digest: Digest) -> Self {
        Self { digest, owner: Owner { principal: Principal::new("api_key", name), tenant: None } }
    }

    /// What may be done with it, for [`ApiKeys::access`].
    #[must_use]
    pub fn scopes<'s>(self, scopes: impl IntoIterator<Item = &'s str>) -> Self {
        let principal = self.owner.principal.with_scopes(scopes);
        Self { owner: Owner { principal, ..self.owner }, ..self }
    }

    /// Whose requests are made with it, noted on the context for the layers that follow.
    #[must_use]
    pub fn tenant(self, tenant: TenantId) -> Self {
        Self { owner: Owner { tenant: Some(tenant), ..self.owner }, ..self }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner { principal, tenant } = &self.owner;
        f.debug_struct("ApiKey").field("principal", principal).field("tenant", tenant).finish_non_exhaustive()
    }
}

/// The inbound policy for static keys, such as the service token of a plugin (coze-platform.md §5.3).
///
/// A request brings its key in a header, or, if that is switched on, in its query. If the key is accepted it goes on without it. Whose key it is is noted on the
/// context as a principal of the scheme `api_key`. It is decided on at once. Clones share the keys, which are replaceable while
/// requests are checked.
///
/// A key is found by its hash, in a table whose order nobody outside can know, and compared in constant time: how long it takes tells
/// nothing about the keys there are.
///
/// ```
/// use coze_auth::{ApiKey, ApiKeys, AuthLayer, Key, Routes};
/// use http::Method;
///
/// # fn main() -> Result<(), coze_core::Error> {
/// let history = ApiKey::new("history", &Key::new("0123456789abcdef0123456789abcdef")?)?.scopes(["history:read"]);
/// let routes = Routes::new().require(Method::POST, "/plugin/history", ["history:read"]);
/// let layer = AuthLayer::new(ApiKeys::new([history])?.query("key").plugin_headers().access(routes));
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ApiKeys {
    table: Arc<ArcSwap<Table>>,
    header: HeaderName,
    query: Option<Arc<str>>,
    is_plugin: bool,
    access: Rules,
    report: Report,
}

type Table = HashMap<Digest, Arc<Owner>>;

impl ApiKeys {
    /// Accepts these keys. Without any, nobody is accepted.
    ///
    /// # Errors
    /// Those of [`ApiKeys::replace`].
    pub fn new(keys: impl IntoIterator<Item = ApiKey>) -> Result<Self, Error> {
        let table = Arc::new(ArcSwap::from_pointee(table(keys)?));
        let (access, report) = (Rules::default(), Report::default());
        Ok(Self { table, header: AUTHORIZATION, query: None, is_plugin: false, access, report })
    }

    /// Accepts these keys from now on, and no others. While keys are exchanged it has the old one and the new one.
    ///
    /// # Errors
    /// `keys_too_many` and `keys_ambiguous`, [`Kind::Invalid`]: more than [`MAX_API_KEYS`], or one key twice. Then the keys stay
    /// as they were.
    pub fn replace(&self, keys: impl IntoIterator<Item = ApiKey>) -> Result<(), Error> {
        self.table.store(Arc::new(table(keys)?));
        Ok(())
    }

    /// The header that carries the key: `authorization` unless set, in which it follows `Bearer ` (RFC 6750 §2.1). Of any other
    /// header it is the whole value.
    #[must_use]
    pub fn header(self, name: HeaderName) -> Self {
        Self { header: name, ..self }
    }

    /// Takes the key from this parameter of the query too, and out of the address, so that it reaches no log that is written
    /// further in. What stands outside of this layer sees it: proxies in front log addresses too, so prefer the header.
    #[must_use]
    pub fn query(self, name: &str) -> Self {
        Self { query: Some(name.into()), ..self }
    }

    /// Notes for whom the platform calls a plugin, when the key is accepted: `X-Aiplugin-Connector-Identifier` as the user, and
    /// `X-AIPlugin-Bot-ID` as the bot. They are as trustworthy as the key is secret, as nobody signs them.
    #[must_use]
    pub fn plugin_headers(self) -> Self {
        Self { is_plugin: true, ..self }
    }

    /// Asks whether the caller may do what the request is for. Without this whoever has a key may do everything.
    #[must_use]
    pub fn access(self, access: impl Access + Send + Sync + 'static) -> Self {
        Self { access: Rules::new(access), ..self }
    }

    /// Refuses nobody: what would have been refused is counted, noted on the context as reported, and let through, as it may
    /// well be without a principal. For trying out rules while something else guards the service.
    #[must_use]
    pub fn report_only(self) -> Self {
        Self { report: Report::only(), ..self }
    }

    /// How many requests [`ApiKeys::report_only`] let through that would have been refused, over all clones.
    #[must_use]
    pub fn reported(&self) -> u64 {
        self.report.count()
    }

    fn decide(&self, head: &mut Parts, context: &Context) -> Result<(), Refused> {
        let (digest, without) = self.find(head)?;
        let Some(owner) = self.table.load().get(&digest).cloned() else {
            let error = Error::new(Kind::Unauthenticated, "unknown_key");
            return Err(error.with_message("the key is none of ours").into());
        };
        head.headers.remove(&self.header);
        if let Some(uri) = without {
            head.uri = uri;
        }
        context.principal.get_or_init(|| owner.principal.clone());
        if let Some(tenant) = &owner.tenant {
            context.tenant.get_or_init(|| tenant.clone());
        }
        let permitted = self.access.permit(head, &owner.principal).and_then(|()| match self.is_plugin {
            true => called_for(&head.headers, context),
            false => Ok(()),
        });
        permitted.map_err(|error| Refused::from(error).of(Some(&owner.principal.subject)))
    }

    /// The key, wherever it is, and the address without it, where it is there.
    fn find(&self, head: &Parts) -> Result<(Digest, Option<Uri>), Error> {
        let in_query = match &self.query {
            Some(name) => parameter(&head.uri, name)?,
            None => None,
        };
        let in_header = match verify::optional(&head.headers, &self.header)? {
            Some(_) if self.header == AUTHORIZATION => Some(verify::bearer(&head.headers)?),
            value => value.map(|value| value.as_bytes()),
        };
        match (in_header, in_query) {
            (Some(key), None) => Ok((Digest::of(key), None)),
            (None, Some((digest, uri))) => Ok((digest, Some(uri))),
            (Some(_), Some(_)) => Err(malformed("the key is given twice".to_owned())),
            (None, None) => Err(missing(format!("no key is given, such as in the header {}", self.header))),
        }
    }
}

impl<B> Policy<B> for ApiKeys {
    type Body = B;
    type Ticket = ();
    type Future = Pending<Result<Admitted<B>, Error>>;

    fn authorize(&self, head: &mut Parts, body: B) -> Decision<(B, ()), Self::Future> {
        let context = Context::of(&mut head.extensions);
        let verdict = self.decide(head, &context);
        Decision::Now(self.report.settle(&context, verdict).map(|()| (body, ())))
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys")
            .field("keys", &self.table.load().len())
            .field("header", &self.header)
            .field("query", &self.query)
            .field("access", &self.access)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

/// The SHA-256 of a key. It never shows itself.
#[derive(Clone, Copy)]
struct Digest([u8; 32]);

impl Digest {
    fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Digest {}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

fn table(keys: impl IntoIterator<Item = ApiKey>) -> Result<Table, Error> {
    let mut table = Table::new();
    for key in keys {
        if table.len() >= MAX_API_KEYS {
            return Err(Error::new(Kind::Invalid, "keys_too_many")
                .with_message(format!("there are at most {MAX_API_KEYS} keys")));
        }
        if table.insert(key.digest, Arc::new(key.owner)).is_some() {
            return Err(Error::new(Kind::Invalid, "keys_ambiguous").with_message("a key is somebody else's too"));
        }
    }
    Ok(table)
}

fn called_for(headers: &HeaderMap, context: &Context) -> Result<(), Error> {
    if let Some(user) = id(headers, &USER, UserId::new)? {
        context.user.get_or_init(|| user);
    }
    if let Some(bot) = id(headers, &BOT, BotId::new)? {
        context.bot.get_or_init(|| bot);
    }
    Ok(())
}

/// An id in a header. What a person is called on a channel may be in any script.
fn id<T, E>(headers: &HeaderMap, name: &HeaderName, read: fn(&str) -> Result<T, E>) -> Result<Option<T>, Error> {
    let Some(value) = verify::optional(headers, name)? else { return Ok(None) };
    let id = str::from_utf8(value.as_bytes()).ok().and_then(|text| read(text).ok());
    id.map(Some).ok_or_else(|| malformed(format!("the header {name} is not an id")))
}

/// The value of the parameter of this name, and the address without it.
fn parameter(uri: &Uri, name: &str) -> Result<Option<(Digest, Uri)>, Error> {
    let is_it = |pair: &&str| decoded(pair.split('=').next().unwrap_or_default()) == name.as_bytes();
    let (found, others): (Vec<&str>, Vec<&str>) = uri.query().unwrap_or_default().split('&').partition(is_it);
    let pair = match found[..] {
        [] => return Ok(None),
        [pair] => pair,
        _ => return Err(malformed(format!("the parameter {name} is given more than once"))),
    };
    let value = pair.split_once('=').map_or_else(Vec::new, |(_, value)| decoded(value));
    let rest = match others[..] {
        [] => uri.path().to_owned(),
        _ => format!("{}?{}", uri.path(), others.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(rest).expect("an address with less in its query is one"));
    Ok(Some((Digest::of(&value), Uri::from_parts(parts).expect("an address with less in its query is one"))))
}

/// Without percent-encoding (RFC 3986 §2.1). What only looks like it stays as it is.
fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.split_at_checked(2).filter(|_| *first == b'%');
        let (byte, after) = match digits.map(|(digits, after)| (verify::bytes_of_hex(digits), after)) {
            Some((Some([byte]), after)) => (byte, after),
            _ => (*first, tail),
        };
        out.push(byte);
        rest = after;
    }
    out
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, "key_invalid").with_message(message)
}
