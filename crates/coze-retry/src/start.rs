//! What an attempt begins with.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::{Attempts, grpc};

/// How long the caller of a request waits, if it says so: milliseconds in `header`, or a call of gRPC by `grpc-timeout`.
///
/// For a service whose callers send it, to set the deadline of [`coze_core::Context`]. The layer itself asks it about the
/// requests that it sends.
#[must_use]
pub fn time_left(headers: &HeaderMap, header: Option<&HeaderName>) -> Option<Duration> {
    said(headers, grpc::is_call(headers), header)
}

#[inline]
pub(crate) fn said(headers: &HeaderMap, grpc: bool, header: Option<&HeaderName>) -> Option<Duration> {
    let millis = header.and_then(|name| headers.get(name)?.to_str().ok()?.trim().parse().ok());
    let timeout = if grpc { grpc::timeout(headers) } else { None };
    timeout.into_iter().chain(millis.map(Duration::from_millis)).min()
}

/// What is told to the next hop.
#[derive(Clone, Copy)]
pub(crate) struct Start<'a> {
    pub(crate) attempts: Option<&'a Attempts>,
    /// Is it a call of gRPC?
    pub(crate) grpc: bool,
    /// Until when all attempts have to be over.
    pub(crate) deadline: Option<Instant>,
}

impl Start<'_> {
    /// When an attempt that began then has to be over.
    pub(crate) fn until(&self, begun: Instant) -> Option<Instant> {
        let own = self.attempts.and_then(|attempts| begun.checked_add(attempts.timeout?));
        own.into_iter().chain(self.deadline).min()
    }

    /// Tells the number of the attempt and the time that is left for it.
    #[inline]
    pub(crate) fn prepare(&self, headers: &mut HeaderMap, number: u32, now: Instant) {
        if !self.grpc && self.attempts.is_none() {
            return;
        }
        let left = self.until(now).map(|until| until.saturating_duration_since(now));
        if self.grpc {
            if let Some(left) = left {
                headers.insert(grpc::TIMEOUT, grpc::timeout_value(left));
            }
            if number > 1 {
                headers.insert(grpc::PREVIOUS_ATTEMPTS, HeaderValue::from(number - 1));
            }
        }
        let Some(attempts) = self.attempts else { return };
        if let Some(name) = &attempts.number_header {
            headers.insert(name.clone(), HeaderValue::from(number));
        }
        if let (Some(name), Some(left)) = (&attempts.deadline_header, left) {
            headers.insert(name.clone(), HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)));
        }
    }
}
