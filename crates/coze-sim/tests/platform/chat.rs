//! Chats over TCP, with and without a stream.

use std::time::Duration;

use crate::support::{Api, config, jump, question, streamed, text, with};
use coze_sim::{BOT, Config, DRAFT_BOT, Limits, Pace, TALKATIVE_BOT, Token};
use serde_json::{Value, json};

#[tokio::test]
async fn a_chat_is_in_progress_until_it_was_asked_about_often_enough() {
    let api = Api::start(config()).await;
    let answer = api.post("/v3/chat?conversation_id=", question("hello")).await;
    let chat = answer.data();
    assert_eq!(chat["status"], "in_progress");
    assert_eq!(chat["bot_id"], BOT);
    assert_eq!(chat["last_error"], json!({ "code": 0, "msg": "" }));
    assert_eq!(chat["usage"], json!({ "token_count": 0, "output_count": 0, "input_count": 0 }));
    assert!(chat["created_at"].is_u64() && chat["completed_at"].is_null());
    assert_eq!(chat["inserted_additional_messages"].as_array().map(Vec::len), Some(1));
    let logid = answer.header("x-tt-logid");
    assert!(logid.len() == 34 && answer.json()["detail"]["logid"] == logid);

    let ids = (text(&chat["conversation_id"]), text(&chat["id"]));
    assert!(ids.0.parse::<i64>().is_ok() && ids.1.parse::<i64>().is_ok(), "64-bit numbers as text");
    let query = format!("conversation_id={}&chat_id={}", ids.0, ids.1);
    assert_eq!(api.retrieve(&ids).await.data()["status"], "in_progress");
    assert_eq!(api.get(&format!("/v3/chat/message/list?{query}")).await.data(), json!([]));
    let chat = api.post(&format!("/v3/chat/retrieve?{query}"), Value::Null).await.data();
    assert_eq!(chat["status"], "completed");
    assert_eq!(chat["usage"], json!({ "token_count": 20, "output_count": 15, "input_count": 5 }));
    assert!(chat["completed_at"].is_u64());

    let messages = api.get(&format!("/v3/chat/message/list?{query}")).await.data();
    let kinds: Vec<_> = messages.as_array().expect("a list").iter().map(|message| &message["type"]).collect();
    assert_eq!(kinds, ["answer", "verbose"]);
    let answer = &messages[0];
    assert_eq!(answer["content"], "You said: hello");
    assert_eq!((&answer["role"], &answer["content_type"]), (&json!("assistant"), &json!("text")));
    assert_eq!((&answer["chat_id"], &answer["conversation_id"]), (&json!(ids.1), &json!(ids.0)));
    assert!(answer["created_at"].is_u64() && answer["updated_at"].is_string());
}

#[tokio::test]
async fn a_chat_is_also_done_after_its_time() {
    let pace = Pace { polls: u32::MAX, work: Duration::from_secs(60), ..Pace::default() };
    let api = Api::start(Config { pace, ..config() }).await;
    let chat = api.chat("hello").await;
    assert_eq!(api.retrieve(&chat).await.data()["status"], "in_progress");
    jump(Duration::from_secs(60)).await;
    assert_eq!(api.retrieve(&chat).await.data()["status"], "completed");
}

