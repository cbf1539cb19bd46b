//! The platform calls this service as a plugin (coze-platform.md §5.3): what was said before, for a model to read.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    body::Body,
    routing::{self, MethodRouter},
};
use coze_auth::{ApiKey, ApiKeys, AuthLayer, Key, Routes};
use coze_core::{Context, Error, Kind};
use coze_errmap::{ErrMapLayer, Responder};
use coze_observe::{Inbound, ObserveLayer};
use coze_ratelimit::{Level, Limits, Rate, RateLimitLayer};
use coze_tenant::TenantLayer;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use serde_json::{Value, json};
use tower::{ServiceBuilder, service_fn};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    app::App,
    config::{Bot, Config, PluginKey},
    secrets::Secrets,
    stack::{panicked, tenants},
    webhook::{fault, json_response},
};

pub(crate) const HISTORY: &str = "/plugin/history";

const CONVERSATION: &str = "x-aiplugin-conversation-id";
/// How many messages are told, with their answers.
const LAST: u32 = 10;

/// The calls within their stack, if somebody may call.
///
/// # Errors
/// When a key must not be used, or two plugins have the same.
pub(crate) fn calls(
    config: &Config,
    app: &Arc<App>,
    secrets: &mut Secrets,
    observe: &ObserveLayer<Inbound>,
) -> Result<Option<MethodRouter<(), Infallible>>, Error> {
    if config.plugin_keys.is_empty() {
        return Ok(None);
    }
    let rate = Level::per_tenant("plugin", Rate::per_second(config.limits.app_qps));
    let app = app.clone();
    let calls = ServiceBuilder::new()
        .layer(observe.clone())
        .layer(ErrMapLayer::new(Responder::new().challenge(HeaderValue::from_static("Bearer"))))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(AuthLayer::new(keys(config, secrets)?))
        .layer(TenantLayer::new(tenants(config)))
        .layer(RateLimitLayer::new(Limits::new().level(rate)))
        .service(service_fn(move |request| history(app.clone(), request)));
    Ok(Some(routing::post_service(calls)))
}

/// The inbound policy: a service token in `authorization`, or in the query.
fn keys(config: &Config, secrets: &mut Secrets) -> Result<ApiKeys, Error> {
    let routes = Routes::new().require(Method::POST, HISTORY, ["conversations:read"]);
    let policy = ApiKeys::new([])?.query("service_token").plugin_headers().access(routes);
    let all = Arc::new(Mutex::new(vec![Vec::new(); config.plugin_keys.len()]));
    for (at, plugin) in config.plugin_keys.iter().enumerate() {
        let (policy, all, about) = (policy.clone(), all.clone(), plugin.clone());
        secrets.keys(&plugin.keys, move |keys| {
            let keys: Vec<_> = keys.iter().map(|key| entry(&about, key)).collect::<Result<_, _>>()?;
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            let mut next = all.clone();
            next[at] = keys;
            policy.replace(next.concat())?;
            *all = next;
            Ok(())
        })?;
    }
    Ok(policy)
}

fn entry(plugin: &PluginKey, key: &Key) -> Result<ApiKey, Error> {
    let scopes = plugin.scopes.iter().map(String::as_str);
    Ok(ApiKey::new(&plugin.name, key)?.scopes(scopes).tenant(plugin.tenant.clone()))
}

/// Tells what was said in the conversation the plugin is called from. What goes wrong is told in a 200 too: of any other status the
/// model learns only that the tool failed.
async fn history<B>(app: Arc<App>, request: Request<B>) -> Result<Response<Body>, Error> {
    let (mut parts, _) = request.into_parts();
    let context = Context::of(&mut parts.extensions);
    Ok(json_response(&match look_up(&app, &context, &parts.headers).await {
        Ok(messages) => json!({ "code": 0, "msg": "", "data": { "messages": messages } }),
        Err(error) => fault(&error, &context),
    }))
}

async fn look_up(app: &App, context: &Context, headers: &HeaderMap) -> Result<Vec<Value>, Error> {
    let missing = |what: &'static str| Error::new(Kind::Invalid, "plugin_header").with_message(what);
    let user = context.user.get().ok_or_else(|| missing("the platform does not say for whom it calls"))?;
    let named = context.bot.get().ok_or_else(|| missing("the platform does not say for which bot it calls"))?;
    let conversation = headers.get(CONVERSATION).and_then(|id| id.to_str().ok());
    let conversation =
        conversation.ok_or_else(|| missing("the platform does not say in which conversation it calls"))?;
    // The platform calls a bot by its own name for it, and a key opens the bots of its tenant only.
    let is_meant = |bot: &&Bot| bot.platform_id() == named && Some(&bot.tenant) == context.tenant.get();
    let mut bots = app.bots.values().filter(is_meant).peekable();
    if bots.peek().is_none() {
        return Err(Error::new(Kind::NotFound, "bot_unknown").with_message("there is no such bot"));
    }
    let mut messages = Vec::new();
    for bot in bots {
        let said = app.store.latest(bot.id.as_str(), user.as_str(), conversation, LAST).await?;
        messages.extend(said.into_iter().flat_map(|(content, answer)| {
            [json!({ "role": "user", "content": content }), json!({ "role": "assistant", "content": answer })]
        }));
    }
    Ok(messages)
}
