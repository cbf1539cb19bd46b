//! The pace of calls through the layer, over a platform that counts, the clock paused.

use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use coze_core::{BotId, Context, Error, Kind, Platform};
use coze_ratelimit::{Benefits, Pace, PaceLevel, PaceRate, PlatformPlan, RateLimitLayer};
use http::{Request, Response};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower::{Layer, ServiceExt, service_fn};

const CHAT: &str = "/v3/chat";

fn per_second(calls: u32) -> PaceRate {
    PaceRate::per_second(NonZeroU32::new(calls).expect("not zero"))
}

/// A platform that refuses more than so many calls in a second, counted in windows as its own limiter does.
#[derive(Clone, Debug)]
struct Counting {
    allowed: Arc<AtomicU16>,
    seen: Arc<Mutex<Seen>>,
    code: i64,
    kind: Kind,
    retry_after: Option<Duration>,
}

#[derive(Debug, Default)]
struct Seen {
    window: Option<(Instant, u16)>,
    times: Vec<Instant>,
    refused: usize,
}

impl Counting {
    fn new(allowed: u16) -> Self {
        let seen = Arc::default();
        Self { allowed: Arc::new(allowed.into()), seen, code: 4009, kind: Kind::Overloaded, retry_after: None }
    }

    fn answer(&self) -> Result<Response<String>, Error> {
        let mut seen = self.seen.lock().expect("no panic");
        let now = Instant::now();
        seen.times.push(now);
        let (start, used) = seen.window.get_or_insert((now, 0));
        if now - *start >= Duration::from_secs(1) {
            (*start, *used) = (now, 0);
        }
        *used += 1;
        if *used <= self.allowed.load(Ordering::SeqCst) {
            return Ok(Response::new(String::from("hi")));
        }
        seen.refused += 1;
        let said = Platform { code: self.code, msg: String::new(), logid: None };
        let error = Error::new(self.kind, "refused").with_platform(said);
        Err(match self.retry_after {
            Some(wait) => error.with_retry_after(wait),
            None => error,
        })
    }

    fn seen(&self) -> (usize, usize) {
        let seen = self.seen.lock().expect("no panic");
        (seen.times.len(), seen.refused)
    }
}

fn request(bot: &str, path: &str) -> Request<()> {
    let mut request = Request::post(path).body(()).expect("valid");
    Context::of(request.extensions_mut()).bot.set(BotId::new(bot).expect("valid")).expect("empty");
    request
}

async fn call(pace: &Pace, platform: &Counting, request: Request<()>) -> Result<(), Error> {
    let platform = platform.clone();
    let service = service_fn(move |_: Request<()>| {
        let platform = platform.clone();
        async move {
            sleep(Duration::from_millis(20)).await;
            platform.answer()
        }
    });
    let answer = RateLimitLayer::new(pace.clone()).layer(service).oneshot(request).await;
    answer.map(drop).map_err(|error| *error.downcast().expect("ours"))
}

/// So many calls at once: how many came through.
async fn many(pace: &Pace, platform: &Counting, bot: &'static str, calls: usize) -> usize {
    let mut all = JoinSet::new();
    for _ in 0..calls {
        let (pace, platform) = (pace.clone(), platform.clone());
        all.spawn(async move { call(&pace, &platform, request(bot, CHAT)).await.is_ok() });
    }
    all.join_all().await.into_iter().filter(|is_ok| *is_ok).count()
}

#[tokio::test(start_paused = true)]
async fn a_paced_client_is_not_refused_where_another_one_is() {
    let platform = Counting::new(20);
    let pace = Pace::platform(PlatformPlan::Free).level(PaceLevel::new("model", None));
    let began = Instant::now();
    assert_eq!(many(&pace, &platform, "b", 100).await, 100);
    assert_eq!(platform.seen(), (100, 0));
    // Eighteen a second.
    let took = began.elapsed().as_secs_f64();
    assert!((5.4..5.7).contains(&took), "{took}");

    let platform = Counting::new(20);
    assert_eq!(many(&Pace::new(), &platform, "b", 100).await, 20);
    assert_eq!(platform.seen(), (100, 80));
}

