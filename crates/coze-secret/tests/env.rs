//! Secrets from the environment. A process cannot change its own safely, so each case is a child process.

use std::{
    env,
    process::{Command, Stdio},
};

use coze_secret::Secret;

const NAME: &str = "COZE_SECRET_TEST_TOKEN";

/// What a child with this value makes of it.
fn outcome(value: Option<&str>) -> String {
    let mut child = Command::new(env::current_exe().expect("a path"));
    child
        .args(["--exact", "the_child_says_what_it_read", "--nocapture"])
        .env("COZE_SECRET_TEST_CHILD", "1")
        .env_remove(NAME);
    value.map(|value| child.env(NAME, value));
    let output = child.stderr(Stdio::inherit()).output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text.lines().find_map(|line| line.split_once("outcome: ")).expect("an outcome");
    line.1.to_owned()
}

#[test]
fn the_child_says_what_it_read() {
    if env::var_os("COZE_SECRET_TEST_CHILD").is_some() {
        match Secret::from_env(NAME) {
            Ok(secret) => println!("outcome: {}", secret.current().expect("fixed").expose_str().expect("text")),
            Err(error) => println!("outcome: {} ({error})", error.reason()),
        }
    }
}

#[test]
fn a_variable_is_a_secret() {
    assert_eq!(outcome(Some("pat")), "pat");
    assert_eq!(outcome(Some(" x ")), " x ");
}

#[test]
fn a_variable_that_is_not_set_or_empty_is_refused_by_name() {
    let missing = "secret_missing (the environment variable COZE_SECRET_TEST_TOKEN is not set)";
    assert_eq!(outcome(None), missing);
    let empty = "secret_empty (the environment variable COZE_SECRET_TEST_TOKEN is empty)";
    assert_eq!(outcome(Some("")), empty);
}
