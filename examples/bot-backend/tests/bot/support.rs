//! A bot and a simulated platform, and requests between them.

use std::time::Duration;

use bot_backend::{
    Backend,
    config::{self, Config, Secret},
    store::Stored,
};
use bytes::Bytes;
use coze_core::{BotId, TenantId};
use coze_sim::{Sim, sign_webhook};
use coze_tests::{Answer, Http};
use http::{Request, request};
use http_body_util::Full;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::interval;

/// The key of every bot here.
pub(crate) const KEY: &str = "webhook-key";
/// The token that signs the platform's events.
pub(crate) const VERIFY: &str = "verify-token";
/// A bot that asks for a stream, of the tenant `acme`.
pub(crate) const BOT: &str = coze_sim::BOT;
/// A bot that asks for none, of the tenant `other`.
pub(crate) const POLLING: &str = "polling";

/// A configuration for this platform: SQLite in `folder`, sessions in memory, a free port.
pub(crate) fn config(sim: &Sim, folder: &TempDir) -> Config {
    let bot = |id: &str, tenant: &str, stream| config::Bot {
        id: BotId::new(id).expect("valid"),
        tenant: TenantId::new(tenant).expect("valid"),
        webhook_keys: vec![Secret::new(KEY)],
        verify_tokens: vec![Secret::new(VERIFY)],
        platform_bot_id: Some(BotId::new(BOT).expect("valid")),
        stream,
        concurrency: None,
        user_per_second: None,
    };
    let mut config = Config { listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
    config.platform.url = sim.url().parse().expect("a URL");
    config.platform.token = Some(Secret::new(coze_sim::TOKEN));
    config.storage.conversations = Secret::new(&format!("sqlite://{}/bot.db", folder.path().display()));
    // A limit that is in the way of most tests; the others set it.
    config.limits.user_per_second = 1000.try_into().expect("not zero");
    config.bots = vec![bot(BOT, "acme", true), bot(POLLING, "other", false)];
    config
}

/// A platform and a bot.
pub(crate) struct World {
    pub(crate) sim: Sim,
    pub(crate) bot: Backend,
    pub(crate) folder: TempDir,
    pub(crate) http: Http,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(coze_sim::Config::default(), |_| {}).await
    }

    pub(crate) async fn with(platform: coze_sim::Config, change: impl FnOnce(&mut Config)) -> Self {
        let sim = Sim::start(platform).await.expect("a free port");
        let folder = TempDir::new().expect("a folder");
        let mut config = config(&sim, &folder);
        change(&mut config);
        let bot = Backend::start(&config, false).await.expect("started");
        Self { sim, bot, folder, http: Http::new() }
    }

    /// The answer to a message of a new user.
    pub(crate) async fn send(&self, bot: &str, content: &str) -> Answer {
        self.http.send(self.signed(&message(bot, content))).await
    }

    /// The same as a stream.
    pub(crate) async fn stream(&self, bot: &str, content: &str) -> Answer {
        let mut request = self.signed(&message(bot, content));
        request.headers_mut().insert("accept", "text/event-stream".parse().expect("valid"));
        self.http.send(request).await
    }

    pub(crate) async fn post(&self, message: &Value) -> Answer {
        self.http.send(self.signed(message)).await
    }

    /// A message signed and addressed by its own `bot_id`.
    pub(crate) fn signed(&self, message: &Value) -> Request<Full<Bytes>> {
        let path = format!("/webhook/{}", message["bot_id"].as_str().unwrap_or_default());
        self.request(&path, message.to_string().as_bytes())
    }

    pub(crate) fn request(&self, path: &str, body: &[u8]) -> Request<Full<Bytes>> {
        self.head(path, body).body(Full::from(Bytes::copy_from_slice(body))).expect("valid")
    }

    pub(crate) fn head(&self, path: &str, body: &[u8]) -> request::Builder {
        Request::post(format!("{}{path}", self.bot.url())).header("x-signature", sign_webhook(KEY, body))
    }

    /// What is stored of a message.
    pub(crate) async fn stored(&self, sent: &Value) -> Stored {
        let (bot, id) = (sent["bot_id"].as_str().expect("text"), sent["message_id"].as_str().expect("text"));
        self.bot.store().message(bot, id).await.expect("a database").expect("stored")
    }

    /// How the platform's chats ended, or were refused.
    pub(crate) fn chats(&self, outcome: &str) -> u64 {
        self.sim.counts().outcomes("POST /v3/chat", outcome)
    }

    pub(crate) fn fault(&self, route: &str, kind: coze_sim::FaultKind) {
        self.sim.fault(coze_sim::Fault::new(route, kind)).expect("possible");
    }
}

/// A message of a user who has not written yet, in a conversation of its own.
pub(crate) fn message(bot: &str, content: &str) -> Value {
    let id = fastrand::u64(..);
    json!({
        "bot_id": bot,
        "conversation_id": format!("c{id}"),
        "user_id": format!("u{id}"),
        "content": content,
        "message_id": format!("m{id}"),
    })
}

/// The events of a stream: their names and data.
pub(crate) fn events(text: &str) -> Vec<(String, Value)> {
    text.split_terminator("\n\n")
        .map(|event| {
            let (name, data) = event.split_once('\n').expect("two lines");
            let name = name.strip_prefix("event: ").expect("a name");
            let data = data.strip_prefix("data: ").expect("data");
            (name.to_owned(), serde_json::from_str(data).expect("JSON"))
        })
        .collect()
}

/// Waits until it is so, at most 5 s.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    let mut looks = interval(Duration::from_millis(10));
    for _ in 0..500 {
        looks.tick().await;
        if is_so().await {
            return;
        }
    }
    panic!("not within 5 s: {what}");
}
