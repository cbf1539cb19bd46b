//! Keys and tokens that another implementation made (pyca/cryptography 48), with faults that the other vectors do not have: salts of
//! other lengths, exponents, r and s at the ends of their range, paddings of RSA by hand, and headers that insist on something.

use coze_auth::{JwtKey, JwtKeys};
use serde_json::Value;

#[test]
fn the_vectors_are_judged_by_the_standards() {
    let vectors: Value = serde_json::from_str(include_str!("vectors/jws.json")).expect("json");
    let cases = vectors["cases"].as_array().expect("a list");
    for case in cases {
        let (name, token) = (case["key"].as_str().expect("a name"), case["token"].as_str().expect("a token"));
        let keys = JwtKey::jwk(&vectors["keys"][name].to_string()).and_then(|key| JwtKeys::new([key]));
        let is_accepted = keys.is_ok_and(|keys| keys.verify(token.as_bytes()).is_ok());
        assert_eq!(is_accepted, case["valid"] == true, "{}", case["about"]);
    }
    assert_eq!(cases.len(), 149);
}