#[tokio::test]
async fn a_stream_is_written_as_the_platform_writes_it() {
    let api = Api::start(config()).await;
    let answer = api.post("/v3/chat", streamed("hello 你好")).await;
    assert!(answer.text.starts_with("event:conversation.chat.created\ndata:{"), "{}", answer.text);
    assert!(answer.text.ends_with("\n\nevent:done\ndata:\"[DONE]\"\n\n"), "{}", answer.text);
    assert!(!answer.header("x-tt-logid").is_empty());
    let events = answer.events();
    assert_eq!(events[0].1["status"], "created");
    assert_eq!(
        (events[1].0.as_str(), &events[1].1["status"]),
        ("conversation.chat.in_progress", &json!("in_progress"))
    );
    let deltas: Vec<_> = events.iter().filter(|(name, _)| name == "conversation.message.delta").collect();
    assert!(deltas.len() > 1);
    let told: String = deltas.iter().map(|(_, delta)| text(&delta["content"])).collect();
    assert_eq!(told, "You said: hello 你好");
    let rest: Vec<_> = events[2 + deltas.len()..].iter().map(|(name, data)| (name.as_str(), data)).collect();
    let [answer, verbose, completed, done] = rest[..] else { panic!("{rest:?}") };
    assert_eq!((answer.0, &answer.1["type"]), ("conversation.message.completed", &json!("answer")));
    assert_eq!((&answer.1["content"], &answer.1["id"]), (&json!(told), &deltas[0].1["id"]));
    assert_eq!((verbose.0, &verbose.1["type"]), ("conversation.message.completed", &json!("verbose")));
    let verbose: Value = serde_json::from_str(&text(&verbose.1["content"])).expect("json");
    assert_eq!(verbose["msg_type"], "generate_answer_finish");
    assert_eq!((completed.0, &completed.1["status"]), ("conversation.chat.completed", &json!("completed")));
    assert_eq!(completed.1["usage"]["output_count"], 18);
    assert_eq!(done, ("done", &json!("[DONE]")));

    let ids = (text(&completed.1["conversation_id"]), text(&completed.1["id"]));
    assert_eq!(api.retrieve(&ids).await.data()["status"], "completed");
}

#[tokio::test]
async fn a_stream_may_have_spaces_and_follow_ups() {
    let pace = Pace { space: true, chunk_chars: 1, ..Pace::default() };
    let api = Api::start(Config { pace, ..config() }).await;
    let answer = api.post("/v3/chat", with(streamed("tea"), "bot_id", json!(TALKATIVE_BOT))).await;
    assert!(answer.text.starts_with("event: conversation.chat.created\ndata: {"));
    let follow_ups = answer.events().into_iter().filter(|(_, data)| data["type"] == "follow_up").count();
    assert_eq!(follow_ups, 2);
}

#[tokio::test]
async fn a_conversation_remembers_and_holds_one_chat_at_a_time() {
    let api = Api::start(config()).await;
    let first = api.chat("one").await;
    let path = format!("/v3/chat?conversation_id={}", first.0);
    assert_eq!(api.post(&path, streamed("two")).await.code(), (200, 4016));
    api.retrieve(&first).await;
    api.retrieve(&first).await;
    // The stream has ended for the platform before its reader knows.
    for content in ["two", "three"] {
        assert_eq!(api.post(&path, streamed(content)).await.names().last().map(String::as_str), Some("done"));
    }
    // Without messages the last one of the conversation is the question.
    let answer = api.post(&path, json!({ "bot_id": BOT, "user_id": "u1", "stream": true })).await;
    assert!(answer.text.contains("You said: three"), "{}", answer.text);
    assert_eq!(api.sim.counts().max_running_chats, 1);

    let limits = Limits { one_chat_per_conversation: false, ..config().limits };
    let api = Api::start(Config { limits, ..config() }).await;
    let first = api.chat("one").await;
    let second = api.post(&format!("/v3/chat?conversation_id={}", first.0), question("two")).await;
    assert_eq!(second.code(), (200, 0));
    assert_eq!(api.sim.counts().max_running_chats_by_bot[BOT], 2);
    assert_eq!(api.sim.counts().running_chats, 2);
}

