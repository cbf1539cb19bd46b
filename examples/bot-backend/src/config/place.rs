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

/// The line of the value at `path`, or of the nearest table above it that is written down.
pub(super) fn line_of(text: &str, path: &str) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let mut line = None;
    let mut next = Some(DeValue::Table(table.into_inner()));
    for step in path.split(['.', '[']) {
        let found = match (next.take()?, step.strip_suffix(']')) {
            (DeValue::Array(items), Some(index)) => items.get(index.parse::<usize>().ok()?).cloned(),
            (DeValue::Table(table), None) => table.get(step).cloned(),
            _ => None,
        };
        let Some(found) = found else { break };
        line = Some(line_at(text, found.span().start));
        next = Some(found.into_inner());
    }
    line
}
