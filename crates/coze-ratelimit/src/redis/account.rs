//! What all nodes together used of one key's rate. Pure, and the same line by line, in the same units, as the functions of
//! `script.lua`; what only the script needs is in `twin`, for the tests.
//!
//! There are the two stages of [`Rate`](crate::Rate), on the server's clock in microseconds. The **bucket** is counted in
//! millionths of a request, of which as many drain in each microsecond as there are requests per second (sixty-millionths, where they
//! are per minute); nothing is rounded, so nothing drifts. The **window** counts requests per slice of 100 ms.
//!
//! **Leases.** A node may take requests ahead. They count as used from that moment, and they do not drain and leave no
//! slice, until the node says what became of them or their slot begins, half a second later: what it spent is then poured
//! into the bucket and counted in that slice, and what it gives back is as if it had never been taken. A node may spend a
//! leased request only before its slot begins. So each request is poured, and leaves, later than if it had been decided
//! by the script at the moment it was admitted; and from this follows the invariant:
//!
//! > Whatever nodes do with their leases, spend, keep, give back or lose them in a crash: of all requests admitted by all
//! > nodes, at most `burst` + rate × t fall into any t seconds, and at most one second's rate into any ten slices.
//!
//! Proof for the bucket: let `level(t)` be all that is in it and all that is leased. It never exceeds the burst, because a
//! request or a lease is granted only where it fits. In a stretch from a to b, what is admitted was leased at a, or was
//! granted in between. Both are in `level(b)`, but for what drained, which is at most rate × (b − a), and what was given
//! back, which was not admitted. The same for the window: at the last grant whose request falls into ten slices, every
//! other one of them that was granted is either leased still, or was counted in a slice that is not before its own.

/// Length of a slice, and of a slot of leases, in microseconds.
pub(crate) const SLICE: u64 = 100_000;
/// Slices of the window: the last one is the current one.
pub(super) const PAST: usize = 10;
/// Slots of leases: a lease ends with the last one's beginning.
pub(super) const AHEAD: usize = 5;

/// How much a key may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Units that drain from the bucket in each microsecond.
    pub(crate) rate: u64,
    /// Requests that fit into the bucket.
    pub(crate) burst: u64,
    /// Requests that fit into the window.
    pub(crate) window: u64,
    /// Units of a request: the microseconds of a second, or of a minute.
    pub(crate) request: u64,
}

impl From<crate::Rate> for Terms {
    fn from(rate: crate::Rate) -> Self {
        let (burst, window) = (rate.burst.get().into(), rate.window().into());
        Self { rate: rate.requests.get().into(), burst, window, request: rate.period() / 1000 }
    }
}

impl Terms {
    /// The most that ever fits at once.
    pub(crate) fn capacity(self) -> u64 {
        self.burst.min(self.window)
    }
}

/// What became of a lease since it was last said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settlement {
    pub(crate) slot: u64,
    pub(crate) spent: u64,
    pub(crate) returned: u64,
}

/// What is used of one key. The unused account is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// When the rest was true. It never goes back.
    pub(super) at: u64,
    /// Units in the bucket.
    pub(super) level: u64,
    /// Requests per slice: those of the window, the last one current, then what is leased, by the slot in which it ends.
    pub(super) slices: [u64; PAST + AHEAD],
}

impl Account {
    /// Goes to `now`: leases whose slot has begun count as spent at its beginning. A time before the last one is the last one.
    pub(crate) fn advance(&mut self, terms: Terms, now: u64) {
        let now = now.max(self.at);
        let base = self.at / SLICE;
        let passed = usize::try_from(now / SLICE - base).map_or(PAST + AHEAD, |passed| passed.min(PAST + AHEAD));
        for slot in 1..=passed.min(AHEAD) {
            let ended = self.slices[PAST - 1 + slot];
            if ended > 0 {
                self.drain(terms, (base + slot as u64) * SLICE);
                self.level += ended * terms.request;
            }
        }
        self.drain(terms, now);
        self.slices.copy_within(passed.., 0);
        self.slices[PAST + AHEAD - passed..].fill(0);
    }

    fn drain(&mut self, terms: Terms, until: u64) {
        self.level = self.level.saturating_sub((until - self.at).saturating_mul(terms.rate));
        self.at = until;
    }

    /// Microseconds until `cost` requests fit, if nobody else comes and every lease is spent: zero if they fit now. At most
    /// [`Terms::capacity`] ever fit.
    pub(crate) fn wait(&self, terms: Terms, cost: u64) -> u64 {
        let base = self.at / SLICE;
        // The window: at each slice's beginning the oldest one has left.
        let room = terms.window.saturating_sub(cost);
        let mut used: u64 = self.slices.iter().sum();
        let mut slices = 0;
        while used > room && slices < PAST + AHEAD {
            used -= self.slices[slices];
            slices += 1;
        }
        let window = if slices == 0 { 0 } else { (base + slices as u64) * SLICE - self.at };
        // The bucket: what is in it drains, and at each slot what was leased is poured in.
        let room = terms.burst.saturating_sub(cost) * terms.request;
        let mut later = self.clone();
        let mut leased = self.leased() * terms.request;
        for slot in 1..=AHEAD {
            let ended = self.slices[PAST - 1 + slot] * terms.request;
            let excess = (later.level + leased).saturating_sub(room);
            let until = (base + slot as u64) * SLICE;
            if ended == 0 || excess <= later.level && excess <= (until - later.at).saturating_mul(terms.rate) {
                continue;
            }
            later.drain(terms, until);
            later.level += ended;
            leased -= ended;
        }
        let excess = (later.level + leased).saturating_sub(room);
        window.max(later.at - self.at + excess.div_ceil(terms.rate))
    }

    /// Counts requests for which [`Account::wait`] was zero.
    pub(crate) fn take(&mut self, terms: Terms, cost: u64) {
        self.level += cost * terms.request;
        self.slices[PAST - 1] += cost;
    }

    /// Whether nothing is used.
    pub(crate) fn is_new(&self) -> bool {
        self.level == 0 && self.slices.iter().all(|count| *count == 0)
    }

    pub(super) fn leased(&self) -> u64 {
        self.slices[PAST..].iter().sum()
    }
}
