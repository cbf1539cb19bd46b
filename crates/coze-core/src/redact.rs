use std::borrow::Cow;

/// How the platform's credentials begin (docs: authentication, token prefixes), and JWTs (`{"` in base64url).
const PREFIXES: [&str; 8] = ["Bearer ", "bearer ", "pat_", "sat_", "czu_", "czs_", "code_", "eyJ"];
/// Anything shorter is a word that happens to begin so, such as `code_path`.
const MIN_SECRET: usize = 12;

/// Replaces what looks like a credential by `[redacted]`, so that foreign text can go into a log or an error.
///
/// A credential is one of the platform's token prefixes, or `Bearer `, or the head of a JWT, at the start of
/// a word and followed by at least 12 token characters. Text without one is returned as it is.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut kept = 0;
    let mut at = 0;
    while at < text.len() {
        match secret_at(text, at) {
            Some(end) => {
                out.push_str(&text[kept..at]);
                out.push_str("[redacted]");
                (kept, at) = (end, end);
            }
            None => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    if kept == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[kept..]);
    Cow::Owned(out)
}

/// The end of the credential that begins at `at`.
fn secret_at(text: &str, at: usize) -> Option<usize> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "-_.~+/=*".contains(c);
    if text[..at].chars().next_back().is_some_and(is_token) {
        return None;
    }
    let prefix = PREFIXES.iter().find(|p| text[at..].starts_with(**p))?;
    let rest = &text[at + prefix.len()..];
    let len = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
    (len >= MIN_SECRET).then_some(at + prefix.len() + len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn credentials_are_replaced_and_the_text_around_them_stays() {
        assert_eq!(redact("token pat_abcdefghijkl12 bad"), "token [redacted] bad");
        assert_eq!(redact("Bearer abcdefghijkl12, x"), "[redacted], x");
        assert_eq!(redact("(eyJhbGciOiJIUzI1NiJ9.e30.sig)"), "([redacted])");
    }

    #[test]
    fn ordinary_words_stay() {
        for text in ["error_code_path_in_module", "code_path", "a Bearer token", "服务繁忙"] {
            assert!(matches!(redact(text), Cow::Borrowed(_)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_token_never_survives_in_any_text(before in "\\PC{0,20}", token in "[A-Za-z0-9]{12,40}", after in "\\PC{0,20}") {
            let text = format!("{before} pat_{token} {after}");
            let secret = format!("pat_{token}");
            prop_assert!(!redact(&text).contains(&secret));
        }
    }
}
