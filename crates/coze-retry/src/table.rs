//! The decision table, as data (coze-platform.md §3, retry column).

use std::time::Duration;

use coze_core::Kind;
use http::StatusCode;

use crate::{Backoff, failure::Failure};

/// How long to wait after a failure, and how often. The first row that matches decides.
///
/// Whether a failure may be answered by sending again at all is not for the table to say: that is on the error
/// ([`coze_core::Error::retry`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Its name in events. Rows of one name count their tries together.
    pub name: &'static str,
    /// What it is for.
    pub when: When,
    /// How long to wait, unless the other side says it: that wins.
    pub wait: Wait,
    /// How often one request is sent again because of rows of this name.
    pub tries: u32,
}

/// The failures a [`Row`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// The platform says that no request is left: status 429 and `X-RateLimit-Remaining: 0`, or an error that tells so with
    /// the limit named [`Limit::PLATFORM`](coze_core::Limit::PLATFORM).
    Exhausted,
    /// The platform said this code.
    Code(i64),
    /// A response with this status, where no layer made an error of it. Below 400 nothing is a failure.
    Status(StatusCode),
    /// An error of this kind. A response counts as one too: 429 as [`Kind::RateLimited`], 502 as [`Kind::Upstream`], 503 as
    /// [`Kind::Unavailable`], 504 as [`Kind::Timeout`]. So does an error that is not a [`coze_core::Error`]: as
    /// [`Kind::Unavailable`].
    Kind(Kind),
}

/// How long to wait before sending again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wait {
    /// Always as long; zero is at once.
    Fixed(Duration),
    /// Longer each time.
    Backoff(Backoff),
    /// As long as this, and people are told: an event of target `coze::alert`, also where nothing is sent again.
    Pause(Duration),
}

impl Row {
    /// The rows of [`Standard`](crate::Standard), unless it is told others.
    pub const DEFAULTS: &[Self] = DEFAULTS;

    pub(crate) fn matches(&self, failure: &Failure) -> bool {
        match self.when {
            When::Exhausted => failure.exhausted,
            When::Code(code) => failure.code == Some(code),
            When::Status(status) => failure.status == Some(status),
            When::Kind(kind) => failure.kind == Some(kind),
        }
    }
}

impl Wait {
    /// The wait after `n` tries.
    pub(crate) fn delay(self, n: u32, random: f64) -> Duration {
        match self {
            Self::Fixed(wait) | Self::Pause(wait) => wait,
            Self::Backoff(backoff) => backoff.delay(n, random),
        }
    }
}

/// 1, 2, 4, 8 and then 16 s, each with its random share.
const SECONDS: Wait = Wait::Backoff(Backoff { base: Duration::from_secs(1), ..Backoff::DEFAULT });
/// 100, 200, 400 ms and so on.
const SHORT: Wait = Wait::Backoff(Backoff::DEFAULT);

#[rustfmt::skip]
const DEFAULTS: &[Row] = &[
    row("token_refused",  When::Kind(Kind::Unauthenticated), Wait::Fixed(Duration::ZERO),            1),
    row("exhausted",      When::Exhausted,                   Wait::Pause(Duration::from_secs(60)),   2),
    row("system_limit",   When::Code(4009),                  SECONDS,                                5),
    // Counted by the minute, of which we don't know the rest: these waits add up to 63 s.
    row("minute_limit",   When::Code(4020),                  SECONDS,                                7),
    row("minute_limit",   When::Code(702_112_103),           SECONDS,                                7),
    row("minute_limit",   When::Code(702_093_018),           SECONDS,                                7),
    row("risk_control",   When::Code(4102),                  Wait::Fixed(Duration::from_secs(5)),    1),
    row("model_error",    When::Code(4013),                  SHORT,                                  5),
    row("model_error",    When::Code(702_112_101),           SHORT,                                  5),
    row("server_error",   When::Code(5000),                  SHORT,                                  5),
    row("server_error",   When::Code(702_112_106),           SHORT,                                  5),
    row("server_error",   When::Code(702_112_113),           SHORT,                                  5),
    row("rate_limited",   When::Kind(Kind::RateLimited),     SECONDS,                                5),
    row("overloaded",     When::Kind(Kind::Overloaded),      SECONDS,                                5),
    row("gateway_error",  When::Kind(Kind::Upstream),        Wait::Fixed(Duration::from_millis(1500)), 2),
    row("gateway_error",  When::Kind(Kind::Unavailable),     Wait::Fixed(Duration::from_millis(1500)), 2),
    row("timeout",        When::Kind(Kind::Timeout),         Wait::Fixed(Duration::from_secs(3)),    1),
];

const fn row(name: &'static str, when: When, wait: Wait, tries: u32) -> Row {
    Row { name, when, wait, tries }
}
