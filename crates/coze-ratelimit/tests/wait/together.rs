//! Many requests, and what they hold meanwhile.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context as Task, Poll, Waker},
    time::Duration,
};

use coze_ratelimit::{Decision, Level, Limits, Quota, Rate, RateLimit};
use http::{Request, Response};
use http_body_util::Empty;
use proptest::prelude::*;
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tower::{Layer, limit::ConcurrencyLimitLayer};
use tower_test::mock;

use crate::{MS, SECOND, context, cost, decide, n, one_per_second, parts, rate};

/// A request of the property below: milliseconds after the one before, whose it is, its cost, how long it takes, and whether it goes
/// away when it has waited for 300 ms.
type Asked = (u64, usize, u32, u64, bool);

/// Sends the requests. Returns in the order of their admission which they are, whose, and what a limiter that does not wait says to
/// the same ones.
async fn admissions(limits: &Limits, twin: &Limits, requests: &[Asked]) -> Vec<(usize, usize, Option<String>)> {
    let (sender, mut admitted) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for (index, (after_ms, user, cost, takes_ms, goes_away)) in requests.iter().copied().enumerate() {
        time::sleep(Duration::from_millis(after_ms)).await;
        let who = context(["a", "b", "c"][user]);
        let (decision, sender, twin) = (decide(limits, &who, cost), sender.clone(), twin.clone());
        let patience = if goes_away { 300 * MS } else { 2000 * SECOND };
        tasks.spawn(time::timeout(patience, async move {
            let permit = match decision {
                Decision::Now(outcome) => outcome,
                Decision::Later(turn) | Decision::Wait(turn) => turn.await,
            };
            let permit = permit.expect("it has time");
            let same = twin.check(&parts(cost), &who, Instant::now().into_std());
            sender.send((index, user, same.as_ref().err().map(ToString::to_string))).expect("it is read");
            time::sleep(Duration::from_millis(takes_ms)).await;
            drop((permit, same));
        }));
    }
    drop(sender);
    while tasks.join_next().await.is_some() {}
    let mut order = Vec::new();
    while let Some(next) = admitted.recv().await {
        order.push(next);
    }
    order
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_holds_nothing_of_the_inner_service() {
    let (mock, mut handle) = mock::pair::<Request<&'static str>, Response<Empty<&'static [u8]>>>();
    let inner = ConcurrencyLimitLayer::new(1).layer(mock);
    let mut service = mock::Spawn::new(RateLimit::new(inner, one_per_second()));
    let mut other = service.clone();
    let request = |user, body| {
        let mut request = Request::new(body);
        request.extensions_mut().insert(context(user));
        request
    };
    fn is_polled<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
        future.as_mut().poll(&mut Task::from_waker(Waker::noop()))
    }

    assert!(service.poll_ready().is_ready());
    drop(service.call(request("u", "first")));
    assert_eq!(*handle.next_request().await.expect("forwarded").0.body(), "first");
    assert!(service.poll_ready().is_ready());
    let mut waiting = Box::pin(service.call(request("u", "second")));
    assert!(is_polled(&mut waiting).is_pending());
    assert!(other.poll_ready().is_ready(), "neither it nor the service it came to keeps the place");
    let mut passing = Box::pin(other.call(request("v", "third")));
    assert!(is_polled(&mut passing).is_pending());
    let (sent, respond) = handle.next_request().await.expect("forwarded");
    assert_eq!(*sent.body(), "third");

    time::advance(SECOND).await;
    assert!(is_polled(&mut waiting).is_pending(), "admitted, but the only place is taken");
    assert!(handle.poll_request().is_pending());
    respond.send_response(Response::new(Empty::new()));
    assert!(is_polled(&mut passing).is_ready());
    drop(passing);
    assert!(is_polled(&mut waiting).is_pending());
    let (sent, respond) = handle.next_request().await.expect("forwarded");
    assert_eq!(*sent.body(), "second");
    respond.send_error("broken");
    assert!(matches!(is_polled(&mut waiting), Poll::Ready(Err(error)) if error.to_string() == "broken"));
}

/// Many who wait for a place of all, and for one of their own.
async fn crowd() {
    let limits = Limits::new()
        .level(Level::global("all", Quota::Concurrency(n(3))))
        .level(Level::per_user("user", Quota::Concurrency(n(1))))
        .wait(60 * SECOND, 1000);
    let inside = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let (limits, inside) = (limits.clone(), inside.clone());
        tasks.spawn(async move {
            for _ in 0..500 {
                let permit = match decide(&limits, &context(["a", "b", "c", "d", "e"][task % 5]), 1) {
                    Decision::Now(outcome) => outcome,
                    Decision::Later(turn) | Decision::Wait(turn) => turn.await,
                };
                let permit = permit.expect("nobody waits for long");
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(permit);
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(limits.waiting(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_more_are_inside_than_may_be_and_each_comes_in() {
    crowd().await;
}

#[tokio::test(start_paused = true)]
async fn no_place_that_is_given_back_is_overlooked() {
    let start = Instant::now();
    crowd().await;
    assert_eq!(start.elapsed(), Duration::ZERO, "nobody had to try again after a second");
}

proptest! {
    /// Whoever waits is admitted in the end, in the order of its user, and never when a limiter without waiting would refuse it.
    #[test]
    fn waiting_admits_what_refusing_would_in_the_order_in_which_it_came(
        app in 4_u32..20, user in 2_u32..6, bot in 1_u32..4,
        requests in prop::collection::vec((0_u64..400, 0_usize..3, 1_u32..3, 0_u64..500, prop::bool::weighted(0.1)), 1..60),
    ) {
        let levels = || Limits::new()
            .level(Level::global("app", rate(app)).cost(cost))
            .level(Level::per_user("user", Rate::per_second(n(user))).cost(cost))
            .level(Level::global("at once", Quota::Concurrency(n(bot))));
        let (limits, twin) = (levels().wait(1000 * SECOND, 1000), levels());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let order = runtime.expect("a runtime").block_on(admissions(&limits, &twin, &requests));
        prop_assert_eq!(limits.waiting(), 0);
        for user in 0..3 {
            let of_user: Vec<_> = order.iter().filter(|(_, of, _)| *of == user).map(|(index, ..)| *index).collect();
            prop_assert!(of_user.is_sorted(), "{:?}", of_user);
        }
        prop_assert!(order.iter().all(|(.., refused)| refused.is_none()), "{:?}", order);
        let stayed = requests.iter().enumerate().filter(|(_, (.., goes_away))| !goes_away).map(|(index, _)| index);
        prop_assert!(stayed.into_iter().all(|index| order.iter().any(|(admitted, ..)| *admitted == index)));
    }
}
