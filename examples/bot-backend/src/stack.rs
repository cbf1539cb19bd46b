//! The two stacks: around the handlers, and around the connection to the platform.

use std::{any::Any, convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    routing::{self, MethodRouter},
};
use bytes::Bytes;
use coze_auth::{AuthLayer, Bearer, Callback, TokenSource, TokenSources, Webhook, WebhookKeys};
use coze_core::{Error, TenantId};
use coze_errmap::{Classifier, ErrMapLayer, Responder};
use coze_observe::{Inbound, ObserveLayer, Outbound};
use coze_ratelimit::{Limits, Policy, RateLimitLayer};
use coze_retry::RetryLayer;
use coze_tenant::{Propagate, Registry, TenantLayer};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use tower::{ServiceBuilder, service_fn};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    api,
    app::App,
    callback::{Callbacks, callback},
    config::Config,
    later::{Later, Receipt},
    limits, message, oauth,
    platform::{self, Platform},
    plugin,
    replays::Replays,
    secrets::Secrets,
    transport,
    webhook::webhook,
};

/// The routes that the platform's and the callers' requests come to, each group within its stack.
///
/// # Errors
/// When the configuration holds what a layer refuses, such as too many keys.
pub(crate) fn routes(config: &Config, app: &Arc<App>, secrets: &mut Secrets) -> Result<Router, Error> {
    let routes = [
        "/webhook",
        "/webhook/{bot_id}",
        "/callback",
        "/callback/{bot_id}",
        oauth::START,
        oauth::CALLBACK,
        api::MESSAGES,
        plugin::HISTORY,
    ];
    let observe = ObserveLayer::new(Inbound::new(routes)?);
    let respond = ErrMapLayer::new(Responder::new().challenge(HeaderValue::from_static("Signature")));
    let tenant = TenantLayer::new(tenants(config));

    let messages = match limits::server(config)? {
        Some(server) => messages(config, app, secrets, &observe, &respond, limits::together(config, server)?)?,
        None => messages(config, app, secrets, &observe, &respond, limits::alone(config))?,
    };
    let events = ServiceBuilder::new()
        .layer(observe.clone())
        .layer(respond.clone())
        .layer(CatchPanicLayer::custom(panicked))
        .layer(AuthLayer::new(callbacks(config, secrets)?))
        .layer(tenant)
        .service(service_fn({
            let app = app.clone();
            move |request| callback(app.clone(), request)
        }));
    // Bare answers, of which errmap makes what the caller understands.
    let other = |status: StatusCode, allow: Option<HeaderValue>| {
        ServiceBuilder::new().layer(observe.clone()).layer(respond.clone()).service(service_fn(
            move |_: Request<Body>| {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = status;
                response.headers_mut().extend(allow.clone().map(|allow| (header::ALLOW, allow)));
                std::future::ready(Ok::<_, Infallible>(response))
            },
        ))
    };
    let not_post = other(StatusCode::METHOD_NOT_ALLOWED, Some(HeaderValue::from_static("POST")));
    let not_get = other(StatusCode::METHOD_NOT_ALLOWED, Some(HeaderValue::from_static("GET, HEAD")));
    let messages = messages.fallback_service(not_post.clone());
    let events = routing::post_service(events).fallback_service(not_post.clone());
    let mut router = Router::new();
    if let Some(calls) = plugin::calls(config, app, secrets, &observe)? {
        router = router.route(plugin::HISTORY, calls.fallback_service(not_post));
    }
    if let Some(consent) = app.consent.clone() {
        let pages = ServiceBuilder::new()
            .layer(observe.clone())
            .layer(respond.clone())
            .layer(CatchPanicLayer::custom(panicked))
            .service(service_fn(move |request| oauth::answer(consent.clone(), request)));
        let pages = routing::get_service(pages).fallback_service(not_get.clone());
        router = router.route(oauth::START, pages.clone()).route(oauth::CALLBACK, pages);
    }
    if let Some(messages) = api::messages(config, app, &observe)? {
        router = router.route(api::MESSAGES, messages.fallback_service(not_get.clone()));
    }
    if let Some(metadata) = api::metadata(config)? {
        let json = metadata.json();
        let document = move || std::future::ready(([(header::CONTENT_TYPE, "application/json")], json.clone()));
        router = router.route(&metadata.path(), routing::get(document).fallback_service(not_get));
    }
    Ok(router
        .route("/webhook", messages.clone())
        .route("/webhook/{bot_id}", messages)
        .route("/callback", events.clone())
        .route("/callback/{bot_id}", events)
        .fallback_service(other(StatusCode::NOT_FOUND, None)))
}

