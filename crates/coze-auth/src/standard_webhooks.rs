use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use coze_core::{BoxError, Context, Error, Kind, Principal};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};
use http_body::Body;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

use crate::{
    Decision, Key, MemoryReplay, Policy, ReplayStore, VerifiedBody,
    key::bounded,
    refused::Refused,
    replay::{Accept, Once},
    report::Report,
    verify::{self, Limits, Scheme, Verify},
};

static ID: HeaderName = HeaderName::from_static("webhook-id");
static TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// The longest id in bytes.
const MAX_ID: usize = 256;
/// How many signatures one request may bring: those by the old and the new secret, of each version there may be.
const MAX_SIGNATURES: usize = 16;

/// The inbound policy for Standard Webhooks (standardwebhooks.com, specification 1.0.0): `webhook-signature` lists signatures with a
/// space in between, of which one must be `v1,` and base64(HMAC-SHA256(key = secret, webhook-id + "." + webhook-timestamp + "." +
/// raw body)). `webhook-timestamp` is in seconds. Signatures of other versions are passed over.
///
/// What is accepted is noted on the context as a principal of the scheme `standard_webhooks`. The body may be any bytes.
///
/// A request is good once: its id and timestamp are kept until the timestamp leaves the window, as with
/// [`Callback`](crate::Callback). A sender that hears no answer sends the *event* again, with the same id and the time of the new
/// try. That is not a replay, and passes, so that an event whose handler failed is not lost: whoever must not handle an event
/// twice remembers its `webhook-id`.
///
/// Left out: `v1a` (ed25519), whose public keys are for senders that cannot keep a secret with each receiver; a request that has
/// only such a signature is refused. The headers `svix-id` and so on are not of the specification.
///
/// ```
/// use coze_auth::{AuthLayer, Key, StandardWebhooks};
///
/// # fn main() -> Result<(), coze_core::Error> {
/// // Both verify while the sender goes over from one to the other.
/// let secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"];
/// let secrets: Vec<_> = secrets.into_iter().map(Key::whsec).collect::<Result<_, _>>()?;
/// let layer = AuthLayer::new(StandardWebhooks::new("billing", secrets)?);
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StandardWebhooks<R = MemoryReplay> {
    secrets: Arc<[Hmac<Sha256>]>,
    limits: Limits,
    once: Once<R>,
    report: Report,
}

impl StandardWebhooks {
    /// Accepts what `sender` signs with one of these secrets ([`Key::whsec`]).
    ///
    /// # Errors
    /// `keys_missing` and `keys_too_many`, [`Kind::Invalid`]: no secret, or more than [`MAX_KEYS`](crate::MAX_KEYS).
    pub fn new(sender: &str, secrets: impl IntoIterator<Item = Key>) -> Result<Self, Error> {
        Ok(Self {
            secrets: some(secrets)?,
            limits: Limits::default(),
            once: Once::new(Principal::new("standard_webhooks", sender), MemoryReplay::default()),
            report: Report::default(),
        })
    }
}

impl<R> StandardWebhooks<R> {
    /// Remembers the requests elsewhere than in a [`MemoryReplay`] of its own. Several senders may share a store.
    #[must_use]
    pub fn store<T: ReplayStore>(self, store: T) -> StandardWebhooks<T> {
        StandardWebhooks {
            secrets: self.secrets,
            limits: self.limits,
            once: self.once.stored_in(store),
            report: self.report,
        }
    }

    /// Accepts what is signed with one of these secrets instead. The requests it remembers are those of the policy it was.
    ///
    /// # Errors
    /// As [`StandardWebhooks::new`].
    pub fn secrets(self, secrets: impl IntoIterator<Item = Key>) -> Result<Self, Error> {
        Ok(Self { secrets: some(secrets)?, ..self })
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

    /// How many requests [`StandardWebhooks::report_only`] let through that would have been refused, over all clones.
    #[must_use]
    pub fn reported(&self) -> u64 {
        self.report.count()
    }
}

/// At least one secret, ready to be used.
fn some(secrets: impl IntoIterator<Item = Key>) -> Result<Arc<[Hmac<Sha256>]>, Error> {
    let secrets = bounded(secrets)?;
    if secrets.is_empty() {
        return Err(Error::new(Kind::Invalid, "keys_missing").with_message("a sender has at least one secret"));
    }
    let keyed = |key: &Key| Hmac::new_from_slice(key.bytes()).expect("hmac takes a key of any length");
    Ok(secrets.iter().map(keyed).collect())
}

/// The signatures of the version we know, as they are written.
fn v1(signatures: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    signatures.as_bytes().split(|b| *b == b' ').filter_map(|signature| signature.strip_prefix(b"v1,"))
}

impl<B, R> Policy<B> for StandardWebhooks<R>
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

impl<R: ReplayStore + Clone> Scheme for StandardWebhooks<R> {
    type Claim = Claim;
    type Wait = Accept<R>;

