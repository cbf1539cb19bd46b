//! Every dependency may be used by everybody.

use super::Violation;
use crate::step::{Outcome, cargo, output};

/// Permissive licences: whoever uses our crates takes on no duty but to name the authors.
const ALLOWED: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

pub(super) fn check() -> Outcome<Vec<Violation>> {
    let tree = ["tree", "--workspace", "--locked", "--prefix", "none", "--no-dedupe", "--format", "{l}|{p}"];
    let mut lines: Vec<String> = output(cargo().args(tree))?.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines.dedup();
    let refused = |line: &String| {
        let (licence, package) = line.split_once('|')?;
        // Behind the name comes where it is, and a mark where two depend on each other, as by their tests.
        let package = package.split(" (").next()?;
        (!allows(licence)).then(|| Violation::new("Cargo.lock", 0, format!("{package} has the licence `{licence}`")))
    };
    Ok(lines.iter().filter_map(refused).collect())
}

/// Is there a choice in the SPDX expression with allowed licences only? The old spelling `MIT/Apache-2.0` means OR.
fn allows(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any(&mut rest) && rest.is_empty()
}

fn any(rest: &mut &[&str]) -> bool {
    let mut allowed = all(rest);
    while let ["OR", tail @ ..] = *rest {
        *rest = tail;
        allowed |= all(rest);
    }
    allowed
}

fn all(rest: &mut &[&str]) -> bool {
    let mut allowed = one(rest);
    while let ["AND", tail @ ..] = *rest {
        *rest = tail;
        allowed &= one(rest);
    }
    allowed
}

fn one(rest: &mut &[&str]) -> bool {
    match *rest {
        ["(", tail @ ..] => {
            *rest = tail;
            let allowed = any(rest);
            if let [")", tail @ ..] = *rest {
                *rest = tail;
            }
            allowed
        }
        [name, "WITH", exception, tail @ ..] => {
            *rest = tail;
            ALLOWED.contains(&format!("{name} WITH {exception}").as_str())
        }
        [name, tail @ ..] => {
            *rest = tail;
            ALLOWED.contains(name)
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::allows;

    #[test]
    fn a_choice_with_one_permissive_side_is_allowed() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "ISC AND (Apache-2.0 OR ISC)",
        ] {
            assert!(allows(good), "{good}");
        }
    }

    #[test]
    fn a_duty_that_cannot_be_chosen_away_is_refused() {
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Zlib) AND MPL-2.0", "MIT WITH GPL", "MIT MIT", "N/A"] {
            assert!(!allows(bad), "{bad}");
        }
    }
}
