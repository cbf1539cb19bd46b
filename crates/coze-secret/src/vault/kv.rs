use std::{future::Future, sync::Arc, time::Duration};

use coze_core::{Error, Kind};
use tokio::{sync::watch, time::Instant};

use super::{
    Fields,
    http::{Call, path},
    is_passing, pace, persist,
    session::{Link, changed},
    wire,
};
use crate::{Rotor, Secret, rotor::OVERLAP};

/// A secret of the key-value engine, version 2.
#[derive(Clone, Debug)]
#[must_use = "a session reads it"]
pub struct Kv {
    path: String,
    mount: String,
    poll: Duration,
    overlap: Duration,
}

impl Kv {
    /// The secret at this path, such as `bot/keys`; the engine is mounted at `secret` unless set.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), mount: "secret".into(), poll: Duration::from_secs(60), overlap: OVERLAP }
    }

    /// Where the engine is mounted.
    pub fn mount(self, mount: impl Into<String>) -> Self {
        Self { mount: mount.into(), ..self }
    }

    /// The time between two readings; 1 minute unless set, from a second to a day, and up to a tenth more or less.
    pub fn poll(self, poll: Duration) -> Self {
        Self { poll, ..self }
    }

    /// How long the previous version stays beside the new one; 1 hour unless set.
    pub fn overlap(self, overlap: Duration) -> Self {
        Self { overlap, ..self }
    }

    /// Reads it, and makes the task that follows it.
    pub(crate) async fn start(
        self,
        link: Arc<Link>,
        stop: watch::Receiver<bool>,
    ) -> Result<(impl Future<Output = ()> + Send + 'static, Secret<Fields>), Error> {
        let path = path(&[&self.mount, "data", &self.path])?;
        let (version, fields) = persist(|| read(&link, &path), is_passing).await?;
        let (rotor, secret) = Secret::rotating(format!("vault {path}"), fields);
        let rotor = rotor.overlap(self.overlap);
        let follower = Follower { link, path, poll: self.poll, rotor, version, failures: 0 };
        Ok((follower.follow(stop), secret))
    }
}

struct Follower {
    link: Arc<Link>,
    path: String,
    poll: Duration,
    rotor: Rotor<Fields>,
    version: (u64, String),
    /// In a row.
    failures: u32,
}

impl Follower {
    async fn follow(mut self, mut stop: watch::Receiver<bool>) {
        let mut token = self.link.watch();
        let mut wait = pace::poll(self.poll, fastrand::f64());
        loop {
            tokio::select! {
                is_read = self.rotor.rest(Instant::now() + wait) => {
                    if !is_read {
                        return;
                    }
                }
                // Whoever was denied with the old token is not with the new one.
                () = changed(&mut token) => {}
                _ = stop.changed() => return,
            }
            wait = self.look().await;
        }
    }

    /// Reads once; says how long to wait then.
    async fn look(&mut self) -> Duration {
        let poll = pace::poll(self.poll, fastrand::f64());
        match read(&self.link, &self.path).await {
            Ok((version, fields)) => {
                self.failures = 0;
                if version == self.version {
                    self.rotor.confirm();
                } else {
                    self.version = version;
                    self.rotor.publish(fields);
                }
                poll
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.rotor.fail(&error);
                match is_passing(&error) {
                    true => pace::pause(self.failures, &error, fastrand::f64()),
                    false => poll,
                }
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.rotor.orphan(&ended());
    }
}

/// Why a secret of a session that is gone is stale.
pub(crate) fn ended() -> Error {
    Error::new(Kind::Unavailable, "vault_session_ended").with_message("nobody looks for new versions any more")
}

async fn read(link: &Link, path: &str) -> Result<((u64, String), Fields), Error> {
    wire::version(&link.send(Call::get(path)).await?)
}
