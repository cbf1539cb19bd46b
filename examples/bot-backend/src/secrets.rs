//! Secrets that change while the service runs: where they come from, and what becomes of a new version.

mod connect;
mod token;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use coze_auth::{Key, MAX_KEYS};
use coze_core::{Error, Kind};
use coze_secret::{Credentials, Database, Fields, Kv, Secret, SecretBytes, SecretFile, VaultSession, Watch};
use tokio::{task::JoinSet, time::timeout};

pub(crate) use token::Given;

use crate::{
    config::{self, Config, Source},
    store::Store,
};

/// How long after a change over that failed the next one is tried, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The open sources of the configuration's secrets, and the tasks that follow them. The tasks end when this is dropped.
#[derive(Default)]
pub(crate) struct Secrets {
    vault: Option<VaultSession>,
    handles: HashMap<Source, Secret>,
    /// Of the database, and told of new ones since they were read.
    credentials: Option<(Secret<Credentials>, Watch<Credentials>)>,
    tasks: JoinSet<()>,
}

impl Secrets {
    /// Opens every source that the configuration names, and fills in what it holds now.
    ///
    /// # Errors
    /// `config` ([`Kind::Precondition`]): a source does not give its secret, or not one that is good for its key. File, line and
    /// key are named.
    pub(crate) async fn open(config: &mut Config) -> Result<Self, Error> {
        let mut secrets = Self::default();
        match secrets.fill(config).await {
            Ok(()) => Ok(secrets),
            Err(error) => {
                secrets.close().await;
                Err(error)
            }
        }
    }

    async fn fill(&mut self, config: &mut Config) -> Result<(), Error> {
        let places = config.clone();
        let refused = |key: &str, error: Error| {
            let message = places.wrong(key, error.message()).to_string();
            Error::new(Kind::Precondition, "config").with_message(message).with_source(error)
        };
        if let Some(vault) = &config.vault {
            self.vault = Some(connect::session(vault).await.map_err(|error| refused("vault", error))?);
        }
        let mut fields = HashMap::new();
        let how = config.secrets;
        for (key, secret) in config.secrets_mut() {
            let handle = self.handle(secret.source(), how, &mut fields).await.map_err(|error| refused(&key, error))?;
            let Some(handle) = handle else { continue };
            let current = handle.current()?;
            let text = current.expose_str().filter(|text| !text.is_empty());
            let text = text.ok_or_else(|| Error::new(Kind::Invalid, "secret_text").with_message("expected text"));
            secret.fill(text.map_err(|error| refused(&key, error))?);
        }
        if let (Some(vault), Some(role)) = (&self.vault, &config.storage.credentials) {
            let database = Database::new(&role.vault_role);
            let database = role.mount.iter().fold(database, |database, mount| database.mount(mount));
            let credentials = vault.database(database).await.map_err(|error| refused("storage.credentials", error))?;
            let watch = credentials.watch();
            config.storage.conversations = as_user(&config.storage.conversations, &*credentials.current()?)?;
            self.credentials = Some((credentials, watch));
        }
        config.check().map_err(|wrong| Error::new(Kind::Precondition, "config").with_message(wrong.to_string()))
    }

    /// The handle of a source, which all who name it share; `None` where nothing changes.
    async fn handle(
        &mut self,
        source: &Source,
        how: config::Secrets,
        fields: &mut HashMap<(Option<String>, String), Secret<Fields>>,
    ) -> Result<Option<Secret>, Error> {
        if let Some(handle) = self.handles.get(source) {
            return Ok(Some(handle.clone()));
        }
        let handle = match (source, &self.vault) {
            (Source::Fixed, _) => return Ok(None),
            (Source::File(path), _) => SecretFile::new(path).poll(how.poll).overlap(how.overlap).open().await?,
            (Source::Vault { mount, path, field }, Some(vault)) => {
                let at = (mount.clone(), path.clone());
                if !fields.contains_key(&at) {
                    let kv = Kv::new(path).poll(how.poll).overlap(how.overlap);
                    let kv = mount.iter().fold(kv, |kv, mount| kv.mount(mount));
                    fields.insert(at.clone(), vault.kv(kv).await?);
                }
                fields[&at].field(field)?
            }
            (Source::Vault { .. }, None) => {
                return Err(Error::new(Kind::Precondition, "vault").with_message("there is no table [vault]"));
            }
        };
        self.handles.insert(source.clone(), handle.clone());
        Ok(Some(handle))
    }

