//! The whole stack of the way out, over TCP, against the simulated platform.

use std::{
    future::ready,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use coze_auth::{AuthLayer, Bearer, Renewing, Token};
use coze_core::{BoxError, Context, Error, Kind, TenantId};
use coze_errmap::{Classifier, ErrMapLayer};
use coze_observe::{ObserveLayer, Outbound};
use coze_ratelimit::{Limits, Pace, PaceLevel, PlatformPlan, RateLimitLayer};
use coze_retry::{RetryLayer, Row, Standard, Wait};
use coze_sim::{BOT, Config, Fault, FaultKind, Sim, TOKEN, WORKFLOW};
use coze_tenant::{Propagate, TenantLayer};
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tokio::task::JoinSet;
use tower::{Service, ServiceBuilder, ServiceExt};

/// The whole stack of the way out, with the delays of the table left out. `tokens` are the ones it gets, one after the other.
fn out_stack(
    tokens: &'static [&'static str],
) -> impl Service<Request<Full<Bytes>>, Response = Response<impl Body<Data = Bytes, Error = BoxError>>, Error = BoxError>
{
    let fetched = Arc::new(AtomicUsize::new(0));
    let fetch = move || ready(Token::bearer(tokens[fetched.fetch_add(1, Ordering::SeqCst)]));
    let at_once = Row::DEFAULTS.iter().map(|row| Row { wait: Wait::Fixed(Duration::ZERO), ..*row });
    let mut client = Client::builder(TokioExecutor::new());
    ServiceBuilder::new()
        .layer(ObserveLayer::new(Outbound::new(["/v3/chat", "/v1/bots/{bot_id}"]).expect("valid routes")))
        .layer(TenantLayer::new(Propagate::new()))
        .layer(RetryLayer::new(Standard::new().rows(at_once)))
        .layer(RateLimitLayer::new(Limits::outbound(NonZeroU32::new(1000).expect("not zero"))))
        .layer(AuthLayer::new(Bearer::new(Renewing::new(fetch))))
        .layer(ErrMapLayer::new(Classifier::new()))
        // What is sent again is our decision, so hyper must not make it too.
        .service(client.retry_canceled_requests(false).build_http())
}

/// A call on behalf of the tenant `t1`.
fn call(sim: &Sim, method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(format!("{}{path}", sim.url()));
    let mut request =
        request.header("content-type", "application/json").body(Full::from(body.to_owned())).expect("valid");
    let context = Context::of(request.extensions_mut());
    context.tenant.set(TenantId::new("t1").expect("valid")).expect("empty");
    request
}

fn bot(sim: &Sim) -> Request<Full<Bytes>> {
    call(sim, "GET", &format!("/v1/bots/{BOT}"), "")
}

fn chat(sim: &Sim, stream: bool) -> Request<Full<Bytes>> {
    let body = format!(
        r#"{{"bot_id":"{BOT}","user_id":"u1","stream":{stream},"auto_save_history":true,
            "additional_messages":[{{"role":"user","content":"hello","content_type":"text"}}]}}"#
    );
    call(sim, "POST", "/v3/chat", &body)
}

async fn sim(faults: impl IntoIterator<Item = Fault>) -> Sim {
    let sim = Sim::start(Config::default()).await.expect("a free port");
    for fault in faults {
        sim.fault(fault).expect("valid");
    }
    sim
}

fn code(code: i64) -> FaultKind {
    FaultKind::Code { code, msg: "scripted".into(), status: 200, headers: Default::default() }
}

fn status(status: u16) -> FaultKind {
    FaultKind::Status { status, body: None, headers: Default::default() }
}

/// Sends one request through a fresh stack: the whole answer, or the typed error.
async fn send(request: Request<Full<Bytes>>) -> Result<String, (Kind, Option<i64>)> {
    match out_stack(&[TOKEN, TOKEN]).oneshot(request).await {
        Ok(response) => {
            let body = response.into_body().collect().await.expect("complete").to_bytes();
            Ok(String::from_utf8(body.to_vec()).expect("UTF-8"))
        }
        Err(error) => {
            let error = Error::find(&*error).expect("typed");
            Err((error.kind(), error.platform().map(|platform| platform.code)))
        }
    }
}

#[tokio::test]
async fn a_call_carries_token_tenant_and_request_id_and_its_answer_is_intact() {
    let sim = sim([]).await;
    let answer: Value = serde_json::from_str(&send(bot(&sim)).await.expect("found")).expect("JSON");
    assert_eq!((&answer["code"], &answer["data"]["bot_id"]), (&0.into(), &BOT.into()));
    let [seen] = &sim.requests()[..] else { panic!("one request") };
    assert_eq!(seen.tenant.as_deref(), Some("t1"));
}

#[tokio::test]
async fn a_stream_is_handed_on_event_by_event() {
    let sim = sim([]).await;
    let stream = send(chat(&sim, true)).await.expect("a stream");
    assert!(stream.starts_with("event:conversation.chat.created") && stream.ends_with("\n\n"), "{stream}");
    assert_eq!(sim.counts().requests("POST /v3/chat"), 1);
}