    fn bounds(&self) -> (Limits, &Report) {
        (self.limits, &self.report)
    }

    fn claim(&self, head: &Parts) -> Result<Claim, Refused> {
        Claim::of(&head.headers, &self.once).map_err(|error| self.once.refused(error))
    }

    fn judge(&self, claim: &Claim, context: &Context, body: &mut VerifiedBody) -> Result<Option<Accept<R>>, Refused> {
        // Every secret and every signature is tried, and each comparison takes constant time. They are compared as they are
        // written, so that there is one way to write each.
        let verified = self.secrets.iter().fold(Choice::from(0), |found, secret| {
            let mut mac = secret.clone();
            [claim.id.as_bytes(), b".", claim.timestamp.as_bytes(), b"."].into_iter().for_each(|part| mac.update(part));
            body.frames().for_each(|frame| mac.update(frame));
            let mut expected = [0; 44];
            STANDARD.encode_slice(mac.finalize().into_bytes(), &mut expected).expect("32 bytes are 44 characters");
            v1(&claim.signatures).fold(found, |found, signature| found | expected.ct_eq(signature))
        });
        match bool::from(verified) {
            true => self.once.accept(context, &claim.key, claim.sent),
            false => Err(self.once.refused(verify::unsigned())),
        }
    }
}

impl<R> fmt::Debug for StandardWebhooks<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandardWebhooks")
            .field("principal", &self.once.principal)
            .field("limits", &self.limits)
            .field("window", &self.once.window)
            .finish_non_exhaustive()
    }
}

/// What the head of a request says.
pub struct Claim {
    /// Under which it is remembered.
    key: String,
    id: HeaderValue,
    timestamp: HeaderValue,
    signatures: HeaderValue,
    sent: Duration,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").finish_non_exhaustive()
    }
}

impl Claim {
    fn of<R>(headers: &HeaderMap, once: &Once<R>) -> Result<Self, Error> {
        let id = verify::required(headers, &ID)?;
        // What is signed does not say where the id ends, so it must not have a full stop (specification, "Signature scheme").
        let is_id = |id: &&str| (1..=MAX_ID).contains(&id.len()) && !id.contains('.');
        let Some(text) = id.to_str().ok().filter(is_id) else {
            return Err(verify::malformed(format!(
                "the header {ID} is not 1 to {MAX_ID} ascii characters without a dot"
            )));
        };
        let timestamp = verify::required(headers, &TIMESTAMP)?;
        let digits = timestamp.to_str().ok().filter(|d| d.len() <= 12 && d.bytes().all(|b| b.is_ascii_digit()));
        let Some((digits, sent)) = digits.and_then(|digits| Some((digits, digits.parse().ok()?))) else {
            return Err(verify::malformed(format!("the header {TIMESTAMP} is not a time in seconds")));
        };
        let signatures = verify::required(headers, &SIGNATURE)?;
        if signatures.as_bytes().split(|b| *b == b' ').count() > MAX_SIGNATURES {
            return Err(verify::malformed(format!("the header {SIGNATURE} has more than {MAX_SIGNATURES} signatures")));
        }
        if v1(signatures).next().is_none() {
            return Err(verify::unsigned());
        }
        let sent = Duration::from_secs(sent);
        once.now(sent)?;
        Ok(Self {
            key: once.id(&format!("{text}.{digits}")),
            id: id.clone(),
            timestamp: timestamp.clone(),
            signatures: signatures.clone(),
            sent,
        })
    }
}
