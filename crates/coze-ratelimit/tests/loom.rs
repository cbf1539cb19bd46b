//! The lock of a place and the adding of keys under loom, which tries every order in which two or three threads may run.

// The atomics are loom's, the code is the crate's own file.
mod sync {
    pub(crate) use loom::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    };

    pub(crate) fn wait(_: u32) {
        loom::thread::yield_now();
    }
}

#[allow(dead_code, reason = "the tests need less of it than the crate")]
#[path = "../src/place.rs"]
mod place;

use loom::{sync::Arc, thread};
use place::{Found, Locked, Segment, Words};
use sync::Ordering::Relaxed;

/// As the crate does it: the place of the key, which is known or added, or none.
fn lock(segment: &Segment, tag: u64, is_idle: impl Fn(u64) -> bool) -> Option<Locked<'_>> {
    if let Some(locked) = segment.find(tag, 0).map(place::Place::lock).filter(|locked| locked.tag() == tag) {
        return Some(locked);
    }
    match segment.add(tag, 0, |at, _| is_idle(at)) {
        Found::Known(locked) => Some(locked),
        Found::Free(mut locked, _adding) => {
            locked.at = 0;
            cell(&locked).iter().for_each(|word| word.store(0, Relaxed));
            locked.give(tag);
            Some(locked)
        }
        Found::Full => None,
    }
}

fn cell<'a>(locked: &Locked<'a>) -> &'a [sync::AtomicU64; 2] {
    let Words::Narrow(words) = locked.words() else { panic!("the places are narrow") };
    words
}

/// Counts in both words, one after the other: whoever comes in between would see them differ.
fn count(mut locked: Locked<'_>) -> u64 {
    let [first, second] = cell(&locked);
    let counted = first.load(Relaxed);
    assert_eq!(second.load(Relaxed), counted);
    first.store(counted + 1, Relaxed);
    second.store(counted + 1, Relaxed);
    locked.at += 1;
    counted + 1
}

#[test]
fn nobody_reads_or_writes_a_locked_place() {
    loom::model(|| {
        let segment = Arc::new(Segment::new(1, false));
        let threads = [(); 2].map(|()| {
            let segment = segment.clone();
            thread::spawn(move || count(segment.place(0).lock()))
        });
        let mut counted = threads.map(|thread| thread.join().expect("no panic"));
        counted.sort_unstable();
        assert_eq!(counted, [1, 2]);
        assert_eq!(segment.place(0).lock().at, 2);
    });
}

#[test]
fn a_key_that_two_threads_add_at_once_gets_one_place() {
    loom::model(|| {
        let segment = Arc::new(Segment::new(2, false));
        let other = segment.clone();
        let thread = thread::spawn(move || lock(&other, 7, |_| false).map(count));
        let mut counted = [lock(&segment, 7, |_| false).map(count), thread.join().expect("no panic")];
        counted.sort_unstable();
        assert_eq!(counted, [Some(1), Some(2)]);
    });
}

#[test]
fn an_idle_place_is_given_to_another_key_and_never_used_by_two() {
    loom::model(|| {
        let segment = Arc::new(Segment::new(1, false));
        // Key 7 was used once; it is idle as long as nobody uses it again.
        assert_eq!(lock(&segment, 7, |_| false).map(count), Some(1));
        let is_idle = |at| at <= 1;
        let other = segment.clone();
        let thread = thread::spawn(move || lock(&other, 8, is_idle).map(count));
        let seven = lock(&segment, 7, is_idle).map(count);
        let eight = thread.join().expect("no panic");
        let place = segment.place(0).lock();
        match (seven, eight) {
            (Some(2), None) => assert_eq!(place.tag(), 7, "it was used again before 8 looked"),
            // 8 had it, and used it once: idle again, so 7 may have got it back anew.
            (None, Some(1)) => assert_eq!(place.tag(), 8),
            (Some(1), Some(1)) => assert!([7, 8].contains(&place.tag())),
            other => panic!("{other:?}"),
        }
    });
}
