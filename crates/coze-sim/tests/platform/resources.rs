//! Conversations, messages, files, bots, workspaces, users and benefits over TCP.

use crate::support::{Answer, Api, config, text, with};
use bytes::Bytes;
use coze_sim::{ACCOUNT, BOT, Config, DRAFT_BOT, Limits, TALKATIVE_BOT, Token, WORKSPACE, Workspace};
use serde_json::{Value, json};

#[tokio::test]
async fn a_conversation_lives_from_its_creation_to_its_deletion() {
    let api = Api::start(config()).await;
    let message = json!({ "role": "user", "content": "hi", "content_type": "text" });
    let body = json!({ "bot_id": BOT, "messages": [message], "meta_data": { "k": "v" } });
    let created = api.post("/v1/conversation/create", body).await.data();
    let id = text(&created["id"]);
    assert_eq!((&created["name"], &created["meta_data"]), (&json!("hi"), &json!({ "k": "v" })));
    assert!(created["created_at"].is_u64() && created["last_section_id"].is_string());
    assert_eq!(api.get(&format!("/v1/conversation/retrieve?conversation_id={id}")).await.data(), created);

    let path = format!("/v1/conversations/{id}");
    let named = api.call("PUT", &path, json!({ "name": "trip" })).await.data();
    assert_eq!(named["name"], "trip");
    assert_eq!(api.call("PUT", &path, json!({ "name": "x".repeat(101) })).await.code(), (200, 4000));
    let cleared = api.post(&format!("{path}/clear"), Value::Null).await.data();
    assert_eq!(cleared["conversation_id"], json!(id));
    let now = api.get(&format!("/v1/conversation/retrieve?conversation_id={id}")).await.data();
    assert_eq!(now["last_section_id"], cleared["id"]);
    assert_ne!(cleared["id"], created["last_section_id"]);

    let deleted = api.call("DELETE", &path, Value::Null).await;
    assert_eq!((deleted.code(), deleted.json().get("data")), ((200, 0), None));
    for answer in [
        api.call("DELETE", &path, Value::Null).await,
        api.get(&format!("/v1/conversation/retrieve?conversation_id={id}")).await,
    ] {
        assert_eq!(answer.code(), (200, 4002));
    }
    assert_eq!(api.get("/v1/conversation/retrieve").await.code(), (200, 4000));
    assert_eq!(api.post("/v1/conversation/create", Value::Null).await.data()["name"], "");
}

#[tokio::test]
async fn conversations_are_listed_by_bot_and_page() {
    let api = Api::start(config()).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(api.post("/v1/conversation/create", json!({ "bot_id": BOT })).await.data()["id"].take());
    }
    api.post("/v1/conversation/create", json!({ "bot_id": "other" })).await.data();
    let list = async |query: &str| {
        let data = api.get(&format!("/v1/conversations?bot_id={BOT}{query}")).await.data();
        let conversations = data["conversations"].as_array().expect("a list");
        let ids: Vec<_> = conversations.iter().map(|conversation| conversation["id"].clone()).collect();
        (ids, data["has_more"] == true)
    };
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    assert_eq!(list("").await, (newest_first.clone(), false));
    assert_eq!(list("&page_size=2").await, (newest_first[..2].to_vec(), true));
    assert_eq!(list("&page_size=2&page_num=2").await, (newest_first[2..].to_vec(), false));
    assert_eq!(list("&sort_order=ASC").await, (ids, false));
    assert_eq!(list(&format!("&page_size=50&page_num={}", usize::MAX)).await, (vec![], false));
    for query in ["", "?bot_id=1&page_size=0", "?bot_id=1&page_size=51", "?bot_id=1&page_num=-1"] {
        assert_eq!(api.get(&format!("/v1/conversations{query}")).await.code(), (200, 4000), "{query}");
    }
}

