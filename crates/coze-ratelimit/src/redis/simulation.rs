//! Fifty nodes and a Redis that fails over, in virtual time: slow and lost calls, skewed clocks, pauses and crashes of nodes,
//! replicas that lag and whose clocks are off. What runs is the real code of a node and the script's twin.
//!
//! The claim, checked for all requests admitted of each key, leased or not, each at the moment of its decision:
//!
//! - **bucket:** at most `burst` + rate × t in any t seconds, and **window:** at most the rate in any 900 ms,
//! - plus, for each failover in that time or half a second before: what the old master had granted and the new one never
//!   heard of; and where the new one's clock is ahead by d, for the bucket 2 × rate × d, for the window the rate.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::{
    account::{Account, Terms},
    call::{Level, Verdict},
    holding::Holding,
    limits::Sharing,
    twin::{Key, call},
    witness::Witness,
};

const NODES: usize = 50;
const DECISIONS: u64 = 1_000_000;
/// A call that takes longer is given up, in microseconds.
const TIMEOUT: u64 = 50_000;
/// The largest lag of a replica, and the most by which clocks of servers differ.
const LAG: u64 = 200_000;
const SKEW: u64 = 60_000;

/// Everybody's limit, then those of some users.
const KEYS: [(Terms, Sharing); 4] = [
    (Terms { rate: 2000, burst: 400, window: 2000, request: 1_000_000 }, Sharing::Leased),
    (Terms { rate: 400, burst: 800, window: 400, request: 1_000_000 }, Sharing::Leased),
    (Terms { rate: 150, burst: 20, window: 150, request: 1_000_000 }, Sharing::Exact),
    (Terms { rate: 50, burst: 100, window: 50, request: 1_000_000 }, Sharing::DenyLocally),
];

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A request comes to a node.
    Request {
        node: usize,
    },
    /// A call comes to the master.
    Call {
        id: u64,
    },
    /// Its answer comes back to the node, or is given up.
    Answer {
        id: u64,
    },
    /// A node looks at its leases.
    Look {
        node: usize,
    },
    Crash {
        node: usize,
    },
    Failover,
}

struct Node {
    /// Counts its lives: an answer to an earlier one comes to nobody.
    life: u64,
    offset: u64,
    /// How fast its clock is, in percent.
    speed: u64,
    /// It does nothing before.
    paused: u64,
    holdings: [Holding; KEYS.len()],
}

/// A call that is under way.
struct Pending {
    node: usize,
    life: u64,
    sent: u64,
    keys: Vec<Key>,
    levels: Vec<(usize, Level)>,
    /// Where a lease was spent already, and how much of it.
    reserved: Vec<(usize, u32)>,
    answer: Option<(u64, u64, Vec<Verdict>)>,
}

