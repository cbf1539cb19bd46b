//! JWT assertions: what they are worth, and what is refused.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use coze_sim::{App, BOT, CLIENT_ID, TALKATIVE_BOT};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::{
    oauth::{TOKEN, post, refusal, refused, works},
    support::{Api, config, question, text, with},
};

const JWT_CLIENT: &str = "30000000000000000000000000000003.app.coze";

/// A JWT app's private key, and what signs with it.
struct Signer {
    key: EncodingKey,
    kid: String,
    aud: String,
}

impl Signer {
    fn claims(&self, jti: &str) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        json!({ "iss": JWT_CLIENT, "aud": self.aud, "iat": now, "exp": now + 600, "jti": jti })
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::RS256) };
        encode(&header, claims, &self.key).expect("signed")
    }
}

async fn jwt_api(change: impl FnOnce(&mut App)) -> (Api, Signer) {
    let (mut app, private) = App::with_key(JWT_CLIENT).expect("a key");
    let kid = app.keys[0].0.clone();
    change(&mut app);
    let mut config = config();
    config.apps.push(app);
    let api = Api::start(config).await;
    let aud = api.sim.addr().to_string();
    (api, Signer { key: EncodingKey::from_rsa_pem(private.as_bytes()).expect("PKCS#8 in PEM"), kid, aud })
}

