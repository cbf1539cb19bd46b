//! Bots that are made while the platform runs, and what else there is to one: variables, workflows, what people think of it.

use coze_sim::{BOT, Config, Keep, TALKATIVE_BOT, Token, WORKFLOW, WORKSPACE};
use serde_json::{Value, json};

use crate::support::{Api, config, text};

#[tokio::test]
async fn a_bot_is_made_changed_published_and_taken_back() {
    let api = Api::start(config()).await;
    let make = async |body: Value| api.post("/v1/bot/create", body).await;
    let id = text(&make(json!({ "space_id": WORKSPACE, "name": "Sales" })).await.data()["bot_id"]);
    let chat = async || {
        let message = json!({ "role": "user", "content": "hi", "content_type": "text" });
        let body = json!({ "bot_id": id, "user_id": "u", "additional_messages": [message] });
        api.post("/v3/chat", body).await.code()
    };
    let listed = async |status: &str| {
        let path = format!("/v1/bots?workspace_id={WORKSPACE}&publish_status={status}");
        let items = api.get(&path).await.data()["items"].take();
        items.as_array().expect("a list").iter().any(|bot| bot["id"] == json!(id))
    };
    assert_eq!(
        (chat().await, listed("published_online").await, listed("unpublished_draft").await),
        ((200, 4015), false, true)
    );

    let change = async |body: Value| api.post("/v1/bot/update", body).await.code();
    let onboarding = json!({ "prologue": "Hello!", "suggested_questions": ["How much?"] });
    assert_eq!(
        change(json!({ "bot_id": id, "description": "sells", "prompt_info": { "prompt": "Sell." } })).await,
        (200, 0)
    );
    assert_eq!(change(json!({ "bot_id": id, "onboarding_info": onboarding })).await, (200, 0));
    for wrong in [
        json!({ "bot_id": id, "description": "x", "name": "x".repeat(21) }),
        json!({ "bot_id": id, "description": "x".repeat(501) }),
        json!({ "bot_id": id, "description": "x", "prompt_info": "Sell." }),
    ] {
        assert_eq!(change(wrong).await, (200, 4000));
    }
    assert_eq!(change(json!({ "bot_id": "1" })).await, (200, 4200));
    let bot = api.get(&format!("/v1/bots/{id}")).await.data();
    assert_eq!((&bot["name"], &bot["description"]), (&json!("Sales"), &json!("sells")), "all or nothing was changed");
    assert_eq!((&bot["prompt_info"]["prompt"], &bot["onboarding_info"]), (&json!("Sell."), &onboarding));

    let publish = |connectors: Value| json!({ "bot_id": id, "connector_ids": connectors });
    assert_eq!(api.post("/v1/bot/publish", publish(json!([]))).await.code(), (200, 4000));
    assert_eq!(api.post("/v1/bot/publish", publish(json!(["1024"]))).await.data()["bot_id"], json!(id));
    assert_eq!((chat().await, listed("published_online").await), ((200, 0), true));
    let back = json!({ "connector_id": "1024" });
    assert_eq!(api.post(&format!("/v1/bots/{id}/unpublish"), back).await.code(), (200, 0));
    assert_eq!(chat().await, (200, 4015));

    let copy = async |template: &str, body: Value| api.post(&format!("/v1/templates/{template}/duplicate"), body).await;
    let copied = copy(BOT, json!({ "workspace_id": WORKSPACE })).await.data();
    let bot = api.get(&format!("/v1/bots/{}", text(&copied["entity_id"]))).await.data();
    assert_eq!((&copied["entity_type"], &bot["name"]), (&json!("agent"), &json!("Echo")));
    assert_eq!(copy("1", json!({ "workspace_id": WORKSPACE })).await.code(), (200, 4200));
    assert_eq!(copy(BOT, json!({ "workspace_id": "1" })).await.code(), (200, 4200));
    for (body, code) in [
        (json!({ "space_id": "1", "name": "x" }), 4200),
        (json!({ "space_id": WORKSPACE }), 4000),
        (json!({ "name": "x" }), 4000),
    ] {
        assert_eq!(make(body).await.code(), (200, code));
    }
}

#[tokio::test]
async fn the_oldest_of_the_bots_that_were_made_goes_first_and_configured_ones_stay() {
    let Config { keep, .. } = config();
    let api = Api::start(Config { keep: Keep { bots: 2, ..keep }, ..config() }).await;
    let mut ids = vec![BOT.to_owned()];
    for _ in 0..3 {
        let body = json!({ "space_id": WORKSPACE, "name": "x" });
        ids.push(text(&api.post("/v1/bot/create", body).await.data()["bot_id"]));
    }
    let mut codes = Vec::new();
    for id in ids {
        codes.push(api.get(&format!("/v1/bots/{id}")).await.code().1);
    }
    assert_eq!(codes, [0, 4200, 0, 0]);
}

