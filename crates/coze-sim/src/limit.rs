use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{config::Limits, record::Counts, reply::Refusal};

/// Routes that share a limit (coze-platform.md §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    /// Starting chats.
    Chat,
    /// Workflows and their history.
    Workflow,
    /// Uploads.
    Upload,
    /// No limit per second.
    Other,
    /// OAuth: no token is asked for.
    Public,
}

impl Group {
    fn name_and_quota(self, limits: &Limits) -> Option<(&'static str, u32)> {
        match self {
            Self::Chat => Some(("chat", limits.chat_qps)),
            Self::Workflow => Some(("workflow", limits.workflow_qps)),
            Self::Upload => Some(("upload", limits.upload_qps)),
            Self::Other | Self::Public => None,
        }
    }
}

/// Fixed windows of a second per app (or static token) and group, as the platform's own limiter has them. The keys are
/// configured apps and tokens, so there are only so many.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    windows: HashMap<(String, Group), (Instant, u32)>,
    calls: HashMap<String, u64>,
}

impl Windows {
    /// Counts one call of `app`, which may be refused.
    pub(crate) fn count(
        &mut self,
        limits: &Limits,
        counts: &mut Counts,
        app: &str,
        group: Group,
        now: Instant,
    ) -> Result<(), Refusal> {
        let calls = self.calls.entry(app.to_owned()).or_default();
        *calls += 1;
        if limits.calls > 0 && *calls > limits.calls {
            return Err(Refusal::new(4028, "Your free quota has been used up, please upgrade your plan"));
        }
        let Some((name, quota)) = group.name_and_quota(limits) else { return Ok(()) };
        let (start, used) = self.windows.entry((app.to_owned(), group)).or_insert((now, 0));
        if now.duration_since(*start) >= Duration::from_secs(1) {
            (*start, *used) = (now, 0);
        }
        *used += 1;
        let max = counts.max_per_second.entry(name).or_default();
        *max = (*used).max(*max);
        if quota > 0 && *used > quota {
            let msg = format!("The request rate of {name} exceeds the limit of {quota} per second, please retry later");
            return Err(Refusal { status: limits.status, ..Refusal::new(limits.code, msg) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_window_of_a_second_holds_its_quota_per_app_and_group() {
        let limits = Limits { chat_qps: 2, calls: 9, ..Limits::default() };
        let (mut windows, mut counts) = (Windows::default(), Counts::default());
        let mut count = |app: &str, group| {
            windows.count(&limits, &mut counts, app, group, Instant::now()).map_err(|refusal| refusal.code)
        };
        assert_eq!([(); 3].map(|()| count("a", Group::Chat)), [Ok(()), Ok(()), Err(4009)]);
        assert_eq!(count("b", Group::Chat), Ok(()));
        assert_eq!(count("a", Group::Workflow), Ok(()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([(); 3].map(|()| count("a", Group::Chat)), [Ok(()), Ok(()), Err(4009)]);
        assert_eq!([(); 3].map(|()| count("a", Group::Other)), [Ok(()), Ok(()), Err(4028)]);
        assert_eq!(counts.max_per_second["chat"], 3);
    }
}
