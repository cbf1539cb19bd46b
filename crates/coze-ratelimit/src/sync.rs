//! What the lock of a place is made of. The loom test (`tests/loom.rs`) puts loom's in their stead.

pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
use std::{hint, thread};

/// Turns before a waiting thread gives its processor away: whoever holds a lock of a few nanoseconds that long, was interrupted.
const SPINS: u32 = 10;

/// Waits a moment for another thread, each turn twice as long. Looking takes the line away from who works on it, and one who keeps it
/// for a few decisions is faster than two who take it from each other for each: so already the first turn is as long as several.
pub(crate) fn wait(turn: u32) {
    if turn < SPINS {
        (0..1 << (turn + 4).min(7)).for_each(|_| hint::spin_loop());
    } else {
        thread::yield_now();
    }
}
