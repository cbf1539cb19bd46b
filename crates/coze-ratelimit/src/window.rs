//! The second stage of a rate: a sliding window of one second, in ten slices of 100 ms.
//!
//! At most `limit` requests are admitted in the current slice and the nine before it. That is a promise about any ten
//! consecutive slices, and hence about any 900 ms, wherever they begin. It is none about any whole second: a second that
//! begins within a slice touches eleven, so it may see `limit` requests in its first slice and `limit` in its last.

pub(crate) const SLICES: usize = 10;
/// Nanoseconds of the window, and of a slice.
pub(crate) const SECOND: u64 = 1_000_000_000;
const SLICE: u64 = SECOND / SLICES as u64;

/// The number of the slice that `now` is in.
pub(crate) const fn slice(now: u64) -> u64 {
    now / SLICE
}

/// What one key used of the last second. The unused window is the default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    /// The number of the newest slice that counts anything. It never goes back.
    pub(crate) newest: u64,
    /// Requests per slice, the newest first.
    pub(crate) counts: [u32; SLICES],
}

impl Window {
    /// Whether `requests` fit now. At most `limit` ever fit.
    pub(crate) fn fits(&self, limit: u32, requests: u32, slice: u64) -> bool {
        let age = self.age(slice);
        let live = &self.counts[..SLICES - age];
        live.iter().copied().map(u64::from).sum::<u64>() <= room(limit, requests)
    }

    /// Nanoseconds from `now` until `requests` fit, if nobody else comes: zero if they fit now. At most `limit` ever fit.
    pub(crate) fn wait(&self, limit: u32, requests: u32, now: u64) -> u64 {
        let current = slice(now);
        let age = self.age(current);
        let live = &self.counts[..SLICES - age];
        let room = room(limit, requests);
        let mut used: u64 = live.iter().copied().map(u64::from).sum();
        if used <= room {
            return 0;
        }
        // The slices leave one by one, the oldest first; when the last one has left, there is room for any request.
        let leaver = live.iter().rposition(|count| {
            used -= u64::from(*count);
            used <= room
        });
        let slices = (SLICES - age - leaver.unwrap_or(0)) as u64 + self.newest.saturating_sub(current);
        slices.saturating_mul(SLICE) - now % SLICE
    }

    /// Counts requests, which fitted or are owed.
    pub(crate) fn take(&mut self, requests: u32, slice: u64) {
        let age = self.age(slice);
        if age > 0 {
            self.counts.copy_within(..SLICES - age, age);
            self.counts[..age].fill(0);
            self.newest = slice;
        }
        self.counts[0] = self.counts[0].saturating_add(requests);
    }

    /// Gives back requests that were counted in a slice, unless it has left.
    pub(crate) fn refund(&mut self, requests: u32, slice: u64) {
        let count = usize::try_from(self.newest.saturating_sub(slice)).ok().and_then(|age| self.counts.get_mut(age));
        if let Some(count) = count {
            *count = count.saturating_sub(requests);
        }
    }

    /// Forgets what is above the limit, the oldest first.
    pub(crate) fn skim(&mut self, limit: u32) {
        let mut room = limit;
        for count in &mut self.counts {
            *count = room.min(*count);
            room -= *count;
        }
    }

    /// How many slices have begun since the newest one that counts, as far as it matters. A slice before the newest counts
    /// as the newest.
    fn age(&self, slice: u64) -> usize {
        usize::try_from(slice.saturating_sub(self.newest)).map_or(SLICES, |age| age.min(SLICES))
    }
}

fn room(limit: u32, requests: u32) -> u64 {
    u64::from(limit.saturating_sub(requests))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn wait(window: &Window, limit: u32, requests: u32, now: u64) -> u64 {
        let wait = window.wait(limit, requests, now);
        assert_eq!(window.fits(limit, requests, now / SLICE), wait == 0);
        wait
    }

    fn admit(window: &mut Window, limit: u32, now: u64) -> bool {
        let admitted = wait(window, limit, 1, now) == 0;
        if admitted {
            window.take(1, now / SLICE);
        }
        admitted
    }

    /// Steps that dwell in a slice, go to the next ones, and leave the window.
    fn steps() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![0..10 * MS, 90 * MS..110 * MS, 800 * MS..1100 * MS, Just(100 * MS), Just(0)];
        prop::collection::vec(step, 1..200)
    }

    #[test]
    fn a_request_leaves_ten_slices_later() {
        let mut window = Window::default();
        assert!(admit(&mut window, 1, 99 * MS));
        assert_eq!(wait(&window, 1, 1, 99 * MS), 901 * MS);
        assert!(!admit(&mut window, 1, 1000 * MS - 1));
        assert!(admit(&mut window, 1, 1000 * MS));
    }

    #[test]
    fn a_second_that_begins_within_a_slice_may_see_twice_the_limit() {
        let mut window = Window::default();
        let admitted = [99, 99, 99, 999, 1000, 1000, 1000].map(|ms| admit(&mut window, 2, ms * MS));
        assert_eq!(admitted, [true, true, false, false, true, true, false]);
    }

    #[test]
    fn the_largest_limit_fits() {
        let mut window = Window { newest: 3, counts: [0, 0, 0, 0, u32::MAX - 1, 0, 0, 0, 0, 0] };
        assert!(admit(&mut window, u32::MAX, 300 * MS));
        assert!(!admit(&mut window, u32::MAX, 300 * MS));
    }

    proptest! {
        #[test]
        fn it_admits_what_ten_slices_have_room_for(limit in 1_u32..8, steps in steps()) {
            let (mut window, mut now, mut admitted) = (Window::default(), 0, Vec::<u64>::new());
            for step in steps {
                now += step;
                let used = admitted.iter().filter(|then| *then / SLICE + 10 > now / SLICE).count();
                prop_assert_eq!(admit(&mut window, limit, now), used < limit as usize);
                if used < limit as usize {
                    admitted.push(now);
                }
            }
            for first in &admitted {
                let in_900_ms = admitted.iter().filter(|then| (*first..=first + 900 * MS).contains(then)).count();
                prop_assert!(in_900_ms <= limit as usize);
            }
        }

        #[test]
        fn a_wait_is_exact(
            limit in 1_u32..20, ask in 1_u32..20, steps in steps(), further in 0_u64..1200 * MS, back in 0_u64..1200 * MS,
        ) {
            let (mut window, mut now) = (Window::default(), 0);
            for step in steps {
                now += step;
                admit(&mut window, limit, now);
            }
            let ask = ask.min(limit);
            let now = (now + further).saturating_sub(back);
            let exact = wait(&window, limit, ask, now);
            prop_assert_eq!(wait(&window, limit, ask, now + exact), 0);
            prop_assert!(exact == 0 || wait(&window, limit, ask, now + exact - 1) == 1);
        }

        #[test]
        fn no_time_overflows_and_time_that_goes_back_counts_as_the_last(
            limit in 1_u32..4, times in prop::collection::vec(prop_oneof![any::<u64>(), 0..3000 * MS], 1..50),
        ) {
            let (mut window, mut monotonic, mut last) = (Window::default(), Window::default(), 0);
            for now in times {
                // A refusal leaves no trace, so only an admission moves the clock.
                let admitted = admit(&mut window, limit, now);
                prop_assert_eq!(admitted, admit(&mut monotonic, limit, now.max(last)));
                last = if admitted { now.max(last) } else { last };
            }
        }
    }
}
