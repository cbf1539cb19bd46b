//! Costs that are known only when a request has ended, the clock paused.

use std::{
    num::NonZeroU32,
    pin::Pin,
    task::{Context as Task, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use coze_core::{BoxError, Context, Error, UserId};
use coze_ratelimit::{Level, Limits, Permit, Policy, Quota, Rate, RateLimitLayer};
use http::{Request, Response, request::Parts};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::time::{self, Instant as Clock};
use tower::{Layer, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

fn now() -> Instant {
    Clock::now().into_std()
}

/// A request that says how much it will cost.
fn parts(estimate: u32) -> Parts {
    Request::get("/").header("x-estimate", estimate).body(()).expect("valid").into_parts().0
}

fn estimate(parts: &Parts, _: &Context) -> u32 {
    parts.headers["x-estimate"].to_str().expect("text").parse().expect("a number")
}

fn context(user: &str) -> Context {
    let context = Context::new();
    context.user.set(UserId::new(user).expect("valid")).expect("empty");
    context
}

/// So many tokens per minute for each user.
fn tokens(per_minute: u32) -> Level {
    Level::per_user("tokens", Rate::per_minute(n(per_minute))).cost(estimate).settle()
}

fn ask(limits: &Limits, user: &str, estimate: u32) -> Result<Permit, Error> {
    limits.check(&parts(estimate), &context(user), now())
}

/// How much there is for a user, in steps of 1.
fn left(limits: &Limits, user: &str) -> u32 {
    let most = (1..=1000).rev().find(|cost| ask(limits, user, *cost).is_ok());
    most.unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_a_minute_takes_single_requests_of_thousands() {
    let limits = Limits::new().level(tokens(100_000));
    let held: Vec<_> = (0..3).map(|_| ask(&limits, "u", 30_000).expect("there is enough")).collect();
    let error = ask(&limits, "u", 30_000).expect_err("only 10 000 are left");
    assert_eq!(error.message(), "the limit \"tokens\" allows 100000 requests per 60s");
    assert_eq!(error.retry_after(), Some(12 * SECOND), "20 000 of 100 000 per minute");
    let limit = error.limit().expect("its limit");
    assert_eq!((limit.quota, limit.window, limit.reset), (100_000, 60 * SECOND, 54 * SECOND));
    assert_eq!(ask(&limits, "u", 100_001).expect_err("never").reason(), "cost_above_quota");
    time::advance(12 * SECOND).await;
    held.into_iter().for_each(Limits::completed);
    assert!(
        ask(&limits, "u", 30_000).is_ok() && ask(&limits, "u", 30_000).is_ok(),
        "a request that is dropped took nothing"
    );
}

/// What becomes of an estimate of 10 of 100.
async fn after(end: impl AsyncFnOnce(Context, Permit)) -> u32 {
    let limits = Limits::new().level(tokens(100));
    let context = context("u");
    let permit = limits.check(&parts(10), &context, now()).expect("admitted");
    assert_eq!(left(&limits, "u"), 90);
    end(context, permit).await;
    left(&limits, "u")
}

#[tokio::test(start_paused = true)]
async fn what_was_noted_counts_however_the_request_ended_else_the_estimate_or_nothing() {
    let note = |context: &Context, cost| context.cost.set(cost).expect("empty");
    assert_eq!(after(async |_, permit| Limits::completed(permit)).await, 90, "complete, nothing noted");
    assert_eq!(after(async |_, permit| drop(permit)).await, 100, "dropped, nothing noted");
    for (cost, left) in [(0, 100), (4, 96), (10, 90), (25, 75), (100, 0), (250, 0)] {
        let complete = async |context, permit| {
            note(&context, cost);
            Limits::completed(permit);
        };
        assert_eq!(after(complete).await, left, "{cost} noted, complete");
        let dropped = async |context, permit| {
            note(&context, cost);
            drop(permit);
        };
        assert_eq!(after(dropped).await, left, "{cost} noted, dropped");
    }
    let late = async |context, permit| {
        Limits::completed(permit);
        note(&context, 4);
    };
    assert_eq!(after(late).await, 90, "noted too late");
    let drained = async |_, permit| {
        time::advance(60 * SECOND).await;
        drop(permit);
    };
    assert_eq!(after(drained).await, 100, "nobody gets more back than there is room for");
}

#[tokio::test(start_paused = true)]
async fn what_has_drained_gives_nobody_back_what_others_used_since() {
    let limits = Limits::new().level(tokens(100));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(ask(&limits, "u", 100).expect("a full minute later"));
        time::advance(60 * SECOND).await;
    }
    held.push(ask(&limits, "u", 100).expect("a full minute later"));
    let newest = held.pop();
    drop(held);
    assert_eq!(left(&limits, "u"), 0, "they had drained before");
    time::advance(45 * SECOND).await;
    assert_eq!(left(&limits, "u"), 75);
    assert!(ask(&limits, "u", 75).map(Limits::completed).is_ok());
    drop(newest);
    assert_eq!(left(&limits, "u"), 25, "as much of it as was left");
}

#[tokio::test(start_paused = true)]
async fn a_debt_is_waited_for_and_has_a_bound() {
    let limits = Limits::new().level(tokens(60));
    let owe = |cost| {
        let context = context("u");
        let permit = limits.check(&parts(1), &context, now()).expect("admitted");
        context.cost.set(cost).expect("empty");
        Limits::completed(permit);
        ask(&limits, "u", 1).expect_err("a debt").retry_after().expect("a time")
    };
    let wait = owe(80);
    assert_eq!(wait, 21 * SECOND, "80 of 60 are used, at one a second");
    time::advance(wait - Duration::from_millis(1)).await;
    assert!(ask(&limits, "u", 1).is_err());
    time::advance(Duration::from_millis(1)).await;
    assert!(ask(&limits, "u", 1).is_ok());
    assert_eq!(owe(u32::MAX), 3601 * SECOND, "an hour's worth");
    assert_eq!(left(&limits, "somebody else"), 60);
}

#[tokio::test(start_paused = true)]
async fn a_key_in_the_sketch_gets_nothing_back_and_owes_no_more_than_its_quota() {
    let limits = Limits::new().level(tokens(100).max_keys(1));
    let _known = ask(&limits, "known", 100).expect("admitted");
    drop(ask(&limits, "u", 70).expect("admitted"));
    assert_eq!(ask(&limits, "u", 31).expect_err("as if it had ended well").reason(), "rate_limited");
    let context = context("u");
    let permit = limits.check(&parts(30), &context, now()).expect("admitted");
    context.cost.set(10_000).expect("empty");
    Limits::completed(permit);
    time::advance(60 * SECOND).await;
    assert!(ask(&limits, "u", 100).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_level_that_only_reports_and_one_of_requests_at_once_settle_nothing() {
    let at_once = Level::global("at once", Quota::Concurrency(n(2))).settle();
    let limits = Limits::new().level(at_once).level(tokens(10).report_only());
    let context = context("u");
    let held = limits.check(&parts(10), &context, now()).expect("admitted");
    let reported = limits.check(&parts(10), &context, now()).expect("only reported");
    assert_eq!(ask(&limits, "u", 10).expect_err("two at once").reason(), "concurrency_limited");
    drop(reported);
    let _reported = ask(&limits, "u", 10).expect("only reported");
    context.cost.set(50).expect("empty");
    drop(held);
    assert!(ask(&limits, "u", 1).is_ok(), "one place is free again, not fifty");
    assert_eq!(limits.reported(), 3);
}

/// A stream of two frames; whoever makes the second one knows the cost.
struct Stream(Context, u32);

impl Body for Stream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.1 += 1;
        if self.1 == 2 {
            self.0.cost.set(25).expect("empty");
        }
        Poll::Ready((self.1 <= 2).then(|| Ok(Frame::data(Bytes::from_static(b"a token")))))
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_stream_settles_what_its_handler_noted() {
    let limits = Limits::new().level(tokens(100));
    let handler = service_fn(async |mut request: Request<()>| {
        let context = Context::of(request.extensions_mut());
        match request.uri().path() {
            "/broken" => Err(BoxError::from("broken")),
            _ => Ok(Response::new(Stream(context, 0))),
        }
    });
    let service = RateLimitLayer::new(limits.clone()).layer(handler);
    let request = |path| {
        let mut request = Request::get(path).header("x-estimate", 10).body(()).expect("valid");
        request.extensions_mut().insert(context("u"));
        request
    };
    let body = service.clone().oneshot(request("/")).await.expect("admitted").into_body();
    assert_eq!(left(&limits, "u"), 90);
    body.collect().await.expect("read");
    assert_eq!(left(&limits, "u"), 75);

    let mut body = service.clone().oneshot(request("/")).await.expect("admitted").into_body();
    body.frame().await.expect("a frame").expect("data");
    assert_eq!(left(&limits, "u"), 65);
    drop(body);
    assert_eq!(left(&limits, "u"), 75, "whoever goes before the cost is known has it for nothing");

    assert_eq!(service.oneshot(request("/broken")).await.map(drop).expect_err("broken").to_string(), "broken");
    assert_eq!(left(&limits, "u"), 75);
}

/// So many requests, burst, in so many nanoseconds.
type Budget = (u32, u32, u128);

/// What is booked of one key, and the promise over it, spelled out: when, and how much.
#[derive(Default)]
struct Model {
    /// In units of the bucket, of which a request is as many as a period has nanoseconds.
    booked: Vec<(u128, i128)>,
    /// What counts in the window: what was given back counts no more.
    counted: Vec<(u128, i128)>,
}

impl Model {
    fn book(&mut self, (.., period): Budget, cost: i128, now: u128) {
        self.booked.push((now, cost * i128::try_from(period).expect("short")));
    }

    /// Gives back of what was taken, no more than is left of a full bucket of then.
    fn give_back(&mut self, (requests, burst, period): Budget, cost: i128, then: u128, now: u128) {
        let [full, drained] = [u128::from(burst) * period, u128::from(requests) * (now - then)];
        let left = i128::try_from(full.saturating_sub(drained)).expect("short");
        self.booked.push((now, -left.min(cost * i128::try_from(period).expect("short"))));
    }

    /// Whether a cost fits: no stretch of time that ends now has more booked than there is.
    fn fits(&self, (requests, burst, period): Budget, cost: u32, now: u128) -> bool {
        let in_bucket = (0..=self.booked.len()).all(|first| {
            let booked: i128 = self.booked[first..].iter().map(|(_, cost)| cost).sum();
            let since = self.booked.get(first).map_or(now, |(at, _)| *at);
            let drained = i128::from(requests) * i128::try_from(now - since).expect("short");
            booked + (i128::from(cost) - i128::from(burst)) * i128::try_from(period).expect("short") <= drained
        });
        let slice = 100_000_000;
        let live = self.counted.iter().filter(|(at, _)| at / slice + 10 > now / slice);
        let used: i128 = live.map(|(_, cost)| cost).sum();
        in_bucket && (period > 1_000_000_000 || used + i128::from(cost) <= requests.into())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask { after_ms: u64, estimate: u32 },
    End { after_ms: u64, request: usize, noted: Option<u32>, is_complete: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let after_ms = || prop_oneof![Just(0), 0_u64..50, 0_u64..1500, 0_u64..20_000];
    let ask = (after_ms(), 1_u32..25).prop_map(|(after_ms, estimate)| Step::Ask { after_ms, estimate });
    let end = (after_ms(), any::<usize>(), prop::option::of(0_u32..40), any::<bool>())
        .prop_map(|(after_ms, request, noted, is_complete)| Step::End { after_ms, request, noted, is_complete });
    prop::collection::vec(prop_oneof![ask, end], 1..120)
}

proptest! {
    #[test]
    fn what_is_booked_keeps_to_the_quota_and_everything_that_fits_is_admitted(
        second in 25_u32..60, second_burst in 25_u32..120, minute in 25_u32..200, minute_burst in 25_u32..200, steps in steps(),
    ) {
        let quotas = [(second, second_burst, 1_000_000_000), (minute, minute_burst, 60_000_000_000)];
        let limits = Limits::new()
            .level(Level::global("second", Rate::per_second(n(second)).burst(n(second_burst))).cost(estimate).settle())
            .level(Level::per_user("tokens", Rate::per_minute(n(minute)).burst(n(minute_burst))).cost(estimate).settle());
        let clock = paused();
        clock.block_on(async {
            let (mut models, mut held, start) = ([Model::default(), Model::default()], Vec::new(), Clock::now());
            drop(ask(&limits, "first", 1).expect("admitted"));
            for step in steps {
                let (Step::Ask { after_ms, .. } | Step::End { after_ms, .. }) = step;
                time::advance(Duration::from_millis(after_ms)).await;
                let now = start.elapsed().as_nanos();
                match step {
                    Step::Ask { estimate, .. } => {
                        let fits = models.iter().zip(quotas).all(|(model, quota)| model.fits(quota, estimate, now));
                        let context = context("u");
                        let outcome = limits.check(&parts(estimate), &context, self::now());
                        prop_assert_eq!(outcome.is_ok(), fits, "{} at {} ns", estimate, now);
                        match outcome {
                            Ok(permit) => {
                                let mut places = [0; 2];
                                for ((model, quota), place) in models.iter_mut().zip(quotas).zip(&mut places) {
                                    model.book(quota, estimate.into(), now);
                                    *place = model.counted.len();
                                    model.counted.push((now, estimate.into()));
                                }
                                held.push((permit, context, estimate, now, places));
                            }
                            Err(error) => {
                                let then = now + error.retry_after().expect("a time").as_nanos();
                                let fits = |at| models.iter().zip(quotas).all(|(model, quota)| model.fits(quota, estimate, at));
                                prop_assert!(fits(then) && !fits(then - 1));
                            }
                        }
                    }
                    Step::End { request, noted, is_complete, .. } => {
                        let Some(ended) = request.checked_rem(held.len()) else { continue };
                        let (permit, context, estimate, then, places) = held.swap_remove(ended);
                        let cost = noted.unwrap_or(if is_complete { estimate } else { 0 });
                        noted.into_iter().for_each(|cost| context.cost.set(cost).expect("empty"));
                        if is_complete { Limits::completed(permit) } else { drop(permit) }
                        let difference = i128::from(cost) - i128::from(estimate);
                        for ((model, quota), place) in models.iter_mut().zip(quotas).zip(places) {
                            if difference < 0 {
                                model.give_back(quota, -difference, then, now);
                                model.counted[place].1 += difference;
                            } else {
                                model.book(quota, difference, now);
                                model.counted.push((now, difference));
                            }
                        }
                    }
                }
            }
            Ok(())
        })?;
    }
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}
