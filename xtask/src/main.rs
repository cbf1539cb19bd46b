//! The project's tasks. `cargo xtask` without a task lists them.

mod bench;
mod ci;
mod fuzz;
mod parts;
mod step;
mod test;
mod tidy;

use std::process::ExitCode;

const TASKS: &str = "\
usage: cargo xtask <task>

  test [FILTER]                     every test, with real servers and the published SDKs; installs what is missing
  ci                                all that must hold before a change lands: format, tidy, lints, docs, test, demo
  tidy                              the house rules that no compiler checks
  fuzz TARGET [SECONDS]             feeds a target of `tests/src/fuzz` for a while (60); needs cargo-fuzz
  soak                              ten million invented keys against a limit: what they cost in memory (on Linux)
  bench [FILTER] [--json] [--check] the benchmarks against their bars; --check fails when a bar is missed
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let task = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let outcome = match (task.as_str(), rest.as_slice()) {
        ("test", filter) => test::test(filter),
        ("ci", []) => ci::ci(),
        ("tidy", []) => tidy::tidy(),
        ("fuzz", [target]) => fuzz::fuzz(target, "60"),
        ("fuzz", [target, seconds]) => fuzz::fuzz(target, seconds),
        ("soak", []) => step::run(step::cargo().args("run --release -p coze-benches --example flood".split(' '))),
        ("bench", options) => bench::bench(options),
        _ => {
            eprint!("{TASKS}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("cargo xtask {task}: {why}");
            ExitCode::FAILURE
        }
    }
}
