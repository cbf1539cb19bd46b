//! Decisions that nodes make together in Redis, against one script call per request.

use std::{num::NonZeroU32, time::Duration};

use coze_core::Context;
use coze_ratelimit::{Away, Decision, Level, Policy, Rate, RedisLimits, RedisServer, Sharing};
use coze_tests::Redis;
use criterion::Criterion;
use http::Request;
use redis::{IntoConnectionInfo, io::tcp::TcpSettings};
use tokio::{runtime::Runtime, task::JoinSet, time::Instant};

/// So many that no decision of a benchmark is a refusal.
const PLENTY: NonZeroU32 = NonZeroU32::new(100_000_000).expect("not zero");
/// Requests that are decided at the same time.
const AT_ONCE: u64 = 64;

/// The usual limiter: a bucket in a key, as one time up to which it is used, one call for each request.
const PEER: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local used = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + tonumber(ARGV[1])
    if used - now > tonumber(ARGV[2]) then
        return {0, used - now}
    end
    redis.call('SET', KEYS[1], used, 'PX', 10000)
    return {1, 0}";

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads")
}

/// Time for so many decisions by [`AT_ONCE`] tasks.
fn spend<F>(runtime: &Runtime, count: u64, decide: impl Fn(u64) -> F) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    runtime.block_on(async {
        let since = Instant::now();
        let mut tasks = JoinSet::new();
        for task in 0..AT_ONCE {
            tasks.spawn(decide(count / AT_ONCE + u64::from(task < count % AT_ONCE)));
        }
        tasks.join_all().await;
        since.elapsed()
    })
}

fn ours(runtime: &Runtime, redis: &Redis, sharing: Sharing) -> impl Fn(u64) -> Duration {
    let server = RedisServer::open(&redis.url()).expect("valid").timeout(Duration::from_secs(5));
    let level = Level::global("app", Rate::per_second(PLENTY));
    let limits = RedisLimits::new("bench", server).expect("valid").level(level, sharing, Away::Closed);
    move |count| {
        spend(runtime, count, |share| {
            let limits = limits.clone();
            async move {
                let (parts, ()) = Request::new(()).into_parts();
                let context = Context::new();
                for _ in 0..share {
                    match limits.decide(&parts, &context, Instant::now().into_std()) {
                        Decision::Now(decided) => drop(decided.expect("plenty")),
                        Decision::Later(decision) | Decision::Wait(decision) => drop(decision.await.expect("plenty")),
                    }
                }
            }
        })
    }
}

fn peer(runtime: &Runtime, redis: &Redis) -> impl Fn(u64) -> Duration {
    let info = redis.url().into_connection_info().expect("valid");
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let client = redis::Client::open(info).expect("valid");
    let connection = runtime.block_on(client.get_multiplexed_async_connection()).expect("connected");
    let script = redis::Script::new(PEER);
    move |count| {
        spend(runtime, count, |share| {
            let (mut connection, script) = (connection.clone(), script.clone());
            async move {
                for _ in 0..share {
                    let decided = script.key("peer").arg(1).arg(1_000_000_000).invoke_async(&mut connection).await;
                    let (admitted, _): (u64, u64) = decided.expect("answered");
                    assert_eq!(admitted, 1, "plenty");
                }
            }
        })
    }
}

fn compare(c: &mut Criterion, name: &str, sharing: Sharing) {
    let (runtime, redis) = (runtime(), Redis::start());
    let mut group = c.benchmark_group(name);
    let ours = ours(&runtime, &redis, sharing);
    // Leases have grown to what is needed.
    ours(100_000);
    group.bench_function("ours", |b| b.iter_custom(&ours));
    group.bench_function("peer", |b| b.iter_custom(peer(&runtime, &redis)));
    group.finish();
}

fn leased(c: &mut Criterion) {
    compare(c, "ratelimit/redis_leased", Sharing::Leased);
}

fn exact(c: &mut Criterion) {
    compare(c, "ratelimit/redis_exact", Sharing::Exact);
}

criterion::criterion_group! { name = redis_limits; config = coze_benches::criterion(); targets = leased, exact }
criterion::criterion_main!(redis_limits);
