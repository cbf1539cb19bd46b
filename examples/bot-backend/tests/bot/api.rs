//! The API that is guarded by JSON web tokens.

use std::{
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use axum::{Router, routing};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bot_backend::{
    Backend,
    config::{Config, Issuer, Secret},
};
use bytes::Bytes;
use coze_core::{BotId, ConversationId, TenantId};
use coze_tests::{Answer, Postgres};
use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::{BOT, POLLING, World, message};

const NAME: &str = "https://issuer.example";
const AUDIENCE: &str = "https://bot.example";
const READ: &str = "conversations:read";

/// An issuer: its keys and where they are.
struct Signer {
    key: Ed25519KeyPair,
    folder: TempDir,
}

impl Signer {
    fn new() -> Self {
        let signer =
            Self { key: Ed25519KeyPair::generate().expect("a key"), folder: TempDir::new().expect("a folder") };
        std::fs::write(signer.folder.path().join("keys.json"), signer.keys()).expect("written");
        signer
    }

    fn keys(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key());
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": x }] }).to_string()
    }

    fn issuer(&self) -> Issuer {
        Issuer {
            name: NAME.into(),
            audience: AUDIENCE.into(),
            jwks_url: None,
            jwks_file: Some(self.folder.path().join("keys.json")),
            tenants: Vec::new(),
        }
    }

    /// A token that is good but for these claims.
    fn token(&self, claims: Value) -> String {
        let exp = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() + 600;
        let mut all =
            json!({ "iss": NAME, "aud": AUDIENCE, "sub": "reports", "exp": exp, "scope": READ, "tenant": "acme" });
        all.as_object_mut().expect("an object").extend(claims.as_object().expect("an object").clone());
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "EdDSA", "kid": "k1" })), part(&all));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes())))
    }

    fn of(&self, tenant: &str) -> String {
        self.token(json!({ "tenant": tenant }))
    }
}

async fn world(signer: &Signer, change: impl FnOnce(&mut Config)) -> World {
    let issuer = signer.issuer();
    World::with(coze_sim::Config::default(), |config| {
        config.api.issuers = vec![issuer];
        change(config);
    })
    .await
}

async fn get(world: &World, path: &str, token: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(format!("{}{path}", world.bot.url()));
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    world.http.send(request.body(Full::<Bytes>::default()).expect("valid")).await
}

async fn messages(world: &World, conversation: &Value, query: &str, token: &str) -> Answer {
    let conversation = conversation.as_str().expect("text");
    get(world, &format!("/conversations/{conversation}/messages{query}"), token, &[]).await
}

/// A message of a user in a conversation, answered.
async fn say(world: &World, bot: &str, conversation: &Value, content: &str) -> Value {
    let mut sent = message(bot, content);
    sent["conversation_id"] = conversation.clone();
    assert_eq!(world.post(&sent).await.status, 200);
    sent
}

