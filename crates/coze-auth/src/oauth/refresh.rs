use std::{fmt, sync::Arc};

use bytes::Bytes;
use coze_core::{BoxError, Error, Kind, Retry};
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use serde_json::json;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::Instant,
};
use tower_service::Service;

use super::{
    Granted, OAuthApp, RefreshToken, TokenStore,
    app::{TOKEN, refresh_of, token_of},
    store::broken,
};
use crate::{Refresher, Token};

/// How often one refresh token is sent at most while its fate is unknown.
const MAX_SENT: u8 = 2;

/// Tokens that are renewed with a refresh token, each of which is good once (coze-platform.md §1.3).
///
/// Refreshes are made one at a time, also by several that share a store. The token is marked in the store before it is sent, and
/// the next one is saved before its access token is handed out; an answer without one leaves the token as it was (RFC 6749 §6).
/// Once it is sent, a task of its own waits for the answer and saves it, so that a caller who goes away loses nothing. Where the
/// answer got lost, nobody knows whether the token was spent: it is not sent again in the same call; the next call sends it once
/// more, and if that is refused, or lost too, a person has to consent again: `reauthorization_required`, for good.
pub struct Refresh<S, T: TokenStore>(Arc<Inner<S, T>>);

struct Inner<S, T: TokenStore> {
    app: OAuthApp<S>,
    store: T,
    unsaved: Arc<Mutex<Option<Unsaved<T>>>>,
}

/// What was granted and could not be saved yet.
struct Unsaved<T: TokenStore> {
    /// An error where there was none that could be used.
    token: Result<Token, Error>,
    next: RefreshToken,
    since: Instant,
    /// With which token, as it is marked, and the right to use that one; `None` where a person granted it.
    spent: Option<(RefreshToken, T::Lease)>,
}

impl<S, T: TokenStore> Refresh<S, T> {
    pub(super) fn new(app: OAuthApp<S>, store: T) -> Self {
        Self(Arc::new(Inner { app, store, unsaved: Arc::default() }))
    }

    /// Takes over what a person granted, for the first time or anew, in place of what there was.
    ///
    /// It waits for a refresh under way, which would else save the successor of the former token over it.
    ///
    /// # Errors
    /// `token_store`: it could not be saved, and is kept in memory until the next refresh, which saves it first.
    pub async fn take(&self, granted: Granted) -> Result<(), Error> {
        let mut unsaved = self.0.unsaved.lock().await;
        let Granted { token, refresh_token: next } = granted;
        let kept = unsaved.insert(Unsaved { token: Ok(token), next, since: Instant::now(), spent: None });
        self.0.keep(kept).await.map_err(passing)?;
        *unsaved = None;
        Ok(())
    }
}

impl<S, T: TokenStore> Inner<S, T> {
    /// Puts what was granted in the place of what it was got with.
    async fn keep(&self, unsaved: &Unsaved<T>) -> Result<(), Error> {
        let next = &unsaved.next;
        let Some((spent, _)) = &unsaved.spent else {
            return self.store.save(next).await;
        };
        let mut known = spent.clone();
        while !self.store.replace(&known, next).await? {
            match self.store.load().await? {
                // Another process thought that we would not come back, and marked it once more.
                Some(stored) if stored.expose() == known.expose() && stored != known => known = stored,
                // It was saved by a try that seemed to fail, or a person consented anew meanwhile.
                _ => break,
            }
        }
        Ok(())
    }
}

impl<S, B, T> Refresher for Refresh<S, T>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Future: Send> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    T: TokenStore,
{
    async fn refresh(&self) -> Result<Token, Error> {
        let mut unsaved = self.0.unsaved.clone().lock_owned().await;
        if let Some(kept) = &*unsaved {
            self.0.keep(kept).await.map_err(passing)?;
            if let Some(token) = unsaved.take().and_then(Unsaved::left) {
                return Ok(token);
            }
        }
        let (inner, lease) = (self.0.clone(), self.0.store.lease().await.map_err(passing)?);
        let done = tokio::spawn(async move { inner.refresh(unsaved, lease).await }).await;
        done.unwrap_or_else(|error| {
            Err(Error::new(Kind::Internal, "token_fetch_ended")
                .with_message("the refresh of an access token broke off")
                .with_source(error))
        })
    }
}

