use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

/// The chats that run. As many as are kept at most, because a chat that is evicted stops.
#[derive(Debug, Default)]
pub(crate) struct Running {
    chats: HashMap<String, Place>,
    by_bot: HashMap<String, usize>,
    by_conversation: HashMap<String, usize>,
    due: BTreeSet<(Instant, String)>,
}

#[derive(Debug)]
struct Place {
    bot: String,
    conversation: String,
    due: Option<Instant>,
}

impl Running {
    /// A chat begins; `due` is when it ends by itself. Gives how many run now, and how many of this bot.
    pub(crate) fn begin(&mut self, chat: &str, bot: &str, conversation: &str, due: Option<Instant>) -> (usize, usize) {
        self.end(chat);
        let of_bot = self.by_bot.entry(bot.to_owned()).or_default();
        *of_bot += 1;
        *self.by_conversation.entry(conversation.to_owned()).or_default() += 1;
        self.due.extend(due.map(|due| (due, chat.to_owned())));
        let place = Place { bot: bot.to_owned(), conversation: conversation.to_owned(), due };
        self.chats.insert(chat.to_owned(), place);
        (self.chats.len(), *of_bot)
    }

    /// A chat is over, or evicted.
    pub(crate) fn end(&mut self, chat: &str) {
        let Some(place) = self.chats.remove(chat) else { return };
        for (counts, key) in [(&mut self.by_bot, place.bot), (&mut self.by_conversation, place.conversation)] {
            if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
        if let Some(due) = place.due {
            self.due.remove(&(due, chat.to_owned()));
        }
    }

    pub(crate) fn is_busy(&self, conversation: &str) -> bool {
        self.by_conversation.contains_key(conversation)
    }

    /// A chat whose time has come.
    pub(crate) fn next_due(&self, now: Instant) -> Option<String> {
        self.due.first().filter(|(due, _)| *due <= now).map(|(_, chat)| chat.clone())
    }

    pub(crate) fn len(&self) -> usize {
        self.chats.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn chats_are_counted_by_bot_and_conversation_and_leave_nothing_behind() {
        let mut running = Running::default();
        let due = Instant::now() + Duration::from_secs(1);
        assert_eq!(running.begin("a", "bot", "x", Some(due)), (1, 1));
        assert_eq!(running.begin("b", "bot", "y", None), (2, 2));
        assert_eq!(running.begin("b", "bot", "y", None), (2, 2));
        assert!(running.is_busy("x") && !running.is_busy("z"));
        assert_eq!(running.next_due(Instant::now()), None);
        assert_eq!(running.next_due(due).as_deref(), Some("a"));
        running.end("a");
        running.end("b");
        running.end("b");
        assert_eq!(running.len() + running.by_bot.len() + running.by_conversation.len() + running.due.len(), 0);
    }
}