#[tokio::test]
async fn a_bot_asks_for_a_tool_and_goes_on_with_its_output() {
    let api = Api::start(config()).await;
    let events = api.post("/v3/chat", streamed("tool: {\"city\":\"Beijing\"}")).await.events();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "conversation.chat.created",
        "conversation.chat.in_progress",
        "conversation.message.completed",
        "conversation.chat.requires_action",
        "done",
    ];
    assert_eq!(names, expected);
    assert_eq!(events[2].1["type"], "function_call");
    let chat = &events[3].1;
    let action = &chat["required_action"];
    assert_eq!((&chat["status"], &action["type"]), (&json!("requires_action"), &json!("submit_tool_outputs")));
    let call = &action["submit_tool_outputs"]["tool_calls"][0];
    assert_eq!(call["type"], "function");
    assert_eq!(call["function"], json!({ "name": "sim_tool", "arguments": "{\"city\":\"Beijing\"}" }));

    let ids = (text(&chat["conversation_id"]), text(&chat["id"]));
    assert_eq!(api.retrieve(&ids).await.data()["required_action"], *action);
    let path = format!("/v3/chat/submit_tool_outputs?conversation_id={}&chat_id={}", ids.0, ids.1);
    let outputs = |id: &Value| json!({ "tool_outputs": [{ "tool_call_id": id, "output": "rain" }], "stream": true });
    assert_eq!(api.post(&path, outputs(&json!("other"))).await.code(), (200, 4000));
    assert_eq!(api.post(&path, json!({ "tool_outputs": [] })).await.code(), (200, 4000));
    assert_eq!(api.post(&path, json!({ "tool_outputs": ["x"] })).await.code(), (200, 4000));
    let answer = api.post(&path, outputs(&call["id"])).await;
    assert_eq!(answer.names()[0], "conversation.chat.in_progress");
    assert!(answer.text.contains("The tool said: rain"));
    assert_eq!(api.post(&path, outputs(&call["id"])).await.code(), (200, 4000), "it waits no more");
    let chat = api.retrieve(&ids).await.data();
    assert_eq!((&chat["status"], &chat["required_action"]), (&json!("completed"), &Value::Null));

    let unsaved = with(streamed("tool:"), "auto_save_history", json!(false));
    let chat = api.post("/v3/chat", unsaved).await.events()[0].1.take();
    let query = format!("conversation_id={}&chat_id={}", text(&chat["conversation_id"]), text(&chat["id"]));
    let answer = api.post(&format!("/v3/chat/submit_tool_outputs?{query}"), outputs(&json!("x"))).await;
    assert_eq!(answer.code(), (200, 5000));
    assert_eq!(api.get(&format!("/v3/chat/retrieve?{query}")).await.code(), (200, 4001));
}

#[tokio::test]
async fn a_tool_without_a_stream_is_polled_for() {
    let api = Api::start(config()).await;
    let ids = api.chat("tool:{}").await;
    api.retrieve(&ids).await;
    let chat = api.retrieve(&ids).await.data();
    let id = &chat["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"];
    let path = format!("/v3/chat/submit_tool_outputs?conversation_id={}&chat_id={}", ids.0, ids.1);
    let body = json!({ "tool_outputs": [{ "tool_call_id": id, "output": "rain" }] });
    assert_eq!(api.post(&path, body).await.data()["status"], "in_progress");
    api.retrieve(&ids).await;
    assert_eq!(api.retrieve(&ids).await.data()["status"], "completed");
    let list = api.get(&format!("/v3/chat/message/list?conversation_id={}&chat_id={}", ids.0, ids.1)).await.data();
    let kinds: Vec<_> = list.as_array().expect("a list").iter().map(|message| text(&message["type"])).collect();
    assert_eq!(kinds, ["function_call", "tool_response", "answer", "verbose"]);
}

#[tokio::test]
async fn a_chat_is_cancelled_once() {
    let api = Api::start(config()).await;
    let ids = api.chat("hello").await;
    let body = json!({ "conversation_id": ids.0, "chat_id": ids.1 });
    assert_eq!(api.post("/v3/chat/cancel", body.clone()).await.data()["status"], "canceled");
    assert_eq!(api.post("/v3/chat/cancel", body).await.code(), (200, 4104));
    assert_eq!(api.retrieve(&ids).await.data()["status"], "canceled");
    let path = format!("/v3/chat?conversation_id={}", ids.0);
    assert_eq!(api.post(&path, question("again")).await.code(), (200, 0), "the conversation is free again");
}

