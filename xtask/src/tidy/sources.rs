//! What may stand in a file.

use super::{File, Violation};
use crate::step::root;

/// Longer files have more than one duty.
const MAX_LINES: usize = 400;

/// The only place packages come from, as Cargo.lock writes it.
const INDEX: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

pub(super) fn check(files: &[File]) -> Vec<Violation> {
    let words = words();
    let mut broken = Vec::new();
    for file in files {
        broken.extend(forbidden(file, &words));
        broken.extend(private_keys(file));
        broken.extend(length(file));
        broken.extend(generated(file));
        broken.extend(slow_or_skipped(file));
        if file.path == "Cargo.lock" {
            broken.extend(other_sources(file));
        }
    }
    if !files.iter().any(|file| file.path == "Cargo.lock") {
        broken.push(Violation::new("Cargo.lock", 0, "it belongs to the repository"));
    }
    broken
}

/// Words that stand nowhere, and why. Put together from halves, because this file is checked too.
fn words() -> Vec<(String, &'static str)> {
    vec![
        (root().display().to_string(), "a path of this machine"),
        (["/ro", "ot/"].concat(), "a path of somebody's machine"),
        (["/ho", "me/"].concat(), "a path of somebody's machine"),
        (["/wo", "rk/"].concat(), "a path of somebody's machine"),
        (["index", "-url"].concat(), "the address of a package registry"),
        (["npm", "js."].concat(), "the address of a package registry"),
        (["pypi", "."].concat(), "the address of a package registry"),
        (["TO", "DO"].concat(), "unfinished work: finish it, or file an issue"),
        (["FIX", "ME"].concat(), "unfinished work: finish it, or file an issue"),
        (["to", "do!("].concat(), "unfinished work: finish it, or file an issue"),
        (["unimpl", "emented!("].concat(), "unfinished work: finish it, or file an issue"),
        (["```ig", "nore"].concat(), "an example that nobody compiles"),
    ]
}

fn forbidden<'a>(file: &'a File, words: &'a [(String, &'static str)]) -> impl Iterator<Item = Violation> + 'a {
    file.lines().flat_map(move |(line, text)| {
        let found = words.iter().filter(move |(word, _)| text.contains(word));
        found.map(move |(word, why)| Violation::new(&file.path, line, format!("`{word}`: {why}")))
    })
}

/// A PEM header that is followed by a key. The header alone, or before some letters, is not secret.
fn private_keys(file: &File) -> impl Iterator<Item = Violation> + '_ {
    let header = ["PRIVATE ", "KEY-----"].concat();
    let found = file.lines().filter(move |(line, text)| {
        let Some((_, after)) = text.split_once(&header) else { return false };
        let next = file.text.lines().nth(*line).unwrap_or_default();
        let is_key = |c: &char| c.is_ascii_alphanumeric() || "+/=".contains(*c);
        let length = |text: &str| text.trim_start_matches(['\\', 'n', 'r']).chars().take_while(is_key).count();
        length(after).max(length(next.trim())) >= 40
    });
    found.map(|(line, _)| Violation::new(&file.path, line, "a private key: make one when the test runs"))
}

fn length(file: &File) -> Option<Violation> {
    let counts = ["crates/", "examples/", "xtask/"].iter().any(|home| file.path.starts_with(home))
        && file.path.contains("/src/")
        && file.path.ends_with(".rs");
    let lines = file.text.lines().count();
    let rule = || format!("{lines} lines, at most {MAX_LINES}: it has more than one duty");
    (counts && lines > MAX_LINES).then(|| Violation::new(&file.path, MAX_LINES + 1, rule()))
}

fn generated(file: &File) -> Option<Violation> {
    let made = ["target", "node_modules", "__pycache__", "package-lock.json"];
    let found = file.path.split('/').any(|part| made.contains(&part));
    found.then(|| Violation::new(&file.path, 0, "generated: it does not belong to the repository"))
}

/// A test neither waits in real time nor is left out. Under the paused clock `tokio::time::sleep` costs no time, so it is
/// fine below an attribute that pauses it.
fn slow_or_skipped(file: &File) -> Vec<Violation> {
    let (sleep, paused) = (["sle", "ep("].concat(), "start_paused = true");
    let ignore = ["#[ig", "nore"].concat();
    if !file.path.ends_with(".rs") {
        return Vec::new();
    }
    // The code of the tests: the whole file in a `tests` folder, else what follows `#[cfg(test)]`.
    let from = match file.path.contains("tests/") {
        true => 0,
        false => file.lines().find(|(_, text)| text.starts_with("#[cfg(test)]")).map_or(usize::MAX, |(line, _)| line),
    };
    // Helpers above the first test run under its clock, and a file of helpers alone under that of whoever calls them.
    let is_test = |text: &str| text.contains("#[test]") || text.contains("#[tokio::test");
    let mut is_paused = file.text.contains(paused) || !is_test(&file.text);
    let mut broken = Vec::new();
    for (line, text) in file.lines().filter(|(line, _)| *line >= from) {
        if is_test(text) {
            is_paused = text.contains(paused);
        }
        if text.contains(&ignore) {
            broken.push(Violation::new(&file.path, line, "a test that is left out"));
        }
        if text.contains(&sleep) && (!is_paused || text.contains("thread::")) {
            broken.push(Violation::new(
                &file.path,
                line,
                "a test that waits in real time: wait for the event, or pause the clock",
            ));
        }
    }
    broken
}

