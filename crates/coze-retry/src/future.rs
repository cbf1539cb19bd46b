use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use coze_core::BoxError;
use http::{Request, Response, response::Parts};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tower_service::Service;

use crate::{
    Attempts, Outcome, Policy, ReplayBody, ResponseBody,
    body::Watched,
    circuit::Probe,
    grpc,
    judge::{answered, no_answer, outcome, settle, timed_out},
    race::Second,
    service::now,
    session::Session,
    start::Start,
};

pin_project! {
    /// The answer of the last attempt, or the last error.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, P, B, F, R: Body> {
        #[pin]
        stage: Stage<S, P, B, F, R>,
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<S, P, B, F, R: Body> {
        Sent {
            #[pin]
            state: State<F, R>,
            // Ends the wait, or the attempt. Made when something is pending, so never on the plain path.
            #[pin]
            timer: Option<Sleep>,
            setup: Setup<S, P, B>,
        },
        // Nothing was sent.
        Refused { error: Option<BoxError> },
        Over,
    }
}

/// What stays the same for all attempts of a request.
pub(crate) struct Setup<S, P, B> {
    pub(crate) policy: P,
    pub(crate) deadline: Option<Instant>,
    /// What the breaker calls where it goes to.
    pub(crate) destination: u64,
    /// Of the attempt under way, where it is one.
    pub(crate) probe: Option<Probe>,
    pub(crate) attempts: Option<Arc<Attempts>>,
    /// Is it a call of gRPC, whose status may be in the trailers?
    pub(crate) grpc: bool,
    /// None if the request is never sent again.
    pub(crate) session: Option<Session<S, B>>,
}

