//! What an answer means: whether it is a failure, what it says of its destination, and what stays of it.

use coze_core::{BoxError, Error, Kind};
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use tokio::time::Instant;

use crate::{
    Mark, Outcome, Policy, ResponseBody,
    circuit::{Probe, Turn},
    failure, grpc,
    service::now,
};

/// The failure that this answer is, if it is one. A call of gRPC has a status in its trailers, if those were looked at, else in
/// its head.
#[inline]
pub(crate) fn outcome<'a>(
    head: Result<(StatusCode, &'a HeaderMap), &'a BoxError>,
    grpc: Option<Option<&'a HeaderMap>>,
) -> Option<Outcome<'a>> {
    match (head, grpc) {
        (Err(error), _) => Some(Outcome::Failed(&**error)),
        (Ok((status, headers)), _) if status >= StatusCode::BAD_REQUEST => Some(Outcome::Answered(status, headers)),
        (Ok((status, headers)), Some(trailers)) => {
            let fields = trailers.unwrap_or(headers);
            grpc::has_failed(fields).then_some(Outcome::Answered(status, fields))
        }
        _ => None,
    }
}

/// Asks the breaker whether an attempt may begin.
#[inline]
pub(crate) fn enter(policy: &impl Policy, destination: u64, now: Instant) -> Result<Option<Probe>, Error> {
    policy.breaker().map_or(Ok(None), |breaker| breaker.enter(destination, now))
}

/// Tells the breaker how an attempt ended, and everybody if that changed anything.
#[inline]
pub(crate) fn settle<'a>(
    policy: &impl Policy,
    destination: u64,
    probe: &mut Option<Probe>,
    outcome: Option<Outcome<'_>>,
    name: impl FnOnce() -> Option<&'a str>,
) {
    let Some(breaker) = policy.breaker() else { return };
    let mark = outcome.map_or(Mark::Good, |outcome| policy.mark(outcome));
    if let Some(turn) = breaker.settle(destination, probe, mark, now) {
        tell(turn, name());
    }
}

#[cold]
fn tell(turn: Turn, destination: Option<&str>) {
    match turn {
        Turn::Opened => {
            tracing::warn!(target: "coze::alert", alert = "circuit_open", destination, "the other side is left alone for a while");
        }
        Turn::Closed => tracing::info!(target: "coze::retry", destination, "the other side is back"),
    }
}

/// The deadline passed before there was any answer.
pub(crate) fn no_answer() -> BoxError {
    Error::new(Kind::Timeout, "deadline_passed").with_message("there was no answer before the deadline").into()
}

/// One attempt took too long.
pub(crate) fn timed_out() -> BoxError {
    Error::new(Kind::Timeout, "attempt_timeout").with_message("the attempt took too long").into()
}

/// What stays of a response that was dropped to send the request again.
pub(crate) fn answered<R: Body>(response: &Response<ResponseBody<R>>) -> BoxError {
    let status = response.status();
    let kind = match status < StatusCode::BAD_REQUEST {
        true => grpc::kind(response.body().trailers().unwrap_or(response.headers())),
        false => failure::kind(status),
    };
    Error::new(kind.unwrap_or(Kind::Upstream), "failed_response")
        .with_message(format!("the last answer had the status {}", status.as_u16()))
        .into()
}
