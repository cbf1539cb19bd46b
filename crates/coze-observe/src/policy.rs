use std::time::Instant;

use coze_core::Context;
use http::request::Parts;

use crate::Record;

/// Decides under which names a request is observed, and whether it is.
///
/// The policies of this crate are [`Inbound`](crate::Inbound) and [`Outbound`](crate::Outbound). A closure is a policy, so
/// that one of them can be asked only about some requests:
///
/// ```
/// use std::time::Instant;
///
/// use coze_core::Context;
/// use coze_observe::{Inbound, ObserveLayer, Policy};
/// use http::request::Parts;
///
/// let inbound = Inbound::new(["/webhook/{bot_id}"])?;
/// let without_probes = ObserveLayer::new(move |parts: &mut Parts, context: &Context, now: Instant| {
///     match parts.uri.path() {
///         "/healthz" => None,
///         _ => inbound.begin(parts, context, now),
///     }
/// });
/// # let _ = without_probes;
/// # Ok::<(), coze_core::Error>(())
/// ```
pub trait Policy {
    /// Looks at one request, before it goes further: settles its id and begins its record. Without a record the request
    /// goes on unobserved.
    fn begin(&self, parts: &mut Parts, context: &Context, now: Instant) -> Option<Record>;
}

impl<F> Policy for F
where
    F: Fn(&mut Parts, &Context, Instant) -> Option<Record>,
{
    fn begin(&self, parts: &mut Parts, context: &Context, now: Instant) -> Option<Record> {
        self(parts, context, now)
    }
}
