//! What the handlers share.

use std::{collections::HashMap, sync::Arc, time::Duration};

use coze_core::BotId;
use coze_ratelimit::Conversations;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{config::Bot, later::Later, oauth::Consent, platform::Platform, sessions::Sessions, store::Store};

/// The state of a running service.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) sessions: Sessions,
    pub(crate) answerer: Answerer,
    /// One chat runs in each conversation: those that follow wait here.
    pub(crate) conversations: Conversations,
    /// What is answered later.
    pub(crate) later: Later,
    /// The way to a person's consent, where the bot needs one.
    pub(crate) consent: Option<Arc<Consent>>,
    pub(crate) bots: HashMap<BotId, Bot>,
    /// Time for a whole request.
    pub(crate) request_timeout: Duration,
    /// Time between two pieces of the platform's stream.
    pub(crate) silence_timeout: Duration,
    /// The answers under way, which a shutdown waits for.
    pub(crate) tasks: TaskTracker,
    /// Ends them: the shutdown has waited long enough.
    pub(crate) stop: CancellationToken,
}

/// Who answers.
#[derive(Debug)]
pub(crate) enum Answerer {
    /// This service itself: it repeats what it is told.
    Echo,
    /// The platform.
    Platform(Platform),
}
