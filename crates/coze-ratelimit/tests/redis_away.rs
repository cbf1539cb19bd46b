//! A real Redis that is killed, paused, cut off and replaced, under load.

mod support;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use coze_core::{BoxError, Error, Kind};
use coze_ratelimit::{Away, Level, Quota, Rate, RateLimitLayer, RedisLimits, RedisServer, Sharing};
use coze_tests::{Redis, RedisCluster};
use http::{Request, Response};
use http_body_util::Empty;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use support::{Proxy, ask, calls, eventually, n};
use tokio::{task::JoinSet, time::Instant};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneService};

/// Time for a decision in these tests.
const TIMEOUT: Duration = Duration::from_millis(50);
/// What a busy machine may add to it.
const SLACK: Duration = Duration::from_secs(2);

fn limits(server: RedisServer, sharing: Sharing, away: Away) -> RedisLimits {
    let app = Level::global("app", Rate::per_second(n(1_000_000)));
    RedisLimits::new("test", server.timeout(TIMEOUT)).expect("valid").level(app, sharing, away)
}

fn single(redis: &Redis) -> RedisServer {
    RedisServer::open(&redis.url()).expect("valid")
}

/// What became of the requests of a load.
#[derive(Debug, Default)]
struct Load {
    admitted: u64,
    unavailable: u64,
    slowest: Duration,
}

