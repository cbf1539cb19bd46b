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

impl Line {
    #[inline]
    fn halves(&self) -> [&[AtomicU64; 4]; 2] {
        let (first, second) = self.0.split_at(4);
        [first, second].map(|half| half.try_into().expect("four words"))
    }
}

/// The words of a place: its tag (zero: free), the time of its cell, and the cell.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    Narrow(&'a [AtomicU64; 4]),
    Wide(&'a [AtomicU64; 8]),
}

/// The words of a cell. They are written under the lock of its place; whoever reads them without it has a hint.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Words<'a> {
    Narrow(&'a [AtomicU64; 2]),
    Wide(&'a [AtomicU64; 6]),
}

impl<'a> Place<'a> {
    #[inline(always)]
    pub(crate) fn lock(self) -> Locked<'a> {
        self.try_lock().unwrap_or_else(|| self.lock_waiting())
    }

    #[inline(always)]
    fn try_lock(self) -> Option<Locked<'a>> {
        let (_, time) = self.head();
        let at = time.load(Ordering::Relaxed);
        // Acquire: sees all that was written under the lock before. Nothing is read if it fails.
        let is_ours = at & LOCKED == 0
            && time.compare_exchange_weak(at, at | LOCKED, Ordering::Acquire, Ordering::Relaxed).is_ok();
        is_ours.then(|| Locked { place: self, at })
    }

    #[cold]
    fn lock_waiting(self) -> Locked<'a> {
        let mut turn = 0;
        loop {
            wait(turn);
            if let Some(locked) = self.try_lock() {
                return locked;
            }
            turn = turn.saturating_add(1);
        }
    }

    /// The tag and the time.
    #[inline]
    fn head(self) -> (&'a AtomicU64, &'a AtomicU64) {
        match self {
            Self::Narrow([tag, at, ..]) | Self::Wide([tag, at, ..]) => (tag, at),
        }
    }

    /// Relaxed: it is looked at again under the lock. A key that another thread just added is looked for again under the lock of
    /// whoever adds keys.
    #[inline]
    fn tag(self) -> u64 {
        self.head().0.load(Ordering::Relaxed)
    }

    /// Taken without the lock: a hint.
    pub(crate) fn at(self) -> u64 {
        self.head().1.load(Ordering::Relaxed) & LATEST
    }

    #[inline]
    pub(crate) fn words(self) -> Words<'a> {
        match self {
            Self::Narrow([_, _, words @ ..]) => Words::Narrow(words),
            Self::Wide([_, _, words @ ..]) => Words::Wide(words),
        }
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
    pub(crate) fn words(&self) -> Words<'a> {
        self.place.words()
    }

    #[inline]
    pub(crate) fn tag(&self) -> u64 {
        self.place.tag()
    }

    /// Gives the place to a key.
    pub(crate) fn give(&self, tag: u64) {
        self.place.head().0.store(tag, Ordering::Relaxed);
    }
}

impl Drop for Locked<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: whoever locks next sees all that was written.
        self.place.head().1.store(self.at & LATEST, Ordering::Release);
    }
}

/// A number of places that keys are added to one at a time.
#[derive(Debug)]
pub(crate) struct Segment {
    lines: Box<[Line]>,
    places: usize,
    is_wide: bool,
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
    pub(crate) fn new(places: usize, is_wide: bool) -> Self {
        let lines = places.div_ceil(if is_wide { 1 } else { 2 });
        Self { lines: (0..lines).map(|_| Line::default()).collect(), places, is_wide, adding: Mutex::new(()) }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// The number of lines: a key belongs to one of them.
    #[inline]
    pub(crate) fn lines(&self) -> usize {
        self.lines.len()
    }

    pub(crate) fn place(&self, index: usize) -> Place<'_> {
        if self.is_wide {
            return Place::Wide(&self.lines[index].0);
        }
        let [first, second] = self.lines[index / 2].halves();
        Place::Narrow(if index.is_multiple_of(2) { first } else { second })
    }

    /// The places of a key that belongs to a line.
    fn probes(&self, line: usize) -> impl Iterator<Item = Place<'_>> {
        let (places, first) = (self.places, if self.is_wide { line } else { 2 * line });
        (first..first + PROBES.min(places)).map(move |i| self.place(if i < places { i } else { i - places }))
    }

    #[inline(always)]
    pub(crate) fn find(&self, tag: u64, line: usize) -> Option<Place<'_>> {
        // Most keys are where they belong.
        let words = &self.lines[line];
        if self.is_wide {
            let place = Place::Wide(&words.0);
            return if place.tag() == tag { Some(place) } else { self.find_further(tag, line) };
        }
        // Both tags are looked at before anything depends on them: which one it is, nobody can guess.
        let [first, second] = words.halves().map(Place::Narrow);
        let [is_first, is_second] = [first, second].map(|place| place.tag() == tag);
        if is_first | is_second { Some(if is_second { second } else { first }) } else { self.find_further(tag, line) }
    }

    #[inline(never)]
    fn find_further(&self, tag: u64, line: usize) -> Option<Place<'_>> {
        self.probes(line).take_while(|place| place.tag() != 0).find(|place| place.tag() == tag)
    }

    /// Locks the place of the key `tag`, which was not found, or one that it can have: the first that `is_idle`, or is free.
    pub(crate) fn add(&self, tag: u64, line: usize, is_idle: impl Fn(u64, Words<'_>) -> bool) -> Found<'_> {
        loop {
            // A panic elsewhere leaves nothing half done here.
            let adding = self.adding.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(place) = self.find(tag, line) {
                // Another thread has just added it. Its place is not waited for under the lock of whoever adds keys.
                drop(adding);
                let locked = place.lock();
                if locked.tag() == tag {
                    return Found::Known(locked);
                }
                continue;
            }
            let is_vacant = |tag, at, words: Words<'_>| tag == 0 || is_idle(at, words);
            for place in self.probes(line).filter(|place| is_vacant(place.tag(), place.at(), place.words())) {
                let locked = place.lock();
                if is_vacant(locked.tag(), locked.at, locked.words()) {
                    return Found::Free(locked, adding);
                }
            }
            return Found::Full;
        }
    }
}
