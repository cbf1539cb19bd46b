//! Workflows over TCP: runs, streams, interrupts, chats, histories.

use std::time::Duration;

use crate::support::{Api, config, jump, text, with};
use coze_sim::{Config, Limits, Pace, WORKFLOW, Workflow};
use serde_json::{Value, json};

fn input(input: &str) -> Value {
    json!({ "workflow_id": WORKFLOW, "parameters": { "input": input } })
}

#[tokio::test]
async fn a_run_answers_with_json_as_text() {
    let api = Api::start(config()).await;
    let answer = api.post("/v1/workflow/run", input("hi")).await;
    assert_eq!(answer.data(), json!("{\"output\":\"hi\"}"));
    let json = answer.json();
    assert!(json["debug_url"].as_str().is_some_and(|url| url.contains(&text(&json["execute_id"]))));
    assert_eq!(json["usage"], json!({ "input_count": 2, "output_count": 2, "token_count": 4 }));
    for (parameters, output) in [
        (json!("{\"input\":\"hi\"}"), "hi"),
        (json!({ "a": 1 }), "{\"a\":1}"),
        (json!({ "input": [1] }), "[1]"),
        (json!(""), ""),
        (Value::Null, ""),
    ] {
        let answer = api.post("/v1/workflow/run", with(input(""), "parameters", parameters)).await;
        assert_eq!(answer.data(), json!(json!({ "output": output }).to_string()));
    }
}

#[tokio::test]
async fn what_cannot_be_run_is_refused() {
    let mut config = config();
    config.workflows.push(Workflow { id: "draft".into(), name: "Draft".into(), published: false });
    let api = Api::start(config).await;
    for (body, code) in [
        (json!({}), 4000),
        (json!({ "workflow_id": "1" }), 4200),
        (json!({ "workflow_id": "draft" }), 4200),
        (with(input(""), "parameters", json!("{")), 4000),
        (with(input(""), "parameters", json!([1])), 4000),
    ] {
        for path in ["/v1/workflow/run", "/v1/workflow/stream_run", "/v1/workflows/chat"] {
            assert_eq!(api.post(path, body.clone()).await.code(), (200, code), "{path} {body}");
        }
    }
    assert_eq!(api.post("/v1/workflow/run", with(input("hi"), "is_async", json!(true))).await.code(), (200, 6003));
    assert_eq!(api.get(&format!("/v1/workflows/{WORKFLOW}/run_histories/1")).await.code(), (200, 4314));
}

#[tokio::test]
async fn a_stream_is_numbered_from_0_and_ends_with_done() {
    let api = Api::start(Config { pace: Pace { ping: true, ..config().pace }, ..config() }).await;
    let answer = api.post("/v1/workflow/stream_run", input("hello workflow")).await;
    assert!(answer.text.starts_with("id:0\nevent:PING\ndata:{\"content\":\"{}\"}\n\nid:1\nevent:Message\n"));
    let ids: Vec<_> = answer.text.lines().filter_map(|line| line.strip_prefix("id:")?.parse::<usize>().ok()).collect();
    assert_eq!(ids, (0..ids.len()).collect::<Vec<_>>());
    let mut events = answer.events();
    let (done, result) = (events.pop().expect("done"), events.pop().expect("the result"));
    assert!(done.0 == "Done" && done.1["debug_url"].is_string());
    assert_eq!(result.1["content"], "{\"output\":\"hello workflow\"}");
    assert_eq!((&result.1["node_title"], &result.1["node_is_finish"]), (&json!("End"), &json!(true)));
    let told: String = events[1..].iter().map(|(_, data)| text(&data["content"])).collect();
    assert_eq!(told, "hello workflow");
    for (at, (_, data)) in events[1..].iter().enumerate() {
        assert_eq!(data["node_seq_id"], at.to_string());
        assert_eq!(data["node_is_finish"], at + 2 == events.len());
    }
}

