//! What is used of one key's quota, and how the words of a place hold it. Times are nanoseconds since a common beginning.
//!
//! A cell of a rate is narrow where all of its numbers are small: the level of the bucket in 48 bits, and eight for each slice of
//! the window. Both stages count the same requests, so they share one time.

use std::num::NonZeroU32;

use crate::{
    Quota, Rate,
    gcra::Bucket,
    place::{LATEST, Locked, Words},
    sync::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
    },
    window::{SECOND, SLICES, Window, slice},
};

/// Nobody knows when a request in flight will end: another try is worth it in a second.
pub(crate) const ANOTHER_TRY: u64 = 1_000_000_000;

/// Bytes of the level in a narrow cell, which is one number: above the level a byte for each slice of the window, the newest first.
const LEVEL_BYTES: usize = 6;
const MAX_LEVEL: u64 = (1 << (8 * LEVEL_BYTES)) - 1;

/// Both stages of a rate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    bucket: Bucket,
    window: Window,
}

impl Usage {
    /// What a place holds. Its words are read one by one: without its lock they may not belong together.
    pub(crate) fn load(at: u64, words: Words<'_>) -> Self {
        let mut counts = [0; SLICES];
        match words {
            Words::Narrow(words) => {
                let bytes = number(words).to_le_bytes();
                counts.iter_mut().zip(&bytes[LEVEL_BYTES..]).for_each(|(count, byte)| *count = (*byte).into());
            }
            Words::Wide([_, pairs @ ..]) => {
                for (pair, counts) in pairs.iter().zip(counts.chunks_exact_mut(2)) {
                    counts.copy_from_slice(&halves(pair.load(Relaxed)));
                }
            }
        }
        Self { bucket: Bucket { at, level: level(words) }, window: Window { newest: slice(at), counts } }
    }

    pub(crate) fn store(&self, locked: &mut Locked<'_>) {
        let (level, counts) = (self.bucket.level, self.window.counts);
        locked.at = self.bucket.at.min(LATEST);
        match locked.words() {
            Words::Narrow(words) => {
                let mut bytes = u128::from(level.min(MAX_LEVEL)).to_le_bytes();
                for (byte, count) in bytes[LEVEL_BYTES..].iter_mut().zip(counts) {
                    *byte = u8::try_from(count).unwrap_or(u8::MAX);
                }
                let [low, high] = split(u128::from_le_bytes(bytes));
                words[0].store(low, Relaxed);
                words[1].store(high, Relaxed);
            }
            Words::Wide([word, pairs @ ..]) => {
                word.store(level, Relaxed);
                for (pair, counts) in pairs.iter().zip(counts.chunks_exact(2)) {
                    pair.store(u64::from(counts[0]) | u64::from(counts[1]) << 32, Relaxed);
                }
            }
        }
    }

    /// Whether the cells of a rate are narrow.
    pub(crate) fn is_narrow(rate: &Rate) -> bool {
        u64::from(rate.burst.get()) * SECOND <= MAX_LEVEL && u8::try_from(rate.window()).is_ok()
    }

    /// Time until so many requests fit, if nobody else comes: zero if they fit now.
    pub(crate) fn wait(&self, rate: &Rate, requests: u32, now: u64) -> u64 {
        let window = self.window.wait(rate.window(), requests, now);
        self.bucket.wait(rate, requests, now).max(window)
    }

    /// Time until so many requests fit, when others have taken so many first, each as soon as it fits.
    pub(crate) fn wait_behind(&self, rate: &Rate, ahead: u32, requests: u32, now: u64) -> u64 {
        let Self { mut bucket, mut window } = *self;
        bucket.take(rate, ahead, now);
        // What is ahead fills whole windows, and a part of the next one.
        let windows = u64::from(ahead / rate.window()) * SECOND;
        window.take(ahead % rate.window(), slice(now));
        bucket.wait(rate, requests, now).max(windows + window.wait(rate.window(), requests, now))
    }

    /// Time until the full quota fits: what there is in a second or a minute, or as much of it as the burst allows at the same moment.
    pub(crate) fn reset(&self, rate: &Rate, now: u64) -> u64 {
        let full = rate.requests.get();
        let window = self.window.wait(rate.window(), full, now);
        self.bucket.wait(rate, full.min(rate.burst.get()), now).max(window)
    }

    pub(crate) fn take(&mut self, rate: &Rate, requests: u32, now: u64) {
        self.bucket.take(rate, requests, now);
        self.window.take(requests, slice(now));
    }

    /// Counts requests whether they fit or not.
    pub(crate) fn charge(&mut self, rate: &Rate, requests: u32, now: u64) {
        self.bucket.charge(rate, requests, now);
        self.window.take(requests, slice(now));
    }

    /// Gives back requests that were taken at `then`.
    pub(crate) fn refund(&mut self, rate: &Rate, requests: u32, then: u64, now: u64) {
        self.bucket.refund(rate, requests, then, now);
        self.window.refund(requests, slice(then));
    }

    /// Forgets what is used above the quota.
    pub(crate) fn skim(&mut self, rate: &Rate) {
        self.bucket.skim(rate);
        self.window.skim(rate.window());
    }

    /// Whether it is as good as new.
    pub(crate) fn is_idle(&self, rate: &Rate, now: u64) -> bool {
        self.window.fits(rate.window(), rate.window(), slice(now)) && self.bucket.fits(rate, rate.burst.get(), now)
    }
}

