use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    auth::{self, Grant},
    body::{OnAir, Script},
    call::{Call, query_pairs},
    control, digest,
    fault::{self, FaultKind},
    jwt,
    limit::Group,
    record::Recorded,
    reply::{Event, Refusal, Reply, envelope},
    route::{self, Route},
    server::Reset,
    state::{Shared, State},
};

/// The largest body of a workflow request, and of any other but an upload (coze-platform.md §4).
const MAX_WORKFLOW_BODY: usize = 20 << 20;
const MAX_BODY: usize = 15 << 20;
/// What a form may have around its file.
const FORM_ROOM: usize = 64 << 10;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(60);
/// The route of requests that match none.
const UNKNOWN: &str = "unknown";

/// Answers one request.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    reset: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Result<Response<Script>, Reset> {
    let (parts, body) = request.into_parts();
    if shared.config.control && parts.uri.path().starts_with("/_sim/") {
        return Ok(control::answer(&shared, &parts, body).await);
    }
    let on_air = OnAir::new(shared.clone());
    let found = route::find(parts.method.as_str(), parts.uri.path());
    let body = read(&shared, found.as_ref().map(|(route, _)| *route), body).await?;
    let route = found.as_ref().map_or(UNKNOWN, |(route, _)| route.name);
    let is_public = found.as_ref().is_some_and(|(route, _)| route.group == Group::Public);
    let mut recorded = record(&shared, &parts, route, body.as_deref().unwrap_or_default(), is_public);
    let (number, logid, fault) = {
        let mut state = shared.lock();
        let logid = state.ids.logid(shared.unix());
        recorded.logid.clone_from(&logid);
        let number = state.record.request(recorded);
        let pattern = route.split_once(' ').map_or("", |(_, pattern)| pattern);
        let fault = state.faults.take(parts.method.as_str(), parts.uri.path(), pattern).unwrap_or_default();
        if fault.kind == FaultKind::ExpireTokens {
            state.expire_tokens();
        }
        (number, logid, fault)
    };
    if !fault.delay.is_zero() {
        sleep(fault.delay).await;
    }
    if fault.kind == FaultKind::Reset {
        reset.store(true, Ordering::Relaxed);
        shared.lock().record.answered(number, route, 0, "reset");
        return Err(Reset);
    }
    let answer = match injected(&fault.kind, &logid) {
        Some(answer) => answer,
        None => {
            let (found, args) = found.map_or((None, Vec::new()), |(route, args)| (Some(route), args));
            let call = Call {
                query: query_pairs(parts.uri.query()),
                parts,
                body: body.as_ref().ok().cloned().unwrap_or_default(),
                args,
                grant: Grant::default(),
                fault: fault.kind.clone(),
                now: Instant::now(),
                unix: shared.unix(),
                logid: logid.clone(),
            };
            let reply = body.map(|_| ()).and_then(|()| handle(&shared, &mut shared.lock(), found, call));
            Answer::of(reply, &fault.kind, &logid)
        }
    };
    shared.lock().record.answered(number, route, answer.status, &answer.outcome);
    Ok(answer.into_response(&shared, on_air, &fault.kind, &logid))
}

