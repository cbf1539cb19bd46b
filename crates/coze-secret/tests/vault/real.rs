//! The server of the tests in `either`: a real Vault where the environment names one, else the simulated one.

use std::{
    env,
    sync::atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use coze_secret::Vault;
use coze_sim::vault::{self, DATABASE_ROLE, ROLE_ID, ROOT_TOKEN, SECRET_ID};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};

use crate::support::{count, secs, simulated};

const ROLE: &str = "coze-secret-test";

pub(crate) struct Server {
    kind: Kind,
    path: String,
}

enum Kind {
    Simulated(vault::Vault),
    Real { url: String, token: String },
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

impl Server {
    /// Says on standard error which one it is.
    pub(crate) async fn start(test: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("coze-secret-test/{}-{number}", std::process::id());
        let kind = match (variable("VAULT_ADDR"), variable("VAULT_TOKEN")) {
            (Some(url), Some(token)) => {
                eprintln!("{test}: against the real vault at {url}");
                Kind::Real { url: url.trim_end_matches('/').to_owned(), token }
            }
            _ => {
                eprintln!("{test}: against the simulated vault, as VAULT_ADDR and VAULT_TOKEN are not set");
                Kind::Simulated(simulated().await)
            }
        };
        Self { kind, path }
    }

    /// As `start`, but a real one only where it has a database.
    pub(crate) async fn start_with_database(test: &str) -> Self {
        let server = Self::start(test).await;
        if matches!(server.kind, Kind::Real { .. }) && variable("VAULT_DATABASE_ROLE").is_none() {
            eprintln!("{test}: against the simulated vault, as VAULT_DATABASE_ROLE is not set");
            return Self { kind: Kind::Simulated(simulated().await), ..server };
        }
        server
    }

    pub(crate) fn client(&self) -> Vault {
        match &self.kind {
            Kind::Simulated(vault) => Vault::new(&vault.url()),
            Kind::Real { url, .. } => Vault::new(url),
        }
        .expect("a valid url")
    }

    pub(crate) fn token(&self) -> &str {
        match &self.kind {
            Kind::Simulated(_) => ROOT_TOKEN,
            Kind::Real { token, .. } => token,
        }
    }

    /// Was something given back so often? Of a real one that is not asked.
    pub(crate) fn assert_revoked(&self, path: &str, times: usize) {
        if let Kind::Simulated(vault) = &self.kind {
            assert_eq!(count(vault, &format!("POST {path}"), 204), times);
        }
    }

    /// A KV path of this test alone.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn database_role(&self) -> String {
        variable("VAULT_DATABASE_ROLE")
            .filter(|_| matches!(self.kind, Kind::Real { .. }))
            .unwrap_or(DATABASE_ROLE.into())
    }

    pub(crate) async fn put(&self, data: &Value) {
        match &self.kind {
            Kind::Simulated(vault) => _ = vault.put(&self.path, data),
            Kind::Real { .. } => _ = self.post(&format!("secret/data/{}", self.path), &json!({ "data": data })).await,
        }
    }

    pub(crate) async fn wrap(&self, data: &Value) -> String {
        match &self.kind {
            Kind::Simulated(vault) => vault.wrap(data, secs(60)),
            Kind::Real { .. } => text(&self.post("sys/wrapping/wrap", data).await["wrap_info"]["token"]),
        }
    }

    /// A role id and a secret id that may read below `secret/`.
    pub(crate) async fn app_role(&self) -> (String, String) {
        if matches!(self.kind, Kind::Simulated(_)) {
            return (ROLE_ID.into(), SECRET_ID.into());
        }
        // It may be enabled already.
        self.request("POST", "sys/auth/approle", &json!({ "type": "approle" })).await;
        let policy = r#"path "secret/data/*" { capabilities = ["read"] }"#;
        self.post(&format!("sys/policies/acl/{ROLE}"), &json!({ "policy": policy })).await;
        let role = format!("auth/approle/role/{ROLE}");
        self.post(&role, &json!({ "token_policies": [ROLE], "token_ttl": "60s" })).await;
        let (_, id) = self.request("GET", &format!("{role}/role-id"), &Value::Null).await;
        let secret = self.post(&format!("{role}/secret-id"), &json!({})).await;
        (text(&id["data"]["role_id"]), text(&secret["data"]["secret_id"]))
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.request("POST", path, body).await;
        assert!((200..300).contains(&status), "POST {path}: {status} {answer}");
        answer
    }

    async fn request(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let Kind::Real { url, token } = &self.kind else { return (0, Value::Null) };
        let connector =
            hyper_rustls::HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connector);
        let body = if body.is_null() { Full::default() } else { Full::from(body.to_string()) };
        let request = Request::builder().method(method).uri(format!("{url}/v1/{path}")).header("x-vault-token", token);
        let request = request.header("x-vault-wrap-ttl", if path == "sys/wrapping/wrap" { "60s" } else { "" });
        let answer = client.request(request.body(body).expect("valid")).await.expect("answered");
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.expect("whole").to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}