struct Simulation {
    random: fastrand::Rng,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    nodes: Vec<Node>,
    pending: BTreeMap<u64, Pending>,
    master: [Account; KEYS.len()],
    /// What the replica has: the master's accounts at a time that it lags behind, and grants since then.
    replica: [Account; KEYS.len()],
    changes: Vec<(u64, [Account; KEYS.len()], [u64; KEYS.len()])>,
    clock: u64,
    witnesses: [Witness; KEYS.len()],
    decisions: u64,
    leased: u64,
    lossy: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Self {
            random: fastrand::Rng::with_seed(seed),
            now: 10_000_000,
            events: BinaryHeap::new(),
            count: 0,
            nodes: Vec::new(),
            pending: BTreeMap::new(),
            master: Default::default(),
            replica: Default::default(),
            changes: Vec::new(),
            clock: SKEW,
            witnesses: Default::default(),
            decisions: 0,
            leased: 0,
            lossy: 0,
        };
        for node in 0..NODES {
            let fresh = simulation.fresh();
            simulation.nodes.push(fresh);
            simulation.after(node as u64 * 100, Event::Request { node });
            simulation.after(node as u64 * 100, Event::Look { node });
            simulation.after(1_000_000 + node as u64 * 400_000, Event::Crash { node });
        }
        simulation.after(5_000_000, Event::Failover);
        simulation
    }

    fn fresh(&mut self) -> Node {
        let (offset, speed) = (self.random.u64(0..1_000_000_000), self.random.u64(90..=110));
        Node { life: self.random.u64(..), offset, speed, paused: 0, holdings: Default::default() }
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((self.now + delay, self.count, event)));
    }

    /// A node's own clock.
    fn local(&self, node: usize) -> u64 {
        self.nodes[node].offset + self.now / 100 * self.nodes[node].speed
    }

    fn run(&mut self) {
        while self.decisions < DECISIONS {
            let Reverse((at, _, event)) = self.events.pop().expect("there is always a next request");
            self.now = at;
            // A node that is paused does what it has to later.
            let node = match &event {
                Event::Request { node } | Event::Look { node } => Some(*node),
                Event::Answer { id } => self.pending.get(id).map(|pending| pending.node),
                _ => None,
            };
            if let Some(pause) =
                node.and_then(|node| self.nodes[node].paused.checked_sub(at)).filter(|pause| *pause > 0)
            {
                self.after(pause, event);
                continue;
            }
            match event {
                Event::Request { node } => self.request(node),
                Event::Call { id } => self.decide(id),
                Event::Answer { id } => self.answer(id),
                Event::Look { node } => self.look(node),
                Event::Crash { node } => {
                    self.nodes[node] = self.fresh();
                    let next = self.random.u64(5_000_000..40_000_000);
                    self.after(next, Event::Crash { node });
                }
                Event::Failover => self.failover(),
            }
        }
    }

    /// As `RedisLimits` does it: everybody's limit, and that of one user.
    fn request(&mut self, node: usize) {
        self.decisions += 1;
        // Busy times and quiet ones, and a few nodes that are busier than the others.
        let pace = if self.now / 3_000_000 % 3 < 1 { 32_000 } else { 4000 };
        let pace = if node < 5 { pace } else { 8 * pace };
        let next = self.random.u64(1..pace);
        self.after(next, Event::Request { node });
        if self.random.u32(0..20_000) == 0 {
            self.nodes[node].paused = self.now + self.random.u64(1..2_000_000);
        }
        let now = self.local(node);
        // Half of them come from somebody without a limit of their own.
        let user = self.random.usize(1..2 * KEYS.len());
        // Some cost more, and some matter less: then a quarter must be left besides.
        let cost = if self.random.u8(0..8) == 0 { self.random.u32(2..6) } else { 1 };
        let is_low = self.random.u8(0..8) == 0;
        let (mut reserved, mut levels) = (Vec::<(usize, u32)>::new(), Vec::<(usize, Level)>::new());
        for name in [0, user].into_iter().filter(|name| *name < KEYS.len()) {
            let (terms, sharing) = KEYS[name];
            let rest = if is_low { u32::try_from(terms.capacity() / 4).expect("small") } else { 0 };
            let holding = &mut self.nodes[node].holdings[name];
            let may_lease = sharing == Sharing::Leased && rest == 0;
            if may_lease && holding.spend(cost, now) {
                reserved.push((name, cost));
                continue;
            }
            if holding.over(cost + rest, now).is_some() {
                reserved.iter().for_each(|(name, cost)| self.nodes[node].holdings[*name].undo(*cost));
                let asked = levels.iter().filter(|(_, level)| level.ahead > 0);
                asked.for_each(|(name, _)| self.nodes[node].holdings[*name].granted(None, 0, 0));
                return;
            }
            let most = u32::try_from(terms.capacity() / 4).expect("small");
            let ahead = if may_lease { holding.ask(cost, now, most) } else { 0 };
            let (key, ahead) = (levels.len() as u64 + 1, ahead.into());
            levels.push((name, Level { key, cost: cost.into(), rest: rest.into(), ahead }));
        }
        if levels.is_empty() {
            self.leased += 1;
            self.admit(&reserved);
        } else {
            self.send(node, levels, reserved, false);
        }
    }

    fn admit(&mut self, spent: &[(usize, u32)]) {
        for (name, cost) in spent {
            self.witnesses[*name].admitted.extend((0..*cost).map(|_| self.now));
        }
    }

    fn send(&mut self, node: usize, levels: Vec<(usize, Level)>, reserved: Vec<(usize, u32)>, give_back: bool) {
        let now = self.local(node);
        let keys = levels.iter().map(|(name, _)| Key {
            name: *name,
            terms: KEYS[*name].0,
            settlements: self.nodes[node].holdings[*name].settle(now, give_back).to_vec(),
        });
        let keys: Vec<Key> = keys.collect();
        let (id, life) = (self.count, self.nodes[node].life);
        let delay =
            if self.random.u8(0..50) == 0 { self.random.u64(1000..200_000) } else { self.random.u64(100..3000) };
        if self.random.u8(..) > 0 {
            self.after(delay, Event::Call { id });
        }
        // Nobody hears of it in time, unless it is answered before.
        self.after(TIMEOUT, Event::Answer { id });
        self.pending.insert(id, Pending { node, life, sent: now, keys, levels, reserved, answer: None });
    }

    /// The master decides, although the node may have given up.
    fn decide(&mut self, id: u64) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        let levels: Vec<_> = pending.levels.iter().map(|(_, level)| *level).collect();
        let clock = self.now + self.clock;
        let answer = call(&mut self.master, clock, &pending.keys, &[(1, levels)]);
        let verdict = &answer.2[0];
        let mut granted = [0; KEYS.len()];
        for ((name, level), leased) in pending.levels.iter().zip(&verdict.leased) {
            granted[*name] += level.cost * verdict.admitted + leased;
        }
        let spent = |(name, level): &(usize, Level)| (*name, u32::try_from(level.cost).expect("small"));
        let admitted: Vec<_> = pending.levels.iter().map(spent).collect();
        let admitted = if verdict.admitted > 0 { admitted } else { Vec::new() };
        pending.answer = Some(answer);
        self.changes.push((self.now, self.master.clone(), granted));
        self.admit(&admitted);
        let delay =
            if self.random.u8(0..50) == 0 { self.random.u64(1000..200_000) } else { self.random.u64(100..3000) };
        self.after(delay, Event::Answer { id });
    }

    fn answer(&mut self, id: u64) {
        let Some(pending) = self.pending.remove(&id) else { return };
        let node = &mut self.nodes[pending.node];
        if node.life != pending.life {
            return;
        }
        let Some((slot, valid, verdicts)) = pending.answer else {
            // The call may still come to the master: then it decides for nobody.
            for (name, _) in pending.levels.iter().filter(|(_, level)| level.ahead > 0) {
                node.holdings[*name].granted(None, 0, 0);
            }
            pending.reserved.iter().for_each(|(name, cost)| node.holdings[*name].undo(*cost));
            let late = Pending { reserved: Vec::new(), life: 0, answer: None, ..pending };
            self.pending.insert(id, late);
            return;
        };
        let verdict = &verdicts[0];
        for ((name, level), leased) in
            pending.levels.iter().zip(&verdict.leased).filter(|((_, level), _)| level.ahead > 0)
        {
            let _ = level;
            node.holdings[*name].granted(Some((slot, *leased)), pending.sent, valid);
        }
        let costs = pending.levels.iter().any(|(_, level)| level.cost > 0);
        match verdict.refused {
            Some(index) if costs => {
                let (name, Level { cost, rest, .. }) = pending.levels[index];
                if KEYS[name].1 != Sharing::Exact {
                    let asked = u32::try_from(cost + rest).expect("small");
                    node.holdings[name].refused(asked, pending.sent, verdict.wait, verdict.full);
                }
                pending.reserved.iter().for_each(|(name, cost)| node.holdings[*name].undo(*cost));
            }
            // What was spent of a lease was spent for this.
            _ => self.admit(&pending.reserved),
        }
    }

    fn look(&mut self, node: usize) {
        self.after(100_000, Event::Look { node });
        let now = self.local(node);
        for (name, (terms, _)) in KEYS.into_iter().enumerate() {
            let most = u32::try_from(terms.capacity() / 4).expect("small");
            let holding = &mut self.nodes[node].holdings[name];
            if holding.is_due(now + 220_000) {
                self.send(node, vec![(name, Level { key: 1, cost: 0, rest: 0, ahead: 0 })], Vec::new(), true);
            } else if holding.is_low(now) {
                let ahead = holding.ask(1, now, most).into();
                self.send(node, vec![(name, Level { key: 1, cost: 0, rest: 0, ahead })], Vec::new(), false);
            }
        }
    }

    /// The replica takes over with what it has; its clock is another one.
    fn failover(&mut self) {
        let lag = if self.random.bool() { 0 } else { self.random.u64(0..LAG) };
        let mut lost = [0; KEYS.len()];
        for (at, accounts, granted) in self.changes.drain(..) {
            if at + lag <= self.now {
                self.replica = accounts;
            } else {
                lost.iter_mut().zip(granted).for_each(|(lost, granted)| *lost += granted);
            }
        }
        let clock = self.random.u64(0..2 * SKEW);
        let ahead = clock.saturating_sub(self.clock);
        for ((witness, (terms, _)), lost) in self.witnesses.iter_mut().zip(KEYS).zip(lost) {
            let skewed = if ahead > 0 { terms.rate } else { 0 };
            witness.lost.push((self.now, lost * 1_000_000 + 2 * terms.rate * ahead, lost + skewed));
        }
        self.lossy += u64::from(lost.iter().any(|lost| *lost > 0));
        (self.clock, self.master) = (clock, self.replica.clone());
        let next = self.random.u64(2_000_000..20_000_000);
        self.after(next, Event::Failover);
    }
}

