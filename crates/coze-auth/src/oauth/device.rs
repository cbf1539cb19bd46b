use std::{fmt, time::Duration};

use bytes::Bytes;
use coze_core::{BoxError, Error, Kind, Retry};
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout_at};
use tower_service::Service;

use super::{
    Granted, OAuthApp, answer,
    app::{TOKEN, escape, granted_of},
};
use crate::lifetime;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// The platform's defaults (coze-platform.md §1.5).
const INTERVAL: i64 = 5;
const LIFETIME: i64 = 300;
/// What `slow_down` adds, and up to which time between two polls it does.
const SLOWER: Duration = Duration::from_secs(5);
const SLOWEST: Duration = Duration::from_secs(30);
/// The longest anybody is waited for, whatever the platform says.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A device that waits for a person to enter its code elsewhere (coze-platform.md §1.5).
pub struct Device<S> {
    app: OAuthApp<S>,
    device_code: String,
    user_code: String,
    verification_uri: String,
    interval: Duration,
    deadline: Instant,
}

impl<S> Device<S> {
    /// The code to enter.
    #[must_use]
    pub fn user_code(&self) -> &str {
        &self.user_code
    }

    /// Where to enter it.
    #[must_use]
    pub fn verification_uri(&self) -> &str {
        &self.verification_uri
    }

    /// The same with the code in it, such as for a QR code.
    #[must_use]
    pub fn verification_url(&self) -> String {
        let mark = if self.verification_uri.contains('?') { '&' } else { '?' };
        format!("{}{mark}user_code={}", self.verification_uri, escape(&self.user_code))
    }
}

impl<S, B> Device<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
{
    pub(super) async fn ask(app: &OAuthApp<S>) -> Result<Self, Error> {
        let asked = Instant::now();
        let body = json!({ "client_id": &*app.client_id });
        let answer = app.endpoint.ask("/api/permission/oauth2/device/code", None, &body).await?;
        let text = |name: &str| {
            let text = answer.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
            text.map(str::to_owned)
                .ok_or_else(|| answer::nonsense("the answer of the token endpoint holds no device code"))
        };
        let number = |name: &str, default| answer.get(name).and_then(answer::number).unwrap_or(default);
        let life = lifetime(number("expires_in", LIFETIME), app.endpoint.now()).min(PATIENCE);
        let interval = u64::try_from(number("interval", INTERVAL)).unwrap_or(1).max(1);
        Ok(Self {
            app: app.clone(),
            device_code: text("device_code")?,
            user_code: text("user_code")?,
            verification_uri: text("verification_uri")?,
            interval: Duration::from_secs(interval).min(PATIENCE),
            deadline: asked + life,
        })
    }

    /// Waits until the person has decided: asks as often as the platform wants it, and no longer than the code lives, an
    /// hour at most.
    ///
    /// # Errors
    /// `access_denied` where the person refused, `expired_token` where nobody came in time, and any other refusal by the
    /// platform's name. What may pass is tried again until then.
    pub async fn granted(self) -> Result<Granted, Error> {
        let body = json!({
            "grant_type": GRANT, "client_id": &*self.app.client_id, "device_code": self.device_code,
        });
        let over = || {
            Error::new(Kind::Unauthenticated, "expired_token").with_message("nobody entered the device's code in time")
        };
        let (mut wait, mut asked) = (self.interval, Duration::ZERO);
        loop {
            let next = Instant::now() + wait.max(asked);
            if next >= self.deadline {
                sleep_until(self.deadline).await;
                return Err(over());
            }
            sleep_until(next).await;
            let endpoint = &self.app.endpoint;
            match timeout_at(self.deadline, endpoint.ask(TOKEN, None, &body)).await.map_err(|_| over())? {
                Ok(granted) => return granted_of(&granted, endpoint.now()),
                Err(error) if error.reason() == "authorization_pending" => {
                    asked = error.retry_after().unwrap_or_default();
                }
                Err(error) if error.retry() == Retry::Never => return Err(error),
                // Asked to, or because the endpoint has trouble enough. An interval that is longer already stays.
                Err(error) => {
                    asked = error.retry_after().unwrap_or_default();
                    wait = wait.max(SLOWEST.min(wait + SLOWER));
                }
            }
        }
    }
}

impl<S> fmt::Debug for Device<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("verification_uri", &self.verification_uri)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}
