//! What the tests with a real Redis share.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{num::NonZeroU32, time::Duration};

use coze_core::{Context, Error, UserId};
use coze_ratelimit::{Decision, Policy, RedisLimits, RedisPermit};
use coze_tests::Redis;
use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::{Instant, interval},
};

pub(crate) fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

/// One decision about a request of this user.
pub(crate) async fn ask(limits: &RedisLimits, user: &str) -> Result<RedisPermit, Error> {
    let (parts, ()) = Request::new(()).into_parts();
    let context = Context::new();
    context.user.set(UserId::new(user).expect("valid")).expect("empty");
    match limits.decide(&parts, &context, Instant::now().into_std()) {
        Decision::Now(decided) => decided,
        Decision::Later(decision) | Decision::Wait(decision) => decision.await,
    }
}

/// So many decisions of each node, all at the same time. The outcomes of one node are in the order in which it was asked.
pub(crate) async fn many(nodes: &[RedisLimits], each: usize) -> Vec<Result<RedisPermit, Error>> {
    let mut tasks = JoinSet::new();
    for index in 0..each {
        for (node, limits) in nodes.iter().cloned().enumerate() {
            tasks.spawn(async move { (node, index, ask(&limits, "u").await) });
        }
    }
    let mut outcomes = tasks.join_all().await;
    outcomes.sort_by_key(|(node, index, _)| (*node, *index));
    outcomes.into_iter().map(|(.., outcome)| outcome).collect()
}

/// How often a script was called.
pub(crate) fn calls(redis: &Redis) -> u64 {
    let stats = redis.command(&["INFO", "commandstats"]);
    let lines = stats.lines().filter(|line| line.starts_with("cmdstat_eval"));
    lines.filter_map(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok()).sum()
}

/// Waits until it is so, at most 10 s.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let mut looks = interval(Duration::from_millis(10));
    for _ in 0..1000 {
        looks.tick().await;
        if is_so().await {
            return;
        }
    }
    panic!("not within 10 s: {what}");
}

/// A network between a node and its Redis, which can be cut: then nothing is forwarded, and nothing is closed.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    is_open: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (is_open, watched) = watch::channel(true);
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.expect("it listens");
                let mut watched = watched.clone();
                tokio::spawn(async move {
                    let far = TcpStream::connect(("127.0.0.1", to)).await.expect("it runs");
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    let there = forward(near_in, far_out, watched.clone());
                    let back = forward(far_in, near_out, watched.clone());
                    tokio::select! { () = there => {}, () = back => {} }
                    let _ = watched.wait_for(|is_open| *is_open).await;
                });
            }
        });
        Self { port, is_open }
    }

    pub(crate) fn cut(&self) {
        self.is_open.send_replace(false);
    }

    pub(crate) fn heal(&self) {
        self.is_open.send_replace(true);
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is_open: watch::Receiver<bool>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let is_alive = is_open.wait_for(|is_open| *is_open).await.is_ok();
        if !is_alive || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
