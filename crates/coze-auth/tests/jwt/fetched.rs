//! Keys that are fetched, by a paused clock.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use coze_auth::{Algorithm, FetchedKeys, Issuer, Jwt, JwtKeys, KeyFetch};
use coze_core::{Error, Kind, Retry};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::time::{Instant, advance, sleep};

use crate::token::{ISSUER, NOW, SECRET, ask, base64url, bearing, jwt, raw, verdict};

/// Where an issuer publishes its keys.
#[derive(Default)]
struct Endpoint {
    names: Mutex<Vec<&'static str>>,
    /// What it answers instead of its keys.
    failure: Mutex<Option<&'static str>>,
    max_age: Mutex<Option<u64>>,
    asked: AtomicUsize,
    etags: Mutex<Vec<Option<HeaderValue>>>,
}

impl Endpoint {
    fn publish(&self, names: &[&'static str]) {
        *self.names.lock().expect("not poisoned") = names.to_vec();
    }

    fn fail(&self, how: Option<&'static str>) {
        *self.failure.lock().expect("not poisoned") = how;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    async fn answer(self: Arc<Self>, etag: Option<HeaderValue>) -> Result<FetchedKeys, Error> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.etags.lock().expect("not poisoned").push(etag.clone());
        sleep(Duration::from_millis(100)).await;
        let failure = *self.failure.lock().expect("not poisoned");
        match failure {
            Some("panic") => panic!("by the test"),
            Some("hang") => std::future::pending().await,
            Some("nonsense") => return Ok(FetchedKeys::new("<html>")),
            Some("huge") => return Ok(FetchedKeys::new(vec![b' '; 300 * 1024])),
            Some(_) => return FetchedKeys::answered(StatusCode::BAD_GATEWAY, &HeaderMap::new(), ""),
            None => {}
        }
        let names = self.names.lock().expect("not poisoned").clone();
        let json = set(&names);
        let tag = HeaderValue::from_str(&format!("\"{}\"", names.join("-"))).expect("valid");
        let mut headers = HeaderMap::from_iter([(header::ETAG, tag.clone())]);
        if let Some(age) = *self.max_age.lock().expect("not poisoned") {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_str(&format!("max-age={age}")).expect("valid"));
        }
        match etag == Some(tag) {
            true => FetchedKeys::answered(StatusCode::NOT_MODIFIED, &headers, ""),
            false => FetchedKeys::answered(StatusCode::OK, &headers, json),
        }
    }
}

