use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    future::{Future, ready},
    io::{self, Read, Write},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coze_core::{Error, Kind};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Mutex as Lock, OwnedMutexGuard},
    time::{Instant, sleep},
};

/// Bytes of a file that are read.
const MAX_FILE: u64 = 64 << 10;
/// How long who waits for a lease waits before it asks again, at most.
pub(super) const PACE: Duration = Duration::from_millis(100);
/// How long a lease of a file is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A refresh token: good for one use (coze-platform.md §1.3). It never shows itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshToken {
    refresh_token: String,
    /// How often it was sent without an answer that told its fate.
    #[serde(default)]
    sent: u8,
}

impl RefreshToken {
    /// A refresh token that was not sent yet.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { refresh_token: text.to_owned(), sent: 0 }
    }

    /// The token. It is a secret.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.refresh_token
    }

    /// How often it was sent without an answer that told whether it is still good.
    #[must_use]
    pub fn sent(&self) -> u8 {
        self.sent
    }

    pub(super) fn with_sent(&self, sent: u8) -> Self {
        Self { refresh_token: self.refresh_token.clone(), sent }
    }

    /// The text that a store keeps. It is a secret.
    #[must_use]
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("two plain fields")
    }

    /// Reads what [`RefreshToken::encode`] wrote.
    ///
    /// # Errors
    /// `token_store`, [`Kind::Precondition`]: it is something else.
    pub fn decode(text: &str) -> Result<Self, Error> {
        // The text of a JSON error may quote what it could not read.
        serde_json::from_str(text).map_err(|_| broken("what is stored is no refresh token"))
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshToken").field("sent", &self.sent).finish_non_exhaustive()
    }
}

/// Where one refresh token is kept. What a person granted once lives and dies with it.
///
/// Before a token is sent it is replaced by itself with [`RefreshToken::sent`] counted up, and the one that the platform answers
/// takes its place before its access token is used. So after a crash at any moment the store tells whether the token in it may be
/// spent. The one moment that nothing can help is between the platform's spending it and our storing the next: that answer is lost.
///
/// [`MemoryStore`] serves one process, [`FileStore`] those of one machine, and `RedisStore`, with the feature `redis`, those of
/// several.
pub trait TokenStore: Send + Sync + 'static {
    /// The right to use the token, given back when this is dropped.
    type Lease: Send + Sync + 'static;

    /// Waits until nobody else uses the token. Who only saves one does not need it.
    ///
    /// # Errors
    /// The store's own, with the reason `token_store`.
    fn lease(&self) -> impl Future<Output = Result<Self::Lease, Error>> + Send;

    /// The token, or `None` if there is none yet.
    ///
    /// # Errors
    /// The store's own, with the reason `token_store`.
    fn load(&self) -> impl Future<Output = Result<Option<RefreshToken>, Error>> + Send;

    /// Stores a token that a person has just granted, whatever was there. When this returns it survives whatever the store
    /// survives.
    ///
    /// # Errors
    /// The store's own, with the reason `token_store`. Then the old token or the new one is there, whole.
    fn save(&self, token: &RefreshToken) -> impl Future<Output = Result<(), Error>> + Send;

    /// Replaces a token by the next, or by itself with another mark, if it is the one stored, with the mark that is known.
    /// `false` if not: then nothing has changed.
    ///
    /// # Errors
    /// As [`TokenStore::save`].
    fn replace(&self, known: &RefreshToken, next: &RefreshToken) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// Keeps the token as long as the process lives. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    token: Arc<Mutex<Option<RefreshToken>>>,
    lease: Arc<Lock<()>>,
}

impl MemoryStore {
    /// A store without a token.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl TokenStore for MemoryStore {
    type Lease = OwnedMutexGuard<()>;

    async fn lease(&self) -> Result<Self::Lease, Error> {
        Ok(self.lease.clone().lock_owned().await)
    }

    fn load(&self) -> impl Future<Output = Result<Option<RefreshToken>, Error>> + Send {
        ready(Ok(self.token.lock().expect("nobody panics while holding it").clone()))
    }

    fn save(&self, token: &RefreshToken) -> impl Future<Output = Result<(), Error>> + Send {
        *self.token.lock().expect("nobody panics while holding it") = Some(token.clone());
        ready(Ok(()))
    }

    fn replace(&self, known: &RefreshToken, next: &RefreshToken) -> impl Future<Output = Result<bool, Error>> + Send {
        let mut stored = self.token.lock().expect("nobody panics while holding it");
        let is_known = stored.as_ref() == Some(known);
        if is_known {
            *stored = Some(next.clone());
        }
        ready(Ok(is_known))
    }
}

/// Keeps the token in a file that only its owner may read (mode 0600), and replaces it as a whole: a new file is written and
/// synchronised beside it, then renamed, then the folder synchronised. Clones share it.
///
/// Several processes of one machine may share it, such as an old one that ends and the new one that takes its place: one at a time
/// uses the token, because it holds a lock on a file beside it, which the system lets go of when a process ends.
#[derive(Clone, Debug)]
pub struct FileStore(Arc<Place>);

