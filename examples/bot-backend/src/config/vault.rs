use std::path::PathBuf;

use serde::Deserialize;

use super::{Config, ConfigError, Secret, secret::Source};

/// A Vault, where secrets of the configuration are. One of the three logins.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    /// Where it is, such as `https://vault.example.com:8200`.
    pub address: String,
    /// The namespace, in Vault Enterprise.
    pub namespace: Option<String>,
    /// Trusts the certificates in this PEM file instead of the public authorities.
    pub ca_file: Option<PathBuf>,
    /// Logs in with a token, such as Vault Agent keeps in a file.
    pub token: Option<Secret>,
    /// Logs in as an `AppRole`.
    pub app_role: Option<AppRole>,
    /// Logs in as a Kubernetes service account.
    pub kubernetes: Option<Kubernetes>,
}

/// A login as an `AppRole`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppRole {
    /// The role's id.
    pub role_id: String,
    /// The secret id; or a single-use token that wraps it.
    pub secret_id: Secret,
    /// Is the secret id wrapped? Default no.
    #[serde(default)]
    pub wrapped: bool,
    /// Where the method is mounted. Default `approle`.
    pub mount: Option<String>,
}

/// A login as a Kubernetes service account.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// The role.
    pub role: String,
    /// The account's token. Default where a pod finds it.
    #[serde(default = "jwt_file")]
    pub jwt_file: PathBuf,
    /// Where the method is mounted. Default `kubernetes`.
    pub mount: Option<String>,
}

/// A role of Vault's database engine, which makes users of the database that end.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseRole {
    /// The role.
    pub vault_role: String,
    /// Where the engine is mounted. Default `database`.
    pub mount: Option<String>,
}

fn jwt_file() -> PathBuf {
    "/var/run/secrets/kubernetes.io/serviceaccount/token".into()
}

impl Config {
    /// Every secret that may come from Vault, with its key.
    pub(crate) fn secrets_mut(&mut self) -> Vec<(String, &mut Secret)> {
        let mut secrets = vec![
            ("storage.conversations".to_owned(), &mut self.storage.conversations),
            ("storage.sessions".to_owned(), &mut self.storage.sessions),
        ];
        secrets.extend(self.limits.redis.as_mut().map(|redis| ("limits.redis".to_owned(), redis)));
        secrets.extend(self.platform.token.as_mut().map(|token| ("platform.token".to_owned(), token)));
        if let Some(account) = &mut self.platform.service_account {
            secrets.push(("platform.service_account.key_id".to_owned(), &mut account.key_id));
            secrets.push(("platform.service_account.private_key".to_owned(), &mut account.private_key));
        }
        if let Some(oauth) = &mut self.platform.oauth {
            secrets.push(("platform.oauth.password".to_owned(), &mut oauth.password));
            let some = [("client_secret", &mut oauth.client_secret), ("token_redis", &mut oauth.token_redis)];
            let some = some.into_iter().filter_map(|(name, secret)| Some((name, secret.as_mut()?)));
            secrets.extend(some.map(|(name, secret)| (format!("platform.oauth.{name}"), secret)));
        }
        for (at, bot) in self.bots.iter_mut().enumerate() {
            for (name, list) in [("webhook_keys", &mut bot.webhook_keys), ("verify_tokens", &mut bot.verify_tokens)] {
                let keys = list.iter_mut().enumerate();
                secrets.extend(keys.map(|(index, key)| (format!("bots[{at}].{name}[{index}]"), key)));
            }
        }
        for (at, plugin) in self.plugin_keys.iter_mut().enumerate() {
            let keys = plugin.keys.iter_mut().enumerate();
            secrets.extend(keys.map(|(index, key)| (format!("plugin_keys[{at}].keys[{index}]"), key)));
        }
        secrets
    }

    /// Is there a Vault where one is needed, and one way to log in?
    pub(super) fn check_vault(&self) -> Result<(), ConfigError> {
        let in_vault = |secret: &Secret| matches!(secret.source(), Source::Vault { .. });
        let Some(vault) = &self.vault else {
            let mut config = self.clone();
            let needs = config.secrets_mut().into_iter().find(|(_, secret)| in_vault(secret)).map(|(key, _)| key);
            let credentials = self.storage.credentials.as_ref().map(|_| "storage.credentials".to_owned());
            return match needs.or(credentials) {
                Some(key) => Err(self.wrong(&key, "there is no table [vault] that says where vault is")),
                None => Ok(()),
            };
        };
        let logins = [vault.token.is_some(), vault.app_role.is_some(), vault.kubernetes.is_some()];
        if logins.into_iter().filter(|is_there| *is_there).count() != 1 {
            return Err(self.wrong("vault", "expected one of token, app_role and kubernetes"));
        }
        for (key, secret) in
            [("token", vault.token.as_ref()), ("app_role.secret_id", vault.app_role.as_ref().map(|a| &a.secret_id))]
        {
            if secret.is_some_and(in_vault) {
                return Err(self.wrong(&format!("vault.{key}"), "this one cannot be in vault itself"));
            }
        }
        let is_postgres = |url: &str| url.starts_with("postgres://") || url.starts_with("postgresql://");
        let url = &self.storage.conversations;
        if self.storage.credentials.is_some() && !url.is_open() && !is_postgres(url.expose()) {
            return Err(self.wrong("storage.credentials", "they are for conversations in postgres://…"));
        }
        Ok(())
    }
}
