use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use coze_core::{Error, Kind};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{AGE, CACHE_CONTROL, ETAG},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// The shortest and the longest time between two fetches that nobody asked for.
const PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(24 * 60 * 60));

/// A key set as it was found where the issuer publishes it.
#[derive(Clone, Debug)]
pub struct FetchedKeys {
    /// `None` if it is the same as before.
    pub(super) json: Option<Bytes>,
    etag: Option<HeaderValue>,
    max_age: Option<Duration>,
}

impl FetchedKeys {
    /// A key set (RFC 7517 §5), such as from a file.
    #[must_use]
    pub fn new(json: impl Into<Bytes>) -> Self {
        Self { json: Some(json.into()), etag: None, max_age: None }
    }

    /// A key set as the answer to a request that had the `ETag` of last time in `If-None-Match`: 200, or 304 without a body.
    /// Takes `ETag` from the headers, and `max-age` from `Cache-Control`, less the `Age` that a cache on the way says.
    ///
    /// # Errors
    /// `keys_unavailable`, [`Kind::Unavailable`]: another status.
    pub fn answered(status: StatusCode, headers: &HeaderMap, body: impl Into<Bytes>) -> Result<Self, Error> {
        let json = match status {
            StatusCode::OK => Some(body.into()),
            StatusCode::NOT_MODIFIED => None,
            _ => return Err(unavailable().with_source(format!("the status of the key set is {}", status.as_u16()))),
        };
        Ok(Self { json, etag: headers.get(ETAG).cloned(), max_age: max_age(headers) })
    }
}

/// How long an answer is fresh from now on, as `Cache-Control` says it (RFC 9111 §5.2.2): with `no-store` or `no-cache` not at all.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let ages = directives.flat_map(|value| value.split(',')).map(str::trim).filter_map(|directive| {
        if directive.eq_ignore_ascii_case("no-store") || directive.eq_ignore_ascii_case("no-cache") {
            return Some(0);
        }
        let (name, seconds) = directive.split_once('=')?;
        name.eq_ignore_ascii_case("max-age").then(|| delta(seconds.trim_matches('"')))?
    });
    let age = headers.get(AGE).and_then(|age| delta(age.to_str().ok()?)).unwrap_or(0);
    ages.min().map(|max| Duration::from_secs(max.saturating_sub(age)))
}

/// A number of seconds. One that is too large is the largest one (RFC 9111 §1.2.2).
fn delta(seconds: &str) -> Option<u64> {
    let is_number = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| seconds.parse().unwrap_or(u64::MAX))
}

type Fetching = Pin<Box<dyn Future<Output = Result<FetchedKeys, Error>> + Send>>;

/// How to get an issuer's keys, and how often. One fetch is under way at a time, in a task that lives as long as the keys.
///
/// They are fetched when the first token comes, and again after the `max-age` of the answer (30 seconds to a day), or else the
/// interval, each time up to a tenth earlier by chance, so that many nodes do not come at once. While a fetch fails the keys
/// there are stay valid, and the next tries come after twice the pause of the last one, from 30 seconds up to the interval.
///
/// ```
/// use bytes::Bytes;
/// use coze_auth::{FetchedKeys, Issuer, JwtKeys, KeyFetch};
/// use coze_core::Error;
/// use http_body_util::Full;
/// use hyper_util::client::legacy::{Client, connect::Connect};
/// # use http::Response;
///
/// // Any HTTP client that is a Tower service: here hyper's, over a connector that knows TLS.
/// fn issuer<C: Connect + Clone + Send + Sync + 'static>(client: Client<C, Full<Bytes>>) -> Result<Issuer, Error> {
///     let keys = JwtKeys::fetched(KeyFetch::url("https://issuer.example/jwks", client)?);
///     Ok(Issuer::new("https://issuer.example", keys))
/// }
///
/// let from_a_file = JwtKeys::fetched(KeyFetch::file("/etc/keys.json"));
///
/// // And any other way: one GET, with `If-None-Match` if there is an etag, over TLS, with a cap on the body.
/// let another_way = JwtKeys::fetched(KeyFetch::new(|etag| async move {
///     let (head, body) = get("https://issuer.example/jwks", etag).await?.into_parts();
///     FetchedKeys::answered(head.status, &head.headers, body)
/// }));
/// # async fn get(_: &str, _: Option<http::HeaderValue>) -> Result<Response<Bytes>, Error> {
/// #     Ok(Response::default())
/// # }
/// # let _ = (from_a_file, another_way);
/// ```
#[derive(Clone)]
pub struct KeyFetch {
    fetch: Arc<dyn Fn(Option<HeaderValue>) -> Fetching + Send + Sync>,
    interval: Duration,
    cooldown: Duration,
    timeout: Duration,
}

