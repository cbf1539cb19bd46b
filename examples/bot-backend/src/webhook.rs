//! Messages: one in, its answer out, as one JSON envelope or as a stream of events.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use coze_core::{BoxError, Context, Error, Kind, RequestId};
use coze_errmap::Mapping;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{sync::mpsc::Receiver, time::Instant};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use crate::{
    answering::Piece,
    app::App,
    message::{Answer, Message},
};

/// Answers a message whose signature is verified.
pub(crate) async fn webhook<B>(app: Arc<App>, request: Request<B>) -> Result<Response<Body>, Error>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let (mut parts, body) = request.into_parts();
    let context = Context::of(&mut parts.extensions);
    let bot = context.bot.get().ok_or_else(|| Error::new(Kind::Internal, "bot_unknown"))?;
    let message = Message::parse(&whole(body).await?, bot)?;
    let start = context.start.get().map_or_else(Instant::now, |start| (*start).into());
    context.deadline.get_or_init(|| (start + app.request_timeout).into());

    let about = About { message: message.id.clone(), conversation: message.conversation.to_string() };
    let mut pieces = app.answer(&context, message);
    if !wants_stream(&parts.headers) {
        return loop {
            match pieces.recv().await {
                Some(Piece::Delta(_)) => {}
                Some(Piece::Done(answer)) => break Ok(about.envelope(&answer)),
                Some(Piece::Failed(error)) => break Err(error),
                None => break Err(lost()),
            }
        };
    }
    // What fails before the first piece still gets the status it deserves.
    match pieces.recv().await {
        Some(Piece::Failed(error)) => Err(error),
        Some(first) => Ok(about.stream(first, pieces, context)),
        None => Err(lost()),
    }
}

/// A body that an outer layer has read and bounded already.
pub(crate) async fn whole<B>(body: B) -> Result<Bytes, Error>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(Error::new(Kind::Internal, "body_lost").with_source(error)),
    }
}

/// A response of JSON.
pub(crate) fn json_response(body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The names of what is answered.
struct About {
    message: String,
    conversation: String,
}

impl About {
    fn done(&self, answer: &Answer) -> Value {
        json!({
            "message_id": self.message,
            "conversation_id": self.conversation,
            "content": answer.content,
            "usage": answer.usage,
        })
    }

    fn envelope(&self, answer: &Answer) -> Response<Body> {
        json_response(&json!({ "code": 0, "msg": "", "data": self.done(answer) }))
    }

    fn stream(self, first: Piece, rest: Receiver<Piece>, context: Context) -> Response<Body> {
        let pieces = tokio_stream::once(first).chain(ReceiverStream::new(rest));
        let events = pieces.map(move |piece| {
            let (name, data) = match piece {
                Piece::Delta(text) => ("delta", json!({ "content": text })),
                Piece::Done(answer) => ("done", self.done(&answer)),
                Piece::Failed(error) => ("error", fault(&error, &context)),
            };
            Ok::<_, Error>(format!("event: {name}\ndata: {data}\n\n"))
        });
        let mut response = Response::new(Body::from_stream(events));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // Proxies of the nginx kind would else collect the events.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }
}

/// What errmap would say in a response, where the status is that of a success.
pub(crate) fn fault(error: &Error, context: &Context) -> Value {
    let mapping = Mapping::of(error);
    context.failure.get_or_init(|| (error.kind(), error.reason()));
    let message = match error.kind() {
        Kind::Internal => mapping.en,
        _ => error.message(),
    };
    let logid = error.platform().and_then(|p| p.logid.as_deref());
    let logid = logid.or_else(|| context.request_id.get().map(RequestId::as_str));
    json!({ "code": mapping.code, "msg": message, "detail": { "logid": logid } })
}

/// Whether the caller names event streams among what it accepts.
pub(crate) fn wants_stream(headers: &HeaderMap) -> bool {
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    ranges.flat_map(|value| value.split(',')).any(|range| {
        range.split(';').next().is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("text/event-stream"))
    })
}

/// The task that answers ended without a word: it panicked.
fn lost() -> Error {
    Error::new(Kind::Internal, "answer_lost")
}
