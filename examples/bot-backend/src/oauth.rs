//! The consent of the person whom the bot acts for, in their browser (coze-platform.md §1.3, §1.4).

mod page;
mod pending;
mod store;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::body::Body;
use base64::{Engine, engine::general_purpose::STANDARD};
use coze_auth::{Decision, OAuthApp, Refresh, Refresher, Renewing, Token, TokenSource, TokenStore};
use coze_core::{Context, Error, Kind, Refusal, Retry};
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, COOKIE, LOCATION, SET_COOKIE},
    request::Parts,
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::{
    config::{Config, MIN_PASSWORD, OAuth},
    secrets::{Secrets, text},
    transport::{Transport, endpoint},
};

use page::{Page, guard};
use pending::{LIFE, Pending};
use store::Store;

/// Where a consent begins.
pub(crate) const START: &str = "/oauth/start";
/// Where the platform sends the browser back to.
pub(crate) const CALLBACK: &str = "/oauth/callback";
/// Bytes of a code; those of the platform have about a hundred.
const MAX_CODE: usize = 2048;

/// The way to a person's consent, and the tokens that come of it.
pub(crate) struct Consent {
    app: OAuthApp<Transport>,
    tokens: Tokens,
    source: Renewing<Tokens>,
    pending: Pending,
    redirect_uri: String,
    is_https: bool,
    password: coze_secret::Secret,
}

/// Gets tokens, and knows whether a person has to do something about it.
#[derive(Clone)]
pub(crate) struct Tokens(Arc<Held>);

struct Held {
    refresh: Refresh<Transport, Store>,
    store: Store,
    is_missing: AtomicBool,
    /// What a shutdown waits for, so that no refresh token is lost between the platform and the store.
    tasks: TaskTracker,
}

impl Refresher for Tokens {
    async fn refresh(&self) -> Result<Token, Error> {
        let held = self.0.clone();
        let refresh = async move {
            let outcome = held.refresh.refresh().await;
            match &outcome {
                Ok(_) => held.is_missing.store(false, Ordering::Relaxed),
                Err(error) if error.reason() == "reauthorization_required" => {
                    held.is_missing.store(true, Ordering::Relaxed);
                }
                Err(_) => {}
            }
            outcome
        };
        let ended = self.0.tasks.spawn(refresh.in_current_span()).await;
        ended.unwrap_or_else(|e| Err(Error::new(Kind::Internal, "token_fetch_ended").with_source(e)))
    }
}

impl Consent {
    /// What was consented to before, if anything, and the way to more. A shutdown waits for the `tasks`.
    ///
    /// # Errors
    /// `config` ([`Kind::Precondition`]) when the refresh token's store cannot be read, or others may read its file.
    pub(crate) async fn open(
        config: &Config,
        oauth: &OAuth,
        secrets: &mut Secrets,
        tasks: TaskTracker,
    ) -> Result<Self, Error> {
        let app = OAuthApp::new(endpoint(&config.platform)?, &oauth.client_id);
        if let Some(secret) = &oauth.client_secret {
            let app = app.clone();
            secrets.follow(secret, move |secret| app.set_secret(text(secret)?))?;
        }
        let (store, key) = Store::open(oauth, secrets)?;
        let is_missing = store.load().await.map_err(|error| config.refused(key, error))?.is_none();
        let refresh = app.refreshing(store.clone());
        let tokens = Tokens(Arc::new(Held { refresh, store, is_missing: is_missing.into(), tasks }));
        let redirect_uri =
            oauth.public_url.join(CALLBACK).map_err(|e| Error::new(Kind::Internal, "redirect_uri").with_source(e))?;
        Ok(Self {
            app,
            source: Renewing::new(tokens.clone()),
            tokens,
            pending: Pending::default(),
            is_https: redirect_uri.scheme_str() == Some("https"),
            redirect_uri: redirect_uri.to_string(),
            password: secrets.of(&oauth.password),
        })
    }

    /// The tokens of who consented.
    pub(crate) fn source(&self) -> Renewing<Tokens> {
        self.source.clone()
    }

