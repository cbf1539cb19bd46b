use http::{Method, StatusCode};

/// The methods that have a label of their own.
static METHODS: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::CONNECT,
    Method::OPTIONS,
    Method::TRACE,
    Method::PATCH,
];

/// How many labels there are for methods.
pub(crate) const METHOD_COUNT: usize = METHODS.len() + 1;

/// The number of a method's label.
pub(crate) fn method_number(method: &Method) -> usize {
    METHODS.iter().position(|m| m == method).unwrap_or(METHODS.len())
}

/// The label of a number: anybody can invent a method, so most have none of their own.
pub(crate) fn method_label(number: usize) -> &'static str {
    METHODS.get(number).map_or("_OTHER", Method::as_str)
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Informational,
    Success,
    Redirection,
    ClientError,
    ServerError,
    /// The inner service or its body failed.
    Error,
    /// Nobody waited for the end.
    Cancelled,
}

impl Outcome {
    pub(crate) const COUNT: usize = Self::Cancelled as usize + 1;

    /// The class of a status. A status beyond the classes counts as 5xx (RFC 9110 section 15).
    pub(crate) fn of(status: StatusCode) -> Self {
        match status.as_u16() / 100 {
            1 => Self::Informational,
            2 => Self::Success,
            3 => Self::Redirection,
            4 => Self::ClientError,
            _ => Self::ServerError,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Informational => "1xx",
            Self::Success => "2xx",
            Self::Redirection => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_methods_are_themselves_and_all_others_are_one() {
        for method in &METHODS {
            assert_eq!(method_label(method_number(method)), method.as_str());
        }
        for invented in ["get", "PROPFIND", "X"] {
            let number = method_number(&Method::from_bytes(invented.as_bytes()).expect("valid"));
            assert_eq!((method_label(number), number), ("_OTHER", METHOD_COUNT - 1));
        }
    }

    #[test]
    fn every_status_has_one_of_five_classes() {
        for code in 100..1000 {
            let class = Outcome::of(StatusCode::from_u16(code).expect("valid")).as_str();
            assert_eq!(class, format!("{}xx", (code / 100).min(5)));
        }
    }
}
