//! What one node holds of one key's rate: leases, and the knowledge that it is over. Pure; times are microseconds since a
//! beginning of the node's own.

use smallvec::SmallVec;

use super::account::Settlement;

/// A lease should be spent within so many microseconds: a quarter of its time, so that there is time to take the next.
const SPENT_WITHIN: u64 = 125_000;
/// A lease of so many is replaced when half of it is spent. Smaller ones when they are: half of little is nothing.
const AHEAD_OF_TIME: u32 = 4;
/// How much faster the server's clock may be than ours: an eighth. A lease is left alone for so much longer.
const SLOWER: u64 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// The first to end comes first.
    leases: SmallVec<[Lease; 2]>,
    /// How much the next lease should be.
    size: u32,
    /// Whether one is being asked for.
    asked: bool,
    /// When the last one was asked for, and what was spent since.
    began: u64,
    used: u64,
    /// Whether anything was spent since the last look.
    busy: bool,
    over: Option<Over>,
}

#[derive(Debug)]
struct Lease {
    slot: u64,
    until: u64,
    left: u32,
    /// What the server has not been told.
    spent: u32,
}

/// Requests of at least so much do not fit before a time.
#[derive(Clone, Copy, Debug)]
struct Over {
    cost: u32,
    until: u64,
    full: u64,
}

impl Holding {
    /// Microseconds until `cost` may fit, and until everything does, where it is known that it does not fit before.
    pub(crate) fn over(&self, cost: u32, now: u64) -> Option<(u64, u64)> {
        let over = self.over.filter(|over| over.cost <= cost && over.until > now)?;
        Some((over.until - now, over.full.saturating_sub(now)))
    }

    /// The server said, to a call at `sent`, that `cost` does not fit for so long.
    pub(crate) fn refused(&mut self, cost: u32, sent: u64, wait: u64, full: u64) {
        self.over = Some(Over { cost, until: sent + wait, full: sent + full });
    }

    /// Takes from the leases.
    pub(crate) fn spend(&mut self, cost: u32, now: u64) -> bool {
        let available: u64 = self.live(now).map(|lease| u64::from(lease.left)).sum();
        if available < cost.into() {
            return false;
        }
        let mut missing = cost;
        for lease in self.leases.iter_mut().filter(|lease| lease.until > now) {
            let part = missing.min(lease.left);
            lease.left -= part;
            lease.spent += part;
            missing -= part;
        }
        self.used += u64::from(cost);
        self.busy = true;
        true
    }

    /// Gives back what was spent just now, for a request that another level refused.
    pub(crate) fn undo(&mut self, cost: u32) {
        let mut missing = cost;
        for lease in self.leases.iter_mut().rev() {
            let part = missing.min(lease.spent);
            lease.left += part;
            lease.spent -= part;
            missing -= part;
        }
        self.used = self.used.saturating_sub(cost.into());
    }

    /// Whether it is time to take the next lease, before this one is spent.
    pub(crate) fn is_low(&self, now: u64) -> bool {
        let left = || self.live(now).map(|lease| u64::from(lease.left)).sum::<u64>();
        !self.asked && self.size >= AHEAD_OF_TIME && left() <= u64::from(self.size / 2)
    }

    /// How much to ask for: as much as is spent in [`SPENT_WITHIN`] at the pace since the last time, but enough for one more request of
    /// this cost, and at most `most`. Zero if a lease is being asked for already.
    pub(crate) fn ask(&mut self, cost: u32, now: u64, most: u32) -> u32 {
        if self.asked {
            return 0;
        }
        let pace = self.used.saturating_mul(SPENT_WITHIN) / now.saturating_sub(self.began).max(1);
        let pace = u32::try_from(pace).unwrap_or(u32::MAX);
        let most = most.max(1);
        self.size = pace.clamp(self.size / 2, self.size.saturating_mul(4)).clamp(cost.min(most), most);
        (self.asked, self.began, self.used) = (true, now, 0);
        self.size
    }

    /// What came of asking, in a call at `sent`: this much, for so long on the server's clock. None where nobody knows.
    pub(crate) fn granted(&mut self, lease: Option<(u64, u64)>, sent: u64, valid: u64) {
        self.asked = false;
        if let Some((slot, granted)) = lease {
            let left = u32::try_from(granted).unwrap_or(u32::MAX);
            self.over = self.over.filter(|_| left == 0);
            if left > 0 {
                self.leases.push(Lease { slot, until: sent + valid - valid / SLOWER, left, spent: 0 });
            }
        }
    }

    /// What the server has to be told: what was spent, and what is given back. Without `give_back` only what has ended is.
    pub(crate) fn settle(&mut self, now: u64, give_back: bool) -> SmallVec<[Settlement; 2]> {
        let mut settlements = SmallVec::new();
        self.leases.retain(|lease| {
            let returned = if give_back || lease.until <= now { std::mem::take(&mut lease.left) } else { 0 };
            let spent = std::mem::take(&mut lease.spent);
            if spent + returned > 0 {
                settlements.push(Settlement { slot: lease.slot, spent: spent.into(), returned: returned.into() });
            }
            lease.left > 0
        });
        settlements
    }

    /// Looks at it from time to time: whether it is to be given back, because nobody used it since the last look, or because
    /// it ends before the next one.
    pub(crate) fn is_due(&mut self, next: u64) -> bool {
        let idle = !std::mem::take(&mut self.busy);
        let due = !self.leases.is_empty() && (idle || self.leases.iter().any(|lease| lease.until <= next));
        if due && idle {
            self.size /= 2;
        }
        due
    }

    /// Whether there is nothing to remember.
    pub(crate) fn is_idle(&self, now: u64) -> bool {
        self.leases.is_empty() && !self.asked && self.over.is_none_or(|over| over.until <= now)
    }

    pub(crate) fn has_leases(&self) -> bool {
        !self.leases.is_empty()
    }

    fn live(&self, now: u64) -> impl Iterator<Item = &Lease> {
        self.leases.iter().filter(move |lease| lease.until > now)
    }
}
