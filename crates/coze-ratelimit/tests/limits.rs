//! The decision over several levels, without a service: against a slow model, and under threads.

use std::{
    borrow::Cow,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use coze_core::{BotId, Context, Error, Kind, Limit, Retry, TenantId, UserId};
use coze_ratelimit::{Level, Limits, Permit, Quota, Rate};
use http::{HeaderValue, Request, request::Parts};
use proptest::prelude::*;
use tokio::time::Instant as Clock;

const MS: Duration = Duration::from_millis(1);
const NS: Duration = Duration::from_nanos(1);

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

fn parts() -> Parts {
    Request::new(()).into_parts().0
}

/// A request for `bot` of `user`; either may be empty.
fn context(bot: &str, user: &str) -> Context {
    let context = Context::new();
    if let Ok(bot) = BotId::new(bot) {
        context.bot.set(bot).expect("empty");
    }
    if let Ok(user) = UserId::new(user) {
        context.user.set(user).expect("empty");
    }
    context
}

fn check(limits: &Limits, bot: &str, user: &str, now: Instant) -> Result<Permit, Error> {
    limits.check(&parts(), &context(bot, user), now)
}

fn limit(error: &Error) -> Limit {
    error.limit().expect("a refusal names its limit")
}

#[test]
fn the_platforms_limits_hold_by_default() {
    let (limits, start) = (Limits::platform(), Clock::now().into_std());
    let mut held = Vec::new();
    for user in 0..10 {
        held.push(check(&limits, "b1", &user.to_string(), start).expect("10 at once for a bot"));
    }
    assert_eq!(limit(&check(&limits, "b1", "10", start).expect_err("the 11th")).name, "bot");
    assert_eq!(limit(&check(&limits, "b2", "0", start).expect_err("twice in a second")).name, "user");
    for user in 10..50 {
        drop(check(&limits, "b2", &user.to_string(), start).expect("50 per second for all"));
    }
    assert_eq!(limit(&check(&limits, "b2", "50", start).expect_err("the 51st")).name, "app");
}

#[test]
fn a_user_waits_a_whole_second_wherever_it_begins() {
    let (limits, start) = (Limits::platform(), Clock::now().into_std());
    check(&limits, "b", "other", start).expect("admitted");
    check(&limits, "b", "u", start + 99 * MS).expect("admitted");
    let error = check(&limits, "b", "u", start + 1000 * MS).expect_err("901 ms later");
    assert_eq!(error.retry_after(), Some(99 * MS));
    check(&limits, "b", "u", start + 1099 * MS).expect("admitted");
}

#[test]
fn a_refusal_says_which_limit_how_much_and_when() {
    let (limits, start) = (Limits::platform(), Clock::now().into_std());
    let _permit = check(&limits, "b", "u", start).expect("admitted");
    let error = check(&limits, "b", "u", start + 300 * MS).expect_err("too early");
    assert_eq!((error.kind(), error.reason(), error.retry()), (Kind::RateLimited, "rate_limited", Retry::Safe));
    assert_eq!(error.message(), "the limit \"user\" allows 1 request per 1s");
    assert_eq!(error.retry_after(), Some(700 * MS));
    let second = Duration::from_secs(1);
    assert_eq!(limit(&error), Limit { name: "user", quota: 1, remaining: 0, window: second, reset: 700 * MS });

    let limits = Limits::new().level(Level::per_bot("bot", Quota::Concurrency(n(2))));
    let _held = [(); 2].map(|()| check(&limits, "b", "u", start).expect("admitted"));
    let error = check(&limits, "b", "u", start).expect_err("a third");
    assert_eq!((error.kind(), error.reason(), error.retry()), (Kind::RateLimited, "concurrency_limited", Retry::Safe));
    assert_eq!(error.message(), "the limit \"bot\" allows 2 requests at once");
    assert_eq!(error.retry_after(), Some(second), "nobody knows when");
    assert_eq!(limit(&error), Limit { name: "bot", quota: 2, remaining: 0, window: Duration::ZERO, reset: second });
}

#[test]
fn reset_is_when_the_full_quota_is_back() {
    let (limits, start) = (Limits::outbound(n(5)), Clock::now().into_std());
    for at in [0, 0, 250, 250, 450] {
        check(&limits, "", "", start + at * MS).expect("admitted");
    }
    let error = check(&limits, "", "", start + 500 * MS).expect_err("the sixth");
    assert_eq!(error.retry_after(), Some(500 * MS), "the first two leave");
    assert_eq!(limit(&error).reset, 900 * MS, "the last one leaves");
}

#[test]
fn the_longest_wait_is_reported_and_the_first_level_among_equals() {
    let rate = |n_per_second| Rate::per_second(n(n_per_second)).burst(n(1));
    let limits = Limits::new()
        .level(Level::global("short", rate(10)))
        .level(Level::per_bot("first", rate(2)))
        .level(Level::per_user("equal", rate(2)));
    let start = Clock::now().into_std();
    check(&limits, "b", "u", start).expect("admitted");
    let error = check(&limits, "b", "u", start).expect_err("all three refuse");
    assert_eq!((limit(&error).name, error.retry_after()), ("first", Some(500 * MS)));
}

#[test]
fn a_level_without_its_key_does_not_apply() {
    let one = Rate::per_second(n(1));
    let limits = Limits::new()
        .level(Level::per_bot("bot", one))
        .level(Level::per_tenant("tenant", one))
        .level(Level::per_user("user", one))
        .level(Level::per_key("tier", one, |parts, _| parts.headers.get("x-tier")?.to_str().ok().map(Cow::Borrowed)));
    let (mut parts, start) = (parts(), Clock::now().into_std());
    for _ in 0..100 {
        limits.check(&parts, &Context::new(), start).expect("no level applies");
    }
    parts.headers.insert("x-tier", HeaderValue::from_bytes(b"\xff").expect("valid"));
    limits.check(&parts, &Context::new(), start).expect("not a key");
    parts.headers.insert("x-tier", HeaderValue::from_static("gold"));
    limits.check(&parts, &Context::new(), start).expect("the first");
    let error = limits.check(&parts, &Context::new(), start).expect_err("the second");
    assert_eq!(limit(&error).name, "tier");
}

#[test]
fn the_same_user_id_under_two_tenants_is_two_users() {
    let (limits, start) = (Limits::platform(), Clock::now().into_std());
    let of = |tenant: &str| {
        let context = context("b", "1");
        context.tenant.set(TenantId::new(tenant).expect("valid")).expect("empty");
        limits.check(&parts(), &context, start)
    };
    assert!(of("a").is_ok() && of("b").is_ok() && check(&limits, "b", "1", start).is_ok());
    assert!(of("a").is_err() && of("b").is_err() && check(&limits, "b", "1", start).is_err());
}

#[test]
fn a_level_takes_the_place_of_the_one_with_its_name() {
    let (limits, start) = (Limits::platform(), Clock::now().into_std());
    let shared = limits.clone();
    let limits = limits.level(Level::per_user("user", Rate::per_second(n(2))));
    check(&limits, "b", "u", start).expect("one");
    check(&limits, "b", "u", start).expect("two");
    assert_eq!(limit(&check(&limits, "b", "u", start).expect_err("three")).quota, 2);

    check(&shared, "b", "u", start).expect("a clone made before keeps the level that was there");
    for user in 3..50 {
        check(&limits, "b", &user.to_string(), start).expect("of the 50 for all");
    }
    let error = check(&shared, "b", "51", start).expect_err("and shares the others");
    assert_eq!(limit(&error).name, "app");
}

#[test]
fn a_request_before_the_first_one_is_harmless() {
    let (limits, start) = (Limits::outbound(n(2)), Clock::now().into_std());
    let later = start + Duration::from_secs(10);
    assert!(check(&limits, "", "", later).is_ok());
    assert!(check(&limits, "", "", start).is_ok());
    assert!(check(&limits, "", "", start).is_err(), "the quota does not come back with the time");
    assert!(check(&limits, "", "", later + Duration::from_secs(1)).is_ok());
}

#[test]
fn who_read_the_clock_before_one_that_came_first_waits_no_longer_than_the_rate_says() {
    let (limits, start) = (Limits::platform(), Clock::now().into_std());
    check(&limits, "b", "u", start + 5 * MS).expect("admitted");
    let error = check(&limits, "b", "u", start).expect_err("the same user");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
    check(&limits, "b", "u", start + 1005 * MS).expect("admitted");
}

/// The promise, spelled out over lists of what was admitted.
#[derive(Default)]
struct Model {
    app: Vec<u128>,
    bots: [u32; 3],
    users: [Vec<u128>; 4],
}

/// Nanoseconds until a rate allows one more: the first time, of all at which something changes, that breaks no promise.
fn wait(admitted: &[u128], per_second: u32, burst: u32, now: u128) -> u128 {
    const SECOND: u128 = 1_000_000_000;
    let (rate, slice) = (u128::from(per_second), SECOND / 10);
    let in_window = |at: u128| admitted.iter().filter(|then| *then / slice + 10 > at / slice).count();
    let since = |first: usize| (admitted.len() - first + 1) as u128;
    let in_bucket = |at: u128| {
        (0..admitted.len()).all(|i| since(i) * SECOND <= u128::from(burst) * SECOND + (at - admitted[i]) * rate)
    };
    let slices = admitted.iter().map(|then| (then / slice + 10) * slice);
    let drops =
        (0..admitted.len()).map(|i| admitted[i] + (since(i).saturating_sub(u128::from(burst)) * SECOND).div_ceil(rate));
    slices
        .chain(drops)
        .chain([now])
        .filter(|at| *at >= now && in_window(*at) < per_second as usize && in_bucket(*at))
        .min()
        .expect("in the end there is room")
        - now
}

#[derive(Clone, Debug)]
enum Step {
    Ask { after_us: u64, bot: usize, user: usize },
    End { request: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let after_us = prop_oneof![Just(0), 0_u64..5_000, 0_u64..400_000];
    let ask = (after_us, 0_usize..3, 0_usize..4).prop_map(|(after_us, bot, user)| Step::Ask { after_us, bot, user });
    prop::collection::vec(prop_oneof![4 => ask, 1 => any::<usize>().prop_map(|request| Step::End { request })], 1..150)
}

proptest! {
    #[test]
    fn a_decision_is_that_of_a_model_which_asks_every_level_first(
        app in 1_u32..12, app_burst in 1_u32..24, bot in 1_u32..4, user in 1_u32..4, user_burst in 1_u32..4, steps in steps(),
    ) {
        let limits = Limits::new()
            .level(Level::global("app", Rate::per_second(n(app)).burst(n(app_burst))))
            .level(Level::per_bot("bot", Quota::Concurrency(n(bot))))
            .level(Level::per_user("user", Rate::per_second(n(user)).burst(n(user_burst))));
        let (mut model, mut held, start, mut elapsed) =
            (Model::default(), Vec::new(), Clock::now().into_std(), Duration::ZERO);
        check(&limits, "first", "first", start).expect("admitted");
        model.app.push(0);
        for step in steps {
            let (after_us, b, u) = match step {
                Step::Ask { after_us, bot, user } => (after_us, bot, user),
                Step::End { request } => {
                    if let Some(ended) = request.checked_rem(held.len()) {
                        let (_, b): (Permit, usize) = held.swap_remove(ended);
                        model.bots[b] -= 1;
                    }
                    continue;
                }
            };
            elapsed += Duration::from_micros(after_us);
            let now = elapsed.as_nanos();
            let waits = [
                ("app", wait(&model.app, app, app_burst, now)),
                ("bot", if model.bots[b] < bot { 0 } else { 1_000_000_000 }),
                ("user", wait(&model.users[u], user, user_burst, now)),
            ];
            let longest = waits.iter().rev().max_by_key(|(_, wait)| *wait).expect("three");
            match check(&limits, &b.to_string(), &u.to_string(), start + elapsed) {
                Ok(permit) => {
                    prop_assert_eq!(longest.1, 0, "admitted, although {:?}", waits);
                    held.push((permit, b));
                    model.bots[b] += 1;
                    model.app.push(now);
                    model.users[u].push(now);
                }
                Err(error) => {
                    let wait = error.retry_after().expect("a time").as_nanos();
                    prop_assert_eq!((limit(&error).name, wait), *longest);
                    prop_assert!(wait > 0);
                }
            }
        }
    }

    #[test]
    fn a_retry_is_admitted_when_promised_and_not_before(
        app in 1_u32..2000, app_burst in 1_u32..20, user in 1_u32..20, user_burst in 1_u32..20,
        steps_us in prop::collection::vec(prop_oneof![Just(0), 0_u64..1_000, 0_u64..300_000], 1..60), earlier in 0_u32..100,
    ) {
        let limits = Limits::new()
            .level(Level::global("app", Rate::per_second(n(app)).burst(n(app_burst))))
            .level(Level::per_user("user", Rate::per_second(n(user)).burst(n(user_burst))));
        let mut now = Clock::now().into_std();
        for after_us in steps_us {
            now += Duration::from_micros(after_us);
            let Err(error) = check(&limits, "b", "u", now) else { continue };
            let wait = error.retry_after().expect("a time");
            prop_assert!(limit(&error).reset >= wait);
            // A refusal leaves no trace, so asking too early changes nothing.
            for early in [NS, wait.mul_f64(f64::from(earlier) / 100.0), 100 * MS, wait] {
                let early = wait.saturating_sub(early.max(NS));
                prop_assert!(check(&limits, "b", "u", now + early).is_err(), "{:?} of {:?}", early, wait);
            }
            now += wait;
            prop_assert!(check(&limits, "b", "u", now).is_ok(), "after {:?}", wait);
        }
    }
}

#[test]
fn threads_together_get_exactly_the_limit_and_refusals_take_nothing() {
    let limits = Limits::new()
        .level(Level::global("app", Rate::per_second(n(500))))
        .level(Level::per_bot("bot", Rate::per_second(n(50))))
        .level(Level::per_user("user", Rate::per_second(n(1))));
    let start = Clock::now().into_std();
    // 8 threads ask for the same 20 bots with 30 users each, in different orders: 600 users and 1000 by bots, but 500 for all.
    let ask_all = |limits: &Limits| -> usize {
        let ask = |thread: usize, i: usize| {
            let pair = (i * [1, 7, 11, 13, 17, 19, 23, 29][thread] + thread) % 600;
            check(limits, &(pair % 20).to_string(), &pair.to_string(), start).is_ok()
        };
        thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|t| scope.spawn(move || (0..600).filter(|i| ask(t, *i)).count())).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        })
    };
    assert_eq!(ask_all(&limits), 500);
    // Where a refusal took something from another level, fewer than the limit would be left for the rest.
    let limits = limits.level(Level::global("app", Rate::per_second(n(600))));
    assert_eq!(ask_all(&limits), 100, "the 100 users who were refused for the sake of app alone");
}