#[tokio::test]
async fn messages_are_listed_from_a_position_in_either_order() {
    let api = Api::start(config()).await;
    let id = text(&api.post("/v1/conversation/create", json!({})).await.data()["id"]);
    let mut ids = Vec::new();
    for n in 0..5 {
        let body = json!({ "role": "user", "content": n.to_string(), "content_type": "text" });
        let message = api.post(&format!("/v1/conversation/message/create?conversation_id={id}"), body).await.data();
        assert_eq!((&message["type"], &message["meta_data"]), (&json!("question"), &json!({})));
        ids.push(message["id"].clone());
    }
    let list = async |body: Value| -> (String, bool) {
        let answer = api.post(&format!("/v1/conversation/message/list?conversation_id={id}"), body).await;
        let data = answer.data();
        let messages = data.as_array().expect("a list");
        let json = answer.json();
        let ends = [messages.first(), messages.last()].map(|m| m.map_or(json!(""), |m| m["id"].clone()));
        assert_eq!([json["first_id"].clone(), json["last_id"].clone()], ends);
        (messages.iter().map(|message| text(&message["content"])).collect(), json["has_more"] == true)
    };
    let page = |contents: &str, has_more| (contents.to_owned(), has_more);
    assert_eq!(list(Value::Null).await, page("43210", false));
    assert_eq!(list(json!({ "order": "asc", "limit": 2, "before_id": "0", "after_id": "" })).await, page("01", true));
    assert_eq!(list(json!({ "limit": 2 })).await, page("43", true));
    assert_eq!(list(json!({ "limit": 2, "after_id": ids[3] })).await, page("21", true));
    assert_eq!(list(json!({ "limit": 2, "after_id": ids[1] })).await, page("0", false));
    assert_eq!(list(json!({ "limit": 2, "before_id": ids[1] })).await, page("32", true));
    assert_eq!(list(json!({ "limit": 4, "before_id": ids[1] })).await, page("432", false));
    assert_eq!(list(json!({ "after_id": ids[4], "before_id": ids[1] })).await, page("32", false));
    assert_eq!(list(json!({ "after_id": ids[1], "before_id": ids[4] })).await, page("", false));
    assert_eq!(list(json!({ "chat_id": "1" })).await, page("", false));
    for body in [
        json!({ "limit": 0 }),
        json!({ "limit": 51 }),
        json!({ "limit": -1 }),
        json!({ "limit": "x" }),
        json!({ "order": "up" }),
        json!({ "after_id": "1" }),
    ] {
        let answer = api.post(&format!("/v1/conversation/message/list?conversation_id={id}"), body.clone()).await;
        assert_eq!(answer.code(), (200, 4000), "{body}");
    }

    let query = format!("conversation_id={id}&message_id={}", text(&ids[2]));
    let get = async || api.get(&format!("/v1/conversation/message/retrieve?{query}")).await;
    assert_eq!(get().await.data()["content"], "2");
    let modify = async |body: Value| api.post(&format!("/v1/conversation/message/modify?{query}"), body).await;
    let answer = modify(json!({ "content": "two", "content_type": null, "meta_data": null })).await;
    assert_eq!((answer.code(), &answer.json()["message"]["content"]), ((200, 0), &json!("two")));
    let answer = modify(json!({ "meta_data": { "a": "b" } })).await.json();
    assert_eq!((&answer["message"]["content"], &answer["message"]["meta_data"]), (&json!("two"), &json!({ "a": "b" })));
    assert_eq!(modify(json!({})).await.code(), (200, 4000));
    assert_eq!(modify(json!({ "content": "x", "content_type": "object_string" })).await.code(), (200, 4005));
    let deleted = api.post(&format!("/v1/conversation/message/delete?{query}"), Value::Null).await.data();
    assert_eq!(deleted["content"], "two");
    assert_eq!(get().await.code(), (200, 4005));
    assert_eq!(list(Value::Null).await, page("4310", false));
}

