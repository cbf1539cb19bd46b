use std::borrow::Cow;

use aws_lc_rs::rsa::PublicKeyComponents;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use coze_core::{Error, Kind};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::key::{Algorithm, JwtKey, Verifier, invalid};

/// The most bytes a key set may have.
pub(super) const MAX_BYTES: usize = 256 * 1024;
/// The most keys a key set may have, those for other purposes included.
pub(super) const MAX_LISTED: usize = 128;

/// A key as JSON (RFC 7517 §4, RFC 7518 §6, RFC 8037 §2). The members we do not know say nothing to us (§4).
#[derive(Deserialize)]
struct Jwk<'a> {
    #[serde(borrow)]
    kty: Cow<'a, str>,
    #[serde(borrow, rename = "use")]
    usage: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key_ops: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow)]
    alg: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    crv: Option<Cow<'a, str>>,
    #[serde(borrow)]
    x: Option<Cow<'a, str>>,
    #[serde(borrow)]
    y: Option<Cow<'a, str>>,
    #[serde(borrow)]
    n: Option<Cow<'a, str>>,
    #[serde(borrow)]
    e: Option<Cow<'a, str>>,
    #[serde(borrow)]
    k: Option<Cow<'a, str>>,
    d: Option<IgnoredAny>,
    p: Option<IgnoredAny>,
    q: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Set<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The keys of a set that verify tokens. One that is for something else, or malformed, or weak, is left out (RFC 7517 §5).
pub(super) fn usable(json: &[u8]) -> Result<Vec<JwtKey>, Error> {
    if json.len() > MAX_BYTES {
        return Err(
            Error::new(Kind::Invalid, "keys_too_many").with_message(format!("a key set has at most {MAX_BYTES} bytes"))
        );
    }
    let set: Option<Set<'_>> = is_object(json).then(|| serde_json::from_slice(json).ok()).flatten();
    let set = set.ok_or_else(|| invalid("this is not a JSON web key set".to_owned()))?;
    if set.keys.len() > MAX_LISTED {
        return Err(
            Error::new(Kind::Invalid, "keys_too_many").with_message(format!("a key set has at most {MAX_LISTED} keys"))
        );
    }
    let listed: Vec<_> = set.keys.iter().filter_map(|key| Jwk::parse(key.get())).collect();
    // Also if one of two is broken: then it may be the one that was meant. Of one that is there twice the first counts.
    let is_clear = |(at, jwk): &(usize, &Jwk<'_>)| {
        let mut others = listed.iter().enumerate().filter(|(other, _)| other != at);
        others.all(|(other, key)| !jwk.collides(key) || *at < other && jwk.material() == key.material())
    };
    let clear = listed.iter().enumerate().filter(is_clear);
    let mut keys: Vec<_> = clear.filter_map(|(_, jwk)| jwk.key().ok()).collect();
    if keys.iter().any(|key| !key.is_secret()) {
        keys.retain(|key| !key.is_secret());
    }
    Ok(keys)
}

impl JwtKey {
    /// A key from a JSON web key (RFC 7517) that is for verifying signatures: `use` and `key_ops` allow it, and `alg` names an
    /// algorithm of ours that fits `kty` and `crv`. Without `alg`, which is optional (§4.4), it verifies every algorithm that
    /// fits: an RSA key RS256 to RS512 and PS256 to PS512, a secret those whose hash is not longer than it is.
    /// [`Issuer::algorithms`](crate::Issuer::algorithms) makes them fewer. Of P-521 the `alg` may be called `ES521`, which is a
    /// mistake that is about.
    ///
    /// # Errors
    /// `key_invalid`, [`Kind::Invalid`]: it is for something else, malformed, private, or weak: RSA below 2048 bits, with an
    /// exponent below 3, or of the kind that Infineon's library made (CVE-2017-15361); a secret shorter than its hash.
    pub fn jwk(json: &str) -> Result<Self, Error> {
        Jwk::parse(json).ok_or_else(|| invalid("this is not a JSON web key".to_owned()))?.key()
    }
}

impl<'a> Jwk<'a> {
    fn parse(json: &'a str) -> Option<Self> {
        is_object(json.as_bytes()).then(|| serde_json::from_str(json).ok()).flatten()
    }
}

