use std::{collections::BTreeMap, fmt, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::reply::Event;

/// Something that goes wrong, on purpose.
///
/// Every request to the platform (not to `/_sim/`) takes at most one fault: the first in the list, in the order they were
/// added, that matches it and is not used up. So several faults for one route make a script.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fault {
    /// The route: a pattern of the README's table such as `/v1/bots/:bot_id`, a path, or `*` for any. Default `*`.
    pub route: String,
    /// The method. Default `None`: any.
    pub method: Option<String>,
    /// How many matching requests go by untouched first. Default 0.
    pub skip: u64,
    /// How many requests it takes after that. Default 1.
    pub times: u64,
    /// How long the answer's head is held back, in JSON milliseconds. Default none.
    #[serde(with = "millis", rename = "delay_ms")]
    pub delay: Duration,
    /// What happens. Default [`FaultKind::Pass`].
    pub kind: FaultKind,
}

impl Default for Fault {
    fn default() -> Self {
        Self { route: "*".into(), method: None, skip: 0, times: 1, delay: Duration::ZERO, kind: FaultKind::Pass }
    }
}

impl Fault {
    /// A fault for the next request to `route`.
    #[must_use]
    pub fn new(route: impl Into<String>, kind: FaultKind) -> Self {
        Self { route: route.into(), kind, ..Self::default() }
    }

    fn check(&self) -> Result<(), InvalidFault> {
        if self.times == 0 {
            return Err(InvalidFault("times must be at least 1".into()));
        }
        let (status, headers) = match &self.kind {
            FaultKind::Status { status, headers, .. } | FaultKind::Code { status, headers, .. } => (*status, headers),
            FaultKind::Html { status } => (*status, &BTreeMap::new()),
            _ => return Ok(()),
        };
        if !(200..=599).contains(&status) {
            return Err(InvalidFault(format!("status must be from 200 to 599, not {status}")));
        }
        for (name, value) in headers {
            if HeaderName::from_bytes(name.as_bytes()).is_err() || HeaderValue::from_str(value).is_err() {
                return Err(InvalidFault(format!("{name:?} is not a valid header, or its value is not")));
            }
        }
        Ok(())
    }
}

