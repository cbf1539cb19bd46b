//! What a [`Standard`] can be told.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use coze_core::Error;
use http::{HeaderName, request::Parts};

use crate::{Attempts, Breaker, Budget, Change, Hedge, Row, Standard};

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) rows: Vec<Row>,
    pub(crate) tries: u32,
    pub(crate) replay: Option<u64>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) retry_after_cap: Duration,
    pub(crate) budget: Budget,
    pub(crate) breaker: Option<Breaker>,
    /// None as long as nothing of it is set, so that it costs nothing.
    pub(crate) attempts: Option<Arc<Attempts>>,
    pub(crate) idempotent: fn(&Parts) -> bool,
    pub(crate) random: fn() -> f64,
    pub(crate) clock: fn() -> SystemTime,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rows: Row::DEFAULTS.to_vec(),
            tries: 8,
            replay: Some(64 * 1024),
            deadline: Some(Duration::from_secs(120)),
            retry_after_cap: Duration::from_secs(60),
            budget: Budget::default(),
            breaker: Some(Breaker::new()),
            attempts: None,
            idempotent: |_| false,
            random: fastrand::f64,
            clock: SystemTime::now,
        }
    }
}

impl Standard {
    /// The table. Default [`Row::DEFAULTS`].
    #[must_use]
    pub fn rows(self, rows: impl IntoIterator<Item = Row>) -> Self {
        let rows = rows.into_iter().collect();
        self.with(|settings| settings.rows = rows)
    }

    /// Changes the rows of one name, as a configuration says.
    ///
    /// ```
    /// # use coze_retry::{Change, Standard};
    /// let change = Change { row: "server_error".to_owned(), tries: Some(2), codes: vec![720_701_013], ..Change::default() };
    /// let policy = Standard::new().change(&change)?;
    /// # let _ = policy;
    /// # Ok::<(), coze_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// `retry_table`, when there is no such row, or the table would have more than 256.
    pub fn change(mut self, change: &Change) -> Result<Self, Error> {
        change.apply(&mut Arc::make_mut(&mut self.settings).rows)?;
        Ok(self)
    }

    /// How often one request is sent again at most, whatever the rows say; with 0 never, and then nothing of it is kept.
    /// Default 8.
    #[must_use]
    pub fn tries(self, tries: u32) -> Self {
        self.with(|settings| settings.tries = tries)
    }

    /// How long all attempts and waits may take together, until the head of the answer. `None` leaves it to the deadline of
    /// the context. Default 120 s: the 60 s pause fits in, and the 90 s that a workflow may take.
    #[must_use]
    pub fn deadline(self, deadline: impl Into<Option<Duration>>) -> Self {
        let deadline = deadline.into();
        self.with(|settings| settings.deadline = deadline)
    }

    /// How long one attempt may take, from its sending until the head of its answer. Default `None`.
    #[must_use]
    pub fn attempt_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into();
        self.attempts(|attempts| attempts.timeout = timeout)
    }

    /// How long the first byte of an answer's body may take after its head. Default `None`.
    #[must_use]
    pub fn first_byte_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into();
        self.attempts(|attempts| attempts.first_byte = timeout)
    }

    /// How long may pass between two frames of an answer's body, such as the events of a stream. Default `None`.
    #[must_use]
    pub fn idle_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into();
        self.attempts(|attempts| attempts.idle = timeout)
    }

    /// The time an attempt takes at least: with less left until the deadline none is begun. Default 0.
    #[must_use]
    pub fn shortest_attempt(self, shortest: Duration) -> Self {
        self.attempts(|attempts| attempts.shortest = shortest)
    }

    /// Sends a request that only reads and has no body a second time, when its answer is late. It costs a retry of the budget.
    /// Default never.
    #[must_use]
    pub fn hedge(self, hedge: impl Into<Option<Hedge>>) -> Self {
        let hedge = hedge.into();
        self.attempts(|attempts| attempts.hedge = hedge)
    }

    /// The header that numbers the attempts: 1 for the first. Default none; calls of gRPC have one of their own.
    #[must_use]
    pub fn number_header(self, name: HeaderName) -> Self {
        self.attempts(|attempts| attempts.number_header = Some(name))
    }

    /// The header that says in milliseconds how much time is left for an attempt, and where a request itself may say it
    /// beforehand. Default none; calls of gRPC have one of their own.
    #[must_use]
    pub fn deadline_header(self, name: HeaderName) -> Self {
        self.attempts(|attempts| attempts.deadline_header = Some(name))
    }

    /// How many bytes of a request body are kept at most. A longer one is sent as it comes, and not sent again once it has
    /// begun. Default 64 KiB.
    #[must_use]
    pub fn body_cap(self, bytes: u64) -> Self {
        self.with(|settings| settings.replay = Some(bytes))
    }

    /// The longest `Retry-After` that is waited for. A longer one ends in the failure at once: coming back earlier would only
    /// be refused again. Default 60 s.
    #[must_use]
    pub fn retry_after_cap(self, cap: Duration) -> Self {
        self.with(|settings| settings.retry_after_cap = cap)
    }

    /// Bounds the extra load of all requests together, for each destination and tenant. Default [`Budget::default`].
    #[must_use]
    pub fn budget(self, budget: Budget) -> Self {
        self.with(|settings| settings.budget = budget)
    }

    /// Leaves a destination alone that hangs. Default [`Breaker::new`]; with `None` none is ever left alone.
    #[must_use]
    pub fn breaker(self, breaker: impl Into<Option<Breaker>>) -> Self {
        let breaker = breaker.into();
        self.with(|settings| settings.breaker = breaker)
    }

    /// Says which requests may run twice, besides those that the type's docs name. Default none.
    ///
    /// ```
    /// # use coze_retry::Standard;
    /// let policy = Standard::new().idempotent(|request| request.headers.contains_key("idempotency-key"));
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn idempotent(self, idempotent: fn(&Parts) -> bool) -> Self {
        self.with(|settings| settings.idempotent = idempotent)
    }

    /// Where chance comes from, for tests: numbers from \[0, 1).
    #[must_use]
    pub fn random(self, random: fn() -> f64) -> Self {
        self.with(|settings| settings.random = random)
    }

    /// The wall clock that a date in `Retry-After` is compared with, for tests.
    #[must_use]
    pub fn clock(self, clock: fn() -> SystemTime) -> Self {
        self.with(|settings| settings.clock = clock)
    }

    fn attempts(self, set: impl FnOnce(&mut Attempts)) -> Self {
        self.with(|settings| set(Arc::make_mut(settings.attempts.get_or_insert_default())))
    }

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }
}
