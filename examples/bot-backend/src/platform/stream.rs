use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use coze_core::{Error, Kind, Retry};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::wire::{self, Chat, Fault, Message};
use crate::{
    message::Usage,
    sse::{Event, Parser},
};

/// What a stream of a chat says next.
#[derive(Debug)]
pub(crate) enum Step {
    /// The chat runs, under these ids.
    Started(Running),
    /// A piece of the answer.
    Delta(String),
    /// A whole message of the answer, after its pieces.
    Message(String),
    /// The chat is over: the answer is complete, or the bot failed.
    Over(Result<Usage, Error>),
    /// Nothing follows.
    Done,
}

/// The ids of a chat on the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) conversation: String,
    pub(crate) chat: String,
}

/// A streamed answer of the platform (coze-platform.md §2.3).
#[derive(Debug)]
pub(crate) struct ChatStream {
    pub(super) body: Body,
    pub(super) logid: Option<String>,
    pub(super) parser: Parser,
    pub(super) input: Bytes,
}

impl ChatStream {
    /// The next step; `None` at the end of the stream, which is a good end only after [`Step::Over`] or [`Step::Done`].
    ///
    /// # Errors
    /// What the platform says in an event, `stream_cut` when the connection breaks, and `platform_silent` when nothing comes
    /// within `silence`. None of them is sent again: the chat has run.
    pub(crate) async fn next(&mut self, silence: Duration) -> Result<Option<Step>, Error> {
        loop {
            while let Some(event) = self.parser.next(&mut self.input)? {
                if let Some(step) = read(&event, self.logid.as_deref()).map_err(|e| e.with_retry(Retry::Never))? {
                    return Ok(Some(step));
                }
            }
            let frame = timeout(silence, self.body.frame()).await.map_err(|_| {
                Error::new(Kind::Timeout, "platform_silent")
                    .with_message("the platform's stream fell silent")
                    .with_retry(Retry::Never)
            })?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => self.input = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(cut().with_source(error)),
            }
        }
    }
}

/// The stream ended before the answer was complete.
pub(crate) fn cut() -> Error {
    Error::new(Kind::Upstream, "stream_cut")
        .with_message("the platform's stream ended before the answer was complete")
        .with_retry(Retry::Never)
}

