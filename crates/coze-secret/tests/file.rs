//! Secrets in files, under the paused clock.
#![cfg(unix)]

use std::{fs, os::unix::fs::symlink, path::PathBuf, time::Duration};

use coze_core::Kind;
use coze_secret::{Health, Secret, SecretFile, Versions};
use tempfile::TempDir;
use tokio::time::sleep;

struct Fixture {
    dir: TempDir,
    path: PathBuf,
}

impl Fixture {
    fn new(content: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        fs::write(&path, content).expect("written");
        Self { dir, path }
    }

    fn file(&self) -> SecretFile {
        SecretFile::new(&self.path)
    }

    fn write(&self, content: impl AsRef<[u8]>) {
        fs::write(&self.path, content).expect("written");
    }
}

fn text(secret: &Secret) -> String {
    secret.current().expect("files do not expire").expose_str().expect("text").to_owned()
}

/// Long enough for one look and its second reading.
async fn one_poll() {
    sleep(Duration::from_millis(10_200)).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_is_seen_at_the_next_look_and_the_old_content_stays_for_an_hour() {
    let fixture = Fixture::new("one\n");
    let secret = fixture.file().open().await.expect("readable");
    let mut watch = secret.watch();
    assert_eq!(text(&secret), "one");
    fixture.write("two");
    assert!(watch.changed().await.expect("followed").matches(b"two"));
    let previous = |secret: &Secret| secret.read(|v| v.previous().map(|p| p.expose().to_vec()));
    assert_eq!(previous(&secret).as_deref(), Some(&b"one"[..]));
    sleep(Duration::from_secs(3599)).await;
    assert!(previous(&secret).is_some());
    sleep(Duration::from_secs(2)).await;
    assert_eq!((text(&secret).as_str(), previous(&secret)), ("two", None));
    assert_eq!(secret.read(Versions::number), 2, "looking at the same content makes no version");
}

#[tokio::test(start_paused = true)]
async fn the_exchange_of_a_symbolic_link_is_seen() {
    let fixture = Fixture::new("unused");
    let root = fixture.dir.path();
    for (version, content) in [("v1", "one"), ("v2", "two")] {
        fs::create_dir(root.join(version)).expect("made");
        fs::write(root.join(version).join("key"), content).expect("written");
    }
    // As Kubernetes lays out a volume: key -> ..data/key, ..data -> v1.
    symlink("v1", root.join("..data")).expect("linked");
    symlink("..data/key", root.join("key")).expect("linked");
    let secret = SecretFile::new(root.join("key")).open().await.expect("readable");
    let mut watch = secret.watch();
    assert_eq!(text(&secret), "one");
    symlink("v2", root.join("..next")).expect("linked");
    fs::rename(root.join("..next"), root.join("..data")).expect("exchanged");
    assert!(watch.changed().await.expect("followed").matches(b"two"));
}

#[tokio::test(start_paused = true)]
async fn a_bad_file_changes_nothing_but_the_health() {
    let fixture = Fixture::new("good");
    let secret = fixture.file().max_bytes(8).open().await.expect("readable");
    for (content, reason) in [("", "secret_empty"), ("\n", "secret_empty"), ("123456789", "secret_too_large")] {
        fixture.write(content);
        one_poll().await;
        assert_eq!((text(&secret).as_str(), secret.health()), ("good", Health::Stale(reason)), "{content:?}");
    }
    fs::remove_file(&fixture.path).expect("removed");
    one_poll().await;
    assert_eq!((text(&secret).as_str(), secret.health()), ("good", Health::Stale("secret_unreadable")));
    fixture.write("good");
    one_poll().await;
    assert_eq!((secret.read(Versions::number), secret.health()), (1, Health::Good), "it is back, and the same");
    fixture.write("12345678");
    one_poll().await;
    assert_eq!((text(&secret).as_str(), secret.health()), ("12345678", Health::Good), "the bound itself is allowed");
}

#[tokio::test(start_paused = true)]
async fn a_half_written_file_is_no_version() {
    let fixture = Fixture::new("old");
    let secret = fixture.file().open().await.expect("readable");
    fixture.write("ne");
    sleep(Duration::from_millis(10_050)).await;
    fixture.write("new");
    sleep(Duration::from_millis(200)).await;
    assert_eq!((text(&secret).as_str(), secret.health()), ("old", Health::Stale("secret_unsettled")));
    one_poll().await;
    assert_eq!((text(&secret).as_str(), secret.health()), ("new", Health::Good));
}

#[tokio::test]
async fn what_cannot_be_a_secret_is_refused_at_once() {
    let fixture = Fixture::new("");
    let reason = async |file: SecretFile| {
        let error = file.open().await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Precondition);
        assert!(error.message().starts_with("the secret file "), "{error}");
        error.reason()
    };
    assert_eq!(reason(fixture.file()).await, "secret_empty");
    assert_eq!(reason(SecretFile::new(fixture.dir.path())).await, "secret_not_a_file");
    assert_eq!(reason(SecretFile::new("/dev/zero")).await, "secret_not_a_file");
    assert_eq!(reason(SecretFile::new(fixture.dir.path().join("none"))).await, "secret_unreadable");
    fixture.write(vec![b'x'; 64 * 1024 + 1]);
    assert_eq!(reason(fixture.file()).await, "secret_too_large");
    fixture.write(vec![b'x'; 64 * 1024]);
    assert!(fixture.file().open().await.is_ok(), "the bound itself is allowed");
}

#[tokio::test]
async fn a_binary_key_keeps_its_last_byte() {
    let fixture = Fixture::new("key\r\n");
    let secret = fixture.file().exact().open().await.expect("readable");
    assert!(secret.current().expect("there").matches(b"key\r\n"));
    let secret = fixture.file().open().await.expect("readable");
    assert!(secret.current().expect("there").matches(b"key"));
}

#[tokio::test(start_paused = true)]
async fn no_interval_is_too_short_or_too_long() {
    let fixture = Fixture::new("one");
    let secret = fixture.file().poll(Duration::ZERO).open().await.expect("readable");
    let lazy = fixture.file().poll(Duration::MAX).overlap(Duration::MAX).open().await.expect("readable");
    fixture.write("two");
    sleep(Duration::from_millis(350)).await;
    assert_eq!((text(&secret).as_str(), text(&lazy).as_str()), ("two", "one"));
    drop(secret);
    sleep(Duration::from_secs(86_401)).await;
    assert_eq!(text(&lazy), "two");
    assert!(lazy.read(|v| v.previous().is_some()), "an overlap without end");
}

#[tokio::test(start_paused = true)]
async fn nobody_looks_at_the_file_once_the_secret_is_dropped() {
    let fixture = Fixture::new("one");
    let secret = fixture.file().open().await.expect("readable");
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks(), 1);
    drop(secret);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(tasks(), 0);
}
