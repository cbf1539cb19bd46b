//! Tokens, signed as others do: by hand.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
        EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use coze_auth::{Algorithm, Issuer, Jwt, JwtKey, JwtKeys};
use coze_core::{Context, Error};
use hmac::{Hmac, KeyInit, Mac};
use http::{Request, header::AUTHORIZATION};
use sha2::{Sha256, Sha384, Sha512};

use crate::support::send;

pub(crate) const NOW: u64 = 1_700_000_000;
pub(crate) const SECRET: &[u8] = &[7; 64];
pub(crate) const ISSUER: &str = "https://issuer.example";

pub(crate) static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"));
pub(crate) static EC: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"));
static EC_384: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key"));
static EC_521: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).expect("a key"));
pub(crate) static ED: LazyLock<Ed25519KeyPair> = LazyLock::new(|| Ed25519KeyPair::generate().expect("a key"));

pub(crate) fn clock() -> SystemTime {
    at(NOW)
}

pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What signs under this algorithm, whatever the header says.
pub(crate) fn signature(algorithm: Algorithm, message: &str) -> Vec<u8> {
    fn mac<M: Mac + KeyInit>(message: &str) -> Vec<u8> {
        <M as KeyInit>::new_from_slice(SECRET).expect("any").chain_update(message).finalize().into_bytes().to_vec()
    }
    let rsa = |encoding: &'static dyn aws_lc_rs::signature::RsaEncoding| {
        let mut signature = vec![0; RSA.public_modulus_len()];
        RSA.sign(encoding, &SystemRandom::new(), message.as_bytes(), &mut signature).expect("signed");
        signature
    };
    let ec =
        |pair: &EcdsaKeyPair| pair.sign(&SystemRandom::new(), message.as_bytes()).expect("signed").as_ref().to_vec();
    match algorithm {
        Algorithm::Hs256 => mac::<Hmac<Sha256>>(message),
        Algorithm::Hs384 => mac::<Hmac<Sha384>>(message),
        Algorithm::Hs512 => mac::<Hmac<Sha512>>(message),
        Algorithm::Rs256 => rsa(&RSA_PKCS1_SHA256),
        Algorithm::Ps256 => rsa(&RSA_PSS_SHA256),
        Algorithm::Es256 => ec(&EC),
        Algorithm::Es384 => ec(&EC_384),
        Algorithm::Es512 => ec(&EC_521),
        Algorithm::EdDsa => ED.sign(message.as_bytes()).as_ref().to_vec(),
        other => panic!("the tests do not sign with {other:?}"),
    }
}

/// A token of these parts, signed.
pub(crate) fn raw(header: &str, claims: &str, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", base64url(header), base64url(claims));
    let signature = base64url(signature(algorithm, &message));
    format!("{message}.{signature}")
}

/// A token with these claims besides `iss` and `sub`, such as `"exp":5`.
pub(crate) fn token(claims: &str) -> String {
    raw(r#"{"alg":"HS256"}"#, &format!(r#"{{"iss":"{ISSUER}","sub":"alice",{claims}}}"#), Algorithm::Hs256)
}

/// A token that is valid for another hour.
pub(crate) fn valid() -> String {
    token(&format!(r#""exp":{}"#, NOW + 3600))
}

/// The key that verifies what [`signature`] made.
pub(crate) fn key(algorithm: Algorithm) -> JwtKey {
    let key = match algorithm {
        Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => SECRET,
        Algorithm::Es256 => EC.public_key().as_ref(),
        Algorithm::Es384 => EC_384.public_key().as_ref(),
        Algorithm::Es512 => EC_521.public_key().as_ref(),
        Algorithm::EdDsa => ED.public_key().as_ref(),
        _ => RSA.public_key().as_ref(),
    };
    JwtKey::new(algorithm, key).expect("a key")
}

pub(crate) fn keys(algorithm: Algorithm) -> JwtKeys {
    JwtKeys::new([key(algorithm)]).expect("one key")
}

pub(crate) fn issuer() -> Issuer {
    Issuer::new(ISSUER, keys(Algorithm::Hs256))
}

pub(crate) fn jwt(issuer: Issuer) -> Jwt {
    Jwt::new([issuer]).expect("one issuer").clock(clock)
}

pub(crate) fn bearing(token: impl AsRef<[u8]>) -> Request<()> {
    let value = [b"Bearer ", token.as_ref()].concat();
    Request::builder().header(AUTHORIZATION, value).body(()).expect("a request")
}

/// How the policy answers, and what the context says then.
pub(crate) async fn ask(policy: &Jwt, mut request: Request<()>) -> (Result<(), Error>, Context) {
    let context = Context::of(request.extensions_mut());
    (send(policy, request).await.map(drop), context)
}

/// `ok`, or the reason of the refusal: the same in the error and on the context.
pub(crate) async fn verdict(policy: &Jwt, token: impl AsRef<[u8]>) -> &'static str {
    let (answer, context) = ask(policy, bearing(token)).await;
    let verdict = answer.as_ref().map_or_else(Error::reason, |()| "ok");
    assert_eq!(context.auth(), Some(verdict));
    assert_eq!(context.principal.get().is_some(), answer.is_ok(), "a principal is noted if and only if it is accepted");
    verdict
}
