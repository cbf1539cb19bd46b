//! A person consents in a browser, and the bot acts for them.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use bot_backend::{
    Backend,
    config::{self, Secret},
};
use bytes::Bytes;
use coze_sim::{CLIENT_ID, CLIENT_SECRET, Fault, FaultKind, Sim, fingerprint};
use coze_tests::{Answer, Http};
use http::Request;
use http_body_util::Full;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{BOT, World, config, eventually};

/// `any:a password of a person`
pub(crate) const PASSWORD: &str = "Basic YW55OmEgcGFzc3dvcmQgb2YgYSBwZXJzb24=";
pub(crate) const TOKEN: &str = "/api/permission/oauth2/token";

pub(crate) fn oauth(folder: &TempDir) -> config::OAuth {
    config::OAuth {
        client_id: CLIENT_ID.into(),
        client_secret: Some(Secret::new(CLIENT_SECRET)),
        public_url: "http://bot.example".parse().expect("a URL"),
        password: Secret::new("a password of a person"),
        token_file: Some(folder.path().join("token.json")),
        token_redis: None,
    }
}

/// A world in which the bot needs somebody's consent, and the folder it is kept in.
async fn without_consent() -> (World, TempDir) {
    let folder = TempDir::new().expect("a folder");
    let world = that_needs_consent(oauth(&folder)).await;
    (world, folder)
}

pub(crate) async fn that_needs_consent(oauth: config::OAuth) -> World {
    // Nothing but what a person consented to is good for a chat.
    let platform = coze_sim::Config { tokens: Vec::new(), ..coze_sim::Config::default() };
    World::with(platform, |config| {
        config.secrets.poll = Duration::from_millis(100);
        config.platform.token = None;
        config.platform.oauth = Some(oauth);
    })
    .await
}

fn stored(folder: &TempDir) -> Option<String> {
    fs::read_to_string(folder.path().join("token.json")).ok()
}

async fn get(world: &World, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request = Request::get(format!("{}{path}", world.bot.url()));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = world.http.send(request.body(Full::<Bytes>::default()).expect("valid")).await;
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("content-security-policy", "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ] {
        assert_eq!(answer.headers[name], value, "{path}");
    }
    answer
}

/// A consent that was begun: the browser's cookie, and what the platform sends it back with.
pub(crate) struct Begun {
    cookie: String,
    back: String,
}

pub(crate) async fn begin(world: &World) -> Begun {
    let answer = get(world, "/oauth/start", &[("authorization", PASSWORD)]).await;
    assert_eq!(answer.status, 302, "{}", answer.text());
    let cookie = answer.headers["set-cookie"].to_str().expect("ASCII").split(';').next().expect("a pair").to_owned();
    let consent = world.http.get(answer.headers["location"].to_str().expect("ASCII")).await;
    let back = consent.headers["location"].to_str().expect("ASCII");
    let back = back.strip_prefix("http://bot.example").expect("the redirect address").to_owned();
    Begun { cookie, back }
}

/// The browser comes back; what the page is headed, and its status.
pub(crate) async fn come_back(world: &World, begun: &Begun) -> (u16, String) {
    let answer = get(world, &begun.back, &[("cookie", &format!("theme=dark; {}", begun.cookie))]).await;
    assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
    assert!(answer.headers["set-cookie"].to_str().expect("ASCII").starts_with("bot-oauth=; Max-Age=0;"));
    page(&answer, begun)
}