impl<T: TokenStore> Unsaved<T> {
    /// The access token, as old as it is now; `None` where it is over, or never was.
    fn left(self) -> Option<Token> {
        let token = self.token.ok()?;
        let Some(life) = token.lifetime() else { return Some(token) };
        let left = life.saturating_sub(self.since.elapsed());
        (!left.is_zero()).then(|| token.with_lifetime(left))
    }
}

impl<S, B, T> Inner<S, T>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
    T: TokenStore,
{
    async fn refresh(&self, mut unsaved: OwnedMutexGuard<Option<Unsaved<T>>>, lease: T::Lease) -> Result<Token, Error> {
        // Kept until it is saved: it is all there is, as the token it was got with is spent.
        let kept = unsaved.insert(self.ask(lease).await?);
        self.keep(kept).await.map_err(passing)?;
        unsaved.take().expect("just filled").token
    }

    async fn ask(&self, lease: T::Lease) -> Result<Unsaved<T>, Error> {
        let Some(known) = self.store.load().await.map_err(passing)? else {
            return Err(consent("there is no refresh token"));
        };
        if known.sent() >= MAX_SENT {
            return Err(consent("the refresh token may be spent"));
        }
        // Marked first, so that a crash, or a caller who goes away, leaves no doubt that there is a doubt.
        let spent = known.with_sent(known.sent() + 1);
        if !self.store.replace(&known, &spent).await.map_err(passing)? {
            let error = broken("the refresh token was replaced by somebody else while it was looked at");
            return Err(passing(error));
        }
        let app = &self.app;
        let body = json!({
            "grant_type": "refresh_token", "client_id": &*app.client_id, "refresh_token": known.expose(),
        });
        let error = match app.endpoint.ask(TOKEN, app.authorization(), &body).await {
            Ok(answer) => {
                let token = token_of(&answer, app.endpoint.now());
                match (token, refresh_of(&answer)) {
                    (Err(error), None) => error,
                    (token, next) => {
                        let next = RefreshToken::new(next.unwrap_or(known.expose()));
                        return Ok(Unsaved { token, next, since: Instant::now(), spent: Some((spent, lease)) });
                    }
                }
            }
            Err(error) => error,
        };
        let was_in_doubt = known.sent() > 0;
        match (error.retry(), error.reason()) {
            // The mark stays.
            (Retry::IfIdempotent, _) if was_in_doubt => {
                Err(consent("the refresh token may be spent").with_source(error))
            }
            (Retry::IfIdempotent, _) => Err(error),
            (Retry::Never, "invalid_request" | "invalid_grant") => {
                Err(consent("the refresh token is refused").with_source(error))
            }
            (Retry::Never, "invalid_client") if was_in_doubt => {
                Err(consent("the refresh token is refused").with_source(error))
            }
            // It was not looked at, so what is known of it is what was known before.
            _ => {
                self.store.replace(&spent, &known).await.map_err(passing)?;
                Err(error)
            }
        }
    }
}

impl<S, T: TokenStore> fmt::Debug for Refresh<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refresh").field("app", &self.0.app).finish_non_exhaustive()
    }
}

/// Only a person can help.
fn consent(why: &'static str) -> Error {
    Error::new(Kind::Unauthenticated, "reauthorization_required")
        .with_message(format!("a person has to consent again: {why}"))
}

/// A store that fails says nothing about the token: it may work again.
fn passing(error: Error) -> Error {
    error.with_retry(Retry::Safe)
}
