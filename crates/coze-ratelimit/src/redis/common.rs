//! What a node's requests and its driver share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coze_core::{Error, Kind};
use redis::RedisError;
use smallvec::SmallVec;
use tokio::{sync::mpsc, time::Instant};

use super::{
    account::Terms,
    away::{self, Away, Shares},
    call::{self, Batch},
    driver::Order,
    known::{Entry, Known},
    limits::Sharing,
};
use crate::{Level, Quota, gate::Refusal};

/// When to try again while Redis is away.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A level, and how it is shared.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) level: Level,
    pub(super) quota: Quota,
    pub(super) sharing: Sharing,
    pub(super) away: Away,
    pub(super) known: Known,
    /// For everybody's key, which is empty, and for those there is no room for.
    pub(super) others: Arc<Entry>,
}

/// A level that is involved in a decision.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) gate: Arc<Gate>,
    pub(super) entry: Arc<Entry>,
    /// What the request takes, and what must fit besides.
    pub(super) cost: u32,
    pub(super) rest: u32,
    /// How much is to be leased.
    pub(super) ahead: u32,
}

impl Part {
    /// What must fit.
    pub(super) fn ask(&self) -> u32 {
        self.cost.saturating_add(self.rest)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) name: Arc<str>,
    /// Who we are among the nodes.
    pub(super) node: Arc<str>,
    beginning: Instant,
    is_away: AtomicBool,
    shares: Shares,
}

impl Gate {
    /// Whether it remembers what is over.
    pub(super) fn denies(&self) -> bool {
        self.sharing != Sharing::Exact
    }

    /// Times in microseconds.
    pub(super) fn refusal(&self, wait: u64, full: u64) -> Error {
        let nanos = |micros: u64| micros.saturating_mul(1000);
        Refusal { name: self.level.name, quota: self.quota, wait: nanos(wait), reset: nanos(full), is_shed: false }
            .into()
    }

    fn unavailable(&self) -> Error {
        Error::new(Kind::Unavailable, "limit_unavailable")
            .with_message(format!("the limit {:?} cannot be checked now", self.level.name))
            .with_retry_after(TRY_AGAIN)
    }
}

impl Common {
    pub(super) fn new(name: Arc<str>, node: Arc<str>) -> Self {
        let common =
            Self { name, node, beginning: Instant::now(), is_away: AtomicBool::new(false), shares: Shares::default() };
        common.gauge(0.0);
        common
    }

    /// Microseconds since the beginning.
    pub(super) fn now(&self) -> u64 {
        self.micros(Instant::now())
    }

    pub(super) fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.beginning).as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn is_away(&self) -> bool {
        // Whoever reads an old value waits for an answer that the driver makes without Redis.
        self.is_away.load(Ordering::Relaxed)
    }

    /// Notes that Redis went away, and why, or that it is back.
    pub(super) fn set_away(&self, error: Option<&RedisError>) {
        self.is_away.store(error.is_some(), Ordering::Relaxed);
        self.gauge(if error.is_some() { 1.0 } else { 0.0 });
        match error {
            Some(error) => tracing::warn!(limits = %self.name, %error, "redis is away: limits are kept without it"),
            None => tracing::info!(limits = %self.name, "redis is back: limits are kept together again"),
        }
    }

    fn gauge(&self, value: f64) {
        metrics::gauge!("coze_ratelimit_redis_away", "limits" => self.name.to_string()).set(value);
    }

    /// A call that finds out whether Redis decides: it writes.
    pub(super) fn probe(&self) -> Batch {
        let mut batch = Batch::new(self.node.clone());
        let terms = Terms { rate: 1_000_000, burst: 1_000_000, window: 1_000_000, request: 1_000_000 };
        let key = batch.rate(&format!("{}probe", prefix(&self.name)).into(), terms, || None);
        batch.decide(&[call::Level { key, cost: 1, rest: 0, ahead: 0 }]);
        batch
    }

    /// Decides without Redis.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn fall_back(&self, parts: &[Part], sender: &mpsc::WeakSender<Order>) -> Result<RedisPermit, Error> {
        let mut shares = SmallVec::<[(&Part, away::Part<'_>); 3]>::new();
        for part in parts {
            let nodes = match part.gate.away {
                Away::Closed => return Err(part.gate.unavailable()),
                Away::Open => continue,
                Away::Share(nodes) => nodes.get(),
            };
            match part.gate.quota {
                Quota::Rate(rate) => {
                    let terms = Terms::from(rate);
                    let (cost, rest) = (part.cost.into(), part.rest.into());
                    shares.push((part, away::Part { key: &part.entry.name, terms, cost, rest, nodes: nodes.into() }));
                }
                Quota::Concurrency(limit) => {
                    let share = (limit.get() / nodes).max(1);
                    if part.entry.lock().have > share.saturating_sub(part.ask()).into() {
                        return Err(part.gate.refusal(1_000_000, 1_000_000));
                    }
                }
            }
        }
        let (parts_of, shares): (SmallVec<[&Part; 3]>, SmallVec<[away::Part<'_>; 3]>) = shares.into_iter().unzip();
        self.shares
            .take(&shares, self.now())
            .map_err(|(index, wait, full)| parts_of[index].gate.refusal(wait, full))?;
        let permit = RedisPermit::hold(parts, sender);
        // Redis does not know of these places: it is told when it is back.
        permit.places.iter().for_each(Place::tell);
        Ok(permit)
    }
}

/// What an admitted request holds of the levels that limit concurrency. Dropping it gives everything back.
#[derive(Debug, Default)]
pub struct RedisPermit {
    places: SmallVec<[Place; 1]>,
}

#[derive(Debug)]
struct Place {
    gate: Arc<Gate>,
    entry: Arc<Entry>,
    cost: u32,
    orders: mpsc::WeakSender<Order>,
}

impl RedisPermit {
    pub(super) fn hold(parts: &[Part], orders: &mpsc::WeakSender<Order>) -> Self {
        let held = parts.iter().filter(|part| matches!(part.gate.quota, Quota::Concurrency(_)));
        let places = held.map(|Part { gate, entry, cost, .. }| {
            let mut state = entry.lock();
            state.have += u64::from(*cost);
            Place { gate: gate.clone(), entry: entry.clone(), cost: *cost, orders: orders.clone() }
        });
        Self { places: places.collect() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.entry.lock().have -= u64::from(self.cost);
        self.tell();
    }
}

impl Place {
    /// Has the driver tell Redis how many there are. Where there is no room for the order, it is told with the next call.
    fn tell(&self) {
        self.entry.lock().is_stale = true;
        if let Some(orders) = self.orders.upgrade() {
            let _ = orders.try_send(Order::Release(self.gate.clone(), self.entry.clone()));
        }
    }
}

/// What the names of all keys of a limiter begin with. The braces make them lie in one slot of a cluster; the number is that
/// of the format.
pub(super) fn prefix(name: &str) -> String {
    format!("coze-ratelimit:1:{{{name}}}:")
}
