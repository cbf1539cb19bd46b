use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use coze_core::{BoxError, Context, Error, Kind, Principal};
use http::{HeaderMap, HeaderName, request::Parts};
use http_body::Body;
use sha1::{Digest, Sha1};
use subtle::{Choice, ConstantTimeEq};

use crate::{
    Decision, Key, MemoryReplay, Policy, ReplayStore, VerifiedBody,
    key::bounded,
    refused::Refused,
    replay::{Accept, Once},
    report::Report,
    verify::{self, Limits, Scheme, Verify},
};

static SIGNATURE: HeaderName = HeaderName::from_static("x-coze-signature");
static TIMESTAMP: HeaderName = HeaderName::from_static("x-coze-timestamp");
static NONCE: HeaderName = HeaderName::from_static("x-coze-nonce");

/// The longest nonce in bytes.
const MAX_NONCE: usize = 128;

/// The inbound policy for the platform's own callbacks (coze-platform.md §5.1): `X-Coze-Signature` carries
/// hex(SHA-1(timestamp + nonce + token + raw body)), where `X-Coze-Timestamp` is in milliseconds and `X-Coze-Nonce` is used
/// once. Everything must be signed, the `challenge` that verifies a URL included.
///
/// What is accepted is noted on the context as a principal of the scheme `callback`. Clones share the nonces.
///
/// A nonce is used up by a request whose signature is right, and is kept until its timestamp leaves the window. Each process
/// has its own memory of them, unless there is a [`Callback::store`] that several share.
///
/// When the platform hears no answer in time it sends the *event* again under a new nonce. That is not a replay, and passes:
/// whoever must not handle an event twice remembers its `header.event_id`.
///
/// As with [`Webhook`](crate::Webhook) a body is held in memory until it is verified.
#[derive(Clone)]
pub struct Callback<R = MemoryReplay> {
    tokens: Arc<[Key]>,
    limits: Limits,
    once: Once<R>,
    report: Report,
}

impl Callback {
    /// Accepts what is signed with one of the tokens (`verify_token`) of the callback app `app`.
    ///
    /// # Errors
    /// `keys_missing` and `keys_too_many`, [`Kind::Invalid`]: no token, or more than [`MAX_KEYS`](crate::MAX_KEYS).
    pub fn new(app: &str, tokens: impl IntoIterator<Item = Key>) -> Result<Self, Error> {
        Ok(Self {
            tokens: some(tokens)?,
            limits: Limits::default(),
            once: Once::new(Principal::new("callback", app), MemoryReplay::default()),
            report: Report::default(),
        })
    }

    /// How many nonces are kept; 65 536 unless set, which are 218 callbacks in each second of a window of 5 minutes. Starts
    /// with an empty store, shared by the clones made from now on.
    #[must_use]
    pub fn nonces(self, capacity: usize) -> Self {
        self.store(MemoryReplay::new(capacity))
    }
}

impl<R> Callback<R> {
    /// Keeps the nonces elsewhere than in a memory of its own. Several apps may share a store.
    #[must_use]
    pub fn store<T: ReplayStore>(self, store: T) -> Callback<T> {
        Callback { tokens: self.tokens, limits: self.limits, once: self.once.stored_in(store), report: self.report }
    }

    /// Accepts what is signed with one of these tokens instead. The nonces are those of the policy it was.
    ///
    /// # Errors
    /// As [`Callback::new`].
    pub fn tokens(self, tokens: impl IntoIterator<Item = Key>) -> Result<Self, Error> {
        Ok(Self { tokens: some(tokens)?, ..self })
    }

    /// The most bytes a body may have; 1 MiB unless set.
    #[must_use]
    pub fn limit(self, bytes: usize) -> Self {
        Self { limits: Limits { bytes, ..self.limits }, ..self }
    }

    /// How long a body may take to arrive; 10 seconds unless set.
    #[must_use]
    pub fn timeout(self, time: Duration) -> Self {
        Self { limits: Limits { time, ..self.limits }, ..self }
    }

    /// How far a timestamp may be from our clock, either way; 5 minutes unless set.
    #[must_use]
    pub fn window(self, window: Duration) -> Self {
        Self { once: Once { window, ..self.once }, ..self }
    }