fn other_sources(lock: &File) -> impl Iterator<Item = Violation> + '_ {
    lock.lines()
        .filter(|(_, text)| text.starts_with("source = ") && *text != INDEX)
        .map(|(line, _)| Violation::new(&lock.path, line, "a package that is not from crates.io"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn shown(broken: impl IntoIterator<Item = Violation>) -> Vec<String> {
        broken.into_iter().map(|violation| violation.to_string()).collect()
    }

    #[test]
    fn a_forbidden_word_is_found_with_its_line() {
        let text = ["fine\n// TO", "DO later\n"].concat();
        let broken = shown(forbidden(&file("a.rs", &text), &words()));
        assert_eq!(broken, [["a.rs:2: `TO", "DO`: unfinished work: finish it, or file an issue"].concat()]);
    }

    #[test]
    fn a_private_key_is_found_and_the_mention_of_one_is_not() {
        let header = ["-----BEGIN PRIVATE ", "KEY-----"].concat();
        let key = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg";
        for secret in [format!("{header}\n{key}\n"), format!("\"{header}\\n{key}\"")] {
            assert_eq!(shown(private_keys(&file("a.rs", &secret))).len(), 1, "{secret}");
        }
        for harmless in [format!("\"{header}\\nAAAA\""), format!("{header}\n")] {
            assert_eq!(shown(private_keys(&file("a.rs", &harmless))), [""; 0]);
        }
    }

    #[test]
    fn a_source_file_has_at_most_400_lines() {
        assert_eq!(shown(length(&file("crates/x/src/a.rs", &"\n".repeat(400)))), [""; 0]);
        assert_eq!(shown(length(&file("crates/x/tests/a.rs", &"\n".repeat(401)))), [""; 0]);
        assert_eq!(
            shown(length(&file("crates/x/src/a.rs", &"\n".repeat(401)))),
            ["crates/x/src/a.rs:401: 401 lines, at most 400: it has more than one duty"]
        );
    }

    #[test]
    fn a_test_may_sleep_only_under_the_paused_clock() {
        let sleep = ["time::sle", "ep(SECOND).await;\n"].concat();
        let paused = format!("#[tokio::test(start_paused = true)]\n{sleep}");
        let real = format!("#[tokio::test]\n{sleep}");
        let blocking = format!("#[tokio::test(start_paused = true)]\nstd::thread::{sleep}");
        assert_eq!(shown(slow_or_skipped(&file("crates/x/tests/a.rs", &paused))), [""; 0]);
        assert_eq!(shown(slow_or_skipped(&file("crates/x/tests/a.rs", &format!("{sleep}{paused}")))), [""; 0]);
        assert_eq!(shown(slow_or_skipped(&file("crates/x/src/a.rs", &real))), [""; 0], "no test code");
        assert_eq!(shown(slow_or_skipped(&file("crates/x/tests/support.rs", &sleep))), [""; 0], "no test of its own");
        for slow in [real, blocking] {
            assert_eq!(shown(slow_or_skipped(&file("crates/x/tests/a.rs", &slow))).len(), 1, "{slow}");
        }
    }

    #[test]
    fn a_test_is_not_left_out() {
        let skipped = ["#[cfg(test)]\nmod tests {\n#[test]\n#[ig", "nore = \"slow\"]\n"].concat();
        assert_eq!(
            shown(slow_or_skipped(&file("crates/x/src/a.rs", &skipped))),
            ["crates/x/src/a.rs:4: a test that is left out"]
        );
    }

    #[test]
    fn a_generated_folder_is_found() {
        assert!(generated(&file("tests/sdk/js/node_modules/a.js", "")).is_some());
        assert!(generated(&file("tests/sdk/js/drive.mjs", "")).is_none());
    }

    #[test]
    fn a_package_from_elsewhere_is_found() {
        let lock = format!("{INDEX}\nsource = \"registry+https://example.org/index\"\n");
        assert_eq!(
            shown(other_sources(&file("Cargo.lock", &lock))),
            ["Cargo.lock:2: a package that is not from crates.io"]
        );
    }
}
