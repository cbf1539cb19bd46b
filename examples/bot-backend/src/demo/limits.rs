//! Bursts over the three limits. All messages of a burst are under way at the same time.

use std::{collections::BTreeMap, time::Duration};

use coze_core::BoxError;
use coze_sim::{Fault, FaultKind};
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    http::Answer,
    step::Seen,
    stopping::LONG,
    world::{ACME, CANCEL, CHAT, GLOBEX, INITECH, LOOK, World, soon},
};

pub(super) async fn user(world: &mut World) -> Result<Seen, BoxError> {
    let mut messages = [(); 3].map(|()| world.message(ACME));
    let user = messages[0]["user_id"].clone();
    for message in &mut messages {
        message["user_id"] = user.clone();
    }
    let mut burst = send_all(world, &messages)?;
    let mut tally = Tally::default();
    while let Some(answer) = burst.join_next().await {
        tally.count(&answer??);
    }
    let mut late = world.message(ACME);
    late["user_id"] = user;
    let last = tally.wait_and_send(world, &late).await?;
    Ok(format!("{tally}, then {}", last.status.as_u16()).into())
}

pub(super) async fn app(world: &mut World) -> Result<Seen, BoxError> {
    let messages: Vec<_> = (0..120).map(|_| world.message(INITECH)).collect();
    let start = Instant::now();
    let mut burst = send_all(world, &messages)?;
    let mut tally = Tally::default();
    while let Some(answer) = burst.join_next().await {
        tally.count(&answer??);
    }
    // On a machine that is very slow the burst reaches into a further second.
    let seconds = start.elapsed().as_secs() + 1;
    let (admitted, refused) = (tally.of(200), tally.of(429));
    let late = world.message(INITECH);
    let last = tally.wait_and_send(world, &late).await?;
    let is_right = admitted <= 50 * seconds
        && refused >= 1
        && admitted + refused == 120
        && tally.waits.as_deref() == Some("1")
        && last.status == 200
        && world.requests_to(CHAT) as u64 == admitted + 1;
    Ok(Seen { bot: format!("{tally}, then {}", last.status.as_u16()), verdict: Some(is_right) })
}

pub(super) async fn bot(world: &mut World) -> Result<Seen, BoxError> {
    world.sim.fault(Fault { times: 10, delay: LONG, ..Fault::new(LOOK, FaultKind::Pass) })?;
    let messages: Vec<_> = (0..15).map(|_| world.message(GLOBEX)).collect();
    let mut burst = send_all(world, &messages)?;
    let mut tally = Tally::default();
    // None of those that are admitted ends before these five are refused.
    for _ in 0..5 {
        let Some(answer) = burst.join_next().await else { break };
        tally.count(&answer??);
    }
    if !soon(|| world.requests_to(LOOK) == 10).await {
        return Ok(Seen::wrong(format!("{tally}; {} at once", world.requests_to(LOOK))));
    }
    // Those ten hang up.
    drop(burst);
    let cancelled = soon(|| world.requests_to(CANCEL) == 10).await;
    world.sim.clear_faults();
    if !cancelled {
        return Ok(Seen::wrong(format!("{tally}; {} cancelled", world.requests_to(CANCEL))));
    }
    let late = world.message(GLOBEX);
    let last = world.send(&late).await?;
    Ok(format!("{tally}, then {}", last.status.as_u16()).into())
}

/// Sends the messages all at once.
fn send_all(world: &World, messages: &[Value]) -> Result<JoinSet<Result<Answer, BoxError>>, BoxError> {
    let mut burst = JoinSet::new();
    for message in messages {
        let (http, request) = (world.http.clone(), world.signed(message)?);
        burst.spawn(async move { http.send(request).await });
    }
    Ok(burst)
}

/// How many answers of each status there are, and what the refused ones are told.
#[derive(Debug, Default)]
struct Tally {
    statuses: BTreeMap<u16, u64>,
    /// `Retry-After`; all values there are, if they differ.
    waits: Option<String>,
}

impl Tally {
    fn count(&mut self, answer: &Answer) {
        *self.statuses.entry(answer.status.as_u16()).or_default() += 1;
        if answer.status != 429 {
            return;
        }
        let wait = answer.header("retry-after").unwrap_or("missing");
        match &mut self.waits {
            Some(known) if known == wait => {}
            Some(known) => known.push_str(&format!(" or {wait}")),
            None => self.waits = Some(wait.to_owned()),
        }
    }

    fn of(&self, status: u16) -> u64 {
        self.statuses.get(&status).copied().unwrap_or_default()
    }

    /// Waits as long as the refused ones were told to, and sends another.
    async fn wait_and_send(&self, world: &World, message: &Value) -> Result<Answer, BoxError> {
        let wait = self.waits.as_deref().and_then(|wait| wait.parse().ok()).unwrap_or(0);
        sleep(Duration::from_secs(wait)).await;
        world.send(message).await
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let statuses: Vec<_> = self.statuses.iter().map(|(status, times)| format!("{times} × {status}")).collect();
        f.write_str(&statuses.join(", "))?;
        self.waits.as_ref().map_or(Ok(()), |wait| write!(f, " Retry-After {wait}"))
    }
}
