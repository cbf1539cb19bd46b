//! Static keys: where they come from, what is noted, and what goes on; and either of two policies.

mod support;

use coze_auth::{ApiKey, ApiKeys, Either, Key, MAX_API_KEYS, Policy, Routes};
use coze_core::{Context, Error, Kind, TenantId};
use http::{HeaderMap, HeaderName, Method, Request, Uri, header::AUTHORIZATION, request::Parts};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use support::{reason, send};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

fn secret(text: &str) -> Key {
    Key::new(text).expect("not empty")
}

fn key(name: &str, key: &str) -> ApiKey {
    ApiKey::new(name, &secret(key)).expect("long enough")
}

fn keys() -> ApiKeys {
    ApiKeys::new([key("history", KEY)]).expect("one key")
}

fn in_header() -> ApiKeys {
    keys().header(HeaderName::from_static("x-api-key"))
}

fn get(uri: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let request = Request::get(uri);
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).expect("a request")
}

/// What reached the inner service, or why nothing did, and what is noted.
async fn ask<P>(policy: &P, mut request: Request<()>) -> (Result<Request<()>, Error>, Context)
where
    P: Policy<(), Body = ()> + Clone,
{
    let context = Context::of(request.extensions_mut());
    (send(policy, request).await, context)
}

async fn refused<P: Policy<(), Body = ()> + Clone>(policy: &P, request: Request<()>) -> &'static str {
    let (refused, context) = ask(policy, request).await;
    assert!(context.principal.get().is_none() && context.user.get().is_none(), "nobody is noted");
    let refused = refused.expect_err("refused");
    assert_eq!((refused.kind(), context.auth()), (Kind::Unauthenticated, Some(refused.reason())));
    refused.reason()
}

#[tokio::test]
async fn a_key_says_whose_it_is_and_does_not_go_on() {
    let tenant = TenantId::new("acme").expect("valid");
    let table = [key("history", KEY).scopes(["history:read"]).tenant(tenant.clone()), key("ci", OTHER)];
    let policy = ApiKeys::new(table).expect("two keys");
    let (passed, context) = ask(&policy, get("/", &[("authorization", &format!("Bearer {KEY}"))])).await;
    assert!(!passed.expect("passed").headers().contains_key(AUTHORIZATION));
    let principal = context.principal.get().expect("noted");
    assert_eq!((principal.scheme, &*principal.subject, &*principal.scopes), ("api_key", "history", "history:read"));
    assert_eq!((context.tenant.get(), context.auth()), (Some(&tenant), Some("ok")));
    // RFC 6750 §2.1: one space or more.
    let (passed, context) = ask(&policy, get("/", &[("authorization", &format!("bearer   {OTHER}"))])).await;
    assert!(passed.is_ok());
    assert_eq!((&*context.principal.get().expect("noted").subject, context.tenant.get()), ("ci", None));
}

#[tokio::test]
async fn what_is_no_key_of_ours_is_refused() {
    let longer = format!("{KEY}0");
    let twice = [("authorization", format!("Bearer {KEY}")), ("authorization", format!("Bearer {KEY}"))];
    let twice: Vec<_> = twice.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for (authorization, expected) in [
        (format!("Bearer {OTHER}"), "unknown_key"),
        (format!("Bearer {longer}"), "unknown_key"),
        (format!("Bearer {}", &KEY[..31]), "unknown_key"),
        (format!("Bearer {}", KEY.to_uppercase()), "unknown_key"),
        (format!("Bearer {}", hex::encode(Sha256::digest(KEY))), "unknown_key"),
        ("Bearer ".to_owned(), "unknown_key"),
        (format!("Basic {KEY}"), "missing_credentials"),
        (KEY.to_owned(), "missing_credentials"),
    ] {
        let request = get("/", &[("authorization", &authorization)]);
        assert_eq!(refused(&keys(), request).await, expected, "{authorization}");
    }
    assert_eq!(refused(&keys(), get("/", &[])).await, "missing_credentials");
    assert_eq!(refused(&keys(), get("/", &[("x-api-key", KEY)])).await, "missing_credentials");
    assert_eq!(refused(&keys(), get("/", &twice)).await, "parse_error");
    let nobody = ApiKeys::new([]).expect("no key");
    assert_eq!(refused(&nobody, get("/", &[("authorization", &format!("Bearer {KEY}"))])).await, "unknown_key");
}

