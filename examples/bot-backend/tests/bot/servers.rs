//! The same with a real PostgreSQL and a real Redis.

use std::{fs, time::Duration};

use bot_backend::{
    Backend,
    config::{self as table, Secret},
    store::Store,
};
use bytes::Bytes;
use coze_sim::{Callback, Config, Pushed};
use coze_tests::{Postgres, Redis};
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    oauth::{TOKEN, begin, come_back, oauth, that_needs_consent},
    support::{BOT, POLLING, VERIFY, World, config, eventually, message},
};

async fn with(postgres: &Postgres, redis: &Redis) -> World {
    World::with(Config::default(), |config| {
        config.storage.conversations = Secret::new(&postgres.url());
        config.storage.sessions = Secret::new(&redis.url());
    })
    .await
}

/// A message for this node.
fn addressed(world: &World, node: &Backend, sent: &Value) -> Request<Full<Bytes>> {
    let mut request = world.signed(sent);
    let url = format!("{}{}", node.url(), request.uri().path());
    *request.uri_mut() = url.parse().expect("a URL");
    request
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
    let to = |node: &Backend, sent: &Value| one.http.send(addressed(&one, node, sent));
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

/// Pushes an event to a node: a new one, or a copy of one that was pushed.
async fn push(world: &World, node: &Backend, copied: Option<&Pushed>) -> Pushed {
    let event = Callback {
        url: format!("{}/callback/{BOT}", node.url()),
        verify_token: VERIFY.into(),
        attempts: 1,
        event_id: copied.map(|pushed| pushed.event_id.clone()),
        timestamp: copied.map(|pushed| pushed.timestamp.clone()),
        nonce: copied.map(|pushed| pushed.nonce.clone()),
        ..Callback::default()
    };
    world.sim.push_callback(&event).await.expect("sent")
}

#[tokio::test]
async fn an_event_that_one_node_accepted_is_refused_by_the_other() {
    let sessions = |config: &mut table::Config, url| config.storage.sessions = url;
    let limits = |config: &mut table::Config, url| config.limits.redis = Some(url);
    for set in [sessions, limits] {
        let redis = Redis::start();
        let set = |config: &mut table::Config| set(config, Secret::new(&redis.url()));
        let one = World::with(Config::default(), set).await;
        // A database of its own, as the one that knows the event's id would not store it twice.
        let folder = TempDir::new().expect("a folder");
        let mut other = config(&one.sim, &folder);
        set(&mut other);
        let two = Backend::start(&other, false).await.expect("started");
        let first = push(&one, &one.bot, None).await;
        assert!(first.accepted, "{first:?}");
        let copy = push(&one, &two, Some(&first)).await;
        assert!(copy.status == 401 && copy.body.contains("a request with this id was accepted before"), "{copy:?}");
        let stored = [one.bot.store(), two.store()].map(async |store| store.events().await.expect("a database"));
        let [stored, other] = stored;
        assert_eq!((stored.await, other.await), (1, 0), "one handler saw it, once");
        assert!(push(&one, &two, None).await.accepted, "another event");
    }
}

#[tokio::test]
async fn events_are_known_in_the_redis_that_is_there_and_by_each_node_while_there_is_none() {
    let (first, second) = (Redis::start(), Redis::start());
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("url");
    fs::write(&path, first.url()).expect("written");
    let set = |config: &mut table::Config| {
        config.secrets.poll = Duration::from_millis(100);
        config.storage.sessions = Secret::file(&path);
    };
    let one = World::with(Config::default(), set).await;
    let mut other = config(&one.sim, &folder);
    set(&mut other);
    let two = Backend::start(&other, false).await.expect("started");

    drop(first);
    let event = push(&one, &one.bot, None).await;
    assert!(event.accepted, "nobody is refused: {event:?}");
    assert_eq!(push(&one, &one.bot, Some(&event)).await.status, 401, "this node knows it");
    assert_eq!(push(&one, &two, Some(&event)).await.status, 200, "the other one does not");
    fs::write(&path, second.url()).expect("written");
    eventually("both changed over", async || {
        let event = push(&one, &one.bot, None).await;
        push(&one, &two, Some(&event)).await.status == 401
    })
    .await;
}

#[tokio::test]
async fn one_node_is_authorised_and_the_other_calls_with_that_token() {
    let redis = Redis::start();
    let folder = TempDir::new().expect("a folder");
    let url = Some(Secret::new(&redis.url()));
    let oauth = table::OAuth { token_file: None, token_redis: url, ..oauth(&folder) };
    let world = that_needs_consent(oauth.clone()).await;
    let mut other = config(&world.sim, &folder);
    other.platform.token = None;
    other.platform.oauth = Some(oauth);
    let two = Backend::start(&other, false).await.expect("started");
    let is_ready = async |node: &Backend| world.http.get(&format!("{}/readyz", node.url())).await.status == 200;
    assert!(!is_ready(&two).await, "nobody consented yet");
    let answered = async |nodes: &[&Backend]| {
        let mut messages = tokio::task::JoinSet::new();
        for node in nodes.iter().cycle().take(8) {
            let (request, http) = (addressed(&world, node, &message(BOT, "hello")), world.http.clone());
            messages.spawn(async move { http.send(request).await });
        }
        let answers = messages.join_all().await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{}", answers[0].text());
    };
    let asked = || world.sim.counts().requests(&format!("POST {TOKEN}"));

    assert_eq!(come_back(&world, &begin(&world).await).await.0, 200);
    eventually("the other node knows", async || is_ready(&two).await).await;
    // The exchange of the code, and a refresh of the node whose browser it was.
    answered(&[&world.bot]).await;
    assert_eq!(asked(), 2);
    answered(&[&two]).await;
    assert_eq!(asked(), 3, "one refresh for all who wait");
    world.sim.expire_tokens();
    answered(&[&world.bot, &two]).await;
    assert_eq!(asked(), 5, "one refresh of each node");
    let outcomes = world.sim.counts().outcomes(&format!("POST {TOKEN}"), "0");
    assert_eq!(outcomes, 5, "no refresh token was sent twice");
    // It is stored: a node that starts now needs nobody.
    assert!(two.stop().await);
    let two = Backend::start(&other, false).await.expect("started");
    assert!(is_ready(&two).await);
    answered(&[&two]).await;
    drop(redis);
    let error = Backend::start(&other, false).await.expect_err("no redis").to_string();
    assert_eq!(error, "platform.oauth.token_redis: the redis of the refresh token cannot be asked");
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
