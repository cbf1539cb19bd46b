//! One seed, one platform; and its beginning and end.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coze_sim::{BOT, CLIENT_ID, Config, Sim, TALKATIVE_BOT, WORKFLOW};
use serde_json::json;
use tokio::{net::TcpListener, sync::oneshot};

use crate::support::{Api, config, question, streamed, with};

fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_733_844_447)
}

/// Everything a platform says in one session, log ids included.
async fn session(seed: u64) -> String {
    let api = Api::start(Config { seed, clock, ..config() }).await;
    let mut all = String::new();
    for (path, body) in [
        ("/v3/chat", with(streamed("hello"), "bot_id", json!(TALKATIVE_BOT))),
        ("/v3/chat", streamed("tool:x")),
        ("/v3/chat", question("hello")),
        ("/v1/conversation/create", json!({ "bot_id": BOT })),
        ("/v1/workflow/stream_run", json!({ "workflow_id": WORKFLOW, "parameters": { "input": "hello" } })),
        ("/api/permission/oauth2/device/code", json!({ "client_id": CLIENT_ID })),
        ("/v3/chat", json!({})),
    ] {
        let answer = api.post(path, body).await;
        all += &format!("{}\n{}\n", answer.header("x-tt-logid"), answer.text);
    }
    all.replace(&api.sim.addr().to_string(), "HOST")
}

#[tokio::test]
async fn one_seed_and_one_clock_give_the_same_bytes() {
    let first = session(7).await;
    assert!(first.contains("2024121015272"), "the clock is in the log ids");
    assert_eq!(first, session(7).await);
    assert_ne!(first, session(8).await);
}

#[tokio::test]
async fn a_platform_stops_when_told_and_when_dropped() {
    let sim = Sim::start(Config::default()).await.expect("a free port");
    let addr = sim.addr();
    assert_eq!(sim.url(), format!("http://{addr}"));
    assert!(Sim::start(Config { listen: addr, ..Config::default() }).await.is_err(), "the port is taken");
    sim.shutdown().await;
    let again = Sim::start(Config { listen: addr, ..Config::default() }).await.expect("the port is free again");
    drop(again);
    while TcpListener::bind(addr).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_listener_is_served_until_the_shutdown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let served = tokio::spawn(coze_sim::serve(Config::default(), listener, shutdown));
    assert!(!served.is_finished());
    drop(stop);
    served.await.expect("no panic").expect("an address");
}
