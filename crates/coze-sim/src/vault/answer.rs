use serde_json::{Value, json};

/// What a handler answers: an object, or nothing (204); or a refusal.
pub(super) type Answered = Result<Option<Value>, Refusal>;

/// An answer with a status other than 200 and 204.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Refusal {
    pub(super) fn new(status: u16, error: impl Into<String>) -> Self {
        Self { status, body: json!({ "errors": [error.into()] }) }
    }

    /// What is not there is refused without a word.
    pub(super) fn missing() -> Self {
        Self { status: 404, body: json!({ "errors": [] }) }
    }

    /// The token is unknown, over, or missing.
    pub(super) fn denied() -> Self {
        Self::new(403, "permission denied")
    }
}
