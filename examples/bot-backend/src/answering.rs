//! From a message to its answer: stored, asked, stored again, whatever happens in between.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coze_core::{Context, ConversationId, Error, Kind, Retry};
use tokio::{
    sync::{SetOnce, mpsc},
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::Instrument;

use crate::{
    app::{Answerer, App},
    message::{Answer, Message},
    platform::{Platform, Question, Running, Step, cut},
    sessions,
    store::{Claim, Outcome},
};

/// Pieces that wait for a caller who reads slowly; then the platform's stream waits too.
const PIECES: usize = 32;
/// Bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;
/// Time for the platform to say the id of a chat that nobody waits for any more, so that it can be cancelled.
const HEAR: Duration = Duration::from_secs(2);
/// Time for telling the platform that a chat is cancelled.
const CANCEL: Duration = Duration::from_secs(5);
/// Time that a stream gets to end by itself after the answer is complete, so that its connection can be used again.
const LINGER: Duration = Duration::from_secs(1);
/// The reasons of ours for which a call to the platform is given up in its middle.
const ABANDONED: [&str; 3] = ["answer_timeout", "cancelled", "stopping"];
/// First and longest wait for the end of a chat that another node runs in the conversation.
const RUNNING: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(8)];
/// Time by which a message that was received may be late in being answered before another try may begin.
const MARGIN: Duration = Duration::from_secs(30);

/// A part of an answer. The last one is `Done` or `Failed`.
#[derive(Debug)]
pub(crate) enum Piece {
    Delta(String),
    Done(Answer),
    Failed(Error),
}

/// What is known of the platform's side while a message is answered.
#[derive(Debug, Default)]
struct Progress {
    /// The platform was asked to begin a chat.
    is_asked: AtomicBool,
    /// It said which chat that is.
    chat: SetOnce<Running>,
    /// It said that the chat is over.
    is_over: AtomicBool,
}

impl App {
    /// Answers a message in a task of its own, which the shutdown waits for. A caller who drops the receiver cancels it.
    ///
    /// A task, so that the end is stored and the platform told also when the caller goes away in the middle.
    pub(crate) fn answer(self: &Arc<Self>, context: &Context, message: Message) -> mpsc::Receiver<Piece> {
        let (pieces, receiver) = mpsc::channel(PIECES);
        let work = self.clone().work(context.child(), message, pieces);
        self.tasks.spawn(work.in_current_span());
        receiver
    }

    async fn work(self: Arc<Self>, context: Context, message: Message, pieces: mpsc::Sender<Piece>) {
        let lease = self.request_timeout + MARGIN;
        let last = match self.store.claim(&message, lease).await {
            Ok(Claim::Ours(attempt)) => return self.try_once(context, message, attempt, pieces).await,
            Ok(Claim::Answered(answer)) => {
                send(&pieces, Piece::Delta(answer.content.clone())).await;
                Piece::Done(answer)
            }
            Ok(Claim::Running) => Piece::Failed(
                Error::new(Kind::Conflict, "message_running")
                    .with_message("the message with this id is being answered")
                    .with_retry_after(Duration::from_secs(1)),
            ),
            Ok(Claim::Taken) => Piece::Failed(
                Error::new(Kind::Conflict, "message_id_taken")
                    .with_message("the message id belongs to another message"),
            ),
            Err(error) => Piece::Failed(error),
        };
        send(&pieces, last).await;
    }

    /// One try at a message that is stored and ours.
    async fn try_once(&self, context: Context, message: Message, attempt: i64, pieces: mpsc::Sender<Piece>) {
        let progress = Progress::default();
        let deadline = context.deadline.get().map_or_else(|| Instant::now() + self.request_timeout, |d| (*d).into());
        let mut ask = Box::pin(self.ask(&context, &message, &pieces, &progress));
        // Held until nothing of this message runs in the conversation any more.
        let mut turn = None;
        let asking = async {
            turn = Some(self.conversations.turn(&sessions::key(&message), deadline.into_std()).await?);
            (&mut ask).await
        };
        let ended = tokio::select! {
            biased;
            ended = timeout_at(deadline, asking) => ended.unwrap_or_else(|_| {
                Err(Error::new(Kind::Timeout, "answer_timeout").with_message("the bot did not answer in time"))
            }),
            () = pieces.closed() => Err(Error::new(Kind::Cancelled, "cancelled").with_message("the caller went away")),
            () = self.stop.cancelled() => Err(Error::new(Kind::Unavailable, "stopping")
                .with_message("the service is being stopped").with_retry(Retry::Never)),
        };
        // Given up while the platform begins a chat. In all other cases the future must go now: it may hold a connection of
        // the database, which others wait for.
        let is_beginning = ended.as_ref().is_err_and(|error| ABANDONED.contains(&error.reason()))
            && progress.is_asked.load(Ordering::Relaxed)
            && progress.chat.get().is_none();
        let beginning = is_beginning.then_some(ask);
        let last = match ended {
            Ok(answer) => match self.keep(&message, attempt, Outcome::Answered(&answer)).await {
                Ok(()) => Piece::Done(answer),
                // An answer that is not stored does not count: the caller would be told another one the next time.
                Err(error) => Piece::Failed(error),
            },
            Err(error) => {
                let error = not_the_callers(error);
                let outcome = match error.kind() {
                    Kind::Cancelled => Outcome::Cancelled,
                    _ => Outcome::Failed(error.reason()),
                };
                if let Err(store) = self.keep(&message, attempt, outcome).await {
                    tracing::error!(message_id = message.id, error = ?store, "how a message ended could not be stored");
                }
                Piece::Failed(error)
            }
        };
        let ending = async {
            if let Some(beginning) = beginning {
                let heard = async {
                    tokio::select! {
                        _ = beginning => {}
                        _ = progress.chat.wait() => {}
                    }
                };
                let _ = timeout(HEAR, heard).await;
            }
            if let (Answerer::Platform(platform), Some(chat)) = (&self.answerer, progress.chat.get())
                && !progress.is_over.load(Ordering::Relaxed)
            {
                cancel(platform, &context, chat).await;
            }
            drop(turn);
        };
        // Neither the platform nor the next one in the conversation waits for a reader who has stopped.
        tokio::join!(send(&pieces, last), ending);
    }

