//! Servers that are no Vault, or an odd one.

use coze_secret::{Login, SecretBytes, Vault};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{fixed, reason, secs};

/// A server that answers every request with these bytes, then closes.
async fn server(answer: Vec<u8>) -> Vault {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&answer).await;
            });
        }
    });
    Vault::new(&url).expect("valid").timeout(secs(5))
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test(start_paused = true)]
async fn what_is_no_answer_of_vault_is_an_error_and_never_shown() {
    let token = || SecretBytes::new("hvs.x");
    for body in ["", "<html>secret-word</html>", "{\"data\":\"secret-word\"}", "[[[[[[", "{\"data\":{\"a\":"] {
        let error = server(ok(body)).await.unwrap(&token()).await.expect_err("refused");
        assert_eq!(error.reason(), "vault_answer", "{body}");
        assert!(!format!("{error} {error:?}").contains("secret-word"));
    }
    assert_eq!(reason(server(b"SSH-2.0-x\r\n".to_vec()).await.unwrap(&token())).await, "vault_unreachable");
    assert_eq!(reason(server(Vec::new()).await.unwrap(&token())).await, "vault_unreachable");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_read_up_to_a_mebibyte() {
    let of = |size: usize| ok(&format!("{{\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(size - 17)));
    let allowed = server(of(1 << 20)).await.unwrap(&SecretBytes::new("t")).await.expect("allowed");
    assert_eq!(allowed.get("a").map(|value| value.expose().len()), Some((1 << 20) - 17));
    let error = server(of((1 << 20) + 1)).await.unwrap(&SecretBytes::new("t")).await.expect_err("too large");
    assert_eq!((error.reason(), error.message()), ("vault_answer", "an answer of vault is larger than 1 MiB"));

    // Without a declared length it is cut off while it is read.
    let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    endless.resize(3 << 20, b' ');
    assert_eq!(reason(server(endless).await.unwrap(&SecretBytes::new("t"))).await, "vault_answer");
}

#[tokio::test(start_paused = true)]
async fn deep_json_does_not_exhaust_the_stack() {
    let body = format!("{{\"data\":{}", "[".repeat(500_000));
    assert_eq!(reason(server(ok(&body)).await.unwrap(&SecretBytes::new("t"))).await, "vault_answer");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_vault_gives_cannot_break_a_header() {
    let body = r#"{"auth":{"client_token":"a\r\nx-forged: 1","lease_duration":100,"renewable":true}}"#;
    let session = server(ok(body)).await.connect(Login::app_role("r", fixed("s"))).await.expect("logged in");
    assert_eq!(reason(session.kv(coze_secret::Kv::new("k"))).await, "vault_token");
}
