//! What a key is remembered by: 64 bits, so that a cell is small and no caller's text is kept.
//!
//! The hash is multilinear: the words of the key, each times a secret number of 128 bits, added up; the upper half of the sum.
//! Two different keys have the same hash with a probability of 2⁻⁶⁴, whatever they are, for whoever does not know the secrets
//! (Lemire and Kaser, "Strongly universal string hashing is fast", 2014). Among a million keys any two are the same with a
//! probability of 2⁻²⁵ (n² / 2⁶⁵). They then share one quota: the error is towards refusing.

use std::hash::{BuildHasher, RandomState};

/// Longer parts are hashed by `SipHash` first.
const MAX_PART: usize = 128;

/// What the words of one part are multiplied with: that of its length, its last eight bytes, and all of its words.
type Secrets = [u128; 2 + MAX_PART / 8];

#[derive(Debug)]
pub(crate) struct KeyHash {
    first: u128,
    parts: Box<[Secrets; 2]>,
    long: RandomState,
}

impl KeyHash {
    pub(crate) fn new() -> Self {
        let random = RandomState::new();
        let secret = |i| u128::from(random.hash_one((i, 0))) << 64 | u128::from(random.hash_one((i, 1)));
        let part = |part: usize| std::array::from_fn(|i| secret(1 + part + 2 * i));
        Self { first: secret(0), parts: Box::new(std::array::from_fn(part)), long: RandomState::new() }
    }

    /// The hash of a key that belongs to somebody, or to nobody.
    #[inline(always)]
    pub(crate) fn of(&self, whose: Option<&[u8]>, key: &[u8]) -> u64 {
        let [of_whose, of_key] = &*self.parts;
        let whose = whose.map_or(0, |whose| sum(whose, of_whose, &self.long));
        let total = self.first.wrapping_add(whose).wrapping_add(sum(key, of_key, &self.long));
        mix(u64::try_from(total >> 64).expect("the upper half"))
    }
}

/// Keys that follow each other have sums that do, too: this scatters them. It can be undone, so no two sums become the same.
fn mix(sum: u64) -> u64 {
    let mixed = (sum ^ (sum >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 32)
}

/// The sum of one part. The length says how the other words were made, and is never zero, so that an empty part is not the same
/// as none: no two keys are the same words.
#[inline(always)]
fn sum(part: &[u8], [of_length, of_last, of_words @ ..]: &Secrets, long: &RandomState) -> u128 {
    let times = |secret: &u128, word: u64| secret.wrapping_mul(word.into());
    let words = match part.len() {
        0..8 => times(of_last, short(part)),
        8..=MAX_PART => {
            let words = part.as_chunks().0.iter().zip(of_words);
            // The last eight bytes, some or all of which are in a word before: no loop over those that are left.
            let last = times(of_last, u64::from_le_bytes(*part.last_chunk().expect("eight or more")));
            words.fold(last, |sum, (word, secret)| sum.wrapping_add(times(secret, u64::from_le_bytes(*word))))
        }
        _ => times(of_last, long.hash_one(part)),
    };
    words.wrapping_add(times(of_length, part.len() as u64 + 1))
}

/// Up to seven bytes; some may be in it twice.
fn short(bytes: &[u8]) -> u64 {
    match (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        (Some(first), Some(last)) => u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << 32,
        _ => bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_of_all_lengths_differ_in_each_of_their_bytes() {
        let hash = KeyHash::new();
        let mut seen = HashSet::new();
        for len in 0..300 {
            let key = vec![b'k'; len];
            assert!(seen.insert(hash.of(None, &key)), "{len} bytes");
            for changed in 0..len {
                let mut other = key.clone();
                other[changed] = b'x';
                assert!(seen.insert(hash.of(None, &other)), "byte {changed} of {len}");
            }
        }
    }

    #[test]
    fn the_bits_of_the_hash_are_even() {
        let hash = KeyHash::new();
        let mut ones = [0_u32; 64];
        for n in 0..100_000 {
            let bits = hash.of(None, format!("user-{n}").as_bytes());
            for (bit, ones) in ones.iter_mut().enumerate() {
                *ones += u32::from(bits >> bit & 1 == 1);
            }
        }
        assert!(ones.iter().all(|ones| (48_000..52_000).contains(ones)), "{ones:?}");
    }

    #[test]
    fn two_processes_hash_differently() {
        assert_ne!(KeyHash::new().of(None, b"user"), KeyHash::new().of(None, b"user"));
    }

    proptest! {
        #[test]
        fn where_a_key_begins_matters(text in prop::collection::vec(any::<u8>(), 0..300), a in any::<usize>(), b in any::<usize>()) {
            let (a, b) = (a % (text.len() + 1), b % (text.len() + 1));
            let hash = KeyHash::new();
            let split = |at: usize| hash.of(Some(&text[..at]), &text[at..]);
            prop_assert_eq!(a == b, split(a) == split(b));
            prop_assert_ne!(split(a), hash.of(None, &text));
        }
    }
}