/// What an event means; `None` for one that says nothing about the answer.
fn read(event: &Event, logid: Option<&str>) -> Result<Option<Step>, Error> {
    Ok(Some(match event.name.as_str() {
        "conversation.chat.created" | "conversation.chat.in_progress" => {
            let chat: Chat = wire::event(&event.data)?;
            Step::Started(Running { conversation: chat.conversation_id, chat: chat.id })
        }
        "conversation.message.delta" | "conversation.message.completed" => {
            let message: Message = wire::event(&event.data)?;
            match (message.is_answer(), event.name.ends_with("delta")) {
                (true, true) => Step::Delta(message.content),
                (true, false) => Step::Message(message.content),
                (false, _) => return Ok(None),
            }
        }
        "conversation.chat.completed" => {
            let chat: Chat = wire::event(&event.data)?;
            Step::Over(Ok(chat.usage.unwrap_or_default()))
        }
        "conversation.chat.failed" => {
            Step::Over(Err(wire::event::<Chat>(&event.data)?.failure(logid).with_retry(Retry::Never)))
        }
        "conversation.chat.requires_action" => return Err(wire::requires_action()),
        "conversation.chat.canceled" | "conversation.chat.cancelled" => Step::Over(Err(wire::cancelled_there())),
        "error" | "Error" => return Err(wire::event::<Fault>(&event.data).unwrap_or_default().error(logid)),
        // Its data, `[DONE]` with and without quotes or an object, adds nothing.
        "done" | "Done" | "conversation.stream.done" => Step::Done,
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn steps(text: &'static str) -> (Vec<Step>, Option<Error>) {
        let mut stream = ChatStream {
            body: Body::from(text),
            logid: Some("log1".into()),
            parser: Parser::default(),
            input: Bytes::new(),
        };
        let mut steps = Vec::new();
        loop {
            match stream.next(Duration::from_secs(1)).await {
                Ok(Some(step)) => steps.push(step),
                Ok(None) => return (steps, None),
                Err(error) => return (steps, Some(error)),
            }
        }
    }

    async fn error(text: &'static str) -> Error {
        match steps(text).await {
            (mut steps, None) => match steps.pop() {
                Some(Step::Over(Err(error))) => error,
                step => panic!("{step:?} instead of an error"),
            },
            (_, Some(error)) => error,
        }
    }

    #[tokio::test]
    async fn an_answer_comes_in_steps() {
        let (steps, error) = steps(concat!(
            "event:conversation.chat.created\ndata:{\"id\":\"c1\",\"conversation_id\":7,\"status\":\"created\",",
            "\"last_error\":{\"code\":0,\"msg\":\"\"}}\n\n",
            "event: PING\ndata: {\"content\":\"{}\"}\n\n",
            "event:conversation.message.delta\ndata:{\"type\":\"answer\",\"content\":\"2\"}\n\n",
            "event:conversation.message.delta\ndata:{\"type\":\"function_call\",\"content\":\"{}\"}\n\n",
            "event:conversation.message.completed\ndata:{\"type\":\"answer\",\"content\":\"2\"}\n\n",
            "event:conversation.message.completed\ndata:{\"type\":\"verbose\",\"content\":\"{}\"}\n\n",
            "event:conversation.chat.completed\ndata:{\"usage\":{\"token_count\":3,\"output_tokens\":1,\"input_count\":2}}\n\n",
            "event:done\ndata:\"[DONE]\"\n\n",
        ))
        .await;
        assert!(error.is_none(), "{error:?}");
        let running = Running { conversation: "7".into(), chat: "c1".into() };
        let usage = Usage { input_count: 2, output_count: 1, token_count: 3 };
        let expected = [
            Step::Started(running),
            Step::Delta("2".into()),
            Step::Message("2".into()),
            Step::Over(Ok(usage)),
            Step::Done,
        ];
        assert_eq!(format!("{steps:?}"), format!("{expected:?}"));
    }

    #[tokio::test]
    async fn done_has_many_forms() {
        for text in [
            "event:done\ndata:[DONE]\n\n",
            "event:done\ndata:\"[DONE]\"\n\n",
            "event: done\ndata: {\"debug_url\":\"https://example.com\"}\n\n",
            "event: conversation.stream.done\n\n",
        ] {
            assert!(matches!(steps(text).await.0[..], [Step::Done]), "{text}");
        }
    }

    #[tokio::test]
    async fn a_failed_chat_is_an_error_in_both_shapes() {
        let full =
            "event:conversation.chat.failed\ndata:{\"id\":\"c\",\"last_error\":{\"code\":4028,\"msg\":\"x\"}}\n\n";
        let full = error(full).await;
        assert_eq!((full.kind(), full.platform().map(|p| p.code)), (Kind::Quota, Some(4028)));
        assert_eq!(full.platform().and_then(|p| p.logid.as_deref()), Some("log1"));
        let bare = error("event:conversation.chat.failed\ndata:{\"code\":701231,\"msg\":\"error\"}\n\n").await;
        assert_eq!(bare.platform().map(|p| p.code), Some(701231));
    }

    #[tokio::test]
    async fn an_error_event_is_an_error_that_is_not_sent_again() {
        let found = error("event:error\ndata:{\"code\":4009,\"msg\":\"busy\"}\n\n").await;
        assert_eq!((found.platform().map(|p| p.code), found.retry()), (Some(4009), Retry::Never));
        let bare = error("event:error\ndata:\n\n").await;
        assert_eq!(bare.kind(), Kind::Upstream);
    }

    #[tokio::test]
    async fn nonsense_in_an_event_is_an_error() {
        let found = error("event:conversation.message.delta\ndata:{\"content\":\n\n").await;
        assert_eq!(found.reason(), "platform_nonsense");
    }
}
