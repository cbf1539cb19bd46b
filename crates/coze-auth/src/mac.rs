//! HMAC-SHA256 over what comes in pieces.

use hmac::{
    KeyInit,
    block_api::HmacCore,
    digest::block_api::{Buffer, FixedOutputCore, UpdateCore},
};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

/// A key that was taken in, which saves two of three blocks for a short message. Without the buffer that `Hmac` has, which is
/// moved about with it.
#[derive(Clone)]
pub(crate) struct Keyed(HmacCore<Sha256>);

impl Keyed {
    pub(crate) fn new(key: &[u8]) -> Self {
        Self(HmacCore::new_from_slice(key).expect("hmac takes a key of any length"))
    }

    /// Is this the MAC of what the pieces make together? Compared in constant time.
    pub(crate) fn verifies<'p>(&self, pieces: impl Iterator<Item = &'p [u8]>, mac: &[u8; 32]) -> Choice {
        let (mut core, mut partial) = (self.0.clone(), Buffer::<HmacCore<Sha256>>::default());
        pieces.for_each(|piece| partial.digest_blocks(piece, |blocks| core.update_blocks(blocks)));
        let mut expected = Default::default();
        core.finalize_fixed_core(&mut partial, &mut expected);
        same(&expected.into(), mac)
    }
}

/// In constant time. `subtle` hides each byte from the optimiser, which costs as much as a block of the hash; one bit is all that need be
/// hidden.
fn same(a: &[u8; 32], b: &[u8; 32]) -> Choice {
    a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)).ct_eq(&0)
}

#[cfg(test)]
mod tests {
    use hmac::{Hmac, Mac};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_mac_of_the_pieces_together_and_of_no_other_bit(
            key in prop::collection::vec(any::<u8>(), 1..200),
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..5),
            bit in 0..256_usize,
        ) {
            let whole = Hmac::<Sha256>::new_from_slice(&key).expect("any length").chain_update(pieces.concat());
            let mut mac: [u8; 32] = whole.finalize().into_bytes().into();
            let verifies = |mac: &[u8; 32]| bool::from(Keyed::new(&key).verifies(pieces.iter().map(Vec::as_slice), mac));
            prop_assert!(verifies(&mac));
            mac[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!verifies(&mac));
        }
    }
}
