use std::num::NonZeroU32;

use crate::{PaceRate, PlatformPlan};

/// What the platform says of its limits: the answer of `GET /v1/commerce/benefit/benefits/get` (coze-platform.md §4).
///
/// It is asked with `benefit_type_list=api_run_qps` and a `resource_id`, which is `chat`, `workflow` or `plugin`. Whoever asks reads its JSON:
/// the plan is `data.basic_info.user_level`, and the limits are those of `data.benefit_info`, in `effective.item_info`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Benefits {
    /// The plan, if it is one that is known.
    pub plan: Option<PlatformPlan>,
    /// The limits that hold, by the name of the resource: calls a second; `None` where there is no limit. A resource whose calls are
    /// forbidden is not among them: the platform refuses those, and says why.
    pub calls_per_second: Vec<(String, Option<u32>)>,
}

impl Benefits {
    /// What that means for the levels of a plan, by their names: the limits of the plan, unless a resource of the name has another;
    /// and those of the other resources. That of `chat` is the one of `bot` too.
    #[must_use]
    pub fn rates(&self) -> Vec<(&str, Option<PaceRate>)> {
        let told = self.calls_per_second.iter();
        let told = told.map(|(name, calls)| (name.as_str(), calls.and_then(NonZeroU32::new).map(PaceRate::per_second)));
        // A bot has no limit of its own: all chats may be of one.
        let told =
            told.flat_map(|(name, rate)| [Some((name, rate)), (name == "chat").then_some(("bot", rate))]).flatten();
        let of_plan = self.plan.map(PlatformPlan::levels).unwrap_or_default().into_iter();
        let mut rates: Vec<_> = of_plan.map(|level| (level.name, level.rate)).collect();
        for (name, rate) in told {
            match rates.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = rate,
                None => rates.push((name, rate)),
            }
        }
        rates
    }
}
