//! The bearer policy and its sources: whose token goes out, when it is renewed, and what a refusal means.

mod support;

use std::{error::Error as StdError, fmt, time::Duration};

use coze_auth::{AuthLayer, Bearer, Policy, Static, Token, TokenSource};
use coze_core::{BoxError, Error, Kind, Platform, Retry};
use http::{Request, Response, header::AUTHORIZATION};
use support::{
    send,
    tokens::{Endpoint, get, lives, text},
};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

/// One call through the layer, which the platform answers so.
async fn call(
    source: &(impl TokenSource + Clone),
    answer: impl Fn(String) -> Result<Response<()>, BoxError>,
) -> Result<Response<()>, BoxError> {
    let platform = service_fn(|request: Request<()>| {
        let answer = answer(request.headers()[AUTHORIZATION].to_str().expect("ascii").to_owned());
        async { answer }
    });
    AuthLayer::new(Bearer::new(source.clone())).layer(platform).oneshot(Request::new(())).await
}

fn refused() -> Error {
    let platform = Platform { code: 4101, msg: "bad token".into(), logid: Some("l1".into()) };
    Error::new(Kind::Unauthenticated, "token_invalid").with_message("no").with_platform(platform)
}

fn retry(outcome: &Result<Response<()>, BoxError>) -> Option<Retry> {
    Error::find(&**outcome.as_ref().expect_err("an error")).map(Error::retry)
}

#[tokio::test]
async fn the_token_replaces_what_the_caller_put() {
    let policy = Bearer::new(Static::new("pat_1").expect("valid"));
    let request = Request::builder().header("authorization", "Basic a").header("authorization", "b").header("x", "y");
    let sent = send(&policy, request.body("body").expect("a request")).await.expect("sent");
    assert_eq!(sent.headers().get_all("authorization").iter().collect::<Vec<_>>(), ["Bearer pat_1"]);
    assert!(sent.headers()["authorization"].is_sensitive());
    assert_eq!((sent.headers().len(), &sent.headers()["x"], *sent.body()), (2, &"y".parse().expect("a value"), "body"));
    assert_eq!(sent.extensions().len(), 0, "no context is made for it");
}

#[tokio::test]
async fn a_refusal_of_a_static_token_stays_as_it_is() {
    let source = Static::new("pat_1").expect("valid");
    let outcome = call(&source, |_| Err(refused().into())).await;
    assert_eq!(retry(&outcome), Some(Retry::Never));
    let error = outcome.expect_err("refused").downcast::<Error>().expect("unwrapped");
    assert_eq!((error.reason(), error.message()), ("token_invalid", "no"));
    assert_eq!(text(&source).await, "pat_1");
    let outcome = call(&source, |_| Ok(answered(401))).await;
    assert_eq!(outcome.expect("a response").status(), 401);
}

fn answered(status: u16) -> Response<()> {
    Response::builder().status(status).body(()).expect("a response")
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_a_token_may_go_away() {
    let endpoint = Endpoint::default();
    let policy = Bearer::new(endpoint.source(lives(900)));
    drop(policy.authorize(&mut Request::new(()).into_parts().0, ()));
    assert!(tokio::time::timeout(SECOND / 2, send(&policy, Request::new(()))).await.is_err());
    let sent = send(&policy, Request::new("body")).await.expect("sent");
    assert_eq!((&sent.headers()["authorization"], *sent.body()), (&"Bearer t1".parse().expect("a value"), "body"));
    assert_eq!(endpoint.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_forgotten_and_the_error_says_that_another_try_is_safe() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    let platform = |auth: String| if auth == "Bearer t1" { Err(refused().into()) } else { Ok(answered(200)) };
    let outcome = call(&source, platform).await;
    assert_eq!(retry(&outcome), Some(Retry::Safe));
    let error = outcome.expect_err("refused").downcast::<Error>().expect("unwrapped");
    assert_eq!((error.kind(), error.reason(), error.message()), (Kind::Unauthenticated, "token_invalid", "no"));
    assert_eq!(error.platform().map(|p| (p.code, p.logid.as_deref())), Some((4101, Some("l1"))));
    assert_eq!(call(&source, platform).await.expect("accepted").status(), 200);
    assert_eq!(endpoint.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_platform_that_refuses_every_token_is_believed() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    assert_eq!(retry(&call(&source, |_| Err(refused().into())).await), Some(Retry::Safe));
    for _ in 0..10 {
        assert_eq!(retry(&call(&source, |_| Err(refused().into())).await), Some(Retry::Never), "the second is final");
    }
    assert_eq!(endpoint.fetches(), 2);
    advance(SECOND).await;
    assert_eq!(retry(&call(&source, |_| Err(refused().into())).await), Some(Retry::Safe), "time may have healed it");
    assert_eq!(retry(&call(&source, |_| Err(refused().into())).await), Some(Retry::Never));
    assert_eq!(endpoint.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn each_refusal_renews_a_token_that_was_accepted_before_and_at_most_eight_follow_each_other() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    for n in 1..=9 {
        assert_eq!(call(&source, |_| Ok(answered(200))).await.expect("accepted").status(), 200);
        let expected = if n < 9 { Retry::Safe } else { Retry::Never };
        assert_eq!(retry(&call(&source, |_| Err(refused().into())).await), Some(expected), "refusal {n}");
    }
    assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t9", 9));
    advance(SECOND).await;
    assert_eq!(retry(&call(&source, |_| Err(refused().into())).await), Some(Retry::Safe), "time may have healed it");
    assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t10", 10));
}

#[tokio::test(start_paused = true)]
async fn what_was_said_of_an_older_token_says_nothing_of_the_one_in_doubt() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    let first = get(&source).await.expect("a token").generation();
    assert_eq!(source.reject(first), Some(Retry::Safe));
    let second = get(&source).await.expect("a token").generation();
    source.accept(first);
    assert_eq!(source.reject(second), None, "it was never accepted");
    source.accept(second);
    assert_eq!(source.reject(second), Some(Retry::Safe));
}

#[tokio::test(start_paused = true)]
async fn a_bare_401_and_a_hint_on_an_answer_renew_the_token_too() {
    let hint = || Response::builder().header("x-refresh-token", "1").body(()).expect("a response");
    for answer in [&(|| answered(401)) as &dyn Fn() -> Response<()>, &hint] {
        let endpoint = Endpoint::default();
        let source = endpoint.source(lives(900));
        let response = call(&source, |_| Ok(answer())).await.expect("handed on as it came");
        assert_eq!(response.status(), answer().status());
        assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t2", 2));
        for _ in 0..10 {
            call(&source, |_| Ok(answer())).await.expect("handed on");
        }
        assert_eq!(endpoint.fetches(), 2, "at most once per cool-down");
    }
}

#[tokio::test(start_paused = true)]
async fn other_outcomes_leave_the_token_alone() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::Unauthenticated) {
        let outcome = call(&source, |_| Err(Error::new(*kind, "other").into())).await;
        assert_eq!(retry(&outcome), Some(kind.retry()));
    }
    for status in [200, 400, 403, 407, 429, 500] {
        assert_eq!(call(&source, |_| Ok(answered(status))).await.expect("handed on").status(), status);
    }
    assert!(call(&source, |_| Err("of another make".into())).await.is_err());
    assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t1", 1));
}

#[derive(Debug)]
struct Outer(Error);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("outer")
    }
}

