use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// An HTTP client that follows nothing, retries nothing and hides nothing.
#[derive(Clone, Debug)]
pub struct Http(Client<HttpConnector, Full<Bytes>>);

impl Http {
    /// A client without connections.
    #[must_use]
    pub fn new() -> Self {
        let mut client = Client::builder(TokioExecutor::new());
        Self(client.retry_canceled_requests(false).build_http())
    }

    /// GET.
    ///
    /// # Panics
    /// As [`Http::open`].
    pub async fn get(&self, url: &str) -> Answer {
        self.send(Request::get(url).body(Full::default()).expect("a valid URL")).await
    }

    /// POST of JSON.
    ///
    /// # Panics
    /// As [`Http::open`].
    pub async fn post(&self, url: &str, body: &Value) -> Answer {
        let request = Request::post(url).header(CONTENT_TYPE, "application/json");
        self.send(request.body(Full::from(body.to_string())).expect("a valid URL")).await
    }

    /// Sends any request and waits for the whole answer.
    ///
    /// # Panics
    /// As [`Http::open`], and if the body breaks off.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let (parts, body) = self.open(request).await.into_parts();
        let body = body.collect().await.expect("the answer is complete").to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// Sends any request and waits for the head of the answer only.
    ///
    /// # Panics
    /// If nobody answers.
    pub async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let uri = request.uri().clone();
        self.0.request(request).await.unwrap_or_else(|e| panic!("{uri} did not answer: {e:?}"))
    }
}

impl Default for Http {
    fn default() -> Self {
        Self::new()
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    ///
    /// # Panics
    /// If it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is something else.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.text()))
    }
}
