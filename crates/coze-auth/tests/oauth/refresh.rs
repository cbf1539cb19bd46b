use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use coze_auth::{FileStore, Granted, MemoryStore, OAuthApp, Pkce, RefreshToken, Refresher, Token, TokenStore};
use coze_core::{Error, Kind, Retry};
use serde_json::json;

use crate::scripted::{Scripted, Step, ok, refusal};

const NEXT: &str = r#"{"access_token":"czu_a","expires_in":900,"refresh_token":"r2"}"#;

async fn stored(text: &str) -> MemoryStore {
    let store = MemoryStore::new();
    store.save(&RefreshToken::new(text)).await.expect("saved");
    store
}

fn app(platform: &Scripted) -> OAuthApp<Scripted> {
    OAuthApp::new(platform.endpoint(), "c1").secret("s1").expect("valid")
}

async fn held(store: &impl TokenStore) -> (String, u8) {
    let token = store.load().await.expect("readable").expect("there is one");
    (token.expose().to_owned(), token.sent())
}

fn outcome(result: Result<Token, Error>) -> Result<String, (&'static str, Retry)> {
    match result {
        Ok(token) => Ok(token.header().to_str().expect("ASCII").to_owned()),
        Err(error) => Err((error.reason(), error.retry())),
    }
}

#[tokio::test]
async fn the_next_refresh_token_is_stored_and_used() {
    let platform = Scripted::new([ok(NEXT), ok(&NEXT.replace("r2", "r3"))]);
    let store = stored("r1").await;
    let source = app(&platform).refreshing(store.clone());
    assert_eq!(outcome(source.refresh().await), Ok("Bearer czu_a".into()));
    assert_eq!(held(&store).await, ("r2".into(), 0));
    assert_eq!(source.refresh().await.expect("granted").lifetime(), Some(Duration::from_secs(900)));
    let asked = |token: &str| {
        let body = json!({ "grant_type": "refresh_token", "client_id": "c1", "refresh_token": token });
        ("https://api.coze.cn/api/permission/oauth2/token".to_owned(), Some("Bearer s1".to_owned()), body)
    };
    assert_eq!(platform.sent(), [asked("r1"), asked("r2")]);
}

#[tokio::test]
async fn a_secret_that_is_replaced_goes_along_from_then_on() {
    let platform = Scripted::new([ok(NEXT), ok(NEXT), ok(NEXT), ok(NEXT)]);
    let app = app(&platform);
    let (source, other) = (app.refreshing(stored("r1").await), app.clone().secret("s2").expect("valid"));
    source.refresh().await.expect("granted");
    assert_eq!(app.set_secret("two words").expect_err("refused").reason(), "token_malformed");
    source.refresh().await.expect("granted");
    app.clone().set_secret("s3").expect("valid");
    source.refresh().await.expect("granted");
    other.exchange("code", "https://b", None).await.expect("granted");
    let sent: Vec<_> = platform.sent().into_iter().filter_map(|(_, authorization, _)| authorization).collect();
    assert_eq!(sent, ["Bearer s1", "Bearer s1", "Bearer s3", "Bearer s2"]);
}

fn anew() -> Granted {
    Granted { token: Token::bearer("czu_n").expect("valid"), refresh_token: RefreshToken::new("n1") }
}