#[test]
fn fifty_nodes_never_admit_more_than_the_limit_and_what_a_failover_loses() {
    let mut simulation = Simulation::new(20_260_101);
    simulation.run();
    let failovers = simulation.witnesses[0].lost.len();
    println!(
        "{} decisions of {NODES} nodes in {} s, {} of them in leases; {failovers} failovers, {} of which lost something",
        simulation.decisions,
        simulation.now / 1_000_000,
        simulation.leased,
        simulation.lossy,
    );
    for (witness, (terms, sharing)) in simulation.witnesses.iter_mut().zip(KEYS) {
        witness.admitted.sort_unstable();
        let (bucket, window) = (witness.over_bucket(terms), witness.over_window(terms));
        println!(
            "{sharing:?}, {} per second: {} admitted; nearest to the bucket's bound {} requests, to the window's {}",
            terms.rate,
            witness.admitted.len(),
            -bucket / 1_000_000,
            -window,
        );
        assert!(bucket <= 0 && window <= 0, "{sharing:?} {terms:?}: over by {bucket} millionths, {window}");
        let nearest = (bucket / 1_000_000 * 100 / i128::from(terms.burst)).max(window * 100 / i128::from(terms.window));
        assert!(nearest > -10, "the bound is nearly reached: it is not met by chance");
    }
    assert!(failovers > 3 && simulation.lossy > 1 && simulation.leased > 100_000);
}
