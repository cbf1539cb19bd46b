//! The fuzz targets of `tests/src/fuzz`, for longer than the test run has them.

use crate::step::{Outcome, cargo, run};

/// Feeds a target. What is found goes on in `fuzz/corpus`, and what makes it panic is in `fuzz/artifacts`: fix it, and keep the
/// input in `fuzz/seeds`, which the test run reads.
pub(crate) fn fuzz(target: &str, seconds: &str) -> Outcome {
    let seconds: u32 = seconds.parse().map_err(|_| format!("{seconds} is no number of seconds"))?;
    let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
    std::fs::create_dir_all(crate::step::root().join(&corpus)).map_err(|e| format!("cannot make {corpus}: {e}"))?;
    let mut cargo = cargo();
    // The sanitizer needs options that the compiler gives to nobody else.
    cargo.env("RUSTC_BOOTSTRAP", "1").args(["fuzz", "run", target, &corpus, &seeds, "--"]);
    run(cargo.args([format!("-max_total_time={seconds}"), "-max_len=4096".to_owned()]))
}
