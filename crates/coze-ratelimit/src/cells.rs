use std::{
    fmt,
    num::{NonZeroU32, NonZeroU64},
    sync::{OnceLock, atomic::AtomicU32},
};

use crate::{
    Quota, cell,
    hash::KeyHash,
    level::KeyRef,
    place::{Found, Locked, PROBES, Place, Segment, Words},
    slot::Slot,
    sync::Ordering,
};

/// Places of a segment. They are reserved together when the first key comes to one of them: 128 KiB, or 256 if they are wide.
const SEGMENT: usize = 4096;

/// The sketch: so many rows of so many places each.
pub(crate) const ROWS: usize = 4;
const COLUMNS: usize = 1024;

/// The cells of one level, found by a keyed hash of the key: one for each of a bounded number of keys, and a sketch for all others.
///
/// The sketch is a count-min sketch (Cormode and Muthukrishnan 2005) whose counters are whole cells. A key has a cell in each row,
/// which it shares with others: a cell has used at least what the key has. The key has room if any of its cells has, and takes
/// from all of them. So it never gets more than its quota, and gets less only if all four cells are used up by others: if those
/// took a times a quota in the last second, with a probability of at most (a / 1024)⁴ (Markov's inequality, in each row).
pub(crate) struct Cells {
    hash: KeyHash,
    /// Whether all keys are the same one.
    is_single: bool,
    is_wide: bool,
    places: usize,
    segments: Box<[OnceLock<Segment>]>,
    sketch: OnceLock<Segment>,
    /// The lowest rate of any key: none is taken for idle before it would be at this rate, as nobody knows whose a cell is.
    slowest: AtomicU32,
}

impl Cells {
    pub(crate) fn new(is_wide: bool, max_keys: usize) -> Self {
        // Half as many places again as keys, so that few keys find all places taken that they could have.
        let places = if max_keys <= PROBES { max_keys.max(1) } else { max_keys.saturating_add(max_keys / 2) };
        let count = places.div_ceil(SEGMENT);
        Self {
            hash: KeyHash::new(),
            is_single: max_keys == 0,
            is_wide,
            places: places.div_ceil(count),
            segments: (0..count).map(|_| OnceLock::new()).collect(),
            sketch: OnceLock::new(),
            slowest: AtomicU32::new(u32::MAX),
        }
    }

    pub(crate) fn set_slowest(&self, per_period: NonZeroU32) {
        self.slowest.store(per_period.get(), Ordering::Relaxed);
    }

    /// The hash of a key. Zero means a free place.
    #[inline(always)]
    pub(crate) fn hash(&self, key: &KeyRef<'_>) -> NonZeroU64 {
        let whose = key.tenant.map(|tenant| tenant.as_str().as_bytes());
        let hash = if self.is_single { 1 } else { self.hash.of(whose, key.id.as_bytes()) };
        NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN)
    }

    /// Locks the cell of the key with this hash, if it has one of its own. A request locks one key of a level at a time.
    #[inline(always)]
    pub(crate) fn known(&self, hash: NonZeroU64) -> Option<Locked<'_>> {
        let hash = hash.get();
        let (segment, line) = self.home(hash);
        segment.find(hash, line).map(Place::lock).filter(|locked| locked.tag() == hash)
    }

    /// Locks the cells of the key with this hash, which was not known before.
    #[cold]
    pub(crate) fn add(&self, quota: &Quota, hash: NonZeroU64, now: u64) -> Slot<'_> {
        let hash = hash.get();
        let (segment, line) = self.home(hash);
        let slowest = quota.at_most(self.slowest.load(Ordering::Relaxed));
        let is_idle = |at, words: Words<'_>| cell::is_idle(&slowest, at, words, now);
        match segment.add(hash, line, is_idle) {
            Found::Known(locked) => Slot::Known(locked),
            // What the sketch may know of the key is not forgotten.
            Found::Free(locked, adding) if self.is_unknown_to_sketch(hash, is_idle) => Slot::New(locked, hash, adding),
            Found::Free(..) | Found::Full => Slot::Shared(self.shared(hash)),
        }
    }

    /// The segment of a key, and its line there: the halves of the hash, scaled to the number of segments and lines.
    #[inline]
    fn home(&self, hash: u64) -> (&Segment, usize) {
        let scale = |half: u64, to: usize| {
            usize::try_from((half * to as u64) >> 32).expect("less than the number it is scaled to")
        };
        let segment = &self.segments[scale(hash >> 32, self.segments.len())];
        let segment = segment.get_or_init(|| Segment::new(self.places, self.is_wide));
        (segment, scale(hash & u64::from(u32::MAX), segment.lines()))
    }

    fn is_unknown_to_sketch(&self, hash: u64, is_idle: impl Fn(u64, Words<'_>) -> bool) -> bool {
        let sketch = self.sketch.get();
        sketch.is_none_or(|sketch| places(sketch, hash).map(Place::lock).any(|cell| is_idle(cell.at, cell.words())))
    }

    /// The cells of a key in the sketch: always locked in the order of the rows.
    #[cold]
    fn shared(&self, hash: u64) -> [Locked<'_>; ROWS] {
        let sketch = self.sketch.get_or_init(|| Segment::new(ROWS * COLUMNS, self.is_wide));
        let mut places = places(sketch, hash);
        std::array::from_fn(|_| places.next().expect("a place in each row").lock())
    }

    /// Ends requests in flight: without a lock, however their permit is dropped. Their cell is where it was, since it is not idle.
    pub(crate) fn end(&self, hash: NonZeroU64, requests: u32, is_shared: bool) {
        let hash = hash.get();
        let end = |place: Place<'_>| {
            // Release: what the requests did happened before their place is given away. In one order with `Line::given_back`, so that
            // whoever waits for a place sees that it is free, or is seen.
            cell::in_flight(place.words()).fetch_sub(requests.into(), Ordering::SeqCst);
        };
        if is_shared {
            let sketch = self.sketch.get();
            sketch.into_iter().flat_map(|sketch| places(sketch, hash)).for_each(end);
        } else {
            let (segment, line) = self.home(hash);
            segment.find(hash, line).into_iter().for_each(end);
        }
    }
}