#[tokio::test]
async fn accounts_see_only_what_is_theirs() {
    let mut config = config();
    config.tokens.push(Token { account: "other".into(), ..Token::new("pat_other") });
    config.tokens.push(Token::new("pat_colleague"));
    let mut api = Api::start(config).await;
    let (conversation, chat) = api.chat("hello").await;
    let file = upload(&api, "multipart/form-data; boundary=b", FILE.into()).await.data();
    let run = api.post("/v1/workflow/run", json!({ "workflow_id": coze_sim::WORKFLOW })).await.json();
    let paths = [
        (format!("/v3/chat/retrieve?conversation_id={conversation}&chat_id={chat}"), 4002),
        (format!("/v1/conversation/retrieve?conversation_id={conversation}"), 4002),
        (format!("/v1/files/retrieve?file_id={}", text(&file["id"])), 4200),
        (format!("/v1/workflows/{}/run_histories/{}", coze_sim::WORKFLOW, text(&run["execute_id"])), 4314),
    ];
    api.token = "pat_colleague".into();
    for (path, _) in &paths {
        assert_eq!(api.get(path).await.code(), (200, 0), "{path}");
    }
    api.token = "pat_other".into();
    for (path, code) in &paths {
        assert_eq!(api.get(path).await.code(), (200, *code), "{path}");
    }
    let list = api.get(&format!("/v1/conversations?bot_id={BOT}")).await.data();
    assert_eq!(list["conversations"], json!([]));
}

const FILE: &str = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\nhello\r\n--b--\r\n";

async fn upload(api: &Api, content_type: &str, body: Bytes) -> Answer {
    let bearer = format!("Bearer {}", api.token);
    let headers = [("authorization", bearer.as_str()), ("content-type", content_type)];
    api.try_send("POST", "/v1/files/upload", &headers, body).await.expect("an answer")
}

#[tokio::test]
async fn a_file_is_described_and_its_limits_hold() {
    let limits = Limits { file_bytes: 100, ..config().limits };
    let api = Api::start(Config { limits, ..config() }).await;
    let form = "multipart/form-data; boundary=b";
    let file = upload(&api, form, FILE.into()).await.data();
    assert_eq!((&file["file_name"], &file["bytes"]), (&json!("a.txt"), &json!(5)));
    assert!(file["created_at"].is_u64());
    assert_eq!(api.get(&format!("/v1/files/retrieve?file_id={}", text(&file["id"]))).await.data(), file);
    let large = Bytes::from(vec![b'x'; (64 << 10) + 101]);
    for (content_type, body, code) in [
        ("application/json", FILE.into(), 4300),
        (form, Bytes::new(), 4300),
        (form, (FILE.replace("--b--\r\n", "") + FILE).into(), 4301),
        (form, large, 4302),
        (form, FILE.replace("a.txt", "a.exe").into(), 4303),
        (form, FILE[..FILE.len() - 6].to_owned().into(), 4304),
    ] {
        assert_eq!(upload(&api, content_type, body).await.code(), (200, code));
    }
    assert_eq!(api.get("/v1/files/retrieve?file_id=1").await.code(), (200, 4200));
    assert_eq!(api.get("/v1/files/retrieve").await.code(), (200, 4000));
}

#[tokio::test]
async fn bots_are_shown_and_listed_in_both_versions() {
    let api = Api::start(config()).await;
    let bot = api.get(&format!("/v1/bot/get_online_info?bot_id={BOT}")).await.data();
    assert_eq!((&bot["bot_id"], &bot["name"], &bot["bot_mode"]), (&json!(BOT), &json!("Echo"), &json!(0)));
    assert_eq!(api.get(&format!("/v1/bots/{BOT}?is_published=true")).await.data(), bot);
    assert_eq!(api.get("/v1/bots/1").await.code(), (200, 4200));
    assert_eq!(api.get("/v1/bot/get_online_info").await.code(), (200, 4000));

    let new = api.get(&format!("/v1/bots?workspace_id={WORKSPACE}&page_num=2&page_size=1")).await.data();
    assert_eq!((&new["total"], &new["items"][0]["id"]), (&json!(2), &json!(TALKATIVE_BOT)));
    let all = api.get(&format!("/v1/bots?workspace_id={WORKSPACE}&publish_status=all")).await.data();
    assert_eq!(all["total"], 3);
    let draft = api.get(&format!("/v1/bots?workspace_id={WORKSPACE}&publish_status=unpublished_draft")).await.data();
    assert_eq!(draft["items"][0]["id"], DRAFT_BOT);
    let old = api.get(&format!("/v1/space/published_bots_list?space_id={WORKSPACE}&page_index=1")).await.data();
    assert_eq!((&old["total"], &old["space_bots"][0]["bot_name"]), (&json!(2), &json!("Echo")));
    assert!(old["space_bots"][0]["publish_time"].is_string());
    assert_eq!(api.get("/v1/bots?workspace_id=1").await.data(), json!({ "items": [], "total": 0 }));
    for path in ["/v1/bots", "/v1/space/published_bots_list", "/v1/bots?workspace_id=1&publish_status=x"] {
        assert_eq!(api.get(path).await.code(), (200, 4000), "{path}");
    }
}

