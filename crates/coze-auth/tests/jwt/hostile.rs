//! What attackers send.

use coze_auth::{Algorithm, Issuer, Jwt, JwtKey, JwtKeys};
use proptest::prelude::*;

use crate::token::{
    ISSUER, NOW, RSA, SECRET, base64url, bearing, issuer, jwt, key, keys, raw, signature, token, valid, verdict,
};

fn claims() -> String {
    format!(r#"{{"iss":"{ISSUER}","sub":"alice","exp":{}}}"#, NOW + 3600)
}

/// The verdict on a token with this header, signed as HS256.
async fn headed(header: &str) -> &'static str {
    verdict(&jwt(issuer()), raw(header, &claims(), Algorithm::Hs256)).await
}

#[tokio::test]
async fn an_unsigned_token_is_refused_however_it_says_so() {
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256 ", "hs256", "HS2", "HS384", "RS256"] {
        let header = format!(r#"{{"alg":"{alg}"}}"#);
        assert_eq!(headed(&header).await, "signature_invalid", "{alg}");
        let unsigned = format!("{}.{}.", base64url(&header), base64url(claims()));
        assert_eq!(verdict(&jwt(issuer()), unsigned).await, "signature_invalid", "{alg}");
    }
    for header in [r#"{"typ":"JWT"}"#, r#"{"alg":null}"#, r#"{"alg":["HS256"]}"#, r#"{"alg":5}"#, "[]", "5", "", "{}"] {
        assert_eq!(headed(header).await, "parse_error", "{header}");
    }
    assert_eq!(
        verdict(&jwt(issuer()), raw(r#"{"alg":"HS256"}"#, &claims(), Algorithm::Hs512)).await,
        "signature_invalid"
    );
}

#[tokio::test]
async fn a_public_key_is_not_taken_for_a_secret() {
    use aws_lc_rs::signature::KeyPair;
    use hmac::{Hmac, KeyInit, Mac};
    let policy = jwt(Issuer::new(ISSUER, keys(Algorithm::Rs256)));
    let message = format!("{}.{}", base64url(r#"{"alg":"HS256"}"#), base64url(claims()));
    let mac = Hmac::<sha2::Sha256>::new_from_slice(RSA.public_key().as_ref()).expect("any").chain_update(&message);
    let token = format!("{message}.{}", base64url(mac.finalize().into_bytes()));
    assert_eq!(verdict(&policy, token).await, "signature_invalid");
    // The same key, another padding.
    for (header, signed) in [("RS256", Algorithm::Ps256), ("PS256", Algorithm::Ps256), ("PS256", Algorithm::Rs256)] {
        let token = raw(&format!(r#"{{"alg":"{header}"}}"#), &claims(), signed);
        assert_eq!(verdict(&policy, token).await, "signature_invalid", "{header}");
    }
}

#[tokio::test]
async fn a_token_does_not_bring_its_own_key() {
    let jwk = format!(r#"{{"kty":"oct","alg":"HS256","k":"{}"}}"#, base64url(SECRET));
    let others =
        jwt(Issuer::new(ISSUER, JwtKeys::new([JwtKey::new(Algorithm::Hs256, [8; 32]).expect("a key")]).expect("one")));
    for member in [
        r#""jku":"https://evil.example/keys""#.to_owned(),
        r#""x5u":"https://evil.example/cert""#.to_owned(),
        r#""x5c":["MIIB"],"x5t":"thumb""#.to_owned(),
        format!(r#""jwk":{jwk}"#),
        r#""unknown":{"a":[1]}"#.to_owned(),
        r#""b64":true"#.to_owned(),
    ] {
        let header = format!(r#"{{"alg":"HS256",{member}}}"#);
        assert_eq!(headed(&header).await, "ok", "{member}: what it says of its key is not looked at (RFC 7515 §4)");
        let forged = raw(&header, &claims(), Algorithm::Hs256);
        assert_eq!(verdict(&others, forged).await, "signature_invalid", "{member}");
    }
}

#[tokio::test]
async fn a_token_insists_on_no_extension() {
    for member in [
        r#""crit":["exp"]"#,
        r#""crit":["b64"],"b64":false"#,
        r#""crit":["b64"],"b64":true"#,
        r#""crit":["alg"]"#,
        r#""crit":[]"#,
        r#""crit":null"#,
        r#""cr\u0069t":["exp"]"#,
        r#""b64":false"#,
        r#""b64":null"#,
        r#""b64":"true""#,
    ] {
        assert_eq!(headed(&format!(r#"{{"alg":"HS256",{member}}}"#)).await, "parse_error", "{member}");
    }
}

#[tokio::test]
async fn all_of_it_is_utf_8() {
    for (header, claims) in [
        (&b"{\"alg\":\"HS256\",\"x\":\"\xff\"}"[..], claims().into_bytes()),
        (b"{\"alg\":\"HS256\"}", [&claims().as_bytes()[..claims().len() - 1], b",\"x\":\"\xc3\"}"].concat()),
    ] {
        let message = format!("{}.{}", base64url(header), base64url(claims));
        let token = format!("{message}.{}", base64url(signature(Algorithm::Hs256, &message)));
        assert_eq!(verdict(&jwt(issuer()), token).await, "parse_error", "also what nobody looks at");
    }
}

#[tokio::test]
async fn a_member_given_twice_is_refused_wherever_and_however_it_is_written() {
    for header in [
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","\u0061lg":"HS256"}"#,
        r#"{"alg":"HS256","x":1,"x":2}"#,
    ] {
        assert_eq!(headed(header).await, "parse_error", "{header}");
    }
    for claim in [r#""sub":"bob""#, r#""exp":1"#, r#""s\u0075b":"bob""#, r#""x":1,"x":1"#] {
        let token = token(&format!(r#""exp":{},{claim}"#, NOW + 1));
        assert_eq!(verdict(&jwt(issuer()), token).await, "parse_error", "{claim}");
    }
}

#[tokio::test]
async fn an_object_has_at_most_64_members_and_depth_costs_no_stack() {
    let members = |count: usize| (0..count).map(|i| format!(r#","m{i}":0"#)).collect::<String>();
    assert_eq!(headed(&format!(r#"{{"alg":"HS256"{}}}"#, members(63))).await, "ok");
    assert_eq!(headed(&format!(r#"{{"alg":"HS256"{}}}"#, members(64))).await, "parse_error");
    let deep = format!(r#"{{"alg":"HS256","x":{}{}}}"#, "[".repeat(2500), "]".repeat(2500));
    assert_eq!(headed(&deep).await, "ok", "what is not read is skipped without recursion");
}

#[tokio::test]
async fn the_token_of_another_purpose_is_refused_by_its_type() {
    for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/jwt"] {
        assert_eq!(headed(&format!(r#"{{"alg":"HS256","typ":"{typ}"}}"#)).await, "ok", "{typ}");
    }
    for typ in ["logout+jwt", "secevent+jwt", "dpop+jwt", "JOSE", "", "application/", "applicationé"] {
        assert_eq!(headed(&format!(r#"{{"alg":"HS256","typ":"{typ}"}}"#)).await, "parse_error", "{typ}");
    }
}

#[tokio::test]
async fn there_is_one_way_to_write_a_token() {
    let policy = jwt(issuer());
    let token = valid();
    let (message, signature) = token.rsplit_once('.').expect("three parts");
    // A MAC of 32 bytes leaves two bits in its last character.
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = alphabet.find(signature.chars().last().expect("not empty")).expect("base64url");
    let twin = format!("{message}.{}{}", &signature[..signature.len() - 1], &alphabet[last + 1..last + 2]);
    let cases = [
        twin,
        format!("{token}="),
        format!("{token} "),
        format!("{token}\t"),
        token.replace('.', ".."),
        format!("{token}."),
        format!("{token}.{}", base64url("x")),
        message.to_owned(),
        token.replace('.', "+."),
        token.replacen('.', "=.", 1),
        ".".to_owned(),
        "..".to_owned(),
        String::new(),
        format!("{}.{}.{signature}", base64url(r#"{"alg":"HS256"}x"#), base64url(claims())),
    ];
    for case in cases {
        assert_eq!(verdict(&policy, &case).await, "parse_error", "{case}");
    }
    for bytes in [&b"\xff\xfe"[..], &[0xC3, 0xA9, b'.', b'.']] {
        assert_eq!(verdict(&policy, bytes).await, "parse_error");
    }
}

#[tokio::test]
async fn a_token_has_at_most_as_many_bytes_as_is_set() {
    let token = valid();
    assert_eq!(verdict(&jwt(issuer()).limit(token.len()), &token).await, "ok");
    assert_eq!(verdict(&jwt(issuer()).limit(token.len() - 1), &token).await, "parse_error");
    let long = |extra: usize| {
        let claims = format!(r#"{{"iss":"{ISSUER}","sub":"a","exp":{},"x":"{}"}}"#, NOW + 1, "x".repeat(extra));
        raw(r#"{"alg":"HS256"}"#, &claims, Algorithm::Hs256)
    };
    let fits = (5000..7000).map(long).rfind(|token| token.len() <= 8192).expect("some do");
    assert!(fits.len() > 8180);
    assert_eq!(verdict(&jwt(issuer()), &fits).await, "ok");
    assert_eq!(verdict(&jwt(issuer()), long(6200)).await, "parse_error");
}

#[tokio::test]
async fn no_text_of_a_refusal_shows_the_token() {
    let (answer, _) = crate::token::ask(&jwt(issuer()), bearing("c2VjcmV0.c2VjcmV0.c2VjcmV0")).await;
    let error = answer.expect_err("refused");
    assert!(!format!("{error} {error:?}").contains("c2VjcmV0"));
    assert!(!format!("{:?}", jwt(issuer())).contains("7, 7"));
}

/// Policies for secrets and public keys, and a token that each of them accepts.
fn pairs() -> Vec<(Jwt, String)> {
    [Algorithm::Hs256, Algorithm::Es256, Algorithm::EdDsa]
        .map(|algorithm| {
            let header = format!(r#"{{"alg":"{}"}}"#, algorithm.as_str());
            (jwt(Issuer::new(ISSUER, keys(algorithm))), raw(&header, &claims(), algorithm))
        })
        .into()
}

fn decide(policy: &Jwt, token: &[u8]) -> Option<bool> {
    use coze_auth::{Decision, Policy};
    let value = http::HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()?;
    let request = http::Request::builder().header("authorization", value).body(()).ok()?;
    match policy.authorize(&mut request.into_parts().0, ()) {
        Decision::Now(verdict) => Some(verdict.is_ok()),
        Decision::Later(_) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_change_to_a_token_leaves_it_valid(
        which in 0usize..3, place in any::<prop::sample::Index>(), byte in 0x21u8..0x7f, kind in 0u8..4,
    ) {
        let (policy, token) = &pairs()[which];
        let mut changed = token.clone().into_bytes();
        let place = place.index(changed.len());
        match kind {
            0 => changed[place] = byte,
            1 => changed.insert(place, byte),
            2 => drop(changed.remove(place)),
            _ => changed.truncate(place),
        }
        let is_same = changed == token.as_bytes();
        prop_assert_eq!(decide(policy, token.as_bytes()), Some(true));
        prop_assert_eq!(decide(policy, &changed), Some(is_same));
    }

    #[test]
    fn arbitrary_bytes_are_refused_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_ne!(decide(&jwt(issuer()), &bytes), Some(true));
        let _ = JwtKeys::jwks(&bytes);
        let _ = keys(Algorithm::Hs256).verify(&bytes);
    }

    #[test]
    fn arbitrary_json_behind_a_right_signature_never_panics(header in ".{0,60}", claims in ".{0,120}") {
        let message = format!("{}.{}", base64url(format!("{{{header}")), base64url(format!("{{{claims}")));
        let token = format!("{message}.{}", base64url(signature(Algorithm::Hs256, &message)));
        prop_assert_ne!(decide(&jwt(issuer()), token.as_bytes()), Some(true));
    }

    #[test]
    fn arbitrary_members_of_a_key_never_panic(
        kty in "(RSA|EC|OKP|oct|x)", alg in "(RS256|PS512|ES256|ES512|EdDSA|HS256|x)", crv in "(P-256|P-521|Ed25519)",
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let part = base64url(&bytes);
        let json = format!(
            r#"{{"kty":"{kty}","alg":"{alg}","crv":"{crv}","x":"{part}","y":"{part}","n":"{part}","e":"{part}","k":"{part}"}}"#
        );
        let _ = JwtKey::jwk(&json);
        let _ = JwtKey::new(Algorithm::Rs256, &bytes);
        let _ = JwtKey::new(Algorithm::Es256, &bytes);
        let _ = JwtKey::pem(Algorithm::Rs256, &format!("-----BEGIN PUBLIC KEY-----\n{part}\n-----END PUBLIC KEY-----"));
    }
}

#[test]
fn a_key_never_shows_itself() {
    let shown = format!("{:?} {:?}", key(Algorithm::Hs256), keys(Algorithm::Hs256));
    assert!(shown.contains("Hs256") && !shown.contains('7'), "{shown}");
}
