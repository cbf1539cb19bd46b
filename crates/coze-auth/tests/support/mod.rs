//! What the tests have in common: a scripted body, and the layer between a test and a mock of the inner service.
#![allow(dead_code, reason = "no test file uses all of it")]

pub(crate) mod log;
pub(crate) mod tokens;

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context as Task, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use coze_auth::{AuthLayer, Policy, VerifiedBody};
use coze_core::{BotId, BoxError, Context, Error};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tower::{Layer, ServiceExt};
use tower_test::mock;

/// One thing a body does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Data(Bytes),
    Wait(Duration),
    Trailers(HeaderMap),
    Fail,
    /// Empty frames from here on.
    Endless,
}

/// A body that follows a script. Without a declared size, unless told. A test in which it waits has `start_paused = true`.
#[derive(Default)]
pub(crate) struct Script {
    steps: VecDeque<Step>,
    wait: Option<Pin<Box<Sleep>>>,
    pub(crate) declared: Option<u64>,
    /// How often it was asked for a frame.
    pub(crate) polled: Arc<AtomicUsize>,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), ..Self::default() }
    }

    /// The bytes in frames of this size.
    pub(crate) fn framed(bytes: &[u8], size: usize) -> Self {
        Self::new(bytes.chunks(size).map(|chunk| Step::Data(Bytes::copy_from_slice(chunk))))
    }
}

impl From<&'static str> for Script {
    fn from(text: &'static str) -> Self {
        Self::new([Step::Data(Bytes::from_static(text.as_bytes()))])
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.polled.fetch_add(1, Ordering::Relaxed);
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(task));
                self.wait = None;
            }
            return Poll::Ready(match self.steps.pop_front() {
                None => None,
                Some(Step::Data(data)) => Some(Ok(Frame::data(data))),
                Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Some(Step::Fail) => Some(Err("the connection broke".into())),
                Some(Step::Endless) => {
                    self.steps.push_front(Step::Endless);
                    Some(Ok(Frame::data(Bytes::new())))
                }
                Some(Step::Wait(time)) => {
                    self.wait = Some(Box::pin(sleep(time)));
                    continue;
                }
            });
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.declared.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Sends one request through the layer: what reached the inner service, or the error.
pub(crate) async fn send<P, B>(policy: &P, request: Request<B>) -> Result<Request<P::Body>, Error>
where
    P: Policy<B> + Clone,
    P::Body: Send + std::fmt::Debug + 'static,
{
    let (mock, mut handle) = mock::pair::<Request<P::Body>, Response<()>>();
    let answer = AuthLayer::new(policy.clone()).layer(mock).oneshot(request);
    let inner = async {
        let (request, respond) = handle.next_request().await?;
        respond.send_response(Response::new(()));
        Some(request)
    };
    match tokio::join!(answer, inner) {
        (Ok(_), Some(request)) => Ok(request),
        (Err(error), None) => Err(*error.downcast().expect("ours")),
        (answer, inner) => panic!("{answer:?} although the inner service saw {inner:?}"),
    }
}

/// What the context of a request says about authentication, whatever became of the request.
pub(crate) async fn noted<P>(
    policy: &P,
    mut request: Request<Script>,
) -> (Result<Request<VerifiedBody>, Error>, Context)
where
    P: Policy<Script, Body = VerifiedBody> + Clone,
{
    let context = Context::of(request.extensions_mut());
    (send(policy, request).await, context)
}

/// The reason of a refusal, or nothing.
pub(crate) fn reason<T>(outcome: Result<T, Error>) -> Option<&'static str> {
    outcome.err().map(|error| error.reason())
}

pub(crate) fn bot(text: &str) -> BotId {
    BotId::new(text).expect("valid")
}
