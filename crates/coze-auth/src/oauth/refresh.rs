use std::fmt;

use bytes::Bytes;
use coze_core::{BoxError, Error, Kind, Retry};
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use serde_json::json;
use tokio::sync::Mutex;
use tower_service::Service;

use super::{
    Granted, OAuthApp, RefreshToken, TokenStore,
    app::{TOKEN, granted_of},
    store::broken,
};
use crate::{Refresher, Token};

/// How often one refresh token is sent at most while its fate is unknown.
const MAX_SENT: u8 = 2;

/// Tokens that are renewed with a refresh token, each of which is good once (coze-platform.md §1.3).
///
/// Refreshes are made one at a time, also by several processes whose store is a `RedisStore`. The token is marked in the store
/// before it is sent, and the next one is saved before its access token is handed out. Where the answer got lost, nobody knows
/// whether the token was spent: it is not sent again in the same call; the next call sends it once more, and if that is refused,
/// or lost too, a person has to consent again: `reauthorization_required`, for good.
pub struct Refresh<S, T: TokenStore> {
    app: OAuthApp<S>,
    store: T,
    unsaved: Mutex<Option<Unsaved<T>>>,
}

/// What was granted and could not be saved yet.
struct Unsaved<T: TokenStore> {
    granted: Granted,
    /// With which token, as it is marked, and the right to use that one; `None` where a person granted it.
    spent: Option<(RefreshToken, T::Lease)>,
}

impl<S, T: TokenStore> Refresh<S, T> {
    pub(super) fn new(app: OAuthApp<S>, store: T) -> Self {
        Self { app, store, unsaved: Mutex::new(None) }
    }

    /// Takes over what a person granted, for the first time or anew, in place of what there was.
    ///
    /// It waits for a refresh under way, which would else save the successor of the former token over it.
    ///
    /// # Errors
    /// `token_store`: it could not be saved, and is kept in memory until the next refresh, which saves it first.
    pub async fn take(&self, granted: Granted) -> Result<(), Error> {
        let mut unsaved = self.unsaved.lock().await;
        let kept = unsaved.insert(Unsaved { granted, spent: None });
        self.keep(kept).await.map_err(passing)?;
        *unsaved = None;
        Ok(())
    }

    /// Puts what was granted in the place of what it was got with.
    async fn keep(&self, unsaved: &Unsaved<T>) -> Result<(), Error> {
        let next = &unsaved.granted.refresh_token;
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
    B: Body<Data: Send, Error: Into<BoxError>> + Send,
    T: TokenStore,
{
    async fn refresh(&self) -> Result<Token, Error> {
        let mut unsaved = self.unsaved.lock().await;
        if unsaved.is_none() {
            *unsaved = Some(self.ask().await?);
        }
        // Kept until it is saved: it is all there is, as the token it was got with is spent.
        let kept = unsaved.as_ref().expect("just filled");
        self.keep(kept).await.map_err(passing)?;
        Ok(unsaved.take().expect("just read").granted.token)
    }
}

impl<S, B, T> Refresh<S, T>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
    T: TokenStore,
{
    async fn ask(&self) -> Result<Unsaved<T>, Error> {
        let lease = self.store.lease().await.map_err(passing)?;
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
        let answer = app.endpoint.ask(TOKEN, app.secret.clone(), &body).await;
        let error = match answer.and_then(|granted| granted_of(&granted, app.endpoint.now())) {
            Ok(granted) => return Ok(Unsaved { granted, spent: Some((spent, lease)) }),
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
        f.debug_struct("Refresh").field("app", &self.app).finish_non_exhaustive()
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
