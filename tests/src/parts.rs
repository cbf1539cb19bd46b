use std::path::{Path, PathBuf};

/// Where `cargo xtask test` found a program (`redis-server`, `initdb`, `postgres`, `python3`, `node`) or put an SDK
/// (`sdk-python`, `sdk-js`).
///
/// # Panics
/// If `cargo xtask test` never ran in this checkout, or what it found is gone.
#[must_use]
pub fn part(name: &str) -> PathBuf {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/parts");
    let list = std::fs::read_to_string(list).unwrap_or_default();
    find(&list, name).unwrap_or_else(|| panic!("this test needs {name}: run `cargo xtask test` once, it brings it"))
}

/// The path on the line `name path`, if something is there.
fn find(list: &str, name: &str) -> Option<PathBuf> {
    let path = list.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(PathBuf::from(path)).filter(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_found_by_its_whole_name_and_only_where_it_is() {
        let list = "node-gyp /nowhere\nnode /\nredis-server /nowhere\n";
        assert_eq!(find(list, "node"), Some(PathBuf::from("/")));
        assert_eq!(find(list, "redis-server"), None);
        assert_eq!(find("", "node"), None);
    }

    #[test]
    #[should_panic(expected = "run `cargo xtask test` once")]
    fn a_missing_part_says_what_brings_it() {
        let _ = part("there-is-no-such-part");
    }
}
