//! Starting, being asked how it is, and stopping; and the program itself.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bot_backend::Backend;
use coze_sim::{Config, FaultKind};
use coze_tests::Http;
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};

use crate::support::{BOT, World, config, eventually, message};

#[tokio::test]
async fn a_shutdown_finishes_what_was_accepted_and_accepts_nothing_more() {
    let world = World::start().await;
    world.fault("/v3/chat", FaultKind::DelayEvents { delay: Duration::from_millis(100) });
    let sent = message(BOT, "hello");
    let request = world.signed(&sent);
    let store = world.bot.store().clone();
    let address = world.bot.url().trim_start_matches("http://").to_owned();
    let World { sim, bot, folder, http } = world;
    let stop = async {
        eventually("it runs", async || sim.counts().running_chats == 1).await;
        let refused = eventually("nobody listens", async || TcpStream::connect(&address).await.is_err());
        tokio::join!(bot.stop(), refused).0
    };
    let (answer, drained) = tokio::join!(http.send(request), stop);
    assert_eq!((answer.status.as_u16(), drained), (200, true), "{}", answer.text());
    assert!(store.check().await.is_err(), "the storage is closed");

    let bot = Backend::start(&config(&sim, &folder), false).await.expect("started again");
    let world = World { sim, bot, folder, http };
    assert_eq!(world.stored(&sent).await.answer.content, "You said: hello");
}

#[tokio::test]
async fn a_shutdown_that_takes_too_long_tells_the_callers_who_still_wait() {
    let world = World::with(Config::default(), |config| config.http.drain_timeout = Duration::from_millis(300)).await;
    world.fault("/v3/chat", FaultKind::DelayEvents { delay: Duration::from_secs(20) });
    let sent = message(BOT, "hello");
    let request = world.signed(&sent);
    let World { sim, bot, folder, http } = world;
    let stop = async {
        eventually("it runs", async || sim.counts().running_chats == 1).await;
        timeout(Duration::from_secs(3), bot.stop()).await.expect("in time")
    };
    let (answer, drained) = tokio::join!(http.send(request), stop);
    assert_eq!((answer.status.as_u16(), drained), (503, false));
    assert_eq!(answer.json()["msg"], "the service is being stopped");
    assert_eq!(sim.counts().requests("POST /v3/chat/cancel"), 1);

    let bot = Backend::start(&config(&sim, &folder), false).await.expect("started again");
    let world = World { sim, bot, folder, http };
    assert_eq!(world.stored(&sent).await.reason, "stopping");
}

#[tokio::test]
async fn it_says_which_part_is_not_ready() {
    let world = World::start().await;
    let url = |path| format!("{}{path}", world.bot.url());
    assert_eq!(world.http.get(&url("/healthz")).await.text(), "ok\n");
    let ready = world.http.get(&url("/readyz")).await;
    let parts = json!({ "conversations": "ok", "sessions": "ok", "platform": "ok" });
    assert_eq!((ready.status.as_u16(), ready.json()), (200, json!({ "ready": true, "parts": parts })));

    world.bot.store().close().await;
    let refused = world.send(BOT, "hello").await;
    assert_eq!(
        (refused.status.as_u16(), refused.json()["msg"].as_str()),
        (503, Some("conversations cannot be stored now"))
    );
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(world.sim.counts().requests("POST /v3/chat"), 0, "what cannot be stored is not asked");

    let World { sim, bot, http, .. } = world;
    sim.shutdown().await;
    let parts = json!({
        "conversations": "conversations_unavailable",
        "sessions": "ok",
        "platform": "platform_unreachable",
    });
    let expected = json!({ "ready": false, "parts": parts });
    eventually("not ready", async || {
        let ready = http.get(&format!("{}/readyz", bot.url())).await;
        ready.status == 503 && ready.json() == expected
    })
    .await;
    assert_eq!(http.get(&format!("{}/healthz", bot.url())).await.status, 200, "alive all the same");
}

