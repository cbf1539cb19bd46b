//! Tokens that say who calls, and prove it.

mod cache;
mod claims;
mod compact;
mod fetched;
mod jwk;
mod key;
mod keys;
mod metadata;
mod object;
mod places;
mod revoked;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coze_core::{Context, Error, Kind};
use http::{Request, request::Parts};

use self::{
    cache::{Cache, Entry, Hash, Hashing},
    claims::Claims,
    compact::Compact,
    keys::{Missed, unauthenticated},
    revoked::Revoked,
};
pub use self::{
    claims::Issuer,
    fetched::{FetchedKeys, KeyFetch},
    key::{Algorithm, JwtKey},
    keys::JwtKeys,
    metadata::ResourceMetadata,
};
use crate::{
    Access, Admitted, Decision, Policy,
    access::Rules,
    refused::Refused,
    report::Report,
    take_request,
    verify::{bearer, malformed},
};

/// The longest list of issuers.
const MAX_ISSUERS: usize = 64;

/// The inbound policy for JSON web tokens (RFC 7519): `Authorization: Bearer` carries a signed one of an issuer we know.
///
/// The claims are believed when the issuer's key verifies the signature. Then `exp`, `nbf`, `iat` and `aud` are looked at, and
/// `sub` is noted on the context as a principal of the scheme `jwt`, with the scopes of `scope` or `scp`. `exp` and `sub` have
/// to be there. A time is one in seconds, a fraction included, from 1970 to 9999: another one is in other units, and refused.
///
/// A token cannot choose its key, nor an algorithm that the key is not for: what its header says of keys (`jku`, `jwk`, `x5u`,
/// `x5c`) is not looked at. One that insists on an extension (`crit`, or a payload by RFC 7797) is refused, as are unsigned and
/// encrypted tokens, members given twice, and base64 that is not in its one right form. A `typ` other than `JWT` or `at+jwt` is
/// that of a token for another purpose (RFC 8725 §3.11), and refused.
///
/// A request is decided on at once, unless its token names a key that has to be fetched first. A token that was verified is remembered by its hash
/// until it expires or its issuer's keys are replaced, so that the next request with it costs no cryptography. Clones share the
/// keys, what is remembered, and what is revoked.
///
/// ```
/// use coze_auth::{Algorithm, AuthLayer, Issuer, Jwt, JwtKey, JwtKeys};
///
/// # fn main() -> Result<(), coze_core::Error> {
/// let secret = JwtKey::new(Algorithm::Hs256, "0123456789abcdef0123456789abcdef")?;
/// let issuer = Issuer::new("https://issuer.example", JwtKeys::new([secret.named("k1")])?).audience("bots");
/// let layer = AuthLayer::new(Jwt::new([issuer])?.tenant("tenant"));
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Jwt {
    issuers: Arc<[Issuer]>,
    tenant: Option<Arc<str>>,
    limit: usize,
    clock: fn() -> SystemTime,
    cache: Option<Arc<Cache>>,
    revoked: Arc<Revoked>,
    hashing: Hashing,
    access: Rules,
    report: Report,
}

impl Jwt {
    /// Accepts the tokens of these issuers, at least one and at most 64, each of another name.
    ///
    /// # Errors
    /// `issuers_invalid`, [`Kind::Invalid`]: too few, too many, or two of one name.
    pub fn new(issuers: impl IntoIterator<Item = Issuer>) -> Result<Self, Error> {
        let issuers: Arc<[_]> = issuers.into_iter().take(MAX_ISSUERS + 1).collect();
        let is_known = |(index, issuer): (usize, &Issuer)| issuers[..index].iter().any(|i| i.name() == issuer.name());
        if issuers.is_empty() || issuers.len() > MAX_ISSUERS || issuers.iter().enumerate().any(is_known) {
            return Err(Error::new(Kind::Invalid, "issuers_invalid")
                .with_message(format!("there are 1 to {MAX_ISSUERS} issuers, each of another name")));
        }
        Ok(Self {
            issuers,
            tenant: None,
            limit: 8 * 1024,
            clock: SystemTime::now,
            cache: Some(Arc::new(Cache::new(10_000))),
            revoked: Arc::new(Revoked::new(65_536)),
            hashing: Hashing::new(),
            access: Rules::default(),
            report: Report::default(),
        })
    }

    /// The claim whose value is the tenant, noted on the context for the layers that follow; a token without it names none.
    /// Without this no claim does.
    #[must_use]
    pub fn tenant(self, claim: &str) -> Self {
        // What a clone remembers was read without it.
        let cache = self.cache.map(|cache| Arc::new(Cache::new(cache.capacity())));
        Self { tenant: Some(claim.into()), cache, ..self }
    }

    /// The most bytes a token may have; 8 KiB unless set.
    #[must_use]
    pub fn limit(self, bytes: usize) -> Self {
        Self { limit: bytes, ..self }
    }

