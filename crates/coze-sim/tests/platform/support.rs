//! A client for the simulated platform.

use std::{error::Error, io, time::Duration};

use bytes::Bytes;
use coze_sim::{BOT, Config, Keep, Limits, OAuth, Pace, Sim, TOKEN};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

/// A platform and a client that shows a token.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) sim: Sim,
    pub(crate) token: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// A configuration without limits per second, whose chats end by being asked about and never by time.
pub(crate) fn config() -> Config {
    Config {
        limits: Limits { chat_qps: 0, workflow_qps: 0, upload_qps: 0, ..Limits::default() },
        pace: Pace { work: Duration::MAX, ..Pace::default() },
        oauth: OAuth { device_interval: Duration::ZERO, ..OAuth::default() },
        keep: Keep { conversations: 100, messages: 10, chats: 100, requests: 10, body_bytes: 64, ..Keep::default() },
        ..Config::default()
    }
}

impl Api {
    pub(crate) async fn start(config: Config) -> Self {
        let sim = Sim::start(config).await.expect("a free port");
        Self { sim, token: TOKEN.into(), client: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// Sends a request; fails if the connection breaks before there is a head.
    pub(crate) async fn try_send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> Sent {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.sim.url()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.client.request(request.body(Full::new(body)).expect("a request")).await?;
        let (parts, mut body) = response.into_parts();
        let (mut bytes, mut broken) = (Vec::new(), false);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        let text = String::from_utf8(bytes).expect("utf-8");
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, text, broken })
    }

    /// Sends JSON, or nothing for null, with the token.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let bearer = format!("Bearer {}", self.token);
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        self.try_send(method, path, &headers, body).await.expect("an answer")
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, body).await
    }

    /// Starts a chat of the echo bot without a stream: the conversation and the chat.
    pub(crate) async fn chat(&self, content: &str) -> (String, String) {
        let chat = self.post("/v3/chat", question(content)).await.data();
        (text(&chat["conversation_id"]), text(&chat["id"]))
    }

    pub(crate) async fn retrieve(&self, (conversation, chat): &(String, String)) -> Answer {
        self.get(&format!("/v3/chat/retrieve?conversation_id={conversation}&chat_id={chat}")).await
    }
}

pub(crate) type Sent = Result<Answer, Box<dyn Error + Send + Sync>>;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// The connection broke in the body.
    pub(crate) broken: bool,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}", self.text))
    }

    /// Status and code.
    pub(crate) fn code(&self) -> (u16, i64) {
        (self.status, self.json()["code"].as_i64().expect("a code"))
    }

    /// `data` of a success.
    pub(crate) fn data(&self) -> Value {
        assert_eq!(self.code(), (200, 0), "{}", self.text);
        self.json()["data"].take()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("ascii"))
    }

    /// The events of a stream: their names and data.
    pub(crate) fn events(&self) -> Vec<(String, Value)> {
        assert_eq!((self.status, self.header("content-type")), (200, "text/event-stream"));
        let event = |block: &str| {
            let field = |name: &str| {
                let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.unwrap_or_else(|| panic!("no {name} in {block:?}")).trim_start().to_owned()
            };
            (field("event"), serde_json::from_str(&field("data")).unwrap_or(Value::Null))
        };
        self.text.split_terminator("\n\n").map(event).collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.events().into_iter().map(|(name, _)| name).collect()
    }
}

/// The body of a chat with the echo bot.
pub(crate) fn question(content: &str) -> Value {
    json!({
        "bot_id": BOT,
        "user_id": "u1",
        "additional_messages": [{ "role": "user", "content": content, "content_type": "text" }],
    })
}

/// The same with a stream.
pub(crate) fn streamed(content: &str) -> Value {
    with(question(content), "stream", json!(true))
}

/// A JSON object with one field changed.
pub(crate) fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// The kind of the I/O error at the root of an error.
pub(crate) fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = error.source();
    }
    None
}

/// Moves the clock of timers forward. Needs a runtime with one thread.
pub(crate) async fn jump(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
