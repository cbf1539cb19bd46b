//! What a million keys take in memory, against governor. A byte of a key is shown as a nanosecond: criterion knows nothing else.
//!
//! Measured is what the process has in memory, once for each side: ours first, so that nothing is left there that it could use.

use std::{cell::LazyCell, num::NonZeroU32, time::Duration};

use coze_benches::resident;
use coze_core::{Context, UserId};
use coze_ratelimit::{Level, Limits, Rate};
use criterion::{Criterion, SamplingMode};
use governor::{Quota, RateLimiter};
use http::Request;
use tokio::time::Instant;

/// The largest rate whose cells are narrow, as those of users are.
const NARROW: NonZeroU32 = NonZeroU32::new(255).expect("not zero");
const MILLION: u32 = 1_000_000;

fn keys() -> impl Iterator<Item = String> {
    (0..MILLION).map(|user| format!("user-{user:012}"))
}

/// What a limiter of a million keys takes, for each key.
fn per_key<L>(limiter: impl Fn() -> L) -> Duration {
    let before = resident();
    let kept = limiter();
    let bytes = resident() - before;
    drop(kept);
    Duration::from_nanos(bytes) / MILLION
}

fn ours() -> Limits {
    let limits = Limits::new().level(Level::per_user("user", Rate::per_second(NARROW)).max_keys(MILLION as usize));
    let (parts, now) = (Request::new(()).into_parts().0, Instant::now().into_std());
    for key in keys() {
        let context = Context::new();
        context.user.set(UserId::new(&key).expect("valid")).expect("empty");
        assert!(limits.check(&parts, &context, now).is_ok());
    }
    limits
}

fn peer() -> impl Sized {
    let governor = RateLimiter::dashmap(Quota::per_second(NARROW));
    keys().for_each(|key| assert!(governor.check_key(&key).is_ok()));
    governor
}

fn bytes(c: &mut Criterion) {
    let mut group = c.benchmark_group("ratelimit/million_keys_bytes");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).warm_up_time(Duration::from_nanos(1));
    let (ours, peer) = (LazyCell::new(|| per_key(ours)), LazyCell::new(|| per_key(peer)));
    let times = |bytes: Duration, n| bytes * u32::try_from(n).expect("few iterations");
    group.bench_function("ours", |b| b.iter_custom(|n| times(*ours, n)));
    group.bench_function("peer", |b| b.iter_custom(|n| times(*peer, n)));
    group.finish();
}

criterion::criterion_group! { name = memory; config = Criterion::default().configure_from_args().without_plots(); targets = bytes }
criterion::criterion_main!(memory);
