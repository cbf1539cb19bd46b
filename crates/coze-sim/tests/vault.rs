//! The simulated Vault, as a client on a socket sees it.

use std::time::Duration;

use bytes::Bytes;
use coze_sim::vault::{
    Config, DATABASE_ROLE, Database, Fault, KUBERNETES_JWT, KUBERNETES_ROLE, LeaseState, ROLE_ID, ROOT_TOKEN,
    RoleChange, SECRET_ID, Vault,
};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};
use tokio::time::sleep;

async fn send(vault: &Vault, route: &str, token: &str, body: Value) -> (u16, Value) {
    let (method, path) = route.split_once(' ').expect("a method");
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let body = if body.is_null() { Full::default() } else { Full::from(body.to_string()) };
    let request = Request::builder().method(method).uri(format!("{}/v1/{path}", vault.url()));
    let request = request.header("x-vault-token", token).body(body).expect("valid");
    let answer = client.request(request).await.expect("answered");
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.expect("whole").to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn start() -> Vault {
    Vault::start(Config::default()).await.expect("a port")
}

/// Is it this many seconds, less the few that the way may have taken?
fn within(value: &Value, seconds: u64) -> bool {
    value.as_u64().is_some_and(|value| value <= seconds && value + 10 >= seconds)
}

fn errors(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["errors"][0].as_str().unwrap_or("no error"))
}