#[tokio::test]
async fn another_header_has_the_key_alone() {
    let (passed, _) = ask(&in_header(), get("/", &[("x-api-key", KEY), ("authorization", "Basic x")])).await;
    let passed = passed.expect("passed");
    assert!(!passed.headers().contains_key("x-api-key") && passed.headers().contains_key(AUTHORIZATION));
    assert_eq!(refused(&in_header(), get("/", &[("x-api-key", &format!("Bearer {KEY}"))])).await, "unknown_key");
    assert_eq!(refused(&in_header(), get("/", &[("x-api-key", "")])).await, "unknown_key");
}

#[tokio::test]
async fn a_key_in_the_query_is_taken_out_of_the_address_if_that_is_switched_on() {
    let policy = keys().query("key");
    for (uri, expected) in [
        (format!("/a?key={KEY}"), "/a"),
        (format!("/a?x=1&key={KEY}&y=%2F&z"), "/a?x=1&y=%2F&z"),
        (format!("/a/b?key={KEY}&"), "/a/b?"),
        (format!("/?%6bey=%30{}", &KEY[1..]), "/"),
        (format!("https://bot.example/a?keys=1&key={KEY}"), "https://bot.example/a?keys=1"),
    ] {
        let (passed, context) = ask(&policy, get(&uri, &[])).await;
        assert_eq!(passed.expect("passed").uri(), &expected.parse::<Uri>().expect("an address"), "{uri}");
        assert!(context.principal.get().is_some());
    }
    for (uri, expected) in [
        (format!("/?key={OTHER}"), "unknown_key"),
        ("/?key=".to_owned(), "unknown_key"),
        ("/?key".to_owned(), "unknown_key"),
        ("/?key=%zz%".to_owned(), "unknown_key"),
        (format!("/?key={KEY}&key={KEY}"), "parse_error"),
        (format!("/?Key={KEY}"), "missing_credentials"),
        (format!("/key={KEY}"), "missing_credentials"),
    ] {
        assert_eq!(refused(&policy, get(&uri, &[])).await, expected, "{uri}");
    }
    let uri = format!("/?key={KEY}");
    assert_eq!(refused(&keys(), get(&uri, &[])).await, "missing_credentials", "it is not switched on");
    let both = get(&uri, &[("authorization", &format!("Bearer {KEY}"))]);
    assert_eq!(refused(&policy, both).await, "parse_error", "which one is meant");
    let (passed, _) = ask(&policy, get("/?x=1", &[("authorization", &format!("Bearer {KEY}"))])).await;
    assert_eq!(passed.expect("passed").uri(), "/?x=1");
}

#[tokio::test]
async fn keys_are_exchanged_while_requests_are_checked() {
    let policy = in_header();
    let clone = policy.clone();
    let asked = async |key: &str| reason(ask(&clone, get("/", &[("x-api-key", key)])).await.0);
    policy.replace([key("history", KEY), key("history", OTHER)]).expect("two");
    assert_eq!((asked(KEY).await, asked(OTHER).await), (None, None));
    policy.replace([key("history", OTHER)]).expect("one");
    assert_eq!((asked(KEY).await, asked(OTHER).await), (Some("unknown_key"), None));
    let error = policy.replace([key("a", KEY), key("b", KEY)]).expect_err("whose is it");
    assert_eq!((error.kind(), error.reason()), (Kind::Invalid, "keys_ambiguous"));
    assert_eq!(asked(OTHER).await, None, "as they were");
}