    /// Reads the time elsewhere than from [`SystemTime::now`].
    #[must_use]
    pub fn clock(self, clock: fn() -> SystemTime) -> Self {
        Self { once: Once { clock, ..self.once }, ..self }
    }

    /// Refuses only what cannot be handed on, as [`Webhook::report_only`](crate::Webhook::report_only) does.
    #[must_use]
    pub fn report_only(self) -> Self {
        Self { report: Report::only(), ..self }
    }

    /// How many requests [`Callback::report_only`] let through that would have been refused, over all clones.
    #[must_use]
    pub fn reported(&self) -> u64 {
        self.report.count()
    }
}

impl<B, R> Policy<B> for Callback<R>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    R: ReplayStore + Clone,
{
    type Body = VerifiedBody;
    type Ticket = ();
    type Future = Verify<B, Self>;

    fn authorize(&self, head: &mut Parts, body: B) -> Decision<(VerifiedBody, ()), Self::Future> {
        verify::decide(self, head, body)
    }
}

impl<R: ReplayStore + Clone> Scheme for Callback<R> {
    type Claim = Claim;
    type Wait = Accept<R>;

    fn bounds(&self) -> (Limits, &Report) {
        (self.limits, &self.report)
    }

    fn claim(&self, head: &Parts) -> Result<Claim, Refused> {
        Claim::of(&head.headers, &self.once).map_err(|error| self.once.refused(error))
    }

    fn judge(&self, claim: &Claim, context: &Context, body: &mut VerifiedBody) -> Result<Option<Accept<R>>, Refused> {
        // Every token is tried, and each comparison takes constant time: how long it takes does not tell which one it was.
        let verified = self.tokens.iter().fold(Choice::from(0), |found, token| {
            let mut hash = claim.hash.clone().chain_update(token.bytes());
            body.frames().for_each(|frame| hash.update(frame));
            found | hash.finalize().ct_eq(&claim.signature)
        });
        match bool::from(verified) {
            true => self.once.accept(context, &claim.id, claim.sent),
            false => Err(self.once.refused(verify::unsigned())),
        }
    }
}

impl<R> fmt::Debug for Callback<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback")
            .field("principal", &self.once.principal)
            .field("tokens", &self.tokens)
            .field("limits", &self.limits)
            .field("window", &self.once.window)
            .finish_non_exhaustive()
    }
}

/// What the head of a callback says.
pub struct Claim {
    signature: [u8; 20],
    sent: Duration,
    /// Under which it is remembered.
    id: String,
    /// The hash of what comes before the token and the body.
    hash: Sha1,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").finish_non_exhaustive()
    }
}

impl Claim {
    fn of<R>(headers: &HeaderMap, once: &Once<R>) -> Result<Self, Error> {
        let signature = verify::signature(headers, &SIGNATURE)?;
        // 13 digits, as milliseconds have from 2001 to 2286. The hash does not say where the timestamp ends and the nonce
        // begins: at any other length a copy could count a digit of the nonce to the timestamp, and have a nonce of its own.
        let digits = verify::required(headers, &TIMESTAMP)?;
        let sent = digits.to_str().ok().filter(|d| d.len() == 13 && d.bytes().all(|b| b.is_ascii_digit()));
        let Some(sent) = sent.and_then(|digits| digits.parse().ok()).map(Duration::from_millis) else {
            return Err(verify::malformed(format!("the header {TIMESTAMP} is not 13 digits")));
        };
        let nonce = verify::required(headers, &NONCE)?;
        let nonce = nonce.to_str().ok().filter(|n| (1..=MAX_NONCE).contains(&n.len()));
        let Some(nonce) = nonce else {
            return Err(verify::malformed(format!("the header {NONCE} is not 1 to {MAX_NONCE} ascii characters")));
        };
        once.now(sent)?;
        let hash = Sha1::new().chain_update(digits).chain_update(nonce);
        Ok(Self { signature, sent, id: once.id(nonce), hash })
    }
}

fn some(tokens: impl IntoIterator<Item = Key>) -> Result<Arc<[Key]>, Error> {
    let tokens = bounded(tokens)?;
    match tokens.is_empty() {
        true => Err(Error::new(Kind::Invalid, "keys_missing").with_message("a callback app has at least one token")),
        false => Ok(tokens.into()),
    }
}