    /// Reads the time elsewhere than from [`SystemTime::now`].
    #[must_use]
    pub fn clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    /// How many verified tokens are remembered, at least 2; 10 000 unless set, and with 0 none. Starts with an empty memory,
    /// shared by the clones made from now on.
    #[must_use]
    pub fn cache(self, tokens: usize) -> Self {
        Self { cache: (tokens > 0).then(|| Arc::new(Cache::new(tokens))), ..self }
    }

    /// How many revocations are kept; 65 536 unless set. Starts with an empty list, shared by the clones made from now on.
    #[must_use]
    pub fn revocations(self, capacity: usize) -> Self {
        Self { revoked: Arc::new(Revoked::new(capacity)), ..self }
    }

    /// Asks whether the caller may do what the request is for. Without this whoever is authenticated may do everything.
    #[must_use]
    pub fn access(self, access: impl Access + Send + Sync + 'static) -> Self {
        Self { access: Rules::new(access), ..self }
    }

    /// Refuses nobody: what would have been refused is counted, noted on the context as reported, and let through,
    /// as it may well be without a principal. For trying out rules while something else guards the service.
    #[must_use]
    pub fn report_only(self) -> Self {
        Self { report: Report::only(), ..self }
    }

    /// How many requests [`Jwt::report_only`] let through that would have been refused, over all clones.
    #[must_use]
    pub fn reported(&self) -> u64 {
        self.report.count()
    }

    /// Refuses this token (`revoked`) from now on until the given time. When it expires is as good as for ever, also where the
    /// leeway would let it in for a while longer.
    ///
    /// It is what was signed that is refused: of some signatures anybody can make another valid one.
    ///
    /// # Errors
    /// `revocations_full`, [`Kind::Overloaded`]: there are as many already, and none of them has ended.
    pub fn revoke(&self, token: &str, until: SystemTime) -> Result<(), Error> {
        let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
        self.revoked.add(self.hashing.hash(&[signed.as_bytes()]), seconds(until), self.over())
    }

    /// Refuses the tokens of this issuer that have this `jti`, from now on until the given time.
    ///
    /// # Errors
    /// As [`Jwt::revoke`].
    pub fn revoke_id(&self, issuer: &str, jti: &str, until: SystemTime) -> Result<(), Error> {
        self.revoked.add(self.id(issuer, jti), seconds(until), self.over())
    }

    /// By which a token is revoked that has an id. The length keeps the two apart, and both from a token.
    fn id(&self, issuer: &str, jti: &str) -> Hash {
        self.hashing.hash(&[b"jti", &issuer.len().to_le_bytes(), issuer.as_bytes(), jti.as_bytes()])
    }

    fn now(&self) -> f64 {
        seconds((self.clock)())
    }

    /// What expired before then is accepted of no issuer.
    fn over(&self) -> f64 {
        let leeway = self.issuers.iter().map(|issuer| issuer.leeway).max().unwrap_or_default();
        self.now() - leeway.as_secs_f64()
    }

    /// Decides on a request, as far as the keys allow that are there.
    fn decide(&self, head: &Parts, context: &Context) -> Result<(), Refusal> {
        let token = bearer(&head.headers)?;
        if token.len() > self.limit {
            return Err(malformed(format!("the token has more than {} bytes", self.limit)).into());
        }
        let now = self.now();
        let entry = self.verify(token, now)?;
        context.principal.get_or_init(|| entry.accepted.principal.clone());
        if let Some(tenant) = &entry.accepted.tenant {
            context.tenant.get_or_init(|| tenant.clone());
        }
        let permitted = self.access.permit(head, &entry.accepted.principal);
        permitted.map_err(|error| self.of(entry.issuer, error))?;
        context.token_life.get_or_init(|| Duration::from_secs_f64((entry.accepted.end - now).max(0.0)));
        Ok(())
    }

    /// A refusal of what the issuer at this place made, or is said to have made.
    fn of(&self, issuer: usize, error: Error) -> Refused {
        Refused::from(error).of(Some(self.issuers[issuer].name()))
    }

    /// The verdict on a request that waits no longer.
    fn settled(&self, context: &Context, verdict: Result<(), Refusal>) -> Result<(), Error> {
        let verdict = verdict.map_err(|refusal| match refusal {
            Refusal::For(refused) => refused,
            Refusal::NoKey(issuer, error) => {
                self.of(issuer, error.unwrap_or_else(|| self.issuers[issuer].keys().absent()))
            }
        });
        self.report.settle(context, verdict)
    }

