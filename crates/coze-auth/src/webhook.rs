use std::{collections::HashMap, fmt, future::Pending, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use coze_core::{BotId, BoxError, Context, Error, Principal, UserId};
use foldhash::fast::RandomState;
use http::{HeaderName, HeaderValue, request::Parts};
use http_body::Body;
use subtle::Choice;

use crate::{
    Decision, Key, Policy, VerifiedBody,
    key::bounded,
    mac::Keyed,
    refused::Refused,
    report::Report,
    verify::{self, Limits, Scheme, Verify},
};

static SIGNATURE: HeaderName = HeaderName::from_static("x-signature");
static BOT: HeaderName = HeaderName::from_static("x-bot-id");

type UserHook = dyn Fn(&[u8]) -> Option<UserId> + Send + Sync;

/// The inbound policy for messages to bots: `X-Signature` carries hex(HMAC-SHA256(key = bot token, raw body)).
///
/// The bot is the one in the path ([`Webhook::path`]) or in `X-Bot-Id`, which must not contradict each other, or the only one
/// there is. What is accepted is noted on the context: the bot, and a principal of the scheme `webhook`. An unknown bot is
/// answered like a wrong signature, after the work of a bot with one key; only the context says `unknown_key`, for the log. A
/// refusal is counted under the id of the bot it names, if that is one of ours.
///
/// The signature covers the body alone: neither other headers, nor the path, nor the time. So a copy of a request is as good
/// as the request, and whoever must not do a thing twice has to look at an id in the body.
///
/// A body is held in memory until it is verified, so a server needs at most [`Webhook::limit`] bytes for each request that it
/// takes in at once. Its time is limited by a timer of tokio. A body that is there is judged in `call`, for which it has to be
/// [`Unpin`], as those of hyper, axum and `http-body-util` are, and any in a `Box::pin`. Clones share the keys.
#[derive(Clone)]
pub struct Webhook {
    keys: WebhookKeys,
    prefix: Option<Arc<str>>,
    limits: Limits,
    user: Option<Arc<UserHook>>,
    report: Report,
}

impl Webhook {
    /// Checks signatures against these keys.
    #[must_use]
    pub fn new(keys: WebhookKeys) -> Self {
        Self { keys, prefix: None, limits: Limits::default(), user: None, report: Report::default() }
    }

    /// Takes what follows `prefix` in the path as the bot's id: `/webhook` makes it `b1` in `/webhook/b1`. Nothing is
    /// percent-decoded. Without this the path says nothing.
    #[must_use]
    pub fn path(self, prefix: &str) -> Self {
        Self { prefix: Some(format!("{}/", prefix.trim_end_matches('/')).into()), ..self }
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

    /// Reads from a verified body who wrote the message, for the layers that follow.
    #[must_use]
    pub fn user(self, read: impl Fn(&[u8]) -> Option<UserId> + Send + Sync + 'static) -> Self {
        Self { user: Some(Arc::new(read)), ..self }
    }

    /// Refuses only what cannot be handed on, because its body is too large, too slow or breaks off. Everything else that would
    /// have been refused is counted, noted on the context as reported, and let through, without a principal or bot. For trying
    /// out the scheme while something else guards the service.
    #[must_use]
    pub fn report_only(self) -> Self {
        Self { report: Report::only(), ..self }
    }

    /// How many requests [`Webhook::report_only`] let through that would have been refused, over all clones.
    #[must_use]
    pub fn reported(&self) -> u64 {
        self.report.count()
    }

    /// Finds the bot the request names, or its stand-in if it is not ours.
    fn bot(&self, head: &Parts, header: Option<&HeaderValue>) -> Result<Arc<Bot>, Error> {
        let path = self.prefix.as_deref().and_then(|prefix| head.uri.path().strip_prefix(prefix));
        let header = match header.map(|id| id.to_str()) {
            Some(Err(_)) => return Err(verify::malformed(format!("the header {BOT} is not ascii"))),
            Some(Ok(id)) => Some(id),
            None => None,
        };
        let named = match (path.filter(|id| !id.is_empty()), header) {
            (Some(path), Some(header)) if path != header => {
                return Err(verify::malformed(format!("the bot in the header {BOT} is not the one in the path")));
            }
            (path, header) => path.or(header),
        };
        let bots = self.keys.0.bots.load();
        let bot = match named {
            Some(id) => bots.get(id),
            None if bots.len() == 1 => bots.values().next(),
            None => return Err(verify::missing(format!("neither the path nor the header {BOT} names a bot"))),
        };
        Ok(bot.unwrap_or(&self.keys.0.decoy).clone())
    }
}

impl<B> Policy<B> for Webhook
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Body = VerifiedBody;
    type Ticket = ();
    type Future = Verify<B, Self>;

    fn authorize(&self, head: &mut Parts, body: B) -> Decision<(VerifiedBody, ()), Self::Future> {
        verify::decide(self, head, body)
    }
}

impl Scheme for Webhook {
    type Claim = Claim;
    type Wait = Pending<Result<(), Refused>>;

    fn bounds(&self) -> (Limits, &Report) {
        (self.limits, &self.report)
    }

    fn claim(&self, head: &Parts) -> Result<Claim, Refused> {
        let [signature, named] = verify::each(&head.headers, [&SIGNATURE, &BOT]);
        let bot = named.and_then(|named| self.bot(head, named));
        match signature.and_then(|signature| verify::signature_of(signature, &SIGNATURE)) {
            Ok(signature) => Ok(Claim { signature, bot: bot? }),
            Err(error) => Err(Refused::from(error).of(bot.ok().as_ref().and_then(|bot| bot.subject()))),
        }
    }

    fn judge(&self, claim: &Claim, context: &Context, body: &mut VerifiedBody) -> Result<Option<Self::Wait>, Refused> {
        // Every key is tried, and each comparison takes constant time: how long it takes does not tell which key it was.
        let verified = claim
            .bot
            .keys
            .iter()
            .fold(Choice::from(0), |found, key| found | key.verifies(body.frames(), &claim.signature));
        let Some((id, principal)) = &claim.bot.known else {
            return Err(Refused::from(verify::unsigned()).truly("unknown_key"));
        };
        if !bool::from(verified) {
            return Err(Refused::from(verify::unsigned()).of(claim.bot.subject()));
        }
        context.bot.get_or_init(|| id.clone());
        context.principal.get_or_init(|| principal.clone());
        if let Some(user) = self.user.as_ref().and_then(|read| read(body.contiguous())) {
            context.user.get_or_init(|| user);
        }
        Ok(None)
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("keys", &self.keys)
            .field("prefix", &self.prefix)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// The keys of the bots, replaceable while requests are checked. Clones share them.
#[derive(Clone)]
pub struct WebhookKeys(Arc<Table>);

struct Table {
    bots: ArcSwap<HashMap<BotId, Arc<Bot>, RandomState>>,
    /// Stands in for a bot that is not there.
    decoy: Arc<Bot>,
}

struct Bot {
    /// What is noted on the context. The decoy has nothing: it is for work's sake, and what it verifies is refused all the same.
    known: Option<(BotId, Principal)>,
    keys: Vec<Keyed>,
}

impl Bot {
    fn subject(&self) -> Option<&Arc<str>> {
        self.known.as_ref().map(|(_, principal)| &principal.subject)
    }
}

impl WebhookKeys {
    /// No bot, and so no request that is accepted.
    #[must_use]
    pub fn new() -> Self {
        let decoy = Arc::new(Bot { known: None, keys: vec![Keyed::new(b"decoy")] });
        Self(Arc::new(Table { bots: ArcSwap::default(), decoy }))
    }

    /// Replaces the keys by which `bot` signs; any of them verifies. No key at all takes the bot out.
    ///
    /// A request is checked against the keys of the moment in which it arrived.
    ///
    /// # Errors
    /// `keys_too_many`, [`Kind::Invalid`](coze_core::Kind::Invalid): more than [`MAX_KEYS`](crate::MAX_KEYS). The bot's keys
    /// stay as they were.
    pub fn set(&self, bot: &BotId, keys: impl IntoIterator<Item = Key>) -> Result<(), Error> {
        let keys: Vec<_> = bounded(keys)?.iter().map(|key| Keyed::new(key.bytes())).collect();
        let known = Some((bot.clone(), Principal::new("webhook", bot.as_str())));
        let entry = Arc::new(Bot { known, keys });
        self.0.bots.rcu(|bots| {
            let mut bots = HashMap::clone(bots);
            match entry.keys.is_empty() {
                true => bots.remove(bot),
                false => bots.insert(bot.clone(), entry.clone()),
            };
            bots
        });
        Ok(())
    }
}

impl Default for WebhookKeys {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for WebhookKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WebhookKeys").field(&self.0.bots.load().keys()).finish()
    }
}

/// Who is said to have signed.
pub struct Claim {
    signature: [u8; 32],
    bot: Arc<Bot>,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").finish_non_exhaustive()
    }
}