fn page(answer: &Answer, begun: &Begun) -> (u16, String) {
    let text = answer.text();
    let secrets = begun.back.split(['=', '&', '?']).chain(begun.cookie.split('=')).filter(|part| part.len() > 16);
    for secret in secrets.chain([CLIENT_ID, CLIENT_SECRET, "token.json", "script"]) {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert!(text.contains("<html lang=\"zh-CN\">"), "{text}");
    let (_, english) = text.split_once("<section lang=\"en\">\n<h1>").expect("in English too");
    (answer.status.as_u16(), english.split_once('<').expect("an end").0.to_owned())
}

async fn readiness(world: &World) -> (u16, String) {
    let ready = world.http.get(&format!("{}/readyz", world.bot.url())).await;
    (ready.status.as_u16(), ready.json()["parts"]["consent"].as_str().expect("text").to_owned())
}

#[tokio::test]
async fn a_person_consents_once_and_the_bot_answers_with_tokens_that_it_renews() {
    let (world, folder) = without_consent().await;
    assert_eq!(readiness(&world).await, (503, "open /oauth/start".into()));

    let begun = begin(&world).await;
    assert_eq!(come_back(&world, &begun).await, (200, "Access granted".into()));
    let file = fs::metadata(folder.path().join("token.json")).expect("it is there");
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    eventually("it is ready", || async { readiness(&world).await == (200, "ok".into()) }).await;

    let answer = world.send(BOT, "hello").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let before = (stored(&folder), world.sim.counts().tokens_issued);
    world.fault("/v3/chat", FaultKind::ExpireTokens);
    assert_eq!(world.send(BOT, "hello").await.status, 200);
    let after = (stored(&folder), world.sim.counts().tokens_issued);
    assert!(before.0 != after.0 && after.1 == before.1 + 1, "the refresh token rotates: {before:?} {after:?}");

    assert_eq!(come_back(&world, &begun).await, (400, "This link is no longer good".into()), "a second time");
    let mut again = config(&world.sim, &world.folder);
    again.platform.token = None;
    again.platform.oauth = Some(oauth(&folder));
    world.bot.stop().await;
    let bot = Backend::start(&again, false).await.expect("started");
    let world = World { bot, ..world };
    assert_eq!(readiness(&world).await, (200, "ok".into()), "it was stored");
    assert_eq!(world.send(BOT, "hello").await.status, 200);
}

#[tokio::test]
async fn without_consent_a_message_is_answered_with_what_is_missing() {
    let (world, _folder) = without_consent().await;
    let answer = world.send(BOT, "hello").await;
    assert_eq!((answer.status.as_u16(), world.sim.requests().len()), (502, 0), "{}", answer.text());
}

#[tokio::test]
async fn only_who_knows_the_password_begins_a_consent() {
    let (world, _folder) = without_consent().await;
    // `any:another`, a password without a name, and things that are none.
    for wrong in
        ["Basic YW55OmFub3RoZXI=", "Basic YSBwYXNzd29yZCBvZiBhIHBlcnNvbg==", "Basic %", "Basic", "Bearer x", ""]
    {
        let answer = get(&world, "/oauth/start", &[("authorization", wrong)]).await;
        assert_eq!(answer.headers["www-authenticate"], "Basic realm=\"bot-backend\", charset=\"UTF-8\"");
        assert!(answer.status == 401 && answer.text().contains("需要密码"), "{}", answer.text());
        assert!(!answer.headers.contains_key("set-cookie") && !answer.headers.contains_key("location"));
    }
}

#[tokio::test]
async fn the_browser_is_sent_away_with_a_challenge_and_a_cookie_of_its_own() {
    let (world, _folder) = without_consent().await;
    let answer = get(&world, "/oauth/start", &[("authorization", PASSWORD)]).await;
    let to = answer.headers["location"].to_str().expect("ASCII");
    assert!(to.starts_with(&format!("{}/api/permission/oauth2/authorize?response_type=code", world.sim.url())), "{to}");
    assert!(to.contains("&redirect_uri=http%3A%2F%2Fbot.example%2Foauth%2Fcallback&"), "{to}");
    assert!(to.contains("&code_challenge=") && to.ends_with("&code_challenge_method=S256"), "{to}");
    let cookie = answer.headers["set-cookie"].to_str().expect("ASCII");
    let (value, attributes) = cookie.split_once("; ").expect("attributes");
    assert_eq!(attributes, "Max-Age=600; Path=/; HttpOnly; SameSite=Lax");
    assert!(!to.contains(value.strip_prefix("bot-oauth=").expect("the name")), "what the browser keeps goes nowhere");
    assert_ne!(*begin(&world).await.cookie, *value);
}

#[tokio::test]
async fn behind_tls_the_cookie_is_for_tls_and_this_host_only() {
    let folder = TempDir::new().expect("a folder");
    let sim = Sim::start(coze_sim::Config::default()).await.expect("a free port");
    let mut config = config(&sim, &folder);
    config.platform.token = None;
    let public_url = "https://bot.example".parse().expect("a URL");
    config.platform.oauth = Some(config::OAuth { public_url, ..oauth(&folder) });
    let bot = Backend::start(&config, false).await.expect("started");
    let world = World { sim, bot, folder, http: Http::new() };
    let answer = get(&world, "/oauth/start", &[("authorization", PASSWORD)]).await;
    let cookie = answer.headers["set-cookie"].to_str().expect("ASCII");
    assert!(cookie.starts_with("__Host-bot-oauth="), "{cookie}");
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure"), "{cookie}");
}

#[tokio::test]
async fn a_browser_that_did_not_begin_it_ends_nothing() {
    let (world, folder) = without_consent().await;
    let stale = (400, "This link is no longer good".to_owned());
    let (one, two) = (begin(&world).await, begin(&world).await);
    let state = |begun: &Begun| begun.back.split_once("state=").expect("a state").1.to_owned();
    let forged = one.back.replace(&state(&one), &"0".repeat(32));
    let twice = format!("{}&state={}", one.back, state(&one));
    for back in ["/oauth/callback", "/oauth/callback?code=code_1", "/oauth/callback?state=&code=c", &forged, &twice] {
        let begun = Begun { cookie: one.cookie.clone(), back: back.to_owned() };
        assert_eq!(come_back(&world, &begun).await, stale, "{back}");
    }
    let without = get(&world, &one.back, &[]).await;
    assert_eq!(page(&without, &one), stale, "no cookie");
    assert_eq!(come_back(&world, &one).await, stale, "it was tried without one");
    let others = Begun { cookie: one.cookie, back: two.back };
    assert_eq!(come_back(&world, &others).await, stale, "the cookie of another consent");
    assert_eq!((stored(&folder), world.sim.counts().requests(&format!("POST {TOKEN}"))), (None, 0));
}

#[tokio::test]
async fn a_person_who_refuses_and_every_failure_of_the_platform_get_a_page() {
    let (world, folder) = without_consent().await;
    world.fault("/api/permission/oauth2/authorize", FaultKind::RefuseConsent);
    let begun = begin(&world).await;
    assert_eq!(come_back(&world, &begun).await, (403, "You did not grant access".into()));
    assert_eq!(world.sim.counts().requests(&format!("POST {TOKEN}")), 0);

    // What the browser brings instead of the code.
    for (brought, status, heading) in [
        ("error=server_error", 503, "The platform cannot be reached"),
        ("error=%3Cscript%3Ealert(1)%3C/script%3E", 502, "The platform refused this app"),
        ("code=code_of_somebody_else", 400, "The code is not accepted"),
        ("code=", 400, "The code is not accepted"),
        (&format!("code={}", "x".repeat(2049)), 400, "The code is not accepted"),
    ] {
        let begun = begin(&world).await;
        let state = begun.back.split_once("state=").expect("a state").1;
        let begun = Begun { back: format!("/oauth/callback?{brought}&state={state}"), ..begun };
        assert_eq!(come_back(&world, &begun).await, (status, heading.into()), "{brought}");
    }

    // What the platform says to the exchange.
    let says = |status, name: &str| {
        let body = Some(json!({ "error_code": name, "error_message": "<script>" }));
        FaultKind::Status { status, body, headers: Default::default() }
    };
    for (fault, status, heading) in [
        (says(401, "invalid_client"), 502, "The platform refused this app"),
        (says(400, "access_deny"), 502, "The platform refused this app"),
        (says(500, "internal_error"), 503, "The platform cannot be reached"),
        (FaultKind::Html { status: 502 }, 503, "The platform cannot be reached"),
        (FaultKind::Reset, 503, "The platform cannot be reached"),
        (FaultKind::InvalidJson, 503, "The platform cannot be reached"),
    ] {
        let begun = begin(&world).await;
        world.fault(TOKEN, fault.clone());
        assert_eq!(come_back(&world, &begun).await, (status, heading.into()), "{fault:?}");
    }
    assert_eq!((stored(&folder), readiness(&world).await.0), (None, 503));
}

#[tokio::test]
async fn what_cannot_be_stored_is_told() {
    let (world, folder) = without_consent().await;
    let begun = begin(&world).await;
    fs::create_dir(folder.path().join("token.json.new")).expect("in the way");
    assert_eq!(come_back(&world, &begun).await, (500, "The access could not be stored".into()));
}

#[tokio::test]
async fn a_browser_that_goes_away_loses_nothing() {
    let (world, folder) = without_consent().await;
    let begun = begin(&world).await;
    let delay = Duration::from_millis(200);
    world.sim.fault(Fault { delay, ..Fault::new(TOKEN, FaultKind::Pass) }).expect("possible");
    {
        let come_back = come_back(&world, &begun);
        let asked = eventually("the exchange is under way", || async { world.sim.counts().in_flight == 1 });
        tokio::select! {
            _ = come_back => panic!("it takes longer"),
            () = asked => {}
        }
    }
    eventually("it is stored", || async { stored(&folder).is_some() }).await;
}

#[tokio::test]
async fn a_shutdown_waits_for_a_refresh_and_loses_no_token() {
    let (world, folder) = without_consent().await;
    let refreshes = Fault { skip: 1, delay: Duration::from_millis(200), ..Fault::new(TOKEN, FaultKind::Pass) };
    world.sim.fault(refreshes).expect("possible");
    assert_eq!(come_back(&world, &begin(&world).await).await.0, 200);
    let first = stored(&folder);
    eventually("the first refresh is under way", || async { world.sim.counts().in_flight == 1 }).await;
    assert!(world.bot.stop().await);
    let saved = stored(&folder);
    assert!(saved != first && saved.is_some_and(|token| token.contains("\"sent\":0")), "the next one is saved");
}

#[tokio::test]
async fn who_consents_anew_is_whom_the_bot_acts_for_from_then_on() {
    let (world, _folder) = without_consent().await;
    let last_chat = || world.sim.requests().into_iter().rev().find(|request| request.path == "/v3/chat");
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let begun = begin(&world).await;
        assert_eq!(come_back(&world, &begun).await.0, 200);
        assert_eq!(world.send(BOT, "hello").await.status, 200);
        tokens.push(last_chat().expect("a chat").token);
    }
    assert_ne!(tokens[0], tokens[1]);
}

