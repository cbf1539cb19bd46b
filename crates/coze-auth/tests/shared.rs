//! What processes share through a real Redis: accepted requests.

mod support;

use std::time::{Duration, UNIX_EPOCH};

use coze_auth::{Callback, Key, MemoryReplay, RedisReplay};
use coze_core::{Error, Kind, Retry};
use coze_tests::Redis;
use http::Request;
use redis::{AsyncCommands, aio::MultiplexedConnection};
use sha1::{Digest, Sha1};
use support::{Script, log::Log, noted, reason, send};
use tokio::time::Instant;

const NOW: u64 = 1_613_427_443_000;
const WINDOW: u64 = 5 * 60 * 1000;

/// Long enough for a busy machine, where nothing is wrong.
const PATIENT: Duration = Duration::from_secs(20);

fn app(name: &str, store: RedisReplay) -> Callback<RedisReplay> {
    let clock = || UNIX_EPOCH + Duration::from_millis(NOW);
    Callback::new(name, [Key::new("tok").expect("not empty")]).expect("one token").clock(clock).store(store)
}

fn store(redis: &Redis) -> RedisReplay {
    RedisReplay::new(&redis.url()).expect("a URL").timeout(PATIENT)
}

fn sent_at(timestamp: u64, nonce: &str) -> Request<Script> {
    let signature = hex::encode(Sha1::digest(format!("{timestamp}{nonce}tok{{}}")));
    Request::post("/callback")
        .header("x-coze-timestamp", timestamp)
        .header("x-coze-nonce", nonce)
        .header("x-coze-signature", signature)
        .body("{}".into())
        .expect("a request")
}

