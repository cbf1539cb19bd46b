//! What the steps happen in: the simulated platform, the bot, and a caller.

use std::time::Duration;

use bytes::Bytes;
use coze_core::{BotId, BoxError, TenantId};
use coze_sim::{Fault, FaultKind, Recorded, Sim, sign_webhook};
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    Backend,
    config::{self, Config, Secret, ServiceAccount},
};

use super::http::{Answer, Http};

/// The key that signs the messages to every bot here.
pub(super) const KEY: &str = "demo-webhook-key";
/// The token that signs the platform's events.
pub(super) const VERIFY: &str = "demo-verify-token";

/// A bot of the tenant acme. It asks the platform for a stream.
pub(super) const ACME: &str = "acme-helpdesk";
/// A bot of the tenant hooli. It asks the platform again and again whether the answer is there.
pub(super) const HOOLI: &str = "hooli-sales";
/// A bot of the tenant initech. It asks for a stream, and has higher limits for itself and for each user.
pub(super) const INITECH: &str = "initech-hr";

/// The platform's routes, and what the table calls them.
pub(super) const CHAT: &str = "/v3/chat";
pub(super) const LOOK: &str = "/v3/chat/retrieve";
const ROUTES: [(&str, &str); 5] = [
    ("/api/permission/oauth2/token", "token"),
    (CHAT, "chat"),
    (LOOK, "look"),
    ("/v3/chat/message/list", "list"),
    (CANCEL, "cancel"),
];
pub(super) const CANCEL: &str = "/v3/chat/cancel";

/// How long something that is about to be so may take.
const SOON: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct World {
    pub(super) sim: Sim,
    pub(super) backend: Backend,
    pub(super) config: Config,
    pub(super) http: Http,
    /// What goes wrong on the platform in each step, besides what the step wants.
    faults: Vec<Fault>,
    sent: u32,
    /// The database and the service account's key. Removed when this is dropped.
    _folder: TempDir,
}