    /// Stores how a try ended, with some patience: what is lost here is lost.
    async fn keep(&self, message: &Message, attempt: i64, outcome: Outcome<'_>) -> Result<(), Error> {
        let mut result = self.store.finish(message, attempt, outcome).await;
        for wait in [100, 400] {
            if result.is_ok() {
                break;
            }
            sleep(Duration::from_millis(wait)).await;
            result = self.store.finish(message, attempt, outcome).await;
        }
        result
    }

    async fn ask(
        &self,
        context: &Context,
        message: &Message,
        pieces: &mpsc::Sender<Piece>,
        progress: &Progress,
    ) -> Result<Answer, Error> {
        let Answerer::Platform(platform) = &self.answerer else {
            send(pieces, Piece::Delta(message.content.clone())).await;
            return Ok(Answer { content: message.content.clone(), usage: Default::default() });
        };
        let mut known = self.platform_conversation(message).await?;
        let [mut wait, longest] = RUNNING;
        loop {
            match self.chat(platform, context, message, known.as_deref(), pieces, progress).await {
                // The platform forgot the conversation, and nothing has run: it goes on in a new one.
                Err(error) if known.is_some() && error.reason() == "conversation_not_found" => {
                    tracing::warn!(message_id = message.id, "the platform does not know the conversation any more");
                    self.sessions.remove(message).await?;
                    known = None;
                }
                // Here none runs: another node's does, whose end the deadline lets us wait for.
                Err(error) if error.reason() == "chat_running" => {
                    tracing::info!(message_id = message.id, ?wait, "another chat runs in the conversation");
                    progress.is_asked.store(false, Ordering::Relaxed);
                    sleep(wait).await;
                    wait = longest.min(2 * wait);
                }
                ended => return ended,
            }
        }
    }

    async fn chat(
        &self,
        platform: &Platform,
        context: &Context,
        message: &Message,
        known: Option<&str>,
        pieces: &mpsc::Sender<Piece>,
        progress: &Progress,
    ) -> Result<Answer, Error> {
        let bot = self.bots.get(&message.bot).ok_or_else(|| Error::new(Kind::Internal, "bot_lost"))?;
        progress.is_asked.store(true, Ordering::Relaxed);
        let question = Question {
            bot: bot.platform_id().as_str(),
            user: message.user.as_str(),
            conversation: known,
            content: &message.content,
        };
        if bot.stream {
            return self.streamed(platform, context, message, question, pieces, progress).await;
        }
        let sent = Instant::now();
        let running = platform.create(context, question).await?;
        progress.started(&running);
        self.remember(message, known, &running).await?;
        let ended = platform.wait(context, &running, sent).await?;
        progress.is_over.store(true, Ordering::Relaxed);
        let usage = ended?;
        let content = platform.answer(context, &running).await?;
        check_length(content.len())?;
        send(pieces, Piece::Delta(content.clone())).await;
        Ok(Answer { content, usage })
    }

