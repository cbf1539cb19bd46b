//! Requests that wait for several levels.

use std::time::Duration;

use coze_ratelimit::{Class, Decision, Level, Limits, Quota, Rate};
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};

use crate::{MS, SECOND, admitted, context, cost, decide, n, now, poll, rate, reason_and_wait, waits};

/// Sends a request for each of the users. Those that are admitted end at once, and tell their names and when.
fn send(limits: &Limits, users: &[&'static str], tasks: &mut JoinSet<(&'static str, Duration)>, start: Instant) {
    for user in users.iter().copied() {
        let decision = decide(limits, &context(user), 1);
        tasks.spawn(async move {
            let outcome = match decision {
                Decision::Now(outcome) => outcome,
                Decision::Later(turn) | Decision::Wait(turn) => turn.await,
            };
            outcome.expect("it has time");
            (user, start.elapsed())
        });
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_blocked_at_its_own_level_stops_nobody_at_the_level_of_all() {
    let limits = Limits::new()
        .level(Level::global("app", rate(50)))
        .level(Level::per_user("user", rate(1)))
        .wait(60 * SECOND, 100);
    let (mut tasks, start) = (JoinSet::new(), Instant::now());
    send(&limits, &["u"; 11], &mut tasks, start);
    time::sleep(100 * MS).await;
    let others: Vec<_> = (0..49).map(|other| now(decide(&limits, &context(&format!("other {other}")), 1))).collect();
    assert!(others.iter().all(Result::is_ok));
    send(&limits, &["x"], &mut tasks, start);
    time::sleep(100 * MS).await;
    send(&limits, &["u"], &mut tasks, start);
    time::sleep(950 * MS).await;
    assert_eq!(limits.waiting(), 10, "nine of the eleven, and the one who came later");
    now(decide(&limits, &context("y"), 1)).expect("there is room for all others");

    let mut ended = tasks.join_all().await;
    ended.sort_by_key(|(_, at)| *at);
    let of_u: Vec<_> = ended.iter().filter(|(user, _)| *user == "u").map(|(_, at)| at.as_millis()).collect();
    assert!(of_u.windows(2).all(|pair| (1000..=1100).contains(&(pair[1] - pair[0]))), "each a second later: {of_u:?}");
    let x = ended.iter().find(|(user, _)| *user == "x").expect("it ended").1;
    assert!(x <= 1100 * MS, "{x:?}: as soon as the app has room");
    assert_eq!(limits.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_behind_one_who_came_before_goes_on_when_that_is_gone() {
    let limits = Limits::new()
        .level(Level::global("at once", Quota::Concurrency(n(1))))
        .level(Level::per_user("user", Rate::per_minute(n(6)).burst(n(1))))
        .wait(60 * SECOND, 100);
    let (mut tasks, start) = (JoinSet::new(), Instant::now());
    now(decide(&limits, &context("u"), 1)).expect("the first");
    let held = now(decide(&limits, &context("v"), 1)).expect("the only place");
    // The user's turn is in ten seconds, and the one before waits for the only place.
    send(&limits, &["x", "u", "u"], &mut tasks, start);
    time::sleep(15 * SECOND).await;
    drop(held);
    time::sleep(SECOND / 2).await;
    assert_eq!(limits.waiting(), 1);
    now(decide(&limits, &context("y"), 1)).expect("the place is free while the user waits for time");
    let ended = tasks.join_all().await;
    assert_eq!(ended, [("x", 15 * SECOND), ("u", 15 * SECOND), ("u", 25 * SECOND)]);
    assert_eq!(limits.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_behind_others_is_refused_at_once_for_what_another_level_will_never_have_or_too_late() {
    let limits = Limits::new()
        .level(Level::global("app", rate(10)).cost(cost))
        .level(Level::per_user("user", Rate::per_minute(n(6)).burst(n(6))).cost(cost))
        .wait(20 * SECOND, 100);
    for (user, cost) in [("u", 6), ("v", 4)] {
        now(decide(&limits, &context(user), cost)).expect("there is room");
    }
    let _waiting = waits(decide(&limits, &context("x"), 5));
    let error = now(decide(&limits, &context("y"), 7)).expect_err("seven of six");
    assert_eq!(error.reason(), "cost_above_quota");
    let error = now(decide(&limits, &context("u"), 3)).expect_err("one in ten seconds");
    assert_eq!(reason_and_wait(&error), ("rate_limited", 30 * SECOND));
    let _in_time = waits(decide(&limits, &context("u"), 1));
    assert_eq!(limits.waiting(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_level_that_has_room_and_no_line_delays_and_sheds_nobody_who_waits_for_another() {
    let limits = Limits::new()
        .level(Level::global("shed", rate(100)).shed(|_, _| Class::Low))
        .level(Level::global("reported", rate(1)).cost(cost).report_only())
        .level(Level::per_user("at once", Quota::Concurrency(n(1))))
        .level(Level::global("app", rate(10)).cost(cost))
        .wait(60 * SECOND, 100);
    now(decide(&limits, &context("u"), 10)).expect("all of it");
    let mut large = waits(decide(&limits, &context("x"), 10));
    time::advance(SECOND).await;
    // There is room everywhere, but it is that of the one before.
    let mut small = waits(decide(&limits, &context("y"), 2));
    admitted(&mut large);
    assert!(poll(&mut small).is_pending());
    time::advance(SECOND).await;
    admitted(&mut small);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_at_its_own_level_counts_there_also_when_all_wait_at_another() {
    let limits = Limits::new()
        .level(Level::global("app", rate(10)).cost(cost))
        .level(Level::per_user("user", Rate::per_minute(n(6)).burst(n(1))))
        .wait(30 * SECOND, 100);
    for (user, cost) in [("u", 1), ("v", 9)] {
        now(decide(&limits, &context(user), cost)).expect("there is room");
    }
    let mut before = waits(decide(&limits, &context("x"), 5));
    let mut turns = [(); 3].map(|()| waits(decide(&limits, &context("u"), 1)));
    let error = now(decide(&limits, &context("u"), 1)).expect_err("one in ten seconds");
    assert_eq!(reason_and_wait(&error), ("rate_limited", 40 * SECOND));
    time::advance(SECOND).await;
    admitted(&mut before);
    now(decide(&limits, &context("y"), 5)).expect("nobody waits for the app");
    for (index, turn) in turns.iter_mut().enumerate() {
        time::advance(if index == 0 { 9 * SECOND } else { 10 * SECOND }).await;
        admitted(turn);
    }
}
