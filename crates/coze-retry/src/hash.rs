//! A hash for short texts that costs a few nanoseconds, where the one of the standard library costs as much as all the rest.

use std::hash::{BuildHasher, Hasher};

/// Makes hashers with a secret of its own, so that nobody outside can choose texts that collide.
#[derive(Clone, Debug)]
pub(crate) struct Secret([u64; 2]);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Folding {
    state: u64,
    factor: u64,
}

impl Default for Secret {
    fn default() -> Self {
        // Chance out of the standard library's, which the system seeds; an even factor would lose a bit each time.
        let chance = |n: u64| std::hash::RandomState::new().hash_one(n);
        Self([chance(0), chance(1) | 1])
    }
}

impl BuildHasher for Secret {
    type Hasher = Folding;

    #[inline]
    fn build_hasher(&self) -> Folding {
        Folding { state: self.0[0], factor: self.0[1] }
    }
}

impl Folding {
    /// Multiplies to 128 bits and folds them: each bit of the word reaches all bits of the state.
    #[inline]
    fn add(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        // The halves are what is wanted.
        #[allow(clippy::cast_possible_truncation)]
        let (high, low) = ((product >> 64) as u64, product as u64);
        self.state = (high ^ low).wrapping_add(word.rotate_left(32));
    }
}

impl Hasher for Folding {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.add(u64::from_le_bytes(*word));
        }
        // A short text byte by byte, of a longer one the last word, part of which was there before.
        let last = match bytes.last_chunk() {
            Some(word) => u64::from_le_bytes(*word),
            None => rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)),
        };
        // With the length, so that zeros at the end count.
        self.add(last ^ (bytes.len() as u64) << 56);
    }

    #[inline]
    fn write_u8(&mut self, byte: u8) {
        self.add(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        let mut last = *self;
        last.add(self.factor);
        last.state
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn texts_that_are_alike_have_other_hashes() {
        let secret = Secret::default();
        let names = (0..20_000).map(|n| format!("bot-{n}.api.coze.cn"));
        let zeros = (0..100).map(|n| "\0".repeat(n));
        let texts: Vec<_> = names.chain(zeros).collect();
        let hashes: HashSet<_> = texts.iter().map(|text| secret.hash_one(text)).collect();
        assert_eq!(hashes.len(), texts.len());
        assert_ne!(secret.hash_one(("a", Some("b"))), secret.hash_one(("ab", Some(""))));
    }

    #[test]
    fn all_bits_are_used_evenly() {
        let secret = Secret::default();
        let mut ones = [0u32; 64];
        for n in 0..10_000 {
            let hash = secret.hash_one(format!("{n}"));
            (0..64).for_each(|bit| ones[bit] += u32::from(hash >> bit & 1 == 1));
        }
        assert!(ones.iter().all(|count| (4500..5500).contains(count)), "{ones:?}");
    }

    #[test]
    fn each_secret_has_its_own_hashes() {
        let text = "api.coze.cn";
        let hashes: HashSet<_> = (0..100).map(|_| Secret::default().hash_one(text)).collect();
        assert_eq!(hashes.len(), 100);
    }
}
