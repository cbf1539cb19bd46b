use bytes::Bytes;
use coze_core::RequestId;
use http::{HeaderValue, Response, StatusCode, header, request};
use serde::Serialize;

use crate::{
    Caller,
    accept::Language,
    headers,
    render::{Detail, json},
};

/// The answer to a request that is done later (R4.4): 202 with the platform's envelope, a message for people in their language, and
/// the receipt by which the caller finds the result.
///
/// ```
/// let (caller, ()) = http::Request::post("/webhook").header("accept-language", "zh").body(()).expect("valid").into_parts();
/// let answer = coze_errmap::accepted(&caller, "m1");
/// assert_eq!(answer.status(), 202);
/// assert_eq!(*answer.body(), r#"{"code":0,"msg":"请求已接收,结果将异步通知","data":{"receipt":"m1"}}"#);
/// ```
#[must_use]
pub fn accepted(request: &request::Parts, receipt: &str) -> Response<Bytes> {
    let caller = Caller::of(request);
    let msg = match caller.language {
        Language::English => "the request is accepted, its result follows",
        Language::Chinese => "请求已接收,结果将异步通知",
    };
    let logid = caller.context.as_ref().and_then(|context| context.request_id.get()).map(RequestId::as_str);
    let body = json(&Accepted { code: 0, msg, data: Data { receipt }, detail: logid.map(|logid| Detail { logid }) });
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(logid) = logid.and_then(|logid| HeaderValue::from_str(logid).ok()) {
        headers.insert(headers::LOGID, logid);
    }
    response
}

#[derive(Serialize)]
struct Accepted<'a> {
    code: i64,
    msg: &'a str,
    data: Data<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Detail<'a>>,
}

#[derive(Serialize)]
struct Data<'a> {
    receipt: &'a str,
}
