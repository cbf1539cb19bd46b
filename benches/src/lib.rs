//! How the benchmarks compare: each is a group `crate/what` with two functions, `ours` and `peer`.
//!
//! `cargo xtask bench` runs them in rounds, takes the medians and holds them against `bars.txt`.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use criterion::{BatchSize, Criterion};
use http::{Request, Response};
use tower::{Service, service_fn};

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

/// Sends each request of `make` through both services, and measures from the call to the drop of the answer. Making the
/// request is not measured.
pub fn compare<O, P, B>(criterion: &mut Criterion, name: &str, mut ours: O, mut peer: P, make: impl Fn() -> Request<B>)
where
    O: Service<Request<B>>,
    P: Service<Request<B>>,
{
    let mut group = criterion.benchmark_group(name);
    group.bench_function("ours", |b| b.iter_batched(&make, |request| call(&mut ours, request), BatchSize::SmallInput));
    group.bench_function("peer", |b| b.iter_batched(&make, |request| call(&mut peer, request), BatchSize::SmallInput));
    group.finish();
}

/// Measures two functions against each other.
pub fn compare_fns<A, B>(
    criterion: &mut Criterion,
    name: &str,
    mut ours: impl FnMut() -> A,
    mut peer: impl FnMut() -> B,
) {
    let mut group = criterion.benchmark_group(name);
    group.bench_function("ours", |b| b.iter(&mut ours));
    group.bench_function("peer", |b| b.iter(&mut peer));
    group.finish();
}

/// The bare service: answers at once, and does nothing besides.
#[must_use]
pub fn bare<B>()
-> impl Service<Request<B>, Response = Response<()>, Error = Infallible, Future = Ready<Result<Response<()>, Infallible>>>
+ Clone {
    service_fn(|_| ready(Ok(Response::new(()))))
}

/// One whole call of a service that never waits.
///
/// # Panics
/// If it waits, or refuses: then the benchmark would measure something else than it says.
pub fn call<S, B>(service: &mut S, request: Request<B>)
where
    S: Service<Request<B>>,
{
    let mut task = Context::from_waker(Waker::noop());
    assert!(matches!(service.poll_ready(&mut task), Poll::Ready(Ok(()))), "the service is not ready");
    match pin!(service.call(black_box(request))).poll(&mut task) {
        Poll::Ready(Ok(answer)) => drop(black_box(answer)),
        Poll::Ready(Err(_)) => panic!("the service refuses"),
        Poll::Pending => panic!("the service waits"),
    }
}