/// What goes wrong. In JSON a name, or an object with the name as its only key: `"reset"`, `{"code": {"code": 4009}}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum FaultKind {
    /// Nothing: with a `delay`, the right answer comes late.
    #[default]
    Pass,
    /// An HTTP answer of a gateway: this status, a JSON body or none, further headers.
    Status {
        /// 200 to 599.
        status: u16,
        /// The body. Default none at all.
        #[serde(default)]
        body: Option<Value>,
        /// Headers, such as `X-RateLimit-Remaining` or `Retry-After`.
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// The platform's envelope with this code, also where a stream was asked for.
    Code {
        /// The code, such as 4009.
        code: i64,
        /// The message. Default empty.
        #[serde(default)]
        msg: String,
        /// The HTTP status. Default 200.
        #[serde(default = "ok")]
        status: u16,
        /// Further headers.
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// A page in HTML without a log id, as the gateway before the platform sends it.
    Html {
        /// Default 504.
        #[serde(default = "gateway_timeout")]
        status: u16,
    },
    /// HTTP 200 with a body that is cut off JSON; in a stream, one event like that instead of the third.
    InvalidJson,
    /// The connection is reset before a byte of the answer.
    Reset,
    /// All access tokens that OAuth gave out end now, so this request and others fail until a new token is fetched.
    ExpireTokens,
    /// The person does not consent: the authorize page leads back with `error=access_denied` (RFC 6749 §4.1.2.1).
    RefuseConsent,
    /// Time between two events of a stream.
    DelayEvents {
        /// In JSON milliseconds, `ms`.
        #[serde(with = "millis", rename = "ms")]
        delay: Duration,
    },
    /// The body comes in pieces of 16 bytes with time between them.
    SlowBody {
        /// In JSON milliseconds, `ms`.
        #[serde(with = "millis", rename = "ms")]
        delay: Duration,
    },
    /// A stream ends after so many events, without `done`; an answer without a stream breaks in its middle.
    Cut {
        /// Events that are still sent.
        after: usize,
        /// Does the connection break, rather than end cleanly? Default false.
        #[serde(default)]
        abort: bool,
    },
    /// The chat fails: in a stream with the event `conversation.chat.failed` (`Error` in a workflow's), otherwise in
    /// `last_error` of its retrieval. On `/v3/chat/retrieve` the chat that is asked about fails now.
    Failed {
        /// The code, such as 4028 or 5000.
        code: i64,
        /// The message. Default empty.
        #[serde(default)]
        msg: String,
        /// Is the event's data only `{"code","msg"}`, rather than the chat with `last_error`? Default false.
        #[serde(default)]
        bare: bool,
        /// Events sent before it. Default 2.
        #[serde(default = "two")]
        after: usize,
    },
    /// A stream has an `error` event (`Error` in a workflow's), and then ends; the chat has failed.
    Error {
        /// The code.
        code: i64,
        /// The message. Default empty.
        #[serde(default)]
        msg: String,
        /// Events sent before it. Default 2.
        #[serde(default = "two")]
        after: usize,
    },
}

fn ok() -> u16 {
    200
}

fn gateway_timeout() -> u16 {
    504
}

fn two() -> usize {
    2
}

/// Durations as whole milliseconds.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

impl FaultKind {
    /// The failure a chat ends with, if this is one.
    pub(crate) fn failure(&self) -> Option<(i64, &str)> {
        match self {
            Self::Failed { code, msg, .. } | Self::Error { code, msg, .. } => Some((*code, msg)),
            _ => None,
        }
    }

    /// Changes the events of a stream; what needs time or the connection is left to the body.
    pub(crate) fn change(&self, events: &mut Vec<Event>) {
        let numbered = events.first().is_some_and(|event| event.id.is_some());
        match self {
            Self::Failed { code, msg, after, .. } | Self::Error { code, msg, after } if numbered => {
                let data = json!({ "error_code": code, "error_message": msg });
                events.truncate((*after).min(events.len().saturating_sub(1)));
                events.push(Event { id: Some(events.len()), ..Event::new("Error", &data) });
            }
            Self::Error { code, msg, after } => {
                interrupt(events, *after, Event::new("error", &json!({ "code": code, "msg": msg })));
            }
            Self::Failed { code, msg, bare, after } => {
                let mut data = json!({ "code": code, "msg": msg });
                if !bare {
                    // The chat as the first event has it, failed.
                    let chat = events.first().and_then(|event| serde_json::from_str(&event.data).ok());
                    let mut chat: Value = chat.unwrap_or_else(|| json!({}));
                    chat["last_error"] = data;
                    chat["status"] = "failed".into();
                    chat["failed_at"] = chat["created_at"].clone();
                    data = chat;
                }
                interrupt(events, *after, Event::new("conversation.chat.failed", &data));
            }
            Self::InvalidJson => {
                if let Some(event) = events.get_mut(2) {
                    event.data.truncate(6);
                }
            }
            _ => {}
        }
    }

    /// What a stream with this fault is counted as.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Cut { .. } => "cut",
            Self::Failed { .. } => "failed",
            Self::Error { .. } => "error",
            Self::InvalidJson => "invalid json",
            _ => "0",
        }
    }
}

/// Keeps `after` events and the last one (`done`), with `event` between them.
fn interrupt(events: &mut Vec<Event>, after: usize, event: Event) {
    let done = events.pop();
    events.truncate(after);
    events.push(event);
    events.extend(done);
}

/// The faults that wait for their requests.
#[derive(Debug)]
pub(crate) struct Faults {
    list: Vec<Fault>,
    cap: usize,
}

impl Faults {
    pub(crate) fn new(cap: usize) -> Self {
        Self { list: Vec::new(), cap }
    }

    /// Adds faults, all or none.
    pub(crate) fn add_all(&mut self, faults: Vec<Fault>) -> Result<(), InvalidFault> {
        faults.iter().try_for_each(Fault::check)?;
        if self.list.len() + faults.len() > self.cap {
            return Err(InvalidFault(format!("at most {} faults can wait", self.cap)));
        }
        self.list.extend(faults);
        Ok(())
    }

    /// The fault for this request, if one waits for it.
    pub(crate) fn take(&mut self, method: &str, path: &str, pattern: &str) -> Option<Fault> {
        for (at, fault) in self.list.iter_mut().enumerate() {
            let route = ["*", path, pattern].contains(&fault.route.as_str());
            if !route || fault.method.as_ref().is_some_and(|wanted| !wanted.eq_ignore_ascii_case(method)) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.times -= 1;
            return Some(if fault.times == 0 { self.list.remove(at) } else { fault.clone() });
        }
        None
    }

    pub(crate) fn clear(&mut self) -> usize {
        self.list.drain(..).count()
    }

    /// What is left.
    pub(crate) fn list(&self) -> &[Fault] {
        &self.list
    }
}

/// The fault is not possible; the text says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidFault(String);

impl fmt::Display for InvalidFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidFault {}

/// The status of a checked fault.
pub(crate) fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
