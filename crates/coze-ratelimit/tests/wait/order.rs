//! Whose turn it is, and when.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use coze_core::{Context, UserId};
use coze_ratelimit::{Class, Decision, Level, Limits, LimitsFuture, Quota, Rate};
use http::request::Parts;
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};

use crate::{
    MS, SECOND, admitted, context, cost, decide, n, now, one_per_second, poll, rate, reason_and_wait, refused,
    wait_counting, waits,
};

#[tokio::test(start_paused = true)]
async fn who_comes_first_is_served_first_each_as_soon_as_there_is_room() {
    // A second has room for five; a window of five leaves whole.
    let limits = Limits::new().level(Level::global("app", Rate::per_second(n(5)))).wait(10 * SECOND, 100);
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for index in 0..20 {
        let decision = decide(&limits, &context("u"), 1);
        assert_eq!(matches!(decision, Decision::Now(Ok(_))), index < 5);
        tasks.spawn(async move {
            let outcome = match decision {
                Decision::Now(outcome) => outcome,
                Decision::Later(turn) | Decision::Wait(turn) => turn.await,
            };
            (index, outcome.map(|_| start.elapsed().as_millis()))
        });
    }
    assert_eq!(limits.waiting(), 15);
    let mut order = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        let (index, at) = ended.expect("no panic");
        order.push((index, at.expect("admitted")));
    }
    assert_eq!(order, (0..20).map(|index| (index, 1000 * (index / 5))).collect::<Vec<_>>());
    assert_eq!(limits.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_waits_behind_those_that_wait_for_its_key_and_all_others_pass_by() {
    let limits = one_per_second();
    now(decide(&limits, &context("u"), 1)).expect("the first");
    let mut second = waits(decide(&limits, &context("u"), 1));
    time::advance(SECOND).await;
    // There is room, but it is the second one's.
    let mut third = waits(decide(&limits, &context("u"), 1));
    now(decide(&limits, &context("v"), 1)).expect("another user");
    assert!(poll(&mut third).is_pending());
    admitted(&mut second);
    assert!(poll(&mut third).is_pending(), "a second later");
    time::advance(SECOND - MS).await;
    assert!(poll(&mut third).is_pending());
    time::advance(MS).await;
    admitted(&mut third);
    assert!(now(decide(&limits, &context("w"), 1)).is_ok());
    assert_eq!(limits.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_turn_would_come_too_late_is_refused_at_once_with_the_time_of_its_turn() {
    let limits = Limits::new().level(Level::per_user("user", rate(1))).wait(2 * SECOND, 100);
    now(decide(&limits, &context("u"), 1)).expect("the first");
    let [_second, _third] = [(); 2].map(|()| waits(decide(&limits, &context("u"), 1)));
    let error = now(decide(&limits, &context("u"), 1)).expect_err("in three seconds");
    assert_eq!(reason_and_wait(&error), ("rate_limited", 3 * SECOND));
    assert_eq!(limits.waiting(), 2);

    let hurried = context("v");
    hurried.deadline.set((Instant::now() + SECOND - MS).into_std()).expect("empty");
    now(decide(&limits, &hurried, 1)).expect("the first");
    let error = now(decide(&limits, &hurried, 1)).expect_err("its deadline comes first");
    assert_eq!(reason_and_wait(&error), ("rate_limited", SECOND));
    let late = context("w");
    late.deadline.set(Instant::now().into_std()).expect("empty");
    now(decide(&limits, &late, 1)).expect("there is room");
    assert!(now(decide(&limits, &late, 1)).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_wait_of_which_nobody_knows_the_end_ends_with_its_time() {
    let limits = Limits::new().level(Level::per_user("user", Quota::Concurrency(n(1)))).wait(5 * SECOND, 100);
    let _held = now(decide(&limits, &context("u"), 1)).expect("the only place");
    let hurried = context("u");
    hurried.deadline.set((Instant::now() + SECOND).into_std()).expect("empty");
    let mut first = waits(decide(&limits, &hurried, 1));
    let mut second = waits(decide(&limits, &context("u"), 1));
    time::advance(SECOND - MS).await;
    assert!(poll(&mut first).is_pending());
    time::advance(MS).await;
    assert_eq!(reason_and_wait(&refused(&mut first)), ("concurrency_limited", SECOND));
    assert_eq!(limits.waiting(), 1);
    time::advance(4 * SECOND).await;
    assert_eq!(refused(&mut second).reason(), "concurrency_limited");
    assert_eq!(limits.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_in_the_sketch_hears_of_others_within_a_second() {
    let at_once = Level::per_user("user", Quota::Concurrency(n(1))).max_keys(1);
    let limits = Limits::new().level(at_once).wait(60 * SECOND, 100);
    let _known = now(decide(&limits, &context("known"), 1)).expect("the only cell of its own");
    let mut others = Vec::new();
    // Until those in flight have all the cells of one who has nothing in flight.
    let waiting = (0..100_000).find_map(|other: u32| match decide(&limits, &context(&other.to_string()), 1) {
        Decision::Now(permit) => {
            others.push(permit.expect("admitted"));
            None
        }
        Decision::Later(turn) | Decision::Wait(turn) => Some(turn),
    });
    let start = Instant::now();
    let waiting = tokio::spawn(waiting.expect("one shares all of its cells"));
    time::sleep(SECOND / 2).await;
    drop(others);
    waiting.await.expect("no panic").expect("admitted");
    assert_eq!(start.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_given_back_goes_to_the_first_who_waits() {
    let limits = Limits::new().level(Level::per_user("user", Quota::Concurrency(n(2)))).wait(5 * SECOND, 100);
    let mut held = [(); 2].map(|()| now(decide(&limits, &context("u"), 1)).ok());
    let (mut turns, counts) = wait_counting([(); 3].map(|()| decide(&limits, &context("u"), 1)));
    held[0] = None;
    assert_eq!(counts.each_ref().map(|count| count.woken()), [1, 0, 0]);
    let _first = admitted(&mut turns[0]);
    assert!(poll(&mut turns[1]).is_pending());
    held[1] = None;
    assert!(matches!(decide(&limits, &context("u"), 1), Decision::Wait(_)), "nobody takes it away");
    let _second = admitted(&mut turns[1]);
    assert!(poll(&mut turns[2]).is_pending());
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_of_a_cost_goes_to_the_first_who_waits() {
    let tokens = Level::global("tokens", Rate::per_minute(n(100))).cost(cost).settle();
    let limits = Limits::new().level(tokens).wait(60 * SECOND, 100);
    let held = now(decide(&limits, &context("u"), 100)).expect("all of it");
    let ([mut first, mut second], counts) = wait_counting([50, 40].map(|cost| decide(&limits, &context("u"), cost)));
    let woken = || counts.each_ref().map(|count| count.woken());
    let error = now(decide(&limits, &context("u"), 20)).expect_err("110 of 100 per minute");
    assert_eq!(error.retry_after(), Some(66 * SECOND));
    assert_eq!(woken(), [0, 0]);
    drop(held);
    assert_eq!(woken(), [1, 0], "the first one hears of it");
    assert!(poll(&mut second).is_pending());
    let _first = admitted(&mut first);
    let _second = admitted(&mut second);
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_leaves_no_trace_and_delays_nobody() {
    let limits = one_per_second();
    now(decide(&limits, &context("u"), 1)).expect("the first");
    let mut turns: Vec<_> = (0..5).map(|_| waits(decide(&limits, &context("u"), 1))).collect();
    drop(turns.remove(2));
    drop(turns.remove(0));
    assert_eq!(limits.waiting(), 3);
    for mut turn in turns {
        assert!(poll(&mut turn).is_pending());
        time::advance(SECOND).await;
        admitted(&mut turn);
    }
    time::advance(SECOND).await;
    drop(decide(&limits, &context("u"), 1));
    assert!(matches!(decide(&limits, &context("u"), 1), Decision::Wait(_)), "and never polled");
    assert_eq!(limits.waiting(), 0);
    time::advance(SECOND).await;
    now(decide(&limits, &context("u"), 1)).expect("nothing was taken for nobody");
}

#[tokio::test(start_paused = true)]
async fn no_more_wait_than_may() {
    let limits = Limits::new().level(Level::per_user("user", rate(1))).wait(60 * SECOND, 2);
    for user in ["u", "v", "w"] {
        now(decide(&limits, &context(user), 1)).expect("the first");
    }
    let [first, second] = ["u", "v"].map(|user| waits(decide(&limits, &context(user), 1)));
    for (user, wait) in [("u", 2 * SECOND), ("w", SECOND)] {
        let error = now(decide(&limits, &context(user), 1)).expect_err("two wait");
        assert_eq!(reason_and_wait(&error), ("rate_limited", wait));
    }
    drop(first);
    let _third = waits(decide(&limits, &context("w"), 1));
    drop(second);
    let none = Limits::new().level(Level::per_user("user", rate(1))).wait(60 * SECOND, 0);
    now(decide(&none, &context("u"), 1)).expect("the first");
    assert!(now(decide(&none, &context("u"), 1)).is_err());
}

#[tokio::test(start_paused = true)]
async fn what_never_fits_and_what_is_shed_does_not_wait() {
    let class = |_: &Parts, context: &Context| match context.user.get().map(UserId::as_str) {
        Some("low") => Class::Low,
        _ => Class::High,
    };
    let limits = Limits::new().level(Level::global("app", rate(10)).cost(cost).shed(class)).wait(60 * SECOND, 100);
    now(decide(&limits, &context("u"), 9)).expect("there is room");
    assert_eq!(now(decide(&limits, &context("low"), 1)).expect_err("shed").reason(), "rate_limited");
    let _waiting = waits(decide(&limits, &context("u"), 5));
    assert_eq!(now(decide(&limits, &context("u"), 11)).expect_err("never").reason(), "cost_above_quota");
    assert!(now(decide(&limits, &context("low"), 1)).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_large_request_is_not_starved_by_small_ones() {
    let limits = Limits::new().level(Level::global("app", rate(10)).cost(cost)).wait(60 * SECOND, 100);
    now(decide(&limits, &context("u"), 10)).expect("all of it");
    let mut large = waits(decide(&limits, &context("u"), 10));
    let mut small: Vec<LimitsFuture> = Vec::new();
    for _ in 0..9 {
        time::advance(100 * MS).await;
        small.push(waits(decide(&limits, &context("u"), 1)));
        assert!(poll(&mut large).is_pending());
    }
    time::advance(100 * MS).await;
    admitted(&mut large);
    assert!(small.iter_mut().all(|turn| poll(turn).is_pending()));
    time::advance(SECOND).await;
    small.iter_mut().for_each(|turn| drop(admitted(turn)));
}

#[tokio::test(start_paused = true)]
async fn a_request_keeps_its_turn_at_every_level_that_refused_it() {
    let limits = Limits::new()
        .level(Level::global("app", rate(2)))
        .level(Level::per_user("user", rate(1)))
        .wait(60 * SECOND, 100);
    now(decide(&limits, &context("u"), 1)).expect("the first");
    let mut waiting = waits(decide(&limits, &context("u"), 1));
    time::advance(SECOND).await;
    // The user's turn has come, but others were faster at the app's.
    for user in ["v", "w"] {
        now(decide(&limits, &context(user), 1)).expect("nobody waits for the app");
    }
    assert!(poll(&mut waiting).is_pending());
    time::advance(500 * MS).await;
    let mut newcomer = waits(decide(&limits, &context("x"), 1));
    let mut same_user = waits(decide(&limits, &context("u"), 1));
    time::advance(500 * MS).await;
    assert!(poll(&mut newcomer).is_pending());
    assert!(poll(&mut same_user).is_pending());
    admitted(&mut waiting);
    admitted(&mut newcomer);
    assert!(poll(&mut same_user).is_pending());
    time::advance(SECOND).await;
    admitted(&mut same_user);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_woken_in_vain_more_than_once() {
    let limits = one_per_second();
    let polls = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..21 {
        match decide(&limits, &context("u"), 1) {
            Decision::Now(outcome) => drop(outcome.expect("the first")),
            Decision::Later(mut turn) | Decision::Wait(mut turn) => {
                let polls = polls.clone();
                tasks.spawn(std::future::poll_fn(move |task| {
                    polls.fetch_add(1, Ordering::SeqCst);
                    Pin::new(&mut turn).poll(task)
                }));
            }
        }
    }
    assert!(tasks.join_all().await.into_iter().all(|outcome| outcome.is_ok()));
    let polls = polls.load(Ordering::SeqCst);
    // It comes, it is the first, it is its time.
    assert!((40..=60).contains(&polls), "{polls} polls of 20 that wait");
}
