//! The platform's chat API (coze-platform.md §2.3, §7.2), over any service that takes HTTP requests.

mod benefits;
mod stream;
mod wire;

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use coze_core::{BoxError, Context, Error, Kind};
use coze_errmap::from_status;
use coze_ratelimit::{Benefits, Pace};
use http::{HeaderMap, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tower::{ServiceExt, util::BoxCloneSyncService};
use tower_service::Service;

use crate::{config::BaseUrl, message::Usage};

pub(crate) use stream::{ChatStream, Running, Step, cut};
use wire::{Chat, Message, nonsense};

/// Bytes of a JSON answer. A list of messages repeats the whole answer.
const MAX_JSON: usize = 4 << 20;
/// The platform allows one look at a chat in this time (coze-platform.md §2.3).
const POLL: Duration = Duration::from_secs(1);

/// Where the platform says what its limits are (coze-platform.md §4).
pub(crate) const BENEFITS: &str = "/v1/commerce/benefit/benefits/get";

/// The service that calls go through: the outbound stack.
type Stack = BoxCloneSyncService<Request<Full<Bytes>>, Response<Body>, BoxError>;

/// A client of the platform.
#[derive(Clone, Debug)]
pub(crate) struct Platform {
    stack: Stack,
    url: BaseUrl,
    pace: Pace,
}

/// A question to a bot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) bot: &'a str,
    pub(crate) user: &'a str,
    /// The platform's conversation it belongs to; a new one without.
    pub(crate) conversation: Option<&'a str>,
    pub(crate) content: &'a str,
}

