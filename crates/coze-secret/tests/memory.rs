//! Reads the memory of this very process: where is a secret, and where is it not any more?
#![cfg(target_os = "linux")]

use std::{
    fs::{self, File},
    hint::black_box,
    io::Read,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

use coze_secret::{Secret, SecretBytes, SecretFile, Versions};
use tokio::{sync::Mutex, time::sleep};

/// One search at a time: another test's buffers would be found too.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A secret that stands nowhere in memory until it is made: kept as the complement of its bytes.
struct Needle([u8; 48]);

impl Needle {
    fn new() -> Self {
        // Never zero and never text, so that it stays one run of bytes wherever it is copied.
        Self(std::array::from_fn(|_| !fastrand::u8(b'0'..=b'z')))
    }

    fn make(&self) -> Vec<u8> {
        self.0.iter().map(|byte| !byte).collect()
    }

    fn is_at(&self, window: &[u8]) -> bool {
        window.iter().zip(&self.0).all(|(byte, kept)| *byte == !*kept)
    }
}

/// Searches the memory of this process. All it needs is there before the secret is, so that the search itself does not
/// overwrite what a secret left behind.
struct Search {
    memory: File,
    maps: Vec<u8>,
    chunk: Vec<u8>,
}

impl Search {
    fn new() -> Self {
        let memory = File::open("/proc/self/mem").expect("Linux has it");
        Self { memory, maps: Vec::with_capacity(1024 * 1024), chunk: vec![0; 64 * 1024] }
    }

    /// How often the needle stands in memory.
    fn copies(&mut self, needle: &Needle) -> usize {
        let Self { memory, maps, chunk } = self;
        maps.clear();
        File::open("/proc/self/maps").and_then(|mut file| file.read_to_end(maps)).expect("Linux has it");
        let own = chunk.as_ptr().addr()..chunk.as_ptr().addr() + chunk.len();
        let mut found = 0;
        for region in maps.split(|byte| *byte == b'\n').filter_map(writable) {
            let mut at = region.start;
            while at < region.end {
                chunk.fill(0);
                let size = chunk.len().min(region.end - at);
                // What cannot be read, such as device memory, holds no secret of ours.
                let read = memory.read_at(&mut chunk[..size], at as u64).unwrap_or(0);
                // Windows overlap, so that none is missed at the border of two chunks. What stands in `chunk` is not counted.
                let windows = chunk[..read].windows(needle.0.len()).enumerate();
                found += windows.filter(|(n, window)| !own.contains(&(at + n)) && needle.is_at(window)).count();
                at += if size == chunk.len() { size - needle.0.len() + 1 } else { size };
            }
        }
        chunk.fill(0);
        found
    }
}

/// Only what can be written to can hold a copy.
fn writable(line: &[u8]) -> Option<Range<usize>> {
    let (range, rest) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    rest.starts_with("rw").then_some(number(start)?..number(end)?)
}

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
