use std::{
    fmt, mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    answer::{Answered, Refusal},
    api::{self, Call},
    store::{self, Store},
};

/// Connections at once; further ones wait in the backlog of the listener.
const MAX_CONNECTIONS: usize = 1024;
/// The largest body.
const MAX_BODY: usize = 1 << 20;

/// Serves until the task is aborted, which drops all connections.
pub(super) async fn serve(store: Arc<Mutex<Store>>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                let Ok((stream, _)) = accepted else {
                    // No more file descriptors, most likely: they come back.
                    sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let store = store.clone();
                let service = service_fn(move |request| answer(store.clone(), request));
                let connection =
                    http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move {
                    // What goes wrong on a connection is its client's affair, or was asked for.
                    let _ = connection.await;
                });
            }
        }
    }
}

/// The answer that is a closed connection.
#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken off on purpose")
    }
}

impl std::error::Error for Broken {}

async fn answer(store: Arc<Mutex<Store>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Broken> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().strip_prefix("/v1/").unwrap_or_default().to_owned();
    let header = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let request = store::Request {
        route: format!("{} {path}", parts.method),
        status: 0,
        namespace: header("x-vault-namespace").map(str::to_owned),
        marked: header("x-vault-request") == Some("true"),
    };
    let call = read(&parts, path, body).await;
    let lock = || store.lock().unwrap_or_else(PoisonError::into_inner);
    let (fault, redirect) = {
        let mut store = lock();
        let path = call.as_ref().map_or("", |call| &call.path);
        (store.take_fault(path), store.active.clone().filter(|_| path != "sys/health" && !store.sealed))
    };
    let delay = fault.as_ref().map_or(Duration::ZERO, |fault| fault.delay);
    if !delay.is_zero() {
        sleep(delay).await;
    }
    if let Some(active) = redirect.filter(|_| fault.is_none()) {
        lock().record(request, 307);
        return Ok(redirected(&active, &parts));
    }
    let status = fault.as_ref().map_or(Some(200), |fault| fault.status);
    let is_carried_out = status == Some(200) || fault.as_ref().is_some_and(|fault| fault.after);
    let answered = match is_carried_out {
        true => carry_out(&store, call).await,
        false => Ok(None),
    };
    let (status, body) = match (status, answered) {
        (Some(200), Ok(None)) => (204, None),
        (Some(200), Ok(body)) => (200, body),
        (Some(200), Err(refusal)) => (refusal.status, Some(refusal.body)),
        (Some(status), _) => (status, fault.as_ref().map(|fault| fault.body.clone())),
        (None, _) => {
            lock().record(request, 0);
            return Err(Broken);
        }
    };
    lock().record(request, status);
    Ok(respond(status, body.as_ref(), fault.and_then(|fault| fault.retry_after)))
}

/// Handles a request, and makes the changes in the database that come of it.
async fn carry_out(store: &Mutex<Store>, call: Result<Call, Refusal>) -> Answered {
    let call = call?;
    let lock = || store.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(database) = lock().config.database.clone() else { return api::handle(&mut lock(), &call) };
    let _turn = database.turn().await;
    let (answered, changes) = {
        let mut store = lock();
        (api::handle(&mut store, &call), mem::take(&mut store.changes))
    };
    for change in changes {
        database.run(change).await.map_err(|error| Refusal::new(500, error))?;
    }
    answered
}

async fn read(parts: &Parts, path: String, body: Incoming) -> Result<Call, Refusal> {
    let bytes = Limited::new(body, MAX_BODY).collect().await;
    let bytes = bytes.map_err(|_| Refusal::new(413, "request body too large"))?.to_bytes();
    let body = match bytes.is_empty() {
        true => Map::new(),
        false => serde_json::from_slice(&bytes).map_err(|_| Refusal::new(400, "failed to parse JSON input"))?,
    };
    let header = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    Ok(Call {
        method: parts.method.to_string(),
        path,
        query: api::query(parts.uri.query()),
        token: header("x-vault-token").unwrap_or_default().to_owned(),
        wrap: header("x-vault-wrap-ttl").and_then(api::duration),
        body,
        now: Instant::now(),
    })
}

fn redirected(active: &str, parts: &Parts) -> Response<Full<Bytes>> {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut response = respond(307, None, None);
    if let Ok(location) = HeaderValue::from_str(&format!("{active}{path}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn respond(status: u16, body: Option<&Value>, retry_after: Option<u64>) -> Response<Full<Bytes>> {
    let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    let mut response = Response::new(Full::new(bytes));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = retry_after {
        headers.insert(HeaderName::from_static("retry-after"), seconds.into());
    }
    response
}