#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Numbers the saves as they are asked for.
    asked: AtomicU64,
    /// The latest that was written. A save goes on when nobody waits for it any more, and must not overwrite a later one.
    written: Mutex<u64>,
}

impl FileStore {
    /// The file at `path`, in a folder that exists; nothing else writes to it, or to the same name with `.new` or `.lock` behind.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Place { path: path.into(), asked: AtomicU64::new(0), written: Mutex::new(0) }))
    }
}

impl TokenStore for FileStore {
    /// The file that is locked.
    type Lease = File;

    /// # Errors
    /// `token_store`, [`Kind::Precondition`]: the file beside it cannot be locked, or another process holds it for 2 minutes.
    async fn lease(&self) -> Result<File, Error> {
        let start = Instant::now();
        loop {
            let place = self.0.clone();
            if let Some(lease) = blocking(move || place.lock()).await? {
                return Ok(lease);
            }
            if start.elapsed() > PATIENCE {
                return Err(broken("another process uses the refresh token for longer than it may"));
            }
            sleep(PACE.mul_f64(fastrand::f64())).await;
        }
    }

    /// # Errors
    /// `token_store`, [`Kind::Precondition`]: the file cannot be read, others may read it, or it holds something else.
    async fn load(&self) -> Result<Option<RefreshToken>, Error> {
        let place = self.0.clone();
        blocking(move || place.load()).await
    }

    /// # Errors
    /// `token_store`, [`Kind::Precondition`]: the file cannot be written.
    async fn save(&self, token: &RefreshToken) -> Result<(), Error> {
        let (place, token) = (self.0.clone(), token.clone());
        let number = place.asked.fetch_add(1, Ordering::Relaxed) + 1;
        blocking(move || place.save(number, None, &token)).await.map(|_| ())
    }

    /// # Errors
    /// `token_store`, [`Kind::Precondition`]: the file cannot be read or written.
    async fn replace(&self, known: &RefreshToken, next: &RefreshToken) -> Result<bool, Error> {
        let (place, known, next) = (self.0.clone(), known.clone(), next.clone());
        let number = place.asked.fetch_add(1, Ordering::Relaxed) + 1;
        blocking(move || place.save(number, Some(&known), &next)).await
    }
}

impl Place {
    fn beside(&self, end: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(end);
        path.into()
    }

    /// The lock, unless somebody has it.
    fn lock(&self) -> Result<Option<File>, Error> {
        let unlockable = |e| broken("the file of the refresh token cannot be locked").with_source(e);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(self.beside(".lock")).map_err(unlockable)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(unlockable(error)),
        }
    }

    fn load(&self) -> Result<Option<RefreshToken>, Error> {
        let _nobody_writes = self.written.lock().expect("nobody panics while holding it");
        self.read()
    }

    fn read(&self) -> Result<Option<RefreshToken>, Error> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(unreadable)?,
        };
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            if file.metadata().map_err(unreadable)?.permissions().mode() & 0o077 != 0 {
                return Err(broken("others may read the file of the refresh token: its mode must be 0600"));
            }
        }
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text).map_err(unreadable)?;
        RefreshToken::decode(&text).map(Some)
    }

    /// Writes, unless something else than `known` is there; whether it did.
    fn save(&self, number: u64, known: Option<&RefreshToken>, token: &RefreshToken) -> Result<bool, Error> {
        let mut written = self.written.lock().expect("nobody panics while holding it");
        if *written > number {
            return Ok(known.is_none());
        }
        let unwritable = |e| broken("the file of the refresh token cannot be written").with_source(e);
        let folder = self.folder().map_err(unwritable)?;
        if known.is_some() && self.read()?.as_ref() != known {
            return Ok(false);
        }
        self.replace(&token.encode(), &folder).map_err(unwritable)?;
        *written = number;
        Ok(true)
    }

    /// The folder. While this is held no other process saves there, where the file system can lock a folder (NFS cannot).
    fn folder(&self) -> io::Result<Option<File>> {
        if cfg!(not(unix)) {
            return Ok(None);
        }
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = File::open(parent.unwrap_or(".".as_ref()))?;
        let _ = folder.lock();
        Ok(Some(folder))
    }

    fn replace(&self, text: &str, folder: &Option<File>) -> io::Result<()> {
        let new = self.beside(".new");
        // What a crash left behind. Made anew, so that neither its mode nor a link decides who reads it.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&new, &self.path)?;
        folder.as_ref().map_or(Ok(()), File::sync_all)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(broken("the store of the refresh token broke off").with_source(error)))
}

fn unreadable(error: io::Error) -> Error {
    broken("the file of the refresh token cannot be read").with_source(error)
}

pub(super) fn broken(what: &'static str) -> Error {
    Error::new(Kind::Precondition, "token_store").with_message(what)
}