pin_project! {
    #[project = StateProj]
    enum State<F, R: Body> {
        Calling { #[pin] first: Option<F>, second: Second<F>, begun: Instant },
        Peeking { peek: Option<Peek<R>>, begun: Instant },
        Waiting,
        Readying,
    }
}

/// The answer to a call of gRPC, until its first frame: that may be trailers with a status.
type Peek<R> = Box<(Parts, Pin<Box<Watched<R>>>)>;

impl<S, P, B, F, R: Body> ResponseFuture<S, P, B, F, R> {
    // In place: what is kept of a request is large to be moved about.
    #[inline(always)]
    pub(crate) fn calling(attempt: F, begun: Instant, late: Option<u32>, setup: Setup<S, P, B>) -> Self {
        let second = late.map_or(Second::No, Second::After);
        let state = State::Calling { first: Some(attempt), second, begun };
        Self { stage: Stage::Sent { state, timer: None, setup } }
    }

    pub(crate) fn refused(error: BoxError) -> Self {
        Self { stage: Stage::Refused { error: Some(error) } }
    }
}

impl<S, P, B, F, R> Future for ResponseFuture<S, P, B, F, R>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>, Future = F> + Clone,
    S::Error: Into<BoxError>,
    P: Policy,
    B: Body<Data = Bytes> + Unpin,
    F: Future<Output = Result<Response<R>, S::Error>>,
    R: Body,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody<R>>, BoxError>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let answer = loop {
            let (mut state, mut timer, setup) = match this.stage.as_mut().project() {
                StageProj::Sent { state, timer, setup } => (state, timer, setup),
                StageProj::Refused { error } => break Err(error.take().expect("it is here until it is handed on")),
                StageProj::Over => panic!("a future is not polled after it is ready"),
            };
            let answer = match state.as_mut().project() {
                StateProj::Calling { first, second, begun } => {
                    let (policy, session, destination) = (&setup.policy, setup.session.as_ref(), setup.destination);
                    let aside = |answer: Result<Response<R>, S::Error>, probe: &mut Option<Probe>| {
                        let answer = answer.map_err(Into::into);
                        let head = answer.as_ref().map(|response| (response.status(), response.headers()));
                        settle(policy, destination, probe, outcome(head, None), || session?.destination());
                    };
                    let polled = second.race(first, task, &mut setup.probe, aside);
                    if let Poll::Ready(answer) = &polled {
                        let hedge = setup.attempts.as_ref().and_then(|attempts| attempts.hedge.as_ref());
                        if let (Some(hedge), true) = (hedge, answer.is_ok()) {
                            hedge.record(now() - *begun);
                        }
                        // Whatever the service holds for a second attempt is for nobody.
                        if let (Second::Readying, Some(session)) = (&*second, setup.session.as_mut()) {
                            session.service = session.service.clone();
                        }
                    }
                    // The way of nearly all answers, which are large to be moved about.
                    if let Poll::Ready(Ok(response)) = &polled
                        && setup.is_good(response)
                    {
                        let attempts = setup.attempts.take();
                        this.stage.set(Stage::Over);
                        return wrap(polled, attempts.as_ref());
                    }
                    match polled {
                        Poll::Ready(Ok(response)) if setup.is_to_be_peeked(&response) => {
                            let (head, body) = response.into_parts();
                            let body = Watched::new(body, setup.attempts.clone());
                            let (peek, begun) = (Some(Box::new((head, body))), *begun);
                            state.set(State::Peeking { peek, begun });
                            continue;
                        }
                        Poll::Ready(Ok(response)) => {
                            Ok(response.map(|body| ResponseBody::new(body, setup.attempts.as_ref())))
                        }
                        Poll::Ready(Err(error)) => Err(error.into()),
                        Poll::Pending => {
                            let until = setup.start().until(*begun);
                            if let (Second::Readying, Some(session)) = (&*second, setup.session.as_mut())
                                && let Poll::Ready(ready) = session.service.poll_ready(task)
                            {
                                *second = Second::No;
                                let attempts = setup.attempts.as_deref();
                                let start = Start { attempts, grpc: setup.grpc, deadline: until };
                                let again = ready.ok().and_then(|()| {
                                    session.again(&setup.policy, &start, until, setup.destination, now())
                                });
                                if let Some((attempt, probe)) = again {
                                    *second = Second::run(attempt, probe);
                                    continue;
                                }
                            }
                            let late = match second {
                                Second::After(ms) => Some(*begun + Duration::from_millis((*ms).into())),
                                _ => None,
                            };
                            ready!(poll_timer(timer.as_mut(), until.into_iter().chain(late).min(), task));
                            timer.set(None);
                            let now = now();
                            if until.is_none_or(|until| now < until) {
                                let late = setup.session.as_mut().and_then(|session| {
                                    session.wait(&setup.policy, Outcome::Late, until, setup.destination, now)
                                });
                                *second = late.map_or(Second::No, |_| Second::Readying);
                                continue;
                            }
                            if setup.is_over(now) {
                                break Err(setup.last());
                            }
                            Err(timed_out())
                        }
                    }
                }
                StateProj::Peeking { peek, begun } => {
                    let (_, body) = &mut **peek.as_mut().expect("it is here until it was looked at");
                    let peeked = match body.as_mut().peek(task) {
                        Poll::Ready(peeked) => peeked.map_err(Into::into),
                        Poll::Pending => {
                            ready!(poll_timer(timer.as_mut(), setup.start().until(*begun), task));
                            timer.set(None);
                            if setup.is_over(now()) {
                                break Err(setup.last());
                            }
                            Err(timed_out())
                        }
                    };
                    let (head, body) = *peek.take().expect("it was here a moment ago");
                    peeked.map(|()| Response::from_parts(head, ResponseBody::watched(body)))
                }
                StateProj::Waiting => {
                    if let Some(timer) = timer.as_mut().as_pin_mut() {
                        ready!(timer.poll(task));
                    }
                    timer.set(None);
                    state.set(State::Readying);
                    continue;
                }
                StateProj::Readying => {
                    let (latest, deadline) = (setup.latest(), setup.deadline);
                    let session = setup.session.as_mut().expect("there is something to send");
                    match session.service.poll_ready(task) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => break Err(error.into()),
                        Poll::Pending => {
                            ready!(poll_timer(timer.as_mut(), deadline, task));
                            break Err(setup.last());
                        }
                    }
                    timer.set(None);
                    let (now, attempts) = (now(), setup.attempts.as_deref());
                    let start = Start { attempts, grpc: setup.grpc, deadline };
                    let again = session.again(&setup.policy, &start, latest, setup.destination, now);
                    let Some((attempt, probe)) = again else {
                        break Err(setup.last());
                    };
                    setup.probe = probe;
                    state.set(State::Calling { first: Some(attempt), second: Second::No, begun: now });
                    continue;
                }
            };
            // What the attempt held is given back before the wait: permits, its body, and below with the response the connection.
            state.set(State::Waiting);
            let Some(wait) = setup.judge(&answer) else { break answer };
            if let Some(session) = &mut setup.session {
                session.keep(answer.map_or_else(|error| error, |response| answered(&response)));
            }
            timer.set((!wait.is_zero()).then(|| sleep(wait)));
        };
        // An attempt that is given up ends now, and so does what further ones would have needed, not when the caller drops this
        // future.
        this.stage.set(Stage::Over);
        Poll::Ready(answer)
    }
}

