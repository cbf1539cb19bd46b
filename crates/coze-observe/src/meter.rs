use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use coze_core::{Error, Kind, TenantId};
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::{
    auth::AuthMeter,
    family::Family,
    labels::{METHOD_COUNT, Outcome, method_label},
    side::Side,
};

/// The most routes a policy can have: each takes about 4 KiB of handles.
const MAX_ROUTES: usize = 256;
/// The most tenants with a label of their own, unless told otherwise.
const MAX_TENANTS: usize = 100;
/// The most kinds and reasons with labels of their own. Reasons are words of our code: there are fewer than this.
const MAX_FAILURES: usize = 200;

/// The handles of all series of a policy, each resolved once, at its first use, and found by numbers from then on.
#[derive(Clone)]
pub(crate) struct Meter {
    side: Side,
    router: matchit::Router<usize>,
    /// The labels by number; the last one is for what the router does not know.
    routes: Vec<Arc<str>>,
    series: Box<[OnceLock<Series>]>,
    in_flight: OnceLock<Gauge>,
    tenants: Family<TenantId>,
    failures: Family<(Kind, &'static str)>,
    /// Of the requests that come to us.
    auth: Option<AuthMeter>,
}

/// What is measured for one route, method and outcome.
#[derive(Clone)]
struct Series {
    requests: Counter,
    head: Histogram,
    body: Histogram,
}

/// A request that ended.
pub(crate) struct Ended<'a> {
    pub(crate) route: usize,
    pub(crate) method: usize,
    pub(crate) outcome: Outcome,
    pub(crate) tenant: Option<&'a TenantId>,
    pub(crate) failure: Option<(Kind, &'static str)>,
    /// Until the head, or until the end where there was none.
    pub(crate) head: Duration,
    pub(crate) total: Duration,
}

impl Meter {
    pub(crate) fn new<R: AsRef<str>>(side: Side, patterns: impl IntoIterator<Item = R>) -> Result<Self, Error> {
        let mut router = matchit::Router::new();
        let mut routes: Vec<Arc<str>> = Vec::new();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let invalid = |message| Error::new(Kind::Invalid, "route_invalid").with_message(message);
            if routes.len() == MAX_ROUTES {
                return Err(Error::new(Kind::Invalid, "routes_too_many")
                    .with_message(format!("more than {MAX_ROUTES} routes are given")));
            }
            if !pattern.starts_with('/') {
                return Err(invalid(format!("the route {pattern} must begin with a slash")));
            }
            router
                .insert(pattern, routes.len())
                .map_err(|e| invalid(format!("the route {pattern} is no pattern of its own")).with_source(e))?;
            routes.push(pattern.into());
        }
        routes.push("_unmatched".into());
        Ok(Self {
            side,
            router,
            series: (0..routes.len() * METHOD_COUNT * Outcome::COUNT).map(|_| OnceLock::new()).collect(),
            routes,
            in_flight: OnceLock::new(),
            tenants: Family::new(MAX_TENANTS, Outcome::COUNT),
            failures: Family::new(MAX_FAILURES, 1),
            auth: (side == Side::Server).then(AuthMeter::new),
        })
    }

    pub(crate) fn max_tenants(&mut self, max: usize) {
        self.tenants = Family::new(max, Outcome::COUNT);
    }

    pub(crate) fn max_clients(&mut self, max: usize) {
        self.auth = Some(AuthMeter::with_clients(max));
    }

    pub(crate) fn auth(&self) -> Option<&AuthMeter> {
        self.auth.as_ref()
    }

    pub(crate) fn side(&self) -> Side {
        self.side
    }

    pub(crate) fn routes(&self) -> &[Arc<str>] {
        &self.routes
    }

    /// The number of the path's route.
    pub(crate) fn route(&self, path: &str) -> usize {
        self.router.at(path).map_or(self.routes.len() - 1, |found| *found.value)
    }

    pub(crate) fn route_label(&self, route: usize) -> &str {
        &self.routes[route]
    }

    pub(crate) fn in_flight(&self) -> &Gauge {
        self.in_flight.get_or_init(|| {
            self.describe();
            gauge!(self.side.names().in_flight)
        })
    }

    pub(crate) fn count(&self, ended: &Ended<'_>) {
        let Ended { route, method, outcome, .. } = *ended;
        let series = &self.series[(route * METHOD_COUNT + method) * Outcome::COUNT + outcome as usize];
        let series = series.get_or_init(|| self.series(route, method, outcome));
        series.requests.increment(1);
        series.head.record(ended.head);
        series.body.record(ended.total);

        let side = self.side.as_str();
        if let Some(tenant) = ended.tenant {
            let register = |tenant: Option<&TenantId>| {
                let tenant = tenant.map_or("_other", TenantId::as_str).to_owned();
                counter!("coze_tenant_requests_total", "side" => side, "tenant" => tenant, "outcome" => outcome.as_str())
            };
            self.tenants.counter(tenant, outcome as usize, register).increment(1);
        }
        if let Some(failure) = &ended.failure {
            let register = |failure: Option<&(Kind, &'static str)>| {
                let (kind, reason) = failure.map_or(("_other", "_other"), |(kind, reason)| (kind.as_str(), reason));
                counter!("coze_failures_total", "side" => side, "kind" => kind, "reason" => reason)
            };
            self.failures.counter(failure, 0, register).increment(1);
        }
    }

    fn series(&self, route: usize, method: usize, outcome: Outcome) -> Series {
        let labels = || {
            let route = Arc::clone(&self.routes[route]);
            [("route", route), ("method", method_label(method).into()), ("outcome", outcome.as_str().into())]
        };
        let names = self.side.names();
        Series {
            requests: counter!(names.requests, &labels()),
            head: histogram!(names.head, &labels()),
            body: histogram!(names.body, &labels()),
        }
    }

    fn describe(&self) {
        let names = self.side.names();
        describe_counter!(names.requests, Unit::Count, "Requests that ended");
        describe_histogram!(names.head, Unit::Seconds, "Time until the head of the answer, or the end without one");
        describe_histogram!(names.body, Unit::Seconds, "Time until the end of the answer's body");
        describe_gauge!(names.in_flight, Unit::Count, "Requests that have not ended");
        describe_counter!("coze_tenant_requests_total", Unit::Count, "Requests that ended, by tenant");
        describe_counter!("coze_failures_total", Unit::Count, "Requests that failed, by kind and reason");
        if self.auth.is_some() {
            AuthMeter::describe();
        }
    }
}