#[tokio::test(start_paused = true)]
async fn a_burst_may_use_what_a_minute_has_left() {
    let platform = Counting::new(u16::MAX);
    let pace = Pace::new().level(PaceLevel::new("model", PaceRate::per_minute(300.try_into().expect("not zero"))));
    let began = Instant::now();
    assert_eq!(many(&pace, &platform, "b", 27).await, 27);
    assert_eq!(began.elapsed(), Duration::from_millis(20));
    assert_eq!(many(&pace, &platform, "b", 9).await, 9);
    let took = began.elapsed().as_secs_f64();
    assert!((1.8..2.1).contains(&took), "4.5 a second: {took}");
}

#[tokio::test(start_paused = true)]
async fn it_learns_a_limit_that_it_was_not_told_and_notices_when_that_is_gone() {
    let platform = Counting::new(10);
    let pace = Pace::new().level(PaceLevel::new("app", per_second(100)));
    many(&pace, &platform, "b", 300).await;
    let refused = platform.seen().1;
    // One that sends 90 a second is refused most of the time.
    assert!(refused < 100, "{refused} of 300");
    let learned = pace.per_second("app").expect("a level");
    assert!((2.0..30.0).contains(&learned), "{learned}");
    platform.allowed.store(u16::MAX, Ordering::SeqCst);
    many(&pace, &platform, "b", 50).await;
    sleep(Duration::from_secs(60)).await;
    many(&pace, &platform, "b", 1).await;
    assert!((pace.per_second("app").expect("a level") - 90.0).abs() < 0.01);
    assert_eq!(platform.seen().1, refused);
}