impl KeyFetch {
    /// Gets keys from `fetch`, which makes one attempt, and is given the `ETag` of the key set we have.
    #[must_use]
    pub fn new<F, R>(fetch: F) -> Self
    where
        F: Fn(Option<HeaderValue>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<FetchedKeys, Error>> + Send + 'static,
    {
        Self {
            fetch: Arc::new(move |etag| Box::pin(fetch(etag))),
            interval: Duration::from_secs(15 * 60),
            cooldown: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
        }
    }

    /// The time between two fetches where the answer does not tell it, 30 seconds to a day; 15 minutes unless set.
    #[must_use]
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// The least time between two fetches because of tokens whose key we do not know; 10 seconds unless set. The first such
    /// fetch does not wait for it, however short ago the regular one was.
    #[must_use]
    pub fn cooldown(self, cooldown: Duration) -> Self {
        Self { cooldown, ..self }
    }

    /// How long a fetch may take, and so a request whose token has an unknown key; 10 seconds unless set.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The time until the next fetch, after so many failures in a row; `random` is 0 to 1.
    fn pause(&self, max_age: Option<Duration>, failures: u32, random: f64) -> Duration {
        let pause = match failures {
            0 => max_age.unwrap_or(self.interval),
            _ => PAUSE.0.saturating_mul(1 << (failures - 1).min(16)).min(self.interval),
        };
        pause.clamp(PAUSE.0, PAUSE.1).mul_f64(1.0 - random / 10.0)
    }

    async fn once(&self, etag: Option<HeaderValue>) -> Result<FetchedKeys, Error> {
        // A task of its own, so that a panic ends no more than this fetch.
        let fetch = tokio::spawn((self.fetch)(etag));
        let abort = fetch.abort_handle();
        match timeout(self.timeout, fetch).await {
            Ok(Ok(fetched)) => fetched,
            Ok(Err(error)) => Err(unavailable().with_source(error)),
            Err(_) => {
                abort.abort();
                Err(unavailable().with_source(format!("they did not come within {:?}", self.timeout)))
            }
        }
    }
}

impl fmt::Debug for KeyFetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFetch")
            .field("interval", &self.interval)
            .field("cooldown", &self.cooldown)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// The fetches that are over, and why the last one failed.
#[derive(Debug, Default)]
struct Rounds {
    over: u64,
    failure: Option<Arc<Error>>,
}

/// What asks for fetches. The task that makes them ends with it.
pub(super) struct Remote {
    fetch: KeyFetch,
    rounds: watch::Receiver<Rounds>,
    /// Counts what was asked for.
    wishes: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the task needs, until it is started by the first token.
    idle: Option<(watch::Sender<Rounds>, watch::Receiver<u64>)>,
    last_wish: Option<Instant>,
    /// The wish is fulfilled when so many rounds are over.
    due: u64,
}

impl Remote {
    pub(super) fn new(fetch: KeyFetch) -> Self {
        let (done, rounds) = watch::channel(Rounds::default());
        let (wishes, wished) = watch::channel(0);
        let state = State { idle: Some((done, wished)), ..State::default() };
        Self { fetch, rounds, wishes, state: Mutex::new(state) }
    }

    /// What to wait for where a key is unknown: the fetch that is under way, or one that is begun for it. `None` within the
    /// cool-down. The keys found are handed to `take`, which says if they can be used, as long as there is somebody to take them.
    pub(super) fn wish<T>(&self, take: T) -> Option<impl Future<Output = ()> + Send + use<T>>
    where
        T: FnMut(&[u8]) -> Option<Result<(), Error>> + Send + 'static,
    {
        let now = Instant::now();
        let mut state = self.state.lock().expect("nobody panics while holding the state");
        let over = self.rounds.borrow().over;
        let start = state.idle.take();
        if start.is_some() {
            state.due = 1;
        } else if over >= state.due {
            if state.last_wish.is_some_and(|last| now.duration_since(last) < self.fetch.cooldown) {
                return None;
            }
            state.last_wish = Some(now);
            state.due = over + 1;
            self.wishes.send_modify(|wishes| *wishes += 1);
        }
        let (due, mut rounds) = (state.due, self.rounds.clone());
        drop(state);
        if let Some((done, wished)) = start {
            // Not under the lock: a runtime that shuts down drops the task at once.
            tokio::spawn(keep(self.fetch.clone(), done, wished, take));
        }
        Some(async move {
            // An error says that the task ended with its runtime: then nobody comes any more.
            let _ = rounds.wait_for(|rounds| rounds.over >= due).await;
        })
    }

