//! The benchmarks of `benches/` against their bars (`benches/bars.txt`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};

use crate::step::{Outcome, cargo, command, output, root, run};

/// Odd, so that the median is a round that happened. A machine's mood changes by the second: rounds spread over a minute
/// measure it away, and within a round ours and the peer run one after the other.
const ROUNDS: usize = 5;

/// What a comparison must keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bar {
    /// ours ÷ peer, at most; of both what they add to the bare service, where a benchmark measures that too.
    Ratio(f64),
    /// ours − peer in nanoseconds, at most.
    Added(f64),
}

/// One comparison: the medians over the rounds, and its bar.
#[derive(Debug, PartialEq)]
struct Row {
    name: String,
    ours: f64,
    peer: f64,
    ratio: f64,
    added: f64,
    bar: Option<Bar>,
}

impl Row {
    fn is_met(&self) -> Option<bool> {
        Some(match self.bar? {
            Bar::Ratio(most) => self.ratio <= most,
            Bar::Added(most) => self.added <= most,
        })
    }
}

/// The times of each comparison, one for each round.
type Rounds = BTreeMap<String, Vec<Times>>;

/// Nanoseconds of the three sides of a comparison in one round; bytes, where the name ends with `_bytes`.
#[derive(Clone, Copy, Debug)]
struct Times {
    ours: f64,
    peer: f64,
    /// The bare service, that both were measured with; zero where it is left out.
    bare: f64,
}

impl Times {
    fn ratio(self) -> f64 {
        (self.ours - self.bare) / (self.peer - self.bare)
    }
}

pub(crate) fn bench(options: &[String]) -> Outcome {
    let (flags, filters): (Vec<&str>, Vec<&str>) =
        options.iter().map(String::as_str).partition(|o| o.starts_with("--"));
    if let Some(unknown) = flags.iter().find(|flag| !["--json", "--check"].contains(flag)) {
        return Err(format!("unknown option {unknown}, there are --json and --check"));
    }
    let filter = match filters.as_slice() {
        [] => "",
        [one] => *one,
        _ => return Err("more than one filter".to_owned()),
    };
    let bars = root().join("benches/bars.txt");
    let bars = read_bars(&fs::read_to_string(&bars).map_err(|e| format!("cannot read {}: {e}", bars.display()))?)?;
    let rows = rows(&measure(filter)?, &bars);
    if let Some(lost) = bars.keys().find(|name| name.contains(filter) && !rows.iter().any(|row| row.name == **name)) {
        return Err(format!("benches/bars.txt has a bar for {lost}, which no benchmark measured"));
    }
    if rows.is_empty() {
        return Err(format!("no benchmark has `{filter}` in its name"));
    }
    if flags.contains(&"--json") {
        println!("{}", as_json(&rows));
    } else {
        print!("{}", as_table(&rows));
    }
    let missed: Vec<&str> = rows.iter().filter(|r| r.is_met() == Some(false)).map(|r| r.name.as_str()).collect();
    if flags.contains(&"--check") && !missed.is_empty() {
        return Err(format!("missed: {}", missed.join(", ")));
    }
    Ok(())
}

/// Runs the benchmarks in rounds. Each round writes to a folder of its own, made anew, so no older result is read.
fn measure(filter: &str) -> Outcome<Rounds> {
    let home = root().join("target/bench");
    if home.exists() {
        fs::remove_dir_all(&home).map_err(|e| format!("cannot remove {}: {e}", home.display()))?;
    }
    let benchmarks = build()?;
    let mut rounds = Rounds::new();
    for round in 1..=ROUNDS {
        eprintln!("\nround {round} of {ROUNDS}");
        let folder = home.join(round.to_string());
        for benchmark in &benchmarks {
            let mut command = command(benchmark);
            command.args(["--bench", filter]).env("CRITERION_HOME", &folder);
            run(command.stdout(Stdio::from(std::io::stderr())))?;
        }
        for (name, times) in read_round(&folder)? {
            rounds.entry(name).or_default().push(times);
        }
    }
    Ok(rounds)
}

/// Builds the benchmarks once, so that all rounds run the same; says where they are.
fn build() -> Outcome<Vec<PathBuf>> {
    let mut cargo = cargo();
    cargo.args(["bench", "-p", "coze-benches", "--benches", "--no-run", "--message-format", "json-render-diagnostics"]);
    let messages = output(cargo.stderr(Stdio::inherit()))?;
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    };
    Ok(messages.lines().filter_map(executable).collect())
}

/// The comparisons criterion left in a folder: those groups that have both an `ours` and a `peer`.
fn read_round(folder: &Path) -> Outcome<BTreeMap<String, Times>> {
    let mut found: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    for side in ["ours", "peer", "bare"] {
        for group in fs::read_dir(folder).into_iter().flatten().flatten() {
            let result = group.path().join(side).join("new");
            if result.is_dir() {
                let (name, median) = read_result(&result)?;
                found.entry(name).or_default().insert(side.to_owned(), median);
            }
        }
    }
    let times = |sides: BTreeMap<String, f64>| {
        let bare = sides.get("bare").copied().unwrap_or_default();
        Some(Times { ours: *sides.get("ours")?, peer: *sides.get("peer")?, bare })
    };
    Ok(found.into_iter().filter_map(|(name, sides)| Some((name, times(sides)?))).collect())
}

/// The name of the group, and the median of a call in nanoseconds.
fn read_result(folder: &Path) -> Outcome<(String, f64)> {
    let read = |path: PathBuf| -> Outcome<Value> {
        let text = fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        serde_json::from_str(&text).map_err(|e| format!("{} is not JSON: {e}", path.display()))
    };
    let name = read(folder.join("benchmark.json"))?["group_id"].as_str().map(str::to_owned);
    let median = read(folder.join("estimates.json"))?["median"]["point_estimate"].as_f64();
    name.zip(median).ok_or_else(|| format!("{} has no group_id or no median", folder.display()))
}

