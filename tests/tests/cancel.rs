//! A request that is dropped at any await leaves no permit, gauge or slot taken, in either whole stack.

use std::{
    convert::Infallible,
    future::{Future, poll_fn, ready},
    num::NonZeroU32,
    pin::{Pin, pin},
    sync::atomic::Ordering,
    task::{Context as Task, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use coze_auth::{AuthLayer, Bearer, Decision, Key, Renewing, Token, TokenSource, VerifiedBody, Webhook, WebhookKeys};
use coze_core::{BotId, BoxError, Context, Error, Kind, TenantId};
use coze_errmap::{Classifier, ErrMapLayer, Responder};
use coze_observe::{Inbound, ObserveLayer, Outbound};
use coze_ratelimit::{Level, Limits, Quota, RateLimitLayer};
use coze_retry::{Budget, ReplayBody, RetryLayer, Row, Standard, Wait};
use coze_tenant::{Propagate, Registry, TenantLayer};
use hmac::{Hmac, KeyInit, Mac};
use http::{Request, Response};
use http_body::{Body, Frame};
use metrics_util::{
    MetricKind,
    debugging::{DebugValue, DebuggingRecorder},
};
use sha2::Sha256;
use tower::{Service, ServiceBuilder, limit::ConcurrencyLimitLayer, service_fn};

const KEY: &[u8] = b"key";

/// A body that is pending before each frame.
struct Slow(Vec<&'static str>, bool);

impl Slow {
    fn new(frames: &[&'static str]) -> Self {
        Self(frames.iter().rev().copied().collect(), false)
    }
}

impl Body for Slow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.1 = !self.1;
        if self.1 {
            task.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.0.pop().map(|data| Ok(Frame::data(Bytes::from_static(data.as_bytes())))))
    }
}

/// An await that takes two polls.
async fn step() {
    let mut pending = true;
    poll_fn(|task| {
        task.waker().wake_by_ref();
        if std::mem::take(&mut pending) { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// Polls a whole exchange, head and body, at most `polls` times, and drops it there. Whether it came to its end.
fn exchange<S, B, R>(service: &mut S, request: Request<B>, polls: usize) -> Option<Result<(), BoxError>>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    R: Body,
    R::Error: Into<BoxError>,
{
    let exchange = async {
        poll_fn(|task| service.poll_ready(task)).await.map_err(Into::into)?;
        let mut body = pin!(service.call(request).await.map_err(Into::into)?.into_body());
        while let Some(frame) = poll_fn(|task| body.as_mut().poll_frame(task)).await {
            frame.map_err(Into::into)?;
        }
        Ok(())
    };
    let mut exchange = pin!(exchange);
    let mut task = Task::from_waker(Waker::noop());
    for _ in 0..polls {
        if let Poll::Ready(end) = exchange.as_mut().poll(&mut task) {
            return Some(end);
        }
    }
    None
}

/// Drops an exchange after every number of polls, up to the one that lets it end; after each, another one must get through.
fn drop_everywhere<S, B, R>(mut service: S, request: impl Fn() -> Request<B>, gauge: &'static str)
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    R: Body,
    R::Error: Into<BoxError>,
{
    const ENOUGH: usize = 1000;
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        for polls in 0..ENOUGH {
            let ended = exchange(&mut service, request(), polls);
            let next = exchange(&mut service, request(), ENOUGH);
            assert!(matches!(next, Some(Ok(()))), "dropped after {polls} polls: {next:?}");
            let in_flight = snapshots.snapshot().into_vec().into_iter().find_map(|(key, _, _, value)| match value {
                DebugValue::Gauge(value) if key.kind() == MetricKind::Gauge && key.key().name() == gauge => {
                    Some(value.0)
                }
                _ => None,
            });
            assert_eq!(in_flight, Some(0.0), "dropped after {polls} polls");
            if let Some(end) = ended {
                assert!(end.is_ok() && polls > 8, "it ended after {polls} polls: {end:?}");
                return;
            }
        }
        panic!("it never ended");
    });
}

fn one_at_once() -> Limits {
    Limits::new().level(Level::global("one", Quota::Concurrency(NonZeroU32::MIN)))
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_taken_on_the_way_in() {
    let (bot, tenant) = (BotId::new("b1").expect("valid"), TenantId::new("t1").expect("valid"));
    let keys = WebhookKeys::new();
    keys.set(&bot, [Key::new(KEY).expect("not empty")]).expect("one key");
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new(Inbound::new(["/webhook"]).expect("valid")))
        .layer(ErrMapLayer::new(Responder::new()))
        .layer(ConcurrencyLimitLayer::new(1))
        .layer(AuthLayer::new(Webhook::new(keys)))
        .layer(TenantLayer::new(Registry::new([]).bot(bot, tenant)))
        .layer(RateLimitLayer::new(one_at_once()))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(|_: Request<VerifiedBody>| async {
            step().await;
            step().await;
            Ok::<_, Infallible>(Response::new(Slow::new(&["a", "b"])))
        }));
    let signed = || {
        let mut mac = Hmac::<Sha256>::new_from_slice(KEY).expect("any length");
        mac.update(b"hello");
        let signature = hex::encode(mac.finalize().into_bytes());
        let request = Request::post("/webhook").header("x-signature", signature);
        request.body(Slow::new(&["h", "el", "lo"])).expect("valid")
    };
    drop_everywhere(service, signed, "coze_http_server_in_flight");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_taken_on_the_way_out() {
    let source = Renewing::new(|| ready(Token::bearer("t")));
    // The first token is fetched by a task of the runtime, which does not run while the test polls by hand.
    if let Decision::Later(token) = source.token() {
        token.await.expect("a token");
    }
    let at_once = Row::DEFAULTS.iter().map(|row| Row { wait: Wait::Fixed(Duration::ZERO), ..*row });
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new(Outbound::new(["/v1/bots"]).expect("valid")))
        .layer(TenantLayer::new(Propagate::new()))
        .layer(RetryLayer::new(Standard::new().rows(at_once).budget(Budget::new(100, 1000))))
        .layer(RateLimitLayer::new(one_at_once()))
        .layer(AuthLayer::new(Bearer::new(source)))
        .layer(ErrMapLayer::new(Classifier::new()))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(|mut request: Request<ReplayBody<Slow>>| async move {
            let attempts = Context::of(request.extensions_mut()).attempts.load(Ordering::Relaxed);
            let mut body = pin!(request.into_body());
            while poll_fn(|task| body.as_mut().poll_frame(task)).await.is_some() {}
            step().await;
            if attempts == 1 {
                return Err(BoxError::from(Error::new(Kind::Overloaded, "busy")));
            }
            let json = Slow::new(&["{\"code\":0,", "\"data\":[]", "}"]);
            Ok(Response::builder().header("content-type", "application/json").body(json).expect("valid"))
        }));
    drop_everywhere(
        service,
        || Request::get("/v1/bots").body(Slow::new(&["a", "b"])).expect("valid"),
        "coze_http_client_in_flight",
    );
}
