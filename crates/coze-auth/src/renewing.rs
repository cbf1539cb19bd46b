mod flight;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use coze_core::{Error, Retry};
use fastrand::Rng;
use tokio::{sync::watch, time::Instant};

use crate::{Decision, Refresher, Token, TokenSource, bearer::copy};
use flight::{Flight, keep};

/// How many tokens in a row may be replaced that were refused within the cool-down of being fetched, if each was accepted before.
const MAX_ROW: u32 = 8;
/// The longest cool-down.
const MAX_COOLDOWN: Duration = Duration::from_secs(86_400);
/// The longest time before its expiry that a token is renewed, and the longest between two fetches that a failure asks for.
const MAX_MARGIN: Duration = Duration::from_secs(60);

/// Tokens that a closure fetches: one fetch at a time, however many callers want a token. Clones share the token.
///
/// A token is fetched when there is none, and again ahead of its expiry: a minute, or a tenth of its life if that is less,
/// of which up to a half is left out at random, so that many processes do not come at once. Until it expires it still serves,
/// so nobody waits for that. It is renewed when it is due, whether a caller comes at that time or not, if anybody took it since
/// it was fetched; what nobody uses is left to expire. The fetch is a task of its own: a caller who goes away does not end
/// it. If it fails, all who wait for it get the error, and for the time of [`Renewing::cooldown`], or for as long as the error
/// asks ([`Error::retry_after`], up to a minute), there is no other fetch, and whoever has no valid token gets the error at once.
/// Such an error says [`Retry::Safe`], unless the fetch was refused for good ([`Retry::Never`]): whatever became of the fetch, the
/// request it was for did not run.
///
/// A token the platform refuses is forgotten and another one fetched. If that one is refused too, within the cool-down, and was never
/// accepted ([`TokenSource::accept`]), then the fault is not the token's: it stays, and the refusal is final. So the tokens of
/// a platform that refuses all of them are renewed once per cool-down, and however it answers, at most eight in a row. A token
/// that it wants renewed and still accepts comes back if no other one can be had.
///
/// Each fetch that fails is an event, `WARN` of the target `coze::token`, with the `reason`, whether it is final (`is_final`),
/// and for how many seconds the token that is there still serves (`left_seconds`): until then nobody is locked out.
///
/// ```
/// use std::time::SystemTime;
///
/// use coze_auth::{Bearer, Renewing, Token, lifetime};
/// use coze_core::Error;
///
/// let source = Renewing::new(|| async {
///     let (access_token, expires_in) = ask_the_token_endpoint().await?;
///     Ok(Token::bearer(&access_token)?.with_lifetime(lifetime(expires_in, SystemTime::now())))
/// });
/// let policy = Bearer::new(source);
/// # async fn ask_the_token_endpoint() -> Result<(String, i64), Error> { Ok((String::new(), 0)) }
/// # let _ = policy;
/// ```
pub struct Renewing<F> {
    shared: Arc<Shared<F>>,
    timeout: Duration,
    cooldown: Duration,
}

struct Shared<F> {
    fetch: F,
    /// Read without a lock, written only under that of `state`.
    current: ArcSwapOption<Current>,
    state: Mutex<State>,
    /// The generation that replaced a token that was refused, until it is accepted; else 0.
    doubted: AtomicU64,
    /// Changes with each fetch that begins.
    begun: watch::Sender<()>,
}

struct Current {
    token: Token,
    since: Instant,
    /// From when on it is renewed, and when it expires; `None` if it serves until it is refused.
    ends: Option<(Instant, Instant)>,
    /// How many before it were refused, each within the cool-down of being fetched but the first.
    row: u32,
    /// Somebody took it who did not wait for it.
    is_used: AtomicBool,
}

#[derive(Default)]
struct State {
    generation: u64,
    random: Rng,
    flight: Option<watch::Receiver<Option<Landed>>>,
    failure: Option<Failure>,
    /// That of the next token.
    row: u32,
    /// The token that is to be renewed and is still accepted.
    spare: Option<Arc<Current>>,
}

/// Why there is no token, and until when there is no other fetch.
#[derive(Clone)]
struct Failure {
    error: Arc<Error>,
    until: Instant,
}

/// What all who wait for a fetch are told.
type Landed = Result<Token, Failure>;

impl<F: Refresher> Renewing<F> {
    /// Gets its tokens from `fetch`, which makes one attempt. The generation of a token is set here.
    #[must_use]
    pub fn new(fetch: F) -> Self {
        let (current, state, begun) = (ArcSwapOption::empty(), Mutex::default(), watch::Sender::new(()));
        let shared = Shared { fetch, current, state, doubted: AtomicU64::default(), begun };
        Self { shared: Arc::new(shared), timeout: Duration::from_secs(10), cooldown: Duration::from_secs(1) }
    }

    /// How long a fetch may take; 10 seconds unless set. Then it fails with `token_timeout`, [`Kind::Timeout`](coze_core::Kind::Timeout).
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// How long a failure is final, and the least time a token serves whatever its life; 1 second unless set, a day at most.
    #[must_use]
    pub fn cooldown(self, cooldown: Duration) -> Self {
        Self { cooldown: cooldown.min(MAX_COOLDOWN), ..self }
    }

    /// Makes the random share of the time ahead of an expiry the same in each run, for tests.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.shared.lock().random.seed(seed);
        self
    }
}

impl<F: Refresher> TokenSource for Renewing<F> {
    type Future = Pin<Box<dyn Future<Output = Result<Token, Error>> + Send>>;

