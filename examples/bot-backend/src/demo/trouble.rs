//! What goes wrong on the platform, and what the bot makes of it.

use std::{collections::BTreeMap, time::Duration};

use coze_core::BoxError;
use coze_sim::FaultKind;

use super::{
    http::Answer,
    messages::{events, stream},
    step::Seen,
    world::{ACME, CANCEL, CHAT, HOOLI, LOOK, World, soon},
};

pub(super) async fn too_many(world: &mut World) -> Result<Seen, BoxError> {
    sent_again(world, ACME, CHAT, status(429), Duration::from_secs(1)).await
}

pub(super) async fn bad_gateway(world: &mut World) -> Result<Seen, BoxError> {
    sent_again(world, HOOLI, LOOK, FaultKind::Html { status: 502 }, Duration::from_millis(1500)).await
}

pub(super) async fn unavailable(world: &mut World) -> Result<Seen, BoxError> {
    sent_again(world, HOOLI, LOOK, status(503), Duration::from_millis(1500)).await
}

pub(super) async fn gateway_timeout(world: &mut World) -> Result<Seen, BoxError> {
    sent_again(world, HOOLI, LOOK, FaultKind::Html { status: 504 }, Duration::from_secs(3)).await
}

/// A chat that the platform may have begun is not begun a second time.
pub(super) async fn gateway_timeout_of_a_chat(world: &mut World) -> Result<Seen, BoxError> {
    let answer = answer_to(world, FaultKind::Html { status: 504 }).await?;
    Ok(format!("{}, not sent again", answer.status.as_u16()).into())
}

pub(super) async fn busy(world: &mut World) -> Result<Seen, BoxError> {
    sent_again(world, ACME, CHAT, code(4009), Duration::from_secs(1)).await
}

pub(super) async fn no_credit(world: &mut World) -> Result<Seen, BoxError> {
    Ok(answer_to(world, code(4011)).await?.said().into())
}

pub(super) async fn expired_token(world: &mut World) -> Result<Seen, BoxError> {
    world.sim.expire_tokens();
    let message = world.message(ACME);
    Ok(world.send(&message).await?.said().into())
}

pub(super) async fn cut_stream(world: &mut World) -> Result<Seen, BoxError> {
    let answer = answer_to(world, CUT).await?;
    chat_is_cancelled(world).await;
    Ok(answer.said().into())
}

/// Who has a piece already can only be told by another one.
pub(super) async fn cut_stream_passed_on(world: &mut World) -> Result<Seen, BoxError> {
    world.fault(CHAT, CUT)?;
    let message = world.message(ACME);
    let answer = stream(world, &message).await?;
    chat_is_cancelled(world).await;
    let events = events(&answer);
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let code = events.last().map(|(_, data)| data["code"].clone()).unwrap_or_default();
    match names[..] {
        ["delta", "error"] => Ok(format!("{}, a piece, error {code}", answer.status.as_u16()).into()),
        _ => Ok(Seen::wrong(format!("{}: {}", answer.said(), names.join(", ")))),
    }
}

/// Three events of a stream: the chat is created, is in progress, and the first piece of its answer.
const CUT: FaultKind = FaultKind::Cut { after: 3, abort: false };

fn status(status: u16) -> FaultKind {
    FaultKind::Status { status, body: None, headers: BTreeMap::new() }
}

fn code(code: i64) -> FaultKind {
    FaultKind::Code { code, msg: "no".into(), status: 200, headers: BTreeMap::new() }
}

/// The answer to a message of which the platform made this.
async fn answer_to(world: &mut World, kind: FaultKind) -> Result<Answer, BoxError> {
    world.fault(CHAT, kind)?;
    let message = world.message(ACME);
    world.send(&message).await
}

/// Waits for what comes after the answer: the bot cannot know whether the chat runs on.
async fn chat_is_cancelled(world: &World) {
    soon(|| world.requests_to(CANCEL) == 1).await;
}

/// The platform fails once, and is asked again after this time at the earliest.
async fn sent_again(
    world: &mut World,
    bot: &str,
    route: &str,
    kind: FaultKind,
    wait: Duration,
) -> Result<Seen, BoxError> {
    world.fault(route, kind)?;
    let message = world.message(bot);
    let said = world.send(&message).await?.said();
    let waited = match world.times_of(route)[..] {
        [first, second] => second - first,
        ref times => return Ok(Seen::wrong(format!("{said}, asked {}×", times.len()))),
    };
    match waited >= wait {
        true => Ok(format!("{said} in ≥ {} s", wait.as_secs_f64()).into()),
        false => Ok(Seen::wrong(format!("{said} in {} ms", waited.as_millis()))),
    }
}
