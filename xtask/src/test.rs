use crate::{
    parts,
    step::{Outcome, cargo, run, works},
};

/// Every test of the workspace, after making sure of what they need.
pub(crate) fn test(filter: &[String]) -> Outcome {
    parts::ensure()?;
    if works(cargo().args(["nextest", "--version"])) {
        let mut nextest = cargo();
        nextest.args(["nextest", "run", "--workspace", "--all-features"]);
        if !filter.is_empty() {
            // The filter may be meant for the doc tests alone.
            nextest.arg("--no-tests=pass").args(filter);
        }
        run(&mut nextest)?;
    } else {
        run(cargo().args(["test", "--workspace", "--all-features", "--lib", "--bins", "--tests"]).args(filter))?;
    }
    run(cargo().args(["test", "--workspace", "--all-features", "--doc"]).args(filter))
}
