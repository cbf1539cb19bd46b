//! Follows what the platform says of its limits.

use std::sync::Arc;

use coze_core::Context;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    app::{Answerer, App},
    config::Config,
};

/// Asks now and every so often, if the configuration wants that, until the service stops.
pub(crate) fn follow(config: &Config, app: &Arc<App>) {
    let (Answerer::Platform(platform), Some(every)) = (&app.answerer, config.pace.refresh) else { return };
    let (platform, pace, stop) = (platform.clone(), config.pace.clone(), app.stop.clone());
    let nodes = config.limits.nodes;
    // Whose token it is does not matter: all tenants' are of one account.
    let tenant = config.bots.first().map(|bot| bot.tenant.clone());
    tokio::spawn(async move {
        let mut looks = interval(every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            let context = Context::new();
            tenant.clone().map(|tenant| context.tenant.get_or_init(|| tenant));
            match stop.run_until_cancelled(platform.benefits(&context)).await {
                Some(Ok(benefits)) => {
                    pace.set(platform.pace(), nodes, benefits.rates());
                    let plan = benefits.plan.map(|plan| plan.as_str());
                    tracing::info!(
                        plan,
                        chats_per_second = platform.pace().per_second("chat"),
                        "the platform told its limits"
                    );
                }
                Some(Err(error)) => tracing::warn!(?error, "the platform did not tell its limits"),
                None => return,
            }
        }
    });
}
