//! What is kept of messages: answered once, through restarts, whatever the caller does.

use std::time::Duration;

use bot_backend::Backend;
use coze_sim::{Config, FaultKind};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{BOT, POLLING, World, config, events, eventually, message};

#[tokio::test]
async fn a_message_that_comes_again_gets_the_answer_it_got() {
    let world = World::start().await;
    let sent = message(BOT, "hello");
    let first = world.post(&sent).await;
    let second = world.post(&sent).await;
    assert_eq!((first.status, &first.body), (second.status, &second.body));
    let mut request = world.signed(&sent);
    request.headers_mut().insert("accept", "text/event-stream".parse().expect("valid"));
    let events = events(world.http.send(request).await.text());
    assert_eq!(events.last().map(|(name, data)| (name.as_str(), data)), Some(("done", &first.json()["data"])));
    assert_eq!(world.sim.counts().requests("POST /v3/chat"), 1);
}

#[tokio::test]
async fn an_id_belongs_to_one_message() {
    let world = World::start().await;
    let mut sent = message(BOT, "hello");
    assert_eq!(world.post(&sent).await.status, 200);
    for (field, value) in [("content", "something else"), ("user_id", "somebody else"), ("conversation_id", "another")]
    {
        let kept = sent[field].clone();
        sent[field] = json!(value);
        let answer = world.post(&sent).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["msg"].as_str()),
            (409, Some("the message id belongs to another message"))
        );
        sent[field] = kept;
    }
    // Of another bot it is another message.
    sent["bot_id"] = json!(POLLING);
    assert_eq!(world.post(&sent).await.status, 200);
}

#[tokio::test]
async fn a_message_that_is_being_answered_is_not_answered_twice() {
    let world =
        World::with(Config::default(), |config| config.limits.user_per_second = 100.try_into().expect("not zero"))
            .await;
    world.fault("/v3/chat", FaultKind::DelayEvents { delay: Duration::from_millis(50) });
    let sent = message(BOT, "hello");
    let (one, two) = tokio::join!(world.post(&sent), world.post(&sent));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    let refused = if one.status == 409 { one } else { two };
    assert_eq!(
        (&refused.headers["retry-after"], refused.json()["msg"].as_str()),
        (&1.into(), Some("the message with this id is being answered"))
    );
    assert_eq!(world.sim.counts().requests("POST /v3/chat"), 1);
}

#[tokio::test]
async fn a_message_that_failed_may_be_tried_again() {
    let world = World::start().await;
    world.fault("/v3/chat", FaultKind::Cut { after: 3, abort: false });
    let sent = message(BOT, "hello");
    assert_eq!(world.post(&sent).await.status, 502);
    assert_eq!(world.stored(&sent).await.status, "failed");
    // The platform's chat is cancelled, so the conversation is free for the next one.
    eventually("cancelled", async || world.sim.counts().requests("POST /v3/chat/cancel") == 1).await;
    assert_eq!(world.post(&sent).await.json()["data"]["content"], "You said: hello");
    assert_eq!(world.stored(&sent).await.status, "answered");
}

