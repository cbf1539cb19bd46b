use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};
use coze_core::{Error, Kind};

use super::{
    compact::Compact,
    fetched::{KeyFetch, Remote},
    jwk,
    key::{Algorithm, JwtKey, Verifier},
};
use crate::MAX_KEYS;

/// The keys that verify the tokens of one issuer, replaceable while tokens are verified. Clones share them.
///
/// The `kid` in a token's header picks the key; without one, or where no key has that name, the keys without a name are tried,
/// and a token without `kid` is also tried with the keys of the only name there is. Keys of one name are for different
/// algorithms (RFC 7517 §4.5), and a token is verified by the algorithm in its header if such a key is for it.
#[derive(Clone)]
pub struct JwtKeys(Arc<Shared>);

struct Shared {
    set: ArcSwap<KeySet>,
    /// That of the set, for those who need no more.
    generation: AtomicU64,
    /// Where they come from, if not from us.
    remote: Option<Remote>,
}

#[derive(Default)]
pub(super) struct KeySet {
    /// Counts the replacements.
    pub(super) generation: u64,
    named: HashMap<Box<str>, Vec<Verifier>>,
    nameless: Vec<Verifier>,
}

/// Why a token is not verified.
pub(super) enum Missed {
    /// The key is here that it names.
    Signature(Error),
    /// A key that is not here may have signed it, but none that is: either none has its name, or this became of those without.
    Key(Option<Error>),
}

impl JwtKeys {
    /// These keys.
    ///
    /// # Errors
    /// All are [`Kind::Invalid`]. `keys_missing`: none. `keys_too_many`: more than 128, or more than [`MAX_KEYS`] without a
    /// name. `keys_ambiguous`: two of one name for one algorithm, or secrets and public keys in one set.
    pub fn new(keys: impl IntoIterator<Item = JwtKey>) -> Result<Self, Error> {
        Ok(Self::with(KeySet::new(keys)?, None))
    }

    /// The keys that are fetched from where their issuer publishes them, in a tokio task that the first token starts.
    ///
    /// A token whose key we do not know waits for a fetch, one for all who wait, but not more often than
    /// [`KeyFetch::cooldown`]; so does one that picks no key by its name, and that none of ours verifies. If that fails the token
    /// is refused with `keys_unavailable`, and those whose keys we know are verified as before, however old the keys are.
    #[must_use]
    pub fn fetched(fetch: KeyFetch) -> Self {
        Self::with(KeySet::default(), Some(Remote::new(fetch)))
    }

    fn with(set: KeySet, remote: Option<Remote>) -> Self {
        Self(Arc::new(Shared { set: ArcSwap::from_pointee(set), generation: AtomicU64::new(0), remote }))
    }

    /// The keys of a JSON web key set (RFC 7517 §5) that verify tokens ([`JwtKey::jwk`]); the others in it are left out. So are
    /// secrets among public keys, and different keys of one name for one algorithm, as nobody knows which is meant.
    ///
    /// # Errors
    /// As [`JwtKeys::new`], and `keys_too_many` for a set of more than 256 KiB, `key_invalid` for what is not a set.
    pub fn jwks(json: &[u8]) -> Result<Self, Error> {
        Self::new(jwk::usable(json)?)
    }

    /// Replaces the keys, and with them all that is cached of tokens they verified.
    ///
    /// # Errors
    /// As [`JwtKeys::new`]. The keys stay as they were.
    pub fn replace(&self, keys: impl IntoIterator<Item = JwtKey>) -> Result<(), Error> {
        let KeySet { named, nameless, .. } = KeySet::new(keys)?;
        let old = self.0.set.rcu(|old| KeySet {
            generation: old.generation + 1,
            named: named.clone(),
            nameless: nameless.clone(),
        });
        self.0.generation.fetch_max(old.generation + 1, Ordering::Release);
        Ok(())
    }

    /// Replaces the keys by those of a JSON web key set.
    ///
    /// # Errors
    /// As [`JwtKeys::jwks`]. The keys stay as they were.
    pub fn replace_jwks(&self, json: &[u8]) -> Result<(), Error> {
        self.replace(jwk::usable(json)?)
    }

