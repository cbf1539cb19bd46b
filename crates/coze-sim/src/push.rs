use std::{collections::BTreeMap, io, time::Duration};

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::{
    digest::{sign_callback, sign_webhook},
    fault::millis,
    state::Shared,
};

/// How much of an answer is read.
const MAX_ANSWER: usize = 64 << 10;
/// How long the platform waits for an answer (coze-platform.md §5.1).
const PATIENCE: Duration = Duration::from_secs(3);
/// How long it waits where a bot was published.
const PATIENCE_PUBLISHED: Duration = Duration::from_secs(10);
/// The most attempts of one callback.
const MAX_ATTEMPTS: u32 = 10;

/// What is wrong with a push, on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tamper {
    /// Nothing.
    #[default]
    None,
    /// The signature is another one.
    Signature,
    /// There is no signature.
    Unsigned,
    /// The body was changed after it was signed: a space at its end.
    Body,
    /// The timestamp is an hour old, and signed like that. Callbacks only.
    Stale,
}

/// A message pushed to a bot, signed with the bot's token (`X-Signature`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Webhook {
    /// Where to, `http` only.
    pub url: String,
    /// The key of the signature.
    pub bot_token: String,
    /// The raw body.
    pub body: String,
    /// Further headers.
    pub headers: BTreeMap<String, String>,
    /// What is wrong with it.
    pub tamper: Tamper,
    /// Is the signature in upper case?
    pub uppercase: bool,
}

/// A callback of the platform (coze-platform.md §5.1). It is sent again with the same event id while the answer is not 200
/// or takes more than 3 s (10 s for `bot.published`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Callback {
    /// Where to, `http` only.
    pub url: String,
    /// The callback app's token.
    pub verify_token: String,
    /// The type, such as `bot.published`, `bot.deleted`, `bot.unpublished`, `benefit.usage`. Default `bot.published`.
    pub event_type: String,
    /// The event. Default an empty object.
    pub event: Value,
    /// The event id. Default a new one.
    pub event_id: Option<String>,
    /// Unix time in milliseconds, as in the header. Default now.
    pub timestamp: Option<String>,
    /// The nonce. Default a new one for each attempt.
    pub nonce: Option<String>,
    /// Attempts at most, 1 to 10. Default 3.
    pub attempts: u32,
    /// How long each waits for its answer, in JSON milliseconds; zero is as long as the platform. Default zero.
    #[serde(with = "millis", rename = "patience_ms")]
    pub patience: Duration,
    /// What is wrong with it.
    pub tamper: Tamper,
}

impl Default for Callback {
    fn default() -> Self {
        Self {
            url: String::new(),
            verify_token: String::new(),
            event_type: "bot.published".into(),
            event: json!({}),
            event_id: None,
            timestamp: None,
            nonce: None,
            attempts: 3,
            patience: Duration::ZERO,
            tamper: Tamper::None,
        }
    }
}

/// The platform's question whether a callback URL is alive: it must echo `challenge`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Challenge {
    /// Where to, `http` only.
    pub url: String,
    /// The callback app's token.
    pub verify_token: String,
    /// What is wrong with it.
    pub tamper: Tamper,
}

/// What was pushed, and how it was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pushed {
    /// The HTTP status of the last answer; 0 if there was none in time.
    pub status: u16,
    /// The body of the last answer, up to 64 KiB.
    pub body: String,
    /// How long the last answer took, in JSON milliseconds.
    #[serde(with = "millis", rename = "elapsed_ms")]
    pub elapsed: Duration,
    /// Why there was no answer.
    pub error: Option<String>,
    /// How often it was sent.
    pub attempts: u32,
    /// Was it accepted: 200 in time, and a challenge echoed?
    pub accepted: bool,
    /// What was signed last, for a replay: the event id,
    pub event_id: String,
    /// the timestamp,
    pub timestamp: String,
    /// the nonce,
    pub nonce: String,
    /// and the signature, as it was sent.
    pub signature: Option<String>,
}

/// Sends a webhook once.
pub(crate) async fn webhook(webhook: &Webhook) -> io::Result<Pushed> {
    let mut signature = sign_webhook(&webhook.bot_token, webhook.body.as_bytes());
    if webhook.uppercase {
        signature.make_ascii_uppercase();
    }
    let mut headers: Vec<_> = webhook.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let (signature, body) = apply(webhook.tamper, signature, &webhook.body);
    headers.extend(signature.clone().map(|signature| ("x-signature".to_owned(), signature)));
    let pushed = send(&webhook.url, headers, body, PATIENCE).await?;
    Ok(Pushed { accepted: pushed.status == 200, signature, ..pushed })
}