impl World {
    /// A platform and a bot. These faults come on top in each step.
    pub(super) async fn start(faults: &[Fault]) -> Result<Self, BoxError> {
        let folder = tempfile::tempdir()?;
        let (app, key) = coze_sim::App::with_key("20000000000000000000000000000002.app.coze")?;
        let key_file = folder.path().join("service-account.pem");
        std::fs::write(&key_file, key)?;
        let account = ServiceAccount {
            client_id: app.client_id.clone(),
            key_id: Secret::new(app.keys.first().map_or("", |(id, _)| id)),
            private_key: Secret::file(key_file),
            session_per_tenant: true,
        };
        let sim = Sim::start(platform(app)).await?;

        let mut config = Config { listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
        config.platform.url = sim.url().parse()?;
        config.platform.service_account = Some(account);
        config.http.drain_timeout = Duration::from_secs(10);
        // In a URL these would mean something.
        let path = folder.path().join("bot.db").display().to_string();
        let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        config.storage.conversations = Secret::new(&format!("sqlite://{path}"));
        config.bots = vec![bot(ACME)?, bot(HOOLI)?, bot(INITECH)?];
        config.bots[1].stream = false;
        config.bots[2].concurrency = 1000.try_into().ok();
        config.bots[2].user_per_second = 1000.try_into().ok();
        config.check()?;
        let backend = Backend::start(&config, false).await?;
        Ok(Self { sim, backend, config, http: Http::new(), faults: faults.to_vec(), sent: 0, _folder: folder })
    }

    pub(super) async fn stop(self) {
        self.backend.stop().await;
        self.sim.shutdown().await;
    }

    /// A message of a user who has not written yet, in a conversation of its own.
    pub(super) fn message(&mut self, bot: &str) -> Value {
        self.sent += 1;
        let n = self.sent;
        json!({
            "bot_id": bot,
            "conversation_id": format!("conversation-{n}"),
            "user_id": format!("user-{n}"),
            "message_id": format!("message-{n}"),
            "content": "hi",
        })
    }

    /// The request that is this message, signed with the key of its bot.
    pub(super) fn signed(&self, message: &Value) -> Result<Request<Full<Bytes>>, BoxError> {
        let path = format!("/webhook/{}", message["bot_id"].as_str().unwrap_or_default());
        self.signed_with(KEY, &path, message)
    }

    pub(super) fn signed_with(&self, key: &str, path: &str, message: &Value) -> Result<Request<Full<Bytes>>, BoxError> {
        let body = message.to_string();
        Ok(Request::post(format!("{}{path}", self.backend.url()))
            .header("x-signature", sign_webhook(key, body.as_bytes()))
            .body(body.into())?)
    }

    /// Sends a message and waits for the answer.
    pub(super) async fn send(&self, message: &Value) -> Result<Answer, BoxError> {
        self.http.send(self.signed(message)?).await
    }

    /// Lets something go wrong on the platform, once.
    pub(super) fn fault(&self, route: &str, kind: FaultKind) -> Result<(), BoxError> {
        Ok(self.sim.fault(Fault::new(route, kind))?)
    }

    /// A new step: nothing is counted yet, and nothing wrong that a former one wanted.
    pub(super) fn begin(&self) -> Result<(), BoxError> {
        self.sim.clear_counts();
        self.sim.clear_faults();
        self.faults.iter().try_for_each(|fault| Ok(self.sim.fault(fault.clone())?))
    }

    /// How many requests the platform got.
    pub(super) fn requests(&self) -> usize {
        self.sim.requests().len()
    }

    /// How many requests to this route the platform got.
    pub(super) fn requests_to(&self, route: &str) -> usize {
        self.sim.requests().iter().filter(|request| request.path == route).count()
    }

    /// When the platform got its requests to this route, from its start on.
    pub(super) fn times_of(&self, route: &str) -> Vec<Duration> {
        self.sim.requests().iter().filter(|request| request.path == route).map(|request| request.at).collect()
    }

    /// Whether nothing is under way between the bot and the platform, or is about to come to its end.
    pub(super) async fn idle(&self) -> bool {
        soon(|| {
            let counts = self.sim.counts();
            counts.in_flight == 0 && counts.running_chats == 0
        })
        .await
    }

    /// What the platform was asked, and how it answered: `acme: chat 429→ok`.
    pub(super) fn platform_saw(&self) -> String {
        let requests = self.sim.requests();
        let mut parts: Vec<String> = Vec::new();
        let mut of = None;
        for (route, name) in ROUTES {
            let asked: Vec<_> = requests.iter().filter(|request| request.path == route).collect();
            let Some(first) = asked.first() else { continue };
            // A request for a token names no tenant, but the calls that follow do.
            let tenant = first.tenant.as_deref().filter(|tenant| of != Some(*tenant));
            let prefix = tenant.map(|tenant| format!("{tenant}: ")).unwrap_or_default();
            of = first.tenant.as_deref().or(of);
            parts.push(format!("{prefix}{name}{}", outcomes(&asked)));
        }
        if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
    }
}

/// Outcomes in their order: ` 429→ok`, ` ×3` for three that were fine.
fn outcomes(requests: &[&Recorded]) -> String {
    let mut runs: Vec<(&str, usize)> = Vec::new();
    for request in requests {
        let outcome = match request.outcome.as_str() {
            "0" => "ok",
            // Nobody waited for the answer.
            "" => "dropped",
            other => other.trim_start_matches("http "),
        };
        match runs.last_mut() {
            Some((last, times)) if *last == outcome => *times += 1,
            _ => runs.push((outcome, 1)),
        }
    }
    let all_fine = runs.len() == 1 && runs[0].0 == "ok";
    let texts = runs.into_iter().map(|(outcome, times)| {
        let outcome = if all_fine { "" } else { outcome };
        let times = if times == 1 { String::new() } else { format!(" ×{times}") };
        format!("{outcome}{times}")
    });
    let text = texts.collect::<Vec<_>>().join("→");
    if text.is_empty() { text } else { format!(" {}", text.trim_start()) }
}

/// Whether it is so, at once or after a while.
pub(super) async fn soon(is_so: impl Fn() -> bool) -> bool {
    for _ in 0..SOON.as_millis() / TICK.as_millis() {
        if is_so() {
            return true;
        }
        sleep(TICK).await;
    }
    is_so()
}

/// A platform with a bot for each of ours, which greets in its tenant's name, and without a limit of its own: what is to be
/// seen is that the bot keeps them.
fn platform(app: coze_sim::App) -> coze_sim::Config {
    let bots = [(ACME, "Acme"), (HOOLI, "Hooli"), (INITECH, "Initech")].map(|(id, name)| coze_sim::Bot {
        answers: vec![format!("{name}: {{content}}")],
        ..coze_sim::Bot::new(id, name)
    });
    coze_sim::Config {
        bots: bots.into(),
        apps: vec![app],
        limits: coze_sim::Limits { chat_qps: 0, ..Default::default() },
        // Chats are over when they are looked at for the first time, and not before.
        pace: coze_sim::Pace { polls: 0, work: Duration::from_secs(3600), ..Default::default() },
        ..coze_sim::Config::default()
    }
}

fn bot(id: &str) -> Result<config::Bot, BoxError> {
    let (tenant, _) = id.split_once('-').unwrap_or((id, ""));
    Ok(config::Bot {
        id: BotId::new(id)?,
        tenant: TenantId::new(tenant)?,
        webhook_keys: vec![Secret::new(KEY)],
        verify_tokens: vec![Secret::new(VERIFY)],
        platform_bot_id: None,
        stream: true,
        concurrency: None,
        user_per_second: None,
    })
}
