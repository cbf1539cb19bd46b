use std::{
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use coze_core::{BoxError, Context, Error, Kind, Principal};
use http::{HeaderMap, Request};
use http_body::Body;
use sha1::{Digest, Sha1};
use subtle::{Choice, ConstantTimeEq};

use crate::{
    Admitted, Decision, Key, Policy, VerifiedBody,
    key::bounded,
    nonces::{self, Nonces},
    refused::Refused,
    verify::{self, Check, Limits, Verify},
};

const SIGNATURE: &str = "x-coze-signature";
const TIMESTAMP: &str = "x-coze-timestamp";
const NONCE: &str = "x-coze-nonce";

/// The longest nonce in bytes.
const MAX_NONCE: usize = 128;

/// The inbound policy for the platform's own callbacks (coze-platform.md §5.1): `X-Coze-Signature` carries
/// hex(SHA-1(timestamp + nonce + token + raw body)), where `X-Coze-Timestamp` is in milliseconds and `X-Coze-Nonce` is used
/// once. Everything must be signed, the `challenge` that verifies a URL included.
///
/// What is accepted is noted on the context as a principal of the scheme `callback`. Clones share the nonces.
///
/// A nonce is used up by a request whose signature is right, and is kept until its timestamp leaves the window. So nobody but
/// the platform can fill the store, and a store full of nonces that still count refuses new ones (`nonces_full`) instead of
/// forgetting one, which would let its request in again. Each process has its own store.
///
/// When the platform hears no answer in time it sends the *event* again under a new nonce. That is not a replay, and passes:
/// whoever must not handle an event twice remembers its `header.event_id`.
///
/// As with [`Webhook`](crate::Webhook) a body is held in memory until it is verified.
#[derive(Clone)]
pub struct Callback {
    principal: Principal,
    tokens: Arc<[Key]>,
    limits: Limits,
    window: Duration,
    clock: fn() -> SystemTime,
    nonces: Arc<Mutex<Nonces>>,
}

impl Callback {
    /// Accepts what is signed with one of the tokens (`verify_token`) of the callback app `app`.
    ///
    /// # Errors
    /// `keys_missing` and `keys_too_many`, [`Kind::Invalid`]: no token, or more than [`MAX_KEYS`](crate::MAX_KEYS).
    pub fn new(app: &str, tokens: impl IntoIterator<Item = Key>) -> Result<Self, Error> {
        let tokens = bounded(tokens)?;
        if tokens.is_empty() {
            return Err(Error::new(Kind::Invalid, "keys_missing").with_message("a callback app has at least one token"));
        }
        Ok(Self {
            principal: Principal::new("callback", app),
            tokens: tokens.into(),
            limits: Limits::default(),
            window: Duration::from_secs(5 * 60),
            clock: SystemTime::now,
            nonces: Arc::new(Mutex::new(Nonces::new(65_536))),
        })
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
        Self { window, ..self }
    }

    /// Reads the time elsewhere than from [`SystemTime::now`].
    #[must_use]
    pub fn clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    /// How many nonces are kept; 65 536 unless set, which are 218 callbacks in each second of a window of 5 minutes. Starts
    /// with an empty store, shared by the clones made from now on.
    #[must_use]
    pub fn nonces(self, capacity: usize) -> Self {
        Self { nonces: Arc::new(Mutex::new(Nonces::new(capacity))), ..self }
    }

    /// The current time, if a request of the time `sent` still counts, in milliseconds of the Unix clock.
    fn now(&self, sent: u64) -> Result<u64, Error> {
        let now = millis((self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default());
        let reason = match millis(self.window) {
            window if sent < now.saturating_sub(window) => "token_expired",
            window if sent > now.saturating_add(window) => "token_not_yet_valid",
            _ => return Ok(now),
        };
        Err(Error::new(Kind::Unauthenticated, reason)
            .with_message(format!("the header {TIMESTAMP} is not within {:?} of our clock", self.window)))
    }

    fn refused(&self, error: Error) -> Refused {
        Refused::from(error).of(Some(&self.principal.subject))
    }

    fn check(&self, headers: &HeaderMap) -> Result<Summed, Error> {
        let signature = verify::signature(headers, SIGNATURE)?;
        // 13 digits, as milliseconds have from 2001 to 2286. The hash does not say where the timestamp ends and the nonce
        // begins: at any other length a copy could count a digit of the nonce to the timestamp, and have a nonce of its own.
        let digits = verify::required(headers, TIMESTAMP)?;
        let sent = digits.to_str().ok().filter(|d| d.len() == 13 && d.bytes().all(|b| b.is_ascii_digit()));
        let Some(sent) = sent.and_then(|digits| digits.parse().ok()) else {
            return Err(verify::malformed(format!("the header {TIMESTAMP} is not 13 digits")));
        };
        let nonce = verify::required(headers, NONCE)?;
        let nonce = nonce.to_str().ok().filter(|n| (1..=MAX_NONCE).contains(&n.len()));
        let Some(nonce) = nonce else {
            return Err(verify::malformed(format!("the header {NONCE} is not 1 to {MAX_NONCE} ascii characters")));
        };
        self.now(sent)?;
        let head = Sha1::new().chain_update(digits).chain_update(nonce);
        Ok(Summed { head, signature, sent, nonce: nonce.into(), policy: self.clone() })
    }
}

impl<B> Policy<B> for Callback
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Body = VerifiedBody;
    type Ticket = ();
    type Future = Verify<B, Summed>;

    fn authorize(&self, request: Request<B>) -> Decision<Admitted<VerifiedBody>, Self::Future> {
        Verify::decide(request, self.limits, |parts| self.check(&parts.headers).map_err(|error| self.refused(error)))
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback")
            .field("principal", &self.principal)
            .field("tokens", &self.tokens)
            .field("limits", &self.limits)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

/// A callback that waits for its body.
pub struct Summed {
    /// The hash of what comes before the token and the body.
    head: Sha1,
    signature: [u8; 20],
    sent: u64,
    nonce: Box<str>,
    policy: Callback,
}

impl fmt::Debug for Summed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Summed").finish_non_exhaustive()
    }
}

impl Check for Summed {
    fn finish(self, context: &Context, body: &mut VerifiedBody) -> Result<(), Refused> {
        self.judge(body).map_err(|error| self.policy.refused(error))?;
        context.principal.get_or_init(|| self.policy.principal.clone());
        Ok(())
    }
}

impl Summed {
    /// Verifies the signature, and uses up the nonce.
    fn judge(&self, body: &VerifiedBody) -> Result<(), Error> {
        // Every token is tried, and each comparison takes constant time: how long it takes does not tell which one it was.
        let verified = self.policy.tokens.iter().fold(Choice::from(0), |found, token| {
            let mut hash = self.head.clone().chain_update(token.bytes());
            body.frames().for_each(|frame| hash.update(frame));
            found | hash.finalize().ct_eq(&self.signature)
        });
        if !bool::from(verified) {
            return Err(verify::unsigned());
        }
        let end = self.sent.saturating_add(millis(self.policy.window));
        let mut nonces = self.policy.nonces.lock().expect("nobody panics while holding the nonces");
        // Time has passed since the head was checked, and a nonce whose time is over is forgotten. So the clock is read again,
        // under the lock: what still counts now was not forgotten by somebody who read it later.
        let now = self.policy.now(self.sent)?;
        nonces.take(&self.nonce, end, now).map_err(|refused| match refused {
            nonces::Refused::Used => Error::new(Kind::Unauthenticated, "replayed")
                .with_message(format!("the nonce in the header {NONCE} was used before")),
            nonces::Refused::Full => Error::new(Kind::Overloaded, "nonces_full")
                .with_message("more callbacks than can be told apart arrived within the clock window"),
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
