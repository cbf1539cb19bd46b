//! The one task of a node that talks to Redis: one call at a time, in which all decisions are made that came meanwhile.

use std::{future::poll_fn, mem, sync::Arc, task::Poll, time::Duration};

use redis::{ErrorKind, RedisError, RedisResult};
use smallvec::SmallVec;
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use super::{
    call::{Batch, Level, Reply, Verdict},
    common::{Common, Gate, Part, RedisPermit},
    known::Entry,
    server::{CONNECT, Connection, RedisServer},
};
use crate::Quota;

/// Orders that go into one call.
const MAX_BATCH: usize = 128;
/// How often leases and places are looked at, and how many microseconds that is.
const TICK: Duration = Duration::from_millis(100);
const TICK_MICROS: u64 = 100_000;
/// Redis is told so often, in microseconds, who is still there: the script forgets a node after ten seconds.
const RENEW: u64 = 3_000_000;
/// The first and the longest time between two attempts to find Redis back.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What the driver is asked for.
#[derive(Debug)]
pub(super) enum Order {
    /// A decision of several levels, all or nothing.
    Decide(Ask),
    /// The next lease of a key, before the last one is spent.
    Lease(Part),
    /// A place of a level of concurrency is free again.
    Release(Arc<Gate>, Arc<Entry>),
}

#[derive(Debug)]
pub(super) struct Ask {
    pub(super) parts: SmallVec<[Part; 3]>,
    pub(super) answer: Answer,
}

pub(super) type Answer = oneshot::Sender<Result<RedisPermit, coze_core::Error>>;

/// See the module.
pub(super) struct Driver {
    common: Arc<Common>,
    server: RedisServer,
    orders: mpsc::Receiver<Order>,
    /// For the places that are given away.
    sender: mpsc::WeakSender<Order>,
    connection: Option<Connection>,
    /// Counts the calls, so that Redis can tell which one of two was the later.
    calls: u64,
    /// Keys that are looked at from time to time.
    watched: Vec<(Arc<Gate>, Arc<Entry>)>,
}

/// What is decided in one call; those who asked for the same one after another are together.
struct Round {
    batch: Batch,
    groups: Vec<Group>,
}

struct Group {
    parts: SmallVec<[Part; 3]>,
    answers: Vec<Answer>,
}

impl Group {
    /// Whether these are decided as its own are, one after another, and lease nothing.
    fn is_like(&self, parts: &[Part]) -> bool {
        self.parts.len() == parts.len()
            && self.parts.iter().zip(parts).all(|(known, part)| {
                (known.cost, known.rest, 0) == (part.cost, part.rest, part.ahead) && known.entry.name == part.entry.name
            })
    }
}

impl Driver {
    /// Starts the task. It ends when nobody can give it orders any more.
    pub(super) fn spawn(common: Arc<Common>, server: RedisServer, room: usize) -> mpsc::Sender<Order> {
        let (sender, orders) = mpsc::channel(room);
        let weak = sender.downgrade();
        let watched = Vec::new();
        tokio::spawn(Self { common, server, orders, sender: weak, connection: None, calls: 0, watched }.run());
        sender
    }

    async fn run(mut self) {
        // Whoever asks meanwhile waits no longer than for a call.
        match timeout(CONNECT, self.server.connect()).await {
            Ok(Ok(connection)) => self.connection = Some(connection),
            Ok(Err(error)) => self.lose(&error).await,
            Err(_) => self.lose(&late()).await,
        }
        let mut orders = Vec::with_capacity(MAX_BATCH);
        let mut looked = Instant::now();
        loop {
            tokio::select! {
                count = self.orders.recv_many(&mut orders, MAX_BATCH) => if count == 0 { return },
                () = sleep(TICK.saturating_sub(looked.elapsed())), if !self.watched.is_empty() => {}
            }
            // Those that run before us may ask too: a call with many takes hardly longer than one with few.
            yield_now().await;
            let room = MAX_BATCH - orders.len();
            poll_fn(|task| {
                let _ = self.orders.poll_recv_many(task, &mut orders, room);
                Poll::Ready(())
            })
            .await;
            self.calls += 1;
            let mut round = Round { batch: Batch::new(self.common.node.clone()), groups: Vec::new() };
            for order in orders.drain(..) {
                self.add(&mut round, order);
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.look(&mut round.batch);
            }
            if round.batch.is_empty() {
                continue;
            }
            let sent = self.common.now();
            match timeout(self.server.timeout, self.call(&round.batch)).await {
                Ok(Ok(reply)) => self.settle(round.groups, reply, sent),
                failed => {
                    let error = failed.map_or_else(|_| late(), |outcome| outcome.err().unwrap_or_else(late));
                    round.groups.into_iter().for_each(|group| self.fall_back(group));
                    self.lose(&error).await;
                }
            }
        }
    }

