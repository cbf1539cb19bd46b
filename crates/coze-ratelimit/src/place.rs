//! Where the cells of keys live: places of four or eight words in a table that never moves, each with a lock of its own.
//!
//! A key is found without a lock, by its tag; what is done to its cell is done under the lock of its place, which is a bit of a
//! word that is written anyway. So a decision costs one atomic exchange, and a place that was given to another key in between
//! is noticed, because the tag is looked at again. A place is never emptied, only given to another key, so no key is ever
//! behind an empty place.

use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, wait};

/// How many places there are for a key, from the one its hash names on.
pub(crate) const PROBES: usize = 64;

/// The bit of a place's second word that locks it. The other bits are a time in nanoseconds, good for 292 years.
const LOCKED: u64 = 1 << 63;

/// The latest time that a place can hold.
pub(crate) const LATEST: u64 = LOCKED - 1;

/// A line of the processor's cache: one wide place or two narrow ones, so that none lies across two lines.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Line([AtomicU64; 8]);

/// The words of a place: its tag (zero: free), the time of its cell, and what the cell makes of the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a>(&'a [AtomicU64]);

impl<'a> Place<'a> {
    #[inline]
    pub(crate) fn lock(self) -> Locked<'a> {
        let mut turn = 0;
        loop {
            let at = self.0[1].load(Ordering::Relaxed);
            // Acquire: sees all that was written under the lock before. Nothing is read if it fails.
            if at & LOCKED == 0
                && self.0[1].compare_exchange_weak(at, at | LOCKED, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return Locked { place: self, at };
            }
            wait(turn);
            turn = turn.saturating_add(1);
        }
    }

    /// Relaxed: it is looked at again under the lock. A key that another thread just added is looked for again under the lock of
    /// whoever adds keys.
    #[inline]
    fn tag(self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    /// Taken without the lock: a hint.
    pub(crate) fn at(self) -> u64 {
        self.0[1].load(Ordering::Relaxed) & LATEST
    }

    /// The words of the cell. They are written under the lock; whoever reads without it has a hint.
    #[inline]
    pub(crate) fn words(self) -> &'a [AtomicU64] {
        &self.0[2..]
    }
}

/// A place that nobody else reads or writes until this is dropped.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    place: Place<'a>,
    /// The time of the cell.
    pub(crate) at: u64,
}

impl<'a> Locked<'a> {
    #[inline]
    pub(crate) fn words(&self) -> &'a [AtomicU64] {
        self.place.words()
    }

    #[inline]
    pub(crate) fn tag(&self) -> u64 {
        self.place.tag()
    }

    /// Gives the place to a key.
    pub(crate) fn give(&self, tag: u64) {
        self.place.0[0].store(tag, Ordering::Relaxed);
    }
}

impl Drop for Locked<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: whoever locks next sees all that was written.
        self.place.0[1].store(self.at & LATEST, Ordering::Release);
    }
}

/// A number of places that keys are added to one at a time.
#[derive(Debug)]
pub(crate) struct Segment {
    lines: Box<[Line]>,
    places: usize,
    /// Words per place: four or eight.
    width: usize,
    adding: Mutex<()>,
}

/// The place of a key.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// It has one.
    Known(Locked<'a>),
    /// It can have this one. Until the guard is dropped no other key is added to the segment.
    Free(Locked<'a>, MutexGuard<'a, ()>),
    /// There is none for it.
    Full,
}

impl Segment {
    pub(crate) fn new(places: usize, wide: bool) -> Self {
        let width = if wide { 8 } else { 4 };
        let lines = (0..places.div_ceil(8 / width)).map(|_| Line::default()).collect();
        Self { lines, places, width, adding: Mutex::new(()) }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    #[inline]
    pub(crate) fn place(&self, index: usize) -> Place<'_> {
        let word = index * self.width;
        let words = &self.lines[word / 8].0;
        // A whole array, or one of its halves: cheaper than any slice of it.
        Place(if self.width == 8 {
            words
        } else if word.is_multiple_of(8) {
            &words[..4]
        } else {
            &words[4..]
        })
    }

    /// The places of a key whose first is `first`.
    fn probes(&self, first: usize) -> impl Iterator<Item = Place<'_>> {
        let places = self.places;
        (first..first + PROBES.min(places)).map(move |i| self.place(if i < places { i } else { i - places }))
    }

    #[inline]
    pub(crate) fn find(&self, tag: u64, first: usize) -> Option<Place<'_>> {
        let place = self.place(first);
        // Most keys are where they belong.
        if place.tag() == tag { Some(place) } else { self.find_further(tag, first) }
    }

    fn find_further(&self, tag: u64, first: usize) -> Option<Place<'_>> {
        self.probes(first).take_while(|place| place.tag() != 0).find(|place| place.tag() == tag)
    }

    /// Locks the place of the key `tag`, which was not found, or one that it can have: the first that `is_idle`, or is free.
    pub(crate) fn add(&self, tag: u64, first: usize, is_idle: impl Fn(u64, &[AtomicU64]) -> bool) -> Found<'_> {
        loop {
            // A panic elsewhere leaves nothing half done here.
            let adding = self.adding.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(place) = self.find(tag, first) {
                // Another thread has just added it. Its place is not waited for under the lock of whoever adds keys.
                drop(adding);
                let locked = place.lock();
                if locked.tag() == tag {
                    return Found::Known(locked);
                }
                continue;
            }
            let is_vacant = |tag, at, words: &[AtomicU64]| tag == 0 || is_idle(at, words);
            for place in self.probes(first).filter(|place| is_vacant(place.tag(), place.at(), place.words())) {
                let locked = place.lock();
                if is_vacant(locked.tag(), locked.at, locked.words()) {
                    return Found::Free(locked, adding);
                }
            }
            return Found::Full;
        }
    }
}
