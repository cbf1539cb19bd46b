//! A request admitted by limits in memory.

use std::{cell::Cell, num::NonZeroU32};

use axum::body::Body;
use coze_benches::{bare, compare, compare_added, criterion, sending};
use coze_core::{BotId, Context, UserId};
use coze_ratelimit::{Level, Limits, Quota, Rate, RateLimitLayer};
use criterion::Criterion;
use http::Request;
use tower::Layer;
use tower_governor::{GovernorError, GovernorLayer, governor::GovernorConfigBuilder, key_extractor::KeyExtractor};

/// So many that no request of a benchmark is refused.
const PLENTY: NonZeroU32 = NonZeroU32::new(100_000_000).expect("not zero");

/// Requests of 1000 users in turn, to one bot.
fn make() -> impl Fn() -> Request<()> {
    let bot = BotId::new("b1").expect("valid");
    let users: Vec<_> = (0..1000).map(|n| UserId::new(&format!("user-{n}")).expect("valid")).collect();
    let next = Cell::new(0);
    move || {
        let mut request = Request::new(());
        let context = Context::of(request.extensions_mut());
        next.set((next.get() + 1) % users.len());
        context.user.set(users[next.get()].clone()).expect("empty");
        context.bot.set(bot.clone()).expect("empty");
        request
    }
}

/// Reads the same user from the same place as our limits do.
#[derive(Clone, Debug)]
struct ByUser;

impl KeyExtractor for ByUser {
    type Key = UserId;

    fn extract<T>(&self, request: &Request<T>) -> Result<UserId, GovernorError> {
        let context = request.extensions().get::<Context>();
        context.and_then(|context| context.user.get()).cloned().ok_or(GovernorError::UnableToExtractKey)
    }
}

fn user(c: &mut Criterion) {
    let limits = Limits::new().level(Level::per_user("user", Rate::per_second(PLENTY)));
    let ours = RateLimitLayer::new(limits).layer(bare::<_, Body>());
    let config =
        GovernorConfigBuilder::default().per_nanosecond(10).burst_size(u32::MAX).key_extractor(ByUser).finish();
    let peer = GovernorLayer::new(config.expect("not zero")).layer(bare::<_, Body>());
    let bare = sending(bare::<_, Body>());
    compare_added(c, "ratelimit/user", make(), sending(ours), sending(peer), bare);
}

fn platform(c: &mut Criterion) {
    let limits = Limits::platform()
        .level(Level::global("app", Rate::per_second(PLENTY)))
        .level(Level::per_bot("bot", Quota::Concurrency(PLENTY)))
        .level(Level::per_user("user", Rate::per_second(PLENTY)));
    let ours = RateLimitLayer::new(limits).layer(bare::<_, Body>());
    compare(c, "ratelimit/platform", ours, bare::<_, Body>(), make());
}

criterion::criterion_group! { name = ratelimit; config = criterion(); targets = user, platform }
criterion::criterion_main!(ratelimit);