    fn verify(&self, token: &[u8], now: f64) -> Result<Arc<Entry>, Refusal> {
        let cache = self.cache.as_deref().map(|cache| (cache, self.hashing.hash(&[token])));
        let counts = |entry: &Entry| {
            now < entry.accepted.end && self.issuers[entry.issuer].keys().generation() == entry.generation
        };
        let entry = match cache.and_then(|(cache, hash)| cache.get(hash, counts)) {
            Some(entry) => entry,
            None => {
                let entry = Arc::new(self.read(token, now)?);
                if let Some((cache, hash)) = cache {
                    cache.put(hash, entry.clone());
                }
                entry
            }
        };
        match self.revoked.has(&entry, now) {
            true => Err(self.of(entry.issuer, unauthenticated("revoked", "the token is revoked")).into()),
            false => Ok(entry),
        }
    }

    fn read(&self, token: &[u8], now: f64) -> Result<Entry, Refusal> {
        let compact = Compact::parse(token)?;
        let header = compact.header()?;
        if header.typ.as_deref().is_some_and(|typ| !is_access_token(typ)) {
            return Err(malformed("the token is of a type for another purpose".to_owned()).into());
        }
        let claims = Claims::parse(compact.payload(), self.tenant.as_deref())?;
        // Whose keys to try is all that is taken from a token before it is verified.
        let position = self.issuers.iter().position(|issuer| claims.iss.as_deref() == Some(&**issuer.name()));
        let Some((position, issuer)) = position.map(|position| (position, &self.issuers[position])) else {
            return Err(unauthenticated("issuer_mismatch", "the token is not of an issuer we know").into());
        };
        let keys = issuer.keys().current();
        let algorithm = header.algorithm().filter(|algorithm| issuer.allows(*algorithm));
        keys.verify(&compact, header.kid.as_deref(), algorithm).map_err(|missed| match missed {
            Missed::Signature(error) => self.of(position, error).into(),
            Missed::Key(error) => Refusal::NoKey(position, error),
        })?;
        Ok(Entry {
            accepted: issuer.accept(&claims, now).map_err(|error| self.of(position, error))?,
            issuer: position,
            generation: keys.generation,
            signed: self.hashing.hash(&[compact.signed]),
            id: claims.jti.as_deref().map(|jti| self.id(issuer.name(), jti)),
        })
    }
}

/// Why a request is not let through.
enum Refusal {
    For(Refused),
    /// The issuer at this place has no such key, at least not yet, and if it gets none, this is why.
    NoKey(usize, Option<Error>),
}

impl<E: Into<Refused>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::For(error.into())
    }
}

impl<B> Policy<B> for Jwt {
    type Body = B;
    type Ticket = ();
    type Future = Refetch<B>;

    fn authorize(&self, head: &mut Parts, body: B) -> Decision<(B, ()), Self::Future> {
        let mut inserted = None;
        let context = match head.extensions.get() {
            Some(context) => context,
            None => &*inserted.insert(Context::insert(&mut head.extensions)),
        };
        let verdict = self.decide(head, context);
        if let Err(Refusal::NoKey(issuer, _)) = verdict
            && let Some(wait) = self.issuers[issuer].keys().wish()
        {
            return Decision::Later(Refetch::new(take_request(head, body), self.clone(), wait));
        }
        Decision::Now(self.settled(context, verdict).map(|()| (body, ())))
    }
}

/// Waits for a key, and decides with what is there then.
///
/// In a box, because a request that need not wait is moved about together with the room for one that does.
#[must_use = "futures do nothing unless polled"]
pub struct Refetch<B>(Box<Waiting<B>>);

struct Waiting<B> {
    wait: Pin<Box<dyn Future<Output = ()> + Send>>,
    held: Option<(Request<B>, Jwt)>,
}

impl<B> Refetch<B> {
    #[cold]
    fn new(request: Request<B>, jwt: Jwt, wait: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Box::new(Waiting { wait: Box::pin(wait), held: Some((request, jwt)) }))
    }
}

impl<B> Future for Refetch<B> {
    type Output = Result<Admitted<B>, Error>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        ready!(self.0.wait.as_mut().poll(task));
        let (request, jwt) = self.0.held.take().expect("a future is not polled after it is ready");
        let (mut head, body) = request.into_parts();
        let context = Context::of(&mut head.extensions);
        let verdict = jwt.decide(&head, &context);
        Poll::Ready(jwt.settled(&context, verdict).map(|()| (Request::from_parts(head, body), ())))
    }
}

impl<B> fmt::Debug for Refetch<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refetch").finish_non_exhaustive()
    }
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt")
            .field("issuers", &self.issuers)
            .field("tenant", &self.tenant)
            .field("limit", &self.limit)
            .field("access", &self.access)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// `JWT` (RFC 7519 §5.1) or `at+jwt` (RFC 9068 §2.1), with or without `application/`.
fn is_access_token(typ: &str) -> bool {
    let bare = match typ.split_at_checked(12) {
        Some((prefix, bare)) if prefix.eq_ignore_ascii_case("application/") => bare,
        _ => typ,
    };
    bare.eq_ignore_ascii_case("jwt") || bare.eq_ignore_ascii_case("at+jwt")
}