fn contents(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    let list = body["data"]["messages"].as_array().unwrap_or_else(|| panic!("{body}")).clone();
    list.iter().map(|message| message["content"].as_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn a_tenants_program_reads_its_own_conversations_and_nobody_elses() {
    let signer = Signer::new();
    let world = world(&signer, |_| {}).await;
    let (ours, theirs, both) = (json!("ours"), json!("theirs"), json!("both"));
    let sent = say(&world, BOT, &ours, "hello").await;
    say(&world, POLLING, &theirs, "secret of the other").await;
    say(&world, BOT, &both, "acme's").await;
    say(&world, POLLING, &both, "the other's").await;

    let answer = messages(&world, &ours, "", &signer.of("acme")).await;
    let mut expected = json!({
        "bot_id": BOT, "message_id": sent["message_id"], "user_id": sent["user_id"], "content": "hello",
        "status": "answered", "answer": "You said: hello",
    });
    expected["received_at"] = answer.json()["data"]["messages"][0]["received_at"].clone();
    assert!(expected["received_at"].is_u64());
    assert_eq!(answer.json(), json!({ "code": 0, "msg": "", "data": { "messages": [expected], "next": null } }));

    assert_eq!(contents(&messages(&world, &both, "", &signer.of("acme")).await), ["acme's"]);
    assert_eq!(contents(&messages(&world, &both, "", &signer.of("other")).await), ["the other's"]);
    for (conversation, tenant) in [(&theirs, "acme"), (&ours, "other"), (&ours, "nobody"), (&json!("none"), "acme")] {
        let answer = messages(&world, conversation, "", &signer.of(tenant)).await;
        assert_eq!(answer.status, 404, "{}", answer.text());
        assert!(!answer.text().contains("secret"));
    }
}

#[tokio::test]
async fn a_tenant_is_named_by_the_token_and_not_by_a_header() {
    let signer = Signer::new();
    let world = world(&signer, |_| {}).await;
    say(&world, BOT, &json!("c"), "hello").await;
    let path = "/conversations/c/messages";
    for (token, header, status) in [
        (signer.of("acme"), "acme", 200),
        (signer.of("acme"), "other", 403),
        (signer.of("acme"), "nobody", 403),
        (signer.token(json!({ "tenant": null })), "acme", 401),
        (signer.token(json!({ "tenant": ["acme"] })), "acme", 401),
    ] {
        let answer = get(&world, path, &token, &[("x-tenant-id", header)]).await;
        assert_eq!(answer.status, status, "{header}: {}", answer.text());
    }
    let mut without = signer.issuer();
    without.name = NAME.into();
    let other = World::with(coze_sim::Config::default(), |config| {
        config.api.issuers = vec![without];
        config.api.tenant_claim = "organisation".into();
    })
    .await;
    let answer = get(&other, path, &signer.of("acme"), &[("x-tenant-id", "acme")]).await;
    assert_eq!((answer.status.as_u16(), answer.json()["msg"].as_str()), (403, Some("the token names no tenant")));
}

#[tokio::test]
async fn an_issuer_speaks_for_its_own_tenants_only() {
    let signer = Signer::new();
    let world = world(&signer, |config| {
        config.api.issuers[0].tenants = vec![TenantId::new("other").expect("valid")];
    })
    .await;
    say(&world, BOT, &json!("c"), "hello").await;
    say(&world, POLLING, &json!("c"), "hello").await;
    assert_eq!(messages(&world, &json!("c"), "", &signer.of("other")).await.status, 200);
    let refused = messages(&world, &json!("c"), "", &signer.of("acme")).await;
    assert_eq!(refused.status, 403, "{}", refused.text());
}

#[tokio::test]
async fn a_refusal_says_what_is_wrong_with_the_token() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let world = world(&signer, |_| {}).await;
    for (token, status, reason, error) in [
        (String::new(), 401, "missing_credentials", None),
        ("x".into(), 401, "parse_error", Some("invalid_token")),
        (stranger.of("acme"), 401, "signature_invalid", Some("invalid_token")),
        (signer.token(json!({ "exp": 1 })), 401, "token_expired", Some("invalid_token")),
        (signer.token(json!({ "aud": "another" })), 401, "audience_mismatch", Some("invalid_token")),
        (signer.token(json!({ "iss": "another" })), 401, "issuer_mismatch", Some("invalid_token")),
        (signer.token(json!({ "scope": "conversations:write" })), 403, "missing_scope", Some("insufficient_scope")),
    ] {
        let answer = get(&world, "/conversations/c/messages", &token, &[("accept", "application/problem+json")]).await;
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!((answer.status.as_u16(), &answer.json()["reason"]), (status, &json!(reason)), "{}", answer.text());
        let challenge = answer.headers["www-authenticate"].to_str().expect("ASCII");
        assert!(challenge.starts_with("Bearer"), "{challenge}");
        match error {
            Some(error) => assert!(challenge.contains(&format!("error=\"{error}\"")), "{challenge}"),
            None => assert!(!challenge.contains("error"), "{challenge}"),
        }
    }
    let answer = world.http.post(&format!("{}/conversations/c/messages", world.bot.url()), &json!({})).await;
    assert_eq!((answer.status.as_u16(), &answer.headers["allow"]), (405, &"GET, HEAD".parse().expect("valid")));
}

#[tokio::test]
async fn a_long_conversation_comes_in_pages() {
    let signer = Signer::new();
    let world = world(&signer, |_| {}).await;
    let conversation = json!("long:対話/1");
    let expected: Vec<_> = (0..7).map(|n| format!("message {n}")).collect();
    for content in &expected {
        say(&world, BOT, &conversation, content).await;
    }
    let path = "/conversations/long%3A%E5%AF%BE%E8%A9%B1%2F1/messages";
    let (mut found, mut query, token) = (Vec::new(), "limit=3".to_owned(), signer.of("acme"));
    for size in [3, 3, 1] {
        let page = get(&world, &format!("{path}?{query}"), &token, &[]).await;
        let new = contents(&page);
        assert_eq!(new.len(), size);
        found.extend(new);
        match page.json()["data"]["next"].as_str() {
            Some(next) => query = format!("limit=3&after={next}"),
            None => assert_eq!(size, 1, "the last one"),
        }
    }
    assert_eq!(found, expected);
    let all = get(&world, &format!("{path}?limit=7"), &token, &[]).await;
    assert_eq!((contents(&all).len(), &all.json()["data"]["next"]), (7, &Value::Null), "as many as there are");

    let long = format!("after={}", "A".repeat(4000));
    for wrong in ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=", "after=x", "after=", "after=e30", &long] {
        let answer = get(&world, &format!("{path}?{wrong}"), &token, &[]).await;
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.text());
    }
    let answer = get(&world, "/conversations/a%00b/messages", &token, &[]).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
}