#[tokio::test]
async fn a_variable_is_one_users_with_one_bot() {
    let mut config = config();
    config.tokens.push(Token { account: "another".into(), ..Token::new("pat_other") });
    config.keep.variables = 2;
    let mut api = Api::start(config).await;
    let set = async |api: &Api, data: Value| {
        api.call("PUT", "/v1/variables", json!({ "bot_id": BOT, "connector_uid": "u1", "data": data })).await.code()
    };
    let get = async |api: &Api, query: &str| {
        let found = api.get(&format!("/v1/variables?{query}")).await;
        let items = found.data()["items"].take();
        let items = items.as_array().expect("a list").iter();
        items.map(|item| format!("{}={}", text(&item["keyword"]), text(&item["value"]))).collect::<Vec<_>>()
    };
    let own = format!("bot_id={BOT}&connector_uid=u1");
    assert_eq!(set(&api, json!([{ "keyword": "a", "value": "1" }, { "keyword": "b", "value": "" }])).await, (200, 0));
    assert_eq!(set(&api, json!([{ "keyword": "a", "value": "2" }])).await, (200, 0));
    assert_eq!(
        set(&api, json!([{ "keyword": "a", "value": "3" }, { "keyword": "" }])).await,
        (200, 4000),
        "all or none"
    );
    assert_eq!(get(&api, &own).await, ["a=2", "b="]);
    assert_eq!(get(&api, &format!("{own}&keywords=b,c")).await, ["b="]);
    for other in [
        format!("bot_id={BOT}&connector_uid=u2"),
        format!("bot_id={TALKATIVE_BOT}&connector_uid=u1"),
        format!("app_id={BOT}&connector_uid=u1"),
        format!("{own}&connector_id=1"),
    ] {
        assert_eq!(get(&api, &other).await, [""; 0], "{other}");
    }
    assert_eq!(set(&api, json!([{ "keyword": "c", "value": "1" }])).await, (200, 0));
    assert_eq!(get(&api, &own).await, ["b=", "c=1"], "the oldest goes");
    for wrong in ["connector_uid=u1", "bot_id=1", "bot_id=1&app_id=1&connector_uid=u1"] {
        assert_eq!(api.get(&format!("/v1/variables?{wrong}")).await.code(), (200, 4000), "{wrong}");
    }
    api.token = "pat_other".into();
    assert_eq!(get(&api, &own).await, [""; 0], "of another account");
}

#[tokio::test]
async fn a_message_is_liked_by_who_sees_it() {
    let api = Api::start(config()).await;
    let id = text(&api.post("/v1/conversation/create", json!({})).await.data()["id"]);
    let body = json!({ "role": "user", "content": "hi", "content_type": "text" });
    let message = api.post(&format!("/v1/conversation/message/create?conversation_id={id}"), body).await.data();
    let path = format!("/v1/conversations/{id}/messages/{}/feedback", text(&message["id"]));
    assert_eq!(api.post(&path, json!({ "feedback_type": "like", "reason_types": ["fast"] })).await.code(), (200, 0));
    assert_eq!(api.post(&path, json!({ "feedback_type": "love" })).await.code(), (200, 4000));
    assert_eq!(api.call("DELETE", &path, Value::Null).await.code(), (200, 0));
    for (path, code) in [
        (format!("/v1/conversations/{id}/messages/1/feedback"), 4005),
        ("/v1/conversations/1/messages/1/feedback".to_owned(), 4002),
    ] {
        assert_eq!(api.post(&path, json!({ "feedback_type": "like" })).await.code(), (200, code));
    }
}

#[tokio::test]
async fn workflows_are_listed_by_page() {
    let api = Api::start(config()).await;
    let list = async |query: &str| api.get(&format!("/v1/workflows?workspace_id={WORKSPACE}{query}")).await;
    let found = list("").await.data();
    assert_eq!((&found["items"][0]["workflow_id"], &found["has_more"]), (&json!(WORKFLOW), &json!(false)));
    assert_eq!(list("&page_num=2").await.data()["items"], json!([]));
    assert_eq!(list("&publish_status=unpublished_draft").await.data()["items"], json!([]));
    for wrong in ["&publish_status=x", "&page_size=101"] {
        assert_eq!(list(wrong).await.code(), (200, 4000), "{wrong}");
    }
    assert_eq!(api.get("/v1/workflows").await.code(), (200, 4000));
    let one = api.get(&format!("/v1/workflows/{WORKFLOW}")).await.data();
    assert_eq!(one["workflow_detail"], found["items"][0]);
    assert_eq!(api.get("/v1/workflows/1").await.code(), (200, 4200));
}
