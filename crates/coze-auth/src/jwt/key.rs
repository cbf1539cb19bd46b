use std::fmt;

use aws_lc_rs::{
    rsa::PublicEncryptingKey,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
        RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, VerificationAlgorithm,
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use coze_core::{Error, Kind};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha384, Sha512};

macro_rules! algorithms {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// How a token is signed (RFC 7518 §3.1, RFC 8037 §3.1). A token cannot choose one that its key is not for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Algorithm {
            $($(#[$doc])* $name,)*
        }

        impl Algorithm {
            /// Every algorithm.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name it has in the header of a token.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            pub(super) fn named(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$name),)*
                    // Its other name, which says the curve (RFC 9864 §2.2).
                    "Ed25519" => Some(Self::EdDsa),
                    _ => None,
                }
            }
        }
    };
}

algorithms! {
    /// HMAC with SHA-256.
    Hs256 = "HS256";
    /// HMAC with SHA-384.
    Hs384 = "HS384";
    /// HMAC with SHA-512.
    Hs512 = "HS512";
    /// RSA PKCS#1 v1.5 with SHA-256.
    Rs256 = "RS256";
    /// RSA PKCS#1 v1.5 with SHA-384.
    Rs384 = "RS384";
    /// RSA PKCS#1 v1.5 with SHA-512.
    Rs512 = "RS512";
    /// RSA PSS with SHA-256.
    Ps256 = "PS256";
    /// RSA PSS with SHA-384.
    Ps384 = "PS384";
    /// RSA PSS with SHA-512.
    Ps512 = "PS512";
    /// ECDSA over P-256 with SHA-256.
    Es256 = "ES256";
    /// ECDSA over P-384 with SHA-384.
    Es384 = "ES384";
    /// ECDSA over P-521 with SHA-512.
    Es512 = "ES512";
    /// Ed25519, which is also the name it has by RFC 9864.
    EdDsa = "EdDSA";
}

impl Algorithm {
    fn is_symmetric(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }

    pub(super) fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }
}

/// A key that verifies tokens, prepared once. It never shows itself.
#[derive(Clone, Debug)]
pub struct JwtKey {
    pub(super) kid: Option<Box<str>>,
    pub(super) verifiers: Vec<Verifier>,
}

/// What verifies one algorithm by a key.
#[derive(Clone)]
pub(super) struct Verifier {
    pub(super) algorithm: Algorithm,
    prepared: Prepared,
}

/// The key schedule of a MAC, or a parsed public key, is made here and not for each token.
#[derive(Clone)]
enum Prepared {
    Hs256(Hmac<Sha256>),
    Hs384(Hmac<Sha384>),
    Hs512(Hmac<Sha512>),
    Public(ParsedPublicKey),
}

impl JwtKey {
    /// A key from its bytes: the secret of an HMAC, at least as long as the hash (RFC 7518 §3.2); the public key as DER,
    /// `SubjectPublicKeyInfo` or, for RSA, `RSAPublicKey`; or the 32 bytes of an Ed25519 key.
    ///
    /// # Errors
    /// `key_invalid`, [`Kind::Invalid`]: it is not a key for this algorithm, or a weak one: RSA below 2048 bits.
    pub fn new(algorithm: Algorithm, key: impl AsRef<[u8]>) -> Result<Self, Error> {
        Ok(Self { kid: None, verifiers: vec![Verifier::new(algorithm, key.as_ref())?] })
    }

    /// A public key from PEM: one block, `PUBLIC KEY` or `RSA PUBLIC KEY`.
    ///
    /// # Errors
    /// As [`JwtKey::new`], and where it is not such a block.
    pub fn pem(algorithm: Algorithm, pem: &str) -> Result<Self, Error> {
        let block = ["PUBLIC KEY", "RSA PUBLIC KEY"].iter().find_map(|label| {
            let inner = pem.trim().strip_prefix(&*format!("-----BEGIN {label}-----"))?;
            inner.strip_suffix(&*format!("-----END {label}-----"))
        });
        let base64: String = block.unwrap_or_default().split_ascii_whitespace().collect();
        match STANDARD.decode(base64) {
            Ok(der) if !der.is_empty() && !algorithm.is_symmetric() => Self::new(algorithm, der),
            _ => Err(invalid("this is not one public key as PEM".to_owned())),
        }
    }

    /// The name that tokens call the key by. A key without a name verifies tokens whose name nobody has, or that have none.
    #[must_use]
    pub fn named(self, kid: &str) -> Self {
        Self { kid: Some(kid.into()), ..self }
    }

    /// What it verifies: one algorithm, unless it is a JSON web key that names none ([`JwtKey::jwk`]).
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        self.verifiers.iter().map(|verifier| verifier.algorithm)
    }

    /// The name that tokens call it by.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    pub(super) fn is_secret(&self) -> bool {
        self.algorithms().any(Algorithm::is_symmetric)
    }
}

impl Verifier {
    pub(super) fn new(algorithm: Algorithm, key: &[u8]) -> Result<Self, Error> {
        let secret = |least: usize| match key.len() >= least {
            true => Ok(key),
            false => Err(invalid(format!("a key for {} has at least {least} bytes", algorithm.as_str()))),
        };
        let prepared = match algorithm {
            Algorithm::Hs256 => Prepared::Hs256(keyed(secret(32)?)),
            Algorithm::Hs384 => Prepared::Hs384(keyed(secret(48)?)),
            Algorithm::Hs512 => Prepared::Hs512(keyed(secret(64)?)),
            Algorithm::Es256 => public(&ECDSA_P256_SHA256_FIXED, key)?,
            Algorithm::Es384 => public(&ECDSA_P384_SHA384_FIXED, key)?,
            Algorithm::Es512 => public(&ECDSA_P521_SHA512_FIXED, key)?,
            Algorithm::EdDsa => public(&ED25519, key)?,
            _ => {
                let bits = RsaParameters::public_modulus_len(key).ok().map(|bits| bits as usize);
                let bits = bits.or_else(|| PublicEncryptingKey::from_der(key).ok().map(|key| key.key_size_bits()));
                if bits.is_some_and(|bits| bits < 2048) {
                    return Err(invalid("an RSA key has at least 2048 bits".to_owned()));
                }
                public(algorithm.rsa().expect("all others are named above"), key)?
            }
        };
        Ok(Self { algorithm, prepared })
    }

    pub(super) fn parsed(algorithm: Algorithm, key: ParsedPublicKey) -> Self {
        Self { algorithm, prepared: Prepared::Public(key) }
    }

    /// In constant time where the key is a secret.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.prepared {
            Prepared::Hs256(mac) => mac.clone().chain_update(message).verify_slice(signature).is_ok(),
            Prepared::Hs384(mac) => mac.clone().chain_update(message).verify_slice(signature).is_ok(),
            Prepared::Hs512(mac) => mac.clone().chain_update(message).verify_slice(signature).is_ok(),
            Prepared::Public(key) => key.verify_sig(message, signature).is_ok(),
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.algorithm.fmt(f)
    }
}

fn keyed<M: KeyInit>(secret: &[u8]) -> M {
    M::new_from_slice(secret).expect("hmac takes a key of any length")
}

fn public(algorithm: &'static dyn VerificationAlgorithm, key: &[u8]) -> Result<Prepared, Error> {
    ParsedPublicKey::new(algorithm, key)
        .map(Prepared::Public)
        .map_err(|_| invalid("this is not a public key for the algorithm".to_owned()))
}

pub(super) fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, "key_invalid").with_message(message)
}