#[test]
fn threads_never_have_more_at_once_than_the_limit_and_give_everything_back() {
    let limits = Limits::new()
        .level(Level::global("all", Quota::Concurrency(n(5))))
        .level(Level::per_bot("bot", Quota::Concurrency(n(3))));
    let start = Clock::now().into_std();
    let (inside, admitted) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for thread in 0..8_u32 {
            let (limits, inside, admitted) = (&limits, &inside, &admitted);
            scope.spawn(move || {
                for i in 0..5_000_u32 {
                    let now = start + Duration::from_nanos(u64::from(i * 7 % 100));
                    let Ok(permit) = check(limits, &((thread + i) % 3).to_string(), "u", now) else { continue };
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 5);
                    admitted.fetch_add(1, Ordering::SeqCst);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
            });
        }
    });
    assert!(admitted.load(Ordering::SeqCst) > 0);
    let held: Vec<_> = ["0", "0", "0", "1", "1"].map(|bot| check(&limits, bot, "u", start)).into();
    assert!(held.iter().all(Result::is_ok), "nothing was left behind");
    assert!(check(&limits, "2", "u", start).is_err());
}

#[test]
fn threads_with_clocks_apart_get_no_more_than_the_last_clock_allows() {
    let limits = Limits::outbound(n(100));
    let start = Clock::now().into_std();
    check(&limits, "", "", start).expect("admitted");
    let admitted: usize = thread::scope(|scope| {
        let limits = &limits;
        let threads: Vec<_> = (0..4_u64)
            .map(|t| {
                let at = move |i: u64| start + Duration::from_micros(i * 1_000 + t * 50_000);
                scope.spawn(move || (0..2_000).filter(|i| check(limits, "", "", at(*i)).is_ok()).count())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    // The last clock shows 2.149 s: 22 slices, so three windows have begun.
    assert!((200..300).contains(&admitted), "{admitted}");
}
