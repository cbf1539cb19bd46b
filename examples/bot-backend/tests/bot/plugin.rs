//! The bot as a plugin of the platform's.

use bot_backend::{
    config::{Config, PluginKey, Secret},
    message::Message,
};
use bytes::Bytes;
use coze_core::{BotId, TenantId};
use coze_tests::Answer;
use http::{HeaderValue, Request, header::AUTHORIZATION};
use http_body_util::Full;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{BOT, World, message};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";
const NEW: &str = "00112233445566778899aabbccddeeff";

fn plugin(tenant: &str, key: Secret, scopes: &[&str]) -> PluginKey {
    PluginKey {
        name: format!("plugin of {tenant}"),
        tenant: TenantId::new(tenant).expect("valid"),
        keys: vec![key],
        scopes: scopes.iter().map(ToString::to_string).collect(),
    }
}

async fn world(change: impl FnOnce(&mut Config)) -> World {
    World::with(coze_sim::Config::default(), |config| {
        config.plugin_keys = vec![
            plugin("acme", Secret::new(TOKEN), &["conversations:read"]),
            plugin("elsewhere", Secret::new(OTHER), &["conversations:read"]),
        ];
        change(config);
    })
    .await
}

/// A message that was answered, and the conversation it has on the platform.
async fn said(world: &World, sent: &Value) -> String {
    let answer = world.post(sent).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let parsed = Message::parse(sent.to_string().as_bytes(), &BotId::new(BOT).expect("valid")).expect("good");
    world.bot.store().conversation(&parsed).await.expect("a database").expect("known")
}

struct Call<'a> {
    query: &'a str,
    token: Option<&'a str>,
    user: Option<&'a str>,
    conversation: Option<&'a str>,
}

impl Call<'_> {
    async fn send(self, world: &World) -> Answer {
        let mut request = Request::post(format!("{}/plugin/history{}", world.bot.url(), self.query))
            .header("x-aiplugin-bot-id", BOT)
            .body(Full::<Bytes>::default())
            .expect("valid");
        let token = self.token.map(|token| format!("Bearer {token}"));
        let headers = [
            ("authorization", token.as_deref()),
            ("x-aiplugin-connector-identifier", self.user),
            ("x-aiplugin-conversation-id", self.conversation),
        ];
        for (name, value) in headers.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            request.headers_mut().insert(name, HeaderValue::from_str(value).expect("valid"));
        }
        world.http.send(request).await
    }
}

#[tokio::test]
async fn a_plugin_with_its_token_hears_what_was_said_in_the_conversation() {
    let world = world(|_| {}).await;
    let mut sent = message(BOT, "hello");
    let conversation = said(&world, &sent).await;
    sent["message_id"] = json!("the next one");
    sent["content"] = json!("and again");
    said(&world, &sent).await;
    // Of somebody else.
    said(&world, &message(BOT, "secret")).await;
    let user = sent["user_id"].as_str();
    let in_query = format!("?service_token={TOKEN}");
    for (query, token) in [("", Some(TOKEN)), (&*in_query, None)] {
        let answer = Call { query, token, user, conversation: Some(&conversation) }.send(&world).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let body = answer.json();
        let said: Vec<_> =
            body["data"]["messages"].as_array().expect("a list").iter().map(|m| m["role"].as_str()).collect();
        assert_eq!(said, [Some("user"), Some("assistant"), Some("user"), Some("assistant")]);
        assert_eq!(body["data"]["messages"][0]["content"], "hello", "the oldest first");
        assert_eq!(body["data"]["messages"][2]["content"], "and again");
        assert!(!answer.text().contains("secret"));
    }
    let nobody = Call { query: "", token: Some(TOKEN), user: Some("nobody"), conversation: Some(&conversation) };
    assert_eq!(nobody.send(&world).await.json(), json!({ "code": 0, "msg": "", "data": { "messages": [] } }));
}

#[tokio::test]
async fn without_a_token_nothing_is_told_and_with_that_of_another_tenant_neither() {
    let world = world(|config| config.plugin_keys[0].scopes.clear()).await;
    let sent = message(BOT, "hello");
    let conversation = said(&world, &sent).await;
    for (token, status) in [(None, 401), (Some(NEW), 401), (Some(TOKEN), 403)] {
        let call = Call { query: "", token, user: sent["user_id"].as_str(), conversation: Some(&conversation) };
        let refused = call.send(&world).await;
        assert_eq!(refused.status, status, "{}", refused.text());
        assert!(!refused.text().contains("hello"));
    }
    let call =
        Call { query: "", token: Some(OTHER), user: sent["user_id"].as_str(), conversation: Some(&conversation) };
    let refused = call.send(&world).await;
    assert_eq!((refused.status.as_u16(), refused.json()["msg"].as_str()), (200, Some("there is no such bot")));
    let get = world.http.get(&format!("{}/plugin/history", world.bot.url())).await;
    assert_eq!(get.status, 405);
}

#[tokio::test]
async fn a_model_hears_of_what_goes_wrong_in_an_answer_that_is_a_success() {
    let world = world(|_| {}).await;
    for (user, conversation) in [(None, Some("1")), (Some("u1"), None)] {
        let answer = Call { query: "", token: Some(TOKEN), user, conversation }.send(&world).await;
        let body = answer.json();
        assert_eq!(answer.status, 200);
        assert!(body["code"].as_i64().is_some_and(|code| code != 0) && body["msg"].is_string(), "{body}");
    }
}

#[tokio::test]
async fn a_token_in_a_file_is_exchanged_while_the_bot_runs() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("token");
    std::fs::write(&path, TOKEN).expect("written");
    let world = world(|config| {
        config.plugin_keys = vec![plugin("acme", Secret::file(&path), &["conversations:read"])];
        config.secrets.poll = std::time::Duration::from_millis(10);
    })
    .await;
    let status = async |token| {
        let call = Call { query: "", token: Some(token), user: Some("u1"), conversation: Some("1") };
        call.send(&world).await.status.as_u16()
    };
    assert_eq!((status(TOKEN).await, status(NEW).await), (200, 401));
    std::fs::write(&path, NEW).expect("written");
    crate::support::eventually("the new one counts", async || status(NEW).await == 200).await;
    assert_eq!(status(TOKEN).await, 200, "so does the old one for a while");
}

#[tokio::test]
async fn without_plugin_keys_there_is_no_such_route() {
    let world = World::start().await;
    let mut request = world.request("/plugin/history", b"");
    request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    assert_eq!(world.http.send(request).await.status, 404);
}

#[test]
fn a_token_that_could_be_guessed_is_refused_by_name() {
    let text = "[[bots]]\nid = \"b\"\ntenant = \"t\"\nwebhook_keys = \"k\"\n\n[[plugin_keys]]\nname = \"p\"\ntenant = \"t\"\nkeys = \"short\"\n";
    let refused = Config::parse(text, "bot.toml".as_ref()).expect_err("refused").to_string();
    assert!(refused.contains("plugin_keys[0].keys") && refused.contains("32 to 512"), "{refused}");
    let good = Config::parse(&text.replace("short", TOKEN), "bot.toml".as_ref()).expect("good");
    assert_eq!(good.plugin_keys[0].scopes, ["conversations:read"]);
}