#[test]
fn there_is_a_bound_on_keys() {
    let many = |count: usize| (0..count).map(|n| key("n", &format!("{n:032}")));
    let policy = ApiKeys::new(many(MAX_API_KEYS)).expect("as many as there may be");
    assert_eq!(policy.replace(many(MAX_API_KEYS + 1)).expect_err("one more").reason(), "keys_too_many");
}

#[tokio::test]
async fn a_key_that_somebody_could_guess_is_not_taken_and_its_hash_is() {
    for bad in ["secret", &KEY[1..], &format!("{KEY} "), &format!("{KEY}\n"), &"k".repeat(513), &"é".repeat(32)] {
        let error = ApiKey::new("a", &secret(bad)).expect_err("refused");
        assert_eq!((error.kind(), error.reason()), (Kind::Invalid, "key_invalid"), "{bad:?}");
    }
    assert!(ApiKey::new("a", &secret(&"k".repeat(512))).is_ok());
    let hash = hex::encode(Sha256::digest(KEY));
    for hash in [hash.clone(), hash.to_uppercase()] {
        let policy = ApiKeys::new([ApiKey::hashed("history", &hash).expect("a hash")]).expect("one");
        let (passed, _) = ask(&policy, get("/", &[("authorization", &format!("Bearer {KEY}"))])).await;
        assert!(passed.is_ok());
    }
    for bad in ["", KEY, &hash[1..], &"z".repeat(64)] {
        assert_eq!(ApiKey::hashed("a", bad).expect_err("refused").reason(), "key_invalid");
    }
}

const PLUGIN: [(&str, &str); 3] =
    [("x-api-key", KEY), ("x-aiplugin-connector-identifier", "user-1"), ("x-aiplugin-bot-id", "7300000000000000001")];

#[tokio::test]
async fn for_whom_a_plugin_is_called_is_believed_only_of_who_has_a_key_and_where_it_is_switched_on() {
    let noted =
        |context: &Context| (context.user.get().map(ToString::to_string), context.bot.get().map(ToString::to_string));
    let (passed, context) = ask(&in_header(), get("/", &PLUGIN)).await;
    assert!(passed.is_ok());
    assert_eq!(noted(&context), (None, None));

    let policy = in_header().plugin_headers();
    let (passed, context) = ask(&policy, get("/", &PLUGIN)).await;
    assert!(passed.is_ok());
    assert_eq!(noted(&context), (Some("user-1".into()), Some("7300000000000000001".into())));

    let forged = [("x-api-key", OTHER), PLUGIN[1], PLUGIN[2]];
    for policy in [policy.clone(), policy.clone().report_only()] {
        let (_, context) = ask(&policy, get("/", &forged)).await;
        assert_eq!(noted(&context), (None, None));
    }
    for bad in [
        &[PLUGIN[0], PLUGIN[2], PLUGIN[2]][..],
        &[PLUGIN[0], ("x-aiplugin-bot-id", "a b")],
        &[PLUGIN[0], (PLUGIN[1].0, "")],
    ] {
        let (refused, context) = ask(&policy, get("/", bad)).await;
        assert_eq!((reason(refused), noted(&context).1), (Some("parse_error"), None));
    }
    let (passed, context) = ask(&policy, get("/", &[PLUGIN[0], (PLUGIN[1].0, "张三")])).await;
    assert!(passed.is_ok());
    assert_eq!(noted(&context), (Some("张三".into()), None));
}

