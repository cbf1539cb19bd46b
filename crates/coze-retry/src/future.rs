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
    Attempts, Circuit, Outcome, Policy, ReplayBody, ResponseBody, grpc,
    judge::{answered, no_answer, outcome, settle, timed_out},
    race::Race,
    service::now,
    session::Session,
    start::Start,
};

pin_project! {
    /// The answer of the last attempt, or the last error.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, P, B, F, R: Body> {
        #[pin]
        state: State<F, R>,
        // Ends the wait, or the attempt. Made when something is pending, so never on the plain path.
        #[pin]
        timer: Option<Sleep>,
        setup: Setup<S, P, B>,
    }
}

/// What stays the same for all attempts of a request.
pub(crate) struct Setup<S, P, B> {
    pub(crate) policy: P,
    pub(crate) deadline: Option<Instant>,
    pub(crate) circuit: Option<Circuit>,
    pub(crate) attempts: Option<Arc<Attempts>>,
    /// Is it a call of gRPC, whose status may be in the trailers?
    pub(crate) grpc: bool,
    /// None if the request is never sent again.
    pub(crate) session: Option<Session<S, B>>,
}

pin_project! {
    #[project = StateProj]
    enum State<F, R: Body> {
        Calling { #[pin] race: Race<F>, second: Second, begun: Instant },
        Peeking { peek: Option<Peek<R>>, begun: Instant },
        Waiting,
        Readying,
        Refused { error: Option<BoxError> },
        Over,
    }
}

/// Whether a second attempt runs beside the first.
enum Second {
    No,
    /// If there is no answer so many milliseconds after the first one began.
    After(u32),
    /// As soon as the inner service is ready for it.
    Readying,
}

/// The answer to a call of gRPC, until its first frame: that may be trailers with a status.
type Peek<R> = Box<(Parts, Pin<Box<R>>)>;

impl<S, P, B, F, R: Body> ResponseFuture<S, P, B, F, R> {
    // In place: what is kept of a request is large to be moved about.
    #[inline(always)]
    pub(crate) fn calling(attempt: F, begun: Instant, setup: Setup<S, P, B>) -> Self {
        let second = setup.late().map_or(Second::No, Second::After);
        Self { state: State::Calling { race: Race::new(attempt), second, begun }, timer: None, setup }
    }

    pub(crate) fn refused(error: BoxError, policy: P) -> Self {
        let setup = Setup { policy, deadline: None, circuit: None, attempts: None, grpc: false, session: None };
        Self { state: State::Refused { error: Some(error) }, timer: None, setup }
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
        let setup = &mut *this.setup;
        let answer = loop {
            let answer = match this.state.as_mut().project() {
                StateProj::Calling { mut race, second, begun } => {
                    let (policy, session) = (&setup.policy, setup.session.as_ref());
                    let aside = |answer: Result<Response<R>, S::Error>, circuit: &mut Option<Circuit>| {
                        let answer = answer.map_err(Into::into);
                        let head = answer.as_ref().map(|response| (response.status(), response.headers()));
                        settle(policy, circuit, outcome(head, None), session.and_then(Session::destination));
                    };
                    match race.as_mut().poll(task, &mut setup.circuit, aside) {
                        Poll::Ready(answer) => {
                            let hedge = setup.attempts.as_ref().and_then(|attempts| attempts.hedge.as_ref());
                            if let (Some(hedge), true) = (hedge, answer.is_ok()) {
                                hedge.record(now() - *begun);
                            }
                            // Whatever the service holds for a second attempt is for nobody.
                            if let (Second::Readying, Some(session)) = (&*second, setup.session.as_mut()) {
                                session.service = session.service.clone();
                            }
                            // The way of nearly all answers, which are large to be moved about.
                            if answer.as_ref().is_ok_and(|response| setup.is_good(response)) {
                                this.state.set(State::Over);
                                this.timer.set(None);
                                let attempts = setup.finish();
                                return Poll::Ready(match answer {
                                    Ok(response) => {
                                        let (head, body) = response.into_parts();
                                        Ok(Response::from_parts(head, ResponseBody::new(body, attempts.as_ref())))
                                    }
                                    Err(error) => Err(error.into()),
                                });
                            }
                            match answer {
                                Ok(response) if setup.is_to_be_peeked(&response) => {
                                    let (head, body) = response.into_parts();
                                    let (peek, begun) = (Some(Box::new((head, Box::pin(body)))), *begun);
                                    this.state.set(State::Peeking { peek, begun });
                                    continue;
                                }
                                Ok(response) => {
                                    Ok(response.map(|body| ResponseBody::new(body, setup.attempts.as_ref())))
                                }
                                Err(error) => Err(error.into()),
                            }
                        }
                        Poll::Pending => {
                            let until = setup.start().until(*begun);
                            if let (Second::Readying, Some(session)) = (&*second, setup.session.as_mut())
                                && let Poll::Ready(ready) = session.service.poll_ready(task)
                            {
                                *second = Second::No;
                                let mut circuit = setup.circuit.as_ref().map(Circuit::another);
                                let attempts = setup.attempts.as_deref();
                                let start = Start { attempts, grpc: setup.grpc, deadline: until };
                                let request =
                                    ready.ok().and_then(|()| session.again(&start, until, circuit.as_mut(), now()));
                                if let Some(request) = request {
                                    race.join(session.service.call(request), circuit);
                                    continue;
                                }
                            }
                            let late = match second {
                                Second::After(ms) => Some(*begun + Duration::from_millis((*ms).into())),
                                _ => None,
                            };
                            ready!(poll_timer(this.timer.as_mut(), until.into_iter().chain(late).min(), task));
                            this.timer.set(None);
                            let now = now();
                            if until.is_none_or(|until| now < until) {
                                let late = setup.session.as_mut().and_then(|session| {
                                    session.wait(&setup.policy, Outcome::Late, until, setup.circuit.as_ref(), now)
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
                    let frame = match body.as_mut().poll_frame(task) {
                        Poll::Ready(frame) => frame.transpose().map_err(Into::into),
                        Poll::Pending => {
                            ready!(poll_timer(this.timer.as_mut(), setup.start().until(*begun), task));
                            this.timer.set(None);
                            if setup.is_over(now()) {
                                break Err(setup.last());
                            }
                            Err(timed_out())
                        }
                    };
                    let (head, body) = *peek.take().expect("it was here a moment ago");
                    let attempts = setup.attempts.as_ref();
                    frame.map(|frame| Response::from_parts(head, ResponseBody::peeked(body, frame, attempts)))
                }
                StateProj::Waiting => {
                    if let Some(timer) = this.timer.as_mut().as_pin_mut() {
                        ready!(timer.poll(task));
                    }
                    this.timer.set(None);
                    this.state.set(State::Readying);
                    continue;
                }
                StateProj::Readying => {
                    let (latest, deadline) = (setup.latest(), setup.deadline);
                    let session = setup.session.as_mut().expect("there is something to send");
                    match session.service.poll_ready(task) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => break Err(error.into()),
                        Poll::Pending => {
                            ready!(poll_timer(this.timer.as_mut(), deadline, task));
                            break Err(setup.last());
                        }
                    }
                    this.timer.set(None);
                    let (now, attempts) = (now(), setup.attempts.as_deref());
                    let start = Start { attempts, grpc: setup.grpc, deadline };
                    let Some(request) = session.again(&start, latest, setup.circuit.as_mut(), now) else {
                        break Err(setup.last());
                    };
                    let race = Race::new(session.service.call(request));
                    this.state.set(State::Calling { race, second: Second::No, begun: now });
                    continue;
                }
                StateProj::Refused { error } => break Err(error.take().unwrap_or_else(no_answer)),
                StateProj::Over => panic!("a future is not polled after it is ready"),
            };
            // What the attempt held is given back before the wait: permits, its body, and below with the response the connection.
            this.state.set(State::Waiting);
            let Some(wait) = setup.judge(&answer) else { break answer };
            if let Some(session) = &mut setup.session {
                session.keep(answer.map_or_else(|error| error, |response| answered(&response)));
            }
            this.timer.set((!wait.is_zero()).then(|| sleep(wait)));
        };
        // The attempt that is given up ends now, not when the caller drops this future.
        this.state.set(State::Over);
        this.timer.set(None);
        setup.finish();
        Poll::Ready(answer)
    }
}

impl<S, P, B> Setup<S, P, B> {
    pub(crate) fn start(&self) -> Start<'_> {
        Start { attempts: self.attempts.as_deref(), grpc: self.grpc, deadline: self.deadline }
    }

    /// After how many milliseconds the answer to the first attempt is late enough for a second one beside it.
    fn late(&self) -> Option<u32> {
        let hedge = self.attempts.as_ref()?.hedge.as_ref()?;
        let delay = self.session.as_ref().filter(|session| session.may_be_hedged()).and_then(|_| hedge.delay())?;
        Some(u32::try_from(delay.as_millis()).unwrap_or(u32::MAX))
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

    /// Lets go of all that further attempts would have needed.
    fn finish(&mut self) -> Option<Arc<Attempts>> {
        self.session = None;
        self.circuit = None;
        self.attempts.take()
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
        settle(&self.policy, &mut self.circuit, outcome, self.session.as_ref().and_then(Session::destination));
        let latest = self.latest();
        self.session.as_mut()?.wait(&self.policy, outcome?, latest, self.circuit.as_ref(), now())
    }

    /// Settles an answer that is no failure, whatever follows its head.
    fn is_good<R: Body>(&mut self, response: &Response<R>) -> bool {
        let good = !self.is_to_be_peeked(response)
            && outcome(Ok((response.status(), response.headers())), self.grpc.then_some(None)).is_none();
        if good {
            settle(&self.policy, &mut self.circuit, None, self.session.as_ref().and_then(Session::destination));
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
        f.debug_struct("ResponseFuture").field("deadline", &self.setup.deadline).finish_non_exhaustive()
    }
}

fn poll_timer(mut timer: Pin<&mut Option<Sleep>>, at: Option<Instant>, task: &mut Task<'_>) -> Poll<()> {
    let Some(at) = at else { return Poll::Pending };
    if timer.is_none() {
        timer.set(Some(sleep_until(at)));
    }
    timer.as_pin_mut().expect("it was made a moment ago").poll(task)
}
