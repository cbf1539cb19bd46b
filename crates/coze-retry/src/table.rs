//! The decision table, as data (coze-platform.md §3, retry column).

use std::time::Duration;

use coze_core::{Error, Kind};
use http::StatusCode;

use crate::{Backoff, failure::Failure};

/// How long to wait after a failure, how often, and what else it leads to. The first row that matches decides.
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
    /// What one retry takes out of the [`Budget`](crate::Budget), in per cent of a retry.
    pub cost: u32,
    /// Does it speak against the destination, so that the [`Breaker`](crate::Breaker) marks it?
    pub marks: bool,
    /// Are people told, by an event of target `coze::alert`? Also where nothing is sent again.
    pub alerts: bool,
}

/// The failures a [`Row`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// The platform says that no request is left: status 429 and `X-RateLimit-Remaining: 0`, or an error that tells so with
    /// the limit named [`Limit::PLATFORM`](coze_core::Limit::PLATFORM).
    Exhausted,
    /// No connection came about, or it closed before anything of the request was sent: an error of [`Kind::Unavailable`] that
    /// is marked [`coze_core::Retry::Safe`], without a code of the platform.
    Unsent,
    /// The platform said this code.
    Code(i64),
    /// A response with this status, where no layer made an error of it. Below 400 nothing is a failure.
    Status(StatusCode),
    /// An error of this kind. A response counts as one too: 429 as [`Kind::RateLimited`], 502 as [`Kind::Upstream`], 503 as
    /// [`Kind::Unavailable`], 504 as [`Kind::Timeout`]; the gRPC statuses 4 as [`Kind::Timeout`], 8 as [`Kind::RateLimited`],
    /// 14 as [`Kind::Unavailable`]. So does an error that is not a [`coze_core::Error`]: as [`Kind::Unavailable`].
    Kind(Kind),
}

/// How long to wait before sending again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wait {
    /// Always as long; zero is at once.
    Fixed(Duration),
    /// Longer each time.
    Backoff(Backoff),
}

/// What a configuration changes about the rows of one name. What is `None` or empty stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// The name of the rows, one of those in the table.
    pub row: String,
    /// The wait; where it grows, the first one.
    pub wait: Option<Duration>,
    /// How often one request is sent again because of them.
    pub tries: Option<u32>,
    /// What one retry costs, in per cent.
    pub cost: Option<u32>,
    /// Does the breaker mark them?
    pub marks: Option<bool>,
    /// Are people told?
    pub alerts: Option<bool>,
    /// Further codes of the platform that they are for, whatever other row those had before. They only help where
    /// [`coze_core::Error::retry`] allows it, which coze-errmap says.
    pub codes: Vec<i64>,
}

/// The longest table that a change may make.
const MOST: usize = 256;

impl Row {
    /// The rows of [`Standard`](crate::Standard), unless it is told others.
    pub const DEFAULTS: &[Self] = DEFAULTS;

    /// A row that costs one retry and leads to nothing else.
    #[must_use]
    pub const fn new(name: &'static str, when: When, wait: Wait, tries: u32) -> Self {
        Self { name, when, wait, tries, cost: 100, marks: false, alerts: false }
    }

    pub(crate) fn matches(&self, failure: &Failure) -> bool {
        match self.when {
            When::Exhausted => failure.exhausted,
            When::Unsent => failure.unsent,
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
            Self::Fixed(wait) => wait,
            Self::Backoff(backoff) => backoff.delay(n, random),
        }
    }
}

impl Change {
    /// Changes a table.
    pub(crate) fn apply(&self, rows: &mut Vec<Row>) -> Result<(), Error> {
        let refuse = |message| Err(Error::new(Kind::Invalid, "retry_table").with_message(message));
        if !rows.iter().any(|row| row.name == self.row) {
            let mut names: Vec<_> = rows.iter().map(|row| row.name).collect();
            names.dedup();
            return refuse(format!("there is no row `{}`, expected one of {}", self.row, names.join(", ")));
        }
        if rows.len() + self.codes.len() > MOST {
            return refuse(format!("expected a table of at most {MOST} rows"));
        }
        for row in rows.iter_mut().filter(|row| row.name == self.row) {
            row.wait = match (row.wait, self.wait) {
                (wait, None) => wait,
                (Wait::Fixed(_), Some(wait)) => Wait::Fixed(wait),
                (Wait::Backoff(backoff), Some(base)) => Wait::Backoff(Backoff { base, ..backoff }),
            };
            row.tries = self.tries.unwrap_or(row.tries);
            row.cost = self.cost.unwrap_or(row.cost);
            row.marks = self.marks.unwrap_or(row.marks);
            row.alerts = self.alerts.unwrap_or(row.alerts);
        }
        if let Some(row) = rows.iter().find(|row| row.name == self.row).copied() {
            rows.splice(0..0, self.codes.iter().map(|code| Row { when: When::Code(*code), ..row }));
        }
        Ok(())
    }
}

/// 1, 2, 4, 8 and then 16 s, each with its random share.
const SECONDS: Wait = Wait::Backoff(Backoff { base: Duration::from_secs(1), ..Backoff::DEFAULT });
/// 100, 200, 400 ms and so on.
const SHORT: Wait = Wait::Backoff(Backoff::DEFAULT);

const fn fixed(ms: u64) -> Wait {
    Wait::Fixed(Duration::from_millis(ms))
}

#[rustfmt::skip]
const DEFAULTS: &[Row] = &[
    Row::new("token_refused", When::Kind(Kind::Unauthenticated), fixed(0),      1),
    Row { alerts: true, ..
    Row::new("exhausted",     When::Exhausted,                   fixed(60_000), 2) },
    Row::new("system_limit",  When::Code(4009),                  SECONDS,       5),
    // Counted by the minute, of which we don't know the rest: these waits add up to 63 s.
    Row::new("minute_limit",  When::Code(4020),                  SECONDS,       7),
    Row::new("minute_limit",  When::Code(702_112_103),           SECONDS,       7),
    Row::new("minute_limit",  When::Code(702_093_018),           SECONDS,       7),
    Row::new("risk_control",  When::Code(4102),                  fixed(5000),   1),
    Row::new("model_error",   When::Code(4013),                  SHORT,         5),
    Row::new("model_error",   When::Code(702_112_101),           SHORT,         5),
    Row::new("server_error",  When::Code(5000),                  SHORT,         5),
    Row::new("server_error",  When::Code(702_112_106),           SHORT,         5),
    Row::new("server_error",  When::Code(702_112_113),           SHORT,         5),
    Row { marks: true, ..
    Row::new("unsent",        When::Unsent,                      SHORT,         3) },
    Row::new("rate_limited",  When::Kind(Kind::RateLimited),     SECONDS,       5),
    Row::new("overloaded",    When::Kind(Kind::Overloaded),      SECONDS,       5),
    Row::new("gateway_error", When::Kind(Kind::Upstream),        fixed(1500),   2),
    Row::new("gateway_error", When::Kind(Kind::Unavailable),     fixed(1500),   2),
    // An attempt that hangs takes up more than one that is refused.
    Row { marks: true, cost: 200, ..
    Row::new("timeout",       When::Kind(Kind::Timeout),         fixed(3000),   1) },
];
