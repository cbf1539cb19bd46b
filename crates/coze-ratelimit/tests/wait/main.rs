//! Requests that wait their turn instead of being refused, the clock paused.

mod levels;
mod order;
mod together;

use std::{
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context as Task, Poll, Wake, Waker},
    time::Duration,
};

use coze_core::{Context, Error, UserId};
use coze_ratelimit::{Decision, Level, Limits, LimitsFuture, Permit, Policy, Rate};
use http::{Request, request::Parts};
use tokio::time::Instant;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

pub(crate) fn rate(per_second: u32) -> Rate {
    Rate::per_second(n(per_second)).burst(n(per_second))
}

/// One request per second for each user, and patience for a minute.
pub(crate) fn one_per_second() -> Limits {
    Limits::new().level(Level::per_user("user", rate(1))).wait(60 * SECOND, 100)
}

pub(crate) fn context(user: &str) -> Context {
    let context = Context::new();
    context.user.set(UserId::new(user).expect("valid")).expect("empty");
    context
}

pub(crate) fn parts(cost: u32) -> Parts {
    Request::get("/").header("x-cost", cost).body(()).expect("valid").into_parts().0
}

pub(crate) fn cost(parts: &Parts, _: &Context) -> u32 {
    parts.headers["x-cost"].to_str().expect("text").parse().expect("a number")
}

pub(crate) fn decide(limits: &Limits, context: &Context, cost: u32) -> Decision<Permit, LimitsFuture> {
    limits.decide(&parts(cost), context, Instant::now().into_std())
}

/// Of a request that need not wait.
pub(crate) fn now(decision: Decision<Permit, LimitsFuture>) -> Result<Permit, Error> {
    let Decision::Now(decided) = decision else { panic!("it waits") };
    decided
}

/// Of a request that waits: it was polled once.
pub(crate) fn waits(decision: Decision<Permit, LimitsFuture>) -> LimitsFuture {
    let Decision::Wait(mut turn) = decision else { panic!("it does not wait") };
    assert!(poll(&mut turn).is_pending());
    turn
}

pub(crate) fn poll(turn: &mut LimitsFuture) -> Poll<Result<Permit, Error>> {
    Pin::new(turn).poll(&mut Task::from_waker(Waker::noop()))
}

pub(crate) fn admitted(turn: &mut LimitsFuture) -> Permit {
    let Poll::Ready(Ok(permit)) = poll(turn) else { panic!("not admitted") };
    permit
}

pub(crate) fn refused(turn: &mut LimitsFuture) -> Error {
    let Poll::Ready(Err(error)) = poll(turn) else { panic!("not refused") };
    error
}

pub(crate) fn reason_and_wait(error: &Error) -> (&'static str, Duration) {
    (error.reason(), error.retry_after().expect("a time"))
}

/// Counts how often it is woken.
#[derive(Default)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn woken(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Of requests that wait: they were polled once, and count how often they are woken.
pub(crate) fn wait_counting<const N: usize>(
    decisions: [Decision<Permit, LimitsFuture>; N],
) -> ([LimitsFuture; N], [Arc<Count>; N]) {
    let counts: [Arc<Count>; N] = std::array::from_fn(|_| Arc::new(Count::default()));
    let mut of = counts.clone().into_iter();
    let turns = decisions.map(|decision| {
        let Decision::Wait(mut turn) = decision else { panic!("it does not wait") };
        let waker = Waker::from(of.next().expect("one for each"));
        assert!(Pin::new(&mut turn).poll(&mut Task::from_waker(&waker)).is_pending());
        turn
    });
    (turns, counts)
}
