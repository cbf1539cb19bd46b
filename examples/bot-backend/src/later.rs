//! Messages that there is no room for now: they are taken in, and answered when there is room (requirement R4.4).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use coze_core::{BotId, BoxError, Context, Error, Kind, RequestId, Retry};
use coze_errmap::accepted;
use coze_ratelimit::{Degrade, Job, MemoryQueue, Policy, Pushed, Queue, RateLimitLayer, RedisQueue, Worker};
use http::{Request, Response};
use redis::aio::ConnectionManager;
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    answering::Piece,
    app::App,
    config::{self, Config, Keeper},
    message::Message,
    sessions,
    webhook::{wants_stream, whole},
};

/// The name of the queue in Redis.
const NAME: &str = "bot-backend:later";
/// Time beyond that of a request that one try may take: it may have to wait for room first.
const MARGIN: Duration = Duration::from_secs(30);
/// Time for a worker to hear that it is to stop.
const CLOSE: Duration = Duration::from_secs(5);

/// What is answered later, if anything is.
pub(crate) struct Later {
    jobs: Option<Jobs>,
    lanes: usize,
    closing: CancellationToken,
    worker: Mutex<Option<JoinHandle<()>>>,
}

enum Jobs {
    Memory(MemoryQueue),
    Redis(RedisQueue<ConnectionManager>),
}

impl Later {
    /// # Errors
    /// `sessions_url` ([`Kind::Invalid`]) when the URL of the Redis is none.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let config::Later { queue, capacity, lanes } = config.later;
        let lease = config.http.request_timeout + MARGIN;
        let jobs = match queue {
            Keeper::None => None,
            Keeper::Memory => Some(Jobs::Memory(MemoryQueue::new(capacity.get()).with_lease(lease))),
            Keeper::Redis => {
                let connection = sessions::connection(&config.storage.sessions)?;
                Some(Jobs::Redis(RedisQueue::new(connection, NAME, capacity.get()).with_lease(lease)))
            }
        };
        let closing = CancellationToken::new();
        Ok(Self { jobs, lanes: lanes.get(), closing, worker: Mutex::default() })
    }

    /// Begins to answer what waits, as these limits allow: those that keep others waiting too.
    pub(crate) fn work<P>(app: &Arc<App>, limits: P)
    where
        P: Policy<Permit: Send + 'static, Future: Send + 'static> + Clone + Send + Sync + 'static,
    {
        let (later, handler) = (&app.later, handler(app.clone(), limits));
        let stop = later.closing.clone().cancelled_owned();
        let worker = match &later.jobs {
            None => return,
            Some(Jobs::Memory(jobs)) => tokio::spawn(Worker::new(jobs.clone()).lanes(later.lanes).run(handler, stop)),
            Some(Jobs::Redis(jobs)) => tokio::spawn(Worker::new(jobs.clone()).lanes(later.lanes).run(handler, stop)),
        };
        *later.worker.lock().expect(WHOLE) = Some(worker);
    }

    /// Begins no further message.
    pub(crate) fn stop(&self) {
        self.closing.cancel();
    }

    /// Waits for those that were begun, which the service's own end ends.
    pub(crate) async fn close(&self) {
        let worker = self.worker.lock().expect(WHOLE).take();
        if let Some(mut worker) = worker
            && timeout(CLOSE, &mut worker).await.is_err()
        {
            worker.abort();
        }
    }
}

const WHOLE: &str = "nobody panics while holding the worker";

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Later").field("is_on", &self.jobs.is_some()).finish_non_exhaustive()
    }
}

/// What a message gets that the limits refuse: a receipt, if it can be answered later.
#[derive(Clone)]
pub(crate) struct Receipt(pub(crate) Arc<App>);

impl<B> Degrade<B, Body> for Receipt
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    B::Data: Send,
{
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    /// # Errors
    /// The refusal, if nothing is answered later, or the caller wants to read along.
    fn instead(&self, request: Request<B>, refusal: Error) -> Result<Self::Future, Error> {
        if self.0.later.jobs.is_none() || wants_stream(request.headers()) {
            return Err(refusal);
        }
        let app = self.0.clone();
        Ok(Box::pin(async move { receipt(&app, request, refusal).await.map_err(Into::into) }))
    }
}