impl Platform {
    /// A client that sends to `url` through `stack`, which calls go through at this pace.
    pub(crate) fn new<S, B>(url: BaseUrl, stack: S, pace: Pace) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let stack = stack.map_response(|response: Response<B>| response.map(Body::new)).map_err(Into::into);
        Self { stack: BoxCloneSyncService::new(stack), url, pace }
    }

    /// Asks for a streamed answer.
    pub(crate) async fn stream(&self, context: &Context, question: Question<'_>) -> Result<ChatStream, Error> {
        let (path, body) = chat_request(question, true);
        let sent = Instant::now();
        let response = self.send(context, Method::POST, &path, Some(body)).await;
        let response = response.inspect_err(|error| self.ended(context, sent, error))?;
        let logid = logid(response.headers());
        // An error comes as JSON, although a stream was asked for.
        if !is_event_stream(response.headers()) {
            let error = match read::<Value>(response, logid.as_deref()).await {
                Ok(_) => nonsense("the platform answered without the stream it was asked for"),
                Err(error) => error,
            };
            self.heard(context, sent, &error);
            return Err(error);
        }
        Ok(ChatStream { body: response.into_body(), logid, parser: Default::default(), input: Bytes::new() })
    }

    /// Asks for an answer that is fetched when it is there.
    pub(crate) async fn create(&self, context: &Context, question: Question<'_>) -> Result<Running, Error> {
        let (path, body) = chat_request(question, false);
        let sent = Instant::now();
        let begun = self.ask::<Chat>(context, Method::POST, &path, Some(body)).await;
        let (chat, logid) = begun.inspect_err(|error| self.ended(context, sent, error))?;
        if let Some(Err(error)) = chat.verdict(logid.as_deref())? {
            self.heard(context, sent, &error);
            return Err(error);
        }
        if chat.id.is_empty() || chat.conversation_id.is_empty() {
            return Err(nonsense("the platform did not say which chat it began"));
        }
        Ok(Running { conversation: chat.conversation_id, chat: chat.id })
    }

    /// Waits for the end of a chat that was begun at `sent`, however long that is, with one look a second. The inner result is how
    /// it ended.
    pub(crate) async fn wait(
        &self,
        context: &Context,
        running: &Running,
        sent: Instant,
    ) -> Result<Result<Usage, Error>, Error> {
        let path = format!("/v3/chat/retrieve?{}", ids(running));
        loop {
            let look = self.ask::<Chat>(context, Method::GET, &path, None).await;
            let (chat, logid) = look.inspect_err(|error| self.ended(context, sent, error))?;
            // From its answer on: nobody knows how long the look waited for its turn.
            let next = Instant::now() + POLL;
            if let Some(verdict) = chat.verdict(logid.as_deref())? {
                return Ok(verdict.inspect_err(|error| self.heard(context, sent, error)));
            }
            sleep_until(next).await;
        }
    }

    /// What the bot answered in a chat that is completed.
    pub(crate) async fn answer(&self, context: &Context, running: &Running) -> Result<String, Error> {
        let path = format!("/v3/chat/message/list?{}", ids(running));
        let (messages, _) = self.ask::<Vec<Message>>(context, Method::GET, &path, None).await?;
        Ok(messages.iter().filter(|m| m.is_answer()).map(|m| m.content.as_str()).collect())
    }

    /// Ends a chat that nobody waits for any more.
    pub(crate) async fn cancel(&self, context: &Context, running: &Running) -> Result<(), Error> {
        let body = json!({ "conversation_id": running.conversation, "chat_id": running.chat });
        self.ask::<Value>(context, Method::POST, "/v3/chat/cancel", Some(body)).await.map(|_| ())
    }

    /// What the platform says of its limits.
    pub(crate) async fn benefits(&self, context: &Context) -> Result<Benefits, Error> {
        let path = format!("{BENEFITS}?benefit_type_list=api_run_qps&resource_id=chat");
        let response = self.send(context, Method::GET, &path, None).await?;
        benefits::read(&bytes(response).await?)
    }

    /// How fast calls go.
    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// A chat that was begun at `sent` failed, as no layer has seen: what an event of its stream, or its own status says.
    pub(crate) fn heard(&self, context: &Context, sent: Instant, error: &Error) {
        self.heard_of(context, Method::POST, Uri::from_static("/v3/chat"), sent, error);
    }

    /// The same, of an error that may also be of the call itself, which a layer has heard then.
    fn ended(&self, context: &Context, sent: Instant, error: &Error) {
        if error.is_failed_chat() {
            self.heard(context, sent, error);
        }
    }

    fn heard_of(&self, context: &Context, method: Method, uri: Uri, sent: Instant, error: &Error) {
        let (mut parts, ()) = Request::new(()).into_parts();
        (parts.method, parts.uri) = (method, uri);
        self.pace.heard(&parts, context, sent.into(), error);
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        context: &Context,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(T, Option<String>), Error> {
        let (sent, of) = (Instant::now(), method.clone());
        let response = self.send(context, method, path, body).await?;
        let logid = logid(response.headers());
        match read(response, logid.as_deref()).await {
            Ok(answer) => Ok((answer, logid)),
            Err(error) => {
                // A code that came too late in the body for the layers.
                self.heard_of(context, of, path.parse().unwrap_or_default(), sent, &error);
                Err(error)
            }
        }
    }

    /// One call, with a context of its own: what becomes of it is not what becomes of the request it is for.
    async fn send(
        &self,
        context: &Context,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Response<Body>, Error> {
        let uri = self.url.join(path).map_err(|e| Error::new(Kind::Internal, "platform_address").with_source(e))?;
        let streams = body.as_ref().is_some_and(|body| body["stream"] == true);
        let body = body.map(|body| Bytes::from(body.to_string()));
        let mut request = Request::builder().method(method).uri(uri);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if streams {
            // Retry understands an error instead of the stream by it: the chat has not begun.
            request = request.header(header::ACCEPT, "text/event-stream");
        }
        let request = request
            .extension(context.child())
            .body(body.map(Full::new).unwrap_or_default())
            .map_err(|e| Error::new(Kind::Internal, "platform_request").with_source(e))?;
        let response = self.stack.clone().oneshot(request).await.map_err(typed)?;
        if response.status().is_client_error() || response.status().is_server_error() {
            // Where errmap is part of the stack it has seen to this.
            return Err(from_status(response.status()));
        }
        Ok(response)
    }
}

fn chat_request(question: Question<'_>, stream: bool) -> (String, Value) {
    // An empty conversation id is an error on self-hosted platforms.
    let path = match question.conversation {
        Some(id) => format!("/v3/chat?conversation_id={}", encode(id)),
        None => "/v3/chat".to_owned(),
    };
    let message = json!({ "role": "user", "type": "question", "content": question.content, "content_type": "text" });
    let body = json!({
        "bot_id": question.bot,
        "user_id": question.user,
        "stream": stream,
        // Without it the platform refuses an answer that is no stream (4007).
        "auto_save_history": true,
        "additional_messages": [message],
    });
    (path, body)
}

fn ids(running: &Running) -> String {
    format!("conversation_id={}&chat_id={}", encode(&running.conversation), encode(&running.chat))
}

/// Percent-encodes all but the characters that mean nothing in a URL (RFC 3986 §2.3).
fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

async fn read<T: DeserializeOwned>(response: Response<Body>, logid: Option<&str>) -> Result<T, Error> {
    wire::open(&bytes(response).await?, logid)
}

async fn bytes(response: Response<Body>) -> Result<Bytes, Error> {
    let body = Limited::new(response.into_body(), MAX_JSON).collect().await;
    let body = body.map_err(|e| nonsense("the platform's answer broke off or is too long").with_source(e))?;
    Ok(body.to_bytes())
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    value.len() >= 17 && value[..17].eq_ignore_ascii_case(b"text/event-stream")
}

/// The platform's log id; the self-hosted edition has another name for it.
fn logid(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("x-tt-logid").or_else(|| headers.get("x-log-id"))?;
    value.to_str().ok().map(str::to_owned)
}

/// The error of a layer, or of what lies below the layers.
fn typed(error: BoxError) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::new(Kind::Unavailable, "platform_unreachable")
            .with_message("the platform cannot be reached")
            .with_source(error),
    }
}