/// `name bar unit peer…` a line; the unit is `ratio` (ours ÷ peer) or `ns` (ours − peer).
fn read_bars(text: &str) -> Outcome<BTreeMap<String, Bar>> {
    let mut bars = BTreeMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let bar = match words.as_slice() {
            [name, most, unit, _, ..] => match (most.parse(), *unit) {
                (Ok(most), "ratio") => Some((*name, Bar::Ratio(most))),
                (Ok(most), "ns") => Some((*name, Bar::Added(most))),
                _ => None,
            },
            _ => None,
        };
        let (name, bar) =
            bar.ok_or_else(|| format!("benches/bars.txt:{}: expected `name number ratio|ns peer`", i + 1))?;
        if bars.insert(name.to_owned(), bar).is_some() {
            return Err(format!("benches/bars.txt:{}: a second bar for {name}", i + 1));
        }
    }
    Ok(bars)
}

fn rows(rounds: &Rounds, bars: &BTreeMap<String, Bar>) -> Vec<Row> {
    let row = |(name, times): (&String, &Vec<Times>)| Row {
        name: name.clone(),
        ours: median(times.iter().map(|t| t.ours)),
        peer: median(times.iter().map(|t| t.peer)),
        ratio: median(times.iter().map(|t| t.ratio())),
        added: median(times.iter().map(|t| t.ours - t.peer)),
        bar: bars.get(name).copied(),
    };
    rounds.iter().map(row).collect()
}

/// The middle one (the upper of the two, where their number is even).
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn as_json(rows: &[Row]) -> Value {
    let bar = |row: &Row| match row.bar {
        Some(Bar::Ratio(most) | Bar::Added(most)) => json!(most),
        None => Value::Null,
    };
    let one = |row: &Row| json!({ "name": row.name, "ours_ns": row.ours, "peer_ns": row.peer, "ratio": row.ratio, "bar": bar(row), "ok": row.is_met() });
    json!({ "bars": rows.iter().map(one).collect::<Vec<_>>() })
}

fn as_table(rows: &[Row]) -> String {
    let mut table =
        format!("\n{:<28} {:>12} {:>15} {:>8}  {:<14} met\n", "name", "ours", "peer or bare", "ratio", "bar");
    for row in rows {
        let bar = match row.bar {
            Some(Bar::Ratio(most)) => format!("{most:.2} x"),
            Some(Bar::Added(most)) => format!("+{most:.0} ns"),
            None => "-".to_owned(),
        };
        let met = row.is_met().map_or("-", |met| if met { "yes" } else { "NO" });
        let unit = if row.name.ends_with("_bytes") { "B " } else { "ns" };
        table.push_str(&format!(
            "{:<28} {:>9.1} {unit} {:>12.1} {unit} {:>8.2}  {bar:<14} {met}\n",
            row.name, row.ours, row.peer, row.ratio
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars() -> BTreeMap<String, Bar> {
        read_bars("# comment\n\na/x 1.5 ratio the peer\nb/y 20 ns bare\n").expect("valid")
    }

    #[test]
    fn a_bar_is_a_ratio_or_added_nanoseconds() {
        assert_eq!(bars(), BTreeMap::from([("a/x".into(), Bar::Ratio(1.5)), ("b/y".into(), Bar::Added(20.0))]));
        for (bad, line) in
            [("a/x 1.5 ratio", 1), ("\na/x fast ratio p", 2), ("a/x 1 ms p", 1), ("a/x 1 ns p\na/x 1 ns p", 2)]
        {
            let why = read_bars(bad).expect_err(bad);
            assert!(why.starts_with(&format!("benches/bars.txt:{line}: ")), "{why}");
        }
    }

    #[test]
    fn the_median_of_the_rounds_decides() {
        let times = |(ours, peer)| Times { ours, peer, bare: 0.0 };
        let rounds = Rounds::from([
            ("a/x".into(), [(10.0, 10.0), (90.0, 10.0), (14.0, 10.0)].map(times).to_vec()),
            ("b/y".into(), [(131.0, 110.0), (130.0, 109.0), (100.0, 99.0)].map(times).to_vec()),
            ("c/z".into(), [(1.0, 2.0)].map(times).to_vec()),
        ]);
        let rows = rows(&rounds, &bars());
        let met: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.ratio, row.is_met())).collect();
        assert_eq!(met, [("a/x", 1.4, Some(true)), ("b/y", 131.0 / 110.0, Some(false)), ("c/z", 0.5, None)]);
        assert!(as_table(&rows).lines().last().is_some_and(|line| line.ends_with("-              -")));
    }

    #[test]
    fn where_the_bare_service_is_measured_the_ratio_is_of_what_is_added_to_it() {
        let rounds = Rounds::from([("a/x".into(), vec![Times { ours: 130.0, peer: 140.0, bare: 100.0 }])]);
        assert_eq!(rows(&rounds, &bars())[0].ratio, 0.75);
    }

    #[test]
    fn the_json_has_the_agreed_names() {
        let row = Row { name: "a/x".into(), ours: 1.5, peer: 1.0, ratio: 1.5, added: 0.5, bar: Some(Bar::Ratio(1.0)) };
        assert_eq!(
            as_json(&[row]),
            json!({"bars": [{"name": "a/x", "ours_ns": 1.5, "peer_ns": 1.0, "ratio": 1.5, "bar": 1.0, "ok": false}]})
        );
    }
}
