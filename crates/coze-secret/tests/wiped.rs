//! What passes through the buffers of HTTP, TLS and JSON is wiped where the process has an allocator that wipes.
#![cfg(target_os = "linux")]

mod search;

use std::{
    alloc::System,
    env,
    hint::black_box,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use coze_secret::{Database, Fields, Kv, Login, Secret, SecretBytes, Vault};
use coze_sim::vault::{self, Config, DATABASE_ROLE, ROLE_ID, SECRET_ID};
use search::{Needle, Search};
use serde_json::json;
use zeroizing_alloc::ZeroAlloc;

#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

/// Runs in another process, because the server keeps the secrets too: reads one from its input, says where it serves, and
/// ends with its input.
#[tokio::test]
async fn serves_for_the_other_test() {
    if env::var_os("COZE_SECRET_TEST_SERVER").is_some() {
        let secret = std::io::stdin().lines().next().expect("a secret").expect("text");
        let vault = vault::Vault::start(Config::default()).await.expect("a port");
        vault.put("keys", &json!({ "before": "x".repeat(2000), "key": secret, "later": "x".repeat(2000) }));
        println!("url: {}", vault.url());
        tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await.expect("read");
    }
}

fn server(needle: &Needle) -> (Child, String) {
    let mut child = Command::new(env::current_exe().expect("a path"))
        .args(["--exact", "serves_for_the_other_test", "--nocapture"])
        .env("COZE_SECRET_TEST_SERVER", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut line = needle.make();
    line.push(b'\n');
    child.stdin.as_mut().expect("piped").write_all(SecretBytes::new(line).expose()).expect("written");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let url = output.lines().map_while(Result::ok).find_map(|line| Some(line.split_once("url: ")?.1.to_owned()));
    (child, url.expect("it serves"))
}

#[tokio::test]
async fn a_secret_from_vault_leaves_nothing_behind() {
    let mut search = Search::new();
    let needle = Needle::new();
    let (mut child, url) = server(&needle);
    assert_eq!(search.copies(&needle), 0);

    let login = Login::app_role(ROLE_ID, Secret::fixed(SecretBytes::new(SECRET_ID)));
    let session = Vault::new(&url).expect("valid").connect(login).await.expect("logged in");
    let secret: Secret<Fields> = session.kv(Kv::new("keys")).await.expect("there");
    assert_eq!(search.copies(&needle), 1, "in the secret, and not in a buffer of the connection");
    let credentials = session.database(Database::new(DATABASE_ROLE)).await.expect("given");

    // What frees memory writes into its beginning: the secret is behind that.
    let plain = [vec![b'x'; 64], needle.make()].concat();
    assert_eq!(search.copies(&needle), 2);
    drop(black_box(plain));
    assert_eq!(search.copies(&needle), 1, "the allocator wipes");

    let ended = secret.watch();
    drop((secret, ended));
    // The task that follows it holds the last version until it learns that nobody reads.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(search.copies(&needle), 0, "the session still lives");
    drop(credentials);
    session.shutdown().await;
    drop(child.stdin.take());
    child.wait().expect("ended");
}
