//! Secrets that change while the service runs: where they come from, and what becomes of a new version.

mod both;
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
    sessions::Sessions,
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
        let how = config.secrets;
        if let Some(vault) = &config.vault {
            self.vault = Some(connect::session(vault, how.poll).await.map_err(|e| places.refused("vault", e))?);
        }
        let mut fields = HashMap::new();
        for (key, secret) in config.secrets_mut() {
            let handle = self.handle(secret.source(), how, &mut fields).await;
            let handle = handle.map_err(|error| places.refused(&key, error))?;
            let Some(handle) = handle else { continue };
            let current = handle.current()?;
            secret.fill(text(&current).map_err(|error| places.refused(&key, error))?);
        }
        if let (Some(vault), Some(role)) = (&self.vault, &config.storage.credentials) {
            let database = Database::new(&role.vault_role);
            let database = role.mount.iter().fold(database, |database, mount| database.mount(mount));
            let credentials = vault.database(database).await;
            let credentials = credentials.map_err(|error| places.refused("storage.credentials", error))?;
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

    /// The secret as it is at any time.
    pub(crate) fn of(&self, secret: &config::Secret) -> Secret {
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
        let given = Given::new(&*self.of(secret).current()?)?;
        self.follow(secret, {
            let given = given.clone();
            move |secret| given.set(secret)
        })?;
        Ok(given)
    }

    /// Gives `apply` the secret, now and whenever there is another one.
    ///
    /// # Errors
    /// Those of `apply` now. Later ones are events, and what was applied last stays.
    pub(crate) fn follow(
        &mut self,
        secret: &config::Secret,
        apply: impl Fn(&SecretBytes) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let handle = self.of(secret);
        let mut watch = handle.watch();
        apply(&*handle.current()?)?;
        self.tasks.spawn(async move {
            while let Some(secret) = watch.changed().await {
                if let Err(error) = apply(&secret) {
                    tracing::warn!(reason = error.reason(), %error, "a new secret is refused: the last one stays");
                }
            }
        });
        Ok(())
    }

    /// The same for two secrets that belong together. One that is new waits so long for the other. They stay as they are where
    /// one of them has no source that is followed.
    ///
    /// # Errors
    /// As [`Secrets::follow`].
    pub(crate) fn follow_both(
        &mut self,
        secrets: [&config::Secret; 2],
        wait: Duration,
        apply: impl Fn(&SecretBytes, &SecretBytes) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let both = secrets.map(|secret| self.of(secret));
        let watches = both.each_ref().map(Secret::watch);
        let apply = move || apply(&*both[0].current()?, &*both[1].current()?);
        apply()?;
        if secrets.iter().all(|secret| *secret.source() != Source::Fixed) {
            self.tasks.spawn(both::follow(watches, wait, apply));
        }
        Ok(())
    }

    /// Lets the store and the sessions change over whenever their URLs or credentials change.
    pub(crate) fn keep(&mut self, store: &Store, sessions: &Sessions, storage: &config::Storage) {
        let (store, base) = (store.clone(), storage.conversations.clone());
        if let Some((_, watch)) = self.credentials.take() {
            self.tasks.spawn(change_over("conversations", watch, move |user| {
                let (store, url) = (store.clone(), as_user(&base, &user));
                async move { store.change_over(&url?).await }
            }));
        } else if let Some(handle) = self.handles.get(base.source()) {
            self.tasks.spawn(change_over("conversations", handle.watch(), move |url| {
                let store = store.clone();
                async move { store.change_over(&as_url(&url)).await }
            }));
        }
        if let Some(handle) = self.handles.get(storage.sessions.source()) {
            let sessions = sessions.clone();
            self.tasks.spawn(change_over("sessions", handle.watch(), move |url| {
                let sessions = sessions.clone();
                async move { sessions.change_over(&as_url(&url)).await }
            }));
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

/// A secret as text.
///
/// # Errors
/// `secret_text` ([`Kind::Invalid`]): it is none, or empty.
pub(crate) fn text(secret: &SecretBytes) -> Result<&str, Error> {
    let text = secret.expose_str().filter(|text| !text.is_empty());
    text.ok_or_else(|| Error::new(Kind::Invalid, "secret_text").with_message("expected text"))
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

fn as_url(secret: &SecretBytes) -> config::Secret {
    config::Secret::new(secret.expose_str().unwrap_or_default())
}

/// Changes over to each new version, again and again until it is taken or a newer one is there.
async fn change_over<T, F>(what: &'static str, mut watch: Watch<T>, change: impl Fn(Arc<T>) -> F)
where
    F: Future<Output = Result<(), Error>>,
{
    while let Some(mut version) = watch.changed().await {
        let mut pause = AGAIN.0;
        while let Err(error) = change(version.clone()).await {
            tracing::warn!(what, reason = error.reason(), %error, "new credentials are refused: the last ones stay");
            match timeout(pause, watch.changed()).await {
                Ok(Some(newer)) => version = newer,
                Ok(None) => return,
                Err(_) => pause = (pause * 2).min(AGAIN.1),
            }
        }
        tracing::info!(what, "new credentials are used");
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
