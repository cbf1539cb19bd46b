//! Bursts over the three limits. All messages of a burst are under way at the same time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

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
    world::{ACME, CANCEL, CHAT, HOOLI, INITECH, LOOK, World, soon},
};

/// What those who are refused are told to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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
    sleep(RETRY_AFTER).await;
    let last = world.send(&late).await?;
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
    // The limit is kept in any 900 ms. On a machine that is very slow the burst takes more than that.
    let most = 50 * (start.elapsed().as_millis() / 900 + 1);
    let (admitted, refused) = (tally.of(200), tally.of(429));
    let late = world.message(INITECH);
    sleep(RETRY_AFTER).await;
    let last = world.send(&late).await?;
    let is_right = u128::from(admitted) <= most
        && refused >= 1
        && admitted + refused == 120
        && tally.told == BTreeSet::from(["\"app\" Retry-After 1".to_owned()])
        && last.status == 200
        && world.requests_to(CHAT) as u64 == admitted + 1;
    Ok(Seen { bot: format!("{tally}, then {}", last.status.as_u16()), verdict: Some(is_right) })
}

pub(super) async fn bot(world: &mut World) -> Result<Seen, BoxError> {
    world.sim.fault(Fault { times: 10, delay: LONG, ..Fault::new(LOOK, FaultKind::Pass) })?;
    let messages: Vec<_> = (0..15).map(|_| world.message(HOOLI)).collect();
    let mut burst = send_all(world, &messages)?;
    let mut tally = Tally::default();
    // None of those that are admitted ends before these five are refused.
    for _ in 0..5 {
        let Some(answer) = burst.join_next().await else { break };
        tally.count(&answer??);
    }
    if !soon(|| world.requests_to(LOOK) == 10).await {
        return Ok(Seen::wrong(format!("{} run, {tally}", world.requests_to(LOOK))));
    }
    // Those ten hang up.
    drop(burst);
    let cancelled = soon(|| world.requests_to(CANCEL) == 10).await;
    if !cancelled {
        return Ok(Seen::wrong(format!("10 run, {tally}, {} cancelled", world.requests_to(CANCEL))));
    }
    let late = world.message(HOOLI);
    let last = world.send(&late).await?;
    Ok(format!("10 run, {tally}, then {}", last.status.as_u16()).into())
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

/// How many answers of each status there are, and what the refused ones say.
#[derive(Debug, Default)]
struct Tally {
    statuses: BTreeMap<u16, u64>,
    /// The limit and the time to wait.
    told: BTreeSet<String>,
}

impl Tally {
    fn count(&mut self, answer: &Answer) {
        *self.statuses.entry(answer.status.as_u16()).or_default() += 1;
        if answer.status == 429 {
            let limit = answer.header("ratelimit-policy").and_then(|policy| policy.split(';').next()).unwrap_or("?");
            let wait = answer.header("retry-after").unwrap_or("?");
            self.told.insert(format!("{limit} Retry-After {wait}"));
        }
    }

    fn of(&self, status: u16) -> u64 {
        self.statuses.get(&status).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let statuses = self.statuses.iter().map(|(status, times)| format!("{times} × {status}"));
        let told: Vec<_> = self.told.iter().map(String::as_str).collect();
        write!(f, "{} {}", statuses.collect::<Vec<_>>().join(", "), told.join(" or "))
    }
}
