use std::fmt;

use serde_json::{Map, Value, json};

/// What a handler answers with.
#[derive(Debug)]
pub(crate) enum Reply {
    /// `data` of the envelope.
    Data(Value),
    /// Several fields of the envelope, `data` among them or not.
    Fields(Map<String, Value>),
    /// A body outside the envelope, as OAuth has it; `outcome` is what is counted.
    Bare { status: u16, body: Value, outcome: String },
    /// 302.
    Redirect(String),
    /// An event stream; `chat` is the chat that ends with it.
    Stream { events: Vec<Event>, chat: Option<String> },
}

impl Reply {
    /// Fields given as a JSON object.
    pub(crate) fn fields(value: Value) -> Self {
        match value {
            Value::Object(map) => Self::Fields(map),
            other => Self::Data(other),
        }
    }
}

/// A business error: an HTTP status, a code other than 0 and a message (coze-platform.md §2.2, §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: i64,
    pub(crate) msg: String,
}

impl Refusal {
    /// HTTP 200 and a code: how the platform refuses nearly everything.
    pub(crate) fn new(code: i64, msg: impl Into<String>) -> Self {
        Self { status: 200, code, msg: msg.into() }
    }

    /// A wrong parameter; the message names it.
    pub(crate) fn param(msg: impl fmt::Display) -> Self {
        Self::new(4000, format!("The field is invalid, please check the parameters: {msg}"))
    }
}

/// The envelope (§2.1) around these fields.
pub(crate) fn envelope(code: i64, msg: &str, logid: &str, mut fields: Map<String, Value>) -> Value {
    fields.insert("code".into(), code.into());
    fields.insert("msg".into(), msg.into());
    fields.insert("detail".into(), json!({ "logid": logid }));
    Value::Object(fields)
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Workflow streams number their events, chat streams do not.
    pub(crate) id: Option<usize>,
    pub(crate) name: &'static str,
    pub(crate) data: String,
}

impl Event {
    pub(crate) fn new(name: &'static str, data: &Value) -> Self {
        Self { id: None, name, data: data.to_string() }
    }

    /// After this event the chat is no longer running.
    pub(crate) fn ends(&self) -> bool {
        matches!(
            self.name,
            "conversation.chat.completed"
                | "conversation.chat.failed"
                | "conversation.chat.requires_action"
                | "error"
                | "done"
        )
    }

    /// The event on the wire; no comments, no `retry`, because the Python SDK fails on them.
    pub(crate) fn encode(&self, space: bool) -> String {
        let colon = if space { ": " } else { ":" };
        let id = self.id.map(|id| format!("id{colon}{id}\n")).unwrap_or_default();
        format!("{id}event{colon}{}\ndata{colon}{}\n\n", self.name, self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_written_with_and_without_a_space() {
        let mut event = Event::new("done", &Value::String("[DONE]".into()));
        assert_eq!(event.encode(false), "event:done\ndata:\"[DONE]\"\n\n");
        event.id = Some(3);
        assert_eq!(event.encode(true), "id: 3\nevent: done\ndata: \"[DONE]\"\n\n");
    }
}