    fn of(&self, secret: &config::Secret) -> Secret {
        let handle = self.handles.get(secret.source()).cloned();
        handle.unwrap_or_else(|| Secret::fixed(SecretBytes::new(secret.expose())))
    }

    /// Gives `apply` the keys that are accepted, now and whenever others are: all current versions, then previous ones, as
    /// many as there is room for.
    ///
    /// # Errors
    /// Those of `apply` now. Later ones are events, and what was applied last stays.
    pub(crate) fn keys(
        &mut self,
        secrets: &[config::Secret],
        apply: impl Fn(Vec<Key>) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let handles: Vec<_> = secrets.iter().map(|secret| self.of(secret)).collect();
        let watches: Vec<_> = handles.iter().map(Secret::watch).collect();
        // Two sources may change at the same time: who reads later applies later.
        let turn = Mutex::new(());
        let apply = move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            apply(accepted(&handles)?)
        };
        apply()?;
        let apply = Arc::new(apply);
        for mut watch in watches {
            let apply = apply.clone();
            self.tasks.spawn(async move {
                while watch.versions().await.is_some() {
                    if let Err(error) = apply() {
                        tracing::warn!(reason = error.reason(), %error, "new keys are refused: the last ones stay");
                    }
                }
            });
        }
        Ok(())
    }

    /// The platform's token that was given.
    ///
    /// # Errors
    /// `token_malformed`: it cannot be sent.
    pub(crate) fn token(&mut self, secret: &config::Secret) -> Result<Given, Error> {
        let handle = self.of(secret);
        let watch = handle.watch();
        let given = Given::new(&*handle.current()?)?;
        self.tasks.spawn(given.clone().follow(watch));
        Ok(given)
    }

    /// Lets the store change over whenever its URL or its credentials change.
    pub(crate) fn keep(&mut self, store: Store, url: &config::Secret) {
        if let Some((_, watch)) = self.credentials.take() {
            let base = url.clone();
            self.tasks.spawn(change_over(store, watch, move |user| as_user(&base, user)));
        } else if let Some(handle) = self.handles.get(url.source()) {
            let watch = handle.watch();
            self.tasks
                .spawn(change_over(store, watch, |url| Ok(config::Secret::new(url.expose_str().unwrap_or_default()))));
        }
    }

    /// Follows nothing more, and gives back what Vault has to be given back. For when nothing uses the secrets any more.
    pub(crate) async fn close(mut self) {
        self.tasks.shutdown().await;
        if let Some(vault) = self.vault.take() {
            vault.shutdown().await;
        }
    }
}

fn accepted(handles: &[Secret]) -> Result<Vec<Key>, Error> {
    let current = handles.iter().map(|handle| handle.current().and_then(|value| Key::new(value.expose())));
    let previous = handles.iter().filter_map(|handle| handle.read(|v| v.previous().cloned()));
    let previous = previous.map(|value| Key::new(value.expose()));
    current.chain(previous).take(MAX_KEYS).collect()
}

/// The URL of PostgreSQL for this user.
fn as_user(url: &config::Secret, user: &Credentials) -> Result<config::Secret, Error> {
    let password = user.password().expose_str();
    let with_user = || {
        let mut url = url.expose().parse::<sqlx::any::AnyConnectOptions>().ok()?.database_url;
        url.set_username(user.username()).ok()?;
        url.set_password(Some(password?)).ok()?;
        Some(config::Secret::new(url.as_str()))
    };
    with_user().ok_or_else(|| {
        Error::new(Kind::Precondition, "conversations_open")
            .with_message("the URL of the conversations is none that has a user and a password")
    })
}

async fn change_over<T>(store: Store, mut watch: Watch<T>, url: impl Fn(&T) -> Result<config::Secret, Error>) {
    while let Some(mut version) = watch.changed().await {
        let mut pause = AGAIN.0;
        loop {
            let changed = match url(&version) {
                Ok(url) => store.change_over(&url).await,
                Err(error) => Err(error),
            };
            let Err(error) = changed else { break };
            tracing::warn!(reason = error.reason(), %error, "the database refuses new credentials: the last ones stay");
            // Newer ones are better than another try.
            match timeout(pause, watch.changed()).await {
                Ok(Some(newer)) => version = newer,
                Ok(None) => return,
                Err(_) => pause = (pause * 2).min(AGAIN.1),
            }
        }
        tracing::info!("the database is used with new credentials");
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("vault", &self.vault)
            .field("sources", &self.handles.len())
            .finish_non_exhaustive()
    }
}
