//! What must hold for a real Vault as for the simulated one. In real time: nothing here waits but for an event.

use coze_secret::{Database, Health, Kv, Login, Secret, SecretBytes};
use serde_json::json;

use crate::{
    real::Server,
    support::{field, fixed, reason, secs},
};

#[tokio::test]
async fn a_real_or_simulated_vault_gives_a_kv_secret_and_its_next_version() {
    let server = Server::start("kv").await;
    server.put(&json!({ "webhook": "one", "port": 8200, "pem": "l1\nl2" })).await;
    let session = server.client().connect(Login::token(fixed(server.token()))).await.expect("logged in");
    let secret = session.kv(Kv::new(server.path()).poll(secs(1))).await.expect("there");
    let mut watch = secret.watch();
    assert_eq!(field(&secret, "webhook"), "one");
    assert_eq!((field(&secret, "port").as_str(), field(&secret, "pem").as_str()), ("8200", "l1\nl2"));
    server.put(&json!({ "webhook": "two" })).await;
    watch.changed().await.expect("followed");
    assert_eq!((field(&secret, "webhook").as_str(), secret.health()), ("two", Health::Good));
    assert_eq!(reason(session.kv(Kv::new("coze-secret-test/none"))).await, "vault_not_found");
}

#[tokio::test]
async fn a_real_or_simulated_vault_refuses_an_unknown_token() {
    let server = Server::start("unknown token").await;
    assert_eq!(reason(server.client().connect(Login::token(fixed("hvs.unknown")))).await, "vault_denied");
}

#[tokio::test]
async fn a_real_or_simulated_vault_opens_a_wrapped_token_once() {
    let server = Server::start("wrapping").await;
    let token = SecretBytes::new(server.wrap(&json!({ "secret_id": "abc" })).await);
    let opened = server.client().unwrap(&token).await.expect("the first time");
    assert!(opened.get("secret_id").is_some_and(|value| value.matches(b"abc")));
    assert_eq!(reason(server.client().unwrap(&token)).await, "vault_refused");
}

#[tokio::test]
async fn a_real_or_simulated_vault_logs_an_app_role_in_and_its_token_is_revoked_at_the_end() {
    let server = Server::start("approle").await;
    server.put(&json!({ "webhook": "one" })).await;
    let (role_id, secret_id) = server.app_role().await;
    assert_eq!(
        reason(server.client().connect(Login::app_role(&role_id, fixed("wrong")))).await,
        "vault_refused",
        "a wrong secret id"
    );
    let session = server.client().connect(Login::app_role(&role_id, fixed(&secret_id))).await.expect("logged in");
    let secret: Secret<_> = session.kv(Kv::new(server.path())).await.expect("there");
    assert_eq!(field(&secret, "webhook"), "one");
    session.shutdown().await;
    server.assert_revoked("auth/token/revoke-self", 1);
}

#[tokio::test]
async fn a_real_or_simulated_vault_gives_credentials_of_a_database_and_revokes_them() {
    let server = Server::start_with_database("database").await;
    let session = server.client().connect(Login::token(fixed(server.token()))).await.expect("logged in");
    let credentials = session.database(Database::new(server.database_role())).await.expect("given");
    let current = credentials.current().expect("live");
    assert!(!current.username().is_empty() && !current.password().expose().is_empty());
    session.shutdown().await;
    server.assert_revoked("sys/leases/revoke", 1);
    assert_eq!(credentials.current().expect_err("revoked").reason(), "secret_expired");
}
