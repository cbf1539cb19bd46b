use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use coze_core::{Error, Kind, Retry};
use fastrand::Rng;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::{Decision, Refresher, Token, TokenSource, bearer::copy};

/// The longest time before its expiry that a token is renewed.
const MAX_MARGIN: Duration = Duration::from_secs(60);

/// Tokens that a closure fetches: one fetch at a time, however many callers want a token. Clones share the token.
///
/// A token is fetched when there is none, and again ahead of its expiry: a minute, or a tenth of its life if that is less,
/// of which up to a half is left out at random, so that many processes do not come at once. Until it expires it still serves,
/// so nobody waits for that. It is renewed when it is due, whether a caller comes at that time or not, if anybody took it since
/// it was fetched; what nobody uses is left to expire. The fetch is a task of its own: a caller who goes away does not end
/// it. If it fails, all who wait for it get the error, and for the time of [`Renewing::cooldown`] whoever has no valid token
/// gets it at once. Such an error says [`Retry::Safe`], unless the fetch was refused for good ([`Retry::Never`]): whatever
/// became of the fetch, the request it was for did not run.
///
/// A token the platform refuses is forgotten and another one fetched. If that one is refused too, within the cool-down, then
/// the fault is not the token's: it stays, and the refusal is final. So however the platform answers, the tokens it refuses
/// are renewed at most once per cool-down.
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
}

struct Current {
    token: Token,
    since: Instant,
    /// From when on it is renewed, and when it expires; `None` if it serves until it is refused.
    ends: Option<(Instant, Instant)>,
    /// It replaced a token that the platform refused.
    is_second: bool,
    /// Somebody took it who did not wait for it.
    is_used: AtomicBool,
}

#[derive(Default)]
struct State {
    generation: u64,
    random: Rng,
    flight: Option<watch::Receiver<Option<Landed>>>,
    failure: Option<(Arc<Error>, Instant)>,
    was_refused: bool,
}

/// What all who wait for a fetch are told.
type Landed = Result<Token, Arc<Error>>;

impl<F: Refresher> Renewing<F> {
    /// Gets its tokens from `fetch`, which makes one attempt. The generation of a token is set here.
    #[must_use]
    pub fn new(fetch: F) -> Self {
        let shared = Shared { fetch, current: ArcSwapOption::empty(), state: Mutex::default() };
        Self { shared: Arc::new(shared), timeout: Duration::from_secs(10), cooldown: Duration::from_secs(1) }
    }

    /// How long a fetch may take; 10 seconds unless set. Then it fails with `token_timeout`, [`Kind::Timeout`].
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// How long a failure is final, and the least time a token serves whatever its life; 1 second unless set.
    #[must_use]
    pub fn cooldown(self, cooldown: Duration) -> Self {
        Self { cooldown, ..self }
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
            (None, Some((error, at))) if now.duration_since(*at) < self.cooldown => (Err((error.clone(), *at)), None),
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
            (None, Ok(flight)) => Decision::Later(Box::pin(landing(flight, self.cooldown))),
            (None, Err((error, at))) => {
                Decision::Now(Err(told(&error, self.cooldown.saturating_sub(now.duration_since(at)))))
            }
        }
    }

    fn reject(&self, generation: u64) -> Option<Retry> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        if let Some(current) = &*self.shared.current.load()
            && current.token.generation() == generation
        {
            if current.is_second && now.duration_since(current.since) < self.cooldown {
                return None;
            }
            state.was_refused = true;
            self.shared.current.store(None);
        }
        Some(Retry::Safe)
    }
}

