//! Input nobody should send.

use std::net::SocketAddr;

use bytes::Bytes;
use coze_sim::TOKEN;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Api, config, question};

/// Sends raw bytes and reads until the other side closes.
async fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("it listens");
    stream.write_all(bytes).await.expect("sent");
    stream.shutdown().await.expect("half closed");
    let mut answer = Vec::new();
    // A reset is an answer too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn garbage_on_a_connection_harms_nobody_else() {
    let api = Api::start(config()).await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET / HTTP/1.1\r\n",
        b"POST /v3/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
        b"POST /v3/chat HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage",
        b"\0\0\0\0",
    ] {
        raw(api.sim.addr(), bytes).await;
    }
    assert_eq!(api.post("/v3/chat", question("x")).await.code(), (200, 0));
    assert_eq!(api.sim.counts().in_flight, 0);
}

#[tokio::test]
async fn strange_requests_get_an_answer() {
    let api = Api::start(config()).await;
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let deep = "[".repeat(100_000);
    let nested = format!("{{\"bot_id\":{deep}");
    for body in ["\u{0}", "null", "\"x\"", &deep, &nested, "{\"bot_id\":1e999}"] {
        let answer = api.try_send("POST", "/v3/chat", &headers, Bytes::from(body.to_owned())).await;
        assert_eq!(answer.expect("an answer").code(), (200, 4000), "{}", &body[..body.len().min(20)]);
    }
    let answer = api.try_send("POST", "/v3/chat", &headers, Bytes::from_static(b"\xff\xfe")).await;
    assert_eq!(answer.expect("an answer").code(), (200, 4000));
    for path in ["/v1/bots/%ff%00%", "/v1/bots/../../etc", "/v1/conversation/retrieve?conversation_id=%ff&&&=&", "//"] {
        assert_ne!(api.get(path).await.code().1, 0, "{path}");
    }
    let user = json!({ "bot_id": "\u{0}\r\n", "user_id": "\r\ndata:x" });
    assert_eq!(api.post("/v3/chat", user).await.code(), (200, 4006));
}

#[tokio::test]
async fn text_of_a_user_cannot_forge_an_event() {
    let api = Api::start(config()).await;
    let content = "x\n\nevent:error\ndata:{}\n\n";
    let mut body = question(content);
    body["stream"] = true.into();
    let names = api.post("/v3/chat", body).await.names();
    assert!(!names.iter().any(|name| name == "error"), "{names:?}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_not_read() {
    let api = Api::start(config()).await;
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str())];
    let body = |size: usize| Bytes::from(vec![b' '; size]);
    let size = 15 << 20;
    let answer = api.try_send("POST", "/v1/conversation/create", &headers, body(size)).await.expect("an answer");
    assert_eq!(answer.code(), (200, 4000), "blanks are no JSON");
    // The client may see the answer, or that nobody reads on.
    if let Ok(answer) = api.try_send("POST", "/v1/conversation/create", &headers, body(size + 1)).await {
        assert_eq!(answer.code(), (413, 4000));
    }
    assert_eq!(api.sim.counts().outcomes("POST /v1/conversation/create", "4000"), 2);
    assert_eq!(api.get("/v1/users/me").await.code(), (200, 0));
}

#[tokio::test]
async fn http_2_is_spoken_too() {
    let api = Api::start(config()).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<Bytes>>();
    let mut body = question("hello");
    body["stream"] = true.into();
    let request = Request::post(format!("{}/v3/chat", api.sim.url()))
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(Full::from(body.to_string()));
    let answer = client.request(request.expect("a request")).await.expect("an answer");
    assert_eq!(answer.version(), Version::HTTP_2);
    let bytes = answer.into_body().collect().await.expect("a whole stream").to_bytes();
    let text = String::from_utf8(bytes.to_vec()).expect("utf-8");
    assert!(text.ends_with("event:done\ndata:\"[DONE]\"\n\n"));
    let first = text.lines().nth(1).expect("data");
    assert!(serde_json::from_str::<Value>(&first["data:".len()..]).is_ok());
}
