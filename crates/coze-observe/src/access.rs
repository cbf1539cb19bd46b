use std::{sync::atomic::Ordering, time::Duration};

use coze_core::{BotId, Kind, RequestId, TenantId};
use tracing::{Level, event};

use crate::{
    Record,
    labels::{Outcome, method_label},
    meter::Ended,
    side::Side,
};

/// Writes the line of a request that ended.
///
/// Everything in it is a label, a number or a checked id. Paths, queries and headers are not: they carry secrets.
pub(crate) fn log(record: &Record, ended: &Ended<'_>) {
    // The level of an event is part of its call site, so each level has one.
    macro_rules! line {
        ($level:ident) => {
            event!(
                target: "coze::access",
                Level::$level,
                side = record.meter.side().as_str(),
                method = method_label(ended.method),
                route = record.meter.route_label(ended.route),
                status = record.head.map(|head| head.status.as_u16()),
                outcome = ended.outcome.as_str(),
                request_id = record.context.request_id.get().map(RequestId::as_str),
                tenant = ended.tenant.map(TenantId::as_str),
                bot = record.context.bot.get().map(BotId::as_str),
                auth = record.context.auth(),
                auth_reported = record.context.reported.get().map(|reported| reported.reason),
                limit = record.context.limit.get(),
                kind = ended.failure.map(|(kind, _)| kind.as_str()),
                reason = ended.failure.map(|(_, reason)| reason),
                attempts = Some(record.context.attempts.load(Ordering::Relaxed)).filter(|n| *n > 0),
                head_ms = record.head.map(|head| millis(head.after)),
                total_ms = millis(ended.total),
                bytes = record.bytes,
                grpc_status = record.grpc_status,
            )
        };
    }
    match level(record.meter.side(), ended.outcome, ended.failure.map(|(kind, _)| kind)) {
        Level::ERROR => line!(ERROR),
        Level::WARN => line!(WARN),
        _ => line!(INFO),
    }
}

fn millis(duration: Duration) -> f64 {
    // Whole microseconds: a division is exact to the digit where a product shows noise.
    duration.as_micros() as f64 / 1e3
}

/// `ERROR` is our own fault, `WARN` is what somebody on our side should look at, `INFO` is the rest: what went well, and
/// what only the caller can correct. Outbound we are the caller.
fn level(side: Side, outcome: Outcome, kind: Option<Kind>) -> Level {
    match (outcome, kind) {
        (Outcome::Cancelled, _) | (_, Some(Kind::Cancelled)) => Level::INFO,
        (_, Some(Kind::Internal)) => Level::ERROR,
        (_, Some(Kind::Overloaded | Kind::Upstream | Kind::Unavailable | Kind::Timeout))
        | (Outcome::ServerError, _)
        | (Outcome::Error, None) => Level::WARN,
        (Outcome::ClientError | Outcome::Error, _) if side == Side::Client => Level::WARN,
        _ => Level::INFO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_says_who_has_to_act() {
        let (server, client) = (Side::Server, Side::Client);
        for (side, outcome, kind, expected) in [
            (server, Outcome::Success, None, Level::INFO),
            (server, Outcome::ClientError, Some(Kind::Unauthenticated), Level::INFO),
            (server, Outcome::Error, Some(Kind::RateLimited), Level::INFO),
            (server, Outcome::Error, None, Level::WARN),
            (server, Outcome::ServerError, None, Level::WARN),
            (server, Outcome::ServerError, Some(Kind::Upstream), Level::WARN),
            (server, Outcome::ServerError, Some(Kind::Internal), Level::ERROR),
            (server, Outcome::Error, Some(Kind::Cancelled), Level::INFO),
            (server, Outcome::Cancelled, Some(Kind::Internal), Level::INFO),
            (client, Outcome::Success, None, Level::INFO),
            (client, Outcome::ClientError, None, Level::WARN),
            (client, Outcome::Error, Some(Kind::Unauthenticated), Level::WARN),
            (client, Outcome::Cancelled, None, Level::INFO),
        ] {
            assert_eq!(level(side, outcome, kind), expected, "{side:?} {outcome:?} {kind:?}");
        }
    }
}
