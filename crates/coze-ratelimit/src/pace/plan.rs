//! The platform's plans, as data (coze-platform.md §4).

use std::{fmt, num::NonZeroU32, str::FromStr};

use coze_core::{Error, Kind};

use crate::{PaceLevel, PaceRate};

/// A plan of the platform, by the name that its API has for it (`user_level`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PlatformPlan {
    /// `free`. All of its calls together are 500, for good: that is not paced, but once they are used up calls pause.
    Free,
    /// `pro_personal`: personal plus.
    ProPersonal,
    /// `team`.
    Team,
    /// `enterprise`.
    Enterprise,
}

const CHAT: &[&str] = &["POST /v3/chat"];
const WORKFLOW: &[&str] = &[
    "POST /v1/workflow/run",
    "POST /v1/workflow/stream_run",
    "POST /v1/workflows/chat",
    "GET /v1/workflows/:workflow_id/run_histories/:execute_id",
    "GET /v1/workflows/:workflow_id/run_histories/:execute_id/execute_nodes/:node_execute_uuid",
];
const UPLOAD: &[&str] = &["POST /v1/files/upload"];
/// What runs models.
const MODEL: &[&str] =
    &["POST /v3/chat", "POST /v1/workflow/run", "POST /v1/workflow/stream_run", "POST /v1/workflows/chat"];

/// What is said of a call itself. The platform does not say whether its cap is one on all calls: it is heard as one on the route.
pub(super) const CALL_CODES: &[i64] = &[429, 4009];
/// The same of what costs credits. When they are used up, what runs already is still looked at, and cancelled.
const CHAT_CODES: &[i64] = &[429, 4009, 4028];
/// And of what a workflow uses.
const WORKFLOW_CODES: &[i64] = &[429, 4009, 4020, 4028, 702_093_018];
/// What is said of a bot, or of what it uses.
const BOT_CODES: &[i64] = &[4008, 4020, 702_093_018];
const MODEL_CODES: &[i64] = &[702_112_103];

/// Its name, its routes, the codes it hears, what it is counted by, and the calls of each plan.
type Row = (&'static str, &'static [&'static str], &'static [i64], fn(NonZeroU32) -> PaceRate, [u32; 4]);

#[rustfmt::skip]
const LEVELS: &[Row] = &[
    // name      routes    hears           a                        free  pro_personal  team  enterprise
    ("chat",     CHAT,     CHAT_CODES,     PaceRate::per_second, [    20,          100,  200,        500]),
    ("workflow", WORKFLOW, WORKFLOW_CODES, PaceRate::per_second, [    50,          100,  200,        500]),
    ("upload",   UPLOAD,   CALL_CODES,     PaceRate::per_second, [    10,           10,   20,         20]),
    ("model",    MODEL,    MODEL_CODES,    PaceRate::per_minute, [   300,         1000, 5000,     12_000]),
];

impl PlatformPlan {
    /// Every plan, the smallest first.
    pub const ALL: [Self; 4] = [Self::Free, Self::ProPersonal, Self::Team, Self::Enterprise];

    /// The name that the platform's API has for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::ProPersonal => "pro_personal",
            Self::Team => "team",
            Self::Enterprise => "enterprise",
        }
    }

    /// The levels of the plan's limits: `chat`, `workflow` and `upload`, each its routes and a rate a second; `bot`, the chats
    /// of each bot, which has no limit of its own and hears what is said of one; `model`, a rate a minute for all that runs
    /// models, one call counted for each (a bot that calls its model more often hears of it).
    #[must_use]
    pub fn levels(self) -> Vec<PaceLevel> {
        let rates = LEVELS.iter().map(|(name, routes, codes, rate, calls)| {
            let calls = NonZeroU32::new(calls[self as usize]).expect("the table has no zero");
            PaceLevel::new(name, rate(calls)).routes(routes).hears(codes)
        });
        let mut levels: Vec<_> = rates.collect();
        let bot = PaceLevel::new("bot", levels[0].rate).per_bot().routes(CHAT).hears(BOT_CODES);
        levels.insert(1, bot);
        levels
    }
}

impl fmt::Display for PlatformPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PlatformPlan {
    type Err = Error;

    /// # Errors
    /// [`Kind::Invalid`] with the reason `plan_unknown`.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|plan| plan.as_str() == text).ok_or_else(|| {
            Error::new(Kind::Invalid, "plan_unknown").with_message("expected free, pro_personal, team or enterprise")
        })
    }
}

#[cfg(test)]
mod tests {
    use coze_core::{BotId, Context};
    use http::Request;

    use super::*;

    #[test]
    fn the_levels_of_a_plan_are_the_platforms_table() {
        let table = |plan: PlatformPlan| -> Vec<_> {
            let levels = plan.levels();
            levels
                .iter()
                .map(|level| (level.name, level.rate.map(|rate| (rate.calls.get(), rate.per.as_secs()))))
                .collect()
        };
        let of = |chat, workflow, upload, model| {
            let [chat, workflow, upload] = [chat, workflow, upload].map(|calls| Some((calls, 1)));
            [("chat", chat), ("bot", chat), ("workflow", workflow), ("upload", upload), ("model", Some((model, 60)))]
        };
        assert_eq!(table(PlatformPlan::Free), of(20, 50, 10, 300));
        assert_eq!(table(PlatformPlan::ProPersonal), of(100, 100, 10, 1000));
        assert_eq!(table(PlatformPlan::Team), of(200, 200, 20, 5000));
        assert_eq!(table(PlatformPlan::Enterprise), of(500, 500, 20, 12_000));
        for plan in PlatformPlan::ALL {
            assert_eq!(plan.as_str().parse().ok(), Some(plan));
        }
        assert_eq!("pro".parse::<PlatformPlan>().expect_err("none").reason(), "plan_unknown");
    }

    #[test]
    fn each_code_is_heard_where_it_belongs() {
        let levels = PlatformPlan::Free.levels();
        let heard = |method: &str, path: &str, code| {
            let (parts, ()) = Request::builder().method(method).uri(path).body(()).expect("valid").into_parts();
            let context = Context::new();
            context.bot.set(BotId::new("b").expect("valid")).expect("empty");
            let of: Vec<_> = levels.iter().filter(|level| level.key(&parts, &context).is_some()).collect();
            of.iter().find(|level| level.is_about(code)).map(|level| level.name)
        };
        for code in [429, 4009] {
            assert_eq!(heard("POST", "/v3/chat", code), Some("chat"));
            assert_eq!(heard("POST", "/v1/workflow/stream_run", code), Some("workflow"));
            assert_eq!(heard("GET", "/v1/workflows/1/run_histories/2", code), Some("workflow"));
            assert_eq!(heard("POST", "/v1/files/upload", code), Some("upload"));
            assert_eq!(heard("GET", "/v3/chat/retrieve", code), None);
        }
        assert_eq!([4008, 4020, 702_093_018].map(|code| heard("POST", "/v3/chat", code)), [Some("bot"); 3]);
        assert_eq!(
            [4020, 4028, 702_093_018].map(|code| heard("POST", "/v1/workflow/run", code)),
            [Some("workflow"); 3]
        );
        assert_eq!(heard("POST", "/v3/chat", 4028), Some("chat"));
        assert_eq!(heard("POST", "/v3/chat", 702_112_103), Some("model"));
        assert_eq!(heard("POST", "/v1/workflows/chat", 702_112_103), Some("model"));
    }
}
