//! The observe layer over a mock of the inner service.

mod auth;
mod ends;
mod hostile;
mod ids;
mod script;
mod world;

use std::{
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context as Task, Poll, Waker},
    time::Duration,
};

use coze_core::{BotId, BoxError, Context, Kind, Principal, TenantId};
use coze_observe::{Inbound, Observe, ObserveLayer, Outbound, Policy, ResponseBody};
use http::{Method, Request, Response, request::Parts};
use http_body_util::BodyExt;
use script::Script;
use tokio::time::advance;
use tower::{Layer, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_test::mock::{self, Mock};
use world::{Fields, World};

type Req = Request<()>;
type Res = Response<Script>;

const MS: Duration = Duration::from_millis(1);

fn inbound() -> Inbound {
    Inbound::new(["/bots/{id}"]).expect("valid").random(|| 0xab)
}

fn outbound() -> Outbound {
    Outbound::new(["/v3/chat"]).expect("valid").random(|| 0xab)
}

fn request(method: Method, path: &str) -> Req {
    Request::builder().method(method).uri(path).body(()).expect("valid")
}

fn get() -> Req {
    request(Method::GET, "/bots/7")
}

fn response(status: u16, body: Script) -> Res {
    Response::builder().status(status).body(body).expect("valid")
}

/// Sends one request through the layer: the inner service takes 30 ms and answers so. Also what reached it.
async fn send(
    policy: impl Policy + Clone,
    request: Req,
    answer: Result<Res, BoxError>,
) -> (Result<Response<ResponseBody<Script>>, BoxError>, Req) {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let outer = ObserveLayer::new(policy).layer(mock).oneshot(request);
    let inner = async {
        let (request, respond) = handle.next_request().await.expect("forwarded");
        advance(30 * MS).await;
        match answer {
            Ok(response) => respond.send_response(response),
            Err(error) => respond.send_error(error),
        }
        request
    };
    let sent = tokio::join!(outer, inner);
    assert!(handle.next_request().await.is_none(), "one request is one request");
    sent
}

/// The same inbound, with the answer's body read to its end and dropped. What was logged and counted agrees.
async fn observed(request: Req, answer: Result<Res, BoxError>) -> Fields {
    let world = World::new();
    if let (Ok(response), _) = send(inbound(), request, answer).await {
        let _ = response.into_body().collect().await;
    }
    world.the_only_line()
}

/// Polls once, and wakes nobody.
fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Task::from_waker(Waker::noop()))
}

/// These fields of a line.
fn some(line: &Fields, names: [&str; 3]) -> [Option<String>; 3] {
    names.map(|name| line.get(name).cloned())
}

#[tokio::test(start_paused = true)]
async fn the_status_of_grpc_is_read_from_the_head_and_from_the_trailers() {
    let mut head = response(200, Script::default().tells_its_end());
    head.headers_mut().insert("grpc-status", "7".parse().expect("valid"));
    assert_eq!(observed(get(), Ok(head)).await["grpc_status"], "7");
    let trailers = |value| response(200, Script::new(&["x"]).trailers("grpc-status", value));
    assert_eq!(observed(get(), Ok(trailers("14"))).await["grpc_status"], "14");
    assert_eq!(observed(get(), Ok(trailers("secret"))).await.get("grpc_status"), None);
}

#[tokio::test(start_paused = true)]
async fn what_inner_layers_note_is_in_the_line() {
    let world = World::new();
    let inner = |mut request: Req| async move {
        let context = Context::of(request.extensions_mut());
        context.tenant.set(TenantId::new("acme").expect("valid")).expect("empty");
        context.bot.set(BotId::new("b1").expect("valid")).expect("empty");
        context.principal.set(Principal::new("webhook", "b1")).expect("empty");
        context.limit.set("app").expect("empty");
        context.failure.set((Kind::RateLimited, "app_qps")).expect("empty");
        context.attempts.fetch_add(3, Ordering::Relaxed);
        Ok::<_, BoxError>(response(429, Script::default().tells_its_end()))
    };
    ObserveLayer::new(inbound()).layer(service_fn(inner)).oneshot(get()).await.expect("answered");
    let line = world.the_only_line();
    assert_eq!(some(&line, ["tenant", "bot", "auth"]), ["acme", "b1", "ok"].map(|v| Some(v.into())));
    assert_eq!(some(&line, ["kind", "reason", "limit"]), ["rate_limited", "app_qps", "app"].map(|v| Some(v.into())));
    assert_eq!((&*line["attempts"], &*line["level"]), ("3", "INFO"));
    assert_eq!(world.metrics()["coze_tenant_requests_total{outcome=4xx,side=server,tenant=acme}"], [1.0]);
    assert_eq!(world.metrics()["coze_failures_total{kind=rate_limited,reason=app_qps,side=server}"], [1.0]);
}

