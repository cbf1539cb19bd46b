use http::{Method, Uri, header::ACCEPT, request::Parts};

/// Says that a request may run twice: put it into the request's extensions.
///
/// It is for requests whose method does not tell so, such as a POST that carries a key by which the other side knows it
/// again. The platform documents no such key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idempotent;

/// The platform's POSTs that only read (coze-platform.md §2.3, retry rule).
const READ_ONLY: [&str; 4] = [
    "/v3/chat/retrieve",
    "/v1/conversation/message/list",
    "/open_api/knowledge/document/list",
    "/v1/datasets/{id}/process",
];

/// May the request run twice: by its method (RFC 9110 §9.2.2), by its path on the platform, or because the caller says so?
pub(crate) fn is_idempotent(request: &Parts) -> bool {
    request.method.is_idempotent()
        || request.extensions.get::<Idempotent>().is_some()
        || request.method == Method::POST && is_read_only(&request.uri)
}

/// Does it only read: by its method (RFC 9110 §9.2.1) or by its path on the platform?
pub(crate) fn is_read(request: &Parts) -> bool {
    request.method.is_safe() || request.method == Method::POST && is_read_only(&request.uri)
}

/// Does it ask for a stream of events? Then an error instead of the stream means that nothing has begun (coze-platform.md §2.3,
/// retry rule).
pub(crate) fn asks_for_stream(request: &Parts) -> bool {
    let accepts = request.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts.flat_map(|value| value.split(',')).any(|part| {
        part.split(';').next().is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("text/event-stream"))
    })
}

fn is_read_only(uri: &Uri) -> bool {
    READ_ONLY.iter().any(|pattern| {
        let mut path = uri.path().split('/');
        pattern
            .split('/')
            .all(|part| path.next().is_some_and(|given| given == part || part == "{id}" && !given.is_empty()))
            && path.next().is_none()
    })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(method: &str, uri: &str) -> Parts {
        Request::builder().method(method).uri(uri).body(()).expect("a request").into_parts().0
    }

    #[test]
    fn a_method_says_whether_a_request_may_run_twice() {
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
            assert!(is_idempotent(&head(method, "/v3/chat")), "{method}");
        }
        for method in ["POST", "PATCH", "CONNECT", "get", "BREW"] {
            assert!(!is_idempotent(&head(method, "/v3/chat")), "{method}");
        }
    }

    #[test]
    fn the_posts_of_the_platform_that_only_read_may_run_twice() {
        for path in [
            "https://api.coze.cn/v3/chat/retrieve?chat_id=1",
            "/v1/conversation/message/list",
            "/open_api/knowledge/document/list",
            "/v1/datasets/73/process",
        ] {
            assert!(is_idempotent(&head("POST", path)), "{path}");
            assert!(!is_idempotent(&head("PATCH", path)), "{path}");
        }
        for path in [
            "/v3/chat",
            "/v3/chat/retrieve/",
            "/v3/chat/retrieve/x",
            "/x/v3/chat/retrieve",
            "//v3/chat/retrieve",
            "/v3/chat/Retrieve",
            "/v3/chat/%72etrieve",
            "/v1/datasets//process",
            "/v1/datasets/a/b/process",
            "/v1/datasets/73",
            "/?/v3/chat/retrieve",
            "/",
        ] {
            assert!(!is_idempotent(&head("POST", path)), "{path}");
        }
    }

    #[test]
    fn what_only_reads_is_known_by_method_and_path() {
        for (method, path) in [("GET", "/v3/chat"), ("HEAD", "/"), ("POST", "/v3/chat/retrieve")] {
            assert!(is_read(&head(method, path)), "{method}");
        }
        for (method, path) in [("PUT", "/"), ("DELETE", "/"), ("POST", "/v3/chat"), ("PUT", "/v3/chat/retrieve")] {
            assert!(!is_read(&head(method, path)), "{method}");
        }
    }

    #[test]
    fn a_stream_is_asked_for_by_its_media_type() {
        let asks = |accept: &'static str| {
            let mut chat = head("POST", "/v3/chat");
            chat.headers.insert(ACCEPT, http::HeaderValue::from_static(accept));
            asks_for_stream(&chat)
        };
        assert!(asks("text/event-stream") && asks("application/json;q=0.5, Text/Event-Stream; q=1"));
        assert!(!asks("*/*") && !asks("application/json") && !asks("text/event-streams") && !asks(""));
    }

    #[test]
    fn a_caller_may_say_so() {
        let mut chat = head("POST", "/v3/chat");
        chat.extensions.insert(Idempotent);
        assert!(is_idempotent(&chat));
    }
}
