//! The callers' HTTP client.

use bytes::Bytes;
use coze_core::BoxError;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// Bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;

/// A client that retries nothing. Clones share connections.
#[derive(Clone, Debug)]
pub(super) struct Http(Client<HttpConnector, Full<Bytes>>);

impl Http {
    pub(super) fn new() -> Self {
        let mut client = Client::builder(TokioExecutor::new());
        Self(client.retry_canceled_requests(false).build_http())
    }

    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, BoxError> {
        let (head, body) = self.0.request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    pub(super) async fn get(&self, url: &str) -> Result<Answer, BoxError> {
        self.send(Request::get(url).body(Full::default())?).await
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// In a few words: the status, and the answer or what a refusal says for programs.
    pub(super) fn said(&self) -> String {
        let (status, body) = (self.status.as_u16(), self.json());
        if let Some(content) = body["data"]["content"].as_str() {
            return format!("{status} {content:?}");
        }
        let mut said = match body["code"].as_i64() {
            Some(code) => format!("{status}, code {code}"),
            None => format!("{status}"),
        };
        if let Some(wait) = self.header("retry-after") {
            said.push_str(&format!(", Retry-After {wait}"));
        }
        said
    }
}