impl StdError for Outer {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_found_behind_another_error_and_nothing_of_it_is_lost() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    let refusal = || refused().with_retry_after(SECOND);
    let outcome = call(&source, |_| Err(Outer(refusal()).into())).await;
    assert_eq!(retry(&outcome), Some(Retry::Safe));
    let error = outcome.expect_err("refused").downcast::<Error>().expect("in front");
    assert_eq!((error.kind(), error.reason(), error.message()), (Kind::Unauthenticated, "token_invalid", "no"));
    assert_eq!((error.platform(), error.retry_after()), (refusal().platform(), Some(SECOND)));
    assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("outer"));
}

#[tokio::test(start_paused = true)]
async fn nothing_prints_a_token() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(|_, _| Token::bearer("pat_tell_nobody"));
    let token = get(&source).await.expect("a token");
    let fixed = Static::new("pat_tell_nobody").expect("valid");
    let policy = Bearer::new(source.clone());
    let decision = policy.authorize(&mut Request::new(()).into_parts().0, ());
    let shown = format!("{token:?} {fixed:?} {source:?} {policy:?} {decision:?} {:?}", Bearer::new(fixed.clone()));
    assert!(!shown.contains("tell_nobody"), "{shown}");
}

#[tokio::test]
async fn a_token_bound_to_a_host_goes_to_no_other() {
    let policy = Bearer::new(Static::new("pat_1").expect("valid")).host("api.coze.cn");
    for uri in ["https://api.coze.cn/v3/chat", "https://API.coze.cn:443/"] {
        send(&policy, Request::get(uri).body(()).expect("valid")).await.expect("sent");
    }
    for uri in
        ["https://api.coze.com/v3/chat", "https://api.coze.cn.example.com/", "https://api.coze.cn@a.example/", "/"]
    {
        let error = send(&policy, Request::get(uri).body(()).expect("valid")).await.expect_err("not sent");
        assert_eq!((error.kind(), error.reason()), (Kind::Internal, "host_mismatch"), "{uri}");
    }
}

#[tokio::test]
async fn a_refusal_that_another_region_may_explain_says_so() {
    let bound = Bearer::new(Static::new("pat_1").expect("valid")).host("api.coze.cn");
    let outcome = |policy: Bearer<Static>, code: i64, kind| async move {
        let platform = service_fn(|_: Request<()>| async move {
            let platform = Platform { code, msg: "no".into(), logid: None };
            Err::<Response<()>, _>(Error::new(kind, "refused").with_message("no").with_platform(platform))
        });
        let request = Request::get("https://api.coze.cn/").body(()).expect("valid");
        let error = AuthLayer::new(policy).layer(platform).oneshot(request).await.expect_err("refused");
        let error = Error::find(&*error).expect("typed");
        (error.message().to_owned(), error.retry())
    };
    let hint = "no; api.coze.cn refuses a token of another region like this too";
    for (code, kind) in
        [(4100, Kind::Unauthenticated), (4101, Kind::PermissionDenied), (700_012_006, Kind::Unauthenticated)]
    {
        assert_eq!(outcome(bound.clone(), code, kind).await, (hint.into(), Retry::Never), "{code}");
    }
    assert_eq!(outcome(bound, 4000, Kind::Invalid).await.0, "no");
    let free = Bearer::new(Static::new("pat_1").expect("valid"));
    assert_eq!(outcome(free, 4100, Kind::Unauthenticated).await.0, "no");
}