async fn receipt<B>(app: &App, request: Request<B>, refusal: Error) -> Result<Response<Body>, Error>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let (mut head, body) = request.into_parts();
    let context = Context::of(&mut head.extensions);
    let bot = context.bot.get().ok_or_else(|| Error::new(Kind::Internal, "bot_unknown"))?;
    let message = Message::parse(&whole(body).await?, bot)?;
    let job = job(&message, &context);
    let pushed = match &app.later.jobs {
        Some(Jobs::Memory(jobs)) => jobs.push(job).await,
        Some(Jobs::Redis(jobs)) => jobs.push(job).await,
        None => return Err(refusal),
    };
    match pushed {
        Ok(Pushed::Queued | Pushed::Known) => Ok(accepted(&head, &message.id).map(Body::from)),
        Err(error) => {
            tracing::warn!(?error, "a message could not be kept for later");
            Err(refusal)
        }
    }
}

fn job(message: &Message, context: &Context) -> Job {
    let payload = json!({
        "bot_id": message.bot.as_str(),
        "conversation_id": message.conversation.as_str(),
        "user_id": message.user.as_str(),
        "message_id": message.id,
        "content": message.content,
        "request_id": context.request_id.get().map(RequestId::as_str),
    });
    // Neither id has control characters.
    Job { id: format!("{}\u{1f}{}", message.bot, message.id), payload: payload.to_string().into() }
}

/// Answers a message from the queue: through the limits, as often as they refuse it.
fn handler<P>(
    app: Arc<App>,
    limits: P,
) -> impl Fn(Job) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send>> + Send + Sync + 'static
where
    P: Policy<Permit: Send + 'static, Future: Send + 'static> + Clone + Send + Sync + 'static,
{
    let layer = RateLimitLayer::new(limits);
    move |job| {
        let (app, layer) = (app.clone(), layer.clone());
        Box::pin(async move {
            let lost = || Error::new(Kind::Internal, "job_malformed").with_retry(Retry::Never);
            let fields: Value = serde_json::from_slice(&job.payload).map_err(|_| lost())?;
            let text = |name: &str| fields[name].as_str().unwrap_or_default();
            let bot = BotId::new(text("bot_id")).map_err(|_| lost())?;
            let known = app.bots.get(&bot).ok_or_else(|| Error::new(Kind::NotFound, "bot_lost"))?;
            let message = Message::parse(&job.payload, &bot)?;
            let service = layer.layer(service_fn({
                let (app, message) = (app.clone(), message.clone());
                move |mut request: Request<()>| {
                    let (app, message) = (app.clone(), message.clone());
                    let context = Context::of(request.extensions_mut());
                    async move { answer(&app, &context, message).await.map(|()| Response::new(Body::empty())) }
                }
            }));
            loop {
                let mut request = Request::new(());
                let context = Context::of(request.extensions_mut());
                context.bot.get_or_init(|| bot.clone());
                context.tenant.get_or_init(|| known.tenant.clone());
                context.user.get_or_init(|| message.user.clone());
                if let Ok(id) = RequestId::new(text("request_id")) {
                    context.request_id.get_or_init(|| id);
                }
                let Err(error) = service.clone().oneshot(request).await else { return Ok(()) };
                let error = *error
                    .downcast::<Error>()
                    .unwrap_or_else(|e| Box::new(Error::new(Kind::Internal, "answer_lost").with_source(e)));
                // Refused by our own limits it has not run: only the platform's refusals end a try.
                let is_ours = context.limit.get().is_some_and(|limit| *limit != "ok");
                let Some(wait) = error.retry_after().filter(|_| is_ours) else { return Err(error) };
                tokio::select! {
                    () = sleep(wait) => {}
                    () = app.stop.cancelled() => return Err(again(error)),
                }
            }
        })
    }
}

async fn answer(app: &Arc<App>, context: &Context, message: Message) -> Result<(), Error> {
    context.deadline.get_or_init(|| (Instant::now() + app.request_timeout).into());
    let mut pieces = app.answer(context, message);
    loop {
        match pieces.recv().await {
            Some(Piece::Delta(_)) => {}
            Some(Piece::Done(_)) => return Ok(()),
            // The caller came again meanwhile, or we are being stopped: that says nothing about the message.
            Some(Piece::Failed(error)) if ["message_running", "stopping"].contains(&error.reason()) => {
                return Err(again(error));
            }
            Some(Piece::Failed(error)) => return Err(error),
            None => return Err(Error::new(Kind::Internal, "answer_lost").with_retry(Retry::IfIdempotent)),
        }
    }
}

fn again(error: Error) -> Error {
    error.with_retry(Retry::Safe)
}
