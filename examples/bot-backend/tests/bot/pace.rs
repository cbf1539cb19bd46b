//! How fast the platform is called, and one chat at a time in a conversation.

use std::time::Duration;

use coze_sim::{Config, FaultKind, Limits};
use coze_tests::Answer;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};

use crate::support::{BOT, POLLING, World, eventually, message};

/// Messages of one user in one conversation.
fn conversation(bot: &str, messages: usize) -> Vec<Value> {
    let first = message(bot, "");
    let next = |number: usize| {
        let mut next = first.clone();
        next["message_id"] = json!(format!("{}-{number}", first["message_id"].as_str().unwrap_or_default()));
        next["content"] = json!(format!("number {number}"));
        next
    };
    (0..messages).map(next).collect()
}

fn send(world: &World, all: &mut JoinSet<Answer>, message: &Value) {
    let (http, request) = (world.http.clone(), world.signed(message));
    all.spawn(async move { http.send(request).await });
}

async fn is_stored(world: &World, message: &Value) -> bool {
    let [bot, id] = ["bot_id", "message_id"].map(|name| message[name].as_str().unwrap_or_default());
    world.bot.store().message(bot, id).await.expect("a database").is_some()
}

#[tokio::test]
async fn ten_messages_at_once_in_a_conversation_are_answered_in_their_order() {
    for bot in [BOT, POLLING] {
        let pace = coze_sim::Pace { polls: 0, work: Duration::from_millis(50), ..Default::default() };
        let world = World::with(Config { pace, ..Config::default() }, |_| {}).await;
        // The first one takes until all have come.
        world.fault("/v3/chat", FaultKind::DelayEvents { delay: Duration::from_millis(100) });
        let messages = conversation(bot, 10);
        let mut all = JoinSet::new();
        for message in &messages {
            send(&world, &mut all, message);
            eventually("it has come", || is_stored(&world, message)).await;
        }
        let answers = all.join_all().await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        assert_eq!((world.chats("4016"), world.sim.counts().requests("POST /v3/chat")), (0, 10));
        let requests = world.sim.requests();
        let asked: Vec<_> = requests.iter().filter(|request| request.path == "/v3/chat").collect();
        for (number, request) in asked.iter().enumerate() {
            let body: Value = serde_json::from_str(&request.body).expect("JSON");
            assert_eq!(body["additional_messages"][0]["content"], format!("number {number}"), "{bot}");
        }
        // The first one opens the conversation in which the others go on.
        assert!(asked[0].query.is_empty() && asked[1..].iter().all(|request| request.query == asked[1].query));
        assert!(asked[1].query.starts_with("conversation_id="));
    }
}

#[tokio::test]
async fn more_than_so_many_do_not_wait_and_whoever_goes_away_does_not() {
    let pace = coze_sim::Pace { polls: 1000, work: Duration::from_secs(60), ..Default::default() };
    let world = World::with(Config { pace, ..Config::default() }, |config| {
        config.pace.conversation_waiting = 1.try_into().expect("not zero");
    })
    .await;
    let messages = conversation(POLLING, 4);
    let (mut first, mut second) = (JoinSet::new(), JoinSet::new());
    let (http, request) = (coze_tests::Http::new(), world.signed(&messages[0]));
    first.spawn(async move { http.send(request).await });
    eventually("it runs", async || world.sim.counts().running_chats == 1).await;
    // With the client goes its connection.
    let http = coze_tests::Http::new();
    let request = world.signed(&messages[1]);
    second.spawn(async move { http.send(request).await });
    eventually("it has come", || is_stored(&world, &messages[1])).await;

    let refused = world.post(&messages[2]).await;
    assert_eq!((refused.status.as_u16(), refused.json()["code"].as_i64()), (409, Some(4016)), "{refused:?}");
    second.shutdown().await;
    eventually("it is stored", async || world.stored(&messages[1]).await.status == "cancelled").await;
    send(&world, &mut second, &messages[3]);
    eventually("it has come", || is_stored(&world, &messages[3])).await;
    assert_eq!(world.sim.counts().requests("POST /v3/chat"), 1, "one runs");

    // The first one goes away, is cancelled on the platform, and only then the last one begins.
    first.shutdown().await;
    eventually("cancelled", async || world.sim.counts().requests("POST /v3/chat/cancel") == 1).await;
    eventually("the next one runs", async || world.sim.counts().requests("POST /v3/chat") == 2).await;
    assert_eq!((world.chats("4016"), world.chats("0")), (0, 2));
    assert!(timeout(Duration::from_millis(1), second.join_next()).await.is_err(), "it runs");
}

#[tokio::test]
async fn a_chat_that_another_node_runs_in_the_conversation_is_waited_for() {
    let world = World::start().await;
    let running = || FaultKind::Code { code: 4016, msg: "busy".into(), status: 200, headers: Default::default() };
    for bot in [BOT, POLLING] {
        world.sim.clear_counts();
        world.fault("/v3/chat", running());
        assert_eq!(world.send(bot, "hello").await.status, 200);
        assert_eq!((world.chats("4016"), world.chats("0")), (1, 1));
    }
    let late = World::with(Config::default(), |config| config.http.request_timeout = Duration::from_millis(500)).await;
    late.fault("/v3/chat", running());
    assert_eq!(late.send(BOT, "hello").await.status, 504);
    assert_eq!((late.chats("4016"), late.chats("0")), (1, 0));
}

