use std::{convert::Infallible, net::SocketAddr, sync::atomic::Ordering};

use axum::{Router, routing::post};
use bytes::Bytes;
use coze_tests::{Answer, Http};
use hmac::{Hmac, KeyInit, Mac};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tower::service_fn;

use crate::stack::{Handler, KEY, in_stack, webhook};

/// Serves the stack with bare hyper.
async fn hyper(handler: Handler) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let service = in_stack(webhook()).service(service_fn(move |request: Request<coze_auth::VerifiedBody>| {
        let handler = handler.clone();
        async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            Ok::<_, Infallible>(handler.answer(parts.extensions, &text(body.to_bytes())).await)
        }
    }));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                // It fails when the test goes away in the middle of something.
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// Serves the stack around an axum router.
async fn axum(handler: Handler) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let route = post(|request: axum::extract::Request| async move {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("it was read before").to_bytes();
        handler.answer(parts.extensions, &text(body)).await
    });
    let router =
        Router::new().route("/webhook", route.clone()).route("/webhook/{bot_id}", route).layer(in_stack(webhook()));
    tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
    address
}

fn text(body: Bytes) -> String {
    String::from_utf8(body.to_vec()).expect("UTF-8")
}

fn signature(key: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any length");
    mac.update(body.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

fn message(server: SocketAddr, key: &str, body: &str) -> http::request::Builder {
    Request::post(format!("http://{server}/webhook/b1")).header("x-signature", signature(key, body))
}

async fn send(request: http::request::Builder, body: &str) -> Answer {
    Http::new().send(request.body(Full::from(body.to_owned())).expect("valid")).await
}

/// What must hold on every server.
async fn scenario(server: SocketAddr, handler: Handler) {
    let good = send(message(server, KEY, "hi").header("x-request-id", "r1"), "hi").await;
    assert_eq!((good.status.as_u16(), good.text()), (200, "t1/u1: hi"));
    assert_eq!(good.headers["x-request-id"], "r1");
    assert_eq!(handler.reached(), 1);

    let forged = send(message(server, "another key", "hi"), "hi").await;
    assert_eq!(forged.status, 401);
    assert!(forged.headers.contains_key("www-authenticate"));
    let id = forged.headers["x-request-id"].to_str().expect("ASCII");
    assert_eq!((&forged.json()["code"], forged.json()["detail"]["logid"].as_str()), (&4100.into(), Some(id)));

    let foreign = send(message(server, KEY, "hi").header("x-tenant-id", "t2"), "hi").await;
    assert_eq!((foreign.status.as_u16(), &foreign.json()["code"]), (403, &4101.into()));

    let large = "x".repeat(1025);
    let large = send(message(server, KEY, &large).header("accept", "application/problem+json"), &large).await;
    assert_eq!(
        (large.status.as_u16(), &large.headers["content-type"]),
        (413, &"application/problem+json".parse().expect("valid"))
    );
    assert_eq!(large.json()["status"], 413);

    assert_eq!(handler.reached(), 1, "nothing that was refused reached the handler");
}

/// One message is in the handler: the next is refused, and neither leaves anything behind.
async fn one_at_a_time(server: SocketAddr, handler: Handler) {
    handler.may_answer.forget_permits(Semaphore::MAX_PERMITS);
    let first = tokio::spawn(async move { send(message(server, KEY, "1"), "1").await });
    wait_for(&handler, 1).await;

    let refused = send(message(server, KEY, "2"), "2").await;
    assert_eq!((refused.status.as_u16(), &refused.headers["retry-after"]), (429, &"1".parse().expect("valid")));
    assert_eq!(
        (&refused.headers["x-ratelimit-limit"], &refused.headers["x-ratelimit-remaining"]),
        (&"1".parse().expect("valid"), &"0".parse().expect("valid"))
    );
    assert!(refused.headers.contains_key("x-ratelimit-reset"));
    assert_eq!(refused.json()["code"], 4020);
    assert_eq!(handler.reached(), 1);

    handler.may_answer.add_permits(2);
    assert_eq!(first.await.expect("answered").text(), "t1/u1: 1");
    assert_eq!(send(message(server, KEY, "3"), "3").await.text(), "t1/u1: 3");
}

/// A caller hangs up while the handler works: its place is free again.
async fn hang_up(server: SocketAddr, handler: Handler) {
    handler.may_answer.forget_permits(Semaphore::MAX_PERMITS);
    let mut caller = TcpStream::connect(server).await.expect("it listens");
    let request = format!(
        "POST /webhook/b1 HTTP/1.1\r\nhost: x\r\nx-signature: {}\r\ncontent-length: 2\r\n\r\nhi",
        signature(KEY, "hi")
    );
    caller.write_all(request.as_bytes()).await.expect("sent");
    wait_for(&handler, 1).await;
    drop(caller);

    let next = tokio::spawn(async move {
        // The server learns of it in its own time: until then the place is taken.
        loop {
            let answer = send(message(server, KEY, "next"), "next").await;
            if answer.status != 429 {
                return answer;
            }
        }
    });
    wait_for(&handler, 2).await;
    handler.may_answer.add_permits(1);
    assert_eq!(next.await.expect("answered").text(), "t1/u1: next");
}

async fn wait_for(handler: &Handler, reached: usize) {
    while handler.reached.load(Ordering::SeqCst) < reached {
        tokio::task::yield_now().await;
    }
}

/// Broken input that no client library sends.
async fn raw(server: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server).await.expect("it listens");
    stream.write_all(request).await.expect("sent");
    stream.shutdown().await.expect("half closed");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("answered");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn broken_input(server: SocketAddr, handler: Handler) {
    let sign = signature(KEY, "hi");
    let bad_utf8 =
        raw(server, b"POST /webhook/b1 HTTP/1.1\r\nhost: x\r\nx-signature: \xff\xfe\r\ncontent-length: 2\r\n\r\nhi")
            .await;
    assert!(bad_utf8.starts_with("HTTP/1.1 401"), "{bad_utf8}");
    let twice = format!(
        "POST /webhook/b1 HTTP/1.1\r\nhost: x\r\nx-signature: {sign}\r\nx-signature: {sign}\r\ncontent-length: 2\r\n\r\nhi"
    );
    let twice = raw(server, twice.as_bytes()).await;
    assert!(twice.starts_with("HTTP/1.1 401") && twice.contains("more than once"), "{twice}");
    let truncated =
        format!("POST /webhook/b1 HTTP/1.1\r\nhost: x\r\nx-signature: {sign}\r\ncontent-length: 9\r\n\r\nhi");
    raw(server, truncated.as_bytes()).await;
    assert_eq!(handler.reached(), 0);
}

macro_rules! on_every_server {
    ($($name:ident: $scenario:ident;)*) => {$(
        mod $name {
            #[tokio::test]
            async fn with_hyper() {
                let handler = super::Handler::new();
                super::$scenario(super::hyper(handler.clone()).await, handler).await;
            }

            #[tokio::test]
            async fn with_axum() {
                let handler = super::Handler::new();
                super::$scenario(super::axum(handler.clone()).await, handler).await;
            }
        }
    )*};
}

on_every_server! {
    a_good_message_is_answered_and_a_bad_one_goes_no_further: scenario;
    a_bot_works_on_as_many_messages_at_once_as_its_limit_says: one_at_a_time;
    a_caller_who_hangs_up_leaves_nothing_taken: hang_up;
    broken_input_is_refused_and_harms_nobody: broken_input;
}

#[tokio::test]
async fn what_axum_refuses_itself_has_the_same_shape() {
    let server = axum(Handler::new()).await;
    let answer =
        send(Request::post(format!("http://{server}/nowhere")).header("x-signature", signature(KEY, "")), "").await;
    // It is signed for the only bot, so it gets as far as the router.
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (404, &4200.into()));
}
