use std::fs;

use coze_auth::{FileStore, MemoryStore, RefreshToken, TokenStore};

#[tokio::test]
async fn a_file_keeps_the_token_and_its_mark_and_nobody_else_reads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    let store = FileStore::new(&path);
    assert_eq!(store.load().await.expect("readable"), None);
    for text in ["r1", "r2"] {
        store.save(&RefreshToken::new(text)).await.expect("saved");
        let other = FileStore::new(&path).load().await.expect("readable").expect("there is one");
        assert_eq!((other.expose(), other.sent()), (text, 0));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        }
    }
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1, "nothing is left behind");
}

#[tokio::test]
async fn what_a_crash_left_behind_is_in_nobodys_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    fs::write(folder.path().join("token.new"), "half a to").expect("written");
    let store = FileStore::new(&path);
    assert_eq!(store.load().await.expect("readable"), None);
    store.save(&RefreshToken::new("r1")).await.expect("saved");
    assert_eq!(store.load().await.expect("readable"), Some(RefreshToken::new("r1")));
}

#[tokio::test]
async fn a_file_that_others_may_read_or_that_holds_something_else_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    let store = FileStore::new(&path);
    store.save(&RefreshToken::new("r_tell_nobody")).await.expect("saved");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        let error = store.load().await.expect_err("refused");
        assert!(error.message().contains("0600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
    }
    for text in ["", "{}", "r_tell_nobody", "{\"r_tell_nobody\":1}"] {
        fs::write(&path, text).expect("written");
        let error = store.load().await.expect_err("refused");
        assert_eq!(error.reason(), "token_store");
        assert!(!format!("{error:?}").contains("tell_nobody"), "{error:?}");
    }
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_a_failure_that_keeps_the_old_token() {
    let store = FileStore::new("/nowhere/at/all/token");
    assert_eq!(store.save(&RefreshToken::new("r1")).await.expect_err("no folder").reason(), "token_store");
}

#[tokio::test]
async fn the_latest_of_many_saves_is_what_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = FileStore::new(folder.path().join("token"));
    let mut saves = tokio::task::JoinSet::new();
    for n in 0..20 {
        let store = store.clone();
        // On one thread tasks begin in the order they are spawned in.
        saves.spawn(async move { store.save(&RefreshToken::new(&format!("r{n}"))).await });
    }
    for saved in saves.join_all().await {
        saved.expect("saved");
    }
    assert_eq!(store.load().await.expect("readable").expect("there is one").expose(), "r19");
}

#[tokio::test]
async fn only_the_token_that_is_known_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    replaces(MemoryStore::new()).await;
    replaces(FileStore::new(folder.path().join("token"))).await;
}

pub(crate) async fn replaces(store: impl TokenStore) {
    let (one, two, three) = (RefreshToken::new("r1"), RefreshToken::new("r2"), RefreshToken::new("r3"));
    let marked = RefreshToken::decode(r#"{"refresh_token":"r2","sent":1}"#).expect("a token");
    assert!(!store.replace(&one, &two).await.expect("asked"), "there is none yet");
    assert_eq!(store.load().await.expect("readable"), None);
    store.save(&one).await.expect("saved");
    assert!(store.replace(&one, &two).await.expect("asked"));
    for other in [&one, &marked] {
        assert!(!store.replace(other, &three).await.expect("asked"), "{other:?}");
        assert_eq!(store.load().await.expect("readable").as_ref(), Some(&two));
    }
    assert!(store.replace(&two, &marked).await.expect("asked"));
    assert!(!store.replace(&two, &three).await.expect("asked"), "it has another mark");
    assert!(store.replace(&marked, &three).await.expect("asked"));
    assert_eq!(store.load().await.expect("readable"), Some(three));
}

#[test]
fn nothing_prints_a_refresh_token() {
    assert!(!format!("{:?}", RefreshToken::new("r_tell_nobody")).contains("tell_nobody"));
}