/// Reads a body, unless it is too large.
async fn read(shared: &Shared, route: Option<&Route>, body: Incoming) -> Result<Result<Bytes, Refusal>, Reset> {
    let upload = route.is_some_and(|route| route.group == Group::Upload);
    let cap = match route.map(|route| route.group) {
        Some(Group::Upload) => shared.config.limits.file_bytes.saturating_add(FORM_ROOM),
        Some(Group::Workflow) => MAX_WORKFLOW_BODY,
        _ => MAX_BODY,
    };
    match timeout(BODY_TIME, Limited::new(body, cap).collect()).await {
        Ok(Ok(body)) => Ok(Ok(body.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Ok(Err(match upload {
            true => Refusal::new(4302, "The uploaded file is too large"),
            false => Refusal { status: 413, ..Refusal::param(format!("the body has more than {cap} bytes")) },
        })),
        // The client went away, or sends nothing more: there is nobody to answer.
        Ok(Err(_)) | Err(_) => Err(Reset),
    }
}

/// What is kept of a request; of the bodies of OAuth nothing, for they are secrets.
fn record(shared: &Shared, parts: &Parts, route: &str, body: &[u8], is_secret: bool) -> Recorded {
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let shown = if is_secret { 0 } else { body.len().min(shared.config.keep.body_bytes) };
    Recorded {
        number: 0,
        at: Instant::now().duration_since(shared.started),
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        route: route.to_owned(),
        token: auth::bearer(&parts.headers).map(digest::fingerprint),
        key_id: auth::bearer(&parts.headers).and_then(jwt::key_id),
        tenant: header(&shared.config.tenant_header).map(str::to_owned),
        body: String::from_utf8_lossy(&body[..shown]).into_owned(),
        body_bytes: body.len(),
        body_sha256: digest::sha256(body),
        status: 0,
        outcome: String::new(),
        logid: String::new(),
    }
}

/// Who calls, may they, how often, and then what for.
fn handle(shared: &Shared, state: &mut State, route: Option<&Route>, mut call: Call) -> Result<Reply, Refusal> {
    let Some(route) = route else {
        return Err(Refusal { status: 404, ..Refusal::new(4000, "The requested path does not exist") });
    };
    if route.group != Group::Public {
        call.grant = auth::check(state, route, &call.parts.headers, call.unix)?;
        let State { windows, record, .. } = state;
        windows.count(&shared.config.limits, &mut record.counts, &call.grant.app, route.group, call.now)?;
    }
    (route.handler)(shared, state, &call)
}

/// An answer before it is a response.
struct Answer {
    status: u16,
    outcome: String,
    headers: Vec<(String, String)>,
    /// `None` is no body and no content type.
    content_type: Option<&'static str>,
    content: Content,
}

enum Content {
    Whole(String),
    /// Events, and the chat that ends with them.
    Stream(Vec<Event>, Option<String>),
}

const JSON: Option<&str> = Some("application/json; charset=utf-8");

/// The answer of a fault that needs no handler.
fn injected(kind: &FaultKind, logid: &str) -> Option<Answer> {
    let pairs = |headers: &BTreeMap<String, String>| headers.clone().into_iter().collect();
    Some(match kind {
        FaultKind::Status { status, body, headers } => Answer {
            status: *status,
            outcome: format!("http {status}"),
            headers: pairs(headers),
            content_type: JSON.filter(|_| body.is_some()),
            content: Content::Whole(body.as_ref().map(Value::to_string).unwrap_or_default()),
        },
        FaultKind::Code { code, msg, status, headers } => Answer {
            status: *status,
            outcome: code.to_string(),
            headers: pairs(headers),
            content_type: JSON,
            content: Content::Whole(envelope(*code, msg, logid, Map::new()).to_string()),
        },
        FaultKind::Html { status } => {
            let status = fault::status(*status);
            Answer {
                status: status.as_u16(),
                outcome: format!("http {}", status.as_u16()),
                headers: vec![("server".into(), "Tengine".into())],
                content_type: Some("text/html"),
                content: Content::Whole(format!(
                    "<html>\r\n<head><title>{status}</title></head>\r\n<body>\r\n<center><h1>{status}</h1></center>\r\n\
                     <hr/>Powered by Tengine<hr><center>tengine</center>\r\n</body>\r\n</html>\r\n"
                )),
            }
        }
        _ => return None,
    })
}

impl Answer {
    fn of(reply: Result<Reply, Refusal>, fault: &FaultKind, logid: &str) -> Self {
        let whole = |status, outcome: String, body: &Value| {
            let mut text = body.to_string();
            let outcome = match fault {
                FaultKind::InvalidJson => {
                    text.truncate(text.find(':').map_or(0, |at| at + 1));
                    fault.outcome().into()
                }
                FaultKind::Cut { .. } => fault.outcome().into(),
                _ => outcome,
            };
            Self { status, outcome, headers: Vec::new(), content_type: JSON, content: Content::Whole(text) }
        };
        match reply {
            Ok(Reply::Data(data)) => {
                whole(200, "0".into(), &envelope(0, "", logid, Map::from_iter([("data".to_owned(), data)])))
            }
            Ok(Reply::Fields(fields)) => whole(200, "0".into(), &envelope(0, "", logid, fields)),
            Ok(Reply::Bare { status, body, outcome }) => whole(status, outcome, &body),
            Ok(Reply::Redirect(to)) => Self {
                status: 302,
                outcome: "0".into(),
                headers: vec![("location".into(), to)],
                content_type: None,
                content: Content::Whole(String::new()),
            },
            Ok(Reply::Stream { mut events, chat }) => {
                fault.change(&mut events);
                Self {
                    status: 200,
                    outcome: fault.outcome().into(),
                    headers: vec![("cache-control".into(), "no-cache".into())],
                    content_type: Some("text/event-stream"),
                    content: Content::Stream(events, chat),
                }
            }
            Err(Refusal { status, code, msg }) => {
                whole(status, code.to_string(), &envelope(code, &msg, logid, Map::new()))
            }
        }
    }

    fn into_response(self, shared: &Shared, on_air: OnAir, fault: &FaultKind, logid: &str) -> Response<Script> {
        let pace = &shared.config.pace;
        let mut script = match self.content {
            Content::Whole(text) => Script::whole(text, Some(on_air)),
            Content::Stream(events, chat) => {
                let delay = match fault {
                    FaultKind::DelayEvents { delay } => *delay,
                    _ => pace.chunk_delay,
                };
                let frames = events.iter().map(|event| (event.encode(pace.space).into(), event.ends()));
                Script::stream(frames, delay, on_air.with_chat(chat))
            }
        };
        script = match fault {
            FaultKind::SlowBody { delay } => script.slow(*delay),
            FaultKind::Cut { after, abort } => script.cut(*after, *abort),
            _ => script,
        };
        let mut response = Response::new(script);
        *response.status_mut() = fault::status(self.status);
        let headers = response.headers_mut();
        // The gateway before the platform knows no log ids.
        let logid = Some(logid).filter(|_| !matches!(fault, FaultKind::Html { .. }));
        if let Some(value) = logid.and_then(|logid| HeaderValue::from_str(logid).ok()) {
            headers.insert(HeaderName::from_static("x-tt-logid"), value);
        }
        if let Some(content_type) = self.content_type {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        for (name, value) in self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value)) {
                headers.insert(name, value);
            }
        }
        response
    }
}
