//! Messages over the limits that are answered later, and reads that are answered from memory.

use std::num::NonZeroU32;

use bot_backend::{
    Backend,
    config::{Config, Keeper, Secret},
};
use coze_tests::Redis;
use serde_json::Value;

use crate::support::{BOT, World, config, message};

/// One message a second of one user, the others later.
fn one_a_second(config: &mut Config) {
    config.limits.user_per_second = NonZeroU32::MIN;
    config.later.queue = Keeper::Memory;
}

/// Another message of the same person.
fn another(first: &Value, n: usize) -> Value {
    let mut next = first.clone();
    next["message_id"] = format!("{}-{n}", first["message_id"].as_str().expect("text")).into();
    next["content"] = format!("message {n}").into();
    next
}

/// Asks for the answer until it is there. Each round is a request, so this ends with the limit's second at the latest.
async fn answered(world: &World, sent: &Value) -> Value {
    loop {
        let answer = world.post(sent).await;
        match answer.status.as_u16() {
            200 => return answer.json()["data"].clone(),
            202 | 409 => tokio::task::yield_now().await,
            other => panic!("{other}: {}", answer.text()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_gets_a_receipt_and_is_answered_once() {
    let world = World::with(coze_sim::Config::default(), one_a_second).await;
    let first = message(BOT, "hello");
    assert_eq!(world.post(&first).await.status, 200);
    let later: Vec<Value> = (0..3).map(|n| another(&first, n)).collect();
    for sent in &later {
        let mut request = world.signed(sent);
        request.headers_mut().insert("accept-language", "zh".parse().expect("valid"));
        let receipt = world.http.send(request).await;
        assert_eq!(receipt.status, 202);
        let body = receipt.json();
        assert_eq!((body["code"].as_i64(), body["msg"].as_str()), (Some(0), Some("请求已接收,结果将异步通知")));
        assert_eq!(body["data"]["receipt"], sent["message_id"]);
    }
    for sent in &later {
        let answer = answered(&world, sent).await;
        assert_eq!(
            (&answer["message_id"], &answer["content"]),
            (&sent["message_id"], &format!("You said: {}", sent["content"].as_str().expect("text")).into(),)
        );
        assert_eq!(world.stored(sent).await.status, "answered");
    }
    assert_eq!(world.chats("0"), 4, "each message is one chat, however often it was asked for");
    assert!(world.bot.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_to_read_along_or_sends_nonsense_is_refused_as_ever() {
    let world = World::with(coze_sim::Config::default(), one_a_second).await;
    let first = message(BOT, "hello");
    assert_eq!(world.post(&first).await.status, 200);
    let mut stream = world.signed(&another(&first, 0));
    stream.headers_mut().insert("accept", "text/event-stream".parse().expect("valid"));
    let refused = world.http.send(stream).await;
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains_key("retry-after"));
    let mut broken = another(&first, 1);
    broken["content"] = 5.into();
    assert_eq!(world.post(&broken).await.status, 400);
    assert_eq!(world.chats("0"), 1);
    assert!(world.bot.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_queue_the_caller_is_refused() {
    let world = World::with(coze_sim::Config::default(), |config| {
        one_a_second(config);
        config.later.queue = Keeper::None;
    })
    .await;
    let first = message(BOT, "hello");
    assert_eq!(world.post(&first).await.status, 200);
    let refused = world.post(&another(&first, 0)).await;
    assert_eq!((refused.status.as_u16(), refused.json()["msg"].is_string()), (429, true));
    assert!(world.bot.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_took_in_another_one_answers() {
    let redis = Redis::start();
    let shared = |config: &mut Config| {
        one_a_second(config);
        config.later.queue = Keeper::Redis;
        config.storage.sessions = Secret::new(&redis.url());
    };
    let world = World::with(coze_sim::Config::default(), shared).await;
    let first = message(BOT, "hello");
    assert_eq!(world.post(&first).await.status, 200);
    // More than the lanes that begin at once.
    let later: Vec<Value> = (0..6).map(|n| another(&first, n)).collect();
    for sent in &later {
        assert_eq!(world.post(sent).await.status, 202);
    }
    let mut again = config(&world.sim, &world.folder);
    shared(&mut again);
    let World { sim, bot, folder, http } = world;
    bot.stop().await;
    let world = World { bot: Backend::start(&again, false).await.expect("started"), sim, folder, http };
    for sent in &later {
        answered(&world, sent).await;
    }
    assert_eq!(world.chats("0"), 7);
    assert!(world.bot.stop().await);
}
