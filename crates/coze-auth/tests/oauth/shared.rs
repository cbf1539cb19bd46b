//! One refresh token for several processes, in a real Redis.

use std::{sync::Arc, time::Duration};

use coze_auth::{OAuthApp, RedisStore, Refresh, RefreshToken, Refresher, TokenStore};
use coze_core::{Kind, Retry};
use coze_tests::Redis;
use redis::AsyncCommands;
use tokio::time::timeout;

use crate::{
    scripted::{Scripted, Step, ok, refusal},
    store::replaces,
};

/// A node's own connection. Long enough for a busy machine, where nothing is wrong.
fn store(redis: &Redis) -> RedisStore {
    RedisStore::new(&redis.url(), "token").expect("a URL").timeout(Duration::from_secs(20))
}

fn node(platform: &Scripted, store: RedisStore) -> Arc<Refresh<Scripted, RedisStore>> {
    Arc::new(OAuthApp::new(platform.endpoint(), "c1").refreshing(store))
}

fn granted(next: &str) -> Step {
    ok(&format!(r#"{{"access_token":"czu_{next}","expires_in":900,"refresh_token":"{next}"}}"#))
}

async fn held(store: &RedisStore) -> (String, u8) {
    let token = store.load().await.expect("readable").expect("there is one");
    (token.expose().to_owned(), token.sent())
}

#[tokio::test]
async fn only_the_token_that_is_known_is_replaced() {
    replaces(store(&Redis::start())).await;
}

#[tokio::test]
async fn nodes_that_refresh_at_once_send_each_token_once() {
    let redis = Redis::start();
    let slow = |n: usize| Step::After(Duration::from_millis(5), Box::new(granted(&format!("r{n}"))));
    let platform = Scripted::new((1..=12).map(slow));
    store(&redis).save(&RefreshToken::new("r0")).await.expect("saved");
    let nodes: Vec<_> = (0..3).map(|_| node(&platform, store(&redis))).collect();
    let mut refreshes = tokio::task::JoinSet::new();
    for n in 0..12 {
        let node = nodes[n % nodes.len()].clone();
        refreshes.spawn(async move { node.refresh().await });
    }
    for refreshed in refreshes.join_all().await {
        refreshed.expect("granted");
    }
    let sent: Vec<_> = platform.sent().into_iter().map(|(.., body)| body["refresh_token"].clone()).collect();
    assert_eq!(sent, (0..12).map(|n| format!("r{n}")).collect::<Vec<_>>());
    assert_eq!(held(&store(&redis)).await, ("r12".into(), 0));
}

#[tokio::test]
async fn a_node_that_is_gone_holds_the_others_up_no_longer_than_its_lease() {
    let redis = Redis::start();
    let short = || store(&redis).lease_time(Duration::from_millis(200));
    let platform = Scripted::new([granted("r2")]);
    short().save(&RefreshToken::new("r1")).await.expect("saved");
    // As a process that dies leaves it.
    std::mem::forget(short().lease().await.expect("free"));
    node(&platform, short()).refresh().await.expect("granted");
    assert_eq!(held(&short()).await, ("r2".into(), 0));
}

#[tokio::test]
async fn who_is_cancelled_loses_no_token_and_lets_go() {
    let redis = Redis::start();
    let slow = Step::After(Duration::from_millis(200), Box::new(granted("r2")));
    let platform = Scripted::new([slow, granted("r3")]);
    store(&redis).save(&RefreshToken::new("r1")).await.expect("saved");
    let (one, other) = (node(&platform, store(&redis)), node(&platform, store(&redis)));
    {
        let mut refresh = Box::pin(one.refresh());
        while platform.count() == 0 {
            assert!(timeout(Duration::from_millis(1), &mut refresh).await.is_err());
        }
    }
    assert_eq!(held(&store(&redis)).await, ("r1".into(), 1));
    other.refresh().await.expect("granted, long before the lease of a minute is over");
    assert_eq!(held(&store(&redis)).await, ("r3".into(), 0));
}

#[tokio::test]
async fn who_comes_back_after_its_lease_stores_what_it_got_and_overwrites_nothing_newer() {
    let redis = Redis::start();
    let short = || store(&redis).lease_time(Duration::from_millis(50));
    let late = |step: Step| Step::After(Duration::from_millis(400), Box::new(step));

    // The first one's token was spent, and the second one, which took it for dead, is refused.
    let platform = Scripted::new([late(granted("r2")), refusal("invalid_request")]);
    short().save(&RefreshToken::new("r1")).await.expect("saved");
    let (one, other) = (node(&platform, short()), node(&platform, short()));
    let first = tokio::spawn(async move { one.refresh().await });
    while platform.count() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(other.refresh().await.expect_err("spent").reason(), "reauthorization_required");
    assert_eq!(held(&short()).await, ("r1".into(), 2));
    first.await.expect("no panic").expect("granted");
    assert_eq!(held(&short()).await, ("r2".into(), 0), "the second one's mark is not in the way");

    // The second one was faster.
    let platform = Scripted::new([late(refusal("invalid_request")), granted("r3")]);
    let (one, other) = (node(&platform, short()), node(&platform, short()));
    let first = tokio::spawn(async move { one.refresh().await });
    while platform.count() == 0 {
        tokio::task::yield_now().await;
    }
    other.refresh().await.expect("granted");
    assert_eq!(first.await.expect("no panic").expect_err("spent").reason(), "reauthorization_required");
    assert_eq!(held(&short()).await, ("r3".into(), 0));
}

#[tokio::test]
async fn without_its_redis_nothing_is_sent_and_what_was_granted_waits_for_it() {
    let redis = Redis::start();
    let platform = Scripted::new([Step::After(Duration::from_millis(100), Box::new(granted("r2")))]);
    store(&redis).save(&RefreshToken::new("r1")).await.expect("saved");
    let source = node(&platform, store(&redis).timeout(Duration::from_millis(500)));
    let refresh = tokio::spawn({
        let source = source.clone();
        async move { source.refresh().await }
    });
    while platform.count() == 0 {
        tokio::task::yield_now().await;
    }
    let paused = redis.pause();
    let error = refresh.await.expect("no panic").expect_err("not saved");
    assert_eq!((error.kind(), error.reason(), error.retry()), (Kind::Precondition, "token_store", Retry::Safe));
    let fresh = node(&platform, store(&redis).timeout(Duration::from_millis(50)));
    assert_eq!(fresh.refresh().await.expect_err("no Redis").reason(), "token_store");
    drop(paused);
    assert_eq!(source.refresh().await.expect("granted before").header(), "Bearer czu_r2");
    assert_eq!((platform.count(), held(&store(&redis)).await), (1, ("r2".into(), 0)));
    drop(redis);
    assert_eq!(source.refresh().await.expect_err("no Redis").reason(), "token_store");
    assert_eq!(platform.count(), 1, "what cannot be marked is not sent");
}

#[tokio::test]
async fn what_is_stored_may_be_something_else_and_is_not_shown() {
    let redis = Redis::start();
    let client = redis::Client::open(redis.url()).expect("a URL");
    let mut line = client.get_multiplexed_async_connection().await.expect("it runs");
    for text in ["", "{}", "r_tell_nobody"] {
        line.set::<_, _, ()>("token", text).await.expect("stored");
        let (store, token) = (store(&redis), RefreshToken::new("r_tell_nobody"));
        let error = store.load().await.expect_err("refused");
        assert_eq!(error.reason(), "token_store");
        let replaced = store.replace(&token, &token).await;
        assert!(!matches!(replaced, Ok(true)));
        assert!(!format!("{error:?} {replaced:?} {store:?}").contains("tell_nobody"));
    }
    // Without a mark, as a person may put it there.
    line.set::<_, _, ()>("token", r#"{"refresh_token":"r1"}"#).await.expect("stored");
    let platform = Scripted::new([granted("r2")]);
    node(&platform, store(&redis)).refresh().await.expect("granted");
    assert_eq!(held(&store(&redis)).await, ("r2".into(), 0));
}
