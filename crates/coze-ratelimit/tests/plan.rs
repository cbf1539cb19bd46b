//! What levels allow to whom: plans, costs, classes, and levels that only report.

use std::{
    borrow::Cow,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use coze_core::{BotId, Context, Error, Kind, Retry, TenantId, UserId};
use coze_ratelimit::{Class, Level, Limits, Permit, Plan, Proxies, Quota, Rate};
use http::{HeaderValue, Request, request::Parts};
use proptest::prelude::*;
use tokio::time::Instant as Clock;

const SECOND: Duration = Duration::from_secs(1);

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

fn rate(per_second: u32) -> Rate {
    Rate::per_second(n(per_second))
}

fn start() -> Instant {
    Clock::now().into_std()
}

fn context(tenant: &str, bot: &str, user: &str) -> Context {
    let context = Context::new();
    context.tenant.set(TenantId::new(tenant).expect("valid")).expect("empty");
    context.bot.set(BotId::new(bot).expect("valid")).expect("empty");
    context.user.set(UserId::new(user).expect("valid")).expect("empty");
    context
}

/// A request of this cost and class, as two headers say it.
fn parts(cost: u32, class: &'static str) -> Parts {
    let request = Request::get("/v3/chat").header("x-cost", cost).header("x-class", class);
    request.body(()).expect("valid").into_parts().0
}

fn cost(parts: &Parts, _: &Context) -> u32 {
    parts.headers["x-cost"].to_str().expect("text").parse().expect("a number")
}

fn class(parts: &Parts, _: &Context) -> Class {
    match parts.headers["x-class"].as_bytes() {
        b"low" => Class::Low,
        b"high" => Class::High,
        _ => Class::Normal,
    }
}

fn check(limits: &Limits, context: &Context, now: Instant) -> Result<Permit, Error> {
    limits.check(&parts(1, ""), context, now)
}

/// How many requests go through at once, one after the other.
fn admitted(limits: &Limits, context: &Context, now: Instant) -> usize {
    (0..1000).filter(|_| check(limits, context, now).is_ok()).count()
}

fn path(parts: &Parts, _: &Context) -> Option<Cow<'static, str>> {
    Some(parts.uri.path().to_owned().into())
}

#[test]
fn what_is_said_of_a_key_counts_before_its_bot_before_its_tenant_before_all() {
    let limits = Limits::new().level(Level::per_user("user", rate(1))).level(Level::per_key(
        "route",
        rate(200),
        |parts, context| path(parts, context),
    ));
    let plan = Plan::new()
        .all("user", rate(2))
        .tenant("user", TenantId::new("acme").expect("valid"), rate(3))
        .bot("user", BotId::new("vip").expect("valid"), rate(4))
        .key("user", "boss", rate(5))
        .key("route", "/v3/chat", rate(100));
    let now = start();
    assert_eq!(admitted(&limits, &context("t", "b", "before"), now), 1);
    let shared = limits.clone();
    shared.set_plan(plan).expect("valid");
    for (tenant, bot, user, expected) in
        [("t", "b", "u", 2), ("acme", "b", "u", 3), ("acme", "vip", "v", 4), ("acme", "vip", "boss", 5)]
    {
        assert_eq!(admitted(&limits, &context(tenant, bot, user), now), expected, "{tenant} {bot} {user}");
    }
    let users = (0..200).filter(|user| check(&limits, &context("t", "b", &user.to_string()), now).is_ok());
    assert_eq!(users.count(), 100 - 1 - 2 - 3 - 4 - 5, "and all together what the route has");
    limits.set_plan(Plan::new()).expect("valid");
    assert_eq!(admitted(&shared, &context("t", "b", "after"), now), 1, "as the level has it");
}

#[test]
fn a_plan_that_changes_keeps_what_is_used() {
    let limits =
        Limits::new().level(Level::per_user("user", rate(10))).level(Level::per_bot("bot", Quota::Concurrency(n(3))));
    let (who, now) = (context("t", "b", "u"), start());
    let held: Vec<_> = (0..3).map(|_| check(&limits, &who, now).expect("admitted")).collect();
    let at_once = |limit| Plan::new().all("bot", Quota::Concurrency(n(limit)));
    limits.set_plan(at_once(5)).expect("valid");
    let more: Vec<_> = (0..2).map(|_| check(&limits, &who, now).expect("the difference")).collect();
    assert!(check(&limits, &who, now).is_err());
    limits.set_plan(at_once(1)).expect("valid");
    drop(more);
    assert!(check(&limits, &who, now).is_err(), "three are still under way");
    drop(held);
    let _one = check(&limits, &who, now).expect("the only one");

    // Six of ten are used. With five a second there is none, and in the next second there are five.
    limits.set_plan(Plan::new().all("user", rate(5)).all("bot", Quota::Concurrency(n(50)))).expect("valid");
    assert!(check(&limits, &who, now).is_err());
    assert_eq!(admitted(&limits, &who, now + SECOND), 5);
    limits.set_plan(Plan::new().all("user", rate(20)).all("bot", Quota::Concurrency(n(50)))).expect("valid");
    assert_eq!(admitted(&limits, &who, now + SECOND), 15);
}

#[test]
fn a_key_with_a_low_quota_is_not_forgotten_because_one_with_a_high_quota_would_be_idle() {
    let level = || Level::per_user("tokens", Rate::per_minute(n(1000))).max_keys(1);
    let tenant = TenantId::new("slow").expect("valid");
    let plan = Plan::new().tenant("tokens", tenant, Rate::per_minute(n(10)));
    let (slow, other, now) = (context("slow", "b", "u"), context("t", "b", "v"), start());
    let planned = Limits::new().level(level());
    planned.set_plan(plan).expect("valid");
    // Also a level that takes the place of the one that the plan was made for.
    for limits in [planned.clone(), planned.level(level())] {
        assert_eq!(admitted(&limits, &slow, now), 10);
        let later = now + 2 * SECOND;
        assert!(check(&limits, &other, later).is_ok());
        assert!(check(&limits, &slow, later).is_err(), "it has used all for a minute");
        assert_eq!(admitted(&limits, &slow, now + 60 * SECOND), 10);
    }
}

