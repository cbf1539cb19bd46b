//! The platform's three limits, kept on our side: by each node for itself, or by all nodes together in Redis.

use std::{collections::HashMap, num::NonZeroU32, sync::Arc, time::Instant};

use coze_core::{BotId, BoxError, Context, Error};
use coze_ratelimit::{Away, Decision, Level, Limits, Policy, Quota, Rate, RedisLimits, RedisServer, Sharing};
use http::{request::Parts, response};

use crate::config::{self, Config};

/// What everybody shares, and the bots with limits of their own, which share what is not their own with the others.
#[derive(Clone, Debug)]
pub(crate) struct PerBot<P> {
    shared: P,
    own: Arc<HashMap<BotId, P>>,
}

impl<P: Policy> Policy for PerBot<P> {
    type Permit = P::Permit;
    type Future = P::Future;

    fn decide(&self, parts: &Parts, context: &Context, now: Instant) -> Decision<P::Permit, P::Future> {
        let own = context.bot.get().and_then(|bot| self.own.get(bot));
        own.unwrap_or(&self.shared).decide(parts, context, now)
    }

    fn answered(permit: &mut P::Permit, answer: Result<&response::Parts, &BoxError>) {
        P::answered(permit, answer);
    }

    fn completed(permit: P::Permit) {
        P::completed(permit);
    }
}

/// The Redis in which all nodes keep them together, if there is one: that of the sessions unless another one is named.
///
/// # Errors
/// `redis_url` ([`coze_core::Kind::Invalid`]) when the URL is not one of Redis.
pub(crate) fn server(config: &Config) -> Result<Option<RedisServer>, Error> {
    let url = config.limits.redis.as_ref().unwrap_or(&config.storage.sessions).expose();
    if url == "memory" { Ok(None) } else { RedisServer::open(url).map(Some) }
}

/// For messages, of this node alone.
pub(crate) fn alone(config: &Config) -> PerBot<Limits> {
    per_bot(config, Limits::new(), Limits::level, |_, limit| per_user(limit))
}

/// For messages, of all nodes together.
///
/// # Errors
/// Those of [`RedisLimits::new`].
pub(crate) fn together(config: &Config, server: RedisServer) -> Result<PerBot<RedisLimits>, Error> {
    let none = RedisLimits::new("bot-backend:messages", server)?;
    let add = |limits: RedisLimits, level| limits.level(level, Sharing::DenyLocally, away(config));
    // Levels of the same name share their keys: a bot with a limit of its own has keys of its own.
    Ok(per_bot(config, none, add, |bot, limit| {
        let bot = bot.clone();
        Level::per_key("user", rate(limit), move |_, context| {
            let (tenant, user) = (context.tenant.get()?, context.user.get()?);
            Some(format!("{bot}\u{1f}{tenant}\u{1f}{user}").into())
        })
    }))
}

/// For calls to the platform, of all nodes together.
///
/// # Errors
/// Those of [`RedisLimits::new`].
pub(crate) fn calls_together(config: &Config, server: RedisServer) -> Result<RedisLimits, Error> {
    let app = Level::global("app", Rate::per_second(config.limits.app_qps));
    Ok(RedisLimits::new("bot-backend:calls", server)?.level(app, Sharing::DenyLocally, away(config)))
}

fn per_bot<P: Clone>(
    config: &Config,
    none: P,
    add: impl Fn(P, Level) -> P,
    own_user: impl Fn(&BotId, NonZeroU32) -> Level,
) -> PerBot<P> {
    let concurrency = |limit| Level::per_bot("bot", Quota::Concurrency(limit));
    let config::Limits { app_qps, bot_concurrency, user_per_second, .. } = config.limits;
    let app = Level::global("app", Rate::per_second(app_qps));
    let shared = [app, concurrency(bot_concurrency), per_user(user_per_second)].into_iter().fold(none, &add);
    let own = config.bots.iter().filter_map(|bot| {
        let levels = [bot.concurrency.map(concurrency), bot.user_per_second.map(|limit| own_user(&bot.id, limit))];
        let mut levels = levels.into_iter().flatten().peekable();
        levels.peek()?;
        Some((bot.id.clone(), levels.fold(shared.clone(), &add)))
    });
    PerBot { own: Arc::new(own.collect()), shared }
}

fn per_user(limit: NonZeroU32) -> Level {
    Level::per_user("user", rate(limit))
}

/// At least a second apart for one a second.
fn rate(limit: NonZeroU32) -> Rate {
    Rate::per_second(limit).burst(limit)
}

/// Nobody is refused because Redis is away: each node keeps its part then.
fn away(config: &Config) -> Away {
    Away::Share(config.limits.nodes)
}