#[tokio::test]
async fn both_logins_give_a_token_and_refuse_what_is_wrong() {
    let vault = start().await;
    let approle = "POST auth/approle/login";
    let (status, answer) = send(&vault, approle, "", json!({ "role_id": ROLE_ID, "secret_id": SECRET_ID })).await;
    assert_eq!(
        (status, &answer["auth"]["lease_duration"], &answer["auth"]["renewable"]),
        (200, &json!(3600), &json!(true))
    );
    let token = answer["auth"]["client_token"].as_str().expect("a token").to_owned();
    let (status, answer) = send(&vault, "GET auth/token/lookup-self", &token, Value::Null).await;
    assert!(status == 200 && within(&answer["data"]["ttl"], 3600), "{answer}");

    let refused = send(&vault, approle, "", json!({ "role_id": ROLE_ID, "secret_id": "x" })).await;
    assert_eq!(errors(&refused), (400, "invalid role or secret ID"));
    let kubernetes = |jwt: &str| json!({ "role": KUBERNETES_ROLE, "jwt": jwt });
    let (status, answer) = send(&vault, "POST auth/kubernetes/login", "", kubernetes(KUBERNETES_JWT)).await;
    assert!(status == 200 && answer["auth"]["client_token"].is_string());
    assert_eq!(
        errors(&send(&vault, "POST auth/kubernetes/login", "", kubernetes("x")).await),
        (403, "permission denied")
    );
    for token in ["", "unknown"] {
        assert_eq!(errors(&send(&vault, "GET secret/data/x", token, Value::Null).await), (403, "permission denied"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_up_to_its_end_and_takes_its_leases_with_it() {
    let config =
        Config { token_ttl: Duration::from_secs(100), token_max_ttl: Duration::from_secs(150), ..Config::default() };
    let vault = Vault::start(config).await.expect("a port");
    let token = vault.token();
    let creds = format!("GET database/creds/{DATABASE_ROLE}");
    assert_eq!(send(&vault, &creds, &token, Value::Null).await.0, 200);
    sleep(Duration::from_secs(90)).await;
    let (_, answer) = send(&vault, "POST auth/token/renew-self", &token, Value::Null).await;
    assert!(within(&answer["auth"]["lease_duration"], 60), "capped: {answer}");
    sleep(Duration::from_secs(61)).await;
    assert_eq!(errors(&send(&vault, "POST auth/token/renew-self", &token, Value::Null).await).0, 403);
    assert_eq!(vault.leases()[0].state, LeaseState::Expired);
}

#[tokio::test]
async fn a_secret_has_versions_and_may_be_deleted() {
    let vault = start().await;
    let get = async |path: &str| send(&vault, &format!("GET secret/data/{path}"), ROOT_TOKEN, Value::Null).await;
    assert_eq!(get("a/b").await, (404, json!({ "errors": [] })));
    assert_eq!(vault.put("a/b", &json!({ "k": "one" })), 1);
    assert_eq!(vault.put("a/b", &json!({ "k": "two" })), 2);
    let (_, last) = get("a/b").await;
    assert_eq!((&last["data"]["data"]["k"], &last["data"]["metadata"]["version"]), (&json!("two"), &json!(2)));
    assert_eq!(get("a/b?version=1").await.1["data"]["data"]["k"], "one");
    vault.delete("a/b");
    let (status, deleted) = get("a/b").await;
    assert!(
        status == 404 && deleted["data"]["data"].is_null() && deleted["data"]["metadata"]["version"] == 2,
        "{deleted}"
    );
    assert_eq!(deleted["data"]["metadata"]["destroyed"], false);
    vault.destroy("a/b");
    let (status, destroyed) = get("a/b").await;
    assert_eq!((status, &destroyed["data"]["metadata"]["deletion_time"]), (404, &json!("")));
    assert!(destroyed["data"]["data"].is_null() && destroyed["data"]["metadata"]["destroyed"] == true);
    (0..20).for_each(|_| _ = vault.put("a/b", &json!({})));
    assert_eq!((get("a/b?version=12").await.0, get("a/b?version=13").await.0), (404, 200), "ten versions are kept");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_revoked_and_over() {
    let vault = start().await;
    let creds = format!("GET database/creds/{DATABASE_ROLE}");
    let lease = async || {
        let (_, answer) = send(&vault, &creds, ROOT_TOKEN, Value::Null).await;
        assert!(answer["data"]["password"].is_string());
        json!({ "lease_id": answer["lease_id"] })
    };
    let (first, second) = (lease().await, lease().await);
    sleep(Duration::from_secs(3000)).await;
    let (status, answer) = send(&vault, "PUT sys/leases/renew", ROOT_TOKEN, first.clone()).await;
    assert!(status == 200 && within(&answer["lease_duration"], 3600), "{answer}");
    sleep(Duration::from_secs(700)).await;
    let refused = send(&vault, "PUT sys/leases/renew", ROOT_TOKEN, second).await;
    assert_eq!(errors(&refused), (400, "lease not found"));
    assert_eq!(send(&vault, "PUT sys/leases/revoke", ROOT_TOKEN, first.clone()).await.0, 204);
    assert_eq!(errors(&send(&vault, "PUT sys/leases/renew", ROOT_TOKEN, first).await).0, 400);
    let states: Vec<_> = vault.leases().iter().map(|lease| lease.state).collect();
    assert_eq!(states, [LeaseState::Revoked, LeaseState::Expired]);
}

#[tokio::test]
async fn what_is_wrapped_is_given_once() {
    let vault = start().await;
    let token = vault.wrap(&json!({ "secret_id": "s" }), Duration::from_secs(60));
    assert_eq!(
        errors(&send(&vault, "GET secret/data/x", &token, Value::Null).await).0,
        403,
        "it is good for nothing else"
    );
    for _ in 0..2 {
        let (_, looked_up) = send(&vault, "POST sys/wrapping/lookup", "", json!({ "token": token })).await;
        let expected = ("sys/wrapping/wrap", 60);
        assert_eq!(
            (&looked_up["data"]["creation_path"], &looked_up["data"]["creation_ttl"]),
            (&json!(expected.0), &json!(expected.1))
        );
    }
    let (status, answer) = send(&vault, "POST sys/wrapping/unwrap", &token, Value::Null).await;
    assert_eq!((status, &answer["data"]), (200, &json!({ "secret_id": "s" })));
    let again = send(&vault, "POST sys/wrapping/unwrap", &token, Value::Null).await;
    assert_eq!(errors(&again), (400, "wrapping token is not valid or does not exist"));

    let token = vault.wrap(&json!({ "k": "v" }), Duration::from_secs(60));
    let (_, answer) = send(&vault, "GET cubbyhole/response", &token, Value::Null).await;
    assert!(answer["data"]["response"].as_str().is_some_and(|text| text.contains(r#""k":"v""#)), "{answer}");
    assert_eq!(errors(&send(&vault, "GET cubbyhole/response", &token, Value::Null).await).0, 403);
}

#[tokio::test(start_paused = true)]
async fn it_seals_stands_by_and_fails_where_it_is_told_to() {
    let (vault, active) = (start().await, start().await);
    active.put("x", &json!({}));
    let health = async || send(&vault, "GET sys/health", "", Value::Null).await.0;
    let read = async || send(&vault, "GET secret/data/x", ROOT_TOKEN, Value::Null).await;
    assert_eq!(health().await, 200);
    vault.seal(true);
    assert_eq!((health().await, errors(&read().await)), (503, (503, "Vault is sealed")));
    vault.seal(false);
    vault.stand_by(Some(active.url()));
    assert_eq!((health().await, read().await.0), (429, 307));
    vault.stand_by(None);
    vault.put("x", &json!({}));
    vault.fault(Fault {
        path: "secret/".into(),
        status: Some(429),
        retry_after: Some(7),
        times: 2,
        ..Fault::default()
    });
    assert_eq!([read().await.0, read().await.0, read().await.0], [429, 429, 200]);
    let routes: Vec<_> = vault.requests().into_iter().map(|request| (request.route, request.status)).collect();
    assert_eq!(routes.last(), Some(&("GET secret/data/x".to_owned(), 200)));
}

#[tokio::test]
async fn the_database_is_told_of_each_role_before_who_asked_is_answered() {
    let (told, mut changes) = tokio::sync::mpsc::unbounded_channel();
    let database = Database::new(move |change| {
        let told = told.clone();
        async move {
            if matches!(&change, RoleChange::Extend { .. }) {
                return Err("no".to_owned());
            }
            told.send(change).map_err(|_| "nobody listens".to_owned())
        }
    });
    let vault = Vault::start(Config { database: Some(database), ..Config::default() }).await.expect("a port");
    let (_, answer) = send(&vault, &format!("GET database/creds/{DATABASE_ROLE}"), ROOT_TOKEN, Value::Null).await;
    let text = |name: &str| answer["data"][name].as_str().expect("text").to_owned();
    let (username, password) = (text("username"), text("password"));
    let created = RoleChange::Create { username: username.clone(), password, ttl: Duration::from_secs(3600) };
    assert_eq!(changes.try_recv().expect("told"), created);
    let lease = json!({ "lease_id": answer["lease_id"] });
    let refused = send(&vault, "POST sys/leases/renew", ROOT_TOKEN, lease.clone()).await;
    assert_eq!(errors(&refused), (500, "no"), "what the database refuses, vault does");
    assert_eq!(send(&vault, "POST sys/leases/revoke", ROOT_TOKEN, lease).await.0, 204);
    assert_eq!(changes.try_recv().expect("told"), RoleChange::Drop { username });
    assert!(changes.try_recv().is_err(), "nothing else");
}
