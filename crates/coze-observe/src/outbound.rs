use std::{fmt, sync::Arc, time::Instant};

use coze_core::{Context, Error};
use http::request::Parts;

use crate::{Policy, Record, meter::Meter, request_id, side::Side};

/// The outbound policy: requests that we send to the platform.
///
/// The request's id is the context's, which is the id of the request we serve if the context is its
/// [`child`](Context::child), else a random one. It goes out in [`REQUEST_ID_HEADER`](crate::REQUEST_ID_HEADER), in place of
/// what the request carried there. Clones share the counts.
#[derive(Clone)]
pub struct Outbound {
    meter: Arc<Meter>,
    random: fn() -> u128,
}

impl Outbound {
    /// Names requests by the path pattern that fits, such as `/v3/chat` or `/v1/bots/{bot_id}`, and by `_unmatched` where
    /// none does.
    ///
    /// # Errors
    /// `route_invalid` (not a pattern, or in conflict with another one) and `routes_too_many` (more than 256) are
    /// [`Kind::Invalid`](coze_core::Kind::Invalid).
    pub fn new<R: AsRef<str>>(routes: impl IntoIterator<Item = R>) -> Result<Self, Error> {
        Ok(Self { meter: Arc::new(Meter::new(Side::Client, routes)?), random: request_id::random })
    }

    /// Counts at most this many tenants under their own name, first come first named, and the others as `_other`; 100
    /// unless told otherwise. Each takes about 200 bytes.
    #[must_use]
    pub fn max_tenants(mut self, max: usize) -> Self {
        Arc::make_mut(&mut self.meter).max_tenants(max);
        self
    }

    /// Makes request ids of these 128 bits instead of random ones, for tests.
    #[must_use]
    pub fn random(self, random: fn() -> u128) -> Self {
        Self { random, ..self }
    }
}

impl Policy for Outbound {
    fn begin(&self, parts: &mut Parts, context: &Context, now: Instant) -> Option<Record> {
        let id = context.request_id.get_or_init(|| request_id::generate(self.random));
        request_id::put(&mut parts.headers, id);
        Some(Record::begin(&self.meter, parts, context, now))
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("routes", &self.meter.routes()).finish_non_exhaustive()
    }
}