impl<S, P, B> Setup<S, P, B> {
    pub(crate) fn start(&self) -> Start<'_> {
        Start { attempts: self.attempts.as_deref(), grpc: self.grpc, deadline: self.deadline }
    }

    /// When it is too late for a further attempt.
    fn latest(&self) -> Option<Instant> {
        let shortest = self.attempts.as_ref().map_or(Duration::ZERO, |attempts| attempts.shortest);
        self.deadline.map(|deadline| deadline.checked_sub(shortest).unwrap_or(deadline))
    }

    /// The last failure, or that there was no answer in time.
    fn last(&mut self) -> BoxError {
        self.session.as_mut().map_or_else(no_answer, Session::last)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }
}

impl<S, P: Policy, B: Body<Data = Bytes> + Unpin> Setup<S, P, B> {
    /// Settles an attempt with its breaker, and says how long to wait before the request is sent again, unless the answer is
    /// handed on.
    fn judge<R: Body>(&mut self, answer: &Result<Response<ResponseBody<R>>, BoxError>) -> Option<Duration> {
        let trailers = answer.as_ref().ok().and_then(|response| response.body().trailers());
        let head = answer.as_ref().map(|response| (response.status(), response.headers()));
        let outcome = outcome(head, self.grpc.then_some(trailers));
        self.settle(outcome);
        let latest = self.latest();
        self.session.as_mut()?.wait(&self.policy, outcome?, latest, self.destination, now())
    }

    #[inline]
    fn settle(&mut self, outcome: Option<Outcome<'_>>) {
        let name = || self.session.as_ref()?.destination();
        settle(&self.policy, self.destination, &mut self.probe, outcome, name);
    }

    /// Settles an answer that is no failure, whatever follows its head.
    #[inline]
    fn is_good<R: Body>(&mut self, response: &Response<R>) -> bool {
        let good = !self.is_to_be_peeked(response)
            && outcome(Ok((response.status(), response.headers())), self.grpc.then_some(None)).is_none();
        if good {
            self.settle(None);
        }
        good
    }

    /// May the answer to a call of gRPC be a failure that its head does not tell? Only where the whole call was sent: a server
    /// may wait for the next message before it answers the first.
    fn is_to_be_peeked<R: Body>(&self, response: &Response<R>) -> bool {
        self.grpc
            && response.status().is_success()
            && !grpc::has_status(response.headers())
            && !response.body().is_end_stream()
            && self.session.as_ref().is_some_and(Session::is_sent)
    }
}

impl<S, P, B, F, R: Body> fmt::Debug for ResponseFuture<S, P, B, F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// An answer that is handed on at once. Not inlined, so that it is written where the caller wants it, and not moved once more.
#[inline(never)]
fn wrap<R: Body, E: Into<BoxError>>(
    polled: Poll<Result<Response<R>, E>>,
    attempts: Option<&Arc<Attempts>>,
) -> Poll<Result<Response<ResponseBody<R>>, BoxError>> {
    polled.map_ok(|response| response.map(|body| ResponseBody::new(body, attempts))).map_err(Into::into)
}

fn poll_timer(mut timer: Pin<&mut Option<Sleep>>, at: Option<Instant>, task: &mut Task<'_>) -> Poll<()> {
    let Some(at) = at else { return Poll::Pending };
    if timer.is_none() {
        timer.set(Some(sleep_until(at)));
    }
    timer.as_pin_mut().expect("it was made a moment ago").poll(task)
}
