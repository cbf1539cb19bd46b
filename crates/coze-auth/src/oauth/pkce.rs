use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use coze_core::{Error, Kind};
use sha2::{Digest, Sha256};

use super::random;

/// The proof that who exchanges a code is who asked for it (RFC 7636), with the method `S256`.
///
/// The verifier is kept until the person comes back with the code, where nobody else can read it.
#[derive(Clone)]
pub struct Pkce(String);

impl Pkce {
    /// A verifier of 256 random bits.
    ///
    /// # Errors
    /// `no_randomness`, [`Kind::Internal`].
    pub fn new() -> Result<Self, Error> {
        random::<32>().map(Self)
    }

    /// A verifier that was kept.
    ///
    /// # Errors
    /// `verifier_malformed`, [`Kind::Invalid`]: it is not 43 to 128 letters, digits and `-._~` (RFC 7636 §4.1).
    pub fn from_verifier(verifier: &str) -> Result<Self, Error> {
        let is_verifier = (43..=128).contains(&verifier.len())
            && verifier.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
        if !is_verifier {
            return Err(Error::new(Kind::Invalid, "verifier_malformed")
                .with_message("a code verifier is 43 to 128 letters, digits, and any of - . _ ~"));
        }
        Ok(Self(verifier.to_owned()))
    }

    /// The verifier, to be kept. It is a secret.
    #[must_use]
    pub fn verifier(&self) -> &str {
        &self.0
    }

    /// What the authorization request tells of it (RFC 7636 §4.2).
    #[must_use]
    pub fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(&self.0))
    }
}

impl fmt::Debug for Pkce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pkce").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_that_of_rfc_7636_appendix_b() {
        let pkce = Pkce::from_verifier("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk").expect("valid");
        assert_eq!(pkce.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn a_new_verifier_is_valid_unlike_others_and_not_shown() {
        let (one, two) = (Pkce::new().expect("random"), Pkce::new().expect("random"));
        assert_ne!(one.verifier(), two.verifier());
        assert!(Pkce::from_verifier(one.verifier()).is_ok());
        assert!(!format!("{one:?}").contains(one.verifier()));
    }

    #[test]
    fn a_verifier_is_held_to_its_length_and_its_letters() {
        let long = |n| "a".repeat(n);
        for good in [long(43), long(128), format!("{}-._~", long(40))] {
            assert!(Pkce::from_verifier(&good).is_ok(), "{good}");
        }
        for bad in [String::new(), long(42), long(129), format!("{}+", long(43)), "é".repeat(30)] {
            assert_eq!(Pkce::from_verifier(&bad).expect_err("malformed").reason(), "verifier_malformed", "{bad}");
        }
    }
}
