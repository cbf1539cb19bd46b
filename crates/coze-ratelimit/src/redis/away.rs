//! What each limit says while Redis is away.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
};

use indexmap::IndexMap;

use super::account::{Account, Terms};

/// What a limit says while Redis does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Away {
    /// It refuses, with the reason `limit_unavailable`: the limit holds whatever happens.
    #[default]
    Closed,
    /// It admits, as if there were no limit.
    Open,
    /// Each of so many nodes keeps its share of the limit for itself: an equal part of the rate, and of the burst, but at
    /// least one request. All of them together admit the limit once more from the moment Redis went away.
    Share(NonZeroU32),
}

/// Keys whose share is remembered; further ones have one share together.
const MAX_SHARES: usize = 65_536;
const SWEEP: usize = 4;
/// Units that a request takes at most of its share, however many nodes there are said to be: several of them still have 64 bits.
const MOST: u64 = 1 << 60;

/// What this node used of its shares. It is not forgotten when Redis is back: whoever goes away often admits no more.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<Accounts>);

#[derive(Debug, Default)]
struct Accounts {
    of: IndexMap<Arc<str>, (Account, Terms)>,
    /// Where the next sweep begins.
    cursor: usize,
}

/// One key: what is shared by how many nodes.
pub(super) struct Part<'a> {
    pub(super) key: &'a Arc<str>,
    pub(super) terms: Terms,
    /// What the request takes, and what must fit besides.
    pub(super) cost: u64,
    pub(super) rest: u64,
    pub(super) nodes: u64,
}

impl Shares {
    /// Takes the cost of each share, or says which one refuses, and in how many microseconds it, and all of it, fits.
    pub(super) fn take(&self, parts: &[Part<'_>], now: u64) -> Result<(), (usize, u64, u64)> {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.sweep(SWEEP * parts.len(), now);
        let mut taken = Vec::with_capacity(parts.len());
        let mut refusal = None;
        for (index, part) in parts.iter().enumerate() {
            // A share is the whole limit, of which each request takes as much as there are nodes.
            let most = MOST / part.terms.request;
            let cost = (part.cost * part.nodes).min(most);
            let terms = Terms { burst: part.terms.burst.max(cost), window: part.terms.window.max(cost), ..part.terms };
            let place = accounts.place(part.key, terms);
            let account = &mut accounts.of[place].0;
            account.advance(terms, now);
            let wait = account.wait(terms, (cost + part.rest * part.nodes).min(most));
            if wait > 0 && refusal.is_none_or(|(_, longest, _)| wait > longest) {
                refusal = Some((index, wait, account.wait(terms, terms.capacity())));
            }
            taken.push((place, terms, cost));
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        for (place, terms, cost) in taken {
            accounts.of[place].0.take(terms, cost);
        }
        Ok(())
    }
}

impl Accounts {
    /// Looks at a few, to forget those that are as good as new.
    fn sweep(&mut self, count: usize, now: u64) {
        for _ in 0..count {
            match self.of.get_index_mut(self.cursor) {
                Some((_, (account, terms))) => {
                    account.advance(*terms, now);
                    match account.is_new() {
                        true => drop(self.of.swap_remove_index(self.cursor)),
                        false => self.cursor += 1,
                    }
                }
                None => self.cursor = 0,
            }
        }
    }

    fn place(&mut self, key: &Arc<str>, terms: Terms) -> usize {
        if let Some(place) = self.of.get_index_of(key) {
            return place;
        }
        let key = if self.of.len() < MAX_SHARES { key.clone() } else { Arc::from("") };
        let entry = self.of.entry(key);
        let place = entry.index();
        entry.or_insert((Account::default(), terms));
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_its_cost_of_each_share_and_leaves_what_must_be_left() {
        let (shares, key) = (Shares::default(), Arc::from("key"));
        let terms = Terms { rate: 100, burst: 100, window: 100, request: 1_000_000 };
        let take = |cost, rest| shares.take(&[Part { key: &key, terms, cost, rest, nodes: 5 }], 7_000_000).is_ok();
        // Twenty of a hundred.
        assert!(take(7, 0) && take(7, 6) && !take(7, 0) && !take(4, 3) && take(4, 2) && !take(1, 2));
        let another = Arc::from("another");
        let take = |cost| shares.take(&[Part { key: &another, terms, cost, rest: 0, nodes: 5 }], 7_000_000).is_ok();
        assert!(take(30) && !take(1), "one that is larger than the share is let through alone");
    }

    #[test]
    fn the_largest_cost_and_any_number_of_nodes_do_not_overflow() {
        let (shares, key) = (Shares::default(), Arc::from("key"));
        let terms = Terms { rate: 100_000_000, burst: 100_000_000, window: u32::MAX.into(), request: 60_000_000 };
        let nodes = u32::MAX.into();
        let take = || shares.take(&[Part { key: &key, terms, cost: 100_000_000, rest: 100_000_000, nodes }], 7_000_000);
        assert!(take().is_ok() && take().is_err_and(|(_, wait, all)| wait > 0 && all > 0));
    }
}
