use std::{fmt, sync::Arc, time::SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use coze_core::{BoxError, Error};
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::Full;
use serde_json::{Map, Value, json};
use tower_service::Service;

use super::{Device, Endpoint, Pkce, Refresh, RefreshToken, TokenStore, answer};
use crate::{Token, lifetime};

pub(super) const TOKEN: &str = "/api/permission/oauth2/token";

/// An OAuth app that acts for people (coze-platform.md §1.3 to §1.5): who consented in a browser, or on another device.
/// Clones share the secret.
#[derive(Clone)]
pub struct OAuthApp<S> {
    pub(super) endpoint: Endpoint<S>,
    pub(super) client_id: Arc<str>,
    /// Replaced while others send it.
    secret: Arc<ArcSwapOption<HeaderValue>>,
}

/// What a person granted.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The access token, with its lifetime.
    pub token: Token,
    /// What the next one is got with. It goes into a [`TokenStore`] before anything else.
    pub refresh_token: RefreshToken,
}

impl<S> OAuthApp<S> {
    /// The app `client_id`, which has no secret: PKCE and device flow.
    #[must_use]
    pub fn new(endpoint: Endpoint<S>, client_id: &str) -> Self {
        Self { endpoint, client_id: client_id.into(), secret: Arc::default() }
    }

    /// The app's secret, which goes along when a code is exchanged, with PKCE or without, and with the refreshes that follow.
    ///
    /// # Errors
    /// Those of [`Token::bearer`].
    pub fn secret(self, secret: &str) -> Result<Self, Error> {
        let app = Self { secret: Arc::default(), ..self };
        app.set_secret(secret)?;
        Ok(app)
    }

    /// Sends this secret from now on, also from all clones, and with the refreshes of [`OAuthApp::refreshing`].
    ///
    /// # Errors
    /// Those of [`Token::bearer`]; then the secret stays.
    pub fn set_secret(&self, secret: &str) -> Result<(), Error> {
        self.secret.store(Some(Arc::new(Token::bearer(secret)?.header().clone())));
        Ok(())
    }

    /// What proves to the platform that it is this app that asks.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        self.secret.load().as_deref().cloned()
    }

    /// Where to send a person's browser. It comes back to `redirect_uri` with a `code` and this `state`, which the caller
    /// has made at random and compares.
    #[must_use]
    pub fn authorize_url(&self, redirect_uri: &str, state: &str, pkce: Option<&Pkce>) -> String {
        let base = self.endpoint.base();
        // People are asked on another host than programs, where it is the platform's own.
        let host = match base.authority().map_or("", |authority| authority.as_str()) {
            "api.coze.cn" | "static-api.coze.cn" => "www.coze.cn",
            "api.coze.com" => "www.coze.com",
            other => other,
        };
        let mut url = format!(
            "{}://{host}/api/permission/oauth2/authorize?response_type=code&client_id={}&redirect_uri={}&state={}",
            base.scheme_str().unwrap_or("https"),
            escape(&self.client_id),
            escape(redirect_uri),
            escape(state),
        );
        if let Some(pkce) = pkce {
            url.push_str(&format!("&code_challenge={}&code_challenge_method=S256", pkce.challenge()));
        }
        url
    }

    /// Tokens that are renewed with the refresh token in `store`.
    #[must_use]
    pub fn refreshing<T>(&self, store: T) -> Refresh<S, T>
    where
        S: Clone,
        T: TokenStore,
    {
        Refresh::new(self.clone(), store)
    }
}

impl<S, B> OAuthApp<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
{
    /// Exchanges the code that a person's browser came back with. One try: a code is good once.
    ///
    /// # Errors
    /// The platform's refusal by its own name, such as `invalid_request` where the code is over, or the failures of the
    /// endpoint (see the table of reasons).
    pub async fn exchange(&self, code: &str, redirect_uri: &str, pkce: Option<&Pkce>) -> Result<Granted, Error> {
        let mut body = json!({
            "grant_type": "authorization_code", "client_id": &*self.client_id, "code": code, "redirect_uri": redirect_uri,
        });
        if let Some(pkce) = pkce {
            body["code_verifier"] = pkce.verifier().into();
        }
        // PKCE proves the browser's part of it and takes nobody's secret away (RFC 9700 §2.1.1).
        let granted = self.endpoint.ask(TOKEN, self.authorization(), &body).await?;
        granted_of(&granted, self.endpoint.now())
    }

    /// Begins the device flow: shows the app to the person as a code to enter elsewhere.
    ///
    /// # Errors
    /// Those of [`OAuthApp::exchange`].
    pub async fn device(&self) -> Result<Device<S>, Error> {
        Device::ask(self).await
    }
}

impl<S> fmt::Debug for OAuthApp<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuthApp").field("client_id", &self.client_id).field("endpoint", &self.endpoint).finish()
    }
}

/// The access token in an answer.
pub(super) fn token_of(granted: &Map<String, Value>, now: SystemTime) -> Result<Token, Error> {
    let text = |name: &str| granted.get(name).and_then(Value::as_str);
    let token = text("access_token").and_then(|text| Token::bearer(text).ok());
    let Some(token) = token else {
        return Err(answer::nonsense("the answer of the token endpoint holds no access token"));
    };
    Ok(match granted.get("expires_in").and_then(answer::number) {
        Some(expires) => token.with_lifetime(lifetime(expires, now)),
        None => token,
    })
}

/// The refresh token in an answer.
pub(super) fn refresh_of(granted: &Map<String, Value>) -> Option<&str> {
    granted.get("refresh_token").and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Both tokens in an answer.
pub(super) fn granted_of(granted: &Map<String, Value>, now: SystemTime) -> Result<Granted, Error> {
    let refresh = refresh_of(granted)
        .ok_or_else(|| answer::nonsense("the answer of the token endpoint holds no refresh token"))?;
    Ok(Granted { token: token_of(granted, now)?, refresh_token: RefreshToken::new(refresh) })
}

/// As a part of a query (RFC 3986 §2.3).
pub(super) fn escape(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}
