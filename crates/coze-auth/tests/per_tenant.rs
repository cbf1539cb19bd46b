//! Tokens of tenants: each request bears its own tenant's, whatever else goes on.

mod support;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coze_auth::{AuthLayer, Bearer, Decision, PerTenant, Renewing, Static, Token, TokenSource, TokenSources};
use coze_core::{BoxError, Context, Error, Kind, TenantId};
use http::{Request, Response, header::AUTHORIZATION};
use support::send;
use tokio::{
    task::{JoinSet, yield_now},
    time::sleep,
};
use tower::{Layer, ServiceExt, service_fn};

fn tenant(text: &str) -> TenantId {
    TenantId::new(text).expect("valid")
}

fn of(text: &str) -> Context {
    let context = Context::new();
    context.tenant.set(tenant(text)).expect("empty");
    context
}

fn request<B>(context: &Context, body: B) -> Request<B> {
    let mut request = Request::new(body);
    request.extensions_mut().insert(context.clone());
    request
}

/// How often a source was made for each tenant.
#[derive(Clone, Default)]
struct Made(Arc<Mutex<HashMap<String, u64>>>);

impl Made {
    fn count(&self, tenant: &str) -> u64 {
        self.0.lock().expect("whole").get(tenant).copied().unwrap_or_default()
    }

    fn sources(&self) -> PerTenant<impl Fn(&TenantId) -> Result<Static, Error> + use<>, Static> {
        let made = self.clone();
        PerTenant::new(move |tenant: &TenantId| {
            *made.0.lock().expect("whole").entry(tenant.to_string()).or_default() += 1;
            Static::new(&format!("token-{tenant}"))
        })
    }
}

#[tokio::test]
async fn each_tenant_has_a_source_of_its_own() {
    let made = Made::default();
    let policy = Bearer::new(made.sources());
    for _ in 0..3 {
        for name in ["t1", "t2"] {
            let sent = send(&policy.clone(), request(&of(name), ())).await.expect("sent");
            assert_eq!(sent.headers()["authorization"], format!("Bearer token-{name}"));
        }
    }
    assert_eq!((made.count("t1"), made.count("t2")), (1, 1), "clones share them");
}

#[tokio::test]
async fn a_request_without_a_tenant_bears_nobodys_token() {
    let policy = Bearer::new(Made::default().sources());
    for request in [Request::new(()), request(&Context::new(), ())] {
        let error = send(&policy, request).await.expect_err("refused, and nothing was sent");
        assert_eq!((error.kind(), error.reason()), (Kind::Internal, "tenant_missing"));
    }
}

#[tokio::test]
async fn a_tenant_that_gets_no_source_is_told_why() {
    let sources = PerTenant::new(|_: &TenantId| -> Result<Static, Error> {
        Err(Error::new(Kind::PermissionDenied, "not_a_customer"))
    });
    let error = send(&Bearer::new(sources), request(&of("t1"), ())).await.expect_err("refused");
    assert_eq!(error.reason(), "not_a_customer");
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_the_one_that_was_unused_for_longest_goes() {
    let made = Made::default();
    let sources = made.sources().limit(3);
    let touch = |name: &str| sources.source(Some(&of(name))).expect("a source");
    for name in ["t1", "t2", "t3", "t1"] {
        touch(name);
        sleep(Duration::from_millis(1)).await;
    }
    touch("t4");
    for name in ["t1", "t3", "t4"] {
        touch(name);
        assert_eq!(made.count(name), 1, "{name} stayed");
    }
    touch("t2");
    assert_eq!(made.count("t2"), 2);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_uses_is_dropped_as_others_come() {
    let made = Made::default();
    let sources = made.sources().idle(Duration::from_secs(60));
    let touch = |name: &str| sources.source(Some(&of(name))).expect("a source");
    touch("t1");
    touch("t2");
    sleep(Duration::from_secs(59)).await;
    touch("t2");
    sleep(Duration::from_secs(1)).await;
    touch("t3");
    touch("t2");
    touch("t1");
    assert_eq!((made.count("t1"), made.count("t2"), made.count("t3")), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_reaches_the_tenants_own_source_only() {
    let fetched = Arc::new(AtomicU64::new(0));
    let counter = fetched.clone();
    let sources = PerTenant::new(move |_: &TenantId| {
        let fetched = counter.clone();
        Ok(Renewing::new(move || {
            let n = fetched.fetch_add(1, Ordering::Relaxed);
            async move { Token::bearer(&format!("t{n}")) }
        }))
    });
    let platform = service_fn(|request: Request<bool>| async move {
        match *request.body() {
            true => Err(BoxError::from(Error::new(Kind::Unauthenticated, "token_invalid"))),
            false => Ok(Response::new(request.headers()[AUTHORIZATION].clone())),
        }
    });
    let stack = AuthLayer::new(Bearer::new(sources)).layer(platform);
    let call = |name, is_refused| stack.clone().oneshot(request(&of(name), is_refused));
    assert_eq!(call("a", false).await.expect("answered").body(), "Bearer t0");
    assert_eq!(call("b", false).await.expect("answered").body(), "Bearer t1");
    call("a", true).await.expect_err("refused");
    assert_eq!(
        call("b", false).await.expect("answered").body(),
        "Bearer t1",
        "of the same generation, but not refused"
    );
    assert_eq!(call("a", false).await.expect("answered").body(), "Bearer t2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_thousand_tenants_under_load_none_bears_anothers_token() {
    // Fetches that fail, tokens that end at once, refusals, and sources that are dropped under way.
    let sources = PerTenant::new(|tenant: &TenantId| {
        let name = tenant.to_string();
        let random = Mutex::new(fastrand::Rng::with_seed(name.len() as u64));
        let source = Renewing::new(move || {
            let (pauses, fails) = {
                let mut random = random.lock().expect("whole");
                (random.u8(..100), random.u8(..20) == 0)
            };
            let token = Token::bearer(&name);
            async move {
                for _ in 0..pauses {
                    yield_now().await;
                }
                match fails {
                    true => Err(Error::new(Kind::Unavailable, "endpoint_down")),
                    false => Ok(token?.with_lifetime(Duration::from_millis(5))),
                }
            }
        });
        Ok(source.cooldown(Duration::from_millis(1)))
    });
    let platform = service_fn(|request: Request<String>| async move {
        assert_eq!(request.headers()[AUTHORIZATION], format!("Bearer {}", request.body()), "a token crossed");
        yield_now().await;
        match fastrand::u8(..10) {
            0 => Err(Error::new(Kind::Unauthenticated, "token_invalid")),
            _ => Ok(Response::new(())),
        }
    });
    let stack = AuthLayer::new(Bearer::new(sources.limit(900))).layer(platform);
    let mut callers = JoinSet::new();
    for n in 0..1000 {
        for _ in 0..3 {
            let stack = stack.clone();
            callers.spawn(async move {
                let (name, mut answered) = (format!("tenant-{n}"), 0);
                for _ in 0..10 {
                    answered += u32::from(stack.clone().oneshot(request(&of(&name), name.clone())).await.is_ok());
                }
                answered
            });
        }
    }
    let answered: u32 = callers.join_all().await.into_iter().sum();
    assert!(answered > 20_000, "{answered} of 30000");
}

#[tokio::test]
async fn a_source_is_one_for_all_requests() {
    let source = Static::new("pat_1").expect("valid");
    let chosen = TokenSources::source(&source, Some(&of("t1"))).expect("a source");
    assert!(matches!(chosen.token(), Decision::Now(Ok(token)) if token.header() == "Bearer pat_1"));
}
