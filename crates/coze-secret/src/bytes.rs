use std::{
    fmt,
    io::{self, Read},
    sync::Once,
};

use region::LockGuard;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// The bytes of one secret: in memory of their own that is locked where the system allows it, wiped when they are dropped,
/// and never shown.
///
/// A secret takes whole pages (mostly 4 KiB, at least one), because pages are what the system locks. Where it refuses, as
/// beyond the limit for locked memory (`ulimit -l`), the bytes serve all the same, and one event of the process warns.
pub struct SecretBytes {
    /// Dropped first, so after the bytes are wiped and before the memory is given back.
    lock: Option<LockGuard>,
    /// A page longer than needed, so that the secret begins at a page.
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl SecretBytes {
    /// Takes the bytes over; those given, a `String` or a `Vec<u8>`, are wiped.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let mut bytes = bytes.into();
        let mut secret = Self::zeroed(bytes.len());
        secret.slice().copy_from_slice(&bytes);
        bytes.zeroize();
        secret
    }

    /// Takes a copy; who owns the original wipes it.
    #[cfg(feature = "vault")]
    pub(crate) fn copy(bytes: &[u8]) -> Self {
        let mut secret = Self::zeroed(bytes.len());
        secret.slice().copy_from_slice(bytes);
        secret
    }

    /// Reads until the end; `None` if there are more bytes than `max`. No other copy is made.
    pub(crate) fn read(mut from: impl Read, max: usize) -> io::Result<Option<Self>> {
        let mut secret = Self::zeroed(max.saturating_add(1));
        let mut filled = 0;
        while filled < secret.len {
            match from.read(&mut secret.slice()[filled..]) {
                Ok(0) => {
                    secret.len = filled;
                    return Ok(Some(secret));
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn zeroed(len: usize) -> Self {
        let page = region::page::size();
        let pages = len.max(1).next_multiple_of(page);
        let buffer = vec![0; pages + page];
        // Whole pages inside the buffer belong to nobody else, so that unlocking them unlocks no other secret's.
        let start = buffer.as_ptr().align_offset(page);
        let lock = lock(buffer.get(start..start + pages).unwrap_or_default());
        Self { lock, buffer, start: start.min(page), len }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + self.len]
    }

    /// Cuts a line end off, as editors and `echo` leave it.
    pub(crate) fn without_line_end(mut self) -> Self {
        let bytes = self.expose();
        let kept = bytes.strip_suffix(b"\n").map_or(bytes, |line| line.strip_suffix(b"\r").unwrap_or(line));
        self.len = kept.len();
        self
    }

    /// The secret. Whoever copies it answers for the copy.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }

    /// The secret as text; `None` if it is not UTF-8.
    #[must_use]
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(self.expose()).ok()
    }

    /// Is it equal to `candidate`? The time this takes tells nothing but whether the lengths are equal.
    #[must_use]
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.expose().ct_eq(candidate).into()
    }

    /// Does the system keep it out of the swap?
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes([redacted])")
    }
}

/// Keeps pages in memory. A refusal is a warning, once per process: it is the process's limit that refuses.
fn lock(pages: &[u8]) -> Option<LockGuard> {
    static WARNED: Once = Once::new();
    match region::lock(pages.as_ptr(), pages.len()) {
        Ok(guard) => Some(guard),
        Err(error) => {
            WARNED.call_once(|| {
                tracing::warn!(reason = "secret_not_locked", %error, "secrets may be swapped out: raise the limit for locked memory");
            });
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_refused_lock_is_no_failure() {
        assert!(lock(&[]).is_none(), "there is nothing to lock");
    }

    #[test]
    fn no_two_secrets_share_a_page() {
        let page = region::page::size();
        let secrets: Vec<_> = (0..100).map(|n| SecretBytes::new(vec![b'x'; n])).collect();
        let mut pages: Vec<_> = secrets.iter().map(|secret| secret.expose().as_ptr().addr()).collect();
        assert!(pages.iter().all(|at| at.is_multiple_of(page)));
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(pages.len(), secrets.len());
    }

    #[test]
    fn a_secret_is_read_up_to_its_bound() {
        let read = |text: &str, max| SecretBytes::read(text.as_bytes(), max).expect("readable");
        assert!(read("12345", 5).is_some_and(|secret| secret.matches(b"12345")));
        assert!(read("12345", 4).is_none());
        assert!(read("", 0).is_some_and(|secret| secret.expose().is_empty()));
    }

    #[test]
    fn one_line_end_is_cut_off() {
        for (text, kept) in
            [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a\r", "a\r"), ("a", "a"), ("\n", ""), ("", "")]
        {
            let secret = SecretBytes::new(text).without_line_end();
            assert_eq!(secret.expose_str(), Some(kept), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_secret_equals_itself_and_nothing_else(bytes: Vec<u8>, other: Vec<u8>) {
            let secret = SecretBytes::new(bytes.clone());
            prop_assert_eq!(secret.expose(), &bytes[..]);
            prop_assert!(secret.matches(&bytes));
            prop_assert_eq!(secret.matches(&other), bytes == other);
        }
    }
}
