//! OAuth: every flow, and what it refuses.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use coze_sim::{App, CLIENT_ID, CLIENT_SECRET, Config, ErrorShape, Fault, FaultKind, OAuth};
use serde_json::{Value, json};

use crate::support::{Answer, Api, config, jump, question, text, with};

pub(crate) const TOKEN: &str = "/api/permission/oauth2/token";
const DEVICE: &str = "/api/permission/oauth2/device/code";

/// Posts JSON to a token endpoint with this bearer.
pub(crate) async fn post(api: &Api, path: &str, bearer: &str, body: Value) -> Answer {
    let bearer = format!("Bearer {bearer}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    api.try_send("POST", path, &headers, body.to_string().into()).await.expect("an answer")
}

/// Status and error of a refusal, which is spelled in every way.
pub(crate) fn refusal(answer: &Answer) -> (u16, String) {
    let body = answer.json();
    assert_eq!((&body["error"], &body["error_message"]), (&body["error_code"], &body["error_description"]), "{body}");
    assert!(!text(&body["error_message"]).is_empty() && !answer.header("x-tt-logid").is_empty());
    (answer.status, text(&body["error_code"]))
}

pub(crate) fn refused(code: &str) -> (u16, String) {
    (if code == "invalid_client" { 401 } else { 400 }, code.to_owned())
}

/// Goes to the authorize page; gives where it leads.
async fn authorize(api: &Api, query: &str) -> String {
    let answer = api.get(&format!("/api/permission/oauth2/authorize?client_id={CLIENT_ID}&{query}")).await;
    assert_eq!(answer.status, 302, "{}", answer.text);
    answer.header("location").to_owned()
}

const REDIRECT: &str = "response_type=code&redirect_uri=http%3A%2F%2Fme%2Fcb";

async fn code(api: &Api, query: &str) -> String {
    let to = authorize(api, query).await;
    to.split_once("code=").expect("a code").1.to_owned()
}

fn code_grant(code: &str) -> Value {
    json!({ "grant_type": "authorization_code", "client_id": CLIENT_ID, "redirect_uri": "http://me/cb", "code": code })
}

/// Does an access token work?
pub(crate) async fn works(api: &Api, token: &Value) -> bool {
    let bearer = format!("Bearer {}", text(token));
    let answer = api.try_send("GET", "/v1/users/me", &[("authorization", &bearer)], Bytes::new()).await;
    answer.expect("an answer").status == 200
}

#[tokio::test]
async fn a_code_is_exchanged_once_with_the_secret() {
    let api = Api::start(config()).await;
    let to = authorize(&api, "response_type=code&redirect_uri=http%3A%2F%2Fme%2Fcb%3Fx%3D1%23top&state=a%20b%26").await;
    let (head, rest) = to.split_once("code=").expect("a code");
    assert!(head == "http://me/cb?x=1&" && rest.starts_with("code_") && rest.ends_with("&state=a%20b%26#top"), "{to}");

    let code = code(&api, REDIRECT).await;
    let body = || code_grant(&code);
    for secret in ["", "wrong"] {
        assert_eq!(refusal(&post(&api, TOKEN, secret, body()).await), refused("invalid_client"));
    }
    let other = with(body(), "redirect_uri", json!("http://me/other"));
    assert_eq!(refusal(&post(&api, TOKEN, CLIENT_SECRET, other).await), refused("invalid_request"));
    let answer = post(&api, TOKEN, CLIENT_SECRET, body()).await;
    let token = answer.json();
    assert_eq!(answer.status, 200);
    assert!(text(&token["access_token"]).starts_with("czu_"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let until = token["expires_in"].as_u64().expect("a number");
    assert!((now + 890..=now + 900).contains(&until), "an absolute time");
    assert!(works(&api, &token["access_token"]).await);
    assert_eq!(refusal(&post(&api, TOKEN, CLIENT_SECRET, body()).await), refused("invalid_request"));
    assert_eq!(api.sim.counts().tokens_issued, 1);
}

#[tokio::test]
async fn a_person_may_refuse() {
    let api = Api::start(config()).await;
    let refusal = Fault::new("/api/permission/oauth2/authorize", FaultKind::RefuseConsent);
    api.sim.fault(refusal).expect("possible");
    let query = "response_type=code&redirect_uri=http%3A%2F%2Fme%2Fcb&state=s";
    assert_eq!(authorize(&api, query).await, "http://me/cb?error=access_denied&state=s");
    assert!(authorize(&api, query).await.starts_with("http://me/cb?code=code_"), "the next one consents");
}

#[tokio::test]
async fn a_refresh_token_rotates() {
    let api = Api::start(config()).await;
    let code = code(&api, REDIRECT).await;
    let first = post(&api, TOKEN, CLIENT_SECRET, code_grant(&code)).await.json();
    let refresh =
        |token: &Value| json!({ "grant_type": "refresh_token", "client_id": CLIENT_ID, "refresh_token": token });
    let body = refresh(&first["refresh_token"]);
    assert_eq!(refusal(&post(&api, TOKEN, "wrong", body.clone()).await), refused("invalid_client"));
    let second = post(&api, TOKEN, CLIENT_SECRET, body.clone()).await.json();
    assert!(works(&api, &second["access_token"]).await);
    assert_ne!(first["refresh_token"], second["refresh_token"]);
    assert_eq!(refusal(&post(&api, TOKEN, CLIENT_SECRET, body).await), refused("invalid_request"), "invalid at once");
    let body = refresh(&second["refresh_token"]);
    assert_eq!(post(&api, TOKEN, CLIENT_SECRET, body).await.status, 200);
}

#[tokio::test]
async fn pkce_takes_the_verifier_instead_of_the_secret() {
    let api = Api::start(config()).await;
    // RFC 7636, appendix B.
    let (verifier, challenge) =
        ("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    for query in [
        format!("{REDIRECT}&code_challenge={challenge}&code_challenge_method=S256"),
        format!("{REDIRECT}&code_challenge={verifier}&code_challenge_method=plain"),
        format!("{REDIRECT}&code_challenge={verifier}"),
    ] {
        let code = code(&api, &query).await;
        assert_eq!(refusal(&post(&api, TOKEN, "", code_grant(&code)).await), refused("invalid_request"));
        let wrong = with(code_grant(&code), "code_verifier", json!(challenge));
        assert_eq!(refusal(&post(&api, TOKEN, "", wrong).await), refused("invalid_request"));
        let body = with(code_grant(&code), "code_verifier", json!(verifier));
        let token = post(&api, TOKEN, "", body).await.json();
        let body =
            json!({ "grant_type": "refresh_token", "client_id": CLIENT_ID, "refresh_token": token["refresh_token"] });
        assert_eq!(post(&api, TOKEN, "", body).await.status, 200, "{query}");
    }
}

#[tokio::test]
async fn wrong_authorize_requests_lead_nowhere() {
    let mut config = config();
    config.apps[0].redirect_uris = vec!["http://me/cb".into()];
    config.apps.push(App { client_id: "off".into(), name: "sleepy".into(), active: false, ..App::default() });
    let api = Api::start(config).await;
    for (query, code) in [
        (String::new(), "invalid_request"),
        (format!("response_type=token&client_id={CLIENT_ID}"), "invalid_request"),
        (REDIRECT.to_owned(), "invalid_request"),
        (format!("{REDIRECT}&client_id=1"), "invalid_client"),
        (format!("{REDIRECT}&client_id=off"), "access_deny"),
        (format!("response_type=code&client_id={CLIENT_ID}"), "invalid_request"),
        (format!("response_type=code&client_id={CLIENT_ID}&redirect_uri=http://me%0A"), "invalid_request"),
        (format!("response_type=code&client_id={CLIENT_ID}&redirect_uri=http://evil"), "invalid_request"),
        (format!("{REDIRECT}&client_id={CLIENT_ID}&code_challenge=x&code_challenge_method=S512"), "invalid_request"),
    ] {
        let answer = api.get(&format!("/api/permission/oauth2/authorize?{query}")).await;
        assert_eq!(refusal(&answer), refused(code), "{query}");
    }
    let workspace = format!("/api/permission/oauth2/workspace_id/7/authorize?{REDIRECT}&client_id={CLIENT_ID}");
    assert_eq!(api.get(&workspace).await.status, 302);
}

#[tokio::test]
async fn a_device_waits_for_its_person() {
    let oauth = OAuth { device_interval: Duration::from_secs(5), ..OAuth::default() };
    let api = Api::start(Config { oauth, ..config() }).await;
    let begin = async || post(&api, DEVICE, "", json!({ "client_id": CLIENT_ID })).await.json();
    let poll = async |device: &Value| {
        let body = json!({
            "grant_type": "urn:ietf:params:oauth:grant-type:device_code", "client_id": CLIENT_ID,
            "device_code": device["device_code"],
        });
        post(&api, TOKEN, "", body).await
    };
    let device = begin().await;
    assert_eq!((&device["expires_in"], &device["interval"]), (&json!(300), &json!(5)), "durations, here");
    assert!(text(&device["verification_uri"]).starts_with("http://"));
    let user_code = text(&device["user_code"]);
    let answer = poll(&device).await;
    assert_eq!(refusal(&answer), refused("authorization_pending"));
    assert_eq!(answer.json()["error_message"], "pending");
    assert_eq!(refusal(&poll(&device).await), refused("slow_down"));
    jump(Duration::from_secs(5)).await;
    assert_eq!(refusal(&poll(&device).await), refused("authorization_pending"));
    assert!(!api.sim.approve_device("AAAA-BBBB"));
    assert!(api.sim.approve_device(&user_code) && !api.sim.approve_device(&user_code));
    let token = poll(&device).await.json();
    assert!(token["refresh_token"].is_string() && works(&api, &token["access_token"]).await);
    assert_eq!(refusal(&poll(&device).await), refused("invalid_request"), "only once");

    let device = begin().await;
    assert!(api.sim.deny_device(&text(&device["user_code"])));
    assert_eq!(refusal(&poll(&device).await), refused("access_denied"));
    let oauth = OAuth { device_lifetime: Duration::ZERO, ..OAuth::default() };
    let api = Api::start(Config { oauth, ..config() }).await;
    let device = post(&api, DEVICE, "", json!({ "client_id": CLIENT_ID })).await.json();
    let body = json!({
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code", "client_id": CLIENT_ID,
        "device_code": device["device_code"],
    });
    assert_eq!(refusal(&post(&api, TOKEN, "", body).await), refused("expired_token"));
    assert_eq!(refusal(&post(&api, DEVICE, "", json!({})).await), refused("invalid_request"));
    assert_eq!(refusal(&post(&api, DEVICE, "", json!({ "client_id": "1" })).await), refused("invalid_client"));
    let workspace = "/api/permission/oauth2/workspace_id/7/device/code";
    assert_eq!(post(&api, workspace, "", json!({ "client_id": CLIENT_ID })).await.status, 200);
}

#[tokio::test]
async fn wrong_token_requests_are_refused() {
    let api = Api::start(config()).await;
    let unused = code(&api, REDIRECT).await;
    for (body, code) in [
        (json!({}), "invalid_request"),
        (json!({ "grant_type": 1 }), "invalid_request"),
        (json!({ "grant_type": "password" }), "unsupported_grant_type"),
        (json!({ "grant_type": "authorization_code" }), "invalid_request"),
        (with(code_grant("x"), "client_id", json!("1")), "invalid_client"),
        (code_grant("x"), "invalid_request"),
        (with(code_grant(&unused), "redirect_uri", Value::Null), "invalid_request"),
        (json!({ "grant_type": "refresh_token", "client_id": CLIENT_ID, "refresh_token": "x" }), "invalid_request"),
    ] {
        assert_eq!(refusal(&post(&api, TOKEN, CLIENT_SECRET, body.clone()).await), refused(code), "{body}");
    }
    let form = "grant_type=authorization_code&code=x";
    let answer = api.try_send("POST", TOKEN, &[], form.into()).await.expect("an answer");
    assert_eq!(refusal(&answer), refused("invalid_request"), "JSON only");
    let account = "/api/permission/oauth2/account/7/token";
    assert_eq!(
        refusal(&post(&api, account, CLIENT_SECRET, code_grant(&unused)).await),
        refused("unsupported_grant_type")
    );
}

#[tokio::test]
async fn errors_are_spelled_as_configured() {
    for (errors, names) in
        [(ErrorShape::Standard, ["error", "error_description"]), (ErrorShape::Coded, ["error_code", "error_message"])]
    {
        let api = Api::start(Config { oauth: OAuth { errors, ..OAuth::default() }, ..config() }).await;
        let body = post(&api, TOKEN, "", json!({ "grant_type": "x" })).await.json();
        let found: Vec<_> = body.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(found, names);
    }
}

#[tokio::test]
async fn a_token_ends_with_its_time_or_all_at_once() {
    static NOW: AtomicU64 = AtomicU64::new(1_800_000_000);
    fn clock() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW.load(Ordering::Relaxed))
    }
    let mut api = Api::start(Config { clock, ..config() }).await;
    let fetch = async |api: &Api| {
        let code = code(api, REDIRECT).await;
        post(api, TOKEN, CLIENT_SECRET, code_grant(&code)).await.json()
    };
    let token = fetch(&api).await;
    assert_eq!(token["expires_in"], 1_800_000_900);
    api.token = text(&token["access_token"]);
    NOW.fetch_add(899, Ordering::Relaxed);
    assert_eq!(api.get("/v1/users/me").await.code(), (200, 0));
    NOW.fetch_add(1, Ordering::Relaxed);
    assert_eq!(api.get("/v1/users/me").await.code(), (401, 700_012_006));
    assert_eq!(api.post("/v3/chat", question("x")).await.code(), (200, 4100));

    api.token = text(&fetch(&api).await["access_token"]);
    assert_eq!(api.get("/v1/users/me").await.code(), (200, 0));
    api.sim.expire_tokens();
    assert_eq!(api.get("/v1/users/me").await.code(), (401, 700_012_006));
    api.token = coze_sim::TOKEN.into();
    assert_eq!(api.get("/v1/users/me").await.code(), (200, 0), "static tokens stay");
}