impl<F> Renewing<F> {
    /// A fetch that everybody who comes from now on waits for. It is up to the caller to run it.
    fn launch(&self, state: &mut State, now: Instant) -> (watch::Receiver<Option<Landed>>, Flight<F>) {
        let (landed, flight) = watch::channel(None);
        state.flight = Some(flight.clone());
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

/// Flies, and again whenever the token is due, as long as it is used and somebody holds the source.
async fn keep<F: Refresher>(mut flight: Flight<F>) {
    loop {
        let (weak, timeout, cooldown) = (Arc::downgrade(&flight.shared), flight.timeout, flight.cooldown);
        let failed = flight.run().await;
        let Some(shared) = weak.upgrade() else { return };
        let Some(current) = shared.current.load_full() else { return };
        let next = match (failed, current.ends) {
            (_, None) | (Some((Retry::Never, _)), _) => return,
            (None, Some((due, _))) => due,
            (Some((_, wait)), _) => Instant::now() + wait.unwrap_or_default().max(cooldown).min(MAX_MARGIN),
        };
        let generation = current.token.generation();
        // Nothing is held in the meantime: neither the source nor its token.
        drop((current, shared));
        sleep_until(next).await;
        let Some(shared) = weak.upgrade() else { return };
        match (Renewing { shared, timeout, cooldown }).renewal(generation) {
            Some(next) => flight = next,
            None => return,
        }
    }
}

/// A fetch that is under way. It lands when it is dropped, so also when the closure panics or the runtime ends.
struct Flight<F> {
    shared: Arc<Shared<F>>,
    timeout: Duration,
    cooldown: Duration,
    asked: Instant,
    landed: watch::Sender<Option<Landed>>,
    outcome: Option<Result<Token, Error>>,
}

impl<F> Flight<F> {
    /// Nothing, or what the failure says about another try.
    async fn run(mut self) -> Option<(Retry, Option<Duration>)>
    where
        F: Refresher,
    {
        let fetch = timeout(self.timeout, self.shared.fetch.refresh());
        self.outcome = Some(fetch.await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Timeout, "token_timeout")
                .with_message(format!("no access token was given within {:?}", self.timeout)))
        }));
        let failure = self.outcome.as_ref().and_then(|outcome| outcome.as_ref().err());
        failure.map(|error| (error.retry(), error.retry_after()))
    }

    /// Says that there is no new token, and how long the old one lasts.
    fn warn(&self, error: &Error, now: Instant) {
        let current = self.shared.current.load();
        // Zero where there is none; one without an end lasts until it is refused, and then it is gone.
        let left = current.as_ref().and_then(|current| Some(current.ends?.1.saturating_duration_since(now)));
        tracing::warn!(
            target: "coze::token",
            reason = error.reason(),
            is_final = error.retry() == Retry::Never,
            left_seconds = left.unwrap_or_default().as_secs(),
            "no new access token: {error}"
        );
    }

    /// From when on a token that landed now is renewed, and when it expires; `None` if that is beyond all time.
    fn ends(&self, token: &Token, now: Instant, random: f64) -> Option<(Instant, Instant)> {
        let life = token.lifetime()?;
        // A token that seems to be over, as where our clock is wrong, serves for the cool-down: it may well be accepted.
        let end = self.asked.checked_add(life)?.max(now.checked_add(self.cooldown)?);
        Some((end - (life / 10).min(MAX_MARGIN).mul_f64(1.0 - random / 2.0), end))
    }
}

impl<F> Drop for Flight<F> {
    fn drop(&mut self) {
        let now = Instant::now();
        let outcome = self.outcome.take().unwrap_or_else(|| {
            Err(Error::new(Kind::Internal, "token_fetch_ended").with_message("the fetch of an access token broke off"))
        });
        if let Err(error) = &outcome {
            self.warn(error, now);
        }
        let mut state = self.shared.lock();
        state.flight = None;
        let landed = match outcome {
            Ok(token) => {
                state.generation += 1;
                let token = token.with_generation(state.generation);
                let random = state.random.f64();
                let (ends, is_second) = (self.ends(&token, now, random), mem::take(&mut state.was_refused));
                let current = Current { token: token.clone(), since: now, ends, is_second, is_used: false.into() };
                self.shared.current.store(Some(Arc::new(current)));
                Ok(token)
            }
            Err(error) => {
                let error = Arc::new(error);
                state.failure = Some((error.clone(), now));
                Err(error)
            }
        };
        drop(state);
        self.landed.send_replace(Some(landed));
    }
}

async fn landing(mut flight: watch::Receiver<Option<Landed>>, cooldown: Duration) -> Result<Token, Error> {
    let landed = flight.wait_for(Option::is_some).await.expect("a flight lands before it ends");
    match landed.as_ref().expect("just waited for") {
        Ok(token) => Ok(token.clone()),
        Err(error) => Err(told(error, cooldown)),
    }
}

/// The failure of a fetch as a caller is told who has nothing to do with it. There is no other try before `wait` is over.
fn told(error: &Arc<Error>, wait: Duration) -> Error {
    let told = copy(error).with_source(error.clone());
    match error.retry() {
        Retry::Never => told,
        _ => told.with_retry(Retry::Safe).with_retry_after(error.retry_after().unwrap_or_default().max(wait)),
    }
}
