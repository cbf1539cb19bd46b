//! Conversations in SQLite or PostgreSQL, by one code path: SQL that both accept, over sqlx's `Any` driver.

mod history;
mod open;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coze_core::{Error, Kind};
use sqlx::{
    Any, AnyPool, Row,
    any::{AnyArguments, AnyQueryResult, AnyRow},
    pool::PoolConnection,
    query::Query,
};
use tokio::time::timeout;

use crate::message::{Answer, Message, Usage};

pub use history::{Entry, Place};

/// Time for one statement, waiting for a connection included.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Events that are remembered. The platform sends one again within minutes.
pub const MAX_EVENTS: i64 = 10_000;

/// Messages, their answers, the platform's conversations and its events. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Store {
    /// Replaced when the credentials change. Locked only to read or write the handle.
    pool: Arc<RwLock<AnyPool>>,
}

/// What is to be done with a message that came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is stored and ours to answer, as this try.
    Ours(i64),
    /// It was answered before.
    Answered(Answer),
    /// It is being answered.
    Running,
    /// The id belongs to another message.
    Taken,
}

/// How the answering of a message ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// With an answer.
    Answered(&'a Answer),
    /// With an error of this reason.
    Failed(&'static str),
    /// The caller went away.
    Cancelled,
}

/// An event of the platform's.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// The platform's id of it: the same one when it is sent again.
    pub id: &'a str,
    /// Whose callback it came to.
    pub app: &'a str,
    /// What happened, such as `bot.published`.
    pub kind: &'a str,
    /// The whole of it.
    pub body: &'a str,
}

/// A message as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// `received`, `answered`, `failed` or `cancelled`.
    pub status: String,
    /// Why it failed; else empty.
    pub reason: String,
    /// The answer; empty unless it is answered.
    pub answer: Answer,
}

impl Store {
    /// Stores a message and says whether it is to be answered now.
    ///
    /// A failed or cancelled one may be tried again, and so may one that was received longer than `lease` ago and not
    /// answered: whoever had it is gone.
    ///
    /// # Errors
    /// `conversations_unavailable` ([`Kind::Unavailable`]), as of every method here.
    pub async fn claim(&self, message: &Message, lease: Duration) -> Result<Claim, Error> {
        // One statement decides, so that of two equal messages at the same time one is answered.
        let claimed = sqlx::query(
            "INSERT INTO messages (bot_id, message_id, conversation_id, user_id, content, status, attempt, answer, reason, \
             input_tokens, output_tokens, received_at, finished_at) \
             VALUES ($1, $2, $3, $4, $5, 'received', 1, '', '', 0, 0, $6, 0) \
             ON CONFLICT (bot_id, message_id) DO UPDATE \
             SET status = 'received', attempt = messages.attempt + 1, reason = '', received_at = $6, finished_at = 0 \
             WHERE messages.conversation_id = $3 AND messages.user_id = $4 AND messages.content = $5 \
             AND (messages.status IN ('failed', 'cancelled') OR (messages.status = 'received' AND messages.received_at < $7)) \
             RETURNING attempt",
        )
        .bind(message.bot.as_str())
        .bind(&message.id)
        .bind(message.conversation.as_str())
        .bind(message.user.as_str())
        .bind(&message.content)
        .bind(now())
        .bind(now() - millis(lease));
        if let Some(row) = self.optional(claimed).await? {
            return Ok(Claim::Ours(row.try_get("attempt").map_err(unavailable)?));
        }
        let same = sqlx::query(
            "SELECT status, reason, answer, input_tokens, output_tokens FROM messages WHERE bot_id = $1 AND message_id = $2 \
             AND conversation_id = $3 AND user_id = $4 AND content = $5",
        )
        .bind(message.bot.as_str())
        .bind(&message.id)
        .bind(message.conversation.as_str())
        .bind(message.user.as_str())
        .bind(&message.content);
        match self.optional(same).await?.as_ref().map(stored).transpose()? {
            None => Ok(Claim::Taken),
            Some(stored) if stored.status == "answered" => Ok(Claim::Answered(stored.answer)),
            Some(_) => Ok(Claim::Running),
        }
    }