    /// One more attempt over a new connection, unless this one was new, or time is up: what failed may have been decided, and
    /// is decided twice then, which only tightens.
    async fn call(&mut self, batch: &Batch) -> RedisResult<Reply> {
        loop {
            let (mut connection, is_new) = match self.connection.take() {
                Some(connection) => (connection, false),
                None => (self.server.connect().await?, true),
            };
            match connection.call(batch).await {
                Ok(reply) => {
                    self.connection = Some(connection);
                    return Ok(reply);
                }
                Err(error) if is_new || error.is_timeout() => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Redis is away: everybody is answered without it, until an attempt finds it back.
    async fn lose(&mut self, error: &RedisError) {
        self.connection = None;
        self.common.set_away(Some(error));
        let mut backoff = BACKOFF.0;
        let mut orders = Vec::with_capacity(MAX_BATCH);
        loop {
            let (server, probe) = (self.server.clone(), self.common.probe());
            let attempt = async move {
                sleep(backoff).await;
                let mut connection = timeout(CONNECT, server.connect()).await.ok()?.ok()?;
                // It writes: a replica that took over is there when it may.
                timeout(CONNECT, connection.call(&probe)).await.ok()?.ok()?;
                Some(connection)
            };
            tokio::pin!(attempt);
            let outcome = loop {
                tokio::select! {
                    outcome = &mut attempt => break outcome,
                    count = self.orders.recv_many(&mut orders, MAX_BATCH) => {
                        if count == 0 {
                            return;
                        }
                        for order in orders.drain(..) {
                            match order {
                                Order::Decide(Ask { parts, answer }) => {
                                    self.fall_back(Group { parts, answers: vec![answer] });
                                }
                                Order::Lease(part) => part.entry.lock().holding.granted(None, 0, 0),
                                Order::Release(gate, entry) => self.watch(&gate, &entry),
                            }
                        }
                    }
                }
            };
            if let Some(connection) = outcome {
                self.connection = Some(connection);
                return self.common.set_away(None);
            }
            backoff = (2 * backoff).min(BACKOFF.1);
        }
    }

    fn add(&mut self, round: &mut Round, order: Order) {
        let (parts, answer): (SmallVec<[Part; 3]>, _) = match order {
            // Who asked is gone: nothing is taken for nobody.
            Order::Decide(ask) if ask.answer.is_closed() && ask.parts.iter().all(|part| part.ahead == 0) => return,
            Order::Decide(Ask { parts, answer }) => match round.groups.last_mut() {
                Some(group) if group.is_like(&parts) => {
                    round.batch.again();
                    return group.answers.push(answer);
                }
                _ => (parts, Some(answer)),
            },
            Order::Lease(part) => ([part].into_iter().collect(), None),
            Order::Release(gate, entry) => {
                // What was said to Redis with an earlier order of this call is the latest.
                if entry.lock().is_stale {
                    self.header(&mut round.batch, &gate, &entry, false);
                }
                return self.watch(&gate, &entry);
            }
        };
        let mut levels = SmallVec::<[Level; 3]>::new();
        for part in &parts {
            let key = self.header(&mut round.batch, &part.gate, &part.entry, false);
            let (cost, rest, ahead) = (part.cost.into(), part.rest.into(), part.ahead.into());
            levels.push(Level { key, cost, rest, ahead });
        }
        round.batch.decide(&levels);
        round.groups.push(Group { parts, answers: answer.into_iter().collect() });
    }

    /// The place of a key in the batch, with what there is to say of it.
    fn header(&self, batch: &mut Batch, gate: &Gate, entry: &Entry, give_back: bool) -> u64 {
        let now = || self.common.now();
        match gate.quota {
            Quota::Rate(rate) => batch.rate(&entry.name, rate.into(), || entry.lock().holding.settle(now(), give_back)),
            Quota::Concurrency(limit) => batch.concurrency(&entry.name, limit.get().into(), || {
                let mut state = entry.lock();
                (state.is_stale, state.told) = (false, now());
                (self.calls, state.have)
            }),
        }
    }

    /// Gives back what is idle or about to end, and renews what is held.
    fn look(&mut self, batch: &mut Batch) {
        let now = self.common.now();
        let mut watched = mem::take(&mut self.watched);
        watched.retain(|(gate, entry)| {
            let is_due = {
                let mut state = entry.lock();
                let is_old = state.have > 0 && now.saturating_sub(state.told) > RENEW;
                state.holding.is_due(now + 2 * TICK_MICROS) || state.is_stale || is_old
            };
            if is_due {
                self.header(batch, gate, entry, true);
            }
            let mut state = entry.lock();
            state.is_watched = state.holding.has_leases() || state.have > 0 || state.is_stale;
            state.is_watched
        });
        self.watched = watched;
    }

    fn watch(&mut self, gate: &Arc<Gate>, entry: &Arc<Entry>) {
        if !mem::replace(&mut entry.lock().is_watched, true) {
            self.watched.push((gate.clone(), entry.clone()));
        }
    }

    /// Tells everybody what the script said.
    fn settle(&mut self, groups: Vec<Group>, reply: Reply, sent: u64) {
        for (group, verdict) in groups.into_iter().zip(reply.verdicts) {
            let Verdict { admitted, wait, full, refused, leased, .. } = verdict;
            for (part, granted) in group.parts.iter().zip(leased).filter(|(part, _)| part.ahead > 0) {
                part.entry.lock().holding.granted(Some((reply.slot, granted)), sent, reply.valid);
                self.watch(&part.gate, &part.entry);
            }
            let refused = refused.and_then(|index| group.parts.get(index));
            if let Some(part) = refused.filter(|part| part.gate.denies() && part.cost > 0) {
                part.entry.lock().holding.refused(part.ask(), sent, wait, full);
            }
            for (index, answer) in group.answers.into_iter().enumerate() {
                let outcome = match refused {
                    Some(part) if index as u64 >= admitted => Err(part.gate.refusal(wait, full)),
                    _ => Ok(self.permit(&group.parts)),
                };
                // If nobody waits for it any more, the permit goes back.
                let _ = answer.send(outcome);
            }
        }
    }

    /// What an admitted request holds.
    fn permit(&mut self, parts: &[Part]) -> RedisPermit {
        for part in parts.iter().filter(|part| matches!(part.gate.quota, Quota::Concurrency(_))) {
            self.watch(&part.gate, &part.entry);
        }
        RedisPermit::hold(parts, &self.sender)
    }

    /// Decides without Redis, which may have decided already: then it knows better as soon as it is told.
    fn fall_back(&mut self, group: Group) {
        for part in &group.parts {
            let mut state = part.entry.lock();
            if part.ahead > 0 {
                state.holding.granted(None, 0, 0);
            }
            if matches!(part.gate.quota, Quota::Concurrency(_)) {
                state.is_stale = true;
                drop(state);
                self.watch(&part.gate, &part.entry);
            }
        }
        for answer in group.answers.into_iter().filter(|answer| !answer.is_closed()) {
            let _ = answer.send(self.common.fall_back(&group.parts, &self.sender));
        }
    }
}

fn late() -> RedisError {
    (ErrorKind::Io, "no answer in time").into()
}
