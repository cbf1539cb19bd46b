//! What a caller may do, and what is only reported.

use coze_auth::{Issuer, Jwt, JwtKeys, KeyFetch, Routes};
use coze_core::{Context, Error, Kind, Principal};
use http::{Method, Request, header::AUTHORIZATION};

use crate::token::{ISSUER, NOW, ask, bearing, issuer, jwt, token, valid};

fn with(claims: &str) -> String {
    token(&format!(r#"{claims},"exp":{}"#, NOW + 9))
}

/// `ok` or the reason, and who it was.
async fn asked(policy: &Jwt, method: Method, path: &str, token: &str) -> (&'static str, Option<String>) {
    let header = format!("Bearer {token}");
    let request = Request::builder().method(method).uri(path).header(AUTHORIZATION, header).body(());
    let (answer, context) = ask(policy, request.expect("a request")).await;
    let verdict = answer.as_ref().map_or_else(Error::reason, |()| "ok");
    assert_eq!(context.auth(), Some(verdict));
    let client = context.refusal.get().map(|refusal| refusal.client.as_deref());
    assert_eq!(client, (verdict != "ok").then_some(Some(ISSUER)), "it is counted under its issuer");
    assert_eq!(context.token_life.get().is_some(), verdict == "ok", "only of accepted tokens");
    assert!(answer.err().is_none_or(|error| error.kind() == Kind::PermissionDenied));
    (verdict, context.principal.get().map(|principal| principal.subject.to_string()))
}

fn guarded(issuer: Issuer) -> Jwt {
    let routes = Routes::new()
        .require(Method::GET, "/bots/{bot}", ["bot:read"])
        .require(Method::POST, "/bots/{bot}", ["bot:read", "bot:write"])
        .require(None, "/bots/secret", ["admin"])
        .require(Method::GET, "/health", []);
    jwt(issuer).access(routes)
}

#[tokio::test]
async fn scopes_are_required_by_method_and_path_also_of_remembered_tokens() {
    let policy = guarded(issuer());
    let (reader, writer) = (with(r#""scope":"bot:read""#), with(r#""scope":"bot:read bot:write""#));
    for _ in 0..2 {
        for (method, path, token, expected) in [
            (Method::GET, "/bots/b1", &reader, "ok"),
            (Method::GET, "/bots/b1?x=/health", &reader, "ok"),
            (Method::HEAD, "/bots/b1", &reader, "ok"),
            (Method::POST, "/bots/b1", &reader, "missing_scope"),
            (Method::POST, "/bots/b1", &writer, "ok"),
            (Method::GET, "/bots/secret", &writer, "missing_scope"),
            (Method::DELETE, "/bots/b1", &writer, "policy_denied"),
            (Method::GET, "/health", &reader, "ok"),
            (Method::GET, "/bots/b1/", &writer, "policy_denied"),
            (Method::GET, "//bots/b1", &writer, "policy_denied"),
            (Method::GET, "/%62ots/b1", &writer, "policy_denied"),
        ] {
            let (verdict, subject) = asked(&policy, method, path, token).await;
            assert_eq!((verdict, subject.as_deref()), (expected, Some("alice")), "{path}: who was refused is noted");
        }
    }
}

#[tokio::test]
async fn who_lacks_a_scope_is_told_all_that_the_request_needs() {
    let policy = guarded(issuer());
    let header = format!("Bearer {}", with(r#""scope":"bot:write""#));
    let request = Request::post("/bots/secret").header(AUTHORIZATION, header).body(()).expect("a request");
    let (refused, _) = ask(&policy, request).await;
    let refused = refused.expect_err("refused");
    assert_eq!((refused.reason(), refused.scope()), ("missing_scope", Some("admin bot:read bot:write")));
}

#[tokio::test]
async fn a_role_permits_what_its_issuer_says_and_is_not_a_scope() {
    let policy = guarded(issuer().role("editor", ["bot:read", "bot:write"]).role("root", ["admin"]));
    for (claims, method, path, expected) in [
        (r#""roles":["editor"]"#, Method::POST, "/bots/b1", "ok"),
        (r#""roles":"editor""#, Method::POST, "/bots/b1", "ok"),
        (r#""roles":["x","root","editor"]"#, Method::GET, "/bots/secret", "ok"),
        (r#""roles":["root"],"scope":"bot:read""#, Method::GET, "/bots/secret", "ok"),
        (r#""roles":["Editor"]"#, Method::POST, "/bots/b1", "missing_scope"),
        (r#""roles":"editor root""#, Method::POST, "/bots/b1", "missing_scope"),
        (r#""scope":"editor root""#, Method::POST, "/bots/b1", "missing_scope"),
        (r#""roles":["bot:read"]"#, Method::GET, "/bots/b1", "missing_scope"),
        // Others than texts are roles of somebody else.
        (r#""roles":[{"value":"root"}],"scope":"bot:read""#, Method::GET, "/bots/b1", "ok"),
        (r#""roles":{"root":{}},"scope":"bot:read""#, Method::GET, "/bots/b1", "ok"),
        (r#""roles":null,"scope":"bot:read""#, Method::GET, "/bots/b1", "ok"),
        (r#""roles":["root",5],"scope":"bot:read""#, Method::GET, "/bots/secret", "missing_scope"),
    ] {
        assert_eq!(asked(&policy, method, path, &with(claims)).await.0, expected, "{claims}");
    }
}

#[tokio::test]
async fn a_closure_decides_too() {
    let policy = jwt(issuer()).access(|_: &Method, path: &str, principal: &Principal| match path {
        "/mine" if &*principal.subject == "alice" => Ok(()),
        _ => Err(Error::new(Kind::PermissionDenied, "policy_denied")),
    });
    assert_eq!(asked(&policy, Method::GET, "/mine", &valid()).await.0, "ok");
    assert_eq!(asked(&policy, Method::GET, "/yours", &valid()).await.0, "policy_denied");
}

/// What would have been the reason of a refusal, where there was none.
fn reported(context: &Context) -> Option<&'static str> {
    assert_eq!(context.refusal.get(), None);
    context.reported.get().map(|refusal| refusal.reason)
}

#[tokio::test]
async fn what_is_only_reported_is_counted_and_let_through_without_a_principal_of_bad_tokens() {
    let policy = guarded(issuer()).report_only();
    let clone = policy.clone();
    let (answer, context) = ask(&clone, bearing("forged")).await;
    assert!(answer.is_ok());
    assert_eq!((reported(&context), context.principal.get()), (Some("parse_error"), None));
    let (answer, context) = ask(&policy, Request::builder().body(()).expect("a request")).await;
    assert!(answer.is_ok());
    assert_eq!((reported(&context), context.principal.get()), (Some("missing_credentials"), None));
    let (answer, context) = ask(&policy, bearing(valid())).await;
    assert!(answer.is_ok());
    assert_eq!((reported(&context), context.auth()), (Some("policy_denied"), Some("ok")));
    assert_eq!(context.principal.get().map(|p| &*p.subject), Some("alice"), "this one is who it says");
    assert_eq!((policy.reported(), clone.reported()), (3, 3));
    assert_eq!(jwt(issuer()).reported(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_had_to_wait_for_a_key_is_reported_too() {
    let down = KeyFetch::new(|_| async { Err(Error::new(Kind::Unavailable, "down")) });
    let policy = jwt(Issuer::new(ISSUER, JwtKeys::fetched(down))).report_only();
    let (answer, context) = ask(&policy, bearing(valid())).await;
    assert!(answer.is_ok());
    assert_eq!((reported(&context), policy.reported()), (Some("keys_unavailable"), 1));
}
