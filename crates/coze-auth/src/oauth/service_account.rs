use std::{
    fmt,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use aws_lc_rs::{rand::SystemRandom, rsa::KeyPair, signature::RSA_PKCS1_SHA256};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use coze_core::{BoxError, Error, Kind};
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use serde_json::{Map, Value, json};
use tower_service::Service;

use super::{Endpoint, app::token_of, random};
use crate::{Refresher, Token};

/// How long an assertion serves: it is used at once, and once, but clocks differ.
const ASSERTION_SECONDS: u64 = 600;
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// Tokens of a service account (coze-platform.md §1.6): each is asked for with an assertion that is signed for this try only.
/// Clones share the key, also those that ask for something else, such as for another session.
///
/// ```
/// use bytes::Bytes;
/// use coze_auth::{Bearer, Endpoint, Renewing, ServiceAccount};
/// use coze_core::Error;
/// use http_body_util::Full;
/// use hyper_util::client::legacy::{Client, connect::HttpConnector};
///
/// fn policy(
///     client: Client<HttpConnector, Full<Bytes>>,
///     private_key: &str,
/// ) -> Result<Bearer<Renewing<ServiceAccount<Client<HttpConnector, Full<Bytes>>>>>, Error> {
///     let endpoint = Endpoint::new("https://api.coze.cn", client)?;
///     let account = ServiceAccount::new(endpoint, "1001.app.coze", "the key's fingerprint", private_key)?;
///     Ok(Bearer::new(Renewing::new(account.session_name("user-1"))))
/// }
/// ```
#[derive(Clone)]
pub struct ServiceAccount<S> {
    endpoint: Endpoint<S>,
    client_id: Arc<str>,
    /// Replaced while others sign.
    signer: Arc<ArcSwap<Signer>>,
    path: Arc<str>,
    /// Claims besides those that every assertion has.
    claims: Map<String, Value>,
    scope: Map<String, Value>,
    seconds: u64,
}

struct Signer {
    /// The header of every assertion, encoded.
    header: String,
    key: KeyPair,
}

impl<S> ServiceAccount<S> {
    /// The app `client_id`, whose public key the platform calls `key_id`; `private_key` is PEM, PKCS#8 or PKCS#1.
    ///
    /// # Errors
    /// `private_key`, [`Kind::Precondition`]: it is not an RSA key of 2048 to 8192 bits in PEM.
    pub fn new(endpoint: Endpoint<S>, client_id: &str, key_id: &str, private_key: &str) -> Result<Self, Error> {
        Ok(Self {
            endpoint,
            client_id: client_id.into(),
            signer: Arc::new(ArcSwap::from_pointee(Signer::new(key_id, private_key)?)),
            path: "/api/permission/oauth2/token".into(),
            claims: Map::new(),
            scope: Map::new(),
            seconds: 900,
        })
    }

    /// Signs with this key from now on: the next token is asked for with it, by all clones. What the platform gave out before
    /// goes on serving.
    ///
    /// # Errors
    /// Those of [`ServiceAccount::new`]; then the key stays.
    pub fn set_key(&self, key_id: &str, private_key: &str) -> Result<(), Error> {
        self.signer.store(Arc::new(Signer::new(key_id, private_key)?));
        Ok(())
    }

    /// Whose conversations the tokens see: those of different sessions do not see each other's (coze-platform.md §1.10).
    #[must_use]
    pub fn session_name(mut self, name: &str) -> Self {
        self.claims.insert("session_name".to_owned(), name.into());
        self
    }

    /// Whom the platform counts an enterprise's use for: the claim `session_context`.
    #[must_use]
    pub fn device(mut self, device_id: &str, custom_consumer: &str) -> Self {
        let device = json!({ "device_info": { "device_id": device_id, "custom_consumer": custom_consumer } });
        self.claims.insert("session_context".to_owned(), device);
        self
    }

    /// How long tokens are asked for, in whole seconds; 15 minutes unless set.
    ///
    /// # Errors
    /// `duration_invalid`, [`Kind::Precondition`]: it is not from 900 to 86 399 seconds.
    pub fn duration(self, duration: Duration) -> Result<Self, Error> {
        match duration.as_secs() {
            seconds @ 900..=86_399 => Ok(Self { seconds, ..self }),
            _ => Err(Error::new(Kind::Precondition, "duration_invalid")
                .with_message("a token is asked for 900 to 86399 seconds")),
        }
    }

    /// Asks for tokens of another account or organisation.
    ///
    /// # Errors
    /// `account_invalid`, [`Kind::Precondition`]: the id is not of letters, digits, `-` and `_`.
    pub fn account(self, id: &str) -> Result<Self, Error> {
        self.at("account", id)
    }

    /// Asks for tokens of an enterprise, as a privileged app may.
    ///
    /// # Errors
    /// Those of [`ServiceAccount::account`].
    pub fn enterprise(self, id: &str) -> Result<Self, Error> {
        self.at("enterprise_id", id)
    }

    fn at(self, what: &str, id: &str) -> Result<Self, Error> {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return Err(Error::new(Kind::Precondition, "account_invalid")
                .with_message("the id of an account or enterprise is of letters, digits, - and _"));
        }
        Ok(Self { path: format!("/api/permission/oauth2/{what}/{id}/token").into(), ..self })
    }

    /// Asks for these permissions only, such as `Connector.botChat`. For apps of channels.
    #[must_use]
    pub fn permissions(mut self, permissions: &[&str]) -> Self {
        self.scope.insert("account_permission".to_owned(), json!({ "permission_list": permissions }));
        self
    }

    /// Asks for the right to chat with these bots only. For apps of channels.
    #[must_use]
    pub fn bots(mut self, bots: &[&str]) -> Self {
        let bots = json!({ "connector_bot_chat_attribute": { "bot_id_list": bots } });
        self.scope.insert("attribute_constraint".to_owned(), bots);
        self
    }

    /// An assertion that was never sent, dated now.
    fn assertion(&self) -> Result<String, Error> {
        let now = self.endpoint.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut claims = self.claims.clone();
        claims.insert("iss".to_owned(), (&*self.client_id).into());
        claims.insert("aud".to_owned(), self.endpoint.host().into());
        claims.insert("iat".to_owned(), now.into());
        claims.insert("exp".to_owned(), now.saturating_add(ASSERTION_SECONDS).into());
        claims.insert("jti".to_owned(), random::<32>()?.into());
        let signer = self.signer.load();
        let mut jwt = format!("{}.{}", signer.header, part(&Value::Object(claims)));
        let mut signature = vec![0; signer.key.public_modulus_len()];
        signer.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), jwt.as_bytes(), &mut signature).map_err(|error| {
            Error::new(Kind::Internal, "token_signing").with_message("an assertion cannot be signed").with_source(error)
        })?;
        jwt.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut jwt);
        Ok(jwt)
    }
}

