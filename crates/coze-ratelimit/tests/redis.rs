//! Limits that nodes keep together in a real Redis.

mod support;

use std::{num::NonZeroU32, time::Duration};

use coze_core::{Context, Error, Kind};
use coze_ratelimit::{
    Away, Class, Decision, Level, Policy, Quota, Rate, RateLimitLayer, RedisLimits, RedisPermit, RedisServer, Sharing,
};
use coze_tests::Redis;
use http::Request;
use support::{Proxy, ask, calls, eventually, many, n};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn those_that_are_about_to_ask_go_into_the_call_of_the_first() {
    let redis = Redis::start();
    let node = node(&redis, Rate::per_second(n(1_000_000)), Sharing::Exact);
    assert!(ask(&node, "u").await.is_ok());
    let before = calls(&redis);
    for _ in 0..50 {
        let nodes = [node.clone()];
        // All begin on the worker, where the driver is woken by the first one and would run next.
        let asked = tokio::spawn(async move { many(&nodes, 16).await });
        assert!(asked.await.expect("no panic").iter().all(Result::is_ok));
    }
    let calls = calls(&redis) - before;
    // A runtime lets who gave way go on after 61 others at the latest, which may be between two of these.
    assert!(calls <= 50 + 40, "{calls} calls for 50 times 16 decisions");
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

/// A request that costs so much, of a class: two headers say it.
async fn ask_for(limits: &RedisLimits, cost: u32, class: &'static str) -> Result<RedisPermit, Error> {
    let request = Request::get("/").header("x-cost", cost).header("x-class", class).body(()).expect("valid");
    match limits.decide(&request.into_parts().0, &Context::new(), Instant::now().into_std()) {
        Decision::Now(decided) => decided,
        Decision::Later(decision) | Decision::Wait(decision) => decision.await,
    }
}

/// A node with a limit of everybody that minds costs and classes.
fn costly(redis: &Redis, quota: impl Into<Quota>, sharing: Sharing) -> RedisLimits {
    let level = Level::global("app", quota)
        .cost(|parts, _| parts.headers["x-cost"].to_str().expect("text").parse().expect("a number"))
        .shed(|parts, _| if parts.headers["x-class"] == "low" { Class::Low } else { Class::High });
    let server = RedisServer::open(&redis.url()).expect("valid").timeout(Duration::from_secs(5));
    RedisLimits::new("test", server).expect("valid").level(level, sharing, Away::Closed)
}

#[tokio::test]
async fn a_request_takes_what_it_costs_of_what_all_nodes_share() {
    for sharing in [Sharing::Exact, Sharing::DenyLocally, Sharing::Leased] {
        let redis = Redis::start();
        let nodes = [(); 2].map(|()| costly(&redis, Rate::per_minute(n(1000)), sharing));
        for node in [0, 1, 0] {
            ask_for(&nodes[node], 300, "high").await.expect("there is enough");
        }
        let error = ask_for(&nodes[1], 300, "high").await.expect_err("a hundred are left");
        let wait = error.retry_after().expect("a time");
        assert!(
            wait <= Duration::from_secs(12) && wait > Duration::from_secs(1),
            "{wait:?} for 200 of 1000 per minute"
        );
        assert_eq!(error.limit().map(|limit| limit.window), Some(Duration::from_secs(60)));
        let error = ask_for(&nodes[0], 1001, "high").await.expect_err("never");
        assert_eq!((error.kind(), error.reason()), (Kind::Quota, "cost_above_quota"));
        assert!(ask_for(&nodes[0], 0, "low").await.is_ok(), "what costs nothing is not limited");
        let mut admitted = 0;
        for node in [0, 1].into_iter().cycle().take(40) {
            admitted += u32::from(ask_for(&nodes[node], 10, "high").await.is_ok());
        }
        // Ten fit, but another node may hold a part of it for half a second; and a little drains meanwhile.
        assert!((5..25).contains(&admitted), "{sharing:?}: {admitted} of 10 each");
    }
}

#[tokio::test]
async fn what_is_leased_is_spent_although_redis_has_no_more() {
    let redis = Redis::start();
    let node = costly(&redis, Rate::per_minute(n(21)), Sharing::Leased);
    ask_for(&node, 6, "high").await.expect("more than a lease");
    ask_for(&node, 5, "high").await.expect("and five are leased");
    ask_for(&node, 5, "high").await.expect("leased, and the next ones are asked for");
    assert_eq!(ask_for(&node, 5, "high").await.expect_err("they were the last").reason(), "rate_limited");
    ask_for(&node, 5, "high").await.expect("leased");
    assert_eq!(ask_for(&node, 5, "high").await.expect_err("spent").reason(), "rate_limited");
}

#[tokio::test]
async fn what_matters_less_is_refused_first_by_all_nodes() {
    for sharing in [Sharing::Exact, Sharing::DenyLocally, Sharing::Leased] {
        let redis = Redis::start();
        let nodes = [(); 2].map(|()| costly(&redis, Rate::per_minute(n(10)), sharing));
        for node in [0, 1, 0, 1, 0] {
            ask_for(&nodes[node], 1, "low").await.expect("half of it");
        }
        let error = ask_for(&nodes[1], 1, "low").await.expect_err("the rest is for others");
        assert_eq!(error.reason(), "rate_limited");
        for node in [0, 1, 0, 1, 0] {
            eventually("what another node holds comes back", async || ask_for(&nodes[node], 1, "high").await.is_ok())
                .await;
        }
        assert!(ask_for(&nodes[0], 1, "low").await.is_err());
    }
}

#[tokio::test]
async fn a_request_holds_as_many_places_as_it_costs() {
    let redis = Redis::start();
    let nodes = [(); 2].map(|()| costly(&redis, Quota::Concurrency(n(10)), Sharing::Exact));
    let five = ask_for(&nodes[0], 5, "low").await.expect("half of them");
    assert_eq!(ask_for(&nodes[1], 1, "low").await.expect_err("six and half").reason(), "concurrency_limited");
    let four = ask_for(&nodes[1], 4, "high").await.expect("nine");
    assert!(ask_for(&nodes[0], 2, "high").await.is_err());
    drop(five);
    eventually("five places are free", async || ask_for(&nodes[1], 6, "high").await.is_ok()).await;
    drop(four);
    eventually("everything is given back", async || redis.command(&["DBSIZE"]) == ":0").await;
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
async fn the_places_of_a_node_that_died_are_free_ten_seconds_after_its_last_word_and_not_before() {
    const LIFETIME: i64 = 10_000_000;
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port()).await;
    let server = RedisServer::open(&format!("redis://127.0.0.1:{}", proxy.port)).expect("valid");
    let level = || Level::per_user("user", Quota::Concurrency(n(1)));
    let dead = RedisLimits::new("test", server).expect("valid").level(level(), Sharing::Exact, Away::Closed);
    let living = places(&redis, 1, Away::Closed);
    let since = Instant::now();
    let _held = ask(&dead, "u").await.expect("free");
    proxy.cut();
    // How long the only place is kept from now on; and it may be told to be kept for another time.
    let kept = |microseconds: &str| {
        let script = "local name = redis.call('KEYS', '*')[1]
            local node = redis.call('HGETALL', name)
            local have, till, call = cmsgpack.unpack(node[2])
            local time = redis.call('TIME')
            local now = time[1] * 1000000 + time[2]
            if ARGV[1] ~= '' then redis.call('HSET', name, node[1], cmsgpack.pack(have, now + ARGV[1], call)) end
            return till - now";
        let answer = redis.command(&["EVAL", script, "0", microseconds]);
        answer.trim_start_matches(':').parse::<i64>().expect("a number")
    };
    let left = kept("");
    let passed = i64::try_from(since.elapsed().as_micros()).expect("short");
    assert!((LIFETIME - passed..=LIFETIME).contains(&left), "{left} after {passed}");
    assert!(ask(&living, "u").await.is_err());
    kept("5000000");
    assert!(ask(&living, "u").await.is_err(), "not before");
    kept("0");
    assert!(ask(&living, "u").await.is_ok(), "the time is over");
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
    // TLS is the application's to enable, and nothing is sent without it in its stead.
    let urls = ["", "http://localhost", "redis://", "redis://host:port", "rediss://localhost"];
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
