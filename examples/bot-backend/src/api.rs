//! What the programs of a tenant's own may read, with a JSON web token: what was said in its conversations.

mod remembered;

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::{FromRequestParts, Path},
    routing::{self, MethodRouter},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use coze_auth::{AuthLayer, Issuer, Jwt, JwtKeys, KeyFetch, ResourceMetadata, Routes};
use coze_core::{BotId, Context, ConversationId, Error, Kind};
use coze_errmap::{ErrMapLayer, Responder};
use coze_observe::{Inbound, ObserveLayer};
use coze_ratelimit::{Level, Limits, Rate, RateLimitLayer};
use coze_tenant::TenantLayer;
use http::{Method, request::Parts};
use serde_json::{Value, json};
use tower::{ServiceBuilder, service_fn};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    app::App,
    config::Config,
    stack::{panicked, tenants},
    store::{Entry, Place},
    transport::seldom,
};

use remembered::Remembered;

pub(crate) const MESSAGES: &str = "/conversations/{conversation_id}/messages";
/// What a token has to permit.
const READ: &str = "conversations:read";
/// Messages of a page.
const PAGE: (u32, u32) = (50, 100);
/// Bytes of the place a page begins behind.
const MAX_AFTER: usize = 1024;

/// The API within its stack, if somebody makes tokens for it.
///
/// # Errors
/// When the configuration holds what a layer refuses, such as keys at an address without TLS.
pub(crate) fn messages(
    config: &Config,
    app: &Arc<App>,
    observe: &ObserveLayer<Inbound>,
) -> Result<Option<MethodRouter<(), Infallible>>, Error> {
    if config.api.issuers.is_empty() {
        return Ok(None);
    }
    let rate = Level::per_tenant("tenant", Rate::per_second(config.limits.app_qps));
    let (app, remembered) = (app.clone(), Remembered::default());
    let respond = match metadata(config)? {
        Some(metadata) => Responder::new().resource_metadata(&metadata.url())?,
        None => Responder::new(),
    };
    let messages = ServiceBuilder::new()
        .layer(observe.clone())
        .layer(ErrMapLayer::new(respond))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(AuthLayer::new(tokens(config)?))
        // A token without a tenant must not be one for whatever tenant a header names.
        .layer(TenantLayer::new(|_: &mut Parts, context: &Context| match context.tenant.get() {
            Some(_) => Ok(()),
            None => Err(Error::new(Kind::PermissionDenied, "tenant_missing").with_message("the token names no tenant")),
        }))
        .layer(TenantLayer::new(tenants(config)))
        .layer(RateLimitLayer::new(Limits::new().level(rate)).degrade(remembered.clone()))
        .service(service_fn(move |request| remembered.clone().page(app.clone(), request)));
    Ok(Some(routing::get_service(messages)))
}

/// What clients may know about the API, if it has a name.
///
/// # Errors
/// When `api.resource` or the name of an issuer is no https URL.
pub(crate) fn metadata(config: &Config) -> Result<Option<ResourceMetadata>, Error> {
    let Some(resource) = &config.api.resource else { return Ok(None) };
    let issuers = config.api.issuers.iter().map(|issuer| issuer.name.as_str());
    ResourceMetadata::new(resource)?.authorization_servers(issuers)?.scopes([READ]).map(Some)
}

fn tokens(config: &Config) -> Result<Jwt, Error> {
    let transport = seldom(&config.platform);
    let issuer = |issuer: &crate::config::Issuer| {
        let fetch = match (&issuer.jwks_url, &issuer.jwks_file) {
            (Some(url), _) => KeyFetch::url(url, transport.clone()),
            (None, Some(file)) => Ok(KeyFetch::file(file)),
            (None, None) => KeyFetch::discovered(&issuer.name, transport.clone()),
        };
        let fetch = fetch.map_err(|error| {
            let message = format!("the issuer {}: {}", issuer.name, error.message());
            Error::new(error.kind(), error.reason()).with_message(message)
        })?;
        let known = Issuer::new(&issuer.name, JwtKeys::fetched(fetch)).audience(&issuer.audience);
        Ok(match issuer.tenants.is_empty() {
            true => known,
            false => known.tenants(issuer.tenants.iter().cloned()),
        })
    };
    let issuers = config.api.issuers.iter().map(issuer).collect::<Result<Vec<_>, Error>>()?;
    let access = Routes::new().require(Method::GET, MESSAGES, [READ]);
    Ok(Jwt::new(issuers)?.tenant(&config.api.tenant_claim).access(access))
}

/// A page of the messages in a conversation with the tenant's bots, the oldest first.
async fn page(app: &App, parts: &mut Parts) -> Result<Value, Error> {
    let context = Context::of(&mut parts.extensions);
    let tenant = context.tenant.get().ok_or_else(|| Error::new(Kind::Internal, "tenant_unknown"))?;
    let id = Path::<String>::from_request_parts(parts, &()).await.ok();
    let id = id.and_then(|Path(id)| ConversationId::new(&id).ok());
    let id = id.ok_or_else(|| invalid("the path names no conversation"))?;

    let query = |name: &str| {
        let pairs = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        pairs.filter(|(key, _)| key == name).map(|(_, value)| value).next()
    };
    let limit = query("limit").map_or(Some(PAGE.0), |text| text.parse().ok());
    let limit = limit.filter(|limit| (1..=PAGE.1).contains(limit));
    let limit = limit.ok_or_else(|| invalid(&format!("the parameter limit must be from 1 to {}", PAGE.1)))?;
    let after =
        query("after").map(|text| read(&text).ok_or_else(|| invalid("the parameter after must be the next of a page")));
    let after = after.transpose()?;

    let bots: Vec<&BotId> = app.bots.values().filter(|bot| bot.tenant == *tenant).map(|bot| &bot.id).collect();
    // One more than is asked for tells whether there are more.
    let mut entries = app.store.history(&bots, &id, after.as_ref(), limit + 1).await?;
    if entries.is_empty() && after.is_none() {
        return Err(Error::new(Kind::NotFound, "conversation_unknown").with_message("there is no such conversation"));
    }
    let has_more = entries.len() > limit as usize;
    entries.truncate(limit as usize);
    let next = entries.last().filter(|_| has_more).map(|last| write(&last.place));
    let messages: Vec<Value> = entries.iter().map(shown).collect();
    Ok(json!({ "code": 0, "msg": "", "data": { "messages": messages, "next": next } }))
}

fn shown(entry: &Entry) -> Value {
    json!({
        "bot_id": entry.place.bot,
        "message_id": entry.place.message,
        "user_id": entry.user,
        "received_at": entry.place.received_at,
        "content": entry.content,
        "status": entry.status,
        "answer": (entry.status == "answered").then_some(&entry.answer),
    })
}

/// A place as text for a query.
fn write(place: &Place) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(place).expect("plain fields"))
}

fn read(text: &str) -> Option<Place> {
    let json = URL_SAFE_NO_PAD.decode(text.get(..text.len().min(MAX_AFTER))?).ok()?;
    let place: Place = serde_json::from_slice(&json).ok()?;
    // PostgreSQL has no text with it.
    (!place.bot.contains('\0') && !place.message.contains('\0')).then_some(place)
}

fn invalid(what: &str) -> Error {
    Error::new(Kind::Invalid, "field_invalid").with_message(what.to_owned())
}
