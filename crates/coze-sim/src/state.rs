use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::UNIX_EPOCH,
};

use tokio::time::Instant;

use crate::{
    Config,
    auth::Grant,
    capped::Capped,
    chat::Chat,
    conversation::Conversation,
    entity::Bot,
    fault::Faults,
    ids::Ids,
    limit::Windows,
    oauth::{Code, Device, Refresh},
    record::{Counts, Record},
    running::Running,
    variables::Variable,
    workflow::Run,
};

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// Where the platform is reached, `http://host:port`.
    pub(crate) url: String,
    pub(crate) started: Instant,
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(config: Config, url: String, now: Instant) -> Arc<Self> {
        let state = Mutex::new(State::new(&config));
        Arc::new(Self { config, url, started: now, state })
    }

    /// A panic under the lock leaves nothing half done that matters to a simulation, so poison is ignored.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds of the wall clock.
    pub(crate) fn unix(&self) -> u64 {
        (self.config.clock)().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }
}

/// Everything that changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ids: Ids,
    /// Static tokens.
    pub(crate) tokens: HashMap<String, Grant>,
    /// Access tokens from OAuth.
    pub(crate) grants: Capped<Grant>,
    pub(crate) refreshes: Capped<Refresh>,
    pub(crate) codes: Capped<Code>,
    pub(crate) devices: Capped<Device>,
    /// Assertions that were used: app and `jti`.
    pub(crate) spent: Capped<()>,
    pub(crate) windows: Windows,
    pub(crate) conversations: Capped<Conversation>,
    pub(crate) chats: Capped<Chat>,
    pub(crate) running: Running,
    pub(crate) runs: Capped<Run>,
    /// Which run an interrupt belongs to.
    pub(crate) interrupts: Capped<String>,
    /// The configured ones, and then those that were made.
    pub(crate) bots: Vec<Arc<Bot>>,
    pub(crate) variables: Capped<Variable>,
    pub(crate) files: Capped<File>,
    pub(crate) faults: Faults,
    pub(crate) record: Record,
}

/// A file that was uploaded, without its content.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) name: String,
    pub(crate) bytes: usize,
    pub(crate) created: u64,
}

impl State {
    fn new(config: &Config) -> Self {
        let keep = &config.keep;
        let tokens = config.tokens.iter().map(|token| (token.token.clone(), Grant::of_token(token))).collect();
        Self {
            ids: Ids::new(config.seed),
            tokens,
            grants: Capped::new(keep.grants),
            refreshes: Capped::new(keep.grants),
            codes: Capped::new(keep.grants),
            devices: Capped::new(keep.grants),
            spent: Capped::new(keep.grants),
            windows: Windows::default(),
            conversations: Capped::new(keep.conversations),
            chats: Capped::new(keep.chats),
            running: Running::default(),
            runs: Capped::new(keep.runs),
            interrupts: Capped::new(keep.runs),
            bots: config.bots.iter().cloned().map(Arc::new).collect(),
            variables: Capped::new(keep.variables),
            files: Capped::new(keep.files),
            faults: Faults::new(keep.faults),
            record: Record::new(keep),
        }
    }

    /// Keeps a bot that was made; the oldest of them goes where there are too many.
    pub(crate) fn add_bot(&mut self, shared: &Shared, bot: Bot) {
        let configured = shared.config.bots.len();
        if self.bots.len() - configured >= shared.config.keep.bots.max(1) {
            self.bots.remove(configured);
        }
        self.bots.push(Arc::new(bot));
    }

    /// Ends all access tokens that OAuth gave out.
    pub(crate) fn expire_tokens(&mut self) {
        for grant in self.grants.values_mut() {
            grant.expires = Some(0);
        }
    }

    /// The counts, with what runs now.
    pub(crate) fn counts(&self) -> Counts {
        Counts { running_chats: self.running.len(), ..self.record.counts.clone() }
    }

    /// Says for the person with this code whether the device may; false if no device waits with it.
    pub(crate) fn decide(&mut self, user_code: &str, allow: bool) -> bool {
        let waiting = |device: &&mut Device| device.user_code == user_code && device.decision.is_none();
        let device = self.devices.values_mut().find(waiting);
        device.map(|device| device.decision = Some(allow)).is_some()
    }

    /// Lets a chat run, a new one or one that goes on; `due` is when it ends by itself.
    pub(crate) fn begin_chat(&mut self, chat: Chat, counted_as: &str, due: Option<Instant>) {
        let (id, conversation) = (chat.id.clone(), chat.conversation.clone());
        if let Some(known) = self.chats.get_mut(&chat.id) {
            *known = chat;
        } else if let Some(gone) = self.chats.insert(id.clone(), chat) {
            self.running.end(&gone.id);
        }
        let (running, of_bot) = self.running.begin(&id, counted_as, &conversation, due);
        self.record.chat_began(counted_as, running, of_bot);
    }

    /// A chat is over: what it was going to end with holds now, and what it said joins the conversation. A chat that was
    /// cancelled before stays cancelled.
    pub(crate) fn end_chat(&mut self, id: &str, unix: u64) {
        self.running.end(id);
        let Some(chat) = self.chats.get_mut(id) else { return };
        if !chat.end(unix) || !chat.saved {
            return;
        }
        if let Some(conversation) = self.conversations.get_mut(&chat.conversation) {
            chat.messages[chat.told..].iter().for_each(|message| conversation.push(message.clone()));
        }
        chat.told = chat.messages.len();
    }

    /// Ends the chats without a stream whose time has come.
    pub(crate) fn settle(&mut self, now: Instant, unix: u64) {
        while let Some(chat) = self.running.next_due(now) {
            self.end_chat(&chat, unix);
        }
    }
}
