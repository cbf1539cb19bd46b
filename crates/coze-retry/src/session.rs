use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use coze_core::{BoxError, Context, RequestId};
use http::{Request, request::Parts};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use crate::{
    Attempt, Decision, Outcome, Permit, Policy, ReplayBody,
    circuit::Probe,
    judge::{enter, no_answer},
    replay::Replay,
    start::Start,
};

/// What it takes to send a request again.
pub(crate) struct Session<S, B> {
    pub(crate) service: S,
    /// With a [`Context`], so that the attempts share what is noted about the request.
    pub(crate) head: Parts,
    pub(crate) body: Replay<B>,
    // In a box, because hardly any request has one.
    pub(crate) history: Option<Box<History>>,
}

/// What happened to a request before.
#[derive(Default)]
pub(crate) struct History {
    rows: Vec<&'static str>,
    permit: Option<Permit>,
    last: Option<BoxError>,
}

impl<S, B> Session<S, B> {
    /// Keeps a failure, to be handed on if nothing better comes.
    pub(crate) fn keep(&mut self, last: BoxError) {
        self.history.get_or_insert_default().last = Some(last);
    }

    /// The failure before, or that there was no answer in time.
    pub(crate) fn last(&mut self) -> BoxError {
        self.history.as_mut().and_then(|history| history.last.take()).unwrap_or_else(no_answer)
    }

    fn rows(&self) -> &[&'static str] {
        self.history.as_ref().map_or(&[], |history| &history.rows)
    }

    /// Where the request goes to, for events.
    pub(crate) fn destination(&self) -> Option<&str> {
        self.head.uri.authority().map(http::uri::Authority::as_str)
    }

    fn context(&self) -> &Context {
        self.head.extensions.get().expect("it was there when the head was kept")
    }
}

impl<S, B: Body<Data = Bytes> + Unpin> Session<S, B> {
    /// Was all of the body sent, as far as anybody can tell?
    pub(crate) fn is_sent(&self) -> bool {
        self.body.is_complete()
    }

    /// How long to wait before the request is sent again, unless the answer is handed on. At `latest` it is too late.
    pub(crate) fn wait(
        &mut self,
        policy: &impl Policy,
        outcome: Outcome<'_>,
        latest: Option<Instant>,
        destination: u64,
        now: Instant,
    ) -> Option<Duration> {
        let left = latest.map(|latest| latest.saturating_duration_since(now));
        let is_open = |wait| policy.breaker().is_some_and(|breaker| breaker.is_open_after(destination, wait, now));
        let attempt = Attempt { request: &self.head, outcome, earlier: self.rows(), now };
        match policy.decide(&attempt) {
            Decision::Again { row, .. } if self.body.is_lost() => self.stop(Some(row), "body"),
            Decision::Again { row, wait, .. } if left.is_some_and(|left| left <= wait) => {
                self.stop(Some(row), "deadline");
            }
            Decision::Again { row, wait, .. } if is_open(wait) => self.stop(Some(row), "circuit_open"),
            Decision::Again { row, wait, permit } => {
                tracing::info!(
                    target: "coze::retry",
                    row,
                    attempt = self.context().attempts.load(Ordering::Relaxed),
                    wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                    request_id = self.context().request_id.get().map(RequestId::as_str),
                    "the request is sent again"
                );
                let history = self.history.get_or_insert_default();
                // A second attempt beside the first is none of the tries after a failure.
                if !matches!(outcome, Outcome::Late) {
                    history.rows.push(row);
                }
                history.permit = permit;
                return Some(wait);
            }
            Decision::Stop { row, why } => self.stop(row, why),
        }
        None
    }

    /// The next attempt, unless the one before still holds the body, or there is no time, or no way. The service is ready.
    pub(crate) fn again(
        &mut self,
        policy: &impl Policy,
        start: &Start<'_>,
        latest: Option<Instant>,
        destination: u64,
        now: Instant,
    ) -> Option<(S::Future, Option<Probe>)>
    where
        S: Service<Request<ReplayBody<B>>>,
    {
        let row = self.rows().last().copied();
        if latest.is_some_and(|latest| latest <= now) {
            self.stop(row, "deadline");
            return None;
        }
        let Some(body) = self.body.again() else {
            self.stop(row, "body");
            return None;
        };
        let Ok(probe) = enter(policy, destination, now) else {
            self.stop(row, "circuit_open");
            return None;
        };
        if let Some(permit) = self.history.as_mut().and_then(|history| history.permit.take()) {
            permit.spend();
        }
        let number = self.context().attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let mut head = self.head.clone();
        start.prepare(&mut head.headers, number, now);
        Some((self.service.call(Request::from_parts(head, body)), probe))
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
                    attempt = self.context().attempts.load(Ordering::Relaxed),
                    request_id = self.context().request_id.get().map(RequestId::as_str),
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
