use std::{
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context as Task, Poll, ready},
    time::Instant,
};

use coze_core::{Context, Error, Kind};
use http::request::Parts;
use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::{Timeout, timeout_at},
};

use super::{
    account::Terms,
    away::Away,
    common::{Common, Gate, Part, RedisPermit, prefix},
    driver::{Ask, Driver, Order},
    known::{Entry, Known},
    server::RedisServer,
};
use crate::{Decision, Level, Policy, Quota, level::KeyRef};

/// Decisions that wait for the driver; further ones are made as if Redis was away.
const MAX_WAITING: usize = 16_384;
/// Two ids of 128 bytes: what is longer shares one key, so that a key has a bounded size.
const MAX_KEY: usize = 256;
/// A node leases at most this part of what fits at once.
const LARGEST_LEASE: u64 = 4;

/// How the nodes share a rate. Levels of concurrency are always exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sharing {
    /// Every decision is Redis's.
    #[default]
    Exact,
    /// Every decision is Redis's, but a key that it refused is refused here until the time that it said.
    DenyLocally,
    /// Each node takes requests ahead, for half a second, in lots that grow and shrink with what it needs, up to a quarter of
    /// what fits at once, and spends them without asking. Leases come out of the same bucket: all nodes together never admit
    /// more than the limit. What a node does not need it gives back; what it loses in a crash is not admitted by anybody.
    Leased,
}

/// The policy of levels that a request must all pass, kept for all nodes together in Redis.
///
/// It is all or nothing: a request that one level refuses takes nothing from any other. All keys of one name lie in one slot
/// of a cluster, so that one call decides about all levels.
///
/// ```no_run
/// use std::{num::NonZeroU32, time::Duration};
///
/// use coze_ratelimit::{Away, Level, Quota, Rate, RateLimitLayer, RedisLimits, RedisServer, Sharing};
///
/// # fn limits() -> Result<(), coze_core::Error> {
/// let n = |n| NonZeroU32::new(n).expect("not zero");
/// let server = RedisServer::open("redis://127.0.0.1:6379")?.timeout(Duration::from_millis(30));
/// let limits = RedisLimits::new("inbound", server)?
///     // A busy level is leased; five nodes go on with a fifth each while Redis is away.
///     .level(Level::global("app", Rate::per_second(n(5000))), Sharing::Leased, Away::Share(n(5)))
///     .level(Level::per_bot("bot", Quota::Concurrency(n(10))), Sharing::Exact, Away::Open)
///     .level(Level::per_user("user", Rate::per_second(n(1)).burst(n(1))), Sharing::DenyLocally, Away::Closed);
/// let layer = RateLimitLayer::new(limits);
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
///
/// Clones share what is used and the connection. It has to be in a tokio runtime when its first request comes; its task ends
/// with the last clone.
#[derive(Clone)]
pub struct RedisLimits {
    gates: Vec<Arc<Gate>>,
    inner: Arc<Inner>,
}

struct Inner {
    common: Arc<Common>,
    server: RedisServer,
    orders: OnceLock<mpsc::Sender<Order>>,
}

