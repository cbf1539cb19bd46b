use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// The 1-based line of a byte.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}

/// The path of the innermost key whose value holds the byte, such as `bots[1].tenant`; empty at the top.
pub(super) fn path_at(text: &str, at: usize) -> String {
    let mut path = String::new();
    if let Ok(table) = DeTable::parse(text) {
        descend(table.get_ref(), at, &mut path);
    }
    path
}

fn descend(table: &DeTable<'_>, at: usize, path: &mut String) {
    for (key, value) in table {
        if key.span().contains(&at) || holds(value, at) {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(key.get_ref());
            return into_value(value.get_ref(), at, path);
        }
    }
}

fn into_value(value: &DeValue<'_>, at: usize, path: &mut String) {
    match value {
        DeValue::Table(table) => descend(table, at, path),
        DeValue::Array(items) => {
            if let Some((index, item)) = items.iter().enumerate().find(|(_, item)| holds(item, at)) {
                path.push_str(&format!("[{index}]"));
                into_value(item.get_ref(), at, path);
            }
        }
        _ => {}
    }
}

/// The span of a table is its header only, so the tables below are asked too.
fn holds(value: &Spanned<DeValue<'_>>, at: usize) -> bool {
    value.span().contains(&at)
        || match value.get_ref() {
            DeValue::Table(table) => table.iter().any(|(key, value)| key.span().contains(&at) || holds(value, at)),
            DeValue::Array(items) => items.iter().any(|item| holds(item, at)),
            _ => false,
        }
}

/// Where the values of a configuration stand in its file: for what is found wrong when the service starts.
#[derive(Clone, Default)]
pub struct Places {
    pub(super) file: Option<PathBuf>,
    /// By key, such as `bots[1].tenant`.
    lines: BTreeMap<String, usize>,
}

impl Places {
    pub(super) fn of(text: &str, file: &Path) -> Self {
        let mut lines = BTreeMap::new();
        if let Ok(table) = DeTable::parse(text) {
            note(&DeValue::Table(table.into_inner()), "", text, &mut lines);
        }
        Self { file: Some(file.into()), lines }
    }

    /// The line of the value at `key`, or of the nearest table above it that is written down.
    pub(super) fn line(&self, mut key: &str) -> Option<usize> {
        loop {
            match self.lines.get(key) {
                Some(line) => return Some(*line),
                None => key = &key[..key.rfind(['.', '['])?],
            }
        }
    }
}

/// Says nothing: two configurations are equal wherever they stand.
impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Places")
    }
}

fn note(value: &DeValue<'_>, path: &str, text: &str, lines: &mut BTreeMap<String, usize>) {
    let mut one = |path: String, value: &Spanned<DeValue<'_>>| {
        lines.insert(path.clone(), line_at(text, value.span().start));
        note(value.get_ref(), &path, text, lines);
    };
    match value {
        DeValue::Table(table) => {
            for (key, value) in table {
                let path =
                    if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
                one(path, value);
            }
        }
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                one(format!("{path}[{index}]"), item);
            }
        }
        _ => {}
    }
}