    /// Whether the bot may act for somebody, as far as it knows.
    pub(crate) async fn state(&self) -> &'static str {
        let Held { is_missing, store, .. } = &*self.tokens.0;
        if !is_missing.load(Ordering::Relaxed) {
            return "ok";
        }
        // Somebody may have consented at another node. A token that was sent already is the one that was refused.
        match store.load().await {
            Ok(Some(token)) if token.sent() == 0 => {
                is_missing.store(false, Ordering::Relaxed);
                "ok"
            }
            Ok(_) => "open /oauth/start",
            Err(error) => error.reason(),
        }
    }

    /// The browser's cookie. Where it can be, it is one that no other host of the domain can set (RFC 6265bis §4.1.3.2).
    fn cookie(&self) -> &'static str {
        if self.is_https { "__Host-bot-oauth" } else { "bot-oauth" }
    }

    /// Has the browser keep this until a consent is over.
    fn keep(&self, value: &str, seconds: u64) -> Result<HeaderValue, Error> {
        let (name, secure) = (self.cookie(), if self.is_https { "; Secure" } else { "" });
        let cookie = format!("{name}={value}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}");
        HeaderValue::try_from(cookie).map_err(|e| Error::new(Kind::Internal, "cookie").with_source(e))
    }

    /// Sends a browser to the platform.
    fn start(&self, parts: &mut Parts) -> Result<Response<Body>, Error> {
        let reason = match parts.headers.get(AUTHORIZATION) {
            Some(value) if self.has_password(value) => None,
            Some(_) => Some("unknown_key"),
            None => Some("missing_credentials"),
        };
        if let Some(reason) = reason {
            let refusal = Refusal { kind: Kind::Unauthenticated, reason, client: None };
            Context::of(&mut parts.extensions).refusal.get_or_init(|| refusal);
            return Ok(Page::Password.response());
        }
        let started = self.pending.begin(Instant::now())?;
        let to = self.app.authorize_url(&self.redirect_uri, &started.state, Some(&started.pkce));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::FOUND;
        let to = HeaderValue::try_from(to).map_err(|e| Error::new(Kind::Internal, "authorize_url").with_source(e))?;
        guard(response.headers_mut());
        response.headers_mut().insert(LOCATION, to);
        response.headers_mut().insert(SET_COOKIE, self.keep(&started.browser, LIFE.as_secs())?);
        Ok(response)
    }

    /// HTTP's own way to ask (RFC 7617); any user name will do.
    fn has_password(&self, authorization: &HeaderValue) -> bool {
        let Some((scheme, credentials)) = authorization.to_str().ok().and_then(|value| value.split_once(' ')) else {
            return false;
        };
        let credentials = STANDARD.decode(credentials.trim()).unwrap_or_default();
        let Some(colon) = credentials.iter().position(|byte| *byte == b':') else { return false };
        let Ok(password) = self.password.current() else { return false };
        let is_long = password.expose().len() >= MIN_PASSWORD;
        scheme.eq_ignore_ascii_case("basic") && is_long && password.matches(&credentials[colon + 1..])
    }

    /// What became of the consent that the browser comes back from.
    async fn conclude(self: &Arc<Self>, parts: &Parts) -> Page {
        // One that is there twice says nothing (RFC 6749 §3.1).
        let of_query = |name: &str| {
            let pairs = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
            let mut values = pairs.filter(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value);
            values.next().filter(|_| values.next().is_none())
        };
        let cookies = parts.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let browsers = cookies
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .filter_map(|(name, value)| (name == self.cookie()).then_some(value));
        let state = of_query("state").unwrap_or_default();
        let Some(pkce) = self.pending.end(&state, browsers, Instant::now()) else { return Page::Stale };
        let code = match (of_query("error"), of_query("code")) {
            (Some(error), _) => return refused(&error),
            (None, Some(code)) if code.len() <= MAX_CODE => code.into_owned(),
            _ => return Page::Spent,
        };
        // From here on there may be a token that must not get lost, whether the browser waits or not.
        let consent = self.clone();
        let exchange = async move {
            let granted = consent.app.exchange(&code, &consent.redirect_uri, Some(&pkce)).await?;
            consent.tokens.0.refresh.take(granted).await?;
            consent.tokens.0.is_missing.store(false, Ordering::Relaxed);
            // That of who consented before serves no longer.
            if let Decision::Now(Ok(token)) = consent.source.token() {
                consent.source.reject(token.generation());
            }
            Ok(())
        };
        match self.tokens.0.tasks.spawn(exchange.in_current_span()).await {
            Ok(Ok(())) => Page::Done,
            Ok(Err(error)) => failed(&error),
            Err(_) => Page::Broken,
        }
    }
}

/// Answers a browser at [`START`] or [`CALLBACK`].
///
/// # Errors
/// When the system has no random bytes.
pub(crate) async fn answer<B>(consent: Arc<Consent>, request: Request<B>) -> Result<Response<Body>, Error> {
    let (mut parts, _) = request.into_parts();
    if parts.uri.path() == START {
        return consent.start(&mut parts);
    }
    let page = consent.conclude(&parts).await;
    tracing::info!(?page, "a browser came back from the platform");
    let mut response = page.response();
    response.headers_mut().insert(SET_COOKIE, consent.keep("", 0)?);
    Ok(response)
}

/// What the platform sent the browser back with (RFC 6749 §4.1.2.1). It is kept short: anybody may have written it.
fn refused(error: &str) -> Page {
    let name: String = error.chars().take(64).collect();
    tracing::warn!(error = ?name, "the platform gave no code");
    match error {
        "access_denied" => Page::Refused,
        "server_error" | "temporarily_unavailable" => Page::Unreachable,
        _ => Page::App,
    }
}

fn failed(error: &Error) -> Page {
    tracing::warn!(?error, "a consent did not come to its end");
    match (error.reason(), error.kind()) {
        ("token_store", _) => Page::Broken,
        ("invalid_request" | "invalid_grant", _) => Page::Spent,
        (_, Kind::Unavailable | Kind::Timeout | Kind::RateLimited) => Page::Unreachable,
        _ if error.retry() != Retry::Never => Page::Unreachable,
        (_, Kind::Internal) => Page::Broken,
        _ => Page::App,
    }
}

impl fmt::Debug for Consent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consent").field("redirect_uri", &self.redirect_uri).finish_non_exhaustive()
    }
}
