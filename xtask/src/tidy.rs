//! The house rules that no compiler checks.

mod licences;
mod manifests;
mod sources;

use std::{fmt, fs};

use crate::step::{Outcome, command, output, root};

/// A rule that a line breaks.
#[derive(Debug)]
struct Violation {
    file: String,
    /// Counted from 1; 0 where the file as a whole is meant.
    line: usize,
    rule: String,
}

impl Violation {
    fn new(file: &str, line: usize, rule: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, rule: rule.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.rule),
            line => write!(f, "{}:{line}: {}", self.file, self.rule),
        }
    }
}

/// A text file of the repository.
struct File {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

impl File {
    /// The lines with their numbers.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line))
    }
}

/// Fails when a rule is broken; says which, where.
pub(crate) fn tidy() -> Outcome {
    let files = files()?;
    let mut broken = sources::check(&files);
    broken.extend(manifests::check(&files)?);
    broken.extend(licences::check()?);
    for violation in &broken {
        eprintln!("{violation}");
    }
    match broken.len() {
        0 => {
            eprintln!("tidy: {} files keep the rules", files.len());
            Ok(())
        }
        n => Err(format!("{n} lines break the rules")),
    }
}

/// Every text file that git has or would add.
fn files() -> Outcome<Vec<File>> {
    let list = output(command("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let read = |path: &str| {
        let text = fs::read_to_string(root().join(path)).ok()?;
        Some(File { path: path.to_owned(), text })
    };
    Ok(list.lines().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_keeps_its_rules() {
        assert_eq!(super::tidy(), Ok(()), "see above for the lines");
    }
}
