//! What is used of one key's quota, and how the words of a place hold it. Times are nanoseconds since a common beginning.
//!
//! A cell of a rate is narrow where all of its numbers are small: the level of the bucket in 48 bits, and eight for each slice of
//! the window. Both stages count the same requests, so they share one time.

use std::num::NonZeroU32;

use crate::{
    Quota, Rate,
    gcra::Bucket,
    place::{LATEST, Locked},
    sync::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
    },
    window::{SECOND, SLICES, Window, slice},
};

/// Nobody knows when a request in flight will end: another try is worth it in a second.
pub(crate) const ANOTHER_TRY: u64 = 1_000_000_000;

/// Bytes of the level in a narrow cell. The other ten are the counts of the window.
const LEVEL_BYTES: usize = 6;
const MAX_LEVEL: u64 = (1 << (8 * LEVEL_BYTES)) - 1;

const TEN: u64 = SLICES as u64;

/// Both stages of a rate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    bucket: Bucket,
    window: Window,
}

impl Usage {
    /// What a place holds. Its words are read one by one: without its lock they may not belong together.
    #[inline]
    pub(crate) fn load(at: u64, words: &[AtomicU64]) -> Self {
        let (level, counts) = match words {
            [low, high] => {
                let (low, high) = (low.load(Relaxed), high.load(Relaxed));
                let bytes = (u128::from(low) | u128::from(high) << 64).to_le_bytes();
                (low & MAX_LEVEL, std::array::from_fn(|slice| bytes[LEVEL_BYTES + slice].into()))
            }
            [level, pairs @ ..] => {
                let mut counts = [0; SLICES];
                for (pair, counts) in pairs.iter().zip(counts.chunks_exact_mut(2)) {
                    let [a, b, c, d, e, f, g, h] = pair.load(Relaxed).to_le_bytes();
                    counts.copy_from_slice(&[u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]);
                }
                (level.load(Relaxed), counts)
            }
            [] => (0, [0; SLICES]),
        };
        Self { bucket: Bucket { at, level }, window: Window { newest: slice(at), counts } }
    }

    #[inline]
    pub(crate) fn store(&self, locked: &mut Locked<'_>) {
        let (level, counts) = (self.bucket.level, self.window.counts);
        locked.at = self.bucket.at.min(LATEST);
        match locked.words() {
            [low, high] => {
                let mut bytes = u128::from(level.min(MAX_LEVEL)).to_le_bytes();
                for (byte, count) in bytes[LEVEL_BYTES..].iter_mut().zip(counts) {
                    *byte = u8::try_from(count).unwrap_or(u8::MAX);
                }
                let [low_bytes, high_bytes] = [0, 8].map(|from| std::array::from_fn(|i| bytes[from + i]));
                low.store(u64::from_le_bytes(low_bytes), Relaxed);
                high.store(u64::from_le_bytes(high_bytes), Relaxed);
            }
            [word, pairs @ ..] => {
                word.store(level, Relaxed);
                for (pair, counts) in pairs.iter().zip(counts.chunks_exact(2)) {
                    pair.store(u64::from(counts[0]) | u64::from(counts[1]) << 32, Relaxed);
                }
            }
            [] => {}
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
    pub(crate) fn refund(&mut self, rate: &Rate, requests: u32, then: u64) {
        self.bucket.refund(rate, requests);
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

/// [`Usage::wait`] is zero. It is the plain path, so the counts are added up as they are packed.
#[inline]
pub(crate) fn fits(rate: &Rate, at: u64, words: &[AtomicU64], requests: u32, now: u64) -> bool {
    let window = match slice(now).saturating_sub(slice(at)) {
        0 => used(words) <= rate.window().saturating_sub(requests).into(),
        1..TEN => Usage::load(at, words).window.fits(rate.window(), requests, slice(now)),
        TEN.. => true,
    };
    window && Bucket { at, level: level(words) }.fits(rate, requests, now)
}

/// [`Usage::take`] of requests that fit.
#[inline]
pub(crate) fn take(rate: &Rate, locked: &mut Locked<'_>, requests: u32, now: u64) {
    let (at, words) = (locked.at, locked.words());
    if slice(now) > slice(at) {
        let mut usage = Usage::load(at, words);
        usage.take(rate, requests, now);
        return usage.store(locked);
    }
    let mut bucket = Bucket { at, level: level(words) };
    bucket.take(rate, requests, now);
    // The newest count is in the lowest bits, and has room for what fits.
    match words {
        [low, _] => {
            let counts = (low.load(Relaxed) & !MAX_LEVEL) + (u64::from(requests) << (8 * LEVEL_BYTES));
            low.store(counts | bucket.level.min(MAX_LEVEL), Relaxed);
        }
        [level, newest, ..] => {
            level.store(bucket.level, Relaxed);
            newest.store(newest.load(Relaxed) + u64::from(requests), Relaxed);
        }
        _ => {}
    }
    locked.at = bucket.at.min(LATEST);
}

#[inline]
fn level(words: &[AtomicU64]) -> u64 {
    let level = words[0].load(Relaxed);
    if words.len() == 2 { level & MAX_LEVEL } else { level }
}

/// The sum of the counts.
#[inline]
fn used(words: &[AtomicU64]) -> u64 {
    match words {
        [low, high] => {
            let (low, high) = (low.load(Relaxed) >> (8 * LEVEL_BYTES), high.load(Relaxed));
            // Pairs of bytes, then all pairs at once, into the highest one.
            let every_second = 0x00FF_00FF_00FF_00FF;
            let pairs = (high & every_second) + (high >> 8 & every_second);
            (low & 0xFF) + (low >> 8) + (pairs.wrapping_mul(0x0001_0001_0001_0001) >> 48)
        }
        [_, pairs @ ..] => {
            pairs.iter().map(|pair| pair.load(Relaxed)).map(|pair| (pair & u64::from(u32::MAX)) + (pair >> 32)).sum()
        }
        [] => 0,
    }
}

/// The requests in flight of a place: the first word of its cell.
///
/// They are counted up under the lock and counted down without it, so whoever holds the lock sees at least those that are there.
pub(crate) fn in_flight(words: &[AtomicU64]) -> &AtomicU64 {
    &words[0]
}

/// Whether the cell of a place is as good as new.
pub(crate) fn is_idle(quota: &Quota, at: u64, words: &[AtomicU64], now: u64) -> bool {
    match quota {
        Quota::Rate(rate) => Usage::load(at, words).is_idle(rate, now),
        // Acquire: what a request did before it ended happened before its place is given away.
        Quota::Concurrency(_) => in_flight(words).load(Acquire) == 0,
    }
}

#[inline]
pub(crate) fn fits_in_flight(limit: NonZeroU32, requests: u32, words: &[AtomicU64]) -> bool {
    in_flight(words).load(Relaxed) <= limit.get().saturating_sub(requests).into()
}

#[inline]
pub(crate) fn hold(locked: &mut Locked<'_>, requests: u32, now: u64) {
    in_flight(locked.words()).fetch_add(requests.into(), Relaxed);
    locked.at = now.max(locked.at);
}
