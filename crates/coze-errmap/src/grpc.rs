//! A failure as a gRPC status, in the headers of a response without messages ("trailers-only", gRPC over HTTP/2).

use std::{collections::BTreeMap, fmt::Write};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use prost::Message;

use crate::render::Answer;

/// google.rpc.Status.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// google.protobuf.Any.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// google.rpc.ErrorInfo.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

/// google.rpc.RetryInfo.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Duration>,
}

/// google.protobuf.Duration.
#[derive(Clone, PartialEq, Message)]
struct Duration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// Writes the status into the headers of a response, which has status 200 and no body.
pub(crate) fn write(answer: &Answer<'_>, headers: &mut HeaderMap) {
    let code = answer.mapping.grpc;
    let mut metadata = BTreeMap::from([("code".to_owned(), answer.mapping.code.to_string())]);
    metadata.extend(answer.logid.map(|logid| ("logid".to_owned(), logid.to_owned())));
    let info = ErrorInfo {
        // The definition of google.rpc.ErrorInfo wants UPPER_SNAKE_CASE.
        reason: answer.reason.to_ascii_uppercase(),
        domain: "coze-tower".to_owned(),
        metadata,
    };
    let mut details = vec![any("google.rpc.ErrorInfo", &info)];
    details.extend(answer.retry_after.map(|seconds| {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        any("google.rpc.RetryInfo", &RetryInfo { retry_delay: Some(Duration { seconds, nanos: 0 }) })
    }));
    let status = Status { code, message: answer.message.to_owned(), details };

    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(HeaderName::from_static("grpc-status"), code.into());
    insert(headers, "grpc-message", &percent_encoded(answer.message));
    insert(headers, "grpc-status-details-bin", &STANDARD_NO_PAD.encode(status.encode_to_vec()));
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

fn insert(headers: &mut HeaderMap, name: &'static str, text: &str) {
    let value = HeaderValue::from_str(text).expect("the encoding is visible ASCII");
    headers.insert(HeaderName::from_static(name), value);
}

/// `Status-Message` of the gRPC protocol: all but visible ASCII and spaces is encoded, and the percent sign itself.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | ..=0x1f | 0x7f.. => _ = write!(out, "%{byte:02X}"),
            byte => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_percent_encoded_as_the_protocol_says() {
        assert_eq!(percent_encoded("a b~%\r\n忙\u{7f}"), "a b~%25%0D%0A%E5%BF%99%7F");
    }
}
