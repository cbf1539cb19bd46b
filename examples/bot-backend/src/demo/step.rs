//! The steps, in their order.

use std::pin::Pin;

use coze_core::BoxError;

use super::{limits, messages, senders, stopping, trouble, world::World};

/// A step: what is sent, and what must come of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) sent: &'static str,
    /// What the bot is to do.
    pub(super) bot: &'static str,
    /// What the platform is to see.
    pub(super) platform: &'static str,
    pub(super) play: Play,
}

type Play = for<'a> fn(&'a mut World) -> Playing<'a>;
type Playing<'a> = Pin<Box<dyn Future<Output = Result<Seen, BoxError>> + Send + 'a>>;

/// What was seen of the bot.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) bot: String,
    /// Whether all is right, where comparing texts cannot say it: numbers depend on the machine.
    pub(super) verdict: Option<bool>,
}

impl Seen {
    pub(super) fn wrong(bot: impl Into<String>) -> Self {
        Self { bot: bot.into(), verdict: Some(false) }
    }
}

impl<T: Into<String>> From<T> for Seen {
    fn from(bot: T) -> Self {
        Self { bot: bot.into(), verdict: None }
    }
}

/// Name and sent; bot, platform; how it is played.
const fn step(what: [&'static str; 2], expected: [&'static str; 2], play: Play) -> Step {
    Step { name: what[0], sent: what[1], bot: expected[0], platform: expected[1], play }
}

/// All steps, in groups.
pub(super) const STEPS: &[(&str, &[Step])] = &[
    ("Messages of three tenants", MESSAGES),
    ("Who may send", SENDERS),
    ("The three limits", LIMITS),
    ("The platform in trouble", TROUBLE),
    ("Coming to an end", STOPPING),
];

#[rustfmt::skip]
const MESSAGES: &[Step] = &[
    step(["streamed answer", "to acme"],
        ["200 \"Acme: hello\"", "token, acme: chat"],
        |world| Box::pin(messages::to_acme(world))),
    step(["polled answer", "to globex"],
        ["200 \"Globex: hello\"", "globex: chat, look, list"],
        |world| Box::pin(messages::to_globex(world))),
    step(["event stream", "to initech, as a stream"],
        ["200 stream \"Initech: hello\"", "initech: chat"],
        |world| Box::pin(messages::to_initech(world))),
    step(["duplicate message", "to initech, twice one id"],
        ["200 \"Initech: hello\" twice", "initech: chat"],
        |world| Box::pin(messages::twice(world))),
];

#[rustfmt::skip]
const SENDERS: &[Step] = &[
    step(["bad signature", "to acme, another's key"],
        ["401, code 4100", "nothing"],
        |world| Box::pin(senders::bad_signature(world))),
    step(["unknown bot", "to umbrella"],
        ["401, code 4100", "nothing"],
        |world| Box::pin(senders::unknown_bot(world))),
    step(["unknown tenant", "to acme, as umbrella"],
        ["403, code 4101", "nothing"],
        |world| Box::pin(senders::unknown_tenant(world))),
    step(["replayed callback", "an event, its copy"],
        ["200, 401, stored once", "nothing"],
        |world| Box::pin(senders::replayed(world))),
    step(["resent event", "an event, with new nonce"],
        ["200, 200, stored once", "nothing"],
        |world| Box::pin(senders::resent(world))),
];

#[rustfmt::skip]
const LIMITS: &[Step] = &[
    step(["1/s of one user", "3 to acme, 1 later"],
        ["1 × 200, 2 × 429 Retry-After 1, then 200", "acme: chat ×2"],
        |world| Box::pin(limits::user(world))),
    step(["50/s in all", "120 to initech, 1 later"],
        ["at most 50 × 200 in a second, else 429 Retry-After 1, then 200", "a chat for each 200"],
        |world| Box::pin(limits::app(world))),
    step(["10 at once per bot", "15 to globex, those taken hang up, 1 more"],
        ["5 × 429 Retry-After 1, then 200", "globex: chat ×11, look dropped ×10 → ok, list, cancel ×10"],
        |world| Box::pin(limits::bot(world))),
];

#[rustfmt::skip]
const TROUBLE: &[Step] = &[
    step(["HTTP 429", "to acme"],
        ["200 \"Acme: hello\", ≥ 1 s", "acme: chat 429 → ok"],
        |world| Box::pin(trouble::too_many(world))),
    step(["HTTP 502", "to globex"],
        ["200 \"Globex: hello\", ≥ 1.5 s", "globex: chat, look 502 → ok, list"],
        |world| Box::pin(trouble::bad_gateway(world))),
    step(["HTTP 503", "to globex"],
        ["200 \"Globex: hello\", ≥ 1.5 s", "globex: chat, look 503 → ok, list"],
        |world| Box::pin(trouble::unavailable(world))),
    step(["HTTP 504", "to globex"],
        ["200 \"Globex: hello\", ≥ 3 s", "globex: chat, look 504 → ok, list"],
        |world| Box::pin(trouble::gateway_timeout(world))),
    step(["HTTP 504 on a chat", "to acme"],
        ["504, not sent again", "acme: chat 504"],
        |world| Box::pin(trouble::gateway_timeout_of_a_chat(world))),
    step(["4009 in HTTP 200", "to acme"],
        ["200 \"Acme: hello\", ≥ 1 s", "acme: chat 4009 → ok"],
        |world| Box::pin(trouble::busy(world))),
    step(["4011 in HTTP 200", "to acme"],
        ["402, code 4011", "acme: chat 4011"],
        |world| Box::pin(trouble::no_credit(world))),
    step(["expired token", "to acme"],
        ["200 \"Acme: hello\"", "token, acme: chat 4100 → ok"],
        |world| Box::pin(trouble::expired_token(world))),
    step(["cut stream", "to acme"],
        ["502, code 4013", "acme: chat cut, cancel 4104"],
        |world| Box::pin(trouble::cut_stream(world))),
    step(["cut event stream", "to acme, as a stream"],
        ["200, a piece, error 4013", "acme: chat cut, cancel 4104"],
        |world| Box::pin(trouble::cut_stream_passed_on(world))),
];

#[rustfmt::skip]
const STOPPING: &[Step] = &[
    step(["cancelled caller", "to globex, hangs up"],
        ["cancelled, 0 in flight", "globex: chat, look dropped, cancel"],
        |world| Box::pin(stopping::cancelled(world))),
    step(["drained shutdown", "to acme, then the end"],
        ["200 \"Acme: hello\", a new bot knows it, the old takes no more", "acme: chat"],
        |world| Box::pin(stopping::drained(world))),
];
