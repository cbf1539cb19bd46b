//! Tokens verified, against `decode` of jsonwebtoken with the same checks. Ours is the whole layer, from the header to the
//! principal on the context; the peer only decodes.

use std::time::{Duration, SystemTime};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::KeySize,
    signature::{KeyPair, RsaKeyPair},
};
use bytes::Bytes;
use coze_auth::{Algorithm, AuthLayer, Issuer, Jwt, JwtKey, JwtKeys};
use coze_benches::{bare, compare_fns, criterion, in_context, sending};
use criterion::Criterion;
use http::{Request, header::AUTHORIZATION};
use http_body_util::Full;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use tower::Layer;

const ISSUER: &str = "https://issuer.example/tenant";
const AUDIENCE: &str = "bot-backend";
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: u64,
    exp: u64,
    scope: String,
}

/// A token as an identity provider makes it, good for an hour.
fn token(algorithm: jsonwebtoken::Algorithm, key: &EncodingKey) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    let claims = Claims {
        iss: ISSUER.to_owned(),
        sub: "4f8a5f6e-0b0e-4f6f-9d62-0d1ad8a3b2c1".to_owned(),
        aud: AUDIENCE.to_owned(),
        iat: now.as_secs(),
        exp: (now + Duration::from_secs(3600)).as_secs(),
        scope: "chat bot:read".to_owned(),
    };
    let header = Header { kid: Some("key-2026-11".to_owned()), ..Header::new(algorithm) };
    encode(&header, &claims, key).expect("signed")
}

fn policy(key: JwtKey) -> Jwt {
    let keys = JwtKeys::new([key.named("key-2026-11")]).expect("one key");
    Jwt::new([Issuer::new(ISSUER, keys).audience(AUDIENCE)]).expect("one issuer")
}

fn against_decode(c: &mut Criterion, name: &str, policy: Jwt, token: &str, validation: &Validation, key: &DecodingKey) {
    let header = format!("Bearer {token}");
    let make = || in_context(Request::builder().header(AUTHORIZATION, &header).body(Full::default()).expect("valid"));
    let ours = sending(AuthLayer::new(policy).layer(bare::<_, Full<Bytes>>()));
    let peer = |request: Request<Full<Bytes>>| {
        let value = request.headers()[AUTHORIZATION].to_str().expect("ascii");
        decode::<Claims>(&value[7..], key, validation).expect("valid");
    };
    compare_fns(c, name, make, ours, peer);
}

fn validation(algorithm: jsonwebtoken::Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[AUDIENCE]);
    validation.validate_nbf = true;
    validation
}

fn jwt(c: &mut Criterion) {
    let validation_hs = validation(jsonwebtoken::Algorithm::HS256);
    let token_hs = token(jsonwebtoken::Algorithm::HS256, &EncodingKey::from_secret(SECRET));
    let peer = DecodingKey::from_secret(SECRET);
    let ours = policy(JwtKey::new(Algorithm::Hs256, SECRET).expect("long enough"));
    against_decode(c, "auth/jwt_hs256", ours.clone().cache(0), &token_hs, &validation_hs, &peer);
    against_decode(c, "auth/jwt_cached_hs256", ours, &token_hs, &validation_hs, &peer);

    let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
    let private: Pkcs8V1Der<'static> = pair.as_der().expect("der");
    // What jsonwebtoken signs with is the PKCS#1 key inside, which begins behind 26 bytes where the key has 2048 bits.
    let private = &private.as_ref()[26..];
    let public = pair.public_key().as_ref();
    let validation_rs = validation(jsonwebtoken::Algorithm::RS256);
    let token_rs = token(jsonwebtoken::Algorithm::RS256, &EncodingKey::from_rsa_der(private));
    let peer = DecodingKey::from_rsa_der(public);
    let ours = policy(JwtKey::new(Algorithm::Rs256, public).expect("long enough"));
    against_decode(c, "auth/jwt_cached_rs256", ours, &token_rs, &validation_rs, &peer);
}

criterion::criterion_group! { name = tokens; config = criterion(); targets = jwt }
criterion::criterion_main!(tokens);
