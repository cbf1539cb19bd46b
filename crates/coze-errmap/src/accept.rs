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
        let [problem, json] = weights(headers, header::ACCEPT, |range| {
            [&b"application/problem+json"[..], b"application/json"].map(|media_type| match range {
                _ if range.eq_ignore_ascii_case(media_type) => 3,
                _ if range.eq_ignore_ascii_case(b"application/*") => 2,
                b"*/*" => 1,
                _ => 0,
            })
        });
        if problem.1 > json.1 { Self::Problem } else { Self::Envelope }
    }
}

impl Language {
    /// Chinese if it is named and nothing is wanted more.
    fn of(headers: &HeaderMap) -> Self {
        let [english, chinese] = weights(headers, header::ACCEPT_LANGUAGE, |range| {
            let primary = range.split(|b| *b == b'-').next().unwrap_or_default();
            [b"en", b"zh"].map(|language| match primary {
                _ if primary.eq_ignore_ascii_case(language) => 2,
                b"*" => 1,
                _ => 0,
            })
        });
        let named = chinese.0 == 2 && chinese.1 > 0;
        if named && chinese.1 >= english.1 { Self::Chinese } else { Self::English }
    }
}

/// How much each of two things is wanted (RFC 9110 §12.4.2): how specific the best range is that covers it, 0 for none does,
/// and the weight of that range in thousandths. A range with a malformed weight is not there.
fn weights(headers: &HeaderMap, name: HeaderName, specificity: impl Fn(&[u8]) -> [u8; 2]) -> [(u8, u16); 2] {
    let mut best = [(0, 0); 2];
    for element in headers.get_all(name).into_iter().flat_map(|value| split(value.as_bytes(), b',')) {
        let mut parts = split(element, b';').map(<[u8]>::trim_ascii);
        let specific = specificity(parts.next().unwrap_or_default());
        let q = parts.find_map(|part| part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q=")));
        let Some(weight) = q.map_or(Some(1000), thousandths) else { continue };
        for (best, specific) in best.iter_mut().zip(specific).filter(|(_, specific)| *specific > 0) {
            *best = (*best).max((specific, weight));
        }
    }
    best
}

/// The parts of a header between separators that are not quoted.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    text.split(move |b| {
        quoted ^= *b == b'"';
        *b == separator && !quoted
    })
}

/// `0`, `1`, or `0.` and up to three digits.
fn thousandths(q: &[u8]) -> Option<u16> {
    let (whole, fraction) = match q {
        [whole, b'.', fraction @ ..] => (whole, fraction),
        [whole] => (whole, &[][..]),
        _ => return None,
    };
    if fraction.len() > 3 || !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let thousandths = (0..3).fold(0, |sum, at| sum * 10 + fraction.get(at).map_or(0, |digit| u16::from(digit - b'0')));
    match whole {
        b'0' => Some(thousandths),
        b'1' if thousandths == 0 => Some(1000),
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
