//! What ends early.

use std::{mem, time::Duration};

use coze_core::BoxError;
use coze_sim::{Fault, FaultKind};
use tokio::{net::TcpStream, time::sleep};

use crate::Backend;

use super::{
    step::Seen,
    world::{ACME, CANCEL, CHAT, HOOLI, LOOK, World, soon},
};

/// Longer than a step lasts.
pub(super) const LONG: Duration = Duration::from_secs(3600);

pub(super) async fn cancelled(world: &mut World) -> Result<Seen, BoxError> {
    world.sim.fault(Fault { delay: LONG, ..Fault::new(LOOK, FaultKind::Pass) })?;
    let message = world.message(HOOLI);
    let (http, request) = (world.http.clone(), world.signed(&message)?);
    let caller = tokio::spawn(async move { http.send(request).await });
    let is_waiting = soon(|| world.requests_to(LOOK) == 1).await;
    caller.abort();
    if !is_waiting || !soon(|| world.requests_to(CANCEL) == 1).await || !world.idle().await {
        return Ok(Seen::wrong("the platform was not told"));
    }
    let id = message["message_id"].as_str().unwrap_or_default();
    let stored = world.backend.store().message(HOOLI, id).await?.map_or("nothing".into(), |stored| stored.status);
    let mut left = in_flight(world).await?;
    // What the platform has ended the bot may still be reading.
    for _ in 0..100 {
        if left <= 0.0 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
        left = in_flight(world).await?;
    }
    Ok(format!("{stored}, {left} in flight").into())
}

pub(super) async fn drained(world: &mut World) -> Result<Seen, BoxError> {
    world.fault(CHAT, FaultKind::DelayEvents { delay: Duration::from_millis(100) })?;
    let message = world.message(ACME);
    let (http, request) = (world.http.clone(), world.signed(&message)?);
    let caller = tokio::spawn(async move { http.send(request).await });
    if !soon(|| world.requests_to(CHAT) == 1).await {
        return Ok(Seen::wrong("the platform was not asked"));
    }

    let successor = Backend::start(&world.config, false).await?;
    let stopping = mem::replace(&mut world.backend, successor);
    let address = stopping.url().trim_start_matches("http://").to_owned();
    let drained = stopping.stop().await;
    let answer = caller.await??;
    if !drained || TcpStream::connect(address).await.is_ok() {
        return Ok(Seen::wrong(format!("{}, but not all was drained", answer.said())));
    }
    let again = world.send(&message).await?;
    match again.body == answer.body {
        true => Ok(format!("{}, a new bot knows it, the old takes no more", answer.said()).into()),
        false => Ok(Seen::wrong(format!("{}, and a new bot says {}", answer.said(), again.said()))),
    }
}

/// Requests that have not ended, on both sides of the bot, as its metrics have them.
async fn in_flight(world: &World) -> Result<f64, BoxError> {
    let metrics = world.http.get(&format!("{}/metrics", world.backend.url())).await?;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let values = ["coze_http_server_in_flight", "coze_http_client_in_flight"].map(|name| {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| value.trim().parse::<f64>().ok()).ok_or(format!("no metric {name}"))
    });
    let [inbound, outbound] = values;
    Ok(inbound? + outbound?)
}
