//! Secrets from Vault, here a simulated one.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bot_backend::{
    Backend,
    config::{self as table, AppRole, Config, DatabaseRole, Secret},
};
use coze_sim::vault::{self, Database, LeaseState, ROLE_ID, ROOT_TOKEN, RoleChange, SECRET_ID, Vault};
use coze_tests::Postgres;
use serde_json::json;
use sqlx::{AnyPool, Row};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::{
    rotation::{create, database, remove, status},
    support::{BOT, World, config, eventually, message},
};

fn app_role(secret_id: &str, wrapped: bool) -> Option<AppRole> {
    Some(AppRole { role_id: ROLE_ID.into(), secret_id: Secret::new(secret_id), wrapped, mount: None })
}

/// The table that logs in to this Vault.
pub(crate) fn login(vault: &Vault) -> table::Vault {
    table::Vault {
        address: vault.url(),
        namespace: None,
        ca_file: None,
        token: None,
        app_role: app_role(SECRET_ID, false),
        kubernetes: None,
    }
}

pub(crate) async fn simulated() -> Vault {
    Vault::start(vault::Config::default()).await.expect("a port")
}

#[tokio::test]
async fn keys_and_tokens_come_from_vault_and_follow_it() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({ "webhook": "one", "platform": coze_sim::TOKEN, "sessions": "memory" }));
    let wrapped = vault.wrap(&json!({ "secret_id": SECRET_ID }), Duration::from_secs(60));
    let world = World::with(coze_sim::Config::default(), |config| {
        config.vault = Some(table::Vault { app_role: app_role(&wrapped, true), ..login(&vault) });
        config.secrets.poll = Duration::from_millis(100);
        config.bots[0].webhook_keys = vec![Secret::vault("bot/keys", "webhook")];
        config.platform.token = Some(Secret::vault("bot/keys", "platform"));
        config.storage.sessions = Secret::vault("bot/keys", "sessions");
    })
    .await;
    assert_eq!((status(&world, "one").await, status(&world, "two").await), (200, 401));
    vault.put("bot/keys", &json!({ "webhook": "two", "platform": coze_sim::TOKEN }));
    eventually("the new key is taken", async || status(&world, "two").await == 200).await;
    assert_eq!(status(&world, "one").await, 200, "it is accepted for the overlap");

    vault.seal(true);
    assert_eq!(status(&world, "two").await, 200, "a vault that is away takes nothing away");
    vault.seal(false);
    assert!(world.bot.stop().await);
    let requests = vault.requests();
    assert_eq!(requests.iter().filter(|r| r.route == "POST auth/token/revoke-self").count(), 1);
    let reads = requests.iter().filter(|r| r.route == "GET secret/data/bot/keys").count();
    assert!(reads < 10, "three secrets at one path are read together: {reads}");
}

#[tokio::test]
async fn what_vault_does_not_give_at_the_start_is_named_with_file_line_and_key() {
    let vault = simulated().await;
    vault.put("bot/keys", &json!({ "webhook": "one" }));
    let start = async |login: &str, key: &str| {
        let text = format!(
            "[vault]\naddress = \"{}\"\n{login}\n[[bots]]\nid = \"b\"\ntenant = \"t\"\nwebhook_keys = [\n\"x\",\n{key}]\n",
            vault.url()
        );
        let mut config = Config::parse(&text, "bot.toml".as_ref()).expect("good");
        config.listen.set_port(0);
        config.storage.conversations = Secret::new("sqlite::memory:");
        Backend::start(&config, true).await.map(|_| ()).map_err(|error| error.to_string())
    };
    let token = format!("token = \"{ROOT_TOKEN}\"");
    let key = "{ vault = \"bot/keys\", field = \"webhook\" }";
    assert_eq!(start(&token, key).await, Ok(()));
    for (login, key, expected) in [
        ("token = \"no\"", key, "bot.toml:1: vault: vault denies it: the token is over, or may not"),
        (&*token, &*key.replace("keys", "none"), "bot.toml:9: bots[0].webhook_keys[1]: vault has no such secret"),
        (
            &*token,
            &*key.replace("webhook", "none"),
            "bot.toml:9: bots[0].webhook_keys[1]: the secret in vault has no field none",
        ),
    ] {
        assert_eq!(start(login, key).await, Err(expected.to_owned()));
    }
    let file = "token = { file = \"/no/such/token\" }";
    let config = Config::parse(&format!("[vault]\naddress = \"http://v\"\n{file}\n"), "bot.toml".as_ref());
    assert!(config.expect_err("no file").to_string().starts_with("bot.toml:3: vault.token: cannot read the file"));
}