#[tokio::test]
async fn a_restart_keeps_messages_and_conversations() {
    let world = World::start().await;
    let mut sent = message(BOT, "hello");
    let first = world.post(&sent).await;
    let World { sim, bot, folder, http } = world;
    assert!(bot.stop().await);

    let bot = Backend::start(&config(&sim, &folder), false).await.expect("started again");
    let world = World { sim, bot, folder, http };
    assert_eq!(world.post(&sent).await.body, first.body);
    assert_eq!(world.sim.counts().requests("POST /v3/chat"), 1);
    sent["message_id"] = json!("the next one");
    assert_eq!(world.post(&sent).await.status, 200);
    let requests = world.sim.requests();
    assert!(requests.last().is_some_and(|r| r.query.starts_with("conversation_id=7")), "{requests:?}");
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_nothing_running() {
    for (bot, streams) in [(BOT, false), (BOT, true), (POLLING, false)] {
        let platform = Config {
            pace: coze_sim::Pace { polls: 100, work: Duration::from_secs(60), ..Default::default() },
            ..Config::default()
        };
        let world = World::with(platform, |_| {}).await;
        world.fault("/v3/chat", FaultKind::DelayEvents { delay: Duration::from_millis(200) });
        let sent = message(bot, "a long story");
        let mut request = world.signed(&sent);
        if streams {
            request.headers_mut().insert("accept", "text/event-stream".parse().expect("valid"));
        }
        // With the client goes its connection.
        let http = coze_tests::Http::new();
        assert!(timeout(Duration::from_millis(700), http.send(request)).await.is_err(), "still running");
        drop(http);
        eventually("cancelled on the platform", async || world.sim.counts().requests("POST /v3/chat/cancel") == 1)
            .await;
        eventually("nothing runs", async || world.sim.counts().running_chats == 0 && world.sim.counts().in_flight == 0)
            .await;
        assert_eq!(world.stored(&sent).await.status, "cancelled", "{bot} {streams}");
        // Its slot among the bot's is free, and nothing is left for the shutdown to wait for.
        assert!(timeout(Duration::from_secs(1), world.bot.stop()).await.expect("at once"));
    }
}

#[tokio::test]
async fn a_caller_who_goes_away_before_the_chat_began_is_not_answered() {
    let world = World::start().await;
    world
        .sim
        .fault(coze_sim::Fault { delay: Duration::from_secs(30), ..coze_sim::Fault::new("/v3/chat", FaultKind::Pass) })
        .expect("possible");
    let sent = message(BOT, "hello");
    let http = coze_tests::Http::new();
    assert!(timeout(Duration::from_millis(300), http.send(world.signed(&sent))).await.is_err(), "still running");
    drop(http);
    eventually("stored", async || world.stored(&sent).await.status == "cancelled").await;
    assert_eq!(world.sim.counts().requests("POST /v3/chat/cancel"), 0, "there is no chat whose id is known");
    eventually("nothing runs", async || world.sim.counts().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_go_away_at_any_moment_leave_nothing_behind() {
    let limits = coze_sim::Limits { chat_qps: 0, ..Default::default() };
    let world = World::with(Config { limits, ..Config::default() }, |config| {
        config.limits.app_qps = 10_000.try_into().expect("not zero");
        config.limits.bot_concurrency = 60.try_into().expect("not zero");
    })
    .await;
    let all = coze_sim::Fault { times: 120, ..coze_sim::Fault::new("/v3/chat", slow(Duration::from_millis(10))) };
    world.sim.fault(all).expect("possible");
    let mut random = fastrand::Rng::with_seed(7);
    let mut callers = tokio::task::JoinSet::new();
    let mut messages = Vec::new();
    for number in 0..60 {
        for bot in [BOT, POLLING] {
            let sent = message(bot, "a story of some length");
            let mut request = world.signed(&sent);
            if number % 2 == 0 {
                request.headers_mut().insert("accept", "text/event-stream".parse().expect("valid"));
            }
            let patience = Duration::from_millis(random.u64(0..250));
            messages.push(sent);
            callers.spawn(async move {
                let http = coze_tests::Http::new();
                let _ = timeout(patience, http.send(request)).await;
            });
        }
    }
    callers.join_all().await;
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for sent in &messages {
        let (bot, id) = (sent["bot_id"].as_str().expect("text"), sent["message_id"].as_str().expect("text"));
        // One that never arrived is not stored.
        let ended = async || {
            world.bot.store().message(bot, id).await.expect("a database").is_none_or(|m| m.status != "received")
        };
        eventually("it has ended", ended).await;
        let stored = world.bot.store().message(bot, id).await.expect("a database");
        *counts.entry(stored.map_or("absent".into(), |m| m.status)).or_default() += 1;
    }
    assert!(counts.contains_key("cancelled") && !counts.contains_key("failed"), "{counts:?}");
    eventually("nothing runs", async || world.sim.counts().running_chats == 0 && world.sim.counts().in_flight == 0)
        .await;
    assert_eq!(world.send(BOT, "hello").await.status, 200);
    assert!(timeout(Duration::from_secs(5), world.bot.stop()).await.expect("in time"));
}

fn slow(delay: Duration) -> FaultKind {
    FaultKind::DelayEvents { delay }
}
