//! What reads the bytes of strangers, fed with bytes that nobody would send.
//!
//! Each target takes any bytes, asks one reader about them, and panics when the reader's verdict is not the one that a second,
//! slow and simple reading of the same bytes comes to, or when an error shows a secret. It says whether the reader accepted.
//! `tests/fuzz.rs` runs the targets for a moment in each test run, and `cargo xtask fuzz` for as long as one likes.

mod answers;
mod mutation;
mod requests;
mod tokens;

use std::{error::Error as StdError, fmt::Write};

pub use self::{
    answers::{oauth, vault},
    mutation::Mutations,
    requests::{callback, standard_webhooks, webhook},
    tokens::{jwks, jwt},
};

/// A target by its name, which is also that of its folder in `fuzz/seeds`.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// Every target.
pub const TARGETS: [Target; 7] = [
    ("callback", callback),
    ("jwks", jwks),
    ("jwt", jwt),
    ("oauth", oauth),
    ("standard_webhooks", standard_webhooks),
    ("vault", vault),
    ("webhook", webhook),
];

/// More characters than an error and its causes have, whatever they are about.
const MAX_SHOWN: usize = 4096;

/// Panics if an error, or what caused it, shows one of these secrets, or is as long as the sender likes.
fn is_discreet<'s>(error: &(dyn StdError + 'static), secrets: impl IntoIterator<Item = &'s str>) {
    let (mut shown, mut next) = (String::new(), Some(error));
    while let Some(error) = next {
        write!(shown, "{error} {error:?} ").expect("a text takes everything");
        next = error.source();
    }
    assert!(shown.len() < MAX_SHOWN, "an error of {} bytes", shown.len());
    for secret in secrets {
        assert!(!shown.contains(secret), "an error shows a secret: {shown}");
    }
}

/// The lines before the rest: as many as `N`, which may be empty.
fn lines<const N: usize>(data: &[u8]) -> Option<([&[u8]; N], &[u8])> {
    let mut parts = data.splitn(N + 1, |byte| *byte == b'\n');
    let mut head = [&[][..]; N];
    for line in &mut head {
        *line = parts.next()?;
    }
    Some((head, parts.next()?))
}
