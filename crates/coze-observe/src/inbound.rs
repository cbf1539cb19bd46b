use std::{fmt, sync::Arc, time::Instant};

use coze_core::{Context, Error};
use http::request::Parts;

use crate::{Policy, Record, meter::Meter, request_id, side::Side};

/// The inbound policy: requests that callers send to us.
///
/// The request's id is the context's if an outer layer set one, else the caller's in
/// [`REQUEST_ID_HEADER`](crate::REQUEST_ID_HEADER) if that is one valid [`RequestId`](coze_core::RequestId) which does not
/// look like a credential, else a random one. The header of the request and of the answer is set to it. Clones share the counts.
#[derive(Clone)]
pub struct Inbound {
    meter: Arc<Meter>,
    random: fn() -> u128,
}

impl Inbound {
    /// Names requests by the path pattern that fits, such as `/webhook/{bot_id}` or `/static/{*path}`, and by `_unmatched`
    /// where none does.
    ///
    /// # Errors
    /// `route_invalid` (not a pattern, or in conflict with another one) and `routes_too_many` (more than 256) are
    /// [`Kind::Invalid`](coze_core::Kind::Invalid).
    pub fn new<R: AsRef<str>>(routes: impl IntoIterator<Item = R>) -> Result<Self, Error> {
        Ok(Self { meter: Arc::new(Meter::new(Side::Server, routes)?), random: request_id::random })
    }

    /// Counts at most this many tenants under their own name, first come first named, and the others as `_other`; 100
    /// unless told otherwise. Each takes about 200 bytes.
    #[must_use]
    pub fn max_tenants(mut self, max: usize) -> Self {
        Arc::make_mut(&mut self.meter).max_tenants(max);
        self
    }

    /// Counts the refusals of at most this many clients under their own name, first come first named, and the others as
    /// `_other`; 100 unless told otherwise. Each takes about a kilobyte.
    #[must_use]
    pub fn max_clients(mut self, max: usize) -> Self {
        Arc::make_mut(&mut self.meter).max_clients(max);
        self
    }

    /// Makes request ids of these 128 bits instead of random ones, for tests.
    #[must_use]
    pub fn random(self, random: fn() -> u128) -> Self {
        Self { random, ..self }
    }
}

impl Policy for Inbound {
    fn begin(&self, parts: &mut Parts, context: &Context, now: Instant) -> Option<Record> {
        let id = context
            .request_id
            .get_or_init(|| request_id::given(&parts.headers).unwrap_or_else(|| request_id::generate(self.random)));
        request_id::put(&mut parts.headers, id);
        Some(Record::begin(&self.meter, parts, context, now))
    }
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound").field("routes", &self.meter.routes()).finish_non_exhaustive()
    }
}
