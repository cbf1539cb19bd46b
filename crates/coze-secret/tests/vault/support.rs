use std::{future::Future, time::Duration};

use coze_secret::{Fields, Login, Secret, SecretBytes, Vault, VaultSession};
use coze_sim::vault::{self, Config, ROLE_ID, ROOT_TOKEN, SECRET_ID};
use tokio::time::sleep; // start_paused = true

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn fixed(text: &str) -> Secret {
    Secret::fixed(SecretBytes::new(text))
}

pub(crate) async fn simulated() -> vault::Vault {
    simulated_with(Config::default()).await
}

pub(crate) async fn simulated_with(config: Config) -> vault::Vault {
    vault::Vault::start(config).await.expect("a port")
}

pub(crate) fn client(vault: &vault::Vault) -> Vault {
    Vault::new(&vault.url()).expect("a valid url")
}

pub(crate) fn root() -> Login {
    Login::token(fixed(ROOT_TOKEN))
}

pub(crate) fn app_role() -> Login {
    Login::app_role(ROLE_ID, fixed(SECRET_ID))
}

pub(crate) async fn session(vault: &vault::Vault) -> VaultSession {
    client(vault).connect(app_role()).await.expect("logged in")
}

/// How often this route was answered with this status.
pub(crate) fn count(vault: &vault::Vault, route: &str, status: u16) -> usize {
    vault.requests().iter().filter(|request| request.route.starts_with(route) && request.status == status).count()
}

pub(crate) fn field(secret: &Secret<Fields>, name: &str) -> String {
    let fields = secret.current().expect("kv secrets do not expire");
    fields.get(name).and_then(SecretBytes::expose_str).expect("a field of text").to_owned()
}

/// Lets the paused clock run until something is so, and fails after a simulated day.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..86_400 {
        if is_so() {
            return;
        }
        sleep(secs(1)).await;
    }
    panic!("{what} did not happen within a day");
}

/// The reason of an error.
pub(crate) async fn reason<T: std::fmt::Debug>(
    outcome: impl Future<Output = Result<T, coze_core::Error>>,
) -> &'static str {
    outcome.await.expect_err("refused").reason()
}