/// Sends requests through the layer, sixteen at a time, while `disturb` runs. Each has one answer, in time, and what reached
/// the inner service is what was admitted.
async fn under_load(limits: &RedisLimits, disturb: impl AsyncFnOnce()) -> Load {
    let (handled, goes_on) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
    let counted = handled.clone();
    let service = RateLimitLayer::new(limits.clone()).layer(service_fn(move |_: Request<()>| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok::<_, BoxError>(Response::new(Empty::<&[u8]>::new())))
    }));
    let service = BoxCloneService::new(service);
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let (service, goes_on) = (service.clone(), goes_on.clone());
        tasks.spawn(async move {
            let mut load = Load::default();
            while goes_on.load(Ordering::SeqCst) {
                let since = Instant::now();
                match service.clone().oneshot(Request::new(())).await {
                    Ok(_) => load.admitted += 1,
                    Err(error) => {
                        assert_eq!(Error::find(&*error).map(Error::kind), Some(Kind::Unavailable), "{error}");
                        load.unavailable += 1;
                    }
                }
                load.slowest = load.slowest.max(since.elapsed());
                // What is decided at once does not give way by itself.
                tokio::task::yield_now().await;
            }
            load
        });
    }
    disturb().await;
    goes_on.store(false, Ordering::SeqCst);
    let mut all = Load::default();
    for load in tasks.join_all().await {
        all.admitted += load.admitted;
        all.unavailable += load.unavailable;
        all.slowest = all.slowest.max(load.slowest);
    }
    assert_eq!(handled.load(Ordering::SeqCst), all.admitted, "each admitted request is handled once, and no other");
    assert!(all.slowest < TIMEOUT + SLACK, "{all:?}");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_killed_under_load_is_found_back() {
    for sharing in [Sharing::Exact, Sharing::Leased] {
        let mut redis = Redis::start();
        let limits = limits(single(&redis), sharing, Away::Closed);
        let load = under_load(&limits, async || {
            eventually("admitted", async || ask(&limits, "u").await.is_ok()).await;
            redis.signal("KILL");
            eventually("away", async || limits.is_away()).await;
            eventually("refused", async || ask(&limits, "u").await.is_err()).await;
            redis.restart();
            eventually("back", async || !limits.is_away() && ask(&limits, "u").await.is_ok()).await;
        })
        .await;
        assert!(load.admitted > 0 && load.unavailable > 0, "{load:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_paused_under_load_holds_nobody_up() {
    let redis = Redis::start();
    let limits = limits(single(&redis), Sharing::Exact, Away::Closed);
    let load = under_load(&limits, async || {
        eventually("admitted", async || ask(&limits, "u").await.is_ok()).await;
        redis.signal("STOP");
        eventually("away", async || limits.is_away()).await;
        redis.signal("CONT");
        eventually("back", async || !limits.is_away() && ask(&limits, "u").await.is_ok()).await;
    })
    .await;
    assert!(load.admitted > 0 && load.unavailable > 0, "{load:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_cut_off_under_load_holds_nobody_up() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port()).await;
    let server = RedisServer::open(&format!("redis://127.0.0.1:{}", proxy.port)).expect("valid");
    let limits = limits(server, Sharing::Exact, Away::Open);
    let load = under_load(&limits, async || {
        for _ in 0..3 {
            eventually("there", async || !limits.is_away() && ask(&limits, "u").await.is_ok()).await;
            proxy.cut();
            eventually("away", async || limits.is_away()).await;
            assert!(ask(&limits, "u").await.is_ok(), "open");
            proxy.heal();
        }
        eventually("back", async || !limits.is_away()).await;
    })
    .await;
    assert_eq!(load.unavailable, 0, "{load:?}");
}

#[tokio::test]
async fn a_redis_that_was_never_there_holds_nobody_up_and_is_found_when_it_comes() {
    let mut redis = Redis::start();
    redis.signal("KILL");
    let limits = limits(single(&redis), Sharing::DenyLocally, Away::Closed);
    let since = Instant::now();
    assert_eq!(ask(&limits, "u").await.expect_err("closed").reason(), "limit_unavailable");
    assert!(since.elapsed() < TIMEOUT + SLACK);
    redis.restart();
    eventually("found", async || ask(&limits, "u").await.is_ok()).await;
}

#[tokio::test]
async fn each_limit_says_what_holds_while_redis_is_away() {
    let redis = Redis::start();
    redis.signal("KILL");
    let with = |level: Level, away| {
        RedisLimits::new("test", single(&redis).timeout(TIMEOUT)).expect("valid").level(level, Sharing::Exact, away)
    };
    let rate = Rate::per_second(n(40));
    let closed = with(Level::global("app", rate), Away::Closed);
    eventually("away", async || ask(&closed, "u").await.is_err() && closed.is_away()).await;
    let error = ask(&closed, "u").await.expect_err("closed");
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "limit_unavailable"));
    assert!(error.retry_after().is_some());

    let open = with(Level::global("app", rate), Away::Open);
    for _ in 0..200 {
        assert!(ask(&open, "u").await.is_ok());
    }

    // A quarter of the limit, in each of four nodes.
    let share = with(Level::global("app", rate), Away::Share(n(4)));
    let since = Instant::now();
    let mut admitted = 0;
    for _ in 0..200 {
        match ask(&share, "u").await {
            Ok(_) => admitted += 1,
            Err(error) => assert_eq!(error.limit().map(|limit| limit.quota), Some(40)),
        }
    }
    let windows = u32::try_from(since.elapsed().as_millis() / 900).expect("short") + 1;
    assert!((10..=10 * windows).contains(&admitted), "{admitted}");

    // Less than one is one: half a second apart for one a second of two.
    let slow = with(Level::per_user("user", Rate::per_second(n(1)).burst(n(1))), Away::Share(n(2)));
    assert!(ask(&slow, "u").await.is_ok());
    let wait = ask(&slow, "u").await.expect_err("used").retry_after().expect("a time");
    assert!(wait > Duration::from_secs(1) && wait <= Duration::from_secs(2), "{wait:?}");

    let places = with(Level::per_user("user", Quota::Concurrency(n(8))), Away::Share(n(4)));
    let held = (ask(&places, "u").await.expect("one"), ask(&places, "u").await.expect("two"));
    assert_eq!(ask(&places, "u").await.expect_err("a quarter").reason(), "concurrency_limited");
    drop(held);
    assert!(ask(&places, "u").await.is_ok());
}

#[tokio::test]
async fn places_that_were_given_away_without_redis_are_told_when_it_is_back() {
    let mut redis = Redis::start();
    redis.signal("KILL");
    let node = || {
        let level = Level::per_user("user", Quota::Concurrency(n(3)));
        let server = single(&redis).timeout(TIMEOUT);
        RedisLimits::new("test", server).expect("valid").level(level, Sharing::Exact, Away::Open)
    };
    let (one, other) = (node(), node());
    eventually("away", async || ask(&one, "u").await.is_ok() && one.is_away()).await;
    let held = (ask(&one, "u").await.expect("open"), ask(&one, "u").await.expect("open"), ask(&one, "u").await);
    redis.restart();
    eventually("both back", async || !one.is_away() && !other.is_away()).await;
    eventually("told", async || ask(&other, "u").await.is_err()).await;
    drop(held);
    eventually("given back", async || ask(&other, "u").await.is_ok()).await;
}

#[tokio::test]
async fn a_master_that_became_a_replica_is_away_until_it_is_one_again() {
    let (redis, other) = (Redis::start(), Redis::start());
    let limits = limits(single(&redis), Sharing::Exact, Away::Closed);
    eventually("admitted", async || ask(&limits, "u").await.is_ok()).await;
    assert_eq!(redis.command(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]), "+OK");
    eventually("read only", async || ask(&limits, "u").await.is_err() && limits.is_away()).await;
    assert_eq!(redis.command(&["REPLICAOF", "NO", "ONE"]), "+OK");
    eventually("back", async || ask(&limits, "u").await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_the_sentinels_name_the_new_master() {
    let master = Redis::start();
    let replica = Redis::start_with(&["--replicaof", &format!("127.0.0.1 {}", master.port())]);
    let sentinel = master.sentinel();
    replica.wait_for(&["INFO", "replication"], |info| info.contains("master_link_status:up"));
    sentinel.wait_for(&["SENTINEL", "REPLICAS", "mymaster"], |replicas| {
        replicas.contains(&replica.port().to_string()) && replicas.contains("master-link-status\nok")
    });
    let server = RedisServer::sentinel([sentinel.url().as_str()], "redis://mymaster").expect("valid");
    let limits = limits(server, Sharing::Exact, Away::Closed);
    let load = under_load(&limits, async || {
        eventually("admitted", async || ask(&limits, "u").await.is_ok()).await;
        assert_ne!(master.command(&["DBSIZE"]), ":0");
        master.signal("KILL");
        eventually("away", async || limits.is_away()).await;
        eventually("the replica took over", async || !limits.is_away() && ask(&limits, "u").await.is_ok()).await;
        assert!(replica.command(&["ROLE"]).starts_with("master"));
    })
    .await;
    assert!(load.admitted > 0 && load.unavailable > 0, "{load:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_a_slot_may_move_and_a_master_may_die() {
    let cluster = RedisCluster::start();
    let urls = cluster.urls();
    let server = RedisServer::cluster(urls.iter().map(String::as_str)).expect("valid");
    // A name whose keys are on the first master, the one with a replica.
    let slot = |name: &str| {
        let slot = cluster.nodes[0].command(&["CLUSTER", "KEYSLOT", &format!("{{{name}}}")]);
        slot[1..].parse::<u16>().expect("a number")
    };
    let name = (0..).map(|name| format!("test-{name}")).find(|name| slot(name) <= 5460).expect("a third of them");
    let slot = slot(&name).to_string();
    let levels = |limits: RedisLimits| {
        limits.level(Level::global("app", Rate::per_second(n(1_000_000))), Sharing::Leased, Away::Closed).level(
            Level::per_user("user", Rate::per_second(n(1_000_000))),
            Sharing::Exact,
            Away::Closed,
        )
    };
    let limits = levels(RedisLimits::new(&name, server.timeout(TIMEOUT)).expect("valid"));
    let load = under_load(&limits, async || {
        eventually("admitted", async || ask(&limits, "u").await.is_ok()).await;
        let (from, to) = (&cluster.nodes[0], &cluster.nodes[1]);
        let id = |node: &Redis| node.command(&["CLUSTER", "MYID"]);
        let (from_id, to_id) = (id(from), id(to));
        for (from, to, from_id, to_id) in [(from, to, &from_id, &to_id), (to, from, &to_id, &from_id)] {
            assert_eq!(to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", from_id]), "+OK");
            assert_eq!(from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", to_id]), "+OK");
            from.wait_for(&["CLUSTER", "COUNTKEYSINSLOT", &slot], |count| {
                for key in from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).lines().filter(|key| *key != "*0")
                {
                    let _ = from.command(&["MIGRATE", "127.0.0.1", &to.port().to_string(), key, "0", "1000"]);
                }
                count == ":0"
            });
            for node in [to, from, &cluster.nodes[2]] {
                assert_eq!(node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", to_id]), "+OK");
            }
            eventually("the slot moved", async || {
                ask(&limits, "u").await.is_ok() && to.command(&["CLUSTER", "COUNTKEYSINSLOT", &slot]) != ":0"
            })
            .await;
        }
        cluster.nodes[0].signal("KILL");
        eventually("away", async || limits.is_away()).await;
        cluster.nodes[3].wait_for(&["ROLE"], |role| role.starts_with("master"));
        eventually("the replica took over", async || !limits.is_away() && ask(&limits, "u").await.is_ok()).await;
    })
    .await;
    assert!(load.admitted > 0 && load.unavailable > 0, "{load:?}");
}

#[tokio::test]
async fn an_event_and_a_gauge_say_once_each_way_whether_redis_is_away() {
    let (recorder, log) = (DebuggingRecorder::new(), Log::default());
    let snapshotter = recorder.snapshotter();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _subscriber = tracing::subscriber::set_default(subscriber);
    let gauge = || {
        let values = snapshotter.snapshot().into_vec();
        values.into_iter().find_map(|(key, _, _, value)| match value {
            DebugValue::Gauge(value) if key.key().name() == "coze_ratelimit_redis_away" => Some(value.0),
            _ => None,
        })
    };
    let told = || [" WARN ", "redis is away", " INFO ", "redis is back"].map(|text| log.count(text));
    let mut redis = Redis::start();
    let limits = limits(single(&redis), Sharing::Exact, Away::Open);
    assert_eq!((gauge(), told()), (Some(0.0), [0; 4]));
    eventually("there", async || ask(&limits, "u").await.is_ok() && calls(&redis) > 0).await;
    for time in 1..=2 {
        redis.signal("KILL");
        eventually("away", async || ask(&limits, "u").await.is_ok() && limits.is_away()).await;
        // Further requests while it is away tell nothing.
        for _ in 0..20 {
            assert!(ask(&limits, "u").await.is_ok());
        }
        assert_eq!((gauge(), told()), (Some(1.0), [time, time, time - 1, time - 1]), "{log:?}");
        redis.restart();
        eventually("back", async || !limits.is_away()).await;
        assert_eq!((gauge(), told()), (Some(0.0), [time; 4]), "{log:?}");
    }
}

/// What was logged.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn count(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().expect("whole")).matches(text).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("whole").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
