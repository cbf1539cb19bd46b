use std::{
    fmt,
    future::pending,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use coze_core::{Error, Kind};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use zeroize::Zeroizing;

use super::{
    Credentials, Database, Fields, Kv, Login,
    http::{Call, Client},
    is_passing,
    login::look_up,
    pace, persist,
    token::{State, Token},
    wire,
};
use crate::{Health, Rotor, Secret, Watch};

/// Secrets that one session follows; those that are asked for at the same moment are not counted yet.
const MAX_SECRETS: usize = 1000;
/// How long a shutdown may take, and how much of that the leases may.
const GRACE: Duration = Duration::from_secs(10);
const LEASES: Duration = Duration::from_secs(6);
/// A token that was doubted is looked up at most this often.
const COOLDOWN: Duration = Duration::from_secs(5);
/// When a token that does not end is looked at.
const NEVER: Duration = Duration::from_secs(365 * 86_400);

/// A login to Vault that is kept alive, and the secrets that come from it.
///
/// Its tasks renew the token and the leases, and look for new versions. While Vault is away, everything serves on until its
/// lease ends; a new token or lease is asked for in growing intervals. The tasks end with the session: a secret then stays as
/// it is, with [`Health::Stale`], and its leases end by themselves, unless [`VaultSession::shutdown`] revoked them.
#[must_use = "what it gave is no longer renewed once it is dropped"]
pub struct VaultSession {
    link: Arc<Link>,
    revokes_token: bool,
    stop: watch::Sender<bool>,
    followers: Mutex<JoinSet<()>>,
    /// Aborted when it is dropped.
    _keeper: JoinSet<()>,
}

/// What the tasks of a session share.
#[derive(Debug)]
pub(crate) struct Link {
    client: Arc<Client>,
    token: Secret<Token>,
    /// Somebody was denied: is the token still alive?
    doubt: Notify,
}

impl VaultSession {
    pub(crate) async fn start(client: Arc<Client>, login: Login) -> Result<Self, Error> {
        let asked = Instant::now();
        let granted = persist(|| login.run(&client), is_passing).await?;
        let token = Token::new(granted, asked);
        let wake = next(token.state(), asked);
        let (rotor, token) = Secret::rotating("vault token", token);
        let link = Arc::new(Link { client, token, doubt: Notify::new() });
        let revokes_token = login.given().is_none();
        let given = login.given().map(Secret::watch);
        let keeper = Keeper { link: link.clone(), login, rotor, given, wake, failures: 0, checked: None };
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.keep());
        Ok(Self { link, revokes_token, stop: watch::Sender::new(false), followers: Mutex::default(), _keeper: tasks })
    }

    /// How the token fares.
    #[must_use]
    pub fn health(&self) -> Health {
        self.link.token.health()
    }

    /// The fields of a KV secret (version 2), read again in intervals.
    ///
    /// # Errors
    /// `vault_not_found` where it is not there or deleted; and those of any request, which the crate docs list, after 5 tries.
    pub async fn kv(&self, kv: Kv) -> Result<Secret<Fields>, Error> {
        self.room()?;
        let (task, secret) = kv.start(self.link.clone(), self.stop.subscribe()).await?;
        self.tasks().spawn(task);
        Ok(secret)
    }

    /// Credentials of a database, made for this process: renewed, replaced before they end, and revoked when nobody holds them
    /// any more. If the future is dropped, credentials that were made already end by themselves.
    ///
    /// # Errors
    /// `vault_refused` where there is no such role; and those of any request, which the crate docs list, after 5 tries.
    pub async fn database(&self, database: Database) -> Result<Secret<Credentials>, Error> {
        self.room()?;
        let (task, secret) = database.start(self.link.clone(), self.stop.subscribe()).await?;
        self.tasks().spawn(task);
        Ok(secret)
    }

    /// Is there room for one more? Asked before a lease is, so that none is left behind.
    fn room(&self) -> Result<(), Error> {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        match tasks.len() < MAX_SECRETS {
            true => Ok(()),
            false => Err(Error::new(Kind::Overloaded, "vault_too_many_secrets")
                .with_message(format!("a session of vault follows at most {MAX_SECRETS} secrets"))),
        }
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.followers.lock().expect("nobody panics while holding the tasks")
    }

    /// Revokes all leases, and the token too unless it was given, which ends what leases are left; takes at most 10 seconds.
    /// Credentials are over then.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        let mut tasks = self.followers.into_inner().expect("nobody panics while holding the tasks");
        let revoked = async {
            if timeout(LEASES, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
                tracing::warn!(
                    "vault did not revoke every lease in time: what is left ends with the token, or by itself"
                );
            }
            if self.revokes_token {
                let revoke = || self.link.send(Call::post("auth/token/revoke-self"));
                persist(revoke, is_passing).await.map(drop)?;
            }
            Ok::<_, Error>(())
        };
        match timeout(GRACE, revoked).await {
            Ok(Ok(())) => tracing::info!("the session with vault is closed"),
            Ok(Err(error)) => tracing::warn!(reason = error.reason(), %error, "the token of vault was not revoked"),
            Err(_) => tracing::warn!("vault did not revoke the token in time: it ends by itself"),
        }
    }
}

impl fmt::Debug for VaultSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultSession").field("token", &self.link.token).finish_non_exhaustive()
    }
}

