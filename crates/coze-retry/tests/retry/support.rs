//! What the tests share: requests, a scripted inner service, a scripted body, the events that were emitted.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context as Task, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use coze_core::{BoxError, Error, Limit, Platform};
use coze_retry::{Policy, ReplayBody, ResponseBody, RetryLayer, Standard};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::{Layer, ServiceExt};
use tower_test::mock;
use tracing::{Dispatch, subscriber::DefaultGuard};

pub(crate) type Req = Request<ReplayBody<Script>>;
pub(crate) type Res = Response<Full<Bytes>>;
/// What the inner service answers.
pub(crate) type Answer = Result<Res, BoxError>;
/// What comes out of the layer.
pub(crate) type Out = Result<Response<ResponseBody<Full<Bytes>>>, BoxError>;

/// Noon of the wall clock of the tests.
pub(crate) const NOON: &str = "Mon, 23 Nov 2026 12:00:00 GMT";

/// The default policy without chance, at noon.
pub(crate) fn policy() -> Standard {
    Standard::new().random(|| 0.0).clock(|| httpdate::parse_http_date(NOON).unwrap_or(SystemTime::UNIX_EPOCH))
}

pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

pub(crate) fn request(method: &str, uri: &str) -> Request<Script> {
    Request::builder().method(method).uri(uri).body(Script::default()).expect("a request")
}

pub(crate) fn get() -> Request<Script> {
    request("GET", "/v1/bots")
}

pub(crate) fn chat() -> Request<Script> {
    request("POST", "/v3/chat?secret=in-the-query")
}

pub(crate) fn ok() -> Answer {
    status(200, &[])
}

pub(crate) fn status(status: u16, headers: &[(&str, &str)]) -> Answer {
    let head =
        headers.iter().fold(Response::builder().status(status), |head, (name, value)| head.header(*name, *value));
    Ok(head.body(Full::from("answer")).expect("a response"))
}

pub(crate) fn fail(error: Error) -> Answer {
    Err(error.into())
}

/// What the platform says of its limit.
pub(crate) fn platform_limit(remaining: u32) -> Limit {
    let second = Duration::from_secs(1);
    Limit { name: Limit::PLATFORM, quota: 50, remaining, window: second, reset: second }
}

pub(crate) fn code(error: Error, code: i64) -> Error {
    error.with_platform(Platform { code, msg: "busy".to_owned(), logid: None })
}

/// Sends one request through the layer to an inner service that gives these answers, in turn. What came out, and when each
/// attempt reached the inner service, counted from the first.
///
/// # Panics
/// Unless each answer was asked for, and nothing besides.
pub(crate) async fn send(
    policy: impl Policy + Clone,
    request: Request<Script>,
    answers: Vec<Answer>,
) -> (Out, Vec<Duration>) {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let answer = RetryLayer::new(policy).layer(mock).oneshot(request);
    let inner = async {
        let (start, count) = (Instant::now(), answers.len());
        let mut arrived = Vec::new();
        for answer in answers {
            let (_, respond) =
                handle.next_request().await.unwrap_or_else(|| panic!("{} of {count} came", arrived.len()));
            arrived.push(start.elapsed());
            match answer {
                Ok(response) => respond.send_response(response),
                Err(error) => respond.send_error(error),
            }
        }
        assert!(handle.next_request().await.is_none(), "one more attempt than {count}");
        arrived
    };
    tokio::join!(answer, inner)
}

/// The waits between these moments; the timer of tokio is up to a millisecond late.
pub(crate) fn waits(arrived: &[Duration]) -> Vec<Duration> {
    let ms = |pair: &[Duration]| u64::try_from((pair[1] - pair[0]).as_millis()).expect("short");
    arrived.windows(2).map(|pair| Duration::from_millis(ms(pair) / 5 * 5)).collect()
}

/// The status that came out, or the reason of the error.
pub(crate) fn outcome<B>(answer: &Result<Response<B>, BoxError>) -> String {
    match answer {
        Ok(response) => response.status().as_str().to_owned(),
        Err(error) => Error::find(&**error).map_or_else(|| error.to_string(), |e| e.reason().to_owned()),
    }
}

/// All of a body.
pub(crate) async fn text<B: Body<Data = Bytes, Error: std::fmt::Debug>>(body: B) -> String {
    String::from_utf8(body.collect().await.expect("complete").to_bytes().to_vec()).expect("UTF-8")
}

/// A request body that does what it is told.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) steps: VecDeque<Step>,
    /// Does it tell its size and its end in advance?
    pub(crate) sized: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Pending,
    /// Pending for ever.
    Never,
    Fail,
}

impl Script {
    pub(crate) fn new(sized: bool, steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), sized }
    }

    pub(crate) fn text(text: &str) -> Self {
        Self::new(true, [data(text)])
    }
}

pub(crate) fn data(text: &str) -> Step {
    Step::Data(Bytes::copy_from_slice(text.as_bytes()))
}

pub(crate) fn trailers() -> HeaderMap {
    [(http::HeaderName::from_static("x-sum"), http::HeaderValue::from_static("7"))].into_iter().collect()
}

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(match self.steps.pop_front() {
            Some(Step::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Step::Fail) => Some(Err("the file is gone")),
            Some(Step::Never) => {
                self.steps.push_front(Step::Never);
                return Poll::Pending;
            }
            Some(Step::Pending) => {
                task.waker().wake_by_ref();
                return Poll::Pending;
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.sized && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let sizes = self.steps.iter().map(|step| if let Step::Data(data) = step { data.len() as u64 } else { 0 });
        if self.sized { SizeHint::with_exact(sizes.sum()) } else { SizeHint::default() }
    }
}

/// The events emitted until this is dropped, as text.
pub(crate) struct Events {
    text: Arc<Mutex<Vec<u8>>>,
    // While there is only one subscriber, tracing asks the thread that comes to an event first whether anybody listens, and
    // that may be another test's.
    _second: Dispatch,
    _guard: DefaultGuard,
}

#[derive(Clone)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Events {
    pub(crate) fn record() -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let sink = Sink(text.clone());
        let second = Dispatch::new(tracing_subscriber::registry());
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || sink.clone())
            .finish();
        Self { text, _second: second, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// What was emitted since the last call, line by line.
    pub(crate) fn take(&self) -> Vec<String> {
        let text = std::mem::take(&mut *self.text.lock().expect("not poisoned"));
        String::from_utf8(text).expect("text").lines().map(|line| line.trim().to_owned()).collect()
    }
}

/// Polls once.
pub(crate) async fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|task| Poll::Ready(Pin::new(&mut *future).poll(task))).await
}
