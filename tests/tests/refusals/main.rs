//! What is told of a refused request (R2.5): the log, the counter and the span say the same, once, for every code.

mod cases;
mod world;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use cases::{Case, LIFE, bearing, cases, issuer, jwt, routes, signed, token, webhook};
use coze_auth::{AuthLayer, Bearer, Policy, Renewing};
use coze_core::{BoxError, Error, Kind, Refusal};
use coze_errmap::{ErrMapLayer, Responder};
use coze_observe::{Inbound, ObserveLayer, Outbound};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use world::{Fields, World};

/// The answer of a service that this policy guards, as text, and how often the handler was reached.
async fn answer<P>(policy: P, request: Request<Full<Bytes>>) -> (Response<String>, usize)
where
    P: Policy<Full<Bytes>> + Clone,
    P::Body: Send + 'static,
{
    let reached = Arc::new(AtomicUsize::new(0));
    let counted = reached.clone();
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new(Inbound::new(["/webhook/{bot_id}", "/callback", "/bots/{bot}"]).expect("routes")))
        .layer(ErrMapLayer::new(Responder::new()))
        .layer(AuthLayer::new(policy))
        .service(service_fn(move |_: Request<P::Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Ok::<_, BoxError>(Response::new(Full::<Bytes>::default())) }
        }));
    let (head, body) = service.oneshot(request).await.expect("infallible").into_parts();
    let body = body.collect().await.map_err(|error| error.to_string()).expect("whole").to_bytes();
    let body = String::from_utf8(body.to_vec()).expect("text");
    (Response::from_parts(head, body), reached.load(Ordering::Relaxed))
}

/// Nothing is logged of a refusal, and of authentication nothing is counted but this.
fn only(world: &World, name: &str, labels: &[(&str, &str)], value: f64) {
    silent(
        world,
        vec![(name.to_owned(), labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(), vec![value])],
    );
}

fn silent(world: &World, counted: Vec<(String, Fields, Vec<f64>)>) {
    assert_eq!(world.events("auth_error_code"), []);
    assert_eq!(world.spans("auth_error_code"), []);
    assert_eq!(world.counted("auth_"), counted);
}

#[tokio::test(start_paused = true)]
async fn the_log_the_counter_and_the_span_of_each_refusal_say_the_same_once() {
    let mut codes = Vec::new();
    for Case { code, told, resource, client, send } in cases() {
        let world = World::new();
        let (answer, reached) = send().await;
        assert_eq!(reached, 0, "{code}");
        assert!(answer.status().is_client_error() || code == "KEYS_UNAVAILABLE", "{code} {}", answer.status());

        let trace_id = answer.headers()["x-request-id"].to_str().expect("visible");
        let expected = [
            ("auth_error_code", code),
            ("auth_trace_id", trace_id),
            ("auth_resource", resource),
            ("auth_client", client),
        ];
        let (events, spans) = (world.events("auth_error_code"), world.spans("auth_error_code"));
        assert_eq!((events.len(), spans.len()), (1, 1), "{code}: {events:?} {spans:?}");
        for (field, value) in expected {
            assert_eq!((&*events[0][field], &*spans[0][field]), (value, value), "{code} {field}");
        }
        let labels = [("reason", code), ("client", client)].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(world.counted("auth_"), [("auth_failure_total".to_owned(), labels.into(), vec![1.0])], "{code}");

        assert!(answer.body().contains(&format!(r#""reason":"{told}""#)), "{code}: {}", answer.body());
        assert!(answer.body().contains(trace_id), "{code}: {}", answer.body());
        codes.push(code);
    }
    codes.dedup();
    assert_eq!(codes, Refusal::CODES, "every code was there");
}

#[tokio::test(start_paused = true)]
async fn an_accepted_request_is_no_refusal_and_tells_how_long_its_token_lives() {
    let world = World::new();
    let (accepted, reached) = answer(webhook(), signed("/webhook/b1", "hi")).await;
    assert_eq!((accepted.status(), reached), (StatusCode::OK, 1));
    silent(&world, vec![]);
    assert_eq!(world.events("auth")[0]["auth"], "ok");

    let (accepted, reached) =
        answer(jwt(issuer()).access(routes()), bearing(&token("a", LIFE, r#","scope":"read""#))).await;
    assert_eq!((accepted.status(), reached), (StatusCode::OK, 1));
    only(&world, "auth_token_life_seconds", &[], 3600.0);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_the_sake_of_its_body_is_not_about_credentials() {
    let world = World::new();
    let (refused, reached) = answer(webhook().limit(1), signed("/webhook/b1", "hi")).await;
    assert_eq!((refused.status(), reached), (StatusCode::PAYLOAD_TOO_LARGE, 0));
    silent(&world, vec![]);
    assert_eq!(world.events("auth")[0]["auth"], "body_too_large", "the access log says it all the same");
}

#[tokio::test(start_paused = true)]
async fn what_is_only_reported_is_counted_apart() {
    let world = World::new();
    let (answered, reached) = answer(jwt(issuer()).report_only(), bearing(&token("a", "1", ""))).await;
    assert_eq!((answered.status(), reached), (StatusCode::OK, 1));
    only(&world, "auth_reported_total", &[("reason", "TOKEN_EXPIRED"), ("client", cases::ISSUER)], 1.0);
    assert_eq!(world.events("auth_reported")[0]["auth_reported"], "token_expired");
}

#[tokio::test(start_paused = true)]
async fn a_guard_behind_a_policy_that_reports_or_accepts_is_heard() {
    for outer in [jwt(issuer()), jwt(issuer()).report_only()] {
        let world = World::new();
        let service = ServiceBuilder::new()
            .layer(ObserveLayer::new(Inbound::new(["/bots/{bot}"]).expect("routes")))
            .layer(AuthLayer::new(outer))
            .layer(AuthLayer::new(webhook()))
            .service(service_fn(async |_: Request<_>| -> Result<Response<Full<Bytes>>, Infallible> { unreachable!() }));
        let refused = service.oneshot(bearing(&token("a", LIFE, ""))).await;
        assert!(refused.is_err());
        let labels = [("reason", "MISSING_CREDENTIALS"), ("client", "b1")];
        let labels = labels.map(|(name, value)| (name.into(), value.into())).into();
        assert_eq!(world.counted("auth_failure"), [("auth_failure_total".to_owned(), labels, vec![1.0])]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_we_cannot_get_is_no_refusal_of_ours() {
    let world = World::new();
    let source = Renewing::new(|| async { Err(Error::new(Kind::Unauthenticated, "token_expired")) });
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new(Outbound::new(["/v3/chat"]).expect("routes")))
        .layer(AuthLayer::new(Bearer::new(source)))
        .service(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))));
    assert!(service.oneshot(Request::new(())).await.is_err());
    silent(&world, vec![]);
}

#[tokio::test(start_paused = true)]
async fn what_a_caller_makes_up_is_no_label() {
    let world = World::new();
    for n in 0..1000 {
        let token = cases::token_of(&format!("https://evil-{n}.example"), &format!("sub-{n}"), LIFE, "");
        answer(jwt(issuer()), bearing(&token)).await;
        answer(webhook(), signed(&format!("/webhook/evil-{n}"), "hi")).await;
    }
    let clients: Vec<_> = world.counted("auth_failure").iter().map(|(_, labels, _)| labels["client"].clone()).collect();
    assert_eq!(clients, ["_unknown", "_unknown"]);
}
