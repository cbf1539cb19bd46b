//! The platform's events.

use coze_sim::{Callback, Challenge, Tamper};
use serde_json::{Value, json};

use crate::support::{BOT, POLLING, VERIFY, World};

fn callback(world: &World) -> Callback {
    Callback {
        url: format!("{}/callback/{BOT}", world.bot.url()),
        verify_token: VERIFY.into(),
        attempts: 1,
        ..Callback::default()
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test]
async fn a_challenge_is_echoed_if_it_is_signed() {
    let world = World::start().await;
    let url = format!("{}/callback/{BOT}", world.bot.url());
    let challenge = Challenge { url, verify_token: VERIFY.into(), tamper: Tamper::None };
    assert!(world.sim.push_challenge(&challenge).await.expect("sent").accepted);
    let forged = Challenge { tamper: Tamper::Signature, ..challenge };
    assert_eq!(world.sim.push_challenge(&forged).await.expect("sent").status, 401);
}

#[tokio::test]
async fn an_event_is_stored_once_however_often_it_comes() {
    let world = World::start().await;
    let event = Callback { event_id: Some("e1".into()), ..callback(&world) };
    for _ in 0..3 {
        let pushed = world.sim.push_callback(&event).await.expect("sent");
        assert!(pushed.accepted, "{pushed:?}");
        assert_eq!(json(&pushed.body), json!({ "audit": { "audit_status": 2, "reason": "" } }));
    }
    assert_eq!(world.bot.store().events().await.expect("a database"), 1);
    let other = Callback { event_type: "benefit.usage".into(), ..callback(&world) };
    let pushed = world.sim.push_callback(&other).await.expect("sent");
    assert_eq!(json(&pushed.body), json!({ "code": 0, "msg": "" }));
    assert_eq!(world.bot.store().events().await.expect("a database"), 2);
}

#[tokio::test]
async fn what_is_not_signed_by_the_platform_now_is_refused() {
    let world = World::start().await;
    for tamper in [Tamper::Signature, Tamper::Unsigned, Tamper::Body, Tamper::Stale] {
        let pushed = world.sim.push_callback(&Callback { tamper, ..callback(&world) }).await.expect("sent");
        assert_eq!((pushed.status, json(&pushed.body)["code"].as_i64()), (401, Some(4100)), "{tamper:?}");
    }
    let first = world.sim.push_callback(&callback(&world)).await.expect("sent");
    let replay = Callback {
        event_id: Some(first.event_id),
        timestamp: Some(first.timestamp),
        nonce: Some(first.nonce),
        ..callback(&world)
    };
    let pushed = world.sim.push_callback(&replay).await.expect("sent");
    assert_eq!(
        (pushed.status, json(&pushed.body)["msg"].as_str()),
        (401, Some("a request with this id was accepted before"))
    );
    assert_eq!(world.bot.store().events().await.expect("a database"), 1);
}

#[tokio::test]
async fn the_path_names_the_bot_unless_there_is_only_one() {
    let world = World::start().await;
    for (path, status) in [("/callback", 401), ("/callback/nobody", 401), (&*format!("/callback/{POLLING}"), 200)] {
        let url = format!("{}{path}", world.bot.url());
        let pushed = world.sim.push_callback(&Callback { url, ..callback(&world) }).await.expect("sent");
        assert_eq!(pushed.status, status, "{path}");
    }
    let world = World::with(coze_sim::Config::default(), |config| config.bots[1].verify_tokens.clear()).await;
    let url = format!("{}/callback", world.bot.url());
    assert!(world.sim.push_callback(&Callback { url, ..callback(&world) }).await.expect("sent").accepted);
    let url = format!("{}/callback/{POLLING}", world.bot.url());
    assert_eq!(world.sim.push_callback(&Callback { url, ..callback(&world) }).await.expect("sent").status, 401);
}

#[tokio::test]
async fn old_events_make_room() {
    let world = World::start().await;
    for _ in 0..5 {
        assert!(world.sim.push_callback(&callback(&world)).await.expect("sent").accepted);
    }
    world.bot.store().prune_events(2).await.expect("a database");
    assert_eq!(world.bot.store().events().await.expect("a database"), 2);
}