/// What the database engine of Vault does to a real database, and what was removed: the roles, and how many connections of each
/// that ended.
fn engine(admin: AnyPool) -> (Database, watch::Receiver<Vec<(String, i64)>>) {
    let (told, removed) = watch::channel(Vec::new());
    let told = Arc::new(told);
    let database = Database::new(move |change| {
        let (admin, told) = (admin.clone(), told.clone());
        async move {
            match change {
                RoleChange::Create { username, password, ttl } => create(&admin, &username, &password, ttl).await,
                RoleChange::Extend { username, ttl } => {
                    let until = format!("now() + interval '{} seconds'", ttl.as_secs());
                    let extend = format!(
                        "DO $$ BEGIN EXECUTE format('ALTER ROLE %I VALID UNTIL %L', '{username}', {until}); END $$"
                    );
                    sqlx::raw_sql(&extend).execute(&admin).await.map(|_| ())
                }
                RoleChange::Drop { username } => {
                    let ended = remove(&admin, &username).await;
                    ended.map(|ended| told.send_modify(|removed| removed.push((username, ended))))
                }
            }
            .map_err(|error| error.to_string())
        }
    });
    (database, removed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_used_with_credentials_of_vault_and_no_message_fails_when_they_change() {
    let postgres = Postgres::start();
    let admin = database(&postgres).await;
    let (engine, mut removed) = engine(admin.clone());
    let vault = vault::Config { database: Some(engine), ..Default::default() };
    let vault = Vault::start(vault).await.expect("a port");
    let folder = TempDir::new().expect("a folder");
    let token = folder.path().join("token");
    // What a token gave ends with it, so another one brings other credentials at once.
    let rotate = || fs::write(&token, vault.token()).expect("written");
    rotate();
    let world = World::with(coze_sim::Config::default(), |config| {
        config.secrets.poll = Duration::from_millis(100);
        config.vault = Some(table::Vault { token: Some(Secret::file(&token)), app_role: None, ..login(&vault) });
        // Without user and password, as they come from Vault.
        config.storage.conversations = Secret::new(&postgres.url().replace("postgres@", ""));
        config.storage.credentials = Some(DatabaseRole { vault_role: vault::DATABASE_ROLE.into(), mount: None });
    })
    .await;

    let (failed, answered) = (Mutex::new(Vec::new()), AtomicU64::new(0));
    let messages = async || {
        loop {
            let answer = world.post(&message(BOT, "hello")).await;
            match answer.status.as_u16() {
                200 => _ = answered.fetch_add(1, Ordering::Relaxed),
                // The platform's limits are none of this.
                429 => {}
                _ => failed.lock().expect("no panic").push(answer.text().to_owned()),
            }
        }
    };
    let statements = async || {
        loop {
            if let Err(error) = world.bot.store().events().await {
                failed.lock().expect("no panic").push(format!("{error:?}"));
            }
        }
    };
    let rotations = async {
        for number in 1..=5 {
            rotate();
            eventually("other credentials are used, and only they", async || {
                let users: Vec<_> = vault.leases().into_iter().map(|lease| lease.username).collect();
                let in_use = async |user: &String| {
                    let of = "SELECT COUNT(*) AS n FROM pg_stat_activity WHERE usename = $1";
                    let row = sqlx::query(of).bind(user.clone()).fetch_one(&admin).await.expect("an answer");
                    row.get::<i64, _>("n") > 0
                };
                users.len() == number + 1 && in_use(&users[number]).await && !in_use(&users[number - 1]).await
            })
            .await;
        }
    };
    tokio::select! {
        () = rotations => {}
        () = messages() => {}
        () = statements() => {}
        () = statements() => {}
    }
    assert_eq!(*failed.lock().expect("no panic"), [""; 0]);
    assert!(answered.load(Ordering::Relaxed) >= 10, "there were messages");
    // Each but the current and the previous one.
    let gone = removed.wait_for(|removed| removed.len() == 4).await.expect("the engine is there").clone();
    assert!(gone.iter().all(|(_, connections)| *connections == 0), "nobody used a role that was revoked: {gone:?}");

    assert!(world.bot.stop().await);
    assert!(vault.leases().iter().all(|lease| lease.state != LeaseState::Active));
    let roles = sqlx::query("SELECT COUNT(*) AS n FROM pg_roles WHERE rolname LIKE 'v-token-%'").fetch_one(&admin);
    assert_eq!(roles.await.expect("an answer").get::<i64, _>("n"), 0, "no role is left");
    let tables = "SELECT COUNT(*) AS n FROM pg_tables WHERE schemaname = 'public' AND tableowner <> 'bot_owner'";
    assert_eq!(sqlx::query(tables).fetch_one(&admin).await.expect("an answer").get::<i64, _>("n"), 0);
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_role_behind() {
    let postgres = Postgres::start();
    let admin = database(&postgres).await;
    let (engine, removed) = engine(admin.clone());
    let vault = vault::Config { database: Some(engine), ..Default::default() };
    let vault = Vault::start(vault).await.expect("a port");
    let folder = TempDir::new().expect("a folder");
    let sim = coze_sim::Sim::start(coze_sim::Config::default()).await.expect("a port");
    let mut config = config(&sim, &folder);
    config.vault = Some(login(&vault));
    config.storage.conversations = Secret::new(&postgres.url().replace("postgres@", ""));
    config.storage.credentials = Some(DatabaseRole { vault_role: vault::DATABASE_ROLE.into(), mount: None });
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    config.listen = taken.local_addr().expect("bound");
    let error = Backend::start(&config, true).await.expect_err("taken").to_string();
    assert!(error.starts_with("cannot listen on"), "{error}");
    assert_eq!(removed.borrow().len(), 1);
    assert_eq!(vault.leases()[0].state, LeaseState::Revoked);
}
