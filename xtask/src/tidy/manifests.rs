//! Who may depend on whom, why each dependency is there, and the one shape of a layer crate.

use std::collections::BTreeSet;

use super::{File, Violation};
use crate::step::{Outcome, cargo, output};

/// What every layer is made of (ARCHITECTURE.md, rule 1).
const BASE: [&str; 9] =
    ["bytes", "coze-core", "http", "http-body", "pin-project-lite", "tokio", "tower-layer", "tower-service", "tracing"];

/// The layer crates, and what each one's duty needs besides.
const LAYERS: [(&str, &[&str]); 6] = [
    (
        "coze-auth",
        &[
            "arc-swap",
            "aws-lc-rs",
            "base64",
            "fastrand",
            "foldhash",
            "hex",
            "hmac",
            "http-body-util",
            "httpdate",
            "redis",
            "serde",
            "serde_json",
            "sha1",
            "sha2",
            "siphasher",
            "subtle",
        ],
    ),
    ("coze-errmap", &["base64", "httpdate", "prost", "serde", "serde_json"]),
    ("coze-observe", &["fastrand", "matchit", "metrics"]),
    ("coze-ratelimit", &["arc-swap", "fastrand", "indexmap", "metrics", "rdkafka", "redis", "smallvec"]),
    ("coze-retry", &["base64", "fastrand", "httpdate"]),
    ("coze-tenant", &[]),
];

/// coze-core is vocabulary: whatever is here, everybody gets.
const CORE: [&str; 1] = ["http"];

/// The files every layer crate has.
const SHAPE: [&str; 8] = [
    "Cargo.toml",
    "README.md",
    "src/future.rs",
    "src/layer.rs",
    "src/lib.rs",
    "src/policy.rs",
    "src/service.rs",
    "tests/",
];

pub(super) fn check(files: &[File]) -> Outcome<Vec<Violation>> {
    let mut broken = Vec::new();
    let core = ("coze-core", CORE.to_vec());
    let layers = LAYERS.iter().map(|(layer, extra)| (*layer, [&BASE, *extra].concat()));
    for (name, allowed) in [core].into_iter().chain(layers) {
        let tree = ["tree", "-p", name, "-e", "normal", "--depth", "1", "--prefix", "none", "--locked"];
        broken.extend(foreign(name, &output(cargo().args(tree))?, &allowed));
    }
    broken.extend(LAYERS.iter().flat_map(|(layer, _)| shape(layer, files)));
    let root = files.iter().find(|file| file.path == "Cargo.toml").ok_or("there is no Cargo.toml")?;
    let explained: BTreeSet<&str> = dependencies(root).filter(|d| d.why).map(|d| d.name).collect();
    for file in files.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let silent = dependencies(file).filter(|d| !d.why && !explained.contains(d.name));
        broken.extend(
            silent.map(|d| Violation::new(&file.path, d.line, format!("no comment says why {} is needed", d.name))),
        );
        if file.path.starts_with("crates/") {
            broken.extend(front_page(file, files));
        }
    }
    Ok(broken)
}

/// What `cargo tree` shows below the crate and the list does not allow.
fn foreign(name: &str, tree: &str, allowed: &[&str]) -> Vec<Violation> {
    let manifest = format!("crates/{name}/Cargo.toml");
    let direct = tree.lines().skip(1).filter_map(|line| line.split(' ').next()).filter(|line| !line.is_empty());
    direct
        .filter(|dependency| !allowed.contains(dependency))
        .map(|dependency| Violation::new(&manifest, 0, format!("{name} may not depend on {dependency}")))
        .collect()
}

fn shape(layer: &str, files: &[File]) -> Vec<Violation> {
    let folder = format!("crates/{layer}");
    SHAPE
        .iter()
        .map(|part| format!("{folder}/{part}"))
        .filter(|part| {
            !files.iter().any(|file| file.path == *part || part.ends_with('/') && file.path.starts_with(part))
        })
        .map(|part| Violation::new(&part, 0, "every layer crate has this file"))
        .collect()
}

/// A published crate has a description, and its README is its doc page.
fn front_page(manifest: &File, files: &[File]) -> Vec<Violation> {
    let folder = manifest.path.trim_end_matches("Cargo.toml");
    let readme = format!("{folder}README.md");
    let lib = format!("{folder}src/lib.rs");
    let is_included =
        |file: &&File| file.path == lib && file.text.starts_with("#![doc = include_str!(\"../README.md\")]");
    [
        (manifest.text.contains("\ndescription = "), &manifest.path, "the description is missing"),
        (files.iter().any(|file| file.path == readme), &readme, "the README is missing"),
        (files.iter().find(is_included).is_some(), &lib, "the README is not the crate's doc page"),
    ]
    .into_iter()
    .filter(|(holds, ..)| !holds)
    .map(|(_, file, rule)| Violation::new(file, 0, rule))
    .collect()
}

struct Dependency<'a> {
    line: usize,
    name: &'a str,
    /// Is there a comment on it?
    why: bool,
}

/// The entries of `[dependencies]` and `[workspace.dependencies]`. A path to one of ours explains itself.
fn dependencies(manifest: &File) -> impl Iterator<Item = Dependency<'_>> {
    let mut inside = false;
    manifest.lines().filter_map(move |(line, text)| {
        if text.starts_with('[') {
            inside = text.starts_with("[dependencies]") || text.starts_with("[workspace.dependencies]");
            return None;
        }
        let name = text.split(['.', ' ', '=']).next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let why = text.contains('#') || text.contains("path = ");
        inside.then_some(Dependency { line, name, why })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn shown(broken: &[Violation]) -> Vec<String> {
        broken.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_layer_may_not_depend_on_another_layer_or_a_framework() {
        let tree =
            "coze-tenant v0.1.0 (/somewhere)\ncoze-core v0.1.0 (/x)\nhttp v1.4.1\ncoze-auth v0.1.0 (/x)\naxum v0.8.8\n";
        assert_eq!(
            shown(&foreign("coze-tenant", tree, &BASE)),
            [
                "crates/coze-tenant/Cargo.toml: coze-tenant may not depend on coze-auth",
                "crates/coze-tenant/Cargo.toml: coze-tenant may not depend on axum",
            ]
        );
    }

    #[test]
    fn a_dependency_without_a_reason_is_found_with_its_line() {
        let manifest =
            file("x", "[dependencies]\nhttp.workspace = true # why\nhex = \"1\"\n\n[dev-dependencies]\naxum = \"1\"\n");
        let found: Vec<_> = dependencies(&manifest).map(|d| (d.line, d.name, d.why)).collect();
        assert_eq!(found, [(2, "http", true), (3, "hex", false)]);
    }

    #[test]
    fn a_layer_crate_without_one_of_the_files_is_found() {
        let present = ["Cargo.toml", "README.md", "src/lib.rs", "src/layer.rs", "src/service.rs", "src/policy.rs"];
        let files: Vec<File> = present.iter().map(|name| file(&format!("crates/coze-auth/{name}"), "")).collect();
        assert_eq!(
            shown(&shape("coze-auth", &files)),
            [
                "crates/coze-auth/src/future.rs: every layer crate has this file",
                "crates/coze-auth/tests/: every layer crate has this file",
            ]
        );
    }

    #[test]
    fn a_crate_without_a_front_page_is_found() {
        let manifest = file("crates/coze-auth/Cargo.toml", "[package]\nname = \"coze-auth\"\n");
        let lib = file("crates/coze-auth/src/lib.rs", "//! Other words.");
        let broken = front_page(&manifest, &[lib]);
        assert_eq!(broken.len(), 3, "{broken:?}");
    }
}
