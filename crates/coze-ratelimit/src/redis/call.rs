//! One call of the script: what is asked, as its arguments, and what it answers.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use redis::{Cmd, ErrorKind, RedisResult, ServerErrorKind, aio::ConnectionLike};
use smallvec::SmallVec;

use super::account::{Settlement, Terms};

pub(super) const SCRIPT: &str = include_str!("script.lua");

/// The name of the script at the server. Computed once.
static SHA: LazyLock<String> = LazyLock::new(|| redis::Script::new(SCRIPT).get_hash().to_owned());

/// Decisions about keys in one slot, to be made one after another.
#[derive(Debug, Default)]
pub(super) struct Batch {
    node: Arc<str>,
    keys: Vec<Arc<str>>,
    places: HashMap<Arc<str>, u64>,
    headers: Vec<u64>,
    decisions: Vec<u64>,
    /// Where the last decision begins.
    last: usize,
    /// The levels of each decision.
    levels: Vec<usize>,
}

/// A level of a decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    /// The place of its key.
    pub(super) key: u64,
    /// What is taken, and what must fit besides.
    pub(super) cost: u64,
    pub(super) rest: u64,
    /// How much is to be leased ahead.
    pub(super) ahead: u64,
}

impl Level {
    fn numbers(&self) -> [u64; 4] {
        [self.key, self.cost, self.rest, self.ahead]
    }
}

impl Batch {
    pub(super) fn new(node: Arc<str>) -> Self {
        Self { node, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The place of a key of a rate, and what the node has to say of its leases, if it is not there yet.
    pub(super) fn rate<S>(&mut self, key: &Arc<str>, terms: Terms, settlements: impl FnOnce() -> S) -> u64
    where
        S: IntoIterator<Item = Settlement>,
    {
        self.key(key, |headers| {
            headers.extend([1, terms.rate, terms.burst, terms.window, terms.request, 0]);
            let count = headers.len() - 1;
            for settlement in settlements() {
                headers.extend([settlement.slot, settlement.spent, settlement.returned]);
                headers[count] += 1;
            }
        })
    }

    /// The place of a key of concurrency: its limit, the number of this call, and how many this node has.
    pub(super) fn concurrency(&mut self, key: &Arc<str>, limit: u64, state: impl FnOnce() -> (u64, u64)) -> u64 {
        self.key(key, |headers| {
            let (call, have) = state();
            headers.extend([2, limit, call, have]);
        })
    }

    fn key(&mut self, key: &Arc<str>, header: impl FnOnce(&mut Vec<u64>)) -> u64 {
        if let Some(place) = self.places.get(key) {
            return *place;
        }
        header(&mut self.headers);
        self.keys.push(key.clone());
        let place = self.keys.len() as u64;
        self.places.insert(key.clone(), place);
        place
    }

    /// Adds a decision.
    pub(super) fn decide(&mut self, levels: &[Level]) {
        self.last = self.decisions.len();
        self.decisions.extend([1, levels.len() as u64]);
        self.decisions.extend(levels.iter().flat_map(Level::numbers));
        self.levels.push(levels.len());
    }

    /// Adds one more like the last decision, which there is; of the leases there is one for all.
    pub(super) fn again(&mut self) {
        self.decisions[self.last] += 1;
    }

    /// # Errors
    /// Those of Redis, and of an answer that is not the script's.
    pub(super) async fn run(&self, connection: &mut impl ConnectionLike) -> RedisResult<Reply> {
        let unknown = ErrorKind::Server(ServerErrorKind::NoScript);
        match self.command("EVALSHA", &SHA).query_async(connection).await {
            // It runs and is known from then on, on the node that asked for it: one way there and back.
            Err(error) if error.kind() == unknown => {
                Reply::parse(self.command("EVAL", SCRIPT).query_async(connection).await?, &self.levels)
            }
            answer => Reply::parse(answer?, &self.levels),
        }
    }

    pub(super) fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = Cmd::with_capacity(5 + self.keys.len(), 256);
        command.arg(name).arg(script).arg(self.keys.len());
        self.keys.iter().for_each(|key| {
            command.arg(&**key);
        });
        command.arg(&*self.node).arg(pack(&[&self.headers, &self.decisions]));
        command
    }
}

/// An array in [`MessagePack`](https://github.com/msgpack/msgpack/blob/master/spec.md): numbers below 128 are a byte, others nine.
fn pack(numbers: &[&[u64]]) -> Vec<u8> {
    let count = numbers.iter().map(|part| part.len()).sum::<usize>();
    let mut packed = Vec::with_capacity(5 + 2 * count);
    packed.push(0xdd);
    packed.extend(u32::try_from(count).expect("a batch is small").to_be_bytes());
    for number in numbers.iter().copied().flatten() {
        match u8::try_from(*number) {
            Ok(small @ ..0x80) => packed.push(small),
            _ => {
                packed.push(0xcf);
                packed.extend(number.to_be_bytes());
            }
        }
    }
    packed
}

/// What the script answered.
#[derive(Debug)]
pub(super) struct Reply {
    /// The slot in which leases of this call end.
    pub(super) slot: u64,
    /// Microseconds from the call until then.
    pub(super) valid: u64,
    pub(super) verdicts: Vec<Verdict>,
}

/// About decisions that are alike.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// How many were admitted: the first ones.
    pub(super) admitted: u64,
    /// Microseconds until another one fits, and until all of the level that refused fit.
    pub(super) wait: u64,
    pub(super) full: u64,
    /// The level that refused; the one with the longest wait.
    pub(super) refused: Option<usize>,
    /// What was leased of each level.
    pub(super) leased: SmallVec<[u64; 3]>,
}

impl Reply {
    pub(super) fn parse(numbers: Vec<u64>, levels: &[usize]) -> RedisResult<Self> {
        let mut numbers = numbers.into_iter();
        let mut next = || numbers.next().ok_or((ErrorKind::UnexpectedReturnType, "the script's answer is too short"));
        let (slot, valid) = (next()?, next()?);
        let mut verdicts = Vec::with_capacity(levels.len());
        for count in levels {
            let (admitted, wait, full) = (next()?, next()?, next()?);
            let refused = usize::try_from(next()?).ok().and_then(|level| level.checked_sub(1));
            if refused.is_some_and(|refused| refused >= *count) {
                return Err((ErrorKind::UnexpectedReturnType, "the script's answer names no level").into());
            }
            let leased = (0..*count).map(|_| next()).collect::<Result<_, _>>()?;
            verdicts.push(Verdict { admitted, wait, full, refused, leased });
        }
        Ok(Self { slot, valid, verdicts })
    }
}
