use std::{future::Future, sync::Arc, time::Duration};

use coze_core::Error;
use serde::Serialize;
use tokio::{sync::watch, time::Instant};

use super::{
    Credentials,
    http::{Call, path},
    is_passing,
    kv::ended,
    login::json,
    pace, persist,
    session::{Link, changed},
    token::Token,
    wire::{self, Leased},
};
use crate::{Rotor, Secret};

/// When a revocation that failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// A role of the database engine, which makes credentials for whoever asks.
///
/// They are renewed when 60 to 75 % of their lease is over, and replaced by others when a renewal gives markedly less time than
/// before, because then their `max_ttl` is near; also when the token they belong to is replaced, with which they would end.
#[derive(Clone, Debug)]
#[must_use = "a session asks for it"]
pub struct Database {
    role: String,
    mount: String,
    overlap: Duration,
}

impl Database {
    /// Credentials of this role; the engine is mounted at `database` unless set.
    pub fn new(role: impl Into<String>) -> Self {
        Self { role: role.into(), mount: "database".into(), overlap: Duration::from_secs(60) }
    }

    /// Where the engine is mounted.
    pub fn mount(self, mount: impl Into<String>) -> Self {
        Self { mount: mount.into(), ..self }
    }

    /// How long replaced credentials still work, before they are revoked: the time that a pool of connections has to
    /// change over. 1 minute unless set.
    pub fn overlap(self, overlap: Duration) -> Self {
        Self { overlap, ..self }
    }

    /// Asks for credentials, and makes the task that keeps them.
    pub(crate) async fn start(
        self,
        link: Arc<Link>,
        stop: watch::Receiver<bool>,
    ) -> Result<(impl Future<Output = ()> + Send + 'static, Secret<Credentials>), Error> {
        let path = path(&[&self.mount, "creds", &self.role])?;
        let (lease, credentials) = persist(|| ask(&link, &path), is_passing).await?;
        let (rotor, secret) = Secret::rotating(format!("vault {path}"), credentials);
        let (wake, rotor) = (lease.next(), rotor.overlap(self.overlap));
        let overlap = self.overlap;
        let holder = Holder { link, path, overlap, rotor, lease, replaced: None, wake, failures: 0 };
        Ok((holder.hold(stop), secret))
    }
}

/// A lease of ours.
struct Lease {
    id: String,
    /// What it was first given.
    life: Duration,
    asked: Instant,
    ends: Instant,
    renewable: bool,
    /// It ends with this token.
    token: Arc<Token>,
}

impl Lease {
    fn new(leased: Leased, token: Arc<Token>, asked: Instant) -> Self {
        let Leased { id, life, renewable } = leased;
        Self { id, life, asked, ends: asked + life, renewable, token }
    }

    /// When it is to be renewed or replaced.
    fn next(&self) -> Instant {
        self.asked + pace::renewal(self.ends - self.asked, fastrand::f64())
    }

    /// When it is over at the latest.
    fn end(&self) -> Instant {
        self.token.state().ends.map_or(self.ends, |ends| ends.min(self.ends))
    }
}

/// Keeps the credentials of one secret.
struct Holder {
    link: Arc<Link>,
    path: String,
    overlap: Duration,
    rotor: Rotor<Credentials>,
    lease: Lease,
    /// The lease before, and when it is revoked.
    replaced: Option<(String, Instant)>,
    wake: Instant,
    /// In a row.
    failures: u32,
}

impl Holder {
    async fn hold(mut self, mut stop: watch::Receiver<bool>) {
        // A shutdown does not wait for what is asked at that moment.
        tokio::select! {
            () = self.follow() => {}
            _ = stop.changed() => {}
        }
        self.rotor.end(&ended());
        for id in self.replaced.iter().map(|(id, _)| id).chain([&self.lease.id]) {
            if let Err(error) = persist(|| self.revoke(id), is_passing).await {
                self.left(&error);
            }
        }
    }

