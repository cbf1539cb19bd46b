//! The examples of the standards, as they print them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coze_auth::{Issuer, Jwt, JwtKey, JwtKeys};

use crate::{
    support::reason,
    token::{bearing, verdict},
};

/// The claims of RFC 7519 §3.1: they expire at 1300819380, are joe's, and say of no one whom they are about.
const CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

/// RFC 7515 §A.1 (HS256), §A.2 (RS256), §A.3 (ES256) and §A.4 (ES512), RFC 8037 §A.4 (Ed25519): the public half of the key, header,
/// payload, signature. No key names an algorithm.
const EXAMPLES: [[&str; 4]; 5] = [
    [
        r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#,
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
        CLAIMS,
        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    ],
    [
        r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#,
        "eyJhbGciOiJSUzI1NiJ9",
        CLAIMS,
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
    ],
    [
        r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
        "eyJhbGciOiJFUzI1NiJ9",
        CLAIMS,
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    ],
    [
        r#"{"kty":"EC","crv":"P-521","x":"AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk","y":"ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2"}"#,
        "eyJhbGciOiJFUzUxMiJ9",
        "UGF5bG9hZA",
        "AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn",
    ],
    [
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
        "eyJhbGciOiJFZERTQSJ9",
        "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
    ],
];

fn keys(jwk: &str) -> JwtKeys {
    JwtKeys::new([JwtKey::jwk(jwk).expect("a key")]).expect("one key")
}

#[test]
fn the_examples_verify_and_with_another_key_do_not() {
    for [jwk, header, payload, signature] in EXAMPLES {
        let token = format!("{header}.{payload}.{signature}");
        assert!(keys(jwk).verify(token.as_bytes()).is_ok(), "{header}");
        for [other, ..] in EXAMPLES.iter().filter(|[other, ..]| *other != jwk) {
            assert_eq!(reason(keys(other).verify(token.as_bytes())), Some("signature_invalid"), "{header}");
        }
    }
}

#[tokio::test]
async fn the_first_example_is_a_token_of_joe_about_nobody_until_2011() {
    let [jwk, header, payload, signature] = EXAMPLES[0];
    let token = format!("{header}.{payload}.{signature}");
    let policy =
        |clock: fn() -> SystemTime| Jwt::new([Issuer::new("joe", keys(jwk))]).expect("one issuer").clock(clock);
    let at_its_time = policy(|| UNIX_EPOCH + Duration::from_secs(1_300_819_379));
    assert_eq!(verdict(&at_its_time, &token).await, "parse_error", "it has no sub");
    let (answer, _) = crate::token::ask(&at_its_time, bearing(&token)).await;
    assert_eq!(answer.expect_err("refused").message(), "the token has no sub");
    assert_eq!(verdict(&policy(SystemTime::now), &token).await, "token_expired");
}

#[test]
fn the_unsecured_token_of_rfc_7519_section_6_is_refused() {
    let token = format!("eyJhbGciOiJub25lIn0.{CLAIMS}.");
    for [jwk, ..] in EXAMPLES {
        assert_eq!(reason(keys(jwk).verify(token.as_bytes())), Some("signature_invalid"));
    }
}
