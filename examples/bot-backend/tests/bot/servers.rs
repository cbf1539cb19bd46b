//! The same with a real PostgreSQL and a real Redis.

use std::time::Duration;

use bot_backend::{Backend, config::Secret, store::Store};
use coze_sim::Config;
use coze_tests::{Postgres, Redis};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{BOT, POLLING, World, config, eventually, message};

async fn with(postgres: &Postgres, redis: &Redis) -> World {
    World::with(Config::default(), |config| {
        config.storage.conversations = Secret::new(&postgres.url());
        config.storage.sessions = Secret::new(&redis.url());
    })
    .await
}

#[tokio::test]
async fn messages_and_sessions_are_shared_by_two_nodes() {
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let one = with(&postgres, &redis).await;
    let mut other = config(&one.sim, &one.folder);
    other.storage.conversations = Secret::new(&postgres.url());
    other.storage.sessions = Secret::new(&redis.url());
    let two = Backend::start(&other, false).await.expect("started");

    let mut sent = message(BOT, "hello");
    let first = one.post(&sent).await;
    assert_eq!(first.status, 200, "{}", first.text());
    let World { sim, bot, folder, http } = one;
    let one = bot;
    let world = World { sim, bot: two, folder, http };
    assert_eq!(world.post(&sent).await.body, first.body, "the other node knows the answer");
    assert_eq!(world.stored(&sent).await.status, "answered");
    sent["message_id"] = json!("the next one");
    assert_eq!(world.post(&sent).await.status, 200);
    let requests = world.sim.requests();
    assert!(requests.last().is_some_and(|r| r.query.starts_with("conversation_id=7")), "the same conversation");
    assert_eq!(world.http.get(&format!("{}/readyz", world.bot.url())).await.status, 200);
    assert!(one.stop().await && world.bot.stop().await);
}

#[tokio::test]
async fn the_three_limits_are_kept_for_all_nodes_together() {
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let change = |config: &mut bot_backend::config::Config| {
        config.storage.conversations = Secret::new(&postgres.url());
        config.limits.redis = Some(Secret::new(&redis.url()));
        config.bots[1].user_per_second = 1.try_into().ok();
        config.limits.bot_concurrency = 1.try_into().expect("not zero");
    };
    let one = World::with(Config::default(), change).await;
    let mut other = config(&one.sim, &one.folder);
    change(&mut other);
    let two = Backend::start(&other, false).await.expect("started");
    let to = |node: &Backend, sent: &serde_json::Value| {
        let mut request = one.signed(sent);
        let url = format!("{}{}", node.url(), request.uri().path());
        *request.uri_mut() = url.parse().expect("a URL");
        one.http.send(request)
    };
    let refusal = |answer: &coze_tests::Answer| {
        let limit = answer.headers.get("ratelimit-policy").and_then(|limit| limit.to_str().ok().map(str::to_owned));
        (answer.status.as_u16(), limit.unwrap_or_default())
    };

    // One message of this user a second, wherever it comes to. More seconds may have begun.
    let since = tokio::time::Instant::now();
    let mut sent = message(POLLING, "hello");
    let mut admitted = 0;
    for index in 0..6 {
        sent["message_id"] = json!(format!("message {index}"));
        let answer = to(if index % 2 == 0 { &one.bot } else { &two }, &sent).await;
        match answer.status.as_u16() {
            200 => admitted += 1,
            _ => assert_eq!(refusal(&answer), (429, "\"user\";q=1;w=1".to_owned())),
        }
    }
    assert!((1..=1 + since.elapsed().as_secs()).contains(&admitted), "{admitted}");

    // One answer of this bot at once, of whichever node.
    one.fault("/v3/chat", coze_sim::FaultKind::DelayEvents { delay: Duration::from_millis(100) });
    let second = async {
        eventually("the first one runs", async || one.sim.counts().running_chats == 1).await;
        to(&two, &message(BOT, "hello")).await
    };
    let (first, second) = tokio::join!(one.send(BOT, "hello"), second);
    assert_eq!(first.status, 200);
    assert_eq!(refusal(&second), (429, "\"bot\";q=1;qu=\"concurrent-requests\"".to_owned()));
    eventually("the slot is free again", async || to(&two, &message(BOT, "hello")).await.status == 200).await;
    assert!(one.bot.stop().await && two.stop().await);
}

#[tokio::test]
async fn of_equal_messages_at_the_same_time_one_is_answered() {
    let postgres = Postgres::start();
    let url = Secret::new(&postgres.url());
    // Nodes that start together make the tables together.
    let (one, two) = tokio::join!(Store::open(&url), Store::open(&url));
    let (one, two) = (one.expect("opened"), two.expect("opened"));
    let sent = message(BOT, "hello").to_string();
    let bot = coze_core::BotId::new(BOT).expect("valid");
    let message = bot_backend::message::Message::parse(sent.as_bytes(), &bot).expect("good");
    let lease = Duration::from_secs(60);
    let claims = tokio::join!(one.claim(&message, lease), two.claim(&message, lease), one.claim(&message, lease));
    let claims = [claims.0, claims.1, claims.2].map(|claim| format!("{:?}", claim.expect("a database")));
    assert_eq!(claims.iter().filter(|claim| *claim == "Ours(1)").count(), 1, "{claims:?}");
    assert_eq!(claims.iter().filter(|claim| *claim == "Running").count(), 2, "{claims:?}");
    // Whoever had it is gone: the next one takes over, and the late one changes nothing.
    eventually("taken over", async || {
        format!("{:?}", two.claim(&message, Duration::ZERO).await.expect("a database")) == "Ours(2)"
    })
    .await;
    one.finish(&message, 1, bot_backend::store::Outcome::Cancelled).await.expect("a database");
    assert_eq!(two.message(BOT, &message.id).await.expect("a database").expect("stored").status, "received");
}

#[tokio::test]
async fn a_redis_that_goes_away_is_said_clearly() {
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let world = with(&postgres, &redis).await;
    assert_eq!(world.send(BOT, "hello").await.status, 200);
    drop(redis);
    let sent = message(POLLING, "hello");
    let refused = timeout(Duration::from_secs(5), world.post(&sent)).await.expect("in time");
    assert_eq!(
        (refused.status.as_u16(), refused.json()["msg"].as_str()),
        (503, Some("sessions cannot be reached now"))
    );
    assert_eq!(world.stored(&sent).await.reason, "sessions_unavailable", "nothing is lost");
    let ready = world.http.get(&format!("{}/readyz", world.bot.url())).await;
    assert_eq!(
        (ready.status.as_u16(), ready.json()["parts"]["sessions"].as_str()),
        (503, Some("sessions_unavailable"))
    );
}

#[tokio::test]
async fn a_database_that_goes_away_is_said_clearly() {
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let world = with(&postgres, &redis).await;
    assert_eq!(world.send(BOT, "hello").await.status, 200);
    drop(postgres);
    let refused = timeout(Duration::from_secs(5), world.send(BOT, "hello")).await.expect("in time");
    assert_eq!(
        (refused.status.as_u16(), refused.json()["msg"].as_str()),
        (503, Some("conversations cannot be stored now"))
    );
    let ready = world.http.get(&format!("{}/readyz", world.bot.url())).await;
    assert_eq!((ready.status.as_u16(), ready.json()["ready"].as_bool()), (503, Some(false)));
    assert_eq!(world.sim.counts().requests("POST /v3/chat"), 1);
}
