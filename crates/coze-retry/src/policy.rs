use std::{error::Error as StdError, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, Request, StatusCode, request::Parts};
use tokio::time::Instant;

use crate::{Breaker, Hedge, Mark, Permit};

/// Decides whether a failed request is sent again, and when.
///
/// A closure over the attempts that failed is a policy:
///
/// ```
/// use std::time::Duration;
///
/// use coze_retry::{Attempt, Decision, Outcome, RetryLayer};
///
/// let once = RetryLayer::new(|attempt: &Attempt<'_>| match attempt.outcome {
///     Outcome::Answered(status, _) if status == 503 && attempt.earlier.is_empty() => {
///         Decision::Again { row: "unavailable", wait: Duration::from_secs(1), permit: None }
///     }
///     _ => Decision::Stop { row: None, why: "not_worth_it" },
/// });
/// # let _ = once;
/// ```
pub trait Policy {
    /// Looks at a request before it is sent for the first time. The default is [`Plan::default`].
    fn plan<B>(&self, request: &Request<B>) -> Plan {
        let _ = request;
        Plan::default()
    }

    /// Decides about an attempt that failed: with an error, or an answer that tells of a failure by its status. Nothing else
    /// is ever asked about but an answer that is late ([`Outcome::Late`]), so an answer that is under way is never cut off.
    ///
    /// There must be an end to it: a policy that always says [`Decision::Again`] is obeyed until the deadline.
    fn decide(&self, attempt: &Attempt<'_>) -> Decision;

    /// What each attempt asks first whether its destination is left alone: the authority of its address, or the `Host` it
    /// names. The default is none.
    fn breaker(&self) -> Option<&Breaker> {
        None
    }

    /// Says what a failure tells of its destination, for the [breaker](Self::breaker). The default is [`Mark::Unclear`]. An
    /// answer that is no failure is [`Mark::Good`] without question.
    fn mark(&self, outcome: Outcome<'_>) -> Mark {
        let _ = outcome;
        Mark::Unclear
    }
}

/// What there is to prepare for a request.
#[derive(Debug)]
pub struct Plan {
    /// How many bytes of the body may be kept to be sent again. With `None` the request is never sent again, and nothing of
    /// it is kept. Default 64 KiB.
    pub replay: Option<u64>,
    /// How long all attempts and waits may take together, until the head of the answer. The context's deadline holds as
    /// well, and what the request itself says (`grpc-timeout`). Default `None`.
    pub deadline: Option<Duration>,
    /// How each attempt is made. Default `None`, which is [`Attempts::default`].
    pub attempts: Option<Arc<Attempts>>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { replay: Some(64 * 1024), deadline: None, attempts: None }
    }
}

/// How each attempt is made. By default all of it is off.
#[derive(Clone, Debug, Default)]
pub struct Attempts {
    /// How long one attempt may take, from its sending until the head of its answer. One that takes longer is dropped, and
    /// failed with `attempt_timeout`.
    pub timeout: Option<Duration>,
    /// How long the first byte of the answer's body may take after its head. The answer was handed on by then, so its body
    /// fails with `first_byte_timeout`, and nothing is sent again.
    pub first_byte: Option<Duration>,
    /// The same between two frames of the body, such as the events of a stream: `idle_timeout`. Time in which nobody asks
    /// for the next frame does not count.
    pub idle: Option<Duration>,
    /// With less time than this left until the deadline, no further attempt is begun: it could not end in time.
    pub shortest: Duration,
    /// When an answer is late, and the policy is asked whether to send the request once more beside the first attempt
    /// ([`Outcome::Late`]). Only requests without a body.
    pub hedge: Option<Hedge>,
    /// The header that numbers the attempts: 1 for the first. Calls of gRPC have one of their own,
    /// `grpc-previous-rpc-attempts`, on all attempts but the first (gRFC A6).
    pub number_header: Option<HeaderName>,
    /// The header that says in milliseconds how much time is left for the attempt, and where the request itself may say it
    /// beforehand. Calls of gRPC have one of their own, `grpc-timeout`, whenever there is a deadline.
    pub deadline_header: Option<HeaderName>,
}

/// An attempt that failed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Attempt<'a> {
    /// The request as the layer got it.
    pub request: &'a Parts,
    /// How it failed.
    pub outcome: Outcome<'a>,
    /// The rows because of which the request was sent again before, in that order: empty after the first attempt.
    pub earlier: &'a [&'static str],
    /// The time.
    pub now: Instant,
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// With an error of the inner service.
    Failed(&'a (dyn StdError + 'static)),
    /// With a response of this status and these headers. Where the status is less than 400 they have a `grpc-status` other
    /// than 0, and may be trailers.
    Answered(StatusCode, &'a HeaderMap),
    /// Not yet: its answer is late. To send the request again means a second attempt beside this one; the one that answers
    /// first is kept, and the other one dropped.
    Late,
}

/// What a policy decides. Each decision is an event of target `coze::retry`.
#[derive(Debug)]
pub enum Decision {
    /// Send it again.
    Again {
        /// The reason, for events and for later attempts of the same request ([`Attempt::earlier`]).
        row: &'static str,
        /// Not before this time is over. A wait that would last until the deadline or longer is not begun.
        wait: Duration,
        /// What it costs: spent when the request is sent, given back when it is not.
        permit: Option<Permit>,
    },
    /// Hand on the failure as it is.
    Stop {
        /// The row that would have been the reason to send again.
        row: Option<&'static str>,
        /// Why not.
        why: &'static str,
    },
}

impl<F> Policy for F
where
    F: Fn(&Attempt<'_>) -> Decision,
{
    fn decide(&self, attempt: &Attempt<'_>) -> Decision {
        self(attempt)
    }
}