impl Jwk<'_> {
    fn is_for_verifying(&self) -> bool {
        self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().filter(|op| *op == "verify").count() == 1)
    }

    /// Could a token of this key be one of the other's?
    fn collides(&self, other: &Self) -> bool {
        let are_for = self.is_for_verifying() && other.is_for_verifying();
        let is_one = self.algorithms().iter().any(|algorithm| other.algorithms().contains(algorithm));
        are_for && is_one && self.kid.is_some() && self.kid == other.kid
    }

    /// What is the key itself.
    fn material(&self) -> [Option<&str>; 5] {
        [&self.n, &self.e, &self.x, &self.y, &self.k].map(Option::as_deref)
    }

    fn key(&self) -> Result<JwtKey, Error> {
        if !self.is_for_verifying() || [&self.d, &self.p, &self.q].into_iter().any(Option::is_some) {
            return Err(invalid("the key is not one for verifying signatures".to_owned()));
        }
        let algorithms = self.algorithms();
        let Some(first) = algorithms.first() else {
            return Err(invalid("the key names no algorithm of ours that fits it".to_owned()));
        };
        let verifiers = match &*self.kty {
            "oct" => {
                let secret = decode(&self.k)?;
                // A longer hash than the secret is for another one, unless it was asked for.
                let longer = algorithms[1..].iter().filter_map(|algorithm| Verifier::new(*algorithm, &secret).ok());
                [Verifier::new(*first, &secret)?].into_iter().chain(longer).collect()
            }
            "OKP" => vec![Verifier::new(*first, &sized(&self.x, 32)?)?],
            "EC" => {
                let coordinate = match first {
                    Algorithm::Es256 => 32,
                    Algorithm::Es384 => 48,
                    _ => 66,
                };
                // Uncompressed (SEC 1 §2.3.3).
                let point = [vec![4], sized(&self.x, coordinate)?, sized(&self.y, coordinate)?].concat();
                vec![Verifier::new(*first, &point)?]
            }
            _ => {
                let (n, e) = (decode(&self.n)?, decode(&self.e)?);
                // Some put a zero in front, as DER does.
                let n = &n[n.iter().take_while(|byte| **byte == 0).count()..];
                let bits = 8 * n.len() - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
                if !(2048..=8192).contains(&bits) || matches!(*e, [] | [0..=2]) || has_roca_shape(n) {
                    return Err(invalid("the RSA key is weak, or beyond 8192 bits".to_owned()));
                }
                let key = PublicKeyComponents { n, e: &*e };
                let parsed = algorithms.iter().filter_map(|algorithm| {
                    let parsed = key.to_parsed_public_key(algorithm.rsa()?);
                    Some(parsed.map(|parsed| Verifier::parsed(*algorithm, parsed)))
                });
                parsed.collect::<Result<_, _>>().map_err(|_| invalid("this is not an RSA key".to_owned()))?
            }
        };
        Ok(JwtKey { kid: self.kid.as_deref().map(Into::into), verifiers })
    }

    /// The algorithms it is for, none if what it names does not fit its type.
    fn algorithms(&self) -> &'static [Algorithm] {
        use Algorithm::{EdDsa, Es256, Es384, Es512, Hs256, Hs384, Hs512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        let fitting: &'static [_] = match (&*self.kty, self.crv.as_deref()) {
            ("RSA", None) => &[Rs256, Rs384, Rs512, Ps256, Ps384, Ps512],
            ("EC", Some("P-256")) => &[Es256],
            ("EC", Some("P-384")) => &[Es384],
            ("EC", Some("P-521")) => &[Es512],
            ("OKP", Some("Ed25519")) => &[EdDsa],
            ("oct", None) => &[Hs256, Hs384, Hs512],
            _ => &[],
        };
        let Some(name) = self.alg.as_deref() else { return fitting };
        let named = Algorithm::named(if name == "ES521" { "ES512" } else { name });
        let at = fitting.iter().position(|algorithm| Some(*algorithm) == named);
        at.map_or(&[], |at| &fitting[at..=at])
    }
}

fn decode(text: &Option<Cow<'_, str>>) -> Result<Vec<u8>, Error> {
    let bytes = text.as_ref().and_then(|text| URL_SAFE_NO_PAD.decode(&**text).ok());
    bytes.ok_or_else(|| invalid("a part of the key is missing, or not base64url".to_owned()))
}

fn sized(text: &Option<Cow<'_, str>>, len: usize) -> Result<Vec<u8>, Error> {
    let bytes = decode(text)?;
    if bytes.len() == len { Ok(bytes) } else { Err(invalid(format!("a part of the key has not {len} bytes"))) }
}

/// The parser would take the members of an object from a list as well, one by one.
pub(super) fn is_object(json: &[u8]) -> bool {
    json.trim_ascii_start().starts_with(b"{")
}

/// Is this modulus, modulo each of some small primes, a power of 65537? By chance one in 2^27 is; those of the faulty library
/// all are, and can be factored (Nemec et al., "The Return of Coppersmith's Attack", §2).
fn has_roca_shape(modulus: &[u8]) -> bool {
    const PRIMES: [u32; 38] = [
        3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107,
        109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
    ];
    PRIMES.iter().all(|prime| {
        let rest = modulus.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        (0..*prime).any(|_| {
            power = power * (65537 % prime) % prime;
            power == rest
        })
    })
}
