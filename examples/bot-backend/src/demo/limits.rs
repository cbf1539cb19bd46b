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
    world::{ACME, CANCEL, HOOLI, INITECH, LOOK, World, soon},
};

pub(super) async fn user(world: &mut World) -> Result<Seen, BoxError> {
    let mut messages = [(); 4].map(|()| world.message(ACME));
    let user = messages[0]["user_id"].clone();
    messages.iter_mut().for_each(|message| message["user_id"] = user.clone());
    rate(world, &messages, "\"user\"", 1).await
}

pub(super) async fn app(world: &mut World) -> Result<Seen, BoxError> {
    let messages: Vec<_> = (0..121).map(|_| world.message(INITECH)).collect();
    rate(world, &messages, "\"app\"", 50).await
}

/// All messages but the last at once, and that one when the others were told to come again.
async fn rate(world: &World, messages: &[Value], limit: &str, per_second: u128) -> Result<Seen, BoxError> {
    let Some((late, burst)) = messages.split_last() else { return Ok(Seen::wrong("nothing sent")) };
    let start = Instant::now();
    let mut answers = send_all(world, burst)?;
    let mut tally = Tally::default();
    while let Some(answer) = answers.join_next().await {
        tally.count(&answer??);
    }
    // The limit is kept in any 900 ms. On a machine that is very slow the burst takes more than that.
    let most = per_second * (start.elapsed().as_millis() / 900 + 1);
    let (admitted, refused) = (tally.of(200), tally.of(429));
    sleep(Duration::from_secs(1)).await;
    let last = world.send(late).await?;
    let is_right = (1..=most).contains(&(admitted as u128))
        && refused > 0
        && admitted + refused == burst.len()
        && tally.told == BTreeSet::from([format!("{limit} Retry-After 1")])
        && last.status == 200
        && world.requests() == admitted + 1;
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
pub(super) fn send_all(world: &World, messages: &[Value]) -> Result<JoinSet<Result<Answer, BoxError>>, BoxError> {
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
    statuses: BTreeMap<u16, usize>,
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

    fn of(&self, status: u16) -> usize {
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
