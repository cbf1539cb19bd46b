//! The tenant layer over a mock of the inner service.

use std::task::Poll;

use coze_core::{BotId, Context, Error, TenantId};
use coze_tenant::{Policy, Propagate, Registry, Tenant, TenantLayer};
use http::{HeaderValue, Request, Response};
use tower::{Layer, ServiceExt, limit::ConcurrencyLimitLayer};
use tower_test::mock::{self, Mock};

type Req = Request<&'static str>;
type Res = Response<&'static str>;

fn tenant(text: &str) -> TenantId {
    TenantId::new(text).expect("valid")
}

fn registry() -> Registry {
    Registry::new([tenant("t1"), tenant("t2")]).bot(BotId::new("b1").expect("valid"), tenant("t1"))
}

/// A request with these values of the tenant header.
fn named(values: &[&[u8]]) -> Req {
    let mut request = Request::new("body");
    for value in values {
        request.headers_mut().append("x-tenant-id", HeaderValue::from_bytes(value).expect("valid"));
    }
    request
}

/// The same, after the bot was authenticated.
fn of_bot(bot: &str, values: &[&[u8]]) -> Req {
    let mut request = named(values);
    Context::of(request.extensions_mut()).bot.set(BotId::new(bot).expect("valid")).expect("empty");
    request
}

/// Sends one request through the layer: what reached the inner service, or the reason of the refusal.
async fn send(policy: impl Policy + Clone, request: Req) -> Result<Req, &'static str> {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let answer = TenantLayer::new(policy).layer(mock).oneshot(request);
    let inner = async {
        let (request, respond) = handle.next_request().await?;
        respond.send_response(Response::new("ok"));
        Some(request)
    };
    match tokio::join!(answer, inner) {
        (Ok(response), Some(request)) => {
            assert_eq!((*response.body(), *request.body()), ("ok", "body"));
            Ok(request)
        }
        (Err(error), None) => Err(Error::find(&*error).expect("ours").reason()),
        (answer, inner) => panic!("{answer:?} although the inner service saw {inner:?}"),
    }
}

async fn resolved(request: Req) -> Result<String, &'static str> {
    let mut request = send(registry(), request).await?;
    Ok(Context::of(request.extensions_mut()).tenant.get().expect("resolved").to_string())
}

#[tokio::test]
async fn a_configured_tenant_is_noted_on_the_context() {
    assert_eq!(resolved(named(&[b"t2"])).await.as_deref(), Ok("t2"));
}

#[tokio::test]
async fn a_bot_decides_where_the_header_is_silent() {
    assert_eq!(resolved(of_bot("b1", &[])).await.as_deref(), Ok("t1"));
    assert_eq!(resolved(of_bot("b1", &[b"t1"])).await.as_deref(), Ok("t1"));
}

#[tokio::test]
async fn what_is_refused_never_reaches_the_inner_service() {
    assert_eq!(resolved(named(&[])).await, Err("tenant_missing"));
    assert_eq!(resolved(of_bot("unassigned", &[])).await, Err("tenant_missing"));
    assert_eq!(resolved(named(&[b"t1", b"t1"])).await, Err("tenant_ambiguous"));
    assert_eq!(resolved(named(&[b"evil"])).await, Err("tenant_unknown"));
    assert_eq!(resolved(named(&[b"\xff\xfe"])).await, Err("tenant_unknown"));
    assert_eq!(resolved(named(&[b""])).await, Err("tenant_unknown"));
    assert_eq!(resolved(of_bot("b1", &[b"t2"])).await, Err("tenant_mismatch"));
}

#[tokio::test]
async fn the_tenant_of_the_context_goes_out_and_a_forged_one_does_not() {
    let mut ours = named(&[b"forged", b"twice"]);
    Context::of(ours.extensions_mut()).tenant.set(tenant("t1")).expect("empty");
    let sent = send(Propagate::new(), ours).await.expect("forwarded");
    assert_eq!(sent.headers().get_all("x-tenant-id").iter().collect::<Vec<_>>(), ["t1"]);

    let sent = send(Propagate::new(), named(&[b"forged"])).await.expect("forwarded");
    assert!(!sent.headers().contains_key("x-tenant-id"));
}

#[tokio::test]
async fn the_readiness_of_an_inner_limit_is_kept_and_given_back() {
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let limited = ConcurrencyLimitLayer::new(1).layer(mock);
    let mut service = mock::Spawn::new(Tenant::new(limited, registry()));
    let mut other = service.clone();

    assert!(service.poll_ready().is_ready());
    assert!(other.poll_ready().is_pending(), "the only permit is taken");
    let answer = service.call(named(&[b"t1"]));
    assert!(handle.next_request().await.is_some());
    assert!(other.poll_ready().is_pending(), "the request is in flight");
    drop(answer);
    assert!(matches!(other.poll_ready(), Poll::Ready(Ok(()))), "a dropped request gives its permit back");
}

#[test]
fn a_service_is_send_sync_and_clone() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    check::<Tenant<(), Registry>>();
    check::<Tenant<Mock<Req, Res>, Propagate>>();
}
