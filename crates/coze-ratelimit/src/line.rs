//! Who waits, in the order in which they came: a line for each key that is waited for.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
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

use smallvec::SmallVec;

/// What is waited for: the address of the level, and the hash of the key there.
pub(crate) type Key = (usize, u64);

/// The ticket of one who comes now.
pub(crate) const LAST: u64 = u64::MAX;

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
    /// Of each key the tickets of those who wait for it, and what they will take.
    keys: HashMap<Key, BTreeMap<u64, u32>>,
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

    /// Waits for a key, too. Says whether it did not yet.
    pub(crate) fn join(&self, ticket: u64, key: Key, cost: u32) -> bool {
        self.lock().keys.entry(key).or_default().insert(ticket, cost).is_none()
    }

    /// Whether nobody who came before waits for any of these keys. Lines up where somebody waits, and will be woken when it is the
    /// first, or when something is given back to the first.
    pub(crate) fn is_turn(&self, ticket: u64, keys: impl Iterator<Item = (Key, u32)>, waker: &Waker) -> bool {
        let mut queues = self.lock();
        let before = queues.wakers.insert(ticket, waker.clone());
        let mut is_turn = true;
        for (key, cost) in keys {
            if let Some(queue) = queues.keys.get_mut(&key) {
                queue.insert(ticket, cost);
                is_turn &= queue.first_key_value().is_some_and(|(first, _)| *first == ticket);
            }
        }
        drop(queues);
        drop(before);
        // With those of `given_back`: whoever gives something back after this is seen to have done so, or sees that one waits.
        fence(SeqCst);
        is_turn
    }

    /// Waits no longer for any of these keys.
    pub(crate) fn leave(&self, ticket: u64, keys: impl Iterator<Item = Key>) {
        let mut next = SmallVec::<[Waker; 3]>::new();
        let mut guard = self.lock();
        let queues = &mut *guard;
        let waker = queues.wakers.remove(&ticket);
        for key in keys {
            let Entry::Occupied(mut queue) = queues.keys.entry(key) else { continue };
            let was_first = queue.get().first_key_value().is_some_and(|(first, _)| *first == ticket);
            queue.get_mut().remove(&ticket);
            match queue.get().first_key_value() {
                None => drop(queue.remove()),
                Some((first, _)) if was_first => next.extend(queues.wakers.get(first).cloned()),
                Some(_) => {}
            }
        }
        self.waiting.fetch_sub(1, SeqCst);
        // Wakers are not ours, so they do not run, and are not dropped, under our lock.
        drop(guard);
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
        let queues = self.lock();
        let mut ahead = queues.keys.get(&key)?.range(..ticket).map(|(_, cost)| *cost);
        let first = ahead.next()?;
        Some(ahead.fold(first, u32::saturating_add))
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
