//! Which key verifies a token, and which key is none.

use aws_lc_rs::{
    encoding::AsDer,
    rsa::KeySize,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RsaKeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use coze_auth::{Algorithm, Issuer, JwtKey, JwtKeys, MAX_KEYS};

use crate::{
    support::reason,
    token::{EC, ED, ISSUER, NOW, RSA, SECRET, base64url, bearing, jwt, key, raw, valid, verdict},
};

fn kid(kid: Option<&str>, algorithm: Algorithm) -> String {
    let kid = kid.map(|kid| format!(r#","kid":"{kid}""#)).unwrap_or_default();
    let header = format!(r#"{{"alg":"{}"{kid}}}"#, algorithm.as_str());
    raw(&header, &format!(r#"{{"iss":"{ISSUER}","sub":"a","exp":{}}}"#, NOW + 1), algorithm)
}

fn other() -> JwtKey {
    JwtKey::new(Algorithm::Hs256, [8; 32]).expect("a key")
}

#[tokio::test]
async fn the_kid_picks_the_key() {
    let hs = key(Algorithm::Hs256);
    let of = |keys: Vec<JwtKey>| jwt(Issuer::new(ISSUER, JwtKeys::new(keys).expect("keys")));
    let named = of(vec![hs.clone().named("a"), other().named("b")]);
    assert_eq!(verdict(&named, kid(Some("a"), Algorithm::Hs256)).await, "ok");
    assert_eq!(verdict(&named, kid(Some("b"), Algorithm::Hs256)).await, "signature_invalid");
    assert_eq!(verdict(&named, kid(Some("c"), Algorithm::Hs256)).await, "unknown_key");
    assert_eq!(verdict(&named, kid(Some(""), Algorithm::Hs256)).await, "unknown_key");
    assert_eq!(verdict(&named, kid(None, Algorithm::Hs256)).await, "unknown_key", "there is more than one");

    let only = of(vec![hs.clone().named("a")]);
    assert_eq!(verdict(&only, kid(None, Algorithm::Hs256)).await, "ok");
    assert_eq!(verdict(&only, kid(Some("b"), Algorithm::Hs256)).await, "unknown_key");

    let nameless = of(vec![other(), hs.clone(), other().named("b")]);
    for token in [kid(None, Algorithm::Hs256), kid(Some("whatever"), Algorithm::Hs256)] {
        assert_eq!(verdict(&nameless, token).await, "ok");
    }
    assert_eq!(verdict(&nameless, kid(Some("b"), Algorithm::Hs256)).await, "signature_invalid");
}

#[test]
fn a_set_of_keys_is_bounded_and_unambiguous() {
    let refused = |keys: Vec<JwtKey>| reason(JwtKeys::new(keys));
    assert_eq!(refused(vec![]), Some("keys_missing"));
    assert_eq!(refused(vec![other(); MAX_KEYS]), None);
    assert_eq!(refused(vec![other(); MAX_KEYS + 1]), Some("keys_too_many"));
    assert_eq!(refused((0..128).map(|i| other().named(&i.to_string())).collect()), None);
    assert_eq!(refused((0..129).map(|i| other().named(&i.to_string())).collect()), Some("keys_too_many"));
    assert_eq!(refused(vec![other().named("a"), key(Algorithm::Hs256).named("a")]), Some("keys_ambiguous"));
    assert_eq!(refused(vec![other().named("a"), key(Algorithm::Rs256).named("b")]), Some("keys_ambiguous"));
    assert_eq!(refused(vec![other().named("a"), key(Algorithm::Hs512).named("a")]), None, "a name for each algorithm");
}

#[test]
fn a_weak_or_foreign_key_is_refused() {
    for (algorithm, least) in [(Algorithm::Hs256, 32), (Algorithm::Hs384, 48), (Algorithm::Hs512, 64)] {
        assert!(JwtKey::new(algorithm, vec![1; least]).is_ok());
        assert_eq!(reason(JwtKey::new(algorithm, vec![1; least - 1])), Some("key_invalid"));
    }
    // 1024 bits, as PKCS#1: a modulus of ones.
    let mut weak = vec![0x30, 0x81, 0x89, 0x02, 0x81, 0x81, 0x00];
    weak.extend([0xFF; 128]);
    weak.extend([0x02, 0x03, 0x01, 0x00, 0x01]);
    assert_eq!(reason(JwtKey::new(Algorithm::Rs256, weak)), Some("key_invalid"));
    for algorithm in Algorithm::ALL {
        assert_eq!(reason(JwtKey::new(*algorithm, b"")), Some("key_invalid"), "{algorithm:?}");
    }
    assert_eq!(reason(JwtKey::new(Algorithm::Es384, EC.public_key())), Some("key_invalid"), "another curve");
    assert_eq!(reason(JwtKey::new(Algorithm::Rs256, EC.public_key())), Some("key_invalid"));
    assert_eq!(reason(JwtKey::new(Algorithm::EdDsa, RSA.public_key())), Some("key_invalid"));
}

#[tokio::test]
async fn a_public_key_is_read_from_pem_and_der() {
    let rsa: Vec<u8> = RSA.public_key().as_der().expect("der").as_ref().to_vec();
    let ec: Vec<u8> = EC.public_key().as_der().expect("der").as_ref().to_vec();
    let ed: Vec<u8> = ED.public_key().as_der().expect("der").as_ref().to_vec();
    for (algorithm, der) in [(Algorithm::Rs256, rsa), (Algorithm::Es256, ec), (Algorithm::EdDsa, ed)] {
        let base64 = STANDARD.encode(&der);
        let (first, rest) = base64.split_at(20);
        let pem = format!("\n-----BEGIN PUBLIC KEY-----\r\n{first}\n{rest}\n-----END PUBLIC KEY-----\n");
        let keys = [JwtKey::new(algorithm, &der), JwtKey::pem(algorithm, &pem)];
        for key in keys {
            let keys = JwtKeys::new([key.expect("a key")]).expect("one key");
            assert_eq!(verdict(&jwt(Issuer::new(ISSUER, keys)), kid(None, algorithm)).await, "ok", "{algorithm:?}");
        }
    }
    let pkcs1 =
        format!("-----BEGIN RSA PUBLIC KEY-----{}-----END RSA PUBLIC KEY-----", STANDARD.encode(RSA.public_key()));
    assert!(JwtKey::pem(Algorithm::Ps512, &pkcs1).is_ok());
    for pem in ["", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", &pkcs1[..90]] {
        assert_eq!(reason(JwtKey::pem(Algorithm::Rs256, pem)), Some("key_invalid"), "{pem}");
    }
    assert_eq!(reason(JwtKey::pem(Algorithm::Hs256, &pkcs1)), Some("key_invalid"), "a public key is no secret");
}

fn rsa_jwk(bits: KeySize, more: &str) -> String {
    let pair = RsaKeyPair::generate(bits).expect("a key");
    // PKCS#1: a sequence of the modulus, which begins with a zero, and the exponent of three bytes.
    let der = pair.public_key().as_ref().to_vec();
    let len = pair.public_modulus_len();
    let n = &der[der.len() - 5 - len..der.len() - 5];
    format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"{more}}}"#, base64url(n))
}

#[test]
fn a_jwk_is_used_only_for_what_it_is_for() {
    let good = rsa_jwk(KeySize::Rsa2048, "");
    let with = |member: &str| good.replace(r#""e""#, &format!(r#"{member},"e""#));
    assert_eq!(JwtKey::jwk(&good).expect("a key").algorithms().count(), 6);
    assert_eq!(
        JwtKey::jwk(&with(r#""alg":"PS384""#)).expect("a key").algorithms().collect::<Vec<_>>(),
        [Algorithm::Ps384]
    );
    assert_eq!(JwtKey::jwk(&with(r#""kid":"k1""#)).expect("a key").kid(), Some("k1"));
    for fits in [r#""use":"sig""#, r#""key_ops":["verify"]"#, r#""key_ops":["sign","verify"]"#, r#""x5c":["?"]"#] {
        assert!(JwtKey::jwk(&with(fits)).is_ok(), "{fits}");
    }
    for wrong in [
        r#""use":"enc""#,
        r#""key_ops":["encrypt"]"#,
        r#""key_ops":[]"#,
        r#""alg":"RSA-OAEP""#,
        r#""alg":"HS256""#,
        r#""alg":"ES256""#,
        r#""alg":"none""#,
        r#""alg":"rs256""#,
        r#""crv":"P-256""#,
        r#""key_ops":["verify","verify"]"#,
        r#""d":"AQAB""#,
        r#""p":"AQAB""#,
        r#""q":"AQAB""#,
        r#""kty":"RSA""#,
        r#""kid":5"#,
    ] {
        assert_eq!(reason(JwtKey::jwk(&with(wrong))), Some("key_invalid"), "{wrong}");
    }
    for broken in [good.replace("AQAB", "AQ"), good.replace("AQAB", ""), good.replace("AQAB", "AQAB="), "{}".to_owned()]
    {
        assert_eq!(reason(JwtKey::jwk(&broken)), Some("key_invalid"), "{broken}");
    }
}

#[test]
fn a_jwk_that_names_no_algorithm_is_for_all_that_fit_it() {
    use Algorithm::{EdDsa, Es256, Hs256, Hs384, Hs512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
    let of = |jwk: &str| JwtKey::jwk(jwk).map(|key| key.algorithms().collect::<Vec<_>>());
    let rsa = rsa_jwk(KeySize::Rsa2048, "");
    assert_eq!(of(&rsa).expect("a key"), [Rs256, Rs384, Rs512, Ps256, Ps384, Ps512]);
    assert_eq!(of(&ec_jwk("a")).expect("a key"), [Es256]);
    assert_eq!(of(&ed_jwk("a")).expect("a key"), [EdDsa]);
    let secret = |bytes: usize| of(&format!(r#"{{"kty":"oct","k":"{}"}}"#, base64url(&SECRET[..bytes])));
    for (bytes, expected) in
        [(32, &[Hs256][..]), (47, &[Hs256]), (48, &[Hs256, Hs384]), (63, &[Hs256, Hs384]), (64, &[Hs256, Hs384, Hs512])]
    {
        assert_eq!(secret(bytes).expect("a key"), expected, "no hash that is longer than the secret");
    }
    assert_eq!(reason(secret(31)), Some("key_invalid"));
    for (jwk, alg, expected) in [(ed_jwk("a"), "Ed25519", Some(EdDsa)), (ec_jwk("a"), "ES521", None)] {
        let named = jwk.replacen('{', &format!(r#"{{"alg":"{alg}","#), 1);
        assert_eq!(of(&named).ok(), expected.map(|algorithm| vec![algorithm]), "{alg}");
    }
}

fn ec_jwk(kid: &str) -> String {
    ec_jwk_of(EC.public_key().as_ref(), kid)
}

fn ec_jwk_of(point: &[u8], kid: &str) -> String {
    let (x, y) = (base64url(&point[1..33]), base64url(&point[33..]));
    format!(r#"{{"kty":"EC","crv":"P-256","kid":"{kid}","x":"{x}","y":"{y}"}}"#)
}

fn ed_jwk(kid: &str) -> String {
    format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{}"}}"#, base64url(ED.public_key().as_ref()))
}

fn oct_jwk(kid: &str) -> String {
    format!(r#"{{"kty":"oct","kid":"{kid}","k":"{}"}}"#, base64url(SECRET))
}

#[tokio::test]
async fn keys_of_one_name_are_for_different_algorithms_and_else_none_of_them_is_used() {
    use Algorithm::{EdDsa, Es256, Hs256};
    let other = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let other = ec_jwk_of(other.public_key().as_ref(), "a");
    let broken = ec_jwk("a").replace(r#""x":""#, r#""x":"A"#);
    let encryption = other.replacen('{', r#"{"use":"enc","#, 1);
    let (ec, ed, oct) = (ec_jwk("a"), ed_jwk("a"), oct_jwk("a"));
    for (set, algorithm, expected) in [
        // RFC 7517 §4.5
        (vec![&ec, &ed], Es256, "ok"),
        (vec![&ec, &ed], EdDsa, "ok"),
        (vec![&ec, &encryption], Es256, "ok"),
        (vec![&ec, &ec], Es256, "ok"),
        (vec![&ec, &other, &ed], Es256, "signature_invalid"),
        (vec![&ec, &other, &ed], EdDsa, "ok"),
        (vec![&ec, &ec, &other, &ed], Es256, "signature_invalid"),
        (vec![&broken, &ec, &ed], Es256, "signature_invalid"),
        // A secret among public keys is left out.
        (vec![&oct, &ec], Es256, "ok"),
        (vec![&oct, &ec], Hs256, "signature_invalid"),
        (vec![&ec, &oct], Hs256, "signature_invalid"),
    ] {
        let set: Vec<_> = set.into_iter().map(String::as_str).collect();
        let keys = JwtKeys::jwks(format!(r#"{{"keys":[{}]}}"#, set.join(",")).as_bytes()).expect("some are good");
        let policy = jwt(Issuer::new(ISSUER, keys));
        assert_eq!(verdict(&policy, kid(Some("a"), algorithm)).await, expected, "{set:?} {algorithm:?}");
    }
    assert_eq!(reason(JwtKeys::jwks(format!(r#"{{"keys":[{ec},{other}]}}"#).as_bytes())), Some("keys_missing"));
}

#[test]
fn a_set_leaves_out_what_is_not_for_us_and_is_bounded() {
    let good = rsa_jwk(KeySize::Rsa2048, r#","kid":"good""#);
    let set = |keys: &str| JwtKeys::jwks(format!(r#"{{"keys":[{keys}],"other":1}}"#).as_bytes());
    let mixed = format!(r#"{{"kty":"new"}},5,null,{{"kty":"RSA","n":5}},{good}"#);
    assert_eq!(reason(set(&mixed)), None);
    assert_eq!(reason(set(r#"{"kty":"new"}"#)), Some("keys_missing"));
    assert_eq!(reason(set(&vec![r#"{"kty":"new"}"#; 129].join(","))), Some("keys_too_many"));
    assert_eq!(reason(set(&format!("{good}{}", " ".repeat(256 * 1024)))), Some("keys_too_many"));
    for broken in ["", "[]", "{}", r#"{"keys":5}"#, r#"{"keys":[],"keys":[]}"#, r#"{"keys":[]} x"#] {
        assert_eq!(reason(JwtKeys::jwks(broken.as_bytes())), Some("key_invalid"), "{broken}");
    }
}

#[tokio::test]
async fn keys_are_replaced_while_tokens_are_verified_and_stay_when_the_new_ones_are_broken() {
    let keys = JwtKeys::new([key(Algorithm::Hs256)]).expect("one key");
    let policy = jwt(Issuer::new(ISSUER, keys.clone()));
    assert_eq!(verdict(&policy, valid()).await, "ok");
    assert_eq!(reason(keys.replace([])), Some("keys_missing"));
    assert_eq!(reason(keys.replace_jwks(b"{}")), Some("key_invalid"));
    assert_eq!(verdict(&policy, valid()).await, "ok");
    keys.replace([other()]).expect("one key");
    assert_eq!(verdict(&policy, valid()).await, "signature_invalid");
    keys.replace([other(), key(Algorithm::Hs256)]).expect("two keys");
    assert_eq!(verdict(&policy, valid()).await, "ok");
}

#[test]
fn the_payload_of_any_signed_text_is_handed_out() {
    let keys = JwtKeys::new([key(Algorithm::Hs256)]).expect("one key");
    assert_eq!(
        keys.verify(raw(r#"{"alg":"HS256"}"#, "not json", Algorithm::Hs256).as_bytes()).expect("signed"),
        b"not json"
    );
    assert_eq!(reason(keys.verify(b"a.b")), Some("parse_error"));
}

#[test]
fn keys_rotate_under_load_and_no_valid_token_is_refused() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (old, new) = (key(Algorithm::Hs256).named("old"), key(Algorithm::Hs256).named("new"));
    let keys = JwtKeys::new([old.clone(), new.clone()]).expect("two keys");
    let policy = jwt(Issuer::new(ISSUER, keys.clone()));
    let (token, is_over) = (kid(Some("new"), Algorithm::Hs256), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let (mut head, body) = bearing(&token).into_parts();
                    let coze_auth::Decision::Now(answer) = coze_auth::Policy::authorize(&policy, &mut head, body)
                    else {
                        panic!("it waits");
                    };
                    answer.expect("the key is in both sets");
                }
            });
        }
        for _ in 0..500 {
            keys.replace([new.clone()]).expect("one key");
            keys.replace([old.clone(), new.clone()]).expect("two keys");
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
