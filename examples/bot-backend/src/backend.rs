//! The service as a whole: built from its configuration, started, stopped.

use std::{sync::Arc, time::Duration};

use axum::{Router, routing};
use coze_auth::{PerTenant, Renewing};
use coze_core::{Error, Kind, TenantId};
use coze_ratelimit::Conversations;
use http::{HeaderValue, Response, header};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::{Answerer, App},
    config::Config,
    later::Later,
    metrics,
    oauth::Consent,
    pace,
    ready::Readiness,
    secrets::Secrets,
    server::Server,
    service_account,
    sessions::Sessions,
    stack,
    store::Store,
};

/// A service that runs, until [`Backend::stop`]. Dropped without that, it runs on.
#[derive(Debug)]
pub struct Backend {
    app: Arc<App>,
    server: Server,
    secrets: Secrets,
    url: String,
    drain_timeout: Duration,
}

impl Backend {
    /// Opens the storage and begins to listen. With `echo` the service answers by itself, and the platform is not used.
    ///
    /// # Errors
    /// When there is no bot or no way to authenticate to the platform, when the storage of the conversations cannot be
    /// opened, or the address not be listened on. The message says what to do about it.
    pub async fn start(config: &Config, echo: bool) -> Result<Self, Error> {
        let mut config = config.clone();
        let mut secrets = Secrets::open(&mut config).await?;
        match Self::start_with(&config, &mut secrets, echo).await {
            Ok((app, server, url)) => Ok(Self { app, server, secrets, url, drain_timeout: config.http.drain_timeout }),
            Err(error) => {
                secrets.close().await;
                Err(error)
            }
        }
    }

    async fn start_with(
        config: &Config,
        secrets: &mut Secrets,
        echo: bool,
    ) -> Result<(Arc<App>, Server, String), Error> {
        let metrics = metrics::recorder();
        let tasks = TaskTracker::new();
        let consent = match &config.platform.oauth {
            Some(oauth) if !echo => Some(Arc::new(Consent::open(config, oauth, secrets, tasks.clone()).await?)),
            _ => None,
        };
        let app = Arc::new(App {
            store: Store::open(&config.storage.conversations).await?,
            sessions: Sessions::open(&config.storage.sessions)?,
            answerer: if echo { Answerer::Echo } else { answerer(config, consent.as_deref(), secrets)? },
            consent,
            conversations: Conversations::new(config.pace.conversation_waiting.get(), config.http.connections.get()),
            later: Later::open(config)?,
            bots: config.bots.iter().map(|bot| (bot.id.clone(), bot.clone())).collect(),
            request_timeout: config.http.request_timeout,
            silence_timeout: config.platform.silence_timeout,
            tasks,
            stop: CancellationToken::new(),
        });
        secrets.keep(&app.store, &app.sessions, &config.storage);
        let platform = (!echo).then(|| (config.platform.url.host().to_owned(), config.platform.url.port()));
        let routes = stack::routes(config, &app, secrets)?
            .merge(probes(Arc::new(Readiness::new(app.clone(), platform)), metrics.clone()));
        let server = Server::start(config.listen, &config.http, routes).await.map_err(|e| {
            Error::new(Kind::Precondition, "listen").with_message(format!("cannot listen on {}: {e}", config.listen))
        })?;
        pace::follow(config, &app);
        if let Some(handle) = metrics {
            tokio::spawn(metrics::upkeep(handle, app.stop.clone()));
        }
        let url = format!("http://{}", server.address());
        tracing::info!(%url, bots = app.bots.len(), echo, "the bot listens");
        Ok((app, server, url))
    }

    /// Where it listens, such as `http://127.0.0.1:8080`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What is stored.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.app.store
    }

    /// Stops accepting, finishes what was accepted (at most for the drain timeout), closes the storage. Says whether
    /// everything came to its end by itself.
    pub async fn stop(self) -> bool {
        self.app.later.stop();
        let drained = self.server.stop(self.drain_timeout, &self.app.tasks, &self.app.stop).await;
        self.app.stop.cancel();
        self.app.later.close().await;
        if timeout(Duration::from_secs(5), self.app.store.close()).await.is_err() {
            tracing::warn!("the database did not close in time");
        }
        self.secrets.close().await;
        tracing::info!(drained, "the bot has stopped");
        drained
    }
}

