use serde_json::{Map, Value, json};

use crate::{call::Fields, ids::Ids, reply::Refusal};

/// A message, as conversations and streams show it.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) conversation: String,
    pub(crate) section: String,
    /// Empty unless a chat made it.
    pub(crate) bot: String,
    /// Empty unless a chat made it.
    pub(crate) chat: String,
    pub(crate) updated: u64,
    pub(crate) created: u64,
    pub(crate) entered: Entered,
}

/// What a caller says of a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entered {
    pub(crate) role: String,
    pub(crate) kind: String,
    pub(crate) content: String,
    pub(crate) content_type: String,
    pub(crate) meta: Map<String, Value>,
}

impl Entered {
    /// An assistant's message.
    pub(crate) fn assistant(kind: &str, content: impl Into<String>) -> Self {
        Self {
            role: "assistant".into(),
            kind: kind.into(),
            content: content.into(),
            content_type: "text".into(),
            meta: Map::new(),
        }
    }

    /// Reads the list of messages in field `name`, at most `max` of them (else 4004).
    pub(crate) fn list(fields: &Fields, name: &str, max: usize) -> Result<Vec<Self>, Refusal> {
        let list = fields.list(name)?;
        if list.len() > max {
            return Err(Refusal::new(4004, format!("{name} has more than {max} messages")));
        }
        let read = |(at, value): (usize, &Value)| match value {
            Value::Object(map) => Self::read(&Fields(map.clone())),
            _ => Err(Refusal::param(format!("{name}[{at}] must be an object"))),
        };
        list.iter().enumerate().map(read).collect()
    }

    /// Reads one message.
    pub(crate) fn read(fields: &Fields) -> Result<Self, Refusal> {
        let role = fields.need_text("role")?;
        if !["user", "assistant"].contains(&role) {
            return Err(Refusal::param("role must be user or assistant"));
        }
        let content = fields.text("content")?.unwrap_or_default();
        let content_type = match fields.text("content_type")? {
            Some(text) if !text.is_empty() => text,
            _ if content.is_empty() => "text",
            _ => return Err(Refusal::param("content_type is required")),
        };
        check_content(content, content_type)?;
        let kind = fields.text("type")?.filter(|kind| !kind.is_empty());
        let kind = kind.unwrap_or(if role == "user" { "question" } else { "answer" });
        Ok(Self {
            role: role.into(),
            kind: kind.into(),
            content: content.into(),
            content_type: content_type.into(),
            meta: fields.meta_data()?,
        })
    }

    /// The text a bot would read: of several parts, the texts.
    pub(crate) fn text(&self) -> String {
        if self.content_type != "object_string" {
            return self.content.clone();
        }
        let parts: Vec<Value> = serde_json::from_str(&self.content).unwrap_or_default();
        let texts: Vec<_> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
        texts.join(" ")
    }
}

/// Refuses a content type a caller may not send, and parts that are not a JSON array (4005).
pub(crate) fn check_content(content: &str, content_type: &str) -> Result<(), Refusal> {
    match content_type {
        "text" => Ok(()),
        "object_string" if serde_json::from_str::<Vec<Map<String, Value>>>(content).is_ok() => Ok(()),
        "object_string" => Err(Refusal::new(4005, "The message content is not a JSON array of objects")),
        _ => Err(Refusal::param("content_type must be text or object_string")),
    }
}

impl Message {
    /// A message in a conversation that no chat made.
    pub(crate) fn new(ids: &mut Ids, conversation: &str, section: &str, entered: Entered, unix: u64) -> Self {
        Self {
            id: ids.id(),
            conversation: conversation.into(),
            section: section.into(),
            bot: String::new(),
            chat: String::new(),
            created: unix,
            updated: unix,
            entered,
        }
    }

    /// As streams show it.
    pub(crate) fn in_stream(&self) -> Value {
        let entered = &self.entered;
        json!({
            "id": self.id,
            "conversation_id": self.conversation,
            "section_id": self.section,
            "bot_id": self.bot,
            "chat_id": self.chat,
            "role": entered.role,
            "type": entered.kind,
            "content": entered.content,
            "content_type": entered.content_type,
            "created_at": self.created,
            "updated_at": self.updated,
        })
    }

    /// As conversations list it. `updated_at` is text there while `created_at` is a number, as the platform's own samples
    /// have it (coze-platform.md §2.1).
    pub(crate) fn listed(&self) -> Value {
        let mut value = self.in_stream();
        value["meta_data"] = Value::Object(self.entered.meta.clone());
        value["updated_at"] = self.updated.to_string().into();
        value
    }
}