/// So many messages at once, each in a conversation of its own: how many were answered.
async fn many(world: &World, messages: usize) -> usize {
    let mut all = JoinSet::new();
    (0..messages).for_each(|_| send(world, &mut all, &message(BOT, "hello")));
    all.join_all().await.iter().filter(|answer| answer.status == 200).count()
}

#[tokio::test]
async fn what_is_paced_is_not_refused_where_what_is_not_is() {
    for is_paced in [true, false] {
        let limits = Limits { chat_qps: 50, ..Limits::default() };
        let world = World::with(Config { limits, ..Config::default() }, |config| {
            config.limits.app_qps = 10_000.try_into().expect("not zero");
            config.limits.bot_concurrency = 200.try_into().expect("not zero");
            config.pace.chat_per_second = is_paced.then(|| 50.try_into().expect("not zero"));
        })
        .await;
        let answered = many(&world, 100).await;
        let refused = world.chats("4009");
        match is_paced {
            true => assert_eq!((answered, refused), (100, 0)),
            // It is sent again, as often as the budget allows.
            false => assert!(answered < 100 && refused > 20, "{answered} answered, {refused} refused"),
        }
    }
}

#[tokio::test]
async fn the_platform_is_asked_for_its_limits_and_they_are_kept() {
    let limits = Limits { chat_qps: 80, level: "team".into(), ..Limits::default() };
    let world = World::with(Config { limits, ..Config::default() }, |config| {
        config.pace.refresh = Some(Duration::from_millis(200));
        config.limits.app_qps = 10_000.try_into().expect("not zero");
        config.limits.bot_concurrency = 200.try_into().expect("not zero");
        config.limits.nodes = 2.try_into().expect("not zero");
        config.pace.model_per_minute = Some(60_000.try_into().expect("not zero"));
    })
    .await;
    let asked = async || world.sim.counts().outcomes("GET /v1/commerce/benefit/benefits/get", "0");
    eventually("asked again", async || asked().await >= 2).await;
    assert_eq!((many(&world, 100).await, world.chats("4009")), (100, 0));
    let metrics = world.http.get(&format!("{}/metrics", world.bot.url())).await;
    let of = |level| {
        let name = format!("coze_ratelimit_pace_per_second{{level=\"{level}\"}} ");
        let line = metrics.text().lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok());
        line.map(f64::round)
    };
    // Half, and of that nine tenths, of what it says, of what its plan has, and of what the configuration insists on.
    assert_eq!([of("chat"), of("workflow"), of("model")], [Some(36.0), Some(90.0), Some(450.0)], "{}", metrics.text());
    assert!(timeout(Duration::from_secs(5), world.bot.stop()).await.expect("in time"));
}

#[tokio::test]
async fn a_platform_that_does_not_tell_its_limits_is_called_all_the_same() {
    let world = World::with(Config::default(), |config| {
        config.pace.refresh = Some(Duration::from_millis(50));
    })
    .await;
    let refusal = FaultKind::Code { code: 4101, msg: "no".into(), status: 200, headers: Default::default() };
    let fault = coze_sim::Fault::new("/v1/commerce/benefit/benefits/get", refusal);
    world.sim.fault(coze_sim::Fault { times: 3, ..fault }).expect("possible");
    eventually("asked", async || world.sim.counts().requests("GET /v1/commerce/benefit/benefits/get") > 3).await;
    assert_eq!(many(&world, 3).await, 3);
}

#[tokio::test]
async fn what_a_chat_says_of_its_model_slows_down_what_runs_models() {
    for bot in [BOT, POLLING] {
        let world = World::with(Config::default(), |config| config.pace.plan = "team".parse().ok()).await;
        let route = if bot == BOT { "/v3/chat" } else { "/v3/chat/retrieve" };
        let failed = FaultKind::Failed { code: 702_112_103, msg: "too many".into(), bare: false, after: 2 };
        world.fault(route, failed);
        assert_eq!(world.send(bot, "hello").await.status, 429);
        let metrics = world.http.get(&format!("{}/metrics", world.bot.url())).await;
        // Of seventy-five a second.
        let line = "coze_ratelimit_pace_per_second{level=\"model\"} 37.";
        assert!(metrics.text().contains(line), "{bot}: {}", metrics.text());
    }
}

#[tokio::test]
async fn a_look_that_is_refused_does_not_slow_down_chats() {
    let world = World::with(Config::default(), |config| {
        config.pace.plan = "team".parse().ok();
        config.retry.tries = 0;
    })
    .await;
    let headers = [("Retry-After".to_owned(), "30".to_owned())].into();
    world.fault("/v3/chat/retrieve", FaultKind::Status { status: 429, body: None, headers });
    assert_eq!(world.send(POLLING, "hello").await.status, 429);
    let metrics = world.http.get(&format!("{}/metrics", world.bot.url())).await;
    let line = "coze_ratelimit_pace_per_second{level=\"chat\"} 179.9";
    assert!(metrics.text().contains(line), "{}", metrics.text());
}
