//! How the bot authenticates to the platform.

use std::collections::{BTreeMap, BTreeSet};

use bot_backend::{
    Backend,
    config::{Secret, ServiceAccount},
};
use coze_sim::{App, Config, FaultKind};
use tempfile::TempDir;

use crate::support::{BOT, POLLING, World, config};

/// A world in which the bot has a service account, and the folder its key is in.
async fn service_account(session_per_tenant: bool) -> (World, TempDir) {
    let (app, private_key) = App::with_key("10000000000000000000000000000009.app.coze").expect("a key");
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("key.pem");
    std::fs::write(&file, private_key).expect("written");
    let (client_id, key_id) = (app.client_id.clone(), Secret::new(&app.keys[0].0));
    let account = ServiceAccount { client_id, key_id, private_key: Secret::file(file), session_per_tenant };
    let platform = Config { apps: vec![app], tokens: Vec::new(), ..Config::default() };
    let world = World::with(platform, |config| {
        config.platform.token = None;
        config.platform.service_account = Some(account);
    })
    .await;
    (world, folder)
}

#[tokio::test]
async fn a_service_account_without_sessions_gets_one_token_for_all_who_ask_at_once() {
    let (world, _key) = service_account(false).await;
    let (one, two) = tokio::join!(world.send(BOT, "one"), world.send(POLLING, "two"));
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (200, 200), "{} {}", one.text(), two.text());
    assert_eq!(world.sim.counts().tokens_issued, 1);
}

#[tokio::test]
async fn each_tenants_calls_bear_its_own_token() {
    let (world, _key) = service_account(true).await;
    for round in 0..3 {
        let send = |bot| world.send(bot, "hello");
        let answers = tokio::join!(send(BOT), send(POLLING), send(BOT), send(POLLING), send(BOT), send(POLLING));
        for answer in <[_; 6]>::from(answers) {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!(world.sim.counts().tokens_issued, 2 * (round + 1), "one for each tenant");
        world.sim.expire_tokens();
    }
    let mut tokens: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for request in world.sim.requests() {
        // Requests for tokens bear assertions.
        if let Some(tenant) = request.tenant {
            tokens.entry(tenant).or_default().extend(request.token);
        }
    }
    assert_eq!(tokens.keys().collect::<Vec<_>>(), ["acme", "other"]);
    assert!(tokens["acme"].is_disjoint(&tokens["other"]), "{tokens:?}");
    assert_eq!((tokens["acme"].len(), tokens["other"].len()), (3, 3));
}

#[tokio::test]
async fn a_token_that_expired_is_renewed_once_and_the_message_answered() {
    let (world, _key) = service_account(true).await;
    assert_eq!(world.send(BOT, "one").await.status, 200);
    world.fault("/v3/chat", FaultKind::ExpireTokens);
    let answer = world.send(BOT, "two").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let counts = world.sim.counts();
    assert_eq!((counts.tokens_issued, counts.requests("POST /v3/chat")), (2, 3));
}

#[tokio::test]
async fn a_token_endpoint_that_refuses_is_not_the_callers_fault() {
    let (world, _key) = service_account(true).await;
    let refusal = FaultKind::Status {
        status: 401,
        body: Some(serde_json::json!({ "error_code": "invalid_client", "error_message": "who?" })),
        headers: Default::default(),
    };
    world.fault("/api/permission/oauth2/token", refusal);
    let answer = world.send(BOT, "hello").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(!answer.headers.contains_key("www-authenticate"));
    assert_eq!(world.sim.counts().requests("POST /v3/chat"), 0);
}

#[tokio::test]
async fn a_platform_that_refuses_the_token_is_not_the_callers_fault() {
    let world = World::with(Config { tokens: Vec::new(), ..Config::default() }, |_| {}).await;
    let answer = world.send(BOT, "hello").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.json()["msg"], "the platform refused this service's credentials");
}

#[tokio::test]
async fn without_credentials_it_does_not_start() {
    let world = World::start().await;
    let mut config = config(&world.sim, &world.folder);
    config.platform.token = None;
    let error = Backend::start(&config, false).await.expect_err("no token");
    assert!(error.to_string().contains("BOT_PLATFORM_TOKEN"), "{error}");

    let (client_id, key_id) = ("c".to_owned(), Secret::new("k"));
    for (private_key, wrong) in [
        (Secret::file("/no/such.pem"), "the secret file /no/such.pem cannot be read"),
        (Secret::new("no key"), "the private key is not an RSA key of at least 2048 bits in PEM"),
    ] {
        let (client_id, key_id) = (client_id.clone(), key_id.clone());
        let account = ServiceAccount { client_id, key_id, private_key, session_per_tenant: true };
        config.platform.service_account = Some(account);
        let error = Backend::start(&config, false).await.expect_err("no key").to_string();
        assert_eq!(error, format!("platform.service_account.private_key: {wrong}"));
    }
}