    async fn streamed(
        &self,
        platform: &Platform,
        context: &Context,
        message: &Message,
        question: Question<'_>,
        pieces: &mpsc::Sender<Piece>,
        progress: &Progress,
    ) -> Result<Answer, Error> {
        let sent = Instant::now();
        let mut stream = platform.stream(context, question).await?;
        let heard = |error: &Error| platform.heard(context, sent, error);
        let mut content = String::new();
        // The pieces of a message whose whole has not come yet.
        let mut partial = String::new();
        let mut usage = None;
        loop {
            // After its end the stream is read on, so that its connection can be used again.
            let silence = if usage.is_some() { LINGER } else { self.silence_timeout };
            match stream.next(silence).await {
                Ok(Some(Step::Started(running))) => {
                    if progress.started(&running) {
                        self.remember(message, question.conversation, &running).await?;
                    }
                }
                Ok(Some(Step::Delta(text))) => {
                    partial.push_str(&text);
                    check_length(content.len() + partial.len())?;
                    send(pieces, Piece::Delta(text)).await;
                }
                Ok(Some(Step::Message(text))) => {
                    content.push_str(&text);
                    check_length(content.len())?;
                    if partial.is_empty() {
                        send(pieces, Piece::Delta(text)).await;
                    }
                    partial.clear();
                }
                Ok(Some(Step::Over(ended))) => {
                    progress.is_over.store(true, Ordering::Relaxed);
                    usage = Some(ended.inspect_err(heard)?);
                }
                Ok(Some(Step::Done)) => {
                    progress.is_over.store(true, Ordering::Relaxed);
                    usage.get_or_insert_default();
                }
                Ok(None) if usage.is_none() => return Err(cut()),
                Err(error) if usage.is_none() => return Err(error).inspect_err(heard),
                // The answer is complete, however the stream ends.
                Ok(None) | Err(_) => break,
            }
        }
        content.push_str(&partial);
        Ok(Answer { content, usage: usage.unwrap_or_default() })
    }

    async fn platform_conversation(&self, message: &Message) -> Result<Option<String>, Error> {
        if let Some(known) = self.sessions.get(message).await? {
            return Ok(Some(known));
        }
        let stored = self.store.conversation(message).await?;
        if let Some(stored) = &stored {
            self.sessions.put(message, stored).await?;
        }
        Ok(stored)
    }

    async fn remember(&self, message: &Message, known: Option<&str>, running: &Running) -> Result<(), Error> {
        if running.conversation.is_empty() || known == Some(&running.conversation) {
            return Ok(());
        }
        ConversationId::new(&running.conversation).map_err(|e| {
            Error::new(Kind::Upstream, "platform_nonsense")
                .with_message("the platform's conversation id is none")
                .with_retry(Retry::Never)
                .with_source(e)
        })?;
        self.store.keep_conversation(message, &running.conversation).await?;
        self.sessions.put(message, &running.conversation).await
    }
}

impl Progress {
    /// Whether this is the first that is heard of the chat.
    fn started(&self, running: &Running) -> bool {
        !running.chat.is_empty() && self.chat.set(running.clone()).is_ok()
    }
}

/// Tells the platform that nobody waits for the chat any more, so that it neither costs nor blocks its conversation.
async fn cancel(platform: &Platform, context: &Context, chat: &Running) {
    // The request's own deadline may be the reason.
    let context = late(context);
    match timeout(CANCEL, platform.cancel(&context, chat)).await {
        Ok(Ok(())) => tracing::info!(chat_id = chat.chat, "the chat is cancelled on the platform"),
        // It ended by itself meanwhile.
        Ok(Err(error)) if error.reason() == "chat_not_cancelable" => {}
        Ok(Err(error)) => tracing::warn!(chat_id = chat.chat, error = ?error, "the chat could not be cancelled"),
        Err(_) => {
            tracing::warn!(chat_id = chat.chat, "the platform did not confirm in time that the chat is cancelled");
        }
    }
}

/// The same request's context without its outcome, with time left.
fn late(context: &Context) -> Context {
    let late = Context::new();
    late.deadline.get_or_init(|| (Instant::now() + CANCEL).into());
    context.request_id.get().map(|id| late.request_id.get_or_init(|| id.clone()));
    context.tenant.get().map(|id| late.tenant.get_or_init(|| id.clone()));
    context.bot.get().map(|id| late.bot.get_or_init(|| id.clone()));
    late
}

/// What the platform, or its token endpoint, holds against this service's own credentials is not the caller's to mend.
fn not_the_callers(error: Error) -> Error {
    if !matches!(error.kind(), Kind::Unauthenticated | Kind::PermissionDenied) {
        return error;
    }
    let ours = Error::new(Kind::Upstream, error.reason())
        .with_message("the platform refused this service's credentials")
        .with_retry(Retry::Never);
    match error.platform().cloned() {
        // With the log id, but without the code, which would tell the caller that its own credentials are wrong.
        Some(platform) => ours.with_platform(coze_core::Platform { code: 0, ..platform }).with_source(error),
        None => ours.with_source(error),
    }
}

fn check_length(bytes: usize) -> Result<(), Error> {
    if bytes <= MAX_ANSWER {
        return Ok(());
    }
    Err(Error::new(Kind::Upstream, "answer_too_long")
        .with_message("the bot's answer is longer than this service stores")
        .with_retry(Retry::Never))
}

/// Whether somebody still listens is for the `select` around all this to notice.
async fn send(pieces: &mpsc::Sender<Piece>, piece: Piece) {
    let _ = pieces.send(piece).await;
}
