//! What is told of requests that authentication refused: one event, one count and fields of the span, which agree.

use std::sync::{Arc, OnceLock};

use coze_core::{Refusal, RequestId};
use metrics::{Histogram, Unit, counter, describe_counter, describe_histogram, histogram};
use tracing::{Level, Span, event};

use crate::{Record, family::Family, labels::method_label};

/// The most clients with a label of their own, unless told otherwise.
const MAX_CLIENTS: usize = 100;

const FAILURES: &str = "auth_failure_total";
const REPORTED: &str = "auth_reported_total";
const LIFE: &str = "auth_token_life_seconds";

/// The handles of what is counted of authentication.
#[derive(Clone)]
pub(crate) struct AuthMeter {
    /// By client; for each a column per code. That of nobody in particular is always there.
    failures: Family<Option<Arc<str>>>,
    reported: Family<Option<Arc<str>>>,
    life: OnceLock<Histogram>,
}

impl AuthMeter {
    pub(crate) fn new() -> Self {
        Self::with_clients(MAX_CLIENTS)
    }

    pub(crate) fn with_clients(max: usize) -> Self {
        let family = || Family::new(max.saturating_add(1), Refusal::CODES.len()).with(&None);
        Self { failures: family(), reported: family(), life: OnceLock::new() }
    }

    /// Counts what a request's context says, and tells of a refusal.
    pub(crate) fn tell(&self, record: &Record, span: &Span) {
        if let Some(life) = record.context.token_life.get() {
            self.life.get_or_init(|| histogram!(LIFE)).record(*life);
        }
        if let Some(reported) = record.context.reported.get()
            && let Some(code) = reported.code()
        {
            count(&self.reported, REPORTED, code, reported);
        }
        if let Some(refusal) = record.context.refusal.get()
            && let Some(code) = refusal.code()
        {
            count(&self.failures, FAILURES, code, refusal);
            log(record, span, code, refusal);
        }
    }

    pub(crate) fn describe() {
        describe_counter!(FAILURES, Unit::Count, "Requests that authentication or authorisation refused");
        describe_counter!(REPORTED, Unit::Count, "Requests that a policy which only reports would have refused");
        describe_histogram!(LIFE, Unit::Seconds, "Time to the expiry of accepted tokens");
    }
}

fn count(family: &Family<Option<Arc<str>>>, metric: &'static str, code: &'static str, refusal: &Refusal) {
    let column = Refusal::CODES.iter().position(|known| *known == code).expect("a code is one of the codes");
    let register = |client: Option<&Option<Arc<str>>>| {
        let client = client.map_or("_other", |_| name(refusal)).to_owned();
        counter!(metric, "reason" => code, "client" => client)
    };
    family.counter(&refusal.client, column, register).increment(1);
}

fn name(refusal: &Refusal) -> &str {
    refusal.client.as_deref().unwrap_or("_unknown")
}

fn log(record: &Record, span: &Span, code: &'static str, refusal: &Refusal) {
    let (method, route) = (method_label(record.method), record.meter.route_label(record.route));
    let resource = format!("{method} {route}");
    let trace_id = record.context.request_id.get().map(RequestId::as_str);
    span.record("auth_error_code", code);
    span.record("auth_trace_id", trace_id);
    span.record("auth_resource", &*resource);
    span.record("auth_client", name(refusal));
    event!(
        target: "coze::auth",
        Level::INFO,
        auth_error_code = code,
        auth_trace_id = trace_id,
        auth_resource = resource,
        auth_client = name(refusal),
        "request refused"
    );
}