#[tokio::test]
async fn wrong_parameters_are_refused_by_name() {
    let api = Api::start(config()).await;
    let q = || question("hello");
    let many = vec![json!({ "role": "user", "content": "x", "content_type": "text" }); 101];
    let pairs = |n: usize| (0..n).map(|i| (i.to_string(), json!("v"))).collect::<serde_json::Map<_, _>>();
    let message = |value: Value| with(q(), "additional_messages", json!([value]));
    for (body, code, named) in [
        (json!([]), 4000, "JSON object"),
        (json!({ "user_id": "u1" }), 4000, "bot_id"),
        (with(q(), "bot_id", json!(7)), 4000, "bot_id"),
        (with(q(), "user_id", json!(7)), 4000, "user_id"),
        (with(q(), "user_id", json!("")), 4000, "user_id"),
        (with(q(), "stream", json!("yes")), 4000, "stream"),
        (with(q(), "additional_messages", json!({})), 4000, "additional_messages"),
        (message(json!(1)), 4000, "additional_messages[0]"),
        (message(json!({ "content": "x" })), 4000, "role"),
        (message(json!({ "role": "system", "content": "x" })), 4000, "role"),
        (message(json!({ "role": "user", "content": "x" })), 4000, "content_type"),
        (message(json!({ "role": "user", "content": "x", "content_type": "card" })), 4000, "content_type"),
        (message(json!({ "role": "user", "content": "x", "content_type": "object_string" })), 4005, "content"),
        (with(q(), "additional_messages", json!(many)), 4004, "additional_messages"),
        (with(q(), "meta_data", json!(pairs(17))), 4003, "meta_data"),
        (with(q(), "meta_data", json!({ "k": "" })), 4003, "meta_data"),
        (with(q(), "meta_data", json!({ "k": 1 })), 4000, "meta_data.k"),
        (with(q(), "bot_id", json!("1")), 4006, "bot"),
        (with(q(), "bot_id", json!(DRAFT_BOT)), 4015, "published"),
        (with(q(), "auto_save_history", json!(false)), 4007, "auto_save_history"),
    ] {
        let answer = api.post("/v3/chat", body.clone()).await;
        assert_eq!(answer.code(), (200, code), "{body}");
        assert!(text(&answer.json()["msg"]).contains(named), "{} does not name {named}", answer.text);
    }
    assert_eq!(api.post("/v3/chat", with(q(), "meta_data", json!(pairs(16)))).await.code(), (200, 0));
    let parts = json!([{ "type": "text", "text": "see" }, { "type": "image", "file_id": "1" }]).to_string();
    let parts = message(json!({ "role": "user", "content": parts, "content_type": "object_string" }));
    let answer = api.post("/v3/chat", with(parts, "stream", json!(true))).await;
    assert!(answer.text.contains("You said: see"));
}

#[tokio::test]
async fn what_is_not_there_is_refused_by_its_code() {
    let api = Api::start(config()).await;
    let (conversation, chat) = api.chat("hello").await;
    let other = api.chat("hello").await;
    for path in ["retrieve", "message/list"] {
        for (query, code) in [
            (format!("conversation_id={conversation}"), 4000),
            (format!("chat_id={chat}"), 4000),
            (format!("conversation_id={conversation}&chat_id=1"), 4001),
            (format!("conversation_id={}&chat_id={chat}", other.0), 4001),
            (format!("conversation_id=1&chat_id={chat}"), 4002),
        ] {
            assert_eq!(api.get(&format!("/v3/chat/{path}?{query}")).await.code(), (200, code), "{path} {query}");
        }
    }
    assert_eq!(api.post("/v3/chat?conversation_id=1", question("x")).await.code(), (200, 4002));
    assert_eq!(
        api.post("/v3/chat/cancel", json!({ "conversation_id": "1", "chat_id": "1" })).await.code(),
        (200, 4002)
    );
    assert_eq!(api.post("/v3/chat/cancel", json!({ "conversation_id": conversation })).await.code(), (200, 4000));
    for (method, path) in [("GET", "/v3/chat"), ("POST", "/v9"), ("GET", "/"), ("GET", "/v3/chat/message/list/")] {
        let answer = api.call(method, path, Value::Null).await;
        assert_eq!(answer.code(), (404, 4000), "{method} {path}");
        assert!(!answer.header("x-tt-logid").is_empty());
    }
}

