//! The account against an obvious, slow model: a list of requests, each poured in when it was taken, or when its lease was
//! settled or ended, and the definitions of a token bucket and of a window over that list.

use proptest::prelude::*;

use super::account::{Account, SLICE, Settlement, Terms};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Time goes on.
    Wait(u64),
    /// A decision about so many.
    Decide(u64),
    /// A lease of so many.
    Lease(u64),
    /// What became of an earlier lease: so many spent, so many given back.
    Settle { lease: usize, spent: u64, returned: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wait = prop_oneof![0..3000_u64, 90_000..110_000_u64, 400_000..600_000_u64, Just(SLICE), 900_000..1_200_000_u64];
    let step = prop_oneof![
        3 => wait.prop_map(Step::Wait),
        3 => (1..4_u64).prop_map(Step::Decide),
        2 => (1..6_u64).prop_map(Step::Lease),
        2 => (any::<usize>(), 0..4_u64, 0..4_u64)
            .prop_map(|(lease, spent, returned)| Step::Settle { lease, spent, returned }),
    ];
    prop::collection::vec(step, 1..80)
}

/// The slow model: when each request was poured in, and each lease with its slot and what is left of it.
#[derive(Default)]
struct Model {
    poured: Vec<u64>,
    leases: Vec<(u64, u64)>,
}

impl Model {
    fn go_to(&mut self, now: u64) {
        for (slot, left) in &mut self.leases {
            if *slot * SLICE <= now {
                self.poured.extend((0..std::mem::take(left)).map(|_| *slot * SLICE));
            }
        }
    }

    /// Whether so many more keep to both promises.
    fn fits(&self, terms: Terms, now: u64, cost: u64) -> bool {
        let more = cost + self.leases.iter().map(|(_, left)| left).sum::<u64>();
        let since = |from: u64| self.poured.iter().filter(|at| **at >= from).count() as u64 + more;
        let bucket = self.poured.iter().chain([&now]).all(|from| {
            u128::from(since(*from)) * u128::from(terms.request)
                <= u128::from(terms.burst) * u128::from(terms.request) + u128::from(now - from) * u128::from(terms.rate)
        });
        let in_window = self.poured.iter().filter(|at| **at / SLICE + 10 > now / SLICE).count() as u64 + more;
        bucket && in_window <= terms.window
    }
}

proptest! {
    #[test]
    fn the_account_admits_what_the_definitions_admit_and_a_wait_is_exact(
        rate in 1_u64..40, burst in 1_u64..20, is_per_minute in any::<bool>(), steps in steps(),
    ) {
        let (window, request) = if is_per_minute { (u32::MAX.into(), 60_000_000) } else { (rate, 1_000_000) };
        let terms = Terms { rate, burst, window, request };
        let (mut account, mut model, mut now) = (Account::default(), Model::default(), 7_000_000_000_000_u64);
        account.advance(terms, now);
        for step in steps {
            match step {
                Step::Wait(time) => now += time,
                Step::Decide(cost) => {
                    let cost = cost.min(terms.capacity());
                    let wait = account.wait(terms, cost);
                    prop_assert_eq!(wait == 0, model.fits(terms, now, cost));
                    prop_assert_eq!(wait == 0, account.room(terms) >= cost);
                    for (earlier, fits) in [(0, true), (1, false)].into_iter().filter(|_| wait > 0) {
                        let mut later = account.clone();
                        later.advance(terms, now + wait - earlier);
                        prop_assert_eq!(later.wait(terms, cost) == 0, fits, "{} of {} µs", wait - earlier, wait);
                    }
                    if wait == 0 {
                        account.take(terms, cost);
                        model.poured.extend((0..cost).map(|_| now));
                    }
                }
                Step::Lease(wanted) => {
                    let granted = account.lease(terms, wanted);
                    prop_assert!(granted == wanted || !model.fits(terms, now, granted + 1));
                    prop_assert!(granted == 0 || model.fits(terms, now, granted));
                    model.leases.push((now / SLICE + 5, granted));
                }
                Step::Settle { lease, spent, returned } if !model.leases.is_empty() => {
                    let index = lease % model.leases.len();
                    let (slot, left) = &mut model.leases[index];
                    // A node tells no more than what it has.
                    let spent = spent.min(*left);
                    let returned = returned.min(*left - spent);
                    account.settle(terms, Settlement { slot: *slot, spent, returned });
                    *left -= spent + returned;
                    model.poured.extend((0..spent).map(|_| now));
                }
                Step::Settle { .. } => {}
            }
            account.advance(terms, now);
            model.go_to(now);
        }
        account.advance(terms, now + account.lifetime(terms));
        prop_assert!(account.is_new(), "a key expires no earlier than this");
    }
}
