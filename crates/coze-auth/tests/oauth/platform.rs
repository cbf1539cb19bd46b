//! Over TCP, against the simulated platform.

use bytes::Bytes;
use coze_auth::{
    Decision, Endpoint, FileStore, Granted, MemoryStore, OAuthApp, Pkce, Refresher, Renewing, ServiceAccount, Token,
    TokenSource, TokenStore,
};
use coze_core::{Error, Kind, Retry};
use coze_sim::{App, CLIENT_ID, CLIENT_SECRET, Config, Fault, FaultKind, OAuth, Sim};
use http::{Request, Uri, header::LOCATION};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

type Http = Client<HttpConnector, Full<Bytes>>;

const TOKEN_PATH: &str = "/api/permission/oauth2/token";
const REDIRECT: &str = "http://127.0.0.1:1/back#here";

fn http() -> Http {
    Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http()
}

fn endpoint(sim: &Sim) -> Endpoint<Http> {
    Endpoint::new(sim.url(), http()).expect("valid")
}

async fn sim() -> Sim {
    Sim::start(Config::default()).await.expect("a free port")
}

/// The platform with a service account.
async fn with_account() -> (Sim, ServiceAccount<Http>) {
    let (app, key) = App::with_key("c1").expect("a key");
    let key_id = app.keys[0].0.clone();
    let sim = Sim::start(Config { apps: vec![app], ..Config::default() }).await.expect("a free port");
    let account = ServiceAccount::new(endpoint(&sim), "c1", &key_id, &key).expect("a key");
    (sim, account)
}

/// What a person's browser brings back.
async fn consent(url: &str) -> (String, String) {
    let answer = http().request(Request::get(url).body(Full::default()).expect("valid")).await.expect("answered");
    let to: Uri = answer.headers()[LOCATION].to_str().expect("ASCII").parse().expect("valid");
    let value = |name: &str| {
        let pairs = to.query().expect("a query").split('&');
        pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).expect("there").1.to_owned()
    };
    (value("code"), value("state"))
}

async fn works(sim: &Sim, token: &Token) -> bool {
    let request = Request::get(format!("{}/v1/users/me", sim.url())).header("authorization", token.header());
    http().request(request.body(Full::default()).expect("valid")).await.expect("answered").status() == 200
}

async fn granted(app: &OAuthApp<Http>, pkce: Option<&Pkce>) -> Result<Granted, Error> {
    let (code, state) = consent(&app.authorize_url(REDIRECT, "s%1", pkce)).await;
    assert_eq!(state, "s%251");
    app.exchange(&code, REDIRECT, pkce).await
}

#[tokio::test]
async fn a_code_is_exchanged_with_the_secret_and_refreshed_from_a_file() {
    let sim = sim().await;
    let app = OAuthApp::new(endpoint(&sim), CLIENT_ID).secret(CLIENT_SECRET).expect("valid");
    let first = granted(&app, None).await.expect("granted");
    assert!(works(&sim, &first.token).await);
    let life = first.token.lifetime().expect("it ends").as_secs();
    assert!((890..=900).contains(&life), "a time, not a duration: {life}");

    let folder = tempfile::tempdir().expect("a folder");
    let store = FileStore::new(folder.path().join("token"));
    store.save(&first.refresh_token).await.expect("saved");
    let source = app.refreshing(store.clone());
    for _ in 0..3 {
        assert!(works(&sim, &source.refresh().await.expect("refreshed")).await);
    }
    // The first one is spent.
    store.save(&first.refresh_token).await.expect("saved");
    let error = source.refresh().await.expect_err("spent");
    assert_eq!((error.reason(), error.retry()), ("reauthorization_required", Retry::Never));
}

#[tokio::test]
async fn a_refresh_whose_answer_is_cut_off_ends_with_a_person() {
    let sim = sim().await;
    let app = OAuthApp::new(endpoint(&sim), CLIENT_ID).secret(CLIENT_SECRET).expect("valid");
    let store = MemoryStore::new();
    store.save(&granted(&app, None).await.expect("granted").refresh_token).await.expect("saved");
    let source = app.refreshing(store);
    sim.fault(Fault::new(TOKEN_PATH, FaultKind::InvalidJson)).expect("valid");
    let error = source.refresh().await.expect_err("cut off");
    assert_eq!((error.reason(), error.retry()), ("token_nonsense", Retry::IfIdempotent));
    let error = source.refresh().await.expect_err("spent, and what came in return is lost");
    assert_eq!((error.reason(), error.retry()), ("reauthorization_required", Retry::Never));
}

#[tokio::test]
async fn pkce_proves_itself_without_a_secret() {
    let sim = sim().await;
    let app = OAuthApp::new(endpoint(&sim), CLIENT_ID);
    let pkce = Pkce::new().expect("random");
    let first = granted(&app, Some(&pkce)).await.expect("granted");
    assert!(works(&sim, &first.token).await);
    let store = MemoryStore::new();
    store.save(&first.refresh_token).await.expect("saved");
    assert!(works(&sim, &app.refreshing(store).refresh().await.expect("refreshed")).await);

    let (code, _) = consent(&app.authorize_url(REDIRECT, "s", Some(&pkce))).await;
    let other = Pkce::new().expect("random");
    let error = app.exchange(&code, REDIRECT, Some(&other)).await.expect_err("another verifier");
    assert_eq!((error.kind(), error.reason()), (Kind::Invalid, "invalid_request"));
    assert!(error.message().contains("code_verifier"), "{error}");
    let error = app.exchange(&code, REDIRECT, None).await.expect_err("none");
    assert_eq!(error.reason(), "invalid_request");
}

