//! The decision alone, against governor by the same keys: one key, from one thread and from two, and a million keys.
//!
//! Both sides are told the time, because in a layer the clock is read once for all that is done with a request.

#![allow(clippy::disallowed_methods, reason = "no clock is paused here")]

use std::{
    cell::{Cell, LazyCell},
    hint::black_box,
    num::NonZeroU32,
    thread,
    time::{Duration, Instant},
};

use coze_benches::{BATCH, criterion};
use coze_core::{Context, UserId};
use coze_ratelimit::{Level, Limits, Rate};
use criterion::Criterion;
use governor::{RateLimiter, clock::Clock, nanos::Nanos};
use http::Request;

/// So many that no request of a benchmark is refused.
const PLENTY: NonZeroU32 = NonZeroU32::new(1_000_000_000).expect("not zero");
/// The largest rate whose cells are narrow, as those of users are.
const NARROW: NonZeroU32 = NonZeroU32::new(255).expect("not zero");
const MILLION: usize = 1_000_000;
/// Between two requests of the million.
const STEP: Duration = Duration::from_nanos(100);

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A request of a user, as either side has it: on the context, and as a string.
struct Asking {
    context: Context,
    key: String,
    now: Instant,
}

impl Asking {
    fn new(user: usize, now: Instant) -> Self {
        let (context, key) = (Context::new(), format!("user-{user:012}"));
        context.user.set(UserId::new(&key).expect("valid")).expect("empty");
        Self { context, key, now }
    }
}

/// governor's clock, which is told the time in its own unit, since a beginning.
#[derive(Clone, Debug)]
struct Told(Instant);

impl Clock for Told {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        NOW.get().unwrap_or(self.0).saturating_duration_since(self.0).into()
    }
}

fn ours(rate: Rate) -> impl Fn(&Asking) {
    let limits = Limits::new().level(Level::per_user("user", rate).max_keys(MILLION));
    let parts = Request::new(()).into_parts().0;
    move |asking| assert!(limits.check(black_box(&parts), &asking.context, asking.now).is_ok())
}

fn peer() -> impl Fn(&Asking) {
    let governor = RateLimiter::dashmap_with_clock(governor::Quota::per_second(PLENTY), Told(Instant::now()));
    move |asking| {
        NOW.set(Some(asking.now));
        assert!(governor.check_key(black_box(&asking.key)).is_ok());
    }
}

fn hot(c: &mut Criterion) {
    let mut group = c.benchmark_group("ratelimit/hot_key");
    let (ours, peer, asking) = (ours(Rate::per_second(PLENTY)), peer(), Asking::new(1, Instant::now()));
    group.bench_function("ours", |b| b.iter(|| ours(black_box(&asking))));
    group.bench_function("peer", |b| b.iter(|| peer(black_box(&asking))));
    group.finish();
}

/// The time until two threads have decided half of the requests each.
fn two(requests: u64, decide: impl Fn(&Asking) + Sync) -> Duration {
    let began = Instant::now();
    let half = || {
        let asking = Asking::new(1, began);
        (0..requests / 2).for_each(|_| decide(&asking));
    };
    thread::scope(|scope| {
        scope.spawn(half);
        half();
    });
    began.elapsed()
}

fn hot_two_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("ratelimit/hot_key_two_threads");
    let (ours, peer) = (ours(Rate::per_second(PLENTY)), peer());
    group.bench_function("ours", |b| b.iter_custom(|requests| two(requests, &ours)));
    group.bench_function("peer", |b| b.iter_custom(|requests| two(requests, &peer)));
    group.finish();
}

/// A million keys that are known, in an order that no cache foresees. The request itself is warm, as if just parsed.
fn million(c: &mut Criterion) {
    let mut group = c.benchmark_group("ratelimit/million_keys");
    let (next, now) = (Cell::new(0_usize), Cell::new(Instant::now()));
    let make = || {
        next.set((next.get() + 611_953) % MILLION);
        now.set(now.get() + STEP);
        Asking::new(next.get(), now.get())
    };
    let known = |decide: &dyn Fn(&Asking)| (0..MILLION).for_each(|_| decide(&make()));
    let ours = LazyCell::new(|| {
        let ours = ours(Rate::per_second(NARROW));
        known(&ours);
        ours
    });
    group.bench_function("ours", |b| b.iter_batched_ref(make, |asking| (*ours)(asking), BATCH));
    drop(ours);
    let peer = LazyCell::new(|| {
        let peer = peer();
        known(&peer);
        peer
    });
    group.bench_function("peer", |b| b.iter_batched_ref(make, |asking| (*peer)(asking), BATCH));
    group.finish();
}

criterion::criterion_group! { name = keys; config = criterion(); targets = hot, hot_two_threads, million }
criterion::criterion_main!(keys);
