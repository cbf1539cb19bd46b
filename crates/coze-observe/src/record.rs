use std::{
    any::Any,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use coze_core::{BotId, BoxError, Context, Error, Kind, RequestId, TenantId};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_LENGTH, request::Parts};
use http_body::Body;
use tracing::span::{Entered, Span};

use crate::{
    access,
    labels::{Outcome, method_label, method_number},
    meter::{Ended, Meter},
    request_id, service,
    side::Side,
};

/// What is known of one request. It is counted and logged when its record is dropped: once, however it ends.
pub struct Record {
    pub(crate) meter: Arc<Meter>,
    pub(crate) context: Context,
    span: Span,
    started: Instant,
    pub(crate) route: usize,
    pub(crate) method: usize,
    pub(crate) head: Option<Head>,
    /// Bytes of the body that were handed on.
    pub(crate) bytes: u64,
    pub(crate) grpc_status: Option<u32>,
    /// None until the end: a record that is dropped before belongs to a cancelled request.
    outcome: Option<Outcome>,
    failure: Option<(Kind, &'static str)>,
}

/// The head of the answer.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) after: Duration,
    /// The length of the body, where it is known beforehand.
    announced: Option<u64>,
}

impl Record {
    pub(crate) fn begin(meter: &Arc<Meter>, parts: &Parts, context: &Context, now: Instant) -> Self {
        let (route, method) = (meter.route(parts.uri.path()), method_number(&parts.method));
        let id = context.request_id.get().map(RequestId::as_str);
        meter.in_flight().increment(1);
        Self {
            meter: Arc::clone(meter),
            context: context.clone(),
            span: meter.side().span(method_label(method), meter.route_label(route), id),
            started: now,
            route,
            method,
            head: None,
            bytes: 0,
            grpc_status: None,
            outcome: None,
            failure: None,
        }
    }

    pub(crate) fn enter(&self) -> Entered<'_> {
        self.span.enter()
    }

    /// Notes the head of the answer. There is no record any more if that was all of it.
    pub(crate) fn head<B: Body>(mut self, response: &mut Response<B>) -> Option<Self> {
        let status = response.status();
        let announced = response.body().size_hint().exact().or_else(|| number(response.headers().get(CONTENT_LENGTH)));
        self.head = Some(Head { status, after: self.elapsed(), announced });
        self.trailers(response.headers());
        self.span.record("status", status.as_u16());
        self.name_parties();
        if let (Side::Server, Some(id)) = (self.meter.side(), self.context.request_id.get()) {
            request_id::put(response.headers_mut(), id);
        }
        if has_content(method_label(self.method), status) && !response.body().is_end_stream() {
            return Some(self);
        }
        self.complete();
        None
    }

    pub(crate) fn data(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// gRPC says how a call ended in the trailers, or in the head where there is no body.
    pub(crate) fn trailers(&mut self, fields: &HeaderMap) {
        self.grpc_status = number(fields.get("grpc-status")).or(self.grpc_status);
    }

    /// The answer came to its end.
    pub(crate) fn complete(mut self) {
        self.outcome = self.head.map(|head| Outcome::of(head.status));
    }

    /// The inner service failed, or its body. The error may be of any type, so that it can be handed on as it is: our own is
    /// found where layers put it, bare or in a box.
    pub(crate) fn fail(mut self, error: &dyn Any) {
        self.outcome = Some(Outcome::Error);
        let boxed = || error.downcast_ref::<BoxError>().and_then(|error| Error::find(&**error));
        let found = error.downcast_ref::<Error>().or_else(boxed);
        self.failure = found.map(|error| (error.kind(), error.reason()));
    }

    fn elapsed(&self) -> Duration {
        service::now().saturating_duration_since(self.started)
    }

    fn name_parties(&self) {
        self.span.record("tenant", self.context.tenant.get().map(TenantId::as_str));
        self.span.record("bot", self.context.bot.get().map(BotId::as_str));
    }

    /// How a request ended whose record nobody ended.
    fn dropped(&mut self) -> Outcome {
        if std::thread::panicking() {
            self.failure = Some((Kind::Internal, "panic"));
            return Outcome::Error;
        }
        match self.head {
            // A server that has written as much as was announced does not ask for more.
            Some(Head { status, announced: Some(announced), .. }) if self.bytes >= announced => Outcome::of(status),
            _ => Outcome::Cancelled,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or_else(|| self.dropped());
        let total = self.elapsed();
        let ended = Ended {
            route: self.route,
            method: self.method,
            outcome,
            tenant: self.context.tenant.get(),
            failure: self.failure.or_else(|| self.context.failure.get().copied()),
            head: self.head.map_or(total, |head| head.after),
            total,
        };
        self.meter.in_flight().decrement(1);
        self.meter.count(&ended);
        if self.head.is_none() {
            self.name_parties();
        }
        self.span.record("outcome", outcome.as_str());
        self.span.in_scope(|| {
            if let Some(auth) = self.meter.auth() {
                auth.tell(self, &self.span);
            }
            access::log(self, &ended);
        });
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("method", &method_label(self.method))
            .field("route", &self.meter.route_label(self.route))
            .finish_non_exhaustive()
    }
}

/// Does such an answer have a body (RFC 9110 section 6.4.1)? One that has none may never be polled, whatever it says itself.
fn has_content(method: &str, status: StatusCode) -> bool {
    let without = status.is_informational() || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
    !without && method != "HEAD" && !(method == "CONNECT" && status.is_success())
}

fn number<T: FromStr>(value: Option<&HeaderValue>) -> Option<T> {
    value?.to_str().ok()?.parse().ok()
}