#[tokio::test]
async fn scopes_are_required_by_method_and_path_as_of_a_token() {
    let routes = || Routes::new().require(Method::GET, "/history", ["history:read"]).require(None, "/free", []);
    let table = [key("history", KEY).scopes(["history:read"]), key("ci", OTHER)];
    let policy = ApiKeys::new(table).expect("two").header(HeaderName::from_static("x-api-key")).access(routes());
    for (uri, key, expected) in [
        ("/history", KEY, None),
        ("/history", OTHER, Some("missing_scope")),
        ("/free", OTHER, None),
        ("/other", KEY, Some("policy_denied")),
    ] {
        let (verdict, context) = ask(&policy, get(uri, &[("x-api-key", key)])).await;
        assert_eq!(verdict.as_ref().err().map(Error::reason), expected, "{uri}");
        assert!(context.principal.get().is_some(), "who was refused is noted");
        let client = context.refusal.get().and_then(|refusal| refusal.client.as_deref());
        assert_eq!(client, expected.map(|_| if key == KEY { "history" } else { "ci" }));
        assert!(verdict.err().is_none_or(|error| error.kind() == Kind::PermissionDenied));
    }
}

#[tokio::test]
async fn what_is_only_reported_is_counted_and_let_through_as_it_is() {
    let policy = in_header().query("key").access(Routes::new()).report_only();
    let clone = policy.clone();
    for (request, expected, is_known) in [
        (get("/?key=x", &[]), "unknown_key", false),
        (get("/?x", &[("x-api-key", OTHER)]), "unknown_key", false),
        (get("/", &[]), "missing_credentials", false),
        (get("/", &[("x-api-key", KEY)]), "policy_denied", true),
    ] {
        let (uri, headers) = (request.uri().clone(), request.headers().clone());
        let (passed, context) = ask(&clone, request).await;
        let passed = passed.expect("let through");
        assert_eq!(context.reported.get().map(|refusal| refusal.reason), Some(expected));
        assert_eq!((context.refusal.get().is_some(), context.principal.get().is_some()), (false, is_known));
        assert_eq!(passed.uri(), &uri, "another layer may want it");
        assert_eq!(passed.headers(), &if is_known { HeaderMap::new() } else { headers });
    }
    assert_eq!((policy.reported(), in_header().reported()), (4, 0));
}

#[tokio::test]
async fn the_headers_choose_one_of_two_policies_and_its_verdict_counts() {
    let token = |parts: &mut Parts, _: &Context| match parts.headers[AUTHORIZATION].as_bytes() {
        b"Bearer good" => Ok(()),
        _ => Err(Error::new(Kind::Unauthenticated, "signature_invalid")),
    };
    let policy = Either::new(token, in_header(), |headers: &HeaderMap| headers.contains_key(AUTHORIZATION));
    for (headers, expected) in [
        (&[("authorization", "Bearer good")][..], None),
        (&[("authorization", "Bearer bad")], Some("signature_invalid")),
        (&[("authorization", "Bearer bad"), ("x-api-key", KEY)], Some("signature_invalid")),
        (&[("x-api-key", KEY)], None),
        (&[("x-api-key", OTHER)], Some("unknown_key")),
        (&[], Some("missing_credentials")),
    ] {
        let (verdict, context) = ask(&policy, get("/", headers)).await;
        assert_eq!(reason(verdict), expected, "{headers:?}");
        assert_eq!(context.refusal.get().map(|refusal| refusal.reason), expected);
    }
    assert!(format!("{:?}", Either::new((), (), |_: &HeaderMap| true)).starts_with("Either"));
}

#[test]
fn nothing_prints_a_key_or_its_hash() {
    let shown = format!("{:?} {:?}", keys(), key("history", KEY));
    assert!(shown.contains("history"), "{shown}");
    let hash = Sha256::digest(KEY);
    assert!(!shown.contains(KEY) && !shown.contains(&hex::encode(hash)) && !shown.contains(&format!("{hash:?}")));
}

proptest! {
    #[test]
    fn no_address_makes_it_panic_and_nothing_but_the_key_is_lost(before in "[a-z%=&+0-9]{0,12}", after in "[a-z%=&+0-9]{0,12}") {
        let policy = keys().query("api-key");
        let uri = format!("/p?{before}&api-key={KEY}&{after}");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let passed = runtime.block_on(send(&policy, get(&uri, &[]))).expect("passed");
        prop_assert_eq!(passed.uri().to_string(), format!("/p?{before}&{after}"));
    }
}