#[tokio::test(start_paused = true)]
async fn retry_after_holds_back_all_that_wait() {
    let platform =
        Counting { retry_after: Some(Duration::from_secs(3)), code: 429, kind: Kind::RateLimited, ..Counting::new(0) };
    let pace = Pace::new().level(PaceLevel::new("app", per_second(1000)));
    let refused = call(&pace, &platform, request("b", CHAT)).await.expect_err("refused");
    assert_eq!(refused.reason(), "refused");
    platform.allowed.store(u16::MAX, Ordering::SeqCst);
    let began = Instant::now();
    assert_eq!(many(&pace, &platform, "b", 5).await, 5);
    let times = platform.seen.lock().expect("no panic").times.clone();
    let waited: Vec<_> = times[1..].iter().map(|time| (*time - began).as_millis()).collect();
    assert!(waited.iter().all(|waited| (3020..3040).contains(waited)), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_slows_down_the_level_it_is_about_and_no_other() {
    let bot = Counting { code: 4020, kind: Kind::RateLimited, ..Counting::new(0) };
    let pace = Pace::platform(PlatformPlan::Team);
    call(&pace, &bot, request("b", CHAT)).await.expect_err("refused");
    let levels = ["chat", "bot", "workflow", "upload", "model"];
    let rates = |pace: &Pace| levels.map(|level| pace.per_second(level).expect("a level").round());
    assert_eq!(rates(&pace), [180.0, 90.0, 180.0, 18.0, 75.0]);
    // The other bot goes on.
    let fine = Counting::new(u16::MAX);
    let began = Instant::now();
    assert_eq!(many(&pace, &fine, "another", 19).await, 19);
    let took = began.elapsed();
    assert!(took < Duration::from_millis(125), "180 a second: {took:?}");

    // What is said of a chat that is looked at is not about looking: whoever began it tells (`Pace::heard`).
    for (code, kind) in [(702_112_103, Kind::RateLimited), (4028, Kind::Quota)] {
        let pace = Pace::platform(PlatformPlan::Team);
        let look = || request("b", "/v3/chat/retrieve");
        call(&pace, &Counting { code, kind, ..Counting::new(0) }, look()).await.expect_err("refused");
        let began = Instant::now();
        call(&pace, &fine, look()).await.expect("at once");
        assert_eq!((rates(&pace)[0], began.elapsed()), (180.0, Duration::from_millis(20)));
    }

    for (code, kind, path, level) in [
        (4009, Kind::Overloaded, CHAT, "chat"),
        (4009, Kind::Overloaded, "/v1/workflow/run", "workflow"),
        (429, Kind::RateLimited, "/v1/files/upload", "upload"),
        (702_112_103, Kind::RateLimited, CHAT, "model"),
    ] {
        let pace = Pace::platform(PlatformPlan::Team);
        let whole = rates(&pace);
        call(&pace, &Counting { code, kind, ..Counting::new(0) }, request("b", path)).await.expect_err("refused");
        let slowed: Vec<_> =
            levels.into_iter().zip(whole).zip(rates(&pace)).filter(|((_, was), is)| was != is).collect();
        assert!(matches!(slowed[..], [((name, _), _)] if name == level), "{code} {path}: {slowed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_is_used_up_refuses_without_asking_until_one_call_finds_out() {
    let platform = Counting { code: 4008, kind: Kind::Quota, ..Counting::new(0) };
    let pace = Pace::platform(PlatformPlan::Team);
    call(&pace, &platform, request("b", CHAT)).await.expect_err("refused");
    let began = Instant::now();
    for _ in 0..10 {
        let refused = call(&pace, &platform, request("b", CHAT)).await.expect_err("not sent");
        assert_eq!((refused.kind(), refused.reason()), (Kind::Quota, "pace_paused"));
        assert!(refused.retry_after().is_some_and(|wait| wait > Duration::from_secs(590)), "{refused:?}");
        assert_eq!(refused.limit().map(|limit| limit.name), Some("bot"));
    }
    assert_eq!((platform.seen().0, began.elapsed()), (1, Duration::ZERO));
    // What runs already is looked at all the same.
    let fine = Counting::new(u16::MAX);
    call(&pace, &fine, request("b", "/v3/chat/retrieve")).await.expect("not a chat that begins");
    sleep(Duration::from_secs(601)).await;
    platform.allowed.store(u16::MAX, Ordering::SeqCst);
    call(&pace, &platform, request("b", CHAT)).await.expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_no_longer_than_it_may() {
    let platform = Counting::new(u16::MAX);
    let pace = Pace::new().level(PaceLevel::new("app", per_second(1))).max_wait(Duration::from_secs(4));
    call(&pace, &platform, request("b", CHAT)).await.expect("at once");
    let began = Instant::now();
    let outcomes = many(&pace, &platform, "b", 10).await;
    assert_eq!(outcomes, 3, "a second and a bit apart");
    let refused = call(&pace, &platform, {
        let request = request("b", CHAT);
        let context = request.extensions().get::<Context>().expect("there");
        context.deadline.set((Instant::now() + Duration::from_millis(500)).into()).expect("empty");
        request
    })
    .await
    .expect_err("its deadline is before its turn");
    assert_eq!((refused.kind(), refused.reason()), (Kind::RateLimited, "pace_too_late"));
    assert!(refused.retry_after().is_some_and(|wait| wait > Duration::from_millis(900)), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(4));
    assert_eq!(platform.seen().0, 4);
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_when_it_gets_slower_is_refused_at_its_latest() {
    let pace = Pace::new().level(PaceLevel::new("app", per_second(1))).max_wait(Duration::from_secs(3));
    let platform =
        Counting { retry_after: Some(Duration::from_secs(100)), kind: Kind::RateLimited, ..Counting::new(0) };
    let began = Instant::now();
    let (first, second) =
        tokio::join!(call(&pace, &platform, request("b", CHAT)), call(&pace, &platform, request("b", CHAT)));
    assert_eq!(first.expect_err("refused").reason(), "refused");
    let second = second.expect_err("too late");
    assert_eq!((second.reason(), began.elapsed()), ("pace_too_late", Duration::from_secs(3)));
    assert!(second.retry_after().is_some_and(|wait| wait > Duration::from_secs(90)), "{second:?}");
    assert_eq!(platform.seen().0, 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_long_does_not_keep_the_others_asleep() {
    let platform = Counting::new(u16::MAX);
    let (bot, app) = (PaceLevel::new("bot", per_second(1)).per_bot(), PaceLevel::new("app", per_second(10)));
    let pace = Pace::new().level(bot).level(app);
    let began = Instant::now();
    let two = many(&pace, &platform, "b", 2);
    let other = async {
        sleep(Duration::from_millis(30)).await;
        call(&pace, &platform, request("another", CHAT)).await.expect("its turn");
        began.elapsed()
    };
    let (two, other) = tokio::join!(two, other);
    assert_eq!(two, 2);
    assert!(other < Duration::from_millis(150), "a ninth of a second after the first: {other:?}");
    assert!(began.elapsed() > Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn calls_that_go_away_while_they_wait_take_nothing() {
    let platform = Counting::new(u16::MAX);
    let pace = Pace::new().level(PaceLevel::new("app", per_second(10))).max_waiting(5);
    call(&pace, &platform, request("b", CHAT)).await.expect("at once");
    for _ in 0..100 {
        let given_up = timeout(Duration::from_nanos(1), call(&pace, &platform, request("b", CHAT)));
        assert!(given_up.await.is_err());
    }
    let began = Instant::now();
    call(&pace, &platform, request("b", CHAT)).await.expect("the next turn is free");
    assert!(began.elapsed() < Duration::from_millis(150), "{:?}", began.elapsed());
    assert_eq!(platform.seen().0, 2);
}

#[tokio::test(start_paused = true)]
async fn as_many_wait_as_may() {
    let platform = Counting::new(u16::MAX);
    let pace = Pace::new().level(PaceLevel::new("app", per_second(10))).max_waiting(5);
    assert_eq!(many(&pace, &platform, "b", 20).await, 6);
    let mut all = JoinSet::new();
    for _ in 0..7 {
        let (pace, platform) = (pace.clone(), platform.clone());
        all.spawn(async move { call(&pace, &platform, request("b", CHAT)).await.map_err(|error| error.reason()) });
    }
    let refused: Vec<_> = all.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty() && refused.iter().all(|reason| *reason == "pace_full"), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn limits_change_while_calls_go() {
    let pace = Pace::platform(PlatformPlan::Free);
    pace.set("chat", Some(per_second(60))).expect("a level");
    pace.set("workflow", None).expect("a level");
    let calls = |level| pace.per_second(level).map(f64::round);
    assert_eq!((calls("chat"), calls("workflow"), calls("plugin")), (Some(54.0), Some(f64::INFINITY), None));
    let unknown = pace.set("plugin", None).expect_err("no such level");
    assert_eq!((unknown.kind(), unknown.reason()), (Kind::Invalid, "pace_invalid"));
}

#[tokio::test(start_paused = true)]
async fn limits_are_taken_over_from_the_platform() {
    let pace = Pace::platform(PlatformPlan::Free);
    let told = [("chat", Some(60)), ("workflow", None), ("plugin", Some(5))];
    let calls_per_second = told.map(|(resource, calls)| (resource.to_owned(), calls)).to_vec();
    pace.learn(&Benefits { plan: Some(PlatformPlan::Team), calls_per_second });
    let levels = ["chat", "bot", "workflow", "upload", "model", "plugin"];
    let calls = levels.map(|level| pace.per_second(level).map(f64::round));
    assert_eq!(calls, [Some(54.0), Some(54.0), Some(f64::INFINITY), Some(18.0), Some(75.0), None]);
}

#[tokio::test(start_paused = true)]
async fn a_new_rate_holds_for_those_that_wait() {
    let platform = Counting::new(u16::MAX);
    let pace = Pace::new().level(PaceLevel::new("app", per_second(1))).max_wait(Duration::from_secs(1000));
    let began = Instant::now();
    let raise = async {
        sleep(Duration::from_secs(2)).await;
        pace.set("app", Some(per_second(1000))).expect("a level");
    };
    let (came, ()) = tokio::join!(many(&pace, &platform, "b", 100), raise);
    assert_eq!(came, 100);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_heard_later_counts_too() {
    let pace = Pace::platform(PlatformPlan::Team);
    let (parts, ()) = request("b", CHAT).into_parts();
    let context = parts.extensions.get::<Context>().expect("there").clone();
    let sent = Instant::now();
    sleep(Duration::from_secs(5)).await;
    let said = Platform { code: 702_112_103, msg: String::new(), logid: None };
    let error = Error::new(Kind::RateLimited, "model_rate_limit").with_platform(said);
    // Two chats that ran at the same time.
    for _ in 0..2 {
        pace.heard(&parts, &context, sent.into(), &error);
    }
    assert_eq!(pace.per_second("model").map(f64::round), Some(37.0));
}

#[test]
fn the_gauge_says_how_fast_calls_go() {
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let pace = Pace::new().level(PaceLevel::new("app", per_second(100)));
            call(&pace, &Counting::new(0), request("b", CHAT)).await.expect_err("refused");
        });
    });
    let gauges = snapshots.snapshot().into_vec();
    let [(key, .., DebugValue::Gauge(value))] = &gauges[..] else { panic!("{gauges:?}") };
    assert_eq!(key.key().name(), "coze_ratelimit_pace_per_second");
    assert_eq!(key.key().labels().map(|label| label.value()).collect::<Vec<_>>(), ["app"]);
    assert!((value.0 - 45.0).abs() < 0.01, "{value}");
}