#[tokio::test]
async fn a_person_allows_a_device_or_refuses_it() {
    let oauth = OAuth { device_interval: std::time::Duration::from_secs(1), ..OAuth::default() };
    let sim = Sim::start(Config { oauth, ..Config::default() }).await.expect("a free port");
    let app = OAuthApp::new(endpoint(&sim), CLIENT_ID);
    for (approve, outcome) in [(true, None), (false, Some("access_denied"))] {
        let device = app.device().await.expect("a code");
        let body = serde_json::json!({ "user_code": device.user_code(), "approve": approve }).to_string();
        let request =
            Request::post(format!("{}/_sim/device/approve", sim.url())).body(Full::from(body)).expect("valid");
        assert_eq!(http().request(request).await.expect("answered").status(), 200);
        match device.granted().await {
            Ok(granted) => assert!(outcome.is_none() && works(&sim, &granted.token).await),
            Err(error) => assert_eq!(Some(error.reason()), outcome),
        }
    }
}

#[tokio::test]
async fn a_service_account_gets_a_token_and_signs_anew_for_each_try() {
    let (sim, account) = with_account().await;
    let internal = serde_json::json!({ "error_code": "internal_error", "error_message": "Service internal error." });
    let status = |status, body| FaultKind::Status { status, body, headers: Default::default() };
    sim.fault(Fault::new(TOKEN_PATH, status(500, Some(internal)))).expect("valid");
    sim.fault(Fault::new(TOKEN_PATH, status(503, None))).expect("valid");
    let error = account.refresh().await.expect_err("scripted");
    assert_eq!((error.reason(), error.retry()), ("internal_error", Retry::Safe));
    assert_eq!(account.refresh().await.expect_err("scripted").reason(), "token_endpoint_failed");
    for _ in 0..3 {
        assert!(works(&sim, &account.refresh().await.expect("an assertion nobody saw")).await);
    }
}

#[tokio::test]
async fn a_key_that_is_replaced_signs_the_next_assertion_of_every_clone() {
    let (mut app, old) = App::with_key("c1").expect("a key");
    let (other, new) = App::with_key("c1").expect("a key");
    app.keys.extend(other.keys);
    let ids: Vec<_> = app.keys.iter().map(|(id, _)| id.clone()).collect();
    let sim = Sim::start(Config { apps: vec![app], ..Config::default() }).await.expect("a free port");
    let account = ServiceAccount::new(endpoint(&sim), "c1", &ids[0], &old).expect("a key");
    let of_a_session = account.clone().session_name("u1");
    let before = of_a_session.refresh().await.expect("granted");

    let error = account.set_key(&ids[1], "no key").expect_err("refused");
    assert_eq!((error.kind(), error.reason()), (Kind::Precondition, "private_key"));
    account.refresh().await.expect("the key stays");
    account.set_key(&ids[1], &new).expect("a key");
    for account in [&account, &of_a_session] {
        account.refresh().await.expect("granted");
    }
    assert!(works(&sim, &before).await, "what was given out goes on serving");
    let named: Vec<_> = sim.requests().into_iter().filter_map(|request| request.key_id).collect();
    assert_eq!(named, [&ids[0], &ids[0], &ids[1], &ids[1]].map(String::clone));
}

#[tokio::test]
async fn an_account_that_is_wrong_is_told_so_for_good() {
    let (sim, _) = with_account().await;
    let (_, other) = App::with_key("c1").expect("a key");
    let account = ServiceAccount::new(endpoint(&sim), "c1", "no such key", &other).expect("a key");
    let error = account.refresh().await.expect_err("unknown");
    assert_eq!((error.kind(), error.reason(), error.retry()), (Kind::Unauthenticated, "invalid_client", Retry::Never));
}

#[tokio::test]
async fn a_host_that_is_not_there_is_worth_another_try() {
    let gone = Endpoint::new("http://127.0.0.1:1", http()).expect("valid");
    let error = OAuthApp::new(gone, CLIENT_ID).device().await.expect_err("nobody there");
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "token_endpoint_unreachable"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_cold_callers_cost_one_request() {
    let (sim, account) = with_account().await;
    let source = Renewing::new(account);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let source = source.clone();
        callers.spawn(async move {
            match source.token() {
                Decision::Now(token) => token,
                Decision::Later(token) => token.await,
            }
        });
    }
    let tokens = callers.join_all().await;
    assert!(tokens.iter().all(|token| token.as_ref().is_ok_and(|token| token.generation() == 1)));
    let counts = sim.counts();
    assert_eq!(counts.requests(&format!("POST {TOKEN_PATH}")), 1);
    assert_eq!(counts.tokens_issued, 1);
}
