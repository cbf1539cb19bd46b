//! Who waits, in the order in which they came: a line for each key that is waited for.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    num::NonZeroU64,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicUsize,
            Ordering::{Relaxed, SeqCst},
            fence,
        },
    },
    task::Waker,
};

/// What is waited for: the address of the level, and the hash of the key there.
pub(crate) type Key = (usize, NonZeroU64);

/// The ticket of one who comes now.
pub(crate) const LAST: u64 = u64::MAX;

/// Whether it is the turn of one who waits.
pub(crate) enum Turn {
    /// Nobody who came before waits for the same.
    Now,
    /// Somebody is before it where it stands: it will be woken when it is the first, or when something is given back to the first.
    Behind,
    /// It is the first where it stands, but somebody who came before waits for another key of its own.
    Elsewhere { here: Key, there: (Key, u32) },
}

/// See the module.
#[derive(Default)]
pub(crate) struct Line {
    /// How many wait: read without the lock, so that whoever has nothing to do with them pays for no more than that.
    waiting: AtomicUsize,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    /// The last ticket.
    last: u64,
    /// By their tickets.
    wakers: HashMap<u64, Waker>,
    /// What each of them waits for, by their tickets: one key, so that whoever is blocked there is in nobody's way elsewhere.
    places: HashMap<u64, Key>,
    /// Of each key the tickets of those who wait for it, and what they will take.
    keys: HashMap<Key, BTreeMap<u64, u32>>,
}

impl Queues {
    /// What those who came before will take of a key, for which they wait.
    fn ahead(&self, ticket: u64, key: Key) -> impl Iterator<Item = u32> {
        let queue = self.keys.get(&key).into_iter();
        queue.flat_map(move |queue| queue.range(..ticket)).map(|(_, cost)| *cost)
    }

    /// Has it stand in the queue of this key, and in no other. Returns whom to wake.
    fn stand(&mut self, ticket: u64, key: Key, cost: u32) -> Option<Waker> {
        self.keys.entry(key).or_default().insert(ticket, cost);
        let before = self.places.insert(ticket, key).filter(|before| *before != key)?;
        self.go(ticket, before)
    }

    /// Takes it out of a queue. If it was the first there, the next one is to be woken.
    fn go(&mut self, ticket: u64, key: Key) -> Option<Waker> {
        let Entry::Occupied(mut queue) = self.keys.entry(key) else { return None };
        let was_first = queue.get().first_key_value().is_some_and(|(first, _)| *first == ticket);
        queue.get_mut().remove(&ticket);
        let Some((first, _)) = queue.get().first_key_value() else {
            queue.remove();
            return None;
        };
        self.wakers.get(first).filter(|_| was_first).cloned()
    }
}

impl Line {
    pub(crate) fn len(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// A ticket, unless so many wait already.
    pub(crate) fn enter(&self, most: usize) -> Option<u64> {
        let mut queues = self.lock();
        if self.len() >= most {
            return None;
        }
        self.waiting.fetch_add(1, SeqCst);
        queues.last += 1;
        Some(queues.last)
    }

    /// Waits for a key from now on, and for none besides. Says whether it did not yet.
    pub(crate) fn join(&self, ticket: u64, key: Key, cost: u32) -> bool {
        let mut queues = self.lock();
        let is_new = queues.places.get(&ticket) != Some(&key);
        let next = queues.stand(ticket, key, cost);
        drop(queues);
        next.into_iter().for_each(Waker::wake);
        is_new
    }

    /// Whether it is the turn of one who asks for all of these keys.
    pub(crate) fn turn(&self, ticket: u64, mut keys: impl Iterator<Item = (Key, u32)>, waker: &Waker) -> Turn {
        let mut queues = self.lock();
        let before = queues.wakers.insert(ticket, waker.clone());
        let here = queues.places.get(&ticket).copied();
        let behind = |key| queues.ahead(ticket, key).next().is_some();
        let turn = match here {
            Some(here) if behind(here) => Turn::Behind,
            _ => {
                let there = keys.find(|(key, _)| behind(*key));
                there.zip(here).map_or(Turn::Now, |(there, here)| Turn::Elsewhere { here, there })
            }
        };
        drop(queues);
        drop(before);
        // With those of `given_back`: whoever gives something back after this is seen to have done so, or sees that one waits.
        fence(SeqCst);
        turn
    }

    /// Waits no longer.
    pub(crate) fn leave(&self, ticket: u64) {
        let mut queues = self.lock();
        let waker = queues.wakers.remove(&ticket);
        let place = queues.places.remove(&ticket);
        let next = place.and_then(|key| queues.go(ticket, key));
        self.waiting.fetch_sub(1, SeqCst);
        // Wakers are not ours, so they do not run, and are not dropped, under our lock.
        drop(queues);
        drop(waker);
        next.into_iter().for_each(Waker::wake);
    }

    /// Wakes the first who waits for a key of which something was given back just now.
    #[inline]
    pub(crate) fn given_back(&self, key: impl FnOnce() -> Key) {
        if self.waiting.load(SeqCst) > 0 {
            self.wake(key());
        }
    }

    #[cold]
    fn wake(&self, key: Key) {
        let queues = self.lock();
        let first = queues.keys.get(&key).and_then(|queue| queue.first_key_value());
        let waker = first.and_then(|(first, _)| queues.wakers.get(first).cloned());
        drop(queues);
        waker.into_iter().for_each(Waker::wake);
    }

    /// What those who came before will take of a key; `None` if none of them waits for it.
    pub(crate) fn ahead(&self, ticket: u64, key: Key) -> Option<u32> {
        self.lock().ahead(ticket, key).reduce(u32::saturating_add)
    }

    /// A panic elsewhere leaves nothing half done here.
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}
