//! What peers let through under axum, which makes a copy of the service for each connection.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, routing::get};
use coze_core::Context;
use coze_errmap::{ErrMapLayer, Responder};
use coze_ratelimit::{Level, Limits, Proxies, Rate, RateLimitLayer};
use coze_tests::Http;
use http::{Request, request::Parts};
use http_body_util::Full;
use tokio::{net::TcpListener, task::JoinSet};
use tower::ServiceBuilder;

const CAP: NonZeroU32 = NonZeroU32::new(5).expect("not zero");

/// 1500 requests on 50 connections through these limits, each with another address that its caller made up: how many were
/// handled. Every other one was refused with a whole number of seconds, and with one at least.
async fn flood(limits: Limits) -> usize {
    let handled = Arc::new(AtomicUsize::new(0));
    let counted = handled.clone();
    let answer = get(async move || {
        counted.fetch_add(1, Ordering::SeqCst);
        "hi"
    });
    let stack = ServiceBuilder::new().layer(ErrMapLayer::new(Responder::new())).layer(RateLimitLayer::new(limits));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let server =
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/", answer).layer(stack)).await });
    let mut connections = JoinSet::new();
    for connection in 0..50 {
        let url = url.clone();
        connections.spawn(async move {
            let http = Http::new();
            for number in 0..30 {
                let made_up = format!("192.0.2.{number}, 10.0.0.{connection}, 198.51.100.7");
                let request = Request::get(&url).header("x-forwarded-for", made_up);
                let answer = http.send(request.body(Full::default()).expect("a valid URL")).await;
                if answer.status != 200 {
                    assert_eq!(answer.status, 429);
                    let wait = answer.headers["retry-after"].to_str().expect("text").parse::<u64>();
                    assert!(wait.expect("a whole number") >= 1);
                }
            }
        });
    }
    connections.join_all().await;
    server.abort();
    handled.load(Ordering::SeqCst)
}

#[tokio::test]
async fn of_1500_requests_past_a_cap_of_five_under_axum_five_are_handled() {
    // Of tower's limit all 1500 were: https://github.com/tokio-rs/axum/issues/2634. So few a minute that no further one is due.
    let limits = Limits::new().level(Level::global("all", Rate::per_minute(CAP)));
    assert_eq!(flood(limits).await, 5);
}

#[tokio::test]
async fn a_client_that_makes_up_addresses_has_one_quota_under_axum() {
    // tower_governor takes the leftmost address: https://github.com/adorsys/status-list-server/issues/262.
    let proxies = Proxies::new(["127.0.0.0/8", "10.0.0.0/8"]).expect("valid");
    let level = Level::per_key("client", Rate::per_minute(CAP), move |parts: &Parts, _: &Context| {
        Some(proxies.key(&parts.headers, [127, 0, 0, 1].into()))
    });
    let limits = Limits::new().level(level);
    assert_eq!(flood(limits).await, 5);
}