impl Link {
    /// The current token.
    pub(crate) fn token(&self) -> Result<Arc<Token>, Error> {
        self.token.current()
    }

    /// Tells of new tokens.
    pub(crate) fn watch(&self) -> Watch<Token> {
        self.token.watch()
    }

    /// Sends a request with the current token.
    pub(crate) async fn send(&self, call: Call<'_>) -> Result<Zeroizing<Vec<u8>>, Error> {
        let token = self.token()?;
        let answer = self.client.send(call.token(&token.value)).await;
        if answer.as_ref().is_err_and(|error| error.reason() == "vault_denied") {
            self.doubt.notify_one();
        }
        answer
    }
}

/// Waits for a new version; forever if none can come.
pub(crate) async fn changed<T>(watch: &mut Watch<T>) {
    if watch.changed().await.is_none() {
        pending::<()>().await;
    }
}

async fn given(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => changed(watch).await,
        None => pending().await,
    }
}

/// Keeps the token of a session alive.
struct Keeper {
    link: Arc<Link>,
    login: Login,
    rotor: Rotor<Token>,
    /// Where the token is given and not made: tells of another one.
    given: Option<Watch>,
    wake: Instant,
    /// In a row.
    failures: u32,
    /// When the token was last doubted.
    checked: Option<Instant>,
}

impl Keeper {
    async fn keep(mut self) {
        loop {
            let ends = self.rotor.current().and_then(|token| token.state().ends);
            // A doubt that comes too early waits.
            let rested = self.checked.map(|checked| checked + COOLDOWN).filter(|rested| *rested > Instant::now());
            let wake = [ends, rested].into_iter().flatten().fold(self.wake, Instant::min);
            tokio::select! {
                is_read = self.rotor.rest(wake) => {
                    if !is_read {
                        return;
                    }
                    self.wake_up().await;
                }
                () = self.link.doubt.notified(), if rested.is_none() => self.check().await,
                () = given(&mut self.given) => self.log_in().await,
            }
        }
    }

    async fn wake_up(&mut self) {
        let now = Instant::now();
        match self.rotor.current().map(|token| (token.state(), token)) {
            Some((State { ends: Some(ends), .. }, _)) if ends <= now => {
                self.rotor.expire();
                self.log_in().await;
            }
            _ if now < self.wake => {}
            Some((State { renewable: true, .. }, token)) => self.renew(&token).await,
            _ => self.log_in().await,
        }
    }

    async fn renew(&mut self, token: &Token) {
        let (asked, before) = (Instant::now(), token.state());
        let answer = self.link.client.send(Call::post("auth/token/renew-self").token(&token.value)).await;
        match answer.and_then(|answer| wire::renewed(&answer)) {
            Ok((life, renewable)) => {
                // What ends is given no life without end.
                let life = life.or(before.life.map(|_| Duration::ZERO));
                let state = State::new(life, renewable, asked);
                // It was given markedly less than before: the end of all renewals is near.
                if life.zip(before.life).is_some_and(|(life, last)| life < last.mul_f64(0.75)) {
                    token.renewed(State { life: before.life, ..state });
                    return self.log_in().await;
                }
                token.renewed(state);
                self.settled(state, asked);
                self.rotor.confirm();
            }
            Err(error) if is_passing(&error) => self.failed(&error),
            // It may be over: Vault says so with different statuses.
            Err(_) => self.log_in().await,
        }
    }

    async fn log_in(&mut self) {
        let asked = Instant::now();
        match self.login.run(&self.link.client).await {
            Ok(granted) => {
                let state = State::new(granted.life, granted.renewable, asked);
                match self.rotor.current().filter(|current| current.value.matches(granted.token.expose())) {
                    // A given token that is still the same: it cannot be replaced, only end.
                    Some(current) => {
                        current.renewed(State { renewable: false, ..state });
                        self.rotor.confirm();
                    }
                    None => {
                        self.rotor.publish(Token::new(granted, asked));
                        self.rotor.retire();
                    }
                }
                self.settled(state, asked);
            }
            Err(error) => {
                self.failed(&error);
                if error.reason() == "vault_denied" && self.is_given() {
                    self.rotor.expire();
                }
            }
        }
    }

    /// Is the current token the one that is given now? Where another one is given that is refused, the last one serves.
    fn is_given(&self) -> bool {
        let given = self.login.given().and_then(|given| given.current().ok());
        given.zip(self.rotor.current()).is_some_and(|(given, current)| given.matches(current.value.expose()))
    }

    /// Somebody was denied. Is it the token, or only the permission?
    async fn check(&mut self) {
        let Some(token) = self.rotor.current() else { return };
        self.checked = Some(Instant::now());
        if let Err(error) = look_up(&self.link.client, &token.value).await
            && !is_passing(&error)
        {
            self.log_in().await;
        }
    }

    fn settled(&mut self, state: State, asked: Instant) {
        self.failures = 0;
        self.wake = next(state, asked);
    }

    fn failed(&mut self, error: &Error) {
        self.failures = self.failures.saturating_add(1);
        self.wake = Instant::now() + pace::pause(self.failures, error, fastrand::f64());
        self.rotor.fail(error);
    }
}

/// When a token is to be renewed.
fn next(state: State, asked: Instant) -> Instant {
    asked + state.life.map_or(NEVER, |life| pace::renewal(life, fastrand::f64()))
}