    /// The payload of a compact JWS (RFC 7515 §7.1), if a key of ours signed it: whatever it is, claims or not, and without a
    /// look at the time. To check who calls is the duty of [`Jwt`](crate::Jwt), and to fetch keys as well.
    ///
    /// # Errors
    /// `parse_error`, `unknown_key` and `signature_invalid`, [`Kind::Unauthenticated`]; `keys_unavailable`,
    /// [`Kind::Unavailable`], where keys are fetched, and were not the last time.
    pub fn verify(&self, token: &[u8]) -> Result<Vec<u8>, Error> {
        let compact = Compact::parse(token)?;
        let header = compact.header()?;
        match self.current().verify(&compact, header.kid.as_deref(), header.algorithm()) {
            Ok(()) => Ok(compact.payload().to_vec()),
            Err(Missed::Signature(error) | Missed::Key(Some(error))) => Err(error),
            Err(Missed::Key(None)) => Err(self.absent()),
        }
    }

    pub(super) fn current(&self) -> Guard<Arc<KeySet>> {
        self.0.set.load()
    }

    /// What to wait for where a key is unknown, if more keys can be had now.
    pub(super) fn wish(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let keys = Arc::downgrade(&self.0);
        let take = move |json: &[u8]| Some(Self(keys.upgrade()?).replace_jwks(json));
        self.0.remote.as_ref()?.wish(take)
    }

    /// Why a key is not there, and cannot be had now.
    pub(super) fn absent(&self) -> Error {
        let unknown = || unauthenticated("unknown_key", "no key has the name in the header of the token");
        self.0.remote.as_ref().and_then(Remote::absent).unwrap_or_else(unknown)
    }

    pub(super) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

impl fmt::Debug for JwtKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = self.current();
        f.debug_struct("JwtKeys").field("named", &current.named).field("nameless", &current.nameless).finish()
    }
}

impl KeySet {
    fn new(keys: impl IntoIterator<Item = JwtKey>) -> Result<Self, Error> {
        let keys: Vec<_> = keys.into_iter().take(jwk::MAX_LISTED + 1).collect();
        let broken = |reason, message| Err(Error::new(Kind::Invalid, reason).with_message(message));
        if keys.is_empty() {
            return broken("keys_missing", "there is no key that verifies tokens");
        }
        let nameless = keys.iter().filter(|key| key.kid.is_none()).count();
        if keys.len() > jwk::MAX_LISTED || nameless > MAX_KEYS {
            return broken("keys_too_many", "there are more keys than can be told apart");
        }
        // What is known as a public key somewhere must not verify as a secret elsewhere.
        let secrets = keys.iter().filter(|key| key.is_secret()).count();
        let mut is_ambiguous = (1..keys.len()).contains(&secrets);
        let mut set = Self::default();
        for JwtKey { kid, verifiers } in keys {
            let Some(kid) = kid else {
                set.nameless.extend(verifiers);
                continue;
            };
            let own = set.named.entry(kid).or_default();
            is_ambiguous |= verifiers.iter().any(|one| own.iter().any(|other| one.algorithm == other.algorithm));
            own.extend(verifiers);
        }
        match is_ambiguous {
            true => broken("keys_ambiguous", "two keys have one name, or secrets are among public keys"),
            false => Ok(set),
        }
    }

    /// Verifies a token by this algorithm, or `None` that is ours, with at most [`MAX_KEYS`] keys.
    pub(super) fn verify(
        &self,
        token: &Compact<'_>,
        kid: Option<&str>,
        algorithm: Option<Algorithm>,
    ) -> Result<(), Missed> {
        let named = kid.and_then(|kid| self.named.get(kid));
        let is_only = kid.is_none() && self.named.len() == 1 && self.nameless.is_empty();
        let only = || self.named.values().next().filter(|_| is_only);
        let candidates = named.or_else(only).unwrap_or(&self.nameless);
        if candidates.is_empty() {
            return Err(Missed::Key(None));
        }
        let mut fitting = candidates.iter().filter(|verifier| Some(verifier.algorithm) == algorithm);
        if fitting.any(|verifier| verifier.verifies(token.signed, token.signature())) {
            return Ok(());
        }
        let error = unauthenticated("signature_invalid", "the token is not signed as the key wants it");
        Err(match named {
            None if algorithm.is_some() => Missed::Key(Some(error)),
            _ => Missed::Signature(error),
        })
    }
}

pub(super) fn unauthenticated(reason: &'static str, message: &'static str) -> Error {
    Error::new(Kind::Unauthenticated, reason).with_message(message)
}
