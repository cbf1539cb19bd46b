//! Limits that nodes keep together in a real Redis.

mod support;

use std::{num::NonZeroU32, time::Duration};

use coze_core::{Error, Kind};
use coze_ratelimit::{Away, Level, Quota, Rate, RateLimitLayer, RedisLimits, RedisPermit, RedisServer, Sharing};
use coze_tests::Redis;
use support::{ask, calls, eventually, many, n};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

/// A node of its own, with one limit of everybody.
fn node(redis: &Redis, rate: Rate, sharing: Sharing) -> RedisLimits {
    let server = RedisServer::open(&redis.url()).expect("valid").timeout(Duration::from_secs(5));
    RedisLimits::new("test", server).expect("valid").level(Level::global("app", rate), sharing, Away::Closed)
}

/// Asks all nodes at the same time, so often each; how many were admitted.
async fn admitted(nodes: &[RedisLimits], each: usize) -> u32 {
    let mut admitted = 0;
    for outcome in many(nodes, each).await {
        match outcome {
            Ok(_) => admitted += 1,
            Err(error) => assert_eq!((error.kind(), error.reason()), (Kind::RateLimited, "rate_limited")),
        }
    }
    admitted
}

/// What the limit allows in the time since: a bucket is full at the beginning, and a window may begin anew.
fn allowed(rate: u32, since: Instant) -> u32 {
    let windows = u32::try_from(since.elapsed().as_millis() / 900).expect("short") + 1;
    rate * windows
}

#[tokio::test]
async fn nodes_share_a_limit_in_each_way_of_sharing() {
    for sharing in [Sharing::Exact, Sharing::DenyLocally, Sharing::Leased] {
        let redis = Redis::start();
        let nodes: Vec<_> = (0..5).map(|_| node(&redis, Rate::per_second(n(40)), sharing)).collect();
        let since = Instant::now();
        let count = admitted(&nodes, 100).await;
        assert!((40..=allowed(40, since)).contains(&count), "{sharing:?}: {count}");
    }
}

#[tokio::test]
async fn decisions_of_one_node_go_into_few_calls_and_are_made_in_order() {
    let redis = Redis::start();
    let nodes = [node(&redis, Rate::per_second(n(30)), Sharing::Exact)];
    let since = Instant::now();
    let outcomes = many(&nodes, 100).await;
    let count = u32::try_from(outcomes.iter().filter(|outcome| outcome.is_ok()).count()).expect("few");
    assert!((30..=allowed(30, since)).contains(&count));
    assert!(outcomes[..30].iter().all(Result::is_ok), "who comes first is served first");
    assert!(calls(&redis) < 10, "{} calls for 100 decisions", calls(&redis));
}

#[tokio::test]
async fn a_refusal_says_how_long_and_after_that_time_the_request_is_admitted() {
    let redis = Redis::start();
    let node = node(&redis, Rate::per_second(n(4)).burst(n(1)), Sharing::DenyLocally);
    assert!(ask(&node, "u").await.is_ok());
    let since = Instant::now();
    let error = ask(&node, "u").await.expect_err("within a quarter of a second");
    let wait = error.retry_after().expect("a time");
    assert!(!wait.is_zero() && wait <= Duration::from_millis(250), "{wait:?}");
    assert_eq!(error.limit().map(|limit| (limit.name, limit.quota, limit.remaining)), Some(("app", 4, 0)));
    let before = calls(&redis);
    eventually("the time is over", async || ask(&node, "u").await.is_ok()).await;
    assert!(since.elapsed() >= wait, "not before its time");
    assert!(calls(&redis) <= before + 2, "what is known to be over is refused without a call");
}

#[tokio::test]
async fn a_leasing_node_needs_few_calls_and_gives_back_what_it_does_not_need() {
    let redis = Redis::start();
    let rate = Rate::per_second(n(100_000));
    let one = node(&redis, rate, Sharing::Leased);
    for _ in 0..20_000 {
        ask(&one, "u").await.expect("plenty");
    }
    let used = calls(&redis);
    assert!(used < 400, "{used} calls for 20 000 decisions");
}

#[tokio::test]
async fn what_a_node_leased_and_does_not_need_is_given_back() {
    let redis = Redis::start();
    let node = node(&redis, Rate::per_second(n(1000)), Sharing::Leased);
    for _ in 0..300 {
        ask(&node, "u").await.expect("plenty");
    }
    // The last five numbers of an account are what is leased.
    let script =
        "local a, n = cmsgpack.unpack(redis.call('GET', KEYS[1])), 0; for i = 13, 17 do n = n + a[i] end; return n";
    let leased = ["EVAL", script, "1", "coze-ratelimit:1:{test}:app:"];
    assert_ne!(redis.command(&leased), ":0");
    eventually("given back", async || redis.command(&leased) == ":0").await;
}