impl RedisLimits {
    /// No levels yet: everything is admitted. `name` is that of the limiter: nodes with the same name share its levels. Nothing
    /// waits for Redis here.
    ///
    /// # Errors
    /// `limits_name` ([`Kind::Invalid`]) for a name that is not 1 to 64 letters, digits, `-`, `_`, `.` or `:` of ASCII.
    pub fn new(name: &str, server: RedisServer) -> Result<Self, Error> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(is_name) {
            return Err(Error::new(Kind::Invalid, "limits_name")
                .with_message("expected a name of 1 to 64 letters, digits, '-', '_', '.' or ':'"));
        }
        // As random as the keys of a hash map: two nodes do not have the same one.
        let node = format!("{:016x}{:016x}", RandomState::new().hash_one(name), RandomState::new().hash_one(name));
        let inner = Inner { common: Arc::new(Common::new(name.into(), node.into())), server, orders: OnceLock::new() };
        if Handle::try_current().is_ok() {
            inner.orders();
        }
        Ok(Self { gates: Vec::new(), inner: Arc::new(inner) })
    }

    /// Adds a level, in the place of the one that has its name, else after the others; in this clone only.
    ///
    /// Levels of the same name share their keys in Redis: give levels whose quotas differ different names or keys. Of a level,
    /// [`Level::max_keys`] bounds what this node remembers. Beyond it a rate is exact, and further keys of a level of concurrency
    /// share one quota.
    #[must_use]
    pub fn level(mut self, level: Level, sharing: Sharing, away: Away) -> Self {
        let others = Entry::new(format!("{}{}:", prefix(&self.inner.common.name), level.name).into());
        let (quota, known) = (level.quota, Known::new(level.max_keys));
        let gate = Arc::new(Gate { level, quota, sharing, away, known, others });
        match self.gates.iter_mut().find(|known| known.level.name == gate.level.name) {
            Some(known) => *known = gate,
            None => self.gates.push(gate),
        }
        self
    }

    /// Whether Redis does not answer, and limits are kept without it.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.inner.common.is_away()
    }
}

impl Inner {
    fn orders(&self) -> &mpsc::Sender<Order> {
        self.orders.get_or_init(|| Driver::spawn(self.common.clone(), self.server.clone(), MAX_WAITING))
    }
}

impl Policy for RedisLimits {
    type Permit = RedisPermit;
    type Future = Deciding;

    /// Refusals are those of [`Limits::check`](crate::Limits::check); while Redis is away, also `limit_unavailable`
    /// ([`Kind::Unavailable`]) of a level that is [`Away::Closed`].
    fn decide(&self, parts: &Parts, context: &Context, now: Instant) -> Decision<RedisPermit, Deciding> {
        let until = tokio::time::Instant::from(now) + self.inner.server.timeout;
        let now = self.inner.common.micros(now.into());
        let mut asked = Asked { parts: SmallVec::new(), reserved: SmallVec::new(), inner: self.inner.clone() };
        for gate in &self.gates {
            let Some(key) = gate.level.key(parts, context) else { continue };
            let (cost, rest) = gate.level.cost_and_rest(&gate.quota, parts, context);
            if cost == 0 {
                continue;
            }
            if let Err(error) = asked.level(gate, &key, (cost, rest), now) {
                asked.unask();
                return Decision::Now(Err(asked.undo(error)));
            }
        }
        if asked.parts.is_empty() {
            return Decision::Now(Ok(RedisPermit::default()));
        }
        let (answer, decision) = oneshot::channel();
        let order = Order::Decide(Ask { parts: asked.parts.clone(), answer });
        if self.is_away() || self.inner.orders().try_send(order).is_err() {
            asked.unask();
            return Decision::Now(asked.fall_back());
        }
        Decision::Later(Deciding { decision: timeout_at(until, decision), asked })
    }
}

/// What a request asks for.
struct Asked {
    /// The levels that Redis decides about.
    parts: SmallVec<[Part; 3]>,
    /// Where it was counted in a lease, and how much.
    reserved: SmallVec<[(Arc<Entry>, u32); 3]>,
    inner: Arc<Inner>,
}

