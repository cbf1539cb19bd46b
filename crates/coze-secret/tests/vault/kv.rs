//! The key-value engine, under the paused clock.

use coze_secret::{Health, Kv, Versions};
use coze_sim::vault::Fault;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{client, count, field, reason, root, secs, session, simulated, until};

#[tokio::test(start_paused = true)]
async fn a_new_version_is_seen_within_the_interval_and_the_old_one_stays_for_the_overlap() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({ "webhook": "one", "other": 7 }));
    let session = session(&vault).await;
    let keys = session.kv(Kv::new("bot/keys").poll(secs(30)).overlap(secs(300))).await.expect("there");
    let mut watch = keys.watch();
    assert_eq!((field(&keys, "webhook").as_str(), field(&keys, "other").as_str()), ("one", "7"));
    sleep(secs(100)).await;
    assert_eq!(keys.read(Versions::number), 1, "reading the same version makes none");

    vault.put("bot/keys", &json!({ "webhook": "two" }));
    sleep(secs(34)).await;
    watch.changed().await.expect("followed");
    assert_eq!(field(&keys, "webhook"), "two");
    assert!(keys.read(|v| v.previous().is_some()));
    sleep(secs(301)).await;
    assert!(keys.read(|v| v.previous().is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_field_is_a_secret_of_its_own() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({ "webhook": "one", "other": "x" }));
    let session = session(&vault).await;
    let keys = session.kv(Kv::new("bot/keys").poll(secs(10)).overlap(secs(300))).await.expect("there");
    let webhook = keys.field("webhook").expect("there");
    assert_eq!(keys.field("none").expect_err("not there").reason(), "vault_no_field");
    let accepted = || webhook.read(|v| v.iter().map(|v| v.expose_str().expect("text").to_owned()).collect::<Vec<_>>());
    assert_eq!(accepted(), ["one"]);

    vault.put("bot/keys", &json!({ "webhook": "one", "other": "y" }));
    sleep(secs(12)).await;
    assert_eq!(webhook.read(Versions::number), 1, "another field is another secret");
    vault.put("bot/keys", &json!({ "webhook": "two", "other": "y" }));
    until("the next version", || accepted() == ["two", "one"]).await;
    sleep(secs(301)).await;
    assert_eq!(accepted(), ["two"], "the previous one goes with that of the fields");

    vault.put("bot/keys", &json!({ "other": "y" }));
    until("a failure", || webhook.health() == Health::Stale("vault_no_field")).await;
    assert_eq!(accepted(), ["two"], "what is gone takes nothing away");
    vault.put("bot/keys", &json!({ "webhook": "two" }));
    until("healing", || webhook.health() == Health::Good).await;
    drop(session);
    sleep(secs(1)).await;
    assert_eq!(accepted(), ["two"], "it outlives the session");
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_was_deleted_for_good_and_written_again_is_another_one_under_the_same_number() {
    let vault = simulated().await;
    assert_eq!(vault.put("bot/keys", &json!({ "webhook": "one" })), 1);
    let session = session(&vault).await;
    let keys = session.kv(Kv::new("bot/keys").poll(secs(10))).await.expect("there");
    vault.forget("bot/keys");
    assert_eq!(vault.put("bot/keys", &json!({ "webhook": "two" })), 1);
    until("the next version", || field(&keys, "webhook") == "two").await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_takes_nothing_away_and_heals() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({ "webhook": "one" }));
    let session = session(&vault).await;
    let keys = session.kv(Kv::new("bot/keys").poll(secs(60))).await.expect("there");

    vault.seal(true);
    sleep(secs(120)).await;
    assert_eq!((field(&keys, "webhook").as_str(), keys.health()), ("one", Health::Stale("vault_sealed")));
    vault.seal(false);
    until("healing", || keys.health() == Health::Good).await;

    for take in [coze_sim::vault::Vault::delete, coze_sim::vault::Vault::destroy] {
        take(&vault, "bot/keys");
        sleep(secs(70)).await;
        assert_eq!((field(&keys, "webhook").as_str(), keys.health()), ("one", Health::Stale("vault_not_found")));
    }
    vault.put("bot/keys", &json!({ "webhook": "three" }));
    until("healing", || keys.health() == Health::Good).await;
    assert_eq!(field(&keys, "webhook"), "three");
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_tried_again_and_what_is_final_is_not() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({ "webhook": "one" }));
    let session = session(&vault).await;
    for status in [412, 429, 472, 473, 500, 502, 503] {
        vault.fault(Fault { path: "secret/".into(), status: Some(status), times: 3, ..Fault::default() });
        assert!(session.kv(Kv::new("bot/keys")).await.is_ok(), "{status}");
        assert_eq!(count(&vault, "GET secret/", status), 3, "{status}");
    }
    vault.fault(Fault { path: "secret/".into(), status: None, times: 2, ..Fault::default() });
    assert!(session.kv(Kv::new("bot/keys")).await.is_ok(), "a broken connection");

    for (status, expected) in
        [(400, "vault_refused"), (403, "vault_denied"), (404, "vault_not_found"), (405, "vault_answer")]
    {
        vault.fault(Fault { path: "secret/".into(), status: Some(status), ..Fault::default() });
        assert_eq!(reason(session.kv(Kv::new("bot/keys"))).await, expected);
        assert_eq!(count(&vault, "GET secret/", status), 1, "{status}");
    }
    vault.fault(Fault { path: "secret/".into(), times: 100, ..Fault::default() });
    let before = vault.requests().len();
    assert_eq!(reason(session.kv(Kv::new("bot/keys"))).await, "vault_sealed");
    assert_eq!(vault.requests().len() - before, 5, "tries are bounded");
}

