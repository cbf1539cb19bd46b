//! What the script does with an account, besides what a node does too: for tests, which hold the two against each other.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    account::{AHEAD, Account, PAST, SLICE, Settlement, Terms},
    call::{Batch, Level, Reply, SCRIPT, Verdict},
};

impl Account {
    /// What a node says of a lease of its own. What is not leased any more was settled by its slot, or never known here.
    pub(crate) fn settle(&mut self, terms: Terms, settlement: Settlement) {
        let Ok(ahead @ 1..=AHEAD) = usize::try_from(settlement.slot.saturating_sub(self.at / SLICE)) else { return };
        let leased = &mut self.slices[PAST - 1 + ahead];
        let spent = settlement.spent.min(*leased);
        *leased -= spent;
        *leased -= settlement.returned.min(*leased);
        self.take(terms, spent);
    }

    /// How many requests fit now.
    pub(crate) fn room(&self, terms: Terms) -> u64 {
        let bucket = (terms.burst * terms.request).saturating_sub(self.level) / terms.request;
        let window = terms.window.saturating_sub(self.slices.iter().sum());
        bucket.saturating_sub(self.leased()).min(window)
    }

    /// Leases as many requests as there are and as are wanted. They end with the slot.
    pub(crate) fn lease(&mut self, terms: Terms, wanted: u64) -> u64 {
        let granted = self.room(terms).min(wanted);
        self.slices[PAST + AHEAD - 1] += granted;
        granted
    }

    /// Microseconds until it is as good as new, at most.
    pub(crate) fn lifetime(&self, terms: Terms) -> u64 {
        (self.level + self.leased() * terms.request).div_ceil(terms.rate) + (PAST + AHEAD) as u64 * SLICE
    }
}

/// A key of a call: its terms, and what the node says of its leases.
pub(crate) struct Key {
    pub(crate) name: usize,
    pub(crate) terms: Terms,
    pub(crate) settlements: Vec<Settlement>,
}

/// The script, as far as rates go: decisions that are alike are made one after another, where the script makes them at once.
pub(crate) fn call(
    accounts: &mut [Account],
    clock: u64,
    keys: &[Key],
    decisions: &[(u64, Vec<Level>)],
) -> (u64, u64, Vec<Verdict>) {
    // Of each key what it is now, and whether that is to be remembered: a refusal leaves no trace.
    let mut loaded: Vec<_> = keys.iter().map(|key| (accounts[key.name].clone(), false)).collect();
    for (key, (account, changed)) in keys.iter().zip(&mut loaded) {
        account.advance(key.terms, clock);
        key.settlements.iter().for_each(|settlement| account.settle(key.terms, *settlement));
        *changed = !key.settlements.is_empty();
    }
    let mut verdicts = Vec::new();
    for (alike, levels) in decisions {
        let places: Vec<_> = levels.iter().map(|level| usize::try_from(level.key).expect("small") - 1).collect();
        let (mut admitted, mut longest, mut refused) = (0, 0, None);
        while admitted < *alike && refused.is_none() {
            for (index, (place, level)) in places.iter().zip(levels).enumerate() {
                let wait = loaded[*place].0.wait(keys[*place].terms, level.cost + level.rest);
                if wait > longest {
                    (longest, refused) = (wait, Some(index));
                }
            }
            if refused.is_none() {
                for (place, level) in places.iter().zip(levels) {
                    loaded[*place].0.take(keys[*place].terms, level.cost);
                    loaded[*place].1 |= level.cost > 0;
                }
                admitted += 1;
            }
        }
        let full = refused.map_or(0, |index| {
            let place = places[index];
            loaded[place].0.wait(keys[place].terms, keys[place].terms.capacity())
        });
        let mut leased = SmallVec::new();
        for (place, level) in places.iter().zip(levels) {
            let (account, changed) = &mut loaded[*place];
            let granted = account.lease(keys[*place].terms, if refused.is_none() { level.ahead } else { 0 });
            *changed |= granted > 0;
            leased.push(granted);
        }
        verdicts.push(Verdict { admitted, wait: longest, full, refused, leased });
    }
    for (key, (account, _)) in keys.iter().zip(loaded).filter(|(_, (_, changed))| *changed) {
        accounts[key.name] = account;
    }
    let slot = clock / SLICE + AHEAD as u64;
    (slot, slot * SLICE - clock, verdicts)
}

/// The script at a time of the test's, with keys that do not expire: then the test's time may fly.
fn script_without_a_clock() -> String {
    let replaced = [("redis.call('TIME')", "{0, ARGV[#ARGV]}"), (", 'PX', ceil(lifetime / 1000)", "")];
    replaced.iter().fold(SCRIPT.to_owned(), |script, (real, test)| {
        assert_eq!(script.matches(real).count(), 1, "{real}");
        script.replace(real, test)
    })
}

