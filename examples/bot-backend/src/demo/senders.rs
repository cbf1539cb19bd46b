//! Who may send what, and how often.

use coze_core::BoxError;
use coze_sim::{Callback, Pushed};
use serde_json::json;

use super::{
    step::Seen,
    world::{ACME, KEY, VERIFY, World},
};

pub(super) async fn bad_signature(world: &mut World) -> Result<Seen, BoxError> {
    let message = world.message(ACME);
    let request = world.signed_with("another key", &format!("/webhook/{ACME}"), &message)?;
    Ok(world.http.send(request).await?.said().into())
}

pub(super) async fn unknown_bot(world: &mut World) -> Result<Seen, BoxError> {
    let message = world.message("umbrella");
    Ok(world.send(&message).await?.said().into())
}

pub(super) async fn unknown_tenant(world: &mut World) -> Result<Seen, BoxError> {
    let message = world.message(ACME);
    let mut request = world.signed_with(KEY, &format!("/webhook/{ACME}"), &message)?;
    request.headers_mut().insert("x-tenant-id", "umbrella".parse()?);
    Ok(world.http.send(request).await?.said().into())
}

pub(super) async fn replayed(world: &mut World) -> Result<Seen, BoxError> {
    // Its timestamp is part of what is signed, so it is sent again too.
    push_twice(world, |first| Callback {
        timestamp: Some(first.timestamp.clone()),
        nonce: Some(first.nonce.clone()),
        ..Callback::default()
    })
    .await
}

pub(super) async fn resent(world: &mut World) -> Result<Seen, BoxError> {
    push_twice(world, |_| Callback::default()).await
}

/// An event, and the same one again in this way.
async fn push_twice(world: &mut World, again: impl Fn(&Pushed) -> Callback) -> Result<Seen, BoxError> {
    let before = world.backend.store().events().await?;
    let event = |callback: Callback, id: Option<&Pushed>| Callback {
        url: format!("{}/callback/{ACME}", world.backend.url()),
        verify_token: VERIFY.into(),
        event_type: "bot.published".into(),
        event: json!({ "bot_id": ACME }),
        event_id: id.map(|first| first.event_id.clone()),
        attempts: 1,
        ..callback
    };
    let first = world.sim.push_callback(&event(Callback::default(), None)).await?;
    let second = world.sim.push_callback(&event(again(&first), Some(&first))).await?;
    let stored = match world.backend.store().events().await? - before {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    Ok(format!("{}, {}, stored {stored}", first.status, second.status).into())
}
