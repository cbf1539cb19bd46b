use fastrand::Rng;

/// No input is longer.
const MAX_LEN: usize = 4096;

/// What readers treat in a way of its own.
const WORDS: [&[u8]; 32] = [
    b"\n",
    b".",
    b"=",
    b"-",
    b"_",
    b"+",
    b"/",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\xc3\xa9",
    b"\0",
    b"\r",
    b" ",
    b"\"alg\":\"none\"",
    b"\"kid\":\"a\",",
    b"{\"a\":{}}",
    b"\t",
    b"%2f",
];

/// Endless variations of valid inputs. The same seed makes the same ones.
#[derive(Debug)]
pub struct Mutations<'s> {
    seeds: &'s [Vec<u8>],
    random: Rng,
}

impl<'s> Mutations<'s> {
    /// Variations of these.
    #[must_use]
    pub fn new(seeds: &'s [Vec<u8>], seed: u64) -> Self {
        Self { seeds, random: Rng::with_seed(seed) }
    }

    fn pick(&mut self) -> &'s [u8] {
        self.random.choice(self.seeds).map_or(&[], Vec::as_slice)
    }

    /// A place in the input, and one that is not before it.
    fn range(&mut self, data: &[u8]) -> (usize, usize) {
        let start = self.random.usize(..=data.len());
        (start, self.random.usize(start..=data.len().min(start + 64)))
    }

    fn change(&mut self, data: &mut Vec<u8>) {
        let (start, end) = self.range(data);
        match self.random.u8(..9) {
            0 if start < data.len() => data[start] ^= 1 << self.random.u8(..8),
            1 if start < data.len() => data[start] = self.random.u8(..),
            2 => data.insert(start, self.random.u8(..)),
            3 => drop(data.drain(start..end)),
            4 => data.truncate(start),
            5 => data.extend_from_within(start..end),
            6 => {
                let word = WORDS[self.random.usize(..WORDS.len())];
                data.splice(start..end.min(start + self.random.usize(..8)), word.iter().copied());
            }
            7 => {
                let other = self.pick();
                let (from, to) = self.range(other);
                data.splice(start..end, other[from..to].iter().copied());
            }
            8 => {
                let (from, _) = self.range(data);
                if from < data.len() && start < data.len() {
                    data.swap(from, start);
                }
            }
            _ => {}
        }
    }
}

impl Iterator for Mutations<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut data = self.pick().to_vec();
        for _ in 0..self.random.u8(1..5) {
            self.change(&mut data);
        }
        data.truncate(MAX_LEN);
        Some(data)
    }
}
