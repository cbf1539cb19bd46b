use std::{
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use coze_core::{Context, Kind, Retry};
use http::{Extensions, HeaderMap, Request, StatusCode, Uri, header::HOST, request::Parts};

use crate::{
    Attempt, Backoff, Breaker, Decision, Mark, Outcome, Plan, Policy, Row,
    failure::{Asked, Failure},
    idempotent::{asks_for_stream, is_idempotent, is_read},
    settings::Settings,
};

/// The policy of the decision table: sends again what may be sent again, when a [`Row`] says how, as long as the tries, the
/// deadline and the budget last.
///
/// What may be sent again is on the error ([`coze_core::Error::retry`]). Where the request may have run, it is sent again only
/// if that does no harm: by its method (RFC 9110 §9.2.2), because the platform only reads (coze-platform.md §2.3),
/// because the caller says so ([`Idempotent`](crate::Idempotent), [`Standard::idempotent`]), or because a stream was asked for
/// by `Accept: text/event-stream` and the platform answered with an error of its own instead, so that nothing has begun.
/// Clones share the budget and the breaker.
#[derive(Clone, Debug)]
pub struct Standard {
    pub(crate) settings: Arc<Settings>,
}

impl Standard {
    /// The default table, deadline, budget and breaker.
    #[must_use]
    pub fn new() -> Self {
        Self { settings: Arc::default() }
    }

    fn failure(&self, outcome: Outcome<'_>) -> (Failure, Option<&Row>) {
        let failure = Failure::new(outcome, self.settings.clock);
        let row = self.settings.rows.iter().find(|row| row.matches(&failure));
        (failure, row)
    }

    /// May the request run twice, or is it certain that it did not run at all?
    fn may_repeat(&self, request: &Parts, failure: &Failure) -> bool {
        // Smaller codes are HTTP statuses, where the platform itself said nothing.
        let platform = failure.code.is_some_and(|code| code >= 1000);
        failure.retry == Retry::Safe
            || is_idempotent(request)
            || (self.settings.idempotent)(request)
            || platform && asks_for_stream(request)
    }

    /// Decides whether a late answer is worth a second attempt.
    fn late(&self, attempt: &Attempt<'_>) -> Decision {
        if !is_read(attempt.request) {
            return Decision::Stop { row: None, why: "not_a_read" };
        }
        match self.settings.budget.withdraw(Account::of(attempt.request), 100, attempt.now) {
            permit @ Some(_) => Decision::Again { row: "hedge", wait: Duration::ZERO, permit },
            None => Decision::Stop { row: Some("hedge"), why: "budget" },
        }
    }
}

impl Default for Standard {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Standard {
    #[inline]
    fn plan<B>(&self, request: &Request<B>) -> Plan {
        let settings = &*self.settings;
        settings.budget.deposit(Account(request.uri(), request.headers(), request.extensions()));
        Plan {
            replay: settings.replay.filter(|_| settings.tries > 0),
            deadline: settings.deadline,
            attempts: settings.attempts.clone(),
        }
    }

    fn decide(&self, attempt: &Attempt<'_>) -> Decision {
        if matches!(attempt.outcome, Outcome::Late) {
            return self.late(attempt);
        }
        let settings = &*self.settings;
        let (failure, row) = self.failure(attempt.outcome);
        if failure.retry == Retry::Never {
            return Decision::Stop { row: None, why: "never" };
        }
        let Some(row) = row else {
            return Decision::Stop { row: None, why: "no_row" };
        };
        if row.alerts {
            let pause_ms = u64::try_from(row.wait.delay(0, 0.0).as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(target: "coze::alert", alert = row.name, pause_ms, "the platform takes no more requests for now");
        }
        let stop = |why| Decision::Stop { row: Some(row.name), why };
        if !self.may_repeat(attempt.request, &failure) {
            return stop("not_idempotent");
        }
        let tries = count(attempt.earlier.iter().filter(|name| **name == row.name));
        if tries >= row.tries || count(attempt.earlier.iter()) >= settings.tries {
            return stop("tries");
        }
        let random = (settings.random)();
        let wait = match failure.asked {
            Some(Asked::After(asked) | Asked::At(asked)) if asked > settings.retry_after_cap => {
                return stop("retry_after");
            }
            // Who says "now" is not hammered either.
            Some(Asked::After(asked)) => asked.max(Backoff::DEFAULT.delay(tries, random)),
            Some(Asked::At(asked)) => asked,
            None => row.wait.delay(tries, random),
        };
        match settings.budget.withdraw(Account::of(attempt.request), row.cost, attempt.now) {
            permit @ Some(_) => Decision::Again { row: row.name, wait, permit },
            None => stop("budget"),
        }
    }

    #[inline]
    fn breaker(&self) -> Option<&Breaker> {
        self.settings.breaker.as_ref()
    }

    fn mark(&self, outcome: Outcome<'_>) -> Mark {
        let (failure, row) = self.failure(outcome);
        if row.is_some_and(|row| row.marks) {
            return Mark::Bad;
        }
        // What our own layers refused says nothing about the other side.
        let is_theirs = matches!(outcome, Outcome::Answered(..)) || failure.code.is_some();
        let is_fault = matches!(
            failure.kind,
            Some(Kind::Upstream | Kind::Unavailable | Kind::Timeout | Kind::Internal | Kind::Cancelled)
        ) || failure.status.is_some_and(|status| status >= StatusCode::INTERNAL_SERVER_ERROR);
        if is_theirs && !is_fault { Mark::Good } else { Mark::Unclear }
    }
}

/// Where a request goes to: the authority of its address, or the `Host` it names.
#[inline]
pub(crate) fn destination<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a [u8] {
    match uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => headers.get(HOST).map_or(b"", |host| host.as_bytes()),
    }
}

/// Whose account of the budget a request belongs to: its destination's and tenant's. They are looked for when it is hashed, which
/// is seldom.
struct Account<'a>(&'a Uri, &'a HeaderMap, &'a Extensions);

impl<'a> Account<'a> {
    fn of(request: &'a Parts) -> Self {
        Self(&request.uri, &request.headers, &request.extensions)
    }
}

impl Hash for Account<'_> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let tenant = self.2.get::<Context>().and_then(|context| context.tenant.get());
        (destination(self.0, self.1), tenant.map(|tenant| tenant.as_str())).hash(hasher);
    }
}

fn count<'a>(names: impl Iterator<Item = &'a &'static str>) -> u32 {
    u32::try_from(names.count()).unwrap_or(u32::MAX)
}