async fn line(redis: &Redis) -> MultiplexedConnection {
    let client = redis::Client::open(redis.url()).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("it runs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_the_copies_that_reach_several_nodes_at_once_exactly_one_passes() {
    let redis = Redis::start();
    let nodes: Vec<_> = (0..4).map(|_| app("a", store(&redis))).collect();
    for round in 0..25 {
        let copies: Vec<_> = (0..16)
            .map(|copy| {
                let (node, copy) = (nodes[copy % nodes.len()].clone(), sent_at(NOW, &format!("n{round}")));
                tokio::spawn(async move { reason(send(&node, copy).await) })
            })
            .collect();
        let mut passed = 0;
        for copy in copies {
            match copy.await.expect("no panic") {
                None => passed += 1,
                Some(reason) => assert_eq!(reason, "replayed"),
            }
        }
        assert_eq!(passed, 1);
    }
}

#[tokio::test]
async fn who_signed_is_noted_when_the_store_has_answered_and_not_of_a_copy() {
    let redis = Redis::start();
    let (one, other) = (app("a", store(&redis)), app("a", store(&redis)));
    let (passed, context) = noted(&one, sent_at(NOW, "n")).await;
    assert_eq!(reason(passed), None);
    assert_eq!((context.auth(), context.principal.get().map(|p| &*p.subject)), (Some("ok"), Some("a")));
    let (refused, context) = noted(&other, sent_at(NOW, "n")).await;
    let refused = refused.expect_err("a copy");
    assert_eq!((refused.kind(), refused.reason()), (Kind::Unauthenticated, "replayed"));
    assert_eq!((context.auth(), context.principal.get()), (Some("replayed"), None));
}

#[tokio::test]
async fn apps_that_share_a_store_do_not_share_nonces_and_neither_do_prefixes() {
    let redis = Redis::start();
    let elsewhere = store(&redis).prefix("elsewhere:");
    for node in [app("a", store(&redis)), app("b", store(&redis)), app("a", elsewhere)] {
        assert_eq!(reason(send(&node, sent_at(NOW, "n")).await), None);
        assert_eq!(reason(send(&node, sent_at(NOW, "n")).await), Some("replayed"));
    }
}

#[tokio::test]
async fn what_is_stored_ends_by_itself_a_minute_after_its_request_left_the_window() {
    let redis = Redis::start();
    let node = app("a", store(&redis));
    for (sent, nonce, life) in [(NOW - WINDOW, "old", 60_000), (NOW + WINDOW, "ahead", 2 * WINDOW + 60_000)] {
        assert_eq!(reason(send(&node, sent_at(sent, nonce)).await), None);
        let key = format!("coze-auth:replay:callback\u{1f}a\u{1f}{nonce}");
        let left: u64 = line(&redis).await.pttl(key).await.expect("there");
        assert!(left > life - 20_000 && left <= life, "{nonce}: {left} of {life}");
    }
    let endless = app("a", store(&redis)).window(Duration::MAX);
    assert_eq!(reason(send(&endless, sent_at(1_000_000_000_000, "n")).await), None, "no life is too long");
}

#[tokio::test]
async fn a_forged_request_is_not_stored() {
    let redis = Redis::start();
    let mut forged = sent_at(NOW, "n");
    forged.headers_mut().insert("x-coze-signature", "00".repeat(20).parse().expect("digits"));
    let node = app("a", store(&redis));
    assert_eq!(reason(send(&node, forged).await), Some("signature_invalid"));
    assert_eq!(line(&redis).await.keys::<_, Vec<String>>("*").await.expect("it answers"), Vec::<String>::new());
}

fn is_unavailable(refused: &Error) -> bool {
    (refused.kind(), refused.reason(), refused.retry()) == (Kind::Unavailable, "replay_store_unavailable", Retry::Safe)
}

#[tokio::test]
async fn without_its_redis_a_node_refuses_at_once() {
    let redis = Redis::start();
    let node = app("a", store(&redis));
    assert_eq!(reason(send(&node, sent_at(NOW, "n0")).await), None);
    drop(redis);
    for nonce in ["n1", "n2", "n3"] {
        let (refused, context) = noted(&node, sent_at(NOW, nonce)).await;
        let refused = refused.expect_err("nobody knows");
        assert!(is_unavailable(&refused), "{refused:?}");
        assert_eq!((context.auth(), context.principal.get()), (Some("replay_store_unavailable"), None));
    }
}

#[tokio::test]
async fn a_redis_that_says_nothing_holds_no_request_longer_than_the_timeout() {
    let redis = Redis::start();
    let node = app("a", store(&redis));
    assert_eq!(reason(send(&node, sent_at(NOW, "n")).await), None);
    let hasty = RedisReplay::new(&redis.url()).expect("a URL");
    let (connected, fresh) = (app("a", store(&redis).timeout(Duration::from_millis(50))), app("a", hasty));
    let paused = redis.pause();
    for node in [connected, fresh] {
        let start = Instant::now();
        let requests = (0..200).map(|n| {
            let node = node.clone();
            tokio::spawn(async move { send(&node, sent_at(NOW, &format!("n{n}"))).await })
        });
        for request in requests.collect::<Vec<_>>() {
            let refused = request.await.expect("no panic").expect_err("nobody knows");
            assert!(is_unavailable(&refused), "{refused:?}");
        }
        let took = start.elapsed();
        assert!((Duration::from_millis(50)..Duration::from_secs(5)).contains(&took), "all at once: {took:?}");
    }
    drop(paused);
    assert_eq!(reason(send(&node, sent_at(NOW, "m")).await), None, "it goes on as if nothing had been");
    assert_eq!(reason(send(&node, sent_at(NOW, "n")).await), Some("replayed"));
}

#[tokio::test]
async fn one_event_tells_that_the_redis_is_away_and_one_that_it_is_back() {
    let (log, _second, _guard) = Log::record();
    let redis = Redis::start();
    let store = RedisReplay::new(&redis.url()).expect("a URL").timeout(PATIENT);
    let node = app("a", store.clone());
    let hasty = app("a", store.timeout(Duration::from_millis(50)));
    for round in 1..=2 {
        assert_eq!(reason(send(&node, sent_at(NOW, &format!("before {round}"))).await), None);
        let paused = redis.pause();
        for n in 0..3 {
            let refused = send(&hasty, sent_at(NOW, &format!("while {round} {n}"))).await.expect_err("nobody knows");
            assert!(is_unavailable(&refused));
        }
        drop(paused);
        for n in 0..3 {
            assert_eq!(reason(send(&node, sent_at(NOW, &format!("after {round} {n}"))).await), None);
        }
        assert_eq!((log.count("requests are refused"), log.count("answers again")), (round, round));
    }
}

#[tokio::test]
async fn with_a_fallback_a_request_passes_once_in_each_process_while_the_redis_is_away() {
    let (log, _second, _guard) = Log::record();
    let redis = Redis::start();
    let node = || app("a", store(&redis).fallback(MemoryReplay::new(2)));
    let (one, other) = (node(), node());
    assert_eq!(reason(send(&one, sent_at(NOW, "before")).await), None);
    drop(redis);
    for node in [&one, &other] {
        assert_eq!(reason(send(node, sent_at(NOW, "n")).await), None);
        assert_eq!(reason(send(node, sent_at(NOW, "n")).await), Some("replayed"));
    }
    assert_eq!(reason(send(&one, sent_at(NOW, "m")).await), None);
    assert_eq!(reason(send(&one, sent_at(NOW, "o")).await), Some("nonces_full"), "the memory has a bound too");
    assert_eq!(log.count("requests pass once in each process"), 2, "each says so once");
}

#[tokio::test]
async fn what_is_no_url_of_redis_is_refused_and_no_password_shown() {
    for url in ["", "memory", "http://tell-nobody@host", "redis://u:tell-nobody@host:port/"] {
        let refused = RedisReplay::new(url).expect_err("refused");
        assert_eq!((refused.kind(), refused.reason()), (Kind::Invalid, "redis_url"));
        assert!(!format!("{refused:?}").contains("tell-nobody"), "{refused:?}");
    }
    let store = RedisReplay::new("redis://u:tell-nobody@127.0.0.1:1/").expect("a URL");
    let shown = format!("{store:?} {:?}", send(&app("a", store.clone()), sent_at(NOW, "n")).await);
    assert!(!shown.contains("tell-nobody"), "{shown}");
}