#[tokio::test(start_paused = true)]
async fn vault_is_obeyed_when_it_says_how_long_to_wait() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({}));
    let session = session(&vault).await;
    vault.fault(Fault { path: "secret/".into(), status: Some(429), retry_after: Some(100), ..Fault::default() });
    let begun = tokio::time::Instant::now();
    assert!(session.kv(Kv::new("bot/keys")).await.is_ok());
    assert!(begun.elapsed() >= secs(100));
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_vault_is_not_hammered_and_ends_by_itself() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({ "webhook": "one" }));
    let session = client(&vault).connect(root()).await.expect("logged in");
    let keys = session.kv(Kv::new("bot/keys").poll(secs(60))).await.expect("there");
    vault.fault(Fault { path: String::new(), times: u64::MAX, ..Fault::default() });
    sleep(secs(3600)).await;
    let tries = count(&vault, "GET secret/", 503);
    assert!((100..300).contains(&tries), "{tries} tries in an hour");
    assert_eq!(field(&keys, "webhook"), "one");
    vault.clear_faults();
    sleep(secs(61)).await;
    assert_eq!(keys.health(), Health::Good);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_for_once_the_secret_is_dropped() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({}));
    let session = client(&vault).connect(root()).await.expect("logged in");
    let keys = session.kv(Kv::new("bot/keys").poll(secs(10))).await.expect("there");
    drop(keys);
    sleep(secs(1)).await;
    let before = vault.requests().len();
    sleep(secs(3600)).await;
    assert_eq!(vault.requests().len(), before);
}

#[tokio::test(start_paused = true)]
async fn a_secret_outlives_its_session_and_says_so() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({ "webhook": "one" }));
    let session = session(&vault).await;
    let keys = session.kv(Kv::new("bot/keys")).await.expect("there");
    drop(session);
    sleep(secs(1)).await;
    assert_eq!((field(&keys, "webhook").as_str(), keys.health()), ("one", Health::Stale("vault_session_ended")));
}

#[tokio::test(start_paused = true)]
async fn a_session_follows_a_thousand_secrets_and_no_more() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({}));
    let session = client(&vault).connect(root()).await.expect("logged in");
    let mut secrets = Vec::new();
    for _ in 0..1000 {
        secrets.push(session.kv(Kv::new("bot/keys").poll(secs(100_000))).await.expect("there"));
    }
    assert_eq!(reason(session.kv(Kv::new("bot/keys"))).await, "vault_too_many_secrets");
    secrets.pop();
    sleep(secs(1)).await;
    assert!(session.kv(Kv::new("bot/keys")).await.is_ok(), "there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_path_stays_below_its_engine() {
    let vault = simulated().await;
    let session = client(&vault).connect(root()).await.expect("logged in");
    let before = vault.requests().len();
    for path in ["", "../../sys/seal", "a//b", "a/./b"] {
        assert_eq!(reason(session.kv(Kv::new(path))).await, "vault_path", "{path}");
    }
    assert_eq!(vault.requests().len(), before);
    vault.put("a b/ü?x#y", &json!({}));
    assert!(session.kv(Kv::new("/a b/ü?x#y/")).await.is_ok(), "odd names are encoded");
}
