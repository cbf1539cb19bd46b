use coze_core::Context;
use http::{HeaderMap, HeaderName, Method, header, request};

use crate::headers;

/// What [`Responder`](crate::Responder) keeps of a request: which answer the caller understands.
#[derive(Clone, Debug)]
pub struct Caller {
    pub(crate) format: Format,
    pub(crate) language: Language,
    pub(crate) wants_body: bool,
    pub(crate) context: Option<Context>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The platform's `{"code":…,"msg":…}`.
    Envelope,
    /// RFC 9457.
    Problem,
    Grpc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    English,
    Chinese,
}

impl Caller {
    /// Reads the headers of a request. Allocates nothing.
    pub(crate) fn of(request: &request::Parts) -> Self {
        Self {
            format: Format::of(&request.headers),
            language: Language::of(&request.headers),
            wants_body: request.method != Method::HEAD,
            // Only if there is one: nobody outside would read what is noted on a new one.
            context: request.extensions.get().cloned(),
        }
    }
}

impl Format {
    /// gRPC to who speaks gRPC; else the problem if it is wanted more than plain JSON, by a better weight.
    fn of(headers: &HeaderMap) -> Self {
        if headers::is_grpc(headers::media_type(headers)) {
            return Self::Grpc;
        }
        let weight_of = |media_type: &'static str| {
            weight(headers, header::ACCEPT, move |range| match range {
                _ if range.eq_ignore_ascii_case(media_type) => 3,
                _ if range.eq_ignore_ascii_case("application/*") => 2,
                "*/*" => 1,
                _ => 0,
            })
        };
        let problem = weight_of("application/problem+json");
        let json = weight_of("application/json");
        if problem.1 > json.1 { Self::Problem } else { Self::Envelope }
    }
}

impl Language {
    /// Chinese if it is named and nothing is wanted more.
    fn of(headers: &HeaderMap) -> Self {
        let weight_of = |language: &'static str| {
            weight(headers, header::ACCEPT_LANGUAGE, move |range| match range.split('-').next() {
                Some(primary) if primary.eq_ignore_ascii_case(language) => 2,
                Some("*") => 1,
                _ => 0,
            })
        };
        let (english, chinese) = (weight_of("en"), weight_of("zh"));
        let named = chinese.0 == 2 && chinese.1 > 0;
        if named && chinese.1 >= english.1 { Self::Chinese } else { Self::English }
    }
}

/// How much something is wanted (RFC 9110 §12.4.2): how specific the best range is that covers it, 0 for none does, and the
/// weight of that range in thousandths. A range with a malformed weight is not there.
fn weight(headers: &HeaderMap, name: HeaderName, specificity: impl Fn(&str) -> u8) -> (u8, u16) {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| split(value, ','))
        .filter_map(|element| {
            let mut parts = split(element, ';').map(str::trim);
            let specific = specificity(parts.next()?);
            let q = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            Some((specific, q.map_or(Some(1000), thousandths)?))
        })
        .filter(|(specific, _)| *specific > 0)
        .max()
        .unwrap_or_default()
}

/// The parts of a header between separators that are not quoted.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
}

/// `0`, `1`, or `0.` and up to three digits.
fn thousandths(q: &str) -> Option<u16> {
    let (whole, fraction) = q.split_once('.').unwrap_or((q, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths =
        (0..3).fold(0, |sum, at| sum * 10 + fraction.as_bytes().get(at).map_or(0, |b| u16::from(b - b'0')));
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(accept: &[&str]) -> Format {
        let values = accept.iter().map(|value| (header::ACCEPT, value.parse().expect("valid")));
        Format::of(&values.collect())
    }

    fn language(accept: &str) -> Language {
        Language::of(&[(header::ACCEPT_LANGUAGE, accept.parse().expect("valid"))].into_iter().collect())
    }

    #[test]
    fn a_problem_is_given_to_who_wants_it_more_than_json() {
        for accept in [
            &["application/problem+json"][..],
            &["application/problem+json, application/json;q=0.9"],
            &["application/json;q=0.5", "application/problem+json;q=0.6"],
            &["Application/Problem+JSON;q=0.3, */*;q=0.1"],
            &["application/json;q=0, */*"],
            &["application/problem+json;v=\"a,b\";q=0.4, application/json;q=0.3"],
            &["application/*;q=0.2, application/problem+json;q=0.21"],
        ] {
            assert_eq!(format(accept), Format::Problem, "{accept:?}");
        }
    }

    #[test]
    fn the_envelope_is_given_to_everybody_else() {
        for accept in [
            &[][..],
            &["*/*"],
            &[""],
            &["text/html"],
            &["application/json, application/problem+json"],
            &["application/problem+json;q=0.5, application/json"],
            &["application/problem+json;q=0.5, */*"],
            &["application/problem+json;q=0"],
            &["application/problem+json;q=7"],
            &["application/problem+json;q=nan"],
            &["application/problem+json;q=0.1234"],
            &["application/json;profile=\"x, application/problem+json\""],
            &[";;,,;q=,\"", "\""],
        ] {
            assert_eq!(format(accept), Format::Envelope, "{accept:?}");
        }
    }

    #[test]
    fn chinese_is_spoken_to_who_names_it() {
        for accept in ["zh", "zh-CN,zh;q=0.9,en;q=0.8", "ZH-Hans-CN", "fr, zh;q=0.1", "zh, en"] {
            assert_eq!(language(accept), Language::Chinese, "{accept}");
        }
        for accept in ["", "*", "en", "en, zh;q=0.9", "fr", "zh;q=0", "zho", "*;q=0.5, en"] {
            assert_eq!(language(accept), Language::English, "{accept}");
        }
    }
}