#[tokio::test]
async fn an_interrupted_stream_is_resumed_once() {
    let api = Api::start(config()).await;
    let events = api.post("/v1/workflow/stream_run", input("ask: Which city?")).await.events();
    let (name, interrupt) = events.last().expect("an interrupt");
    assert_eq!((name.as_str(), &interrupt["node_title"]), ("Interrupt", &json!("Question")));
    let data = &interrupt["interrupt_data"];
    assert_eq!(data["type"], 2);
    assert!(text(&data["data"]).contains("Which city?"));
    let resume = |event: &Value, answer: &str| json!({ "workflow_id": WORKFLOW, "event_id": event, "resume_data": answer, "interrupt_type": 2 });
    let path = "/v1/workflow/stream_resume";
    assert_eq!(api.post(path, resume(&json!("x"), "Paris")).await.code(), (200, 4314));
    assert_eq!(
        api.post(path, with(resume(&data["event_id"], "x"), "interrupt_type", json!(5))).await.code(),
        (200, 4000)
    );
    let answer = api.post(path, resume(&data["event_id"], "Paris")).await;
    assert!(answer.text.starts_with("id:0\nevent:Message\n") && answer.text.contains("Paris"));
    assert_eq!(api.post(path, resume(&data["event_id"], "Rome")).await.code(), (200, 4315));

    let mut event = api.post("/v1/workflow/stream_run", input("ask:x")).await.events().pop().expect("an interrupt").1;
    for name in ["Interrupt", "Interrupt", "Error"] {
        let id = event["interrupt_data"]["event_id"].take();
        let (last, data) = api.post(path, resume(&id, "")).await.events().pop().expect("an event");
        assert_eq!(last, name, "the third empty answer fails the run");
        event = data;
    }
    assert_eq!(event["error_code"], 720_701_013);
}

#[tokio::test]
async fn an_interrupted_run_is_resumed_without_a_stream() {
    let api = Api::start(config()).await;
    let answer = api.post("/v1/workflow/run", input("ask:Which city?")).await.json();
    let interrupt = &answer["interrupt_data"];
    assert_eq!((&answer["data"], &interrupt["required_parameters"]["answer"]["type"]), (&json!(""), &json!("string")));
    let history = format!("/v1/workflows/{WORKFLOW}/run_histories/{}", text(&answer["execute_id"]));
    assert_eq!(api.get(&history).await.data()[0]["execute_status"], "Running");
    let body = json!({
        "workflow_id": WORKFLOW, "event_id": interrupt["event_id"], "resume_data": "Paris", "interrupt_type": 2,
    });
    let answer = api.post("/v1/workflows/resume", body).await;
    assert_eq!(answer.data(), json!("{\"output\":\"Paris\"}"));
    assert_eq!(api.get(&history).await.data()[0]["execute_status"], "Success");
}

#[tokio::test]
async fn an_asynchronous_run_is_asked_about() {
    let limits = Limits { level: "team".into(), ..config().limits };
    let pace = Pace { polls: 1, work: Duration::from_secs(20), ..Pace::default() };
    let api = Api::start(Config { limits, pace, ..config() }).await;
    let start = async || {
        let body = json!({ "workflow_id": WORKFLOW, "parameters": { "input": "hi" }, "is_async": true, "bot_id": "7" });
        let answer = api.post("/v1/workflow/run", body).await.json();
        assert_eq!((&answer["data"], answer["debug_url"].is_string()), (&Value::Null, true));
        format!("/v1/workflows/{WORKFLOW}/run_histories/{}", text(&answer["execute_id"]))
    };
    let history = start().await;
    let item = api.get(&history).await.data()[0].take();
    assert_eq!((&item["execute_status"], &item["output"]), (&json!("Running"), &json!("")));
    let item = api.get(&history).await.data()[0].take();
    assert_eq!((&item["execute_status"], &item["output"]), (&json!("Success"), &json!("{\"output\":\"hi\"}")));
    assert_eq!((&item["error_code"], &item["run_mode"], &item["bot_id"]), (&json!(""), &json!(2), &json!("7")));
    assert!(item["logid"].is_string() && item["create_time"].is_u64() && item["is_output_trimmed"] == false);

    let history = start().await;
    jump(Duration::from_secs(20)).await;
    assert_eq!(api.get(&history).await.data()[0]["execute_status"], "Success");
}

#[tokio::test]
async fn a_chat_with_a_workflow_is_a_chat_stream() {
    let api = Api::start(config()).await;
    let conversation = text(&api.post("/v1/conversation/create", json!({})).await.data()["id"]);
    let message = json!({ "role": "user", "content": "hello", "content_type": "text" });
    let body = json!({
        "workflow_id": WORKFLOW, "additional_messages": [message], "parameters": {}, "conversation_id": conversation,
    });
    let events = api.post("/v1/workflows/chat", body.clone()).await.events();
    assert_eq!(events[0].0, "conversation.chat.created");
    assert_eq!((&events[0].1["conversation_id"], events[0].1.get("bot_id")), (&json!(conversation), None));
    let (last, done) = events.last().expect("done");
    assert!(last == "done" && done["debug_url"].is_string());
    let list =
        api.post(&format!("/v1/conversation/message/list?conversation_id={conversation}"), json!({})).await.data();
    assert_eq!(list.as_array().map(Vec::len), Some(3), "the question, the answer and the end of the answer");
    assert_eq!(api.post("/v1/workflows/chat", with(body, "conversation_id", json!("1"))).await.code(), (200, 4002));
}
