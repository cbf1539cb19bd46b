//! Logins and tokens, under the paused clock.

use std::fs;

use coze_secret::{Health, Kv, Login, SecretBytes, SecretFile, Vault};
use coze_sim::vault::{Config, Fault, KUBERNETES_JWT, KUBERNETES_ROLE, ROLE_ID, SECRET_ID};
use serde_json::json;
use tokio::time::sleep;

use crate::support::{
    app_role, client, count, field, fixed, reason, root, secs, session, simulated, simulated_with, until,
};

const APP_ROLE: &str = "POST auth/approle/login";
const RENEW: &str = "POST auth/token/renew-self";

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_at_a_share_of_its_life() {
    let vault = simulated().await;
    let session = session(&vault).await;
    sleep(secs(24 * 3600)).await;
    let renewals = count(&vault, RENEW, 200);
    assert!((31..=41).contains(&renewals), "each after 60 to 75 % of an hour: {renewals}");
    assert_eq!((count(&vault, APP_ROLE, 200), session.health()), (1, Health::Good));
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_renewals_end_is_replaced_in_time() {
    let vault = simulated_with(Config { token_ttl: secs(100), token_max_ttl: secs(1000), ..Config::default() }).await;
    vault.put("k", &json!({ "v": "1" }));
    let session = session(&vault).await;
    let secret = session.kv(Kv::new("k").poll(secs(7))).await.expect("there");
    sleep(secs(10_000)).await;
    assert_eq!(count(&vault, "GET secret/data/k", 403), 0, "no reading met a token that was over");
    let logins = count(&vault, APP_ROLE, 200);
    assert!((10..=13).contains(&logins), "{logins}");
    assert_eq!((session.health(), secret.health()), (Health::Good, Health::Good));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_revoked_is_replaced_when_somebody_is_denied() {
    let vault = simulated().await;
    vault.put("k", &json!({ "v": "1" }));
    let session = session(&vault).await;
    let secret = session.kv(Kv::new("k").poll(secs(60))).await.expect("there");
    vault.revoke_logins();
    vault.put("k", &json!({ "v": "2" }));
    until("the new version", || field(&secret, "v") == "2").await;
    assert_eq!(count(&vault, APP_ROLE, 200), 2);
    assert_eq!(count(&vault, "GET secret/data/k", 403), 1, "the new token is used at once");
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_is_no_reason_to_log_in_again_and_again() {
    let vault = simulated().await;
    vault.put("k", &json!({ "v": "1" }));
    let session = session(&vault).await;
    let secret = session.kv(Kv::new("k").poll(secs(1))).await.expect("there");
    vault.fault(Fault { path: "secret/".into(), status: Some(403), times: u64::MAX, ..Fault::default() });
    sleep(secs(1000)).await;
    assert_eq!(secret.health(), Health::Stale("vault_denied"));
    assert_eq!(count(&vault, APP_ROLE, 200), 1);
    let lookups = count(&vault, "GET auth/token/lookup-self", 200);
    assert!((1..=201).contains(&lookups), "the token is looked up at most every 5 s: {lookups}");
}

#[tokio::test(start_paused = true)]
async fn while_vault_is_away_the_token_is_kept_until_it_ends_and_then_asked_for_again() {
    let vault = simulated().await;
    vault.put("k", &json!({ "v": "1" }));
    let session = session(&vault).await;
    let secret = session.kv(Kv::new("k")).await.expect("there");
    vault.seal(true);
    sleep(secs(3500)).await;
    assert_eq!(session.health(), Health::Stale("vault_sealed"));
    sleep(secs(3600)).await;
    assert_eq!(session.health(), Health::Expired("vault_sealed"));
    assert_eq!(field(&secret, "v"), "1", "a kv secret has no lease");
    vault.seal(false);
    vault.put("k", &json!({ "v": "2" }));
    until("the new version", || field(&secret, "v") == "2").await;
    assert_eq!((session.health(), count(&vault, APP_ROLE, 200)), (Health::Good, 2));
}

#[tokio::test(start_paused = true)]
async fn a_login_with_what_is_wrong_is_refused_at_once_and_not_repeated() {
    let vault = simulated().await;
    let wrong = Login::app_role(ROLE_ID, fixed("wrong"));
    assert_eq!(reason(client(&vault).connect(wrong)).await, "vault_refused");
    assert_eq!(count(&vault, APP_ROLE, 400), 1);
    assert_eq!(reason(client(&vault).connect(Login::token(fixed("hvs.wrong")))).await, "vault_denied");
    assert_eq!(
        reason(client(&vault).connect(Login::kubernetes(KUBERNETES_ROLE, fixed("wrong")))).await,
        "vault_denied"
    );
    assert_eq!(reason(client(&vault).connect(Login::token(fixed("line\nend")))).await, "vault_token");
    assert_eq!(reason(client(&vault).connect(app_role().mount("../x"))).await, "vault_path");
}

#[tokio::test(start_paused = true)]
async fn a_service_account_logs_in_with_the_jwt_its_file_has_at_that_moment() {
    let config = Config { token_ttl: secs(100), token_max_ttl: secs(100), ..Config::default() };
    let vault = simulated_with(config).await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("token");
    fs::write(&path, "an old jwt").expect("written");
    let jwt = SecretFile::new(&path).open().await.expect("readable");
    let login = Login::kubernetes(KUBERNETES_ROLE, jwt.clone());
    assert_eq!(reason(client(&vault).connect(login.clone())).await, "vault_denied");
    let mut watch = jwt.watch();
    fs::write(&path, KUBERNETES_JWT).expect("written");
    watch.changed().await.expect("followed");
    let session = client(&vault).connect(login).await.expect("logged in");
    sleep(secs(1000)).await;
    assert_eq!(session.health(), Health::Good);
    assert!(count(&vault, "POST auth/kubernetes/login", 200) > 10);
}

#[tokio::test(start_paused = true)]
async fn a_given_token_is_renewed_followed_and_cannot_be_replaced() {
    let vault = simulated_with(Config { token_ttl: secs(100), token_max_ttl: secs(300), ..Config::default() }).await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("token");
    fs::write(&path, vault.token()).expect("written");
    let token = SecretFile::new(&path).open().await.expect("readable");
    let session = client(&vault).connect(Login::token(token)).await.expect("logged in");
    sleep(secs(250)).await;
    assert_eq!(session.health(), Health::Good, "it is renewed");
    sleep(secs(100)).await;
    assert!(matches!(session.health(), Health::Expired(_)), "it is over: {:?}", session.health());
    fs::write(&path, vault.token()).expect("written");
    until("another token", || session.health() == Health::Good).await;
}

#[tokio::test(start_paused = true)]
async fn a_wrapped_secret_id_is_opened_once() {
    let vault = simulated().await;
    let wrapped = SecretBytes::new(vault.wrap(&json!({ "secret_id": SECRET_ID }), secs(60)));
    let mut opened = client(&vault).unwrap(&wrapped).await.expect("the first time");
    let secret_id = opened.take("secret_id").expect("a field");
    assert!(client(&vault).connect(Login::app_role(ROLE_ID, coze_secret::Secret::fixed(secret_id))).await.is_ok());
    assert_eq!(reason(client(&vault).unwrap(&wrapped)).await, "vault_refused");

    let late = SecretBytes::new(vault.wrap(&json!({}), secs(60)));
    sleep(secs(61)).await;
    assert_eq!(reason(client(&vault).unwrap(&late)).await, "vault_refused");
}

#[tokio::test(start_paused = true)]
async fn a_wrapped_token_is_opened_and_logged_in_with() {
    let vault = simulated().await;
    let wrapped = SecretBytes::new(vault.wrap_token(secs(60)));
    let mut opened = client(&vault).unwrap(&wrapped).await.expect("the first time");
    assert_eq!(opened.names().collect::<Vec<_>>(), ["client_token"]);
    let token = coze_secret::Secret::fixed(opened.take("client_token").expect("a field"));
    let session = client(&vault).connect(Login::token(token)).await.expect("logged in");
    sleep(secs(24 * 3600)).await;
    assert_eq!(session.health(), Health::Good, "it is renewed");
}

#[tokio::test(start_paused = true)]
async fn a_wrapping_token_of_another_path_is_not_opened() {
    let vault = simulated().await;
    let wrapped = SecretBytes::new(vault.wrap(&json!({ "secret_id": "of a thief" }), secs(60)));
    let client = client(&vault);
    assert_eq!(reason(client.unwrap_from(&wrapped, "auth/approle/role/bot/secret-id")).await, "vault_tampered");
    assert_eq!(count(&vault, "POST sys/wrapping/unwrap", 200), 0, "nor spent");
    vault.fault(Fault { path: "sys/wrapping/lookup".into(), status: None, after: true, ..Fault::default() });
    let opened = client.unwrap_from(&wrapped, "/sys/wrapping/wrap/").await.expect("of this path");
    assert!(opened.get("secret_id").is_some());
    assert_eq!(reason(client.unwrap_from(&wrapped, "sys/wrapping/wrap")).await, "vault_refused", "spent");
    assert_eq!(reason(client.unwrap_from(&SecretBytes::new([0xff]), "x")).await, "vault_login");
}

#[tokio::test(start_paused = true)]
async fn a_given_token_that_is_refused_leaves_the_last_one_in_service() {
    let vault = simulated().await;
    vault.put("k", &json!({ "v": "1" }));
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("token");
    fs::write(&path, vault.token()).expect("written");
    let token = SecretFile::new(&path).open().await.expect("readable");
    let session = client(&vault).connect(Login::token(token)).await.expect("logged in");
    let secret = session.kv(Kv::new("k")).await.expect("there");
    fs::write(&path, "hvs.mistaken").expect("written");
    until("a refusal", || session.health() == Health::Stale("vault_denied")).await;
    vault.put("k", &json!({ "v": "2" }));
    until("the new version", || field(&secret, "v") == "2").await;
    fs::write(&path, vault.token()).expect("written");
    until("another token", || session.health() == Health::Good).await;
}

#[tokio::test(start_paused = true)]
async fn a_doubt_that_comes_soon_after_another_one_is_looked_into() {
    let vault = simulated().await;
    let session = session(&vault).await;
    vault.fault(Fault { path: "secret/".into(), status: Some(403), ..Fault::default() });
    assert_eq!(reason(session.kv(Kv::new("k"))).await, "vault_denied");
    sleep(secs(1)).await;
    vault.revoke_logins();
    assert_eq!(reason(session.kv(Kv::new("k"))).await, "vault_denied");
    sleep(secs(5)).await;
    assert_eq!(count(&vault, APP_ROLE, 200), 2);
}

#[tokio::test(start_paused = true)]
async fn every_request_is_marked_and_says_its_namespace() {
    let (standby, vault) = (simulated().await, simulated().await);
    standby.stand_by(Some(vault.url()));
    let namespaced = client(&standby).namespace("team/a").expect("valid");
    namespaced.unwrap(&SecretBytes::new(vault.wrap(&json!({}), secs(60)))).await.expect("opened");
    let session = namespaced.connect(app_role()).await.expect("logged in");
    assert!(session.kv(Kv::new("none")).await.is_err());
    session.shutdown().await;
    let requests = [standby.requests(), vault.requests()].concat();
    assert_eq!(requests.len(), 8, "four, each redirected: {requests:?}");
    assert!(requests.iter().all(|request| request.marked && request.namespace.as_deref() == Some("team/a")));
    assert!(client(&vault).namespace("line\nend").is_err_and(|error| error.reason() == "vault_namespace"));
}

#[tokio::test(start_paused = true)]
async fn a_wrapping_token_is_not_sent_again_once_it_may_be_spent() {
    let vault = simulated().await;
    let wrapped = || SecretBytes::new(vault.wrap(&json!({}), secs(600)));
    let unwrap = "POST sys/wrapping/unwrap";
    vault.fault(Fault { path: "sys/".into(), status: None, after: true, ..Fault::default() });
    assert_eq!(reason(client(&vault).unwrap(&wrapped())).await, "vault_unreachable");
    assert_eq!(count(&vault, unwrap, 0), 1);
    vault.fault(Fault { path: "sys/".into(), status: Some(503), times: 2, ..Fault::default() });
    assert!(client(&vault).unwrap(&wrapped()).await.is_ok(), "a sealed vault has not spent it");
}

#[tokio::test(start_paused = true)]
async fn a_standby_node_sends_us_to_the_active_one() {
    let (standby, active) = (simulated().await, simulated().await);
    active.put("k", &json!({ "v": "1" }));
    standby.stand_by(Some(active.url()));
    let session = session(&standby).await;
    let secret = session.kv(Kv::new("k")).await.expect("there");
    assert_eq!(field(&secret, "v"), "1");
    assert_eq!(count(&standby, APP_ROLE, 307), 1);

    active.stand_by(Some(standby.url()));
    assert_eq!(reason(session.kv(Kv::new("k"))).await, "vault_standby", "two that point at each other end somewhere");
    standby.stand_by(Some("https://127.0.0.1:1".into()));
    assert_eq!(reason(session.kv(Kv::new("k"))).await, "vault_standby", "the scheme does not change");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_answer_ends_in_time() {
    let vault = simulated().await;
    vault.fault(Fault { delay: secs(100), times: u64::MAX, ..Fault::default() });
    let begun = tokio::time::Instant::now();
    assert_eq!(reason(client(&vault).timeout(secs(3)).connect(root())).await, "vault_timeout");
    assert!(begun.elapsed() < secs(5 * 3 + 8), "five tries: {:?}", begun.elapsed());
    let nobody = Vault::new("http://127.0.0.1:1").expect("valid");
    assert_eq!(reason(nobody.connect(root())).await, "vault_unreachable");
}

#[test]
fn an_address_is_a_host_and_a_port() {
    for good in
        ["http://127.0.0.1:8200", "https://vault.example.com", "https://vault.example.com:8200/", "http://[::1]:8200"]
    {
        assert!(Vault::new(good).is_ok(), "{good}");
    }
    for bad in ["", "vault:8200", "ftp://vault", "https://vault/v1", "https://vault/?x", "https://user:word@vault"] {
        assert_eq!(Vault::new(bad).expect_err("refused").reason(), "vault_url", "{bad}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_shows_a_token() {
    let vault = simulated().await;
    let session = session(&vault).await;
    let shown = format!("{:?} {:?} {session:?}", client(&vault), app_role());
    assert!(!shown.contains(SECRET_ID) && !shown.contains("hvs."), "{shown}");
}
