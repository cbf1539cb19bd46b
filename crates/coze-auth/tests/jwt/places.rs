//! Where keys are got, by a paused clock.

use std::{
    convert::Infallible,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use coze_auth::{Issuer, Jwt, JwtKeys, KeyFetch};
use coze_core::{BoxError, Error};
use http::{Request, Response};
use http_body_util::Full;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tower::service_fn;

use crate::{
    fetched::{set, signed},
    support::{Script, Step},
    token::{ISSUER, ask, bearing, jwt, verdict},
};

const URL: &str = "https://issuer.example/keys";

fn policy(fetch: KeyFetch) -> Jwt {
    jwt(Issuer::new(ISSUER, JwtKeys::fetched(fetch)))
}

/// A policy whose keys are in such a body.
fn answered(body: impl Fn() -> Script + Clone + Send + Sync + 'static) -> Jwt {
    let transport = service_fn(move |_: Request<Full<Bytes>>| {
        let answer = Response::new(body());
        async { Ok::<_, Infallible>(answer) }
    });
    policy(KeyFetch::url(URL, transport).expect("https"))
}

/// A good key set of so many bytes.
fn sized(bytes: usize) -> String {
    let set = set(&["k1"]);
    format!("{set}{}", " ".repeat(bytes - set.len()))
}

#[tokio::test]
async fn a_key_set_has_at_most_256_kib_and_no_more_is_read() {
    let all = answered(move || Script::framed(sized(256 * 1024).as_bytes(), 4096));
    assert_eq!(verdict(&all, signed("k1")).await, "ok");
    let polled = Arc::new(AtomicUsize::new(0));
    let counter = polled.clone();
    let more = answered(move || {
        let mut script = Script::framed(sized(1 << 20).as_bytes(), 4096);
        script.polled = counter.clone();
        script
    });
    assert_eq!(verdict(&more, signed("k1")).await, "keys_unavailable");
    assert_eq!(polled.load(Ordering::Relaxed), 65);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_hangs_is_given_up_after_the_timeout() {
    let silent = service_fn(|_: Request<Full<Bytes>>| std::future::pending::<Result<Response<Script>, Infallible>>());
    let silent = policy(KeyFetch::url(URL, silent).expect("https"));
    let half = answered(|| Script::new([Step::Data("{".into()), Step::Wait(Duration::from_secs(3600))]));
    for policy in [silent, half] {
        let start = Instant::now();
        let error = ask(&policy, bearing(signed("k1"))).await.0.expect_err("no keys");
        assert_eq!((error.reason(), start.elapsed()), ("keys_unavailable", Duration::from_secs(10)));
        assert!(chain(&error).contains("did not come within 10s"), "{}", chain(&error));
    }
}

/// What a broken, or a hostile, server sends.
fn faults() -> Vec<Response<Script>> {
    let good = set(&["k1", "k2"]);
    let answer = |status: u16, body: Script| {
        let answer = Response::builder().status(status).header("location", "/elsewhere").header("etag", "\"x\"");
        answer.body(body).expect("an answer")
    };
    let whole = |text: &str| Script::framed(text.as_bytes(), 64);
    let half = || Step::Data(Bytes::copy_from_slice(&good.as_bytes()[..100]));
    let keys = good.strip_prefix(r#"{"keys":"#).and_then(|keys| keys.strip_suffix('}')).expect("keys");
    let statuses = [201, 203, 204, 206, 300, 301, 302, 303, 307, 308, 400, 401, 404, 429, 500, 503];
    let texts = [
        "",
        " ",
        "<!doctype html><html>sign in</html>",
        "\u{1f}\u{8b}\u{8}\0\0",
        "\u{feff}{\"keys\":[]}",
        "null",
        "{}",
        keys,
        r#"{"keys":null}"#,
        r#"{"keys":{}}"#,
        r#"{"keys":"x"}"#,
        r#"{"keys":[]}"#,
        r#"{"keys":[null,5,"x",[],{}]}"#,
        r#"{"keys":[{"kty":"RSA","use":"enc"}]}"#,
        &format!(r#"{{"Keys":{keys}}}"#),
        &format!(r#"{{"keys":[],"keys":{keys}}}"#),
        &format!("{good}{good}"),
        &good[..good.len() - 1],
        &"[".repeat(100_000),
    ];
    let broken = Script::new([half(), Step::Fail]);
    let endless = Script::new(vec![Step::Data(Bytes::from(vec![b' '; 64 * 1024])); 64]);
    let mut faults: Vec<_> = statuses.iter().map(|status| answer(*status, whole(&good))).collect();
    faults.extend(texts.iter().map(|text| answer(200, whole(text))));
    faults.extend([answer(200, broken), answer(200, endless)]);
    faults
}

#[tokio::test]
async fn what_is_no_key_set_changes_nothing_whoever_sends_it() {
    for number in 0..faults().len() {
        // At the start, and when there are keys.
        for at in [0, 1] {
            let asked = AtomicUsize::new(0);
            let transport = service_fn({
                let asked = Arc::new(asked);
                move |_: Request<Full<Bytes>>| {
                    let answer = match asked.fetch_add(1, Ordering::Relaxed) == at {
                        true => faults().swap_remove(number),
                        false => Response::new(Script::framed(set(&["k1"]).as_bytes(), 64)),
                    };
                    async { Ok::<_, Infallible>(answer) }
                }
            });
            let policy = policy(KeyFetch::url(URL, transport).expect("https")).cache(0);
            if at == 1 {
                assert_eq!(verdict(&policy, signed("k1")).await, "ok");
            }
            assert_eq!(verdict(&policy, signed("k2")).await, "keys_unavailable", "{number} at {at}");
            assert_eq!(verdict(&policy, signed("k1")).await, "ok", "{number} at {at}");
        }
    }
}

#[tokio::test]
async fn a_304_is_no_key_set_before_there_is_one_and_a_key_set_is_one_whatever_its_type() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heads = seen.clone();
    let transport = service_fn(move |request: Request<Full<Bytes>>| {
        let mut heads = heads.lock().expect("not poisoned");
        heads.push(request.headers().clone());
        let (status, body) = match heads.len() {
            2 => (200, Script::framed(set(&["k1"]).as_bytes(), 64)),
            _ => (304, Script::default()),
        };
        let answer = Response::builder().status(status).header("etag", "W/\"1\"").header("content-type", "text/plain");
        let answer = answer.body(body).expect("an answer");
        async { Ok::<_, Infallible>(answer) }
    });
    let policy = policy(KeyFetch::url(URL, transport).expect("https").cooldown(Duration::ZERO)).cache(0);
    assert_eq!(verdict(&policy, signed("k1")).await, "keys_unavailable");
    assert_eq!(verdict(&policy, signed("k1")).await, "ok");
    assert_eq!(verdict(&policy, signed("k2")).await, "unknown_key");
    assert_eq!(verdict(&policy, signed("k1")).await, "ok");
    let heads = seen.lock().expect("not poisoned");
    let tags: Vec<_> = heads.iter().map(|head| head.get("if-none-match").map(|tag| tag.as_bytes())).collect();
    assert_eq!(tags, [None, None, Some(&b"W/\"1\""[..])], "a weak one is as good (RFC 9110 §13.1.2)");
    assert!(heads.iter().all(|head| head["accept-encoding"] == "identity"), "nothing is unpacked here");
}

#[tokio::test]
async fn the_log_can_tell_why_there_are_no_keys_and_the_caller_is_not_told() {
    let broken = service_fn(|_: Request<Full<Bytes>>| async {
        Err::<Response<Script>, _>(BoxError::from("the certificate is not trusted"))
    });
    let error = ask(&policy(KeyFetch::url(URL, broken).expect("https")), bearing(signed("k1"))).await.0;
    let error = error.expect_err("no keys");
    assert_eq!(error.message(), "the keys of the token's issuer cannot be had now");
    assert!(chain(&error).ends_with("the certificate is not trusted"), "{}", chain(&error));
}

/// An error and its sources.
fn chain(error: &Error) -> String {
    let sources = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test(start_paused = true)]
async fn while_published_keys_rotate_under_load_no_valid_token_is_refused() {
    let published = Arc::new(Mutex::new(vec!["k0".to_owned()]));
    let body = {
        let published = published.clone();
        move || {
            let names = published.lock().expect("not poisoned").clone();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            Script::new([Step::Wait(Duration::from_millis(100)), Step::Data(set(&names).into())])
        }
    };
    let policy = answered(body);
    let mut callers = JoinSet::new();
    for n in 0..50 {
        let (policy, published) = (policy.clone(), published.clone());
        callers.spawn(async move {
            sleep(Duration::from_millis(7 * n)).await;
            for _ in 0..600 {
                // What the issuer signs with now: its newest key.
                let kid = published.lock().expect("not poisoned").last().expect("a key").clone();
                assert_eq!(verdict(&policy, signed(&kid)).await, "ok", "{kid}");
                sleep(Duration::from_millis(500)).await;
            }
        });
    }
    for n in 1..20 {
        sleep(Duration::from_secs(15)).await;
        // The last one stays as long as its tokens do.
        *published.lock().expect("not poisoned") = vec![format!("k{}", n - 1), format!("k{n}")];
    }
    callers.join_all().await;
    assert_eq!(verdict(&policy, signed("k0")).await, "unknown_key");
}

#[tokio::test(start_paused = true)]
async fn a_file_of_keys_is_read_again_and_what_is_wrong_with_it_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, new) = (folder.path().join("keys.json"), folder.path().join("keys.json.new"));
    let policy = policy(KeyFetch::file(&path));
    assert_eq!(verdict(&policy, signed("k1")).await, "keys_unavailable", "it is not there");

    let replace = |text: &str| {
        fs::write(&new, text).expect("written");
        fs::rename(&new, &path).expect("replaced");
    };
    replace(&set(&["k1"]));
    assert_eq!(verdict(&policy, signed("k1")).await, "ok");
    let looks = Duration::from_secs(31);
    for broken in [&set(&["k2"])[..40], "", &sized(256 * 1024 + 1)] {
        fs::write(&path, broken).expect("written");
        sleep(looks).await;
        assert_eq!(verdict(&policy, signed("k2")).await, "keys_unavailable");
        assert_eq!(verdict(&policy.clone().cache(0), signed("k1")).await, "ok", "the keys stay");
    }
    fs::remove_file(&path).expect("removed");
    sleep(looks).await;
    assert_eq!(verdict(&policy, signed("k1")).await, "ok", "the keys stay");

    replace(&set(&["k2"]));
    sleep(looks).await;
    assert_eq!(verdict(&policy, signed("k1")).await, "unknown_key", "it was read by itself");
    assert_eq!(verdict(&policy, signed("k2")).await, "ok");
}

#[tokio::test]
async fn an_issuer_says_itself_where_its_keys_are() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let policy = |keys: &'static str| {
        let asked = asked.clone();
        let transport = service_fn(move |request: Request<Full<Bytes>>| {
            asked.lock().expect("not poisoned").push(request.uri().to_string());
            let body = match request.uri().path() {
                "/.well-known/openid-configuration" => format!(r#"{{"issuer":"{ISSUER}","jwks_uri":"{keys}"}}"#),
                _ => set(&["k1"]),
            };
            async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body)))) }
        });
        policy(KeyFetch::discovered(ISSUER, transport).expect("https"))
    };
    assert_eq!(verdict(&policy("https://keys.example/1"), signed("k1")).await, "ok");
    let document = format!("{ISSUER}/.well-known/openid-configuration");
    assert_eq!(*asked.lock().expect("not poisoned"), [document.as_str(), "https://keys.example/1"]);
    for bad in ["http://127.0.0.1/keys", "http://keys.example/1", ""] {
        asked.lock().expect("not poisoned").clear();
        assert_eq!(verdict(&policy(bad), signed("k1")).await, "keys_unavailable", "{bad}");
        assert_eq!(*asked.lock().expect("not poisoned"), [document.as_str()], "and nobody else was asked");
    }
}
