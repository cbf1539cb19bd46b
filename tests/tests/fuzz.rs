//! The fuzz targets, for a moment, on the seeds and on variations of them that are the same each time.

use std::{fs, path::Path};

use coze_tests::fuzz::{Mutations, TARGETS};

/// How many variations a target gets.
const ROUNDS: usize = 4_000;

/// The seeds of a target, by name; those that are called `valid` must be accepted.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut seeds: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a file"))
        .map(|entry| (entry.file_name().into_string().expect("a name"), fs::read(entry.path()).expect("a seed")))
        .collect();
    // The order in which a folder is listed is not the same everywhere.
    seeds.sort();
    seeds
}

fn run(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    let seeds = seeds(name);
    assert!(seeds.len() > 2);
    for (name, seed) in &seeds {
        assert_eq!(target(seed), name.starts_with("valid"), "{name}");
    }
    let seeds: Vec<_> = seeds.into_iter().map(|(_, seed)| seed).collect();
    for data in Mutations::new(&seeds, 42).take(ROUNDS) {
        target(&data);
    }
}

#[test]
fn signatures_of_messages_are_judged_as_a_second_reading_judges_them() {
    run("webhook");
}

#[test]
fn signatures_of_callbacks_are_judged_as_a_second_reading_judges_them() {
    run("callback");
}

#[test]
fn signatures_of_standard_webhooks_are_judged_as_a_second_reading_judges_them() {
    run("standard_webhooks");
}

#[test]
fn no_variation_of_a_token_is_accepted() {
    run("jwt");
}

#[test]
fn no_variation_of_a_key_set_verifies_with_a_key_that_is_not_in_it() {
    run("jwks");
}

#[test]
fn no_answer_of_the_token_endpoint_makes_a_token_of_a_refusal_or_shows_one() {
    run("oauth");
}

#[test]
fn no_answer_of_vault_shows_a_secret() {
    run("vault");
}

#[test]
fn every_target_has_seeds_a_program_and_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of_here = include_str!("fuzz.rs");
    for (name, _) in TARGETS {
        assert!(root.join(format!("../fuzz/fuzz_targets/{name}.rs")).is_file(), "{name}");
        assert!(of_here.contains(&format!("run(\"{name}\")")), "{name}");
    }
}
