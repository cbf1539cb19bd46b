use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use coze_core::{Error, Kind};
use coze_ratelimit::{Job, MemoryQueue, Queue, Worker};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::job;

/// Works until nothing is left, or for an hour of the paused clock.
async fn work<F>(queue: &MemoryQueue, lanes: usize, handler: impl Fn(Job) -> F + Send + Sync + 'static)
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let left = queue.clone();
    let empty = async move {
        for _ in 0..3600 {
            sleep(Duration::from_secs(1)).await;
            if left.is_empty() {
                return;
            }
        }
    };
    Worker::new(queue.clone()).lanes(lanes).run(handler, empty).await;
}

fn fails(kind: Kind) -> Error {
    Error::new(kind, "bad_day")
}

#[tokio::test(start_paused = true)]
async fn each_job_is_done_once_over_all_lanes() {
    let queue = MemoryQueue::new(1000);
    for n in 0..500 {
        queue.push(job(&n.to_string())).await.expect("there is room");
    }
    let (seen, at_once, most) =
        (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (ids, running, peak) = (seen.clone(), at_once.clone(), most.clone());
    work(&queue, 8, move |job| {
        let (ids, running, peak) = (ids.clone(), running.clone(), peak.clone());
        async move {
            peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(Duration::from_millis(10)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            ids.lock().expect("whole").push(job.id.parse::<u32>().expect("a number"));
            Ok(())
        }
    })
    .await;
    let mut seen = seen.lock().expect("whole").clone();
    seen.sort_unstable();
    assert_eq!((seen, most.load(Ordering::SeqCst)), ((0..500).collect(), 8));
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_may_pass_is_tried_again_when_it_said_to_come_back() {
    let queue = MemoryQueue::new(10);
    queue.push(job("a")).await.expect("there is room");
    let tries = Arc::new(Mutex::new(Vec::new()));
    let (times, began) = (tries.clone(), Instant::now());
    work(&queue, 1, move |_| {
        let mut times = times.lock().expect("whole");
        times.push(began.elapsed().as_millis());
        let ended = match times.len() {
            1 => Err(fails(Kind::RateLimited).with_retry_after(Duration::from_millis(1700))),
            2 | 3 => Err(fails(Kind::Unavailable)),
            _ => Ok(()),
        };
        async { ended }
    })
    .await;
    assert_eq!(*tries.lock().expect("whole"), [0, 1700, 1700 + 400, 1700 + 400 + 800]);
    assert!(queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_final_failure_gives_the_job_up_at_once_and_the_next_one_is_done() {
    let queue = MemoryQueue::new(10);
    queue.push(job("a")).await.expect("there is room");
    queue.push(job("b")).await.expect("there is room");
    let tries = Arc::new(Mutex::new(Vec::new()));
    let ids = tries.clone();
    work(&queue, 1, move |job| {
        ids.lock().expect("whole").push(job.id.clone());
        let ended = if job.id == "a" { Err(fails(Kind::Invalid)) } else { Ok(()) };
        async { ended }
    })
    .await;
    assert_eq!(*tries.lock().expect("whole"), ["a", "b"]);
    assert_eq!(queue.dead().iter().map(|dead| dead.reason.as_str()).collect::<Vec<_>>(), ["bad_day"]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_and_a_try_beyond_the_lease_end_no_more_than_the_try() {
    let queue = MemoryQueue::new(10).tries(2).with_lease(Duration::from_secs(5));
    for id in ["panics", "hangs", "works"] {
        queue.push(job(id)).await.expect("there is room");
    }
    let tries = Arc::new(Mutex::new(Vec::new()));
    let ids = tries.clone();
    work(&queue, 1, move |job| {
        ids.lock().expect("whole").push(job.id.clone());
        async move {
            match job.id.as_str() {
                "panics" => panic!("as it should"),
                "hangs" => pending().await,
                _ => Ok(()),
            }
        }
    })
    .await;
    assert_eq!(*tries.lock().expect("whole"), ["panics", "hangs", "works", "panics", "hangs"]);
    let dead: Vec<_> = queue.dead().into_iter().map(|dead| (dead.job.id, dead.reason)).collect();
    assert_eq!(dead, [("panics", "job_panicked"), ("hangs", "job_timeout")].map(|(id, why)| (id.into(), why.into())));
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_is_finished_before_it_stops_and_nothing_else_is_begun() {
    let queue = MemoryQueue::new(10);
    queue.push(job("a")).await.expect("there is room");
    queue.push(job("b")).await.expect("there is room");
    let (begun, done) = (Arc::new(Notify::new()), Arc::new(AtomicU32::new(0)));
    let (tell, count) = (begun.clone(), done.clone());
    let handler = move |_| {
        let (tell, count) = (tell.clone(), count.clone());
        async move {
            tell.notify_one();
            sleep(Duration::from_secs(10)).await;
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    };
    Worker::new(queue.clone()).run(handler, async move { begun.notified().await }).await;
    assert_eq!((done.load(Ordering::SeqCst), queue.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn dropping_a_worker_ends_its_tries_and_leaves_the_job_to_another() {
    let queue = MemoryQueue::new(10).with_lease(Duration::from_secs(5));
    queue.push(job("a")).await.expect("there is room");
    let ended = Arc::new(());
    let held = ended.clone();
    let handler = move |_| {
        let held = held.clone();
        async move {
            pending::<()>().await;
            drop(held);
            Ok(())
        }
    };
    let work = Worker::new(queue.clone()).run(handler, pending());
    assert!(tokio::time::timeout(Duration::from_secs(1), work).await.is_err());
    while Arc::strong_count(&ended) > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(queue.take().await.expect("after the lease").attempt, 2);
}
