//! The platform's events (coze-platform.md §5.1): stored once, answered in time.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::body::Body;
use bytes::Bytes;
use coze_auth::{Callback, Decision, Policy};
use coze_core::{BotId, BoxError, Context, Error, Kind, Refusal};
use http::{Request, Response, request::Parts};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    app::App,
    replays::Replays,
    store::Event,
    webhook::{json_response, whole},
};

/// The platform waits 3 s and sends the event again then.
const IN_TIME: Duration = Duration::from_millis(2500);
/// Bytes of an event's id and of its type.
const MAX_NAME: usize = 128;

/// The inbound policy of one bot.
type Guard = Callback<Replays>;

/// The inbound policy of the callback routes: the bot in the path, or the only one that has a callback, and its tokens. Clones
/// share the bots.
#[derive(Clone, Debug)]
pub(crate) struct Callbacks {
    prefix: &'static str,
    bots: Arc<ArcSwap<HashMap<BotId, Guard>>>,
}

impl Callbacks {
    pub(crate) fn new(prefix: &'static str) -> Self {
        Self { prefix, bots: Arc::default() }
    }

    pub(crate) fn get(&self, bot: &BotId) -> Option<Guard> {
        self.bots.load().get(bot).cloned()
    }

    pub(crate) fn set(&self, bot: &BotId, callback: Guard) {
        self.bots.rcu(|bots| {
            let mut bots = HashMap::clone(bots);
            bots.insert(bot.clone(), callback.clone());
            bots
        });
    }

    /// `None` if the bot is not ours.
    fn of(&self, path: &str) -> Result<Option<(BotId, Guard)>, Error> {
        let bots = self.bots.load();
        let named = path.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('/')).filter(|id| !id.is_empty());
        let found = match named {
            Some(id) => bots.get_key_value(id),
            None if bots.len() == 1 => bots.iter().next(),
            None => {
                return Err(Error::new(Kind::Unauthenticated, "missing_credentials")
                    .with_message("the path does not name a bot, and there is more than one callback or none"));
            }
        };
        Ok(found.map(|(bot, callback)| (bot.clone(), callback.clone())))
    }
}

impl<B> Policy<B> for Callbacks
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Body = <Guard as Policy<B>>::Body;
    type Ticket = ();
    type Future = <Guard as Policy<B>>::Future;

    fn authorize(&self, head: &mut Parts, body: B) -> Decision<(Self::Body, ()), Self::Future> {
        let context = Context::of(&mut head.extensions);
        let error = match self.of(head.uri.path()) {
            Ok(Some((bot, callback))) => {
                context.bot.get_or_init(|| bot);
                return callback.authorize(head, body);
            }
            Ok(None) => {
                let refusal = Refusal { kind: Kind::Unauthenticated, reason: "unknown_key", client: None };
                context.refusal.get_or_init(|| refusal);
                // The same as of a wrong signature, so that nobody learns which bots there are.
                Error::new(Kind::Unauthenticated, "signature_invalid")
                    .with_message("the signature is not that of the body under a current key")
            }
            Err(error) => {
                context.refusal.get_or_init(|| Refusal::from(&error));
                error
            }
        };
        Decision::Now(Err(error))
    }
}

/// Takes an event whose signature is verified.
pub(crate) async fn callback<B>(app: Arc<App>, request: Request<B>) -> Result<Response<Body>, Error>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let (mut parts, body) = request.into_parts();
    let context = Context::of(&mut parts.extensions);
    let body = whole(body).await?;
    let malformed = |what: &str| Error::new(Kind::Invalid, "body_malformed").with_message(what.to_owned());
    let text = std::str::from_utf8(&body).map_err(|_| malformed("the body is not UTF-8"))?;
    let event: Value = serde_json::from_str(text).map_err(|_| malformed("the body is not JSON"))?;
    if let Some(challenge) = event.get("challenge") {
        return Ok(json_response(&json!({ "challenge": challenge })));
    }
    let id = name(&event, "event_id")?;
    let kind = name(&event, "event_type")?;
    let app_id = context.bot.get().map_or("", |bot| bot.as_str());
    let stored = Event { id: &id, app: app_id, kind: &kind, body: text };
    let is_new = timeout(IN_TIME, app.store.keep_event(stored)).await.map_err(|_| {
        Error::new(Kind::Unavailable, "conversations_unavailable").with_message("the event could not be stored in time")
    })??;
    tracing::info!(event_id = %id, event_type = %kind, is_new, "the platform sent an event");
    // A channel that does not say what it thinks of a bot fails its publishing. This one takes every bot.
    let is_audit = kind == "bot.published" && event["header"]["connector_id"].as_str().is_some_and(|id| !id.is_empty());
    Ok(json_response(&match is_audit {
        true => json!({ "audit": { "audit_status": 2, "reason": "" } }),
        false => json!({ "code": 0, "msg": "" }),
    }))
}

/// A field of the event's header; numbers count as text.
fn name(event: &Value, field: &str) -> Result<String, Error> {
    let text = match &event["header"][field] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null => {
            return Err(
                Error::new(Kind::Invalid, "field_missing").with_message(format!("the field header.{field} is missing"))
            );
        }
        _ => String::new(),
    };
    if text.is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        return Err(Error::new(Kind::Invalid, "field_invalid")
            .with_message(format!("the field header.{field} must be 1 to {MAX_NAME} bytes of text")));
    }
    Ok(text)
}
