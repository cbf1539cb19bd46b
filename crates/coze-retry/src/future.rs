use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context as Task, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use coze_core::{BoxError, Context, Error, Kind, RequestId};
use http::{Request, Response, StatusCode, request::Parts};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tower_service::Service;

use crate::{Attempt, Decision, Outcome, Permit, Policy, ReplayBody, failure::kind, replay::Replay, service::now};

pin_project! {
    /// The answer of the last attempt, or the last error.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, P, B, F> {
        #[pin]
        state: State<F>,
        // Ends the wait, or the attempt at the deadline. Made when something is pending, so never on the plain path.
        #[pin]
        timer: Option<Sleep>,
        deadline: Option<Instant>,
        // None if the request is never sent again.
        session: Option<Session<S, P, B>>,
        last: Option<BoxError>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Calling { #[pin] attempt: F },
        Waiting,
        Readying,
        Expired,
        Over,
    }
}

/// What it takes to send a request again.
pub(crate) struct Session<S, P, B> {
    service: S,
    policy: P,
    head: Parts,
    body: Replay<B>,
    context: Context,
    earlier: Vec<&'static str>,
    permit: Option<Permit>,
}

impl<S, P, B, F> ResponseFuture<S, P, B, F> {
    pub(crate) fn calling(attempt: F, deadline: Option<Instant>, session: Option<Session<S, P, B>>) -> Self {
        Self { state: State::Calling { attempt }, timer: None, deadline, session, last: None }
    }

    pub(crate) fn expired() -> Self {
        Self { state: State::Expired, timer: None, deadline: None, session: None, last: None }
    }
}

impl<S, P, B, F, R> Future for ResponseFuture<S, P, B, F>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>, Future = F>,
    S::Error: Into<BoxError>,
    P: Policy,
    B: Body<Data = Bytes> + Unpin,
    F: Future<Output = Result<Response<R>, S::Error>>,
{
    type Output = Result<Response<R>, BoxError>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let answer = loop {
            match (this.state.as_mut().project(), this.session.as_mut()) {
                (StateProj::Calling { attempt }, session) => {
                    let Poll::Ready(answer) = attempt.poll(task) else {
                        ready!(poll_deadline(this.timer.as_mut(), *this.deadline, task));
                        break Err(this.last.take().unwrap_or_else(no_answer));
                    };
                    // What the attempt held is given back before the wait: permits, its body, with the response the connection.
                    this.state.set(State::Waiting);
                    let answer = answer.map_err(Into::into);
                    let Some(wait) = session.and_then(|session| session.wait(&answer, *this.deadline)) else {
                        break answer;
                    };
                    *this.last = Some(answer.map_or_else(|error| error, |response| answered(response.status())));
                    this.timer.set((!wait.is_zero()).then(|| sleep(wait)));
                }
                (StateProj::Waiting, _) => {
                    if let Some(timer) = this.timer.as_mut().as_pin_mut() {
                        ready!(timer.poll(task));
                    }
                    this.timer.set(None);
                    this.state.set(State::Readying);
                }
                (StateProj::Readying, Some(session)) => {
                    match session.service.poll_ready(task) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => break Err(error.into()),
                        Poll::Pending => {
                            ready!(poll_deadline(this.timer.as_mut(), *this.deadline, task));
                            break Err(this.last.take().unwrap_or_else(no_answer));
                        }
                    }
                    let in_time = this.deadline.is_none_or(|deadline| now() < deadline);
                    let Some(request) = in_time.then(|| session.again()).flatten() else {
                        break Err(this.last.take().unwrap_or_else(no_answer));
                    };
                    let attempt = session.service.call(request);
                    this.state.set(State::Calling { attempt });
                }
                (StateProj::Expired, _) => break Err(no_answer()),
                (StateProj::Readying, None) | (StateProj::Over, _) => {
                    panic!("a future is not polled after it is ready")
                }
            }
        };
        // The attempt that is given up ends now, not when the caller drops this future.
        this.state.set(State::Over);
        this.timer.set(None);
        *this.session = None;
        Poll::Ready(answer)
    }
}

impl<S, P, B> Session<S, P, B> {
    pub(crate) fn new(service: S, policy: P, head: Parts, body: Replay<B>, context: Context) -> Self {
        Self { service, policy, head, body, context, earlier: Vec::new(), permit: None }
    }
}

impl<S, P: Policy, B: Body<Data = Bytes> + Unpin> Session<S, P, B> {
    /// How long to wait before the request is sent again, unless the answer is handed on.
    fn wait<R>(&mut self, answer: &Result<Response<R>, BoxError>, deadline: Option<Instant>) -> Option<Duration> {
        let outcome = match answer {
            Ok(response) if response.status() < StatusCode::BAD_REQUEST => return None,
            Ok(response) => Outcome::Answered(response.status(), response.headers()),
            Err(error) => Outcome::Failed(&**error),
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now()));
        let attempt = Attempt { request: &self.head, outcome, earlier: &self.earlier };
        match self.policy.decide(&attempt) {
            Decision::Again { row, .. } if self.body.is_lost() => self.stop(Some(row), "body"),
            Decision::Again { row, wait, .. } if left.is_some_and(|left| left <= wait) => {
                self.stop(Some(row), "deadline");
            }
            Decision::Again { row, wait, permit } => {
                tracing::info!(
                    target: "coze::retry",
                    row,
                    attempt = self.context.attempts.load(Ordering::Relaxed),
                    wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                    request_id = self.context.request_id.get().map(RequestId::as_str),
                    "the request is sent again"
                );
                self.earlier.push(row);
                self.permit = permit;
                return Some(wait);
            }
            Decision::Stop { row, why } => self.stop(row, why),
        }
        None
    }

    /// The request for the next attempt, unless the attempt before still holds the body.
    fn again(&mut self) -> Option<Request<ReplayBody<B>>> {
        let Some(body) = self.body.again() else {
            self.stop(self.earlier.last().copied(), "body");
            return None;
        };
        if let Some(permit) = self.permit.take() {
            permit.spend();
        }
        self.context.attempts.fetch_add(1, Ordering::Relaxed);
        Some(Request::from_parts(self.head.clone(), body))
    }

    /// Tells why a failure is handed on: louder where there was a row for it.
    fn stop(&self, row: Option<&'static str>, why: &'static str) {
        // The level of an event is part of its call site, so each level has one.
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    target: "coze::retry",
                    row,
                    why,
                    attempt = self.context.attempts.load(Ordering::Relaxed),
                    request_id = self.context.request_id.get().map(RequestId::as_str),
                    "the request is not sent again"
                )
            };
        }
        match row {
            Some(_) => event!(info),
            None => event!(debug),
        }
    }
}

impl<S, P, B, F> fmt::Debug for ResponseFuture<S, P, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

fn poll_deadline(mut timer: Pin<&mut Option<Sleep>>, deadline: Option<Instant>, task: &mut Task<'_>) -> Poll<()> {
    let Some(deadline) = deadline else { return Poll::Pending };
    if timer.is_none() {
        timer.set(Some(sleep_until(deadline)));
    }
    timer.as_pin_mut().expect("it was made a moment ago").poll(task)
}

/// The deadline passed before there was any answer.
fn no_answer() -> BoxError {
    Error::new(Kind::Timeout, "deadline_passed").with_message("there was no answer before the deadline").into()
}

/// What stays of a response that was dropped to send the request again.
fn answered(status: StatusCode) -> BoxError {
    Error::new(kind(status).unwrap_or(Kind::Upstream), "failed_response")
        .with_message(format!("the last answer had the status {}", status.as_u16()))
        .into()
}