    /// Why a key is not there.
    pub(super) fn absent(&self) -> Option<Error> {
        let absent = || unavailable().with_retry_after(self.fetch.cooldown);
        let rounds = self.rounds.borrow();
        match &rounds.failure {
            Some(error) => Some(absent().with_source(error.clone())),
            None => (rounds.over == 0).then(absent),
        }
    }
}

/// Fetches until nobody is left to ask for it.
async fn keep(
    fetch: KeyFetch,
    done: watch::Sender<Rounds>,
    mut wished: watch::Receiver<u64>,
    mut take: impl FnMut(&[u8]) -> Option<Result<(), Error>>,
) {
    let (mut failures, mut etag, mut last) = (0_u32, None, None);
    loop {
        let fetched = fetch.once(etag.clone()).await;
        let mut max_age = None;
        let outcome = fetched.and_then(|fetched| {
            max_age = fetched.max_age;
            match fetched.json {
                // Keys that did not change do not make anybody forget what they verified.
                Some(json) if last.as_ref() != Some(&json) => {
                    let Some(taken) = take(&json) else { return Ok(false) };
                    taken?;
                    (last, etag) = (Some(json), fetched.etag);
                }
                Some(_) => etag = fetched.etag,
                None if last.is_none() => return Err(unavailable()),
                None => {}
            }
            Ok(true)
        });
        let failure = match outcome {
            Ok(false) => return,
            Ok(true) => None,
            Err(error) => Some(Arc::new(error)),
        };
        failures = if failure.is_some() { failures.saturating_add(1) } else { 0 };
        done.send_modify(|rounds| *rounds = Rounds { over: rounds.over + 1, failure });
        tokio::select! {
            wish = wished.changed() => if wish.is_err() { return },
            () = sleep(fetch.pause(max_age, failures, fastrand::f64())) => {}
        }
    }
}

pub(super) fn unavailable() -> Error {
    Error::new(Kind::Unavailable, "keys_unavailable")
        .with_message("the keys of the token's issuer cannot be had now")
        .with_retry(coze_core::Retry::Safe)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fetch() -> KeyFetch {
        KeyFetch::new(|_| async { Ok(FetchedKeys::new("")) })
    }

    #[test]
    fn the_pause_is_what_the_answer_says_between_30_seconds_and_a_day() {
        let seconds = |age: u64| fetch().pause(Some(Duration::from_secs(age)), 0, 0.0).as_secs();
        assert_eq!([0, 29, 30, 600, 86_400, u64::MAX].map(seconds), [30, 30, 30, 600, 86_400, 86_400]);
        assert_eq!(fetch().pause(None, 0, 0.0).as_secs(), 900);
        assert_eq!(fetch().pause(None, 0, 1.0).as_secs(), 810);
    }

    #[test]
    fn the_pause_after_failures_doubles_up_to_the_interval() {
        let pause = |failures| fetch().pause(Some(Duration::ZERO), failures, 0.0).as_secs();
        assert_eq!([1, 2, 3, 5, 6, 7, u32::MAX].map(pause), [30, 60, 120, 480, 900, 900, 900]);
    }

    #[test]
    fn cache_control_is_read_as_it_is_written() {
        let age = |value: &'static str| {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_static(value))]);
            max_age(&headers).map(|age| age.as_secs())
        };
        assert_eq!(age("public, max-age=3600, must-revalidate"), Some(3600));
        assert_eq!(age("Max-Age=\"60\""), Some(60));
        assert_eq!(age("max-age=60, no-cache"), Some(0));
        assert_eq!(age("no-store"), Some(0));
        for none in ["", "max-age", "max-age=", "max-age=-1", "max-age=+1", "max-age=1.5", "max-age=x", "s-maxage=5"] {
            assert_eq!(age(none), None, "{none}");
        }
        assert_eq!(age("max-age=99999999999999999999999"), Some(u64::MAX), "as RFC 9111 §1.2.2 wants it");
        assert_eq!(age("max-age=60, max-age=50"), Some(50));
    }

    #[test]
    fn how_long_a_cache_kept_an_answer_counts() {
        let left = |age: &'static str| {
            let headers = [(CACHE_CONTROL, "max-age=600"), (AGE, age)];
            let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
            max_age(&HeaderMap::from_iter(headers)).map(|age| age.as_secs())
        };
        assert_eq!(["0", "100", "600", "601", "99999999999999999999"].map(left), [600, 500, 0, 0, 0].map(Some));
        assert_eq!(["", "-5", "x"].map(left), [600; 3].map(Some), "one that is none says nothing");
    }

    proptest! {
        #[test]
        fn a_pause_is_never_shorter_than_27_seconds_nor_longer_than_a_day(
            interval: u32, age: Option<u64>, failures: u32, random in 0.0..=1.0,
        ) {
            let fetch = fetch().interval(Duration::from_secs(interval.into()));
            let pause = fetch.pause(age.map(Duration::from_secs), failures, random);
            prop_assert!((Duration::from_secs(27)..=PAUSE.1).contains(&pause), "{pause:?}");
        }
    }
}
