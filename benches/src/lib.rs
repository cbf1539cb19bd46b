//! How the benchmarks compare: each is a group `crate/what` with two functions, `ours` and `peer`.
//!
//! `cargo xtask bench` runs them in rounds, takes the medians and holds them against `bars.txt`.

use std::{
    convert::Infallible,
    fs,
    future::{Future, ready},
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use criterion::{BatchSize, Criterion};
use http::{Request, Response};
use http_body::Body;
use tower::{Service, service_fn};

/// Few requests are made ahead, so that they are as warm in the cache as one that was just parsed.
pub const BATCH: BatchSize = BatchSize::NumIterations(16);

/// Short measurements: `cargo xtask bench` repeats them, which tells more than one long one.
#[must_use]
pub fn criterion() -> Criterion {
    Criterion::default()
        .configure_from_args()
        .without_plots()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(30)
}

/// Sends requests through both services, and measures from the call to the end of the answer's body. Making the requests is
/// not measured.
pub fn compare<O, P, B, C, D>(criterion: &mut Criterion, name: &str, ours: O, peer: P, make: impl Fn() -> Request<B>)
where
    O: Service<Request<B>, Response = Response<C>>,
    P: Service<Request<B>, Response = Response<D>>,
    C: Body,
    D: Body,
{
    compare_fns(criterion, name, make, sending(ours), sending(peer));
}

/// Measures two functions of what `make` makes, which itself is not measured.
pub fn compare_fns<T>(
    c: &mut Criterion,
    name: &str,
    make: impl Fn() -> T,
    mut ours: impl FnMut(T),
    mut peer: impl FnMut(T),
) {
    let mut group = c.benchmark_group(name);
    group.bench_function("ours", |b| b.iter_batched(&make, &mut ours, BATCH));
    group.bench_function("peer", |b| b.iter_batched(&make, &mut peer, BATCH));
    group.finish();
}

/// The same beside the bare service, for a bar on what ours and the peer add to it.
pub fn compare_added<T>(
    c: &mut Criterion,
    name: &str,
    make: impl Fn() -> T,
    mut ours: impl FnMut(T),
    mut peer: impl FnMut(T),
    mut bare: impl FnMut(T),
) {
    let mut group = c.benchmark_group(name);
    group.bench_function("ours", |b| b.iter_batched(&make, &mut ours, BATCH));
    group.bench_function("bare", |b| b.iter_batched(&make, &mut bare, BATCH));
    group.bench_function("peer", |b| b.iter_batched(&make, &mut peer, BATCH));
    group.finish();
}

/// The bare service: answers at once with two bytes, and does nothing besides.
pub fn bare<B, C>() -> impl Service<Request<B>, Response = Response<C>, Error = Infallible> + Clone
where
    C: From<&'static str>,
{
    service_fn(|_| ready(Ok(Response::new(C::from("ok")))))
}

/// Gives the request its context, as the observe layer does, which stands outside of all others: who comes first pays for it.
pub fn in_context<B>(mut request: Request<B>) -> Request<B> {
    request.extensions_mut().insert(coze_core::Context::new());
    request
}

/// Bytes of this process that are in memory and of no file.
///
/// # Panics
/// On another system than Linux.
#[must_use]
pub fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux says what a process has in memory");
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0_u64) * 1024
}

/// One whole call after the other of a service that never waits.
///
/// # Panics
/// If it waits, or refuses: then the benchmark would measure something else than it says.
pub fn sending<S, B, C>(mut service: S) -> impl FnMut(Request<B>)
where
    S: Service<Request<B>, Response = Response<C>>,
    C: Body,
{
    move |request| {
        let mut task = Context::from_waker(Waker::noop());
        assert!(matches!(service.poll_ready(&mut task), Poll::Ready(Ok(()))), "the service is not ready");
        let Poll::Ready(Ok(answer)) = pin!(service.call(black_box(request))).poll(&mut task) else {
            panic!("the service waits or refuses");
        };
        let mut body = pin!(answer.into_body());
        while let Poll::Ready(Some(Ok(frame))) = Pin::as_mut(&mut body).poll_frame(&mut task) {
            black_box(frame);
        }
    }
}