    /// Keeps the credentials until nobody holds them.
    async fn follow(&mut self) {
        let mut token = self.link.watch();
        loop {
            let is_live = self.rotor.current().is_some();
            let end = is_live.then(|| self.lease.end());
            let revoke = self.replaced.as_ref().map(|(_, when)| *when);
            let wake = [end, revoke].into_iter().flatten().fold(self.wake, Instant::min);
            tokio::select! {
                is_read = self.rotor.rest(wake) => {
                    if !is_read {
                        return;
                    }
                }
                () = changed(&mut token) => {
                    self.replace().await;
                    continue;
                }
            }
            let now = Instant::now();
            if let Some((id, _)) = self.replaced.as_ref().filter(|(_, revoke)| *revoke <= now) {
                match self.revoke(id).await {
                    Err(error) if is_passing(&error) => {
                        self.replaced = self.replaced.take().map(|(id, _)| (id, now + AGAIN));
                    }
                    outcome => {
                        self.replaced = None;
                        outcome.unwrap_or_else(|error| self.left(&error));
                    }
                }
            }
            if is_live && self.lease.end() <= now {
                self.rotor.expire();
                self.replace().await;
            } else if self.wake <= now {
                self.renew().await;
            }
        }
    }

    async fn renew(&mut self) {
        // A lease of a token that was replaced would end with that.
        let is_ours = self.link.token().is_ok_and(|token| Arc::ptr_eq(&token, &self.lease.token));
        if !self.lease.renewable || !is_ours || self.rotor.current().is_none() {
            return self.replace().await;
        }
        #[derive(Serialize)]
        struct Renewal<'a> {
            lease_id: &'a str,
            increment: u64,
        }
        let asked = Instant::now();
        let renewal = Renewal { lease_id: &self.lease.id, increment: self.lease.life.as_secs() };
        match send(&self.link, "sys/leases/renew", &renewal).await.and_then(|answer| wire::leased(&answer)) {
            Ok(leased) => {
                (self.lease.asked, self.lease.ends) = (asked, asked + leased.life);
                self.lease.renewable = leased.renewable;
                self.failures = 0;
                if leased.life < self.lease.life.mul_f64(0.75) {
                    return self.replace().await;
                }
                self.wake = self.lease.next();
                self.rotor.confirm();
            }
            Err(error) if is_passing(&error) => self.failed(&error),
            // It is over, or not to be renewed.
            Err(_) => self.replace().await,
        }
    }

    async fn replace(&mut self) {
        match ask(&self.link, &self.path).await {
            Ok((lease, credentials)) => {
                let was_live = self.rotor.current().is_some();
                self.failures = 0;
                self.wake = lease.next();
                let last = std::mem::replace(&mut self.lease, lease);
                self.rotor.publish(credentials);
                let when = Instant::now().checked_add(self.overlap).filter(|_| was_live);
                let older = std::mem::replace(&mut self.replaced, when.map(|when| (last.id, when)));
                if let Some((older, _)) = older
                    && let Err(error) = self.revoke(&older).await
                {
                    self.left(&error);
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn revoke(&self, id: &str) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Revocation<'a> {
            lease_id: &'a str,
            /// Answered when it is done, not when it is queued.
            sync: bool,
        }
        send(&self.link, "sys/leases/revoke", &Revocation { lease_id: id, sync: true }).await.map(drop)
    }

    /// Tells that a lease was not revoked.
    fn left(&self, error: &Error) {
        tracing::warn!(secret = self.path, reason = error.reason(), %error, "a lease was not revoked: it ends by itself");
    }

    fn failed(&mut self, error: &Error) {
        self.failures = self.failures.saturating_add(1);
        self.wake = Instant::now() + pace::pause(self.failures, error, fastrand::f64());
        self.rotor.fail(error);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.rotor.orphan(&ended());
    }
}

async fn ask(link: &Link, path: &str) -> Result<(Lease, Credentials), Error> {
    let (asked, token) = (Instant::now(), link.token()?);
    let (leased, credentials) = wire::credentials(&link.send(Call::get(path)).await?)?;
    Ok((Lease::new(leased, token, asked), credentials))
}

async fn send(link: &Link, path: &str, body: &impl Serialize) -> Result<zeroize::Zeroizing<Vec<u8>>, Error> {
    link.send(Call::post(path).body(json(body)?)).await
}