#[tokio::test(start_paused = true)]
async fn the_span_holds_the_work_of_the_inner_service_and_of_its_body() {
    let world = World::new();
    let inner = |mut request: Req| {
        tracing::info!(target: "inner", "called");
        async move {
            tracing::info!(target: "inner", "polled");
            let context = Context::of(request.extensions_mut());
            context.tenant.set(TenantId::new("acme").expect("valid")).expect("empty");
            Ok::<_, BoxError>(response(200, Script::new(&["x"])))
        }
    };
    let answer = ObserveLayer::new(inbound()).layer(service_fn(inner)).oneshot(get()).await.expect("answered");
    answer.into_body().collect().await.expect("complete");
    let events = [world.events("inner"), world.events("body")].concat();
    assert_eq!(events.iter().map(|e| &*e["in_span"]).collect::<Vec<_>>(), ["http_server"; 4]);

    let id = format!("{}ab", "0".repeat(30));
    let expected = [
        ("span", "http_server"),
        ("method", "GET"),
        ("route", "/bots/{id}"),
        ("request_id", &id),
        ("tenant", "acme"),
        ("status", "200"),
        ("outcome", "2xx"),
    ];
    assert_eq!(world.spans(), [expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()]);
}

#[tokio::test(start_paused = true)]
async fn outbound_has_names_of_its_own() {
    let world = World::new();
    let (answer, _) =
        send(outbound(), request(Method::POST, "/v3/chat?x=1"), Ok(response(401, Script::default()))).await;
    answer.expect("answered").into_body().collect().await.expect("complete");
    let line = world.the_only_line();
    assert_eq!((&*line["side"], &*line["in_span"], &*line["level"]), ("client", "http_client", "WARN"));
    assert_eq!((&*line["method"], &*line["route"]), ("POST", "/v3/chat"));
}

#[tokio::test(start_paused = true)]
async fn each_route_method_and_outcome_has_a_series_of_its_own() {
    let (world, policy) = (World::new(), Inbound::new(["/a", "/b", "/c"]).expect("valid"));
    for path in ["/a", "/b", "/c", "/d"] {
        for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH] {
            for status in [200, 302, 404, 500] {
                let answer = response(status, Script::default().tells_its_end());
                let _ = send(policy.clone(), request(method.clone(), path), Ok(answer)).await;
            }
            let _ = send(policy.clone(), request(method, path), Err("broken".into())).await;
        }
    }
    let counts = world.series("coze_http_server_requests_total");
    assert_eq!(counts.len(), 4 * 5 * 5);
    assert!(counts.values().all(|count| *count == [1.0]), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_policy_may_leave_a_request_unobserved() {
    let world = World::new();
    let nothing = |_: &mut Parts, _: &Context, _| None;
    let (answer, seen) = send(nothing, get(), Ok(response(200, Script::new(&["x"])))).await;
    assert_eq!(answer.expect("answered").into_body().collect().await.expect("complete").to_bytes(), "x");
    assert!(seen.extensions().get::<Context>().is_some());
    assert_eq!((world.lines(), world.spans(), world.metrics()), (vec![], vec![], [].into()));
}

#[tokio::test(start_paused = true)]
async fn the_readiness_of_an_inner_limit_is_kept_and_given_back() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let mut service = mock::Spawn::new(Observe::new(limited, inbound()));
    let mut other = service.clone();

    assert!(service.poll_ready().is_ready());
    assert!(other.poll_ready().is_pending(), "the only permit is taken");
    let answer = service.call(get());
    assert!(handle.next_request().await.is_some());
    assert!(other.poll_ready().is_pending(), "the request is in flight");
    drop(answer);
    assert!(matches!(other.poll_ready(), Poll::Ready(Ok(()))), "a dropped request gives its permit back");
}

#[tokio::test(start_paused = true)]
async fn clones_share_their_counts() {
    let world = World::new();
    let policy = inbound().max_tenants(1);
    for tenant in ["t1", "t2", "t1"] {
        let mut request = get();
        Context::of(request.extensions_mut()).tenant.set(TenantId::new(tenant).expect("valid")).expect("empty");
        let _ = send(policy.clone(), request, Ok(response(204, Script::default()))).await;
    }
    let tenants = world.series("coze_tenant_requests_total");
    assert_eq!(tenants["outcome=2xx,side=server,tenant=t1"], [2.0]);
    assert_eq!(tenants["outcome=2xx,side=server,tenant=_other"], [1.0]);
}

#[test]
fn a_service_is_send_sync_and_clone() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    check::<Observe<(), Inbound>>();
    check::<Observe<Mock<Req, Res>, Outbound>>();
    fn check_body<T: Send + Sync + std::fmt::Debug>() {}
    check_body::<ResponseBody<()>>();
}

#[test]
fn a_wrong_route_is_refused_and_so_are_too_many() {
    let reason = |routes: &[&str]| Inbound::new(routes).err().map(|e| (e.reason(), e.message().to_owned()));
    assert_eq!(reason(&["/a/{b}", "/a/b", "/static/{*path}"]).map(|e| e.0), None);
    for wrong in ["a", "", "_unmatched", "/{", "/{a}{b}", "/{*all}/x"] {
        assert_eq!(reason(&[wrong]).map(|e| e.0), Some("route_invalid"), "{wrong}");
    }
    let (_, message) = reason(&["/a/{b}", "/a/{c}"]).expect("the same twice");
    assert_eq!(message, "the route /a/{c} is no pattern of its own");

    let many: Vec<_> = (0..257).map(|n| format!("/{n}")).collect();
    assert!(Outbound::new(&many[..256]).is_ok());
    assert_eq!(Outbound::new(&many).expect_err("too many").reason(), "routes_too_many");
}