/// The route of messages, which come through these limits.
fn messages<P>(
    config: &Config,
    app: &Arc<App>,
    secrets: &mut Secrets,
    observe: &ObserveLayer<Inbound>,
    respond: &ErrMapLayer<Responder>,
    limits: P,
) -> Result<MethodRouter, Error>
where
    P: Policy<Permit: Send + 'static, Future: Send + 'static> + Clone + Send + Sync + 'static,
{
    Later::work(app, limits.clone());
    Ok(routing::post_service(
        ServiceBuilder::new()
            .layer(observe.clone())
            .layer(respond.clone())
            .layer(CatchPanicLayer::custom(panicked))
            .layer(AuthLayer::new(signatures(config, secrets)?))
            .layer(TenantLayer::new(tenants(config)))
            .layer(RateLimitLayer::new(limits).degrade(Receipt(app.clone())))
            .service(service_fn({
                let app = app.clone();
                move |request| webhook(app.clone(), request)
            })),
    ))
}

/// A client of the platform whose calls bear tokens of these sources.
///
/// # Errors
/// When the configuration holds what a layer refuses.
pub(crate) fn platform<T>(config: &Config, sources: T) -> Result<Platform, Error>
where
    T: TokenSources<Source: TokenSource<Future: Send + 'static> + Send + 'static> + Clone + Send + Sync + 'static,
{
    match limits::server(config)? {
        Some(server) => through(config, sources, limits::calls_together(config, server)?),
        // This node alone calls: its pace is limit enough.
        None => through(config, sources, Limits::new()),
    }
}

fn through<T, P>(config: &Config, sources: T, limits: P) -> Result<Platform, Error>
where
    T: TokenSources<Source: TokenSource<Future: Send + 'static> + Send + 'static> + Clone + Send + Sync + 'static,
    P: Policy<Permit: Send + 'static, Future: Send + 'static> + Clone + Send + Sync + 'static,
{
    let routes = ["/v3/chat", "/v3/chat/retrieve", "/v3/chat/message/list", "/v3/chat/cancel", platform::BENEFITS];
    let pace = config.pace.policy(&config.limits);
    let stack = ServiceBuilder::new()
        .layer(ObserveLayer::new(Outbound::new(routes)?))
        .layer(TenantLayer::new(Propagate::new()))
        .layer(RetryLayer::new(config.retry.policy().map_err(|(_, error)| error)?))
        .layer(RateLimitLayer::new(pace.clone()))
        .layer(RateLimitLayer::new(limits))
        .layer(AuthLayer::new(Bearer::new(sources).host(config.platform.url.host())))
        .layer(ErrMapLayer::new(Classifier::new()))
        .service(transport::transport(config.platform.connect_timeout, config.platform.silence_timeout));
    Ok(Platform::new(config.platform.url.clone(), stack, pace))
}

fn signatures(config: &Config, secrets: &mut Secrets) -> Result<Webhook, Error> {
    let keys = WebhookKeys::new();
    for bot in &config.bots {
        let (table, id) = (keys.clone(), bot.id.clone());
        secrets.keys(&bot.webhook_keys, move |keys| table.set(&id, keys))?;
    }
    Ok(Webhook::new(keys)
        .path("/webhook")
        .limit(config.http.body_limit.get())
        .timeout(config.http.body_timeout)
        .user(message::user))
}

fn callbacks(config: &Config, secrets: &mut Secrets) -> Result<Callbacks, Error> {
    let (callbacks, replays) = (Callbacks::new("/callback"), Replays::open(config, secrets)?);
    for bot in config.bots.iter().filter(|bot| !bot.verify_tokens.is_empty()) {
        let (table, id, replays) = (callbacks.clone(), bot.id.clone(), replays.of_one_bot());
        let (limit, time) = (config.http.body_limit.get(), config.http.body_timeout);
        secrets.keys(&bot.verify_tokens, move |tokens| {
            let policy = match table.get(&id) {
                // It goes on knowing which callbacks there were.
                Some(policy) => policy.tokens(tokens)?,
                None => Callback::new(id.as_str(), tokens)?.limit(limit).timeout(time).store(replays.clone()),
            };
            table.set(&id, policy);
            Ok(())
        })?;
    }
    Ok(callbacks)
}

/// Whose bots there are.
pub(crate) fn tenants(config: &Config) -> Registry {
    let no_others: [TenantId; 0] = [];
    config.bots.iter().fold(Registry::new(no_others), |registry, bot| registry.bot(bot.id.clone(), bot.tenant.clone()))
}

/// A bare 500, of which errmap makes what the caller understands. What the panic says is for the log.
pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Response<Full<Bytes>> {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("of another type"), "a request's handling panicked");
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_one_callers_500_and_says_nothing() {
        let service = ServiceBuilder::new()
            .layer(ErrMapLayer::new(Responder::new()))
            .layer(CatchPanicLayer::custom(panicked))
            .service(service_fn(|request: Request<Body>| async move {
                assert_ne!(request.uri().path(), "/panic", "the secret is 42");
                Ok::<_, Infallible>(Response::new(Body::from("fine")))
            }));
        let request = |path: &str| Request::get(path).body(Body::empty()).expect("valid");
        let answer = service.clone().oneshot(request("/panic")).await.expect("answered");
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (500, &HeaderValue::from_static("application/json"))
        );
        let body = answer.into_body().collect().await.expect("whole").to_bytes();
        assert_eq!(body, r#"{"code":5000,"msg":"internal error"}"#);
        assert_eq!(service.oneshot(request("/")).await.expect("answered").status(), 200);
    }
}