#[tokio::test]
async fn the_script_and_the_account_decide_alike() {
    let redis = coze_tests::Redis::start();
    let client = redis::Client::open(redis.url()).expect("valid");
    let mut connection = client.get_multiplexed_async_connection().await.expect("connected");
    let script = script_without_a_clock();
    let per_second = [(1, 1), (50, 100), (7, 3), (1000, 20), (u32::MAX.into(), u32::MAX.into())]
        .map(|(rate, burst)| Terms { rate, burst, window: rate, request: 1_000_000 });
    let per_minute = [(600, 10), (100_000_000, 100_000_000)].map(|(rate, burst)| Terms {
        rate,
        burst,
        window: u32::MAX.into(),
        request: 60_000_000,
    });
    let terms: Vec<Terms> = per_second.into_iter().chain(per_minute).collect();
    let names: Vec<Arc<str>> = (0..terms.len()).map(|name| format!("{{t}}{name}").into()).collect();
    let mut random = fastrand::Rng::with_seed(4);
    let (mut accounts, mut clock) = (vec![Account::default(); terms.len()], 1_764_000_000_000_000_u64);
    let mut seen = [0; 3];
    for step in 0..4000 {
        clock = match random.u8(0..10) {
            0 => clock,
            1 => clock - random.u64(0..300_000),
            2..6 => clock + random.u64(0..2000),
            6..9 => clock + random.u64(0..120_000),
            _ => clock + random.u64(0..3_000_000),
        };
        let mut keys = Vec::new();
        let mut batch = Batch::new("node".into());
        for name in 0..terms.len() {
            let settlements: Vec<_> = (0..random.usize(0..3))
                .map(|_| Settlement {
                    slot: (clock / SLICE + random.u64(0..8)).saturating_sub(1),
                    spent: random.u64(0..4),
                    returned: random.u64(0..4),
                })
                .collect();
            batch.rate(&names[name], terms[name], || settlements.clone());
            keys.push(Key { name, terms: terms[name], settlements });
        }
        let mut decisions: Vec<(u64, Vec<Level>)> = Vec::new();
        for _ in 0..random.usize(1..4) {
            let mut names: Vec<_> = (0..terms.len()).collect();
            random.shuffle(&mut names);
            names.truncate(if step % 2 == 0 { 1 } else { 3 });
            let levels: Vec<Level> = names
                .into_iter()
                .map(|name| {
                    let cost = random.u64(0..4).min(terms[name].capacity());
                    // What must be left besides may be more than there ever is: then the first one still fits.
                    let rest = random.u64(0..terms[name].capacity() + 3) * u64::from(random.u8(0..4) == 0 && cost > 0);
                    Level { key: name as u64 + 1, cost, rest, ahead: random.u64(0..9) * u64::from(random.bool()) }
                })
                .collect();
            batch.decide(&levels);
            let alike = random.u64(1..5);
            (1..alike).for_each(|_| batch.again());
            decisions.push((alike, levels));
        }
        let mut command = batch.command("EVAL", &script);
        command.arg(clock);
        let counts: Vec<_> = decisions.iter().map(|(_, levels)| levels.len()).collect();
        let reply: Vec<u64> = command.query_async(&mut connection).await.expect("answered");
        let reply = Reply::parse(reply, &counts).expect("whole");
        let (slot, valid, verdicts) = call(&mut accounts, clock, &keys, &decisions);
        assert_eq!((reply.slot, reply.valid), (slot, valid));
        assert_eq!(reply.verdicts, verdicts, "step {step}: {decisions:?}");
        for verdict in verdicts {
            seen[0] += verdict.admitted;
            seen[1] += u64::from(verdict.refused.is_some());
            seen[2] += verdict.leased.iter().sum::<u64>();
        }
    }
    assert!(seen.iter().all(|count| *count > 1000), "{seen:?}: each kind of answer was seen often");
}

#[tokio::test]
async fn every_key_expires_when_it_is_as_good_as_new() {
    let redis = coze_tests::Redis::start();
    let client = redis::Client::open(redis.url()).expect("valid");
    let mut connection = client.get_multiplexed_async_connection().await.expect("connected");
    let terms = Terms { rate: 2, burst: 20, window: 2, request: 1_000_000 };
    let mut batch = Batch::new("node".into());
    let rate = batch.rate(&"{t}rate".into(), terms, || None);
    let places = batch.concurrency(&"{t}places".into(), 3, || (1, 1));
    let level = |key, cost| Level { key, cost, rest: 0, ahead: 0 };
    batch.decide(&[level(rate, 2), level(places, 1)]);
    let reply = batch.run(&mut connection).await.expect("the script is loaded when it is not there");
    assert_eq!(reply.verdicts[0].admitted, 1);
    let ttl = |key: &str| redis.command(&["PTTL", key])[1..].parse::<u64>().expect("a time");
    let mut account = Account::default();
    account.take(terms, 2);
    assert!((1..=account.lifetime(terms) / 1000).contains(&ttl("{t}rate")), "{}", ttl("{t}rate"));
    assert!((1..=10_000).contains(&ttl("{t}places")));
    assert_eq!(redis.command(&["DBSIZE"]), ":2");

    let mut late = Batch::new("node".into());
    late.concurrency(&"{t}places".into(), 3, || (0, 0));
    late.run(&mut connection).await.expect("answered");
    assert_eq!(redis.command(&["EXISTS", "{t}places"]), ":1", "a call that was overtaken changes nothing");
    let mut gone = Batch::new("node".into());
    gone.concurrency(&"{t}places".into(), 3, || (2, 0));
    gone.run(&mut connection).await.expect("answered");
    assert_eq!(redis.command(&["EXISTS", "{t}places"]), ":0", "who holds nothing leaves nothing");
}
