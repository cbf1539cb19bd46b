//! The private key of a service account, which changes while the bot runs.

use std::{fs, sync::Arc, time::Duration};

use bot_backend::config::{self, Config, Secret, ServiceAccount};
use coze_core::{BotId, TenantId};
use coze_sim::{App, Keep, Limits};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::interval;

use crate::{
    support::World,
    vault::{login, simulated},
};

/// At most, until the new key is used.
const MESSAGES: usize = 500;

/// A key, and how the platform calls it.
struct Key {
    id: String,
    pem: String,
}

/// A step of a rotation to this key.
type Step = Box<dyn FnOnce(&Key)>;

/// An app of the platform with two keys.
fn app() -> (App, [Key; 2]) {
    let (mut app, old) = App::with_key("10000000000000000000000000000009.app.coze").expect("a key");
    let (other, new) = App::with_key(app.client_id.clone()).expect("a key");
    app.keys.extend(other.keys);
    let key = |at: usize, pem| Key { id: app.keys[at].0.clone(), pem };
    let keys = [key(0, old), key(1, new)];
    (app, keys)
}

/// Sends one message after the other, for each of which the bot needs a token that it does not have yet, and does the `steps`
/// of a rotation between them, until the new key is used and for some messages more.
async fn no_message_fails(
    app: App,
    [old, new]: [Key; 2],
    [key_id, private_key]: [Secret; 2],
    set: impl FnOnce(&mut Config),
    steps: Vec<Step>,
) {
    let client_id = app.client_id.clone();
    let platform = coze_sim::Config {
        apps: vec![app],
        tokens: Vec::new(),
        limits: Limits { chat_qps: 0, ..Limits::default() },
        keep: Keep { requests: 10 * MESSAGES, ..Keep::default() },
        ..coze_sim::Config::default()
    };
    let bot = |n: usize| format!("bot-{n}");
    let world = World::with(platform, |config| {
        config.secrets.poll = Duration::from_millis(100);
        config.limits.app_qps = 1000.try_into().expect("not zero");
        config.platform.token = None;
        let account = ServiceAccount { client_id, key_id, private_key, session_per_tenant: true };
        config.platform.service_account = Some(account);
        let any = config.bots[0].clone();
        let of_a_tenant = |n: usize| config::Bot {
            id: BotId::new(&bot(n)).expect("valid"),
            tenant: TenantId::new(&format!("tenant-{n}")).expect("valid"),
            ..any.clone()
        };
        config.bots = (0..MESSAGES).map(of_a_tenant).collect();
        set(config);
    })
    .await;
    let used = || world.sim.requests().into_iter().filter_map(|request| request.key_id).collect::<Vec<_>>();
    let (mut pace, mut steps) = (interval(Duration::from_millis(20)), steps.into_iter());
    for n in 0..MESSAGES {
        pace.tick().await;
        if n % 5 == 4
            && let Some(step) = steps.next()
        {
            step(&new);
        }
        let answer = world.send(&bot(n), "hello").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        if used().iter().filter(|key| **key == new.id).count() == 5 {
            break;
        }
    }
    let refused = |request: &coze_sim::Recorded| request.key_id.is_some() && request.outcome != "0";
    assert!(!world.sim.requests().iter().any(refused), "the platform took every assertion");
    let mut keys = used();
    keys.dedup();
    assert_eq!(keys, [old.id, new.id], "first the old one alone, then the new one alone");
}

#[tokio::test]
async fn a_private_key_that_changes_in_its_file_signs_the_next_request_for_a_token_and_none_fails() {
    let folder = TempDir::new().expect("a folder");
    let [id_file, key_file] = ["id", "key.pem"].map(|name| folder.path().join(name));
    let (app, keys) = app();
    fs::write(&id_file, &keys[0].id).expect("written");
    fs::write(&key_file, &keys[0].pem).expect("written");
    let sources = [Secret::file(&id_file), Secret::file(&key_file)];
    // One after the other, with messages in between: the new key waits for its id.
    let steps: Vec<Step> = vec![
        Box::new(move |new| fs::write(key_file, &new.pem).expect("written")),
        Box::new(move |new| fs::write(id_file, &new.id).expect("written")),
    ];
    no_message_fails(app, keys, sources, |_| {}, steps).await;
}

#[tokio::test]
async fn a_private_key_that_changes_in_vault_signs_the_next_request_for_a_token_and_none_fails() {
    let vault = Arc::new(simulated().await);
    let (there, table, (app, keys)) = (vault.clone(), login(&vault), app());
    let put = move |key: &Key| {
        there.put("bot/account", &json!({ "key_id": key.id, "private_key": key.pem }));
    };
    put(&keys[0]);
    let sources = ["key_id", "private_key"].map(|field| Secret::vault("bot/account", field));
    no_message_fails(app, keys, sources, |config| config.vault = Some(table), vec![Box::new(put)]).await;
}