/// Sends a callback, again where it must be.
pub(crate) async fn callback(shared: &Shared, callback: &Callback) -> io::Result<Pushed> {
    let patience = match callback.event_type.as_str() {
        _ if !callback.patience.is_zero() => callback.patience,
        "bot.published" => PATIENCE_PUBLISHED,
        _ => PATIENCE,
    };
    let event_id = callback.event_id.clone().unwrap_or_else(|| shared.lock().ids.secret("")[..16].to_owned());
    let mut attempts = 0;
    loop {
        attempts += 1;
        let timestamp = callback.timestamp.clone().unwrap_or_else(|| millis_now(shared, callback.tamper));
        let body = json!({
            "header": {
                "event_type": callback.event_type,
                "event_id": event_id,
                "created_at": timestamp.parse::<i64>().unwrap_or_default(),
                "coze_account_id": crate::ACCOUNT,
                "api_app_id": "7500000000000000100",
                "connector_id": "1024",
            },
            "event": callback.event,
        });
        let signed = Signed { body: body.to_string(), timestamp, nonce: callback.nonce.clone(), patience };
        let pushed = signed.send(shared, &callback.url, &callback.verify_token, callback.tamper).await?;
        if pushed.accepted || attempts >= callback.attempts.clamp(1, MAX_ATTEMPTS) {
            return Ok(Pushed { attempts, event_id, ..pushed });
        }
    }
}

/// Sends a challenge once; it is accepted if the answer holds it.
pub(crate) async fn challenge(shared: &Shared, challenge: &Challenge) -> io::Result<Pushed> {
    let text = shared.lock().ids.secret("")[..24].to_owned();
    let body = json!({ "challenge": text }).to_string();
    let timestamp = millis_now(shared, challenge.tamper);
    let signed = Signed { body, timestamp, nonce: None, patience: PATIENCE };
    let pushed = signed.send(shared, &challenge.url, &challenge.verify_token, challenge.tamper).await?;
    let echo = serde_json::from_str::<Value>(&pushed.body).is_ok_and(|echo| echo["challenge"] == text.as_str());
    let accepted = pushed.accepted && (echo || pushed.body.trim() == text);
    Ok(Pushed { accepted, ..pushed })
}

/// A body with what is signed together with it.
struct Signed {
    body: String,
    timestamp: String,
    nonce: Option<String>,
    patience: Duration,
}

impl Signed {
    async fn send(self, shared: &Shared, url: &str, token: &str, tamper: Tamper) -> io::Result<Pushed> {
        let nonce = self.nonce.unwrap_or_else(|| shared.lock().ids.secret("")[..16].to_owned());
        let signature = sign_callback(&self.timestamp, &nonce, token, self.body.as_bytes());
        let (signature, body) = apply(tamper, signature, &self.body);
        let mut headers =
            vec![("x-coze-timestamp".to_owned(), self.timestamp.clone()), ("x-coze-nonce".to_owned(), nonce.clone())];
        headers.extend(signature.clone().map(|signature| ("x-coze-signature".to_owned(), signature)));
        let pushed = send(url, headers, body, self.patience).await?;
        Ok(Pushed { accepted: pushed.status == 200, timestamp: self.timestamp, nonce, signature, ..pushed })
    }
}

fn millis_now(shared: &Shared, tamper: Tamper) -> String {
    let now = shared.unix();
    let then = if tamper == Tamper::Stale { now.saturating_sub(3600) } else { now };
    (then * 1000).to_string()
}

/// The signature and the body as they are sent.
fn apply(tamper: Tamper, mut signature: String, body: &str) -> (Option<String>, String) {
    match tamper {
        Tamper::None | Tamper::Stale => (Some(signature), body.to_owned()),
        Tamper::Unsigned => (None, body.to_owned()),
        Tamper::Body => (Some(signature), format!("{body} ")),
        Tamper::Signature => {
            let last = signature.pop();
            signature.push(if last == Some('0') { '1' } else { '0' });
            (Some(signature), body.to_owned())
        }
    }
}

/// Sends one request; what goes wrong on the way is told in [`Pushed::error`].
async fn send(url: &str, headers: Vec<(String, String)>, body: String, patience: Duration) -> io::Result<Pushed> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let uri: Uri = url.parse().map_err(|error| invalid(format!("url {url:?} is not valid: {error}")))?;
    if uri.scheme_str() != Some("http") || uri.authority().is_none() {
        return Err(invalid(format!("url {url:?} must begin with http://")));
    }
    let mut request = Request::post(uri).header("content-type", "application/json; charset=utf-8");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|error| invalid(error.to_string()))?;
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let start = Instant::now();
    let exchange = async {
        let response = client.request(request).await.map_err(|error| chain(&error))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| chain(&*error))?;
        Ok::<_, String>((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    let result = timeout(patience, exchange).await;
    let pushed = Pushed { elapsed: start.elapsed(), attempts: 1, ..Pushed::default() };
    Ok(match result {
        Ok(Ok((status, body))) => Pushed { status, body, ..pushed },
        Ok(Err(error)) => Pushed { error: Some(error), ..pushed },
        Err(_) => Pushed { error: Some(format!("no answer within {patience:?}")), ..pushed },
    })
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