#[tokio::test(start_paused = true)]
async fn what_is_granted_anew_is_not_overwritten_by_a_refresh_under_way() {
    let platform = Scripted::new([Step::After(Duration::from_secs(5), Box::new(ok(NEXT))), ok(NEXT)]);
    let store = stored("r1").await;
    let source = Arc::new(app(&platform).refreshing(store.clone()));
    let under_way = tokio::spawn({
        let source = source.clone();
        async move { outcome(source.refresh().await) }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    source.take(anew()).await.expect("saved");
    assert_eq!(under_way.await.expect("not panicked"), Ok("Bearer czu_a".into()));
    assert_eq!(held(&store).await, ("n1".into(), 0));
    source.refresh().await.expect("granted");
    assert_eq!(platform.sent()[1].2["refresh_token"], "n1");
}

#[tokio::test]
async fn what_is_granted_and_cannot_be_saved_is_saved_by_the_next_refresh() {
    let journal = Journal::default();
    *journal.failures.lock().expect("whole") = vec![1];
    let source = app(&journal.platform).refreshing(journal.clone());
    let error = source.take(anew()).await.expect_err("not saved");
    assert_eq!((error.reason(), error.retry()), ("token_store", Retry::Safe));
    assert_eq!(outcome(source.refresh().await), Ok("Bearer czu_n".into()));
    assert_eq!((held(&journal.store).await, journal.platform.count()), (("n1".into(), 0), 0));
}

#[tokio::test]
async fn a_code_is_exchanged_with_the_verifier_and_the_secret() {
    let platform = Scripted::new([ok(NEXT)]);
    let pkce = Pkce::new().expect("random");
    app(&platform).exchange("code_1", "https://bot.example/back", Some(&pkce)).await.expect("granted");
    let (_, authorization, body) = platform.sent().remove(0);
    assert_eq!(authorization.as_deref(), Some("Bearer s1"));
    let expected = json!({
        "grant_type": "authorization_code", "client_id": "c1", "code": "code_1",
        "redirect_uri": "https://bot.example/back", "code_verifier": pkce.verifier(),
    });
    assert_eq!(body, expected);
}

/// Keeps the order of what happens, and fails when it is told to.
#[derive(Clone, Default)]
struct Journal {
    store: MemoryStore,
    lines: Arc<Mutex<Vec<String>>>,
    failures: Arc<Mutex<Vec<usize>>>,
    platform: Scripted,
}

impl Journal {
    fn note(&self, token: &RefreshToken) -> Result<(), Error> {
        let number = {
            let mut lines = self.lines.lock().expect("whole");
            lines.push(format!("{} {} after {}", token.expose(), token.sent(), self.platform.count()));
            lines.len()
        };
        match self.failures.lock().expect("whole").contains(&number) {
            true => Err(Error::new(Kind::Precondition, "token_store")),
            false => Ok(()),
        }
    }
}

impl TokenStore for Journal {
    type Lease = ();

    async fn lease(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn load(&self) -> Result<Option<RefreshToken>, Error> {
        self.store.load().await
    }

    async fn save(&self, token: &RefreshToken) -> Result<(), Error> {
        self.note(token)?;
        self.store.save(token).await
    }

    async fn replace(&self, known: &RefreshToken, next: &RefreshToken) -> Result<bool, Error> {
        self.note(next)?;
        self.store.replace(known, next).await
    }
}

#[tokio::test]
async fn a_token_is_marked_before_it_is_sent_and_its_successor_saved_before_use() {
    let platform = Scripted::new([ok(NEXT)]);
    let journal = Journal { store: stored("r1").await, platform: platform.clone(), ..Journal::default() };
    app(&platform).refreshing(journal.clone()).refresh().await.expect("granted");
    assert_eq!(*journal.lines.lock().expect("whole"), ["r1 1 after 0", "r2 0 after 1"]);
}

#[tokio::test]
async fn a_store_that_fails_loses_nothing() {
    let platform = Scripted::new([ok(NEXT)]);
    let journal = Journal { store: stored("r1").await, platform: platform.clone(), ..Journal::default() };
    *journal.failures.lock().expect("whole") = vec![1, 3];
    let source = app(&platform).refreshing(journal.clone());
    assert_eq!(outcome(source.refresh().await), Err(("token_store", Retry::Safe)));
    assert_eq!(platform.count(), 0, "what cannot be marked is not sent");
    assert_eq!(outcome(source.refresh().await), Err(("token_store", Retry::Safe)), "not handed out before it is saved");
    assert_eq!(outcome(source.refresh().await), Ok("Bearer czu_a".into()));
    assert_eq!((platform.count(), held(&journal.store).await), (1, ("r2".into(), 0)));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_whose_answer_is_lost_is_tried_once_more_and_then_a_person_is_asked_for() {
    let unknown: [fn() -> Step; 5] = [
        || Step::Fail("the connection broke".into()),
        || Step::Silence,
        || Step::Answer(504, "<html>".into()),
        || ok("<html>"),
        || ok("{}"),
    ];
    for first in unknown {
        for second in [first(), refusal("invalid_request"), refusal("invalid_client")] {
            let platform = Scripted::new([first(), second]);
            let store = stored("r1").await;
            let source = app(&platform).refreshing(store.clone());
            let (_, retry) = outcome(source.refresh().await).expect_err("nobody knows");
            assert_eq!((retry, platform.count()), (Retry::IfIdempotent, 1), "not sent again in the same call");
            assert_eq!(held(&store).await, ("r1".into(), 1));
            // Another process that finds the store so does the same.
            let source = app(&platform).refreshing(store.clone());
            for _ in 0..3 {
                assert_eq!(outcome(source.refresh().await), Err(("reauthorization_required", Retry::Never)));
            }
            assert_eq!((platform.count(), held(&store).await), (2, ("r1".into(), 2)));
        }
        let platform = Scripted::new([first(), ok(NEXT)]);
        let store = stored("r1").await;
        let source = app(&platform).refreshing(store.clone());
        source.refresh().await.expect_err("nobody knows");
        assert_eq!(outcome(source.refresh().await), Ok("Bearer czu_a".into()), "it had not arrived");
        assert_eq!(held(&store).await, ("r2".into(), 0));
    }
}

#[tokio::test]
async fn what_says_that_nothing_was_spent_leaves_the_token_as_good_as_it_was() {
    let not_sent = Error::new(Kind::Unavailable, "not_connected").with_retry(Retry::Safe);
    let platform = Scripted::new([
        refusal("internal_error"),
        Step::Fail(not_sent.into()),
        Step::Answer(429, String::new()),
        refusal("access_deny"),
        refusal("invalid_client"),
        ok(NEXT),
    ]);
    let store = stored("r1").await;
    let source = app(&platform).refreshing(store.clone());
    for expected in [
        ("internal_error", Retry::Safe),
        ("not_connected", Retry::Safe),
        ("token_endpoint_busy", Retry::Safe),
        ("access_deny", Retry::Never),
        ("invalid_client", Retry::Never),
    ] {
        assert_eq!(outcome(source.refresh().await), Err(expected));
        assert_eq!(held(&store).await, ("r1".into(), 0), "{expected:?}");
    }
    assert!(source.refresh().await.is_ok());
}

#[tokio::test]
async fn a_refused_or_missing_refresh_token_needs_a_person() {
    let platform = Scripted::new([refusal("invalid_request")]);
    let needs = Err(("reauthorization_required", Retry::Never));
    assert_eq!(outcome(app(&platform).refreshing(stored("r1").await).refresh().await), needs);
    assert_eq!(outcome(app(&platform).refreshing(MemoryStore::new()).refresh().await), needs);
    assert_eq!(platform.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_loses_no_token() {
    for after in [0, 1, 1000, 1999] {
        let slow = Step::After(Duration::from_secs(2), Box::new(ok(NEXT)));
        let platform = Scripted::new([slow, ok(&NEXT.replace("r2", "r3"))]);
        let store = stored("r1").await;
        let source = app(&platform).refreshing(store.clone());
        assert!(tokio::time::timeout(Duration::from_millis(after), source.refresh()).await.is_err());
        assert_eq!(held(&store).await, ("r1".into(), u8::from(after > 0)));
        assert!(source.refresh().await.is_ok(), "nothing is locked");
        assert_eq!((sent(&platform), held(&store).await), (vec!["r1".into(), "r2".into()], ("r3".into(), 0)));
    }
}

fn sent(platform: &Scripted) -> Vec<serde_json::Value> {
    platform.sent().into_iter().map(|(.., body)| body["refresh_token"].clone()).collect()
}

#[tokio::test]
async fn an_answer_without_a_refresh_token_leaves_the_one_there_is() {
    for left in ["", r#","refresh_token":null"#, r#","refresh_token":"""#] {
        let answer = || ok(&format!(r#"{{"access_token":"czu_a","expires_in":900{left}}}"#));
        let platform = Scripted::new([answer(), answer(), answer(), refusal("invalid_request")]);
        let store = stored("r1").await;
        let source = app(&platform).refreshing(store.clone());
        for _ in 0..3 {
            assert_eq!(outcome(source.refresh().await), Ok("Bearer czu_a".into()));
            assert_eq!(held(&store).await, ("r1".into(), 0));
        }
        assert_eq!(outcome(source.refresh().await), Err(("reauthorization_required", Retry::Never)));
    }
}

#[tokio::test]
async fn the_next_refresh_token_is_kept_also_where_its_access_token_is_of_no_use() {
    let bad = ok(&NEXT.replace("czu_a", "czu a"));
    let platform = Scripted::new([bad, ok(&NEXT.replace("r2", "r3"))]);
    let journal = Journal { store: stored("r1").await, platform: platform.clone(), ..Journal::default() };
    *journal.failures.lock().expect("whole") = vec![2];
    let source = app(&platform).refreshing(journal.clone());
    assert_eq!(outcome(source.refresh().await), Err(("token_store", Retry::Safe)));
    assert_eq!(outcome(source.refresh().await), Ok("Bearer czu_a".into()), "saved, and asked again");
    assert_eq!((sent(&platform), held(&journal.store).await), (vec!["r1".into(), "r2".into()], ("r3".into(), 0)));
    let platform = Scripted::new([ok(&NEXT.replace("czu_a", ""))]);
    let store = stored("r1").await;
    let refused = app(&platform).refreshing(store.clone()).refresh().await;
    assert_eq!(outcome(refused), Err(("token_nonsense", Retry::IfIdempotent)));
    assert_eq!(held(&store).await, ("r2".into(), 0));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_saved_late_is_as_old_as_it_is() {
    for (late, life, count) in [(100, 800, 1), (899, 1, 1), (900, 900, 2), (10_000, 900, 2)] {
        let platform = Scripted::new([ok(NEXT), ok(NEXT)]);
        let journal = Journal { store: stored("r1").await, platform: platform.clone(), ..Journal::default() };
        *journal.failures.lock().expect("whole") = vec![2];
        let source = app(&platform).refreshing(journal.clone());
        assert_eq!(outcome(source.refresh().await), Err(("token_store", Retry::Safe)));
        tokio::time::advance(Duration::from_secs(late)).await;
        let token = source.refresh().await.expect("granted");
        assert_eq!((token.lifetime(), platform.count()), (Some(Duration::from_secs(life)), count), "{late}");
    }
}

#[tokio::test(start_paused = true)]
async fn sources_that_share_a_store_send_each_token_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = || FileStore::new(folder.path().join("token"));
    let memory = MemoryStore::new();
    share([file(), file()]).await;
    share([memory.clone(), memory]).await;
}

/// As two processes do, or a source that was made anew while the one before is under way.
async fn share<T: TokenStore>(stores: [T; 2]) {
    let slow = |n: usize| Step::After(Duration::from_secs(1), Box::new(ok(&NEXT.replace("r2", &format!("r{n}")))));
    let platform = Scripted::new((1..=8).map(slow));
    stores[0].save(&RefreshToken::new("r0")).await.expect("saved");
    let sources = stores.map(|store| Arc::new(app(&platform).refreshing(store)));
    let mut refreshes = tokio::task::JoinSet::new();
    for n in 0..8 {
        let source = sources[n % 2].clone();
        refreshes.spawn(async move { source.refresh().await });
    }
    for refreshed in refreshes.join_all().await {
        refreshed.expect("granted");
    }
    assert_eq!(sent(&platform), (0..8).map(|n| format!("r{n}")).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_another_process_holds_is_waited_for_and_not_for_ever() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = || FileStore::new(folder.path().join("token"));
    store().save(&RefreshToken::new("r1")).await.expect("saved");
    let platform = Scripted::new([ok(NEXT)]);
    let lease = store().lease().await.expect("free");
    let source = app(&platform).refreshing(store());
    let begun = tokio::time::Instant::now();
    assert_eq!(outcome(source.refresh().await), Err(("token_store", Retry::Safe)));
    assert!((120..121).contains(&begun.elapsed().as_secs()) && platform.count() == 0);
    drop(lease);
    assert!(source.refresh().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_a_person_granted_while_a_refresh_was_under_way_stays() {
    let platform = Scripted::new([Step::After(Duration::from_secs(1), Box::new(ok(NEXT)))]);
    let store = stored("r1").await;
    let source = app(&platform).refreshing(store.clone());
    let consent = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        store.save(&RefreshToken::new("new")).await
    };
    let (refreshed, saved) = tokio::join!(source.refresh(), consent);
    assert!(refreshed.is_ok() && saved.is_ok());
    assert_eq!(held(&store).await, ("new".into(), 0));
}

#[tokio::test(start_paused = true)]
async fn refreshes_are_made_one_at_a_time() {
    let slow = |body: &str| Step::After(Duration::from_secs(1), Box::new(ok(body)));
    let platform = Scripted::new([slow(NEXT), slow(&NEXT.replace("r2", "r3"))]);
    let source = app(&platform).refreshing(stored("r1").await);
    let (one, two) = tokio::join!(source.refresh(), source.refresh());
    assert!(one.is_ok() && two.is_ok());
    let tokens: Vec<_> = platform.sent().into_iter().map(|(.., body)| body["refresh_token"].clone()).collect();
    assert_eq!(tokens, ["r1", "r2"]);
}
