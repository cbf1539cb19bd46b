//! What the log tells, and what it does not. Apart from the other tests, because whether an event is recorded is decided for the
//! whole process.

use std::{
    io,
    sync::{Arc, Mutex},
};

use coze_core::{Error, Kind};
use coze_secret::{Secret, SecretBytes};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::LevelFilter;

/// One log at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What the log holds, in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Records what this thread does.
    fn record() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_lasting_failure_is_told_of_once_and_nothing_secret_is() {
    let _alone = ALONE.blocking_lock();
    let (log, _recording) = Log::record();
    let (mut rotor, _secret) = Secret::rotating("the key", SecretBytes::new("hidden-one"));
    (0..5).for_each(|_| rotor.fail(&Error::new(Kind::Unavailable, "source_down")));
    (0..5).for_each(|_| rotor.confirm());
    rotor.publish(SecretBytes::new("hidden-two"));
    (0..5).for_each(|_| rotor.expire());

    let text = log.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines.iter().all(|line| line.contains("secret=\"the key\"")), "{text}");
    assert!(lines[0].contains("WARN") && lines[0].contains("reason=\"source_down\""), "{text}");
    assert!(!text.contains("hidden"), "{text}");
}

#[cfg(feature = "vault")]
#[tokio::test(start_paused = true)]
async fn a_session_with_vault_is_told_of_and_no_secret_is() {
    use std::time::Duration;

    use coze_secret::{Database, Kv, Login, Vault};
    use coze_sim::vault::{self, Config, DATABASE_ROLE, ROLE_ID, SECRET_ID};
    use serde_json::json;
    use tokio::time::sleep;

    let _alone = ALONE.lock().await;
    let (log, _recording) = Log::record();
    let vault = vault::Vault::start(Config::default()).await.expect("a port");
    vault.put("k", &json!({ "v": "hidden-value" }));
    let login = Login::app_role(ROLE_ID, Secret::fixed(SecretBytes::new(SECRET_ID)));
    let session = Vault::new(&vault.url()).expect("valid").connect(login).await.expect("logged in");
    let secret = session.kv(Kv::new("k")).await.expect("there");
    let credentials = session.database(Database::new(DATABASE_ROLE)).await.expect("given");
    let (current, mut watch) = (credentials.current().expect("live"), secret.watch());
    let password = current.password().expose_str().expect("text");
    vault.seal(true);
    sleep(Duration::from_secs(4000)).await;
    vault.seal(false);
    vault.put("k", &json!({ "v": "hidden-other" }));
    watch.changed().await.expect("followed");
    session.shutdown().await;

    let text = log.text();
    for told in ["vault token", "vault secret/data/k", "vault database/creds/bot", "vault_sealed", "has a new version"]
    {
        assert!(text.contains(told), "{told}: {text}");
    }
    for hidden in ["hidden", SECRET_ID, password, "hvs."] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
}
