use std::time::{Duration, SystemTime};

use crate::{
    step::{Outcome, cargo, run},
    test, tidy,
};

/// A step: its name, and what it does.
type Step = (&'static str, fn() -> Outcome);

/// Cheap steps first. clippy and doc share their artefacts, test and doc tests share theirs, the demo is the one release build;
/// clippy also compiles the benchmarks, so they are not built a second time in their own profile.
const STEPS: [Step; 7] = [
    ("fmt", || run(cargo().args(["fmt", "--all", "--check"]))),
    ("tidy", tidy::tidy),
    ("clippy", || {
        run(cargo().args("clippy --workspace --all-targets --all-features --locked -- -D warnings".split(' ')))
    }),
    ("features", features),
    ("doc", || {
        run(cargo().args("doc --workspace --all-features --no-deps".split(' ')).env("RUSTDOCFLAGS", "-D warnings"))
    }),
    ("test", || test::test(&[])),
    ("demo", || run(cargo().args(["run", "--release", "-p", "bot-backend", "--", "demo"]))),
];

/// A crate with features compiles with none of them, and with each alone: what all of them bring in together must not hide what
/// one of them lacks.
fn features() -> Outcome {
    for alone in [
        "-p coze-auth",
        "-p coze-auth --features jwt",
        "-p coze-auth --features oauth",
        "-p coze-auth --features redis",
        "-p coze-ratelimit",
        "-p coze-ratelimit --features kafka",
        "-p coze-ratelimit --features redis",
        "-p coze-secret",
    ] {
        run(cargo().arg("check").args(alone.split(' ')))?;
    }
    Ok(())
}

/// Everything that must hold before a change lands. Stops at the first step that fails.
pub(crate) fn ci() -> Outcome {
    let start = SystemTime::now();
    let mut summary = String::new();
    let mut outcome = Ok(());
    for (name, step) in STEPS {
        let began = SystemTime::now();
        outcome = step();
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        summary.push_str(&format!("{name:<8} {verdict:<6} {:>7.1} s\n", since(began).as_secs_f64()));
        if outcome.is_err() {
            break;
        }
    }
    println!("\n{summary}{:<15} {:>7.1} s", "total", since(start).as_secs_f64());
    outcome
}

fn since(start: SystemTime) -> Duration {
    start.elapsed().unwrap_or_default()
}
