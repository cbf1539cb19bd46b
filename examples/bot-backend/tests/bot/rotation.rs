//! Secrets in files and databases that change while the bot runs.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use bot_backend::{
    Backend,
    config::{Config, Secret},
    store::Store,
};
use coze_sim::{Callback, TOKEN, Token, sign_webhook};
use coze_tests::{Postgres, Redis};
use http::Request;
use http_body_util::Full;
use sqlx::{AnyPool, Executor, Row};
use tempfile::TempDir;

use crate::support::{BOT, World, config, eventually, message};

/// The status of a message of its own that is signed with this key.
pub(crate) async fn status(world: &World, key: &str) -> u16 {
    let body = message(BOT, "hello").to_string();
    let request = Request::post(format!("{}/webhook/{BOT}", world.bot.url()))
        .header("x-signature", sign_webhook(key, body.as_bytes()))
        .body(Full::from(body))
        .expect("valid");
    world.http.send(request).await.status.as_u16()
}

fn fast(config: &mut Config) {
    config.secrets.poll = Duration::from_millis(100);
}

#[tokio::test]
async fn a_key_that_changes_in_its_file_is_taken_and_the_one_before_is_accepted_for_the_overlap() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("key");
    fs::write(&path, "one\n").expect("written");
    let world = World::with(coze_sim::Config::default(), |config| {
        fast(config);
        config.secrets.overlap = Duration::from_millis(500);
        config.bots[0].webhook_keys = vec![Secret::file(&path), Secret::new("fixed")];
    })
    .await;
    assert_eq!((status(&world, "one").await, status(&world, "two").await), (200, 401));
    fs::write(&path, "two\n").expect("written");
    eventually("the new key is taken", async || status(&world, "two").await == 200).await;
    eventually("the one before goes", async || status(&world, "one").await == 401).await;
    fs::remove_file(&path).expect("removed");
    eventually("what is gone takes nothing away", async || status(&world, "two").await == 200).await;
    assert_eq!(status(&world, "fixed").await, 200);
}

#[tokio::test]
async fn both_keys_count_while_they_are_exchanged() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("key");
    fs::write(&path, "one").expect("written");
    let world = World::with(coze_sim::Config::default(), |config| {
        fast(config);
        config.bots[0].webhook_keys = vec![Secret::file(&path)];
    })
    .await;
    fs::write(&path, "two").expect("written");
    eventually("the new key is taken", async || status(&world, "two").await == 200).await;
    assert_eq!(status(&world, "one").await, 200);
    fs::write(&path, "three").expect("written");
    eventually("the next key is taken", async || status(&world, "three").await == 200).await;
    assert_eq!((status(&world, "two").await, status(&world, "one").await), (200, 401));
}

#[tokio::test]
async fn a_verify_token_that_changes_is_taken_and_what_was_accepted_is_still_known() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("token");
    fs::write(&path, "one").expect("written");
    let world = World::with(coze_sim::Config::default(), |config| {
        fast(config);
        config.bots[0].verify_tokens = vec![Secret::file(&path)];
    })
    .await;
    let pushed = async |token: &str| {
        let url = format!("{}/callback/{BOT}", world.bot.url());
        let event = Callback { url, verify_token: token.into(), attempts: 1, ..Callback::default() };
        world.sim.push_callback(&event).await.expect("sent").status
    };
    assert_eq!((pushed("one").await, pushed("two").await), (200, 401));
    fs::write(&path, "two").expect("written");
    eventually("the new token is taken", async || pushed("two").await == 200).await;
    assert_eq!(pushed("one").await, 200, "it is accepted for the overlap");
}

#[tokio::test]
async fn the_platforms_token_is_taken_from_its_file_again_when_it_changes() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("token");
    fs::write(&path, "pat_wrong").expect("written");
    let platform = coze_sim::Config { tokens: vec![Token::new(TOKEN)], ..coze_sim::Config::default() };
    let world = World::with(platform, |config| {
        fast(config);
        config.platform.token = Some(Secret::file(&path));
    })
    .await;
    assert_eq!(world.send(BOT, "hello").await.status, 502, "the platform refuses the token");
    fs::write(&path, "not a token").expect("written");
    fs::write(&path, TOKEN).expect("written");
    eventually("the new token is taken", async || world.send(BOT, "hello").await.status == 200).await;
}

#[tokio::test]
async fn a_source_that_fails_at_the_start_is_named() {
    let world = World::start().await;
    let mut config = config(&world.sim, &world.folder);
    config.bots[0].webhook_keys = vec![Secret::new("x"), Secret::file("/no/such/key")];
    let error = Backend::start(&config, true).await.expect_err("no file").to_string();
    assert_eq!(error, "bots[0].webhook_keys[1]: the secret file /no/such/key cannot be read");
    let spaces = world.folder.path().join("spaces");
    fs::write(&spaces, "a b").expect("written");
    config.bots[0].webhook_keys = vec![Secret::new("x")];
    config.platform.token = Some(Secret::file(&spaces));
    let error = Backend::start(&config, false).await.expect_err("no token").to_string();
    assert_eq!(error, "platform.token: expected visible ASCII without spaces");
}

