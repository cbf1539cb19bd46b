//! Good messages.

use std::time::Duration;

use coze_core::BoxError;
use coze_sim::{Fault, FaultKind};
use serde_json::Value;

use super::{
    http::Answer,
    limits::send_all,
    step::Seen,
    world::{ACME, CHAT, HOOLI, INITECH, World},
};

pub(super) async fn to_acme(world: &mut World) -> Result<Seen, BoxError> {
    let message = world.message(ACME);
    Ok(world.send(&message).await?.said().into())
}

pub(super) async fn to_hooli(world: &mut World) -> Result<Seen, BoxError> {
    let message = world.message(HOOLI);
    Ok(world.send(&message).await?.said().into())
}

pub(super) async fn to_initech(world: &mut World) -> Result<Seen, BoxError> {
    let message = world.message(INITECH);
    let answer = stream(world, &message).await?;
    let mut events = events(&answer);
    let Some((name, done)) = events.pop().filter(|(name, _)| name == "done") else {
        return Ok(Seen::wrong(format!("{}, without an end", answer.said())));
    };
    let pieces: String = events.iter().filter_map(|(_, data)| data["content"].as_str()).collect();
    if events.len() < 2 || Some(pieces.as_str()) != done["content"].as_str() {
        return Ok(Seen::wrong(format!("{}, {} pieces: {pieces:?}, {name}: {done}", answer.said(), events.len())));
    }
    Ok(format!("{} stream {pieces:?}", answer.status.as_u16()).into())
}

pub(super) async fn twice(world: &mut World) -> Result<Seen, BoxError> {
    let message = world.message(INITECH);
    let (first, second) = (world.send(&message).await?, world.send(&message).await?);
    match first.body == second.body {
        true => Ok(format!("{} twice", first.said()).into()),
        false => Ok(Seen::wrong(format!("{}, then {}", first.said(), second.said()))),
    }
}

pub(super) async fn in_turn(world: &mut World) -> Result<Seen, BoxError> {
    // Each takes a while, in which the platform refuses another one.
    let takes = FaultKind::DelayEvents { delay: Duration::from_millis(10) };
    world.sim.fault(Fault { times: 5, ..Fault::new(CHAT, takes) })?;
    let mut messages: Vec<_> = (0..5).map(|_| world.message(INITECH)).collect();
    let first = messages[0].clone();
    for message in &mut messages {
        ["conversation_id", "user_id"].into_iter().for_each(|name| message[name] = first[name].clone());
    }
    let mut answers = send_all(world, &messages)?;
    let mut answered = 0;
    while let Some(answer) = answers.join_next().await {
        answered += usize::from(answer??.status == 200);
    }
    Ok(format!("{answered} × 200").into())
}

/// Sends a message and asks for a stream.
pub(super) async fn stream(world: &World, message: &Value) -> Result<Answer, BoxError> {
    let mut request = world.signed(message)?;
    request.headers_mut().insert("accept", "text/event-stream".parse()?);
    world.http.send(request).await
}

/// The events of a stream: their names and data.
pub(super) fn events(answer: &Answer) -> Vec<(String, Value)> {
    let text = String::from_utf8_lossy(&answer.body);
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
        Some((name.to_owned(), serde_json::from_str(data).ok()?))
    };
    text.split_terminator("\n\n").filter_map(event).collect()
}
