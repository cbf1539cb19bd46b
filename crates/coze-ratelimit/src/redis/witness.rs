//! Whether what was admitted keeps to the limit, and by how much.

use super::account::Terms;

/// What is checked of one key.
#[derive(Default)]
pub(super) struct Witness {
    /// When requests were admitted.
    pub(super) admitted: Vec<u64>,
    /// What failovers may have cost: when, for the bucket, for the window.
    pub(super) lost: Vec<(u64, u64, u64)>,
}

impl Witness {
    /// The most by which any stretch of time is over the bucket's limit, in millionths of a request; at most zero where the
    /// claim holds. For a stretch from a to b it is what was admitted − burst − rate × (b − a) − what failovers may have cost.
    pub(super) fn over_bucket(&self, terms: Terms) -> i128 {
        let cost = |until: u64| -> i128 {
            self.lost.iter().filter(|(at, ..)| *at <= until).map(|(_, lost, _)| i128::from(*lost)).sum()
        };
        let (mut least, mut most) = (i128::MAX, i128::MIN);
        for (index, at) in self.admitted.iter().enumerate() {
            let drained = i128::from(*at) * i128::from(terms.rate);
            least = least.min(index as i128 * 1_000_000 - drained - cost(at.saturating_sub(500_000)));
            most = most.max((index as i128 + 1) * 1_000_000 - drained - cost(*at) - least);
        }
        most - i128::from(terms.burst) * 1_000_000
    }

    /// The same for the window: any 900 ms.
    pub(super) fn over_window(&self, terms: Terms) -> i128 {
        let mut from = 0;
        let mut most = i128::MIN;
        for (index, at) in self.admitted.iter().enumerate() {
            while at - self.admitted[from] > 900_000 {
                from += 1;
            }
            let near = self
                .lost
                .iter()
                .filter(|(lost, ..)| (self.admitted[from].saturating_sub(500_000)..=*at).contains(lost));
            let cost: i128 = near.map(|(.., lost)| i128::from(*lost)).sum();
            most = most.max((index - from + 1) as i128 - i128::from(terms.window) - cost);
        }
        most
    }
}

#[test]
fn the_witness_sees_one_request_too_many() {
    let terms = Terms { rate: 10, burst: 2, window: 10, request: 1_000_000 };
    let witness = |admitted: &[u64], lost: &[(u64, u64, u64)]| {
        let witness = Witness { admitted: admitted.to_vec(), lost: lost.to_vec() };
        (witness.over_bucket(terms), witness.over_window(terms))
    };
    assert_eq!(witness(&[1_000_000, 1_000_000, 1_100_000], &[]), (0, -7));
    assert_eq!(witness(&[1_000_000, 1_000_000, 1_099_999], &[]).0, 10, "a hundred-thousandth of a request too early");
    assert_eq!(witness(&[1_000_000, 1_000_000, 1_000_000], &[(900_000, 1_000_000, 1)]), (0, -8));
    assert_eq!(witness(&[1_000_000; 11], &[]).1, 1);
}