#[tokio::test]
async fn the_redis_of_the_sessions_changes_over_once_the_new_one_answers() {
    let (one, two) = (Redis::start(), Redis::start());
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("url");
    fs::write(&path, one.url()).expect("written");
    let world = World::with(coze_sim::Config::default(), |config| {
        fast(config);
        config.storage.sessions = Secret::file(&path);
    })
    .await;
    assert_eq!(world.send(BOT, "hello").await.status, 200);
    fs::write(&path, "redis://127.0.0.1:1").expect("written");
    drop(one);
    assert_eq!(world.send(BOT, "hello").await.status, 503, "the first one is gone, and the next one does not answer");
    fs::write(&path, two.url()).expect("written");
    eventually("the new one is taken", async || world.send(BOT, "hello").await.status == 200).await;
}

/// A database whose tables belong to the role `bot_owner`, and its superuser.
pub(crate) async fn database(postgres: &Postgres) -> AnyPool {
    sqlx::any::install_default_drivers();
    let admin = AnyPool::connect(&postgres.url()).await.expect("connected");
    admin.execute("CREATE ROLE bot_owner NOLOGIN").await.expect("made");
    admin.execute("GRANT CREATE, USAGE ON SCHEMA public TO bot_owner").await.expect("granted");
    admin
}

/// Makes a role whose tables belong to `bot_owner`.
pub(crate) async fn create(admin: &AnyPool, name: &str, password: &str, ttl: Duration) -> sqlx::Result<()> {
    let until = format!("now() + interval '{} seconds'", ttl.as_secs());
    let make = format!(
        "DO $$ BEGIN EXECUTE format('CREATE ROLE %I LOGIN PASSWORD %L VALID UNTIL %L IN ROLE bot_owner', \
         '{name}', '{password}', {until}); END $$"
    );
    admin.execute(sqlx::raw_sql(&make)).await?;
    admin.execute(sqlx::raw_sql(&format!("ALTER ROLE \"{name}\" SET role = bot_owner"))).await.map(|_| ())
}

/// Removes a role and ends what it is still doing; says how many connections that were.
pub(crate) async fn remove(admin: &AnyPool, name: &str) -> sqlx::Result<i64> {
    let end = "SELECT COUNT(pg_terminate_backend(pid)) AS ended FROM pg_stat_activity WHERE usename = $1";
    let ended = sqlx::query(end).bind(name).fetch_one(admin).await?.try_get("ended")?;
    admin.execute(sqlx::raw_sql(&format!("DROP ROLE \"{name}\""))).await?;
    Ok(ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_changes_its_credentials_many_times_and_no_statement_fails() {
    let postgres = Postgres::start();
    let admin = database(&postgres).await;
    let url = |name: &str| Secret::new(&postgres.url().replace("postgres@", &format!("{name}:pass-{name}@")));
    let hour = Duration::from_secs(3600);
    create(&admin, "r0", "pass-r0", hour).await.expect("made");
    let store = Store::open(&url("r0")).await.expect("opened");

    let (is_over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = async || {
        while !is_over.load(Ordering::Relaxed) {
            store.check().await.expect("no statement fails");
            store.events().await.expect("no statement fails");
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let rotate = async || {
        for n in 1..=10 {
            let before = done.load(Ordering::Relaxed);
            create(&admin, &format!("r{n}"), &format!("pass-r{n}"), hour).await.expect("made");
            store.change_over(&url(&format!("r{n}"))).await.expect("changed over");
            eventually("the old connections are gone", async || {
                let of = "SELECT COUNT(*) AS n FROM pg_stat_activity WHERE usename = $1";
                let row = sqlx::query(of).bind(format!("r{}", n - 1)).fetch_one(&admin).await.expect("an answer");
                row.get::<i64, _>("n") == 0
            })
            .await;
            remove(&admin, &format!("r{}", n - 1)).await.expect("removed");
            eventually("it goes on", async || done.load(Ordering::Relaxed) > before + 20).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(rotate(), load(), load(), load(), load());

    let wrong = store.change_over(&Secret::new(&postgres.url().replace("postgres@", "r10:wrong@"))).await;
    assert_eq!(wrong.expect_err("another password").reason(), "conversations_open");
    store.check().await.expect("the last credentials stay");
    create(&admin, "stranger", "pass-stranger", hour).await.expect("made");
    admin.execute("REVOKE bot_owner FROM stranger").await.expect("revoked");
    store.change_over(&url("stranger")).await.expect_err("it may not read the tables");
    store.close().await;
    store.check().await.expect_err("closed");
    store.change_over(&url("r10")).await.expect("proven");
    store.check().await.expect_err("what is closed stays closed");
}