fn answerer(config: &Config, consent: Option<&Consent>, secrets: &mut Secrets) -> Result<Answerer, Error> {
    let platform = match (&config.platform.token, &config.platform.service_account, consent) {
        (Some(token), ..) => stack::platform(config, secrets.token(token)?)?,
        (None, Some(account), _) => {
            let per_tenant = account.session_per_tenant;
            let account = service_account::open(config, account, secrets)?;
            if per_tenant {
                let of = move |tenant: &TenantId| Ok(Renewing::new(account.clone().session_name(tenant.as_str())));
                stack::platform(config, PerTenant::new(of))?
            } else {
                stack::platform(config, Renewing::new(account))?
            }
        }
        (None, None, Some(consent)) => stack::platform(config, consent.source())?,
        (None, None, None) => {
            return Err(Error::new(Kind::Precondition, "no_credentials").with_message(
                "nothing to authenticate to the platform with: set platform.token, platform.service_account or \
                 platform.oauth, or the environment variable BOT_PLATFORM_TOKEN",
            ));
        }
    };
    Ok(Answerer::Platform(platform))
}

fn probes(readiness: Arc<Readiness>, metrics: Option<PrometheusHandle>) -> Router {
    Router::new()
        .route("/healthz", routing::get(async || "ok\n"))
        .route("/readyz", routing::get(async move || readiness.response().await))
        .route(
            "/metrics",
            routing::get(async move || {
                let text = metrics.map(|metrics| metrics.render()).unwrap_or_default();
                let mut response = Response::new(axum::body::Body::from(text));
                let media_type = HeaderValue::from_static("text/plain; version=0.0.4");
                response.headers_mut().insert(header::CONTENT_TYPE, media_type);
                response
            }),
        )
}

#[cfg(test)]
mod tests {
    use coze_core::{BotId, Context};
    use coze_sim::{BOT, Sim, TOKEN};
    use tokio::time::interval;

    use super::*;
    use crate::{
        answering::Piece,
        config::{Bot, Secret},
        message::Message,
    };

    #[tokio::test]
    async fn a_reader_who_stops_holds_up_neither_the_platform_nor_the_next_one_in_the_conversation() {
        let pace = coze_sim::Pace { chunk_chars: 1, chunk_delay: Duration::from_millis(5), ..Default::default() };
        let sim = Sim::start(coze_sim::Config { pace, ..Default::default() }).await.expect("a free port");
        let folder = tempfile::TempDir::new().expect("a folder");
        let id = BotId::new(BOT).expect("valid");
        let mut config = Config { listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
        config.platform.url = sim.url().parse().expect("a URL");
        config.platform.token = Some(Secret::new(TOKEN));
        config.storage.conversations = Secret::new(&format!("sqlite://{}/bot.db", folder.path().display()));
        config.http.request_timeout = Duration::from_secs(1);
        config.bots = vec![Bot {
            id: id.clone(),
            tenant: TenantId::new("acme").expect("valid"),
            webhook_keys: vec![Secret::new("key")],
            verify_tokens: vec![],
            platform_bot_id: None,
            stream: true,
            concurrency: None,
            user_per_second: None,
        }];
        let bot = Backend::start(&config, false).await.expect("started");
        let message = |content: &str| {
            let body = serde_json::json!({ "bot_id": BOT, "conversation_id": "c", "user_id": "u", "content": content });
            Message::parse(body.to_string().as_bytes(), &id).expect("valid")
        };
        let context = Context::new();
        context.tenant.set(TenantId::new("acme").expect("valid")).expect("empty");
        context.bot.set(id.clone()).expect("empty");

        let unread = bot.app.answer(&context, message(&"x".repeat(2000)));
        let is_cancelled = async {
            let mut looks = interval(Duration::from_millis(10));
            while sim.counts().requests("POST /v3/chat/cancel") == 0 {
                looks.tick().await;
            }
        };
        timeout(Duration::from_secs(10), is_cancelled).await.expect("cancelled");
        let mut next = bot.app.answer(&context, message("hello"));
        let mut last = None;
        while let Some(piece) = next.recv().await {
            last = Some(piece);
        }
        assert!(matches!(last, Some(Piece::Done(_))), "{last:?}");
        assert!(unread.len() > 1, "nobody read it");
    }
}
