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
        ["200 \"Acme: hi\"", "token, acme: chat"],
        |world| Box::pin(messages::to_acme(world))),
    step(["polled answer", "to hooli"],
        ["200 \"Hooli: hi\"", "token, hooli: chat, look, list"],
        |world| Box::pin(messages::to_hooli(world))),
    step(["event stream", "to initech, streamed"],
        ["200 stream \"Initech: hi\"", "token, initech: chat"],
        |world| Box::pin(messages::to_initech(world))),
    step(["duplicate message", "to initech, twice"],
        ["200 \"Initech: hi\" twice", "initech: chat"],
        |world| Box::pin(messages::twice(world))),
    step(["one conversation", "5 to initech at once"],
        ["5 × 200", "initech: chat ×5"],
        |world| Box::pin(messages::in_turn(world))),
];

#[rustfmt::skip]
const SENDERS: &[Step] = &[
    step(["bad signature", "to acme, wrong key"],
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
    step(["resent event", "an event, new nonce"],
        ["200, 200, stored once", "nothing"],
        |world| Box::pin(senders::resent(world))),
];

#[rustfmt::skip]
const LIMITS: &[Step] = &[
    step(["user: 1 a second", "3 to acme, 1 later"],
        ["1 × 200, else 429 \"user\" Retry-After 1, then 200", "a chat for each 200"],
        |world| Box::pin(limits::user(world))),
    step(["app: 50 a second", "120 to initech, 1 later"],
        ["at most 50 × 200, else 429 \"app\" Retry-After 1, then 200", "a chat for each 200"],
        |world| Box::pin(limits::app(world))),
    step(["bot: 10 at once", "15 to hooli, who run hang up, 1 later"],
        ["10 run, 5 × 429 \"bot\" Retry-After 1, then 200", "hooli: chat ×11, look dropped ×10→ok, list, cancel ×10"],
        |world| Box::pin(limits::bot(world))),
];

#[rustfmt::skip]
const TROUBLE: &[Step] = &[
    step(["HTTP 429", "to acme"],
        ["200 \"Acme: hi\" in ≥ 1 s", "acme: chat 429→ok"],
        |world| Box::pin(trouble::too_many(world))),
    step(["HTTP 502", "to hooli"],
        ["200 \"Hooli: hi\" in ≥ 1.5 s", "hooli: chat, look 502→ok, list"],
        |world| Box::pin(trouble::bad_gateway(world))),
    step(["HTTP 503", "to hooli"],
        ["200 \"Hooli: hi\" in ≥ 1.5 s", "hooli: chat, look 503→ok, list"],
        |world| Box::pin(trouble::unavailable(world))),
    step(["HTTP 504", "to hooli"],
        ["200 \"Hooli: hi\" in ≥ 3 s", "hooli: chat, look 504→ok, list"],
        |world| Box::pin(trouble::gateway_timeout(world))),
    step(["504 on a chat", "to acme"],
        ["504, not sent again", "acme: chat 504"],
        |world| Box::pin(trouble::gateway_timeout_of_a_chat(world))),
    step(["4009 in HTTP 200", "to acme"],
        ["200 \"Acme: hi\" in ≥ 1 s", "acme: chat 4009→ok"],
        |world| Box::pin(trouble::busy(world))),
    step(["4011 in HTTP 200", "to acme"],
        ["402, code 4011", "acme: chat 4011"],
        |world| Box::pin(trouble::no_credit(world))),
    step(["expired token", "to acme"],
        ["200 \"Acme: hi\"", "token, acme: chat 4100→ok"],
        |world| Box::pin(trouble::expired_token(world))),
    step(["cut stream", "to acme"],
        ["502, code 502", "acme: chat cut, cancel 4104"],
        |world| Box::pin(trouble::cut_stream(world))),
    step(["cut event stream", "to acme, streamed"],
        ["200, a piece, error 502", "acme: chat cut, cancel 4104"],
        |world| Box::pin(trouble::cut_stream_passed_on(world))),
];

#[rustfmt::skip]
const STOPPING: &[Step] = &[
    step(["cancelled caller", "to hooli, hangs up"],
        ["cancelled, 0 in flight", "token, hooli: chat 4100→ok, look dropped, cancel"],
        |world| Box::pin(stopping::cancelled(world))),
    step(["drained shutdown", "to acme, then stop"],
        ["200 \"Acme: hi\", a new bot knows it, the old takes no more", "acme: chat"],
        |world| Box::pin(stopping::drained(world))),
];