    /// Stores how a try ended. Does nothing when another try has begun meanwhile.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn finish(&self, message: &Message, attempt: i64, outcome: Outcome<'_>) -> Result<(), Error> {
        let (status, reason, answer) = match outcome {
            Outcome::Answered(answer) => ("answered", "", Some(answer)),
            Outcome::Failed(reason) => ("failed", reason, None),
            Outcome::Cancelled => ("cancelled", "cancelled", None),
        };
        let usage = answer.map(|a| a.usage).unwrap_or_default();
        // PostgreSQL has no text with this character.
        let content = answer.map_or(String::new(), |a| a.content.replace('\0', ""));
        let update = sqlx::query(
            "UPDATE messages SET status = $1, reason = $2, answer = $3, input_tokens = $4, output_tokens = $5, \
             finished_at = $6 WHERE bot_id = $7 AND message_id = $8 AND attempt = $9 AND status = 'received'",
        )
        .bind(status)
        .bind(reason)
        .bind(content)
        .bind(i64::from(usage.input_count))
        .bind(i64::from(usage.output_count))
        .bind(now())
        .bind(message.bot.as_str())
        .bind(&message.id)
        .bind(attempt);
        self.execute(update).await.map(|_| ())
    }

    /// A stored message.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn message(&self, bot: &str, id: &str) -> Result<Option<Stored>, Error> {
        let row = sqlx::query(
            "SELECT status, reason, answer, input_tokens, output_tokens FROM messages WHERE bot_id = $1 AND message_id = $2",
        )
        .bind(bot)
        .bind(id);
        self.optional(row).await?.as_ref().map(stored).transpose()
    }

    /// The platform's conversation of the message's.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn conversation(&self, message: &Message) -> Result<Option<String>, Error> {
        let row = sqlx::query(
            "SELECT platform_conversation_id FROM conversations \
             WHERE bot_id = $1 AND conversation_id = $2 AND user_id = $3",
        )
        .bind(message.bot.as_str())
        .bind(message.conversation.as_str())
        .bind(message.user.as_str());
        self.optional(row).await?.map(|row| row.try_get("platform_conversation_id").map_err(unavailable)).transpose()
    }

    /// Stores the platform's conversation of the message's.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn keep_conversation(&self, message: &Message, platform_conversation: &str) -> Result<(), Error> {
        let insert = sqlx::query(
            "INSERT INTO conversations (bot_id, conversation_id, user_id, platform_conversation_id, created_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (bot_id, conversation_id, user_id) \
             DO UPDATE SET platform_conversation_id = $4",
        )
        .bind(message.bot.as_str())
        .bind(message.conversation.as_str())
        .bind(message.user.as_str())
        .bind(platform_conversation)
        .bind(now());
        self.execute(insert).await.map(|_| ())
    }

    /// Stores an event; `false` when it is there already. Of the older ones [`MAX_EVENTS`] are kept.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn keep_event(&self, event: Event<'_>) -> Result<bool, Error> {
        let insert = sqlx::query(
            "INSERT INTO events (event_id, app, event_type, body, received_at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (event_id) DO NOTHING",
        )
        .bind(event.id)
        .bind(event.app)
        .bind(event.kind)
        .bind(event.body)
        .bind(now());
        let is_new = self.execute(insert).await?.rows_affected() == 1;
        // Now and then is enough, as it removes whatever is too much.
        if is_new && fastrand::u32(..100) == 0 {
            self.prune_events(MAX_EVENTS).await?;
        }
        Ok(is_new)
    }

    /// Removes all but the latest `keep` events.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn prune_events(&self, keep: i64) -> Result<(), Error> {
        let delete = sqlx::query(
            "DELETE FROM events WHERE event_id IN \
             (SELECT event_id FROM events ORDER BY received_at DESC, event_id LIMIT 1000 OFFSET $1)",
        )
        .bind(keep);
        self.execute(delete).await.map(|_| ())
    }

    /// How many events are stored.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn events(&self) -> Result<i64, Error> {
        let row = self.optional(sqlx::query("SELECT COUNT(*) AS events FROM events")).await?;
        row.ok_or(sqlx::Error::RowNotFound).and_then(|row| row.try_get("events")).map_err(unavailable)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn check(&self) -> Result<(), Error> {
        self.optional(sqlx::query("SELECT 1 AS one")).await.map(|_| ())
    }

    /// Closes the connections, after what is under way.
    pub async fn close(&self) {
        self.pool().close().await;
    }

    fn pool(&self) -> AnyPool {
        self.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn connection(&self) -> sqlx::Result<PoolConnection<Any>> {
        loop {
            let pool = self.pool();
            match pool.acquire().await {
                // It was replaced while we waited, so there is another one to ask; whatever the failure: where a connection takes
                // long to be made, the old credentials may be gone by then.
                Err(_) if pool.is_closed() && !self.pool().is_closed() => {}
                outcome => return outcome,
            }
        }
    }

    async fn optional<'a>(&self, query: Query<'a, Any, AnyArguments<'a>>) -> Result<Option<AnyRow>, Error> {
        bounded(async { query.fetch_optional(&mut *self.connection().await?).await }).await
    }

    async fn execute<'a>(&self, query: Query<'a, Any, AnyArguments<'a>>) -> Result<AnyQueryResult, Error> {
        bounded(async { query.execute(&mut *self.connection().await?).await }).await
    }
}

fn stored(row: &AnyRow) -> Result<Stored, Error> {
    let read = || {
        let tokens = |column| row.try_get::<i64, _>(column).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let (input, output) = (tokens("input_tokens")?, tokens("output_tokens")?);
        let usage = Usage { input_count: input, output_count: output, token_count: input.saturating_add(output) };
        let answer = Answer { content: row.try_get("answer")?, usage };
        Ok(Stored { status: row.try_get("status")?, reason: row.try_get("reason")?, answer })
    };
    read().map_err(unavailable)
}

async fn bounded<T>(statement: impl Future<Output = sqlx::Result<T>>) -> Result<T, Error> {
    match timeout(TIMEOUT, statement).await {
        Ok(done) => done.map_err(unavailable),
        Err(_) => Err(unavailable(sqlx::Error::PoolTimedOut)),
    }
}

fn unavailable(error: sqlx::Error) -> Error {
    Error::new(Kind::Unavailable, "conversations_unavailable")
        .with_message("conversations cannot be stored now")
        .with_retry_after(Duration::from_secs(1))
        .with_source(error)
}

fn now() -> i64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