#[cfg(test)]
mod tests {
    use coze_core::Retry;
    use coze_errmap::from_platform;
    use coze_ratelimit::{PaceRate, PlatformPlan};
    use tower::service_fn;

    use super::*;

    const BEGAN: &str = r#"{"code":0,"data":{"id":"1","conversation_id":"2","status":"in_progress"}}"#;
    const FAILED: &str = r#"{"code":0,"data":{"id":"1","status":"failed","last_error":{"code":702112103}}}"#;
    const BUSY: &str = r#"{"code":4009,"msg":"busy"}"#;

    type Answer = fn() -> Result<&'static str, Error>;

    fn of(code: i64) -> Error {
        from_platform(code, "", None)
    }

    /// Which levels are slower than they were once a chat was begun and looked at, where this answers to both.
    async fn slower(chat: Answer, look: Answer) -> Vec<&'static str> {
        let pace = Pace::platform(PlatformPlan::Team);
        pace.set("app", Some(PaceRate::per_second(200.try_into().expect("not zero")))).expect("a level");
        let levels = ["chat", "bot", "workflow", "upload", "model", "app"];
        let rates = || levels.map(|level| pace.per_second(level));
        let was = rates();
        let stack = service_fn(move |request: Request<Full<Bytes>>| {
            let answer = if request.uri().path() == "/v3/chat" { chat() } else { look() };
            std::future::ready(answer.map(|body| Response::new(Full::new(Bytes::from(body)))))
        });
        let platform = Platform::new("http://localhost".parse().expect("a URL"), stack, pace.clone());
        let question = Question { bot: "b", user: "u", conversation: None, content: "hello" };
        let (context, sent) = (Context::new(), Instant::now());
        if let Ok(running) = platform.create(&context, question).await {
            let ended = platform.wait(&context, &running, sent).await;
            assert!(!matches!(ended, Ok(Ok(_))));
        }
        levels.into_iter().zip(was.into_iter().zip(rates())).filter(|(_, (was, is))| was != is).map(|of| of.0).collect()
    }

    #[tokio::test]
    async fn a_refusal_that_no_layer_saw_is_told_to_the_call_it_is_about() {
        // What a layer made an error of, it has heard.
        assert!(slower(|| Err(of(4009)), || Ok(BEGAN)).await.is_empty());
        assert!(slower(|| Ok(BEGAN), || Err(of(4009).with_retry_after(Duration::from_secs(30)))).await.is_empty());
        assert!(slower(|| Ok(BEGAN), || Err(from_status(http::StatusCode::TOO_MANY_REQUESTS))).await.is_empty());
        // A code in a body that no layer read is of the call itself.
        assert_eq!(slower(|| Ok(BUSY), || Ok(BEGAN)).await, ["chat"]);
        assert_eq!(slower(|| Ok(BEGAN), || Ok(BUSY)).await, ["app"]);
        // How the chat ended is about the chat, whoever read it.
        assert_eq!(slower(|| Ok(FAILED), || Ok(BEGAN)).await, ["model"]);
        assert_eq!(slower(|| Ok(BEGAN), || Ok(FAILED)).await, ["model"]);
        assert_eq!(slower(|| Ok(BEGAN), || Err(of(702_112_103).with_failed_chat())).await, ["model"]);
        assert_eq!(slower(|| Ok(BEGAN), || Err(of(4009).with_failed_chat())).await, ["chat"]);
        assert_eq!(slower(|| Err(of(4009).with_failed_chat()), || Ok(BEGAN)).await, ["chat"]);
        // Also what is never asked again may be a refusal of the look.
        assert!(slower(|| Ok(BEGAN), || Err(of(4028))).await.is_empty());
        assert!(slower(|| Ok(BEGAN), || Err(of(702_112_103).with_retry(Retry::Never))).await.is_empty());
    }
}