#[tokio::test]
async fn a_bad_token_is_refused_in_two_ways() {
    let mut config = config();
    config.tokens.push(Token { permissions: Some(vec!["getChat".into()]), ..Token::new("pat_reader") });
    let mut api = Api::start(config).await;
    let ids = api.chat("hello").await;
    let cancel = json!({ "conversation_id": ids.0, "chat_id": ids.1 });
    for token in ["pat_wrong", "a b", ""] {
        api.token = token.into();
        assert_eq!(api.post("/v3/chat", question("x")).await.code(), (200, 4101));
        assert_eq!(
            api.post("/v3/chat", streamed("x")).await.code(),
            (200, 4101),
            "JSON although a stream was asked for"
        );
        assert_eq!(api.post("/v1/workflow/run", json!({})).await.code(), (200, 4101));
        assert_eq!(api.retrieve(&ids).await.code(), (401, 700_012_006));
        assert_eq!(api.post("/v3/chat/cancel", cancel.clone()).await.code(), (401, 700_012_006));
        assert_eq!(api.get("/v1/users/me").await.code(), (401, 700_012_006));
    }
    let headers = [("authorization", "pat_reader")];
    let answer = api.try_send("GET", "/v1/users/me", &headers, Default::default()).await.expect("an answer");
    assert_eq!(answer.code(), (401, 700_012_006), "the scheme is missing");
    api.token = "pat_reader".into();
    assert_eq!(api.retrieve(&ids).await.code(), (200, 0));
    let answer = api.post("/v3/chat", question("x")).await;
    assert_eq!(answer.code(), (200, 4101));
    assert!(answer.text.contains("permission chat"), "{}", answer.text);
}

#[tokio::test]
async fn a_limit_per_second_refuses_the_platforms_way_or_a_gateways() {
    let limits = Limits { chat_qps: 2, upload_qps: 1, ..config().limits };
    let api = Api::start(Config { limits: limits.clone(), ..config() }).await;
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(api.post("/v3/chat", question("x")).await.code());
    }
    assert_eq!(codes, [(200, 0), (200, 0), (200, 4009)]);
    assert_eq!(api.get("/v1/users/me").await.code(), (200, 0), "another group");
    jump(Duration::from_secs(1)).await;
    assert_eq!(api.post("/v3/chat", question("x")).await.code(), (200, 0));
    assert_eq!(api.sim.counts().max_per_second["chat"], 3);

    let api = Api::start(Config { limits: Limits { status: 429, code: 4020, calls: 3, ..limits }, ..config() }).await;
    let mut codes = Vec::new();
    for _ in 0..4 {
        codes.push(api.post("/v3/chat", question("x")).await.code());
    }
    assert_eq!(codes, [(200, 0), (200, 0), (429, 4020), (200, 4028)]);
}

#[tokio::test]
async fn a_reader_that_goes_away_does_not_leave_its_chat_running() {
    let pace = Pace { chunk_delay: Duration::from_secs(3600), ..Pace::default() };
    let api = Api::start(Config { pace, ..config() }).await;
    {
        let sent = api.post("/v3/chat", streamed("hello"));
        tokio::pin!(sent);
        while api.sim.counts().running_chats == 0 {
            tokio::select! {
                _ = &mut sent => panic!("the stream takes an hour"),
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(api.sim.counts().in_flight, 1);
    }
    while api.sim.counts().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(api.sim.counts().running_chats, 0);
}
