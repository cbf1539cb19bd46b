//! What is told of authentication.

use std::{sync::Arc, time::Duration};

use coze_core::{Context, Error, Kind, Refusal};
use coze_observe::Policy;
use http::Method;

use crate::{Req, get, inbound, outbound, request, response, script::Script, send, world::World};

fn refusal(reason: &'static str, client: Option<&str>) -> Refusal {
    Refusal { kind: Kind::Unauthenticated, reason, client: client.map(Arc::from) }
}

/// Refuses a request for this reason.
async fn refuse(policy: impl Policy + Clone, mut request: Req, refusal: Refusal) {
    let error = Error::new(refusal.kind, "signature_invalid");
    Context::of(request.extensions_mut()).refusal.set(refusal).expect("empty");
    let (answer, _) = send(policy, request, Err(error.into())).await;
    assert!(answer.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_with_its_true_reason_and_a_route_instead_of_a_path() {
    let world = World::new();
    refuse(inbound(), request(Method::POST, "/bots/secret?token=secret"), refusal("unknown_key", None)).await;
    refuse(inbound(), request(Method::from_bytes(b"SECRET").expect("valid"), "/secret"), refusal("my_own", Some("b1")))
        .await;

    let id = format!("{}ab", "0".repeat(30));
    let told = world.events("coze::auth");
    let fields = ["auth_error_code", "auth_trace_id", "auth_resource", "auth_client", "in_span", "level"];
    let expected = [
        ["UNKNOWN_KEY", &id, "POST /bots/{id}", "_unknown", "http_server", "INFO"],
        ["POLICY_DENIED", &id, "_OTHER _unmatched", "b1", "http_server", "INFO"],
    ];
    assert_eq!(told.iter().map(|event| fields.map(|field| &*event[field])).collect::<Vec<_>>(), expected);
    let counted = world.series("auth_failure_total");
    assert_eq!((counted.len(), &counted["client=_unknown,reason=UNKNOWN_KEY"]), (2, &vec![1.0]));
    assert_eq!(counted["client=b1,reason=POLICY_DENIED"], [1.0]);
    assert_eq!(world.lines().iter().map(|line| &*line["auth"]).collect::<Vec<_>>(), ["unknown_key", "my_own"]);
    assert!(!world.text().contains("secret"), "{}", world.text());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_clients_stay_within_the_cap_and_nobody_in_particular_keeps_a_place() {
    let (world, policy) = (World::new(), inbound().max_clients(3));
    for n in 0..1000 {
        refuse(policy.clone(), get(), refusal("revoked", Some(&format!("c{n}")))).await;
    }
    refuse(policy.clone(), get(), refusal("revoked", None)).await;
    refuse(policy.clone(), get(), refusal("replayed", Some("c0"))).await;
    let counted = world.series("auth_failure_total");
    assert_eq!(counted.len(), 6, "{counted:?}");
    assert_eq!(counted["client=_other,reason=REVOKED"], [997.0]);
    assert_eq!(counted["client=_unknown,reason=REVOKED"], [1.0]);
    assert_eq!(counted["client=c2,reason=REVOKED"], [1.0]);
    assert_eq!(counted["client=c0,reason=REPLAYED"], [1.0]);

    let (world, policy) = (World::new(), inbound().max_clients(0));
    refuse(policy.clone(), get(), refusal("revoked", Some("c1"))).await;
    refuse(policy, get(), refusal("revoked", None)).await;
    let clients = world.series("auth_failure_total");
    assert_eq!(clients.keys().collect::<Vec<_>>(), ["client=_other,reason=REVOKED", "client=_unknown,reason=REVOKED"]);
}

#[tokio::test(start_paused = true)]
async fn the_life_of_tokens_and_what_is_reported_are_counted_inbound_only() {
    let noted = || {
        let mut request = get();
        let context = Context::of(request.extensions_mut());
        context.token_life.set(Duration::from_millis(1500)).expect("empty");
        context.reported.set(refusal("missing_scope", Some("i"))).expect("empty");
        context.refusal.set(refusal("revoked", None)).expect("empty");
        request
    };
    let answer = || Ok(response(200, Script::default().tells_its_end()));
    let world = World::new();
    let (answered, _) = send(outbound(), noted(), answer()).await;
    assert!(answered.is_ok());
    let names =
        |world: &World| world.metrics().into_keys().filter(|name| name.starts_with("auth_")).collect::<Vec<_>>();
    assert_eq!((names(&world), world.events("coze::auth")), (vec![], vec![]));

    let (answered, _) = send(inbound(), noted(), answer()).await;
    assert!(answered.is_ok());
    assert_eq!(world.series("auth_token_life_seconds")[""], [1.5]);
    assert_eq!(world.series("auth_reported_total")["client=i,reason=MISSING_SCOPE"], [1.0]);
    assert_eq!(world.lines()[1]["auth_reported"], "missing_scope");
    assert_eq!(names(&world).len(), 3);
}
