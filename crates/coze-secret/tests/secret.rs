//! Handles, versions and watches, apart from any source.

use std::{sync::Arc, time::Duration};

use coze_core::{Error, Kind, Retry};
use coze_secret::{Health, Rotor, Secret, SecretBytes, Versions, Watch};
use tokio::time::timeout;

fn texts(secret: &Secret) -> Vec<String> {
    secret.read(|v| v.iter().map(|value| value.expose_str().expect("text").to_owned()).collect())
}

fn failure() -> Error {
    Error::new(Kind::Unavailable, "source_down")
}

#[tokio::test]
async fn a_rotation_keeps_the_previous_version_and_no_more() {
    let (mut rotor, secret) = Secret::rotating("test", SecretBytes::new("1"));
    let clone = secret.clone();
    assert_eq!(texts(&secret), ["1"]);
    rotor.publish(SecretBytes::new("2"));
    assert_eq!(texts(&secret), ["2", "1"]);
    rotor.publish(SecretBytes::new("3"));
    assert_eq!(texts(&clone), ["3", "2"], "clones share the versions");
    rotor.retire();
    assert_eq!(texts(&secret), ["3"]);
    assert_eq!(secret.read(Versions::number), 3);
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_of_what_comes_after_it_was_made_and_skips_to_the_last() {
    let (mut rotor, secret) = Secret::rotating("test", SecretBytes::new("1"));
    rotor.publish(SecretBytes::new("2"));
    let mut watch = secret.watch();
    let long = Duration::from_secs(3600);
    assert!(timeout(long, watch.changed()).await.is_err(), "nothing came since, and a dropped wait loses nothing");

    rotor.publish(SecretBytes::new("3"));
    rotor.publish(SecretBytes::new("4"));
    assert!(watch.changed().await.expect("a version").matches(b"4"));
    assert!(timeout(long, watch.changed()).await.is_err(), "it was told once");

    rotor.publish(SecretBytes::new("5"));
    drop(rotor);
    assert!(watch.changed().await.expect("the last version").matches(b"5"));
    assert!(watch.changed().await.is_none(), "no other one can come");
    assert!(Secret::fixed(SecretBytes::new("x")).watch().changed().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_when_a_version_no_longer_counts_to_who_asks_for_that() {
    let (mut rotor, secret) = Secret::rotating("test", SecretBytes::new("1"));
    let (mut watch, mut current) = (secret.watch(), secret.watch());
    rotor.publish(SecretBytes::new("2"));
    assert_eq!(watch.versions().await.expect("a change").iter().count(), 2);
    assert!(current.changed().await.expect("a version").matches(b"2"));
    rotor.retire();
    let versions = watch.versions().await.expect("a change");
    assert!(versions.iter().count() == 1 && versions.current().expect("there").matches(b"2"));
    rotor.retire();
    let long = Duration::from_secs(3600);
    assert!(timeout(long, watch.versions()).await.is_err(), "there was nothing to take away");
    assert!(timeout(long, current.changed()).await.is_err(), "that is no new version");
    rotor.expire();
    assert_eq!(watch.versions().await.expect("a change").iter().count(), 0);
    drop(rotor);
    assert!(watch.versions().await.is_none(), "nothing can change any more");
}

#[tokio::test]
async fn a_failing_source_takes_nothing_away_and_shows_in_the_health() {
    let (mut rotor, secret) = Secret::rotating("test", SecretBytes::new("1"));
    rotor.fail(&failure());
    assert_eq!((texts(&secret), secret.health()), (vec!["1".to_owned()], Health::Stale("source_down")));
    rotor.confirm();
    assert_eq!(secret.health(), Health::Good);
    rotor.fail(&failure());
    rotor.publish(SecretBytes::new("2"));
    assert_eq!((texts(&secret).len(), secret.health()), (2, Health::Good));
}

#[tokio::test]
async fn a_lease_that_is_over_is_no_longer_given_out() {
    let (mut rotor, secret) = Secret::rotating("test", SecretBytes::new("1"));
    let mut watch = secret.watch();
    rotor.publish(SecretBytes::new("2"));
    rotor.fail(&failure());
    rotor.expire();
    let error = secret.current().expect_err("over");
    assert_eq!((error.reason(), error.kind(), error.retry()), ("secret_expired", Kind::Unavailable, Retry::Safe));
    assert_eq!((texts(&secret).len(), secret.health()), (0, Health::Expired("source_down")));
    rotor.confirm();
    assert!(matches!(secret.health(), Health::Expired(_)), "an answer without a version heals nothing");

    rotor.publish(SecretBytes::new("3"));
    assert!(watch.changed().await.expect("a version").matches(b"3"));
    assert_eq!((texts(&secret), secret.health()), (vec!["3".to_owned()], Health::Good));
}

#[tokio::test]
async fn the_rotor_learns_that_nobody_reads_any_more() {
    let (rotor, secret) = Secret::rotating("test", SecretBytes::new("1"));
    let watch = secret.watch();
    drop(secret);
    let mut closed = Box::pin(rotor.closed());
    assert!(poll_once(&mut closed).is_none(), "a watch is a reader too");
    drop(watch);
    closed.await;
}

/// Polls once.
fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    match std::pin::Pin::new(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[test]
fn readers_on_many_threads_see_whole_versions_only() {
    let (mut rotor, secret) = Secret::rotating("test", (0_u32, 0_u32));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let secret = secret.clone();
            scope.spawn(move || {
                let mut last = 0;
                while last < 1000 {
                    let (user, password) = *secret.current().expect("never over");
                    assert_eq!(user, password);
                    assert!(user >= last, "a version never comes back");
                    last = user;
                    secret.read(|v| assert!(v.previous().is_none_or(|p| p.0 + 1 == v.current().expect("there").0)));
                }
            });
        }
        (1..=1000).for_each(|n| rotor.publish((n, n)));
    });
}

#[test]
fn nothing_shows_a_secret() {
    let (mut rotor, secret) = Secret::rotating("test", SecretBytes::new("hidden-one"));
    rotor.publish(SecretBytes::new("hidden-two"));
    let (watch, current) = (secret.watch(), secret.current().expect("there"));
    let versions = secret.read(Versions::clone);
    let shown =
        format!("{rotor:?} {secret:?} {watch:?} {current:?} {versions:?} {:?}", SecretBytes::new("hidden-three"));
    assert!(!shown.contains("hidden"), "{shown}");
}

#[test]
fn handles_are_send_sync_and_clone() {
    fn check<T: Send + Sync + std::fmt::Debug>() {}
    fn check_clone<T: Clone>() {}
    check::<(Secret, Rotor<SecretBytes>, Watch, Arc<Versions<SecretBytes>>, SecretBytes, Health)>();
    check_clone::<(Secret, Secret<std::sync::Mutex<()>>, Versions<SecretBytes>)>();
}
