use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    error::Unspecified,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http::uri::Authority;
use serde_json::Value;

use crate::{App, Config, oauth::Denied};

/// How far the clock of who signed an assertion may be ahead, in seconds.
const LEEWAY: u64 = 60;

impl App {
    /// A JWT app with a new RSA key of 2048 bits: the app, and its private key, PKCS#8 in PEM. The key id is in
    /// [`App::keys`].
    ///
    /// # Errors
    /// If the key cannot be made, which is a fault of the machine.
    pub fn with_key(client_id: impl Into<String>) -> std::io::Result<(Self, String)> {
        let client_id = client_id.into();
        let failed = |_: Unspecified| std::io::Error::other("no RSA key can be made");
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(failed)?;
        let private: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(failed)?;
        let kid = crate::digest::sha256(public.as_ref());
        let app = Self {
            name: client_id.clone(),
            client_id,
            keys: vec![(kid, pem("PUBLIC KEY", public.as_ref()))],
            ..Self::default()
        };
        Ok((app, pem("PRIVATE KEY", private.as_ref())))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

fn from_pem(pem: &str) -> Option<Vec<u8>> {
    let lines: String = pem.lines().map(str::trim).filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(lines).ok()
}

/// What an assertion says, once it is verified.
pub(crate) struct Claims {
    pub(crate) client: String,
    pub(crate) jti: String,
    pub(crate) session: Option<String>,
}

/// The id of the key that an assertion names; `None` if it is none.
pub(crate) fn key_id(jwt: &str) -> Option<String> {
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jwt.split_once('.')?.0).ok()?).ok()?;
    header["kid"].as_str().map(str::to_owned)
}

/// Verifies an assertion (coze-platform.md §1.6): RS256 with the key of the app that `kid` names, `aud` the host the request
/// came to, in its time.
pub(crate) fn verify(config: &Config, jwt: &str, host: &str, unix: u64) -> Result<Claims, Denied> {
    let malformed = || Denied::client("the JWT is malformed");
    let (signed, signature) = jwt.rsplit_once('.').ok_or_else(malformed)?;
    let (header, claims) = signed.split_once('.').ok_or_else(malformed)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed());
    let object = |part: &str| -> Result<Value, Denied> {
        serde_json::from_slice(&decode(part)?).ok().filter(Value::is_object).ok_or_else(malformed)
    };
    let (header, claims) = (object(header)?, object(claims)?);
    if header["alg"] != "RS256" {
        return Err(Denied::client("alg must be RS256"));
    }
    let text = |name: &str| claims[name].as_str().unwrap_or_default();
    let app = config.apps.iter().find(|app| app.client_id == text("iss"));
    let app = app.ok_or_else(|| Denied::client("iss is not that of an app"))?;
    if app.keys.is_empty() {
        return Err(Denied::new("access_deny", "invalid app type"));
    }
    let key = app.keys.iter().find(|(kid, _)| header["kid"] == kid.as_str());
    let key =
        key.and_then(|(_, pem)| from_pem(pem)).ok_or_else(|| Denied::client("kid is not that of a key of the app"))?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)
        .verify(signed.as_bytes(), &decode(signature)?)
        .map_err(|_| Denied::client("the signature is wrong"))?;
    // Ports do not matter: in front of a simulation there may be a proxy on another one.
    let name = |host: &str| host.parse::<Authority>().map(|host| host.host().to_owned()).ok();
    let aud = text("aud");
    let is_here = name(aud).is_some_and(|aud| Some(aud) == name(host));
    if !is_here && !config.oauth.audiences.iter().any(|known| known == aud) {
        return Err(Denied::client("aud is not this host"));
    }
    let (Some(from), Some(until)) = (claims["iat"].as_u64(), claims["exp"].as_u64()) else {
        return Err(Denied::client("iat and exp are required"));
    };
    if from > unix + LEEWAY || until <= unix {
        return Err(Denied::client("the JWT is not valid at this time"));
    }
    if text("jti").is_empty() {
        return Err(Denied::client("jti is required"));
    }
    Ok(Claims {
        client: app.client_id.clone(),
        jti: text("jti").to_owned(),
        session: Some(text("session_name")).filter(|name| !name.is_empty()).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_pem_is_the_same_key_again() {
        let der: Vec<u8> = (0..=255).collect();
        let text = pem("PUBLIC KEY", &der);
        assert!(text.lines().all(|line| line.len() <= 64));
        assert_eq!(from_pem(&text), Some(der));
        assert_eq!(from_pem("-----BEGIN X-----\n!\n-----END X-----"), None);
    }
}
