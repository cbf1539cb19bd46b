//! A transport that answers as a script says, and keeps what it was sent.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context as Task, Poll},
    time::Duration,
};

use bytes::Bytes;
use coze_auth::Endpoint;
use coze_core::BoxError;
use http::{Request, Response, request::Parts};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::time::sleep;
use tower::Service;

/// One answer.
pub(crate) enum Step {
    Answer(u16, String),
    /// One that says how long to wait.
    Wait(u16, &'static str, &'static str),
    Fail(BoxError),
    /// Nothing, for ever.
    Silence,
    After(Duration, Box<Step>),
}

pub(crate) fn ok(body: &str) -> Step {
    Step::Answer(200, body.to_owned())
}

pub(crate) fn refusal(name: &str) -> Step {
    Step::Answer(400, format!(r#"{{"error":"{name}"}}"#))
}

#[derive(Clone, Default)]
pub(crate) struct Scripted(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    steps: VecDeque<Step>,
    sent: Vec<(Parts, Value)>,
}

impl Scripted {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let state = State { steps: steps.into_iter().collect(), sent: Vec::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    pub(crate) fn endpoint(&self) -> Endpoint<Self> {
        Endpoint::new("https://api.coze.cn", self.clone()).expect("valid")
    }

    /// How many requests came.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().expect("whole").sent.len()
    }

    /// What came, as path, `authorization` and body.
    pub(crate) fn sent(&self) -> Vec<(String, Option<String>, Value)> {
        let state = self.0.lock().expect("whole");
        let text = |parts: &Parts| {
            let value = parts.headers.get("authorization")?;
            assert!(value.is_sensitive(), "credentials are marked");
            Some(value.to_str().expect("ASCII").to_owned())
        };
        state.sent.iter().map(|(parts, body)| (parts.uri.to_string(), text(parts), body.clone())).collect()
    }
}

impl Service<Request<Full<Bytes>>> for Scripted {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            assert_eq!((parts.method.as_str(), &parts.headers["content-type"]), ("POST", &"application/json".parse()?));
            let body = serde_json::from_slice(&body.collect().await?.to_bytes())?;
            let mut step = {
                let mut state = this.0.lock().expect("whole");
                state.sent.push((parts, body));
                state.steps.pop_front().expect("nothing else is asked for")
            };
            while let Step::After(time, then) = step {
                sleep(time).await;
                step = *then;
            }
            match step {
                Step::Answer(status, body) => Ok(Response::builder().status(status).body(Full::from(body))?),
                Step::Wait(status, wait, body) => {
                    let answer = Response::builder().status(status).header("retry-after", wait);
                    Ok(answer.body(Full::from(body))?)
                }
                Step::Fail(error) => Err(error),
                _ => std::future::pending().await,
            }
        })
    }
}
