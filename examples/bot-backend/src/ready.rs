//! Whether the service can do its work now, part by part.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use coze_core::Error;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{app::App, webhook::json_response};

/// Time for one check.
const TIMEOUT: Duration = Duration::from_secs(2);
/// An answer serves for so long: who asks often does not make work.
const FRESH: Duration = Duration::from_secs(1);

/// Checks the parts, once for all who ask at the same time.
#[derive(Debug)]
pub(crate) struct Readiness {
    app: Arc<App>,
    /// Host and port of the platform, unless it is not used.
    platform: Option<(String, u16)>,
    last: Mutex<Option<(Instant, bool, Value)>>,
}

impl Readiness {
    pub(crate) fn new(app: Arc<App>, platform: Option<(String, u16)>) -> Self {
        Self { app, platform, last: Mutex::new(None) }
    }

    pub(crate) async fn response(&self) -> Response<Body> {
        let mut last = self.last.lock().await;
        let (ready, parts) = match &*last {
            Some((at, ready, parts)) if at.elapsed() < FRESH => (*ready, parts.clone()),
            _ => {
                let (ready, parts) = self.check().await;
                *last = Some((Instant::now(), ready, parts.clone()));
                (ready, parts)
            }
        };
        drop(last);
        let mut response = json_response(&json!({ "ready": ready, "parts": parts }));
        if !ready {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }

    async fn check(&self) -> (bool, Value) {
        let (conversations, sessions, platform) = tokio::join!(
            state(self.app.store.check()),
            state(self.app.sessions.check()),
            // A connection and no call: calls are counted, and on the free plan few.
            async {
                let Some((host, port)) = &self.platform else { return "not_used" };
                match timeout(TIMEOUT, TcpStream::connect((host.trim_matches(['[', ']']), *port))).await {
                    Ok(Ok(_)) => "ok",
                    Ok(Err(_)) => "platform_unreachable",
                    Err(_) => "timeout",
                }
            },
        );
        let mut ready = [conversations, sessions, platform].iter().all(|state| matches!(*state, "ok" | "not_used"));
        let mut parts = json!({ "conversations": conversations, "sessions": sessions, "platform": platform });
        if let Some(consent) = &self.app.consent {
            let state = timeout(TIMEOUT, consent.state()).await.unwrap_or("timeout");
            ready &= state == "ok";
            parts["consent"] = state.into();
        }
        (ready, parts)
    }
}

async fn state(check: impl Future<Output = Result<(), Error>>) -> &'static str {
    match timeout(TIMEOUT, check).await {
        Ok(Ok(())) => "ok",
        Ok(Err(error)) => error.reason(),
        Err(_) => "timeout",
    }
}