/// What a cell becomes if a request is admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Next {
    /// Its time and its first two words.
    Known { at: u64, words: [u64; 2] },
    /// All of its words change: that takes longer, and is done where it is needed.
    Later,
}

/// What becomes of a cell by a request for `cost`, if there is room for `ask`, which is no less: so no count that is kept overflows.
///
/// It is the plain path, so the counts are added up as they are packed, and nothing is computed twice.
#[inline(always)]
pub(crate) fn next(rate: &Rate, at: u64, words: Words<'_>, ask: u32, cost: u32, now: u64) -> Option<Next> {
    let age = slice(now).saturating_sub(slice(at));
    let mut bucket = Bucket { at, level: level(words) };
    let fits = bucket.fits(rate, ask, now);
    bucket.take(rate, cost, now);
    let (used, words) = match words {
        Words::Narrow(words) => {
            let counts = aged(number(words), age);
            let next =
                counts.wrapping_add(u128::from(cost) << (8 * LEVEL_BYTES)) | u128::from(bucket.level & MAX_LEVEL);
            (sum(counts), split(next))
        }
        Words::Wide([_, pairs @ ..]) if age == 0 => {
            let sum =
                pairs.iter().map(|pair| halves(pair.load(Relaxed))).map(|[a, b]| u64::from(a) + u64::from(b)).sum();
            (sum, [bucket.level, pairs[0].load(Relaxed).wrapping_add(cost.into())])
        }
        Words::Wide(_) => return fits_later(rate, at, words, ask, now).then_some(Next::Later),
    };
    let fits = fits && used <= rate.window().saturating_sub(ask).into();
    fits.then_some(Next::Known { at: bucket.at.min(LATEST), words })
}

/// Whether requests fit in a later slice than the last one that counts.
#[cold]
fn fits_later(rate: &Rate, at: u64, words: Words<'_>, requests: u32, now: u64) -> bool {
    Usage::load(at, words).wait(rate, requests, now) == 0
}

/// Takes requests that fitted: `next` is what became clear then.
#[inline]
pub(crate) fn take(next: Next, rate: &Rate, locked: &mut Locked<'_>, requests: u32, now: u64) {
    let Next::Known { at, words } = next else { return take_later(rate, locked, requests, now) };
    match locked.words() {
        Words::Narrow([first, second]) | Words::Wide([first, second, ..]) => {
            first.store(words[0], Relaxed);
            second.store(words[1], Relaxed);
        }
    }
    locked.at = at;
}

#[cold]
fn take_later(rate: &Rate, locked: &mut Locked<'_>, requests: u32, now: u64) {
    let mut usage = Usage::load(locked.at, locked.words());
    usage.take(rate, requests, now);
    usage.store(locked);
}

#[inline]
fn level(words: Words<'_>) -> u64 {
    match words {
        Words::Narrow([low, _]) => low.load(Relaxed) & MAX_LEVEL,
        Words::Wide([level, ..]) => level.load(Relaxed),
    }
}

/// A narrow cell.
#[inline]
fn number([low, high]: &[AtomicU64; 2]) -> u128 {
    u128::from(low.load(Relaxed)) | u128::from(high.load(Relaxed)) << 64
}

/// Its words: the lower half, and the upper one.
#[inline]
fn split(number: u128) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, upper @ ..] = number.to_le_bytes();
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes(upper)]
}

/// The counts of a narrow cell so many slices later, where they are in it: the oldest go over its edge.
#[inline]
fn aged(number: u128, slices: u64) -> u128 {
    (number & !u128::from(MAX_LEVEL)) << (8 * slices.min(SLICES as u64))
}

/// The sum of those counts: bytes to pairs, then all pairs at once, into the highest one.
#[inline]
fn sum(counts: u128) -> u64 {
    let every_second = 0x00FF_00FF_00FF_00FF_00FF_00FF_00FF_00FF;
    let [low, high] = split((counts & every_second) + (counts >> 8 & every_second));
    (low + high).wrapping_mul(0x0001_0001_0001_0001) >> 48
}

#[inline]
fn halves(pair: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = pair.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// The requests in flight of a place: the first word of its cell.
///
/// They are counted up under the lock and counted down without it, so whoever holds the lock sees at least those that are there.
#[inline]
pub(crate) fn in_flight(words: Words<'_>) -> &AtomicU64 {
    match words {
        Words::Narrow([first, ..]) | Words::Wide([first, ..]) => first,
    }
}

/// Whether the cell of a place is as good as new.
pub(crate) fn is_idle(quota: &Quota, at: u64, words: Words<'_>, now: u64) -> bool {
    match quota {
        Quota::Rate(rate) => Usage::load(at, words).is_idle(rate, now),
        // Acquire: what a request did before it ended happened before its place is given away.
        Quota::Concurrency(_) => in_flight(words).load(Acquire) == 0,
    }
}

#[inline]
pub(crate) fn fits_in_flight(limit: NonZeroU32, requests: u32, words: Words<'_>) -> bool {
    in_flight(words).load(Relaxed) <= limit.get().saturating_sub(requests).into()
}

#[inline]
pub(crate) fn hold(locked: &mut Locked<'_>, requests: u32, now: u64) {
    in_flight(locked.words()).fetch_add(requests.into(), Relaxed);
    locked.at = now.max(locked.at);
}
