use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE, request::Parts};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    Fault,
    body::Script,
    push::{self, Callback, Challenge, Webhook},
    state::{Shared, State},
};

/// The largest body a control endpoint reads.
const MAX_BODY: usize = 1 << 20;

/// What a control endpoint refuses with: an HTTP status and what to do about it.
type Failed = (StatusCode, String);

/// Answers a request under `/_sim/` (see the README for what there is).
pub(crate) async fn answer(shared: &Shared, parts: &Parts, body: Incoming) -> Response<Script> {
    let result = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => act(shared, parts, &body.to_bytes()).await,
        Err(error) => Err((StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}"))),
    };
    let (status, body) = match result {
        Ok(value) => (StatusCode::OK, value),
        Err((status, error)) => (status, json!({ "error": error })),
    };
    let mut response = Response::new(Script::whole(body.to_string(), None));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn act(shared: &Shared, parts: &Parts, body: &Bytes) -> Result<Value, Failed> {
    let state = || shared.lock();
    match (parts.method.as_str(), parts.uri.path()) {
        ("GET", "/_sim/counts") => to_value(&state().counts()),
        ("DELETE", "/_sim/counts") => {
            state().record.clear();
            Ok(json!({ "cleared": true }))
        }
        ("GET", "/_sim/requests") => to_value(&state().record.requests()),
        ("GET", "/_sim/faults") => to_value(state().faults.list()),
        ("POST", "/_sim/faults") => add_faults(&mut state(), read(body)?),
        ("DELETE", "/_sim/faults") => Ok(json!({ "removed": state().faults.clear() })),
        ("POST", "/_sim/tokens/expire") => {
            state().expire_tokens();
            Ok(json!({ "expired": true }))
        }
        ("POST", "/_sim/device/approve") => {
            let Approve { user_code, approve } = read(body)?;
            match state().decide(&user_code, approve) {
                true => Ok(json!({ "user_code": user_code, "approved": approve })),
                false => Err((StatusCode::NOT_FOUND, format!("no device waits with the user_code {user_code:?}"))),
            }
        }
        ("POST", "/_sim/push") => {
            let pushed = match read(body)? {
                Push::Webhook(webhook) => push::webhook(&webhook).await,
                Push::Callback(callback) => push::callback(shared, &callback).await,
                Push::Challenge(challenge) => push::challenge(shared, &challenge).await,
            };
            to_value(&pushed.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?)
        }
        (method, path) => Err((StatusCode::NOT_FOUND, format!("there is no {method} {path}"))),
    }
}

/// One fault, or several. They are added together or not at all.
fn add_faults(state: &mut State, value: Value) -> Result<Value, Failed> {
    let list = if value.is_array() { value } else { json!([value]) };
    let list: Vec<Fault> = serde_json::from_value(list).map_err(bad)?;
    state.faults.add_all(list).map_err(bad)?;
    Ok(json!({ "waiting": state.faults.list().len() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Approve {
    user_code: String,
    #[serde(default = "yes")]
    approve: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Push {
    Webhook(Webhook),
    Callback(Callback),
    Challenge(Challenge),
}

fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failed> {
    serde_json::from_slice(body).map_err(bad)
}

fn bad(error: impl std::fmt::Display) -> Failed {
    (StatusCode::BAD_REQUEST, error.to_string())
}

fn to_value(value: &(impl Serialize + ?Sized)) -> Result<Value, Failed> {
    serde_json::to_value(value).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
