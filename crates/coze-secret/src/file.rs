use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use coze_core::{Error, Kind};
use tokio::{
    task,
    time::{Instant, sleep},
};

use crate::{Rotor, Secret, SecretBytes, rotor::OVERLAP};

/// The time in which content must not change to be believed: whoever writes a file in place writes it in pieces.
const SETTLE: Duration = Duration::from_millis(100);
/// The shortest and the longest time between two looks.
const MIN_POLL: Duration = Duration::from_millis(100);
const MAX_POLL: Duration = Duration::from_secs(86_400);
/// Room for a file that grew since its size was read, or whose size the system does not tell.
const ROOM: u64 = 4095;

/// A secret in a file, read again whenever it changes.
///
/// It is looked at in intervals, content and all, because that works for every way a file is replaced: in place, by a
/// rename, by the exchange of a symbolic link that Kubernetes does, on a network. A file that is missing, empty, too large
/// or not readable changes nothing: the last content serves, an event tells of it once, and so does
/// [`Secret::health`]. New content counts once it stays the same for 100 ms, so no half-written file does.
///
/// ```
/// use coze_secret::{Health, SecretFile};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("token");
/// std::fs::write(&path, "s3cret\n")?;
/// let token = SecretFile::new(&path).open().await?;
/// assert_eq!(token.current()?.expose(), b"s3cret");
/// assert_eq!(token.health(), Health::Good);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it is read when it is opened"]
pub struct SecretFile {
    path: PathBuf,
    poll: Duration,
    overlap: Duration,
    max: usize,
    exact: bool,
}

impl SecretFile {
    /// The secret is the content of the file, without the line end it may have.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), poll: Duration::from_secs(10), overlap: OVERLAP, max: 64 * 1024, exact: false }
    }

    /// The time between two looks at the file; 10 seconds unless set, from 100 ms to a day.
    pub fn poll(self, poll: Duration) -> Self {
        Self { poll: poll.clamp(MIN_POLL, MAX_POLL), ..self }
    }

    /// How long the previous content stays beside the new one; 1 hour unless set.
    pub fn overlap(self, overlap: Duration) -> Self {
        Self { overlap, ..self }
    }

    /// The largest content in bytes; 64 KiB unless set.
    pub fn max_bytes(self, max: usize) -> Self {
        Self { max, ..self }
    }

    /// Keeps a line end as part of the secret: for binary keys.
    pub fn exact(self) -> Self {
        Self { exact: true, ..self }
    }

    /// Reads the file, and from now on looks for changes, in a task that ends once nobody holds the secret any more.
    ///
    /// # Errors
    /// [`Kind::Precondition`]: `secret_unreadable`, `secret_empty`, `secret_too_large`, `secret_not_a_file` (a directory or
    /// a pipe), `secret_unsettled` (it is being written).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn open(self) -> Result<Secret, Error> {
        let file = Arc::new(self);
        let (rotor, secret) = Secret::rotating(file.path.display().to_string(), file.read().await?);
        task::spawn(file.clone().follow(rotor.overlap(file.overlap)));
        Ok(secret)
    }

    async fn follow(self: Arc<Self>, mut rotor: Rotor<SecretBytes>) {
        while rotor.rest(Instant::now() + self.poll).await {
            match self.changed(&rotor).await {
                Ok(Some(value)) => rotor.publish(value),
                Ok(None) => rotor.confirm(),
                Err(error) => rotor.fail(&error),
            }
        }
    }

    /// The content, if it is another than the current version.
    async fn changed(self: &Arc<Self>, rotor: &Rotor<SecretBytes>) -> Result<Option<SecretBytes>, Error> {
        let first = self.read().await?;
        if rotor.current().is_some_and(|current| current.matches(first.expose())) {
            return Ok(None);
        }
        sleep(SETTLE).await;
        let second = self.read().await?;
        match second.matches(first.expose()) {
            true => Ok(Some(second)),
            false => Err(self.refused("secret_unsettled", "is being written")),
        }
    }

    async fn read(self: &Arc<Self>) -> Result<SecretBytes, Error> {
        let file = self.clone();
        let read = task::spawn_blocking(move || file.read_now()).await;
        read.unwrap_or_else(|error| Err(self.refused("secret_unreadable", "was not read").with_source(error)))
    }

    fn read_now(&self) -> Result<SecretBytes, Error> {
        let unreadable = |error: io::Error| self.refused("secret_unreadable", "cannot be read").with_source(error);
        let metadata = fs::metadata(&self.path).map_err(unreadable)?;
        if !metadata.is_file() {
            // To open a pipe would wait for whoever writes to it.
            return Err(self.refused("secret_not_a_file", "is not a regular file"));
        }
        let room = usize::try_from(metadata.len().max(ROOM)).unwrap_or(usize::MAX);
        let file = File::open(&self.path).map_err(unreadable)?;
        let read = SecretBytes::read(file, room.min(self.max)).map_err(unreadable)?;
        let read = read.ok_or_else(|| match room < self.max {
            true => self.refused("secret_unsettled", "grows while it is read"),
            false => self.refused("secret_too_large", &format!("has more than {} bytes", self.max)),
        })?;
        let value = if self.exact { read } else { read.without_line_end() };
        match value.expose() {
            [] => Err(self.refused("secret_empty", "is empty")),
            _ => Ok(value),
        }
    }

    fn refused(&self, reason: &'static str, what: &str) -> Error {
        let message = format!("the secret file {} {what}", self.path.display());
        Error::new(Kind::Precondition, reason).with_message(message)
    }
}
