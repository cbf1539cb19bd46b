//! What the other side sees when everything fails.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use coze_retry::RetryLayer;
use tokio::{
    task::JoinSet,
    time::{Duration, Instant, interval},
};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::*;

/// 2 000 requests a second for 30 s, each of which could be sent again twice.
#[tokio::test(start_paused = true)]
async fn a_platform_that_fails_for_everybody_sees_a_fifth_more_and_not_three_times_as_much() {
    const SECONDS: u64 = 30;
    const PER_SECOND: u64 = 2000;
    for failing in [503, 429] {
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let platform = service_fn(move |_: Req| {
            counter.fetch_add(1, Ordering::Relaxed);
            std::future::ready(status(failing, &[]))
        });
        let layer = RetryLayer::new(policy().random(fastrand::f64));
        let (mut requests, mut tick) = (JoinSet::new(), interval(Duration::from_millis(5)));
        let start = Instant::now();
        for _ in 0..SECONDS * 200 {
            tick.tick().await;
            for _ in 0..PER_SECOND / 200 {
                let get = request("GET", "https://api.coze.cn/v1/bots");
                requests.spawn(layer.layer(platform.clone()).oneshot(get));
            }
        }
        assert_eq!(start.elapsed().as_secs(), SECONDS - 1);
        let failed = requests.join_all().await.iter().filter(|answer| outcome(answer) != "200").count() as u64;
        let total = SECONDS * PER_SECOND;
        let extra = sent.load(Ordering::Relaxed) - total;
        println!("{failing}: {total} requests, {extra} retries, {:.2} %", extra as f64 * 100.0 / total as f64);
        assert_eq!(failed, total);
        assert!(extra <= total / 5 + 10, "20 % and the reserve: {extra}");
        assert!(extra >= total / 5 - 10, "and no less: {extra}");
    }
}