impl Asked {
    /// # Errors
    /// The refusal of a level that knows that it is over.
    fn level(&mut self, gate: &Arc<Gate>, key: &KeyRef<'_>, (cost, rest): (u32, u32), now: u64) -> Result<(), Error> {
        if cost > gate.quota.most() {
            return Err(gate.refusal(u64::MAX, 0));
        }
        let part = |entry, ahead| Part { gate: gate.clone(), entry, cost, rest, ahead };
        let name = || name(&gate.others.name, key);
        let is_shared = key.id.len() > MAX_KEY || key.id.is_empty() && key.tenant.is_none();
        let concurrency = matches!(gate.quota, Quota::Concurrency(_));
        if gate.sharing == Sharing::Exact && !concurrency {
            let entry = if is_shared { gate.others.clone() } else { Entry::new(name()) };
            self.parts.push(part(entry, 0));
            return Ok(());
        }
        let known = if is_shared { None } else { gate.known.get(key, now, name) };
        let entry = match known {
            Some(entry) => entry,
            None if is_shared || concurrency => gate.others.clone(),
            None => {
                self.parts.push(part(Entry::new(name()), 0));
                return Ok(());
            }
        };
        let mut ahead = 0;
        if let Quota::Rate(rate) = gate.quota {
            let most = u32::try_from(Terms::from(rate).capacity() / LARGEST_LEASE).unwrap_or(u32::MAX);
            let mut state = entry.lock();
            let over = state.holding.over(cost.saturating_add(rest), now);
            // No lease is large enough, or tells whether the rest fits too.
            let may_lease = gate.sharing == Sharing::Leased && cost <= most.max(1) && rest == 0;
            // What is leased may be spent although Redis has no more.
            if may_lease && state.holding.spend(cost, now) {
                let is_low = over.is_none() && state.holding.is_low(now);
                let next = is_low.then(|| state.holding.ask(cost, now, most));
                drop(state);
                if let Some(ahead) = next {
                    self.lease(Part { cost: 0, ..part(entry.clone(), ahead) });
                }
                self.reserved.push((entry, cost));
                return Ok(());
            }
            if let Some((wait, full)) = over {
                return Err(gate.refusal(wait, full));
            }
            if may_lease {
                ahead = state.holding.ask(cost, now, most);
            }
        }
        self.parts.push(part(entry, ahead));
        Ok(())
    }

    fn lease(&self, part: Part) {
        let entry = part.entry.clone();
        if self.inner.common.is_away() || self.inner.orders().try_send(Order::Lease(part)).is_err() {
            entry.lock().holding.granted(None, 0, 0);
        }
    }

    /// # Errors
    /// The refusal.
    fn fall_back(&self) -> Result<RedisPermit, Error> {
        let orders = self.inner.orders().downgrade();
        self.inner.common.fall_back(&self.parts, &orders).map_err(|error| self.undo(error))
    }

    fn undo(&self, error: Error) -> Error {
        self.reserved.iter().for_each(|(entry, cost)| entry.lock().holding.undo(*cost));
        error
    }

    /// The leases that were to be asked for are not.
    fn unask(&self) {
        for part in self.parts.iter().filter(|part| part.ahead > 0) {
            part.entry.lock().holding.granted(None, 0, 0);
        }
    }
}

pin_project! {
    /// A decision that Redis makes, or this node, if that takes too long.
    #[must_use = "futures do nothing unless polled"]
    pub struct Deciding {
        #[pin]
        decision: Timeout<oneshot::Receiver<Result<RedisPermit, Error>>>,
        asked: Asked,
    }
}

impl Future for Deciding {
    type Output = Result<RedisPermit, Error>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(match ready!(this.decision.poll(task)) {
            Ok(Ok(decided)) => decided.map_err(|error| this.asked.undo(error)),
            // It took too long, or the runtime that the driver was in is gone.
            Ok(Err(_)) | Err(_) => this.asked.fall_back(),
        })
    }
}

/// A key in Redis. Ids have no control characters, so that one separates them.
fn name(prefix: &str, key: &KeyRef<'_>) -> Arc<str> {
    match key.tenant {
        Some(tenant) => [prefix, tenant.as_str(), "\u{1f}", &key.id].concat().into(),
        None => [prefix, &key.id].concat().into(),
    }
}

impl fmt::Debug for RedisLimits {
    /// Keys are people's ids: they are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels: Vec<_> = self.gates.iter().map(|gate| gate.level.name).collect();
        f.debug_struct("RedisLimits")
            .field("name", &self.inner.common.name)
            .field("levels", &levels)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Deciding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deciding")
    }
}