fn jwt_grant() -> Value {
    json!({ "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "scope": null })
}

#[tokio::test]
async fn an_assertion_is_worth_one_token() {
    let (api, signer) = jwt_api(|_| ()).await;
    let jwt = signer.sign(&signer.claims("1"));
    let wrong = with(jwt_grant(), "duration_seconds", json!(86_400));
    assert_eq!(refusal(&post(&api, TOKEN, &jwt, wrong).await), refused("invalid_request"), "which spends it not");
    let answer = post(&api, TOKEN, &jwt, with(jwt_grant(), "duration_seconds", json!(86_399))).await;
    let token = answer.json();
    assert!(answer.status == 200 && text(&token["access_token"]).starts_with("czs_"));
    assert_eq!(token.get("refresh_token"), None);
    assert!(works(&api, &token["access_token"]).await);
    let again = post(&api, TOKEN, &jwt, jwt_grant()).await;
    assert_eq!(refusal(&again), refused("invalid_client"));
    assert!(again.text.contains("used before"));
    for aud in ["127.0.0.1", "127.0.0.1:1"] {
        let jwt = signer.sign(&with(signer.claims(aud), "aud", json!(aud)));
        assert_eq!(post(&api, TOKEN, &jwt, jwt_grant()).await.status, 200, "ports do not matter");
    }
    for path in ["/api/permission/oauth2/account/77/token", "/api/permission/oauth2/enterprise_id/77/token"] {
        let jwt = signer.sign(&signer.claims(path));
        let token = post(&api, path, &jwt, jwt_grant()).await.json()["access_token"].take();
        let bearer = format!("Bearer {}", text(&token));
        let me = api.try_send("GET", "/v1/users/me", &[("authorization", &bearer)], Bytes::new()).await;
        assert_eq!(me.expect("an answer").data()["user_id"], "77");
    }
}

#[tokio::test]
async fn an_assertion_that_is_not_right_is_refused() {
    let (api, signer) = jwt_api(|_| ()).await;
    let (_, other) = App::with_key("x").expect("a key");
    let claims = || signer.claims("1");
    let now = claims()["iat"].as_u64().expect("a number");
    let sign_with = |header: Header, key: &EncodingKey| encode(&header, &claims(), key).expect("signed");
    let header = || Header { kid: Some(signer.kid.clone()), ..Header::new(Algorithm::RS256) };
    let good = signer.sign(&claims());
    let (body, signature) = good.rsplit_once('.').expect("dots");
    // {"alg":"none"}, with the claims of the good one.
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", body.split_once('.').expect("a dot").1);
    for (why, jwt) in [
        ("not a JWT", "x".into()),
        ("empty parts", "..".into()),
        ("no signature", format!("{body}.")),
        ("a cut signature", format!("{body}.{}", &signature[4..])),
        ("alg none", unsigned),
        ("HS256 with the public key", {
            let header = Header { alg: Algorithm::HS256, ..header() };
            sign_with(header, &EncodingKey::from_secret(signer.kid.as_bytes()))
        }),
        ("another key", sign_with(header(), &EncodingKey::from_rsa_pem(other.as_bytes()).expect("a key"))),
        ("RS512", sign_with(Header { alg: Algorithm::RS512, ..header() }, &signer.key)),
        ("another kid", sign_with(Header { kid: Some("x".into()), ..header() }, &signer.key)),
        ("no kid", sign_with(Header { kid: None, ..header() }, &signer.key)),
        ("another iss", signer.sign(&with(claims(), "iss", json!("x")))),
        ("another region", signer.sign(&with(claims(), "aud", json!("api.coze.com")))),
        ("no aud", signer.sign(&with(claims(), "aud", Value::Null))),
        ("expired", signer.sign(&with(claims(), "exp", json!(now - 1)))),
        ("no exp", signer.sign(&with(claims(), "exp", Value::Null))),
        ("from the future", signer.sign(&with(claims(), "iat", json!(now + 3600)))),
        ("no jti", signer.sign(&with(claims(), "jti", json!("")))),
    ] {
        assert_eq!(refusal(&post(&api, TOKEN, &jwt, jwt_grant()).await), refused("invalid_client"), "{why}");
    }
    assert_eq!(refusal(&post(&api, TOKEN, "", jwt_grant()).await), refused("invalid_client"));
    let plain = signer.sign(&with(claims(), "iss", json!(CLIENT_ID)));
    assert_eq!(refusal(&post(&api, TOKEN, &plain, jwt_grant()).await), refused("access_deny"), "not a JWT app");
    assert_eq!(post(&api, TOKEN, &good, jwt_grant()).await.status, 200);

    let (api, signer) = jwt_api(|app| app.active = false).await;
    let answer = post(&api, TOKEN, &signer.sign(&signer.claims("1")), jwt_grant()).await;
    assert_eq!(refusal(&answer), refused("access_deny"));
    assert!(answer.text.contains("is currently deactivated by the owner"));
}

#[tokio::test]
async fn a_session_hides_its_conversations_from_others() {
    let (mut api, signer) = jwt_api(|_| ()).await;
    let mut tokens = Vec::new();
    for (jti, session) in [("1", Some("alice")), ("2", Some("bob")), ("3", None), ("4", Some("alice"))] {
        let jwt = signer.sign(&with(signer.claims(jti), "session_name", json!(session)));
        tokens.push(text(&post(&api, TOKEN, &jwt, jwt_grant()).await.json()["access_token"]));
    }
    api.token.clone_from(&tokens[0]);
    let chat = api.chat("secret").await;
    let mut codes = Vec::new();
    for token in tokens {
        api.token = token;
        let list = api.get(&format!("/v1/conversations?bot_id={BOT}")).await.data();
        codes.push((api.retrieve(&chat).await.code().1, list["conversations"].as_array().map(Vec::len)));
    }
    assert_eq!(codes, [(0, Some(1)), (4002, Some(0)), (4002, Some(0)), (0, Some(1))]);
}

#[tokio::test]
async fn a_scope_narrows_a_token() {
    let permissions = ["Connector.botChat", "listBot"].map(String::from).to_vec();
    let (mut api, signer) = jwt_api(|app| app.permissions = Some(permissions)).await;
    let scope = |permission: &str| {
        json!({
            "account_permission": { "permission_list": [permission] },
            "attribute_constraint": { "connector_bot_chat_attribute": { "bot_id_list": [BOT] } },
        })
    };
    let jwt = signer.sign(&signer.claims("1"));
    for wrong in [scope("run"), json!({ "account_permission": { "permission_list": 1 } })] {
        assert_eq!(
            refusal(&post(&api, TOKEN, &jwt, with(jwt_grant(), "scope", wrong)).await),
            refused("invalid_request")
        );
    }
    let body = with(jwt_grant(), "scope", scope("Connector.botChat"));
    api.token = text(&post(&api, TOKEN, &jwt, body).await.json()["access_token"]);
    assert_eq!(api.post("/v3/chat", question("x")).await.code(), (200, 0));
    let other = with(question("x"), "bot_id", json!(TALKATIVE_BOT));
    assert_eq!(api.post("/v3/chat", other).await.code(), (200, 4101));
    assert_eq!(api.get("/v1/bots?workspace_id=1").await.code(), (200, 4101));
}