impl<S, B> Refresher for ServiceAccount<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Future: Send> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send,
{
    async fn refresh(&self) -> Result<Token, Error> {
        let mut body = json!({ "grant_type": GRANT, "duration_seconds": self.seconds });
        if !self.scope.is_empty() {
            body["scope"] = self.scope.clone().into();
        }
        let authorization = Token::bearer(&self.assertion()?)?.header().clone();
        let granted = self.endpoint.ask(&self.path, Some(authorization), &body).await?;
        token_of(&granted, self.endpoint.now())
    }
}

impl<S> fmt::Debug for ServiceAccount<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccount")
            .field("client_id", &self.client_id)
            .field("host", &self.endpoint.host())
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Signer {
    fn new(key_id: &str, private_key: &str) -> Result<Self, Error> {
        let key = rsa(private_key).ok_or_else(|| {
            Error::new(Kind::Precondition, "private_key")
                .with_message("the private key is not an RSA key of at least 2048 bits in PEM")
        })?;
        Ok(Self { header: part(&json!({ "alg": "RS256", "typ": "JWT", "kid": key_id })), key })
    }
}

fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

/// The key of the first private key block.
fn rsa(pem: &str) -> Option<KeyPair> {
    let block = |label: &str| {
        let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
        let (text, _) = rest.split_once(&format!("-----END {label}-----"))?;
        STANDARD.decode(text.split_ascii_whitespace().collect::<String>()).ok()
    };
    match block("PRIVATE KEY") {
        Some(der) => KeyPair::from_pkcs8(&der).ok(),
        None => KeyPair::from_der(&block("RSA PRIVATE KEY")?).ok(),
    }
}