#[tokio::test]
async fn workspaces_and_the_user_have_all_their_fields() {
    let mut config = config();
    config.workspaces.push(Workspace { id: "2".into(), enterprise: "e1".into(), ..Workspace::default() });
    let api = Api::start(config).await;
    let data = api.get("/v1/workspaces?page_num=1&page_size=1").await.data();
    let expected = json!({
        "id": WORKSPACE, "name": "Simulated", "icon_url": "https://example.com/icon.png", "role_type": "owner",
        "workspace_type": "team", "enterprise_id": "",
    });
    assert_eq!(data, json!({ "total_count": 2, "workspaces": [expected] }));
    assert_eq!(api.get("/v1/workspaces?enterprise_id=e1").await.data()["workspaces"][0]["id"], "2");
    let user = api.get("/v1/users/me").await.data();
    assert_eq!(user["user_id"], ACCOUNT);
    assert!(["user_name", "nick_name", "avatar_url"].iter().all(|name| user[name].is_string()));
}

#[tokio::test]
async fn benefits_tell_the_limits_that_hold() {
    let limits = Limits { chat_qps: 7, workflow_qps: 0, level: "team".into(), ..Limits::default() };
    let api = Api::start(Config { limits, ..config() }).await;
    let get = async |query: &str| api.get(&format!("/v1/commerce/benefit/benefits/get{query}")).await;
    assert_eq!(get("").await.data(), json!({ "basic_info": { "user_level": "team" } }));
    let info = get("?benefit_type_list=api_run_qps&resource_id=chat").await.data()["benefit_info"][0].take();
    assert_eq!((&info["resource_id"], &info["benefit_type"]), (&json!("chat"), &json!("api_run_qps")));
    let item = json!({ "used": 0, "total": 7, "start_at": 0, "end_at": 0, "strategy": "by_quota" });
    assert_eq!(info["effective"], json!({ "status": "valid", "item_info": item }));
    let info = get("?benefit_type_list=api_run_qps,call_tool_limit&resource_id=workflow").await.data();
    assert_eq!(info["benefit_info"][0]["effective"]["item_info"]["strategy"], "unlimit");
    assert_eq!(info["benefit_info"].as_array().map(Vec::len), Some(2));
    for query in ["?benefit_type_list=api_run_qps", "?benefit_type_list=x"] {
        assert_eq!(get(query).await.code(), (200, 4000), "{query}");
    }
}

#[tokio::test]
async fn the_oldest_go_where_too_many_are_kept() {
    let api = Api::start(config()).await;
    let first = api.chat("first").await;
    for _ in 0..100 {
        api.chat("another").await;
    }
    assert_eq!(api.retrieve(&first).await.code(), (200, 4002));
    let counts = api.sim.counts();
    assert_eq!((counts.running_chats, counts.max_running_chats), (100, 100), "a chat that is gone does not run");
    assert_eq!(api.sim.requests().len(), 10);

    let id = text(&api.post("/v1/conversation/create", json!({})).await.data()["id"]);
    for n in 0..12 {
        let body = json!({ "role": "user", "content": n.to_string(), "content_type": "text" });
        api.post(&format!("/v1/conversation/message/create?conversation_id={id}"), body).await.data();
    }
    let list = api
        .post(&format!("/v1/conversation/message/list?conversation_id={id}"), with(json!({}), "order", json!("asc")))
        .await;
    let contents: Vec<_> = list.data().as_array().expect("a list").iter().map(|m| text(&m["content"])).collect();
    assert_eq!(contents, ["2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]);
}