    /// # Panics
    /// Outside of a tokio runtime, when a token has to be fetched.
    fn token(&self) -> Decision<Token, Self::Future> {
        let now = Instant::now();
        if let Some(token) = self.shared.fresh(now) {
            return Decision::Now(Ok(token));
        }
        let mut state = self.shared.lock();
        // Asked again: another caller's fetch may have ended in between. From here on nobody writes.
        if let Some(token) = self.shared.fresh(now) {
            return Decision::Now(Ok(token));
        }
        let (flight, launched) = match (&state.flight, &state.failure) {
            (Some(flight), _) => (Ok(flight.clone()), None),
            (None, Some(failure)) if now < failure.until => (Err(failure.clone()), None),
            (None, _) => {
                let (flight, launched) = self.launch(&mut state, now);
                (Ok(flight), Some(launched))
            }
        };
        let valid = self.shared.current.load_full().filter(|current| !current.is_over(now));
        drop(state);
        if let Some(flight) = launched {
            // Not under the lock: a runtime that shuts down drops the task at once, and that takes the lock.
            tokio::spawn(keep(flight));
        }
        match (valid, flight) {
            (Some(current), _) => Decision::Now(Ok(current.token.clone())),
            (None, Ok(flight)) => Decision::Later(Box::pin(landing(flight))),
            (None, Err(failure)) => Decision::Now(Err(failure.told(now))),
        }
    }

    fn reject(&self, generation: u64) -> Option<Retry> {
        let mut state = self.shared.lock();
        state.spare.take_if(|spare| spare.token.generation() == generation);
        let is_doubted = self.shared.doubted.load(Ordering::Relaxed) == generation;
        match self.forget(&mut state, generation, if is_doubted { 1 } else { MAX_ROW }, Instant::now()) {
            Forgotten::Now(_) | Forgotten::Before => Some(Retry::Safe),
            Forgotten::Not => None,
        }
    }

    fn renew(&self, generation: u64) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        if state.failure.as_ref().is_none_or(|failure| failure.until <= now)
            && let Forgotten::Now(spare) = self.forget(&mut state, generation, 1, now)
        {
            state.spare = Some(spare);
        }
    }

    fn accept(&self, generation: u64) {
        let doubted = &self.shared.doubted;
        if doubted.load(Ordering::Relaxed) == generation {
            // Another one may be doubted by now.
            let _ = doubted.compare_exchange(generation, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// Whether a token is no longer the current one.
enum Forgotten {
    Now(Arc<Current>),
    Before,
    /// It is as good as any that could be had.
    Not,
}

impl<F> Renewing<F> {
    /// Lets the token of this generation be the current one no longer, unless it is the last of `most` in a row.
    fn forget(&self, state: &mut State, generation: u64, most: u32, now: Instant) -> Forgotten {
        let current = self.shared.current.load_full().filter(|current| current.token.generation() == generation);
        let Some(current) = current else { return Forgotten::Before };
        let row = if now.duration_since(current.since) < self.cooldown { current.row } else { 0 };
        if row >= most {
            return Forgotten::Not;
        }
        state.row = row + 1;
        self.shared.current.store(None);
        Forgotten::Now(current)
    }

    /// A fetch that everybody who comes from now on waits for. It is up to the caller to run it.
    fn launch(&self, state: &mut State, now: Instant) -> (watch::Receiver<Option<Landed>>, Flight<F>) {
        let (landed, flight) = watch::channel(None);
        state.flight = Some(flight.clone());
        self.shared.begun.send_replace(());
        let Self { shared, timeout, cooldown } = self.clone();
        (flight, Flight { shared, timeout, cooldown, asked: now, landed, outcome: None })
    }

    /// A fetch in the background, if the token of this generation is still the current one, serves, and is used.
    fn renewal(&self, generation: u64) -> Option<Flight<F>> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let current = self.shared.current.load_full()?;
        let is_wanted = current.token.generation() == generation
            && current.is_used.load(Ordering::Relaxed)
            && !current.is_over(now)
            && state.flight.is_none();
        is_wanted.then(|| self.launch(&mut state, now).1)
    }
}

impl<F> Clone for Renewing<F> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), timeout: self.timeout, cooldown: self.cooldown }
    }
}

impl<F> fmt::Debug for Renewing<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing")
            .field("timeout", &self.timeout)
            .field("cooldown", &self.cooldown)
            .finish_non_exhaustive()
    }
}

impl<F> Shared<F> {
    /// The current token, unless it is to be renewed.
    fn fresh(&self, now: Instant) -> Option<Token> {
        let current = self.current.load();
        let current = current.as_ref()?;
        current.mark_used();
        current.ends.is_none_or(|(due, _)| now < due).then(|| current.token.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding the state")
    }
}

impl Current {
    fn is_over(&self, now: Instant) -> bool {
        self.ends.is_some_and(|(_, end)| now >= end)
    }

    /// Written once only, so that readers on many cores do not take the line from each other.
    fn mark_used(&self) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
    }
}

async fn landing(mut flight: watch::Receiver<Option<Landed>>) -> Result<Token, Error> {
    let landed = flight.wait_for(Option::is_some).await.expect("a flight lands before it ends");
    match landed.as_ref().expect("just waited for") {
        Ok(token) => Ok(token.clone()),
        Err(failure) => Err(failure.told(Instant::now())),
    }
}

impl Failure {
    /// As a caller is told who has nothing to do with it: after which time there is another try.
    fn told(&self, now: Instant) -> Error {
        let told = copy(&self.error).with_source(self.error.clone());
        match self.error.retry() {
            Retry::Never => told,
            _ => told.with_retry(Retry::Safe).with_retry_after(self.until.saturating_duration_since(now)),
        }
    }
}
