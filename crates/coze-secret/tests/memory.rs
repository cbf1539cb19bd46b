//! Secrets stand in memory where they must, and nowhere once they are dropped.
#![cfg(target_os = "linux")]

mod search;

use std::{fs, hint::black_box, path::Path, time::Duration};

use coze_secret::{Secret, SecretBytes, SecretFile, Versions};
use search::{Needle, Search};
use tokio::{sync::Mutex, time::sleep};

/// One search at a time: another test's buffers would be found too.
static ALONE: Mutex<()> = Mutex::const_new(());

#[test]
fn the_search_finds_what_is_dropped_without_being_wiped() {
    let _alone = ALONE.blocking_lock();
    let mut search = Search::new();
    let needle = Needle::new();
    assert_eq!(search.copies(&needle), 0);
    let mut plain = needle.make();
    plain.splice(0..0, [0; 64]);
    assert_eq!(search.copies(&needle), 1);
    drop(black_box(plain));
    assert_eq!(search.copies(&needle), 1, "freed memory keeps what was in it: this is why secrets are wiped");
}

#[test]
fn a_secret_stands_in_memory_once_and_after_its_drop_nowhere() {
    let _alone = ALONE.blocking_lock();
    let mut search = Search::new();
    for round in 0..5 {
        let needle = Needle::new();
        let secret = SecretBytes::new(needle.make());
        assert_eq!(search.copies(&needle), 1, "round {round}");
        drop(black_box(secret));
        assert_eq!(search.copies(&needle), 0, "round {round}");
    }
}

#[test]
fn a_version_goes_when_the_last_reader_drops_it() {
    let _alone = ALONE.blocking_lock();
    let mut search = Search::new();
    let (first, second) = (Needle::new(), Needle::new());
    let (mut rotor, secret) = Secret::rotating("test", SecretBytes::new(first.make()));
    let reader = secret.current().expect("there");
    rotor.publish(SecretBytes::new(second.make()));
    rotor.retire();
    assert_eq!((search.copies(&first), search.copies(&second)), (1, 1), "somebody reads the first");
    drop(reader);
    assert_eq!((search.copies(&first), search.copies(&second)), (0, 1));
    rotor.expire();
    assert_eq!((search.copies(&first), search.copies(&second)), (0, 0), "the handle is still there, the secret is not");
    assert_eq!(secret.read(Versions::number), 2);
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_into_the_secret_and_nowhere_else() {
    let _alone = ALONE.lock().await;
    let mut search = Search::new();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("token");
    let (first, second) = (Needle::new(), Needle::new());
    write(&path, &first);
    let secret = SecretFile::new(&path).open().await.expect("readable");
    assert_eq!(search.copies(&first), 1);
    write(&path, &second);
    sleep(Duration::from_secs(11)).await;
    assert_eq!((search.copies(&first), search.copies(&second)), (1, 1), "the previous version and the current one");
    sleep(Duration::from_secs(3601)).await;
    assert_eq!((search.copies(&first), search.copies(&second)), (0, 1));
    drop(secret);
    sleep(Duration::from_secs(1)).await;
    assert_eq!((search.copies(&first), search.copies(&second)), (0, 0));
}

/// Leaves no copy behind.
fn write(path: &Path, needle: &Needle) {
    let content = SecretBytes::new(needle.make());
    fs::write(path, content.expose()).expect("written");
}

#[test]
fn a_page_is_locked_where_the_limit_allows_it() {
    let limits = fs::read_to_string("/proc/self/limits").expect("Linux has it");
    let line = limits.lines().find(|line| line.starts_with("Max locked memory")).expect("a limit");
    let soft = line.split_whitespace().nth(3).expect("a number");
    let secret = SecretBytes::new("x");
    match soft.parse::<usize>() {
        Ok(bytes) if bytes < 64 * 1024 => assert_eq!(secret.expose(), b"x", "it serves, locked or not"),
        _ => assert!(secret.is_locked(), "the limit is {soft}"),
    }
}
