use std::{error::Error as StdError, time::Duration};

use http::{HeaderMap, StatusCode, request::Parts};

use crate::Permit;

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
    fn plan(&self, request: &Parts) -> Plan {
        let _ = request;
        Plan::default()
    }

    /// Decides about an attempt that failed: with an error, or with a status of 400 or more. Nothing else is ever asked
    /// about, so an answer that is under way is never cut off.
    ///
    /// There must be an end to it: a policy that always says [`Decision::Again`] is obeyed until the deadline.
    fn decide(&self, attempt: &Attempt<'_>) -> Decision;
}

/// What there is to prepare for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How many bytes of the body may be kept to be sent again. With `None` the request is never sent again, and nothing of
    /// it is kept. Default 64 KiB.
    pub replay: Option<u64>,
    /// How long all attempts and waits may take together, until the head of the answer. The context's deadline holds as
    /// well. Default `None`.
    pub deadline: Option<Duration>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { replay: Some(64 * 1024), deadline: None }
    }
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
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// With an error of the inner service.
    Failed(&'a (dyn StdError + 'static)),
    /// With a response of this status, 400 or more, and these headers.
    Answered(StatusCode, &'a HeaderMap),
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