#[tokio::test]
async fn levels_are_decided_together_all_or_nothing() {
    for app in [Sharing::Exact, Sharing::Leased] {
        let redis = Redis::start();
        let server = RedisServer::open(&redis.url()).expect("valid").timeout(Duration::from_secs(5));
        let limits = RedisLimits::new("test", server)
            .expect("valid")
            .level(Level::global("app", Rate::per_second(n(20)).burst(n(10))), app, Away::Closed)
            .level(Level::per_user("user", Rate::per_second(n(1)).burst(n(1))), Sharing::Exact, Away::Closed);
        assert!(ask(&limits, "alice").await.is_ok());
        for _ in 0..50 {
            let error = ask(&limits, "alice").await.expect_err("within a second");
            assert_eq!(error.limit().map(|limit| limit.name), Some("user"));
        }
        for user in 0..9 {
            assert!(ask(&limits, &format!("user {user}")).await.is_ok(), "refusals took nothing of the app's");
        }
    }
}

#[tokio::test]
async fn scripts_that_are_flushed_are_loaded_again() {
    let redis = Redis::start();
    let node = node(&redis, Rate::per_second(n(1000)), Sharing::Exact);
    for _ in 0..3 {
        assert!(ask(&node, "u").await.is_ok());
        assert_eq!(redis.command(&["SCRIPT", "FLUSH"]), "+OK");
    }
    assert!(!node.is_away());
}

/// A node with a limit on requests at once.
fn places(redis: &Redis, limit: u32, away: Away) -> RedisLimits {
    let server = RedisServer::open(&redis.url()).expect("valid").timeout(Duration::from_secs(5));
    RedisLimits::new("test", server).expect("valid").level(
        Level::per_user("user", Quota::Concurrency(n(limit))),
        Sharing::Exact,
        away,
    )
}

#[tokio::test]
async fn nodes_share_a_limit_of_requests_at_once_until_their_permits_are_dropped() {
    let redis = Redis::start();
    let nodes: Vec<_> = (0..3).map(|_| places(&redis, 10, Away::Closed)).collect();
    let mut held: Vec<RedisPermit> = many(&nodes, 20).await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(held.len(), 10);
    let error = ask(&nodes[0], "u").await.expect_err("all places are taken");
    assert_eq!((error.reason(), error.retry_after()), ("concurrency_limited", Some(Duration::from_secs(1))));
    assert!(ask(&nodes[0], "another").await.is_ok());
    held.truncate(7);
    for node in &nodes {
        eventually("a place is free", async || {
            let permit = ask(node, "u").await;
            let is_free = permit.is_ok();
            held.extend(permit);
            is_free
        })
        .await;
    }
    assert_eq!(held.len(), 10);
    assert!(ask(&nodes[2], "u").await.is_err());
    drop(held);
    eventually("everything is given back", async || redis.command(&["DBSIZE"]) == ":0").await;
}

#[tokio::test]
async fn a_request_that_is_dropped_while_it_waits_holds_no_place() {
    let redis = Redis::start();
    let node = places(&redis, 1, Away::Closed);
    drop(ask(&node, "u").await.expect("the connection is there"));
    for _ in 0..20 {
        // It is asked for, and nobody waits for the answer.
        let mut asked = Box::pin(ask(&node, "u"));
        assert!(futures_poll(&mut asked).is_pending());
        drop(asked);
    }
    eventually("no place is taken", async || ask(&node, "u").await.is_ok()).await;
}

fn futures_poll<F: Future + Unpin>(future: &mut F) -> std::task::Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test]
async fn a_layer_waits_for_the_decision_and_a_refused_request_goes_no_further() {
    let redis = Redis::start();
    let handled = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = handled.clone();
    let service = RateLimitLayer::new(node(&redis, Rate::per_second(n(5)), Sharing::Exact)).layer(service_fn(
        move |_: http::Request<()>| {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            std::future::ready(Ok::<_, coze_core::BoxError>(http::Response::new(http_body_util::Empty::<&[u8]>::new())))
        },
    ));
    let since = Instant::now();
    let mut admitted = 0;
    for _ in 0..20 {
        let request = http::Request::new(());
        match service.clone().oneshot(request).await {
            Ok(_) => admitted += 1,
            Err(error) => assert_eq!(Error::find(&*error).map(Error::reason), Some("rate_limited")),
        }
    }
    assert!((5..=allowed(5, since)).contains(&admitted));
    assert_eq!(handled.load(std::sync::atomic::Ordering::SeqCst), admitted);
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_nothing_secret_is_shown() {
    let urls = ["", "http://localhost", "redis://", "redis://host:port"];
    for url in urls {
        assert_eq!(RedisServer::open(url).expect_err(url).reason(), "redis_url");
        assert_eq!(RedisServer::cluster([url]).expect_err(url).reason(), "redis_url");
    }
    assert!(RedisServer::sentinel([], "redis://master").is_err());
    assert!(RedisServer::cluster([]).is_err());
    let server = RedisServer::open("redis://user:hunter2@127.0.0.1:1").expect("valid");
    for name in ["", "a b", "a{b}", &"x".repeat(65)] {
        assert_eq!(RedisLimits::new(name, server.clone()).expect_err(name).reason(), "limits_name");
    }
    let limits = RedisLimits::new("a.b:c-d_e", server.clone()).expect("valid").level(
        Level::per_user("user", Rate::per_second(NonZeroU32::MIN)),
        Sharing::Leased,
        Away::Open,
    );
    let permit = ask(&limits, "alice").await.expect("open");
    let shown = format!("{server:?} {limits:?} {permit:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("alice"), "{shown}");
}
