use coze_core::{BotId, ConversationId, Error};
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::{Store, bounded, unavailable};

/// A message of a conversation, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands in the conversation.
    pub place: Place,
    /// Who wrote it.
    pub user: String,
    /// What was written.
    pub content: String,
    /// `received`, `answered`, `failed` or `cancelled`.
    pub status: String,
    /// The answer; empty unless it is answered.
    pub answer: String,
}

/// A message's place among those of a conversation: they are in the order of these fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// When it came, or was tried again, in milliseconds of the Unix clock.
    pub received_at: i64,
    /// The bot it is for.
    pub bot: String,
    /// Its id, which is one of its bot's.
    pub message: String,
}

impl Store {
    /// The messages to any of these bots in a conversation of this name, the oldest first, from behind a place, at most `limit`.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn history(
        &self,
        bots: &[&BotId],
        conversation: &ConversationId,
        after: Option<&Place>,
        limit: u32,
    ) -> Result<Vec<Entry>, Error> {
        if bots.is_empty() {
            return Ok(Vec::new());
        }
        let numbers: Vec<_> = (0..bots.len()).map(|n| format!("${}", n + 6)).collect();
        let sql = format!(
            "SELECT bot_id, message_id, user_id, content, status, answer, received_at FROM messages \
             WHERE conversation_id = $1 AND (received_at, bot_id, message_id) > ($2, $3, $4) AND bot_id IN ({}) \
             ORDER BY received_at, bot_id, message_id LIMIT $5",
            numbers.join(", ")
        );
        let (at, bot, message) = after.map_or((-1, "", ""), |it| (it.received_at, &*it.bot, &*it.message));
        let query = sqlx::query(&sql).bind(conversation.as_str()).bind(at).bind(bot).bind(message);
        let query = bots.iter().fold(query.bind(i64::from(limit)), |query, bot| query.bind(bot.as_str()));
        let rows = bounded(async { query.fetch_all(&mut *self.connection().await?).await }).await?;
        let entry = |row: &sqlx::any::AnyRow| {
            let place = Place {
                received_at: row.try_get("received_at")?,
                bot: row.try_get("bot_id")?,
                message: row.try_get("message_id")?,
            };
            Ok(Entry {
                place,
                user: row.try_get("user_id")?,
                content: row.try_get("content")?,
                status: row.try_get("status")?,
                answer: row.try_get("answer")?,
            })
        };
        rows.iter().map(entry).collect::<sqlx::Result<_>>().map_err(unavailable)
    }

    /// The last messages of a user in a conversation of the platform's that were answered, with their answers, oldest first.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn latest(
        &self,
        bot: &str,
        user: &str,
        platform_conversation: &str,
        last: u32,
    ) -> Result<Vec<(String, String)>, Error> {
        let query = sqlx::query(
            "SELECT messages.content, messages.answer FROM messages JOIN conversations \
             ON conversations.bot_id = messages.bot_id AND conversations.user_id = messages.user_id \
             AND conversations.conversation_id = messages.conversation_id \
             WHERE messages.bot_id = $1 AND messages.user_id = $2 AND conversations.platform_conversation_id = $3 \
             AND messages.status = 'answered' ORDER BY messages.received_at DESC, messages.message_id LIMIT $4",
        )
        .bind(bot)
        .bind(user)
        .bind(platform_conversation)
        .bind(i64::from(last));
        let rows = bounded(async { query.fetch_all(&mut *self.connection().await?).await }).await?;
        let read = |row: &sqlx::any::AnyRow| Ok((row.try_get("content")?, row.try_get("answer")?));
        rows.iter().rev().map(read).collect::<sqlx::Result<_>>().map_err(unavailable)
    }
}