/// The places of a key in the sketch: one in each row, by 16 other bits of the hash.
fn places(sketch: &Segment, hash: u64) -> impl Iterator<Item = Place<'_>> {
    (0..ROWS).map(move |row| {
        let column = usize::try_from((hash >> (16 * row)) % COLUMNS as u64).expect("a column");
        sketch.place(row * COLUMNS + column)
    })
}

impl fmt::Debug for Cells {
    /// Without the cells: they are many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cells").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{panic, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::Rate;

    const SECOND: u64 = 1_000_000_000;

    fn n(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).expect("not zero")
    }

    fn rate(per_second: u32) -> Quota {
        Rate::per_second(n(per_second)).into()
    }

    fn hash(cells: &Cells, key: &str) -> NonZeroU64 {
        cells.hash(&KeyRef { tenant: None, id: key.into() })
    }

    /// Whether a request is admitted, and if so whether the sketch has it.
    fn ask(cells: &Cells, quota: &Quota, hash: NonZeroU64, now: u64) -> Option<bool> {
        let slot = cells.known(hash).map_or_else(|| cells.add(quota, hash, now), Slot::Known);
        slot.fits(quota, 1, now).then(|| slot.take(quota, 1, now))
    }

    fn admit(cells: &Cells, quota: &Quota, key: &str, now: u64) -> bool {
        ask(cells, quota, hash(cells, key), now).is_some()
    }

    fn known(cells: &Cells, key: &str) -> bool {
        cells.known(hash(cells, key)).is_some()
    }

    fn bytes(cells: &Cells) -> usize {
        cells.segments.iter().filter_map(OnceLock::get).chain(cells.sketch.get()).map(Segment::bytes).sum()
    }

    #[test]
    fn there_is_room_for_all_keys_and_the_memory_is_bounded() {
        for max_keys in [1, 2, 10, 64, 65, 255, 1000, 4096, 65_536] {
            for (per_second, bytes_per_place) in [(255, 32), (256, 64)] {
                let (quota, cells) = (rate(per_second), Cells::new(per_second > 255, max_keys));
                let remembered = (0..max_keys).filter(|key| {
                    assert!(admit(&cells, &quota, &key.to_string(), 0));
                    known(&cells, &key.to_string())
                });
                let remembered = remembered.count();
                assert!(remembered + 1 + max_keys / 100 >= max_keys, "{remembered} of {max_keys}");
                let most = (max_keys + max_keys / 2 + 2).next_multiple_of(cells.segments.len()) * bytes_per_place;
                assert!(bytes(&cells) <= most.max(64) + 4096 * bytes_per_place, "{} of {most}", bytes(&cells));
            }
        }
    }

    #[test]
    fn a_flood_of_keys_costs_fixed_memory_and_a_known_key_stays_exact() {
        let (quota, cells) = (rate(5), Cells::new(false, 1000));
        let (mut hot, mut invented) = (0, 0_usize);
        for flood in 0..20_000_u64 {
            // Twenty thousand keys within a slice of 100 ms, so that none of them is ever idle.
            let now = flood * 5000;
            if flood % 20 == 0 {
                hot += u32::from(admit(&cells, &quota, "hot", now));
            }
            invented += usize::from(admit(&cells, &quota, &flood.to_string(), now));
        }
        assert_eq!(hot, 5, "the known key gets its quota, no more and no less");
        assert!(bytes(&cells) <= (1500 + ROWS * COLUMNS) * 32 + 64, "{}", bytes(&cells));
        assert!(invented <= 1500 + 5 * ROWS * COLUMNS, "{invented}: no more than the cells have quotas");
    }

    #[test]
    fn idle_keys_make_room_for_new_ones() {
        let (quota, cells) = (rate(1), Cells::new(false, 10));
        for key in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            assert!(admit(&cells, &quota, key, 0) && known(&cells, key));
        }
        assert!(admit(&cells, &quota, "k", 0) && !known(&cells, "k"), "the sketch has it");
        assert!(!admit(&cells, &quota, "k", 0), "and keeps to its quota");
        for key in ["l", "m", "n", "o", "p", "q", "r", "s", "t", "u"] {
            assert!(admit(&cells, &quota, key, 2 * SECOND) && known(&cells, key), "{key} has the place of an idle one");
        }
        assert!(admit(&cells, &quota, "v", 2 * SECOND) && !known(&cells, "v"), "nobody is idle");
    }

    #[test]
    fn a_key_that_the_sketch_knows_gets_no_new_quota_with_a_place_of_its_own() {
        let (quota, cells) = (rate(2), Cells::new(false, 1));
        assert!(admit(&cells, &quota, "a", 0));
        assert!(admit(&cells, &quota, "b", SECOND / 2));
        assert!(!known(&cells, "b"));
        // The only place is idle again, but the sketch still counts one of b.
        assert!(admit(&cells, &quota, "b", SECOND));
        assert!(!known(&cells, "b"));
        assert!(!admit(&cells, &quota, "b", SECOND));
        assert!(admit(&cells, &quota, "b", 3 * SECOND));
        assert!(known(&cells, "b"));
    }

    #[test]
    fn a_key_with_a_request_in_flight_is_not_forgotten() {
        let (quota, cells) = (Quota::Concurrency(NonZeroU32::MIN), Cells::new(false, 1));
        let [a, b] = ["a", "b"].map(|key| hash(&cells, key));
        assert_eq!(ask(&cells, &quota, a, 0), Some(false));
        assert_eq!(ask(&cells, &quota, b, 100 * SECOND), Some(true), "in the sketch");
        assert_eq!(ask(&cells, &quota, b, 100 * SECOND), None);
        assert_eq!(ask(&cells, &quota, a, 100 * SECOND), None, "still known");
        cells.end(a, 1, false);
        assert_eq!(ask(&cells, &quota, b, 100 * SECOND), None, "still in the sketch");
        cells.end(b, 1, true);
        assert_eq!(ask(&cells, &quota, b, 100 * SECOND), Some(false), "in the place of a");
        assert_eq!(ask(&cells, &quota, a, 100 * SECOND), Some(true));
    }

    #[test]
    fn what_is_not_taken_leaves_no_trace() {
        let (quota, cells) = (rate(1), Cells::new(false, 1000));
        for key in 0..1000 {
            let hash = hash(&cells, &key.to_string());
            assert!(cells.add(&quota, hash, 0).fits(&quota, 1, 0));
            assert!(cells.known(hash).is_none());
        }
    }

    #[test]
    fn the_sketch_refuses_a_new_key_as_seldom_as_it_says() {
        // Half as many requests as there are columns have used up at most that many cells of a row: one in sixteen is refused.
        let (quota, cells) = (rate(1), Cells::new(false, 1));
        assert!(admit(&cells, &quota, "known", 0));
        let admitted = (0..512).filter(|key| admit(&cells, &quota, &key.to_string(), 0)).count();
        assert!(admitted >= 500, "{admitted}");
        let refused = (1000..11_000).filter(|key| {
            let hash = hash(&cells, &key.to_string());
            !cells.add(&quota, hash, 0).fits(&quota, 1, 0)
        });
        let refused = refused.count();
        assert!((1..625).contains(&refused), "{refused} of 10 000");
    }

    #[test]
    fn a_panic_under_a_lock_does_not_spread() {
        let (quota, cells) = (rate(1), Arc::new(Cells::new(false, 1)));
        let panicking = Arc::clone(&cells);
        let panicked = std::thread::spawn(move || {
            let _slot = panicking.add(&rate(1), hash(&panicking, "a"), 0);
            panic::resume_unwind(Box::new("silent"));
        });
        assert!(panicked.join().is_err());
        assert!(admit(&cells, &quota, "a", 0) && admit(&cells, &quota, "b", 0));
    }

    proptest! {
        /// Few keys over many steps, of which the exact cells admit what the sketch may only refuse.
        #[test]
        fn the_sketch_admits_nothing_that_a_cell_of_its_own_would_not(
            limit in 1_u32..300, burst in 1_u32..6, wide in any::<bool>(),
            steps in prop::collection::vec((0_u64..12, 0_u64..300_000_000), 1..300),
        ) {
            let quota = Quota::Rate(Rate::per_second(n(limit)).burst(n(burst)));
            let wide = wide || limit > 255;
            let exact = Cells::new(wide, 100);
            let full = Cells::new(wide, 1);
            // Keys that share all but one of their cells in the sketch, beside those that share none.
            let hash = |key: u64| {
                let hash = (key % 4 + 1) | (key % 3) << 16 | 9 << 32 | 7 << 48;
                NonZeroU64::new(hash).expect("not zero")
            };
            assert!(ask(&full, &quota, NonZeroU64::MAX, 0).is_some());
            let mut now = 0;
            for (key, step) in steps {
                now += step;
                assert!(ask(&full, &quota, NonZeroU64::MAX, now).is_some() || full.known(NonZeroU64::MAX).is_some());
                if let Some(is_shared) = ask(&full, &quota, hash(key), now) {
                    prop_assert!(is_shared);
                    prop_assert!(ask(&exact, &quota, hash(key), now).is_some());
                }
            }
        }
    }
}
