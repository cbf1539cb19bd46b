use std::{
    convert::Infallible,
    future::ready,
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use coze_auth::{Algorithm, AuthLayer, Issuer, Jwt, JwtKey, JwtKeys};
use coze_core::{Context, Error, Kind};
use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use serde_json::Value;
use tower::{Layer, Service, service_fn};

use super::{is_discreet, requests::at_once};

/// 2023-11-14, in seconds of the Unix clock. The tokens are good then.
const NOW: u64 = 1_700_000_000;
const SECRET: &str = "a-secret-of-the-issuer-0123456789";

/// The only tokens that were ever signed by our issuers.
const SIGNED: [&str; 2] = [
    include_str!("../../../fuzz/seeds/jwt/valid-plain").trim_ascii(),
    include_str!("../../../fuzz/seeds/jwt/valid-rich").trim_ascii(),
];
/// The tokens of RFC 7515 §A.1 (HS256) and §A.3 (ES256), and the set with their keys.
const OF_A1: &str = include_str!("../../../fuzz/seeds/jwt/rfc7515-a1").trim_ascii();
const OF_A3: &str = include_str!("../../../fuzz/seeds/jwt/rfc7515-a3").trim_ascii();
const KEY_A1: &str = include_str!("../../../fuzz/seeds/jwks/valid-rfc7515-a1");
const KEY_A3: &str = include_str!("../../../fuzz/seeds/jwks/valid-rfc7515-a3");

static POLICY: LazyLock<Jwt> = LazyLock::new(|| {
    let keys = JwtKeys::new([JwtKey::new(Algorithm::Hs256, SECRET).expect("long enough").named("k1")]);
    let issuer = Issuer::new("https://issuer.example", keys.expect("one key")).audience("bots");
    let clock = || UNIX_EPOCH + Duration::from_secs(NOW);
    Jwt::new([issuer]).expect("one issuer").tenant("tenant").clock(clock as fn() -> SystemTime)
});
static RFC_7515: LazyLock<[JwtKeys; 2]> =
    LazyLock::new(|| [KEY_A1, KEY_A3].map(|set| JwtKeys::jwks(set.as_bytes()).expect("the set of the RFC")));

/// A token, as it stands behind `Bearer `. Nobody but the issuers can sign, so what is accepted is what they signed, letter by
/// letter; but of an ECDSA signature anybody can make a second one.
pub fn jwt(data: &[u8]) -> bool {
    let data = data.trim_ascii();
    for (keys, known) in RFC_7515.iter().zip([OF_A1, OF_A3]) {
        match keys.verify(data) {
            Ok(payload) => {
                let signed = |token: &str| token.rsplit_once('.').map(|(signed, _)| signed.to_owned());
                let token = str::from_utf8(data).expect("a token is ascii");
                assert_eq!(signed(token), signed(known), "somebody signed something else");
                assert!(known == OF_A3 || token == known, "a second form of a signature");
                let encoded = known.split('.').nth(1).expect("three parts");
                assert_eq!(URL_SAFE_NO_PAD.encode(payload), encoded, "the payload is what was signed");
            }
            Err(error) => is_discreet(&error, []),
        }
    }

    let header = [b"Bearer ", data].concat();
    let Ok(header) = HeaderValue::from_bytes(&header) else { return false };
    let expected = SIGNED.iter().any(|token| token.as_bytes() == data);
    // The second time it may be remembered.
    for _ in 0..2 {
        let mut request = Request::new(());
        request.headers_mut().insert(AUTHORIZATION, header.clone());
        let context = Context::of(request.extensions_mut());
        let mut service =
            AuthLayer::new(POLICY.clone()).layer(service_fn(|_| ready(Ok::<_, Infallible>(Response::new(())))));
        let verdict = at_once(service.call(request));
        assert_eq!(verdict.is_ok(), expected, "accepted is what was signed, and nothing else");
        let subject = context.principal.get().map(|principal| &*principal.subject);
        assert_eq!(subject, expected.then_some("someone"));
        if let Err(error) = verdict {
            is_discreet(&*error, [SECRET].into_iter().chain(str::from_utf8(data).ok().filter(|text| text.len() > 32)));
            assert_eq!(Error::find(&*error).map(Error::kind), Some(Kind::Unauthenticated));
        }
    }
    expected
}

/// A set of keys. Whatever is in it, it verifies the tokens of RFC 7515 only if their keys are there, and shows no secret.
pub fn jwks(data: &[u8]) -> bool {
    let keys = JwtKeys::jwks(data);
    let before = JwtKeys::jwks(KEY_A1.as_bytes()).expect("the set of the RFC");
    assert_eq!(before.replace_jwks(data).is_ok(), keys.is_ok(), "a set is as good as another time");

    // Who looks at everything takes less than who looks for keys: what is beyond a number, or half a character.
    let Ok(set) = serde_json::from_slice::<Value>(data) else { return keys.is_ok() };
    let listed = set["keys"].as_array().map_or(&[][..], Vec::as_slice);
    let secrets = listed.iter().filter_map(|key| key["k"].as_str()).filter(|secret| secret.len() >= 32);
    match keys {
        Ok(keys) => {
            assert!(!listed.is_empty() && listed.len() <= 128 && data.len() <= 256 * 1024, "a set is bounded");
            let shown = format!("{keys:?}");
            secrets.for_each(|secret| assert!(!shown.contains(secret), "a set shows a secret"));
            for (token, set, members) in [(OF_A1, KEY_A1, &["k"][..]), (OF_A3, KEY_A3, &["x", "y"])] {
                let set: Value = serde_json::from_str(set).expect("json");
                let is_there = listed.iter().any(|key| members.iter().all(|name| key[*name] == set["keys"][0][*name]));
                assert!(is_there || keys.verify(token.as_bytes()).is_err(), "a key that is not there verifies");
            }
            true
        }
        Err(error) => {
            is_discreet(&error, secrets);
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(before.verify(OF_A1.as_bytes()).is_ok(), "the keys stay as they were");
            false
        }
    }
}