#[tokio::test]
async fn the_apps_secret_and_the_password_are_taken_from_their_files_again_when_they_change() {
    let folder = TempDir::new().expect("a folder");
    let [secret, password] = ["secret", "password"].map(|name| folder.path().join(name));
    fs::write(&secret, CLIENT_SECRET).expect("written");
    fs::write(&password, "a password of a person").expect("written");
    let (client_secret, password_of) = (Some(Secret::file(&secret)), Secret::file(&password));
    let world = that_needs_consent(config::OAuth { client_secret, password: password_of, ..oauth(&folder) }).await;
    let consents = async || assert_eq!(come_back(&world, &begin(&world).await).await.0, 200);
    let sent = || {
        let mut sent: Vec<_> = world.sim.requests().into_iter().filter(|request| request.path == TOKEN).collect();
        assert!(sent.iter().all(|request| request.outcome != "invalid_client"), "{sent:?}");
        sent.dedup_by(|one, other| one.token == other.token);
        sent.into_iter().map(|request| request.token.expect("a secret")).collect::<Vec<_>>()
    };
    consents().await;
    assert_eq!(sent(), [fingerprint(CLIENT_SECRET)]);
    fs::write(&secret, "another-secret").expect("written");
    let expected = [CLIENT_SECRET, "another-secret"].map(fingerprint);
    eventually("the new secret goes along", async || {
        consents().await;
        sent() == expected
    })
    .await;

    // `any:another password of a person`
    let new = "Basic YW55OmFub3RoZXIgcGFzc3dvcmQgb2YgYSBwZXJzb24=";
    let start = async |password| get(&world, "/oauth/start", &[("authorization", password)]).await.status.as_u16();
    assert_eq!((start(PASSWORD).await, start(new).await), (302, 401));
    fs::write(&password, "another password of a person").expect("written");
    eventually("the new password counts", async || start(new).await == 302).await;
    assert_eq!(start(PASSWORD).await, 401);
    // `any:short`
    fs::write(&password, "short").expect("written");
    eventually("one that is too short lets nobody in", async || start(new).await == 401).await;
    assert_eq!(start("Basic YW55OnNob3J0").await, 401);
}

#[tokio::test]
async fn a_token_that_others_may_read_is_not_used() {
    let (world, folder) = without_consent().await;
    let file = folder.path().join("token.json");
    fs::write(&file, "{\"refresh_token\":\"r\"}").expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("ours");
    let mut again = config(&world.sim, &world.folder);
    again.platform.token = None;
    again.platform.oauth = Some(oauth(&folder));
    let error = Backend::start(&again, false).await.expect_err("refused").to_string();
    assert!(error.starts_with("platform.oauth.token_file: others may read") && error.ends_with("0600"), "{error}");
}

#[tokio::test]
async fn other_methods_and_a_bot_without_the_flow_are_told_so() {
    let (world, _folder) = without_consent().await;
    let answer = world.http.post(&format!("{}/oauth/callback", world.bot.url()), &json!({})).await;
    assert_eq!((answer.status.as_u16(), &answer.headers["allow"]), (405, &"GET, HEAD".parse().expect("valid")));
    let plain = World::start().await;
    assert_eq!(plain.http.get(&format!("{}/oauth/start", plain.bot.url())).await.status, 404);
}
