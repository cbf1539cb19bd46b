//! A gateway made of the layers, as a team puts it between an SDK and the platform: callers show it keys of its own, and it
//! calls the platform with the tokens of a service account, of another session for each tenant.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use coze_auth::{ApiKey, ApiKeys, AuthLayer, Bearer, Endpoint, Key, PerTenant, Renewing, Routes, ServiceAccount};
use coze_core::{BoxError, Context, Error, Kind, TenantId};
use coze_errmap::{Classifier, ErrMapLayer, Responder};
use coze_observe::{Inbound, ObserveLayer, Outbound};
use coze_ratelimit::{Level, Limits, Quota, Rate, RateLimitLayer};
use coze_retry::{RetryLayer, Row, Standard, Wait};
use coze_sim::{Sim, fingerprint};
use coze_tenant::{Propagate, Registry, TenantLayer};
use http::{Request, Response, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::net::TcpListener;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

/// Whose calls the gateway takes: each has a key that is called like its tenant.
const TENANTS: [&str; 6] = ["acme", "globex", "cold", "hasty", "renewed", "refused"];
/// A key of acme's that may not chat.
const READER: &str = "reader";

/// The key of that name.
fn key(name: &str) -> String {
    format!("sk-{name:-<40}")
}

/// The keys by their names, and one that is nobody's.
pub(crate) fn keys() -> BTreeMap<&'static str, String> {
    TENANTS.into_iter().chain([READER, "nobody"]).map(|name| (name, key(name))).collect()
}

/// The OAuth app whose service account the gateway is.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) client_id: String,
    pub(crate) key_id: String,
    pub(crate) private_key: String,
}

/// Serves a gateway before the platform at `base`, which has to answer within `patience`. Returns its URL.
pub(crate) async fn gateway(base: &str, account: &Account, patience: Duration) -> String {
    let out = way_out(base, account.clone(), patience);
    let base = base.to_owned();
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new(Inbound::new(["/v3/chat"]).expect("valid routes")))
        .layer(ErrMapLayer::new(Responder::new()))
        .layer(AuthLayer::new(callers()))
        .layer(TenantLayer::new(Registry::new(TENANTS.map(tenant_id))))
        .layer(RateLimitLayer::new(one_call_of_the_hasty()))
        .service(service_fn(move |request| {
            let call = outward(request, &base);
            let out = out.clone();
            async move { out.oneshot(call).await.map(|answer| answer.map(Body::new)).map_err(not_the_callers) }
        }));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(axum::serve(listener, Router::new().fallback_service(service)).into_future());
    url
}

fn tenant_id(name: &str) -> TenantId {
    TenantId::new(name).expect("valid")
}

fn callers() -> ApiKeys {
    let api_key = |name: &str, tenant: &str| {
        let key = Key::new(key(name)).expect("not empty");
        ApiKey::new(name, &key).expect("long enough").tenant(tenant_id(tenant))
    };
    let all = TENANTS.iter().map(|tenant| api_key(tenant, tenant).scopes(["chat"]));
    let rules = Routes::new().require(None, "/v3/{*rest}", ["chat"]).require(None, "/v1/{*rest}", []);
    ApiKeys::new(all.chain([api_key(READER, "acme")])).expect("different").access(rules)
}

fn one_call_of_the_hasty() -> Limits {
    let hasty = |context: &Context| context.tenant.get().is_some_and(|tenant| tenant.as_str() == "hasty");
    let once = Quota::from(Rate::per_minute(NonZeroU32::MIN));
    Limits::new()
        .level(Level::per_key("calls", once, move |_, context| hasty(context).then_some(Cow::Borrowed("hasty"))))
}

/// The documented order, without the table's delays. Each tenant's calls bear tokens of its own.
fn way_out(
    base: &str,
    account: Account,
    patience: Duration,
) -> impl Service<
    Request<Body>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static>,
    Error = BoxError,
    Future: Send,
> + Clone
+ Send
+ Sync
+ 'static {
    let mut client = Client::builder(TokioExecutor::new());
    // What is sent again is our decision, so hyper must not make it too.
    client.retry_canceled_requests(false);
    let endpoint = Endpoint::<Client<HttpConnector, _>>::new(base, client.build_http()).expect("a host");
    let sources = PerTenant::new(move |tenant: &TenantId| {
        let Account { client_id, key_id, private_key } = &account;
        let account = ServiceAccount::new(endpoint.clone(), client_id, key_id, private_key)?;
        Ok(Renewing::new(account.session_name(tenant.as_str())))
    });
    let at_once = Row::DEFAULTS.iter().map(|row| Row { wait: Wait::Fixed(Duration::ZERO), ..*row });
    ServiceBuilder::new()
        .layer(ObserveLayer::new(Outbound::new(["/v3/chat"]).expect("valid routes")))
        .layer(TenantLayer::new(Propagate::new()))
        .layer(RetryLayer::new(Standard::new().rows(at_once).deadline(patience)))
        .layer(RateLimitLayer::new(Limits::outbound(NonZeroU32::new(1000).expect("not zero"))))
        .layer(AuthLayer::new(Bearer::new(sources)))
        .layer(ErrMapLayer::new(Classifier::new()))
        .service(client.build_http())
}

/// What is wrong with the gateway's own credentials is not the caller's to mend, nor to read about.
fn not_the_callers(error: BoxError) -> BoxError {
    match Error::find(&*error) {
        Some(refused) if refused.kind() == Kind::Unauthenticated => {
            let ours = Error::new(Kind::Upstream, "credentials_refused");
            ours.with_message("the platform refused the gateway's credentials").with_source(error).into()
        }
        _ => error,
    }
}

/// The call on behalf of a request: the same to the last byte, but for what belongs to one hop (RFC 9110 §7.6.1), and for
/// encodings in which no failure would be found.
fn outward(request: Request<Body>, base: &str) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    let context = Context::of(&mut parts.extensions).child();
    let mut call = Request::new(body);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    *call.uri_mut() = format!("{base}{path}").parse().expect("it was a path before");
    *call.method_mut() = parts.method;
    *call.headers_mut() = parts.headers;
    for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::ACCEPT_ENCODING] {
        call.headers_mut().remove(name);
    }
    call.extensions_mut().insert(context);
    call
}

/// No tenant's call bore a token that another one's did, and none a key of the gateway's.
pub(crate) fn assert_no_token_crosses(sim: &Sim) {
    let keys: Vec<_> = keys().values().map(|key| fingerprint(key)).collect();
    let mut owners = BTreeMap::new();
    for request in sim.requests() {
        let (Some(token), Some(tenant)) = (request.token, request.tenant) else { continue };
        assert!(!keys.contains(&token), "a key of {tenant}'s went to the platform");
        let owner = owners.entry(token).or_insert_with(|| tenant.clone());
        assert_eq!(*owner, tenant, "each has tokens of its own");
    }
    let seen: BTreeSet<_> = owners.into_values().collect();
    assert!(TENANTS.iter().all(|tenant| seen.contains(*tenant)), "all of them called: {seen:?}");
}

/// What an SDK's calls through the gateway come to, in the order in which they are made.
pub(crate) fn rows() -> Vec<Value> {
    serde_json::from_str(include_str!("../../sdk/gateway.json")).expect("it is an array")
}
