use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// When an answer is late, so that a request that only reads is sent a second time beside the first. Clones share what was seen.
#[derive(Clone, Debug)]
pub struct Hedge(Delay);

#[derive(Clone, Debug)]
enum Delay {
    Fixed(Duration),
    Share(f64, Arc<Mutex<Seen>>),
}

/// How long answers took, counted in classes: four for each doubling, from one millisecond to more than a minute.
#[derive(Debug)]
struct Seen {
    classes: [u32; CLASSES],
    count: u32,
}

const CLASSES: usize = 68;
/// Before so many answers nobody knows what is late.
const ENOUGH: u32 = 100;
/// After so many answers all of them count for half, so that old ones are forgotten.
const MANY: u32 = 2000;

impl Hedge {
    /// Late after this time.
    #[must_use]
    pub const fn after(delay: Duration) -> Self {
        Self(Delay::Fixed(delay))
    }

    /// Late when it takes longer than this share of the latest answers did: with 0.95 one in twenty. Nothing is late before
    /// 100 answers were seen. The time is known to a fifth, and rounded up.
    #[must_use]
    pub fn percentile(share: f64) -> Self {
        let seen = Seen { classes: [0; CLASSES], count: 0 };
        Self(Delay::Share(share.clamp(0.0, 1.0), Arc::new(Mutex::new(seen))))
    }

    pub(crate) fn delay(&self) -> Option<Duration> {
        match &self.0 {
            Delay::Fixed(delay) => Some(*delay),
            Delay::Share(share, seen) => seen.lock().unwrap_or_else(PoisonError::into_inner).delay(*share),
        }
    }

    /// Learns from an answer.
    pub(crate) fn record(&self, took: Duration) {
        if let Delay::Share(_, seen) = &self.0 {
            seen.lock().unwrap_or_else(PoisonError::into_inner).record(took);
        }
    }
}

impl Seen {
    fn record(&mut self, took: Duration) {
        self.classes[class(took)] += 1;
        self.count += 1;
        if self.count >= MANY {
            self.classes.iter_mut().for_each(|count| *count /= 2);
            self.count = self.classes.iter().sum();
        }
    }

    fn delay(&self, share: f64) -> Option<Duration> {
        let enough = share * f64::from(self.count);
        let mut sum = 0;
        let reached = self.classes.iter().position(|count| {
            sum += count;
            f64::from(sum) >= enough
        });
        reached.filter(|_| self.count >= ENOUGH).map(longest)
    }
}

/// The first class whose longest time is enough.
fn class(took: Duration) -> usize {
    (0..CLASSES - 1).find(|class| took <= longest(*class)).unwrap_or(CLASSES - 1)
}

/// The longest time of a class: 1, 1.25, 1.5, 1.75, 2, 2.5 ms and so on.
fn longest(class: usize) -> Duration {
    Duration::from_micros((1000 + 250 * (class as u64 % 4)) << (class / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_fixed_time_learns_nothing() {
        let hedge = Hedge::after(5 * MS);
        (0..200).for_each(|_| hedge.record(MS));
        assert_eq!(hedge.delay(), Some(5 * MS));
    }

    #[test]
    fn nothing_is_late_before_enough_was_seen() {
        let hedge = Hedge::percentile(0.95);
        (0..99).for_each(|_| hedge.record(MS));
        assert_eq!(hedge.delay(), None);
        let clone = hedge.clone();
        clone.record(MS);
        assert_eq!(hedge.delay(), Some(MS));
    }

    #[test]
    fn late_is_what_takes_longer_than_the_share() {
        for (share, least) in [(0.0, 1), (0.5, 500), (0.95, 950), (0.99, 990), (1.0, 1000), (f64::INFINITY, 1000)] {
            let hedge = Hedge::percentile(share);
            (1..=1000).for_each(|ms| hedge.record(ms * MS));
            let delay = hedge.delay().expect("enough");
            assert!(delay >= least * MS && delay <= least * MS * 5 / 4, "{share}: {delay:?}");
        }
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let hedge = Hedge::percentile(0.9);
        (0..5000).for_each(|_| hedge.record(1000 * MS));
        (0..8000).for_each(|_| hedge.record(2 * MS));
        assert_eq!(hedge.delay(), Some(2 * MS));
    }

    #[test]
    fn no_time_is_too_long_or_too_short() {
        let hedge = Hedge::percentile(1.0);
        (0..100).for_each(|_| hedge.record(Duration::ZERO));
        assert_eq!(hedge.delay(), Some(MS));
        hedge.record(Duration::MAX);
        assert!(hedge.delay() > Some(Duration::from_secs(60)));
    }
}
