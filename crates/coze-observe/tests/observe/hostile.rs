//! Callers who mean harm, or who only exist in large numbers.

use coze_core::{Context, Error, Kind, TenantId};
use coze_observe::Policy;
use http::Method;
use http_body_util::BodyExt;

use crate::{Req, get, inbound, request, response, script::Script, send, world::World};

async fn answered(policy: impl Policy + Clone, request: Req) {
    let (answer, _) = send(policy, request, Ok(response(200, Script::default().tells_its_end()))).await;
    answer.expect("answered");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_invented_paths_and_methods_are_one_series() {
    let (world, policy) = (World::new(), inbound());
    for n in 0..10_000 {
        let method = Method::from_bytes(format!("M{n}").as_bytes()).expect("valid");
        answered(policy.clone(), request(method, &format!("/invented/{n}?q={n}"))).await;
    }
    assert_eq!(world.metrics().len(), 4);
    let labels = "method=_OTHER,outcome=2xx,route=_unmatched".to_owned();
    assert_eq!(world.series("coze_http_server_requests_total"), [(labels, vec![10_000.0])].into());
    assert!(world.lines().iter().chain(&world.spans()).all(|f| f["method"] == "_OTHER" && f["route"] == "_unmatched"));
}

#[tokio::test(start_paused = true)]
async fn one_route_is_one_series_whatever_its_ids() {
    let (world, policy) = (World::new(), inbound());
    for path in ["/bots/1", "/bots/2?x", "/bots/%2e%2e", "/bots/a%2fb"] {
        answered(policy.clone(), request(Method::GET, path)).await;
    }
    for path in ["/", "/bots", "/bots/", "/bots/1/", "/bots/1/2", "/BOTS/1", "//bots/1", "*", "host:80"] {
        answered(policy.clone(), request(Method::GET, path)).await;
    }
    let counts = world.series("coze_http_server_requests_total");
    assert_eq!(counts["method=GET,outcome=2xx,route=/bots/{id}"], [4.0]);
    assert_eq!(counts["method=GET,outcome=2xx,route=_unmatched"], [9.0]);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_invented_tenants_stay_within_the_cap() {
    let (world, policy) = (World::new(), inbound());
    for n in 0..1_000 {
        let mut request = get();
        let tenant = TenantId::new(&format!("t{n}")).expect("valid");
        Context::of(request.extensions_mut()).tenant.set(tenant).expect("empty");
        answered(policy.clone(), request).await;
    }
    let tenants = world.series("coze_tenant_requests_total");
    assert_eq!(tenants.len(), 101);
    assert_eq!(tenants["outcome=2xx,side=server,tenant=t99"], [1.0]);
    assert_eq!(tenants["outcome=2xx,side=server,tenant=_other"], [900.0]);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_reasons_stay_within_the_cap() {
    let (world, policy) = (World::new(), inbound());
    for n in 0..1_000 {
        let reason = Box::leak(format!("r{n}").into_boxed_str());
        let _ = send(policy.clone(), get(), Err(Error::new(Kind::Invalid, reason).into())).await;
    }
    let failures = world.series("coze_failures_total");
    assert_eq!(failures.len(), 201);
    assert_eq!(failures["kind=invalid,reason=r199,side=server"], [1.0]);
    assert_eq!(failures["kind=_other,reason=_other,side=server"], [800.0]);
}

#[tokio::test(start_paused = true)]
async fn no_secret_of_a_request_or_an_answer_is_logged_or_counted() {
    let world = World::new();
    let secret = "pat_s3cret0123456789";
    let secretive = |path: &str| {
        let mut request =
            request(Method::from_bytes(secret.as_bytes()).expect("valid"), &path.replace("SECRET", secret));
        for name in ["authorization", "cookie", "x-api-key", "x-request-id", "content-type", "user-agent", "host"] {
            request.headers_mut().insert(name, secret.parse().expect("valid"));
        }
        request
    };
    let answer = || {
        let body = Script::new(&["pat_s3cret0123456789"]).trailers("grpc-status", "pat_s3cret0123456789");
        let mut answer = response(200, body);
        for name in ["set-cookie", "location", "x-request-id", "grpc-status", "content-length", "grpc-message"] {
            answer.headers_mut().insert(name, secret.parse().expect("valid"));
        }
        Ok(answer)
    };
    for path in ["/SECRET?token=SECRET", "/bots/SECRET?token=SECRET", "https://user:SECRET@host/SECRET"] {
        let (answer, _) = send(inbound(), secretive(path), answer()).await;
        answer.expect("answered").into_body().collect().await.expect("complete");
        let error = Error::new(Kind::Internal, "broken").with_message(secret).with_source(secret);
        let _ = send(inbound(), secretive(path), Err(error.into())).await;
        let _ = send(inbound(), secretive(path), Err(secret.into())).await;
    }
    assert_eq!(world.lines().len(), 9);
    assert!(!world.text().contains("s3cret"), "{}", world.text());
    assert_eq!(world.targets(), ["body", "coze::access"].map(str::to_owned).into(), "nothing else is logged");
}
