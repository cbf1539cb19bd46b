use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use coze_ratelimit::{Benefits, Pace as Pacer, PaceRate, PlatformPlan};
use serde::Deserialize;

use super::{
    Limits,
    value::{seconds, some_parsed, some_seconds},
};

/// How fast the platform is called, so that it does not refuse.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pace {
    /// The account's plan, whose limits are kept. Default none: then chats go at `limits.app_qps`, as all calls do.
    #[serde(deserialize_with = "some_parsed")]
    pub plan: Option<PlatformPlan>,
    /// Chats a second, instead of what the plan, or the platform, says.
    pub chat_per_second: Option<NonZeroU32>,
    /// Calls of models a minute, instead of what the plan says; each chat counts for one.
    pub model_per_minute: Option<NonZeroU32>,
    /// How often the platform is asked for its limits. Default never.
    #[serde(rename = "refresh_seconds", deserialize_with = "some_seconds")]
    pub refresh: Option<Duration>,
    /// Time that a call may wait for its turn. Default 10 s.
    #[serde(rename = "max_wait_seconds", deserialize_with = "seconds")]
    pub max_wait: Duration,
    /// Calls that wait for their turn. Default 1000.
    pub waiting: NonZeroUsize,
    /// Messages that wait for the end of the chat in their conversation. Default 16.
    pub conversation_waiting: NonZeroUsize,
}

impl Default for Pace {
    fn default() -> Self {
        let number = |n| NonZeroUsize::new(n).expect("not zero");
        Self {
            plan: None,
            chat_per_second: None,
            model_per_minute: None,
            refresh: None,
            max_wait: Duration::from_secs(10),
            waiting: number(1000),
            conversation_waiting: number(16),
        }
    }
}

impl Pace {
    /// The policy that does so, on one of the nodes.
    pub(crate) fn policy(&self, limits: &Limits) -> Pacer {
        let all = Some(PaceRate::per_second(limits.app_qps));
        let pacer = Pacer::platform(self.plan.unwrap_or(PlatformPlan::Free))
            .max_wait(self.max_wait)
            .max_waiting(self.waiting.get());
        let plan = Benefits { plan: self.plan, ..Benefits::default() };
        // What is not known is as fast as everything together.
        let unknown = [("chat", all), ("bot", all), ("model", None)];
        let unknown = unknown.into_iter().filter(|_| self.plan.is_none());
        self.set(&pacer, limits.nodes, unknown.chain(plan.rates()));
        pacer.set("app", all).expect("it is there");
        pacer
    }

    /// Changes the rates of levels to these, except where this says them itself. Each node has its part of them.
    pub(crate) fn set<'a>(
        &self,
        pacer: &Pacer,
        nodes: NonZeroU32,
        rates: impl IntoIterator<Item = (&'a str, Option<PaceRate>)>,
    ) {
        for (level, rate) in rates {
            let rate = self.says(level).or(rate).map(|rate| rate.shared_by(nodes));
            // What the platform says of more than there is here is not needed.
            let _ = pacer.set(level, rate);
        }
    }

    fn says(&self, level: &str) -> Option<PaceRate> {
        match level {
            "chat" | "bot" => self.chat_per_second.map(PaceRate::per_second),
            "model" => self.model_per_minute.map(PaceRate::per_minute),
            _ => None,
        }
    }
}
