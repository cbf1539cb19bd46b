//! Every order in which two threads can come to the account of a budget.

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

#[path = "../src/word.rs"]
mod word;

use loom::{sync::Arc, thread};
use word::{Step, Word};

/// Did it take something out?
fn is_taken(step: Option<Step>) -> bool {
    step.is_some_and(|step| step.after < step.before)
}

/// How many of the two find what they want, whatever the order; and then what is left, one by one.
fn both(
    balance: u64,
    one: fn(&Word) -> bool,
    two: fn(&Word) -> bool,
    check: impl Fn([bool; 2], usize) + Send + Sync + 'static,
) {
    loom::model(move || {
        let word = Arc::new(Word::new(balance));
        let other = {
            let word = word.clone();
            thread::spawn(move || one(&word))
        };
        let mine = two(&word);
        let found = [other.join().expect("it does not panic"), mine];
        check(found, (0..9).filter(|_| is_taken(word.take(1, 9, 0, 0))).count());
    });
}

#[test]
fn the_last_retry_is_given_once() {
    let take = |word: &Word| is_taken(word.take(1, 9, 0, 0));
    both(1, take, take, |found, left| assert_eq!((found.iter().filter(|found| **found).count(), left), (1, 0)));
}

#[test]
fn no_deposit_is_lost() {
    let add = |word: &Word| {
        word.add(2, 8, 9);
        true
    };
    both(1, add, add, |_, left| assert_eq!(left, 5));
    both(1, add, |word| is_taken(word.take(1, 9, 0, 0)), |found, left| assert_eq!((found[1], left), (true, 2)));
}

#[test]
fn nothing_is_put_in_above_the_most() {
    let add = |word: &Word| {
        word.add(5, 5, 6);
        true
    };
    both(1, add, add, |_, left| assert_eq!(left, 6));
}

#[test]
fn a_millisecond_is_paid_for_once() {
    // Two at the same time, which has brought 3; and one of them with a clock that it read a little earlier.
    let take = |word: &Word| word.take(2, 9, 3, 1).is_some();
    both(0, take, take, |found, left| assert_eq!((found.iter().filter(|found| **found).count(), left), (1, 1)));
    both(0, take, |word| word.take(0, 9, 3, 0).is_some(), |found, left| assert_eq!((found, left), ([true; 2], 1)));
}