#[tokio::test]
async fn what_did_not_run_is_sent_again_and_what_may_have_run_is_not() {
    // Each fault, and how often the platform is asked to chat because of it, and to tell about a bot.
    let cases = [
        (code(4009), 2, 2),
        (code(4020), 2, 2),
        (status(429), 2, 2),
        (code(5000), 1, 2),
        (code(4013), 1, 2),
        (status(502), 1, 2),
        (status(503), 1, 2),
        (FaultKind::Html { status: 504 }, 1, 2),
        (FaultKind::Reset, 1, 2),
        (code(4008), 1, 1),
        (code(4011), 1, 1),
        (code(4016), 1, 1),
        (code(4101), 1, 1),
        (code(987_654), 1, 1),
    ];
    for (fault, chats, bots) in cases {
        let sim = sim([Fault::new("/v3/chat", fault.clone()), Fault::new("/v1/bots/:bot_id", fault.clone())]).await;
        let answers = (send(chat(&sim, false)).await, send(bot(&sim)).await);
        let counts = sim.counts();
        let asked = (counts.requests("POST /v3/chat"), counts.requests("GET /v1/bots/:bot_id"));
        assert_eq!(asked, (chats, bots), "{fault:?}: {answers:?}");
        assert_eq!((answers.0.is_ok(), answers.1.is_ok()), (chats == 2, bots == 2), "{fault:?}: {answers:?}");
    }
}

#[tokio::test]
async fn an_error_instead_of_a_stream_means_that_nothing_began_and_after_its_first_event_nothing_is_sent_again() {
    let before = [
        (code(5000), true, 2),
        (code(4013), true, 2),
        (code(4009), true, 2),
        (code(5000), false, 1),
        (code(4028), true, 1),
        (status(503), true, 1),
        (FaultKind::Html { status: 504 }, true, 1),
        (FaultKind::Reset, true, 1),
    ];
    for (fault, says_so, chats) in before {
        let sim = sim([Fault::new("/v3/chat", fault.clone())]).await;
        let mut request = chat(&sim, true);
        if says_so {
            request.headers_mut().insert("accept", "text/event-stream".parse().expect("valid"));
        }
        let answer = send(request).await;
        assert_eq!(
            (answer.is_ok(), sim.counts().requests("POST /v3/chat")),
            (chats == 2, chats),
            "{fault:?}: {answer:?}"
        );
    }
    let sim = sim([Fault::new("/v3/chat", FaultKind::Cut { after: 1, abort: true })]).await;
    let answer = out_stack(&[TOKEN, TOKEN]).oneshot(chat(&sim, true)).await;
    assert!(answer.expect("a head").into_body().collect().await.is_err());
    assert_eq!(sim.counts().requests("POST /v3/chat"), 1);
}

#[tokio::test]
async fn every_shape_of_a_failure_is_the_same_typed_error() {
    let cases = [
        (code(4028), (Kind::Quota, Some(4028))),
        (
            FaultKind::Code { code: 4100, msg: String::new(), status: 401, headers: Default::default() },
            (Kind::Unauthenticated, Some(4100)),
        ),
        (FaultKind::Html { status: 504 }, (Kind::Timeout, Some(504))),
        (FaultKind::Reset, (Kind::Unavailable, None)),
    ];
    for (fault, expected) in cases {
        let sim = sim([Fault { times: 9, ..Fault::new("/v3/chat", fault.clone()) }]).await;
        assert_eq!(send(chat(&sim, true)).await, Err(expected), "{fault:?}");
    }
}

#[tokio::test]
async fn a_stale_token_is_replaced_once_and_the_call_sent_again_once() {
    let sim = sim([]).await;
    let answer = out_stack(&["pat_stale", TOKEN]).oneshot(bot(&sim)).await;
    assert!(answer.is_ok(), "{:?}", answer.err());
    assert_eq!(sim.counts().requests("GET /v1/bots/:bot_id"), 2);

    let error = out_stack(&["pat_stale", "pat_stale_too"]).oneshot(bot(&sim)).await.err().expect("both are stale");
    assert_eq!(Error::find(&*error).map(Error::kind), Some(Kind::Unauthenticated));
    assert_eq!(sim.counts().requests("GET /v1/bots/:bot_id"), 4, "not a third time");
}

#[tokio::test]
async fn a_client_paced_by_the_plan_is_refused_nowhere_and_another_one_is() {
    // The free plan's: 20 chats and 50 runs of workflows a second.
    let limits = coze_sim::Limits { status: 429, ..coze_sim::Limits::default() };
    let refused = async |pace: Pace| {
        let sim = Sim::start(Config { limits: limits.clone(), ..Config::default() }).await.expect("a free port");
        let client = ServiceBuilder::new()
            .layer(RateLimitLayer::new(pace))
            .layer(AuthLayer::new(Bearer::new(Renewing::new(|| ready(Token::bearer(TOKEN))))))
            .layer(ErrMapLayer::new(Classifier::new()))
            .service(Client::builder(TokioExecutor::new()).build_http());
        let chat = format!(r#"{{"bot_id":"{BOT}","user_id":"u1"}}"#);
        let run = format!(r#"{{"workflow_id":"{WORKFLOW}"}}"#);
        let calls = (0..150).map(|number| match number < 50 {
            true => call(&sim, "POST", "/v3/chat", &chat),
            false => call(&sim, "POST", "/v1/workflow/run", &run),
        });
        let answers: JoinSet<_> = calls.map(|call| client.clone().oneshot(call)).collect();
        let answers = answers.join_all().await;
        let failed = answers.into_iter().filter_map(Result::err).map(|error| {
            let error = Error::find(&*error).expect("ours");
            assert_eq!((error.kind(), error.platform().map(|platform| platform.code)), (Kind::Overloaded, Some(4009)));
        });
        failed.count()
    };
    // Models are asked for less than a minute, which this does not last.
    let paced = Pace::platform(PlatformPlan::Free).level(PaceLevel::new("model", None));
    assert_eq!(refused(paced).await, 0);
    assert!(refused(Pace::new()).await > 50);
}
