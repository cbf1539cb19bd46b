//! What is kept of messages: answered once, through restarts, whatever the caller does.

use std::time::Duration;

use bot_backend::Bot;
use coze_sim::{Config, FaultKind};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::support::{BOT, POLLING, World, config, events, eventually, message};

/// One message a second of one user.
async fn a_second() {
    sleep(Duration::from_millis(1050)).await;
}

#[tokio::test]
async fn a_message_that_comes_again_gets_the_answer_it_got() {
    let world = World::start().await;
    let sent = message(BOT, "hello");
    let first = world.post(&sent).await;
    a_second().await;
    let second = world.post(&sent).await;
    assert_eq!((first.status, &first.body), (second.status, &second.body));
    a_second().await;
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
        a_second().await;
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
    a_second().await;
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

    let bot = Bot::start(&config(&sim, &folder), false).await.expect("started again");
    let world = World { sim, bot, folder, http };
    assert_eq!(world.post(&sent).await.body, first.body);
    assert_eq!(world.sim.counts().requests("POST /v3/chat"), 1);
    a_second().await;
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
