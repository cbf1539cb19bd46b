//! What the platform says, read tolerantly: ids may be numbers, fields may be missing (coze-platform.md §2).

use coze_core::{Error, Kind, Retry};
use coze_errmap::from_platform;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use crate::message::Usage;

/// A chat: one question and its answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Chat {
    #[serde(deserialize_with = "text")]
    pub(crate) id: String,
    #[serde(deserialize_with = "text")]
    pub(crate) conversation_id: String,
    pub(crate) status: String,
    pub(crate) usage: Option<Usage>,
    last_error: Option<Fault>,
    #[serde(flatten)]
    bare: Fault,
}

/// An error's code and text, wherever it stands.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Fault {
    #[serde(alias = "error_code")]
    code: i64,
    #[serde(alias = "error_message")]
    msg: String,
}

impl Fault {
    pub(crate) fn error(&self, logid: Option<&str>) -> Error {
        from_platform(self.code, &self.msg, logid)
    }
}

impl Chat {
    /// The error of a chat that failed: in `last_error`, or bare as in some `conversation.chat.failed` events.
    pub(crate) fn failure(&self, logid: Option<&str>) -> Error {
        self.last_error.as_ref().filter(|e| e.code != 0).unwrap_or(&self.bare).error(logid)
    }

    /// Whether the chat is over, and how: `None` while it runs. A status of none of the documented names counts as running:
    /// the deadline ends the wait.
    ///
    /// # Errors
    /// When it waits for something that it will not get from us.
    pub(crate) fn verdict(&self, logid: Option<&str>) -> Result<Option<Result<Usage, Error>>, Error> {
        Ok(Some(match self.status.as_str() {
            // The platform's own documents have the second spelling too.
            "completed" | "compleated" => Ok(self.usage.unwrap_or_default()),
            "failed" => Err(self.failure(logid)),
            "canceled" | "cancelled" => Err(cancelled_there()),
            "requires_action" => return Err(requires_action()),
            _ => return Ok(None),
        }))
    }
}

/// The bot wants a tool of its caller's to be run, and this service has none.
pub(crate) fn requires_action() -> Error {
    Error::new(Kind::Precondition, "requires_action")
        .with_message("the bot asks for a local plugin, which this service does not run")
}

/// Somebody else cancelled the chat on the platform.
pub(crate) fn cancelled_there() -> Error {
    Error::new(Kind::Upstream, "chat_cancelled")
        .with_message("the chat was cancelled on the platform")
        .with_retry(Retry::Never)
}

/// The answer was not what the platform's documents say.
pub(crate) fn nonsense(what: &'static str) -> Error {
    Error::new(Kind::Upstream, "platform_nonsense").with_message(what).with_retry(Retry::Never)
}

/// A message of a chat.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Message {
    #[serde(rename = "type")]
    kind: String,
    pub(crate) content: String,
}

impl Message {
    /// Whether it is part of what the person gets to read: not a tool call, not a follow-up question.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self.kind.as_str(), "answer" | "")
    }
}

/// The envelope of every JSON answer.
#[derive(Debug, Deserialize)]
struct Envelope<T> {
    code: i64,
    #[serde(default)]
    msg: String,
    data: Option<T>,
}

/// What an envelope holds.
pub(crate) fn open<T: DeserializeOwned>(body: &[u8], logid: Option<&str>) -> Result<T, Error> {
    let envelope: Envelope<T> =
        serde_json::from_slice(body).map_err(|e| nonsense("the platform's answer cannot be read").with_source(e))?;
    if envelope.code != 0 {
        return Err(from_platform(envelope.code, &envelope.msg, logid));
    }
    envelope.data.ok_or_else(|| nonsense("the platform's answer has no data"))
}

/// What an event's data holds.
pub(crate) fn event<'a, T: Deserialize<'a>>(data: &'a str) -> Result<T, Error> {
    serde_json::from_str(data).map_err(|e| nonsense("an event of the platform's stream cannot be read").with_source(e))
}

/// A text, or a number that stands for one.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(i64),
    }
    Ok(match Id::deserialize(deserializer)? {
        Id::Text(text) => text,
        Id::Number(number) => number.to_string(),
    })
}
