//! A message as callers send it, and the answer they get.

use coze_core::{BotId, ConversationId, Error, Kind, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Bytes of a message id of the caller's.
const MAX_MESSAGE_ID: usize = 128;

/// A message to a bot.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The bot it is for.
    pub bot: BotId,
    /// The caller's conversation.
    pub conversation: ConversationId,
    /// Who wrote it.
    pub user: UserId,
    /// Names the message for good: the same one is not answered twice.
    pub id: String,
    /// What was written.
    pub content: String,
}

/// Leaves out what a person wrote.
impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message").field("bot", &self.bot).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Message {
    /// Reads a webhook's body, for the bot whose signature it bears. A message without an id gets a random one.
    ///
    /// # Errors
    /// `body_malformed` (no JSON object), `field_missing`, `field_invalid` (both name the field), all [`Kind::Invalid`];
    /// `bot_mismatch` ([`Kind::PermissionDenied`]) when the body names another bot.
    pub fn parse(body: &[u8], bot: &BotId) -> Result<Self, Error> {
        let malformed = |what: String| Error::new(Kind::Invalid, "body_malformed").with_message(what);
        let fields = match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return Err(malformed("the body is not a JSON object".into())),
            Err(e) => return Err(malformed(format!("the body is not JSON: line {}, column {}", e.line(), e.column()))),
        };
        let named: BotId = id(&fields, "bot_id")?;
        if named != *bot {
            return Err(Error::new(Kind::PermissionDenied, "bot_mismatch")
                .with_message("the field bot_id is not the bot whose key signed the body"));
        }
        let content = required(&fields, "content")?;
        if content.trim().is_empty() {
            return Err(invalid("content", "is empty"));
        }
        // PostgreSQL has no text with it.
        if content.contains('\0') {
            return Err(invalid("content", "must not contain the character NUL"));
        }
        let message_id = match fields.get("message_id") {
            None | Some(Value::Null) => format!("m-{:032x}", fastrand::u128(..)),
            Some(_) => required(&fields, "message_id")?.to_owned(),
        };
        if message_id.is_empty() || message_id.len() > MAX_MESSAGE_ID || message_id.chars().any(char::is_control) {
            return Err(invalid("message_id", "must be 1 to 128 bytes of text without control characters"));
        }
        Ok(Self {
            bot: named,
            conversation: id(&fields, "conversation_id")?,
            user: id(&fields, "user_id")?,
            id: message_id,
            content: content.to_owned(),
        })
    }
}

/// The author of a message, for layers that need no more of a body: whom [`Message::parse`] takes for it, or nobody where that
/// refuses the field. It reads the body in the same way, as a limit that counts somebody else is none.
#[must_use]
pub fn user(body: &[u8]) -> Option<UserId> {
    let fields: Map<String, Value> = serde_json::from_slice(body).ok()?;
    id(&fields, "user_id").ok()
}

fn required<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str, Error> {
    let found = match fields.get(name) {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Null) | None => {
            return Err(Error::new(Kind::Invalid, "field_missing").with_message(format!("the field {name} is missing")));
        }
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Number(_)) => "a number",
        Some(Value::Array(_)) => "a list",
        Some(Value::Object(_)) => "an object",
    };
    Err(invalid(name, &format!("must be a string, not {found}")))
}

fn id<T: std::str::FromStr<Err = coze_core::InvalidId>>(fields: &Map<String, Value>, name: &str) -> Result<T, Error> {
    required(fields, name)?.parse().map_err(|e: coze_core::InvalidId| invalid(name, &e.to_string()))
}

fn invalid(name: &str, what: &str) -> Error {
    Error::new(Kind::Invalid, "field_invalid").with_message(format!("the field {name}: {what}"))
}

/// Tokens an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Of the question and its history.
    #[serde(alias = "input_tokens")]
    pub input_count: u32,
    /// Of the answer.
    #[serde(alias = "output_tokens")]
    pub output_count: u32,
    /// Both together.
    pub token_count: u32,
}

/// What a bot answered.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The text.
    pub content: String,
    /// What it took.
    pub usage: Usage,
}

/// Leaves out what was answered.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("usage", &self.usage).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(body: &Value) -> Result<Message, String> {
        let bot = BotId::new("b1").expect("valid");
        Message::parse(body.to_string().as_bytes(), &bot).map_err(|e| format!("{}: {e}", e.reason()))
    }

    fn good() -> Value {
        json!({ "bot_id": "b1", "conversation_id": "c1", "user_id": "张三", "content": "hi", "message_id": "m1", "else": [1] })
    }

    #[test]
    fn a_message_is_read_and_what_is_unknown_is_ignored() {
        let message = parse(&good()).expect("good");
        assert_eq!((message.user.as_str(), message.id.as_str(), message.content.as_str()), ("张三", "m1", "hi"));
        assert_eq!(user(good().to_string().as_bytes()), Some(message.user));
    }

    #[test]
    fn a_message_without_an_id_gets_one_of_its_own() {
        let mut body = good();
        body["message_id"] = Value::Null;
        assert_ne!(parse(&body).expect("good").id, parse(&body).expect("good").id);
    }

    #[test]
    fn each_missing_or_ill_typed_field_is_named() {
        for field in ["bot_id", "conversation_id", "user_id", "content"] {
            let mut body = good();
            body.as_object_mut().expect("an object").remove(field);
            assert_eq!(parse(&body).expect_err("missing"), format!("field_missing: the field {field} is missing"));
            for (value, found) in
                [(json!(7), "a number"), (json!(true), "a boolean"), (json!([]), "a list"), (json!({}), "an object")]
            {
                body[field] = value;
                let expected = format!("field_invalid: the field {field}: must be a string, not {found}");
                assert_eq!(parse(&body).expect_err("ill-typed"), expected);
            }
        }
        let mut body = good();
        body["user_id"] = json!("a\nb");
        assert!(parse(&body).expect_err("a line end").starts_with("field_invalid: the field user_id: user id must be"));
        body = good();
        body["content"] = json!(" \n");
        assert_eq!(parse(&body).expect_err("empty"), "field_invalid: the field content: is empty");
        body = good();
        body["content"] = json!("a\0b");
        assert_eq!(
            parse(&body).expect_err("NUL"),
            "field_invalid: the field content: must not contain the character NUL"
        );
        for id in ["", "a\u{0}", &"x".repeat(129)] {
            body = good();
            body["message_id"] = json!(id);
            assert!(parse(&body).expect_err("not an id").starts_with("field_invalid: the field message_id"));
        }
    }

    #[test]
    fn the_body_may_not_name_another_bot() {
        let mut body = good();
        body["bot_id"] = json!("b2");
        assert!(parse(&body).expect_err("another").starts_with("bot_mismatch"));
    }

    #[test]
    fn a_field_that_is_there_twice_names_the_same_author_for_all() {
        let body = br#"{"user_id":"a","bot_id":"b1","conversation_id":"c","content":"hi","user_id":"b"}"#;
        let message = Message::parse(body, &BotId::new("b1").expect("valid")).expect("good");
        assert_eq!((user(body), message.user.as_str()), (Some(message.user.clone()), "b"));
    }

    proptest! {
        #[test]
        fn no_body_breaks_it(body: Vec<u8>) {
            let bot = BotId::new("b1").expect("valid");
            prop_assert!(Message::parse(&body, &bot).is_err());
            let _ = user(&body);
        }
    }
}