#[tokio::test]
async fn the_metrics_count_both_sides() {
    let world = World::start().await;
    world.send(BOT, "hello").await;
    let url = format!("{}/metrics", world.bot.url());
    eventually("counted", async || {
        let metrics = world.http.get(&url).await;
        let metrics = metrics.text();
        metrics.contains("coze_http_server_requests_total{route=\"/webhook/{bot_id}\",method=\"POST\",outcome=\"2xx\"}")
            && metrics.contains("coze_http_client_requests_total{route=\"/v3/chat\",method=\"POST\",outcome=\"2xx\"}")
            && metrics.contains("coze_http_server_duration_seconds_bucket")
    })
    .await;
}

#[tokio::test]
async fn an_address_that_is_taken_and_a_database_that_cannot_be_opened_are_named() {
    let world = World::start().await;
    let mut config = config(&world.sim, &world.folder);
    config.listen = world.bot.url().trim_start_matches("http://").parse().expect("an address");
    let error = Backend::start(&config, false).await.expect_err("taken").to_string();
    assert!(error.starts_with(&format!("cannot listen on {}", config.listen)), "{error}");
    config.storage.conversations = bot_backend::config::Secret::new("sqlite:///no/such/folder/bot.db");
    let error = Backend::start(&config, false).await.expect_err("no folder").to_string();
    assert_eq!(error, "the database of the conversations cannot be opened");
}

/// The program, ended when this is dropped.
struct Program(Child);

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bot-backend"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BOT_")) {
            command.env_remove(name);
        }
        let child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Self(child.expect("the program is there"))
    }

    /// Exit code, standard output and standard error, when it ends by itself.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.0.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
        self.0.stderr.take().expect("piped").read_to_string(&mut err).expect("text");
        (self.0.wait().expect("ended").code(), out, err)
    }

    /// The first line it prints that contains the text.
    fn line(&mut self, with: &str) -> String {
        let out = BufReader::new(self.0.stdout.as_mut().expect("piped"));
        let mut lines = out.lines().map(|line| line.expect("text"));
        lines.find(|line| line.contains(with)).expect("a line")
    }

    fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        assert!(sent.expect("there is a kill").success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_program_serves_without_a_file_and_ends_well_when_it_is_asked_to() {
    let mut program = Program::start(&["serve", "--echo", "--listen", "127.0.0.1:0", "--log", "json"]);
    let url = program.line("listening on").replace("listening on ", "");
    let ready = Http::new().get(&format!("{url}/readyz")).await;
    assert_eq!((ready.status.as_u16(), ready.json()["parts"]["platform"].as_str()), (200, Some("not_used")));
    program.terminate();
    let (code, _, log) = program.end();
    assert_eq!(code, Some(0), "{log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        assert_eq!(line["level"], "INFO");
    }
}

#[tokio::test]
async fn the_program_simulates_a_platform() {
    let mut program = Program::start(&["sim"]);
    let url = program.line("simulating").rsplit(' ').next().expect("a URL").to_owned();
    let answer = Http::new().get(&format!("{url}/v1/users/me")).await;
    assert_ne!(answer.json()["code"], 0, "nobody is logged in");
    program.terminate();
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn the_program_says_what_is_wrong_with_its_configuration() {
    let (code, _, text) = Program::start(&["serve"]).end();
    assert!(code == Some(1) && text.contains("[[bots]]") && text.contains("serve --echo"), "{text}");

    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, "[limits]\napp_qps = 0\n").expect("written");
    let path = file.path().display().to_string();
    let (code, _, text) = Program::start(&["serve", "--config", &path]).end();
    assert!(
        code == Some(1) && text.contains(&format!("{path}:2: limits.app_qps: invalid value: integer `0`")),
        "{text}"
    );
}

#[test]
fn the_help_names_every_option_and_its_variable() {
    let (code, text, _) = Program::start(&["serve", "--help"]).end();
    assert_eq!(code, Some(0));
    for name in [
        "CONFIG",
        "LISTEN",
        "PLATFORM_URL",
        "PLATFORM_TOKEN",
        "CONVERSATIONS_URL",
        "SESSIONS_URL",
        "LOG_FORMAT",
        "WEBHOOK_KEY",
    ] {
        assert!(text.contains(&format!("[env: BOT_{name}")), "{name}\n{text}");
    }
}
