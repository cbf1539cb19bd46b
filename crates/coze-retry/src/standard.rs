use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use coze_core::Retry;
use http::request::Parts;

use crate::{Attempt, Backoff, Budget, Decision, Plan, Policy, Row, Wait, failure::Failure, idempotent::is_idempotent};

/// The policy of the decision table: sends again what may be sent again, when a [`Row`] says how, as long as the tries, the
/// deadline and the budget last.
///
/// What may be sent again is on the error ([`coze_core::Error::retry`]). Where the request may have run, it is sent again only
/// if that does no harm: by its method (RFC 9110 §9.2.2), because the platform only reads (coze-platform.md §2.3),
/// or because the caller says so ([`Idempotent`](crate::Idempotent), [`Standard::idempotent`]). Clones share the budget.
#[derive(Clone, Debug)]
pub struct Standard {
    settings: Arc<Settings>,
}

#[derive(Clone, Debug)]
struct Settings {
    rows: Vec<Row>,
    tries: u32,
    plan: Plan,
    retry_after_cap: Duration,
    budget: Budget,
    idempotent: fn(&Parts) -> bool,
    random: fn() -> f64,
    clock: fn() -> SystemTime,
}

impl Standard {
    /// The default table, deadline and budget.
    #[must_use]
    pub fn new() -> Self {
        let settings = Settings {
            rows: Row::DEFAULTS.to_vec(),
            tries: 8,
            plan: Plan { deadline: Some(Duration::from_secs(120)), ..Plan::default() },
            retry_after_cap: Duration::from_secs(60),
            budget: Budget::default(),
            idempotent: |_| false,
            random: fastrand::f64,
            clock: SystemTime::now,
        };
        Self { settings: Arc::new(settings) }
    }

    /// The table. Default [`Row::DEFAULTS`].
    #[must_use]
    pub fn rows(self, rows: impl IntoIterator<Item = Row>) -> Self {
        let rows = rows.into_iter().collect();
        self.with(|settings| settings.rows = rows)
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
        self.with(|settings| settings.plan.deadline = deadline)
    }

    /// How many bytes of a request body are kept at most. A longer one is sent as it comes, and not sent again once it has
    /// begun. Default 64 KiB.
    #[must_use]
    pub fn body_cap(self, bytes: u64) -> Self {
        self.with(|settings| settings.plan.replay = Some(bytes))
    }

    /// The longest `Retry-After` that is waited for. A longer one ends in the failure at once: coming back earlier would only
    /// be refused again. Default 60 s.
    #[must_use]
    pub fn retry_after_cap(self, cap: Duration) -> Self {
        self.with(|settings| settings.retry_after_cap = cap)
    }

    /// Bounds the extra load of all requests together. Default [`Budget::default`].
    ///
    /// A budget is for one destination: where there are several, each has its policy.
    #[must_use]
    pub fn budget(self, budget: Budget) -> Self {
        self.with(|settings| settings.budget = budget)
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

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }
}

impl Default for Standard {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Standard {
    fn plan(&self, _: &Parts) -> Plan {
        let settings = &*self.settings;
        settings.budget.deposit();
        Plan { replay: settings.plan.replay.filter(|_| settings.tries > 0), ..settings.plan }
    }

    fn decide(&self, attempt: &Attempt<'_>) -> Decision {
        let settings = &*self.settings;
        let failure = Failure::new(attempt.outcome, settings.clock);
        if failure.retry == Retry::Never {
            return Decision::Stop { row: None, why: "never" };
        }
        let Some(row) = settings.rows.iter().find(|row| row.matches(&failure)) else {
            return Decision::Stop { row: None, why: "no_row" };
        };
        if let Wait::Pause(pause) = row.wait {
            let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(target: "coze::alert", alert = row.name, pause_ms, "the platform takes no more requests for now");
        }
        let stop = |why| Decision::Stop { row: Some(row.name), why };
        if failure.retry == Retry::IfIdempotent
            && !is_idempotent(attempt.request)
            && !(settings.idempotent)(attempt.request)
        {
            return stop("not_idempotent");
        }
        let tries = count(attempt.earlier.iter().filter(|name| **name == row.name));
        if tries >= row.tries || count(attempt.earlier.iter()) >= settings.tries {
            return stop("tries");
        }
        let random = (settings.random)();
        let wait = match failure.retry_after {
            Some(asked) if asked > settings.retry_after_cap => return stop("retry_after"),
            // Who says "now" is not hammered either.
            Some(asked) => asked.max(Backoff::DEFAULT.delay(tries, random)),
            None => row.wait.delay(tries, random),
        };
        match settings.budget.withdraw() {
            Some(permit) => Decision::Again { row: row.name, wait, permit: Some(permit) },
            None => stop("budget"),
        }
    }
}

fn count<'a>(names: impl Iterator<Item = &'a &'static str>) -> u32 {
    u32::try_from(names.count()).unwrap_or(u32::MAX)
}