#[test]
fn a_plan_that_a_level_cannot_keep_changes_nothing() {
    let limits = Limits::new().level(Level::per_user("user", rate(1)));
    for plan in [
        Plan::new().all("users", rate(2)),
        Plan::new().all("user", Quota::Concurrency(n(2))),
        Plan::new().all("user", rate(2)).key("user", "u", rate(256)),
    ] {
        let error = limits.set_plan(plan).expect_err("invalid");
        assert_eq!((error.kind(), error.reason()), (Kind::Invalid, "plan_invalid"));
    }
    assert_eq!(admitted(&limits, &context("t", "b", "u"), start()), 1);
    let limits = Limits::new().level(Level::per_user("user", rate(1)).up_to(rate(1000)));
    limits.set_plan(Plan::new().all("user", rate(300))).expect("valid");
    assert_eq!(admitted(&limits, &context("t", "b", "u"), start()), 300);
}

#[test]
fn a_request_that_costs_more_takes_more_and_one_that_costs_nothing_is_not_limited() {
    let limits = Limits::new().level(Level::global("all", rate(10)).cost(cost));
    let (who, now) = (context("t", "b", "u"), start());
    let ask = |cost, now| limits.check(&parts(cost, ""), &who, now);
    assert!(ask(7, now).is_ok() && ask(4, now).is_err() && ask(3, now).is_ok() && ask(0, now).is_ok());
    let error = ask(1, now).expect_err("nothing is left");
    assert_eq!((error.reason(), error.retry_after()), ("rate_limited", Some(SECOND)));
    let error = ask(11, now + 100 * SECOND).expect_err("never");
    assert_eq!((error.kind(), error.reason(), error.retry()), (Kind::Quota, "cost_above_quota", Retry::Never));
    assert_eq!((error.retry_after(), error.limit()), (None, None));
}

#[test]
fn what_matters_less_is_refused_first() {
    let requests = |class: &'static str, limits: &Limits, now| {
        let who = context("t", "b", "u");
        (0..100).map_while(|_| limits.check(&parts(1, class), &who, now).ok()).collect::<Vec<_>>()
    };
    for quota in [Quota::from(rate(20)), Quota::Concurrency(n(20))] {
        let (limits, now) = (Limits::new().level(Level::global("all", quota).shed(class)), start());
        let held = ["low", "normal", "low", "high"].map(|class| requests(class, &limits, now));
        assert_eq!(held.each_ref().map(Vec::len), [10, 8, 0, 2]);
    }
    let (limits, now) = (Limits::new().level(Level::global("all", rate(1)).shed(class)), start());
    assert_eq!(requests("low", &limits, now).len(), 1, "of one there is no last part");
}

#[test]
fn a_level_that_reports_refuses_nothing_and_says_so() {
    let limits =
        Limits::new().level(Level::per_user("strict", rate(3))).level(Level::per_user("new", rate(1)).report_only());
    let now = start();
    let noted = |_| {
        let who = context("t", "b", "u");
        (check(&limits, &who, now).is_ok(), who.limit.get().copied())
    };
    assert_eq!([(); 4].map(noted), [(true, None), (true, Some("new")), (true, Some("new")), (false, None)]);
    assert_eq!(limits.reported(), 2, "what was refused anyway is not reported");
}

#[test]
fn forged_forwarding_headers_give_no_second_quota() {
    // tower_governor takes the leftmost address, which is the caller's to choose: https://github.com/adorsys/status-list-server/issues/262.
    let proxies = Proxies::new(["10.0.0.0/8"]).expect("valid");
    let level = Level::per_key("client", rate(5), move |parts: &Parts, _: &Context| {
        Some(proxies.key(&parts.headers, [10, 0, 0, 1].into()))
    });
    let (limits, now) = (Limits::new().level(level), start());
    let through = (0..100_u32).filter(|request| {
        let mut parts = parts(1, "");
        let forged = format!("192.0.2.{request}, 10.0.0.{request}, 198.51.100.7");
        parts.headers.insert("x-forwarded-for", HeaderValue::from_str(&forged).expect("valid"));
        limits.check(&parts, &Context::new(), now).is_ok()
    });
    assert_eq!(through.count(), 5);
}

proptest! {
    /// All or nothing, with costs: a refused request takes nothing of any level.
    #[test]
    fn costs_are_taken_from_all_levels_or_from_none(
        all in 1_u32..30, user in 1_u32..20, costs in prop::collection::vec((0_u32..10, 0_usize..3, any::<bool>()), 1..60),
    ) {
        let limits = Limits::new()
            .level(Level::global("all", rate(all)).cost(cost))
            .level(Level::per_user("user", rate(user)).cost(cost));
        let (mut now, mut of_all, mut of_user) = (start(), 0, [0; 3]);
        limits.check(&parts(0, ""), &Context::new(), now).expect("free");
        for (cost, who, is_later) in costs {
            if is_later {
                (now, of_all, of_user) = (now + SECOND, 0, [0; 3]);
            }
            let fits = of_all + cost <= all && of_user[who] + cost <= user || cost == 0;
            let outcome = limits.check(&parts(cost, ""), &context("t", "b", &who.to_string()), now);
            prop_assert_eq!(outcome.is_ok(), fits);
            if fits {
                of_all += cost;
                of_user[who] += cost;
            }
        }
    }
}
