use tracing::{Span, field::Empty, info_span};

/// Where we stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Requests come to us.
    Server,
    /// Requests come from us.
    Client,
}

/// The names of a side's metrics.
pub(crate) struct Names {
    pub(crate) requests: &'static str,
    pub(crate) head: &'static str,
    pub(crate) body: &'static str,
    pub(crate) in_flight: &'static str,
}

const SERVER: Names = Names {
    requests: "coze_http_server_requests_total",
    head: "coze_http_server_duration_seconds",
    body: "coze_http_server_body_duration_seconds",
    in_flight: "coze_http_server_in_flight",
};

const CLIENT: Names = Names {
    requests: "coze_http_client_requests_total",
    head: "coze_http_client_duration_seconds",
    body: "coze_http_client_body_duration_seconds",
    in_flight: "coze_http_client_in_flight",
};

impl Side {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }

    pub(crate) const fn names(self) -> &'static Names {
        match self {
            Self::Server => &SERVER,
            Self::Client => &CLIENT,
        }
    }

    /// The span of a request. A span's name is part of its call site, so each side has one.
    pub(crate) fn span(self, method: &str, route: &str, request_id: Option<&str>) -> Span {
        macro_rules! span {
            ($name:literal $(, $field:ident)*) => {
                info_span!(
                    target: "coze::request",
                    $name,
                    method,
                    route,
                    request_id,
                    tenant = Empty,
                    bot = Empty,
                    status = Empty,
                    outcome = Empty,
                    $($field = Empty,)*
                )
            };
        }
        match self {
            Self::Server => span!("http_server", auth_error_code, auth_trace_id, auth_resource, auth_client),
            Self::Client => span!("http_client"),
        }
    }
}