fn setup(names: &[&'static str]) -> (Jwt, Arc<Endpoint>) {
    let endpoint = Arc::new(Endpoint::default());
    endpoint.publish(names);
    let asked = endpoint.clone();
    let keys = JwtKeys::fetched(KeyFetch::new(move |etag| asked.clone().answer(etag)));
    (jwt(Issuer::new(ISSUER, keys)), endpoint)
}

/// A key set of keys of these names.
pub(crate) fn set(names: &[&str]) -> String {
    let key = |name| format!(r#"{{"kty":"oct","alg":"HS256","kid":"{name}","k":"{}"}}"#, base64url(SECRET));
    format!(r#"{{"keys":[{}]}}"#, names.iter().map(key).collect::<Vec<_>>().join(","))
}

/// A token that the key of this name verifies.
pub(crate) fn signed(kid: &str) -> String {
    let claims = format!(r#"{{"iss":"{ISSUER}","sub":"a","exp":{}}}"#, NOW + 3600);
    raw(&format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#), &claims, Algorithm::Hs256)
}

#[tokio::test(start_paused = true)]
async fn nothing_is_fetched_before_the_first_token_and_then_once_for_all_who_wait() {
    let (policy, endpoint) = setup(&["k1"]);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(endpoint.asked(), 0);
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let policy = policy.clone();
            tokio::spawn(async move { ask(&policy, bearing(signed("k1"))).await.0.is_ok() })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.expect("not panicked"));
    }
    assert_eq!(endpoint.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rotation_right_after_the_start_is_found_at_once() {
    let (policy, endpoint) = setup(&["k1"]);
    assert_eq!(verdict(&policy, signed("k1")).await, "ok");
    endpoint.publish(&["k2"]);
    assert_eq!(verdict(&policy, signed("k2")).await, "ok");
    assert_eq!(endpoint.asked(), 2);
    assert_eq!(verdict(&policy, signed("k1")).await, "unknown_key", "also if it was remembered");
}

#[tokio::test(start_paused = true)]
async fn unknown_keys_cause_one_fetch_in_ten_seconds() {
    let (policy, endpoint) = setup(&["k1"]);
    assert_eq!(verdict(&policy, signed("k1")).await, "ok");
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(verdict(&policy, signed("evil")).await, "unknown_key");
    }
    assert_eq!(endpoint.asked(), 2);
    assert_eq!(start.elapsed(), Duration::from_millis(100), "only the first one waited");
    endpoint.publish(&["k1", "k2"]);
    advance(Duration::from_secs(10)).await;
    assert_eq!(verdict(&policy, signed("k2")).await, "ok");
    assert_eq!(endpoint.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn while_the_endpoint_is_down_for_an_hour_known_keys_serve_and_it_is_not_hammered() {
    let (policy, endpoint) = setup(&["k1"]);
    assert_eq!(verdict(&policy, signed("k1")).await, "ok");
    for how in ["502", "nonsense", "panic", "hang", "huge"] {
        endpoint.fail(Some(how));
        let (before, start) = (endpoint.asked(), Instant::now());
        while start.elapsed() < Duration::from_secs(720) {
            assert_eq!(verdict(&policy.clone().cache(0), signed("k1")).await, "ok", "{how}");
            let (answer, _) = ask(&policy, bearing(signed("k2"))).await;
            let error = answer.expect_err("unknown");
            assert_eq!(
                (error.reason(), error.kind(), error.retry()),
                ("keys_unavailable", Kind::Unavailable, Retry::Safe)
            );
            assert_eq!(error.retry_after(), Some(Duration::from_secs(10)));
            sleep(Duration::from_secs(1)).await;
        }
        let fetches = endpoint.asked() - before;
        assert!((20..=90).contains(&fetches), "{how}: {fetches} in 12 minutes");
    }
    endpoint.fail(None);
    endpoint.publish(&["k2"]);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(verdict(&policy, signed("k2")).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_down_at_the_start_is_asked_again() {
    let (policy, endpoint) = setup(&["k1"]);
    endpoint.fail(Some("502"));
    assert_eq!(verdict(&policy, signed("k1")).await, "keys_unavailable");
    assert_eq!(verdict(&policy, signed("k1")).await, "keys_unavailable");
    assert_eq!(endpoint.asked(), 2, "the second one is the first that was asked for");
    assert_eq!(verdict(&policy, signed("k1")).await, "keys_unavailable");
    assert_eq!(endpoint.asked(), 2);
    endpoint.fail(None);
    advance(Duration::from_secs(10)).await;
    assert_eq!(verdict(&policy, signed("k1")).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_again_after_the_interval_or_max_age_with_the_etag_of_last_time() {
    let (policy, endpoint) = setup(&["k1"]);
    assert_eq!(verdict(&policy, signed("k1")).await, "ok");
    sleep(Duration::from_secs(901)).await;
    assert_eq!(endpoint.asked(), 2);
    let first = Some(HeaderValue::from_static("\"k1\""));
    assert_eq!(*endpoint.etags.lock().expect("not poisoned"), [None, first.clone()]);
    *endpoint.max_age.lock().expect("not poisoned") = Some(60);
    endpoint.publish(&["k2"]);
    sleep(Duration::from_secs(901)).await;
    let asked = endpoint.asked();
    assert!((3..=6).contains(&asked), "{asked}");
    sleep(Duration::from_secs(600)).await;
    assert!((10..=12).contains(&(endpoint.asked() - asked)), "{}", endpoint.asked() - asked);
    assert_eq!(endpoint.etags.lock().expect("not poisoned").last(), Some(&Some(HeaderValue::from_static("\"k2\""))));
    assert_eq!(verdict(&policy, signed("k1")).await, "unknown_key");
}

/// A key set of one key without a name.
fn nameless(secret: &[u8]) -> String {
    format!(r#"{{"keys":[{{"kty":"oct","k":"{}"}}]}}"#, base64url(secret))
}

#[tokio::test(start_paused = true)]
async fn keys_without_a_name_rotate_too_and_forged_tokens_cause_one_fetch_in_ten_seconds() {
    let (published, asked) = (Arc::new(Mutex::new(nameless(&[8; 32]))), Arc::new(AtomicUsize::new(0)));
    let (of_task, counter) = (published.clone(), asked.clone());
    let keys = JwtKeys::fetched(KeyFetch::new(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        let json = of_task.lock().expect("not poisoned").clone();
        async {
            FetchedKeys::answered(
                if json.is_empty() { StatusCode::BAD_GATEWAY } else { StatusCode::OK },
                &HeaderMap::new(),
                json,
            )
        }
    }));
    let policy = jwt(Issuer::new(ISSUER, keys));
    let publish = |set: String| *published.lock().expect("not poisoned") = set;
    let count = || asked.load(Ordering::Relaxed);
    assert_eq!((verdict(&policy, crate::token::valid()).await, count()), ("signature_invalid", 1), "just fetched");

    publish(nameless(SECRET));
    assert_eq!((verdict(&policy, crate::token::valid()).await, count()), ("ok", 2));
    assert_eq!(verdict(&policy, signed("any name")).await, "ok");
    publish(nameless(&[9; 64]));
    for _ in 0..100 {
        let unsigned = raw(r#"{"alg":"none"}"#, "{}", Algorithm::Hs256);
        assert_ne!(verdict(&policy, unsigned).await, "ok");
        let forged = raw(r#"{"alg":"HS256"}"#, &format!(r#"{{"iss":"{ISSUER}"}}"#), Algorithm::Hs384);
        assert_eq!(verdict(&policy, forged).await, "signature_invalid");
    }
    assert_eq!(count(), 2, "within the cool-down");
    publish(String::new());
    advance(Duration::from_secs(10)).await;
    let other = raw(r#"{"alg":"HS256"}"#, &format!(r#"{{"iss":"{ISSUER}"}}"#), Algorithm::Hs384);
    assert_eq!((verdict(&policy, other).await, count()), ("signature_invalid", 3), "also while there are no others");
    assert_eq!(verdict(&policy.cache(0), crate::token::valid()).await, "ok", "and the keys stay");
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_does_not_end_the_fetch() {
    let (policy, endpoint) = setup(&["k1"]);
    let token = signed("k1");
    tokio::select! {
        biased;
        _ = ask(&policy, bearing(&token)) => panic!("the fetch takes longer"),
        () = sleep(Duration::from_millis(50)) => {}
    }
    sleep(Duration::from_millis(60)).await;
    let start = Instant::now();
    assert_eq!(verdict(&policy, &token).await, "ok");
    assert_eq!((start.elapsed(), endpoint.asked()), (Duration::ZERO, 1));
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_keys() {
    let (policy, endpoint) = setup(&["k1"]);
    assert_eq!(verdict(&policy, signed("k1")).await, "ok");
    assert!(Arc::strong_count(&endpoint) > 1);
    drop(policy);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(Arc::strong_count(&endpoint), 1);
    sleep(Duration::from_secs(7200)).await;
    assert_eq!(endpoint.asked(), 1);
}