#[tokio::test]
async fn the_pages_are_the_same_in_postgresql() {
    let (postgres, signer) = (Postgres::start(), Signer::new());
    let world = world(&signer, |config| config.storage.conversations = Secret::new(&postgres.url())).await;
    for n in 0..5 {
        say(&world, if n % 2 == 0 { BOT } else { POLLING }, &json!("c"), &n.to_string()).await;
    }
    let ids = [BOT, POLLING].map(|id| BotId::new(id).expect("valid"));
    let (bots, conversation) = (ids.iter().collect::<Vec<_>>(), ConversationId::new("c").expect("valid"));
    let history = async |after| world.bot.store().history(&bots, &conversation, after, 3).await.expect("a database");
    let first = history(None).await;
    let second = history(first.last().map(|last| &last.place)).await;
    let contents: Vec<_> = first.iter().chain(&second).map(|entry| entry.content.as_str()).collect();
    assert_eq!(contents, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn keys_are_fetched_from_the_issuer_and_again_for_a_new_one() {
    let (old, new) = (Signer::new(), Signer::new());
    let published = Arc::new(Mutex::new(old.keys()));
    let keys = published.clone();
    let site = Router::new().route("/keys", routing::get(async move || keys.lock().expect("not poisoned").clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/keys", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, site).await });
    let world = world(&old, |config| {
        config.api.issuers[0].jwks_file = None;
        config.api.issuers[0].jwks_url = Some(url);
    })
    .await;
    say(&world, BOT, &json!("c"), "hello").await;
    assert_eq!(messages(&world, &json!("c"), "", &old.of("acme")).await.status, 200);
    *published.lock().expect("not poisoned") = new.keys().replace("k1", "k2");
    let token = new.of("acme");
    let signed = |token: &str| {
        let claims = token.split('.').nth(1).expect("claims");
        let signed = format!("{}.{claims}", URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","kid":"k2"}"#));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(new.key.sign(signed.as_bytes())))
    };
    assert_eq!(messages(&world, &json!("c"), "", &signed(&token)).await.status, 200);
    assert_eq!(messages(&world, &json!("c"), "", &old.of("acme")).await.status, 401, "the old one is gone");
}

#[tokio::test]
async fn keys_that_cannot_be_had_are_not_the_callers_fault() {
    let signer = Signer::new();
    let world = world(&signer, |config| config.api.issuers[0].jwks_file = Some("/no/such/keys.json".into())).await;
    let answer = messages(&world, &json!("c"), "", &signer.of("acme")).await;
    assert_eq!((answer.status.as_u16(), answer.headers.contains_key("retry-after")), (503, true), "{}", answer.text());
    assert!(!answer.text().contains("keys.json"), "{}", answer.text());
}

#[tokio::test]
async fn one_tenant_does_not_use_up_what_is_anothers() {
    let signer = Signer::new();
    let world = world(&signer, |config| config.limits.app_qps = 1.try_into().expect("not zero")).await;
    let ask = async |tenant: &str| messages(&world, &json!("c"), "", &signer.of(tenant)).await.status.as_u16();
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(ask("acme").await);
    }
    assert!(answers.contains(&429), "{answers:?}");
    assert_eq!(ask("other").await, 404);
}

#[tokio::test]
async fn what_clients_have_to_know_is_served_and_a_bot_without_issuers_has_no_api() {
    let signer = Signer::new();
    let world = world(&signer, |config| config.api.resource = Some(AUDIENCE.into())).await;
    let document = get(&world, "/.well-known/oauth-protected-resource", "", &[]).await;
    assert_eq!(
        (document.status.as_u16(), &document.headers["content-type"]),
        (200, &"application/json".parse().expect("valid"))
    );
    let expected = json!({
        "resource": AUDIENCE, "authorization_servers": [NAME], "scopes_supported": [READ],
        "bearer_methods_supported": ["header"],
    });
    assert_eq!(document.json(), expected);
    let path = format!("{}/.well-known/oauth-protected-resource", world.bot.url());
    for method in [Method::HEAD, Method::POST, Method::OPTIONS] {
        let is_head = method == Method::HEAD;
        let asked = Request::builder().method(method).uri(&path).body(Full::<Bytes>::default()).expect("valid");
        let answer = world.http.send(asked).await;
        assert_eq!(answer.status.as_u16(), if is_head { 200 } else { 405 });
        let allowed = answer.headers.get("allow").map(|allow| allow.to_str().expect("ascii"));
        assert_eq!(allowed, (!is_head).then_some("GET, HEAD"));
    }
    let refused = get(&world, "/conversations/c/messages", "", &[]).await;
    let challenge = format!(r#"Bearer resource_metadata="{AUDIENCE}/.well-known/oauth-protected-resource""#);
    assert_eq!((refused.status.as_u16(), refused.headers["www-authenticate"].to_str().ok()), (401, Some(&*challenge)));
    let plain = World::start().await;
    assert_eq!(get(&plain, "/conversations/c/messages", "", &[]).await.status, 404);
    assert_eq!(get(&plain, "/.well-known/oauth-protected-resource", "", &[]).await.status, 404);
}

#[tokio::test]
async fn keys_without_tls_are_refused_at_the_start() {
    let world = World::start().await;
    let mut config = crate::support::config(&world.sim, &world.folder);
    let jwks_url = Some("http://issuer.example/keys".into());
    config.api.issuers = vec![Issuer { jwks_url, jwks_file: None, ..Signer::new().issuer() }];
    let error = Backend::start(&config, false).await.expect_err("refused").to_string();
    assert!(error.contains(NAME) && error.contains("https"), "{error}");
}

#[tokio::test]
async fn who_asks_too_often_is_shown_what_was_read_lately_and_nobody_elses() {
    let signer = Signer::new();
    let world = world(&signer, |config| config.limits.app_qps = 1.try_into().expect("not zero")).await;
    let conversation = json!("c-lately");
    say(&world, BOT, &conversation, "hello").await;
    let (acme, other) = (signer.of("acme"), signer.of("other"));
    // The limit lets one or two of these through, all are answered.
    let mut ages = 0;
    for _ in 0..5 {
        let answer = messages(&world, &conversation, "", &acme).await;
        assert_eq!((answer.status.as_u16(), contents(&answer)), (200, vec!["hello".to_owned()]));
        ages += usize::from(answer.headers.contains_key("age"));
    }
    assert!((1..5).contains(&ages), "{ages} of them were shown again");
    let page = messages(&world, &conversation, "?limit=1", &acme).await;
    assert_eq!(page.status, 429, "it was not read");
    for _ in 0..3 {
        let answer = messages(&world, &conversation, "", &other).await;
        assert!([404, 429].contains(&answer.status.as_u16()), "{}", answer.text());
    }
}
